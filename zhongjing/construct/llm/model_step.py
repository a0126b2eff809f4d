"""A step that a language model writes, as the other steps are: records in, outcomes out.

:meth:`ModelStep.apply` asks for one record and waits. :meth:`ModelStep.apply_all` asks for many at a time, in
the order of the records; who runs a part calls that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from zhongjing.construct.llm.author import Author, Question
from zhongjing.construct.llm.batch import Batch, Desk, Report, close_batch, shared_batch
from zhongjing.construct.llm.drugs import DrugNames
from zhongjing.construct.llm.prompt import Prompt, load_prompt
from zhongjing.construct.step import Outcome, rejected
from zhongjing.data.records import Dialogue, Record, Turns


@dataclass(frozen=True)
class ModelStep(ABC):
    """Base of the steps that a language model writes; a Step.

    Attributes:
        desk: where and how is asked.
        drugs: names that are looked for beside the endings of substances.
        prompt_version: of the prompt of the step's name; None: its newest.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    newest_prompt: ClassVar[int]

    desk: Desk
    drugs: DrugNames = field(default_factory=DrugNames)
    prompt_version: int | None = None

    @property
    def prompt(self) -> Prompt:
        """The prompt in use.

        Raises:
            ConfigError: there is none of that version.
        """
        return load_prompt(self.name, self.prompt_version or self.newest_prompt)

    def parameters(self) -> dict[str, object]:
        """What decides the outcome beside name and version. Address and limits do not."""
        prompt = self.prompt
        return {
            "prompt": {"name": prompt.name, "version": prompt.version, "digest": prompt.digest},
            "model": self.desk.server.model,
            "sampling": self.desk.sampling.as_json(),
            "tries": self.desk.tries,
            "drugs": self.drugs.digest if self.drugs.names else None,
            **self.settings(),
        }

    @abstractmethod
    def settings(self) -> dict[str, object]:
        """Parameters of the step's own."""

    @abstractmethod
    def opening(self, record: Record) -> tuple[dict[str, str], ...] | None:
        """The first messages that a record takes; None: it takes none."""

    @abstractmethod
    async def write(self, author: Author, record: Record) -> Outcome:
        """What becomes of a record. Raises as :meth:`Author.write` does."""

    def apply(self, record: Record) -> Outcome:
        """What becomes of a record. Raises as :meth:`apply_all` does."""
        (outcome,) = self.apply_all([record])
        return outcome

    def apply_all(self, records: Iterable[Record], batch: Batch | None = None) -> Iterator[Outcome]:
        """What becomes of each record, in order; several are asked for at a time.

        Args:
            records: any number; a window of them is in memory.
            batch: an open one; None: the process's own for this desk.

        Raises:
            LanguageModelError: the run cannot go on. What is done is kept: the same call goes on from there.
            StorageError: the ledger cannot be read or written.
        """
        if batch is not None:
            yield from batch.map(records, self.write)
            return
        try:
            yield from shared_batch(self.desk).map(records, self.write)
        except BaseException:
            close_batch(self.desk)  # it asks nothing any more
            raise

    def report(self) -> Report:
        """What this process has done at the desk up to now."""
        return shared_batch(self.desk).report()

    def close(self) -> None:
        """Closes what this process has open at the desk; the next record opens it again."""
        close_batch(self.desk)


def left_as_it_is(record: Record, label: str) -> Outcome:
    """The outcome of a record that the step is not for."""
    return Outcome(records=(record,), counts={label: 1})


async def rewritten(
    author: Author,
    dialogue: Dialogue,
    question: Question[Turns],
    counted: Callable[[Turns], Mapping[str, int]],
) -> Outcome:
    """The dialogue with the turns that the model wrote, counted by ``counted``, or its quarantine."""
    written = await author.write(question)
    if written.value is None:
        return Outcome(counts=written.counts, quarantined=rejected(dialogue, written.reason, written.code))
    counts = {**written.counts, **counted(written.value)}
    return Outcome(records=(replace(dialogue, turns=written.value),), counts=counts)
