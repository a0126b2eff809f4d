"""What runs on each Ray Train worker: one rank of a stage, from folders to an uploaded model."""

from __future__ import annotations

import shutil
import warnings
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from zhongjing.config.stages import AnySettings, Stage
from zhongjing.data.losses import data_warnings
from zhongjing.data.order import mixture_counts
from zhongjing.data.tokens import open_split
from zhongjing.storage.artifacts import upload_model
from zhongjing.storage.layout import Layout, StageLayout
from zhongjing.storage.manifest import StageRequest
from zhongjing.storage.objects import ObjectStore, open_store
from zhongjing.storage.progress import Activity
from zhongjing.train.barrier import meet
from zhongjing.train.job.accelerator import cuda_facts, no_cuda, use_gpu
from zhongjing.train.job.folders import DownloadStoppedError, Folders, until
from zhongjing.train.job.peak_memory import memory_use, own_peak, planned
from zhongjing.train.job.prometheus import PrometheusGauges
from zhongjing.train.job.ray_context import RayRunContext, TensorBoard
from zhongjing.train.job.scratch import (
    FolderLock,
    checkpoint_folder,
    remove_earlier,
    remove_spool,
    scratch_folder,
)
from zhongjing.train.job.worker_config import WorkerConfig
from zhongjing.train.precision import agreed_precision, own_precision, with_precision

if TYPE_CHECKING:
    from zhongjing.train.stages.inputs import StageInputs
    from zhongjing.train.stages.program import StageProgram

# Between libraries that we only use; nothing that a user of ours could change.
_FOREIGN_WARNINGS = (
    "`torch.distributed.all_gather_into_tensor`",
    "`is_gradient_checkpointing` is deprecated",
)
_ANSWER_TOKENS = 96  # of the answers that are shown side by side


def train_rank(worker: WorkerConfig) -> dict[str, Any] | None:
    """Trains this process's rank; rank 0 uploads the result and returns what the manifest needs."""
    import ray.train

    context = ray.train.get_context()
    return _Rank(worker, context.get_world_rank(), context.get_world_size()).run()


class _Rank:
    def __init__(self, worker: WorkerConfig, rank: int, world_size: int) -> None:
        self.request = StageRequest.model_validate_json(worker.request)
        self.prepared = worker.prepared
        self.rank = rank
        self.world_size = world_size
        document = self.request.document
        settings = document.spec.stages.get(self.request.stage)
        assert settings is not None, "the request's document has the request's stage"
        self.settings: AnySettings = settings
        self.seed = document.spec.seed if settings.seed is None else settings.seed
        self.store: ObjectStore = open_store(document.spec.storage)
        self.layout: StageLayout = Layout(document.spec.storage.uri, document.namespace, document.name).stage(
            self.request.stage, self.request.key
        )
        self.device = _device(settings)
        if settings.precision == "auto":
            own = own_precision(self.device)
            agreed = agreed_precision(self.store, self.layout.precision, own)
            self.settings = with_precision(settings, agreed)
        nodes = _nodes()
        # Ray Train counts by IP address: pods in their host's network share one, and no disk.
        self.local_rank = nodes[:rank].count(nodes[rank])
        self.nodes = {*nodes, worker.driver_node}
        if self.local_rank == 0:
            remove_earlier(worker.submission_id)
        self.scratch = scratch_folder(worker.submission_id)
        self._locks = [FolderLock(self.scratch), FolderLock(checkpoint_folder(self.request))]

    def run(self) -> dict[str, Any] | None:
        from zhongjing.train.distributed import prepare_deepspeed

        for message in _FOREIGN_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        prepare_deepspeed(self.device)
        if self.device.type == "cpu":
            torch.set_num_threads(max(1, int(self.settings.resources.cpus)))
        tensorboard = TensorBoard(self.scratch / "tensorboard") if self._wants_tensorboard() else None
        gauges = (
            [PrometheusGauges(self.request.stage.value, self.request.document.name)] if self.rank == 0 else []
        )
        context = RayRunContext(
            self.request,
            self.layout,
            self.store,
            self.scratch,
            checkpoint_folder(self.request),
            rank=self.rank,
            world_size=self.world_size,
            local_rank=self.local_rank,
            device=self.device,
            keep=self.settings.checkpoints.keep,
            nodes=self.nodes,
            gauges=(*gauges, *([tensorboard] if tensorboard else [])),
            watchers=tuple(each.progress for each in gauges),
            warnings=self.prepared.warnings,
        )
        try:
            context.report(Activity.STARTING, message="loading the model", sources=list(self.prepared.counts))
            outcome = self._train(context, tensorboard)
        finally:
            context.close()
            if tensorboard is not None:
                tensorboard.close()
        self._clear_up()
        return outcome

    def _clear_up(self) -> None:
        """Removes what this attempt leaves on this node, once no rank needs it any more.

        After a failure others may still read there, and their errors would hide the one that counts; then the
        next job on this node removes it.
        """
        for lock in self._locks:
            lock.release()
        meet(lambda: None)
        if self.local_rank == 0:
            shutil.rmtree(self.scratch, ignore_errors=True)
            remove_spool(checkpoint_folder(self.request))

    def _wants_tensorboard(self) -> bool:
        return self.rank == 0 and self.settings.logging.tensorboard

    def _train(self, context: RayRunContext, tensorboard: TensorBoard | None) -> dict[str, Any] | None:
        from zhongjing.train.loop import run_loop
        from zhongjing.train.stages.build import build_program
        from zhongjing.train.stages.inputs import StageInputs

        prepared = self.prepared
        folders = Folders(self.store, self.scratch.parent, until(context.stop_requested))
        revision = prepared.base_revision
        references = {
            "base": (prepared.base, revision),
            "adapter": (prepared.adapter, None),
            "reward": (prepared.reward, None),
            "tokenizer": (prepared.tokenizer, revision if prepared.tokenizer == prepared.base else None),
        }
        found: dict[str, Path] = {}

        def fetch() -> bool:
            with suppress(DownloadStoppedError):
                for role, (reference, at) in references.items():
                    if reference is not None:
                        found[role] = folders.local(reference, at)
                return True
            return False

        # The engine's first act is a collective: no rank waits there for another node's download.
        if not all(meet(fetch)):
            context.report(Activity.SUSPENDED)
            return {"suspended": True, "steps": 0} if self.rank == 0 else None
        inputs = StageInputs(
            base=found["base"],
            base_reference=prepared.base,
            tokenizer=found["tokenizer"],
            train=open_split(self.store, prepared.tokens, "train"),
            validation=open_split(self.store, prepared.tokens, "validation"),
            rank=self.rank,
            world_size=self.world_size,
            device=self.device,
            seed=self.seed,
            adapter=found.get("adapter"),
            reward=found.get("reward"),
            reward_mean=prepared.reward_mean,
            reward_std=prepared.reward_std,
        )
        mixture = mixture_counts(inputs.train.groups, inputs.train.group_names, self.settings)
        repeats = data_warnings(self.request.stage, self.settings, (), mixture)
        context.warn(repeats)
        context.report(Activity.STARTING, message="loading the model", mixture=mixture)
        program = build_program(self.settings, inputs)
        result = run_loop(program, self.settings, context, seed=self.seed)
        tested = self._test(program, context) if not result.suspended else {}
        outcome: dict[str, Any] = {
            **asdict(result),
            "test_metrics": tested,
            "device": self._device_name(),
            "mixture": [each.model_dump(mode="json") for each in mixture],
            "warnings": [*prepared.warnings, *repeats, *program.warnings(result.metrics)],
        }
        extra: dict[str, Any] = {}
        if not result.suspended:
            extra, remembers = self._exposure(program, inputs, context)
            outcome["warnings"] += remembers
        # Before the result is made: the look at answers, of small bases only, is no part of the plan.
        peaks = meet(lambda: own_peak(self.device))
        if self.rank == 0:
            outcome["memory"] = memory_use(peaks, planned(inputs.base, self.settings)).model_dump(mode="json")

        def finish() -> None:
            if self.rank == 0 and not result.suspended:
                outcome.update(self._store_result(program, inputs, result.metrics, context, extra))
                self._upload_curves(context, tensorboard)

        meet(finish)
        return outcome if self.rank == 0 else None

    def _store_result(
        self,
        program: StageProgram,
        inputs: StageInputs,
        best: dict[str, float],
        context: RayRunContext,
        measured: dict[str, Any],
    ) -> dict[str, Any]:
        """Rank 0: stores the model; returns what the manifest says of it."""
        context.report(Activity.SAVING, message="uploading the result")
        folder = self.scratch / "model"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        extra = program.finish(folder, best)
        extra["tokenCache"] = self.prepared.tokens
        extra["precision"] = self.settings.precision
        extra |= measured
        extra |= self._answers(folder, inputs)
        adapter = (folder / "adapter_config.json").is_file()
        model = upload_model(
            self.store,
            folder,
            self.layout.model,
            format="adapter" if adapter else "full",
            base_uri=self.prepared.base if adapter else None,
        )
        shutil.rmtree(folder, ignore_errors=True)
        return {"extra": extra, "model": model.model_dump(mode="json")}

    def _test(self, program: StageProgram, context: RayRunContext) -> dict[str, float]:
        """Metrics of the best weights on test data; all ranks take part."""
        samples = open_split(self.store, self.prepared.tokens, "test")
        if not len(samples):
            return {}
        context.report(Activity.EVALUATING, message="on test data")
        program.module.eval()
        return program.evaluate(samples)

    def _exposure(
        self, program: StageProgram, inputs: StageInputs, context: RayRunContext
    ) -> tuple[dict[str, Any], list[str]]:
        """What the best weights remember of planted canaries, and warnings; all ranks take part."""
        from zhongjing.data.encoding import RecordEncoder
        from zhongjing.model.tokenizer import load_tokenizer
        from zhongjing.train.exposure import measure, planted, reader_of

        document, stage = self.request.document, self.request.stage
        reader = reader_of(program)
        if reader is None or not planted(document, stage):
            return {}, []
        context.report(Activity.EVALUATING, message="what is remembered of planted canaries")
        program.module.eval()
        return measure(
            reader,
            document,
            stage,
            RecordEncoder(load_tokenizer(inputs.tokenizer)),
            rank=self.rank,
            world_size=self.world_size,
            device=self.device,
            budget=self.settings.token_budget,
        )

    def _answers(self, folder: Path, inputs: StageInputs) -> dict[str, Any]:
        """The document's question, answered before and after the stage, for people to look at."""
        from zhongjing.train.job.sample_answers import sample_answers
        from zhongjing.train.precision import dtype_of

        spec = self.request.document.spec
        if spec.question is None or self.request.stage not in (Stage.SFT, Stage.PPO):
            return {}
        answers = sample_answers(
            inputs,
            folder,
            spec.question,
            spec.stages.system_prompt(self.request.stage),
            stage=self.request.stage,
            dtype=dtype_of(self.settings, self.device),
            max_new_tokens=_ANSWER_TOKENS,
        )
        return {"answers": answers} if answers else {}

    def _upload_curves(self, context: RayRunContext, tensorboard: TensorBoard | None) -> None:
        from zhongjing.train.job.curves import render_curves

        points = context.compact_metrics()
        folder = self.scratch / "curves"
        shutil.rmtree(folder, ignore_errors=True)
        render_curves(points, folder)
        if folder.is_dir() and any(folder.iterdir()):
            self.store.upload_folder(folder, self.layout.curves)
        if tensorboard is not None:
            tensorboard.close()
            with suppress(FileNotFoundError):
                self.store.upload_folder(self.scratch / "tensorboard", f"{self.layout.root}/tensorboard")

    def _device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"


def _device(settings: AnySettings) -> torch.device:
    """The device that Ray gave this worker, once it has been seen to work."""
    if settings.resources.gpus == 0:
        return torch.device("cpu")
    trouble = no_cuda(cuda_facts())
    if trouble is not None:
        raise trouble
    import ray.train.torch

    device: torch.device = ray.train.torch.get_device()
    use_gpu(device)
    return device


def _nodes() -> list[str]:
    """Ids of the Ray nodes that the ranks run on, by rank."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return [own]
    nodes = [""] * distributed.get_world_size()
    distributed.all_gather_object(nodes, own)
    return nodes
