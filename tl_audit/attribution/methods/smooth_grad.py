"""SmoothGrad: the gradient, averaged over noisy copies of the input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from tl_audit.attribution.base import Attribution, Inputs, Run, Targets
from tl_audit.attribution.evaluation import Quantity, evaluating
from tl_audit.attribution.gradients import IntArray, Noise, Site, means_over_draws, ranges, wide
from tl_audit.attribution.maps import blank_maps, from_elements, without_nonfinite
from tl_audit.errors import ConfigError
from tl_audit.models.model import Model

Of = Literal["gradient", "square", "times_input"]
_OF: tuple[Of, ...] = ("gradient", "square", "times_input")
_FIRST = 16


@dataclass(frozen=True)
class SmoothGrad:
    """Mean gradient of the output over copies of the input with Gaussian noise; channels and the entries of a column are summed.

    Noise comes in opposite pairs, drawn from (seed, method, sample id); the standard error is that of the mean over pairs. A draw is one forward
    and one backward pass: two model evaluations.

    Attributes
    ----------
    noise : standard deviation, as a share of the range of the sample's numbers
    mean_of : what is averaged: "gradient" (signed), "square" (0 or more), or "times_input" (gradient times noisy input, signed)
    output : what is explained: "logit" or "probability"
    convergence : stop when the largest 95 % half-width of a sample's values is at most this share of their range; None: spend the budget

    References
    ----------
    Smilkov et al. (2017). SmoothGrad: removing noise by adding noise. arXiv:1706.03825
    """

    noise: float = 0.15
    mean_of: Of = "gradient"
    output: Quantity = "logit"
    convergence: float | None = None

    name: ClassVar[str] = "smooth_grad"
    signed: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True
    complete: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = True
    needs_space: ClassVar[bool] = False

    def __call__(self, model: Model, inputs: Inputs, targets: Targets, run: Run) -> Attribution:
        if self.mean_of not in _OF:
            raise ConfigError(f"mean_of is {self.mean_of!r}: expected one of {', '.join(_OF)}")
        if not self.noise > 0:
            raise ConfigError(f"noise is {self.noise}: expected a share of the range of the sample's numbers, above 0")
        draws = run.most() // 2
        if draws < 2:
            raise ConfigError(f"smooth_grad needs a budget of at least 4 model evaluations, not {run.most()}")
        draws -= draws % 2
        n, kind = len(inputs), wide(inputs.tensor.dtype)
        with evaluating(model, batch_size=run.batch_size) as evaluator:
            site = Site(evaluator)
            x = inputs.tensor.detach().to(evaluator.device, kind)
            scale = self.noise * ranges(x)
            noise = Noise(run.seed, self.name, inputs.ids, x.shape[1:], evaluator.device, kind)

            def contributions(samples: IntArray, which: IntArray) -> tuple[torch.Tensor, None]:
                own = torch.as_tensor(samples, device=x.device)
                noisy = evaluator.prepare(x[own] + scale[own] * noise.rows(samples, which))
                _, _, slope = site.slopes(noisy, targets[samples], self.output)
                slope = slope.to(kind)
                if self.mean_of != "gradient":
                    slope = slope.square() if self.mean_of == "square" else slope * noisy.to(kind)
                return site.maps(slope, inputs).flatten(1), None

            found = means_over_draws(evaluator, inputs, contributions, draws=draws, block=2, first=_FIRST, convergence=self.convergence)
            spent, notes = evaluator.evaluations, sorted(evaluator.notes)
        elements, players = from_elements(found.maps.reshape(inputs.players.assignment.shape), inputs.players)
        elements = without_nonfinite(elements)
        return Attribution(
            values=elements, player_values=players, targets=targets.index, against=targets.against, method=self.name, inputs=inputs,
            signed=self.mean_of != "square", seed=run.seed, budget=round(spent / max(1, n)),
            standard_error=found.errors, blank=blank_maps(elements),
            params={
                "draws": int(found.used.max(initial=0)), "noise": self.noise, "mean_of": self.mean_of, "output": self.output,
                **({} if self.convergence is None else {"convergence": self.convergence}),
            },
            caveats=(*notes, *found.caveats()),
        )  # fmt: skip
