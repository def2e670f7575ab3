"""Errors of predicted numbers, in the target's own unit (TLA301, 302, 308, 401, 509, 601): means of rows with t, r² with a bootstrap."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from tl_audit.measures.arrays import finite_vector, same_length
from tl_audit.measures.estimate import Estimate, FloatArray
from tl_audit.measures.intervals import BOOTSTRAP_CLUSTERS, mean, percentile_ladder, resampled_sums
from tl_audit.measures.permutation import RESAMPLES as SIGNS
from tl_audit.measures.permutation import sign_flip_p
from tl_audit.measures.sampling import cluster_codes, generator

RESAMPLES = 2000


def mae(truth: ArrayLike, predicted: ArrayLike, *, cluster: ArrayLike | None = None) -> Estimate:
    """Mean absolute error (≥ 0, lower is better, ideal 0), t over rows or clusters."""
    return _not_below_zero(mean(np.abs(_errors(truth, predicted)), cluster=cluster))


def mean_error(truth: ArrayLike, predicted: ArrayLike, *, cluster: ArrayLike | None = None) -> Estimate:
    """Mean of predicted minus true value (null 0): above 0 the model says too much, below it too little. t over rows or clusters."""
    return replace(mean(_errors(truth, predicted), cluster=cluster), null=0.0)


def rmse(truth: ArrayLike, predicted: ArrayLike, *, cluster: ArrayLike | None = None) -> Estimate:
    """Root of the mean squared error (≥ 0, lower is better, ideal 0); the interval of the mean square, t over rows or clusters, mapped by the root."""
    square = _not_below_zero(mean(_errors(truth, predicted) ** 2, cluster=cluster))
    if square.value is None:
        return square
    ladder = tuple((alpha, math.sqrt(low), math.sqrt(high)) for alpha, low, high in square.ladder)
    return replace(square, value=math.sqrt(square.value), ladder=ladder)


def r2(truth: ArrayLike, predicted: ArrayLike, *, cluster: ArrayLike | None = None, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Share of the spread of the true values that the predictions explain, 1 - Σe²/Σ(y - ȳ)² (≤ 1, higher is better, ideal 1).

    [I5]: bootstrap of rows or clusters. Below 30 of them there is no interval; undefined where all true values are equal.
    """
    e, y = _errors(truth, predicted), np.asarray(truth, dtype=np.float64)
    n = y.size
    codes = cluster_codes(cluster, n)
    clusters = int(codes.max()) + 1 if n else 0
    base = Estimate(None, n, clusters=None if cluster is None else clusters, details={"method": "cluster_bootstrap"})
    if n == 0:
        return replace(base, reason="no rows")
    centred = y - y.mean()
    total = float(centred @ centred)
    if total <= (1e-12 * max(1.0, float(np.abs(y).max()))) ** 2 * n:
        return replace(base, reason="all true values are equal: there is no spread to explain")
    base = replace(base, value=1.0 - float(e @ e) / total)
    if clusters < BOOTSTRAP_CLUSTERS:
        what = "rows" if cluster is None else "clusters"
        return replace(base, reason=f"{clusters} {what} are too few for a bootstrap ({BOOTSTRAP_CLUSTERS} are needed)")
    columns = np.stack([np.ones(n), centred, centred**2, e**2], axis=1)
    rows, first, second, errors = resampled_sums(codes, columns, resamples, generator(seed, "r2")).T
    spread = second - first**2 / np.maximum(rows, 1.0)
    samples = np.full(resamples, np.nan)
    defined = (rows > 0) & (spread > 1e-9 * total)
    samples[defined] = 1.0 - errors[defined] / spread[defined]
    ladder, reason = percentile_ladder(samples)
    return replace(base, ladder=ladder, reason=reason)


def error_difference(
    truth: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    *,
    cluster: ArrayLike | None = None,
    seed: int = 0,
    resamples: int = SIGNS,
) -> Estimate:
    """Mean absolute error of ``first`` minus that of ``second`` on the same rows (null 0, lower is better for the first).

    Paired: t over rows or clusters of |e₁| - |e₂|, p by [P2] random signs. Where both err alike in every row there is no spread to learn
    from: then the rule of three holds, within the largest error of either.
    """
    a, b = np.abs(_errors(truth, first)), np.abs(_errors(truth, second))
    difference = a - b
    if difference.size == 0:
        return Estimate(None, 0, "no rows", null=0.0)
    largest = float(max(a.max(), b.max()))
    alike = float(difference.max() - difference.min()) <= 1e-12 * max(1.0, largest)
    found = mean(difference, cluster=cluster, bounds=(-largest, largest) if alike and largest > 0 else None)
    return replace(found, null=0.0, p_value=sign_flip_p(difference, cluster=cluster, resamples=resamples, seed=seed))


def scaled(estimate: Estimate, spread: float | None) -> Estimate:
    """The same number in units of ``spread`` (a standard deviation of the target); test and counts stay. Undefined without a spread."""
    if estimate.value is None:
        return estimate
    if spread is None or spread <= 0:
        return replace(estimate, value=None, reason="the target's spread in training is not known, or 0", ladder=(), p_value=None)
    ladder = tuple((alpha, low / spread, high / spread) for alpha, low, high in estimate.ladder)
    return replace(estimate, value=estimate.value / spread, ladder=ladder)


def _errors(truth: ArrayLike, predicted: ArrayLike) -> FloatArray:
    y, given = finite_vector(truth, "truth"), finite_vector(predicted, "predicted")
    same_length(truth=y.size, predicted=given.size)
    return np.asarray(given - y, dtype=np.float64)


def _not_below_zero(estimate: Estimate) -> Estimate:
    return replace(estimate, ladder=tuple((alpha, max(0.0, low), high) for alpha, low, high in estimate.ladder))
