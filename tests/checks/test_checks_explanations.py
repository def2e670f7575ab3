"""TLA702, TLA703, TLA711: faithful and unfaithful maps, maps that ignore the model, and what the gate makes of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.attribution.attribution_fakes import PatchDetector, Squares, column_inputs, image_inputs
from tl_audit.attribution import Attribution, Inputs, Targets, explain_inputs
from tl_audit.attribution.maps import blank_maps, from_elements
from tl_audit.attribution.quality import (
    STEPS,
    Curves,
    Ranking,
    kept_after,
    random_maps,
    relevance_orders,
    removal_curves,
)
from tl_audit.attribution.randomise import randomised_copy
from tl_audit.checks.base import Context
from tl_audit.checks.explanations import EXPLANATIONS, explanation_gate, faithfulness, parameter_randomisation
from tl_audit.checks.explanations.methods import methods_table
from tl_audit.errors import ModelError, NotEvaluated
from tl_audit.models import Model
from tl_audit.policy import Rules
from tl_audit.records.findings import Finding, LimitOutcome
from tl_audit.records.metrics import Measurement

N = 40


@dataclass
class Maps:
    """Evidence that holds attributions only."""

    found: dict[str, Attribution]
    samples: str = "off"
    clusters: Any = None
    refused: dict[str, str] = field(default_factory=dict)
    seed: int = 0

    @property
    def methods(self) -> tuple[str, ...]:
        return (*self.found, *self.refused)

    def attributions(self, model: str, domain: str, method: str) -> Attribution:
        if method in self.refused:
            raise ModelError(self.refused[method])
        return self.found[method]

    def ids(self, domain: str) -> tuple[str, ...]:
        return next(iter(self.found.values())).inputs.ids

    def cluster(self, domain: str) -> Any:
        return self.clusters

    def content_hashes(self, domain: str) -> Any:
        return np.array(["h"] * len(self.ids(domain)), dtype=object)

    def truth(self, model: str, domain: str) -> Any:
        raise NotEvaluated("the target is unlabelled")

    def has(self, model: str | None, domain: str) -> bool:
        return model == "adapted"

    def once(self, name: str, make: Any) -> Any:
        return make()

    def groups(self, domain: str) -> dict[str, Any]:
        return {}


def made(inputs: Inputs, targets: Any, values: Any, method: str) -> Attribution:
    elements, players = from_elements(torch.as_tensor(np.asarray(values)), inputs.players)
    return Attribution(elements, players, np.asarray(targets), method, inputs, False, blank=blank_maps(elements), budget=1)


@pytest.fixture(scope="module")
def scene() -> SimpleNamespace:
    """Forty noisy pictures with a bright patch each, a network that answers to the patch alone, and its target class."""
    rng = np.random.default_rng(5)
    x = torch.as_tensor(rng.uniform(0, 0.5, size=(N, 1, 16, 16))).float()
    for i, k in enumerate(rng.integers(16, size=N)):
        x[i, :, 4 * (k // 4) : 4 * (k // 4) + 4, 4 * (k % 4) : 4 * (k % 4) + 4] = 1.0
    return SimpleNamespace(inputs=image_inputs(x), model=Model(PatchDetector(), classes=("no", "yes")), targets=np.ones(N, dtype=np.int64))


def subject_of(model: Model) -> Any:
    return SimpleNamespace(adapted=model, models={"adapted": model}, classes=model.classes or (), same_as_adapted=())


def context(**more: Any) -> Context:
    return Context(rules=Rules(), seed=0, declared={}, **more)


def test_the_patch_finder_is_faithful_and_a_random_map_gains_nothing(scene):
    good = explain_inputs(scene.model, scene.inputs, method="kernel_shap", targets=scene.targets, budget=64)
    noise = made(scene.inputs, scene.targets, np.random.default_rng(1).normal(size=(N, 16, 16)), "lime")
    found = faithfulness(subject_of(scene.model), Maps({"kernel_shap": good, "lime": noise}), context())
    gain = found.select("faithfulness_gain", method="kernel_shap")
    assert gain.value > 0.1
    assert gain.interval[0] > 0.05
    assert gain.p_value < 0.01
    null = found.select("faithfulness_gain", method="lime")
    assert abs(null.value) < 0.04
    assert null.interval[0] < 0 < null.interval[1]
    assert null.p_value > 0.05
    assert found.select("deletion_auc", method="kernel_shap").value < found.select("deletion_auc", method="lime").value
    assert found.select("insertion_auc", method="kernel_shap").value > found.select("insertion_auc", method="lime").value


def test_gain_of_random_maps_keeps_its_level(scene):
    """Null simulation on the measure itself: 60 random maps, at most the stated share of p-values below 0.05."""
    from tl_audit.measures.permutation import sign_flip_p

    inputs, rng = scene.inputs, np.random.default_rng(2)
    rankings = {
        f"{k}": Ranking(relevance_orders(tuple(rng.normal(size=(N, 16))), inputs.players, key=(k,), ids=inputs.ids), (0.2, 0.4, 0.6, 0.8))
        for k in range(120)
    }
    curves = removal_curves(scene.model, inputs, Targets(scene.targets), rankings, seed=0, batch_size=512)
    p = [sign_flip_p(curves[f"{k}"].road_combined - curves[f"{k + 60}"].road_combined, resamples=299, seed=k) for k in range(60)]
    assert np.mean(np.array(p) < 0.05) < 0.15
    assert 0.3 < np.mean(p) < 0.7


def test_the_order_of_a_linear_models_contributions_is_the_best_there_is(rng):
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x)

    net = Linear()
    inputs = column_inputs(torch.as_tensor(rng.normal(size=(10, 6))).float())
    w = (net.head.weight[1] - net.head.weight[0]).detach()
    best = tuple((w * inputs.tensor).numpy().astype(float))
    rankings = {"best": Ranking(relevance_orders(best, inputs.players, key=("b",), ids=inputs.ids), STEPS)}
    for k in range(20):
        rankings[str(k)] = Ranking(relevance_orders(tuple(rng.normal(size=(10, 6))), inputs.players, key=(k,), ids=inputs.ids), STEPS)
    curves = removal_curves(Model(net), inputs, Targets(np.ones(10, dtype=np.int64)), rankings, seed=0, batch_size=64)
    for k in range(20):
        assert (curves["best"].most_first <= curves[str(k)].most_first + 1e-9).all()
        assert (curves["best"].least_first >= curves[str(k)].least_first - 1e-9).all()


def test_removal_curves_by_hand():
    shares = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    curves = Curves(shares, np.array([[1.0, 0.5, 0, 0, 0, 0]]), np.array([[1.0, 1, 1, 1, 0.5, 0]]))
    assert curves.deletion_auc == pytest.approx([0.2 * (0.75 + 0.25)])
    assert curves.insertion_auc == pytest.approx([0.2 * (1 + 1 + 1 + 0.75 + 0.25)])
    assert curves.road_combined == pytest.approx([((0.5 + 1 + 1 + 0.5) / 2) / 4])


def test_parts_are_removed_until_their_area_comes_nearest_to_the_share():
    keep = kept_after(np.array([2, 0, 1]), np.array([1.0, 1.0, 2.0]), [0.0, 0.3, 0.7, 1.0])
    assert keep.tolist() == [[True, True, True], [True, True, False], [False, True, False], [False, False, False]]


def test_random_maps_depend_on_the_sample_and_not_on_its_neighbours(scene, rng):
    maps = rng.normal(size=(3, 16, 16))
    randoms = random_maps(maps, scene.inputs.players, draws=2, key=("k",), ids=("a", "b", "c"))
    assert not np.allclose(randoms[0][0], randoms[1][0])
    alone = random_maps(maps[1:2], scene.inputs.players, draws=2, key=("k",), ids=("b",))
    assert alone[0][0] == pytest.approx(randoms[0][1])


def test_an_edge_map_does_not_change_when_the_weights_are_permuted(scene):
    edges = explain_inputs(scene.model, scene.inputs, method="edge_map", targets=scene.targets)
    found = parameter_randomisation(subject_of(scene.model), Maps({"edge_map": edges}), context())
    similar = found.select("randomised_similarity", method="edge_map")
    assert similar.value == pytest.approx(1.0)
    assert similar.interval[0] > 0.5
    effect = found.select("randomisation_effect", method="edge_map")
    assert (effect.value, effect.exact) == (0.0, True)
    assert "bit-equal" in effect.reason
    assert found.select("edge_similarity", method="edge_map").value == pytest.approx(1.0)
    assert found.select("seed_similarity", method="edge_map").exact


def test_noise_with_the_same_seed_does_not_change_when_the_weights_are_permuted(scene):
    noise = explain_inputs(scene.model, scene.inputs, method="random_map", targets=scene.targets)
    found = parameter_randomisation(subject_of(scene.model), Maps({"random_map": noise}), context())
    effect = found.select("randomisation_effect", method="random_map")
    assert (effect.value, effect.exact) == (0.0, True)
    assert abs(found.select("randomised_similarity", method="random_map").value) < 0.2


class Deep(nn.Module):
    """Enough weights that permuting them forgets."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


@pytest.mark.parametrize("method", ["integrated_gradients", "kernel_shap", "lime"])
def test_maps_that_depend_on_the_model_change_with_its_weights(method, rng):
    model = Model(Deep(), classes=("no", "yes"))
    inputs = column_inputs(torch.as_tensor(rng.normal(size=(N, 12))).float())
    a = explain_inputs(model, inputs, method=method, targets=np.ones(N, dtype=np.int64), budget=256)
    found = parameter_randomisation(subject_of(model), Maps({method: a}), context())
    assert found.select("randomised_similarity", method=method).value < 0.5
    assert found.select("randomisation_effect", method=method).interval[0] > 0.05
    assert found.select("seed_similarity", method=method).value > 0.3


def test_a_randomised_copy_keeps_every_tensors_values_and_the_model():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    net[1].running_var.copy_(torch.arange(1.0, 5.0))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    other = randomised_copy(Model(net), seed=0, draw=0).module
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(tensor.flatten().sort().values, other.state_dict()[name].flatten().sort().values)
    assert not torch.equal(net[0].weight, other[0].weight)
    again = randomised_copy(Model(net), seed=0, draw=0).module
    assert torch.equal(again[0].weight, other[0].weight)
    assert not torch.equal(randomised_copy(Model(net), seed=0, draw=1).module[0].weight, other[0].weight)


def test_blank_maps_are_counted_and_never_averaged_in(scene):
    a = explain_inputs(scene.model, scene.inputs, method="kernel_shap", targets=scene.targets, budget=64)
    values = a.values.copy()
    values[:10] = 0
    half = replace(a, values=values, player_values=tuple(scene.inputs.players.pool(torch.as_tensor(values))), blank=blank_maps(values))
    found = faithfulness(subject_of(scene.model), Maps({"kernel_shap": half}), context())
    assert found.select("blank_maps", method="kernel_shap").value == 10
    assert found.select("faithfulness_gain", method="kernel_shap").n == {"target": N - 10}
    nothing = replace(a, values=values * 0, player_values=tuple(v * 0 for v in a.player_values), blank=np.ones(N, dtype=bool))
    found = faithfulness(subject_of(scene.model), Maps({"kernel_shap": nothing}), context())
    gain = found.select("faithfulness_gain", method="kernel_shap")
    assert gain.value is None
    assert gain.reason


def test_clusters_are_the_units(scene):
    a = explain_inputs(scene.model, scene.inputs, method="kernel_shap", targets=scene.targets, budget=64)
    clusters = np.array([f"p{i % 10}" for i in range(N)], dtype=object)
    gain = faithfulness(subject_of(scene.model), Maps({"kernel_shap": a}, clusters=clusters), context()).select(
        "faithfulness_gain", method="kernel_shap"
    )
    assert gain.clusters == {"target": 10}


def test_a_method_that_could_not_be_computed_stays_on_the_page(scene):
    a = explain_inputs(scene.model, scene.inputs, method="kernel_shap", targets=scene.targets, budget=64)
    found = faithfulness(subject_of(scene.model), Maps({"kernel_shap": a}, refused={"grad_cam": "needs a spatial layer"}), context())
    missing = found.select("faithfulness_gain", method="grad_cam")
    assert missing.value is None
    assert "spatial layer" in missing.reason
    with pytest.raises(NotEvaluated, match="spatial layer"):
        faithfulness(subject_of(scene.model), Maps({}, refused={"grad_cam": "needs a spatial layer"}), context())


def limit(metric: str, method: str, outcome: str, *, level: str = "fail", bound: str = "min", value: float = 0.0) -> LimitOutcome:
    return LimitOutcome(
        metric=metric, slice={"method": method}, level=level, bound=bound, value=value, rule="interval", origin="ours", outcome=outcome
    )


def finding(code: str, outcomes: list[LimitOutcome], *, values: dict[str, float] | None = None) -> Finding:
    from tl_audit.checks.base import exact

    metrics = {(o.metric, o.slice["method"]) for o in outcomes}
    measured = Measurement(
        summary="",
        metrics=tuple(
            exact(m, (values or {}).get(method, 0.1), slice={"method": method}, n={"target": 40}) for m, method in sorted(metrics)
        ),
    )
    return Finding(
        code=code,
        section="explanations",
        title="",
        status="info",
        reason="",
        severity="critical",
        measurement=measured,
        limits=tuple(outcomes),
    )


def gate(findings: list[Finding], *methods: str) -> Measurement:
    def attributions(model: str, domain: str, method: str) -> Attribution:
        raise NotEvaluated("maps: only outcomes are given here")

    evidence = SimpleNamespace(methods=methods, attributions=attributions)
    return explanation_gate(SimpleNamespace(), evidence, context(findings=tuple(findings)))


def test_the_gate_stamps_each_method_by_its_worst_outcome():
    findings = [
        finding("TLA702", [limit("faithfulness_gain", m, "met") for m in ("a", "b", "c")]),
        finding(
            "TLA703",
            [
                limit("randomisation_effect", "a", "met"),
                limit("randomisation_effect", "b", "broken"),
                limit("randomisation_effect", "c", "undecided"),
            ],
        ),
    ]
    found = gate(findings, "a", "b", "c")
    assert found.params["stamp:a"] == "passed: quality checks passed (TLA702, TLA703)"
    assert found.params["stamp:b"] == "unreliable: not reliable: fails TLA703 (randomisation_effect)"
    assert found.params["stamp:c"] == "not_checked: reliability not shown: TLA703 inconclusive"
    assert [found.select("gate_passed", method=m).value for m in "abc"] == [1.0, 0.0, None]
    assert found.metrics[-1].value == 1.0


def test_without_a_passing_method_the_gate_fails_unless_something_is_open():
    broken = finding("TLA703", [limit("randomisation_effect", "a", "broken")])
    assert gate([broken], "a").metrics[-1].value == 0.0
    undecided = finding("TLA703", [limit("randomisation_effect", "a", "broken"), limit("randomisation_effect", "b", "undecided")])
    last = gate([undecided], "a", "b").metrics[-1]
    assert last.value is None
    assert "nothing was decided for b" in last.reason


@pytest.mark.parametrize(("value", "state"), [(0.4, "passed"), (0.6, "not_checked")])
def test_an_undecided_warning_matters_where_the_estimate_lies_beyond_it(value, state):
    warn = limit("randomised_similarity", "a", "undecided", level="warn", bound="max", value=0.5)
    found = gate([finding("TLA703", [warn], values={"a": value})], "a")
    assert str(found.params["stamp:a"]).startswith(state)


def test_a_check_that_did_not_run_shows_no_reliability():
    broken = Finding(code="TLA702", section="explanations", title="", status="error", reason="crashed", severity="critical")
    passed = finding("TLA703", [limit("randomisation_effect", "a", "met")])
    assert gate([broken, passed], "a").params["stamp:a"] == "not_checked: reliability not shown: TLA702 error"
    with pytest.raises(NotEvaluated, match="deselected"):
        gate([], "a")


def test_a_check_that_does_not_apply_to_a_method_is_left_out_of_its_gate():
    findings = [
        finding("TLA701", [limit("completeness_bad_share", "b", "broken")]),
        finding("TLA702", [limit("faithfulness_gain", "a", "met")]),
    ]
    assert gate(findings, "a").params["stamp:a"] == "passed: quality checks passed (TLA702)"


@pytest.mark.parametrize("check", EXPLANATIONS, ids=lambda c: c.code)
def test_each_check_explains_itself(check):
    assert check.help.keys() == {"asks", "measured", "matters", "reduce"}
    assert check.section == "explanations"


def test_measurements_are_the_same_twice_and_go_through_json(scene):
    a = explain_inputs(scene.model, scene.inputs, method="kernel_shap", targets=scene.targets, budget=32)
    first, second = (faithfulness(subject_of(scene.model), Maps({"kernel_shap": a}), context()).model_dump_json() for _ in range(2))
    assert first == second
    assert Measurement.model_validate_json(first)


@dataclass(frozen=True)
class Drawn(Squares):
    """Squares that can be drawn."""

    def picture(self, inputs_row: Any, spec: Any, *, title: str, side: int = 160, redacted: bool = False) -> Any:
        from tl_audit.records.exhibits import Picture

        return Picture(title=title, alt=title, note="redacted" if redacted else None)

    def map_picture(
        self, inputs_row: Any, values: Any, spec: Any, *, title: str, signed: bool, side: int = 160, redacted: bool = False
    ) -> Any:
        return self.picture(inputs_row, spec, title=title, redacted=redacted)


@pytest.mark.parametrize("samples", ["off", "redacted", "on"])
def test_the_gallery_shows_samples_only_where_they_may_be_shown(scene, samples):
    inputs = replace(scene.inputs, modality=Drawn())
    a = explain_inputs(scene.model, inputs, method="kernel_shap", targets=scene.targets, budget=32)
    found = faithfulness(subject_of(scene.model), Maps({"kernel_shap": a}, samples=samples), context())
    grid = next(e for e in found.exhibits if e.id == "gallery")
    pictures = [p for row in grid.rows for p in row.pictures]
    assert grid.samples == samples
    if samples == "off":
        assert not pictures
        assert not any(key in ("true", "predicted") for row in grid.rows for key, _ in row.facts)
        return
    assert {p.method for p in pictures} == {None, "kernel_shap"}
    # right below the maps of the same sample
    assert grid.rows[1].facts == (("chosen", "random map, for comparison"),)
    assert grid.rows[1].id == grid.rows[0].id
    assert all(p.note == ("redacted" if samples == "redacted" else None) for p in pictures)


def test_columns_are_drawn_as_shares(rng):
    model = Model(Deep(), classes=("no", "yes"))
    inputs = column_inputs(torch.as_tensor(rng.normal(size=(N, 12))).float())
    a = explain_inputs(model, inputs, method="lime", targets=np.ones(N, dtype=np.int64), budget=32)
    for samples, single in (("off", 0), ("redacted", 0), ("on", 1)):
        found = faithfulness(subject_of(model), Maps({"lime": a}, samples=samples), context())
        bars = [e for e in found.exhibits if e.kind == "Bars"]
        assert sum(b.value for b in bars[0].bars) == pytest.approx(1)
        assert len(bars) - 1 == single


def test_the_table_of_methods_says_how_each_map_was_made(scene):
    found = {m: explain_inputs(scene.model, scene.inputs, method=m, targets=scene.targets, budget=20) for m in ("grad_cam", "kernel_shap")}
    table = methods_table(Maps(found, refused={"lime": "no such thing"}), ("grad_cam", "kernel_shap", "lime"))
    cells = {row[0]: row for row in table.rows}
    assert str(cells["grad_cam"][2]).startswith("act: last layer before the head")
    assert cells["kernel_shap"][1] == "signed, of the logit, adds up to the explained change, by sampling"
    assert cells["kernel_shap"][4:] == (N, 20, 0)
    assert "no such thing" in str(cells["lime"][1])
