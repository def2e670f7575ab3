"""Grad-CAM against one forward pass of the same pictures; goal at most 1.1. captum's LayerGradCam beside it.

Two doors: ``explain_inputs`` with the layer known and the superpixels made, which is what an audit pays per model and method, and ``explain`` from
nothing but the model and a tensor, which also looks for the layer (three passes of one picture) and cuts each picture into superpixels.
"""

from __future__ import annotations

import numpy as np
import torch

import tl_audit as ta
from benchmarks.timing import ratio
from tl_audit.attribution import Inputs, explain_inputs
from tl_audit.modality import TENSOR

N = 64
BATCH = 32


def main() -> None:
    from captum.attr import LayerGradCam
    from torchvision.models import get_model

    torch.manual_seed(0)
    for name, layer in (("squeezenet1_1", "features"), ("resnet18", "layer4")):
        module = get_model(name, weights=None).eval()
        pictures = torch.randn(N, 3, 224, 224)
        model = ta.Model(module, classes=tuple(str(i) for i in range(1000)))
        parts = TENSOR.players(pictures, None)
        inputs = Inputs(tensor=pictures, ids=tuple(map(str, range(N))), modality=TENSOR, spec=None, players=parts, background=None)
        targets = np.full(N, 3, dtype=np.int64)

        def forward(module: torch.nn.Module = module, pictures: torch.Tensor = pictures) -> None:
            with torch.inference_mode():
                for start in range(0, N, BATCH):
                    module(pictures[start : start + BATCH])

        def inside(model: ta.Model = model, inputs: Inputs = inputs, targets: np.ndarray = targets, layer: str = layer) -> None:
            explain_inputs(model, inputs, method="grad_cam", targets=targets, layer=layer, batch_size=BATCH)

        def whole(model: ta.Model = model, pictures: torch.Tensor = pictures) -> None:
            ta.explain(model, pictures, method="grad_cam", target=3, batch_size=BATCH)

        def captums(module: torch.nn.Module = module, pictures: torch.Tensor = pictures, layer: str = layer) -> None:
            explainer = LayerGradCam(module, module.get_submodule(layer))
            for start in range(0, N, BATCH):
                explainer.attribute(pictures[start : start + BATCH], target=3)

        ratio(inside, forward, repeats=3, name=f"grad_cam, {name}, {N} x 224 x 224, layer and superpixels known, against one forward pass")
        ratio(whole, forward, repeats=3, name=f"grad_cam, {name}, explain() from nothing, against one forward pass")
        ratio(captums, forward, repeats=3, name=f"captum LayerGradCam, {name}, against one forward pass")


if __name__ == "__main__":
    main()
