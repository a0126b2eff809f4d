"""Leader election: of several controllers of a release, one acts.

A Lease says who leads. Its holder renews it every few seconds; who finds it unchanged for the whole duration
takes it. Clocks of different machines are never compared: each process measures, by its own monotonic clock,
for how long the Lease has not changed. A leader that could not renew stops acting before anybody may take
over, because its own time runs from before its last renewal.

This is one fence of two. The other is the resource version of every status that is written.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from datetime import UTC, datetime

from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.resources import LEASES, Object
from zhongjing.errors import ObjectConflictError, ZhongjingError
from zhongjing.pipeline.repeats import Repeats

logger = logging.getLogger(__name__)


DURATION = 15.0
"""Seconds: a Lease that has not changed for so long may be taken."""

# Parts of the duration: the leader stops so long before its end; between renewals; between looks of others.
_MARGIN, _RENEW, _RETRY = 1 / 5, 1 / 3, 2 / 15


class Election:
    """One candidate.

    Args:
        api: its requests should time out well within the duration.
        name: of the Lease.
        identity: of this process; two processes never have the same.
        duration: in seconds.
        labels: of the Lease, when it is made.
    """

    def __init__(
        self,
        api: KubeApi,
        name: str,
        identity: str,
        *,
        duration: float = DURATION,
        labels: dict[str, str] | None = None,
    ) -> None:
        self._api = api
        self._name = name
        self._identity = identity
        self._duration = duration
        self._labels = labels or {}
        self._subject = f"lease {name}"
        self._repeats = Repeats(logger)
        self._until = 0.0
        self._observed: tuple[str, float] = ("", 0.0)
        self._ending = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    @property
    def is_leader(self) -> bool:
        """Whether this process may act now."""
        return time.monotonic() < self._until

    def start(self) -> None:
        """Begins to stand for election."""
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Waits until this process leads, at most so long; whether it does."""
        with self._changed:
            self._changed.wait_for(lambda: self.is_leader or self._ending.is_set(), seconds)
        return self.is_leader

    def close(self) -> None:
        """Ends the candidacy; gives a held Lease back, so that another may lead at once."""
        self._ending.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(self._duration)
        if not self.is_leader:
            return
        self._until = 0.0
        try:
            lease = self._api.get(LEASES, self._name)
            if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _micro_time()}
                self._api.replace(LEASES, lease)
        except ZhongjingError as error:
            logger.warning("the lease could not be given back: %s", error)

    def _run(self) -> None:
        led = False
        while not self._ending.is_set():
            try:
                self._attempt()
                self._repeats.forget(self._subject)
            except ObjectConflictError:
                pass  # another candidate was faster; the next read shows which
            except ZhongjingError as error:
                self._repeats.say(self._subject, error.message)
            except Exception:
                # The thread must not die: the lease would never be renewed again.
                logger.exception("lease %s", self._name)
            leads = self.is_leader
            if leads != led:
                logger.info("this process %s", "leads" if leads else "does not lead any more")
                led = leads
                with self._changed:
                    self._changed.notify_all()
            self._ending.wait(self._duration * (_RENEW if leads else _RETRY))

    def _attempt(self) -> None:
        """Makes, takes or renews the Lease, where that is allowed."""
        # From before the request: the others count from when they see it, which is later.
        began = time.monotonic()
        lease = self._api.get(LEASES, self._name)
        if lease is None:
            self._api.create(LEASES, self._fresh())
        else:
            spec = lease.setdefault("spec", {})
            holder = spec.get("holderIdentity") or ""
            if holder != self._identity and not self._may_take(lease):
                self._until = 0.0
                return
            if holder != self._identity:
                spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + 1
                spec["acquireTime"] = _micro_time()
                logger.info("takes the lease %s over from %s", self._name, holder or "no holder")
            spec |= self._held()
            self._api.replace(LEASES, lease)
        self._until = began + self._duration * (1 - _MARGIN)

    def _may_take(self, lease: Object) -> bool:
        spec = lease["spec"]
        if not spec.get("holderIdentity"):
            return True
        mark = f"{spec['holderIdentity']} {spec.get('renewTime')} {lease['metadata']['resourceVersion']}"
        now = time.monotonic()
        if mark != self._observed[0]:
            self._observed = (mark, now)
            return False
        duration = float(spec.get("leaseDurationSeconds") or self._duration)
        return now - self._observed[1] > duration

    def _fresh(self) -> Object:
        return {
            "apiVersion": LEASES.api_version,
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._api.namespace, "labels": self._labels},
            "spec": {"acquireTime": _micro_time(), "leaseTransitions": 0, **self._held()},
        }

    def _held(self) -> Object:
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": math.ceil(self._duration),
            "renewTime": _micro_time(),
        }


def _micro_time() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
