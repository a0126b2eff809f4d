"""The model card beside a pulled model: what it is, what it was made from, what its figures are worth.

A ``README.md`` as the Hugging Face hub reads it: metadata in YAML between two lines of dashes, then Markdown
(https://huggingface.co/docs/hub/model-cards). Everything comes from the stage's manifest; what was not given,
such as a licence, is named as missing. The manifest itself lies beside it as ``manifest.json``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.stages import Stage
from zhongjing.pipeline.headline import duration, number
from zhongjing.storage.manifest import StageManifest

CARD_FILE = "README.md"

_WHAT = {
    Stage.PRETRAIN: "a language model, pretrained further on medical text",
    Stage.SFT: "a language model, fine-tuned on medical dialogues",
    Stage.RM: "a reward model: it scores answers to medical questions as ranked answers taught it",
    Stage.PPO: "a language model, fine-tuned by reinforcement learning (PPO) against a reward model",
}
_USE = (
    "Research and development on medical dialogue in Chinese. It is a research tool and gives no medical "
    "advice: its answers can be wrong or harmful, it has not been tested on patients, and it replaces no "
    "physician. In an emergency call the emergency services."
)
_MISSING = "not given"
_HUB_NAME_PARTS = 2


def model_card(manifest: StageManifest, *, adapter: bool, load: Sequence[str]) -> str:
    """The card's text.

    Args:
        manifest: of the stage that made the model.
        adapter: whether what lies beside the card is an adapter and not a whole model.
        load: lines of Python that load it.
    """
    document = TrainingPipeline.model_validate(manifest.document)
    metadata = yaml.safe_dump(_metadata(manifest, document, adapter), allow_unicode=True, sort_keys=False)
    parts = [
        f"---\n{metadata}---",
        f"# {manifest.pipeline}/{manifest.stage}",
        f"This is {_WHAT[manifest.stage]}{', as a PEFT adapter' if adapter else ''}. "
        f"It is the result of the stage `{manifest.stage}` of the pipeline `{manifest.pipeline}`, made with "
        f"Zhongjing {manifest.lineage.code_version}.",
        f"## Intended use\n\n{_USE}",
        f"## How to load it\n\n```python\n{chr(10).join(load)}\n```",
        f"## Base\n\n{_base(manifest, document)}",
        f"## Data\n\n{_data(manifest, document)}",
        f"## Figures\n\n{_figures(manifest)}",
        f"## Training\n\n{_training(manifest, document)}",
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(manifest: StageManifest, document: TrainingPipeline, adapter: bool) -> dict[str, Any]:
    base = document.spec.base
    hub = base.uri if base.uri is not None and _is_hub_id(base.uri) else None
    found: dict[str, Any] = {
        "language": ["zh"],
        "license": base.license or "other",
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-classification" if manifest.stage is Stage.RM else "text-generation",
        "tags": ["medical", "zhongjing", manifest.stage.value],
    }
    if hub is not None:
        found["base_model"] = hub
    return found


def _base(manifest: StageManifest, document: TrainingPipeline) -> str:
    base = document.spec.base
    if base.tiny is not None:
        name = "a small random model, made for trying the pipeline"
    elif base.delta is not None:
        name = f"`{base.delta}`, added to `{base.root}`"
    else:
        name = f"`{base.uri}`" + (f", revision `{base.revision}`" if base.revision else "")
    lines = [f"- base: {name}", f"- its licence: {base.license or _MISSING}"]
    lines += [
        f"- {'starts from' if each.role == 'from' else 'reward model'}: "
        f"{f'stage `{each.stage}`, ' if each.stage else ''}key `{each.key}`"
        for each in manifest.inputs
    ]
    return "\n".join(lines)


def _data(manifest: StageManifest, document: TrainingPipeline) -> str:
    described = {source.name: source for source in document.spec.sources}
    rows = []
    for counts in manifest.sources:
        source = described.get(counts.name)
        dropped = counts.read - counts.kept
        rows.append(
            (
                f"`{counts.name}`",
                source.kind.value if source else "",
                (source.license if source else None) or _MISSING,
                *(f"{each:,}" for each in (counts.train, counts.validation, counts.test, dropped)),
                f"{counts.truncated:,}",
                f"`{counts.digest}`",
            )
        )
    head = ("source", "kind", "licence", "train", "held out", "test", "dropped", "cut", "digest")
    return _table(head, rows) if rows else "No data was read."


def _figures(manifest: StageManifest) -> str:
    names = sorted({*manifest.metrics_before, *manifest.metrics, *manifest.test_metrics})
    columns = (manifest.metrics_before, manifest.metrics, manifest.test_metrics)
    rows = [
        (name, *(number(column[name]) if name in column else "-" for column in columns)) for name in names
    ]
    parts = [_table(("metric", "held out, before", "held out, after", "test data"), rows)]
    doubts = "\n".join(f"- doubtful: {warning}" for warning in manifest.warnings)
    return "\n\n".join(part for part in (*parts, _exposure(manifest), doubts) if part)


def _exposure(manifest: StageManifest) -> str:
    """What the model remembers of canaries; empty where none was planted."""
    measured = manifest.extra.get("exposure")
    if not isinstance(measured, Mapping):
        return ""
    rows = [
        (
            f"{source['source']} ({source['plantedIn']})",
            f"{group['repeats']:,}",
            f"{group['exposure']:.1f}",
            f"{group['byRank']:.1f}",
            f"{group['extracted']} of {group['canaries']}",
        )
        for source in measured["sources"]
        for group in source["groups"]
    ]
    head = ("canaries of", "copies", "exposure, bits", "by rank, bits", "given out word for word")
    bounds = f"Exposure is at most {measured['most']:.1f} bits, by rank {measured['mostByRank']:.1f}."
    return f"{_table(head, rows)}\n\n{bounds}" if rows else ""


def _training(manifest: StageManifest, document: TrainingPipeline) -> str:
    made = manifest.lineage
    lines = [
        f"- {manifest.steps:,} steps ({manifest.best_step:,} kept), {manifest.samples:,} samples, "
        f"{manifest.tokens:,} tokens, {duration(manifest.seconds)}",
        f"- {made.workers} worker{'s' if made.workers > 1 else ''} on {made.device}",
        f"- finished {manifest.finished_at}",
        f"- seed {document.spec.seed}; precision {manifest.extra.get('precision', _MISSING)}",
        f"- code: {made.code_version}" + (f", commit `{made.commit}`" if made.commit else ""),
        f"- packages: {', '.join(f'{name} {version}' for name, version in sorted(made.packages.items()))}",
        "- every setting, and all that its key is made of: `manifest.json`",
    ]
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _is_hub_id(reference: str) -> bool:
    return (
        "://" not in reference
        and not reference.startswith((".", "/", "~"))
        and reference.count("/") < _HUB_NAME_PARTS
    )
