"""CKA, Procrustes and neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import procrustes

from tl_audit.errors import DataError
from tl_audit.measures.representation import (
    cka_drift,
    cka_of,
    cka_sums,
    hsic1,
    linear_cka,
    neighbour_overlap,
    procrustes_distance,
)


def rotation(rng, d):
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


def hsic1_replica(x, y):
    """Song et al. (2012), equation for HSIC_1, with loops over rows."""
    b = len(x)
    k = [[0.0 if i == j else float(x[i] @ x[j]) for j in range(b)] for i in range(b)]
    l = [[0.0 if i == j else float(y[i] @ y[j]) for j in range(b)] for i in range(b)]
    trace = sum(k[i][j] * l[j][i] for i in range(b) for j in range(b))
    total = sum(map(sum, k)) * sum(map(sum, l)) / ((b - 1) * (b - 2))
    cross = sum(k[i][j] * l[j][m] for i in range(b) for j in range(b) for m in range(b)) * 2 / (b - 2)
    return (trace + total - cross) / (b * (b - 3))


def test_hsic_is_its_formula_and_sees_no_offset(rng):
    x, y = rng.normal(size=(12, 3)), rng.normal(size=(12, 2))

    assert hsic1(x, y) == pytest.approx(hsic1_replica(x, y), abs=1e-12)
    assert hsic1(x + 1e4, y - 1e4) == pytest.approx(hsic1(x, y), abs=1e-8)
    with pytest.raises(DataError, match="at least 4 rows"):
        hsic1(x[:3], y[:3])


def test_hsic_of_independent_features_is_zero_on_average():
    values = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        values.append(hsic1(rng.normal(size=(32, 3)), rng.normal(size=(32, 3))))

    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(400)


def test_rotation_scale_and_offset_keep_cka_at_one(rng):
    x = rng.normal(size=(200, 16))

    assert linear_cka(x, x @ rotation(rng, 16)).value == pytest.approx(1)
    assert linear_cka(x, 7 * x + 3).value == pytest.approx(1)
    assert cka_drift(x, x).value == pytest.approx(0)


def test_unrelated_wide_features_are_near_zero_where_biased_cka_is_near_one():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, 2048)), rng.normal(size=(100, 2048))
    a, b = x - x.mean(axis=0), y - y.mean(axis=0)
    biased = np.linalg.norm(a.T @ b) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))

    assert biased > 0.9
    assert abs(linear_cka(x, y, batch=50).value) < 0.1


def test_batches_give_what_all_rows_at_once_give():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3000, 40))
    y = x @ rng.normal(size=(40, 40)) + 6 * rng.normal(size=(3000, 40))
    a, b = x - x.mean(axis=0), y - y.mean(axis=0)
    truth = np.linalg.norm(a.T @ b) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    estimate = linear_cka(x, y, batch=64)

    assert estimate.value == pytest.approx(truth, abs=0.02)
    assert estimate.interval()[0] < truth < estimate.interval()[1]


def test_merged_sums_are_the_sums_of_all_batches(rng):
    x, y = rng.normal(size=(320, 5)), rng.normal(size=(320, 5))
    whole = cka_sums(x, y, batch=32)
    parts = [cka_sums(x[i : i + 32], y[i : i + 32], batch=32) for i in range(0, 320, 32)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)

    assert merged.rows == 320
    assert whole.xy.size == merged.xy.size == 10
    assert cka_of(merged).value == pytest.approx(float(merged.xy.sum() / np.sqrt(merged.xx.sum() * merged.yy.sum())))


def test_clusters_stay_in_one_batch(rng):
    x = np.repeat(rng.normal(size=(40, 3)), 8, axis=0)
    cluster = np.arange(320) // 8

    kept, torn = cka_sums(x, x, batch=32, cluster=cluster), cka_sums(x, x, batch=32)

    # eight equal rows in one batch raise the HSIC of the batch with itself
    assert kept.xx.mean() > torn.xx.mean()


def test_a_last_batch_that_is_too_small_joins_the_one_before(rng):
    assert cka_sums(rng.normal(size=(70, 2)), rng.normal(size=(70, 2)), batch=32).xy.size == 2
    assert cka_sums(rng.normal(size=(20, 2)), rng.normal(size=(20, 2))).xy.size == 1
    with pytest.raises(DataError, match="at least 32"):
        cka_sums(rng.normal(size=(70, 2)), rng.normal(size=(70, 2)), batch=8)


@pytest.mark.parametrize(("n", "d", "e"), [(50, 4, 4), (12, 30, 30)])
def test_procrustes_is_twice_one_minus_the_nuclear_norm(rng, n, d, e):
    x, y = rng.normal(size=(n, d)), rng.normal(size=(n, e))
    _, _, disparity = procrustes(x, y)  # 1 - (nuclear norm)², with scaling

    assert procrustes_distance(x, y).value == pytest.approx(2 - 2 * np.sqrt(1 - disparity), abs=1e-9)
    assert procrustes_distance(x, 3 * x @ rotation(rng, d) + 1).value == pytest.approx(0, abs=1e-9)


def test_neighbours_are_those_of_scikit_learn(rng):
    from sklearn.neighbors import NearestNeighbors

    x, y = rng.normal(size=(60, 4)), rng.normal(size=(60, 4))
    first, second = (NearestNeighbors(n_neighbors=10).fit(z).kneighbors(return_distance=False) for z in (x, y))
    expected = np.mean([len(set(a) & set(b)) / len(set(a) | set(b)) for a, b in zip(first, second, strict=True)])

    assert neighbour_overlap(x, y).value == pytest.approx(expected)
    assert neighbour_overlap(x, x @ rotation(rng, 4)).value == 1


def test_unrelated_features_share_neighbours_as_the_null_says():
    rng = np.random.default_rng(0)
    estimate = neighbour_overlap(rng.normal(size=(600, 5)), rng.normal(size=(600, 5)))

    assert estimate.null == pytest.approx(10 / (2 * 600 - 12))
    assert estimate.value == pytest.approx(estimate.null, rel=0.15)


@pytest.mark.parametrize("n", range(7))
@pytest.mark.filterwarnings("error")
def test_tiny_and_constant_features_never_raise(n, rng):
    for x in (np.zeros((n, 3)), rng.normal(size=(n, 3)), np.zeros((n, 0))):
        for estimate in (
            linear_cka(x, x),
            cka_drift(x, x),
            procrustes_distance(x, x),
            neighbour_overlap(x, x, neighbours=2),
        ):
            assert estimate.value is not None or estimate.reason
            assert estimate.value is None or np.isfinite(estimate.value)
