"""Sudden death of every part, with the real stages: the same command again, and nothing is lost.

One run is struck in many ways, at fixed moments spread over the four stages, and is compared with a run of
the same document that nothing happened to. It takes minutes: ``make test-deaths`` runs it, and CI does.
``make test-faults`` does the same at seeded random moments, with two more victims: a frozen worker, which
takes a progress deadline to be found (``test_backend_faults`` has one with stand-ins for the stages), and the
uploader, which only larger checkpoints have.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.command_line import kept_environment
from tests.faults import document
from tests.faults.checks import Comparison, compare, rollout_problems
from tests.faults.harness import Blow, Harness, LostError
from tests.faults.observe import STAGES, Result
from tests.faults.place import Place, wait_for
from tests.faults.plan import Phase, Strike
from tests.faults.victims import Victim
from tests.integration.conftest import Finished, finished_run
from zhongjing.config.stages import Stage

pytestmark = [pytest.mark.integration, pytest.mark.deaths, pytest.mark.timeout(1800)]

STRIKES = [
    Strike(number, stage, phase, fraction, victim, seed=0)
    for number, (stage, phase, fraction, victim) in enumerate(
        [
            (Stage.PRETRAIN, Phase.STARTING, 0.0, Victim.DRIVER),
            (Stage.PRETRAIN, Phase.TRAINING, 0.2, Victim.S3),
            (Stage.PRETRAIN, Phase.TRAINING, 0.4, Victim.WORKER),
            (Stage.SFT, Phase.TRAINING, 0.1, Victim.SUBMIT),
            (Stage.SFT, Phase.TRAINING, 0.3, Victim.INTERRUPT),
            (Stage.RM, Phase.PREPARING, 0.0, Victim.SUPERVISOR),
            (Stage.RM, Phase.EVALUATING, 0.2, Victim.INTERRUPT_TWICE),
            (Stage.PPO, Phase.TRAINING, 0.3, Victim.HEAD),
            (Stage.PPO, Phase.FINISHING, 0.0, Victim.POWER),
        ],
        start=1,
    )
]


@dataclass
class Story:
    """What became of the disturbed run, as far as it came."""

    place: Place
    blows: dict[int, Blow] = field(default_factory=dict)
    lost: str = ""
    results: dict[Stage, Result] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    place = Place(tmp_path_factory.mktemp("struck"), document.small())
    harness = Harness(place, document.SMALL)
    told = Story(place)
    try:
        with kept_environment():
            try:
                harness.run(STRIKES, lambda blow: told.blows.__setitem__(blow.strike.number, blow))
                told.results = {stage: harness.watch.result(stage) for stage in STAGES}
            except LostError as error:
                told.lost = str(error)
            else:
                place.end()
                told.left = [*harness.litter.left_processes(10), *harness.litter.left_files()]
        yield told
    finally:
        place.destroy()
        shutil.rmtree(place.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    with finished_run(Place(tmp_path_factory.mktemp("undisturbed"), document.small()), document.SMALL) as run:
        yield run


@pytest.fixture
def comparison(story: Story, undisturbed: Finished, stage: Stage) -> Comparison:
    assert not story.lost, story.lost
    return compare(undisturbed.results, story.results)[STAGES.index(stage)]


@pytest.mark.parametrize(
    "strike", STRIKES, ids=lambda each: f"{each.victim}-{each.stage}-{each.phase}".replace(" ", "-")
)
def test_the_stage_goes_on_from_its_last_checkpoint(story: Story, strike: Strike) -> None:
    blow = story.blows.get(strike.number)
    assert blow is not None, story.lost
    assert not blow.problems
    assert not blow.given_up, "submit ended with these codes, and nobody had stopped it"
    if strike.victim.spares_the_attempt:
        assert blow.attempt_after == blow.attempt_before
    else:
        assert blow.attempt_after > blow.attempt_before


def test_everything_is_complete(story: Story) -> None:
    assert not story.lost


@pytest.mark.parametrize("stage", STAGES)
def test_the_result_is_that_of_the_undisturbed_run(comparison: Comparison) -> None:
    assert not comparison.problems
    # Not only within rounding: the same weights, to the last bit.
    assert comparison.same_weights


@pytest.mark.parametrize("stage", [Stage.PPO])
def test_ppo_loses_no_iteration_and_counts_none_twice(story: Story, comparison: Comparison) -> None:
    result = story.results[Stage.PPO]
    assert result.manifest.attempt > 2, "it was killed twice"
    assert not rollout_problems(result.points, result.manifest.steps, document.ITERATION_STEPS)


def test_nothing_is_left(story: Story) -> None:
    assert not story.lost, story.lost
    assert not story.left
    assert wait_for(lambda: not story.place.processes(), 1)
