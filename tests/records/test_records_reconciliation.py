"""A record that does not add up is never written: each rule broken once."""

from __future__ import annotations

from typing import Any

import pytest

from tl_audit.records.findings import STATUSES, AuditResult, DomainCard, Finding, LimitOutcome, Outcome, PolicyCard, SubjectCard
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.records.reconciliation import breaches

FINE = Metric(
    name="accuracy",
    value=0.8,
    interval=(0.7, 0.9),
    confidence=0.95,
    n={"target": 40},
    events=32,
    nonevents=8,
    p_value=0.01,
    p_adjusted=0.02,
)


def finding(code: str = "TLA301", status: str = "info", metric: Metric = FINE, **parts: Any) -> Finding:
    held = {"measurement": Measurement(summary="s", metrics=(metric,))} if status not in ("not_evaluated", "error") else {}
    return Finding(code=code, section="performance", title="t", status=status, reason="r", severity="low", **{**held, **parts})  # type: ignore[arg-type]


def record(
    *findings: Finding, counts: dict[str, int] | None = None, target: DomainCard | None = None, blocked_by: tuple[str, ...] = ()
) -> AuditResult:
    true = {s: sum(f.status == s for f in findings) for s in STATUSES}
    return AuditResult(
        title="t", created="2026-01-01T00:00:00Z", tool={}, findings=findings, subject=SubjectCard(target=target),
        outcome=Outcome(status="info", counts=counts or dict(true), sentence="s", gate="open", blocked_by=blocked_by),  # type: ignore[arg-type]
        policy=PolicyCard(id="p", version=1, sha256="0", stage="ci", fail_on="fail"),
    )  # fmt: skip


def card(**parts: Any) -> DomainCard:
    return DomainCard(role="target", name="T", kind="image", **{"n": 40, **parts})


BROKEN = LimitOutcome(metric="accuracy", level="fail", bound="min", value=0.95, rule="interval", origin="ours", outcome="broken")


def test_a_sound_record_has_no_breach() -> None:
    sound = record(
        finding(), finding("TLA302", "not_evaluated"), target=card(class_counts={"a": 20, "b": 20}, groups={"sex": {"x": "< 10", "y": 33}})
    )
    assert breaches(sound) == ()


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (record(finding(), finding()), "TLA301 appears 2 times"),
        (record(finding(), counts={"info": 2}), "the outcome counts"),
        (record(finding(), blocked_by=("TLA999",)), "closed by TLA999"),
        (record(finding(), target=card(class_counts={"a": 41})), "41 labels"),
        (record(finding(), target=card(groups={"sex": {"x": 20, "y": 19}})), "sum to 39"),
        (record(finding(metric=FINE.model_copy(update={"interval": (0.9, 0.7)}))), "interval 0.9 to 0.7"),
        (record(finding(metric=FINE.model_copy(update={"value": 0.95}))), "lies outside"),
        (record(finding(metric=FINE.model_copy(update={"p_value": 0.0}))), "p = 0"),
        (record(finding(metric=FINE.model_copy(update={"p_adjusted": 0.001}))), "adjusted p below its p"),
        (record(finding(status="pass")), "without a limit"),
        (record(finding(status="pass", limits=(BROKEN,))), "passes with a broken limit"),
        (record(finding(status="error", measurement=Measurement(summary="s"))), "holds a measurement"),
        (record(finding(status="info", measurement=None)), "without a measurement"),
    ],
)
def test_each_breach_is_named(broken: AuditResult, words: str) -> None:
    found = breaches(broken)
    assert any(words in text for text in found), found


def test_one_metric_with_two_values_is_a_breach() -> None:
    two = Measurement(summary="s", metrics=(FINE, FINE.model_copy(update={"value": 0.81})))
    assert any("two values" in text for text in breaches(record(finding(measurement=two))))
