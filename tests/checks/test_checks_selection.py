"""Clusters that only one of two domains has: its rows stay alike, those of the other stand alone."""

from __future__ import annotations

import numpy as np
import pytest

from tests.checks.arrays import ArrayEvidence, measure
from tl_audit.checks import performance, shift
from tl_audit.checks.conditional_shift import prediction_drift
from tl_audit.checks.selection import clusters_of_both, rows_alone, units_in
from tl_audit.measures import intervals
from tl_audit.measures.sampling import cluster_codes


def test_rows_of_a_side_without_ids_are_clusters_of_their_own():
    patients = np.array(["a", "a", "b"], dtype=object)
    own, other = clusters_of_both(None, patients, (2, 3))
    assert own is not None
    assert other is patients
    assert np.unique(cluster_codes(np.concatenate([own, other]), 5)).size == 4
    assert clusters_of_both(None, None, (2, 3)) == (None, None)


def test_rows_without_an_id_count_as_units():
    assert units_in(np.array(["a", None, "a", None], dtype=object)) == 3
    assert units_in(np.array([], dtype=object)) == 0


def patients_in_the_target(rng, source: int = 200, patients: int = 20, each: int = 10) -> ArrayEvidence:
    """Accuracy 0.8 in both domains; that of a target patient is drawn from Beta(4, 1)."""
    evidence = ArrayEvidence()
    unit = np.repeat(np.arange(patients), each)
    right = {"source": rng.random(source) < 0.8, "target": rng.random(unit.size) < rng.beta(4, 1, patients)[unit]}
    for role, correct in right.items():
        labels = rng.integers(0, 2, correct.size)
        evidence.domain(role, labels, cluster=[f"patient {k}" for k in unit] if role == "target" else None)
        evidence.outputs("adapted", role, np.where(correct, labels, 1 - labels))
    return evidence


def test_a_drop_over_patients_of_the_target_alone_misses_no_more_often_than_promised(rng):
    missed, alone = 0, 0
    for seed in range(100):
        evidence = patients_in_the_target(rng)
        drop = measure(shift.harmful_shift, evidence, "adapted", seed=seed).metrics[0]
        assert drop.name == "accuracy_drop"
        assert drop.interval is not None
        missed += not drop.interval[0] <= 0.0 <= drop.interval[1]
        plain = intervals.rate_difference(evidence.correct("adapted", "source"), evidence.correct("adapted", "target")).interval()
        assert plain is not None
        alone += not plain[0] <= 0.0 <= plain[1]
    # 99 % band of 0.05 in 100: at most 12; measured 0.049 in 1,000, against 0.127 with rows as units
    assert missed <= 12
    assert alone > missed


@pytest.mark.parametrize("with_ids", ["source", "target", "both", "neither"])
def test_the_caveat_names_the_domain_without_ids(rng, with_ids):
    evidence = ArrayEvidence()
    for role in ("source", "target"):
        ids = [f"{role} {k // 4}" for k in range(80)] if with_ids in (role, "both") else None
        evidence.domain(role, rng.integers(0, 2, 80), cluster=ids).outputs("adapted", role, rng.integers(0, 2, 80))
    caveat = rows_alone(evidence, ("source", "target"))  # type: ignore[arg-type]
    notes = measure(prediction_drift, evidence, "adapted").caveats
    if with_ids == "both":
        assert caveat is None
        assert not any("treated as independent" in note for note in notes)
        return
    assert caveat in notes
    other = {"source": "target", "target": "source"}.get(with_ids)
    assert caveat is not None
    assert other is None or f"Rows of the {other} are" in caveat


def test_the_train_test_gap_counts_patients_though_the_training_rows_have_no_ids(rng):
    evidence = patients_in_the_target(rng)
    for name in ("_labels", "_groups"):
        held = getattr(evidence, name)
        held["train"] = held["source"]
    evidence._probabilities["adapted", "train"] = evidence._probabilities["adapted", "source"]
    gap = next(m for m in measure(performance.train_test_gap, evidence, "adapted").metrics if m.name == "generalisation_gap")
    assert gap.clusters == {"target": 20}
