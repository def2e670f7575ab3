"""Pairs of samples that are nearly the same, and distances to the nearest: searched in blocks of bounded memory, never all pairs at once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tl_audit.errors import DataError
from tl_audit.measures.arrays import finite_matrix
from tl_audit.measures.estimate import FloatArray, IntArray

BITS = 64
_CHUNK = 2_000_000  # numbers held at once while pairs are walked through

Pairs = tuple[IntArray, IntArray]
"""Row numbers in the first and in the second set, one entry per pair."""


def hamming_pairs(first: ArrayLike, second: ArrayLike | None = None, most: int = 4) -> Iterator[Pairs]:
    """Pairs of rows whose 64-bit keys differ in at most ``most`` bits, each once, in blocks.

    The keys are cut into ``most`` + 1 bands: two keys that differ in no more bits than that agree in one band at least, so only rows that
    share a band are compared. O(n log n) where keys are spread; keys that many rows share are compared once.

    Parameters
    ----------
    first, second : (N,) and (M,) uint64; without ``second`` pairs i < j inside ``first``
    """
    a = np.asarray(first, dtype=np.uint64)
    inside = second is None
    b = a if inside else np.asarray(second, dtype=np.uint64)
    if a.ndim != 1 or b.ndim != 1:
        raise DataError(f"keys have shapes {a.shape} and {b.shape}: expected one 64-bit key per row")
    if not 0 <= most < BITS:
        raise DataError(f"{most} bits of {BITS}: expected a number from 0 to {BITS - 1}")
    keys_a, rows_a, starts_a = _grouped(a)
    keys_b, rows_b, starts_b = _grouped(b)
    masks = _bands(most + 1)
    for number, mask in enumerate(masks):
        order = np.argsort(keys_b & mask, kind="stable")
        banded = (keys_b & mask)[order]
        low, high = (np.searchsorted(banded, keys_a & mask, side=side) for side in ("left", "right"))
        for left, at in _expanded(low, high - low):
            right = order[at]
            apart = keys_a[left] ^ keys_b[right]
            found = np.bitwise_count(apart) <= most
            for earlier in masks[:number]:
                # a pair that agrees in an earlier band was given there
                found &= (apart & earlier) != 0
            left, right = left[found], right[found]
            for i, j in _rows_of(left, right, (rows_a, starts_a), (rows_b, starts_b)):
                if inside:
                    kept = i < j
                    i, j = i[kept], j[kept]
                if i.size:
                    yield i, j


def tolerance_pairs(first: ArrayLike, second: ArrayLike | None, tolerance: ArrayLike) -> Iterator[Pairs]:
    """Pairs of rows that are equal within ``tolerance`` in every column, each once, in blocks. A missing value (NaN) equals a missing value only.

    Rows are sorted by one weighted sum of their columns: near rows have near sums, so each is compared with those beside it. O(n log n) where
    few rows share a sum; rows that are wholly equal share it and are all paired.

    Parameters
    ----------
    first, second : (N, D) and (M, D), NaN where missing; without ``second`` pairs i < j inside ``first``
    tolerance : (D,), 0 for a column that must be equal
    """
    a = _matrix(first)
    inside = second is None
    b = a if inside else _matrix(second)
    wide = np.asarray(tolerance, dtype=np.float64)
    if a.shape[1] != b.shape[1] or wide.shape != (a.shape[1],) or not (np.isfinite(wide) & (wide >= 0)).all():
        raise DataError(f"rows of {a.shape[1]} and {b.shape[1]} columns and {wide.shape} tolerances: expected one of 0 or more per column")
    if a.shape[0] == 0 or b.shape[0] == 0 or a.shape[1] == 0:
        return
    pooled = a if inside else np.concatenate([a, b])
    gaps = np.isnan(pooled)
    packed = np.ascontiguousarray(np.packbits(gaps, axis=1))
    pattern = np.unique(packed.view(np.dtype((np.void, packed.shape[1]))).reshape(-1), return_inverse=True)[1].reshape(-1)
    values = np.where(gaps, 0.0, pooled)
    spread = values.std(axis=0)
    # any weights are right; these keep each column's part of the sum near the others', and no two columns alike
    weights = np.divide(np.sqrt(np.arange(2.0, 2.0 + values.shape[1])), spread, out=np.zeros(values.shape[1]), where=spread > 0)
    sums = (values - values.mean(axis=0)) @ weights
    rounding = 4 * np.finfo(np.float64).eps * values.shape[1]
    reach = float(wide @ weights) + rounding * float(np.abs(values).max(axis=0) @ weights + 1.0)
    of_a, of_b = (slice(0, a.shape[0]), slice(0, a.shape[0]) if inside else slice(a.shape[0], None))
    order = np.lexsort((sums[of_b], pattern[of_b]))
    sorted_pattern, sorted_sums = pattern[of_b][order], sums[of_b][order]
    low, high = np.empty(a.shape[0], dtype=np.int64), np.empty(a.shape[0], dtype=np.int64)
    for value in np.unique(pattern[of_a]):
        mine = np.flatnonzero(pattern[of_a] == value)
        left, right = np.searchsorted(sorted_pattern, value, side="left"), np.searchsorted(sorted_pattern, value, side="right")
        low[mine] = left + np.searchsorted(sorted_sums[left:right], sums[of_a][mine] - reach, side="left")
        high[mine] = left + np.searchsorted(sorted_sums[left:right], sums[of_a][mine] + reach, side="right")
    x, y = values[of_a], values[of_b]
    for i, at in _expanded(low, high - low, width=max(1, a.shape[1])):
        j = order[at]
        if inside:
            kept = i < j
            i, j = i[kept], j[kept]
        equal = (np.abs(x[i] - y[j]) <= wide).all(axis=1)
        if equal.any():
            yield i[equal], j[equal]


def knn_distance(queries: ArrayLike, reference: ArrayLike, k: int) -> FloatArray:
    """(N,) Euclidean distance of each query to its ``k``-th nearest row of the reference, in blocks of bounded memory.

    Parameters
    ----------
    queries, reference : (N, D) and (M, D), M >= k; a row that is in both counts as its own neighbour

    References
    ----------
    Sun et al. (2022). Out-of-distribution detection with deep nearest neighbors. ICML. arXiv:2204.06507
    """
    x, y = np.asarray(queries), finite_matrix(reference, "reference")
    if x.ndim != 2 or x.shape[1] != y.shape[1]:
        raise DataError(f"queries of shape {x.shape}: expected rows of {y.shape[1]} numbers, as in the reference")
    if not 1 <= k <= y.shape[0]:
        raise DataError(f"k is {k}: expected a number from 1 to {y.shape[0]}, the rows of the reference")
    # distances by products lose digits far from 0
    centre = y.mean(axis=0)
    y = y - centre
    lengths = (y**2).sum(axis=1)
    out = np.empty(x.shape[0])
    step = max(1, _CHUNK // max(y.shape[0], y.shape[1]))
    for start in range(0, x.shape[0], step):
        block = finite_matrix(x[start : start + step], "queries") - centre
        squared = (block**2).sum(axis=1)[:, None] + lengths - 2 * block @ y.T
        nearest = np.partition(squared, k - 1, axis=1)[:, k - 1]
        out[start : start + step] = np.sqrt(np.maximum(nearest, 0.0))
    return out


def cosines(first: NDArray[np.floating], second: NDArray[np.floating], i: IntArray, j: IntArray) -> FloatArray:  # type: ignore[type-arg]
    """(P,) cosine of row ``i`` of the first with row ``j`` of the second (either may lie on disk); NaN where one of them is 0."""
    out = np.empty(i.size)
    step = max(1, _CHUNK // max(1, first.shape[1]))
    for start in range(0, i.size, step):
        x = np.asarray(first[i[start : start + step]], dtype=np.float64)
        y = np.asarray(second[j[start : start + step]], dtype=np.float64)
        lengths = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
        out[start : start + step] = np.divide((x * y).sum(axis=1), lengths, out=np.full(len(x), np.nan), where=lengths > 0)
    return out


def components(n: int, pairs: Pairs) -> list[IntArray]:
    """Rows that pairs join, directly or through others: groups of two or more, each ascending, the largest first."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    i, j = pairs
    graph = coo_array((np.ones(i.size, dtype=np.int8), (i, j)), shape=(n, n))
    _, label = connected_components(graph, directed=False)
    order = np.argsort(label, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(label[order])) + 1) if n else []
    return sorted((np.sort(g).astype(np.int64) for g in groups if g.size > 1), key=lambda g: (-g.size, int(g[0])))


def _matrix(values: ArrayLike | None) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2:
        raise DataError(f"rows have shape {array.shape}: expected (rows, columns)")
    return array


def _bands(count: int) -> list[np.uint64]:
    """Masks that cut 64 bits into bands of nearly equal width."""
    edges = np.linspace(0, BITS, count + 1).round().astype(int)
    return [np.uint64(sum(1 << bit for bit in range(low, high))) for low, high in pairwise(edges.tolist())]


def _grouped(keys: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], IntArray, IntArray]:
    """Distinct keys, the rows in the order of their keys, and where each key's rows begin (one more at the end)."""
    rows = np.argsort(keys, kind="stable")
    distinct, starts = np.unique(keys[rows], return_index=True)
    return distinct, rows.astype(np.int64), np.r_[starts, keys.size].astype(np.int64)


def _expanded(low: IntArray, count: IntArray, width: int = 1) -> Iterator[Pairs]:
    """(left, place) for each left and each of its places low .. low + count - 1, in blocks of bounded size."""
    most = max(1, _CHUNK // width)
    ends = np.cumsum(count)
    first, done = 0, 0
    while first < count.size:
        last = int(np.searchsorted(ends, done + most, side="right"))
        if last == first:
            # one row with more partners than a block holds
            for start in range(0, int(count[first]), most):
                at = np.arange(start, min(start + most, int(count[first])))
                yield np.full(at.size, first, dtype=np.int64), low[first] + at
            last = first + 1
        else:
            part = count[first:last]
            left = np.repeat(np.arange(first, last), part)
            offset = np.arange(left.size) - np.repeat(np.cumsum(part) - part, part)
            if left.size:
                yield left.astype(np.int64), (low[left] + offset).astype(np.int64)
        done = int(ends[last - 1])
        first = last


def _rows_of(left: IntArray, right: IntArray, first: Pairs, second: Pairs) -> Iterator[Pairs]:
    """Pairs of rows from pairs of distinct keys: every row of the one with every row of the other."""
    (rows_a, starts_a), (rows_b, starts_b) = first, second
    size_b = starts_b[right + 1] - starts_b[right]
    count = (starts_a[left + 1] - starts_a[left]) * size_b
    for pair, at in _expanded(np.zeros(left.size, dtype=np.int64), count):
        wide = size_b[pair]
        yield rows_a[starts_a[left[pair]] + at // wide], rows_b[starts_b[right[pair]] + at % wide]
