"""Shift over time and site (TLA508): the first period that left is named, equal periods are left alone."""

from __future__ import annotations

import numpy as np
import pytest

from tests.checks.arrays import measure
from tests.checks.worlds_of_slices import SlicedEvidence, answers, clustered_noise
from tl_audit.checks.base import lacking
from tl_audit.checks.shift_over_time import shift_over_time
from tl_audit.errors import NotEvaluated
from tl_audit.modality.periods import periods_of
from tl_audit.policy import judge, load_policy
from tl_audit.records.findings import Finding
from tl_audit.records.metrics import Measurement
from tl_audit.runner import corrected

POLICY = load_policy("default")
MONTHS = tuple(f"2024-{k:02d}" for k in range(1, 7))


def world(
    seed: int, *, step: int | None = None, site: str | None = None, fall: float = 0.0, n: int = 80, of_source: int = 200,
    clustered: bool = False, periods: int = 6,
) -> SlicedEvidence:  # fmt: skip
    """A target of some periods and two sites; from period ``step`` on, or at one site, one feature moves by 1.5."""
    rng = np.random.default_rng(seed)
    evidence = SlicedEvidence()
    total = periods * n
    when = np.repeat(np.arange(periods), n)
    where = rng.choice(np.array(["north", "south"], dtype=object), total)
    for role, rows in (("source", of_source), ("target", total)):
        cluster = np.arange(rows) // 5 if clustered else None
        x = clustered_noise(rng, rows, 5, cluster)
        labels = rng.integers(0, 2, rows)
        right = np.full(rows, 0.85)
        if role == "target":
            x[(when >= (periods if step is None else step)) | (where == site), 0] += 1.5
            right -= fall * when
        evidence.domain(role, labels, cluster=None if cluster is None else [f"{role} {c}" for c in cluster])
        for key in ("base", "adapted"):
            evidence.with_features(key, role, x)
        evidence.outputs("adapted", role, answers(labels, rng.random(rows) > right))
    evidence.when = periods_of([f"{MONTHS[k]}-15" for k in when], total, "month")
    evidence.where = where
    return evidence


def asked(evidence: SlicedEvidence, seed: int = 0) -> Measurement:
    return measure(shift_over_time, evidence, "base", "adapted", seed=seed)


def judged(measurement: Measurement) -> Finding:
    check = shift_over_time
    return judge(check.code, check.title, check.section, check.severity, corrected(measurement, check), POLICY)


@pytest.mark.parametrize("step", [1, 4])
def test_the_first_period_after_a_step_is_the_first_that_fires(step):
    found = asked(world(2, step=step))
    assert found.params["first_period_shifted"] == MONTHS[step]
    assert found.summary.startswith(f"The target leaves the source first in {MONTHS[step]} (AUC")
    finding = judged(found)
    assert finding.status == "warn"
    broken = {limit.slice["period"] for limit in finding.limits if limit.outcome == "broken" and "period" in limit.slice}
    assert broken == set(MONTHS[step:])
    assert "TLA509" in finding.reason


def test_the_site_that_differs_is_named_and_the_other_is_not():
    found = asked(world(4, site="south"))
    assert "1 of 2 sites differ from the source: south (AUC" in found.summary
    broken = {tuple(limit.slice.items()) for limit in judged(found).limits if limit.outcome == "broken"}
    assert ("site", "south") in {pair for slice in broken for pair in slice}
    assert ("site", "north") not in {pair for slice in broken for pair in slice}


def test_accuracy_that_falls_has_a_slope_and_no_shift():
    found = asked(world(5, fall=0.06))
    slope = found.select("trend_accuracy")
    assert slope.value == pytest.approx(-0.06, abs=0.02)
    assert slope.p_value == pytest.approx(0.001)
    assert slope.unit == "per month"
    assert judged(found).status in {"pass", "inconclusive"}
    rates = [found.select("accuracy_slice", period=month).value for month in MONTHS]
    assert rates[0] > rates[-1] + 0.15


@pytest.mark.slow
@pytest.mark.parametrize("clustered", [False, True])
def test_equal_periods_and_sites_are_left_alone(clustered):
    runs = 12
    accused = 0
    for seed in range(runs):
        evidence = world(seed, n=60, of_source=120, periods=3, clustered=clustered)
        accused += judged(asked(evidence, seed)).status in ("warn", "fail")
    assert accused <= 2


def test_clusters_are_what_is_counted():
    found = asked(world(1, n=60, of_source=200, clustered=True))
    assert found.select("c2st_auc_slice", period=MONTHS[0]).clusters == {"target": 12}
    assert not any("Rows are treated as independent" in caveat for caveat in found.caveats)


def test_the_order_of_rows_and_the_names_of_sites_do_not_matter():
    evidence, turned = world(3, step=2, n=60, of_source=150), world(3, step=2, n=60, of_source=150)
    turned.where = np.array([{"north": "z", "south": "a"}[name] for name in turned.where], dtype=object)
    one, two = asked(evidence), asked(turned)
    assert one.select("mmd2_slice", site="north").value == pytest.approx(two.select("mmd2_slice", site="z").value)
    assert one.select("trend_accuracy").value == two.select("trend_accuracy").value


def test_periods_too_small_are_listed_and_their_rows_still_count_in_the_slope():
    evidence = world(6, n=60)
    names = evidence.when.names
    codes = evidence.when.codes.copy()
    codes[(codes == 5) & (np.arange(codes.size) % 2 == 0)] = -1
    evidence.when = type(evidence.when)(codes, names, evidence.when.positions, "month")
    found = asked(evidence)
    assert any(caveat == "Periods not compared, fewer than 50 samples or 5 clusters: 2024-06." for caveat in found.caveats)
    assert not [m for m in found.metrics if m.slice.get("period") == "2024-06"]
    assert found.select("trend_accuracy").n == {"target": 6 * 60 - 30}


def test_one_site_alone_is_no_slice_and_nothing_left_is_said():
    evidence = world(7, n=60)
    evidence.where = np.full(evidence.where.size, "north", dtype=object)
    assert any(caveat == "The target has one site only, which TLA501 compares." for caveat in asked(evidence).caveats)
    evidence.when = None
    with pytest.raises(NotEvaluated, match=r"two periods or two sites in the target.*The target has one site only"):
        asked(evidence)


def test_without_labels_the_shift_is_still_told():
    evidence = world(8, step=3)
    evidence._unlabelled.add("target")
    found = asked(evidence)
    assert found.params["first_period_shifted"] == MONTHS[3]
    assert not [m for m in found.metrics if m.name in ("accuracy_slice", "trend_accuracy")]
    assert any(caveat.startswith("Accuracy by period and site is left out") for caveat in found.caveats)


def test_constant_features_are_no_shift_and_no_exception():
    evidence = world(9)
    for role in ("source", "target"):
        evidence.with_features("base", role, np.ones((evidence.n(role), 2)))
    found = asked(evidence)
    assert found.select("mmd2_slice", period=MONTHS[0]).value is None
    assert found.params["first_period_shifted"] is None


def test_figures_show_periods_in_order_and_sites_by_size_of_shift():
    found = asked(world(2, step=3, site="south"))
    by_id = {exhibit.id: exhibit for exhibit in found.exhibits}
    assert by_id["shift-by-period"].x_ticks == MONTHS
    assert by_id["accuracy-by-period"].lines[1].name == "trend"
    assert [dot.label for dot in by_id["shift-by-site"].dots] == ["south", "north"]
    assert len(by_id["slices"].rows) == 8


def test_a_target_without_times_and_sites_is_not_evaluated_and_says_what_to_give():
    import tl_audit as ta

    class There:
        target = ta.Domain("t", np.zeros((3, 2), dtype=np.float32), kind="tensor")

        def domain(self, role: str) -> object:
            return getattr(self, role, None)

    need = next(need for need in shift_over_time.needs if "time" in need)
    assert (
        lacking(need, There(), None, {})
        == "times of the target domain: time = ... in [target] or sites of the target domain: site = ... in [target]"
    )
    There.target = ta.Domain("t", np.zeros((3, 2), dtype=np.float32), kind="tensor", site=["a", "b", "a"])
    assert lacking(need, There(), None, {}) is None
