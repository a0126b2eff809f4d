"""``zhongjing chat``: talks to a model folder, as ``pull`` makes it. torch is imported when it loads."""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zhongjing.cli.commands.pull import ORIGIN_FILE
from zhongjing.cli.console import Console
from zhongjing.cli.errors import INTERRUPTED, OK, guarded, problem_of
from zhongjing.codes.local import NO_GPU
from zhongjing.codes.model import MODEL_NOT_FOUND, UNUSABLE_MODEL
from zhongjing.config.stages import Stage
from zhongjing.errors import ConfigError, DataError

if TYPE_CHECKING:
    from zhongjing.data.records import Turn

Reply = Callable[[list["Turn"]], Iterator[str]]
"""Pieces of the answer to a dialogue whose last turn is the user's."""

_LONGEST = 256  # tokens of an answer, unless told otherwise

EPILOG = """
\b
Examples:
  zhongjing pull tiny/ppo ./model && zhongjing chat ./model
  zhongjing chat ./model -q 发烧怎么办？
  zhongjing chat ./model < questions.txt     every line is a question of its own

At the prompt /reset forgets the dialogue, /exit (or Ctrl-D) leaves, Ctrl-C cuts an answer short.
"""


@guarded
def chat(
    *,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Model or adapter, as pull makes it.")],
    question: Annotated[
        str | None, typer.Option("--question", "-q", help="Answer this and leave.", metavar="TEXT")
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(
            "--system",
            help="System turn; that of the training (systemPrompt) unless given, '' for none.",
            metavar="TEXT",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Longest answer, in tokens; 256, at most half the model's positions.", min=1),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token.", min=0.0)] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Part of the probability that is sampled from.", min=0.01, max=1.0)
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:1; the GPU unless given, where there is one.")
    ] = None,
) -> int | None:
    """Talk to a model on this machine."""
    kind_of(folder)
    with warnings.catch_warnings():
        # Meant for programmers who use transformers and PEFT.
        warnings.simplefilter("ignore", FutureWarning)
        return _talk(
            folder,
            question,
            system,
            device=device,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )


def _talk(folder: Path, question: str | None, system: str | None, **settings: Any) -> int | None:
    reply = load_reply(folder, **settings)
    talk = Conversation(reply, Console(), system=trained_system(folder) if system is None else system)
    if question is not None:
        talk.ask(question)
        return None
    if sys.stdin.isatty():
        return talk.interactive()
    for line in sys.stdin:
        talk.reset()  # a file has questions, one a line
        if not talk.line(line):
            break
    return None


class Conversation:
    """A dialogue: keeps what was said, and shows answers as they come.

    Args:
        reply: gives the answer piece by piece.
        console: where answers go.
        system: system turn, if any; a reset keeps it.
    """

    def __init__(self, reply: Reply, console: Console, *, system: str | None = None) -> None:
        from zhongjing.data.records import Turn

        self._turn = Turn
        self._reply = reply
        self._console = console
        self._opening = [Turn("system", system)] if system else []
        self.turns: list[Turn] = list(self._opening)

    def reset(self) -> None:
        """Forgets the dialogue."""
        self.turns = list(self._opening)

    def line(self, text: str) -> bool:
        """Takes one line of input; returns False when it asks to leave."""
        text = text.strip()
        if text in ("/exit", "/quit"):
            return False
        if text == "/reset":
            self.reset()
            self._console.warn("(the dialogue was forgotten)")
        elif text.startswith("/"):
            self._console.warn("(commands: /reset, /exit)")
        elif text:
            self.ask(text)
        return True

    def ask(self, question: str) -> str:
        """Shows the answer as it comes, keeps both turns, and returns the answer.

        Ctrl-C cuts the answer short; what was said until then is kept.
        """
        self.turns.append(self._turn("user", question))
        pieces: list[str] = []
        try:
            for piece in self._reply(list(self.turns)):
                pieces.append(piece)
                self._console.raw(piece)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
        except DataError:
            self.turns.pop()
            raise
        self._console.raw("\n")
        answer = "".join(pieces).strip()
        self.turns.append(self._turn("assistant", answer))
        return answer

    def interactive(self) -> int:
        """Asks at a prompt until /exit, Ctrl-D or Ctrl-C."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives input() a history and editing keys

        self._console.warn("(/reset forgets the dialogue, /exit leaves)")
        while True:
            try:
                text = input("you> ")
            except EOFError:
                self._console.say()
                return OK
            except KeyboardInterrupt:
                self._console.say()
                return INTERRUPTED
            try:
                if not self.line(text):
                    return OK
            except DataError as error:
                for line in problem_of(error).lines():
                    self._console.warn(line)


def kind_of(folder: Path) -> str:
    """``full`` or ``adapter``, from the folder's files alone.

    Raises:
        DataError: the folder is no model, or a reward model.
    """
    adapter = folder / "adapter_config.json"
    config = adapter if adapter.is_file() else folder / "config.json"
    if not config.is_file():
        stage = folder.as_posix().partition("/")[2]
        message, result = "there is no such folder", "NAME/ppo"
        if folder.is_dir():
            message = "this is no model folder: it has neither config.json nor adapter_config.json"
        elif stage in set(Stage):
            message = "this is a result: chat takes the folder that it was pulled into"
            result = (
                f"{folder.parent}/ppo" if stage == Stage.RM else str(folder)
            )  # a reward model does not talk
        raise DataError(
            message,
            code=MODEL_NOT_FOUND,
            where=str(folder),
            remedy=f"fetch one: `zhongjing pull {result} ./model --local`",
        )
    try:
        settings: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}", code=UNUSABLE_MODEL, where=str(config)) from error
    classifier = any("SequenceClassification" in name for name in settings.get("architectures") or ())
    if classifier or settings.get("task_type") == "SEQ_CLS":
        raise DataError(
            "this is a reward model: it scores answers, it gives none",
            code=UNUSABLE_MODEL,
            where=str(folder),
            remedy="chat with the result of sft or ppo",
        )
    return "adapter" if config is adapter else "full"


def trained_system(folder: Path) -> str | None:
    """The system turn that a pulled model learned with, if it had one; answers are best behind the same.

    Raises:
        DataError: the file that says so cannot be read.
    """
    file = folder / ORIGIN_FILE
    if not file.is_file():
        return None
    try:
        prompt = json.loads(file.read_text(encoding="utf-8")).get("systemPrompt")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"cannot be read: {error}",
            code=UNUSABLE_MODEL,
            where=str(file),
            remedy="pull the model again, or give --system",
        ) from error
    return prompt.strip() if isinstance(prompt, str) else None


def load_reply(
    folder: Path,
    *,
    device: str | None,
    max_new_tokens: int | None,
    temperature: float,
    top_p: float,
    seed: int | None,
) -> Reply:
    """Loads a model folder with transformers and PEFT alone; returns what answers.

    Raises:
        DataError: the folder cannot be loaded, or the device does not exist.
    """
    kind = kind_of(folder)
    import torch
    from transformers import AutoModelForCausalLM

    from zhongjing.data.own_code import check_own_code
    from zhongjing.data.templates import ensure_chat_template
    from zhongjing.model.base import quiet_transformers
    from zhongjing.model.generation import stream_answer
    from zhongjing.model.tokenizer import load_tokenizer

    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if place.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            "torch finds no GPU here", code=NO_GPU, where=f"--device {place}", remedy="leave --device out"
        )
    check_own_code(folder)
    try:
        with quiet_transformers():
            model: Any
            if kind == "adapter":
                from peft import AutoPeftModelForCausalLM

                model = AutoPeftModelForCausalLM.from_pretrained(str(folder))
            else:
                model = AutoModelForCausalLM.from_pretrained(str(folder))
            model = model.to(place).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"the model cannot be loaded: {error}", code=UNUSABLE_MODEL, where=str(folder)
        ) from error

    tokenizer = load_tokenizer(folder)
    ensure_chat_template(tokenizer)
    positions = int(getattr(model.config, "max_position_embeddings", 2**31))
    longest = max_new_tokens or min(_LONGEST, positions // 2)

    def reply(turns: list[Turn]) -> Iterator[str]:
        return stream_answer(
            model,
            tokenizer,
            turns,
            max_new_tokens=longest,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )

    return reply
