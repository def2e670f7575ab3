"""An estimate: a value with its interval at many confidence levels, or the reason why there is none."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

# Two-sided error rates at which every interval is kept, so that a policy may later ask for any limit's p
# ([P5] of CHECKS.md) or a Bonferroni level without measuring again. 0.05 is one of them.
LADDER_ALPHAS: tuple[float, ...] = (
    0.5, 0.4, 0.3, 0.2, 0.15, 0.10, 0.075, 0.05, 0.04, 0.03, 0.025, 0.02,
    0.015, 0.01, 0.0075, 0.005, 0.0025, 1e-3, 5e-4, 2.5e-4, 1e-4, 5e-5, 1e-5, 1e-6,
)  # fmt: skip

Ladder = tuple[tuple[float, float, float], ...]
"""Rows of (alpha, low, high). Levels that a method cannot resolve (bootstrap tails) are left out."""


@dataclass(frozen=True)
class Estimate:
    """A number with what is needed to believe it.

    Attributes
    ----------
    value : the estimate, or None where it is undefined
    reason : why value (or its interval) is None; required then
    n : rows in the denominator of this number
    clusters : independent units behind it, None where rows are the units
    null : what chance, or "nothing happened", would give
    p_value : of the test against ``null``, None where there is none
    ladder : intervals at the levels of LADDER_ALPHAS; () where no sound interval exists
    events, nonevents : counts for rates, for the minima of CHECKS.md 1.3
    details : further facts for exhibits and caveats (deff, g_star, method, ...)
    """

    value: float | None
    n: int
    reason: str | None = None
    clusters: int | None = None
    null: float | None = None
    p_value: float | None = None
    ladder: Ladder = ()
    events: int | None = None
    nonevents: int | None = None
    details: dict[str, Any] = field(default_factory=dict)  # Any: plain JSON values, read by name

    def interval(self, confidence: float = 0.95) -> tuple[float, float] | None:
        """Interval at this confidence, interpolated between ladder levels; None without a ladder."""
        return interval_at(self.ladder, 1.0 - confidence)


def normal_quantile(alpha: float) -> float:
    """The z that a standard normal value exceeds in size with probability ``alpha`` (two-sided): 1.96 for 0.05."""
    return float(-special.ndtri(alpha / 2))


def t_quantile(alpha: float, freedom: float) -> float:
    """The same of Student's t; degrees of freedom may be fractional, and hardly any give a large number, never infinity."""
    return float(min(-special.stdtrit(max(freedom, 1e-3), alpha / 2), 1e8))


def build_ladder(bounds: Callable[[float], tuple[float, float]], *, smallest_alpha: float = 0.0) -> Ladder:
    """Intervals ``bounds(alpha) -> (low, high)`` at every level of LADDER_ALPHAS that is not below ``smallest_alpha``."""
    rows = []
    for alpha in LADDER_ALPHAS:
        if alpha < smallest_alpha:
            continue
        low, high = bounds(alpha)
        if np.isfinite(low) and np.isfinite(high):
            rows.append((alpha, float(low), float(high)))
    return tuple(rows)


def interval_at(ladder: Ladder, alpha: float) -> tuple[float, float] | None:
    """Interval at error rate ``alpha``: exact at a ladder level, else interpolated in the normal quantile.

    None where the ladder is empty or does not reach ``alpha``.
    """
    if not ladder:
        return None
    for level, low, high in ladder:
        if abs(level - alpha) < 1e-12:
            return low, high
    levels = np.array([row[0] for row in ladder])
    if alpha < levels.min() or alpha > levels.max():
        return None
    z = -special.ndtri(levels / 2)
    order = np.argsort(z)
    at = normal_quantile(alpha)
    low = np.interp(at, z[order], np.array([row[1] for row in ladder])[order])
    high = np.interp(at, z[order], np.array([row[2] for row in ladder])[order])
    return float(low), float(high)


def limit_p(ladder: Ladder, *, maximum: float | None = None, minimum: float | None = None, absolute: float | None = None) -> float | None:
    """[P5]: the smallest alpha at which the (1 - alpha) interval leaves the allowed region of a limit.

    Exactly one of ``maximum`` (broken when low > maximum), ``minimum`` (broken when high < minimum) and
    ``absolute`` (broken when the interval lies wholly outside [-absolute, absolute]) is given.
    1.0 where not even the narrowest interval leaves it; never below the finest level of the ladder. None without a ladder.
    """
    if not ladder:
        return None
    gaps = []
    for _, low, high in ladder:
        if maximum is not None:
            gaps.append(low - maximum)
        elif minimum is not None:
            gaps.append(minimum - high)
        elif absolute is not None:
            gaps.append(max(low - absolute, -absolute - high))
        else:
            raise ValueError("limit_p needs one of maximum, minimum, absolute")
    # gap > 0 means broken at that level; levels run from wide alpha (narrow interval) to small alpha (wide interval)
    rows = sorted(zip((row[0] for row in ladder), gaps, strict=True), key=lambda r: -r[0])
    if rows[0][1] <= 0:
        return 1.0
    for (a_out, g_out), (a_in, g_in) in itertools.pairwise(rows):
        if g_in <= 0:
            z_out, z_in = normal_quantile(a_out), normal_quantile(a_in)
            share = g_out / (g_out - g_in) if g_out != g_in else 1.0
            return float(2 * special.ndtr(-(z_out + share * (z_in - z_out))))
    return float(rows[-1][0])
