"""Occlusion, feature ablation and RISE: closed forms, captum beside them, and what a result may depend on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.attribution.attribution_fakes import PatchDetector, column_inputs, image_inputs
from tl_audit.attribution import Inputs, Memo, explain_inputs
from tl_audit.attribution.methods.feature_ablation import part_groups
from tl_audit.attribution.methods.occlusion import windows_over
from tl_audit.attribution.methods.rise import _enlarging
from tl_audit.errors import ConfigError
from tl_audit.modality import IMAGE, TENSOR
from tl_audit.models import Model

METHODS = ("feature_ablation", "occlusion", "rise")


def ones(n: int) -> np.ndarray:
    return np.ones(n, dtype=np.int64)


class Linear(nn.Module):
    """Logits 0 and w·x."""

    def __init__(self, weights: Any) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.as_tensor(weights, dtype=torch.float32).flatten(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = x.flatten(1) @ self.weights
        return torch.stack([torch.zeros_like(z), z], dim=1)


def scenes(n: int, side: int = 20, kind: Any = IMAGE) -> Inputs:
    rng = np.random.default_rng(7)
    x = torch.from_numpy(rng.random((n, 3, side, side))).float()
    background = torch.from_numpy(rng.random((9, 3, side, side))).float()
    return Inputs(x, tuple(f"p{i}" for i in range(n)), kind, None, kind.players(x, None), background)


def table(n: int, d: int = 5, rows: int = 30) -> Inputs:
    rng = np.random.default_rng(8)
    x = torch.from_numpy(rng.normal(size=(n, d))).float()
    background = torch.from_numpy(rng.normal(size=(rows, d))).float()
    return Inputs(x, tuple(f"r{i}" for i in range(n)), TENSOR, None, TENSOR.players(x, None), background)


# ---------------------------------------------------------------- feature ablation


def test_the_drop_of_a_part_of_a_linear_model_is_its_weights_times_its_input() -> None:
    x, w = torch.rand(3, 1, 16, 16), torch.randn(16, 16)
    a = explain_inputs(Model(Linear(w)), image_inputs(x), method="feature_ablation", targets=ones(3))
    for i in range(3):
        parts = (x[i, 0] * w).reshape(4, 4, 4, 4).sum(dim=(1, 3)).flatten().numpy()
        assert a.player_values[i] == pytest.approx(parts, abs=1e-4)
    assert a.budget == 17
    assert a.standard_error is None


@pytest.mark.filterwarnings("ignore")
def test_feature_ablation_is_that_of_captum(small_net: Any) -> None:
    from captum.attr import FeatureAblation

    net, x = small_net().eval(), torch.rand(3, 1, 16, 16)
    inputs = image_inputs(x)
    a = explain_inputs(Model(net), inputs, method="feature_ablation", targets=np.array([0, 2, 1]), budget=50)
    theirs = FeatureAblation(net).attribute(
        x, target=torch.tensor([0, 2, 1]), feature_mask=inputs.players.assignment[:, None], perturbations_per_eval=4
    )
    for i in range(3):
        for k in range(16):
            assert float(theirs[i, 0][inputs.players.assignment[i] == k][0]) == pytest.approx(a.player_values[i][k], abs=1e-5)


def test_columns_drop_to_the_mean_over_the_whole_background_where_the_budget_allows() -> None:
    torch.manual_seed(0)
    net, inputs = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)), table(3)
    a = explain_inputs(Model(net), inputs, method="feature_ablation", targets=ones(3))
    assert a.params["fills"] == 30
    assert inputs.background is not None
    for i in range(3):
        for k in range(5):
            rows = inputs.tensor[i].repeat(30, 1)
            rows[:, k] = inputs.background[:, k]
            with torch.no_grad():
                drop = net(inputs.tensor[i : i + 1])[0, 1] - net(rows)[:, 1].mean()
            assert a.values[i, k] == pytest.approx(float(drop), abs=1e-5)
    assert a.standard_error is not None
    assert all(not e.any() for e in a.standard_error)  # every row was tried


def test_the_standard_error_covers_the_rows_that_were_not_tried() -> None:
    torch.manual_seed(0)
    net, inputs = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)), table(6, rows=200)
    whole = explain_inputs(Model(net), inputs, method="feature_ablation", targets=ones(6), budget=1001)
    some = explain_inputs(Model(net), inputs, method="feature_ablation", targets=ones(6), budget=101)
    assert (whole.params["fills"], some.params["fills"]) == (200, 20)
    assert some.standard_error is not None
    z = (some.values - whole.values) / np.array(some.standard_error)
    assert 0.4 < np.sqrt((z**2).mean()) < 1.6


def test_parts_beyond_the_budget_go_together_and_it_is_said() -> None:
    x, w = torch.rand(2, 1, 16, 16), torch.randn(16, 16)
    a = explain_inputs(Model(Linear(w)), image_inputs(x), method="feature_ablation", targets=ones(2), budget=9)
    assert a.budget == 9
    assert "neighbouring parts were removed together" in a.caveats[0]
    whole = explain_inputs(Model(Linear(w)), image_inputs(x), method="feature_ablation", targets=ones(2))
    assert a.player_values[0].reshape(8, 2).sum(axis=1) == pytest.approx(whole.player_values[0].reshape(8, 2).sum(axis=1), abs=1e-4)
    assert part_groups(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert part_groups(5, 2).tolist() == [0, 0, 0, 1, 1]


def test_evaluations_are_shared_with_shapley_values() -> None:
    x = torch.rand(2, 1, 16, 16)
    model, memo = Model(PatchDetector()), Memo()
    explain_inputs(model, image_inputs(x), method="kernel_shap", targets=ones(2), budget=100, memo=memo)
    a = explain_inputs(model, image_inputs(x), method="feature_ablation", targets=ones(2), memo=memo)
    assert a.budget < 17
    alone = explain_inputs(model, image_inputs(x), method="feature_ablation", targets=ones(2))
    assert a.values == pytest.approx(alone.values, abs=1e-6)


# ---------------------------------------------------------------- occlusion


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("window", "stride"), [(4, 4), (4, 2), (6, 5), (5, 3)])
def test_occlusion_is_that_of_captum(window: int, stride: int, small_net: Any) -> None:
    """captum gives each place the mean drop of its windows; here the drop is spread over the window's area."""
    from captum.attr import Occlusion

    net, x = small_net().eval(), torch.rand(2, 1, 16, 16)
    a = explain_inputs(Model(net), image_inputs(x), method="occlusion", targets=ones(2), window=window, stride=stride)
    theirs = Occlusion(net).attribute(x, sliding_window_shapes=(1, window, window), strides=(1, stride, stride), target=1)
    assert a.budget == windows_over((16, 16), window, stride, 10**6).hidden.shape[0] + 1
    inside = (slice(None), slice(0, 16 - window + 1), slice(0, 16 - window + 1))
    if (16 - window) % stride:  # captum's last windows hang over the rim, and so do ours, but ours spread over what is left of them
        inside = (slice(None), slice(0, stride), slice(0, stride))
    assert a.values[inside] * window**2 == pytest.approx(theirs[:, 0].numpy()[inside], abs=1e-5)


@pytest.mark.parametrize(("window", "stride"), [(3, 2), ((5, 2), (4, 1)), (7, 3), (1, 1)])
def test_each_place_gets_the_mean_over_its_windows(window: Any, stride: Any) -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.random((1, 1, 11, 8))).float()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(88, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    inputs = Inputs(x, ("s",), TENSOR, None, TENSOR.players(x, None, segmentation="grid"))
    a = explain_inputs(Model(net), inputs, method="occlusion", targets=ones(1), window=window, stride=stride)
    (wh, ww), (sh, sw) = (v if isinstance(v, tuple) else (v, v) for v in (window, stride))
    total, count = np.zeros((11, 8)), np.zeros((11, 8))

    def score(image: torch.Tensor) -> float:
        with torch.no_grad():
            return float(net(image.double())[0, 1])

    for top in range(0, 11 + sh, sh):
        if top > 0 and top - sh + wh >= 11:
            break
        for left in range(0, 8 + sw, sw):
            if left > 0 and left - sw + ww >= 8:
                break
            hidden = x.clone()
            hidden[..., top : top + wh, left : left + ww] = 0
            place = np.zeros((11, 8), dtype=bool)
            place[top : top + wh, left : left + ww] = True
            total[place] += (score(x) - score(hidden)) / place.sum()
            count[place] += 1
    assert count.min() > 0
    assert a.values[0] == pytest.approx(total / count, abs=1e-6)
    assert a.player_values[0] == pytest.approx(inputs.players.pool(torch.from_numpy(a.values))[0], abs=1e-9)


def test_the_map_of_a_linear_model_sums_to_what_was_removed() -> None:
    x, w = torch.rand(2, 1, 16, 16), torch.randn(16, 16)
    a = explain_inputs(Model(Linear(w)), image_inputs(x), method="occlusion", targets=ones(2), window=4, stride=4)
    parts = (x[:, 0] * w).reshape(2, 4, 4, 4, 4).sum(dim=(2, 4)).reshape(2, 16).numpy()
    assert np.array(a.player_values) == pytest.approx(parts, abs=1e-4)


@pytest.mark.parametrize(("budget", "most"), [(None, 256), (256, 256), (50, 50), (30, 30), (16, 16), (2, 2)])
def test_without_a_wish_the_windows_fit_the_budget(budget: int | None, most: int) -> None:
    inputs = scenes(1, 28)
    a = explain_inputs(Model(Linear(torch.ones(3 * 28 * 28))), inputs, method="occlusion", targets=ones(1), budget=budget)
    assert a.budget <= most
    if budget is None:
        assert a.params["window"] == [4, 4]
        assert a.params["stride"] == [2, 2]
        assert a.budget == 13 * 13 + 1


def test_a_background_of_pictures_gives_occlusion_an_error() -> None:
    inputs = scenes(2)
    model = Model(Linear(torch.randn(3 * 400)))
    whole = explain_inputs(model, inputs, method="occlusion", targets=ones(2), window=5, stride=5, masking="marginal", budget=200)
    assert whole.params["fills"] == 9
    assert all(not e.any() for e in whole.standard_error or ())
    some = explain_inputs(model, inputs, method="occlusion", targets=ones(2), window=5, stride=5, masking="marginal", budget=70)
    assert some.params["fills"] == 4
    assert some.standard_error is not None
    assert all((e > 0).all() for e in some.standard_error)
    assert np.abs((some.player_values[0] - whole.player_values[0]) / some.standard_error[0]).mean() < 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 0}, "window is 0: expected a number of places"),
        ({"window": (2, 2, 2)}, "or 2 of them"),
        ({"window": 2, "stride": 3}, "larger than the window"),
        ({"window": 2, "stride": 1, "budget": 100}, "needs 226 model evaluations and the budget is 100"),
        ({"budget": 1}, "at least 2 model evaluations"),
        ({"masking": "blurred"}, "masking is 'blurred': squares inputs have zero"),
    ],
)
def test_windows_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        explain_inputs(Model(PatchDetector()), image_inputs(torch.rand(1, 1, 16, 16)), method="occlusion", targets=ones(1), **settings)


def test_occlusion_of_columns_removes_each_alone() -> None:
    inputs = table(3)
    model = Model(nn.Sequential(nn.Linear(5, 2)))
    both = [explain_inputs(model, inputs, method=m, targets=ones(3)).values for m in ("occlusion", "feature_ablation")]
    assert both[0].tobytes() == both[1].tobytes()
    with pytest.raises(ConfigError, match="lie in space"):
        explain_inputs(model, inputs, method="occlusion", targets=ones(3), window=2)


# ---------------------------------------------------------------- RISE


def test_masks_are_smooth_and_show_half_of_every_place() -> None:
    from tl_audit.attribution.base import Targets
    from tl_audit.attribution.evaluation import evaluating
    from tl_audit.attribution.methods.rise import _Smooth
    from tl_audit.attribution.reference import reference_of

    inputs = image_inputs(torch.rand(1, 1, 16, 16))
    with evaluating(Model(PatchDetector()), batch_size=8) as evaluator:
        made = _Smooth(evaluator, inputs, Targets(ones(1)), reference_of(inputs, None), pairs=3000, cells=4, seed=0, output="logit")
        masks = made.masks(np.zeros(3000, dtype=int), np.arange(3000)).double()
    assert 0 <= float(masks.min()) < 0.01
    assert 0.99 < float(masks.max()) <= 1
    assert masks.mean(dim=0).numpy() == pytest.approx(0.5, abs=0.04)
    assert float((masks[:, 1:] - masks[:, :-1]).abs().max()) <= 0.25 + 1e-6  # cells of four places


def covariance(side: int, cell: int) -> np.ndarray:
    """(side, side) mean over shifts of the product of two places' weights on the nodes: four times their covariance along one axis."""
    nodes = (side - 1 + cell - 1) // cell + 2
    weights = _enlarging(side, cell, nodes).double().numpy()
    for shift in range(cell):
        for place in range(side):
            at = (place + shift) / cell
            by_hand = np.maximum(0, 1 - np.abs(np.arange(nodes) - at))
            assert weights[shift, place] == pytest.approx(by_hand, abs=1e-6)
    return np.einsum("cyk,czk->yz", weights, weights) / cell


def test_the_map_of_a_linear_model_is_its_smoothed_gradient_times_input() -> None:
    """f = Σ w x m: E[f | mask at a place] - E[f] = 2 Σ w x Cov(mask there, mask here), in closed form for bilinear masks."""
    x, w = torch.rand(2, 1, 16, 16), torch.randn(16, 16)
    a = explain_inputs(Model(Linear(w)), image_inputs(x), method="rise", targets=ones(2), budget=3000, of="logit", cells=4)
    along = covariance(16, 4)
    assert a.standard_error is not None
    for i in range(2):
        exact = 0.5 * along @ (x[i, 0] * w).double().numpy() @ along / 16
        pooled = exact.reshape(4, 4, 4, 4).sum(axis=(1, 3)).flatten()
        assert (np.abs(a.player_values[i] - pooled) < 4.5 * a.standard_error[i]).all()
        assert np.corrcoef(a.values[i].ravel(), exact.ravel())[0, 1] > 0.97


def test_columns_get_half_their_weight_times_input() -> None:
    w, x = torch.tensor([1.0, -2.0, 0.5, 0.0]), torch.tensor([[1.0, 2.0, -1.0, 3.0]])
    a = explain_inputs(Model(Linear(w)), column_inputs(x), method="rise", targets=ones(1), budget=4000, of="logit")
    assert a.standard_error is not None
    exact = 0.5 * (w * x[0]).numpy()
    assert (np.abs(a.values[0] - exact) < 4.5 * a.standard_error[0]).all()
    assert a.values[0] == pytest.approx(exact, abs=0.12)


def test_the_map_ranks_places_as_the_published_estimator_does(patches: Any) -> None:
    """Petsiuk's sum of outputs times masks over masks of his recipe, written out, beside ours."""
    x, where = patches
    net = PatchDetector().eval()
    rng = np.random.default_rng(0)
    a = explain_inputs(Model(net), image_inputs(x), method="rise", targets=ones(len(x)), budget=1000, cells=4)
    grids = torch.from_numpy((rng.random((4000, 1, 5, 5)) < 0.5).astype(np.float32))
    enlarged = torch.nn.functional.interpolate(grids, size=(20, 20), mode="bilinear", align_corners=False)
    masks = torch.stack([m[0, t : t + 16, s : s + 16] for m, (t, s) in zip(enlarged, rng.integers(0, 4, size=(4000, 2)), strict=True)])
    for i in range(len(x)):
        with torch.no_grad():
            scores = net(x[i] * masks[:, None]).softmax(dim=1)[:, 1]
        theirs = (scores[:, None, None] * masks).sum(dim=0) / (4000 * 0.5)
        assert np.corrcoef(theirs.numpy().ravel(), a.values[i].ravel())[0, 1] > 0.9
        assert int(np.argmax(a.player_values[i])) == where[i]


def test_the_standard_error_is_the_spread_over_seeds(small_net: Any) -> None:
    inputs = image_inputs(torch.rand(1, 1, 16, 16))
    runs = [explain_inputs(Model(small_net()), inputs, method="rise", targets=ones(1), budget=64, seed=s, cells=4) for s in range(40)]
    spread = np.std([r.player_values[0] for r in runs], axis=0)
    said = np.mean([r.standard_error[0] for r in runs if r.standard_error is not None], axis=0)
    assert said.mean() == pytest.approx(spread.mean(), rel=0.2)


def test_fewer_pairs_than_a_sample_needs_are_not_drawn_after_convergence(patches: Any) -> None:
    x, _ = patches
    model = Model(PatchDetector())
    a = explain_inputs(model, image_inputs(x), method="rise", targets=ones(len(x)), budget=2000, convergence=0.3, cells=4)
    assert a.budget < 1000
    assert not a.caveats
    for v, e in zip(a.player_values, a.standard_error or (), strict=True):
        assert 1.96 * e.max() <= 0.3 * np.ptp(v)
    alone = explain_inputs(model, image_inputs(x[1:2], ids=("s1",)), method="rise", targets=ones(1), budget=2000, convergence=0.3, cells=4)
    assert alone.values[0] == pytest.approx(a.values[1], abs=1e-6)
    tight = explain_inputs(model, image_inputs(x), method="rise", targets=ones(len(x)), budget=100, convergence=0.001, cells=4)
    assert tight.budget == 100
    assert "did not reach the convergence" in tight.caveats[0]


@pytest.mark.parametrize(("settings", "message"), [({"cells": 0}, "cells is 0"), ({"budget": 3}, "at least 4 model evaluations")])
def test_grids_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        explain_inputs(Model(PatchDetector()), image_inputs(torch.rand(1, 1, 16, 16)), method="rise", targets=ones(1), **settings)


# ---------------------------------------------------------------- all three


@pytest.mark.parametrize("method", METHODS)
def test_the_planted_patch_is_found(method: str, patches: Any) -> None:
    x, where = patches
    a = explain_inputs(Model(PatchDetector()), image_inputs(x), method=method, targets=ones(len(x)))
    assert [int(np.argmax(v)) for v in a.player_values] == where


@pytest.mark.parametrize("masking", [None, *IMAGE.masks])
@pytest.mark.parametrize("method", METHODS)
def test_a_picture_does_not_depend_on_the_batch_whatever_fills_in(method: str, masking: str | None) -> None:
    inputs = scenes(3, 16)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 2))
    whole = explain_inputs(Model(net), inputs, method=method, targets=ones(3), budget=40, masking=masking)
    order = np.array([2, 0])
    part = explain_inputs(Model(net), inputs.select(order), method=method, targets=ones(2), budget=40, masking=masking, batch_size=9)
    assert part.values == pytest.approx(whole.values[order], abs=1e-6)
    assert np.isfinite(whole.values).all()
    assert not whole.blank.any()


@pytest.mark.parametrize("masking", [None, "mean", "zero", "marginal", "conditional"])
@pytest.mark.parametrize("method", METHODS)
def test_a_row_does_not_depend_on_the_batch_whatever_fills_in(method: str, masking: str | None) -> None:
    inputs = table(5)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))
    whole = explain_inputs(Model(net), inputs, method=method, targets=ones(5), budget=60, masking=masking)
    order = np.array([3, 1])
    part = explain_inputs(Model(net), inputs.select(order), method=method, targets=ones(2), budget=60, masking=masking, batch_size=7)
    assert part.values == pytest.approx(whole.values[order], abs=1e-6)
    assert whole.budget <= 60
    assert (whole.standard_error is None) == (method != "rise" and masking in ("mean", "zero"))


@pytest.mark.parametrize("method", METHODS)
def test_a_part_that_the_model_does_not_read_has_no_value(method: str) -> None:
    inputs = table(3)
    a = explain_inputs(
        Model(Linear([1.0, 0.0, -1.0, 0.0, 2.0])), inputs, method=method, targets=ones(3), baseline=torch.zeros(5), of="logit"
    )
    if method == "rise":  # drawn: zero up to its error
        assert (np.abs(a.values[:, [1, 3]]) < 4.5 * np.array(a.standard_error)[:, [1, 3]]).all()
    else:
        assert a.values[:, [1, 3]] == pytest.approx(0, abs=1e-6)
