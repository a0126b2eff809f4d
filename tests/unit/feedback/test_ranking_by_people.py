"""Who ranks what, when orders disagree, how good annotators are."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import Any

import pytest
from scipy.stats import spearmanr

from tests.feedback_support import made_up_tasks, plackett_luce, result_of, write_task_set
from zhongjing.config.sources import Kind, Source
from zhongjing.construct.manifest import find_manifest
from zhongjing.data.readers import read_object
from zhongjing.data.records import Ranking
from zhongjing.errors import ConfigError, MissingInputError, StorageError
from zhongjing.feedback import judgments as stored
from zhongjing.feedback.agreement import measure
from zhongjing.feedback.assignment import assign, shown_order
from zhongjing.feedback.campaign import Campaign, check_model
from zhongjing.feedback.criteria import ABILITIES, UNKNOWN_ANSWER
from zhongjing.feedback.decision import Disagreement, State, decide, tau_b
from zhongjing.feedback.judgments import Judgment
from zhongjing.feedback.label_studio import page
from zhongjing.storage.objects import ObjectStore

PEOPLE = ["a", "b", "c", "d", "e"]


def judgment(order: str, annotator: str = "a", task: str = "t", **more: Any) -> Judgment:
    """``ab|c``: a and b tie before c."""
    groups = [list(group) for group in order.split("|")] if order else []
    shown = sorted(order.replace("|", ""))
    return Judgment(
        **{"task": task, "annotator": annotator, "annotation": 1, "updated": "2026-12-01", "shown": shown}
        | {"order": groups}
        | more
    )


def test_tasks_are_shared_evenly_and_everybody_meets() -> None:
    tasks = [str(number) for number in range(101)]
    assigned = assign(tasks, PEOPLE, each=2, seed=1)
    assert assigned == assign(list(reversed(tasks)), PEOPLE, each=2, seed=1)
    assert assigned != assign(tasks, PEOPLE, each=2, seed=2)
    load = Counter(name for names in assigned.values() for name in names)
    assert max(load.values()) - min(load.values()) <= 1
    met = Counter(frozenset(names) for names in assigned.values())
    assert len(met) == 10
    assert max(met.values()) - min(met.values()) <= 3
    with pytest.raises(ConfigError, match="2 annotators"):
        assign(tasks, ["a", "a"], each=2, seed=0)


def test_each_person_sees_an_order_of_their_own() -> None:
    orders = {shown_order(f"t{number}", "a", "abcd", 0) for number in range(200)}
    assert len(orders) == 24
    assert shown_order("t", "a", "abcd", 0) == shown_order("t", "a", "abcd", 0)
    assert any(shown_order(f"t{n}", "a", "abcd", 0) != shown_order(f"t{n}", "b", "abcd", 0) for n in range(9))


@pytest.mark.parametrize(
    ("one", "other", "order", "top", "tau"),
    [
        ("a|b|c|d", "a|b|c|d", False, False, False),
        ("a|b|c|d", "a|b|d|c", True, False, False),
        ("a|b|c|d", "b|a|c|d", True, True, False),
        ("a|b|c|d", "d|c|b|a", True, True, True),
        ("ab|cd", "a|b|cd", True, True, False),
    ],
)
def test_when_orders_disagree(one: str, other: str, order: bool, top: bool, tau: bool) -> None:
    pair = (judgment(one), judgment(other, "b"))
    assert Disagreement("order").holds(*pair) == order
    assert Disagreement("top1").holds(*pair) == top
    assert Disagreement("tau<0.5").holds(*pair) == tau


def test_a_rule_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="is no rule"):
        Disagreement("tau>1")


def test_ties_are_ties_to_kendall() -> None:
    assert tau_b(judgment("ab|c"), judgment("ab|c", "b")) == pytest.approx(1.0)
    assert tau_b(judgment("abc"), judgment("abc", "b")) == 1.0
    assert tau_b(judgment("abc"), judgment("a|b|c", "b")) == 0.0


def test_the_expert_decides_and_nobody_else() -> None:
    rule = Disagreement()
    one, other = judgment("a|b"), judgment("b|a", "b")
    assert decide([one], None, wanted=2, rule=rule).state is State.WAITING
    assert decide([one, other], None, wanted=2, rule=rule).state is State.DISAGREE
    decided = decide([one, other], judgment("b|a", "c", expert=True), wanted=2, rule=rule)
    assert (decided.state, decided.order) == (State.DECIDED, (("b",), ("a",)))
    skipped = [judgment("", skipped=True), judgment("", "b", skipped=True)]
    assert decide(skipped, None, wanted=2, rule=rule).state is State.SKIPPED
    assert decide([one, skipped[1]], None, wanted=2, rule=rule).state is State.DISAGREE
    wrong = [judgment("a|b", all_wrong=True, edited="不知道"), judgment("a|b", "b", all_wrong=True)]
    assert decide(wrong, None, wanted=2, rule=rule).unknown == "不知道"
    assert decide([wrong[0], judgment("a|b", "b")], None, wanted=2, rule=rule).state is State.DISAGREE
    assert decide([wrong[1], wrong[1]], None, wanted=2, rule=rule).unknown == UNKNOWN_ANSWER


def test_abilities_are_found_without_a_right_order() -> None:
    skills = {name: 0.4 + 0.45 * number for number, name in enumerate("abcdefgh")}
    rng = random.Random(3)
    scores = {name: float(place) for place, name in enumerate("wxyz")}
    judged = []
    for number in range(800):
        for name in rng.sample(list(skills), 2):
            order = plackett_luce(scores, skills[name], rng)
            flags = {"w": ["accuracy"]} if rng.random() < 0.8 else {}
            judged.append(judgment("|".join(order), name, f"t{number}", flags=flags))
    found = measure(judged)
    assert found.tau is not None
    assert (found.tau.n, found.tau.low < found.tau.value < found.tau.high) == (800, True)
    names = sorted(skills)
    assert spearmanr([skills[n] for n in names], [found.ability[n] for n in names]).statistic >= 0.9
    assert set(found.alpha) == {"accuracy"}
    assert found.alpha["accuracy"] > 0.5
    assert measure(judged[:2]).ability == {}


def test_the_page_gives_back_what_was_done() -> None:
    (task,) = made_up_tasks(1)
    data = page.as_task(task, "a", 5)
    assert "seed" not in str(data)
    ids = [answer.id for answer in task.answers]
    shown = shown_order(task.id, "a", ids, 5)
    result = result_of(
        ["B", "A", "D", "C"],
        ties=["第2名与第3名并列"],
        flags_C=["准确", "语气温和"],
        all_wrong=["全部错误"],
        edited="不知道",
    )
    done = {"id": 3, "completed_by": 1, "updated_at": "2026-12-01", "result": result}
    (read,) = page.read({**data, "annotations": [done]}, "a", 1, ids, 5)
    found = read.judgment
    assert found is not None
    assert found.order == [[shown[1]], sorted([shown[0], shown[3]]), [shown[2]]]
    assert found.flags == {shown[2]: ["accuracy", "warmTone"]}
    assert (found.all_wrong, found.edited) == (True, "不知道")
    (other,) = page.read({**data, "annotations": [{**done, "completed_by": {"id": 9}}]}, "a", 1, ids, 5)
    assert other.problem == "done by another user"
    config = page.config(4)
    assert all(config.count(f'"{ability.shown}"') == 4 for ability in ABILITIES)


def test_judgments_are_added_to_and_an_edited_file_is_found(store: ObjectStore, bucket_uri: str) -> None:
    folder = f"{bucket_uri}/tasks"
    first = judgment("a|b")
    assert stored.write(store, folder, []) is None
    stored.write(store, folder, [first])
    again = judgment("b|a", updated="2026-12-02")
    uri = stored.write(store, folder, [again])
    assert uri is not None
    assert stored.latest(stored.read(store, folder)) == {("t", "a"): again}
    store.put(uri, bytes(store.get(uri)).replace(b'"a"', b'"b"'))
    with pytest.raises(StorageError, match="not what was stored"):
        stored.read(store, folder)


def nobody(email: str) -> Any:
    raise AssertionError(email)


def test_rankings_are_written_with_their_lineage_and_few_unknown_answers(
    store: ObjectStore, bucket_uri: str
) -> None:
    folder, out = f"{bucket_uri}/tasks", f"{bucket_uri}/rankings"
    with pytest.raises(MissingInputError):
        Campaign(store, folder, nobody)
    tasks = made_up_tasks(40)
    write_task_set(store, folder, tasks)
    campaign = Campaign(store, folder, nobody)
    with pytest.raises(MissingInputError, match="not given to annotators"):
        campaign.annotation()
    campaign.begin(["a", "b"], "c", each=2, seed=0)
    with pytest.raises(ConfigError, match="cannot be one of them"):
        campaign.begin(["a", "b"], "a", each=2, seed=0)
    ids = "|".join(answer.id for answer in tasks[0].answers)
    judged = [
        judgment(ids, name, task.id, annotation=number, all_wrong=number < 10)
        for number, task in enumerate(tasks[:-1])
        for name in "ab"
    ]
    stored.write(store, folder, judged)
    with pytest.raises(ConfigError, match="1 tasks wait for annotators, 0 for the expert"):
        campaign.write(out, Disagreement(), partial=False)
    # 29 known ones: a share of 0.05 of 30 is one.
    assert campaign.write(out, Disagreement(), partial=True) == (30, 1, 9)
    manifest = find_manifest(store, out)
    assert manifest is not None
    (step,) = manifest.steps
    assert (step.parameters["by"], step.parameters["model"]) == ("people", "s3://models/sft")
    source = Source(name="r", uri=f"{out}/", kind=Kind.RANKING)
    records = [each for part in manifest.parts for each in read_object(part.uri, source, store)]
    rankings = [each for each in records if isinstance(each, Ranking)]
    assert Counter(len(each.answers) for each in rankings) == {4: 29, 5: 1}
    (unknown,) = [each for each in rankings if len(each.answers) == 5]
    assert unknown.answers[unknown.ranks.index(0)] == UNKNOWN_ANSWER
    write_task_set(store, f"{bucket_uri}/other", tasks)
    other = Campaign(store, f"{bucket_uri}/other", nobody)
    other.begin(["a", "b"], "c", each=2, seed=0)
    with pytest.raises(ConfigError, match="another task set"):
        other.write(out, Disagreement(), partial=True)
    with pytest.raises(ConfigError, match="sampled from"):
        check_model("s3://models/sft", "s3://models/ppo", folder)
    assert list(itertools.islice(campaign.tasks, 1)) == [tasks[0].id]
