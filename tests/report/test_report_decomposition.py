"""The parts of a shift as one table: effect, interval, chance, p and status of each, and whether it does harm."""

from __future__ import annotations

import pytest

from tl_audit.records.findings import Finding
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.report.page import Counters, Pictures, _decomposition, finding_view

PARTS = ("Inputs (covariate)", "Class mix (label)", "Look of a class (conditional)", "Meaning of a class (concept)", "Predictions")


def number(name: str, value: float | None, **more: object) -> Metric:
    return Metric(name=name, value=value, **({"reason": "no interval"} | more))  # type: ignore[arg-type]


def finding(code: str, status: str, *metrics: Metric, reason: str = "said", summary: str = "measured") -> Finding:
    measurement = Measurement(summary=summary, metrics=metrics) if metrics else None
    return Finding(code=code, section="shift", title=code, status=status, severity="high", reason=reason, measurement=measurement)  # type: ignore[arg-type]


def table(*findings: Finding):
    ids = Counters()
    return _decomposition([finding_view(one, ids, Pictures(), source="policy") for one in findings], ids)


def row_of(grid, part: str):
    return next(row for row in grid.rows if row[0].text.startswith(part))


def test_each_part_shows_effect_interval_chance_p_and_status():
    auc = number(
        "c2st_auc", 0.81, interval=(0.77, 0.85), confidence=0.95, null=0.5, p_value=0.001, p_adjusted=0.002, n={"source": 90, "target": 41}
    )
    _, measured, effect, interval, chance, p, n, link = row_of(table(finding("TLA501", "warn", auc)), "Inputs")
    assert measured.text == "AUC of telling source from target"
    assert (effect.text, interval.text, chance.text, p.text) == ("0.81", "0.77–0.85", "0.5", "0.0020")
    assert n.text == "source 90, target 41"
    assert (link.text, link.status) == ("TLA501", "warn")


def test_of_classes_the_one_furthest_from_chance_speaks_and_says_so():
    by_class = [number("c2st_auc_class", value, null=0.5, slice={"class": name}) for name, value in (("a", 0.55), ("b", 0.71), ("c", None))]
    other = number("c2st_auc_class", 0.99, null=0.5, slice={"class": "b", "features": "adapted"})
    row = row_of(table(finding("TLA503", "warn", *by_class, other)), "Look")
    assert row[2].text.startswith("0.71")
    assert row[1].note == "class = b, furthest from chance of 3"


def test_a_part_that_was_not_measured_is_said_so_with_its_reason_and_never_green():
    grid = table(finding("TLA502", "not_evaluated", reason="needs labels of the source domain"))
    row = row_of(grid, "Class mix")
    assert (row[1].text, row[1].note) == ("not measured", "needs labels of the source domain")
    assert row[-1].status == "not_evaluated"
    for part in (*PARTS[:1], *PARTS[2:], "Harm"):
        assert row_of(grid, part)[1].text == "not measured"
        assert "is not part of this audit" in row_of(grid, part)[-1].text
        assert row_of(grid, part)[-1].status == ""


def test_a_number_that_is_not_defined_shows_why():
    row = row_of(
        table(finding("TLA504", "inconclusive", number("concept_gain", None, reason="only 3 % could come from either domain"))), "Meaning"
    )
    assert (row[2].text, row[2].note) == ("not defined", "only 3 % could come from either domain")
    assert row[-1].status == "inconclusive"


@pytest.mark.parametrize(
    ("findings", "note"),
    [
        ((), "Whether it does harm was not measured: TLA509 is not part of this audit."),
        ((finding("TLA509", "not_evaluated", reason="needs labels"),), "Whether it does harm was not measured: needs labels"),
        ((finding("TLA509", "fail", number("accuracy_drop", 0.2), summary="A drop of 0.2."),), "Harm (TLA509): A drop of 0.2."),
    ],
)
def test_the_table_ends_with_the_harm(findings, note):
    assert table(*findings).note == note


def test_parts_stand_in_one_order_with_harm_last():
    heads = [row[0].text for row in table().rows]
    assert heads == [*PARTS, "Harm: does the error rise?"]
