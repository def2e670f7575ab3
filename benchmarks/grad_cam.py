"""Grad-CAM against one forward pass of the same batch; goal at most 1.1. captum's LayerGradCam beside it."""

from __future__ import annotations

import torch

import tl_audit as ta
from benchmarks.timing import ratio


def main() -> None:
    from captum.attr import LayerGradCam
    from torchvision.models import get_model

    torch.manual_seed(0)
    for name, layer in (("squeezenet1_1", "features"), ("resnet18", "layer4")):
        module = get_model(name, weights=None).eval()
        batch = torch.randn(16, 3, 224, 224)
        model = ta.Model(module, classes=tuple(str(i) for i in range(1000)))

        def forward(module: torch.nn.Module = module, batch: torch.Tensor = batch) -> None:
            with torch.inference_mode():
                module(batch)

        def cam(model: ta.Model = model, batch: torch.Tensor = batch) -> None:
            ta.explain(model, batch, method="grad_cam", target=3)

        def captums(module: torch.nn.Module = module, batch: torch.Tensor = batch, layer: str = layer) -> None:
            LayerGradCam(module, module.get_submodule(layer)).attribute(batch, target=3)

        ratio(cam, forward, name=f"grad_cam, {name}, 16 x 224 x 224, against one forward pass")
        ratio(captums, forward, name=f"captum LayerGradCam, {name}, against one forward pass")
