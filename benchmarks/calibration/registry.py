"""Every simulation of the bench, in the order of the table."""

from __future__ import annotations

from benchmarks.calibration import of_classifiers, of_further, of_groups, of_intervals, of_representations, of_shift, of_tests
from benchmarks.calibration.simulation import Simulation

SIMULATIONS: tuple[Simulation, ...] = (
    *of_intervals.SIMULATIONS,
    *of_tests.SIMULATIONS,
    *of_shift.SIMULATIONS,
    *of_classifiers.SIMULATIONS,
    *of_groups.SIMULATIONS,
    *of_representations.SIMULATIONS,
    *of_further.SIMULATIONS,
)


def named(name: str) -> Simulation:
    return next(simulation for simulation in SIMULATIONS if simulation.name == name)
