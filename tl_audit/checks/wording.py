"""Numbers in the sentences that checks write. Tables and pages format their own; here a value that is None gets words."""

from __future__ import annotations

UNDEFINED = "not defined"


def percent(value: float | None) -> str:
    """A share, "75.9 %"."""
    return UNDEFINED if value is None else f"{100 * value:.1f} %".replace("-", "−")


def signed(value: float | None) -> str:
    """A difference, "+0.034" or "−0.034"."""
    return UNDEFINED if value is None else f"{value:+.3f}".replace("-", "−")


def counted(n: int, what: str) -> str:
    """A number of things whose plural takes an s, "1 method", "3 methods"."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def number(value: float | None) -> str:
    """A value with three decimals."""
    return UNDEFINED if value is None else f"{value:.3f}".replace("-", "−")


def amount_of(value: float | None, unit: str | None) -> str:
    """A number in its unit, four digits, "41.23 mm" or "−0.31"."""
    return UNDEFINED if value is None else f"{value:.4g}".replace("-", "−") + (f" {unit}" if unit else "")


def bounds(interval: tuple[float, float] | None) -> str:
    """An interval, "0.120 to 0.310"."""
    return "none" if interval is None else f"{number(interval[0])} to {number(interval[1])}"


def p_value(value: float | None) -> str:
    """A p-value with two digits."""
    return "not tested" if value is None else f"{value:.2g}"
