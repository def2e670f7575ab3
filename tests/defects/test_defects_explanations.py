"""Planted defects 21 and 22: explainers that have nothing to do with the model, and one whose rules miss a part of it. They must be found out, and sound
methods beside them must not be accused.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tl_audit as ta
from tl_audit.attribution import Attribution
from tl_audit.attribution.maps import blank_maps, from_elements
from tl_audit.attribution.methods.deep_lift import DeepLift
from tl_audit.attribution.methods.edge_map import EdgeMap
from tl_audit.models.builtin import SmallCNN

ACCUSED = ("warn", "fail")
SELECT = ["TLA301", "TLA305", "TLA701", "TLA702", "TLA703", "TLA704", "TLA711"]


def trained(net: nn.Module, x: torch.Tensor, y: torch.Tensor, *, steps: int, rate: float) -> nn.Module:
    optimiser = torch.optim.Adam(net.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(0)
    net.train()
    for _ in range(steps):
        rows = torch.randint(len(x), (128,), generator=generator)
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimiser.step()
    return net.eval()


@cache
def digits(seed: int) -> tuple[ta.Model, ta.Domain]:
    """A small CNN that reads the digits 0 to 4 at 16 pixels, and digits it has not seen."""
    from sklearn.datasets import load_digits

    data = load_digits(n_class=5)
    x = torch.as_tensor(data.images / 16).float()[:, None]
    x = nn.functional.interpolate(x, size=(16, 16), mode="bilinear")
    y = torch.as_tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x, y = x[order], y[order]
    torch.manual_seed(seed)
    net = trained(SmallCNN(5, channels=1, widths=(12, 24)), x[:500], y[:500], steps=80, rate=0.01)
    names = [str(k) for k in range(5)]
    labels = [names[int(k)] for k in y[500:]]
    return ta.Model(net, classes=tuple(names)), ta.Domain("target", x[500:].numpy(), labels=labels, classes=names, kind="tensor")


@cache
def columns(seed: int) -> tuple[ta.Model, ta.Domain]:
    """A network that reads a table of eight columns, and rows it has not seen."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(1500, 8)).astype(np.float32)
    y = (x @ np.array([2.0, -1.5, 1.2, 1.0, 0.8, 0.5, 0.0, 0.0]) + 0.3 * rng.normal(size=1500) > 0).astype(np.int64)
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 2))
    trained(net, torch.as_tensor(x[:800]), torch.as_tensor(y[:800]), steps=120, rate=0.01)
    names = ["no", "yes"]
    return ta.Model(net, classes=tuple(names)), ta.Domain(
        "target", x[800:], labels=[names[k] for k in y[800:]], classes=names, kind="tensor"
    )


def audited(model: ta.Model, target: ta.Domain, methods: tuple[str, ...], seed: int, **more: Any) -> dict[str, Any]:
    report = ta.audit(ta.Subject(adapted=model, target=target), methods=methods, seed=seed, select=SELECT, **more)
    found = {f.code: f for f in report.findings}
    assert not [f"{f.code}: {f.reason}" for f in report.findings if f.status == "error"]
    for quiet in ("TLA301", "TLA305"):
        assert found[quiet].status not in ACCUSED, f"{quiet}: {found[quiet].reason}"
    return found


def outcomes(finding: Any, metric: str, method: str, level: str = "fail") -> str:
    (one,) = [x.outcome for x in finding.limits if x.metric == metric and x.slice.get("method") == method and x.level == level]
    return str(one)


def stamp(found: dict[str, Any], method: str) -> str:
    return str(found["TLA711"].measurement.params[f"stamp:{method}"])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_edges_and_noise_on_images_are_found_out_beside_a_sound_method(seed):
    found = audited(*digits(seed), ("kernel_shap", "edge_map", "random_map"), seed, attribution_samples=48, budget=128)
    assert found["TLA703"].status == "fail"
    for method in ("edge_map", "random_map"):
        assert outcomes(found["TLA703"], "randomisation_effect", method) == "broken"
        assert stamp(found, method).startswith("unreliable")
    assert outcomes(found["TLA703"], "randomisation_effect", "kernel_shap") == "met"
    assert found["TLA702"].status != "pass"
    assert outcomes(found["TLA702"], "faithfulness_gain", "random_map", "warn") != "met"
    assert outcomes(found["TLA702"], "faithfulness_gain", "kernel_shap") == "met"
    assert found["TLA704"].status == "warn"
    assert outcomes(found["TLA704"], "seed_rank_correlation", "random_map", "warn") == "broken"
    assert stamp(found, "kernel_shap").startswith("passed")
    assert found["TLA711"].status == "warn"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_noise_on_tables_is_found_out_beside_a_sound_method(seed):
    found = audited(*columns(seed), ("kernel_shap", "random_map"), seed, attribution_samples=100)
    assert found["TLA703"].status == "fail"
    assert outcomes(found["TLA703"], "randomisation_effect", "random_map") == "broken"
    assert outcomes(found["TLA703"], "randomisation_effect", "kernel_shap") == "met"
    assert found["TLA702"].status != "pass"
    assert outcomes(found["TLA702"], "faithfulness_gain", "random_map", "warn") != "met"
    assert found["TLA704"].status == "warn"
    assert stamp(found, "kernel_shap").startswith("passed")
    assert stamp(found, "random_map").startswith("unreliable")
    assert found["TLA711"].status == "warn"


def test_without_any_other_method_the_gate_fails():
    found = audited(*columns(0), ("random_map",), 0, attribution_samples=60)
    assert found["TLA711"].status == "fail"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_constant_map_is_counted_as_blank_and_never_averaged_in(seed, monkeypatch):
    def constant(self: EdgeMap, model: Any, inputs: Any, targets: Any, run: Any) -> Attribution:
        elements, players = from_elements(torch.ones((len(inputs), *inputs.tensor.shape[-2:])), inputs.players)
        return Attribution(elements, players, targets.index, self.name, inputs, False, seed=run.seed, blank=blank_maps(elements))

    monkeypatch.setattr(EdgeMap, "__call__", constant)
    found = audited(*digits(seed), ("edge_map",), seed, attribution_samples=40)
    for code in ("TLA702", "TLA703"):
        assert found[code].measurement.select("blank_maps", method="edge_map").value == 40
        assert found[code].status != "pass"
    assert found["TLA702"].measurement.select("faithfulness_gain", method="edge_map").value is None
    assert "blank" in found["TLA702"].measurement.select("faithfulness_gain", method="edge_map").reason
    assert not stamp(found, "edge_map").startswith("passed")


# ---------------------------------------------------------------- 22: functional ReLU under DeepLIFT


class Functional(nn.Module):
    """Nothing but linear modules; its ReLUs are functions, which rules for modules never see."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 24), nn.Linear(24, 24), nn.Linear(24, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu(self.first(x))
        out: torch.Tensor = self.head(torch.relu(self.second(x)))
        return out


@cache
def functional(seed: int) -> tuple[ta.Model, ta.Domain]:
    model, target = columns(seed)
    net = Functional()
    net.load_state_dict({f"{name}.{part}": value for name, at in (("first", "0"), ("second", "2"), ("head", "4"))
                         for part, value in model.module[int(at)].state_dict().items()})  # fmt: skip
    return ta.Model(net.eval(), classes=("no", "yes")), target


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rules_for_modules_miss_functional_activations_and_the_residual_shows_it(seed, monkeypatch):
    whole = DeepLift.__call__
    monkeypatch.setattr(DeepLift, "__call__", lambda self, *given: whole(replace(self, engine="captum"), *given))
    found = audited(*functional(seed), ("deep_lift", "kernel_shap"), seed, attribution_samples=100)
    assert found["TLA701"].status == "fail", found["TLA701"].reason
    assert outcomes(found["TLA701"], "completeness_bad_share", "deep_lift") == "broken"
    assert outcomes(found["TLA701"], "completeness_bad_share", "kernel_shap") == "met"
    assert outcomes(found["TLA703"], "randomisation_effect", "kernel_shap") == "met"
    assert outcomes(found["TLA703"], "randomised_similarity", "kernel_shap", "warn") != "broken"
    assert stamp(found, "deep_lift").startswith("unreliable: not reliable: fails TLA701")
    assert stamp(found, "kernel_shap").startswith("passed")
    assert found["TLA711"].status == "warn"


@pytest.mark.parametrize("build", [functional, columns])
def test_the_rule_on_operations_adds_up_whether_activations_are_modules_or_functions(build):
    found = audited(*build(0), ("deep_lift",), 0, attribution_samples=100)
    assert found["TLA701"].status == "pass", found["TLA701"].reason
    assert not stamp(found, "deep_lift").startswith("unreliable")
