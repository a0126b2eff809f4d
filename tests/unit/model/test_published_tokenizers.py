"""Special tokens, ends of turns and templates of well-known models, as they are published."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from tests.published_tokenizers import CHATML, PUBLISHED, write_tokenizer
from tests.unit.data.support import encode_dialogue, rewrites_history
from zhongjing.codes import model as codes
from zhongjing.config.stages import Stage
from zhongjing.data.chat import Unfit, encode_dialogues, encode_prompt, encode_ranking, encode_texts
from zhongjing.data.encoding import RecordEncoder
from zhongjing.data.records import Turn
from zhongjing.data.templates import ensure_chat_template, own_template, turn_end_id
from zhongjing.errors import ConfigError, DataError
from zhongjing.model.base import load_config, write_generation_config
from zhongjing.model.tokenizer import end_ids, load_tokenizer, padding_id

Folder = Callable[[str], Path]
LONG = 100_000
TALK = (
    Turn("system", "你是医生。"),
    Turn("user", "头痛三天了，怎么办？"),
    Turn("assistant", "“多休息”，注意保暖。 Ask a doctor."),
    Turn("user", "需要吃药吗"),
    Turn("assistant", "如果体温超过38.5度，可以服用退烧药。"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    root = tmp_path_factory.mktemp("published")

    def made(name: str) -> Path:
        if not (root / name).is_dir():
            write_tokenizer(root / name, name)
        return root / name

    return made


def trained_with(folder: Path) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(folder)
    ensure_chat_template(tokenizer)
    return tokenizer


def inferred(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], *, prompt: bool) -> list[int]:
    """What anybody gets who asks the tokenizer."""
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    ids: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
    return list(ids)


@pytest.mark.parametrize("name", PUBLISHED)
def test_padding_is_no_end_of_a_turn_and_every_end_is_known(name: str, folder: Folder) -> None:
    published, tokenizer = PUBLISHED[name], trained_with(folder(name))
    id_of = tokenizer.get_vocab()
    assert turn_end_id(tokenizer) == id_of[published.turn_end]
    assert padding_id(tokenizer) == id_of[published.padding]
    missing = {id_of[end] for end in (published.turn_end, *published.ends) if end != "<|eom_id|>"}
    assert missing <= set(end_ids(tokenizer))
    assert padding_id(tokenizer) != id_of[published.turn_end]


@pytest.mark.parametrize("name", PUBLISHED)
def test_generation_config_names_the_end_of_a_turn(name: str, folder: Folder, tmp_path: Path) -> None:
    published, tokenizer = PUBLISHED[name], trained_with(folder(name))
    id_of = tokenizer.get_vocab()
    known = [id_of[end] for end in published.eos_ids]
    theirs: dict[str, Any] = {"temperature": 0.9, "top_k": 5}  # not valid together with greedy decoding
    if known:
        theirs["eos_token_id"] = known if len(known) > 1 else known[0]
    (tmp_path / "generation_config.json").write_text(json.dumps(theirs))
    write_generation_config(tmp_path, folder(name))
    ours = json.loads((tmp_path / "generation_config.json").read_text())
    wanted = {id_of[end] for end in (published.turn_end, *published.ends, *published.eos_ids)}
    assert set(ours["eos_token_id"]) == wanted
    assert ours["pad_token_id"] == id_of[published.padding]
    assert (ours["temperature"], ours["top_k"]) == (0.9, 5)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("first", [0, 1], ids=["system", "plain"])
def test_training_tokens_are_inference_tokens(name: str, first: int, folder: Folder) -> None:
    """At every answer of a dialogue: inference's prompt, then the answer and the end of the turn."""
    published, tokenizer = PUBLISHED[name], trained_with(folder(name))
    end, turns = tokenizer.get_vocab()[published.turn_end], TALK[first:]
    encoded = encode_dialogue(tokenizer, turns, LONG)
    assert encoded is not None
    segments, cut = encoded.segments, encoded.truncated
    assert not cut
    answers = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
    assert len(segments) == (2 if rewrites_history(tokenizer) else 1)
    for number, index in enumerate(answers):
        segment = segments[number % len(segments)]
        prompt = inferred(tokenizer, turns[:index], prompt=True)
        ids, target = segment.ids.tolist(), segment.target.tolist()
        assert ids[: len(prompt)] == prompt
        assert target[len(prompt) - 1 : len(prompt) + 1] == [False, True]
        length = [*target[len(prompt) :], False].index(False)
        learned = ids[len(prompt) : len(prompt) + length]
        assert learned[-1] == end
        assert end not in learned[:-1]
        said = str(tokenizer.decode(learned[:-1])).strip()
        assert said.removeprefix("<think>\n\n</think>\n\n") == turns[index].content
    if not rewrites_history(tokenizer):
        whole = inferred(tokenizer, turns, prompt=False)
        assert segments[0].ids.tolist()[: len(whole)] == whole
    asked = encode_prompt(tokenizer, turns[:-1], LONG)
    assert not isinstance(asked, Unfit)
    assert asked.segments[0].ids.tolist() == inferred(tokenizer, turns[:-1], prompt=True)
    ranked = encode_ranking(tokenizer, turns[:-1], [turns[-1].content, "不知道"], LONG)
    assert not isinstance(ranked, Unfit)
    assert {int(segment.ids[-1]) for segment in ranked.segments} == {end}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_stored_tokenizer_gives_the_same_tokens(name: str, folder: Folder, tmp_path: Path) -> None:
    """A stage stores it with template and padding; it must stay what its publisher made."""
    tokenizer = trained_with(folder(name))
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding_id(tokenizer))
    tokenizer.save_pretrained(str(tmp_path))
    stored = load_tokenizer(tmp_path)
    assert stored.get_vocab() == tokenizer.get_vocab()
    assert stored.chat_template == tokenizer.chat_template
    assert stored.pad_token_id == padding_id(stored) == padding_id(tokenizer)
    assert end_ids(stored) == end_ids(tokenizer)
    assert inferred(stored, TALK, prompt=False) == inferred(tokenizer, TALK, prompt=False)
    text = "  头痛 38.5℃ 😀\n\n e\u0301 It's"
    assert encode_texts(stored, [text])[0].tolist() == encode_texts(tokenizer, [text])[0].tolist()


def test_documents_do_not_end_as_turns_do_where_there_is_a_token_for_it(folder: Folder) -> None:
    for name, end in (("llama-3.1-chat", "<|end_of_text|>"), ("qwen2.5-chat", "<|endoftext|>")):
        tokenizer = load_tokenizer(folder(name))
        assert encode_texts(tokenizer, ["头痛"])[0][-1] == tokenizer.get_vocab()[end]


def test_thoughts_that_a_template_cuts_are_found(folder: Folder) -> None:
    thought = Turn("assistant", "<think>\n可能是感冒\n</think>\n\n多休息")
    alone, earlier = (TALK[1], thought), (TALK[1], thought, *TALK[3:])
    distilled, qwen = (trained_with(folder(name)) for name in ("r1-distill", "qwen3"))
    assert encode_dialogues(distilled, [alone, earlier, TALK], LONG)[:2] == [Unfit.REWRITTEN] * 2
    assert not isinstance(encode_dialogues(distilled, [TALK], LONG)[0], Unfit)
    assert encode_ranking(distilled, TALK[:2], [thought.content, "多休息"], LONG) is Unfit.REWRITTEN
    for turns in (alone, earlier):
        encoded = encode_dialogues(qwen, [turns], LONG)[0]
        assert not isinstance(encoded, Unfit)
        first = encoded.segments[0]
        assert thought.content in str(qwen.decode(first.ids[first.target]))


def with_template(folder: Path, template: object) -> Path:
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    return folder


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path, "qwen2.5-base")
    return tmp_path


def test_of_several_templates_the_default_is_taken(qwen: Path) -> None:
    """transformers takes the one called default where no tools are given (Hermes-2-Pro has a second)."""
    named = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": "{{ tools }}"}]
    tokenizer = load_tokenizer(with_template(qwen, named))
    assert own_template(tokenizer) == CHATML
    assert turn_end_id(tokenizer) == tokenizer.get_vocab()["<|im_end|>"]
    assert ensure_chat_template(tokenizer) == CHATML


def test_several_templates_without_a_default_are_named(qwen: Path) -> None:
    tokenizer = load_tokenizer(with_template(qwen, [{"name": "rag", "template": CHATML}]))
    assert turn_end_id(tokenizer) is None
    with pytest.raises(ConfigError, match="chat templates rag, and no default") as caught:
        ensure_chat_template(tokenizer)
    assert "base.chatTemplate" in (caught.value.remedy or "")
    assert ensure_chat_template(tokenizer, CHATML) == CHATML


@pytest.mark.parametrize("change", ["m.content[:500] +", "m.content | upper +", "m.content | e +"])
def test_templates_that_change_questions_are_refused(change: str, qwen: Path) -> None:
    tokenizer = load_tokenizer(with_template(qwen, CHATML.replace("m.content +", change)))
    with pytest.raises(ConfigError, match="cuts or rewrites questions"):
        ensure_chat_template(tokenizer)


def test_a_system_turn_that_the_template_leaves_out_is_refused(qwen: Path) -> None:
    without = "{% for m in messages if m.role != 'system' %}"
    encoder = RecordEncoder(
        load_tokenizer(with_template(qwen, CHATML.replace("{% for m in messages %}", without)))
    )
    encoder.configure(Stage.PRETRAIN, LONG, "你是一名医生。")
    with pytest.raises(ConfigError, match="leaves the system turn out") as caught:
        encoder.configure(Stage.SFT, LONG, "你是一名医生。")
    assert caught.value.where == "spec.stages.sft.systemPrompt"


def test_tokens_do_not_depend_on_the_day(qwen: Path) -> None:
    """meta-llama/Llama-3.2-1B-Instruct writes ``strftime_now("%d %b %Y")``, else "26 Jul 2024"."""
    dated = "{{ 'Today Date: ' + strftime_now('%d %b %Y') + '\n' }}" + CHATML
    tokenizer = trained_with(with_template(qwen, dated))
    encoded = encode_dialogues(tokenizer, [TALK], LONG)[0]
    assert not isinstance(encoded, Unfit)
    assert "Today Date: 26 Jul 2024" in str(tokenizer.decode(encoded.segments[0].ids))


@pytest.mark.parametrize(
    ("config", "tokenizer"),
    [
        # baichuan-inc/Baichuan2-7B-Base and internlm/internlm2-7b
        (
            {
                "model_type": "baichuan",
                "auto_map": {"AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM"},
            },
            {
                "tokenizer_class": "BaichuanTokenizer",
                "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]},
            },
        ),
        (
            {"model_type": "internlm2", "auto_map": {"AutoModel": "modeling_internlm2.InternLM2ForCausalLM"}},
            {
                "tokenizer_class": "InternLM2Tokenizer",
                "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
            },
        ),
        (
            None,
            {
                "tokenizer_class": "InternLM2Tokenizer",
                "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
            },
        ),
    ],
)
def test_models_with_code_of_their_own_are_named(
    config: dict[str, Any] | None, tokenizer: dict[str, Any], tmp_path: Path
) -> None:
    write_tokenizer(tmp_path, "llama-2-chat")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    looks: list[Callable[[Path], object]] = [load_tokenizer]
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
        looks.append(load_config)
    for look in looks:
        with pytest.raises(DataError, match="brings code of its own") as caught:
            look(tmp_path)
        assert caught.value.code is codes.UNSUPPORTED_MODEL
        assert "Llama layout" in str(caught.value.remedy)


def test_code_that_is_not_needed_is_not_asked_for(tmp_path: Path) -> None:
    """A conversion that kept its tokenizer's ``auto_map``, as several of InternLM2's do."""
    write_tokenizer(tmp_path, "internlm2-llama")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert turn_end_id(load_tokenizer(tmp_path)) == load_tokenizer(tmp_path).get_vocab()["<|im_end|>"]
