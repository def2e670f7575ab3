"""Errors of predicted numbers: by hand, against scikit-learn, under duplication and turning round, degenerate, and at their level."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as library

from tl_audit.errors import DataError
from tl_audit.measures import fairness, regression
from tl_audit.measures.estimate import limit_p


def pair(n: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    truth = draw.normal(150, 80, n)
    return truth, truth + draw.normal(3, 30, n)


def test_four_rows_by_hand():
    truth, given = [1.0, 2.0, 3.0, 6.0], [2.0, 2.0, 1.0, 7.0]
    assert regression.mae(truth, given).value == pytest.approx(1.0)
    assert regression.rmse(truth, given).value == pytest.approx(np.sqrt(6 / 4))
    assert regression.mean_error(truth, given).value == pytest.approx(0.0)
    assert regression.r2(truth, given).value == pytest.approx(1 - 6 / 14)
    assert regression.error_difference(truth, given, [1.0, 2.0, 3.0, 3.0]).value == pytest.approx(1.0 - 0.75)


@pytest.mark.parametrize("seed", range(3))
def test_values_are_those_of_scikit_learn(seed: int):
    truth, given = pair(seed=seed)
    assert regression.mae(truth, given).value == pytest.approx(library.mean_absolute_error(truth, given), abs=1e-12)
    assert regression.rmse(truth, given).value == pytest.approx(library.root_mean_squared_error(truth, given), abs=1e-12)
    assert regression.r2(truth, given).value == pytest.approx(library.r2_score(truth, given), abs=1e-12)


def test_a_constant_model_at_the_mean_gains_nothing_and_cannot_meet_a_limit_of_zero():
    truth, _ = pair()
    flat = np.full(truth.size, truth.mean())
    gain = regression.error_difference(truth, flat, flat)
    assert (gain.value, gain.p_value, gain.null) == (0.0, 1.0, 0.0)
    low, high = gain.interval() or (0.0, 0.0)
    assert low < 0 < high
    assert limit_p(gain.ladder, minimum=0.0) == 1.0


def test_the_other_way_round_turns_the_sign_and_rows_may_come_in_any_order():
    truth, first = pair()
    second = truth + np.random.default_rng(9).normal(0, 20, truth.size)
    there, back = regression.error_difference(truth, first, second), regression.error_difference(truth, second, first)
    assert there.value == pytest.approx(-back.value, abs=1e-12)
    assert there.interval() == pytest.approx(tuple(-v for v in reversed(back.interval())), abs=1e-9)
    order = np.random.default_rng(1).permutation(truth.size)
    assert regression.error_difference(truth[order], first[order], second[order]).value == pytest.approx(there.value, abs=1e-12)
    assert regression.mae(truth[order], first[order]).interval() == pytest.approx(regression.mae(truth, first).interval())


def test_rows_said_twice_with_their_cluster_change_nothing():
    truth, given = pair(120)
    ids = np.arange(120) // 3
    for measure in (regression.mae, regression.rmse, regression.mean_error):
        once = measure(truth, given, cluster=ids)
        twice = measure(np.r_[truth, truth], np.r_[given, given], cluster=np.r_[ids, ids])
        assert (twice.value, twice.clusters) == (pytest.approx(once.value), once.clusters)
        assert twice.interval() == pytest.approx(once.interval())


def test_another_unit_scales_values_and_intervals():
    truth, given = pair()
    one, other = regression.mae(truth, given), regression.mae(1000 * truth, 1000 * given)
    assert other.interval() == pytest.approx(tuple(1000 * v for v in one.interval()))
    assert regression.scaled(other, 1000.0).interval() == pytest.approx(one.interval())
    assert regression.r2(1000 * truth, 1000 * given).interval() == pytest.approx(regression.r2(truth, given).interval())


def test_what_is_undefined_has_a_reason():
    assert regression.mae([], []).reason == "no rows"
    assert regression.error_difference([], [], []).reason == "no rows"
    assert "equal" in str(regression.r2([2.0, 2.0, 2.0], [1.0, 2.0, 3.0]).reason)
    assert "too few" in str(regression.r2(*pair(12)).reason)
    assert "one cluster" in str(regression.mae(*pair(10), cluster=["a"] * 10).reason)
    assert "spread" in str(regression.scaled(regression.mae(*pair()), None).reason)
    with pytest.raises(DataError, match="predicted has 2 rows, truth has 3"):
        regression.mae([1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(DataError, match=r"finite"):
        regression.mae([1.0, np.nan], [1.0, 2.0])


def test_intervals_cover_the_truth():
    truth = np.sqrt(2 / np.pi)  # mean of |N(0, 1)|
    draw = np.random.default_rng(4)
    hits = {"mae": 0, "rmse": 0}
    for _ in range(600):
        e = draw.normal(size=80)
        for name, value in (("mae", truth), ("rmse", 1.0)):
            low, high = getattr(regression, name)(np.zeros(80), e).interval()
            hits[name] += low <= value <= high
    assert all(0.92 <= count / 600 <= 0.98 for count in hits.values()), hits


@pytest.mark.parametrize("clustered", [False, True])
def test_the_gap_of_equal_groups_holds_its_level(clustered: bool):
    """Welch's t of absolute errors, 60 rows of one group and 240 of the rest; clusters of 6 rows share much of their error."""
    draw = np.random.default_rng(11)
    found = runs = 0
    for _ in range(800):
        ids = np.arange(300) // 6
        common = draw.normal(size=50)[ids] if clustered else 0.0
        errors = np.abs(draw.normal(size=300) + common)
        groups = np.where(ids < 10, "a", "b")
        (gap, _) = fairness.mean_gaps(groups, errors, cluster=ids if clustered else None)
        found += gap.gap.p_value < 0.05
        runs += 1
    # the 99 % band of 0.05 at 800 runs; the jackknife of ten clusters is allowed to be a little liberal
    assert found / runs <= (0.085 if clustered else 0.072)


def test_rows_of_clusters_taken_alone_would_accuse_equal_groups():
    draw = np.random.default_rng(11)
    found = 0
    for _ in range(300):
        ids = np.arange(300) // 6
        errors = np.abs(0.5 * draw.normal(size=300) + 2 * draw.normal(size=50)[ids])
        found += fairness.mean_gaps(np.where(ids < 10, "a", "b"), errors)[0].gap.p_value < 0.05
    assert found / 300 > 0.2
