"""submit to a release on a cluster: the requests that an API server gets, and what the user is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.releases import release_config
from tests.unit.cli.conftest import CommandLine
from tests.unit.cli.fakes import MemoryStore, user_document
from zhongjing.backends.kubernetes.session import KubernetesSession
from zhongjing.cli.target import CLUSTER_OPENER, ClusterTarget
from zhongjing.config.release import RELEASE_KEY, StorageRelease, WorkerGroup

GROUP = WorkerGroup(
    name="cpu", workload="zj-cpu", cpus=8, gpus=0, memory="64Gi", min_replicas=0, max_replicas=1
)
RELEASE = release_config(
    GROUP,
    namespace="train",
    storage=StorageRelease(bundled=True, uri="s3://bucket", service="zj-s3", port=8333),
)
RECORD = '{"instruction": "感冒怎么办？", "output": "多喝水，注意休息。"}\n'
PIPELINES = "/apis/training.zhongjing.dev/v1alpha1/namespaces/train/trainingpipelines"


class ApiServer(ThreadingHTTPServer):
    """Serves the release's ConfigMap and keeps TrainingPipelines; all else its user may not have."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.writes: list[str] = []

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        place = urlsplit(path)
        if place.path.endswith("/configmaps"):
            labels = {"app.kubernetes.io/instance": "zj"}
            data = {RELEASE_KEY: yaml.safe_dump(RELEASE.model_dump(mode="json", by_alias=True))}
            return 200, {"items": [{"metadata": {"name": "zj-config", "labels": labels}, "data": data}]}
        if not place.path.startswith(PIPELINES):
            kind = place.path.split("/")[-2]
            message = (
                f'{kind} "x" is forbidden: User "me" cannot get resource "{kind}" in API group "" '
                'in the namespace "train"'
            )
            return 403, {"kind": "Status", "code": 403, "reason": "Forbidden", "message": message}
        if method == "POST":
            self.writes.append(place.query)
            name = body["metadata"]["name"]
            made = {**body, "metadata": {**body["metadata"], "uid": "0a1b2c3d-0000", "generation": 1}}
            if "dryRun" not in place.query:
                self.pipelines[name] = made
            return 201, made
        name = place.path.removeprefix(PIPELINES).strip("/")
        if name in self.pipelines:
            return 200, self.pipelines[name]
        return 404, {
            "kind": "Status",
            "code": 404,
            "reason": "NotFound",
            "details": {"name": name},
            "message": "gone",
        }


class Handler(BaseHTTPRequestHandler):
    server: ApiServer

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        status, answer = self.server.answer(self.command, self.path, body)
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET  # noqa: N815 - the name that http.server calls

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server(command: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with ApiServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        config = {
            "current-context": "here",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        }
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    """A store that the user may read and write."""
    store: Any = MemoryStore()

    def opened(target: ClusterTarget) -> KubernetesSession:
        session = KubernetesSession.open(namespace=target.namespace)
        session.use(store)
        return session

    token = CLUSTER_OPENER.set(opened)
    yield store
    CLUSTER_OPENER.reset(token)


def write(folder: Path, uri: str) -> None:
    data = user_document(stages=("sft",))
    data["spec"]["sources"][0]["uri"] = uri
    (folder / "my.yaml").write_text(yaml.safe_dump(data))
    (folder / "sft.jsonl").write_text(RECORD, encoding="utf-8")


def test_local_files_are_uploaded_and_the_pipeline_names_them(
    command: CommandLine, server: ApiServer, store: MemoryStore, tmp_path: Path
) -> None:
    write(tmp_path, "sft.jsonl")
    result = command("submit", "my.yaml", "-n", "train", "--no-wait")
    assert result.exit_code == 0, result.output
    [uri] = store.objects
    assert store.objects[uri].decode() == RECORD
    spec = server.pipelines["demo"]["spec"]
    assert [source["uri"] for source in spec["sources"]] == [uri]
    assert "learningRate" not in spec["stages"]["sft"], "only what was written is sent"
    assert result.stdout.splitlines() == [
        "demo: runs in the namespace train (release zj)",
        "uploaded 1 of 1 local files (79B in all, 0s)",
        "stage  plan  why",
        "sft    run   was never run",
        "Ray dashboard: zhongjing dashboard -n train",
        "demo: submitted; follow it with: zhongjing status demo --watch -n train",
    ]
    again = command("submit", "my.yaml", "-n", "train", "--no-wait", "--refresh-data")
    assert again.exit_code == 2
    assert "the pipeline demo is running: its sources cannot be listed again" in again.stderr
    assert len(server.writes) == 1


def test_who_may_not_read_the_store_submits_without_a_forecast(
    command: CommandLine, server: ApiServer, tmp_path: Path
) -> None:
    write(tmp_path, "s3://bucket/sft.jsonl")
    result = command("submit", "my.yaml", "-n", "train", "--no-wait")
    assert result.exit_code == 0, result.output
    assert "note: no forecast, the object store cannot be read" in result.stdout
    assert server.pipelines["demo"]["spec"]["sources"][0]["uri"] == "s3://bucket/sft.jsonl"
    write(tmp_path, "sft.jsonl")
    refused = command("submit", "my.yaml", "-n", "train", "--no-wait")
    assert refused.exit_code == 3
    assert "error[Forbidden]" in refused.stderr
    assert "the local files of the document cannot be uploaded" in refused.stderr
    assert "or name s3:// URIs, which need no upload" in refused.stderr


def test_a_dry_run_prints_what_kubectl_takes_and_writes_nothing(
    command: CommandLine, server: ApiServer, tmp_path: Path
) -> None:
    write(tmp_path, "sft.jsonl")
    result = command("submit", "my.yaml", "-n", "train", "--dry-run", "-o", "yaml")
    assert result.exit_code == 0, result.output
    shown = yaml.safe_load(result.stdout)
    assert (shown["kind"], shown["metadata"]["namespace"]) == ("TrainingPipeline", "train")
    assert shown["spec"]["sources"][0]["uri"].startswith("s3://bucket/train/uploads/")
    assert "# note: the 1 local files (79B) of the sources are not uploaded by a dry run" in result.stdout
    assert server.pipelines == {}
    assert [("dryRun=All" in query) for query in server.writes] == [True]
