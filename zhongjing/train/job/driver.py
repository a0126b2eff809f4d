"""The job of a stage, from its request to its manifest.

The driver prepares what the workers share (base model, token cache), runs them by Ray Train, and as its last
act writes the manifest. It holds no GPU and no model.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any

from zhongjing.codes import command as command_codes
from zhongjing.codes import training as training_codes
from zhongjing.config.sources import Storage
from zhongjing.config.stages import AnySettings, Stage
from zhongjing.errors import ConfigError, TrainingError, ZhongjingError
from zhongjing.storage.files import disk_error
from zhongjing.storage.manifest import (
    MemoryUse,
    MixtureCounts,
    ModelArtifact,
    SourceCounts,
    StageManifest,
    StageRequest,
)
from zhongjing.storage.objects import open_store
from zhongjing.storage.progress import Activity
from zhongjing.storage.progress_writer import ProgressWriter
from zhongjing.train.job.attempt import Attempt, StoppedError
from zhongjing.train.job.failures import cause_of
from zhongjing.train.job.lineage import lineage
from zhongjing.train.job.prepare import prepare
from zhongjing.train.job.ray_cluster import connect, run_workers, worker_resources
from zhongjing.train.job.scratch import scratch_root
from zhongjing.train.job.worker_config import Prepared, WorkerConfig, train_worker

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


def _open(stage: Stage, uri: str) -> Attempt:
    # Endpoint and credentials come from the environment until the request has told the rest.
    request = open_store(Storage()).get_record(uri, StageRequest)
    if request.stage is not stage:
        raise ConfigError(
            f"the request is for stage {request.stage}, this is the job of {stage}",
            code=command_codes.INVALID_OPTION,
            where=uri,
        )
    try:
        if stage is Stage.CONSTRUCT:
            from zhongjing.train.job.construction import ConstructionJob

            return ConstructionJob(request)
        return TrainingJob(request)
    except OSError as error:
        raise disk_error(error, scratch_root()) from error


class TrainingJob(Attempt):
    """An attempt of a stage that trains."""

    def _work(self, progress: ProgressWriter) -> StageManifest | None:
        prepared = prepare(self.request, self.store, self.layout, self.scratch, self._reporter(progress))
        for warning in prepared.warnings:
            logger.warning("%s", warning)
        self._await_workers(progress, prepared)
        # From here rank 0 of the workers writes progress.json.
        progress.close()
        outcome = self._train(prepared)
        if outcome["suspended"]:
            logger.info("stopped on request at step %d", outcome["steps"])
            return None
        return self._manifest(prepared.counts, outcome)

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
                    raise StoppedError
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

    def _manifest(self, counts: Sequence[SourceCounts], outcome: dict[str, Any]) -> StageManifest:
        manifest = StageManifest(
            **self._facts(),
            model=ModelArtifact.model_validate(outcome["model"]),
            inputs=self.request.inputs,
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
            lineage=lineage(self._settings().workers, outcome["device"]),
            memory=MemoryUse.model_validate(outcome["memory"]),
            mixture=[MixtureCounts.model_validate(each) for each in outcome["mixture"]],
            warnings=outcome["warnings"],
        )
        logger.info("memory of a worker: %s", manifest.memory)
        return manifest
