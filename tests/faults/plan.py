"""What will be hit, and when: drawn from a seed, spread over the stages and the victims."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from tests.faults.observe import STAGES
from tests.faults.victims import Victim
from zhongjing.config.stages import Stage


class Phase(StrEnum):
    """What a stage is doing when it is hit, in the order of a first attempt."""

    PREPARING = "preparing"
    STARTING = "starting"  # workers load their libraries and the model
    TRAINING = "training"
    EVALUATING = "evaluating"
    SAVING = "saving"  # a checkpoint is on its way to the store
    FINISHING = "finishing"  # all steps are made, the result is not there yet


# Where each victim lives, and how likely each phase is drawn.
_EVERYWHERE = (*Phase,)
_WITH_WORKERS = (Phase.STARTING, Phase.TRAINING, Phase.EVALUATING, Phase.SAVING, Phase.FINISHING)
# Ctrl-C while a stage finishes stops nothing: the result comes before the stop.
_STOPPABLE = (Phase.PREPARING, Phase.STARTING, Phase.TRAINING, Phase.EVALUATING, Phase.SAVING)
_PHASES: dict[Victim, tuple[Phase, ...]] = {
    Victim.SUBMIT: _EVERYWHERE,
    Victim.SUPERVISOR: _EVERYWHERE,
    Victim.HEAD: _EVERYWHERE,
    Victim.WORKER: _WITH_WORKERS,
    Victim.DRIVER: _EVERYWHERE,
    Victim.S3: _EVERYWHERE,
    Victim.UPLOADER: (Phase.SAVING,),
    Victim.FREEZE: (Phase.TRAINING, Phase.EVALUATING),
    Victim.INTERRUPT: _STOPPABLE,
    Victim.INTERRUPT_TWICE: _STOPPABLE,
    Victim.POWER: _EVERYWHERE,
}
_WEIGHTS = {
    Phase.PREPARING: 1,
    Phase.STARTING: 1,
    Phase.TRAINING: 5,
    Phase.EVALUATING: 2,
    Phase.SAVING: 2,
    Phase.FINISHING: 1,
}
# At most one a stage: what was prepared is there at once in the next attempt.
_ONCE = (Phase.PREPARING, Phase.STARTING, Phase.FINISHING)
_IN_THE_LOOP = (Phase.TRAINING, Phase.EVALUATING, Phase.SAVING)


@dataclass(frozen=True)
class Strike:
    """One planned strike.

    Attributes:
        number: from 1, in the order in which they fall.
        stage: whose attempt is under way.
        phase: what it is doing.
        fraction: of the stage's steps that must have been made, in training, evaluating and saving.
        victim: what is hit.
        seed: of what is chosen among several (which worker, which part of the head).
    """

    number: int
    stage: Stage
    phase: Phase
    fraction: float
    victim: Victim
    seed: int

    @property
    def moment(self) -> str:
        """The moment in words."""
        where = f" {self.fraction:.0%}" if self.phase in _IN_THE_LOOP else ""
        return f"{self.stage} {self.phase}{where}"


def draw(seed: int, kills: int, uploaders: Sequence[Stage]) -> list[Strike]:
    """The strikes of a seed.

    The victims come from a shuffled deck, so that each comes before any comes twice; the stages take turns.

    Args:
        seed: of everything.
        kills: how many strikes.
        uploaders: stages whose checkpoints are large enough for a process that uploads them.
    """
    choice = random.Random(seed)
    turns = [STAGES[number % len(STAGES)] for number in range(kills)]
    choice.shuffle(turns)
    deck: list[Victim] = []
    drawn: list[tuple[Stage, Phase, float, Victim, int]] = []
    for stage in turns:
        before = [(each[1], each[3]) for each in drawn if each[0] is stage]
        victim, phase = _next(deck, choice, before, stage in uploaders)
        fraction = round(choice.uniform(0.05, 0.9), 3) if phase in _IN_THE_LOOP else 0.0
        drawn.append((stage, phase, fraction, victim, choice.randrange(2**31)))
    drawn.sort(key=lambda each: (STAGES.index(each[0]), _rank(each[1]), each[2]))
    return [Strike(number, *each) for number, each in enumerate(drawn, start=1)]


def _next(
    deck: list[Victim], choice: random.Random, before: Sequence[tuple[Phase, Victim]], can_upload: bool
) -> tuple[Victim, Phase]:
    """Takes the first victim of the deck that can be hit in this stage and was not yet, and its phase."""
    taken = {phase for phase, _ in before}
    hit = {victim for _, victim in before}
    while True:
        for victim in deck:
            if victim in hit or (victim is Victim.UPLOADER and not can_upload):
                continue
            phases = [phase for phase in _PHASES[victim] if not (phase in _ONCE and phase in taken)]
            if phases:
                deck.remove(victim)
                return victim, choice.choices(phases, [_WEIGHTS[phase] for phase in phases])[0]
        if len(deck) > 2 * len(Victim):
            hit.clear()  # more strikes a stage than there are victims
        fresh = list(Victim)
        choice.shuffle(fresh)
        deck += fresh


def _rank(phase: Phase) -> int:
    """Phases of the loop come as they come; the others before or after it."""
    order = list(Phase)
    return order.index(Phase.TRAINING) if phase in _IN_THE_LOOP else order.index(phase)
