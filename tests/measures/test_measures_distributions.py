"""Columns compared from one sort: number for number what SciPy, NumPy and drawn labellings give."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from tl_audit.errors import DataError
from tl_audit.measures import distributions, shift
from tl_audit.measures.distributions import ks_by_chance, largest_gaps, merge, sorted_deciles, sorted_quantiles, tvd_by_chance
from tl_audit.measures.permutation import domain_labellings, permutation_p
from tl_audit.measures.shift import ks_shift, property_shift, property_shifts, tvd_shift


@pytest.mark.parametrize("digits", [8, 1, 0])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
def test_one_sort_gives_what_scipy_gives(rng, digits, dtype):
    x, y = (np.round(rng.normal(size=n) * 3 + shift, digits).astype(dtype) for n, shift in ((70, 0), (45, 1)))
    found = merge(x, y)

    assert found.ks == pytest.approx(stats.ks_2samp(x, y, method="asymp").statistic, abs=1e-12)
    assert found.w1 == pytest.approx(stats.wasserstein_distance(x, y), abs=1e-12)
    assert found.values.tolist() == np.unique(np.r_[x, y]).tolist()


@pytest.mark.parametrize("n", [1, 2, 3, 10, 99, 1000, 1001])
def test_quantiles_of_a_sorted_sample_are_those_of_numpy(rng, n):
    x = np.sort(rng.normal(size=n))

    assert sorted_deciles(x).tolist() == np.quantile(x, np.arange(1, 10) / 10, method="inverted_cdf").tolist()
    assert sorted_quantiles(x, np.array([0.0, 0.25, 0.6, 0.75, 1.0])).tolist() == np.quantile(x, [0.0, 0.25, 0.6, 0.75, 1.0]).tolist()


def test_values_that_are_not_finite_are_refused():
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(DataError, match="non-finite"):
            merge(np.array([1.0, bad]), np.array([1.0]))
    with pytest.raises(DataError, match="at least one number"):
        merge(np.zeros(0), np.array([1.0]))


@pytest.mark.parametrize("digits", [8, 0])
def test_largest_gaps_are_the_ks_distances_of_the_labellings(rng, digits):
    values = np.round(rng.normal(size=60), digits)
    unit = rng.permutation(60) // 3
    labels = rng.random((25, 20)) < 0.4
    labels[:, 0], labels[:, 1] = True, False
    expected = [stats.ks_2samp(values[row[unit]], values[~row[unit]], method="asymp").statistic for row in labels]

    assert largest_gaps(values, unit, labels) == pytest.approx(expected, abs=1e-15)


def test_largest_gaps_hold_beyond_32_bits(rng, monkeypatch):
    values, unit = rng.normal(size=100_000), np.arange(100_000)
    labels = np.stack([rng.random(100_000) < 0.5, np.arange(100_000) < 50_000])
    expected = [stats.ks_2samp(values[row], values[~row], method="asymp").statistic for row in labels]

    assert largest_gaps(values, unit, labels) == pytest.approx(expected, abs=1e-15)


def replica(x, y, clusters, tests):
    """The permutation test in plain words: every labelling's distance by SciPy."""
    second = np.r_[np.zeros(x.size, dtype=bool), np.ones(y.size, dtype=bool)]
    labellings = domain_labellings(second, cluster=clusters, resamples=max(99, 40 * tests - 1), seed=3)
    pooled = np.r_[x, y][labellings.kept]

    def distance(labels):
        rows = labels[labellings.unit]
        return stats.ks_2samp(pooled[rows], pooled[~rows], method="asymp").statistic

    null = np.array([distance(row) for row in labellings.labels])
    return permutation_p(distance(labellings.observed), null, exhaustive=labellings.exhaustive), null


@pytest.mark.parametrize("digits", [6, 0])
@pytest.mark.parametrize("clustered", [False, True])
def test_the_test_of_a_column_is_that_of_its_labellings(rng, digits, clustered):
    x, y = np.round(rng.normal(size=40), digits), np.round(rng.normal(size=30) + 0.4, digits)
    ids = {"cluster_source": np.arange(40) // 4, "cluster_target": 100 + np.arange(30) // 3} if clustered else {}
    found = property_shift(x, y, tests=3, resamples=99, seed=3, **ids).distance
    p, null = replica(x, y, np.concatenate(list(ids.values())) if clustered else None, 3)

    assert found.value == pytest.approx(stats.ks_2samp(x, y, method="asymp").statistic, abs=1e-12)
    assert found.p_value == p
    assert found.null == pytest.approx(null.mean(), abs=1e-12)
    assert found.details["null_high"] == pytest.approx(np.quantile(null, 1 - 0.05 / 3), abs=1e-12)


def test_columns_one_after_the_other_have_the_numbers_of_each(rng):
    rows = {"cluster_source": np.arange(30) // 3, "cluster_target": 20 + np.arange(24) // 3}
    words = np.array(["a", "b", None], dtype=object)
    gaps = rng.normal(size=30)
    gaps[:4] = np.nan
    columns = [
        ("n", rng.normal(size=30), rng.normal(size=24), False),
        ("gaps", gaps, rng.normal(size=24), False),
        ("m", rng.normal(size=30), rng.normal(size=24), False),
        ("words", words[rng.integers(0, 3, 30)], words[rng.integers(0, 3, 24)], True),
    ]
    for ids in ({}, rows):
        found = dict(property_shifts(iter(columns), tests=4, resamples=49, **ids))
        for name, x, y, categorical in columns:
            assert found[name] == property_shift(x, y, categorical=categorical, tests=4, resamples=49, **ids)


def test_columns_are_read_as_they_are_asked_for(rng):
    read = []

    def columns():
        for name in ("a", "b"):
            read.append(name)
            yield name, rng.normal(size=9), rng.normal(size=9), False

    asked = property_shifts(columns(), tests=2, resamples=9)
    next(asked)
    assert read == ["a"]


def test_columns_of_different_rows_are_refused():
    with pytest.raises(DataError, match="'b' has 2 and 3 rows, the columns before 3 and 3"):
        list(property_shifts([("a", [1.0, 2, 3], [1.0, 2, 3], False), ("b", [1.0, 2], [1.0, 2, 3], False)], tests=2, resamples=9))


# ---------------------------------------------------------------- many rows


def test_the_law_of_many_rows_is_that_of_drawn_labellings(rng, monkeypatch):
    x, y = rng.normal(size=3000), rng.normal(size=2000) + 0.05
    drawn = ks_shift(x, y, resamples=1999)
    monkeypatch.setattr(shift, "MANY_ROWS", 0)
    known = ks_shift(x, y)

    assert known.details["method"] == "limit law"
    assert known.value == drawn.value
    assert known.p_value == pytest.approx(stats.ks_2samp(x, y, method="exact").pvalue, abs=0.01)
    assert known.null == pytest.approx(drawn.null, rel=0.05)
    assert known.details["null_high"] == pytest.approx(drawn.details["null_high"], rel=0.06)
    assert {"n_source", "n_target", "null_high", "within_null", "assignments"} <= known.details.keys()


@pytest.mark.parametrize("make", [np.round, lambda v: np.maximum(v, 0.0), lambda v: (v > 1).astype(float)])
def test_ties_do_not_make_the_law_careful(make):
    rng = np.random.default_rng(5)
    p = []
    for seed in range(300):
        x, y = make(rng.normal(size=120)), make(rng.normal(size=80))
        p.append(ks_by_chance(merge(x, y), alpha=0.05, resamples=99, seed=seed).p_value)

    assert 0.02 <= np.mean(np.array(p) <= 0.05) <= 0.085
    assert ks_by_chance(merge(x, y), alpha=0.05, resamples=199, seed=0).method == "permutation of counts"


def test_counts_drawn_for_a_table_of_two_by_two_are_fishers():
    x, y = np.r_[np.zeros(8), np.ones(4)], np.r_[np.zeros(3), np.ones(9)]
    expected = stats.fisher_exact([[8, 4], [3, 9]])[1]

    assert ks_by_chance(merge(x, y), alpha=0.05, resamples=20_000, seed=0).p_value == pytest.approx(expected, abs=0.012)
    counts = np.bincount(x.astype(int)), np.bincount(y.astype(int))
    assert tvd_by_chance(*(c.astype(float) for c in counts), alpha=0.05, resamples=20_000, seed=0).p_value == pytest.approx(
        expected, abs=0.012
    )


def test_a_shift_of_many_rows_is_found_and_a_p_is_never_0():
    rng = np.random.default_rng(0)
    x = rng.normal(size=15_000)

    assert ks_shift(x, rng.normal(size=15_000) + 0.05).p_value < 0.001
    assert 0 < ks_shift(x, x + 50).p_value < 1e-300


def test_categories_of_many_rows_have_the_law_of_their_labellings(rng, monkeypatch):
    a, b = rng.integers(0, 4, 800), np.minimum(rng.integers(0, 5, 700), 3)
    drawn = tvd_shift(a, b, classes=5, resamples=4999)
    monkeypatch.setattr(shift, "MANY_ROWS", 0)
    known = tvd_shift(a, b, classes=5, resamples=4999)

    assert known.value == drawn.value
    assert known.p_value == pytest.approx(drawn.p_value, abs=0.01)
    assert known.null == pytest.approx(drawn.null, rel=0.03)
    assert known.details["method"] == "permutation of counts"


def test_clusters_are_permuted_however_many_rows_there_are(rng, monkeypatch):
    monkeypatch.setattr(shift, "MANY_ROWS", 10)
    x, ids = rng.normal(size=60), np.arange(60) // 6
    found = ks_shift(x, x[:30], cluster_source=ids, cluster_target=50 + ids[:30], resamples=49)

    assert "method" not in found.details
    assert found.clusters == 5


def test_labellings_are_enumerated_where_there_are_few():
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([5.0, 6.0, 7.0])
    pooled = np.r_[x, y]
    null = []
    for chosen in combinations(range(7), 3):
        second = np.isin(np.arange(7), chosen)
        null.append(stats.ks_2samp(pooled[second], pooled[~second], method="asymp").statistic)

    assert ks_shift(x, y, alpha=0.1).p_value == pytest.approx(np.mean(np.array(null) >= 1 - 1e-12))


def test_the_grid_of_tied_values_is_small(rng):
    found = merge(np.round(rng.normal(size=4000), 2), np.zeros(1000))
    assert found.values.size > distributions.GRID
    assert ks_by_chance(found, alpha=0.05, resamples=99, seed=0).p_value == 0.01
