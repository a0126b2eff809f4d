"""The two images, as pods of the restricted Pod Security level run them: no rights, a read-only root."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.cluster.kube import HOME, Cluster, hardened_pod

pytestmark = pytest.mark.cluster

IMAGES = {"train": "", "controller": "-controller"}
Shell = Callable[..., str]


@pytest.fixture(scope="module")
def pods(cluster: Cluster, module_namespace: str) -> str:
    """A pod of each image; the namespace they are in."""
    made = [hardened_pod(name, f"{cluster.image}:{cluster.tag}{ending}") for name, ending in IMAGES.items()]
    cluster.apply(*made, namespace=module_namespace)
    names = [f"pod/{name}" for name in IMAGES]
    cluster.kubectl(
        "wait", "--for", "condition=Ready", "--timeout", "120s", *names, namespace=module_namespace
    )
    return module_namespace


@pytest.fixture
def shell(cluster: Cluster, pods: str) -> Shell:
    """Runs a command in a pod."""

    def run(name: str, *command: str) -> str:
        return cluster.kubectl("exec", name, "--", *command, namespace=pods).strip()

    return run


@pytest.mark.parametrize("image", IMAGES)
def test_runs_without_rights_as_the_user_of_the_image(shell: Shell, image: str) -> None:
    assert shell(image, "id", "-u") == "10001"
    assert shell(image, "id", "-g") == "10001"
    assert shell(image, "sh", "-c", "touch /opt/zhongjing/x 2>/dev/null || echo refused") == "refused"
    home = shell(
        image, "python", "-c", "import pathlib; h = pathlib.Path.home(); (h / 'x').touch(); print(h)"
    )
    assert home == HOME


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("login", ["-c", "-lc"], ids=["shell", "login-shell"])
def test_python_is_the_one_with_the_packages(shell: Shell, image: str, login: str) -> None:
    told = shell(image, "bash", login, "command -v python zhongjing; python -c 'import zhongjing.submit'")
    assert told.split() == ["/opt/zhongjing/bin/python", "/opt/zhongjing/bin/zhongjing"]


@pytest.mark.parametrize("image", IMAGES)
def test_the_first_process_reaps_what_others_leave(shell: Shell, image: str) -> None:
    assert shell(image, "cat", "/proc/1/comm") == "tini"


@pytest.mark.parametrize("image", IMAGES)
def test_the_code_is_compiled(shell: Shell, image: str) -> None:
    # A read-only root keeps no bytecode: what is not compiled in the image is compiled at every start.
    count = (
        "import importlib.util, pathlib, zhongjing, sys\n"
        "root = pathlib.Path(zhongjing.__file__).parent\n"
        "print([str(p) for p in root.rglob('*.py')"
        " if not pathlib.Path(importlib.util.cache_from_source(str(p))).exists()])"
    )
    assert shell(image, "python", "-c", count) == "[]"


@pytest.mark.parametrize("image", IMAGES)
def test_the_commit_is_known(shell: Shell, image: str) -> None:
    commit = shell(image, "printenv", "ZHONGJING_COMMIT")
    assert len(commit) == 40
    assert set(commit) <= set("0123456789abcdef")


def test_the_controller_has_neither_torch_nor_ray(shell: Shell) -> None:
    look = "import importlib.util as u, json; print(json.dumps([m for m in {} if u.find_spec(m)]))"
    found = shell("controller", "python", "-c", look.format(["torch", "ray", "transformers", "deepspeed"]))
    assert json.loads(found) == []
    shell("controller", "python", "-c", "import zhongjing.controller.__main__")


def test_the_controllers_image_runs_the_bundled_store_too(shell: Shell) -> None:
    assert shell("controller", "weed", "version").startswith("version ")
    shell("controller", "python", "-c", "import zhongjing.storage.volumes")


def test_the_train_image_has_what_its_pods_call(shell: Shell) -> None:
    programs = shell("train", "bash", "-c", "command -v ray weed wget tini").split()
    assert programs == ["/opt/zhongjing/bin/ray", "/opt/zhongjing/bin/weed", "/usr/bin/wget", "/usr/bin/tini"]
    assert shell("train", "weed", "version").startswith("version ")
    # NCCL loads it where there is RDMA, and is slow over TCP without a word where it is missing.
    shell("train", "python", "-c", "import ctypes; ctypes.CDLL('libibverbs.so.1')")


def test_the_train_image_imports_the_stages(shell: Shell) -> None:
    modules = (
        "jobs.pretrain, jobs.sft, jobs.rm, jobs.ppo, torch, ray, deepspeed, peft, transformers, datasets"
    )
    cuda = shell("train", "python", "-c", f"import {modules}; print(torch.version.cuda)")
    assert cuda != "None", "the image's torch is a CPU build: GPUs would stay idle"


def test_no_build_tool_is_left_in_the_images(shell: Shell) -> None:
    for image in IMAGES:
        assert shell(image, "bash", "-c", "command -v gcc pip git || true") == ""
