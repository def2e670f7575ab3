"""One adapter from whatever a network returns to logits (N, C)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from tl_audit.errors import ModelError
from tl_audit.models.borrow import borrowed
from tl_audit.models.model import Model
from tl_audit.records.values import Output, Value

# Keys under which networks commonly return their logits, tried in this order.
_KEYS = ("logits", "out", "output", "y", "prediction", "predictions", "scores")


class Reading(NamedTuple):
    """Logits (N, C) and how they were found: ``width`` columns in the network's own output, and whether these were probabilities.

    Where the output is a value (regression), ``logits`` are the values (N, 1) in their own unit.
    """

    logits: torch.Tensor
    width: int
    probabilities: bool
    value: bool = False


def outputs(raw: Any, output: Output = None) -> torch.Tensor:  # Any: whatever a forward returns
    """Logits (N, C), float32 or better, differentiable, from a network's raw output.

    A tensor, an object with ``.logits``, a mapping, or a tuple or list is understood; ``output`` names the key, attribute or index.
    (N,) and (N, 1) are one binary logit z and become the columns (0, z). Rows within [0, 1] that all sum to 1 are taken for
    probabilities and become their logarithm, so that a softmax gives them back: ``output_notes`` says so.
    With a ``Value`` the one output is a number, not a logit: (N, 1) in its own unit.

    Raises
    ------
    ModelError : no logits found; lists what was found

    Examples
    --------
    >>> outputs({"logits": torch.tensor([[1.0, 2.0]])}).tolist()
    [[1.0, 2.0]]
    >>> outputs(torch.tensor([3.0])).tolist()
    [[0.0, 3.0]]
    >>> outputs(torch.tensor([3.0]), Value(mean=10.0, scale=2.0)).tolist()
    [[16.0]]
    """
    return read_outputs(raw, output).logits


def read_outputs(raw: Any, output: Output = None) -> Reading:
    """As ``outputs``, with the width of the network's own output and whether it held probabilities."""
    tensor = _find(raw, output.part if isinstance(output, Value) else output)
    if not tensor.is_floating_point():
        raise ModelError(f"the output is {tensor.dtype} of shape {tuple(tensor.shape)}, expected floating-point logits (N, C), not labels")
    tensor = tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
    if tensor.ndim > 2 and all(side == 1 for side in tensor.shape[2:]):
        tensor = tensor.flatten(1)
    if tensor.ndim == 1:
        tensor = tensor.unsqueeze(1)
    if tensor.ndim != 2 or tensor.shape[1] == 0:
        raise ModelError(
            f"the output has shape {tuple(tensor.shape)}, expected (N, C) logits: name the part that holds them with output=..."
        )
    width = tensor.shape[1]
    if isinstance(output, Value):
        if width != 1:
            raise ModelError(
                f"the output has {width} columns, and a model of one value gives one number per sample: "
                "models of several values are not audited, name the one with a wrapper that returns (N,)"
            )
        return Reading(output.own(tensor), 1, False, value=True)
    if width == 1:
        return Reading(torch.cat([torch.zeros_like(tensor), tensor], dim=1), 1, False)
    if _are_probabilities(tensor.detach()):
        return Reading(tensor.clamp_min(torch.finfo(tensor.dtype).tiny).log(), width, True)
    return Reading(tensor, width, False)


def output_notes(model: Model, batch: torch.Tensor) -> tuple[str, ...]:
    """What must be said about the form of this model's outputs, seen on one batch; () for plain logits. One forward pass."""
    with borrowed(model) as net, torch.no_grad():
        reading = read_outputs(net(batch), model.output)
    notes = []
    if reading.width == 1 and not reading.value:
        notes.append("the model has one output: it is read as the logit of the second class, the first has logit 0")
    if reading.probabilities:
        notes.append("the model's outputs are probabilities (within [0, 1], each row sums to 1): their logarithm serves as logits")
    return tuple(notes)


def _are_probabilities(tensor: torch.Tensor) -> bool:
    if len(tensor) == 0 or not bool(torch.isfinite(tensor).all()):
        return False
    within = bool((tensor >= 0).all()) and bool((tensor <= 1).all())
    return within and bool(((tensor.sum(dim=1) - 1).abs() < 1e-4).all())


def _find(raw: Any, output: str | int | None) -> torch.Tensor:
    if output is not None:
        return _named(raw, output)
    if isinstance(raw, torch.Tensor):
        return raw
    logits = getattr(raw, "logits", None)
    if isinstance(logits, torch.Tensor):
        return logits
    if isinstance(raw, Mapping):
        for key in _KEYS:
            if isinstance(raw.get(key), torch.Tensor):
                return raw[key]  # type: ignore[no-any-return]
        tensors = [v for v in raw.values() if isinstance(v, torch.Tensor)]
        if len(tensors) == 1:
            return tensors[0]
    elif isinstance(raw, tuple | list) and raw and isinstance(raw[0], torch.Tensor):
        return raw[0]
    raise ModelError(f"no logits found in the output; found {describe(raw)}: name them with output=<key or index>")


def _named(raw: Any, output: str | int) -> torch.Tensor:
    try:
        value = raw[output] if isinstance(output, int) or isinstance(raw, Mapping) else getattr(raw, output)
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise ModelError(f"the output has no {output!r}; found {describe(raw)}") from error
    if not isinstance(value, torch.Tensor):
        raise ModelError(f"the output's {output!r} is {type(value).__name__}, expected a tensor of logits; found {describe(raw)}")
    return value


def describe(raw: Any) -> str:
    """One line on what a forward returned: types, keys, shapes."""
    if isinstance(raw, torch.Tensor):
        return f"tensor {tuple(raw.shape)}"
    if isinstance(raw, Mapping):
        return "mapping with " + ", ".join(f"{key}: {describe(value)}" for key, value in list(raw.items())[:10])
    if isinstance(raw, tuple | list):
        return f"{type(raw).__name__} of (" + ", ".join(describe(value) for value in raw[:10]) + ")"
    return type(raw).__name__
