"""Local files of a document on their way to a cluster."""

from __future__ import annotations

import io
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from zhongjing.cli.console import Console
from zhongjing.cli.uploads import PlannedStore, Uploads, announced, plan_uploads
from zhongjing.config.resolve import UserDocument, resolve
from zhongjing.errors import MissingInputError
from zhongjing.pipeline.local_files import LocalFile, upload_files
from zhongjing.storage.layout import Layout
from zhongjing.storage.objects import ObjectStore

LAYOUT = Layout("s3://bucket/prefix", "train", "demo")
ROOT = "s3://bucket/prefix/train"


def user(uri: str, **spec: Any) -> UserDocument:
    source = {"name": "talk", "uri": uri, "kind": "dialogue"}
    fields = {"base": {"tiny": {}}, "sources": [source], "stages": {"sft": {"data": [{"source": "talk"}]}}}
    return UserDocument({"metadata": {"name": "demo"}, "spec": {**fields, **spec}}, "my.yaml", {})


def plan(document: UserDocument) -> Uploads:
    with ExitStack() as stack:
        return plan_uploads(document, resolve(document), LAYOUT, stack)


def uri_of(uploads: Uploads) -> str:
    return str(uploads.user["spec"]["sources"][0]["uri"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in {
        "a.jsonl": "one",
        "b/a.jsonl": "two",
        "b/.hidden": "no",
        "c[1]*.jsonl": "three",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_one_file_is_one_object_named_by_its_content(folder: Path) -> None:
    uploads = plan(user(str(folder / "a.jsonl")))
    assert uri_of(uploads) == f"{ROOT}/uploads/7692c3ad3540bb803c020b3aee66cd88/a.jsonl"
    assert uploads.files == [LocalFile(folder / "a.jsonl", uri_of(uploads), 3)]
    (folder / "a.jsonl").write_text("other")
    assert uri_of(plan(user(str(folder / "a.jsonl")))) != uri_of(uploads)


def test_several_files_are_a_folder_named_by_names_and_contents(folder: Path, tmp_path: Path) -> None:
    uploads = plan(user(str(folder)))
    assert uri_of(uploads).startswith(f"{ROOT}/uploads/sets/")
    names = [file.uri.removeprefix(uri_of(uploads)) for file in uploads.files]
    # What means a pattern elsewhere must not stand in a name: the folder is listed by its URI.
    assert names == ["a.jsonl", "b/a.jsonl", "c_1__.jsonl"]
    glob = plan(user(f"{folder}/**/a.jsonl"))
    assert [file.uri.removeprefix(uri_of(glob)) for file in glob.files] == ["a.jsonl", "b/a.jsonl"]
    (folder / "b" / "a.jsonl").write_text("changed")
    assert uri_of(plan(user(str(folder)))) != uri_of(uploads)


def test_places_outside_stay_as_they_are(folder: Path) -> None:
    for uri in ("s3://other/data/*.jsonl", "hf://datasets/owner/name"):
        uploads = plan(user(uri))
        assert (uri_of(uploads), uploads.files, uploads.notes) == (uri, [], [])


def test_examples_are_made_and_gone_again() -> None:
    uploads = plan(user("example://dialogues?scale=0.1"))
    assert uri_of(uploads).endswith("/dialogues.jsonl")
    assert [file.path.name for file in uploads.files] == ["dialogues.jsonl"]
    assert not uploads.files[0].path.exists(), "the folder goes with its stack"
    assert uri_of(plan(user("example://dialogues?scale=0.1"))) == uri_of(uploads)
    assert uri_of(plan(user("example://dialogues?scale=0.1&seed=1"))) != uri_of(uploads)


def test_what_is_waited_for_has_a_place_of_its_own(folder: Path) -> None:
    document = user(str(folder / "later.jsonl"))
    document["spec"]["sources"][0]["wait"] = True
    uploads = plan(document)
    assert uri_of(uploads) == f"{ROOT}/uploads/awaited/demo/talk/"
    assert uploads.files == []
    assert "give the same command again" in uploads.notes[0]


def test_model_folders_travel_and_are_named_wherever_they_stand(folder: Path) -> None:
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_text("weights")
    (model / ".git").mkdir()
    (model / ".git" / "x").write_text("not this")
    stages = {"sft": {"data": [{"source": "talk"}], "from": str(model)}}
    uploads = plan(
        user(
            "s3://b/x",
            base={"delta": str(model), "root": "owner/root", "deltaRule": "fengshen"},
            stages=stages,
        )
    )
    spec = uploads.user["spec"]
    place = spec["base"]["delta"]
    assert place.startswith(f"{ROOT}/cache/bases/")
    assert spec["base"]["root"] == "owner/root"
    assert spec["stages"]["sft"]["from"] == place
    assert sorted(file.uri.removeprefix(f"{place}/") for file in uploads.files) == [
        "config.json",
        "model.safetensors",
    ]
    with pytest.raises(MissingInputError, match="there is no model in the folder"):
        plan(user("s3://b/x", base={"uri": str(folder / "b")}))


def test_variables_and_numbers_in_quotes_are_written_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORPORA", str(folder))
    stages = {"sft": {"data": [{"source": "talk"}], "learningRate": "1e-4"}}
    uploads = plan(user("${CORPORA}/a.jsonl", stages=stages))
    assert uri_of(uploads).endswith("/a.jsonl")
    assert uploads.user["spec"]["stages"]["sft"] == {"data": [{"source": "talk"}], "learningRate": 1e-4}
    assert str(folder) not in json.dumps(uploads.user)


def test_the_same_again_is_not_sent_again(folder: Path, store: ObjectStore, bucket_uri: str) -> None:
    layout = Layout(bucket_uri, "train", "demo")
    with ExitStack() as stack:
        document = user(str(folder))
        uploads = plan_uploads(document, resolve(document), layout, stack)
        planned = PlannedStore(store, uploads.files)
        place = uri_of(uploads)
        # A look ahead sees what will be there, as the store will list it.
        assert [info.uri for info in planned.glob(place)] == [file.uri for file in uploads.files]
        assert [info.uri for info in planned.glob(uploads.files[0].uri)] == [uploads.files[0].uri]
        assert planned.glob(f"{bucket_uri}/elsewhere/") == []
        assert list(store.glob(place)) == []
        told: list[tuple[str, int, int]] = []
        assert upload_files(store, uploads.files, lambda *what: told.append(what)) == 3
        assert ("a.jsonl", 3, 3) in told
        assert [info.size for info in store.glob(place)] == [3, 3, 5]
        assert upload_files(store, uploads.files) == 0
        real = {info.uri: info.etag for info in store.glob(place)}
        assert {info.uri: info.etag for info in planned.glob(place)} == real


def test_a_terminal_sees_how_far_the_uploads_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    uploads = plan(user(str(folder / "a.jsonl")))
    with announced(uploads, Console()) as on_upload:
        on_upload("a.jsonl", 0, 3)
        on_upload("a.jsonl", 3, 3)
    assert "uploading" in screen.getvalue()
    assert "3/3 bytes" in screen.getvalue()


def test_a_pipe_is_told_of_large_files_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with announced(plan(user(str(folder / "a.jsonl"))), Console()) as on_upload:
        on_upload("small.jsonl", 0, 1000)
        on_upload("large.bin", 0, 300 * 2**20)
        on_upload("large.bin", 300 * 2**20, 300 * 2**20)
    assert capsys.readouterr().out.splitlines() == ["uploading large.bin (315MB)"]
