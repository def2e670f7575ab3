"""What every explainer promises: it leaves no trace, and its result depends on nothing but seed, method and sample."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.attribution.attribution_fakes import ASKING, PatchDetector, column_inputs, image_inputs, parts_for
from tl_audit.attribution import EXPLAINERS, Attribution, Inputs, explain_inputs
from tl_audit.attribution.cam import LayerCamMethod
from tl_audit.attribution.evaluation import Evaluator
from tl_audit.models import Model

ONE_PASS = tuple(e.name for e in EXPLAINERS if isinstance(e, LayerCamMethod) and e.needs_gradients)
"""One forward pass, and one backward pass of what lies above a layer."""


def ones(n: int) -> np.ndarray:
    return np.ones(n, dtype=np.int64)


class Crashing(nn.Module):
    """Passes its input on, until the given call raises."""

    def __init__(self, error: BaseException, after: int) -> None:
        super().__init__()
        self.error, self.after, self.calls = error, after, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        object.__setattr__(self, "calls", self.calls + 1)
        if self.calls > self.after:
            raise self.error
        return x


def traces(net: nn.Module) -> dict[str, Any]:
    """Everything that an explainer could have left behind."""
    out: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state().tolist(), "grad mode": torch.is_grad_enabled()}
    state = np.random.get_state()  # noqa: NPY002
    out["numpy"] = (state[0], state[1].tolist(), *state[2:])
    for name, p in net.named_parameters():
        out[f"parameter {name}"] = (p.detach().clone(), p.requires_grad, None if p.grad is None else p.grad.clone(), p.dtype)
    for name, b in net.named_buffers():
        out[f"buffer {name}"] = b.clone()
    for name, m in net.named_modules():
        hooks = (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
        out[f"module {name}"] = (m.training, [list(h) for h in hooks])
    return out


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def assert_no_trace(before: dict[str, Any], net: nn.Module) -> None:
    after = traces(net)
    assert before.keys() == after.keys()
    changed = [key for key in before if not same(before[key], after[key])]
    assert not changed


def prepared(net: nn.Module, state: str) -> nn.Module:
    net.train(state == "training")
    if state == "frozen":
        for p in net.parameters():
            p.requires_grad_(False)
    else:
        for p in net.parameters():
            p.grad = torch.ones_like(p)
    return net


@pytest.mark.parametrize("state", ["training", "eval", "frozen"])
@pytest.mark.parametrize("method", ASKING)
def test_a_normal_run_leaves_no_trace(method, state, small_net):
    net = prepared(small_net(), state)
    net.register_forward_hook(lambda *_: None)  # the owner's own hook stays
    x = torch.rand(3, 1, 16, 16)
    kept = x.clone()
    before = traces(net)
    explain_inputs(Model(net), image_inputs(x, parts_for(method)), method=method, targets=ones(3), budget=40)
    assert_no_trace(before, net)
    assert torch.equal(x, kept)
    assert not x.requires_grad
    assert x.grad is None


@pytest.mark.parametrize("method", ASKING)
def test_a_wrong_target_leaves_no_trace(method, small_net):
    net = prepared(small_net(), "training")
    x = torch.rand(2, 1, 16, 16)
    before = traces(net)
    with pytest.raises(Exception, match=r"index|bounds|range|dim"):
        explain_inputs(Model(net), image_inputs(x, parts_for(method)), method=method, targets=np.array([0, 7]), budget=40)
    assert_no_trace(before, net)


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()], ids=["crash", "ctrl-c"])
@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("method", ASKING)
def test_a_crash_in_the_middle_leaves_no_trace(method, after, error, small_net):
    net = prepared(small_net(), "training")
    net.insert(4, Crashing(error, after))
    x = torch.rand(6, 1, 16, 16)
    before = traces(net)
    # at least four forward passes each, of a few rows: a gradient at the input takes one per batch and no other
    with pytest.raises(type(error)):
        explain_inputs(Model(net), image_inputs(x, parts_for(method)), method=method, targets=ones(6), budget=40, batch_size=1)
    assert_no_trace(before, net)


@pytest.mark.parametrize("method", ASKING)
def test_half_precision_models_are_explained_as_they_are(method, small_net):
    net = small_net().to(torch.bfloat16)
    x = torch.rand(2, 1, 16, 16)
    before = traces(net)
    a = explain_inputs(Model(net), image_inputs(x, parts_for(method)), method=method, targets=ones(2), budget=40)
    assert np.isfinite(a.values).all()
    assert a.values.dtype == np.float64
    assert_no_trace(before, net)


def reordered(inputs: Inputs, order: list[int]) -> Inputs:
    return inputs.select(np.array(order))


@pytest.mark.parametrize("method", ASKING)
def test_order_and_batch_size_do_not_matter(method, small_net, rng):
    inputs = image_inputs(torch.as_tensor(rng.uniform(size=(5, 1, 16, 16))).float(), parts_for(method))
    model = Model(small_net())
    targets = np.array([0, 1, 2, 1, 0])

    def run(which: list[int], batch_size: int) -> Attribution:
        return explain_inputs(model, reordered(inputs, which), method=method, targets=targets[which], budget=40, batch_size=batch_size)

    full = run([0, 1, 2, 3, 4], 64)
    for which, batch_size in (([0, 1, 2, 3, 4], 1), ([0, 1, 2, 3, 4], 3), ([3, 1, 4, 0, 2], 64), ([2], 64)):
        found = run(which, batch_size)
        for row, sample in enumerate(which):
            assert found.values[row] == pytest.approx(full.values[sample], abs=1e-5)


@pytest.mark.parametrize("method", ASKING)
def test_a_second_run_gives_identical_bytes(method, small_net):
    x = torch.rand(3, 1, 16, 16)
    runs = [
        explain_inputs(Model(small_net()), image_inputs(x, parts_for(method)), method=method, targets=ones(3), seed=4, budget=40)
        for _ in range(2)
    ]
    assert runs[0].values.tobytes() == runs[1].values.tobytes()


@pytest.mark.parametrize("explainer", EXPLAINERS, ids=lambda e: e.name)
def test_another_seed_moves_stochastic_methods_only(explainer, small_net):
    x = torch.rand(3, 1, 16, 16)
    first, second = (
        explain_inputs(
            Model(small_net()), image_inputs(x, parts_for(explainer.name)), method=explainer.name, targets=ones(3), seed=s, budget=40
        )
        for s in (0, 1)
    )
    assert (first.values.tobytes() != second.values.tobytes()) == explainer.stochastic


@pytest.mark.parametrize("method", ASKING)
def test_the_budget_reported_is_what_was_spent(method, small_net, monkeypatch):
    forwards = backwards = 0
    real, back = Evaluator._read, torch.autograd.grad

    def counted(self: Evaluator, x: torch.Tensor) -> Any:
        nonlocal forwards
        forwards += len(x)
        return real(self, x)

    def counted_back(outputs: Any, wrt: Any, **kwargs: Any) -> Any:
        nonlocal backwards
        backwards += len(wrt[0] if isinstance(wrt, tuple | list) else wrt)
        return back(outputs, wrt, **kwargs)

    monkeypatch.setattr(Evaluator, "_read", counted)
    monkeypatch.setattr(torch.autograd, "grad", counted_back)
    n = 6
    x = image_inputs(torch.rand(n, 1, 16, 16), parts_for(method))
    a = explain_inputs(Model(small_net(), head="9"), x, method=method, targets=ones(n), budget=50)
    spent = 2 * (forwards - 1) / n if method in ONE_PASS else (forwards + backwards) / n
    assert a.budget == pytest.approx(spent, abs=0.5)
    assert a.budget <= 50


@pytest.mark.parametrize("method", [e.name for e in EXPLAINERS if e.name in ASKING and not e.needs_space])
def test_columns_are_explained_by_name(method, rng):
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 2))
    x, background = (torch.as_tensor(rng.normal(size=(n, 4))).float() for n in (3, 10))
    a = explain_inputs(Model(net, classes=("no", "yes")), column_inputs(x, background), method=method, targets=ones(3), budget=60)
    assert a.values.shape == (3, 4)
    assert a.target_names == ("yes",) * 3
    assert {row["part"] for row in a.to_rows()} == {"c0", "c1", "c2", "c3"}


def test_results_are_frozen_and_short_in_print(small_net):
    a = explain_inputs(Model(small_net()), image_inputs(torch.rand(12, 1, 16, 16)), method="grad_cam", targets=ones(12))
    with pytest.raises(AttributeError):
        a.seed = 3  # type: ignore[misc]
    assert len(repr(a).splitlines()) <= 20
    assert "not checked" in repr(a)


def test_a_map_that_is_not_finite_is_blank_as_a_whole(patches):
    x, _ = patches
    net = PatchDetector()
    with torch.no_grad():
        net.head.bias[1] = float("nan")
    a = explain_inputs(Model(net), image_inputs(x), method="kernel_shap", targets=ones(len(x)), budget=30)
    assert a.blank.all()
    assert np.isnan(a.values).all()


def test_the_model_given_is_the_model_used(small_net):
    net = small_net()
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[9].weight.mul_(-1)
    x = torch.rand(2, 1, 16, 16)
    a, b = (explain_inputs(Model(m), image_inputs(x), method="kernel_shap", targets=ones(2), budget=30) for m in (net, other))
    assert a.values == pytest.approx(-b.values, abs=1e-5)
