"""Forwards to pods of a real cluster, and the commands that stand on them."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tests.cluster.kube import Cluster
from tests.cluster.own_namespace import own_namespace
from tests.local_support import ZHONGJING
from zhongjing.backends.kubernetes.api import KubeApi, connect
from zhongjing.backends.kubernetes.forward import Forward
from zhongjing.backends.kubernetes.resources import (
    CONFIG_MAPS,
    PODS,
    SECRETS,
    SERVICES,
    STATEFUL_SETS,
    Object,
)
from zhongjing.backends.kubernetes.session import KubernetesSession
from zhongjing.backends.local.processes import wait_until
from zhongjing.cli.app import app
from zhongjing.codes import cluster as codes
from zhongjing.errors import BackendError

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

TOKEN = "the-token-of-this-ray"
# A GET gets as many bytes as its path says, a POST the digest of its body; /die ends the process.
SERVER = f"""
import hashlib, os, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self, data, status=200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def do_GET(self):
        if self.path == "/die":
            os._exit(1)
        if self.path == "/pod":
            return self.answer(os.environ["HOSTNAME"].encode() + b" " + str(os.getpid()).encode())
        if self.path.startswith("/api"):
            good = self.headers.get("Authorization") == "Bearer {TOKEN}"
            return self.answer(b"{{}}", 404 if good else 401)
        count = int(self.path[1:])
        block = hashlib.sha256(str(count).encode()).digest() * 32768
        self.send_response(200)
        self.send_header("Content-Length", str(count))
        self.end_headers()
        for start in range(0, count, len(block)):
            self.wfile.write(block[:count - start])
    def do_POST(self):
        digest = hashlib.sha256()
        left = int(self.headers["Content-Length"])
        while left:
            data = self.rfile.read(min(left, 65536))
            digest.update(data)
            left -= len(data)
        self.answer(digest.hexdigest().encode())
    def log_message(self, *_):
        pass

ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"""


def pattern(count: int) -> bytes:
    return (hashlib.sha256(str(count).encode()).digest() * (count // 32 + 1))[:count]


def fetch(url: str, data: bytes | None = None, **headers: str) -> bytes:
    request = urllib.request.Request(url, data=data, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as answer:
        return bytes(answer.read())


def stateful_set(image: str, name: str = "server") -> Object:
    container: Object = {
        "name": "server",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", SERVER],
        "ports": [{"name": "web", "containerPort": 8080}],
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
        "env": [{"name": "HOSTNAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
    }
    spec = {
        "serviceName": name,
        "selector": {"matchLabels": {"app": name}},
        "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
        },
    }
    return {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name}, "spec": spec}


def service(name: str = "server", port: int = 80) -> Object:
    spec = {"selector": {"app": name}, "ports": [{"name": "web", "port": port, "targetPort": "web"}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def is_ready(api: KubeApi, pod: str) -> bool:
    found = api.get(PODS, pod)
    conditions = ((found or {}).get("status") or {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


@pytest.fixture(scope="module")
def api(cluster: Cluster) -> Iterator[KubeApi]:
    """A namespace with a server in it."""
    with own_namespace("forward") as found:
        found.create(STATEFUL_SETS, stateful_set(f"{cluster.image}:{cluster.tag}"))
        found.create(SERVICES, service())
        assert wait_until(lambda: is_ready(found, "server-0"), 90), found.get(PODS, "server-0")
        yield found


def test_bytes_arrive_both_ways_over_many_connections(api: KubeApi) -> None:
    with Forward(api, "server", 80) as forward:
        size = 24 * 2**20 + 5
        assert fetch(f"{forward.url}/{size}") == pattern(size)
        body = pattern(size)
        assert fetch(f"{forward.url}/x", body).decode() == hashlib.sha256(body).hexdigest()
        sizes = [1, 31, 4096, 65535, 65536, 65537, 2**20] * 6
        with ThreadPoolExecutor(16) as pool:
            got = list(pool.map(lambda count: fetch(f"{forward.url}/{count}"), sizes))
        assert got == [pattern(count) for count in sizes]
        assert forward.failure is None
        port = forward.port
    with pytest.raises(urllib.error.URLError, match="refused"):
        fetch(f"http://127.0.0.1:{port}/pod")


def test_a_forward_outlives_its_pod(api: KubeApi) -> None:
    def asked() -> bytes | None:
        try:
            return fetch(f"{forward.url}/pod")
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return None

    with Forward(api, "server", 80) as forward:
        assert fetch(f"{forward.url}/pod").startswith(b"server-0 ")
        # The process ends and is started again in the same pod.
        assert wait_until(lambda: asked() is not None, 30)
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            fetch(f"{forward.url}/die")
        assert wait_until(lambda: asked() is not None, 60)
        # The pod is made anew.
        before = api.get(PODS, "server-0")
        assert before is not None
        api.delete(PODS, "server-0", grace_seconds=0)

        def is_new() -> bool:
            pod = api.get(PODS, "server-0")
            return pod is not None and pod["metadata"]["uid"] != before["metadata"]["uid"]

        assert wait_until(is_new, 60)
        assert wait_until(lambda: asked() is not None, 90), forward.failure
        assert forward.failure is None


def test_a_server_that_goes_while_it_answers_ends_the_connection(api: KubeApi) -> None:
    with Forward(api, "server", 80) as forward:
        assert wait_until(lambda: is_ready(api, "server-0"), 60)
        with ThreadPoolExecutor(1) as pool:
            long = pool.submit(fetch, f"{forward.url}/{2**31}")
            assert not long.done()
            with pytest.raises((urllib.error.URLError, ConnectionError)):
                fetch(f"{forward.url}/die")
            with pytest.raises(Exception, match=r"IncompleteRead|reset|closed"):
                long.result(timeout=60)
    assert wait_until(lambda: is_ready(api, "server-0"), 90)


def test_what_cannot_be_forwarded_is_told_at_once(api: KubeApi, cluster: Cluster) -> None:
    with pytest.raises(BackendError) as missing:
        Forward(api, "nobody", 80).open()
    assert missing.value.code is codes.POD_NOT_READY
    assert str(missing.value).startswith(f"{api.namespace}/services/nobody: there is no such service")
    api.create(STATEFUL_SETS, stateful_set("localhost/there-is-no-such-image:1", "broken"))
    api.create(SERVICES, service("broken"))

    def waits() -> bool:
        pod = api.get(PODS, "broken-0") or {}
        states = (pod.get("status") or {}).get("containerStatuses") or []
        return any("waiting" in each["state"] and "ImagePull" in str(each["state"]) for each in states)

    assert wait_until(waits, 60)
    with pytest.raises(BackendError) as broken:
        Forward(api, "broken", 80).open()
    assert re.search(
        r"no pod of the service is ready: pod/broken-0: the image \S+ cannot be pulled", str(broken.value)
    )
    assert f"kubectl get pods -n {api.namespace} -l app=broken" in (broken.value.remedy or "")
    api.delete(STATEFUL_SETS, "broken")


def test_who_may_not_forward_is_told_what_is_missing(
    api: KubeApi, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, namespace = "reader", api.namespace
    cluster.kubectl("create", "serviceaccount", name, namespace=namespace)
    cluster.kubectl(
        "create", "role", name, "--verb=get,list", "--resource=pods,services", namespace=namespace
    )
    bound = f"--serviceaccount={namespace}:{name}"
    cluster.kubectl("create", "rolebinding", name, f"--role={name}", bound, namespace=namespace)
    token = cluster.kubectl("create", "token", name, namespace=namespace).strip()
    config = yaml.safe_load(cluster.kubectl("config", "view", "--raw", "--flatten", "--minify"))
    config["users"][0]["user"] = {"token": token}
    config["contexts"][0]["context"]["namespace"] = namespace
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    monkeypatch.setenv("KUBECONFIG", str(file))
    mine = connect()
    with pytest.raises(BackendError) as refused:
        Forward(mine, "server", 80).open()
    assert refused.value.code is codes.FORBIDDEN
    assert f"may not create pods/portforward in the namespace {namespace}" in str(refused.value)
    assert token not in str(refused.value)
    mine.close()


@pytest.fixture
def release(api: KubeApi, cluster: Cluster) -> Iterator[dict[str, Any]]:
    """A release whose Ray head is the server, as far as a dashboard goes."""
    labels = {
        "app.kubernetes.io/part-of": "zhongjing",
        "app.kubernetes.io/component": "config",
        "app.kubernetes.io/instance": "zj",
    }
    value: dict[str, Any] = {
        "release": "zj",
        "fullname": "zj-zhongjing",
        "namespace": api.namespace,
        "chartVersion": "0.1.0",
        "image": "zhongjing:0.1.0",
        "provisioner": "static",
        "ray": {
            "cluster": "zj",
            "service": "server",
            "dashboardPort": 80,
            "tokenSecret": "zj-ray-token",
            "tokenManaged": True,
            "groups": [],
            "scaling": "none",
        },
        "storage": {"bundled": True, "uri": "s3://zhongjing", "service": "server", "port": 80},
    }
    config = {"name": "zj-zhongjing-config", "labels": labels}
    data = {"release.yaml": yaml.safe_dump(value)}
    api.create(CONFIG_MAPS, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": config, "data": data})
    token = {"auth_token": TOKEN}
    api.create(
        SECRETS,
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "zj-ray-token"}, "stringData": token},
    )
    assert wait_until(lambda: is_ready(api, "server-0"), 90)
    yield value
    api.delete(CONFIG_MAPS, "zj-zhongjing-config")
    api.delete(SECRETS, "zj-ray-token")


def test_the_dashboard_is_forwarded_until_ctrl_c(
    api: KubeApi, cluster: Cluster, release: dict[str, Any], tmp_path: Path
) -> None:
    command = [*ZHONGJING, "dashboard", "-n", api.namespace]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "PYTHONUNBUFFERED": "1"}
    log = tmp_path / "said"
    with log.open("wb") as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
    try:
        assert wait_until(lambda: "Ctrl-C" in log.read_text(), 60), log.read_text()
        lines = log.read_text().splitlines()
        url = lines[0].removeprefix("Ray dashboard: ")
        assert fetch(f"{url}/pod").startswith(b"server-0")
        # The token is not printed, but the command that is, prints it.
        assert TOKEN not in log.read_text()
        shown = next(line for line in lines if line.startswith("  kubectl ")).strip()
        printed = subprocess.run(["bash", "-c", shown], capture_output=True, text=True, check=True)
        assert printed.stdout == TOKEN
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert log.read_text().splitlines()[-1] == "ended"


def test_a_token_that_ray_refuses_and_one_that_is_shown(
    api: KubeApi, release: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with KubernetesSession.open(namespace=api.namespace) as session:
        # What the server answers to the right token is Ray's word for an unknown job.
        assert session._services.live_log("nobody", follow=False) is None
    wrong = base64.b64encode(b"another").decode()
    api.patch(SECRETS, "zj-ray-token", {"data": {"auth_token": wrong}})
    with KubernetesSession.open(namespace=api.namespace) as session, pytest.raises(BackendError) as refused:
        session._services.live_log("nobody", follow=False)
    assert refused.value.code is codes.RAY_TOKEN_REFUSED
    assert refused.value.where == f"{api.namespace}/secrets/zj-ray-token"
    assert "another" not in str(refused.value)

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("zhongjing.cli.commands.dashboard.time.sleep", interrupt)
    shown = CliRunner().invoke(app, ["dashboard", "-n", api.namespace, "--show-token"])
    assert shown.exit_code == 0, shown.output
    assert "log in with the token: another" in shown.stdout
    with Forward(api, "server", 80) as taken:
        refusal = CliRunner().invoke(app, ["dashboard", "-n", api.namespace, "--port", str(taken.port)])
    assert refusal.exit_code == 2
    assert f"the port {taken.port} cannot be used" in refusal.stderr
