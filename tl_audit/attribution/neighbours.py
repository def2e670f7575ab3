"""Neighbours as lime draws them for tables: from a background alone, so that every row shares them and the model sees them once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from tl_audit.errors import DataError
from tl_audit.measures.sampling import generator
from tl_audit.modality.base import Players

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Neighbours:
    """Drawn model inputs, and what the surrogate reads of them and of the samples.

    Attributes
    ----------
    rows : (R, D) model inputs
    states, own_states : (d, R) and (N, d) int64: bin or category of each part; -1 where a sample's category is not in the background
    scaled, own_scaled : (d, R) and (N, d): standardised values of the parts that are ``measured``, 0 of the others
    measured : (d,) parts read by their value and not by whether it is the sample's own state
    """

    rows: torch.Tensor
    states: NDArray[np.int64]
    own_states: NDArray[np.int64]
    scaled: FloatArray
    own_scaled: FloatArray
    measured: NDArray[np.bool_]


def alike(players: Players) -> bool:
    """Whether every sample has the same named parts in the same entries, so that neighbours can be shared."""
    if players.spatial or not len(players.count):
        return False
    return bool((players.assignment == players.assignment[:1]).all()) and bool((players.count == players.count[0]).all())


def table_neighbours(
    inputs: torch.Tensor, background: torch.Tensor, players: Players, *, size: int, seed: int, discretise: bool
) -> Neighbours:
    """``size`` neighbours of any row of this kind of table, from (seed, background) alone.

    A part of one entry with more than two values in the background is a number: cut at the background's quartiles, a bin is drawn by its
    frequency and a value inside it from the normal distribution of the bin's values, cut off at the bin's ends; with ``discretise``
    False the value is normal with the background's mean and deviation. Every other part (a category's slots, a number with its
    missing mark, a yes or no) is drawn as it occurs in the background and is the sample's own or not.

    Raises
    ------
    DataError : a background that holds values that are not finite, or no rows

    References
    ----------
    Ribeiro et al. (2016). "Why should I trust you?": explaining the predictions of any classifier. arXiv:1602.04938
    """
    known = background.detach().cpu().double().numpy()
    mine = inputs.detach().cpu().double().numpy()
    if not len(known):
        raise DataError("the background holds no rows: lime draws its neighbours from them")
    parts = players.assignment[0].cpu().numpy()
    count = int(players.count[0])
    bad = ~np.isfinite(known).all(axis=0)
    if bad.any():
        part = int(parts[np.flatnonzero(bad)[0]])
        name = players.names[part] if players.names else str(part)
        raise DataError(f"the background holds values that are not finite in {name!r}: lime draws its neighbours from it")
    u = generator(seed, "lime", "neighbourhood").random((size, count, 2))
    rows = np.zeros((size, known.shape[1]))
    states = np.zeros((count, size), dtype=np.int64)
    own = np.zeros((len(mine), count), dtype=np.int64)
    scaled, own_scaled = np.zeros((count, size)), np.zeros((len(mine), count))
    measured = np.zeros(count, dtype=bool)
    for part in range(count):
        entries = np.flatnonzero(parts == part)
        number = len(entries) == 1 and _is_number(known[:, entries[0]])
        if not number:
            code, own[:, part] = _codes(known[:, entries], mine[:, entries])
            at = np.minimum((u[:, part, 0] * len(known)).astype(np.int64), len(known) - 1)
            rows[:, entries], states[part] = known[np.ix_(at, entries)], code[at]
            continue
        column, values = int(entries[0]), known[:, entries[0]]
        if discretise:
            borders = _quartiles(values)
            own[:, part] = np.searchsorted(borders, mine[:, column])
            states[part], rows[:, column] = _from_bins(values, borders, u[:, part])
        else:
            measured[part] = True
            mean, deviation = values.mean(), values.std() or 1.0
            scaled[part] = ndtri(np.clip(u[:, part, 0], 1e-16, None))
            rows[:, column] = mean + deviation * scaled[part]
            own_scaled[:, part] = (mine[:, column] - mean) / deviation
    return Neighbours(torch.from_numpy(rows).to(inputs.dtype), states, own, scaled, own_scaled, measured)


def _is_number(values: FloatArray) -> bool:
    return bool(((values != values.min()) & (values != values.max())).any())


def _quartiles(values: FloatArray) -> FloatArray:
    return np.unique(np.percentile(values, [25, 50, 75]))


def _codes(known: FloatArray, mine: FloatArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(M,) and (N,) number of each pattern of a part's entries, -1 where the background lacks it; an entry of many values counts by its quartile."""
    both = np.concatenate([known, mine])
    for entry in range(both.shape[1]):
        if _is_number(known[:, entry]):
            both[:, entry] = np.searchsorted(_quartiles(known[:, entry]), both[:, entry])
    code = np.unique(both, axis=0, return_inverse=True)[1].reshape(-1)
    ours, theirs = code[: len(known)], code[len(known) :]
    return ours, np.where(np.isin(theirs, ours), theirs, -1)


def _from_bins(values: FloatArray, borders: FloatArray, u: FloatArray) -> tuple[NDArray[np.int64], FloatArray]:
    """Bins by frequency (u[:, 0]) and values inside them (u[:, 1]) from the normal of the bin's values, cut off at its ends."""
    bins = np.searchsorted(borders, values)
    n = len(borders) + 1
    share = np.bincount(bins, minlength=n) / len(values)
    drawn = np.minimum(np.searchsorted(np.cumsum(share), u[:, 0], side="right"), int(np.flatnonzero(share)[-1])).astype(np.int64)
    low, high = np.r_[values.min(), borders], np.r_[borders, values.max()]
    mean = np.array([values[bins == b].mean() if share[b] else low[b] for b in range(n)])
    deviation = np.array([values[bins == b].std() if share[b] else 0.0 for b in range(n)])
    safe = np.where(deviation > 0, deviation, 1.0)
    below, above = ndtr((low - mean) / safe), ndtr((high - mean) / safe)
    z = ndtri(np.clip(below[drawn] + u[:, 1] * (above - below)[drawn], 1e-16, 1 - 1e-16))
    out = np.where(deviation[drawn] > 0, mean[drawn] + safe[drawn] * z, mean[drawn])
    return drawn, np.clip(out, low[drawn], high[drawn])
