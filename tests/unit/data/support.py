"""An object store in memory, small byte-level tokenizers with templates of known families, documents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from zhongjing.codes.storage import CONFLICT, DAMAGED_OBJECT, OBJECT_NOT_FOUND
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.data.chat import Encoded, Unfit, encode_dialogues
from zhongjing.data.records import Turn
from zhongjing.data.samples import Sample
from zhongjing.data.templates import chat_format
from zhongjing.errors import ConflictError, NotFoundError, StorageError
from zhongjing.storage.manifest import FrozenObject, FrozenSource

# As Qwen3's: reasoning is stripped from all turns but those after the last question, and the last answer
# always gets its (perhaps empty) reasoning block.
QWEN3_LIKE_TEMPLATE = (
    "{%- set ns = namespace(last=0) -%}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'assistant' -%}"
    "{%- set content = message.content -%}{%- set thought = '' -%}"
    "{%- if '</think>' in content -%}"
    "{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}"
    "{%- endif -%}"
    "{%- if loop.index0 > ns.last -%}"
    "{{- '<|im_start|>assistant\\n<think>\\n' + thought + '\\n</think>\\n\\n' + content -}}"
    "{%- else -%}{{- '<|im_start|>assistant\\n' + content -}}{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- else -%}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)

CORPUS = [
    "高血压患者能吃党参吗？可以口服党参，它有降血脂、降血压的作用。",
    "医生，我头痛三天了，还有点发烧，应该怎么办？请问有没有咳嗽或者流鼻涕的症状？",
    "建议您多喝水，注意休息，如果体温超过三十八度五，可以服用退烧药。",
    "糖尿病患者应当控制饮食，定期监测血糖，按医嘱用药。",
    "The patient should rest and drink water. Ask a doctor when the fever lasts.",
]


@dataclass
class Info:
    """As zhongjing.storage.objects.ObjectInfo."""

    uri: str
    size: int
    etag: str


Infos: TypeAlias = list[Info]


class MemoryStore:
    """The part of ObjectStore that data uses, in memory; counts what is read."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.ranges: list[tuple[str, int, int]] = []

    def get(self, uri: str) -> bytes:
        if uri not in self.objects:
            raise NotFoundError("no such object", code=OBJECT_NOT_FOUND, where=uri)
        return self.objects[uri]

    def get_range(self, uri: str, start: int, length: int) -> bytes:
        self.ranges.append((uri, start, length))
        data = self.get(uri)[start : start + length]
        if len(data) != length:
            raise StorageError("the object is shorter than expected", code=DAMAGED_OBJECT, where=uri)
        return data

    def put(self, uri: str, data: bytes, *, if_none_match: bool = False) -> str:
        if if_none_match and uri in self.objects:
            raise ConflictError("it exists", code=CONFLICT, where=uri)
        self.objects[uri] = bytes(data)
        return self._info(uri).etag

    def put_file(self, uri: str, path: Path) -> Info:
        self.put(uri, path.read_bytes())
        return self._info(uri)

    def head(self, uri: str) -> Info | None:
        return self._info(uri) if uri in self.objects else None

    def list(self, prefix_uri: str) -> Iterator[Info]:
        return (self._info(uri) for uri in sorted(self.objects) if uri.startswith(prefix_uri + "/"))

    def delete_folder(self, uri: str) -> int:
        found = [info.uri for info in self.list(uri)]
        for name in found:
            del self.objects[name]
        return len(found)

    def glob(self, uri: str) -> Infos:
        if uri.endswith("/"):
            return [*self.list(uri.rstrip("/"))]
        return [self._info(name) for name in sorted(self.objects) if fnmatch(name, uri)]

    def _info(self, uri: str) -> Info:
        data = self.objects[uri]
        return Info(uri, len(data), hashlib.md5(data).hexdigest())


def make_tokenizer(template: str | None, *, chatml: bool, bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE: ChatML's markers or LLaMA-like <s> </s> as special tokens."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] if chatml else ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>" if chatml else "</s>",
        pad_token="<|endoftext|>" if chatml else "<unk>",
        bos_token="<s>" if bos else None,
        extra_special_tokens=["<|im_start|>"] if chatml else [],
    )
    if template is not None:
        fast.chat_template = template
    return fast


def encode_dialogue(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], longest: int, system: str | None = None
) -> Encoded | None:
    """One dialogue as encode_dialogues() gives it; None where it is unfit."""
    (found,) = encode_dialogues(tokenizer, [turns], longest, system)
    return None if isinstance(found, Unfit) else found


def rewrites_history(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template writes earlier turns otherwise than it wrote them when they were last."""
    return chat_format(tokenizer).outline(("user", "assistant", "user", "assistant")) is None


def freeze(store: MemoryStore, name: str, *uris: str) -> FrozenSource:
    """The listing that submit would make."""
    objects = [
        FrozenObject(uri=uri, size=len(store.get(uri)), digest=hashlib.sha256(store.get(uri)).hexdigest())
        for uri in uris
    ]
    joined = "".join(item.digest for item in objects)
    return FrozenSource(name=name, objects=objects, digest=hashlib.sha256(joined.encode()).hexdigest())


def document(sources: list[dict[str, Any]], stages: dict[str, Any]) -> TrainingPipeline:
    """A document with these sources and stages."""
    return TrainingPipeline.model_validate(
        {
            "metadata": {"name": "test"},
            "spec": {"base": {"tiny": {}}, "sources": sources, "stages": stages},
        }
    )


def json_lines(records: list[Any]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


class ListedSamples:
    """A SampleSet over a list; notes what is fetched."""

    def __init__(self, samples: list[Sample]) -> None:
        self._samples = samples
        self.fetched: list[int] = []

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def tokens(self) -> npt.NDArray[np.int64]:
        return np.array([sample.tokens for sample in self._samples], dtype=np.int64)

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        return np.array([sample.targets for sample in self._samples], dtype=np.int64)

    @property
    def groups(self) -> npt.NDArray[np.int32]:
        return np.zeros(len(self._samples), dtype=np.int32)

    @property
    def group_names(self) -> Sequence[str]:
        return ["all"]

    def fetch(self, indices: Sequence[int]) -> list[Sample]:
        self.fetched += indices
        return [self._samples[index] for index in indices]
