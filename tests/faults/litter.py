"""What a run leaves behind outside its workdir: processes, temporary files, shared memory."""

from __future__ import annotations

import json
from pathlib import Path

import psutil

from tests.faults.place import Place, wait_for

# Folders that programs write into whatever TMPDIR says.
SHARED = (Path("/tmp"), Path("/dev/shm"))


class Litter:
    """Notes which files below the shared folders the place's processes hold open, and looks at the end.

    Other programs write there too, so only what one of the place's processes had, what the workdir notes as
    its own, or what bears the name of one of its sockets, counts as its litter.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._before = _entries()
        self._touched: set[Path] = set()

    def sample(self) -> None:
        """Looks what is open now."""
        note = self._place.workdir.path / "short-folder"
        if note.is_file():
            self._touched.add(Path(note.read_text()))
        sockets = _unix_sockets()
        for process in self._place.processes():
            for path in _open_paths(process, sockets):
                entry = _shared_entry(path)
                if entry is not None:
                    self._touched.add(entry)

    def left_processes(self, seconds: float) -> list[str]:
        """Processes that still run after a while."""
        wait_for(lambda: not self._place.processes(), seconds, interval=0.5)
        left = []
        for process in self._place.processes():
            try:
                left.append(f"{process.pid}: {' '.join(process.cmdline())[:120]}")
            except psutil.Error:
                continue
        return left

    def left_files(self) -> list[str]:
        """Temporary files that are still there, but for those in the workdir."""
        self.sample()
        place = self._place
        own = [path for folder in (place.home, place.temporary) for path in folder.iterdir()]
        shared = [path for path in self._touched if path not in self._before and path.exists()]
        named = [
            path
            for path in _entries() - self._before
            if any(path.name.endswith(f"-{port}.sock") for port in self._ports())
        ]
        return sorted({str(path) for path in [*own, *shared, *named]})

    def _ports(self) -> set[int]:
        try:
            ports = json.loads((self._place.workdir.s3 / "ports.json").read_text()).values()
        except OSError:
            return set()
        return {int(port) + offset for port in ports for offset in (0, 10_000)}


def _entries() -> set[Path]:
    return {path for folder in SHARED if folder.is_dir() for path in folder.iterdir()}


def _shared_entry(path: str) -> Path | None:
    """The entry of a shared folder that ``path`` lies in."""
    for folder in SHARED:
        if path.startswith(f"{folder}/"):
            return folder / path.removeprefix(f"{folder}/").split("/", 1)[0]
    return None


def _open_paths(process: psutil.Process, sockets: dict[str, str]) -> list[str]:
    folder = Path(f"/proc/{process.pid}")
    found = []
    try:
        for entry in (folder / "fd").iterdir():
            target = str(entry.readlink())
            found.append(sockets.get(target, target))
        found += [line.split(maxsplit=5)[-1].strip() for line in (folder / "maps").read_text().splitlines()]
    except OSError:
        return found  # it ended
    return [path.removesuffix(" (deleted)") for path in found if path.startswith("/")]


def _unix_sockets() -> dict[str, str]:
    """Path of each bound socket of this machine, by what its descriptor's link says."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return {f"socket:[{words[6]}]": words[7] for words in lines if len(words) > 7}
