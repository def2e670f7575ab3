"""Exhibits as SVG: one function per kind. Classes only (the page's style sheet colours them), direct labels, marks that differ by shape.

Every function returns the SVG text of one drawing 720 units wide. Numbers are placed, never computed: what a chart shows stands in the exhibit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

from tl_audit.records.exhibits import Bars, Dot, Exhibit, Heatmap, Intervals, Ladder, LadderRow, Line, Lines
from tl_audit.report import numbers
from tl_audit.report.text import shorten, visible

__all__ = [
    "MOST_HEATMAP_CLASSES",
    "MOST_LADDER_ROWS",
    "bars",
    "draw",
    "group_layers",
    "heatmap",
    "intervals",
    "ladder",
    "lines",
    "status_shapes",
]

WIDTH = 720
SERIES = 6
MOST_LADDER_ROWS = 40
MOST_HEATMAP_CLASSES = 20
STEPS = 9
SLANTED = 22
"""Letters of a column name that stands at a slant: as many as the longest name of a method needs."""
Anchor = Literal["start", "middle", "end"]


@dataclass
class Drawing:
    """SVG elements in order; text is escaped and made visible here, the only place where text enters a chart."""

    uid: str
    title: str
    desc: str
    height: float = 0.0
    parts: list[str] = field(default_factory=list)

    def rect(self, x: float, y: float, width: float, height: float, cls: str, *, title: str | None = None, rx: float = 0) -> None:
        inner = "" if title is None else f"<title>{_text(title)}</title>"
        round_ = f' rx="{_n(rx)}"' if rx else ""
        self.parts.append(
            f'<rect class="{cls}" x="{_n(x)}" y="{_n(y)}" width="{_n(max(0.0, width))}" height="{_n(max(0.0, height))}"{round_}>{inner}</rect>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, cls: str) -> None:
        self.parts.append(f'<line class="{cls}" x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"/>')

    def path(self, d: str, cls: str) -> None:
        self.parts.append(f'<path class="{cls}" d="{d}"/>')

    def text(
        self, x: float, y: float, text: str, cls: str = "t", *, anchor: Anchor = "start", most: float | None = None, bold: bool = False
    ) -> None:
        """Text at a baseline; longer than ``most`` units it is cut, and the whole text becomes its title."""
        text = visible(text)
        shown, inner = text, ""
        if most is not None and _width(text) > most:
            shown = shorten(text, max(4, int(most / 6.4)))
            inner = f"<title>{_text(text)}</title>"
        where = "" if anchor == "start" else f' text-anchor="{anchor}"'
        weight = f"{cls} b" if bold else cls
        self.parts.append(f'<text class="{weight}" x="{_n(x)}" y="{_n(y)}"{where}>{inner}{_text(shown)}</text>')

    def mark(
        self, x: float, y: float, series: int, *, hollow: bool = False, size: float = 5.0, title: str | None = None, extra: str = ""
    ) -> None:
        """The mark of a series: its own shape and colour; hollow for the base model."""
        cls = f"m s{series % SERIES}{' hollow' if hollow else ''}{' ' + extra if extra else ''}"
        inner = "" if title is None else f"<title>{_text(title)}</title>"
        self.parts.append(f'<path class="{cls}" d="{_shape(series, x, y, size)}">{inner}</path>')

    def svg(self) -> str:
        ids = f"{self.uid}-t {self.uid}-d"
        return (
            f'<svg class="chart" viewBox="0 0 {WIDTH} {_n(self.height)}" role="img" aria-labelledby="{ids}">'
            f'<title id="{self.uid}-t">{_text(self.title)}</title><desc id="{self.uid}-d">{_text(self.desc)}</desc>{"".join(self.parts)}</svg>'
        )


def _text(text: str) -> str:
    return escape(visible(" ".join(text.split(" "))), quote=True)


def _n(x: float) -> str:
    text = f"{x:.1f}"
    return text[:-2] if text.endswith(".0") else text


def _width(text: str) -> float:
    """About how wide a text is in chart units (13 px sans)."""
    return sum(6.6 if ord(c) < 0x2E80 else 13.0 for c in text)


def _shape(series: int, x: float, y: float, r: float) -> str:
    kind = series % SERIES
    if kind == 0:
        return f"M{_n(x - r)} {_n(y)}a{_n(r)} {_n(r)} 0 1 0 {_n(2 * r)} 0a{_n(r)} {_n(r)} 0 1 0 {_n(-2 * r)} 0z"
    points: list[tuple[float, float]]
    if kind == 1:
        q = r * 0.9
        points = [(-q, -q), (q, -q), (q, q), (-q, q)]
    elif kind == 2:
        points = [(0, -r * 1.15), (r * 1.1, r * 0.85), (-r * 1.1, r * 0.85)]
    elif kind == 3:
        points = [(0, -r * 1.25), (r * 1.25, 0), (0, r * 1.25), (-r * 1.25, 0)]
    elif kind == 4:
        a, b = r * 0.42, r * 1.15
        points = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
    else:
        points = [(0, r * 1.15), (r * 1.1, -r * 0.85), (-r * 1.1, -r * 0.85)]
    return "M" + "L".join(f"{_n(x + dx)} {_n(y + dy)}" for dx, dy in points) + "z"


# ---- scales -------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """A linear or decimal-logarithmic axis from data to drawing units."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, x: float) -> float:
        low, high, at = (
            (math.log10(self.low), math.log10(self.high), math.log10(max(x, self.low))) if self.log else (self.low, self.high, x)
        )
        position = 0.5 if high == low else (at - low) / (high - low)
        return self.start + min(1.0, max(0.0, position)) * (self.stop - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            every = max(1, math.ceil((last - first + 1) / most))
            return [10.0**power for power in range(first, last + 1, every)]
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        raw = span / most
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(unit * factor for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if unit * factor >= raw - 1e-12 * span)
        first_tick = math.ceil(self.low / step - 1e-9)
        return [round(k * step, 12) for k in range(first_tick, math.floor(self.high / step + 1e-9) + 1)]

    def tick_label(self, x: float) -> str:
        if self.log:
            return numbers.significant(x, 1)
        ticks = self.ticks()
        step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
        places = 0
        while places < 6 and abs(round(step, places) - step) > 1e-9:
            places += 1
        return numbers.number(x, places)


def _scale(
    values: Sequence[float], start: float, stop: float, *, zero: bool = False, log: bool = False, bounds: tuple[float, float] | None = None
) -> Scale:
    if bounds is not None:
        return Scale(bounds[0], bounds[1], start, stop)
    have = [v for v in values if math.isfinite(v) and (not log or v > 0)]
    if not have:
        return Scale(1e-3 if log else 0.0, 1.0, start, stop, log)
    low, high = min(have), max(have)
    if log:
        return Scale(
            10.0 ** math.floor(math.log10(low)),
            10.0 ** max(math.ceil(math.log10(high)), math.floor(math.log10(low)) + 1),
            start,
            stop,
            True,
        )
    if zero:
        low, high = min(0.0, low), max(0.0, high)
    if low >= 0 and high <= 1 and (high > 0.5 or zero) and high - low > 0.25:
        return Scale(0.0, 1.0, start, stop)
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 0.5
    return Scale(low if zero and low == 0.0 else low - pad, high if zero and high == 0.0 else high + pad, start, stop)


def _axis_x(d: Drawing, scale: Scale, top: float, bottom: float, label: str) -> None:
    """Grid lines with labels below, and the name of the axis."""
    for tick in scale.ticks():
        x = scale(tick)
        d.line(x, top, x, bottom, "zero" if tick == 0 else "grid")
        d.text(x, bottom + 16, scale.tick_label(tick), "t dim", anchor="middle")
    d.text((scale.start + scale.stop) / 2, bottom + 34, label, "t dim", anchor="middle", most=scale.stop - scale.start + 120)


# ---- kinds --------------------------------------------------------------------------------------------------------------------------------


def bars(exhibit: Bars, uid: str) -> str:
    """Horizontal bars with intervals and null ticks; several series stand under one label, each with its name."""
    d = Drawing(uid, exhibit.title, exhibit.alt)
    series = list(dict.fromkeys(b.series for b in exhibit.bars))
    labels = list(dict.fromkeys(b.label for b in exhibit.bars))
    named = len(series) > 1
    left, right = 210.0, 590.0
    values = [v for b in exhibit.bars for v in (b.value, b.null, *(b.interval or ())) if v is not None]
    log = exhibit.log and bool(values) and all(v > 0 for b in exhibit.bars for v in [b.value] if v is not None)
    if exhibit.signed and values:
        reach = max(abs(v) for v in values) * 1.06 or 1.0
        scale = Scale(-reach, reach, left, right)
    else:
        scale = _scale(values, left, right, zero=not log, log=log)
    y = 12.0
    rows: list[tuple[float, int]] = []
    for label in labels:
        group = [(i, b) for i, b in enumerate(exhibit.bars) if b.label == label]
        if named:
            y += 6
            d.text(0, y + 13, label, "t", most=left + 260, bold=True)
            y += 20
        for i, _ in group:
            rows.append((y, i))
            y += 22
    bottom = y + 4
    _axis_x(d, scale, 8, bottom, exhibit.value_label)
    base = scale(0.0) if not log else left
    for y, i in rows:
        bar = exhibit.bars[i]
        k = series.index(bar.series)
        d.text(left - 10, y + 15, bar.series if named else bar.label, "t dim" if named else "t", anchor="end", most=left - 14)
        if bar.value is None or bar.state == "unavailable":
            d.line(left, y + 11, left + 90, y + 11, "absent")
            d.text(left + 98, y + 15, bar.note or "not computed", "t dim", most=WIDTH - left - 100)
            continue
        x = scale(bar.value)
        cls = f"bar s{k % SERIES}" + (" hollow" if bar.state == "frozen" else " dashed" if bar.state == "new" else "")
        if exhibit.signed:
            cls = "bar neg" if bar.value < 0 else "bar pos"
        d.rect(min(base, x), y + 4, max(abs(x - base), 1.0), 14, cls, title=f"{bar.label} {bar.series}: {numbers.significant(bar.value)}")
        if bar.interval is not None:
            d.line(scale(bar.interval[0]), y + 11, scale(bar.interval[1]), y + 11, "whisker")
        if bar.null is not None:
            d.line(scale(bar.null), y + 1, scale(bar.null), y + 21, "nulltick")
        after = numbers.significant(bar.value)
        if bar.interval is not None:
            after = numbers.number(bar.value, numbers.decimals(bar.value, *bar.interval))
        if bar.n is not None:
            after += f"  n = {numbers.count(bar.n)}"
        d.text(right + 8, y + 15, after, "t num", most=WIDTH - right - 8)
    d.height = bottom + 42
    if any(b.null is not None for b in exhibit.bars):
        d.line(left, d.height + 2, left, d.height + 16, "nulltick")
        d.text(left + 8, d.height + 13, "what chance gives", "t dim")
        d.height += 22
    return d.svg()


def _band(line: Line, sx: Scale, sy: Scale) -> str:
    assert line.low is not None
    assert line.high is not None
    forth = [f"{_n(sx(x))} {_n(sy(v))}" for x, v in zip(line.x, line.high, strict=True)]
    back = [f"{_n(sx(x))} {_n(sy(v))}" for x, v in zip(reversed(line.x), reversed(line.low), strict=True)]
    return "M" + "L".join(forth + back) + "z"


def _route(points: Sequence[tuple[float, float] | None]) -> str:
    """A path through points, broken where one is missing."""
    out, pen = "", "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        out += f"{pen}{_n(point[0])} {_n(point[1])}"
        pen = "L"
    return out


def lines(exhibit: Lines, uid: str) -> str:
    """Curves over one axis; names stand at their right ends; counts as bars below; null as a band, references thin."""
    d = Drawing(uid, exhibit.title, exhibit.alt)
    left, right, top, bottom = 62.0, 540.0, 26.0, 306.0
    xs = [x for line in exhibit.lines for x in line.x]
    ys = [v for line in exhibit.lines for part in (line.y, line.low or (), line.high or ()) for v in part if v is not None]
    if exhibit.x_ticks:
        sx = Scale(-0.5, len(exhibit.x_ticks) - 0.5, left, right)
    elif exhibit.x_range is not None:
        sx = Scale(*exhibit.x_range, left, right)
    else:
        sx = Scale(min(xs, default=0.0), max(xs, default=1.0), left, right)
    flat = _scale(ys, bottom, top, bounds=exhibit.y_range)
    sy = Scale(flat.low, flat.high, bottom, top)
    for low, high in exhibit.shaded:
        d.rect(sx(low), top, sx(high) - sx(low), bottom - top, "shade")
    for tick in sy.ticks():
        y = sy(tick)
        d.line(left, y, right, y, "zero" if tick == 0 else "grid")
        d.text(left - 8, y + 4, sy.tick_label(tick), "t dim", anchor="end")
    d.text(0, 11, exhibit.y_label, "t dim", most=WIDTH - 10)
    floor = bottom
    if exhibit.counts:
        floor = bottom + 46
        most = max((n for _, n in exhibit.counts), default=1) or 1
        step = min((b[0] - a[0] for a, b in zip(exhibit.counts, exhibit.counts[1:], strict=False)), default=0.1)
        width = max(3.0, min(26.0, abs(sx(sx.low + abs(step)) - sx.start) * 0.7))
        for x, n in exhibit.counts:
            height = 30 * n / most
            d.rect(sx(x) - width / 2, floor - height, width, height, "count", title=f"n = {n}")
        d.line(left, floor, right, floor, "zero")
        d.text(left - 8, floor, f"n ≤ {numbers.count(most)}", "t dim", anchor="end", most=left)
    if exhibit.x_ticks:
        every = max(1, math.ceil(len(exhibit.x_ticks) / 24))
        for i, name in enumerate(exhibit.x_ticks):
            if i % every == 0:
                x = sx(i)
                shown = shorten(name, 18)
                d.parts.append(
                    f'<text class="t dim" transform="translate({_n(x + 4)} {_n(floor + 12)}) rotate(-48)" text-anchor="end"><title>{_text(name)}</title>{_text(shown)}</text>'
                )
        floor += 22 + min(18, max((len(n) for n in exhibit.x_ticks), default=0)) * 5.0
    else:
        for tick in sx.ticks():
            d.text(sx(tick), floor + 17, sx.tick_label(tick), "t dim", anchor="middle")
        floor += 20
    d.text((left + right) / 2, floor + 18, exhibit.x_label, "t dim", anchor="middle", most=right - left)
    names: list[tuple[float, int, Line]] = []
    numbered: list[tuple[int, Line]] = []
    for line in exhibit.lines:
        numbered.append((sum(1 for _, before in numbered if before.role == "data"), line))
    # Bands below references below curves: what was measured stays on top.
    for series, line in sorted(numbered, key=lambda item: item[1].role == "data"):
        if line.low is not None and line.high is not None and line.x:
            d.path(_band(line, sx, sy), "nullband" if line.role == "null" else f"band s{series % SERIES}")
    for series, line in sorted(numbered, key=lambda item: item[1].role == "data"):
        points = [(sx(x), sy(v)) if v is not None else None for x, v in zip(line.x, line.y, strict=True)]
        drawn = [p for p in points if p is not None]
        cls = {"data": f"curve s{series % SERIES}", "null": "curve null", "reference": "curve reference"}[line.role]
        route = _route(points)
        if route:
            d.path(route, cls)
        if line.role == "data":
            every = 1 if line.mark == "dot" else max(1, len(drawn) // 6)
            for i, point in enumerate(drawn):
                if i % every == 0:
                    d.mark(point[0], point[1], series, size=4)
        if drawn:
            names.append((drawn[-1][1], series, line))
        elif line.low is not None and line.high is not None and line.x:
            names.append((sy((line.low[-1] + line.high[-1]) / 2), series, line))
    names.sort(key=lambda item: (item[0], item[2].name))
    # Names keep 17 units apart; where they would reach the axis, the whole column moves up.
    places: list[float] = []
    for y, _, _ in names:
        places.append(max((places[-1] if places else top - 6) + 17, min(y, bottom)))
    lift = max(0.0, (places[-1] if places else 0.0) - (bottom - 6))
    places = [max(at - lift, top + 4 + 17 * i) if lift else at for i, at in enumerate(places)]
    at = max(places, default=0.0)
    for (_, series, line), at in zip(names, places, strict=True):
        if line.role == "data":
            d.mark(right + 12, at, series, size=4)
        elif line.role == "null" and line.low is not None:
            d.rect(right + 6, at - 6, 12, 12, "nullband")
        else:
            d.line(right + 6, at, right + 18, at, "curve null" if line.role == "null" else "curve reference")
        d.text(right + 24, at + 4, line.name, "t" if line.role == "data" else "t dim", most=WIDTH - right - 24)
    d.height = max(floor + 26, at + 10)
    return d.svg()


def heatmap(exhibit: Heatmap, uid: str) -> str:
    """A grid with a number in every cell; colours in nine steps, centred at 0 where signed."""
    d = Drawing(uid, exhibit.title, exhibit.alt)
    longest = max((_width(r) for r in exhibit.rows), default=0.0)
    left = min(200.0, max(70.0, longest + 34))
    columns = max(1, len(exhibit.columns))
    cell = min(96.0, (WIDTH - left - 10) / columns)
    height = min(40.0, max(22.0, cell * 0.62))
    slanted = any(_width(c) > cell - 6 for c in exhibit.columns)
    top = 26.0 + (min(SLANTED, max((len(c) for c in exhibit.columns), default=0)) * 4.6 + 14 if slanted else 20)
    d.text(left, 13, exhibit.column_label, "t dim", most=WIDTH - left)
    d.parts.append(
        f'<text class="t dim" transform="translate(12 {_n(top + height * len(exhibit.rows) / 2)}) rotate(-90)" text-anchor="middle">{_text(shorten(exhibit.row_label, 40))}</text>'
    )
    have = [v for row in exhibit.values for v in row if v is not None]
    low, high = exhibit.value_range or (min(have, default=0.0), max(have, default=1.0))
    if exhibit.signed:
        reach = max(abs(low), abs(high)) or 1.0
        low, high = -reach, reach
    for j, name in enumerate(exhibit.columns):
        x = left + cell * (j + 0.5)
        if slanted:
            d.parts.append(
                f'<text class="t" transform="translate({_n(x + 3)} {_n(top - 8)}) rotate(-42)"><title>{_text(name)}</title>{_text(shorten(name, SLANTED))}</text>'
            )
        else:
            d.text(x, top - 8, name, "t", anchor="middle")
    small = cell < 44
    for i, name in enumerate(exhibit.rows):
        y = top + height * i
        d.text(left - 8, y + height / 2 + 4, name, "t", anchor="end", most=left - 30)
        for j, value in enumerate(exhibit.values[i]):
            x = left + cell * j
            shown = exhibit.text[i][j] if exhibit.text is not None else ("–" if value is None else numbers.significant(value, 2))
            where = f"{exhibit.row_label} {name}, {exhibit.column_label} {exhibit.columns[j]}: {shown}"
            if value is None:
                d.rect(x + 1, y + 1, cell - 2, height - 2, "cell none", title=where)
                ink = "on-light"
            else:
                step = min(STEPS - 1, max(0, int((value - low) / (high - low) * STEPS))) if high > low else 0
                d.rect(x + 1, y + 1, cell - 2, height - 2, f"cell {'d' if exhibit.signed else 'c'}{step}", title=where)
                ink = ("on-light" if 2 <= step <= 6 else "on-dark") if exhibit.signed else ("on-dark" if step <= 4 else "on-light")
            star = " ✱" if exhibit.stars is not None and exhibit.stars[i][j] else ""
            d.text(
                x + cell / 2,
                y + height / 2 + 4,
                shown + star,
                f"t {'small ' if small else ''}{ink}",
                anchor="middle",
                most=max(cell - 2, 20),
            )
    d.height = top + height * len(exhibit.rows) + 24
    prefix = "d" if exhibit.signed else "c"
    for step in range(STEPS):
        d.rect(left + 22 * step, d.height - 14, 22, 10, f"cell {prefix}{step}")
    d.text(
        left + 22 * STEPS + 8,
        d.height - 5,
        f"{exhibit.value_label}: {numbers.significant(low, 2)} to {numbers.significant(high, 2)}",
        "t dim",
        most=WIDTH - left - 22 * STEPS - 8,
    )
    return d.svg()


def _dot_words(dot: Dot) -> str:
    if dot.suppressed:
        return "suppressed"
    if dot.value is None:
        return dot.note or "not defined"
    if dot.interval is None:
        return numbers.significant(dot.value)
    places = numbers.decimals(dot.value, *dot.interval)
    return f"{numbers.number(dot.value, places)} ({numbers.interval(*dot.interval, places)})"


def intervals(exhibit: Intervals, uid: str) -> str:
    """Dots with intervals, one line per label and series; hollow = base; suppressed ones are named without a mark; paired changes below."""
    d = Drawing(uid, exhibit.title, exhibit.alt)
    series = list(dict.fromkeys(dot.series for dot in exhibit.dots))
    labels = list(dict.fromkeys(dot.label for dot in exhibit.dots))
    named = len(series) > 1
    left, right = 216.0, 548.0
    values = [v for dot in exhibit.dots if not dot.suppressed for v in (dot.value, dot.null, *(dot.interval or ())) if v is not None]
    values += [r.value for r in exhibit.references] + list(exhibit.null_band or ())
    scale = _scale(values, left, right)
    has_n = any(dot.n is not None or dot.suppressed for dot in exhibit.dots)
    top = 12.0 + 17 * len(exhibit.references)
    y = top + 4
    placed: list[tuple[float, Dot]] = []
    heads: list[tuple[float, str]] = []
    for label in labels:
        own = [dot for dot in exhibit.dots if dot.label == label]
        change = [c for c in exhibit.changes if c.label == label]
        if named or change:
            heads.append((y + 14, label))
            y += 20
        for dot in own:
            placed.append((y + 11, dot))
            y += 22
        for c in change:
            words = "not defined" if c.value is None else numbers.significant(c.value)
            if c.value is not None and c.interval is not None:
                places = numbers.decimals(c.value, *c.interval)
                words = f"{numbers.number(c.value, places)} ({numbers.interval(*c.interval, places)})"
            heads.append((y + 14, ""))
            # a long one begins further left, where its row has no mark, rather than lose its bound
            d.text(min(right + 12, WIDTH - 1.08 * _width(f"Δ {words}")), y + 14, f"Δ {words}", "t num b")
            d.text(left - 10, y + 14, "paired change", "t dim", anchor="end")
            y += 22
        if named or change:
            y += 5
    bottom = y + 2
    if exhibit.null_band is not None:
        d.rect(scale(exhibit.null_band[0]), top, scale(exhibit.null_band[1]) - scale(exhibit.null_band[0]), bottom - top, "nullband")
    _axis_x(d, scale, top, bottom, exhibit.value_label)
    for i, reference in enumerate(exhibit.references):
        x = scale(reference.value)
        d.line(x, 8 + 17 * i + 4, x, bottom, f"ref {reference.role}")
        end = x > (left + right) / 2
        d.text(
            x - 6 if end else x + 6, 12 + 17 * i + 2, reference.label, f"t ref-{reference.role}", anchor="end" if end else "start", most=320
        )
    for at, label in heads:
        if label:
            d.text(0, at, label, "t", most=left + 120, bold=True)
    for at, dot in placed:
        k = series.index(dot.series)
        name = dot.series if named else dot.label
        if has_n and dot.n is not None and not dot.suppressed:
            tail = f"n = {numbers.count(dot.n)}"
            d.text(left - 10, at + 4, tail, "t dim num", anchor="end")
            d.text(left - 22 - _width(tail), at + 4, name or "all", "t dim" if named else "t", anchor="end", most=left - 34 - _width(tail))
        else:
            d.text(left - 10, at + 4, name or "all", "t dim" if named else "t", anchor="end", most=left - 14)
        if dot.suppressed:
            d.text(left + 8, at + 4, dot.note or "suppressed: too few samples to show", "t dim", most=right - left)
            continue
        if dot.value is None:
            d.text(left + 8, at + 4, dot.note or "not defined", "t dim", most=right - left)
            continue
        if dot.null is not None:
            d.line(scale(dot.null), at - 8, scale(dot.null), at + 8, "nulltick")
        if dot.interval is not None:
            d.line(scale(dot.interval[0]), at, scale(dot.interval[1]), at, f"interval s{k % SERIES}")
        hollow = dot.hollow or dot.series.lower() == "base"
        d.mark(scale(dot.value), at, k, hollow=hollow, title=f"{dot.label} {dot.series}: {_dot_words(dot)}")
        d.text(right + 12, at + 4, _dot_words(dot), "t num", most=WIDTH - right - 12)
    d.height = bottom + 42
    return d.svg()


def group_layers(rows: Sequence[LadderRow]) -> list[LadderRow]:
    """At most 40 rows: layers of one block (equal path up to the last name, then shorter) stand together with their largest figures, not averages."""
    depth = max((row.layer.count(".") for row in rows), default=0)
    grouped = list(rows)
    while len(grouped) > MOST_LADDER_ROWS and depth >= 1:
        grouped = _merge(rows, [".".join(row.layer.split(".")[:depth]) for row in rows])
        depth -= 1
    if len(grouped) > MOST_LADDER_ROWS:
        size = math.ceil(len(rows) / MOST_LADDER_ROWS)
        grouped = _merge(rows, [f"layers {i // size * size + 1}–{min(len(rows), i // size * size + size)}" for i in range(len(rows))])
    return grouped


def _merge(rows: Sequence[LadderRow], names: Sequence[str]) -> list[LadderRow]:
    out: list[LadderRow] = []
    start = 0
    for i in range(1, len(rows) + 1):
        if i < len(rows) and names[i] == names[start]:
            continue
        part = rows[start:i]
        states = {row.state for row in part}

        def largest(values: Sequence[float | None]) -> float | None:
            have = [v for v in values if v is not None]
            return max(have) if have else None

        out.append(
            part[0]
            if len(part) == 1
            else LadderRow(
                layer=f"{names[start]} ({len(part)} layers)",
                parameters=sum(row.parameters for row in part),
                state=states.pop() if len(states) == 1 else ("trained" if "trained" in states else "unknown"),
                weight_change=largest([row.weight_change for row in part]),
                gradient_activity=largest([row.gradient_activity for row in part]),
                cka_drift=largest([row.cka_drift for row in part]),
                frozen_but_changed=any(row.frozen_but_changed for row in part),
            )
        )
        start = i
    return out


def ladder(exhibit: Ladder, uid: str) -> str:
    """The layer ladder: rows from input to output; lanes for state, gradient activity, weight change and CKA drift."""
    d = Drawing(uid, exhibit.title, exhibit.alt)
    rows = group_layers(exhibit.rows)
    lanes: list[tuple[str, Callable[[LadderRow], float | None], bool]] = [
        ("gradient activity", lambda r: r.gradient_activity, True),
        ("weight change", lambda r: r.weight_change, True),
        ("CKA drift", lambda r: r.cka_drift, False),
    ]
    lanes = [lane for lane in lanes if any(lane[1](r) is not None for r in exhibit.rows)]
    left, state_x, first = 196.0, 206.0, 300.0
    width = (WIDTH - first - 8) / max(1, len(lanes))
    top, step = 46.0, 24.0
    bottom = top + step * len(rows)
    d.text(0, 16, "layer, input first", "t dim")
    d.text(state_x, 16, "state", "t dim")
    scales: list[Scale] = []
    for i, (name, get, log) in enumerate(lanes):
        x = first + width * i
        values = [v for r in exhibit.rows if (v := get(r)) is not None]
        positive = [v for v in values if v > 0]
        if log and positive:
            scale = _scale(positive, x + 12, x + width - 22, log=True)
        elif log:
            scale = Scale(0.0, 1.0, x + 12, x + width - 22)
        else:
            extra = [v for r in exhibit.rows if r.cka_interval is not None for v in r.cka_interval]
            scale = Scale(min(0.0, *values, *extra, 0.0), max(1.0, *values, *extra), x + 12, x + width - 22)
        scales.append(scale)
        d.text(x + 12, 16, name, "t", most=width - 16, bold=True)
        ends = [scale.low, scale.high]
        anchors: tuple[Anchor, Anchor] = ("start", "end")
        for tick, anchor in zip(ends, anchors, strict=True):
            d.text(scale(tick), 34, numbers.significant(tick, 1), "t dim small", anchor=anchor)
        for tick in scale.ticks(4):
            d.line(scale(tick), top - 6, scale(tick), bottom, "grid")
        if scale.log:
            d.text((scale.start + scale.stop) / 2, 34, "log", "t dim small", anchor="middle")
    for j, row in enumerate(rows):
        y = top + step * j
        if j % 2 == 0:
            d.rect(0, y, WIDTH, step, "stripe")
        d.text(0, y + 16, row.layer, "t code", most=left - 6)
        k = 0 if row.state in ("frozen", "trained", "unknown") else 1 if row.state == "new" else 2
        d.mark(state_x + 6, y + step / 2, k, hollow=row.state in ("frozen", "unknown"), size=5)
        word = "changed!" if row.frozen_but_changed else row.state
        if row.frozen_but_changed:
            d.path(_octagon(state_x + 6, y + step / 2, 7), "breach")
        d.text(state_x + 18, y + 16, word, "t bad b" if row.frozen_but_changed else "t dim")
        for (_, get, _log), scale in zip(lanes, scales, strict=True):
            value = get(row)
            if value is None:
                d.text(scale.start, y + 16, "–", "t dim")
                continue
            if scale is scales[-1] and lanes[-1][0] == "CKA drift":
                if row.cka_interval is not None:
                    d.line(scale(row.cka_interval[0]), y + step / 2, scale(row.cka_interval[1]), y + step / 2, "interval s0")
                if row.cka_null is not None:
                    d.line(scale(row.cka_null), y + 5, scale(row.cka_null), y + step - 5, "nulltick")
                d.mark(scale(value), y + step / 2, 0, size=4.5, title=f"{row.layer}: {numbers.significant(value)}")
            elif row.state == "frozen" and not row.frozen_but_changed and value == 0:
                d.mark(scale.start, y + step / 2, 0, hollow=True, size=4, title=f"{row.layer}: 0, frozen")
            else:
                d.rect(
                    scale.start,
                    y + 7,
                    max(1.5, scale(value) - scale.start),
                    step - 14,
                    "bar bad" if row.frozen_but_changed else "bar s0",
                    title=f"{row.layer}: {numbers.significant(value)}",
                )
    d.height = bottom + 8
    if len(rows) < len(exhibit.rows):
        d.text(
            0,
            d.height + 12,
            f"{len(exhibit.rows)} layers in {len(rows)} groups, the largest figure of each; every layer stands in the table below.",
            "t dim",
        )
        d.height += 22
    return d.svg()


def _octagon(x: float, y: float, r: float) -> str:
    points = [(x + r * math.cos(math.pi / 8 + k * math.pi / 4), y + r * math.sin(math.pi / 8 + k * math.pi / 4)) for k in range(8)]
    return "M" + "L".join(f"{_n(a)} {_n(b)}" for a, b in points) + "z"


def draw(exhibit: Exhibit, uid: str) -> str | None:
    """The SVG of an exhibit; None for tables, picture grids and confusion grids of more than 20 classes, which are shown as tables."""
    if isinstance(exhibit, Bars):
        return bars(exhibit, uid)
    if isinstance(exhibit, Lines):
        return lines(exhibit, uid)
    if isinstance(exhibit, Heatmap):
        return None if max(len(exhibit.rows), len(exhibit.columns)) > MOST_HEATMAP_CLASSES else heatmap(exhibit, uid)
    if isinstance(exhibit, Intervals):
        return intervals(exhibit, uid)
    if isinstance(exhibit, Ladder):
        return ladder(exhibit, uid)
    return None


def status_shapes() -> dict[str, str]:
    """The shape of every status as the inner part of a 16 × 16 SVG; colour comes from the style sheet (currentColor)."""
    return {
        "pass": '<circle cx="8" cy="8" r="5.4" class="fillc"/>',
        "warn": '<path d="M8 1.8 15 14.2H1z" class="fillc"/>',
        "fail": f'<path d="{_octagon(8, 8, 8)}" class="fillc"/>',
        "inconclusive": '<circle cx="8" cy="8" r="6" class="linec"/><path d="M8 2a6 6 0 0 1 0 12z" class="fillc"/>',
        "review": '<path d="M8 1.5 14.5 8 8 14.5 1.5 8z" class="linec"/>',
        "info": '<rect x="2" y="2" width="12" height="12" rx="1.5" class="linec"/><path d="M8 7v5M8 4v1.6" class="linec"/>',
        "not_evaluated": '<circle cx="8" cy="8" r="6" class="linec dashc"/>',
        "error": '<rect x="2" y="2" width="12" height="12" rx="1.5" class="linec"/><path d="M5 5l6 6M11 5l-6 6" class="linec"/>',
    }
