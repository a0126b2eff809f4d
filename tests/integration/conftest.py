"""What integration tests share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.command_line import kept_environment
from tests.faults.harness import undisturbed_results
from tests.faults.observe import Result
from tests.faults.place import Place
from tests.local_support import JOBS
from zhongjing.backends.local import attach
from zhongjing.config.stages import Stage
from zhongjing.storage.layout import Layout, StageLayout


@pytest.fixture(scope="session", autouse=True)
def ended_supervisors() -> Iterator[None]:
    """Supervisors that this process started are children of it, and are ended before it."""
    yield
    for supervisor in attach._STARTED:
        if supervisor.poll() is None:
            supervisor.terminate()
            supervisor.wait(60)


@dataclass(frozen=True)
class Finished:
    """A run of all four stages that nothing happened to."""

    place: Place
    answer: Mapping[str, Any]  # the JSON object that submit printed
    results: Mapping[Stage, Result]


@pytest.fixture
def fake_jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Supervisors that the test starts find the stand-ins for the stages' jobs."""
    with kept_environment():
        monkeypatch.setenv("PYTHONPATH", JOBS)
        yield


@pytest.fixture
def layout(bucket_uri: str) -> StageLayout:
    """Where the objects of a stage are, in the test's bucket."""
    return Layout(bucket_uri, "local", "tiny").stage(Stage.SFT, "abc123")


@contextmanager
def finished_run(place: Place, pipeline: str) -> Iterator[Finished]:
    """Takes the document of a place through its four stages; the place is gone afterwards."""
    try:
        with kept_environment():
            results = undisturbed_results(place, pipeline)
        yield Finished(place, json.loads(place.answer.read_text(encoding="utf-8")), results)
    finally:
        place.end()
        shutil.rmtree(place.folder, ignore_errors=True)
