"""Value: how a network says one number per sample instead of one score per class."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tl_audit.records.base import Record

Task = Literal["classification", "regression"]
TASKS: tuple[Task, ...] = ("classification", "regression")


class Value(Record):
    """One number per sample: the network gives z, the value is ``mean + scale · z`` in the target's own unit.

    Parameters
    ----------
    part : where z is in the network's output: None (tensor, ``.logits`` or first element found by itself), a key, or an index
    mean, scale : of the target where the network was trained on standardised values; 0 and 1: the network gives the value itself
    name, unit : of the target, as reports print them

    Examples
    --------
    >>> Value(mean=150.0, scale=77.0).own(0.5)
    188.5
    """

    kind: Literal["value"] = "value"
    part: str | int | None = None
    mean: float = 0.0
    scale: float = Field(default=1.0, gt=0)
    name: str | None = None
    unit: str | None = None

    def own(self, z: Any) -> Any:  # Any: a number, an array or a tensor; the same comes back
        """z in the target's own unit; numbers, arrays and tensors."""
        return self.mean + self.scale * z

    def standardised(self, value: Any) -> Any:  # Any: as of own
        """A value as what the network gives: the inverse of ``own``."""
        return (value - self.mean) / self.scale


Output = str | int | Value | None
"""How a network's output is read: found by itself, by a key or an index, or as one number (``Value``)."""
