"""Concept shift (TLA504): a label with a new meaning is named, other shifts and domains too far apart accuse nobody."""

from __future__ import annotations

import numpy as np
import pytest

from tests.checks.arrays import ArrayEvidence, measure
from tl_audit.checks import concept_shift as module
from tl_audit.checks.concept_shift import concept_shift
from tl_audit.errors import NotEvaluated
from tl_audit.policy import judge, load_policy
from tl_audit.records.findings import Finding
from tl_audit.records.metrics import Measurement
from tl_audit.runner import corrected

POLICY = load_policy("default")
NAMES = ("a", "b", "c")


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(module.concept.concept_shift, "__kwdefaults__", {**module.concept.concept_shift.__kwdefaults__, "resamples": 59})


def world(
    seed: int, *, flipped: bool = False, moved: float = 0.0, n: int = 450, clustered: bool = False, base: bool = True
) -> ArrayEvidence:
    """Three classes along three features; in the target classes a and b may be swapped where the last feature is large."""
    rng = np.random.default_rng(seed)
    evidence = ArrayEvidence(NAMES)
    for role in ("source", "target"):
        cluster = np.arange(n) // 5 if clustered else None
        labels = rng.integers(0, 3, n)
        x = rng.normal(size=(n, 5)) + 2.0 * np.eye(5)[labels]
        if cluster is not None:
            x[:, 3:] += rng.normal(size=(n // 5, 2))[cluster]
        if role == "target":
            x[:, 3] += moved
            swap = flipped & (x[:, 4] > 0) & (labels < 2)
            labels = np.where(swap, 1 - labels, labels)
        evidence.domain(role, labels, cluster=None if cluster is None else [f"{role} {c}" for c in cluster])
        for key in ("base", "adapted") if base else ("adapted",):
            evidence.with_features(key, role, x)
    return evidence


def asked(evidence: ArrayEvidence, *models: str) -> Measurement:
    return measure(concept_shift, evidence, *(models or ("base", "adapted")))


def judged(measurement: Measurement) -> Finding:
    check = concept_shift
    return judge(check.code, check.title, check.section, check.severity, corrected(measurement, check), POLICY)


@pytest.mark.parametrize("clustered", [False, True])
def test_labels_that_mean_something_else_in_half_the_space_are_found(clustered):
    found = asked(world(1, flipped=True, clustered=clustered))
    finding = judged(found)
    assert finding.status == "warn"
    assert "TLA509" in finding.reason
    assert found.select("concept_gain").value > 0.02
    bars = next(exhibit for exhibit in found.exhibits if exhibit.id == "gain-by-class").bars
    assert {bars[0].label, bars[1].label} == {"a", "b"}


@pytest.mark.parametrize("kind", [{}, {"moved": 1.0}, {"clustered": True}])
def test_the_same_meaning_passes_whatever_else_moved(kind):
    assert judged(asked(world(2, **kind))).status == "pass"


def test_domains_without_overlap_are_inconclusive_and_say_why():
    found = asked(world(3, moved=8.0, flipped=True))
    finding = judged(found)
    assert finding.status == "inconclusive"
    assert "cannot separate concept from covariate shift" in finding.reason
    assert found.select("concept_gain").value is None
    assert found.select("overlap_share").value < 0.5
    assert not found.exhibits


def test_both_domains_give_equally_many_samples():
    evidence = world(4, n=300)
    evidence._labels["target"][60:] = -1
    found = asked(evidence)
    assert found.params["per_domain"] == 60
    assert sum(found.select("overlap_share").n.values()) == 120


def test_classes_are_paired_by_name_not_by_number():
    evidence = world(5)
    orders = {"source": ("a", "b", "c"), "target": ("c", "b", "a")}
    evidence._labels["target"] = 2 - evidence._labels["target"]
    evidence.classes = lambda domain: orders[domain]  # type: ignore[method-assign]
    assert judged(asked(evidence)).status == "pass"


def test_what_is_missing_is_named():
    with pytest.raises(NotEvaluated, match="50 labelled samples of the common classes in both"):
        asked(world(6, n=45))
    evidence = world(6, n=60)
    evidence.classes = lambda domain: NAMES if domain == "source" else ("c", "d", "e")  # type: ignore[method-assign]
    with pytest.raises(NotEvaluated, match="two classes that both source and target hold"):
        asked(evidence)


def test_without_a_base_the_adapted_model_reads_and_that_is_said():
    found = asked(world(7, n=200, base=False), "adapted")
    assert found.params["ruler"] == "adapted"
    assert found.caveats[0].startswith("No base model")


def test_constant_features_are_inconclusive_and_no_exception():
    evidence = world(8, n=100)
    for role in ("source", "target"):
        evidence.with_features("base", role, np.ones((100, 2)))
    finding = judged(asked(evidence))
    assert finding.status == "inconclusive"
    assert "all features are constant" in finding.reason
