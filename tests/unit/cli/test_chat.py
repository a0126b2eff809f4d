"""The dialogue that chat keeps, and folders that cannot chat."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.cli.conftest import CommandLine
from zhongjing.cli.commands.chat import Conversation, kind_of
from zhongjing.cli.console import Console
from zhongjing.codes.data import UNUSABLE_RECORD
from zhongjing.data.records import Turn
from zhongjing.errors import DataError


class Echo:
    """Answers with the number of turns, in two pieces."""

    def __init__(self) -> None:
        self.heard: list[list[Turn]] = []

    def __call__(self, turns: list[Turn]) -> Iterator[str]:
        self.heard.append(turns)
        yield "turns: "
        yield str(len(turns))


@pytest.fixture
def echo() -> Echo:
    return Echo()


def test_answers_stream_and_the_dialogue_is_kept(echo: Echo, capsys: pytest.CaptureFixture[str]) -> None:
    talk = Conversation(echo, Console(), system="be brief")
    assert talk.line(" 发烧怎么办？ ")
    assert talk.line("还有呢？")
    assert capsys.readouterr().out == "turns: 2\nturns: 4\n"
    assert echo.heard[-1] == [
        Turn("system", "be brief"),
        Turn("user", "发烧怎么办？"),
        Turn("assistant", "turns: 2"),
        Turn("user", "还有呢？"),
    ]


def test_a_file_of_questions_is_no_dialogue_and_warnings_for_programmers_are_kept_from_it(
    command: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    heard: list[list[Turn]] = []

    def reply(turns: list[Turn]) -> Iterator[str]:
        warnings.warn("this will go", FutureWarning, stacklevel=1)
        heard.append(turns)
        yield turns[-1].content + "!"

    def load(*_: object, **__: object) -> Callable[[list[Turn]], Iterator[str]]:
        warnings.warn("this too", FutureWarning, stacklevel=1)
        return reply

    monkeypatch.setattr("zhongjing.cli.commands.chat.load_reply", load)
    (tmp_path / "config.json").write_text("{}")
    answered = command("chat", str(tmp_path), "--system", "be kind", stdin="a?\n\nb?\n")
    assert answered.exit_code == 0, answered.stderr
    assert answered.stdout == "a?!\nb?!\n"
    assert [[turn.content for turn in turns] for turns in heard] == [["be kind", "a?"], ["be kind", "b?"]]
    assert answered.stderr == ""


def test_reset_forgets_all_but_the_system_turn(echo: Echo) -> None:
    talk = Conversation(echo, Console(), system="be brief")
    talk.line("a")
    assert talk.line("/reset")
    assert talk.turns == [Turn("system", "be brief")]


def test_commands_and_empty_lines_ask_nothing(echo: Echo) -> None:
    talk = Conversation(echo, Console())
    assert talk.line("")
    assert talk.line("/what")
    assert not talk.line("/exit")
    assert echo.heard == []


def test_a_question_that_does_not_fit_is_taken_back() -> None:
    def refuse(turns: list[Turn]) -> Iterator[str]:
        if turns:
            raise DataError("too long", code=UNUSABLE_RECORD)
        yield ""

    talk = Conversation(refuse, Console())
    with pytest.raises(DataError, match="too long"):
        talk.ask("a" * 9)
    assert talk.turns == []


def test_kinds_of_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        kind_of(tmp_path / "gone")
    with pytest.raises(DataError, match="this is no model folder"):
        kind_of(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    assert kind_of(tmp_path) == "full"
    config.write_text(json.dumps({"architectures": ["LlamaForSequenceClassification"]}))
    with pytest.raises(DataError, match="reward model"):
        kind_of(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"task_type": "CAUSAL_LM"}))
    assert kind_of(tmp_path) == "adapter"
    (tmp_path / "adapter_config.json").write_text(json.dumps({"task_type": "SEQ_CLS"}))
    with pytest.raises(DataError, match="reward model"):
        kind_of(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        kind_of(tmp_path)


def test_a_folder_that_is_no_model_is_bad_input_and_loads_nothing(command: CommandLine) -> None:
    result = command("chat", "gone", "-q", "x")
    assert result.exit_code == 2
    assert "remedy: fetch one: zhongjing pull NAME/ppo ./model --local" in result.stderr
    result = command("chat", "tiny/sft", "-q", "x")
    assert "this is a result: chat takes the folder" in result.stderr
    assert "remedy: fetch one: zhongjing pull tiny/sft ./model --local" in result.stderr
    assert "zhongjing pull tiny/ppo ./model" in command("chat", "tiny/rm", "-q", "x").stderr
