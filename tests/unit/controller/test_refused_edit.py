"""An edit that cannot be run: what runs goes on, and is followed by the word on the edit."""

from __future__ import annotations

from tests.unit.controller.loop_support import World
from zhongjing.pipeline.backend import JobState

NOW = 1_800_000_000.0
WRONG = [{"name": "texts", "kind": "text", "uri": "s3://bucket/data/no.jsonl"}]


def test_an_edit_that_cannot_be_run_is_told_when_the_running_stage_has_ended() -> None:
    world = World()
    world.objects.apply("edited")
    for second in range(3):
        world.run(NOW + second)
    world.objects.apply("edited", sources=WRONG, suspend=True)
    for second in range(3, 9):
        world.run(NOW + second)
    assert world.objects.condition("edited")[0] == "Progressing", "what runs goes on to its end"
    world.jobs.end(JobState.STOPPED)
    for second in range(9, 60):
        world.run(NOW + second)
    assert world.objects.condition("edited")[:2] == ("Failed", "SourceNotFound")
