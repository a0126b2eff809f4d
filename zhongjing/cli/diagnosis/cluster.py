"""Clusters: said plainly that they are not checked yet."""

from __future__ import annotations

from collections.abc import Iterable

from zhongjing.cli.diagnosis.finding import Finding, fine
from zhongjing.cli.diagnosis.situation import Situation
from zhongjing.cli.target import find_kubeconfig


def check(situation: Situation) -> Iterable[Finding]:
    """Says whether a cluster is in reach, and that this release does not look at it."""
    if situation.local:
        return
    file = find_kubeconfig()
    place = f"a kubeconfig is at {file}, " if file else "no kubeconfig was found, "
    yield fine("cluster", f"{place}but clusters are not checked by this release")
