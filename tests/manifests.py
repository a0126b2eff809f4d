"""A stage's manifest, for tests that need one and look at some of its fields."""

from __future__ import annotations

from typing import Any

from zhongjing.config.stages import Stage
from zhongjing.storage.manifest import Lineage, ModelArtifact, StageManifest

LINEAGE = Lineage(
    code_version="0.1.0", python="3.11", packages={}, host="h", platform="p", workers=1, device="cpu"
)


def stage_manifest(stage: Stage, **changes: Any) -> StageManifest:
    """A manifest of a first attempt that trained 4 steps; ``changes`` by the names of its fields."""
    fields: dict[str, Any] = {
        "pipeline": "demo",
        "namespace": "local",
        "stage": stage,
        "key": "abc123",
        "attempt": 1,
        "submission_id": f"demo-01234567-{stage}-a1",
        "started_at": "2026-11-22T20:00:00Z",
        "finished_at": "2026-11-22T20:10:00Z",
        "seconds": 600.0,
        "model": ModelArtifact(uri="s3://bucket/model", format="full"),
        "inputs": [],
        "sources": [],
        "steps": 4,
        "best_step": 4,
        "samples": 8,
        "tokens": 80,
        "spikes": 0,
        "metrics_before": {},
        "metrics": {},
        "document": {},
        "lineage": LINEAGE,
    }
    return StageManifest(**{**fields, **changes})
