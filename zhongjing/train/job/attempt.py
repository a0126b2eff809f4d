"""What the jobs of all stages share: the attempt's places, its progress, its end, its log.

Every end is told in progress.json: done, suspended or failed with what, where and remedy.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
import traceback
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from zhongjing.errors import StorageError, ZhongjingError
from zhongjing.storage.artifacts import write_manifest
from zhongjing.storage.layout import Layout, StageLayout
from zhongjing.storage.manifest import StageManifest, StageRequest
from zhongjing.storage.objects import ObjectStore, open_store
from zhongjing.storage.progress import Activity, Progress, time_stamp
from zhongjing.storage.progress_writer import ProgressWriter
from zhongjing.train.job.failures import describe_failure
from zhongjing.train.job.scratch import FolderLock, remove_earlier, scratch_folder
from zhongjing.train.job.stop_watch import OTHERS_POLL_SECONDS, StopWatch
from zhongjing.train.meter import TimeLeft

logger = logging.getLogger("zhongjing.job")


class StoppedError(Exception):
    """A stop was asked for before the work was done."""


class Attempt(ABC):
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
        """Does the stage's work and writes the manifest.

        Nothing is left in the scratch folder but what others use.

        Returns:
            The exit status: 0 done or suspended, 1 failed.
        """
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
            manifest = self._work(progress)
            progress.close()
        except StoppedError:
            # What was prepared and stored is found again.
            progress.write(self._progress(Activity.SUSPENDED))
            progress.close()
            logger.info("stopped on request")
            return 0
        except BaseException as error:  # every end is told, Ctrl-C and SystemExit too
            progress.close()
            self._fail(error)
            return 1
        finally:
            self._keep_log()
        if manifest is None:
            return 0
        try:
            self._finish(manifest)
        except ZhongjingError as error:
            self._fail(error)
            return 1
        return 0

    @abstractmethod
    def _work(self, progress: ProgressWriter) -> StageManifest | None:
        """The stage's work; its manifest, or None where it was suspended and has said so.

        Raises:
            StoppedError: a stop was asked for.
        """

    def _reporter(self, writer: ProgressWriter) -> Any:
        left, said = TimeLeft(), ""

        def report(message: str, fraction: float = 0.0) -> None:
            nonlocal said
            if message != said:
                said = message
                logger.info("%s", message)
            if self._watch.requested:
                raise StoppedError
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

    def _facts(self) -> dict[str, Any]:
        """What the manifest of every stage says of the attempt, now that its work is done."""
        request = self.request
        return {
            "pipeline": request.document.name,
            "namespace": request.document.namespace,
            "stage": request.stage,
            "key": request.key,
            "attempt": request.attempt,
            "submission_id": request.submission_id,
            "started_at": self._started_at,
            "finished_at": time_stamp(),
            "seconds": round(time.time() - self._started, 3),
            "document": request.document.model_dump(mode="json"),
            "key_fields": request.key_fields,
        }

    def _finish(self, manifest: StageManifest) -> None:
        write_manifest(self.store, self.stage_layout, manifest)
        writer = ProgressWriter(self.store, self.stage_layout)
        last = self.store.find_record(self.stage_layout.progress, Progress)
        if last is not None:
            over = {"activity": Activity.DONE, "message": "", "eta_seconds": 0.0, "updated_at": time_stamp()}
            writer.write(last.model_copy(update=over))
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
