"""Gaps between groups: measures/fairness.py."""

from __future__ import annotations

import numpy as np

from benchmarks.calibration.simulation import Drawn, Row, Simulation, both, covered, tested
from benchmarks.calibration.worlds import Rng, clustered_hits, clustered_pairs, clustered_values, ids
from tl_audit.measures import fairness
from tl_audit.measures.estimate import IntArray, limit_p
from tl_audit.measures.multiplicity import holm

LIMIT = 0.1


def _groups_of(cluster: IntArray, groups: int, crossing: bool) -> np.ndarray:
    """Groups in turn: of clusters, or of the rows of each cluster."""
    return np.array([f"g{k}" for k in range(groups)])[(np.arange(cluster.size) if crossing else cluster) % groups]


def _gaps(groups: int, clusters: int, size: int, gap: float, crossing: bool = False) -> Simulation:
    """The first group lies ``gap`` below all others; with a gap of exactly the limit the union rule is at its own edge."""

    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        cluster = ids(clusters, size)
        names = _groups_of(cluster, groups, crossing)
        low = names == "g0"
        hits = clustered_hits(rng, cluster) if size > 1 else rng.random(cluster.size) < 0.8
        if gap:
            hits = hits & ~(low & (rng.random(cluster.size) < gap / 0.8))
        found = fairness.binary_gaps(names, hits, cluster=None if size == 1 else cluster, seed=run)
        adjusted = [p for p in holm([limit_p(one.gap.ladder, absolute=LIMIT) for one in found]) if p is not None]
        return Drawn(rejects=min(adjusted) <= 0.05), covered(found[0].gap, -gap)

    unit = "iid" if size == 1 else f"clusters {clusters} × {size}{', each in all groups' if crossing else ''}"
    design = f"{unit}, {groups} groups, {'equal' if not gap else f'one {gap} below'}"
    rows = (
        Row("some group beyond the limit", test="careful", rule=f"any Holm-adjusted [P5] of |gap| <= {LIMIT} at most 0.05"),
        Row("first gap", interval="careful"),
    )
    return Simulation(f"group gaps, n {clusters * size}, {design}", "fairness.binary_gaps", design, clusters * size, draw, rows, quick=100)


def _largest(groups: int, clusters: int, size: int, crossing: bool = False) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        cluster = ids(clusters, size)
        hits = clustered_hits(rng, cluster) if size > 1 else rng.random(cluster.size) < 0.8
        names = _groups_of(cluster, groups, crossing)
        return (tested(fairness.largest_difference(names, hits, cluster=None if size == 1 else cluster, resamples=199, seed=run)),)

    unit = "iid" if size == 1 else f"clusters {clusters} × {size}{', each in all groups' if crossing else ''}"
    design = f"{unit}, {groups} equal groups"
    return Simulation(
        f"largest_difference, {design}", "fairness.largest_difference", design, clusters * size, draw, (Row(test="careful"),), quick=100
    )  # fmt: skip


def _changes(clusters: int, size: int, churn: float, crossing: bool = False) -> Simulation:
    """Two models of one accuracy in both groups; the first group, a fifth of all, changes its answers ``churn`` times as often."""

    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        cluster = ids(clusters, size)
        inside = (np.arange(cluster.size) if crossing else cluster) % 5 == 0
        if size == 1:
            first = rng.random(cluster.size) < 0.75
            again = rng.random(cluster.size) < np.where(inside, 0.1 * churn, 0.1)
            second = np.where(again, rng.random(cluster.size) < 0.75, first)
        else:
            first, second = clustered_pairs(rng, cluster, 0.5)
        found = fairness.gap_changes(
            np.where(inside, "few", "many"), first, second, cluster=None if size == 1 else cluster, resamples=199, seed=run
        )
        return (both(found[0].change, 0.0),)

    unit = "iid" if size == 1 else f"clusters {clusters} × {size}{', each in both groups' if crossing else ''}"
    design = f"{unit}, one group of a fifth{f', churn × {churn:g}' if size == 1 else ''}"
    return Simulation(
        f"gap_changes, n {clusters * size}, {design}", "fairness.gap_changes", design, clusters * size, draw, (Row(test="careful", interval="careful"),), runs=1000, quick=60
    )  # fmt: skip


def _mean_gaps(clusters: int, size: int) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        cluster = ids(clusters, size)
        values = clustered_values(rng, cluster, alike=0.5 if size > 1 else 0.0)
        found = fairness.mean_gaps(_groups_of(cluster, 3, False), values, cluster=None if size == 1 else cluster)
        return (both(found[0].gap, 0.0),)

    design = f"{'iid' if size == 1 else f'clusters {clusters} × {size}'}, 3 equal groups"
    rows = (Row(test="careful", interval="careful"),)
    return Simulation(f"mean_gaps, n {clusters * size}, {design}", "fairness.mean_gaps", design, clusters * size, draw, rows)


SIMULATIONS: tuple[Simulation, ...] = (
    _gaps(8, 800, 1, 0.0), _gaps(3, 90, 1, 0.0), _gaps(2, 4000, 1, 0.0), _gaps(4, 40, 8, 0.0), _gaps(4, 200, 8, 0.0), _gaps(3, 40, 12, 0.0, True),
    _gaps(4, 400, 1, LIMIT), _gaps(4, 4000, 1, LIMIT), _gaps(4, 60, 8, LIMIT),
    _largest(3, 90, 1), _largest(8, 4000, 1), _largest(3, 30, 8), _largest(4, 120, 8), _largest(3, 30, 9, True),
    _changes(150, 1, 1.0), _changes(300, 1, 4.0), _changes(3000, 1, 4.0), _changes(40, 8, 1.0), _changes(200, 8, 1.0), _changes(40, 10, 1.0, True),
    _mean_gaps(60, 1), _mean_gaps(900, 1), _mean_gaps(24, 6), _mean_gaps(150, 6),
)  # fmt: skip
