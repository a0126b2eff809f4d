"""What commands say when the cluster, the release or the user's rights are not as they should be."""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import submit_support
from tests.cluster.kube import Cluster
from tests.cluster.submit_support import CommandLine, error_of, install, release_of
from zhongjing.backends.kubernetes.api import KubeApi, connect
from zhongjing.backends.kubernetes.releases import find_release
from zhongjing.backends.kubernetes.resources import CONFIG_MAPS, PIPELINES
from zhongjing.backends.kubernetes.trainingpipeline import Pipelines
from zhongjing.codes import cluster as codes
from zhongjing.config.release import StorageRelease
from zhongjing.errors import BackendError

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

# pytest takes a module's fixtures by their names in it.
crd, api, storage = submit_support.crd, submit_support.api, submit_support.storage
command, document = submit_support.command, submit_support.document


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
    assert "remedy: check it with kubectl get --raw /readyz" in result.stderr


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
        for module in ("api", "trainingpipeline", "session", "failures"):
            name = f"zhongjing.backends.kubernetes.{module}.PIPELINES"
            patch.setattr(name, unknown, raising=False)
        install(api, release_of(api.namespace, storage))
        result = command("submit", "-f", str(document), "-n", api.namespace)
    assert result.exit_code == 3
    assert "error[CrdMissing]" in result.stderr
    assert "apply --server-side -f helm/files/trainingpipeline-crd.yaml" in result.stderr


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
    assert f"zhongjing status mine --watch -n {api.namespace} --release two" in made.stdout
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
    assert "note: no forecast, the object store cannot be read: may not get" in made.stdout
    again = command("submit", "-f", str(document), "--stage", "rm", "--no-wait", kubeconfig=user)
    assert again.exit_code == 0, again.output
    found = Pipelines(api).get("mine")
    assert found is not None
    assert found.generation == 1
    local = command("submit", "--no-wait", kubeconfig=user)
    assert local.exit_code == 3
    assert "the local files of the document cannot be uploaded: may not get services" in error_of(local)
    assert "ClusterRole edit" in local.stderr
