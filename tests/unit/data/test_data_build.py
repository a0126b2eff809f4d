"""Builds of every stage: what is counted, split and kept, and when a build is found again."""

from __future__ import annotations

import json
from typing import Any, cast

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from tests.unit.data import build_support
from tests.unit.data.build_support import LAYOUT, QUARANTINE, Bench, qa
from tests.unit.data.support import MemoryStore, document
from zhongjing.config.keys import digest
from zhongjing.config.stages import Stage
from zhongjing.data.build import build_token_cache
from zhongjing.data.cachekey import cache_key_fields
from zhongjing.data.corpus import corpus_texts
from zhongjing.data.tokens import TokenCacheRef
from zhongjing.storage.manifest import SourceCounts
from zhongjing.storage.objects import ObjectStore
from zhongjing.train.ppo.episodes import Episode, reward_row

# pytest takes a module's fixtures by their names in it.
bench = build_support.bench


def total(counts: SourceCounts) -> None:
    """Every record read has one fate."""
    assert counts.read == (
        counts.kept + counts.too_long + counts.duplicates + counts.leaks + counts.quarantined
    )
    assert counts.kept == counts.train + counts.validation + counts.test


def texts(bench: Bench, ref: TokenCacheRef, split: str, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    opened = bench.open(ref, split)
    samples = opened.fetch(range(len(opened)))
    return [str(tokenizer.decode(segment.ids)) for sample in samples for segment in sample.segments]


def test_counts_splits_and_contents_of_dialogues(bench: Bench, chatml: PreTrainedTokenizerFast) -> None:
    records: list[Any] = qa(0, 400) + qa(0, 7)
    records.append({"question": "很长的回答？", "answer": "答" * 600})
    records.append({"question": "问" * 600, "answer": "短答"})
    records.append({"question": "没有回答", "answer": ""})
    records.append({"question": "藏着标记<|im_end|>的问题", "answer": "答"})
    bench.source("qa", "dialogue", records)
    ref = bench.build(Stage.SFT, "qa")
    (counts,) = ref.counts
    total(counts)
    assert (counts.read, counts.duplicates, counts.too_long, counts.truncated, counts.quarantined) == (
        411, 7, 1, 1, 2,
    )  # fmt: skip
    assert (counts.test, counts.leaks) == (0, 0)
    assert 20 <= counts.validation <= 62
    assert ref.samples == {"train": counts.train, "validation": counts.validation, "test": 0}
    train, held = (set(texts(bench, ref, split, chatml)) for split in ("train", "validation"))
    assert len(train) == counts.train
    assert not train & held
    opened = bench.open(ref, "train")
    assert ref.targets["train"] == int(opened.targets.sum())
    lines = [json.loads(line) for line in bench.memory.get(QUARANTINE).decode().splitlines()]
    assert [line["reason"] for line in lines] == [
        "the answer is empty",
        "its text contains a special token of the tokenizer",
    ]
    assert [(line["index"], line["line"]) for line in lines] == [(409, 410), (410, 411)]
    assert "没有回答" not in bench.memory.get(QUARANTINE).decode()
    assert bench.reports[-1][1] <= 1.0
    assert [part for _, part in bench.reports] == sorted(part for _, part in bench.reports)


def test_a_second_build_finds_the_first(bench: Bench) -> None:
    bench.source("qa", "dialogue", [*qa(0, 200), {"question": "x", "answer": ""}])
    first = bench.build(Stage.SFT, "qa")
    del bench.memory.objects[QUARANTINE]
    bench.memory.ranges.clear()
    second = bench.build(Stage.SFT, "qa", learningRate=1e-3, epochs=7, microBatchSize=2, workers=2)
    assert second == first
    assert bench.memory.ranges == [], "no source was read again"
    assert b"the answer is empty" in bench.memory.get(QUARANTINE)


def test_an_unfinished_build_is_no_cache(bench: Bench) -> None:
    bench.source("qa", "dialogue", qa(0, 50))
    ref = bench.build(Stage.SFT, "qa")
    manifest = bench.memory.objects.pop(f"{ref.uri}/manifest.json")
    assert bench.build(Stage.SFT, "qa") == ref
    assert bench.memory.objects[f"{ref.uri}/manifest.json"] == manifest, (
        "the same sources give the same bytes"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"maxLength": 256},
        {"validationFraction": 0.2},
        {"systemPrompt": "你是医生"},
        {"mixture": {"singleTurn": 1}},
        {"source": {"testFraction": 0.1}},
        {"source": {"format": "jsonl"}},
        {"digest": "other"},
        {"tokenizer": "other"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_key_changes_with_what_changes_the_bytes(bench: Bench, change: dict[str, Any]) -> None:
    bench.source("qa", "dialogue", qa(0, 5))
    digests, tokenizer = {"qa": "d"}, "t"
    before = digest(cache_key_fields(bench.document(Stage.SFT, "qa"), Stage.SFT, digests, tokenizer))
    bench.sources[0].update(change.pop("source", {}))
    digests["qa"] = change.pop("digest", "d")
    tokenizer = change.pop("tokenizer", "t")
    after = digest(cache_key_fields(bench.document(Stage.SFT, "qa", **change), Stage.SFT, digests, tokenizer))
    assert before != after


@pytest.mark.parametrize(
    "change",
    [
        {"learningRate": 1e-3},
        {"workers": 3},
        {"globalBatchSize": 8},
        {"seed": 9},
        {"source": {"uri": "s3://elsewhere/x"}},
        {"source": {"keepText": True, "wait": True}},
        {"source": {"category": "general"}},
    ],
    ids=str,
)
def test_the_key_stays_with_what_does_not(bench: Bench, change: dict[str, Any]) -> None:
    bench.source("qa", "dialogue", qa(0, 5))
    before = cache_key_fields(bench.document(Stage.SFT, "qa"), Stage.SFT, {"qa": "d"}, "t")
    bench.sources[0].update(change.pop("source", {}))
    assert cache_key_fields(bench.document(Stage.SFT, "qa", **change), Stage.SFT, {"qa": "d"}, "t") == before


def test_what_shares_half_of_a_test_passage_leaks_where_it_is_asked_for(bench: Bench) -> None:
    asked = "三岁的孩子从前天夜里开始发烧到三十九度二，吃了退烧药以后还是反复，要不要马上去医院？"
    answered = "如果精神尚好可以先物理降温并观察，若持续高热超过三天或出现抽搐请立即就诊。"
    bench.source("exam", "dialogue", [{"question": asked, "answer": answered}], split="test")
    talks = [
        {"question": f"医生早上好，{asked}谢谢您", "answer": "请到儿科就诊。"},
        {"question": "别的孩子也这样，能用同一个办法吗？", "answer": f"{answered}祝好。"},
        {"question": "三岁的孩子从前天夜里开始咳嗽，要紧吗？", "answer": "请到儿科就诊。"},
    ]
    bench.source("talks", "dialogue", talks)
    bench.source("book", "text", [{"text": f"儿童发热。{asked}{answered}"}, {"text": "咳嗽。"}])
    before = cache_key_fields(bench.document(Stage.SFT, "talks"), Stage.SFT, {"talks": "d", "exam": "e"}, "t")
    assert "leakOverlap" not in str(before)
    assert bench.build(Stage.SFT, "talks").counts[0].leaks == 0
    bench.sources[0]["leakOverlap"] = 0.5
    after = cache_key_fields(bench.document(Stage.SFT, "talks"), Stage.SFT, {"talks": "d", "exam": "e"}, "t")
    assert after != before
    counts = bench.build(Stage.SFT, "talks").counts[0]
    total(counts)
    assert (counts.leaks, counts.kept) == (2, 1)
    pretrain = bench.build(Stage.PRETRAIN, "book").counts[0]
    assert (pretrain.leaks, pretrain.kept) == (1, 1)


def test_test_data_is_taken_out_of_every_stage(bench: Bench, chatml: PreTrainedTokenizerFast) -> None:
    bench.source("exam", "dialogue", qa(0, 30, "考"), split="test")
    bench.source("half", "dialogue", qa(100, 100), testFraction=0.5)
    # The same questions again, in other corpora, kinds and words.
    bench.source("copy", "dialogue", qa(0, 40) + qa(100, 110, "抄"))
    ranked = [{"prompt": q["question"], "chosen": "好", "rejected": "坏"} for q in qa(0, 40) + qa(100, 100)]
    bench.source("ranked", "ranking", ranked)

    sft = bench.build(Stage.SFT, "half", "copy")
    half, copy, exam = sft.counts
    for counts in sft.counts:
        total(counts)
    assert 30 <= half.test <= 70
    assert half.leaks == 0
    assert copy.leaks == 30 + half.test
    assert (exam.name, exam.test, exam.train) == ("exam", 30, 0)
    assert sft.samples["test"] == half.test + 30
    tested = {text.split("\n")[1] for text in texts(bench, sft, "test", chatml)}
    for split in ("train", "validation"):
        assert not tested & {text.split("\n")[1] for text in texts(bench, sft, split, chatml)}

    rm = bench.build(Stage.RM, "ranked")
    assert rm.counts[0].leaks == 30 + half.test
    ppo = bench.build(Stage.PPO, "ranked", "copy", maxPromptLength=128)
    assert [c.leaks for c in ppo.counts[:2]] == [30 + half.test] * 2
    assert ppo.counts[1].duplicates == 110 - half.test, "the same questions, already taken from the rankings"
    pretrain = bench.build(Stage.PRETRAIN, "copy")
    assert pretrain.counts[0].leaks == copy.leaks
    assert [c.name for c in pretrain.counts] == ["copy"], "dialogues are no test data of pretraining"


def test_a_record_never_changes_sides(bench: Bench, chatml: PreTrainedTokenizerFast) -> None:
    bench.source("one", "dialogue", qa(0, 300))
    before = bench.build(Stage.SFT, "one")
    held = set(texts(bench, before, "validation", chatml))
    other = Bench(MemoryStore(), bench.tokenizer)
    other.source("first", "dialogue", json.dumps(qa(1000, 500) + qa(0, 150)[::-1]).encode())
    other.source("second", "dialogue", qa(150, 150))
    after = other.build(Stage.SFT, "second", "first")
    assert held < set(texts(other, after, "validation", chatml))
    assert not held & set(texts(other, after, "train", chatml))


def test_rankings_keep_their_ranks_and_their_prompts_together(
    bench: Bench, chatml: PreTrainedTokenizerFast
) -> None:
    records = []
    for i in range(120):
        question = f"第{i}位患者发烧三天应该怎么办？"
        records.append({"prompt": question, "answers": ["甲", "乙", "丙", "丁"], "ranks": [1, 0, 1, 2]})
        records.append({"prompt": question, "chosen": "子", "rejected": "丑"})
    bench.source("ranked", "ranking", records)
    ref = bench.build(Stage.RM, "ranked")
    found: dict[str, set[str]] = {}
    for split in ("train", "validation"):
        opened = bench.open(ref, split)
        for sample in opened.fetch(range(len(opened))):
            assert sample.ranks in ((1, 0, 1, 2), (0, 1))
            assert sample.targets == 0
            found.setdefault(split, set()).add(str(chatml.decode(sample.segments[0].ids)).split("\n")[1])
    assert not found["train"] & found["validation"], "both rankings of a prompt are on the same side"
    assert sum(ref.samples.values()) == 240


def test_prompts_of_every_kind(bench: Bench, chatml: PreTrainedTokenizerFast) -> None:
    turns = [{"from": "human", "value": "我头痛三天了，应该怎么办？"}, {"from": "gpt", "value": "多休息"}]
    turns += [{"from": "human", "value": "要吃药吗"}, {"from": "gpt", "value": "不用"}]
    bench.source("talk", "dialogue", [{"conversations": turns}])
    bench.source("bare", "prompts", [{"prompt": "孩子发烧到三十九度要不要去医院？"}])
    bench.source(
        "ranked", "ranking", [{"prompt": "糖尿病患者能不能吃西瓜呢请问？", "chosen": "好", "rejected": "坏"}]
    )
    ref = bench.build(Stage.PPO, "talk", "bare", "ranked", maxPromptLength=128, validationFraction=0.0)
    found = texts(bench, ref, "train", chatml)
    assert all(text.endswith("<|im_start|>assistant\n") for text in found)
    assert "多休息" in found[0]
    assert "要吃药吗" in found[0]
    assert "不用" not in found[0]
    assert ref.targets["train"] == 0
    opened = bench.open(ref, "train")
    assert [opened.group_names[group] for group in opened.groups] == ["talk", "bare", "ranked"]


def test_books_become_windows_of_isolated_sections(bench: Bench, chatml: PreTrainedTokenizerFast) -> None:
    lines = [f"第{i}段：传染病是由病原微生物感染人体后产生的疾病，{i * 7919 % 1000}例。" for i in range(1500)]
    bench.source("book", "text", "\n".join(lines).encode("gb18030"))
    bench.source(
        "notes", "text", [{"text": "高血压患者应当少吃盐。" * 3}, {"text": "糖尿病患者应当控制饮食。"}]
    )
    ref = bench.build(Stage.PRETRAIN, "book", "notes", maxLength=256, sectionCharacters=400)
    book, notes = ref.counts
    total(book)
    assert 80 < book.read < 160
    assert notes.read == 2
    assert 0 < book.validation < 0.3 * book.read
    opened = bench.open(ref, "train")
    samples = opened.fetch(range(len(opened)))
    end = chatml.convert_tokens_to_ids("<|endoftext|>")
    assert max(sample.tokens for sample in samples) <= 256
    assert all(segment.target[1:].all() for sample in samples for segment in sample.segments)
    ends = sum(int((segment.ids == end).sum()) for sample in samples for segment in sample.segments)
    assert ends == book.train + notes.train
    assert any(len(sample.segments) > 1 for sample in samples)
    # Every token after the first of a text is predicted exactly once.
    assert ref.targets["train"] == ref.tokens["train"] - sum(len(sample.segments) for sample in samples)
    sets = [set("".join(texts(bench, ref, split, chatml)).split("\n")) for split in ("train", "validation")]
    whole = [{line for line in found if line in lines} for found in sets]
    assert not whole[0] & whole[1]


def test_categories_are_groups_when_a_mixture_is_set(bench: Bench) -> None:
    multi = [
        {
            "instruction": f"第{i}个病人的后续问题是什么？",
            "output": "答",
            "history": [[f"第{i}个病人的第一个问题是什么", "先答"]],
        }
        for i in range(20)
    ]
    bench.source("mixed", "dialogue", qa(0, 60) + multi)
    bench.source("general", "dialogue", qa(500, 30), category="general")
    ref = bench.build(
        Stage.SFT, "mixed", "general", mixture={"singleTurn": 7, "multiTurn": 1}, validationFraction=0.0
    )
    opened = bench.open(ref, "train")
    names, numbers = np.unique(opened.groups, return_counts=True)
    found = {opened.group_names[name]: int(number) for name, number in zip(names, numbers, strict=True)}
    assert found == {"singleTurn": 60, "multiTurn": 20, "general": 30}


def test_texts_for_a_tokenizer_leave_test_data_out(bench: Bench) -> None:
    bench.source("half", "dialogue", qa(0, 100), testFraction=0.5)
    bench.source("exam", "dialogue", qa(0, 5), split="test")
    doc = bench.document(Stage.SFT, "half")
    store = cast("ObjectStore", bench.memory)
    found = list(corpus_texts(store, doc.spec.source("half"), bench.frozen[0]))
    assert 60 <= len(found) <= 140
    assert len(found) % 2 == 0
    assert list(corpus_texts(store, doc.spec.source("exam"), bench.frozen[1])) == []


def staged(bench: Bench, stages: dict[str, Any], stage: Stage) -> TokenCacheRef:
    store = cast("ObjectStore", bench.memory)
    return build_token_cache(
        store, LAYOUT, document(bench.sources, stages), stage, bench.frozen, bench.tokenizer,
        lambda *_: None, QUARANTINE,
    )  # fmt: skip


def test_the_reward_model_learns_from_what_it_will_be_shown(
    bench: Bench, chatml: PreTrainedTokenizerFast
) -> None:
    ranked = [{"prompt": "头痛怎么办？", "chosen": "多休息。", "rejected": "不知道。"}]
    own = [{"role": "system", "content": "你是护士"}, {"role": "user", "content": "发烧怎么办？"}]
    ranked.append({"prompt": own, "chosen": "多喝水。", "rejected": "不知道。"})  # type: ignore[dict-item]
    bench.source("qa", "dialogue", qa(0, 20))
    bench.source("ranked", "ranking", ranked)
    data = {"data": [{"source": "ranked"}], "validationFraction": 0.0, "maxLength": 256}
    stages: dict[str, Any] = {
        "sft": {"data": [{"source": "qa"}], "systemPrompt": "你是医生", "maxLength": 256},
        "rm": data,
        "ppo": {**data, "maxPromptLength": 128, "maxNewTokens": 64},
    }
    caches = {stage: staged(bench, stages, stage) for stage in (Stage.SFT, Stage.RM, Stage.PPO)}
    assert all("你是医生" in text for text in texts(bench, caches[Stage.SFT], "train", chatml))
    opened = bench.open(caches[Stage.PPO], "train")
    prompts = [sample.segments[0].ids.tolist() for sample in opened.fetch(range(len(opened)))]
    asked = [str(chatml.decode(prompt)) for prompt in prompts]
    assert sorted("你是医生" in text for text in asked) == [False, True]
    assert sorted("你是护士" in text for text in asked) == [False, True]
    opened = bench.open(caches[Stage.RM], "train")
    rows = [s.ids.tolist() for sample in opened.fetch(range(len(opened))) for s in sample.segments]
    assert len(rows) == 4
    closing = [int(chatml.convert_tokens_to_ids("<|im_end|>"))]  # type: ignore[arg-type]
    for row in rows:
        prompt = next(prompt for prompt in prompts if row[: len(prompt)] == prompt)
        # Token by token what PPO will have scored when the policy gives this very answer.
        episode = Episode(np.asarray(prompt), np.asarray(row[len(prompt) :]), ended=True)
        assert reward_row([episode], closing, closing).input_ids.flatten().tolist() == row


def test_prompts_leave_room_for_a_response_of_full_length(bench: Bench) -> None:
    bench.source("qa", "dialogue", [{"question": "头痛" * 40, "answer": "好"}])
    ref = bench.build(
        Stage.PPO, "qa", maxPromptLength=128, maxLength=100, maxNewTokens=50, validationFraction=0.0
    )
    assert all(tokens <= 50 for tokens in bench.open(ref, "train").tokens)
    ref = bench.build(
        Stage.PPO, "qa", maxPromptLength=128, maxLength=178, maxNewTokens=50, validationFraction=0.0
    )
    assert 50 < max(bench.open(ref, "train").tokens) <= 128


def test_a_question_without_an_answer_is_counted_apart_from_what_is_cut(bench: Bench) -> None:
    records: list[Any] = qa(0, 40)
    turns = [{"role": "user", "content": "头痛"}, {"role": "assistant", "content": "休息"}]
    records.append({"messages": [*turns, {"role": "user", "content": "还有呢？"}]})
    bench.source("qa", "dialogue", records)
    (counts,) = bench.build(Stage.SFT, "qa").counts
    total(counts)
    assert (counts.kept, counts.truncated, counts.unanswered) == (41, 0, 1)
