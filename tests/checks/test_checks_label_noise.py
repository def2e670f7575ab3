"""TLA205: flipped labels are asked about, overlapping classes are not, and no model is asked about labels that it has learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from tests.checks.arrays import ArrayEvidence, measure
from tl_audit.checks.label_noise import LABEL_NOISE, label_noise
from tl_audit.errors import NotEvaluated
from tl_audit.policy import load_policy
from tl_audit.policy.judge import judge
from tl_audit.records.metrics import Measurement
from tl_audit.runner import corrected


class Hashed(ArrayEvidence):
    def content_hashes(self, domain: str) -> np.ndarray:
        return np.array([f"{domain}{i}" for i in range(self.n(domain))], dtype=object)


def overlapping(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of two overlapping classes, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    p = softmax(rng.normal(size=(n, 2)) * 2, axis=1)
    return p, (p[:, 0] < rng.random(n)).astype(int)


def separable(n: int, seed: int, flips: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 2, n)
    p = softmax(np.eye(2)[true] * rng.uniform(3, 12, (n, 1)), axis=1)
    flipped = rng.random(n) < flips
    return p, np.where(flipped, 1 - true, true), flipped


def evidence(p: np.ndarray, y: np.ndarray, **more: Any) -> Hashed:
    out = Hashed()
    out.domain("target", y, **more)
    out.outputs("adapted", "target", probabilities=p)
    return out


def status(found: Measurement) -> tuple[str, str]:
    check = label_noise
    finding = judge(check.code, check.title, check.section, check.severity, corrected(found, check), load_policy("default"))
    return finding.status, finding.reason


def test_the_check_explains_itself_in_three_parts() -> None:
    for check in LABEL_NOISE:
        assert check.help["asks"].endswith("?")
        assert all(len(check.help[part]) > 40 for part in ("measured", "matters", "reduce"))


def test_flipped_labels_are_listed_and_a_person_is_asked() -> None:
    p, y, flipped = separable(500, 0, 0.05)
    found = measure(label_noise, evidence(p, y, groups={"site": np.where(np.arange(500) < 250, "north", "south")}), "adapted")
    assert found.select("suspect_labels", domain="target").value == pytest.approx(flipped.sum(), abs=3)
    share = found.select("suspect_share", domain="target")
    assert share.interval[0] < flipped.mean() < share.interval[1]
    assert status(found)[0] == "review"
    by_pair = [m for m in found.metrics if m.name == "suspect_labels" and "label" in m.slice]
    assert sum(m.value for m in by_pair) == found.select("suspect_labels", domain="target").value
    assert {m.slice["label"] for m in by_pair} == {"a", "b"}
    by_group = [m for m in found.metrics if m.name == "suspect_share_group"]
    assert [m.slice["site"] for m in by_group] == ["north", "south"]
    table = next(e for e in found.exhibits if e.id == "suspects-target")
    assert len(table.rows) <= 20
    assert all(row["of the other"] > row["probability of the label"] for row in table.to_rows())


def test_overlapping_classes_have_suspects_and_nobody_is_asked() -> None:
    asked = []
    for seed in range(12):
        p, y = overlapping(400, seed)
        found = measure(label_noise, evidence(p, y), "adapted", seed=seed)
        assert found.select("suspect_labels", domain="target").value > 10
        verdict, reason = status(found)
        assert verdict in ("pass", "review"), reason
        asked.append(verdict == "review")
    assert sum(asked) <= 2


def test_over_confidence_alone_is_not_taken_for_wrong_labels() -> None:
    asked = []
    for seed in range(6):
        p, y = overlapping(400, 50 + seed)
        sure = softmax(3 * np.log(p), axis=1)
        asked.append(status(measure(label_noise, evidence(sure, y), "adapted", seed=seed))[0] == "review")
    assert sum(asked) <= 1


def test_training_labels_are_judged_by_the_base_in_folds_and_never_by_the_adapted_model() -> None:
    rng = np.random.default_rng(3)
    p, y, _ = separable(300, 3)
    out = evidence(p, y)
    true = rng.integers(0, 2, 400)
    flipped = rng.random(400) < 0.08
    labels = np.where(flipped, 1 - true, true)
    out.domain("train", labels)
    # the adapted model has learned every label, wrong ones too
    out.outputs("adapted", "train", predicted=labels, confidence=0.999)
    features = np.c_[8.0 * true + rng.normal(size=400), rng.normal(size=(400, 6))]
    blind = measure(label_noise, out, "adapted")
    assert not [m for m in blind.metrics if m.slice.get("domain") == "train"]
    assert "did not learn their labels" in " ".join(blind.caveats)
    out.with_features("base", "train", features)
    found = measure(label_noise, out, "adapted", "base")
    assert found.select("suspect_labels", domain="train").value >= 0.8 * flipped.sum()
    verdict, reason = status(found)
    assert verdict == "review"
    assert "train" in reason


def test_renamed_groups_and_turned_rows_change_nothing_but_names() -> None:
    p, y, _ = separable(200, 4, 0.05)
    first = measure(label_noise, evidence(p, y, groups={"g": np.where(y == 0, "u", "v")}), "adapted")
    turned = measure(label_noise, evidence(p[::-1], y[::-1], groups={"g": np.where(y[::-1] == 0, "u", "v")}), "adapted")
    for name in ("suspect_labels", "suspect_share"):
        assert first.select(name, domain="target").value == turned.select(name, domain="target").value


def test_clusters_are_the_units_of_the_interval() -> None:
    p, y, _ = separable(200, 5, 0.1)
    whole = measure(label_noise, evidence(p, y), "adapted").select("suspect_share", domain="target")
    twice = measure(label_noise, evidence(np.repeat(p, 2, axis=0), np.repeat(y, 2), cluster=np.repeat(np.arange(200), 2)), "adapted")
    doubled = twice.select("suspect_share", domain="target")
    assert doubled.value == whole.value
    assert doubled.interval == pytest.approx(whole.interval, abs=0.01)


def test_what_is_missing_is_named() -> None:
    out = Hashed().domain("target", [0, 1, 0])
    with pytest.raises(NotEvaluated, match="outputs of adapted on target"):
        measure(label_noise, out, "adapted")
    one = evidence(np.array([[0.9, 0.1]] * 5), np.zeros(5, dtype=int))
    with pytest.raises(NotEvaluated, match="two classes"):
        measure(label_noise, one, "adapted")
