"""A real Kubernetes for the tests of this folder.

``ZHONGJING_TEST_KUBECONFIG`` names one that is there; else a cluster of one node is brought up on this
machine, once for the session, and taken down with all that belongs to it. Where that cannot be the tests are
skipped with the reason; with ``ZHONGJING_REQUIRE_CLUSTER=1``, as in CI, whatever is skipped has failed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import kube
from tests.cluster.kube import Cluster, Release
from tests.cluster.node.images import version
from tests.cluster.node.node import Node, bring_up, running
from tests.cluster.node.place import HarnessError, UnavailableError, default_place

HERE = Path(__file__).parent
NEEDS = {
    "kuberay": "KubeRay's operator (ZHONGJING_KUBERAY_OPERATOR)",
    "gpu": "a GPU",
    "full": "more time (make test-cluster-full)",
    "kuberay_crd": "KubeRay's definition of RayClusters (ZHONGJING_KUBERAY_CRD)",
}
"""Markers of what a run may leave out, and what such a test needs."""

_CRD_FIXTURE = "kuberay_crd_file"

_left_out = pytest.StashKey[dict[str, list[str]]]()
_node = pytest.StashKey[Node]()
_impossible = pytest.StashKey[str]()
_namespaces = pytest.StashKey[list[str]]()
_cluster = pytest.StashKey[Cluster]()

Installer = Callable[..., AbstractContextManager[Release]]


def required() -> bool:
    """Whether a test that cannot run is a failure."""
    return os.environ.get("ZHONGJING_REQUIRE_CLUSTER", "") not in ("", "0")


def say(text: str) -> None:
    """Tells of what takes long, past pytest's capturing."""
    print(f"test cluster: {text}", file=sys.__stderr__, flush=True)


def given_kubeconfig() -> Path | None:
    """A cluster that somebody else takes care of."""
    given = os.environ.get("ZHONGJING_TEST_KUBECONFIG")
    return Path(given).expanduser() if given else None


# ---- The run


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what looks at KubeRay's definition where that is nowhere: named at the end, not skipped."""
    if os.environ.get("ZHONGJING_KUBERAY_CRD"):
        return
    left = [item for item in items if HERE in item.path.parents and _CRD_FIXTURE in _fixtures(item)]
    if left:
        for item in left:
            item.add_marker("kuberay_crd")
        items[:] = [item for item in items if item not in left]
        config.hook.pytest_deselected(items=left)


def _fixtures(item: pytest.Item) -> list[str]:
    return list(getattr(item, "fixturenames", []))


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Remembers what the run leaves out for want of something."""
    for item in items:
        for marker in NEEDS:
            if HERE in item.path.parents and item.get_closest_marker(marker):
                left = item.config.stash.setdefault(_left_out, {})
                left.setdefault(marker, []).append(item.nodeid)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Brings the cluster up before the first test's time runs: the first time it has to be built."""
    if not any(HERE in item.path.parents for item in session.items):
        session.config.stash.setdefault(_left_out, {}).clear()  # this run is about other tests
        return
    if session.config.option.collectonly or given_kubeconfig():
        return
    place = default_place()
    try:
        found = running(place)
        if found is not None and required():
            say("taking the cluster down that was brought up by hand: its images may be old")
            found.down()
            found = None
        session.config.stash[_node] = found or bring_up(place, say, bound=True)
    except UnavailableError as error:
        session.config.stash[_impossible] = str(error)
    except HarnessError as error:
        pytest.exit(f"test cluster: {error}", returncode=pytest.ExitCode.INTERNAL_ERROR)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Takes it down, unless it was up before."""
    node = config.stash.get(_node, None)
    if node is not None and node.bound:
        node.down()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Names the tests that were left out."""
    for marker, names in config.stash.get(_left_out, {}).items():
        terminalreporter.section(f"left out, needs {NEEDS[marker]}: {len(names)}")
        for name in names:
            terminalreporter.line(name)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A whole module that is skipped is a failure too where the cluster is required."""
    report = yield
    if report.skipped and required() and HERE in collector.path.parents:
        report.outcome = "failed"
        report.longrepr = f"skipped, but ZHONGJING_REQUIRE_CLUSTER is set: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure comes with what went on in its namespaces; a skip is one where the cluster is required."""
    report = yield
    if HERE not in item.path.parents:
        return report
    if report.skipped and required() and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = (
            f"skipped, but ZHONGJING_REQUIRE_CLUSTER is set: {call.excinfo and call.excinfo.value}"
        )
    cluster = item.config.stash.get(_cluster, None)
    if report.failed and cluster is not None:
        for namespace in item.config.stash.get(_namespaces, []):
            report.sections.append((f"namespace {namespace}", kube.diagnosis(cluster, namespace)))
    return report


# ---- Fixtures


@pytest.fixture(scope="session", autouse=True)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The cluster; ``KUBECONFIG`` and ``PATH`` lead to it and to its kubectl and helm."""
    before = {name: os.environ.get(name) for name in ("KUBECONFIG", "PATH")}
    place = default_place()
    given = given_kubeconfig()
    if _impossible in request.config.stash:
        pytest.skip(f"no test cluster: {request.config.stash[_impossible]}")
    node = request.config.stash.get(_node, None)
    path = [str(place.bin)] if place.bin.is_dir() else []
    os.environ["PATH"] = os.pathsep.join([*path, os.environ.get("PATH", os.defpath)])
    os.environ["KUBECONFIG"] = str(given or place.kubeconfig)
    image, _, tag = os.environ.get("ZHONGJING_TEST_IMAGE", f"zhongjing:{version()}").rpartition(":")
    made = Cluster(given or place.kubeconfig, image, tag, node)
    request.config.stash[_cluster] = made
    try:
        yield made
    finally:
        del request.config.stash[_cluster]
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@pytest.fixture(scope="session")
def node(cluster: Cluster) -> Node:
    """The cluster's own node, for tests that stop parts of it."""
    if cluster.node is None:
        pytest.skip("the cluster of ZHONGJING_TEST_KUBECONFIG is not the test's to take apart")
    return cluster.node


def _new_namespace(request: pytest.FixtureRequest, cluster: Cluster, part: str) -> Iterator[str]:
    known = request.config.stash.setdefault(_namespaces, [])
    with cluster.namespace(part) as name:
        known.append(name)
        try:
            yield name
        finally:
            known.remove(name)


@pytest.fixture
def namespace(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[str]:
    """A namespace of the test's own at the restricted Pod Security level."""
    yield from _new_namespace(request, cluster, "test")


@pytest.fixture(scope="module")
def module_namespace(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[str]:
    """A namespace that the tests of a module share."""
    yield from _new_namespace(request, cluster, "module")


@pytest.fixture
def release(cluster: Cluster, namespace: str) -> Iterator[Callable[..., Release]]:
    """Installs the chart in the test's namespace: ``release(values, name=..., files=...)``."""
    with ExitStack() as stack:

        def install(values: Mapping[str, Any] | None = None, **options: Any) -> Release:
            return stack.enter_context(kube.installed(cluster, namespace, values, **options))

        yield install


@pytest.fixture(scope="session")
def kuberay_crd_file() -> Path:
    """KubeRay's definition of RayClusters."""
    given = os.environ.get("ZHONGJING_KUBERAY_CRD")
    if not given:
        pytest.skip("ZHONGJING_KUBERAY_CRD names no file")
    return Path(given)


def _is_served(cluster: Cluster) -> bool:
    # `kubectl wait` fails where there is no condition yet.
    conditions = cluster.get("crd/rayclusters.ray.io").get("status", {}).get("conditions") or []
    return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)


@pytest.fixture(scope="module")
def kuberay_crd(cluster: Cluster, kuberay_crd_file: Path) -> Iterator[None]:
    """The cluster serves RayClusters while a module's tests run; nobody acts on them.

    No longer than that: ``ray.provisioner: auto`` looks for it.
    """
    # Too large for an annotation: only server-side apply takes it.
    cluster.kubectl("apply", "--server-side", "--filename", str(kuberay_crd_file))
    try:
        cluster.until(lambda: _is_served(cluster), "RayClusters are served", seconds=30)
        yield
    finally:
        cluster.kubectl("delete", "--filename", str(kuberay_crd_file), "--wait", "--timeout", "60s")


def _watched_only(kind: str) -> dict[str, Any]:
    """A definition under which the operator can watch a kind that nobody here makes."""
    plural = f"{kind.lower()}s"
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": anything}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.ray.io"},
        "spec": {
            "group": "ray.io",
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"},
            "versions": [{**version, "subresources": {"status": {}}}],
        },
    }


@pytest.fixture(scope="module")
def kuberay_operator(
    kuberay_crd: None, cluster: Cluster, node: Node, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """KubeRay acts on RayClusters while a module's tests run; its binary is brought from elsewhere."""
    given = os.environ.get("ZHONGJING_KUBERAY_OPERATOR")
    if not given:
        pytest.skip("ZHONGJING_KUBERAY_OPERATOR names no binary")
    # The operator ends after two minutes in which one of its kinds is not served.
    others = tmp_path_factory.mktemp("kuberay") / "others.json"
    items = [_watched_only("RayJob"), _watched_only("RayService")]
    others.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    cluster.kubectl("apply", "--server-side", "--filename", str(others))
    command = [given, "--kubeconfig", str(cluster.kubeconfig), "--enable-leader-election=false"]
    command += ["--metrics-addr", "127.0.0.1:18080", "--health-probe-bind-address", "127.0.0.1:18081"]
    operator = node.process("kuberay-operator", command)
    operator.start()
    try:
        cluster.until(lambda: operator.check() and operator.find(), "KubeRay's operator starts")
        yield
    finally:
        operator.stop()
        cluster.kubectl("delete", "--filename", str(others), "--wait", "--timeout", "60s")
