"""Numbers that must hold whatever was asked before, beside what, and of which model: memos, broken samples, parts given by a caller, encoded tables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from tests.attribution.attribution_fakes import ASKING, column_inputs, image_inputs, parts_for
from tl_audit.attribution import EXPLAINERS, Inputs, Memo, Targets, explain, explain_all, explain_inputs
from tl_audit.errors import DataError
from tl_audit.modality.base import Players
from tl_audit.models import Model
from tl_audit.records.preprocessing import CategoricalColumn, NumericColumn, TableEncoding

REMEMBERING = ("kernel_shap", "permutation_shap", "partition_shap", "sampling_shap", "lime", "feature_ablation")
ADDITIVE = (
    "kernel_shap",
    "permutation_shap",
    "exact_shap",
    "integrated_gradients",
    "deep_lift",
    "deep_shap",
    "gradient_shap",
    "feature_ablation",
)
"""Methods that give a linear model's weights times the distance from the mean of the background."""
CLASSLESS = ("eigen_cam",)


def ones(n: int) -> np.ndarray:
    return np.ones(n, dtype=np.int64)


# ---------------------------------------------------------------- memos


@pytest.mark.parametrize("method", REMEMBERING)
def test_a_memo_used_again_for_something_else_changes_nothing(method: str, small_net: Any) -> None:
    """Same ids, and other pictures, parts, target, baseline, weights or model."""
    net, memo = small_net(), Memo()
    first = image_inputs(torch.rand(2, 1, 16, 16))
    other_net = small_net()
    with torch.no_grad():
        other_net[9].weight.mul_(-2)

    def check(model: Model, inputs: Inputs, targets: Any, **settings: Any) -> None:
        kept, fresh = (explain_inputs(model, inputs, method=method, targets=targets, budget=70, memo=m, **settings) for m in (memo, None))
        assert kept.values == pytest.approx(fresh.values, abs=1e-7)

    model = Model(net)
    check(model, first, ones(2))
    check(model, image_inputs(torch.rand(2, 1, 16, 16)), ones(2))
    check(model, image_inputs(first.tensor, 8), ones(2))
    check(model, first.select(np.array([1, 0])), ones(2))
    check(model, replace(first, ids=("s1", "s0")), ones(2))
    check(model, first, 0 * ones(2))
    check(model, first, Targets(ones(2), 0 * ones(2)))
    check(model, first, ones(2), baseline=torch.ones(1, 16, 16))
    check(Model(other_net), first, ones(2))
    with torch.no_grad():
        net[9].weight.mul_(3)
    check(model, first, ones(2))


def test_a_memo_finds_a_sample_again_in_another_batch(small_net: Any) -> None:
    model, memo, inputs = Model(small_net()), Memo(), image_inputs(torch.rand(3, 1, 16, 16))
    explain_inputs(model, inputs, method="kernel_shap", targets=ones(3), budget=70, memo=memo)
    again = explain_inputs(model, inputs.select(np.array([2])), method="kernel_shap", targets=ones(1), budget=70, memo=memo)
    assert again.budget == 0


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_a_memo_takes_numbers_of_every_kind(kind: torch.dtype, small_net: Any) -> None:
    inputs = image_inputs(torch.rand(2, 1, 16, 16).to(kind))
    a = explain_inputs(Model(small_net()), inputs, method="kernel_shap", targets=ones(2), budget=40, memo=Memo())
    assert np.isfinite(a.values).all()


def test_several_methods_at_once_are_each_as_alone(small_net: Any) -> None:
    x = torch.rand(2, 1, 16, 16)
    players = image_inputs(x, 8).players
    together = explain_all(small_net(), x, methods=ASKING, target=[0, 2], seed=3, budget=70, players=players)
    for method in ASKING:
        alone = explain(small_net(), x, method=method, target=[0, 2], seed=3, budget=70, players=players)
        assert together[method].values == pytest.approx(alone.values, abs=1e-6), method


# ---------------------------------------------------------------- samples without a finite output


class Overflowing(nn.Module):
    """Outputs are infinite where the first number is above 2; all that lies below stays finite, and so do its gradients."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.net(x)
        return torch.where(x.flatten(1)[:, :1] > 2, y + torch.inf, y)


@pytest.mark.parametrize("method", ASKING)
@pytest.mark.parametrize("broken", ["input", "output"])
def test_a_sample_without_a_finite_output_is_blank_and_moves_no_other(method: str, broken: str, small_net: Any) -> None:
    x = torch.rand(3, 1, 16, 16)
    with_fault = x.clone()
    with_fault[1, 0, 0, 0] = torch.nan if broken == "input" else 3.0
    net = Overflowing(small_net())
    whole, found = (
        explain_inputs(Model(net), image_inputs(v, parts_for(method)), method=method, targets=ones(3), budget=40) for v in (x, with_fault)
    )
    assert found.values[[0, 2]] == pytest.approx(whole.values[[0, 2]], abs=1e-5)
    assert (found.blank[[0, 2]] == whole.blank[[0, 2]]).all()
    if method not in CLASSLESS or broken == "input":
        assert found.blank[1]
        assert np.isnan(found.values[1]).all()


# ---------------------------------------------------------------- parts given by a caller


def test_pooling_and_spreading_are_those_of_each_sample(rng: np.random.Generator) -> None:
    count = rng.integers(1, 9, size=700)
    assignment = np.stack([rng.integers(0, k, size=(30, 40)) for k in count])
    players = Players(torch.as_tensor(assignment), count, None, "image")
    values = rng.normal(size=assignment.shape)
    pooled = players.pool(torch.as_tensor(values))
    spread, areas = players.spread(pooled), players.all_areas()
    for i in (0, 1, 350, 699):
        expected = [values[i][assignment[i] == k].sum() for k in range(count[i])]
        assert pooled[i] == pytest.approx(np.array(expected), abs=1e-12)
        assert (spread[i] == pooled[i][assignment[i]]).all()
        assert (areas[i] == players.areas(i)).all()


@pytest.mark.parametrize("method", ASKING)
def test_parts_may_leave_out_numbers_and_differ_in_number(method: str, small_net: Any) -> None:
    x = torch.rand(3, 1, 16, 16)
    assignment = torch.zeros(3, 16, 16, dtype=torch.int32)
    assignment[:, 8:] = 2
    assignment[1, :, 8:] = 3
    assignment[2] = 0
    players = Players(assignment, np.array([5, 4, 1]), None, "image")
    a = explain(small_net(), x, method=method, target=1, budget=80, players=players)
    assert [len(v) for v in a.player_values] == [5, 4, 1]
    assert np.isfinite(a.values).all()
    size = np.abs(a.player_values[0]).max() + 1e-9
    if method not in ("lime", "rise"):  # whose estimates of a part without effect are noise
        assert a.player_values[0][[1, 3, 4]] == pytest.approx(np.zeros(3), abs=1e-5 * size)


@pytest.mark.parametrize(
    ("assignment", "count", "message"),
    [
        (torch.full((2, 16, 16), 4), np.array([4, 4]), "number them from 0 to 3"),
        (torch.full((2, 16, 16), -1), np.array([4, 4]), "numbers from -1"),
        (torch.zeros((2, 8, 8), dtype=torch.long), np.array([1, 1]), r"expected \(2, 16, 16\)"),
        (torch.zeros((1, 16, 16), dtype=torch.long), np.array([1]), r"expected \(2, 16, 16\)"),
    ],
)
def test_parts_that_do_not_fit_the_inputs_are_refused(assignment: torch.Tensor, count: np.ndarray, message: str, small_net: Any) -> None:
    players = Players(assignment, count, None, "image")
    with pytest.raises(DataError, match=message):
        explain(small_net(), torch.rand(2, 1, 16, 16), method="kernel_shap", target=1, players=players)


# ---------------------------------------------------------------- budgets


@pytest.mark.parametrize("method", [e.name for e in EXPLAINERS if e.name in ASKING and not e.needs_space])
@pytest.mark.parametrize("budget", [40, 90])
def test_one_row_costs_no_more_than_its_budget_and_half_as_much_for_the_background(method: str, budget: int) -> None:
    x, background = torch.randn(1, 3), torch.randn(200, 3)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    a = explain_inputs(Model(net), column_inputs(x, background), method=method, targets=ones(1), budget=budget)
    shares_a_background = method in ("kernel_shap", "permutation_shap", "sampling_shap")
    assert a.budget <= budget * (1.5 if shares_a_background else 1)


def test_more_budget_brings_expected_gradients_without_a_background_nearer_and_errors_cover_the_spread() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 2))
    with torch.no_grad():
        net[0].weight.mul_(3)
    inputs, spread = column_inputs(torch.randn(3, 6)), []
    for budget in (100, 500):
        runs = [explain_inputs(Model(net), inputs, method="gradient_shap", targets=ones(3), budget=budget, seed=s) for s in range(16)]
        found = np.sqrt(np.var([r.values for r in runs], axis=0, ddof=1).mean())
        said = np.sqrt(np.mean([np.square(r.standard_error) for r in runs]))
        assert 0.8 < said / found < 3
        spread.append(found)
    assert spread[1] < 0.7 * spread[0]


# ---------------------------------------------------------------- encoded tables


@pytest.fixture(scope="module")
def table() -> tuple[pd.DataFrame, TableEncoding]:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"age": rng.normal(40, 10, 30), "port": rng.choice(["S", "C", "Q"], 30), "fare": rng.exponential(30, 30)})
    frame.loc[3, "age"] = np.nan
    spec = TableEncoding(
        numeric=(
            NumericColumn(name="age", mean=40, std=10, fill=40, missing_indicator=True),
            NumericColumn(name="fare", mean=30, std=30, fill=30),
        ),
        categorical=(CategoricalColumn(name="port", categories=("S", "C", "Q")),),
    )
    return frame, spec


@pytest.mark.parametrize("method", ADDITIVE)
def test_one_hot_entries_are_summed_into_their_column(method: str, table: tuple[pd.DataFrame, TableEncoding]) -> None:
    frame, spec = table
    net = nn.Linear(spec.width, 2)
    rows, background = frame.iloc[:6], frame.iloc[10:]
    encoded, base = (encoded_rows(part, spec) for part in (rows, background))
    # integrated gradients and DeepLIFT go from one input, not from a background
    single = method in ("integrated_gradients", "deep_lift")
    settings = {"baseline": base.mean(dim=0)} if single else {"background": background}
    a = explain(Model(net, preprocessing=spec), rows, method=method, target=1, budget=2000, **settings)
    by_entry = (net.weight[1].detach() * (encoded - base.mean(dim=0))).double()
    for k, name in enumerate(a.inputs.players.names or ()):
        start, stop = spec.slots()[name]
        expected = by_entry[:, start:stop].sum(dim=1).numpy()
        assert a.values[:, k] == pytest.approx(expected, abs=0.02 if method == "gradient_shap" else 2e-5), name


def encoded_rows(frame: pd.DataFrame, spec: TableEncoding) -> torch.Tensor:
    """The rows as the model reads them, one by one from the specification."""
    out = torch.zeros(len(frame), spec.width)
    for i, row in enumerate(frame.to_dict("records")):
        for column in spec.numeric:
            start, stop = spec.slots()[column.name]
            missing = bool(pd.isna(row[column.name]))
            out[i, start] = 0.0 if missing else (row[column.name] - column.mean) / column.std
            if stop - start == 2:
                out[i, start + 1] = float(missing)
        for cat in spec.categorical:
            out[i, spec.slots()[cat.name][0] + cat.categories.index(row[cat.name])] = 1.0
    return out
