"""Numbers for domain shift: MMD, domain classifier, label mix, plain properties, and what the shift costs (TLA501, 502, 505, 507, 509).

The first domain is always the source, the second the target. With clusters, clusters are permuted and resampled, never rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.spatial.distance import squareform

from tl_audit.errors import DataError
from tl_audit.measures.arrays import class_vector, finite_matrix, finite_vector, is_missing, same_length, truth_vector
from tl_audit.measures.distributions import (
    MANY_ROWS,
    Chance,
    Merged,
    ks_by_chance,
    largest_gaps,
    merge,
    sorted_deciles,
    sorted_quantiles,
    tvd_by_chance,
)
from tl_audit.measures.estimate import BoolArray, Estimate, FloatArray, IntArray, Ladder, build_ladder, t_quantile
from tl_audit.measures.intervals import (
    BOOTSTRAP_CLUSTERS,
    auc,
    centred_ladder,
    crosses,
    mean_difference,
    no_spread,
    percentile_ladder,
    rate,
    rate_difference,
    resampled_counts,
    resampled_sums,
)
from tl_audit.measures.kernels import Cells, Forms, kernel_forms
from tl_audit.measures.permutation import RESAMPLES, Labellings, TestResult, domain_labellings, judge_labellings, resamples_for
from tl_audit.measures.sampling import cluster_codes, generator, split_by_cluster

MOST_FOR_BANDWIDTH = 2000
MOST_FOR_MEDIAN = 4000
BOOTSTRAP = 1000  # resamples of intervals that cost one matrix product with the kernel matrix
MANY_PAIRED = 2_000
"""Rows of both samples from which on the kernel of the MMD is computed in blocks and its median distance on a subsample."""
_CHUNK = 4_000_000  # numbers held at once while labellings are walked through


# ---------------------------------------------------------------- inputs: MMD, domain classifier, mean gaps


def mmd(
    source: ArrayLike,
    target: ArrayLike,
    *,
    cluster_source: ArrayLike | None = None,
    cluster_target: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    bootstrap: int = BOOTSTRAP,
    seed: int = 0,
    alpha: float = 0.05,
) -> Estimate:
    """Unbiased squared maximum mean discrepancy between two samples; null 0, may be negative, no unit, lower is better.

    Kernel exp(-d²/median of the pooled squared distances). With clusters only pairs of different clusters count. The p-value
    permutes rows or clusters on one kernel matrix [P1]; the interval is the centred bootstrap [I6] on the V-statistic.
    Undefined where all rows are equal, or where a domain has fewer than two rows (clusters).

    Above ``MANY_PAIRED`` rows the kernel is computed in blocks, so that memory grows with the rows and not with the pairs: the value is the
    same, null and interval are taken in float32 (1e-8 of the kernel's scale). Above ``MOST_FOR_MEDIAN`` the bandwidth is the median over
    that many rows, evenly spaced (``bandwidth_rows`` in details).

    Parameters
    ----------
    source, target : (N, D) and (M, D)
    cluster_source, cluster_target : (N,) and (M,); an id that occurs in both is one cluster
    resamples, bootstrap : labellings of the test, resamples of the interval
    alpha : level of the test: fewer labellings than it needs give no p-value, with ``p_reason`` in details

    References
    ----------
    Gretton et al. (2012). A kernel two-sample test. JMLR 13.
    """
    x, y = _two_samples(source, target)
    n, m = x.shape[0], y.shape[0]
    second, cluster, base = _before_mmd(n, m, cluster_source, cluster_target)
    if base.reason is not None:
        return base
    pooled = np.concatenate([x, y])
    if n + m > MANY_PAIRED:
        return _mmd_in_blocks(base, pooled, second, cluster, resamples, bootstrap, seed, alpha)
    kernel, bandwidth = _kernel(pooled)
    if kernel is None:
        return replace(base, reason="all rows are equal: no distance to compare")
    return _mmd_of_kernel(base, kernel, bandwidth, second, cluster, resamples, bootstrap, seed, alpha)


def mmd_of_parts(
    source: ArrayLike,
    parts: Sequence[ArrayLike],
    *,
    cluster_source: ArrayLike | None = None,
    cluster_parts: Sequence[ArrayLike] | None = None,
    resamples: int = RESAMPLES,
    bootstrap: int = BOOTSTRAP,
    seed: int = 0,
    alpha: float = 0.05,
) -> tuple[Estimate, ...]:
    """`mmd` of one source against each of several parts of a target, with one bandwidth for all and the source's own kernel computed once.

    The bandwidth is the median over the source and all parts together (at most ``MOST_FOR_BANDWIDTH`` rows, evenly spaced), so that the
    values of the parts are on one scale.

    Parameters
    ----------
    source : (N, D)
    parts : (M_k, D) each
    cluster_source, cluster_parts : (N,), and (M_k,) for each part; an id that occurs in both is one cluster
    """
    x = finite_matrix(source, "source features")
    sides = [_two_samples(x, part)[1] for part in parts]
    pooled = np.concatenate([x, *sides])
    if pooled.shape[0] > MOST_FOR_BANDWIDTH:
        pooled = pooled[np.linspace(0, pooled.shape[0] - 1, MOST_FOR_BANDWIDTH).round().astype(np.int64)]
    bandwidth = _kernel(pooled)[1]
    inside = _gaussian(x, x, bandwidth) if bandwidth > 0 else None
    n, found = x.shape[0], []
    for k, y in enumerate(sides):
        m = y.shape[0]
        second, cluster, base = _before_mmd(n, m, cluster_source, None if cluster_parts is None else cluster_parts[k])
        if base.reason is not None:
            found.append(base)
            continue
        if inside is None:
            found.append(replace(base, reason="all rows are equal: no distance to compare"))
            continue
        kernel = np.empty((n + m, n + m))
        kernel[:n, :n] = inside
        kernel[:n, n:] = _gaussian(x, y, bandwidth)
        kernel[n:, :n] = kernel[:n, n:].T
        kernel[n:, n:] = _gaussian(y, y, bandwidth)
        found.append(_mmd_of_kernel(base, kernel, bandwidth, second, cluster, resamples, bootstrap, seed, alpha))
    return tuple(found)


def _before_mmd(
    n: int, m: int, cluster_source: ArrayLike | None, cluster_target: ArrayLike | None
) -> tuple[BoolArray, np.ndarray[Any, Any] | None, Estimate]:  # Any: ids of any type
    """Which of the pooled rows are the second sample's, their clusters, and the estimate to fill in; it has a reason where there is none to make."""
    second = np.r_[np.zeros(n, dtype=np.bool_), np.ones(m, dtype=np.bool_)]
    cluster = _both(cluster_source, cluster_target, n, m)
    codes = cluster_codes(cluster, n + m)
    units = (int(np.unique(codes[:n]).size), int(np.unique(codes[n:]).size))
    details: dict[str, Any] = {"n_source": n, "n_target": m, "method": "centred_bootstrap"}
    few = f"a domain has fewer than two {'rows' if cluster is None else 'clusters'}" if min(units) < 2 else None
    return second, cluster, Estimate(None, n + m, few, null=0.0, clusters=None if cluster is None else min(units), details=details)


def _mmd_of_kernel(
    base: Estimate,
    kernel: FloatArray,
    bandwidth: float,
    second: BoolArray,
    cluster: np.ndarray[Any, Any] | None,  # Any: ids of any type
    resamples: int,
    bootstrap: int,
    seed: int,
    alpha: float,
) -> Estimate:
    codes = cluster_codes(cluster, second.size)
    cells = _Cells.of(kernel, second, codes)
    value = float(cells.mmd2(cells.second[None])[0])
    rng = generator(seed, "mmd")
    ladder, reason = centred_ladder(value, cells.v_statistic(), cells.resampled(bootstrap, rng))
    labellings = domain_labellings(second, cluster=cluster, resamples=resamples, seed=seed, alpha=alpha)
    test = _mmd_test(kernel, second, codes, cells, labellings)
    details = base.details | {"bandwidth": bandwidth, **_test_details(test, labellings)}
    return replace(base, value=value, ladder=ladder, reason=reason, p_value=test.p_value, details=details)


def _mmd_in_blocks(
    base: Estimate,
    pooled: FloatArray,
    second: BoolArray,
    cluster: np.ndarray[Any, Any] | None,  # Any: ids of any type
    resamples: int,
    bootstrap: int,
    seed: int,
    alpha: float,
) -> Estimate:
    """`_mmd_of_kernel` without the kernel's matrix: the same weights, and the same sums of them."""
    some = pooled
    if pooled.shape[0] > MOST_FOR_MEDIAN:
        some = pooled[np.linspace(0, pooled.shape[0] - 1, MOST_FOR_MEDIAN).round().astype(np.int64)]
        base = replace(base, details=base.details | {"bandwidth_rows": MOST_FOR_MEDIAN})
    bandwidth, level = _median_distance(some)
    if bandwidth == 0 and some is not pooled:
        # rows that are equal as far as the subsample sees: the distinct ones have a scale
        distinct = np.unique(pooled, axis=0)
        bandwidth, level = _median_distance(distinct[np.linspace(0, len(distinct) - 1, MOST_FOR_BANDWIDTH).round().astype(np.int64)])
    if bandwidth == 0:
        return replace(base, reason="all rows are equal: no distance to compare")
    codes = cluster_codes(cluster, second.size)
    cells = Cells.of(second, codes)
    labellings = domain_labellings(second, cluster=cluster, resamples=resamples, seed=seed, alpha=alpha)
    # labels of cells: those of a row of theirs, where the cell takes part
    row = cells.order[cells.starts]
    takes_part = labellings.kept[row]
    unit = np.full(second.size, -1, dtype=np.int64)
    unit[labellings.kept] = labellings.unit
    labels = np.zeros((labellings.labels.shape[0], row.size), dtype=np.bool_)
    if not labellings.reason:
        labels[:, takes_part] = labellings.labels[:, unit[row[takes_part]]]
    clusters = np.unique(cells.cluster, return_inverse=True)[1].astype(np.int64)
    # as _Cells draws them: in the order of clusters, then samples
    plain = np.lexsort((cells.second, cells.cluster))
    counts = resampled_counts(clusters[plain], bootstrap, generator(seed, "mmd"), strata=cells.second[plain].astype(np.int64))[:, clusters]
    one = np.ones(row.size)
    exact = np.stack([one, takes_part.astype(np.float64), cells.second.astype(np.float64)], axis=1)
    forms = kernel_forms(pooled, bandwidth, cells, labels, counts, exact, level)
    sums = _PairSums(cells, forms)
    value = float(sums.mmd2(cells.second[None], cells.second @ forms.products[:, 2:], forms.products[:, 0], one)[0])
    contrast = _contrast(cells)
    plug_in = float(contrast @ (forms.products[:, 2] * (1 / sums.m + 1 / sums.n) - forms.products[:, 0] / sums.n))
    ladder, reason = centred_ladder(value, plug_in, sums.resampled(counts))
    test = TestResult(None, labellings.assignments, labellings.reason, np.zeros(0))
    if not labellings.reason:
        null = sums.mmd2(labels, forms.labels, forms.products[:, 1], takes_part.astype(np.float64))
        seen = cells.second & takes_part
        of_seen = float(seen @ forms.products[:, 2]) if takes_part.all() else _form_of(seen, pooled, bandwidth, cells, level)
        observed = float(sums.mmd2(seen[None], np.array([of_seen]), forms.products[:, 1], takes_part.astype(np.float64))[0])
        test = judge_labellings(observed, null, labellings)
    details = base.details | {"bandwidth": bandwidth, **_test_details(test, labellings)}
    return replace(base, value=value, ladder=ladder, reason=reason, p_value=test.p_value, details=details)


def _form_of(weights: BoolArray, pooled: FloatArray, bandwidth: float, cells: Cells, level: float) -> float:
    """wᵀSw of one vector in float64."""
    none = np.zeros((0, weights.size))
    product = kernel_forms(pooled, bandwidth, cells, none.astype(np.bool_), none, weights.astype(np.float64)[:, None], level).products
    return float(weights @ product[:, 0])


def _median_distance(features: FloatArray) -> tuple[float, float]:
    """Bandwidth by the median heuristic, and the mean of the kernel off its diagonal; (0, 0) where all rows are equal."""
    bandwidth = _bandwidth(_squared_distances(features))
    if bandwidth == 0:
        return 0.0, 0.0
    # any level near the mean serves
    some = np.exp(_squared_distances(features[:: max(1, len(features) // 500)]) / -bandwidth)
    return bandwidth, float((some.sum() - len(some)) / max(1, some.size - len(some)))


def _contrast(cells: Cells) -> FloatArray:
    """Weights of the V-statistic: 1/m in the second sample, -1/n in the first."""
    m = float(cells.sizes[cells.second].sum())
    return np.where(cells.second, 1 / m, -1 / (cells.sizes.sum() - m))


@dataclass(frozen=True)
class _PairSums:
    """MMD² from forms of the kernel: those of all pairs, less the pairs of one cluster."""

    cells: Cells
    forms: Forms

    @property
    def m(self) -> float:
        return float(self.cells.sizes[self.cells.second].sum())

    @property
    def n(self) -> float:
        return float(self.cells.sizes.sum()) - self.m

    def mmd2(self, labels: BoolArray, forms: FloatArray, products: FloatArray, part: FloatArray) -> FloatArray:
        """Unbiased MMD² of labellings (B, U) with forms yᵀSy; ``products``: S times ``part``, the cells that take part."""
        sizes, diagonal, partner = self.cells.sizes * part, self.forms.diagonal * part, self.cells.partners()
        both = np.flatnonzero((partner >= 0) & (part > 0))
        both = both[part[partner[both]] > 0]
        beside, pairs = self.forms.partner[both], sizes[both] * sizes[partner[both]]
        total = float(products @ part)
        result = np.empty(labels.shape[0])
        step = max(1, _CHUNK // sizes.size)
        for start in range(0, labels.shape[0], step):
            y, form = labels[start : start + step].astype(np.float64), forms[start : start + step]
            # pairs of one cluster: both in the second sample, both in the first, one in each
            own, other = y[:, both], y[:, partner[both]]
            twos, nones, across = own * other, (1 - own) * (1 - other), own * (1 - other)
            met = y @ products
            yy = form - y @ diagonal - twos @ beside
            xy = met - form - across @ beside
            xx = total - 2 * met + form - (1 - y) @ diagonal - nones @ beside
            m = y @ sizes
            n = float(sizes.sum()) - m
            m_pairs = m**2 - y @ sizes**2 - twos @ pairs
            n_pairs = n**2 - (1 - y) @ sizes**2 - nones @ pairs
            with np.errstate(divide="ignore", invalid="ignore"):
                result[start : start + step] = xx / n_pairs + yy / m_pairs - 2 * xy / (n * m - across @ pairs)
        # a labelling may leave one side with a single large cluster; it then counts as no discrepancy
        return np.where(np.isfinite(result), result, 0.0)

    def resampled(self, counts: FloatArray) -> FloatArray:
        """Unbiased MMD² of each resample of clusters (R, U); pairs of different draws, which may be the same cluster twice."""
        second, sizes, partner = self.cells.second, self.cells.sizes, self.cells.partners()
        result = np.zeros(counts.shape[0])
        of_sides = []
        with np.errstate(divide="ignore", invalid="ignore"):
            for side, form in ((~second, self.forms.first), (second, self.forms.second)):
                weight = counts[:, side]
                rows = weight @ sizes[side]
                of_sides.append(rows)
                result += (form - weight @ self.forms.diagonal[side]) / (rows**2 - weight @ sizes[side] ** 2)
            both = np.flatnonzero((partner >= 0) & ~second)
            across = self.forms.across - counts[:, both] @ self.forms.partner[both]
            pairs = of_sides[0] * of_sides[1] - counts[:, both] @ (sizes[both] * sizes[partner[both]])
            return np.asarray(result - 2 * across / pairs, dtype=np.float64)


@dataclass(frozen=True)
class DomainScores:
    """Scores of a domain classifier on the rows it was not trained on.

    Attributes
    ----------
    rows : row numbers of the held-out rows, source first, then target (counted on from the source's last row)
    second : whether a held-out row is a target row
    scores : log-odds of "target"
    reason : why there is no classifier, else None
    """

    rows: IntArray
    second: BoolArray
    scores: FloatArray
    reason: str | None


def domain_scores(
    source: ArrayLike,
    target: ArrayLike,
    *,
    cluster_source: ArrayLike | None = None,
    cluster_target: ArrayLike | None = None,
    seed: int = 0,
) -> DomainScores:
    """Held-out scores of a linear domain classifier: L2 logistic regression, classes balanced, on standardised features.

    One half of each domain trains it (split by cluster), the other half is scored.
    """
    x, y = _two_samples(source, target)
    n, m = x.shape[0], y.shape[0]
    second = np.r_[np.zeros(n, dtype=np.bool_), np.ones(m, dtype=np.bool_)]
    cluster = _both(cluster_source, cluster_target, n, m)
    codes = cluster_codes(cluster, n + m)
    if cluster is not None and crosses(codes, second.astype(np.int64)):
        training = split_by_cluster(codes, n + m, seed)
    else:
        training = np.r_[split_by_cluster(codes[:n], n, seed), split_by_cluster(codes[n:], m, seed + 1)]
    for part in (training, ~training):
        if not (part & second).any() or not (part & ~second).any():
            empty = np.zeros(0)
            return DomainScores(
                np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.bool_), empty, "a half of the split holds one domain only"
            )
    features = np.concatenate([x, y])
    centre = features[training].mean(axis=0)
    scale = features[training].std(axis=0)
    varies = scale > 1e-12 * np.maximum(1.0, np.abs(centre))  # a feature that is constant in training tells nothing
    features = (features[:, varies] - centre[varies]) / scale[varies]
    scores = _logistic_scores(features[training], second[training], features[~training])
    return DomainScores(np.flatnonzero(~training), second[~training], scores, None)


def c2st(
    source: ArrayLike,
    target: ArrayLike,
    *,
    cluster_source: ArrayLike | None = None,
    cluster_target: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    alpha: float = 0.05,
) -> Estimate:
    """AUC of a domain classifier on held-out rows (0–1, null 0.5, lower is better: 0.5 means that the domains look alike).

    Interval [I9] on the held-out half; p-value by permuting its domain labels over clusters [P1]. See `domain_scores`.

    References
    ----------
    Lopez-Paz, Oquab (2017). Revisiting classifier two-sample tests. arXiv:1610.06545
    """
    held = domain_scores(source, target, cluster_source=cluster_source, cluster_target=cluster_target, seed=seed)
    n, m = len(np.asarray(source)), len(np.asarray(target))
    cluster = _both(cluster_source, cluster_target, n, m)
    if held.reason:
        return Estimate(None, 0, held.reason, null=0.5, clusters=None if cluster is None else 0)
    inside = None if cluster is None else cluster_codes(cluster, n + m)[held.rows]
    result = auc(held.second, held.scores, cluster=inside, seed=seed)
    labellings = domain_labellings(held.second, cluster=inside, resamples=resamples, seed=seed, alpha=alpha)
    test = TestResult(None, labellings.assignments, labellings.reason, np.zeros(0))
    if not labellings.reason:
        ranks = stats.rankdata(held.scores[labellings.kept])
        sums = np.bincount(labellings.unit, ranks)
        sizes = np.bincount(labellings.unit).astype(np.float64)

        def area(labels: FloatArray) -> FloatArray:
            n1 = labels @ sizes
            return np.asarray((labels @ sums - n1 * (n1 + 1) / 2) / (n1 * (ranks.size - n1)), dtype=np.float64)

        null = labellings.values(area)
        test = judge_labellings(float(area(labellings.observed[None].astype(np.float64))[0]), null, labellings)
    details = result.details | {"n_source": int((~held.second).sum()), "n_target": int(held.second.sum())}
    return replace(result, p_value=test.p_value, details=details | _test_details(test, labellings))


def principal_scores(source: ArrayLike, target: ArrayLike, axes: int = 5) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Coordinates of both samples on the leading principal axes of the pooled rows, and the share of variance of each axis.

    Shapes (N, k), (M, k), (k,) with k <= axes; signs are fixed by the largest loading. k = 0 where all rows are equal.
    """
    x, y = _two_samples(source, target)
    pooled = np.concatenate([x, y])
    rows, columns = pooled.shape
    if rows == 0 or columns == 0:
        return np.zeros((x.shape[0], 0)), np.zeros((y.shape[0], 0)), np.zeros(0)
    pooled = pooled - pooled.mean(axis=0)
    if columns <= rows:
        values, vectors = np.linalg.eigh(pooled.T @ pooled)
    else:
        values, left = np.linalg.eigh(pooled @ pooled.T)
        vectors = pooled.T @ left / np.sqrt(np.maximum(values, np.finfo(np.float64).tiny))
    total = float(np.maximum(values, 0).sum())
    order = np.argsort(-values)[:axes]
    order = order[values[order] > 1e-12 * max(total, np.finfo(np.float64).tiny)]
    vectors = vectors[:, order]
    if order.size:
        vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(order.size)])
    scores = pooled @ vectors
    return scores[: x.shape[0]], scores[x.shape[0] :], values[order] / total if order.size else np.zeros(0)


def mean_gap(
    source: ArrayLike,
    target: ArrayLike,
    *,
    axes: int = 5,
    cluster_source: ArrayLike | None = None,
    cluster_target: ArrayLike | None = None,
) -> tuple[Estimate, ...]:
    """Difference of means, target - source, on each leading principal axis, in standard deviations within the domains (null 0).

    ``details``: ``variance_share`` of the axis. Empty where all rows are equal.
    """
    first, second, shares = principal_scores(source, target, axes)
    result = []
    for axis, share in enumerate(shares):
        a, b = second[:, axis], first[:, axis]
        freedom = a.size + b.size - 2
        within = np.sqrt((a.size * a.var() + b.size * b.var()) / freedom) if freedom > 0 and a.size and b.size else 0.0
        if within <= 1e-12 * max(1.0, float(np.abs(np.r_[a, b]).max())):
            result.append(Estimate(None, a.size + b.size, "no spread inside the domains on this axis", null=0.0))
            continue
        gap = mean_difference(a / within, b / within, cluster_first=cluster_target, cluster_second=cluster_source)
        result.append(replace(gap, details=gap.details | {"variance_share": float(share)}))
    return tuple(result)


# ---------------------------------------------------------------- labels and outputs


@dataclass(frozen=True)
class LabelShift:
    """How the mix of classes changed.

    Attributes
    ----------
    tvd : total variation distance, share of labels to move (0–1), tested by permutation
    js : Jensen-Shannon divergence in bits (0–1)
    weights : target share / source share of each class, None where the source has none
    effective_sample_share : of the source after weighting, (Σw)²/(nΣw²), 0–1, null 1
    source_share, target_share : class mixes, empty without rows
    """

    tvd: Estimate
    js: Estimate
    weights: tuple[float | None, ...]
    effective_sample_share: Estimate
    source_share: tuple[float, ...]
    target_share: tuple[float, ...]


def label_shift(
    source: ArrayLike,
    target: ArrayLike,
    *,
    classes: int,
    cluster_source: ArrayLike | None = None,
    cluster_target: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> LabelShift:
    """Change of the class mix between two sets of labels (TLA502), classes as numbers 0 .. C-1 of one common order."""
    a, b = class_vector(source, classes, "source labels"), class_vector(target, classes, "target labels")
    tvd = tvd_shift(a, b, classes=classes, cluster_source=cluster_source, cluster_target=cluster_target, resamples=resamples, seed=seed)
    n, m = a.size, b.size
    if n == 0 or m == 0:
        gone = Estimate(None, n + m, "no labels in one domain")
        return LabelShift(tvd, gone, (None,) * classes, gone, (), ())
    p, q = np.bincount(a, minlength=classes) / n, np.bincount(b, minlength=classes) / m
    middle = (p + q) / 2
    bits = 0.0
    for share in (p, q):
        some = share > 0
        bits += 0.5 * float((share[some] * np.log2(share[some] / middle[some])).sum())
    present = int((middle > 0).sum())
    null = float((present - 1) * (1 / n + 1 / m) / (8 * np.log(2))) if cluster_source is None else None
    js = Estimate(max(0.0, bits), n + m, null=null, clusters=tvd.clusters, p_value=None, details={"n_source": n, "n_target": m})
    weights = tuple(float(q[c] / p[c]) if p[c] > 0 else None for c in range(classes))
    row = np.divide(q, p, out=np.zeros(classes), where=p > 0)[a]
    if row.any():
        effective = Estimate(float(row.sum() ** 2 / (n * (row**2).sum())), n, null=1.0)
    else:
        effective = Estimate(None, n, "no class of the target occurs in the source", null=1.0)
    return LabelShift(tvd, js, weights, effective, tuple(p.tolist()), tuple(q.tolist()))


@dataclass(frozen=True)
class BlackBoxShift:
    """Class mix of an unlabelled target, estimated from predictions.

    Attributes
    ----------
    weights : of each class, target share / source share; may be negative
    shares : estimated share of each class in the target
    condition : condition number of the confusion matrix
    """

    weights: tuple[Estimate, ...]
    shares: tuple[Estimate, ...]
    condition: Estimate


def bbse(
    source_predicted: ArrayLike,
    source_labels: ArrayLike,
    target_predicted: ArrayLike,
    *,
    classes: int,
    cluster_source: ArrayLike | None = None,
    cluster_target: ArrayLike | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> BlackBoxShift:
    """Black-box shift estimation: w = C⁻¹μ from held-out source predictions; interval [I5]. Valid under label shift alone.

    Undefined where the confusion matrix is close to singular (condition above 100). Never clipped.

    References
    ----------
    Lipton, Wang, Smola (2018). Detecting and correcting for label shift with black box predictors. arXiv:1802.03916
    """
    predicted = class_vector(source_predicted, classes, "source predictions")
    labels = class_vector(source_labels, classes, "source labels")
    outcome = class_vector(target_predicted, classes, "target predictions")
    n, m = same_length(source_predictions=predicted.size, source_labels=labels.size), outcome.size
    if n == 0 or m == 0:
        gone = Estimate(None, n + m, "no rows in one domain")
        return BlackBoxShift((gone,) * classes, (gone,) * classes, gone)
    cluster = _both(cluster_source, cluster_target, n, m)
    codes = cluster_codes(cluster, n + m)
    clusters = None if cluster is None else int(min(np.unique(codes[:n]).size, np.unique(codes[n:]).size))
    joint = np.zeros((n + m, classes * classes))
    joint[np.arange(n), predicted * classes + labels] = 1
    answers = np.zeros((n + m, classes))
    answers[n + np.arange(m), outcome] = 1
    confusion = joint.sum(axis=0).reshape(classes, classes) / n
    values = np.linalg.svd(confusion, compute_uv=False)
    if values[-1] <= 1e-15 * values[0]:
        number = Estimate(None, n, "the confusion matrix is singular: some class is absent or never told apart", clusters=clusters)
    else:
        number = Estimate(float(values[0] / values[-1]), n, clusters=clusters)
    if number.value is None or number.value > 100:
        reason = number.reason or f"condition {number.value:.0f} of the confusion matrix is above 100"
        gone = Estimate(None, n + m, reason, clusters=clusters, null=1.0)
        return BlackBoxShift((gone,) * classes, (replace(gone, null=None),) * classes, number)
    weights = np.linalg.solve(confusion, answers.sum(axis=0) / m)
    shares = weights * confusion.sum(axis=0)
    side = np.r_[np.zeros(n, dtype=np.int64), np.ones(m, dtype=np.int64)]
    columns = np.concatenate([np.stack([side == 0, side == 1], axis=1), joint, answers], axis=1).astype(np.float64)
    drawn_sums = resampled_sums(codes, columns, resamples, generator(seed, "bbse"), strata=side)
    drawn_n, drawn_m = drawn_sums[:, :1], drawn_sums[:, 1:2]
    matrices = drawn_sums[:, 2 : 2 + classes**2].reshape(resamples, classes, classes)
    means = drawn_sums[:, 2 + classes**2 :]
    usable = (drawn_n[:, 0] > 0) & (drawn_m[:, 0] > 0)
    matrices[usable] /= drawn_n[usable][:, :, None]
    means[usable] /= drawn_m[usable]
    singular = np.linalg.svd(matrices, compute_uv=False)
    usable &= singular[:, -1] > 1e-8 * singular[:, 0]
    drawn = np.full((resamples, classes), np.nan)
    drawn[usable] = np.linalg.solve(matrices[usable], means[usable][:, :, None])[:, :, 0]
    mixes = drawn * matrices.sum(axis=1)

    def with_interval(value: float, samples: FloatArray, null: float | None) -> Estimate:
        ladder, reason = percentile_ladder(samples)
        return Estimate(
            value, n + m, reason, clusters, null, ladder=ladder, details={"method": "cluster_bootstrap", "n_source": n, "n_target": m}
        )

    return BlackBoxShift(
        tuple(with_interval(float(weights[c]), drawn[:, c], 1.0) for c in range(classes)),
        tuple(with_interval(float(shares[c]), mixes[:, c], None) for c in range(classes)),
        number,
    )


def tvd_shift(
    source: ArrayLike,
    target: ArrayLike,
    *,
    classes: int,
    cluster_source: ArrayLike | None = None,
    cluster_target: ArrayLike | None = None,
    tests: int = 1,
    alpha: float = 0.05,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Total variation distance of two sets of categories, ½Σ|p - q| (0–1, lower is better), tested by permutation [P1].

    ``null`` is its mean under permutation. No interval (rule B). ``details``: ``null_high``, the 1 - alpha/tests quantile under
    permutation, and ``within_null``: the value does not exceed it, and it does not exceed 0.20. Above `MANY_ROWS` independent rows the
    counts of the labellings are drawn in place of the labellings: the same law.

    Parameters
    ----------
    source, target : category numbers 0 .. classes-1
    tests : tests in the family; resamples are raised so that Holm can reject
    """
    a, b = class_vector(source, classes, "source"), class_vector(target, classes, "target")
    first, second = (np.bincount(side, minlength=classes).astype(np.float64)[None] for side in (a, b))
    value = float(_tvd(second, first)[0]) if a.size and b.size else None
    level, draws = alpha / max(tests, 1), resamples_for(tests, alpha, resamples)
    if value is not None and _many_rows(a, b, cluster_source, cluster_target):
        return _by_law(value, a.size, b.size, tvd_by_chance(first[0], second[0], alpha=level, resamples=draws, seed=seed))

    def statistic(labellings: Labellings, pooled: FloatArray) -> Callable[[BoolArray], FloatArray]:
        cell = labellings.unit * classes + pooled.astype(np.int64)
        counts = np.bincount(cell, minlength=labellings.observed.size * classes).reshape(-1, classes).astype(np.float64)

        def distances(labels: BoolArray) -> FloatArray:
            step = max(1, _CHUNK // counts.shape[0])
            second = [labels[start : start + step].astype(np.float64) @ counts for start in range(0, labels.shape[0], step)]
            return _tvd(np.concatenate(second), counts.sum(axis=0) - np.concatenate(second))

        return distances

    codes = _joint_codes(cluster_source, cluster_target, a.size, b.size)
    return _two_sample_test(a.astype(np.float64), b.astype(np.float64), value, statistic, codes, tests, alpha, resamples, seed, _Redraws())


def ks_shift(
    source: ArrayLike,
    target: ArrayLike,
    *,
    cluster_source: ArrayLike | None = None,
    cluster_target: ArrayLike | None = None,
    tests: int = 1,
    alpha: float = 0.05,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Kolmogorov-Smirnov distance of two samples, the largest gap of their distribution functions (0–1, lower is better).

    Test, null and details as in `tvd_shift`; exact under ties and clusters, since it permutes. Above `MANY_ROWS` independent rows
    p and null come from the law of the permuted distance (``method`` in details).
    """
    a, b = finite_vector(source, "source"), finite_vector(target, "target")
    merged = merge(a, b) if a.size and b.size else None
    codes = _joint_codes(cluster_source, cluster_target, a.size, b.size)
    return _ks(a, b, merged, codes, tests, alpha, resamples, seed, _Redraws())


# ---------------------------------------------------------------- plain properties of the inputs


@dataclass(frozen=True)
class PropertyShift:
    """How one property of the inputs changed.

    Attributes
    ----------
    kind : numeric or categorical
    distance : ks (numeric) or tvd (categorical)
    state : None, or "constant", "became constant", "was constant", "constant at another value"
    wasserstein_scaled : W1 / source interquartile range; None for categories
    psi : population stability index, null and 95 % of the null in details; None for categories
    unseen_share : share of target rows with a category that the source lacks; None for numbers
    missing : rows without a value (source, target), left out
    """

    kind: str
    distance: Estimate
    state: str | None
    wasserstein_scaled: Estimate | None
    psi: Estimate | None
    unseen_share: Estimate | None
    missing: tuple[int, int]


def property_shift(
    source: ArrayLike,
    target: ArrayLike,
    *,
    categorical: bool = False,
    cluster_source: ArrayLike | None = None,
    cluster_target: ArrayLike | None = None,
    tests: int = 1,
    alpha: float = 0.05,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PropertyShift:
    """Change of one plain property (TLA507). Missing values are left out and counted.

    Parameters
    ----------
    source, target : (N,) and (M,), numbers or categories of any type
    tests : properties tested together, for the quantile of the null
    """
    a, b = np.asarray(source), np.asarray(target)
    if a.ndim != 1 or b.ndim != 1:
        raise DataError(f"a property has shapes {a.shape} and {b.shape}: expected one value per row")
    codes = _joint_codes(cluster_source, cluster_target, a.size, b.size)
    return _property_shift(a, b, categorical, codes, tests, alpha, resamples, seed, _Redraws())


def property_shifts(
    columns: Iterable[tuple[str, ArrayLike, ArrayLike, bool]],
    *,
    cluster_source: ArrayLike | None = None,
    cluster_target: ArrayLike | None = None,
    tests: int,
    alpha: float = 0.05,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Iterator[tuple[str, PropertyShift]]:
    """`property_shift` of one column after the other, as they come: memory holds one column, and labellings are drawn once for all.

    The numbers are those of `property_shift` on each column.

    Parameters
    ----------
    columns : (name, source values, target values, categorical), all with the same rows; a generator is read lazily
    tests : number of columns, known beforehand
    """
    redraws, known = _Redraws(), None
    codes: tuple[IntArray, IntArray] | None = None
    for name, source, target, categorical in columns:
        a, b = np.asarray(source), np.asarray(target)
        if a.ndim != 1 or b.ndim != 1:
            raise DataError(f"{name!r} has shapes {a.shape} and {b.shape}: expected one value per row")
        if known is None:
            known = (a.size, b.size)
            codes = _joint_codes(cluster_source, cluster_target, a.size, b.size)
        elif known != (a.size, b.size):
            raise DataError(f"{name!r} has {a.size} and {b.size} rows, the columns before {known[0]} and {known[1]}")
        yield name, _property_shift(a, b, categorical, codes, tests, alpha, resamples, seed, redraws)


# ---------------------------------------------------------------- what the shift costs


def accuracy_drop(
    source_correct: ArrayLike,
    target_correct: ArrayLike,
    *,
    cluster_source: ArrayLike | None = None,
    cluster_target: ArrayLike | None = None,
    seed: int = 0,
) -> Estimate:
    """Accuracy on the source minus accuracy on the target (-1..1, null 0, lower is better), [I2]."""
    return rate_difference(source_correct, target_correct, cluster_first=cluster_source, cluster_second=cluster_target, seed=seed)


def accuracy_drop_reweighted(
    source_correct: ArrayLike,
    source_labels: ArrayLike,
    target_correct: ArrayLike,
    target_labels: ArrayLike,
    *,
    classes: int,
    cluster_source: ArrayLike | None = None,
    cluster_target: ArrayLike | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """`accuracy_drop` with the source weighted to the class mix of the target: what remains is not due to the mix. Interval [I5].

    Below 30 clusters in a domain the linearised variance over clusters with t. Undefined where the target has a class that the source lacks. ``details``: ``effective_n`` of the weighted source.
    Where no resample differs from the value, the interval is that of the plain drop (never of zero width).
    """
    a, b = truth_vector(source_correct, "source_correct"), truth_vector(target_correct, "target_correct")
    ya, yb = class_vector(source_labels, classes, "source labels"), class_vector(target_labels, classes, "target labels")
    n = same_length(source_correct=a.size, source_labels=ya.size)
    m = same_length(target_correct=b.size, target_labels=yb.size)
    cluster = _both(cluster_source, cluster_target, n, m)
    codes = cluster_codes(cluster, n + m)
    clusters = None if cluster is None else int(min(np.unique(codes[:n]).size, np.unique(codes[n:]).size))
    details: dict[str, Any] = {"method": "cluster_bootstrap", "n_source": n, "n_target": m}
    base = Estimate(None, n + m, null=0.0, clusters=clusters, details=details)
    if n == 0 or m == 0:
        return replace(base, reason="no rows in one domain")
    mix = np.bincount(yb, minlength=classes) / m
    have = np.bincount(ya, minlength=classes)
    if bool(((mix > 0) & (have == 0)).any()):
        return replace(base, reason="the target has a class that the source lacks")
    weight = np.divide(mix, have, out=np.zeros(classes), where=have > 0)
    value = float((weight[ya] * a).sum() - b.mean())
    details["effective_n"] = float(weight[ya].sum() ** 2 / (weight[ya] ** 2).sum())
    side = np.r_[np.zeros(n, dtype=np.int64), np.ones(m, dtype=np.int64)]
    if clusters is not None and clusters < BOOTSTRAP_CLUSTERS:
        rates = np.divide(np.bincount(ya, a, minlength=classes), have, out=np.zeros(classes), where=have > 0)
        # what each row moves the difference by: through its class's accuracy in the source; its own outcome and its class in the target
        moved = np.r_[weight[ya] * (a - rates[ya]), (rates[yb] - b - value) / m]
        ladder = _ladder_over_few(value, moved, side, codes)
        if ladder:
            return replace(base, value=value, ladder=ladder, details=details | {"method": "cluster t"})
    onehot_a, onehot_b = np.eye(classes)[ya], np.eye(classes)[yb]
    upper = np.concatenate([onehot_a, onehot_a * a[:, None], np.zeros((n, classes + 1))], axis=1)
    lower = np.concatenate([np.zeros((m, 2 * classes)), onehot_b, b[:, None]], axis=1)
    drawn = resampled_sums(codes, np.concatenate([upper, lower]), resamples, generator(seed, "accuracy_drop_reweighted"), strata=side)
    rows, right, labels, hits = np.split(drawn, [classes, 2 * classes, 3 * classes], axis=1)
    total = labels.sum(axis=1, keepdims=True)
    usable = (total[:, 0] > 0) & ~((labels > 0) & (rows == 0)).any(axis=1)
    per_class = np.divide(right, rows, out=np.zeros_like(right), where=rows > 0)
    samples = np.full(resamples, np.nan)
    samples[usable] = ((labels[usable] * per_class[usable]).sum(axis=1) - hits[usable, 0]) / total[usable, 0]
    ladder, reason = percentile_ladder(samples)
    if no_spread(samples):
        plain = rate_difference(a, b, cluster_first=cluster_source, cluster_second=cluster_target, seed=seed)
        ladder, reason = plain.ladder, plain.reason
        details["method"] = plain.details.get("method", "newcombe")
    return replace(base, value=value, ladder=ladder, reason=reason, details=details)


def _ladder_over_few(value: float, moved: FloatArray, side: IntArray, codes: IntArray) -> Ladder:
    """Interval by t of a difference from what each row moves it by, summed over clusters; () where these do not differ or are too few."""
    sums = np.bincount(codes, moved)
    if crosses(codes, side):
        parts = [sums]
    else:
        parts = [sums[np.unique(codes[side == which])] for which in (0, 1)]
    least = min(part.size for part in parts)
    if least < 2:
        return ()
    error = float(np.sqrt(sum(part.size / (part.size - 1) * (part**2).sum() for part in parts)))
    if error <= 1e-12:
        return ()

    def bounds(alpha: float) -> tuple[float, float]:
        half = error * t_quantile(alpha, least - 1)
        return max(-1.0, value - half), min(1.0, value + half)

    return build_ladder(bounds)


# ---------------------------------------------------------------- inside: kernel sums


@dataclass(frozen=True)
class _Cells:
    """Sums of the kernel over cells: rows of one cluster and one domain. Every MMD below is a product with this matrix.

    Attributes
    ----------
    sums : (U, U) kernel sums between cells, everything included
    sizes : (U,)
    cluster, second : (U,) cluster and domain of a cell
    """

    sums: FloatArray
    sizes: FloatArray
    cluster: IntArray
    second: BoolArray

    @classmethod
    def of(cls, kernel: FloatArray, second: BoolArray, codes: IntArray) -> _Cells:
        key = 2 * codes + second
        order = np.argsort(key, kind="stable")
        ordered = key[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        if starts.size == key.size:
            sums = kernel if np.array_equal(order, np.arange(key.size)) else kernel[np.ix_(order, order)]
        else:
            sums = np.add.reduceat(np.add.reduceat(kernel[np.ix_(order, order)], starts, axis=0), starts, axis=1)
        sizes = np.diff(np.r_[starts, key.size]).astype(np.float64)
        return cls(sums, sizes, ordered[starts] // 2, ordered[starts] % 2 == 1)

    def mmd2(self, labels: BoolArray) -> FloatArray:
        """Unbiased MMD² of each labelling (B, U): only pairs of different clusters."""
        different, pairs = self.sums.copy(), None
        np.fill_diagonal(different, 0.0)
        partner = self._partner()
        if (partner >= 0).any():
            both = np.flatnonzero(partner >= 0)
            different[both, partner[both]] = 0.0
            pairs = np.zeros(self.sizes.size)
            pairs[both] = self.sizes[both] * self.sizes[partner[both]]
        total = float(different.sum())
        result = np.empty(labels.shape[0])
        step = max(1, _CHUNK // max(1, self.sizes.size))
        for start in range(0, labels.shape[0], step):
            y = labels[start : start + step].astype(np.float64)
            product = y @ different
            yy = np.einsum("bu,bu->b", product, y)
            xy = product.sum(axis=1) - yy
            xx = total - yy - 2 * xy
            m = y @ self.sizes
            n = self.sizes.sum() - m
            m_pairs = m**2 - y @ self.sizes**2
            n_pairs = n**2 - (1 - y) @ self.sizes**2
            cross = n * m
            if pairs is not None:
                # cells of one cluster on both sides: these pairs are left out too
                other = y[:, np.maximum(partner, 0)]
                m_pairs -= (y * other) @ pairs
                n_pairs -= ((1 - y) * (1 - other)) @ pairs
                cross -= (y * (1 - other)) @ pairs
            with np.errstate(divide="ignore", invalid="ignore"):
                result[start : start + step] = xx / n_pairs + yy / m_pairs - 2 * xy / cross
        # a labelling may leave one side with a single large cluster; it then counts as no discrepancy
        return np.where(np.isfinite(result), result, 0.0)

    def v_statistic(self) -> float:
        y = self.second.astype(np.float64)
        m = float(y @ self.sizes)
        n = float(self.sizes.sum()) - m
        contrast = y / m - (1 - y) / n
        return float(contrast @ self.sums @ contrast)

    def resampled(self, resamples: int, rng: np.random.Generator) -> FloatArray:
        """Unbiased MMD² of each resample of clusters; pairs of different draws, which may be the same cluster twice."""
        codes = np.unique(self.cluster, return_inverse=True)[1].astype(np.int64)
        counts = resampled_counts(codes, resamples, rng, strata=self.second.astype(np.int64))[:, codes]
        x, y = np.flatnonzero(~self.second), np.flatnonzero(self.second)
        result = np.zeros(resamples)
        with np.errstate(divide="ignore", invalid="ignore"):
            for side in (x, y):
                block, weight, sizes = self.sums[np.ix_(side, side)], counts[:, side], self.sizes[side]
                inside = np.einsum("bu,bu->b", weight @ block, weight) - weight @ np.diagonal(block)
                result += inside / ((weight @ sizes) ** 2 - weight @ sizes**2)
            across = np.einsum("bu,bu->b", counts[:, x] @ self.sums[np.ix_(x, y)], counts[:, y])
            pairs = (counts[:, x] @ self.sizes[x]) * (counts[:, y] @ self.sizes[y])
            both = np.flatnonzero(self._partner() >= 0)
            both = both[~self.second[both]]
            if both.size:
                other = self._partner()[both]
                across -= counts[:, both] @ self.sums[both, other]
                pairs -= counts[:, both] @ (self.sizes[both] * self.sizes[other])
            return np.asarray(result - 2 * across / pairs, dtype=np.float64)

    def _partner(self) -> IntArray:
        """The other cell of the same cluster, -1 where there is none. Cells of one cluster are neighbours."""
        partner = np.full(self.cluster.size, -1, dtype=np.int64)
        same = np.flatnonzero(self.cluster[1:] == self.cluster[:-1])
        partner[same], partner[same + 1] = same + 1, same
        return partner


def _mmd_test(kernel: FloatArray, second: BoolArray, codes: IntArray, cells: _Cells, labellings: Labellings) -> TestResult:
    if labellings.reason:
        return TestResult(None, labellings.assignments, labellings.reason, np.zeros(0))
    if not labellings.kept.all():
        kept = labellings.kept
        cells = _Cells.of(kernel[np.ix_(kept, kept)], second[kept], codes[kept])
    # cells are ordered by cluster and domain, exactly as the units of the labellings are
    null = cells.mmd2(labellings.labels)
    return judge_labellings(float(cells.mmd2(cells.second[None])[0]), null, labellings)


def _kernel(features: FloatArray) -> tuple[FloatArray | None, float]:
    """Gaussian kernel matrix with the median heuristic; None where all rows are equal."""
    distance = _squared_distances(features)
    bandwidth = _bandwidth(distance)
    if bandwidth == 0:
        return None, 0.0
    distance /= -bandwidth
    np.exp(distance, out=distance)
    return distance, bandwidth


def _squared_distances(features: FloatArray) -> FloatArray:
    centred = features - features.mean(axis=0)
    squares = np.einsum("ij,ij->i", centred, centred)
    distance: FloatArray = centred @ centred.T
    distance *= -2.0
    distance += squares[:, None]
    distance += squares[None, :]
    # differences below rounding of the squared norms are ties
    distance[distance <= 1e-14 * float(squares.max(initial=0.0))] = 0.0
    np.fill_diagonal(distance, 0.0)
    return distance


def _bandwidth(distance: FloatArray) -> float:
    """Median of the squared distances; where more than half of all pairs are ties, which tell no scale, the mean of the rest; 0 without any."""
    above = squareform(distance, checks=False)
    bandwidth = float(np.median(above)) if above.size else 0.0
    if bandwidth == 0:
        rest = above[above > 0]
        return float(rest.mean()) if rest.size else 0.0
    return bandwidth


def _gaussian(x: FloatArray, y: FloatArray, bandwidth: float) -> FloatArray:
    """exp(-d²/bandwidth) between the rows of x and y, (N, M); exactly 1 between a row and itself."""
    centre = x.mean(axis=0)
    a, b = x - centre, y - centre
    distance = -2.0 * (a @ b.T)
    distance += np.einsum("ij,ij->i", a, a)[:, None]
    distance += np.einsum("ij,ij->i", b, b)[None, :]
    np.maximum(distance, 0.0, out=distance)
    if x is y:
        np.fill_diagonal(distance, 0.0)
    distance /= -bandwidth
    return np.asarray(np.exp(distance, out=distance), dtype=np.float64)


def _logistic_scores(train: FloatArray, second: BoolArray, held: FloatArray) -> FloatArray:
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if train.shape[1] > train.shape[0]:
        # the L2 solution lies in the row space of the training rows: the same model in fewer columns
        _, values, axes = np.linalg.svd(train, full_matrices=False)
        axes = axes[values > 1e-10 * max(float(values[0]), np.finfo(np.float64).tiny)]
        train, held = train @ axes.T, held @ axes.T
    if train.shape[1] == 0:
        return np.zeros(held.shape[0])
    model = LogisticRegression(C=1.0, class_weight="balanced", solver="newton-cholesky", max_iter=200)
    with warnings.catch_warnings():
        # near the optimum the solver may fall back on another one and say so; any fixed scores keep the held-out test exact
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(train, second)
    return np.asarray(model.decision_function(held), dtype=np.float64)


# ---------------------------------------------------------------- inside: one-dimensional tests


class _Redraws:
    """Labellings that columns of the same rows share: drawn once, the last two kinds are kept."""

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], Labellings] = {}

    def of(self, second: BoolArray, codes: IntArray | None, resamples: int, seed: int, alpha: float) -> Labellings:
        key = (second.tobytes(), None if codes is None else codes.tobytes(), resamples, seed, alpha)
        if key not in self._kept:
            while len(self._kept) > 1:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = domain_labellings(second, cluster=codes, resamples=resamples, seed=seed, alpha=alpha)
        return self._kept[key]


Codes = tuple[IntArray, IntArray] | None
"""Clusters of the rows of both samples, numbered together; None where rows are the units."""


def _ks(
    a: FloatArray,
    b: FloatArray,
    merged: Merged | None,
    codes: Codes,
    tests: int,
    alpha: float,
    resamples: int,
    seed: int,
    redraws: _Redraws,
) -> Estimate:
    if merged is not None and _many_rows(a, b, codes):
        draws = resamples_for(tests, alpha, resamples)
        return _by_law(merged.ks, a.size, b.size, ks_by_chance(merged, alpha=alpha / max(tests, 1), resamples=draws, seed=seed))

    def statistic(labellings: Labellings, pooled: FloatArray) -> Callable[[BoolArray], FloatArray]:
        return lambda labels: largest_gaps(pooled, labellings.unit, labels)

    return _two_sample_test(a, b, None if merged is None else merged.ks, statistic, codes, tests, alpha, resamples, seed, redraws)


def _many_rows(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], *clusters: object) -> bool:  # Any: samples of any type
    """Whether a test of independent rows goes by its law: labellings of so many rows cost minutes and change no digit that is printed."""
    return a.size + b.size > MANY_ROWS and all(one is None for one in clusters)


def _by_law(value: float, n: int, m: int, chance: Chance) -> Estimate:
    details = {
        "n_source": n,
        "n_target": m,
        "method": chance.method,
        "assignments": 10**12,  # at least: see _counts
        "dropped_clusters": 0,
        "paired": False,
        "null_high": chance.high,
        "within_null": bool(value <= chance.high + 1e-12 and chance.high <= 0.20),
    }
    return Estimate(value, n + m, null=chance.mean, p_value=chance.p_value, details=details)


def _two_sample_test(
    a: FloatArray,
    b: FloatArray,
    value: float | None,
    statistic: Callable[[Labellings, FloatArray], Callable[[BoolArray], FloatArray]],
    codes: Codes,
    tests: int,
    alpha: float,
    resamples: int,
    seed: int,
    redraws: _Redraws,
) -> Estimate:
    n, m = a.size, b.size
    details: dict[str, Any] = {"n_source": n, "n_target": m}
    clusters = None if codes is None else int(min(np.unique(codes[0]).size, np.unique(codes[1]).size))
    if value is None:
        return Estimate(None, n + m, "no rows in one domain", clusters=clusters, details=details)
    second = np.r_[np.zeros(n, dtype=np.bool_), np.ones(m, dtype=np.bool_)]
    units = None if codes is None else np.concatenate(codes)
    labellings = redraws.of(second, units, resamples_for(tests, alpha, resamples), seed, alpha)
    if labellings.reason:
        return Estimate(value, n + m, clusters=clusters, details=details | {"p_reason": labellings.reason, **_counts(labellings)})
    distances = statistic(labellings, np.r_[a, b][labellings.kept])
    null = distances(labellings.labels)
    test = judge_labellings(float(distances(labellings.observed[None])[0]), null, labellings)
    high = test.null_quantile(1 - alpha / max(tests, 1)) or 0.0
    details |= _test_details(test, labellings) | {"null_high": high, "within_null": bool(value <= high + 1e-12 and high <= 0.20)}
    return Estimate(value, n + m, clusters=clusters, null=float(null.mean()), p_value=test.p_value, details=details)


def _tvd(second: FloatArray, first: FloatArray) -> FloatArray:
    gap = second / second.sum(axis=1, keepdims=True) - first / first.sum(axis=1, keepdims=True)
    return np.asarray(0.5 * np.abs(gap).sum(axis=1), dtype=np.float64)


def _property_shift(
    a: np.ndarray[Any, Any],  # Any: values of any type
    b: np.ndarray[Any, Any],
    categorical: bool,
    codes: Codes,
    tests: int,
    alpha: float,
    resamples: int,
    seed: int,
    redraws: _Redraws,
) -> PropertyShift:
    keep_a, keep_b = ~_missing_mask(a, categorical), ~_missing_mask(b, categorical)
    missing = (int((~keep_a).sum()), int((~keep_b).sum()))
    if any(missing):
        a, b = a[keep_a], b[keep_b]
        codes = None if codes is None else (codes[0][keep_a], codes[1][keep_b])
    which = _categorical_shift if categorical else _numeric_shift
    return which(a, b, codes, missing, tests, alpha, resamples, seed, redraws)


def _numeric_shift(
    a: np.ndarray[Any, Any],  # Any: any real dtype
    b: np.ndarray[Any, Any],
    codes: Codes,
    missing: tuple[int, int],
    tests: int,
    alpha: float,
    resamples: int,
    seed: int,
    redraws: _Redraws,
) -> PropertyShift:
    x, y = finite_vector(a, "source property"), finite_vector(b, "target property")
    n, m = x.size, y.size
    merged = merge(a, b) if n and m else None
    distance = _ks(x, y, merged, codes, tests, alpha, resamples, seed, redraws)
    details: dict[str, Any] = {"n_source": n, "n_target": m}
    if merged is None:
        gone = Estimate(None, n + m, "no values in one domain", details=details)
        return PropertyShift("numeric", distance, None, gone, gone, None, missing)
    first, second = merged.first, merged.second
    state = _state(bool(first[0] == first[-1]), bool(second[0] == second[-1]), bool(first[0] == second[0]))
    low, high = sorted_quantiles(first, np.array([0.25, 0.75]))
    if high > low:
        wasserstein = Estimate(float(merged.w1 / (high - low)), n + m, clusters=distance.clusters, details=details)
    else:
        wasserstein = Estimate(None, n + m, "the source has no interquartile range", clusters=distance.clusters, details=details)
    return PropertyShift("numeric", distance, state, wasserstein, _psi(x, y, merged, codes, seed, redraws), None, missing)


def _psi(x: FloatArray, y: FloatArray, merged: Merged, codes: Codes, seed: int, redraws: _Redraws) -> Estimate:
    """Population stability index over source deciles; with clusters its null comes from permutation."""
    n, m = x.size, y.size
    edges = np.unique(sorted_deciles(merged.first))
    edges = edges[edges < merged.first[-1]]
    bins = edges.size + 1
    details: dict[str, Any] = {"n_source": n, "n_target": m, "bins": bins}
    if bins == 1:
        return Estimate(None, n + m, "the source has one value only: no bins", details=details)
    # rows up to each edge, from the sorted samples
    first, second = (
        np.diff(np.searchsorted(side, edges, side="right"), prepend=0, append=side.size).astype(np.float64)
        for side in (merged.first, merged.second)
    )
    value = float(_stability(first[None], second[None])[0])
    if codes is None:
        scale = 1 / n + 1 / m
        details["null_high"] = float(stats.chi2.ppf(0.95, bins - 1) * scale)
        return Estimate(value, n + m, null=(bins - 1) * scale, details=details)
    side = np.r_[np.zeros(n, dtype=np.bool_), np.ones(m, dtype=np.bool_)]
    labellings = redraws.of(side, np.concatenate(codes), RESAMPLES, seed, 0.05)
    units = min(labellings.clusters)
    if labellings.reason:
        return Estimate(value, n + m, clusters=units, details=details | {"p_reason": labellings.reason})
    cell = labellings.unit * bins + np.searchsorted(edges, np.r_[x, y][labellings.kept])
    counts = np.bincount(cell, minlength=labellings.observed.size * bins).reshape(-1, bins).astype(np.float64)
    null = labellings.values(lambda labels: _stability((1 - labels) @ counts, labels @ counts))
    details["null_high"] = float(np.quantile(null, 0.95))
    return Estimate(value, n + m, clusters=units, null=float(null.mean()), details=details)


def _stability(first: FloatArray, second: FloatArray) -> FloatArray:
    p = np.where(first > 0, first, 0.5) / first.sum(axis=1, keepdims=True)
    q = np.where(second > 0, second, 0.5) / second.sum(axis=1, keepdims=True)
    return np.asarray(((q - p) * np.log(q / p)).sum(axis=1), dtype=np.float64)


def _categorical_shift(
    a: np.ndarray[Any, Any],  # Any: categories of any type
    b: np.ndarray[Any, Any],
    codes: Codes,
    missing: tuple[int, int],
    tests: int,
    alpha: float,
    resamples: int,
    seed: int,
    redraws: _Redraws,
) -> PropertyShift:
    x, y = [str(value) for value in a.tolist()], [str(value) for value in b.tolist()]
    names = {name: code for code, name in enumerate(sorted(set(x) | set(y)))}
    first = np.array([names[value] for value in x], dtype=np.int64)
    second = np.array([names[value] for value in y], dtype=np.int64)
    own, other = (None, None) if codes is None else codes
    distance = tvd_shift(
        first, second, classes=max(1, len(names)), tests=tests, alpha=alpha, resamples=resamples, seed=seed,
        cluster_source=own, cluster_target=other,
    )  # fmt: skip
    occurs = np.bincount(first, minlength=max(1, len(names))) > 0
    unseen = rate(~occurs[second], cluster=other)
    state = _state(len(set(x)) == 1, len(set(y)) == 1, bool(x and y and x[0] == y[0])) if x and y else None
    return PropertyShift("categorical", distance, state, None, None, unseen, missing)


def _state(source_constant: bool, target_constant: bool, same: bool) -> str | None:
    if source_constant and target_constant:
        return "constant" if same else "constant at another value"
    if target_constant:
        return "became constant"
    return "was constant" if source_constant else None


def _missing_mask(values: np.ndarray[Any, Any], categorical: bool) -> BoolArray:  # Any: values of any type
    if values.dtype.kind == "f":
        return np.asarray(np.isnan(values), dtype=np.bool_)
    if values.dtype.kind in "iub":
        return np.zeros(values.size, dtype=np.bool_)
    if not categorical:
        try:
            return np.asarray(np.isnan(values.astype(np.float64)), dtype=np.bool_)
        except (TypeError, ValueError):
            raise DataError("a numeric property holds values that are not numbers: pass it as categorical") from None
    return np.fromiter((is_missing(value) for value in values.tolist()), dtype=np.bool_, count=values.size)


# ---------------------------------------------------------------- inside: shared


def _two_samples(source: ArrayLike, target: ArrayLike) -> tuple[FloatArray, FloatArray]:
    x, y = finite_matrix(source, "source features"), finite_matrix(target, "target features")
    if x.shape[1] != y.shape[1]:
        raise DataError(f"source features have {x.shape[1]} columns, target features {y.shape[1]}: they must come from one layer")
    return x, y


def _both(source: ArrayLike | None, target: ArrayLike | None, n: int, m: int) -> np.ndarray[Any, Any] | None:  # Any: ids of any type
    """Cluster ids of both domains in one array; where only one domain has ids, the rows of the other are clusters of their own."""
    if source is None and target is None:
        return None
    a = np.full(n, None, dtype=object) if source is None else np.asarray(source)
    b = np.full(m, None, dtype=object) if target is None else np.asarray(target)
    if a.shape != (n,) or b.shape != (m,):
        raise DataError(f"cluster ids have shapes {a.shape} and {b.shape}: expected {n} and {m} of them")
    if a.dtype.kind != b.dtype.kind:
        a, b = a.astype(object), b.astype(object)
    return np.concatenate([a, b])


def _joint_codes(source: ArrayLike | None, target: ArrayLike | None, n: int, m: int) -> Codes:
    """Cluster numbers of both samples, in the order of the sorted ids; None where neither has ids."""
    cluster = _both(source, target, n, m)
    if cluster is None:
        return None
    codes = cluster_codes(cluster, n + m)
    return codes[:n], codes[n:]


def _counts(labellings: Labellings) -> dict[str, Any]:
    # more labellings than these are as good as all, and no number for a reader
    return {
        "assignments": min(labellings.assignments, 10**12),
        "dropped_clusters": labellings.dropped_clusters,
        "paired": labellings.paired,
    }


def _test_details(test: TestResult, labellings: Labellings) -> dict[str, Any]:
    """Facts of a permutation test for exhibits: how many labellings, the null's 95 % and a histogram of it, or why there is no p."""
    facts = _counts(labellings)
    if test.p_value is None:
        return facts | {"p_reason": test.reason}
    counts, edges = np.histogram(test.null_values, bins=20)
    return facts | {
        "resamples": int(test.null_values.size),
        "null_95": test.null_quantile(0.95),
        "null_histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
    }
