"""Pairs of samples that are nearly the same, and distances to the nearest: searched in blocks of bounded memory, never all pairs at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tl_audit.errors import DataError
from tl_audit.measures.arrays import finite_matrix, same_length
from tl_audit.measures.estimate import FloatArray, IntArray
from tl_audit.measures.sampling import generator

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


def tolerance_pairs(
    first: Sequence[ArrayLike], second: Sequence[ArrayLike] | None, tolerance: Sequence[float] | FloatArray
) -> Iterator[Pairs]:
    """Pairs of rows that are equal within ``tolerance`` in every column, each once, in blocks. A missing value (NaN) equals a missing value only.

    Rows are sorted by one weighted sum of their columns: near rows have near sums, so each is compared with those beside it. O(n log n) where
    few rows share a sum; give rows that are wholly equal once only. Columns are walked through one by one and never put together.

    Parameters
    ----------
    first, second : D columns of (N,) and of (M,) numbers, NaN where missing; without ``second`` pairs i < j inside ``first``
    tolerance : (D,), 0 for a column that must be equal
    """
    inside = second is None
    a = [np.asarray(column, dtype=np.float64) for column in first]
    b = a if second is None else [np.asarray(column, dtype=np.float64) for column in second]
    wide = np.asarray(tolerance, dtype=np.float64)
    if len(a) != len(b) or wide.shape != (len(a),) or not (np.isfinite(wide) & (wide >= 0)).all():
        raise DataError(f"rows of {len(a)} and {len(b)} columns and {wide.shape} tolerances: expected one of 0 or more per column")
    n, m = (same_length(**{f"column {i}": column.size for i, column in enumerate(side)}) if side else 0 for side in (a, b))
    if n == 0 or m == 0:
        return
    sums, pattern, reach = _places(a, b, wide)
    of_b = slice(0, n) if inside else slice(n, None)
    place = np.lexsort((sums[of_b], pattern[of_b]))
    patterns, sorted_sums = pattern[of_b][place], sums[of_b][place]
    low, high = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    for value in np.unique(pattern[:n]):
        mine = np.flatnonzero(pattern[:n] == value)
        left, right = (int(np.searchsorted(patterns, value, side=side)) for side in ("left", "right"))
        low[mine] = left + np.searchsorted(sorted_sums[left:right], sums[mine] - reach, side="left")
        high[mine] = left + np.searchsorted(sorted_sums[left:right], sums[mine] + reach, side="right")
    for i, at in _expanded(low, high - low):
        j = place[at]
        if inside:
            i, j = i[i < j], j[i < j]
        for x, y, width in zip(a, b, wide, strict=True):
            if not i.size:
                break
            gap = np.abs(x[i] - y[j])
            # NaN beside NaN leaves no gap to measure, and is equal
            equal = (gap <= width) | (np.isnan(x[i]) & np.isnan(y[j]))
            i, j = i[equal], j[equal]
        if i.size:
            yield i, j


def _places(a: list[FloatArray], b: list[FloatArray], wide: FloatArray) -> tuple[FloatArray, NDArray[np.uint64], float]:
    """One sum and one code of the missing cells per row (first, then second where it is another), and how far sums of near rows can differ."""
    inside = b is a
    rows = a[0].size + (0 if inside else b[0].size)
    sums, pattern, reach, size = np.zeros(rows), np.zeros(rows, dtype=np.uint64), 0.0, 1.0
    for number, width in enumerate(wide.tolist()):
        column = a[number] if inside else np.concatenate([a[number], b[number]])
        gone = np.isnan(column)
        if gone.any():
            mark = np.uint64(generator("missing cells", number).integers(2**63))
            pattern ^= np.where(gone, mark, np.uint64(0))
        held = column[~gone]
        spread = float(held.std()) if held.size else 0.0
        if not spread > 0:
            continue
        # any weight is right; these keep each column's part near the others', and no two columns alike
        weight = float(np.sqrt(2.0 + number)) / spread
        sums += np.where(gone, 0.0, column - held.mean()) * weight
        reach += width * weight
        size += float(np.abs(held).max()) * weight
    return sums, pattern, reach + 4 * np.finfo(np.float64).eps * len(a) * size


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


def spanning(n: int, pairs: Iterable[Pairs], most: int = _CHUNK) -> Pairs:
    """Pairs that join the same rows as all of ``pairs`` do, fewer than ``n``: of a thousand frames alike not half a million pairs are kept.

    Each row of a component is paired with the component's first row. Not more than ``most`` pairs (and the last block) are held at once.
    """
    held: list[Pairs] = []
    count = 0
    for block in pairs:
        held.append(block)
        count += block[0].size
        if count > most:
            held = [_stars(n, held)]
            count = held[0][0].size
    return _stars(n, held)


def _stars(n: int, held: list[Pairs]) -> Pairs:
    none = np.zeros(0, dtype=np.int64)
    groups = components(n, (np.concatenate([none, *(i for i, _ in held)]), np.concatenate([none, *(j for _, j in held)])))
    first = [np.full(group.size - 1, group[0], dtype=np.int64) for group in groups]
    return np.concatenate([none, *first]), np.concatenate([none, *(group[1:] for group in groups)])


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
