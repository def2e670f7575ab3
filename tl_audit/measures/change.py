"""Changes of the metrics of TLA301 between two models on the same rows (TLA302): paired, from what each row adds to either metric."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from tl_audit.errors import DataError
from tl_audit.measures.arrays import class_vector, finite_matrix, same_length
from tl_audit.measures.estimate import BoolArray, Estimate, FloatArray, IntArray, build_ladder, normal_quantile, t_quantile
from tl_audit.measures.intervals import placement_values
from tl_audit.measures.permutation import representable_p
from tl_audit.measures.sampling import cluster_codes

Parts = tuple[float, FloatArray]
"""A metric, and (N,) its derivative by the weight of each row: the sum is 0, and its sum over resampled rows is how much the metric moves."""

LEAST_UNITS = 30
"Below this many rows or clusters the linear form is not trusted, and there is no interval."

LEAST_PER_SIDE = 10
"Of two labels each needs this many rows or clusters: with 6 positive rows 95 % intervals of a change in ROC area miss 10 % (2026-11-21)."


def metric_changes(
    labels: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    *,
    positive: int | None = None,
    cluster: ArrayLike | None = None,
) -> dict[str, Estimate]:
    """Balanced accuracy, macro F1, area under the ROC curve and average precision of a first model minus those of a second (-1..1, null 0).

    Both give the metrics of `classification`; the interval is that of a mean of the rows' derivatives, which are subtracted row by row first
    (infinitesimal jackknife; over clusters with t). Swapping the models turns every sign.

    Parameters
    ----------
    labels : (N,) class index
    first, second : (N, C) probabilities in the same order of classes
    positive : class whose ranking average precision speaks of, in a binary task; None: average precision is undefined

    References
    ----------
    Efron, Tibshirani (1993). An Introduction to the Bootstrap, chapter 21 (infinitesimal jackknife).
    """
    a, b = finite_matrix(first, "first"), finite_matrix(second, "second")
    if a.shape != b.shape:
        raise DataError(f"first has shape {a.shape}, second {b.shape}: expected the same rows and classes")
    classes = a.shape[1]
    y = class_vector(labels, classes, "labels")
    n = same_length(labels=y.size, first=a.shape[0])
    codes = cluster_codes(cluster, n)
    units = None if cluster is None else (int(codes.max()) + 1 if n else 0)
    empty = Estimate(None, n, "no rows", clusters=units, null=0.0)
    if n == 0:
        return dict.fromkeys(("balanced_accuracy", "f1_macro", "auroc", "average_precision"), empty)
    out = {}
    for name, parts in (("balanced_accuracy", _balanced_accuracy), ("f1_macro", _f1_macro)):
        out[name] = _difference(parts(y, a.argmax(axis=1), classes), parts(y, b.argmax(axis=1), classes), codes, cluster is not None)
    one, other = _auroc(y, a), _auroc(y, b)
    if one is None or other is None:
        out["auroc"] = replace(empty, reason="only one class occurs: no area under the curve")
    else:
        out["auroc"] = _difference(one, other, codes, cluster is not None, None if classes > 2 else np.asarray(y == 1))
    if positive is None or classes != 2:
        out["average_precision"] = replace(empty, reason="needs a binary task with a positive class")
    elif not (y == positive).any():
        out["average_precision"] = replace(empty, reason="no positive rows: no average precision")
    else:
        one, other = (_average_precision(y == positive, p[:, positive]) for p in (a, b))
        out["average_precision"] = _difference(one, other, codes, cluster is not None, np.asarray(y == positive))
    return out


# ---------------------------------------------------------------- inside


def _difference(first: Parts, second: Parts, codes: IntArray, clustered: bool, positive: BoolArray | None = None) -> Estimate:
    """With ``positive`` (N,) the smaller side says how much is known of the spread: t with its units - 1."""
    value, influence = first[0] - second[0], first[1] - second[1]
    units = int(codes.max()) + 1
    base = Estimate(value, codes.size, clusters=units if clustered else None, null=0.0, details={"method": "infinitesimal jackknife"})
    if units < LEAST_UNITS:
        return replace(base, reason=f"{units} {'clusters' if clustered else 'rows'}: fewer than {LEAST_UNITS}, no interval")
    freedom = float(units - 1) if clustered else np.inf
    if positive is not None:
        least = min(int(np.unique(codes[side]).size) for side in (positive, ~positive))
        if least < LEAST_PER_SIDE:
            what = "clusters with" if clustered else "rows of"
            return replace(base, reason=f"{least} {what} the rarer label: fewer than {LEAST_PER_SIDE}, no interval")
        freedom = float(least - 1)
    error = float(np.sqrt(units / (units - 1) * (np.bincount(codes, influence) ** 2).sum()))
    if error < 1e-12:

        def at_most(alpha: float) -> tuple[float, float]:
            width = float(np.log(1.0 / alpha)) / units  # no unit of so many differs
            return max(-1.0, value - width), min(1.0, value + width)

        return replace(base, ladder=build_ladder(at_most), p_value=1.0 if abs(value) < 1e-12 else None)

    def bounds(alpha: float) -> tuple[float, float]:
        reach = error * (t_quantile(alpha, freedom) if np.isfinite(freedom) else normal_quantile(alpha))
        return max(-1.0, value - reach), min(1.0, value + reach)

    z = abs(value) / error
    p = float(2 * stats.t.sf(z, freedom))  # the normal law where the degrees of freedom are infinite
    return replace(base, ladder=build_ladder(bounds), p_value=representable_p(p))


def _balanced_accuracy(y: IntArray, p: IntArray, classes: int) -> Parts:
    support = np.bincount(y, minlength=classes)
    recall = np.bincount(y[y == p], minlength=classes) / np.maximum(support, 1)
    present = int((support > 0).sum())
    return float(recall.sum() / present), ((y == p) - recall[y]) / support[y] / present


def _f1_macro(y: IntArray, p: IntArray, classes: int) -> Parts:
    total = np.bincount(y, minlength=classes) + np.bincount(p, minlength=classes)
    scores = 2.0 * np.bincount(y[y == p], minlength=classes) / np.maximum(total, 1)
    present = int((total > 0).sum())
    # a row is counted with its label's class and with its prediction's, in both of them as a hit where these are one
    influence = ((y == p) - scores[y]) / total[y] + ((y == p) - scores[p]) / total[p]
    return float(scores.sum() / present), influence / present


def _auroc(y: IntArray, p: FloatArray) -> Parts | None:
    n, classes = p.shape
    counts = np.bincount(y, minlength=classes)
    used = [1] if classes == 2 else [int(c) for c in np.flatnonzero((counts > 0) & (counts < n))]
    if not used or counts[used[0]] in (0, n):
        return None
    values, influence = [], np.zeros(n)
    for c in used:
        positive: BoolArray = np.asarray(y == c, dtype=np.bool_)
        placement = placement_values(positive, p[:, c])
        values.append(float(placement[positive].mean()))
        influence += (placement - values[-1]) / np.where(positive, counts[c], n - counts[c]) / len(used)
    return float(np.mean(values)), influence


def _average_precision(positive: BoolArray, score: FloatArray) -> Parts:
    """With H positives among the S rows down to a rank, the mean of H/S over positives: a row takes part in every rank from its own on."""
    n1 = int(positive.sum())
    order = np.argsort(-score, kind="stable")
    ranked, truth = score[order], positive[order]
    ends = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])
    place = np.searchsorted(ends, np.arange(truth.size))  # the run of tied scores that a row ends in
    seen, hits = (ends + 1).astype(np.float64), np.cumsum(truth)[ends].astype(np.float64)
    gained = np.diff(hits, prepend=0.0)
    value = float((gained * hits / seen).sum() / n1)
    later = np.cumsum((gained / seen)[::-1])[::-1][place]
    later_seen = np.cumsum((gained * hits / seen**2)[::-1])[::-1][place]
    influence = np.empty(truth.size)
    influence[order] = (truth * ((hits / seen)[place] + later - value) - later_seen) / n1
    return value, influence
