"""Whether programs of this machine reach each other: ports of 127.0.0.1, names, proxies."""

from __future__ import annotations

import random
import socket
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from zhongjing.cli.diagnosis.finding import Finding, fine, lacks, warn
from zhongjing.cli.diagnosis.situation import Situation
from zhongjing.codes import machine
from zhongjing.storage.embedded import GRPC_OFFSET, PORTS

# Ray's ports are chosen from 22100 to 31900 (zhongjing.backends.local.processes.free_ports), the S3 server's
# from PORTS, each with its gRPC port GRPC_OFFSET above.
RANGE = range(PORTS.start, PORTS.stop + GRPC_OFFSET)
NEEDED = 24  # ports: of Ray, of the S3 server, and some to choose from
TRIED = 200
SLOW_SECONDS = 2.0
_PROXIES = ("http_proxy", "all_proxy")


@dataclass(frozen=True, slots=True)
class Facts:
    """Ports of the loopback.

    Attributes:
        free: how many of the ``tried`` ports can be bound.
        tried: how many were tried.
        talk: what a connection to one of them met; none when it worked.
        dealt: the range from which the kernel deals ports to connections.
    """

    free: int
    tried: int
    talk: str | None
    dealt: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Names:
    """What names stand for.

    Attributes:
        localhost: addresses of ``localhost``; empty where it is not resolved.
        host: the machine's own name.
        addresses: addresses of ``host``.
        seconds: how long both look-ups took.
    """

    localhost: tuple[str, ...]
    host: str
    addresses: tuple[str, ...]
    seconds: float


def check_ports(situation: Situation) -> Iterable[Finding]:
    """Tries ports of the ranges that local runs use."""
    yield judge(gather(), local=situation.local)


def check_names(situation: Situation) -> Iterable[Finding]:
    """Looks names up."""
    yield judge_names(gather_names())


def check_proxy(situation: Situation) -> Iterable[Finding]:
    """Looks at the proxy variables."""
    yield judge_proxy(situation.environment)


def gather() -> Facts:
    """Binds some ports, and speaks through one."""
    chosen = random.SystemRandom().sample(RANGE, TRIED)
    free = [port for port in chosen if _binds(port)]
    return Facts(len(free), len(chosen), _talk(free[0]) if free else None, _dealt())


def _binds(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _talk(port: int) -> str | None:
    try:
        with socket.create_server(("127.0.0.1", port)) as server:
            server.settimeout(2.0)
            with socket.create_connection(("127.0.0.1", port), timeout=2.0) as client:
                there, _ = server.accept()
                with there:
                    client.sendall(b"?")
                    there.settimeout(2.0)
                    return None if there.recv(1) == b"?" else "nothing arrived"
    except OSError as error:
        return error.strerror or str(error)


def _dealt() -> tuple[int, int] | None:
    try:
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return int(low), int(high)


def judge(facts: Facts, *, local: bool) -> Finding:
    """Free ports that carry a connection."""
    about = (
        f"{facts.free} of {facts.tried} tried of 127.0.0.1:{RANGE.start}-{RANGE.stop - 1} can be listened on"
    )
    if facts.free < NEEDED:
        return lacks("ports", about, machine.LOOPBACK_BLOCKED, serious=local)
    if facts.talk is not None:
        said = f"{about}, but a connection to one fails ({facts.talk})"
        return lacks("ports", said, machine.LOOPBACK_BLOCKED, serious=local)
    if facts.dealt is not None and facts.dealt[0] < RANGE.stop:
        return warn(
            "ports",
            f"{about}; the kernel deals them to connections too (from {facts.dealt[0]} on), so a server may "
            "find its port taken",
            machine.LOOPBACK_BLOCKED,
            "sysctl -w net.ipv4.ip_local_port_range='32768 60999'",
        )
    return fine("ports", about)


def gather_names() -> Names:
    """Asks the resolver."""
    began = time.monotonic()
    host = socket.gethostname()
    return Names(_addresses("localhost"), host, _addresses(host), time.monotonic() - began)


def _addresses(name: str) -> tuple[str, ...]:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return ()
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


def judge_names(names: Names) -> Finding:
    """Localhost is the loopback, and names are found at once."""
    about = f"localhost is {' and '.join(names.localhost) or 'not resolved'}"
    about += f", {names.host} is {' and '.join(names.addresses) or 'not resolved'} ({names.seconds:.2f} s)"
    if "127.0.0.1" not in names.localhost or any(
        not (address.startswith("127.") or address == "::1") for address in names.localhost
    ):
        return warn("names", about, machine.NAMES_UNRESOLVED)
    if names.seconds > SLOW_SECONDS:
        return warn("names", f"{about}: each process waits so long as it starts", machine.NAMES_UNRESOLVED)
    # A machine without a name of its own works: gloo then takes the loopback.
    return fine("names", about)


def judge_proxy(environment: Mapping[str, str]) -> Finding:
    """Requests to 127.0.0.1 pass by the proxy."""
    lowered = {name.lower(): value for name, value in environment.items() if value}
    proxies = {name: lowered[name] for name in _PROXIES if name in lowered}
    if not proxies:
        return fine("proxy", "none is set for plain HTTP")
    hosts = ", ".join(f"{name}={_host(value)}" for name, value in proxies.items())
    excepted = {"no": lowered.get("no_proxy", "")}
    missed = [
        name
        for name in ("127.0.0.1", "localhost")
        if not urllib.request.proxy_bypass_environment(name, excepted)  # type: ignore[attr-defined]
    ]
    if missed:
        # Local runs add the exception for themselves; curl, the ray command and others do not.
        return warn(
            "proxy", f"{hosts} also gets requests to {' and '.join(missed)}", machine.PROXY_IN_THE_WAY
        )
    return fine("proxy", f"{hosts}, except for 127.0.0.1 and localhost")


def _host(proxy: str) -> str:
    """Host and port alone: a proxy's address may hold a password."""
    try:
        parts = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
    except ValueError:
        return "(unreadable)"
