"""Guided backpropagation: gradients of which only the positive part passes a ReLU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tl_audit.attribution.base import Attribution, Inputs, Run, Targets
from tl_audit.attribution.evaluation import Evaluator, Quantity, evaluating, gradient, lost_where
from tl_audit.attribution.gradients import Site, wide
from tl_audit.attribution.maps import blank_maps, from_elements, without_nonfinite
from tl_audit.attribution.rescale import Guiding
from tl_audit.models.model import Model

WARNING = (
    "guided gradients hardly depend on the later layers' weights (Adebayo et al. 2018, arXiv:1810.03292): "
    "they show edges of the input rather than reasons of the model"
)
NO_RELU = "the model has no ReLU, so that guided gradients are its plain gradients"


@dataclass(frozen=True)
class GuidedBackprop:
    """d output / d input with negative gradients stopped at every ReLU: signed, in units of the output; channels and the entries of a column are summed.

    Sharp, and little to do with the decision: maps stay nearly the same when the later layers' weights are random, which every result says.
    Rules act on ReLUs as they run, functions included; the model is not changed. Two model evaluations.

    Attributes
    ----------
    output : what is explained: "logit" or "probability"

    References
    ----------
    Springenberg et al. (2015). Striving for simplicity: the all convolutional net. arXiv:1412.6806
    Adebayo et al. (2018). Sanity checks for saliency maps. arXiv:1810.03292
    """

    output: Quantity = "logit"

    name: ClassVar[str] = "guided_backprop"
    signed: ClassVar[bool] = True
    stochastic: ClassVar[bool] = False
    complete: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = True
    needs_space: ClassVar[bool] = False

    def __call__(self, model: Model, inputs: Inputs, targets: Targets, run: Run) -> Attribution:
        with evaluating(model, batch_size=run.batch_size) as evaluator:
            maps, notes = guided_maps(evaluator, inputs, targets, self.output)
        elements, players = from_elements(maps, inputs.players)
        elements = without_nonfinite(elements)
        return Attribution(
            values=elements, player_values=players, targets=targets.index, against=targets.against, method=self.name, inputs=inputs, signed=True, seed=run.seed,
            budget=2, blank=blank_maps(elements), params={"output": self.output}, caveats=notes,
        )  # fmt: skip


def guided_maps(evaluator: Evaluator, inputs: Inputs, targets: Targets, quantity: Quantity) -> tuple[torch.Tensor, tuple[str, ...]]:
    """(N, *places) guided gradients, channels summed, and what must be said about them."""
    site, guide = Site(evaluator), Guiding()

    def batch(rows: slice) -> torch.Tensor:
        with torch.enable_grad():
            with guide:
                score, leaf = site.scored(evaluator.prepare(inputs.tensor[rows]), targets[rows], quantity)
            slope = lost_where(gradient(score, leaf), score)
        evaluator.evaluations += len(leaf)
        return site.maps(slope.to(wide(slope.dtype)), inputs).cpu()

    maps = torch.cat(evaluator.each_batch(len(inputs), batch))
    return maps, (*sorted(evaluator.notes), WARNING, *(() if guide.seen else (NO_RELU,)))
