"""Learning curves: nested parts, planted benefit of a base, and nothing where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tl_audit as ta
from tests.finetune.test_finetune_guidance import CLASSES, rows, table
from tl_audit.errors import ConfigError
from tl_audit.finetune import DataPlan
from tl_audit.finetune.curve import _first, _order, _sizes
from tl_audit.finetune.inputs import align


def plan(base: ta.Model, **more: object) -> ta.Plan:
    stages = [ta.Stage("*", epochs=8, lr=0.01)]
    head = "keep" if base.classes == CLASSES else "new"
    return ta.Plan(base=base, task=ta.Classification(CLASSES, head=head), stages=stages, controls=("scratch",), **more)


def fresh(seed: int = 0) -> ta.Model:
    torch.manual_seed(seed)
    return ta.Model(torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)), head="2")


@pytest.fixture(scope="module")
def skilled() -> ta.Model:
    """A base that has learned the same rule from much data."""
    stages = [ta.Stage("*", epochs=30, lr=0.02)]
    return ta.adapt(ta.Plan(base=fresh(), task=ta.Classification(CLASSES), stages=stages), table("much", 1500, 50), progress="none").model


def test_a_base_that_knows_the_task_pays_where_samples_are_few(skilled: ta.Model):
    curve = ta.learning_curve(plan(skilled), table("train", 256, 0), table("held", 500, 1), sizes=[16, 64, 256], seeds=2, progress="none")
    assert curve.sizes == (16, 64, 256)
    assert curve.models == ("adapted", "scratch")
    early = curve.at("scratch", 16)
    assert early.gain is not None
    bounds = early.gain.interval(0.95)
    assert bounds is not None
    assert bounds[0] > 0, curve.lines()
    assert curve.at("adapted", 256).score.value > curve.at("scratch", 16).score.value  # type: ignore[operator]
    assert early.lowest <= early.score.value <= early.highest  # type: ignore[operator]
    assert "better than the control scratch at n = 16" in curve.summary


def test_the_gain_is_the_difference_of_the_scores_and_its_null_is_none():
    curve = ta.learning_curve(plan(fresh()), table("train", 60, 0), table("held", 200, 1), sizes=[30, 60], seeds=2, progress="none")
    for n in curve.sizes:
        one = curve.at("scratch", n)
        assert one.gain is not None
        assert one.gain.value == pytest.approx(curve.at("adapted", n).score.value - one.score.value)  # type: ignore[operator]
        assert one.gain.null == 0


def test_parts_are_nested_balanced_and_independent_of_row_order():
    x, y = rows(200, 3)
    domain = ta.Domain("t", x, labels=y, classes=CLASSES, kind="tensor")
    split = align("train", domain, CLASSES)[0]
    order = _order(split, CLASSES, 0)
    parts = [set(_first(split, order, n, CLASSES).tolist()) for n in (10, 40, 200)]
    assert [len(p) for p in parts] == [10, 40, 200]
    assert parts[0] <= parts[1] <= parts[2]
    share = np.mean([y[i] == "yes" for i in parts[1]])
    assert share == pytest.approx(np.mean(np.array(y) == "yes"), abs=0.03)
    assert _order(split, CLASSES, 1).tolist() != order.tolist()
    turned = domain.subset(np.arange(200)[::-1])
    other = align("train", turned, CLASSES)[0]
    again = _first(other, _order(other, CLASSES, 0), 40, CLASSES)
    assert {turned.ids[i] for i in again} == {domain.ids[i] for i in parts[1]}


def test_clusters_are_taken_whole():
    x, y = rows(200, 3)
    domain = ta.Domain("t", x, labels=y, classes=CLASSES, kind="tensor", cluster=[f"p{i // 10}" for i in range(200)])
    split = align("train", domain, CLASSES)[0]
    part = _first(split, _order(split, CLASSES, 0), 45, CLASSES)
    counts = np.unique([i // 10 for i in part], return_counts=True)[1]
    assert set(counts.tolist()) == {10}
    assert 45 <= len(part) < 60


def test_sizes_double_up_to_all_by_default_and_wrong_ones_are_refused():
    split = align("train", table("t", 100, 0), CLASSES)[0]
    assert _sizes(split, None, CLASSES) == (6, 12, 25, 50, 100)
    for wrong in ([3], [101], []):
        with pytest.raises(ConfigError, match="sizes lie between 4 and the 100 training samples"):
            _sizes(split, wrong, CLASSES)


def test_without_anything_to_judge_on_it_says_so():
    with pytest.raises(ConfigError, match="judged on data that nothing was trained on"):
        ta.learning_curve(plan(fresh()), table("train", 60, 0), progress="none")


def test_numbers_have_a_curve_of_their_error():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(160, 4)).astype(np.float32)
    y = 3 * x[:, 0] + 0.1 * rng.normal(size=160)
    domain = ta.Domain("d", x, labels=y, task="regression", kind="tensor")
    asked = ta.Plan(base=fresh(), task=ta.Regression(), stages=[ta.Stage("*", epochs=5, lr=0.02)], data=DataPlan(validation=0.4))
    curve = ta.learning_curve(asked, domain, sizes=[20, 90], seeds=1, controls=(), progress="none")
    assert curve.measure == "mean absolute error"
    assert curve.at("adapted", 90).score.value < curve.at("adapted", 20).score.value  # type: ignore[operator]
    assert any("one seed" in note for note in curve.notes)


def test_the_curve_shows_itself_and_is_written_whole(tmp_path: Path):
    curve = ta.learning_curve(plan(fresh()), table("train", 40, 0), table("held", 80, 1), sizes=[20, 40], seeds=1, progress="none")
    page = curve._repr_html_()
    assert "data:image/svg+xml" in page
    assert "scratch" in page
    document = json.loads(curve.to_json())
    assert [p["n"] for p in document["points"]] == [20, 20, 40, 40]
    assert len(curve.to_frame()) == 4
    assert curve.save(tmp_path / "c.csv").read_text().count("\n") == 5
    with pytest.raises(ConfigError, match="the suffix decides"):
        curve.save(tmp_path / "c.png")


def test_the_command_draws_a_curve_and_refuses_stray_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from tl_audit.cli import main

    x, y = rows(120, 0)
    lines = [",".join(f"{v:.5f}" for v in row) + f",{label}" for row, label in zip(x, y, strict=True)]
    (tmp_path / "train.csv").write_text("\n".join(["a,b,c,d,label", *lines]) + "\n")
    (tmp_path / "plan.toml").write_text(
        'base = "tl_audit:mlp"\nkind = "tabular"\n[data]\ntrain = "train.csv"\nvalidation = 0.3\nlabel = "label"\n'
        'numeric = ["a", "b", "c", "d"]\n[[stages]]\nlayers = "*"\nepochs = 2\nlr = 0.01\n'
    )
    monkeypatch.chdir(tmp_path)
    assert main(["adapt", "plan.toml", "--learning-curve", "--sizes", "20,60", "--seeds", "1", "--out", "curve"]) == 0
    said = capsys.readouterr()
    assert "learning_curve.json" in said.out
    assert "20 samples done" in said.err
    assert json.loads((tmp_path / "curve" / "learning_curve.json").read_text())["measure"] == "accuracy"
    assert main(["adapt", "plan.toml", "--sizes", "20"]) == 2
    assert "--sizes belongs to --learning-curve" in capsys.readouterr().err
    assert main(["adapt", "plan.toml", "--learning-curve", "--sizes", "many"]) == 2
