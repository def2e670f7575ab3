"""Gradient explainers: closed forms, what is left over, captum and shap called as their users call them, layers, seeds, memory."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.attribution.attribution_fakes import Squares, column_inputs, image_inputs
from tl_audit.attribution import Inputs, Targets, explain_inputs
from tl_audit.attribution.gradients import enlarged
from tl_audit.attribution.methods.guided_backprop import NO_RELU, WARNING
from tl_audit.attribution.quadrature import nested_rule, patterson
from tl_audit.attribution.rescale import Rescaling
from tl_audit.errors import ConfigError, ModelError
from tl_audit.modality.base import Players
from tl_audit.models import Model

EVERY = (
    "integrated_gradients",
    "saliency",
    "input_x_gradient",
    "smooth_grad",
    "gradient_shap",
    "deep_lift",
    "deep_shap",
    "guided_backprop",
)


class Body(nn.Module):
    """Two hidden layers; how the activation is written is the caller's."""

    def __init__(self, act, d: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.act = act
        self.a, self.b, self.c = nn.Linear(d, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.layer_norm, self.group_norm, self.relu = nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.act(self, self.b(self.act(self, self.a(x)))))


class Function(nn.Module):
    """Output 1 is a function of the columns, output 0 is zero."""

    def __init__(self, f) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.f(x)
        return torch.stack([torch.zeros_like(y), y], dim=1)


WAYS = {
    "functional relu": lambda s, z: F.relu(z),
    "in-place module": lambda s, z: s.relu(z),
    "in-place statement": lambda s, z: (z.relu_(), z)[1],
    "silu": lambda s, z: F.silu(z),
    "own swish": lambda s, z: z * torch.sigmoid(z),
    "layer norm": lambda s, z: F.gelu(s.layer_norm(z)),
    "group norm": lambda s, z: F.silu(s.group_norm(z)),
    "softmax": lambda s, z: 4 * F.softmax(z, dim=1),
    "quotient": lambda s, z: z / (1 + z.abs()),
    "power": lambda s, z: z**2 - z.pow(3) / 4,
    "normalised": lambda s, z: 3 * F.normalize(z),
    "einsum": lambda s, z: torch.einsum("bi,bi->b", z, z)[:, None].sqrt() * z,
    "clamp": lambda s, z: z.clamp(-0.5, 0.5),
}


KINKED = ("functional relu", "in-place module", "in-place statement", "clamp")


def cnn(*, functional: bool = False) -> nn.Module:
    torch.manual_seed(1)
    if not functional:
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1),
            nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3),
        )  # fmt: skip

    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = cnn()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            b = self.body
            x = F.max_pool2d(F.relu(b[1](b[0](x))), 3, stride=2, padding=1)
            return b[8](F.adaptive_avg_pool2d(torch.relu(b[4](x)), 2).flatten(1))

    return Written()


def pictures(rng, n: int = 4, side: int = 16) -> torch.Tensor:
    return torch.as_tensor(rng.normal(size=(n, 3, side, side))).float()


def columns(rng, n: int = 5, d: int = 6) -> torch.Tensor:
    return torch.as_tensor(rng.normal(size=(n, d))).float()


def ones(n: int) -> np.ndarray:
    return np.ones(n, dtype=np.int64)


def share(a) -> np.ndarray:
    """Residuals as a share of the change."""
    change = np.array([p.sum() for p in a.player_values]) - a.completeness
    return np.abs(a.completeness) / np.abs(change)


# ---------------------------------------------------------------- quadrature


@pytest.mark.parametrize("level", range(6))
def test_a_rule_is_exact_for_polynomials_up_to_its_degree(level):
    at, weights = patterson(level)
    assert (weights > 0).all()
    for degree in (0, 1, 2, 3, (3 * len(at) + 1) // 2 - 2):
        assert (weights * at**degree).sum() == pytest.approx(1 / (degree + 1), abs=1e-13)


def test_every_level_uses_all_nodes_of_the_levels_before():
    rule = nested_rule(127)
    assert rule.ends == (7, 15, 31, 63, 127)
    for level, known in enumerate(rule.ends):
        assert rule.weights[:known, level].sum() == pytest.approx(1)
        assert not rule.weights[known:, level].any()
        assert (rule.weights[:known, level] > 0).all()
    assert [nested_rule(m).ends for m in (1, 3, 6, 14)] == [(1,), (3,), (3,), (7,)]


# ---------------------------------------------------------------- closed forms


@pytest.mark.parametrize("method", ["integrated_gradients", "input_x_gradient", "deep_lift", "deep_shap"])
def test_on_a_linear_model_values_are_weights_times_differences(method, rng):
    net = nn.Linear(6, 3).double()
    x, baseline = columns(rng).double(), columns(rng, 1).double()
    a = explain_inputs(Model(net), column_inputs(x), method=method, targets=2 * ones(5), baseline=baseline)
    assert a.values == pytest.approx((net.weight[2] * (x - baseline)).detach().numpy(), abs=1e-9)
    if a.completeness is not None:
        assert share(a).max() < 1e-6


def test_on_a_linear_model_expected_gradients_use_the_mean_of_the_background(rng):
    net, x, background = nn.Linear(6, 3), columns(rng), columns(rng, 8)
    a = explain_inputs(Model(net), column_inputs(x, background), method="gradient_shap", targets=ones(5), budget=6 * 16 + 9)
    assert a.values == pytest.approx((net.weight[1] * (x - background.mean(dim=0))).detach().numpy(), abs=1e-5)


@pytest.mark.parametrize("method", ["integrated_gradients", "deep_lift", "deep_shap"])
def test_a_product_is_shared_evenly_and_a_square_stays_where_it_is(method):
    net = Function(lambda x: x[:, 0] * x[:, 1] + x[:, 2] ** 2)
    x = torch.tensor([[2.0, 3.0, -1.5, 7.0]])
    a = explain_inputs(Model(net), column_inputs(x), method=method, targets=ones(1), baseline=torch.zeros(4))
    assert a.values[0] == pytest.approx([3.0, 3.0, 2.25, 0.0], abs=1e-5)


def test_saliency_is_the_absolute_gradient_and_channels_are_a_setting(rng):
    net, x = cnn(), pictures(rng)
    leaf = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(net.eval()(leaf)[:, 1].sum(), leaf)
    expected = {"max": slope.abs().amax(1), "sum": slope.abs().sum(1), "mean": slope.abs().mean(1), "l2": slope.square().sum(1).sqrt()}
    for channels, map_ in expected.items():
        a = explain_inputs(Model(net), image_inputs(x), method="saliency", targets=ones(4), channels=channels)
        assert a.values == pytest.approx(map_.numpy(), abs=1e-7)
    with pytest.raises(ConfigError, match="channels"):
        explain_inputs(Model(net), image_inputs(x), method="saliency", targets=ones(4), channels="median")


@pytest.mark.parametrize("method", EVERY)
def test_a_column_that_does_not_count_gets_zero(method, rng):
    net = Body(WAYS["silu"], d=5)
    with torch.no_grad():
        net.a.weight[:, 3] = 0
    a = explain_inputs(Model(net), column_inputs(columns(rng, d=5), columns(rng, 9, 5)), method=method, targets=ones(5), budget=80)
    assert np.abs(a.values[:, 3]).max() < 1e-6
    assert np.abs(a.values).max() > 1e-3


def test_the_slots_of_a_category_are_summed_under_its_name(rng):
    net, x = Body(WAYS["silu"]), columns(rng)
    slots = torch.tensor([0, 1, 1, 1, 2, 2])
    players = Players(slots.expand(5, 6).clone(), np.full(5, 3), ("age", "port", "class"), "columns")
    inputs = Inputs(x, tuple("abcde"), Squares(), None, players)  # type: ignore[arg-type]
    for method in EVERY:
        whole = explain_inputs(Model(net), column_inputs(x, ids=tuple("abcde")), method=method, targets=ones(5), budget=64)
        found = explain_inputs(Model(net), inputs, method=method, targets=ones(5), budget=64)
        grouped = np.stack([whole.values[:, [0]].sum(1), whole.values[:, 1:4].sum(1), whole.values[:, 4:].sum(1)], axis=1)
        # expected gradients take the error out of each part by itself, which is not quite additive
        assert found.values == pytest.approx(grouped, abs=1e-5), method
        assert {row["part"] for row in found.to_rows()} == {"age", "port", "class"}


# ---------------------------------------------------------------- integrated gradients


@pytest.mark.parametrize("way", WAYS)
def test_integrated_gradients_add_up_within_the_tolerance(way, rng):
    a = explain_inputs(Model(Body(WAYS[way])), column_inputs(columns(rng, 8)), method="integrated_gradients", targets=ones(8))
    missed = int((share(a) > 0.0101).sum())
    assert missed <= (2 if way in KINKED else 0)  # slopes with steps, and a change that is small beside them
    assert bool(missed) == bool(a.caveats)
    assert a.budget <= 256


def test_fixed_steps_are_captum_s_gauss_legendre(rng):
    captum = pytest.importorskip("captum.attr")
    net, x = cnn().eval(), pictures(rng)
    theirs = captum.IntegratedGradients(net).attribute(x, target=2, n_steps=24)
    a = explain_inputs(Model(net), image_inputs(x), method="integrated_gradients", targets=2 * ones(4), steps=24)
    assert a.values == pytest.approx(theirs.sum(dim=1).numpy(), abs=1e-5)
    assert a.budget == 2 * 24 + 2


def test_easy_samples_stop_early_and_hard_ones_go_on(rng):
    net = Function(lambda x: x[:, 0] + 40 * torch.relu(x[:, 1] - 0.9) ** 0.5)
    x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [2.0, 0.5]])
    model, kind = Model(net), "integrated_gradients"
    together = explain_inputs(model, column_inputs(x), method=kind, targets=ones(3))
    alone = [explain_inputs(model, column_inputs(x[[i]]), method=kind, targets=ones(1)) for i in range(3)]
    assert [a.params["steps"] for a in alone][::2] == [7, 7]
    assert alone[1].params["steps"] > 7
    assert together.budget == pytest.approx(np.mean([a.budget for a in alone]), abs=1)
    assert together.values == pytest.approx(np.concatenate([a.values for a in alone]), abs=1e-5)


def test_what_the_budget_does_not_reach_is_said(rng):
    net = Function(lambda x: torch.sigmoid(300 * (x[:, 0] - 0.43)))
    a = explain_inputs(Model(net), column_inputs(torch.ones(2, 3)), method="integrated_gradients", targets=ones(2), budget=20)
    assert a.params["steps"] == 7
    assert "2 of 2 sample(s) keep a residual above 0.01" in " ".join(a.caveats)
    with pytest.raises(ConfigError, match="budget of at least 4"):
        explain_inputs(Model(net), column_inputs(torch.ones(2, 3)), method="integrated_gradients", targets=ones(2), budget=3)


def test_a_smaller_tolerance_takes_more_steps(rng):
    x = column_inputs(columns(rng, 8))
    loose, tight = (
        explain_inputs(Model(Body(WAYS["functional relu"])), x, method="integrated_gradients", targets=ones(8), tolerance=t)
        for t in (0.05, 0.001)
    )
    assert tight.budget > loose.budget
    assert share(loose).max() <= 0.0501


# ---------------------------------------------------------------- DeepLIFT


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["deep_lift", "deep_shap"])
def test_the_rescale_rule_on_operations_leaves_nothing_over(way, method, rng):
    x, background = columns(rng), columns(rng, 7)
    a = explain_inputs(Model(Body(WAYS[way])), column_inputs(x, background), method=method, targets=ones(5))
    assert np.abs(a.completeness).max() < 2e-5
    assert not a.caveats


def test_three_ways_to_write_a_network_give_the_same_values(rng):
    x = columns(rng)
    found = [
        explain_inputs(Model(Body(WAYS[way])), column_inputs(x), method="deep_lift", targets=ones(5)).values
        for way in ("functional relu", "in-place module", "in-place statement")
    ]
    assert found[1] == pytest.approx(found[0], abs=1e-7)
    assert found[2] == pytest.approx(found[0], abs=1e-7)


@pytest.mark.filterwarnings("ignore")
def test_deep_lift_is_captum_s_where_captum_has_rules(rng):
    captum = pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    x, baseline = columns(rng), columns(rng, 1)
    theirs = captum.DeepLift(net).attribute(x, baseline, target=1)
    mine = explain_inputs(Model(net), column_inputs(x), method="deep_lift", targets=ones(5), baseline=baseline)
    assert mine.values == pytest.approx(theirs.detach().numpy(), abs=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_rules_for_modules_are_wrong_about_functions_and_the_residual_shows_it(rng):
    x = image_inputs(pictures(rng))
    wrong = explain_inputs(Model(cnn(functional=True)), x, method="deep_lift", targets=ones(4), engine="captum")
    right = explain_inputs(Model(cnn(functional=True)), x, method="deep_lift", targets=ones(4))
    modules = explain_inputs(Model(cnn()), x, method="deep_lift", targets=ones(4), engine="captum")
    assert np.median(share(wrong)) > 0.05
    assert share(right).max() < 1e-4
    assert share(modules).max() < 1e-4
    assert "modules alone" in " ".join(wrong.caveats)
    assert modules.values == pytest.approx(right.values, abs=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_captum_s_engine_takes_in_place_steps_and_refuses_reused_modules_in_one_sentence(rng):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))
    a = explain_inputs(Model(net), column_inputs(columns(rng)), method="deep_lift", targets=ones(5), engine="captum")
    assert share(a).max() < 1e-4
    assert net[1].inplace
    with pytest.raises(ModelError, match='engine "operations"'):
        explain_inputs(
            Model(Body(WAYS["in-place module"])), column_inputs(columns(rng)), method="deep_lift", targets=ones(5), engine="captum"
        )
    with pytest.raises(ConfigError, match="engine is 'zennit'"):
        explain_inputs(Model(net), column_inputs(columns(rng)), method="deep_lift", targets=ones(5), engine="zennit")


def test_an_operation_without_a_rule_is_named(rng):
    net = Body(lambda s, z: torch.maximum(z, -2 * z))
    a = explain_inputs(Model(net), column_inputs(columns(rng)), method="deep_lift", targets=ones(5))
    assert "no rescale rule covers maximum" in " ".join(a.caveats)
    assert share(a).max() > 0.05


def test_a_model_that_takes_another_way_for_the_baseline_is_refused(rng):
    class Branching(Body):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = F.relu(self.a(x))
            return self.c(F.relu(self.b(h)) if bool((x != 0).any()) else h)

    with pytest.raises(ModelError, match="same steps"):
        explain_inputs(Model(Branching(None)), column_inputs(columns(rng)), method="deep_lift", targets=ones(5))


def test_attention_of_torch_and_written_out_are_covered(rng):
    class Attending(nn.Module):
        def __init__(self, own: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.own, self.attend, self.norm, self.head = (
                own,
                nn.MultiheadAttention(8, 2, batch_first=True),
                nn.LayerNorm(8),
                nn.Linear(8, 3),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.reshape(len(x), 6, 8)
            if not self.own:
                return self.head(self.norm(x + self.attend(x, x, x, need_weights=False)[0]).mean(dim=1))
            a = self.attend
            q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in F.linear(x, a.in_proj_weight, a.in_proj_bias).chunk(3, dim=-1))
            out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            return self.head(self.norm(x + a.out_proj(out)).mean(dim=1))

    x = columns(rng, 4, 48)
    found = [explain_inputs(Model(Attending(own)), column_inputs(x), method="deep_lift", targets=ones(4)) for own in (False, True)]
    assert max(np.abs(a.completeness).max() for a in found) < 1e-5
    assert found[0].values == pytest.approx(found[1].values, abs=1e-5)
    assert not found[0].caveats


def test_deep_shap_is_the_mean_of_deep_lift_over_the_background(rng):
    x, background = columns(rng), columns(rng, 4)
    model = Model(Body(WAYS["silu"]))
    a = explain_inputs(model, column_inputs(x, background), method="deep_shap", targets=ones(5))
    one_by_one = [explain_inputs(model, column_inputs(x), method="deep_lift", targets=ones(5), baseline=b).values for b in background]
    assert a.values == pytest.approx(np.mean(one_by_one, axis=0), abs=1e-5)
    assert np.stack(a.standard_error) == pytest.approx(np.std(one_by_one, axis=0, ddof=1) / 2, abs=1e-5)
    assert a.budget == 12


@pytest.mark.filterwarnings("ignore")
def test_deep_shap_is_shap_s_deep_explainer_on_a_plain_network(rng):
    shap = pytest.importorskip("shap")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    x, background = columns(rng), columns(rng, 10)
    theirs = np.asarray(shap.DeepExplainer(net, background).shap_values(x, check_additivity=False))
    theirs = theirs[..., 1] if theirs.shape[0] == 5 else theirs[1]
    a = explain_inputs(Model(net), column_inputs(x, background), method="deep_shap", targets=ones(5))
    assert a.values == pytest.approx(theirs, abs=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_maxima_are_shared_out_as_shap_does(rng):
    shap = pytest.importorskip("shap")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 49, 3)).eval()
    x, background = pictures(rng), pictures(rng, 3)
    theirs = np.asarray(shap.DeepExplainer(net, background).shap_values(x, check_additivity=False))
    theirs = theirs[..., 1] if theirs.shape[0] == 4 else theirs[1]
    a = explain_inputs(Model(net), replace(image_inputs(x), background=background), method="deep_shap", targets=ones(4))
    assert a.values == pytest.approx(theirs.sum(axis=1), abs=1e-4)


# ---------------------------------------------------------------- expected gradients and SmoothGrad


def exact_expected_gradients(f, x: torch.Tensor, background: torch.Tensor, nodes: int = 32) -> np.ndarray:
    at, weights = np.polynomial.legendre.leggauss(nodes)
    total = torch.zeros_like(x)
    for b in background:
        for t, w in zip((at + 1) / 2, weights / 2, strict=True):
            z = (b + t * (x - b)).requires_grad_(True)
            (slope,) = torch.autograd.grad(f(z).sum(), z)
            total += w * slope * (x - b)
    return (total / len(background)).numpy()


def curved(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x[:, 0] * x[:, 1]) + (x[:, 2:] ** 2).sum(dim=1) / 3 + torch.sin(2 * x[:, 1])


def test_expected_gradients_lie_within_their_standard_errors(rng):
    x, background = columns(rng, 1), columns(rng, 12)
    exact = exact_expected_gradients(curved, x, background)
    a = explain_inputs(Model(Function(curved)), column_inputs(x.expand(30, 6), background), method="gradient_shap", targets=ones(30))
    z = (a.values - exact) / np.stack(a.standard_error)
    assert 0.2 < np.sqrt((z**2).mean()) < 1.2  # too large where rows have several turns, never too small
    assert np.abs(a.values.mean(axis=0) - exact).max() < 0.02
    assert np.abs(a.completeness).max() < 0.02


def test_standard_errors_of_expected_gradients_are_right_where_every_row_has_one_turn(rng):
    x, background = columns(rng, 1), columns(rng, 85)
    exact = exact_expected_gradients(curved, x, background)
    a = explain_inputs(Model(Function(curved)), column_inputs(x.expand(30, 6), background), method="gradient_shap", targets=ones(30))
    z = (a.values - exact) / np.stack(a.standard_error)
    assert 0.5 < np.sqrt((z**2).mean()) < 1.4


@pytest.mark.filterwarnings("ignore")
def test_expected_gradients_agree_with_shap_and_are_closer_for_as_many_draws(rng):
    shap = pytest.importorskip("shap")
    x, background = columns(rng, 20), columns(rng, 20)
    exact = exact_expected_gradients(curved, x, background)
    theirs = np.asarray(shap.GradientExplainer(Function(curved), background).shap_values(x, nsamples=96, rseed=0))
    theirs = theirs[..., 1] if theirs.shape[0] == 20 else theirs[1]
    a = explain_inputs(Model(Function(curved)), column_inputs(x, background), method="gradient_shap", targets=ones(20), budget=2 * 96 + 21)
    assert a.params["draws"] == 96
    assert np.corrcoef(theirs.ravel(), a.values.ravel())[0, 1] > 0.9
    assert np.sqrt(((a.values - exact) ** 2).mean()) < 0.5 * np.sqrt(((theirs - exact) ** 2).mean())


def test_without_a_background_noisy_baselines_stand_for_it(rng):
    x = image_inputs(pictures(rng))
    a = explain_inputs(Model(cnn()), x, method="gradient_shap", targets=ones(4))
    b = explain_inputs(Model(cnn()), x, method="integrated_gradients", targets=ones(4), tolerance=0.001)
    assert a.params["reference"] == "28 noisy copies of the baseline"
    assert np.corrcoef(a.values.ravel(), b.values.ravel())[0, 1] > 0.9
    assert share(a).max() < 0.02


def test_smooth_grad_of_a_linear_model_is_its_gradient_without_error(rng):
    net = nn.Linear(6, 3)
    a = explain_inputs(Model(net), column_inputs(columns(rng)), method="smooth_grad", targets=ones(5), budget=20)
    assert a.values == pytest.approx(net.weight[1].detach().expand(5, 6).numpy(), abs=1e-6)
    assert np.abs(np.stack(a.standard_error)).max() < 1e-7


def test_smooth_grad_lies_within_its_standard_errors(rng):
    x = torch.tensor([[0.5, -1.0, 0.3, 1.0]])
    scale = 0.15 * 2.0
    z = x + scale * torch.as_tensor(rng.normal(size=(200_000, 4))).float()
    z.requires_grad_(True)
    (slope,) = torch.autograd.grad(curved(z).sum(), z)
    a = explain_inputs(Model(Function(curved)), column_inputs(x.expand(40, 4)), method="smooth_grad", targets=ones(40), budget=128)
    z_scores = ((a.values - slope.mean(dim=0).numpy()) / np.stack(a.standard_error))[:, :2]  # opposite pairs are exact for the squares
    assert 0.5 < np.sqrt((z_scores**2).mean()) < 1.6


@pytest.mark.parametrize("method", ["smooth_grad", "gradient_shap"])
def test_convergence_stops_early_or_says_that_it_was_not_reached(method, rng):
    x = column_inputs(columns(rng), columns(rng, 9))
    model = Model(Body(WAYS["silu"]))
    loose = explain_inputs(model, x, method=method, targets=ones(5), budget=1000, convergence=0.3)
    tight = explain_inputs(model, x, method=method, targets=ones(5), budget=200, convergence=0.0001)
    assert loose.budget < 500
    assert not loose.caveats
    for values, errors in zip(loose.player_values, loose.standard_error, strict=True):
        assert 1.96 * errors.max() <= 0.3 * np.ptp(values) * 1.001
    assert "did not reach the convergence" in " ".join(tight.caveats)


@pytest.mark.parametrize("method", ["smooth_grad", "gradient_shap"])
def test_a_sample_s_draws_depend_on_seed_and_id_alone(method, rng):
    x, background = columns(rng), columns(rng, 9)
    model = Model(Body(WAYS["silu"]))

    def values(rows, ids, seed=0):
        return explain_inputs(
            model, column_inputs(x[rows], background, ids), method=method, targets=ones(len(rows)), budget=60, seed=seed
        ).values

    full = values([0, 1, 2, 3, 4], tuple("abcde"))
    assert values([3, 1], ("d", "b")) == pytest.approx(full[[3, 1]], abs=1e-6)
    assert np.abs(values([3, 1], ("d", "q")) - full[[3, 1]])[1].max() > 1e-6
    assert np.abs(values([0], ("a",), seed=1) - full[[0]]).max() > 1e-6


# ---------------------------------------------------------------- guided gradients


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("functional", [False, True])
def test_guided_gradients_are_captum_s_and_carry_their_warning(functional, rng):
    captum = pytest.importorskip("captum.attr")
    x = pictures(rng)
    theirs = captum.GuidedBackprop(cnn().eval()).attribute(x, target=1)
    a = explain_inputs(Model(cnn(functional=functional)), image_inputs(x), method="guided_backprop", targets=ones(4))
    assert a.values == pytest.approx(theirs.sum(dim=1).detach().numpy(), abs=1e-6)
    assert WARNING in a.caveats
    assert NO_RELU not in a.caveats


def test_without_relu_guided_gradients_are_plain_ones_and_say_so(rng):
    x = column_inputs(columns(rng))
    guided, plain = (
        explain_inputs(Model(Body(WAYS["silu"])), x, method=m, targets=ones(5), **s) for m, s in (("guided_backprop", {}), ("saliency", {}))
    )
    assert np.abs(guided.values) == pytest.approx(plain.values, abs=1e-6)
    assert NO_RELU in guided.caveats


def test_guided_grad_cam_is_the_product_of_both(rng):
    x = image_inputs(pictures(rng))
    parts = [explain_inputs(Model(cnn(), head="8"), x, method=m, targets=ones(4)).values for m in ("guided_backprop", "grad_cam")]
    a = explain_inputs(Model(cnn(), head="8"), x, method="guided_grad_cam", targets=ones(4))
    assert a.values == pytest.approx(parts[0] * parts[1], rel=1e-5, abs=1e-9)
    assert WARNING in a.caveats
    assert a.layer is not None


# ---------------------------------------------------------------- layers


def test_enlarging_keeps_sums():
    maps = torch.as_tensor(np.random.default_rng(0).normal(size=(3, 4, 5)))
    assert enlarged(maps, (17, 23)).sum(dim=(1, 2)).numpy() == pytest.approx(maps.sum(dim=(1, 2)).numpy())
    assert (enlarged(torch.ones(1, 4, 4), (16, 16)) > 0).all()


@pytest.mark.parametrize("method", ["integrated_gradients", "deep_lift"])
def test_layer_versions_add_up_and_keep_their_sums_when_enlarged(method, rng):
    a = explain_inputs(Model(cnn()), image_inputs(pictures(rng)), method=method, targets=ones(4), layer="3")
    assert a.values.shape == (4, 16, 16)
    assert share(a).max() < 0.011
    assert a.layer == "3"
    assert "enlarged" in a.layer_reason


def test_what_leading_tokens_of_a_layer_got_is_shared_out(rng):
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.cut, self.first, self.mix, self.head = (
                nn.Conv2d(3, 8, 4, stride=4),
                nn.Parameter(torch.randn(1, 1, 8)),
                nn.Linear(8, 8),
                nn.Linear(8, 3),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = self.cut(x).flatten(2).transpose(1, 2)
            tokens = torch.cat([self.first + tokens.mean(dim=1, keepdim=True), tokens], dim=1)
            return self.head(F.silu(self.mix(tokens)).sum(dim=1))

    a = explain_inputs(Model(Tokens()), image_inputs(pictures(rng)), method="integrated_gradients", targets=ones(4), layer="mix")
    assert a.values.shape == (4, 16, 16)
    assert share(a).max() < 0.0101
    assert "leading tokens" in a.layer_reason


def test_layer_integrated_gradients_are_captum_s(rng):
    captum = pytest.importorskip("captum.attr")
    net, x = Body(WAYS["silu"]).eval(), columns(rng)
    theirs = captum.LayerIntegratedGradients(net, net.b).attribute(x, torch.zeros_like(x), target=1, n_steps=16)
    a = explain_inputs(Model(net), column_inputs(x), method="integrated_gradients", targets=ones(5), layer="b", steps=16)
    assert a.values == pytest.approx(theirs.detach().numpy(), abs=1e-5)
    assert a.to_rows()[0]["part"] == "unit 0"
    assert a.budget == 2 * 16 + 3


def test_gradients_at_a_layer_are_those_of_its_output(rng):
    net, x = cnn().eval(), pictures(rng)
    h = net[:4](x).detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(net[4:](h)[:, 1].sum(), h)
    for method, expected in (("saliency", slope.abs().amax(1)), ("input_x_gradient", (slope * h).sum(1))):
        a = explain_inputs(Model(net), image_inputs(x), method=method, targets=ones(4), layer="3")
        assert a.values == pytest.approx(enlarged(expected.detach().double(), (16, 16)).numpy(), abs=1e-7)


@pytest.mark.parametrize("method", ["integrated_gradients", "saliency", "input_x_gradient", "deep_lift"])
def test_a_layer_that_is_not_there_or_runs_twice_is_refused(method, rng):
    x = column_inputs(columns(rng))
    with pytest.raises(ModelError, match="no layer 'd'"):
        explain_inputs(Model(Body(WAYS["silu"])), x, method=method, targets=ones(5), layer="d")
    with pytest.raises(ModelError, match="run 2 times"):
        explain_inputs(Model(Body(WAYS["in-place module"])), x, method=method, targets=ones(5), layer="relu")
    with pytest.raises(ModelError, match="is not run"):
        explain_inputs(Model(Body(WAYS["silu"])), x, method=method, targets=ones(5), layer="layer_norm")


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize("method", EVERY)
def test_a_contrast_explains_the_difference_of_two_outputs(method, rng):
    net, x, background = Body(WAYS["silu"]), columns(rng), columns(rng, 9)
    contrast = nn.Sequential(net, nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        contrast[1].weight.copy_(torch.tensor([[0.0, 0.0, 0.0], [0.0, -1.0, 1.0]]))
    a = explain_inputs(Model(net), column_inputs(x, background), method=method, targets=Targets(2 * ones(5), ones(5)), budget=64)
    b = explain_inputs(Model(contrast), column_inputs(x, background), method=method, targets=ones(5), budget=64)
    assert a.values == pytest.approx(b.values, abs=1e-5)


@pytest.mark.parametrize("method", EVERY)
def test_single_binary_logits_and_probabilities_are_explained(method, rng):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    x = column_inputs(columns(rng), columns(rng, 5))
    yes, no = (explain_inputs(Model(net), x, method=method, targets=k * ones(5), budget=64).values for k in (1, 0))
    assert no == pytest.approx(yes if method == "saliency" else -yes, abs=1e-5) or method == "guided_backprop"
    a = explain_inputs(Model(net), x, method=method, targets=ones(5), budget=64, of="probability")
    assert np.isfinite(a.values).all()
    if method in ("deep_lift", "deep_shap"):
        assert np.abs(a.completeness).max() < 1e-5


@pytest.mark.parametrize("method", EVERY)
def test_half_precision_values_are_near_those_of_single_precision(method, rng):
    net, x = Body(WAYS["functional relu"]), column_inputs(columns(rng), columns(rng, 5))
    full = explain_inputs(Model(net), x, method=method, targets=ones(5), budget=64)
    for kind in (torch.float16, torch.bfloat16):
        half = explain_inputs(Model(copy.deepcopy(net).to(kind)), x, method=method, targets=ones(5), budget=64)
        assert np.corrcoef(half.values.ravel(), full.values.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("method", EVERY)
def test_a_model_without_gradients_is_refused_in_one_sentence(method, rng):
    class Cut(Body):
        @torch.no_grad()
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    with pytest.raises(ModelError, match="gives no gradients"):
        explain_inputs(Model(Cut(WAYS["silu"])), column_inputs(columns(rng)), method=method, targets=ones(5), budget=64)


@pytest.mark.parametrize("method", EVERY)
def test_memory_running_out_halves_the_batch_and_changes_nothing(method, rng):
    class Small(Body):
        most = 10**6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > self.most:
                raise torch.OutOfMemoryError("no memory left")
            return super().forward(x)

    net, x = Small(WAYS["silu"]), column_inputs(columns(rng, 12), columns(rng, 5))
    whole = explain_inputs(Model(net), x, method=method, targets=ones(12), budget=40)
    net.most = 3
    a = explain_inputs(Model(net), x, method=method, targets=ones(12), budget=40, batch_size=12)
    assert a.values == pytest.approx(whole.values, abs=1e-5)
    assert "out of memory: the batch was halved 2 time(s)" in a.caveats


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v3_small"])
def test_networks_of_torchvision_are_explained_by_every_method(arch, rng):
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    net = getattr(torchvision.models, arch)(num_classes=4)
    x = pictures(rng, 1, 32)
    for method in (*EVERY, "guided_grad_cam"):
        a = explain_inputs(Model(net), image_inputs(x, cell=8), method=method, targets=ones(1), budget=12, batch_size=8)
        assert np.isfinite(a.values).all(), method
        if method in ("deep_lift", "deep_shap"):
            assert share(a).max() < 1e-3, method
            assert not a.caveats


def test_rules_are_gone_when_a_run_breaks(rng):
    net = Body(lambda s, z: (_ for _ in ()).throw(ValueError("broken")))
    with pytest.raises(ValueError, match="broken"):
        explain_inputs(Model(net), column_inputs(columns(rng)), method="deep_lift", targets=ones(5))
    rules = Rescaling()
    with pytest.raises(ValueError, match="out"), rules.recording():
        raise ValueError("out")
    z = torch.tensor([-1.0, 2.0], requires_grad=True)
    (slope,) = torch.autograd.grad(torch.relu(z).sum(), z)
    assert slope.tolist() == [0.0, 1.0]
