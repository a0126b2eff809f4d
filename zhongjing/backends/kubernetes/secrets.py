"""Secrets of a release: made once where they are missing, never changed, never shown.

A template cannot make them: tools that render without a cluster would make others at every render. So the
controller does, at its start, for those that the release says are its own (``tokenManaged``,
``secretManaged``); the names are fixed, so two replicas that both try make one.

Nothing owns them, and ``helm uninstall`` does not know them: with the keys of the bundled store would go the
way to the artifacts in its volume. Who wants them gone deletes them by name.

Needs get on the Secrets by name, and create on ``secrets``; and to start Ray again list and patch on
``statefulsets`` or get and patch on ``rayclusters``, list and delete on ``pods``.
"""

from __future__ import annotations

import base64
import binascii
import configparser
import contextlib
import hashlib
import json
import logging
import secrets
from collections.abc import Callable, Mapping
from functools import partial

from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.pod_diagnosis import Finding, found
from zhongjing.backends.kubernetes.resources import PODS, SECRETS, Object
from zhongjing.backends.kubernetes.workloads import (
    COMPONENT,
    HEAD,
    INSTANCE,
    WORKER,
    end_pod,
    pod_labels,
    read_workloads,
    write,
)
from zhongjing.codes import pods as codes
from zhongjing.codes.cluster import INVALID_RELEASE, POD_NOT_READY
from zhongjing.config.pipeline import API_GROUP
from zhongjing.config.release import ReleaseConfig
from zhongjing.errors import BackendError, ObjectConflictError

logger = logging.getLogger(__name__)

TOKEN_KEY = "auth_token"  # noqa: S105
CREDENTIALS_KEY = "credentials"
IDENTITIES_KEY = "s3.json"
KEEP = f"{API_GROUP}/keep"

_PROFILE = "default"


def prepare_secrets(api: KubeApi, release: ReleaseConfig) -> list[Finding]:
    """Makes what is missing and looks at what is there, as :func:`check_secrets` does."""
    ray, storage = release.ray, release.storage
    if ray.token_managed:
        _make(api, release, ray.token_secret, "ray-head", {TOKEN_KEY: secrets.token_hex(32)})
    if storage.secret is not None and storage.secret_managed:
        _make(api, release, storage.secret, "s3", _store_keys())
    return check_secrets(api, release)


def check_secrets(api: KubeApi, release: ReleaseConfig) -> list[Finding]:
    """What is wrong with the Secrets; empty when all is well. Nothing is written, no value is told.

    It may be a Secret that the installer should have made, a key that is not in it, or credentials that do
    not fit the store's.
    """
    ray, storage = release.ray, release.storage
    findings = _check(api, ray.token_secret, {TOKEN_KEY}, _token_fault, managed=ray.token_managed)
    if storage.secret is not None:
        keys = {CREDENTIALS_KEY, IDENTITIES_KEY} if storage.bundled else {CREDENTIALS_KEY}
        fault_of = partial(_credential_fault, bundled=storage.bundled)
        findings += _check(api, storage.secret, keys, fault_of, managed=False)
    return findings


def read_secret(api: KubeApi, name: str) -> dict[str, str] | None:
    """The values of a Secret, None where there is none."""
    secret = api.get(SECRETS, name)
    return _values(secret) if secret is not None else None


def secret_value(api: KubeApi, name: str, key: str) -> str:
    """One value of a Secret.

    Raises:
        BackendError: there is no such Secret or key, or the value is no text.
    """
    secret = api.get(SECRETS, name)
    where = f"{api.namespace}/secrets/{name}"
    if secret is None or key not in (secret.get("data") or {}):
        raise BackendError(
            f"the Secret has no key {key!r}" if secret else "there is no such Secret",
            code=POD_NOT_READY,
            where=where,
            remedy="the controller makes it when it starts; see: `kubectl get pods`, `helm list`",
        )
    values = _values(secret)
    if key not in values:
        raise BackendError(f"the Secret's key {key!r} is no text", code=INVALID_RELEASE, where=where)
    return values[key]


def ray_token(api: KubeApi, release: ReleaseConfig) -> str:
    """The token of the release's Ray; raises as :func:`secret_value` does."""
    return secret_value(api, release.ray.token_secret, TOKEN_KEY).strip()


def default_profile(credentials: str) -> dict[str, str]:
    """The default profile of an AWS credentials file; empty if it has none, or is no such file."""
    # Keys may hold any character: nothing is interpolated, and nothing of the content is in an error.
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(credentials)
    except configparser.Error:
        return {}
    # ConfigParser has a default section of its own, and matches its name exactly.
    return dict(parser[_PROFILE]) if parser.has_section(_PROFILE) else {}


_WHY = {"s3": "the artifacts of the bundled store cannot be read without it", "ray-head": "Ray's token"}


def _make(api: KubeApi, release: ReleaseConfig, name: str, component: str, values: Mapping[str, str]) -> None:
    """Makes a Secret, unless there is one of that name."""
    if api.get(SECRETS, name) is not None:
        return
    body: Object = {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {
            "name": name,
            "namespace": release.namespace,
            "labels": {
                "app.kubernetes.io/name": "zhongjing",
                INSTANCE: release.release,
                COMPONENT: component,
                "app.kubernetes.io/part-of": "zhongjing",
                "app.kubernetes.io/managed-by": f"{release.fullname}-controller",
            },
            "annotations": {
                KEEP: _WHY[component],
                # No tool that finds it among what it did not install shall clear it away.
                "helm.sh/resource-policy": "keep",
                "argocd.argoproj.io/sync-options": "Prune=false,Delete=false",
                "argocd.argoproj.io/compare-options": "IgnoreExtraneous",
            },
        },
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items()},
    }
    try:
        api.create(SECRETS, body)
    except ObjectConflictError:
        return  # the other replica was faster
    logger.info("made the Secret %s", name)


def _store_keys() -> dict[str, str]:
    """Keys for the bundled store, as its clients and as its server read them."""
    access, secret = f"ZJ{secrets.token_hex(9).upper()}", secrets.token_urlsafe(30)
    lines = [f"[{_PROFILE}]", f"aws_access_key_id = {access}", f"aws_secret_access_key = {secret}", ""]
    identity = {
        "name": "zhongjing",
        "credentials": [{"accessKey": access, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    return {CREDENTIALS_KEY: "\n".join(lines), IDENTITIES_KEY: json.dumps({"identities": [identity]})}


# Checks


_Values = Mapping[str, str]


def _check(
    api: KubeApi, name: str, keys: set[str], fault_of: Callable[[_Values], str | None], *, managed: bool
) -> list[Finding]:
    place = f"secret/{name}"
    values = read_secret(api, name)
    if values is None:
        files = " ".join(f"--from-file={key}=<file>" for key in sorted(keys))
        remedy = f"`kubectl create secret generic {name} {files}`"
        return [found(codes.SECRET_INCOMPLETE, place, "does not exist", remedy=remedy, fatal=True)]
    again = f"`kubectl delete secret {name}`, and restart the controller: it makes another"
    faults: list[str | None] = [
        f"has no key {key}" for key in sorted(keys) if not values.get(key, "").strip()
    ]
    return [
        found(codes.SECRET_INCOMPLETE, place, fault, remedy=again if managed else "", fatal=True)
        for fault in faults or [fault_of(values)]
        if fault is not None
    ]


def _token_fault(values: _Values) -> str | None:
    token = values[TOKEN_KEY].strip()
    if any(character.isspace() or not character.isprintable() for character in token):
        return f"its {TOKEN_KEY} is not one word of printable characters"
    return None


def _credential_fault(values: _Values, bundled: bool) -> str | None:
    """Whether there are keys, and those of the bundled store's server are the same."""
    profile = default_profile(values[CREDENTIALS_KEY])
    if not profile:
        return f"its {CREDENTIALS_KEY} has no profile [{_PROFILE}] as the AWS tools read it"
    if not bundled:
        return None
    try:
        identities = json.loads(values[IDENTITIES_KEY])["identities"]
        known = {
            (pair["accessKey"], pair["secretKey"]) for each in identities for pair in each["credentials"]
        }
    except (ValueError, LookupError, TypeError):
        return f"its {IDENTITIES_KEY} is no list of identities as SeaweedFS reads it"
    if (profile.get("aws_access_key_id"), profile.get("aws_secret_access_key")) not in known:
        return f"the keys in its {CREDENTIALS_KEY} are not among those of its {IDENTITIES_KEY}"
    return None


def _values(secret: Object) -> dict[str, str]:
    """The values as text; what is none counts as missing."""
    values = {}
    for key, value in (secret.get("data") or {}).items():
        with contextlib.suppress(binascii.Error, UnicodeDecodeError):
            values[key] = base64.b64decode(value, validate=True).decode()
    return values


# A token that changes: Ray reads it once, when it starts. Each workload remembers the token that its pods
# were started with, as a hash in an annotation. When the Secret has another one, all pods of Ray are ended
# and made again: head and workers at the same time, because neither talks to the other in between. A running
# stage loses what it did since its last checkpoint. The pod templates stay as they are: a StatefulSet whose
# template changes makes pods that end from the old one first, and then replaces them one by one.

TOKEN_HASH = f"{API_GROUP}/token-hash"
END_SECONDS = 20  # what runs in a pod that is rolled has lost its cluster; there is nothing to wait for


class Rollout:
    """Replaces Ray's pods when the token has changed."""

    def __init__(self, api: KubeApi, release: ReleaseConfig) -> None:
        self._api = api
        self._release = release

    def follow_token(self) -> bool:
        """Looks whether the token was changed, and replaces Ray's pods if so; whether it did.

        Two requests while nothing changes. Broken off, it goes on with the next call.

        Raises:
            ObjectNotFoundError: a workload went in between.
        """
        secret = self._release.ray.token_secret
        token = (read_secret(self._api, secret) or {}).get(TOKEN_KEY, "").strip()
        if not token:
            return False
        # Salted with the place: the same token elsewhere has another hash.
        salt = f"{self._release.namespace}/{secret}/"
        current = hashlib.sha256((salt + token).encode()).hexdigest()[:16]
        workloads = read_workloads(self._api, self._release, head=True)
        known = {workload.name: workload.annotations.get(TOKEN_HASH) for workload in workloads}
        changed = any(before not in (None, current) for before in known.values())
        if changed:
            logger.info("the Secret %s has another token: Ray is started again", secret)
            for pod in self._api.find(PODS, labels=pod_labels(self._release, HEAD, WORKER)).items:
                if not pod["metadata"].get("deletionTimestamp"):
                    end_pod(self._api, pod, END_SECONDS)
        for workload in workloads:
            # Only now: broken off before, it would be done again.
            if known[workload.name] != current:
                write(self._api, workload, annotations={TOKEN_HASH: current})
        return changed
