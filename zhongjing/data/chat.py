"""Dialogues, prompts and ranked answers as tokens: the very tokens that inference will see.

The text is the chat template's, the tokens are those of the whole text, so they equal
``tokenizer.apply_chat_template(turns)``. Targets are the assistant turns and the tokens that end them. The
prompt of every assistant turn is a prefix of the training sequence; where a template rewrites history
(Qwen3 strips earlier reasoning) no single sequence can have that property, and each assistant turn becomes a
segment of its own, behind the history as inference would see it.

An answer that the template cuts or rewrites (DeepSeek-R1's drop the thoughts) is not what the data teach; its
record is not used, and counted. A turn that is not to be learned is context: no token of it is a target, and
what follows the last turn to be learned is left away.

Too long: the earliest exchanges go first, the system turn stays. Of the last exchange the question is cut
from the left, the answer never.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from zhongjing.codes import model as model_codes
from zhongjing.data.records import Turn
from zhongjing.data.samples import Segment
from zhongjing.data.templates import DOCUMENT_ENDS, ChatFormat, chat_format, is_within
from zhongjing.errors import ConfigError

Turns = tuple[Turn, ...]
IdArray = npt.NDArray[np.int32]


class Unfit(Enum):
    """Why a record gives no tokens."""

    TOO_LONG = "the answer alone is too long"
    REWRITTEN = "the chat template cuts or rewrites an answer"
    MASKED = "a turn is marked not to be trained on; pretraining would learn it as any text"


@dataclass(frozen=True, slots=True)
class Encoded:
    """Tokens of one record: segments of a sample, or a ``document`` that is yet to be packed."""

    segments: tuple[Segment, ...] = ()
    ranks: tuple[int, ...] | None = None
    truncated: bool = False
    document: IdArray | None = None


def rewrites_answers(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> bool:
    """Whether an answer of a dialogue would not be learned as it stands; nothing is tokenised."""
    form = chat_format(tokenizer)
    return _render_dialogue(form, tuple(turns)) is None and _rewrites(form, tuple(turns))


def encode_dialogues(
    tokenizer: PreTrainedTokenizerBase,
    dialogues: Sequence[Sequence[Turn]],
    max_length: int,
    system_prompt: str | None = None,
) -> list[Encoded | Unfit]:
    """Dialogues (an assistant's turn last) as segments, tokenised together.

    Args:
        tokenizer: a fast tokenizer with a chat template.
        dialogues: turns of each.
        max_length: of a segment, in tokens.
        system_prompt: system turn for dialogues that have none.

    Returns:
        One segment a dialogue, or one an assistant turn where the template rewrites history.

    Raises:
        ConfigError: the template cannot be trained with.
    """
    form = chat_format(tokenizer)
    prepared = [_with_system(_up_to_learned(turns), system_prompt) for turns in dialogues]
    rendered = [_render_dialogue(form, turns) for turns in prepared]
    encodings = iter(_encode(tokenizer, [r.text for r in rendered if r is not None]))
    results: list[Encoded | Unfit] = []
    for turns, text in zip(prepared, rendered, strict=True):
        if text is None:
            rewritten = _rewrites(form, turns)
            results.append(Unfit.REWRITTEN if rewritten else _turn_by_turn(form, turns, max_length))
            continue
        tokens = _Tokens.of(tokenizer, text, next(encodings))
        results.append(_fit(form, turns, max_length, _render_dialogue, tokens))
    return results


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    max_length: int,
    system_prompt: str | None = None,
) -> Encoded | Unfit:
    """A prompt (a user turn last), ending with what begins an answer; no targets. Else as a dialogue."""
    form = chat_format(tokenizer)
    return _fit(form, _with_system(turns, system_prompt), max_length, _render_prompt)


def encode_ranking(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[Turn],
    answers: Sequence[str],
    max_length: int,
    system_prompt: str | None = None,
    *,
    ranks: tuple[int, ...] | None = None,
) -> Encoded | Unfit:
    """A prompt with each of its answers, a segment each, ending with the token that ends a turn; no targets.

    All segments have the same prompt tokens: what the longest answer leaves no room for is cut for all, or
    the answers would be told apart by what their prompts lack.
    """
    form = chat_format(tokenizer)
    turns = _with_system(prompt, system_prompt)
    cut = False
    while True:
        # The longest first: the cut that it needs is the cut that all get.
        rendered = [_render_last(form, (*turns, Turn("assistant", answer))) for answer in answers]
        if not all(_is_kept(answer, text) for answer, text in zip(answers, rendered, strict=True)):
            return Unfit.REWRITTEN
        encodings = _encode(tokenizer, [text.text for text in rendered])
        tokens = [
            _Tokens.of(tokenizer, text, encoding) for text, encoding in zip(rendered, encodings, strict=True)
        ]
        longest = max(range(len(tokens)), key=lambda index: len(tokens[index].ids))
        if len(tokens[longest].ids) <= max_length:
            # The answer is what is compared, not learned by heart: no token is a target.
            segments = tuple(Segment(t.ids, np.zeros(len(t.ids), np.bool_)) for t in tokens)
            return Encoded(segments, ranks, cut)
        shorter = _shorten(turns, tokens[longest], max_length)
        if shorter is None:
            return Unfit.TOO_LONG
        turns, cut = shorter, True


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[IdArray]:
    """Documents for pretraining: BOS, text, EOS, as far as the tokenizer has those marks.

    What looks like a special token in a document is text there (``</s>`` strikes text out in HTML). A
    tokenizer whose EOS ends a turn may have another token for documents (:data:`DOCUMENT_ENDS`); that is
    taken then.
    """
    begin = [tokenizer.bos_token_id] if isinstance(tokenizer.bos_token_id, int) else []
    found = (tokenizer.convert_tokens_to_ids(token) for token in DOCUMENT_ENDS)
    marks = [mark for mark in found if isinstance(mark, int) and mark != tokenizer.unk_token_id]
    mark = marks[0] if marks else tokenizer.eos_token_id
    end = [mark] if isinstance(mark, int) else []
    backend: Any = tokenizer.backend_tokenizer
    before = backend.encode_special_tokens
    backend.encode_special_tokens = True
    try:
        encodings = _encode(tokenizer, texts)
    finally:
        backend.encode_special_tokens = before
    return [np.array([*begin, *encoding.ids, *end], dtype=np.int32) for encoding in encodings]


@dataclass(frozen=True, slots=True)
class _Text:
    """A rendered sequence: where its targets are, and where its contents begin (-1: rewritten)."""

    text: str
    targets: tuple[tuple[int, int], ...]
    contents: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Tokens:
    """A rendered sequence and its tokens."""

    text: _Text
    ids: IdArray
    target: npt.NDArray[np.bool_]
    starts: tuple[int, ...]  # first token of each content; -1 where the content was rewritten

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, text: _Text, encoding: Any) -> _Tokens:
        pieces = [(0, encoding)]
        if any(_straddles(encoding, start) for start, _ in text.targets):
            # A token reaches over the beginning of an answer. At inference the prompt ends there, so the
            # parts are tokenised apart.
            cuts = [0, *(start for start, _ in text.targets), len(text.text)]
            spans = [(a, b) for a, b in itertools.pairwise(cuts) if a < b]
            apart = _encode(tokenizer, [text.text[a:b] for a, b in spans])
            pieces = [(a, part) for (a, _), part in zip(spans, apart, strict=True)]
        ids = np.array([i for _, piece in pieces for i in piece.ids], dtype=np.int32)
        target = np.zeros(len(ids), dtype=np.bool_)
        for start, end in text.targets:
            target[_token_at(pieces, start) : _token_at(pieces, end - 1) + 1] = True
        if len(target):
            target[0] = False
        starts = tuple(-1 if start < 0 else _token_at(pieces, start) for start in text.contents)
        return cls(text, ids, target, starts)

    def segment(self) -> Segment:
        return Segment(self.ids, self.target)


_Renderer = Callable[[ChatFormat, Turns], _Text | None]


def _render_dialogue(form: ChatFormat, turns: Turns) -> _Text | None:
    """The whole dialogue, all assistant turns targets; None if that cannot be had in one sequence."""
    outline = form.outline(tuple(turn.role for turn in turns))
    if outline is None:
        return None
    text, contents = _fill(outline.pieces, turns)
    if form.render(turns) != text:
        return None  # the template changes contents
    targets = tuple(
        (contents[i] - before, contents[i] + len(turns[i].content) + outline.ends[i])
        for i, before in outline.begins.items()
        if turns[i].learn
    )
    return _Text(text, targets, contents)


def _render_last(form: ChatFormat, turns: Turns) -> _Text:
    """The dialogue up to the end of its last assistant turn, which alone is a target."""
    whole, begin = form.answered(turns)
    end = form.last_turn_end(whole)
    return _Text(whole[:end], ((begin, end),), _render_prompt(form, turns[:-1]).contents)


def _is_kept(answer: str, text: _Text) -> bool:
    """Whether what was given is in the targets."""
    ((begin, end),) = text.targets
    return is_within(answer, text.text[begin:end])


def _rewrites(form: ChatFormat, turns: Turns) -> bool:
    """Whether an answer is rewritten even where it is the last."""
    return any(
        _is_learned(turn) and not _is_kept(turn.content, _render_last(form, turns[: index + 1]))
        for index, turn in enumerate(turns)
    )


def _render_prompt(form: ChatFormat, turns: Turns) -> _Text:
    """The prompt that inference would use."""
    whole = form.render(turns, generation=True)
    pieces = form.prompt_pieces(tuple(turn.role for turn in turns))
    if pieces is not None:
        text, contents = _fill(pieces, turns)
        if text == whole:
            return _Text(whole, (), contents)
    # The template rewrites something: find those contents that it left alone.
    contents_found: list[int] = []
    position = 0
    for turn in turns:
        found = whole.find(turn.content, position)
        contents_found.append(found)
        position = found + len(turn.content) if found >= 0 else position
    return _Text(whole, (), tuple(contents_found))


def _fill(pieces: tuple[str, ...], turns: Turns) -> tuple[str, tuple[int, ...]]:
    parts: list[str] = []
    contents: list[int] = []
    length = 0
    for piece, turn in zip(pieces, turns, strict=False):
        length += len(piece)
        contents.append(length)
        length += len(turn.content)
        parts += (piece, turn.content)
    return "".join(parts) + pieces[-1], tuple(contents)


def _turn_by_turn(form: ChatFormat, turns: Turns, max_length: int) -> Encoded | Unfit:
    """A segment for each assistant turn, behind the history that inference would show it."""
    segments: list[Segment] = []
    truncated = False
    for index, turn in enumerate(turns):
        if not _is_learned(turn):
            continue
        fitted = _fit(form, turns[: index + 1], max_length, _render_last)
        if isinstance(fitted, Encoded):
            segments += fitted.segments
        elif index == len(turns) - 1:
            return fitted
        truncated = truncated or isinstance(fitted, Unfit) or fitted.truncated
    return Encoded(tuple(segments), truncated=truncated)


def _fit(
    form: ChatFormat, turns: Turns, max_length: int, render: _Renderer, tokens: _Tokens | None = None
) -> Encoded | Unfit:
    """The longest end of a dialogue that fits. ``tokens``: of the whole, if known."""
    cut = False
    while True:
        if tokens is None:
            text = render(form, turns) or _render_last(form, turns)
            tokens = _Tokens.of(form.tokenizer, text, _encode(form.tokenizer, [text.text])[0])
        if len(tokens.ids) <= max_length:
            return Encoded((tokens.segment(),), truncated=cut)
        shorter = _shorten(turns, tokens, max_length)
        if shorter is None:
            return Unfit.TOO_LONG
        turns, tokens, cut = shorter, None, True


def _shorten(turns: Turns, tokens: _Tokens, max_length: int) -> Turns | None:
    """Takes away the earliest exchanges that are too much, or the beginning of the only question."""
    head = 1 if turns[0].role == "system" else 0
    excess = len(tokens.ids) - max_length
    questions = [index for index, turn in enumerate(turns) if turn.role == "user"]
    if len(questions) > 1:
        first = tokens.starts[head]
        for index in questions[1:]:
            if index == questions[-1] or (
                first >= 0 and tokens.starts[index] >= 0 and tokens.starts[index] - first >= excess
            ):
                return (*turns[:head], *turns[index:])
    question = turns[head].content
    if len(question) <= 1:
        return None
    # A character is at most a few tokens, seldom less than a third of one: cutting too little only costs
    # another round, so the estimate is by the question's own ratio.
    following = [start for start in tokens.starts[head + 1 :] if start >= 0]
    end = following[0] if following else next(iter(np.flatnonzero(tokens.target)), len(tokens.ids))
    width = max(1, int(end) - max(0, tokens.starts[head]))
    drop = max(1, min(len(question) - 1, int(excess * len(question) / width)))
    remaining = question[drop:].lstrip()
    if not remaining:
        return None
    return (*turns[:head], Turn("user", remaining), *turns[head + 1 :])


def _is_learned(turn: Turn) -> bool:
    return turn.role == "assistant" and turn.learn


def _up_to_learned(turns: Sequence[Turn]) -> Sequence[Turn]:
    """The turns up to the last one to be learned: nothing is learned from what stands behind it."""
    last = max((index for index, turn in enumerate(turns) if _is_learned(turn)), default=len(turns) - 1)
    return turns[: last + 1]


def _with_system(turns: Sequence[Turn], system_prompt: str | None) -> Turns:
    if system_prompt and turns[0].role != "system":
        return (Turn("system", system_prompt.strip()), *turns)
    return tuple(turns)


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Any]:
    """Encodings of texts, exactly as ``tokenizer(text, add_special_tokens=False)`` gives them."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(
            f"{type(tokenizer).__name__} is a slow tokenizer, which cannot tell the positions of its tokens",
            code=model_codes.UNUSABLE_TOKENIZER,
            remedy="use the fast tokenizer of the same model (tokenizer.json)",
        )
    backend.no_truncation()
    backend.no_padding()
    encodings: list[Any] = backend.encode_batch(list(texts), add_special_tokens=False)
    return encodings


def _straddles(encoding: Any, start: int) -> bool:
    token = encoding.char_to_token(start)
    return token is not None and encoding.token_to_chars(token)[0] < start


def _token_at(pieces: list[tuple[int, Any]], character: int) -> int:
    """Index of the first token at or after a character. Some characters belong to none (stripped space)."""
    offset = 0
    for index, (begin, piece) in enumerate(pieces):
        following = pieces[index + 1][0] if index + 1 < len(pieces) else None
        if following is None or character < following:
            last = len(piece) - 1
            limit = piece.token_to_chars(last)[1] if last >= 0 else 0
            for local in range(character - begin, limit):
                token = piece.char_to_token(local)
                if token is not None:
                    return int(offset + token)
            return int(offset + len(piece))
        offset += len(piece)
    return offset
