"""Trains the name model of de-identification and writes ``lists/names.npz``.

::

    export ZHONGJING_DATA=<samples>
    python -m benchmarks.train_names <ngender's charfreq.csv> <jieba's dict.txt> <THUOCL's data> [out]

Counts of characters in given names come from ngender 0.1.1 (MIT), words from jieba 0.42.1
and THUOCL (MIT), text from the
published samples (Apache-2.0, MIT), of which only the part ``made`` is read
(:mod:`benchmarks.name_carriers`).
Names are drawn from the counts; they are put into the texts where their authors wrote of a person, and behind
and before common words. Everything else that looks like a name is what is none.
"""

from __future__ import annotations

import csv
import json
import math
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.name_carriers import RELATED, Named, People, fill, part_of, slots
from zhongjing.construct.deidentify.folding import folded
from zhongjing.construct.deidentify.lexicon import load_lexicon, words
from zhongjing.construct.deidentify.likelihood import (
    CONTEXT,
    FIRST,
    IDS,
    LONGEST,
    NUMBERS,
    OTHER,
    TITLES,
    Statistics,
    Surnames,
    _ids,
    automaton,
    candidates,
    surnames_of,
)

WIDTH, HIDDEN = 16, 64
SEED = 7
HAN = re.compile("[\u4e00-\u9fff]+")
BEFORE, BEHIND = (
    part.split()
    for part in Path(__file__).with_name("name_surroundings.txt").read_text(encoding="utf-8").split("==")
)


def corpus() -> list[str]:
    """Texts of the samples that belong to the part ``made``, folded."""
    folder = Path(os.environ["ZHONGJING_DATA"])
    found: list[str] = []

    def collect(value: object) -> None:
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, list):
            for each in value:
                collect(each)
        elif isinstance(value, dict):
            for each in value.values():
                collect(each)

    for path in sorted(folder.iterdir()):
        if path.suffix == ".csv":
            with path.open(encoding="gb18030", errors="replace", newline="") as file:
                for row in csv.reader(file):
                    found.extend(row)
        elif path.suffix in (".json", ".jsonl"):
            text = path.read_text(encoding="utf-8")
            try:
                collect(json.loads(text))
            except json.JSONDecodeError:
                for line in text.splitlines():
                    if line.strip():
                        collect(json.loads(line))
        elif path.name == "fever_textbook.txt":
            found.extend(path.read_text(encoding="utf-8").splitlines())
    unique = dict.fromkeys(each for each in found if len(HAN.findall(each)) and part_of(each) == "made")
    return [folded(each) for each in unique]


def statistics_of(
    texts: list[str], names: dict[str, float], dictionary: Path, terms: list[str]
) -> tuple[Statistics, dict[str, object]]:
    """Counts of the texts and the names."""
    count = Counter[str]()
    for text in texts:
        count.update(text)
    total = sum(count.values())
    named = sum(names.values())
    listed = list(words("surnames"))
    wanted = [
        each for each, number in count.items() if number >= 5 and not (each.isascii() and each.isalnum())
    ]
    wanted += [each for each, number in names.items() if number >= 15 and HAN.fullmatch(each)]
    wanted += [char for each in listed for char in each]
    order = sorted(set(wanted), key=lambda each: (-count[each] / total - names.get(each, 0) / named, each))
    order = [each for each in order if ord(each) < 65536][: OTHER - FIRST]
    characters = "".join(order)
    ids = _ids(characters)
    given = np.full(IDS, -99.0, np.float32)
    frequency = np.full(IDS, math.log(0.5 / total), np.float32)
    for each in order:
        where = ids[ord(each)]
        frequency[where] = math.log((count[each] + 0.5) / total)
        if HAN.fullmatch(each):
            share = (names.get(each, 0) + 2.0) / named
            given[where] = math.log(share) - math.log((count[each] + 20.0) / total)
    pairs = Counter[int]()
    for text in texts:
        row = ids[
            np.minimum(np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32), 65535)
        ].astype(np.int64)
        row = np.concatenate([[0], row, [0]])
        pairs.update((row[:-1] * IDS + row[1:]).tolist())
    kept = sorted(key for key, number in pairs.items() if number >= 3)
    keys = np.array(kept, np.uint32)
    single: npt.NDArray[np.float32] = np.exp(frequency)
    single[0] = 2 * len(texts) / total
    for sort in (1, 2):
        single[sort] = max(single[sort], 1e-6)
    for each in "0123456789":
        single[1] += count[each] / total
    for each, seen in count.items():
        if each.isascii() and each.isalpha():
            single[2] += seen / total
    frequency = np.log(single).astype(np.float32)
    attraction = np.array(
        [math.log(pairs[key] / total) - frequency[key // IDS] - frequency[key % IDS] for key in kept],
        np.float32,
    )
    strings = Counter[str]()
    fits = given > -2.2
    for text in texts:
        for run in HAN.findall(text):
            for start in range(len(run)):
                for width in (2, 3):
                    piece = run[start : start + width]
                    if len(piece) == width and all(fits[ids[ord(each)]] for each in piece[1:]):
                        strings[piece] += 1
    often = sorted(each for each, number in strings.items() if number >= (4 if len(each) == 3 else 15))
    known: list[str] = []
    long: set[str] = {each for each in terms if 3 <= len(each) <= LONGEST and HAN.fullmatch(each)}
    for line in dictionary.read_text(encoding="utf-8").splitlines():
        word, number, tag = (*line.split(" "), "", "")[:3]
        if tag.startswith("nr") or not HAN.fullmatch(word):
            continue
        if 3 <= len(word) <= 8 and int(number or 0) >= 2:
            long.add(word)
        usual = len(word) == 2 or (len(word) == 3 and all(fits[ids[ord(each)]] for each in word[1:]))
        if usual and int(number or 0) >= 3:
            known.append(word)
    known = sorted({*known, *(each for each in terms if len(each) == 2 and HAN.fullmatch(each))})
    family = {ids[ord(each)] for each in listed if len(each) == 1}
    long_terms = sorted(
        each
        for each in long
        if any(ids[ord(one)] in family and fits[ids[ord(two)]] for one, two in pairwise(each))
    )
    stored: dict[str, object] = {
        "terms": " ".join(long_terms),
        "characters": characters,
        "given": given.astype(np.float16),
        "frequency": frequency.astype(np.float16),
        "pairs": keys,
        "attraction": np.clip(np.round(attraction * 8), -127, 127).astype(np.int8),
        "words": " ".join(sorted(known)),
        "strings": " ".join(often),
    }
    statistics = Statistics(
        ids,
        given.astype(np.float16).astype(np.float32),
        frequency.astype(np.float16).astype(np.float32),
        keys,
        np.asarray(stored["attraction"], np.float32) / np.float32(8),
        frozenset(known),
        frozenset(often),
        automaton(long_terms),
    )
    print(
        f"{total} characters, {len(order)} ids, {len(keys)} pairs, {len(known)} words, "
        f"{len(often)} strings, {len(long_terms)} terms"
    )
    return statistics, stored


def thuocl(folder: Path) -> list[str]:
    """Words of medicine, food, animals and finance."""
    found: dict[str, None] = {}
    for name in ("medical", "food", "animal", "caijing"):
        for line in (folder / f"THUOCL_{name}.txt").read_text(encoding="utf-8").splitlines():
            found.update({line.split("\t")[0].strip(): None})
    return [each for each in found if each]


def with_terms(texts: list[str], terms: list[str], draw: random.Random) -> Iterator[Named]:
    """Words where a name might stand, alone and in a text: they are none."""
    for term in terms:
        yield Named(folded(term), (), "")
        text = draw.choice(texts)
        at = draw.choice([match.end() for match in re.finditer("[。！？!?\n，,]+", text)] or [0])
        words_ = (
            draw.choice(BEFORE) if draw.random() < 0.3 else "",
            draw.choice(BEHIND) if draw.random() < 0.5 else "",
        )
        yield Named(
            folded(text[max(0, at - 8) : at] + words_[0] + term + words_[1] + text[at : at + 8]), (), ""
        )


def with_names(texts: list[str], people: People) -> Iterator[Named]:
    """Texts with names in them; each text about once."""
    draw = people.random
    for text in texts:
        places = list(slots(text))
        if places and draw.random() < 0.7:
            yield fill(text, draw.choice(places), people)
        if draw.random() < 0.5 or not places:
            ends = [match.end() for match in re.finditer("[。！？!?\n，,]+", text)] or [0]
            anywhere = draw.random() < 0.3  # what stands beside a name is not always a clause's end
            start = draw.randrange(len(text)) if anywhere else draw.choice(ends)
            before = draw.choice(BEFORE) if draw.random() < 0.75 else ""
            if draw.random() < 0.2 and before:
                before = draw.choice(["，", "您好，", "医生，", "我", "这个", "还有"]) + before
            behind = draw.choice(BEHIND) if draw.random() < 0.75 else ""
            if draw.random() < 0.06:
                before = draw.choice(
                    [
                        "医师:",
                        "调配: ",
                        "核对:",
                        "采样:",
                        "麻醉:",
                        "助手: ",
                        "护士:",
                        "经办人:",
                        "开单 ",
                        "学员 ",
                        "主管",
                        ": ",
                    ]
                )
                behind = draw.choice([";", " ", "\n", "。", "  ", ",", "、"])
            kind = draw.random()
            if kind < 0.75:
                name = people.name()
            elif kind < 0.85:
                name = draw.choice("小老小老阿") + people.surname()[:1]
            else:
                name = people.surname()
                behind = draw.choice([*TITLES, *RELATED]) + (behind if draw.random() < 0.6 else "")
            head = text[:start] + before
            yield Named(
                folded(head + name + behind + text[start:]), ((len(head), len(head) + len(name)),), "made"
            )


def main() -> None:
    """Counts, trains, writes."""
    torch.manual_seed(SEED)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    random_state = random.Random(SEED)
    with Path(sys.argv[1]).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    counts = {
        row["char"]: float(row["male"]) + float(row["female"]) for row in rows if HAN.fullmatch(row["char"])
    }
    texts = corpus()
    terms = thuocl(Path(sys.argv[3]))
    statistics, stored = statistics_of(texts, counts, Path(sys.argv[2]), terms)
    lexicon = load_lexicon()
    order = words("surnames")
    single = [each for each in order if len(each) == 1]
    shares = [
        (each, (rank + 8) ** -1.5) for rank, each in enumerate(single)
    ]  # 王 every thirteenth, as in China
    shares += [(each, 0.0001) for each in single] + [(each, 0.0003) for each in lexicon.compound]
    shares += [(each, 0.00002) for each in counts if statistics.given[statistics.ids[ord(each)]] > 0]
    people = People(random_state, sorted(shares), [], sorted(counts.items()))
    full = surnames_of(lexicon, order, statistics.ids)
    halves = []
    for _ in range(8):
        less = lexicon.without(random_state.sample(sorted(lexicon.surnames), len(lexicon.surnames) // 2))
        halves.append(surnames_of(less, order, statistics.ids))
    numbers: list[np.ndarray] = []
    chars: list[np.ndarray] = []
    labels: list[np.ndarray] = []

    def learn(named: Named, surnames: Surnames) -> None:
        found = candidates(named.text, statistics, surnames)
        if found is None:
            return
        label = np.zeros(len(found.start), np.float32)
        for start, end in named.names:
            label[(found.start == start) & (found.end == end)] = 1.0
        numbers.append(found.numbers.astype(np.float16))
        chars.append(found.characters.astype(np.int16))
        labels.append(label)

    for round_ in range(int(os.environ.get("ROUNDS", "2"))):
        for named in with_names(texts, people):
            learn(named, full if random_state.random() < 0.7 else random_state.choice(halves))
        for named in with_terms(texts, terms, random_state):
            learn(named, full if random_state.random() < 0.8 else random_state.choice(halves))
        if round_ % 2 == 0:
            for text in texts:
                learn(
                    Named(text, (), ""), full if random_state.random() < 0.7 else random_state.choice(halves)
                )
    x = torch.from_numpy(np.concatenate(numbers))
    c = torch.from_numpy(np.concatenate(chars))
    y = torch.from_numpy(np.concatenate(labels))
    print(f"{len(y)} candidates, {int(y.sum())} names", flush=True)
    places = 2 * CONTEXT + 2
    embedding = torch.nn.Embedding(IDS, WIDTH)
    torch.nn.init.normal_(embedding.weight, std=0.1)
    hidden = torch.nn.Linear(places * WIDTH + NUMBERS, HIDDEN)
    out = torch.nn.Linear(HIDDEN, 1)
    parameters = [*embedding.parameters(), *hidden.parameters(), *out.parameters()]
    epochs = int(os.environ.get("EPOCHS", "4"))
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=1e-3)
    batch = 4096
    steps = epochs * (len(y) // batch + 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    for epoch in range(epochs):
        total = 0.0
        mixed = torch.randperm(len(y))
        for at in range(0, len(y), batch):
            rows_ = mixed[at : at + batch]
            ids_ = c[rows_].long() & 0xFFFF
            ids_ = torch.where(torch.rand(ids_.shape) < 0.05, torch.full_like(ids_, OTHER), ids_)
            for side in (
                slice(0, CONTEXT),
                slice(CONTEXT + 2, places),
            ):  # a name is one without its surroundings
                hide = torch.rand(len(ids_), 1) < 0.2
                ids_[:, side] = torch.where(hide, torch.full_like(ids_[:, side], OTHER), ids_[:, side])
            layer = torch.cat([embedding(ids_).flatten(1), x[rows_].float()], 1)
            logits = out(torch.relu(torch.nn.functional.dropout(hidden(layer), 0.1)))[:, 0]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y[rows_])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(rows_)
        print(f"epoch {epoch}: loss {total / len(y):.5f}", flush=True)
    weights = {
        "embedding": embedding.weight,
        "hidden": hidden.weight.T,
        "hidden_bias": hidden.bias,
        "out": out.weight[0],
        "out_bias": out.bias,
    }
    for name, tensor in weights.items():
        stored[name] = tensor.detach().numpy().astype(np.float16)
    target = (
        Path(sys.argv[4]) if len(sys.argv) > 4 else Path("zhongjing/construct/deidentify/lists/names.npz")
    )
    stored["terms"] = np.frombuffer(str(stored["terms"]).encode(), np.uint8)
    stored["words"] = np.frombuffer(str(stored["words"]).encode(), np.uint8)
    stored["strings"] = np.frombuffer(str(stored["strings"]).encode(), np.uint8)
    stored["characters"] = np.frombuffer(str(stored["characters"]).encode(), np.uint8)
    np.savez_compressed(target, **stored)  # type: ignore[arg-type]
    print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
