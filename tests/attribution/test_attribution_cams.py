"""The CAM family: formulas against dull ones, one pass against many, transformers with a patch that is known to matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from tests.attribution.attribution_fakes import PatchDetector, image_inputs
from tl_audit.attribution import Run, Targets, cam_pass, explain, explain_all, explain_inputs, layer_maps
from tl_audit.attribution.evaluation import Evaluator
from tl_audit.attribution.layers import Grid, grid_of
from tl_audit.errors import ConfigError, DataError, ModelError
from tl_audit.models import Model

ONE_PASS = ("grad_cam", "grad_cam++", "hires_cam", "xgrad_cam", "layer_cam", "eigen_cam")
GRADIENT = ONE_PASS[:-1]
ALL = (*ONE_PASS, "score_cam", "ablation_cam")


def zeros(n: int) -> np.ndarray:
    return np.zeros(n, dtype=np.int64)


def images(n: int, side: int, channels: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(seed))


def cam(net: nn.Module, x: torch.Tensor, method: str, layer: str | None = None, targets: Any = None, **more: Any) -> Any:
    asked = zeros(len(x)) if targets is None else targets
    return explain_inputs(Model(net), image_inputs(x, cell=x.shape[-1] // 4), method=method, targets=asked, layer=layer, **more)


def dull(method: str, a: np.ndarray, g: np.ndarray) -> np.ndarray:
    """One map (h, w) of activations and gradients (C, h, w), as the papers write it, place by place."""
    channels, height, width = a.shape
    out = np.zeros((height, width))
    for c in range(channels):
        if method == "grad_cam":
            weight = np.full((height, width), sum(g[c, i, j] for i in range(height) for j in range(width)) / (height * width))
        elif method == "hires_cam":
            weight = g[c]
        elif method == "layer_cam":
            weight = np.maximum(g[c], 0)
        elif method == "xgrad_cam":
            total = a[c].sum()
            weight = np.full((height, width), 0.0 if total == 0 else sum(g[c].flat[k] * a[c].flat[k] / total for k in range(a[c].size)))
        else:  # Grad-CAM++, equation 19 with Y = exp(S), for S = 0 where exp(S) is 1
            number = 0.0
            for i in range(height):
                for j in range(width):
                    second, third = g[c, i, j] ** 2, g[c, i, j] ** 3
                    below = 2 * second + a[c].sum() * third
                    number += (second / below if below != 0 else 0.0) * max(g[c, i, j], 0)
            weight = np.full((height, width), number)
        out += weight * a[c]
    return np.maximum(out, 0)


def places_count() -> nn.Sequential:
    """A net whose tail tells places apart, so that gradients differ from place to place."""
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(inplace=True),
        nn.Flatten(), nn.Linear(6 * 16, 8), nn.Tanh(), nn.Linear(8, 3),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("method", GRADIENT)
def test_each_formula_is_that_of_its_paper(method):
    net, x = places_count(), images(3, 8)
    a = net[:5](x).detach().requires_grad_(True)
    (g,) = torch.autograd.grad(net[5:](a.clone())[:, 1].sum(), a)
    found = cam_pass(Model(net), x, methods=[method], targets=[1], layers=["4"])
    for i in range(3):
        expected = dull(method, a.detach()[i].double().numpy(), g[i].double().numpy())
        assert expected.max() > 0
        np.testing.assert_allclose(found.coarse[method, "4", 0][i].numpy(), expected, rtol=1e-4, atol=1e-6)


def test_eigen_cam_is_the_first_singular_projection_with_its_sign_fixed():
    net, x = places_count(), images(4, 8)
    for centred in (False, True):
        from tl_audit.attribution.methods.eigen_cam import EigenCAM

        for layer, tail in (("4", 5), ("1", 2)):  # more channels than ... and fewer than places
            a = net[:tail](x).detach().double().numpy()
            found = cam_pass(Model(net), x, methods=[EigenCAM(centred=centred)], targets=[0], layers=[layer], features=False)
            for i in range(4):
                rows = a[i].reshape(len(a[i]), -1).T
                rows = rows - rows.mean(axis=0) if centred else rows
                projected = rows @ np.linalg.svd(rows)[2][0]
                size = np.abs(a[i]).mean(axis=0).ravel()
                size = size - size.mean() if centred else size
                projected *= np.sign(projected @ size)
                expected = np.maximum(projected, 0).reshape(a.shape[2:])
                np.testing.assert_allclose(found.coarse["eigen_cam", layer, 0][i].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_eigen_cam_says_that_it_knows_no_class():
    first, second = (cam(places_count(), images(2, 8), "eigen_cam", targets=np.full(2, t)) for t in (0, 2))
    assert first.values.tobytes() == second.values.tobytes()
    assert any("knows no class" in caveat for caveat in first.caveats)
    assert first.budget == 1


def test_signed_hires_cam_adds_up_to_the_score_less_the_bias(small_net):
    net, x = small_net().eval(), images(3, 16)
    found = cam_pass(Model(net), x, methods=[hires_signed()], targets=[1], layers=["5"])
    expected = net(x)[:, 1].detach() - net[9].bias[1].detach()
    np.testing.assert_allclose(found.coarse["hires_cam", "5", 0].sum(dim=(1, 2)), expected, rtol=1e-4, atol=1e-5)
    a = cam(places_count(), images(3, 8), "hires_cam", layer="4", rectify=False)
    assert a.signed
    assert a.values.min() < 0
    assert not cam(net, x, "hires_cam").signed


def hires_signed() -> Any:
    from tl_audit.attribution.methods.hires_cam import HiResCAM

    return HiResCAM(rectify=False)


def test_score_cam_weighs_channels_by_what_they_let_through():
    net, x = places_count(), images(2, 8)
    a = net[:5](x).detach()
    found = cam(net, x, "score_cam", layer="4", targets=np.array([0, 2]), budget=64)
    for i, target in enumerate((0, 2)):
        maps = nn.functional.interpolate(a[i][:, None], size=(8, 8), mode="bilinear", align_corners=False)[:, 0]
        used = [c for c in range(6) if float(a[i, c].max()) > float(a[i, c].min())]
        with torch.no_grad():
            scores = torch.stack([net((x[i] * (maps[c] - maps[c].min()) / (maps[c].max() - maps[c].min()))[None])[0, target] for c in used])
        expected = sum(w * maps[c] for w, c in zip(scores.double().softmax(0), used, strict=True))
        np.testing.assert_allclose(found.values[i], expected.relu().numpy(), rtol=1e-4, atol=1e-6)
    assert found.params["of_channels"] == 6


def test_score_cam_takes_the_channels_that_vary_most_where_the_budget_is_short():
    found = cam(places_count(), images(2, 8), "score_cam", layer="4", budget=5)
    assert found.params["channels"] == 3
    assert found.budget <= 5
    assert any("3 of 6 channels" in caveat for caveat in found.caveats)
    with pytest.raises(ConfigError, match="at least 3 model evaluations"):
        cam(places_count(), images(2, 8), "score_cam", layer="4", budget=2)


def ablated_one_by_one(net: nn.Module, layer: nn.Module, x: torch.Tensor, target: int) -> np.ndarray:
    """Weights (N, C) of Ablation-CAM from one full forward pass for each sample and channel."""
    out = []
    for i in range(len(x)):
        kept: list[torch.Tensor] = []
        with torch.no_grad():
            handle = layer.register_forward_hook(lambda m, a, o, kept=kept: kept.append(o.clone()))
            full = net(x[i : i + 1])[0, target]
            handle.remove()
            row = []
            for c in range(kept[0].shape[1]):
                without = kept[0].clone()
                without[:, c] = 0
                handle = layer.register_forward_hook(lambda m, a, o, without=without: without.clone())
                row.append(float(full - net(x[i : i + 1])[0, target]))
                handle.remove()
        out.append(row)
    return np.array(out)


class Crossing(nn.Module):
    """What comes before the layer is used again after it: added, or laid beside."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.how = how
        self.stem, self.block = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(8 if how == "cat" else 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = self.stem(x).relu_()
        high = self.block(low).relu_()
        high = torch.cat([low, high], dim=1) if self.how == "cat" else low + high if self.how == "add" else high
        return self.head(high.mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("how", "rerun"),
    [("none", "several samples at once"), ("add", "one sample at a time"), ("cat", "whole forward passes: the network does")],
)
def test_ablation_cam_reruns_the_tail_or_says_that_it_cannot(how, rerun):
    net, x = Crossing(how).eval(), images(3, 8)
    found = cam(net, x, "ablation_cam", layer="block")
    assert rerun in found.params["rerun"]
    assert found.params["tail_evaluations"] == (0 if how == "cat" else 4)
    weight = ablated_one_by_one(net, net.block, x, 0)
    with torch.no_grad():
        a = net.block(net.stem(x).relu_()).numpy()
    expected = np.maximum(np.einsum("nc,nchw->nhw", weight, a), 0)
    assert expected.max() > 0
    np.testing.assert_allclose(found.values, expected, rtol=1e-3, atol=1e-6)


def test_ablation_cam_gives_the_same_in_pieces(monkeypatch):
    from tl_audit.attribution.methods import ablation_cam

    net, x = places_count(), images(5, 8)
    whole = cam(net, x, "ablation_cam", layer="4")
    monkeypatch.setattr(ablation_cam, "_TAIL_FLOATS", 6 * 16 * 4)
    assert cam(net, x, "ablation_cam", layer="4").values == pytest.approx(whole.values, abs=1e-6)
    assert whole.budget <= 4


def test_ablation_cam_keeps_the_largest_channels_where_they_are_limited():
    found = cam(places_count(), images(2, 8), "ablation_cam", layer="4", channels=2)
    assert found.params["tail_evaluations"] == 2
    crossing = cam(Crossing("cat").eval(), images(2, 8), "ablation_cam", layer="block", budget=5)
    assert crossing.params["channels"] == 2
    assert any("2 of 4 channels" in caveat for caveat in crossing.caveats)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layer", ["layer2", "layer3", "layer4"])
def test_grad_cam_of_several_layers_is_what_captum_gives_for_each(layer):
    from captum.attr import LayerGradCam

    torch.manual_seed(0)
    net = torchvision.models.get_model("resnet18", weights=None, num_classes=3).eval()
    x = images(2, 64, 3)
    found = cam_pass(Model(net), x, methods=["grad_cam"], targets=[1], layers=["layer2", "layer3", "layer4"])
    theirs = LayerGradCam(net, net.get_submodule(layer)).attribute(x, target=1, relu_attributions=True)[:, 0]
    np.testing.assert_allclose(found.coarse["grad_cam", layer, 0], theirs.detach(), rtol=1e-3, atol=1e-6)


def test_one_pass_gives_every_map_that_a_method_gives_alone(small_net, monkeypatch):
    net, x = small_net(), images(5, 16)
    forwards = 0
    real = Evaluator._read

    def counted(self: Evaluator, rows: torch.Tensor) -> Any:
        nonlocal forwards
        forwards += len(rows)
        return real(self, rows)

    columns = [0, np.array([0, 1, 2, 1, 0]), Targets(np.ones(5, dtype=np.int64), np.full(5, 2)), None]
    with monkeypatch.context() as counting:
        counting.setattr(Evaluator, "_read", counted)
        done = cam_pass(Model(net, head="9"), x, methods=ONE_PASS, targets=columns, layers=["1", "3", "5"], batch_size=2)
    assert forwards == 5
    assert len(done.maps) == len(ONE_PASS) * 3 * 4
    with torch.no_grad():
        predicted = net.eval()(x).argmax(dim=1).numpy()
        np.testing.assert_allclose(done.probabilities, net(x).softmax(dim=1), atol=1e-6)
        np.testing.assert_allclose(done.features, net[:9](x), atol=1e-6)
    assert done.targets[3].index.tolist() == predicted.tolist()
    asked = [zeros(5), columns[1], columns[2], predicted]
    for (method, layer, k), values in done.maps.items():
        alone = cam(net, x, method, layer=layer, targets=asked[k])
        np.testing.assert_allclose(values.numpy(), alone.values, atol=5e-6)


def test_one_pass_refuses_what_it_cannot_do(small_net):
    model, x = Model(small_net()), images(2, 16)
    for methods, match in ((["score_cam"], "not read off a layer in one pass"), (["grad_cam", "grad_cam"], "asked for twice")):
        with pytest.raises(ConfigError, match=match):
            cam_pass(model, x, methods=methods, targets=[0])
    with pytest.raises(DataError, match="3 targets for 2 inputs"):
        cam_pass(model, x, methods=["grad_cam"], targets=[zeros(3)])
    with pytest.raises(DataError, match="no sample"):
        cam_pass(model, x[:0], methods=["grad_cam"], targets=[0])
    with pytest.raises(ModelError, match="there is no layer 'nine'"):
        cam_pass(model, x, methods=["grad_cam"], targets=[0], layers=["nine"])


def test_all_methods_of_one_call_share_a_pass_and_find_the_predicted_class_in_it(small_net, monkeypatch):
    net, x = small_net(), images(4, 16)
    alone = {m: explain(net, x, method=m, target=[int(k) for k in net.eval()(x).argmax(dim=1)]) for m in ONE_PASS}
    forwards = 0
    real = Evaluator._read

    def counted(self: Evaluator, rows: torch.Tensor) -> Any:
        nonlocal forwards
        forwards += len(rows)
        return real(self, rows)

    monkeypatch.setattr(Evaluator, "_read", counted)
    found = explain_all(net, x, methods=ONE_PASS)
    assert forwards == 1 + 4  # one sample to find head and layer
    assert list(found) == list(ONE_PASS)
    for method, a in found.items():
        assert a.values == pytest.approx(alone[method].values, abs=5e-6)
        assert a.targets.tolist() == alone[method].targets.tolist()
        assert a.layer_reason


@pytest.mark.parametrize("method", ALL)
def test_frozen_in_place_and_graph_free_callers_change_nothing(method, small_net):
    x = images(3, 16)
    plain = small_net()
    for module in plain.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    expected = cam(plain, x, method, layer="4").values
    frozen = small_net()
    for p in frozen.parameters():
        p.requires_grad_(False)
    assert cam(frozen, x, method, layer="4").values == pytest.approx(expected, abs=1e-6)
    net = small_net()
    with torch.no_grad():
        assert cam(net, x, method, layer="4").values == pytest.approx(expected, abs=1e-6)
    with torch.inference_mode():
        assert cam(net, x.clone(), method, layer="4").values == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("method", ALL)
def test_a_planted_patch_is_found_by_every_method(method, patches):
    x, where = patches
    a = explain_inputs(Model(PatchDetector()), image_inputs(x), method=method, targets=np.ones(len(x), dtype=np.int64))
    assert [int(np.argmax(v)) for v in a.player_values] == where


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", ALL)
def test_other_precisions_give_nearly_the_same_map(method, dtype):
    x = images(3, 8)
    full = cam(places_count(), x, method, layer="4").values
    found = cam(places_count().to(dtype), x, method, layer="4").values
    tolerance = 0.12 if dtype == torch.bfloat16 else 0.02 if dtype == torch.float16 else 1e-5
    assert np.abs(found - full).max() <= tolerance * np.abs(full).max()


@pytest.mark.parametrize("method", [m for m in ALL if m != "eigen_cam"])
def test_a_contrast_is_the_map_of_the_difference_of_two_outputs(method):
    net, x = places_count(), images(3, 8)
    other = places_count()
    with torch.no_grad():
        other[8].weight[0] -= net[8].weight[2]
        other[8].bias[0] -= net[8].bias[2]
    found = cam(net, x, method, layer="4", targets=Targets(zeros(3), np.full(3, 2)))
    assert found.values == pytest.approx(cam(other, x, method, layer="4").values, abs=1e-5)
    assert not found.blank.all()


@pytest.mark.parametrize("method", ["grad_cam++", "xgrad_cam"])
def test_negative_activations_are_mentioned_where_the_formula_takes_none_for_granted(method):
    with_negative, without = (cam(places_count(), images(2, 8), method, layer=layer) for layer in ("3", "4"))
    assert any("negative" in caveat for caveat in with_negative.caveats)
    assert not any("negative" in caveat for caveat in without.caveats)


class Dictionary(nn.Module):
    """Layers that return a mapping, and logits in one."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Body(), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.head(self.body(x)["map"].mean(dim=(2, 3)))}


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return {"map": self.conv(x), "note": "a mapping"}


@pytest.mark.parametrize("method", ALL)
def test_layers_and_models_may_return_mappings(method):
    net, x = Dictionary(), images(2, 8)
    whole, inner = (cam(net, x, method, layer=layer) for layer in ("body", "body.conv"))
    assert whole.values == pytest.approx(inner.values, abs=1e-6)
    assert cam(net, x, "grad_cam").layer == "body"


# transformers whose weights make one patch matter: channel 0 is the brightness of a patch, and attention carries it to the class token


def erased(net: nn.Module) -> None:
    with torch.no_grad():
        for name, p in net.named_parameters():
            keep = name.endswith("weight") and p.ndim == 1  # of norms
            p.fill_(1.0 if keep else 0.0)


def eye(weight: torch.Tensor) -> None:
    with torch.no_grad():
        weight.copy_(torch.eye(*weight.shape))


def bright(conv: nn.Module) -> None:
    with torch.no_grad():
        conv.weight[0] = 1.0 / conv.weight[0].numel()


def torchvision_vit() -> nn.Module:
    net = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=1, hidden_dim=8, mlp_dim=8, num_classes=2
    )
    erased(net)
    bright(net.conv_proj)
    last = net.encoder.layers[1].self_attention
    eye(last.in_proj_weight[16:])
    eye(last.out_proj.weight)
    with torch.no_grad():
        net.heads.head.weight[0, 0] = 100.0
    return net


def timm_vit(**more: Any) -> nn.Module:
    timm = pytest.importorskip("timm")
    net = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=8, depth=2, num_heads=1, mlp_ratio=1.0, num_classes=2, **more
    )
    erased(net)
    bright(net.patch_embed.proj)
    last = net.blocks[1].attn
    eye(last.qkv.weight[16:])
    eye(last.proj.weight)
    with torch.no_grad():
        net.head.weight[0, 0] = 100.0
    return net


def merged(weight: torch.Tensor) -> None:
    """Channel 0 of four neighbours into channel 0."""
    with torch.no_grad():
        weight[0, :: weight.shape[1] // 4] = 1.0


def torchvision_swin() -> nn.Module:
    net = torchvision.models.SwinTransformer(
        patch_size=[4, 4], embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=[4, 4], num_classes=2
    )
    erased(net)
    bright(net.features[0][0])
    merged(net.features[2].reduction.weight)
    with torch.no_grad():
        net.head.weight[0, 0] = 100.0
    return net


def timm_swin() -> nn.Module:
    timm = pytest.importorskip("timm")
    net = timm.models.swin_transformer.SwinTransformer(
        img_size=32, patch_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 1), window_size=4, num_classes=2
    )
    erased(net)
    bright(net.patch_embed.proj)
    merged(net.layers[1].downsample.reduction.weight)
    with torch.no_grad():
        net.head.fc.weight[0, 0] = 100.0
    return net


TRANSFORMERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "torchvision ViT": (torchvision_vit, "4x4"),
    "timm ViT": (timm_vit, "4x4"),
    "timm ViT with registers": (lambda: timm_vit(reg_tokens=4, no_embed_class=True), "4x4"),
    "timm ViT without class token": (lambda: timm_vit(class_token=False, global_pool="avg"), "4x4"),
    "torchvision Swin": (torchvision_swin, "4x4"),
    "timm Swin": (timm_swin, "4x4"),
}


# not Score-CAM: a normalised token is as bright behind a thin mask as without one
@pytest.mark.parametrize("method", [m for m in ALL if m != "score_cam"])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_patch_that_matters_to_a_transformer_is_found(name, method):
    make, grid = TRANSFORMERS[name]
    net = make().eval()
    x = torch.zeros(2, 3, 32, 32)
    x[0, :, 8:16, 16:24] = 3.0  # patches (1, 2) and (3, 0) of 4 x 4
    x[1, :, 24:32, 0:8] = 2.0
    with torch.no_grad():
        assert float(net(x)[:, 0].min()) > 0
    a = cam(net, x, method)
    assert a.params["map"] == grid, a.layer_reason
    assert [int(v.argmax()) for v in a.player_values] == [6, 12], (a.layer, a.layer_reason)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("torchvision ViT", "encoder.layers.encoder_layer_1.ln_1"),
        ("timm ViT", "blocks.1.norm1"),
        ("timm ViT without class token", "blocks"),
        ("timm Swin", "norm"),
    ],
)
def test_transformers_are_read_where_their_makers_advise(name, layer):
    found = cam(TRANSFORMERS[name][0](), images(1, 32, 3), "score_cam", budget=12)
    assert found.layer == layer, found.layer_reason
    assert found.values.shape == (1, 32, 32)


@pytest.mark.parametrize(
    ("shape", "image", "expected"),
    [
        ((2, 64, 7, 7), (224, 224), Grid("channels_first", 7, 7)),
        ((2, 7, 7, 768), (224, 224), Grid("channels_last", 7, 7)),
        ((2, 128, 128, 96), (512, 512), Grid("channels_last", 128, 128)),
        ((2, 197, 192), (224, 224), Grid("tokens", 14, 14, 1)),
        ((2, 198, 192), (224, 224), Grid("tokens", 14, 14, 2)),
        ((2, 20, 8), (32, 32), Grid("tokens", 4, 4, 4)),
        ((2, 1 + 14 * 28, 8), (224, 448), Grid("tokens", 14, 28, 1)),
        ((2, 1 + 8 * 5, 8), (130, 80), Grid("tokens", 8, 5, 1)),
        ((8, 16, 8), (32, 32), None),  # windows folded into the batch
        ((2, 64, 1, 1), (32, 32), None),
        ((2, 64), (32, 32), None),
    ],
)
def test_maps_are_told_by_their_shape(shape, image, expected):
    assert grid_of(shape, image, 2) == expected


def test_layer_maps_gives_neighbours_and_stages_from_one_pass(monkeypatch):
    torch.manual_seed(0)
    net = torchvision.models.get_model("resnet18", weights=None, num_classes=3)
    x = images(2, 128, 3)
    inputs = image_inputs(x, cell=32)
    forwards = 0
    real = Evaluator._read

    def counted(self: Evaluator, rows: torch.Tensor) -> Any:
        nonlocal forwards
        forwards += len(rows)
        return real(self, rows)

    with monkeypatch.context() as counting:
        counting.setattr(Evaluator, "_read", counted)
        found = layer_maps(Model(net), inputs, Targets(zeros(2)), Run())
    assert forwards == 1 + 2
    assert found.chosen == "layer4"
    assert "last layer before the head" in found.reason
    assert found.stages == ("layer2", "layer3", "layer4")
    assert found.neighbours == ("layer4.1.bn2",)
    assert set(found.maps) == {"layer2", "layer3", "layer4", "layer4.1.bn2"}
    for name, a in found.maps.items():
        assert a.layer == name
        assert a.values == pytest.approx(cam(net, x, "grad_cam", layer=name).values, abs=1e-5)
    around = layer_maps(Model(net), inputs, Targets(zeros(2)), Run(), around="layer3.1")
    assert around.chosen == "layer3.1"
    assert around.neighbours == ("layer3.1.bn2", "layer4.0.conv1")


def test_the_stages_of_a_plain_transformer_are_its_blocks():
    torch.manual_seed(0)
    net = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=4, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3
    )
    nn.init.normal_(net.heads.head.weight)
    found = layer_maps(Model(net), image_inputs(images(1, 32, 3), cell=8), Targets(zeros(1)), Run())
    assert found.chosen == "encoder.layers.encoder_layer_3.ln_1"
    assert [name.split(".")[2] for name in found.stages] == ["encoder_layer_1", "encoder_layer_2", "encoder_layer_3"]


def test_a_stage_ends_with_its_own_block_and_not_inside_the_next():
    torch.manual_seed(0)
    net = torchvision.models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=3)
    found = layer_maps(Model(net), image_inputs(images(1, 96, 3), cell=24), Targets(zeros(1)), Run())
    assert found.stages == ("stage2", "stage3", "conv5")


class TwoHeads(nn.Module):
    """Two heads whose mean is the output, as distilled transformers have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.other = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x).mean(dim=(2, 3))
        return (self.head(y) + self.other(y)) / 2


def test_a_network_with_two_heads_is_read_and_the_reason_says_so():
    found = cam(TwoHeads(), images(2, 8), "grad_cam")
    assert found.layer == "conv"
    assert "the head is not known" in found.layer_reason


class Handing(nn.Module):
    """A layer that hands on what it gets, as it is or as an equal copy."""

    def __init__(self, copy: bool) -> None:
        super().__init__()
        self.copy = copy

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1.0 if self.copy else x


@pytest.mark.parametrize("copy", [True, False])
def test_a_layer_that_changes_nothing_gives_the_map_of_its_neighbour(copy):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), Handing(copy), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    found = layer_maps(Model(net), image_inputs(images(2, 16)), Targets(zeros(2)), Run())
    if copy:
        assert (found.chosen, found.neighbours) == ("1", ("0",))
        assert found.maps["0"].values == pytest.approx(found.maps["1"].values, abs=1e-7)
    else:  # the very same map is no neighbour of itself
        assert (found.chosen, found.neighbours) == ("0", ())
