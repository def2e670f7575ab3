"""The slope of a rate over periods, and one source against many parts of a target: against closed forms, numpy and brute force."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from tl_audit.errors import DataError
from tl_audit.measures import shift
from tl_audit.measures.trend import trend


def test_the_slope_is_that_of_weighted_least_squares_over_periods(rng):
    t, y = rng.integers(0, 6, 200), rng.random(200) < 0.7
    places, sizes = np.unique(t, return_counts=True)
    rates = np.array([y[t == k].mean() for k in places])
    slope, level = np.polyfit(places, rates, 1, w=np.sqrt(sizes))
    found = trend(y, t)
    assert found.value == pytest.approx(slope, abs=1e-12)
    assert found.details["intercept"] == pytest.approx(level, abs=1e-12)


def test_a_micro_table_by_hand():
    # 2 of 4 right at 0, 4 of 4 right at 2: the line through both rates
    found = trend([1, 0, 1, 0, 1, 1, 1, 1], [0, 0, 0, 0, 2, 2, 2, 2])
    assert found.value == pytest.approx(0.25)
    assert found.null == 0.0
    assert found.n == 8


def test_few_clusters_are_permuted_as_brute_force_permutes_them():
    # six clusters, one period each: 720 orders; the share that reaches the slope is the p-value up to chance of the draw
    when, right, rows = np.arange(6.0), np.array([1, 2, 2, 4, 4, 5]), np.array([5, 5, 6, 6, 5, 5])
    cluster = np.repeat(np.arange(6), rows)
    y = np.concatenate([np.r_[np.ones(k), np.zeros(n - k)] for k, n in zip(right, rows, strict=True)])

    def slope(order):
        t = np.repeat(when[list(order)], rows)
        c = t - t.mean()
        return abs(c @ y / (c @ c))

    observed = slope(range(6))
    exact = np.mean([slope(order) >= observed - 1e-12 for order in permutations(range(6))])
    found = trend(y, when[cluster], cluster=cluster, resamples=4999)
    assert found.p_value == pytest.approx(exact, abs=0.006)


def test_rows_are_permuted_as_shuffles_permute_them(rng):
    t, y = np.repeat(np.arange(4.0), 30), rng.random(120) < np.repeat([0.5, 0.6, 0.7, 0.7], 30)
    c = t - t.mean()
    observed = abs(c @ y)
    shuffled = np.mean([abs(c @ rng.permutation(y)) >= observed - 1e-12 for _ in range(4000)])
    assert trend(y, t, resamples=4999).p_value == pytest.approx(shuffled, abs=0.03)


def test_a_fall_is_found_and_its_interval_holds_the_truth(rng):
    t = rng.integers(0, 8, 2000)
    found = trend(rng.random(2000) < 0.9 - 0.04 * t, t)
    low, high = found.interval()
    assert low < -0.04 < high < 0
    assert found.p_value == pytest.approx(0.001)


def test_renaming_clusters_and_reordering_rows_changes_nothing(rng):
    t, cluster = rng.integers(0, 5, 120), np.repeat([f"c{i:02d}" for i in range(20)], 6)
    y = rng.random(120) < 0.6
    order = rng.permutation(120)
    one, two = trend(y, t, cluster=cluster, seed=3), trend(y[order], t[order], cluster=cluster[order], seed=3)
    assert (one.value, one.p_value) == (pytest.approx(two.value), two.p_value)
    assert np.array(one.ladder) == pytest.approx(np.array(two.ladder))


def test_what_has_no_trend_says_why():
    assert trend([1, 0, 1], [2, 2, 2]).reason == "a trend needs two periods"
    assert trend([], []).reason == "a trend needs two periods"
    assert "every row has the same outcome" in trend([1] * 20, np.arange(20) % 4).reason
    assert trend([1, 0, 1, 0], [0, 0, 1, 1], cluster=["a", "a", "b", "b"]).reason == "fewer than three clusters: no interval"
    few = trend([1, 0, 1, 0, 1, 1, 0, 1], np.arange(8) % 4, cluster=np.arange(8) // 2)
    assert few.p_value is None
    assert few.details["p_reason"] == "4 clusters are too few to permute"
    with pytest.raises(DataError, match="must be the same samples"):
        trend([1, 0], [0])


@pytest.mark.parametrize("clustered", [False, True])
def test_without_a_trend_a_twentieth_is_called_one(clustered):
    rejected = covered = 0
    runs = 300
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        if clustered:
            cluster = np.repeat(np.arange(30), rng.integers(3, 12, 30))
            t, p = rng.integers(0, 6, 30)[cluster], rng.beta(4, 1, 30)[cluster]
        else:
            cluster, t, p = None, rng.integers(0, 6, 240), 0.8
        found = trend(rng.random(t.size) < p, t, cluster=cluster, resamples=199, seed=seed)
        low, high = found.interval()
        rejected += found.p_value <= 0.05
        covered += low <= 0 <= high
    assert rejected / runs < 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
    assert covered / runs > 0.90


# -- one source, many parts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clustered", [False, True])
def test_one_part_alone_is_the_two_sample_statistic(rng, clustered):
    x, y = rng.normal(size=(60, 4)), rng.normal(0.4, 1, size=(50, 4))
    a, b = (np.repeat(np.arange(20), 3), 100 + np.repeat(np.arange(25), 2)) if clustered else (None, None)
    whole = shift.mmd(x, y, cluster_source=a, cluster_target=b, resamples=199, bootstrap=100, seed=5)
    (part,) = shift.mmd_of_parts(x, [y], cluster_source=a, cluster_parts=None if b is None else [b], resamples=199, bootstrap=100, seed=5)
    assert part.value == pytest.approx(whole.value, abs=1e-12)
    assert part.p_value == whole.p_value
    assert np.array(part.ladder) == pytest.approx(np.array(whole.ladder), abs=1e-10)


def test_parts_share_one_bandwidth_and_each_is_what_its_sums_say(rng):
    x, parts = rng.normal(size=(12, 3)), [rng.normal(k, 1, size=(6 + k, 3)) for k in range(3)]
    pooled = np.concatenate([x, *parts])
    squares = ((pooled[:, None] - pooled[None]) ** 2).sum(axis=2)
    width = np.median(squares[np.triu_indices(len(pooled), 1)])

    def mean(a, b, same):
        k = np.exp(-((a[:, None] - b[None]) ** 2).sum(axis=2) / width)
        return (k.sum() - np.trace(k)) / (len(a) * (len(a) - 1)) if same else k.mean()

    for y, found in zip(parts, shift.mmd_of_parts(x, parts, resamples=99, bootstrap=50), strict=True):
        assert found.value == pytest.approx(mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False), abs=1e-12)
        assert found.details["bandwidth"] == pytest.approx(width)


def test_parts_that_cannot_be_compared_say_why(rng):
    x = rng.normal(size=(20, 2))
    found = shift.mmd_of_parts(x, [x[:1], x[:5] + 1], resamples=99, bootstrap=50)
    assert found[0].reason == "a domain has fewer than two rows"
    assert found[1].value is not None
    (flat,) = shift.mmd_of_parts(np.ones((20, 2)), [np.ones((20, 2))])
    assert flat.reason == "all rows are equal: no distance to compare"
    assert shift.mmd_of_parts(x, []) == ()
    with pytest.raises(DataError, match="must come from one layer"):
        shift.mmd_of_parts(x, [rng.normal(size=(20, 3))])
