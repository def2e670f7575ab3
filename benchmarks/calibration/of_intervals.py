"""Rates, differences, ratios, means and AUC: measures/intervals.py."""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.stats import norm

from benchmarks.calibration.simulation import Drawn, Row, Simulation, both, covered
from benchmarks.calibration.worlds import Rng, clustered_hits, clustered_pairs, clustered_values, ids, pairs, uneven_ids
from tl_audit.measures import intervals
from tl_audit.measures.estimate import Estimate

EXACT = (Row(interval="exact"),)
CAREFUL = (Row(interval="careful"),)
TESTED = (Row(test="careful", interval="careful"),)
DIP = (Row(test="careful", interval="careful", known=0.09, because="known dip of Newcombe's interval at a dozen rows a side"),)
RARE = (Row(interval="careful", known=0.085, because="known: few clusters hold an error; CHECKS.md 1.5.3 grants 0.93"),)
SKEWED = (Row(interval="exact", known=0.10, because="known: t of a skewed mean at n 30"),)
PERCENTILE = Row(interval="exact", known=0.10, because="known: percentile bootstrap of a slope")
REFLECTED = Row(interval="careful", known=0.13, because="known: reflected bootstrap of a square far from 0; no check takes it there")

_wilson = cache(intervals.wilson)
_clopper_pearson = cache(intervals.clopper_pearson)
_rate_difference_of = cache(lambda k1, n1, k2, n2: intervals.rate_difference(np.arange(n1) < k1, np.arange(n2) < k2))
_tango_of = cache(lambda b, c, n: intervals.paired_rate_difference(np.arange(n) < b, (np.arange(n) >= b) & (np.arange(n) < b + c)))
_katz = cache(intervals.katz_ratio)


def _of_rates(method: str, n: int, rate: float | None) -> Simulation:
    function = {"wilson": _wilson, "clopper_pearson": _clopper_pearson}[method]

    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        p = rng.uniform(0.02, 0.98) if rate is None else rate
        return (covered(function(int(rng.binomial(n, p)), n), p),)

    world = "rates from 0.02 to 0.98" if rate is None else f"rate {rate}"
    rows = CAREFUL if method == "clopper_pearson" else EXACT
    return Simulation(f"{method}, n {n}, {world}", f"intervals.{method}", f"iid, {world}", n, draw, rows)


def _of_cluster_rates(clusters: int, size: int | None, rate: float, alike: float = 5.0) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        cluster = ids(clusters, size) if size else uneven_ids(rng, clusters)
        return (covered(intervals.rate(clustered_hits(rng, cluster, rate, alike), cluster=cluster), rate),)

    design = f"clusters {clusters} × {size or 'about 9'}, rate {rate}"
    rows = RARE if rate > 0.9 and clusters < 30 else CAREFUL
    return Simulation(f"cluster_wilson, {design}", "intervals.cluster_wilson", design, clusters * (size or 9), draw, rows)


def _of_differences(n1: int, n2: int, p1: float, p2: float) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        found: Estimate = _rate_difference_of(int(rng.binomial(n1, p1)), n1, int(rng.binomial(n2, p2)), n2)
        return (both(found, p1 - p2) if p1 == p2 else covered(found, p1 - p2),)

    rows = DIP if n1 < 20 else TESTED if p1 == p2 else CAREFUL
    design = f"iid, {n1} and {n2} rows, rates {p1} and {p2}"
    return Simulation(f"rate_difference, {design}", "intervals.rate_difference", design, n1 + n2, draw, rows)


def _of_cluster_differences(clusters: int, size: int, crossing: bool, resamples: int = 1000) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        if crossing:
            cluster = ids(clusters, size)
            hits = clustered_hits(rng, cluster)
            side = np.arange(cluster.size) % 2 == 0
            first, second, a, b = hits[side], hits[~side], cluster[side], cluster[~side]
        else:
            a, b = ids(clusters, size), ids(clusters, size)
            first, second = clustered_hits(rng, a), clustered_hits(rng, b)
            b = b + clusters
        found = intervals.rate_difference(first, second, cluster_first=a, cluster_second=b, resamples=resamples, seed=run)
        return (covered(found, 0.0),)

    design = f"clusters {clusters} × {size}{', in both sides' if crossing else ' a side'}"
    n = clusters * size * (1 if crossing else 2)
    return Simulation(f"rate_difference, {design}", "intervals.rate_difference", design, n, draw, CAREFUL)


def _of_pairs(n: int, b: float, c: float) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        first, second = pairs(rng, n, b, c)
        found: Estimate = _tango_of(int((first & ~second).sum()), int((second & ~first).sum()), n)
        return (both(found, b - c) if b == c else covered(found, b - c),)

    rows = TESTED if b == c else CAREFUL
    design = f"iid, discordant {b} and {c}"
    return Simulation(f"paired_rate_difference, n {n}, {design}", "intervals.paired_rate_difference", design, n, draw, rows)


def _of_cluster_pairs(clusters: int, size: int, same: float) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        cluster = ids(clusters, size)
        first, second = clustered_pairs(rng, cluster, same)
        return (both(intervals.paired_rate_difference(first, second, cluster=cluster, resamples=1000, seed=run), 0.0),)

    design = f"clusters {clusters} × {size}, {same:.0%} of answers shared"
    return Simulation(
        f"paired_rate_difference, {design}", "intervals.paired_rate_difference", design, clusters * size, draw, TESTED
    )  # fmt: skip


def _of_katz(n1: int, n2: int, rate: float) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        return (covered(_katz(int(rng.binomial(n1, rate)), n1, int(rng.binomial(n2, rate)), n2), 1.0),)

    design = f"iid, {n1} and {n2} rows, rate {rate}"
    return Simulation(f"katz_ratio, {design}", "intervals.katz_ratio", design, n1 + n2, draw, CAREFUL)


def _of_error_ratio(n: int, clusters: int | None) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        if clusters is None:
            first, second = pairs(rng, n, 0.1, 0.1)
            return (covered(intervals.error_ratio(first, second, resamples=1000, seed=run), 1.0),)
        cluster = ids(clusters, n // clusters)
        first, second = clustered_pairs(rng, cluster)
        return (covered(intervals.error_ratio(first, second, cluster=cluster, resamples=1000, seed=run), 1.0),)

    design = "iid" if clusters is None else f"clusters {clusters} × {n // clusters}"
    return Simulation(f"error_ratio, n {n}, {design}", "intervals.error_ratio", design, n, draw, CAREFUL)


def _worst_of_five(rng: Rng, run: int) -> tuple[Drawn, ...]:
    lowest = min(int(k) for k in rng.binomial(80, 0.8, size=5))
    return (covered(intervals.bonferroni(_wilson(lowest, 80), 5), 0.8),)


def _mean_of_three(rng: Rng, run: int) -> tuple[Drawn, ...]:
    parts = [_wilson(int(rng.binomial(40, p)), 40) for p in (0.95, 0.8, 0.65)]
    ladder = intervals.mover_mean(parts)
    value = float(np.mean([part.value for part in parts if part.value is not None]))
    return (covered(Estimate(value, 120, ladder=ladder), 0.8),)


def _of_means(n: int, clusters: int | None, kind: str) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        if clusters is not None:
            cluster = ids(clusters, n // clusters)
            return (covered(intervals.mean(clustered_values(rng, cluster), cluster=cluster), 0.0),)
        if kind == "normal":
            return (covered(intervals.mean(rng.normal(size=n)), 0.0),)
        return (covered(intervals.mean(rng.exponential(size=n)), 1.0),)

    design = f"iid, {kind}" if clusters is None else f"clusters {clusters} × {n // clusters}, {kind}"
    rows = SKEWED if kind == "exponential" and n < 100 else EXACT
    return Simulation(f"mean, n {n}, {design}", "intervals.mean", design, n, draw, rows)


def _of_mean_differences(n1: int, n2: int, world: str, size: int = 1) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        if world == "iid":
            return (both(intervals.mean_difference(rng.normal(size=n1), 2 * rng.normal(size=n2)), 0.0),)
        if world == "shared":
            cluster = ids(n1, size)
            values = clustered_values(rng, cluster)
            side = np.arange(values.size) % 2 == 0
            found = intervals.mean_difference(values[side], values[~side], cluster_first=cluster[side], cluster_second=cluster[~side])
            return (both(found, 0.0),)
        a, b = ids(n1, size), ids(n2, size)
        found = intervals.mean_difference(clustered_values(rng, a), clustered_values(rng, b), cluster_first=a, cluster_second=b + n1)
        return (both(found, 0.0),)

    design = {
        "iid": f"iid, {n1} and {n2} rows, deviations 1 and 2",
        "apart": f"clusters {n1} and {n2} × {size}",
        "shared": f"clusters {n1} × {size}, in both sides",
    }[world]
    n = {"iid": n1 + n2, "apart": (n1 + n2) * size, "shared": n1 * size}[world]
    promise = "exact" if world == "iid" else "careful"
    return Simulation(
        f"mean_difference, {design}", "intervals.mean_difference", design, n, draw, (Row(test=promise, interval=promise),)
    )  # fmt: skip


def _of_bootstrap(clusters: int, size: int) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        cluster = ids(clusters, size)
        x = clustered_values(rng, cluster, alike=0.5 if size > 1 else 0.0)
        y = 0.5 * x + clustered_values(rng, cluster, alike=0.5 if size > 1 else 0.0)

        def slope(rows: np.ndarray) -> float:
            a = x[rows] - x[rows].mean()
            return float((a @ y[rows]) / (a @ a))

        return (covered(intervals.cluster_bootstrap(slope, x.size, cluster=cluster, resamples=600, seed=run), 0.5),)

    design = f"iid, slope of {clusters} rows" if size == 1 else f"clusters {clusters} × {size}, slope"
    return Simulation(
        f"cluster_bootstrap, {design}", "intervals.cluster_bootstrap", design, clusters * size, draw, (PERCENTILE,), runs=1000, quick=60
    )


def _of_centred_bootstrap(n: int, truth: float) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        x = rng.normal(size=n) + truth

        def squared_mean(rows: np.ndarray) -> float:
            values = x[rows]
            return float(values.mean() ** 2 - values.var(ddof=1) / values.size)

        return (covered(intervals.centred_bootstrap(squared_mean, float(x.mean() ** 2), n, resamples=200, seed=run), truth**2),)

    design = f"iid, squared mean, truth {truth**2:g}"
    return Simulation(
        f"centred_bootstrap, n {n}, {design}", "intervals.centred_bootstrap", design, n, draw, (REFLECTED,), runs=1000, quick=40
    )


def _of_areas(n1: int, n0: int, effect: float) -> Simulation:
    truth = float(norm.cdf(effect / np.sqrt(2)))

    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        labels = np.arange(n1 + n0) < n1
        return (covered(intervals.auc(labels, rng.normal(size=labels.size) + effect * labels), truth),)

    design = f"iid, {n1} and {n0} rows, area {truth:.2f}"
    return Simulation(f"auc, {design}", "intervals.auc", design, n1 + n0, draw, CAREFUL)


def _of_cluster_areas(clusters: int, size: int, effect: float, crossing: bool = False) -> Simulation:
    truth = float(norm.cdf(effect / np.sqrt(2)))

    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        cluster = ids(clusters if crossing else 2 * clusters, size)
        labels = np.arange(cluster.size) % 2 == 0 if crossing else cluster < clusters
        scores = clustered_values(rng, cluster) + effect * labels
        return (covered(intervals.auc(labels, scores, cluster=cluster, resamples=400, seed=run), truth),)

    design = f"clusters {clusters} × {size}{' in both sides' if crossing else ' a side'}, area {truth:.2f}"
    n = clusters * size * (1 if crossing else 2)
    return Simulation(f"auc, {design}", "intervals.auc", design, n, draw, CAREFUL)


SIMULATIONS: tuple[Simulation, ...] = (
    _of_rates("wilson", 10, None), _of_rates("wilson", 40, None), _of_rates("wilson", 200, None),
    _of_rates("wilson", 50, 0.97), _of_rates("wilson", 500, 0.97), _of_rates("wilson", 2000, 0.9),
    _of_rates("clopper_pearson", 20, None), _of_rates("clopper_pearson", 200, 0.02), _of_rates("clopper_pearson", 2000, 0.01),
    _of_cluster_rates(10, 10, 0.8), _of_cluster_rates(20, 10, 0.8), _of_cluster_rates(50, 10, 0.8), _of_cluster_rates(200, 10, 0.8),
    _of_cluster_rates(12, None, 0.8), _of_cluster_rates(30, None, 0.8), _of_cluster_rates(150, None, 0.8),
    _of_cluster_rates(20, 10, 0.95), _of_cluster_rates(100, 10, 0.95),
    _of_differences(30, 60, 0.9, 0.9), _of_differences(50, 50, 0.2, 0.1), _of_differences(40, 200, 0.97, 0.9),
    _of_differences(12, 12, 0.5, 0.5), _of_differences(1000, 1000, 0.8, 0.8), _of_differences(100, 2000, 0.9, 0.9),
    _of_cluster_differences(10, 8, False), _of_cluster_differences(60, 8, False),
    _of_cluster_differences(12, 12, True), _of_cluster_differences(40, 12, True),
    _of_pairs(100, 0.02, 0.0), _of_pairs(100, 0.05, 0.05), _of_pairs(300, 0.02, 0.06), _of_pairs(2000, 0.03, 0.03),
    _of_cluster_pairs(12, 8, 0.5), _of_cluster_pairs(40, 8, 0.5), _of_cluster_pairs(40, 8, 0.95), _of_cluster_pairs(200, 8, 0.5),
    _of_katz(40, 40, 0.4), _of_katz(1000, 1000, 0.1),
    _of_error_ratio(100, None), _of_error_ratio(2000, None), _of_error_ratio(96, 12), _of_error_ratio(320, 40), _of_error_ratio(1600, 200),
    Simulation("bonferroni, lowest of five rates", "intervals.bonferroni", "iid, 5 × 80 rows, rate 0.8", 400, _worst_of_five, CAREFUL),
    Simulation("mover_mean, three rates", "intervals.mover_mean", "iid, 3 × 40 rows, rates 0.95, 0.8, 0.65", 120, _mean_of_three, EXACT),
    _of_means(8, None, "normal"), _of_means(500, None, "normal"), _of_means(30, None, "exponential"), _of_means(1000, None, "exponential"),
    _of_means(80, 8, "normal"), _of_means(1000, 100, "normal"),
    _of_mean_differences(10, 25, "iid"), _of_mean_differences(500, 200, "iid"),
    _of_mean_differences(8, 8, "apart", 10), _of_mean_differences(60, 40, "apart", 10), _of_mean_differences(12, 12, "shared", 10),
    _of_mean_differences(100, 100, "shared", 10),
    _of_bootstrap(60, 1), _of_bootstrap(500, 1), _of_bootstrap(40, 5),
    _of_centred_bootstrap(60, 0.0), _of_centred_bootstrap(60, 1.0),
    _of_areas(20, 20, 0.0), _of_areas(60, 60, 1.0), _of_areas(15, 150, 1.0), _of_areas(500, 500, 1.0), _of_areas(30, 30, 2.5),
    _of_cluster_areas(8, 5, 0.0), _of_cluster_areas(15, 5, 1.0), _of_cluster_areas(40, 5, 1.0), _of_cluster_areas(100, 5, 1.0),
    _of_cluster_areas(12, 6, 0.0, True), _of_cluster_areas(60, 6, 1.0, True),
)  # fmt: skip
