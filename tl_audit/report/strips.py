"""Drawings of many rows at once: one strip of dots per column, and a scatter of one column with its smoothed mean. Static SVG, read by attributes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tl_audit.report import numbers
from tl_audit.report.charts import WIDTH, Drawing, Scale
from tl_audit.report.page import SvgText
from tl_audit.report.text import visible

__all__ = ["SHADES", "ranked", "scatter", "strips", "swarm"]

SHADES = 9
"""Steps of the colour table of ``charts.css`` (cividis): even lightness, so the order survives in greyscale."""

RADIUS = 2.6
HALF = 15.0
ROW = 40.0


def swarm(values: Sequence[float], *, step: float, most: int) -> list[int]:
    """Where dots stand across their strip, in steps from its middle (0, 1, -1, 2, ...): dots closer than ``step`` do not share a place.

    Beyond ``most`` places on a side the dots of one step overlap there: a strip has an end.
    """
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    last: dict[int, float] = {}
    places = [0] * len(values)
    candidates = [0] + [sign * k for k in range(1, most + 1) for sign in (1, -1)]
    for i in order:
        free = next((c for c in candidates if values[i] - last.get(c, -math.inf) >= step), None)
        # all taken: the place whose last dot is farthest away
        chosen = free if free is not None else min(candidates, key=lambda c: (last[c], abs(c), c))
        last[chosen] = values[i]
        places[i] = chosen
    return places


def _bee(d: Drawing, x: float, y: float, shade: float) -> None:
    """A row as a dot of its shade, as a cross where the column's own value is missing."""
    if math.isfinite(shade):
        _dot(d, x, y, _shade(shade))
        return
    r = RADIUS * 0.9
    d.path(f"M{x - r:.1f} {y - r:.1f}l{2 * r:.1f} {2 * r:.1f}M{x - r:.1f} {y + r:.1f}l{2 * r:.1f} {-2 * r:.1f}", "bee none")


def _shade(shade: float) -> str:
    return f"bee c{min(SHADES - 1, max(0, int(shade * SHADES)))}"


def _dot(d: Drawing, x: float, y: float, cls: str) -> None:
    r = RADIUS
    d.path(f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r:.1f} 0a{r} {r} 0 1 0 {-2 * r:.1f} 0z", cls)


def ranked(
    columns: Sequence[Any], chance: float, uid: str, *, title: str, alt: str, value_label: str
) -> SvgText:  # Any: attribution.importance.ColumnImportance
    """Mean |value| per column as bars with their intervals, the line of chance through all of them; the same rows as the strips below."""
    d = Drawing(uid, title, alt)
    left, right, top = 150.0, 590.0, 26.0
    bottom = top + 24 * len(columns)
    ends = [v for c in columns for v in (c.mean_absolute.value, *(c.mean_absolute.interval() or ())) if v is not None]
    scale = Scale(0.0, max([chance, *ends]) * 1.04 or 1.0, left, right)
    for tick in scale.ticks():
        d.line(scale(tick), top, scale(tick), bottom, "zero" if tick == 0 else "grid")
        d.text(scale(tick), bottom + 16, scale.tick_label(tick), "t dim", anchor="middle")
    d.text((left + right) / 2, bottom + 34, value_label, "t dim", anchor="middle", most=right - left + 100)
    for k, column in enumerate(columns):
        y = top + 24 * (k + 0.5)
        estimate = column.mean_absolute
        d.text(left - 12, y + 4, column.name, "t", anchor="end", most=left - 14)
        d.rect(
            left, y - 8, max(1.0, scale(estimate.value) - left), 16, "bar s0", title=f"{column.name}: {numbers.significant(estimate.value)}"
        )
        interval = estimate.interval()
        words = numbers.significant(estimate.value)
        if interval is not None:
            d.line(scale(interval[0]), y, scale(interval[1]), y, "whisker")
            places = numbers.decimals(estimate.value, *interval)
            words = f"{numbers.number(estimate.value, places)} ({numbers.interval(interval[0], interval[1], places)})"
        d.text(right + 8, y + 4, words, "t num small", most=WIDTH - right - 8)
    d.line(scale(chance), 20, scale(chance), bottom, "ref rest")
    end = scale(chance) > (left + right) / 2
    d.text(
        scale(chance) - 5 if end else scale(chance) + 5,
        14,
        f"by chance {numbers.significant(chance)}",
        "t dim",
        anchor="end" if end else "start",
    )
    d.height = bottom + 42
    return SvgText(d.svg())


def strips(columns: Sequence[Any], uid: str, *, title: str, alt: str, value_label: str) -> SvgText:  # Any: attribution.importance.Strip
    """One strip per column, most important first: a dot is one row, right of 0 where the column raised the output, light where its own value is high."""
    d = Drawing(uid, title, alt)
    left, right, top = 150.0, 590.0, 10.0
    bottom = top + ROW * len(columns)
    have = [float(v) for c in columns for v in c.values if math.isfinite(v)]
    low, high = min([0.0, *have]), max([0.0, *have])
    pad = (high - low) * 0.04 or 1.0
    scale = Scale(low - pad, high + pad, left, right)
    for tick in scale.ticks():
        d.line(scale(tick), top, scale(tick), bottom, "zero" if tick == 0 else "grid")
        d.text(scale(tick), bottom + 16, scale.tick_label(tick), "t dim", anchor="middle")
    d.text((left + right) / 2, bottom + 34, value_label, "t dim", anchor="middle", most=right - left + 100)
    for k, column in enumerate(columns):
        y = top + ROW * (k + 0.5)
        d.text(left - 12, y + 4, column.name, "t", anchor="end", most=left - 14)
        xs = [scale(float(v)) for v in column.values]
        places = swarm(xs, step=2 * RADIUS * 0.8, most=int(HALF // (2 * RADIUS * 0.72)))
        # the lightest last: they are the fewest marks of high values, and must not hide below
        for i in sorted(range(len(xs)), key=lambda i: (math.isfinite(column.shade[i]), i)):
            _bee(d, xs[i], y + places[i] * 2 * RADIUS * 0.72, float(column.shade[i]))
        _ramp_words(d, right + 14, y, column)
    d.height = bottom + 46
    _legend(d, left, d.height + 2)
    d.height += 22
    return SvgText(d.svg())


def _ramp_words(d: Drawing, x: float, y: float, column: Any) -> None:  # Any: attribution.importance.Strip
    """What the dark and the light end of this column's dots stand for."""
    if column.low == column.high:
        d.text(x, y + 4, visible(column.low), "t dim small", most=WIDTH - x)
        return
    _dot(d, x + 3, y - 8, "bee c0")
    d.text(x + 12, y - 4, column.low, "t dim small", most=WIDTH - x - 12)
    _dot(d, x + 3, y + 8, f"bee c{SHADES - 1}")
    d.text(x + 12, y + 12, column.high, "t dim small", most=WIDTH - x - 12)


def _legend(d: Drawing, x: float, y: float) -> None:
    d.text(x, y + 10, "low", "t dim small")
    for k in range(SHADES):
        d.rect(x + 26 + 14 * k, y + 1, 14, 10, f"cell c{k}")
    at = x + 26 + 14 * SHADES + 6
    d.text(at, y + 10, "high: the column's own value, by rank", "t dim small")
    _bee(d, at + 222, y + 6, math.nan)
    d.text(at + 231, y + 10, "missing", "t dim small")


def scatter(found: Any, uid: str, *, title: str, alt: str, value_label: str) -> SvgText:  # Any: attribution.importance.Dependence
    """One column's own value against its attribution, with the local mean and its band; categories stand beside each other."""
    d = Drawing(uid, title, alt)
    left, right, top, bottom = 66.0, 690.0, 26.0, 330.0
    band = [float(v) for part in (found.low, found.high, found.mean) for v in part if math.isfinite(v)]
    whiskers = [v for e in found.means if (i := e.interval()) is not None for v in i]
    ys = [0.0, *map(float, found.values), *band, *whiskers]
    pad = (max(ys) - min(ys)) * 0.05 or 1.0
    sy = Scale(min(ys) - pad, max(ys) + pad, bottom, top)
    if found.categories is not None:
        sx = Scale(-0.5, len(found.categories) - 0.5, left, right)
    else:
        xs = [*map(float, found.readings), *map(float, found.grid)]
        margin = (max(xs, default=1.0) - min(xs, default=0.0)) * 0.03 or 0.5
        sx = Scale(min(xs, default=0.0) - margin, max(xs, default=1.0) + margin, left, right)
    for tick in sy.ticks():
        d.line(left, sy(tick), right, sy(tick), "zero" if tick == 0 else "grid")
        d.text(left - 8, sy(tick) + 4, sy.tick_label(tick), "t dim", anchor="end")
    d.text(0, 12, value_label, "t dim", most=WIDTH)
    if found.categories is None:
        for tick in sx.ticks():
            d.text(sx(tick), bottom + 17, sx.tick_label(tick), "t dim", anchor="middle")
        points = [(x, a, b) for x, a, b in zip(found.grid, found.low, found.high, strict=True) if math.isfinite(a) and math.isfinite(b)]
        if points:
            forth = [f"{sx(x):.1f} {sy(b):.1f}" for x, _, b in points]
            back = [f"{sx(x):.1f} {sy(a):.1f}" for x, a, _ in reversed(points)]
            d.path("M" + "L".join(forth + back) + "z", "band s1")
        for x, y in zip(found.readings, found.values, strict=True):
            _dot(d, sx(float(x)), sy(float(y)), "bee point")
        line = [(x, y) for x, y in zip(found.grid, found.mean, strict=True) if math.isfinite(y)]
        if line:
            d.path("M" + "L".join(f"{sx(x):.1f} {sy(y):.1f}" for x, y in line), "curve s1 strong")
    else:
        room = (right - left) / max(1, len(found.categories))
        for k, (name, estimate) in enumerate(zip(found.categories, found.means, strict=True)):
            mine = [float(y) for x, y in zip(found.readings, found.values, strict=True) if x == k]
            at = [sy(v) for v in mine]
            for y, place in zip(at, swarm(at, step=2 * RADIUS * 0.8, most=max(1, int(room * 0.3 // 4))), strict=True):
                _dot(d, sx(k) + place * 4, y, "bee point")
            interval = estimate.interval()
            if interval is not None:
                d.line(sx(k), sy(interval[0]), sx(k), sy(interval[1]), "interval s1")
            if estimate.value is not None:
                d.mark(sx(k), sy(estimate.value), 1, size=5, title=f"{name}: {numbers.significant(estimate.value)}")
            d.text(sx(k), bottom + 17, name, "t", anchor="middle", most=room)
            d.text(sx(k), bottom + 33, f"n = {numbers.count(estimate.n)}", "t dim small", anchor="middle", most=room)
    below = bottom + (50 if found.categories is not None else 36)
    d.text((left + right) / 2, below, found.name, "t dim", anchor="middle", most=right - left)
    d.height = below + 14
    return SvgText(d.svg())
