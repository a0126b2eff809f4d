"""Chat templates: the two built-in ones, and what a tokenizer's template does to a dialogue.

A template is a program, so what it writes around the turns is found out by rendering stand-ins: a *skeleton*
is the text before, between and after the contents. From it follow the character spans that are to be
learned, and whether the template is *consistent*: whether every prompt and every answer, as inference will
have them, stand in the whole dialogue as they are. In Qwen3's they do not: earlier turns lose their thoughts.
The token that ends a turn is found the same way; it need not be the tokenizer's EOS (Qwen2.5-Base, Llama-3).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import jinja2
from transformers import PreTrainedTokenizerBase

from zhongjing.codes import document as codes
from zhongjing.data.records import Role, Turn
from zhongjing.errors import ConfigError

CHATML_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""ChatML: for tokenizers that have its two markers as special tokens."""

PLAIN_TEMPLATE = (
    "{%- if bos_token is defined and bos_token -%}{{- bos_token -}}{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}{{- '<bot>:' + message['content'] + eos_token + '\\n' -}}"
    "{%- elif message['role'] == 'user' -%}{{- '<human>:' + message['content'] + '\\n' -}}"
    "{%- else -%}{{- message['content'] + '\\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<bot>:' -}}{%- endif -%}"
)
"""Ziya-LLaMA's plain turns; the end of a turn is the tokenizer's EOS."""

DOCUMENT_ENDS = ("<|endoftext|>", "<|end_of_text|>")
"""What ends a document where the tokenizer's EOS ends a turn (Qwen's and Yi's, Llama-3's)."""

_IM_START, _IM_END = "<|im_start|>", "<|im_end|>"
# Llama-3.2's template writes today's date, or this one where it cannot know. Tokens must not change with the
# day, and transformers 5 takes only plain data for a template: the function is replaced by a macro.
_DAY = datetime.date(2024, 7, 26)
_DATED = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f" | replace('%{letter}', '{_DAY:%{letter}}')" for letter in "aAbBdHIjmMpSyY")
    + " }}{%- endmacro -%}"
)
# What no template may cut from a question, nor escape.
_QUESTION = "".join(f"{line}. 头痛 aB <b> & 'c'?\n" for line in range(200)) + "end"
_THOUGHT = "<think>\nwhy\n</think>\n\n"
_STAND_IN = re.compile("\ue000([0-9]+)\ue001")


def default_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template for a tokenizer that has none: ChatML where it has the markers, else Ziya's plain turns.

    Raises:
        ConfigError: the tokenizer has no token that could end a turn.
    """
    vocabulary = tokenizer.get_vocab()
    if _IM_START in vocabulary and _IM_END in vocabulary:
        return CHATML_TEMPLATE
    if not tokenizer.eos_token:
        raise _invalid(
            "the tokenizer has neither a chat template, nor ChatML's markers, nor an EOS token",
            "give a template, and a tokenizer with a token that ends a turn",
        )
    return PLAIN_TEMPLATE


def ensure_chat_template(tokenizer: PreTrainedTokenizerBase, given: str | None = None) -> str:
    """Sets the chat template of a tokenizer, and shows that the template can be trained with.

    Args:
        tokenizer: changed in place: ``chat_template`` is set where it is given, or where there was none.
        given: ``base.chatTemplate`` of the document, if it has one.

    Returns:
        The template in use: ``given``, else the tokenizer's own, else :func:`default_template`.

    Raises:
        ConfigError: the template fails, writes no token at the end of an assistant turn, cuts or rewrites
            questions, or its prompt is not how it begins an answered dialogue; or the tokenizer has several
            templates, and none of them is the default.
    """
    named = tokenizer.chat_template
    if isinstance(named, dict) and not given and own_template(tokenizer) is None:
        raise _invalid(
            f"the tokenizer has the chat templates {', '.join(sorted(named))}, and no default",
            "give the one to train with as base.chatTemplate",
        )
    template = given or own_template(tokenizer) or default_template(tokenizer)
    if template != named:
        tokenizer.chat_template = template
    form = chat_format(tokenizer)
    if not is_within(_QUESTION, form.render((Turn("user", _QUESTION),), generation=True)):
        raise _invalid(
            "the chat template cuts or rewrites questions",
            "give a template that writes the content of a turn as it is",
        )
    if form.outline(("user", "assistant")) is None:
        form.answered((Turn("user", "?"), Turn("assistant", ".")))
    return template


def own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The template that a tokenizer came with; of several, as in transformers, the one named ``default``."""
    own = tokenizer.chat_template
    found = own.get("default") if isinstance(own, dict) else own
    return str(found) if found else None


def turn_end_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that ends a turn: what the chat template writes behind an answer, whatever EOS is.

    Without a template it is what the default one would write.

    Returns:
        None where there is none, or where the template cannot be trained with.
    """
    try:
        if tokenizer.chat_template:
            token = chat_format(tokenizer).end_token()
        else:
            token = _IM_END if default_template(tokenizer) is CHATML_TEMPLATE else str(tokenizer.eos_token)
    except ConfigError:
        return None  # a stage is refused for it by ensure_chat_template; base.chatTemplate may replace it
    return tokenizer.get_vocab().get(token)


@dataclass(frozen=True, slots=True)
class Outline:
    """What a template writes for one sequence of roles.

    ``pieces`` surround the contents: piece i stands before content i, the last after them all. For each
    assistant turn, ``begins`` is how many characters before its content the target begins (what the template
    writes between generation prompt and content), ``ends`` how many after it the end-of-turn token ends.
    """

    pieces: tuple[str, ...]
    begins: dict[int, int]
    ends: dict[int, int]


class ChatFormat:
    """A tokenizer's chat template, looked at from outside."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        own = own_template(tokenizer)
        if own is None:
            raise _invalid(
                "the tokenizer has no chat template that is the default",
                "name one, or use ensure_chat_template",
            )
        self.tokenizer = tokenizer
        self.template = tokenizer.chat_template
        self._dated = _DATED + own if "strftime_now" in own else own
        self.special = special_tokens(tokenizer)
        self._closing: str | None = None
        self._outlines: dict[tuple[Role, ...], Outline | None] = {}
        self._prompts: dict[tuple[Role, ...], tuple[str, ...] | None] = {}

    def render(self, turns: Sequence[Turn], *, generation: bool = False) -> str:
        """What the template writes for ``turns``; ``generation`` adds the beginning of an answer.

        Raises:
            ConfigError: the template refuses the turns.
        """
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            rendered = self.tokenizer.apply_chat_template(
                messages,
                chat_template=self._dated,
                tokenize=False,
                add_generation_prompt=generation,
            )
        except jinja2.TemplateError as error:
            roles = ", ".join(turn.role for turn in turns[:3])
            raise _invalid(
                f"the chat template refuses a dialogue beginning with {roles} ({type(error).__name__})",
                "use a template that takes these roles, or data without them",
                where="chat_template",
            ) from None  # a template may quote the dialogue, and tracebacks are kept
        return cast("str", rendered)

    def outline(self, roles: tuple[Role, ...]) -> Outline | None:
        """The outline of a dialogue with these roles; None where the template is not consistent.

        Raises:
            ConfigError: the template writes no special token after an assistant turn, so nothing would teach
                the model to stop.
        """
        if roles not in self._outlines:
            self._outlines[roles] = self._outline(roles)
        return self._outlines[roles]

    def prompt_pieces(self, roles: tuple[Role, ...]) -> tuple[str, ...] | None:
        """What surrounds the contents of a prompt, generation prompt last; None if contents are rewritten."""
        if roles not in self._prompts:
            self._prompts[roles] = self._skeleton(roles, generation=True)
        return self._prompts[roles]

    def _outline(self, roles: tuple[Role, ...]) -> Outline | None:
        pieces = self._skeleton(roles, generation=False)
        begins: dict[int, int] = {}
        ends: dict[int, int] = {}
        for index, role in enumerate(roles):
            if role != "assistant":
                continue
            prompt = self.prompt_pieces(roles[:index])
            if pieces is None or prompt is None:
                return None
            *before, opening = prompt
            if pieces[:index] != tuple(before) or not pieces[index].startswith(opening):
                return None
            begins[index] = len(pieces[index]) - len(opening)
            ends[index] = self.turn_end(pieces[index + 1])
            # The model will give an answer as it stands when it is the last: so it must stand in the whole.
            answered = self._skeleton(roles[: index + 1], generation=False)
            if answered is None or answered[: index + 1] != pieces[: index + 1]:
                return None
            if answered[-1][: ends[index]] != pieces[index + 1][: ends[index]]:
                return None
        return None if pieces is None else Outline(pieces, begins, ends)

    def turn_end(self, after: str) -> int:
        """How far into ``after``, the text behind an answer, the token reaches that ends the turn.

        Raises:
            ConfigError: there is none.
        """
        match = self.special.search(after)
        if match is None:
            raise _invalid(
                "the chat template writes no special token at the end of an assistant turn, "
                "so the model would never learn to stop",
                "end assistant turns with the tokenizer's EOS or another special token",
                where="chat_template",
            )
        return match.end()

    def last_turn_end(self, rendered: str) -> int:
        """Where the token ends that ends the last turn of a rendered dialogue, an assistant's.

        Raises:
            ConfigError: there is no such token.
        """
        if self._closing is None:
            pieces = self._skeleton(("user", "assistant"), generation=False)
            self._closing = pieces[-1] if pieces else ""
        if self._closing and rendered.endswith(self._closing):
            return len(rendered) - len(self._closing) + self.turn_end(self._closing)
        ends = [match.end() for match in self.special.finditer(rendered)]
        return ends[-1] if ends else self.turn_end("")

    def end_token(self) -> str:
        """The special token that ends an assistant turn.

        Raises:
            ConfigError: there is none.
        """
        rendered = self.render((Turn("user", "?"), Turn("assistant", ".")))
        end = self.last_turn_end(rendered)
        return next(match.group() for match in self.special.finditer(rendered) if match.end() == end)

    def answered(self, turns: Sequence[Turn]) -> tuple[str, int]:
        """A dialogue (an assistant's turn last) as it is with its last answer, and where that answer begins.

        Raises:
            ConfigError: the dialogue does not begin with what inference would show the model.
        """
        prompt, whole = self.render(turns[:-1], generation=True), self.render(turns)
        if not whole.startswith(prompt):
            raise _invalid(
                "the chat template's prompt is not how it begins the answered dialogue, so training could "
                "not show the model what it will see",
                "set base.chatTemplate to a template whose generation prompt is a prefix of the whole",
                where="chat_template",
            )
        return whole, len(prompt)

    def cuts_thoughts(self) -> bool:
        """Whether an answer loses its ``<think>`` part even where it is the last (DeepSeek-R1's do)."""
        whole, begin = self.answered((Turn("user", "?"), Turn("assistant", _THOUGHT + ".")))
        return not is_within(_THOUGHT + ".", whole[begin:])

    def _skeleton(self, roles: tuple[Role, ...], *, generation: bool) -> tuple[str, ...] | None:
        turns = [Turn(role, f"\ue000{index}\ue001") for index, role in enumerate(roles)]
        parts = _STAND_IN.split(self.render(turns, generation=generation))
        if parts[1::2] != [str(index) for index in range(len(roles))]:
            return None
        return tuple(parts[::2])


def _invalid(message: str, remedy: str, where: str = "spec.base.chatTemplate") -> ConfigError:
    return ConfigError(message, code=codes.INVALID_TEMPLATE, where=where, remedy=remedy)


def is_within(content: str, text: str) -> bool:
    """Whether a text has a content; space does not count: templates trim, and put thoughts on lines."""
    return "".join(content.split()) in "".join(text.split())


def special_names(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Every special token of a tokenizer, also those that have no role."""
    names = set(tokenizer.all_special_tokens)
    names |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return names - {""}


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches every special token of a tokenizer, written out in a text."""
    longest_first = sorted(special_names(tokenizer), key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def chat_format(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    """The format of a tokenizer, kept with it until its template changes."""
    kept: Any = tokenizer.__dict__.get("_zhongjing_chat_format")
    if isinstance(kept, ChatFormat) and kept.template == tokenizer.chat_template:
        return kept
    made = ChatFormat(tokenizer)
    tokenizer.__dict__["_zhongjing_chat_format"] = made
    return made
