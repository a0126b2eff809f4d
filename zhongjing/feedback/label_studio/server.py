"""Label Studio's processes on this machine, from an environment of its own: one for each person.

The community edition has no roles: all members of an organization see all its projects
(HumanSignal/label-studio, issue 2905). Organizations do not keep people apart either: in 1.23.2 users may
name another's as their own (``PATCH /api/users/<own id>``), and add annotations to any task whose number they
guess. So no two people share a server: each has a process, a database and a port, and a token is good for one
of them only.

It pins Django and much else, so it is never installed beside us. All that it knows is in one folder::

    <data>/accounts.json        addresses, passwords and tokens; readable by its owner alone
          /<person>/            Label Studio's own: label_studio.sqlite3, media/, label-studio.log
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import urllib3
from pydantic import Field

from zhongjing.codes import feedback as codes
from zhongjing.errors import BackendError, ConfigError
from zhongjing.feedback.label_studio.client import Client
from zhongjing.storage.manifest import Record

ACCOUNTS = "accounts.json"
PROCESS_BYTES = 400 << 20
"""Of one person's process; 1.23.2 takes about 370 MB."""
_START_SECONDS = 120.0  # and so much again for each further person


class Account(Record):
    """One person's server, and how they and we get in."""

    url: str
    password: str = Field(repr=False)
    token: str = Field(repr=False)


class Accounts(Record):
    """``accounts.json``."""

    people: dict[str, Account] = Field(default_factory=dict, description="by e-mail address")

    def client(self, email: str) -> Client:
        """A person's server. Raises ConfigError: there is none for them."""
        account = self.people.get(email)
        if account is None:
            raise ConfigError(
                f"{email} has no server of their own",
                code=codes.NOT_PUSHED,
                where=ACCOUNTS,
                remedy="name them in `zhongjing feedback serve --people A,B,C`",
            )
        return Client(account.url, account.token)


def read_accounts(data: Path) -> Accounts:
    """The accounts of a data folder. Raises ConfigError: it was never served from."""
    file = data / ACCOUNTS
    if not file.is_file():
        raise ConfigError(
            "no Label Studio was started with this data folder",
            code=codes.LABEL_STUDIO_UNREACHABLE,
            where=str(data),
            remedy=f"start it with: `zhongjing feedback serve --people A,B,C --data {data}`",
        )
    return Accounts.model_validate_json(file.read_bytes())


def python_of(installed: Path | None) -> Path:
    """The Python of Label Studio's environment.

    Args:
        installed: the environment's folder, or its ``label-studio``; None: the one in PATH.

    Raises:
        ConfigError: there is none.
    """
    if installed is None:
        found = shutil.which("label-studio")
        if found is None:
            raise ConfigError("label-studio is not in PATH", code=codes.LABEL_STUDIO_NOT_FOUND, where="PATH")
        installed = Path(found).resolve()
    folder = installed / "bin" if installed.is_dir() else installed.parent
    if not (folder / "label-studio").is_file():
        raise ConfigError("no Label Studio is there", code=codes.LABEL_STUDIO_NOT_FOUND, where=str(installed))
    return folder / "label-studio"


@contextlib.contextmanager
def serve(
    data: Path, people: Sequence[str], port: int, installed: Path | None = None, host: str = "127.0.0.1"
) -> Iterator[Accounts]:
    """A Label Studio for each person, running while the block does.

    Args:
        data: their folder, made where it is not there.
        people: e-mail addresses; those that were served before from this folder are served, too.
        port: where the first listens; the others follow.
        installed: as for :func:`python_of`.
        host: on which address; for people on other machines put TLS before it.

    Raises:
        ConfigError: Label Studio is not installed, or no person is named.
        BackendError: one does not start.
    """
    program = python_of(installed)
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    known = read_accounts(data).people if (data / ACCOUNTS).is_file() else {}
    named = list(dict.fromkeys([*known, *people]))
    if not named:
        raise ConfigError(
            "no person is named", code=codes.NOT_PUSHED, where="--people", remedy="name e-mail addresses"
        )
    accounts = Accounts(
        people={
            email: _account(known.get(email), f"http://{host}:{port + number}")
            for number, email in enumerate(named)
        }
    )
    _write(data, accounts)
    with contextlib.ExitStack() as stack:
        started = [
            (stack.enter_context(_process(program, data / folder_of(email), email, account)), account, email)
            for email, account in accounts.people.items()
        ]
        end = time.monotonic() + _START_SECONDS * len(started)
        for process, account, email in started:
            _await(process, account.url, data / folder_of(email) / "label-studio.log", end)
        yield accounts


def folder_of(email: str) -> str:
    """Name of a person's folder."""
    kept = "".join(each if each.isalnum() else "-" for each in email)[:40]
    return f"{kept}-{hashlib.sha256(email.encode()).hexdigest()[:6]}"


def _account(known: Account | None, url: str) -> Account:
    if known is not None:
        return known.model_copy(update={"url": url})
    return Account(url=url, password=secrets.token_urlsafe(12), token=secrets.token_hex(20))


def _write(data: Path, accounts: Accounts) -> None:
    temporary = data / f"{ACCOUNTS}.new"
    temporary.touch(mode=0o600)
    temporary.write_text(accounts.model_dump_json(indent=2) + "\n", encoding="utf-8")
    temporary.replace(data / ACCOUNTS)


@contextlib.contextmanager
def _process(program: Path, folder: Path, email: str, account: Account) -> Iterator[subprocess.Popen[bytes]]:
    folder.mkdir(exist_ok=True, mode=0o700)
    host, _, port = account.url.removeprefix("http://").rpartition(":")
    command = [str(program), "start", "--no-browser", "--port", port, "--internal-host", host]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DJANGO"))},
        # Here, so that they stand in no list of processes.
        "LABEL_STUDIO_USERNAME": email,
        "LABEL_STUDIO_PASSWORD": account.password,
        "LABEL_STUDIO_USER_TOKEN": account.token,
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder.resolve()),
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
        "LATEST_VERSION_CHECK": "false",
        "COLLECT_ANALYTICS": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
    }
    with (folder / "label-studio.log").open("ab") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await(process: subprocess.Popen[bytes], url: str, log: Path, end: float) -> None:
    http = urllib3.PoolManager(timeout=5.0, retries=False)
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            if http.request("GET", f"{url}/health").status == 200:
                return
        time.sleep(0.5)
    raise BackendError("Label Studio did not start", code=codes.LABEL_STUDIO_FAILED, where=str(log))
