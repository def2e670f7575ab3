"""A regression from adaptation to report: a library's table, pictures, a published network, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics as library
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from torch import nn
from typer.testing import CliRunner

import tl_audit as ta
from tl_audit.checks import BUILTIN
from tl_audit.checks.base import CLASSES
from tl_audit.cli import app
from tl_audit.config import run_audit
from tl_audit.errors import ConfigError, DataError, ModelError


@pytest.fixture(scope="module")
def diabetes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.csv, test.csv, plan.toml, audit.toml and the run."""
    folder = tmp_path_factory.mktemp("diabetes")
    frame = load_diabetes(as_frame=True, scaled=False).frame
    frame["sex"] = frame["sex"].map({1.0: "one", 2.0: "two"})
    order = np.random.default_rng(0).permutation(len(frame))
    frame.iloc[order[:300]].to_csv(folder / "train.csv", index=False)
    frame.iloc[order[300:]].to_csv(folder / "test.csv", index=False)
    (folder / "plan.toml").write_text(
        """
base = "tl_audit:mlp"
kind = "tabular"
controls = ["head", "scratch"]
[task]
kind = "regression"
unit = "points"
[data]
train = "train.csv"
validation = 0.2
label = "target"
[training]
early_stop = 8
[[stages]]
layers = "*"
epochs = 25
lr = 0.004
""",
        encoding="utf-8",
    )
    (folder / "audit.toml").write_text(
        """
[adapted]
run = "run"
[target]
path = "test.csv"
groups = ["sex"]
[source]
path = "train.csv"
[attribution]
methods = ["kernel_shap"]
samples = 8
[report]
samples = "on"
""",
        encoding="utf-8",
    )
    result = CliRunner().invoke(app, ["adapt", str(folder / "plan.toml"), "--out", str(folder / "run"), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "validation mean absolute error" in result.output
    return folder


@pytest.fixture(scope="module")
def audited(diabetes: Path) -> Any:
    found, paths = run_audit(diabetes / "audit.toml", out=diabetes / "report")
    return found, paths["html"].read_text(encoding="utf-8")


def finding(result: Any, code: str) -> Any:
    return next(f for f in result.findings if f.code == code)


def value(result: Any, code: str, name: str, **where: str) -> Any:
    (metric,) = [m for m in finding(result, code).measurement.metrics if m.name == name and dict(m.slice) == where]
    return metric.value


def test_a_table_is_adapted_and_audited_from_two_files(audited: Any, diabetes: Path):
    result, page = audited
    assert not [f.code for f in result.findings if f.status == "error"]
    assert finding(result, "TLA301").status == "pass"
    served = {check.code for check in BUILTIN if CLASSES not in check.for_task("regression").needs}
    for code in (
        "TLA301",
        "TLA308",
        "TLA401",
        "TLA501",
        "TLA505",
        "TLA507",
        "TLA509",
        "TLA601",
        "TLA602",
        "TLA701",
        "TLA702",
        "TLA703",
        "TLA704",
    ):
        assert finding(result, code).measurement is not None, finding(result, code).reason
    for found in result.findings:
        if found.code not in served:
            assert (found.status, found.missing) == ("not_evaluated", (CLASSES,)), found.code
            assert found.reason.startswith("needs classes: the labels of this audit are numbers"), found.reason
    assert "points" in page
    assert "142 numbers" in page
    assert "base model does not give a number" in finding(result, "TLA302").reason


def test_the_numbers_of_the_report_are_those_of_scikit_learn(audited: Any, diabetes: Path):
    from tl_audit.finetune import load_run
    from tl_audit.models.outputs import outputs

    run = load_run(diabetes / "run")
    target = ta.Domain("test", diabetes / "test.csv", label="target", task="regression")
    raw = target.samples.read(np.arange(len(target)))
    with torch.no_grad():
        given = (
            outputs(run.adapted.module(target.samples.modality.encode(raw, run.adapted.preprocessing)), run.adapted.output)[:, 0]
            .double()
            .numpy()
        )
    result, _ = audited
    assert value(result, "TLA301", "mae") == pytest.approx(library.mean_absolute_error(target.values, given), rel=1e-6)
    assert value(result, "TLA301", "r2") == pytest.approx(library.r2_score(target.values, given), rel=1e-6)
    flat = np.full(len(target), run.domain("train").values.mean())
    gain = library.mean_absolute_error(target.values, flat) - library.mean_absolute_error(target.values, given)
    assert value(result, "TLA301", "gain_over_mean") == pytest.approx(gain, rel=1e-6)
    assert value(result, "TLA301", "gain_over_mean_scaled") == pytest.approx(gain / run.domain("train").values.std(ddof=1), rel=1e-6)


def test_cards_and_record_say_what_the_target_is(audited: Any):
    result, _ = audited
    card = result.subject.target
    assert (card.labelled, card.classes, card.class_counts) == (True, None, {})
    assert (card.values.n, card.values.unit) == (142, "points")
    assert result.subject.train.values.sd == pytest.approx(value_sd(result), rel=1e-9)
    lineage = next(row for row in finding(result, "TLA101").measurement.exhibits[0].rows if row[0] == "classes")
    assert lineage[2] == "none: one number, points"


def value_sd(result: Any) -> float:
    return float(result.subject.adaptation["train"]["value_sd"])


def test_attributions_of_a_number_add_up_in_its_own_unit(audited: Any):
    result, _ = audited
    assert value(result, "TLA701", "completeness_bad_share", method="kernel_shap") == 0.0
    assert value(result, "TLA702", "faithfulness_gain", method="kernel_shap") > 0


def test_a_dry_run_and_the_same_audit_in_python_agree(audited: Any, diabetes: Path):
    result, _ = audited
    dry = CliRunner().invoke(app, ["run", str(diabetes / "audit.toml"), "--dry-run"])
    assert dry.exit_code == 0, dry.output
    report = ta.audit(
        diabetes / "run",
        target=ta.Domain("test.csv", diabetes / "test.csv", label="target", task="regression", unit="points", groups=["sex"]),
        select=["TLA301", "TLA601"],
    )
    assert value(report.result, "TLA301", "mae") == value(result, "TLA301", "mae")
    assert value(report.result, "TLA601", "mae", sex="one") == value(result, "TLA601", "mae", sex="one")


def test_explain_needs_no_class_and_refuses_one(diabetes: Path, tmp_path: Path):
    runner = CliRunner()
    asked = ["explain", "--model", str(diabetes / "run"), "--input", str(diabetes / "test.csv"), "--out", str(tmp_path / "maps")]
    made = runner.invoke(app, [*asked, "--method", "kernel_shap", "--row", "0", "--row", "1", "--base"])
    assert made.exit_code == 0, made.output
    assert "head control" in made.output
    assert (tmp_path / "maps" / "explanations.html").is_file()
    refused = runner.invoke(app, [*asked, "--target", "true"])
    assert refused.exit_code != 0
    assert "the model gives one number" in str(refused.exception)


# Pictures -----------------------------------------------------------------------------------------------------------------------


def blobs(n: int, seed: int) -> ta.Domain:
    """Squares of 3 to 13 pixels on 16 × 16; the number is their area."""
    draw = np.random.default_rng(seed)
    sides = draw.integers(3, 14, size=n)
    pictures = np.zeros((n, 16, 16, 3), dtype=np.uint8)
    for picture, side in zip(pictures, sides, strict=True):
        top, left = draw.integers(0, 17 - side, size=2)
        picture[top : top + side, left : left + side] = 220
    groups = {"half": np.where(np.arange(n) % 2 == 0, "even", "odd")}
    return ta.Domain(f"blobs {seed}", pictures, labels=(sides**2).astype(float), task="regression", unit="px²", groups=groups)


def test_the_area_of_a_blob_is_adapted_to_and_audited(tmp_path: Path):
    plan = ta.Plan(
        base="tl_audit:small_cnn", kind="image", task=ta.Regression("huber"), settings={"widths": [8, 16]}, data={"validation": 0.25},
        stages=[ta.Stage("*", epochs=10, lr=0.02)], controls=("head",),
    )  # fmt: skip
    ta.adapt(plan, blobs(96, 0), out=tmp_path / "run", progress="none", device="cpu")
    report = ta.audit(
        tmp_path / "run", target=blobs(64, 1), source=blobs(64, 2), methods=("grad_cam", "kernel_shap"), attribution_samples=8, budget=64,
        select=["TLA1", "TLA2", "TLA3", "TLA4", "TLA5", "TLA6", "TLA701", "TLA702", "TLA703", "TLA704", "TLA711"], samples="on",
    )  # fmt: skip
    result = report.result
    assert not [(f.code, f.reason) for f in result.findings if f.status == "error"]
    assert finding(result, "TLA301").status == "pass"
    assert value(result, "TLA401", "mae_gain_over_head") is not None
    for code in ("TLA505", "TLA506", "TLA507", "TLA509", "TLA602", "TLA701", "TLA702", "TLA703", "TLA704"):
        assert finding(result, code).measurement is not None, finding(result, code).reason
    assert finding(result, "TLA505").status != "fail"


# A published network --------------------------------------------------------------------------------------------------------------


@pytest.mark.real_data
def test_the_california_network_has_its_published_error(shared_data: Path):
    folder = shared_data / "captum_tabular"
    f = pd.read_csv(folder / "cal_housing_first600.csv")
    columns = {
        "income": f["medianIncome"], "age": f["housingMedianAge"], "rooms": f["totalRooms"] / f["households"],
        "bedrooms": f["totalBedrooms"] / f["households"], "population": f["population"], "occupancy": f["population"] / f["households"],
        "latitude": f["latitude"], "longitude": f["longitude"],
    }  # fmt: skip
    x = np.stack(list(columns.values()), axis=1)
    train_x, test_x, train_y, test_y = train_test_split(x, f["medianHouseValue"].to_numpy() / 1e5, test_size=0.3, random_state=0)
    network = nn.Sequential()
    sizes = (8, 100, 50, 10, 1)
    for i in range(4):
        network.add_module(f"lin{i + 1}", nn.Linear(sizes[i], sizes[i + 1]))
        if i < 3:
            network.add_module(f"relu{i + 1}", nn.ReLU())
    network.load_state_dict(torch.load(folder / "california_model.pt", weights_only=True))

    def domain(name: str, rows: np.ndarray, values: np.ndarray) -> ta.Domain:
        return ta.Domain(name, rows.astype(np.float32), labels=values, names=list(columns), task="regression", unit="100 000 $")

    subject = ta.Subject(
        adapted=ta.Model(network, output=ta.Value(unit="100 000 $")),
        target=domain("test", test_x, test_y),
        train=domain("train", train_x, train_y),
    )
    result = ta.audit(subject, select=["TLA301", "TLA308"]).result
    assert value(result, "TLA301", "rmse") == pytest.approx(0.65797454, abs=1e-6)
    assert finding(result, "TLA301").status == "pass"
    assert value(result, "TLA308", "generalisation_error_gap") > 0


# What is refused ----------------------------------------------------------------------------------------------------------------


def table(**more: Any) -> ta.Domain:
    draw = np.random.default_rng(0)
    return ta.Domain("t", draw.normal(size=(40, 3)).astype(np.float32), **more)


def test_a_bare_network_is_taken_to_give_the_number_of_the_target():
    subject = ta.Subject(nn.Linear(3, 1), table(labels=np.arange(40.0), task="regression", unit="mm"))
    assert subject.task == "regression"
    assert subject.adapted.output == ta.Value(unit="mm")
    assert subject.adapted.facts["value_assumed"]


def test_model_and_target_must_be_of_one_task():
    numbers, names = table(labels=np.arange(40.0), task="regression"), table(labels=["a", "b"] * 20)
    with pytest.raises(ModelError, match=r"holds numbers and .* names classes"):
        ta.Subject(ta.Model(nn.Linear(3, 2), classes=("a", "b")), numbers)
    with pytest.raises(ModelError, match="gives a number and t does not hold numbers"):
        ta.Subject(ta.Model(nn.Linear(3, 1), output=ta.Value()), names)
    with pytest.raises(DataError, match="the source domain t is a classification, the target a regression"):
        ta.Subject(ta.Model(nn.Linear(3, 1), output=ta.Value()), numbers, source=names)


def test_a_network_of_two_outputs_cannot_be_audited_as_one_number():
    subject = ta.Subject(nn.Linear(3, 2), table(labels=np.arange(40.0), task="regression"))
    with pytest.raises(ModelError, match="2 columns"):
        ta.audit(subject, select=["TLA301"])


def test_a_missing_target_column_leaves_the_checks_without_labels():
    subject = ta.Subject(nn.Linear(3, 1), table(task="regression"))
    assert not subject.target.labelled
    result = ta.audit(subject, select=["TLA301"]).result
    found = finding(result, "TLA301")
    assert (found.status, found.missing) == ("not_evaluated", ("target.labels",))
    assert any("taken for the target's number itself" in text for text in result.caveats)


def test_weights_of_one_number_are_named_so_in_audit_toml(tmp_path: Path):
    from tl_audit.config import load_audit

    text = '[adapted]\nweights = "w.safetensors"\narch = "m:f"\nclasses = ["a", "b"]\nvalue = { mean = 1.0 }\n[target]\npath = "t.csv"\n'
    (tmp_path / "audit.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="leave classes out"):
        load_audit(tmp_path / "audit.toml")
