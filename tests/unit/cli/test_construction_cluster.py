"""data deidentify, normalize, expand and check without --local: the pipeline that an API server gets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.cli import test_submit_cluster as submitting
from tests.unit.cli.conftest import CommandLine
from tests.unit.cli.test_submit_cluster import ApiServer, server
from tests.unit.construct.graphs import graph
from zhongjing.backends.kubernetes.session import KubernetesSession
from zhongjing.cli.target import CLUSTER_OPENER, ClusterTarget
from zhongjing.config.resolve import resolve
from zhongjing.config.sources import Kind, Source
from zhongjing.config.stages import Stage
from zhongjing.construct.kg.check import KnowledgeCheck
from zhongjing.construct.runner import construct
from zhongjing.storage.objects import ObjectStore

__all__ = ["server"]  # a fixture

ASKED = ("--model", "gpt-4o", "--base-url", "https://api.openai.com/v1")
RAW = json.dumps({"instruction": "感冒怎么办？", "output": "多喝水，注意休息。"}, ensure_ascii=False) + "\n"


@pytest.fixture
def clean(store: ObjectStore, bucket_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A source in the store of the release that a cluster has; nothing says that it was de-identified."""
    settings = submitting.RELEASE.storage.model_copy(update={"uri": bucket_uri})
    monkeypatch.setattr(submitting, "RELEASE", submitting.RELEASE.model_copy(update={"storage": settings}))
    store.put(f"{bucket_uri}/clean/a.jsonl", RAW.encode())

    def opened(target: ClusterTarget) -> KubernetesSession:
        session = KubernetesSession.open(namespace=target.namespace)
        session.use(store)
        return session

    token = CLUSTER_OPENER.set(opened)
    yield f"{bucket_uri}/clean/"
    CLUSTER_OPENER.reset(token)


def made(server: ApiServer) -> tuple[str, dict[str, Any]]:
    """Name and only source of the pipeline that was submitted."""
    ((name, document),) = server.pipelines.items()
    written = {**document, "metadata": {"name": name}}
    assert resolve(written).spec.stages.present() == [Stage.CONSTRUCT]
    (source,) = document["spec"]["sources"]
    return name, source


def test_normalize_is_a_pipeline_of_one_source(
    command: CommandLine, server: ApiServer, clean: str, bucket_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)  # the key is the Ray nodes'
    words = ("data", "normalize", clean, f"{bucket_uri}/normal", *ASKED, "-n", "train")
    limits = ("--budget", "20", "--concurrency", "16", "--requests-per-minute", "500", "--processes", "2")
    more = ("--drugs", f"{bucket_uri}/drug.txt", "--no-wait")
    result = command(*words, *limits, *more)
    assert result.exit_code == 0, result.output
    name, source = made(server)
    assert name.startswith("data-normalize-")
    assert f"zhongjing status {name} --watch -n train" in result.stdout
    assert (source["uri"], source["kind"]) == (f"{bucket_uri}/normal", "dialogue")  # told from the records
    assert source["made"] == {
        "from": clean,
        "steps": ["normalize"],
        "drugs": f"{bucket_uri}/drug.txt",
        "author": {
            "model": "gpt-4o",
            "baseUrl": "https://api.openai.com/v1",
            "keyVariable": "OPENAI_API_KEY",
            "temperature": 0.3,
            "maxTokens": 2048,
            "tries": 3,
            "maxUnusableFraction": 0.2,
            "concurrency": 16,
            "requestsPerMinute": 500.0,
            "budget": 20.0,
            "prices": {"prompt": 2.5, "completion": 10.0, "currency": "USD"},
        },
    }
    assert server.pipelines[name]["spec"]["stages"]["construct"] == {"tasks": 2}


def test_deidentify_and_check_need_no_model(
    command: CommandLine, server: ApiServer, clean: str, bucket_uri: str
) -> None:
    words = ("--kind", "dialogue", "-n", "train", "--no-wait")
    result = command("data", "deidentify", clean, f"{bucket_uri}/out", *words)
    assert result.exit_code == 0, result.output
    assert made(server)[1]["made"] == {"from": clean, "steps": ["deidentify"]}
    server.pipelines.clear()
    graph = ("--kg", f"{bucket_uri}/cmekg")
    result = command("data", "check", clean, f"{bucket_uri}/checked", *graph, *words)
    assert result.exit_code == 0, result.output
    assert made(server)[1]["made"] == {
        "from": clean,
        "steps": ["check"],
        "kg": f"{bucket_uri}/cmekg",
    }


def test_what_was_made_is_told_at_the_end(
    command: CommandLine,
    server: ApiServer,
    clean: str,
    bucket_uri: str,
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = f"{bucket_uri}/checked"

    def followed(*_: object, **__: object) -> int:
        """What the release does meanwhile."""
        step = KnowledgeCheck(graph(("布洛芬", "适应症", "溃疡"), ("布洛芬", "禁忌", "溃疡")))
        construct(store, Source(name="made", uri=clean, kind=Kind.DIALOGUE), [step], out)
        return 0

    monkeypatch.setattr("zhongjing.cli.submission.attend", followed)
    result = command("data", "check", clean, out, "--kg", f"{bucket_uri}/kg", "-n", "train")
    assert result.exit_code == 0, result.output
    assert f"1 of 1 records, 15 characters, 1 parts: {out}" in result.stdout
    assert "the graph has problems, by which nothing is judged (conflict: 1)" in result.stdout


def test_a_plan_is_made_here_from_the_releases_store(
    command: CommandLine, server: ApiServer, clean: str, bucket_uri: str
) -> None:
    words = ("data", "expand", clean, f"{bucket_uri}/long", *ASKED, "-n", "train", "--plan")
    planned = command(*words)
    assert planned.exit_code == 1, planned.output
    assert "1 of 1 records, by gpt-4o" in planned.stdout
    assert "refused: " in planned.stdout
    assert command(*words, "--accept-identifiable").exit_code == 0
    assert not server.pipelines


@pytest.mark.parametrize(
    "words",
    [
        ("normalize", "raw.jsonl", "s3://b/out", *ASKED),
        ("check", "s3://b/in", "s3://b/out", "--kg", "./cmekg"),
        ("check", "s3://b/in", "s3://b/out", "--kg", "s3://b/kg", "--rule", "overdose"),
        ("deidentify", "s3://b/in", "s3://b/out", "--policy", "policy.yaml"),
        ("deidentify", "s3://b/in", "s3://b/out", "--endpoint", "http://127.0.0.1:1"),
    ],
)
@pytest.mark.usefixtures("clean")
def test_what_is_on_this_machine_alone_is_refused(
    command: CommandLine, server: ApiServer, words: tuple[str, ...]
) -> None:
    result = command("data", *words, "--kind", "dialogue", "-n", "train", "--no-wait")
    assert result.exit_code == 2, result.output
    assert "error[InvalidOption]" in result.stderr
    assert not server.pipelines
