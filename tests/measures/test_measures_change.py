"""Changes of ranking metrics where one label is rare: the rarer label's rows say how much is known."""

from __future__ import annotations

import numpy as np
import pytest

from tl_audit.measures.change import LEAST_PER_SIDE, metric_changes


def two_models(rng, positives: int, rows: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, and probabilities of two models that are equally good and share half of their errors."""
    labels = (np.arange(rows) < positives).astype(np.int64)
    shared = rng.normal(size=rows)
    scores = [1.2 * labels + 0.7 * shared + 0.7 * rng.normal(size=rows) for _ in range(2)]
    first, second = (np.stack([1 - p, p], axis=1) for p in (1 / (1 + np.exp(-s)) for s in scores))
    return labels, first, second


def test_few_positive_rows_have_a_change_and_no_interval(rng):
    for positives in (LEAST_PER_SIDE - 1, 200 - LEAST_PER_SIDE + 1):
        found = metric_changes(*two_models(rng, positives), positive=1)
        for name in ("auroc", "average_precision"):
            assert found[name].value is not None
            assert found[name].interval() is None
            assert f"rarer label: fewer than {LEAST_PER_SIDE}" in found[name].reason
        assert found["balanced_accuracy"].interval() is not None


def test_ten_positive_rows_of_one_cluster_are_one_unit(rng):
    labels, first, second = two_models(rng, 10)
    cluster = np.where(labels == 1, 999, np.arange(200))
    assert "1 clusters with the rarer label" in metric_changes(labels, first, second, cluster=cluster, positive=1)["auroc"].reason


@pytest.mark.parametrize("positives", [10, 20])
def test_changes_of_equally_good_models_are_missed_no_more_often_than_promised(rng, positives):
    missed = {"auroc": 0, "average_precision": 0}
    for _ in range(400):
        found = metric_changes(*two_models(rng, positives), positive=1)
        for name in missed:
            low, high = found[name].interval()
            missed[name] += not low <= 0 <= high
    # upper end of the 99 % band of 0.05 in 400
    assert all(count <= 32 for count in missed.values()), missed
