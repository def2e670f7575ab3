"""Whether probabilities mean what they say: calibration error, overconfidence, temperature, proper scores (TLA305, 306).

Binned calibration errors are positive by chance; what is debiased here may be negative and is never clipped.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from tl_audit.errors import DataError
from tl_audit.measures.arrays import class_vector, finite_matrix, finite_vector, same_length, truth_vector
from tl_audit.measures.estimate import LADDER_ALPHAS, BoolArray, Estimate, FloatArray, IntArray, build_ladder, t_quantile
from tl_audit.measures.intervals import (
    BOOTSTRAP_CLUSTERS,
    MANY_CLUSTERS,
    RESAMPLES,
    centred_ladder,
    mean,
    percentile_ladder,
    resampled_counts,
    resampled_sums,
    sums_by,
)
from tl_audit.measures.permutation import sign_flip_p
from tl_audit.measures.sampling import cluster_codes, generator

BINS = 15
FLOOR = 1e-12  # smallest probability in a logarithm
_SIMULATIONS = 1000
_CHUNK = 4_000_000  # numbers held at once while resamples are drawn


class TopLabel(NamedTuple):
    """Confidence in the predicted class, and whether it was right."""

    confidence: FloatArray
    correct: BoolArray


def top_label(probabilities: ArrayLike, labels: ArrayLike) -> TopLabel:
    """Largest probability of each row and whether its class is the label; (N, C) and (N,)."""
    p, y = _probabilities(probabilities, labels)
    if p.shape[0] == 0:
        return TopLabel(np.zeros(0), np.zeros(0, dtype=np.bool_))
    return TopLabel(p.max(axis=1), p.argmax(axis=1) == y)


def equal_mass_bins(confidence: ArrayLike, bins: int = BINS, *, cluster: ArrayLike | None = None) -> IntArray:
    """Bin of each row, about equally many rows in each. Equal values never lie in two bins; a bin with fewer than two rows
    (clusters, where given) joins its neighbour.
    """
    c = finite_vector(confidence, "confidence")
    if bins < 1:
        raise DataError(f"bins is {bins}: expected at least 1")
    if c.size == 0:
        return np.zeros(0, dtype=np.int64)
    edges = np.unique(np.quantile(c, np.arange(1, bins) / bins, method="inverted_cdf"))
    code = np.unique(np.searchsorted(edges, c), return_inverse=True)[1].astype(np.int64)
    codes = cluster_codes(cluster, c.size)
    while code.max() > 0:
        units = np.bincount(np.unique(np.stack([code, codes]), axis=1)[0]) if cluster is not None else np.bincount(code)
        small = np.flatnonzero(units < 2)
        if small.size == 0:
            break
        thin = int(small[0])
        code[code > max(thin - 1, 0)] -= 1  # the thin bin joins the one below it, the first one the one above
    return code


# ---------------------------------------------------------------- calibration error


def ece2_debiased(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    cluster: ArrayLike | None = None,
    bins: int = BINS,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Squared calibration error without the bias of binning (probability², null 0, may be negative, lower is better).

    Σ_b (n_b/n)[d̄_b² - variance of d̄_b], d = confidence - correct, in equal-mass bins fixed once. Interval: centred bootstrap [I6].
    Undefined below two rows (clusters).

    References
    ----------
    Kumar, Liang, Ma (2019). Verified uncertainty calibration. arXiv:1909.10155
    Sun et al. (2024). A confidence interval for the l2 expected calibration error. arXiv:2408.08998
    """
    c, y = _pair(confidence, correct)
    n = c.size
    codes = cluster_codes(cluster, n)
    clusters = int(codes.max()) + 1 if n else 0
    right = int(y.sum())
    base = Estimate(None, n, null=0.0, clusters=None if cluster is None else clusters, events=right, nonevents=n - right)
    if clusters < 2:
        return replace(base, reason=f"fewer than two {'rows' if cluster is None else 'clusters'}: no calibration error")
    bin_of = equal_mass_bins(c, bins, cluster=cluster)
    count = int(bin_of.max()) + 1
    d = c - y
    sizes, sums = np.bincount(bin_of).astype(np.float64), np.bincount(bin_of, d).astype(np.float64)
    plug_in = float((sums**2 / sizes).sum() / n)
    rng = generator(seed, "ece2")
    if cluster is None:
        squares = np.bincount(bin_of, d * d).astype(np.float64)
        value = float(_debiased(sizes[None], sums[None], squares[None])[0])
        onehot = np.eye(count)[bin_of]
        columns = np.concatenate([onehot, onehot * d[:, None], onehot * (d * d)[:, None]], axis=1)
        drawn = resampled_sums(codes, columns, resamples, rng)
        samples = _debiased(drawn[:, :count], drawn[:, count : 2 * count], drawn[:, 2 * count :])
    else:
        onehot = np.eye(count)[bin_of]
        cell_sizes, cell_sums = sums_by(codes, onehot), sums_by(codes, onehot * d[:, None])
        value = float(_debiased_clusters(np.ones((1, clusters)), cell_sizes, cell_sums)[0])
        drawn_units = clusters
        if clusters >= MANY_CLUSTERS:
            # random pools of clusters keep the variance, known to 2 %, at a fraction of the work
            place, drawn_units = rng.permutation(clusters) % (MANY_CLUSTERS // 2), MANY_CLUSTERS // 2
            codes, cell_sizes, cell_sums = np.arange(drawn_units), sums_by(place, cell_sizes), sums_by(place, cell_sums)
        samples = np.empty(resamples)
        step = max(1, _CHUNK // (drawn_units * count))
        for start in range(0, resamples, step):
            counts = resampled_counts(codes, min(step, resamples - start), rng)
            samples[start : start + step] = _debiased_clusters(counts, cell_sizes, cell_sums)
    base = replace(base, value=value, details={"method": "centred_bootstrap", "bins": count, "plug_in": plug_in})
    if float(samples.max() - samples.min()) < 1e-15:
        # no resample differs: as many as 3/G of the units may still be wrong
        ladder = tuple((a, value, value + min(1.0, 3 * np.log(a) / np.log(0.05) / clusters) ** 2) for a in LADDER_ALPHAS)
        return replace(base, ladder=tuple((a, float(low), float(high)) for a, low, high in ladder))
    ladder, reason = centred_ladder(value, plug_in, samples)
    return replace(base, ladder=ladder, reason=reason)


def ece_debiased(ece2: Estimate) -> Estimate:
    """Root of `ece2_debiased` with its sign, sign·√|x| (probability, null 0, lower is better); bounds are mapped alike."""

    def root(x: float) -> float:
        return float(np.sign(x) * np.sqrt(abs(x)))

    if ece2.value is None:
        return ece2
    return replace(ece2, value=root(ece2.value), ladder=tuple((alpha, root(low), root(high)) for alpha, low, high in ece2.ladder))


def ece_l1(confidence: ArrayLike, correct: ArrayLike, *, bins: int = BINS, simulations: int = _SIMULATIONS, seed: int = 0) -> Estimate:
    """Mean absolute gap of confidence and accuracy over equal-mass bins (0–1, lower is better), positive even if nothing is wrong.

    ``null`` is its mean for a perfectly calibrated model with these confidences at this n (simulated); ``details``: ``null_low``,
    ``null_high`` (2.5–97.5 %). No interval. Never compare across n.
    """
    c, y = _pair(confidence, correct)
    n = c.size
    if n == 0:
        return Estimate(None, 0, "no rows")
    bin_of = equal_mass_bins(c, bins)
    value = float(np.abs(np.bincount(bin_of, c - y)).sum() / n)
    null = np.abs(_simulated_gaps(c, bin_of, simulations, generator(seed, "ece_l1"))).sum(axis=1) / n
    low, high = np.quantile(null, [0.025, 0.975])
    details = {"null_low": float(low), "null_high": float(high), "bins": int(bin_of.max()) + 1}
    return Estimate(value, n, null=float(null.mean()), details=details)


def overconfidence(confidence: ArrayLike, correct: ArrayLike, *, cluster: ArrayLike | None = None, seed: int = 0) -> Estimate:
    """Mean confidence minus accuracy (-1..1, null 0; above 0 the model claims too much): t over rows or clusters, test [P2]."""
    c, y = _pair(confidence, correct)
    result = mean(c - y, cluster=cluster, bounds=(-1.0, 1.0))
    p = None if result.value is None else sign_flip_p(c - y, cluster=cluster, seed=seed)
    return replace(result, null=0.0, p_value=p)


def classwise_ece_l1(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = BINS, simulations: int = 200, seed: int = 0) -> Estimate:
    """Mean over classes of the l1 calibration error of that class's probability (0–1, lower is better); ``null`` as in `ece_l1`."""
    p, y = _probabilities(probabilities, labels)
    n, classes = p.shape
    if n == 0:
        return Estimate(None, 0, "no rows")
    codes = np.stack([equal_mass_bins(p[:, k], bins) for k in range(classes)])
    width = int(codes.max()) + 1
    flat = codes + np.arange(classes)[:, None] * width
    claimed = np.bincount(flat.ravel(), p.T.ravel(), minlength=classes * width)

    def error(outcome: IntArray) -> float:
        seen = np.bincount(flat[outcome, np.arange(n)], minlength=classes * width)
        return float(np.abs(claimed - seen).sum() / (n * classes))

    upper = np.cumsum(p, axis=1)
    rng = generator(seed, "classwise_ece_l1")
    null = np.array([error(np.minimum((rng.random((n, 1)) * upper[:, -1:] > upper).sum(axis=1), classes - 1)) for _ in range(simulations)])
    low, high = np.quantile(null, [0.025, 0.975])
    return Estimate(error(y), n, null=float(null.mean()), details={"null_low": float(low), "null_high": float(high)})


def temperature(logits: ArrayLike, labels: ArrayLike) -> Estimate:
    """Divisor of the logits that gives the least log loss (above 0, null 1; above 1: overconfident). Reported, never applied.

    Fit it on validation data only. Searched between e⁻⁵ and e⁵ on the log scale; ``details``: ``at_bound``. No interval.

    References
    ----------
    Guo et al. (2017). On calibration of modern neural networks. arXiv:1706.04599
    """
    z = finite_matrix(logits, "logits")
    y = class_vector(labels, z.shape[1], "labels")
    n = same_length(logits=z.shape[0], labels=y.size)
    if n == 0:
        return Estimate(None, 0, "no rows", null=1.0)
    if z.shape[1] < 2 or float(np.ptp(z, axis=1).max()) == 0.0:
        return Estimate(None, n, "the logits do not tell classes apart: every temperature is as good", null=1.0)

    def loss(log_temperature: float) -> float:
        scaled: FloatArray = z * float(np.exp(-log_temperature))
        return float(np.mean(np.asarray(special.logsumexp(scaled, axis=1)) - scaled[np.arange(n), y]))

    found = float(optimize.minimize_scalar(loss, bounds=(-5.0, 5.0), method="bounded", options={"xatol": 1e-7}).x)
    # where classes are separated the loss is flat towards one end, and the search may stop anywhere on the way
    end = min((-5.0, 5.0), key=loss)
    if loss(end) <= loss(found):
        found = end
    details = {"at_bound": abs(found) > 4.999, "nll_before": loss(0.0), "nll_after": loss(found)}
    return Estimate(float(np.exp(found)), n, "a fitted number: no interval", null=1.0, details=details)


class ReliabilityBin(NamedTuple):
    """One bin of the reliability diagram: range and mean of the confidence, accuracy, and the band of a calibrated model."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float
    null_low: float
    null_high: float


def reliability_bins(
    confidence: ArrayLike, correct: ArrayLike, *, bins: int = BINS, simulations: int = _SIMULATIONS, seed: int = 0
) -> tuple[ReliabilityBin, ...]:
    """The data of a reliability diagram in the bins of `ece_l1`; the band holds 95 % of the accuracies of a calibrated model."""
    c, y = _pair(confidence, correct)
    if c.size == 0:
        return ()
    bin_of = equal_mass_bins(c, bins)
    sizes = np.bincount(bin_of)
    claimed = np.bincount(bin_of, c) / sizes
    accuracy = np.bincount(bin_of, y) / sizes
    gaps = _simulated_gaps(c, bin_of, simulations, generator(seed, "ece_l1")) / sizes
    low, high = np.quantile(claimed - gaps, [0.025, 0.975], axis=0)
    return tuple(
        ReliabilityBin(
            float(c[bin_of == b].min()), float(c[bin_of == b].max()), int(sizes[b]), float(claimed[b]), float(accuracy[b]),
            float(low[b]), float(high[b]),
        )
        for b in range(sizes.size)
    )  # fmt: skip


# ---------------------------------------------------------------- proper scores


def brier_rows(probabilities: ArrayLike, labels: ArrayLike) -> FloatArray:
    """Squared distance of each row's probabilities from its true class, (N,), 0–2."""
    p, y = _probabilities(probabilities, labels)
    return np.asarray((p**2).sum(axis=1) - 2 * p[np.arange(y.size), y] + 1.0, dtype=np.float64)


def nll_rows(probabilities: ArrayLike, labels: ArrayLike) -> FloatArray:
    """Negative log of the probability of each row's true class, (N,), in nats; probabilities below 1e-12 count as 1e-12."""
    p, y = _probabilities(probabilities, labels)
    return np.asarray(-np.log(np.maximum(p[np.arange(y.size), y], FLOOR)), dtype=np.float64)


def brier(probabilities: ArrayLike, labels: ArrayLike, *, cluster: ArrayLike | None = None) -> Estimate:
    """Mean squared distance between probabilities and true class over all classes (0–2, lower is better); t over rows or clusters.

    For two classes this is twice the one-column score.

    References
    ----------
    Brier (1950). Verification of forecasts expressed in terms of probability. Monthly Weather Review 78.
    """
    return mean(brier_rows(probabilities, labels), cluster=cluster, bounds=(0.0, 2.0))


def nll(probabilities: ArrayLike, labels: ArrayLike, *, cluster: ArrayLike | None = None) -> Estimate:
    """Mean negative log-likelihood in nats (0 and above, lower is better); ``details``: ``floored`` rows; t over rows or clusters."""
    p, y = _probabilities(probabilities, labels)
    result = mean(nll_rows(p, y), cluster=cluster)
    return replace(result, details=result.details | {"floored": int((p[np.arange(y.size), y] < FLOOR).sum())})


def brier_skill(
    probabilities: ArrayLike, labels: ArrayLike, *, prior: ArrayLike, cluster: ArrayLike | None = None, seed: int = 0
) -> Estimate:
    """1 - Brier score / Brier score of always predicting ``prior`` (at most 1, null 0, higher is better).

    Parameters
    ----------
    prior : (C,), class shares of the training data
    """
    p, y = _probabilities(probabilities, labels)
    return skill(brier_rows(p, y), brier_rows(_constant(prior, p), y), cluster=cluster, seed=seed)


def nll_skill(
    probabilities: ArrayLike, labels: ArrayLike, *, prior: ArrayLike, cluster: ArrayLike | None = None, seed: int = 0
) -> Estimate:
    """1 - log loss / log loss of always predicting ``prior`` (at most 1, null 0, higher is better)."""
    p, y = _probabilities(probabilities, labels)
    return skill(nll_rows(p, y), nll_rows(_constant(prior, p), y), cluster=cluster, seed=seed)


def skill(
    scores: ArrayLike, reference: ArrayLike, *, cluster: ArrayLike | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """1 - mean score / mean reference score on the same rows (null 0), lower scores being better.

    Interval [I5] (below 30 clusters the jackknife variance with t), test [P2] of the paired differences. Undefined where the
    reference score is 0; no interval where all differences are equal.
    """
    a, b = finite_vector(scores, "scores"), finite_vector(reference, "reference scores")
    n = same_length(scores=a.size, reference_scores=b.size)
    codes = cluster_codes(cluster, n)
    clusters = int(codes.max()) + 1 if n else 0
    base = Estimate(None, n, null=0.0, clusters=None if cluster is None else clusters)
    if n == 0:
        return replace(base, reason="no rows")
    if b.sum() <= 0:
        return replace(base, reason="the reference makes no error: no skill can be measured")
    ratio = float(a.sum() / b.sum())
    value = 1.0 - ratio
    if abs(value) < 1e-15:
        value = 0.0
    base = replace(base, value=value, p_value=sign_flip_p(b - a, cluster=cluster, seed=seed))
    if clusters < 2:
        return replace(base, reason="one independent unit: no interval")
    residual = a - ratio * b
    if float(np.abs(residual).max()) <= 1e-12 * float(b.max()):
        return replace(base, reason="every row has the score of the reference: no spread to make an interval from")
    if cluster is not None and clusters < BOOTSTRAP_CLUSTERS:
        error = float(np.sqrt(clusters / (clusters - 1) * (np.bincount(codes, residual) ** 2).sum()) / b.sum())
        ladder = build_ladder(lambda alpha: _t_bounds(value, error, alpha, clusters - 1))
        return replace(base, ladder=ladder, details={"method": "cluster t"})
    drawn = resampled_sums(codes, np.stack([a, b], axis=1), resamples, generator(seed, "skill"))
    samples = np.full(resamples, np.nan)
    known = drawn[:, 1] > 0
    samples[known] = 1.0 - drawn[known, 0] / drawn[known, 1]
    ladder, reason = percentile_ladder(samples)
    return replace(base, ladder=ladder, reason=reason, details={"method": "cluster_bootstrap"})


class MurphyParts(NamedTuple):
    """Brier score = reliability - resolution + uncertainty + within_bins, summed over classes.

    Attributes
    ----------
    reliability : weighted squared gap of forecast and outcome in the bins (lower is better)
    resolution : how far the outcomes of the bins differ from the overall share (higher is better)
    uncertainty : of the labels alone
    within_bins : what the bins hide; 0 where each bin holds one forecast value
    """

    reliability: float
    resolution: float
    uncertainty: float
    within_bins: float


def murphy_parts(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = BINS) -> MurphyParts | None:
    """Murphy's parts of the Brier score in equal-mass bins of each class's probability; None without rows.

    References
    ----------
    Murphy (1973). A new vector partition of the probability score. Journal of Applied Meteorology 12.
    """
    p, y = _probabilities(probabilities, labels)
    n, classes = p.shape
    if n == 0:
        return None
    reliability = resolution = uncertainty = 0.0
    for k in range(classes):
        outcome = (y == k).astype(np.float64)
        code = equal_mass_bins(p[:, k], bins)
        sizes = np.bincount(code)
        forecast, seen = np.bincount(code, p[:, k]) / sizes, np.bincount(code, outcome) / sizes
        share = float(outcome.mean())
        reliability += float((sizes * (forecast - seen) ** 2).sum()) / n
        resolution += float((sizes * (seen - share) ** 2).sum()) / n
        uncertainty += share * (1 - share)
    score = float(brier_rows(p, y).mean())
    return MurphyParts(reliability, resolution, uncertainty, score - (reliability - resolution + uncertainty))


# ---------------------------------------------------------------- inside


def _debiased(sizes: FloatArray, sums: FloatArray, squares: FloatArray) -> FloatArray:
    """Σ_b (n_b/n)[d̄_b² - s²_b/n_b] of each resample from rows, sums and square sums of the bins, (B, bins)."""
    some = sizes >= 2  # a resample may leave a bin with a single row, which tells nothing about its variance
    m = np.where(some, sizes, 2.0)
    average = sums / m
    variance = np.maximum(squares / m - average**2, 0.0) / (m - 1)
    return np.asarray((np.where(some, sizes, 0.0) * (average**2 - variance)).sum(axis=1) / sizes.sum(axis=1), dtype=np.float64)


def _debiased_clusters(counts: FloatArray, sizes: FloatArray, sums: FloatArray) -> FloatArray:
    """The same with the jackknife variance over clusters; counts (B, G), sizes and sums (G, bins)."""
    n = counts @ sizes
    drawn = counts @ (sizes > 0)
    total = np.maximum(n, 1.0)
    average = (counts @ sums) / total
    residual = sums[None] - average[:, None, :] * sizes[None]
    left = 1.0 - sizes[None] / total[:, None, :]
    some = (n > 0) & (drawn >= 2) & ~((counts[:, :, None] > 0) & (left <= 1e-12)).any(axis=1)
    scaled = np.divide(residual, left, out=np.zeros_like(residual), where=left > 1e-12)
    spread = np.einsum("bg,bgk->bk", counts, scaled**2)
    groups = np.maximum(drawn, 2.0)
    variance = (groups - 1) / groups * spread / total**2
    return np.asarray((np.where(some, n, 0.0) * (average**2 - variance)).sum(axis=1) / n.sum(axis=1), dtype=np.float64)


def _simulated_gaps(c: FloatArray, bin_of: IntArray, simulations: int, rng: np.random.Generator) -> FloatArray:
    """Sum of (confidence - outcome) in each bin where outcomes are drawn with the confidence as their probability, (B, bins)."""
    bins = int(bin_of.max()) + 1
    claimed = np.bincount(bin_of, c)
    result = np.empty((simulations, bins))
    step = max(1, _CHUNK // c.size)
    order = np.argsort(bin_of, kind="stable")
    starts = np.searchsorted(bin_of[order], np.arange(bins))
    for start in range(0, simulations, step):
        hits = rng.random((min(step, simulations - start), c.size)) < c[order]
        result[start : start + step] = claimed - np.add.reduceat(hits, starts, axis=1, dtype=np.int64)
    return result


def _t_bounds(value: float, error: float, alpha: float, freedom: float) -> tuple[float, float]:
    half = error * t_quantile(alpha, freedom)
    return value - half, value + half


def _constant(prior: ArrayLike, like: FloatArray) -> FloatArray:
    share = finite_vector(prior, "prior")
    if share.size != like.shape[1]:
        raise DataError(f"the prior has {share.size} classes, the probabilities {like.shape[1]}")
    return np.broadcast_to(share, like.shape)


def _probabilities(probabilities: ArrayLike, labels: ArrayLike) -> tuple[FloatArray, IntArray]:
    p = finite_matrix(probabilities, "probabilities")
    y = class_vector(labels, p.shape[1], "labels")
    same_length(probabilities=p.shape[0], labels=y.size)
    if p.size and (p.min() < -1e-9 or p.max() > 1 + 1e-6 or float(np.abs(p.sum(axis=1) - 1).max()) > 1e-3):
        raise DataError("probabilities must lie between 0 and 1 and sum to 1 in each row: apply softmax once")
    return p, y


def _pair(confidence: ArrayLike, correct: ArrayLike) -> tuple[FloatArray, Any]:  # Any: bool array
    c, y = finite_vector(confidence, "confidence"), truth_vector(correct, "correct")
    same_length(confidence=c.size, correct=y.size)
    if c.size and (c.min() < 0 or c.max() > 1 + 1e-6):
        raise DataError("confidence must lie between 0 and 1")
    return c, y
