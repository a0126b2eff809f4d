from __future__ import annotations

import ast
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import zhongjing.data.example
from benchmarks.example_baselines import longer_wins, pair_accuracy, train_bag_of_words
from zhongjing.data.example import phrases
from zhongjing.data.example.facts import FACTS, exact_fact_score
from zhongjing.data.example.generate import ExampleData, generate, write
from zhongjing.data.inspect import inspect_sources

RECORDS = (
    "dialogues",
    "rankings",
    "prompts",
    "dialogues-heldout",
    "rankings-heldout",
    "prompts-heldout",
)


@pytest.fixture(scope="module")
def data() -> ExampleData:
    return generate(0)


def test_the_same_seed_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    write(tmp_path / "here", seed=3, scale=0.1)
    code = (
        "import sys, pathlib\nfrom zhongjing.data.example.generate import write\n"
        "write(pathlib.Path(sys.argv[1]), 3, 0.1)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "there")]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "5"})
    write(tmp_path / "other", seed=4, scale=0.1)
    for path in sorted((tmp_path / "here").iterdir()):
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes(), path.name
        assert path.read_bytes() != (tmp_path / "other" / path.name).read_bytes(), path.name


def test_every_source_is_written_and_marked(tmp_path: Path) -> None:
    paths = write(tmp_path, seed=0, scale=0.1)
    assert set(paths) == {"textbook", *(name.replace("_", "-") for name in RECORDS)}
    assert "NOT MEDICAL ADVICE" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert paths["textbook"].read_text(encoding="utf-8").startswith(phrases.NOTICE)
    for name, path in paths.items():
        if name != "textbook":
            records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            assert records
            (report,) = inspect_sources([str(path)]).sources
            assert not report.unused, "a first run tells of no field that is not used"


def test_it_needs_no_third_party_package() -> None:
    """The command line imports it, and must not wait for torch or numpy."""
    folder = Path(str(zhongjing.data.example.__file__)).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                own = name.startswith("zhongjing.data.example")
                assert own or name.split(".")[0] in sys.stdlib_module_names, (path.name, name)


def test_held_out_conditions_are_taught_and_never_asked_about_in_training(data: ExampleData) -> None:
    seen = {fact.disease for fact in data.seen}
    held_out = {fact.disease for fact in data.held_out}
    assert not seen & held_out
    assert 0.17 <= len(held_out) / len(seen | held_out) <= 0.2
    assert {fact.department for fact in data.held_out} <= {fact.department for fact in data.seen}
    for name in RECORDS:
        asked = {record["disease"] for record in data.records[name]}
        assert asked == (held_out if name.endswith("heldout") else seen), name
    trained = json.dumps(
        [data.records["dialogues"], data.records["rankings"], data.records["prompts"]], ensure_ascii=False
    )
    for fact in data.held_out:
        assert data.textbook.count(fact.disease) > 50
        assert data.textbook.count(fact.medicine) > 50
        assert fact.disease not in trained
        assert fact.medicine not in trained


def test_a_larger_scale_adds_and_moves_nothing() -> None:
    small, large = generate(2, 0.3), generate(2, 0.6)
    assert set(small.seen) < set(large.seen)
    assert set(small.held_out) < set(large.held_out)
    assert len(large.records["rankings"]) == 2 * len(small.records["rankings"])


def test_the_textbook_states_every_fact_right(data: ExampleData) -> None:
    """No sentence gives a condition another's medicine, but where it says that this is wrong."""
    right = {(fact.disease, fact.medicine) for fact in FACTS}
    diseases, medicines = ("|".join(map(re.escape, names)) for names in zip(*right, strict=True))
    for pattern in (f"治疗({diseases})首选({medicines})。", f"({diseases})用({medicines})？对。"):
        stated = re.findall(pattern, data.textbook)
        assert stated
        assert set(stated) <= right


def test_dialogues_are_right_and_seven_to_one(data: ExampleData) -> None:
    turns = [len(record["messages"]) for record in data.records["dialogues"]]
    assert set(turns) == {2, 4}
    assert turns.count(2) / turns.count(4) == pytest.approx(7, abs=0.5)
    for record in data.records["dialogues"]:
        assert [m["role"] for m in record["messages"]] == ["user", "assistant"] * (
            len(record["messages"]) // 2
        )
        assert exact_fact_score(record, record["messages"][-1]["content"]) == 1
        assert not any(harm in record["messages"][-1]["content"] for harm in phrases.UNSAFE)
        if len(record["messages"]) == 4:
            assert record["messages"][1]["content"].endswith("？")  # the doctor asks first


def test_rankings_follow_the_papers_order(data: ExampleData) -> None:
    """Safety above facts above inquiry above warmth, and equal answers tie."""
    ties = 0
    for record in [*data.records["rankings"], *data.records["rankings-heldout"]]:
        graded = []
        for answer in record["answers"]:
            safe = not any(harm in answer for harm in phrases.UNSAFE)
            right = exact_fact_score(record, answer) == 1
            asks = any(inquiry in answer for inquiry in phrases.INQUIRIES)
            warm = any(opening in answer for opening in phrases.OPENINGS_WARM)
            graded.append((safe, right, asks, warm))
        assert len(record["answers"]) == len(record["ranks"]) == 4
        assert sorted(set(record["ranks"])) == list(range(len(set(record["ranks"]))))
        for (one, rank), (two, other) in itertools.combinations(zip(graded, record["ranks"], strict=True), 2):
            # Relevance stands between facts and inquiry, and irrelevant answers are wrong as well.
            if one[:2] != two[:2] or (one[1] and two[1]):
                assert (one > two) == (rank < other), (one, two, rank, other)
        best = max(zip(graded, record["ranks"], strict=True), key=lambda pair: -pair[1])
        assert best[0] == (True, True, True, True)
        ties += len(set(record["ranks"])) < 4
    assert 0.05 < ties / (len(data.records["rankings"]) + len(data.records["rankings-heldout"])) < 0.25


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_simple_rankers_do_not_solve_it(seed: int) -> None:
    made = generate(seed).records
    assert 0.4 < pair_accuracy(made["rankings-heldout"], longer_wins) <= 0.6
    ranker = train_bag_of_words(made["rankings"], epochs=2)
    assert 0.65 < pair_accuracy(made["rankings-heldout"], ranker) < 0.85
    perfect = {id(r): dict(zip(r["answers"], r["ranks"], strict=True)) for r in made["rankings-heldout"]}
    by_prompt = {
        (r["prompt"], a): -rank for r in made["rankings-heldout"] for a, rank in perfect[id(r)].items()
    }
    assert pair_accuracy(made["rankings-heldout"], lambda p, a: by_prompt[p, a]) > 0.97


def test_the_order_of_the_answers_tells_nothing(data: ExampleData) -> None:
    places = [record["ranks"].index(0) for record in data.records["rankings"]]
    assert all(0.18 < places.count(place) / len(places) < 0.34 for place in range(4))


def test_lengths_suit_a_small_model(data: ExampleData) -> None:
    answers = [len(answer) for record in data.records["rankings"] for answer in record["answers"]]
    assert 30 < sum(answers) / len(answers) < 60
    assert max(answers) < 120
    assert 150_000 < len(data.textbook) < 250_000


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("您好，糖尿病常用二甲双胍，到内分泌科就诊。", 1.0),
        ("二甲双胍。", 1.0),
        ("可以用二甲双胍，也可以用别嘌醇。", 0.5),
        ("糖尿病首选别嘌醇。", 0.0),
        ("请到内分泌科就诊。", 0.25),
        ("请到内分泌科或眼科就诊。", 0.0),
        ("别嘌醇，到内分泌科就诊。", 0.0),
        ("", 0.0),
    ],
)
def test_scores_of_answers(answer: str, score: float) -> None:
    fact = next(fact for fact in FACTS if fact.disease == "糖尿病")
    record = {"medicine": fact.medicine, "department": fact.department}
    assert exact_fact_score(record, answer) == score


def test_figures_that_the_log_quotes(data: ExampleData) -> None:
    """A change of the generator changes every figure in docs/LOG.md: this says that it happened."""
    digest = hashlib.sha256(data.textbook.encode()).hexdigest()[:12]
    assert digest == "de7efdf6a550"
