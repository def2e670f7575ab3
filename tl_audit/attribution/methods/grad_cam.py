"""Grad-CAM: which places of a late layer's map raise the score of a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from tl_audit.attribution.base import Attribution, Inputs, Run, Targets
from tl_audit.attribution.evaluation import Evaluator, Quantity, evaluating, gradient
from tl_audit.attribution.layers import Choice, choose_layer, first_tensor, grid_of, named_layer, with_first
from tl_audit.attribution.maps import blank_maps, from_elements, without_nonfinite
from tl_audit.errors import ModelError
from tl_audit.models.heads import head_of
from tl_audit.models.model import Model


@dataclass(frozen=True)
class GradCAM:
    """Weighted sum of a layer's channels, rectified and enlarged to the input; a channel's weight is its mean gradient.

    Values are 0 or more, without unit: 0 where a place does not raise the score. Cost: one forward pass and the backward pass of
    what lies above the layer. The layer's output is made a leaf that asks for gradients, so that frozen parameters stay frozen
    and everything below runs without a graph; it is cloned before it goes on, so that in-place steps do no harm.

    Attributes
    ----------
    layer : module path; None: the last layer with a map of places before the head (``layer_reason`` says which and why)
    output : whose gradient weighs the channels: "logit" or "probability"

    References
    ----------
    Selvaraju et al. (2017). Grad-CAM: visual explanations from deep networks via gradient-based localization. arXiv:1610.02391
    """

    layer: str | None = None
    output: Quantity = "logit"

    name: ClassVar[str] = "grad_cam"
    signed: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    complete: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = True
    needs_space: ClassVar[bool] = True

    def __call__(self, model: Model, inputs: Inputs, targets: Targets, run: Run) -> Attribution:
        x = inputs.tensor
        if not inputs.players.spatial or x.ndim != 4:
            raise ModelError("grad_cam needs a spatial layer, and these inputs are columns: use integrated_gradients, kernel_shap or lime")
        with evaluating(model, batch_size=run.batch_size) as evaluator:
            choice = self.choose(model, evaluator, x)
            layer = named_layer(evaluator.net, choice.name)
            maps = evaluator.each_batch(len(x), lambda rows: self.maps(evaluator, layer, choice, x[rows], targets[rows]))
        values = torch.cat(maps)
        elements, players = from_elements(values, inputs.players)
        elements = without_nonfinite(elements)
        return Attribution(
            values=elements, player_values=players, targets=targets.index, against=targets.against, method=self.name, inputs=inputs, signed=False,
            layer=choice.name, layer_reason=choice.reason, seed=run.seed, budget=2, blank=blank_maps(elements),
            params={"layer": choice.name, "map": f"{choice.grid.height}x{choice.grid.width}", "output": self.output}, caveats=tuple(sorted(evaluator.notes)),
        )  # fmt: skip

    def choose(self, model: Model, evaluator: Evaluator, x: torch.Tensor) -> Choice:
        """The layer asked for, or the automatic one, with how its output is read."""
        one = evaluator.prepare(x[:1])
        if self.layer is None:
            return choose_layer(evaluator, one, model.head, lambda: head_of(model, one))
        seen: list[torch.Size] = []

        def look(module: nn.Module, args: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None:
                seen.append(tensor.shape)

        handle = named_layer(evaluator.net, self.layer).register_forward_hook(look)
        try:
            with torch.no_grad():
                evaluator.logits(one)
        finally:
            handle.remove()
        grid = grid_of(seen[-1], (int(x.shape[-2]), int(x.shape[-1]))) if seen else None
        if grid is None:
            found = f"gives {tuple(seen[-1])}" if seen else "is not run, or gives no floating-point tensor"
            raise ModelError(
                f"layer {self.layer!r} {found}: grad_cam needs a layer whose output is a map of places (B, C, h, w) or tokens (B, T, C)"
            )
        return Choice(self.layer, grid, f"asked for ({grid.height} x {grid.width})")

    def maps(self, evaluator: Evaluator, layer: nn.Module, choice: Choice, x: torch.Tensor, targets: Targets) -> torch.Tensor:
        """(B, H, W) float32 maps of one batch."""
        leaves: list[torch.Tensor] = []

        def make_leaf(module: nn.Module, args: Any, output: Any) -> Any:
            tensor = first_tensor(output)
            if tensor is None:
                return None
            leaf = tensor.detach().requires_grad_(True)
            leaves.append(leaf)  # a module used twice: its last use counts
            return with_first(output, leaf.clone())

        handle = layer.register_forward_hook(make_leaf)
        try:
            with torch.enable_grad():
                scores = evaluator.score(evaluator.prepare(x), targets, self.output)
                if not leaves:
                    raise ModelError(f"layer {choice.name!r} was not run: choose another with layer=...")
                slope = gradient(scores, leaves[-1])
        finally:
            handle.remove()
        activation, slope = choice.grid.maps(leaves[-1].detach()).float(), choice.grid.maps(slope).float()
        cam = (slope.mean(dim=(2, 3), keepdim=True) * activation).sum(dim=1, keepdim=True).relu()
        return F.interpolate(cam, size=x.shape[-2:], mode="bilinear", align_corners=False)[:, 0].cpu()
