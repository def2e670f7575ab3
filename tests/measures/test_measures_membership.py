"""Membership inference on arrays: chance without an effect, one with a memoriser, nothing where scores are tied, cuts of the other half."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from tl_audit.errors import DataError
from tl_audit.measures.membership import TIED, cross_fitted_loss, membership, roc


def test_a_memoriser_is_found_in_every_number() -> None:
    rng = np.random.default_rng(0)
    found = membership(rng.normal(50, 1, 2500), rng.normal(0, 1, 2500))
    assert found.auc.value == 1
    assert found.advantage.value == pytest.approx(1, abs=0.01)
    assert found.tpr.value == 1
    assert found.excess.value == pytest.approx(1, abs=0.02)
    assert found.fpr.value == pytest.approx(0.01, abs=0.01)


def test_the_area_is_that_of_scikit_learn_and_the_curve_too() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.4, 1, 300).round(1), rng.normal(0, 1, 200).round(1)
    truth = np.r_[np.ones(300), np.zeros(200)]
    assert membership(a, b).auc.value == pytest.approx(roc_auc_score(truth, np.r_[a, b]))
    fpr, tpr, _ = roc_curve(truth, np.r_[a, b], drop_intermediate=False)
    ours = roc(a, b)
    np.testing.assert_allclose(ours[0], fpr[1:])
    np.testing.assert_allclose(ours[1], tpr[1:])


def test_the_rate_at_one_percent_by_hand() -> None:
    # non-members 1..4000 in random order: the cut of half 1 lies near 3960, members above it are those at 5000
    rng = np.random.default_rng(2)
    members = np.r_[np.full(30, 5000.0), np.zeros(70)]
    found = membership(members, rng.permutation(4000).astype(float), seed=3)
    assert found.fpr.value == pytest.approx(0.01, abs=0.006)
    assert found.tpr.value == pytest.approx(0.30, abs=0.1)
    assert found.tpr.n == 50, "judged on one half only"
    assert found.excess.value == pytest.approx(found.tpr.value - found.fpr.value)  # type: ignore[operator]


def test_tied_scores_are_null_and_not_zero() -> None:
    all_equal = membership(np.zeros(100), np.zeros(100))
    assert [getattr(all_equal, f).value for f in ("auc", "advantage", "tpr", "fpr", "excess")] == [None] * 5
    assert all_equal.auc.reason == TIED
    rng = np.random.default_rng(0)
    saturated = np.minimum(rng.normal(0, 1, 3000), 0.5)
    some = membership(saturated, saturated.copy())
    assert (some.tpr.value, some.tpr.reason) == (None, TIED)
    assert some.auc.value == 0.5


@pytest.mark.parametrize(("n", "m"), [(0, 5), (5, 0), (0, 0), (1, 1), (2, 1)])
def test_hardly_any_rows_give_reasons_and_no_exception(n: int, m: int) -> None:
    found = membership(np.arange(n, dtype=float), np.arange(m, dtype=float) + 0.5)
    assert found.tpr.value is None
    assert found.tpr.reason
    for one in (found.auc, found.advantage):
        assert one.value is not None or one.reason


def test_few_non_members_give_no_rate_at_one_percent() -> None:
    rng = np.random.default_rng(0)
    found = membership(rng.normal(size=5000), rng.normal(size=1998))
    assert found.tpr.value is None
    assert "999 non-members" in str(found.tpr.reason)
    assert found.excess.value is None
    assert found.auc.value is not None


def test_cluster_ids_of_one_side_alone_are_refused() -> None:
    with pytest.raises(DataError, match="both sides"):
        membership(np.arange(4.0), np.arange(4.0), cluster_members=[1, 1, 2, 2])


def test_clusters_are_never_cut_and_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    units = np.repeat(np.arange(40), 10)
    a, b = (rng.normal(size=40)[units] + 0.1 * rng.normal(size=400) for _ in range(2))
    rows = membership(a, b).auc.interval()
    clusters = membership(a, b, cluster_members=units, cluster_others=units + 1000).auc.interval()
    assert rows is not None
    assert clusters is not None
    assert clusters[1] - clusters[0] > 2 * (rows[1] - rows[0])
    # duplicating every row inside its cluster changes no number and no width
    twice = membership(
        np.repeat(a, 2), np.repeat(b, 2), cluster_members=np.repeat(units, 2), cluster_others=np.repeat(units + 1000, 2)
    ).auc.interval()
    np.testing.assert_allclose(twice, clusters)


def null_rates(draws: int, n: int, m: int) -> dict[str, float]:
    """Share of draws without an effect in which the 95 % interval misses the value by chance."""
    missed = {"auc": 0, "advantage": 0, "excess": 0}
    for draw in range(draws):
        rng = np.random.default_rng(draw)
        found = membership(rng.exponential(size=n), rng.exponential(size=m), seed=draw)
        for name in missed:
            one = getattr(found, name)
            low, high = one.interval()
            missed[name] += not low <= one.null <= high
    return {name: count / draws for name, count in missed.items()}


def test_without_an_effect_intervals_cover_chance() -> None:
    for name, rate in null_rates(60, 2000, 2000).items():
        assert rate <= 0.15, name  # 60 draws: the 99.9 % point of 5 %


def test_a_probe_that_has_not_seen_the_rows_knows_hard_from_easy_and_not_members_from_others() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    hard = rng.random(400) < 0.5
    x = rng.normal(size=(400, 5)) + np.where(hard, 0, 4)[:, None] * (2 * y - 1)[:, None]
    loss = cross_fitted_loss(x, y, classes=2)
    assert loss is not None
    assert loss[hard].mean() > 5 * loss[~hard].mean()
    noise = cross_fitted_loss(rng.normal(size=(200, 300)), rng.integers(0, 2, 200), classes=2)
    assert noise is not None
    assert noise.mean() > np.log(2), "a probe that had seen its rows would fit 200 noise rows in 300 columns"


def test_a_probe_needs_two_folds_and_survives_single_classes() -> None:
    assert cross_fitted_loss(np.ones((4, 2)), [0, 1, 0, 1], classes=2, cluster=["a"] * 4) is None
    one = cross_fitted_loss(np.random.default_rng(0).normal(size=(20, 3)), np.zeros(20, dtype=int), classes=2)
    assert one is not None
    np.testing.assert_allclose(one, 0, atol=1e-9)
    constant = cross_fitted_loss(np.ones((20, 2)), np.arange(20) % 2, classes=2)
    assert constant is not None
    assert np.isfinite(constant).all()
