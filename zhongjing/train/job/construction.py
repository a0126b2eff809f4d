"""The job of the stage construct: makes the sources that say how they are made (``spec.sources[].made``).

No model is loaded and no worker is started. The driver reads and cuts, and Ray tasks make the parts, on
whatever cores the cluster has free (:mod:`zhongjing.train.job.ray_tasks`). Each source has a key and a folder
of its own, which pipelines of a namespace share; a part that is there is not made again.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from zhongjing.config.keys import source_digest
from zhongjing.config.made import Made, MakingStep
from zhongjing.config.sources import Source
from zhongjing.construct.catalog import StepSettings, build_steps
from zhongjing.construct.dedup.run import deduplicate, filter_of
from zhongjing.construct.dedup.settings import DedupSettings
from zhongjing.construct.llm.limits import Limits, Prices
from zhongjing.construct.llm.server import KeySource, Sampling
from zhongjing.construct.manifest import SourceManifest, key_of
from zhongjing.construct.runner import Work, construct
from zhongjing.data.inspect import inspect_sources
from zhongjing.data.tasks import encode_by
from zhongjing.storage.manifest import FrozenSource, MadeSource, SourceCounts, StageManifest
from zhongjing.train.job.attempt import Attempt
from zhongjing.train.job.lineage import lineage
from zhongjing.train.job.ray_tasks import connect

if TYPE_CHECKING:
    from zhongjing.construct.runner import Progress as Making
    from zhongjing.storage.progress_writer import ProgressWriter

logger = logging.getLogger("zhongjing.job")

SALT = "ZHONGJING_SALT"
"""The variable with the secret that made-up values come from."""
_ASKING_TASKS = 1  # one process asks faster than servers answer (docs/data-construction.md)


class ConstructionJob(Attempt):
    """An attempt of the stage construct."""

    def _work(self, progress: ProgressWriter) -> StageManifest:
        tell = self._reporter(progress)
        sources = {each.name: each for each in self.request.document.spec.sources if each.made is not None}
        frozen = {each.name: each for each in self.request.sources}
        made: dict[str, SourceManifest] = {}
        folders: dict[str, str] = {}
        for number, (name, source) in enumerate(sources.items()):
            share = (number / len(sources), 1 / len(sources))
            folders[name], made[name] = self._make(source, frozen[name], partial(_tell, tell, name, share))
        return self._manifest(folders, made, frozen)

    def _make(self, source: Source, frozen: FrozenSource, listen: Any) -> tuple[str, SourceManifest]:
        assert source.made is not None
        construct_ = self.request.document.spec.stages.construct_
        tasks = construct_.tasks if construct_ is not None else None
        settings = self._step_settings(source.made)
        if settings.asks:
            tasks = settings.processes(tasks or _ASKING_TASKS)
        raw = source.raw()
        out = source.uri
        deduplication = self._deduplication(source.made)
        paid_by = out or self.layout.source(source_digest(source, frozen.digest))
        steps = build_steps(settings, paid_by, self.store, processes=tasks or 1)
        if out is None:
            # By what decides its bytes: another release of a step makes another folder.
            first = [] if deduplication is None else [filter_of(self.store, raw, frozen, **deduplication)]
            out = self.layout.source(key_of(raw, frozen, [*first, *steps]))
        out = out.rstrip("/")
        work: Work = encode_by(partial(connect, most=tasks), here=1, patience=settings.patience)
        if deduplication is None:
            manifest = construct(self.store, raw, steps, out, work=work, listen=listen, frozen=frozen)
        else:
            done = deduplicate(
                self.store, [raw], out, **deduplication, then=steps, frozen=[frozen], work=work, listen=listen
            )
            manifest = done.manifests[0]
        logger.info("source %s: %d of %d records, %s", source.name, manifest.written, manifest.read, out)
        return out, manifest

    def _deduplication(self, made: Made) -> dict[str, Any] | None:
        """What decides which records are duplicates or leaks; None: the source is not asked for it."""
        if MakingStep.DEDUP not in made.steps:
            return None
        looked_at = inspect_sources(made.against, store=self.store, max_records=50).sources
        tests = [
            Source(name=f"test-{place}", uri=uri, kind=found.kind)
            for place, (uri, found) in enumerate(zip(made.against, looked_at, strict=True), start=1)
        ]
        return {"settings": DedupSettings(made.dedup_threshold), "against": tests}

    def _step_settings(self, made: Made) -> StepSettings:
        """What the steps are built from; secrets come from this process's environment."""
        author = made.author
        settings = StepSettings(
            steps=[step.value for step in made.steps if step is not MakingStep.DEDUP],
            policy=made.policy,
            salt=os.environ.get(SALT),
            accept_identifiable=made.accept_identifiable,
            drugs=made.drugs,
            kg=made.kg,
            ledger=f"{self.layout.cache}/answers",
        )
        if author is None:
            return settings
        prices = author.prices
        return replace(
            settings,
            model=author.model,
            base_url=author.base_url,
            key=None if author.key_variable is None else KeySource(environment=author.key_variable),
            sampling=Sampling(max_tokens=author.max_tokens, temperature=author.temperature),
            tries=author.tries,
            most_unusable=author.max_unusable_fraction,
            limits=Limits(
                concurrency=author.concurrency,
                requests_per_minute=author.requests_per_minute,
                tokens_per_minute=author.tokens_per_minute,
                budget=author.budget,
                prices=None if prices is None else Prices(prices.prompt, prices.completion, prices.currency),
            ),
        )

    def _manifest(
        self, folders: dict[str, str], made: dict[str, SourceManifest], frozen: dict[str, FrozenSource]
    ) -> StageManifest:
        return StageManifest(
            **self._facts(),
            made={
                name: MadeSource(
                    uri=folders[name],
                    key=each.key,
                    objects=each.parts,
                    read=each.read,
                    written=each.written,
                    quarantined=sum(each.quarantined.values()),
                )
                for name, each in made.items()
            },
            inputs=[],
            sources=[
                SourceCounts(
                    name=name,
                    digest=frozen[name].digest,
                    read=each.read,
                    kept=each.written,
                    quarantined=sum(each.quarantined.values()),
                )
                for name, each in made.items()
            ],
            steps=0,
            best_step=0,
            samples=sum(each.written for each in made.values()),
            tokens=0,
            spikes=0,
            metrics_before={},
            metrics={},
            extra={"sources": {name: _told(each) for name, each in made.items()}},
            lineage=lineage(0, "cpu"),
        )


def _tell(report: Any, name: str, share: tuple[float, float], making: Making) -> None:
    begin, length = share
    report(f"making {name}: {making.records:,} records", begin + length * making.fraction)


def _told(manifest: SourceManifest) -> dict[str, Any]:
    """What steps did, by label, and what they tell of their work."""
    return {
        "steps": [f"{step.name} {step.version}" for step in manifest.steps],
        "characters": manifest.characters,
        "counts": manifest.counts,
        "quarantined": manifest.quarantined,
        "notes": manifest.notes,
    }
