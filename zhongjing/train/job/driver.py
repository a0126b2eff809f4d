"""A stage's job, from its request to its manifest.

The driver prepares what the workers share (base model, token cache), runs them by Ray Train, and as its last
act writes the manifest. It holds no GPU and no model. Every end is told in progress.json: done, suspended or
failed with what, where and remedy.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zhongjing.codes import command as command_codes
from zhongjing.codes import training as training_codes
from zhongjing.config.sources import Storage
from zhongjing.config.stages import AnySettings, Stage
from zhongjing.errors import ConfigError, StorageError, TrainingError, ZhongjingError
from zhongjing.storage.artifacts import write_manifest
from zhongjing.storage.files import disk_error
from zhongjing.storage.layout import Layout, StageLayout
from zhongjing.storage.manifest import (
    MemoryUse,
    MixtureCounts,
    ModelArtifact,
    SourceCounts,
    StageManifest,
    StageRequest,
)
from zhongjing.storage.objects import ObjectStore, open_store
from zhongjing.storage.progress import Activity, Progress, time_stamp
from zhongjing.storage.progress_writer import ProgressWriter
from zhongjing.train.job.failures import cause_of, describe_failure
from zhongjing.train.job.lineage import lineage
from zhongjing.train.job.prepare import prepare
from zhongjing.train.job.ray_cluster import connect, run_workers, worker_resources
from zhongjing.train.job.scratch import FolderLock, remove_earlier, scratch_folder, scratch_root
from zhongjing.train.job.stop_watch import OTHERS_POLL_SECONDS, StopWatch
from zhongjing.train.job.worker_config import Prepared, WorkerConfig, train_worker
from zhongjing.train.meter import TimeLeft

logger = logging.getLogger("zhongjing.job")

_WORKERS_POLL_SECONDS = 1.0


def main(stage: Stage, arguments: Sequence[str] | None = None) -> int:
    """Runs the job that ``--request`` describes. Returns the exit status: 0 done or suspended, 1 failed."""
    parser = argparse.ArgumentParser(description=f"Runs one attempt of the {stage} stage on a Ray cluster.")
    parser.add_argument("--request", required=True, help="s3:// URI of the StageRequest")
    uri = parser.parse_args(arguments).request
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stdout)
    try:
        return _open(stage, uri).run()
    except ZhongjingError as error:
        # There is no place yet, or none any more, to tell it but this log.
        logger.error("[%s] %s", error.code, error)
        return 1


def _open(stage: Stage, uri: str) -> Job:
    # Endpoint and credentials come from the environment until the request has told the rest.
    request = open_store(Storage()).get_record(uri, StageRequest)
    if request.stage is not stage:
        raise ConfigError(
            f"the request is for stage {request.stage}, this is the job of {stage}",
            code=command_codes.INVALID_OPTION,
            where=uri,
        )
    try:
        return Job(request)
    except OSError as error:
        raise disk_error(error, scratch_root()) from error


class _StoppedError(Exception):
    """A stop was asked for before the training began."""


class Job:
    """One attempt of a stage, on the driver's side."""

    def __init__(self, request: StageRequest) -> None:
        self.request = request
        self.store: ObjectStore = open_store(request.document.spec.storage)
        layout = Layout(request.document.spec.storage.uri, request.document.namespace, request.document.name)
        self.layout = layout
        self.stage_layout: StageLayout = layout.stage(request.stage, request.key)
        self.scratch = scratch_folder(request.submission_id)
        self._lock = FolderLock(self.scratch)
        self._started = time.time()
        self._started_at = time_stamp()

    def run(self) -> int:
        """Prepares, trains, writes the manifest; leaves nothing in the scratch folder but what others use."""
        remove_earlier(self.request.submission_id)
        self._watch = StopWatch(
            self.store,
            self.stage_layout,
            self.request.attempt,
            name="driver",
            interval=OTHERS_POLL_SECONDS,
        )
        try:
            return self._run()
        finally:
            self._watch.close()
            shutil.rmtree(self.scratch, ignore_errors=True)

    def _run(self) -> int:
        progress = ProgressWriter(self.store, self.stage_layout)
        try:
            # Manifests are completion marks: a store that would overwrite one is found out before any work.
            self.store.require_conditional_writes(self.layout.cache)
            prepared = prepare(self.request, self.store, self.layout, self.scratch, self._reporter(progress))
            for warning in prepared.warnings:
                logger.warning("%s", warning)
            self._await_workers(progress, prepared)
            # From here rank 0 of the workers writes progress.json.
            progress.close()
            outcome = self._train(prepared)
        except _StoppedError:
            # What was prepared and stored is found again.
            progress.write(self._progress(Activity.SUSPENDED))
            progress.close()
            logger.info("stopped on request before the training")
            return 0
        except BaseException as error:  # every end is told, Ctrl-C and SystemExit too
            progress.close()
            self._fail(error)
            return 1
        finally:
            self._keep_log()
        if outcome["suspended"]:
            logger.info("stopped on request at step %d", outcome["steps"])
            return 0
        try:
            self._finish(prepared.counts, outcome)
        except ZhongjingError as error:
            self._fail(error)
            return 1
        return 0

    def _reporter(self, writer: ProgressWriter) -> Any:
        left, said = TimeLeft(), ""

        def report(message: str, fraction: float = 0.0) -> None:
            nonlocal said
            if message != said:
                said = message
                logger.info("%s", message)
            if self._watch.requested:
                raise _StoppedError
            eta = left.seconds(fraction, time.monotonic())
            writer.write(
                self._progress(Activity.PREPARING, message=message, fraction=fraction, eta_seconds=eta)
            )

        return report

    def _progress(self, activity: Activity, **fields: Any) -> Progress:
        request = self.request
        return Progress(
            stage=request.stage,
            key=request.key,
            attempt=request.attempt,
            activity=activity,
            started_at=self._started_at,
            updated_at=time_stamp(),
            **fields,
        )

    def _settings(self) -> AnySettings:
        settings = self.request.document.spec.stages.get(self.request.stage)
        assert settings is not None, "the request's document has the request's stage"
        return settings

    def _await_workers(self, progress: ProgressWriter, prepared: Prepared) -> None:
        """Says that all is prepared, and waits until Ray has room for all workers.

        On a cluster no worker pods are asked for before. Ray Train alone would wait for them too, but deaf to
        a stop, and it takes its request back once a minute.
        """
        from ray.util import placement_group, remove_placement_group

        settings = self._settings()
        message = f"waits for {settings.workers} worker{'s' if settings.workers > 1 else ''}"
        logger.info("prepared; %s", message)
        told = {"sources": list(prepared.counts), "warnings": list(prepared.warnings)}
        progress.write(self._progress(Activity.PREPARED, message=message, **told))
        connect()
        room = placement_group([self._worker_resources()] * settings.workers, strategy="PACK")
        try:
            while not room.wait(_WORKERS_POLL_SECONDS):
                if self._watch.requested:
                    raise _StoppedError
        finally:
            remove_placement_group(room)

    def _worker_resources(self) -> dict[str, float]:
        resources = self._settings().resources
        return worker_resources(resources.cpus, resources.gpus)

    def _train(self, prepared: Prepared) -> dict[str, Any]:
        import ray
        from ray.train.v2.api.exceptions import TrainingFailedError

        config = WorkerConfig(
            request=self.request.model_dump_json(),
            prepared=prepared,
            submission_id=self.request.submission_id,
            driver_node=ray.get_runtime_context().get_node_id(),
        )
        try:
            outcome = run_workers(
                train_worker,
                {"worker": config},
                name=self.request.submission_id,
                workers=self._settings().workers,
                resources=self._worker_resources(),
                storage=self.request.document.spec.storage,
                scratch=self.scratch,
            )
        except TrainingFailedError as error:
            raise cause_of(error) from error
        if not isinstance(outcome, dict):
            raise TrainingError(
                "rank 0 gave no result", code=training_codes.JOB_FAILED, where=self.request.submission_id
            )
        return outcome

    def _finish(self, counts: Sequence[SourceCounts], outcome: dict[str, Any]) -> None:
        request = self.request
        manifest = StageManifest(
            pipeline=request.document.name,
            namespace=request.document.namespace,
            stage=request.stage,
            key=request.key,
            attempt=request.attempt,
            submission_id=request.submission_id,
            started_at=self._started_at,
            finished_at=time_stamp(),
            seconds=round(time.time() - self._started, 3),
            model=ModelArtifact.model_validate(outcome["model"]),
            inputs=request.inputs,
            sources=list(counts),
            steps=outcome["steps"],
            best_step=outcome["best_step"],
            samples=outcome["samples"],
            tokens=outcome["tokens"],
            spikes=outcome["spikes"],
            metrics_before=outcome["metrics_before"],
            metrics=outcome["metrics"],
            test_metrics=outcome["test_metrics"],
            extra=outcome["extra"],
            document=request.document.model_dump(mode="json"),
            key_fields=request.key_fields,
            lineage=lineage(self._settings().workers, outcome["device"]),
            memory=MemoryUse.model_validate(outcome["memory"]),
            mixture=[MixtureCounts.model_validate(each) for each in outcome["mixture"]],
            warnings=outcome["warnings"],
        )
        logger.info("memory of a worker: %s", manifest.memory)
        write_manifest(self.store, self.stage_layout, manifest)
        writer = ProgressWriter(self.store, self.stage_layout)
        last = self.store.find_record(self.stage_layout.progress, Progress)
        if last is not None:
            writer.write(
                last.model_copy(
                    update={
                        "activity": Activity.DONE,
                        "message": "",
                        "eta_seconds": 0.0,
                        "updated_at": time_stamp(),
                    }
                )
            )
        writer.close()
        logger.info("done: %s", self.stage_layout.manifest)

    def _fail(self, error: BaseException) -> None:
        text = "".join(traceback.format_exception(error))
        logger.error("%s", text)
        uri = f"{self.stage_layout.logs}/traceback-a{self.request.attempt}.txt"
        failure = describe_failure(error, uri)
        try:
            self.store.put(uri, text.encode())
            last = self.store.find_record(self.stage_layout.progress, Progress)
            if last is None or last.attempt != self.request.attempt:
                last = self._progress(Activity.FAILED)
            writer = ProgressWriter(self.store, self.stage_layout)
            writer.write(
                last.model_copy(
                    update={"activity": Activity.FAILED, "failure": failure, "updated_at": time_stamp()}
                )
            )
            writer.close()
        except StorageError as outage:
            # The store is what failed: the exit status and this log are all that is left to tell it.
            logger.error("the failure could not be stored: %s", outage)

    def _keep_log(self) -> None:
        """Stores the driver's log (the workers' lines are in it) where it outlives the Ray head."""
        try:
            stdout = Path(f"/proc/{os.getpid()}/fd/1").resolve()
            if stdout.is_file():
                sys.stdout.flush()
                self.store.put_file(f"{self.stage_layout.logs}/driver-a{self.request.attempt}.log", stdout)
        except (OSError, StorageError) as error:
            logger.warning("the log could not be stored: %s", error)
