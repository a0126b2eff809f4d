"""``zhongjing report`` of a real run by the real command line: nothing secret leaves, what helps is there.

The stages' jobs are stand-ins. Secrets and text of records are planted wherever a real run could leave them.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import in_process, kept_environment
from tests.local_support import JOBS, document, end_supervisor, follow, live, open_session, submit
from tests.report_support import AWKWARD, KEY, PEM, RECORD, assert_no_trace
from zhongjing.backends.local.processes import end_marked, wait_until
from zhongjing.backends.local.ray_head import RayHead
from zhongjing.backends.local.session import LocalSession
from zhongjing.backends.local.workdir import Workdir
from zhongjing.config.stages import Stage
from zhongjing.pipeline.state import ConditionType

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
USER = "liming-w"
PROMPT = "你是一名经验丰富的中医医生，请用通俗的语言回答患者的问题。"
ANSWER = "the patient should rest for two days"
COMMAND = {"HF_TOKEN": "hf_" + "aB3" * 12, "DB_PASSWORD": AWKWARD, "AWS_SECRET_ACCESS_KEY": KEY}
NOTEBOOK = "only-the-supervisor/knows+it"  # in the environment of the supervisor and its jobs
PEOPLE = ("li.ming@hospital.com.cn", "13812345678", "11010519491231002X")
LOG = "\n".join(
    [
        *(f"{name}={value}" for name, value in COMMAND.items()),
        *(PEM, RECORD, ANSWER, *PEOPLE, f"at /home/{USER}/x.py on {socket.gethostname()}"),
        "Traceback (most recent call last):",
        f'  File "/home/{USER}/zhongjing/train/loop.py", line 20, in step',
        f"ValueError: {RECORD}",
        "error[StorageUnreachable]",
    ]
)


@dataclass
class Place:
    """A workdir in a home folder, and commands that are run there."""

    home: Path
    workdir: Path

    def report(self, target: str, *options: str) -> dict[str, Any]:
        """Makes a report and looks for what must not be in it; returns it with what the command printed."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "KUBE"))}
        own = {"HOME": str(self.home), "USER": USER, "LOGNAME": USER, "PYTHONPATH": str(ROOT), **COMMAND}
        done = in_process(
            "zhongjing",
            *("report", "--workdir", str(self.workdir), *options, "-o", "json", "--output", target),
            folder=self.home,
            environment={**kept, **own, "TMPDIR": str(self.home / "t")},
        )
        assert done.returncode == 0, done.stderr
        text = (self.home / target).read_text()
        for value in (*COMMAND.values(), NOTEBOOK, RECORD, PROMPT, ANSWER, *PEOPLE, *self.keys()):
            assert_no_trace(text, value)
        host = re.escape(socket.gethostname())
        for pattern in (USER, str(self.home.parent), "demo", "dialogues", "MIIE", rf"\b{host}\b"):
            assert not re.search(pattern, text), pattern
        return {**json.loads(text), "printed": json.loads(done.stdout), "said": done.stderr}

    def keys(self) -> list[str]:
        """Secrets of the workdir's own services."""
        environment = json.loads((self.workdir / "environment.json").read_text())
        keys = [environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
        return [*keys, (self.workdir / "ray-token").read_text().strip()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A run of one stage, planted with secrets; its supervisor lives."""
    home = tmp_path_factory.mktemp("h") / USER
    (home / "t").mkdir(parents=True)
    place = Place(home, home / "w")
    (home / "dialogues.jsonl").write_text(ANSWER)
    with kept_environment():
        os.environ.update({"NOTEBOOK_TOKEN": NOTEBOOK, "PYTHONPATH": JOBS})
        yield from _planted(place)


def _planted(place: Place) -> Iterator[Place]:
    try:
        with open_session(place.workdir) as session:
            user = document(place.home, "demo", stages=(Stage.SFT,), steps="2")
            user["spec"]["stages"]["sft"]["systemPrompt"] = PROMPT
            user["metadata"]["annotations"] = {"note": f"made with {KEY}"}
            assert follow(session, submit(session, user)).holds(ConditionType.COMPLETE)
            planted = session.layout("demo").stage(Stage.SFT, "planted")
            session.store.put(f"{planted.logs}/driver-a9.log", LOG.encode())
            session.store.put(f"{planted.root}/{USER}/{USER}", LOG.encode())
            (place.workdir / "logs").mkdir(exist_ok=True)
            for name in ("supervisor.log", "ray.log", "s3/weed.log", "logs/error-20260102T030405Z-1.log"):
                with (place.workdir / name).open("a", encoding="utf-8") as file:
                    file.write(LOG)
            ray = live(session).ray
            assert ray is not None
            (Path(ray.temporary) / "session_latest" / "logs" / "raylet.err").write_text(LOG)
        yield place
    finally:
        if Workdir(place.workdir).live_record() is not None:
            end_supervisor(place.workdir)
        end_marked(RayHead(place.workdir).mark)


def assert_run(report: dict[str, Any]) -> None:
    """What helps is there."""
    spec = report["pipeline"]["document"]["spec"]
    assert spec["stages"]["sft"]["progressDeadlineSeconds"] == 30
    assert spec["stages"]["sft"]["systemPrompt"].startswith("#")
    assert report["pipeline"]["sources"][0]["objects"][0]["size"] == len(ANSWER)
    assert report["status"]["stages"]["sft"]["state"] == "Succeeded"
    assert report["manifest/sft"]["metrics"] == {"loss": 1.0}
    assert report["objects"]["sft/manifest.json"]["objects"] == 1
    assert_log(report["logs"]["sft/driver"])
    assert report["printed"]["pipeline"] == "demo"


def assert_log(found: dict[str, Any]) -> None:
    trace = {"error": "ValueError", "frames": ["zhongjing/train/loop.py:20:other"], "count": 1}
    assert trace in found["tracebacks"]
    assert found["codes"]["StorageUnreachable"] >= 1


# In this order: each takes away more of what the one before it had.


def test_of_a_run_whose_supervisor_lives(place: Place) -> None:
    report = place.report("live.json")
    assert_run(report)
    for kind in ("supervisor", "ray", "commands", "ray/raylet"):
        assert_log(report["workdirLogs"][kind])
    assert report["supervisor"]["alive"] is True
    assert report["workdirSizes"]["s3"]["bytes"] > 0
    assert {"obstore", "ray", "torch"} <= set(report["versions"]["packages"])
    assert report["doctor"]["statuses"]["fine"] > 5
    assert "leftOut" not in report, report["leftOut"]


def test_of_a_run_whose_supervisor_was_killed(place: Place) -> None:
    process = live(LocalSession.open(place.workdir, start=False)).process
    os.kill(process.pid, signal.SIGKILL)
    assert wait_until(lambda: not process.is_alive, 30)
    report = place.report("gone.json", "demo", "--no-doctor")
    assert "starting the workdir's services" in report["said"]
    assert_run(report)
    assert report["supervisor"]["alive"] is False
    assert report["supervisor"]["process"]["pid"] == process.pid


def test_of_a_workdir_whose_s3_server_does_not_start(place: Place) -> None:
    end_supervisor(place.workdir)
    s3 = place.workdir / "s3"
    data = s3 / "data"
    data.rename(s3 / "data.away")
    data.write_text("not a folder")
    try:
        report = place.report("broken.json", "--no-doctor")
    finally:
        data.unlink()
        (s3 / "data.away").rename(data)
    assert_log(report["workdirLogs"]["commands"])
    assert [gap["part"] for gap in report["leftOut"]] == ["run"]
    assert report["leftOut"][0]["code"] != "other"
    assert "pipeline" not in report
