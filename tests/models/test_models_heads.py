"""Heads, features and layers, found by watching a forward pass: on every torchvision family and on networks made to be awkward."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from tl_audit.errors import ModelError
from tl_audit.models import (
    Model,
    build,
    find_head,
    forward_with_features,
    head_of,
    layer_groups,
    mlp,
    penultimate,
    small_cnn,
    split,
    tensor_hash,
)
from tl_audit.models.heads import group_of, layer_groups_by_name, pool
from tl_audit.records.preprocessing import CategoricalColumn, NumericColumn, TableEncoding

# name, input side, head, features, some layers
FAMILIES = [
    ("resnet18", 32, "fc", 512, ("conv1", "layer1", "layer4", "fc")),
    ("vgg11", 32, "classifier.6", 4096, ("features.0", "classifier.3")),
    ("inception_v3", 75, "fc", 2048, ("Conv2d_1a_3x3", "Mixed_7c")),
    ("efficientnet_b0", 32, "classifier.1", 1280, ("features.0", "features.8")),
    ("mobilenet_v2", 32, "classifier.1", 1280, ("features.0", "features.18")),
    ("mobilenet_v3_small", 32, "classifier.3", 1024, ("features.12", "classifier.0")),
    ("densenet121", 32, "classifier", 1024, ("features.denseblock1", "features.norm5")),
    ("squeezenet1_1", 64, "classifier.1", 512, ("features.0", "features.12")),
    ("vit_b_32", 64, "heads.head", 768, ("conv_proj", "encoder.layers.encoder_layer_11")),
    ("swin_t", 32, "head", 768, ("features.0", "norm")),
    ("convnext_tiny", 32, "classifier.2", 768, ("features.0", "features.7")),
]
TABLE = TableEncoding(
    numeric=(NumericColumn(name="age", mean=0, std=1, fill=0, missing_indicator=True),),
    categorical=(CategoricalColumn(name="sex", categories=("f", "m")), CategoricalColumn(name="port", categories=("c", "q", "s"))),
)


@pytest.mark.parametrize(("name", "side", "head", "width", "some"), FAMILIES, ids=[f[0] for f in FAMILIES])
def test_each_family_swaps_its_head_and_shows_its_features_and_layers(name, side, head, width, some):
    model = build(f"torchvision:{name}", num_classes=3, input_size=side)
    batch = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    before = tensor_hash(model.module)
    bare = Model(model.module)  # found by execution order, without the table of torchvision heads
    assert model.head == find_head(bare, batch) == head

    layers = layer_groups(bare, batch)
    assert 4 <= len(layers) <= 40
    assert set(some) <= set(layers)
    assert layers[-1] == head

    seen = forward_with_features(model, batch, layers)
    assert seen.logits.shape == (2, 3)
    assert seen.penultimate.shape == (2, width)
    assert all(value.ndim == 2 and len(value) == 2 and value.dtype == torch.float32 for value in seen.layers.values())
    with torch.no_grad():
        plain = model.module.eval()(batch)
    assert torch.allclose(seen.logits, plain)
    if name not in ("squeezenet1_1",):  # there a ReLU and a mean follow the head
        again = model.module.get_submodule(head)(seen.penultimate)
        assert torch.allclose(again, plain, atol=1e-4)
    assert tensor_hash(model.module) == before


def test_auxiliary_heads_are_swapped_too():
    model = build("torchvision:inception_v3", num_classes=3, input_size=75)
    assert model.facts["heads"] == ["fc", "AuxLogits.fc"]
    assert model.module.AuxLogits.fc.out_features == 3


def test_layers_of_a_residual_network_are_its_stages():
    model = build("torchvision:resnet18", num_classes=2, input_size=32)
    assert layer_groups(model, torch.zeros(1, 3, 32, 32)) == ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc")


@pytest.mark.parametrize("side", [8, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_small_cnn_works_from_8_to_64_pixels(side, channels):
    model = Model(small_cnn(4, channels=channels, widths=(4, 6, 8)))
    batch = torch.zeros(2, channels, side, side)
    logits, features = penultimate(model, batch)
    assert (logits.shape, features.shape) == ((2, 4), (2, 8))
    assert layer_groups(model, batch) == ("block1", "block2", "block3", "head")


@pytest.mark.parametrize("way", ["onehot", "embedding"])
def test_the_table_network_maps_each_category_column_first(way):
    encoding = TABLE.model_copy(update={"categorical_as": way})
    model = Model(mlp(2, encoding=encoding, hidden=(5, 4)), preprocessing=encoding)
    batch = torch.zeros(3, encoding.width)
    logits, features = penultimate(model, batch)
    assert (logits.shape, features.shape) == ((3, 2), (3, 4))
    names = [name for name, _ in model.module.named_parameters()]
    assert ("embeddings.column1.weight" in names) == (way == "embedding")
    assert "embeddings.column1.bias" not in names
    if way == "embedding":
        assert model.module.embeddings["column0"].in_features == 3  # f, m, unknown


def test_a_head_is_found_behind_a_hidden_layer_of_equal_width():
    net = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2))
    assert find_head(Model(net), torch.zeros(1, 4)) == "2"


def test_normalisation_after_the_head_is_not_the_head():
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3), nn.BatchNorm1d(3))
    assert find_head(Model(net), torch.zeros(2, 4)) == "1"


def test_a_single_logit_has_a_head_of_width_one():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    logits, features = penultimate(Model(net, classes=("no", "yes")), torch.randn(5, 4))
    assert logits.shape == (5, 2)
    assert features.shape == (5, 8)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        return (self.a(x) + self.b(x)) / 2


def test_two_heads_side_by_side_are_an_error_that_lists_them():
    with pytest.raises(ModelError, match=r"several modules could be the head \(a, b\)"):
        find_head(Model(TwoHeads()), torch.randn(2, 4))
    assert split(Model(TwoHeads(), head="b"), torch.randn(2, 4))[::2] == ("b", 8)


def test_an_unknown_head_and_class_names_that_do_not_fit_are_errors():
    net = nn.Sequential(OrderedDict(body=nn.Linear(4, 8), head=nn.Linear(8, 3)))
    with pytest.raises(ModelError, match="has no module 'haed'; its first level: body, head"):
        find_head(Model(net, head="haed"), torch.zeros(1, 4))
    with pytest.raises(ModelError, match="3 outputs and 2 class names"):
        find_head(Model(net, classes=("a", "b")), torch.zeros(1, 4))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)[:, :3]


def test_outputs_that_no_module_makes_are_an_error_with_the_widths_seen():
    with pytest.raises(ModelError, match=r"no module ends in the 3 outputs .*body \(8\)"):
        find_head(Model(Functional()), torch.zeros(1, 4))


def test_the_head_is_searched_once_and_again_after_a_swap():
    net = nn.Sequential(OrderedDict(body=nn.Linear(4, 8), head=nn.Linear(8, 3)))
    model = Model(net)
    assert head_of(model, torch.zeros(1, 4)) == "head"
    runs = []
    net.body.register_forward_hook(lambda *_: runs.append(1))
    forward_with_features(model, torch.zeros(1, 4), ("body",))
    assert len(runs) == 1
    net.head = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 3))
    assert head_of(model, torch.zeros(1, 4)) == "head.1"


class Reused(nn.Module):
    """One layer twice, an in-place ReLU on its result, a dictionary as output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.relu, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.relu(self.shared(self.relu(self.shared(self.relu(self.first(x))))))
        return {"logits": self.head(x), "hidden": x}


def test_reused_layers_in_place_activations_and_dictionaries_are_handled():
    net = Reused()
    x = torch.randn(5, 4)
    layers = layer_groups(Model(net), x)
    assert layers == ("first", "shared", "head")
    seen = forward_with_features(Model(net), x, layers)
    with torch.no_grad():
        first = net.first(x)
        last = net.shared(net.shared(first.relu()).relu())
    assert torch.allclose(seen.layers["first"], first)
    assert bool((seen.layers["first"] < 0).any())
    assert torch.allclose(seen.layers["shared"], last)
    assert torch.allclose(seen.penultimate, last.relu())


def test_tokens_of_a_transformer_encoder_are_averaged():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 4)

    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.encoder, self.head = nn.Embedding(11, 8), encoder, nn.Linear(8, 3)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.encoder(self.embed(ids)).mean(dim=1))

    ids = torch.arange(12).reshape(2, 6) % 11
    model = Model(Text().eval())
    layers = layer_groups(model, ids)
    assert layers == ("embed", *(f"encoder.layers.{i}" for i in range(4)), "head")
    seen = forward_with_features(model, ids, layers)
    assert seen.layers["encoder.layers.0"].shape == (2, 8)
    assert torch.allclose(seen.layers["encoder.layers.3"], seen.penultimate, atol=1e-5)


def test_lists_of_modules_are_opened_and_flat_networks_are_thinned():
    class Listed(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(n))
            self.head = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    assert layer_groups(Model(Listed(3)), torch.zeros(1, 3)) == ("blocks.0", "blocks.1", "blocks.2", "head")
    many = layer_groups(Model(Listed(60)), torch.zeros(1, 3))
    assert len(many) == 40
    assert (many[0], many[-1]) == ("blocks.0", "head")


def test_a_tiny_network_has_fewer_groups_and_a_bare_layer_has_one():
    net = nn.Sequential(OrderedDict(body=nn.Linear(4, 8), act=nn.ReLU(), head=nn.Linear(8, 3)))
    assert layer_groups(Model(net), torch.zeros(1, 4)) == ("body", "head")
    logits, features = penultimate(Model(nn.Linear(4, 3)), torch.ones(2, 4))
    assert (logits.shape, features.tolist()) == ((2, 3), [[1.0] * 4] * 2)


def test_layers_that_did_not_run_and_unknown_ones_are_errors():
    net = Reused()
    net.unused = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="layers that did not run: unused"):
        forward_with_features(Model(net), torch.zeros(1, 4), ("first", "unused"))
    with pytest.raises(ModelError, match="has no module 'secnod'"):
        forward_with_features(Model(net), torch.zeros(1, 4), ("secnod",))
    with pytest.raises(ModelError, match="empty batch"):
        find_head(Model(Reused()), torch.zeros(0, 4))


def test_half_precision_networks_give_single_precision_evidence():
    seen = forward_with_features(Model(Reused().bfloat16()), torch.randn(2, 4), ("first",))
    assert (seen.logits.dtype, seen.penultimate.dtype, seen.layers["first"].dtype) == (torch.float32,) * 3


def test_pooling_averages_space_tokens_and_windows():
    value = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert torch.equal(pool(value, 2), value.mean(dim=(2, 3)))
    tokens = torch.arange(24.0).reshape(2, 4, 3)
    assert torch.equal(pool(tokens, 2), tokens.mean(dim=1))
    assert torch.equal(pool(tokens, 2, nn.Conv1d(1, 1, 1)), tokens.mean(dim=2))
    assert torch.equal(pool(tokens.transpose(0, 1), 2), tokens.mean(dim=1))
    windows = torch.arange(96.0).reshape(8, 4, 3)
    assert torch.equal(pool(windows, 2), windows.reshape(2, 16, 3).mean(dim=1))
    square = torch.arange(12.0).reshape(2, 2, 3)
    assert torch.equal(pool(square, 2), square.mean(dim=1))
    assert torch.equal(pool(square, 2, nn.MultiheadAttention(3, 1)), square.mean(dim=0))
    assert torch.equal(pool(torch.tensor([1.0, 2.0]), 2), torch.tensor([[1.0], [2.0]]))
    with pytest.raises(ModelError, match="does not belong to 3 samples"):
        pool(torch.zeros(2, 3), 3)


def test_names_alone_give_layers_too():
    names = [name for name, _ in small_cnn(3).named_parameters()]
    assert layer_groups_by_name(names) == ("block1", "block2", "block3", "head")
    assert group_of("block1.conv.weight", ("block1", "block10")) == "block1"
    assert group_of("cls_token", ("block1",)) == "cls_token"
    assert layer_groups_by_name([]) == ()
