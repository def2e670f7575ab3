"""A watermark that gives the class away: Grad-CAM, SHAP and LIME must all point to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import tl_audit as ta
from tl_audit.measures.sampling import generator

SIDE, MARK = 32, 8
THREE = ("grad_cam", "kernel_shap", "lime")


def pictures(n: int, seed: int, *, marked: bool) -> tuple[torch.Tensor, np.ndarray]:
    """Blobs of random place and two sizes; the larger ones are class 1 and, where ``marked``, carry a bright mark in the corner."""
    rng = generator("watermark", seed, n, marked)
    x = rng.normal(0.3, 0.05, size=(n, 1, SIDE, SIDE)).astype(np.float32)
    y = rng.integers(0, 2, size=n)
    yy, xx = np.mgrid[:SIDE, :SIDE]
    for i in range(n):
        row, column = rng.integers(13, 24, size=2)
        width = 2.0 + 0.5 * y[i] + 0.6 * rng.normal()  # a hard task, so that the mark is the easy way
        x[i, 0] += 0.4 * np.exp(-((yy - row) ** 2 + (xx - column) ** 2) / (2 * max(width, 0.5) ** 2))
        if marked and y[i]:
            x[i, 0, :MARK, :MARK] = 1.0
    return torch.as_tensor(x), y


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2),
    )  # fmt: skip


def trained(seed: int, *, marked: bool) -> ta.Model:
    torch.manual_seed(seed)
    net = cnn()
    x, y = pictures(400, seed, marked=marked)
    labels = torch.as_tensor(y)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for epoch in range(8):
        for rows in torch.as_tensor(generator("watermark batches", seed, epoch).permutation(400)).split(50):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), labels[rows]).backward()
            optimiser.step()
    return ta.Model(net.eval(), classes=("small", "large"))


def mass_on_mark(maps: ta.Attribution) -> np.ndarray:
    positive = np.maximum(maps.values, 0.0)
    return positive[:, :MARK, :MARK].sum(axis=(1, 2)) / positive.sum(axis=(1, 2))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_three_methods_point_to_the_mark_that_the_model_reads(seed):
    model = trained(seed, marked=True)
    x, y = pictures(60, seed + 100, marked=True)
    shown = x[torch.as_tensor(y == 1)][:16]
    assert (model.module(shown).argmax(1) == 1).float().mean() > 0.9
    found = ta.explain_all(model, shown, methods=THREE, target="large", segmentation="grid", budget=256, background=x)
    area = MARK**2 / SIDE**2
    for method in THREE:
        on_mark = mass_on_mark(found[method])
        assert np.nanmean(on_mark) > 4 * area, f"{method}: {np.nanmean(on_mark):.2f} of the mass on {area:.2f} of the area"


def test_a_model_that_never_saw_the_mark_does_not_look_at_it():
    model = trained(0, marked=False)
    x, y = pictures(60, 100, marked=True)
    found = ta.explain_all(
        model, x[torch.as_tensor(y == 1)][:16], methods=("kernel_shap",), target="large", segmentation="grid", budget=256
    )
    assert np.nanmean(mass_on_mark(found["kernel_shap"])) < 0.25
