"""TLA701, TLA704, TLA705, TLA706: maps that add up, repeat, agree with each other, and do not hang on the layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.attribution.attribution_fakes import PatchDetector, column_inputs, image_inputs
from tests.checks.test_checks_explanations import Maps, context, finding, limit, subject_of
from tl_audit.attribution import Attribution, Inputs, explain_inputs
from tl_audit.attribution.maps import from_players
from tl_audit.attribution.quality import residuals
from tl_audit.checks.explanations.agreement import agreement
from tl_audit.checks.explanations.completeness import completeness
from tl_audit.checks.explanations.layers import layer_sensitivity
from tl_audit.checks.explanations.shared import chance_iou
from tl_audit.checks.explanations.stability import SAMPLES, budget_advice, seed_stability
from tl_audit.errors import NotEvaluated
from tl_audit.models import Model
from tl_audit.policy import load_policy
from tl_audit.policy.judge import judge

N, D = 40, 8


@dataclass
class Evidence(Maps):
    """Maps, and regions of the samples."""

    inside: Any = None

    def regions(self, domain: str, rows: Any, model: str = "adapted") -> Any:
        if self.inside is None:
            raise NotEvaluated("regions of the target domain")
        return self.inside[rows], np.ones(len(rows), dtype=bool)


class Curved(nn.Module):
    """Smooth and far from linear: few steps of integration miss its change."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.sigmoid(12 * (x.sum(dim=1, keepdim=True) - 2))
        return torch.cat([-z, z], dim=1)


def linear(d: int = D) -> nn.Linear:
    net = nn.Linear(d, 2)
    with torch.no_grad():
        net.weight.copy_(torch.linspace(-1, 1, 2 * d).reshape(2, d))
    return net


@pytest.fixture
def columns(rng) -> Inputs:
    return column_inputs(torch.as_tensor(rng.uniform(0.2, 1.0, size=(N, D))).float())


def ones() -> Any:
    return np.ones(N, dtype=np.int64)


def judged(code: str, measured: Any) -> Any:
    return judge(code, "", "explanations", "high", measured, load_policy("default"))


# ---------------------------------------------------------------- completeness


def test_the_residual_by_hand(columns):
    _, parts = from_players([np.array([3.0, 1.0] + [0.0] * (D - 2))] * N, columns.players)
    left = np.zeros(N)
    left[0], left[1] = 1.0, -0.2  # 4 shared out where 3 (and 4.2) changed
    a = Attribution(np.zeros((N, D)), parts, ones(), "kernel_shap", columns, True, completeness=left, blank=np.zeros(N, dtype=bool))
    assert residuals(a)[:3] == pytest.approx([1 / 3, 0.2 / 4.2, 0.0])


def test_a_sample_that_hardly_changes_is_measured_against_the_median_change(columns):
    values = np.zeros((N, D))
    values[:, 0], values[0, 0] = 2.0, 0.001
    _, parts = from_players(list(values), columns.players)
    left = np.full(N, 0.001)
    left[1:] = 0.0
    a = Attribution(values, parts, ones(), "kernel_shap", columns, True, completeness=left, blank=np.zeros(N, dtype=bool))
    assert residuals(a)[0] == pytest.approx(0.001 / 0.02)  # its own change is 0


@pytest.mark.parametrize("method", ["integrated_gradients", "kernel_shap"])
def test_a_linear_model_is_shared_out_without_rest(method, columns):
    model = Model(linear(), classes=("no", "yes"))
    a = explain_inputs(model, columns, method=method, targets=ones(), budget=64)
    found = completeness(subject_of(model), Maps({method: a}), context())
    assert found.select("completeness_residual", method=method).value < 1e-5
    assert found.select("completeness_bad_share", method=method).value == 0
    assert judged("TLA701", found).status == "pass"
    assert any("by construction" in c for c in found.caveats) == (method == "kernel_shap")


def test_too_few_steps_break_the_limit_and_the_report_says_how_many_are_needed(columns):
    model = Model(Curved(), classes=("no", "yes"))
    a = explain_inputs(model, columns, method="integrated_gradients", targets=ones(), steps=2)
    if residuals(a).max() <= 0.05:
        pytest.skip("the method adapts its steps")
    found = completeness(subject_of(model), Maps({"integrated_gradients": a}), context())
    assert found.select("completeness_bad_share", method="integrated_gradients").value > 0.5
    assert judged("TLA701", found).status == "fail"
    assert any("instead of 2" in c for c in found.caveats)
    assert found.params["steps_tried:integrated_gradients"] in (4, 8, 16, 32)


def test_values_that_leave_out_a_part_of_the_change_are_found_whatever_the_steps(columns):
    model = Model(linear(), classes=("no", "yes"))
    a = explain_inputs(model, columns, method="kernel_shap", targets=ones(), budget=64)
    change = np.array([v.sum() for v in a.player_values])
    short = replace(a, player_values=tuple(0.8 * v for v in a.player_values), completeness=-0.2 * change)
    found = judged("TLA701", completeness(subject_of(model), Maps({"kernel_shap": short}), context()))
    assert found.status == "fail"
    assert found.measurement.select("completeness_residual", method="kernel_shap").value == pytest.approx(0.2)


def test_blank_maps_are_counted_and_not_averaged_in_the_residual(columns):
    model = Model(linear(), classes=("no", "yes"))
    a = explain_inputs(model, columns, method="kernel_shap", targets=ones(), budget=64)
    blank = np.arange(N) < 8
    broken = replace(a, blank=blank, completeness=np.where(blank, 5.0, a.completeness))
    found = completeness(subject_of(model), Maps({"kernel_shap": broken}), context())
    assert found.select("blank_maps", method="kernel_shap").value == 8
    assert found.select("completeness_bad_share", method="kernel_shap").n == {"target": N - 8}
    assert found.select("completeness_bad_share", method="kernel_shap").value == 0


def test_without_an_additive_method_there_is_nothing_to_add_up(columns):
    model = Model(linear(), classes=("no", "yes"))
    a = explain_inputs(model, columns, method="lime", targets=ones(), budget=64)
    with pytest.raises(NotEvaluated, match="kernel_shap"):
        completeness(subject_of(model), Maps({"lime": a}), context())


def test_the_gate_does_not_ask_lime_to_add_up():
    from tests.checks.test_checks_explanations import gate
    from tl_audit.records.findings import Finding

    nothing = Finding(code="TLA701", section="explanations", title="", status="not_evaluated", reason="none chosen", severity="high")
    rest = [finding(code, [limit(metric, m, "met") for m in ("lime", "kernel_shap")]) for code, metric in
            (("TLA702", "faithfulness_gain"), ("TLA703", "randomisation_effect"))]  # fmt: skip
    found = gate([nothing, *rest], "lime", "kernel_shap")
    assert str(found.params["stamp:lime"]).startswith("passed")
    assert str(found.params["stamp:kernel_shap"]).startswith("not_checked")


# ---------------------------------------------------------------- seed stability


def test_noise_has_nothing_in_common_between_seeds_and_exact_values_everything(columns):
    model = Model(linear(), classes=("no", "yes"))
    maps = {
        m: explain_inputs(model, columns, method=m, targets=ones(), budget=512)
        for m in ("random_map", "kernel_shap", "integrated_gradients")
    }
    found = seed_stability(subject_of(model), Maps(maps), context())
    noise = found.select("seed_rank_correlation", method="random_map")
    assert abs(noise.value) < 0.2
    assert noise.n == {"target": SAMPLES}
    assert found.select("seed_rank_correlation", method="kernel_shap").value > 0.99  # all coalitions fit
    assert found.select("seed_top_iou", method="random_map").null == pytest.approx(1 / D)
    exact = found.select("seed_rank_correlation", method="integrated_gradients")
    assert (exact.value, exact.exact) == (1.0, True)
    assert "deterministic" in exact.reason
    assert judged("TLA704", found).status == "warn"
    assert "random_map: two runs have nothing in common" in found.summary


def test_noise_of_known_size_gives_the_correlation_and_the_budget_that_would_do(rng, columns):
    """Signal and noise of equal variance: correlation 1/2; four times the budget quarters the noise: 0.8."""
    assert "about 400 model evaluations per sample instead of 100" in budget_advice("lime", 0.5, 100)
    signal, noise = rng.normal(size=(2, 200_000))
    for times, wanted in ((1, 0.5), (4, 0.8)):
        two = signal + noise / np.sqrt(times), signal + rng.normal(size=signal.size) / np.sqrt(times)
        assert np.corrcoef(*two)[0, 1] == pytest.approx(wanted, abs=0.01)


def test_few_samples_are_taken_as_they_are_and_decide_nothing_below_ten(columns):
    model = Model(linear(), classes=("no", "yes"))
    few = explain_inputs(model, columns.select(np.arange(6)), method="random_map", targets=ones()[:6])
    found = judged("TLA704", seed_stability(subject_of(model), Maps({"random_map": few}), context()))
    assert found.status == "inconclusive"
    a = explain_inputs(model, columns, method="integrated_gradients", targets=ones())
    with pytest.raises(NotEvaluated, match="deterministic"):
        seed_stability(subject_of(model), Maps({"integrated_gradients": a}), context())


@pytest.mark.parametrize("parts", [4, 10, 14, 49, 400])
def test_overlap_by_chance_is_that_of_shuffled_maps(parts, rng):
    from tl_audit.measures.attribution import top_iou

    two = rng.normal(size=(2, 4000, parts))
    assert chance_iou(np.array([parts])) == pytest.approx(top_iou(*two).mean(), abs=0.02)
    if parts == 400:
        assert chance_iou(np.array([parts])) == pytest.approx(0.1 / 1.9, abs=0.002)


# ---------------------------------------------------------------- agreement


def with_maps(inputs: Inputs, values: Any, method: str, *, signed: bool = True) -> Attribution:
    elements, parts = from_players(list(np.asarray(values)), inputs.players)
    return Attribution(elements, parts, ones(), method, inputs, signed, blank=np.zeros(N, dtype=bool))


def passed(*methods: str) -> Any:
    return context(findings=(finding("TLA702", [limit("faithfulness_gain", m, "met") for m in methods]),))


def test_a_method_agrees_with_itself_and_not_with_noise(columns, rng):
    values = rng.normal(size=(N, D))
    maps = Maps(
        {m: with_maps(columns, v, m) for m, v in (("kernel_shap", values), ("lime", 2 * values), ("random_map", rng.normal(size=(N, D))))}
    )
    found = agreement(SimpleNamespace(), maps, passed("kernel_shap", "lime", "random_map"))
    same = found.select("method_rank_correlation", pair="kernel_shap and lime")
    assert same.value == pytest.approx(1.0)
    assert found.select("method_top_iou", pair="kernel_shap and lime").value == 1.0
    assert found.select("method_sign_agreement", pair="kernel_shap and lime").value == 1.0
    assert abs(found.select("method_rank_correlation", pair="kernel_shap and random_map").value) < 0.2
    assert found.select("method_sign_agreement", pair="kernel_shap and random_map").null == pytest.approx(0.5, abs=0.05)
    assert found.select("best_pair_rank_correlation").value == pytest.approx(1.0)
    assert judged("TLA705", found).status == "pass"
    heat = found.exhibits[0]
    assert heat.kind == "Heatmap"
    assert heat.values[0][1] == pytest.approx(1.0) == heat.values[1][0]


def test_methods_of_which_no_two_agree_are_a_warning_and_never_a_failure(columns, rng):
    values = rng.normal(size=(N, D))
    maps = Maps({m: with_maps(columns, v, m) for m, v in (("kernel_shap", values), ("lime", -values))})
    found = judged("TLA705", agreement(SimpleNamespace(), maps, passed(*maps.methods)))
    assert found.status == "warn"
    # maps of chance alone: so few samples cannot exclude a little agreement, and nothing passes
    maps = Maps({m: with_maps(columns, rng.normal(size=(N, D)), m) for m in ("kernel_shap", "lime", "random_map")})
    assert judged("TLA705", agreement(SimpleNamespace(), maps, passed(*maps.methods))).status in ("warn", "inconclusive")


def test_an_unreliable_method_does_not_count_and_is_named(columns, rng):
    values = rng.normal(size=(N, D))
    maps = Maps({m: with_maps(columns, values, m) for m in ("kernel_shap", "lime", "random_map")})
    outcomes = [limit("faithfulness_gain", m, "broken" if m == "random_map" else "met") for m in maps.methods]
    found = agreement(SimpleNamespace(), maps, context(findings=(finding("TLA702", outcomes),)))
    assert {m.slice["pair"] for m in found.metrics if m.name == "method_rank_correlation"} == {"kernel_shap and lime"}
    assert any("random_map is left out" in c for c in found.caveats)
    outcomes[1] = limit("faithfulness_gain", "lime", "broken")
    with pytest.raises(NotEvaluated, match="two attribution methods"):
        agreement(SimpleNamespace(), maps, context(findings=(finding("TLA702", outcomes),)))


def test_an_unsigned_map_has_no_signs_to_agree_on(columns, rng):
    values = rng.normal(size=(N, D))
    maps = Maps({"grad_cam": with_maps(columns, np.abs(values), "grad_cam", signed=False), "lime": with_maps(columns, values, "lime")})
    found = agreement(SimpleNamespace(), maps, passed("grad_cam", "lime"))
    assert not [m for m in found.metrics if m.name == "method_sign_agreement"]


# ---------------------------------------------------------------- layers


class Twice(nn.Module):
    """The patch detector with a layer beside the one that is read: the same map once more (factor 1), or turned upside down."""

    def __init__(self, *, turned: bool) -> None:
        super().__init__()
        inner = PatchDetector()
        self.look, self.act, self.head = inner.look, nn.ReLU(), inner.head
        self.after = Turn() if turned else Copy()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.after(self.act(self.look(x))).mean(dim=(2, 3)))
        return out


class Copy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1.0


class Turn(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flip(2, 3)


@pytest.fixture
def pictures(rng) -> Inputs:
    x = torch.as_tensor(rng.uniform(0, 0.5, size=(N, 1, 16, 16))).float()
    x[:, :, 0:4, 0:4] = 1.0
    x[:, :, 0:4, 4:8] = 0.8
    return image_inputs(x)


def layer_finding(inputs: Inputs, net: nn.Module, inside: Any = None) -> Any:
    model = Model(net, classes=("no", "yes"), head="head")
    a = explain_inputs(model, inputs, method="grad_cam", targets=ones())
    return judged("TLA706", layer_sensitivity(subject_of(model), Evidence({"grad_cam": a}, inside=inside), passed("grad_cam")))


def test_a_layer_that_hands_its_map_on_tells_the_same_story(pictures):
    found = layer_finding(pictures, Twice(turned=False))
    alike = [m for m in found.measurement.metrics if m.name == "layer_rank_correlation"]
    assert alike[0].value == pytest.approx(1.0, abs=0.05)
    assert found.status == "pass"


def test_a_layer_that_turns_the_map_round_is_a_warning(pictures):
    found = layer_finding(pictures, Twice(turned=True))
    assert found.status == "warn"
    assert found.measurement.params["layer"].startswith("after")


def test_the_mass_at_each_stage_needs_regions_and_says_so(pictures):
    from tl_audit.models.builtin import SmallCNN

    torch.manual_seed(0)
    net = SmallCNN(2, channels=1).eval()
    spread = layer_finding(pictures, net).measurement.select("layer_mass_spread")
    assert spread.value is None
    assert "regions" in spread.reason
    inside = np.zeros((N, 16, 16), dtype=bool)
    inside[:, :4, :8] = True
    spread = layer_finding(pictures, net, inside).measurement.select("layer_mass_spread")
    assert 0 <= spread.value <= 1
    assert layer_finding(pictures, net, np.ones_like(inside)).measurement.select("layer_mass_spread").value == pytest.approx(0.0)


def test_without_grad_cam_no_layer_was_chosen(columns, rng):
    maps = Maps({"lime": with_maps(columns, rng.normal(size=(N, D)), "lime")})
    with pytest.raises(NotEvaluated, match="grad_cam"):
        layer_sensitivity(SimpleNamespace(), maps, passed("lime"))


# ---------------------------------------------------------------- removal curves


def test_neither_batches_nor_other_samples_nor_other_rankings_change_a_curve(rng):
    from tl_audit.attribution import Targets
    from tl_audit.attribution.quality import STEPS, Ranking, removal_curves
    from tl_audit.modality import IMAGE
    from tl_audit.models.builtin import SmallCNN

    torch.manual_seed(0)
    x = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    inputs = Inputs(x, tuple("abcde"), IMAGE, None, IMAGE.players(x, None, seed=0))
    model, targets = Model(SmallCNN(2).eval()), Targets(np.ones(5, dtype=np.int64))
    orders = [rng.permutation(int(c)) for c in inputs.players.count]
    more = {"other": Ranking([o[::-1] for o in orders], STEPS), "one": Ranking(orders, STEPS)}
    whole = removal_curves(model, inputs, targets, more, seed=0, batch_size=512)["one"]
    small = removal_curves(model, inputs, targets, {"one": Ranking(orders, STEPS)}, seed=0, batch_size=3)["one"]
    assert small.most_first == pytest.approx(whole.most_first, abs=1e-5)
    at = np.array([3])
    alone = removal_curves(model, inputs.select(at), targets[at], {"one": Ranking([orders[3]], STEPS)}, seed=0, batch_size=7)["one"]
    assert alone.most_first == pytest.approx(whole.most_first[at], abs=1e-5)
    other_seed = removal_curves(model, inputs, targets, {"one": Ranking(orders, STEPS)}, seed=1, batch_size=512)["one"]
    assert np.abs(other_seed.most_first[:, 1:-1] - whole.most_first[:, 1:-1]).max() > 1e-6


def test_masks_for_many_samples_are_those_of_each_alone(rng):
    from tl_audit.attribution.removal import kept_after, kept_after_all

    shares, counts = (0.0, 0.1, 0.35, 0.5, 0.8, 1.0), [3, 7, 5]
    areas, orders = np.zeros((3, 7)), np.tile(np.arange(7), (3, 1))
    for i, count in enumerate(counts):
        areas[i, :count] = rng.integers(1, 9, size=count)
        orders[i, :count] = rng.permutation(count)
    whole = kept_after_all(orders, areas, shares)
    for i, count in enumerate(counts):
        order, area = orders[i, :count], areas[i, :count]
        for k, share in enumerate(shares):  # the dull way: remove one after another, keep the cut that comes nearest
            reached = [sum(area[p] for p in order[:c]) / area.sum() for c in range(count + 1)]
            cut = min(range(count + 1), key=lambda c: abs(reached[c] - share))
            assert whole[i, k, :count].tolist() == [p not in set(order[:cut]) for p in range(count)]
        assert whole[i, :, count:].all()
        assert kept_after(order, area, shares).tolist() == whole[i, :, :count].tolist()


def test_a_fill_without_colour_is_that_of_each_channel_and_colour_is_not_mistaken_for_grey():
    from tl_audit.modality import imputation

    generator = torch.Generator().manual_seed(0)
    grey = torch.rand(3, 1, 24, 24, generator=generator)
    removed = torch.rand(3, 24, 24, generator=generator) < 0.6
    scale, shift = torch.tensor([1.0, 4.5, 0.2])[:, None, None], torch.tensor([0.0, -2.0, 1.0])[:, None, None]
    found = imputation.linear_fill(grey * scale + shift, removed)
    each = torch.cat([imputation.linear_fill(grey, removed) * scale[k] + shift[k] for k in range(3)], dim=1)
    assert torch.allclose(found, each, atol=1e-4)
    colour = torch.cat([grey, grey.flip(-1)], dim=1)
    found = imputation.linear_fill(colour, removed)
    assert torch.allclose(found[:, 1:], imputation.linear_fill(grey.flip(-1), removed), atol=1e-6)
