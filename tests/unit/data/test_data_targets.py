"""What is learned of a dialogue, token by token: each answer that is to be learned, whole, and nothing else.

Templates are those of well-known models (tests/published_tokenizers.py). TRL #6766: a template that cuts
``<think>...</think>`` takes it out of the targets without a word. OpenAI's ``weight`` and ms-swift's ``loss``
keep turns out of them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.published_bases import train_sentencepiece, write_llama_tokenizer
from tests.published_tokenizers import PUBLISHED, write_tokenizer
from tests.unit.data import build_support
from tests.unit.data.build_support import QUARANTINE, Bench
from tests.unit.data.support import CORPUS
from zhongjing.config.stages import Stage
from zhongjing.data.chat import Unfit, encode_dialogues
from zhongjing.data.records import Turn
from zhongjing.data.samples import Segment
from zhongjing.data.templates import ensure_chat_template, turn_end_id
from zhongjing.data.tokenizer_folder import load_tokenizer
from zhongjing.model.tokenizer import end_ids, padding_id

bench = build_support.bench  # pytest takes a module's fixtures by their names in it

THOUGHT = "<think>\n可能是感冒\n</think>\n\n"
ASKED, ASKED_AGAIN = Turn("user", "头痛三天了，怎么办？"), Turn("user", "需要吃药吗")
FIRST, LAST = "多休息，注意保暖。", "如果体温超过38.5度，可以服用退烧药。"
WRONG = "这是错误的回答"


def answer(content: str, *, learn: bool = True) -> Turn:
    return Turn("assistant", content, learn)


@pytest.fixture(scope="module", params=sorted(PUBLISHED))
def published(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("published") / request.param
    write_tokenizer(folder, request.param)
    tokenizer = load_tokenizer(folder)
    ensure_chat_template(tokenizer)
    return tokenizer


def learned(tokenizer: PreTrainedTokenizerBase, segments: Sequence[Segment]) -> list[str]:
    """The targets as texts: each run of them, without space and without the token that ends a turn."""
    texts: list[str] = []
    for segment in segments:
        for is_target, run in itertools.groupby(
            zip(segment.ids, segment.target, strict=True), key=lambda p: p[1]
        ):
            if is_target:
                ids = [int(token) for token, _ in run]
                assert ids.pop() == turn_end_id(tokenizer)
                texts.append("".join(str(tokenizer.decode(ids)).split()))
    return texts


@pytest.mark.parametrize("thoughts", [(), (0,), (1,), (0, 1)], ids=str)
def test_every_character_of_an_answer_is_learned_or_its_record_is_counted(
    thoughts: tuple[int, ...], published: PreTrainedTokenizerBase
) -> None:
    said = [(THOUGHT if place in thoughts else "") + text for place, text in enumerate((FIRST, LAST))]
    turns = (ASKED, answer(said[0]), ASKED_AGAIN, answer(said[1]))
    (found,) = encode_dialogues(published, [turns], 100_000)
    if isinstance(found, Unfit):
        assert thoughts  # only a template that cuts thoughts refuses, and says so
        assert found is Unfit.REWRITTEN
        return
    texts = learned(published, found.segments)
    assert len(texts) == 2
    for text, wanted in zip(texts, said, strict=True):
        # Qwen3's writes empty thoughts where there are none.
        assert text.removeprefix("<think></think>") == "".join(wanted.split())


@pytest.mark.parametrize("wrong", [0, 1])
def test_no_token_of_a_turn_marked_not_to_train_is_a_target(
    wrong: int, published: PreTrainedTokenizerBase
) -> None:
    said = [
        answer(WRONG, learn=False) if place == wrong else answer(text)
        for place, text in enumerate((FIRST, LAST))
    ]
    (found,) = encode_dialogues(published, [(ASKED, said[0], ASKED_AGAIN, said[1])], 100_000)
    assert not isinstance(found, Unfit)
    segments, cut = found.segments, found.truncated
    assert not cut
    (text,) = learned(published, segments)
    assert text.removeprefix("<think></think>") == "".join((LAST, FIRST)[wrong].split())
    shown = str(published.decode(segments[0].ids.tolist()))
    assert (WRONG in shown) is (wrong == 0)  # context where something is learned behind it


def test_a_turn_that_is_too_long_to_learn_is_no_reason_to_drop_what_is_learned(
    chatml: PreTrainedTokenizerFast,
) -> None:
    turns = (ASKED, answer(FIRST), ASKED_AGAIN, answer(WRONG * 500, learn=False))
    (found,) = encode_dialogues(chatml, [turns], 128)
    assert not isinstance(found, Unfit)
    assert learned(chatml, found.segments) == [FIRST]


def test_marked_turns_in_a_build(bench: Bench, chatml: PreTrainedTokenizerFast) -> None:
    talk: list[dict[str, Any]] = [
        {"role": "user", "content": ASKED.content},
        {"role": "assistant", "content": WRONG, "weight": 0},
        {"role": "user", "content": "再想想"},
        {"role": "assistant", "content": LAST, "weight": 1},
    ]
    plain = [{key: value for key, value in turn.items() if key != "weight"} for turn in talk]
    bench.source("talk", "dialogue", [{"messages": talk}, {"messages": plain}], maxQuarantineFraction=1)
    ref = bench.build(Stage.SFT, "talk", validationFraction=0.0)
    samples = bench.open(ref, "train").fetch([0, 1])  # the same words, trained otherwise: no duplicates
    assert [learned(chatml, sample.segments) for sample in samples] == [[LAST], [WRONG, LAST]]
    ref = bench.build(Stage.PRETRAIN, "talk", validationFraction=0.0)
    assert (ref.counts[0].kept, ref.counts[0].quarantined) == (1, 1)
    (line,) = bench.memory.get(QUARANTINE).splitlines()
    assert json.loads(line)["reason"].startswith("a turn is marked not to be trained on")


@pytest.mark.parametrize("case", ["qwen2.5-base", "llama-3-eot", "llama-3", "only pieces"])
def test_bases_that_peers_could_not_train_or_stop_train_and_stop(case: str, tmp_path: Path) -> None:
    """Qwen #1080 and LLaMA-Factory #8260: EOS is padding. unsloth #416 and ms-swift #3113: turns end with
    another token than EOS, or there is no padding token. FastChat #493: sentencepiece alone.
    """
    if case == "only pieces":
        write_llama_tokenizer(tmp_path, train_sentencepiece(CORPUS, 400))
    else:
        write_tokenizer(tmp_path, case)
    tokenizer = load_tokenizer(tmp_path)
    ensure_chat_template(tokenizer)
    end = turn_end_id(tokenizer)
    (found,) = encode_dialogues(tokenizer, [(ASKED, answer(FIRST))], 512)
    assert not isinstance(found, Unfit)
    (segment,) = found.segments
    assert segment.ids[segment.target][-1] == end
    assert end in end_ids(tokenizer)
    assert padding_id(tokenizer) != end
