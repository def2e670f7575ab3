"""Plans: TOML round trip, precise refusals, hashes."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from tl_audit.errors import ConfigError
from tl_audit.finetune import Augment, Classification, DataPlan, Plan, Provenance, Stage, Training

FULL = Plan(
    base="torchvision:squeezenet1_1",
    weights="backbone.safetensors",
    kind="image",
    seed=7,
    controls=("head", "scratch"),
    input_size=64,
    settings={"dropout": 0.1},
    task=Classification(["ants", 'be"es\n'], class_weights={"ants": 2.0, 'be"es\n': 1e-05}, label_smoothing=0.1, positive="ants"),
    stages=[Stage("head", epochs=3, lr=1e-3), Stage(["features.1[0-2]*", "head"], epochs=2, lr=1e-4, layer_decay=0.8, warmup=0.5)],
    data=DataPlan(
        train="data/train",
        validation=0.2,
        groups=["sex", {"column": "age", "bins": [45, 55]}],
        label_map={"0": "ants", "1": 'be"es\n'},
        cluster="patient",
    ),
    training=Training(
        optimiser="sgd", early_stop=3, augment=["RandomHorizontalFlip", {"name": "RandomRotation", "degrees": 10}], l2sp=0.01, dropout=0.2
    ),
    provenance=Provenance(base_licence="BSD-3-Clause"),
)

LEAST = """
base = "tl_audit:small_cnn"
[[stages]]
layers = "head"
epochs = 1
lr = 1e-3
"""


def test_a_plan_written_as_toml_reads_back_equal_with_an_equal_hash():
    again = Plan.from_text(FULL.to_toml())
    assert again == FULL
    assert again.sha256 == FULL.sha256


def test_the_plan_of_the_design_reads(tmp_path: Path):
    text = """
base = "torchvision:squeezenet1_1" # a comment
weights = "backbone.safetensors"
kind = "image"
seed = 0
controls = ["head", "scratch"]
[data]
train = "data/train"
validation = 0.2
[task]
class_weights = "balanced"
[training]
early_stop = 3
[[stages]]
layers = "head"
epochs = 3
lr = 1e-3
[[stages]]
layers = "features.1[0-2]*"
epochs = 3
lr = 1e-4
layer_decay = 0.8
"""
    (tmp_path / "plan.toml").write_text(text)
    plan = Plan.from_toml(tmp_path / "plan.toml")
    assert [stage.layers for stage in plan.stages] == [("head",), ("features.1[0-2]*",)]
    assert plan.epochs == 6
    assert plan.path("data/train") == tmp_path / "data/train"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LEAST.replace("lr =", "rate ="), r"stage 1.*no key 'rate'"),
        (LEAST.replace("epochs", "epoch"), r"no key 'epoch': did you mean 'epochs'"),
        (LEAST + "[training]\noptimizer = 'sgd'", r"\[training\] has no key 'optimizer': did you mean 'optimiser'"),
        (LEAST + "[training]\nsampler = 'balanced'", r"it belongs in \[task\]"),
        (LEAST + "[task]\nlabel_smooting = 0.1", r"did you mean 'label_smoothing'"),
        (LEAST + "[data]\ngroup = ['sex']", r"\[data\] has no key 'group': did you mean 'groups'"),
        (LEAST + "[provenance]\nbase_license = 'MIT'", r"did you mean 'base_licence'"),
        ("sed = 3\n" + LEAST, r"plan has no key 'sed': did you mean 'seed'"),
        (LEAST + "[lora]\nr = 8", r"later version"),
        (LEAST.replace("1e-3", "-1"), r"stage 1: \[\[stages\]\]: lr: .*greater than 0.*-1"),
        (LEAST.replace("lr = 1e-3", ""), r"stage 1: \[\[stages\]\] needs lr"),
        (LEAST.replace("epochs = 1", "epochs = 0"), r"epochs"),
        ("base = 'tl_audit:mlp'", r"'stages' is missing"),
        (LEAST.replace("tl_audit:small_cnn", "resnet18"), r"base: expected 'torchvision:NAME'"),
        ("base = 'run:x'\nweights = 'w'\n" + LEAST.split("\n", 2)[2], r"a run brings its own weights"),
        (LEAST + "[data]\nvalidation = 1.5", r"a share lies between 0 and 1"),
        (LEAST + "[task]\nclasses = ['a', 'a']", r"different class names"),
        (LEAST + "[task]\nclass_weights = 'balanced'\nsampler = 'balanced'", r"choose one"),
        ("base = ", r"is not TOML"),
    ],
)
def test_a_wrong_plan_is_refused_in_one_precise_sentence(text: str, says: str):
    with pytest.raises(ConfigError, match=says):
        Plan.from_text(text)


def test_a_plan_that_is_not_there_names_its_path(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read"):
        Plan.from_toml(tmp_path / "nowhere.toml")


def test_python_calls_with_misspelt_names_are_refused_alike():
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        Stage("head", epoch=3)
    with pytest.raises(ConfigError, match="did you mean 'class_weights'"):
        Classification(["a", "b"], class_weight="balanced")


def test_the_hash_follows_every_field_that_decides():
    one = Plan(base="tl_audit:small_cnn", stages=[Stage("head", epochs=1, lr=1e-3)])
    assert one.sha256 == Plan(base="tl_audit:small_cnn", stages=[Stage(["head"], epochs=1, lr=1e-3)]).sha256
    for change in (
        {"seed": 1},
        {"training": Training(l2sp=0.1)},
        {"stages": (Stage("head", epochs=2, lr=1e-3),)},
        {"task": Classification(["a", "b"])},
    ):
        assert one.model_copy(update=change).sha256 != one.sha256


def test_a_live_base_is_named_by_its_class_and_takes_no_weights():
    plan = Plan(base=nn.Linear(2, 2), stages=[Stage("head")])
    assert "live:torch.nn" in plan.to_toml()
    with pytest.raises(ConfigError, match="live module"):
        Plan(base=nn.Linear(2, 2), weights="x", stages=[Stage("head")])
    with pytest.raises(ConfigError, match="got int"):
        Plan(base=3, stages=[Stage("head")])


def test_augmentations_may_be_names_or_tables():
    given = Training(
        augment=["RandomHorizontalFlip", Augment("RandomRotation", args={"degrees": 10}), {"name": "ColorJitter", "brightness": 0.2}]
    )
    assert [(a.name, dict(a.args)) for a in given.augment] == [
        ("RandomHorizontalFlip", {}),
        ("RandomRotation", {"degrees": 10}),
        ("ColorJitter", {"brightness": 0.2}),
    ]
