"""Defects of weights: rows 7, 8, 9, 13, 19, 20. Made from the clean world by editing tensors; nothing is trained again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tl_audit.defects.base import Defect, Fires, Planted, fires, quiet
from tl_audit.defects.worlds import Kind, World, world
from tl_audit.measures.sampling import generator

if TYPE_CHECKING:
    from torch import nn

    from tl_audit.models import Model

MANY = 4000
"""Target rows of row 13: at 1,200 the calibration error of one model in six was left open."""


def altered(grown: World, edit: Callable[[nn.Module], None], *, name: str, saved: bool = True) -> Model:
    """A copy of the adapted model after ``edit``; with ``saved`` its weights file holds what was edited, else it is still the old one."""
    from tl_audit.models import save_weights

    module = copy.deepcopy(grown.adapted.module)
    with torch.no_grad():
        edit(module)
    file = save_weights(module, Path(grown.run_dir) / f"{name}.safetensors") if saved else grown.adapted.file
    return replace(grown.adapted, module=module, file=file)


def frozen_parameter(grown: World) -> str:
    """The first parameter that the adaptation was not to move."""
    names = dict(grown.adapted.module.named_parameters())
    return next(name for name in grown.record.frozen if name in names)


def a_frozen_layer_moved(kind: Kind, seed: int) -> Planted:
    """Every value of one frozen tensor is raised by a millionth. Nothing that a user sees changes."""
    grown = world(kind, seed)

    def edit(module: nn.Module) -> None:
        module.get_parameter(frozen_parameter(grown)).add_(1e-6)

    return Planted(grown.subject(adapted=altered(grown, edit, name="moved")))


def frozen_statistics_moved(kind: Kind, seed: int) -> Planted:
    """The batch norm of the frozen block has other means and variances, as after a pass in training mode, while all its parameters stay bit-equal."""
    grown = world(kind, seed)

    def edit(module: nn.Module) -> None:
        mean, variance = module.get_buffer("block1.bn.running_mean"), module.get_buffer("block1.bn.running_var")
        mean.add_(0.1 * variance.sqrt())
        variance.mul_(1.2)

    return Planted(grown.subject(adapted=altered(grown, edit, name="statistics")))


def classes_in_another_order(kind: Kind, seed: int) -> Planted:
    """The rows of the head move on by one, the class names do not. All classes move, so the model is worse than naming one class."""
    grown = world(kind, seed)

    def edit(module: nn.Module) -> None:
        for tensor in module.get_submodule("head").parameters():
            tensor.copy_(tensor.roll(1, dims=0))

    return Planted(grown.subject(adapted=altered(grown, edit, name="order")))


def _times(kind: Kind, seed: int, factor: float) -> Planted:
    grown = world(kind, seed)

    def edit(module: nn.Module) -> None:
        for tensor in module.get_submodule("head").parameters():
            tensor.mul_(factor)

    adapted = altered(grown, edit, name=f"sure-{factor:.0f}")
    return Planted(grown.subject(adapted=adapted, target=grown.opened("target", grown.drawn("target", MANY))))


def logits_times_three(kind: Kind, seed: int) -> Planted:
    """The head is scaled by three: the same answers, far too sure."""
    return _times(kind, seed, 3.0)


def logits_times_twenty(kind: Kind, seed: int) -> Planted:
    """The head is scaled by twenty: each error costs so much that the probabilities are worth less than the shares of the classes."""
    return _times(kind, seed, 20.0)


def a_random_head(kind: Kind, seed: int) -> Planted:
    """The head is drawn anew after loading, as by a loader that tolerates missing tensors: the file on disk still holds the trained one.

    What it loses is asked of 302, not of 301 as the table has it: with classes of equal size a model that knows nothing is about as good as naming one
    class, so that 301 mostly finds nothing decided, and now and then a random head that is better than that. Row 20 likewise.
    """
    grown = world(kind, seed)

    def edit(module: nn.Module) -> None:
        for name, tensor in sorted(module.get_submodule("head").named_parameters()):
            drawn = generator("defect 19", kind, seed, name).normal(0, 1, tuple(tensor.shape))
            tensor.copy_(torch.as_tensor(drawn, dtype=tensor.dtype))

    return Planted(grown.subject(adapted=altered(grown, edit, name="head", saved=False)))


def a_scrambled_backbone(kind: Kind, seed: int) -> Planted:
    """Every tensor of the backbone is shuffled within itself, the head is as it was; the file holds just that, so it loads completely."""
    grown = world(kind, seed)

    def edit(module: nn.Module) -> None:
        for name, tensor in sorted(module.state_dict().items()):
            if tensor.is_floating_point() and not name.startswith("head."):
                order = generator("defect 20", kind, seed, name).permutation(tensor.numel())
                tensor.copy_(tensor.flatten()[torch.as_tensor(order)].reshape(tensor.shape))

    return Planted(grown.subject(adapted=altered(grown, edit, name="scrambled")))


WEIGHTS: tuple[Defect, ...] = (
    Defect(
        7, "Frozen layer changed by a millionth", a_frozen_layer_moved,
        fires("103", statuses=("fail",), metric="frozen_tensors_changed"), quiet("301", "302", "104"), cheap=True,
    ),
    Defect(
        8, "Statistics of a frozen batch norm moved", frozen_statistics_moved,
        fires("103", statuses=("fail",), metric="frozen_buffers_changed"), quiet("109", "301"), kinds=("image",), cheap=True,
    ),
    Defect(
        9, "Class order permuted in the head", classes_in_another_order,
        (*fires("107", statuses=("fail",), metric="permutation_gain"), *fires("301", statuses=("fail",))), quiet("103", "501", "502"), cheap=True,
    ),
    Defect(
        13, "Over-confident model", logits_times_three, fires("305", metric="ece_debiased"), quiet("301", "302", "602"), variant="logits x 3", cheap=True,
    ),
    Defect(
        13, "Over-confident model", logits_times_twenty,
        (*fires("305", metric="ece_debiased"), *fires("306", statuses=("fail",), metric="nll_skill")), quiet("301", "302", "602"), variant="logits x 20",
    ),
    Defect(
        19, "Randomised head", a_random_head,
        (*fires("302", "401", statuses=("fail",)), Fires("TLA109", ("fail",), "reinitialised_tensors")), quiet("103", "501"),
        cheap=True,
    ),
    Defect(
        20, "Scrambled backbone", a_scrambled_backbone,
        (
            Fires("TLA102", ("fail",), "adapted_sha256_match"), *fires("103", "302", statuses=("fail",)),
            *fires("402", metric="backward_transfer"),
        ),
        quiet("201", "502", "109"),
    ),
)  # fmt: skip
