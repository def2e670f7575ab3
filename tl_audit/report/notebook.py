"""Views for notebooks: plain HTML without script and without inline SVG, so that untrusted, hosted and static viewers keep every number.

Drawings are pictures (``<img src="data:image/svg+xml;base64,...">``) with their own ground; style rules stand under ``.tl-audit``.
"""

from __future__ import annotations

import base64
import re
from typing import Any

from tl_audit.records.base import Displayable
from tl_audit.records.exhibits import Bars, ExhibitBase, ImageGrid, Picture, Table
from tl_audit.records.findings import STATUSES, AuditResult, Finding
from tl_audit.report.html import STATUS_WORDS, environment, read_css, squeeze
from tl_audit.report.page import Counters, ExhibitView, Pictures, build, exhibit_view, finding_view, headline_of, picture_source
from tl_audit.report.text import shorten, visible
from tl_audit.report.view import AuditReport

__all__ = ["MOST_SAMPLES", "attribution_fragment", "fragment", "picture_uri", "standalone"]

MOST_SAMPLES = 16
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
    colours = _light()
    css = re.sub(r"var\((--[\w-]+)\)", lambda m: colours[m.group(1)], squeeze(read_css("charts.css")))
    found = re.match(r'<svg class="chart" viewBox="0 0 (\d+) ([\d.]+)"', svg)
    if found is None:
        raise ValueError("not a drawing of ours")
    width, height = found.groups()
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" class="chart" viewBox="0 0 {width} {height}"'
    head, rest = svg[found.end() :].split(">", 1)
    return f'{opening}{head}><style>{css}</style><rect width="100%" height="100%" fill="{colours["--ground"]}"/>{rest}'


def picture_uri(svg: str) -> str:
    """A drawing as the source of an ``<img>``."""
    return "data:image/svg+xml;base64," + base64.b64encode(standalone(svg).encode("utf-8")).decode("ascii")


def _style() -> str:
    return squeeze(read_css("notebook.css"))


def _render(name: str, **values: Any) -> str:  # Any: what the template prints
    return environment().get_template(name).render(signs=SIGNS, words=STATUS_WORDS, style=_style(), uri=picture_uri, **values)


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


def attribution_fragment(attribution: Any) -> str:  # Any: attribution.base.Attribution; report may not import it
    """The notebook view of attributions: per sample the input, the map over it (or bars of its columns), the stamp of the method.

    ``attribution`` is read by its attributes alone: ``values``, ``player_values``, ``targets``, ``target_names``, ``method``, ``signed``, ``layer``,
    ``layer_reason``, ``seed``, ``budget``, ``completeness``, ``blank``, ``quality``, ``caveats``, and ``inputs`` with ``tensor``, ``ids``, ``modality``, ``spec``, ``players``.
    """
    inputs, total = attribution.inputs, len(attribution.targets)
    samples: list[dict[str, Any]] = []
    for i in range(min(total, MOST_SAMPLES)):
        shown: list[Picture] = []
        bars: ExhibitView | None = None
        own = inputs.modality.picture(inputs.tensor[i], inputs.spec, title="input")
        over = inputs.modality.map_picture(
            inputs.tensor[i], attribution.values[i], inputs.spec, title=str(attribution.method), signed=bool(attribution.signed)
        )
        shown += [p for p in (own, over) if p is not None]
        if over is None:
            marks = inputs.modality.map_bars(attribution.values[i], inputs.players, i)
            title = f"What moved the output of {inputs.ids[i]}"
            exhibit = Bars(
                id="columns", title=title, how_to_read="Bars to the right raised the output, bars to the left lowered it.",
                alt=_bar_words(marks), caption=f"{attribution.method}, seed {attribution.seed}", value_label="attribution", bars=marks, signed=bool(attribution.signed),
            )  # fmt: skip
            bars = exhibit_view(exhibit, Counters(), Pictures())
        name = str(attribution.target_names[i]) if attribution.target_names is not None else f"output {int(attribution.targets[i])}"
        residual = None if attribution.completeness is None else float(attribution.completeness[i])
        samples.append(
            {
                "id": str(inputs.ids[i]),
                "target": name,
                "pictures": [(p, _png_uri(p)) for p in shown],
                "bars": bars,
                "blank": bool(attribution.blank[i]) if len(attribution.blank) > i else False,
                "residual": "" if residual is None else f"{residual:.3g}".replace("-", "\u2212"),
            }
        )
    return _render("notebook/attribution.html", a=attribution, samples=samples, total=total, shown=len(samples))


def _bar_words(bars: tuple[Any, ...]) -> str:  # Any: records.exhibits.Bar
    have = sorted((b for b in bars if b.value is not None), key=lambda b: -abs(b.value))[:3]
    return "Largest: " + ", ".join(f"{b.label} {b.value:.3g}" for b in have) if have else "No column has an attribution."


def _png_uri(picture: Picture) -> str:
    return picture_source(picture, "attribution") if picture.png else ""


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
