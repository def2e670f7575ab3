"""Use of the base's features by layer (TLA404) and collapse of features (TLA405): found where planted, silent where not."""

from __future__ import annotations

import numpy as np
import pytest

from tests.checks.arrays import ArrayEvidence, Parts, measure
from tl_audit.checks import BUILTIN
from tl_audit.checks.base import Check, Context, lacking
from tl_audit.checks.transferability import feature_collapse, layer_transferability
from tl_audit.errors import NotEvaluated
from tl_audit.policy import Rules, judge, load_policy
from tl_audit.records.adaptation import AdaptationRecord
from tl_audit.records.exhibits import Lines, Table
from tl_audit.records.findings import Finding
from tl_audit.records.metrics import Measurement

POLICY = load_policy("default")
NAMES = ("a", "b", "c")


def judged(check: Check, measurement: Measurement) -> Finding:
    return judge(check.code, check.title, check.section, check.severity, measurement, POLICY)


def evidence_of(
    labels: np.ndarray, layers: dict[str, dict[str, np.ndarray]], cluster: np.ndarray | None = None, classes: tuple[str, ...] = NAMES
) -> ArrayEvidence:
    """Model -> layer -> features on the target; the last layer is the penultimate one."""
    evidence = ArrayEvidence(classes).domain("target", labels, cluster=cluster)
    for key, by_layer in layers.items():
        evidence.outputs(key, "target", labels)
        for layer, values in by_layer.items():
            evidence.with_features(key, "target", values, layer)
        evidence.with_features(key, "target", list(by_layer.values())[-1])
    return evidence


def telling(rng: np.random.Generator, labels: np.ndarray, strength: float, columns: int = 8) -> np.ndarray:
    return rng.normal(size=(labels.size, columns)) + strength * np.eye(columns)[labels]


# -- TLA404 -------------------------------------------------------------------------------------------------------------


def test_the_layer_that_tells_the_classes_is_named(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 3, 300)
    layers = {"early": telling(rng, labels, 0.0), "late": telling(rng, labels, 2.0)}
    found = measure(layer_transferability, evidence_of(labels, {"base": layers, "adapted": layers}), "adapted", "base")
    noise, signal = (found.select("logme_gain", layer=layer, model="base") for layer in ("early", "late"))

    assert noise.value < 0.01
    assert noise.interval[0] <= noise.null + 0.01
    assert signal.interval[0] > 10 * signal.null
    assert found.select("h_alpha", layer="late", model="base").value > 1
    assert found.select("logme", layer="late", model="base").unit == "nats per sample"
    assert found.select("logme_gain", layer="late", model="adapted").value == signal.value
    assert "most about the target's classes at late" in found.summary
    assert judged(layer_transferability, found).status == "info"


def test_features_of_no_use_are_called_so(rng: np.random.Generator) -> None:
    calls = []
    for _ in range(6):
        labels = rng.integers(0, 3, 150)
        layers = {"early": telling(rng, labels, 0.0), "late": telling(rng, labels, 0.0)}
        calls.append(measure(layer_transferability, evidence_of(labels, {"base": layers}), "base").summary)

    # the best of two noise layers lies above the mean of shuffled labels now and then; its words then carry the interval and that mean
    assert any("No layer" in text for text in calls)
    assert all("No layer" in text or "for shuffled labels" in text for text in calls)


def test_frozen_layers_are_shaded_and_told(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 3, 200)
    layers = {"early": telling(rng, labels, 2.0), "late": telling(rng, labels, 0.5)}
    record = AdaptationRecord(frozen=("early.weight", "early.bias"))
    subject = Parts("adapted", "base", record=record)
    found = layer_transferability(subject, evidence_of(labels, {"base": layers, "adapted": layers}), Context(Rules(), 0, {}))  # type: ignore[arg-type]
    figure = found.exhibits[0]

    assert isinstance(figure, Lines)
    assert figure.shaded == ((-0.5, 0.5),)
    assert [line.name for line in figure.lines] == ["base", "shuffled labels", "adapted"]
    assert figure.x_ticks == ("early", "late")
    assert "declared frozen" in found.summary
    assert "trained from late on" in found.summary


def test_order_of_rows_and_names_of_classes_do_not_matter(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 3, 120)
    x = telling(rng, labels, 1.0)
    order = rng.permutation(120)
    plain = measure(layer_transferability, evidence_of(labels, {"base": {"late": x}}), "base")
    moved = measure(layer_transferability, evidence_of(labels[order], {"base": {"late": x[order]}}), "base")
    named = measure(layer_transferability, evidence_of(2 - labels, {"base": {"late": x}}), "base")

    for name in ("logme", "logme_gain", "h_alpha"):
        value = plain.select(name, layer="late", model="base").value
        assert moved.select(name, layer="late", model="base").value == pytest.approx(value, abs=1e-9)
        assert named.select(name, layer="late", model="base").value == pytest.approx(value, abs=1e-9)


def test_clusters_are_the_units(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 3, 240)
    found = measure(layer_transferability, evidence_of(labels, {"base": {"late": telling(rng, labels, 1.0)}}, np.arange(240) // 8), "base")

    assert found.select("logme_gain", layer="late", model="base").clusters == {"target": 30}
    assert not any("independent" in text for text in found.caveats)


def test_one_class_or_no_labels_is_said(rng: np.random.Generator) -> None:
    labels = np.zeros(50, dtype=int)
    with pytest.raises(NotEvaluated, match="two classes"):
        measure(layer_transferability, evidence_of(labels, {"base": {"late": rng.normal(size=(50, 3))}}), "base")
    with pytest.raises(NotEvaluated, match="features of the base by layer"):
        measure(layer_transferability, evidence_of(np.arange(50) % 2, {"base": {"late": np.zeros((50, 0))}}), "base")


def test_constant_features_have_no_value_and_a_reason(rng: np.random.Generator) -> None:
    labels = np.arange(60) % 3
    layers = {"early": np.ones((60, 4)), "late": telling(rng, labels, 1.0)}
    found = measure(layer_transferability, evidence_of(labels, {"base": layers}), "base")
    flat = found.select("logme_gain", layer="early", model="base")

    assert flat.value is None
    assert "constant features" in flat.reason
    assert "at late" in found.summary


# -- TLA405 -------------------------------------------------------------------------------------------------------------


def test_features_that_did_not_change_pass_with_ratio_one(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 3, 300)
    x = telling(rng, labels, 1.0)
    found = measure(feature_collapse, evidence_of(labels, {"base": {"late": x}, "adapted": {"late": x.copy()}}), "adapted", "base")
    ratio = found.select("effective_rank_ratio")

    assert ratio.value == 1.0
    assert ratio.null == 1.0
    assert judged(feature_collapse, found).status == "pass"
    base, adapted = (found.select("class_variability", model=key, domain="target").value for key in ("base", "adapted"))
    assert base == adapted > 0


def test_features_flattened_to_two_directions_are_warned_of(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 3, 200)
    before = telling(rng, labels, 1.0, columns=32)
    after = np.eye(3)[labels] @ rng.normal(size=(3, 32)) + 0.01 * rng.normal(size=(200, 32))
    found = measure(feature_collapse, evidence_of(labels, {"base": {"late": before}, "adapted": {"late": after}}), "adapted", "base")

    assert judged(feature_collapse, found).status == "warn", judged(feature_collapse, found).reason
    assert found.select("effective_rank", model="adapted").value < 6
    assert found.select("class_variability", model="adapted", domain="target").value < 0.01
    curve, table = found.exhibits
    assert isinstance(curve, Lines)
    assert isinstance(table, Table)
    assert curve.lines[1].y[1] > 0.9 > curve.lines[0].y[1]


def test_equal_ranks_are_hardly_ever_accused() -> None:
    warned = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 3, 120)
        layers = {key: {"late": rng.normal(size=(120, 16))} for key in ("base", "adapted")}
        found = measure(feature_collapse, evidence_of(labels, layers), "adapted", "base")
        warned += judged(feature_collapse, found).status == "warn"

    assert warned == 0


def test_wide_features_are_compared_in_common_directions(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 3, 100)
    layers = {"base": {"late": rng.normal(size=(100, 300))}, "adapted": {"late": rng.normal(size=(100, 300))}}
    found = measure(feature_collapse, evidence_of(labels, layers), "adapted", "base")

    assert any("50 principal directions" in text for text in found.caveats)
    assert found.select("effective_rank_ratio").value == pytest.approx(1, abs=0.15)


def test_spread_inside_classes_of_the_training_data_is_shown_where_it_was_run(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 3, 90)
    x = telling(rng, labels, 1.0)
    evidence = evidence_of(labels, {"base": {"late": x}, "adapted": {"late": x}})
    found = measure(feature_collapse, evidence, "adapted", "base")
    assert any("on the train data is not measured" in text for text in found.caveats)

    evidence.domain("train", labels).outputs("adapted", "train", labels).with_features("adapted", "train", telling(rng, labels, 9.0))
    found = measure(feature_collapse, evidence, "adapted", "base")
    assert found.select("class_variability", model="adapted", domain="train").value < 0.1


def test_clusters_widen_the_interval_of_the_ratio(rng: np.random.Generator) -> None:
    rows = np.repeat(np.arange(30), 8)
    before = rng.normal(size=(30, 6))[rows] + 0.01 * rng.normal(size=(240, 6))
    after = (rng.normal(size=(30, 6)) * np.arange(1, 7))[rows] + 0.01 * rng.normal(size=(240, 6))
    labels = rows % 3

    def width(cluster: np.ndarray | None) -> float:
        evidence = evidence_of(labels, {"base": {"late": before}, "adapted": {"late": after}}, cluster)
        low, high = measure(feature_collapse, evidence, "adapted", "base").select("effective_rank_ratio").interval
        return high - low

    assert width(rows) > 1.5 * width(None)


def test_what_is_missing_is_named() -> None:
    labels = np.arange(40) % 2
    evidence = ArrayEvidence(("a", "b")).domain("target", labels).outputs("adapted", "target", labels)
    assert [c.code for c in BUILTIN if c.code in ("TLA404", "TLA405")] == ["TLA404", "TLA405"]
    for check in (layer_transferability, feature_collapse):
        assert "base" in (lacking(next(n for n in check.needs if n == "base"), Parts("adapted"), evidence, {}) or "")  # type: ignore[arg-type]
        assert set(check.help) == {"asks", "measured", "matters", "reduce"}
    few = {"late": np.zeros((3, 2))}
    evidence = evidence_of(np.arange(3) % 2, {"base": few, "adapted": few})
    with pytest.raises(NotEvaluated, match="four target samples"):
        measure(feature_collapse, evidence, "adapted", "base")
