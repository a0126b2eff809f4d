"""Stores that refuse: told in their own words, with the remedy that helps, and not asked again in vain.

Bodies are those that the stores document: AWS (Amazon S3 API reference, "Error responses"), MinIO
(cmd/api-errors.go), Ceph RGW, Alibaba OSS and Tencent COS; plain texts are Go's net/http and nginx.
"""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from zhongjing.codes import Code
from zhongjing.codes import storage as codes
from zhongjing.config.sources import Storage
from zhongjing.errors import StorageError, TransientError, ZhongjingError
from zhongjing.storage.admin import BucketAdmin
from zhongjing.storage.objects import ObjectStore, open_store
from zhongjing.storage.refusals import WORDS, one_line

if TYPE_CHECKING:
    from tests.unit.storage.conftest import RudeServer

URI = "s3://rude-bucket/a/b.json"


class Case(NamedTuple):
    """What a store answers, and what is made of it."""

    status: int
    body: str
    code: Code
    words: str
    remedy: str
    header: tuple[tuple[str, str], ...] = ()


def xml(code: str, message: str, rest: str = "") -> str:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message>{rest}</Error>"


CASES = {
    "aws-301": Case(
        301,
        xml(
            "PermanentRedirect",
            "The bucket you are attempting to access must be addressed using the specified endpoint.",
        ),
        codes.WRONG_REGION,
        "not in region us-east-1",
        "region",
        (("x-amz-bucket-region", "cn-north-1"),),
    ),
    "aws-400-region": Case(
        400,
        xml(
            "AuthorizationHeaderMalformed",
            "The authorization header is malformed; the region 'us-east-1' is wrong; expecting 'eu-west-1'",
            "<Region>eu-west-1</Region>",
        ),
        codes.WRONG_REGION,
        "expecting 'eu-west-1'",
        "set spec.storage.region (or AWS_REGION) to eu-west-1",
    ),
    "aws-403-signature": Case(
        403,
        xml("SignatureDoesNotMatch", "The request signature we calculated does not match the signature."),
        codes.ACCESS_DENIED,
        "The request signature we calculated",
        "AWS_SECRET_ACCESS_KEY",
    ),
    "aws-403-policy": Case(
        403, xml("AccessDenied", "Access Denied"), codes.ACCESS_DENIED, "Access Denied", "read and write here"
    ),
    "oss-403-path": Case(
        403,
        xml("SecondLevelDomainForbidden", "Please use virtual hosted style to access."),
        codes.WRONG_ADDRESSING,
        "Please use virtual hosted style",
        "addressingStyle to virtual",
    ),
    "cos-403-path": Case(
        403,
        xml("PathStyleDomainForbidden", "must be addressed using COS virtual-styled domain."),
        codes.WRONG_ADDRESSING,
        "COS virtual-styled domain",
        "addressingStyle to virtual",
    ),
    "go-400-plain": Case(
        400,
        "Client sent an HTTP request to an HTTPS server.\n",
        codes.INVALID_STORAGE,
        "HTTP request to an HTTPS server",
        "https:// instead of http://",
    ),
    "nginx-400-plain": Case(
        400,
        "<html><head><title>400</title></head><body>\r\n<center>The plain HTTP request was sent to HTTPS port"
        "</center><hr><center>nginx</center></body></html>",
        codes.INVALID_STORAGE,
        "The plain HTTP request was sent to HTTPS port nginx",
        "https:// instead of http://",
    ),
    "400-chunked": Case(
        400,
        xml("InvalidArgument", "aws-chunked encoding is not supported."),
        codes.STORAGE_REFUSED,
        "aws-chunked encoding is not supported",
        "own words",
    ),
    "minio-400-quota": Case(
        400,
        xml("XMinioAdminBucketQuotaExceeded", "Bucket quota exceeded"),
        codes.STORAGE_FULL,
        "Bucket quota exceeded",
        "quota",
    ),
    "ceph-403-quota": Case(
        403, xml("QuotaExceeded", ""), codes.STORAGE_FULL, "HTTP 403 QuotaExceeded", "quota"
    ),
    "minio-507": Case(
        507,
        xml("XMinioStorageFull", "Storage backend has reached its minimum free drive threshold."),
        codes.STORAGE_FULL,
        "minimum free drive threshold",
        "Free space in the store",
    ),
    "501": Case(
        501,
        xml("NotImplemented", "A header you provided implies functionality that is not implemented"),
        codes.STORAGE_REFUSED,
        "functionality that is not implemented",
        "own words",
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("act", ["get", "put", "list", "head", "bucket"])
def test_a_refusal_has_the_stores_own_words_and_the_right_remedy(
    name: str, act: str, rude_server: RudeServer
) -> None:
    """By both clients; also where the answer, to a HEAD, has no words."""
    from tests.unit.storage.conftest import Answer

    case = CASES[name]
    rude_server.always = Answer(case.status, case.body.encode(), case.header)
    storage = Storage(uri="s3://rude-bucket", deadline_seconds=30)
    store, admin = open_store(storage), BucketAdmin(storage)
    acts: dict[str, Callable[[], object]] = {
        "get": lambda: store.get(URI),
        "put": lambda: store.put(URI, b"x"),
        "list": lambda: list(store.list("s3://rude-bucket/a")),
        "head": lambda: store.exists(URI),
        "bucket": lambda: admin.bucket_exists(URI),
    }
    with pytest.raises(ZhongjingError) as caught:
        acts[act]()
    error = caught.value
    if act == "bucket" and not case.body.startswith("<?xml"):
        assert "HTTP 400: Bad Request" in error.message, "botocore throws away a body that is no XML"
        return
    assert error.code is case.code
    assert case.remedy in error.remedy
    if not (act == "head" and case.status > 500):  # these are not asked for their reason
        assert case.words in error.message
    # The client itself repeats a 5xx twice; a HEAD's reason is asked for once.
    assert len(rude_server.requests) <= 3
    if act == "bucket" and case.header:
        assert "to cn-north-1" in error.remedy, "where the bucket is stands in the header"
    # What is full may have room again; nothing else passes by itself.
    assert isinstance(error, TransientError) == (case.code is codes.STORAGE_FULL)


def test_a_store_without_conditional_writes_is_told_so(
    rude_server: RudeServer, rude_store: ObjectStore
) -> None:
    from tests.unit.storage.conftest import Answer

    case = CASES["501"]
    rude_server.always = Answer(case.status, case.body.encode())
    for condition in ({"if_none_match": True}, {"if_match": '"etag"'}):
        rude_server.requests.clear()
        with pytest.raises(StorageError, match="functionality that is not implemented") as caught:
            rude_store.put(URI, b"x", **condition)
        assert caught.value.code is codes.NO_CONDITIONAL_WRITES
        assert len(rude_server.requests) <= 3


def test_a_console_is_no_object_store(rude_server: RudeServer, rude_store: ObjectStore) -> None:
    from tests.unit.storage.conftest import Answer

    rude_server.always = Answer(200, b"<html><body>MinIO Console</body></html>")
    with pytest.raises(ZhongjingError, match="not as an object store does") as caught:
        rude_store.put(URI, b"x")
    assert caught.value.code is codes.INVALID_STORAGE
    assert "console" in caught.value.remedy
    assert len(rude_server.requests) == 1


def test_a_stores_words_are_one_line_of_bounded_length() -> None:
    assert one_line("  a\n b.\r\n") == "a b"
    assert len(one_line("word " * 1000)) == WORDS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a certificate of its for 127.0.0.1, and one for another host."""
    folder = tmp_path_factory.mktemp("tls")

    def run(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    run("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority")
    for name, host in (("good", "IP:127.0.0.1"), ("other", "DNS:other.example")):
        run("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", "/CN=store")
        (folder / "extensions").write_text(f"subjectAltName={host}\n")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "extensions")
        run("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
    return folder


@pytest.fixture
def tls_server(rude_server: RudeServer, certificates: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    from tests.unit.storage.conftest import RudeServer

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / f"{request.param}.pem", certificates / f"{request.param}.key")
    with RudeServer() as server:
        server.objects["/rude-bucket/a/b.json"] = b"content"
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("tls_server", "trusted"), [("good", False), ("other", True)], indirect=["tls_server"]
)
def test_a_bad_certificate_is_no_outage(tls_server: str, trusted: bool, certificates: Path) -> None:
    bundle = str(certificates / "ca.pem") if trusted else None
    storage = Storage(endpoint=tls_server, ca_bundle=bundle, deadline_seconds=60)
    for act in (lambda: open_store(storage).get(URI), lambda: BucketAdmin(storage).bucket_exists(URI)):
        with pytest.raises(ZhongjingError, match="is not trusted") as caught:
            act()
        assert caught.value.code is codes.UNTRUSTED_CERTIFICATE
        assert "spec.storage.caBundle" in caught.value.remedy


@pytest.mark.parametrize("tls_server", ["good"], indirect=True)
def test_the_certificate_of_ones_own_authority_is_trusted(tls_server: str, certificates: Path) -> None:
    storage = Storage(endpoint=tls_server, ca_bundle=str(certificates / "ca.pem"), deadline_seconds=5)
    assert open_store(storage).get(URI) == b"content"


def test_a_store_without_tls_is_told_so(rude_server: RudeServer) -> None:
    rude_server.handle_error = lambda *_: None  # type: ignore[method-assign]
    storage = Storage(endpoint=rude_server.endpoint.replace("http:", "https:"), deadline_seconds=60)
    for act in (lambda: open_store(storage).get(URI), lambda: BucketAdmin(storage).bucket_exists(URI)):
        with pytest.raises(ZhongjingError, match="speaks no TLS") as caught:
            act()
        assert "http:// instead of https://" in caught.value.remedy
