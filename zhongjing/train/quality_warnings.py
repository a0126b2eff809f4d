"""How sure a share is, and what is doubtful about a reward model or a critic. Plain numbers, no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from zhongjing.config.stages import PpoSettings

_Z = 1.959964  # of 95 %, two-sided
CRITIC_ROLLOUTS = 5  # the latest; fewer, but not fewer than 3, where rollouts have many updates
# The critic starts from the reward model, which was trained to be read at the last token alone: its first
# values are far off. The explained variance of the demo's 36 updates is below 0 in every rollout and still
# rising at the last. Below so many updates it tells of the start, not of a critic that does not learn.
CRITIC_UPDATES = 100


def wilson(share: float, n: float) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson (1927): inside [0, 1], and of use for few trials.

    Args:
        share: part of the trials that succeeded, 0 to 1.
        n: trials, above 0; need not be whole (an effective number).
    """
    z2 = _Z * _Z / n
    middle = (share + z2 / 2) / (1 + z2)
    half = _Z / (1 + z2) * math.sqrt(share * (1 - share) / n + z2 / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of independent values, by the normal approximation.

    Args:
        values: two or more.
    """
    n = len(values)
    mean = math.fsum(values) / n
    half = _Z * math.sqrt(math.fsum((each - mean) ** 2 for each in values) / (n - 1) / n)
    return mean - half, mean + half


def effective_trials(
    right: float, pairs: float, squares: tuple[float, float, float], prompts: float
) -> float:
    """How many independent pairs a ranking model's pairs are worth; at most ``pairs``.

    The C(K, 2) pairs of one prompt share its answers, so they err together. The variance of the share is that
    of a ratio over prompts (Cochran 1977, section 6.3), and the pairs are worth as many independent ones as
    would have it: the design effect of Kish (1965). With no variance seen the prompts are counted.

    Args:
        right: pairs in the right order, over all prompts.
        pairs: pairs over all prompts, above 0.
        squares: sums over prompts of right^2, right x pairs, pairs^2.
        prompts: prompts that have a pair.
    """
    share = right / pairs
    variance = (squares[0] - 2 * share * squares[1] + share * share * squares[2]) / (pairs * pairs)
    if variance <= 1e-12 or prompts < 2:
        return max(1.0, min(prompts, pairs))
    return max(1.0, min(pairs, share * (1 - share) / (variance * prompts / (prompts - 1))))


def reward_warnings(metrics: Mapping[str, float]) -> list[str]:
    """What the held-out metrics of a reward model leave in doubt; see :mod:`zhongjing.train.stages.rm`."""
    if "pairs" not in metrics:
        return []  # measured by an earlier release, or nothing was held out
    accuracy, low, high = metrics["accuracy"], metrics["accuracy_low"], metrics["accuracy_high"]
    measured = (
        f"accuracy {accuracy:.3f} on {metrics['pairs']:.0f} held-out pairs (95 %: {low:.2f} to {high:.2f})"
    )
    found = []
    if not low > 0.5:
        found.append(
            f"the reward model is not shown to be above chance: {measured}; give the rm stage more ranked "
            "prompts, or more epochs"
        )
    longer = metrics["longer_accuracy"]
    if not accuracy > longer:
        found.append(
            f"the reward model is not above 'the longer answer wins' ({longer:.3f}): {measured}; PPO would "
            "learn length: rank answers of like length"
        )
    return found


def critic_warnings(explained: Sequence[float], settings: PpoSettings, updates: int) -> list[str]:
    """What the explained variance of the latest rollouts says of the critic.

    Args:
        explained: of the rollouts so far, or the latest of them.
        settings: of the stage.
        updates: optimizer steps that the run gives the critic; too few of them tell nothing.
    """
    latest = explained[-CRITIC_ROLLOUTS:]
    if updates < CRITIC_UPDATES or len(latest) < 3 or not max(latest) < 0:
        return []
    fields = (
        "criticWarmupSteps"
        if settings.critic_warmup_steps == 0
        else "criticWarmupSteps or criticLearningRate"
    )
    values = ", ".join(f"{each:.2g}" for each in latest)
    return [
        f"the critic's explained variance stays negative ({values} in the last {len(latest)} rollouts): it "
        f"knows the returns worse than their mean does; raise spec.stages.ppo.{fields}"
    ]
