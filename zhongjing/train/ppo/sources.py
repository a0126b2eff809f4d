"""What a PPO program reads: folders, and tokens with a meaning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from zhongjing.data.chat import Unfit, encode_prompt, encode_ranking
from zhongjing.data.records import Turn
from zhongjing.model.tokenizer import end_ids, load_tokenizer

_ROOM = 4096  # tokens, for a template's own words around one character


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens with a meaning.

    Attributes:
        stop_ids: what ends a response: the turn's end, the document's end.
        turn_end_ids: what ends an answer where the reward model reads it.
    """

    stop_ids: tuple[int, ...]
    turn_end_ids: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer_folder: Path) -> Vocabulary:
        """From a tokenizer with its chat template.

        What closes an answer is read off an encoded answer, as the reward model's data are encoded: a base's
        ``eos_token`` may end documents while its template ends turns with another token.

        Raises:
            DataError: the tokenizer has no end, or its template cannot be used.
        """
        tokenizer = load_tokenizer(tokenizer_folder)
        turn_end_ids = _turn_end_ids(tokenizer)
        return cls(tuple(end_ids(tokenizer)), turn_end_ids)


@dataclass(frozen=True, slots=True)
class Sources:
    """What the program's result is made from; folders of this machine.

    Attributes:
        sft: adapter that policy and reference start from, or None.
        reward: the reward model's adapter.
        tokenizer: folder with tokenizer and chat template.
        base_reference: what the result names as its base (``base_model_name_or_path``).
    """

    sft: Path | None
    reward: Path
    tokenizer: Path
    base_reference: str


def _turn_end_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    question, answer = (Turn("user", "?"),), "."
    prompt = encode_prompt(tokenizer, question, _ROOM)
    ranked = encode_ranking(tokenizer, question, [answer], _ROOM)
    assert prompt is not None, "a question of one character fits"
    assert not isinstance(ranked, Unfit), "an answer of one character fits"
    after = ranked[0][0].ids.tolist()[len(prompt[0].ids) :]
    content = tokenizer.encode(answer, add_special_tokens=False)
    # Where the answer's last character melts into what follows it, only the last token is sure to close.
    return tuple(after[len(content) :] if after[: len(content)] == content else after[-1:])
