"""How useful features are for labels, before anything is trained on them (TLA404, ``rank_bases``).

Everything works on the singular values and left singular vectors of the features, found once per set of features. What the measures
would be without some of the rows follows from them in closed form, so that a jackknife costs no further decomposition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg, sparse

from tl_audit.errors import DataError
from tl_audit.measures.arrays import class_vector, finite_matrix, same_length
from tl_audit.measures.estimate import Estimate, FloatArray, IntArray, build_ladder, t_quantile
from tl_audit.measures.sampling import cluster_codes, generator

BLOCKS = 50
"""Blocks of the jackknife, where there are as many rows or clusters."""

PERMUTATIONS = 20
COMPONENTS = 64
"""Principal components that the Bhattacharyya coefficient looks at (Pándy et al. 2022)."""

_RANK = 1e-12  # squared singular values below this share of the largest one are rounding
_FLOOR = 1e-6  # least variance of a class, as a share of the mean variance of a component
_SPAN = np.log(1e8)
_EMPTY = 1e-300
_UNUSED = 10.0  # a ratio of precisions so far (in logs) above the largest square leaves the features unused
_SMALLER = (0.0, 2.0, 4.0, 7.0)
Variances = Literal["along_means", "spherical", "diagonal"]
VARIANCES: tuple[Variances, ...] = ("along_means", "spherical", "diagonal")


@dataclass(frozen=True)
class Spectrum:
    """Features in the coordinates of their own directions.

    Attributes
    ----------
    left : (N, k) left singular vectors of nonzero singular values
    squares : (k,) squared singular values
    width : D, columns of the features
    centred : the mean of every column was taken off first
    """

    left: FloatArray
    squares: FloatArray
    width: int
    centred: bool

    @property
    def rows(self) -> int:
        return int(self.left.shape[0])

    @property
    def effective_rows(self) -> int:
        """N, or N - 1 where the mean was taken off: the constant direction is gone."""
        return self.rows - self.centred

    @cached_property
    def scores(self) -> FloatArray:
        """(N, k) the rows in these coordinates: distances and products are those of the features."""
        return np.asarray(self.left * np.sqrt(self.squares), dtype=np.float64)


def spectrum(features: ArrayLike, *, centred: bool) -> Spectrum | None:
    """Singular values and left singular vectors of (N, D) features, from the smaller of the two Gram matrices; None if all are 0."""
    f = finite_matrix(features, "features")
    n, d = f.shape
    if n == 0 or d == 0:
        return None
    largest = float(np.abs(f).max())
    if centred:
        f = f - f.mean(axis=0)
    if float(np.abs(f).max()) <= max(1e-13 * largest, _EMPTY):  # what centring leaves of a constant is rounding
        return None
    values, vectors = np.linalg.eigh(f.T @ f if n > d else f @ f.T)
    keep = values > _RANK * max(float(values[-1]), np.finfo(np.float64).tiny)
    if centred and n <= d:
        keep[0] = False  # the direction of the mean, which rounding may hold above the threshold
    values, vectors = values[keep], vectors[:, keep]
    if values.size == 0:
        return None
    left = f @ vectors / np.sqrt(values) if n > d else vectors
    return Spectrum(np.asarray(left, dtype=np.float64), np.asarray(values, dtype=np.float64), d, centred)


# ---------------------------------------------------------------- evidence


class _Evidence:
    """Largest log evidence per row of one-hot columns under a linear model with both precisions free.

    With ``gain``: of the centred columns, less the evidence without features. ``value`` is the mean over columns.
    """

    def __init__(self, found: Spectrum, labels: IntArray, classes: int, *, gain: bool) -> None:
        self.found, self.labels, self.gain = found, labels, gain
        counts = np.bincount(labels, minlength=classes)
        shown = counts > 0
        if gain:
            shown &= counts < labels.size
        self.columns = np.flatnonzero(shown)
        y = (labels[:, None] == self.columns[None, :]).astype(np.float64)
        self.y = y - y.mean(axis=0) if found.centred else y
        self.inner = found.left.T @ self.y
        rest = np.maximum(0.0, (self.y**2).sum(axis=0) - (self.inner**2).sum(axis=0))
        self.values, self.log_ratio = _best_ratio(found.squares, self.inner**2, rest, found.effective_rows)
        if gain:
            self.values = self.values - _no_features((self.y**2).sum(axis=0), found.effective_rows)

    @property
    def value(self) -> float | None:
        return float(self.values.mean()) if self.columns.size else None

    @cached_property
    def precisions(self) -> tuple[FloatArray, FloatArray]:
        """(a, b) per column: of the weights, and of the noise."""
        ratio = np.exp(self.log_ratio)
        shrunk = self.found.squares[:, None] / (ratio + self.found.squares[:, None])
        q = np.maximum((self.y**2).sum(axis=0) - (shrunk * self.inner**2).sum(axis=0), _EMPTY)
        noise = self.found.effective_rows / q
        return ratio * noise, noise

    def without(self, unit: IntArray, units: int) -> FloatArray:
        """(units,) the value without each unit of rows, at the ratio of precisions found with all of them; NaN where undefined.

        A column that found no use for the features could find one without some rows: it is also tried at a few smaller ratios.
        """
        if not self.columns.size:
            return np.full(units, np.nan)
        top = float(np.log(self.found.squares.max()))
        sizes = np.bincount(unit, minlength=units)
        order = np.argsort(unit, kind="stable")
        rows = [order[end - size : end] for end, size in zip(np.cumsum(sizes), sizes, strict=True)]
        kept = self._kept(unit, units)
        values = self._without(self.log_ratio, rows, kept)
        unused = self.log_ratio > top + _UNUSED
        for step in _SMALLER if unused.any() else ():
            values = np.fmax(values, self._without(np.where(unused, top + step, self.log_ratio), rows, kept))
        known = np.isfinite(values)
        total = np.where(known, values, 0.0).sum(axis=1)
        return np.where(known.any(axis=1), total / np.maximum(known.sum(axis=1), 1), np.nan)

    def _kept(self, unit: IntArray, units: int) -> FloatArray:
        """(units, columns) rows of each column's class that stay."""
        table = np.zeros((units, int(max(self.labels.max(), self.columns.max())) + 1))
        np.add.at(table, (unit, self.labels), 1.0)
        return np.asarray(table.sum(axis=0)[self.columns] - table[:, self.columns], dtype=np.float64)

    def _without(self, log_ratio: FloatArray, rows: Sequence[IntArray], kept: FloatArray) -> FloatArray:
        """(units, columns) evidence without each unit at these ratios; NaN where a column is constant then.

        Rows that go take a conditional density with them, whose covariance is the inverse of their block of the precision matrix.
        """
        n, centred = self.found.rows, self.found.centred
        ratio = np.exp(log_ratio)
        shrunk = self.found.squares[:, None] / (ratio + self.found.squares[:, None])
        residual = self.y - self.found.left @ (shrunk * self.inner)
        q = (self.y * residual).sum(axis=0)
        log_det = -np.log1p(self.found.squares[:, None] / ratio).sum(axis=0)
        quadratic, block_det = np.zeros((2, len(rows), self.columns.size))
        alone = np.array([u for u, which in enumerate(rows) if which.size == 1], dtype=np.int64)
        if alone.size:
            single = np.array([rows[u][0] for u in alone], dtype=np.int64)
            own = np.maximum(1.0 - centred / n - (self.found.left[single] ** 2) @ shrunk, _EMPTY)
            quadratic[alone], block_det[alone] = residual[single] ** 2 / own, np.log(own)
        for u, which in enumerate(rows):
            if which.size > 1:
                left = self.found.left[which]
                for c in range(self.columns.size):
                    block = np.eye(which.size) - centred / n - (left * shrunk[:, c]) @ left.T
                    quadratic[u, c], block_det[u, c] = _form_and_log_det(block, residual[which, c])
        stay = n - np.array([which.size for which in rows], dtype=np.float64)[:, None]
        m = stay - centred
        known = (kept > 0) & (m >= 2) & ((kept < stay) if self.gain else True)
        with np.errstate(divide="ignore", invalid="ignore"):
            det = log_det - block_det + (np.log(stay / n) if centred else 0.0)
            values = (det + m * np.log(m / np.maximum(q - quadratic, _EMPTY)) - m - m * np.log(2 * np.pi)) / (2 * m)
            if self.gain:
                values = values - _no_features(kept * (1 - kept / stay), m)
        return np.where(known, values, np.nan)


def _form_and_log_det(block: FloatArray, r: FloatArray) -> tuple[float, float]:
    """rᵀ B⁻¹ r and ln det B of a block with eigenvalues from 0 to 1; 0 where its rows alone fix the fit."""
    try:
        factor = np.linalg.cholesky(block)
        half = linalg.solve_triangular(factor, r, lower=True, check_finite=False)
        return float(half @ half), 2 * float(np.log(np.diagonal(factor)).sum())
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(block)
        values = np.maximum(values, 1e-15)
        return float((((vectors.T @ r) ** 2) / values).sum()), float(np.log(values).sum())


def _best_ratio(squares: FloatArray, x2: FloatArray, rest: FloatArray, n: int) -> tuple[FloatArray, FloatArray]:
    """Per column the largest log evidence per row, and the log of the ratio of precisions where it lies. One search for all columns."""
    centre = float(np.log(squares.max()))
    columns = np.arange(x2.shape[1])
    grid = np.linspace(centre - _SPAN, centre + _SPAN, 400)
    t = np.exp(grid)[:, None]
    weight = t / (t + squares)
    scores = _score(weight @ x2 + rest, np.log(weight).sum(axis=1)[:, None], n)
    best = scores.argmax(axis=0)
    low, high = grid[np.maximum(0, best - 1)], grid[np.minimum(grid.size - 1, best + 1)]

    def at(log_t: FloatArray) -> FloatArray:
        share = np.exp(log_t) / (np.exp(log_t) + squares[:, None])
        return _score((x2 * share).sum(axis=0) + rest, np.log(share).sum(axis=0), n)

    golden = (np.sqrt(5) - 1) / 2
    inner, outer = high - golden * (high - low), low + golden * (high - low)
    f_inner, f_outer = at(inner), at(outer)
    for _ in range(28):  # to a millionth of the bracket; the evidence is flat to second order there
        left = f_inner >= f_outer
        high, low = np.where(left, outer, high), np.where(left, low, inner)
        fresh = np.where(left, high - golden * (high - low), low + golden * (high - low))
        f_fresh = at(fresh)
        inner, outer = np.where(left, fresh, outer), np.where(left, inner, fresh)
        f_inner, f_outer = np.where(left, f_fresh, f_outer), np.where(left, f_inner, f_fresh)
    log_t = np.asarray((low + high) / 2, dtype=np.float64)
    value, on_grid = at(log_t), scores[best, columns]
    return np.maximum(value, on_grid), np.where(value >= on_grid, log_t, grid[best])


def _score(q: FloatArray, shrink: FloatArray, n: int) -> FloatArray:
    return np.asarray((shrink + n * np.log(n / np.maximum(q, _EMPTY)) - n - n * np.log(2 * np.pi)) / (2 * n), dtype=np.float64)


def _no_features(power: FloatArray, rows: FloatArray | int) -> FloatArray:
    """Evidence per row of a normal variable with this sum of squares, at its best variance."""
    return np.asarray(-0.5 * (np.log(2 * np.pi * power / rows) + 1), dtype=np.float64)


# ---------------------------------------------------------------- H_alpha


class _HAlpha:
    """tr(Σ_α⁻¹ (1-α) cov(E[F|y])) of centred features, with the shrinkage α of Ledoit and Wolf."""

    def __init__(self, found: Spectrum, labels: IntArray, classes: int) -> None:
        self.found, self.labels = found, labels
        self.columns = np.unique(labels)
        self.place = np.searchsorted(self.columns, labels)
        self.x = found.scores
        self.length = (self.x**2).sum(axis=1)
        self.counts = np.bincount(self.place).astype(np.float64)
        self.sums = _class_sums(self.place, self.x)
        n = found.rows
        self.shrinkage, mean = _ledoit_wolf(
            n, found.width, float((self.length**2).sum()), float((found.squares**2).sum()), found.squares.sum()
        )
        scale = (1 - self.shrinkage) * found.squares / n + self.shrinkage * mean
        means = self.sums / self.counts[:, None]
        self.value: float | None = float((1 - self.shrinkage) * ((self.counts / n) @ (means**2 / scale).sum(axis=1)))

    def without(self, unit: IntArray, units: int) -> FloatArray:
        """(units,) the value without each unit of rows, shrinkage and means found anew; NaN where undefined."""
        n, width, squares = self.found.rows, self.found.width, self.found.squares
        fourth, second = float((self.length**2).sum()), float(self.length.sum())
        lean = self.length @ self.x
        sizes = np.bincount(unit, minlength=units)
        order = np.argsort(unit, kind="stable")
        ends = np.cumsum(sizes)
        out = np.full(units, np.nan)
        for u in range(units):
            rows = order[ends[u] - sizes[u] : ends[u]]
            left = n - rows.size
            if left < 2:
                continue
            block = self.x[rows]
            gone = block.sum(axis=0)
            shift = -gone / left  # the mean of the rows that stay
            taken = np.vstack([block, gone / np.sqrt(left)])  # what the scatter matrix loses is taken' taken
            inner = taken @ taken.T
            scatter = float((squares**2).sum() - 2 * ((taken**2) @ squares).sum() + (inner**2).sum())
            d2 = float(shift @ shift)
            lengths = (
                fourth + 4 * float(squares @ shift**2) + n * d2**2 - 4 * float(lean @ shift) + 2 * d2 * second
            )  # the rows sum to 0: no term in their sum
            lengths -= float((((block - shift) ** 2).sum(axis=1) ** 2).sum())
            shrinkage, mean = _ledoit_wolf(left, width, lengths, scatter, float(squares.sum() - np.trace(inner)))
            diagonal = (1 - shrinkage) * squares + shrinkage * mean * left
            if not (diagonal > 0).all():
                continue
            counts, sums = self.counts.copy(), self.sums.copy()
            np.subtract.at(counts, self.place[rows], 1.0)
            np.subtract.at(sums, self.place[rows], block)
            stay = counts > 0.5
            means = sums[stay] / counts[stay, None] - shift
            scaled = means / diagonal
            middle = np.eye(len(taken)) - (1 - shrinkage) * (taken / diagonal) @ taken.T
            side = scaled @ taken.T
            try:
                solved = np.linalg.solve(middle, side.T).T
            except np.linalg.LinAlgError:
                continue
            form = (means * scaled).sum(axis=1) + (1 - shrinkage) * (side * solved).sum(axis=1)
            out[u] = (1 - shrinkage) * float(counts[stay] @ form)
        return out


def _ledoit_wolf(n: int, width: int, fourth: float, scatter: float, trace: float) -> tuple[float, float]:
    """Shrinkage 0–1 and mean variance, from Σ‖x‖⁴, ‖XᵀX‖² and tr(XᵀX) of centred rows.

    References
    ----------
    Ledoit, Wolf (2004). A well-conditioned estimator for large-dimensional covariance matrices. J. Multivariate Analysis 88.
    """
    mean = float(trace) / n / width
    spread = max(0.0, scatter / n**2 - width * mean**2) / width
    noise = min(max(0.0, fourth / n - scatter / n**2) / (width * n), spread)
    return (noise / spread if noise > 0 else 0.0), mean


def _class_sums(place: IntArray, x: FloatArray) -> FloatArray:
    """(C, k) sums of the rows of each class."""
    member = sparse.csr_array((np.ones(place.size), (place, np.arange(place.size))))
    return np.asarray(member @ x, dtype=np.float64)


# ---------------------------------------------------------------- Bhattacharyya


class _Gbc:
    """Minus the sum over ordered pairs of classes of the Bhattacharyya coefficient of their normal densities, on principal components."""

    def __init__(self, found: Spectrum, labels: IntArray, classes: int, *, components: int, variances: Variances) -> None:
        order = np.argsort(found.squares)[::-1][:components]
        self.x = found.scores[:, order]
        self.variances = variances
        self.columns = np.unique(labels)
        self.place = np.searchsorted(self.columns, labels)
        self.counts = np.bincount(self.place).astype(np.float64)
        self.sums, self.powers = _class_sums(self.place, self.x), _class_sums(self.place, self.x**2)
        self.floor = _FLOOR * float((self.x**2).sum()) / self.x.size
        self.mean, self.variance = self._moments(self.counts, self.sums, self.powers)
        self.overlap = self._overlaps(np.arange(self.columns.size), self.mean, self.variance)
        np.fill_diagonal(self.overlap, 0.0)
        self.value: float | None = -float(self.overlap.sum()) if self.columns.size > 1 else None

    def _moments(self, counts: FloatArray, sums: FloatArray, powers: FloatArray) -> tuple[FloatArray, FloatArray]:
        mean = sums / counts[:, None]
        variance = powers / counts[:, None] - mean**2
        if self.variances != "diagonal":
            variance = variance.mean(axis=1, keepdims=True)
        return mean, np.maximum(variance, self.floor)

    def _overlaps(self, which: IntArray, mean: FloatArray, variance: FloatArray) -> FloatArray:
        """(len(which), C) coefficients of some classes with all."""
        out = np.empty((which.size, mean.shape[0]))
        wide = np.broadcast_to(variance, mean.shape)  # a spherical variance counts once per component
        times = 1 / mean.shape[1] if self.variances == "along_means" else 1.0
        logs = times * np.log(wide).sum(axis=1)
        for i, c in enumerate(which):
            both = (wide + wide[c]) / 2
            distance = ((mean - mean[c]) ** 2 / both).sum(axis=1) / 8 + 0.5 * times * np.log(both).sum(axis=1) - 0.25 * (logs + logs[c])
            out[i] = np.exp(-np.maximum(distance, 0.0))
        return out

    def without(self, unit: IntArray, units: int) -> FloatArray:
        """(units,) the value without each unit of rows, on the components of all rows; NaN where fewer than two classes stay."""
        if self.value is None:
            return np.full(units, np.nan)
        sizes = np.bincount(unit, minlength=units)
        order = np.argsort(unit, kind="stable")
        ends = np.cumsum(sizes)
        out = np.full(units, np.nan)
        for u in range(units):
            rows = order[ends[u] - sizes[u] : ends[u]]
            touched = np.unique(self.place[rows])
            counts, sums, powers = self.counts.copy(), self.sums.copy(), self.powers.copy()
            np.subtract.at(counts, self.place[rows], 1.0)
            np.subtract.at(sums, self.place[rows], self.x[rows])
            np.subtract.at(powers, self.place[rows], self.x[rows] ** 2)
            gone = counts < 0.5
            if int((~gone).sum()) < 2:
                continue
            mean, variance = self.mean.copy(), self.variance.copy()
            changed = touched[~gone[touched]]
            if changed.size:
                mean[changed], variance[changed] = self._moments(counts[changed], sums[changed], powers[changed])
            fresh = self._overlaps(changed, mean, variance)
            fresh[:, gone] = 0.0
            fresh[np.arange(changed.size), changed] = 0.0
            stay = np.ones(self.columns.size, dtype=np.bool_)
            stay[touched] = False
            out[u] = -(float(self.overlap[np.ix_(stay, stay)].sum()) + 2 * float(fresh[:, stay].sum()) + float(fresh[:, changed].sum()))
        return out


# ---------------------------------------------------------------- public measures


def logme(features: ArrayLike, labels: ArrayLike, *, classes: int, cluster: ArrayLike | None = None, seed: int = 0) -> Estimate:
    """Largest log evidence per sample of a linear model from features to one-hot labels, mean over classes (nats, higher is better).

    Exact maximum over both precisions in spectral form; features not centred. Compare only on the same rows and classes.
    Interval: delete-one-block jackknife over up to 50 blocks of rows or clusters. ``details``: the precisions at the maximum.

    References
    ----------
    You et al. (2021). LogME: practical assessment of pre-trained models for transfer learning. arXiv:2102.11005
    """
    f, y = _features_and_classes(features, labels, classes)
    found = spectrum(f, centred=False)
    return _logme(found, y, classes, _units(cluster, y.size, seed))


def logme_gain(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    classes: int,
    cluster: ArrayLike | None = None,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Estimate:
    """Evidence of centred features and labels minus that without features (0 and above, nats per sample, higher is better).

    ``null``: mean over permutations of the labels (whole clusters where sizes allow: rows inside clusters stay together).
    Interval: delete-one-block jackknife over up to 50 blocks of rows or clusters. It is a maximum that cannot fall below 0: at 0
    the interval says little, and the null is what to compare with.
    """
    f, y = _features_and_classes(features, labels, classes)
    units = _units(cluster, y.size, seed)
    return _gain(spectrum(f, centred=True), y, classes, units, _shuffles(units, permutations, seed))


def h_alpha(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    classes: int,
    cluster: ArrayLike | None = None,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Estimate:
    """Share of the features' spread that lies between classes, with a shrunk covariance, summed over directions (0 to C-1, higher is better).

    tr(Σ_α⁻¹ (1-α) cov(E[F|y])), Σ_α = (1-α)Σ + α tr(Σ)/D I, α by Ledoit and Wolf. The plain score (α = 0) reaches C-1 for pure
    noise where D >= N. ``null``: mean over permutations of the labels. Interval: delete-one-block jackknife.

    References
    ----------
    Ibrahim, Ponomareva, Mazumder (2021). Newer is not always better: rethinking transferability metrics. arXiv:2110.06893
    Bao et al. (2019). An information-theoretic approach to transferability in task transfer learning. ICIP
    """
    f, y = _features_and_classes(features, labels, classes)
    units = _units(cluster, y.size, seed)
    return _h_alpha(spectrum(f, centred=True), y, classes, units, _shuffles(units, permutations, seed))


def gbc(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    classes: int,
    components: int = COMPONENTS,
    variances: Variances = "along_means",
    cluster: ArrayLike | None = None,
    seed: int = 0,
) -> Estimate:
    """Overlap of the classes as normal densities, negative: -Σ_{i≠j} exp(-D_B(i, j)) (-C(C-1) to 0, higher is better).

    D_B is the Bhattacharyya distance on the first 64 principal components. Interval: delete-one-block jackknife on the components of all
    rows. Variances have a floor of a millionth of the mean one.

    Parameters
    ----------
    variances : "along_means": one variance per class, distance of the two normal densities along the line through their means. This is what
        the authors' code computes under the name of spherical (the determinant is counted once), so that published evaluations speak of it.
        "spherical": one variance per class in all components, |σ²I| = σ^(2p), as the formula has it: a small difference in variance then
        counts 64 times, even where the features fill a few directions. "diagonal": one variance per class and component

    References
    ----------
    Pándy et al. (2022). Transferability estimation using Bhattacharyya class separability. CVPR. arXiv:2111.12780
    """
    if variances not in VARIANCES or components < 1:
        raise DataError(f"variances are one of {', '.join(VARIANCES)} and components at least 1, not {variances!r} and {components}")
    f, y = _features_and_classes(features, labels, classes)
    units = _units(cluster, y.size, seed)
    found = spectrum(f, centred=True)
    base = Estimate(None, y.size, clusters=units.clusters, details={"components": components, "variances": variances})
    if found is None or y.size < 3:
        return replace(base, reason="fewer than three rows, or constant features")
    made = _Gbc(found, y, classes, components=components, variances=variances)
    return _with_jackknife(replace(base, value=made.value, reason=None if made.value is not None else "one class"), made, units)


@dataclass(frozen=True)
class Usefulness:
    """The measures of one set of features (TLA404), from two decompositions for all of them."""

    logme: Estimate
    logme_gain: Estimate
    h_alpha: Estimate


def usefulness(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    classes: int,
    cluster: ArrayLike | None = None,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Usefulness:
    """`logme`, `logme_gain` and `h_alpha` of the same features, labels and blocks."""
    f, y = _features_and_classes(features, labels, classes)
    units = _units(cluster, y.size, seed)
    shuffles = _shuffles(units, permutations, seed)
    plain, centred = spectrum(f, centred=False), spectrum(f, centred=True)
    return Usefulness(
        _logme(plain, y, classes, units), _gain(centred, y, classes, units, shuffles), _h_alpha(centred, y, classes, units, shuffles)
    )


MEASURES: tuple[str, ...] = ("logme", "h_alpha", "gbc")
"""What bases are ranked by: for each, higher is better."""


def deletions(features: ArrayLike, labels: ArrayLike, unit: ArrayLike, *, classes: int) -> Mapping[str, tuple[float, FloatArray]]:
    """Each of ``MEASURES``: its value, and (U,) its values without each unit of rows, in the order of the sorted units.

    Raises
    ------
    DataError : a measure is undefined (one class, constant features), or undefined without one of the units
    """
    f, y = _features_and_classes(features, labels, classes)
    codes = cluster_codes(unit, y.size)
    count = int(codes.max()) + 1 if y.size else 0
    plain, centred = spectrum(f, centred=False), spectrum(f, centred=True)
    if plain is None or centred is None or np.unique(y).size < 2:
        raise DataError("the features are the same for all samples, or all samples are of one class: nothing can be told apart by them")
    made: dict[str, _Evidence | _HAlpha | _Gbc] = {
        "logme": _Evidence(plain, y, classes, gain=False),
        "h_alpha": _HAlpha(centred, y, classes),
        "gbc": _Gbc(centred, y, classes, components=COMPONENTS, variances="along_means"),
    }
    out = {}
    for name, one in made.items():
        left = one.without(codes, count)
        if one.value is None or not np.isfinite(left).all():
            raise DataError(f"{name} is not defined when one of the {count} units of samples is left out: there are too few")
        out[name] = (float(one.value), left)
    return out


def leep(probabilities: ArrayLike, labels: ArrayLike, *, classes: int) -> Estimate:
    """Mean log-probability of the labels when each source class stands for the labels it was seen with (nats, 0 at best).

    Parameters
    ----------
    probabilities : (N, Z) of the source classes; each row sums to 1

    References
    ----------
    Nguyen et al. (2020). LEEP: a new measure to evaluate transferability of learned representations. ICML. arXiv:2002.12462
    """
    p = finite_matrix(probabilities, "probabilities")
    y = class_vector(labels, classes, "labels")
    n = same_length(probabilities=p.shape[0], labels=y.size)
    if p.size and (float(p.min()) < -1e-9 or not np.allclose(p.sum(axis=1), 1.0, atol=1e-4)):
        raise DataError("the probabilities of a row are not 1 in total, or below 0: give the softmax of the source classes")
    if n == 0:
        return Estimate(None, 0, "no rows")
    joint = np.zeros((classes, p.shape[1]))
    np.add.at(joint, y, p)
    total = joint.sum(axis=0)
    given = np.divide(joint, total, out=np.zeros_like(joint), where=total > 0)
    expected = (given[y] * p).sum(axis=1)
    return Estimate(float(np.log(np.maximum(expected, _EMPTY)).mean()), n, "measured on the rows it was fitted to: no interval")


def nce(source_labels: ArrayLike, labels: ArrayLike, *, classes: int) -> Estimate:
    """Negative conditional entropy of the labels given the source classes (nats, 0 at best).

    References
    ----------
    Tran, Nguyen, Hassner (2019). Transferability and hardness of supervised classification tasks. ICCV. arXiv:1908.08142
    """
    y = class_vector(labels, classes, "labels")
    z = np.unique(np.asarray(source_labels), return_inverse=True)[1].reshape(-1)
    n = same_length(source_labels=z.size, labels=y.size)
    if n == 0:
        return Estimate(None, 0, "no rows")
    joint = np.zeros((int(z.max()) + 1, classes))
    np.add.at(joint, (z, y), 1.0)
    share = joint[z, y] / joint.sum(axis=1)[z]
    return Estimate(float(np.log(share).mean()), n, "measured on the rows it was fitted to: no interval")


# ---------------------------------------------------------------- inside


@dataclass(frozen=True)
class _Units:
    """Independent units of rows, and the blocks of them that a jackknife leaves out."""

    codes: IntArray
    clusters: int | None
    block: IntArray
    blocks: int


def _units(cluster: ArrayLike | None, n: int, seed: int) -> _Units:
    codes = cluster_codes(cluster, n)
    count = int(codes.max()) + 1 if n else 0
    blocks = min(BLOCKS, count)
    order = generator(seed, "transferability", "blocks").permutation(count)
    block = order[codes] % blocks if n else codes
    return _Units(codes, None if cluster is None else count, np.asarray(block, dtype=np.int64), blocks)


def _shuffles(units: _Units, permutations: int, seed: int) -> tuple[IntArray, ...]:
    """Row orders with clusters in random order, rows inside them as they were."""
    if not units.codes.size:
        return ()
    rng = generator(seed, "transferability", "null")
    in_order = np.argsort(units.codes, kind="stable")
    out = []
    for _ in range(permutations):
        rank = rng.permutation(int(units.codes.max()) + 1)
        shuffled = np.empty(units.codes.size, dtype=np.int64)
        shuffled[in_order] = np.argsort(rank[units.codes], kind="stable")
        out.append(shuffled)
    return tuple(out)


def _logme(found: Spectrum | None, y: IntArray, classes: int, units: _Units) -> Estimate:
    base = Estimate(None, y.size, clusters=units.clusters)
    if y.size < 2:
        return replace(base, reason="fewer than two rows")
    if found is None:
        return replace(base, reason="all features are 0")
    made = _Evidence(found, y, classes, gain=False)
    prior, noise = made.precisions
    facts = {"classes": int(made.columns.size), "weight_precision": prior.tolist(), "noise_precision": noise.tolist()}
    return _with_jackknife(replace(base, value=made.value, details=facts), made, units)


def _gain(found: Spectrum | None, y: IntArray, classes: int, units: _Units, shuffles: tuple[IntArray, ...]) -> Estimate:
    base = Estimate(None, y.size, clusters=units.clusters)
    made = _Evidence(found, y, classes, gain=True) if found is not None and y.size >= 3 else None
    if found is None or made is None or made.value is None:
        return replace(base, reason="fewer than three rows, one class, or constant features")
    null = [_Evidence(found, y[order], classes, gain=True).value or 0.0 for order in shuffles]
    base = replace(base, value=made.value, null=float(np.mean(null)) if null else None)
    return _with_jackknife(base, made, units)


def _h_alpha(found: Spectrum | None, y: IntArray, classes: int, units: _Units, shuffles: tuple[IntArray, ...]) -> Estimate:
    base = Estimate(None, y.size, clusters=units.clusters)
    if found is None or y.size < 3 or np.unique(y).size < 2:
        return replace(base, reason="fewer than three rows, one class, or constant features")
    made = _HAlpha(found, y, classes)
    null = [_HAlpha(found, y[order], classes).value or 0.0 for order in shuffles]
    base = replace(base, value=made.value, null=float(np.mean(null)) if null else None, details={"shrinkage": made.shrinkage})
    return _with_jackknife(base, made, units)


def _with_jackknife(base: Estimate, made: _Evidence | _HAlpha | _Gbc, units: _Units) -> Estimate:
    if base.value is None:
        return base
    value = base.value
    base = replace(base, details={**base.details, "method": "jackknife over blocks", "blocks": units.blocks})
    left = made.without(units.block, units.blocks) if units.blocks > 1 else np.zeros(0)
    if units.blocks < 2 or not np.isfinite(left).all():
        return replace(base, reason="too few independent units for an interval")
    error = float(np.sqrt((units.blocks - 1) / units.blocks * ((left - left.mean()) ** 2).sum()))
    if error <= 1e-12 * max(1.0, abs(value)):
        return replace(base, reason="no block changes the value: no spread to make an interval from")

    def bounds(alpha: float) -> tuple[float, float]:
        half = error * t_quantile(alpha, units.blocks - 1)
        return value - half, value + half

    return replace(base, ladder=build_ladder(bounds))


def _features_and_classes(features: ArrayLike, labels: ArrayLike, classes: int) -> tuple[FloatArray, IntArray]:
    f = finite_matrix(features, "features")
    y = class_vector(labels, classes, "labels")
    same_length(features=f.shape[0], labels=y.size)
    return f, y
