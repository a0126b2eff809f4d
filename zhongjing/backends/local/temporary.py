"""Where Ray, jobs and workers write what only they need: below the workdir, and gone when Ray has ended.

A socket's path may have 107 bytes, and Ray and multiprocessing put sockets into their temporary folders; and
Ray takes a session folder of plain letters only (with others its Jobs API answers 500). Where the workdir's
path is too long or has other letters, one short folder below /tmp takes its place. Its name is noted in the
workdir before it is made, so that the next supervisor finds it after a power cut and removes it.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
from pathlib import Path

from zhongjing.storage.files import write_private

_SOCKET_BYTES = 107
# "/session_<date>_<time>_<microseconds>_<pid>/sockets/plasma_store"
_RAY_BYTES = 70
# "/pymp-xxxxxxxx/listener-xxxxxxxx", "/torch-shm-dir-XXXXXX/manager.sock", and some more to be safe
_TEMPORARY_BYTES = 45

# Neither blanks nor what a shell or a URI gives a meaning: Ray writes its folders into both.
_PLAIN = re.compile(r"[A-Za-z0-9_./+=:@,-]*")
_SHORT = Path("/tmp")  # noqa: S108
_SHORT_NAME = re.compile(r"zj-[0-9a-f]{8}")


class TemporaryFolders:
    """The folders of one workdir. One process at a time, its supervisor, may make or remove them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._note = folder / "short-folder"

    @property
    def ray(self) -> Path:
        """Ray's sockets and logs."""
        own = self.folder / "ray"
        return own if _fits(own, _RAY_BYTES) else self._short() / "ray"

    @property
    def temporary(self) -> Path:
        """``TMPDIR`` of Ray, jobs and workers."""
        own = self.folder / "tmp"
        return own if _fits(own, _TEMPORARY_BYTES) else self._short() / "tmp"

    @property
    def caches(self) -> Path:
        """Caches of libraries. They stay: the next run starts faster with them."""
        return self.folder / "home" / ".cache"

    def make(self) -> None:
        """Makes the folders, empty.

        Raises:
            OSError: they cannot be made.
        """
        self.remove()
        for folder in (self.ray, self.temporary, self.caches):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def remove(self) -> None:
        """Removes all but the caches. Nothing may run any more that uses them."""
        for folder in (self.folder / "ray", self.folder / "tmp"):
            shutil.rmtree(folder, ignore_errors=True)
        short = self._noted()
        if short is not None and _is_own_folder(short):
            shutil.rmtree(short, ignore_errors=True)
        self._note.unlink(missing_ok=True)

    def environment(self) -> dict[str, str]:
        """The variables by which programs find the folders."""
        caches = self.caches
        environment = {
            "TMPDIR": str(self.temporary),
            "XDG_CACHE_HOME": str(caches),
            "MPLCONFIGDIR": str(caches / "matplotlib"),
        }
        # Compiled kernels may have a place of the user's own that other programs share.
        for name, cache in _COMPILED.items():
            environment[name] = os.environ.get(name) or str(caches / cache)
        return environment

    def _short(self) -> Path:
        noted = self._noted()
        if noted is None:
            noted = _SHORT / f"zj-{secrets.token_hex(4)}"
            write_private(self._note, str(noted))
        # Only a folder that did not exist is surely ours.
        if not _is_own_folder(noted):
            noted.mkdir(mode=0o700)
        return noted

    def _noted(self) -> Path | None:
        try:
            path = Path(self._note.read_text())
        except (OSError, ValueError):
            return None
        return path if path.parent == _SHORT and _SHORT_NAME.fullmatch(path.name) else None


def clear_scratch(folder: Path) -> None:
    """Removes what attempts left in the scratch folder of a workdir, before it fills the disk.

    Models that were fetched stay for the next run. No attempt may be alive, and no upload of a checkpoint.
    """
    scratch = folder / "scratch"
    for entry in scratch.iterdir() if scratch.is_dir() else ():
        if entry.name != "models":
            shutil.rmtree(entry, ignore_errors=True)


_COMPILED = {
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TRITON_CACHE_DIR": "triton",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
}


def socket_folder(workdir: Path) -> Path:
    """Where sockets of a workdir will be: the workdir, or the folder that takes its place. Makes nothing."""
    fits = _fits(workdir / "ray", _RAY_BYTES) and _fits(workdir / "tmp", _TEMPORARY_BYTES)
    return workdir if fits else _SHORT


def _fits(folder: Path, more: int) -> bool:
    return _PLAIN.fullmatch(str(folder)) is not None and len(os.fsencode(folder)) + more <= _SOCKET_BYTES


def _is_own_folder(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
