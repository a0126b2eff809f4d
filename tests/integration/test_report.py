"""``zhongjing report`` of a real run by the real command line: nothing secret leaves, what helps is there.

The stages' jobs are stand-ins. Secrets and text of records are planted wherever a real run could leave them.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.local_support import JOBS, document, end_supervisor, follow, live, open_session, submit
from tests.report_support import AWKWARD, KEY, PEM, RECORD, spellings
from zhongjing.backends.local.processes import end_marked, wait_until
from zhongjing.backends.local.ray_head import RayHead
from zhongjing.backends.local.session import LocalSession
from zhongjing.backends.local.workdir import Workdir
from zhongjing.config.stages import Stage
from zhongjing.pipeline.state import ConditionType
from zhongjing.storage.layout import StageLayout

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
USER = "liming-w"
PROMPT = "你是一名经验丰富的中医医生，请用通俗的语言回答患者的问题。"
ANSWER = "the patient should rest for two days"  # no rule of shape finds such text
WEIGHTS = "weights of the model"
# What the command's environment holds, and what only the supervisor's did when it was started.
COMMAND = {"HF_TOKEN": "hf_" + "aB3" * 12, "DB_PASSWORD": AWKWARD, "AWS_SECRET_ACCESS_KEY": KEY}
SUPERVISOR = {"NOTEBOOK_TOKEN": "only-the-supervisor/knows+it"}
PEOPLE = ("li.ming@hospital.com.cn", "13812345678", "11010519491231002X")
SHAPES = (
    "Authorization: Bearer eyJhbGciOi-unknown-1",
    "https://u7:unknown-2@proxy:3128/x",
    "GET /b/k?X-Amz-Credential=AKunknown-3&X-Amz-Signature=unknown-4ab",
    "AWS_SECRET_ACCESS_KEY=unknown-5",
)


@dataclass
class Archive:
    """What a report holds.

    Attributes:
        answer: the JSON object that the command printed.
        members: text by name, without the folder that all are in.
    """

    answer: dict[str, Any]
    said: str
    members: dict[str, str] = field(default_factory=dict)

    def named(self, pattern: str) -> list[str]:
        return [text for name, text in self.members.items() if re.fullmatch(pattern, name)]

    @property
    def left_out(self) -> dict[str, str]:
        return {gap["what"]: gap["why"] for gap in self.answer["leftOut"]}


@dataclass
class Place:
    """A workdir in a home folder, and commands that are run there."""

    home: Path
    workdir: Path

    def report(self, target: str, *options: str, code: int = 0) -> Archive:
        hidden = ("AWS_", "KUBE", *SUPERVISOR)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        own = {"HOME": str(self.home), "USER": USER, "LOGNAME": USER, "PYTHONPATH": str(ROOT), **COMMAND}
        command = [sys.executable, "-m", "zhongjing", "report", "--workdir", str(self.workdir), *options]
        done = subprocess.run(
            [*command, "-o", "json", "--output", target],
            env={**kept, **own, "TMPDIR": str(self.home / "t")},
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == code, done.stderr
        archive = Archive(json.loads(done.stdout), done.stderr)
        if code == 0:
            archive.members = unpacked(self.home / target)
        return archive


def unpacked(path: Path) -> dict[str, str]:
    """Text of every member; each must be a plain file that says nothing of who packed it."""
    assert path.stat().st_mode & 0o777 == 0o600
    members: dict[str, str] = {}
    with tarfile.open(path) as tar:
        listed = tar.getmembers()
        assert [each.name for each in listed] == sorted(each.name for each in listed)
        for each in listed:
            assert (each.isfile(), each.mode, each.uid, each.gid, each.uname, each.gname) == (
                True,
                0o600,
                0,
                0,
                "",
                "",
            )
            file = tar.extractfile(each)
            assert file is not None
            root, _, name = each.name.partition("/")
            assert re.fullmatch(r"[a-z]+-report-\d{8}T\d{6}Z", root)
            members[name] = file.read().decode()
    return members


def planted_log() -> str:
    """A log with everything that must not leave, between two lines that must."""
    secrets = {**COMMAND, **SUPERVISOR}
    lines = ["the first line of a log"]
    for name, value in secrets.items():
        lines += [f"{name} as {form}: {text}" for form, text in spellings(value).items() if "\n" not in text]
    lines += [*SHAPES, *PEM.splitlines(), f"ValueError: cannot use {RECORD}", f"bad {RECORD!a} {PEOPLE}"]
    lines += [f"at /home/{USER}/x.py on {socket.gethostname()}, user={USER}"]
    return "\n".join([*lines, "the last line of a log", ""])


def plant_objects(session: LocalSession, layout: StageLayout) -> None:
    """What a real run leaves in the store, with secrets and records in it."""
    store = session.store
    done = next(
        store.get_json(info.uri)
        for info in store.list(session.layout("demo").home)
        if info.uri.endswith("/manifest.json")
    )
    answers = {"question": RECORD, "base": ANSWER, "sft": ANSWER}
    done["extra"] = {
        "answers": answers,
        "tokenCache": "s3://zhongjing/local/cache/tokens/ab",
        "rewardMean": 0.25,
    }
    done["lineage"]["host"] = socket.gethostname()
    store.put_json(layout.manifest, done)
    failure = {"error": "ValueError", "message": f"{KEY} and {RECORD}", "retriable": False}
    progress = {"stage": "sft", "key": "planted", "attempt": 1, "activity": "failed", "failure": failure}
    store.put_json(layout.progress, progress)
    entry = {"source": "dialogues", "uri": "s3://x/y", "index": 1, "line": 2, "reason": "the answer is empty"}
    store.put(layout.quarantine, (json.dumps({**entry, "text": ANSWER}) + "\n").encode())
    point = {"kind": "train", "step": 1, "time": "t", "epoch": 0.5, "values": {"loss": 2.5}}
    store.put(layout.metrics_part(0), (json.dumps(point) + "\n").encode())
    store.put(layout.metrics_part(1), (json.dumps({**point, "step": 2}) + "\n" + ANSWER + "\n").encode())
    checkpoint = {"version": 1, "step": 8, "attempt": 1, "best": True, "created": "t", "files": []}
    store.put_json(f"{layout.checkpoint(8)}/manifest.json", checkpoint)
    store.put(f"{layout.checkpoint(8)}/weights.safetensors", WEIGHTS.encode())
    store.put(f"{layout.logs}/driver-a9.log", planted_log().encode())
    store.put(f"{layout.logs}/traceback-a1.txt", planted_log().encode())
    store.put(f"{layout.root}/requests/a9.json", b'{"damaged": "' + KEY.encode())
    # A head that dies takes the log of its attempt with it.
    store.delete(f"{session.layout('demo').stage(Stage.SFT, done['key']).logs}/driver-a1.log")
    store.put(f"{session.layout('demo').tokens('ab')}/shard-0", ANSWER.encode())


def plant_files(workdir: Path) -> None:
    """What services and commands leave in the workdir."""
    (workdir / "logs").mkdir(exist_ok=True)
    for name in ("supervisor.log", "ray.log", "s3/weed.log", "logs/error-20260102T030405Z-1.log"):
        with (workdir / name).open("a", encoding="utf-8") as file:
            file.write(planted_log())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A run of one stage, planted with secrets; its supervisor lives."""
    home = tmp_path_factory.mktemp("h") / USER
    (home / "t").mkdir(parents=True)
    place = Place(home, home / "w")
    for name in ("texts.txt", "dialogues.jsonl", "rankings.jsonl"):
        (home / name).write_text(f"{ANSWER} {name}")
    before = dict(os.environ)
    os.environ.update({**SUPERVISOR, "PYTHONPATH": JOBS})
    try:
        with open_session(place.workdir) as session:
            user = document(home, "demo", stages=(Stage.SFT,), steps="2")
            user["spec"]["stages"]["sft"]["systemPrompt"] = PROMPT
            user["metadata"]["annotations"] = {"note": f"made with {KEY}"}
            assert follow(session, submit(session, user)).holds(ConditionType.COMPLETE)
            plant_objects(session, session.layout("demo").stage(Stage.SFT, "planted"))
            plant_files(place.workdir)
            ray = live(session).ray
            assert ray is not None
            (Path(ray.temporary) / "session_latest" / "logs" / "raylet.err").write_text(planted_log())
        yield place
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)
        if Workdir(place.workdir).live_record() is not None:
            end_supervisor(place.workdir)
        end_marked(RayHead(place.workdir).mark)


def secrets_of(workdir: Path) -> Mapping[str, str]:
    environment = json.loads((workdir / "environment.json").read_text())
    own = {name: environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    return {**COMMAND, **SUPERVISOR, **{f"workdir {name}": value for name, value in own.items()}} | {
        "ray-token": (workdir / "ray-token").read_text().strip()
    }


def assert_nothing_leaks(archive: Archive, place: Place, *, secrets: Mapping[str, str]) -> None:
    host = re.compile(rf"(?<![A-Za-z0-9_<-]){re.escape(socket.gethostname())}(?![A-Za-z0-9_>-])")
    for member, text in {**archive.members, "what it said": archive.said}.items():
        for name, value in secrets.items():
            for form, spelt in spellings(value).items():
                assert spelt not in text, f"{member}: {name} as {form}"
        for part in ("unknown-", "MIIE", USER, str(place.home.parent), ANSWER, WEIGHTS, *PEOPLE):
            if member != "what it said" or part != USER:
                assert part not in text, f"{member}: {part}"
        for form, spelt in spellings(RECORD).items():
            assert spelt[:12] not in text, f"{member}: the record as {form}"
        if member != "what it said":
            assert not host.search(text), f"{member}: the host"
    assert not list(place.home.glob(".*report*")), "a temporary file is left behind"


def assert_planted_log(text: str) -> None:
    assert "the first line of a log\n" in text
    assert text.endswith("the last line of a log\n")
    assert "<redacted:AWS_SECRET_ACCESS_KEY>" in text
    assert "Authorization: <redacted>\n" in text


def assert_run(archive: Archive) -> None:
    """What helps is there."""
    desired = json.loads(archive.members["pipeline.json"])
    assert desired["document"]["spec"]["stages"]["sft"]["systemPrompt"] == PROMPT
    assert desired["sources"][0]["objects"][0]["size"] > 0
    assert json.loads(archive.members["status.json"])["stages"]["sft"]["attempt"] == 1
    manifest = json.loads(archive.members["run/sft/planted/manifest.json"])
    assert manifest["extra"]["answers"]["base"] == f"<text {len(ANSWER)} characters>"
    assert manifest["extra"]["rewardMean"] == 0.25
    assert manifest["metrics"] == {"loss": 1.0}
    metrics = archive.members["run/sft/planted/metrics.jsonl"].splitlines()
    assert [json.loads(line).get("step") for line in metrics] == [1, 2, None]
    assert json.loads(archive.members["run/sft/planted/quarantine.jsonl"])["reason"] == "the answer is empty"
    assert json.loads(archive.members["run/sft/planted/checkpoints/step-00000008/manifest.json"])["step"] == 8
    assert_planted_log(archive.members["run/sft/planted/logs/driver-a9.log"])
    assert_planted_log(archive.members["run/sft/planted/logs/traceback-a1.txt"])
    assert len(archive.named(r"run/sft/[0-9a-f]+/requests/a1\.json")) == 1
    assert archive.named(r"run/sft/[0-9a-f]+/manifest\.json")
    listing = archive.members["objects.txt"]
    assert re.search(
        rf" {len(WEIGHTS)}  \S+Z  sft/planted/checkpoints/step-00000008/weights.safetensors\n", listing
    )
    assert "model/model.bin" in listing
    assert archive.left_out["run/sft/planted/requests/a9.json"].startswith("it is damaged")


def assert_workdir(archive: Archive) -> None:
    for name in ("supervisor.log", "ray.log", "logs/error-20260102T030405Z-1.log"):
        assert "the last line of a log\n" in archive.members[f"workdir/{name}"], name
    weed = archive.members.get("workdir/s3/weed.log", "") + archive.members.get("workdir/s3/weed.log.1", "")
    assert "the last line of a log\n" in weed
    assert json.loads(archive.members["workdir/sizes.json"])["folders"]["s3"]["bytes"] > 0
    versions = json.loads(archive.members["versions.json"])
    assert {"obstore", "ray", "torch"} <= set(versions["packages"])


# In this order: each takes away more of what the one before it had.


def test_of_a_run_whose_supervisor_lives(place: Place) -> None:
    archive = place.report("live.tar.gz")
    assert_nothing_leaks(archive, place, secrets=secrets_of(place.workdir))
    assert_run(archive)
    assert_workdir(archive)
    assert_planted_log(archive.members["workdir/ray/raylet.err"])
    # The log that the store lacks is in Ray's folder.
    (driver,) = archive.named(r"workdir/ray/job-driver-demo-[0-9a-f]{8}-sft-a1\.log")
    assert "sft attempt 1 begins in process" in driver
    doctor = json.loads(archive.members["doctor.json"])
    assert "supervisor" in {check["name"] for check in doctor["checks"]}
    assert "packing the run demo" in archive.said
    assert archive.answer["pipeline"] == "demo"
    assert archive.answer["files"] == len(archive.members)
    readme = archive.members["README.txt"]
    assert "run/sft/planted/requests/a9.json: it is damaged" in readme
    assert "tar -xzf live.tar.gz" in readme
    refused = place.report("live.tar.gz", "--no-doctor", code=2)
    assert refused.answer["code"] == "TargetInUse"


def test_of_a_run_whose_supervisor_was_killed(place: Place) -> None:
    process = live(LocalSession.open(place.workdir, start=False)).process
    os.kill(process.pid, signal.SIGKILL)
    assert wait_until(lambda: not process.is_alive, 30)
    archive = place.report("gone.tar.gz", "demo", "--no-doctor")
    assert "starting the workdir's services" in archive.said
    # What only the supervisor knew is still in the environment of the Ray that it left behind.
    assert_nothing_leaks(archive, place, secrets=secrets_of(place.workdir))
    assert_run(archive)
    assert_workdir(archive)
    assert_planted_log(archive.members["workdir/ray/raylet.err"])
    assert json.loads(archive.members["workdir/supervisor.json"])["process"]["pid"] == process.pid


def test_of_a_workdir_whose_s3_server_does_not_start(place: Place) -> None:
    end_supervisor(place.workdir)
    s3 = place.workdir / "s3"
    data = s3 / "data"
    data.rename(s3 / "data.away")
    data.write_text("not a folder")
    try:
        archive = place.report("broken.tar.gz", "--no-doctor")
    finally:
        data.unlink()
        (s3 / "data.away").rename(data)
    # No process is left that knew what was secret to the supervisor; README.txt says so.
    known = {name: value for name, value in secrets_of(place.workdir).items() if name not in SUPERVISOR}
    assert_nothing_leaks(archive, place, secrets=known)
    assert_workdir(archive)
    assert "workdir/ray" in archive.left_out
    assert "run" in archive.left_out
    assert archive.answer["pipeline"] == "demo"
    assert "pipeline.json" not in archive.members
