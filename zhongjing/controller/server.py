"""Health and metrics over HTTP: ``/healthz``, ``/readyz`` and ``/metrics``."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import ThreadingHTTPServer

from prometheus_client import CollectorRegistry, MetricsHandler

Check = Callable[[], str | None]
"""What is wrong, in words; None where nothing is."""


class HealthServer:
    """Answers until it is closed.

    Args:
        port: to listen on, at all addresses; 0: any free one.
        healthy: whether the process should live on.
        ready: whether it does its work.
        metrics: what Prometheus reads.
    """

    def __init__(self, port: int, *, healthy: Check, ready: Check, metrics: CollectorRegistry) -> None:
        checks = {"/healthz": healthy, "/readyz": ready}

        class Handler(MetricsHandler):
            registry = metrics

            def do_GET(self) -> None:  # noqa: N802 - http.server's name
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    super().do_GET()
                elif path in checks:
                    wrong = checks[path]()
                    self._answer(200 if wrong is None else 503, wrong or "ok")
                else:
                    self._answer(404, "there is /healthz, /readyz and /metrics")

            def _answer(self, status: int, text: str) -> None:
                body = f"{text}\n".encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/plain; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("", port), Handler)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def close(self) -> None:
        """Ends."""
        self._server.shutdown()
        self._server.server_close()
