"""Health and metrics over HTTP: ``/healthz``, ``/readyz`` and ``/metrics``."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Check = Callable[[], str | None]
"""What is wrong, in words; None where nothing is."""


class HealthServer:
    """Answers until it is closed.

    Args:
        port: to listen on; 0: any free one.
        healthy: whether the process should live on.
        ready: whether it does its work.
        metrics: text for Prometheus.
        host: address to listen on; empty: all.
    """

    def __init__(
        self, port: int, *, healthy: Check, ready: Check, metrics: Callable[[], bytes], host: str = ""
    ) -> None:
        checks = {"/healthz": healthy, "/readyz": ready}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    self._answer(200, metrics(), "text/plain; version=0.0.4; charset=utf-8")
                elif path in checks:
                    wrong = checks[path]()
                    self._answer(200 if wrong is None else 503, (wrong or "ok").encode() + b"\n")
                else:
                    self._answer(404, b"there is /healthz, /readyz and /metrics\n")

            def _answer(self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Probes come every few seconds: they are not logged."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def close(self) -> None:
        """Ends."""
        self._server.shutdown()
        self._server.server_close()
