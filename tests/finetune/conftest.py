"""Tiny data and networks for fine-tuning: 48 pictures of two or three kinds, 8 × 8."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch import nn

import tl_audit as ta

os.environ.setdefault("OMP_NUM_THREADS", "1")


def pictures(n: int = 48, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Noise with a bright bar whose place tells the class."""
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 80, size=(n, 8, 8, 3), dtype=np.uint8)
    codes = np.arange(n) % classes
    for i, code in enumerate(codes):
        images[i, :, 2 * code : 2 * code + 2] += 140
    return images, ["abc"[code] for code in codes]


@pytest.fixture
def domain() -> ta.Domain:
    images, labels = pictures()
    return ta.Domain("tiny", images, labels=labels, kind="image")


class Net(nn.Module):
    """Four layers, batch norm with and without parameters, dropout."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.plain = nn.BatchNorm2d(4, affine=False)
        self.second = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3))
        self.third = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.fourth = nn.Conv2d(6, 6, 1)
        self.drop = nn.Dropout(0.0)
        self.out = nn.Linear(6, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fourth(self.third(self.second(self.plain(self.first(x)))))
        return self.out(self.drop(x.mean(dim=(2, 3))))


@pytest.fixture
def net() -> ta.Model:
    from tl_audit.records.preprocessing import Preprocessing

    torch.manual_seed(3)
    return ta.Model(Net(), preprocessing=Preprocessing(height=8, width=8), head="out")


def plan_for(base: object, *stages: ta.Stage, **more: object) -> ta.Plan:
    return ta.Plan(base=base, stages=stages or (ta.Stage("head", epochs=1, lr=1e-2),), **more)


def quick(plan: ta.Plan, domain: ta.Domain, **more: object):
    return ta.adapt(plan, domain, device="cpu", progress="none", **more)
