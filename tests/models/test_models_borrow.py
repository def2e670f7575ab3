"""borrowed: a network comes back bit-equal, whatever happened to it (HARDENING.md F22, 5.5)."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from tl_audit.models import Model, borrowed, small_cnn, tensor_hash


def network(state: str) -> nn.Module:
    torch.manual_seed(0)
    net = small_cnn(3, widths=(4, 6), dropout=0.5)
    if state == "training":
        net.train()
    elif state == "frozen":
        net.eval().requires_grad_(False)
    elif state == "mixed":
        net.train()
        net.block1.eval()
        net.head.weight.requires_grad_(False)
        net(torch.randn(2, 3, 8, 8)).sum().backward()
    elif state == "half":
        net.eval().to(torch.bfloat16)
    net.head.register_forward_hook(lambda *_: None)
    return net


def traces(net: nn.Module) -> dict[str, object]:
    """Everything a borrower could leave behind."""
    return {
        "tensors": tensor_hash(net),
        "places": [t.data_ptr() for t in net.state_dict(keep_vars=True).values()],
        "training": [m.training for m in net.modules()],
        "requires_grad": [p.requires_grad for p in net.parameters()],
        "grads": [None if p.grad is None else (id(p.grad), p.grad.double().sum().item()) for p in net.parameters()],
        "hooks": [
            len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) + len(m._backward_pre_hooks) for m in net.modules()
        ],
        "tensor_hooks": [len(p._backward_hooks or {}) for p in net.parameters()],
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),  # noqa: NPY002
        "global": (torch.get_default_dtype(), torch.is_grad_enabled(), torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
    }


def misuse(net: nn.Module) -> None:
    """All that HARDENING.md F22 has seen explainers do."""
    dtype = next(net.parameters()).dtype
    net.train()
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    net.block1.register_forward_hook(lambda *_: None)
    net.block1.register_full_backward_hook(lambda *_: None)
    net.block1.register_forward_pre_hook(lambda *_: None)
    net.head.weight.register_hook(lambda g: g)
    next(iter(net.head._forward_hooks))
    net.head._forward_hooks.clear()
    net(torch.randn(4, 3, 8, 8, dtype=dtype)).sum().backward()
    net.block2.bn.running_mean.fill_(float("nan"))
    net.block2.bn.running_var = torch.zeros(6)
    net.block1.bn.register_buffer("extra", torch.ones(2))
    random.random()
    np.random.rand()  # noqa: NPY002
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.deterministic = True
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("state", ["training", "eval", "frozen", "mixed", "half"])
@pytest.mark.parametrize("end", [None, ValueError, KeyboardInterrupt])
def test_no_trace_is_left(state, end):
    net = network(state)
    before = traces(net)
    try:
        with borrowed(net) as lent:
            assert lent is net
            assert not any(m.training for m in net.modules())
            assert all(p.grad is None for p in net.parameters())
            misuse(net)
            if end is not None:
                raise end
    except (ValueError, KeyboardInterrupt) as error:
        assert type(error) is end  # noqa: PT017
    assert traces(net) == before


def test_training_mode_is_on_request_and_models_are_accepted():
    net = network("eval").eval()
    with borrowed(Model(net), train=True) as lent:
        assert all(m.training for m in lent.modules())
        lent(torch.randn(4, 3, 8, 8))
    assert not any(m.training for m in net.modules())
    assert int(net.block1.bn.num_batches_tracked) == 0


def test_blocks_nest():
    net = network("training")
    before = traces(net)
    with borrowed(net), borrowed(net, train=True):
        net(torch.randn(4, 3, 8, 8))
    assert traces(net) == before


def test_buffers_come_back_bit_by_bit():
    net = network("eval")
    net.block1.bn.running_mean.copy_(torch.tensor([float("nan"), -0.0, 0.0, 1.0]))
    before = net.block1.bn.running_mean.clone()
    with borrowed(net):
        net.block1.bn.running_mean.copy_(torch.tensor([float("nan"), 0.0, 0.0, 1.0]))
    assert torch.equal(before.view(torch.int32), net.block1.bn.running_mean.view(torch.int32))


def test_parameters_come_back_only_where_asked():
    net = network("eval")
    before = tensor_hash(net)
    with borrowed(net, parameters=True), torch.no_grad():
        net.head.weight.add_(1)
    assert tensor_hash(net) == before


def test_gradients_of_the_owner_are_kept_and_not_added_to():
    net = network("mixed")
    kept = copy.deepcopy([p.grad for p in net.parameters()])
    with borrowed(net):
        net(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all((a is None and b.grad is None) or torch.equal(a, b.grad) for a, b in zip(kept, net.parameters(), strict=True))
