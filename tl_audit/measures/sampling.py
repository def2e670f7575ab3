"""Where randomness and clusters come from: keyed generators, hash priorities, bottom-k samples, splits by cluster."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tl_audit.errors import DataError
from tl_audit.measures.arrays import ObjectArray, is_missing
from tl_audit.measures.estimate import BoolArray, IntArray


def generator(*key: object) -> np.random.Generator:
    """A random generator that depends on ``key`` alone: never on global state, order, batch size or machine.

    Parts are written as text, each behind its length, so that ("a", "bc") and ("ab", "c") differ.

    Examples
    --------
    >>> generator(0, "TLA501").integers(10) == generator(0, "TLA501").integers(10)
    np.True_
    """
    digest = hashlib.sha256()
    for part in key:
        text = str(part).encode("utf-8", "surrogatepass")
        digest.update(f"{len(text)}:".encode())
        digest.update(text)
    return np.random.default_rng(int.from_bytes(digest.digest(), "little"))


def priority(seed: int, ids: Sequence[object] | ArrayLike) -> NDArray[np.uint64]:
    """Hash priority of each sample id, sha256(seed ‖ id), as 64-bit integers. Equal ids have equal priority; smaller goes first.

    Parameters
    ----------
    ids : (N,), each written as text
    """
    prefix, sha256 = f"{seed}|".encode(), hashlib.sha256
    digests = b"".join([sha256(prefix + str(sample).encode("utf-8", "surrogatepass")).digest() for sample in ids])  # type: ignore[union-attr]
    # the first 8 of the 32 bytes of each
    return np.frombuffer(digests, dtype=">u8")[::4].astype(np.uint64)


def cluster_codes(cluster: ArrayLike | None, n: int) -> IntArray:
    """Cluster of each row as a number 0 .. G-1. Without cluster ids, and where an id is missing, a row is a cluster of its own.

    Codes follow the sorted ids, so that the order of rows does not matter. Raises DataError if lengths differ.
    """
    if cluster is None:
        return np.arange(n, dtype=np.int64)
    array = np.asarray(cluster)
    if array.shape != (n,):
        raise DataError(f"cluster has shape {array.shape}: expected one id for each of the {n} rows")
    if array.dtype.kind in "iub":
        return _whole_numbers(array)
    found, place = _distinct(array)
    # an id is compared with its type, so that the number 1 and the text "1" stay two clusters
    keys = [None if is_missing(value) else (type(value).__name__, str(value)) for value in found]
    known = {key: code for code, key in enumerate(sorted({key for key in keys if key is not None}))}
    codes = np.array([-1 if key is None else known[key] for key in keys], dtype=np.int64)[place]
    missing = codes < 0
    codes[missing] = len(known) + np.arange(int(missing.sum()))
    return codes


def group_codes(values: ArrayLike, n: int) -> tuple[IntArray, tuple[str, ...]]:
    """Codes and sorted names of group (or stratum) values; missing ones are the group "(missing)", which comes last."""
    array = np.asarray(values)
    if array.shape != (n,):
        raise DataError(f"groups have shape {array.shape}: expected one value for each of the {n} rows")
    found, place = _distinct(array)
    names = ["(missing)" if is_missing(value) else str(value) for value in found]
    order = sorted(set(names), key=lambda name: (name == "(missing)", name))
    code = {name: position for position, name in enumerate(order)}
    return np.array([code[name] for name in names], dtype=np.int64)[place], tuple(order)


def bottom_k(
    ids: Sequence[object] | ArrayLike,
    k: int,
    seed: int,
    *,
    strata: ArrayLike | None = None,
    cluster: ArrayLike | None = None,
) -> IntArray:
    """Rows of the ``k`` smallest hash priorities **of each stratum** (of all rows without strata), in ascending row order.

    Shard-independent: the bottom-k of the merged bottom-k of shards is the bottom-k of all rows.
    With ``cluster``, the priority is that of the cluster, clusters are taken until a stratum holds at least ``k`` rows, and
    every row of a cluster that was taken anywhere is kept; so more than ``k`` rows may come back. With both clusters and strata
    the promise about shards holds where no shard cuts a cluster.

    Parameters
    ----------
    ids : (N,), sample ids
    k : rows per stratum; a smaller stratum is taken whole. For a total over strata see `stratified_k`
    strata : (N,), for instance class and group joined
    cluster : (N,), ids that are kept whole
    """
    n = len(ids)  # type: ignore[arg-type]
    if k < 0:
        raise DataError(f"k is {k}: expected a number of rows")
    stratum = np.zeros(n, dtype=np.int64) if strata is None else group_codes(strata, n)[0]
    if cluster is None:
        order = _by_priority(ids, priority(seed, ids), stratum)
        return np.sort(order[_rank_within(stratum[order]) < k]).astype(np.int64)
    unit = cluster_codes(cluster, n)
    # one hash for each cluster, from its first row; a row without a cluster id is its own cluster and goes by its sample id
    of_row = np.asarray(cluster).tolist()
    row, own = np.unique(unit, return_index=True)[1].tolist(), list(ids)  # type: ignore[arg-type]
    names = [f"row {own[r]}" if is_missing(of_row[r]) else f"cluster {of_row[r]}" for r in row]
    first = priority(seed, names)[unit]
    order = np.lexsort((unit, first, stratum))
    taken = np.zeros(int(unit.max()) + 1 if n else 0, dtype=np.bool_)
    for value in np.unique(stratum):
        rows = order[stratum[order] == value]
        # rows of the same stratum in clusters that come strictly before: a cluster is taken while that count is below k
        starts = np.flatnonzero(np.r_[True, unit[rows][1:] != unit[rows][:-1]])
        taken[unit[rows[starts[starts < k]]]] = True
    return np.flatnonzero(taken[unit]).astype(np.int64) if n else np.zeros(0, dtype=np.int64)


def stratified_k(ids: Sequence[object] | ArrayLike, total: int, seed: int, *, strata: ArrayLike) -> IntArray:
    """At most ``total`` rows, spread over strata as evenly as their sizes allow, by hash priority; in ascending row order.

    Shard-independent like `bottom_k`: a shard never takes less of a stratum than the whole does.
    """
    n = len(ids)  # type: ignore[arg-type]
    if total < 0:
        raise DataError(f"total is {total}: expected a number of rows")
    stratum = group_codes(strata, n)[0]
    first = priority(seed, ids)
    order = _by_priority(ids, first, stratum)
    rank = np.empty(n, dtype=np.int64)
    rank[order] = _rank_within(stratum[order])
    # all first places, then all second places, ...; inside a place by priority
    return np.sort(_by_priority(ids, first, rank)[:total]).astype(np.int64)


def split_by_cluster(cluster: ArrayLike | None, n: int, seed: int, share: float = 0.5) -> BoolArray:
    """A random mask that is True for about ``share`` of the rows and never splits a cluster.

    Both sides hold at least one cluster where there are two. Without clusters exactly round(share * n) rows are True.
    """
    if not 0.0 <= share <= 1.0:
        raise DataError(f"share is {share}: expected a number from 0 to 1")
    codes = cluster_codes(cluster, n)
    clusters = int(codes.max()) + 1 if n else 0
    order = generator(seed, "split_by_cluster").permutation(clusters)
    reached = np.cumsum(np.bincount(codes, minlength=clusters)[order]) if clusters else np.zeros(0)
    if clusters == 0:
        return np.zeros(0, dtype=np.bool_)
    cut = int(np.argmin(np.abs(np.r_[0, reached] - share * n)))
    if clusters > 1 and 0.0 < share < 1.0:
        cut = min(max(cut, 1), clusters - 1)
    chosen = np.zeros(clusters, dtype=np.bool_)
    chosen[order[:cut]] = True
    return chosen[codes]


def _whole_numbers(values: ObjectArray) -> IntArray:
    """Place of each whole number among the distinct ones: by a table where they lie close together, else by a sort."""
    if values.size and int(values.min()) >= 0 and int(values.max()) < 4 * values.size + 1000:
        numbers = values.astype(np.int64)
        occurs = np.zeros(int(numbers.max()) + 1, dtype=np.bool_)
        occurs[numbers] = True
        return np.asarray((np.cumsum(occurs) - 1)[numbers], dtype=np.int64)
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _distinct(array: ObjectArray) -> tuple[list[Any], IntArray]:
    """The distinct values of an array, in order of their first row, and the place of each row's value among them.

    Values that compare equal but are written differently (1, 1.0 and True) stay apart.
    """
    values = array.tolist()
    kinds = {str} if array.dtype.kind in "US" else set(map(type, values))
    if kinds <= {str, type(None)} or len(kinds) == 1:  # values of one type, or text: what is equal is written alike
        places = {value: place for place, value in enumerate(dict.fromkeys(values))}
        return list(places), np.fromiter(map(places.__getitem__, values), dtype=np.int64, count=len(values))
    typed = list(zip(map(type, values), values, strict=True))
    places_of = {pair: place for place, pair in enumerate(dict.fromkeys(typed))}
    return [value for _, value in places_of], np.fromiter(map(places_of.__getitem__, typed), dtype=np.int64, count=len(values))


def _by_priority(ids: Sequence[object] | ArrayLike, first: NDArray[np.uint64], before: IntArray) -> IntArray:
    """Row order by ``before``, then by hash priority; equal hashes (equal ids, as good as always) by the text of the id."""
    order = np.lexsort((first, before))
    if not bool(((first[order][1:] == first[order][:-1]) & (before[order][1:] == before[order][:-1])).any()):
        return np.asarray(order, dtype=np.int64)
    text = np.asarray([str(sample) for sample in ids])  # type: ignore[union-attr]
    return np.asarray(np.lexsort((text, first, before)), dtype=np.int64)


def _rank_within(sorted_codes: IntArray) -> IntArray:
    """Position of each entry inside its run of equal codes: 0, 1, 2, 0, 1, ..."""
    if sorted_codes.size == 0:
        return np.zeros(0, dtype=np.int64)
    starts = np.flatnonzero(np.r_[True, sorted_codes[1:] != sorted_codes[:-1]])
    lengths = np.diff(np.r_[starts, sorted_codes.size])
    return np.arange(sorted_codes.size) - np.repeat(starts, lengths)
