"""When samples were taken: any dates, numbers or names of periods become a few periods in order."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tl_audit.errors import DataError
from tl_audit.modality.annotations import one_dimensional
from tl_audit.modality.cells import cell_text, text_number
from tl_audit.modality.options import suggest

Period = Literal["day", "month", "quarter", "year"]
PERIODS: tuple[str, ...] = get_args(Period)
MOST_AS_GIVEN = 60
"""Distinct times beyond which a length of period must be named."""
_NO_TIME = ("", "nan", "nat", "none", "na", "n/a", "null", "?", "<na>")
_YEAR = re.compile(r"^(\d{4})$")
_MONTH = re.compile(r"^(\d{4})-(\d{1,2})$")
_QUARTER = re.compile(r"^(\d{4})[- ]?Q([1-4])$", re.IGNORECASE)


@dataclass(frozen=True)
class Periods:
    """The period of each row, in order of time.

    Attributes
    ----------
    codes : (N,) number of the row's period in ``names``, -1 where its time is missing
    names : of the periods that occur, earliest first
    positions : place of each period on the axis of time, the earliest at 0; equal steps are equal lengths of time for calendar
        periods, and one step each for periods as given
    unit : what one step is, "month" or "period"
    """

    codes: NDArray[np.int64]
    names: tuple[str, ...]
    positions: tuple[float, ...]
    unit: str

    def take(self, rows: NDArray[np.int64]) -> Periods:
        """The periods of these rows; names and places stay those of the whole."""
        return Periods(self.codes[rows], self.names, self.positions, self.unit)

    @property
    def texts(self) -> NDArray[np.object_]:
        """(N,) name of each row's period, None where its time is missing."""
        return np.asarray(np.array([*self.names, None], dtype=object)[self.codes], dtype=object)


def periods_of(values: Any, n: int, period: str | None, what: str = "time") -> Periods:  # Any: see one_dimensional
    """Periods of n times.

    Parameters
    ----------
    values : (N,) ISO dates or times, "2024-03", "2024-Q1", years; without ``period`` also numbers or any names that sort
    period : "day", "month", "quarter" or "year"; None: the values are the periods

    Raises
    ------
    DataError : an unknown period, a time that is no date (with ``period``), too many different times (without), no time at all
    """
    if period is not None and period not in PERIODS:
        raise DataError(f"unknown period {period!r}{suggest(period, PERIODS)}; known: {', '.join(PERIODS)}")
    texts = [cell_text(value) for value in one_dimensional(values, n, what).tolist()]
    known = [None if text is None or text.lower() in _NO_TIME else text for text in texts]
    distinct = {text for text in known if text is not None}
    if not distinct:
        raise DataError(f"{what} holds no value: every time is missing")
    if period is not None:
        return _calendar(known, distinct, period, what)
    if len(distinct) > MOST_AS_GIVEN:
        raise DataError(
            f"{what} has {len(distinct)} different values, more than {MOST_AS_GIVEN}: say how long a period is, with period = "
            + ", ".join(f'"{name}"' for name in PERIODS)
        )
    names = tuple(sorted(distinct, key=_order(distinct)))
    place = {name: i for i, name in enumerate(names)}
    codes = np.array([-1 if text is None else place[text] for text in known], dtype=np.int64)
    return Periods(codes, names, tuple(float(i) for i in range(len(names))), "period")


def _order(distinct: set[str]) -> Callable[[str], Any]:  # Any: keys that compare with one another
    """By value where all are numbers; else as people count, so that "week 10" comes after "week 2"."""
    if all(text_number(text) is not None for text in distinct):
        return lambda text: (text_number(text), text)
    return lambda text: ([(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", text)], text)


def _calendar(known: list[str | None], distinct: set[str], period: str, what: str) -> Periods:
    numbers = {text: _number(text, period, row, what) for row, text in enumerate(known) if text is not None}
    present = sorted(set(numbers.values()))
    place = {number: i for i, number in enumerate(present)}
    codes = np.array([-1 if text is None else place[numbers[text]] for text in known], dtype=np.int64)
    names = tuple(_name(number, period) for number in present)
    return Periods(codes, names, tuple(float(number - present[0]) for number in present), period)


def _number(text: str, period: str, row: int, what: str) -> int:
    """Which day, month, quarter or year of the calendar a text falls in, as a running number."""
    year, month, day = _parts(text, row, what)
    if period == "year":
        return year
    if month is None or (period == "month" and month < 0) or (period == "day" and day is None):
        raise DataError(f"{what}: row {row} holds {text!r}, which does not say its {period}")
    if period == "quarter":
        return 4 * year + (-month if month < 0 else (month - 1) // 3 + 1) - 1
    if period == "month":
        return 12 * year + month - 1
    assert day is not None  # a text without a day was refused above
    return datetime.date(year, month, day).toordinal()


def _parts(text: str, row: int, what: str) -> tuple[int, int | None, int | None]:
    """(year, month, day) as far as a text says them; a quarter stands as a negative month."""
    if found := _YEAR.match(text):
        return int(found[1]), None, None
    if found := _QUARTER.match(text):
        return int(found[1]), -int(found[2]), None
    if (found := _MONTH.match(text)) and 1 <= int(found[2]) <= 12:
        return int(found[1]), int(found[2]), None
    try:
        date = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise DataError(f"{what}: row {row} holds {text!r}, which is no date: write 2024-03-05, 2024-03, 2024-Q1 or 2024") from None
    return date.year, date.month, date.day


def _name(number: int, period: str) -> str:
    if period == "day":
        return datetime.date.fromordinal(number).isoformat()
    if period == "month":
        return f"{number // 12:04d}-{number % 12 + 1:02d}"
    return f"{number // 4:04d}-Q{number % 4 + 1}" if period == "quarter" else f"{number:04d}"
