"""Waits for a strike's moment, strikes, gives the command again if it ended, and watches the run go on."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.faults.litter import Litter
from tests.faults.observe import STAGES, Observer, Result, View
from tests.faults.place import Place, wait_for
from tests.faults.plan import Phase, Strike
from tests.faults.victims import Victim, find, strike
from zhongjing.config.stages import Stage
from zhongjing.errors import ZhongjingError
from zhongjing.pipeline.state import ConditionType, seconds
from zhongjing.storage.progress import Activity

LOOK_SECONDS = 0.1
MOMENT_SECONDS = 600.0  # until the moment of a strike comes
GOING_ON_SECONDS = 420.0  # from a strike until the stage goes on
SUBMIT_SECONDS = 240.0  # until a command that was interrupted, or whose run is complete, ends
UNDISTURBED_SECONDS = 1200.0
# A moment that is short may be missed; the stage is then hit this much of its steps later, whatever it does.
_LATE = 0.1
_EXPECTED_EXIT = {Victim.INTERRUPT: 130, Victim.INTERRUPT_TWICE: 130}


@dataclass
class Blow:
    """What became of a strike."""

    strike: Strike
    victim: str = ""
    activity: str = ""
    attempt_before: int = 0
    attempt_after: int = 0
    step: int = 0  # that progress told when it fell
    checkpoint: int = 0  # complete in the store when it fell
    resumed: int | None = None  # step from which the next attempt went on
    seconds: float | None = None  # from the strike until the stage went on
    problems: list[str] = field(default_factory=list)
    given_up: list[int] = field(default_factory=list)  # exit codes of submits that ended by themselves


class LostError(Exception):
    """The run does not get anywhere; its message says where it stands."""


def undisturbed_results(place: Place, pipeline: str) -> dict[Stage, Result]:
    """What the pipeline leaves when nothing is killed; a place that has it already is only read.

    Raises:
        LostError: it did not complete.
    """
    place.submit()
    if not wait_for(lambda: place.process.poll() is not None, UNDISTURBED_SECONDS, interval=0.5):
        raise LostError(f"the undisturbed run took longer than {UNDISTURBED_SECONDS:.0f} s")
    if place.process.returncode != 0:
        raise LostError(f"the undisturbed run failed: see {place.output}")
    watch = Observer(place, pipeline)
    return {stage: watch.result(stage) for stage in STAGES}


class Harness:
    """One disturbed run.

    Args:
        place: where it runs.
        pipeline: name in the document.
        tell: is called with a line now and then.
    """

    def __init__(self, place: Place, pipeline: str, tell: Callable[[str], None] = lambda line: None) -> None:
        self.place = place
        self.watch = Observer(place, pipeline)
        self.litter = Litter(place)
        self.tell = tell
        self._sealed: dict[Stage, tuple[int, str]] = {}
        self._ended_early = 0

    def run(self, strikes: list[Strike], done: Callable[[Blow], None] = lambda blow: None) -> list[Blow]:
        """Submits, strikes as planned, and waits until the pipeline is complete.

        Args:
            strikes: in the order in which they fall.
            done: is called after each.

        Raises:
            LostError: a moment never came, or the run did not go on or did not complete.
        """
        self.place.submit()
        blows = []
        for planned in strikes:
            blow = self.hit(planned)
            blows.append(blow)
            done(blow)
        self._complete()
        return blows

    def hit(self, planned: Strike) -> Blow:
        """One strike, from waiting for its moment until the stage goes on.

        Raises:
            LostError: the moment never came, or the run did not go on.
        """
        blow = Blow(planned)
        choice = random.Random(planned.seed)
        deadline = time.monotonic() + MOMENT_SECONDS
        while True:
            view = self._await_moment(planned, blow, deadline)
            try:
                blow.victim, process = find(self.place, planned.victim, planned.stage, choice)
                break
            except LookupError:
                time.sleep(LOOK_SECONDS)  # between two processes of a kind
        self._seal_done(planned.stage)
        self.litter.sample()
        blow.attempt_before = view.entry.attempt
        if view.progress is not None:
            blow.activity, blow.step = view.progress.activity.value, view.progress.step
        blow.checkpoint = max(self._checkpoints(planned.stage, view), default=0)
        struck = time.time()
        strike(planned.victim, process, self.place)
        self._tend(planned.victim, blow)
        self._await_going_on(planned, blow, struck)
        self._check(planned, blow)
        return blow

    # Before

    def _await_moment(self, planned: Strike, blow: Blow, deadline: float) -> View:
        while time.monotonic() < deadline:
            self._keep_submitted(blow)
            view = self.watch.view(planned.stage)
            if view is not None:
                if view.entry.state.is_done:
                    raise LostError(f"{planned.moment}: the stage was done before its moment came")
                if self._has_come(planned, view):
                    return view
            time.sleep(LOOK_SECONDS)
        raise LostError(
            f"{planned.moment}: did not come in {MOMENT_SECONDS:.0f} s; {self._where(planned.stage)}"
        )

    def _has_come(self, planned: Strike, view: View) -> bool:
        progress = view.progress
        if progress is None or not view.entry.state.is_active:
            return False
        activity, total = progress.activity, progress.total_steps
        if planned.phase is Phase.PREPARING:
            return activity is Activity.PREPARING
        if planned.phase is Phase.STARTING:
            return activity is Activity.STARTING
        if not view.is_training or activity in (Activity.DONE, Activity.SUSPENDED, Activity.FAILED):
            return False
        if planned.phase is Phase.FINISHING:
            return progress.step >= total
        if progress.step < planned.fraction * total:
            return False
        if planned.phase is Phase.TRAINING or progress.step >= (planned.fraction + _LATE) * total:
            return True
        if planned.phase is Phase.EVALUATING:
            return activity is Activity.EVALUATING
        return activity is Activity.SAVING or self._is_uploading(planned.stage)

    def _is_uploading(self, stage: Stage) -> bool:
        scratch = self.place.workdir.path / "scratch"
        return any(scratch.glob(f"*-{stage}-*-checkpoints/step-*/job.json"))

    # After

    def _tend(self, victim: Victim, blow: Blow) -> None:
        """What the user does: lets an interrupted command end, and gives the same one again."""
        process = self.place.process
        if victim is Victim.INTERRUPT_TWICE:
            if not wait_for(lambda: self.place.said("interrupted: "), 60):
                blow.problems.append("the first Ctrl-C was not answered within 60 s")
            process.send_signal(signal.SIGINT)
        if not victim.ends_submit:
            return
        if not wait_for(lambda: process.poll() is not None, SUBMIT_SECONDS):
            blow.problems.append(f"submit had not ended {SUBMIT_SECONDS:.0f} s after {victim}")
            process.kill()
            process.wait()
        expected = _EXPECTED_EXIT.get(victim, -signal.SIGKILL)
        if process.returncode != expected:
            blow.problems.append(f"submit ended with {process.returncode}, not {expected}")
        self.place.submit()

    def _await_going_on(self, planned: Strike, blow: Blow, struck: float) -> None:
        deadline = time.monotonic() + GOING_ON_SECONDS
        while time.monotonic() < deadline:
            self._keep_submitted(blow)
            view = self.watch.view(planned.stage)
            if view is not None and self._goes_on(planned, blow, view, struck):
                blow.attempt_after = view.entry.attempt
                blow.seconds = time.time() - struck
                if view.progress is not None and view.is_training:
                    blow.resumed = view.progress.checkpoint_step or 0
                return
            time.sleep(LOOK_SECONDS)
        raise LostError(
            f"{planned.moment}, {blow.victim}: did not go on within {GOING_ON_SECONDS:.0f} s; "
            f"{self._where(planned.stage)}"
        )

    def _goes_on(self, planned: Strike, blow: Blow, view: View, struck: float) -> bool:
        record = self.place.workdir.live_record()
        if record is None or not record.ready:
            return False  # what trains may not have noticed that nobody looks after it
        if view.entry.state.is_done:
            return True
        if not planned.victim.spares_the_attempt and view.entry.attempt <= blow.attempt_before:
            return False
        progress = view.progress
        if progress is None or seconds(progress.updated_at) <= struck:
            return False
        if progress.activity in (Activity.FAILED, Activity.SUSPENDED):
            return False
        # As far as it was, or where every attempt passes: in the loop.
        return view.is_training or (
            planned.phase in (Phase.PREPARING, Phase.STARTING) and progress.activity is not Activity.STARTING
        )

    def _check(self, planned: Strike, blow: Blow) -> None:
        self._seal_done(planned.stage)
        if blow.attempt_after == blow.attempt_before:
            return
        if planned.victim.spares_the_attempt:
            blow.problems.append(
                f"attempt {blow.attempt_before} was lost; {planned.victim} should not end it"
            )
        if blow.resumed is not None and blow.resumed < blow.checkpoint:
            blow.problems.append(
                f"resumed at step {blow.resumed}, but the checkpoint of step {blow.checkpoint} was complete"
            )

    def _keep_submitted(self, blow: Blow) -> None:
        """Gives the command again if it ended by itself, which it should not while there is work."""
        code = self.place.process.poll()
        if code is None:
            return
        if code == 0:
            raise LostError("submit ended with 0 before the last strike")
        self._ended_early += 1
        blow.given_up.append(code)
        if self._ended_early > 10:
            raise LostError(f"submit ended {self._ended_early} times by itself; the last time with {code}")
        self.place.submit()

    # At the end

    def _complete(self) -> None:
        deadline = time.monotonic() + MOMENT_SECONDS
        while self.place.process.poll() is None:
            if time.monotonic() > deadline:
                raise LostError(f"not complete {MOMENT_SECONDS:.0f} s after the last strike")
            self.litter.sample()
            time.sleep(1.0)
        status = self.watch.status()
        if self.place.process.returncode != 0 or status is None or not status.holds(ConditionType.COMPLETE):
            raise LostError(f"submit ended with {self.place.process.returncode}: see {self.place.output}")
        self._seal_done(None)

    def _seal_done(self, until: Stage | None) -> None:
        """Stages before ``until`` are done and stay as they are: neither run again nor written again."""
        status = self.watch.status()
        if status is None:
            return
        for stage in STAGES:
            if stage is until:
                break
            entry = status.stage(stage)
            if entry.key is None or not entry.state.is_done:
                raise LostError(f"{stage} is {entry.state} though a later stage is under way")
            try:
                seal = self.watch.seal(stage, entry)
            except ZhongjingError:
                return
            if self._sealed.setdefault(stage, seal) != seal:
                raise LostError(f"{stage} was done, and has another attempt or manifest now")

    # Small things

    def _checkpoints(self, stage: Stage, view: View) -> list[int]:
        try:
            return self.watch.checkpoints(stage, view.entry)
        except ZhongjingError:
            return []

    def _where(self, stage: Stage) -> str:
        view = self.watch.view(stage)
        if view is None:
            return "the store does not answer"
        entry, progress = view.entry, view.progress
        told = f"{progress.activity} {progress.step}/{progress.total_steps}" if progress else "no progress"
        return (
            f"{stage} is {entry.state} in attempt {entry.attempt} ({entry.reason}: {entry.message}), {told}"
        )
