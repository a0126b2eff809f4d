"""What the tests of doctor's findings share."""

from __future__ import annotations

from zhongjing.cli.diagnosis.finding import Finding, Status
from zhongjing.codes import find


def told(finding: Finding) -> tuple[str, str | None]:
    """Status and code. What is not fine has a remedy, and a code of the catalogue."""
    fine = finding.status is Status.FINE
    assert (finding.remedy is None) == fine
    assert (finding.code is None) == fine
    assert finding.code is None or find(finding.code) is not None
    assert finding.finding
    assert "\n" not in finding.finding
    return finding.status.value, finding.code
