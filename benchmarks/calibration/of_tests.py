"""Tests by permutation and by counting: measures/permutation.py."""

from __future__ import annotations

from functools import cache

import numpy as np

from benchmarks.calibration.simulation import Drawn, Row, Simulation, tested
from benchmarks.calibration.worlds import Rng, clustered_hits, clustered_values, ids
from tl_audit.measures import multiplicity, permutation

EXACT = (Row(test="exact"),)
CAREFUL = (Row(test="careful"),)

_mcnemar = cache(permutation.mcnemar_p)
_two_proportion = cache(permutation.two_proportion_p)


def _sign_flips(n: int, clusters: int | None, kind: str) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        if clusters is None:
            values = rng.normal(size=n) if kind == "normal" else rng.choice([-1.0, 0.0, 1.0], n, p=[0.1, 0.8, 0.1])
            return (tested(permutation.sign_flip_p(values, seed=run)),)
        cluster = ids(clusters, n // clusters)
        return (tested(permutation.sign_flip_p(clustered_values(rng, cluster), cluster=cluster, seed=run)),)

    design = f"iid, {kind}" if clusters is None else f"clusters {clusters} × {n // clusters}, {kind}"
    # few patterns, and ties among differences of 0/1 rows, leave steps between possible p-values
    rows = EXACT if kind == "normal" and (clusters or n) > 8 else CAREFUL
    return Simulation(f"sign_flip_p, n {n}, {design}", "permutation.sign_flip_p", design, n, draw, rows)


def _mcnemar_of(n: int, share: float) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        only_first, only_second, _ = rng.multinomial(n, [share / 2, share / 2, 1 - share])
        return (tested(_mcnemar(int(only_first), int(only_second))),)

    design = f"iid, {share:.0%} discordant"
    return Simulation(f"mcnemar_p, n {n}, {design}", "permutation.mcnemar_p", design, n, draw, CAREFUL)


def _proportions(n1: int, n2: int, rate: float) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        return (tested(_two_proportion(int(rng.binomial(n1, rate)), n1, int(rng.binomial(n2, rate)), n2)),)

    design = f"iid, {n1} and {n2} rows, rate {rate}"
    return Simulation(f"two_proportion_p, {design}", "permutation.two_proportion_p", design, n1 + n2, draw, CAREFUL)


def _means(n1: int, n2: int, size: int, world: str) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        cluster = ids(n1 + n2, size)
        second = cluster >= n1
        if world == "in both sides":
            cluster = ids(n1, size)
            second = np.arange(cluster.size) % 2 == 0
        values = clustered_values(rng, cluster) if size > 1 else rng.exponential(size=cluster.size)
        units = None if size == 1 else cluster
        return (tested(permutation.mean_difference_p(values, second, cluster=units, resamples=399, seed=run).p_value),)

    design = f"iid, exponential, {n1} and {n2} rows" if size == 1 else f"clusters {n1} and {n2} × {size}"
    n = (n1 + n2) * size
    if world == "in both sides":
        design, n = f"clusters {n1} × {size}, in both sides", n1 * size
    return Simulation(f"mean_difference_p, {design}", "permutation.mean_difference_p", design, n, draw, EXACT)


def _holm_of_ten(rng: Rng, run: int) -> tuple[Drawn, ...]:
    adjusted = multiplicity.holm([permutation.sign_flip_p(rng.normal(size=20), seed=run * 10 + k) for k in range(10)])
    return (Drawn(rejects=min(p for p in adjusted if p is not None) <= 0.05),)


def _few_resamples(rng: Rng, run: int) -> tuple[Drawn, ...]:
    """p of a counted share of 19 null values: 0.05 is the least it can be, and it must come up one time in twenty."""
    return (tested(permutation.permutation_p(float(rng.normal()), rng.normal(size=19))),)


def _discrete(rng: Rng, run: int) -> tuple[Drawn, ...]:
    cluster = ids(60, 6)
    hits = clustered_hits(rng, cluster).astype(float)
    return (tested(permutation.mean_difference_p(hits, cluster >= 30, cluster=cluster, resamples=399, seed=run).p_value),)


SIMULATIONS: tuple[Simulation, ...] = (
    _sign_flips(8, None, "normal"), _sign_flips(15, None, "normal"), _sign_flips(400, None, "normal"),
    _sign_flips(60, None, "0/1 answers"), _sign_flips(2000, None, "0/1 answers"),
    _sign_flips(84, 14, "normal"), _sign_flips(1200, 200, "normal"),
    _mcnemar_of(50, 0.2), _mcnemar_of(2000, 0.1),
    _proportions(12, 12, 0.3), _proportions(40, 200, 0.9), _proportions(1000, 1000, 0.5),
    _means(8, 9, 1, "apart"), _means(300, 200, 1, "apart"), _means(7, 9, 8, "apart"), _means(60, 50, 8, "apart"),
    _means(10, 10, 8, "in both sides"), _means(60, 60, 8, "in both sides"),
    Simulation("mean_difference_p, rates of clusters", "permutation.mean_difference_p", "clusters 30 and 30 × 6, 0/1", 360, _discrete, EXACT),
    Simulation("permutation_p, 19 null values", "permutation.permutation_p", "iid, one value and 19 of its kind", 20, _few_resamples, EXACT),
    Simulation("holm, ten tests", "multiplicity.holm", "iid, 10 × 20 rows; any of the ten", 200, _holm_of_ten, CAREFUL),
)  # fmt: skip
