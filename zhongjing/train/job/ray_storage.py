"""Where Ray Train keeps what it writes about a run: a few kilobytes, of no use once the attempt is over.

``ZHONGJING_RAY_STORAGE`` names it on a cluster, in the object store that the stage uses anyway; on one
machine it is the attempt's scratch folder. Ray asks for a place that all nodes reach, and needs one only for
checkpoints, of which it is given none: its controller, beside the driver, is the only one that writes. So
where the object store cannot be used by pyarrow's own client (a proxy, a kind of credentials that it does not
know), the scratch folder does as well.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zhongjing.codes import storage as codes
from zhongjing.config.sources import Storage
from zhongjing.errors import ConfigError
from zhongjing.storage.connection import Connection, split_uri

logger = logging.getLogger(__name__)

VARIABLE = "ZHONGJING_RAY_STORAGE"
_TRIES = 4


@dataclass(frozen=True)
class RayStorage:
    """A folder for Ray Train.

    Attributes:
        filesystem: of pyarrow; it travels to the other processes, without any secret.
        path: on that file system.
        uri: what messages call it.
    """

    filesystem: Any
    path: str
    uri: str

    def remove(self, name: str) -> None:
        """Removes the folder of a run; what cannot be removed is a few kilobytes, and is left."""
        try:
            self.filesystem.delete_dir(f"{self.path}/{name}")
        except FileNotFoundError:
            return
        except OSError as error:
            logger.warning("%s/%s could not be removed: %s", self.uri, name, error)


def ray_storage(storage: Storage, scratch: Path) -> RayStorage:
    """The folder that ``ZHONGJING_RAY_STORAGE`` names, else one in the attempt's scratch folder.

    An ``s3://`` folder is reached with the stage's own settings. Keys come from where the AWS tools look for
    them, in every process anew: none is handed over.

    Args:
        storage: settings of the object store.
        scratch: the attempt's folder on this node.

    Raises:
        ConfigError: the variable names nothing that can be used.
    """
    from pyarrow import fs

    named = os.environ.get(VARIABLE)
    if not named:
        return _beside(scratch)
    if not named.startswith("s3://"):
        if not Path(named).is_absolute():
            raise ConfigError(
                f"{VARIABLE} is neither an s3:// URI nor an absolute path",
                code=codes.INVALID_STORAGE,
                where=named,
                remedy="give a folder in the object store, or one on a file system that all nodes share",
            )
        with suppress(FileExistsError):
            Path(named).mkdir(parents=True)
        return RayStorage(fs.LocalFileSystem(), named.rstrip("/"), named)
    bucket, key = split_uri(named)
    connection = Connection.of(storage)
    options: dict[str, Any] = {
        "region": connection.region,
        "force_virtual_addressing": connection.addressing_style == "virtual",
        "connect_timeout": min(5.0, connection.deadline),
        "request_timeout": connection.silence,
        "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=_TRIES),
        "background_writes": False,
    }
    if connection.endpoint is not None:
        scheme, _, host = connection.endpoint.partition("://")
        options |= {"scheme": scheme, "endpoint_override": host}
    if connection.ca_bundle is not None:
        options["tls_ca_file_path"] = connection.ca_bundle
    path = f"{bucket}/{key}".rstrip("/")
    try:
        filesystem = fs.S3FileSystem(**options)
        filesystem.create_dir(path)
    except OSError as error:
        logger.warning("Ray Train cannot use %s, and keeps its run on the head: %s", named, error)
        return _beside(scratch)
    return RayStorage(filesystem, path, named.rstrip("/"))


def _beside(scratch: Path) -> RayStorage:
    from pyarrow import fs

    folder = scratch / "ray-train"
    folder.mkdir(parents=True, exist_ok=True)
    return RayStorage(fs.LocalFileSystem(), str(folder), str(folder))
