"""TLA708, TLA709, TLA710: maps that moved, evidence that differs between domains, and groups whose maps are worse."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.attribution.attribution_fakes import PatchDetector, column_inputs, image_inputs
from tl_audit.attribution import Attribution, Inputs, explain_inputs
from tl_audit.attribution.maps import from_players
from tl_audit.checks.base import Check, Context
from tl_audit.checks.explanations.drift import attribution_drift, explanation_shift
from tl_audit.checks.explanations.groups import quality_by_group
from tl_audit.errors import NotEvaluated
from tl_audit.models import Model
from tl_audit.policy import Rules, load_policy
from tl_audit.policy.judge import judge
from tl_audit.records.findings import Finding
from tl_audit.records.metrics import Measurement

CLASSES = ("no", "yes")


@dataclass
class Explained:
    """Evidence of models and domains held in memory: outputs and attributions are computed when asked for."""

    models: dict[str, Model]
    domains: dict[str, Inputs]
    labels: dict[str, np.ndarray]
    methods: tuple[str, ...]
    group: dict[str, np.ndarray] = field(default_factory=dict)
    samples: str = "off"
    seed: int = 0
    known: dict[Any, Any] = field(default_factory=dict)
    replaced: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, make: Any) -> Any:
        return self.known.setdefault(name, None) or self.known.update({name: make()}) or self.known[name]

    def predictions(self, model: str, domain: str) -> np.ndarray:
        net = self.models[model].module.eval()
        with torch.no_grad():
            return net(self.domains[domain].tensor).argmax(dim=1).numpy()

    def attributions(self, model: str, domain: str, method: str) -> Attribution:
        key = (model, domain, method)
        if key not in self.known:
            found = explain_inputs(
                self.models[model], self.domains[domain], method=method, targets=self.predictions(model, domain), seed=self.seed, budget=64
            )
            self.known[key] = self.replaced[method](found) if method in self.replaced else found
        return self.known[key]

    def ids(self, domain: str) -> tuple[str, ...]:
        return self.domains[domain].ids

    def cluster(self, domain: str) -> None:
        return None

    def content_hashes(self, domain: str) -> np.ndarray:
        return np.array(["h"] * len(self.ids(domain)), dtype=object)

    def truth(self, model: str, domain: str) -> np.ndarray:
        return self.labels[domain]

    def correct(self, model: str, domain: str) -> np.ndarray:
        return self.predictions(model, domain) == self.labels[domain]

    def usable(self, model: str | None, domain: str) -> np.ndarray:
        return np.ones(len(self.ids(domain)), dtype=bool)

    def groups(self, domain: str) -> dict[str, np.ndarray]:
        return self.group

    def has(self, model: str | None, domain: str) -> bool:
        return model in self.models and domain in self.domains

    def regions(self, domain: str, rows: Any, model: str) -> Any:
        raise NotEvaluated("regions of the target domain")


def subject(evidence: Explained) -> Any:
    return SimpleNamespace(adapted=evidence.models["adapted"], models=evidence.models, classes=CLASSES, same_as_adapted=(), cues=())


def passed(*methods: str) -> tuple[Finding, ...]:
    """What TLA702 finds of methods that are sound."""
    from tl_audit.records.findings import LimitOutcome

    outcomes = tuple(
        LimitOutcome(
            metric="faithfulness_gain",
            slice={"method": m},
            level="fail",
            bound="min",
            value=0.0,
            rule="interval",
            origin="test",
            outcome="met",
        )
        for m in methods
    )
    metrics = tuple(
        {"name": "faithfulness_gain", "value": 0.3, "n": {"target": 40}, "slice": {"method": m}, "interval": (0.2, 0.4), "confidence": 0.95}
        for m in methods
    )
    measurement = Measurement.model_validate({"summary": "measured", "metrics": metrics})
    return (
        Finding(
            code="TLA702", section="explanations", title="Faithfulness", status="pass", reason="No violation.", severity="critical",
            measurement=measurement, limits=outcomes,
        ),
    )  # fmt: skip


def measure(check: Check, evidence: Explained) -> Measurement:
    return check(subject(evidence), evidence, Context(Rules(), 0, {}, passed(*evidence.methods)))  # type: ignore[arg-type]


def judged(check: Check, measurement: Measurement, policy: str = "default") -> Finding:
    from tl_audit.runner import corrected

    return judge(check.code, check.title, check.section, check.severity, corrected(measurement, check), load_policy(policy))


def linear(weights: list[float]) -> Model:
    net = nn.Sequential(nn.Linear(len(weights), 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[-w for w in weights], weights]))
        net[0].bias.zero_()
    return Model(net, classes=CLASSES)


def table(n: int, d: int = 6, seed: int = 0, shift: dict[int, float] | None = None) -> torch.Tensor:
    x = np.random.default_rng(seed).normal(size=(n, d))
    for column, by in (shift or {}).items():
        x[:, column] += by
    return torch.as_tensor(x).float()


def tabular(models: dict[str, Model], *, methods: tuple[str, ...], n: int = 60, source: torch.Tensor | None = None) -> Explained:
    x = table(n)
    domains = {"target": column_inputs(x, x[:10])}
    labels = {"target": (models["adapted"].module(x).argmax(dim=1)).numpy()}
    if source is not None:
        domains["source"] = column_inputs(source, x[:10], ids=tuple(f"q{i}" for i in range(len(source))))
        labels["source"] = np.zeros(len(source), dtype=np.int64)
    return Explained(models, domains, labels, methods)


METHODS = ("integrated_gradients", "kernel_shap")


def test_a_model_that_was_not_changed_has_no_drift_whatever_the_methods_noise():
    same = linear([3.0, 2.0, 1.0, 0.5, 0.2, 0.1])
    evidence = tabular({"adapted": same, "control:head": same}, methods=("integrated_gradients", "lime"))
    found = measure(attribution_drift, evidence)
    for method in evidence.methods:
        assert found.select("drift_beyond_floor", method=method).value == pytest.approx(0.0, abs=1e-12)
    assert found.select("attribution_rank_correlation", method="integrated_gradients").value == pytest.approx(1.0)
    assert found.select("attribution_top_iou", method="integrated_gradients").value == pytest.approx(1.0)
    assert found.select("concentration_change", method="integrated_gradients").value == pytest.approx(0.0)
    assert judged(attribution_drift, found).status in ("pass", "inconclusive")


def test_a_model_that_reads_other_columns_asks_for_a_review_when_two_methods_say_so():
    models = {"adapted": linear([4.0, 2.0, 1.0, 0.0, 0.0, 0.0]), "control:head": linear([0.0, 0.0, 0.0, 1.0, 2.0, 4.0])}
    x = table(200)
    with torch.no_grad():
        agree = models["adapted"].module(x).argmax(1) == models["control:head"].module(x).argmax(1)
    evidence = tabular(models, methods=METHODS)
    evidence.domains["target"] = column_inputs(x[agree][:60], x[:10])
    evidence.labels["target"] = models["adapted"].module(x[agree][:60]).argmax(dim=1).numpy()
    found = measure(attribution_drift, evidence)
    for method in METHODS:
        assert found.select("drift_beyond_floor", method=method).interval[0] > 0.2
        assert found.select("attribution_top_iou", method=method).value < 0.2
    finding = judged(attribution_drift, found)
    assert finding.status == "review"
    assert "a person must look" in finding.reason


def test_an_answered_review_is_information():
    models = {"adapted": linear([4.0, 2.0, 1.0, 0.0, 0.0, 0.0]), "control:head": linear([0.0, 0.0, 0.0, 1.0, 2.0, 4.0])}
    evidence = tabular(models, methods=METHODS, n=120)
    measured = measure(attribution_drift, evidence)
    check = attribution_drift
    finding = judge(check.code, check.title, check.section, check.severity, measured, load_policy("default"), answered=("TLA708",))
    assert finding.status == "info"
    assert "A person has answered" in finding.reason


def test_one_method_alone_is_never_called_a_drift():
    models = {"adapted": linear([4.0, 2.0, 1.0, 0.0, 0.0, 0.0]), "control:head": linear([0.0, 0.0, 0.0, 1.0, 2.0, 4.0])}
    found = measure(attribution_drift, tabular(models, methods=("integrated_gradients",), n=120))
    assert found.select("drift_of_two_methods").value is None
    assert judged(attribution_drift, found).status != "review"


def test_without_a_model_of_the_same_classes_drift_is_not_measured():
    evidence = tabular({"adapted": linear([1.0] * 6)}, methods=METHODS)
    with pytest.raises(NotEvaluated, match="control"):
        measure(attribution_drift, evidence)


def test_classes_are_matched_by_name():
    forward = linear([3.0, 2.0, 1.0, 0.5, 0.2, 0.1])
    backward = Model(linear([-3.0, -2.0, -1.0, -0.5, -0.2, -0.1]).module, classes=("yes", "no"))
    evidence = tabular({"adapted": forward, "control:head": backward}, methods=("integrated_gradients",))
    evidence.correct = lambda model, domain: np.ones(60, dtype=bool)  # type: ignore[method-assign]
    found = measure(attribution_drift, evidence)
    assert found.select("attribution_rank_correlation", method="integrated_gradients").value == pytest.approx(1.0)


def test_on_images_a_mark_that_only_one_model_reads_moves_the_centre():
    torch.manual_seed(0)
    x = torch.rand(40, 1, 16, 16) * 0.2
    x[:, :, :4, :4] = 1.0
    x[:, :, 12:, 12:] = 1.0

    class Corner(nn.Module):
        def __init__(self, where: slice) -> None:
            super().__init__()
            self.where = where
            self.head = nn.Linear(1, 2)
            with torch.no_grad():
                self.head.weight.copy_(torch.tensor([[-4.0], [4.0]]))
                self.head.bias.zero_()

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            # what lies elsewhere counts a little, so that no two maps are the same
            return self.head((pictures[:, 0, self.where, self.where].mean(dim=(1, 2)) + 0.05 * pictures.mean(dim=(1, 2, 3)))[:, None])

    models = {"adapted": Model(Corner(slice(0, 4)), classes=CLASSES), "base": Model(Corner(slice(12, 16)), classes=CLASSES)}
    evidence = Explained(
        models, {"target": image_inputs(x)}, {"target": np.ones(40, dtype=np.int64)}, ("kernel_shap", "integrated_gradients")
    )
    found = measure(attribution_drift, evidence)
    for method in evidence.methods:
        assert found.select("attribution_shift", method=method).value == pytest.approx(0.75, abs=0.05)
        # the ranks of all other places are the same for both: only the top shows the move
        assert found.select("drift_beyond_floor", method=method).value < 0.05
    assert judged(attribution_drift, found).status == "review"


def test_a_shift_of_a_column_that_the_model_does_not_read_leaves_the_explanations_alike():
    model = linear([3.0, 2.0, 1.0, 1.0, 1.0, 0.0])
    evidence = tabular({"adapted": model}, methods=("integrated_gradients",), n=200, source=table(200, seed=9, shift={5: 4.0}))
    found = measure(explanation_shift, evidence)
    auc = found.select("explanation_c2st_auc", method="integrated_gradients")
    assert abs(auc.value - 0.5) < 0.12
    assert judged(explanation_shift, found).status in ("pass", "inconclusive")


def test_a_shift_of_a_column_that_the_model_reads_is_seen_in_the_explanations():
    model = linear([1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    evidence = tabular({"adapted": model}, methods=("integrated_gradients",), n=200, source=table(200, seed=9, shift={0: 6.0}))
    found = measure(explanation_shift, evidence)
    assert found.select("explanation_c2st_auc", method="integrated_gradients").interval[0] > 0.75
    assert judged(explanation_shift, found).status == "warn"  # shift is expected in transfer: failing is for the strict profile
    assert judged(explanation_shift, found, "strict").status == "fail"


def test_few_maps_on_one_side_give_no_number():
    model = linear([1.0] * 6)
    found = measure(explanation_shift, tabular({"adapted": model}, methods=("integrated_gradients",), n=60, source=table(20, seed=9)))
    metric = found.select("explanation_c2st_auc", method="integrated_gradients")
    assert metric.value is None
    assert "fewer than 50" in (metric.reason or "")


@pytest.mark.slow
def test_explanation_shift_keeps_its_level():
    model = linear([3.0, 2.0, 1.0, 1.0, 1.0, 0.5])
    p = []
    for k in range(100):
        evidence = tabular({"adapted": model}, methods=("integrated_gradients",), n=60, source=table(60, seed=1000 + k))
        evidence.domains["target"] = column_inputs(table(60, seed=5000 + k), table(10))
        p.append(measure(explanation_shift, evidence).select("explanation_c2st_auc", method="integrated_gradients").p_value)
    # 99.5 % point of 100 draws at 0.05
    assert np.sum(np.array(p) < 0.05) <= 11


def pictures_with_patch(n: int, seed: int = 5) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    x = torch.as_tensor(rng.uniform(0, 0.5, size=(n, 1, 16, 16))).float()
    for i, k in enumerate(rng.integers(16, size=n)):
        x[i, :, 4 * (k // 4) : 4 * (k // 4) + 4, 4 * (k % 4) : 4 * (k % 4) + 4] = rng.uniform(1.1, 1.6)
    return x


def grouped(replaced: dict[str, Any] | None = None, n: int = 70) -> Explained:
    inputs = image_inputs(pictures_with_patch(n))
    group = {"site": np.array(["north" if i % 2 else "south" for i in range(n)], dtype=object)}
    return Explained(
        {"adapted": Model(PatchDetector(), classes=CLASSES)}, {"target": inputs}, {"target": np.ones(n, dtype=np.int64)}, ("kernel_shap",), group,
        replaced=replaced or {},
    )  # fmt: skip


def test_groups_whose_maps_are_alike_have_no_gap():
    found = measure(quality_by_group, grouped())
    gap = found.select("faithfulness_gap", method="kernel_shap", site="south")
    assert gap.interval[0] < 0 < gap.interval[1]
    assert judged(quality_by_group, found).status in ("pass", "inconclusive")


def test_a_group_whose_maps_are_noise_is_found():
    def noise_for_south(a: Attribution) -> Attribution:
        import dataclasses

        rng = np.random.default_rng(0)
        values = [v if i % 2 else rng.normal(size=len(v)) for i, v in enumerate(a.player_values)]
        elements, players = from_players(values, a.inputs.players)
        return dataclasses.replace(a, values=elements, player_values=players)

    found = measure(quality_by_group, grouped({"kernel_shap": noise_for_south}))
    gap = found.select("faithfulness_gap", method="kernel_shap", site="south")
    assert gap.interval[1] < -0.05
    assert judged(quality_by_group, found).status == "warn"


def test_a_small_group_is_named_and_not_judged():
    evidence = grouped(n=70)
    evidence.group = {"site": np.array(["rare" if i < 8 else "common" for i in range(70)], dtype=object)}
    found = measure(quality_by_group, evidence)
    assert found.select("faithfulness_gap", method="kernel_shap", site="rare").value is None
    assert any("site = rare" in c for c in found.caveats)


@pytest.mark.parametrize("check", [attribution_drift, explanation_shift, quality_by_group], ids=lambda c: c.code)
def test_each_check_says_how_why_and_what_to_do(check):
    assert {"asks", "measured", "matters", "reduce"} <= set(check.help)
