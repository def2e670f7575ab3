"""TLA704 to TLA710 where nothing is wrong: how often each speaks, over many draws of data without effect, and that it speaks where there is one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.attribution.attribution_fakes import column_inputs, image_inputs
from tests.checks.test_checks_drift import CLASSES, Explained, judged, measure
from tests.checks.test_checks_explanations import Maps, context, finding, limit, subject_of
from tests.checks.test_checks_localisation import Regioned
from tl_audit.attribution import Attribution, Inputs, explain_inputs
from tl_audit.attribution.maps import blank_maps, from_elements, from_players
from tl_audit.checks.explanations.agreement import agreement
from tl_audit.checks.explanations.drift import attribution_drift
from tl_audit.checks.explanations.groups import quality_by_group
from tl_audit.checks.explanations.layers import layer_sensitivity
from tl_audit.checks.explanations.localisation import localisation
from tl_audit.checks.explanations.stability import seed_stability
from tl_audit.models import Model

N, D, RUNS = 40, 10, 200
MOST = 0.095
"""Upper end of the 99 % band of 200 draws at 0.05."""
UNIFORM = 0.115
"""Largest Kolmogorov distance of 200 uniform draws from their law, 99 %."""


def passed(*methods: str) -> Any:
    return context(findings=(finding("TLA702", [limit("faithfulness_gain", m, "met") for m in methods]),))


def with_values(inputs: Inputs, values: Any, method: str) -> Attribution:
    elements, parts = from_players(list(np.asarray(values)), inputs.players)
    return Attribution(elements, parts, np.ones(len(inputs), dtype=np.int64), method, inputs, True, blank=np.zeros(len(inputs), dtype=bool))


def uniform(p: list[float]) -> float:
    from scipy.stats import kstest

    return float(kstest(p, "uniform").statistic)


# ---------------------------------------------------------------- TLA704


@pytest.mark.slow
def test_two_seeds_of_a_sound_method_do_not_warn_at_a_large_budget_and_do_at_a_tiny_one():
    loud = {700: 0, 24: 0}
    runs = 4
    for run in range(runs):
        torch.manual_seed(run)
        net = nn.Sequential(nn.Linear(D, 16), nn.Tanh(), nn.Linear(16, 2)).eval()
        model = Model(net, classes=CLASSES)
        x = torch.as_tensor(np.random.default_rng(run).normal(size=(16, D))).float()
        inputs = column_inputs(x, x)
        for budget in loud:
            maps = {
                m: explain_inputs(model, inputs, method=m, targets=np.ones(16, dtype=np.int64), budget=budget)
                for m in ("sampling_shap", "kernel_shap")
            }
            loud[budget] += judged(seed_stability, seed_stability(subject_of(model), Maps(maps), context())).status == "warn"
    assert loud[700] == 0
    assert loud[24] >= runs // 2


# ---------------------------------------------------------------- TLA705


@pytest.mark.slow
def test_unrelated_maps_are_called_alike_at_the_stated_rate_and_related_ones_are_not_accused():
    inputs = column_inputs(torch.zeros(N, D))
    p, loud = [], 0
    for run in range(RUNS):
        rng = np.random.default_rng(run)
        two = rng.normal(size=(2, N, D))
        null = agreement(
            SimpleNamespace(),
            Maps({m: with_values(inputs, v, m) for m, v in zip(("lime", "kernel_shap"), two, strict=True)}),
            passed("lime", "kernel_shap"),
        )
        p.append(null.select("method_rank_correlation", pair="lime and kernel_shap").p_value)
        # signal and noise of equal variance: a true rank correlation of about 0.45, above the limit of 0.15
        signal = rng.normal(size=(N, D))
        alike = {m: with_values(inputs, signal + rng.normal(size=(N, D)), m) for m in ("lime", "kernel_shap", "random_map")}
        loud += judged(agreement, agreement(SimpleNamespace(), Maps(alike), passed(*alike))).status == "warn"
    assert np.mean(np.array(p) < 0.05) <= MOST
    assert uniform(p) < UNIFORM
    assert loud == 0


# ---------------------------------------------------------------- TLA706


@pytest.mark.slow
def test_layers_that_hand_their_map_on_never_warn():
    loud = 0
    for run in range(40):
        torch.manual_seed(run)
        net = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Identity(), nn.AvgPool2d(1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
        )
        model = Model(net.eval(), classes=CLASSES)
        inputs = image_inputs(torch.rand(N, 1, 16, 16, generator=torch.Generator().manual_seed(run)))
        a = explain_inputs(model, inputs, method="grad_cam", targets=np.ones(N, dtype=np.int64))
        found = layer_sensitivity(subject_of(model), Regions({"grad_cam": a}), passed("grad_cam"))
        loud += judged(layer_sensitivity, found).status == "warn"
        assert a.layer_reason in found.params["layer"]
        assert "asked for" not in found.params["layer"]
    assert loud == 0


class Regions(Maps):
    """Maps of samples without regions."""

    def regions(self, domain: str, rows: Any, model: str = "adapted") -> Any:
        from tl_audit.errors import NotEvaluated

        raise NotEvaluated("regions of the target domain")


# ---------------------------------------------------------------- TLA707


@pytest.mark.slow
def test_random_maps_have_uniform_p_values_inside_regions_and_warn_at_the_stated_rate():
    side = 12
    inputs = image_inputs(torch.zeros(N, 1, side, side))
    p: dict[str, list[float]] = {"mass_excess": [], "pointing_accuracy": []}
    loud = 0
    for run in range(RUNS):
        rng = np.random.default_rng(run)
        masks = np.zeros((N, side, side), dtype=bool)
        for mask in masks:
            y, x = rng.integers(0, 7, size=2)
            mask[y : y + int(rng.integers(2, 6)), x : x + int(rng.integers(2, 6))] = True
        elements, parts = from_elements(torch.as_tensor(rng.exponential(size=(N, side, side))), inputs.players)
        a = Attribution(elements, parts, np.ones(N, dtype=np.int64), "lime", inputs, True, blank=blank_maps(elements), budget=1)
        found = localisation(SimpleNamespace(cues=()), Regioned({"lime": a}, masks), passed("lime"))
        for name, values in p.items():
            values.append(found.select(name, method="lime").p_value)
        loud += judged(localisation, found).status == "warn"
    assert uniform(p["mass_excess"]) < UNIFORM
    for values in p.values():  # hits are whole numbers: their p-values are uniform at most
        assert np.mean(np.array(values) < 0.05) <= MOST
    assert loud / RUNS <= MOST


# ---------------------------------------------------------------- TLA708


def trained(base: nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int) -> Model:
    import copy

    net = copy.deepcopy(base)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(120):
        rows = torch.randint(len(x), (64,), generator=generator)
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimiser.step()
    return Model(net.eval(), classes=CLASSES)


def task(seed: int, n: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.as_tensor(np.random.default_rng(seed).normal(size=(n, D))).float()
    weights = torch.tensor([2.0, -1.5, 1.2, 1.0, -0.8, 0.6, 0.4, 0.0, 0.0, 0.0])
    return x, (x @ weights + 0.3 * torch.randn(n, generator=torch.Generator().manual_seed(seed)) > 0).long()


def compared(adapted: Model, other: Model, x: torch.Tensor) -> Explained:
    right = adapted.module(x).argmax(dim=1) == other.module(x).argmax(dim=1)
    x = x[right][:60]
    return Explained(
        {"adapted": adapted, "control:head": other}, {"target": column_inputs(x, x[:16])}, {"target": adapted.module(x).argmax(dim=1).numpy()},
        ("integrated_gradients", "kernel_shap", "lime"),
    )  # fmt: skip


@pytest.mark.slow
def test_one_model_compared_with_itself_never_drifts_and_two_trainings_of_one_recipe_ask_for_no_review():
    loud = 0
    for seed in range(20):
        torch.manual_seed(seed)
        base = nn.Sequential(nn.Linear(D, 16), nn.ReLU(), nn.Linear(16, 2))
        x, y = task(seed)
        test, _ = task(1000 + seed, 200)
        one, two = (trained(base, x, y, 10 * seed + k) for k in range(2))
        with torch.no_grad():
            same = measure(attribution_drift, compared(one, one, test))
            again = measure(attribution_drift, compared(one, two, test))
        assert {m.value for m in same.metrics if m.name in ("drift_beyond_floor", "top_drift_beyond_floor")} == {0.0}
        assert judged(attribution_drift, same).status in ("pass", "inconclusive")
        loud += judged(attribution_drift, again).status == "review"
    assert loud <= 1


def test_the_overlap_of_few_columns_has_its_own_chance_level_and_an_exact_floor_has_no_interval():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(D, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    model = Model(net, classes=CLASSES)
    with torch.no_grad():
        found = measure(attribution_drift, compared(model, model, task(1)[0]))
    assert found.select("attribution_top_iou", method="lime").null == pytest.approx(1 / D)  # one of ten columns is the top
    dots = {(d.label, d.series): d for d in found.exhibits[0].dots}
    assert dots["integrated_gradients", "same model, other seed"].interval is None
    assert dots["lime", "same model, other seed"].interval is not None


# ---------------------------------------------------------------- TLA710


class Grouped(Maps):
    """Maps whose faithfulness is given."""

    road: Any = None
    columns: Any = None

    def once(self, name: str, make: Any) -> Any:
        return {"lime": (SimpleNamespace(road_combined=self.road),)}

    def groups(self, domain: str) -> dict[str, Any]:
        return self.columns


def by_group(rng: np.random.Generator, gap: float) -> Any:
    n = 120
    inputs = column_inputs(torch.zeros(n, 4))
    evidence = Grouped({"lime": with_values(inputs, np.ones((n, 4)), "lime")})
    site = rng.permutation(np.repeat(["north", "south", "west"], 40)).astype(object)
    evidence.columns = {"site": site}
    evidence.road = rng.normal(0.2, 0.08, size=n) + np.where(site == "north", gap, 0.0)
    return judged(quality_by_group, quality_by_group(SimpleNamespace(adapted=None), evidence, passed("lime")))


@pytest.mark.slow
@pytest.mark.parametrize("gap", [0.0, 0.05])
def test_groups_that_do_not_differ_by_more_than_the_limit_are_accused_at_most_at_the_stated_rate(gap):
    statuses = [by_group(np.random.default_rng(run), gap).status for run in range(RUNS)]
    assert np.mean(np.array(statuses) == "warn") <= (0.01 if gap == 0 else MOST)


@pytest.mark.slow
def test_a_group_whose_maps_are_much_less_faithful_is_found():
    statuses = [by_group(np.random.default_rng(run), -0.15).status for run in range(40)]
    assert statuses.count("warn") >= 38


def test_one_group_alone_is_nobody_to_compare_with():
    from tl_audit.errors import NotEvaluated

    inputs = column_inputs(torch.zeros(N, 4))
    evidence = Grouped({"lime": with_values(inputs, np.ones((N, 4)), "lime")})
    evidence.columns, evidence.road = {"site": np.array(["north"] * N, dtype=object)}, np.zeros(N)
    with pytest.raises(NotEvaluated, match="every sample is in one group"):
        quality_by_group(SimpleNamespace(adapted=None), evidence, passed("lime"))
