from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from tests.unit.data.support import (
    CORPUS,
    QWEN3_LIKE_TEMPLATE,
    encode_dialogue,
    make_tokenizer,
    rewrites_history,
)
from zhongjing.data.chat import Unfit, encode_dialogues, encode_prompt, encode_ranking, encode_texts
from zhongjing.data.records import Turn
from zhongjing.data.samples import Segment
from zhongjing.data.templates import CHATML_TEMPLATE, PLAIN_TEMPLATE, ensure_chat_template, special_tokens
from zhongjing.errors import ConfigError

LONG = 100_000
FAMILIES = ("chatml", "plain", "qwen3")


@pytest.fixture
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, PreTrainedTokenizerFast)
    return found


def dialogue(*contents: str, system: str | None = None) -> tuple[Turn, ...]:
    turns = [Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(contents)]
    return (*([Turn("system", system)] if system else []), *turns)


def template_ids(
    tokenizer: PreTrainedTokenizerFast, turns: Sequence[Turn], generation: bool = False
) -> list[int]:
    """What anybody gets at inference."""
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=generation, return_dict=False)
    return list(ids)


def learned(tokenizer: PreTrainedTokenizerFast, segment: Segment) -> list[str]:
    """The texts of the runs of targets."""
    runs: list[list[int]] = []
    before = False
    for token, target in zip(segment.ids.tolist(), segment.target.tolist(), strict=True):
        if target and not before:
            runs.append([])
        if target:
            runs[-1].append(token)
        before = target
    return [str(tokenizer.decode(run)) for run in runs]


TALK = dialogue(
    "头痛三天了，怎么办？",
    "“多休息”，注意保暖。",
    "需要吃药吗",
    "如果体温超过三十八度五，可以服用退烧药。",
    system="你是医生。",
)


@pytest.mark.parametrize("tokenizer", ["chatml", "plain"], indirect=True)
def test_tokens_are_the_templates_and_targets_the_answers_with_their_end(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    encoded = encode_dialogue(tokenizer, TALK, LONG)
    assert encoded is not None
    (segment,), truncated = encoded.segments, encoded.truncated
    assert not truncated
    assert segment.ids.tolist() == template_ids(tokenizer, TALK)
    assert segment.ids.dtype == np.int32
    end = tokenizer.eos_token
    assert learned(tokenizer, segment) == [TALK[2].content + str(end), TALK[4].content + str(end)]
    assert not segment.target[0]


@pytest.mark.parametrize("tokenizer", FAMILIES, indirect=True)
@pytest.mark.parametrize("system", [None, "你是医生。"])
def test_training_tokens_are_inference_tokens(tokenizer: PreTrainedTokenizerFast, system: str | None) -> None:
    """At every assistant turn: prompt of inference + what is learned = the training sequence so far."""
    rng = random.Random(3)
    pieces = [piece for line in CORPUS for piece in line.replace("？", "，").split("，")] + [
        "“引号”",
        ":)",
        "A-b 12",
        "…",
        "\n换行\n\n空行",
    ]
    for _ in range(40):
        rounds = rng.randint(1, 4)
        contents = [("".join(rng.choices(pieces, k=rng.randint(1, 4)))).strip() for _ in range(2 * rounds)]
        turns = dialogue(*contents, system=system)
        encoded = encode_dialogue(tokenizer, turns, LONG)
        assert encoded is not None
        segments = encoded.segments
        answers = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
        assert len(segments) == (rounds if rewrites_history(tokenizer) and rounds > 1 else 1)
        for number, index in enumerate(answers):
            segment = segments[number] if len(segments) > 1 else segments[0]
            prompt = template_ids(tokenizer, turns[:index], generation=True)
            assert segment.ids[: len(prompt)].tolist() == prompt
            assert not segment.target[len(prompt) - 1]
            assert segment.target[len(prompt)]
            run = int(np.argmin(segment.target[len(prompt) :])) or len(segment.ids) - len(prompt)
            said = str(tokenizer.decode(segment.ids[len(prompt) : len(prompt) + run]))
            assert said.endswith(turns[index].content + str(tokenizer.eos_token))


def test_a_token_over_the_border_of_an_answer_is_split_there(plain: PreTrainedTokenizerFast) -> None:
    # ":" ends the generation prompt; a vocabulary that has ":)" as one token would swallow it.
    vocabulary = make_tokenizer(PLAIN_TEMPLATE, chatml=False)
    vocabulary.add_tokens([":x"])
    turns = dialogue("问", "x射线")
    whole = template_ids(vocabulary, turns)
    encoded = encode_dialogue(vocabulary, turns, LONG)
    assert encoded is not None
    ids = encoded.segments[0].ids.tolist()
    assert ids != whole
    prompt = template_ids(vocabulary, turns[:1], generation=True)
    assert ids[: len(prompt)] == prompt
    assert vocabulary.decode(ids) == vocabulary.decode(whole)
    assert learned(vocabulary, encoded.segments[0]) == ["x射线</s>"]


def test_templates_that_rewrite_history_are_detected(
    chatml: PreTrainedTokenizerFast, plain: PreTrainedTokenizerFast, qwen3: PreTrainedTokenizerFast
) -> None:
    assert [rewrites_history(t) for t in (chatml, plain, qwen3)] == [False, False, True]


def test_reasoning_is_learned_where_it_is_last_and_gone_from_history(qwen3: PreTrainedTokenizerFast) -> None:
    turns = dialogue("头痛", "<think>\n可能是感冒\n</think>\n\n多休息", "还有呢", "喝水")
    encoded = encode_dialogue(qwen3, turns, LONG)
    assert encoded is not None
    first, second = encoded.segments
    assert learned(qwen3, first) == ["<think>\n可能是感冒\n</think>\n\n多休息<|im_end|>"]
    assert learned(qwen3, second) == ["<think>\n\n</think>\n\n喝水<|im_end|>"]
    assert "可能是感冒" not in qwen3.decode(second.ids)


@pytest.mark.parametrize("tokenizer", FAMILIES, indirect=True)
@pytest.mark.parametrize("system", [None, "你是医生。"])
def test_too_long_loses_whole_exchanges_from_the_front(
    tokenizer: PreTrainedTokenizerFast, system: str | None
) -> None:
    turns = dialogue(
        *(f"第{i}个{'问' if i % 2 == 0 else '答'}" + CORPUS[i % 4] for i in range(12)), system=system
    )
    head = 1 if system else 0
    whole = encode_dialogue(tokenizer, turns, LONG)
    assert whole is not None
    longest = max(len(segment.ids) for segment in whole.segments)
    kept_before = 6
    for limit in range(longest - 1, 110, -37):
        encoded = encode_dialogue(tokenizer, turns, limit)
        assert encoded is not None
        segments, truncated = encoded.segments, encoded.truncated
        assert truncated
        assert max(len(segment.ids) for segment in segments) <= limit
        last = segments[-1]
        kept = [k for k in range(6) if k == 5 or turns[head + 2 * k].content in tokenizer.decode(last.ids)]
        assert kept == list(range(6))[-len(kept) :], "the latest exchanges stay"
        assert len(kept) <= kept_before
        kept_before = len(kept)
        assert learned(tokenizer, last)[-1].endswith(turns[-1].content + str(tokenizer.eos_token))
        if system:
            assert system in tokenizer.decode(last.ids)
        # One exchange more would not have fitted.
        if 1 < len(kept) < 6 and not rewrites_history(tokenizer):
            more = (*turns[:head], *turns[head + 2 * (5 - len(kept)) :])
            assert len(template_ids(tokenizer, more)) > limit


@pytest.mark.parametrize("tokenizer", FAMILIES, indirect=True)
def test_a_long_question_is_cut_from_the_left_and_the_answer_never(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    question = "".join(f"{i}号" for i in range(300))
    turns = dialogue(question, "多休息，多喝水。")
    encoded = encode_dialogue(tokenizer, turns, 120)
    assert encoded is not None
    (segment,), truncated = encoded.segments, encoded.truncated
    assert truncated
    assert 100 < len(segment.ids) <= 120
    text = tokenizer.decode(segment.ids)
    assert "299号" in text
    assert "\n0号" not in text
    assert learned(tokenizer, segment)[0].endswith("多休息，多喝水。" + str(tokenizer.eos_token))
    assert encode_dialogue(tokenizer, dialogue("问", "答" * 500), 120) is None


@pytest.mark.parametrize("tokenizer", FAMILIES, indirect=True)
def test_batches_give_what_single_dialogues_give(tokenizer: PreTrainedTokenizerFast) -> None:
    talks = [
        TALK,
        dialogue("问", "答" * 400),
        dialogue("短", "答"),
        dialogue("长" * 300, "答", "再问", "再答"),
    ]
    together = encode_dialogues(tokenizer, talks, 150, "系统")
    for talk, found in zip(talks, together, strict=True):
        alone = encode_dialogue(tokenizer, talk, 150, "系统")
        assert (alone is None) == isinstance(found, Unfit)
        if alone is not None and not isinstance(found, Unfit):
            assert alone.truncated == found.truncated
            assert [s.ids.tolist() for s in alone.segments] == [s.ids.tolist() for s in found.segments]
    assert together[1] is Unfit.TOO_LONG


def test_the_system_prompt_is_for_dialogues_without_one(chatml: PreTrainedTokenizerFast) -> None:
    with_own = encode_dialogue(chatml, TALK, LONG, "另一个")
    without = encode_dialogue(chatml, dialogue("问", "答"), LONG, "另一个")
    assert with_own is not None
    assert without is not None
    assert "另一个" not in chatml.decode(with_own.segments[0].ids)
    assert without.segments[0].ids.tolist() == template_ids(chatml, dialogue("问", "答", system="另一个"))


@pytest.mark.parametrize("tokenizer", FAMILIES, indirect=True)
def test_prompts_end_where_an_answer_begins(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = TALK[:4]
    encoded = encode_prompt(tokenizer, turns, LONG)
    assert not isinstance(encoded, Unfit)
    (segment,), truncated = encoded.segments, encoded.truncated
    assert not truncated
    assert segment.ids.tolist() == template_ids(tokenizer, turns, generation=True)
    assert not segment.target.any()
    shorter = encode_prompt(tokenizer, turns, len(segment.ids) - 1)
    assert not isinstance(shorter, Unfit)
    assert shorter.truncated
    assert shorter.segments[0].ids.tolist() == template_ids(tokenizer, (turns[0], turns[3]), generation=True)
    assert encode_prompt(tokenizer, turns, 3) is Unfit.TOO_LONG


@pytest.mark.parametrize("tokenizer", FAMILIES, indirect=True)
def test_ranked_answers_share_their_prompt_and_end_with_the_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    answers = ["多休息。", "去医院检查。" * 8, "不知道", "“喝水”"]
    encoded = encode_ranking(tokenizer, TALK[:4], answers, LONG)
    assert not isinstance(encoded, Unfit)
    prompt = template_ids(tokenizer, TALK[:4], generation=True)
    for answer, segment in zip(answers, encoded.segments, strict=True):
        assert segment.ids[: len(prompt)].tolist() == prompt
        assert segment.ids[-1] == tokenizer.eos_token_id
        assert str(tokenizer.decode(segment.ids)).endswith(answer + str(tokenizer.eos_token))
        assert not segment.target.any()
    longest = max(len(segment.ids) for segment in encoded.segments)
    cut = encode_ranking(tokenizer, TALK[:4], answers, longest - 1)
    assert not isinstance(cut, Unfit)
    assert cut.truncated
    shorter = template_ids(tokenizer, (TALK[0], TALK[3]), generation=True)
    assert all(segment.ids[: len(shorter)].tolist() == shorter for segment in cut.segments)
    assert encode_ranking(tokenizer, TALK[:4], ["短", "长" * 400], 100) is Unfit.TOO_LONG


def test_documents_have_the_marks_that_the_tokenizer_has(
    chatml: PreTrainedTokenizerFast, plain: PreTrainedTokenizerFast
) -> None:
    text = "见 </s> 与 <|im_end|> 两处。"
    inner = encode_texts(chatml, [text])[0]
    assert inner[-1] == chatml.convert_tokens_to_ids("<|endoftext|>")
    assert chatml.eos_token_id not in inner.tolist()
    assert chatml.decode(inner[:-1]) == text
    marked = encode_texts(plain, [text])[0].tolist()
    assert (marked[0], marked[-1]) == (plain.bos_token_id, plain.eos_token_id)
    assert plain.eos_token_id not in marked[:-1]
    # Looking for marks is switched on again for dialogues.
    assert chatml("<|im_end|>")["input_ids"] == [chatml.eos_token_id]


def test_a_tokenizer_without_a_template_gets_one() -> None:
    assert ensure_chat_template(make_tokenizer(None, chatml=True)) == CHATML_TEMPLATE
    assert ensure_chat_template(make_tokenizer(None, chatml=False)) == PLAIN_TEMPLATE
    assert ensure_chat_template(make_tokenizer(None, chatml=True), PLAIN_TEMPLATE) == PLAIN_TEMPLATE
    own = make_tokenizer(QWEN3_LIKE_TEMPLATE, chatml=True)
    assert ensure_chat_template(own) == QWEN3_LIKE_TEMPLATE
    assert ensure_chat_template(own, CHATML_TEMPLATE) == own.chat_template == CHATML_TEMPLATE
    bare = make_tokenizer(None, chatml=False)
    bare.eos_token = None
    with pytest.raises(ConfigError, match="neither a chat template"):
        ensure_chat_template(bare)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}", "never learn to stop"),
        (
            "{% for m in messages %}{{ raise_exception('no') }}{% endfor %}",
            "refuses a dialogue beginning with user",
        ),
    ],
)
def test_templates_that_cannot_be_trained_with_are_refused(template: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ensure_chat_template(make_tokenizer(template, chatml=True))


def test_a_generation_prompt_that_is_no_prefix_is_refused() -> None:
    template = CHATML_TEMPLATE.replace("<|im_start|>assistant\\n' -}}", "<|im_start|>doctor\\n' -}}")
    tokenizer = make_tokenizer(template, chatml=True)
    with pytest.raises(ConfigError, match="is not how it begins"):
        encode_dialogue(tokenizer, dialogue("问", "答"), LONG)


def test_special_tokens_are_all_found(chatml: PreTrainedTokenizerFast) -> None:
    pattern = special_tokens(chatml)
    assert [m.group() for m in pattern.finditer("a<|im_start|>b<|im_end|>c<|endoftext|>")] == [
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
    ]


def test_the_longest_real_dialogue_takes_seconds_not_minutes(chatml: PreTrainedTokenizerFast) -> None:
    turns = dialogue(*(CORPUS[i % 4] for i in range(330)))
    encoded = encode_dialogue(chatml, turns, 1024)
    assert encoded is not None
    assert len(encoded.segments[0].ids) > 900
