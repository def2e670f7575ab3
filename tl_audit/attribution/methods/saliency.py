"""Saliency: how steeply the score of a class changes with each number of the input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tl_audit.attribution.base import Attribution, Inputs, Run, Targets
from tl_audit.attribution.evaluation import Quantity, evaluating
from tl_audit.attribution.gradients import Channels, checked_channels, site_of, wide
from tl_audit.attribution.maps import blank_maps, without_nonfinite
from tl_audit.models.model import Model


@dataclass(frozen=True)
class Saliency:
    """|d output / d input|, 0 or more, in units of the output per unit of the model's input. Two model evaluations.

    Says what a small change would do, not what the input as it is contributes: a part may count for much and be saturated.
    The entries that encode a column (one-hot) are summed.

    Attributes
    ----------
    channels : how the channels of a place become one number: "max", "sum", "mean", or "l2" of the absolute gradients
    output : what is explained: "logit" or "probability"
    layer : module path: the gradient at the output of this layer instead of the input. Places are enlarged to the input, units are parts of their own

    References
    ----------
    Simonyan et al. (2014). Deep inside convolutional networks: visualising image classification models and saliency maps. arXiv:1312.6034
    """

    channels: Channels = "max"
    output: Quantity = "logit"
    layer: str | None = None

    name: ClassVar[str] = "saliency"
    signed: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    complete: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = True
    needs_space: ClassVar[bool] = False

    def __call__(self, model: Model, inputs: Inputs, targets: Targets, run: Run) -> Attribution:
        channels = checked_channels(self.channels)
        with evaluating(model, batch_size=run.batch_size) as evaluator:
            site = site_of(evaluator, inputs, self.layer)

            def batch(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
                _, values, slope = site.slopes(evaluator.prepare(inputs.tensor[rows]), targets[rows], self.output)
                return site.maps(slope.to(wide(slope.dtype)).abs(), inputs, channels=channels).cpu(), values if site.layer else values[:0]

            done = evaluator.each_batch(len(inputs), batch)
            notes = sorted(evaluator.notes)
        elements, players, shown = site.shown(torch.cat([m for m, _ in done]), inputs, torch.cat([v for _, v in done]))
        elements = without_nonfinite(elements)
        return Attribution(
            values=elements, player_values=players, targets=targets.index, against=targets.against, method=self.name, inputs=shown, signed=False,
            layer=self.layer, layer_reason=site.reason, seed=run.seed, budget=2, blank=blank_maps(elements),
            params={"channels": channels, "output": self.output, **({} if self.layer is None else {"layer": self.layer})}, caveats=tuple(notes),
        )  # fmt: skip
