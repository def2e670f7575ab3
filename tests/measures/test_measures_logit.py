"""Intervals of areas on the logit scale, and of error ratios from few clusters."""

from __future__ import annotations

import numpy as np
import pytest

from tl_audit.measures.estimate import normal_quantile
from tl_audit.measures.intervals import around_on_logit, auc, error_ratio


def test_bounds_are_laid_off_on_the_logit_scale():
    low, high = around_on_logit(0.9, 0.1)
    assert np.log(low / (1 - low)) == pytest.approx(np.log(9) - 0.1 / 0.09)
    assert np.log(high / (1 - high)) == pytest.approx(np.log(9) + 0.1 / 0.09)
    assert around_on_logit(0.9, 1e12) == (0.0, 1.0)


def test_the_interval_of_an_area_is_that_of_its_logit(rng):
    labels = np.arange(60) < 30
    found = auc(labels, rng.normal(size=60) + 2.5 * labels)
    reach = normal_quantile(0.05) * found.details["standard_error"] / (found.value * (1 - found.value))
    logit = np.log(found.value / (1 - found.value))
    assert found.interval() == pytest.approx((1 / (1 + np.exp(reach - logit)), 1 / (1 + np.exp(-reach - logit))))
    assert 0 < found.interval()[0] < found.value < found.interval()[1] < 1


def test_an_error_ratio_of_few_clusters_has_the_interval_of_its_logarithm(rng):
    cluster = np.repeat(np.arange(12), 8)
    first, second = rng.random(96) < 0.7, rng.random(96) < 0.8
    found = error_ratio(first, second, cluster=cluster)
    low, high = found.interval()
    assert found.details["method"] == "cluster t"
    assert np.log(high / found.value) == pytest.approx(np.log(found.value / low))
    # the plain sum over clusters of what each does to the logarithm of the ratio
    errors = [((~first[cluster == c]).sum() / (~first).sum(), (~second[cluster == c]).sum() / (~second).sum()) for c in range(12)]
    variance = 12 / 11 * sum((a - b) ** 2 for a, b in errors)
    assert np.log(high / found.value) == pytest.approx(2.200985 * np.sqrt(variance), rel=1e-5)  # t of 11 degrees of freedom


def test_an_error_ratio_without_any_spread_over_clusters_has_no_interval():
    right = np.tile([True, False], 20)
    found = error_ratio(right, right, cluster=np.repeat(np.arange(10), 4))
    assert found.value == 1
    assert found.interval() is None
    assert "no cluster differs" in str(found.reason)
