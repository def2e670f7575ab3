"""What is drawn to fill in removed parts: from one key in the order of the rows, or for each row from its input's key and its mask."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.measures.sampling import generator
from tl_audit.modality.base import Key, PerInput

_TABLE = 64
"""Rows of draws made for each input, of which a mask takes one by its number."""


def mask_numbers(keep: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """(R,) a number for each mask, equal for equal masks whatever their padding with parts that stay. Spread over 64 bits; no protection against collisions."""
    gone = ~np.asarray(keep, dtype=bool)
    place = np.arange(1, gone.shape[1] + 1, dtype=np.uint64)
    mixed = place * np.uint64(0x9E3779B97F4A7C15)  # odd constants of splitmix64
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    total = np.zeros(len(gone), dtype=np.uint64)
    for k in range(gone.shape[1]):
        total += np.where(gone[:, k], mixed[k], np.uint64(0))
    total = (total ^ (total >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    return np.asarray(total ^ (total >> np.uint64(33)), dtype=np.uint64)


def drawn_rows(key: Key, purpose: str, most: int, keep: NDArray[np.bool_], index: NDArray[np.int64], *, each: bool) -> NDArray[np.int64]:
    """Row numbers below ``most``: one for each part of each masked row (R, parts), or, not ``each``, one for each masked row (R,)."""
    shape = keep.shape if each else keep.shape[:1]
    if not isinstance(key, PerInput):
        # in order: the draw of a row does not depend on how many rows follow
        return np.asarray(generator(*key, purpose).integers(most, size=shape), dtype=np.int64)
    out = np.empty(shape, dtype=np.int64)
    row = (mask_numbers(keep) % np.uint64(_TABLE)).astype(np.int64)
    for at in np.unique(index):
        mine = index == at
        table = generator(*key.keys[int(at)], purpose).integers(most, size=(_TABLE, *shape[1:]))
        out[mine] = table[row[mine]]
    return out


def seeded_noise(rows: torch.Tensor, key: Key, keep: NDArray[np.bool_], index: NDArray[np.int64]) -> torch.Tensor:
    """Standard normal noise, one value for each of ``rows``, in their shape.

    With a key for each input one field of noise is drawn for the input, and each mask begins at another place of it: as good for hiding the
    seams of a fill, at a tenth of the cost.
    """
    if not isinstance(key, PerInput):
        return torch.from_numpy(generator(*key, "noise").standard_normal(tuple(rows.shape), dtype="float32")).to(rows)
    size = rows[:1].numel()
    out = rows.new_empty((len(rows), size))
    start = (mask_numbers(keep) % np.uint64(size)).astype(np.int64)
    for at in np.unique(index):
        mine = np.flatnonzero(index == at)
        field = torch.from_numpy(generator(*key.keys[int(at)], "noise").standard_normal(size, dtype="float32"))
        windows = torch.cat([field, field[:-1]]).unfold(0, size, 1)
        out[torch.from_numpy(mine).to(rows.device)] = windows[torch.from_numpy(start[mine])].to(rows)
    return out.reshape(rows.shape)
