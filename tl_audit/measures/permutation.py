"""Tests by permutation and by counting: [P1] to [P4] of CHECKS.md 1.7. No p-value here can be 0."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from tl_audit.errors import DataError
from tl_audit.measures.arrays import finite_vector, same_length, truth_vector
from tl_audit.measures.estimate import BoolArray, FloatArray, IntArray
from tl_audit.measures.sampling import cluster_codes, generator

RESAMPLES = 999
_SIGN_PATTERNS = 2**12
_CHUNK = 4_000_000  # numbers held at once while labellings are walked through


def permutation_p(observed: float, null_values: ArrayLike, *, exhaustive: bool = False) -> float:
    """[P1] Share of labellings whose statistic is at least as large as the observed one; 1/(B+1) is the least.

    Parameters
    ----------
    observed : statistic, larger means further from the null
    null_values : (B,), the same statistic under random labellings
    exhaustive : null_values hold every labelling, the observed one included; then nothing is added

    References
    ----------
    Phipson, Smyth (2010). Permutation p-values should never be zero. SAGMB 9.

    Examples
    --------
    >>> permutation_p(3.0, [1.0, 2.0, 3.0])
    0.5
    """
    values = finite_vector(null_values, "null_values")
    # equal labellings must count as ties although their sums are rounded differently
    slack = 1e-10 * max(abs(float(observed)), float(np.abs(values).max(initial=0.0)))
    reached = int(np.count_nonzero(values >= observed - slack))
    if exhaustive:
        return max(1, reached) / max(1, values.size)
    return (1 + reached) / (values.size + 1)


def resamples_for(tests: int, alpha: float = 0.05, minimum: int = RESAMPLES) -> int:
    """Resamples B so that the least p-value, 1/(B+1), can pass Holm over ``tests`` tests: 1/(B+1) <= alpha/(2 tests)."""
    return max(minimum, int(np.ceil(2 * max(tests, 1) / alpha - 1e-9)) - 1)


@dataclass(frozen=True)
class Labellings:
    """Domain labels redrawn over clusters, and how many there are.

    Attributes
    ----------
    kept : (N,), rows that take part (rows of clusters that occur in both domains may be left out)
    unit : (number of kept rows,), unit of each kept row; rows of one unit always share one label
    observed : (U,), the true label of each unit
    labels : (B, U), redrawn labels, True for the second domain; all of them where ``exhaustive``
    assignments : number of different labellings
    exhaustive : ``labels`` holds every labelling, the true one included
    dropped_clusters : clusters left out because they occur in both domains
    paired : all clusters occur in both domains, and labels are swapped inside them
    clusters : (first domain, second domain), units of permutation
    reason : why there is no test (no labellings then), else None
    """

    kept: BoolArray
    unit: IntArray
    observed: BoolArray
    labels: NDArray[np.bool_]
    assignments: int
    exhaustive: bool
    dropped_clusters: int
    paired: bool
    clusters: tuple[int, int]
    reason: str | None

    def values(self, statistic: Callable[[FloatArray], FloatArray]) -> FloatArray:
        """``statistic(labels)`` of all labellings, (B,); labels arrive as numbers (b, U), some rows at a time."""
        step = max(1, _CHUNK // max(1, self.observed.size))
        parts = [statistic(self.labels[start : start + step].astype(np.float64)) for start in range(0, self.labels.shape[0], step)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def floor_reason(self, alpha: float = 0.05) -> str | None:
        """Why this test can say nothing at ``alpha``: no labellings, or so few that the least p-value exceeds alpha/2."""
        if self.reason:
            return self.reason
        if 1 / self.assignments > alpha / 2:
            return f"only {self.assignments} ways to label the clusters: no p-value below {1 / self.assignments:.3g} is possible"
        return None


@dataclass(frozen=True)
class TestResult:
    """A p-value with the number of labellings behind it; ``p_value`` is None with a ``reason``."""

    __test__ = False  # not a test class, whatever pytest thinks of the name

    p_value: float | None
    assignments: int
    reason: str | None
    null_values: FloatArray

    def null_quantile(self, level: float) -> float | None:
        """Value that the statistic stays below with this probability if nothing happened; None without a test."""
        return float(np.quantile(self.null_values, level)) if self.null_values.size else None


def domain_labellings(
    second: ArrayLike, *, cluster: ArrayLike | None = None, resamples: int = RESAMPLES, seed: int = 0, alpha: float = 0.05
) -> Labellings:
    """Labellings for a test of "both domains are one", exchangeable under it (CHECKS.md 1.5).

    Without clusters rows are permuted; with clusters whole clusters are. A cluster in both domains breaks that: if all are,
    labels are swapped inside clusters; if only some are, these are left out and counted. All labellings are enumerated
    where there are no more than ``resamples``.

    Parameters
    ----------
    second : (N,), True for rows of the second domain
    alpha : level of the test; too few labellings for it give a ``reason``
    """
    truth = truth_vector(second, "second")
    n = truth.size
    codes = cluster_codes(cluster, n)
    clusters = int(codes.max()) + 1 if n else 0
    has_second = np.bincount(codes[truth], minlength=clusters) > 0
    has_first = np.bincount(codes[~truth], minlength=clusters) > 0
    shared = has_first & has_second
    kept = np.ones(n, dtype=np.bool_)
    rng = generator(seed, "labellings")
    empty = np.zeros((0, 0), dtype=np.bool_)
    if clusters and shared.all():
        # one unit per (cluster, domain); the two units of a cluster always have opposite labels
        flips, exhaustive = _sign_patterns(clusters, resamples, rng)
        labels = np.empty((flips.shape[0], 2 * clusters), dtype=np.bool_)
        labels[:, 0::2], labels[:, 1::2] = flips, ~flips
        observed = np.tile(np.array([False, True]), clusters)
        return _with_floor(
            Labellings(kept, 2 * codes + truth, observed, labels, 2**clusters, exhaustive, 0, True, (clusters, clusters), None), alpha
        )
    kept = ~shared[codes] if n else kept
    _, unit = np.unique(codes[kept], return_inverse=True)
    unit = unit.astype(np.int64)
    units = int(unit.max()) + 1 if unit.size else 0
    observed = np.zeros(units, dtype=np.bool_)
    observed[unit[truth[kept]]] = True
    g2 = int(observed.sum())
    g1 = units - g2
    dropped = int(shared.sum())
    if g1 == 0 or g2 == 0:
        reason = "one domain has no rows" if not dropped else "one domain has no cluster of its own"
        return Labellings(kept, unit, observed, empty, 1, True, dropped, False, (g1, g2), reason)
    assignments = comb(units, g2)
    if assignments <= resamples:
        labels = np.zeros((assignments, units), dtype=np.bool_)
        for row, chosen in enumerate(combinations(range(units), g2)):
            labels[row, list(chosen)] = True
        exhaustive = True
    else:
        labels = rng.permuted(np.broadcast_to(observed, (resamples, units)), axis=1)
        exhaustive = False
    return _with_floor(Labellings(kept, unit, observed, labels, assignments, exhaustive, dropped, False, (g1, g2), None), alpha)


def judge_labellings(observed: float, null_values: FloatArray, labellings: Labellings) -> TestResult:
    """p-value of ``observed`` against the statistic under each labelling, or the reason why there is none."""
    if labellings.reason:
        return TestResult(None, labellings.assignments, labellings.reason, null_values)
    p = permutation_p(observed, null_values, exhaustive=labellings.exhaustive)
    return TestResult(p, labellings.assignments, None, null_values)


def sign_flip_p(differences: ArrayLike, *, cluster: ArrayLike | None = None, resamples: int = RESAMPLES, seed: int = 0) -> float | None:
    """[P2] Two-sided test of "no difference" for paired differences: random signs on cluster sums.

    All patterns are enumerated up to 2¹². None below 6 clusters (or rows): the least p-value is then above 0.03.
    All differences 0 give 1.
    """
    values = finite_vector(differences, "differences")
    n = values.size
    codes = cluster_codes(cluster, n)
    clusters = int(codes.max()) + 1 if n else 0
    if clusters < 6:
        return None
    sums = np.bincount(codes, values)
    sums = sums[sums != 0]  # a zero sum keeps its value under either sign
    if sums.size == 0:
        return 1.0
    if sums.size <= 12:
        resamples = max(resamples, _SIGN_PATTERNS)
    rng = generator(seed, "sign_flip")
    observed = abs(float(sums.sum()))
    if 2 ** min(sums.size, 30) <= resamples:
        flips, _ = _sign_patterns(sums.size, resamples, rng)
        return permutation_p(observed, np.abs(sums.sum() - 2 * (flips @ sums)), exhaustive=True)
    # the signs of k equal sizes add up to a binomial count: the same distribution, in far less memory for 0/1 outcomes
    sizes, times = np.unique(np.abs(sums), return_counts=True)
    null = np.zeros(resamples)
    step = max(1, _CHUNK // sizes.size)
    for start in range(0, resamples, step):
        shape = (min(step, resamples - start), sizes.size)
        heads = rng.binomial(times, 0.5, size=shape) if sizes.size < sums.size / 2 else None
        if heads is None:
            sizes, times = np.abs(sums), np.ones(sums.size, dtype=np.int64)
            heads = rng.integers(0, 2, size=(shape[0], sums.size), dtype=np.int8)
        null[start : start + shape[0]] = np.abs((2.0 * heads - times) @ sizes)
    return permutation_p(observed, null)


def representable_p(p: float) -> float:
    """A computed tail, at least the smallest normal float: no event has probability 0, an underflow only says that it is below that.

    Examples
    --------
    >>> representable_p(0.0) > 0
    True
    """
    return max(float(p), sys.float_info.min)


def mcnemar_p(only_first: int, only_second: int) -> float:
    """[P3] Exact McNemar test from the two discordant counts; 1 where there is none.

    Examples
    --------
    >>> mcnemar_p(5, 0)
    0.0625
    """
    total = only_first + only_second
    if total == 0:
        return 1.0
    return representable_p(min(1.0, 2 * stats.binom.cdf(min(only_first, only_second), total, 0.5)))


def two_proportion_p(k1: int, n1: int, k2: int, n2: int) -> float | None:
    """[P4] Two-sided test of equal independent rates: Fisher's exact where an expected cell is below 5, else the score test.

    None without rows on one side; 1 where all rows agree.
    """
    if not (0 <= k1 <= n1 and 0 <= k2 <= n2):
        raise DataError(f"{k1} of {n1} and {k2} of {n2} are not two rates")
    if n1 == 0 or n2 == 0:
        return None
    k, n = k1 + k2, n1 + n2
    if k in (0, n):
        return 1.0
    if min(n1, n2) * min(k, n - k) / n < 5:
        return representable_p(stats.fisher_exact([[k1, n1 - k1], [k2, n2 - k2]])[1])
    p = k / n
    z = (k1 / n1 - k2 / n2) / np.sqrt(p * (1 - p) * (1 / n1 + 1 / n2))
    return representable_p(2 * stats.norm.sf(abs(z)))


def mean_difference_p(
    values: ArrayLike, second: ArrayLike, *, cluster: ArrayLike | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> TestResult:
    """[P1] Two-sided test on |mean of the second side - mean of the first|, labels permuted over clusters."""
    array, truth = finite_vector(values, "values"), truth_vector(second, "second")
    same_length(values=array.size, second=truth.size)
    labellings = domain_labellings(truth, cluster=cluster, resamples=resamples, seed=seed)
    if labellings.reason:
        return TestResult(None, labellings.assignments, labellings.reason, np.zeros(0))
    units = labellings.observed.size
    sums = np.bincount(labellings.unit, array[labellings.kept], minlength=units)
    sizes = np.bincount(labellings.unit, minlength=units).astype(np.float64)

    def gap(labels: FloatArray) -> FloatArray:
        inside, rows = labels @ sums, labels @ sizes
        return np.asarray(np.abs(inside / rows - (sums.sum() - inside) / (sizes.sum() - rows)), dtype=np.float64)

    null = labellings.values(gap)
    return judge_labellings(float(gap(labellings.observed[None].astype(np.float64))[0]), null, labellings)


def _sign_patterns(units: int, resamples: int, rng: np.random.Generator) -> tuple[NDArray[np.bool_], bool]:
    """All 2^units patterns if these are no more than ``resamples``, else that many random ones."""
    if units <= 30 and 2**units <= resamples:
        return ((np.arange(2**units)[:, None] >> np.arange(units)) & 1).astype(np.bool_), True
    return rng.integers(0, 2, size=(resamples, units), dtype=np.int8).astype(np.bool_), False


def _with_floor(labellings: Labellings, alpha: float) -> Labellings:
    return replace(labellings, reason=labellings.floor_reason(alpha))
