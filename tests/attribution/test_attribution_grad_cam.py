"""Grad-CAM on the networks people really have: frozen, in-place, transformers, outputs in dictionaries."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from tests.attribution.attribution_fakes import column_inputs, image_inputs
from tl_audit.attribution import explain_inputs
from tl_audit.errors import ConfigError, ModelError
from tl_audit.models import Model


def zeros(n: int) -> np.ndarray:
    return np.zeros(n, dtype=np.int64)


def cam(net: nn.Module, x: torch.Tensor, layer: str | None = None, **model: Any) -> Any:
    return explain_inputs(
        Model(net, **model), image_inputs(x, cell=x.shape[-1] // 4), method="grad_cam", targets=zeros(len(x)), layer=layer
    )


@pytest.mark.parametrize("trainable", ["", "9", "4"])
def test_frozen_networks_get_the_same_map(trainable, small_net):
    x = torch.rand(3, 1, 16, 16)
    free = cam(small_net(), x)
    frozen = small_net()
    for name, p in frozen.named_parameters():
        p.requires_grad_(bool(trainable) and name.startswith(trainable))
    found = cam(frozen, x)
    assert found.values == pytest.approx(free.values, abs=1e-6)
    assert all(p.grad is None for p in frozen.parameters())
    assert not found.blank.all()


@pytest.mark.filterwarnings("ignore")
def test_it_is_the_map_that_captum_gives(small_net):
    from captum.attr import LayerGradCam

    net = small_net().eval()
    for module in net:
        if isinstance(module, nn.ReLU):
            module.inplace = False
    x = torch.rand(3, 1, 16, 16)
    theirs = LayerGradCam(net, net[5]).attribute(x, target=0, relu_attributions=True)
    theirs = nn.functional.interpolate(theirs, size=(16, 16), mode="bilinear", align_corners=False)[:, 0]
    assert cam(net, x, layer="5").values == pytest.approx(theirs.detach().numpy(), abs=1e-6)


@pytest.mark.parametrize("layer", ["0", "1", "2", "3", "4", "5"])
def test_in_place_relu_changes_nothing(layer, small_net):
    x = torch.rand(2, 1, 16, 16)
    plain = small_net()
    for module in plain.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    assert cam(small_net(), x, layer=layer).values == pytest.approx(cam(plain, x, layer=layer).values, abs=1e-6)


class Reused(nn.Module):
    """One convolution used twice; the functional in-place ReLU works on its output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.block = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu(self.block(self.stem(x)), inplace=True)
        x = nn.functional.relu(self.block(x), inplace=True)
        return self.head(x.mean(dim=(2, 3)))


def test_of_a_module_used_twice_the_last_use_counts():
    torch.manual_seed(0)
    net = Reused()
    x = torch.rand(2, 1, 16, 16)
    found = cam(net, x)
    assert found.layer == "block"
    with torch.no_grad():
        before = nn.functional.relu(net.block(net.stem(x)))
        last = net.block(before)
    last.requires_grad_(True)
    score = net.head(nn.functional.relu(last).mean(dim=(2, 3)))[:, 0].sum()
    (slope,) = torch.autograd.grad(score, last)
    expected = (slope.mean(dim=(2, 3), keepdim=True) * last.detach()).sum(dim=1).relu()
    assert found.values == pytest.approx(expected.numpy(), abs=1e-6)


@pytest.mark.parametrize(
    ("arch", "layer"),
    [
        ("resnet18", "layer4"),
        ("squeezenet1_1", "features"),
        ("mobilenet_v3_small", "features"),
        ("densenet121", "features"),
        ("vgg11", "features"),
    ],
)
def test_the_automatic_layer_is_the_last_map_before_the_head(arch, layer):
    torch.manual_seed(0)
    net = torchvision.models.get_model(arch, weights=None, num_classes=3)
    found = cam(net, torch.rand(1, 3, 128, 128))
    assert found.layer == layer
    assert found.layer_reason
    assert found.values.shape == (1, 128, 128)


def tiny_vit() -> nn.Module:
    torch.manual_seed(0)
    net = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3
    )
    nn.init.normal_(net.heads.head.weight)
    return net


def test_transformers_are_read_where_patches_still_count():
    found = cam(tiny_vit(), torch.rand(3, 3, 32, 32))
    assert found.layer == "encoder.layers.encoder_layer_1.ln_1"
    assert "4 x 4" in found.layer_reason
    assert "1 leading token" in found.layer_reason
    assert not found.blank.all()


class OnePlaceReads(nn.Module):
    """A transformer's end by hand: a class token before 4 x 4 patch tokens; the score is the brightness that attention brings to it."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 8, stride=8, bias=False)
        self.norm = nn.Identity()
        self.mix = nn.Linear(4, 4, bias=False)
        self.heads = nn.Linear(4, 2)
        with torch.no_grad():
            for layer in (self.patches, self.mix, self.heads):
                layer.weight.fill_(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = self.mix(torch.cat([torch.zeros_like(tokens[:, :1]), tokens], dim=1))
        looked = (tokens.mean(dim=2, keepdim=True) * 5).softmax(dim=1) * tokens
        return self.heads(looked.sum(dim=1))


def test_a_bright_patch_is_found_in_tokens_and_the_class_token_is_dropped():
    x = torch.zeros(1, 3, 32, 32)
    x[:, :, 8:16, 16:24] = 3.0  # patch (1, 2) of 4 x 4
    a = explain_inputs(Model(OnePlaceReads()), image_inputs(x, cell=8), method="grad_cam", targets=zeros(1))
    assert a.layer == "mix"
    assert int(a.player_values[0].argmax()) == 6


def test_swin_keeps_its_channels_last_and_is_read_all_the_same():
    torch.manual_seed(0)
    net = torchvision.models.SwinTransformer(
        patch_size=[4, 4], embed_dim=12, depths=[1, 1], num_heads=[1, 2], window_size=[4, 4], num_classes=3
    )
    auto = cam(net, torch.rand(1, 3, 64, 64))
    assert auto.params["map"] == "8x8"
    asked = cam(net, torch.rand(1, 3, 64, 64), layer="norm")
    assert asked.params["map"] == "8x8"


class Output(NamedTuple):
    logits: torch.Tensor
    extra: int


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module, form: str) -> None:
        super().__init__()
        self.net, self.form = net, form

    def forward(self, x: torch.Tensor) -> Any:
        y = self.net(x)
        return {"dict": {"logits": y}, "tuple": (y, None), "object": Output(y, 1), "named": {"a": y * 0, "b": y}, "index": [y * 0, y]}[
            self.form
        ]


@pytest.mark.parametrize("method", ["grad_cam", "integrated_gradients", "kernel_shap", "lime"])
@pytest.mark.parametrize(("form", "output"), [("dict", None), ("tuple", None), ("object", None), ("named", "b"), ("index", 1)])
def test_every_form_of_output_gives_the_same_map(form, output, method, small_net):
    x = torch.rand(2, 1, 16, 16)
    plain = explain_inputs(Model(small_net()), image_inputs(x), method=method, targets=zeros(2), budget=30)
    other = explain_inputs(Model(Wrapped(small_net(), form), output=output), image_inputs(x), method=method, targets=zeros(2), budget=30)
    assert other.values == pytest.approx(plain.values, abs=1e-6)


@pytest.mark.parametrize("method", ["grad_cam", "integrated_gradients", "kernel_shap"])
def test_both_classes_of_a_single_logit_are_explained(method):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    x = torch.rand(2, 1, 16, 16)
    first, second = (explain_inputs(Model(net), image_inputs(x), method=method, targets=np.full(2, t), budget=30) for t in (0, 1))
    assert not (first.blank | second.blank).all()
    if first.signed:
        assert first.values == pytest.approx(-second.values, abs=1e-6)


def test_columns_have_no_spatial_layer():
    with pytest.raises(ModelError, match="grad_cam needs a spatial layer"):
        explain_inputs(Model(nn.Linear(4, 2)), column_inputs(torch.rand(2, 4)), method="grad_cam", targets=zeros(2))


def test_an_unknown_layer_is_named_with_near_ones(small_net):
    with pytest.raises(ModelError, match="there is no layer 'layer9'"):
        cam(small_net(), torch.rand(1, 1, 16, 16), layer="layer9")


def test_a_layer_without_a_map_is_refused(small_net):
    with pytest.raises(ModelError, match="needs a layer whose output is a map"):
        cam(small_net(), torch.rand(1, 1, 16, 16), layer="7")


def test_a_model_that_cuts_gradients_is_told_which_methods_need_none(small_net):
    class Cut(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return self.net(x)

    x = torch.rand(2, 1, 16, 16)
    for method in ("grad_cam", "integrated_gradients"):
        with pytest.raises(ModelError, match="kernel_shap or lime"):
            explain_inputs(Model(Cut(small_net())), image_inputs(x), method=method, targets=zeros(2))
    a = explain_inputs(Model(Cut(small_net())), image_inputs(x), method="lime", targets=zeros(2), budget=20)
    assert not a.blank.all()


def test_a_setting_of_another_method_is_an_error(small_net):
    with pytest.raises(ConfigError, match="lime has no setting 'layer'"):
        explain_inputs(Model(small_net()), image_inputs(torch.rand(1, 1, 16, 16)), method="lime", targets=zeros(1), layer="4")
    with pytest.raises(ConfigError, match="did you mean 'grad_cam'"):
        explain_inputs(Model(small_net()), image_inputs(torch.rand(1, 1, 16, 16)), method="gradcam", targets=zeros(1))


def test_a_copy_is_not_needed_and_not_made(small_net, monkeypatch):
    monkeypatch.setattr(copy, "deepcopy", lambda *_: pytest.fail("the model was copied"))
    cam(small_net(), torch.rand(1, 1, 16, 16))
