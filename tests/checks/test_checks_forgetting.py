"""Forgetting (TLA402) and churn (TLA407): silent where nothing was lost, loud and named where something was."""

from __future__ import annotations

import numpy as np
import pytest

from tests.checks.arrays import ArrayEvidence, Parts, measure
from tl_audit.checks.base import Check, Context
from tl_audit.checks.forgetting import churn, forgetting
from tl_audit.errors import NotEvaluated
from tl_audit.policy import Rules, judge, load_policy
from tl_audit.records.adaptation import AdaptationRecord, TensorChange
from tl_audit.records.findings import Finding
from tl_audit.records.metrics import Measurement

POLICY = load_policy("default")
NAMES = ("a", "b", "c", "d")


def judged(check: Check, measurement: Measurement) -> Finding:
    return judge(check.code, check.title, check.section, check.severity, measurement, POLICY)


def after_a_new_head(evidence: ArrayEvidence, seed: int = 0) -> Measurement:
    """TLA402 where the record says that the adapted model has a new head."""
    change = TensorChange(name="head.weight", change="reshaped", before=(4, 8), after=(4, 8))
    subject = Parts("adapted", "base", record=AdaptationRecord(head="head", architecture_changes=(change,)))
    return forgetting(subject, evidence, Context(rules=Rules(), seed=seed, declared={}))  # type: ignore[arg-type]


def features_of(rng: np.random.Generator, labels: np.ndarray, strength: float = 2.0, columns: int = 8) -> np.ndarray:
    return rng.normal(size=(labels.size, columns)) + strength * np.eye(columns)[labels]


def source(labels: np.ndarray, base: np.ndarray, adapted: np.ndarray, cluster: np.ndarray | None = None) -> ArrayEvidence:
    evidence = ArrayEvidence(NAMES).domain("source", labels, cluster=cluster)
    for key, values in (("base", base), ("adapted", adapted)):
        evidence.with_features(key, "source", values).outputs(key, "source", labels)
    return evidence


# -- TLA402 -------------------------------------------------------------------------------------------------------------


def test_identical_weights_have_forgotten_nothing_exactly(rng):
    labels = rng.integers(0, 4, 800)
    x = features_of(rng, labels)
    found = after_a_new_head(source(labels, x, x.copy()))
    assert found.params["by"] == "probe"
    assert found.select("backward_transfer").value == 0.0
    assert found.select("backward_transfer").p_value == 1.0
    assert all(m.value == 0.0 for m in found.metrics if m.name == "backward_transfer_class")
    assert found.select("classes_forgotten").value == 0
    assert judged(forgetting, found).status == "pass"
    assert any("own answers the adapted model is right on 100.0 %" in caveat for caveat in found.caveats)


def test_a_backbone_that_became_random_has_forgotten_all(rng):
    labels = rng.integers(0, 4, 800)
    found = after_a_new_head(source(labels, features_of(rng, labels), rng.normal(size=(800, 8))))
    assert found.select("backward_transfer").value < -0.4
    assert found.select("classes_forgotten").value == 4
    assert judged(forgetting, found).status == "fail"


def test_one_class_that_can_no_longer_be_told_is_named_and_the_others_are_not(rng):
    labels = rng.integers(0, 4, 1200)
    after = features_of(rng, labels)
    after[labels == 3] = rng.normal(size=((labels == 3).sum(), 8)) + 2.0 * np.eye(8)[rng.integers(0, 3, (labels == 3).sum())]
    found = after_a_new_head(source(labels, features_of(rng, labels), after))
    finding = judged(forgetting, found)
    assert finding.status in {"warn", "fail"}
    assert found.summary.endswith("forgotten: d.")
    broken = {
        dict(limit.slice).get("class")
        for limit in finding.limits
        if limit.outcome == "broken" and limit.metric == "backward_transfer_class"
    }
    assert broken == {"d"}


def test_models_that_kept_their_head_answer_for_themselves(rng):
    labels = rng.integers(0, 4, 400)
    adapted = np.where((labels == 3) & (rng.random(400) < 0.8), 0, labels)
    evidence = ArrayEvidence(NAMES).domain("source", labels).outputs("base", "source", labels).outputs("adapted", "source", adapted)
    found = measure(forgetting, evidence, "adapted", "base")
    lost = int((adapted != labels).sum())
    assert found.params["by"] == "outputs"
    assert found.select("backward_transfer").value == pytest.approx(-lost / 400)
    assert found.select("backward_transfer_class", **{"class": "d"}).value == pytest.approx(-lost / (labels == 3).sum())
    assert found.select("classes_forgotten").value == 1
    figure = found.exhibits[0]
    assert [change.label for change in figure.changes][:2] == ["all classes", "d"]


def test_an_adapted_model_without_the_sources_classes_is_probed(rng):
    labels = rng.integers(0, 4, 400)
    x = features_of(rng, labels)
    evidence = source(labels, x, x)

    def other_classes(model: str, domain: str) -> tuple[str, ...]:
        if model == "adapted":
            raise NotEvaluated("no common label space")
        return NAMES

    evidence.common_classes = other_classes  # type: ignore[method-assign]
    found = measure(forgetting, evidence, "adapted", "base")
    assert found.params["by"] == "probe"
    assert "recoverable" in found.caveats[0]
    assert not any("own answers" in caveat for caveat in found.caveats)


def test_names_of_classes_and_order_of_rows_change_nothing_but_names(rng):
    labels = rng.integers(0, 4, 400)
    adapted = np.where(rng.random(400) < 0.3, (labels + 1) % 4, labels)
    first = measure(
        forgetting, source(labels, np.zeros((400, 1)), np.zeros((400, 1))).outputs("adapted", "source", adapted), "adapted", "base"
    )
    order = rng.permutation(400)
    turned = source(labels[order], np.zeros((400, 1)), np.zeros((400, 1))).outputs("adapted", "source", adapted[order])
    second = measure(forgetting, turned, "adapted", "base")
    assert [(m.name, m.value, m.interval) for m in first.metrics] == [(m.name, m.value, m.interval) for m in second.metrics]


def test_small_classes_are_shown_without_a_verdict_and_degenerate_sources_say_why(rng):
    labels = np.repeat([0, 1, 2, 3], [60, 60, 5, 0])
    found = measure(forgetting, source(labels, np.zeros((125, 1)), np.zeros((125, 1))), "adapted", "base")
    assert any("2 of 4 classes have fewer than 30" in caveat for caveat in found.caveats)
    assert found.select("backward_transfer_class", **{"class": "d"}).value is None
    assert judged(forgetting, found).status in {"pass", "inconclusive"}
    one = np.zeros(80, dtype=int)
    with pytest.raises(NotEvaluated, match="one class"):
        after_a_new_head(source(one, features_of(rng, one), features_of(rng, one)))
    with pytest.raises(NotEvaluated, match="constant"):
        after_a_new_head(source(labels, np.ones((125, 3)), np.ones((125, 3))))
    with pytest.raises(NotEvaluated, match="labelled rows of the source"):
        after_a_new_head(source(np.full(20, -1), np.ones((20, 3)), np.ones((20, 3))))


def two_readings(rng: np.random.Generator, clustered: bool) -> ArrayEvidence:
    """Base and adapted features that know exactly as much as each other, from different noise."""
    if clustered:
        cluster = np.repeat(np.arange(60), 10)
        labels = np.repeat(rng.integers(0, 4, 60), 10)
        own = 1.2 * rng.normal(size=(2, 60, 8))[:, cluster]
    else:
        cluster, labels, own = None, rng.integers(0, 4, 600), np.zeros((2, 1, 1))
    base, adapted = (features_of(rng, labels) + own[i] for i in range(2))
    return source(labels, base, adapted, cluster)


def alarms(runs: int, clustered: bool) -> list[str]:
    found = [
        judged(forgetting, after_a_new_head(two_readings(np.random.default_rng(seed), clustered), seed)).status for seed in range(runs)
    ]
    return [status for status in found if status in ("warn", "fail")]


@pytest.mark.parametrize("clustered", [False, True])
def test_features_that_know_as_much_are_not_accused(clustered):
    assert len(alarms(8, clustered)) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("clustered", [False, True])
def test_forgetting_keeps_its_level_where_nothing_was_lost(clustered):
    # 100 runs at 5 %: 11 is the 99.5 % point of the binomial; benchmarks/calibration has the probe and its interval at length
    assert len(alarms(100, clustered)) <= 11


# -- TLA407 -------------------------------------------------------------------------------------------------------------


def flips(
    labels: list[int], before: list[int], after: list[int], cluster: np.ndarray | None = None, key: str = "previous"
) -> ArrayEvidence:
    evidence = ArrayEvidence(NAMES[:2]).domain("target", labels, cluster=cluster)
    return evidence.outputs(key, "target", before).outputs("adapted", "target", after)


def test_the_hand_worked_table():
    #         both right x3, lost x2, won x1, both wrong x2
    labels = [0, 0, 1, 0, 1, 1, 0, 1]
    before = [0, 0, 1, 0, 1, 0, 1, 0]
    after = [0, 0, 1, 1, 0, 1, 1, 0]
    found = measure(churn, flips(labels, before, after), "adapted", "previous")
    assert found.select("churn", against="previous").value == pytest.approx(3 / 8)
    assert found.select("negative_flip_rate", against="previous").value == pytest.approx(2 / 8)
    assert found.select("positive_flip_rate", against="previous").value == pytest.approx(1 / 8)
    assert found.exhibits[0].rows == (("previous", 8, 3, 2, 1, 2),)
    assert found.select("churn_expected").value is None


def test_lost_minus_won_is_the_loss_of_accuracy(rng):
    labels, before, after = (rng.integers(0, 2, 500) for _ in range(3))
    found = measure(churn, flips(labels, before, after), "adapted", "previous")
    net = found.select("negative_flip_rate", against="previous").value - found.select("positive_flip_rate", against="previous").value
    assert net == pytest.approx((before == labels).mean() - (after == labels).mean(), abs=1e-12)


def test_the_same_model_has_no_churn(rng):
    labels = rng.integers(0, 2, 200)
    found = measure(churn, flips(labels, labels, labels), "adapted", "previous")
    assert [found.select(name, against="previous").value for name in ("churn", "negative_flip_rate", "positive_flip_rate")] == [
        0.0,
        0.0,
        0.0,
    ]
    assert judged(churn, found).status == "pass"


def test_classes_are_compared_by_name_not_by_place(rng):
    labels = rng.integers(0, 2, 100)
    evidence = flips(labels, 1 - labels, labels)
    orders = {"adapted": ("a", "b"), "previous": ("b", "a")}
    evidence.common_classes = lambda model, domain: orders[model]  # type: ignore[method-assign]
    assert measure(churn, evidence, "adapted", "previous").select("churn", against="previous").value == 0.0
    orders["previous"] = ("b", "c")
    with pytest.raises(NotEvaluated, match="other classes"):
        measure(churn, evidence, "adapted", "previous")


def test_flips_of_ten_percent_against_the_previous_model_warn_and_those_against_a_control_do_not(rng):
    labels = rng.integers(0, 2, 600)
    after = np.where(rng.random(600) < 0.10, 1 - labels, labels)
    assert judged(churn, measure(churn, flips(labels, labels, after), "adapted", "previous")).status == "warn"
    evidence = flips(labels, labels, after, key="control:scratch")
    assert judged(churn, measure(churn, evidence, "adapted", "control:scratch")).status == "info"


def test_without_labels_only_the_changed_answers_are_told(rng):
    labels = rng.integers(0, 2, 100)
    evidence = flips(labels, labels, labels)
    evidence._unlabelled.add("target")
    found = measure(churn, evidence, "adapted", "previous")
    assert found.select("churn", against="previous").value == 0.0
    assert "without labels" in str(found.select("negative_flip_rate", against="previous").reason)
    assert judged(churn, found).status == "info"


def test_the_samples_lost_most_confidently_are_named_by_hash_only_where_samples_may_appear():
    labels, before = [0, 0, 0, 1], [0, 0, 0, 1]
    evidence = flips(labels, before, [1, 1, 0, 1])
    sure = np.array([[0.4, 0.6], [0.1, 0.9], [0.9, 0.1], [0.1, 0.9]])
    evidence.outputs("adapted", "target", probabilities=sure)
    assert len(measure(churn, evidence, "adapted", "previous").exhibits) == 1
    evidence.samples = "redacted"
    evidence.content_hashes = lambda domain: np.array(["w", "x", "y", "z"], dtype=object)  # type: ignore[attr-defined]
    listed = measure(churn, evidence, "adapted", "previous").exhibits[1]
    assert [row[1:] for row in listed.rows] == [("a", "b", 0.9), ("a", "b", 0.6)]
    assert not any("target-" in str(row[0]) for row in listed.rows)


def steady(rng: np.random.Generator, clustered: bool) -> ArrayEvidence:
    """Two models of which the new one loses 3 % of the right answers, alone or by whole clusters."""
    n = 600
    cluster = np.repeat(np.arange(60), 10) if clustered else None
    labels = rng.integers(0, 2, n)
    chance = np.repeat(rng.beta(0.6, 0.6 * 97 / 3, 60), 10) if clustered else np.full(n, 0.03)
    after = np.where(rng.random(n) < chance, 1 - labels, labels)
    return flips(labels, labels, after, cluster)


def false_warnings(runs: int, clustered: bool) -> int:
    found = [
        judged(churn, measure(churn, steady(np.random.default_rng(seed), clustered), "adapted", "previous")).status for seed in range(runs)
    ]
    return found.count("warn")


@pytest.mark.parametrize("clustered", [False, True])
def test_three_percent_of_flips_are_not_accused(clustered):
    assert false_warnings(40, clustered) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("clustered", [False, True])
def test_churn_keeps_its_level_below_the_limit(clustered):
    # 120 runs at 5 %: 13 is the 99.5 % point of the binomial; benchmarks/calibration has the paired difference at length
    assert false_warnings(120, clustered) <= 13
