"""Removal curves: a model run on inputs with parts removed in the order of a map, and maps that know nothing, to compare with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.attribution.base import Inputs, Targets
from tl_audit.attribution.evaluation import evaluating
from tl_audit.attribution.maps import PlayerValues
from tl_audit.measures import attribution as measures
from tl_audit.measures.attribution import curve_area
from tl_audit.measures.sampling import generator
from tl_audit.modality.base import Players
from tl_audit.models.model import Model

STEPS: tuple[float, ...] = tuple(k / 10 for k in range(1, 10))
"""Shares removed, besides 0 and 1, which all orders have in common: K = 10 steps."""
ROAD_SHARES: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)

FloatArray = NDArray[np.float64]


class Ranking(NamedTuple):
    """An order of removal. ``orders``: per sample, players from most to least relevant; ``shares``: where the curve is read."""

    orders: Sequence[NDArray[np.int64]]
    shares: tuple[float, ...]


class Curves(NamedTuple):
    """Class probability as input parts are removed.

    Attributes
    ----------
    shares : (K,) share removed, from 0 to 1
    most_first, least_first : (N, K) probability of the target with the most (least) relevant share removed
    """

    shares: FloatArray
    most_first: FloatArray
    least_first: FloatArray

    @property
    def deletion_auc(self) -> FloatArray:
        """(N,) area under the curve of removing the most relevant first. 0 to 1, lower is better (Petsiuk 2018, arXiv:1806.07421)."""
        return curve_area(self.most_first, self.shares)

    @property
    def insertion_auc(self) -> FloatArray:
        """(N,) area under the curve of putting the most relevant in first: removing the least relevant first, read backwards. Higher is better."""
        return curve_area(self.least_first, self.shares)

    @property
    def road_combined(self) -> FloatArray:
        """(N,) mean over 20, 40, 60, 80 % removed of (least first - most first) / 2. -0.5 to 0.5, null 0 (Rong 2022, arXiv:2202.00449)."""
        at = [int(np.argmin(np.abs(self.shares - share))) for share in ROAD_SHARES]
        return measures.road_combined(self.least_first[:, at], self.most_first[:, at])


def relevance_orders(
    player_values: PlayerValues, players: Players, *, key: tuple[object, ...], ids: Sequence[str]
) -> list[NDArray[np.int64]]:
    """Players of each sample from most to least relevant: by value per area on images, by value on columns. Ties by a seeded draw."""
    orders = []
    for i, values in enumerate(player_values):
        density = np.nan_to_num(values / np.maximum(players.areas(i), 1e-12), nan=-np.inf)
        orders.append(np.lexsort((generator(*key, ids[i]).random(len(values)), -density)).astype(np.int64))
    return orders


def kept_after(order: NDArray[np.int64], areas: FloatArray, shares: Sequence[float]) -> NDArray[np.bool_]:
    """(len(shares), d) players kept once the first of ``order`` are removed whose joint area comes nearest to each share."""
    reached = np.concatenate([[0.0], np.cumsum(areas[order])]) / areas.sum()
    keep = np.ones((len(shares), len(order)), dtype=bool)
    for row, share in enumerate(shares):
        keep[row, order[: int(np.argmin(np.abs(reached - share)))]] = False
    return keep


def removal_curves(
    model: Model,
    inputs: Inputs,
    targets: Targets,
    rankings: Mapping[str, Ranking],
    *,
    seed: int,
    batch_size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Curves]:
    """Curves of every ranking. Parts are filled in as the kind of data prescribes; equal masks of a sample are run once.

    Parameters
    ----------
    rankings : name -> order and shares; all are evaluated in shared batches
    """
    n = len(inputs.tensor)
    store = {name: (np.zeros((n, len(r.shares) + 2)), np.zeros((n, len(r.shares) + 2))) for name, r in rankings.items()}
    planned = sum(2 * (len(r.shares) + 2) for r in rankings.values())
    with evaluating(model, batch_size=batch_size, outputs_only=planned, sample=inputs.tensor[:8]) as evaluator:
        inputs = evaluator.moved(inputs)
        for i in range(n):
            areas = inputs.players.areas(i)
            wanted: dict[bytes, int] = {}
            masks: list[NDArray[np.bool_]] = []
            places: list[tuple[FloatArray, int, int]] = []
            for name, ranking in rankings.items():
                shares = (0.0, *ranking.shares, 1.0)
                for curve, order in zip(store[name], (ranking.orders[i], ranking.orders[i][::-1]), strict=True):
                    for column, mask in enumerate(kept_after(order, areas, shares)):
                        at = wanted.setdefault(mask.tobytes(), len(masks))
                        if at == len(masks):
                            masks.append(mask)
                        places.append((curve, column, at))
            scores = []
            for start in range(0, len(masks), evaluator.batch_size):
                keep = np.array(masks[start : start + evaluator.batch_size])
                x = inputs.modality.mask(
                    inputs.tensor, inputs.players, _padded(keep, inputs.players), index=np.full(len(keep), i, dtype=np.int64),
                    spec=inputs.spec, method=inputs.modality.default_mask, background=inputs.background,
                    key=(seed, "removal", inputs.ids[i], start),
                )  # fmt: skip
                scores.append(evaluator.scores(x, targets[np.full(len(keep), i)], "probability"))
            found = np.concatenate(scores)
            for curve, column, at in places:
                curve[i, column] = found[at]
            progress(i + 1, n)
    return {name: Curves(np.array((0.0, *r.shares, 1.0)), *store[name]) for name, r in rankings.items()}


def random_maps(values: FloatArray, players: Players, *, draws: int, key: tuple[object, ...], ids: Sequence[str]) -> list[list[FloatArray]]:
    """``draws`` maps per sample that know nothing of the model and are as smooth as the given ones: (draws, N) of map arrays.

    Those of ``measures.attribution``, drawn per sample from (key, id). Blank maps give noise.
    """
    out: list[list[FloatArray]] = [[] for _ in range(draws)]
    for i, row in enumerate(values):
        rng = generator(*key, ids[i])
        if np.isfinite(row).all() and np.ptp(row) > 0:
            drawn = measures.random_maps(row[None], count=draws, seed=int(rng.integers(2**62)))[:, 0]
        else:
            drawn = rng.standard_normal((draws, *row.shape))
        for draw in range(draws):
            out[draw].append(drawn[draw])
    return out


def pooled_to_players(maps: Sequence[FloatArray], players: Players) -> PlayerValues:
    """Values per player of maps: sums over superpixels; columns as they are."""
    if not players.spatial:
        return tuple(maps)
    return tuple(players.pool(torch.as_tensor(np.stack(maps))))


def _padded(keep: NDArray[np.bool_], players: Players) -> NDArray[np.bool_]:
    """Masks of one sample with as many columns as the sample with most players has."""
    wide = np.ones((len(keep), int(players.count.max())), dtype=bool)
    wide[:, : keep.shape[1]] = keep
    return wide
