"""Guided Grad-CAM: guided gradients where Grad-CAM is large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tl_audit.attribution.base import Attribution, Inputs, Run, Targets
from tl_audit.attribution.evaluation import Quantity, evaluating
from tl_audit.attribution.maps import blank_maps, from_elements, without_nonfinite
from tl_audit.attribution.methods.grad_cam import GradCAM
from tl_audit.attribution.methods.guided_backprop import guided_maps
from tl_audit.models.model import Model


@dataclass(frozen=True)
class GuidedGradCAM:
    """Guided gradients times the map of Grad-CAM: signed, without unit. Where is Grad-CAM's answer; the fine drawing is that of guided gradients.

    Four model evaluations. What is said against guided_backprop holds here for everything finer than Grad-CAM's map, which every result says.

    Attributes
    ----------
    layer : module path of the layer that Grad-CAM reads; None: found by itself
    output : what is explained: "logit" or "probability"

    References
    ----------
    Selvaraju et al. (2017). Grad-CAM: visual explanations from deep networks via gradient-based localization. arXiv:1610.02391
    Adebayo et al. (2018). Sanity checks for saliency maps. arXiv:1810.03292
    """

    layer: str | None = None
    output: Quantity = "logit"

    name: ClassVar[str] = "guided_grad_cam"
    signed: ClassVar[bool] = True
    stochastic: ClassVar[bool] = False
    complete: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = True
    needs_space: ClassVar[bool] = True

    def __call__(self, model: Model, inputs: Inputs, targets: Targets, run: Run) -> Attribution:
        cam = GradCAM(layer=self.layer, output=self.output)(model, inputs, targets, run)
        with evaluating(model, batch_size=run.batch_size) as evaluator:
            guided, notes = guided_maps(evaluator, inputs, targets, self.output)
        elements, players = from_elements(guided.double() * torch.as_tensor(cam.values), inputs.players)
        elements = without_nonfinite(elements)
        return Attribution(
            values=elements, player_values=players, targets=targets.index, against=targets.against, method=self.name, inputs=inputs, signed=True,
            layer=cam.layer, layer_reason=cam.layer_reason, seed=run.seed, budget=cam.budget + 2, blank=blank_maps(elements),
            params={"layer": cam.layer, "output": self.output}, caveats=tuple(dict.fromkeys((*cam.caveats, *notes))),
        )  # fmt: skip
