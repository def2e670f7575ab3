"""Which input parts belong together: a tree over the parts of one sample, for values that are shared out within groups first."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import complete
from scipy.sparse import csr_array
from scipy.sparse.csgraph import shortest_path
from scipy.spatial.distance import squareform

from tl_audit.attribution.base import Inputs

Merges = NDArray[np.int64]
"""(d - 1, 2): clusters joined in step j, which makes cluster d + j (the first two columns of scipy's linkage matrices)."""


def tree_of(inputs: Inputs, row: int) -> Merges:
    """The tree of one sample's parts; depends on that sample, and on the background, alone.

    Parts laid out in space: near are parts that touch and have like values (the cheapest way from part to part, each step costing the
    difference of mean values plus a little); complete linkage, which keeps trees shallow. Named parts: near are parts whose values go together in the
    background (1 - the largest absolute correlation of their entries). Named parts without a background of three rows: halves of
    their order.
    """
    d = int(inputs.players.count[row])
    if d < 2:
        return np.zeros((0, 2), dtype=np.int64)
    if inputs.players.spatial:
        return _linked(_across(inputs, row, d))
    if inputs.background is not None and len(inputs.background) > 2 and inputs.background.ndim == 2:
        return _linked(_correlated(inputs.background, inputs.players.assignment[row], d))
    return halves(d)


def halves(d: int) -> Merges:
    """The balanced tree over d parts in their order."""
    merges: list[tuple[int, int]] = []

    def joined(first: int, last: int) -> int:
        if last - first == 1:
            return first
        middle = (first + last) // 2
        left, right = joined(first, middle), joined(middle, last)
        merges.append((left, right))
        return d + len(merges) - 1

    if d > 1:
        joined(0, d)
    return np.array(merges, dtype=np.int64).reshape(-1, 2)


def members(merges: Merges) -> NDArray[np.bool_]:
    """(2 d - 1, d) the parts in each cluster: first the parts themselves, the root last."""
    d = len(merges) + 1
    out = np.zeros((2 * d - 1, d), dtype=bool)
    out[np.arange(d), np.arange(d)] = True
    for step, (left, right) in enumerate(merges):
        out[d + step] = out[left] | out[right]
    return out


def _linked(distance: NDArray[np.float64]) -> Merges:
    # rounded, so that ties do not hang on the last bit of a machine
    return np.asarray(complete(np.round(squareform(distance, checks=False), 9))[:, :2], dtype=np.int64)


def _across(inputs: Inputs, row: int, d: int) -> NDArray[np.float64]:
    """(d, d) length of the cheapest way between parts."""
    where = inputs.players.assignment[row].cpu().numpy()
    values = inputs.tensor[row].detach().double().cpu().numpy().reshape(-1, where.size)
    area = np.maximum(np.bincount(where.reshape(-1), minlength=d), 1)
    mean = np.stack([np.bincount(where.reshape(-1), weights=v, minlength=d) / area for v in values])  # (channels, d)
    spread = mean.std() or 1.0
    touching: set[tuple[int, int]] = set()
    for axis in range(where.ndim):
        beside = np.stack(
            [np.take(where, range(where.shape[axis] - 1), axis).reshape(-1), np.take(where, range(1, where.shape[axis]), axis).reshape(-1)]
        )
        beside = np.unique(np.sort(beside, axis=0), axis=1)
        touching.update((int(a), int(b)) for a, b in beside.T if a != b)
    a, b = np.array(sorted(touching), dtype=np.int64).reshape(-1, 2).T
    step = np.sqrt(((mean[:, a] - mean[:, b]) ** 2).mean(axis=0)) / spread + 0.5
    ways = np.asarray(shortest_path(csr_array((step, (a, b)), shape=(d, d)), directed=False), dtype=np.float64)
    reached = np.isfinite(ways)
    return np.where(reached, ways, 2 * (ways[reached].max() + 1))


def _correlated(background: torch.Tensor, assignment: torch.Tensor, d: int) -> NDArray[np.float64]:
    """(d, d) 1 - the largest absolute correlation between the entries of two parts; constant entries go with nothing."""
    rows = background.detach().double().cpu().numpy()
    centred = rows - rows.mean(axis=0)
    size = np.sqrt((centred**2).sum(axis=0))
    unit = np.divide(centred, size, out=np.zeros_like(centred), where=size > 1e-12 * (1 + np.abs(rows).max(axis=0)))
    strength = np.abs(unit.T @ unit)
    part = assignment.cpu().numpy().reshape(-1)
    largest = np.zeros((d, d))
    np.maximum.at(largest, (part[:, None], part[None, :]), strength)
    distance = 1 - np.minimum(largest, 1.0)
    np.fill_diagonal(distance, 0.0)
    return distance
