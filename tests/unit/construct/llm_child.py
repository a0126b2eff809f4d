"""A process that normalizes dialogues at the scripted server and may be killed at any time.

``python -m tests.unit.construct.llm_child BASE_URL BUCKET_URI COUNT OUTPUT``: the output appears whole, a
line for each outcome; the report of the process goes to stdout.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from tests.unit.construct.llm_support import KEY_NAME, dialogue
from zhongjing.config.sources import Storage
from zhongjing.construct.llm.batch import Batch, Desk
from zhongjing.construct.llm.limits import Limits
from zhongjing.construct.llm.normalize import NormalizeStep
from zhongjing.construct.llm.server import KeySource, Server

CONCURRENCY = 8


def main(base_url: str, uri: str, count: str, output: str) -> None:
    desk = Desk(
        server=Server(base_url, "tiny", KeySource(environment=KEY_NAME)),
        storage=Storage(uri=uri),
        ledger=f"{uri}/ledger",
        account="work",
        limits=Limits(concurrency=CONCURRENCY),
    )
    with Batch(desk) as batch:
        outcomes = NormalizeStep(desk).apply_all((dialogue(number) for number in range(int(count))), batch)
        lines = [
            json.dumps(
                {
                    "records": [dataclasses.asdict(record) for record in outcome.records],
                    "counts": dict(sorted(outcome.counts.items())),
                    "reason": outcome.quarantined and outcome.quarantined.reason,
                },
                ensure_ascii=False,
            )
            for outcome in outcomes
        ]
    Path(output).write_text("\n".join(lines), encoding="utf-8")
    sys.stdout.write(json.dumps(dataclasses.asdict(batch.report())))


if __name__ == "__main__":
    main(*sys.argv[1:])
