"""Removing some parts at a time: how far the output drops, with one fill or with several drawn ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tl_audit.attribution.evaluation import Quantity
from tl_audit.attribution.game import Game
from tl_audit.attribution.reference import Reference

FloatArray = NDArray[np.float64]
_CONDITIONAL_DRAWS = 8


class Drops(NamedTuple):
    """Of each sample.

    Attributes
    ----------
    values : (G, fills) output with everything there less the output with the parts of a group removed, once per fill
    share_left : of the fills there are, those that were not tried: the variance that a standard error speaks of; 0 where all were
    """

    values: list[FloatArray]
    share_left: float

    @property
    def drawn(self) -> bool:
        return any(v.shape[1] > 1 for v in self.values) or self.share_left > 0

    def error(self, per_fill: FloatArray) -> FloatArray:
        """Standard errors of means over the fills (last axis); NaN of one drawn fill alone."""
        fills = per_fill.shape[-1]
        if self.share_left == 0:
            return np.zeros(per_fill.shape[:-1])
        if fills < 2:
            return np.full(per_fill.shape[:-1], np.nan)
        return np.asarray(per_fill.std(axis=-1, ddof=1) * np.sqrt(self.share_left / fills))


def drops(game: Game, reference: Reference, keep: Sequence[NDArray[np.bool_]], budget: int, quantity: Quantity) -> Drops:
    """The drops for each sample's groups (``keep[i]`` (G_i, parts), False: removed), with as many fills each as the budget allows.

    Rows of a background are taken at even distances from its first to its last, so that the result does not depend on a seed.
    """
    most = max((len(k) for k in keep), default=1)
    room = max(1, (budget - 1) // max(1, most))
    if reference.shared:
        fills = min(room, len(reference))
        left = 1 - fills / len(reference)
    elif reference.method == "conditional":
        fills, left = min(room, _CONDITIONAL_DRAWS), 1.0
    else:
        fills, left = 1, 0.0
    rows = np.arange(fills) * len(reference) // fills if reference.shared else np.zeros(fills, dtype=np.int64)
    asked = [np.concatenate([np.ones((1, k.shape[1]), dtype=bool), np.repeat(k, fills, axis=0)]) for k in keep]
    draws = [np.r_[rows[:1], np.tile(rows, len(k))] for k in keep] if reference.shared else None
    found = game.values(asked, draws, quantity)
    return Drops([v[0] - v[1:].reshape(len(k), fills) for v, k in zip(found, keep, strict=True)], left)
