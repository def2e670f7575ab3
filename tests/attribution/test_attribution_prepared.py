"""Explainers that read outputs alone run on a prepared copy where it pays and agrees, and say so; else on the model itself, and say why."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.attribution.attribution_fakes import image_inputs
from tl_audit.attribution import explain_inputs
from tl_audit.attribution.evaluation import evaluating
from tl_audit.models import Model, small_cnn


def network() -> nn.Module:
    torch.manual_seed(0)
    net = small_cnn(3, widths=(4, 6))
    for _ in range(3):
        net(torch.randn(8, 3, 8, 8) * 2 + 1)
    return net.eval()


def pictures(n: int) -> torch.Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_the_copy_stands_in_where_it_pays_and_never_for_gradients():
    net, x = network(), torch.randn(4, 3, 8, 8)
    with evaluating(Model(net), batch_size=4, outputs_only=256, sample=x) as evaluator:
        assert evaluator.net is not net
        assert evaluator.facts == {"network": "a copy with 2 batch norm(s) folded, channels last"}
        copied = evaluator.all_scores(x)
    with evaluating(Model(net), batch_size=4) as evaluator:
        assert evaluator.net is net
        assert evaluator.facts == {}
        np.testing.assert_allclose(copied, evaluator.all_scores(x), atol=1e-4 * float(np.ptp(copied)))
    with evaluating(Model(net), batch_size=4, outputs_only=10, sample=x) as evaluator:
        assert evaluator.net is net
        assert evaluator.facts["network"].startswith("the model itself: 10 evaluations")


@pytest.mark.parametrize("method", ["kernel_shap", "lime"])
def test_a_hook_of_the_user_keeps_its_meaning(method):
    """The hook zeroes the logits of class 1: an explanation of that class shows nothing."""
    net = network()

    def silence(module: nn.Module, args: object, out: torch.Tensor) -> torch.Tensor:
        return torch.cat([out[:, :1], torch.zeros_like(out[:, 1:2]), out[:, 2:]], dim=1)

    net.head.register_forward_hook(silence)
    inputs = image_inputs(pictures(2))
    found = explain_inputs(Model(net), inputs, method=method, targets=np.ones(2, dtype=np.int64), budget=64, of="logit")
    assert found.blank.all()
    assert "'head' has hooks" in found.params["network"]


@pytest.mark.parametrize("method", ["kernel_shap", "lime", "occlusion", "rise", "feature_ablation"])
def test_a_batch_is_run_on_what_its_samples_are_run_on(method):
    net, inputs = network(), image_inputs(pictures(3))
    targets = np.array([0, 1, 2])
    together = explain_inputs(Model(net), inputs, method=method, targets=targets, budget=64)
    alone = [
        explain_inputs(Model(net), inputs.select(np.array([i])), method=method, targets=targets[i : i + 1], budget=64) for i in range(3)
    ]
    assert {a.params["network"] for a in alone} == {together.params["network"]} == {"a copy with 2 batch norm(s) folded, channels last"}
    np.testing.assert_allclose(np.concatenate([a.values for a in alone]), together.values, atol=1e-4 * np.abs(together.values).max())
