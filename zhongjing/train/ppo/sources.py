"""What a PPO program reads: folders, and tokens with a meaning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zhongjing.model.tokenizer import end_ids, load_tokenizer, padding_id


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens with a meaning.

    Attributes:
        stop_ids: what ends a response: the turn's end, the document's end.
        closing: what ends an answer where the reward model reads it.
        pad_id: fills rows up.
    """

    stop_ids: tuple[int, ...]
    closing: tuple[int, ...]
    pad_id: int

    @classmethod
    def of(cls, tokenizer_folder: Path) -> Vocabulary:
        """From a tokenizer: answers close with its ``eos_token``, the turn's end.

        Raises:
            DataError: the tokenizer has no end.
        """
        tokenizer = load_tokenizer(tokenizer_folder)
        stops = tuple(end_ids(tokenizer))
        turn_end = tokenizer.eos_token_id
        closing = (turn_end if isinstance(turn_end, int) else stops[0],)
        return cls(stops, closing, padding_id(tokenizer))


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
