"""Small sketches of pictures: a 64-bit key that near copies nearly share, and how well two sketches lie on each other (TLA202)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tl_audit.errors import DataError
from tl_audit.measures.estimate import FloatArray

SKETCH_SIDE = 16
_ROWS, _COLUMNS = 8, 9
_CHUNK = 256  # pairs at once: what stays near the processor


def difference_hash(sketches: ArrayLike) -> NDArray[np.uint64]:
    """(N,) 64-bit difference hashes: 8 rows of 9 areas, one bit where an area is brighter than the one to its right.

    Re-encoding, resizing and small crops move few bits; another picture differs in about half of them.

    Parameters
    ----------
    sketches : (N, 16, 16) grey values
    """
    grey = _checked(sketches).astype(np.float64)
    areas = np.einsum("ri,nij,cj->nrc", _averages(_ROWS), grey, _averages(_COLUMNS))
    bits = (areas[:, :, :-1] - areas[:, :, 1:]) > 1e-9
    packed = np.packbits(bits.reshape(grey.shape[0], 64), axis=1)
    return np.ascontiguousarray(packed).view(">u8").reshape(-1).astype(np.uint64)


def aligned_correlation(first: ArrayLike, second: ArrayLike) -> FloatArray:
    """(P,) how well two sketches of a pair agree (0-1, 1: the same but for brightness and contrast), shifts and zoom of a cell taken out.

    Multiple correlation of the one with the other, its slopes, and its slopes times the place (to first order what shifting and
    stretching do); the smaller one of both directions. 0 where a sketch is of one colour.

    Parameters
    ----------
    first, second : (P, 16, 16)
    """
    a, b = _checked(first), _checked(second)
    if a.shape != b.shape:
        raise DataError(f"{len(a)} and {len(b)} sketches: expected pairs")
    out = np.empty(len(a))
    for start in range(0, len(a), _CHUNK):
        x, y = (part[start : start + _CHUNK].astype(np.float64) for part in (a, b))
        out[start : start + _CHUNK] = np.minimum(_explained(x, y), _explained(y, x))
    return out


def _explained(x: FloatArray, y: FloatArray) -> FloatArray:
    down, across = np.gradient(x, axis=(1, 2))
    row, column = np.mgrid[:SKETCH_SIDE, :SKETCH_SIDE] - (SKETCH_SIDE - 1) / 2
    parts = np.stack([x, down, across, down * row, across * column], axis=1).reshape(len(x), 5, -1)
    parts = parts - parts.mean(axis=2, keepdims=True)
    lengths = np.sqrt((parts**2).sum(axis=2, keepdims=True))
    parts = np.divide(parts, lengths, out=np.zeros_like(parts), where=lengths > 1e-9)
    goal = y.reshape(len(y), -1)
    goal = goal - goal.mean(axis=1, keepdims=True)
    sizes, axes = np.linalg.eigh(parts @ parts.transpose(0, 2, 1))
    along = np.einsum("pki,pk->pi", axes, np.einsum("pkj,pj->pk", parts, goal))
    # directions that are rounding only say nothing
    fitted = np.divide(along**2, sizes, out=np.zeros_like(along), where=sizes > 1e-8).sum(axis=1)
    total = (goal**2).sum(axis=1)
    share = np.divide(fitted, total, out=np.zeros(len(y)), where=(total > 0) & (lengths[:, 0, 0] > 1e-9))
    return np.asarray(np.sqrt(np.clip(share, 0.0, 1.0)), dtype=np.float64)


def _averages(count: int) -> FloatArray:
    """(count, 16) weights of area averages: ``count`` equal parts of a side of 16 cells."""
    edges = np.linspace(0, SKETCH_SIDE, count + 1)
    cells = np.arange(SKETCH_SIDE)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    weights = np.maximum(overlap, 0.0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float64)


def _checked(sketches: ArrayLike) -> NDArray[np.uint8]:
    array = np.asarray(sketches)
    if array.ndim != 3 or array.shape[1:] != (SKETCH_SIDE, SKETCH_SIDE):
        raise DataError(f"sketches have shape {array.shape}: expected (N, {SKETCH_SIDE}, {SKETCH_SIDE})")
    return array
