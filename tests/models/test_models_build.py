"""Architectures by name: heads, preprocessing, settings, and what is refused."""

from __future__ import annotations

import importlib.util
import sys
import textwrap

import pytest
import torch
from torch import nn

from tl_audit.errors import ConfigError, MissingExtra, ModelError, WeightsError
from tl_audit.models import Model, as_model, build, load_model, native_classes, save_weights, swap_head, tensor_hash
from tl_audit.records.preprocessing import CategoricalColumn, NumericColumn, Preprocessing, TableEncoding

ENCODING = TableEncoding(
    numeric=(NumericColumn(name="age", mean=0, std=1, fill=0),), categorical=(CategoricalColumn(name="sex", categories=("f", "m")),)
)


def test_a_bare_network_becomes_a_model_whose_assumed_classes_are_noted():
    model = as_model(nn.Linear(3, 2), name="adapted", assume_classes=("a", "b"))
    assert (model.name, model.classes, model.facts["classes_assumed"]) == ("adapted", ("a", "b"), True)
    own = Model(nn.Linear(3, 2), classes=("x", "y"), name="mine")
    assert as_model(own, name="adapted", assume_classes=("a", "b")) is own
    assert as_model(nn.Linear(3, 2), name="base").classes is None
    with pytest.raises(ModelError, match="adapted is str, expected"):
        as_model("resnet18", name="adapted")


def test_a_torchvision_name_brings_its_own_preprocessing_and_classes():
    model = build("torchvision:squeezenet1_1")
    assert model.preprocessing == Preprocessing(
        height=224,
        width=224,
        resize=256,
        crop="center",
        interpolation="bilinear",
        antialias=True,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    assert (model.classes[0], len(model.classes), model.head) == ("tench", 1000, "classifier.1")
    assert model.facts["weights"] == "random start"
    smaller = build("torchvision:squeezenet1_1", num_classes=2, input_size=112)
    assert (smaller.preprocessing.height, smaller.preprocessing.resize, smaller.classes) == (112, 128, None)


def test_native_class_names_are_unique():
    names = native_classes("torchvision:resnet18")
    assert len(set(names)) == len(names) == 1000
    assert names[310] == "ant"
    assert native_classes("tl_audit:small_cnn") is None


def test_random_starts_follow_torchs_seed():
    torch.manual_seed(3)
    first = tensor_hash(build("tl_audit:small_cnn", num_classes=2).module)
    torch.manual_seed(3)
    assert tensor_hash(build("tl_audit:small_cnn", num_classes=2).module) == first


def test_built_in_networks_take_their_settings():
    cnn = build("tl_audit:small_cnn", num_classes=2, channels=1, widths=(4, 8), input_size=16)
    assert cnn.module.block1.conv.in_channels == 1
    assert cnn.preprocessing == Preprocessing(height=16, width=16, channels=1)
    table = build("tl_audit:mlp", num_classes=3, kind="tabular", encoding=ENCODING, hidden=(7,), dropout=0.1)
    assert table.preprocessing == ENCODING
    assert table.module.head.in_features == 7


@pytest.mark.parametrize(
    ("arch", "settings", "sentence"),
    [
        ("resnet18", {}, "has no prefix"),
        ("torchvision:resnet81", {}, 'did you mean "resnet18"'),
        ("torchvision:resnet18", {"kind": "tabular"}, "reads images"),
        ("torchvision:resnet18", {"num_classes": 0}, "at least 1"),
        ("torchvision:resnet18", {"depht": 3}, "does not take these settings: depht"),
        ("torchvision:resnet18", {"pretrained": "V9"}, 'no weights "V9"; it has: IMAGENET1K_V1'),
        ("tl_audit:big_cnn", {}, "there are"),
        ("tl_audit:small_cnn", {}, "needs the number of classes"),
        ("tl_audit:small_cnn", {"num_classes": 2, "width": 3}, "it takes: num_classes, channels, widths, dropout"),
        ("tl_audit:small_cnn", {"num_classes": 2, "kind": "tabular"}, "reads image data"),
        ("tl_audit:small_cnn", {"num_classes": 2, "pretrained": True}, "no weights of its own"),
        ("tl_audit:mlp", {"num_classes": 2, "kind": "tabular"}, "needs the encoding"),
        ("no_such_package.models:net", {}, "cannot be imported"),
        ("torch.nn:NoSuch", {}, "has no 'NoSuch'"),
        ("torch:pi", {}, "expected a function or class"),
        ("fractions:Fraction", {}, "returned Fraction"),
        ("builtins:dict", {}, "no signature"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_sentence(arch, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build(arch, **settings)


@pytest.mark.parametrize("prefix", ["timm", "hf"])
def test_other_sources_say_what_is_missing(prefix):
    package = {"timm": "timm", "hf": "transformers"}[prefix]
    with pytest.raises(ConfigError if importlib.util.find_spec(package) else MissingExtra, match=package):
        build(f"{prefix}:some-model", num_classes=2)


def test_a_factory_is_imported_by_name(tmp_path, monkeypatch):
    code = """
        from torch import nn
        def net(num_classes=2, width=3):
            return nn.Sequential(nn.Linear(4, width), nn.Linear(width, num_classes))
    """
    (tmp_path / "my_networks.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(tmp_path)
    model = build("my_networks:net", num_classes=5, width=6, kind="tabular")
    assert model.module(torch.zeros(1, 4)).shape == (1, 5)
    assert (model.arch, model.head) == ("my_networks:net", None)
    with pytest.raises(ConfigError, match="it takes: num_classes, width"):
        build("my_networks:net", num_classes=5, depth=6)
    sys.modules.pop("my_networks")


def test_a_new_head_keeps_width_bias_mode_and_dtype_and_nothing_else():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3, bias=False)).double().eval()
    body = net[0].weight.detach().clone()
    assert swap_head(net, None, 7, example=torch.zeros(1, 4)) == ("2",)
    assert (net[2].in_features, net[2].out_features, net[2].bias) == (6, 7, None)
    assert net[2].weight.dtype == torch.float64
    assert not net[2].training
    assert torch.equal(net[0].weight, body)
    assert swap_head(net, None, 2, head="0") == ("0",)
    with pytest.raises(ModelError, match="give an example batch"):
        swap_head(net, None, 2)
    with pytest.raises(ModelError, match="is ReLU, expected a linear layer"):
        swap_head(net, None, 2, head="1")


def test_a_head_that_is_not_in_the_file_has_no_class_names(tmp_path):
    source = build("tl_audit:small_cnn", num_classes=2)
    state = {k: v for k, v in source.module.state_dict().items() if not k.startswith("head")}
    save_weights(state, tmp_path / "backbone.safetensors")
    model = load_model(tmp_path / "backbone.safetensors", arch="tl_audit:small_cnn", classes=("a", "b"), declared=("head",))
    assert model.classes is None
    assert model.facts["head_reinitialised"]
    assert model.file.reinitialised == ("head.weight", "head.bias")


def test_a_file_and_an_architecture_make_a_model(tmp_path):
    source = build("tl_audit:small_cnn", num_classes=4, widths=(4, 8))
    save_weights(source.module, tmp_path / "m.safetensors")
    model = load_model(tmp_path / "m.safetensors", arch="tl_audit:small_cnn", widths=(4, 8), name="adapted", classes=("a", "b", "c", "d"))
    assert tensor_hash(model.module) == tensor_hash(source.module)
    assert (model.classes, model.name, model.head, model.file.format) == (("a", "b", "c", "d"), "adapted", "head", "safetensors")
    unnamed = load_model(tmp_path / "m.safetensors", arch="tl_audit:small_cnn", widths=(4, 8))
    assert (unnamed.module.head.out_features, unnamed.classes) == (4, None)
    with pytest.raises(WeightsError, match="does not fit the model"):
        load_model(tmp_path / "m.safetensors", arch="tl_audit:small_cnn", widths=(4, 8), classes=("a", "b"))
    with pytest.raises(ConfigError, match="2 class names and num_classes = 4"):
        load_model(tmp_path / "m.safetensors", arch="tl_audit:small_cnn", classes=("a", "b"), num_classes=4)
    with pytest.raises(WeightsError, match="number of classes"):
        load_model(tmp_path / "m.safetensors", arch="torch.nn:Linear")
