"""A small S3 server with bad manners: answers that the real one gives only in its worst moments."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar, NamedTuple

import pytest

from zhongjing.config.sources import Storage
from zhongjing.storage.objects import ObjectStore, open_store


class Answer(NamedTuple):
    """What a store says, with its body as it is; an answer to HEAD has none."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


class RudeServer(ThreadingHTTPServer):
    """Objects in memory. Attributes script its manners; signatures are not checked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.statuses: deque[int] = deque()  # answered first, one a request
        self.always: Answer | None = None  # what every request is answered
        self.cut_bodies = 0  # so many GETs end after half of their body
        self.lost_answers = 0  # so many PUTs are carried out, but the connection closes without an answer
        self.honours_conditions = True
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, If-None-Match
        self.headers: list[Message] = []  # of the same requests

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: RudeServer
    protocol_version = "HTTP/1.1"
    codes: ClassVar[dict[int, str]] = {403: "AccessDenied", 404: "NoSuchKey", 412: "PreconditionFailed"}

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(
        self,
        status: int,
        body: bytes = b"",
        etag: str | None = None,
        length: int = -1,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        if status >= 400 and not body and self.command != "HEAD":
            body = f"<Error><Code>{self.codes.get(status, 'InternalError')}</Code></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length < 0 else length))
        self.send_header("Last-Modified", "Sun, 22 Nov 2026 20:00:00 GMT")
        if etag is not None:
            self.send_header("ETag", etag)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _scripted(self) -> bool:
        self.server.requests.append((self.command, self.path, self.headers.get("If-None-Match")))
        self.server.headers.append(self.headers)
        if self.server.statuses:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer(self.server.statuses.popleft())
            return True
        if self.server.always is not None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, body, headers = self.server.always
            self._answer(status, body, headers=headers)
            return True
        return False

    def do_GET(self) -> None:
        if self._scripted():
            return
        data = self.server.objects.get(self.path)
        if data is None:
            self._answer(404)
        elif self.command == "GET" and self.server.cut_bodies > 0:
            self.server.cut_bodies -= 1
            self._answer(200, data[: len(data) // 2], _etag(data), length=len(data))
            self.close_connection = True
        else:
            self._answer(200, data, _etag(data), length=len(data))

    do_HEAD = do_GET  # noqa: N815 - the base class looks for this name

    def do_PUT(self) -> None:
        if self._scripted():
            return
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        old = self.server.objects.get(self.path)
        match, none_match = self.headers.get("If-Match"), self.headers.get("If-None-Match")
        if self.server.honours_conditions and (
            (none_match is not None and old is not None)
            or (match is not None and (old is None or _etag(old) != match))
        ):
            self._answer(412)
            return
        self.server.objects[self.path] = data
        if self.server.lost_answers > 0:
            self.server.lost_answers -= 1
            self.close_connection = True
            return
        self._answer(200, etag=_etag(data))

    def do_POST(self) -> None:
        """DeleteObjects: the only POST that is sent here."""
        if self._scripted():
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        bucket = self.path.partition("?")[0].rstrip("/")
        keys = [part.partition("</Key>")[0] for part in body.split("<Key>")[1:]]
        for key in keys:
            self.server.objects.pop(f"{bucket}/{key}", None)
        deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        self._answer(200, f"<DeleteResult>{deleted}</DeleteResult>".encode())


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


@pytest.fixture
def rude_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RudeServer]:
    """A rude server; its address and keys of no worth are in the environment."""
    with RudeServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-test")
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def rude_store(rude_server: RudeServer) -> ObjectStore:
    """A store on the rude server, with a deadline of three seconds."""
    return open_store(Storage(uri="s3://rude-bucket", deadline_seconds=3))
