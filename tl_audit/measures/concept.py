"""Does the same input mean another label in the target? A gain in held-out log-loss with a conditional randomisation test (TLA504)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tl_audit.measures.arrays import class_vector, finite_matrix, same_length
from tl_audit.measures.estimate import BoolArray, Estimate, FloatArray, IntArray
from tl_audit.measures.permutation import permutation_p
from tl_audit.measures.sampling import cluster_codes, generator

AXES = 32
RESAMPLES = 199
FOLDS = 5
OVERLAP = (0.05, 0.95)
LEAST_OVERLAP = 0.5
LEAST_PER_CLASS = 10
"""Rows of a class that each domain needs; smaller classes are left out."""
MOST_CLASSES = 20
"""Classes that take part, the commonest: the time of the test grows with their number."""
RIDGE = 10.0
"""Strength of the penalty on the coefficients of whitened features: log-likelihood minus RIDGE/2 times their squares."""
DOMAIN_RIDGES = (0.1, 1.0, 10.0, 100.0)
"""Penalties among which the model of the domain chooses."""
STEPS = 4
_CHUNK = 400_000  # numbers held at once while draws are fitted


@dataclass(frozen=True)
class ConceptShift:
    """What `concept_shift` found.

    Attributes
    ----------
    gain : held-out log-loss saved per row (nats) when the reading of the inputs may differ between the domains; null 0. Undefined
        where the domains overlap too little, with the reason
    overlap : share of rows, 0-1, that could come from either domain
    classes : classes that took part, as numbers
    rows : rows in the region of overlap
    by_class : gain per class, of the rows that bear it
    """

    gain: Estimate
    overlap: Estimate
    classes: tuple[int, ...]
    rows: int
    by_class: tuple[Estimate, ...]


def concept_shift(
    source: ArrayLike,
    source_labels: ArrayLike,
    target: ArrayLike,
    target_labels: ArrayLike,
    *,
    classes: int,
    cluster_source: ArrayLike | None = None,
    cluster_target: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> ConceptShift:
    """Held-out log-loss of "label given input and class mix of the domain" minus that of "label given input and domain" (nats, null 0).

    z are the 32 leading principal axes of the pooled features, whitened. The first model reads z and its squares, the same in both domains,
    and may give each domain its own level of each class: another mix of classes is TLA502 and no new meaning. The second may also read z
    otherwise in each domain. Both are penalised multinomial logistic models, fitted on four fifths of the rows (whole clusters) and asked
    about the fifth. Only rows that could come from either domain count: 0.05 < P(target | z) < 0.95.

    The test draws the domain of every row (of every cluster) anew from P(domain | z, label level), refits both models and compares the
    gains [P1]: what is left of the real gain is owed to the domain and to nothing that z explains (conditional randomisation).

    Parameters
    ----------
    source, target : (N, D), (M, D); about equal numbers of rows
    source_labels, target_labels : (N,), (M,) class numbers 0 .. classes-1
    cluster_source, cluster_target : (N,), (M,); a cluster keeps one domain in every draw

    References
    ----------
    Candès et al. (2018). Panning for gold: model-X knockoffs. JRSS B 80 (conditional randomisation test).
    Polo et al. (2023). A unified framework for dataset shift diagnostics. arXiv:2205.08340
    """
    x, w = finite_matrix(source, "source features"), finite_matrix(target, "target features")
    a, b = class_vector(source_labels, classes, "source labels"), class_vector(target_labels, classes, "target labels")
    n, m = same_length(source_features=x.shape[0], source_labels=a.size), same_length(target_features=w.shape[0], target_labels=b.size)
    features, labels = np.concatenate([x, w]), np.r_[a, b]
    second = np.r_[np.zeros(n, dtype=np.bool_), np.ones(m, dtype=np.bool_)]
    codes = cluster_codes(_joined(cluster_source, cluster_target, n, m), n + m)
    clustered = cluster_source is not None and cluster_target is not None
    least = np.minimum(np.bincount(a, minlength=classes), np.bincount(b, minlength=classes))
    commonest = sorted(range(classes), key=lambda k: (-least[k], k))[:MOST_CLASSES]
    kept = tuple(k for k in sorted(commonest) if least[k] >= LEAST_PER_CLASS)
    rows = np.flatnonzero(np.isin(labels, kept))
    gone = Estimate(None, 0, "no class has ten rows in both domains", null=0.0)
    if len(kept) < 2:
        gone = replace(gone, reason="fewer than two classes have ten rows in both domains")
        return ConceptShift(gone, gone, kept, 0, ())
    features, second, codes = features[rows], second[rows], np.unique(codes[rows], return_inverse=True)[1].astype(np.int64)
    y = np.searchsorted(np.array(kept), labels[rows]).astype(np.int64)
    z = _whitened(features)
    if z.shape[1] == 0:
        gone = replace(gone, reason="all features are constant")
        return ConceptShift(gone, gone, kept, 0, ())
    fold = _folds(codes, seed)
    wide = np.concatenate([np.ones((z.shape[0], 1)), z, (z**2 - 1) / np.sqrt(2)], axis=1)
    chance = _domain_probability(wide, second, fold)
    inside = (chance > OVERLAP[0]) & (chance < OVERLAP[1])
    units = (int(np.unique(codes[~second]).size), int(np.unique(codes[second]).size))
    clusters = min(units) if clustered else None
    share = Estimate(float(inside.mean()), int(inside.size), clusters=clusters)
    base = Estimate(None, int(inside.sum()), null=0.0, clusters=clusters)
    if share.value is not None and share.value < LEAST_OVERLAP:
        why = f"cannot separate concept from covariate shift: only {100 * share.value:.0f} % of the samples could come from either domain"
        return ConceptShift(replace(base, reason=why), share, kept, base.n, ())
    z, wide, chance = z[inside], wide[inside], chance[inside]
    y, second, codes, fold = y[inside], second[inside], codes[inside], fold[inside]
    present = np.bincount(y[~second], minlength=len(kept)) * np.bincount(y[second], minlength=len(kept))
    if int((present > 0).sum()) < 2:
        return ConceptShift(
            replace(base, reason="fewer than two classes lie in the region where the domains overlap"), share, kept, base.n, ()
        )
    # the null: what z says of the domain, and the level of each class in it
    leveled = np.concatenate([wide, np.eye(len(kept))[y][:, 1:]], axis=1)
    drawn_from = _domain_probability(leveled, second, fold)
    draws = _draws(drawn_from, codes if clustered else np.arange(codes.size), resamples, seed)
    offset = _offsets(wide, y, fold, len(kept))
    everything = np.concatenate([second[None], draws])
    losses = _losses(offset, z, y, everything, chance, fold)
    gains = losses.mean(axis=1)
    p = permutation_p(float(gains[0]), gains[1:])
    details: dict[str, Any] = {
        "resamples": resamples,
        "null_mean": float(gains[1:].mean()),
        "null_95": float(np.quantile(gains[1:], 0.95)),
        "axes": int(z.shape[1]),
        "n_source": int((~second).sum()),
        "n_target": int(second.sum()),
    }
    gain = replace(base, value=float(gains[0]), p_value=p, reason="cross-fitted on one sample: judged by effect and test", details=details)
    by_class = tuple(
        Estimate(float(losses[0, y == k].mean()), int((y == k).sum()), null=0.0)
        if (y == k).any()
        else Estimate(None, 0, "no row of this class where the domains overlap", null=0.0)
        for k in range(len(kept))
    )
    return ConceptShift(gain, share, kept, base.n, by_class)


# ---------------------------------------------------------------- inside


def _joined(first: ArrayLike | None, second: ArrayLike | None, n: int, m: int) -> Any:  # Any: ids of any type, None without
    if first is None or second is None:
        return None
    out = np.empty(n + m, dtype=object)
    out[:n], out[n:] = np.asarray(first).tolist(), np.asarray(second).tolist()
    return out


def _whitened(features: FloatArray) -> FloatArray:
    """(N, k) principal scores of standardised columns, k at most AXES and a twentieth of the rows, each with variance 1."""
    centre, spread = features.mean(axis=0), features.std(axis=0)
    varies = spread > 1e-12 * np.maximum(1.0, np.abs(centre))
    if not varies.any():
        return np.zeros((features.shape[0], 0))
    scaled = (features[:, varies] - centre[varies]) / spread[varies]
    values, vectors = np.linalg.eigh(scaled.T @ scaled)
    order = np.argsort(-values)[: max(1, min(AXES, features.shape[0] // 20))]
    order = order[values[order] > 1e-9 * values.max()]
    scores = scaled @ vectors[:, order]
    # rare extremes would rule squares and slopes
    return np.asarray(np.clip(scores / scores.std(axis=0), -4.0, 4.0), dtype=np.float64)


def _folds(codes: IntArray, seed: int) -> IntArray:
    count = int(codes.max()) + 1
    fold = np.empty(count, dtype=np.int64)
    fold[generator(seed, "concept_folds").permutation(count)] = np.arange(count) % FOLDS
    return np.asarray(fold[codes], dtype=np.int64)


def _domain_probability(matrix: FloatArray, second: BoolArray, fold: IntArray) -> FloatArray:
    """P(target | row) of every row by a penalised logistic model fitted on the other folds; the first column is the level.

    The penalty is the one of least held-out log-loss, and the held-out scores are calibrated by a line: a chance that is shrunk towards
    one half would call domains alike that are far apart.
    """
    outcome = second.astype(np.float64)
    level = float(np.log(second.sum() / max(1, (~second).sum()))) if second.any() else 0.0
    best, least = np.full(second.size, level), np.inf
    for strength in DOMAIN_RIDGES:
        scores = np.full(second.size, level)
        for k in range(FOLDS):
            train, held = fold != k, fold == k
            if held.any() and second[train].any() and not second[train].all():
                scores[held] = matrix[held] @ _logistic(matrix[train], outcome[train], strength)
        loss = float((np.logaddexp(0.0, scores) - outcome * scores).sum())
        if loss < least:
            best, least = scores, loss
    line = np.stack([np.ones(best.size), best], axis=1)
    return _sigmoid(line @ _logistic(line, outcome, 1e-3))


def _logistic(matrix: FloatArray, outcome: FloatArray, strength: float) -> FloatArray:
    """Coefficients that maximise the penalised likelihood, by Newton steps with halving; the first column is not penalised."""
    penalty = np.full(matrix.shape[1], strength)
    penalty[0] = 1e-6
    weights = np.zeros(matrix.shape[1])

    def height(w: FloatArray) -> float:
        score = matrix @ w
        return float(outcome @ score - np.logaddexp(0.0, score).sum() - 0.5 * (penalty * w**2).sum())

    best = height(weights)
    for _ in range(25):
        p = _sigmoid(matrix @ weights)
        slope = matrix.T @ (outcome - p) - penalty * weights
        bend = (matrix * (p * (1 - p))[:, None]).T @ matrix + np.diag(penalty)
        step = np.linalg.solve(bend, slope)
        size = 1.0
        while size > 1e-4 and height(weights + size * step) < best:
            size /= 2
        weights = weights + size * step
        now = height(weights)
        if now - best < 1e-7 * (1 + abs(best)):
            break
        best = now
    return weights


def _sigmoid(score: FloatArray) -> FloatArray:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(score, -35.0, 35.0))), dtype=np.float64)


def _offsets(wide: FloatArray, y: IntArray, fold: IntArray, classes: int) -> FloatArray:
    """(FOLDS, N, C) scores of the model that reads z alike in both domains, for every row, fitted without each fold."""
    out = np.zeros((FOLDS, y.size, classes))
    truth = np.eye(classes)[y]
    penalty = np.full(wide.shape[1], RIDGE)
    penalty[0] = 0.1
    for k in range(FOLDS):
        train = fold != k
        out[k] = wide @ _multinomial(wide[train], truth[train], penalty)
    return out


def _multinomial(matrix: FloatArray, truth: FloatArray, penalty: FloatArray) -> FloatArray:
    """(K, C) coefficients of a penalised multinomial logistic model, by L-BFGS."""
    from scipy.optimize import minimize

    columns, classes = matrix.shape[1], truth.shape[1]

    def objective(flat: FloatArray) -> tuple[float, FloatArray]:
        weights = flat.reshape(columns, classes)
        p, loss = _softmax_loss(matrix @ weights, truth)
        gradient = matrix.T @ (p - truth) + penalty[:, None] * weights
        return float(loss.sum() + 0.5 * (penalty[:, None] * weights**2).sum()), gradient.ravel()

    found = minimize(objective, np.zeros(columns * classes), jac=True, method="L-BFGS-B", options={"maxiter": 200})
    return np.asarray(found.x.reshape(columns, classes), dtype=np.float64)


def _softmax_loss(scores: FloatArray, truth: FloatArray) -> tuple[FloatArray, FloatArray]:
    shifted = scores - scores.max(axis=-1, keepdims=True)
    raised = np.exp(shifted)
    total = raised.sum(axis=-1, keepdims=True)
    return raised / total, np.log(total[..., 0]) - (shifted * truth).sum(axis=-1)


def _draws(chance: FloatArray, codes: IntArray, resamples: int, seed: int) -> BoolArray:
    """(B, N) domains drawn anew; rows of one cluster share theirs, which is drawn from the mean chance of its rows."""
    units = np.unique(codes, return_inverse=True)[1]
    mean = np.bincount(units, chance) / np.bincount(units)
    drawn = generator(seed, "concept_draws").random((resamples, mean.size)) < mean
    return np.asarray(drawn[:, units], dtype=np.bool_)


def _losses(offset: FloatArray, z: FloatArray, y: IntArray, second: BoolArray, chance: FloatArray, fold: IntArray) -> FloatArray:
    """(B, N) log-loss saved on each held-out row when slopes on z may differ between the domains of each draw.

    Both models start from the scores of the common model. The domain enters as its distance from P(target | z), so that what z says of the
    domain takes no part; levels alone first, then levels and slopes. All draws are fitted together.
    """
    with_level = np.concatenate([np.ones((z.shape[0], 1)), z], axis=1)
    out = np.zeros(second.shape)
    step = max(1, _CHUNK // (z.shape[0] * offset.shape[2]))
    for k in range(FOLDS):
        train, held = fold != k, fold == k
        if not held.any():
            continue
        # classes first: sums over them then run along whole arrays
        known, asked = np.ascontiguousarray(offset[k][train].T), np.ascontiguousarray(offset[k][held].T)
        for start in range(0, second.shape[0], step):
            part = slice(start, start + step)
            moved = second[part].astype(np.float64) - chance
            saved = np.zeros((moved.shape[0], int(held.sum())))
            for matrix, sign in ((with_level[:, :1], 1.0), (with_level, -1.0)):
                weights = _domain_effects(known, matrix[train], y[train], moved[:, train])
                saved += sign * _log_loss(_scores(asked, matrix[held], moved[:, held], weights), y[held])
            out[part, held] = saved
    return out


def _scores(offset: FloatArray, matrix: FloatArray, moved: FloatArray, weights: FloatArray) -> FloatArray:
    """(C, B, n) scores of every class and draw: the offset (C, n) and what the domain adds, moved (B, n) times matrix (n, K) times weights."""
    return np.stack([offset[c] + moved * (weights[c] @ matrix.T) for c in range(offset.shape[0])])


def _probabilities(scores: FloatArray) -> FloatArray:
    """Softmax over the first axis, in place."""
    scores -= scores.max(axis=0)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=0)
    return scores


def _log_loss(scores: FloatArray, y: IntArray) -> FloatArray:
    top = scores.max(axis=0)
    own = np.take_along_axis(scores, np.broadcast_to(y, scores.shape[1:])[None], axis=0)[0]
    return np.asarray(np.log(np.exp(scores - top).sum(axis=0)) + top - own, dtype=np.float64)


def _domain_effects(offset: FloatArray, matrix: FloatArray, y: IntArray, moved: FloatArray) -> FloatArray:
    """(C, B, K) penalised coefficients of domain x matrix on top of the offset (C, n), for every draw at once.

    Steps of a bound on the curvature (probabilities for p(1 - p), exact where classes are even).
    """
    rows, columns = matrix.shape
    draws, classes = moved.shape[0], offset.shape[0]
    penalty = np.full(columns, RIDGE)
    penalty[0] = 1.0
    weights = np.zeros((classes, draws, columns))
    pairs = (matrix[:, :, None] * matrix[:, None, :]).reshape(rows, columns * columns)
    square = moved**2
    for _ in range(STEPS):
        p = _probabilities(_scores(offset, matrix, moved, weights))
        for c in range(classes):
            slope = (moved * ((y == c) - p[c])) @ matrix - penalty * weights[c]
            bend = ((square * p[c]) @ pairs).reshape(draws, columns, columns) + np.diag(penalty)
            weights[c] += np.linalg.solve(bend, slope[:, :, None])[:, :, 0]
    return weights
