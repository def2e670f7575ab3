"""What a linear reading of features still knows: the same probe trained on two features of the same samples (TLA402)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tl_audit.errors import DataError
from tl_audit.measures.arrays import class_vector, finite_matrix, same_length
from tl_audit.measures.estimate import BoolArray, FloatArray, IntArray
from tl_audit.measures.sampling import cluster_codes, generator, split_by_cluster

STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Inverse L2 penalties (scikit-learn's C, on standardised features) among which cross-validation chooses."""

FOLDS = 5
MOST_TRAINING_ROWS = 1500
MOST_CROSS_FITTED = 3000
_FLOOR = 1e-12


@dataclass(frozen=True)
class Probe:
    """A linear probe of one feature, judged on rows that it was not trained on.

    Attributes
    ----------
    rows : (H,) numbers of the held-out rows, ascending
    predicted : (H,) class numbers
    strength : the inverse penalty that cross-validation chose, None without a probe
    training_rows : how many rows trained it
    reason : why there is no probe (then ``rows`` is empty), else None
    """

    rows: IntArray
    predicted: IntArray
    strength: float | None
    training_rows: int
    reason: str | None = None


def probe_split(labels: ArrayLike, *, classes: int, cluster: ArrayLike | None = None, seed: int = 0) -> BoolArray:
    """(N,) True for the rows that train a probe: half of them, at most ``MOST_TRAINING_ROWS``.

    Whole clusters where there are some; else half of each class, so that no class is missing by chance.
    """
    y = class_vector(labels, classes, "labels")
    share = 0.5 if y.size == 0 else min(0.5, MOST_TRAINING_ROWS / y.size)
    if cluster is not None:
        return split_by_cluster(cluster, y.size, seed, share)
    training = np.zeros(y.size, dtype=np.bool_)
    for value in np.unique(y):
        rows = np.flatnonzero(y == value)
        chosen = generator(seed, "probe_split", int(value)).permutation(rows.size)[: round(share * rows.size)]
        training[rows[chosen]] = True
    return training


def linear_probe(
    features: ArrayLike,
    labels: ArrayLike,
    training: ArrayLike,
    *,
    classes: int,
    cluster: ArrayLike | None = None,
    seed: int = 0,
) -> Probe:
    """L2 logistic regression on standardised features, trained on one part of the rows and asked about the rest.

    The penalty is chosen by log-loss in a 5-fold cross-validation inside the training part, folds made of whole clusters. Folds depend
    on rows, clusters and seed alone, so probes of two features of the same rows differ by the features and nothing else.

    Parameters
    ----------
    features : (N, D)
    labels : (N,) class numbers 0 .. classes-1
    training : (N,) bool, as `probe_split` gives it
    cluster : (N,)

    References
    ----------
    Alain, Bengio (2017). Understanding intermediate layers using linear classifier probes. arXiv:1610.01644
    """
    x, y = finite_matrix(features, "features"), class_vector(labels, classes, "labels")
    part = np.asarray(training, dtype=np.bool_)
    n = same_length(features=x.shape[0], labels=y.size, training=part.size)
    codes = cluster_codes(cluster, n)
    none = np.zeros(0, dtype=np.int64)
    if cluster is not None and np.intersect1d(codes[part], codes[~part]).size:
        raise DataError("training splits a cluster: rows of one cluster must all train the probe or all be held out")
    if not part.any() or part.all():
        return Probe(none, none, None, int(part.sum()), "no rows to train a probe on, or none to ask it about")
    if np.unique(y[part]).size < 2:
        return Probe(none, none, None, int(part.sum()), "the rows that would train the probe hold one class only")
    rows, held = _standardised(x[part], x[~part])
    if rows.shape[1] == 0:
        return Probe(none, none, None, int(part.sum()), "the features are constant")
    own = y[part]
    strength = _chosen_strength(rows, own, codes[part], seed)
    model = _fitted(rows, own, strength)
    return Probe(np.flatnonzero(~part), np.asarray(model.predict(held), dtype=np.int64), strength, int(part.sum()))


def _standardised(train: FloatArray, held: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Both parts in units of the training part's deviations, without constant columns, in at most as many columns as training rows."""
    centre, scale = train.mean(axis=0), train.std(axis=0)
    varies = scale > 1e-12 * np.maximum(1.0, np.abs(centre))
    train, held = (train[:, varies] - centre[varies]) / scale[varies], (held[:, varies] - centre[varies]) / scale[varies]
    if train.shape[1] > train.shape[0]:
        # the L2 solution lies in the row space of the training rows: the same model in fewer columns
        _, values, axes = np.linalg.svd(train, full_matrices=False)
        axes = axes[values > 1e-10 * values[0]]
        train, held = train @ axes.T, held @ axes.T
    return train, held


def _chosen_strength(x: FloatArray, y: IntArray, codes: IntArray, seed: int) -> float:
    """The strength of least cross-validated log-loss; of equal ones the strongest penalty."""
    fold = _folds(codes, generator(seed, "probe_folds"))
    losses = np.zeros(len(STRENGTHS))
    for k in range(FOLDS):
        inside, outside = fold != k, fold == k
        if not outside.any() or np.unique(y[inside]).size < 2:
            continue
        for i, strength in enumerate(STRENGTHS):
            model = _fitted(x[inside], y[inside], strength)
            places = np.searchsorted(model.classes_, y[outside])
            known = (places < model.classes_.size) & (model.classes_[np.minimum(places, model.classes_.size - 1)] == y[outside])
            p = np.asarray(model.predict_proba(x[outside]))[np.arange(known.size), np.minimum(places, model.classes_.size - 1)]
            losses[i] -= np.log(np.maximum(np.where(known, p, 0.0), _FLOOR)).sum()
    return STRENGTHS[int(np.argmin(losses))]


def _fitted(x: FloatArray, y: IntArray, strength: float):  # type: ignore[no-untyped-def]  # a scikit-learn model, loaded late
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=200)
    with warnings.catch_warnings():
        # a probe that stopped short of the optimum is still one fixed rule, judged on rows that it never saw
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, y)


@dataclass(frozen=True)
class CrossFitted:
    """Probabilities of a linear probe for rows that it was not trained on.

    Attributes
    ----------
    probabilities : (N, C), rows sum to 1; a class that a fold's training rows lack has 0 there
    strength : the inverse penalty, None without a probe
    training_rows : most rows that trained a fold's probe
    reason : why there is no probe (then ``probabilities`` has no rows), else None
    """

    probabilities: FloatArray
    strength: float | None
    training_rows: int
    reason: str | None = None


def cross_fitted(
    features: ArrayLike, labels: ArrayLike, *, classes: int, cluster: ArrayLike | None = None, seed: int = 0, most: int = MOST_CROSS_FITTED
) -> CrossFitted:
    """Out-of-sample probabilities of every row: 5 folds made of whole clusters, each answered by a probe of the other four.

    The penalty is chosen once, by cross-validation among at most ``MOST_TRAINING_ROWS`` rows; at most ``most`` rows train one fold's probe,
    whatever N is, so that the cost stays linear in N.

    Parameters
    ----------
    features : (N, D)
    labels : (N,) class numbers 0 .. classes-1
    cluster : (N,)
    """
    x, y = np.asarray(features), class_vector(labels, classes, "labels")
    n = same_length(features=x.shape[0], labels=y.size)
    codes = cluster_codes(cluster, n)
    none = np.zeros((0, classes))
    fold = _folds(codes, generator(seed, "cross_fitted folds"))
    if n == 0 or np.unique(fold).size < 2:
        return CrossFitted(none, None, 0, "fewer than two rows, or clusters, to share out into folds")
    few = _some_clusters(codes, np.ones(n, dtype=np.bool_), MOST_TRAINING_ROWS, generator(seed, "cross_fitted strength"))
    if np.unique(y[few]).size < 2:
        return CrossFitted(none, None, int(few.sum()), "the rows that would train a probe hold one class only")
    part = finite_matrix(x[few], "features")
    scaled, _ = _standardised(part, part[:0])
    if scaled.shape[1] == 0:
        return CrossFitted(none, None, int(few.sum()), "the features are constant")
    strength = _chosen_strength(scaled, y[few], codes[few], seed)
    out, used = np.zeros((n, classes)), 0
    for k in np.unique(fold).tolist():
        inside = _some_clusters(codes, fold != k, most, generator(seed, "cross_fitted rows", k))
        used = max(used, int(inside.sum()))
        present = np.unique(y[inside])
        held = np.flatnonzero(fold == k)
        if present.size < 2:
            out[held[:, None], present] = 1.0
            continue
        train, answers = _standardised(finite_matrix(x[inside], "features"), finite_matrix(x[held], "features"))
        model = _fitted(train, y[inside], strength)
        out[held[:, None], np.asarray(model.classes_, dtype=np.int64)] = model.predict_proba(answers)
    return CrossFitted(out, strength, used)


def _folds(codes: IntArray, rng: np.random.Generator) -> IntArray:
    """Fold of each row, whole clusters in one fold."""
    units = np.unique(codes, return_inverse=True)[1]
    count = int(units.max()) + 1 if units.size else 0
    fold_of = np.empty(count, dtype=np.int64)
    fold_of[rng.permutation(count)] = np.arange(count) % FOLDS
    return fold_of[units]


def _some_clusters(codes: IntArray, among: BoolArray, most: int, rng: np.random.Generator) -> BoolArray:
    """Rows of whole clusters, drawn until ``most`` rows are reached."""
    if int(among.sum()) <= most:
        return among
    units = np.unique(codes[among], return_inverse=True)[1]
    order = rng.permutation(int(units.max()) + 1)
    reached = np.cumsum(np.bincount(units)[order])
    chosen = np.zeros(order.size, dtype=np.bool_)
    chosen[order[: max(1, int(np.searchsorted(reached, most, side="right")))]] = True
    out = np.zeros(among.size, dtype=np.bool_)
    out[np.flatnonzero(among)[chosen[units]]] = True
    return out
