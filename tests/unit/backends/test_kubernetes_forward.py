"""Which pod and port a forward to a service leads to, and why there is none."""

from __future__ import annotations

from typing import Any, cast

import pytest

from zhongjing.backends.kubernetes.api import Listing
from zhongjing.backends.kubernetes.forward import Forward, Target
from zhongjing.backends.kubernetes.resources import Object, Resource
from zhongjing.codes.cluster import POD_NOT_READY
from zhongjing.errors import BackendError

PULLS = {"reason": "ErrImagePull", "message": "manifest unknown"}


class Api:
    """A namespace with a service, or none, and its pods."""

    namespace = "ns"

    def __init__(self, *pods: Object, port: Object | None) -> None:
        self.pods = list(pods)
        self.port = port

    def get(self, resource: Resource, name: str, **options: Any) -> Object | None:
        return {"spec": {"selector": {"app": "s3"}, "ports": [self.port]}} if self.port else None

    def find(self, resource: Resource, **options: Any) -> Listing:
        assert options["labels"] == "app=s3"
        return Listing(self.pods, "1")


def pod(name: str, *, ready: bool) -> Object:
    container = {"name": "s3", "image": "s3:1", "state": {} if ready else {"waiting": PULLS}}
    status = {"conditions": [{"type": "Ready", "status": str(ready)}], "containerStatuses": [container]}
    spec = {"containers": [{"name": "s3", "ports": [{"name": "http", "containerPort": 9000}]}]}
    return {"metadata": {"name": name}, "spec": spec, "status": status}


@pytest.mark.parametrize(
    ("target", "port"), [({"targetPort": 8333}, 8333), ({"targetPort": "http"}, 9000), ({}, 80)]
)
def test_the_first_ready_pod_and_its_port(target: Object, port: int) -> None:
    pods = [pod("s3-2", ready=True), pod("s3-1", ready=True), pod("s3-0", ready=False)]
    api = Api(*pods, port={"port": 80, **target})
    assert Forward(cast(Any, api), "s3", 80)._find() == Target("ns", "s3-1", port)


@pytest.mark.parametrize(
    ("api", "message"),
    [
        (Api(port=None), "there is no such service"),
        (Api(port={"port": 80}), "no pod of the service is ready: it has none"),
        (
            Api(pod("s3-0", ready=False), port={"port": 80}),
            "ready: pod/s3-0: the image s3:1 cannot be pulled: manifest unknown",
        ),
    ],
    ids=["service", "pods", "ready"],
)
def test_what_is_missing_is_told(api: Api, message: str) -> None:
    with pytest.raises(BackendError) as missing:
        Forward(cast(Any, api), "s3", 80)._find()
    assert missing.value.code is POD_NOT_READY
    assert message in str(missing.value)
