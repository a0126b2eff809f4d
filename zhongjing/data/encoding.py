"""Records as tokens, stage by stage."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from zhongjing.codes.document import INVALID_TEMPLATE
from zhongjing.config.stages import Stage
from zhongjing.data.chat import (
    Encoded,
    Unfit,
    encode_dialogues,
    encode_prompt,
    encode_ranking,
    encode_texts,
    rewrites_answers,
)
from zhongjing.data.records import Dialogue, Prompt, Ranking, Record, TextRecord, Turn
from zhongjing.data.split import Split
from zhongjing.data.templates import chat_format, ensure_chat_template, is_within, special_tokens
from zhongjing.data.tokens import TokenType
from zhongjing.errors import ConfigError


def adapt(record: Record, stage: Stage) -> Record:
    """The record as ``stage`` uses it: PPO takes the questions of dialogues and rankings."""
    if stage is not Stage.PPO:
        return record
    if isinstance(record, Dialogue):
        return Prompt(record.turns[:-1], record.position)
    if isinstance(record, Ranking):
        return Prompt(record.prompt, record.position)
    return record


def count(made: Encoded | Unfit, split: Split, tally: Counter[str]) -> None:
    """Counts what became of a record that was read, by the names of :class:`SourceCounts`."""
    if made is Unfit.TOO_LONG:
        tally["too_long"] += 1
    elif isinstance(made, Unfit):
        tally["quarantined"] += 1
    else:
        tally["kept"] += 1
        tally[split] += 1
        tally["truncated"] += made.truncated


class RecordEncoder:
    """Tokenises records for one stage; a tokenizer without a chat template gets one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        ensure_chat_template(tokenizer)
        self.tokenizer = tokenizer
        self._stage = Stage.SFT
        self._max_length = 0
        self._system_prompt: str | None = None

    def configure(self, stage: Stage, max_length: int, system_prompt: str | None) -> None:
        """Sets what the records are encoded for.

        Raises:
            ConfigError: the chat template does not show the system turn.
        """
        if system_prompt and stage is not Stage.PRETRAIN:
            turns = (Turn("system", system_prompt), Turn("user", "?"))
            if not is_within(system_prompt, chat_format(self.tokenizer).render(turns, generation=True)):
                raise ConfigError(
                    "the chat template leaves the system turn out",
                    code=INVALID_TEMPLATE,
                    where=f"spec.stages.{stage}.systemPrompt",
                    remedy="take systemPrompt out, or give a base.chatTemplate that writes system turns",
                )
        self._stage, self._max_length, self._system_prompt = stage, max_length, system_prompt

    @property
    def special(self) -> re.Pattern[str] | None:
        """What must not stand in a record's text: the tokenizer would take it for its own marks.

        None in pretraining, where texts are tokenised without looking for marks.
        """
        return None if self._stage is Stage.PRETRAIN else special_tokens(self.tokenizer)

    @property
    def dtype(self) -> TokenType:
        """The smallest type that holds every token id."""
        return "uint16" if max(self.tokenizer.get_vocab().values()) < 1 << 16 else "uint32"

    @property
    def cuts_thoughts(self) -> bool:
        """Whether the chat template drops what an answer thinks, where answers are learned or compared."""
        return self._stage in (Stage.SFT, Stage.RM) and chat_format(self.tokenizer).cuts_thoughts()

    def rewrites(self, record: Record) -> bool:
        """Whether the chat template cuts or rewrites an answer of the record; nothing is tokenised."""
        dialogues: list[tuple[Turn, ...]] = []
        if isinstance(record, Dialogue):
            dialogues = [record.turns]
        elif isinstance(record, Ranking):
            dialogues = [(*record.prompt[-1:], Turn("assistant", answer)) for answer in record.answers]
        return any(rewrites_answers(self.tokenizer, turns) for turns in dialogues)

    def encode(self, records: Sequence[Record]) -> list[Encoded | Unfit]:
        """Tokens of each record, or why it has none."""
        if not records:
            return []
        if self._stage is Stage.PRETRAIN:
            texts = [_document(record) for record in records]
            documents = iter(encode_texts(self.tokenizer, [text for text in texts if text is not None]))
            return [Unfit.MASKED if text is None else Encoded(document=next(documents)) for text in texts]
        if self._stage is Stage.SFT:
            turns = [record.turns for record in records if isinstance(record, Dialogue)]
            assert len(turns) == len(records), "sft reads dialogues, as the document's validation says"
            return encode_dialogues(self.tokenizer, turns, self._max_length, self._system_prompt)
        return [self._one(record) for record in records]

    def _one(self, record: Record) -> Encoded | Unfit:
        limits = (self._max_length, self._system_prompt)
        if isinstance(record, Ranking):
            return encode_ranking(self.tokenizer, record.prompt, record.answers, *limits, ranks=record.ranks)
        assert isinstance(record, Prompt), "rm reads rankings and ppo prompts, as the validation says"
        return encode_prompt(self.tokenizer, record.turns, *limits)


def _document(record: Record) -> str | None:
    """What is learned of a record in pretraining; None where part of it must not be."""
    if isinstance(record, TextRecord):
        return record.text
    assert isinstance(record, Dialogue), "pretrain reads texts and dialogues, as the validation says"
    if not all(turn.learn for turn in record.turns):
        return None
    return "\n".join(turn.content for turn in record.turns)
