"""Where a command of data construction works: on a release on a cluster, here, or here on another store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from zhongjing.cli import construction
from zhongjing.cli.construction import Endpoint
from zhongjing.cli.options import KubeContext, Local, Namespace, Release, Workdir
from zhongjing.cli.target import ClusterTarget, choose
from zhongjing.codes.command import INVALID_OPTION
from zhongjing.errors import ConfigError

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore


@dataclass(frozen=True)
class StoreOptions:
    """Options of a command (see ``spread``) that works on this machine alone: which store it works on."""

    local: Local = False
    workdir: Workdir = None
    endpoint: Endpoint = None

    @contextmanager
    def opened_here(self, *, create: bool) -> Iterator[ObjectStore]:
        """The object store, which lives while the block runs; as :func:`construction.store_of`."""
        with construction.store_of(
            local=self.local, workdir=self.workdir, endpoint=self.endpoint, create=create
        ) as store:
            yield store


@dataclass(frozen=True)
class PlaceOptions(StoreOptions):
    """Options of a command (see ``spread``): a cluster unless this machine or a store is named."""

    namespace: Namespace = None
    context: KubeContext = None
    release: Release = None
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Clusters: submit and leave; `status --watch` follows.")
    ] = False

    @property
    def cluster(self) -> ClusterTarget | None:
        """The release that the work is done on; None: this machine does it.

        Raises:
            ConfigError: options that contradict each other.
            BackendError: there is no cluster.
        """
        if self.endpoint is not None and (self.namespace or self.context or self.release):
            raise ConfigError(
                "--endpoint is for work on this machine; the other options name a cluster",
                code=INVALID_OPTION,
                remedy="leave one of them out",
            )
        if self.endpoint is not None:
            return None
        target = choose(
            local=self.local or self.workdir is not None,
            workdir=self.workdir,
            namespace=self.namespace,
            context=self.context,
            release=self.release,
            strict=True,
        )
        return target if isinstance(target, ClusterTarget) else None

    @contextmanager
    def opened(self, *, create: bool) -> Iterator[ObjectStore]:
        """The object store of the place, which lives while the block runs.

        Args:
            create: make the work directory where there is none.

        Raises:
            ConfigError, BackendError: it cannot be used or reached.
        """
        cluster = self.cluster
        if cluster is not None:
            with cluster.open() as session:
                yield session.store
            return
        with self.opened_here(create=create) as store:
            yield store
