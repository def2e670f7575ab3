"""borrowed: use someone's network and give it back exactly as it was."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from tl_audit.models.model import Model

# Where torch keeps a module's hooks; those of one network that a borrower added are removed again.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)

Undo = Callable[[], None]


@contextmanager
def borrowed(module: nn.Module | Model, *, train: bool = False, parameters: bool = False) -> Iterator[nn.Module]:
    """The network in evaluation mode (``train=True``: training mode), given back bit-equal at the end of the block.

    Restored on success, on an exception and on Ctrl-C: the training flag of each module, ``requires_grad``, ``.grad`` (empty inside the block),
    hooks, buffers, the random states of Python, NumPy and torch, default dtype, gradient mode and backend flags.
    Blocks may be nested. ``parameters=True`` also restores parameter values, at the cost of a copy; without it nobody may write to them.
    """
    net = module.module if isinstance(module, Model) else module
    undo: list[Undo] = [_keep_globals(), _keep_randomness(), *(_keep_module(m) for m in net.modules())]
    undo += [_keep_parameter(p, values=parameters) for p in net.parameters() if not _lazy(p)]
    try:
        for m in net.modules():
            m.training = train
        yield net
    finally:
        for restore in reversed(undo):
            restore()


def _lazy(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer)


def _keep_module(module: nn.Module) -> Undo:
    training = module.training
    hooks = {name: dict(getattr(module, name)) for name in _HOOKS if hasattr(module, name)}
    full_backward = getattr(module, "_is_full_backward_hook", None)
    buffers = {name: (b, b.detach().clone()) for name, b in module._buffers.items() if b is not None and not _lazy(b)}
    absent = {name for name, b in module._buffers.items() if b is None}

    def restore() -> None:
        module.training = training
        for name, before in hooks.items():
            now = getattr(module, name)
            if list(now.items()) != list(before.items()):
                now.clear()
                now.update(before)
        if full_backward is not getattr(module, "_is_full_backward_hook", None):
            module._is_full_backward_hook = full_backward
        for name in set(module._buffers) - set(buffers) - absent:
            if not (module._buffers[name] is not None and _lazy(module._buffers[name])):  # type: ignore[arg-type]
                del module._buffers[name]
        for name in absent:
            module._buffers[name] = None
        for name, (tensor, copy) in buffers.items():
            module._buffers[name] = tensor
            _write_back(tensor, copy)

    return restore


def _keep_parameter(parameter: nn.Parameter, *, values: bool) -> Undo:
    requires_grad = parameter.requires_grad
    grad = parameter.grad
    hooks = None if parameter._backward_hooks is None else dict(parameter._backward_hooks)
    copy = parameter.detach().clone() if values else None
    parameter.grad = None  # a borrower may not add to the owner's gradients in place

    def restore() -> None:
        if parameter._backward_hooks is not None:
            for key in set(parameter._backward_hooks) - set(hooks or {}):
                del parameter._backward_hooks[key]
        parameter.requires_grad_(requires_grad)
        parameter.grad = grad
        if copy is not None:
            _write_back(parameter.detach(), copy)

    return restore


def _write_back(tensor: torch.Tensor, copy: torch.Tensor) -> None:
    # compared as bytes: NaN is equal to itself here, and -0.0 is not 0.0
    if not torch.equal(_as_bytes(tensor), _as_bytes(copy)):
        with torch.no_grad():
            tensor.copy_(copy)


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _keep_randomness() -> Undo:
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002  the caller's global state
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]

    def restore() -> None:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(torch_state)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)

    return restore


def _keep_globals() -> Undo:
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    deterministic, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn: Any = torch.backends.cudnn  # Any: torch declares these flags dynamically
    flags = {name: getattr(cudnn, name) for name in ("enabled", "benchmark", "deterministic")}

    def restore() -> None:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        if (deterministic, warn_only) != (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ):
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        for name, value in flags.items():
            if getattr(cudnn, name) != value:
                setattr(cudnn, name, value)

    return restore
