"""A port of this machine that leads to a pod, through the API server: what ``kubectl port-forward`` does.

One connection here is one WebSocket to the API server and one connection in the pod. The pod is looked up
anew when it cannot be reached any more, so a forward outlives the restart of its pod: connections break, the
next ones reach the new pod.

Of the protocol ``v4.channel.k8s.io`` each message begins with a channel: 0 carries the data, 1 what went
wrong. The first message on each channel is the port's number.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

from zhongjing.backends.kubernetes.api import CONNECT_SECONDS, KubeApi
from zhongjing.backends.kubernetes.failures import forbidden, unreachable
from zhongjing.backends.kubernetes.pod_diagnosis import about_pod
from zhongjing.backends.kubernetes.resources import PODS, SERVICES, Object
from zhongjing.backends.kubernetes.workloads import is_ready
from zhongjing.codes import cluster as codes
from zhongjing.errors import BackendError, BackendUnavailableError, TransientError

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")

_PROTOCOL = "v4.channel.k8s.io"
_GOODBYE_SECONDS = 0.1
_CHUNK_BYTES = 2**18  # measured: 51 MB/s up and 126 MB/s down over TLS on two busy cores
_DIAL_SECONDS = 15.0
_DATA, _ERROR = 0, 1


@dataclass(frozen=True)
class Target:
    """A port of a pod."""

    namespace: str
    pod: str
    port: int


class Forward:
    """Forwards a free port of the loopback interface to a port of a service. A context manager.

    Args:
        service: name of the service; one of its ready pods is taken.
        namespace: of the service; None: that of ``api``.
    """

    def __init__(self, api: KubeApi, service: str, port: int, *, namespace: str | None = None) -> None:
        self._api = api
        self._service = service
        self._service_port = port
        self._namespace = namespace or api.namespace
        self._target: Target | None = None
        self.failure: BackendError | None = None
        """Why the last connection could not be made, None when it could."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._session: aiohttp.ClientSession | None = None
        self._server: asyncio.Server | None = None
        self._bridges: set[asyncio.Task[None]] = set()
        self._port: int | None = None

    @property
    def port(self) -> int:
        """The port of this machine."""
        assert self._port is not None, "the forward is not open"
        return self._port

    @property
    def url(self) -> str:
        """``http://127.0.0.1:<port>``."""
        return f"http://127.0.0.1:{self.port}"

    def open(self, port: int = 0) -> Self:
        """Begins to listen, once a connection to the pod has been tried.

        Args:
            port: of this machine; 0: any that is free.

        Raises:
            BackendError: there is no such service, none of its pods is ready, or this user may not forward.
            OSError: the port is taken.
        """
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="port-forward", daemon=True)
        self._thread.start()
        try:
            self._do(self._start(port))
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Ends the forward and all its connections."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        self._loop = None
        asyncio.run_coroutine_threadsafe(self._end(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *details: object) -> None:
        self.close()

    # In the thread of the loop

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result()

    async def _start(self, port: int) -> None:
        import aiohttp

        # The requests are as many as there are connections here: who connects decides.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", port, limit=_CHUNK_BYTES)
        socket = await self._dial()
        await socket.close()
        self._port = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        if self._server is not None:
            self._server.close()
        bridges = list(self._bridges)
        for bridge in bridges:
            bridge.cancel()
        await asyncio.gather(*bridges, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            # aiohttp does not wait for TLS connections that were closed before: they still say goodbye.
            await asyncio.sleep(_GOODBYE_SECONDS)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bridge = asyncio.get_running_loop().create_task(self._bridge(reader, writer))
        self._bridges.add(bridge)
        bridge.add_done_callback(self._bridges.discard)

    async def _bridge(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side ends it."""
        try:
            try:
                socket = await self._dial()
            except BackendError as error:
                self.failure = error
                return
            self.failure = None
            try:
                ways = [
                    asyncio.create_task(_upwards(reader, socket)),
                    asyncio.create_task(self._downwards(socket, writer)),
                ]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
            finally:
                await socket.close()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _downwards(self, socket: aiohttp.ClientWebSocketResponse, writer: asyncio.StreamWriter) -> None:
        """From the pod to here."""
        import aiohttp

        begun: set[int] = set()
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.BINARY or not message.data:
                continue
            channel = message.data[0]
            if channel not in begun:
                begun.add(channel)  # the port's number
            elif channel == _DATA:
                writer.write(memoryview(message.data)[1:])
                await writer.drain()
            elif channel == _ERROR:
                text = bytes(message.data[1:]).decode(errors="replace").strip()
                self.failure = BackendUnavailableError(
                    f"the pod does not take the connection: {text}",
                    code=codes.POD_NOT_READY,
                    where=self._place,
                )
                return

    async def _dial(self) -> aiohttp.ClientWebSocketResponse:
        """A connection to the pod; to another one of the service when the last one is gone."""
        known = self._target
        if known is not None:
            try:
                return await self._connect(known)
            except TransientError:
                self._target = None
        target = await asyncio.to_thread(self._find)
        socket = await self._connect(target)
        self._target = target
        return socket

    async def _connect(self, target: Target) -> aiohttp.ClientWebSocketResponse:
        import aiohttp

        assert self._session is not None
        path = f"{PODS.path(target.namespace, target.pod, 'portforward')}?ports={target.port}"
        options = await asyncio.to_thread(self._options, path)
        url = "ws" + self._api.address.removeprefix("http") + path
        try:
            async with asyncio.timeout(_DIAL_SECONDS):
                socket: aiohttp.ClientWebSocketResponse = await self._session.ws_connect(
                    url, protocols=(_PROTOCOL,), max_msg_size=0, **options
                )
                return socket
        except aiohttp.WSServerHandshakeError as error:
            raise self._refused(error.status, error.message, target) from None  # its headers have the token
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise unreachable(str(error) or type(error).__name__, self._api.address) from None

    def _options(self, path: str) -> dict[str, Any]:
        """How to connect to the API server: headers, certificates, proxy."""
        from kubernetes.client.rest import is_socks_proxy_url, should_bypass_proxies
        from kubernetes.config.config_exception import ConfigException

        client, configuration = self._api.client, self._api.client.configuration
        headers = {"User-Agent": client.user_agent}
        try:
            client.update_params_for_auth(headers, [], ["BearerToken"], path, "GET", None)
        except ConfigException as error:
            raise BackendError(str(error), code=codes.NOT_LOGGED_IN) from error
        options: dict[str, Any] = {"headers": headers}
        if self._api.address.startswith("https"):
            options["ssl"] = _tls(configuration)
            if configuration.tls_server_name:
                options["server_hostname"] = configuration.tls_server_name
        proxy = configuration.proxy
        if proxy and not should_bypass_proxies(self._api.address, configuration.no_proxy or ""):
            if is_socks_proxy_url(proxy):
                raise BackendError(
                    "ports cannot be forwarded through a SOCKS proxy",
                    code=codes.INVALID_KUBECONFIG,
                    where=self._api.address,
                    remedy="use an HTTP proxy, or run the command where the API server needs none",
                )
            options |= {"proxy": proxy, "proxy_headers": configuration.proxy_headers}
        return options

    def _refused(self, status: int, message: str, target: Target) -> BackendError:
        place = f"{target.namespace}/pods/{target.pod}/portforward"
        if status == 401:
            return BackendError("the API refuses the credentials", code=codes.NOT_LOGGED_IN)
        if status == 403:
            verbs = "get and create"
            return forbidden("create", "pods/portforward", target.namespace, place, needed=verbs)
        return BackendUnavailableError(
            f"the API answers {status} to a port-forward: {message}", code=codes.POD_NOT_READY, where=place
        )

    # Which pod

    @property
    def _place(self) -> str:
        return f"{self._namespace}/services/{self._service}"

    def _find(self) -> Target:
        """A ready pod of the service.

        Raises:
            BackendError: there is no such service, or none of its pods is ready.
        """
        service = self._api.get(SERVICES, self._service, namespace=self._namespace)
        if service is None:
            raise BackendError(
                "there is no such service",
                code=codes.POD_NOT_READY,
                where=self._place,
                remedy="the release is being installed or removed; see `helm list`, `kubectl get pods`",
            )
        spec = service.get("spec") or {}
        labels = ",".join(f"{key}={value}" for key, value in sorted((spec.get("selector") or {}).items()))
        pods = self._api.find(PODS, labels=labels, namespace=self._namespace).items
        ready = [pod for pod in pods if is_ready(pod)]
        if not ready:
            found = [about_pod(pod, (), time.time()) for pod in pods[:3]]
            why = "; ".join(str(each) for each in found if each is not None) or "it has none"
            raise BackendUnavailableError(
                f"no pod of the service is ready: {why}",
                code=codes.POD_NOT_READY,
                where=self._place,
                remedy=f"see: `kubectl get pods -n {self._namespace} -l {labels}`",
            )
        pod = min(ready, key=lambda each: str(each["metadata"]["name"]))
        return Target(self._namespace, str(pod["metadata"]["name"]), _port_of(spec, self._service_port, pod))


async def _upwards(reader: asyncio.StreamReader, socket: aiohttp.ClientWebSocketResponse) -> None:
    """From here to the pod."""
    prefix = bytes([_DATA])
    while data := await reader.read(_CHUNK_BYTES):
        await socket.send_bytes(prefix + data)


def _tls(configuration: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(
        cafile=configuration.ssl_ca_cert, cadata=configuration.ca_cert_data or None
    )
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif configuration.assert_hostname is False:
        context.check_hostname = False
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    return context


def _port_of(service: Object, port: int, pod: Object) -> int:
    """The port of the pod that a port of its service stands for."""
    entry = next((each for each in service.get("ports") or [] if each.get("port") == port), None)
    target = (entry or {}).get("targetPort", port)
    if isinstance(target, int):
        return target
    for container in (pod.get("spec") or {}).get("containers") or []:
        for each in container.get("ports") or []:
            if each.get("name") == target:
                return int(each["containerPort"])
    return port
