"""Representations, probes, membership and explanations: measures/representation.py, probe.py, membership.py, attribution.py."""

from __future__ import annotations

import numpy as np
from scipy import stats

from benchmarks.calibration.simulation import Drawn, Row, Simulation, both, covered, tested
from benchmarks.calibration.worlds import Rng, clustered_values, ids
from tl_audit.measures import attribution, intervals, probe, representation, transferability
from tl_audit.measures.membership import membership

CAREFUL = (Row(interval="careful"),)
PAIRED_INSIDE = (
    Row(
        interval="careful", known=0.6, because="known: pairs of one cluster count too, so CKA is too high (by 0.04 at n 640, 0.01 at 2,000)"
    ),
)


def _design(n: int, size: int) -> str:
    return "iid" if size == 1 else f"clusters {n // size} × {size}"


def _cka(n: int, size: int, noise: float) -> Simulation:
    """Eight Gaussian columns beside themselves plus noise: linear CKA of the population from the two covariances."""
    scales = np.array([2.0, 1.5, 1.0, 1.0, 0.7, 0.5, 0.5, 0.3])
    x2, y2 = scales**2, scales**2 + noise**2
    truth = float((x2**2).sum() / np.sqrt((x2**2).sum() * (y2**2).sum()))

    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        cluster = ids(n // size, size)
        alike = 0.5 if size > 1 else 0.0
        x = clustered_values(rng, cluster, 8, alike) * scales
        y = x + noise * clustered_values(rng, cluster, 8, alike)
        units = None if size == 1 else cluster
        return (covered(representation.linear_cka(x, y, cluster=units, seed=run), truth),)

    design = f"{_design(n, size)}, 8 columns, truth {truth:.2f}"
    rows = CAREFUL if size == 1 else PAIRED_INSIDE
    return Simulation(f"linear_cka, n {n}, {design}", "representation.linear_cka", design, n, draw, rows)


def _unrelated(n: int) -> Simulation:
    """Neighbours of two unrelated features: the overlap of two random sets of k among n - 1."""
    k = 10
    shared = np.arange(k + 1)
    truth = float(stats.hypergeom(n - 1, k, k).pmf(shared) @ (shared / (2 * k - shared)))

    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        return (covered(representation.neighbour_overlap(rng.normal(size=(n, 6)), rng.normal(size=(n, 6)), neighbours=k), truth),)

    return Simulation(
        f"neighbour_overlap, n {n}", "representation.neighbour_overlap", "iid, unrelated features", n, draw, CAREFUL, quick=80
    )  # fmt: skip


def _probes(n: int, size: int) -> Simulation:
    """Two features that know the labels equally well: neither forgets against the other."""

    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        cluster = ids(n // size, size)
        units = None if size == 1 else cluster
        y = rng.integers(0, 2, n // size)[cluster]
        common = 1.2 * (2 * y - 1)[:, None] * np.array([1.0, 0.5, 0, 0]) + clustered_values(rng, cluster, 4, 0.5 if size > 1 else 0.0)
        features = [common + 0.7 * rng.normal(size=common.shape) for _ in range(2)]
        training = probe.probe_split(y, classes=2, cluster=units, seed=run)
        found = [probe.linear_probe(x, y, training, classes=2, cluster=units, seed=run) for x in features]
        rows = found[0].rows
        right = [one.predicted == y[rows] for one in found]
        held = None if units is None else units[rows]
        return (both(intervals.paired_rate_difference(right[0], right[1], cluster=held, seed=run, resamples=1000), 0.0),)

    design = f"{_design(n, size)}, 2 classes, 4 columns"
    rows = (Row(test="careful", interval="careful"),)
    return Simulation(
        f"backward transfer of a probe, n {n}, {design}", "probe.linear_probe", design, n, draw, rows, runs=60, quick=10
    )  # fmt: skip


def _membership(n: int, size: int) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        cluster = ids(n // size, size)
        if size == 1:
            found = membership(rng.exponential(size=n), rng.exponential(size=n), seed=run)
        else:
            found = membership(
                clustered_values(rng, cluster), clustered_values(rng, cluster),
                cluster_members=cluster, cluster_others=cluster + n, seed=run,
            )  # fmt: skip
        few = n < 2000
        return covered(found.auc, 0.5), covered(found.advantage, 0.0), *(() if few else (covered(found.excess, 0.0),))

    rows = tuple(Row(name, interval="careful") for name in ("auc", "advantage", *(() if n < 2000 else ("excess at 1 % false alarms",))))
    design = f"{_design(n, size)} a side, members like others"
    return Simulation(f"membership, n {2 * n}, {design}", "membership.membership", design, 2 * n, draw, rows, quick=100)


def _maps_like_chance(n: int, size: int) -> Simulation:
    """Unrelated maps: their rank correlation is 0 on average, and no map beats its random maps."""

    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        cluster = ids(n // size, size)
        units = None if size == 1 else cluster
        alike = 0.5 if size > 1 else 0.0
        first, second = clustered_values(rng, cluster, 12, alike), clustered_values(rng, cluster, 12, alike)
        scores = attribution.rank_correlation(first, second)
        gain = attribution.faithfulness_gain(
            0.1 * clustered_values(rng, cluster, alike=alike), 0.1 * rng.normal(size=(5, n)), cluster=units, seed=run
        )
        found = attribution.over_rows(scores, cluster=units, bounds=(-1.0, 1.0), null=0.0, seed=run)
        return both(found, 0.0), both(gain, 0.0)

    rows = (Row("rank correlation", test="exact", interval="exact"), Row("faithfulness_gain", test="exact", interval="exact"))
    design = f"{_design(n, size)}, unrelated maps"
    return Simulation(f"maps, n {n}, {design}", "attribution.over_rows, faithfulness_gain", design, n, draw, rows)


def _pointing(n: int) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        chances = rng.uniform(0.05, 0.5, n)
        return (tested(attribution.poisson_binomial_p(float((rng.random(n) < chances).sum()), chances)),)

    return Simulation(
        f"pointing game, n {n}", "attribution.poisson_binomial_p", "iid, regions of 5 to 50 % of the area", n, draw, (Row(test="careful"),)
    )  # fmt: skip


def _no_gain(n: int) -> Simulation:
    """Labels that features know nothing of: the gain lies above its mean under permutation as often as below."""

    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        found = transferability.logme_gain(rng.normal(size=(n, 8)), rng.integers(0, 3, n), classes=3, permutations=20, seed=run)
        low = found.interval()
        assert low is not None
        assert found.null is not None
        return (Drawn(rejects=low[0] > found.null),)

    rows = (Row(test="careful", rule="the whole 95 % interval lies above the mean under permutation"),)
    return Simulation(
        f"logme_gain, n {n}", "transferability.logme_gain", "iid, features that know nothing", n, draw, rows, runs=200, quick=10
    )


SIMULATIONS: tuple[Simulation, ...] = (
    _cka(640, 1, 0.5), _cka(2000, 1, 1.0), _cka(640, 4, 1.0), _cka(2000, 4, 1.0),
    _unrelated(60), _unrelated(300),
    _no_gain(60),
    _probes(200, 1), _probes(400, 8),
    _membership(100, 1), _membership(2000, 1), _membership(160, 8), _membership(400, 8),
    _maps_like_chance(20, 1), _maps_like_chance(300, 1), _maps_like_chance(60, 5), _maps_like_chance(500, 5),
    _pointing(20), _pointing(300),
)  # fmt: skip
