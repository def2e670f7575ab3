"""HiResCAM: gradient times activation, place by place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tl_audit.attribution.cam import GradientCam


@dataclass(frozen=True)
class HiResCAM(GradientCam):
    """Sum over channels of gradient times activation, place by place, by default rectified.

    Where one linear layer on the (pooled or flattened) map gives the scores, the unrectified map at the layer's size sums to the score
    less that layer's bias: it shows the very places the score was read from. Values without unit. Cost as Grad-CAM.

    Attributes
    ----------
    rectify : drop what lowers the score; False: signed values

    References
    ----------
    Draelos and Carin (2020). Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks. arXiv:2011.08891
    """

    name: ClassVar[str] = "hires_cam"
    rectify: bool = True

    @property
    def gives_signs(self) -> bool:
        return not self.rectify

    def read(self, activation: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        found = (slope * activation).sum(dim=1)
        return found.relu() if self.rectify else found
