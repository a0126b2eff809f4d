"""The token cache on a real S3 server, and hf:// through the datasets package."""

from __future__ import annotations

import contextlib
import gc
import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from ray.util.placement_group import placement_group

from tests.unit.data.support import document, make_tokenizer
from zhongjing.config.sources import Kind, Source
from zhongjing.config.stages import Stage
from zhongjing.data import build as build_module
from zhongjing.data import corpus
from zhongjing.data import tasks as tasks_module
from zhongjing.data.batches import fetch_step
from zhongjing.data.build import build_token_cache
from zhongjing.data.order import SampleOrder
from zhongjing.data.parts import Encode, PartMaker, Purpose
from zhongjing.data.readers import read_object
from zhongjing.data.records import Dialogue, Position, Rejected, Turn
from zhongjing.data.tasks import encode_by, encode_here
from zhongjing.data.templates import CHATML_TEMPLATE
from zhongjing.data.tokens import open_split
from zhongjing.errors import DataError, StorageError
from zhongjing.storage.layout import Layout
from zhongjing.storage.manifest import FrozenObject, FrozenSource
from zhongjing.storage.objects import ObjectStore
from zhongjing.train.job.ray_tasks import RayTasks, connect

pytestmark = pytest.mark.integration

PURPOSE = Purpose(Stage.SFT, 256, None)
PLACE = Position("qa", "s3://b/qa", 0)


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    make_tokenizer(CHATML_TEMPLATE, chatml=True).save_pretrained(str(folder))
    return folder


def upload(store: ObjectStore, bucket: str, name: str, data: bytes) -> FrozenSource:
    uri = f"{bucket}/uploads/{name}"
    store.put(uri, data)
    info = store.head(uri)
    assert info is not None
    item = FrozenObject(uri=uri, size=info.size, digest=info.etag)
    return FrozenSource(name=name, objects=[item], digest=info.etag)


def test_build_race_read_resume_and_damage(
    store: ObjectStore, bucket_uri: str, tokenizer_folder: Path
) -> None:
    question, answer = "第{}位病人头痛发热，应当看什么科？", "建议到神经内科就诊，{}天后复诊。"
    records = [{"instruction": question.format(i), "output": answer.format(i) * 6} for i in range(3000)]
    text = json.dumps(records, ensure_ascii=False, indent=1) + "\n"
    frozen = upload(store, bucket_uri, "qa", text.encode("gb18030"))
    doc = document(
        [{"name": "qa", "uri": f"{bucket_uri}/uploads/qa", "kind": "dialogue"}],
        {"sft": {"data": [{"source": "qa"}], "maxLength": 256}},
    )
    layout = Layout(bucket_uri, "local", "test")

    def build(attempt: int) -> str:
        ref = build_token_cache(
            store, layout, doc, Stage.SFT, [frozen], tokenizer_folder, lambda *_: None,
            f"{bucket_uri}/q{attempt}.jsonl",
        )  # fmt: skip
        assert ref.counts[0].kept == 3000
        return ref.uri

    with ThreadPoolExecutor(2) as pool:
        uris = set(pool.map(build, range(2)))
    (uri,) = uris

    train = open_split(store, uri, "train")
    order = SampleOrder(train.groups, train.group_names, seed=1)
    whole = [s.index for s in train.fetch(order.indices(0, 64 * 3).tolist())]
    resumed = open_split(store, uri, "train", memory=1)
    assert [s.index for s in resumed.fetch(order.indices(64, 64).tolist())] == whole[64:128]
    seen: list[int] = []
    for rank in range(2):
        for batch in fetch_step(train, order.indices(0, 64).tolist(), rank, 2, 4096):
            seen += batch.sample_indices
    assert sorted(seen) == sorted(whole[:64])
    everything = train.fetch(range(len(train)))
    assert [sample.targets for sample in everything] == train.targets.tolist()

    shard = f"{uri}/train/shard-00000.bin"
    data = bytearray(store.get(shard))
    data[len(data) // 3] ^= 1
    store.put(shard, bytes(data))
    with pytest.raises(DataError, match="shard-00000"):
        open_split(store, uri, "train").fetch([0])
    store.put(shard, bytes(data[:-1]))
    with pytest.raises(DataError, match="shard-00000"):
        open_split(store, uri, "train").fetch([0])


@pytest.mark.slow
def test_ray_tasks_give_the_same_bytes_and_an_interrupted_build_goes_on(
    store: ObjectStore, bucket_uri: str, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    question, answer = "第{}位病人头痛发热，应当看什么科？", "建议到神经内科就诊，{}天后复诊。"
    records = [{"instruction": question.format(i), "output": answer.format(i) * 6} for i in range(3000)]
    frozen = upload(store, bucket_uri, "qa", json.dumps(records, ensure_ascii=False).encode())
    doc = document(
        [{"name": "qa", "uri": f"{bucket_uri}/uploads/qa", "kind": "dialogue"}],
        {"sft": {"data": [{"source": "qa"}], "maxLength": 256}},
    )
    made_here: list[str] = []
    killed: list[int] = []
    stop_with: int | None = None

    def report(message: str, part: float) -> None:
        parts = len(list(store.list(f"{uri}/parts"))) if uri else 0
        if uri and not killed:
            killed.extend(kill_a_task())
        if stop_with is not None and parts >= stop_with:
            raise InterruptedError

    def build(encode: Encode) -> str:
        return build_token_cache(
            store, Layout(bucket_uri, "local", "test"), doc, Stage.SFT, [frozen], tokenizer_folder, report,
            f"{bucket_uri}/q.jsonl", encode=encode,
        ).uri  # fmt: skip

    def content() -> dict[str, bytes]:
        return {info.uri: store.get(info.uri) for info in store.list(uri)}

    uri = ""
    uri = build(encode_here)
    whole = content()
    store.delete_folder(uri)
    monkeypatch.setattr(build_module, "_TELL_SECONDS", 0.0)
    monkeypatch.setattr(corpus, "SHARD_CHARACTERS", 10_000)
    monkeypatch.setattr(tasks_module, "SHARDS_HERE", 1)
    original = PartMaker.make

    def make(maker: PartMaker, name: str, *rest: Any) -> None:
        made_here.append(name)
        original(maker, name, *rest)

    monkeypatch.setattr(PartMaker, "make", make)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        stop_with = 6
        with pytest.raises(InterruptedError):
            build(encode_by(connect))
        assert len(killed) == 1
        assert len(made_here) == 1, "the first whole shard; Ray made the lost one again"
        before = {info.uri: info for info in store.list(f"{uri}/parts")}
        assert len(before) >= 6
        stop_with = None
        # All CPUs are taken: tasks of none run on this node.
        assert placement_group([{"CPU": 2}]).wait(60)
        kept: list[bool] = []

        def connected(maker: PartMaker) -> RayTasks | None:
            kept.append(all(store.head(part) == info for part, info in before.items()))
            return connect(maker)

        assert build(encode_by(connected)) == uri
        assert kept == [True]
        assert content() == whole

        elsewhere = PartMaker(store, "s3://no-such-bucket-here/tokens/0", tokenizer_folder, PURPOSE)
        tasks = connect(elsewhere)
        assert tasks is not None
        task = tasks.submit("0", [Dialogue((Turn("user", "问"), Turn("assistant", "答")), PLACE)])
        assert tasks.finished([task], 60.0) == [task]
        with pytest.raises(StorageError) as caught:
            tasks.succeeded(task)
        assert caught.type.__module__ == "zhongjing.errors"
        tasks.close()
    finally:
        ray.shutdown()
        with warnings.catch_warnings():
            # Ray never asks its processes for their end; the warning would come in another test.
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


def kill_a_task() -> list[int]:
    """Kills a process that runs a task of this test's Ray."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.name().startswith("ray::_make"):
                process.kill()
                return [process.pid]
    return []


def test_a_large_object_is_streamed(store: ObjectStore, bucket_uri: str) -> None:
    line = json.dumps({"question": "问" * 700, "answer": "答" * 700}, ensure_ascii=False).encode() + b"\n"
    count = (20 << 20) // len(line)
    upload(store, bucket_uri, "big", line * count)
    uri = f"{bucket_uri}/uploads/big"
    source = Source(name="big", uri=uri, kind=Kind.DIALOGUE)
    assert sum(isinstance(record, Dialogue) for record in read_object(uri, source, store)) == count


def test_hub_datasets_are_read_through_the_datasets_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    turns = [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]
    lines = [json.dumps({"conversations": turns}, ensure_ascii=False)] * 3 + ['{"conversations": []}']
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "test.jsonl").write_text(lines[0] + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    uri = "hf://datasets/owner/name"
    found = list(read_object(uri, Source(name="hub", uri=uri, kind=Kind.DIALOGUE)))
    assert [type(record) for record in found] == [Dialogue] * 3 + [Rejected]
    assert isinstance(found[3], Rejected)
    assert (found[3].position.index, found[3].reason) == (3, "the dialogue has no turns")
    tested = list(read_object(f"{uri}?split=test", Source(name="hub", uri=uri, kind=Kind.DIALOGUE)))
    assert len(tested) == 1
    with pytest.raises(DataError, match="could not be read"):
        list(read_object(f"{uri}?split=none", Source(name="hub", uri=uri, kind=Kind.DIALOGUE)))
    with pytest.raises(DataError, match="the URI is not"):
        list(read_object(f"{uri}?nonsense=1", Source(name="hub", uri=uri, kind=Kind.DIALOGUE)))
    assert np.unique([record.position.index for record in found]).tolist() == [0, 1, 2, 3]
