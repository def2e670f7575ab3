"""What a fit makes small: the loss of a batch, and how validation data are judged. One objective per task; the engine knows no task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F


class Objective(Protocol):
    """Loss and validation of one task. ``outputs`` are (N, C) as ``models.outputs`` reads them, ``labels`` (N,) as ``Inputs`` gives them."""

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Mean loss of a batch, differentiable; ``weights``: (N,) importance of the rows, whose mean over the training data is 1."""
        ...

    def sums(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(4,) of a batch of validation data: sum of losses, sum of their weights, sum of the score, number of rows. They add up over batches."""
        ...

    def read(self, loss: float, weight: float, score: float, n: float) -> dict[str, float]:
        """Entries of the history from the sums of all batches: ``val_loss``, and the score under its own name."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """Negative log-likelihood of the true class (nats), weighted by class.

    Attributes
    ----------
    weights : per class, of the training loss; None: all equal
    validation_weights : the same of the validation loss
    smoothing : share of the target put evenly on all classes
    """

    weights: Sequence[float] | None = None
    validation_weights: Sequence[float] | None = None
    smoothing: float = 0.0

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        weight = None if self.weights is None else torch.tensor(self.weights, device=outputs.device)
        if weights is not None:
            each = F.cross_entropy(outputs.float(), labels, weight=weight, label_smoothing=self.smoothing, reduction="none")
            return (each * weights).sum() / (len(labels) if weight is None else weight[labels].sum())
        return F.cross_entropy(outputs.float(), labels, weight=weight, label_smoothing=self.smoothing)

    def sums(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = outputs.float()
        each = F.cross_entropy(logits, labels, reduction="none")
        weights = self.validation_weights
        weight = torch.ones_like(each) if weights is None else torch.tensor(weights, device=each.device)[labels]
        right = (logits.argmax(dim=1) == labels).sum()
        return torch.stack(
            [(each * weight).sum(), weight.sum(), right.to(each.dtype), torch.tensor(float(len(labels)), device=each.device)]
        )

    def read(self, loss: float, weight: float, score: float, n: float) -> dict[str, float]:
        return {"val_loss": loss / weight if weight else float("nan"), "val_accuracy": score / n}


@dataclass(frozen=True)
class NumberLoss:
    """Error of one number per sample, on the scale of the network's output.

    Attributes
    ----------
    kind : "mse" squared, "mae" absolute, "huber" squared up to ``delta`` and absolute beyond
    scale : of the target in the units of the network's output: ``val_mae`` is in the target's own unit

    References
    ----------
    Huber (1964). Robust estimation of a location parameter. Annals of Mathematical Statistics 35.
    """

    kind: Literal["mse", "mae", "huber"] = "mse"
    delta: float = 1.0
    scale: float = 1.0

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        each = self._each(outputs, labels)
        return each.mean() if weights is None else (each * weights).mean()

    def sums(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        each = self._each(outputs, labels)
        n = torch.tensor(float(len(labels)), device=each.device)
        return torch.stack([each.sum(), n, (outputs[:, 0].float() - labels).abs().sum(), n])

    def read(self, loss: float, weight: float, score: float, n: float) -> dict[str, float]:
        return {"val_loss": loss / weight if weight else float("nan"), "val_mae": self.scale * score / n}

    def _each(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        given = outputs[:, 0].float()
        if self.kind == "mse":
            return F.mse_loss(given, labels, reduction="none")
        if self.kind == "mae":
            return F.l1_loss(given, labels, reduction="none")
        return F.huber_loss(given, labels, reduction="none", delta=self.delta)
