"""`python -m benchmarks calibration`: run the simulations (or the audits) and write the table."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from benchmarks.calibration import table
from benchmarks.calibration.registry import SIMULATIONS, named
from benchmarks.calibration.simulation import Result, Row, Simulation, simulate


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks calibration", description=__doc__)
    parser.add_argument("--runs", type=int, help="at most so many runs a row; the stored table is then left alone, unless --store")
    parser.add_argument(
        "--store", action="store_true", help="store rows with fewer runs too; --missing brings them to their full number later"
    )
    parser.add_argument("--only", action="append", default=[], help="rows whose name or measure holds this text; may be repeated")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--first", type=int, default=0, help="number of the first run: other numbers are fresh draws; not stored")
    parser.add_argument(
        "--missing", action="store_true", help="only rows that the stored table lacks, or holds with another promise or fewer runs"
    )
    parser.add_argument(
        "--audits", action="store_true", help="audit whole clean subjects instead; those already in runs/calibration are kept"
    )
    parser.add_argument("--subjects", type=int, default=200, help="clean subjects of each kind")
    parser.add_argument("--kind", choices=("tabular", "image"), action="append", help="kinds of data; both without it")
    chosen = parser.parse_args(arguments)
    if chosen.audits:
        _audits(chosen.kind, chosen.subjects, chosen.jobs)
        return
    simulations = [s for s in SIMULATIONS if not chosen.only or any(text in s.name or text in s.of for text in chosen.only)]
    if not simulations:
        parser.error(f"no simulation holds {chosen.only[0]!r} in its name")
    if chosen.missing:
        known = {(one.simulation, one.part, one.test, one.interval): one.runs for one in table.load()[1]}
        simulations = [s for s in simulations if any(_short(s, row, known, chosen.runs) for row in s.rows)]
    stored = (chosen.runs is None or chosen.store) and not chosen.first
    results: list[Result] = []
    for rows, seconds in _simulated(simulations, chosen.runs, chosen.first, chosen.jobs):
        results += rows
        for one in rows:
            print(
                f"{seconds:7.1f} s  {one.verdict():12s} {' '.join(f'{rate:.3f}' for rate, _, _ in one.errors()):12s} {one.name}", flush=True
            )
        if stored:
            table.save(table.merged(table.load()[1], rows, SIMULATIONS))
    results = table.merged([], results, SIMULATIONS)
    print(f"\n{table.summary(results)}\n\n{table.markdown(results)}")


def _short(simulation: Simulation, row: Row, known: dict[tuple[object, ...], int], runs: int | None) -> bool:
    """Whether the stored table lacks this row, or holds it with fewer runs than asked for."""
    wanted = simulation.runs if runs is None else min(runs, simulation.runs)
    return known.get((simulation.name, row.part, row.test, row.interval), 0) < wanted


def _audits(kinds: Sequence[str] | None, subjects: int, jobs: int) -> None:
    from benchmarks.calibration import audits, clean

    try:
        audits.run(kinds or clean.KINDS, subjects, jobs)
    finally:
        audits.save()
    print(audits.PAGE.read_text(encoding="utf-8"))


def _simulated(simulations: Sequence[Simulation], runs: int | None, first: int, jobs: int) -> Iterator[tuple[tuple[Result, ...], float]]:
    if jobs == 1:
        for simulation in simulations:
            yield _one(simulation.name, runs, first)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(_one, simulation.name, runs, first) for simulation in simulations]):
            yield done.result()


def _one(name: str, runs: int | None, first: int) -> tuple[tuple[Result, ...], float]:
    simulation = named(name)
    began = time.process_time()  # of the processor: a busy machine does not count
    rows = simulate(simulation, simulation.runs if runs is None else min(runs, simulation.runs), first)
    return rows, time.process_time() - began
