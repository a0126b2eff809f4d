"""What a store's answer means: its own words, the error of ours, and a remedy that helps.

Codes and words are those of AWS (Amazon S3 API reference, "Error responses") and of the stores beside it:
MinIO (``cmd/api-errors.go``: XMinioStorageFull with 507, XMinioAdminBucketQuotaExceeded with 400), Ceph RGW
(QuotaExceeded with 403), Alibaba OSS (SecondLevelDomainForbidden) and Tencent COS
(PathStyleDomainForbidden), which take no bucket in the path.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

from zhongjing.codes import Code
from zhongjing.codes import storage as codes
from zhongjing.errors import (
    ConfigError,
    ConflictError,
    CredentialsError,
    NotFoundError,
    StorageError,
    StorageUnavailableError,
    ZhongjingError,
)
from zhongjing.storage.connection import Connection, split_uri

WORDS = 200  # characters of a store's own words that are repeated

_STATUS = re.compile(r"(?:status code: |^HTTP )(\d{3})")  # the clients', our own
_BODY = re.compile(r"status code: \d{3}[^:\n]*: *(.*)", re.DOTALL)
_REGION = re.compile(r"<Region>([\w-]+)</Region>|expecting '([\w-]+)'")
_TAG = re.compile(r"<(script|style|head)\b.*?</\1>|<[^>]+>", re.DOTALL | re.IGNORECASE)
_NO_LOCATION = "redirect without LOCATION"  # obstore's words for a 301 without an address
_CERTIFICATE = re.compile(r"InvalidCertificate\((?:\s*Other\(\s*OtherError\()?\s*(\w+)")
_DISTRUST = "SSL validation failed for "  # botocore's words, before the URL
_NO_TLS = "InvalidContentType"  # rustls: what answers speaks no TLS

_KEY_CODES = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidClientTokenId"}
)
# Other keys may be taken where these were answered.
ROTATION_CODES = _KEY_CODES | {"ExpiredToken"}
# AWS answers some of these with 400.
REFUSAL_CODES = _KEY_CODES | {"AccessDenied", "ExpiredToken", "RequestTimeTooSkewed"}
_REGION_CODES = frozenset(
    {
        "PermanentRedirect",
        "AuthorizationHeaderMalformed",
        "TemporaryRedirect",
        "IllegalLocationConstraintException",
    }
)
_STYLE_CODES = frozenset({"SecondLevelDomainForbidden", "PathStyleDomainForbidden"})
_FULL_CODES = frozenset({"QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "XMinioStorageFull"})
# Client errors that pass by themselves: request timeout, too early, too many requests.
_PASSING_STATUS = frozenset({408, 425, 429})
# Server errors that do not: not implemented, and no room.
_LASTING_STATUS = frozenset({501, 505, 507})
_TLS_PORT = ("HTTP request to an HTTPS server", "HTTP request was sent to HTTPS port")  # Go's, nginx's
_CHECKSUM_WORDS = re.compile(r"aws-chunked|checksum|STREAMING-|x-amz-sdk", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client's error says of the answer; all empty where there was none.

    Attributes:
        status: of HTTP.
        code: S3's own.
        words: the store's, in one line.
        region: where the bucket is, if the store says so.
    """

    status: int | None = None
    code: str | None = None
    words: str = ""
    region: str | None = None

    @classmethod
    def of(cls, error: Exception) -> Answer:
        """Read from the text of an obstore error."""
        text = str(error).partition("\n\nDebug source:")[0]
        found = _STATUS.search(text)
        if found is None:
            # A redirect that leads nowhere is told without its status.
            return cls(301) if _NO_LOCATION in text else cls()
        body = _BODY.search(text)
        code, message = _element("Code", text), _element("Message", text)
        region = _REGION.search(text)
        return cls(
            int(found[1]),
            code,
            one_line(message if code is not None else _without_tags(body[1] if body else "")),
            (region[1] or region[2]) if region else None,
        )

    @property
    def is_passing(self) -> bool:
        """Whether the same request may succeed in a moment: a server in trouble, or one that throttles."""
        lasts = self.status in _LASTING_STATUS or self.is_full
        return (
            self.status is not None and not lasts and (self.status >= 500 or self.status in _PASSING_STATUS)
        )

    @property
    def is_full(self) -> bool:
        """Whether the store takes no more: its disks are full, or a quota is used up."""
        return self.status == 507 or self.code in _FULL_CODES

    def __str__(self) -> str:
        name = f"HTTP {self.status}" + (f" {self.code}" if self.code else "")
        return f"{name}: {self.words}" if self.words else name


def one_line(text: str | None) -> str:
    """A store's words in one line that is no longer than it should be."""
    line = " ".join((text or "").split()).rstrip(". ")
    return line if len(line) <= WORDS else f"{line[: WORDS - 3]}..."


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a store cannot be spoken with, which no repetition changes; ``what`` has the store's name in it."""

    what: str
    code: Code
    remedy: str | None = None

    @classmethod
    def of(cls, error: Exception) -> Obstacle | None:
        """Read from a client's error: no trust, no TLS, no S3. None: it is something else."""
        text = str(error)
        if _NO_TLS in text or "WRONG_VERSION_NUMBER" in text:
            remedy = "write http:// instead of https:// in the endpoint, or give the port that speaks TLS"
            return cls("{} speaks no TLS", codes.INVALID_STORAGE, remedy)
        found, (_, distrust, why) = _CERTIFICATE.search(text), text.partition(_DISTRUST)
        if found is not None or distrust:
            why = found[1] if found else one_line(why.partition(" ")[2])
            return cls(f"the certificate of {{}} is not trusted ({why})", codes.UNTRUSTED_CERTIFICATE)
        if "ETag Header missing" in text:
            remedy = "give the port of the S3 API, not that of a console or of another server"
            return cls("{} answers, but not as an object store does", codes.INVALID_STORAGE, remedy)
        return None

    def error(self, uri: str, connection: Connection) -> ConfigError:
        """The error of ours."""
        what = self.what.format(f"the object store {connection.name}")
        return ConfigError(what, code=self.code, where=uri, remedy=self.remedy)


def translate(answer: Answer, uri: str, connection: Connection) -> ZhongjingError:
    """The error of ours that a lasting answer stands for."""
    store = f"the object store {connection.name}"
    if answer.code == "NoSuchBucket":
        return missing_bucket(uri, connection)
    if answer.status == 404:
        return NotFoundError("there is no such object", code=codes.OBJECT_NOT_FOUND, where=uri)
    if answer.status == 412:
        return ConflictError("the object was changed by another writer", code=codes.CONFLICT, where=uri)
    if answer.code in _STYLE_CODES:
        message = f"{store} takes no bucket in the path ({answer})"
        return ConfigError(message, code=codes.WRONG_ADDRESSING, where=uri)
    if answer.is_full:
        # Not repeated here, where it cannot help; what can wait until there is room may.
        return StorageUnavailableError(f"{store} is full ({answer})", code=codes.STORAGE_FULL, where=uri)
    if answer.code in _REGION_CODES or (answer.status is not None and 300 <= answer.status < 400):
        place = f"; it is in {answer.region}" if answer.region else ""
        message = f"the bucket is not in region {connection.region} of {store}{place} ({answer})"
        remedy = f"set spec.storage.region (or AWS_REGION) to {answer.region}" if answer.region else None
        return ConfigError(message, code=codes.WRONG_REGION, where=uri, remedy=remedy)
    if answer.status in (401, 403) or answer.code in REFUSAL_CODES:
        return refused(answer, uri, connection)
    if any(words in answer.words for words in _TLS_PORT):
        remedy = "write https:// instead of http:// in the endpoint"
        message = f"{store} speaks TLS ({answer})"
        return ConfigError(message, code=codes.INVALID_STORAGE, where=uri, remedy=remedy)
    checksums = answer.status == 400 and _CHECKSUM_WORDS.search(answer.words) is not None
    remedy = None
    if checksums and connection.checksums != "whenRequired":
        remedy = "set spec.storage.checksums to whenRequired: the store knows no newer ones"
    message = f"{store} refused ({answer})"
    return StorageError(message, code=codes.STORAGE_REFUSED, where=uri, remedy=remedy)


def missing_bucket(uri: str, connection: Connection) -> StorageError:
    """The error for a bucket that does not exist."""
    message = f"the bucket {split_uri(uri)[0]!r} does not exist at {connection.name}"
    return StorageError(message, code=codes.BUCKET_NOT_FOUND, where=uri)


def lacks_conditions(uri: str, said: str = "") -> StorageError:
    """The error for a store that refuses conditional writes, or ignores what they ask for."""
    does = "does not do" if said else "ignores"
    words = f": {said}" if said else ""
    message = f"this object store {does} conditional writes (If-None-Match, If-Match){words}"
    return StorageError(message, code=codes.NO_CONDITIONAL_WRITES, where=uri)


def refused(answer: Answer, uri: str, connection: Connection) -> StorageError:
    """The error for a refusal: unknown key, wrong secret, clock, or a lack of permission."""
    access, store = connection.access, f"the object store {connection.name}"
    remedy = access.keys_remedy
    if answer.code in _KEY_CODES:
        message = f"{store} does not accept these credentials ({answer})"
    elif answer.code == "ExpiredToken":
        message = f"{store} says that the session token has expired"
        remedy = remedy if access.secret else "renew AWS_SESSION_TOKEN"
    elif answer.code == "RequestTimeTooSkewed":
        message = f"this machine's clock differs too much from that of {store}"
        return StorageError(message, code=codes.CLOCK_SKEWED, where=uri)
    else:
        place = f"in the Secret {access.secret}" if access.secret else "in the environment"
        message = f"{store} refused access ({answer})"
        remedy = f"see that the credentials {place} are this store's and may read and write here"
        return StorageError(message, code=codes.ACCESS_DENIED, where=uri, remedy=remedy)
    return CredentialsError(message, code=codes.ACCESS_DENIED, where=uri, remedy=remedy)


def _element(name: str, text: str) -> str | None:
    found = re.search(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)
    return html.unescape(found[1]) if found else None


def _without_tags(text: str) -> str:
    return html.unescape(_TAG.sub(" ", text))
