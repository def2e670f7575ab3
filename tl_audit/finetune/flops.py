"""Compute of an adaptation, counted by torch's own counter on a copy of the network."""

from __future__ import annotations

import copy

import torch
from torch import nn

from tl_audit.finetune.choose import Choice, freeze, set_modes
from tl_audit.models import outputs
from tl_audit.records.values import Output

METHOD = "torch.utils.flop_counter: one multiply-add is 2 FLOP; forward and backward of one batch on a copy, times the samples seen; optimiser not counted"


def forward_flops(network: nn.Module, inputs: torch.Tensor) -> float:
    """FLOP of one forward pass per sample, as at inference.

    Examples
    --------
    >>> forward_flops(nn.Linear(3, 2), torch.zeros(4, 3))
    12.0
    """
    from torch.utils.flop_counter import FlopCounterMode

    twin = copy.deepcopy(network).cpu().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(inputs)
    return float(counter.get_total_flops()) / len(inputs)


def training_flops(network: nn.Module, choice: Choice, inputs: torch.Tensor, *, output: Output = None) -> float:
    """FLOP of one forward and backward pass per sample while these parameters move.

    What comes out is F_all + F_back + F_train: everything forward, activation gradients down to the lowest moving layer, weight gradients of moving layers.
    At least two samples are needed where batch statistics move.
    """
    from torch.utils.flop_counter import FlopCounterMode

    twin = copy.deepcopy(network).cpu()
    freeze(twin, choice)
    set_modes(twin, choice)
    with torch.random.fork_rng(devices=[]), FlopCounterMode(display=False) as counter:
        # any loss serves: what is counted lies before it
        outputs(twin(inputs), output).square().mean().backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops()) / len(inputs)
