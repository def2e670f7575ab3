"""Writes the golden files again: run ``python tests/golden/regenerate.py``, then look at the difference and at the page."""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "report")]


def main() -> None:
    from golden_record import golden

    from tl_audit.records.schema import json_schema, to_json
    from tl_audit.report import render_html

    (HERE / "report.schema.json").write_text(json.dumps(json_schema(), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (HERE / "report.json").write_text(to_json(golden()), encoding="utf-8")
    (HERE / "report.html").write_text(render_html(golden()), encoding="utf-8")


if __name__ == "__main__":
    main()
