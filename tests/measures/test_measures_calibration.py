"""Calibration error, its debiasing and nulls, proper scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from tl_audit.errors import DataError
from tl_audit.measures.calibration import (
    brier,
    brier_skill,
    classwise_ece_l1,
    ece2_debiased,
    ece_debiased,
    ece_l1,
    equal_mass_bins,
    murphy_parts,
    nll,
    nll_skill,
    overconfidence,
    reliability_bins,
    skill,
    temperature,
    top_label,
)
from tl_audit.measures.intervals import cluster_bootstrap


def calibrated(rng, n, shift=0.0):
    confidence = rng.uniform(0.5, 1.0, n)
    return confidence, rng.random(n) < confidence - shift


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


# ---------------------------------------------------------------- bins


@given(st.lists(st.sampled_from([0.1, 0.2, 0.25, 0.7, 0.9, 1.0]), max_size=60), st.integers(1, 8))
def test_ties_are_never_split_and_no_bin_holds_a_single_row(confidence, bins):
    c = np.array(confidence)
    code = equal_mass_bins(c, bins)

    for value in np.unique(c):
        assert np.unique(code[c == value]).size == 1
    if c.size:
        counts = np.bincount(code)
        assert counts.size <= bins
        assert (counts >= 2).all() or counts.size == 1
        order = np.argsort(c)
        assert (np.diff(code[order]) >= 0).all()


def test_bins_of_distinct_values_are_of_equal_mass(rng):
    assert set(np.bincount(equal_mass_bins(rng.random(150), 15)).tolist()) == {10}


def test_with_clusters_each_bin_holds_two_of_them(rng):
    c = np.repeat(np.linspace(0.5, 0.9, 12), 5)
    code = equal_mass_bins(c, 15, cluster=np.repeat(np.arange(12), 5))

    assert (np.bincount(np.unique(np.stack([code, np.repeat(np.arange(12), 5)]), axis=1)[0]) >= 2).all()


# ---------------------------------------------------------------- calibration error


def ece2_replica(c, y, bins):
    """Σ_b (n_b/n)[d̄_b² - s²_b/n_b] in loops, from TLA305."""
    code = equal_mass_bins(c, bins)
    total = 0.0
    for b in set(code.tolist()):
        d = [ci - yi for ci, yi, k in zip(c, y, code, strict=True) if k == b]
        mean = sum(d) / len(d)
        s2 = sum((x - mean) ** 2 for x in d) / (len(d) - 1)
        total += len(d) / len(c) * (mean**2 - s2 / len(d))
    return total


def test_the_debiased_error_is_its_formula(rng):
    c, y = calibrated(rng, 200)

    assert ece2_debiased(c, y, resamples=20).value == pytest.approx(ece2_replica(c.tolist(), y.tolist(), 15), abs=1e-14)


def test_clusters_of_single_rows_give_the_error_of_independent_rows(rng):
    c, y = calibrated(rng, 200)
    rows = ece2_debiased(c, y, resamples=20)
    clusters = ece2_debiased(c, y, cluster=np.arange(200), resamples=20)

    assert clusters.value == pytest.approx(rows.value, abs=1e-12)


def test_doubling_rows_in_their_clusters_keeps_the_error_while_doubling_rows_alone_does_not(rng):
    c, y = calibrated(rng, 200)
    cluster = np.arange(200)
    once = ece2_debiased(c, y, cluster=cluster, resamples=20)
    twice = ece2_debiased(np.repeat(c, 2), np.repeat(y, 2), cluster=np.repeat(cluster, 2), resamples=20)
    naive = ece2_debiased(np.repeat(c, 2), np.repeat(y, 2), resamples=20)

    assert twice.value == pytest.approx(once.value, abs=1e-12)
    assert naive.value > once.value + 0.001


def test_the_debiased_error_is_unbiased_where_the_plug_in_is_not():
    values, plug_ins = [], []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        estimate = ece2_debiased(*calibrated(rng, 300), resamples=5)
        values.append(estimate.value)
        plug_ins.append(estimate.details["plug_in"])

    assert abs(np.mean(values)) < 5e-4
    assert np.mean(plug_ins) > 0.006


@pytest.mark.parametrize("seed", range(3))
def test_a_confidence_that_is_too_high_by_a_tenth_has_an_error_of_a_tenth(seed):
    rng = np.random.default_rng(seed)
    estimate = ece_debiased(ece2_debiased(*calibrated(rng, 20000, shift=0.1), resamples=200))

    assert estimate.value == pytest.approx(0.1, abs=0.012)
    assert estimate.interval()[0] < 0.1 < estimate.interval()[1]


def test_bounds_keep_their_sign_under_the_root(rng):
    squared = ece2_debiased(*calibrated(rng, 500))
    root = ece_debiased(squared)

    assert np.sign(root.interval()[0]) * root.interval()[0] ** 2 == pytest.approx(squared.interval()[0])
    assert squared.interval()[0] < 0 < squared.interval()[1]


def test_the_interval_is_centred_on_the_plug_in_value(rng):
    c, y = calibrated(rng, 300)
    code = equal_mass_bins(c)

    def debiased(rows):
        total = 0.0
        for b in range(15):
            d = (c - y)[rows][code[rows] == b]
            if d.size >= 2:
                total += d.size / rows.size * (d.mean() ** 2 - d.var(ddof=1) / d.size)
        return total

    fast = ece2_debiased(c, y)
    slow = cluster_bootstrap(debiased, 300, resamples=500)
    plug_in = fast.details["plug_in"]

    low, high = slow.interval()
    assert fast.interval() == pytest.approx((fast.value - (high - plug_in), fast.value - (low - plug_in)), abs=1.5e-3)


def test_the_null_band_of_the_l1_error_holds_95_percent_of_calibrated_models():
    inside = 0
    for seed in range(300):
        rng = np.random.default_rng([5, seed])
        estimate = ece_l1(*calibrated(rng, 200), simulations=200, seed=seed)
        inside += estimate.details["null_low"] <= estimate.value <= estimate.details["null_high"]

    assert 0.90 <= inside / 300 <= 0.985


def test_the_l1_error_by_hand():
    estimate = ece_l1([0.6, 0.6, 0.9, 0.9], [1, 0, 1, 1], bins=2)

    assert estimate.value == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)
    assert estimate.ladder == ()
    assert estimate.null > 0


def test_the_null_of_the_l1_error_falls_with_n(rng):
    nulls = [ece_l1(*calibrated(rng, n)).null for n in (100, 500, 10000)]

    assert 0.08 < nulls[0] < 0.14
    assert 0.035 < nulls[1] < 0.06
    assert nulls[2] < 0.013


def test_classwise_errors_of_calibrated_probabilities_lie_in_their_band(rng):
    p = rng.dirichlet(np.ones(4), 800)
    y = (rng.random((800, 1)) > np.cumsum(p, axis=1)).sum(axis=1)
    estimate = classwise_ece_l1(p, y)
    skewed = classwise_ece_l1(p, (y + (rng.random(800) < 0.3)) % 4)

    assert estimate.details["null_low"] * 0.9 < estimate.value < estimate.details["null_high"] * 1.1
    assert skewed.value > skewed.details["null_high"]


def test_overconfidence_is_the_mean_gap_with_a_sign_flip_test(rng):
    c, y = calibrated(rng, 400, shift=0.1)
    estimate = overconfidence(c, y)

    assert estimate.value == pytest.approx(c.mean() - y.mean())
    assert estimate.p_value < 0.01
    assert estimate.interval()[0] > 0
    assert overconfidence(c, y, cluster=np.arange(400) // 4).clusters == 100


def test_bins_of_the_reliability_diagram_add_up(rng):
    c, y = calibrated(rng, 400)
    bins = reliability_bins(c, y)

    assert sum(b.n for b in bins) == 400
    assert sum(b.n * abs(b.confidence - b.accuracy) for b in bins) / 400 == pytest.approx(ece_l1(c, y).value)
    assert all(b.low <= b.confidence <= b.high and b.null_low <= b.null_high for b in bins)
    assert sum(b.null_low <= b.accuracy <= b.null_high for b in bins) >= 12


def test_the_temperature_that_was_planted_is_found(rng):
    z = rng.normal(size=(4000, 5)) * 2
    y = (rng.random((4000, 1)) > np.cumsum(softmax(z), axis=1)).sum(axis=1)

    assert temperature(3 * z, y).value == pytest.approx(3 * temperature(z, y).value, rel=1e-4)
    assert temperature(z, y).value == pytest.approx(1, abs=0.08)


def test_a_temperature_at_the_end_of_its_range_says_so():
    assert temperature(np.eye(3), [0, 1, 2]).details["at_bound"]
    assert temperature(np.ones((4, 2)), [0, 1, 0, 1]).value is None


# ---------------------------------------------------------------- proper scores


def test_scores_are_those_of_scikit_learn(rng):
    p = rng.dirichlet(np.ones(3), 100)
    y = rng.integers(0, 3, 100)
    total = sum((p[i, k] - (y[i] == k)) ** 2 for i in range(100) for k in range(3))

    assert brier(p, y).value == pytest.approx(total / 100, abs=1e-12)
    assert nll(p, y).value == pytest.approx(metrics.log_loss(y, p), abs=1e-12)
    binary = p[:, :2] / p[:, :2].sum(axis=1, keepdims=True)
    assert brier(binary, y % 2).value == pytest.approx(2 * metrics.brier_score_loss(y % 2, binary[:, 1]), abs=1e-12)


def test_impossible_outcomes_are_floored_and_counted():
    estimate = nll([[1.0, 0.0], [0.5, 0.5]], [1, 0])

    assert estimate.details["floored"] == 1
    assert estimate.value == pytest.approx((-np.log(1e-12) + np.log(2)) / 2)


def test_the_prior_has_no_skill_and_no_interval_that_could_pass(rng):
    y = rng.integers(0, 3, 300)
    prior = np.array([0.5, 0.3, 0.2])

    for score in (brier_skill, nll_skill):
        estimate = score(np.tile(prior, (300, 1)), y, prior=prior)
        assert estimate.value == 0
        assert estimate.p_value == 1
        assert estimate.ladder == ()


@pytest.mark.parametrize("clusters", [None, 20, 100])
def test_skill_is_one_minus_the_ratio_of_the_means(rng, clusters):
    a, b = rng.gamma(2.0, size=400), rng.gamma(2.0, size=400) + 0.5
    cluster = None if clusters is None else np.arange(400) % clusters
    estimate = skill(a, b, cluster=cluster)
    slow = cluster_bootstrap(lambda rows: float(1 - a[rows].mean() / b[rows].mean()), 400, cluster=cluster, resamples=600)

    assert estimate.value == pytest.approx(1 - a.mean() / b.mean())
    assert estimate.interval() == pytest.approx(slow.interval(), abs=0.035)


def test_a_reference_without_error_leaves_no_skill_to_measure():
    assert "makes no error" in skill([0.1, 0.2], [0.0, 0.0]).reason


def test_murphys_parts_add_up_and_are_exact_for_few_forecasts(rng):
    p = np.array([[0.2, 0.8], [0.7, 0.3]])[rng.integers(0, 2, 300)]
    y = (rng.random(300) > p[:, 0]).astype(int)
    parts = murphy_parts(p, y)

    assert parts.within_bins == pytest.approx(0, abs=1e-12)
    assert parts.reliability - parts.resolution + parts.uncertainty == pytest.approx(brier(p, y).value)
    share = y.mean()
    assert parts.uncertainty == pytest.approx(2 * share * (1 - share))


# ---------------------------------------------------------------- refusals and tiny inputs


def test_scores_that_are_not_probabilities_are_refused():
    with pytest.raises(DataError, match="sum to 1"):
        brier([[2.0, 3.0]], [0])
    with pytest.raises(DataError, match="non-finite"):
        nll([[np.nan, 1.0]], [0])
    with pytest.raises(DataError, match="between 0 and 1"):
        ece_l1([1.5], [1])
    with pytest.raises(DataError, match="prior has 2 classes"):
        nll_skill([[0.2, 0.3, 0.5]], [0], prior=[0.5, 0.5])


@pytest.mark.parametrize("n", range(6))
@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("cluster", [None, "one", "pairs"])
@pytest.mark.filterwarnings("error")
def test_tiny_inputs_never_raise(n, classes, cluster):
    rng = np.random.default_rng(n)
    ids = {None: None, "one": np.zeros(n), "pairs": np.arange(n) // 2}[cluster]
    for p in (np.eye(classes)[np.zeros(n, dtype=int)], rng.dirichlet(np.ones(classes), n)):
        for y in (np.zeros(n, dtype=int), rng.integers(0, classes, n)):
            confidence, correct = top_label(p, y)
            squared = ece2_debiased(confidence, correct, cluster=ids, resamples=20)
            prior = np.full(classes, 1 / classes)
            estimates = [
                squared,
                ece_debiased(squared),
                ece_l1(confidence, correct, simulations=20),
                overconfidence(confidence, correct, cluster=ids),
                classwise_ece_l1(p, y, simulations=5),
                temperature(p, y),
                brier(p, y, cluster=ids),
                nll(p, y, cluster=ids),
                brier_skill(p, y, prior=prior, cluster=ids),
                nll_skill(p, y, prior=prior, cluster=ids),
            ]
            reliability_bins(confidence, correct, simulations=10)
            assert (murphy_parts(p, y) is None) == (n == 0)
            for estimate in estimates:
                assert estimate.value is not None or estimate.reason
                assert all(high > low for _, low, high in estimate.ladder)
