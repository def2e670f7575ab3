"""TLA207: quiet where the target is like the source, loud where a part of it lies elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.checks.arrays import ArrayEvidence, measure
from tl_audit.checks.coverage import COVERAGE, source_coverage
from tl_audit.errors import NotEvaluated
from tl_audit.policy import load_policy
from tl_audit.policy.judge import judge
from tl_audit.records.metrics import Measurement


def evidence(source: np.ndarray, target: np.ndarray, model: str = "base", labels: Any = None, **more: Any) -> ArrayEvidence:
    out = ArrayEvidence()
    out.domain("source", np.zeros(len(source), dtype=int))
    out.domain("target", np.zeros(len(target), dtype=int) if labels is None else labels, **more)
    return out.with_features(model, "source", source).with_features(model, "target", target)


def status(found: Measurement) -> tuple[str, str]:
    check = source_coverage
    finding = judge(check.code, check.title, check.section, check.severity, found, load_policy("default"))
    return finding.status, finding.reason


def test_the_check_explains_itself_in_three_parts() -> None:
    for check in COVERAGE:
        assert check.help["asks"].endswith("?")
        assert all(len(check.help[part]) > 40 for part in ("measured", "matters", "reduce"))


def test_one_distribution_passes_every_time() -> None:
    shares = []
    for seed in range(15):
        rng = np.random.default_rng(seed)
        groups = {"site": rng.choice(["north", "south"], 300)}
        found = measure(
            source_coverage,
            evidence(rng.normal(size=(300, 6)), rng.normal(size=(300, 6)), labels=rng.integers(0, 2, 300), groups=groups),
            "base",
            seed=seed,
        )
        assert status(found)[0] == "pass", status(found)[1]
        shares.append(found.select("uncovered_share").value)
    assert np.mean(shares) == pytest.approx(0.05, abs=0.02)


def test_one_group_elsewhere_is_found_and_named() -> None:
    rng = np.random.default_rng(0)
    target, apart = rng.normal(size=(400, 5)), np.arange(400) < 80
    target[apart] += 6
    found = measure(
        source_coverage,
        evidence(rng.normal(size=(400, 5)), target, labels=(~apart).astype(int), groups={"site": np.where(apart, "north", "south")}),
        "base",
    )
    assert found.select("uncovered_share", site="north").value == 1.0
    assert found.select("uncovered_share", **{"class": "a"}).value == 1.0
    assert found.select("uncovered_share", site="south").value < 0.12
    verdict, reason = status(found)
    assert verdict == "warn"
    assert "north" in reason or "class = a" in reason
    assert [e.id for e in found.exhibits] == ["coverage-curve", "uncovered-by-slice"]
    assert "100.0 %" in found.exhibits[1].title


def test_the_adapted_model_serves_where_there_is_no_base_and_it_is_said() -> None:
    rng = np.random.default_rng(1)
    found = measure(source_coverage, evidence(rng.normal(size=(200, 3)), rng.normal(size=(100, 3)) + 9, model="adapted"), "adapted")
    assert found.params["ruler"] == "adapted"
    assert "adapted model serve" in " ".join(found.caveats)
    assert status(found)[0] == "warn"


def test_too_few_samples_and_missing_features_are_named() -> None:
    rng = np.random.default_rng(2)
    with pytest.raises(NotEvaluated, match="100 usable source samples: there are 60"):
        measure(source_coverage, evidence(rng.normal(size=(60, 3)), rng.normal(size=(60, 3))), "base")
    out = ArrayEvidence().domain("source", np.zeros(200, dtype=int)).domain("target", np.zeros(200, dtype=int))
    with pytest.raises(NotEvaluated, match="features of one model"):
        measure(source_coverage, out, "base")


def test_a_group_of_three_is_measured_and_not_judged() -> None:
    rng = np.random.default_rng(3)
    target, few = rng.normal(size=(300, 4)), np.arange(300) < 3
    target[few] += 9
    found = measure(source_coverage, evidence(rng.normal(size=(300, 4)), target, groups={"site": np.where(few, "x", "y")}), "base")
    assert status(found)[0] == "pass", status(found)[1]


def test_renaming_groups_changes_names_alone() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(150, 3)), rng.normal(size=(120, 3))
    groups = rng.choice(["u", "v"], 120)
    first = measure(source_coverage, evidence(x, y, groups={"g": groups}), "base")
    other = measure(source_coverage, evidence(x, y, groups={"g": np.where(groups == "u", "p", "q")}), "base")
    assert first.select("uncovered_share", g="u").value == other.select("uncovered_share", g="p").value
