"""adapt() where the target is a number: standardisation, losses, early stopping, controls, the run directory, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_diabetes
from torch import nn

import tl_audit as ta
from tl_audit.errors import ConfigError, DataError
from tl_audit.finetune import Plan, load_run
from tl_audit.finetune.inputs import align_values, fit_value
from tl_audit.finetune.loss import NumberLoss
from tl_audit.models import tensor_hash
from tl_audit.models.outputs import outputs, read_outputs


def line(n: int = 120, *, slope: float = 2.0, start: float = 50.0, seed: int = 0) -> pd.DataFrame:
    """y = start + slope · x + noise, beside a column of noise."""
    draw = np.random.default_rng(seed)
    x, z = draw.normal(size=n), draw.normal(size=n)
    return pd.DataFrame({"x": x, "z": z, "y": start + slope * x + 0.1 * slope * draw.normal(size=n)})


def plan(**changes: Any) -> Plan:
    parts: dict[str, Any] = {
        "base": "tl_audit:mlp",
        "kind": "tabular",
        "task": ta.Regression(),
        "stages": [ta.Stage("*", epochs=8, lr=0.01)],
        "data": {"label": "y", "validation": 0.25},
        "settings": {"hidden": [16]},
    }
    return Plan(**{**parts, **changes})


def predicted(made: Any, frame: pd.DataFrame) -> np.ndarray:
    domain = ta.Domain("all", frame, label="y", task="regression")
    raw = domain.samples.read(np.arange(len(domain)))
    with torch.no_grad():
        found = outputs(made.model.module(domain.samples.modality.encode(raw, made.model.preprocessing)), made.model.output)
    return found[:, 0].double().numpy()


def _scale_of(values: list[Any]) -> ta.Value:
    domain = ta.Domain("t", np.ones((4, 3), dtype=np.float32), labels=values, task="regression")
    return fit_value(align_values("train", domain)[0], standardise=True, name=None, unit=None)


def quick(asked: Plan, frame: Any, **rest: Any) -> Any:
    return ta.adapt(asked, frame, progress="none", device="cpu", **rest)


# What is learned ----------------------------------------------------------------------------------------------------------------


def test_a_line_is_learned_and_read_in_its_own_unit():
    frame = line(n=240)
    made = quick(plan(stages=[ta.Stage("*", epochs=30, lr=0.01)]), frame)
    error = np.abs(predicted(made, frame) - frame["y"]).mean()
    assert error < 0.25 * np.abs(frame["y"] - frame["y"].mean()).mean()
    last = made.record.stages[0].history[made.record.stages[0].best_epoch - 1]
    assert last["val_mae"] < 0.6  # noise of 0.2 in the unit of y
    assert made.model.classes is None
    assert made.model.task == "regression"


def test_the_scale_is_fitted_on_the_training_part_only():
    frame = line()
    made = quick(plan(), frame)
    train, held = made.train, made.validation
    assert train is not None
    assert held is not None
    assert len(train) + len(held) == len(frame)
    value = made.model.output
    assert isinstance(value, ta.Value)
    assert (value.mean, value.scale) == pytest.approx((train.values.mean(), train.values.std(ddof=1)), abs=1e-12)
    assert value.mean != pytest.approx(frame["y"].mean(), abs=1e-6)
    assert made.record.task["value"] == {"mean": value.mean, "scale": value.scale, "name": "y", "unit": None}
    assert (made.record.train.value_mean, made.record.train.value_sd) == (value.mean, value.scale)
    assert made.record.train.class_counts == {}


def test_another_unit_of_the_target_gives_the_same_network_and_predictions_in_that_unit():
    frame = line()
    fahrenheit = frame.assign(y=1.8 * frame["y"] + 32)
    one, other = quick(plan(), frame), quick(plan(), fahrenheit)
    assert 1.8 * predicted(one, frame) + 32 == pytest.approx(predicted(other, fahrenheit), abs=2e-3)
    mae = [made.record.stages[0].history[-1]["val_mae"] for made in (one, other)]
    assert mae[1] == pytest.approx(1.8 * mae[0], rel=1e-3)


def test_without_standardisation_the_network_gives_the_value_itself():
    frame = line(start=0.0, slope=1.0)
    made = quick(plan(task=ta.Regression(standardise=False, unit="mm")), frame)
    value = made.model.output
    assert isinstance(value, ta.Value)
    assert (value.mean, value.scale, value.unit) == (0.0, 1.0, "mm")
    assert np.abs(predicted(made, frame) - frame["y"]).mean() < 0.7


def test_equal_seeds_give_equal_bits_and_another_seed_does_not():
    frame = line()
    first, again, other = quick(plan(), frame), quick(plan(), frame), quick(plan(seed=1), frame)
    assert tensor_hash(first.model.module) == tensor_hash(again.model.module)
    assert tensor_hash(first.model.module) != tensor_hash(other.model.module)


def test_the_best_epoch_is_that_of_the_lowest_validation_loss_and_early_stopping_ends_the_fit():
    frame = line(n=60)
    made = quick(plan(stages=[ta.Stage("*", epochs=60, lr=0.05)], training={"early_stop": 3}), frame)
    stage = made.record.stages[0]
    losses = [row["val_loss"] for row in stage.history]
    assert stage.best_epoch == 1 + int(np.argmin(losses))
    assert stage.stopped_early
    assert len(losses) == stage.best_epoch + 3


def test_clusters_are_not_cut_by_the_validation_part():
    frame = line().assign(person=np.repeat(np.arange(30), 4))
    made = quick(plan(data={"label": "y", "validation": 0.25, "cluster": "person"}), frame)
    assert not set(made.train.cluster) & set(made.validation.cluster)


def test_the_area_of_a_blob_is_learned_from_pictures():
    draw = np.random.default_rng(0)
    sides = draw.integers(3, 14, size=96)
    pictures = np.zeros((96, 16, 16, 3), dtype=np.uint8)
    for picture, side in zip(pictures, sides, strict=True):
        top, left = draw.integers(0, 17 - side, size=2)
        picture[top : top + side, left : left + side] = 220
    domain = ta.Domain("blobs", pictures, labels=(sides**2).astype(float), task="regression", unit="px²")
    made = quick(
        plan(
            base="tl_audit:small_cnn", kind="image", settings={"widths": (8, 16)}, data={"validation": 0.25},
            stages=[ta.Stage("*", epochs=12, lr=0.02)], controls=("head",),
        ),
        domain,
    )  # fmt: skip
    row = made.record.stages[0].history[made.record.stages[0].best_epoch - 1]
    assert row["val_mae"] < 0.5 * np.abs(domain.values - domain.values.mean()).mean()
    assert made.model.output.unit == "px²"


# Losses -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "delta", "mean"),
    [("mse", 1.0, (0.25 + 9.0) / 2), ("mae", 1.0, (0.5 + 3.0) / 2), ("huber", 2.0, (0.125 + 2.0 * (3.0 - 1.0)) / 2)],
)
def test_losses_by_hand(kind: Any, delta: float, mean: float):
    given, wanted = torch.tensor([[0.5], [4.0]]), torch.tensor([1.0, 1.0])
    objective = NumberLoss(kind, delta, scale=10.0)
    assert float(objective.loss(given, wanted)) == pytest.approx(mean, abs=1e-6)
    loss, weight, score, n = objective.sums(given, wanted).tolist()
    assert objective.read(loss, weight, score, n) == pytest.approx({"val_loss": mean, "val_mae": 10 * (0.5 + 3.0) / 2})


def test_an_absolute_loss_minds_outliers_less_than_a_squared_one():
    frame = line(n=200)
    wild = frame.copy()
    wild.loc[:15, "y"] += 500.0
    errors = {}
    for loss in ("mse", "mae"):
        made = quick(plan(task=ta.Regression(loss), stages=[ta.Stage("*", epochs=20, lr=0.01)]), wild)
        errors[loss] = np.abs(predicted(made, frame) - frame["y"])[16:].mean()
    assert errors["mae"] < 0.5 * errors["mse"]


# Outputs ------------------------------------------------------------------------------------------------------------------------


def test_a_value_is_one_column_in_its_own_unit_and_keeps_its_gradient():
    z = torch.tensor([[0.5], [-1.0]], requires_grad=True)
    read = read_outputs({"y": z}, ta.Value(part="y", mean=10.0, scale=4.0))
    assert (read.logits.tolist(), read.width, read.value) == ([[12.0], [6.0]], 1, True)
    read.logits.sum().backward()
    assert z.grad.tolist() == [[4.0], [4.0]]


def test_a_network_of_two_numbers_is_refused_as_one_value():
    with pytest.raises(ta.TLAuditError, match=r"2 columns.*one number per sample"):
        outputs(torch.zeros(3, 2), ta.Value())


def test_a_model_is_either_of_classes_or_of_a_value():
    with pytest.raises(ta.TLAuditError, match="not both"):
        ta.Model(nn.Linear(2, 1), classes=("a", "b"), output=ta.Value())


# Run directory, controls, kept heads --------------------------------------------------------------------------------------------


def test_a_run_directory_gives_back_model_scale_and_data(tmp_path: Path):
    line().to_csv(tmp_path / "train.csv", index=False)
    asked = plan(data={"label": "y", "validation": 0.25, "train": "train.csv"}, task=ta.Regression(unit="mm"), controls=("head", "scratch"))
    (tmp_path / "plan.toml").write_text(asked.to_toml(), encoding="utf-8")
    made = ta.adapt(tmp_path / "plan.toml", out=tmp_path / "run", progress="none", device="cpu")
    run = load_run(tmp_path / "run")
    assert run.adapted.output == made.model.output
    assert {kind: model.output for kind, model in run.controls.items()} == {"head": made.model.output, "scratch": made.model.output}
    assert run.classes == ()
    train = run.domain("train")
    assert train.task == "regression"
    assert train.values.tolist() == made.train.values.tolist()
    assert [float(text) for text in run.samples["label"]][: len(train)] == train.values.tolist()
    again = ta.adapt(tmp_path / "plan.toml", out=tmp_path / "run", progress="none", device="cpu")
    assert again.reused
    other = asked.model_copy(update={"task": ta.Regression("mae", unit="mm")})
    (tmp_path / "plan.toml").write_text(other.to_toml(), encoding="utf-8")
    assert not ta.adapt(tmp_path / "plan.toml", out=tmp_path / "run", progress="none", device="cpu").reused


def test_a_plan_of_a_regression_reads_back_equal():
    for task in (ta.Regression(), ta.Regression("huber", delta=0.5), ta.Regression(standardise=False, unit="years")):
        asked = plan(task=task)
        read = Plan.from_text(asked.to_toml())
        assert (read, read.sha256) == (asked, asked.sha256)


def test_a_kept_head_goes_on_in_the_scale_of_its_base(tmp_path: Path):
    frame = line()
    made = quick(plan(), frame, out=tmp_path / "first")
    shifted = frame.assign(y=frame["y"] + 3)
    kept = quick(
        plan(base=f"run:{tmp_path / 'first'}", task=ta.Regression(head="keep"), settings={}, stages=[ta.Stage("*", epochs=1, lr=1e-6)]),
        shifted,
    )
    assert kept.model.output == made.model.output
    assert np.abs(predicted(kept, frame) - predicted(made, frame)).max() < 0.05
    new = quick(plan(base=f"run:{tmp_path / 'first'}", settings={}), shifted)
    assert new.model.output != made.model.output


def test_the_head_of_a_base_of_classes_cannot_be_kept():
    with pytest.raises(ConfigError, match="gives one number"):
        quick(plan(task=ta.Regression(head="keep")), line())


# Bad input ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["class_weights", "sampler", "label_smoothing", "classes", "positive"])
def test_what_belongs_to_classes_is_refused_in_one_sentence(name: str):
    with pytest.raises(ConfigError, match=f"{name} is of a task with classes"):
        ta.Regression(**{name: "balanced"})
    with pytest.raises(ConfigError, match=f"{name} is of a task with classes"):
        Plan.from_text(
            f'base = "tl_audit:mlp"\n[task]\nkind = "regression"\n{name} = "x"\n[[stages]]\nlayers = "head"\nepochs = 1\nlr = 0.1'
        )


def test_several_targets_are_refused():
    with pytest.raises(ConfigError, match="one column holds the labels; 2 were named"):
        plan(data={"label": ["y", "z"]})
    with pytest.raises(DataError, match="2 numbers per row: a regression has one target"):
        ta.Domain("two", np.zeros((4, 3), dtype=np.float32), labels=np.zeros((4, 2)), task="regression")


def test_rows_without_a_value_are_left_out_and_said():
    frame = line()
    frame.loc[[3, 7], "y"] = np.nan
    made = quick(plan(), frame)
    assert made.record.train.n + made.record.validation.n == 118
    assert any("2 of 120 rows have no value" in note for note in made.record.notes)


def test_text_among_the_numbers_is_named_with_its_row():
    frame = line().astype({"y": object})
    frame.loc[5, "y"] = "many"
    with pytest.raises(DataError, match="'many' in row 5, which is no number"):
        quick(plan(), frame)


@pytest.mark.parametrize(
    ("values", "message"),
    [([1.0, 2.0, np.inf, 3.0], "infinite in row 2"), ([None] * 4, "has no values"), ([2.0] * 4, "all 4 training values are equal")],
)
def test_values_that_cannot_be_learned_from_are_refused(values: list[Any], message: str):
    with pytest.raises(DataError, match=message):
        _scale_of(values)


def test_plan_and_data_must_be_of_one_task():
    frame = line().assign(y=lambda f: np.where(f["y"] > 50, "high", "low"))
    classes = ta.Domain("classes", frame, label="y")
    with pytest.raises(DataError, match="labels are class names, the plan is a regression"):
        quick(plan(), classes)
    numbers = ta.Domain("numbers", line(), label="y", task="regression")
    with pytest.raises(DataError, match="holds numbers, the plan names classes"):
        quick(plan(task=ta.Classification()), numbers)


def test_diabetes_from_the_library_beats_its_mean(tmp_path: Path):
    frame = load_diabetes(as_frame=True, scaled=False).frame
    order = np.random.default_rng(0).permutation(len(frame))
    made = quick(
        plan(data={"label": "target", "validation": 0.2}, stages=[ta.Stage("*", epochs=40, lr=3e-3)], training={"early_stop": 10}),
        frame.iloc[order[:300]],
    )
    test = ta.Domain("test", frame.iloc[order[300:]], label="target", task="regression")
    raw = test.samples.read(np.arange(len(test)))
    with torch.no_grad():
        found = outputs(made.model.module(test.samples.modality.encode(raw, made.model.preprocessing)), made.model.output)[:, 0].numpy()
    assert np.abs(found - test.values).mean() < 0.75 * np.abs(made.train.values.mean() - test.values).mean()
