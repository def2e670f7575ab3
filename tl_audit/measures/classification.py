"""How good a classifier is: accuracy and its relatives, per class and overall (TLA204, 301, 303, 304).

Labels and predictions are class numbers 0 .. C-1 of one common order; classes are aligned by name before they come here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from tl_audit.errors import DataError
from tl_audit.measures.arrays import class_vector, finite_matrix, finite_vector, same_length, truth_vector
from tl_audit.measures.estimate import Estimate, FloatArray, IntArray, build_ladder, t_quantile
from tl_audit.measures.intervals import (
    MANY_CLUSTERS,
    MANY_UNITS,
    RESAMPLES,
    around_on_logit,
    auc,
    bonferroni,
    crosses,
    mover_mean,
    no_spread,
    paired_rate_difference,
    percentile_ladder,
    placement_values,
    rate,
    resampled_counts,
    wilson,
)
from tl_audit.measures.sampling import cluster_codes, generator

_CHUNK = 4_000_000  # numbers held at once while resamples are drawn


def confusion_matrix(labels: ArrayLike, predicted: ArrayLike, *, classes: int) -> IntArray:
    """Counts (C, C): rows are the true class, columns the predicted one."""
    y, p = _pair(labels, predicted, classes)
    return np.bincount(y * classes + p, minlength=classes**2).reshape(classes, classes).astype(np.int64)


def class_shares(labels: ArrayLike, *, classes: int, cluster: ArrayLike | None = None) -> tuple[Estimate, ...]:
    """Share of rows in each class, [I1] or [I4]; undefined without rows."""
    y = class_vector(labels, classes, "labels")
    return tuple(rate(y == c, cluster=cluster) for c in range(classes))


def accuracy(labels: ArrayLike, predicted: ArrayLike, *, classes: int, cluster: ArrayLike | None = None) -> Estimate:
    """Share of rows whose prediction is the label (0–1, higher is better), [I1] or [I4]."""
    y, p = _pair(labels, predicted, classes)
    return rate(y == p, cluster=cluster)


def balanced_accuracy(
    labels: ArrayLike,
    predicted: ArrayLike,
    *,
    classes: int,
    cluster: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Mean recall over the classes that occur (0–1, higher is better; null 1/number of those classes).

    Bootstrap stratified by class [I5]. Where no resample differs (every recall 0 or 1) the interval is put together from the
    intervals of the single recalls.
    """
    y, p = _pair(labels, predicted, classes)
    base = _scored(y, p, cluster)
    if y.size == 0:
        return base
    support = np.bincount(y, minlength=classes)
    present = support > 0
    hits = np.bincount(y[y == p], minlength=classes)
    base = replace(base, value=float((hits[present] / support[present]).mean()), null=1 / int(present.sum()), reason=None)
    drawn = _resampled_tallies(y, p, classes, cluster, resamples, generator(seed, "balanced_accuracy"))
    some = drawn.support > 0
    recall = np.divide(drawn.hits, drawn.support, out=np.zeros_like(drawn.hits), where=some)
    samples = recall.sum(axis=1) / some.sum(axis=1)
    return _from_resamples(base, samples, y, p, classes, cluster)


def f1_macro(
    labels: ArrayLike,
    predicted: ArrayLike,
    *,
    classes: int,
    cluster: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Plain mean of F1 over the classes that occur as label or prediction (0–1, higher is better). Interval as `balanced_accuracy`."""
    y, p = _pair(labels, predicted, classes)
    base = _scored(y, p, cluster)
    if y.size == 0:
        return base
    present = np.bincount(np.r_[y, p], minlength=classes) > 0
    scores = _f1(np.bincount(y, minlength=classes), np.bincount(p, minlength=classes), np.bincount(y[y == p], minlength=classes))
    base = replace(base, value=float(scores[present].mean()), reason=None)
    drawn = _resampled_tallies(y, p, classes, cluster, resamples, generator(seed, "f1_macro"))
    scores = _f1(drawn.support, drawn.predicted, drawn.hits)
    samples = np.nansum(scores, axis=1) / np.isfinite(scores).sum(axis=1)
    return _from_resamples(base, samples, y, p, classes, cluster)


def auroc(
    labels: ArrayLike, probabilities: ArrayLike, *, cluster: ArrayLike | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Area under the ROC curve (0–1, null 0.5, higher is better): of class 1 for two classes, else the mean of one against the rest.

    Two classes: [I9]. More: the mean over classes with rows on both sides; variance of the summed placement values over rows
    or clusters, t with their number - 1, on the logit scale.

    Parameters
    ----------
    labels : (N,)
    probabilities : (N, C)
    """
    p = finite_matrix(probabilities, "probabilities")
    classes = p.shape[1]
    y = class_vector(labels, classes, "labels")
    n = same_length(labels=y.size, probabilities=p.shape[0])
    if classes == 2:
        return auc(y == 1, p[:, 1], cluster=cluster, seed=seed, resamples=resamples)
    codes = cluster_codes(cluster, n)
    clusters = int(codes.max()) + 1 if n else 0
    counts = np.bincount(y, minlength=classes)
    used = np.flatnonzero((counts > 0) & (counts < n))
    base = Estimate(None, n, null=0.5, clusters=None if cluster is None else clusters, details={"classes": used.size})
    if used.size == 0:
        return replace(base, reason="only one class occurs: no area under the curve")
    values, influence = np.empty(used.size), np.zeros(n)
    for position, c in enumerate(used):
        positive = y == c
        placement = placement_values(positive, p[:, c])
        values[position] = placement[positive].mean()
        influence += (placement - values[position]) / np.where(positive, counts[c], n - counts[c]) / used.size
    base = replace(base, value=float(values.mean()))
    value = float(values.mean())
    if clusters < 2:
        return replace(base, reason="one independent unit: no interval")
    error = float(np.sqrt(clusters / (clusters - 1) * (np.bincount(codes, influence) ** 2).sum()))
    if error < 1e-12:
        pairs = int(min(np.unique(codes[y == c]).size for c in used))
        base.details["method"] = "wilson on disjoint pairs"
        return replace(base, ladder=_wilson_around(value, pairs))

    def bounds(alpha: float) -> tuple[float, float]:
        return around_on_logit(value, error * t_quantile(alpha, clusters - 1))

    details = base.details | {"method": "sums of placement values", "standard_error": error}
    return replace(base, ladder=build_ladder(bounds), details=details)


def average_precision(
    labels: ArrayLike, scores: ArrayLike, *, cluster: ArrayLike | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Average precision of a ranking (0–1, null = share of positives, higher is better); bootstrap stratified by label [I5].

    From `MANY_UNITS` rows in `MANY_CLUSTERS` clusters on the interval is the linearised one, which the bootstrap approaches, on the logit scale.

    Parameters
    ----------
    labels : (N,), True for positive
    scores : (N,), higher means more positive
    """
    positive, score = truth_vector(labels, "labels"), finite_vector(scores, "scores")
    n = same_length(labels=positive.size, scores=score.size)
    codes = cluster_codes(cluster, n)
    clusters = int(codes.max()) + 1 if n else 0
    n1 = int(positive.sum())
    base = Estimate(None, n, clusters=None if cluster is None else clusters, events=n1, nonevents=n - n1)
    if n1 == 0:
        return replace(base, reason="no positive rows: no average precision")
    order = np.argsort(-score, kind="stable")
    ranked, truth, unit = score[order], positive[order], codes[order]
    ends = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])
    value = float(_average_precision(np.ones((1, n)), truth, ends)[0])
    base = replace(base, value=value, null=n1 / n, details={"method": "cluster_bootstrap"})
    if clusters < 2:
        return replace(base, reason="one independent unit: no interval")
    if value == 1.0:
        ladder = wilson(n1, n1).ladder if cluster is None else rate(np.ones(n1, dtype=np.bool_), cluster=codes[positive]).ladder
        return replace(base, ladder=ladder, details={"method": "wilson on positives"})
    if n >= MANY_UNITS and clusters >= MANY_CLUSTERS:
        error = _average_precision_error(truth, ends, unit, value)
        # of few positives 95 % intervals miss 20 % (10) and 10 % (30) without the logit scale and t, 8 % and 6 % with them (2026-11-21)
        least = min(int(np.unique(unit[side]).size) for side in (truth, ~truth))
        if least < 2:
            return replace(base, reason="one positive or negative unit: no interval")
        ladder = build_ladder(lambda alpha: around_on_logit(value, t_quantile(alpha, least - 1) * error))
        return replace(base, ladder=ladder, details={"method": "linearised", "standard_error": error})
    rng, samples = generator(seed, "average_precision"), np.empty(resamples)
    step = max(1, _CHUNK // n)
    for start in range(0, resamples, step):
        counts = resampled_counts(codes, min(step, resamples - start), rng, strata=positive.astype(np.int64))
        samples[start : start + step] = _average_precision(counts[:, unit], truth, ends)
    ladder, reason = percentile_ladder(samples)
    return replace(base, ladder=ladder, reason=reason)


def majority_gain(
    labels: ArrayLike,
    predicted: ArrayLike,
    *,
    classes: int,
    majority: int,
    cluster: ArrayLike | None = None,
    seed: int = 0,
) -> Estimate:
    """Accuracy minus that of always saying ``majority`` (the most frequent class of the training data); -1..1, null 0.

    Paired: [I3] and [P3], with clusters [I5] and [P2].
    """
    y, p = _pair(labels, predicted, classes)
    if not 0 <= majority < classes:
        raise DataError(f"majority class {majority} is not one of 0 to {classes - 1}")
    return paired_rate_difference(y == p, y == majority, cluster=cluster, seed=seed)


@dataclass(frozen=True)
class ClassScores:
    """Recall, precision and F1 of one class, each with its own denominator."""

    recall: Estimate
    precision: Estimate
    f1: Estimate


def class_scores(
    labels: ArrayLike,
    predicted: ArrayLike,
    *,
    classes: int,
    cluster: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[ClassScores, ...]:
    """Scores of each class, in class order (0–1, higher is better). Recall and precision [I1]/[I4], F1 [I5].

    A class without rows has no recall, one that is never predicted no precision, one that is neither no F1.
    """
    y, p = _pair(labels, predicted, classes)
    ids = None if cluster is None else cluster_codes(cluster, y.size)
    drawn = _resampled_tallies(y, p, classes, cluster, resamples, generator(seed, "class_scores")) if y.size else None
    tally = [np.bincount(part, minlength=classes) for part in (y, p, y[y == p])]
    values = _f1(*tally)
    samples = None if drawn is None else _f1(drawn.support, drawn.predicted, drawn.hits)
    result = []
    for c in range(classes):
        recall = _within(y == c, p == c, ids, "no rows of this class")
        precision = _within(p == c, y == c, ids, "never predicted")
        n = int(tally[0][c] + tally[1][c] - tally[2][c])
        f1 = Estimate(None, n, "no rows of this class and never predicted", recall.clusters)
        if n and samples is not None:
            value = float(values[c])
            f1 = replace(f1, value=value, reason=None, details={"method": "cluster_bootstrap"})
            ladder, reason = percentile_ladder(samples[:, c])
            if no_spread(samples[:, c]):
                reason = None
                ladder = _wilson_around(value, n if ids is None else int(np.unique(ids[(y == c) | (p == c)]).size))
                f1 = replace(f1, details={"method": "wilson"})
            f1 = replace(f1, ladder=ladder, reason=reason, events=int(tally[2][c]), nonevents=n - int(tally[2][c]))
        result.append(ClassScores(recall, precision, f1))
    return tuple(result)


def worst_class_recall(recalls: tuple[Estimate, ...]) -> tuple[int | None, Estimate]:
    """The class with the lowest recall and its Bonferroni interval, since the data chose it; (None, undefined) without any recall."""
    known = [(estimate.value, c) for c, estimate in enumerate(recalls) if estimate.value is not None]
    if not known:
        return None, Estimate(None, 0, "no class has a recall")
    worst = min(known)[1]
    return worst, bonferroni(recalls[worst], len(known))


class Confusion(NamedTuple):
    """Share of the rows of class ``true`` that were taken for class ``predicted``."""

    true: int
    predicted: int
    share: Estimate


def top_confusions(
    labels: ArrayLike, predicted: ArrayLike, *, classes: int, top: int = 5, cluster: ArrayLike | None = None
) -> tuple[Confusion, ...]:
    """The ``top`` most frequent confusions by count; shares within the true class with [I1]/[I4]. Only those that occur."""
    y, p = _pair(labels, predicted, classes)
    matrix = confusion_matrix(y, p, classes=classes)
    np.fill_diagonal(matrix, 0)
    ids = None if cluster is None else cluster_codes(cluster, y.size)
    cells = [divmod(int(cell), classes) for cell in np.argsort(-matrix.ravel(), kind="stable")[:top] if matrix.ravel()[cell] > 0]
    return tuple(Confusion(i, j, _within(y == i, p == j, ids, "no rows of this class")) for i, j in cells)


# ---------------------------------------------------------------- inside


class _Tallies(NamedTuple):
    """Rows of each class, predictions of it, and hits, in each resample: (B, C) each."""

    support: FloatArray
    predicted: FloatArray
    hits: FloatArray


def _resampled_tallies(
    y: IntArray, p: IntArray, classes: int, cluster: ArrayLike | None, resamples: int, rng: np.random.Generator
) -> _Tallies:
    if cluster is None:
        # rows are redrawn inside each true class: one multinomial over what they were taken for
        matrix = confusion_matrix(y, p, classes=classes)
        support = np.broadcast_to(matrix.sum(axis=1).astype(np.float64), (resamples, classes)).copy()
        predicted, hits = np.zeros((resamples, classes)), np.zeros((resamples, classes))
        for c in np.flatnonzero(matrix.sum(axis=1)):
            drawn = rng.multinomial(int(matrix[c].sum()), matrix[c] / matrix[c].sum(), size=resamples)
            predicted += drawn
            hits[:, c] = drawn[:, c]
        return _Tallies(support, predicted, hits)
    codes = cluster_codes(cluster, y.size)
    clusters = int(codes.max()) + 1
    right = y == p
    parts = [
        np.bincount(codes[rows] * classes + values[rows], minlength=clusters * classes).reshape(clusters, classes).astype(np.float64)
        for rows, values in ((slice(None), y), (slice(None), p), (right, y))
    ]
    sums = np.concatenate(parts, axis=1)
    strata = None if crosses(codes, y) else y
    result = np.empty((resamples, 3 * classes))
    step = max(1, _CHUNK // clusters)
    for start in range(0, resamples, step):
        result[start : start + step] = resampled_counts(codes, min(step, resamples - start), rng, strata=strata) @ sums
    return _Tallies(*np.split(result, 3, axis=1))


def _f1(support: Any, predicted: Any, hits: Any) -> FloatArray:  # Any: counts, integer or float, (C,) or (B, C)
    total = np.asarray(support + predicted, dtype=np.float64)
    return np.asarray(np.divide(2.0 * hits, total, out=np.full(total.shape, np.nan), where=total > 0), dtype=np.float64)


def _from_resamples(base: Estimate, samples: FloatArray, y: IntArray, p: IntArray, classes: int, cluster: ArrayLike | None) -> Estimate:
    if base.clusters == 1 or y.size == 1:
        return replace(base, reason="one independent unit: no interval")
    ladder, reason = percentile_ladder(samples)
    details = {"method": "cluster_bootstrap"}
    if no_spread(samples):
        ids = None if cluster is None else cluster_codes(cluster, y.size)
        parts = [_within(y == c, p == c, ids, "") for c in np.unique(y)]
        centre = float(np.mean([part.value for part in parts if part.value is not None]))
        shift = (base.value or 0.0) - centre  # F1 may differ from the mean recall; the widths are those of the recalls
        ladder = tuple((alpha, max(0.0, low + shift), min(1.0, high + shift)) for alpha, low, high in mover_mean(parts))
        reason = None if ladder else "no interval for the recall of some class"
        details = {"method": "recalls combined"}
    return replace(base, ladder=ladder, reason=reason, details=details)


def _average_precision(weights: FloatArray, truth: Any, ends: IntArray) -> FloatArray:  # Any: bool array in rank order
    hits = np.cumsum(weights * truth, axis=1)[:, ends]
    seen = np.cumsum(weights, axis=1)[:, ends]
    precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
    gained = np.diff(hits, axis=1, prepend=0.0)
    total = hits[:, -1]
    result = np.divide((gained * precision).sum(axis=1), total, out=np.full(total.size, np.nan), where=total > 0)
    return np.asarray(result, dtype=np.float64)


def _average_precision_error(truth: Any, ends: IntArray, unit: IntArray, value: float) -> float:  # Any: bool array in rank order
    """Standard error of average precision: its derivative by the weight of each row, added up in units, within labels where units allow.

    With H positives among the S rows down to a rank, AP = Σ_i H_i/S_i /n1 over positives: a row takes part in every rank from its own on.
    """
    n, n1 = truth.size, int(truth.sum())
    place = np.searchsorted(ends, np.arange(n))  # the run of tied scores that a row ends in
    seen = (ends + 1).astype(np.float64)
    hits = np.cumsum(truth)[ends].astype(np.float64)
    gained = np.diff(hits, prepend=0.0)
    later = np.cumsum((gained / seen)[::-1])[::-1]
    later_seen = np.cumsum((gained * hits / seen**2)[::-1])[::-1]
    influence = truth * ((hits / seen)[place] + later[place] - value) - later_seen[place]
    units = int(unit.max()) + 1
    parts = [influence * truth, influence * ~truth]
    if crosses(unit, truth.astype(np.int64)):
        sums = np.bincount(unit, influence)
        return float(np.sqrt(units / (units - 1) * ((sums - sums.mean()) ** 2).sum()) / n1)
    total = 0.0
    for inside, part in zip((truth, ~truth), parts, strict=True):
        sums = np.bincount(unit, part)[np.unique(unit[inside])]
        if sums.size > 1:
            total += float(sums.size / (sums.size - 1) * ((sums - sums.mean()) ** 2).sum())
    return float(np.sqrt(total)) / n1


def _within(denominator: Any, numerator: Any, ids: IntArray | None, empty: str) -> Estimate:  # Any: bool arrays
    estimate = rate(numerator[denominator], cluster=None if ids is None else ids[denominator])
    return replace(estimate, reason=empty) if estimate.value is None else estimate


def _scored(y: IntArray, p: IntArray, cluster: ArrayLike | None) -> Estimate:
    codes = cluster_codes(cluster, y.size)
    clusters = None if cluster is None else (int(codes.max()) + 1 if y.size else 0)
    right = int((y == p).sum())
    return Estimate(None, y.size, "no rows", clusters, events=right, nonevents=y.size - right)


def _wilson_around(value: float, units: int) -> tuple[tuple[float, float, float], ...]:
    """Wilson interval of ``value`` as if it were a rate of this many units: where resampling shows no spread."""
    base = wilson(units if value >= 0.5 else 0, units)
    return tuple((alpha, min(low, value), max(high, value)) for alpha, low, high in base.ladder)


def _pair(labels: ArrayLike, predicted: ArrayLike, classes: int) -> tuple[IntArray, IntArray]:
    y, p = class_vector(labels, classes, "labels"), class_vector(predicted, classes, "predictions")
    same_length(labels=y.size, predictions=p.size)
    return y, p
