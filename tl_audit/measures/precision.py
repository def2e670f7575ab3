"""How large a sample a limit asks for: the planning side of the intervals (TLA209, CHECKS.md 1.2)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from tl_audit.errors import DataError
from tl_audit.measures.estimate import FloatArray, normal_quantile

POWER = 0.8
GROWTH = ((1.959963984540054 + 0.8416212335729143) / 1.959963984540054) ** 2
"""2.04: units for an 80 % chance of a decision, against about 50 % without it."""
MOST_GROWTH = 100
_LOOK_AHEAD = 64


def units_needed(value: float, limit: float, interval: tuple[float, float], n: int) -> int | None:
    """Units that settle on which side of a limit a value lies, with a chance of 80 % if the truth equals the estimate.

    2.04 n (w/d)², d the distance of the value from the limit, w that of the value from the end of its interval on that side; assumes that the
    interval narrows with the square root of n. None where no realistic number does: the value lies at the limit, or more than 100 n are needed.

    Examples
    --------
    >>> units_needed(0.80, 0.70, (0.72, 0.88), 100)
    131
    """
    low, high = interval
    gap, width = abs(value - limit), (value - low if value > limit else high - value)
    if n <= 0 or gap <= 0:
        return None
    needed = GROWTH * n * (width / gap) ** 2
    return None if needed > MOST_GROWTH * n else max(1, math.ceil(needed))


def decision_chance(n: ArrayLike, rate: float, limit: float, *, confidence: float = 0.95) -> FloatArray:
    """(len(n),) chance that the Wilson interval of ``n`` rows excludes the limit on the side of the true rate; exact, by the binomial distribution."""
    sizes = np.atleast_1d(np.asarray(n, dtype=np.int64))
    if not (0 <= rate <= 1 and 0 <= limit <= 1) or rate == limit:
        raise DataError(f"a rate of {rate} and a limit of {limit}: expected two different numbers from 0 to 1")
    # the interval excludes the limit where the score test of the limit rejects
    reach = normal_quantile(1 - confidence) * np.sqrt(sizes * limit * (1 - limit))
    if rate > limit:
        return np.asarray(stats.binom.sf(np.floor(sizes * limit + reach), sizes, rate), dtype=np.float64)
    return np.asarray(stats.binom.cdf(np.ceil(sizes * limit - reach) - 1, sizes, rate), dtype=np.float64)


def rows_for_rate(rate: float, limit: float, *, confidence: float = 0.95, power: float = POWER, most: int = 10_000_000) -> int | None:
    """Fewest rows from which on the Wilson interval tells a true rate from a limit with this chance; None above ``most``.

    The chance rises in teeth; the number given is the first after which it stays.
    """
    low, high = 1, 2
    while decision_chance(high, rate, limit, confidence=confidence)[0] < power or _dips(high, rate, limit, confidence, power):
        low, high = high, high * 2
        if high > most:
            return None
    # beyond a quarter of the way up the teeth are too low to matter: walk back from where the chance stays above
    step = max(1, (high - low) // 4096)
    sizes = np.arange(max(1, low // 2), high + _LOOK_AHEAD * step, step)
    chance = decision_chance(sizes, rate, limit, confidence=confidence)
    short = np.flatnonzero(chance < power)
    first = int(sizes[short[-1]]) + 1 if short.size else int(sizes[0])
    if step == 1:
        return first
    fine = np.arange(max(1, first - 2 * step), first + 2 * step)
    short = np.flatnonzero(decision_chance(fine, rate, limit, confidence=confidence) < power)
    return int(fine[short[-1]]) + 1 if short.size else int(fine[0])


def _dips(n: int, rate: float, limit: float, confidence: float, power: float) -> bool:
    ahead = n + np.arange(1, _LOOK_AHEAD) * max(1, n // _LOOK_AHEAD)
    return bool((decision_chance(ahead, rate, limit, confidence=confidence) < power).any())
