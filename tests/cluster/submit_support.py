"""What the tests of commands' errors share: a release that is only described, a document, a command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from tests.cluster.crd_support import with_crd
from tests.cluster.kube import Cluster
from tests.cluster.own_namespace import own_namespace
from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.resources import CONFIG_MAPS
from zhongjing.cli.app import app
from zhongjing.config.release import RayRelease, ReleaseConfig, StorageRelease
from zhongjing.config.sources import Storage
from zhongjing.storage.objects import open_store

CommandLine = Callable[..., Result]


def release_of(namespace: str, storage: StorageRelease, name: str = "zj") -> ReleaseConfig:
    ray = RayRelease(
        cluster=f"{name}-ray",
        service=f"{name}-ray-head",
        token_secret=f"{name}-ray-token",
        token_managed=True,
        groups=[],
        scaling="none",
    )
    return ReleaseConfig(
        release=name,
        fullname=f"{name}-zhongjing",
        namespace=namespace,
        chart_version="0.1.0",
        image="zhongjing:0.1.0",
        provisioner="static",
        ray=ray,
        storage=storage,
    )


def install(api: KubeApi, release: ReleaseConfig) -> None:
    labels = {
        "app.kubernetes.io/part-of": "zhongjing",
        "app.kubernetes.io/component": "config",
        "app.kubernetes.io/instance": release.release,
    }
    text = yaml.safe_dump(release.model_dump(mode="json", by_alias=True))
    metadata = {"name": f"{release.fullname}-config", "labels": labels}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"release.yaml": text}}
    api.create(CONFIG_MAPS, body)


@pytest.fixture(scope="module")
def crd(cluster: Cluster) -> Iterator[None]:
    """The cluster serves TrainingPipelines."""
    with with_crd("default"):
        yield


@pytest.fixture
def api(crd: None, cluster: Cluster) -> Iterator[KubeApi]:
    """A client of a new namespace, which is not waited for when it goes: nothing runs in it."""
    with own_namespace("submit") as found:
        yield found


@pytest.fixture
def storage(bucket_uri: str, s3_environment: dict[str, str]) -> StorageRelease:
    """A store outside the cluster: this machine's."""
    return StorageRelease(bundled=False, uri=bucket_uri, endpoint=s3_environment["AWS_ENDPOINT_URL"])


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Cluster) -> CommandLine:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def run(*words: str, kubeconfig: Path | None = None) -> Result:
        with pytest.MonkeyPatch.context() as patch:
            if kubeconfig is not None:
                patch.setenv("KUBECONFIG", str(kubeconfig))
            return CliRunner().invoke(app, list(words))

    return run


@pytest.fixture
def document(tmp_path: Path, bucket_uri: str, s3_environment: dict[str, str]) -> Path:
    """A pipeline of one stage whose source is in the store."""
    open_store(Storage(uri=bucket_uri)).put(f"{bucket_uri}/data.jsonl", b"records")
    return written(tmp_path, bucket_uri)


def written(folder: Path, bucket: str, **spec: Any) -> Path:
    path = folder / "doc.yaml"
    source = {"name": "rankings", "kind": "ranking", "uri": f"{bucket}/data.jsonl"}
    fields = {
        "base": {"uri": "owner/base"},
        "sources": [source],
        "stages": {"rm": {"data": [{"source": "rankings"}]}},
        **spec,
    }
    path.write_text(yaml.safe_dump({"metadata": {"name": "mine"}, "spec": fields}), encoding="utf-8")
    return path


def error_of(result: Result) -> str:
    return result.stderr.splitlines()[0]
