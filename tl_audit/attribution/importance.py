"""What counts over many samples: mean |value| of each named part with its interval, strips of all values, dependence on a part's own reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from tl_audit.errors import DataError
from tl_audit.measures import intervals
from tl_audit.measures.estimate import Estimate
from tl_audit.measures.sampling import bottom_k, cluster_codes
from tl_audit.modality.readings import Readings, readings
from tl_audit.records.exhibits import Bar, Bars, Cell, Change, Column, Dot, Exhibit, Intervals, Reference, Table

if TYPE_CHECKING:
    from tl_audit.attribution.base import Attribution

__all__ = ["ColumnImportance", "Dependence", "Importance", "Strip", "importance", "importance_change", "local_mean", "part_labels"]

MOST_STRIPS = 12
MOST_DOTS = 300
"""Dots per strip, and of a scatter; which rows are drawn depends on their ids alone. All rows count in every number."""

LEAST_ROWS = 3
LEAST_EFFECTIVE = 5.0
"""Effective rows (or clusters) that a point of a smoothed mean needs; below, nothing is drawn there."""


@dataclass(frozen=True)
class ColumnImportance:
    """One part's figures over all rows.

    Attributes
    ----------
    name : of the column
    mean_absolute : mean of |value|; ``null`` is what chance gives: the mean over columns, had each row's values been dealt to columns at random
    excess : mean of |value| minus the row's own mean over columns, a paired comparison with chance (null 0)
    mean_signed : mean of the value with its sign; a column can count much and cancel out
    top_share : share of rows in which no other column has a larger |value| (ties share); by chance 1 / columns
    """

    name: str
    mean_absolute: Estimate
    excess: Estimate
    mean_signed: Estimate
    top_share: Estimate


@dataclass(frozen=True)
class Strip:
    """The values of one column over rows, for a strip of dots.

    Attributes
    ----------
    name : of the column
    values : (n,) attributions
    shade : (n,) the column's own reading as its rank, 0 lowest to 1 highest; NaN where it is missing
    low, high : what the lowest and the highest shade stand for
    """

    name: str
    values: NDArray[np.float64]
    shade: NDArray[np.float64]
    low: str
    high: str


@dataclass(frozen=True)
class Dependence:
    """How a column's attribution goes with the column's own reading.

    Attributes
    ----------
    name : of the column
    readings, values : (n,) of the rows that are drawn
    grid, mean, low, high : (g,) local-linear mean over the readings with a pointwise 95 % band, of all rows; NaN where fewer than five speak, empty for categories
    bandwidth : of the Gaussian kernel, in the column's unit
    categories : names; readings are places among them. None for numbers
    means : the mean per category with its t interval, in the order of ``categories``
    n, missing : rows used, rows whose cell is missing
    """

    name: str
    readings: NDArray[np.float64]
    values: NDArray[np.float64]
    grid: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    bandwidth: float
    categories: tuple[str, ...] | None
    means: tuple[Estimate, ...]
    n: int
    missing: int


@dataclass(frozen=True, repr=False)
class Importance:
    """Global importance of named parts; the most important first.

    Attributes
    ----------
    maps : the attributions that are summed up
    columns : one entry per column, largest mean |value| first
    used : (n,) rows of ``maps`` that count; blank maps are left out
    cluster : ids of independent units of all rows of ``maps``, None: the rows
    chance : mean |value| that a column would have by chance
    """

    maps: Attribution
    columns: tuple[ColumnImportance, ...]
    used: NDArray[np.int64]
    cluster: NDArray[np.int64] | None
    chance: float

    @property
    def n(self) -> int:
        """Rows that count."""
        return len(self.used)

    @property
    def clusters(self) -> int | None:
        """Independent units behind them, None where the rows are."""
        return None if self.cluster is None else len(np.unique(self.cluster[self.used]))

    @property
    def caption(self) -> str:
        """n, method, seed, and what the reader must know."""
        by = f", {self.clusters} clusters" if self.clusters is not None else ""
        left = len(self.maps) - self.n
        out = f"n = {self.n} rows{by}; {self.maps.method}, seed {self.maps.seed}, {self.maps.budget} model evaluations per row."
        return out + (f" {left} rows without signal are left out." if left else "")

    @property
    def targets(self) -> str:
        """Which outputs were explained: "malignant", or counts where the rows have several."""
        names = self.maps.target_names or tuple(f"output {int(t)}" for t in self.maps.targets)
        found, counts = np.unique(np.array([names[i] for i in self.used], dtype=object).astype(str), return_counts=True)
        if len(found) == 1:
            return str(found[0])
        order = np.argsort(-counts, kind="stable")[:4]
        words = ", ".join(f"{found[k]} in {counts[k]} rows" for k in order)
        return words + (f", {len(found) - 4} more" if len(found) > 4 else "")

    @property
    def mixed(self) -> bool:
        """Whether the rows explain several classes: then the sign of a mean mixes them."""
        return len(np.unique(self.maps.targets[self.used])) > 1

    def to_rows(self) -> list[dict[str, Any]]:
        """One row per column: rank, column, mean_absolute, low, high, chance, excess with interval, mean_signed, top_share, n, clusters, reason."""
        out = []
        for rank, c in enumerate(self.columns, 1):
            row: dict[str, Any] = {"rank": rank, "column": c.name}
            for name, estimate in (
                ("mean_absolute", c.mean_absolute), ("excess", c.excess), ("mean_signed", c.mean_signed), ("top_share", c.top_share),
            ):  # fmt: skip
                low, high = estimate.interval() or (None, None)
                row |= {name: estimate.value, f"{name}_low": low, f"{name}_high": high}
            row |= {"chance": self.chance, "top_share_chance": c.top_share.null, "n": self.n, "clusters": self.clusters}
            row["reason"] = c.mean_absolute.reason
            out.append(row)
        return out

    def to_frame(self) -> Any:  # Any: pandas is imported late
        """``to_rows`` as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.to_rows())

    def exhibits(self, most: int = MOST_STRIPS) -> tuple[Exhibit, ...]:
        """Bars of the ``most`` first columns against chance, and the table of all."""
        shown = self.columns[:most]
        first = self.columns[0]
        bars = tuple(
            Bar(
                label=c.name,
                value=c.mean_absolute.value,
                interval=c.mean_absolute.interval(),
                null=self.chance,
                note=c.mean_absolute.reason,
            )
            for c in shown
        )
        more = f" The {most} first of {len(self.columns)} columns." if len(self.columns) > most else ""
        figure = Bars(
            id="importance",
            title=f"{first.name} moved the output most: mean |value| per column",
            how_to_read="Longer: the column moved the output more, in either direction; whiskers: 95 % interval. The tick is what a column would have by chance.",
            alt="Largest: " + ", ".join(f"{c.name} {c.mean_absolute.value:.3g}" for c in shown[:3] if c.mean_absolute.value is not None) + f"; {self.chance:.3g} by chance",
            caption=self.caption + more,
            value_label="mean |value|",
            bars=bars,
        )  # fmt: skip
        return figure, self._table()

    def _table(self) -> Table:
        rows: list[tuple[Cell, ...]] = []
        for rank, c in enumerate(self.columns, 1):
            rows.append(
                (
                    rank, c.name, c.mean_absolute.value, _words(c.mean_absolute), _against_chance(c.excess), c.mean_signed.value, _words(c.mean_signed),
                    c.top_share.value, _words(c.top_share, share=True),
                )
            )  # fmt: skip
        signed = " Rows explain several classes: the signed mean mixes them." if self.mixed else ""
        return Table(
            id="columns",
            title="Every column",
            how_to_read="Mean |value|: how much the column moved the output. Signed mean: on average up (+) or down (−). Top: share of rows in which it counted most.",
            alt=f"{len(self.columns)} columns with mean |value|, signed mean and share of rows at the top",
            caption=f"{self.caption} By chance: mean |value| {self.chance:.3g}, top in {100 / len(self.columns):.3g} % of rows.{signed}",
            columns=(
                Column(name="rank", format="count"), Column(name="column"), Column(name="mean |value|", format="number"), Column(name="95 % interval"),
                Column(name="against chance"), Column(name="signed mean", format="number"), Column(name="95 % interval of it"),
                Column(name="top", format="share"), Column(name="95 % interval of top"),
            ),
            rows=tuple(rows),
        )  # fmt: skip

    def strips(self, most: int = MOST_STRIPS) -> tuple[Strip, ...]:
        """The values of the ``most`` first columns, at most 300 rows each, with the columns' own readings as shades."""
        rows = self._drawn()
        found = {r.name: r for r in self._readings()}
        at = self._places()
        table = np.stack(self.maps.player_values)
        out = []
        for c in self.columns[:most]:
            reading = found[c.name]
            shade = _shades(reading.numbers[self.used], reading.categories)
            low, high = _ends(reading, self.used)
            inside = np.searchsorted(self.used, rows)
            out.append(Strip(c.name, table[rows, at[c.name]], shade[inside], low, high))
        return tuple(out)

    def dependence(self, column: str) -> Dependence:
        """How the attribution of one column goes with its own reading.

        Numbers: a local-linear mean (Gaussian kernel, Silverman's rule) with a pointwise 95 % band; its variance is the sum of squared weighted
        residuals, leverage-corrected (HC3), over clusters where there are any. Categories: the mean of each with a t interval.

        Raises
        ------
        DataError : no such column
        """
        at = self._places()
        if column not in at:
            raise no_such_column(column, list(at))
        reading = next(r for r in self._readings() if r.name == column)
        x = reading.numbers[self.used]
        y = np.stack(self.maps.player_values)[self.used, at[column]]
        known = np.isfinite(x)
        ids = None if self.cluster is None else self.cluster[self.used][known]
        rows = self._drawn()
        drawn = np.isin(self.used, rows) & known
        none = np.zeros(0)
        if reading.categories is not None:
            present = [k for k in range(len(reading.categories)) if (x[known] == k).any()]
            means = tuple(intervals.mean(y[known][x[known] == k], cluster=None if ids is None else ids[x[known] == k]) for k in present)
            place = {k: i for i, k in enumerate(present)}
            return Dependence(
                column, np.array([place[int(v)] for v in x[drawn]], dtype=np.float64), y[drawn], none, none, none, none, 0.0,
                tuple(reading.categories[k] for k in present), means, int(known.sum()), int((~known).sum()),
            )  # fmt: skip
        grid, mean, low, high, width = local_mean(x[known], y[known], cluster=ids)
        return Dependence(column, x[drawn], y[drawn], grid, mean, low, high, width, None, (), int(known.sum()), int((~known).sum()))

    def dependence_exhibit(self, column: str) -> Intervals | None:
        """Means per category as dots with intervals; None for a numeric column, whose figure is a scatter."""
        found = self.dependence(column)
        if found.categories is None:
            return None
        dots = tuple(
            Dot(label=name, value=e.value, interval=e.interval(), n=e.n, note=e.reason)
            for name, e in zip(found.categories, found.means, strict=True)
        )
        return Intervals(
            id="dependence",
            title=f"What each {column} did to the output",
            how_to_read="Dots: mean attribution of the column among rows with this value; lines: 95 % interval. Right of 0: raised the output.",
            alt="; ".join(f"{d.label} {d.value:.3g}" for d in dots if d.value is not None),
            caption=self.caption,
            value_label=f"attribution of {column}",
            dots=dots,
            references=(Reference(value=0.0, label="no effect", role="null"),),
        )

    def document(self) -> dict[str, Any]:
        """What ``save("x.json")`` writes."""
        from tl_audit.attribution import saving

        made = saving.made(self.maps)
        return {"format_version": saving.FORMAT_VERSION, **made, "targets": self.targets, "importance": self.to_rows()}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What ``save("x.npz")`` writes: the arrays of the maps, ``used`` rows and the clusters."""
        from tl_audit.attribution import saving

        out = saving.arrays(self.maps) | {"used": self.used}
        return out if self.cluster is None else out | {"cluster": self.cluster}

    def figure(self) -> Any:  # Any: a matplotlib figure
        """Bars and strips as a matplotlib figure."""
        return import_module("tl_audit.report.figures").importance_figure(self)

    def save(self, path: str | Path) -> Path:
        """Write .csv, .png, .npz or .json, by suffix."""
        from tl_audit.attribution import saving

        return saving.write(path, figure=self.figure, document=self.document, arrays=self.arrays, table=self.to_frame)

    def __repr__(self) -> str:
        lines = [f"Importance({len(self.columns)} columns; {self.caption} explained: {self.targets})"]
        for c in self.columns[:12]:
            interval = c.mean_absolute.interval()
            words = f" (95 % CI {interval[0]:.3g} to {interval[1]:.3g})" if interval else ""
            lines.append(f"  {c.name}: mean |value| {c.mean_absolute.value:.3g}{words}, top in {(c.top_share.value or 0.0):.0%} of rows")
        if len(self.columns) > 12:
            lines.append(f"  ... and {len(self.columns) - 12} more")
        lines.append(f"  by chance: {self.chance:.3g}, top in {1 / len(self.columns):.0%}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        html: str = import_module("tl_audit.report.notebook").importance_fragment(self)
        return html

    def _places(self) -> dict[str, int]:
        return {name: k for k, name in enumerate(self.maps.inputs.players.names or ())}

    def _drawn(self) -> NDArray[np.int64]:
        """Rows that charts show: all, or 300 of them chosen by their ids."""
        if self.n <= MOST_DOTS:
            return self.used
        ids = [self.maps.inputs.ids[i] for i in self.used]
        return np.asarray(np.sort(self.used[bottom_k(ids, MOST_DOTS, self.maps.seed)]), dtype=np.int64)

    def _readings(self) -> tuple[Readings, ...]:
        inputs = self.maps.inputs
        return readings(inputs.tensor.detach().cpu().double().numpy(), inputs.players, inputs.spec)


def no_such_column(column: str, names: Sequence[str]) -> DataError:
    """The error that names the column, the nearest one, and those that there are."""
    import difflib

    near = difflib.get_close_matches(column, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return DataError(f"there is no column {column!r}{hint} The columns are: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}")


def importance(maps: Attribution, cluster: ArrayLike | Sequence[object] | None = None) -> Importance:
    """Mean |value| of every column over rows, with 95 % t intervals over rows or clusters, against what chance gives.

    Parameters
    ----------
    maps : attributions of named parts (columns)
    cluster : (N,) ids of independent units (patients, sites), one per row of ``maps``

    Raises
    ------
    DataError : parts without names (pictures), fewer than three rows with a signal, or ids of another length
    """
    players = maps.inputs.players
    if players.names is None:
        raise DataError("importance over samples needs named parts (columns): the parts of pictures differ from sample to sample")
    n = len(maps)
    codes = None if cluster is None else cluster_codes(cast(ArrayLike, cluster), n)
    table = np.stack(maps.player_values) if n else np.zeros((0, len(players.names)))
    blank = np.asarray(maps.blank, dtype=np.bool_) if len(maps.blank) == n else np.zeros(n, dtype=np.bool_)
    used = np.flatnonzero(~blank & np.isfinite(table).all(axis=1)).astype(np.int64)
    if len(used) < LEAST_ROWS:
        raise DataError(f"importance needs at least {LEAST_ROWS} rows with a signal, {len(used)} of {n} have one")
    values = table[used]
    size = np.abs(values)
    ids = None if codes is None else codes[used]
    row_mean = size.mean(axis=1)
    chance = float(row_mean.mean())
    best = size == size.max(axis=1, keepdims=True)
    top = best / best.sum(axis=1, keepdims=True)
    columns = []
    for k, name in enumerate(players.names):
        absolute = intervals.mean(size[:, k], cluster=ids)
        columns.append(
            ColumnImportance(
                name,
                _with_null(absolute, chance),
                _with_null(intervals.mean(size[:, k] - row_mean, cluster=ids), 0.0),
                _with_null(intervals.mean(values[:, k], cluster=ids), 0.0),
                _with_null(_share(top[:, k], ids), 1.0 / len(players.names)),
            )
        )
    columns.sort(key=lambda c: (-(c.mean_absolute.value or 0.0), c.name))
    return Importance(maps, tuple(columns), used, codes, chance)


def importance_change(
    first: Attribution, second: Attribution, names: tuple[str, str], cluster: ArrayLike | Sequence[object] | None = None
) -> Intervals:
    """Mean |value| of every column in two attributions of the same rows, with the paired change second - first; the largest of the two first.

    Rows that are blank in either are left out of both. Raises DataError as ``importance`` does, and for other rows or columns.
    """
    if first.inputs.ids != second.inputs.ids or first.inputs.players.names != second.inputs.players.names:
        raise DataError(f"{names[0]} and {names[1]} explain other rows or other columns: explain the same table with both")
    sides = importance(first, cluster), importance(second, cluster)
    used = np.intersect1d(sides[0].used, sides[1].used)
    if len(used) < LEAST_ROWS:
        raise DataError(f"importance needs at least {LEAST_ROWS} rows with a signal in both, {len(used)} have one")
    ids = None if sides[0].cluster is None else sides[0].cluster[used]
    a, b = (np.abs(np.stack(m.player_values)[used]) for m in (first, second))
    columns = first.inputs.players.names or ()
    order = sorted(range(len(columns)), key=lambda k: (-max(float(a[:, k].mean()), float(b[:, k].mean())), columns[k]))[:MOST_STRIPS]
    dots, changes = [], []
    for k in order:
        for name, values, hollow in ((names[0], a, True), (names[1], b, False)):
            e = intervals.mean(values[:, k], cluster=ids)
            dots.append(Dot(label=columns[k], series=name, value=e.value, interval=e.interval(), hollow=hollow, note=e.reason))
        moved = intervals.mean(b[:, k] - a[:, k], cluster=ids)
        changes.append(Change(label=columns[k], value=moved.value, interval=moved.interval()))
    up = [c.label for c in changes if c.interval is not None and c.interval[0] > 0]
    down = [c.label for c in changes if c.interval is not None and c.interval[1] < 0]
    said = " and ".join(f"{', '.join(found[:4])} {word}" for found, word in ((up, "more"), (down, "less")) if found)
    return Intervals(
        id="importance-change",
        title=f"What counts in the {names[1]} model, against the {names[0]}: {said}"
        if said
        else f"No column counts detectably more or less in the {names[1]} model",
        how_to_read=f"Hollow: {names[0]}, filled: {names[1]}; lines: 95 % interval. The paired change answers whether it moved, not the overlap of the lines.",
        alt="; ".join(f"{c.label} {c.value:+.3g}" for c in changes[:4] if c.value is not None),
        caption=f"n = {len(used)} rows, paired; {second.method}, seed {second.seed}. Intervals are of each column alone, not corrected for their number.",
        value_label="mean |value|",
        dots=tuple(dots),
        changes=tuple(changes),
    )


def part_labels(maps: Attribution, most: int = 64) -> tuple[tuple[str, ...], ...] | None:
    """Per sample (the first ``most``) the names of its parts with their readings, "bmi = 32.1"; None where parts have no names."""
    inputs = maps.inputs
    if inputs.players.names is None or inputs.tensor.ndim != 2:
        return None
    columns = readings(inputs.tensor[:most].detach().cpu().double().numpy(), inputs.players, inputs.spec)
    return tuple(tuple(f"{c.name} = {_reading(c, i)}" for c in columns) for i in range(min(most, len(maps))))


def _reading(column: Readings, i: int) -> str:
    value = float(column.numbers[i])
    if not np.isfinite(value):
        return "missing"
    return column.categories[int(value)] if column.categories is not None else f"{value:.4g}".replace("-", "\u2212")


def local_mean(
    x: NDArray[np.float64], y: NDArray[np.float64], *, cluster: NDArray[np.int64] | None = None, points: int = 60
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float]:
    """Local-linear mean of y over x: grid, mean, lower and upper 95 % band (pointwise), and the kernel's bandwidth.

    Gaussian kernel with Silverman's bandwidth 0.9 min(sd, IQR/1.34) n^(-1/5); the variance at a point is Σ l_i² e_i² / (1 - h_i)²,
    summed within clusters first where there are any. The band is a t interval with as many degrees of freedom as the point has
    effective rows (or clusters) beyond two; where fewer than five speak there is no mean (NaN).

    References
    ----------
    Fan, Gijbels (1996). Local Polynomial Modelling and Its Applications. Silverman (1986). Density Estimation for Statistics and Data Analysis.
    """
    none = np.zeros(0)
    if len(x) < LEAST_ROWS or x.max() == x.min():
        return none, none, none, none, 0.0
    spread = min(float(x.std(ddof=1)), float(np.subtract(*np.quantile(x, [0.75, 0.25]))) / 1.34) or float(x.std(ddof=1))
    # not below a fiftieth of the range: readings that crowd in one place must not make the kernel miss the others
    width = max(0.9 * spread * len(x) ** -0.2, float(np.ptp(x)) / 50)
    grid = np.linspace(x.min(), x.max(), points)
    smooth = _weights(x, grid, width)
    mean = smooth @ y
    residual = _residuals(x, y, grid, mean, width)
    parts = smooth * residual
    counted = np.abs(smooth)
    if cluster is not None:
        codes = np.unique(cluster, return_inverse=True)[1]
        member = np.eye(int(codes.max()) + 1)[codes]
        parts, counted = parts @ member, counted @ member
    effective = counted.sum(axis=1) ** 2 / (counted**2).sum(axis=1)
    enough = effective >= LEAST_EFFECTIVE
    half = np.full(points, np.nan)
    half[enough] = stats.t.ppf(0.975, effective[enough] - 2) * np.sqrt((parts[enough] ** 2).sum(axis=1))
    mean = np.where(enough, mean, np.nan)
    return grid, mean, mean - half, mean + half, width


def _residuals(
    x: NDArray[np.float64], y: NDArray[np.float64], grid: NDArray[np.float64], mean: NDArray[np.float64], width: float
) -> NDArray[np.float64]:
    """(n,) what the local mean leaves, divided by 1 - leverage; beyond 3000 rows from the grid, where a row's own leverage no longer counts."""
    if len(x) > 3000:
        return np.asarray(y - np.interp(x, grid, mean), dtype=np.float64)
    at_rows = _weights(x, x, width)
    leverage = np.minimum(np.diagonal(at_rows), 0.95)
    return np.asarray((y - at_rows @ y) / (1 - leverage), dtype=np.float64)


def _weights(x: NDArray[np.float64], at: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    """(A, n) weights of a local-linear mean at some points; each row sums to 1."""
    distance = x[None, :] - at[:, None]
    kernel = np.exp(-0.5 * (distance / width) ** 2)
    s0, s1, s2 = (np.sum(kernel * distance**k, axis=1, keepdims=True) for k in (0, 1, 2))
    determinant = s0 * s2 - s1**2
    # where all the weight lies on one reading there is no slope: the plain local mean
    flat = determinant <= 1e-12 * s0**2 * width**2
    linear = kernel * (s2 - s1 * distance) / np.where(flat, 1.0, determinant)
    return np.asarray(np.where(flat, kernel / np.maximum(s0, np.finfo(np.float64).tiny), linear), dtype=np.float64)


def _share(top: NDArray[np.float64], cluster: NDArray[np.int64] | None) -> Estimate:
    whole = np.isin(top, (0.0, 1.0)).all()
    return intervals.rate(top > 0.5, cluster=cluster) if whole else intervals.mean(top, cluster=cluster, bounds=(0.0, 1.0))


def _with_null(estimate: Estimate, null: float) -> Estimate:
    return replace(estimate, null=null)


def _words(estimate: Estimate, *, share: bool = False) -> str:
    interval = estimate.interval()
    if interval is None:
        return estimate.reason or "none"
    low, high = interval
    if share:
        return f"{100 * low:.0f} to {100 * high:.0f} %"
    return f"{low:.3g} to {high:.3g}".replace("-", "\u2212")


def _against_chance(excess: Estimate) -> str:
    interval = excess.interval()
    if interval is None:
        return "not known"
    return "more" if interval[0] > 0 else "less" if interval[1] < 0 else "undecided"


def _shades(numbers: NDArray[np.float64], categories: tuple[str, ...] | None) -> NDArray[np.float64]:
    """Readings as 0..1: mid-ranks of numbers, so that one outlier does not take all the colour; the place among those present of categories."""
    out = np.full(len(numbers), np.nan)
    known = np.isfinite(numbers)
    if not known.any():
        return out
    if categories is not None:
        present, place = np.unique(numbers[known], return_inverse=True)
        out[known] = place / max(1, len(present) - 1) if len(present) > 1 else 0.5
        return out
    ranks = stats.rankdata(numbers[known])
    low, high = ranks.min(), ranks.max()
    out[known] = (ranks - low) / (high - low) if high > low else 0.5
    return out


def _ends(reading: Readings, used: NDArray[np.int64]) -> tuple[str, str]:
    """What the lowest and the highest shade of a strip stand for."""
    numbers = reading.numbers[used]
    known = numbers[np.isfinite(numbers)]
    if not len(known):
        return "missing", "missing"
    low, high = float(known.min()), float(known.max())
    if reading.categories is not None:
        return reading.categories[int(low)], reading.categories[int(high)]
    return f"{low:.3g}".replace("-", "\u2212"), f"{high:.3g}".replace("-", "\u2212")
