"""Effective rank and variability within classes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tl_audit.measures.collapse import class_variability, effective_rank, rank_change


def rank_by_hand(f: np.ndarray) -> float:
    s = np.linalg.svd(f - f.mean(axis=0), compute_uv=False)
    s = s[s > 1e-7 * s.max()]
    return float(np.exp(stats.entropy(s / s.sum())))


def test_orthonormal_centred_columns_have_full_rank_and_one_direction_has_rank_one() -> None:
    hadamard = np.array([[1, 1, 1], [-1, 1, -1], [1, -1, -1], [-1, -1, 1.0]])  # columns centred and orthogonal
    ramp = np.arange(5.0)[:, None] * np.array([1.0, 2.0, -3.0])

    assert effective_rank(hadamard) == pytest.approx(3)
    assert effective_rank(ramp + 7) == pytest.approx(1)
    # singular values 2 and 1: shares 2/3 and 1/3, exp(entropy) = 3 / 2^(2/3)
    assert effective_rank(np.array([[2.0, 0], [-2, 0], [0, 1], [0, -1]])) == pytest.approx(3 / 2 ** (2 / 3))


@pytest.mark.parametrize(("n", "d"), [(50, 8), (20, 60)])
def test_rank_is_the_entropy_of_singular_values(n: int, d: int) -> None:
    f = np.random.default_rng(n).normal(size=(n, d)) * np.arange(1, d + 1) + 5

    assert effective_rank(f) == pytest.approx(rank_by_hand(f), rel=1e-6)


def test_features_that_did_not_change_have_ratio_one_without_doubt() -> None:
    f = np.random.default_rng(0).normal(size=(300, 12))
    one = rank_change(f, f)

    assert one.ratio.value == 1.0
    assert one.ratio.interval() == pytest.approx((1.0, 1.0))
    assert one.ratio.null == 1.0
    assert not one.reduced
    assert one.before.value == pytest.approx(rank_by_hand(f), rel=1e-6)


def test_the_jackknife_leaves_out_blocks_exactly(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(120, 6)), rng.normal(size=(120, 6)) * np.arange(1, 7)
    cluster = np.arange(120) // 12
    one = rank_change(a, b, cluster=cluster)
    left = np.log([rank_by_hand(b[cluster != c]) / rank_by_hand(a[cluster != c]) for c in range(10)])
    error = np.sqrt(0.9 * ((left - left.mean()) ** 2).sum())
    half = error * stats.t.ppf(0.975, 9)

    assert one.ratio.clusters == 10
    assert np.log(one.ratio.interval()) == pytest.approx([np.log(one.ratio.value) - half, np.log(one.ratio.value) + half], abs=1e-9)


def test_a_collapse_is_seen_with_more_columns_than_rows() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=(200, 512))
    after = before[:, :3] @ rng.normal(size=(3, 512)) + 1e-3 * rng.normal(size=(200, 512))
    one = rank_change(before, after)

    assert one.reduced
    assert one.columns == 100
    assert one.ratio.interval()[1] < 0.5
    assert rank_change(before, 50 * before @ np.linalg.qr(rng.normal(size=(512, 512)))[0]).ratio.value == pytest.approx(1, abs=0.25)


def test_features_of_other_widths_are_compared_in_as_many_directions() -> None:
    rng = np.random.default_rng(0)
    one = rank_change(rng.normal(size=(400, 40)), rng.normal(size=(400, 10)))

    assert one.columns == 10
    assert one.ratio.value == pytest.approx(1, abs=0.02)


def test_constant_features_have_no_rank() -> None:
    x = np.full((30, 4), 0.1)

    assert effective_rank(x) is None
    assert rank_change(np.random.default_rng(0).normal(size=(30, 4)), x).ratio.reason == "constant features: no rank is defined"


def test_variability_of_a_hand_table() -> None:
    # class 0 at 0 and 2 (mean 1, variance 1), class 1 at 10 and 14 (mean 12, variance 4): 5 / (2 · 121)
    x = np.array([[0.0], [2.0], [10.0], [14.0]])

    assert class_variability(x, np.array([0, 0, 1, 1]), classes=2).value == pytest.approx(5 / 242)
    assert class_variability(3 * x + 1, np.array([1, 1, 0, 0]), classes=2).value == pytest.approx(5 / 242)


def test_variability_is_its_formula_over_all_pairs(rng: np.random.Generator) -> None:
    f, y = rng.normal(size=(90, 5)) + 3, rng.integers(0, 3, 90)
    f[:, 0] += y
    pairs = []
    for i in range(3):
        for j in range(i):
            a, b = f[y == i], f[y == j]
            v = [((s - s.mean(axis=0)) ** 2).sum(axis=1).mean() for s in (a, b)]
            pairs.append(sum(v) / (2 * ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()))
    estimate = class_variability(f, y, classes=3)

    assert estimate.value == pytest.approx(np.mean(pairs))
    assert estimate.interval()[0] < estimate.value < estimate.interval()[1]


@pytest.mark.slow
def test_the_interval_of_the_ratio_covers_and_does_not_accuse_equal_spread() -> None:
    covered = accused = 0
    truth = []
    runs = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        one = rank_change(rng.normal(size=(160, 10)), rng.normal(size=(160, 10)) * np.linspace(1, 3, 10)).ratio
        runs.append(one.interval())
        truth.append(np.log(one.value))
    middle = float(np.exp(np.mean(truth)))
    covered = sum(low <= middle <= high for low, high in runs)
    accused = sum(high < 0.5 for _, high in runs)

    assert 0.91 <= covered / 200 <= 0.99
    assert accused == 0


@pytest.mark.parametrize("n", range(7))
@pytest.mark.filterwarnings("error")
def test_tiny_and_constant_features_never_raise(n: int, rng: np.random.Generator) -> None:
    for x in (np.zeros((n, 3)), np.full((n, 3), 0.1), rng.normal(size=(n, 3)), rng.normal(size=(n, 20)), np.zeros((n, 0))):
        one = rank_change(x, x)
        rank = effective_rank(x)
        assert rank is None or np.isfinite(rank)
        for estimate in (one.before, one.after, one.ratio, class_variability(x, np.arange(n) % 2, classes=2)):
            assert estimate.value is not None or estimate.reason
            assert estimate.value is None or np.isfinite(estimate.value)
            assert estimate.ladder or estimate.reason


def test_variability_of_many_classes_needs_no_memory_for_blocks_times_classes_times_columns():
    import tracemalloc

    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2000, 256)), np.arange(2000) % 500
    tracemalloc.start()
    found = class_variability(x, y, classes=500)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.interval() is not None
    assert peak < 30e6  # 50 blocks of class sums would be 51 MB by themselves
