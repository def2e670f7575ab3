"""What rows ask beyond statuses can be broken: a made-up number, a shown cell, a moved value, a pass without what it rested on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tl_audit.defects import adapters, clusters, degenerate, governance, inputs
from tl_audit.defects.base import Audits
from tl_audit.defects.comparison import otherwise
from tl_audit.records.exhibits import Bar, Bars, Column, Dot, Intervals, Table
from tl_audit.records.findings import Finding, LimitOutcome
from tl_audit.records.metrics import Measurement, Metric

WORDS = {"title": "t", "how_to_read": "h", "alt": "a", "caption": "c"}


def metric(name: str, value: float | None, reason: str = "made up", **more: Any) -> Metric:
    return Metric(name=name, value=value, reason=reason, **more)


def finding(code: str, *metrics: Metric, status: Any = "info", exhibits: Any = (), caveats: Any = (), limits: Any = ()) -> Finding:
    measured = Measurement(summary="s", metrics=metrics, exhibits=exhibits, caveats=caveats)
    return Finding(code=code, section="data", title="t", status=status, reason="r", severity="low", measurement=measured, limits=limits)


def audits(*now: Finding, before: tuple[Finding, ...] = ()) -> Any:
    return Audits(SimpleNamespace(findings=now), SimpleNamespace(findings=before) if before else None)  # type: ignore[arg-type]  # findings are all that is read


def test_a_number_that_moved_is_named_with_both_values():
    first, same = finding("TLA301", metric("accuracy", 0.5, n={"target": 10})), finding("TLA302", metric("gain", 0.1))
    moved = finding("TLA301", metric("accuracy", 0.6, n={"target": 10}))
    assert not list(otherwise(audits(first, same, before=(first, same))))
    said = list(otherwise(audits(moved, same, before=(first, same))))
    assert len(said) == 1
    assert "accuracy" in said[0]
    assert "0.6" in said[0]
    assert "instead of (0.5" in said[0]
    assert not list(otherwise(audits(moved, same, before=(first, same)), spared=("TLA301",)))


@pytest.mark.parametrize("change", [{"n": {"target": 9}}, {"interval": (0.4, 0.6)}, {"p_value": 0.2}, {"slice": {"class": "a"}}])
def test_a_count_an_interval_a_p_value_or_a_slice_that_moved_is_seen_too(change: dict[str, Any]):
    first, second = finding("TLA301", metric("accuracy", 0.5)), finding("TLA301", metric("accuracy", 0.5, **change))
    assert list(otherwise(audits(second, before=(first,))))
    gone = first.model_copy(update={"measurement": None})
    assert list(otherwise(audits(gone, before=(first,))))


def test_a_number_of_the_tiny_group_is_seen_wherever_it_stands():
    odd = degenerate.ODD
    hidden = metric("accuracy", None, slice={"region": odd})
    assert not list(degenerate._the_tiny_group_is_hidden(audits(finding("TLA601", hidden))))
    shown = metric("accuracy", 0.0, slice={"region": odd})
    assert list(degenerate._the_tiny_group_is_hidden(audits(finding("TLA601", shown))))
    counted = metric("accuracy", None, slice={"region": odd}, n={"target": 3})
    assert list(degenerate._the_tiny_group_is_hidden(audits(finding("TLA601", counted))))
    table = Table(id="t", columns=(Column(name="region"), Column(name="n")), rows=((odd, 3),), **WORDS)
    bars = Bars(id="b", value_label="v", bars=(Bar(label=odd, value=0.0),), **WORDS)
    dots = Intervals(id="d", value_label="v", dots=(Dot(label=odd, value=None, n=3),), **WORDS)
    for exhibit in (table, bars, dots):
        assert list(degenerate._the_tiny_group_is_hidden(audits(finding("TLA601", exhibits=(exhibit,)))))


def test_a_rate_that_cannot_exist_must_be_there_as_null_with_a_reason():
    where = {"region": degenerate.ODD}
    null = (finding("TLA601", metric("tpr", None, slice=where)), finding("TLA602", metric("tpr_gap", None, slice=where)))
    assert not list(degenerate._nothing_is_made_up(audits(*null)))
    made_up = finding("TLA602", metric("tpr_gap", 0.0, slice=where))
    assert list(degenerate._nothing_is_made_up(audits(null[0], made_up)))
    assert list(degenerate._nothing_is_made_up(audits(null[0], finding("TLA602"))))


def test_a_difference_far_beyond_chance_and_one_not_measured_are_seen():
    accuracy = metric("max_min_accuracy", 0.2, slice={"attribute": "group"}, p_value=0.4)
    assert not list(clusters._within_the_null_band(audits(finding("TLA603", accuracy))))
    far = metric("max_min_tpr", 0.5, slice={"attribute": "group"}, p_value=0.001)
    assert list(clusters._within_the_null_band(audits(finding("TLA603", accuracy, far))))
    assert list(clusters._within_the_null_band(audits(finding("TLA603"))))


def test_a_row_wise_test_without_its_caveat_is_seen():
    silent, honest = finding("TLA501"), finding("TLA501", caveats=(clusters.INDEPENDENT,))
    rest = (finding("TLA503"), finding("TLA505"))
    told = tuple(one.model_copy(update={"measurement": honest.measurement}) for one in rest)
    assert not list(clusters._rows_were_taken_for_independent(audits(silent, *rest, before=(honest, *told))))
    assert list(clusters._rows_were_taken_for_independent(audits(silent, *rest, before=(silent, *told))))
    assert list(clusters._rows_were_taken_for_independent(audits(honest, *rest, before=(honest, *told))))


def test_factors_and_counts_other_than_planted_are_seen():
    assert not list(adapters._factor(audits(finding("TLA106", metric("merge_factor", 2.0))), 2.0))
    assert list(adapters._factor(audits(finding("TLA106", metric("merge_factor", 1.0))), 2.0))
    assert list(adapters._factor(audits(finding("TLA106")), 2.0))
    where = {"domain": "target"}
    assert not list(inputs._counted(audits(finding("TLA208", metric("unreadable", 5.0, slice=where))), "unreadable", 5))
    assert list(inputs._counted(audits(finding("TLA208", metric("unreadable", 4.0, slice=where))), "unreadable", 5))


def limit(metric: str, outcome: Any = "met", **slice: str) -> LimitOutcome:
    return LimitOutcome(metric=metric, slice=slice, level="warn", bound="max", value=0.1, rule="interval", origin="ours", outcome=outcome)


def test_a_pass_that_lost_a_limit_must_say_so_unless_the_limit_spoke_of_what_is_gone(monkeypatch):
    full = finding("TLA402", status="pass", limits=(limit("a"), limit("b", domain="train"), limit("c", model="base")))
    monkeypatch.setattr(governance, "_full", lambda kind, seed: SimpleNamespace(findings=(full,)))

    def said(*limits: LimitOutcome, **more: Any) -> list[str]:
        now = finding("TLA402", status=more.pop("status", "pass"), limits=limits, **more)
        return list(governance._no_pass_that_depended_on_it(audits(now), name="base", kind="tabular", seed=0))

    assert not said(limit("a"), limit("b", domain="train"))
    assert said(limit("a"))
    assert said(limit("a"), limit("b", "not_judged", domain="train"))
    assert not said(limit("a"), caveats=("Not looked at: train, without a base.",))
    assert not said(limit("a"), status="inconclusive")


def test_the_checks_that_need_a_part_are_those_that_declare_it():
    codes = {name: {one.code for one in governance.expected(name)} for name in governance.PARTS}
    assert {"TLA103", "TLA302", "TLA402", "TLA403"} <= codes["base"]
    assert "TLA301" not in codes["base"] | codes["groups"] | codes["source"]
    assert "TLA607" in codes["groups"] - codes["base"], "the head control takes the base's place there"
    assert {"TLA501", "TLA509"} <= codes["source"]
    assert all(one.statuses == ("not_evaluated",) for name in governance.PARTS for one in governance.expected(name))
