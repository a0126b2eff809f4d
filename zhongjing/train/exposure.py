"""How well a model remembers the canaries that were planted in its sources.

After Carlini et al. 2019, "The Secret Sharer" (USENIX Security). P(s) is the log-perplexity of a secret,
-log2 Pr(s | prefix) in bits. The *exposure* of a secret s of a space R is log2 |R| - log2 rank(s), its rank
being taken among all of R by P. R is too large to be listed, so it is estimated from N others of it, by both
of the paper's ways:

- by sampling: log2((N + 1) / rank) among the N and the secret itself, ties against the model; at most
  log2(N + 1) bits.
- by distribution: -log2 Pr[P(r) <= P(s)] under a skew-normal distribution fitted to the N. Bounded by 0 and
  log2 |R|. It is fitted by moments, and its left tail is never thinner than the normal distribution's: a
  fit to a few values that says otherwise would tell of memory where there is none.

A model that has not learnt the secret ranks it anywhere, as likely here as there: its exposure by sampling
exceeds e bits with a chance of 2^-e at most, whatever the model is. The sum over n canaries then exceeds what
was measured at most as often as a Gamma(n) variable, which gives the ``chance`` of a group.

A secret is *extracted* where greedy decoding goes on after the prefix with all of it. That is so if and only
if each of its tokens is the likeliest one after those before it, which the same forward pass tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.sources import Source
from zhongjing.config.stages import PretrainSettings, SftSettings, Stage
from zhongjing.data.batches import collate
from zhongjing.data.canaries import SPACE_BITS, Canary, candidates, invent
from zhongjing.data.chat import Encoded
from zhongjing.data.encoding import RecordEncoder
from zhongjing.data.samples import MicroBatch, PackedRow, Sample, Segment
from zhongjing.model.causal import hidden_states, output_layer
from zhongjing.model.router import Part
from zhongjing.storage.heartbeat import beat
from zhongjing.train.batch_loader import sum_over_ranks
from zhongjing.train.ppo.program import PpoProgram
from zhongjing.train.ppo.roles import POLICY
from zhongjing.train.stages.causal import CausalProgram

CANDIDATES = 64
"""N: 24 canaries and their candidates are about 160,000 tokens, one forward pass each."""
CHANCE = 0.001
"""A group's exposure is a warning only where chance alone gives it less often."""
_CHUNK_TOKENS = 1024

Read = Callable[[PackedRow], torch.Tensor]
"""Last hidden states [1, T, H] of a packed row."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A causal language model, as it is asked for probabilities."""

    read: Read
    head: nn.Module


@dataclass(frozen=True, slots=True)
class Memory:
    """What was measured of one canary. Bits."""

    by_rank: float
    exposure: float  # by distribution
    extracted: bool


def reader_of(program: object) -> Reader | None:
    """The model that a stage trains; None of a reward model, which has no words."""
    if isinstance(program, CausalProgram):
        model = program.model
        return Reader(lambda row: hidden_states(model, row), output_layer(model))
    if isinstance(program, PpoProgram):
        module = program.module

        def read(row: PackedRow) -> torch.Tensor:
            with module.router.open(Part(POLICY)):
                return hidden_states(module.model, row)

        return Reader(read, output_layer(module.model))
    return None


def planted(document: TrainingPipeline, stage: Stage) -> list[tuple[Source, Stage]]:
    """Sources whose canaries the model of ``stage`` has seen, and the last stage that read each.

    The stage itself comes first, then those that it starts from, as far as they are in the document.
    """
    found: dict[str, tuple[Source, Stage]] = {}
    at: Stage | None = stage
    while at is not None:
        settings = document.spec.stages.get(at)
        if settings is None:
            break
        if isinstance(settings, PretrainSettings | SftSettings):
            for ref in settings.data:
                source = document.spec.source(ref.source)
                if source.canaries is not None:
                    found.setdefault(source.name, (source, at))
        start = getattr(settings, "from_", None)
        if start is None and at is not Stage.PRETRAIN:  # as the field's description says: pretrain, if any
            start = Stage.PRETRAIN.value
        at = next((each for each in Stage if each.value == start and each is not at), None)
    return list(found.values())


def measure(
    reader: Reader,
    document: TrainingPipeline,
    stage: Stage,
    encoder: RecordEncoder,
    *,
    rank: int,
    world_size: int,
    device: torch.device,
    budget: int,
) -> tuple[dict[str, Any], list[str]]:
    """Measures every canary that the model has seen; all ranks take part and get the same.

    Args:
        reader: the model, in evaluation mode.
        document: of the pipeline.
        stage: whose model it is.
        encoder: of the model's tokenizer; is configured as the stage was that read the source.
        rank: of this process.
        world_size: number of processes.
        device: of the model.
        budget: most tokens of a forward pass.

    Returns:
        What the manifest says, names and numbers of nobody in it, and warnings, a sentence each. Both empty
        where nothing was planted.
    """
    told: list[dict[str, Any]] = []
    warnings: list[str] = []
    for source, at in planted(document, stage):
        settings = document.spec.stages[at]
        assert source.canaries is not None
        assert isinstance(settings, PretrainSettings | SftSettings)
        encoder.configure(at, settings.max_length, document.spec.stages.system_prompt(at))
        canaries = invent(source.canaries)
        values = np.zeros((len(canaries), 4))
        with torch.no_grad():
            for index in range(rank, len(canaries), world_size):
                memory = remembered(reader, source, canaries[index], encoder, device=device, budget=budget)
                beat()
                if memory is not None:
                    values[index] = (1, memory.by_rank, memory.exposure, memory.extracted)
        summed = np.array(sum_over_ranks(values.flatten().tolist(), device)).reshape(values.shape)
        groups = list(_groups(canaries, summed))
        told.append({"source": source.name, "plantedIn": at.value, "groups": groups})
        for group in groups:
            warning = doubt(source.name, group, source.canaries.warn_above)
            if warning is not None:
                warnings.append(warning)
    if not told:
        return {}, []
    bounds = {"candidates": CANDIDATES, "mostByRank": math.log2(CANDIDATES + 1), "most": SPACE_BITS}
    return {"exposure": {**bounds, "sources": told}}, warnings


def remembered(
    reader: Reader,
    source: Source,
    canary: Canary,
    encoder: RecordEncoder,
    *,
    device: torch.device,
    budget: int,
) -> Memory | None:
    """Measures one canary; None where it is longer than the stage's longest sequence."""
    secrets = [canary.secret, *candidates(canary, CANDIDATES)]
    encoded = encoder.encode([canary.record(source, secret) for secret in secrets])
    segments: list[Segment] = []
    for one in encoded:
        if not isinstance(one, Encoded):
            return None
        segments.append(one.segments[0] if one.document is None else Segment.of_document(one.document))
    asked = _secrets_alone(segments)
    costs: list[float] = []
    greedy: list[bool] = []
    for batch in _batches(asked, budget):
        for cost, same in zip(*_scored(reader, batch.to(device)), strict=True):
            costs.append(cost)
            greedy.append(same)
    rank = 1 + sum(cost <= costs[0] for cost in costs[1:])
    by_rank = math.log2(len(costs) / rank)
    return Memory(by_rank, exposure_by_distribution(costs[0], costs[1:]), greedy[0])


def exposure_by_distribution(cost: float, others: Sequence[float]) -> float:
    """Exposure (bits) of a secret of log-perplexity ``cost`` by those of ``others``, see the module."""
    values = np.asarray(others, dtype=np.float64)
    mean, spread = float(values.mean()), float(values.std())
    if spread < 1e-9:
        return SPACE_BITS if cost < mean - 1e-6 else 0.0
    skew = min(0.0, max(-0.99, float((((values - mean) / spread) ** 3).mean())))
    power = abs(skew) ** (2 / 3)
    delta = -math.sqrt(math.pi / 2 * power / (power + ((4 - math.pi) / 2) ** (2 / 3)))
    scale = spread / math.sqrt(1 - 2 * delta**2 / math.pi)
    place = (cost - mean) / scale + delta * math.sqrt(2 / math.pi)
    return min(SPACE_BITS, max(0.0, -_log2_below(place, delta / math.sqrt(1 - delta**2))))


def chance_of(total_bits: float, canaries: int) -> float:
    """Chance, at most, of so large a sum of exposures by sampling where nothing was learnt: Gamma's tail."""
    nats = total_bits * math.log(2)
    term = upto = math.exp(-nats)
    for count in range(1, canaries):
        term *= nats / count
        upto += term
    return min(1.0, upto)


def doubt(source: str, group: dict[str, Any], warn_above: float) -> str | None:
    """What is doubtful about one group of canaries."""
    high = group["exposure"] > warn_above and group["chance"] < CHANCE
    if not high and not group["extracted"]:
        return None
    times = "once" if group["repeats"] == 1 else f"{group['repeats']} times"
    return (
        f"the model remembers invented patients planted {times} in source {source}: mean exposure "
        f"{group['exposure']:.1f} bits (warnAbove {warn_above:g}), {group['extracted']} of "
        f"{group['canaries']} given out word for word; train for fewer epochs, or remove repeated records"
    )


def _groups(canaries: Sequence[Canary], values: npt.NDArray[np.float64]) -> Iterator[dict[str, Any]]:
    for repeats in dict.fromkeys(canary.repeats for canary in canaries):
        chosen = [index for index, canary in enumerate(canaries) if canary.repeats == repeats]
        measured = values[chosen][values[chosen][:, 0] > 0]
        if not len(measured):
            continue
        yield {
            "repeats": repeats,
            "canaries": len(measured),
            "byRank": float(measured[:, 1].mean()),
            "exposure": float(measured[:, 2].mean()),
            "chance": chance_of(float(measured[:, 1].sum()), len(measured)),
            "extracted": int(measured[:, 3].sum()),
        }


def _secrets_alone(segments: Sequence[Segment]) -> list[Segment]:
    """The segments with targets only from where they differ until they are alike again.

    What tokens a secret begins and ends with depends on the tokenizer: so it is seen, not computed.
    """
    shortest = min(len(segment.ids) for segment in segments)
    rows = np.stack([segment.ids[:shortest] for segment in segments])
    differs = np.flatnonzero((rows != rows[0]).any(axis=0))
    first = int(differs[0]) if len(differs) else shortest
    ends = np.stack([segment.ids[len(segment.ids) - shortest :][::-1] for segment in segments])
    unlike = np.flatnonzero((ends != ends[0]).any(axis=0))
    last = int(unlike[0]) if len(unlike) else 0
    alone: list[Segment] = []
    for segment in segments:
        target = np.zeros_like(segment.target)
        end = max(first + 1, len(segment.ids) - last)
        target[first:end] = segment.target[first:end]
        alone.append(Segment(segment.ids, target))
    return alone


def _batches(segments: Sequence[Segment], budget: int) -> Iterator[MicroBatch]:
    batch: list[Sample] = []
    for index, segment in enumerate(segments):
        if batch and sum(one.tokens for one in batch) + len(segment.ids) > budget:
            yield collate(batch)
            batch = []
        batch.append(Sample(index, (segment,)))
    yield collate(batch)


def _scored(reader: Reader, batch: MicroBatch) -> tuple[list[float], list[bool]]:
    """By segment: -log2 of the probability of its targets, and whether each of them is the likeliest."""
    hidden = reader.read(batch.row)[0]
    places = torch.nonzero(batch.targets[0]).flatten()
    labels = batch.row.input_ids[0].index_select(0, places)
    owners = torch.searchsorted(batch.row.edges.long(), places, right=True) - 1
    count = len(batch.row.lengths)
    costs = torch.zeros(count, dtype=torch.float64, device=hidden.device)
    misses = torch.zeros(count, dtype=torch.float64, device=hidden.device)
    for start in range(0, len(places), _CHUNK_TOKENS):
        part = slice(start, start + _CHUNK_TOKENS)
        logits = reader.head(hidden.index_select(0, places[part] - 1)).float()
        taken = torch.log_softmax(logits, dim=-1).gather(1, labels[part, None]).squeeze(1)
        costs.index_add_(0, owners[part], -taken.double() / math.log(2))
        misses.index_add_(0, owners[part], (logits.argmax(-1) != labels[part]).double())
    return costs.tolist(), [miss == 0 for miss in misses.tolist()]


def _log2_below(place: float, slant: float) -> float:
    """log2 of the standard skew-normal distribution function; -inf beyond what a float holds."""
    if place > 8:
        return 0.0
    steps = np.linspace(place - 10.0, place, 4001)
    density = np.exp(-(steps**2) / 2) / math.sqrt(2 * math.pi)
    leaning = np.array([math.erfc(-slant * step / math.sqrt(2)) for step in steps])
    below = float(np.trapezoid(density * leaning, steps))
    return math.log2(below) if below > 0 else -math.inf
