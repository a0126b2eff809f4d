"""Which target the options mean, and which kubeconfig reaches a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zhongjing.cli.options import DEFAULT_WORKDIR
from zhongjing.cli.target import ClusterTarget, LocalTarget, choose, find_kubeconfig
from zhongjing.errors import BackendError, ConfigError

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: {current}
clusters: [{{name: c, cluster: {{server: https://127.0.0.1:1}}}}]
contexts: [{{name: prod, context: {{cluster: c, user: u}}}}, {{name: test, context: {{cluster: c, user: u}}}}]
"""


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_kubeconfig_is_usable_when_its_context_exists(
    no_cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_kubeconfig() is None
    home = no_cluster / ".kube" / "config"
    home.parent.mkdir()
    home.write_text(KUBECONFIG.format(current="gone"))
    assert find_kubeconfig() is None
    home.write_text(KUBECONFIG.format(current="prod"))
    assert find_kubeconfig() == str(home)
    assert find_kubeconfig("test") == str(home)
    with pytest.raises(ConfigError, match="no context 'other'") as caught:
        find_kubeconfig("other")
    assert caught.value.remedy == "the contexts are: prod, test"
    monkeypatch.setenv("KUBECONFIG", str(no_cluster / "missing"))
    assert find_kubeconfig() is None


def test_several_kubeconfigs_count_as_one(no_cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = no_cluster / "first", no_cluster / "second"
    first.write_text("current-context: test\n")
    second.write_text(KUBECONFIG.format(current="prod"))
    monkeypatch.setenv("KUBECONFIG", f"{first}:{second}:{no_cluster / 'missing'}")
    assert find_kubeconfig() == str(second)
    assert find_kubeconfig("prod") == str(second)
    first.write_text("current-context: gone\n")
    assert find_kubeconfig() is None


@pytest.mark.parametrize("content", ["", "[]", "{", "clusters: []", "\x00"])
def test_a_broken_kubeconfig_is_none(no_cluster: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    file = no_cluster / "config"
    file.write_text(content)
    monkeypatch.setenv("KUBECONFIG", str(file))
    assert find_kubeconfig() is None


def test_a_kubeconfig_means_its_cluster(no_cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = no_cluster / "config"
    file.write_text(KUBECONFIG.format(current="prod"))
    monkeypatch.setenv("KUBECONFIG", str(file))
    monkeypatch.chdir(no_cluster)
    (no_cluster / DEFAULT_WORKDIR).mkdir()
    assert choose(local=False, workdir=None, strict=True) == ClusterTarget()
    assert choose(local=False, workdir=None) == ClusterTarget()
    named = choose(local=False, workdir=None, namespace="train", context="test", release="big")
    assert named == ClusterTarget("train", "test", "big")
    assert named.flags == "-n train --context test --release big"
    assert choose(local=True, workdir=None, strict=True) == LocalTarget(DEFAULT_WORKDIR)


def test_without_a_kubeconfig_a_look_takes_the_workdir_that_is_there(
    no_cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(no_cluster)
    with pytest.raises(BackendError, match="no usable kubeconfig"):
        choose(local=False, workdir=None)
    (no_cluster / DEFAULT_WORKDIR).mkdir()
    assert choose(local=False, workdir=None) == LocalTarget(DEFAULT_WORKDIR)
    with pytest.raises(BackendError, match="no usable kubeconfig"):
        choose(local=False, workdir=None, namespace="train")


def test_only_local_means_this_machine_to_submit(no_cluster: Path) -> None:
    with pytest.raises(BackendError, match="--local"):
        choose(local=False, workdir=None, strict=True)
    with pytest.raises(ConfigError, match="--workdir is the folder of a local run"):
        choose(local=False, workdir=no_cluster, strict=True)
    assert choose(local=False, workdir=no_cluster) == LocalTarget(no_cluster)
    there = choose(local=True, workdir=no_cluster, strict=True)
    assert there == LocalTarget(no_cluster)
    assert there.flags == f"--local --workdir {no_cluster}"


@pytest.mark.parametrize("mine", [{"local": True, "workdir": None}, {"local": False, "workdir": Path("w")}])
def test_options_of_both_places_contradict_each_other(no_cluster: Path, mine: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--context belong to a cluster, --"):
        choose(**mine, context="prod")
