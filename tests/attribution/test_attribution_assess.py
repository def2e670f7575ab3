"""The stamp of maps outside an audit: what it finds out, and what few maps cannot show."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.attribution.attribution_fakes import PatchDetector, column_inputs, image_inputs
from tl_audit.attribution import explain, explain_inputs
from tl_audit.attribution.quality import assess
from tl_audit.models import Model

N = 40


@pytest.fixture(scope="module")
def scene() -> SimpleNamespace:
    rng = np.random.default_rng(5)
    x = torch.as_tensor(rng.uniform(0, 0.5, size=(N, 1, 16, 16))).float()
    for i, k in enumerate(rng.integers(16, size=N)):
        x[i, :, 4 * (k // 4) : 4 * (k // 4) + 4, 4 * (k % 4) : 4 * (k % 4) + 4] = 1.0
    return SimpleNamespace(inputs=image_inputs(x), model=Model(PatchDetector(), classes=("no", "yes")), targets=np.ones(N, dtype=np.int64))


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x)) * 4


def test_the_edges_of_the_input_are_found_out_and_the_model_is_left_alone(scene):
    before = {k: v.clone() for k, v in scene.model.module.state_dict().items()}
    maps = explain_inputs(scene.model, scene.inputs, method="edge_map", targets=scene.targets)
    stamp = assess(scene.model, maps).quality
    assert stamp.state == "unreliable"
    assert "TLA703" in stamp.text
    assert maps.quality is None
    assert all(torch.equal(v, before[k]) for k, v in scene.model.module.state_dict().items())


def test_values_of_a_trained_looking_network_pass_and_noise_does_not(rng):
    model, inputs = Model(Deep(), classes=("no", "yes")), column_inputs(torch.as_tensor(rng.normal(size=(120, 8))).float())
    targets = np.ones(120, dtype=np.int64)
    maps = {m: explain_inputs(model, inputs, method=m, targets=targets, budget=254) for m in ("kernel_shap", "random_map")}
    stamped = assess(model, maps)
    assert stamped["kernel_shap"].quality.state == "passed"
    assert stamped["kernel_shap"].quality.text == "quality checks passed (TLA701, TLA702, TLA703); n = 120 maps"
    assert stamped["random_map"].quality.state == "unreliable"
    assert assess(model, maps)["kernel_shap"].quality == stamped["kernel_shap"].quality


def test_three_maps_show_nothing_and_the_stamp_says_so(scene):
    few = scene.inputs.select(np.arange(3))
    maps = explain_inputs(scene.model, few, method="kernel_shap", targets=scene.targets[:3], budget=64)
    stamp = assess(scene.model, maps).quality
    assert stamp.state == "not_checked"
    assert stamp.text.startswith("reliability not shown (n = 3 maps, 30 are needed to decide); gain over a random map +0.")


def test_three_maps_that_ignore_the_model_are_enough_to_say_so(scene):
    few = scene.inputs.select(np.arange(3))
    maps = explain_inputs(scene.model, few, method="edge_map", targets=scene.targets[:3])
    assert assess(scene.model, maps).quality.text == "not reliable: fails TLA703 (randomisation_effect); n = 3 maps"


def test_explain_stamps_where_it_is_asked_to(rng):
    x = torch.as_tensor(rng.normal(size=(4, 8))).float()
    found = explain(Deep(), x, method="kernel_shap", quality=True, budget=64)
    assert "n = 4 maps" in found.quality.text
    assert explain(Deep(), x, method="kernel_shap", budget=64).quality is None
    assert "n = 4 maps" in repr(found)


def test_clusters_are_the_units_of_the_stamp(rng):
    model, inputs = Model(Deep(), classes=("no", "yes")), column_inputs(torch.as_tensor(rng.normal(size=(120, 8))).float())
    maps = explain_inputs(model, inputs, method="kernel_shap", targets=np.ones(120, dtype=np.int64), budget=254)
    stamp = assess(model, maps, cluster=np.arange(120) % 4).quality
    assert stamp.state == "not_checked"
    assert "inconclusive" in stamp.text


def test_what_is_left_out_of_the_curves_for_a_stamp_does_not_change_the_gain(scene):
    from tl_audit.attribution.quality import curves_of_maps

    a = explain_inputs(scene.model, scene.inputs, method="kernel_shap", targets=scene.targets, budget=32)
    whole, short = (curves_of_maps(scene.model, {"kernel_shap": a}, seed=0, gain_only=only)["kernel_shap"] for only in (False, True))
    np.testing.assert_array_equal(whole.gain, short.gain)
    assert short.edges is None
    assert short.own.most_first.shape[1] < whole.own.most_first.shape[1]
