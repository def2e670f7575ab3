"""Planted defects: the matrix of defects and checks, written to benchmarks/defects.md by the code of ``tl-audit selftest``."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

from tl_audit.defects.base import Outcome
from tl_audit.defects.matrix import chosen, examine_all, lines, markdown

PAGE = Path(__file__).with_name("defects.md")
SEEDS = (0, 1, 2)


def main() -> None:
    defects, kinds = chosen()
    outcomes = examine_all(defects, kinds, SEEDS, processes=min(4, os.cpu_count() or 1), say=_say)
    for verdict, title, kind, fired, quiet in lines(outcomes):
        print(f"{verdict:14} {title} ({kind}): {fired} | {quiet}")
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    PAGE.write_text(markdown(outcomes, command="python -m benchmarks defects", date=today), encoding="utf-8")
    print(f"wrote {PAGE}; {sum(o.ok for o in outcomes)} of {len(outcomes)} audits as expected")


def _say(outcome: Outcome, done: int, total: int) -> None:
    print(
        f"{done}/{total} {outcome.defect.name}, {outcome.kind}, seed {outcome.seed}: {'ok' if outcome.ok else '; '.join(outcome.wrong)}",
        flush=True,
    )


if __name__ == "__main__":
    main()
