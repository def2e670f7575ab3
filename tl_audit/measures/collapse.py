"""Whether features lie in few directions, and how tightly the samples of a class lie together (TLA405)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from tl_audit.measures.arrays import class_vector, finite_matrix, same_length
from tl_audit.measures.estimate import Estimate, FloatArray, IntArray, build_ladder, t_quantile
from tl_audit.measures.sampling import cluster_codes, generator

BLOCKS = 50
MOST_DIRECTIONS = 256
"""Directions that features are reduced to where there are fewer than two rows per column."""


@dataclass(frozen=True)
class RankChange:
    """Effective ranks before and after, and their ratio.

    Attributes
    ----------
    before, after : 1 to min(rows, columns), no direction
    ratio : after / before, null 1; its interval is a jackknife of the logarithm
    columns : directions that both were measured in
    reduced : on principal directions, not on all columns
    spread_before, spread_after : (k,) share of the sum of singular values by direction, largest first
    """

    before: Estimate
    after: Estimate
    ratio: Estimate
    columns: int
    reduced: bool
    spread_before: FloatArray
    spread_after: FloatArray


def effective_rank(features: ArrayLike) -> float | None:
    """exp of the entropy of the singular values of centred features, as shares of their sum (1 to min(N - 1, D)); None if constant.

    Centring is our convention, the published score does not centre.

    References
    ----------
    Roy, Vetterli (2007). The effective rank: a measure of effective dimensionality. EUSIPCO.
    Garrido et al. (2023). RankMe: assessing the downstream performance of pretrained representations by their rank. arXiv:2210.02885
    """
    f = finite_matrix(features, "features")
    if f.shape[0] < 2 or f.shape[1] == 0:
        return None
    f = _centred(f)
    return _rank_of(f.T @ f if f.shape[0] > f.shape[1] else f @ f.T)


def rank_change(before: ArrayLike, after: ArrayLike, *, cluster: ArrayLike | None = None, seed: int = 0) -> RankChange:
    """Effective rank of two features of the same samples, and the ratio after / before.

    With fewer than two rows per column both are measured on at most 256 principal directions (and at most half as many as rows): those
    of both together, each centred and of unit norm first, or each on its own where they differ in width. Interval: jackknife that
    leaves out one of up to 50 blocks of rows or clusters (a bootstrap would repeat rows, which lowers the rank).
    """
    a, b = finite_matrix(before, "features before"), finite_matrix(after, "features after")
    n = same_length(features_before=a.shape[0], features_after=b.shape[0])
    codes = cluster_codes(cluster, n)
    clusters = int(codes.max()) + 1 if n else 0
    base = Estimate(None, n, clusters=None if cluster is None else clusters, details={"method": "jackknife over blocks"})
    if n < 4 or min(a.shape[1], b.shape[1]) == 0:
        nothing = replace(base, reason="fewer than four rows, or no columns")
        return RankChange(nothing, nothing, replace(nothing, null=1.0), 0, False, np.zeros(0), np.zeros(0))
    a, b, reduced = _same_directions(_centred(a), _centred(b))
    columns = max(a.shape[1], b.shape[1])
    blocks = min(BLOCKS, clusters)
    block = np.asarray(generator(seed, "collapse").permutation(clusters)[codes] % blocks, dtype=np.int64)
    found = [_ranks(side, block, blocks) for side in (a, b)]
    estimates = []
    for value, left in found:
        if value is None:
            estimates.append(replace(base, reason="constant features: no rank is defined"))
        else:
            estimates.append(_jackknife(replace(base, value=value), value, left, log=True))
    (first, left_first), (second, left_second) = found
    if first is None or second is None:
        ratio = replace(base, reason="constant features: no rank is defined", null=1.0)
    else:
        ratio = _jackknife(replace(base, value=second / first, null=1.0), second / first, left_second / left_first, log=True)
    return RankChange(estimates[0], estimates[1], ratio, columns, reduced, *(_shares(x.T @ x) for x in (a, b)))


def class_variability(features: ArrayLike, labels: ArrayLike, *, classes: int, cluster: ArrayLike | None = None, seed: int = 0) -> Estimate:
    """Mean over pairs of classes of (v_c + v_c') / (2 ‖m_c - m_c'‖²), variance in a class against distance of means (0 and above).

    0: all samples of a class have the same features. Classes with fewer than two rows are left out (``details``). Interval: jackknife
    of the logarithm over up to 50 blocks of rows or clusters.

    References
    ----------
    Galanti, György, Hutter (2022). On the role of neural collapse in transfer learning. arXiv:2112.15121
    """
    f = finite_matrix(features, "features")
    y = class_vector(labels, classes, "labels")
    n = same_length(features=f.shape[0], labels=y.size)
    codes = cluster_codes(cluster, n)
    clusters = int(codes.max()) + 1 if n else 0
    counts = np.bincount(y, minlength=classes) if n else np.zeros(classes, dtype=np.int64)
    enough = np.flatnonzero(counts >= 2)
    base = Estimate(
        None,
        n,
        clusters=None if cluster is None else clusters,
        details={
            "classes": int(enough.size),
            "classes_left_out": int(((counts > 0) & (counts < 2)).sum()),
            "method": "jackknife over blocks",
        },
    )
    if enough.size < 2:
        return replace(base, reason="fewer than two classes with two rows")
    f = f - f.mean(axis=0)
    rows = np.isin(y, enough)
    place = np.searchsorted(enough, y[rows])
    f, codes = f[rows], codes[rows]
    blocks = min(BLOCKS, clusters)
    block = np.asarray(generator(seed, "collapse").permutation(clusters)[codes] % blocks, dtype=np.int64)
    number, sums, powers = _class_sums(f, place, enough.size)
    value = _variability(number, sums, powers)
    if value is None:
        return replace(base, reason="two classes have the same mean: the ratio is not defined")
    left = []
    for u in range(blocks):  # sums of one block at a time: classes times columns may be millions
        gone = _class_sums(f[block == u], place[block == u], enough.size)
        left.append(_variability(number - gone[0], sums - gone[1], powers - gone[2]))
    return _jackknife(replace(base, value=value), value, np.array([np.nan if one is None else one for one in left]), log=True)


# ---------------------------------------------------------------- inside


def _centred(f: FloatArray) -> FloatArray:
    """Less the mean of each column; exactly 0 where that leaves nothing but rounding."""
    centred = f - f.mean(axis=0)
    constant = np.abs(centred).max(axis=0) <= 1e-13 * np.abs(f).max(axis=0)
    centred[:, constant] = 0.0
    return np.asarray(centred, dtype=np.float64)


def _rank_of(gram: FloatArray) -> float | None:
    shares = _shares(gram)
    return float(np.exp(-(shares * np.log(shares)).sum())) if shares.size else None


def _shares(gram: FloatArray) -> FloatArray:
    """Singular values of the features behind a Gram matrix as shares of their sum, largest first; none for constant features."""
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))[::-1]
    top = float(values.max(initial=0.0))
    if top <= 1e-150:
        return np.zeros(0)
    values = values[values > 1e-7 * top]  # below: the rounding of a squared matrix
    return np.asarray(values / values.sum(), dtype=np.float64)


def _same_directions(a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray, bool]:
    """Both centred features in the columns they are compared in, and whether these are fewer than there were."""
    n, width = a.shape[0], max(a.shape[1], b.shape[1])
    if a.shape[1] == b.shape[1] and n >= 2 * width:
        return a, b, False
    most = max(1, min(MOST_DIRECTIONS, a.shape[1], b.shape[1], n // 2))
    if a.shape[1] != b.shape[1]:
        return _principal(a, [a], most)[0], _principal(b, [b], most)[0], True
    both = [side / max(float(np.linalg.norm(side)), 1e-300) for side in (a, b)]
    first, second = _principal(np.vstack(both), [a, b], most)
    return first, second, True


def _principal(rows: FloatArray, sides: list[FloatArray], most: int) -> list[FloatArray]:
    """Each side in the ``most`` principal directions of ``rows``."""
    if rows.shape[0] < rows.shape[1]:
        values, left = np.linalg.eigh(rows @ rows.T)
        keep = values[-most:] > 1e-12 * max(float(values[-1]), 1e-300)
        directions = rows.T @ left[:, -most:][:, keep] / np.sqrt(values[-most:][keep])
    else:
        directions = np.linalg.eigh(rows.T @ rows)[1][:, -most:]
    return [np.asarray(side @ directions, dtype=np.float64) for side in sides]


def _ranks(x: FloatArray, block: IntArray, blocks: int) -> tuple[float | None, FloatArray]:
    """Effective rank of centred rows, and without each block (NaN where undefined)."""
    gram = x.T @ x
    value = _rank_of(gram)
    left = np.full(blocks, np.nan)
    if value is None or blocks < 2:
        return value, left
    for u in range(blocks):
        gone = x[block == u]
        total = gone.sum(axis=0)
        # the mean of the rows that stay moves by -total / (n - |gone|)
        without = _rank_of(gram - gone.T @ gone - np.outer(total, total) / (x.shape[0] - gone.shape[0]))
        left[u] = np.nan if without is None else without
    return value, left


def _class_sums(f: FloatArray, place: IntArray, classes: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Rows, sums of the columns and sum of squared lengths of each class."""
    sums = np.zeros((classes, f.shape[1]))
    np.add.at(sums, place, f)
    powers = np.bincount(place, (f**2).sum(axis=1), minlength=classes).astype(np.float64)
    return np.bincount(place, minlength=classes).astype(np.float64), sums, powers


def _variability(number: FloatArray, sums: FloatArray, powers: FloatArray) -> float | None:
    stay = number > 1.5
    if int(stay.sum()) < 2:
        return None
    mean = sums[stay] / number[stay, None]
    inside = np.maximum(powers[stay] / number[stay] - (mean**2).sum(axis=1), 0.0)
    square = (mean**2).sum(axis=1)
    apart = square[:, None] + square[None, :] - 2 * mean @ mean.T
    first, second = np.triu_indices(inside.size, 1)
    if float(apart[first, second].min()) <= 1e-24 * max(float(square.max()), 1e-300):
        return None
    return float(((inside[first] + inside[second]) / (2 * apart[first, second])).mean())


def _jackknife(base: Estimate, value: float, left: FloatArray, *, log: bool) -> Estimate:
    blocks = left.size
    if blocks < 2 or not np.isfinite(left).all() or (log and (value <= 0 or (left <= 0).any())):
        return replace(base, reason="too few independent units for an interval")
    scale = np.log(left) if log else left
    error = float(np.sqrt((blocks - 1) / blocks * ((scale - scale.mean()) ** 2).sum()))

    def bounds(alpha: float) -> tuple[float, float]:
        half = error * t_quantile(alpha, blocks - 1)
        return (value * float(np.exp(-min(half, 700.0))), value * float(np.exp(min(half, 700.0)))) if log else (value - half, value + half)

    return replace(base, ladder=build_ladder(bounds))
