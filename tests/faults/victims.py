"""Whom a strike hits: real processes, found as an administrator would find them."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from enum import StrEnum

import psutil

from tests.faults.place import Place
from zhongjing.config.stages import Stage


class Victim(StrEnum):
    """What is killed, stopped or interrupted."""

    SUBMIT = "submit"
    SUPERVISOR = "supervisor"
    HEAD = "Ray head"
    WORKER = "worker"
    DRIVER = "driver"
    S3 = "S3 server"
    UPLOADER = "uploader"
    FREEZE = "frozen worker"
    INTERRUPT = "Ctrl-C"
    INTERRUPT_TWICE = "Ctrl-C twice"
    POWER = "power cut"

    @property
    def spares_the_attempt(self) -> bool:
        """Whether the attempt under way is to live on: what trains is not hit."""
        return self in (Victim.SUBMIT, Victim.SUPERVISOR, Victim.S3, Victim.UPLOADER)

    @property
    def ends_submit(self) -> bool:
        """Whether the command ends, and has to be given again."""
        return self in (Victim.SUBMIT, Victim.POWER, Victim.INTERRUPT, Victim.INTERRUPT_TWICE)


def find(place: Place, victim: Victim, stage: Stage, choice: random.Random) -> tuple[str, psutil.Process]:
    """The process to hit, and what it is called in the table.

    Raises:
        LookupError: there is none at this moment.
    """
    if victim.ends_submit:
        return victim.value, psutil.Process(place.process.pid)
    if victim is Victim.SUPERVISOR:
        record = place.workdir.live_record()
        if record is None:
            raise LookupError("no supervisor lives")
        return victim.value, psutil.Process(record.process.pid)
    if victim is Victim.S3:
        server = json.loads((place.workdir.s3 / "server.json").read_text())
        return victim.value, psutil.Process(server["pid"])
    if victim is Victim.HEAD:
        part = choice.choice(sorted(_HEAD))
        return f"{victim} ({part})", _one(place, _HEAD[part])
    if victim is Victim.DRIVER:
        return victim.value, _one(place, lambda words: f"jobs.{stage}" in words)
    if victim is Victim.UPLOADER:
        return victim.value, _one(place, lambda words: "zhongjing.storage.checkpoint_upload" in words)
    workers = _all(place, lambda words: "RayTrainWorker" in words[0])
    if not workers:
        raise LookupError("no worker lives")
    rank = choice.randrange(len(workers))
    return f"{victim} ({rank + 1} of {len(workers)})", workers[rank]


def strike(victim: Victim, process: psutil.Process, place: Place) -> None:
    """Hits. A power cut takes everything of the place at once, whatever ``process`` is."""
    if victim is Victim.POWER:
        everything = place.processes()
        for each in everything:
            _send(each, signal.SIGKILL)
        psutil.wait_procs([each for each in everything if each.pid != place.process.pid], timeout=10)
    elif victim is Victim.FREEZE:
        _send(process, signal.SIGSTOP)
    elif victim in (Victim.INTERRUPT, Victim.INTERRUPT_TWICE):
        _send(process, signal.SIGINT)
    else:
        _send(process, signal.SIGKILL)


# By the command line: Ray's own programs change neither name nor arguments.
_HEAD: dict[str, Callable[[list[str]], bool]] = {
    "gcs": lambda words: words[0].endswith("/gcs_server"),
    "raylet": lambda words: words[0].endswith("/raylet"),
    "ray start": lambda words: "start" in words and "--head" in words,
}


def _all(place: Place, belongs: Callable[[list[str]], bool]) -> list[psutil.Process]:
    found = []
    for process in place.processes():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if words and belongs(words):
            found.append(process)
    return sorted(found, key=lambda process: process.pid)


def _one(place: Place, belongs: Callable[[list[str]], bool]) -> psutil.Process:
    found = _all(place, belongs)
    if not found:
        raise LookupError("no such process lives")
    return found[-1]  # a shell before the program that it runs


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
