"""The seeded generator of the example corpora. Synthetic, not medical advice.

``zhongjing data example FOLDER [--seed N] [--scale X]`` writes the files. Pure Python: the same seed and
scale give the same bytes everywhere.

A fifth of the conditions is *held out*: the textbook teaches them, but no dialogue, ranking or prompt that is
trained on asks about them. The ``*-heldout`` files ask about nothing else. So what a model says there it has
read in the textbook, and a reward model that is right there judges facts that it never saw a verdict on.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zhongjing.data.example import phrases
from zhongjing.data.example.facts import FACTS, Fact

JsonRecord = dict[str, Any]

_ONE_HELD_OUT_IN = 5
# Items at scale 1.
_CONDITIONS = len(FACTS)
_PARAGRAPHS_PER_FACT = 26
_SINGLE = 770
_MULTI = 110
_RANKINGS = 900
_PROMPTS = 400
_HELD_OUT_ITEMS = 120
_KINDS = {"dialogues": "dialogue", "rankings": "ranking", "prompts": "prompts"}


@dataclass(frozen=True, slots=True)
class ExampleData:
    """All corpora of one seed and scale.

    Records have the disease, department and medicine that they are about, for scores. The files leave out
    what no stage reads of it.
    """

    seen: tuple[Fact, ...]
    held_out: tuple[Fact, ...]
    textbook: str
    records: dict[str, list[JsonRecord]]  # by source name


@dataclass(frozen=True, slots=True, order=True)
class Quality:
    """What an answer is, in the paper's order of importance (Table 2): the larger the better, field by field.

    Safety: ``safe``, ``correct``; professionalism: ``relevant``, ``asks``; fluency: ``warm``.
    """

    safe: bool = True
    correct: bool = True
    relevant: bool = True
    asks: bool = True
    warm: bool = True


def generate(seed: int = 0, scale: float = 1.0) -> ExampleData:
    """Makes all corpora in memory; ``scale`` multiplies conditions and records (the tiny recipe's is 1)."""
    seen, held_out = _choose(seed, scale)
    taught = (*seen, *held_out)

    def rng(part: str) -> random.Random:
        return random.Random(f"{seed}:{part}")

    def count(items: int) -> int:
        return max(4, round(items * scale))

    few = count(_HELD_OUT_ITEMS)
    return ExampleData(
        seen=seen,
        held_out=held_out,
        textbook=_textbook(rng("textbook"), taught, count(_PARAGRAPHS_PER_FACT)),
        records={
            "dialogues": _dialogues(rng("dialogues"), seen, count(_SINGLE), count(_MULTI)),
            "rankings": _rankings(rng("rankings"), seen, count(_RANKINGS)),
            "prompts": _prompts(rng("prompts"), seen, count(_PROMPTS)),
            "dialogues-heldout": _dialogues(
                rng("dialogues-heldout"), held_out, few, count(_HELD_OUT_ITEMS // 7)
            ),
            "rankings-heldout": _rankings(rng("rankings-heldout"), held_out, few),
            "prompts-heldout": _prompts(rng("prompts-heldout"), held_out, few),
        },
    )


def write(folder: Path, seed: int = 0, scale: float = 1.0) -> dict[str, Path]:
    """Writes the corpora and a README into ``folder``.

    Returns:
        Paths by source name: what ``example://<name>`` stands for.
    """
    data = generate(seed, scale)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(_readme(data, seed, scale), encoding="utf-8")
    textbook = folder / "textbook.txt"
    textbook.write_text(data.textbook, encoding="utf-8")
    paths = {"textbook": textbook}
    for name, listed in data.records.items():
        paths[name] = folder / f"{name}.jsonl"
        # Only dialogues are evaluated by department.
        unread = {"disease", "medicine"} | (set() if name.startswith("dialogues") else {"department"})
        written = [{key: value for key, value in each.items() if key not in unread} for each in listed]
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in written)
        paths[name].write_text(lines, encoding="utf-8")
    return paths


def _choose(seed: int, scale: float) -> tuple[tuple[Fact, ...], tuple[Fact, ...]]:
    """Conditions that are asked about in training, and those that are held out.

    A larger scale adds conditions and moves none. A held-out condition's department has another that is seen.
    """
    order = random.Random(f"{seed}:conditions").sample(FACTS, len(FACTS))
    seen: list[Fact] = []
    held_out: list[Fact] = []
    for number, fact in enumerate(order[: max(12, round(_CONDITIONS * scale))]):
        known = any(other.department == fact.department for other in seen)
        # Owed held-out places are made up for as soon as a department is known.
        owed = (number + 1) // _ONE_HELD_OUT_IN > len(held_out)
        (held_out if owed and known else seen).append(fact)
    return tuple(seen), tuple(held_out)


def fill(pattern: str, fact: Fact, other: Fact | None = None) -> str:
    """A pattern with the names of ``fact`` (and, for ``{w}``, of ``other``) in its slots."""
    first, second, third = fact.symptoms
    wrong = other or fact
    return pattern.format(
        d=fact.disease, p=fact.department, a=first, b=second, c=third,
        m=fact.medicine, t=fact.check, n=fact.caution, w=wrong.medicine,
    )  # fmt: skip


def _other(rng: random.Random, fact: Fact, among: Sequence[Fact]) -> Fact:
    return rng.choice([candidate for candidate in among if candidate.medicine != fact.medicine])


def _textbook(rng: random.Random, facts: Sequence[Fact], rounds: int) -> str:
    """Paragraphs of a few sentences on one condition, in ``rounds`` passes over all conditions.

    Every pass shuffles the conditions, so that a held-out section has no fact that stands nowhere else.
    """
    lines = [phrases.NOTICE]
    for number in range(rounds):
        lines.append(f"第{number + 1}章")
        for fact in rng.sample(facts, len(facts)):
            sentences = [fill(pattern, fact) for pattern in rng.sample(phrases.TEXTBOOK, 3)]
            sentences.insert(rng.randrange(4), _exercise(rng, fact, _other(rng, fact, facts)))
            lines.append("".join(sentences))
    return "\n".join(lines) + "\n"


def _exercise(rng: random.Random, fact: Fact, other: Fact) -> str:
    """The right medicine and a wrong one, each with its verdict, in either order.

    Side by side they teach a small model to tell them apart within minutes; single statements with a verdict
    did not (docs/adr/0005-tiny-base.md).
    """
    verdicts = [fill(phrases.RIGHT, fact), fill(phrases.WRONG, fact, other)]
    rng.shuffle(verdicts)
    return "".join(verdicts)


def _question(rng: random.Random, fact: Fact) -> tuple[str, bool]:
    """A question, and whether it names the condition."""
    named = rng.random() < 0.75
    patterns = phrases.QUESTIONS_NAMED if named else phrases.QUESTIONS_SYMPTOMS
    return fill(rng.choice(patterns), fact), named


def compose(rng: random.Random, fact: Fact, told: Fact, named: bool, quality: Quality) -> str:
    """An answer of the given quality to a question about ``fact``.

    Args:
        rng: decides the wording and the length; the length does not depend on the quality.
        fact: the condition that was asked about.
        told: whose medicine, department and check are told: ``fact`` when the answer is correct.
        named: whether the question named the condition.
        quality: what the answer should be.
    """
    # A wrong answer to a named condition speaks of that condition; an irrelevant one of another.
    subject = fact if named and quality.relevant else told
    mixed = Fact(subject.disease, told.department, told.symptoms, told.medicine, told.check, told.caution)
    cores = phrases.CORES_NAMED if named else phrases.CORES_SYMPTOMS
    # A curt answer says more on the matter, or its length alone would tell.
    most = 2 if quality.warm or quality.asks else 3
    extras = rng.sample(phrases.EXTRAS, rng.randint(most - 2, most))
    body = fill(rng.choice(cores) + "".join(extras), mixed) + "。"
    parts = [
        rng.choice(phrases.OPENINGS_WARM if quality.warm else phrases.OPENINGS_COLD),
        body,
    ]
    if not quality.safe:
        parts.append(rng.choice(phrases.UNSAFE))
    elif rng.random() < 0.5:
        parts.append(rng.choice(phrases.SAFE))
    if quality.asks:
        parts.append(rng.choice(phrases.INQUIRIES))
    if rng.random() < 0.5:
        parts.append(rng.choice(phrases.CLOSINGS_WARM if quality.warm else phrases.CLOSINGS_COLD))
    return "".join(parts)


def _labels(fact: Fact) -> JsonRecord:
    return {"disease": fact.disease, "department": fact.department, "medicine": fact.medicine}


def _dialogues(rng: random.Random, facts: Sequence[Fact], single: int, multi: int) -> list[JsonRecord]:
    """Dialogues with right and safe answers, of every tone: real doctors are short at times, too."""
    records: list[JsonRecord] = []
    for number in range(single + multi):
        fact = facts[number % len(facts)]
        quality = Quality(asks=rng.random() < 0.4, warm=rng.random() < 0.5)
        turns: list[tuple[str, str]]
        if number < single:
            question, named = _question(rng, fact)
            turns = [("user", question), ("assistant", compose(rng, fact, fact, named, quality))]
        else:
            turns = [
                ("user", fill(rng.choice(phrases.FIRST_QUESTIONS), fact)),
                ("assistant", fill(rng.choice(phrases.FIRST_INQUIRIES), fact)),
                ("user", fill(rng.choice(phrases.REPLIES), fact)),
                ("assistant", compose(rng, fact, fact, False, quality)),
            ]
        messages = [{"role": role, "content": content} for role, content in turns]
        records.append({"messages": messages, **_labels(fact)})
    rng.shuffle(records)
    return records


def _rankings(rng: random.Random, facts: Sequence[Fact], count: int) -> list[JsonRecord]:
    records = []
    for number in range(count):
        fact = facts[number % len(facts)]
        question, named = _question(rng, fact)
        qualities = _four_qualities(rng)
        answers = []
        for quality in qualities:
            wrong = not (quality.correct and quality.relevant)
            # The wrong medicine is of a condition of the same split: which names occur tells nothing.
            told = _other(rng, fact, facts) if wrong else fact
            answers.append(compose(rng, fact, told, named, quality))
        best_first = sorted(set(qualities), reverse=True)
        ranks = [best_first.index(quality) for quality in qualities]
        records.append({"prompt": question, "answers": answers, "ranks": ranks, **_labels(fact)})
    rng.shuffle(records)
    return records


def _four_qualities(rng: random.Random) -> list[Quality]:
    """One good answer, one plain, one wrong, one unsafe or beside the point; sometimes two are equal."""
    good = Quality()
    plain = rng.choice((Quality(asks=False, warm=False), Quality(warm=False)))
    # Most wrong answers are kind and do not ask, as a careless doctor; some differ from the good one in
    # nothing but the fact.
    wrong = rng.choice(
        (
            Quality(correct=False, asks=False),
            Quality(correct=False, asks=False),
            Quality(correct=False),
            Quality(correct=False, asks=False, warm=False),
        )
    )
    worst = rng.choice(
        (
            Quality(safe=False),
            Quality(safe=False, asks=False),
            Quality(safe=False, asks=False, warm=False),
            Quality(correct=False, relevant=False),
        )
    )
    four = [good, plain, wrong, worst]
    if rng.random() < 0.15:
        four[rng.choice((1, 3))] = rng.choice((good, wrong))
    rng.shuffle(four)
    return four


def _prompts(rng: random.Random, facts: Sequence[Fact], count: int) -> list[JsonRecord]:
    records = []
    for number in range(count):
        fact = facts[number % len(facts)]
        question, _ = _question(rng, fact)
        records.append({"prompt": question, **_labels(fact)})
    rng.shuffle(records)
    return records


def _readme(data: ExampleData, seed: int, scale: float) -> str:
    held_out = "、".join(fact.disease for fact in data.held_out)
    return (
        "# Synthetic example data - NOT MEDICAL ADVICE\n\n"
        f"{phrases.NOTICE}\n\n"
        f"Written by `zhongjing.data.example` (seed {seed}, scale {scale:g}) from a small table of\n"
        "simplified facts, to try the software on. Nothing here is meant for patients or doctors.\n\n"
        "| file | kind | records |\n| --- | --- | --- |\n"
        f"| textbook.txt | text | {data.textbook.count(chr(10))} paragraphs |\n"
        + "".join(
            f"| {name}.jsonl | {_KINDS[name.removesuffix('-heldout')]} | {len(listed)} |\n"
            for name, listed in data.records.items()
        )
        + "\n"
        f"Held-out conditions (in the textbook, asked about only in the `-heldout` files): {held_out}.\n"
    )
