"""How numbers are written: one place for decimals, intervals, sample sizes, limits and p-values.

Decimals follow the interval: to the first significant digit of its half-width, at most four, and one more (at most six) where rounding
would put the value or a bound on the other side of a limit. Rounding happens here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tl_audit.records.findings import LimitOutcome
from tl_audit.records.metrics import Metric

__all__ = [
    "bound",
    "confidence",
    "count",
    "decimals",
    "interval",
    "limit",
    "metric",
    "number",
    "p_value",
    "sample_size",
    "share",
    "slice_words",
    "value",
]

MINUS = "\u2212"
MOST_DECIMALS = 4
SYMBOLS = {"max": "≤", "min": "≥", "abs": "≤"}


def number(x: float, places: int) -> str:
    """``x`` with a fixed number of decimals and a true minus sign; never "-0.0"."""
    text = f"{x:.{places}f}"
    if float(text) == 0.0:
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def count(x: float) -> str:
    """A whole number, thousands apart by a thin space."""
    return f"{round(x):,}".replace(",", "\u202f").replace("-", MINUS)


def significant(x: float, digits: int = 3) -> str:
    """``x`` to some significant digits, at most four decimals; powers of ten where it is smaller or larger than that can show."""
    if x == 0:
        return "0"
    size = math.floor(math.log10(abs(x)))
    if size < -MOST_DECIMALS or size >= 9:
        mantissa = number(x / 10.0**size, 1)
        return f"{mantissa} × 10{_superscript(size)}"
    if size >= digits - 1:
        return count(x)
    return number(x, min(MOST_DECIMALS, digits - 1 - size))


def _superscript(power: int) -> str:
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def plain(x: float) -> str:
    """A number without an interval: whole numbers whole, others to three significant digits, without trailing zeros."""
    return count(x) if float(x).is_integer() and abs(x) < 1e12 else trimmed(x)


def trimmed(x: float, digits: int = 3) -> str:
    """``significant`` without trailing zeros: 0.500 → 0.5."""
    text = significant(x, digits)
    return text.rstrip("0").rstrip(".") if "." in text and "×" not in text else text


def decimals(x: float | None, low: float, high: float, limits: Sequence[float] = ()) -> int:
    """How many decimals a value and its interval are written with.

    Parameters
    ----------
    x : the value, or None
    low, high : interval
    limits : bounds on which no rounded number may change sides

    Examples
    --------
    >>> decimals(0.716, 0.63, 0.80)
    2
    >>> decimals(0.7996, 0.7951, 0.804, [0.80])
    4
    """
    half = (high - low) / 2
    places = MOST_DECIMALS if half <= 0 else min(MOST_DECIMALS, max(0, -math.floor(math.log10(half))))
    numbers = [v for v in (x, low, high) if v is not None]
    while places < MOST_DECIMALS + 2 and any(_changes_side(v, places, edge) for v in numbers for edge in limits):
        places += 1
    return places


def _changes_side(x: float, places: int, edge: float) -> bool:
    shown = round(x, places)
    return (x < edge) != (shown < edge) or (x > edge) != (shown > edge)


def interval(low: float, high: float, places: int) -> str:
    """``0.63–0.80``; with "to" where a bound is negative, because a dash beside a minus cannot be read."""
    joiner = " to " if low < 0 or high < 0 else "–"
    return number(low, places) + joiner + number(high, places)


def confidence(level: float | None) -> str:
    """``95 % CI``."""
    if level is None:
        return "interval"
    percent = f"{level * 100:.2f}".rstrip("0").rstrip(".")
    return f"{percent} % CI"


def share(x: float) -> str:
    """A share as percent: 0.125 → ``12.5 %``."""
    percent = x * 100
    return (number(percent, 0) if abs(percent - round(percent)) < 0.05 else number(percent, 1)) + " %"


def p_value(p: float) -> str:
    """Two significant digits, ``< 0.0001`` below that."""
    if p < 0.0001:
        return "< 0.0001"
    if p >= 0.995:
        return "1.0"
    return number(p, max(2, 1 - math.floor(math.log10(p))))


def sample_size(n: Mapping[str, int], clusters: Mapping[str, int] | None = None) -> str:
    """``118``, ``118 in 14 clusters``, or ``source 900, target 400``; empty where no n was recorded."""
    if not n:
        return ""
    parts = []
    for role, rows in n.items():
        text = count(rows) if len(n) == 1 else f"{role} {count(rows)}"
        if clusters and role in clusters:
            text += f" in {count(clusters[role])} clusters"
        parts.append(text)
    return ", ".join(parts)


def slice_words(slice: Mapping[str, str]) -> str:
    """``sex = female, site = north``; empty where the metric is of everything."""
    return ", ".join(f"{column} = {value}" for column, value in slice.items())


def bound(outcome: LimitOutcome) -> str:
    """``≥ 0.80``, ``≤ 0.10``, ``|value| ≤ 0.10``."""
    text = f"{SYMBOLS[outcome.bound]} {_limit_value(outcome.value)}"
    return f"|value| {text}" if outcome.bound == "abs" else text


def _limit_value(x: float) -> str:
    if float(x).is_integer():
        return count(x)
    text = f"{x:.6f}".rstrip("0")
    digits = len(text.split(".")[1])
    return significant(x) if digits == 0 or float(text) == 0.0 else number(x, max(2, digits))


def edges(outcomes: Sequence[LimitOutcome]) -> list[float]:
    """The numbers that no rounding may cross."""
    out = []
    for outcome in outcomes:
        out.append(outcome.value)
        if outcome.bound == "abs":
            out.append(-outcome.value)
    return out


def value(m: Metric, outcomes: Sequence[LimitOutcome] = ()) -> str:
    """The value of a metric alone, or why there is none."""
    if m.value is None:
        return undefined(m.reason)
    unit = f" {m.unit}" if m.unit else ""
    if m.interval is None:
        return plain(m.value) + unit
    return number(m.value, decimals(m.value, *m.interval, edges(outcomes))) + unit


def undefined(reason: str | None) -> str:
    """``not defined: no positives``; a suppressed cell says only that."""
    text = (reason or "no reason was recorded").strip()
    return text if text.lower().startswith(("suppressed", "not defined", "not computed", "not assessed")) else f"not defined: {text}"


def metric_interval(m: Metric, outcomes: Sequence[LimitOutcome] = ()) -> str:
    """The interval of a metric alone; empty where there is none."""
    if m.value is None or m.interval is None:
        return ""
    return interval(*m.interval, decimals(m.value, *m.interval, edges(outcomes)))


def limit(outcome: LimitOutcome) -> str:
    """``limit ≥ 0.80`` or ``warning limit ≤ 0.60``."""
    return ("limit " if outcome.level == "fail" else "warning limit ") + bound(outcome)


def metric(m: Metric, outcomes: Sequence[LimitOutcome] = (), *, source: str = "") -> str:
    """The whole number: ``0.72 (95 % CI 0.63–0.80; n = 118; limit ≥ 0.80; source: policy default v1)``.

    Parameters
    ----------
    m : the metric
    outcomes : the limits that were held against exactly this metric and slice
    source : which policy the limits come from, e.g. "policy default v1"
    """
    parts = []
    if m.value is not None:
        if m.interval is not None:
            parts.append(f"{confidence(m.confidence)} {metric_interval(m, outcomes)}")
        elif m.reason and not m.exact:
            parts.append(f"no interval: {m.reason}")
    size = sample_size(m.n, m.clusters)
    if size:
        parts.append(f"n = {size}" if len(m.n) == 1 else f"n: {size}")
    if m.null is not None:
        parts.append(f"by chance {plain(m.null)}")
    parts.extend(limit(outcome) for outcome in outcomes)
    if outcomes and source:
        parts.append(f"source: {source}")
    return value(m, outcomes) + (f" ({'; '.join(parts)})" if parts else "")
