"""The report as a tree of plain views, laid out from the record alone. No verdict, no statistic, no markup is made here."""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tl_audit.errors import RecordError
from tl_audit.records.exhibits import Exhibit, Heatmap, ImageGrid, Ladder, Lines, Picture, Stamp, Table
from tl_audit.records.findings import (
    SEVERITIES,
    STATUSES,
    WORST_FIRST,
    AuditResult,
    DomainCard,
    Finding,
    LimitOutcome,
    ModelCard,
    ValueCard,
)
from tl_audit.records.metrics import Metric
from tl_audit.report import charts, declared, numbers
from tl_audit.report.clauses import ClauseMap, clause_maps
from tl_audit.report.text import shorten, visible

__all__ = [
    "ROWS_SHOWN",
    "Cell",
    "ExhibitView",
    "FindingView",
    "Grid",
    "Page",
    "SvgText",
    "build",
    "exhibit_view",
    "finding_view",
    "letter_of",
]

ROWS_SHOWN = 12
MOST_SINGLE_LIMITS = 8
MOST_PICTURES = 64
MOST_PICTURE_BYTES = 512 * 1024
FIXED_SENTENCE = "This report records tests against the stated policy. It is not a determination of legal compliance."
EXAMPLE_POLICY = "Example policy: a risk owner must approve it."

SECTION_TITLES = {
    "a": "Summary",
    "b": "System and scope",
    "c": "Adaptation record",
    "d": "Data and shift",
    "e": "Performance and calibration",
    "f": "Groups",
    "g": "Robustness, integrity, privacy",
    "h": "Explanations",
    "i": "Risks, limits, oversight",
    "j": "Change and monitoring",
    "k": "Reproducibility",
    "l": "Clause map",
    "m": "Findings and sign-off",
    "n": "Appendices",
}
_CALIBRATION = ("TLA305", "TLA306", "TLA309", "TLA610")
_ADAPTATION = ("TLA103", "TLA104", "TLA105", "TLA106", "TLA111")
_LETTERS = {
    "provenance": "g", "transfer": "c", "data": "d", "shift": "d", "performance": "e", "fairness": "f", "robustness": "g",
    "explanations": "h", "governance": "i",
}  # fmt: skip

NOT_ASSESSED_HERE = (
    ("adversarial attacks on single inputs", ()),
    ("poisoning of the training data", ("TLA608",)),
    ("membership inference", ("TLA803",)),
    ("out-of-distribution inputs", ("TLA802",)),
    ("extraction of the model through its answers", ()),
    ("logging and monitoring at run time", ()),
    ("software supply chain", ()),
    ("access control and hosting", ()),
)
"""Fixed list of §G, minus what was run: (topic, codes whose findings cover it)."""

HARM = "Harm: does the error rise?"
DECOMPOSITION = (
    ("Inputs (covariate)", "TLA501", {"c2st_auc": "AUC of telling source from target", "mmd2": "MMD²"}),
    ("Class mix (label)", "TLA502", {"label_tvd": "share of labels that would have to move"}),
    ("Look of a class (conditional)", "TLA503", {"c2st_auc_class": "AUC of telling source from target in a class"}),
    ("Meaning of a class (concept)", "TLA504", {"concept_gain": "log-loss saved by reading the inputs otherwise in the target"}),
    (
        "Predictions",
        "TLA505",
        {
            "output_ks": "largest gap between the distributions of an output (KS)",
            "predicted_tvd": "share of predicted classes that would have to move",
            "prediction_gap": "mean predicted number beyond the source's",
        },
    ),
    (
        HARM,
        "TLA509",
        {
            "accuracy_drop": "accuracy lost",
            "accuracy_drop_reweighted": "accuracy lost at the target's class mix",
            "error_rise": "mean absolute error beyond the source's",
        },
    ),
)
"""Parts of a shift, the check that asks for each, and the numbers that speak for it; of numbers by class the one furthest from chance."""


class SvgText(str):
    """A drawing made by ``charts``: the only text that the page takes as markup."""


@dataclass(frozen=True)
class Cell:
    """One table cell: text, perhaps a status before it and a link around it."""

    text: str
    href: str = ""
    status: str = ""
    note: str = ""
    declared: bool = False
    code: bool = False

    @property
    def long_word(self) -> bool:
        """Whether a word is so long that the table may break it anywhere."""
        return len(self.text) > 4 and any(len(word) > 28 for word in visible(self.text).replace("_", " ").split())

    @property
    def length(self) -> int:
        """Characters as shown."""
        return len(visible(self.text))


@dataclass(frozen=True)
class Grid:
    """A table: caption, column heads, which columns hold numbers, rows. The first cell of a row is its head."""

    id: str
    caption: str
    columns: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    @property
    def shown(self) -> tuple[tuple[Cell, ...], ...]:
        """The rows before the fold; one or two rows more than the limit are no reason to fold."""
        return self.rows if len(self.rows) <= ROWS_SHOWN + 2 else self.rows[:ROWS_SHOWN]

    @property
    def folded(self) -> tuple[tuple[Cell, ...], ...]:
        return self.rows[len(self.shown) :]


@dataclass(frozen=True)
class PictureView:
    title: str
    alt: str
    src: str
    note: str
    stamp: Stamp | None


@dataclass(frozen=True)
class SampleView:
    id: str
    facts: tuple[tuple[str, str], ...]
    pictures: tuple[PictureView, ...]


@dataclass(frozen=True)
class ExhibitView:
    """One exhibit: a drawing, a table or a gallery, always with its data as a table."""

    id: str
    kind: str
    title: str
    how_to_read: str
    alt: str
    caption: str
    stamp: Stamp | None
    svg: SvgText | None
    grid: Grid | None
    samples: tuple[SampleView, ...] = ()
    sample_mode: str = ""
    note: str = ""


@dataclass(frozen=True)
class FindingView:
    """One block of the report."""

    id: str
    letter: str
    code: str
    title: str
    status: str
    severity: str
    reason: str
    waiver: str
    summary: str
    headline: tuple[tuple[str, str], ...]
    metrics: Grid | None
    limits: Grid | None
    exhibits: tuple[ExhibitView, ...]
    lead: tuple[tuple[str, ExhibitView], ...]
    caveats: tuple[str, ...]
    missing: tuple[str, ...]
    questions: tuple[str, ...]
    help: tuple[tuple[str, str], ...]
    params: tuple[tuple[str, str], ...]
    criterion: str
    record: Finding


@dataclass
class Counters:
    """Ids are counters: no outside text ever becomes an id."""

    kinds: dict[str, Iterator[int]] = field(default_factory=dict)

    def next(self, kind: str) -> str:
        return f"{kind}-{next(self.kinds.setdefault(kind, itertools.count(1)))}"


@dataclass
class Pictures:
    """What the size of the page allows: pictures are dropped from the end, and counted.

    Once ``share_out`` was told of every grid, rows are dropped from the end of each: a long gallery does not take the place of the grids after it.
    """

    most: int = MOST_PICTURES
    most_bytes: int = 3 * 2**20
    kept: int = 0
    kept_bytes: int = 0
    dropped: int = 0
    rows: frozenset[int] | None = None
    "identities of the rows that are shown, None where nobody knows what comes"

    def share_out(self, grids: Sequence[ImageGrid]) -> None:
        """Give the room away row by row: the first rows of all grids, then the second ones. A grid ends at its first row that does not fit."""
        shown: set[int] = set()
        ended: set[int] = set()
        for place in range(max((len(grid.rows) for grid in grids), default=0)):
            for number, grid in enumerate(grids):
                if number in ended or place >= len(grid.rows):
                    continue
                sizes = [len(picture.png) for picture in grid.rows[place].pictures if picture.png]
                if self.kept + len(sizes) > self.most or self.kept_bytes + sum(sizes) > self.most_bytes:
                    ended.add(number)
                    continue
                self.kept, self.kept_bytes = self.kept + len(sizes), self.kept_bytes + sum(sizes)
                shown.add(id(grid.rows[place]))
        self.rows = frozenset(shown)

    def take(self, png: str) -> bool:
        if self.dropped or self.kept >= self.most or self.kept_bytes + len(png) > self.most_bytes:
            self.dropped += 1
            return False
        self.kept += 1
        self.kept_bytes += len(png)
        return True


def letter_of(finding: Finding) -> str:
    """The section of the report in which a finding is printed; checks of unknown sections stand in G."""
    if finding.code in _CALIBRATION:
        return "e"
    if finding.code in _ADAPTATION:
        return "c"
    return _LETTERS.get(finding.section, "g")


# ---- cells and grids ----------------------------------------------------------------------------------------------------------------------


def _cell_text(value: Any, format: str = "") -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        if format == "count":
            return numbers.count(value)
        if format == "share":
            return numbers.share(value)
        return numbers.count(value) if isinstance(value, int) else numbers.plain(value)
    if isinstance(value, (list, tuple)):
        if not value:
            return "none"
        if len(value) == 2 and all(isinstance(v, (int, float)) for v in value):
            joiner = " to " if min(value) < 0 else "–"
            return joiner.join(numbers.trimmed(v) for v in value)
        return ", ".join(_cell_text(v) for v in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_cell_text(v)}" for k, v in value.items())
    return str(value)


def _grid(
    ids: Counters,
    caption: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Cell | str]],
    *,
    numeric: Sequence[bool] = (),
    note: str = "",
) -> Grid:
    cells = tuple(tuple(c if isinstance(c, Cell) else Cell(c) for c in row) for row in rows)
    return Grid(ids.next("t"), caption, tuple(columns), tuple(numeric) or (False,) * len(columns), cells, note)


def _column(values: Sequence[Any], format: str = "number") -> list[str]:  # Any: values of one column
    """The cells of one column of numbers, all with the decimals that the most precise of them needs."""
    floats = [v for v in values if isinstance(v, float)]
    texts = [numbers.plain(v) for v in floats]
    if format not in ("number", "") or not floats or any("×" in t for t in texts):
        return [_cell_text(v, format) for v in values]
    places = max(len(t.partition(".")[2]) for t in texts)
    if places == 0:
        return [_cell_text(v, format) for v in values]
    return [numbers.number(v, places) if isinstance(v, (int, float)) and not isinstance(v, bool) else _cell_text(v, format) for v in values]


def _table_grid(ids: Counters, table: Table) -> Grid:
    columns = [f"{c.name} ({c.unit})" if c.unit else c.name for c in table.columns]
    texts = [_column([row[j] for row in table.rows], c.format) for j, c in enumerate(table.columns)]
    rows = [[Cell(texts[j][i]) for j in range(len(table.columns))] for i in range(len(table.rows))]
    empty = any(v is None for row in table.rows for v in row)
    return _grid(
        ids,
        table.title,
        columns,
        rows,
        numeric=[c.format != "text" for c in table.columns],
        note="– not defined or not applicable" if empty else "",
    )


def _numeric(value: Any) -> bool:  # Any: a value of a row
    if isinstance(value, (list, tuple)):
        return all(_numeric(v) for v in value)
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _data_grid(ids: Counters, exhibit: Exhibit) -> Grid:
    """The data of a chart as a table; columns that hold nothing are left out."""
    rows: list[dict[str, Any]]
    if isinstance(exhibit, Heatmap) and exhibit.text is not None:
        rows = [
            {exhibit.row_label: r, **{c: exhibit.text[i][j] for j, c in enumerate(exhibit.columns)}} for i, r in enumerate(exhibit.rows)
        ]
    elif isinstance(exhibit, Lines):
        rows = _points(exhibit)
    else:
        rows = exhibit.to_rows()
    keys = list(dict.fromkeys(key for row in rows for key in row))
    keys = [k for k in keys if any(row.get(k) not in (None, "", False, "plain") for row in rows)]
    columns = {k: [row.get(k) for row in rows] for k in keys}
    texts = {k: _column(values) for k, values in columns.items()}
    numeric = [all(_numeric(v) for v in values) for values in columns.values()]
    heads = [k if isinstance(exhibit, (Lines, Heatmap)) else k.replace("_", " ") for k in keys]
    return _grid(ids, f"Data of: {exhibit.title}", heads, [[texts[k][i] for k in keys] for i in range(len(rows))], numeric=numeric)


def _points(exhibit: Lines) -> list[dict[str, Any]]:
    """Curves side by side: one row per x, one column per curve and one per band."""
    rows: dict[float, dict[str, Any]] = {}
    names = [
        line.name if [other.name for other in exhibit.lines].count(line.name) == 1 else f"{line.name} ({i + 1})"
        for i, line in enumerate(exhibit.lines)
    ]
    for name, line in zip(names, exhibit.lines, strict=True):
        for i, x in enumerate(line.x):
            row = rows.setdefault(x, {})
            row[name] = line.y[i]
            if line.low is not None and line.high is not None:
                row[f"{name}, from–to"] = (line.low[i], line.high[i])
    for x, n in exhibit.counts or ():
        rows.setdefault(x, {})["n"] = n
    ticks = exhibit.x_ticks

    def name_of(x: float) -> str | float:
        return ticks[int(x)] if ticks is not None and float(x).is_integer() and 0 <= x < len(ticks) else x

    return [{exhibit.x_label: name_of(x), **rows[x]} for x in sorted(rows)]


def _largest_cells(ids: Counters, exhibit: Heatmap) -> Grid:
    """Of a grid with more than 20 classes: the 20 largest cells off the diagonal."""
    cells = [
        (value, row, column, i, j)
        for i, row in enumerate(exhibit.rows)
        for j, column in enumerate(exhibit.columns)
        if (value := exhibit.values[i][j]) is not None and row != column
    ]
    cells.sort(key=lambda c: (-c[0], c[3], c[4]))
    rows = [
        [Cell(row), Cell(column), Cell(exhibit.text[i][j] if exhibit.text is not None else numbers.significant(value, 3))]
        for value, row, column, i, j in cells[:20]
    ]
    return _grid(
        ids,
        f"{exhibit.title}: the {len(rows)} largest cells",
        [exhibit.row_label, exhibit.column_label, exhibit.value_label],
        rows,
        numeric=[False, False, True],
    )


# ---- exhibits -----------------------------------------------------------------------------------------------------------------------------


def picture_source(picture: Picture, where: str) -> str:
    """The data URI of a picture after a look at its bytes: PNG or WebP, and not huge."""
    try:
        data = base64.b64decode(picture.png or "", validate=True)
    except (binascii.Error, ValueError) as error:
        raise RecordError(f"{where}: a picture is not base64: the record was altered or is not ours") from error
    if len(data) > MOST_PICTURE_BYTES:
        raise RecordError(f"{where}: a picture has {len(data)} bytes, more than a report takes ({MOST_PICTURE_BYTES})")
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        kind = "png"
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        kind = "webp"
    else:
        raise RecordError(f"{where}: a picture is neither PNG nor WebP: the record was altered or is not ours")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


_LEFT_OUT = "left out for size"


def _samples(grid: ImageGrid, pictures: Pictures) -> tuple[tuple[SampleView, ...], int]:
    out, left_out = [], 0
    for row in grid.rows:
        views = []
        for picture in row.pictures:
            src, note = "", picture.note or ""
            if picture.png:
                src = picture_source(picture, f"exhibit {grid.id}")
                if not (pictures.take(picture.png) if pictures.rows is None else id(row) in pictures.rows):
                    src, note, left_out = "", _LEFT_OUT, left_out + 1
            views.append(PictureView(picture.title, picture.alt, src, note if src or note else "no picture", picture.stamp or grid.stamp))
        if not row.pictures or any(v.src or v.note != _LEFT_OUT for v in views):  # a row of empty frames says nothing
            out.append(SampleView(row.id, row.facts, tuple(views)))
    return tuple(out), left_out


def exhibit_view(exhibit: Exhibit, ids: Counters, pictures: Pictures) -> ExhibitView:
    """The view of one exhibit."""
    uid = ids.next("x")
    svg: SvgText | None = None
    grid: Grid | None = None
    samples: tuple[SampleView, ...] = ()
    mode = note = ""
    if isinstance(exhibit, Table):
        grid = _table_grid(ids, exhibit)
    elif isinstance(exhibit, ImageGrid):
        samples, left_out = _samples(exhibit, pictures)
        mode = exhibit.samples
        note = f"{left_out} {'picture' if left_out == 1 else 'pictures'} left out for size." if left_out else ""
    else:
        drawn = charts.draw(exhibit, uid)
        if drawn is None and isinstance(exhibit, Heatmap):
            grid = _largest_cells(ids, exhibit)
            note = f"More than {charts.MOST_HEATMAP_CLASSES} classes: the largest confusions instead of the whole grid, which is in report.json."
        else:
            svg = SvgText(drawn)
            grid = _data_grid(ids, exhibit)
    return ExhibitView(
        uid, exhibit.kind, exhibit.title, exhibit.how_to_read, exhibit.alt, exhibit.caption, exhibit.stamp, svg, grid, samples, mode, note
    )


# ---- findings -----------------------------------------------------------------------------------------------------------------------------


def _limits_of(metric: Metric, finding: Finding) -> list[LimitOutcome]:
    return [o for o in finding.limits if o.metric == metric.name and dict(o.slice) == dict(metric.slice)]


_OUTCOME_ORDER = {"broken": 0, "undecided": 1, "not_judged": 2, "met": 3}
OUTCOME_WORDS = {"broken": "broken", "met": "met", "undecided": "undecided", "not_judged": "not judged"}


def _rank(metric: Metric, finding: Finding) -> int:
    outcomes = _limits_of(metric, finding)
    return min((_OUTCOME_ORDER[o.outcome] for o in outcomes), default=4)


def _metrics_grid(finding: Finding, ids: Counters) -> Grid | None:
    metrics = [] if finding.measurement is None else list(finding.measurement.metrics)
    if not metrics:
        return None
    if len(metrics) > ROWS_SHOWN:
        metrics.sort(key=lambda m: _rank(m, finding))
    sliced = any(m.slice for m in metrics)
    tested = any(m.p_value is not None for m in metrics)
    chance = any(m.null is not None for m in metrics)
    levels = {m.confidence for m in metrics if m.interval is not None}
    head = numbers.confidence(levels.pop()) if len(levels) == 1 else "Interval"
    columns = [
        "Metric",
        *(["Slice"] if sliced else []),
        "Value",
        head,
        "n",
        *(["By chance"] if chance else []),
        *(["p", "p adjusted"] if tested else []),
        "Limit",
    ]
    without: dict[str, list[str]] = {}
    rows: list[list[Cell | str]] = []
    for m in metrics:
        outcomes = _limits_of(m, finding)
        row: list[Cell | str] = [m.name]
        if sliced:
            row.append(Cell(numbers.slice_words(m.slice) or "all", declared=True))
        if m.value is not None and m.interval is None and not m.exact and m.reason:
            without.setdefault(m.reason, []).append(m.name)
        row.append(numbers.value(m, outcomes))
        row.append(numbers.metric_interval(m, outcomes) or ("exact" if m.exact and m.value is not None else "–"))
        row.append(numbers.sample_size(m.n, m.clusters) or "–")
        if chance:
            row.append("–" if m.null is None else numbers.plain(m.null))
        if tested:
            row += ["–" if p is None else numbers.p_value(p) for p in (m.p_value, m.p_adjusted)]
        row.append(Cell("; ".join(f"{numbers.limit(o)} {OUTCOME_WORDS[o.outcome]}" for o in outcomes) or "none"))
        rows.append(row)
    note = " ".join(f"No interval for {', '.join(dict.fromkeys(names))}: {reason}." for reason, names in without.items())
    text = {"Metric", "Slice", "Limit"}
    return _grid(ids, f"{finding.code}: what was measured", columns, rows, numeric=[c not in text for c in columns], note=note)


def _same_limit(o: LimitOutcome) -> tuple[object, ...]:
    return (o.metric, o.level, o.bound, o.value, o.rule, o.origin, o.rationale, o.outcome, o.clauses)


def _bound_words(o: LimitOutcome) -> str:
    return f"{o.level} unless {numbers.bound(o)}"


def _why_limit(o: LimitOutcome) -> Cell:
    note = f"origin: {o.origin}; rule: {o.rule}" + (f"; clauses: {', '.join(o.clauses)}" if o.clauses else "")
    return Cell(o.rationale or "no rationale given", note=note)


def _limits_grid(finding: Finding, ids: Counters) -> Grid | None:
    if not finding.limits:
        return None
    rows: list[list[Cell | str]] = []
    outcomes = sorted(finding.limits, key=lambda o: _OUTCOME_ORDER[o.outcome]) if len(finding.limits) > ROWS_SHOWN else list(finding.limits)
    alike: dict[tuple[object, ...], int] = {}
    for o in outcomes:
        alike[_same_limit(o)] = alike.get(_same_limit(o), 0) + 1
    for o in outcomes:
        # Many slices that met one limit, or were not judged, share a row: each stands in the table of metrics with its own interval.
        together = alike.get(_same_limit(o), 0)
        if len(outcomes) > MOST_SINGLE_LIMITS and o.outcome in ("met", "not_judged"):
            if together == 0:
                continue
            if together > 1:
                alike[_same_limit(o)] = 0
                rows.append(
                    [
                        Cell(f"{o.metric}, {together} slices"),
                        _bound_words(o),
                        "each in the table above",
                        OUTCOME_WORDS[o.outcome],
                        _why_limit(o),
                    ]
                )
                continue
        where = numbers.slice_words(o.slice)
        against = "–"
        if o.interval_used is not None:
            low, high = o.interval_used
            places = numbers.decimals(None, low, high, numbers.edges([o]))
            against = f"{numbers.confidence(o.confidence_used)} {numbers.interval(low, high, places)}"
        if o.p_limit_adjusted is not None or o.p_limit is not None:
            p = o.p_limit_adjusted if o.p_limit_adjusted is not None else o.p_limit
            against += f"; p {numbers.p_value(p or 0.0)}" + (" adjusted" if o.p_limit_adjusted is not None else "")
        more = []
        if o.missing_n is not None:
            more.append(f"{numbers.count(o.missing_n)} more would settle it")
        if o.detectable is not None:
            more.append(f"smallest detectable {numbers.significant(o.detectable)}")
        if o.rule == "point":
            more.append("point rule, interval ignored")
        if o.note:
            more.append(o.note)
        rows.append(
            [
                Cell(o.metric + (f", {where}" if where else "")),
                _bound_words(o),
                against,
                Cell(OUTCOME_WORDS[o.outcome], note="; ".join(more)),
                _why_limit(o),
            ]
        )
    return _grid(ids, f"{finding.code}: limits of the policy", ["Metric", "Limit", "Held against", "Result", "Why this limit"], rows)


def headline_of(finding: Finding, source: str) -> tuple[tuple[str, str], ...]:
    """The numbers printed in words: those whose limits decided, else the first unsliced ones; three at most."""
    if finding.measurement is None:
        return ()
    metrics = finding.measurement.metrics
    chosen = sorted((m for m in metrics if m.value is not None and _limits_of(m, finding)), key=lambda m: _rank(m, finding))[:3]
    if not chosen:
        chosen = [m for m in metrics if not m.slice][:3] or list(metrics[:2])
    out = []
    for m in chosen:
        where = numbers.slice_words(m.slice)
        out.append((m.name + (f" ({where})" if where else ""), numbers.metric(m, _limits_of(m, finding), source=source)))
    return tuple(out)


HELP = (("measured", "How it is measured"), ("matters", "Why it matters"), ("reduce", "How to reduce the risk"))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def finding_view(finding: Finding, ids: Counters, pictures: Pictures, *, source: str) -> FindingView:
    """The view of one finding; ladders are set apart because §C shows them first."""
    views = [] if finding.measurement is None else [(e, exhibit_view(e, ids, pictures)) for e in finding.measurement.exhibits]
    own = letter_of(finding)
    promoted = [(_lead(e), v) for e, v in views if _lead(e) and own in ("c", "e")]
    kept = [v for e, v in views if not (_lead(e) and own in ("c", "e"))]
    waiver = ""
    if finding.waived_until:
        waiver = f"(waived until {finding.waived_until}" + (f", by {finding.waived_by})" if finding.waived_by else ")")
    settings = dict(finding.params)
    if finding.measurement is not None:
        settings.update(finding.measurement.params)
    decisive = sorted(finding.limits, key=lambda o: (_OUTCOME_ORDER[o.outcome], o.level != "fail"))
    return FindingView(
        id=ids.next("f"),
        letter=own,
        code=finding.code,
        title=finding.title,
        status=finding.status,
        severity=finding.severity,
        reason=finding.reason,
        waiver=waiver,
        summary="" if finding.measurement is None else finding.measurement.summary,
        headline=headline_of(finding, source),
        metrics=_metrics_grid(finding, ids),
        limits=_limits_grid(finding, ids),
        exhibits=tuple(kept),
        lead=tuple(promoted),
        caveats=() if finding.measurement is None else finding.measurement.caveats,
        missing=finding.missing,
        questions=finding.questions,
        help=tuple((label, _sentence(finding.help[key])) for key, label in HELP if finding.help.get(key)),
        params=tuple((str(k), _cell_text(v)) for k, v in sorted(settings.items())),
        criterion="" if not decisive else f"{decisive[0].metric} {numbers.bound(decisive[0])}",
        record=finding,
    )


def _lead(exhibit: Exhibit) -> str:
    """Under which heading of §C an exhibit is shown first: "ladder", "before", "controls"; empty for all others."""
    if isinstance(exhibit, Ladder):
        return "ladder"
    return {"before-after": "before", "controls": "controls"}.get(exhibit.id, "")


def _with_one_ladder(findings: Sequence[Finding]) -> list[Finding]:
    """The findings with their layer ladders joined into one, in the last of them: gradient, weights and features of a layer in one row."""
    held = [(f, e) for f in findings if f.measurement is not None for e in f.measurement.exhibits if isinstance(e, Ladder)]
    if len(held) < 2:
        return list(findings)
    last, drawn = held[-1]
    rows = {row.layer: row for row in drawn.rows}
    for _, ladder in held[:-1]:
        for row in ladder.rows:
            known = rows.get(row.layer)
            if known is None:
                rows[row.layer] = row
                continue
            own = known.model_dump()
            rows[row.layer] = known.model_copy(update={key: v for key, v in row if own[key] is None and v is not None})
    order = dict.fromkeys(row.layer for ladder in sorted((e for _, e in held), key=lambda e: -len(e.rows)) for row in ladder.rows)
    joined = drawn.model_copy(
        update={
            "rows": tuple(rows[layer] for layer in order),
            "title": " ".join(dict.fromkeys(e.title if e.title.endswith(".") else f"{e.title}." for _, e in held)),
            "alt": " ".join(dict.fromkeys(e.alt if e.alt.endswith(".") else f"{e.alt}." for _, e in held)),
            "how_to_read": "One row per layer, input on top: how strongly the target task pulls at its weights, how far they moved, "
            "and how far what it computes did.",
            "caption": " ".join(f"{f.code}: {e.caption}" for f, e in held),
        }
    )
    out = []
    for finding in findings:
        if finding.measurement is not None and any(finding is f for f, _ in held):
            kept = tuple(
                joined if e is drawn else e
                for e in finding.measurement.exhibits
                if not isinstance(e, Ladder) or (finding is last and e is drawn)
            )
            finding = finding.model_copy(update={"measurement": finding.measurement.model_copy(update={"exhibits": kept})})
        out.append(finding)
    return out


# ---- the page -----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TopFinding:
    finding: FindingView
    sentence: str
    number: str
    name: str


@dataclass(frozen=True)
class Absent:
    """Findings without a measurement that lack the same input."""

    what: str
    findings: tuple[FindingView, ...]
    status: str


@dataclass(frozen=True)
class Section:
    letter: str
    title: str
    findings: tuple[FindingView, ...]
    why_empty: str


@dataclass(frozen=True)
class Page:
    """Everything the templates need."""

    result: AuditResult
    record_hash: str
    report_hash: str
    sections: tuple[Section, ...]
    findings: tuple[FindingView, ...]
    counts: tuple[tuple[str, int], ...]
    top: tuple[TopFinding, ...]
    more_open: int
    absent: tuple[Absent, ...]
    waived: tuple[FindingView, ...]
    facts: Mapping[str, tuple[declared.Fact, ...]]
    declared_lists: Mapping[str, tuple[Mapping[str, str], ...]]
    signoff: Mapping[str, str]
    grids: Mapping[str, Grid | None]
    leads: Mapping[str, tuple[tuple[FindingView, ExhibitView], ...]]
    approved_before: str
    samples: str
    policy_text: str
    policy_source: str
    frameworks: tuple[str, ...]
    unmapped: tuple[str, ...]
    clause_maps: tuple[tuple[ClauseMap, Grid], ...]
    not_assessed_here: tuple[str, ...]
    moved: bool
    "whether any part of a shift was asked about and measured"
    register: tuple[FindingView, ...]
    pictures_dropped: int

    @property
    def draft(self) -> bool:
        return not (self.signoff.get("approver") and self.signoff.get("decision"))

    def section(self, letter: str) -> Section:
        return next(s for s in self.sections if s.letter == letter)

    def by_code(self, code: str) -> FindingView | None:
        return next((f for f in self.findings if f.code == code), None)


def _urgency(view: FindingView) -> tuple[int, int]:
    return WORST_FIRST.index(view.record.status), SEVERITIES.index(view.record.severity)


def _top(findings: Sequence[FindingView]) -> tuple[tuple[TopFinding, ...], int]:
    urgent = sorted((f for f in findings if f.status in ("fail", "error", "warn", "inconclusive", "review")), key=_urgency)
    out = []
    for view in urgent[:5]:
        numbered = headline_of(view.record, "") if view.status not in ("review", "error") else ()
        name, number = numbered[0] if numbered else ("", "")
        out.append(TopFinding(view, shorten(view.reason, 170), shorten(number, 130), shorten(name, 60)))
    return tuple(out), max(0, len(urgent) - len(out))


def _why(view: FindingView) -> str:
    """The reason without the status word that stands beside it."""
    return view.reason.removeprefix("not evaluated:").removeprefix("not assessed:").strip()


def _input(need: str) -> str:
    """A missing input in words: "source.labels" -> "labels of the source", "adapted@source" -> "adapted model on the source"."""
    if "|" in need:
        return " or ".join(map(_input, need.split("|")))
    if "@" in need:
        model, role = need.split("@", 1)
        return f"{_input(model)} on the {role}"
    if "." in need:
        owner, part = need.split(".", 1)
        return f"{part} of the {owner}"
    if need.startswith("control:"):
        return f"control {need.removeprefix('control:')}"
    return f"{need} model" if need in ("adapted", "base", "previous") else need


def _absent(findings: Sequence[FindingView]) -> tuple[Absent, ...]:
    """Not assessed: one line per finding, grouped by what is missing where there are more than six."""
    lacking = [f for f in findings if f.status in ("not_evaluated", "error")]
    if len(lacking) <= 6:
        return tuple(Absent(shorten(_why(f), 120), (f,), f.status) for f in lacking)
    groups: dict[tuple[str, str], list[FindingView]] = {}
    for f in lacking:
        what = "the check broke" if f.status == "error" else ", ".join(map(_input, f.missing)) if f.missing else shorten(_why(f), 90)
        groups.setdefault((f.status, what), []).append(f)
    return tuple(Absent(what, tuple(members), status) for (status, what), members in groups.items())


_WHY_EMPTY = {
    "c": "No check of adaptation or transfer was selected.",
    "d": "No check of data or shift was selected.",
    "e": "No check of performance or calibration was selected.",
    "f": "No check of groups was selected.",
    "g": "No check of robustness, integrity or privacy was selected.",
    "h": "No check of explanations was selected.",
    "i": "No check of declarations and governance was selected.",
}


def _hash_cell(sha256: str | None, *, whole: bool = True) -> Cell:
    return Cell("none" if not sha256 else sha256 if whole else sha256[:12], code=True)


def _model_cells(card: ModelCard) -> list[Cell | str]:
    return [
        Cell(card.key),
        Cell(card.name, declared=True),
        card.arch or "–",
        _hash_cell(card.sha256, whole=False),
        card.file_format or "–",
        "–" if card.parameters is None else numbers.count(card.parameters),
        "–" if card.trainable is None else numbers.count(card.trainable),
        Cell(
            f"same as {card.same_as}"
            if card.same_as
            else (f"{len(card.classes)}: {shorten(', '.join(card.classes), 120)}" if card.classes else "–"),
            declared=bool(card.classes),
        ),
    ]


def _domain_cells(card: DomainCard) -> list[Cell | str]:
    return [
        Cell(card.role),
        Cell(card.name, declared=True),
        card.kind,
        numbers.count(card.n),
        "–" if card.clusters is None else numbers.count(card.clusters),
        ("labelled" if card.labelled else "no labels")
        + _values_cell(card.values)
        + (f"; {shorten(', '.join(f'{k}: {numbers.count(v)}' for k, v in card.class_counts.items()), 160)}" if card.class_counts else ""),
        numbers.count(card.unreadable),
        _hash_cell(card.sha256, whole=False),
    ]


def _taken_cells(card: DomainCard) -> list[Cell | str]:
    """Time span, periods, and the samples of each site."""
    sites = ", ".join(f"{name}: {n if isinstance(n, str) else numbers.count(n)}" for name, n in card.sites.items())
    return [
        Cell("–") if card.time_span is None else Cell(" to ".join(dict.fromkeys(card.time_span)), declared=True),
        "–" if card.periods is None else numbers.count(card.periods),
        Cell(f"{numbers.count(len(card.sites))}; {shorten(sites, 240)}", declared=True) if card.sites else Cell("–"),
    ]


def _values_cell(card: ValueCard | None) -> str:
    """ "; 142 numbers, mean 151.3, SD 77.09 points"; nothing where labels are classes."""
    if card is None:
        return ""
    spread = "" if card.mean is None or card.sd is None else f", mean {numbers.significant(card.mean)}, SD {numbers.significant(card.sd)}"
    return f"; {numbers.count(card.n)} numbers{spread}" + (f" {card.unit}" if card.unit else "")


def _flat(data: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted keys; lists of plain values on one line."""
    if isinstance(data, Mapping) and data:
        return [row for key in sorted(data, key=str) for row in _flat(data[key], f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(data, (list, tuple)) and any(isinstance(v, (Mapping, list, tuple)) for v in data):
        return [row for i, value in enumerate(data) for row in _flat(value, f"{prefix}[{i}]")]
    if isinstance(data, (list, tuple)):
        return [(prefix, ", ".join(_raw(v) for v in data) or "none")]
    return [(prefix, _raw(data))]


def _raw(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "none"
    return str(value) if not isinstance(value, str) else value or "empty"


def _differences(findings: Sequence[FindingView], ids: Counters, *, controls: bool) -> Grid | None:
    """Paired differences of adapted and another model on the same samples, as the checks recorded them."""
    rows: list[list[Cell | str]] = []
    for view in findings:
        if view.record.measurement is None or view.letter not in ("c", "e"):
            continue
        for m in view.record.measurement.metrics:
            wanted = (
                m.name.startswith(("gain_over_", "mae_gain_over_")) and not m.name.endswith("_scaled") and view.record.section == "transfer"
                if controls
                else m.name.endswith("_change") and view.record.section in ("performance", "transfer")
            )
            if not wanted:
                continue
            rows.append(
                [
                    m.name.removeprefix("mae_").removeprefix("gain_over_").replace("_", " ")
                    if controls
                    else m.name.removesuffix("_change").replace("_", " "),
                    Cell(numbers.slice_words(m.slice) or "all", declared=True),
                    numbers.value(m, _limits_of(m, view.record))
                    if m.value is not None
                    else Cell("not defined", note=shorten(m.reason or "", 140)),
                    numbers.metric_interval(m, _limits_of(m, view.record)) or "–",
                    "–"
                    if m.p_adjusted is None and m.p_value is None
                    else numbers.p_value(m.p_adjusted if m.p_adjusted is not None else m.p_value or 0.0),
                    numbers.sample_size(m.n, m.clusters) or "–",
                    # a row without a value has no part in the finding's status
                    Cell(view.code, href=f"#{view.id}", status=view.status if m.value is not None else ""),
                ]
            )
    if not rows:
        return None
    caption = "Adapted minus control, on the same target samples" if controls else "Adapted against another model, on the same samples"
    return _grid(
        ids,
        caption,
        ["Control" if controls else "Metric", "Of", "Paired difference", "Interval", "p", "n", "Finding"],
        rows,
        numeric=[False, False, True, True, True, True, False],
    )


def _decomposition(findings: Sequence[FindingView], ids: Counters) -> Grid:
    rows: list[list[Cell | str]] = []
    harm = "Whether it does harm was not measured: TLA509 is not part of this audit."
    for part, code, names in DECOMPOSITION:
        view = next((f for f in findings if f.code == code), None)
        if view is None:
            rows.append([part, "not measured", "–", "–", "–", "–", "–", Cell(f"{code} is not part of this audit")])
            continue
        link = Cell(view.code, href=f"#{view.id}", status=view.status)
        found = [one for name in names if (one := _furthest(view.record, name)) is not None]
        if part == HARM:
            harm = f"Harm (TLA509): {view.summary}" if found else f"Whether it does harm was not measured: {_why(view)}"
        if not found:
            rows.append([part, Cell("not measured", note=shorten(_why(view), 140)), "–", "–", "–", "–", "–", link])
        for i, (m, among) in enumerate(found):
            outcomes = _limits_of(m, view.record)
            p = m.p_adjusted if m.p_adjusted is not None else m.p_value
            where = numbers.slice_words(m.slice)
            rows.append(
                [
                    part if i == 0 else Cell(""),
                    Cell(names[m.name], note=f"{where}, furthest from chance of {among}" if among > 1 else where),
                    numbers.value(m, outcomes) if m.value is not None else Cell("not defined", note=shorten(m.reason or "", 140)),
                    numbers.metric_interval(m, outcomes) or "–",
                    "–" if m.null is None else numbers.plain(m.null),
                    "–" if p is None else numbers.p_value(p),
                    numbers.sample_size(m.n, m.clusters) or "–",
                    link if i == 0 else "",
                ]
            )
    return _grid(
        ids,
        "Which part of the data moved",
        ["Part", "Measured by", "Effect", "Interval", "By chance", "p", "n", "Finding"],
        rows,
        numeric=[False, False, True, True, True, True, True, False],
        note=harm,
    )


def _furthest(finding: Finding, name: str) -> tuple[Metric, int] | None:
    """The number of that name that speaks for the whole finding, and among how many it was picked; None where there is none.

    The one without a slice; else the one furthest from what chance gives. Numbers in features of another model judge nothing and are passed over.
    """
    if finding.measurement is None:
        return None
    found = [m for m in finding.measurement.metrics if m.name == name and "features" not in m.slice]
    whole = [m for m in found if not m.slice]
    if whole or not found:
        return (whole[0], 1) if whole else None
    return max(found, key=lambda m: -math.inf if m.value is None else abs(m.value - (m.null or 0.0))), len(found)


def _recipe(result: AuditResult, ids: Counters) -> dict[str, Grid]:
    """Recipe, stages and cost from the adaptation record; what it does not say is 'not recorded'."""
    record = result.subject.adaptation
    if not record:
        return {}

    def say(key: str) -> str:
        value = record.get(key)
        return "not recorded" if value in (None, "", [], {}, ()) else _cell_text(value)

    facts = [
        ("Base", say("base_id")), ("Revision of the base", say("base_revision")), ("File format of the base", say("base_format")),
        ("Method", say("method")), ("Trainable share", numbers.share(record["trainable_share"]) if record.get("trainable_share") is not None else "not recorded"),
        ("Head", say("head")), ("Classes", say("classes")), ("Setting", say("setting")), ("Task", say("task")), ("Training", say("training")),
        ("Seeds", say("seeds")),
    ]  # fmt: skip
    flops = record.get("flops") or {}
    cost = [
        ("Wall time", f"{numbers.count(record['seconds'])} s" if record.get("seconds") is not None else "not recorded"),
        ("Device", say("device")),
        ("Compute", _cell_text(flops) if flops else "not counted"),
        ("Energy", "not measured"),
    ]
    out = {
        "recipe": _grid(ids, "How the model was adapted", ["Fact", "Recorded"], [[a, b] for a, b in facts]),
        "cost": _grid(ids, "What the adaptation cost", ["Fact", "Recorded"], [[a, b] for a, b in cost]),
    }
    stages = record.get("stages") or ()
    if stages:
        rows = [
            [
                _cell_text(s.get("name")), _cell_text(s.get("layers")), _cell_text(s.get("epochs")), _cell_text(s.get("lr")), _cell_text(s.get("optimiser")),
                _cell_text(s.get("schedule")), _cell_text(s.get("trainable_parameters")), _cell_text(s.get("best_epoch")) + (", stopped early" if s.get("stopped_early") else ""),
            ]
            for s in stages
        ]  # fmt: skip
        out["stages"] = _grid(
            ids, "Stages, in order", ["Stage", "Layers", "Epochs", "Rate", "Optimiser", "Schedule", "Trainable", "Best epoch"], rows,
            numeric=[False, False, True, True, False, False, True, True],
        )  # fmt: skip
    return out


_GRIDS = (
    "models",
    "domains",
    "taken",
    "groups",
    "recipe",
    "stages",
    "cost",
    "differences",
    "controls",
    "decomposition",
    "caveats",
    "clauses",
    "environment",
    "hashes",
    "config",
    "seconds",
    "rules",
)


def _grids(result: AuditResult, findings: Sequence[FindingView], ids: Counters) -> dict[str, Grid | None]:
    subject = result.subject
    out: dict[str, Grid | None] = dict.fromkeys(_GRIDS)
    models = [m for m in (subject.adapted, subject.base, subject.previous, *subject.controls) if m is not None]
    if models:
        out["models"] = _grid(
            ids, "Models that were run", ["Role", "Name", "Architecture", "SHA-256", "Format", "Parameters", "Trainable", "Classes"],
            [_model_cells(m) for m in models], numeric=[False, False, False, False, False, True, True, False],
        )  # fmt: skip
    domains = [d for d in (subject.source, subject.target, subject.train, subject.validation, subject.ood) if d is not None]
    if domains:
        out["domains"] = _grid(
            ids, "Data sets", ["Role", "Name", "Kind", "n", "Clusters", "Labels", "Unreadable", "SHA-256"],
            [_domain_cells(d) for d in domains], numeric=[False, False, False, True, True, False, True, False],
        )  # fmt: skip
    taken: list[list[Cell | str]] = [[Cell(d.role), *_taken_cells(d)] for d in domains if d.time_span is not None or d.sites]
    if taken:
        out["taken"] = _grid(
            ids, "When and where the samples were taken", ["Data", "Time", "Periods", "Sites"], taken, numeric=[False, False, True, False]
        )
    groups: list[list[Cell | str]] = [
        [Cell(d.role), Cell(column, declared=True), Cell(value, declared=True), n if isinstance(n, str) else numbers.count(n)]
        for d in domains
        for column, values in d.groups.items()
        for value, n in values.items()
    ]
    if groups:
        out["groups"] = _grid(ids, "Group counts", ["Data", "Column", "Group", "n"], groups, numeric=[False, False, False, True])
    out.update(_recipe(result, ids))
    for name, controls in (("differences", False), ("controls", True)):
        grid = _differences(findings, ids, controls=controls)
        if grid is not None:
            out[name] = grid
    out["decomposition"] = _decomposition(findings, ids)
    caveats = [[Cell(f.code, href=f"#{f.id}"), Cell(caveat)] for f in findings for caveat in f.caveats]
    caveats = [[Cell("whole audit"), Cell(c)] for c in result.caveats] + caveats
    if caveats:
        out["caveats"] = _grid(ids, "Caveats of all findings", ["Finding", "Caveat"], caveats)
    clauses = [
        [Cell(clause), Cell(f"{o.metric} {numbers.bound(o)}"), Cell(f.code, href=f"#{f.id}")]
        for f in findings
        for o in f.record.limits
        for clause in o.clauses
    ]
    if clauses:
        out["clauses"] = _grid(ids, "Clauses named beside limits of the policy", ["Clause", "Limit", "Finding"], clauses)
    hashes = [(f"{m.key}, {m.name}", f"weights ({m.hash_of})" if m.hash_of else "weights", m.sha256) for m in models]
    hashes += [(f"{d.role}, {d.name}", "data", d.sha256) for d in domains]
    for key, what in (("base_sha256", "original file of the base"), ("plan_sha256", "plan of the adaptation")):
        if subject.adaptation.get(key):
            hashes.append(("adaptation record", what, str(subject.adaptation[key])))
    if hashes:
        out["hashes"] = _grid(
            ids,
            "SHA-256 of what was audited",
            ["Input", "Of", "SHA-256"],
            [[Cell(a, declared=True), Cell(b), _hash_cell(c)] for a, b, c in hashes],
        )
    out["environment"] = _grid(ids, "Environment", ["Fact", "Value"], [[Cell(k), Cell(v)] for k, v in _flat(result.environment) if k])
    out["config"] = _grid(ids, "Configuration", ["Key", "Value"], [[Cell(k), Cell(v)] for k, v in _flat(result.config) if k])
    out["seconds"] = _grid(
        ids, "Time per check", ["Check", "Seconds"],
        [[Cell(f.code, href=f"#{f.id}"), "–" if f.record.seconds is None else numbers.number(f.record.seconds, 2)] for f in findings], numeric=[False, True],
    )  # fmt: skip
    policy = result.policy.resolved
    rules = policy.get("rules") if isinstance(policy, Mapping) else None
    if isinstance(rules, Mapping):
        out["rules"] = _grid(ids, "Rules of the policy", ["Rule", "Value"], [[Cell(k), Cell(v)] for k, v in _flat(rules)])
    return out


def _clause_grid(found: ClauseMap, views: Sequence[FindingView], ids: Counters) -> Grid:
    """One row per clause, with a link to the first finding that speaks to it."""
    at = {v.code: v.id for v in views}
    rows: list[list[Cell | str]] = []
    for row in found.rows:
        first = row.findings[0] if row.findings else ""
        others = f" and {len(row.findings) - 1} more" if len(row.findings) > 1 else ""
        rows.append(
            [
                Cell(row.clause),
                Cell(row.summary, note=row.note or ""),
                Cell(row.state),
                Cell(f"{first}{others}" if first else "–", href=f"#{at[first]}" if first in at else ""),
                Cell(", ".join(row.owed) or "–"),
                Cell("yes" if row.verified else "no"),
            ]
        )
    return _grid(
        ids,
        found.framework.title,
        ["Clause", "What it asks for, in our words", "State", "Findings", "A person still owes", "Checked"],
        rows,
    )


def _policy_text(policy: Mapping[str, Any]) -> str:
    """The resolved policy as JSON with one line per entry of a list, so that sixty limits take three pages and not twelve."""

    def compact(value: Any) -> str:  # Any: plain JSON values
        return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)

    parts = []
    for key in sorted(policy):
        value = policy[key]
        if isinstance(value, (list, tuple)) and value and all(isinstance(v, Mapping) for v in value):
            text = "[\n" + ",\n".join(f"    {compact(v)}" for v in value) + "\n  ]"
        else:
            text = compact(value)
        parts.append(f"  {compact(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}"


def _approved_before(result: AuditResult) -> str:
    if not result.policy.approved_by or not result.policy.approved_on:
        return "unknown"
    return "yes" if result.policy.approved_on[:10] <= result.created[:10] else "no"


def build(result: AuditResult, *, record_hash: str, report_hash: str, pictures: Pictures | None = None) -> Page:
    """The views of a record, in the order in which the page prints them."""
    ids, pictures = Counters(), pictures if pictures is not None else Pictures()
    source = f"policy {result.policy.id} v{result.policy.version}"
    ordered = sorted(enumerate(_with_one_ladder(result.findings)), key=lambda item: (letter_of(item[1]), item[1].code, item[0]))
    pictures.share_out([x for _, f in ordered if f.measurement for x in f.measurement.exhibits if isinstance(x, ImageGrid)])
    views = tuple(finding_view(f, ids, pictures, source=source) for _, f in ordered)
    sections = []
    for letter, title in SECTION_TITLES.items():
        own = tuple(v for v in views if v.letter == letter)
        sections.append(Section(letter, title, own, "" if own else _WHY_EMPTY.get(letter, "")))
    missing = result.outcome.declarations_missing
    top, more = _top(views)
    frameworks = result.policy.resolved.get("frameworks") or ()
    measured = {f.code for f in result.findings if f.measurement is not None}
    maps, unmapped = clause_maps(result, [str(f) for f in frameworks], missing)
    return Page(
        result=result,
        record_hash=record_hash,
        report_hash=report_hash,
        sections=tuple(sections),
        findings=views,
        counts=tuple((s, int(result.outcome.counts.get(s, 0))) for s in STATUSES),
        top=top,
        more_open=more,
        absent=_absent(views),
        waived=tuple(v for v in views if v.waiver),
        facts={block: declared.facts(block, result.declared, missing) for block in declared.FACTS},
        declared_lists={key: declared.entries(key, result.declared) for key in declared.LISTS},
        signoff=declared.signoff(result.declared),
        grids=_grids(result, views, ids),
        leads={place: tuple((v, e) for v in views for at, e in v.lead if at == place) for place in ("ladder", "before", "controls")},
        approved_before=_approved_before(result),
        samples=str(result.config.get("samples", "off")),
        policy_text=_policy_text(result.policy.resolved),
        policy_source=source,
        frameworks=tuple(str(f) for f in frameworks),
        unmapped=unmapped,
        clause_maps=tuple((one, _clause_grid(one, views, ids)) for one in maps),
        not_assessed_here=tuple(topic for topic, codes in NOT_ASSESSED_HERE if not measured.intersection(codes)),
        moved=any(f.code == code and f.measurement is not None for f in result.findings for _, code, _ in DECOMPOSITION),
        register=tuple(sorted((v for v in views if v.status in ("fail", "warn", "inconclusive", "review", "error")), key=_urgency)),
        pictures_dropped=pictures.dropped,
    )
