"""A token cache built in one process and by Ray tasks: seconds, their ratio, what the driver holds in memory.

::

    ZHONGJING_DATA=<folder with the published samples> python -m benchmarks.token_cache [megabytes] [tasks]

The published dialogues (without the folder: generated ones), a number before each question, again and again
until there are so many megabytes. The two ways take turns, each time in a new process, from and into one S3
server beside them; the caches must be equal byte by byte. ``here`` is what a build without Ray does: its
tokenizer uses all cores, the rest of the work one. ``tasks`` has the start of the tasks' processes in it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.sources import Source, Storage, TinyBase
from zhongjing.config.stages import Stage
from zhongjing.data.build import build_token_cache
from zhongjing.data.readers import read_object
from zhongjing.data.records import Dialogue, Position, Turn, record_texts
from zhongjing.data.tasks import encode_by, encode_here
from zhongjing.data.templates import CHATML_TEMPLATE
from zhongjing.model.base import make_tiny_base
from zhongjing.storage.admin import BucketAdmin
from zhongjing.storage.embedded import EmbeddedS3
from zhongjing.storage.layout import Layout
from zhongjing.storage.manifest import FrozenObject, FrozenSource
from zhongjing.storage.objects import open_store
from zhongjing.train.job.ray_tasks import connect

BUCKET = "s3://bench"
CORPUS = f"{BUCKET}/corpus.jsonl"
FILES = ("CMtMedQA_sample.json", "huatuo_llama_data.json", "toyhom_internal_medicine_gb18030.csv")
BASE = {"hiddenSize": 64, "intermediateSize": 128, "layers": 1, "vocabularySize": 8192, "maxPositions": 1024}
ROUNDS = 2


def dialogues() -> Iterator[Dialogue]:
    """Published ones, else generated."""
    folder = os.environ.get("ZHONGJING_DATA")
    if folder is None:
        for number in range(2000):
            turns = (Turn("user", f"第{number}种病怎么治？"), Turn("assistant", f"先查第{number}项。" * 30))
            yield Dialogue(turns, Position("made", "-", number))
        return
    for name in FILES:
        path = str(Path(folder) / name)
        source = Source.model_validate({"name": "file", "uri": path, "kind": "dialogue"})
        yield from (record for record in read_object(path, source) if isinstance(record, Dialogue))


def corpus(size: int) -> bytes:
    """JSON lines of about ``size`` bytes, no two records alike."""
    roles = {"user": "human", "assistant": "gpt", "system": "system"}
    read = list(dialogues())
    lines: list[bytes] = []
    length = number = 0
    while length < size:
        turns = [{"from": roles[turn.role], "value": turn.content} for turn in read[number % len(read)].turns]
        first = next(turn for turn in turns if turn["from"] == "human")
        first["value"] = f"第{number}问：{first['value']}"
        lines.append(json.dumps({"conversations": turns}, ensure_ascii=False).encode() + b"\n")
        length += len(lines[-1])
        number += 1
    return b"".join(lines)


def build(way: str, tasks: int, tokenizer: Path) -> dict[str, Any]:
    """One build in this process."""
    logging.basicConfig(level=logging.WARNING)
    store = open_store(Storage(uri=BUCKET))
    info = store.stat(CORPUS)
    frozen = FrozenSource(
        name="corpus",
        objects=[FrozenObject(uri=CORPUS, size=info.size, digest=info.etag)],
        digest=info.etag,
    )
    document = TrainingPipeline.model_validate(
        {
            "metadata": {"name": "bench"},
            "spec": {
                "base": {"tiny": {}},
                "sources": [{"name": "corpus", "uri": CORPUS, "kind": "dialogue"}],
                "stages": {"sft": {"maxLength": 1024, "data": [{"source": "corpus"}]}},
            },
        }
    )
    if way == "tasks":
        import ray

        ray.init(num_cpus=tasks, include_dashboard=False, log_to_driver=False)
    began = time.monotonic()
    ref = build_token_cache(
        store,
        Layout(BUCKET, "local", "bench"),
        document,
        Stage.SFT,
        [frozen],
        tokenizer,
        lambda *_: None,
        f"{BUCKET}/quarantine.jsonl",
        encode=encode_by(connect) if way == "tasks" else encode_here,
    )
    seconds = time.monotonic() - began
    digest = hashlib.sha256()
    for item in store.list(ref.uri):
        digest.update(item.uri.encode() + store.get(item.uri))
    store.delete_folder(ref.uri)
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return {"way": way, "seconds": round(seconds, 1), "driver_mib": peak >> 10, "digest": digest.hexdigest()}


def main(megabytes: int, tasks: int) -> int:
    """Prints the figures; returns 1 if the caches differ."""
    with tempfile.TemporaryDirectory() as name, EmbeddedS3(Path(name) / "s3") as server:
        os.environ.update(server.environment())
        BucketAdmin(Storage(uri=BUCKET)).ensure_bucket(BUCKET)
        content = corpus(megabytes << 20)
        open_store(Storage(uri=BUCKET)).put(CORPUS, content)
        texts = (text for record in dialogues() for text in record_texts(record))
        make_tiny_base(Path(name) / "base", TinyBase.model_validate(BASE), texts, 0, CHATML_TEMPLATE)
        results: list[dict[str, Any]] = []
        for _ in range(ROUNDS):
            for way in ("here", "tasks"):
                arguments = [str(tasks), way, str(Path(name) / "base")]
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.token_cache", *arguments],
                    stdout=subprocess.PIPE,
                    check=True,
                )
                results.append(json.loads(done.stdout.splitlines()[-1]))
                print(json.dumps({key: value for key, value in results[-1].items() if key != "digest"}))
    best = {way: min(one["seconds"] for one in results if one["way"] == way) for way in ("here", "tasks")}
    ratio = best["here"] / best["tasks"]
    print(f"{len(content) / 1e6:.0f} MB, {tasks} tasks: {ratio:.2f} x; bar with two cores: 1.5 x")
    return int(len({one["digest"] for one in results}) > 1)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(json.dumps(build(sys.argv[2], int(sys.argv[1]), Path(sys.argv[3]))))
        sys.exit(0)
    sys.exit(main(*(int(given) for given in (*sys.argv[1:], *("200", "2")[len(sys.argv) - 1 :]))))
