"""LayerCAM: activations where they raise the score; works for early layers too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tl_audit.attribution.cam import GradientCam


@dataclass(frozen=True)
class LayerCAM(GradientCam):
    """Sum over channels of the activation times the positive part of its own gradient, rectified.

    Each place has a weight of its own, so that fine maps of early layers stay fine. Values are 0 or more, without unit. Cost as Grad-CAM.

    References
    ----------
    Jiang et al. (2021). LayerCAM: exploring hierarchical class activation maps for localization. doi:10.1109/TIP.2021.3089943
    """

    name: ClassVar[str] = "layer_cam"

    def read(self, activation: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        return (slope.relu() * activation).sum(dim=1).relu()
