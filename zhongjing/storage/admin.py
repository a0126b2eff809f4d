"""Administration of buckets: creation, stale multipart uploads. Bytes go through obstore."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal, TypeVar

import boto3
import botocore.session
from botocore.config import Config
from botocore.configprovider import ConstantProvider
from botocore.exceptions import BotoCoreError, ClientError

from zhongjing.codes import storage as codes
from zhongjing.config.sources import Storage
from zhongjing.errors import StorageError
from zhongjing.storage import failures
from zhongjing.storage.connection import Connection, split_uri
from zhongjing.storage.credentials import Access, Keys, KeySource
from zhongjing.storage.refusals import (
    ROTATION_CODES,
    Answer,
    Obstacle,
    missing_bucket,
    one_line,
    refused,
    translate,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import MultipartUploadTypeDef

T = TypeVar("T")

# An upload that has not ended after this time never will: its process is gone.
STALE_AFTER = timedelta(days=1)


class BucketAdmin:
    """Bucket administration; endpoint, region, addressing, certificates and identity are the store's.

    Every method may raise:
        StorageUnavailableError: no answer within the deadline.
        StorageError: wrong credentials or another refusal, with its remedy.
    """

    def __init__(self, storage: Storage, access: Access | None = None, *, waits: bool = True) -> None:
        self.connection = Connection.of(storage, access, waits=waits)
        self._source = KeySource(self.connection.access, self.connection.name)
        self._made: tuple[S3Client, Keys] | None = None

    @property
    def _client(self) -> S3Client:
        """A client with the keys as they are now."""
        keys = self._source.keys()
        if self._made is None or self._made[1] != keys:
            self._made = (_client(self.connection, keys), keys)
        return self._made[0]

    def ensure_bucket(self, uri: str) -> bool:
        """Creates the bucket of ``uri`` unless it exists; returns whether it was created."""
        bucket, _ = split_uri(uri)
        if self.bucket_exists(uri):
            return False
        region = self.connection.region

        def create() -> None:
            # AWS refuses a location constraint that names its first region.
            if region == "us-east-1":
                self._client.create_bucket(Bucket=bucket)
            else:
                self._client.create_bucket(
                    Bucket=bucket,
                    CreateBucketConfiguration={"LocationConstraint": region},  # type: ignore[typeddict-item]
                )

        try:
            self._run(uri, create, expected=["BucketAlreadyOwnedByYou"])
        except failures.ExpectedError:
            return False
        return True

    def bucket_exists(self, uri: str) -> bool:
        """Whether the bucket of ``uri`` is there."""
        bucket, _ = split_uri(uri)
        try:
            self._run(
                uri,
                lambda: self._client.list_objects_v2(Bucket=bucket, MaxKeys=1),
                expected=["NoSuchBucket"],
            )
        except failures.ExpectedError:
            return False
        return True

    def multipart_uploads(self, uri: str) -> list[MultipartUploadTypeDef]:
        """Unfinished multipart uploads below ``uri``."""
        bucket, prefix = split_uri(uri)

        def read() -> list[MultipartUploadTypeDef]:
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=bucket, Prefix=prefix
            )
            return [upload for page in pages for upload in page.get("Uploads", [])]

        return self._run(uri, read)

    def abort_stale_uploads(self, uri: str, older_than: timedelta = STALE_AFTER) -> int:
        """Aborts unfinished multipart uploads below ``uri``; returns how many.

        Their parts take space but show in no listing of objects.
        """
        bucket, _ = split_uri(uri)
        limit = datetime.now(UTC) - older_than
        stale = [upload for upload in self.multipart_uploads(uri) if upload["Initiated"] <= limit]
        for upload in stale:
            key, upload_id = upload["Key"], upload["UploadId"]
            self._run(
                uri,
                lambda key=key, upload_id=upload_id: self._client.abort_multipart_upload(  # type: ignore[misc]
                    Bucket=bucket, Key=key, UploadId=upload_id
                ),
            )
        return len(stale)

    def _run(self, uri: str, action: Callable[[], T], expected: Collection[str] = ()) -> T:
        def attempt() -> T:
            version = self._source.version
            try:
                result = action()
            except ClientError as error:
                code = error.response.get("Error", {}).get("Code", "")
                if code in expected:
                    self._source.accepted()
                    raise failures.ExpectedError(code) from error
                if code in ROTATION_CODES and self._source.may_recover(version):
                    self._made = None
                    refusal = refused(Answer(code=code), uri, self.connection)
                    raise failures.KeysRefusedError(code, refusal) from None
                raise _translate(error, uri, self.connection) from error
            except BotoCoreError as error:
                obstacle = Obstacle.of(error)
                if obstacle is not None:
                    raise obstacle.error(uri, self.connection) from error
                # Connections and timeouts; boto3 has a class for each.
                raise failures.PassingError(str(error)) from error
            self._source.accepted()
            return result

        return failures.call(self.connection, uri, attempt)


def _translate(error: ClientError, uri: str, connection: Connection) -> Exception:
    told, about = error.response.get("Error", {}), error.response.get("ResponseMetadata", {})
    code, status = told.get("Code", ""), about.get("HTTPStatusCode", 0)
    if code == "BucketAlreadyExists":
        return StorageError("the bucket name belongs to another account", code=codes.BUCKET_TAKEN, where=uri)
    if code == "NoSuchBucket" or (status == 404 and code in ("404", "NotFound")):
        return missing_bucket(uri, connection)
    named = told.get("Region") or about.get("HTTPHeaders", {}).get("x-amz-bucket-region")
    region = str(named) if named else None
    # Where there was no S3 error in the body, botocore makes one of the status.
    answer = Answer(status, None if code.isdigit() else code, one_line(told.get("Message")), region)
    if answer.is_passing:
        return failures.PassingError(str(answer))
    return translate(answer, uri, connection)


def _client(connection: Connection, keys: Keys) -> S3Client:
    checksums: Literal["when_supported", "when_required"] = (
        "when_supported" if connection.checksums == "whenSupported" else "when_required"
    )
    session = botocore.session.Session()
    # A profile that the environment names and no file has would be an error, and the keys are known.
    session.get_component("config_store").set_config_provider("profile", ConstantProvider(None))
    # Nor do files count that the environment names for another store: they may be unreadable.
    session.set_config_variable("credentials_file", os.devnull)
    if connection.is_local:
        session.set_config_variable("config_file", os.devnull)
    return boto3.session.Session(botocore_session=session).client(
        "s3",
        aws_access_key_id=keys.access_key,
        aws_secret_access_key=keys.secret_key,
        aws_session_token=keys.token,
        endpoint_url=connection.endpoint,
        region_name=connection.region,
        verify=connection.ca_bundle,
        config=Config(
            s3={"addressing_style": connection.addressing_style},
            request_checksum_calculation=checksums,
            response_checksum_validation=checksums,
            connect_timeout=connection.connect_seconds,
            read_timeout=connection.silence,
            proxies={} if connection.is_local else None,
            retries={"mode": "standard", "total_max_attempts": 1},  # the loop around it retries
        ),
    )
