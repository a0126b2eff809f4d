"""What integration tests share, above all one small pipeline that is taken through its four stages once."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.faults import document
from tests.faults.harness import undisturbed_results
from tests.faults.observe import Result
from tests.faults.place import Place
from tests.local_support import JOBS
from zhongjing.config.stages import Stage
from zhongjing.storage.layout import Layout, StageLayout


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing happened to."""

    place: Place
    answer: Mapping[str, Any]  # the JSON object that submit printed
    results: Mapping[Stage, Result]


@contextmanager
def kept_environment() -> Iterator[None]:
    """Watching a store sets its address and keys for the process; afterwards they are as before."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


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


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Undisturbed]:
    """The small pipeline of :mod:`tests.faults.document`, complete (about 75 s, once a session)."""
    place = Place(tmp_path_factory.mktemp("病历 undisturbed ü'&%"), document.small())
    try:
        with kept_environment():
            results = undisturbed_results(place, document.SMALL)
        yield Undisturbed(place, json.loads(place.answer.read_text(encoding="utf-8")), results)
    finally:
        place.end()
        shutil.rmtree(place.folder, ignore_errors=True)
