"""Checks of numbers: gain over the mean, paired changes, gaps between domains and groups, drift, and the one place that says "needs classes"."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tl_audit.checks import BUILTIN, mean_error
from tl_audit.checks.base import CLASSES, Check, Context, lacking
from tl_audit.errors import NotEvaluated
from tl_audit.policy import Rules, judge, load_policy
from tl_audit.records.metrics import Measurement, Metric

BY_CODE = {one.code: one for one in BUILTIN}


class Numbers:
    """Evidence of numbers made of arrays; whatever was not given raises NotEvaluated."""

    def __init__(self) -> None:
        self._values: dict[str, np.ndarray] = {}
        self._given: dict[tuple[str, str], np.ndarray] = {}
        self._groups: dict[str, Any] = {}
        self._cluster: dict[str, np.ndarray] = {}
        self.rules, self.seed, self.samples, self.methods = Rules(), 0, "off", ()

    def domain(self, role: str, values: Any, *, cluster: Any = None, **groups: Any) -> Numbers:
        self._values[role] = np.asarray(values, dtype=np.float64)
        self._groups[role] = {k: np.asarray(v, dtype=object) for k, v in groups.items()}
        if cluster is not None:
            self._cluster[role] = np.asarray(cluster, dtype=object)
        return self

    def model(self, key: str, role: str, given: Any) -> Numbers:
        self._given[key, role] = np.asarray(given, dtype=np.float64)
        return self

    def values(self, role: str) -> np.ndarray:
        if role not in self._values:
            raise NotEvaluated(f"labels of the {role}")
        return self._values[role]

    def predictions(self, model: str, role: str) -> np.ndarray:
        if (model, role) not in self._given:
            raise NotEvaluated(f"outputs of {model} on {role}")
        return self._given[model, role]

    def ids(self, role: str) -> tuple[str, ...]:
        return tuple(f"{role}-{i}" for i in range(len(self._given["adapted", role])))

    def groups(self, role: str) -> dict[str, np.ndarray]:
        return self._groups.get(role, {})

    def cluster(self, role: str) -> np.ndarray | None:
        return self._cluster.get(role)


def subject(*models: str, unit: str | None = "mm", same: tuple[str, ...] = ()) -> Any:
    known = {"adapted", *models}
    return SimpleNamespace(task="regression", unit=unit, record=None, same_as_adapted=same, model=lambda key: key if key in known else None)


def measured(function: Any, evidence: Numbers, who: Any = None) -> Measurement:
    found = function(who or subject(), evidence, Context(Rules(), 0, {}))
    assert isinstance(found, Measurement)
    assert Measurement.model_validate_json(found.model_dump_json(context={"ladder": True})) == found
    return found


def one(found: Measurement, name: str, **where: str) -> Metric:
    (metric,) = [m for m in found.metrics if m.name == name and dict(m.slice) == where]
    return metric


def status(code: str, found: Measurement) -> str:
    check = BY_CODE[code]
    return judge(code, check.title, check.section, check.severity, found, load_policy("default")).status


def world(n: int = 200, *, noise: float = 5.0, seed: int = 0) -> Numbers:
    """Target and training data of spread 20 around 100, a model that is off by ``noise``."""
    draw = np.random.default_rng(seed)
    truth = draw.normal(100, 20, n)
    return (
        Numbers()
        .domain("target", truth)
        .domain("train", draw.normal(100, 20, 300))
        .model("adapted", "target", truth + draw.normal(0, noise, n))
    )


# 301 ----------------------------------------------------------------------------------------------------------------------------


def test_gain_over_the_training_mean_by_hand():
    evidence = (
        Numbers().domain("target", [0.0, 4.0, 8.0, 12.0]).domain("train", [1.0, 3.0]).model("adapted", "target", [1.0, 4.0, 6.0, 12.0])
    )
    found = measured(mean_error.overall, evidence)
    assert one(found, "mae").value == pytest.approx(0.75)
    assert one(found, "mae").null == pytest.approx((2 + 2 + 6 + 10) / 4)  # the training mean is 2
    assert one(found, "gain_over_mean").value == pytest.approx(5.0 - 0.75)
    assert one(found, "gain_over_mean_scaled").value == pytest.approx(4.25 / np.sqrt(2))
    assert one(found, "mae").unit == "mm"
    assert (found.params["training_mean"], found.params["scale_from"]) == (2.0, "training data")


def test_a_good_model_passes_and_one_that_says_the_mean_does_not():
    good = measured(mean_error.overall, world())
    assert status("TLA301", good) == "pass"
    evidence = world()
    flat = measured(mean_error.overall, evidence.model("adapted", "target", np.full(200, evidence.values("train").mean())))
    assert (one(flat, "gain_over_mean").value, one(flat, "gain_over_mean").p_value) == (0.0, 1.0)
    assert status("TLA301", flat) == "inconclusive"
    wrong = measured(mean_error.overall, evidence.model("adapted", "target", 200 - evidence.values("target")))
    assert status("TLA301", wrong) == "fail"


def test_without_training_data_the_target_stands_in_and_this_is_said():
    evidence = world()
    del evidence._values["train"]
    found = measured(mean_error.overall, evidence)
    assert found.params["scale_from"] == "target"
    assert any("stand in" in text for text in found.caveats)


def test_rows_without_value_or_finite_output_are_left_out_and_counted():
    evidence = world()
    evidence.values("target")[3] = np.nan
    evidence.predictions("adapted", "target")[7] = np.nan
    found = measured(mean_error.overall, evidence)
    assert one(found, "mae").n == {"target": 198}
    assert any("2 rows are left out" in text for text in found.caveats)


def test_another_unit_changes_numbers_but_no_verdict_and_no_scaled_number():
    evidence = world()
    other = Numbers().domain("target", 10 * evidence.values("target")).domain("train", 10 * evidence.values("train"))
    other.model("adapted", "target", 10 * evidence.predictions("adapted", "target"))
    a, b = measured(mean_error.overall, evidence), measured(mean_error.overall, other)
    assert one(b, "mae").value == pytest.approx(10 * one(a, "mae").value)
    assert one(b, "gain_over_mean_scaled").value == pytest.approx(one(a, "gain_over_mean_scaled").value)
    assert status("TLA301", a) == status("TLA301", b)


# 302, 401 -----------------------------------------------------------------------------------------------------------------------


def test_the_same_model_changes_nothing_and_a_worse_one_fails():
    evidence = world()
    given = evidence.predictions("adapted", "target")
    same = measured(mean_error.against, evidence.model("previous", "target", given), subject("previous"))
    assert (one(same, "mae_change", against="previous").value, one(same, "mae_change", against="previous").p_value) == (0.0, 1.0)
    assert status("TLA302", same) == "pass"
    evidence.model("previous", "target", evidence.values("target") + 0.2 * (given - evidence.values("target")))
    worse = measured(mean_error.against, evidence, subject("previous"))
    assert one(worse, "mae_change", against="previous").value > 0
    assert status("TLA302", worse) == "fail"


def test_a_base_that_gives_no_number_is_said_and_not_compared():
    with pytest.raises(NotEvaluated, match="Not compared with the base model"):
        measured(mean_error.against, world(), subject("base"))


def test_gain_over_controls_is_paired_and_names_what_is_missing():
    evidence = world(noise=4.0)
    truth = evidence.values("target")
    evidence.model("control:scratch", "target", truth + 3 * (evidence.predictions("adapted", "target") - truth))
    found = measured(mean_error.transfer_gain, evidence, subject("control:scratch"))
    assert one(found, "mae_gain_over_scratch").value == pytest.approx(2 * np.abs(evidence.predictions("adapted", "target") - truth).mean())
    assert status("TLA401", found) == "pass"
    assert one(found, "mae_gain_over_head_scaled").value is None
    back = measured(
        mean_error.transfer_gain,
        world(noise=4.0)
        .model("adapted", "target", evidence.predictions("control:scratch", "target"))
        .model("control:scratch", "target", evidence.predictions("adapted", "target")),
        subject("control:scratch"),
    )
    assert one(back, "mae_gain_over_scratch").value == pytest.approx(-one(found, "mae_gain_over_scratch").value)
    assert status("TLA401", back) == "fail"
    with pytest.raises(NotEvaluated, match="no control"):
        measured(mean_error.transfer_gain, world())


# 308, 509, 505 --------------------------------------------------------------------------------------------------------------------


def two_domains(role: str, extra: float) -> Numbers:
    draw = np.random.default_rng(5)
    evidence = world(400)
    other = draw.normal(100, 20, 400)
    evidence.domain(role, other).model("adapted", role, other + draw.normal(0, 5, 400))
    return evidence.model("adapted", "target", evidence.values("target") + draw.normal(0, 5 + extra, 400))


@pytest.mark.parametrize(
    ("code", "role", "function", "name"),
    [
        ("TLA308", "train", mean_error.train_gap, "generalisation_error_gap"),
        ("TLA509", "source", mean_error.harmful, "error_rise"),
    ],
)
def test_a_rise_of_the_error_between_domains_is_found_and_none_is_not(code: str, role: str, function: Any, name: str):
    quiet, loud = measured(function, two_domains(role, 0.0)), measured(function, two_domains(role, 10.0))
    assert status(code, quiet) == "pass"
    assert status(code, loud) in ("warn", "fail")
    assert one(loud, name).value == pytest.approx(10 * np.sqrt(2 / np.pi), rel=0.2)
    assert one(loud, f"{name}_scaled").value == pytest.approx(one(loud, name).value / loud.params["training_sd"])


def test_drift_of_the_predicted_number_is_found_without_labels():
    def drifted(by: float) -> Measurement:
        draw = np.random.default_rng(2)
        evidence = Numbers().domain("target", np.full(300, np.nan)).domain("train", draw.normal(100, 20, 100))
        evidence.model("adapted", "source", draw.normal(100, 20, 300)).model("adapted", "target", draw.normal(100 + by, 20, 300))
        return measured(mean_error.prediction_drift, evidence)

    assert status("TLA505", drifted(0.0)) == "pass"
    moved = drifted(10.0)
    assert status("TLA505", moved) == "warn"
    assert one(moved, "prediction_gap").value == pytest.approx(10, abs=4)


# 601, 602 -------------------------------------------------------------------------------------------------------------------------


def grouped(extra: float, *, n: int = 600, seed: int = 3) -> Numbers:
    draw = np.random.default_rng(seed)
    truth, groups = draw.normal(100, 20, n), np.where(np.arange(n) < n // 4, "few", "many")
    noise = np.where(groups == "few", 5 + extra, 5.0)
    return (
        Numbers()
        .domain("target", truth, site=groups)
        .domain("train", draw.normal(100, 20, 300))
        .model("adapted", "target", truth + noise * draw.normal(size=n))
    )


def test_errors_of_groups_by_hand():
    evidence = Numbers().domain("target", [0.0, 0.0, 0.0, 0.0], sex=["a", "a", "b", None]).domain("train", [0.0, 2.0])
    found = measured(mean_error.group_errors, evidence.model("adapted", "target", [1.0, -3.0, 5.0, 7.0]))
    assert [one(found, "mae", sex=g).value for g in ("a", "b", "(missing)")] == [2.0, 5.0, 7.0]
    assert [one(found, "mean_error", sex=g).value for g in ("a", "b", "(missing)")] == [-1.0, 5.0, 7.0]


def test_a_group_that_is_served_worse_is_found_at_150_of_600():
    quiet, loud = measured(mean_error.group_error_gaps, grouped(0.0)), measured(mean_error.group_error_gaps, grouped(10.0))
    assert status("TLA602", quiet) == "pass"
    assert status("TLA602", loud) == "fail"
    gap = one(loud, "error_gap", site="few")
    assert gap.value == pytest.approx(10 * np.sqrt(2 / np.pi), rel=0.2)
    assert one(loud, "error_gap_scaled", site="few").value == pytest.approx(gap.value / loud.params["training_sd"])
    assert loud.metrics[0].slice == {"site": "few"}  # the group served worst comes first
    assert gap.n == {"group": 150, "rest": 450}


def test_equal_groups_are_hardly_ever_accused():
    accused = 0
    for seed in range(60):
        draw = np.random.default_rng(seed)
        truth, given = draw.normal(0, 1, 400), draw.normal(0, 0.5, 400)
        evidence = Numbers().domain("target", truth, group=np.repeat(list("abcdefgh"), 50)).domain("train", draw.normal(0, 1, 200))
        accused += status("TLA602", measured(mean_error.group_error_gaps, evidence.model("adapted", "target", truth + given))) == "fail"
    assert accused == 0


def test_clusters_are_the_units_of_a_group_gap():
    evidence = grouped(3.0)
    plain = one(measured(mean_error.group_error_gaps, evidence), "error_gap", site="few")
    evidence._cluster["target"] = np.repeat(np.arange(60), 10).astype(object)
    found = one(measured(mean_error.group_error_gaps, evidence), "error_gap", site="few")
    assert plain.clusters is None
    assert found.clusters == {"target": 15}
    assert found.value == pytest.approx(plain.value)


def test_one_group_alone_is_not_compared():
    evidence = world().domain("target", world().values("target"), sex=["a"] * 200)
    with pytest.raises(NotEvaluated, match="One group only"):
        measured(mean_error.group_error_gaps, evidence)


def test_names_of_groups_do_not_matter():
    a = measured(mean_error.group_error_gaps, grouped(4.0))
    evidence = grouped(4.0)
    evidence._groups["target"]["site"] = np.where(evidence._groups["target"]["site"] == "few", "north", "south").astype(object)
    b = measured(mean_error.group_error_gaps, evidence)
    assert [m.value for m in a.metrics] == [m.value for m in b.metrics]


# which checks serve numbers -------------------------------------------------------------------------------------------------------


def test_checks_without_a_form_for_numbers_need_classes_and_nothing_else():
    served = {"TLA301", "TLA302", "TLA308", "TLA401", "TLA501", "TLA505", "TLA506", "TLA507", "TLA509", "TLA601", "TLA602", "TLA701", "TLA702", "TLA703", "TLA704"}  # fmt: skip
    for code in served:
        assert CLASSES not in BY_CODE[code].for_task("regression").needs, code
    for code in ("TLA107", "TLA204", "TLA303", "TLA304", "TLA305", "TLA306", "TLA402", "TLA502", "TLA503", "TLA603", "TLA604", "TLA803"):
        assert BY_CODE[code].for_task("regression").needs == (CLASSES,), code
    for check in BUILTIN:
        assert check.for_task("classification") is check


def test_the_help_is_that_of_the_form_which_is_measured():
    check = BY_CODE["TLA602"]
    numbers = check.for_task("regression")
    assert "mean absolute error" in numbers.help["measured"]
    assert "mean absolute error" not in check.help["measured"]
    for served in BUILTIN:
        form = served.for_task("regression")
        assert {"asks", "measured", "matters", "reduce"} <= set(form.help), served.code


def test_a_check_of_ones_own_needs_classes_unless_it_says_otherwise():
    own = Check("MY001", "Mine", "performance", "low", lambda subject, evidence, context: Measurement(summary=""))
    assert own.for_task("regression").needs == (CLASSES,)
    assert lacking(CLASSES, subject(), Numbers(), {}) == "classes: the labels of this audit are numbers (regression)"  # type: ignore[arg-type]
