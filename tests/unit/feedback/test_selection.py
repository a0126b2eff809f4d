"""What to rank next: worth, choice, what is left out, and that nothing is scored twice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import pytest

from tests.feedback_support import task, write_task_set
from zhongjing.data.records import Turns
from zhongjing.errors import ConfigError, StorageError
from zhongjing.feedback.selection import Pool, Score, choose, score_pool, worth
from zhongjing.feedback.tasks import read_task_set, read_tasks
from zhongjing.storage.objects import ObjectStore

ANSWERS = ("甲", "乙")


def test_worth_is_what_models_do_not_share() -> None:
    assert worth([[2.0, 0.0], [2.0, 0.0]]) == pytest.approx(0.0, abs=1e-12)
    # Unsure alike is no disagreement; sure of opposites is all of it.
    assert worth([[0.0, 0.0], [5.0, 5.0]]) == pytest.approx(0.0, abs=1e-12)
    assert worth([[40.0, 0.0], [0.0, 40.0]]) == pytest.approx(math.log(2))
    assert worth([[1000.0, 0.0], [-1000.0, 0.0]]) == pytest.approx(math.log(2))
    apart = [worth([[gap, 0.0], [0.0, gap]]) for gap in (0.5, 1.0, 2.0)]
    assert apart == sorted(apart)
    # A pair more on which they agree lowers the mean of a task.
    assert worth([[1.0, 0.0, 9.0], [0.0, 1.0, 9.0]]) < worth([[1.0, 0.0], [0.0, 1.0]])


def scorer(sign: float, calls: list[str]) -> Score:
    """A model that is the surer of an answer, the higher the number of the question."""

    def score(prompt: Turns, answers: Sequence[str]) -> list[float] | None:
        calls.append(prompt[-1].content)
        number = int(prompt[-1].content.removeprefix("第").partition("位")[0])
        return None if number == 7 else [sign * number, 0.0]

    return score


@pytest.fixture
def pool(store: ObjectStore, bucket_uri: str) -> Pool:
    folder = f"{bucket_uri}/tasks"
    tasks = [task(number, ANSWERS) for number in range(8)]
    return Pool(folder, write_task_set(store, folder, tasks), {tasks[6].id})


def scored(store: ObjectStore, pool: Pool, out: str) -> list[str]:
    calls: list[str] = []
    for name, sign in (("one", 1.0), ("other", -1.0)):
        score_pool(store, pool, out, name, partial(scorer, sign, calls))
    return calls


def test_the_tasks_of_the_most_worth_come_first(store: ObjectStore, bucket_uri: str, pool: Pool) -> None:
    out = f"{bucket_uri}/next"
    assert len(scored(store, pool, out)) == 16
    told: list[float] = []
    score_pool(store, pool, out, "third", lambda: scorer(1.0, []), lambda part, _: told.append(part))
    assert told == sorted(told)
    assert told[-1] == 1.0
    chosen = choose(store, pool, out, ["one", "other"], 3)
    found = list(read_tasks(store, out, read_task_set(store, out)))
    # Not 7, which is too long for a model, and not 6, which is ranked.
    assert [each.prompt[0].content[1] for each in found] == ["5", "4", "3"]
    assert chosen.prompts == {"in_distribution": 3}
    assert (chosen.chosen_from, chosen.chosen_by) == (pool.folder, ["one", "other"])
    assert (chosen.model, chosen.parents) == (pool.task_set.model, pool.task_set.parents)
    # Again: nothing is scored, and the same stands there; another choice is refused.
    before = {info.uri: info.etag for info in store.list(out)}
    assert scored(store, pool, out) == []
    assert choose(store, pool, out, ["other", "one"], 3) == chosen
    assert {info.uri: info.etag for info in store.list(out)} == before
    with pytest.raises(ConfigError, match="another choice"):
        choose(store, pool, out, ["one", "other"], 4)


def test_a_killed_run_scores_no_file_twice(store: ObjectStore, bucket_uri: str, pool: Pool) -> None:
    out = f"{bucket_uri}/next"

    class Killed(BaseException):
        pass

    def listen(part: float, _: float | None) -> None:
        if part >= 0.5:
            raise Killed

    calls: list[str] = []
    with pytest.raises(Killed):
        score_pool(store, pool, out, "one", lambda: scorer(1.0, calls), listen)
    assert not list(store.list(f"{out}/_scores"))
    assert len(scored(store, pool, out)) == 16


def test_one_model_cannot_disagree(store: ObjectStore, bucket_uri: str, pool: Pool) -> None:
    with pytest.raises(ConfigError, match="one reward model"):
        choose(store, pool, f"{bucket_uri}/next", ["one", "one"], 3)


def test_an_edited_pool_is_refused(store: ObjectStore, bucket_uri: str, pool: Pool) -> None:
    store.put(f"{pool.folder}/{pool.task_set.parts[0].name}", b"{}\n")
    with pytest.raises(StorageError, match="not what was written"):
        scored(store, pool, f"{bucket_uri}/next")
