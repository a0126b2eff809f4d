"""What every fake stage does: counts steps, keeps a checkpoint, obeys the stop object, writes the manifest.

Each start is noted as an object under ``starts/``, so that tests can count them. The pipeline's labels steer
it: ``steps``, ``step-seconds``, ``deaf`` (it does not heed the stop object), ``fail-data`` (the stage that
fails for good), ``fail-once`` (the stage whose first attempt dies without a word) and ``prepares`` (it
prepares until an object ``prepared`` is there, and waits for its workers until one named ``workers`` is).
"""

import argparse
import os
import signal
import sys
import time
from datetime import UTC, datetime

from zhongjing.config.sources import Storage
from zhongjing.config.stages import Stage
from zhongjing.errors import NotFoundError
from zhongjing.storage.layout import Layout
from zhongjing.storage.manifest import Lineage, ModelArtifact, StageManifest, StageRequest
from zhongjing.storage.objects import open_store
from zhongjing.storage.progress import Activity, Failure, Progress


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(stage: Stage) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--request", required=True)
    uri = parser.parse_args().request
    store = open_store(Storage())
    request = store.get_record(uri, StageRequest)
    document = request.document
    layout = Layout(document.spec.storage.uri, document.namespace, document.name)
    place = layout.stage(stage, request.key)
    labels = document.metadata.labels
    steps, seconds = int(labels.get("steps", "3")), float(labels.get("step-seconds", "0.1"))
    store.put_json(f"{place.root}/starts/a{request.attempt}-{os.getpid()}.json", {"at": now()})
    say(f"{stage} attempt {request.attempt} begins in process {os.getpid()}")
    for source in request.sources:
        for item in source.objects:
            assert store.head(item.uri) is not None, f"{item.uri} was not uploaded"
    checkpoint = f"{place.checkpoints}/step.json"
    try:
        step = int(store.get_json(checkpoint)["step"])
    except NotFoundError:
        step = 0

    def tell(activity: Activity, failure: Failure | None = None) -> None:
        progress = Progress(
            stage=stage,
            key=request.key,
            attempt=request.attempt,
            activity=activity,
            step=step,
            total_steps=steps,
            checkpoint_step=step,
            updated_at=now(),
            failure=failure,
        )
        store.put_record(place.progress, progress)

    if "prepares" in labels:
        for activity, mark in ((Activity.PREPARING, "prepared"), (Activity.PREPARED, "workers")):
            tell(activity)
            while not store.exists(f"{place.root}/{mark}"):
                if store.exists(place.stop(request.attempt)):
                    tell(Activity.SUSPENDED)
                    return 0
                time.sleep(0.05)
    tell(Activity.STARTING)
    if labels.get("fail-data") == stage:
        failure = Failure(
            error="DataError",
            code="EmptySource",
            message="the corpus is empty",
            remedy="fill it",
            retriable=False,
        )
        tell(Activity.FAILED, failure)
        return 1
    while step < steps:
        if "deaf" not in labels and store.exists(place.stop(request.attempt)):
            store.put_json(checkpoint, {"step": step})
            tell(Activity.SUSPENDED)
            say(f"stopped at step {step}")
            return 0
        time.sleep(seconds)
        step += 1
        store.put_json(checkpoint, {"step": step})
        tell(Activity.TRAINING)
        say(f"step {step}")
        if labels.get("fail-once") == stage and request.attempt == 1 and step >= steps // 2:
            os.kill(os.getpid(), signal.SIGKILL)
    store.put(f"{place.model}/model.bin", f"{stage} {request.key}".encode())
    manifest = StageManifest(
        pipeline=document.name,
        namespace=document.namespace,
        stage=stage,
        key=request.key,
        attempt=request.attempt,
        submission_id=request.submission_id,
        started_at=now(),
        finished_at=now(),
        seconds=1.0,
        model=ModelArtifact(uri=place.model, format="full"),
        inputs=request.inputs,
        sources=[],
        steps=steps,
        best_step=steps,
        samples=0,
        tokens=0,
        spikes=0,
        metrics_before={"loss": 2.0},
        metrics={"loss": 1.0},
        document={},
        lineage=Lineage(
            code_version="0", python="3", packages={}, host="h", platform="p", workers=1, device="cpu"
        ),
    )
    tell(Activity.DONE)
    store.put_record(place.manifest, manifest, if_none_match=True)
    return 0


def run(stage: Stage) -> None:
    sys.exit(main(stage))
