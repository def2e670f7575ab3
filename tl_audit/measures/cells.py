"""Metrics by group with bootstrap intervals, from counts alone: rows that share label, prediction and groups are drawn together.

A metric of groups depends on the rows only through how many of them fall into each cell of label × prediction × group. A bootstrap of rows is
therefore one multinomial draw over the cells, whatever the number of rows; a bootstrap of clusters draws their vectors of counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tl_audit.errors import DataError
from tl_audit.measures.arrays import same_length
from tl_audit.measures.estimate import LADDER_ALPHAS, Estimate, FloatArray, IntArray, Ladder
from tl_audit.measures.intervals import BOOTSTRAP_CLUSTERS, MANY_UNITS, POOLS, resampled_sums, wilson
from tl_audit.measures.sampling import cluster_codes, generator, group_codes
from tl_audit.measures.states import RATES, events_of

RESAMPLES = 1000
MOST_NUMBERS = 250_000_000
"""Counts held at once, cells times resamples: 2 GB."""
METRICS = (*RATES, "f1", "balanced_accuracy")
_EVERYONE = ("accuracy",)  # metrics that need no positive class
_ALPHAS = np.array(LADDER_ALPHAS)


@dataclass(frozen=True)
class GroupMetric:
    """One metric in the groups of one attribute, or of several crossed.

    Attributes
    ----------
    by : the attributes
    metric : one of `METRICS`
    groups : names, one part per attribute; only combinations that occur
    values : the metric of each group
    difference : largest minus smallest over groups (0–1, null 0, lower is better); above 0 by chance alone, and its resamples are larger still:
        ``details`` hold ``bias``, their mean minus the value. For the value by chance see `fairness.largest_difference`
    ratio : smallest over largest (0–1, null 1, higher is better)
    """

    by: tuple[str, ...]
    metric: str
    groups: tuple[tuple[str, ...], ...]
    values: tuple[Estimate, ...]
    difference: Estimate
    ratio: Estimate


def group_metrics(
    labels: ArrayLike,
    predicted: ArrayLike,
    groups: Mapping[str, ArrayLike],
    *,
    positive: object | None = None,
    metrics: Sequence[str] | None = None,
    intersection: bool = True,
    cluster: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[GroupMetric, ...]:
    """Every metric in the groups of every attribute, and of all attributes crossed, each with its interval; also the gaps between groups.

    Rates of independent rows have Wilson intervals [I1]; F1, balanced accuracy, differences and ratios percentile intervals [I5] of one
    bootstrap over cells that they share. With clusters all are [I5] over clusters, from 30 clusters on. A metric without a denominator is
    None, never 0, and takes no part in the gaps; an interval is left out where more than 5 % of the resamples have none.

    Parameters
    ----------
    labels, predicted : (N,), of any one type, compared for equality
    groups : attribute -> (N,) values; missing ones are the group "(missing)"
    positive : the positive label; without one only accuracy is measured
    metrics : some of `METRICS`; None: all that can be had
    intersection : also the groups of all attributes crossed

    Raises
    ------
    DataError : lengths that differ, an unknown metric, one that needs ``positive``, no attribute, more combinations than memory holds

    Examples
    --------
    >>> found = group_metrics([1, 1, 0, 0], [1, 0, 0, 0], {"site": ["a", "a", "b", "b"]}, positive=1, metrics=["accuracy"])
    >>> found[0].groups, [value.value for value in found[0].values], found[0].difference.value
    ((('a',), ('b',)), [0.5, 1.0], 0.5)
    """
    if not groups:
        raise DataError("no attribute: expected groups as {name: one value per row}")
    wanted = (METRICS if positive is not None else _EVERYONE) if metrics is None else tuple(metrics)
    for name in wanted:
        if name not in METRICS:
            raise DataError(f"no metric {name!r}; known: {', '.join(METRICS)}")
        if positive is None and name not in _EVERYONE:
            raise DataError(f"{name} needs a positive class")
    y, p, classes = _shared_codes(labels, predicted)
    n = same_length(labels=y.size, predicted=p.size, **{name: len(np.asarray(values)) for name, values in groups.items()})
    at = None if positive is None else _code_of(positive, classes)
    coded = {name: _codes(values, n) for name, values in groups.items()}
    shape = (len(classes) + 1, len(classes) + 1, *(max(1, len(names)) for _, names in coded.values()))
    held = prod(shape) * max(1, resamples)
    if held > MOST_NUMBERS:
        raise DataError(
            f"{prod(shape)} combinations of label, prediction and {', '.join(coded)} in {resamples} resamples take {held * 8 / 1e9:.0f} GB: "
            "name fewer attributes at once, or bin those with many values"
        )
    cell = np.zeros(n, dtype=np.int64)
    for size, codes in zip(shape, (y, p, *(codes for codes, _ in coded.values())), strict=True):
        cell *= size
        cell += codes
    units = None if cluster is None else cluster_codes(cluster, n)
    clusters = None if units is None else (int(units.max()) + 1 if n else 0)
    size = prod(shape)
    counts = np.bincount(cell, minlength=size)
    drawn = _drawn(cell, counts, units, resamples, generator(seed, "group_metrics")).reshape(resamples, *shape) if n else None
    table = counts.reshape(shape)
    asked: list[tuple[str, ...]] = [(name,) for name in coded]
    if intersection and len(coded) > 1:
        asked.append(tuple(coded))
    found: list[GroupMetric] = []
    for by in asked:
        kept = [position for position, name in enumerate(coded) if name in by]
        names = tuple(product(*(coded[name][1] or ("(missing)",) for name in by)))
        own = _by(table, kept)
        occurs = np.flatnonzero(own.sum(axis=(0, 1)) > 0)
        own = own[..., occurs]
        again = None if drawn is None else _by(drawn, [position + 1 for position in kept], lead=1)[..., occurs]
        listed = tuple(names[i] for i in occurs)
        found += [_measured(by, metric, listed, own, again, at, clusters) for metric in wanted]
    return tuple(found)


def _measured(
    by: tuple[str, ...],
    metric: str,
    groups: tuple[tuple[str, ...], ...],
    table: IntArray,
    drawn: FloatArray | None,
    positive: int | None,
    clusters: int | None,
) -> GroupMetric:
    rows = table.sum(axis=(0, 1))
    values, base = _values(table, metric, positive)
    empty = Estimate(None, int(rows.sum()), "no rows", clusters=clusters)
    if drawn is None:
        return GroupMetric(by, metric, groups, (), empty, empty)
    samples = _values(drawn, metric, positive)[0]
    spread, ratios = _gaps(values[None]), _gaps(samples)
    ladders = _ladders(np.concatenate([samples, ratios], axis=1), clusters)
    estimates = []
    for g, name in enumerate(groups):
        if np.isnan(values[g]):
            estimates.append(Estimate(None, int(base[g]), f"no denominator for {metric} in {' × '.join(name)}", clusters=clusters))
        elif clusters is None and metric in RATES:
            hits, of = events_of(table[..., g : g + 1], metric, positive)
            estimates.append(wilson(int(hits[0]), int(of[0])))
        else:
            ladder, reason = ladders[g]
            estimates.append(
                Estimate(float(values[g]), int(base[g]), reason, clusters, ladder=ladder, details={"method": "bootstrap of cells"})
            )
    both = []
    for column, null in ((0, 0.0), (1, 1.0)):
        value, (ladder, reason) = float(spread[0, column]), ladders[len(groups) + column]
        if np.isnan(value):
            why = "fewer than two groups with a value" if column == 0 or np.isnan(spread[0, 0]) else "every group has 0"
            both.append(Estimate(None, int(rows.sum()), why, clusters=clusters, null=null))
            continue
        known = ratios[:, column][np.isfinite(ratios[:, column])]
        details = {"method": "bootstrap of cells", "bias": float(known.mean()) - value if known.size else None}
        both.append(Estimate(value, int(rows.sum()), reason, clusters, null, ladder=ladder, details=details))
    return GroupMetric(by, metric, groups, tuple(estimates), both[0], both[1])


# ---------------------------------------------------------------- inside


def _drawn(cell: IntArray, counts: IntArray, units: IntArray | None, resamples: int, rng: np.random.Generator) -> FloatArray:
    """Counts of all cells in each resample of rows, or of clusters, (B, K)."""
    if units is None:
        some = np.flatnonzero(counts)
        result = np.zeros((resamples, counts.size))
        result[:, some] = rng.multinomial(int(counts.sum()), counts[some] / counts.sum(), size=resamples)
        return result
    clusters = int(units.max()) + 1
    if clusters >= MANY_UNITS:
        units, clusters = (rng.permutation(clusters) % POOLS)[units], POOLS
    some, place = np.unique(cell, return_inverse=True)
    own = np.bincount(units * some.size + place, minlength=clusters * some.size).reshape(clusters, some.size).astype(np.float64)
    result = np.zeros((resamples, counts.size))
    result[:, some] = resampled_sums(np.arange(clusters), own, resamples, rng)
    return result


def _by(table: Any, kept: Sequence[int], lead: int = 0) -> Any:  # Any: counts, integer or float
    """Counts (..., L, P, G) of the crossed groups of some attributes, the others added up. ``kept``: their places among the attributes."""
    axes = range(lead + 2, table.ndim)
    gone = tuple(axis for axis in axes if axis - 2 not in kept)
    table = table.sum(axis=gone)
    return table.reshape(*table.shape[: lead + 2], -1)


def _values(table: Any, metric: str, positive: int | None) -> tuple[FloatArray, IntArray]:  # Any: counts, integer or float
    """The metric of each group, NaN where undefined, and its denominator, each (..., G)."""
    if metric in RATES:
        hits, base = events_of(table, metric, positive)
        return _ratio(hits, base), base
    (both, are), (said, _) = events_of(table, "tpr", positive), events_of(table, "selection_rate", positive)
    if metric == "f1":
        said = table[..., :, positive, :].sum(axis=-2)
        return _ratio(2 * both, are + said), are + said
    wrong, others = events_of(table, "fpr", positive)
    return (_ratio(both, are) + 1 - _ratio(wrong, others)) / 2, np.minimum(are, others)


def _ratio(hits: Any, base: Any) -> FloatArray:  # Any: counts, integer or float
    return np.asarray(np.divide(hits, base, out=np.full(np.shape(base), np.nan), where=base > 0), dtype=np.float64)


def _gaps(values: FloatArray) -> FloatArray:
    """Largest minus smallest and smallest over largest of each row (B, G), as (B, 2); NaN below two defined groups."""
    known = np.isfinite(values)
    high = np.where(known, values, -np.inf).max(axis=1, initial=-np.inf)
    low = np.where(known, values, np.inf).min(axis=1, initial=np.inf)
    enough = known.sum(axis=1) >= 2
    result = np.full((values.shape[0], 2), np.nan)
    result[enough, 0] = high[enough] - low[enough]
    scaled = enough & (high > 0)
    result[scaled, 1] = low[scaled] / high[scaled]
    return result


def _ladders(samples: FloatArray, clusters: int | None) -> list[tuple[Ladder, str | None]]:
    """Percentile intervals of all columns (B, K) from one sort, as `intervals.percentile_ladder` of each."""
    resamples = samples.shape[0]
    if clusters is not None and clusters < BOOTSTRAP_CLUSTERS:
        reason = f"{clusters} clusters: a bootstrap needs {BOOTSTRAP_CLUSTERS}"
        return [((), reason)] * samples.shape[1]
    ordered = np.sort(samples, axis=0)  # undefined ones last
    result: list[tuple[Ladder, str | None]] = []
    levels = np.concatenate([_ALPHAS / 2, 1 - _ALPHAS / 2])
    sizes = np.isfinite(samples).sum(axis=0)
    for column, known in zip(ordered.T, sizes.tolist(), strict=True):
        if known < 0.95 * resamples:
            result.append(((), f"undefined in {resamples - known} of {resamples} resamples: no interval"))
            continue
        if column[known - 1] - column[0] <= 1e-12 * max(1.0, abs(float(column[known - 1]))):
            result.append(((), "no resample differs: no spread to make an interval from"))
            continue
        at = levels * (known - 1)
        below = np.floor(at).astype(np.int64)
        above = np.minimum(below + 1, known - 1)
        bounds = column[below] + (at - below) * (column[above] - column[below])
        keep = known * _ALPHAS >= 4
        rows = zip(_ALPHAS[keep].tolist(), bounds[: _ALPHAS.size][keep].tolist(), bounds[_ALPHAS.size :][keep].tolist(), strict=True)
        result.append((tuple(rows), None))
    return result


def _codes(values: ArrayLike, n: int) -> tuple[IntArray, tuple[str, ...]]:
    """Codes and names of an attribute; small whole numbers without a search, all else by `group_codes`."""
    array = np.asarray(values)
    if array.shape == (n,) and n and array.dtype.kind in "iub" and int(array.min()) >= 0 and int(array.max()) < 1000:
        counts = np.bincount(array.astype(np.int64))
        found = np.flatnonzero(counts)
        names = [str(array.dtype.type(value)) for value in found]
        order = sorted(range(found.size), key=lambda i: names[i])
        place = np.zeros(counts.size, dtype=np.int64)
        place[found[order]] = np.arange(found.size)
        return place[array.astype(np.int64)], tuple(names[i] for i in order)
    return group_codes(array, n)


def _shared_codes(labels: ArrayLike, predicted: ArrayLike) -> tuple[IntArray, IntArray, list[Any]]:  # Any: labels of any type
    """Codes of labels and predictions in one list of classes."""
    y, p = np.asarray(labels), np.asarray(predicted)
    if y.ndim != 1 or p.ndim != 1:
        raise DataError(f"labels have shape {y.shape}, predictions {p.shape}: expected one per row")
    both = (y, p)
    if all(side.dtype.kind in "iub" for side in both) and all(side.size and side.min() >= 0 and side.max() < 1000 for side in both):
        shown = np.flatnonzero(
            sum(np.bincount(side.astype(np.int64), minlength=1 + int(max(y.max(), p.max()))) for side in both)  # type: ignore[arg-type]
        )
        place = np.zeros(int(shown[-1]) + 1, dtype=np.int64)
        place[shown] = np.arange(shown.size)
        return place[y.astype(np.int64)], place[p.astype(np.int64)], shown.tolist()
    places: dict[Any, int] = {}
    rows = [np.array([places.setdefault(value, len(places)) for value in side.tolist()], dtype=np.int64) for side in both]
    return rows[0], rows[1], list(places)


def _code_of(positive: object, classes: list[Any]) -> int:  # Any: labels of any type
    """Place of the positive class; one that never occurs has a place of its own, which no row is in."""
    return classes.index(positive) if positive in classes else len(classes)
