"""Tokenizers made of a sentencepiece model: the same ids as sentencepiece itself gives."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.published_bases import ADDED, train_sentencepiece, write_llama_tokenizer
from tests.unit.data.support import CORPUS
from zhongjing.codes import model as codes
from zhongjing.data.encoding import RecordEncoder
from zhongjing.data.inspect import inspect_sources
from zhongjing.data.sentencepiece_model import is_sentencepiece
from zhongjing.data.tokenizer_folder import load_tokenizer, read_tokenizer
from zhongjing.errors import DataError
from zhongjing.model.delta import SENTENCES
from zhongjing.model.tokenizer import save_tokenizer

TEXTS = [*CORPUS, *SENTENCES, "for  i in  range(3):\n    print(i)", "The patient takes 250 mg a day."]
MARKS = (*ADDED, "<s>", "</s>", "<unk>")
PLAIN = (
    *("头痛三天了，怎么办？", " 头痛", "   头痛  发热 ", "\n\n头痛\n  发热\t\n", "\t", "  ", "\n", "a"),
    *("鼽衄癥瘕", "😀👩‍⚕️", "e\u0301 ﬁ ½ Ａ", "a\u0000b\u0007\u200b\u3000c", "▁ ▁▁a", "<0x0A> <0x41>", ""),
    *("Take 250 mg,  twice a day.", "38.5℃ 120/80mmHg", "\r\n", "<", "<s", "< s >", "</", "<human"),
)
MARKED = (
    *("<s>头痛", "<s> 头痛", " <s>头痛", "头痛</s>", "头痛</s> ", "头痛 </s>\n发热", "<s><s>", "<s> </s>"),
    *("<human>:头痛怎么办\n<bot>:", "<human>: 头痛 <bot>:  多休息\n</s><human>:谢谢", "a<unk>b"),
)
Maker = Callable[..., tuple[Path, bytes]]


@pytest.fixture(scope="module")
def models() -> dict[str, bytes]:
    """By algorithm, and one with symbols and rules that LLaMA's lacks."""
    return {
        "bpe": train_sentencepiece(TEXTS * 4, 460),
        "unigram": train_sentencepiece(TEXTS * 4, 460, model_type="unigram"),
        "bpe-defined": train_sentencepiece(TEXTS * 4, 460, user_defined_symbols=["<|im_start|>", "[头]"]),
        "unigram-defined": train_sentencepiece(
            TEXTS * 4, 460, model_type="unigram", user_defined_symbols=["<|im_start|>", "[头]"]
        ),
        "normalising": train_sentencepiece(
            TEXTS * 4, 460, normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True
        ),
        "no-dummy": train_sentencepiece(TEXTS * 4, 460, add_dummy_prefix=False),
        "no-bytes": train_sentencepiece(TEXTS * 4, 300, byte_fallback=False),
    }


def write(folder: Path, model: bytes, **settings: Any) -> Path:
    write_llama_tokenizer(folder, model, ADDED)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, **settings}))
    return folder


def reference(model: bytes, text: str, *, legacy: bool = True) -> list[int]:
    """As transformers 4's LlamaTokenizer did it, by sentencepiece alone."""
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    proto.normalizer_spec.add_dummy_prefix &= legacy
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    ids = {token: processor.get_piece_size() + place for place, token in enumerate(ADDED)}
    ids |= {mark: processor.piece_to_id(mark) for mark in ("<s>", "</s>", "<unk>")}
    if not legacy and text:
        text = "▁" + text.replace("▁", " ")
    parts = [part for part in re.split("(" + "|".join(map(re.escape, MARKS)) + ")", text) if part]
    if not legacy and len(parts) > 1 and parts[0] == "▁" and parts[1] in MARKS:
        parts = parts[1:]
    found: list[int] = []
    for part in parts:
        if part in ids:
            found.append(ids[part])
        elif not legacy and part.startswith(("▁", " ")):
            # Without its dummy space sentencepiece drops a leading one: hidden behind what cannot merge.
            hidden = len(processor.encode("<unk>"))
            found += processor.encode(f"<unk>{part}")[hidden:]
        else:
            found += processor.encode(part)
    return found


def random_texts(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    atoms = [
        *"头痛发热，。 \n\t  ▁a1<>s鼽😀\u3000",
        "  ",
        *MARKS,
        "<|im_start|>",
        "[头]",
        *TEXTS[:6],
        "<0x0A>",
    ]
    return ["".join(rng.choices(atoms, k=rng.randrange(1, 14))) for _ in range(count)]


@pytest.mark.parametrize("kind", ["bpe", "unigram", "no-dummy", "no-bytes"])
@pytest.mark.parametrize("settings", [{}, {"legacy": True}, {"legacy": None}, {"legacy": False}], ids=str)
def test_ids_are_those_of_sentencepiece(
    kind: str, settings: dict[str, Any], models: dict[str, bytes], tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(write(tmp_path, models[kind], **settings))
    legacy = settings.get("legacy") is not False
    for text in (*PLAIN, *MARKED, *random_texts(0, 300)):
        if not legacy and "▁" in text and kind == "no-dummy":
            continue
        expected = reference(models[kind], text, legacy=legacy)
        assert tokenizer.encode(text, add_special_tokens=False) == expected, text


@pytest.mark.parametrize("kind", ["bpe-defined", "unigram-defined", "normalising"])
def test_symbols_and_normalisation_of_a_model_are_its_own(
    kind: str, models: dict[str, bytes], tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(write(tmp_path, models[kind]))
    defined = ("<|im_start|>user\n头痛", "a<|im_start|>", " [头] [头][头]痛", "<|im_start|>")
    for text in (*PLAIN, *MARKED, *defined, *random_texts(1, 300)):
        assert tokenizer.encode(text, add_special_tokens=False) == reference(models[kind], text), text


@pytest.mark.parametrize("kind", ["bpe", "unigram", "no-dummy"])
def test_text_comes_back_as_sentencepiece_gives_it_back(
    kind: str, models: dict[str, bytes], tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(write(tmp_path, models[kind]))
    processor = sentencepiece.SentencePieceProcessor(model_proto=models[kind])
    texts = [text for text in (*PLAIN, *random_texts(2, 100)) if not any(mark in text for mark in MARKS)]
    for text in texts:
        ids = processor.encode(text)
        assert tokenizer.decode(ids) == processor.decode(ids), text
    assert sum(processor.decode(processor.encode(text)) == text for text in texts) > 50


def test_settings_of_the_folder_are_kept(models: dict[str, bytes], tmp_path: Path) -> None:
    folder = write(
        tmp_path, models["bpe"], chat_template="{{ bos_token }}", padding_side="left", pad_token="<pad>"
    )
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"additional_special_tokens": ["<bot>", "<new>"]})
    )
    tokenizer = load_tokenizer(folder)
    assert tokenizer("头痛")["input_ids"][0] == tokenizer.bos_token_id == 1
    assert (tokenizer.eos_token_id, tokenizer.unk_token_id) == (2, 0)
    assert (tokenizer.padding_side, tokenizer.model_max_length) == ("left", 2048)
    assert tokenizer.chat_template == "{{ bos_token }}"
    ids = tokenizer.get_vocab()
    assert [ids[token] for token in ADDED] == [len(ids) - 4, len(ids) - 3]
    assert {ids["<pad>"], ids["<new>"]} == {len(ids) - 2, len(ids) - 1}
    assert tokenizer.decode([1, ids["<human>"], ids["<bot>"]], skip_special_tokens=True) == "<human>"
    assert tokenizer.name_or_path == str(folder)


def test_a_folder_is_converted_once_until_it_changes(models: dict[str, bytes], tmp_path: Path) -> None:
    folder = write(tmp_path, models["bpe"])
    first, second = load_tokenizer(folder), load_tokenizer(folder)
    first.chat_template = first.pad_token = "<s>"
    assert second.chat_template is None
    assert second.pad_token is None
    write(folder, models["unigram"], legacy=False)
    third = load_tokenizer(folder)
    for text in (*PLAIN, *MARKED):
        assert second.encode(text, add_special_tokens=False) == reference(models["bpe"], text)
        expected = reference(models["unigram"], text, legacy=False)
        assert third.encode(text, add_special_tokens=False) == expected


def test_ids_of_added_tokens_may_leave_gaps_and_rename_pieces(
    models: dict[str, bytes], tmp_path: Path
) -> None:
    """Yi-6B-Chat gives <|im_end|> the place of a piece; others set their marks behind reserved rows."""
    for kind in ("bpe", "unigram"):
        decoder = {
            str(i): {"content": t, "special": True} for i, t in ((0, "<unk>"), (1, "<s>"), (2, "</s>"))
        }
        decoder |= {
            "5": {"content": "<|im_end|>", "special": True},
            "600": {"content": "<far>", "special": True},
        }
        tokenizer = load_tokenizer(write(tmp_path / kind, models[kind], added_tokens_decoder=decoder))
        ids = tokenizer.encode("<|im_end|><far>", add_special_tokens=False)
        assert ids == [5, 600]
        assert tokenizer.convert_ids_to_tokens(ids) == ["<|im_end|>", "<far>"]


def test_pieces_are_merged_by_score_not_by_place(models: dict[str, bytes], tmp_path: Path) -> None:
    """As where a vocabulary was extended: pieces behind the others that come first."""
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(models["bpe"])
    merged = [p for p in proto.pieces if p.type == 1 and len(p.piece) > 1]
    scores = sorted((p.score for p in merged), reverse=True)
    random.Random(0).shuffle(scores)
    for piece, score in zip(merged, scores, strict=True):
        piece.score = score
    model = proto.SerializeToString()
    tokenizer = load_tokenizer(write(tmp_path, model))
    for text in (*PLAIN, *MARKED, *random_texts(3, 100)):
        assert tokenizer.encode(text, add_special_tokens=False) == reference(model, text), text


def test_a_model_that_cannot_be_had_as_tokenizer_json_is_refused(
    models: dict[str, bytes], tmp_path: Path
) -> None:
    """Pieces of one score, as where a vocabulary was extended by merge_tokenizers.py of Chinese-LLaMA.

    sentencepiece takes the leftmost pair; in tokenizer.json one pair goes before the other everywhere.
    """
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(models["bpe"])
    proto.pieces.add(piece="高血", score=0.0)
    competing = next(piece for piece in proto.pieces if piece.piece == "血压")
    competing.score = 0.0
    folder = write(tmp_path, proto.SerializeToString())
    with pytest.raises(DataError, match=r"sentencepiece gives") as caught:
        load_tokenizer(folder)
    assert caught.value.code is codes.UNUSABLE_TOKENIZER
    assert "tokenizer.json" in str(caught.value.remedy)


def test_other_tokenizers_are_left_to_transformers(models: dict[str, bytes], tmp_path: Path) -> None:
    assert is_sentencepiece(write(tmp_path / "llama", models["bpe"]))
    assert is_sentencepiece(write(tmp_path / "early", models["bpe"], tokenizer_class="LLaMATokenizer"))
    assert not is_sentencepiece(write(tmp_path / "gemma", models["bpe"], tokenizer_class="GemmaTokenizer"))
    folder = write(tmp_path / "fast", models["bpe"])
    (folder / "tokenizer.json").write_text("{}")
    assert not is_sentencepiece(folder)
    folder = write(tmp_path / "tiktoken", models["bpe"])
    (folder / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    assert not is_sentencepiece(folder)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_stored_tokenizer_gives_the_same_ids_to_anybody(
    legacy: bool, models: dict[str, bytes], tmp_path: Path
) -> None:
    folder = write(tmp_path / "base", models["bpe"], legacy=legacy)
    tokenizer = load_tokenizer(folder)
    save_tokenizer(tokenizer, tmp_path / "stored", pieces=folder)
    (tmp_path / "stored" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    settings = json.loads((tmp_path / "stored" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"  # which transformers 4 has too
    assert not isinstance(settings.get("extra_special_tokens"), list)
    assert {token["content"] for token in settings["added_tokens_decoder"].values()} == set(MARKS)
    assert (tmp_path / "stored" / "tokenizer.model").read_bytes() == models["bpe"]
    theirs = AutoTokenizer.from_pretrained(str(tmp_path / "stored"))
    # transformers 4 takes what stands in tokenizer.json, BOS included.
    plain = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "stored" / "tokenizer.json"))
    for text in (*PLAIN, *MARKED):
        expected = [1, *reference(models["bpe"], text, legacy=legacy)]
        assert (
            theirs(text)["input_ids"] == plain(text)["input_ids"] == tokenizer(text)["input_ids"] == expected
        )


@pytest.mark.parametrize("name", ["LlamaTokenizer", "LlamaTokenizerFast"])
def test_a_published_tokenizer_json_is_the_rule(name: str, models: dict[str, bytes], tmp_path: Path) -> None:
    """huggyllama/llama-7b and meta-llama/Llama-2-7b-hf have both files; transformers 4 reads the json as is.

    Its normalizer is ``[Prepend ▁, Replace " " by ▁]``, without a pre-tokenizer (also as examples of
    tokenizer.json in mlc-ai/xgrammar's ``DetectPrependNormalizer``). transformers 5 puts Metaspace there.
    """
    model = models["bpe"]
    plain = load_tokenizer(write(tmp_path / "plain", model, tokenizer_class=name))
    folder = write(tmp_path / "both", model, tokenizer_class=name)
    plain.backend_tokenizer.save(str(folder / "tokenizer.json"))
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert [step["type"] for step in content["normalizer"]["normalizers"]] == ["Prepend", "Replace"]
    assert content["pre_tokenizer"] is None
    tokenizer = load_tokenizer(folder)
    theirs = AutoTokenizer.from_pretrained(str(folder))
    texts = [*PLAIN, *MARKED, *random_texts(3, 60)]
    wanted = [reference(model, text) for text in texts]
    assert [tokenizer.encode(text, add_special_tokens=False) for text in texts] == wanted
    assert [theirs.encode(text, add_special_tokens=False) for text in texts] != wanted
    assert read_tokenizer(folder)[1]
    assert (tokenizer.bos_token, tokenizer.eos_token) == (theirs.bos_token, theirs.eos_token)
    # What a stage stores is read alike by whoever loads it.
    save_tokenizer(tokenizer, tmp_path / "stored", pieces=folder)
    (tmp_path / "stored" / "config.json").write_text('{"model_type": "llama"}')
    stored = AutoTokenizer.from_pretrained(str(tmp_path / "stored"))
    assert [stored.encode(text, add_special_tokens=False) for text in texts] == wanted
    assert not read_tokenizer(tmp_path / "stored")[1]


def test_token_caches_and_inspection_count_the_same_ids(models: dict[str, bytes], tmp_path: Path) -> None:
    folder = write(tmp_path / "base", models["bpe"])
    encoder = RecordEncoder(load_tokenizer(folder))
    for text in PLAIN:
        assert encoder.tokenizer.encode(text, add_special_tokens=False) == reference(models["bpe"], text)
    texts = [text for text in PLAIN if text and text == text.strip() and "\u0000" not in text]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (report,) = inspect_sources([str(path)], tokenizer_folder=folder).sources
    counted = [len(reference(models["bpe"], text)) for text in texts]
    assert report.tokens is not None
    assert (report.tokens.total, report.tokens.largest) == (sum(counted), max(counted))
