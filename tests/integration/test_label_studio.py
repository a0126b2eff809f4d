"""Ranking by people, on a real Label Studio (1.23.2) that this test starts.

It is not a part of our environment: ``make label-studio`` puts it into one of its own, and
``ZHONGJING_LABEL_STUDIO`` names another.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import pytest

from tests.feedback_support import made_up_tasks, plackett_luce, rank_all, result_of, write_task_set
from zhongjing.backends.local.processes import free_ports
from zhongjing.config.sources import Kind, Source
from zhongjing.data.readers import read_object
from zhongjing.data.records import Ranking
from zhongjing.errors import BackendError, ConfigError
from zhongjing.feedback.agreement import measure
from zhongjing.feedback.campaign import Campaign
from zhongjing.feedback.decision import Disagreement, State
from zhongjing.feedback.label_studio import server
from zhongjing.feedback.label_studio.client import Client
from zhongjing.feedback.label_studio.server import Accounts
from zhongjing.storage.objects import ObjectStore

ROOT = Path(__file__).parents[2]
INSTALLED = Path(os.environ.get("ZHONGJING_LABEL_STUDIO", ROOT / ".label-studio"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (INSTALLED / "bin" / "label-studio").exists(),
        reason="no Label Studio; `make label-studio`",
    ),
]
RULE = Disagreement()
A, B, EXPERT = "a@example.org", "b@example.org", "c@example.org"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("annotation")
    with server.serve(folder, [A, B, EXPERT], free_ports(1)[0], INSTALLED):
        yield folder


def campaign_of(store: ObjectStore, folder: str, accounts: Accounts) -> Campaign:
    return Campaign(store, folder, accounts.client)


def test_two_annotators_and_an_expert_rank_and_the_reward_model_reads_it(
    data: Path, store: ObjectStore, bucket_uri: str
) -> None:
    folder, out = f"{bucket_uri}/tasks", f"{bucket_uri}/rankings"
    tasks = made_up_tasks(60)
    write_task_set(store, folder, tasks)
    accounts = server.read_accounts(data)
    campaign = campaign_of(store, folder, accounts)
    campaign.begin([A, B], EXPERT, each=2, seed=0)
    assert campaign.push() == {A: 60, B: 60}
    assert campaign.push() == {A: 0, B: 0}
    assert (data / server.ACCOUNTS).stat().st_mode & 0o077 == 0

    # A token is good for its owner's server alone, and nothing there tells how an answer came to be.
    mine, theirs = accounts.client(A), accounts.client(B)
    for email, account in accounts.people.items():
        for other in accounts.people.values():
            if other is not account:
                for path in ("/api/projects", "/api/tasks", "/api/tasks/1", "/api/tasks/1/annotations/"):
                    with pytest.raises(BackendError, match="token is refused"):
                        Client(other.url, account.token).call("GET", path)
        told = accounts.client(email).call("GET", "/api/users")
        assert [each["email"] for each in told] == [email]
    exported = theirs.export(theirs.projects()[campaign.title])
    assert set(exported[0]["data"]) == {"task", "prompt", "answers"}
    assert all(set(each) == {"id", "title", "body"} for each in exported[0]["data"]["answers"])

    # Two who err, and an expert who does not.
    assert rank_all(mine, campaign.title, 1.2, 1) == 60
    assert rank_all(theirs, campaign.title, 1.2, 2) == 60
    new, problems = campaign.read_back()
    assert (new, problems) == (120, {})
    assert campaign.read_back()[0] == 0
    with pytest.raises(ConfigError, match="for the expert"):
        campaign.write(out, RULE, partial=False)
    found = measure(campaign.judgments())
    assert found.tau is not None
    expected = planted_tau(1.2)
    assert found.tau.low <= expected <= found.tau.high, (found.tau, expected)
    disputed = [each for each in campaign.decisions(RULE).values() if each.state is State.DISAGREE]
    assert campaign.adjudicate(RULE) == len(disputed) > 0
    assert campaign.adjudicate(RULE) == 0
    assert rank_all(accounts.client(EXPERT), campaign.title, 50.0, 3) == len(disputed)
    campaign.read_back()
    assert campaign.write(out, RULE, partial=False) == (60, 0, 0)

    source = Source(name="rankings", uri=f"{out}/", kind=Kind.RANKING)
    (part,) = [each.uri for each in store.list(f"{out}/") if each.uri.endswith(".jsonl")]
    records = list(read_object(part, source, store))
    assert len(records) == 60
    assert all(isinstance(each, Ranking) and sorted(each.ranks) == [0, 1, 2, 3] for each in records)


def planted_tau(skill: float) -> float:
    """The mean tau of two orders that are drawn so, by drawing many."""
    scores = {name: float(place) for place, name in enumerate("abcd")}
    rng = random.Random(9)

    def tau(one: list[str], other: list[str]) -> float:
        a, b = ({name: place for place, name in enumerate(order)} for order in (one, other))
        pairs = [(x, y) for x in scores for y in scores if x < y]
        return fmean(1.0 if (a[x] < a[y]) == (b[x] < b[y]) else -1.0 for x, y in pairs)

    drawn = [plackett_luce(scores, skill, rng) for _ in range(4000)]
    return fmean(tau(one, other) for one, other in zip(drawn[::2], drawn[1::2], strict=True))


def test_what_is_done_wrong_is_counted_and_told(data: Path, store: ObjectStore, bucket_uri: str) -> None:
    folder = f"{bucket_uri}/few"
    tasks = made_up_tasks(4)
    write_task_set(store, folder, tasks)
    accounts = server.read_accounts(data)
    campaign = campaign_of(store, folder, accounts)
    campaign.begin([A, B], EXPERT, each=2, seed=7)
    with pytest.raises(ConfigError, match="they were given to"):
        campaign.begin([A, EXPERT], B, each=2, seed=7)
    campaign.push()
    for name in (A, B):
        client = accounts.client(name)
        first, second, third, fourth = client.export(client.projects()[campaign.title])
        place = "/api/tasks/{}/annotations/"
        letters = ["A", "B", "C", "D"]
        client.call("POST", place.format(first["id"]), {"result": result_of(letters[:2])})
        client.call("POST", place.format(second["id"]), {"result": [], "was_cancelled": True})
        wrong = result_of(letters, all_wrong=["全部错误"], edited="很抱歉，我不知道。", flags_A=["准确"])
        client.call("POST", place.format(third["id"]), {"result": wrong})
        client.call("POST", place.format(fourth["id"]), {"result": result_of(letters)})
        client.call(
            "POST", place.format(fourth["id"]), {"result": result_of(letters, ties=["第1名与第2名并列"])}
        )
    new, problems = campaign.read_back()
    assert new == 2 * 4
    assert problems == {
        "a task ranked twice by one person (the last counts)": 2,
        "not all answers are ranked": 2,
    }
    judgments = campaign.judgments()
    assert sum(each.skipped for each in judgments) == 2
    assert {each.edited for each in judgments if each.all_wrong} == {"很抱歉，我不知道。"}
    assert sum(len(each.order) == 3 for each in judgments) == 2
    client = accounts.client(A)
    client.call("DELETE", f"/api/projects/{client.projects()[campaign.title]}")
    assert campaign.read_back()[1]["the project of an annotator is gone"] == 1
