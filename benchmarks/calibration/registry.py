"""Every simulation of the bench, in the order of the table."""

from __future__ import annotations

from benchmarks.calibration import of_intervals
from benchmarks.calibration.simulation import Simulation

SIMULATIONS: tuple[Simulation, ...] = (*of_intervals.SIMULATIONS,)


def named(name: str) -> Simulation:
    return next(simulation for simulation in SIMULATIONS if simulation.name == name)
