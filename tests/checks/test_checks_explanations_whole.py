"""The explanation checks in whole audits with pieces missing: no crash, no pass that rests on nothing, and a reason that a reader understands."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tl_audit.attribution import EXPLAINERS
from tl_audit.errors import ConfigError
from tl_audit.modality.base import Cue
from tl_audit.models import Model, small_cnn
from tl_audit.policy import Policy, load_policy
from tl_audit.records.exhibits import ImageGrid
from tl_audit.records.findings import AuditResult
from tl_audit.records.preprocessing import Preprocessing
from tl_audit.records.schema import report_hash
from tl_audit.runner import run
from tl_audit.subject import Domain, Subject

SIDE = 12
METHODS = {"image": ("grad_cam", "integrated_gradients", "lime"), "tensor": ("integrated_gradients", "kernel_shap", "lime")}


class NoGradients(nn.Module):
    """Runs without a graph inside."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            out: torch.Tensor = self.inner(x)
        return out


class Probabilities(nn.Module):
    """Gives probabilities instead of logits."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.inner(x), dim=1)


def domain(kind: str, name: str, seed: int, n: int = 60, **given: Any) -> Domain:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    if kind == "image":
        x: Any = rng.integers(0, 120, (n, SIDE, SIDE, 3)).astype(np.uint8)
        x[y == 1, :6] += 100
    else:
        x = rng.normal(size=(n, 6)).astype(np.float32)
        x[:, 0] += 2 * (y - 0.5)
    parts: dict[str, Any] = {
        "labels": [("ants", "bees")[i] for i in y], "groups": {"site": np.array(["north", "south"])[rng.integers(0, 2, n)]}, **given,
    }  # fmt: skip
    return Domain(name, x, kind=kind, **{k: v for k, v in parts.items() if v is not None})


def model(kind: str, seed: int, wrap: Any = None, side: int = SIDE, outputs: int = 2, classes: Any = ("bees", "ants")) -> Model:
    torch.manual_seed(seed)
    net = small_cnn(outputs, widths=(4, 8)) if kind == "image" else nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, outputs))
    spec = Preprocessing(height=side, width=side) if kind == "image" else None
    return Model(net if wrap is None else wrap(net), classes=classes, preprocessing=spec, name=f"m{seed}")


def subject(kind: str, **given: Any) -> Subject:
    parts: dict[str, Any] = {
        "adapted": model(kind, 0), "base": model(kind, 1), "controls": {"head": model(kind, 2)},
        "target": domain(kind, "T", 1), "source": domain(kind, "S", 2), "train": domain(kind, "R", 3),
    }  # fmt: skip
    if kind == "image":
        parts["cues"] = (Cue("corner", "patch", {"corner": "top-left", "size": 0.25, "value": 1.0}),)
    return Subject(**{k: v for k, v in {**parts, **given}.items() if v is not None})


def audit(whole: Subject, **settings: Any) -> AuditResult:
    kind = whole.target.kind
    known: dict[str, Any] = {
        "policy": load_policy("default"), "methods": METHODS[kind], "budget": 24, "attribution_samples": 32, "select": ["TLA7"],
        "created": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    return run(whole, **{**known, **settings})


def sound(result: AuditResult) -> dict[str, Any]:
    """Findings by code, after what holds of every audit."""
    found = {f.code: f for f in result.findings if f.code.startswith("TLA7")}
    assert not [f"{f.code}: {f.reason}" for f in found.values() if f.status == "error"]
    for f in found.values():
        assert not re.search(r"Error\b|Traceback|object at 0x|\bNone\b|\bnan\b", f.reason), f.reason
        assert not re.match(r"needs (needs|no|the the)\b|needs [A-Z][a-z]", f.reason), f.reason
        if f.status == "not_evaluated":
            continue
        if f.status == "pass":  # something was measured and held against something
            assert any(x.outcome in ("met", "undecided") for x in f.limits), f.code
            assert any(m.value is not None and max(m.n.values(), default=0) >= 10 for m in f.measurement.metrics), f.code
        ids = [e.id for e in f.measurement.exhibits]
        assert len(ids) == len(set(ids))
    return found


def missing(kind: str) -> dict[str, tuple[dict[str, Any], dict[str, str]]]:
    """What is taken away or replaced -> (parts, words in the reason of checks that cannot be measured)."""
    cases: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
        "nothing": ({}, {}),
        "base": ({"base": None}, {}),
        "controls": ({"controls": None}, {}),
        "base and controls": ({"base": None, "controls": None}, {"TLA708": r'^needs the control "head"'}),
        "source": ({"source": None}, {"TLA709": "^needs a source domain"}),
        "train": ({"train": None}, {}),
        "labels": ({"target": domain(kind, "T", 1, labels=None)}, {"TLA708": "^needs labels of the target domain"}),
        "groups": ({"target": domain(kind, "T", 1, groups=None)}, {"TLA710": "^needs groups of the target domain"}),
        "all groups but one": ({"target": domain(kind, "T", 1, groups={"site": ["n"] * 60})}, {"TLA710": "every sample is in one group"}),
        "source labels": ({"source": domain(kind, "S", 2, labels=None)}, {}),
        "all classes but one": ({"target": domain(kind, "T", 1, labels=["ants"] * 60, classes=["ants", "bees"])}, {}),
        "logits": ({"adapted": model(kind, 0, Probabilities)}, {}),
        "gradients": ({"adapted": model(kind, 0, NoGradients)}, {}),
        "gradients of the control": ({"controls": {"head": model(kind, 2, NoGradients)}}, {}),
        "one of two outputs": ({"adapted": model(kind, 0, outputs=1)}, {}),
        "class names": ({"adapted": model(kind, 0, classes=None)}, {}),
        "most samples": ({"target": domain(kind, "T", 1, n=3)}, {"TLA708": "at least 5 are needed"}),
    }
    if kind == "image":
        cases["cues"] = ({"cues": ()}, {"TLA707": "^needs regions of the target domain"})
        other = {"base": model(kind, 1, side=16), "controls": {"head": model(kind, 2, side=16)}}
        cases["a reference that sees the same inputs"] = (other, {"TLA708": "same classes and inputs"})
    return cases


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "tensor"])
def test_whatever_is_missing_no_check_breaks_and_each_says_what_it_lacks(kind: str) -> None:
    for name, (parts, words) in missing(kind).items():
        found = sound(audit(subject(kind, **parts)))
        for code, text in words.items():
            assert found[code].status == "not_evaluated", (name, code)
            assert re.search(text, found[code].reason), (name, found[code].reason)


def test_a_table_without_groups_source_or_reference_names_each_of_them() -> None:
    parts = {"base": None, "controls": None, "source": None, "target": domain("tensor", "T", 1, groups=None)}
    found = sound(audit(subject("tensor", **parts)))
    assert [found[f"TLA{k}"].status for k in (708, 709, 710)] == ["not_evaluated"] * 3
    assert found["TLA706"].reason.startswith("needs grad_cam among the attribution methods")


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_few_explained_samples_pass_nothing(samples: int) -> None:
    found = sound(audit(subject("tensor"), attribution_samples=samples))
    assert not [f.code for f in found.values() if f.status in ("pass", "fail")]
    assert found["TLA711"].status != "pass"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "tensor"])
@pytest.mark.parametrize("budget", [24, None])
def test_every_method_runs_in_an_audit_or_says_why_it_cannot(kind: str, budget: int | None) -> None:
    methods = tuple(e.name for e in EXPLAINERS)
    whole = subject(kind)
    groups = [(m,) for m in methods] if budget is not None else [methods]
    for group in groups:
        sound(audit(whole, methods=group, budget=budget, attribution_samples=8, samples="on"))


def test_a_method_with_too_small_a_budget_stands_on_the_page_beside_the_others() -> None:
    found = sound(audit(subject("tensor"), methods=("exact_shap", "sampling_shap", "lime")))
    assert any("exact_shap was not computed: exact_shap needs 64 model evaluations" in c for c in found["TLA702"].measurement.caveats)
    # half of 24 evaluations are too few for one draw of each of six columns: then all of them are spent
    assert found["TLA703"].measurement.select("randomisation_effect", method="sampling_shap").value is not None


def test_a_mistyped_method_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="unknown attribution method 'limes'"):
        audit(subject("tensor"), methods=("limes",))


def test_names_that_differ_in_signs_alone_and_groups_that_begin_alike_keep_their_exhibits_apart() -> None:
    found = sound(audit(subject("image"), methods=("grad_cam", "grad_cam++"), attribution_samples=8))
    assert {e.id for e in found["TLA702"].measurement.exhibits} >= {"removal-grad-cam", "removal-grad-cam-plus-plus"}
    groups = {"site": np.array([f"site {i % 12}" for i in range(60)])}
    shown = sound(audit(subject("tensor", target=domain("tensor", "T", 1, groups=groups)), samples="on", methods=("lime",)))
    rules = [e.caption for e in shown["TLA702"].measurement.exhibits if e.id.startswith("gallery-")]
    assert len({r for r in rules if "first of site" in r}) == 2


@pytest.mark.parametrize("samples", ["off", "redacted", "on"])
def test_pictures_appear_as_far_as_samples_may_be_shown_and_each_map_has_a_stamp(samples: str) -> None:
    found = sound(audit(subject("image"), samples=samples, methods=("grad_cam", "lime")))
    grids = [e for f in found.values() if f.measurement for e in f.measurement.exhibits if isinstance(e, ImageGrid)]
    pictures = [p for grid in grids for row in grid.rows for p in row.pictures]
    assert {g.samples for g in grids} == {samples}
    if samples == "off":
        assert pictures == []
        return
    assert {g.id for g in grids} >= {"gallery", "trained-and-permuted", "drift-grid", "cue-maps"}
    assert all(p.stamp is not None for p in pictures if p.method is not None)
    assert {p.method for p in pictures if p.title.startswith(("grad_cam", "lime"))} == {"grad_cam", "lime"}
    assert any(p.title == "random, like lime" for p in pictures)


# ---------------------------------------------------------------- kept evidence


def ran(whole: Subject, **settings: Any) -> tuple[int, AuditResult]:
    """Forward passes of any model of the subject, or copies of it, during an audit."""
    count = [0]
    hooks = [m.module.register_forward_hook(lambda *a: count.__setitem__(0, count[0] + 1)) for m in whole.models.values()]
    result = audit(whole, **settings)
    for hook in hooks:
        hook.remove()
    return count[0], result


def test_an_audit_on_kept_evidence_runs_no_model_another_seed_budget_or_method_does(tmp_path: Path) -> None:
    whole = subject("image")
    kept: dict[str, Any] = {"evidence_dir": tmp_path, "methods": ("grad_cam", "lime"), "attribution_samples": 12}
    count, first = ran(whole, **kept)
    assert count > 0
    count, again = ran(whole, **kept)
    assert count == 0
    assert report_hash(again) == report_hash(first)
    assert ran(whole, **{**kept, "budget": 26})[0] > 0
    assert ran(whole, **{**kept, "methods": ("grad_cam", "occlusion")})[0] > 0
    assert ran(whole, **kept, seed=1)[0] > 0


def test_other_regions_are_measured_anew(tmp_path: Path) -> None:
    values = []
    for rows in (slice(0, 6), slice(6, 12)):
        masks = np.zeros((60, SIDE, SIDE), dtype=bool)
        masks[:, rows] = True
        whole = subject("image", target=domain("image", "T", 1, regions=masks), cues=())
        found = sound(audit(whole, evidence_dir=tmp_path, methods=("lime",), attribution_samples=30))
        values.append(found["TLA707"].measurement.select("mass_inside", method="lime").value)
    assert sum(values) == pytest.approx(1.0)  # the two halves of each picture


def with_least_gain(least: float) -> Policy:
    """The default policy with another warning limit on faithfulness."""
    policy = load_policy("default")
    limits = tuple(
        x.model_copy(update={"warn": x.warn.model_copy(update={"min": least})}) if x.metric == "faithfulness_gain" and x.warn else x
        for x in policy.limits
    )
    return policy.model_copy(update={"limits": limits})


def test_a_limit_that_changes_no_stamp_is_judged_on_what_was_measured(tmp_path: Path) -> None:
    whole = subject("tensor")
    kept: dict[str, Any] = {"evidence_dir": tmp_path, "attribution_samples": 40}
    _, low = ran(whole, **kept, policy=with_least_gain(-0.9))
    count, high = ran(whole, **kept, policy=with_least_gain(0.9))
    assert count == 0
    for result, outcome in ((low, "met"), (high, "broken")):
        assert {x.outcome for x in result["TLA702"].limits if x.level == "warn" and x.metric == "faithfulness_gain"} == {outcome}
    assert low["TLA708"].measurement == high["TLA708"].measurement


# ---------------------------------------------------------------- interruption


@pytest.mark.parametrize("stage", ["parameter randomisation", "attribution drift"])
def test_an_interruption_inside_a_check_leaves_a_partial_record_and_the_models_as_they_were(stage: str) -> None:
    whole = subject("tensor", adapted=model("tensor", 0), controls={"head": model("tensor", 0)})
    before = {key: {k: v.clone() for k, v in m.module.state_dict().items()} for key, m in whole.models.items()}
    for m in whole.models.values():
        m.module.train()
        for p in m.module.parameters():
            p.requires_grad_(False)

    def pressed(what: str, done: int, total: int) -> None:
        if what == stage and done == 1:
            os.kill(os.getpid(), signal.SIGINT)

    result = audit(whole, progress=pressed)
    code = "TLA703" if stage == "parameter randomisation" else "TLA708"
    assert result[code].reason == "interrupted"
    assert result.outcome.partial is not None
    assert result.outcome.partial.startswith("interrupted by SIGINT")
    assert result["TLA701"].status not in ("not_evaluated", "error")
    for key, m in whole.models.items():
        assert m.module.training
        assert not any(p.requires_grad or p.grad is not None for p in m.module.parameters())
        assert not any(x._forward_hooks or x._forward_pre_hooks or x._backward_hooks for x in m.module.modules())
        assert all(torch.equal(v, before[key][k]) for k, v in m.module.state_dict().items())
