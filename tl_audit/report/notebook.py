"""Views for notebooks: plain HTML without script and without inline SVG, so that untrusted, hosted and static viewers keep every number.

Drawings are pictures (``<img src="data:image/svg+xml;base64,...">``) with their own ground; style rules stand under ``.tl-audit``.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tl_audit.records.base import Displayable
from tl_audit.records.exhibits import ExhibitBase, ImageGrid, Intervals, Table
from tl_audit.records.findings import STATUSES, AuditResult, Finding
from tl_audit.report import numbers
from tl_audit.report.html import STATUS_WORDS, environment, read_css, squeeze
from tl_audit.report.page import Cell, Counters, ExhibitView, Grid, Pictures, build, exhibit_view, finding_view, headline_of
from tl_audit.report.strips import ranked, scatter, strips
from tl_audit.report.text import shorten, visible
from tl_audit.report.view import AuditReport

__all__ = [
    "MOST_SAMPLES",
    "attribution_fragment",
    "comparison_fragment",
    "fragment",
    "importance_fragment",
    "picture_uri",
    "standalone",
]

MOST_SAMPLES = 16
MOST_TABLE_SAMPLES = 8
"""Rows of a table whose columns are compared one by one: each takes a screen."""
SIGNS = {
    "pass": "●", "warn": "▲", "fail": "⬣", "inconclusive": "◐", "review": "◇", "info": "□", "not_evaluated": "◌", "error": "☒",
}  # fmt: skip
"""Shapes of statuses where no drawing can stand."""


def _light() -> dict[str, str]:
    """The colour variables of the light theme."""
    block = read_css("theme.css").split("}", 1)[0]
    return dict(re.findall(r"(--[\w-]+):\s*([^;]+);", block))


def standalone(svg: str) -> str:
    """A drawing as a file of its own: name space, size, opaque ground, colours written out (viewers of pictures read no variables)."""
    css = _written(read_css("charts.css") + (read_css("notebook/strips.css") if 'class="bee' in svg else ""))
    found = re.match(r'<svg class="chart" viewBox="0 0 (\d+) ([\d.]+)"', svg)
    if found is None:
        raise ValueError("not a drawing of ours")
    width, height = found.groups()
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" class="chart" viewBox="0 0 {width} {height}"'
    head, rest = svg[found.end() :].split(">", 1)
    return f'{opening}{head}><style>{css}</style><rect width="100%" height="100%" fill="{_light()["--ground"]}"/>{rest}'


def picture_uri(svg: str) -> str:
    """A drawing as the source of an ``<img>``."""
    return "data:image/svg+xml;base64," + base64.b64encode(standalone(svg).encode("utf-8")).decode("ascii")


def _written(css: str) -> str:
    """A style sheet with the light theme's colours in place of variables: viewers of notebooks and pictures read none."""
    colours = _light()
    return re.sub(r"var\((--[\w-]+)\)", lambda m: colours[m.group(1)], squeeze(css))


def _render(name: str, *, counters: Counters | None = None, **values: Any) -> str:  # Any: what the template prints
    """A fragment with its own style and drawings as pictures; on a page of ours, without style and with drawings in place."""
    style = "" if counters is not None else _written(read_css("notebook.css"))
    return (
        environment()
        .get_template(name)
        .render(signs=SIGNS, words=STATUS_WORDS, style=style, uri=picture_uri, inline=counters is not None, **values)
    )


def fragment(record: Displayable | AuditReport) -> str:
    """The notebook view of an audit, a finding or an exhibit.

    Raises
    ------
    TypeError : a record that has no view
    """
    ids, pictures = Counters(), Pictures()
    if isinstance(record, AuditReport):
        return _audit(record.result, str(record.path) if record.path is not None else "")
    if isinstance(record, AuditResult):
        return _audit(record, "")
    if isinstance(record, Finding):
        return _render("notebook/finding.html", f=finding_view(record, ids, pictures, source="the policy"))
    if isinstance(record, ExhibitBase):
        return _render("notebook/exhibit.html", x=exhibit_view(record, ids, pictures))  # type: ignore[arg-type]  # every kind of the union is an ExhibitBase
    raise TypeError(f"{type(record).__name__} has no notebook view")


def _audit(result: AuditResult, path: str) -> str:
    # Pictures and drawings other than the ladder are not shown here: a summary stays small.
    page = build(result, record_hash="", report_hash="", pictures=Pictures(most=0))
    ladder: ExhibitView | None = next((x for _, x in page.leads["ladder"]), None)
    return _render("notebook/audit.html", page=page, result=result, ladder=ladder, path=path, statuses=STATUSES)


def attribution_fragment(  # Any: attribution.base.Attribution; report may not import it
    attribution: Any, labels: Sequence[Sequence[str]] | None = None, *, page: Counters | None = None
) -> str:
    """The notebook view of attributions: per sample the input and the map over it with its colour scale, or bars of its columns; the stamp of the method.

    Parameters
    ----------
    attribution : read by its attributes alone: ``values``, ``player_values``, ``targets``, ``target_names``, ``against``, ``method``, ``signed``, ``layer``,
        ``layer_reason``, ``seed``, ``budget``, ``params``, ``completeness``, ``standard_error``, ``blank``, ``quality``, ``caveats``, and ``inputs`` with ``tensor``,
        ``ids``, ``modality``, ``spec``, ``players``
    labels : per sample the names of its parts with their readings ("bmi = 32.1"); None: the names alone
    page : the id counters of a page that this is a part of; None: a fragment of its own, with its style
    """
    from tl_audit.report import maps  # needs numpy, which pages of records do without

    total = len(attribution.targets)
    samples = maps.attribution_samples(attribution, MOST_SAMPLES, labels, page or Counters())
    named = getattr(attribution.inputs.players, "names", None) is not None
    many = " importance() of these maps sums up all of them." if named and page is None else ""
    return _render(
        "notebook/attribution.html",
        counters=page,
        a=attribution,
        samples=samples,
        count=_count(len(samples), total),
        reading=maps.reading_words(attribution),
        unit=maps.unit_words(attribution),
        many=f"{total - len(samples)} more samples are not shown here.{many}" if total > len(samples) else "",
    )


def comparison_fragment(  # Any: attribution.comparison.Comparison
    comparison: Any, labels: Sequence[Sequence[str]] | None = None, *, page: Counters | None = None
) -> str:
    """Maps of the same samples beside each other: base, adapted and their signed difference on one scale, or several methods each on its own."""
    from tl_audit.report import maps  # needs numpy, which pages of records do without

    sides: dict[str, Any] = dict(comparison.maps)
    first = next(iter(sides.values()))
    ids = page or Counters()
    total = len(first.targets)
    samples = maps.comparison_samples(comparison, MOST_SAMPLES if first.values.ndim == 3 else MOST_TABLE_SAMPLES, labels, ids)
    stamps = [(name, one.quality) for name, one in sides.items()]
    units = {name: maps.unit_words(one) for name, one in sides.items()}
    alike = len(set(units.values())) == 1
    reading = " ".join(dict.fromkeys(maps.reading_words(one) for one in sides.values()))
    if comparison.difference is not None and first.values.ndim == 3:
        reading += (
            f" {comparison.names[1]} \u2212 {comparison.names[0]} is drawn on the same scale, 0 in white: pale means that little changed."
        )
    return _render(
        "notebook/comparison.html",
        counters=page,
        title=" | ".join(comparison.names) + (" | difference" if comparison.difference is not None else "") + _by(sides),
        count=_count(len(samples), total),
        made=[(name, maps.made_words(one)) for name, one in sides.items()],
        stamps=stamps,
        any_stamp=any(stamp for _, stamp in stamps),
        reading=reading,
        unit=next(iter(units.values())) if alike else "; ".join(f"{name}: {words.rstrip('.')}" for name, words in units.items()) + ".",
        likeness=_likeness(comparison, ids),
        reason=comparison.reason if len(sides) == 2 else "",
        samples=samples,
        many=f"{total - len(samples)} more samples are not shown here." if total > len(samples) else "",
    )


def _by(sides: Mapping[str, Any]) -> str:  # Any: Attribution
    """What follows the names: the method, where all maps are of one that their names do not tell."""
    methods = {one.method for one in sides.values()}
    return f", by {methods.pop()}" if len(methods) == 1 and not methods & set(sides) else ""


def importance_fragment(  # Any: attribution.importance.Importance
    importance: Any, dependence: Sequence[str] | None = None, change: Intervals | None = None, *, page: Counters | None = None
) -> str:
    """Global importance: bars against chance, strips of all rows, the dependence of some columns (None: of the first), the table.

    ``importance`` is read by its attributes and methods alone; ``change`` sets it beside that of another model.
    """
    from tl_audit.report import maps  # needs numpy, which pages of records do without

    ids = page or Counters()
    bars, table = importance.exhibits()
    columns = importance.strips()
    drawn = len(columns[0].values)
    first = importance.columns[0].name
    return _render(
        "notebook/importance.html",
        counters=page,
        rows=numbers.count(importance.n),
        method=importance.maps.method,
        caption=importance.caption,
        targets=importance.targets,
        quality=importance.maps.quality,
        unit=maps.unit_words(importance.maps),
        bars=bars,
        ranked=ranked(
            importance.columns[: len(columns)],
            importance.chance,
            ids.next("x"),
            title=bars.title,
            alt=bars.alt,
            value_label=bars.value_label,
        ),
        bars_more=f"The {len(columns)} first of {len(importance.columns)} columns." if len(columns) < len(importance.columns) else "",
        strips=strips(
            columns, ids.next("x"), title="Attributions of every row", alt=f"Dots per column, {first} first", value_label="attribution"
        ),
        strips_alt=f"One strip of dots per column; {first} spreads widest on average",
        drawn=f"{drawn} of {numbers.count(importance.n)} rows are drawn" if drawn < importance.n else "",
        change=None if change is None else exhibit_view(change, ids, Pictures()),
        dependences=[_dependence(importance, name, ids) for name in ([first] if dependence is None else dependence)],
        table=exhibit_view(table, ids, Pictures()),
        caveats=importance.maps.caveats,
    )


def _dependence(importance: Any, name: str, ids: Counters) -> dict[str, Any]:  # Any: what a template prints
    found = importance.dependence(name)
    title = f"How the attribution of {name} goes with its value"
    if found.categories is None:
        how = "each dot is a row; the line is the local mean of the attribution at that value, the band its 95 % interval (pointwise); no line where fewer than five rows speak."
        method = (
            f"Local-linear mean, Gaussian kernel of {numbers.plain(found.bandwidth)} in the column's unit"
            if len(found.grid)
            else "One value only: no line"
        )
    else:
        how = "each dot is a row; the square is the mean of a category, the line its 95 % interval."
        method = "Means with t intervals"
    missing = f"; {found.missing} rows without a value are left out" if found.missing else ""
    return {
        "title": title,
        "how": how,
        "svg": scatter(
            found, ids.next("x"), title=title, alt=f"Attribution of {name} against its value", value_label=f"attribution of {name}"
        ),
        "alt": f"Attribution of {name} against its own value, {found.n} rows",
        "caption": f"n = {numbers.count(found.n)}{missing}. {method}.",
    }


def _count(shown: int, total: int) -> str:
    return f"{shown} of {total} {'sample' if total == 1 else 'samples'}"


def _likeness(comparison: Any, ids: Counters) -> Grid:
    """Mean rank correlation of every pair of maps, with interval, n and chance."""
    rows = []
    for a, b in comparison.pairs:
        mean = comparison.mean_rank_correlation(a, b)
        interval = mean.interval()
        places = 2 if interval is None else max(2, numbers.decimals(mean.value, *interval))
        rows.append(
            (
                Cell(f"{a} and {b}"),
                Cell("not defined" if mean.value is None else numbers.number(mean.value, places)),
                Cell(mean.reason or "none" if interval is None else numbers.interval(interval[0], interval[1], places)),
                Cell(numbers.count(mean.n)),
                Cell("0"),
            )
        )
    heads = ("maps", "rank correlation", "95 % interval", "n", "by chance")
    return Grid(
        ids.next("t"),
        "Mean rank correlation of the parts (1: the same order)",
        heads,
        (False, True, True, True, True),
        tuple(rows),
    )


def plain(record: Displayable) -> str:
    """A record as at most 20 lines of plain text: what ``repr`` shows."""
    if isinstance(record, AuditResult):
        return repr(AuditReport(record))
    if isinstance(record, Finding):
        lines = [f"{record.code} {shorten(record.title, 120)}: {STATUS_WORDS[record.status]}", shorten(record.reason, 400)]
        lines += [visible(f"  {name}: {number}") for name, number in headline_of(record, "the policy")]
        if record.exhibits:
            lines.append("  exhibits: " + ", ".join(record.exhibits))
        return "\n".join(line if len(line) <= 300 else line[:299] + "…" for line in lines[:20])
    if isinstance(record, ExhibitBase):
        size = len(record.rows) if isinstance(record, (Table, ImageGrid)) else len(record.to_rows())
        return f"{type(record).__name__} {record.id}: {shorten(record.title, 200)} ({size} rows; .to_frame() gives them)\n{shorten(record.alt, 400)}"
    return object.__repr__(record)
