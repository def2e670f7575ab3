"""Families 3 to 6 on data where the answer is known: nothing wrong (quiet) and planted (speaks)."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from tests.checks.arrays import ArrayEvidence, measure
from tl_audit.checks import fairness, performance, shift, transfer
from tl_audit.errors import NotEvaluated
from tl_audit.policy import judge, load_policy
from tl_audit.records.findings import Finding
from tl_audit.records.metrics import Measurement

POLICY = load_policy("default")


def judged(check, measurement: Measurement) -> Finding:
    return judge(check.code, check.title, check.section, check.severity, measurement, POLICY)


def noisy(rng: np.random.Generator, labels: np.ndarray, accuracy: float | np.ndarray, classes: int) -> np.ndarray:
    wrong = rng.random(len(labels)) > accuracy
    return np.where(wrong, (labels + rng.integers(1, classes, len(labels))) % classes, labels)


@pytest.fixture
def three(rng):
    labels = rng.integers(0, 3, 900)
    predicted = noisy(rng, labels, 0.8, 3)
    return ArrayEvidence(("a", "b", "c")).domain("target", labels).outputs("adapted", "target", predicted), labels, predicted


def test_overall_numbers_are_those_of_scikit_learn(three):
    evidence, labels, predicted = three
    found = measure(performance.overall_performance, evidence, "adapted")
    assert found.select("accuracy").value == pytest.approx(reference.accuracy_score(labels, predicted), abs=1e-12)
    assert found.select("balanced_accuracy").value == pytest.approx(reference.balanced_accuracy_score(labels, predicted), abs=1e-12)
    assert found.select("f1_macro").value == pytest.approx(reference.f1_score(labels, predicted, average="macro"), abs=1e-12)
    assert judged(performance.overall_performance, found).status == "pass"


def test_a_constant_model_gains_nothing_and_is_not_passed(rng):
    labels = rng.integers(0, 2, 400)
    majority = int(np.bincount(labels).argmax())
    evidence = ArrayEvidence().domain("target", labels).outputs("adapted", "target", np.full(400, majority))
    found = measure(performance.overall_performance, evidence, "adapted")
    assert found.select("majority_gain").value == 0
    assert found.select("majority_gain").p_value == 1.0
    assert judged(performance.overall_performance, found).status == "inconclusive"


def test_the_same_model_twice_shows_no_change_and_swapping_flips_the_sign(three, rng):
    evidence, labels, predicted = three
    evidence.outputs("base", "target", predicted)
    same = measure(performance.against_base_or_previous, evidence, "adapted", "base").select("accuracy_change", against="base")
    assert (same.value, same.p_value) == (0.0, 1.0)
    worse = noisy(rng, labels, 0.6, 3)
    evidence.outputs("base", "target", worse)
    forth = measure(performance.against_base_or_previous, evidence, "adapted", "base").select("accuracy_change", against="base")
    evidence.outputs("base", "target", predicted).outputs("adapted", "target", worse)
    back = measure(performance.against_base_or_previous, evidence, "adapted", "base")
    assert back.select("accuracy_change", against="base").value == pytest.approx(-forth.value)
    assert judged(performance.against_base_or_previous, back).status == "fail"


def test_an_absent_class_has_no_recall_and_says_so(rng):
    labels = rng.integers(0, 2, 300)
    evidence = ArrayEvidence(("a", "b", "c")).domain("target", labels).outputs("adapted", "target", noisy(rng, labels, 0.9, 3))
    found = measure(performance.per_class, evidence, "adapted")
    recall = found.select("recall", **{"class": "c"})
    assert recall.value is None
    assert recall.reason


def test_a_class_that_is_never_recognised_warns(rng):
    labels = rng.integers(0, 3, 900)
    predicted = np.where(labels == 2, rng.integers(0, 2, 900), labels)
    finding = judged(
        performance.per_class,
        measure(
            performance.per_class,
            ArrayEvidence(("a", "b", "c")).domain("target", labels).outputs("adapted", "target", predicted),
            "adapted",
        ),
    )
    assert finding.status == "warn"
    assert "c" in finding.reason


def test_the_confusion_grid_sums_to_n_and_gives_the_accuracy(three):
    evidence, labels, predicted = three
    grid = measure(performance.confusion, evidence, "adapted").exhibits[0]
    counts = np.array([[int(cell) for cell in line] for line in grid.text])
    assert counts.sum() == len(labels)
    assert np.trace(counts) / counts.sum() == pytest.approx((labels == predicted).mean())


def calibrated(rng: np.random.Generator, n: int, sharpen: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    logits = rng.normal(size=(n, 2)) * 1.5
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (rng.random(n) < p[:, 1]).astype(int)
    z = sharpen * logits
    q = np.exp(z - z.max(1, keepdims=True))
    return labels, q / q.sum(1, keepdims=True)


def test_a_calibrated_model_is_not_accused_and_an_overconfident_one_is(rng):
    labels, p = calibrated(rng, 4000)
    quiet = judged(
        performance.calibration_check,
        measure(
            performance.calibration_check, ArrayEvidence().domain("target", labels).outputs("adapted", "target", probabilities=p), "adapted"
        ),
    )
    assert quiet.status in {"pass", "inconclusive"}, quiet.reason
    labels, p = calibrated(rng, 4000, sharpen=4.0)
    loud = judged(
        performance.calibration_check,
        measure(
            performance.calibration_check, ArrayEvidence().domain("target", labels).outputs("adapted", "target", probabilities=p), "adapted"
        ),
    )
    assert loud.status in {"warn", "fail"}, loud.reason


def test_three_hundred_rows_do_not_judge_calibration(rng):
    labels, p = calibrated(rng, 300, sharpen=4.0)
    finding = judged(
        performance.calibration_check,
        measure(
            performance.calibration_check, ArrayEvidence().domain("target", labels).outputs("adapted", "target", probabilities=p), "adapted"
        ),
    )
    assert finding.status not in {"pass", "warn", "fail"}, finding.reason


def test_predicting_the_prior_has_no_skill(rng):
    labels = rng.integers(0, 2, 1000)
    prior = np.bincount(labels) / 1000
    evidence = (
        ArrayEvidence()
        .domain("target", labels)
        .domain("train", labels)
        .outputs("adapted", "target", probabilities=np.tile(prior, (1000, 1)))
    )
    found = measure(performance.proper_scores, evidence, "adapted")
    assert found.select("nll_skill").value == pytest.approx(0.0, abs=1e-12)
    assert found.select("brier").value == pytest.approx(2 * reference.brier_score_loss(labels, np.full(1000, prior[1])), abs=1e-12)


def test_a_memoriser_has_a_gap_and_the_same_data_none(rng):
    labels = rng.integers(0, 2, 600)
    evidence = ArrayEvidence().domain("target", labels).domain("train", labels)
    evidence.outputs("adapted", "target", noisy(rng, labels, 0.55, 2)).outputs("adapted", "train", labels)
    assert judged(performance.train_test_gap, measure(performance.train_test_gap, evidence, "adapted")).status == "warn"
    evidence.outputs("adapted", "train", evidence.predictions("adapted", "target"))
    assert measure(performance.train_test_gap, evidence, "adapted").select("generalisation_gap").value == 0


def test_a_control_that_equals_the_adapted_model_gives_no_gain(three):
    evidence, _, predicted = three
    evidence.outputs("control:scratch", "target", predicted)
    found = measure(transfer.negative_transfer, evidence, "adapted", "control:scratch")
    assert found.select("gain_over_scratch").value == 0
    assert found.select("gain_over_scratch").p_value == 1.0
    assert found.select("gain_over_head").value is None
    assert judged(transfer.negative_transfer, found).status in {"pass", "inconclusive"}


def test_negative_transfer_fails(rng):
    labels = rng.integers(0, 2, 800)
    evidence = (
        ArrayEvidence()
        .domain("target", labels)
        .outputs("adapted", "target", noisy(rng, labels, 0.6, 2))
        .outputs("control:scratch", "target", noisy(rng, labels, 0.9, 2))
    )
    assert judged(transfer.negative_transfer, measure(transfer.negative_transfer, evidence, "adapted", "control:scratch")).status == "fail"


def test_rotated_features_have_not_drifted_and_fresh_ones_have(rng):
    x = rng.normal(size=(400, 12)) * np.arange(1, 13)
    q, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    labels = rng.integers(0, 2, 400)
    evidence = ArrayEvidence().domain("target", labels).outputs("adapted", "target", labels).outputs("base", "target", labels)
    for layer, after in (("early", 3 * x @ q), ("late", rng.normal(size=(400, 12)))):
        evidence.with_features("base", "target", x, layer).with_features("adapted", "target", after, layer)
    found = measure(transfer.representation_drift, evidence, "adapted", "base")
    assert found.select("cka_drift", layer="early", domain="target").value == pytest.approx(0.0, abs=1e-9)
    assert found.select("cka_drift", layer="late", domain="target").value > 0.8


def domains(rng: np.random.Generator, delta: float, n: int = 400) -> ArrayEvidence:
    evidence = ArrayEvidence()
    for role, offset in (("source", 0.0), ("target", delta)):
        labels = rng.integers(0, 2, n)
        evidence.domain(role, labels)
        for key in ("base", "adapted"):
            evidence.outputs(key, role, labels).with_features(key, role, rng.normal(size=(n, 8)) + offset)
    return evidence


def test_one_distribution_is_no_shift_and_a_moved_one_is(rng):
    quiet = judged(shift.covariate_shift, measure(shift.covariate_shift, domains(rng, 0.0), "adapted", "base"))
    assert quiet.status in {"pass", "inconclusive"}, quiet.reason
    loud = judged(shift.covariate_shift, measure(shift.covariate_shift, domains(rng, 0.7), "adapted", "base"))
    assert loud.status == "warn", loud.reason


def test_a_changed_class_mix_is_a_label_shift_and_no_harm_by_itself(rng):
    evidence = ArrayEvidence()
    for role, share in (("source", 0.5), ("target", 0.8)):
        labels = (rng.random(1000) < share).astype(int)
        accuracy = np.where(labels == 1, 0.95, 0.75)
        evidence.domain(role, labels).outputs("adapted", role, noisy(rng, labels, accuracy, 2))
    assert judged(shift.label_shift, measure(shift.label_shift, evidence, "adapted")).status == "warn"
    drop = measure(shift.harmful_shift, evidence, "adapted")
    assert abs(drop.select("accuracy_drop_reweighted").value) < 0.04 < abs(drop.select("accuracy_drop").value)


def test_equal_mixes_are_no_label_shift(rng):
    evidence = ArrayEvidence().domain("source", rng.integers(0, 2, 800)).domain("target", rng.integers(0, 2, 800))
    assert judged(shift.label_shift, measure(shift.label_shift, evidence)).status == "pass"


def test_a_drop_in_accuracy_fails(rng):
    evidence = ArrayEvidence()
    for role, accuracy in (("source", 0.95), ("target", 0.7)):
        labels = rng.integers(0, 2, 600)
        evidence.domain(role, labels).outputs("adapted", role, noisy(rng, labels, accuracy, 2))
    assert judged(shift.harmful_shift, measure(shift.harmful_shift, evidence, "adapted")).status == "fail"


def grouped(rng: np.random.Generator, accuracies: dict[str, float], n: int) -> ArrayEvidence:
    groups = np.repeat(list(accuracies), n)
    labels = rng.integers(0, 2, len(groups))
    predicted = noisy(rng, labels, np.array([accuracies[g] for g in groups]), 2)
    return ArrayEvidence().domain("target", labels, {"site": groups}).outputs("adapted", "target", predicted)


def test_a_group_served_worse_is_found_and_equal_groups_are_not_accused(rng):
    finding = judged(
        fairness.gap_to_the_rest, measure(fairness.gap_to_the_rest, grouped(rng, {"north": 0.95, "south": 0.6}, 300), "adapted")
    )
    assert finding.status == "fail", finding.reason
    assert any(outcome.slice == {"site": "south"} and outcome.outcome == "broken" for outcome in finding.limits)
    quiet = [
        judged(
            fairness.gap_to_the_rest, measure(fairness.gap_to_the_rest, grouped(rng, dict.fromkeys("abcdefgh", 0.85), 100), "adapted")
        ).status
        for _ in range(25)
    ]
    assert not {"fail", "warn"} & set(quiet)


def test_two_groups_have_opposite_gaps(rng):
    found = measure(fairness.gap_to_the_rest, grouped(rng, {"a": 0.9, "b": 0.8}, 200), "adapted")
    assert found.select("accuracy_gap", site="a").value == pytest.approx(-found.select("accuracy_gap", site="b").value)


def test_three_people_all_wrong_are_inconclusive_never_failed(rng):
    groups = np.array(["many"] * 400 + ["few"] * 3)
    labels = rng.integers(0, 2, 403)
    predicted = np.where(groups == "few", 1 - labels, noisy(rng, labels, 0.9, 2))
    evidence = ArrayEvidence().domain("target", labels, {"sex": groups}).outputs("adapted", "target", predicted)
    finding = judged(fairness.gap_to_the_rest, measure(fairness.gap_to_the_rest, evidence, "adapted"))
    assert finding.status == "inconclusive", finding.reason


def test_one_group_cannot_have_a_gap(rng):
    with pytest.raises(NotEvaluated, match="One group"):
        measure(fairness.gap_to_the_rest, grouped(rng, {"only": 0.9}, 100), "adapted")
    finding = judged(fairness.degenerate_groups, measure(fairness.degenerate_groups, grouped(rng, {"only": 0.9}, 100), "adapted"))
    assert finding.status == "warn", finding.reason


def test_a_group_without_positives_has_no_true_positive_rate(rng):
    evidence = grouped(rng, {"a": 0.9, "b": 0.9}, 150)
    evidence._labels["target"][:150] = 0
    evidence.positive_class = "b"
    rates = measure(fairness.group_performance, evidence, "adapted")
    assert rates.select("tpr", site="a").value is None
    assert rates.select("tpr", site="b").value is not None
    gap = measure(fairness.gap_to_the_rest, evidence, "adapted").select("tpr_gap", site="a")
    assert gap.value is None
    assert gap.reason
    finding = judged(fairness.degenerate_groups, measure(fairness.degenerate_groups, evidence, "adapted"))
    assert finding.metrics["undefined_cells"].value >= 1
    assert finding.status == "inconclusive", finding.reason


def test_group_rates_are_those_of_fairlearn_where_nothing_is_degenerate(rng):
    from fairlearn.metrics import MetricFrame, false_positive_rate, selection_rate, true_positive_rate

    evidence = grouped(rng, {"a": 0.9, "b": 0.7, "c": 0.8}, 200)
    evidence.positive_class = "b"
    found = measure(fairness.group_performance, evidence, "adapted")
    frame = MetricFrame(
        metrics={"tpr": true_positive_rate, "fpr": false_positive_rate, "selection_rate": selection_rate},
        y_true=evidence.labels("target"),
        y_pred=evidence.predictions("adapted", "target"),
        sensitive_features=evidence.groups("target")["site"].astype(str),
    )
    for name in ("tpr", "fpr", "selection_rate"):
        for group in "abc":
            assert found.select(name, site=group).value == pytest.approx(frame.by_group.loc[group, name], abs=1e-12)


def test_without_target_labels_the_class_mix_is_estimated_and_never_passed(rng):
    source = (rng.random(3000) < 0.5).astype(int)
    target = (rng.random(3000) < 0.8).astype(int)
    evidence = ArrayEvidence().domain("source", source).domain("target", np.full(3000, -1))
    evidence.outputs("adapted", "source", noisy(rng, source, 0.9, 2)).outputs("adapted", "target", noisy(rng, target, 0.9, 2))
    evidence._unlabelled = {"target"}
    found = measure(shift.label_shift, evidence, "adapted")
    assert found.select("label_tvd").value is None
    weight = found.select("label_weight", **{"class": "b"})
    assert weight.interval[0] < 0.8 / 0.5 < weight.interval[1]
    assert judged(shift.label_shift, found).status not in {"pass", "warn", "fail"}


# (true positives, misses, false alarms, true negatives) by group, from the rates and sizes that Fairlearn's user guide prints
EIGHTEEN_ROWS = {"a": (1, 1, 2, 0), "b": (3, 2, 0, 1), "c": (2, 3, 2, 1)}


def test_the_published_eighteen_rows():
    groups, truth, guess = [], [], []
    for group, counts in EIGHTEEN_ROWS.items():
        for (y, p), times in zip(((1, 1), (1, 0), (0, 1), (0, 0)), counts, strict=True):
            groups += [group] * times
            truth += [y] * times
            guess += [p] * times
    assert len(truth) == 18
    evidence = ArrayEvidence(("no", "yes")).domain("target", truth, {"group": groups}).outputs("adapted", "target", guess)
    evidence.positive_class = "yes"
    found = measure(fairness.group_performance, evidence, "adapted")
    rates = {name: {g: found.select(name, group=g).value for g in "abc"} for name in ("tpr", "fpr", "selection_rate")}
    assert rates["tpr"] == pytest.approx({"a": 0.5, "b": 0.6, "c": 0.4})
    assert rates["fpr"] == pytest.approx({"a": 1.0, "b": 0.0, "c": 2 / 3})
    assert rates["selection_rate"] == pytest.approx({"a": 0.75, "b": 0.5, "c": 0.5})
    spread = {name: max(r.values()) - min(r.values()) for name, r in rates.items()}
    assert spread["selection_rate"] == pytest.approx(0.25)
    assert min(rates["selection_rate"].values()) / max(rates["selection_rate"].values()) == pytest.approx(0.6667, abs=5e-5)
    assert max(spread["tpr"], spread["fpr"]) == pytest.approx(1.0)


def test_clusters_are_the_units_of_the_shift_test(rng):
    """Ten patients by six rows in each domain and no shift: rows of one patient are alike, patients are not."""
    evidence = ArrayEvidence()
    for role in ("source", "target"):
        patients = np.repeat(np.arange(12), 6)
        values = rng.normal(size=(12, 4))[patients] + 0.1 * rng.normal(size=(72, 4))
        labels = rng.integers(0, 2, 72)
        evidence.domain(role, labels, cluster=[f"{role}{k}" for k in patients])
        for key in ("base", "adapted"):
            evidence.outputs(key, role, labels).with_features(key, role, values)
    found = measure(shift.covariate_shift, evidence, "adapted", "base")
    assert found.select("mmd2").clusters == {"source": 12, "target": 12}
    assert judged(shift.covariate_shift, found).status not in {"warn", "fail"}


@pytest.mark.parametrize(
    "check", [*performance.PERFORMANCE, *transfer.TRANSFER, *shift.SHIFT, *fairness.FAIRNESS], ids=lambda check: check.code
)
def test_every_check_of_these_families_measures_clustered_data(check, rng):
    evidence = ArrayEvidence()
    for role in ("target", "source", "train", "validation"):
        patients = np.repeat(np.arange(40), 6)
        labels = rng.integers(0, 2, 240)
        evidence.domain(role, labels, {"site": np.where(patients % 2 == 0, "north", "south")}, cluster=[f"{role}{k}" for k in patients])
        for key in ("base", "adapted", "control:head", "control:scratch"):
            evidence.outputs(key, role, noisy(rng, labels, 0.8, 2)).with_features(key, role, rng.normal(size=(240, 4)))
    for key in ("base", "adapted"):
        for role in ("target", "source"):
            evidence._features[key, role, "early"] = rng.normal(size=(240, 4))
        evidence._layers[key] = ("early",)
    evidence.positive_class = "b"
    found = measure(check, evidence, "adapted", "base", "control:head", "control:scratch")
    assert found.metrics
    assert not any(note.startswith("Rows are treated as independent") for note in found.caveats)
