"""Model cards: read by the hub's own library, true to the manifest, silent about nothing that is missing."""

from __future__ import annotations

from typing import Any

from huggingface_hub import ModelCard

from tests.unit.cli.fakes import manifest
from zhongjing.cli.model_card import model_card
from zhongjing.config.stages import Stage
from zhongjing.storage.manifest import SourceCounts, StageInput

LOAD = ["from transformers import AutoModelForCausalLM", 'model = AutoModelForCausalLM.from_pretrained("m")']


def metadata(text: str) -> dict[str, Any]:
    """The card's, as the hub's library reads it."""
    return dict(vars(ModelCard(text).data))


def card(
    stage: Stage = Stage.SFT, *, adapter: bool = False, base: dict[str, Any] | None = None, **more: Any
) -> str:
    result = manifest(stage, **more)
    result.document["spec"]["base"] = base or {"uri": "owner/name", "license": "apache-2.0"}
    for source in result.document["spec"]["sources"]:
        source["license"] = "CC BY-NC 4.0" if source["name"] == "sft" else None
    return model_card(result, adapter=adapter, load=LOAD)


def test_the_hubs_library_reads_the_metadata() -> None:
    data = metadata(card())
    assert (data["license"], data["base_model"], data["library_name"]) == (
        "apache-2.0",
        "owner/name",
        "transformers",
    )
    assert (data["language"], data["pipeline_tag"]) == (["zh"], "text-generation")
    data = metadata(card(Stage.RM, adapter=True, base={"uri": "s3://models/own"}))
    assert (data["license"], data.get("base_model"), data["library_name"]) == ("other", None, "peft")
    assert data["pipeline_tag"] == "text-classification"


def test_a_card_says_what_the_model_is_and_that_it_gives_no_medical_advice() -> None:
    text = card(Stage.RM, adapter=True)
    assert "a reward model" in text
    assert "as a PEFT adapter" in text
    assert "research tool and gives no medical advice" in text
    assert "\n".join(LOAD) in text


def test_a_card_names_data_by_digest_and_licence_as_given_or_as_missing() -> None:
    counts = [
        SourceCounts(name=name, digest=digest, read=289, kept=185, train=176, validation=9, truncated=51)
        for name, digest in (("sft", "d" * 16), ("rm", "e" * 16))
    ]
    lines = [line for line in card(sources=counts).splitlines() if "| `" in line]
    assert lines == [
        f"| `sft` | dialogue | CC BY-NC 4.0 | 176 | 9 | 0 | 104 | 51 | `{'d' * 16}` |",
        f"| `rm` | ranking | not given | 176 | 9 | 0 | 104 | 51 | `{'e' * 16}` |",
    ]


def test_a_card_says_what_the_model_remembers_of_planted_canaries() -> None:
    group = {"repeats": 16, "canaries": 8, "byRank": 6.02, "exposure": 41.2, "chance": 1e-9, "extracted": 5}
    measured: dict[str, Any] = {"mostByRank": 6.02, "most": 51.4, "candidates": 64}
    measured["sources"] = [{"source": "books", "plantedIn": "pretrain", "groups": [group]}]
    text = card(extra={"exposure": measured})
    assert "| books (pretrain) | 16 | 41.2 | 6.0 | 5 of 8 |" in text
    assert "copies" not in card()


def test_a_card_has_the_figures_before_and_after_and_what_is_doubtful_about_them() -> None:
    text = card(warnings=["not above chance: accuracy 0.48 of 21 pairs"])
    assert "| loss | 6.5 | 3.25 | 3.5 |" in text
    assert "- doubtful: not above chance: accuracy 0.48 of 21 pairs" in text


def test_a_card_names_the_base_and_the_stage_that_it_starts_from() -> None:
    inputs = [StageInput(role="from", uri="s3://z/pretrain/model", key="a1b2", stage=Stage.PRETRAIN)]
    text = card(base={"delta": "IDEA-CCNL/Ziya-LLaMA-13B-v1", "root": "s3://models/llama"}, inputs=inputs)
    assert "- base: `IDEA-CCNL/Ziya-LLaMA-13B-v1`, added to `s3://models/llama`" in text
    assert "- its licence: not given" in text
    assert "- starts from: stage `pretrain`, key `a1b2`" in text
