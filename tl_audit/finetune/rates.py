"""How fast weights move: schedule, warm-up, layer-wise decay of the rate, weight decay, parameter groups, the optimiser."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from tl_audit.errors import ConfigError
from tl_audit.finetune.plan import Training

Schedule = Literal["cosine", "linear", "constant"]


def rate_factor(step: int, total: int, *, warmup: int = 0, schedule: Schedule = "cosine") -> float:
    """Share of the full rate at optimiser step ``step`` of ``total`` (counted from 0), in [0, 1].

    Warm-up: (step + 1) / (warmup + 1) for step < warmup. Then, with t = (step − warmup) / (total − warmup) in [0, 1):
    cosine ½(1 + cos πt), linear 1 − t, constant 1.

    References
    ----------
    Loshchilov & Hutter (2017). SGDR: stochastic gradient descent with warm restarts. arXiv:1608.03983

    Examples
    --------
    >>> [round(rate_factor(s, 4, schedule="linear"), 2) for s in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    t = min(1.0, (step - warmup) / max(1, total - warmup))
    return 0.5 * (1 + math.cos(math.pi * t)) if schedule == "cosine" else 1 - t


def layer_order(module: nn.Module, heads: Sequence[str]) -> list[tuple[str, ...]]:
    """Parameter names by layer, from the input to the head (last).

    Layers are the shortest module-path prefixes that give at least 4 groups of parameters beside the head (the finest there are, if there are fewer), in
    registration order; more than 40 are never made by going deeper. Parameters of the network itself (class token, positions) come first.
    """
    rest: list[str] = []
    top: list[str] = []
    for name, _ in module.named_parameters(remove_duplicate=True):
        (top if any(name.startswith(head + ".") or name == head for head in heads) else rest).append(name)
    deepest = max((name.count(".") for name in rest), default=0)
    best: list[tuple[str, ...]] = []
    for depth in range(1, max(deepest, 1) + 1):
        groups: dict[str, list[str]] = {}
        for name in rest:
            parts = name.split(".")[:-1]
            groups.setdefault(".".join(parts[:depth]), []).append(name)
        now = [tuple(names) for names in groups.values()]
        if len(now) > 40 and best:
            break
        best = now
        if len(now) >= 4:
            break
    return [*best, *([tuple(top)] if top else [])]


def layer_rates(layers: Sequence[Sequence[str]], trainable: Iterable[str], lr: float, decay: float | None) -> dict[str, float]:
    """Rate of each moving parameter: ``lr`` in the topmost layer that moves, times ``decay`` per moving layer below it.

    References
    ----------
    Howard & Ruder (2018). Universal language model fine-tuning for text classification (discriminative rates). arXiv:1801.06146

    Examples
    --------
    >>> layer_rates([("a",), ("b",), ("c",)], ["b", "c"], 1.0, 0.5)
    {'b': 0.5, 'c': 1.0}
    """
    moving = set(trainable)
    active = [[name for name in layer if name in moving] for layer in layers]
    active = [layer for layer in active if layer]
    factor = 1.0 if decay is None else decay
    return {name: lr * factor ** (len(active) - 1 - depth) for depth, layer in enumerate(active) for name in layer}


def decays(parameter: torch.Tensor) -> bool:
    """Whether weight decay applies: matrices and kernels only, never biases and the scales of norm layers."""
    return parameter.ndim > 1


def parameter_groups(
    module: nn.Module, rates: dict[str, float], *, weight_decay: float, pulled: Iterable[str] = ()
) -> list[dict[str, Any]]:  # Any: torch's own form of parameter groups
    """Optimiser groups: one per (rate, weight decay). Tensors in ``pulled`` (L2-SP) are drawn to the base instead of to zero."""
    apart = set(pulled)
    groups: dict[tuple[float, float], list[torch.Tensor]] = {}
    for name, parameter in module.named_parameters():
        if name in rates:
            decay = weight_decay if decays(parameter) and name not in apart else 0.0
            groups.setdefault((rates[name], decay), []).append(parameter)
    return [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]


def optimiser(groups: list[dict[str, Any]], training: Training) -> torch.optim.Optimizer:
    """The optimiser of the plan over these groups."""
    if training.optimiser == "adamw":
        return torch.optim.AdamW(groups)
    if training.optimiser == "adam":
        return torch.optim.Adam(groups)
    if training.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=1e-3, momentum=training.momentum, nesterov=training.momentum > 0)
    raise ConfigError(f"optimiser {training.optimiser!r} is not known: adamw, adam, sgd")


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """Class weights n / (C · n_c), so that every class counts equally in the loss. A class without samples has weight 0.

    Examples
    --------
    >>> balanced_weights([30, 10])
    [0.6666666666666666, 2.0]
    """
    present = sum(1 for count in counts if count)
    total = sum(counts)
    return [total / (present * count) if count else 0.0 for count in counts]
