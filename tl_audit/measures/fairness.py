"""Performance by group, and the gap of each group to the rest (TLA206, 601 to 603, 606, 611).

A missing group value is the group "(missing)": shown and compared, never merged into anyone's rest. A rate without a
denominator is undefined, never 0 and never 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from tl_audit.errors import DataError
from tl_audit.measures.arrays import finite_vector, same_length, truth_vector
from tl_audit.measures.estimate import BoolArray, Estimate, FloatArray, IntArray, normal_quantile
from tl_audit.measures.intervals import (
    MANY_UNITS,
    crosses,
    mean,
    mean_difference,
    newcombe,
    paired_rate_difference,
    rate,
    rate_difference,
    sums_by,
)
from tl_audit.measures.permutation import RESAMPLES, domain_labellings, permutation_p, resamples_for
from tl_audit.measures.sampling import cluster_codes, generator, group_codes

MISSING = "(missing)"
_MANY_ROWS = 60  # from here on labellings are too many to enumerate

_EMPTY = {
    "accuracy": "no rows",
    "selection_rate": "no rows",
    "base_rate": "no rows",
    "tpr": "no positive rows",
    "fpr": "no negative rows",
    "precision": "nothing predicted positive",
    "nll": "no rows",
}


# ---------------------------------------------------------------- groups


@dataclass(frozen=True)
class GroupRates:
    """Performance in one group.

    Attributes
    ----------
    group : name; "(missing)" for rows without a value
    n, positives, clusters : rows, positive rows (None without a positive class), independent units (None without clusters)
    rates : by metric name (accuracy, and with a positive class selection_rate, tpr, fpr, precision, base_rate; nll where given)
    """

    group: str
    n: int
    positives: int | None
    clusters: int | None
    rates: Mapping[str, Estimate]


def group_rates(
    groups: ArrayLike,
    labels: ArrayLike,
    predicted: ArrayLike,
    *,
    positive: object | None = None,
    nll_rows: ArrayLike | None = None,
    cluster: ArrayLike | None = None,
    declared: tuple[str, ...] = (),
) -> tuple[GroupRates, ...]:
    """Rates of each group with their own denominators, sorted by name, "(missing)" last.

    Rates with [I1]/[I4], nll with t over rows or clusters (nats).

    Parameters
    ----------
    groups, labels, predicted : (N,); labels and predictions of any type, compared for equality
    positive : the positive label; without one only accuracy (and nll) is measured
    nll_rows : (N,), negative log-likelihood of each row
    declared : groups that must be listed even if no row has them
    """
    codes, names, y, p, ids = _aligned(groups, labels, predicted, cluster)
    losses = None if nll_rows is None else finite_vector(nll_rows, "nll_rows")
    if losses is not None:
        same_length(labels=y.size, nll_rows=losses.size)
    result = []
    for name in _listed(names, declared):
        inside = codes == names.index(name) if name in names else np.zeros(y.size, dtype=np.bool_)
        rates = {}
        for metric, (hit, base) in _events(y, p, positive).items():
            rates[metric] = _rate(hit, base & inside, ids, metric)
        if losses is not None:
            loss = mean(losses[inside], cluster=None if ids is None else ids[inside])
            rates["nll"] = replace(loss, reason=_EMPTY["nll"]) if loss.value is None else loss
        clusters = None if ids is None else int(np.unique(ids[inside]).size)
        positives = None if positive is None else int((inside & (y == positive)).sum())
        result.append(GroupRates(name, int(inside.sum()), positives, clusters, rates))
    return tuple(result)


class UndefinedCell(NamedTuple):
    """A group and a metric that has no value there, and why."""

    group: str
    metric: str
    reason: str


def undefined_cells(rates: tuple[GroupRates, ...]) -> tuple[UndefinedCell, ...]:
    """Every group and metric without a value (TLA611)."""
    return tuple(
        UndefinedCell(group.group, metric, estimate.reason or "undefined")
        for group in rates
        for metric, estimate in group.rates.items()
        if estimate.value is None
    )


# ---------------------------------------------------------------- gaps


@dataclass(frozen=True)
class GroupGap:
    """Rate of a group minus that of the rest (or of the reference group), with both rates."""

    group: str
    inside: Estimate
    outside: Estimate
    gap: Estimate


def group_gaps(
    groups: ArrayLike,
    labels: ArrayLike,
    predicted: ArrayLike,
    *,
    metric: str = "accuracy",
    positive: object | None = None,
    reference: str | None = None,
    cluster: ArrayLike | None = None,
    seed: int = 0,
    declared: tuple[str, ...] = (),
) -> tuple[GroupGap, ...]:
    """Gap of each group to the rest in one metric (-1..1, null 0), in group order; the reference group itself is left out.

    The rest are all other rows with a known group; for "(missing)" all rows with a known group. Intervals as `rate_difference`.

    Parameters
    ----------
    metric : accuracy, selection_rate, tpr, fpr, precision or base_rate; all but accuracy need ``positive``
    reference : name of a group to compare with, in place of the rest
    """
    codes, names, y, p, ids = _aligned(groups, labels, predicted, cluster)
    events = _events(y, p, positive)
    if metric not in events:
        needs = "" if metric not in _EMPTY or metric == "nll" else ": it needs a positive class"
        raise DataError(f"no gap is defined for {metric!r}{needs}; known here: {', '.join(events)}")
    hit, base = events[metric]
    return binary_gaps(
        codes_to_names(codes, names),
        hit,
        denominator=base,
        reference=reference,
        cluster=ids,
        seed=seed,
        declared=declared,
        empty=_EMPTY[metric],
    )


def binary_gaps(
    groups: ArrayLike,
    hits: ArrayLike,
    *,
    denominator: ArrayLike | None = None,
    reference: str | None = None,
    cluster: ArrayLike | None = None,
    seed: int = 0,
    declared: tuple[str, ...] = (),
    empty: str = "no rows",
) -> tuple[GroupGap, ...]:
    """`group_gaps` for any 0/1 outcome (a flip, a hit of one class), among the rows where ``denominator`` is True.

    Parameters
    ----------
    hits : (N,), True where the outcome occurred
    denominator : (N,), rows that count; all without it
    empty : reason to print where a side has no such rows
    """
    outcome = truth_vector(hits, "hits")
    base = np.ones(outcome.size, dtype=np.bool_) if denominator is None else truth_vector(denominator, "denominator")
    n = same_length(groups=len(np.asarray(groups)), hits=outcome.size, denominator=base.size)
    codes, names = group_codes(groups, n)
    ids = None if cluster is None else cluster_codes(cluster, n)
    if reference is not None and reference not in names:
        raise DataError(f"the reference group {reference!r} does not occur; groups: {', '.join(names)}")
    result = []
    for name in _listed(names, declared):
        if name == reference:
            continue
        inside, outside = _sides(codes, names, name, reference)
        inside &= base
        outside &= base
        first, second = (_rate(outcome, side, ids, None, empty) for side in (inside, outside))
        gap = rate_difference(
            outcome[inside],
            outcome[outside],
            cluster_first=None if ids is None else ids[inside],
            cluster_second=None if ids is None else ids[outside],
            seed=seed,
        )
        if gap.value is None:
            side = "the group" if first.value is None else "the rest" if reference is None else f"the reference {reference!r}"
            gap = replace(gap, reason=f"{empty} in {side}")
        result.append(GroupGap(name, first, second, gap))
    return tuple(result)


def minimum_detectable_gap(
    n_group: int,
    n_rest: int,
    rest_rate: float,
    *,
    limit: float,
    groups: int = 1,
    alpha: float = 0.05,
    power: float = 0.8,
    deff: float = 1.0,
) -> Estimate:
    """Smallest gap below the rest that breaks ``limit`` with this power, for one of ``groups`` groups (0–1, lower is better).

    Solves g = L + (z_{1-α/2m} + z_power)·√(deff·[p_g(1-p_g)/n_g + p(1-p)/n_rest]) with p_g = p - g. Undefined where even a rate
    of 0 in the group would not suffice.
    """
    n = n_group + n_rest
    if n_group < 1 or n_rest < 1:
        return Estimate(None, n, "no rows on one side")
    if not 0.0 <= rest_rate <= 1.0:
        raise DataError(f"rest_rate is {rest_rate}: expected a rate")
    reach = normal_quantile(alpha / max(groups, 1)) + float(special.ndtri(power))

    def excess(gap: float) -> float:
        p = max(0.0, rest_rate - gap)
        return gap - limit - reach * float(np.sqrt(deff * (p * (1 - p) / n_group + rest_rate * (1 - rest_rate) / n_rest)))

    if rest_rate <= limit or excess(rest_rate) < 0:
        return Estimate(None, n, "no gap can be detected: even a rate of 0 in the group would not suffice")
    if excess(limit) >= 0:
        return Estimate(limit, n)
    return Estimate(float(optimize.brentq(excess, limit, rest_rate)), n)


def largest_difference(
    groups: ArrayLike,
    hits: ArrayLike,
    *,
    denominator: ArrayLike | None = None,
    cluster: ArrayLike | None = None,
    minimum: int = 1,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Largest minus smallest rate over groups (0–1), above 0 by chance alone: ``null`` is its mean when group labels are permuted (TLA603).

    Labels are permuted over clusters where these lie inside groups, inside clusters where they do not. For true or false
    positive rates give the ``denominator``: only its rows are permuted, so that labels stay with their class. No interval.
    ``details``: ``null_95``, ``excess`` (value - null), ``between_group_sd``, ``between_group_variance`` (unclipped),
    ``left_out`` (groups with fewer than ``minimum`` rows).
    """
    outcome = truth_vector(hits, "hits")
    base = np.ones(outcome.size, dtype=np.bool_) if denominator is None else truth_vector(denominator, "denominator")
    n = same_length(groups=len(np.asarray(groups)), hits=outcome.size, denominator=base.size)
    codes, names = group_codes(groups, n)
    known = base & (codes != names.index(MISSING)) if MISSING in names else base
    sizes = np.bincount(codes[known], minlength=len(names))
    kept = [name for c, name in enumerate(names) if sizes[c] >= minimum and sizes[c] > 0]
    left_out = [name for name in names if name not in kept and name != MISSING]
    details: dict[str, Any] = {"left_out": left_out, "groups": len(kept)}
    rows = np.flatnonzero(known & np.isin(codes, [names.index(name) for name in kept]))
    unit_of = cluster_codes(cluster, n)[rows] if cluster is not None else np.arange(rows.size)
    units = int(np.unique(unit_of).size)
    empty = Estimate(None, rows.size, clusters=None if cluster is None else units, details=details)
    if len(kept) < 2:
        return replace(empty, reason="fewer than two groups with enough rows")
    group = np.unique(codes[rows], return_inverse=True)[1].astype(np.int64)
    unit = np.unique(unit_of, return_inverse=True)[1].astype(np.int64)
    hit = outcome[rows].astype(np.float64)
    rng = generator(seed, "largest_difference")
    if units == rows.size:
        # among independent rows the hits of the groups are one multivariate hypergeometric draw: the same distribution, at any n
        n_rows = np.bincount(group)
        drawn = rng.multivariate_hypergeometric(n_rows, int(hit.sum()), size=resamples, method="marginals") / n_rows
        spread = drawn.max(axis=1) - drawn.min(axis=1)
    elif crosses(unit, group):
        spread = _permuted_inside(group, unit, hit, len(kept), resamples, rng)
    else:
        home = np.zeros(units, dtype=np.int64)
        home[unit] = group
        tally = sums_by(unit, np.stack([np.ones(rows.size), hit], axis=1))
        spread = np.empty(resamples)
        for number in range(resamples):
            spread[number] = _spread(rng.permutation(home), tally, len(kept))
    value = _spread(group, np.stack([np.ones(rows.size), hit], axis=1), len(kept))
    n_g = np.bincount(group).astype(np.float64)
    rates = np.bincount(group, hit) / n_g
    average = float(hit.mean())
    between = float((n_g * (rates - average) ** 2).sum() / n_g.sum())
    noise = [
        estimate for estimate in (_sampling_variance(hit[group == g], unit[group == g]) for g in range(len(kept))) if estimate is not None
    ]
    details |= {"null_95": float(np.quantile(spread, 0.95)), "excess": value - float(spread.mean()), "resamples": resamples}
    if len(noise) == len(kept):
        variance = between - float((n_g * np.array(noise)).sum() / n_g.sum())
        details |= {"between_group_variance": variance, "between_group_sd": float(np.sqrt(max(0.0, variance)))}
    return replace(empty, value=value, null=float(spread.mean()), p_value=permutation_p(value, spread), details=details)


def mean_gaps(
    groups: ArrayLike,
    values: ArrayLike,
    *,
    cluster: ArrayLike | None = None,
) -> tuple[MeanGap, ...]:
    """Mean of each group minus that of the rest, for any number per row (null 0), in group order; intervals as `mean_difference`.

    The rest are all other rows with a known group; for "(missing)" all rows with a known group.

    Parameters
    ----------
    values : (N,), finite
    """
    array = finite_vector(values, "values")
    n = same_length(groups=len(np.asarray(groups)), values=array.size)
    codes, names = group_codes(groups, n)
    ids = None if cluster is None else cluster_codes(cluster, n)
    result = []
    for name in names:
        inside, outside = _sides(codes, names, name, None)
        gap = mean_difference(
            array[inside],
            array[outside],
            cluster_first=None if ids is None else ids[inside],
            cluster_second=None if ids is None else ids[outside],
        )
        if gap.value is None:
            gap = replace(gap, reason=f"no rows in {'the group' if not inside.any() else 'the rest'}")
        result.append(MeanGap(name, int(inside.sum()), int(outside.sum()), gap))
    return tuple(result)


class MeanGap(NamedTuple):
    """Mean of a group minus that of the rest, with the rows of both sides."""

    group: str
    n_group: int
    n_rest: int
    gap: Estimate


def shrunk_rates(hits: ArrayLike, sizes: ArrayLike) -> FloatArray:
    """Rates of cells drawn towards their common mean by how little each holds (0–1): beta-binomial empirical Bayes by moments, (K,).

    (k + m·p)/(n + m), p the pooled rate, m from how much more the rates differ than chance makes them; if they differ no more, all
    are p. For display and ranking: no interval belongs to it. A cell of size 0 has p.

    Parameters
    ----------
    hits, sizes : (K,), counts of each cell

    References
    ----------
    Kleinman (1973). Proportions with extraneous variance: single and independent samples. JASA 68.

    Examples
    --------
    >>> shrunk_rates([5, 50], [10, 100]).tolist()
    [0.5, 0.5]
    """
    k, n = finite_vector(hits, "hits"), finite_vector(sizes, "sizes")
    same_length(hits=k.size, sizes=n.size)
    if bool((k > n).any()) or bool((k < 0).any()):
        raise DataError("some cells have more hits than rows")
    total = float(n.sum())
    if total == 0:
        raise DataError("no cell has rows: no common rate")
    p = float(k.sum()) / total
    held = n > 0
    cells = int(held.sum())
    if cells < 2 or p in (0.0, 1.0):
        return np.full(k.size, p)
    spread = float((n[held] * (k[held] / n[held] - p) ** 2).sum())
    # expected spread: p(1-p)·[(K-1)(1-r) + r·(N - Σn²/N)], r the correlation inside cells
    whole = total - float((n**2).sum()) / total
    if whole <= cells - 1:  # one row in each cell: nothing tells cells from chance
        return np.full(k.size, p)
    r = (spread / (p * (1 - p)) - (cells - 1)) / (whole - (cells - 1))
    if r <= 0:
        return np.full(k.size, p)
    if r >= 1:
        return np.where(held, k / np.maximum(n, 1), p)
    m = (1 - r) / r
    return np.asarray((k + m * p) / (n + m), dtype=np.float64)


class GapChange(NamedTuple):
    """Gap of one group under a first model minus its gap under a second one, on the same rows."""

    group: str
    change: Estimate


def gap_changes(
    groups: ArrayLike,
    first_correct: ArrayLike,
    second_correct: ArrayLike,
    *,
    reference: str | None = None,
    cluster: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    declared: tuple[str, ...] = (),
) -> tuple[GapChange, ...]:
    """Difference of each group's accuracy gap between two models (TLA606), -2..2, null 0.

    e = first - second per row; the value is mean(e) in the group minus mean(e) in the rest. Interval: variances recovered from
    the paired intervals of both sides ([I2] on [I3]); clusters that hold rows of both sides: jackknife with t.
    p-value: group labels permuted over clusters, |difference| divided by its standard error, which is computed anew each time.
    """
    a, b = truth_vector(first_correct, "first_correct"), truth_vector(second_correct, "second_correct")
    n = same_length(groups=len(np.asarray(groups)), first_correct=a.size, second_correct=b.size)
    codes, names = group_codes(groups, n)
    ids = None if cluster is None else cluster_codes(cluster, n)
    if reference is not None and reference not in names:
        raise DataError(f"the reference group {reference!r} does not occur; groups: {', '.join(names)}")
    e = a.astype(np.float64) - b
    listed = [name for name in _listed(names, declared) if name != reference]
    result = []
    for name in listed:
        inside, outside = _sides(codes, names, name, reference)
        parts = [
            paired_rate_difference(a[side], b[side], cluster=None if ids is None else ids[side], seed=seed) for side in (inside, outside)
        ]
        change = newcombe(*parts)
        if change.value is None:
            result.append(GapChange(name, replace(change, reason=f"no rows in {'the group' if not inside.any() else 'the rest'}")))
            continue
        if ids is not None and np.intersect1d(ids[inside], ids[outside]).size:
            jackknife = mean_difference(e[inside], e[outside], cluster_first=ids[inside], cluster_second=ids[outside])
            if jackknife.ladder:
                change = replace(change, ladder=jackknife.ladder, clusters=jackknife.clusters, details=change.details | jackknife.details)
        part = inside | outside
        p = _studentised_p(e[part], inside[part], None if ids is None else ids[part], resamples_for(len(listed), minimum=resamples), seed)
        result.append(GapChange(name, replace(change, p_value=p)))
    return tuple(result)


# ---------------------------------------------------------------- inside


def codes_to_names(codes: IntArray, names: tuple[str, ...]) -> np.ndarray[Any, Any]:  # Any: an array of text
    """Group name of each row."""
    return np.array(names, dtype=object)[codes] if names else np.zeros(0, dtype=object)


def _aligned(
    groups: ArrayLike, labels: ArrayLike, predicted: ArrayLike, cluster: ArrayLike | None
) -> tuple[IntArray, tuple[str, ...], Any, Any, IntArray | None]:  # Any: labels of any type
    y, p = np.asarray(labels), np.asarray(predicted)
    n = same_length(groups=len(np.asarray(groups)), labels=len(y), predicted=len(p))
    codes, names = group_codes(groups, n)
    return codes, names, y, p, None if cluster is None else cluster_codes(cluster, n)


def _events(y: Any, p: Any, positive: object | None) -> dict[str, tuple[BoolArray, BoolArray]]:  # Any: labels of any type
    """For each metric the rows that count as a hit, and its denominator."""
    everything = np.ones(len(y), dtype=np.bool_)
    events = {"accuracy": (np.asarray(y == p, dtype=np.bool_), everything)}
    if positive is None:
        return events
    is_positive, said_positive = np.asarray(y == positive, dtype=np.bool_), np.asarray(p == positive, dtype=np.bool_)
    return events | {
        "selection_rate": (said_positive, everything),
        "tpr": (said_positive, is_positive),
        "fpr": (said_positive, ~is_positive),
        "precision": (is_positive, said_positive),
        "base_rate": (is_positive, everything),
    }


def _rate(hit: BoolArray, base: BoolArray, ids: IntArray | None, metric: str | None, empty: str = "no rows") -> Estimate:
    estimate = rate(hit[base], cluster=None if ids is None else ids[base])
    return replace(estimate, reason=_EMPTY[metric] if metric else empty) if estimate.value is None else estimate


def _listed(names: tuple[str, ...], declared: tuple[str, ...]) -> list[str]:
    return sorted(set(names) | set(declared), key=lambda name: (name == MISSING, name))


def _sides(codes: IntArray, names: tuple[str, ...], name: str, reference: str | None) -> tuple[BoolArray, BoolArray]:
    inside = codes == names.index(name) if name in names else np.zeros(codes.size, dtype=np.bool_)
    if reference is not None:
        return inside, codes == names.index(reference)
    known = codes != names.index(MISSING) if MISSING in names else np.ones(codes.size, dtype=np.bool_)
    return inside, known & ~inside


def _spread(group_of_unit: IntArray, tally: FloatArray, groups: int) -> float:
    rows = np.bincount(group_of_unit, tally[:, 0], minlength=groups)
    hits = np.bincount(group_of_unit, tally[:, 1], minlength=groups)
    rates = hits / rows
    return float(rates.max() - rates.min())


def _permuted_inside(group: IntArray, unit: IntArray, hit: FloatArray, groups: int, resamples: int, rng: np.random.Generator) -> FloatArray:
    """Spread of the rates with group labels shuffled inside each cluster.

    Of many rows the hits of the groups are drawn as normal, with the mean and covariance that shuffling gives them (in each cluster
    multivariate hypergeometric): sums over so many rows are normal to more digits than are printed.
    """
    if hit.size >= MANY_UNITS:
        return _permuted_inside_by_sums(group, unit, hit, groups, resamples, rng)
    order = np.argsort(unit, kind="stable")
    ordered = group[order]
    tally = np.stack([np.ones(hit.size), hit[order]], axis=1)
    spread = np.empty(resamples)
    for number in range(resamples):
        # rows stay in their cluster's stretch; random keys shuffle the labels inside it
        spread[number] = _spread(ordered[np.lexsort((rng.random(hit.size), unit[order]))], tally, groups)
    return spread


def _permuted_inside_by_sums(
    group: IntArray, unit: IntArray, hit: FloatArray, groups: int, resamples: int, rng: np.random.Generator
) -> FloatArray:
    units = int(unit.max()) + 1
    table = np.bincount(unit * groups + group, minlength=units * groups).reshape(units, groups).astype(np.float64)
    n, k = table.sum(axis=1), np.bincount(unit, hit)
    average = (k / n) @ table
    scale = np.divide(k * (n - k), n**2 * (n - 1), out=np.zeros(units), where=n > 1)
    covariance = np.diag((scale * n) @ table) - (table * scale[:, None]).T @ table
    rates = rng.multivariate_normal(average, covariance, size=resamples, method="eigh") / table.sum(axis=0)
    return np.asarray(rates.max(axis=1) - rates.min(axis=1), dtype=np.float64)


def _sampling_variance(hit: FloatArray, unit: IntArray) -> float | None:
    """Variance of a group's rate over its independent units (jackknife); None with a single one."""
    codes = np.unique(unit, return_inverse=True)[1]
    units = int(codes.max()) + 1
    if units < 2:
        return None
    sizes, sums = np.bincount(codes), np.bincount(codes, hit)
    return float((units - 1) / units * (((sums - hit.mean() * sizes) / (hit.size - sizes)) ** 2).sum())


def _studentised_p(e: FloatArray, inside: BoolArray, ids: IntArray | None, resamples: int, seed: int) -> float | None:
    if ids is None and e.size >= _MANY_ROWS and min(inside.sum(), (~inside).sum()) >= 3:
        return _studentised_p_of_rows(e, inside, resamples, seed)
    codes = np.arange(e.size) if ids is None else np.unique(ids, return_inverse=True)[1].astype(np.int64)
    if ids is not None and crosses(codes, inside.astype(np.int64)):
        # clusters hold rows of both sides: labels are shuffled among the rows of a cluster
        order = np.argsort(codes, kind="stable")
        codes, e, inside = codes[order], e[order], inside[order]
        statistic = _studentised(np.arange(e.size), e)
        rng = generator(seed, "gap_changes")
        null = np.empty(resamples)
        for number in range(resamples):
            null[number] = statistic(inside[np.lexsort((rng.random(e.size), codes))][None].astype(np.float64))[0]
        return permutation_p(float(statistic(inside[None].astype(np.float64))[0]), null)
    labellings = domain_labellings(inside, cluster=ids, resamples=resamples, seed=seed)
    if labellings.reason:
        return None
    statistic = _studentised(labellings.unit, e[labellings.kept])
    observed = float(statistic(labellings.observed[None].astype(np.float64))[0])
    return permutation_p(observed, labellings.values(statistic), exhaustive=labellings.exhaustive)


def _studentised_p_of_rows(e: FloatArray, inside: BoolArray, resamples: int, seed: int) -> float:
    """`_studentised_p` of independent rows: e is -1, 0 or 1, so a labelling is known by how many of each it puts inside."""
    values = np.array([-1.0, 0.0, 1.0])
    counts = np.array([(e == value).sum() for value in values])
    observed = np.array([(e[inside] == value).sum() for value in values])
    size = int(inside.sum())
    drawn = generator(seed, "gap_changes").multivariate_hypergeometric(counts, size, size=resamples, method="marginals")

    def statistic(first: IntArray) -> FloatArray:
        second = counts - first
        mean1, mean2 = first @ values / size, second @ values / (e.size - size)
        var1 = (first @ values**2 / size - mean1**2) / size
        var2 = (second @ values**2 / (e.size - size) - mean2**2) / (e.size - size)
        return np.asarray(np.abs(mean1 - mean2) / np.sqrt(np.maximum(var1 + var2, 1e-24)), dtype=np.float64)

    return permutation_p(float(statistic(observed[None])[0]), statistic(drawn))


def _studentised(unit: IntArray, e: FloatArray) -> Callable[[FloatArray], FloatArray]:
    """|Difference of means| / standard error over units, as a function of the labels of the units (B, U)."""
    sizes = np.bincount(unit).astype(np.float64)
    sums = np.bincount(unit, e)
    columns = np.stack([sizes, sums, sums**2, sums * sizes, sizes**2], axis=1)
    total = columns.sum(axis=0)

    def moments(part: FloatArray) -> tuple[FloatArray, FloatArray]:
        average = part[:, 1] / part[:, 0]
        spread = part[:, 2] - 2 * average * part[:, 3] + average**2 * part[:, 4]
        return average, np.maximum(spread, 0.0) / part[:, 0] ** 2

    def statistic(labels: FloatArray) -> FloatArray:
        first = labels @ columns
        (mean1, var1), (mean2, var2) = moments(first), moments(total - first)
        # without any spread a gap is infinitely many standard errors wide, and no gap is none
        return np.asarray(np.abs(mean1 - mean2) / np.sqrt(np.maximum(var1 + var2, 1e-24)), dtype=np.float64)

    return statistic
