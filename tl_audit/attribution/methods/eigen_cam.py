"""Eigen-CAM: what most channels of a layer have in common; no class, no gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tl_audit.attribution.cam import LayerCamMethod


@dataclass(frozen=True)
class EigenCAM(LayerCamMethod):
    """Projection of a layer's places on their first right singular vector (over channels), rectified: one map for all classes.

    The vector's sign is free: it is taken such that the map goes with the mean size of the activations (after a ReLU: the mean activation). Values are 0 or more, without unit. Cost: one
    forward pass, and the eigenvectors of one matrix per sample as large as the smaller of places and channels.

    Attributes
    ----------
    centred : take each channel's mean off first (principal components); the paper does not

    References
    ----------
    Muhammad and Yeasin (2020). Eigen-CAM: class activation map using principal components. arXiv:2008.00299
    """

    name: ClassVar[str] = "eigen_cam"
    needs_gradients: ClassVar[bool] = False
    says: ClassVar[tuple[str, ...]] = ("eigen_cam knows no class: its map is the same whatever is explained",)
    centred: bool = False

    def read(self, activation: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        rows = activation.flatten(2).transpose(1, 2).double()  # (B, places, C)
        finite = torch.isfinite(rows).all(dim=2).all(dim=1)
        rows = torch.where(finite[:, None, None], rows, 0.0)
        size = rows.abs().mean(dim=2)
        if self.centred:
            rows = rows - rows.mean(dim=1, keepdim=True)
        # places = U S V': the map S U is found from whichever Gram matrix is smaller
        if rows.shape[1] <= rows.shape[2]:
            values, vectors = torch.linalg.eigh(rows @ rows.transpose(1, 2))
            found = vectors[:, :, -1] * values[:, -1:].clamp_min(0).sqrt()
        else:
            found = (rows @ torch.linalg.eigh(rows.transpose(1, 2) @ rows).eigenvectors[:, :, -1:])[:, :, 0]
        if self.centred:
            size = size - size.mean(dim=1, keepdim=True)
        turned = torch.where((found * size).sum(dim=1, keepdim=True) < 0, -found, found).relu()
        return turned.masked_fill(~finite[:, None], torch.nan).reshape(len(rows), *activation.shape[2:])
