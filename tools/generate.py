"""Writes all that is generated: pages and schema into docs/, the CRD and what is made of it into the chart.

``python -m tools.generate``, or ``make generated``. Tests hold the files equal to what they are made from.
"""

from __future__ import annotations

import json
from pathlib import Path

from tools.chart_page import CHART_PAGE_FILE, VALUES_FILE, chart_page
from tools.crd import CRD_FILE, FIELDS_FILE, VALUES_SCHEMA_FILE, crd_yaml, field_list, values_schema
from tools.reference import REFERENCE_FILE, reference_page
from tools.troubleshooting import TROUBLESHOOTING_FILE, troubleshooting_page
from zhongjing.config.schema import json_schema

SCHEMA_FILE = "docs/trainingpipeline.schema.json"


def generated(root: Path) -> dict[str, str]:
    """What is generated, by file.

    Args:
        root: the project's folder, with the chart's values and their schema.
    """
    values = (root / VALUES_FILE).read_text(encoding="utf-8")
    schema = (root / VALUES_SCHEMA_FILE).read_text(encoding="utf-8")
    return {
        SCHEMA_FILE: json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n",
        REFERENCE_FILE: reference_page(),
        TROUBLESHOOTING_FILE: troubleshooting_page(),
        CRD_FILE: crd_yaml(),
        FIELDS_FILE: field_list(),
        VALUES_SCHEMA_FILE: values_schema(schema),
        CHART_PAGE_FILE: chart_page(values),
    }


if __name__ == "__main__":
    for name, content in generated(Path.cwd()).items():
        Path(name).write_text(content, encoding="utf-8")
