"""Adjusted p-values for many tests at once: Holm inside a family, Benjamini-Hochberg for exploratory lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tl_audit.errors import DataError
from tl_audit.measures.estimate import FloatArray


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm-adjusted p-values [M1]: reject those below alpha and the chance of any false rejection stays below alpha.

    None (no test) stays None and does not count as a test.

    References
    ----------
    Holm (1979). A simple sequentially rejective multiple test procedure. Scandinavian Journal of Statistics 6.

    Examples
    --------
    >>> holm([0.01, None, 0.04])
    [0.02, None, 0.04]
    """
    return _adjust(p_values, _holm)


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """Benjamini-Hochberg q-values [M2]: of those below q, at most a share q is false on average. None stays None.

    References
    ----------
    Benjamini, Hochberg (1995). Controlling the false discovery rate. JRSS B 57.

    Examples
    --------
    >>> benjamini_hochberg([0.01, None, 0.04])
    [0.02, None, 0.04]
    """
    return _adjust(p_values, _benjamini_hochberg)


def _holm(p: FloatArray) -> FloatArray:
    m = p.size
    return np.minimum(1.0, np.maximum.accumulate((m - np.arange(m)) * p))


def _benjamini_hochberg(p: FloatArray) -> FloatArray:
    m = p.size
    return np.minimum(1.0, np.minimum.accumulate((m / np.arange(m, 0, -1)) * p[::-1])[::-1])


def _adjust(p_values: Sequence[float | None], rule: Callable[[FloatArray], FloatArray]) -> list[float | None]:
    known = [position for position, p in enumerate(p_values) if p is not None]
    p = np.array([p_values[position] for position in known], dtype=np.float64)
    if p.size and not bool(((p >= 0) & (p <= 1)).all()):
        raise DataError("p-values must lie between 0 and 1")
    result: list[float | None] = [None] * len(p_values)
    if p.size:
        order = np.argsort(p, kind="stable")
        for rank, value in zip(order.tolist(), rule(p[order]).tolist(), strict=True):
            result[known[rank]] = float(value)
    return result
