"""Importance weights of training rows: how much more often the target holds such rows. From labels (label shift) or from features (covariate shift)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tl_audit.errors import DataError
from tl_audit.measures.arrays import class_vector, finite_matrix, finite_vector
from tl_audit.measures.estimate import FloatArray
from tl_audit.measures.probe import cross_fitted, linear_probe
from tl_audit.measures.sampling import cluster_codes
from tl_audit.measures.shift import bbse

_EDGE = 1e-6


@dataclass(frozen=True)
class ImportanceWeights:
    """Weights of training rows.

    Attributes
    ----------
    values : (N,) at least 0, mean 1 (after capping)
    effective_share : (Σw)² / (N Σw²), 0–1: weighted rows are worth so many unweighted ones; 1: all weights are equal
    capped : rows whose weight was cut
    detail : what the weights rest on: a class mix, or how well a domain classifier tells the rows apart (AUC, null 0.5)
    """

    values: FloatArray
    effective_share: float
    capped: int
    detail: dict[str, float]


def effective_share(weights: ArrayLike) -> float:
    """(Σw)² / (N Σw²), 0–1, ideal 1 (Kish, 1965).

    Examples
    --------
    >>> effective_share([1, 1, 1, 1]), effective_share([1, 0, 0, 0])
    (1.0, 0.25)
    """
    w = finite_vector(weights, "weights")
    if w.size == 0 or (w < 0).any() or not w.any():
        raise DataError("weights must be non-negative numbers, not all 0")
    return float(w.sum() ** 2 / (w.size * (w**2).sum()))


def class_weights(labels: ArrayLike, mix: ArrayLike, *, cap: float = 10.0) -> ImportanceWeights:
    """Weights p_T(y) / p_S(y) of each row's class.

    Parameters
    ----------
    labels : (N,) class numbers 0 .. C-1
    mix : (C,) shares of the classes in the target, sum 1
    cap : largest weight, as a multiple of the mean

    Raises
    ------
    DataError : the mix is no distribution, or gives a share to a class without rows
    """
    shares = finite_vector(mix, "class mix")
    y = class_vector(labels, shares.size, "labels")
    if (shares < 0).any() or abs(float(shares.sum()) - 1) > 1e-6:
        raise DataError(f"a class mix is shares that sum to 1; these sum to {float(shares.sum()):.4g}")
    counts = np.bincount(y, minlength=shares.size)
    if ((counts == 0) & (shares > 0)).any():
        raise DataError(
            f"the class mix gives a share to class {int(np.flatnonzero((counts == 0) & (shares > 0))[0])}, which has no training row"
        )
    ratio = np.divide(shares, counts / y.size, out=np.zeros(shares.size), where=counts > 0)
    return _weights(ratio[y], cap, {f"share_{k}": float(v) for k, v in enumerate(shares)})


def label_shift_weights(
    features: ArrayLike,
    labels: ArrayLike,
    unlabelled: ArrayLike,
    *,
    classes: int,
    cluster: ArrayLike | None = None,
    seed: int = 0,
    cap: float = 10.0,
) -> ImportanceWeights:
    """Weights of classes from unlabelled target rows: black-box shift estimation with a cross-fitted linear probe of the features.

    Valid where only the mix of classes differs. Estimated shares below 0 count as 0 (the estimator itself is not clipped).

    Raises
    ------
    DataError : the probe cannot tell the classes apart well enough to estimate the mix; says why

    References
    ----------
    Lipton, Wang, Smola (2018). Detecting and correcting for label shift with black box predictors. arXiv:1802.03916
    """
    x, z = finite_matrix(features, "features"), finite_matrix(unlabelled, "unlabelled features")
    y = class_vector(labels, classes, "labels")
    own = cross_fitted(x, y, classes=classes, cluster=cluster, seed=seed)
    if own.reason is not None:
        raise DataError(f"the class mix of the unlabelled data cannot be estimated: {own.reason}")
    part = np.r_[np.ones(len(x), dtype=np.bool_), np.zeros(len(z), dtype=np.bool_)]
    # clusters of the unlabelled rows are their own: none is shared with a training row
    answers = linear_probe(np.concatenate([x, z]), np.r_[y, np.zeros(len(z), dtype=np.int64)], part, classes=classes, seed=seed)
    if answers.reason is not None:
        raise DataError(f"the class mix of the unlabelled data cannot be estimated: {answers.reason}")
    found = bbse(own.probabilities.argmax(axis=1), y, answers.predicted, classes=classes, cluster_source=cluster, seed=seed, resamples=200)
    ratios = [w.value for w in found.weights]
    if any(w is None for w in ratios):
        raise DataError(f"the class mix of the unlabelled data cannot be estimated: {found.weights[0].reason}")
    ratio = np.maximum(np.asarray(ratios, dtype=np.float64), 0.0)
    shares = ratio * np.bincount(y, minlength=classes) / y.size
    if shares.sum() == 0:
        raise DataError("the class mix of the unlabelled data cannot be estimated: all shares came out at or below 0")
    return _weights(ratio[y], cap, {f"share_{k}": float(v) for k, v in enumerate(shares / shares.sum())})


def domain_weights(
    features: ArrayLike, unlabelled: ArrayLike, *, cluster: ArrayLike | None = None, seed: int = 0, cap: float = 10.0
) -> ImportanceWeights:
    """Weights p_T(x) / p_S(x) of each row by a cross-fitted domain classifier. Valid where only the inputs differ, and the domains overlap.

    Parameters
    ----------
    features : (N, D) of the training rows
    unlabelled : (M, D) of the target
    cluster : (N,) of the training rows: whole clusters are left out together

    References
    ----------
    Bickel, Brückner, Scheffer (2009). Discriminative learning under covariate shift. JMLR 10.
    """
    x, z = finite_matrix(features, "features"), finite_matrix(unlabelled, "unlabelled features")
    n, m = len(x), len(z)
    if n < 2 or m < 2:
        raise DataError(f"importance weights need at least two rows of each domain; there are {n} and {m}")
    own = cluster_codes(cluster, n)
    together = np.r_[own, own.max() + 1 + np.arange(m)]
    second = np.r_[np.zeros(n, dtype=np.int64), np.ones(m, dtype=np.int64)]
    fitted = cross_fitted(np.concatenate([x, z]), second, classes=2, cluster=together, seed=seed)
    if fitted.reason is not None:
        raise DataError(f"the domains cannot be compared: {fitted.reason}")
    p = np.clip(fitted.probabilities[:, 1], _EDGE, 1 - _EDGE)
    from tl_audit.measures.intervals import auc

    area = auc(second, p, seed=seed).value
    return _weights((p / (1 - p))[:n] * n / m, cap, {} if area is None else {"domain_auc": area})


def _weights(raw: FloatArray, cap: float, detail: dict[str, float]) -> ImportanceWeights:
    """Mean 1, none above ``cap`` means; what is cut is shared out over the rest by scaling."""
    if cap < 1:
        raise DataError(f"cap is {cap}: the largest weight is at least the mean, 1")
    if not raw.any():
        raise DataError("all importance weights are 0: the domains do not overlap")
    values = raw / raw.mean()
    cut = np.zeros(values.size, dtype=np.bool_)
    for _ in range(50):  # scaling up after a cut may lift others over the cap
        over = values > cap * (1 + 1e-12)
        if not over.any():
            break
        cut |= over
        values = np.where(cut, cap, values)
        free = ~cut & (values > 0)
        if not free.any():
            values = values / values.mean()
            break
        values[free] *= (values.size - cap * cut.sum()) / values[free].sum()
    return ImportanceWeights(values, effective_share(values), int(cut.sum()), detail)
