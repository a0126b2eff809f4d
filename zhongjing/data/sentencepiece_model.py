"""Folders whose tokenizer is a sentencepiece model and nothing else, as LLaMA, Ziya and Baichuan2 have it.

Such a folder is read as its publisher meant it, which transformers 5 does not: its ``LlamaTokenizer`` takes
``legacy=False`` where a folder says nothing, writes no dummy space before a text that begins with a space,
and orders merges by ids in place of scores. The rule is that of transformers 4's ``LlamaTokenizer`` (its
documentation of ``legacy``; huggingface/transformers, pull requests 24565 and 28881):

- Text is cut at added tokens; what stands between them is a text of its own to sentencepiece.
- ``legacy`` true or absent: each of these texts gets the dummy space, if ``add_dummy_prefix`` in the model's
  ``normalizer_spec`` says so (google/sentencepiece, ``sentencepiece_model.proto``).
- ``legacy: false``: one space before the whole, unless ``add_prefix_space`` is false.

What comes out is a ``PreTrainedTokenizerFast`` with all of it in its ``tokenizer.json``: whatever loads that
file gives the same ids.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from zhongjing.codes import model as codes
from zhongjing.errors import DataError

MODEL_FILE = "tokenizer.model"
CONVERSION = 1
"""Number of the rule by which a model becomes a tokenizer.json; part of the key under which one is stored."""

_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_SPACE = "▁"
_NORMAL, _DEFINED = 1, 4  # SentencePiece.Type of sentencepiece_model.proto
_UNIGRAM, _BPE = 1, 2  # TrainerSpec.ModelType
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# What LlamaTokenizer alone understands; all of it stands in tokenizer.json.
_SPENT = (
    *("add_bos_token", "add_eos_token", "add_prefix_space", "auto_map", "legacy", "sp_model_kwargs"),
    *("special_tokens_map_file", "tokenizer_file", "use_default_system_prompt", "use_fast", "vocab_file"),
)
PROBES = (
    "高血压患者应当低盐饮食，每天按时服药，并定期测量血压。",
    "患者男性，38岁，发热3天，体温39.2℃，伴咳嗽、咳痰；给予阿莫西林0.5 g口服。",
    " 糖尿病  的症状：\n\n  多饮、多食、多尿\n\t体重下降 \n",
    "The patient was given 250 mg of amoxicillin, twice a day.",
    "   ",
    "😀 a ▁b <0x0A> café",
)
"""What two readings of a tokenizer are compared on: spaces everywhere, rare characters, several scripts."""


def is_sentencepiece(folder: Path) -> bool:
    """Whether a folder's tokenizer is a sentencepiece model that ``LlamaTokenizer`` would read.

    Not where there is a ``tokenizer.json``, nor where it is of a class for which transformers has rules of
    its own (Gemma), nor where ``tokenizer.model`` is of another format (tiktoken).
    """
    if (folder / "tokenizer.json").is_file() or not (folder / MODEL_FILE).is_file():
        return False
    name = _read(folder / "tokenizer_config.json").get("tokenizer_class")
    name = name or _read(folder / "config.json").get("tokenizer_class")
    plain = name.removesuffix("Fast") if isinstance(name, str) else "LlamaTokenizer"
    generic = ("llamatokenizer", "pretrainedtokenizer", "tokenizersbackend")
    if plain.lower() not in generic and tokenizer_class_from_name(plain) is not None:
        return False
    try:
        proto = _proto(folder)
    except DecodeError:
        return False
    return bool(proto.pieces) and proto.trainer_spec.model_type in (_UNIGRAM, _BPE)


def load_sentencepiece(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder of which :func:`is_sentencepiece` is true.

    Raises:
        DataError: the ids of a few plain texts are not those that sentencepiece gives. So it is where pieces
            of equal score compete, as in a vocabulary that was merged from two: sentencepiece takes the
            leftmost pair, an order that tokenizer.json cannot express.
    """
    read = (folder / name for name in (MODEL_FILE, *_BESIDE))
    stamp = tuple((str(file), file.stat().st_mtime_ns) for file in read if file.is_file())
    # By way of files: what is used here is then what anybody loads from those that a stage stores.
    with tempfile.TemporaryDirectory(prefix="zhongjing-tokenizer-") as name:
        for file, content in _converted(folder, stamp).items():
            (Path(name) / file).write_text(content, encoding="utf-8")
        if (folder / "chat_template.jinja").is_file():
            shutil.copyfile(folder / "chat_template.jinja", f"{name}/chat_template.jinja")
        loaded: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(name)
    loaded.name_or_path = loaded.init_kwargs["name_or_path"] = str(folder)
    return loaded


@lru_cache(maxsize=4)
def _converted(folder: Path, stamp: tuple[tuple[str, int], ...]) -> dict[str, str]:
    """Files made of a folder whose files bear ``stamp``: seconds of work, and a driver loads a base often."""
    return _Conversion(folder).files()


class _Conversion:
    """A folder with a sentencepiece model on its way to a tokenizer.json.

    Args:
        folder: with ``tokenizer.model`` and the settings beside it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._settings = _settings(folder)
        self._proto = _proto(folder)
        self._legacy = self._settings.get("legacy") is not False
        asked = self._proto.normalizer_spec.add_dummy_prefix
        self._prefix = bool(asked if self._legacy else self._settings.get("add_prefix_space") is not False)

    def files(self) -> dict[str, str]:
        tokenizer = self._tokenizer()
        self._compare(tokenizer)
        kept = {key: value for key, value in self._settings.items() if key not in (*_SPENT, *_NAMED)}
        kept |= self._named
        kept["additional_special_tokens"] = self._extra
        kept["added_tokens_decoder"] = {
            str(place): _flags(token) for place, token in sorted(self._added.items())
        }
        kept["tokenizer_class"] = "PreTrainedTokenizerFast"
        return {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": json.dumps(kept)}

    @cached_property
    def _named(self) -> dict[str, str]:
        """Special tokens that have a role; what the settings do not name is what the model names."""
        spec = self._proto.trainer_spec
        named = {
            "bos_token": spec.bos_piece if spec.bos_id >= 0 else "",
            "eos_token": spec.eos_piece if spec.eos_id >= 0 else "",
            "unk_token": spec.unk_piece,
        }
        named |= {role: _content(self._settings.get(role)) or named.get(role, "") for role in _NAMED}
        return {role: token for role, token in named.items() if token}

    @cached_property
    def _extra(self) -> list[str]:
        listed = self._settings.get("additional_special_tokens")
        listed = listed or self._settings.get("extra_special_tokens") or []
        return [_content(token) for token in (listed.values() if isinstance(listed, dict) else listed)]

    @cached_property
    def _added(self) -> dict[int, AddedToken]:
        """Tokens at which text is cut, by id: those of the settings, then special ones without an id."""
        special = {*self._named.values(), *self._extra}
        added = {
            int(place): AddedToken(
                **{**_flags(token), "normalized": False, "special": token.get("special", False)}
            )
            for place, token in self._settings.get("added_tokens_decoder", {}).items()
        }
        if not added:
            for token, place in _read(self._folder / "added_tokens.json").items():
                added[int(place)] = AddedToken(token, normalized=False, special=token in special)
        known = {piece.piece: place for place, piece in enumerate(self._proto.pieces)}
        known |= {token.content: place for place, token in added.items()}
        following = max(len(self._proto.pieces), *(place + 1 for place in added), 0)
        for token in (*self._named.values(), *self._extra):
            if token not in known:
                known[token] = following
                following += 1
            added.setdefault(known[token], AddedToken(token, normalized=False, special=True))
        return added

    @cached_property
    def _defined(self) -> list[str]:
        """Symbols that the model's maker defined: never merged, and no dummy space behind them."""
        cut = {token.content for token in self._added.values()}
        return [p.piece for p in self._proto.pieces if p.type == _DEFINED and p.piece not in cut]

    @cached_property
    def _hidden(self) -> list[str]:
        """Names in the vocabulary that are not text."""
        added = {token.content for token in self._added.values()}
        marks = {p.piece for p in self._proto.pieces if p.type not in (_NORMAL, _DEFINED)}
        return sorted(name for name in added | marks if name)

    def _tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer(self._model())
        tokenizer.normalizer = self._normalizer()
        tokenizer.pre_tokenizer = self._pre_tokenizer()
        decoding = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        if self._prefix:
            decoding.append(decoders.Strip(content=" ", left=1))
        tokenizer.decoder = decoders.Sequence(decoding)
        tokenizer.add_tokens([self._added[place] for place in sorted(self._added)])
        tokenizer.post_processor = self._post_processor()
        return tokenizer

    def _model(self) -> models.Model:
        spec, pieces = self._proto.trainer_spec, self._proto.pieces
        names = {place: piece.piece for place, piece in enumerate(pieces)}
        # A name in the settings replaces the model's; their ids may leave gaps, which add_tokens() cannot.
        names |= {place: token.content for place, token in self._added.items()}
        if spec.model_type == _BPE:
            return models.BPE(
                vocab={name: place for place, name in names.items()},
                merges=self._merges(),
                unk_token=names[spec.unk_id],
                fuse_unk=True,
                byte_fallback=spec.byte_fallback,
                ignore_merges=bool(self._defined),  # a part that is a symbol is taken as it is
            )
        scores = {place: piece.score for place, piece in enumerate(pieces) if piece.type == _NORMAL}
        lowest = min(scores.values(), default=0.0)  # what an unknown character costs is counted from here
        scores |= {place: 0.0 for place, piece in enumerate(pieces) if piece.type == _DEFINED}
        listed = range(max(names) + 1)
        return models.Unigram(
            vocab=[(names.get(place, f"<none {place}>"), scores.get(place, lowest)) for place in listed],
            unk_id=spec.unk_id,
            byte_fallback=spec.byte_fallback,
        )

    def _merges(self) -> list[tuple[str, str]]:
        """Pairs in the order in which sentencepiece joins them: by the score of what comes out.

        Marks and bytes are no text to sentencepiece and come out of no pair.
        """
        scores = {
            p.piece: (-p.score, place) for place, p in enumerate(self._proto.pieces) if p.type == _NORMAL
        }
        found = [
            (order, piece[:cut], piece[cut:])
            for piece, order in scores.items()
            for cut in range(1, len(piece))
            if piece[:cut] in scores and piece[cut:] in scores
        ]
        found.sort(key=lambda pair: (pair[0], scores[pair[1]][1], scores[pair[2]][1]))
        return [(left, right) for _, left, right in found]

    def _normalizer(self) -> normalizers.Normalizer:
        spec = self._proto.normalizer_spec
        steps: list[Any] = []
        if spec.precompiled_charsmap:
            steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
        if spec.remove_extra_whitespaces:
            steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
        if self._prefix and self._legacy:
            steps.append(normalizers.Prepend(_SPACE))
        steps.append(normalizers.Replace(" ", _SPACE))
        return normalizers.Sequence(steps)

    def _pre_tokenizer(self) -> pre_tokenizers.PreTokenizer | None:
        steps: list[Any] = []
        if self._prefix and not self._legacy:
            # Metaspace writes its mark before the first part, unless that begins with one. All spaces are
            # written as marks by now: told that its mark is a space, it writes one before every first part.
            steps += [
                pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False),
                pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="never", split=False),
            ]
        if self._defined or self._proto.trainer_spec.model_type == _UNIGRAM:
            # Names of bytes and marks are no text to sentencepiece; here they would be found as pieces.
            hidden = [f"{_escaped(name[0])}(?={_escaped(name[1:])})" for name in self._hidden]
            names = sorted(self._defined, key=lambda name: (-len(name), name))
            steps.append(pre_tokenizers.Split(Regex("|".join([*map(_escaped, names), *hidden])), "isolated"))
        return pre_tokenizers.Sequence(steps) if steps else None

    def _post_processor(self) -> processors.PostProcessor:
        ids = {token.content: place for place, token in self._added.items()}
        begin = [self._named["bos_token"]] if self._adds("bos_token", default=True) else []
        end = [self._named["eos_token"]] if self._adds("eos_token", default=False) else []
        return processors.TemplateProcessing(
            single=[*begin, "$A", *end],
            pair=[*begin, "$A", *end, *(f"{mark}:1" for mark in begin), "$B:1", *(f"{m}:1" for m in end)],
            special_tokens=[(mark, ids[mark]) for mark in {*begin, *end}],
        )

    def _adds(self, role: str, *, default: bool) -> bool:
        return role in self._named and self._settings.get(f"add_{role}", default) is True

    def _compare(self, tokenizer: Tokenizer) -> None:
        self._proto.normalizer_spec.add_dummy_prefix = self._prefix
        theirs = sentencepiece.SentencePieceProcessor(model_proto=self._proto.SerializeToString())
        for text in PROBES:
            expected, found = theirs.encode(text), tokenizer.encode(text, add_special_tokens=False).ids
            if expected != found:
                raise DataError(
                    f"no tokenizer.json can be made of tokenizer.model: for {text!r} it would give "
                    f"{tokenizer.decode(found)!r} as {found}, sentencepiece gives {expected}",
                    code=codes.UNUSABLE_TOKENIZER,
                    where=str(self._folder / MODEL_FILE),
                    remedy="put a tokenizer.json beside it; its ids are then those that count",
                )


def _proto(folder: Path) -> Any:
    proto: Any = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((folder / MODEL_FILE).read_bytes())
    return proto


def _settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json; special_tokens_map.json goes before it where no tokens are listed by id."""
    settings = _read(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in settings:
        settings |= _read(folder / "special_tokens_map.json")
    return settings


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    found = json.loads(file.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def _content(token: object) -> str:
    """Of a token as settings have it: its text, or a dictionary of its text and flags."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _flags(token: Any) -> dict[str, Any]:
    names = ("content", "lstrip", "rstrip", "single_word", "normalized", "special")
    if isinstance(token, AddedToken):
        return {name: getattr(token, name) for name in names}
    return {name: token[name] for name in names if name in token}


def _escaped(name: str) -> str:
    return "".join(rf"\x{{{ord(character):x}}}" for character in name)
