"""Stamps: the quality mark of an explainer's maps, written into every exhibit that shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

from tl_audit.records.exhibits import Exhibit, GridRow, ImageGrid, Picture, Stamp, StampState
from tl_audit.records.findings import Finding

GATE = "TLA711"
NOT_CHECKED = Stamp(state="not_checked", text="not checked")


def stamps(gate: Finding | None, methods: Sequence[str]) -> dict[str, Stamp]:
    """The stamp of each method as the explanation gate measured it; "not checked" where it did not run."""
    params = {} if gate is None or gate.measurement is None else gate.measurement.params
    return {method: _parsed(str(params.get(f"stamp:{method}", ""))) for method in methods}


def stamped(finding: Finding, known: Mapping[str, Stamp]) -> Finding:
    """The finding with a stamp on every exhibit and picture that was made by an explainer."""
    if finding.measurement is None:
        return finding
    exhibits = tuple(_exhibit(e, known) for e in finding.measurement.exhibits)
    return finding.model_copy(update={"measurement": finding.measurement.model_copy(update={"exhibits": exhibits})})


def _parsed(text: str) -> Stamp:
    state, _, words = text.partition(": ")
    return Stamp(state=state, text=words) if state in get_args(StampState) else NOT_CHECKED  # type: ignore[arg-type]


def _exhibit(exhibit: Exhibit, known: Mapping[str, Stamp]) -> Exhibit:
    if isinstance(exhibit, ImageGrid):
        rows = tuple(_row(row, known) for row in exhibit.rows)
        exhibit = exhibit.model_copy(update={"rows": rows})
    return exhibit if exhibit.method is None else exhibit.model_copy(update={"stamp": known.get(exhibit.method, NOT_CHECKED)})


def _row(row: GridRow, known: Mapping[str, Stamp]) -> GridRow:
    pictures: list[Picture] = [
        p if p.method is None else p.model_copy(update={"stamp": known.get(p.method, NOT_CHECKED)}) for p in row.pictures
    ]
    return row.model_copy(update={"pictures": tuple(pictures)})
