"""The augmentations that an adaptation trained with, put on samples once more (TLA804): those of ``torchvision.transforms.v2``, on pictures."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.errors import DataError
from tl_audit.measures.sampling import generator
from tl_audit.modality.base import RawBatch

GEOMETRIC = frozenset(
    (
        "RandomHorizontalFlip",
        "RandomVerticalFlip",
        "RandomRotation",
        "RandomAffine",
        "RandomPerspective",
        "RandomResizedCrop",
        "ElasticTransform",
    )
)
"""Transforms that move pixels and leave their colours: a map of what counted can be moved with the picture."""

Key = tuple[Any, ...]  # Any: parts of a generator's key


@dataclass(frozen=True)
class Augmentation:
    """One transform of a plan, as its record holds it, applied to every sample: a chance of being left out (``p``) is taken away.

    Attributes
    ----------
    name : class of ``torchvision.transforms.v2``
    args : what it was made with
    always : whether a chance below 1 was set to 1
    """

    name: str
    args: Mapping[str, Any]  # Any: JSON values
    always: bool

    @property
    def label(self) -> str:
        """The name, with the arguments where there are any: "RandomRotation(degrees=10)"."""
        shown = ", ".join(f"{k}={json.dumps(v) if isinstance(v, str) else v}" for k, v in sorted(self.args.items()) if k != "p")
        return f"{self.name}({shown})" if shown else self.name

    @property
    def geometric(self) -> bool:
        return self.name in GEOMETRIC

    def transform(self, **instead: Any) -> Any:  # Any: a torchvision transform; loaded late
        """The transform itself; ``instead``: arguments that replace those of the plan.

        Raises
        ------
        DataError : no such transform here, or arguments it does not take
        """
        from torchvision.transforms import v2

        made = getattr(v2, self.name, None)
        if made is None:
            raise DataError(f"this torchvision has no transform {self.name!r}, which the training used")
        try:
            return made(**{**self.args, **instead})
        except (TypeError, ValueError) as error:
            raise DataError(f"the transform {self.name!r} of the training cannot be made again: {error}") from error


def augmentations(training: Mapping[str, Any]) -> tuple[Augmentation, ...]:  # Any: the settings of an adaptation record
    """The transforms that a training used, each one once."""
    out: list[Augmentation] = []
    for step in training.get("augment") or ():
        name, args = (str(step.get("name", "")), dict(step.get("args") or {})) if isinstance(step, Mapping) else (str(step), {})
        chance = args.get("p", _default_chance(name))
        if chance == 0:
            continue
        sometimes = isinstance(chance, int | float) and chance < 1
        one = Augmentation(name, {**args, "p": 1.0} if sometimes else args, sometimes)
        if one not in out:
            out.append(one)
    return tuple(out)


def augmented(batch: RawBatch, step: Augmentation, keys: Sequence[Key]) -> RawBatch:
    """The pictures after the transform, before any preprocessing, as in training; ``keys``: seeds, one for each sample.

    Raises
    ------
    DataError : samples that are no pictures, or a transform that makes anything else of them
    """
    from torchvision import tv_tensors

    transform = step.transform()
    items: list[NDArray[np.uint8] | None] = []
    # the caller's generators are left as they were
    with torch.random.fork_rng(devices=[]):
        for item, key in zip(batch.items, keys, strict=True):
            if item is None:
                items.append(None)
                continue
            if not isinstance(item, np.ndarray) or item.dtype != np.uint8 or item.ndim != 3:
                raise DataError(f"the training's transform {step.name!r} is for pictures, a sample is {type(item).__name__}")
            torch.manual_seed(_seed(*key, step.label))
            made = transform(tv_tensors.Image(torch.from_numpy(np.moveaxis(item, -1, 0).copy())))
            if not isinstance(made, torch.Tensor) or made.dtype != torch.uint8 or made.ndim != 3:
                raise DataError(f"the training's transform {step.name!r} makes no picture of a picture")
            items.append(np.ascontiguousarray(np.moveaxis(made.as_subclass(torch.Tensor).numpy(), 0, -1)))
    return RawBatch(batch.rows, items, batch.errors, batch.facts)


def moved(
    inputs: torch.Tensor, maps: NDArray[np.float64], step: Augmentation, keys: Sequence[Key]
) -> tuple[torch.Tensor, NDArray[np.float64], NDArray[np.bool_]]:
    """Model inputs (N, C, H, W) and their maps (N, H, W) after one and the same draw of a geometric transform; and which places came from inside.

    A crop keeps the size of the input; what comes in from outside is 0.
    """
    from torchvision import tv_tensors

    instead: dict[str, Any] = {"size": list(inputs.shape[-2:])} if step.name == "RandomResizedCrop" else {}
    if "fill" in step.args:
        instead["fill"] = 0  # a colour of raw pixels would be another one in the range of model inputs
    transform = step.transform(**instead)
    pictures, places, inside = [], [], []
    with torch.random.fork_rng(devices=[]):
        for tensor, values, key in zip(inputs.cpu(), maps, keys, strict=True):
            torch.manual_seed(_seed(*key, step.label))
            parts = (tensor.float(), torch.from_numpy(values)[None].float(), torch.ones(1, *tensor.shape[-2:]))
            made = [part.as_subclass(torch.Tensor) for part in transform(tuple(tv_tensors.Image(part) for part in parts))]
            pictures.append(made[0])
            places.append(made[1][0].double().numpy())
            inside.append(made[2][0].numpy() > 0.5)
    return torch.stack(pictures).to(inputs), np.stack(places), np.stack(inside)


def _default_chance(name: str) -> Any:  # Any: whatever stands as default
    from torchvision.transforms import v2

    made = getattr(v2, name, None)
    if made is None:
        return None
    known = inspect.signature(made.__init__).parameters.get("p")
    return None if known is None or known.default is inspect.Parameter.empty else known.default


def _seed(*key: object) -> int:
    return int(generator(*key).integers(2**63 - 1))
