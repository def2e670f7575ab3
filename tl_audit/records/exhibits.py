"""Exhibits: the data of one table or figure of the report. Data, never HTML; each kind is one frozen record.

Every exhibit has a slug ``id`` (unique inside its finding), a ``title`` that states the finding, ``how_to_read`` (at most two sentences),
``alt`` (text alternative with the take-away) and a ``caption`` (n, method, seed). A ``stamp`` is written by the runner after the
explanation gate (TLA711) and printed on the exhibit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tl_audit.records.base import Displayable, Pair, Record

Cell = str | int | float | bool | None
StampState = Literal["passed", "unreliable", "not_checked"]


class Stamp(Record):
    """Quality mark of attribution maps: ``text`` reads e.g. "not reliable: fails TLA703 (edge map)"."""

    state: StampState
    text: str


class ExhibitBase(Displayable):
    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=80)
    title: str
    how_to_read: str
    alt: str
    caption: str
    method: str | None = None
    "explainer whose maps are shown, for the stamp of TLA711"
    stamp: Stamp | None = None
    grouped: bool = False
    "crossed with a group or cluster: small cells are suppressed when the record is built"

    def save(self, path: str | Path) -> Path:
        """Write the exhibit to one file, whole or not at all; the suffix decides: .png (needs matplotlib), .svg, .csv, .json.

        Raises
        ------
        ConfigError : another suffix, a link in the way, a folder that cannot be written, no drawing (.svg of a table), matplotlib absent (.png)
        """
        from importlib import import_module

        written: Path = import_module("tl_audit.report.figures").save_exhibit(self, Path(path))
        return written


class Column(Record):
    """A table column. ``format``: 'text', 'count', 'number', 'share' (printed as percent), 'interval' cells are text."""

    name: str
    format: Literal["text", "count", "number", "share"] = "text"
    unit: str | None = None


class Table(ExhibitBase):
    kind: Literal["Table"] = "Table"
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @model_validator(mode="after")
    def _rows_fit_columns(self) -> Table:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.id}: a row has {len(row)} cells, there are {len(self.columns)} columns")
        return self

    def to_rows(self) -> list[dict[str, Any]]:
        return [dict(zip([c.name for c in self.columns], row, strict=True)) for row in self.rows]


class Bar(Record):
    label: str
    value: float | None
    series: str = ""
    interval: Pair | None = None
    null: float | None = None
    "drawn as a tick: what chance gives (or its 95 % point)"
    n: int | None = None
    state: Literal["plain", "frozen", "changed", "new", "unavailable"] = "plain"
    note: str | None = None
    "e.g. why value is None, 'suppressed', or the map's unit"


class Bars(ExhibitBase):
    """Horizontal bars, optionally several series beside each other. ``signed``: bars go both ways from 0 (e.g. attributions of columns)."""

    kind: Literal["Bars"] = "Bars"
    value_label: str
    bars: tuple[Bar, ...]
    signed: bool = False
    log: bool = False

    def to_rows(self) -> list[dict[str, Any]]:
        return [b.model_dump() for b in self.bars]


class Line(Record):
    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    role: Literal["data", "null", "reference"] = "data"
    "null: drawn as a band or dashed line; reference: thin (e.g. the diagonal)"
    mark: Literal["none", "dot"] = "none"

    @model_validator(mode="after")
    def _lengths(self) -> Line:
        for part in (self.y, self.low, self.high):
            if part is not None and len(part) != len(self.x):
                raise ValueError(f"line {self.name!r}: x has {len(self.x)} points, another part {len(part)}")
        return self


class Lines(ExhibitBase):
    """Curves over one x axis. ``counts`` (x, n) are drawn as bars under the curve (reliability). ``shaded`` x intervals are drawn grey (frozen layers)."""

    kind: Literal["Lines"] = "Lines"
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    x_ticks: tuple[str, ...] | None = None
    "names at x = 0, 1, 2, ... (layers)"
    counts: tuple[tuple[float, int], ...] | None = None
    shaded: tuple[Pair, ...] = ()
    x_range: Pair | None = None
    y_range: Pair | None = None

    def to_rows(self) -> list[dict[str, Any]]:
        rows = []
        for line in self.lines:
            for i, x in enumerate(line.x):
                rows.append(
                    {
                        "line": line.name,
                        "x": x,
                        "y": line.y[i],
                        "low": None if line.low is None else line.low[i],
                        "high": None if line.high is None else line.high[i],
                    }
                )
        return rows


class Heatmap(ExhibitBase):
    """A matrix. ``text`` is printed in the cells instead of the value; ``stars`` marks broken cells; ``signed`` centres the colours at 0."""

    kind: Literal["Heatmap"] = "Heatmap"
    row_label: str
    column_label: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    text: tuple[tuple[str, ...], ...] | None = None
    stars: tuple[tuple[bool, ...], ...] | None = None
    value_label: str
    signed: bool = False
    value_range: Pair | None = None

    @model_validator(mode="after")
    def _shape(self) -> Heatmap:
        if len(self.values) != len(self.rows) or any(len(r) != len(self.columns) for r in self.values):
            raise ValueError(f"heatmap {self.id}: values do not have shape ({len(self.rows)}, {len(self.columns)})")
        return self

    def to_rows(self) -> list[dict[str, Any]]:
        return [{self.row_label: r, **{c: self.values[i][j] for j, c in enumerate(self.columns)}} for i, r in enumerate(self.rows)]


class Picture(Record):
    """One picture of a grid. ``png`` is base64 PNG (at most 224 px), None where samples are off; ``alt`` says what it shows."""

    title: str
    alt: str
    png: str | None = None
    width: int | None = None
    height: int | None = None
    note: str | None = None
    "e.g. 'no signal' for blank maps, 'left out: samples are off'"
    method: str | None = None
    "explainer of this map, for its stamp"
    stamp: Stamp | None = None


class GridRow(Record):
    """One sample: its short id, facts (true, predicted by base and adapted, group, selection rule) and its pictures."""

    id: str
    facts: tuple[tuple[str, str], ...] = ()
    pictures: tuple[Picture, ...] = ()


class ImageGrid(ExhibitBase):
    kind: Literal["ImageGrid"] = "ImageGrid"
    rows: tuple[GridRow, ...]
    samples: Literal["off", "redacted", "on"] = "off"

    def to_rows(self) -> list[dict[str, Any]]:
        return [{"id": r.id, **dict(r.facts), "pictures": len(r.pictures)} for r in self.rows]


class Dot(Record):
    """One dot with its interval. ``series`` tells apart base (drawn hollow) and adapted (filled)."""

    label: str
    value: float | None
    interval: Pair | None = None
    series: str = ""
    n: int | None = None
    null: float | None = None
    hollow: bool = False
    suppressed: bool = False
    note: str | None = None


class Reference(Record):
    value: float
    label: str
    role: Literal["limit", "null", "rest"] = "null"


class Change(Record):
    """A paired change printed at the right of a dumbbell row."""

    label: str
    value: float | None
    interval: Pair | None = None


class Intervals(ExhibitBase):
    """Dots with intervals, one or two series (dumbbell), optionally in panels (one per metric)."""

    kind: Literal["Intervals"] = "Intervals"
    value_label: str
    dots: tuple[Dot, ...]
    references: tuple[Reference, ...] = ()
    changes: tuple[Change, ...] = ()
    null_band: Pair | None = None
    share: bool = False
    "values are shares, printed with percent in prose only"

    def to_rows(self) -> list[dict[str, Any]]:
        return [d.model_dump() for d in self.dots]


class LadderRow(Record):
    layer: str
    parameters: int
    state: Literal["frozen", "trained", "adapter", "new", "unknown"]
    weight_change: float | None = None
    gradient_activity: float | None = None
    cka_drift: float | None = None
    cka_interval: Pair | None = None
    cka_null: float | None = None
    frozen_but_changed: bool = False


class Ladder(ExhibitBase):
    """The layer ladder: one row per layer from input to output, lanes for state, gradient activity, weight change, CKA drift."""

    kind: Literal["Ladder"] = "Ladder"
    rows: tuple[LadderRow, ...]

    def to_rows(self) -> list[dict[str, Any]]:
        return [r.model_dump() for r in self.rows]


Exhibit = Annotated[Table | Bars | Lines | Heatmap | ImageGrid | Intervals | Ladder, Field(discriminator="kind")]
EXHIBIT_KINDS: tuple[type[ExhibitBase], ...] = (Table, Bars, Lines, Heatmap, ImageGrid, Intervals, Ladder)


def slug(text: str, *, most: int = 60) -> str:
    """A slug id from any text: lower case letters, digits, hyphens; never empty."""
    import re

    out = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:most].strip("-")
    return out or "x"
