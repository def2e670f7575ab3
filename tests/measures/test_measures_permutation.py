"""Permutation tests, sign flips, McNemar, two proportions."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from tl_audit.errors import DataError
from tl_audit.measures import intervals
from tl_audit.measures.permutation import (
    domain_labellings,
    mcnemar_p,
    mean_difference_p,
    permutation_p,
    resamples_for,
    sign_flip_p,
    two_proportion_p,
)


def test_a_permutation_p_counts_the_observed_labelling_too():
    assert permutation_p(5.0, [1, 2, 3]) == 0.25
    assert permutation_p(2.0, [1, 2, 3]) == 0.75
    assert permutation_p(5.0, []) == 1.0
    assert permutation_p(3.0, [1, 2, 3, 3], exhaustive=True) == 0.5


def test_ties_up_to_rounding_count_as_ties():
    assert permutation_p(0.1 + 0.2, [0.3]) == 1.0


@pytest.mark.parametrize(("tests", "expected"), [(1, 999), (10, 999), (50, 1999), (100, 3999)])
def test_resamples_grow_with_the_family_so_that_holm_can_reject(tests, expected):
    resamples = resamples_for(tests)

    assert resamples == expected
    assert 1 / (resamples + 1) <= 0.05 / (2 * tests)


# ---------------------------------------------------------------- labellings


def test_three_clusters_against_three_have_twenty_labellings_and_no_test():
    labellings = domain_labellings(np.repeat([0, 1], 9), cluster=np.arange(18) // 3)

    assert labellings.assignments == 20
    assert "only 20 ways" in labellings.reason


def test_few_clusters_are_enumerated_and_the_truth_is_among_the_labellings():
    labellings = domain_labellings(np.repeat([0, 1], 10), cluster=np.arange(20) // 2)

    assert labellings.exhaustive
    assert labellings.assignments == labellings.labels.shape[0] == 252
    assert (labellings.labels == labellings.observed).all(axis=1).sum() == 1
    assert labellings.labels.sum(axis=1).tolist() == [5] * 252


def test_many_clusters_are_sampled_with_their_number_kept():
    labellings = domain_labellings(np.repeat([0, 1], [30, 20]), resamples=99, seed=3)

    assert not labellings.exhaustive
    assert labellings.labels.shape == (99, 50)
    assert set(labellings.labels.sum(axis=1).tolist()) == {20}
    assert (domain_labellings(np.repeat([0, 1], [30, 20]), resamples=99, seed=3).labels == labellings.labels).all()


def test_clusters_of_both_domains_swap_their_labels_inside():
    second = np.tile([0, 0, 1], 12)
    labellings = domain_labellings(second, cluster=np.arange(36) // 3, resamples=50)
    rows = labellings.labels[:, labellings.unit]

    assert labellings.paired
    assert labellings.assignments == 2**12
    # in every cluster the two rows of the first domain go together, against the row of the second
    assert (rows[:, 0::3] == rows[:, 1::3]).all()
    assert (rows[:, 0::3] != rows[:, 2::3]).all()


def test_clusters_that_only_some_share_are_left_out_and_counted():
    cluster = np.r_[np.arange(8), np.arange(6, 14)]
    labellings = domain_labellings(np.repeat([0, 1], 8), cluster=cluster)

    assert labellings.dropped_clusters == 2
    assert labellings.kept.sum() == 12
    assert labellings.clusters == (6, 6)


@pytest.mark.parametrize("second", [[], [0, 0], [1], [0, 1]])
def test_without_two_domains_there_is_no_test(second):
    labellings = domain_labellings(second)

    assert labellings.reason


def test_a_mean_difference_is_tested_exactly_where_labellings_can_be_enumerated():
    values = np.array([3.0, 4.0, 5.0, 6.0, 7.0, 1.0, 2.0, 0.0, 2.5, 1.5])
    second = np.repeat([0, 1], 5)
    gaps = [
        abs(values[list(chosen)].mean() - values[[i for i in range(10) if i not in chosen]].mean()) for chosen in combinations(range(10), 5)
    ]

    result = mean_difference_p(values, second)

    assert result.p_value == pytest.approx(np.mean(np.array(gaps) >= gaps[0] - 1e-12))
    assert result.null_quantile(0.5) == pytest.approx(np.median(gaps))


# ---------------------------------------------------------------- sign flips


def test_sign_flips_by_enumeration():
    d = np.array([1.0, 2.0, -0.5, 3.0, 0.7, 1.1, 0.4])
    sums = [abs(sum(s * v for s, v in zip(signs, d, strict=True))) for signs in product([1, -1], repeat=7)]

    assert sign_flip_p(d) == pytest.approx(np.mean(np.array(sums) >= abs(d.sum()) - 1e-12))


def test_sign_flips_work_on_sums_of_clusters():
    d = np.array([1.0, 2.0, -0.5, 3.0, 0.7, 1.1, 0.4])
    halves = np.repeat(d / 2, 2)

    assert sign_flip_p(halves, cluster=np.repeat(np.arange(7), 2)) == pytest.approx(sign_flip_p(d))


def test_zero_differences_change_nothing_but_the_count_of_clusters():
    d = np.array([1.0, 2.0, 3.0, 4.0])

    assert sign_flip_p(d) is None
    assert sign_flip_p(np.r_[d, 0, 0]) == pytest.approx(2 / 2**4)
    assert sign_flip_p(np.zeros(8)) == 1.0


@pytest.mark.parametrize("n", range(6))
def test_fewer_than_six_differences_have_no_sign_flip_test(n):
    assert sign_flip_p(np.ones(n)) is None


def test_many_equal_sizes_agree_with_the_binomial():
    d = np.r_[np.ones(60), -np.ones(40)]

    assert sign_flip_p(d, resamples=20000) == pytest.approx(stats.binomtest(60, 100).pvalue, abs=0.006)


def test_many_unequal_sizes_agree_with_the_normal(rng):
    d = rng.normal(size=300) + 0.1

    assert sign_flip_p(d, resamples=20000) == pytest.approx(2 * stats.norm.sf(abs(d.sum()) / np.sqrt((d**2).sum())), abs=0.01)


# ---------------------------------------------------------------- counts


@pytest.mark.parametrize(("b", "c"), [(0, 0), (5, 0), (3, 3), (10, 4), (0, 30)])
def test_mcnemar_is_the_two_sided_binomial_test(b, c):
    expected = 1.0 if b + c == 0 else stats.binomtest(b, b + c).pvalue

    assert mcnemar_p(b, c) == pytest.approx(expected)
    assert mcnemar_p(c, b) == pytest.approx(expected)


def test_small_tables_use_fisher_and_large_ones_the_score_test():
    assert two_proportion_p(1, 10, 5, 12) == pytest.approx(stats.fisher_exact([[1, 9], [5, 7]])[1])
    table = [[34, 42], [50, 42]]
    assert two_proportion_p(34, 76, 50, 92) == pytest.approx(stats.chi2_contingency(table, correction=False)[1])


def test_tables_without_information_have_no_p_or_one():
    assert two_proportion_p(0, 0, 3, 5) is None
    assert two_proportion_p(0, 4, 0, 5) == 1.0
    assert two_proportion_p(4, 4, 5, 5) == 1.0
    with pytest.raises(DataError, match="not two rates"):
        two_proportion_p(5, 4, 0, 1)


def test_tails_that_underflow_are_small_and_not_zero() -> None:
    assert 0 < mcnemar_p(0, 5000) < 1e-300
    assert 0 < two_proportion_p(0, 10_000, 9_999, 10_000) < 1e-300  # type: ignore[operator]
    apart = np.linspace(0.0, 1e-6, 700)
    assert 0 < intervals.mean_difference(apart, apart + 1.0).p_value < 1e-300  # type: ignore[operator]
