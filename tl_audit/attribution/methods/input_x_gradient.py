"""Input x gradient: each number of the input times how steeply the score changes with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tl_audit.attribution.base import Attribution, Inputs, Run, Targets
from tl_audit.attribution.evaluation import Quantity, evaluating
from tl_audit.attribution.gradients import site_of, wide
from tl_audit.attribution.maps import blank_maps, without_nonfinite
from tl_audit.attribution.reference import broadcast_baseline
from tl_audit.models.model import Model


@dataclass(frozen=True)
class InputXGradient:
    """(input - baseline) * d output / d input: signed, in units of the output. Two model evaluations.

    Exact for linear models; elsewhere it follows the tangent at the input, which need not lead to the output at the baseline.
    The entries that encode a column (one-hot) are summed, so that a category stands for itself.

    Attributes
    ----------
    baseline : the input that stands for "nothing there" (one, or one per sample); None: 0 in the model's own input
    output : what is explained: "logit" or "probability"
    layer : module path: the output of this layer (less its value at the baseline, where one is given) instead of the input. Places are enlarged
        to the input, units are parts of their own

    References
    ----------
    Shrikumar et al. (2016). Not just a black box: learning important features through propagating activation differences. arXiv:1605.01713
    """

    baseline: torch.Tensor | None = None
    output: Quantity = "logit"
    layer: str | None = None

    name: ClassVar[str] = "input_x_gradient"
    signed: ClassVar[bool] = True
    stochastic: ClassVar[bool] = False
    complete: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = True
    needs_space: ClassVar[bool] = False

    def __call__(self, model: Model, inputs: Inputs, targets: Targets, run: Run) -> Attribution:
        baseline = None if self.baseline is None else broadcast_baseline(inputs, self.baseline)
        with evaluating(model, batch_size=run.batch_size) as evaluator:
            site = site_of(evaluator, inputs, self.layer)
            started = evaluator.evaluations

            def batch(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
                _, values, slope = site.slopes(evaluator.prepare(inputs.tensor[rows]), targets[rows], self.output)
                change = values
                if baseline is not None:
                    start = evaluator.prepare(baseline[rows])
                    change = values - (start if site.layer is None else site.read(start, targets[rows], self.output)[0])
                kind = wide(slope.dtype)
                return site.maps(slope.to(kind) * change.to(kind), inputs).cpu(), values if site.layer else values[:0]

            done = evaluator.each_batch(len(inputs), batch)
            spent, notes = evaluator.evaluations - started, sorted(evaluator.notes)
        elements, players, shown = site.shown(torch.cat([m for m, _ in done]), inputs, torch.cat([v for _, v in done]))
        elements = without_nonfinite(elements)
        return Attribution(
            values=elements, player_values=players, targets=targets.index, against=targets.against, method=self.name, inputs=shown, signed=True,
            layer=self.layer, layer_reason=site.reason, seed=run.seed, budget=round(spent / max(1, len(inputs))), blank=blank_maps(elements),
            params={
                "baseline": "0" if self.baseline is None else "given", "output": self.output, **({} if self.layer is None else {"layer": self.layer})
            },
            caveats=tuple(notes),
        )  # fmt: skip
