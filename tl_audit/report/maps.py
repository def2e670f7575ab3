"""Views of attributions: pictures with their colour scales, bars of columns, and the words that say what the values mean. Read by attributes alone."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tl_audit.records.colours import colour_table, reach
from tl_audit.records.exhibits import Bar, Bars, Picture
from tl_audit.report import numbers
from tl_audit.report.page import Cell, Counters, ExhibitView, Grid, Pictures, exhibit_view, picture_source

__all__ = [
    "MOST_BARS",
    "SampleView",
    "Shown",
    "attribution_samples",
    "column_bars",
    "columns_beside",
    "comparison_samples",
    "drawn_values",
    "made_words",
    "map_scale",
    "panels",
    "part_outlines",
    "reading_words",
    "sheet_png",
    "target_name",
    "unit_words",
]

MOST_BARS = 12
SIDE = 160
OVER = 0.65
"""Share of the map's colour in an overlay; the rest is the grey picture."""

Scale = tuple[float, float]


@dataclass(frozen=True)
class Shown:
    """One picture with its colour scale: ``bar`` is the source of the scale's picture, "" where there is none."""

    title: str
    src: str
    alt: str
    note: str = ""
    low: str = ""
    high: str = ""
    bar: str = ""


@dataclass(frozen=True)
class SampleView:
    """What is shown of one sample: pictures, or bars of its columns."""

    id: str
    target: str
    pictures: tuple[Shown, ...] = ()
    bars: ExhibitView | None = None
    grid: Grid | None = None
    rest: str = ""
    blank: bool = False
    residual: str = ""
    likeness: str = ""


# ---- words ----------------------------------------------------------------------------------------------------------------------------------


def target_name(attribution: Any, i: int) -> str:  # Any: attribution.base.Attribution; report may not import it
    """The explained class of a sample by name, or its output number."""
    names = attribution.target_names
    return str(names[i]) if names is not None else f"output {int(attribution.targets[i])}"


def _output(attribution: Any) -> str:
    params = getattr(attribution, "params", {}) or {}
    return str(params.get("output") or "output")


def unit_words(attribution: Any) -> str:
    """What a value of this method means, in one sentence."""
    output = _output(attribution)
    whole = "each column" if not _spatial(attribution) else "each outlined part as a whole" if _by_parts(attribution) else "each pixel"
    if attribution.completeness is not None:
        return f"units of the {output}, {whole}; all parts of a sample together give its change from the baseline (the input with nothing in it)."
    if not attribution.signed:
        return f"without unit and without sign, {whole}; only the order within one map can be read, not the size."
    method = str(attribution.method)
    if method.startswith("lime"):
        return f"weights of a local linear model, {whole}: about how much the {output} changes when the part is there instead of filled in."
    if method in ("occlusion", "feature_ablation", "ablation"):
        return f"how much the {output} drops when the part is filled in, {whole}."
    if "saliency" in method or "smooth" in method or method == "gradient":
        return f"slope of the {output}: change per unit of the model's input, {whole}."
    return f"effect on the {output} as {method} measures it, {whole}; above 0 raises it, below 0 lowers it."


def _by_parts(attribution: Any) -> bool:
    return any(part_outlines(attribution, i) is not None for i in range(min(4, len(attribution.targets))))


def reading_words(attribution: Any, *, contrast: bool | None = None) -> str:
    """How the colours or bars of this method are read."""
    two = contrast if contrast is not None else getattr(attribution, "against", None) is not None
    if not _spatial(attribution):
        to = "the first class against the second" if two else "the class that is named"
        words = f"bars to the right raised the output for {to}, bars to the left lowered it."
        return words + (" Whiskers: ± one standard error of the method's own sampling." if attribution.standard_error is not None else "")
    if not attribution.signed:
        return "yellow counted most, dark blue least; the upper half of each scale is the colour over dark, the lower over light parts of the picture."
    to = (
        "for the first class and against the second, blue the other way round"
        if two
        else "for the class that is named, blue parts against it"
    )
    return f"orange parts speak {to}; the upper half of each scale is the colour over dark, the lower over light parts of the picture."


def made_words(attribution: Any) -> str:
    """Method, layer, evaluations and seed on one line."""
    layer = f", layer {attribution.layer}" if attribution.layer else ""
    return f"{attribution.method}{layer}, {attribution.budget} model evaluations per sample, seed {attribution.seed}"


# ---- maps -----------------------------------------------------------------------------------------------------------------------------------


def _spatial(attribution: Any) -> bool:
    return bool(np.asarray(attribution.values).ndim == 3)


def part_outlines(attribution: Any, i: int) -> NDArray[np.int64] | None:
    """(H, W) part of each pixel where the method gives one value per part; None where it values single pixels."""
    values, players = np.asarray(attribution.values), attribution.inputs.players
    if values.ndim != 3 or players is None or len(attribution.player_values) <= i or _blank(attribution, i):
        return None
    assignment = np.asarray(players.assignment[i].cpu().numpy())
    if assignment.shape != values[i].shape:
        return None
    mine = np.asarray(attribution.player_values[i], dtype=np.float64)
    area = np.bincount(assignment.reshape(-1), minlength=len(mine))
    spread = (mine / np.maximum(area, 1))[assignment]
    if area.max() <= 1 or not np.allclose(
        values[i], spread, rtol=1e-6, atol=1e-9 * max(1.0, float(np.abs(spread).max(initial=0.0))), equal_nan=True
    ):
        return None
    return assignment


def drawn_values(attribution: Any, i: int) -> NDArray[np.float64]:
    """What is painted: the value of the whole part at each of its pixels, or the pixel's own."""
    outlines = part_outlines(attribution, i)
    if outlines is None:
        return np.asarray(attribution.values[i], dtype=np.float64)
    return np.asarray(attribution.player_values[i], dtype=np.float64)[outlines]


def map_scale(values: Sequence[NDArray[np.float64]], *, signed: bool) -> Scale | None:
    """One colour scale for maps that are compared; None where none has a signal."""
    flat = np.concatenate([np.zeros(0), *[v.reshape(-1) for v in values]])
    return reach(flat, signed=signed)


def _number(x: float, *, plus: bool) -> str:
    text = numbers.significant(x, 2)
    return f"+{text}" if plus and x > 0 else text


def scale_bar(signed: bool) -> str:
    """The colours of a scale as a picture: above over black, below over white, as they look over dark and light parts of a picture."""
    table = colour_table(signed)
    stops = "".join(f'<stop offset="{k / (len(table) - 1):.3f}" stop-color="rgb({r},{g},{b})"/>' for k, (r, g, b) in enumerate(table))
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="90" height="10" viewBox="0 0 90 10" preserveAspectRatio="none">'
        f'<defs><linearGradient id="g">{stops}</linearGradient></defs><rect width="90" height="5" fill="#000"/>'
        '<rect y="5" width="90" height="5" fill="#fff"/>'
        f'<rect width="90" height="10" fill="url(#g)" fill-opacity="{OVER}"/></svg>'
    )
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode("ascii")


def shown(picture: Picture, *, scale: Scale | None = None, signed: bool = False) -> Shown:
    """A picture as it stands on the page."""
    src = picture_source(picture, "attribution") if picture.png else ""
    note = picture.note or ""
    if scale is None or not src or note == "no signal":
        return Shown(picture.title, src, picture.alt, note)
    return Shown(picture.title, src, picture.alt, note, _number(scale[0], plus=signed), _number(scale[1], plus=signed), scale_bar(signed))


def _map(
    attribution: Any, i: int, values: NDArray[np.float64], title: str, scale: Scale | None, *, signed: bool, outlines: Any
) -> Shown | None:
    inputs = attribution.inputs
    picture = inputs.modality.map_picture(
        inputs.tensor[i], values, inputs.spec, title=title, signed=signed, side=SIDE, scale=scale, outlines=outlines
    )
    return None if picture is None else shown(picture, scale=scale, signed=signed)


def _blank(attribution: Any, i: int) -> bool:
    return bool(attribution.blank[i]) if len(attribution.blank) > i else False


# ---- one attribution ------------------------------------------------------------------------------------------------------------------------


def attribution_samples(attribution: Any, most: int, labels: Sequence[Sequence[str]] | None, ids: Counters) -> list[SampleView]:
    """The first samples: input and map, or bars of columns."""
    out = []
    for i in range(min(most, len(attribution.targets))):
        inputs = attribution.inputs
        blank = _blank(attribution, i)
        residual = None if attribution.completeness is None else float(attribution.completeness[i])
        view = SampleView(
            str(inputs.ids[i]),
            target_name(attribution, i),
            blank=blank,
            residual=_residual(residual),
        )
        own = inputs.modality.picture(inputs.tensor[i], inputs.spec, title="input")
        values = drawn_values(attribution, i)
        signed = bool(attribution.signed)
        scale = None if blank else map_scale([np.asarray(values)], signed=signed)
        over = _map(attribution, i, values, str(attribution.method), scale, signed=signed, outlines=part_outlines(attribution, i))
        if over is not None:
            view = replace(view, pictures=tuple(p for p in (None if own is None else shown(own), over) if p is not None))
        else:
            bars, rest = column_bars(attribution, i, None if labels is None else labels[i])
            view = replace(view, bars=exhibit_view(bars, ids, Pictures()), rest=rest)
        out.append(view)
    return out


def _residual(residual: float | None) -> str:
    """How far the parts are from adding up, "" where they do to a millionth."""
    if residual is None or abs(residual) < 1e-6:
        return ""
    return f"{residual:.3g}".replace("-", "\u2212") if math.isfinite(residual) else "an unknown amount"


def column_bars(attribution: Any, i: int, labels: Sequence[str] | None) -> tuple[Bars, str]:
    """The columns that counted most as bars, and what the rest hold."""
    inputs = attribution.inputs
    marks = list(inputs.modality.map_bars(attribution.values[i], inputs.players, i))
    names = list(getattr(inputs.players, "names", None) or ())
    error = None if getattr(attribution, "standard_error", None) is None else attribution.standard_error[i]
    where = {name: k for k, name in enumerate(names)}
    marks.sort(key=lambda b: -abs(b.value) if b.value is not None else math.inf)
    made = []
    for bar in marks:
        k = where.get(bar.label)
        spread = None if error is None or k is None or bar.value is None or not math.isfinite(error[k]) else float(error[k])
        interval = None if spread is None else (bar.value - spread, bar.value + spread)
        made.append(bar.model_copy(update={"label": bar.label if labels is None or k is None else labels[k], "interval": interval}))
    top = made[:MOST_BARS]
    title = f"What moved the output of {inputs.ids[i]}"
    exhibit = Bars(
        id="columns", title=title, how_to_read="Bars to the right raised the output, bars to the left lowered it.",
        alt=_bar_words(top), caption=f"{attribution.method}, seed {attribution.seed}", value_label=f"attribution ({_output(attribution)})",
        bars=tuple(top), signed=bool(attribution.signed),
    )  # fmt: skip
    return exhibit, _rest([b.value for b in made], "column")


def _rest(values: Sequence[float | None], what: str) -> str:
    """What the columns beyond the drawn ones hold."""
    sizes = [abs(v) for v in values if v is not None]
    left = len(values) - MOST_BARS
    if left <= 0:
        return ""
    total = sum(sizes)
    share = sum(sizes[MOST_BARS:]) / total if total else 0.0
    return f"{left} more {what}{'s' if left > 1 else ''} hold {100 * share:.0f} % of all |values|."


def _bar_words(bars: Sequence[Bar]) -> str:
    have = sorted((b for b in bars if b.value is not None), key=lambda b: -abs(b.value or 0.0))[:3]
    return "Largest: " + ", ".join(f"{b.label} {b.value:.3g}" for b in have) if have else "No column has an attribution."


def sheet_png(attribution: Any, most: int = 4) -> bytes | None:
    """Input and map of the first samples as one PNG, for viewers that show no HTML; None where there are no pictures."""
    import io

    from PIL import Image

    rows = []
    for sample in attribution_samples(attribution, most, None, Counters()) if _spatial(attribution) else ():
        pictures = [Image.open(io.BytesIO(base64.b64decode(p.src.split(",", 1)[1]))).convert("RGB") for p in sample.pictures if p.src]
        if pictures:
            rows.append(pictures)
    if not rows:
        return None
    gap = 6
    width = max(sum(p.width + gap for p in row) for row in rows) - gap
    sheet = Image.new("RGB", (width, sum(max(p.height for p in row) + gap for row in rows) - gap), "white")
    y = 0
    for row in rows:
        x = 0
        for picture in row:
            sheet.paste(picture, (x, y))
            x += picture.width + gap
        y += max(p.height for p in row) + gap
    file = io.BytesIO()
    sheet.save(file, format="PNG")
    return file.getvalue()


# ---- comparisons ----------------------------------------------------------------------------------------------------------------------------


def comparison_samples(comparison: Any, most: int, labels: Sequence[Sequence[str]] | None, ids: Counters) -> list[SampleView]:
    """Per sample: input, each map, the difference; one scale where the maps are of one method."""
    maps: dict[str, Any] = dict(comparison.maps)
    first = next(iter(maps.values()))
    likeness = {pair: comparison.rank_correlation(*pair) for pair in comparison.pairs}
    out = []
    for i in range(min(most, len(first.targets))):
        names = [target_name(m, i) for m in maps.values()]
        target = names[0] if len(set(names)) == 1 else "; ".join(f"{n}: {t}" for n, t in zip(maps, names, strict=True))
        words = "; ".join(
            f"{_pair_words(pair, len(maps))}{'not defined, a map is blank' if not math.isfinite(r[i]) else numbers.number(float(r[i]), 2)}"
            for pair, r in likeness.items()
        )
        view = SampleView(str(first.inputs.ids[i]), target, likeness=f"Rank correlation of the parts: {words}.")
        if _spatial(first):
            view = replace(view, pictures=_beside(comparison, i))
        else:
            bars, table, rest = columns_beside(comparison, i, None if labels is None else labels[i])
            view = replace(view, bars=exhibit_view(bars, ids, Pictures()), grid=_values_grid(table, ids), rest=rest)
        out.append(view)
    return out


def _pair_words(pair: tuple[str, str], maps: int) -> str:
    return "" if maps == 2 else f"{pair[0]} and {pair[1]} "


class Panel(NamedTuple):
    """One map of a comparison: whose, what is painted, its name, the ends of its scale, whether it has a sign, whether it is blank."""

    attribution: Any
    values: NDArray[np.float64]
    name: str
    scale: Scale | None
    signed: bool
    blank: bool


def panels(comparison: Any, i: int) -> list[Panel]:
    """The maps of one sample in order, then the difference. Maps of one method share their scale, which the difference keeps around 0."""
    sides: dict[str, Any] = dict(comparison.maps)
    painted = {name: drawn_values(m, i) for name, m in sides.items()}
    common = comparison.difference is not None
    first = next(iter(sides.values()))
    alive = [v for name, v in painted.items() if not _blank(sides[name], i)]
    shared = map_scale(alive, signed=bool(first.signed)) if common else None
    out = []
    for name, one in sides.items():
        blank = _blank(one, i)
        scale = shared if common else map_scale([painted[name]], signed=bool(one.signed))
        out.append(Panel(one, painted[name], name, None if blank else scale, bool(one.signed), blank))
    if common and len(alive) == len(sides):  # a blank map has nothing to subtract
        a, b = painted.values()
        size = None if shared is None else max(abs(shared[0]), abs(shared[1]))
        ends = None if size is None else (-size, size)
        out.append(Panel(first, b - a, f"{comparison.names[1]} \u2212 {comparison.names[0]}", ends, True, size is None))
    return out


def _beside(comparison: Any, i: int) -> tuple[Shown, ...]:
    first = next(iter(comparison.maps.values()))
    own = first.inputs.modality.picture(first.inputs.tensor[i], first.inputs.spec, title="input")
    out = [None if own is None else shown(own)]
    for panel in panels(comparison, i):
        outlines = part_outlines(panel.attribution, i)
        out.append(_map(panel.attribution, i, panel.values, panel.name, panel.scale, signed=panel.signed, outlines=outlines))
    return tuple(p for p in out if p is not None)


def columns_beside(comparison: Any, i: int, labels: Sequence[str] | None) -> tuple[Bars, list[list[str]], str]:
    """The columns that counted most in any of the maps as bars, a series per map; their numbers as a table (heads first); what is not drawn."""
    maps: dict[str, Any] = dict(comparison.maps)
    first = next(iter(maps.values()))
    names = list(first.inputs.players.names or [f"part {k}" for k in range(len(first.player_values[i]))])
    shown_names = list(labels) if labels is not None else names
    table = np.array([m.player_values[i] for m in maps.values()], dtype=np.float64)
    size = np.nan_to_num(np.abs(table))
    # each method by its own scale where units differ
    weight = size if comparison.difference is not None else size / np.maximum(size.max(axis=1, keepdims=True), np.finfo(float).tiny)
    order = sorted(range(len(names)), key=lambda k: (-weight[:, k].max(), k))
    top = order[:MOST_BARS]
    bars = []
    for k in top:
        for row, (name, one) in enumerate(maps.items()):
            value = float(table[row, k])
            error = None if one.standard_error is None else float(one.standard_error[i][k])
            interval = None if error is None or not math.isfinite(error) or not math.isfinite(value) else (value - error, value + error)
            known = math.isfinite(value)
            bars.append(
                Bar(
                    label=shown_names[k],
                    series=name,
                    value=value if known else None,
                    interval=interval,
                    note=None if known else "not finite",
                )
            )
    exhibit = Bars(
        id="columns", title=f"{' and '.join(maps)}: what moved the output of {first.inputs.ids[i]}",
        how_to_read="Bars to the right raised the output, bars to the left lowered it.", alt=_bar_words(bars), caption="",
        value_label=f"attribution ({_output(first)})", bars=tuple(bars), signed=bool(first.signed),
    )  # fmt: skip
    heads = ["column", *maps]
    if comparison.difference is not None:
        heads.append(f"{comparison.names[1]} \u2212 {comparison.names[0]}")
    rows = [heads]
    for k in top:
        cells = [shown_names[k], *[_cell(float(v)) for v in table[:, k]]]
        if comparison.difference is not None:
            cells.append(_cell(float(comparison.player_difference[i][k]), plus=True))
        rows.append(cells)
    left = len(names) - len(top)
    return exhibit, rows, f"{left} more columns are not drawn." if left > 0 else ""


def _values_grid(table: list[list[str]], ids: Counters) -> Grid:
    heads, *rows = table
    numeric = (False, *[True] * (len(heads) - 1))
    return Grid(ids.next("t"), "Values", tuple(heads), numeric, tuple(tuple(Cell(c) for c in row) for row in rows))


def _cell(x: float, *, plus: bool = False) -> str:
    return "not finite" if not math.isfinite(x) else _number_three(x, plus=plus)


def _number_three(x: float, *, plus: bool) -> str:
    text = numbers.significant(x, 3)
    return f"+{text}" if plus and x > 0 else text
