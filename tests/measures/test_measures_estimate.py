"""Ladders of intervals, and the p-value of a limit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from tl_audit.measures.estimate import LADDER_ALPHAS, Estimate, build_ladder, interval_at, limit_p


def normal_ladder(value=0.3, error=0.1, smallest_alpha=0.0):
    return build_ladder(lambda a: (value - norm.isf(a / 2) * error, value + norm.isf(a / 2) * error), smallest_alpha=smallest_alpha)


def test_the_ladder_holds_the_usual_level_and_grows_wider():
    ladder = normal_ladder()

    assert 0.05 in LADDER_ALPHAS
    assert [row[0] for row in ladder] == list(LADDER_ALPHAS)
    assert all(a[1] > b[1] and a[2] < b[2] for a, b in itertools.pairwise(ladder))


def test_levels_that_a_method_cannot_resolve_are_left_out():
    assert min(row[0] for row in normal_ladder(smallest_alpha=0.004)) == 0.005


def test_non_finite_bounds_are_left_out():
    assert build_ladder(lambda a: (0.0, np.inf if a < 0.01 else 1.0))[-1][0] == 0.01


@given(st.floats(1e-6, 0.5))
def test_interpolation_in_the_normal_quantile_is_exact_for_normal_intervals(alpha):
    low, high = interval_at(normal_ladder(), alpha)

    assert low == pytest.approx(0.3 - 0.1 * norm.isf(alpha / 2), abs=1e-9)
    assert high == pytest.approx(0.3 + 0.1 * norm.isf(alpha / 2), abs=1e-9)


def test_no_interval_outside_the_ladder_and_none_without_one():
    assert interval_at(normal_ladder(smallest_alpha=0.01), 0.001) is None
    assert interval_at((), 0.05) is None
    assert Estimate(1.0, 3).interval() is None


@pytest.mark.parametrize("limit", [-0.2, 0.05, 0.1, 0.2, 0.29])
def test_the_p_of_a_maximum_is_where_the_lower_bound_meets_it(limit):
    p = limit_p(normal_ladder(), maximum=limit)

    expected = max(2 * norm.sf((0.3 - limit) / 0.1), LADDER_ALPHAS[-1])
    assert p == pytest.approx(1.0 if expected > 0.5 else expected, rel=1e-6)


def test_the_p_of_a_minimum_mirrors_that_of_a_maximum():
    mirrored = tuple((a, -high, -low) for a, low, high in normal_ladder())

    assert limit_p(mirrored, minimum=-0.1) == pytest.approx(limit_p(normal_ladder(), maximum=0.1))


def test_the_p_of_an_absolute_limit_sees_both_sides():
    mirrored = tuple((a, -high, -low) for a, low, high in normal_ladder())

    assert limit_p(normal_ladder(), absolute=0.1) == pytest.approx(limit_p(normal_ladder(), maximum=0.1))
    assert limit_p(mirrored, absolute=0.1) == pytest.approx(limit_p(normal_ladder(), maximum=0.1))
    assert limit_p(normal_ladder(value=0.05), absolute=0.1) == 1.0


def test_without_a_ladder_there_is_no_p_and_without_a_limit_an_error():
    assert limit_p((), maximum=0.1) is None
    with pytest.raises(ValueError, match="needs one of"):
        limit_p(normal_ladder())


@given(st.floats(-1, 1), st.floats(0.01, 0.5), st.floats(0, 0.5))
def test_p_below_alpha_means_that_the_interval_at_alpha_leaves_the_limit(value, error, limit):
    ladder = normal_ladder(value, error)
    p = limit_p(ladder, maximum=limit)

    for alpha in (0.1, 0.05, 0.01):
        low, _ = interval_at(ladder, alpha)
        if abs(p - alpha) > 1e-6:
            assert (p < alpha) == (low > limit)
