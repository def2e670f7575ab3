"""Colour tables of maps and the scale they are laid over: one place, so that a map, its legend and its figure cannot differ."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Colours = tuple[tuple[int, int, int], ...]

# cividis at ten even steps (Nuñez, Anderton & Renslow 2018, doi:10.1371/journal.pone.0199239): even lightness, readable without red-green vision
CIVIDIS: Colours = ((0, 34, 78), (18, 53, 112), (59, 73, 108), (87, 93, 109), (112, 113, 115), (138, 134, 120), (165, 156, 116), (195, 179, 105), (225, 204, 85), (254, 232, 56))  # fmt: skip
BLUE_WHITE_ORANGE: Colours = ((5, 74, 145), (62, 124, 177), (129, 164, 205), (245, 245, 245), (249, 181, 114), (230, 126, 34), (166, 74, 4))
SATURATED = 0.995
"""One strongest point of 200 may lie beyond the scale, so that a single pixel does not make the rest of a map pale."""


def colour_table(signed: bool) -> Colours:
    """Blue-white-orange centred at 0 for signed maps, cividis from low to high for others."""
    return BLUE_WHITE_ORANGE if signed else CIVIDIS


def painted(values: NDArray[np.float64], table: Colours) -> NDArray[np.uint8]:
    """Values in 0..1 (any shape) as RGB (..., 3) of a colour table, linear between its steps."""
    at = np.clip(values, 0, 1) * (len(table) - 1)
    steps = np.arange(len(table))
    channels = [np.interp(at, steps, np.array([rgb[c] for rgb in table], dtype=float)) for c in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def reach(values: NDArray[np.float64], *, signed: bool) -> tuple[float, float] | None:
    """The values at both ends of the colour scale of one or more maps: (-r, r) for signed maps, else from 0 (or the lowest) to r; None for maps without signal.

    ``r`` is the 99.5 % point of what is finite: of |value| for signed maps, of the value for others.
    """
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return None
    size = np.abs(finite) if signed else finite
    high = float(np.quantile(size, SATURATED)) or float(size.max())
    low = -high if signed else min(0.0, float(finite.min()))
    return (low, high) if high > low else None
