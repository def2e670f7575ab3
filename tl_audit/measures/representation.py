"""How far two sets of features of the same samples differ (TLA403)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from tl_audit.errors import DataError
from tl_audit.measures.arrays import finite_matrix, same_length
from tl_audit.measures.estimate import Estimate, FloatArray, IntArray, build_ladder, t_quantile
from tl_audit.measures.intervals import mean
from tl_audit.measures.sampling import cluster_codes, generator

_CHUNK = 4_000_000  # numbers of a distance matrix held at once


# ---------------------------------------------------------------- CKA


@dataclass(frozen=True)
class CkaSums:
    """Unbiased HSIC of each batch of rows; merges by concatenation.

    Attributes
    ----------
    xy, xx, yy : (batches,) HSIC1 of both features, of the first with itself, of the second with itself
    rows : rows used
    """

    xy: FloatArray
    xx: FloatArray
    yy: FloatArray
    rows: int

    def merge(self, other: CkaSums) -> CkaSums:
        """Sums of both: the same as those of all batches together."""
        return CkaSums(
            np.concatenate([self.xy, other.xy]),
            np.concatenate([self.xx, other.xx]),
            np.concatenate([self.yy, other.yy]),
            self.rows + other.rows,
        )


def hsic1(x: ArrayLike, y: ArrayLike) -> float:
    """Unbiased linear Hilbert-Schmidt independence criterion of (b, D) and (b, E), b >= 4; mean 0 for independent features.

    References
    ----------
    Song et al. (2012). Feature selection via dependence maximization. JMLR 13.
    """
    a, b = finite_matrix(x, "first features"), finite_matrix(y, "second features")
    if same_length(first_features=a.shape[0], second_features=b.shape[0]) < 4:
        raise DataError(f"unbiased HSIC needs at least 4 rows, got {a.shape[0]}")
    return _hsic1(_gram(a), _gram(b))


def cka_sums(x: ArrayLike, y: ArrayLike, *, batch: int | None = None, cluster: ArrayLike | None = None, seed: int = 0) -> CkaSums:
    """HSIC sums of batches of rows in random order, clusters kept together where batches allow it.

    Parameters
    ----------
    x, y : (N, D) and (N, E), features of the same samples
    batch : rows of a batch, at least 32; by default N/20 between 32 and 256
    """
    a, b = finite_matrix(x, "first features"), finite_matrix(y, "second features")
    n = same_length(first_features=a.shape[0], second_features=b.shape[0])
    values: list[tuple[float, float, float]] = []
    for rows in _batches(n, batch, cluster, seed):
        k, l = _gram(a[rows]), _gram(b[rows])
        values.append((_hsic1(k, l), _hsic1(k, k), _hsic1(l, l)))
    table = np.array(values, dtype=np.float64).reshape(-1, 3)
    return CkaSums(table[:, 0], table[:, 1], table[:, 2], n)


def cka_of(sums: CkaSums) -> Estimate:
    """CKA from batch sums (1 for features equal up to rotation and scale, about 0 for unrelated ones, may lie below 0).

    Interval: jackknife over batches with t. Undefined for constant features or fewer than 4 rows.
    """
    base = Estimate(None, sums.rows, details={"batches": int(sums.xy.size), "method": "jackknife over batches"})
    if sums.xy.size == 0:
        return replace(base, reason="fewer than 4 rows")
    xy, xx, yy = sums.xy.sum(), sums.xx.sum(), sums.yy.sum()
    if xx <= 0 or yy <= 0:
        return replace(base, reason="constant features: no similarity is defined")
    value = float(xy / np.sqrt(xx * yy))
    base = replace(base, value=value)
    batches = sums.xy.size
    left_x, left_y = xx - sums.xx, yy - sums.yy
    if batches < 2 or (left_x <= 0).any() or (left_y <= 0).any():
        return replace(base, reason="too few batches for an interval")
    left = (xy - sums.xy) / np.sqrt(left_x * left_y)
    error = float(np.sqrt((batches - 1) / batches * ((left - left.mean()) ** 2).sum()))

    def bounds(alpha: float) -> tuple[float, float]:
        half = error * t_quantile(alpha, batches - 1)
        return value - half, value + half

    return replace(base, ladder=build_ladder(bounds))


def linear_cka(x: ArrayLike, y: ArrayLike, *, batch: int | None = None, cluster: ArrayLike | None = None, seed: int = 0) -> Estimate:
    """Minibatch linear CKA of two features of the same samples: HSIC1 summed over batches first, divided last. Not clipped.

    References
    ----------
    Kornblith et al. (2019). Similarity of neural network representations revisited. arXiv:1905.00414
    Nguyen, Raghu, Kornblith (2021). Do wide and deep networks learn the same things? arXiv:2010.15327
    """
    return cka_of(cka_sums(x, y, batch=batch, cluster=cluster, seed=seed))


def cka_table(
    first: Sequence[ArrayLike], second: Sequence[ArrayLike], *, batch: int | None = None, cluster: ArrayLike | None = None, seed: int = 0
) -> tuple[tuple[Estimate, ...], ...]:
    """`linear_cka` of every layer of one list with every layer of the other, (L1, L2), on the same rows.

    The kernel of a layer is made once for each batch, and all pairs of layers are one product of them.

    Parameters
    ----------
    first, second : (N, D_l) each, features of the same samples
    """
    sides = [[finite_matrix(x, "features of a layer") for x in side] for side in (first, second)]
    if not sides[0] or not sides[1]:
        raise DataError("no layers to compare: expected at least one on each side")
    n = sides[0][0].shape[0]
    for x in (*sides[0], *sides[1]):
        same_length(first_layer=n, another_layer=x.shape[0])
    xy, xx, yy = [], [], []
    for rows in _batches(n, batch, cluster, seed):
        left, right = (np.stack([_centred_gram(x[rows]).ravel() for x in side]) for side in sides)
        scale = rows.size * (rows.size - 3)
        xy.append(left @ right.T / scale)
        xx.append(np.einsum("lb,lb->l", left, left) / scale)
        yy.append(np.einsum("lb,lb->l", right, right) / scale)
    if not xy:
        return tuple(tuple(Estimate(None, n, "fewer than 4 rows") for _ in sides[1]) for _ in sides[0])
    pairs, own, others = np.array(xy), np.array(xx), np.array(yy)
    return tuple(
        tuple(cka_of(CkaSums(pairs[:, i, j], own[:, i], others[:, j], n)) for j in range(len(sides[1]))) for i in range(len(sides[0]))
    )


def cka_drift(x: ArrayLike, y: ArrayLike, *, batch: int | None = None, cluster: ArrayLike | None = None, seed: int = 0) -> Estimate:
    """1 - `linear_cka` (null 0 for no change, about 1 for unrelated features)."""
    cka = linear_cka(x, y, batch=batch, cluster=cluster, seed=seed)
    if cka.value is None:
        return replace(cka, null=0.0)
    return replace(cka, value=1 - cka.value, null=0.0, ladder=tuple((alpha, 1 - high, 1 - low) for alpha, low, high in cka.ladder))


# ---------------------------------------------------------------- two other rulers


def procrustes_distance(x: ArrayLike, y: ArrayLike) -> Estimate:
    """Squared distance of two centred features of unit norm after the best rotation, 2 - 2‖XᵀY‖_* (0–2, null 0 for no change)."""
    a, b = finite_matrix(x, "first features"), finite_matrix(y, "second features")
    n = same_length(first_features=a.shape[0], second_features=b.shape[0])
    if n == 0:
        return Estimate(None, 0, "no rows", null=0.0)
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    norms = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if min(norms) <= 1e-12:
        return Estimate(None, n, "constant features: no distance is defined", null=0.0)
    left, right = _reduced(a / norms[0]), _reduced(b / norms[1])
    value = 2 - 2 * float(np.linalg.svd(left.T @ right, compute_uv=False).sum())
    return Estimate(max(0.0, value), n, "one number of all rows: no interval", null=0.0)


def neighbour_overlap(x: ArrayLike, y: ArrayLike, *, neighbours: int = 10, cluster: ArrayLike | None = None) -> Estimate:
    """Mean Jaccard overlap of the nearest neighbours of each row in both features (0–1, 1 for no change).

    ``null``: k/(2(n-1)-k), about what unrelated features give. t over rows or clusters. Needs more than ``neighbours`` + 1 rows.
    """
    a, b = finite_matrix(x, "first features"), finite_matrix(y, "second features")
    n = same_length(first_features=a.shape[0], second_features=b.shape[0])
    if n <= neighbours + 1:
        return Estimate(None, n, f"{neighbours} neighbours need at least {neighbours + 2} rows")
    if float(np.ptp(a, axis=0).max(initial=0.0)) == 0 or float(np.ptp(b, axis=0).max(initial=0.0)) == 0:
        return Estimate(None, n, "constant features: no neighbours are defined")
    first, second = _nearest(a, neighbours), _nearest(b, neighbours)
    shared = np.array([np.intersect1d(first[row], second[row], assume_unique=True).size for row in range(n)], dtype=np.float64)
    result = mean(shared / (2 * neighbours - shared), cluster=cluster, bounds=(0.0, 1.0))
    return replace(result, null=neighbours / (2 * (n - 1) - neighbours))


# ---------------------------------------------------------------- inside


def _batches(n: int, batch: int | None, cluster: ArrayLike | None, seed: int) -> Iterator[IntArray]:
    """Rows of each batch of at least 4, in random order, clusters kept together where batches allow it."""
    size = max(32, min(256, n // 20)) if batch is None else batch
    if size < 32:
        raise DataError(f"batches of {size} rows are too small: expected at least 32")
    codes = cluster_codes(cluster, n)
    rank = generator(seed, "cka").permutation(int(codes.max()) + 1) if n else np.zeros(0)
    order = np.argsort(rank[codes], kind="stable") if n else np.zeros(0, dtype=np.int64)
    cuts = list(range(0, n, size))
    if len(cuts) > 1 and n - cuts[-1] < 32:
        cuts.pop()  # a last batch that is too small joins the one before
    for start, stop in pairwise([*cuts, n]):
        if stop - start >= 4:
            yield order[start:stop]


def _centred_gram(x: FloatArray) -> FloatArray:
    """Linear kernel centred so that the product of two of these is b(b - 3) times their unbiased HSIC.

    References
    ----------
    Székely, Rizzo (2014). Partial distance correlation with methods for dissimilarities. Annals of Statistics 42.
    """
    gram = _gram(x)
    b = gram.shape[0]
    rows = gram.sum(axis=1)
    gram -= rows[:, None] / (b - 2)
    gram -= rows[None, :] / (b - 2)
    gram += rows.sum() / ((b - 1) * (b - 2))
    np.fill_diagonal(gram, 0.0)
    return gram


def _gram(x: FloatArray) -> FloatArray:
    """Linear kernel without its diagonal; centred first, which changes nothing but the rounding."""
    centred = x - x.mean(axis=0)
    gram: FloatArray = centred @ centred.T
    np.fill_diagonal(gram, 0.0)
    return gram


def _hsic1(k: FloatArray, l: FloatArray) -> float:
    b = k.shape[0]
    rows_k, rows_l = k.sum(axis=1), l.sum(axis=1)
    total = float((k * l).sum()) + float(rows_k.sum() * rows_l.sum()) / ((b - 1) * (b - 2)) - 2 / (b - 2) * float(rows_k @ rows_l)
    return float(total / (b * (b - 3)))


def _reduced(x: FloatArray) -> FloatArray:
    """The same rows in at most N columns: the nuclear norm of a product sees no rotation."""
    if x.shape[1] <= x.shape[0]:
        return x
    triangle = np.linalg.qr(x.T).R
    return np.asarray(triangle.T, dtype=np.float64)


def _nearest(x: FloatArray, k: int) -> IntArray:
    centred = x - x.mean(axis=0)
    squares = (centred**2).sum(axis=1)
    n = x.shape[0]
    result = np.empty((n, k), dtype=np.int64)
    step = max(1, _CHUNK // n)
    for start in range(0, n, step):
        stop = min(start + step, n)
        distance = squares[None, :] - 2 * (centred[start:stop] @ centred.T)
        distance[np.arange(stop - start), np.arange(start, stop)] = np.inf
        result[start:stop] = np.argpartition(distance, k, axis=1)[:, :k]
    return result
