"""Planning figures against Wilson intervals inverted by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tl_audit.errors import DataError
from tl_audit.measures.intervals import wilson
from tl_audit.measures.precision import decision_chance, rows_for_rate, units_needed


def brute(rate: float, limit: float, most: int) -> np.ndarray:
    """Chance for n = 1 .. most that the Wilson interval lies on the true side of the limit: every count tried."""
    z, out = stats.norm.ppf(0.975), []
    for n in range(1, most + 1):
        k = np.arange(n + 1)
        p = k / n
        centre, half = (p + z * z / (2 * n)) / (1 + z * z / n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        decided = centre - half > limit if rate > limit else centre + half < limit
        out.append(stats.binom.pmf(k, n, rate)[decided].sum())
    return np.array(out)


@pytest.mark.parametrize(("rate", "limit"), [(0.9, 0.8), (0.05, 0.15), (0.3, 0.2), (0.01, 0.05)])
def test_chances_and_sizes_are_those_of_brute_force(rate: float, limit: float) -> None:
    wanted = brute(rate, limit, 300)
    np.testing.assert_allclose(decision_chance(np.arange(1, 301), rate, limit), wanted, atol=1e-12)
    assert rows_for_rate(rate, limit) == np.flatnonzero(wanted < 0.8)[-1] + 2


@pytest.mark.parametrize(("rate", "limit"), [(0.7, 0.6), (0.5, 0.4), (0.12, 0.2)])
def test_the_formula_from_a_measured_interval_agrees_with_exact_planning(rate: float, limit: float) -> None:
    measured = wilson(round(200 * rate), 200)
    from_interval = units_needed(rate, limit, measured.interval(), 200)
    exact = rows_for_rate(rate, limit)
    assert from_interval is not None
    assert exact is not None
    assert from_interval == pytest.approx(exact, rel=0.15)


def test_a_value_at_its_limit_is_settled_by_no_number() -> None:
    assert units_needed(0.5, 0.5, (0.4, 0.6), 100) is None
    assert units_needed(0.5, 0.501, (0.4, 0.6), 100) is None
    assert units_needed(0.5, 0.3, (0.4, 0.6), 0) is None
    assert units_needed(0.8, 0.7, (0.72, 0.88), 100) == 131


def test_sizes_grow_as_the_truth_nears_the_limit_and_end_somewhere() -> None:
    sizes = [rows_for_rate(0.5, limit) for limit in (0.3, 0.4, 0.45, 0.49, 0.499)]
    assert sizes == sorted(sizes)
    assert rows_for_rate(0.5, 0.4999, most=1000) is None
    with pytest.raises(DataError, match="two different numbers"):
        rows_for_rate(0.5, 0.5)
