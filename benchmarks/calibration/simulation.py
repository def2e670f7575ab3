"""One simulation of the bench: what is drawn, what is asked of it, and what counts as holding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from tl_audit.measures.estimate import Estimate, normal_quantile
from tl_audit.measures.sampling import generator

Promise = Literal["exact", "careful"]
"""exact: the error rate lies in a band on both sides of the level; careful: it may lie below, never above."""

LEVEL = 0.05
RUNS = 2000
QUICK_RUNS = 200


class Drawn(NamedTuple):
    """What one run says: does the test (or rule) accuse, does the interval hold the truth, how wide is it. None: it says nothing."""

    rejects: bool | None = None
    covers: bool | None = None
    width: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    part : which of the numbers of a simulation, "" where there is one
    test : promise of the test, None without a test
    interval : promise of the 95 % interval (of its share of misses), None without one
    rule : what "accuses" means where it is not p <= 0.05
    known : share of wrong rejections, and share of misses, up to which a breach is known, with the reason in ``because``
    """

    part: str = ""
    test: Promise | None = None
    interval: Promise | None = None
    rule: str = ""
    known: float | None = None
    because: str = ""


@dataclass(frozen=True)
class Simulation:
    """A world in which nothing happened (or a known thing did), drawn again and again.

    Attributes
    ----------
    name : unique; the seed of each run is made of it
    of : function of tl_audit.measures, or code of the check
    design : "iid" or "clusters k × m", and what is drawn
    n : rows of one draw
    draw : (generator, run) -> what each row says
    rows : at least one
    runs : of the full bench; fewer than 2,000 where a draw is dear
    quick : runs in the test suite
    """

    name: str
    of: str
    design: str
    n: int
    draw: Callable[[np.random.Generator, int], tuple[Drawn, ...]]
    rows: tuple[Row, ...]
    runs: int = RUNS
    quick: int = QUICK_RUNS


def tested(estimate: Estimate | float | None) -> Drawn:
    """Whether p <= 0.05."""
    p = estimate.p_value if isinstance(estimate, Estimate) else estimate
    return Drawn(rejects=None if p is None else p <= LEVEL)


def covered(estimate: Estimate, truth: float) -> Drawn:
    """Whether the 95 % interval holds ``truth``."""
    interval = estimate.interval()
    if interval is None:
        return Drawn()
    low, high = interval
    return Drawn(covers=bool(low - 1e-12 <= truth <= high + 1e-12), width=high - low)


def both(estimate: Estimate, truth: float) -> Drawn:
    """Test and interval of one estimate."""
    return covered(estimate, truth)._replace(rejects=tested(estimate).rejects)


@dataclass(frozen=True)
class Result:
    """Counts of one row over its runs.

    Attributes
    ----------
    silent : runs in which neither test nor interval said anything
    """

    simulation: str
    part: str
    of: str
    design: str
    n: int
    runs: int
    rejected: int | None
    tested: int
    covered: int | None
    intervals: int
    width: float | None
    silent: int
    test: Promise | None
    interval: Promise | None
    rule: str
    known: float | None
    because: str

    @property
    def name(self) -> str:
        return f"{self.simulation}: {self.part}" if self.part else self.simulation

    @property
    def rejection(self) -> float | None:
        return None if self.rejected is None or not self.tested else self.rejected / self.tested

    @property
    def coverage(self) -> float | None:
        return None if self.covered is None or not self.intervals else self.covered / self.intervals

    def errors(self) -> tuple[tuple[float, int, Promise], ...]:
        """(share of errors, runs behind it, promise) of the test and of the interval, as far as there are such."""
        found: list[tuple[float, int, Promise]] = []
        if self.test and self.rejection is not None:
            found.append((self.rejection, self.tested, self.test))
        if self.interval and self.coverage is not None:
            found.append((1 - self.coverage, self.intervals, self.interval))
        return tuple(found)

    def verdict(self) -> str:
        """ "holds", "conservative" (fewer errors than the band), "LIBERAL" (more), or "silent" where nothing could be told."""
        errors = self.errors()
        if not errors:
            return "silent"
        if any(rate > band(runs)[1] for rate, runs, _ in errors):
            return "LIBERAL"
        return "conservative" if any(rate < band(runs)[0] for rate, runs, _ in errors) else "holds"


def band(runs: int, level: float = LEVEL, beyond: float = 0.01) -> tuple[float, float]:
    """Band of the share of errors that a sound test at ``level`` leaves with chance ``beyond``: 0.037 to 0.063 at 2,000 runs."""
    half = normal_quantile(beyond) * float(np.sqrt(level * (1 - level) / max(runs, 1)))
    return max(0.0, level - half), level + half


def simulate(simulation: Simulation, runs: int, first: int = 0) -> tuple[Result, ...]:
    """Counts over ``runs`` runs; run k draws from a generator keyed by the name and k alone, whatever the order."""
    drawn = [simulation.draw(generator("calibration", simulation.name, run), run) for run in range(first, first + runs)]
    results = []
    for position, row in enumerate(simulation.rows):
        column = [one[position] for one in drawn]
        rejects = [one.rejects for one in column if one.rejects is not None]
        covers = [one.covers for one in column if one.covers is not None]
        widths = [one.width for one in column if one.width is not None]
        results.append(
            Result(
                simulation.name, row.part, simulation.of, simulation.design, simulation.n, runs,
                sum(rejects) if row.test else None, len(rejects), sum(covers) if row.interval else None, len(covers),
                float(np.mean(widths)) if widths else None,
                sum(one.rejects is None and one.covers is None for one in column),
                row.test, row.interval, row.rule, row.known, row.because,
            )
        )  # fmt: skip
    return tuple(results)
