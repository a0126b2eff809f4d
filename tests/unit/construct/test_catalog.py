"""Steps by name, and a source that goes the whole way in one construction."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.construct.llm_support import KEY_NAME, set_key
from tests.unit.construct.scripted_server import Body, ScriptedServer, inquiring, polite
from zhongjing.codes import construct as codes
from zhongjing.codes.document import MISSING_FIELD
from zhongjing.config.sources import Kind, Source
from zhongjing.construct.catalog import BUILDERS, StepSettings, build_steps
from zhongjing.construct.llm.limits import Limits, Prices
from zhongjing.construct.llm.model_step import ModelStep
from zhongjing.construct.llm.server import KeySource
from zhongjing.construct.runner import construct
from zhongjing.errors import ConfigError
from zhongjing.storage.objects import ObjectStore

POLICY = Path(__file__).parents[3] / "zhongjing/construct/deidentify/policy.yaml"
KG = [{"head": "布洛芬", "relation": "用法用量", "tail": "一次0.2~0.4g"}]


def settings(base_url: str, uri: str, **more: Any) -> StepSettings:
    return StepSettings(
        steps=tuple(BUILDERS),
        policy=f"{uri}/policy.yaml",
        model="tiny",
        base_url=base_url,
        key=KeySource(environment=KEY_NAME),
        limits=Limits(concurrency=4, prices=Prices(1.0, 2.0)),
        drugs=f"{uri}/drug.txt",
        kg=f"{uri}/kg/",
        **more,
    )


def author(body: Body) -> str:
    """One model for all three steps."""
    task = body["messages"][0]["content"]
    if "problems" in task:
        return '{"problems": []}'
    return inquiring(body) if "doctor" in task else polite(body)


def test_one_construction_goes_the_whole_way(
    store: ObjectStore, bucket_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_key(monkeypatch)
    answers = ("布洛芬每次0.3g。", "布洛芬每次0.9g。")
    rows = [
        {
            "instruction": f"第{n}个问题，电话13912345678，头疼怎么办？",
            "output": answers[n % 2],
        }
        for n in range(10)
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    store.put(f"{bucket_uri}/raw/a.jsonl", lines.encode())
    store.put(f"{bucket_uri}/policy.yaml", POLICY.read_bytes())
    store.put(f"{bucket_uri}/drug.txt", "布洛芬\n".encode())
    store.put(f"{bucket_uri}/kg/cmekg.json", json.dumps(KG).encode())
    source = Source(name="raw", uri=f"{bucket_uri}/raw/", kind=Kind.DIALOGUE)
    with ScriptedServer(author) as server:
        asked = settings(server.base_url, bucket_uri, ledger=f"{bucket_uri}/ledger")
        out = f"{bucket_uri}/done"
        steps = build_steps(asked, out, store)
        assert [step.name for step in steps] == ["deidentify", "normalize", "expand", "check", "judge"]
        assert (
            len({step.desk for step in steps if isinstance(step, ModelStep)}) == 1
        )  # one account, one budget
        made = construct(store, source, steps, out)
        assert not any("13912345678" in json.dumps(body) for body in server.bodies)
    # De-identified on the way: nothing needs to be accepted. Half of the answers give too much.
    assert (made.read, made.written) == (10, 5)
    assert made.quarantined == {"check: contradicts the knowledge graph: overdose": 5}
    assert made.counts["judge"]["judged"] == 5
    assert made.has_passed("deidentify")
    paid = {name: notes["requests"] for name, notes in made.notes.items() if "requests" in notes}
    assert paid == dict.fromkeys(("normalize", "expand", "judge"), len(server.bodies))


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"steps": ("normalise",)}, codes.UNKNOWN_STEP, "no step 'normalise'"),
        ({"steps": ("expand", "expand")}, codes.UNKNOWN_STEP, "twice"),
        ({"steps": ("check",), "kg": None}, MISSING_FIELD, "needs kg"),
        ({"steps": ("expand",), "model": None}, MISSING_FIELD, "needs model"),
        ({"steps": ("expand",), "base_url": None}, MISSING_FIELD, "needs baseUrl"),
    ],
)
def test_what_cannot_be_built_is_said(changes: dict[str, Any], code: object, words: str) -> None:
    asked = replace(settings("http://h/v1", "s3://b"), drugs=None, **changes)
    with pytest.raises(ConfigError, match=words) as caught:
        build_steps(asked, "s3://b/out")
    assert caught.value.code is code


def test_neither_key_nor_salt_can_be_seen() -> None:
    asked = settings("http://h/v1", "s3://b", salt="geheim-geheim-geheim")
    assert "geheim" not in repr(asked)
