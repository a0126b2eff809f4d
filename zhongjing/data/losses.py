"""What a stage loses of its data, in sentences that name the field to change.

Of a source's records some are cut, dropped or repeated for good reasons. Above a share of them
(``warnAboveFraction``) a reason is told as a warning: a stage that loses a third of its rankings trains to
the end all the same, and its figures do not show it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from zhongjing.config.stages import AnySettings, PpoSettings, RmSettings, SftSettings, Stage
from zhongjing.data.unnamed_orders import LIKE_RANKS
from zhongjing.storage.manifest import MixtureCounts, SourceCounts

_TEST_PROMPTS_CUT = 0.25  # of a test source's records


def data_warnings(
    stage: Stage,
    settings: AnySettings,
    counts: Sequence[SourceCounts],
    mixture: Sequence[MixtureCounts] = (),
) -> list[str]:
    """A sentence for each loss above ``warn_above_fraction``, and for scores that look like ranks."""
    limit = settings.warn_above_fraction
    found: list[str] = []
    for source in counts:
        for lost, sentence in _losses(stage, settings, source):
            if source.read and lost / source.read > limit:
                found.append(
                    f"{source.name}: {lost} of {source.read} records ({lost / source.read:.0%}) {sentence}"
                )
        if source.layouts and all(layout.endswith(LIKE_RANKS) for layout in source.layouts):
            found.append(
                f"{source.name}: the scores of its {sum(source.layouts.values())} records are the numbers "
                "from 1 to that of the answers, each once, as ranks are; if 1 is the best, name them in "
                f"spec.sources.{source.name}.columns.ranks in place of columns.scores"
            )
    for group in mixture:
        if group.drawn and group.repeated / group.drawn > limit:
            found.append(
                f"{group.name}: {group.drawn} samples an epoch are drawn of {group.samples} "
                f"({group.repeated / group.drawn:.0%} are repeated); change {_weight_field(stage, settings)}"
            )
    return found


def length_field(stage: Stage, settings: AnySettings) -> str:
    """The field that decides how long a record may be, with its value."""
    name, value = "maxLength", settings.max_length
    if isinstance(settings, PpoSettings):
        if settings.max_prompt_length <= settings.max_length - settings.max_new_tokens:
            name, value = "maxPromptLength", settings.max_prompt_length
        else:
            name, value = "maxLength - maxNewTokens", settings.longest_prompt
    return f"spec.stages.{stage}.{name} ({value})"


def _losses(stage: Stage, settings: AnySettings, source: SourceCounts) -> Iterator[tuple[int, str]]:
    # Duplicates are none: what they hold is there.
    field = length_field(stage, settings)
    longer = "their answers alone are" if isinstance(settings, RmSettings | SftSettings) else "they are"
    what = "the beginning of their prompt" if isinstance(settings, RmSettings) else "their earliest turns"
    yield source.too_long, f"are dropped: {longer} longer than {field}; raise it"
    # Prompts of test data that are cut cost no training; many of them change what is measured.
    is_trained = source.name in {ref.source for ref in settings.data}
    is_told = is_trained or source.truncated > _TEST_PROMPTS_CUT * source.read
    yield (source.truncated if is_told else 0), f"lose {what}: they are longer than {field}; raise it"
    yield source.unanswered, "lose a last question that has no answer; add the answers to the source"
    yield source.leaks, "are dropped: they equal test data; see testFraction and split: test of spec.sources"
    yield source.tied, "are left out: their answers all tie, which orders nothing"
    yield (
        source.quarantined,
        f"cannot be used (quarantine.jsonl lists them); correct them, or name the keys in "
        f"spec.sources.{source.name}.columns",
    )


def _weight_field(stage: Stage, settings: AnySettings) -> str:
    if isinstance(settings, SftSettings) and settings.mixture is not None:
        return "the shares of spec.stages.sft.mixture, or its maxRepeats"
    return f"the weights in spec.stages.{stage}.data"
