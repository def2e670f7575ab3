"""Two samples of one number per row, compared from one sort of each: distribution gaps, quantiles, and what chance makes of the largest gap."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tl_audit.errors import DataError
from tl_audit.measures.estimate import BoolArray, FloatArray, IntArray
from tl_audit.measures.permutation import permutation_p, representable_p
from tl_audit.measures.sampling import generator

MANY_ROWS = 20_000
"""Rows of both samples from which on labellings of independent rows are not drawn one by one: their law is known."""

GRID = 256  # places at which the gaps of tied values are followed when labellings are drawn as counts
_ATOM = 0.002  # share of one value above which the limit law, which knows no ties, would be too careful
_STEPS = 320_000  # numbers walked through at once, which a processor's cache still holds
_MEAN_OF_SUPREMUM = float(np.sqrt(np.pi / 2) * np.log(2))  # mean of the largest size of a Brownian bridge


# ---------------------------------------------------------------- one sort of each


@dataclass(frozen=True)
class Merged:
    """Two samples merged from one sort of each. Everything below is read off it.

    Attributes
    ----------
    first, second : (n,) and (m,), sorted
    values : (K,), distinct values of both, ascending
    upto_first, upto_second : (K,), rows of each sample that are no larger
    """

    first: FloatArray
    second: FloatArray
    values: FloatArray
    upto_first: IntArray
    upto_second: IntArray

    @cached_property
    def gaps(self) -> FloatArray:
        """(K,) distribution function of the second sample minus that of the first, at each value."""
        return np.asarray(self.upto_second / self.second.size - self.upto_first / self.first.size, dtype=np.float64)

    @cached_property
    def ks(self) -> float:
        """Largest gap of the two distribution functions (0–1)."""
        return max(float(self.gaps.max()), -float(self.gaps.min()))

    @property
    def w1(self) -> float:
        """Area between the two distribution functions: the Wasserstein distance, in units of the values."""
        return float(np.abs(self.gaps[:-1]) @ np.diff(self.values))


def merge(x: NDArray[Any], y: NDArray[Any]) -> Merged:  # Any: any real dtype
    """The two samples sorted and merged. Cost: one sort of each and one merge. Raises DataError without rows or with values that are not finite.

    Parameters
    ----------
    x, y : (n,) and (m,); two samples of one dtype are sorted as they are, which is faster for short ones
    """
    if x.dtype != y.dtype or x.dtype.kind not in "fiu":
        x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    for name, sample in (("first", x), ("second", y)):
        if sample.ndim != 1 or sample.size == 0:
            raise DataError(f"the {name} sample has shape {sample.shape}: expected at least one number")
    first, second = np.sort(x), np.sort(y)
    # infinite and missing values end up at the ends
    if not bool(np.isfinite(np.r_[first[0], first[-1], second[0], second[-1]].astype(np.float64)).all()):
        raise DataError("a sample holds non-finite values: leave those rows out of every metric together, and count them")
    both = np.concatenate([first, second])
    order = np.argsort(both, kind="stable")  # two sorted runs: one merge
    both = both[order]
    ends = np.flatnonzero(np.r_[both[1:] != both[:-1], True])
    upto_second = np.cumsum(order >= first.size, dtype=np.int64)[ends]
    first, second, values = (np.asarray(part, dtype=np.float64) for part in (first, second, both[ends]))
    return Merged(first, second, values, ends + 1 - upto_second, upto_second)


def sorted_quantiles(values: FloatArray, levels: FloatArray) -> FloatArray:
    """Linear quantiles of a sorted sample, number for number those of numpy.quantile."""
    at = levels * (values.size - 1)
    below = np.floor(at).astype(np.int64)
    above = np.minimum(below + 1, values.size - 1)
    share = at - below
    step = values[above] - values[below]
    return np.asarray(np.where(share >= 0.5, values[above] - step * (1 - share), values[below] + step * share), dtype=np.float64)


def sorted_deciles(values: FloatArray) -> FloatArray:
    """The nine deciles of a sorted sample, each a value that occurs (numpy's "inverted_cdf")."""
    at = values.size * (np.arange(1, 10) / 10) - 1
    return values[np.maximum(np.ceil(at), 0).astype(np.int64)]


# ---------------------------------------------------------------- the largest gap by chance


def largest_gaps(pooled: FloatArray, unit: IntArray, labels: BoolArray) -> FloatArray:
    """KS distance between the two sides of each labelling, (B,): one sort, then a walk through the rows.

    Exact: gaps are kept as whole numbers N·S - k·m (S rows of the second side among the first k) and divided last.

    Parameters
    ----------
    pooled : (N,)
    unit : (N,), unit of each row
    labels : (B, U), True for the second side; each side holds a row
    """
    n = pooled.size
    order = np.argsort(pooled, kind="stable")
    ordered = pooled[order]
    end = np.r_[ordered[1:] != ordered[:-1], True]
    ends = None if end.all() else np.flatnonzero(end)
    units = unit[order]
    sizes = np.bincount(unit, minlength=labels.shape[1])
    # the largest number reached is n1·n2 <= N²/4
    dtype: type[np.int32] | type[np.int64] = np.int32 if n < 90_000 else np.int64
    result = np.empty(labels.shape[0])
    step = max(1, _STEPS // n)
    for start in range(0, labels.shape[0], step):
        part = labels[start : start + step]
        m = part @ sizes
        at: NDArray[Any] = np.take(part, units, axis=1).astype(dtype)  # Any: one of two widths
        at *= n
        at -= m.astype(dtype)[:, None]
        np.cumsum(at, axis=1, out=at)
        if ends is not None:
            at = at[:, ends]
        reached = np.maximum(at.max(axis=1), -at.min(axis=1)).astype(np.float64)
        sides = m * (n - m).astype(np.float64)
        result[start : start + step] = np.divide(reached, sides, out=np.full(sides.size, np.nan), where=sides > 0)
    return result


@dataclass(frozen=True)
class Chance:
    """What chance makes of a distance where nothing happened.

    Attributes
    ----------
    p_value : chance of at least the observed distance
    mean, high : mean of the distance, and its 1 - alpha quantile
    method : where they come from
    """

    p_value: float
    mean: float
    high: float
    method: str


def ks_by_chance(merged: Merged, *, alpha: float, resamples: int, seed: int) -> Chance:
    """Law of the KS distance of many independent rows under permutation.

    Without a value that many rows share it is Kolmogorov's: the largest size of a Brownian bridge, divided by √(nm/(n+m)); at these n
    it is right to the third digit, and on the careful side of it. With such a value the labellings are drawn as counts of `GRID` cells of the
    pooled values, which is the same permutation without its rows; the observed distance is then taken at the ends of the cells too.

    Parameters
    ----------
    alpha : for ``high``; divided by the number of tests by the caller

    References
    ----------
    Smirnov (1939). On the estimation of the discrepancy between empirical curves of distribution for two independent samples.
    """
    n, m = merged.first.size, merged.second.size
    upto = merged.upto_first + merged.upto_second
    sizes = np.diff(upto, prepend=0)
    scale = float(np.sqrt((n / (n + m)) * m))
    if sizes.max() <= _ATOM * (n + m) or n + m >= 1_000_000_000:  # numpy draws counts below 10⁹
        p = representable_p(float(stats.kstwobign.sf(scale * merged.ks)))
        return Chance(p, _MEAN_OF_SUPREMUM / scale, float(stats.kstwobign.isf(alpha)) / scale, "limit law")
    cell = upto * GRID // (n + m)
    last = np.flatnonzero(np.r_[cell[1:] != cell[:-1], True])
    counts = np.diff(upto[last], prepend=0)
    drawn = generator(seed, "ks_by_chance").multivariate_hypergeometric(counts, m, size=resamples, method="marginals")
    reached = np.cumsum(drawn, axis=1)
    null = np.abs(reached / m - (upto[last] - reached) / n).max(axis=1)
    p = permutation_p(float(np.abs(merged.gaps[last]).max()), null)
    return Chance(p, float(null.mean()), float(np.quantile(null, 1 - alpha)), "permutation of counts")


def tvd_by_chance(first: FloatArray, second: FloatArray, *, alpha: float, resamples: int, seed: int) -> Chance:
    """Law of the total variation distance of independent rows under permutation, from the counts (C,) of both samples alone.

    Under permutation the counts of one sample are multivariate hypergeometric: the labellings themselves need not be drawn.
    """
    n, m = float(first.sum()), float(second.sum())
    total = (first + second).astype(np.int64)
    drawn = generator(seed, "tvd_by_chance").multivariate_hypergeometric(total, int(m), size=resamples, method="marginals")
    null = 0.5 * np.abs(drawn / m - (total - drawn) / n).sum(axis=1)
    value = 0.5 * float(np.abs(second / m - first / n).sum())
    return Chance(permutation_p(value, null), float(null.mean()), float(np.quantile(null, 1 - alpha)), "permutation of counts")
