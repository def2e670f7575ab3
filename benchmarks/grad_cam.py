"""The CAM family against one forward pass of the same pictures: goals at most 1.05 for Grad-CAM, 1.1 for five methods x five classes.

Doors: ``explain_inputs`` with the layer known and the superpixels made, which is what an audit pays per model and method; ``explain`` from nothing but
the model, a tensor and the superpixels, which also finds head and layer (one pass of one picture) and the predicted class (in the same pass);
``cam_pass`` for several methods, classes and layers. captum's LayerGradCam beside them, called for each layer and class in turn, and the grad-cam
package where it is installed (it is no dependency).
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import numpy as np
import torch

import tl_audit as ta
from benchmarks.timing import ratio
from tl_audit.attribution import Inputs, cam_pass, explain_inputs
from tl_audit.modality import TENSOR

N = 32
BATCH = 8
FIVE = ("grad_cam", "grad_cam++", "hires_cam", "xgrad_cam", "layer_cam")
CLASSES = (0, 1, 2, 3, 4)


def main() -> None:
    from captum.attr import LayerGradCam
    from torchvision.models import get_model

    torch.manual_seed(0)
    for name, layers in (("squeezenet1_1", ["features"]), ("resnet18", ["layer2", "layer3", "layer4"])):
        module = get_model(name, weights=None).eval()
        pictures = torch.randn(N, 3, 224, 224)
        model = ta.Model(module, classes=tuple(str(i) for i in range(1000)))
        parts = TENSOR.players(pictures, None)
        inputs = Inputs(tensor=pictures, ids=tuple(map(str, range(N))), modality=TENSOR, spec=None, players=parts, background=None)
        targets = np.full(N, 3, dtype=np.int64)
        last = layers[-1]
        batches = [pictures[start : start + BATCH] for start in range(0, N, BATCH)]

        def forward(module: torch.nn.Module = module, batches: list[torch.Tensor] = batches) -> None:
            with torch.inference_mode():
                for batch in batches:
                    module(batch)

        def inside(model: ta.Model = model, inputs: Inputs = inputs, targets: np.ndarray = targets, last: str = last) -> None:
            explain_inputs(model, inputs, method="grad_cam", targets=targets, layer=last, batch_size=BATCH)

        def whole(model: ta.Model = model, inputs: Inputs = inputs) -> None:
            ta.explain(model, inputs.tensor, method="grad_cam", players=inputs.players, batch_size=BATCH)

        def several(model: ta.Model = model, pictures: torch.Tensor = pictures, layers: list[str] = layers) -> None:
            cam_pass(model, pictures, methods=["grad_cam"], targets=[3], layers=layers, features=False, batch_size=BATCH)

        def five(model: ta.Model = model, pictures: torch.Tensor = pictures, last: str = last) -> None:
            cam_pass(model, pictures, methods=FIVE, targets=CLASSES, layers=[last], batch_size=BATCH)

        def enlarged(model: ta.Model = model, pictures: torch.Tensor = pictures, last: str = last) -> None:
            found = cam_pass(model, pictures, methods=FIVE, targets=CLASSES, layers=[last], batch_size=BATCH).maps
            for key in found:
                found[key]

        def captums(
            which: list[str], classes: tuple[int, ...], module: torch.nn.Module = module, batches: list[torch.Tensor] = batches
        ) -> None:
            for layer in which:
                explainer = LayerGradCam(module, module.get_submodule(layer))
                for target in classes:
                    for batch in batches:
                        explainer.attribute(batch, target=target)

        said = f"{name}, {N} x 224 x 224, against one forward pass"
        ratio(inside, forward, repeats=3, name=f"grad_cam, layer and superpixels known, {said}")
        ratio(whole, forward, repeats=3, name=f"grad_cam, explain() of the predicted class, layer found, {said}")
        ratio(lambda last=last: captums([last], (3,)), forward, repeats=3, name=f"captum LayerGradCam, {said}")
        if len(layers) > 1:
            ratio(several, forward, repeats=3, name=f"grad_cam of {', '.join(layers)} in one pass, {said}")
            ratio(
                lambda layers=layers: captums(layers, (3,)), forward, repeats=3, name=f"captum LayerGradCam of these layers in turn, {said}"
            )
        ratio(five, forward, repeats=3, name=f"5 methods x 5 classes, features and probabilities, maps at the layer's size, {said}")
        ratio(enlarged, forward, repeats=3, name=f"the same, all maps enlarged to 224 x 224, {said}")
        ratio(lambda last=last: captums([last], CLASSES), forward, repeats=1, name=f"captum LayerGradCam x 5 classes, {said}")
        if find_spec("pytorch_grad_cam") is not None:
            ratio(
                lambda module=module, last=last, batch=batches[0]: package(module, last, batch),
                lambda module=module, batch=batches[0]: module(batch),
                repeats=1,
                name=f"grad-cam package, 5 methods x 1 class (of 5), {name}, {BATCH} pictures, against one forward pass",
            )
        if last == "layer4":  # above it there is next to nothing; other layers cost what lies above them, once for each channel
            few = inputs.select(np.arange(BATCH))

            def ablation(model: ta.Model = model, few: Inputs = few, last: str = last) -> None:
                explain_inputs(model, few, method="ablation_cam", targets=np.full(BATCH, 3, dtype=np.int64), layer=last, batch_size=BATCH)

            ratio(
                ablation,
                lambda module=module, batch=batches[0]: module(batch),
                repeats=3,
                name=f"ablation_cam, 512 channels (513 forward passes where nothing is left out), {name}, {BATCH} pictures, against one forward pass",
            )


def package(module: torch.nn.Module, layer: str, batch: torch.Tensor) -> None:
    """Five methods of the grad-cam package, as its users call it."""
    found = import_module("pytorch_grad_cam")
    output = import_module("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
    for kind in (found.GradCAM, found.GradCAMPlusPlus, found.HiResCAM, found.XGradCAM, found.LayerCAM):
        with kind(module, [module.get_submodule(layer)]) as explainer:
            explainer(batch, [output(3)] * len(batch))


if __name__ == "__main__":
    main()
