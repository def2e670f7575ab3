"""XGrad-CAM: Grad-CAM whose weights are means of the gradient weighted by the activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tl_audit.attribution.cam import GradientCam


@dataclass(frozen=True)
class XGradCAM(GradientCam):
    """Weighted sum of a layer's channels, rectified; a channel's weight is the mean of its gradient, weighted by its activation.

    Before rectifying, the map sums to the sum of gradient times activation. A channel whose activations cancel out, to less than a
    millionth of their size, gets no weight. Values are 0 or more, without unit. Cost as Grad-CAM.

    References
    ----------
    Fu et al. (2020). Axiom-based Grad-CAM: towards accurate visualization and explanation of CNNs. arXiv:2008.02312
    """

    name: ClassVar[str] = "xgrad_cam"
    assumes_positive: ClassVar[bool] = True

    def read(self, activation: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        total = activation.sum(dim=(2, 3), keepdim=True)
        there = total.abs() > 1e-6 * activation.abs().sum(dim=(2, 3), keepdim=True)
        reached = (slope * activation).sum(dim=(2, 3), keepdim=True)
        weight = torch.where(there, reached / torch.where(there, total, 1.0), 0.0)
        return (weight * activation).sum(dim=1).relu()
