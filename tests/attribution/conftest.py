"""Pictures with a planted patch, and a small network with the usual traps (BatchNorm, in-place ReLU, dropout)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn


@pytest.fixture
def patches(rng: np.random.Generator) -> tuple[torch.Tensor, list[int]]:
    """Six 16 x 16 pictures of dim noise with one bright patch each, and the square it lies in."""
    x = torch.as_tensor(rng.uniform(0, 0.2, size=(6, 1, 16, 16))).float()
    where = [int(k) for k in rng.integers(16, size=6)]
    for i, k in enumerate(where):
        r, c = 4 * (k // 4), 4 * (k % 4)
        x[i, :, r : r + 4, c : c + 4] = 1.0
    return x, where


@pytest.fixture
def small_net() -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(6, 3),
        )  # fmt: skip

    return make
