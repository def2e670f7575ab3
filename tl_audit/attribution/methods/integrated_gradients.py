"""Integrated gradients: the gradient, averaged on the straight way from a baseline to the input, times the difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.attribution.base import Attribution, Inputs, Run, Targets
from tl_audit.attribution.evaluation import Quantity, evaluating
from tl_audit.attribution.maps import blank_maps, from_elements, without_nonfinite
from tl_audit.attribution.reference import baseline_of
from tl_audit.errors import ConfigError, ModelError
from tl_audit.models.model import Model

_STEPS = 50


@dataclass(frozen=True)
class IntegratedGradients:
    """Signed values in units of the output (the logit, unless ``output`` says otherwise) that add up to f(x) - f(baseline); what is left over is ``completeness``.

    Computed by captum with Gauss-Legendre nodes. A step is one forward and one backward pass: two model evaluations.

    Attributes
    ----------
    steps : nodes of the quadrature; None: 50, or half the budget where that is less
    baseline : the input that stands for "nothing there" (one, or one per sample); None: that of the kind of data
    output : what is explained: "logit" or "probability"

    References
    ----------
    Sundararajan et al. (2017). Axiomatic attribution for deep networks. arXiv:1703.01365
    """

    steps: int | None = None
    baseline: torch.Tensor | None = None
    output: Quantity = "logit"

    name: ClassVar[str] = "integrated_gradients"
    signed: ClassVar[bool] = True
    stochastic: ClassVar[bool] = False
    complete: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = True
    needs_space: ClassVar[bool] = False

    def __call__(self, model: Model, inputs: Inputs, targets: Targets, run: Run) -> Attribution:
        from captum.attr import IntegratedGradients as Captum

        steps = self.steps if self.steps is not None else max(1, min(_STEPS, (run.most() - 2) // 2))
        if steps < 1:
            raise ConfigError(f"integrated_gradients needs at least one step, not {steps}")
        baseline = baseline_of(inputs, self.baseline)
        with evaluating(model, batch_size=run.batch_size) as evaluator:

            def batch(rows: slice) -> tuple[torch.Tensor, NDArray[np.float64]]:
                x, start, to = evaluator.prepare(inputs.tensor[rows]), evaluator.prepare(baseline[rows]), targets[rows]

                def forward(z: torch.Tensor) -> torch.Tensor:  # captum repeats the rows of a batch step by step
                    times = len(z) // len(x)
                    every = Targets(np.tile(to.index, times), None if to.against is None else np.tile(to.against, times))
                    return evaluator.score(z, every, self.output)

                with torch.enable_grad():
                    try:
                        found = Captum(forward, multiply_by_inputs=True).attribute(
                            x.clone(),
                            start.clone(),
                            n_steps=steps,
                            method="gausslegendre",
                            internal_batch_size=max(evaluator.batch_size, len(x)),
                        )
                    except RuntimeError as error:
                        if "does not require grad" in str(error) or "not have been used in the graph" in str(error):
                            raise ModelError(
                                "the model gives no gradients (no_grad, inference_mode or quantised inside its forward): use kernel_shap or lime, which need none"
                            ) from error
                        raise
                change = evaluator.scores(x, to, self.output) - evaluator.scores(start, to, self.output)
                total = found.detach().double().reshape(len(x), -1).sum(dim=1).cpu().numpy()
                return found.detach().cpu(), total - change

            done = evaluator.each_batch(len(inputs), batch)
        elements, players = from_elements(torch.cat([values for values, _ in done]).double(), inputs.players)
        elements = without_nonfinite(elements)
        return Attribution(
            values=elements, player_values=players, targets=targets.index, against=targets.against, method=self.name, inputs=inputs, signed=True, seed=run.seed,
            budget=2 * steps + 2, completeness=np.concatenate([left for _, left in done]), blank=blank_maps(elements),
            params={"steps": steps, "quadrature": "gauss-legendre", "baseline": "given" if self.baseline is not None else "kind of data", "output": self.output},
            caveats=tuple(sorted(evaluator.notes)),
        )  # fmt: skip
