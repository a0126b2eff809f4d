"""How this process reaches the object store, for steps that open it themselves.

A step is pickled into other processes, and keys must not travel with it. So each process is told once, by who
runs the construction, and steps open their store here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zhongjing.config.sources import Storage
from zhongjing.storage.credentials import Access
from zhongjing.storage.objects import open_store

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore

_given: list[Access] = []  # at most one


def reach_with(access: Access | None) -> None:
    """Has this process use that access from now on; None: what its environment says."""
    _given[:] = [] if access is None else [access]


def opened(storage: Storage) -> ObjectStore:
    """The store of these settings, with the access that this process was told.

    Raises:
        ConfigError: the endpoint or the CA bundle cannot be used.
    """
    return open_store(storage, _given[0] if _given else None)
