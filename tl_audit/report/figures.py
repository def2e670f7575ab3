"""Figures for papers and slides: exhibits, attributions, comparisons and importances drawn by matplotlib. The only place that needs it.

Nothing global is touched: no backend is chosen, no style is set, pyplot is not loaded. What a figure shows stands in the record.
"""

from __future__ import annotations

import base64
import csv
import io
import itertools
import json
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tl_audit.errors import ConfigError
from tl_audit.records.base import Displayable
from tl_audit.records.colours import colour_table
from tl_audit.records.exhibits import Bars, ExhibitBase, Heatmap, ImageGrid, Intervals, Ladder, LadderRow, Lines, Table
from tl_audit.records.findings import Finding
from tl_audit.report import maps, numbers
from tl_audit.report.charts import group_layers
from tl_audit.report.notebook import standalone
from tl_audit.report.page import Counters, Pictures, exhibit_view
from tl_audit.report.strips import swarm
from tl_audit.report.text import shorten, visible
from tl_audit.report.writing import write_whole

__all__ = ["attribution_figure", "comparison_figure", "dependence_figure", "figure", "importance_figure", "png_bytes", "save_exhibit"]

SERIES = ("#0072b2", "#d55e00", "#007f5f", "#e69f00", "#cc79a7", "#56b4e9")
MARKS = ("o", "s", "^", "D", "P", "v")
INK, DIM, RULE, NULL = "#1a1f24", "#4f5a65", "#d5dae0", "#dfe3e8"
DPI = 150
MOST_SAMPLES = 8
MOST_TABLE_ROWS = 40


def _matplotlib() -> Any:  # Any: matplotlib is no dependency
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as error:
        raise ConfigError("figures need matplotlib, which is not installed: pip install matplotlib") from error
    return matplotlib


def _figure(width: float, height: float) -> Any:  # Any: a matplotlib figure
    """A figure that no pyplot window knows of; text is never read as mathematics."""
    return _matplotlib().figure.Figure(figsize=(width, height), layout="constrained", facecolor="white", dpi=DPI)


def png_bytes(drawn: Any) -> bytes:  # Any: a matplotlib figure
    """The figure as a PNG without metadata of its making."""
    file = io.BytesIO()
    drawn.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


def _t(text: object, most: int = 60) -> str:
    """Outside text as matplotlib shows it: one line, cut, unseen characters visible, dollar signs no mathematics."""
    return shorten(visible(str(text)), most).replace("\\", "\\\\").replace("$", r"\$")


def _clean(ax: Any) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(RULE)
    ax.tick_params(colors=DIM, labelsize=9)


def _titled(drawn: Any, title: str, caption: str, how: str = "") -> None:
    """Title above and words below, broken where the figure ends."""
    width = drawn.get_window_extent().width / drawn.get_figure(root=True).dpi
    drawn.suptitle(_broken(_t(title, 180), int(width * 10.5)), x=0.01, ha="left", fontsize=12, color=INK, fontweight="bold")
    words = "  ".join(w for w in (how, caption) if w)
    if words:
        drawn.supxlabel(_broken(_t(words, 520), int(width * 17)), x=0.01, ha="left", fontsize=8, color=DIM)


def _broken(text: str, most: int) -> str:
    return "\n".join(textwrap.wrap(text, width=max(20, most), break_long_words=True))


def figure(record: Displayable) -> Any:  # Any: a matplotlib figure
    """An exhibit, or all exhibits of a finding that can be drawn, as a matplotlib figure.

    Raises
    ------
    ConfigError : matplotlib is not installed
    TypeError : a record that has no figure
    """
    if isinstance(record, Finding):
        return _finding(record)
    if not isinstance(record, ExhibitBase):
        raise TypeError(f"{type(record).__name__} has no figure")
    width, height = _size(record)
    drawn = _figure(width, height)
    _draw(drawn, record)
    _titled(drawn, record.title, record.caption, f"How to read: {record.how_to_read}")
    return drawn


def save_exhibit(exhibit: ExhibitBase, path: Path) -> Path:
    """One exhibit as .png, .svg (the report's own drawing), .csv or .json; see ``ExhibitBase.save``."""
    suffix = path.suffix.lower()
    if suffix == ".png":
        data = png_bytes(figure(exhibit))
    elif suffix == ".svg":
        svg = exhibit_view(exhibit, Counters(), Pictures()).svg  # type: ignore[arg-type]  # every kind of the union is an ExhibitBase
        if svg is None:
            raise ConfigError(f"{path.name}: a {type(exhibit).__name__} is no drawing; save it as .png, .csv or .json")
        data = standalone(svg).encode()
    elif suffix == ".csv":
        data = _csv(exhibit.to_rows())
    elif suffix == ".json":
        data = (json.dumps(exhibit.model_dump(mode="json"), sort_keys=True, indent=2, ensure_ascii=True, allow_nan=False) + "\n").encode()
    else:
        raise ConfigError(f"{path.name}: the suffix decides the format; there are .png, .svg, .csv, .json")
    if path.is_symlink():
        raise ConfigError(f"{path} is a link; nothing is written through links. Remove it or choose another place")
    try:
        write_whole(path, data)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror})") from error
    return path


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    """Rows for spreadsheets: text that a spreadsheet would run as a formula gets a leading apostrophe."""
    file = io.StringIO()
    heads = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.writer(file, lineterminator="\n")
    table: list[list[Any]] = [[*heads], *([row.get(name) for name in heads] for row in rows)]  # Any: cells of any kind
    for cells in table:
        writer.writerow([f"'{c}" if isinstance(c, str) and c[:1] in ("=", "+", "-", "@", "\t", "\r") else c for c in cells])
    return file.getvalue().encode("utf-8", "backslashreplace")


def _finding(finding: Finding) -> Any:
    exhibits = list(finding.exhibits.values())
    if not exhibits:
        raise ConfigError(f"{finding.code} has no exhibit to draw: {finding.reason}")
    sizes = [_size(e) for e in exhibits]
    whole = _figure(max(w for w, _ in sizes), sum(h for _, h in sizes))
    parts = whole.subfigures(len(exhibits), 1, height_ratios=[h for _, h in sizes], squeeze=False)
    for part, exhibit in zip(parts[:, 0], exhibits, strict=True):
        part.set_facecolor("white")
        _draw(part, exhibit)
        _titled(part, exhibit.title, exhibit.caption)
    return whole


def _size(exhibit: ExhibitBase) -> tuple[float, float]:
    """Inches that an exhibit needs."""
    if isinstance(exhibit, Bars):
        return 8.0, 1.6 + 0.28 * len(exhibit.bars)
    if isinstance(exhibit, Intervals):
        return 8.0, 1.6 + 0.3 * len(exhibit.dots)
    if isinstance(exhibit, Heatmap):
        return max(6.5, 2.6 + 0.62 * len(exhibit.columns)), max(3.2, 1.8 + 0.45 * len(exhibit.rows))
    if isinstance(exhibit, Ladder):
        return 9.0, 1.8 + 0.28 * len(group_layers(exhibit.rows))
    if isinstance(exhibit, ImageGrid):
        columns = max((len(r.pictures) for r in exhibit.rows), default=1)
        return max(5.0, 1.9 * columns), 1.2 + 2.2 * max(1, len(exhibit.rows))
    if isinstance(exhibit, Table):
        return max(6.0, 1.3 * len(exhibit.columns)), 1.2 + 0.21 * min(len(exhibit.rows), MOST_TABLE_ROWS)
    return 8.0, 5.0


def _draw(drawn: Any, exhibit: ExhibitBase) -> None:
    if isinstance(exhibit, Bars):
        _bars(drawn.subplots(), exhibit)
    elif isinstance(exhibit, Lines):
        _lines(drawn, exhibit)
    elif isinstance(exhibit, Heatmap):
        _heatmap(drawn, exhibit)
    elif isinstance(exhibit, ImageGrid):
        _pictures(drawn, exhibit)
    elif isinstance(exhibit, Intervals):
        _intervals(drawn.subplots(), exhibit)
    elif isinstance(exhibit, Ladder):
        _ladder(drawn, exhibit)
    elif isinstance(exhibit, Table):
        _table(drawn.subplots(), exhibit)
    else:
        raise TypeError(f"{type(exhibit).__name__} has no figure")


# ---- one function per kind ------------------------------------------------------------------------------------------------------------------


def _bars(ax: Any, exhibit: Bars) -> None:
    series = list(dict.fromkeys(b.series for b in exhibit.bars))
    for y, bar in enumerate(exhibit.bars):
        if bar.value is None:
            ax.text(0.01, y, _t(bar.note or "not computed"), transform=ax.get_yaxis_transform(), va="center", fontsize=8, color=DIM)
            continue
        colour = (
            SERIES[1 if bar.value >= 0 else 0] if exhibit.signed and len(series) == 1 else SERIES[series.index(bar.series) % len(SERIES)]
        )
        ax.barh(y, bar.value, height=0.66, color="white" if bar.state == "frozen" else colour, edgecolor=INK, linewidth=0.6)
        if bar.interval is not None:
            ax.plot(bar.interval, [y, y], color=INK, linewidth=1.4, solid_capstyle="butt")
        if bar.null is not None:
            ax.plot([bar.null, bar.null], [y - 0.42, y + 0.42], color=INK, linewidth=2.2)
    named = len(series) > 1
    ax.set_yticks(range(len(exhibit.bars)), [_t(f"{b.label}, {b.series}" if named else b.label, 34) for b in exhibit.bars])
    ax.invert_yaxis()
    values = [b.value for b in exhibit.bars if b.value is not None]
    if exhibit.log and values and min(values) > 0:
        ax.set_xscale("log")
    else:
        ax.axvline(0, color=DIM, linewidth=0.8)
    ax.set_xlabel(
        _t(exhibit.value_label + ("; tick: what chance gives" if any(b.null is not None for b in exhibit.bars) else ""), 90), fontsize=9
    )
    _clean(ax)


def _lines(drawn: Any, exhibit: Lines) -> None:
    if exhibit.counts:
        ax, below = drawn.subplots(2, 1, sharex=True, height_ratios=[5, 1])
        xs = [x for x, _ in exhibit.counts]
        step = min((b - a for a, b in itertools.pairwise(xs) if b > a), default=0.1)
        below.bar(xs, [n for _, n in exhibit.counts], width=0.7 * step, color=DIM)
        below.set_ylabel("n", fontsize=9)
        _clean(below)
    else:
        ax = below = drawn.subplots()
    for low, high in exhibit.shaded:
        ax.axvspan(low, high, color="#eceff2", zorder=0)
    k = 0
    for line in exhibit.lines:
        y = [math.nan if v is None else v for v in line.y]
        colour = SERIES[k % len(SERIES)] if line.role == "data" else DIM
        if line.low is not None and line.high is not None:
            ax.fill_between(
                line.x,
                line.low,
                line.high,
                color=NULL if line.role == "null" else colour,
                alpha=1.0 if line.role == "null" else 0.18,
                linewidth=0,
            )
        style = {"data": "-", "null": "--", "reference": ":"}[line.role]
        mark = MARKS[k % len(MARKS)] if line.role == "data" and (line.mark == "dot" or len(line.x) < 12) else None
        ax.plot(
            line.x,
            y,
            style,
            color=colour,
            marker=mark,
            markersize=4,
            linewidth=1.6 if line.role == "data" else 1.0,
            label=_t(line.name, 40),
        )
        k += line.role == "data"
    if exhibit.x_ticks:
        below.set_xticks(range(len(exhibit.x_ticks)), [_t(n, 18) for n in exhibit.x_ticks], rotation=45, ha="right")
    if exhibit.x_range is not None:
        ax.set_xlim(*exhibit.x_range)
    if exhibit.y_range is not None:
        ax.set_ylim(*exhibit.y_range)
    below.set_xlabel(_t(exhibit.x_label), fontsize=9)
    ax.set_ylabel(_t(exhibit.y_label), fontsize=9)
    ax.legend(frameon=False, fontsize=8, loc="best")
    _clean(ax)


def _colour_map(signed: bool) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("tl_audit", [tuple(c / 255 for c in rgb) for rgb in colour_table(signed)])


def _heatmap(drawn: Any, exhibit: Heatmap) -> None:
    ax = drawn.subplots()
    values = np.array([[math.nan if v is None else v for v in row] for row in exhibit.values], dtype=float).reshape(
        len(exhibit.rows), len(exhibit.columns)
    )
    have = values[np.isfinite(values)]
    low, high = exhibit.value_range or (float(have.min()) if have.size else 0.0, float(have.max()) if have.size else 1.0)
    if exhibit.signed:
        high = max(abs(low), abs(high)) or 1.0
        low = -high
    shown = ax.imshow(values, cmap=_colour_map(exhibit.signed), vmin=low, vmax=high if high > low else low + 1.0, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        words = (
            exhibit.text[i][j] if exhibit.text is not None else ("–" if not math.isfinite(value) else numbers.significant(float(value), 2))
        )
        star = " *" if exhibit.stars is not None and exhibit.stars[i][j] else ""
        red, green, blue = shown.cmap(shown.norm(value))[:3] if math.isfinite(value) else (1.0, 1.0, 1.0)
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        ax.text(j, i, _t(words + star, 14), ha="center", va="center", fontsize=8, color="white" if dark else INK)
    slanted = len(exhibit.columns) > 6 or max((len(c) for c in exhibit.columns), default=0) > 8
    names = [_t(c, 18) for c in exhibit.columns]
    ax.set_xticks(range(len(names)), names, rotation=40 if slanted else 0, ha="right" if slanted else "center")
    ax.set_yticks(range(len(exhibit.rows)), [_t(r, 18) for r in exhibit.rows])
    ax.set_xlabel(_t(exhibit.column_label), fontsize=9)
    ax.set_ylabel(_t(exhibit.row_label), fontsize=9)
    ax.tick_params(colors=DIM, labelsize=9)
    drawn.colorbar(shown, ax=ax, label=_t(exhibit.value_label), shrink=0.8)


def _pictures(drawn: Any, exhibit: ImageGrid) -> None:
    columns = max((len(r.pictures) for r in exhibit.rows), default=1) or 1
    axes = drawn.subplots(max(1, len(exhibit.rows)), columns, squeeze=False)
    for ax in axes.reshape(-1):
        ax.set_axis_off()
    for i, row in enumerate(exhibit.rows):
        for j, picture in enumerate(row.pictures):
            _picture(
                axes[i, j],
                picture.png,
                "\n".join(_t(w, 30) for w in (f"{row.id}  {picture.title}" if j == 0 else picture.title, picture.note) if w),
            )
            if picture.png is None:
                axes[i, j].text(
                    0.5,
                    0.5,
                    _t(picture.note or "no picture", 30),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=DIM,
                    transform=axes[i, j].transAxes,
                )


def _picture(ax: Any, png: str | None, title: str) -> None:
    ax.set_title(title, fontsize=8, color=INK, loc="left")
    if png is None:
        return
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        ax.imshow(np.asarray(image.convert("RGB")), interpolation="nearest")


def _intervals(ax: Any, exhibit: Intervals) -> None:
    series = list(dict.fromkeys(dot.series for dot in exhibit.dots))
    if exhibit.null_band is not None:
        ax.axvspan(*exhibit.null_band, color=NULL, zorder=0)
    for reference in exhibit.references:
        ax.axvline(
            reference.value,
            color="#b3261e" if reference.role == "limit" else DIM,
            linestyle="-" if reference.role == "limit" else "--",
            linewidth=1.0,
        )
        ax.text(reference.value, 1.01, _t(reference.label, 30), transform=ax.get_xaxis_transform(), fontsize=8, color=DIM, ha="center")
    changes = {c.label: c for c in exhibit.changes}
    labels = []
    for y, dot in enumerate(exhibit.dots):
        n = "" if dot.n is None or dot.suppressed else f"  n = {dot.n}"
        labels.append(_t(", ".join(w for w in (dot.label, dot.series) if w) or "all", 34) + n)
        if dot.value is None or dot.suppressed:
            words = dot.note or ("suppressed" if dot.suppressed else "not defined")
            ax.text(0.01, y, _t(words, 70), transform=ax.get_yaxis_transform(), va="center", fontsize=8, color=DIM)
            continue
        k = series.index(dot.series)
        if dot.interval is not None:
            ax.plot(dot.interval, [y, y], color=SERIES[k % len(SERIES)], linewidth=2.2)
        hollow = dot.hollow or dot.series.lower() == "base"
        ax.plot(
            [dot.value],
            [y],
            MARKS[k % len(MARKS)],
            color=SERIES[k % len(SERIES)],
            markerfacecolor="white" if hollow else SERIES[k % len(SERIES)],
            markersize=7,
        )
        if dot.null is not None:
            ax.plot([dot.null, dot.null], [y - 0.35, y + 0.35], color=INK, linewidth=2.0)
        change = changes.pop(dot.label, None) if y + 1 == len(exhibit.dots) or exhibit.dots[y + 1].label != dot.label else None
        if change is not None and change.value is not None:
            words = f"Δ {numbers.significant(change.value)}"
            if change.interval is not None:
                words += f" ({numbers.interval(*change.interval, numbers.decimals(change.value, *change.interval))})"
            ax.text(1.01, y, words, transform=ax.get_yaxis_transform(), va="center", fontsize=8, color=INK)
    ax.set_yticks(range(len(exhibit.dots)), labels)
    ax.set_ylim(len(exhibit.dots) - 0.5, -0.5)
    ax.set_xlabel(_t(exhibit.value_label), fontsize=9)
    _clean(ax)


def _ladder(drawn: Any, exhibit: Ladder) -> None:
    rows: Sequence[LadderRow] = group_layers(exhibit.rows)
    lanes = [("gradient activity", "gradient_activity", True), ("weight change", "weight_change", True), ("CKA drift", "cka_drift", False)]
    lanes = [lane for lane in lanes if any(getattr(r, lane[1]) is not None for r in rows)] or lanes[:1]
    axes = drawn.subplots(1, len(lanes), sharey=True, squeeze=False)[0]
    for ax, (name, key, log) in zip(axes, lanes, strict=True):
        for y, row in enumerate(rows):
            value = getattr(row, key)
            if value is None:
                continue
            colour = "#b3261e" if row.frozen_but_changed else SERIES[0]
            if key == "cka_drift":
                if row.cka_interval is not None:
                    ax.plot(row.cka_interval, [y, y], color=SERIES[0], linewidth=2)
                if row.cka_null is not None:
                    ax.plot([row.cka_null] * 2, [y - 0.35, y + 0.35], color=INK, linewidth=2)
                ax.plot([value], [y], "o", color=SERIES[0])
            elif value > 0:
                ax.barh(y, value, height=0.6, color=colour, edgecolor=INK, linewidth=0.5)
        if log and any((getattr(r, key) or 0) > 0 for r in rows):
            ax.set_xscale("log")
        ax.set_xlabel(name, fontsize=9)
        _clean(ax)
    words = [f"{r.layer} ({'changed!' if r.frozen_but_changed else r.state})" for r in rows]
    axes[0].set_yticks(range(len(rows)), [_t(w, 44) for w in words])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)


def _table(ax: Any, exhibit: Table) -> None:
    ax.set_axis_off()

    def cell(value: object, form: str) -> str:
        if value is None:
            return "–"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return _t(value, 40)
        if form == "count":
            return numbers.count(value)
        return numbers.share(value) if form == "share" else numbers.significant(float(value))

    shown = [[cell(v, c.format) for v, c in zip(row, exhibit.columns, strict=True)] for row in exhibit.rows[:MOST_TABLE_ROWS]]
    left = len(exhibit.rows) - len(shown)
    if left > 0:
        shown.append([f"{left} more rows", *[""] * (len(exhibit.columns) - 1)])
    if not shown:
        ax.text(0, 1, "no rows", fontsize=9, color=DIM, va="top", transform=ax.transAxes)
        return
    drawn = ax.table(
        cellText=shown, colLabels=[_t(c.name, 24) for c in exhibit.columns], loc="upper left", cellLoc="left", edges="horizontal"
    )
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(8.5)
    drawn.auto_set_column_width(list(range(len(exhibit.columns))))


# ---- attributions: read by their attributes alone ---------------------------------------------------------------------------------------------


def attribution_figure(
    attribution: Any, labels: Sequence[Sequence[str]] | None = None
) -> Any:  # Any: attribution.base.Attribution -> a matplotlib figure
    """The first eight samples: input and map with its colour bar, or bars of the columns that counted most."""
    total = len(attribution.targets)
    samples = maps.attribution_samples(attribution, MOST_SAMPLES, labels, Counters())
    drawn = _samples_figure(attribution, samples, labels)
    caption = (
        f"{len(samples)} of {total} samples; {maps.made_words(attribution)}; {_stamp(attribution)}. Values: {maps.unit_words(attribution)}"
    )
    _titled(drawn, f"Attributions by {attribution.method}", caption)
    return drawn


def _stamp(attribution: Any) -> str:
    return "quality not checked" if attribution.quality is None else str(attribution.quality.text)


def _samples_figure(attribution: Any, samples: Sequence[Any], labels: Sequence[Sequence[str]] | None) -> Any:
    if np.asarray(attribution.values).ndim == 3:
        columns = 4 if len(samples) > 1 else 2
        rows = math.ceil(2 * len(samples) / columns)
        drawn = _figure(1.9 * columns + 0.6, 2.2 * rows + 0.9)
        axes = drawn.subplots(rows, columns, squeeze=False).reshape(-1)
        for ax in axes:
            ax.set_axis_off()
        for i, sample in enumerate(samples):
            row_input = attribution.inputs.modality.picture(attribution.inputs.tensor[i], attribution.inputs.spec, title="input")
            if row_input is not None:
                _picture(axes[2 * i], row_input.png, _t(f"{sample.id}: {sample.target}", 28))
            _map_axes(
                drawn, axes[2 * i + 1], attribution, i, maps.drawn_values(attribution, i), str(attribution.method), None, blank=sample.blank
            )
        return drawn
    drawn = _figure(8.0, sum(1.3 + 0.26 * _marks(attribution) for _ in samples) + 0.8)
    axes = drawn.subplots(max(1, len(samples)), 1, squeeze=False)[:, 0]
    for i, (ax, sample) in enumerate(zip(axes, samples, strict=True)):
        if sample.blank:
            ax.set_axis_off()
            ax.text(0, 0.5, "no signal", transform=ax.transAxes, color=DIM)
        else:
            _bars(ax, maps.column_bars(attribution, i, None if labels is None else labels[i])[0])
        ax.set_title(_t(f"{sample.id}: {sample.target}", 70), fontsize=9, loc="left", color=INK)
    return drawn


def _marks(attribution: Any) -> int:
    return int(min(maps.MOST_BARS, np.asarray(attribution.values).shape[1]))


def _map_axes(
    drawn: Any,
    ax: Any,
    attribution: Any,
    i: int,
    values: np.ndarray[Any, Any],
    title: str,
    scale: tuple[float, float] | None,
    *,
    blank: bool,
    signed: bool | None = None,
) -> None:
    """One overlay with a colour bar beside it; without signal the grey picture and the words."""
    sign = bool(attribution.signed) if signed is None else signed
    ends = scale if scale is not None else (None if blank else maps.map_scale([values], signed=sign))
    inputs = attribution.inputs
    picture = inputs.modality.map_picture(
        inputs.tensor[i], values, inputs.spec, title=title, signed=sign, side=224, scale=ends, outlines=maps.part_outlines(attribution, i)
    )
    note = "" if picture is None or picture.note is None else f" ({picture.note})"
    _picture(ax, None if picture is None else picture.png, _t(title + note, 34))
    if ends is not None and picture is not None and picture.note != "no signal":
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        bar = drawn.colorbar(
            ScalarMappable(Normalize(*ends), _colour_map(sign)), ax=ax, shrink=0.8, ticks=[ends[0], 0.0, ends[1]] if sign else list(ends)
        )
        bar.ax.set_yticklabels([numbers.significant(t, 2) for t in ([ends[0], 0.0, ends[1]] if sign else list(ends))], fontsize=7)


def comparison_figure(comparison: Any, labels: Sequence[Sequence[str]] | None = None) -> Any:  # Any: attribution.comparison.Comparison
    """The first eight samples, one row each: input, every map, and the difference on the same scale."""
    sides: dict[str, Any] = dict(comparison.maps)
    first = next(iter(sides.values()))
    count = min(MOST_SAMPLES, len(first.targets))
    samples = maps.comparison_samples(comparison, count, labels, Counters())
    title = " | ".join(sides) + (" | difference" if comparison.difference is not None else "")
    if np.asarray(first.values).ndim == 3:
        columns = 1 + len(sides) + (comparison.difference is not None)
        drawn = _figure(2.3 * columns + 0.4, 2.2 * count + 0.9)
        axes = drawn.subplots(count, columns, squeeze=False)
        for ax in axes.reshape(-1):
            ax.set_axis_off()
        for i, sample in enumerate(samples):
            own = first.inputs.modality.picture(first.inputs.tensor[i], first.inputs.spec, title="input")
            if own is not None:
                _picture(axes[i, 0], own.png, _t(f"{sample.id}: {sample.target}", 26))
            for j, (one, values, name, scale, signed, blank) in enumerate(maps.panels(comparison, i), 1):
                _map_axes(drawn, axes[i, j], one, i, values, name, scale, blank=blank, signed=signed)
    else:
        bars = [maps.columns_beside(comparison, i, None if labels is None else labels[i])[0] for i in range(count)]
        drawn = _figure(8.0, sum(1.2 + 0.26 * len(b.bars) for b in bars) + 0.8)
        for ax, b, sample in zip(drawn.subplots(count, 1, squeeze=False)[:, 0], bars, samples, strict=True):
            _bars(ax, b)
            ax.set_title(_t(f"{sample.id}: {sample.target}", 70), fontsize=9, loc="left", color=INK)
    made = "; ".join(f"{name}: {maps.made_words(one)}, {_stamp(one)}" for name, one in sides.items())
    _titled(drawn, title, f"{count} of {len(first.targets)} samples; {made}")
    return drawn


def importance_figure(importance: Any) -> Any:  # Any: attribution.importance.Importance
    """Bars of mean |value| against chance beside the strips of all rows, the same columns in the same order."""
    columns = importance.strips()
    drawn = _figure(11.0, 1.6 + 0.5 * len(columns))
    left, right = drawn.subplots(1, 2, sharey=True, width_ratios=[2, 3])
    figures = {c.name: c.mean_absolute for c in importance.columns}
    for y, column in enumerate(columns):
        estimate = figures[column.name]
        left.barh(y, estimate.value, height=0.6, color=SERIES[0], edgecolor=INK, linewidth=0.5)
        interval = estimate.interval()
        if interval is not None:
            left.plot(interval, [y, y], color=INK, linewidth=1.4)
    left.axvline(importance.chance, color=INK, linewidth=1.2, linestyle="--")
    left.set_xlabel("mean |value|, 95 % interval; dashed: by chance", fontsize=9)
    left.set_yticks(range(len(columns)), [_t(c.name, 26) for c in columns])
    left.set_ylim(len(columns) - 0.5, -0.5)
    span = max((float(np.abs(c.values).max()) for c in columns if len(c.values)), default=1.0) or 1.0
    for y, column in enumerate(columns):
        places = np.array(swarm([float(v) for v in column.values], step=span / 60, most=5))
        known = np.isfinite(column.shade)
        right.scatter(
            column.values[known],
            y + places[known] * 0.07,
            c=column.shade[known],
            cmap=_colour_map(False),
            vmin=0,
            vmax=1,
            s=11,
            edgecolors=INK,
            linewidths=0.25,
        )
        right.scatter(column.values[~known], y + places[~known] * 0.07, facecolors="white", edgecolors=DIM, s=11, linewidths=0.6)
    right.axvline(0, color=DIM, linewidth=0.8)
    right.set_xlabel("attribution; dark: low value of the column itself, light: high, hollow: missing", fontsize=9)
    for ax in (left, right):
        _clean(ax)
    _titled(
        drawn,
        f"What counted, by {importance.maps.method}",
        f"{importance.caption} Explained: {importance.targets}; {_stamp(importance.maps)}.",
    )
    return drawn


def dependence_figure(found: Any) -> Any:  # Any: attribution.importance.Dependence
    """A column's own value against its attribution, with the local mean and its band, or the mean of each category."""
    drawn = _figure(7.0, 4.5)
    ax = drawn.subplots()
    ax.axhline(0, color=DIM, linewidth=0.8)
    if found.categories is None:
        ax.scatter(found.readings, found.values, s=12, color=SERIES[0], alpha=0.45, linewidths=0)
        if len(found.grid):
            ax.fill_between(found.grid, found.low, found.high, color=SERIES[1], alpha=0.2, linewidth=0)
            ax.plot(found.grid, found.mean, color=SERIES[1], linewidth=2)
    else:
        for k, estimate in enumerate(found.means):
            mine = found.values[found.readings == k]
            ax.scatter(np.full(len(mine), k), mine, s=12, color=SERIES[0], alpha=0.3, linewidths=0)
            interval = estimate.interval()
            if interval is not None:
                ax.plot([k, k], interval, color=SERIES[1], linewidth=2.4)
            if estimate.value is not None:
                ax.plot([k], [estimate.value], "s", color=SERIES[1])
        ax.set_xticks(range(len(found.categories)), [_t(c, 18) for c in found.categories])
    ax.set_xlabel(_t(found.name), fontsize=9)
    ax.set_ylabel(_t(f"attribution of {found.name}"), fontsize=9)
    _clean(ax)
    _titled(
        drawn,
        f"How the attribution of {found.name} goes with its value",
        f"n = {found.n}" + (f", {found.missing} missing" if found.missing else ""),
    )
    return drawn
