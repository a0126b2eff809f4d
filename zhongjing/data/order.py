"""The order of samples: a pure function of (seed, epoch, index), the same for every number of workers.

Nothing is stored: a run resumes by asking for the indices after the samples it has consumed. The
permutations are made from a hash written out here, not from a library's generator, so that an upgrade of
that library never changes the order of a running training.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from zhongjing.codes import data as data_codes
from zhongjing.codes import document as document_codes
from zhongjing.config.stages import AnySettings, SftSettings
from zhongjing.errors import ConfigError, DataError
from zhongjing.storage.manifest import MixtureCounts

IntArray = npt.NDArray[np.int64]

_DEFAULT_MAX_REPEATS = 4.0  # the default of spec.stages.sft.mixture.maxRepeats, for weights given by source


def mixture_of(settings: AnySettings) -> tuple[dict[str, float] | None, float]:
    """The weights of a stage's mixture groups, and how often a group may be repeated in an epoch.

    Groups are categories where ``mixture`` is set, else sources (:func:`groups_by_category`). Without
    weights every group keeps its natural size.

    Raises:
        ConfigError: both ``mixture`` and weights of sources are set.
    """
    by_source = {ref.source: ref.weight for ref in settings.data if ref.weight is not None}
    if not groups_by_category(settings):
        return (by_source or None), _DEFAULT_MAX_REPEATS
    assert isinstance(settings, SftSettings)
    assert settings.mixture is not None
    if by_source:
        raise ConfigError(
            "both mixture and weights of sources are set",
            code=document_codes.INVALID_VALUE,
            where="stages.sft",
            remedy="keep one: mixture weighs the kinds of data, data[].weight weighs the sources",
        )
    shares = settings.mixture.model_dump(by_alias=True, exclude={"max_repeats"})
    weights = {name: float(share) for name, share in shares.items() if share is not None}
    return (weights or None), settings.mixture.max_repeats


def groups_by_category(settings: AnySettings) -> bool:
    """Whether the stage's mixture groups are categories of SFT data, not sources."""
    return isinstance(settings, SftSettings) and settings.mixture is not None


def mixture_counts(
    groups: npt.NDArray[np.integer] | Sequence[int], group_names: Sequence[str], settings: AnySettings
) -> list[MixtureCounts]:
    """What each group of a stage's mixture has, and gives to an epoch; empty without weights.

    ``groups``: of each training sample, int [samples]; ``group_names`` is what it indexes.

    Raises:
        DataError: as of :class:`SampleOrder`.
    """
    weights, repeats = mixture_of(settings)
    if not weights:
        return []
    drawn = SampleOrder(groups, group_names, 0, weights, repeats).contributions
    there = np.bincount(np.asarray(groups, dtype=np.int64), minlength=len(group_names)).tolist()
    samples = dict(zip(group_names, there, strict=True))
    return [MixtureCounts(name=name, samples=samples[name], drawn=count) for name, count in drawn.items()]


def mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014), element by element; wraps around."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def permutation(length: int, *keys: int) -> IntArray:
    """A permutation of ``range(length)``, int64, that depends on ``keys`` (modulo 2**64) alone."""
    state = np.zeros(1, dtype=np.uint64)
    for key in keys:
        state = mix(state ^ np.uint64(key & 0xFFFFFFFFFFFFFFFF))
    ranks = mix(mix(np.arange(length, dtype=np.uint64)) ^ state)
    return np.argsort(ranks, kind="stable").astype(np.int64)


class SampleOrder:
    """The infinite global order of a training split.

    With weights the scale is ``s = min(max_i n_i / w_i, min_i max_repeats * n_i / w_i)`` and group ``i``
    gives ``round(s * w_i)`` samples to every epoch: no group is cut unless another would be repeated more
    than ``max_repeats`` times. They are taken one after the other from an endless stream of permutations of
    the group, so an epoch that takes half of a group is followed by one that takes the other half. Groups
    without a weight give each of their samples once.

    Args:
        groups: group of each sample, int [samples].
        group_names: names that ``groups`` indexes.
        seed: seed of the order.
        weights: shares by group name; None gives every sample once an epoch.
        max_repeats: bound on how often a weighted group is repeated in an epoch.

    Raises:
        DataError: there are no samples, or a weight names a group that has none.
    """

    def __init__(
        self,
        groups: npt.NDArray[np.integer] | Sequence[int],
        group_names: Sequence[str],
        seed: int,
        weights: Mapping[str, float] | None = None,
        max_repeats: float = _DEFAULT_MAX_REPEATS,
    ) -> None:
        membership = np.asarray(groups, dtype=np.int64)
        if membership.size == 0:
            raise DataError("there are no training samples to put in order", code=data_codes.NO_GOOD_RECORD)
        self._seed = seed
        if weights:
            members = [np.flatnonzero(membership == index) for index in range(len(group_names))]
        else:
            # One group: a plain permutation of everything.
            members = [np.arange(membership.size, dtype=np.int64)]
            group_names = ["all"]
        self._members = [part for part in members if part.size]
        names = [name for name, part in zip(group_names, members, strict=True) if part.size]
        self._counts = _contributions(names, [part.size for part in self._members], weights, max_repeats)
        self._names = names
        self._epochs: OrderedDict[int, IntArray] = OrderedDict()

    @property
    def epoch_size(self) -> int:
        """Samples in an epoch."""
        return sum(self._counts)

    @property
    def contributions(self) -> dict[str, int]:
        """Samples that each group gives to an epoch."""
        return dict(zip(self._names, self._counts, strict=True))

    def epoch_of(self, consumed: int) -> float:
        """Passes made after ``consumed`` samples."""
        return consumed / self.epoch_size

    def indices(self, start: int, count: int) -> IntArray:
        """Samples ``start`` (consumed so far) to ``start + count`` of the infinite order, int64 [count]."""
        if start < 0 or count < 0:
            raise ValueError(f"start {start} and count {count} must not be negative")
        parts: list[IntArray] = []
        position, end = start, start + count
        while position < end:
            epoch, offset = divmod(position, self.epoch_size)
            take = min(end - position, self.epoch_size - offset)
            parts.append(self._epoch(epoch)[offset : offset + take])
            position += take
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _epoch(self, epoch: int) -> IntArray:
        cached = self._epochs.get(epoch)
        if cached is None:
            streams = [self._stream(group, epoch) for group in range(len(self._members))]
            everything = np.concatenate(streams)
            if len(streams) > 1:
                everything = everything[permutation(everything.size, self._seed, 1, epoch)]
            cached = self._epochs[epoch] = everything
            while len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return cached

    def _stream(self, group: int, epoch: int) -> IntArray:
        """What ``group`` gives to ``epoch``: the next samples of its endless stream of permutations."""
        members, count = self._members[group], self._counts[group]
        first = epoch * count
        positions = np.arange(first, first + count, dtype=np.int64)
        passes = positions // members.size
        taken = np.empty(count, dtype=np.int64)
        for number in range(int(passes[0]), int(passes[-1]) + 1):
            chosen = passes == number
            shuffled = members[permutation(members.size, self._seed, 0, group, number)]
            taken[chosen] = shuffled[positions[chosen] % members.size]
        return taken


def _contributions(
    names: Sequence[str], sizes: Sequence[int], weights: Mapping[str, float] | None, max_repeats: float
) -> list[int]:
    """Samples that each group gives to an epoch; at least one, or a small weight would be no weight."""
    if not weights:
        return list(sizes)
    for name, weight in weights.items():
        if name not in names:
            raise DataError(
                f"the mixture gives {name} a share, but no training sample is of it",
                code=data_codes.INVALID_MIXTURE,
                remedy="take the share away, or add a source of it",
            )
        if not weight > 0:
            raise DataError(
                f"the mixture gives {name} a share of {weight}; shares are above 0",
                code=data_codes.INVALID_MIXTURE,
            )
    ratios = [size / weights[name] for name, size in zip(names, sizes, strict=True) if name in weights]
    scale = min(max(ratios), max_repeats * min(ratios))
    return [
        max(1, round(scale * weights[name])) if name in weights else size
        for name, size in zip(names, sizes, strict=True)
    ]
