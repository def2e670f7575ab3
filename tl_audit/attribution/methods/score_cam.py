"""Score-CAM: channels weighed by the score of the picture seen through each of them; no gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.attribution.base import Attribution, Inputs, Run, Targets
from tl_audit.attribution.cam import activations, attribution, enlarged, require_space, settings_of
from tl_audit.attribution.evaluation import Evaluator, Quantity, evaluating
from tl_audit.errors import ConfigError
from tl_audit.models.model import Model


@dataclass(frozen=True)
class ScoreCAM:
    """Weighted sum of a layer's channels, rectified; weights are a softmax over channels of what each channel, used as a mask, lets through.

    A channel is enlarged to the input, brought to [0, 1] and multiplied with it; its score is f(masked input) - f(zero input). Channels
    without a difference between places mask nothing and are left out. Where no channel changes the score, the map is zero. Values are 0
    or more, without unit. Cost: two forward passes and one for each channel; all samples and channels run in common batches.

    Attributes
    ----------
    layer : module path; None: the last layer with a map of places before the head (``layer_reason`` says which and why)
    output : the score: "logit" or "probability"
    channels : at most so many channels of each sample, those that vary most over places; None: as many as the budget allows

    References
    ----------
    Wang et al. (2020). Score-CAM: score-weighted visual explanations for convolutional neural networks. arXiv:1910.01279
    """

    layer: str | None = None
    output: Quantity = "logit"
    channels: int | None = None

    name: ClassVar[str] = "score_cam"
    signed: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    complete: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    needs_space: ClassVar[bool] = True

    def __call__(self, model: Model, inputs: Inputs, targets: Targets, run: Run) -> Attribution:
        require_space(self.name, inputs)
        most = min(run.most() - 2, run.most() if self.channels is None else self.channels)
        if most < 1:
            raise ConfigError(f"score_cam needs at least 3 model evaluations, and the budget is {run.most()}: raise it")
        x, n = inputs.tensor, len(inputs)
        with evaluating(model, batch_size=run.batch_size) as evaluator:
            choice, activation = activations(model, evaluator, x, self.layer, targets, method=self.name)
            notes = set(evaluator.notes)
        flat = activation.flatten(2)
        spread = flat.std(dim=2, correction=0)
        varies = flat.amax(dim=2) - flat.amin(dim=2) > 1e-6 * flat.abs().amax(dim=2)
        order = torch.where(varies, spread, -1.0).argsort(dim=1, descending=True, stable=True)[:, :most]
        taken = torch.gather(varies, 1, order)
        sample, column = (at.numpy() for at in taken.nonzero(as_tuple=True))
        with evaluating(model, batch_size=run.batch_size, outputs_only=most + 1, sample=x[:8]) as evaluator:
            empty = evaluator.scores(torch.zeros_like(x), targets, self.output)
            parts = evaluator.each_batch(
                len(sample),
                lambda rows: self._masked(evaluator, x, activation, sample[rows], order[sample[rows], column[rows]], targets),
            )
            notes |= evaluator.notes
            facts = dict(evaluator.facts)
        change = torch.full(order.shape, -torch.inf, dtype=torch.float64)
        if parts:
            change[sample, column] = torch.cat(parts) - torch.as_tensor(empty)[sample]
        gained = torch.where(taken, change, 0.0).abs().amax(dim=1)
        moved = (gained > 1e-6 * torch.as_tensor(np.abs(empty)).clamp_min(1e-6)) & taken.any(dim=1)
        weight = torch.zeros(order.shape, dtype=torch.float64)
        weight[moved] = change[moved].softmax(dim=1)
        used = torch.gather(activation, 1, order[:, :, None, None].expand(-1, -1, *activation.shape[2:]))
        coarse = torch.einsum("nk,nkhw->nhw", weight.float(), used).relu()
        number, width = int(taken.sum(dim=1).max()) if n else 0, activation.shape[1]
        caveats = sorted(notes)
        if int(varies.sum(dim=1).max()) > order.shape[1]:
            caveats.insert(
                0, f"{order.shape[1]} of {width} channels were tried, those that vary most over places; raise the budget for more"
            )
        return attribution(
            self.name, choice, coarse, inputs, targets, run, budget=-(-(2 * n + len(sample)) // max(n, 1)), caveats=caveats,
            params={**settings_of(self), "channels": number, "of_channels": width, **facts},
        )  # fmt: skip

    def _masked(
        self,
        evaluator: Evaluator,
        x: torch.Tensor,
        activation: torch.Tensor,
        sample: NDArray[np.int64],
        channel: torch.Tensor,
        targets: Targets,
    ) -> torch.Tensor:
        """(R,) scores of samples, each seen through one channel."""
        at = torch.as_tensor(sample)
        mask = enlarged(evaluator.prepare(activation[at, channel]), (int(x.shape[-2]), int(x.shape[-1])))
        low, high = mask.amin(dim=(1, 2), keepdim=True), mask.amax(dim=(1, 2), keepdim=True)
        mask = (mask - low) / (high - low)
        with torch.no_grad():
            seen = evaluator.prepare(x[at.to(x.device)]) * mask[:, None]
            return evaluator.score(seen, targets[sample], self.output).double().cpu()
