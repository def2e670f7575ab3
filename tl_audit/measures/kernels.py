"""Sums of a Gaussian kernel between two samples, in blocks of bounded memory: no matrix of all pairs is ever held.

Every statistic of a two-sample test is a quadratic form wᵀKw with a weight for each row (or cluster): labels of a permutation, counts of a
bootstrap. A block of rows of K is computed once, used for the forms of all weights, and forgotten. Only pairs i <= j are computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_audit.measures.estimate import BoolArray, FloatArray, IntArray

ROWS = 512  # rows of a block
_WEIGHTS = 512  # weights multiplied with a block at once
_TERMS = 4096
_ROWS_AT_ONCE = 256  # rows whose distances are held in float64

Weights = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True)
class Cells:
    """Rows of one cluster and one sample: what is permuted and resampled. Ordered by sample, then by cluster.

    Attributes
    ----------
    order : (N,) row numbers, cell by cell
    starts : (U,) place in ``order`` where each cell begins
    sizes : (U,) rows of each cell
    cluster, second : (U,) cluster and sample of each cell
    """

    order: IntArray
    starts: IntArray
    sizes: FloatArray
    cluster: IntArray
    second: BoolArray

    @classmethod
    def of(cls, second: BoolArray, codes: IntArray) -> Cells:
        """Cells of rows with these clusters (N,) and samples (N,)."""
        order = np.lexsort((codes, second))
        kind, code = second[order], codes[order]
        starts = np.flatnonzero(np.r_[True, (code[1:] != code[:-1]) | (kind[1:] != kind[:-1])])
        return cls(order, starts, np.diff(np.r_[starts, order.size]).astype(np.float64), code[starts], kind[starts])

    def partners(self) -> IntArray:
        """(U,) the cell of the same cluster in the other sample, -1 where there is none."""
        partner = np.full(self.cluster.size, -1, dtype=np.int64)
        order = np.lexsort((self.second, self.cluster))
        same = np.flatnonzero(self.cluster[order][1:] == self.cluster[order][:-1])
        partner[order[same]], partner[order[same + 1]] = order[same + 1], order[same]
        return partner


@dataclass(frozen=True)
class Forms:
    """Sums of the kernel, S between cells.

    Attributes
    ----------
    labels : (B,) yᵀSy of each weight vector of the first kind
    first, second, across : (R,) wᵀSw of each of the second kind, within each sample, and between the two (once)
    products : (U, k) S times each exact vector, in float64
    diagonal : (U,) S of each cell with itself
    partner : (U,) S of each cell with its partner, 0 without one
    """

    labels: FloatArray
    first: FloatArray
    second: FloatArray
    across: FloatArray
    products: FloatArray
    diagonal: FloatArray
    partner: FloatArray


def kernel_forms(
    features: FloatArray, bandwidth: float, cells: Cells, labels: BoolArray, counts: FloatArray, exact: FloatArray, level: float
) -> Forms:
    """Quadratic forms of the kernel exp(-d²/bandwidth) over cells, without its matrix.

    Kernel values are computed in float64. Forms of labels and counts are taken in float32 of (kernel - level), added up in float64: with a
    level near the mean of the kernel their error is below 1e-8 of the kernel's scale.

    Parameters
    ----------
    features : (N, D)
    labels : (B, U) weights 0 or 1
    counts : (R, U) weights of a bootstrap
    exact : (U, k) vectors whose products are wanted in float64
    level : constant taken off the kernel and put back in closed form
    """
    x = features[cells.order]
    x = x - x.mean(axis=0)
    squares = np.einsum("ij,ij->i", x, x)
    units, rows = cells.sizes.size, x.shape[0]
    ends = np.r_[cells.starts[1:], rows]
    border = int(np.count_nonzero(~cells.second))
    partner = cells.partners()
    y, w = labels.astype(np.float32), counts.astype(np.float32)
    form_y, first, second, across = (np.zeros(size) for size in (y.shape[0], *(w.shape[0],) * 3))
    products, diagonal, beside = np.zeros((units, exact.shape[1])), np.zeros(units), np.zeros(units)
    for low, high in _blocks(cells.starts, ends, border):
        sums = _block(x, squares, cells.starts, ends, bandwidth, low, high)  # (high - low, units - low), float64
        own = np.arange(low, high)
        diagonal[own] = sums[own - low, own - low]
        paired = own[partner[own] > own]
        beside[paired] = beside[partner[paired]] = sums[paired - low, partner[paired] - low]
        products[low:high] += sums @ exact[low:]
        products[high:] += sums[:, high - low :].T @ exact[low:high]
        for row, size in zip(sums, cells.sizes[low:high], strict=True):
            row -= level * size * cells.sizes[low:]
        block = sums.astype(np.float32)
        del sums
        for part in _chunks(y.shape[0]):
            product = y[part, low:high] @ block
            # pairs (i, j) and (j, i), except inside the block, which holds both
            form_y[part] += 2 * _dot(product, y[part, low:]) - _dot(product[:, : high - low], y[part, low:high])
        for part in _chunks(w.shape[0]):
            product = w[part, low:high] @ block
            inside = border if high <= border else units
            within = 2 * _dot(product[:, : inside - low], w[part, low:inside]) - _dot(product[:, : high - low], w[part, low:high])
            if high <= border:
                first[part] += within
                across[part] += _dot(product[:, border - low :], w[part, border:])
            else:
                second[part] += within
    of_y = labels.astype(np.float64) @ cells.sizes
    one, two = counts[:, :border] @ cells.sizes[:border], counts[:, border:] @ cells.sizes[border:]
    return Forms(
        form_y + level * of_y**2, first + level * one**2, second + level * two**2, across + level * one * two, products, diagonal, beside
    )


def _blocks(starts: IntArray, ends: IntArray, border: int) -> list[tuple[int, int]]:
    """Cells [low, high) of each block: about ROWS rows, and of one sample."""
    blocks, low = [], 0
    for cell in range(starts.size):
        if cell + 1 in (border, starts.size) or ends[cell] - starts[low] >= ROWS:
            blocks.append((low, cell + 1))
            low = cell + 1
    return blocks


def _block(x: FloatArray, squares: FloatArray, starts: IntArray, ends: IntArray, bandwidth: float, low: int, high: int) -> FloatArray:
    """Kernel sums between the cells [low, high) and all cells from ``low`` on."""
    begin, end = int(starts[low]), int(ends[high - 1])
    single = end - begin == high - low and x.shape[0] - begin == starts.size - low
    sums = np.zeros((high - low, starts.size - low))
    for row in range(begin, end, _ROWS_AT_ONCE):
        stop = min(row + _ROWS_AT_ONCE, end)
        kernel = x[row:stop] @ x[begin:].T
        kernel *= -2.0
        kernel += squares[row:stop, None]
        kernel += squares[None, begin:]
        np.maximum(kernel, 0.0, out=kernel)
        kernel[np.arange(stop - row), np.arange(row - begin, stop - begin)] = 0.0
        kernel /= -bandwidth
        np.exp(kernel, out=kernel)
        if single:
            sums[row - begin : stop - begin] = kernel
            continue
        columns = np.add.reduceat(kernel, starts[low:] - begin, axis=1)
        cell = np.searchsorted(starts, np.arange(row, stop), side="right") - 1 - low
        belongs = (cell[None, :] == np.arange(cell[0], cell[-1] + 1)[:, None]).astype(np.float64)
        sums[cell[0] : cell[-1] + 1] += belongs @ columns
    return sums


def _dot(a: Weights, b: Weights) -> FloatArray:
    """Sums over columns of a·b: a few thousand terms in float32, whose sums are then added up in float64."""
    steps = range(0, a.shape[1], _TERMS)
    return np.asarray(
        sum((np.vecdot(a[:, at : at + _TERMS], b[:, at : at + _TERMS]).astype(np.float64) for at in steps), np.zeros(a.shape[0]))
    )


def _chunks(n: int) -> list[Any]:  # Any: slices
    return [slice(start, start + _WEIGHTS) for start in range(0, n, _WEIGHTS)]
