"""Selection rates by category, and each as a ratio of the highest (TLA609)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from tl_audit.errors import DataError
from tl_audit.measures.arrays import same_length, truth_vector
from tl_audit.measures.estimate import BoolArray, Estimate, FloatArray, IntArray, build_ladder, limit_p, normal_quantile, t_quantile
from tl_audit.measures.fairness import MISSING
from tl_audit.measures.intervals import cluster_wilson, katz_ratio, percentile_ladder, rate, resampled_sums, sums_by
from tl_audit.measures.permutation import RESAMPLES, representable_p
from tl_audit.measures.sampling import cluster_codes, generator, group_codes

SMALL = 30
"Below this many rows on one side the exact test is used instead of the normal approximation."

Test = Literal["Fisher's exact", "Z, continuity-corrected", "interval over clusters"]


@dataclass(frozen=True)
class CategoryRatio:
    """One category against the most-selected one.

    Attributes
    ----------
    n, selected : rows of the category, and how many of them were selected
    share : of all rows whose category is known (0–1)
    rate : selected/n with [I1]/[I4]
    ratio : rate / rate of the reference (0–1, null 1) with [I8], over clusters [I5]; its p_value tests equal rates
    deviations : difference of the rates in standard errors under equal rates (Z, not corrected), None over clusters or where all rows agree
    test : what the p-value comes from; None without one
    left_out : the category holds too small a share of the rows to be compared
    """

    category: str
    n: int
    selected: int
    share: float
    rate: Estimate
    ratio: Estimate
    deviations: float | None
    test: Test | None
    left_out: bool


@dataclass(frozen=True)
class ImpactRatios:
    """All categories, most-selected first, then the ones left out. ``unknown``: rows without a category, in none of the figures."""

    categories: tuple[CategoryRatio, ...]
    reference: str | None
    known: int
    unknown: int

    def __getitem__(self, category: str) -> CategoryRatio:
        return next(one for one in self.categories if one.category == category)


def impact_ratios(
    categories: ArrayLike,
    selected: ArrayLike,
    *,
    least_share: float = 0.02,
    cluster: ArrayLike | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> ImpactRatios:
    """Selection rate of each category, and its ratio to the highest selection rate (0–1; 1: selected as often).

    The reference is chosen on the same rows, so that ratios lie below 1 by chance alone and tests reject a little too often.

    Parameters
    ----------
    categories : (N,), "(missing)" where not known
    selected : (N,) 0/1
    least_share : categories below this share of the known rows are listed, and neither compared nor compared with

    References
    ----------
    Katz et al. (1978). Obtaining confidence intervals for the risk ratio in cohort studies. Biometrics 34.

    Examples
    --------
    >>> found = impact_ratios(["a"] * 1000 + ["b"] * 1000, [1] * 270 + [0] * 730 + [1] * 240 + [0] * 760)
    >>> found.reference, round(found["b"].ratio.value, 3)
    ('a', 0.889)
    """
    hit = truth_vector(selected, "selected")
    n = same_length(categories=len(np.asarray(categories)), selected=hit.size)
    if not 0.0 <= least_share < 1.0:
        raise DataError(f"least_share is {least_share}: expected a share from 0 to below 1")
    codes, names = group_codes(categories, n)
    ids = None if cluster is None else cluster_codes(cluster, n)
    rows = {name: codes == at for at, name in enumerate(names) if name != MISSING}
    known = int(sum(int(inside.sum()) for inside in rows.values()))
    compared = [name for name, inside in rows.items() if inside.sum() >= least_share * known]
    # the most-selected one; of equals the larger, then the first by name
    reference = max(compared, key=lambda name: (float(hit[rows[name]].mean()), int(rows[name].sum())), default=None)
    found = []
    for name, inside in rows.items():
        size, share = int(inside.sum()), float(inside.sum() / known)
        own = rate(hit[inside], cluster=None if ids is None else ids[inside])
        ratio, deviations, test = Estimate(None, size, null=1.0), None, None
        if name not in compared:
            ratio = replace(ratio, reason=f"left out: {share:.1%} of the rows, below {least_share:.0%}")
        elif reference is None or name == reference:
            ratio = replace(ratio, value=1.0, reason="the reference: it is selected most often")
        else:
            ratio, deviations, test = _against(hit, inside, rows[reference], ids, resamples, seed)
        found.append(CategoryRatio(name, size, int(hit[inside].sum()), share, own, ratio, deviations, test, left_out=name not in compared))
    found.sort(key=lambda one: (one.left_out, -(one.rate.value or 0.0), one.category != reference, one.category))
    return ImpactRatios(tuple(found), reference, known, n - known)


def above_median(scores: ArrayLike) -> BoolArray:
    """(N,) whether a score lies above the median of all scores; what ties with the median does not."""
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise DataError("scores must be one finite number per row")
    return np.asarray(array > np.median(array), dtype=np.bool_) if array.size else np.zeros(0, dtype=np.bool_)


# ---------------------------------------------------------------- inside


def _against(
    hit: BoolArray, inside: BoolArray, outside: BoolArray, ids: IntArray | None, resamples: int, seed: int
) -> tuple[Estimate, float | None, Test | None]:
    a, n1, b, n2 = int(hit[inside].sum()), int(inside.sum()), int(hit[outside].sum()), int(outside.sum())
    ratio = katz_ratio(a, n1, b, n2) if a else _nobody(n1, b, n2)
    if ids is None:
        deviations, equal, test = _equal_rates(a, n1, b, n2)
        return replace(ratio, p_value=equal), deviations, test
    part = inside | outside
    codes = np.unique(ids[part], return_inverse=True)[1].astype(np.int64)
    units = int(codes.max()) + 1
    base = replace(ratio, ladder=(), clusters=units)
    if not ratio.ladder:
        return base, None, None
    if a == 0:
        # rows of one cluster that are all passed over count once, those of the reference by their design effect
        worth = cluster_wilson(hit[outside], ids[outside]).details.get("deff", float(n2))
        own = int(np.unique(ids[inside]).size)
        ladder, reason = _nobody(own, b / worth, n2 / worth, lambda alpha: t_quantile(alpha, own - 1)).ladder, None
        if own < 2:
            ladder, reason = (), "nobody of the category was selected, and all of it is one cluster: no interval"
    else:
        ladder, reason = _over_clusters(hit[part], inside[part], codes, units, resamples, seed)
    base = replace(base, ladder=ladder, reason=reason)
    p = limit_p(ladder, minimum=1.0) if ladder and ratio.value is not None and ratio.value < 1.0 else None
    return replace(base, p_value=p), None, None if p is None else "interval over clusters"


def _nobody(n1: float, b: float, n2: float, quantile: Callable[[float], float] = normal_quantile) -> Estimate:
    """The ratio 0, with half a selection added on both sides for the upper ends of its intervals."""
    if b == 0:
        return katz_ratio(0, int(n1), 0, int(n2))
    centre = (0.5 / (n1 + 0.5)) / ((b + 0.5) / (n2 + 0.5))
    error = float(np.sqrt(1 / 0.5 - 1 / (n1 + 0.5) + 1 / (b + 0.5) - 1 / (n2 + 0.5)))

    def bounds(alpha: float) -> tuple[float, float]:
        return 0.0, centre * float(np.exp(min(quantile(alpha) * error, 700.0)))

    details = {"method": "katz, half a selection added"}
    rows, others = int(n1 + n2), int(min(n1, n2 - b))
    return Estimate(0.0, rows, null=1.0, ladder=build_ladder(bounds), events=0, nonevents=others, details=details)


def _over_clusters(
    hit: BoolArray, inside: BoolArray, codes: IntArray, units: int, resamples: int, seed: int
) -> tuple[tuple[tuple[float, float, float], ...], str | None]:
    """Intervals of the ratio: below 30 clusters from the linearised variance of its logarithm with t, else resampled ([I5])."""
    if units < 2:
        return (), "all rows belong to one cluster: no interval"
    columns = np.stack([inside & hit, inside, ~inside & hit, ~inside], axis=1).astype(np.float64)
    a, n1, b, n2 = columns.sum(axis=0)
    ratio = (a / n1) / (b / n2)
    if units < SMALL:
        residual = inside * (hit - a / n1) / a - ~inside * (hit - b / n2) / b
        error = float(np.sqrt(units / (units - 1) * (sums_by(codes, residual[:, None]) ** 2).sum()))
        if error == 0.0:
            return (), "no spread between clusters: no interval"

        def bounds(alpha: float) -> tuple[float, float]:
            width = t_quantile(alpha, units - 1) * error
            return float(ratio * np.exp(-width)), float(ratio * np.exp(width))

        return build_ladder(bounds), None
    drawn = resampled_sums(codes, columns, resamples, generator(seed, "impact_ratios")).T
    defined: FloatArray = np.full(resamples, np.nan)
    there = (drawn[0] > 0) & (drawn[2] > 0)
    defined[there] = np.log(drawn[0][there] / drawn[1][there]) - np.log(drawn[2][there] / drawn[3][there])
    ladder, reason = percentile_ladder(defined)
    return tuple((alpha, float(np.exp(low)), float(np.exp(high))) for alpha, low, high in ladder), reason


def _equal_rates(a: int, n1: int, b: int, n2: int) -> tuple[float | None, float, Test]:
    """(difference in standard errors, two-sided p of equal rates, the test): exact below 30 rows on a side or 5 expected in a cell."""
    k, n = a + b, n1 + n2
    if k in (0, n):
        return None, 1.0, "Fisher's exact"
    p, gap = k / n, a / n1 - b / n2
    error = float(np.sqrt(p * (1 - p) * (1 / n1 + 1 / n2)))
    z = gap / error
    if min(n1, n2) < SMALL or min(n1, n2) * min(k, n - k) / n < 5:
        return z, representable_p(stats.fisher_exact([[a, n1 - a], [b, n2 - b]])[1]), "Fisher's exact"
    # corrected, so that the two tests agree where one takes over from the other
    corrected = max(0.0, abs(gap) - (1 / n1 + 1 / n2) / 2) / error
    return z, representable_p(min(1.0, 2 * float(stats.norm.sf(corrected)))), "Z, continuity-corrected"
