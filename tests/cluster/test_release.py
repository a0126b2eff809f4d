"""The chart on a real cluster: installed, tested, the four stages by one command, and what befalls them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.chart.support import CHART, TINY
from tests.cluster.kube import Cluster, Release, diagnosis, installed
from tests.cluster.runs import JobWatch, Run, pods, wait_for_step
from tests.cluster.strikes import STRIKES, Strike
from tests.command_line import kept_environment
from tests.faults import document
from tests.faults.checks import Comparison, compare, rollout_problems
from tests.faults.harness import undisturbed_results
from tests.faults.observe import STAGES, Result
from tests.faults.place import Place
from tests.published_bases import MILLIONS, POSITIONS, publish_ziya
from tests.published_runs import answers_of, recipe_document, write_corpora
from zhongjing.config.stages import Stage

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

RECOVERY_SECONDS = 300.0
# The store's data must outlive its pod.
VALUES = {"s3": {"bundled": {"persistence": {"enabled": True, "size": "1Gi"}}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module", params=["static", pytest.param("kuberay", marks=pytest.mark.kuberay)])
def release(
    cluster: Cluster, module_namespace: str, folder: Path, request: pytest.FixtureRequest
) -> Iterator[Release]:
    """The chart with sizes for a small node and a volume for the store, and nothing else."""
    if request.param == "kuberay":
        request.getfixturevalue("kuberay_operator")
    values = folder / f"{request.param}.json"
    values.write_text(json.dumps({**VALUES, "ray": {"provisioner": request.param}}))
    with installed(cluster, module_namespace, files=(TINY, values)) as found:
        found.wait_ready(seconds=300)
        yield found


def written(folder: Path, name: str, text: str = "") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text or document.cluster(name))
    return path


def test_helm_test_passes(release: Release) -> None:
    said = release.test()
    assert "fine" in said
    # A bridge does not enforce policies; a cluster of somebody else's may.
    assert re.search(
        r"^(fine {7}network policy: enforced|not tried  network policy: this network)", said, re.M
    )


def test_doctor_finds_the_release_in_order(release: Release, folder: Path) -> None:
    done = Run(release, "none", folder / "none.yaml").command("doctor", "-o", "json")
    assert done.code == 0, done.out
    checks = {each["name"]: each for each in json.loads(done.out)["checks"]}
    # A worker of `helm test` may be on its way out.
    assert [
        each for each in checks.values() if each["status"] != "fine" and each["code"] != "PodStarting"
    ] == []
    names = {"api", "cluster clock", "crd", "release", "controller", "pods", "quotas", "secrets", "volumes"}
    assert names <= set(checks)
    assert any(name.startswith("group ") for name in checks)
    assert release.namespace in checks["network"]["finding"]


@pytest.fixture(scope="module")
def calm(release: Release, folder: Path) -> Run:
    """All four stages by one command, with nothing in their way."""
    run = Run(release, "calm", written(folder, "calm", document.small("calm")))
    done = run.submit("--stage", "all", "-o", "json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["exitCode"] == 0
    return run


def test_all_stages_by_one_command(calm: Run) -> None:
    assert calm.condition()["type"] == "Complete"
    status = calm.object()["status"]
    assert status["observedGeneration"] == calm.object()["metadata"]["generation"]
    assert {stage: entry["state"] for stage, entry in status["stages"].items()} == dict.fromkeys(
        [stage.value for stage in STAGES], "Succeeded"
    )
    table = calm.cluster.kubectl("get", "tp", calm.name, namespace=calm.release.namespace)
    assert "Complete" in table
    assert "100%" in table
    waited = ("wait", "--for=condition=Complete", "--timeout=5s", f"tp/{calm.name}")
    assert "condition met" in calm.cluster.kubectl(*waited, namespace=calm.release.namespace)


def test_a_second_submit_has_nothing_to_do(calm: Run) -> None:
    before = {stage: calm.stage(stage)["attempt"] for stage in STAGES}
    done = calm.submit("--stage", "all")
    assert done.code == 0, done.err
    assert {stage: calm.stage(stage)["attempt"] for stage in STAGES} == before


def test_status_and_logs_after_the_end(calm: Run) -> None:
    status = calm.command("status", calm.name)
    assert status.code == 0, status.err
    assert "ppo" in status.out + status.err
    logs = calm.command("logs", calm.name, "--stage", "rm")
    assert logs.code == 0, logs.err
    assert "manifest.json" in logs.out


def test_what_is_pulled_loads_without_our_code(calm: Run, folder: Path) -> None:
    target = folder / "model"
    pulled = calm.command("pull", f"{calm.name}/sft", str(target), "--merged")
    assert pulled.code == 0, pulled.err
    program = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer;"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1]);"
        "ids = AutoTokenizer.from_pretrained(sys.argv[1])('您好', return_tensors='pt').input_ids;"
        "print(model(ids).logits.shape); assert 'zhongjing' not in sys.modules"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program, str(target)],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert loaded.returncode == 0, loaded.stderr


# Six minutes; test_published_base.py does the same on this machine in every run.
@pytest.mark.full
def test_a_base_as_ziya_is_published_goes_through_the_recipe(release: Release, folder: Path) -> None:
    """Delta, root, rule, positions and settings as the recipe zhongjing-13b has them, out of the store."""
    made = publish_ziya(folder / "ziya", size=MILLIONS)
    write_corpora(folder / "ziya")
    run = Run(release, "ziya", folder / "ziya.yaml")
    base: dict[str, object] = {"deltaRule": "fengshen", "maxPositions": 2 * POSITIONS}
    with run.session() as session:
        for part, files in (("delta", made.delta), ("root", made.root)):
            base[part] = f"{session.release.storage.uri}/models/{part}"
            session.store.upload_folder(files, str(base[part]))
    document = recipe_document("ziya", base, folder / "ziya", max_length=160, workers=2)
    run.document.write_text(json.dumps(document))
    done = run.submit("--stage", "all", "-o", "json")
    assert done.code == 0, done.err
    assert [run.stage(stage)["state"] for stage in STAGES] == ["Succeeded"] * 4
    target = folder / "ziya-adapter"
    pulled = run.command("pull", "ziya/ppo", str(target))
    assert pulled.code == 0, pulled.err
    (found,) = answers_of([target])
    assert found["positions"] == 2 * POSITIONS
    assert found["ends"] == ["</s>"]
    assert all("</s>" in answer for answer in found["answers"]), found


@pytest.fixture(scope="module")
def local(folder: Path) -> Iterator[Mapping[Stage, Result]]:
    """The same document on this machine, without a cluster."""
    place = Place(folder / "l", document.small("calm"))
    try:
        with kept_environment():
            results = undisturbed_results(place, "calm")
        yield results
    finally:
        place.destroy()
        shutil.rmtree(place.folder, ignore_errors=True)


def test_the_results_are_those_of_a_local_run(calm: Run, local: Mapping[Stage, Result]) -> None:
    assert {each.stage: each.problems for each in compare(local, calm.results())} == {
        stage: [] for stage in STAGES
    }


@pytest.fixture(scope="module")
def undisturbed(release: Release, folder: Path) -> dict[Stage, Result]:
    """What a run as long as the struck one leaves, with nothing in its way."""
    run = Run(release, "long", written(folder, "long"))
    done = run.submit("--stage", "all")
    assert done.code == 0, done.err
    return run.results()


@dataclass
class Story:
    """What became of the struck run, as far as it came."""

    seconds: dict[str, float] = field(default_factory=dict)
    attempts: dict[str, tuple[int, int]] = field(default_factory=dict)
    crowds: list[list[str]] = field(default_factory=list)
    looks: int = 0
    lost: str = ""
    results: dict[Stage, Result] = field(default_factory=dict)


def strike_and_wait(run: Run, strike: Strike, story: Story) -> None:
    before = wait_for_step(run, strike.stage, strike.fraction)
    start = time.monotonic()
    strike.befall(run.cluster, run.release)

    def recovered() -> bool:
        now = run.stage(strike.stage)
        step = (now.get("progress") or {}).get("step", 0)
        if now["state"] in ("Succeeded", "Skipped"):
            return True
        if strike.spares:
            return bool(now["attempt"] == before["attempt"] and step > before["progress"]["step"])
        return bool(now["attempt"] > before["attempt"] and now["state"] == "Running" and step)

    run.cluster.until(recovered, f"{strike.name} is recovered from", seconds=RECOVERY_SECONDS, every=0.5)
    story.seconds[strike.name] = time.monotonic() - start
    story.attempts[strike.name] = (before["attempt"], run.stage(strike.stage)["attempt"])


@pytest.fixture(scope="module")
def story(release: Release, folder: Path) -> Story:
    run = Run(release, "struck", written(folder, "struck"))
    told = Story()
    done = run.submit("--stage", "all", "--no-wait")
    assert done.code == 0, done.err
    watch = JobWatch(run)
    try:
        with watch:
            for strike in STRIKES:
                strike_and_wait(run, strike, told)
            run.wait("Complete", seconds=600)
        told.results = run.results()
    except AssertionError as error:
        told.lost = f"{error}\n{diagnosis(release.cluster, release.namespace)}"
    told.crowds, told.looks = watch.crowds, watch.looks
    print("\n".join(f"{name:28} {seconds:6.1f} s" for name, seconds in told.seconds.items()))  # noqa: T201
    return told


@pytest.mark.full
@pytest.mark.parametrize("strike", STRIKES, ids=lambda each: each.name)
def test_the_stage_goes_on(story: Story, strike: Strike) -> None:
    assert strike.name in story.attempts, story.lost
    before, after = story.attempts[strike.name]
    assert (after == before) if strike.spares else (after > before)


@pytest.mark.full
def test_everything_struck_is_complete(story: Story) -> None:
    assert not story.lost


@pytest.mark.full
def test_no_stage_ran_twice_at_once(story: Story) -> None:
    assert story.looks > 30
    assert not story.crowds


@pytest.mark.full
@pytest.mark.parametrize("stage", STAGES)
def test_what_was_struck_has_the_results_of_what_was_not(
    story: Story, undisturbed: dict[Stage, Result], stage: Stage
) -> None:
    assert not story.lost, story.lost
    compared: Comparison = compare(undisturbed, story.results)[STAGES.index(stage)]
    assert not compared.problems
    assert weights(undisturbed[stage]) == weights(story.results[stage])
    if stage is Stage.PPO:
        result = story.results[stage]
        assert not rollout_problems(result.points, result.manifest.steps, document.ITERATION_STEPS)


def weights(result: Result) -> dict[str, str]:
    """Digests of the tensors. An adapter's configuration names its base, and with it the pipeline."""
    assert result.manifest.model is not None
    found = {file.name: file.sha256 for file in result.manifest.model.files}
    found = {name: digest for name, digest in found.items() if name.endswith(".safetensors")}
    assert found
    return found


@pytest.mark.full
def test_a_namespace_with_a_run_in_it_goes(cluster: Cluster, folder: Path) -> None:
    with cluster.namespace("gone") as namespace, installed(cluster, namespace, VALUES) as found:
        found.wait_ready(seconds=300)
        run = Run(found, "doomed", written(folder, "doomed"))
        done = run.submit("--stage", "pretrain", "--no-wait")
        assert done.code == 0, done.err
        wait_for_step(run, Stage.PRETRAIN, 0.05)
        start = time.monotonic()
        cluster.kubectl("delete", "namespace", namespace, "--wait", "--timeout", "420s")
        assert time.monotonic() - start < 420
        cluster.kubectl("create", "namespace", namespace)  # for the fixtures' own end


@pytest.mark.full
def test_helm_test_trains_a_step_on_a_worker_that_is_started_for_it(cluster: Cluster) -> None:
    asked = {"verify": {"zero2": "true"}}
    with cluster.namespace("verify") as namespace, installed(cluster, namespace, asked) as found:
        found.wait_ready(seconds=300)
        assert not pods(cluster, namespace, "ray-worker")
        assert "fine       zero-2" in found.test()


@pytest.mark.full
def test_an_upgrade_from_the_previous_chart_spares_the_run(cluster: Cluster, folder: Path) -> None:
    """The run goes on, at most from its last checkpoint; the store's data and the keys stay."""
    earlier = earlier_chart(folder / "earlier")
    stored = folder / "stored.json"
    stored.write_text(json.dumps(VALUES))
    with (
        cluster.namespace("upgrade") as namespace,
        installed(cluster, namespace, files=(TINY, stored), chart=earlier) as found,
    ):
        found.wait_ready(seconds=300)
        run = Run(found, "upgraded", written(folder, "upgraded"))
        done = run.submit("--stage", "pretrain", "--no-wait")
        assert done.code == 0, done.err
        wait_for_step(run, Stage.PRETRAIN, 0.2)
        found.upgrade({})
        run.wait("Complete", seconds=600)
        assert run.results([Stage.PRETRAIN])[Stage.PRETRAIN].points


def earlier_chart(folder: Path) -> Path:
    """The chart as it was before its last change."""
    git = ("git", "-C", str(CHART.parent))
    log = subprocess.run([*git, "log", "-2", "--format=%H", "--", "helm"], capture_output=True, check=True)
    commits = log.stdout.decode().split()
    assert len(commits) == 2, "the repository's history is not here: git fetch --unshallow"
    folder.mkdir()
    packed = subprocess.run([*git, "archive", commits[1], "helm"], capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed.stdout, check=True)
    return folder / "helm"
