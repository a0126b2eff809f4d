"""What the tests of builds share: sources in a store, a document over them and a build."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.data.support import MemoryStore, document, freeze, json_lines
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.stages import Stage
from zhongjing.data.build import build_token_cache
from zhongjing.data.parts import Encode
from zhongjing.data.tasks import encode_here
from zhongjing.data.tokens import TokenCacheRef, TokenSplit, open_split
from zhongjing.storage.layout import Layout
from zhongjing.storage.manifest import FrozenSource
from zhongjing.storage.objects import ObjectStore

LAYOUT = Layout("s3://b/out", "local", "test")

QUARANTINE = "s3://b/stage/quarantine.jsonl"


class Bench:
    """Sources in a store, a document over them, and a build."""

    def __init__(self, memory: MemoryStore, tokenizer: Path) -> None:
        self.memory = memory
        self.tokenizer = tokenizer
        self.sources: list[dict[str, Any]] = []
        self.frozen: list[FrozenSource] = []
        self.reports: list[tuple[str, float]] = []

    def source(self, name: str, kind: str, data: bytes | list[Any], **fields: Any) -> None:
        content = data if isinstance(data, bytes) else json_lines(data)
        uri = f"s3://b/{name}"
        self.memory.put(uri, content)
        self.sources.append({"name": name, "uri": uri, "kind": kind, **fields})
        self.frozen.append(freeze(self.memory, name, uri))

    def document(self, stage: Stage, *names: str, **settings: Any) -> TrainingPipeline:
        data = [{"source": name} for name in names]
        short = {"maxNewTokens": 64} if stage is Stage.PPO else {}
        return document(self.sources, {stage.value: {"maxLength": 512, **short, "data": data, **settings}})

    def report(self, message: str, part: float) -> None:
        self.reports.append((message, part))

    def build(
        self, stage: Stage, *names: str, encode: Encode = encode_here, **settings: Any
    ) -> TokenCacheRef:
        return build_token_cache(
            cast("ObjectStore", self.memory),
            LAYOUT,
            self.document(stage, *names, **settings),
            stage,
            self.frozen,
            self.tokenizer,
            self.report,
            QUARANTINE,
            encode=encode,
        )

    def open(self, ref: TokenCacheRef, split: str) -> TokenSplit:
        return open_split(cast("ObjectStore", self.memory), ref.uri, split)  # type: ignore[arg-type]


@pytest.fixture
def bench(memory: MemoryStore, tokenizer_folder: Path) -> Bench:
    return Bench(memory, tokenizer_folder)


def qa(start: int, count: int, suffix: str = "") -> list[dict[str, str]]:
    return [
        {"question": f"第{i}位患者头痛发烧应该怎么办才好呢？", "answer": f"多喝水{i}{suffix}。"}
        for i in range(start, start + count)
    ]
