"""Domain shift: measures/shift.py, and measures/activations.py."""

from __future__ import annotations

import numpy as np

from benchmarks.calibration.simulation import Drawn, Row, Simulation, both, covered, tested
from benchmarks.calibration.worlds import Rng, clustered_hits, clustered_values, ids
from tl_audit.measures import multiplicity, shift
from tl_audit.measures.activations import ChannelSums, channel_shift, jackknife_blocks, shift_excess
from tl_audit.measures.estimate import Estimate, FloatArray, IntArray

EXACT = (Row(test="exact"),)
MIX = (0.4, 0.3, 0.2, 0.1)
RESAMPLES = 99  # 0.05 is one of the values that p can take: the level is exact


def _two(rng: Rng, clusters: tuple[int, int], size: int, columns: int) -> tuple[FloatArray, FloatArray, IntArray | None, IntArray | None]:
    """Two samples of one distribution, and their clusters (None where rows are the units)."""
    a, b = ids(clusters[0], size), ids(clusters[1], size)
    alike = 0.7 if size > 1 else 0.0
    x, y = clustered_values(rng, a, columns, alike), clustered_values(rng, b, columns, alike)
    return (x, y, None, None) if size == 1 else (x, y, a, b + clusters[0])


def _design(clusters: tuple[int, int], size: int) -> tuple[str, int]:
    unit = "iid" if size == 1 else "clusters"
    rows = "rows" if size == 1 else f"× {size}"
    return f"{unit}, {clusters[0]} and {clusters[1]} {rows}", sum(clusters) * size


def _mmd(clusters: tuple[int, int], size: int, columns: int, *, interval: bool = False) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        x, y, a, b = _two(rng, clusters, size, columns)
        resamples, bootstrap = (19, 200) if interval else (RESAMPLES, 20)
        found = shift.mmd(x, y, cluster_source=a, cluster_target=b, resamples=resamples, bootstrap=bootstrap, seed=run, alpha=0.2)
        return (covered(found, 0.0) if interval else tested(found),)

    design, n = _design(clusters, size)
    rows = (Row(interval="careful"),) if interval else EXACT
    name = f"mmd{', interval' if interval else ''}, {design} of {columns}"
    return Simulation(name, "shift.mmd", f"{design}, {columns} columns", n, draw, rows, quick=100)


def _mmd_of_shared_clusters(rng: Rng, run: int) -> tuple[Drawn, ...]:
    cluster = ids(24, 6)
    x = clustered_values(rng, cluster, 4)
    side = np.arange(cluster.size) % 2 == 0
    found = shift.mmd(
        x[side], x[~side], cluster_source=cluster[side], cluster_target=cluster[~side], resamples=RESAMPLES, bootstrap=20, seed=run
    )
    return (tested(found),)


def _c2st(clusters: tuple[int, int], size: int, columns: int) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        x, y, a, b = _two(rng, clusters, size, columns)
        return (both(shift.c2st(x, y, cluster_source=a, cluster_target=b, resamples=RESAMPLES, seed=run), 0.5),)

    design, n = _design(clusters, size)
    rows = (Row(test="exact", interval="careful"),)
    return Simulation(f"c2st, {design} of {columns}", "shift.c2st", f"{design}, {columns} columns", n, draw, rows, quick=100)


def _labels(rng: Rng, cluster: IntArray, size: int) -> IntArray:
    """Classes of one mix; rows of a cluster share theirs four times in five."""
    own = rng.choice(4, cluster.size, p=MIX)
    if size == 1:
        return own
    return np.where(rng.random(cluster.size) < 0.8, rng.choice(4, int(cluster.max()) + 1, p=MIX)[cluster], own)


def _tvd(clusters: tuple[int, int], size: int) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        a, b = ids(clusters[0], size), ids(clusters[1], size)
        units = {} if size == 1 else {"cluster_source": a, "cluster_target": b + clusters[0]}
        found = shift.label_shift(_labels(rng, a, size), _labels(rng, b, size), classes=4, resamples=RESAMPLES, seed=run, **units)
        return (tested(found.tvd), Drawn(rejects=bool(found.tvd.value > found.tvd.details["null_high"])))

    design, n = _design(clusters, size)
    rows = (
        Row("permutation test", test="careful"),
        Row("95 % of the null", test="careful", rule="tvd above its quantile under permutation"),
    )
    return Simulation(f"label shift, {design}", "shift.label_shift", f"{design}, 4 classes", n, draw, rows)


def _ks(clusters: tuple[int, int], size: int, ties: bool) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        x, y, a, b = _two(rng, clusters, size, 1)
        if ties:
            x, y = x.round(), y.round()
        found = shift.ks_shift(x[:, 0], y[:, 0], cluster_source=a, cluster_target=b, resamples=RESAMPLES, seed=run)
        return (tested(found), Drawn(rejects=bool(found.value > found.details["null_high"])))

    design, n = _design(clusters, size)
    design += ", ties" if ties else ""
    rows = (
        Row("permutation test", test="careful"),
        Row("95 % of the null", test="careful", rule="ks above its quantile under permutation"),
    )
    return Simulation(f"ks_shift, {design}", "shift.ks_shift", design, n, draw, rows)


def _property_family(clusters: tuple[int, int], size: int) -> Simulation:
    """Six properties, two of them categorical: the family of TLA507."""

    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        x, y, a, b = _two(rng, clusters, size, 6)
        found = [
            shift.property_shift(
                x[:, k] > 0 if k < 2 else x[:, k], y[:, k] > 0 if k < 2 else y[:, k],
                categorical=k < 2, cluster_source=a, cluster_target=b, tests=6, resamples=RESAMPLES, seed=run,
            )
            for k in range(6)
        ]  # fmt: skip
        adjusted = multiplicity.holm([one.distance.p_value for one in found])
        beyond = any(one.distance.value > one.distance.details["null_high"] for one in found)
        return Drawn(rejects=min(p for p in adjusted if p is not None) <= 0.05), Drawn(rejects=bool(beyond))

    design, n = _design(clusters, size)
    rows = (
        Row("Holm over six", test="careful", rule="any adjusted p <= 0.05"),
        Row("quantile of the null", test="careful", rule="any distance above its 1 - 0.05/6 quantile"),
    )
    return Simulation(f"property_shift, six properties, {design}", "shift.property_shift", design, n, draw, rows, quick=60)


def _psi(clusters: tuple[int, int], size: int) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        x, y, a, b = _two(rng, clusters, size, 1)
        psi = shift.property_shift(x[:, 0], y[:, 0], cluster_source=a, cluster_target=b, resamples=19, alpha=0.2, seed=run).psi
        assert psi is not None
        assert psi.value is not None
        return (Drawn(rejects=bool(psi.value > psi.details["null_high"])),)

    design, n = _design(clusters, size)
    rows = (Row(test="exact", rule="psi above its 95 % under the null"),)
    return Simulation(f"psi, {design}", "shift.property_shift", design, n, draw, rows)


def _bbse(clusters: tuple[int, int], size: int) -> Simulation:
    """Source and target with shares 0.4, 0.3, 0.3 and 0.2, 0.3, 0.5: weights 0.5, 1 and 5/3. Clusters hold one class."""
    mixes = np.array([[0.4, 0.3, 0.3], [0.2, 0.3, 0.5]])
    truth = mixes[1] / mixes[0]

    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        a, b = ids(clusters[0], size), ids(clusters[1], size)
        labels = [rng.choice(3, clusters[k], p=mixes[k])[unit] for k, unit in enumerate((a, b))]
        said = [np.where(rng.random(y.size) < 0.7, y, rng.choice(3, y.size)) for y in labels]
        units = {} if size == 1 else {"cluster_source": a, "cluster_target": b + clusters[0]}
        found = shift.bbse(said[0], labels[0], said[1], classes=3, resamples=500, seed=run, **units)
        return tuple(covered(weight, float(w)) for weight, w in zip(found.weights, truth, strict=True))

    design, n = _design(clusters, size)
    rows = tuple(Row(f"weight {w:.2f}", interval="careful") for w in truth)
    return Simulation(f"bbse, {design}", "shift.bbse", design, n, draw, rows)


def _drops(clusters: tuple[int, int], size: int) -> Simulation:
    """A class mix that moves, accuracies of the classes that do not: the plain drop is 0.1, the reweighted one 0."""
    accuracy = np.array([0.9, 0.7])

    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        a, b = ids(clusters[0], size), ids(clusters[1], size)
        labels = [(rng.random(unit.size) < share).astype(int) for unit, share in ((a, 0.25), (b, 0.75))]
        # what is hard is hard for a whole cluster
        shifts = [np.repeat(rng.normal(size=count), size) if size > 1 else np.zeros(count) for count in clusters]
        right = [_hits_given(rng, accuracy[y], s) for y, s in zip(labels, shifts, strict=True)]
        units = {} if size == 1 else {"cluster_source": a, "cluster_target": b + clusters[0]}
        plain = shift.accuracy_drop(right[0], right[1], seed=run, **units)
        weighted = shift.accuracy_drop_reweighted(right[0], labels[0], right[1], labels[1], classes=2, resamples=500, seed=run, **units)
        return covered(plain, 0.1), covered(weighted, 0.0)

    design, n = _design(clusters, size)
    rows = (Row("plain", interval="careful"), Row("reweighted", interval="careful"))
    return Simulation(f"accuracy_drop, {design}", "shift.accuracy_drop(_reweighted)", design, n, draw, rows)


def _hits_given(rng: Rng, rate: FloatArray, shifted: FloatArray) -> np.ndarray:
    """Hits at these rates on average; half of what decides a row's luck is its cluster's (a normal threshold)."""
    from scipy.special import ndtri

    luck = rng.normal(size=rate.size) if not shifted.any() else (shifted + rng.normal(size=rate.size)) / np.sqrt(2)
    return luck < ndtri(rate)


def _mean_gap(clusters: tuple[int, int], size: int) -> Simulation:
    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        x, y, a, b = _two(rng, clusters, size, 5)
        return (both(shift.mean_gap(x, y, axes=1, cluster_source=a, cluster_target=b)[0], 0.0),)

    design, n = _design(clusters, size)
    # the axis of most variance of the pooled rows is drawn towards the gap between the domains
    return Simulation(f"mean_gap, first axis, {design}", "shift.mean_gap", design, n, draw, (Row(test="careful", interval="careful"),))


def _channel(n: int, size: int, delta: float) -> Simulation:
    def one(rng: Rng, offset: float) -> Estimate:
        cluster = ids(n // size, size)
        x = clustered_values(rng, cluster, 6, 0.5 if size > 1 else 0.0) + offset
        units = None if size == 1 else cluster
        block = jackknife_blocks(n, cluster=units)
        count = np.bincount(block).astype(np.float64)
        onehot = np.eye(count.size)[block]
        return channel_shift(ChannelSums(count, onehot.T @ x, onehot.T @ x**2), np.ones(6), n=n)

    def draw(rng: Rng, run: int) -> tuple[Drawn, ...]:
        target, reference = one(rng, delta), one(rng, 0.0)
        return covered(target, delta**2), covered(shift_excess(target, reference), delta**2)

    design = f"{'iid' if size == 1 else f'clusters {n // size} × {size}'}, moved by {delta}"
    rows = (Row("shift", interval="careful"), Row("excess", interval="careful"))
    return Simulation(f"channel_shift, n {n}, {design}", "activations.channel_shift, shift_excess", design, n, draw, rows)


def _rows_as_units(rng: Rng, run: int) -> tuple[Drawn, ...]:
    """Not a promise: what permuting the rows of patients would do, so that the bench is seen to notice."""
    x, y, _, _ = _two(rng, (10, 10), 6, 4)
    return (tested(shift.mmd(x, y, resamples=99, bootstrap=20, seed=run)),)


def _rates_of_rows(rng: Rng, run: int) -> tuple[Drawn, ...]:
    from tl_audit.measures.intervals import rate

    return (covered(rate(clustered_hits(rng, ids(20, 10))), 0.8),)


WRONG: tuple[Simulation, ...] = (
    Simulation("rows of patients permuted", "shift.mmd", "clusters 10 and 10 × 6", 120, _rows_as_units, EXACT),
    Simulation("rows of clusters counted", "intervals.rate", "clusters 20 × 10", 200, _rates_of_rows, (Row(interval="exact"),)),
)
"""Wrong on purpose and in no table: the bench must call each of them LIBERAL."""

SIMULATIONS: tuple[Simulation, ...] = (
    _mmd((30, 40), 1, 4), _mmd((150, 150), 1, 32), _mmd((10, 10), 6, 4), _mmd((40, 30), 6, 4),
    Simulation("mmd, clusters in both domains", "shift.mmd", "clusters 24 × 6, in both domains", 144, _mmd_of_shared_clusters, EXACT),
    _mmd((40, 40), 1, 4, interval=True), _mmd((200, 200), 1, 4, interval=True), _mmd((30, 30), 2, 4, interval=True),
    _c2st((60, 70), 1, 4), _c2st((400, 400), 1, 16), _c2st((12, 14), 5, 4), _c2st((80, 80), 5, 4),
    _tvd((90, 120), 1), _tvd((1000, 800), 1), _tvd((30, 40), 3), _tvd((150, 150), 3),
    _ks((60, 90), 1, False), _ks((800, 600), 1, False), _ks((60, 90), 1, True), _ks((20, 30), 3, False), _ks((120, 100), 3, False),
    _property_family((80, 80), 1), _property_family((25, 25), 4),
    _psi((100, 100), 1), _psi((300, 300), 1), _psi((2000, 2000), 1), _psi((60, 60), 4),
    _bbse((120, 120), 1), _bbse((1000, 1000), 1), _bbse((60, 60), 5),
    _drops((150, 150), 1), _drops((1500, 1000), 1), _drops((15, 15), 8), _drops((60, 60), 8),
    _mean_gap((40, 40), 1), _mean_gap((500, 500), 1), _mean_gap((15, 15), 6), _mean_gap((80, 80), 6),
    _channel(60, 1, 0.0), _channel(300, 1, 0.0), _channel(300, 10, 0.0), _channel(300, 1, 0.5), _channel(300, 10, 0.5),
)  # fmt: skip
