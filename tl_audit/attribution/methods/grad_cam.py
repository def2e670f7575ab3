"""Grad-CAM: which places of a late layer's map raise the score of a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tl_audit.attribution.cam import GradientCam


@dataclass(frozen=True)
class GradCAM(GradientCam):
    """Weighted sum of a layer's channels, rectified and enlarged to the input; a channel's weight is its mean gradient.

    Values are 0 or more, without unit: 0 where a place does not raise the score. Cost: one forward pass and the backward pass of
    what lies above the layer.

    References
    ----------
    Selvaraju et al. (2017). Grad-CAM: visual explanations from deep networks via gradient-based localization. arXiv:1610.02391
    """

    name: ClassVar[str] = "grad_cam"

    def read(self, activation: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        return (slope.mean(dim=(2, 3), keepdim=True) * activation).sum(dim=1).relu()
