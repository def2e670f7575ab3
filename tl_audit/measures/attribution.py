"""Numbers on attribution maps given as arrays: likeness of two maps, removal curves, faithfulness (TLA702 to 708).

A blank map (all values equal) has no ranks: scores of its row are NaN, `over_rows` leaves them out and counts them.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from tl_audit.errors import DataError
from tl_audit.measures.arrays import finite_matrix, same_length
from tl_audit.measures.estimate import BoolArray, Estimate, FloatArray
from tl_audit.measures.intervals import mean
from tl_audit.measures.permutation import representable_p, sign_flip_p
from tl_audit.measures.sampling import cluster_codes, generator


def blank_maps(maps: ArrayLike) -> BoolArray:
    """Which of the maps (N, ...) hold a single value, or a value that is not finite."""
    array = np.asarray(maps, dtype=np.float64)
    flat = array.reshape(array.shape[0], prod(array.shape[1:]))
    if flat.shape[1] == 0:
        return np.ones(array.shape[0], dtype=np.bool_)
    finite = np.isfinite(flat).all(axis=1)
    safe = np.where(np.isfinite(flat), flat, 0.0)
    return np.asarray(~finite | (safe.max(axis=1) == safe.min(axis=1)), dtype=np.bool_)


def over_rows(
    scores: ArrayLike,
    *,
    cluster: ArrayLike | None = None,
    bounds: tuple[float, float] | None = None,
    null: float | None = None,
    seed: int = 0,
) -> Estimate:
    """Mean of per-row scores with t over rows or clusters; NaN rows (blank maps) left out, counted in ``details["blank"]``.

    With a ``null`` the p-value is that of the sign-flip test [P2] of (score - null).
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1:
        raise DataError(f"scores have shape {values.shape}: expected one per row")
    known = np.isfinite(values)
    ids = None if cluster is None else cluster_codes(cluster, values.size)[known]
    result = mean(values[known], cluster=ids, bounds=bounds)
    if result.value is None:
        result = replace(result, reason="every map is blank" if values.size else "no rows")
    p = None if null is None or result.value is None else sign_flip_p(values[known] - null, cluster=ids, seed=seed)
    return replace(result, null=null, p_value=p, details=result.details | {"blank": int((~known).sum())})


def rank_correlation(first: ArrayLike, second: ArrayLike) -> FloatArray:
    """Spearman correlation of the parts of each pair of maps, (N, P) and (N, P) to (N,), -1..1; NaN where one map is blank."""
    a, b = _two_maps(first, second)
    defined = ~(blank_maps(a) | blank_maps(b))
    result = np.full(a.shape[0], np.nan)
    if defined.any():
        ra, rb = (stats.rankdata(maps[defined], axis=1) for maps in (a, b))
        ra -= ra.mean(axis=1, keepdims=True)
        rb -= rb.mean(axis=1, keepdims=True)
        result[defined] = (ra * rb).sum(axis=1) / np.sqrt((ra**2).sum(axis=1) * (rb**2).sum(axis=1))
    return result


def top_iou(first: ArrayLike, second: ArrayLike, *, share: float = 0.1, seed: int = 0) -> FloatArray:
    """Overlap (intersection / union) of the top ``share`` of parts of each pair of maps, (N,), 0–1; by chance s/(2-s).

    Ties are broken at random, separately in both maps, so that zeros do not agree by their place. NaN where one map is blank.
    """
    a, b = _two_maps(first, second)
    if not 0 < share < 1:
        raise DataError(f"share is {share}: expected a number between 0 and 1")
    k = max(1, round(share * a.shape[1]))
    rng = generator(seed, "top_iou")
    tops: list[BoolArray] = []
    same = np.array_equal(a, b)
    for maps in (a, b):
        if tops and same:
            tops.append(tops[0])  # a map agrees with itself, ties or not
            continue
        order = np.lexsort((rng.random(maps.shape), -maps), axis=1)[:, :k]
        top = np.zeros(maps.shape, dtype=np.bool_)
        np.put_along_axis(top, order, True, axis=1)
        tops.append(top)
    union = (tops[0] | tops[1]).sum(axis=1)
    result = (tops[0] & tops[1]).sum(axis=1) / np.maximum(union, 1)
    return np.where(blank_maps(a) | blank_maps(b), np.nan, result)


def sign_agreement(first: ArrayLike, second: ArrayLike) -> FloatArray:
    """Share of parts with the same sign in both maps, among those that are nonzero in both, (N,), 0–1; NaN where there are none."""
    a, b = _two_maps(first, second)
    both = (a != 0) & (b != 0)
    count = both.sum(axis=1)
    agreeing = (both & (np.sign(a) == np.sign(b))).sum(axis=1)
    return _ratio(agreeing, count)


def pooled(maps: ArrayLike, *, side: int = 14) -> FloatArray:
    """Maps (N, H, W) averaged over a grid of side × side equal areas and flattened, (N, side²); the mean of a map is kept."""
    array = np.asarray(maps, dtype=np.float64)
    if array.ndim != 3:
        raise DataError(f"maps have shape {array.shape}: expected (rows, height, width)")
    high, wide = _overlaps(array.shape[1], side), _overlaps(array.shape[2], side)
    result: FloatArray = np.einsum("ih,nhw,jw->nij", high, array, wide, optimize=True)
    return result.reshape(array.shape[0], side * side)


def random_maps(maps: ArrayLike, *, count: int = 5, seed: int = 0) -> FloatArray:
    """Random maps of the same smoothness and the same values as each map: (N, ...) to (count, N, ...).

    Pictures (N, H, W): the amplitudes of the spectrum are kept, the phases are those of noise, then the values of the map are put
    in by rank. Vectors (N, P), which have no neighbourhood: a permutation. This is the floor that any score must beat.
    """
    array = np.asarray(maps, dtype=np.float64)
    if array.ndim not in (2, 3):
        raise DataError(f"maps have shape {array.shape}: expected (rows, parts) or (rows, height, width)")
    rng = generator(seed, "random_maps")
    result = np.empty((count, *array.shape))
    ordered = np.sort(array.reshape(array.shape[0], prod(array.shape[1:])), axis=1)
    amplitude = np.abs(np.fft.fft2(array, axes=(1, 2))) if array.ndim == 3 else None
    for number in range(count):
        noise = rng.standard_normal(array.shape)
        if amplitude is not None:
            spectrum = np.fft.fft2(noise, axes=(1, 2))
            phase = spectrum / np.maximum(np.abs(spectrum), np.finfo(np.float64).tiny)
            noise = np.fft.ifft2(amplitude * phase, axes=(1, 2)).real
        flat = noise.reshape(array.shape[0], prod(array.shape[1:]))
        place = np.argsort(np.argsort(flat, axis=1, kind="stable"), axis=1, kind="stable")
        result[number] = np.take_along_axis(ordered, place, axis=1).reshape(array.shape)
    return result


# ---------------------------------------------------------------- removal curves


def curve_area(probabilities: ArrayLike, fractions: ArrayLike | None = None) -> FloatArray:
    """Area under each row's curve of class probability against the removed (or inserted) share, (N, K) to (N,), 0–1.

    Deletion: lower is better; insertion: higher is better. Trapezoids over equal steps, or over ``fractions`` (K,) from 0 to 1.
    """
    curve = finite_matrix(probabilities, "probabilities")
    steps = curve.shape[1]
    if steps < 2:
        raise DataError(f"a curve has {steps} points: expected at least 2")
    at = np.linspace(0, 1, steps) if fractions is None else np.asarray(fractions, dtype=np.float64)
    same_length(curve_points=steps, fractions=at.size)
    if (np.diff(at) <= 0).any():
        raise DataError("fractions must grow from point to point")
    area = ((curve[:, 1:] + curve[:, :-1]) / 2) @ np.diff(at) / (at[-1] - at[0])
    return np.asarray(area, dtype=np.float64)


def road_combined(least_first: ArrayLike, most_first: ArrayLike) -> FloatArray:
    """Mean over removed shares of (LeRF - MoRF)/2 of the class probability, (N, K) each to (N,); -0.5..0.5, null 0, higher is better.

    Parameters
    ----------
    least_first, most_first : probability after removing the least / the most relevant parts

    References
    ----------
    Rong et al. (2022). A consistent and efficient evaluation strategy for attribution methods. arXiv:2202.00449
    """
    a, b = finite_matrix(least_first, "least_first"), finite_matrix(most_first, "most_first")
    if a.shape != b.shape:
        raise DataError(f"least_first has shape {a.shape}, most_first {b.shape}: expected the same")
    if a.shape[1] == 0:
        raise DataError("no removed shares were given")
    return np.asarray((a - b).mean(axis=1) / 2, dtype=np.float64)


def faithfulness_gain(scores: ArrayLike, random_scores: ArrayLike, *, cluster: ArrayLike | None = None, seed: int = 0) -> Estimate:
    """Mean of (road_combined of a map - mean of its random maps), paired by sample (-1..1, null 0, higher is better); t and [P2].

    Parameters
    ----------
    scores : (N,); NaN for blank maps
    random_scores : (R, N), at least 5 random maps per sample
    """
    own, floor = np.asarray(scores, dtype=np.float64), np.asarray(random_scores, dtype=np.float64)
    if floor.ndim != 2 or own.ndim != 1 or floor.shape[1] != own.size:
        raise DataError(f"random_scores have shape {floor.shape}: expected (random maps, {own.size})")
    if floor.shape[0] < 1:
        raise DataError("no random maps were given: without them a score means nothing")
    return over_rows(own - floor.mean(axis=0), cluster=cluster, bounds=(-1.0, 1.0), null=0.0, seed=seed)


# ---------------------------------------------------------------- where the mass lies


def mass_inside(maps: ArrayLike, masks: ArrayLike) -> FloatArray:
    """Share of each map's positive mass inside the mask, (N, H, W) twice to (N,), 0–1; NaN where no value is positive."""
    array, mask = _maps_and_masks(maps, masks)
    positive = np.maximum(array, 0.0)
    total = positive.sum(axis=(1, 2))
    return _ratio((positive * mask).sum(axis=(1, 2)), total)


def mask_share(masks: ArrayLike) -> FloatArray:
    """Share of the area that each mask covers, (N, H, W) to (N,): what a uniform map would score in `mass_inside`."""
    mask = np.asarray(masks, dtype=np.float64)
    return np.asarray(mask.mean(axis=(1, 2)), dtype=np.float64)


def centre_map(height: int, width: int) -> FloatArray:
    """A centred Gaussian with a standard deviation of a quarter of each side, (H, W), sum 1: the map that beats many methods."""
    rows = np.exp(-0.5 * (((np.arange(height) + 0.5) / height - 0.5) / 0.25) ** 2)
    columns = np.exp(-0.5 * (((np.arange(width) + 0.5) / width - 0.5) / 0.25) ** 2)
    result: FloatArray = np.outer(rows, columns)
    result /= result.sum()
    return result


def pointing(maps: ArrayLike, masks: ArrayLike) -> FloatArray:
    """Whether the largest value of each map lies inside the mask, (N,), 0–1; ties give their mean, blank maps NaN."""
    array, mask = _maps_and_masks(maps, masks)
    top = array == array.max(axis=(1, 2), keepdims=True)
    result = (top * mask).sum(axis=(1, 2)) / top.sum(axis=(1, 2))
    return np.where(blank_maps(array), np.nan, result)


def poisson_binomial_p(total: float, chances: ArrayLike) -> float:
    """Two-sided test of a number of hits in independent trials, each with its own chance: twice the smaller tail, at most 1.

    Parameters
    ----------
    total : hits; may be a fraction where ties count in part, the tails then begin at the next whole number
    chances : (N,) chance of a hit in each trial, 0–1 (of the pointing game: the share of the area that the mask covers)

    Examples
    --------
    >>> poisson_binomial_p(3, [0.5, 0.5, 0.5])
    0.25
    """
    p = np.asarray(chances, dtype=np.float64)
    if p.ndim != 1 or not np.isfinite(p).all() or (p < 0).any() or (p > 1).any():
        raise DataError("chances are numbers from 0 to 1, one per trial")
    mass = np.ones(1)
    for chance in p:
        mass = np.convolve(mass, (1.0 - chance, chance))
    counts = np.arange(mass.size)
    slack = 1e-9  # the mean of ties is rounded
    tails = mass[counts >= total - slack].sum(), mass[counts <= total + slack].sum()
    return representable_p(min(1.0, 2.0 * float(min(tails))))


def centroids(maps: ArrayLike) -> FloatArray:
    """Centre of the absolute mass of each map as shares of height and width, (N, H, W) to (N, 2); NaN where a map is 0."""
    array = np.abs(np.asarray(maps, dtype=np.float64))
    total = array.sum(axis=(1, 2))
    rows = (np.arange(array.shape[1]) + 0.5) / array.shape[1]
    columns = (np.arange(array.shape[2]) + 0.5) / array.shape[2]
    sums = np.stack([array.sum(axis=2) @ rows, array.sum(axis=1) @ columns], axis=1)
    return np.stack([_ratio(sums[:, 0], total), _ratio(sums[:, 1], total)], axis=1)


def gini(maps: ArrayLike) -> FloatArray:
    """Concentration of the absolute values of each map, (N, P) to (N,): 0 for equal values, near 1 for a single peak; NaN where all are 0."""
    array = np.sort(np.abs(finite_matrix(maps, "maps")), axis=1)
    parts = array.shape[1]
    total = array.sum(axis=1)
    weight = 2 * np.arange(1, parts + 1) - parts - 1
    return _ratio(array @ weight, parts * total)


# ---------------------------------------------------------------- inside


def _ratio(above: Any, below: Any) -> FloatArray:  # Any: counts or sums, (N,)
    """above / below of each row, NaN where below is 0."""
    result = np.full(len(below), np.nan)
    np.divide(above, below, out=result, where=below > 0)
    return result


def _two_maps(first: ArrayLike, second: ArrayLike) -> tuple[FloatArray, FloatArray]:
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.ndim != 2 or a.shape != b.shape:
        raise DataError(f"maps have shapes {a.shape} and {b.shape}: expected (rows, parts) twice")
    return a, b


def _maps_and_masks(maps: ArrayLike, masks: ArrayLike) -> tuple[FloatArray, Any]:  # Any: bool array
    array, mask = np.asarray(maps, dtype=np.float64), np.asarray(masks, dtype=np.bool_)
    if array.ndim != 3 or array.shape != mask.shape:
        raise DataError(f"maps have shape {array.shape}, masks {mask.shape}: expected (rows, height, width) twice")
    return array, mask


def _overlaps(size: int, cells: int) -> FloatArray:
    """Share of each of ``cells`` equal stretches that each of ``size`` pixels covers, (cells, size); rows sum to 1."""
    cell, pixel = np.arange(cells)[:, None] * (size / cells), np.arange(size)[None, :]
    covered = np.minimum(cell + size / cells, pixel + 1) - np.maximum(cell, pixel)
    return np.asarray(np.maximum(covered, 0.0) / (size / cells), dtype=np.float64)
