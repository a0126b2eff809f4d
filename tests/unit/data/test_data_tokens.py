from __future__ import annotations

import json
import random
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from tests.unit.data.support import MemoryStore
from zhongjing.codes import data as codes
from zhongjing.codes import storage as storage_codes
from zhongjing.data.packing import WindowPacker, pack
from zhongjing.data.samples import Sample, Segment
from zhongjing.data.shards import SplitWriter
from zhongjing.data.split import SPLITS
from zhongjing.data.tokens import CacheManifest, TokenType, open_split, read_manifest, reference
from zhongjing.errors import DataError, StorageError
from zhongjing.storage.objects import ObjectStore

URI = "s3://b/cache"


def random_samples(seed: int, count: int, *, ranked: bool, largest: int) -> list[Sample]:
    rng = np.random.default_rng(seed)
    samples = []
    for index in range(count):
        segments = []
        for _ in range(int(rng.integers(2, 5)) if ranked else 1):
            length = int(rng.integers(1, 90))
            ids = rng.integers(0, largest, length).astype(np.int32)
            target = rng.random(length) < 0.5
            target[0] = False
            segments.append(Segment(ids, target))
        ranks = tuple(int(rank) for rank in rng.integers(0, 3, len(segments))) if ranked else None
        samples.append(Sample(index, tuple(segments), ranks))
    return samples


def write(
    memory: MemoryStore,
    scratch: Path,
    samples: list[Sample],
    *,
    dtype: TokenType = "uint16",
    block_tokens: int = 64,
    blocks_per_shard: int = 3,
    ranked: bool = False,
) -> CacheManifest:
    store = cast("ObjectStore", memory)
    infos = {}
    for split in SPLITS:
        writer = SplitWriter(
            store, URI, split, dtype, scratch, block_tokens=block_tokens, blocks_per_shard=blocks_per_shard
        )
        for sample in samples if split == "train" else []:
            writer.append(sample.segments, sample.index % 2, sample.ranks)
        infos[split] = writer.finish()
    manifest = CacheManifest(
        key="k",
        dtype=dtype,
        block_tokens=block_tokens,
        blocks_per_shard=blocks_per_shard,
        ranked=ranked,
        group_names=["even", "odd"],
        splits=dict(infos),
        counts=[],
        fields={},
    )
    memory.put(f"{URI}/manifest.json", manifest.model_dump_json().encode())
    return manifest


def equal(left: Sample, right: Sample) -> bool:
    return (
        left.index == right.index
        and left.ranks == right.ranks
        and len(left.segments) == len(right.segments)
        and all(
            np.array_equal(a.ids, b.ids) and np.array_equal(a.target, b.target)
            for a, b in zip(left.segments, right.segments, strict=True)
        )
    )


@pytest.mark.parametrize(("dtype", "largest"), [("uint16", 1 << 16), ("uint32", 200_000)])
@pytest.mark.parametrize("ranked", [False, True])
@pytest.mark.parametrize(("block", "shard"), [(8, 7), (64, 3), (4096, 32)])
def test_what_is_written_is_read(
    memory: MemoryStore, tmp_path: Path, dtype: TokenType, largest: int, ranked: bool, block: int, shard: int
) -> None:
    samples = random_samples(block, 30 if block == 8 else 60, ranked=ranked, largest=largest)
    manifest = write(
        memory, tmp_path, samples, dtype=dtype, block_tokens=block, blocks_per_shard=shard, ranked=ranked
    )
    split = open_split(cast("ObjectStore", memory), URI, "train")
    assert len(split) == len(samples)
    assert split.tokens.tolist() == [sample.tokens for sample in samples]
    assert split.targets.tolist() == [sample.targets for sample in samples]
    assert split.segments.tolist() == [len(sample.segments) for sample in samples]
    assert split.groups.tolist() == [index % 2 for index in range(len(samples))]
    assert split.group_names == ("even", "odd")
    chosen = random.Random(0).choices(range(len(samples)), k=100)
    assert all(equal(found, samples[i]) for i, found in zip(chosen, split.fetch(chosen), strict=True))
    info = manifest.splits["train"]
    assert (info.tokens, info.samples) == (sum(s.tokens for s in samples), len(samples))
    assert len(info.shards) == -(-info.tokens // (block * shard))
    ref = reference(URI, manifest)
    assert (ref.samples["train"], ref.tokens["validation"]) == (len(samples), 0)
    assert len(open_split(cast("ObjectStore", memory), URI, "test")) == 0
    assert not list(tmp_path.iterdir()), "nothing is left on the local disk"


def test_blocks_are_kept_within_the_memory_given(memory: MemoryStore, tmp_path: Path) -> None:
    samples = random_samples(1, 80, ranked=False, largest=1000)
    manifest = write(memory, tmp_path, samples)
    blocks = -(-manifest.splits["train"].tokens // 64)
    block_bytes = 64 * 2 + 8
    store = cast("ObjectStore", memory)

    roomy = open_split(store, URI, "train")
    memory.ranges.clear()
    roomy.fetch(range(80))
    assert len(memory.ranges) == blocks
    assert {length for _, _, length in memory.ranges[:-1]} == {block_bytes}
    roomy.fetch(range(80))
    assert len(memory.ranges) == blocks, "the second reading comes from memory"

    tight = open_split(store, URI, "train", memory=4 * block_bytes)
    assert all(equal(a, b) for a, b in zip(samples, tight.fetch(range(80)), strict=True))
    assert len(tight._blocks) <= 4
    memory.ranges.clear()
    order = list(range(80))
    random.Random(0).shuffle(order)
    shuffled = tight.fetch(order)
    assert [sample.index for sample in shuffled] == order
    assert len(memory.ranges) <= 2 * blocks, "samples are read as they lie, not as they are asked for"


@pytest.mark.parametrize("where", ["tokens", "bits", "length", "index", "manifest", "gone", "no cache"])
def test_damage_is_told_and_named(memory: MemoryStore, tmp_path: Path, where: str) -> None:
    write(memory, tmp_path, random_samples(2, 40, ranked=False, largest=1000))
    store = cast("ObjectStore", memory)
    shard, index = f"{URI}/train/shard-00001.bin", f"{URI}/train/index.npz"
    data = bytearray(memory.objects[shard])
    if where in ("tokens", "bits"):
        data[5 if where == "tokens" else 64 * 2 + 2] ^= 4
        memory.objects[shard] = bytes(data)
    elif where == "length":
        memory.objects[shard] = bytes(data[:-10])
    elif where == "index":
        memory.objects[index] = memory.objects[index][:-1] + b"x"
    elif where == "manifest":
        memory.objects[f"{URI}/manifest.json"] = b'{"version": 1}'
    elif where == "gone":
        del memory.objects[shard]
    else:
        memory.objects.clear()
    named = {"index": "index.npz", "manifest": "manifest.json", "no cache": URI}.get(where, "shard-00001.bin")
    with pytest.raises(DataError) as caught:
        open_split(store, URI, "train").fetch(range(40))
    assert named in (caught.value.where or "")
    assert caught.value.code is codes.DAMAGED_CACHE
    if where == "no cache":
        assert read_manifest(store, URI) is None


def test_a_newer_release_made_the_cache(memory: MemoryStore, tmp_path: Path) -> None:
    write(memory, tmp_path, random_samples(2, 4, ranked=False, largest=1000))
    where = f"{URI}/manifest.json"
    content = json.loads(memory.objects[where])
    memory.objects[where] = json.dumps({**content, "version": 2, "novelty": 1}).encode()
    with pytest.raises(StorageError) as caught:
        open_split(cast("ObjectStore", memory), URI, "train")
    assert (caught.value.code, caught.value.where) == (storage_codes.NEWER_VERSION, where)


def test_a_store_that_refuses_is_no_damage(
    memory: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(memory, tmp_path, random_samples(2, 4, ranked=False, largest=1000))
    opened = open_split(cast("ObjectStore", memory), URI, "train")
    refusal = StorageError("refused", code=storage_codes.ACCESS_DENIED, where=URI)

    def refuse(*_: object) -> bytes:
        raise refusal

    monkeypatch.setattr(memory, "get_range", refuse)
    with pytest.raises(StorageError) as caught:
        opened.fetch([0])
    assert caught.value is refusal


def test_indices_are_checked(memory: MemoryStore, tmp_path: Path) -> None:
    write(memory, tmp_path, random_samples(3, 5, ranked=False, largest=10))
    split = open_split(cast("ObjectStore", memory), URI, "train")
    for wrong in (-1, 5):
        with pytest.raises(IndexError):
            split.fetch([wrong])
    with pytest.raises(ValueError, match="whole bytes"):
        SplitWriter(cast("ObjectStore", memory), URI, "train", "uint16", tmp_path, block_tokens=12)


@pytest.mark.parametrize("capacity", [64, 200])
def test_windows_hold_every_piece_once_and_little_air(capacity: int) -> None:
    rng = random.Random(4)
    lengths = [rng.randint(2, 64) for _ in range(3000)]
    windows = list(pack(lengths, capacity))
    assert sorted(piece for window in windows for piece in window) == list(range(3000))
    filled = [sum(lengths[piece] for piece in window) for window in windows]
    assert max(filled) <= capacity
    assert sum(filled) > 0.93 * capacity * len(windows)
    assert list(pack(lengths, capacity)) == windows
    assert windows[0] != sorted(windows[0]), "pieces are shuffled"
    assert list(pack([], 10)) == []


def test_a_long_text_is_cut_so_that_every_token_is_predicted_once(tmp_path: Path) -> None:
    pieces = WindowPacker(tmp_path / "pieces", 10)
    text = np.arange(100, 147, dtype=np.int32)
    pieces.append(text)
    pieces.append(np.array([7], dtype=np.int32))  # nothing to predict in one token
    predicted: list[int] = []
    for window in pieces.windows():
        assert sum(len(segment.ids) for segment in window) <= 10
        for segment in window:
            assert not segment.target[0]
            predicted += segment.ids[segment.target].tolist()
    assert sorted(predicted) == text[1:].tolist()
