"""What else may pull at a fit: a teacher's answers (distillation), and features of the target that should look like those of the training data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tl_audit.errors import ConfigError
from tl_audit.models.heads import pool

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Multiples of the median squared distance, of the kernels whose sum makes the MMD term."""


def distillation_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), mean over rows (nats, at least 0, 0 where both agree).

    Parameters
    ----------
    student, teacher : (B, C) logits; the teacher's carry no gradient
    temperature : above 0; the higher, the more the small probabilities of the teacher count

    References
    ----------
    Hinton, Vinyals & Dean (2015). Distilling the knowledge in a neural network. arXiv:1503.02531
    """
    wanted = F.log_softmax(teacher.detach().float() / temperature, dim=1)
    given = F.log_softmax(student.float() / temperature, dim=1)
    return F.kl_div(given, wanted, reduction="batchmean", log_target=True) * temperature**2


def coral_distance(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """‖C_S − C_T‖²_F / (4 D²) of the covariances of (N, D) and (M, D) features; at least 0.

    References
    ----------
    Sun & Saenko (2016). Deep CORAL: correlation alignment for deep domain adaptation. arXiv:1607.01719
    """
    width = source.shape[1]
    return (_covariance(source) - _covariance(target)).square().sum() / (4 * width * width)


def mmd_distance(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Squared maximum mean discrepancy of (N, D) and (M, D) features, V-statistic (at least 0), a sum of Gaussian kernels around the median distance.

    References
    ----------
    Long et al. (2015). Learning transferable features with deep adaptation networks. arXiv:1502.02791
    """
    n = len(source)
    both = torch.cat([source, target]).float()
    squared = torch.cdist(both, both).square()
    with torch.no_grad():
        off = squared[~torch.eye(len(both), dtype=torch.bool, device=both.device)]
        middle = off.median().clamp_min(torch.finfo(torch.float32).tiny)
    kernel = torch.stack([torch.exp(-squared / (factor * middle)) for factor in BANDWIDTHS]).mean(dim=0)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


DISTANCES = {"coral": coral_distance, "mmd": mmd_distance}


def _covariance(features: torch.Tensor) -> torch.Tensor:
    centred = features.float() - features.float().mean(dim=0, keepdim=True)
    return centred.T @ centred / max(1, len(features) - 1)


class FeatureTap:
    """The head's input of the last pass, pooled over space or tokens, with its gradient."""

    def __init__(self) -> None:
        self.features: torch.Tensor | None = None
        self._rows = 0

    def _keep(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        tensor = next((one for one in args if isinstance(one, torch.Tensor)), None)
        if tensor is not None:
            self.features = pool(tensor, self._rows, module)

    def taken(self, rows: int) -> torch.Tensor:
        """(rows, D); ConfigError where the head did not run, or its input cannot be read."""
        found, self.features = self.features, None
        if found is None or found.ndim != 2 or len(found) != rows:
            raise ConfigError("[alignment] needs a head that reads one vector, or one map, per sample")
        return found

    def expect(self, rows: int) -> None:
        self._rows = rows


@contextmanager
def tapped(network: nn.Module, heads: Sequence[str]) -> Iterator[FeatureTap]:
    """A tap before the main head (the first of ``heads``), gone at the end of the block."""
    tap = FeatureTap()
    handle = network.get_submodule(heads[0]).register_forward_pre_hook(tap._keep)
    try:
        yield tap
    finally:
        handle.remove()
