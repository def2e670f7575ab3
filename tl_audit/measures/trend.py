"""Does a rate rise or fall over ordered periods? The slope with its interval, and a test that permutes the order of periods (TLA508)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tl_audit.measures.arrays import finite_vector, same_length, truth_vector
from tl_audit.measures.estimate import Estimate, FloatArray, IntArray, build_ladder, t_quantile
from tl_audit.measures.permutation import RESAMPLES, permutation_p
from tl_audit.measures.sampling import cluster_codes, generator

LEAST_CLUSTERS = 6
"""Fewer clusters give no test, as for signs [P2]."""


def trend(
    outcomes: ArrayLike,
    times: ArrayLike,
    *,
    cluster: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Slope of a rate per step of time by weighted least squares over the periods; null 0, no direction, rates per step.

    The weight of a period is its number of rows, so the slope is that of the rows. Interval: t over the sums of the scores of clusters
    (rows), each as if it had been left out of the fit. The p-value permutes the order of periods (two-sided, [P1]): outcomes of single rows without clusters; with
    clusters, the records of clusters that lie in one period are exchanged among each other, and those of a cluster that has several periods
    inside it. Undefined below two periods.

    Parameters
    ----------
    outcomes : (N,) bool or 0/1
    times : (N,) place of each row on the axis of time; equal numbers are one period
    cluster : (N,)

    Returns
    -------
    ``details``: ``periods``, ``intercept`` (rate at time 0 by the fitted line), ``p_reason`` where there is no test
    """
    y, t = truth_vector(outcomes, "outcomes").astype(np.float64), finite_vector(times, "times")
    n = same_length(outcomes=y.size, times=t.size)
    codes = cluster_codes(cluster, n)
    clusters = None if cluster is None else (int(codes.max()) + 1 if n else 0)
    places = np.unique(t)
    details: dict[str, Any] = {"periods": int(places.size)}
    base = Estimate(None, n, null=0.0, clusters=clusters, details=details)
    if places.size < 2:
        return replace(base, reason="a trend needs two periods")
    centred = t - t.mean()
    spread = float((centred**2).sum())
    slope = float(centred @ y) / spread
    residual = y - y.mean() - slope * centred
    details["intercept"] = float(y.mean() - slope * t.mean())
    base = replace(base, value=slope, events=int(y.sum()), nonevents=int(n - y.sum()))
    # a cluster with much leverage draws the line to itself: its score is what it would be against a line fitted without it
    leverage = np.minimum(np.bincount(codes, centred**2) / spread, 0.9)
    scores = np.bincount(codes, centred * residual) / (1.0 - leverage)
    groups = scores.size
    if groups < 3:
        return replace(base, reason="fewer than three clusters: no interval")
    error = float(np.sqrt((groups - 1) / groups * (scores**2).sum())) / spread
    if error <= 1e-12 * float(np.abs(centred).max()) / spread:
        return replace(base, reason="every row has the same outcome: no spread to make an interval from")
    ladder = build_ladder(lambda alpha: _around(slope, t_quantile(alpha, groups - 2) * error))
    p, why = _permutation(y, t, codes, clusters, resamples, seed, slope)
    if why is not None:
        details["p_reason"] = why
    return replace(base, ladder=ladder, p_value=p, details=details)


def _around(value: float, half: float) -> tuple[float, float]:
    return value - half, value + half


def _permutation(
    y: FloatArray, t: FloatArray, codes: IntArray, clusters: int | None, resamples: int, seed: int, slope: float
) -> tuple[float | None, str | None]:
    rng = generator(seed, "trend")
    places, period = np.unique(t, return_inverse=True)
    if clusters is None:
        # rows are alike but for their outcome: only how many right ones fall into each period matters
        sizes = np.bincount(period)
        drawn = rng.multivariate_hypergeometric(sizes, round(float(y.sum())), size=resamples)
        centred = places - t.mean()
        null = drawn @ centred / float((centred**2) @ sizes)
        return permutation_p(abs(slope), np.abs(null)), None
    if clusters < LEAST_CLUSTERS:
        return None, f"{clusters} clusters are too few to permute"
    cells, cell = np.unique(codes * places.size + period, return_inverse=True)
    owner = cells // places.size
    when = np.asarray(places[cells % places.size], dtype=np.float64)
    right, rows = np.bincount(cell, y).astype(np.float64), np.bincount(cell).astype(np.float64)
    several = np.bincount(owner, minlength=clusters)[owner] > 1
    # cells of one pool may exchange their periods: single cells of clusters among each other, several cells of one cluster inside it
    pool = np.where(several, owner, -1)
    at_home = np.argsort(pool, kind="stable")
    null = np.empty(resamples)
    for draw in range(resamples):
        shuffled = np.lexsort((rng.random(pool.size), pool))
        moved = np.empty(when.size)
        moved[at_home] = when[shuffled]
        null[draw] = _slope(moved, right, rows)
    return permutation_p(abs(slope), np.abs(null)), None


def _slope(when: FloatArray, right: FloatArray, rows: FloatArray) -> float:
    """Slope from the number of right rows and of rows in each cell. 0 where a draw puts all rows into one period."""
    total = float(rows.sum())
    middle = float(when @ rows) / total
    spread = float(((when - middle) ** 2) @ rows)
    if spread <= 0:
        return 0.0
    return float((when - middle) @ (right - rows * right.sum() / total)) / spread
