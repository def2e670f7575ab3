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
from tl_audit.modality.base import PerInput, Players
from tl_audit.models.model import Model

STEPS: tuple[float, ...] = tuple(k / 10 for k in range(1, 10))
"""Shares removed, besides 0 and 1, which all orders have in common: K = 10 steps."""
FILLED_AT_ONCE = 1_200_000
"""Numbers of inputs whose removed parts are filled in together: solving for them has a price per call (see modality.imputation)."""
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
    kept: NDArray[np.bool_] = kept_after_all(order[None], areas[None], shares)[0]
    return kept


def kept_after_all(orders: NDArray[np.int64], areas: FloatArray, shares: Sequence[float]) -> NDArray[np.bool_]:
    """As ``kept_after`` for N samples at once: (N, d) orders and areas to (N, len(shares), d). Players that a sample lacks have no area and come last."""
    n, d = orders.shape
    rank = np.empty_like(orders)
    np.put_along_axis(rank, orders, np.broadcast_to(np.arange(d), (n, d)), axis=1)
    reached = np.zeros((n, d + 1))
    np.cumsum(np.take_along_axis(areas, orders, axis=1), axis=1, out=reached[:, 1:])
    reached /= areas.sum(axis=1, keepdims=True)
    cut = np.stack([np.abs(reached - share).argmin(axis=1) for share in shares], axis=1)
    return np.asarray(rank[:, None, :] >= cut[:, :, None])


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

    What is drawn to fill a part depends on (seed, sample id) and on the mask alone, so that neither the batch size nor the other samples,
    rankings or methods matter.

    Parameters
    ----------
    rankings : name -> order and shares; all are evaluated in shared batches
    """
    n, most = len(inputs.tensor), int(inputs.players.count.max()) if len(inputs.tensor) else 0
    areas = np.zeros((n, most))
    for i in range(n):
        areas[i, : inputs.players.count[i]] = inputs.players.areas(i)
    planned: list[NDArray[np.bool_]] = []
    for ranking in rankings.values():
        shares = (0.0, *ranking.shares, 1.0)
        planned += [kept_after_all(orders, areas, shares) for orders in _both_ways(ranking.orders, most)]
    masks = np.concatenate(planned, axis=1)
    sample, flags, place = _distinct(masks)
    found = np.empty(len(sample))
    at_once = max(batch_size, FILLED_AT_ONCE // max(1, inputs.tensor[:1].numel()))
    key = PerInput(tuple((seed, "removal", identity) for identity in inputs.ids))
    with evaluating(model, batch_size=batch_size, outputs_only=masks.shape[1], sample=inputs.tensor[:8]) as evaluator:
        inputs = evaluator.moved(inputs)
        for start in range(0, len(sample), at_once):
            rows = slice(start, start + at_once)
            x = inputs.modality.mask(
                inputs.tensor, inputs.players, flags[rows], index=sample[rows], spec=inputs.spec, method=inputs.modality.default_mask,
                background=inputs.background, key=key,
            )  # fmt: skip
            found[rows] = evaluator.scores(x, targets[sample[rows]], "probability")
            progress(int(sample[rows][-1]) + 1, n)
    scores = found[place]
    out: dict[str, Curves] = {}
    column = 0
    for name, ranking in rankings.items():
        points = len(ranking.shares) + 2
        ends = column + points, column + 2 * points
        out[name] = Curves(np.array((0.0, *ranking.shares, 1.0)), scores[:, column : ends[0]], scores[:, ends[0] : ends[1]])
        column = ends[1]
    return out


def _both_ways(orders: Sequence[NDArray[np.int64]], most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(N, most) orders from the most and from the least relevant; players that a sample lacks come last in both."""
    forth = np.broadcast_to(np.arange(most), (len(orders), most)).copy()
    back = forth.copy()
    for i, order in enumerate(orders):
        forth[i, : len(order)], back[i, : len(order)] = order, order[::-1]
    return forth, back


def _distinct(masks: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Masks (N, T, d) without those that occur twice in a sample: sample of each (R,), the masks (R, d), and where each of N x T is found (N, T)."""
    packed = np.packbits(masks, axis=2)
    names = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[2])))[:, :, 0]
    sample, flags, place, count = [], [], np.empty(masks.shape[:2], dtype=np.int64), 0
    for i, row in enumerate(names):
        _, first, back = np.unique(row, return_index=True, return_inverse=True)
        sample.append(np.full(len(first), i, dtype=np.int64))
        flags.append(masks[i, first])
        place[i] = back.reshape(-1) + count
        count += len(first)
    return np.concatenate(sample), np.concatenate(flags), place


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
