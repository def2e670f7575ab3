"""Running a borrowed model for explainers: scores of one output per row, in batches, counted."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tl_audit.attribution.base import Inputs, Targets
from tl_audit.errors import ModelError
from tl_audit.models.borrow import borrowed
from tl_audit.models.inference import inference_copy
from tl_audit.models.model import Model
from tl_audit.models.outputs import Reading, read_outputs
from tl_audit.records.values import Output

Quantity = Literal["logit", "probability"]
_MOST_HALVINGS = 4

T = TypeVar("T")


@dataclass
class Evaluator:
    """A model lent for explaining: evaluation mode, no parameter asks for gradients. Counts rows that went through it.

    Attributes
    ----------
    evaluations : forward passes so far, one per row; a backward pass counts as one more
    halvings : how often a batch had to be halved for lack of memory
    facts : how the model was run ("network": the copy that stood in for it, or why it was run itself), for an attribution's params
    identity : which network this is, and in which state: what a memo tells models apart by
    """

    net: nn.Module
    output: Output
    batch_size: int
    device: torch.device
    dtype: torch.dtype | None
    evaluations: int = 0
    halvings: int = 0
    notes: set[str] = field(default_factory=set)
    facts: dict[str, Any] = field(default_factory=dict)  # Any: plain JSON values
    identity: tuple[object, ...] = ()

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
        return as_quantity(self._read(x), quantity)

    def read(self, x: torch.Tensor, quantities: Sequence[Quantity] = ("logit",)) -> tuple[dict[Quantity, torch.Tensor], Reading]:
        """What is explained (B, C) in several quantities, differentiable, and how it was read, of prepared rows: one forward pass."""
        reading = self._read(x)
        return {q: as_quantity(reading, q) for q in quantities}, reading

    def both(self, x: torch.Tensor, targets: Targets) -> NDArray[np.float64]:
        """(B, 2) logit and probability of what is explained, without gradients, of one batch; NaN where infinite."""
        with torch.no_grad():
            reading = self._read(self.prepare(x))
            columns = [targets.pick(as_quantity(reading, q)).double() for q in ("logit", "probability")]
        return _known(torch.stack(columns, dim=1))

    def _read(self, x: torch.Tensor) -> Reading:
        self.evaluations += len(x)
        reading = read_outputs(self.net(x), self.output)
        if reading.probabilities:
            self.notes.add("the model's outputs are probabilities: their logarithm is explained as the logit")
        return reading

    def score(self, x: torch.Tensor, targets: Targets, quantity: Quantity = "logit") -> torch.Tensor:
        """(B,) what is explained of each prepared row, differentiable."""
        return targets.pick(self.logits(x, quantity))

    def each_batch(self, n: int, run: Callable[[slice], T]) -> list[T]:
        """``run`` over slices of at most ``batch_size`` of n rows, in order. Where memory runs out the batch is halved, at most four times, and said."""
        out: list[T] = []
        at = 0
        while at < n:
            rows = slice(at, min(at + self.batch_size, n))
            try:
                out.append(run(rows))
            except torch.OutOfMemoryError as error:
                if self.halvings == _MOST_HALVINGS or self.batch_size == 1:
                    raise ModelError(
                        f"out of memory with {self.batch_size} row(s) at once, after halving the batch {self.halvings} time(s) ({error}): give a smaller batch_size"
                    ) from error
                self.halvings += 1
                self.batch_size = max(1, self.batch_size // 2)
                self.notes.add(f"out of memory: the batch was halved {self.halvings} time(s)")
                continue
            at = rows.stop
        return out

    def all_scores(self, x: torch.Tensor, quantity: Quantity = "logit") -> NDArray[np.float64]:
        """(R, C) of every row, without gradients, in batches; NaN where infinite."""
        with torch.no_grad():
            parts = self.each_batch(len(x), lambda rows: _known(self.logits(self.prepare(x[rows]), quantity).double()))
        return np.concatenate(parts) if parts else np.zeros((0, 0))

    def scores(self, x: torch.Tensor, targets: Targets, quantity: Quantity = "logit") -> NDArray[np.float64]:
        """(R,) what is explained of every row, without gradients, in batches."""
        return targets.of(self.all_scores(x, quantity)) if len(x) else np.zeros(0)


@contextmanager
def evaluating(
    model: Model, *, batch_size: int, outputs_only: int | None = None, sample: torch.Tensor | None = None
) -> Iterator[Evaluator]:
    """The model, borrowed, with no parameter asking for gradients: what lies below an explained layer then costs a forward pass only.

    Parameters
    ----------
    outputs_only : the forward passes per sample that are planned, where neither gradients nor layers are read: a copy prepared for
        inference may then take the model's place; None: the model itself
    sample : model inputs (B, ...) on which such a copy must agree
    """
    with borrowed(model) as net:
        device, dtype = torch.device("cpu"), None
        for parameter in net.parameters():
            if isinstance(parameter, nn.UninitializedParameter):
                raise ModelError("the model holds parameters that were never initialised: run it once before explaining it")
            device = parameter.device
            dtype = parameter.dtype if parameter.is_floating_point() else dtype
            parameter.requires_grad_(False)
        facts: dict[str, Any] = {}
        copied = False
        if outputs_only is not None and sample is not None and len(sample):
            prepared = inference_copy(model, sample, planned=outputs_only)
            facts["network"] = prepared.reason if prepared.net is not None else f"the model itself: {prepared.reason}"
            copied = prepared.net is not None
            net = net if prepared.net is None else prepared.net
        yield Evaluator(net, model.output, max(1, batch_size), device, dtype, facts=facts, identity=(*_identity(model), copied))


def _identity(model: Model) -> tuple[object, ...]:
    """The network itself (weakly, so that another one at its address is not taken for it), the output read, and the state of its numbers."""
    state = tuple((t.data_ptr(), -1 if t.is_inference() else t._version) for t in (*model.module.parameters(), *model.module.buffers()))
    return weakref.ref(model.module), model.output, state


def _known(scores: torch.Tensor) -> NDArray[np.float64]:
    """Scores as numbers; an infinite one is NaN, since nothing can be said of differences from it."""
    found: NDArray[np.float64] = scores.cpu().numpy()
    return np.where(np.isinf(found), np.nan, found)


def as_quantity(reading: Reading, quantity: Quantity) -> torch.Tensor:
    """(B, C) what is explained of an output that was read. Of a value (regression) there is one quantity: the value in its own unit."""
    if reading.value:
        return reading.logits
    if quantity == "probability":
        return reading.logits.softmax(dim=1)
    if reading.width == 1:
        z = reading.logits[:, 1:]
        return torch.cat([-z, z], dim=1)
    return reading.logits


def lost_where(values: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """``values`` (B, ...), all NaN in rows whose score (B,) is not finite: a ReLU's gradient is finite there, and explains nothing."""
    finite = torch.isfinite(score.detach())
    if bool(finite.all()):
        return values
    return values.masked_fill(~finite.reshape(-1, *[1] * (values.ndim - 1)), torch.nan)


def gradient(of: torch.Tensor, wrt: torch.Tensor) -> torch.Tensor:
    """d sum(of) / d wrt, without touching any ``.grad``. ModelError where the model cuts the gradient."""
    return gradients(of, [wrt])[0]


def gradients(of: torch.Tensor, wrt: Sequence[torch.Tensor], *, again: bool = False) -> list[torch.Tensor]:
    """As ``gradient``, to several tensors in one backward pass; zero where nothing depends on one. ``again``: more passes will follow."""
    if not of.requires_grad:
        raise ModelError(
            "the model gives no gradients (no_grad, inference_mode or quantised inside its forward): use kernel_shap or lime, which need none"
        )
    found = torch.autograd.grad(of, list(wrt), grad_outputs=torch.ones_like(of), allow_unused=True, retain_graph=again)
    return [torch.zeros_like(at) if grad is None else grad for at, grad in zip(wrt, found, strict=True)]
