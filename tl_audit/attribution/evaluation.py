"""Running a borrowed model for explainers: scores of one output per row, in batches, counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tl_audit.attribution.base import Inputs
from tl_audit.errors import ModelError
from tl_audit.models.borrow import borrowed
from tl_audit.models.model import Model
from tl_audit.models.outputs import read_outputs

Quantity = Literal["logit", "probability"]
_MOST_HALVINGS = 4


@dataclass
class Evaluator:
    """A model lent for explaining: evaluation mode, no parameter asks for gradients. Counts rows that went through it.

    Attributes
    ----------
    evaluations : forward passes so far, one per row; a backward pass counts as one more
    halvings : how often a batch had to be halved for lack of memory
    """

    net: nn.Module
    output: str | int | None
    batch_size: int
    device: torch.device
    dtype: torch.dtype | None
    evaluations: int = 0
    halvings: int = 0
    notes: set[str] = field(default_factory=set)

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """Rows on the model's device and in its floating-point type."""
        x = x.detach().to(self.device)
        return x.to(self.dtype) if self.dtype is not None and x.is_floating_point() else x

    def moved(self, inputs: Inputs) -> Inputs:
        """The same inputs on the model's device, so that perturbing them does not cross over for every batch."""
        players = replace(inputs.players, assignment=inputs.players.assignment.to(self.device))
        background = None if inputs.background is None else inputs.background.to(self.device)
        return replace(inputs, tensor=inputs.tensor.detach().to(self.device), players=players, background=background)

    def logits(self, x: torch.Tensor, quantity: Quantity = "logit") -> torch.Tensor:
        """(B, C) what is explained, differentiable, from prepared rows.

        A single binary logit z is explained as -z for the first class and z for the second, so that both have a gradient.
        """
        self.evaluations += len(x)
        reading = read_outputs(self.net(x), self.output)
        if reading.probabilities:
            self.notes.add("the model's outputs are probabilities: their logarithm is explained as the logit")
        if quantity == "probability":
            return reading.logits.softmax(dim=1)
        if reading.width == 1:
            z = reading.logits[:, 1:]
            return torch.cat([-z, z], dim=1)
        return reading.logits

    def all_scores(self, x: torch.Tensor, quantity: Quantity = "logit") -> NDArray[np.float64]:
        """(R, C) of every row, without gradients, in batches."""
        with torch.no_grad():
            parts = [self._halving(x[i : i + self.batch_size], quantity, _MOST_HALVINGS) for i in range(0, len(x), self.batch_size)]
        return np.concatenate(parts) if parts else np.zeros((0, 0))

    def scores(self, x: torch.Tensor, targets: NDArray[np.int64], quantity: Quantity = "logit") -> NDArray[np.float64]:
        """(R,) of one output per row."""
        table = self.all_scores(x, quantity)
        return table[np.arange(len(table)), targets[: len(table)]]

    def _halving(self, x: torch.Tensor, quantity: Quantity, left: int) -> NDArray[np.float64]:
        try:
            return self.logits(self.prepare(x), quantity).double().cpu().numpy()
        except torch.OutOfMemoryError:
            if left == 0 or len(x) < 2:
                raise
        self.halvings += 1
        half = len(x) // 2
        return np.concatenate([self._halving(x[:half], quantity, left - 1), self._halving(x[half:], quantity, left - 1)])

    def masked_scores(
        self,
        inputs: Inputs,
        targets: NDArray[np.int64],
        keep: Sequence[NDArray[np.bool_]],
        reference: Reference,
        draws: Sequence[NDArray[np.int64]] | None = None,
        quantity: Quantity = "logit",
    ) -> list[NDArray[np.float64]]:
        """Scores with some players replaced by the reference, for every sample, in shared batches.

        Parameters
        ----------
        keep : per sample (R_i, count[i]); True keeps the player
        draws : per sample (R_i,) row of the background that fills in; None: each sample's own reference row
        """
        sample = np.repeat(np.arange(len(keep)), [len(k) for k in keep])
        most = int(inputs.players.count.max()) if len(keep) else 0
        flags = np.zeros((len(sample), most), dtype=bool)
        at = 0
        for k in keep:
            flags[at : at + len(k), : k.shape[1]] = k
            at += len(k)
        drawn = None if draws is None else np.concatenate(list(draws))
        inputs, filler = self.moved(inputs), reference.rows.to(self.device)
        out = np.empty(len(sample))
        for i in range(0, len(sample), self.batch_size):
            rows = sample[i : i + self.batch_size]
            fill = filler[torch.as_tensor(rows if drawn is None else drawn[i : i + self.batch_size], device=self.device)]
            x = compose(inputs, rows, flags[i : i + self.batch_size], fill)
            out[i : i + len(rows)] = self.scores(x, targets[rows], quantity)
        return np.split(out, np.cumsum([len(k) for k in keep])[:-1])


@dataclass(frozen=True)
class Reference:
    """What fills removed parts: ``rows`` are one per sample, or the rows of a shared background that are drawn from."""

    rows: torch.Tensor
    shared: bool
    name: str


def reference_of(inputs: Inputs, baseline: torch.Tensor | None) -> Reference:
    """The reference of Shapley values and LIME: the given baseline, else the background of columns, else the kind's 'nothing there' input."""
    if baseline is not None:
        return Reference(broadcast_baseline(inputs, baseline), shared=False, name="given baseline")
    if inputs.background is not None and inputs.players.shape == "columns":
        return Reference(inputs.background.detach().cpu(), shared=True, name="rows of the background")
    return Reference(baseline_of(inputs, None), shared=False, name="the baseline of the kind of data")


def baseline_of(inputs: Inputs, baseline: torch.Tensor | None) -> torch.Tensor:
    """(N, ...) reference input of each sample: the given one, else the kind's 'nothing there' input."""
    if baseline is not None:
        return broadcast_baseline(inputs, baseline)
    return inputs.modality.baseline(inputs.tensor, inputs.spec, inputs.background).detach().to(inputs.tensor)


def broadcast_baseline(inputs: Inputs, baseline: torch.Tensor) -> torch.Tensor:
    """A baseline of one sample's shape, or of (N, ...), as (N, ...)."""
    try:
        return baseline.detach().to(inputs.tensor).expand(inputs.tensor.shape).clone()
    except RuntimeError as error:
        raise ModelError(
            f"the baseline has shape {tuple(baseline.shape)}, the inputs {tuple(inputs.tensor.shape)}: give one input or one per sample"
        ) from error


def compose(inputs: Inputs, rows: NDArray[np.int64], keep: NDArray[np.bool_], fill: torch.Tensor) -> torch.Tensor:
    """Inputs ``rows`` with the players that are not kept taken from ``fill`` (same shape)."""
    x = inputs.tensor[torch.as_tensor(rows, device=inputs.tensor.device)].detach()
    assignment = inputs.players.assignment[torch.as_tensor(rows, device=inputs.players.assignment.device)].to(x.device)
    kept = torch.as_tensor(keep, device=x.device).gather(1, assignment.reshape(len(rows), -1)).reshape(assignment.shape)
    while kept.ndim < x.ndim:  # channels share the assignment
        kept = kept.unsqueeze(1)
    return torch.where(kept, x, fill.to(x))


@contextmanager
def evaluating(model: Model, *, batch_size: int) -> Iterator[Evaluator]:
    """The model, borrowed, with no parameter asking for gradients: what lies below an explained layer then costs a forward pass only."""
    with borrowed(model) as net:
        device, dtype = torch.device("cpu"), None
        for parameter in net.parameters():
            if isinstance(parameter, nn.UninitializedParameter):
                raise ModelError("the model holds parameters that were never initialised: run it once before explaining it")
            device = parameter.device
            dtype = parameter.dtype if parameter.is_floating_point() else dtype
            parameter.requires_grad_(False)
        yield Evaluator(net, model.output, max(1, batch_size), device, dtype)


def gradient(of: torch.Tensor, wrt: torch.Tensor) -> torch.Tensor:
    """d sum(of) / d wrt, without touching any ``.grad``. ModelError where the model cuts the gradient."""
    if not of.requires_grad:
        raise ModelError(
            "the model gives no gradients (no_grad, inference_mode or quantised inside its forward): use kernel_shap or lime, which need none"
        )
    (grad,) = torch.autograd.grad(of.sum(), wrt, allow_unused=True)
    return torch.zeros_like(wrt) if grad is None else grad
