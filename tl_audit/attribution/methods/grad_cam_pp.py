"""Grad-CAM++: Grad-CAM whose weights look at the places that raise the score alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tl_audit.attribution.cam import GradientCam


@dataclass(frozen=True)
class GradCAMPlusPlus(GradientCam):
    """Weighted sum of a layer's channels, rectified; a channel's weight is a weighted sum of its positive gradients.

    The paper's closed form for the exponential of the score, Y = exp(S): all its derivatives are exp(S) times powers of the gradient g
    of S, so that the share of a place comes to alpha = 1 / (2 + g · sum(A)), and the weight to sum(alpha · relu(g)). The factor exp(S),
    one number for the whole map, is left out: it would overflow and changes no comparison. The derivation takes activations of 0 or more
    for granted; a channel whose sum is negative counts with sum 0, and a caveat says so. Values are 0 or more, without unit. Cost as Grad-CAM.

    References
    ----------
    Chattopadhyay et al. (2018). Grad-CAM++: improved visual explanations for deep convolutional networks, equations 15 and 19. arXiv:1710.11063
    """

    name: ClassVar[str] = "grad_cam++"
    assumes_positive: ClassVar[bool] = True

    def read(self, activation: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        rising = slope.relu()
        alpha = 1 / (2 + rising * activation.sum(dim=(2, 3), keepdim=True).relu())
        weight = (alpha * rising).sum(dim=(2, 3), keepdim=True)
        return (weight * activation).sum(dim=1).relu()
