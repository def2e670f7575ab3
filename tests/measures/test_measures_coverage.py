"""Coverage of the target by the source: 5 % where they are one distribution, all where they are apart."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from tl_audit.measures.coverage import coverage
from tl_audit.measures.sampling import split_by_cluster


def test_the_share_is_that_of_distances_taken_with_a_search_tree() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 4)), rng.normal(0.8, 1.2, size=(150, 4))
    found = coverage(x, y, seed=3)
    half = split_by_cluster(None, 200, 3)
    tree = cKDTree(x[half])
    own, theirs = (tree.query(rows, k=[5])[0][:, 0] for rows in (x[~half], y))
    u = np.sort(own)[int(np.ceil(0.95 * (own.size - 1)))]
    assert found.threshold == pytest.approx(u)
    assert found.share().value == pytest.approx((theirs > u).mean())
    assert found.share().null == 0.05
    assert dict(found.curve)[50.0] == pytest.approx((theirs > np.median(own)).mean())


def test_one_distribution_is_uncovered_by_five_percent_and_its_interval_says_so() -> None:
    values, covered, above = [], 0, 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        share = coverage(rng.normal(size=(200, 5)), rng.normal(size=(150, 5)), seed=seed).share()
        low, high = share.interval()
        values.append(share.value)
        covered += low <= 0.05 <= high
        above += low > 0.20
    assert np.mean(values) == pytest.approx(0.05, abs=0.012)
    # 120 trials at 95 %: below 106 in one of a thousand
    assert covered >= 106
    assert above == 0


def test_blobs_apart_are_uncovered_wholly() -> None:
    rng = np.random.default_rng(1)
    share = coverage(rng.normal(size=(200, 3)), rng.normal(size=(80, 3)) + 50).share()
    assert share.value == 1.0
    assert share.interval()[0] > 0.9
    # along one ray from the origin as well: distances, not angles
    assert coverage(rng.normal(10, 0.1, (200, 3)), rng.normal(20, 0.1, (80, 3))).share().value == 1.0


def test_a_part_of_the_target_that_lies_apart_is_found_in_its_slice() -> None:
    rng = np.random.default_rng(2)
    y, apart = rng.normal(size=(300, 4)), np.arange(300) < 60
    y[apart] += 8
    found = coverage(rng.normal(size=(400, 4)), y)
    assert found.share(apart).value == 1.0
    assert found.share(~apart).value < 0.12
    assert found.share().value == pytest.approx((60 + found.uncovered[~apart].sum()) / 300)
    assert found.share(np.zeros(300, dtype=bool)).value is None


def test_clusters_are_the_units_of_the_halves_and_of_the_interval() -> None:
    rng = np.random.default_rng(3)
    unit = np.repeat(np.arange(40), 20)
    x = rng.normal(size=(40, 3))[unit] + 0.05 * rng.normal(size=(800, 3))
    y = rng.normal(size=(40, 3))[unit] + 0.05 * rng.normal(size=(800, 3))
    # row by row each half would hold the near twins of the other: the source would look nearer to itself than any target can be
    assert coverage(x, y, seed=0).share().value > 0.5
    held = coverage(x, y, cluster_source=unit, seed=0).share(cluster=unit)
    assert held.value < 0.3
    assert held.clusters == 40
    low, high = held.interval()
    rows = coverage(x, y, cluster_source=unit, seed=0).share().interval()
    assert high - low > rows[1] - rows[0]


def test_too_small_a_source_says_why_and_no_target_too() -> None:
    found = coverage(np.zeros((8, 2)), np.zeros((5, 2)))
    assert found.threshold is None
    assert "fewer than 5 rows" in str(found.share().reason)
    assert coverage(np.random.default_rng(0).normal(size=(50, 2)), np.zeros((0, 2))).share().value is None


@pytest.mark.parametrize("value", [0.0, 0.1])
@pytest.mark.parametrize("columns", [0, 2])
def test_a_source_whose_rows_are_all_equal_covers_nothing_and_nothing_is_passed(value: float, columns: int) -> None:
    found = coverage(np.full((50, columns), value), np.full((20, columns), value))
    assert found.threshold is None
    assert found.share().value is None
    assert "same features" in str(found.share().reason)
    assert not found.uncovered.any()


def test_the_order_of_target_rows_changes_nothing() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(100, 3)), rng.normal(size=(90, 3))
    order = rng.permutation(90)
    np.testing.assert_array_equal(coverage(x, y[order]).uncovered, coverage(x, y).uncovered[order])
