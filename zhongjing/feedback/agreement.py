"""How well annotators agree, and how good each is, without knowing any right order. Pure.

Agreement on orders is Kendall's tau-b, on flags Krippendorff's alpha. The ability of an annotator is the
chance that a pair of answers is ordered as the truth has it. It is estimated from how often annotators order
pairs alike (one-coin model: Dawid and Skene 1979; from agreements alone: Dalvi et al. 2013, Aggregating
crowdsourced binary ratings): for a and b that is p_a p_b + (1 - p_a)(1 - p_b) where their errors are
independent. Three annotators who meet each other are enough.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from nltk.metrics.agreement import AnnotationTask
from scipy.optimize import least_squares
from scipy.stats import bootstrap

from zhongjing.feedback.criteria import ABILITIES
from zhongjing.feedback.decision import tau_b
from zhongjing.feedback.judgments import Judgment

_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval over tasks; ``n`` is how many there are."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of one task set.

    Attributes:
        tau: mean tau-b of two orders of one task; None: no task has two.
        same: fraction of these with the very same order.
        top: fraction with the same best answers.
        alpha: Krippendorff's alpha of each ability's flags; left out where no annotator flagged it.
        ability: of each annotator, 0.5 (guesses) to 1; empty with fewer than three who met.
        judgments: of each annotator.
        by_month: mean tau-b of each annotator with others, by month (``2026-12``).
    """

    tau: Estimate | None
    same: float | None
    top: float | None
    alpha: dict[str, float]
    ability: dict[str, float]
    judgments: dict[str, int]
    by_month: dict[str, dict[str, float]]


def measure(judgments: Iterable[Judgment], *, seed: int = 0) -> Agreement:
    """Measures agreement.

    Args:
        judgments: the latest of each person on each task; the expert's and skipped ones are left out.
        seed: of the bootstrap.
    """
    given = [each for each in judgments if not each.skipped and not each.expert]
    by_task: dict[str, list[Judgment]] = defaultdict(list)
    for each in given:
        by_task[each.task].append(each)
    pairs = [
        (one, other)
        for task in sorted(by_task)
        for one, other in itertools.combinations(sorted(by_task[task], key=lambda each: each.annotator), 2)
    ]
    taus = [tau_b(one, other) for one, other in pairs]
    months: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (one, other), tau in zip(pairs, taus, strict=True):
        for each in (one, other):
            months[each.updated[:7]][each.annotator].append(tau)
    return Agreement(
        tau=_mean(taus, seed) if taus else None,
        same=fmean(one.ranks() == other.ranks() for one, other in pairs) if pairs else None,
        top=fmean(set(one.order[0]) == set(other.order[0]) for one, other in pairs) if pairs else None,
        alpha=_alphas(by_task),
        ability=abilities(pairs),
        judgments=dict(sorted(Counter(each.annotator for each in given).items())),
        by_month={
            month: {name: fmean(found) for name, found in sorted(months[month].items())}
            for month in sorted(months)
        },
    )


def _mean(values: Sequence[float], seed: int) -> Estimate:
    mean = fmean(values)
    if len(set(values)) < 2:
        return Estimate(mean, mean, mean, len(values))
    found = bootstrap(
        (np.asarray(values),),
        np.mean,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(mean, float(found.low), float(found.high), len(values))


def _alphas(by_task: Mapping[str, Sequence[Judgment]]) -> dict[str, float]:
    found: dict[str, float] = {}
    shared = {task: each for task, each in by_task.items() if len(each) > 1}
    for ability in ABILITIES:
        data = [
            (each.annotator, f"{task}:{answer}", ability.name in each.flags.get(answer, ()))
            for task, judgments in shared.items()
            for each in judgments
            for answer in each.shown
        ]
        # With one label only, chance agrees always: alpha is not defined.
        if len({label for _, _, label in data}) == 2:
            found[ability.name] = float(AnnotationTask(data=data).alpha())
    return found


def abilities(pairs: Iterable[tuple[Judgment, Judgment]]) -> dict[str, float]:
    """The ability of each annotator; empty where fewer than three met.

    Args:
        pairs: two judgments of one task each. Ties say nothing of an order and are left out.
    """
    alike: Counter[tuple[str, str]] = Counter()
    total: Counter[tuple[str, str]] = Counter()
    for one, other in pairs:
        a, b = one.ranks(), other.ranks()
        who = (one.annotator, other.annotator)
        for x, y in itertools.combinations(sorted(a), 2):
            if a[x] != a[y] and b[x] != b[y]:
                total[who] += 1
                alike[who] += (a[x] < a[y]) == (b[x] < b[y])
    names = sorted({name for who in total for name in who})
    if len(names) < 3 or len(total) < 3:
        return {}
    place = {name: number for number, name in enumerate(names)}
    rows = [(place[a], place[b], 2 * alike[a, b] / total[a, b] - 1, total[a, b] ** 0.5) for a, b in total]

    def residuals(skill: Any) -> Any:  # skill is 2p - 1, and that of an agreement the product of two
        return [(skill[a] * skill[b] - agreement) * weight for a, b, agreement, weight in rows]

    start = np.full(len(names), max(0.05, fmean(row[2] for row in rows)) ** 0.5)
    found = least_squares(residuals, np.clip(start, 0.05, 0.95), bounds=(0.0, 1.0)).x
    return {name: float((1 + found[place[name]]) / 2) for name in names}
