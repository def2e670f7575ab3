"""Searches, label noise, coverage, trends, changed metrics, predicted numbers: the measures that stand in files of their own."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax
from scipy.stats import norm

from benchmarks.calibration.simulation import Drawn, Row, Simulation, both, covered, tested
from benchmarks.calibration.worlds import Rng, clustered_hits, clustered_values, ids
from tl_audit.measures import cells, collapse, concept, coverage, intervals, label_noise, regression, selection_ratio, slices, trend
from tl_audit.measures.change import metric_changes
from tl_audit.measures.estimate import limit_p
from tl_audit.measures.multiplicity import benjamini_hochberg
from tl_audit.measures.out_of_distribution import auc_change
from tl_audit.measures.sampling import split_by_cluster

CAREFUL = (Row(interval="careful"),)
TESTED = (Row(test="careful", interval="careful"),)


def _design(n: int, size: int) -> str:
    return "iid" if size == 1 else f"clusters {n // size} × {size}"


def _trend(n: int, size: int, periods: int, mixed: bool = False) -> Simulation:
    """Rates that stay; clusters lie in one period each, or in several where ``mixed``."""

    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        cluster = ids(n // size, size)
        right = clustered_hits(rng, cluster) if size > 1 else rng.random(n) < 0.8
        times = rng.integers(0, periods, n if mixed or size == 1 else n // size)
        units = None if size == 1 else cluster
        found = trend.trend(right, times if mixed or size == 1 else times[cluster], cluster=units, resamples=99, seed=run)
        return (both(found, 0.0),)

    design = f"{_design(n, size)}, {periods} periods{', several in a cluster' if mixed else ''}"
    return Simulation(f"trend, n {n}, {design}", "trend.trend", design, n, draw, TESTED, quick=100)


def _ratios(n: int, size: int) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        cluster = ids(n // size, size)
        hits = clustered_hits(rng, cluster, 0.4) if size > 1 else rng.random(n) < 0.4
        names = np.array(["a", "b", "c"])[cluster % 3]
        found = selection_ratio.impact_ratios(names, hits, cluster=None if size == 1 else cluster, seed=run, resamples=500)["a"].ratio
        return (Drawn(rejects=found.p_value is not None and found.p_value <= 0.05),)

    rows = (Row(test="careful", known=0.14, because="known and said in its docstring: the reference is chosen on the same rows"),)
    design = f"{_design(n, size)}, 3 equal categories"
    return Simulation(f"impact_ratios, n {n}, {design}", "selection_ratio.impact_ratios", design, n, draw, rows, runs=1000, quick=60)


def _cells(n: int, size: int) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        cluster = ids(n // size, size)
        y = rng.integers(0, 2, n)
        right = clustered_hits(rng, cluster) if size > 1 else rng.random(n) < 0.8
        found = cells.group_metrics(
            y, np.where(right, y, 1 - y), {"g": np.array(["a", "b"])[np.arange(n) % 2]},
            positive=1, metrics=["accuracy", "f1"], cluster=None if size == 1 else cluster, resamples=500, seed=run,
        )  # fmt: skip
        return tuple(covered(one.values[0], 0.8) for one in found)

    rows = (Row("accuracy of a group", interval="careful"), Row("F1 of a group", interval="careful"))
    design = f"{_design(n, size)}, 2 groups"
    return Simulation(f"group_metrics, n {n}, {design}", "cells.group_metrics", design, n, draw, rows, runs=1000, quick=60)


def _concept(n: int, size: int) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        sides = []
        for offset in (0.0, 0.4):  # another mix of inputs, the same meaning
            cluster = ids(n // size, size)
            x = clustered_values(rng, cluster, 3, 0.5 if size > 1 else 0.0) + offset
            sides.append((x, (rng.random(n) < norm.cdf(x[:, 0])).astype(int), cluster))
        (x, a, c), (w, b, d) = sides
        units = {} if size == 1 else {"cluster_source": c, "cluster_target": d + n}
        return (tested(concept.concept_shift(x, a, w, b, classes=2, resamples=39, seed=run, **units).gain),)

    design = f"{_design(n, size)} a side, inputs moved by 0.4, labels mean the same"
    return Simulation(
        f"concept_shift, n {2 * n}, {design}", "concept.concept_shift", design, 2 * n, draw, (Row(test="careful"),), runs=400, quick=10
    )


def _noise(n: int, size: int) -> Simulation:
    """Classes that overlap, labels drawn from the very probabilities: no label is wrong."""

    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        cluster = ids(n // size, size)
        p = softmax(1.5 * clustered_values(rng, cluster, 3, 0.5 if size > 1 else 0.0), axis=1)
        u = norm.cdf(clustered_values(rng, cluster, alike=0.5 if size > 1 else 0.0))
        y = (u[:, None] > np.cumsum(p, axis=1)[:, :-1]).sum(axis=1)
        found = label_noise.noise_test(p, y, cluster=None if size == 1 else cluster, draws=39, seed=run)
        return (tested(found.excess),)

    design = f"{_design(n, size)}, 3 classes that overlap, no wrong label"
    return Simulation(f"noise_test, n {n}, {design}", "label_noise.noise_test", design, n, draw, (Row(test="careful"),), runs=400, quick=15)


def _coverage(n: int, m: int, size: int) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        a, b = ids(n // size, size), ids(m // size, size)
        alike = 0.5 if size > 1 else 0.0
        found = coverage.coverage(
            clustered_values(rng, a, 4, alike), clustered_values(rng, b, 4, alike), cluster_source=None if size == 1 else a, seed=run
        )
        return (covered(found.share(cluster=None if size == 1 else b), 0.05),)

    design = f"{_design(n, size)} and {m // size}, one distribution" if size > 1 else f"iid, {n} and {m} rows, one distribution"
    return Simulation(f"coverage, {design}", "coverage.coverage", design, n + m, draw, CAREFUL, runs=1000, quick=60)


def _slices(n: int, size: int) -> Simulation:
    """Errors that know nothing of any column: what the search proposes is tested on the other half, as in TLA307."""

    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        cluster = ids(n // size, size)
        wrong = ~clustered_hits(rng, cluster) if size > 1 else rng.random(n) < 0.2
        x = clustered_values(rng, cluster, 5, 0.5 if size > 1 else 0.0)
        units = None if size == 1 else cluster
        look = split_by_cluster(units, n, run)
        columns = slices.Columns(numbers={f"x{k}": x[:, k] for k in range(5)})
        parts = slices.rule_parts(wrong, columns, look, cluster=units, seed=run)
        parts += slices.without_doubles(slices.feature_parts(wrong, x, look, cluster=units, seed=run), parts)
        held, p = ~look, []
        for part in parts:
            inside = part.inside[held]
            if min(inside.sum(), (~inside).sum()) < 30:
                continue
            mine, theirs = (None, None) if units is None else (units[held][inside], units[held][~inside])
            gap = intervals.rate_difference(wrong[held][inside], wrong[held][~inside], cluster_first=mine, cluster_second=theirs, seed=run)
            p.append(limit_p(gap.ladder, maximum=0.0))
        return (Drawn(rejects=any(q is not None and q < 0.05 for q in benjamini_hochberg(p))),)

    design = f"{_design(n, size)}, 5 columns, errors anywhere"
    rows = (Row(test="careful", rule="any part that the search proposed is worse on held-out rows, adjusted p < 0.05"),)
    return Simulation(f"worst slices, n {n}, {design}", "slices.rule_parts, feature_parts", design, n, draw, rows, runs=500, quick=15)


def _numbers(n: int, size: int) -> Simulation:
    """y = f + e of a normal f of variance 3 and e of variance 1: mae √(2/π), rmse 1, r² 0.75; a second model errs as much."""

    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        cluster = ids(n // size, size)
        units, alike = None if size == 1 else cluster, 0.5 if size > 1 else 0.0
        f, e, other = (clustered_values(rng, cluster, alike=alike) for _ in range(3))
        y = np.sqrt(3) * f + e
        return (
            covered(regression.mae(y, y - e, cluster=units), float(np.sqrt(2 / np.pi))),
            covered(regression.mean_error(y, y - e, cluster=units), 0.0),
            covered(regression.rmse(y, y - e, cluster=units), 1.0),
            # below 30 units r² has no interval
            *(() if n // size < 30 else (covered(regression.r2(y, y - e, cluster=units, resamples=500, seed=run), 0.75),)),
            both(regression.error_difference(y, y - e, y - other, cluster=units, resamples=399, seed=run), 0.0),
        )

    few = {"known": 0.12, "because": "known: t of a skewed mean, few units"} if n // size < 60 else {}
    rows = (
        Row("mae", interval="exact", **few), Row("mean_error", interval="exact"), Row("rmse", interval="exact", **few),
        *(() if n // size < 30 else (Row("r2", interval="careful", **few),)), Row("error_difference", test="exact", interval="exact"),
    )  # fmt: skip
    return Simulation(f"predicted numbers, n {n}, {_design(n, size)}", "regression", _design(n, size), n, draw, rows, runs=1000, quick=60)


def _changes(n: int, size: int) -> Simulation:
    """Two models that read the same signal through noise of their own: equally good in every metric."""

    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        cluster = ids(n // size, size)
        alike = 0.4 if size > 1 else 0.0
        y = rng.integers(0, 2, n)
        common = 0.7 * clustered_values(rng, cluster, alike=alike)
        scores = [common + 0.7 * clustered_values(rng, cluster, alike=alike) + 1.2 * (y - 0.5) for _ in range(2)]
        first, second = (np.stack([norm.cdf(-s), norm.cdf(s)], axis=1) for s in scores)
        units = None if size == 1 else cluster
        found = metric_changes(y, first, second, positive=1, cluster=units)
        areas = auc_change(y == 1, scores[0], scores[1], cluster=units)
        return *(both(found[name], 0.0) for name in METRICS), both(areas, 0.0)

    rows = (*(Row(name, test="careful", interval="careful") for name in METRICS), Row("auc_change", test="careful", interval="careful"))
    return Simulation(
        f"metric_changes, n {n}, {_design(n, size)}", "change, out_of_distribution", _design(n, size), n, draw, rows, quick=100
    )


METRICS = ("balanced_accuracy", "f1_macro", "auroc", "average_precision")


def _collapse(n: int, size: int) -> Simulation:
    """Features before and after of one kind: the ratio of ranks is 1; two classes 4 apart in 4 columns of variance 1: 4/16 in a pair."""

    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        cluster = ids(n // size, size)
        units, alike = None if size == 1 else cluster, 0.4 if size > 1 else 0.0
        scale = np.array([2.0, 1.5, 1.0, 0.7, 0.5, 0.3])
        before, after = (clustered_values(rng, cluster, 6, alike) * scale for _ in range(2))
        y = (np.arange(n // size) % 2)[cluster]
        x = clustered_values(rng, cluster, 4, alike)
        x[:, 0] += 4.0 * y
        return (
            covered(collapse.rank_change(before, after, cluster=units, seed=run).ratio, 1.0),
            covered(collapse.class_variability(x, y, classes=2, cluster=units, seed=run), 0.25),
        )

    rows = (Row("rank_change", interval="careful"), Row("class_variability", interval="careful"))
    return Simulation(f"collapse, n {n}, {_design(n, size)}", "collapse", _design(n, size), n, draw, rows, runs=1000, quick=60)


SIMULATIONS: tuple[Simulation, ...] = (
    _trend(200, 1, 6), _trend(3000, 1, 6), _trend(200, 10, 4), _trend(1200, 10, 6), _trend(480, 12, 4, True),
    _ratios(300, 1), _ratios(3000, 1), _ratios(720, 12),
    _cells(120, 1), _cells(2000, 1), _cells(400, 10), _cells(1200, 10),
    _concept(150, 1), _concept(300, 6),
    _noise(200, 1), _noise(600, 6),
    _coverage(150, 150, 1), _coverage(800, 600, 1), _coverage(400, 400, 8),
    _slices(600, 1), _slices(1200, 8),
    _numbers(40, 1), _numbers(600, 1), _numbers(90, 6), _numbers(600, 6),
    _changes(80, 1), _changes(1000, 1), _changes(240, 6), _changes(900, 6),
    _collapse(100, 1), _collapse(800, 1), _collapse(800, 8),
)  # fmt: skip
