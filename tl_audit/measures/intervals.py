"""Intervals for rates, differences, ratios, means and AUC, with and without clusters: [I1] to [I9] of CHECKS.md 1.6."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from tl_audit.errors import DataError
from tl_audit.measures.arrays import finite_vector, same_length, truth_vector
from tl_audit.measures.estimate import (
    LADDER_ALPHAS,
    BoolArray,
    Estimate,
    FloatArray,
    IntArray,
    Ladder,
    build_ladder,
    interval_at,
    normal_quantile,
    t_quantile,
)
from tl_audit.measures.permutation import mcnemar_p, representable_p, sign_flip_p, two_proportion_p
from tl_audit.measures.sampling import cluster_codes, generator

RESAMPLES = 2000
BOOTSTRAP_CLUSTERS = 30  # below this many clusters a percentile bootstrap covers too little (CHECKS.md 1.5.3)
AUC_BOOTSTRAP_CLUSTERS = (
    50  # of an area it still misses in 7.2 % at 40 clusters of 5 rows a side, sums of placement values in 4.4 % (2026-11-21)
)
_ALPHAS = np.array(LADDER_ALPHAS)
_CHUNK = 4_000_000  # numbers held at once while resamples are drawn
MANY_UNITS = 20_000
"""Independent units from which on a bootstrap of sums draws random pools of units in place of the units."""
POOLS = 10_000
MANY_CLUSTERS = 2_000
"""Clusters from which on the linearised variance stands for the bootstrap of a mean, a difference or an area: they agree to 2 %."""


# ---------------------------------------------------------------- rates


def wilson(k: int, n: int) -> Estimate:
    """[I1] Rate k/n of independent rows with the Wilson score interval. Undefined for n = 0; never of zero width.

    References
    ----------
    Wilson (1927). Probable inference, the law of succession, and statistical inference. JASA 22.

    Examples
    --------
    >>> low, high = wilson(8, 10).interval()
    >>> round(low, 3), round(high, 3)
    (0.49, 0.943)
    """
    if not 0 <= k <= n:
        raise DataError(f"{k} of {n} is not a rate")
    if n == 0:
        return Estimate(None, 0, "no rows in the denominator", events=0, nonevents=0)
    ladder = build_ladder(lambda alpha: _wilson_bounds(k / n, n, normal_quantile(alpha)))
    return Estimate(k / n, n, ladder=ladder, events=int(k), nonevents=int(n - k), details={"method": "wilson"})


def clopper_pearson(k: int, n: int) -> Estimate:
    """[I7] Rate k/n with the exact Clopper-Pearson interval: conservative; for attack rates and statements about zero events."""
    if not 0 <= k <= n:
        raise DataError(f"{k} of {n} is not a rate")
    if n == 0:
        return Estimate(None, 0, "no rows in the denominator", events=0, nonevents=0)

    def bounds(alpha: float) -> tuple[float, float]:
        low = 0.0 if k == 0 else float(special.betaincinv(k, n - k + 1, alpha / 2))
        high = 1.0 if k == n else float(special.betaincinv(k + 1, n - k, 1 - alpha / 2))
        return low, high

    return Estimate(k / n, n, ladder=build_ladder(bounds), events=int(k), nonevents=int(n - k), details={"method": "clopper_pearson"})


def cluster_wilson(values: ArrayLike, cluster: ArrayLike) -> Estimate:
    """[I4] Rate of rows that come in clusters: Wilson interval at the effective sample size, with a t quantile.

    The design effect is the jackknife variance over clusters divided by the binomial one, at least 1; where all rows agree it
    is the mean cluster size. ``details``: ``deff``, ``n_eff``, ``g_star`` = N²/Σn_g² (clusters of equal size that would
    weigh as much) and ``few_clusters`` (g_star < 5: judge as inconclusive). One cluster alone gives no interval.

    Parameters
    ----------
    values : (N,), 0/1 or bool
    cluster : (N,)
    """
    truth = truth_vector(values, "values")
    n = truth.size
    if n == 0:
        return Estimate(None, 0, "no rows in the denominator", clusters=0, events=0, nonevents=0)
    sizes, sums = _cluster_sums(truth.astype(np.float64), cluster_codes(cluster, n))
    clusters = sizes.size
    k = int(truth.sum())
    p = k / n
    g_star = n**2 / float((sizes**2).sum())
    details: dict[str, Any] = {"method": "cluster_wilson", "g_star": g_star, "few_clusters": g_star < 5}
    base = Estimate(p, n, clusters=clusters, events=k, nonevents=n - k, details=details)
    if clusters < 2:
        return replace(base, reason="all rows belong to one cluster: no interval")
    v0 = p * (1 - p) / n
    v = (clusters - 1) / clusters * float((((sums - p * sizes) / (1 - sizes / n)) ** 2).sum()) / n**2
    deff = max(1.0, v / v0) if v0 > 0 else n / clusters
    details |= {"deff": deff, "n_eff": n / deff}
    ladder = build_ladder(lambda alpha: _wilson_bounds(p, n / deff, t_quantile(alpha, g_star - 1)))
    return replace(base, ladder=ladder, details=details)


def rate(correct: ArrayLike, *, cluster: ArrayLike | None = None) -> Estimate:
    """Share of True rows, with the interval that fits: [I1] for independent rows, [I4] with clusters.

    Parameters
    ----------
    correct : (N,), bool or 0/1
    """
    truth = truth_vector(correct, "correct")
    if cluster is None:
        return wilson(int(truth.sum()), truth.size)
    return cluster_wilson(truth, cluster)


# ---------------------------------------------------------------- differences and ratios of rates


def newcombe(first: Estimate, second: Estimate) -> Estimate:
    """[I2] Difference first - second of two estimates from disjoint rows, by recovering variances from their intervals.

    Range -1..1 for rates, null 0. Works on any two estimates with ladders ([I1], [I4], [I3]); levels that only one has are left out.

    References
    ----------
    Newcombe (1998). Interval estimation for the difference between independent proportions. Statistics in Medicine 17.
    """
    n = first.n + second.n
    clusters = None if first.clusters is None or second.clusters is None else min(first.clusters, second.clusters)
    details: dict[str, Any] = {"method": "newcombe", "n_first": first.n, "n_second": second.n}
    for estimate in (first, second):
        if estimate.details.get("few_clusters"):
            details["few_clusters"] = True
    if first.value is None or second.value is None:
        which, gone = ("first", first) if first.value is None else ("second", second)
        return Estimate(None, n, f"the {which} rate is undefined: {gone.reason}", clusters=clusters, null=0.0, details=details)
    difference = first.value - second.value
    other = {alpha: (low, high) for alpha, low, high in second.ladder}
    rows = []
    for alpha, low1, high1 in first.ladder:
        if alpha not in other:
            continue
        low2, high2 = other[alpha]
        low = difference - float(np.hypot(first.value - low1, high2 - second.value))
        high = difference + float(np.hypot(high1 - first.value, second.value - low2))
        rows.append((alpha, low, high))
    reason = None if rows else (first.reason or second.reason or "no interval for one of the two rates")
    return Estimate(
        difference,
        n,
        reason,
        clusters=clusters,
        null=0.0,
        ladder=tuple(rows),
        events=_least(first.events, second.events),
        nonevents=_least(first.nonevents, second.nonevents),
        details=details,
    )


def rate_difference(
    first: ArrayLike,
    second: ArrayLike,
    *,
    cluster_first: ArrayLike | None = None,
    cluster_second: ArrayLike | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Difference of the rates of two disjoint sets of rows, first - second (-1..1, null 0).

    Independent rows: [I2] on [I1]. Clusters inside one side: [I2] on [I4]. Clusters that hold rows of both sides:
    [I5] over all clusters, below 30 of them the jackknife variance with t; where one rate is 0 or 1 (nothing to resample)
    [I2] on [I4], which is then the wider. p_value ([P4], null 0) without clusters only.
    ``n`` counts both sides; ``details`` holds ``n_first`` and ``n_second``.
    """
    a, b = truth_vector(first, "first"), truth_vector(second, "second")
    if (cluster_first is None) != (cluster_second is None):
        raise DataError("cluster ids are needed for both sets of rows, or for neither")
    if cluster_first is None or cluster_second is None:
        result = newcombe(rate(a), rate(b))
        return replace(result, p_value=two_proportion_p(int(a.sum()), a.size, int(b.sum()), b.size))
    result = newcombe(cluster_wilson(a, cluster_first), cluster_wilson(b, cluster_second))
    if result.value is None:
        return result
    codes = cluster_codes(_joined(cluster_first, cluster_second), a.size + b.size)
    crossing = np.intersect1d(codes[: a.size], codes[a.size :]).size
    clusters = int(codes.max()) + 1
    details = result.details | {"clusters_crossing": int(crossing)}
    if crossing == 0 or a.all() or b.all() or not a.any() or not b.any():
        return replace(result, details=details)
    side = np.r_[np.zeros(a.size), np.ones(b.size)]
    return _difference_over_clusters(
        np.r_[a, b].astype(np.float64), side, codes, replace(result, clusters=clusters, details=details), seed, resamples, limit=1.0
    )


def paired_rate_difference(
    first_correct: ArrayLike,
    second_correct: ArrayLike,
    *,
    cluster: ArrayLike | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Difference of two rates on the same rows, first - second (-1..1, null 0), with the test of "no difference" in p_value.

    Without clusters: [I3] Tango's score interval and the exact McNemar test [P3]. With clusters: [I5] (below 30 clusters the
    jackknife variance with t) and the sign-flip test [P2] over cluster sums; where fewer than 10 clusters hold a discordant
    pair, 3/G is added to each side (at other levels than 95 % scaled by ln(alpha)/ln(0.05)).
    ``details``: ``only_first``, ``only_second`` (discordant counts).

    References
    ----------
    Tango (1998). Equivalence test and confidence interval for the difference in proportions for the paired-sample design.
    Statistics in Medicine 17.
    """
    a, b = truth_vector(first_correct, "first_correct"), truth_vector(second_correct, "second_correct")
    n = same_length(first_correct=a.size, second_correct=b.size)
    if n == 0:
        return Estimate(None, 0, "no pairs", null=0.0)
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    value = (only_first - only_second) / n
    details: dict[str, Any] = {"only_first": only_first, "only_second": only_second}
    discordant = only_first + only_second
    base = Estimate(value, n, null=0.0, events=discordant, nonevents=n - discordant, details=details)
    if cluster is None:
        ladder = _tango_ladder(only_first, only_second, n)
        return replace(base, p_value=mcnemar_p(only_first, only_second), ladder=ladder, details=details | {"method": "tango"})
    difference = a.astype(np.float64) - b
    codes = cluster_codes(cluster, n)
    clusters = int(codes.max()) + 1
    discordant_clusters = int(np.unique(codes[a != b]).size)
    details |= {"discordant_clusters": discordant_clusters}
    base = replace(base, clusters=clusters, p_value=sign_flip_p(difference, cluster=cluster, seed=seed), details=details)
    if clusters < 2:
        return replace(base, reason="all rows belong to one cluster: no interval")
    ladder, method = _mean_ladder(difference, codes, seed, resamples)
    if discordant_clusters < 10 or ladder[0][1] == ladder[0][2]:
        ladder = tuple(
            (alpha, low - _rule_of_three(alpha, clusters), high + _rule_of_three(alpha, clusters)) for alpha, low, high in ladder
        )
        method += " widened by 3/G"
    ladder = tuple((alpha, max(low, -1.0), min(high, 1.0)) for alpha, low, high in ladder)
    return replace(base, ladder=ladder, details=details | {"method": method})


def katz_ratio(a: int, n1: int, b: int, n2: int) -> Estimate:
    """[I8] Ratio (a/n1)/(b/n2) of two independent rates with Katz's interval on its logarithm; null 1. Undefined if a or b is 0.

    References
    ----------
    Katz et al. (1978). Obtaining confidence intervals for the risk ratio in cohort studies. Biometrics 34.
    """
    if not (0 <= a <= n1 and 0 <= b <= n2):
        raise DataError(f"{a} of {n1} and {b} of {n2} are not two rates")
    n = n1 + n2
    if a == 0 or b == 0:
        return Estimate(None, n, "a ratio needs an event on both sides", null=1.0, events=min(a, b), nonevents=min(n1 - a, n2 - b))
    ratio = (a / n1) / (b / n2)
    error = float(np.sqrt(1 / a - 1 / n1 + 1 / b - 1 / n2))
    if error == 0.0:
        return Estimate(ratio, n, "every row is an event on both sides: no interval", null=1.0, events=min(a, b), nonevents=0)

    def bounds(alpha: float) -> tuple[float, float]:
        width = normal_quantile(alpha) * error
        return ratio * float(np.exp(-width)), ratio * float(np.exp(width))

    return Estimate(
        ratio, n, null=1.0, ladder=build_ladder(bounds), events=min(a, b), nonevents=min(n1 - a, n2 - b), details={"method": "katz"}
    )


def error_ratio(
    first_correct: ArrayLike,
    second_correct: ArrayLike,
    *,
    cluster: ArrayLike | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Ratio of two error rates on the same rows, first / second (lower is better for the first, null 1); [I5] on its logarithm.

    Below 30 clusters the linearised variance of the logarithm with t: the percentile bootstrap then misses too often (7 % at 12
    clusters of 8). Undefined where one of them makes no error.
    """
    a, b = ~truth_vector(first_correct, "first_correct"), ~truth_vector(second_correct, "second_correct")
    n = same_length(first_correct=a.size, second_correct=b.size)
    codes = cluster_codes(cluster, n)
    clusters = None if cluster is None else (int(codes.max()) + 1 if n else 0)
    if not a.any() or not b.any():
        return Estimate(None, n, "one of the two makes no error: no ratio", clusters=clusters, null=1.0)
    ratio = float(a.sum() / b.sum())
    base = Estimate(ratio, n, clusters=clusters, null=1.0, events=int(min(a.sum(), b.sum())), details={"method": "cluster_bootstrap"})
    if codes.max() < 1:
        return replace(base, reason="all rows belong to one cluster: no interval")
    if clusters is not None and clusters < BOOTSTRAP_CLUSTERS:
        # d ln(Σa/Σb) of a cluster: its share of the errors of the one minus its share of the errors of the other
        share = np.bincount(codes, a / a.sum() - b / b.sum())
        error = float(np.sqrt(clusters / (clusters - 1) * (share**2).sum()))
        if error <= 1e-12:
            return replace(base, reason="no cluster differs: no spread to make an interval from")

        def bounds(alpha: float) -> tuple[float, float]:
            half = t_quantile(alpha, clusters - 1) * error
            return ratio * float(np.exp(-half)), ratio * float(np.exp(half))

        return replace(base, ladder=build_ladder(bounds), details={"method": "cluster t"})
    errors = np.stack([a, b], axis=1).astype(np.float64)
    drawn_a, drawn_b = resampled_sums(codes, errors, resamples, generator(seed, "error_ratio")).T
    defined = (drawn_a > 0) & (drawn_b > 0)
    samples = np.full(resamples, np.nan)
    samples[defined] = np.log(drawn_a[defined] / drawn_b[defined])
    ladder, reason = percentile_ladder(samples)
    return replace(base, reason=reason, ladder=tuple((alpha, float(np.exp(low)), float(np.exp(high))) for alpha, low, high in ladder))


def bonferroni(estimate: Estimate, tests: int) -> Estimate:
    """The estimate with each interval taken at alpha/tests: for the one of ``tests`` estimates that the data picked out.

    Levels that the ladder cannot resolve are left out. A p-value is multiplied by ``tests``.
    """
    if tests < 1:
        raise DataError(f"tests is {tests}: expected at least 1")
    rows = [(alpha, interval_at(estimate.ladder, alpha / tests)) for alpha in LADDER_ALPHAS]
    ladder = tuple((alpha, *interval) for alpha, interval in rows if interval is not None)
    reason = estimate.reason
    if estimate.ladder and not ladder:
        reason = f"the intervals do not reach the level that {tests} choices need"
    p = None if estimate.p_value is None else min(1.0, tests * estimate.p_value)
    return replace(estimate, ladder=ladder, reason=reason, p_value=p, details=estimate.details | {"bonferroni": tests})


def mover_mean(parts: Sequence[Estimate]) -> Ladder:
    """Intervals of the plain mean of independent estimates, by recovering variances from theirs (as [I2]); levels all of them have."""
    known = [part for part in parts if part.value is not None and part.ladder]
    if not known or len(known) < len(parts):
        return ()
    values = np.array([part.value for part in known], dtype=np.float64)
    rows = []
    for alpha in LADDER_ALPHAS:
        bounds = [interval_at(part.ladder, alpha) for part in known]
        inside = np.array([bound for bound in bounds if bound is not None], dtype=np.float64)
        if inside.shape[0] == values.size:
            low = float(values.mean() - np.sqrt(((values - inside[:, 0]) ** 2).sum()) / values.size)
            high = float(values.mean() + np.sqrt(((inside[:, 1] - values) ** 2).sum()) / values.size)
            rows.append((alpha, low, high))
    return tuple(rows)


# ---------------------------------------------------------------- bootstrap


def resampled_counts(codes: IntArray, resamples: int, rng: np.random.Generator, *, strata: IntArray | None = None) -> FloatArray:
    """How often each cluster is drawn in each resample, (B, G): sums over clusters are then one matrix product.

    With ``strata`` (N,) clusters are drawn inside their stratum, unless a cluster has rows in two strata: then overall.
    """
    clusters = int(codes.max()) + 1
    if strata is not None and strata.size and not crosses(codes, strata):
        home = np.empty(clusters, dtype=np.int64)
        home[codes] = strata
        members = [np.flatnonzero(home == value) for value in np.unique(strata)]
    else:
        members = [np.arange(clusters)]
    counts = np.zeros((resamples, clusters))
    for member in members:
        if member.size < 500:
            drawn = member[rng.integers(0, member.size, size=(resamples, member.size))] + np.arange(resamples)[:, None] * clusters
            counts += np.bincount(drawn.ravel(), minlength=resamples * clusters).reshape(resamples, clusters)
            continue
        # one resample at a time: its counts stay in a processor's cache
        for row in counts:
            row[member] += np.bincount(rng.integers(0, member.size, size=member.size), minlength=member.size)
    return counts


def resampled_sums(
    codes: IntArray, values: FloatArray, resamples: int, rng: np.random.Generator, *, strata: IntArray | None = None
) -> FloatArray:
    """Column sums of ``values`` (N, K) in each resample of clusters, (B, K); strata as in `resampled_counts`.

    Clusters with equal sums are drawn together, as one multinomial count: the same distribution, and memory that does not
    grow with the rows where values are counts. Of `MANY_UNITS` clusters and more with sums of their own (in a stratum), `POOLS` random pools
    are drawn, of one size up to one: the variance is kept, known to 1 %.
    """
    clusters = int(codes.max()) + 1
    sums = sums_by(codes, values)
    groups = np.zeros(clusters, dtype=np.int64)
    if strata is not None and strata.size and not crosses(codes, strata):
        groups[codes] = strata
    result = np.zeros((resamples, values.shape[1]))
    for group in np.unique(groups):
        inside = sums if strata is None else sums[groups == group]
        if inside.shape[0] >= MANY_UNITS and _hardly_repeats(inside):
            place = rng.permutation(inside.shape[0]) % POOLS
            result += resampled_sums(np.arange(POOLS), sums_by(place, inside), resamples, rng)
            continue
        patterns, times = np.unique(inside, axis=0, return_counts=True)
        step = max(1, _CHUNK // max(1, patterns.shape[0]))
        for start in range(0, resamples, step):
            size = min(step, resamples - start)
            # a binomial draw costs as much as a dozen plain ones
            if patterns.shape[0] < inside.shape[0] / (2 if inside.shape[0] < MANY_CLUSTERS else 12):
                counts = rng.multinomial(inside.shape[0], times / inside.shape[0], size=size).astype(np.float64)
                result[start : start + size] += counts @ patterns
            else:
                result[start : start + size] += resampled_counts(np.arange(inside.shape[0]), size, rng) @ inside
    return result


def sums_by(codes: IntArray, values: FloatArray) -> FloatArray:
    """Column sums of ``values`` (N, K) within each code, (G, K)."""
    groups = int(codes.max()) + 1 if codes.size else 0
    columns = values.shape[1]
    if groups == codes.size and bool((codes[1:] > codes[:-1]).all()):
        return values.astype(np.float64)  # each row is a code of its own, in order
    flat = np.bincount((codes[:, None] * columns + np.arange(columns)).ravel(), values.ravel(), minlength=groups * columns)
    return flat.reshape(groups, columns).astype(np.float64)


def crosses(codes: IntArray, strata: IntArray) -> bool:
    """Whether some cluster has rows in more than one stratum."""
    if codes.size == 0:
        return False
    low, high = np.full(int(codes.max()) + 1, np.iinfo(np.int64).max), np.full(int(codes.max()) + 1, np.iinfo(np.int64).min)
    np.minimum.at(low, codes, strata)
    np.maximum.at(high, codes, strata)
    return bool((low < high).any())


def _hardly_repeats(values: FloatArray) -> bool:
    """Whether rows (G, K) have, as far as a thousand of them tell, hardly any equals."""
    some = values[:: max(1, values.shape[0] // 1000)]
    return bool(np.unique(some, axis=0).shape[0] > 0.9 * some.shape[0])


def percentile_ladder(samples: FloatArray) -> tuple[Ladder, str | None]:
    """Percentile intervals of resampled statistics (NaN = undefined in that resample), and the reason if there are none.

    Levels whose tail holds fewer than two resamples are left out. More than 5 % undefined resamples, or none that differs from
    the others, give no interval: one of zero width would claim certainty.
    """
    known, reason = _defined(samples)
    if reason:
        return (), reason
    if no_spread(known):
        return (), "no resample differs: no spread to make an interval from"
    alphas = _ALPHAS[known.size * _ALPHAS >= 4]
    low, high = np.quantile(known, alphas / 2), np.quantile(known, 1 - alphas / 2)
    return tuple(zip(alphas.tolist(), low.tolist(), high.tolist(), strict=True)), None


def no_spread(samples: FloatArray) -> bool:
    """Whether all defined resamples hold one value, up to rounding."""
    known = samples[np.isfinite(samples)]
    return bool(known.size == 0 or known.max() - known.min() <= 1e-12 * max(1.0, float(np.abs(known).max())))


def centred_ladder(value: float, plug_in: float, samples: FloatArray) -> tuple[Ladder, str | None]:
    """[I6] intervals: ``value`` minus the quantiles of (resampled debiased statistic - plug-in value)."""
    known, reason = _defined(samples)
    if reason:
        return (), reason
    alphas = _ALPHAS[known.size * _ALPHAS >= 4]
    low = value - np.quantile(known - plug_in, 1 - alphas / 2)
    high = value - np.quantile(known - plug_in, alphas / 2)
    return tuple(zip(alphas.tolist(), low.tolist(), high.tolist(), strict=True)), None


def cluster_bootstrap(
    statistic: Callable[[IntArray], float | None],
    n: int,
    *,
    cluster: ArrayLike | None = None,
    strata: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """[I5] Percentile bootstrap of ``statistic(rows)``, clusters resampled, strata kept. For smooth, nearly unbiased statistics only.

    Parameters
    ----------
    statistic : of row numbers (with repetition); None or NaN where undefined
    n : number of rows
    cluster : (N,); each row alone without it
    strata : (N,); clusters that cross strata are resampled overall

    References
    ----------
    Efron, Tibshirani (1993). An Introduction to the Bootstrap.
    """
    return _bootstrap(statistic, None, n, cluster, strata, resamples, seed)


def centred_bootstrap(
    statistic: Callable[[IntArray], float | None],
    plug_in: float,
    n: int,
    *,
    cluster: ArrayLike | None = None,
    strata: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """[I6] Bootstrap of a debiased ``statistic(rows)``, centred on its ``plug_in`` (biased) value: the truth of the resampled world."""
    return _bootstrap(statistic, plug_in, n, cluster, strata, resamples, seed)


# ---------------------------------------------------------------- means


def mean(values: ArrayLike, *, cluster: ArrayLike | None = None, bounds: tuple[float, float] | None = None) -> Estimate:
    """Mean of the rows with a t interval over rows, or over clusters (the ratio Σsums/Σsizes with its jackknife variance).

    One row or one cluster gives no interval. Where all units agree there is no spread to learn from: with ``bounds`` (the
    range that values can take) the rule of three gives the interval, without it there is none.
    """
    array = finite_vector(values, "values")
    n = array.size
    if n == 0:
        return Estimate(None, 0, "no rows")
    codes = cluster_codes(cluster, n)
    clusters = int(codes.max()) + 1
    value = float(array.mean())
    base = Estimate(value, n, clusters=None if cluster is None else clusters, details={"method": "t"})
    if clusters < 2:
        return replace(base, reason="one row: no interval" if cluster is None else "all rows belong to one cluster: no interval")
    error = float(np.sqrt(_ratio_variance(array, codes)))
    if error <= 1e-12 * max(1.0, float(np.abs(array).max())):
        if bounds is None:
            return replace(base, reason="all units agree: no spread to make an interval from")
        share = {alpha: min(1.0, _rule_of_three(alpha, clusters)) for alpha in LADDER_ALPHAS}
        low, high = bounds
        ladder = tuple((alpha, value - share[alpha] * (value - low), value + share[alpha] * (high - value)) for alpha in LADDER_ALPHAS)
        return replace(base, ladder=ladder, details={"method": "rule of three"})
    ladder = build_ladder(lambda alpha: _around(value, error * t_quantile(alpha, clusters - 1)))
    if bounds is not None:
        ladder = tuple((alpha, max(low, bounds[0]), min(high, bounds[1])) for alpha, low, high in ladder)
    return replace(base, ladder=ladder, details={"method": "t", "standard_error": error})


def mean_difference(
    first: ArrayLike,
    second: ArrayLike,
    *,
    cluster_first: ArrayLike | None = None,
    cluster_second: ArrayLike | None = None,
) -> Estimate:
    """Difference of two means from disjoint rows, first - second (null 0), with the test of 0 in p_value.

    Independent rows: Welch's t. Clusters: jackknife variance of each side, t with the smaller number of clusters - 1;
    clusters that hold rows of both sides: jackknife of the difference over all clusters.
    """
    a, b = finite_vector(first, "first"), finite_vector(second, "second")
    if (cluster_first is None) != (cluster_second is None):
        raise DataError("cluster ids are needed for both sets of rows, or for neither")
    n = a.size + b.size
    if a.size == 0 or b.size == 0:
        return Estimate(None, n, "no rows on one side", null=0.0)
    value = float(a.mean() - b.mean())
    tiny = (1e-12 * max(1.0, float(np.abs(a).max()), float(np.abs(b).max()))) ** 2  # variance of rounding
    details: dict[str, Any] = {"method": "welch", "n_first": a.size, "n_second": b.size}
    base = Estimate(value, n, null=0.0, details=details)
    if cluster_first is None or cluster_second is None:
        if min(a.size, b.size) < 2:
            return replace(base, reason="one row on one side: no interval")
        va, vb = float(a.var(ddof=1)) / a.size, float(b.var(ddof=1)) / b.size
        if va + vb <= tiny:
            return replace(base, reason="all values are equal on each side: no spread to make an interval from")
        freedom = (va + vb) ** 2 / (va**2 / (a.size - 1) + vb**2 / (b.size - 1))
        return _t_estimate(base, float(np.sqrt(va + vb)), freedom)
    codes = cluster_codes(_joined(cluster_first, cluster_second), n)
    code_a, code_b = codes[: a.size], codes[a.size :]
    if np.intersect1d(code_a, code_b).size == 0:
        code_a, code_b = np.unique(code_a, return_inverse=True)[1], np.unique(code_b, return_inverse=True)[1]
        clusters = min(int(code_a.max()), int(code_b.max())) + 1
        base = replace(base, clusters=clusters, details=details | {"method": "cluster t"})
        if clusters < 2:
            return replace(base, reason="all rows of one side belong to one cluster: no interval")
        error = float(np.sqrt(_ratio_variance(a, code_a) + _ratio_variance(b, code_b)))
    else:
        clusters = int(codes.max()) + 1
        base = replace(base, clusters=clusters, details=details | {"method": "cluster t, clusters on both sides"})
        variance = _difference_variance(np.r_[a, b], np.r_[np.zeros(a.size), np.ones(b.size)], codes)
        if variance is None:
            return replace(base, reason="one cluster holds all rows of one side: no interval")
        error = float(np.sqrt(variance))
    if error**2 <= tiny:
        return replace(base, reason="all units agree on each side: no spread to make an interval from")
    return _t_estimate(base, error, clusters - 1)


# ---------------------------------------------------------------- AUC


def auc(labels: ArrayLike, scores: ArrayLike, *, cluster: ArrayLike | None = None, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """[I9] Area under the ROC curve: chance that a positive row scores above a negative one, ties one half (0–1, null 0.5).

    DeLong's variance without clusters; below 50 clusters on a side, cluster sums of the placement values with t; both on the logit
    scale, where 95 % intervals miss 3 to 6 % of the time (untransformed 15 % at an area of 0.96 from 30 and 30 rows). Else [I5].
    At an area of exactly 0 or 1 these have zero width: there, as many disjoint pairs as the smaller side holds give a Wilson bound.

    Parameters
    ----------
    labels : (N,), True for positive
    scores : (N,), higher means more positive

    References
    ----------
    DeLong, DeLong, Clarke-Pearson (1988). Comparing the areas under two or more correlated ROC curves. Biometrics 44.
    """
    positive = truth_vector(labels, "labels")
    score = finite_vector(scores, "scores")
    n = same_length(labels=positive.size, scores=score.size)
    n1 = int(positive.sum())
    n0 = n - n1
    base = Estimate(None, n, null=0.5, events=n1, nonevents=n0)
    if n1 == 0 or n0 == 0:
        gone = "no positive rows" if n1 == 0 else "no negative rows"
        return replace(base, reason=f"{gone}: no area under the curve", clusters=None if cluster is None else 0)
    placement = placement_values(positive, score)
    value = float(placement[positive].mean())
    base = replace(base, value=value, details={"method": "delong"})
    sides = positive.astype(np.int64)
    codes = cluster_codes(cluster, n)
    crossing = cluster is not None and crosses(codes, sides)
    g1, g0 = (n1, n0) if cluster is None else (int(np.unique(codes[side]).size) for side in (positive, ~positive))
    units = int(codes.max()) + 1 if crossing else min(g1, g0)
    if cluster is not None:
        base = replace(base, clusters=units)
    if value in (0.0, 1.0):
        pairs = min(g1, g0)
        ladder = build_ladder(lambda alpha: _wilson_bounds(value, pairs, normal_quantile(alpha)))
        return replace(base, ladder=ladder, details={"method": "wilson on disjoint pairs"})
    if units < 2:
        return replace(base, reason="one positive or negative unit: no interval")
    centred = (placement - value) / np.where(positive, n1, n0)
    if cluster is not None and AUC_BOOTSTRAP_CLUSTERS <= units < MANY_CLUSTERS:
        samples = _resampled_auc(positive, score, codes, resamples, generator(seed, "auc"))
        ladder, reason = percentile_ladder(samples)
        return replace(base, ladder=ladder, reason=reason, details={"method": "cluster_bootstrap"})
    sums = np.bincount(codes, centred)
    if crossing:
        error = float(np.sqrt(units / (units - 1) * (sums**2).sum()))
    else:
        positive_cluster = np.zeros(sums.size, dtype=np.bool_)
        positive_cluster[codes[positive]] = True
        error = float(np.sqrt(g1 / (g1 - 1) * (sums[positive_cluster] ** 2).sum() + g0 / (g0 - 1) * (sums[~positive_cluster] ** 2).sum()))
    if cluster is None:
        quantile: Callable[[float], float] = normal_quantile
        details: dict[str, Any] = {"method": "delong", "standard_error": error}
    else:
        quantile = lambda alpha: t_quantile(alpha, units - 1)  # noqa: E731
        details = {"method": "cluster sums of placement values", "standard_error": error, "few_clusters": units < 10}
    return replace(base, ladder=build_ladder(lambda alpha: around_on_logit(value, quantile(alpha) * error)), details=details)


def around_on_logit(value: float, half: float) -> tuple[float, float]:
    """Bounds ``half`` to each side of a value between 0 and 1, both exclusive, laid off on the logit scale: they never leave (0, 1).

    References
    ----------
    Pepe (2003). The Statistical Evaluation of Medical Tests for Classification and Prediction, section 5.2.

    Examples
    --------
    >>> low, high = around_on_logit(0.9, 0.1)
    >>> round(low, 3), round(high, 3)
    (0.748, 0.965)
    """
    centre, reach = float(special.logit(value)), half / (value * (1 - value))
    return float(special.expit(centre - reach)), float(special.expit(centre + reach))


def placement_values(positive: BoolArray, scores: FloatArray) -> FloatArray:
    """For a positive row the share of negatives below it, for a negative row the share of positives above it (ties one half)."""
    n1 = int(positive.sum())
    n0 = positive.size - n1
    order = np.argsort(scores)
    ordered, truth = scores[order], positive[order]
    ends = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])
    # of each run of tied scores: positives and rows up to it and in it
    upto = np.cumsum(truth)[ends]
    ones, rows = np.diff(upto, prepend=0), np.diff(ends, prepend=-1)
    below_one: IntArray = upto - ones
    below_zero: IntArray = ends + 1 - rows - below_one
    of_positive = (below_zero + (rows - ones) / 2) / n0
    of_negative = 1.0 - (below_one + ones / 2) / n1
    run = np.repeat(np.arange(ends.size), rows)
    result = np.empty(scores.size)
    result[order] = np.where(truth, of_positive[run], of_negative[run])
    return result


# ---------------------------------------------------------------- inside


def _wilson_bounds(p: float, n: float, z: float) -> tuple[float, float]:
    z = min(z, 1e8)  # a t quantile with hardly any degrees of freedom; the interval is (0, 1) long before
    shrink = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / shrink
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / shrink
    low = 0.0 if p == 0.0 else max(0.0, float(centre - half))
    high = 1.0 if p == 1.0 else min(1.0, float(centre + half))
    return low, high


def _around(value: float, half: float) -> tuple[float, float]:
    return value - half, value + half


def _rule_of_three(alpha: float, units: int) -> float:
    """3/G at 95 %: after G units without an event the rate may still be that large."""
    return 3.0 * float(np.log(alpha) / np.log(0.05)) / units


def _least(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else min(first, second)


def _joined(first: ArrayLike, second: ArrayLike) -> np.ndarray[Any, Any]:  # Any: ids of any type
    a, b = np.asarray(first), np.asarray(second)
    if a.dtype.kind == b.dtype.kind:
        return np.concatenate([a, b])
    return np.concatenate([a.astype(object), b.astype(object)])


def _cluster_sums(values: FloatArray, codes: IntArray) -> tuple[FloatArray, FloatArray]:
    """Rows and sum of values in each cluster."""
    return np.bincount(codes).astype(np.float64), np.bincount(codes, values).astype(np.float64)


def _ratio_variance(values: FloatArray, codes: IntArray) -> float:
    """Jackknife variance over clusters of the mean of all rows, as v in [I4]; for single rows s²/n."""
    sizes, sums = _cluster_sums(values, codes)
    n, clusters = values.size, sizes.size
    return float((clusters - 1) / clusters * (((sums - values.mean() * sizes) / (n - sizes)) ** 2).sum())


def _difference_variance(values: FloatArray, side: FloatArray, codes: IntArray) -> float | None:
    """Jackknife variance over clusters of mean(side 0) - mean(side 1), clusters on both sides; None if one holds a whole side."""
    clusters = int(codes.max()) + 1
    total = np.zeros(clusters)
    for value, sign in ((0.0, 1.0), (1.0, -1.0)):
        inside = side == value
        sizes = np.bincount(codes[inside], minlength=clusters)
        if sizes.max() == inside.sum():
            return None
        sums = np.bincount(codes[inside], values[inside] - values[inside].mean(), minlength=clusters)
        total += sign * sums / (inside.sum() - sizes)
    return float((clusters - 1) / clusters * (total**2).sum())


def _difference_over_clusters(
    values: FloatArray, side: FloatArray, codes: IntArray, base: Estimate, seed: int, resamples: int, *, limit: float
) -> Estimate:
    clusters = int(codes.max()) + 1
    value = float(values[side == 0].mean() - values[side == 1].mean())
    if BOOTSTRAP_CLUSTERS <= clusters < MANY_CLUSTERS:
        columns = np.stack([side == 0, (side == 0) * values, side == 1, (side == 1) * values], axis=1).astype(np.float64)
        n1, sum1, n2, sum2 = resampled_sums(codes, columns, resamples, generator(seed, "rate_difference")).T
        both = (n1 > 0) & (n2 > 0)
        samples = np.full(resamples, np.nan)
        samples[both] = sum1[both] / n1[both] - sum2[both] / n2[both]
        ladder, reason = percentile_ladder(samples)
        return replace(base, value=value, ladder=ladder, reason=reason, details=base.details | {"method": "cluster_bootstrap"})
    variance = _difference_variance(values, side, codes)
    if variance is None:
        return replace(base, value=value, ladder=(), reason="one cluster holds all rows of one side: no interval")
    error = float(np.sqrt(variance))
    if error <= 1e-12:
        return base  # every cluster shows the same difference: the sides taken apart are the wider answer
    ladder = build_ladder(lambda alpha: _around(value, error * t_quantile(alpha, clusters - 1)))
    ladder = tuple((alpha, max(low, -limit), min(high, limit)) for alpha, low, high in ladder)
    return replace(base, value=value, ladder=ladder, reason=None, details=base.details | {"method": "cluster t"})


def _mean_ladder(values: FloatArray, codes: IntArray, seed: int, resamples: int) -> tuple[Ladder, str]:
    """Interval of a mean over clusters: percentile bootstrap from 30 clusters on, else the jackknife variance with t."""
    clusters = int(codes.max()) + 1
    value = float(values.mean())
    if BOOTSTRAP_CLUSTERS <= clusters < MANY_CLUSTERS:
        rows, sums = resampled_sums(codes, np.stack([np.ones(values.size), values], axis=1), resamples, generator(seed, "mean")).T
        samples = sums / rows
        if no_spread(samples):
            return build_ladder(lambda alpha: (value, value)), "cluster_bootstrap"
        return percentile_ladder(samples)[0], "cluster_bootstrap"
    error = float(np.sqrt(_ratio_variance(values, codes)))
    return build_ladder(lambda alpha: _around(value, error * t_quantile(alpha, clusters - 1))), "cluster t"


def _t_estimate(base: Estimate, error: float, freedom: float) -> Estimate:
    value = base.value or 0.0
    ladder = build_ladder(lambda alpha: _around(value, error * t_quantile(alpha, freedom)))
    p = representable_p(2 * stats.t.sf(abs(value) / error, freedom))
    return replace(base, ladder=ladder, p_value=p, details=base.details | {"standard_error": error, "degrees_of_freedom": float(freedom)})


def _tango_ladder(b: int, c: int, n: int) -> Ladder:
    """Both limits at every level at once, by bisection: the score statistic falls as the difference grows."""
    z = -special.ndtri(_ALPHAS / 2)
    estimate = (b - c) / n
    target = np.concatenate([z, -z])
    low = np.concatenate([np.full(z.size, -1.0), np.full(z.size, estimate)])
    high = np.concatenate([np.full(z.size, estimate), np.full(z.size, 1.0)])
    for _ in range(60):
        middle = (low + high) / 2
        above = _tango_statistic(middle, b, c, n) > target
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    limits = (low + high) / 2
    return tuple(zip(LADDER_ALPHAS, limits[: z.size].tolist(), limits[z.size :].tolist(), strict=True))


def _tango_statistic(delta: FloatArray, b: int, c: int, n: int) -> FloatArray:
    second = -b - c + (2 * n - b + c) * delta
    third = -c * delta * (1 - delta)
    q = (np.sqrt(np.maximum(second**2 - 8 * n * third, 0.0)) - second) / (4 * n)
    variance = n * np.maximum(2 * q + delta * (1 - delta), 0.0)
    distance = b - c - n * delta
    # without variance the score is infinite, unless the distance is 0 as well
    return np.asarray(distance / np.sqrt(np.maximum(variance, np.finfo(np.float64).tiny)), dtype=np.float64)


def _defined(samples: FloatArray) -> tuple[FloatArray, str | None]:
    known = samples[np.isfinite(samples)]
    if known.size < 0.95 * samples.size:
        return known, f"undefined in {samples.size - known.size} of {samples.size} resamples: no interval"
    return known, None


def _bootstrap(
    statistic: Callable[[IntArray], float | None],
    plug_in: float | None,
    n: int,
    cluster: ArrayLike | None,
    strata: ArrayLike | None,
    resamples: int,
    seed: int,
) -> Estimate:
    codes = cluster_codes(cluster, n)
    clusters = int(codes.max()) + 1 if n else 0
    value = statistic(np.arange(n, dtype=np.int64)) if n else None
    base = Estimate(None, n, clusters=None if cluster is None else clusters, details={"resamples": resamples})
    if value is None or not np.isfinite(value):
        return replace(base, reason="no rows" if n == 0 else "the statistic is undefined on these rows")
    base = replace(base, value=float(value))
    if clusters < 2:
        return replace(base, reason="one independent unit: no interval")
    groups = None if strata is None else np.unique(np.asarray(strata), return_inverse=True)[1].astype(np.int64)
    rng = generator(seed, "bootstrap")
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(clusters + 1))
    samples = np.full(resamples, np.nan)
    step = max(1, _CHUNK // clusters)
    for first in range(0, resamples, step):
        counts = resampled_counts(codes, min(step, resamples - first), rng, strata=groups).astype(np.int64)
        for number, times in enumerate(counts, start=first):
            drawn = np.repeat(np.arange(clusters), times)
            lengths = (starts[1:] - starts[:-1])[drawn]
            offsets = np.repeat(starts[drawn] - np.r_[0, np.cumsum(lengths)[:-1]], lengths)
            result = statistic(order[offsets + np.arange(lengths.sum())])
            samples[number] = np.nan if result is None else result
    if plug_in is None:
        ladder, reason = percentile_ladder(samples)
        method = "cluster_bootstrap"
    else:
        ladder, reason = centred_ladder(float(value), plug_in, samples)
        method = "centred_bootstrap"
    return replace(base, ladder=ladder, reason=reason, details=base.details | {"method": method})


def _resampled_auc(positive: BoolArray, scores: FloatArray, codes: IntArray, resamples: int, rng: np.random.Generator) -> FloatArray:
    """AUC of each resample of clusters, from one sort: row weights instead of rows."""
    order = np.argsort(scores, kind="stable")
    ordered, truth, unit = scores[order], positive[order], codes[order]
    level = np.r_[0, np.cumsum(ordered[1:] != ordered[:-1])]
    ends = np.flatnonzero(np.r_[level[1:] != level[:-1], True])
    strata = positive.astype(np.int64)
    result = np.empty(resamples)
    step = max(1, _CHUNK // max(1, scores.size))
    for start in range(0, resamples, step):
        weight = resampled_counts(codes, min(step, resamples - start), rng, strata=strata)[:, unit]
        # cumulative weights at the end of each run of tied scores
        positives = np.cumsum(weight * truth, axis=1)[:, ends]
        negatives = np.cumsum(weight * ~truth, axis=1)[:, ends]
        inside_p = np.diff(positives, axis=1, prepend=0.0)
        inside_n = np.diff(negatives, axis=1, prepend=0.0)
        wins = (inside_p * (negatives - inside_n / 2)).sum(axis=1)
        pairs = positives[:, -1] * negatives[:, -1]
        result[start : start + step] = np.divide(wins, pairs, out=np.full(pairs.size, np.nan), where=pairs > 0)
    return result
