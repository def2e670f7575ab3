"""What explainers must give where the answer is known: linear models, games solved by hand, planted patches."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.attribution.attribution_fakes import ASKING, PatchDetector, column_inputs, image_inputs, parts_for
from tl_audit.attribution import explain_inputs
from tl_audit.models import Model

ADDITIVE = ("integrated_gradients", "kernel_shap", "permutation_shap", "partition_shap", "sampling_shap", "exact_shap")


class Linear(nn.Module):
    def __init__(self, w: torch.Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(w.shape[1], w.shape[0])
        with torch.no_grad():
            self.layer.weight.copy_(w)
            self.layer.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class Game(nn.Module):
    """Output 1 is a function of the columns given as a Python callable, output 0 is zero."""

    def __init__(self, f) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.f(x)
        return torch.stack([torch.zeros_like(y), y], dim=1)


def brute_force_shapley(value, d: int) -> np.ndarray:
    """The definition: mean marginal contribution over all orders, grouped by coalition."""
    phi = np.zeros(d)
    for i in range(d):
        others = [k for k in range(d) if k != i]
        for size in range(d):
            for members in itertools.combinations(others, size):
                weight = math.factorial(size) * math.factorial(d - size - 1) / math.factorial(d)
                phi[i] += weight * (value({*members, i}) - value(set(members)))
    return phi


def ones(n: int) -> np.ndarray:
    return np.ones(n, dtype=np.int64)


@pytest.mark.parametrize("method", ADDITIVE)
def test_on_a_linear_model_the_attribution_is_weight_times_difference(method, rng):
    w = torch.as_tensor(rng.normal(size=(3, 6))).float()
    x = torch.as_tensor(rng.normal(size=(5, 6))).float()
    baseline = torch.as_tensor(rng.normal(size=6)).float()
    a = explain_inputs(Model(Linear(w)), column_inputs(x), method=method, targets=2 * ones(5), baseline=baseline)
    assert a.values == pytest.approx((w[2] * (x - baseline)).numpy(), abs=1e-5)
    assert np.abs(a.completeness).max() < 1e-5


def test_shapley_values_of_a_linear_model_use_the_mean_of_the_background(rng):
    w = torch.as_tensor(rng.normal(size=(2, 5))).float()
    x = torch.as_tensor(rng.normal(size=(4, 5))).float()
    background = torch.as_tensor(rng.normal(size=(6, 5))).float()
    a = explain_inputs(Model(Linear(w)), column_inputs(x, background), method="kernel_shap", targets=ones(4))
    assert a.values == pytest.approx((w[1] * (x - background.mean(dim=0))).numpy(), abs=1e-5)
    assert a.params["exact"]


@pytest.mark.parametrize("d", range(1, 9))
def test_kernel_shap_equals_brute_force_where_all_coalitions_fit(d, rng):
    table = torch.as_tensor(rng.normal(size=2**d)).float()

    def f(x: torch.Tensor) -> torch.Tensor:
        code = (x > 0.5).long() @ (2 ** torch.arange(d))
        return table[code]

    a = explain_inputs(
        Model(Game(f)), column_inputs(torch.ones(1, d)), method="kernel_shap", targets=ones(1), baseline=torch.zeros(d), budget=300
    )
    expected = brute_force_shapley(lambda s: float(table[sum(2**k for k in s)]), d)
    assert a.values[0] == pytest.approx(expected, abs=1e-5)
    assert np.all(a.standard_error[0] == 0)


def test_with_a_small_background_kernel_shap_averages_over_all_of_it(rng):
    background = torch.as_tensor(rng.normal(size=(3, 4))).float()
    x = torch.as_tensor(rng.normal(size=(1, 4))).float()

    def f(z: torch.Tensor) -> torch.Tensor:
        return z[:, 0] * z[:, 1] + torch.sin(z[:, 2] * z[:, 3])

    def value(members: set[int]) -> float:
        z = background.clone()
        for k in members:
            z[:, k] = x[0, k]
        return float(f(z).mean())

    a = explain_inputs(Model(Game(f)), column_inputs(x, background), method="kernel_shap", targets=ones(1))
    assert a.values[0] == pytest.approx(brute_force_shapley(value, 4), abs=1e-5)


def test_sampled_shapley_values_lie_within_their_standard_errors(rng):
    d, n = 14, 20
    w, pairs = rng.normal(size=d), rng.normal(size=(d, d)) / 3

    def f(x: torch.Tensor) -> torch.Tensor:
        z = x.double()
        return (z @ torch.as_tensor(w) + torch.einsum("bi,ij,bj->b", z, torch.as_tensor(pairs), z) ** 2 / 10).float()

    def value(members: set[int]) -> float:
        z = torch.zeros(1, d)
        z[0, list(members)] = 1.0
        return float(f(z))

    exact = explain_inputs(
        Model(Game(f)), column_inputs(torch.ones(1, d)), method="kernel_shap", targets=ones(1), baseline=torch.zeros(d), budget=2**d
    )
    assert exact.params["exact"]
    again = explain_inputs(
        Model(Game(f)), column_inputs(torch.ones(n, d)), method="kernel_shap", targets=ones(n), baseline=torch.zeros(d), budget=256
    )
    z = (again.values - exact.values) / np.stack(again.standard_error)
    assert 0.5 < np.sqrt((z**2).mean()) < 1.6
    assert np.abs(again.values.mean(axis=0) - exact.values[0]).max() < 6 * np.stack(again.standard_error).mean() / np.sqrt(n) + 0.02


@pytest.mark.parametrize("method", ADDITIVE)
def test_a_column_that_does_not_count_gets_zero_and_equals_get_the_same(method):
    def f(x: torch.Tensor) -> torch.Tensor:
        return x[:, 0] * x[:, 1] + x[:, 3] ** 2  # column 2 is a dummy; 0 and 1 are symmetric

    x = torch.tensor([[1.5, 1.5, 9.0, 0.5]])
    a = explain_inputs(Model(Game(f)), column_inputs(x), method=method, targets=ones(1), baseline=torch.zeros(4))
    assert a.values[0, 2] == pytest.approx(0, abs=1e-6)
    assert a.values[0, 0] == pytest.approx(a.values[0, 1], abs=1e-6)


@pytest.mark.parametrize("method", [m for m in ASKING if m != "eigen_cam"])  # which knows no outputs
def test_a_constant_model_gives_zero_maps_marked_blank(method):
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3, padding=1)
            self.head = nn.Linear(2, 2)
            torch.nn.init.zeros_(self.head.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.conv(x).mean(dim=(2, 3)))

    a = explain_inputs(
        Model(Constant()), image_inputs(torch.rand(3, 1, 8, 8), parts_for(method) // 2), method=method, targets=ones(3), budget=40
    )
    assert np.all(a.values == 0)
    assert a.blank.all()


@pytest.mark.parametrize("method", [m for m in ASKING if m != "exact_shap"])  # 16 parts are too many for it
def test_a_planted_patch_is_found(method, patches):
    x, where = patches
    a = explain_inputs(Model(PatchDetector()), image_inputs(x), method=method, targets=ones(len(x)))
    assert [int(np.argmax(v)) for v in a.player_values] == where
    assert not a.blank.any()


@pytest.mark.parametrize("method", ASKING)
def test_player_values_are_the_sums_of_the_map_over_each_part(method, patches):
    x, _ = patches
    inputs = image_inputs(x, parts_for(method))
    a = explain_inputs(Model(PatchDetector()), inputs, method=method, targets=ones(len(x)), budget=64)
    for mine, pooled in zip(a.player_values, inputs.players.pool(torch.as_tensor(a.values)), strict=True):
        assert mine == pytest.approx(pooled, abs=1e-9)


def test_integrated_gradients_add_up_on_a_deep_network(small_net):
    x = torch.rand(4, 1, 16, 16)
    a = explain_inputs(Model(small_net()), image_inputs(x), method="integrated_gradients", targets=ones(4), steps=200)
    assert np.abs(a.completeness).max() < 1e-2
    assert a.budget == 402


def test_shapley_values_always_add_up(small_net):
    a = explain_inputs(Model(small_net()), image_inputs(torch.rand(4, 1, 16, 16)), method="kernel_shap", targets=ones(4), budget=64)
    assert np.abs(a.completeness).max() < 1e-9
