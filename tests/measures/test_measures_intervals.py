"""Intervals against tables by hand, dull replicas and SciPy."""

from __future__ import annotations

import doctest
import importlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from tl_audit.errors import DataError
from tl_audit.measures.estimate import LADDER_ALPHAS, interval_at
from tl_audit.measures.intervals import (
    auc,
    bonferroni,
    centred_bootstrap,
    clopper_pearson,
    cluster_bootstrap,
    cluster_wilson,
    error_ratio,
    katz_ratio,
    mean,
    mean_difference,
    newcombe,
    paired_rate_difference,
    rate,
    rate_difference,
    resampled_counts,
    resampled_sums,
    wilson,
)


@pytest.mark.parametrize("name", ["sampling", "multiplicity", "permutation", "intervals"])
def test_the_examples_in_the_docstrings_hold(name):
    result = doctest.testmod(importlib.import_module(f"tl_audit.measures.{name}"))

    assert result.attempted
    assert not result.failed


# ---------------------------------------------------------------- rates


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 30), (7, 10), (30, 30), (499, 1000)])
@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.001])
def test_wilson_and_clopper_pearson_are_those_of_scipy(k, n, alpha):
    for ours, method in ((wilson, "wilson"), (clopper_pearson, "exact")):
        expected = stats.binomtest(k, n).proportion_ci(1 - alpha, method=method)
        assert ours(k, n).interval(1 - alpha) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_nothing_of_thirty_still_allows_nine_and_a_half_percent():
    assert interval_at(clopper_pearson(0, 30).ladder, 0.1)[1] == pytest.approx(0.095, abs=5e-4)


@given(st.integers(1, 50), st.data())
def test_the_interval_of_a_rate_never_has_zero_width_and_holds_the_rate(n, data):
    k = data.draw(st.integers(0, n))
    for estimate in (wilson(k, n), clopper_pearson(k, n)):
        for _, low, high in estimate.ladder:
            assert 0 <= low <= k / n <= high <= 1
            assert high > low
        mirror = wilson(n - k, n) if estimate.details["method"] == "wilson" else clopper_pearson(n - k, n)
        assert mirror.interval() == pytest.approx((1 - estimate.interval()[1], 1 - estimate.interval()[0]), abs=1e-9)


def test_no_rows_have_no_rate_but_a_reason():
    for estimate in (wilson(0, 0), clopper_pearson(0, 0), rate([]), rate([], cluster=[]), katz_ratio(0, 0, 0, 0)):
        assert estimate.value is None
        assert estimate.reason
        assert estimate.ladder == ()


@pytest.mark.parametrize(("k", "n"), [(3, 2), (-1, 4)])
def test_more_hits_than_rows_are_refused(k, n):
    with pytest.raises(DataError, match="not a rate"):
        wilson(k, n)


def test_truth_values_must_be_truth_values():
    with pytest.raises(DataError, match="other than 0 and 1"):
        rate([0, 1, 2])
    with pytest.raises(DataError, match="one truth value per row"):
        rate([[True]])


def cluster_wilson_replica(values, cluster, alpha):
    """[I4] in loops, from CHECKS.md."""
    clusters = sorted(set(cluster))
    k = [sum(v for v, c in zip(values, cluster, strict=True) if c == g) for g in clusters]
    n = [sum(1 for c in cluster if c == g) for g in clusters]
    total, hits, groups = sum(n), sum(k), len(clusters)
    p = hits / total
    v = (groups - 1) / groups * sum(((kg - p * ng) / (1 - ng / total)) ** 2 for kg, ng in zip(k, n, strict=True)) / total**2
    v0 = p * (1 - p) / total
    deff = max(1.0, v / v0) if v0 > 0 else total / groups
    g_star = total**2 / sum(ng**2 for ng in n)
    m, t = total / deff, stats.t.isf(alpha / 2, g_star - 1)
    centre = (p + t**2 / (2 * m)) / (1 + t**2 / m)
    half = t * np.sqrt(p * (1 - p) / m + t**2 / (4 * m**2)) / (1 + t**2 / m)
    return centre - half, centre + half, deff, g_star


@pytest.mark.parametrize("seed", range(4))
def test_cluster_wilson_is_its_formula(seed):
    rng = np.random.default_rng(seed)
    cluster = rng.integers(0, 12, 80)
    values = rng.random(80) < np.where(cluster < 6, 0.9, 0.4)

    estimate = cluster_wilson(values, cluster)
    low, high, deff, g_star = cluster_wilson_replica(values.tolist(), cluster.tolist(), 0.05)

    assert estimate.interval() == pytest.approx((low, high), abs=1e-12)
    assert estimate.details["deff"] == pytest.approx(deff)
    assert estimate.details["g_star"] == pytest.approx(g_star)
    assert estimate.clusters == 12


def test_all_right_in_clusters_uses_the_mean_cluster_size():
    estimate = rate(np.ones(60), cluster=np.arange(60) // 6)

    assert estimate.details["deff"] == 6
    assert estimate.interval()[0] == pytest.approx(10 / (10 + stats.t.isf(0.025, 9) ** 2))


def test_doubling_rows_in_their_clusters_changes_nothing_but_doubling_independent_rows_narrows(rng):
    cluster = np.arange(80) // 4
    values = rng.random(80) < np.repeat(rng.beta(2, 1, 20), 4)

    once, twice = rate(values, cluster=cluster), rate(np.tile(values, 2), cluster=np.tile(cluster, 2))
    loose, tight = rate(values), rate(np.tile(values, 2))

    assert twice.interval() == pytest.approx(once.interval(), abs=1e-12)
    assert tight.value == loose.value
    assert np.ptp(tight.interval()) < np.ptp(loose.interval())


def test_few_clusters_are_marked_and_one_has_no_interval():
    assert rate([1, 0, 1, 1], cluster=[0, 0, 1, 1]).details["few_clusters"]
    one = rate([1, 0, 1], cluster=[5, 5, 5])
    assert one.value == pytest.approx(2 / 3)
    assert one.ladder == ()
    assert "one cluster" in one.reason


# ---------------------------------------------------------------- differences


def test_newcombe_is_the_published_example():
    # Newcombe (1998), example (a): 56/70 against 48/80, method 10 without continuity correction
    estimate = newcombe(wilson(56, 70), wilson(48, 80))

    assert estimate.value == pytest.approx(0.2)
    assert estimate.interval() == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_a_difference_with_its_sides_swapped_changes_its_sign(rng):
    a, b = rng.random(40) < 0.7, rng.random(60) < 0.5
    low, high = rate_difference(a, b).interval()

    swapped = rate_difference(b, a)

    assert swapped.interval() == pytest.approx((-high, -low))
    assert swapped.p_value == rate_difference(a, b).p_value


def test_a_difference_without_rows_on_one_side_says_which():
    assert "second rate is undefined" in rate_difference([True], []).reason


def test_clusters_inside_the_sides_use_their_own_intervals(rng):
    a, b = rng.random(40) < 0.7, rng.random(60) < 0.5
    ca, cb = np.arange(40) // 4, 100 + np.arange(60) // 4

    estimate = rate_difference(a, b, cluster_first=ca, cluster_second=cb)

    assert estimate.interval() == newcombe(rate(a, cluster=ca), rate(b, cluster=cb)).interval()
    assert estimate.clusters == 10


@pytest.mark.parametrize("clusters", [15, 60])
def test_clusters_on_both_sides_make_a_difference_narrower_where_they_are_alike(clusters):
    rng = np.random.default_rng(1)
    ids = np.repeat(np.arange(clusters), 10)
    values = rng.random(ids.size) < np.repeat(rng.beta(1, 1, clusters), 10)
    side = np.tile([True, False], ids.size // 2)

    shared = rate_difference(values[side], values[~side], cluster_first=ids[side], cluster_second=ids[~side])
    apart = rate_difference(values[side], values[~side], cluster_first=ids[side], cluster_second=ids[~side] + 1000)

    assert shared.details["clusters_crossing"] == clusters
    assert shared.clusters == clusters
    assert np.ptp(shared.interval()) < np.ptp(apart.interval())


def test_shared_clusters_where_all_are_right_keep_a_width():
    ids = np.arange(40) // 2
    estimate = rate_difference(np.ones(40), np.ones(40), cluster_first=ids, cluster_second=ids)

    assert estimate.value == 0
    assert estimate.interval()[0] < 0 < estimate.interval()[1]


def tango_replica(b, c, n, z):
    """Limits by bisection on Tango's score statistic, written from [I3]."""

    def score(delta):
        second = -b - c + (2 * n - b + c) * delta
        q = (np.sqrt(second**2 - 4 * (2 * n) * (-c * delta * (1 - delta))) - second) / (4 * n)
        return (b - c - n * delta) / np.sqrt(n * (2 * q + delta * (1 - delta)))

    from scipy.optimize import brentq

    estimate = (b - c) / n
    return (
        brentq(lambda d: score(d) - z, -1 + 1e-9, estimate - 1e-12),
        brentq(lambda d: score(d) + z, estimate + 1e-12, 1 - 1e-9),
    )


@pytest.mark.parametrize(("b", "c", "n"), [(5, 3, 40), (29, 36, 400), (0, 6, 100), (12, 1, 30)])
def test_tango_limits_solve_the_score_equation(b, c, n):
    first = np.r_[np.ones(b), np.zeros(c), np.ones(n - b - c)]
    second = np.r_[np.zeros(b), np.ones(c), np.ones(n - b - c)]

    estimate = paired_rate_difference(first, second)

    assert estimate.value == pytest.approx((b - c) / n)
    assert estimate.interval() == pytest.approx(tango_replica(b, c, n, stats.norm.isf(0.025)), abs=1e-7)


def test_tango_of_equal_models_has_its_closed_form():
    z2 = stats.norm.isf(0.025) ** 2
    estimate = paired_rate_difference(np.ones(50), np.ones(50))

    assert estimate.interval() == pytest.approx((-z2 / (50 + z2), z2 / (50 + z2)), abs=1e-9)
    assert estimate.p_value == 1.0


def test_tango_is_the_published_example():
    # Tango (1998), table 3: 43, 0, 1, 0 pairs of a crossover trial of contact lens solutions
    estimate = paired_rate_difference(np.r_[np.ones(43), [0]], np.ones(44))

    assert estimate.interval() == pytest.approx((-0.118, 0.058), abs=2e-3)


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 20))
def test_swapping_two_models_flips_the_paired_interval(b, c, agree):
    n = b + c + agree
    if n == 0:
        return
    first, second = np.r_[np.ones(b), np.zeros(c + agree)], np.r_[np.zeros(b), np.ones(c), np.zeros(agree)]

    one, other = paired_rate_difference(first, second), paired_rate_difference(second, first)

    assert other.interval() == pytest.approx((-one.interval()[1], -one.interval()[0]), abs=1e-9)
    assert one.interval()[0] <= one.value <= one.interval()[1]
    assert one.p_value == other.p_value


def test_paired_clusters_with_few_disagreements_are_widened_by_three_over_g():
    cluster = np.arange(80) // 4
    first = np.ones(80)
    second = first.copy()
    second[[0, 8]] = 0

    estimate = paired_rate_difference(first, second, cluster=cluster)
    errors = (first - second).reshape(20, 4).sum(axis=1) - 2 / 20
    spread = np.sqrt(19 / 20 * ((errors / (80 - 4)) ** 2).sum()) * stats.t.isf(0.025, 19)

    assert estimate.interval() == pytest.approx((2 / 80 - spread - 3 / 20, 2 / 80 + spread + 3 / 20))
    assert estimate.details["discordant_clusters"] == 2


def test_equal_models_in_clusters_differ_by_at_most_three_over_g():
    estimate = paired_rate_difference(np.ones(80), np.ones(80), cluster=np.arange(80) // 2)

    assert estimate.value == 0
    assert estimate.interval() == pytest.approx((-3 / 40, 3 / 40))
    assert estimate.p_value == 1.0


def test_two_models_must_see_the_same_samples():
    with pytest.raises(DataError, match="must be the same samples"):
        paired_rate_difference([True], [True, False])


# ---------------------------------------------------------------- ratios


def test_the_ratio_of_the_catalogue():
    estimate = katz_ratio(34, 76, 50, 92)

    assert estimate.value == pytest.approx(0.823, abs=5e-4)
    assert estimate.interval() == pytest.approx((0.60, 1.12), abs=6e-3)


@pytest.mark.parametrize(("a", "b"), [(0, 3), (3, 0)])
def test_a_ratio_without_events_is_undefined(a, b):
    assert katz_ratio(a, 10, b, 10).value is None


def test_the_ratio_of_errors_is_one_for_equal_models_and_undefined_without_errors(rng):
    right = rng.random(200) < 0.8

    assert error_ratio(right, right).value == 1
    assert error_ratio(np.ones(5), right[:5]).value is None
    halved = right | (rng.random(200) < 0.5)
    low, high = error_ratio(halved, right).interval()
    assert low < (~halved).sum() / (~right).sum() < high < 1


# ---------------------------------------------------------------- bootstrap


def test_resampled_clusters_are_whole_and_strata_kept():
    codes, strata = np.arange(60) // 3, np.repeat([0, 1], [24, 36])
    counts = resampled_counts(codes, 50, np.random.default_rng(0), strata=strata)

    assert (counts[:, :8].sum(axis=1) == 8).all()
    assert (counts[:, 8:].sum(axis=1) == 12).all()


def test_clusters_that_cross_strata_are_resampled_overall():
    counts = resampled_counts(np.arange(40) // 2, 200, np.random.default_rng(0), strata=np.tile([0, 1], 20))

    assert (counts.sum(axis=1) == 20).all()
    assert counts.max() > 3


def test_sums_by_multinomial_and_by_counting_have_one_distribution():
    values = np.repeat([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [50, 30, 20], axis=0)
    fast = resampled_sums(np.arange(100), values, 20000, np.random.default_rng(0))
    slow = resampled_counts(np.arange(100), 20000, np.random.default_rng(1)) @ values

    assert fast.mean(axis=0) == pytest.approx([70, 50], abs=0.2)
    assert np.cov(fast.T) == pytest.approx(np.cov(slow.T), abs=1.0)
    assert (fast[:, 0] <= 100).all()


def test_the_bootstrap_of_a_mean_agrees_with_its_standard_error(rng):
    values = rng.normal(size=200)
    estimate = cluster_bootstrap(lambda rows: float(values[rows].mean()), 200)

    low, high = estimate.interval()
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / np.sqrt(200), rel=0.08)
    assert estimate.value == pytest.approx(values.mean())


def test_the_bootstrap_takes_whole_clusters():
    cluster = np.arange(90) // 3
    seen = []
    cluster_bootstrap(lambda rows: seen.append(np.bincount(rows, minlength=90)) or 0.0, 90, cluster=cluster, resamples=5)

    for counts in seen:
        assert (counts.reshape(30, 3) == counts.reshape(30, 3)[:, :1]).all()


def test_the_bootstrap_depends_on_its_seed_alone(rng):
    values = rng.normal(size=50)

    def run(seed):
        return cluster_bootstrap(lambda rows: float(values[rows].mean()), 50, resamples=100, seed=seed).ladder

    assert run(1) == run(1) != run(2)


def test_tails_that_a_bootstrap_cannot_see_are_not_on_the_ladder():
    estimate = cluster_bootstrap(lambda rows: float(rows.mean()), 30, resamples=400)

    assert min(row[0] for row in estimate.ladder) == 0.01


def test_a_statistic_that_is_often_undefined_has_no_interval():
    estimate = cluster_bootstrap(lambda rows: float(rows.mean()) if 0 in rows else None, 20, resamples=100)

    assert estimate.ladder == ()
    assert "undefined in" in estimate.reason


def test_a_statistic_that_no_resample_changes_has_no_interval():
    estimate = cluster_bootstrap(lambda rows: 1.0, 20, resamples=50)

    assert estimate.value == 1
    assert estimate.ladder == ()
    assert "no resample differs" in estimate.reason


def test_a_centred_bootstrap_reflects_the_distance_from_the_plug_in_value():
    rng = np.random.default_rng(0)
    values = rng.normal(size=100)

    def debiased(rows):
        x = values[rows]
        return float(x.mean() ** 2 - x.var(ddof=1) / x.size)

    plug_in = float(values.mean() ** 2)
    estimate = centred_bootstrap(debiased, plug_in, 100, resamples=500, seed=3)
    samples = cluster_bootstrap(debiased, 100, resamples=500, seed=3)

    low, high = samples.interval()
    assert estimate.interval() == pytest.approx((estimate.value - (high - plug_in), estimate.value - (low - plug_in)))


# ---------------------------------------------------------------- means


def test_means_are_those_of_scipy(rng):
    a, b = rng.normal(size=30), rng.normal(size=50) + 0.3
    expected = stats.ttest_1samp(a, 0).confidence_interval()
    welch = stats.ttest_ind(a, b, equal_var=False)

    assert mean(a).interval() == pytest.approx((expected.low, expected.high))
    assert mean_difference(a, b).p_value == pytest.approx(welch.pvalue)
    assert mean_difference(a, b).interval() == pytest.approx((welch.confidence_interval().low, welch.confidence_interval().high))


def test_the_mean_of_equal_clusters_is_the_t_interval_of_cluster_means(rng):
    values = rng.normal(size=60)
    expected = stats.ttest_1samp(values.reshape(12, 5).mean(axis=1), 0).confidence_interval()

    assert mean(values, cluster=np.arange(60) // 5).interval() == pytest.approx((expected.low, expected.high))


def test_difference_of_means_with_clusters_inside_and_across(rng):
    values, ids = rng.normal(size=80), np.arange(80) // 4
    side = np.tile([True, False], 40)
    paired = (values[side] - values[~side]).reshape(20, 2).mean(axis=1)
    expected = stats.ttest_1samp(paired, 0).confidence_interval()

    across = mean_difference(values[side], values[~side], cluster_first=ids[side], cluster_second=ids[~side])
    inside = mean_difference(values[:40], values[40:], cluster_first=ids[:40], cluster_second=ids[40:])

    assert across.interval() == pytest.approx((expected.low, expected.high))
    assert inside.clusters == 10
    assert inside.details["degrees_of_freedom"] == 9


def test_equal_values_have_no_spread_to_learn_from_unless_their_range_is_known():
    assert mean([0.5] * 20).ladder == ()
    assert "all units agree" in mean([0.5] * 20).reason
    assert mean([0.0] * 60, bounds=(0.0, 1.0)).interval() == pytest.approx((0.0, 3 / 60))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_values_are_refused(bad):
    with pytest.raises(DataError, match="1 non-finite values"):
        mean([1.0, bad])


# ---------------------------------------------------------------- AUC


def delong_replica(labels, scores):
    """Area and variance with the structural components in loops."""
    x, y = scores[labels], scores[~labels]

    def psi(a, b):
        return 1.0 if a > b else 0.5 if a == b else 0.0

    v10 = [np.mean([psi(a, b) for b in y]) for a in x]
    v01 = [np.mean([psi(a, b) for a in x]) for b in y]
    return float(np.mean(v10)), float(np.var(v10, ddof=1) / len(x) + np.var(v01, ddof=1) / len(y))


def test_auc_and_delong_variance_are_those_of_the_double_loop(rng):
    labels = rng.random(70) < 0.4
    scores = np.round(rng.normal(size=70) + labels, 1)

    estimate = auc(labels, scores)
    value, variance = delong_replica(labels, scores)

    assert estimate.value == pytest.approx(value)
    assert estimate.value == pytest.approx(roc_auc_score(labels, scores))
    assert estimate.details["standard_error"] == pytest.approx(np.sqrt(variance))


def test_auc_of_single_row_clusters_is_delong_with_t(rng):
    labels = rng.random(50) < 0.5
    scores = rng.normal(size=50) + labels

    rows, clusters = auc(labels, scores), auc(labels, scores, cluster=np.arange(50))

    assert clusters.details["standard_error"] == pytest.approx(rows.details["standard_error"])
    assert np.ptp(clusters.interval()) > np.ptp(rows.interval())


def test_many_clusters_are_bootstrapped_to_about_the_same_interval(rng):
    labels = np.repeat(np.arange(120) < 60, 3)
    scores = rng.normal(size=360) + labels + np.repeat(rng.normal(size=120), 3)
    ids = np.arange(360) // 3

    boot = auc(labels, scores, cluster=ids)
    slow = cluster_bootstrap(lambda rows: roc_auc_score(labels[rows], scores[rows]), 360, cluster=ids, strata=labels, resamples=300)

    assert boot.details["method"] == "cluster_bootstrap"
    assert boot.interval() == pytest.approx(slow.interval(), abs=0.025)


def test_perfect_separation_keeps_a_width():
    estimate = auc(np.r_[np.ones(8), np.zeros(20)], np.r_[np.ones(8), np.zeros(20)])

    assert estimate.value == 1
    assert estimate.interval() == pytest.approx(wilson(8, 8).interval())


@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), max_size=12))
def test_auc_of_negated_scores_mirrors(rows):
    labels, scores = np.array([r[0] for r in rows], dtype=bool), np.array([float(r[1]) for r in rows])
    one, other = auc(labels, scores), auc(labels, -scores)

    if one.value is None:
        assert one.reason
        assert other.value is None
    else:
        assert other.value == pytest.approx(1 - one.value)
        if one.ladder:
            assert other.interval() == pytest.approx((1 - one.interval()[1], 1 - one.interval()[0]), abs=1e-9)


def test_equal_scores_have_an_area_of_one_half():
    assert auc([0, 1, 0, 1], [2.0, 2.0, 2.0, 2.0]).value == 0.5


# ---------------------------------------------------------------- choosing, and degenerate inputs


def test_the_bonferroni_interval_of_one_of_ten_is_at_a_tenth_of_the_level():
    estimate = bonferroni(wilson(30, 40), 10)

    assert estimate.interval() == pytest.approx(interval_at(wilson(30, 40).ladder, 0.005))
    assert max(row[0] for row in estimate.ladder) == 0.5
    assert LADDER_ALPHAS[-1] not in [row[0] for row in estimate.ladder]


@pytest.mark.parametrize("n", range(6))
@pytest.mark.parametrize("truth", [False, True])
@pytest.mark.parametrize("clusters", [None, "one", "own", "pairs"])
@pytest.mark.filterwarnings("error")
def test_tiny_inputs_never_raise_and_never_claim_certainty(n, truth, clusters):
    values = np.full(n, truth)
    cluster = {None: None, "one": np.zeros(n), "own": np.arange(n), "pairs": np.arange(n) // 2}[clusters]
    estimates = [
        rate(values, cluster=cluster),
        paired_rate_difference(values, values, cluster=cluster),
        paired_rate_difference(values, ~values, cluster=cluster),
        rate_difference(values, values, cluster_first=cluster, cluster_second=cluster),
        mean(values, cluster=cluster),
        mean(values, cluster=cluster, bounds=(0, 1)),
        mean_difference(values, values, cluster_first=cluster, cluster_second=cluster),
        auc(values, np.zeros(n), cluster=cluster),
        auc(np.arange(n) < 2, np.arange(n), cluster=cluster),
        error_ratio(values, values, cluster=cluster, resamples=50),
        cluster_bootstrap(lambda rows: float(values[rows].mean()), n, cluster=cluster, resamples=20),
    ]
    for estimate in estimates:
        if estimate.value is None or not estimate.ladder:
            assert estimate.reason
        if estimate.ladder:
            low, high = estimate.interval()
            assert high > low
