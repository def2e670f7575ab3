"""How surely outputs and features tell inputs that are the model's business from others (TLA802)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from tl_audit.errors import DataError
from tl_audit.measures.arrays import finite_matrix, finite_vector, same_length, truth_vector
from tl_audit.measures.estimate import Estimate, FloatArray, build_ladder, normal_quantile, t_quantile
from tl_audit.measures.intervals import placement_values, rate
from tl_audit.measures.permutation import representable_p
from tl_audit.measures.sampling import cluster_codes

NEIGHBOURS = 10
_PAIRS_AT_ONCE = 2**24  # distances held at a time


def max_probability(logits: ArrayLike) -> FloatArray:
    """(N,) largest softmax probability (1/C–1): higher means that the input looks more like those the model knows.

    References
    ----------
    Hendrycks, Gimpel (2017). A baseline for detecting misclassified and out-of-distribution examples. arXiv:1610.02136

    Examples
    --------
    >>> max_probability([[0.0, 0.0]]).tolist()
    [0.5]
    """
    array = finite_matrix(logits, "logits")
    return np.asarray(np.exp(array.max(axis=1) - special.logsumexp(array, axis=1)), dtype=np.float64)


def negative_energy(logits: ArrayLike) -> FloatArray:
    """(N,) log of the sum of exp(logit) (nats, no bounds): higher means that the input looks more like those the model knows.

    Of log-probabilities it is 0 for every row and says nothing.

    References
    ----------
    Liu et al. (2020). Energy-based out-of-distribution detection. arXiv:2010.03759
    """
    return np.asarray(special.logsumexp(finite_matrix(logits, "logits"), axis=1), dtype=np.float64)


def nearness(reference: ArrayLike, features: ArrayLike, *, neighbours: int = NEIGHBOURS) -> FloatArray:
    """(N,) minus the distance to the k-th nearest reference row, all rows scaled to length 1 (-2–0): higher means nearer.

    Parameters
    ----------
    reference : (M, D), rows that none of ``features`` is one of
    neighbours : k, at most M

    References
    ----------
    Sun et al. (2022). Out-of-distribution detection with deep nearest neighbors. arXiv:2204.06507
    """
    known, new = _of_length_one(finite_matrix(reference, "reference")), _of_length_one(finite_matrix(features, "features"))
    if known.shape[1] != new.shape[1]:
        raise DataError(f"reference has {known.shape[1]} features, the rows have {new.shape[1]}")
    if not 1 <= neighbours <= known.shape[0]:
        raise DataError(f"neighbours is {neighbours}: expected 1 to {known.shape[0]}, the rows of the reference")
    out = np.empty(new.shape[0])
    step = max(1, _PAIRS_AT_ONCE // known.shape[0])
    for start in range(0, new.shape[0], step):
        part = new[start : start + step]
        squared = (part**2).sum(axis=1)[:, None] + (known**2).sum(axis=1)[None] - 2.0 * part @ known.T
        out[start : start + step] = -np.sqrt(np.maximum(np.partition(squared, neighbours - 1, axis=1)[:, neighbours - 1], 0.0))
    return out


def cut_keeping(scores: ArrayLike, share: float = 0.95) -> float:
    """The highest cut at which at least ``share`` of the scores are kept (score >= cut)."""
    array = np.sort(finite_vector(scores, "scores"))[::-1]
    if array.size == 0:
        raise DataError("no scores: no cut")
    if not 0.0 < share <= 1.0:
        raise DataError(f"share is {share}: expected a share above 0")
    # a share such as 0.95 of 20 is 19 rows, not the 20 that rounding errors would make of it
    return float(array[min(array.size, int(np.ceil(share * array.size - 1e-9))) - 1])


def false_acceptance(cut: float, outside: ArrayLike, *, cluster: ArrayLike | None = None) -> Estimate:
    """Share of outside rows that score at or above the cut and so pass for known (0–1, lower is better), [I1]/[I4].

    The interval takes the cut as given.
    """
    return rate(finite_vector(outside, "outside") >= cut, cluster=cluster)


def auc_change(labels: ArrayLike, first: ArrayLike, second: ArrayLike, *, cluster: ArrayLike | None = None) -> Estimate:
    """Area under the ROC curve of the first score minus that of the second, same rows (-1..1, null 0).

    Variance from the differences of both placement values, row by row or summed over clusters (then with t). Where these do not differ at all, a
    bound of log(1/α)/units on either side.

    References
    ----------
    DeLong, DeLong, Clarke-Pearson (1988). Comparing the areas under two or more correlated ROC curves. Biometrics 44.
    """
    positive, a, b = truth_vector(labels, "labels"), finite_vector(first, "first"), finite_vector(second, "second")
    n = same_length(labels=positive.size, first=a.size, second=b.size)
    n1 = int(positive.sum())
    n0 = n - n1
    base = Estimate(None, n, null=0.0, events=n1, nonevents=n0)
    if n1 == 0 or n0 == 0:
        return replace(base, reason=f"no {'positive' if n1 == 0 else 'negative'} rows: no area under the curve")
    difference = placement_values(positive, a) - placement_values(positive, b)
    value = float(difference[positive].mean())
    codes = cluster_codes(cluster, n)
    g1, g0 = int(np.unique(codes[positive]).size), int(np.unique(codes[~positive]).size)
    units = min(g1, g0)
    base = replace(base, value=value, clusters=None if cluster is None else units, details={"method": "paired placement values"})
    if units < 2:
        return replace(base, reason="one positive or negative unit: no interval")
    error = np.sqrt(sum(_variance((difference[side] - value) / side.sum(), codes[side]) for side in (positive, ~positive)))
    if error < 1e-12:

        def at_most(alpha: float) -> tuple[float, float]:
            width = float(np.log(1.0 / alpha)) / units
            return max(-1.0, value - width), min(1.0, value + width)

        p = 1.0 if value == 0.0 else None
        return replace(base, ladder=build_ladder(at_most), p_value=p, details=base.details | {"no_spread": True})

    def reach(alpha: float) -> float:
        return float(error) * (normal_quantile(alpha) if cluster is None else t_quantile(alpha, units - 1))

    z = abs(value) / float(error)
    two_sided = float(2 * stats.norm.sf(z) if cluster is None else 2 * stats.t.sf(z, units - 1))
    ladder = build_ladder(lambda alpha: (max(-1.0, value - reach(alpha)), min(1.0, value + reach(alpha))))
    return replace(base, ladder=ladder, p_value=representable_p(two_sided))


# ---------------------------------------------------------------- inside


def _of_length_one(rows: FloatArray) -> FloatArray:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1.0)


def _variance(centred: FloatArray, codes: NDArray[Any]) -> float:
    """Of a sum of independent units, each the sum of its rows."""
    sums = np.bincount(np.unique(codes, return_inverse=True)[1], centred)
    return float(sums.size / (sums.size - 1) * (sums**2).sum())
