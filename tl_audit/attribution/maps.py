"""From raw values to an Attribution's maps: elements and players are two views of one map; blank maps are found here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.attribution.base import Attribution, Inputs, Run, Targets
from tl_audit.modality.base import Players

PlayerValues = tuple[NDArray[np.float64], ...]

# A map whose largest difference is below this share of its largest value shows nothing but rounding.
_RELATIVE = 1e-6
_ABSOLUTE = 1e-12


def from_elements(values: torch.Tensor, players: Players) -> tuple[NDArray[np.float64], PlayerValues]:
    """Maps and player values of elementwise values (N, [C,] *spatial) or (N, D): a player's value is the sum of its elements."""
    values = values.detach().double().cpu()
    if values.ndim > players.assignment.ndim:  # channels share the assignment
        values = values.sum(dim=1)
    pooled = tuple(players.pool(values))
    if not players.spatial:
        return np.stack(pooled), pooled
    return values.numpy(), pooled


def from_players(values: Sequence[NDArray[np.float64]], players: Players) -> tuple[NDArray[np.float64], PlayerValues]:
    """Maps and player values of values per player: on an image a player's value is spread evenly over its area, so that maps still sum to it."""
    pooled = tuple(np.asarray(v, dtype=np.float64) for v in values)
    if not players.spatial:
        return np.stack(pooled), pooled
    shared = [v / np.maximum(area, 1) for v, area in zip(pooled, players.all_areas(), strict=True)]
    return players.spread(shared), pooled


def finished(
    method: str,
    inputs: Inputs,
    targets: Targets,
    run: Run,
    maps: tuple[NDArray[np.float64], PlayerValues],
    *,
    signed: bool,
    spent: int,
    params: Mapping[str, Any],  # Any: plain JSON values
    caveats: Iterable[str],
    standard_error: PlayerValues | None = None,
    completeness: NDArray[np.float64] | None = None,
) -> Attribution:
    """The Attribution of maps and player values; ``spent`` evaluations of all samples together. Half a map is none, and blank ones are marked."""
    elements = without_nonfinite(maps[0])
    return Attribution(
        values=elements,
        player_values=maps[1],
        targets=targets.index,
        against=targets.against,
        method=method,
        inputs=inputs,
        signed=signed,
        seed=run.seed,
        budget=-(-spent // max(len(inputs), 1)),
        completeness=completeness,
        standard_error=standard_error,
        blank=blank_maps(elements),
        params=params,
        caveats=tuple(caveats),
    )


def blank_maps(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N,) maps that are zero, constant or not finite: they show nothing and are never averaged in."""
    flat = values.reshape(len(values), -1)
    if flat.shape[1] == 0:
        return np.ones(len(values), dtype=bool)
    finite, low, high = _extremes(flat)
    size, spread = np.maximum(np.abs(low), np.abs(high)), high - low
    # one column alone has no spread: only zero is blank there
    constant = (spread <= _RELATIVE * size) & (flat.shape[1] > 1)
    blank: NDArray[np.bool_] = ~finite | (size <= _ABSOLUTE) | constant
    return blank


def _extremes(flat: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
    """(N,) whether a row is finite, and its smallest and largest number; 0 of rows that are not. Two passes over (N, D), D at least 1, no copies."""
    low, high = flat.min(axis=1), flat.max(axis=1)  # not a number if any is not
    finite = np.isfinite(low) & np.isfinite(high)
    return finite, np.where(finite, low, 0.0), np.where(finite, high, 0.0)


def without_nonfinite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The maps, with every non-finite map all NaN (half a map is not a map)."""
    flat = values.reshape(len(values), -1)
    if flat.shape[1] == 0 or (finite := _extremes(flat)[0]).all():
        return values
    out = values.copy()
    out[~finite] = np.nan
    return out
