"""When enough evaluations are enough: rounds of them, until the intervals of a sample's values are narrow beside their range."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_HALF_WIDTH = 1.959964  # standard errors to each side of a 95 % interval
_GROWTH = 1.6


def rounds(most: int, *, first: int, convergence: float | None) -> tuple[int, ...]:
    """Numbers of evaluations after which is asked whether to stop, the last of them ``most``; that alone without ``convergence``."""
    if convergence is None or first >= most:
        return (most,)
    sizes = [first]
    while sizes[-1] * _GROWTH < most / 1.2:  # no last round of a few
        sizes.append(2 * round(sizes[-1] * _GROWTH / 2))
    return (*sizes, most)


def unsettled(number: int, n: int) -> list[str]:
    """What a reader must know where ``number`` of n samples did not get there."""
    return [f"{number} of {n} sample(s) did not reach the convergence asked for within the budget: raise it"] if number else []


def settled(values: NDArray[np.float64], errors: NDArray[np.float64], convergence: float) -> bool:
    """Whether the largest 95 % half-width of one sample's values is at most ``convergence`` times their range (the value itself, of one part alone)."""
    if not len(values):
        return True
    known = np.isfinite(errors)
    if not np.isfinite(values).all() or not known.any():
        return not np.isfinite(values).all()  # more evaluations do not mend an output that is not finite
    spread = float(np.ptp(values)) if len(values) > 1 else abs(float(values[0]))
    return bool(_HALF_WIDTH * float(errors[known].max()) <= convergence * spread)
