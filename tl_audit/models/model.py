"""Model: one network with what is needed to feed it and to read its outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tl_audit.errors import ModelError
from tl_audit.records.preprocessing import InputSpec
from tl_audit.records.values import Output, Task, Value


@dataclass(frozen=True)
class WeightsFile:
    """Where the weights came from. ``format``: safetensors | pickle | torchscript | pt2 (by content, not suffix)."""

    path: str
    sha256: str
    format: str
    trusted_by_hash: bool = False
    refused_globals: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    reinitialised: tuple[str, ...] = ()
    declared: tuple[str, ...] = ()
    "tensors whose difference the record declares (a new head)"
    notes: tuple[str, ...] = ()
    "what was converted or filled in on the way (half precision, a wrapper's prefix, tied tensors): goes to the caveats"


@dataclass(frozen=True)
class Model:
    """A network, its class names in output order, how its inputs are made, and which module is its head.

    Attributes
    ----------
    module : maps a batch (N, ...) to logits (N, C), or to a dict, tuple or object that holds them
    classes : class names in output order, None where unknown
    preprocessing : raw sample -> input; None: the domain's samples already are inputs
    head : module path of the head, None: found by execution order
    name, arch : what reports print
    file : the weights file, None for live modules
    output : where the logits are in the module's output: None (tensor, ``.logits`` or first element found by itself), a key, or an index;
        a ``Value`` where the module gives one number per sample (regression)
    """

    module: nn.Module
    classes: tuple[str, ...] | None = None
    preprocessing: InputSpec | None = None
    head: str | None = None
    name: str = "model"
    arch: str | None = None
    file: WeightsFile | None = None
    output: Output = None
    facts: dict[str, Any] = field(default_factory=dict)  # Any: plain JSON values for the record

    def __post_init__(self) -> None:
        if self.classes is not None and not isinstance(self.classes, tuple):
            object.__setattr__(self, "classes", tuple(self.classes))
        if self.classes is not None and isinstance(self.output, Value):
            raise ModelError(f"{self.name} names classes and says that its output is a value: give classes=, or output=Value(), not both")

    @property
    def task(self) -> Task:
        """What the outputs are: scores of classes, or one number per sample."""
        return "regression" if isinstance(self.output, Value) else "classification"

    @property
    def part(self) -> str | int | None:
        """Where the outputs are in what the module returns: a key, an index, or None."""
        return self.output.part if isinstance(self.output, Value) else self.output
