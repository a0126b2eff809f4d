"""Presidio with our recognisers: where identifiers stand in a text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from presidio_analyzer import AnalyzerEngine, RecognizerRegistry, RecognizerResult
from presidio_analyzer.nlp_engine import NoOpNlpEngine

from zhongjing.construct.deidentify.dates import date_recognizers
from zhongjing.construct.deidentify.folding import folded
from zhongjing.construct.deidentify.lexicon import Lexicon
from zhongjing.construct.deidentify.names import NameRecognizer
from zhongjing.construct.deidentify.numbers import LANGUAGE, number_recognizers
from zhongjing.construct.deidentify.places import AddressRecognizer, HospitalRecognizer
from zhongjing.construct.deidentify.policy import Identifier


class Span(NamedTuple):
    """An identifier, by characters of the text."""

    start: int
    end: int
    entity: Identifier


class Finder:
    """Finds identifiers. No model, no network, nothing of the text in logs.

    Args:
        lexicon: what names are made of.
        entities: the classes to look for.
    """

    def __init__(self, lexicon: Lexicon, entities: Iterable[Identifier]) -> None:
        engine = NoOpNlpEngine(models=[{"lang_code": LANGUAGE, "model_name": "none"}])
        registry = RecognizerRegistry(
            recognizers=[
                *number_recognizers(),
                *date_recognizers(),
                AddressRecognizer(),
                HospitalRecognizer(),
                NameRecognizer(lexicon),
            ],
            supported_languages=[LANGUAGE],
        )
        self._analyzer = AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=[LANGUAGE])
        self._entities = [each.value for each in entities]

    def find(self, text: str) -> list[Span]:
        """The identifiers in order. Of two that overlap, Presidio's score decides, then the length."""
        if not self._entities:
            return []
        results = self._analyzer.analyze(folded(text), language=LANGUAGE, entities=self._entities)
        results.sort(key=lambda each: (-each.score, each.start - each.end, each.start, each.entity_type))
        kept: list[RecognizerResult] = []
        for result in results:
            if not any(result.intersects(other) > 0 for other in kept):
                kept.append(result)
        kept.sort(key=lambda each: int(each.start))
        return [Span(each.start, each.end, Identifier(each.entity_type)) for each in kept]
