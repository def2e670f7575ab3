"""adapt(): what moves and what does not, options with an effect, controls, resume, records. HARDENING.md §4 row by row."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tl_audit as ta
from tests.finetune.conftest import Net, pictures, plan_for, quick
from tl_audit.errors import ConfigError, DataError, Interrupted, ModelError, WeightsError
from tl_audit.finetune import DataPlan, Training
from tl_audit.models import tensor_hash

HELD = DataPlan(validation=0.25)


def state(model: ta.Model) -> dict[str, torch.Tensor]:
    return dict(model.module.state_dict())


# What is frozen stays bit-equal (L1) ------------------------------------------------------------------------------------------


def test_a_head_only_run_leaves_every_other_tensor_bit_equal_batch_norm_included(net: ta.Model, domain: ta.Domain):
    made = quick(plan_for(net, ta.Stage("head", epochs=2, lr=0.05)), domain)
    base, adapted = state(made.base), state(made.model)
    changed = [
        name for name in base if name in adapted and base[name].shape == adapted[name].shape and not torch.equal(base[name], adapted[name])
    ]
    assert changed == []
    assert made.record.method == "head"
    assert set(made.record.frozen) == {name for name in adapted if not name.startswith("out.")}
    assert made.record.trainable_share == pytest.approx((6 * 3 + 3) / sum(p.numel() for p in made.model.module.parameters()))


def test_a_partial_run_moves_exactly_what_its_patterns_name(net: ta.Model, domain: ta.Domain):
    made = quick(plan_for(net, ta.Stage(["third", "head"], epochs=1, lr=0.05)), domain)
    base, adapted = state(made.base), state(made.model)
    moved = {name for name in base if base[name].shape == adapted[name].shape and not torch.equal(base[name], adapted[name])}
    assert moved == {name for name in adapted if name.startswith("third.")}
    assert made.record.method == "partial"


def test_the_base_that_was_given_is_never_changed(net: ta.Model, domain: ta.Domain):
    net.module.train()
    net.module.first[0].weight.requires_grad_(False)
    before, modes = tensor_hash(net.module), [m.training for m in net.module.modules()]
    made = quick(plan_for(net, ta.Stage("*", epochs=1, lr=0.05)), domain)
    assert tensor_hash(net.module) == before
    assert [m.training for m in net.module.modules()] == modes
    assert not net.module.first[0].weight.requires_grad
    assert all(p.grad is None for p in net.module.parameters())
    assert made.base.module is not net.module
    assert tensor_hash(made.base.module) == before
    assert not made.model.module.training


def test_a_network_that_writes_its_own_frozen_weights_is_caught(domain: ta.Domain):
    class Sneaky(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.first[0].bias.data += 1e-3
            return super().forward(x)

    from tl_audit.records.preprocessing import Preprocessing

    model = ta.Model(Sneaky(), preprocessing=Preprocessing(height=8, width=8), head="out")
    with pytest.raises(ModelError, match=r"1 frozen tensors moved \(first\.0\.bias\)"):
        quick(plan_for(model), domain)


# Stages (L2) ------------------------------------------------------------------------------------------------------------------

TWO = (ta.Stage("head", epochs=2, lr=0.05), ta.Stage(["third", "head"], epochs=2, lr=0.02))


def test_stages_are_successive_fits_each_from_the_last_ones_weights(net: ta.Model, domain: ta.Domain):
    both = quick(plan_for(net, *TWO), domain)
    first = quick(plan_for(net, TWO[0]), domain)
    assert [len(s.history) for s in both.record.stages] == [2, 2]
    assert both.record.stages[0].history == first.record.stages[0].history
    still = quick(plan_for(net, TWO[0], ta.Stage("out", epochs=1, lr=1e-30)), domain)
    assert still.record.adapted_tensors_sha256 == first.record.adapted_tensors_sha256
    assert set(both.record.stages[1].trainable) >= {"third.0.weight", "out.weight"}


def test_a_run_killed_in_its_second_stage_resumes_to_the_same_weights(net: ta.Model, domain: ta.Domain, tmp_path: Path, monkeypatch):
    plan = plan_for(net, *TWO, data=HELD)
    whole = quick(plan, domain, out=tmp_path / "whole")

    from tl_audit.finetune import engine

    fits = []
    real = engine.fit

    def dies(*args: object, **more: object):
        fits.append(more["what"])
        if len(fits) == 2:
            raise KeyboardInterrupt
        return real(*args, **more)

    monkeypatch.setattr(engine, "fit", dies)
    with pytest.raises(KeyboardInterrupt):
        quick(plan, domain, out=tmp_path / "killed")
    assert not (tmp_path / "killed" / "manifest.json").exists()
    assert (tmp_path / "killed" / ".partial" / "adapted-1.safetensors").exists()
    fits.clear()
    monkeypatch.setattr(engine, "fit", lambda *args, **more: (fits.append(more["what"]), real(*args, **more))[1])
    resumed = quick(plan, domain, out=tmp_path / "killed")
    assert len(fits) == 1
    assert resumed.record.adapted_tensors_sha256 == whole.record.adapted_tensors_sha256
    assert [s.trainable for s in resumed.record.stages] == [s.trainable for s in whole.record.stages]
    assert [s.history for s in resumed.record.stages] == [s.history for s in whole.record.stages]


@pytest.mark.parametrize("change", ["plan", "data", "damage"])
def test_a_stage_of_another_plan_other_data_or_a_damaged_one_is_trained_anew(net, domain, tmp_path: Path, monkeypatch, change: str):
    from tl_audit.finetune import engine

    real, calls = engine.fit, []

    def counting(*args: object, **more: object):
        calls.append(more["what"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **more)

    monkeypatch.setattr(engine, "fit", counting)
    plan = plan_for(net, *TWO)
    with pytest.raises(KeyboardInterrupt):
        quick(plan, domain, out=tmp_path / "run")
    calls[:] = ["", ""]
    if change == "plan":
        plan = plan.model_copy(update={"seed": 5})
    elif change == "data":
        images, labels = pictures(seed=9)
        domain = ta.Domain("other", images, labels=labels, kind="image")
    else:
        path = tmp_path / "run" / ".partial" / "adapted-1.safetensors"
        path.write_bytes(path.read_bytes()[:-8])
    quick(plan, domain, out=tmp_path / "run")
    assert len(calls) == 4


def test_ctrl_c_finishes_the_batch_and_keeps_what_is_done(net: ta.Model, domain: ta.Domain, tmp_path: Path, request: pytest.FixtureRequest):
    import os
    import signal

    lines = []

    def say(text: str) -> None:
        lines.append(text)
        if text.startswith("stage 2/2") and "epoch 1/" in text:
            os.kill(os.getpid(), signal.SIGINT)

    # a process started in the background ignores SIGINT, and so would the engine
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, inherited))
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as stopped:
        ta.adapt(plan_for(net, *TWO), domain, out=tmp_path / "run", progress=say)
    assert stopped.value.exit_code == 130
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert (tmp_path / "run" / ".partial" / "adapted-1.json").exists()


def test_an_interrupt_inside_the_trainer_is_interrupted_and_not_exit_code_one(net: ta.Model, domain: ta.Domain):
    import signal

    def say(text: str) -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted):
        ta.adapt(plan_for(net), domain, progress=say)
    assert signal.getsignal(signal.SIGINT) == before


# Seeds ------------------------------------------------------------------------------------------------------------------------


def test_two_runs_of_one_seed_have_the_same_weights_and_another_seed_has_others(net: ta.Model, domain: ta.Domain):
    plan = plan_for(
        net, ta.Stage("*", epochs=2, lr=0.02), data=HELD, training=Training(augment=["RandomHorizontalFlip"], dropout=0.4, batch_size=7)
    )
    torch.manual_seed(1)
    one = quick(plan, domain)
    torch.manual_seed(2)
    torch.rand(5)
    two = quick(plan, domain)
    three = quick(plan.model_copy(update={"seed": 1}), domain)
    assert one.record.adapted_tensors_sha256 == two.record.adapted_tensors_sha256
    assert one.record.stages[0].history == two.record.stages[0].history
    assert three.record.adapted_tensors_sha256 != one.record.adapted_tensors_sha256


def test_the_callers_random_state_flags_and_threads_come_back(net: ta.Model, domain: ta.Domain):
    torch.manual_seed(11)
    before = (
        torch.random.get_rng_state(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002 - the global state is what is watched
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
    )
    quick(plan_for(net, ta.Stage("*", epochs=1, lr=0.02)), domain, controls=("scratch",))
    after = (
        torch.random.get_rng_state(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002 - the global state is what is watched
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
    )
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


# Options ----------------------------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 3, bias=False)
        self.out = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.body(x))


@pytest.fixture
def points() -> tuple[ta.Model, ta.Domain, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x, y = torch.randn(8, 2), torch.tensor([0, 1, 0, 0, 0, 1, 0, 0])
    domain = ta.Domain("points", x, labels=["ab"[i] for i in y], kind="tensor")
    return ta.Model(Linear(), head="out", classes=("a", "b")), domain, x, y


def first_loss(points: tuple, **task: object) -> float:
    model, domain, _, _ = points
    plan = plan_for(
        model,
        ta.Stage("*", epochs=1, lr=1e-9),
        task=ta.Classification(["a", "b"], head="keep", **task),
        training=Training(batch_size=8, optimiser="sgd", weight_decay=0),
    )
    return quick(plan, domain).record.stages[0].history[0]["train_loss"]


def test_the_loss_is_cross_entropy_with_its_closed_form_under_smoothing_and_weights(points):
    model, _, x, y = points
    logp = F.log_softmax(model.module(x), dim=1).detach().double().numpy()
    plain = -np.mean([logp[i, y[i]] for i in range(8)])
    assert first_loss(points) == pytest.approx(plain, rel=1e-5)
    smooth = -np.mean([0.9 * logp[i, y[i]] + 0.1 * logp[i].mean() for i in range(8)])
    assert first_loss(points, label_smoothing=0.1) == pytest.approx(smooth, rel=1e-5)
    w = np.array([8 / (2 * 6), 8 / (2 * 2)])
    weighted = -sum(w[y[i]] * logp[i, y[i]] for i in range(8)) / sum(w[y[i]] for i in range(8))
    assert first_loss(points, class_weights="balanced") == pytest.approx(weighted, rel=1e-5)
    assert first_loss(points, class_weights={"a": w[0], "b": w[1]}) == pytest.approx(weighted, rel=1e-5)


def test_one_plain_step_is_the_rate_times_the_gradient(points):
    model, domain, x, y = points
    plan = plan_for(
        model,
        ta.Stage("*", epochs=1, lr=0.5),
        task=ta.Classification(["a", "b"], head="keep"),
        training=Training(batch_size=8, optimiser="sgd", momentum=0.0, weight_decay=0, schedule="constant"),
    )
    made = quick(plan, domain)
    F.cross_entropy(model.module(x), y).backward()
    for name, parameter in model.module.named_parameters():
        assert torch.allclose(state(made.model)[name], parameter.detach() - 0.5 * parameter.grad, atol=1e-6)


def test_gradient_clipping_bounds_the_step(points):
    model, domain, _, _ = points
    training = Training(batch_size=8, optimiser="sgd", momentum=0.0, weight_decay=0, schedule="constant", gradient_clip=1e-3)
    made = quick(
        plan_for(model, ta.Stage("*", epochs=1, lr=1.0), task=ta.Classification(["a", "b"], head="keep"), training=training), domain
    )
    moved = math.sqrt(sum(float((state(made.model)[n] - p.detach()).square().sum()) for n, p in model.module.named_parameters()))
    assert moved == pytest.approx(1e-3, rel=1e-2)


def test_l2sp_pulls_to_the_base(net: ta.Model, domain: ta.Domain):
    def distance(weight: float) -> float:
        made = quick(plan_for(net, ta.Stage("*", epochs=5, lr=0.05), training=Training(l2sp=weight, optimiser="sgd")), domain)
        base, adapted = state(made.base), state(made.model)
        return sum(float((base[n] - adapted[n]).square().sum()) for n, _ in made.base.module.named_parameters() if not n.startswith("out."))

    free, pulled = distance(0.0), distance(10.0)
    assert pulled < 0.5 * free


def test_the_l2sp_penalty_has_its_closed_form():
    from tl_audit.finetune.engine import l2sp_penalty

    pairs = [(torch.tensor([1.0, 2.0]), torch.zeros(2)), (torch.tensor([[3.0]]), torch.tensor([[1.0]]))]
    assert float(l2sp_penalty(pairs, 0.5)) == pytest.approx(0.5 * 0.5 * (1 + 4 + 4))


def test_layer_decay_slows_the_lower_layers(net: ta.Model, domain: ta.Domain):
    def moved(decay: float | None) -> float:
        made = quick(plan_for(net, ta.Stage("*", epochs=1, lr=0.01, layer_decay=decay)), domain)
        return float((state(made.base)["first.0.weight"] - state(made.model)["first.0.weight"]).norm())

    assert moved(0.1) < 0.01 * moved(None)


@pytest.mark.parametrize(
    "training",
    [
        {"augment": ["RandomVerticalFlip", "RandomHorizontalFlip"]},
        {"dropout": 0.6},
        {"weight_decay": 0.5},
        {"optimiser": "adam"},
        {"schedule": "constant"},
        {"warmup": 1.0},
        {"batch_size": 5},
        {"precision": "bfloat16"},
    ],
    ids=lambda t: next(iter(t)),
)
def test_every_training_option_has_an_effect(net: ta.Model, domain: ta.Domain, training: dict):
    stage = ta.Stage("*", epochs=2, lr=0.02)
    plain = quick(plan_for(net, stage), domain)
    other = quick(plan_for(net, stage, training=Training(**training)), domain)
    assert plain.record.adapted_tensors_sha256 != other.record.adapted_tensors_sha256
    assert all(p.dtype == torch.float32 for p in other.model.module.parameters())


def test_the_balanced_sampler_has_an_effect(net: ta.Model):
    images, labels = pictures(40, 2)
    domain = ta.Domain("rare", images[:25], labels=[*labels[:10], *["a"] * 15], kind="image")
    task = {"task": ta.Classification(["a", "b"], sampler="balanced")}
    one, two = quick(plan_for(net), domain), quick(plan_for(net, **task), domain)
    assert one.record.adapted_tensors_sha256 != two.record.adapted_tensors_sha256


def test_dropout_without_a_dropout_module_is_refused(points):
    model, domain, _, _ = points
    with pytest.raises(ConfigError, match="no dropout module"):
        quick(plan_for(model, training=Training(dropout=0.5)), domain)


def test_early_stopping_keeps_the_best_epoch_and_says_so(net: ta.Model, domain: ta.Domain):
    made = quick(plan_for(net, ta.Stage("*", epochs=30, lr=0.3), data=HELD, training=Training(early_stop=2, schedule="constant")), domain)
    stage = made.record.stages[0]
    losses = [row["val_loss"] for row in stage.history]
    assert stage.stopped_early
    assert len(losses) < 30
    assert stage.best_epoch == int(np.argmin(losses)) + 1
    assert len(losses) == stage.best_epoch + 2
    assert made.validation is not None
    x = made.validation.samples.modality.encode(made.validation.samples.read(np.arange(len(made.validation))), made.model.preprocessing)
    y = torch.tensor([made.model.classes.index(label) for label in made.validation.labels])
    with torch.no_grad():
        assert float(F.cross_entropy(made.model.module(x), y)) == pytest.approx(min(losses), rel=1e-4)


def test_early_stopping_without_validation_is_refused(net: ta.Model, domain: ta.Domain):
    with pytest.raises(ConfigError, match="early_stop needs validation"):
        quick(plan_for(net, training=Training(early_stop=2)), domain)


def test_a_diverging_loss_is_an_error_and_not_a_model(net: ta.Model, domain: ta.Domain):
    with pytest.raises(ModelError, match=r"not finite: lower lr"):
        quick(plan_for(net, ta.Stage("*", epochs=3, lr=1e30), training=Training(optimiser="sgd", momentum=0.9)), domain)


# Bases ------------------------------------------------------------------------------------------------------------------------


def test_the_base_keeps_its_own_head_and_names(net: ta.Model, domain: ta.Domain):
    named = replace(net, classes=("v", "w", "x", "y", "z"))
    made = quick(plan_for(named), domain)
    assert made.base.classes == ("v", "w", "x", "y", "z")
    assert made.base.module.out.out_features == 5
    assert made.model.classes == ("a", "b", "c")
    assert made.model.module.out.out_features == 3
    assert {(c.name, c.change) for c in made.record.architecture_changes} == {("out.weight", "reshaped"), ("out.bias", "reshaped")}


def test_a_new_head_replaces_one_of_equal_width_and_is_listed(domain: ta.Domain):
    made = quick(plan_for("tl_audit:small_cnn", settings={"widths": [4, 6]}), domain)
    assert {c.name for c in made.record.architecture_changes} == {"head.weight", "head.bias"}
    assert not torch.equal(state(made.base)["head.weight"], state(made.model)["head.weight"])


def test_a_kept_head_needs_equal_names_and_writes_in_the_bases_order(net: ta.Model, domain: ta.Domain):
    from tl_audit.records.preprocessing import Preprocessing

    torch.manual_seed(0)
    base = ta.Model(Net(3), classes=("c", "a", "b"), preprocessing=Preprocessing(height=8, width=8), head="out")
    plan = plan_for(base, ta.Stage("*", epochs=15, lr=0.02), task=ta.Classification(head="keep"))
    made = quick(plan, domain)
    assert made.model.classes == ("c", "a", "b")
    assert made.record.class_source == "base"
    assert made.record.architecture_changes == ()
    x = domain.samples.modality.encode(domain.samples.read(np.arange(48)), made.model.preprocessing)
    with torch.no_grad():
        said = [made.model.classes[i] for i in made.model.module(x).argmax(1)]
    assert np.mean([s == t for s, t in zip(said, domain.labels, strict=True)]) > 0.6
    with pytest.raises(ConfigError, match="equal class names"):
        quick(plan_for(net, task=ta.Classification(head="keep")), domain)


def test_a_base_with_weights_that_are_not_finite_is_refused_with_names(net: ta.Model, domain: ta.Domain):
    net.module.first[1].running_var[2] = float("inf")
    with pytest.raises(WeightsError, match=r"first\.1\.running_var \(1\)"):
        quick(plan_for(net), domain)


def test_a_new_head_that_no_stage_trains_is_refused(net: ta.Model, domain: ta.Domain):
    with pytest.raises(ConfigError, match="no stage trains the new head"):
        quick(plan_for(net, ta.Stage("third", epochs=1, lr=0.1)), domain)


def test_a_wrong_pattern_in_a_later_stage_is_found_before_training(net: ta.Model, domain: ta.Domain):
    with pytest.raises(ConfigError, match=r"stage 2: layers 'fifth' matches no module.*fourth"):
        quick(plan_for(net, ta.Stage("head", epochs=10_000, lr=0.1), ta.Stage("fifth", epochs=1, lr=0.1)), domain)


def test_fetching_is_refused_offline(domain: ta.Domain):
    with pytest.raises(ConfigError, match="--offline forbids"):
        quick(plan_for("torchvision:resnet18", weights="default"), domain, offline=True)


def test_a_random_start_is_said(domain: ta.Domain):
    made = quick(plan_for("tl_audit:small_cnn", ta.Stage("*", epochs=1, lr=0.01), settings={"widths": [4, 6]}), domain)
    assert made.record.base_origin == "random start"
    assert made.record.base_format == "built-in"
    assert made.record.method == "scratch"
    assert made.base.classes is None
    assert any("starts at random" in note for note in made.record.notes)


def test_weights_come_from_a_file_whose_hash_and_format_are_recorded(domain: ta.Domain, tmp_path: Path):
    from tl_audit.models import build, file_sha256, save_weights

    torch.manual_seed(0)
    start = build("tl_audit:small_cnn", num_classes=7, widths=[4, 6]).module
    save_weights(start, tmp_path / "w.safetensors")
    plan = plan_for("tl_audit:small_cnn", weights=str(tmp_path / "w.safetensors"), settings={"widths": [4, 6]})
    made = quick(plan, domain)
    assert made.record.base_sha256 == file_sha256(tmp_path / "w.safetensors")
    assert made.record.base_format == "safetensors"
    assert made.record.base_tensors_sha256 == tensor_hash(start)
    assert made.base.module.head.out_features == 7
    assert made.model.module.head.out_features == 3


def test_a_file_without_a_classifier_gives_a_base_without_classes(domain: ta.Domain, tmp_path: Path):
    from tl_audit.models import build, save_weights

    body = {
        n: t for n, t in build("tl_audit:small_cnn", num_classes=7, widths=[4, 6]).module.state_dict().items() if not n.startswith("head")
    }
    save_weights(body, tmp_path / "body.safetensors")
    plan = plan_for("tl_audit:small_cnn", weights=str(tmp_path / "body.safetensors"), settings={"widths": [4, 6]})
    made = quick(plan, domain)
    assert made.base.classes is None
    assert made.base.facts["headless"]
    assert any("features only" in note for note in made.record.notes)


def test_both_heads_of_inception_train(domain: ta.Domain):
    from torchvision.models import Inception3

    from tl_audit.records.preprocessing import Preprocessing

    torch.manual_seed(0)
    base = ta.Model(Inception3(num_classes=4, init_weights=False), preprocessing=Preprocessing(height=75, width=75))
    images, labels = pictures(6, 2)
    few = ta.Domain("few", images, labels=labels, kind="image")
    from tl_audit.finetune.base import copy_with_head, open_base
    from tl_audit.finetune.choose import choose

    opened = open_base(plan_for(base), kind="image", classes=2, encoding=None, offline=True)
    model, _ = copy_with_head(opened, classes=("a", "b"), keep=False, example=torch.zeros(2, 3, 75, 75), seed=0, spec=base.preprocessing)
    heads = model.facts["heads"]
    assert heads == ["fc", "AuxLogits.fc"]
    assert set(choose(model.module, ["head"], heads).trainable) == {"fc.weight", "fc.bias", "AuxLogits.fc.weight", "AuxLogits.fc.bias"}

    class Aux(nn.Module):
        """The form of Inception's outputs on a small body."""

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(192, 4)
            self.aux = nn.Linear(4, 2)
            self.fc = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor):
            from torchvision.models.inception import InceptionOutputs

            h = self.body(x.flatten(1))
            return InceptionOutputs(self.fc(h), self.aux(h)) if self.training else self.fc(h)

    small = ta.Model(Aux(), preprocessing=Preprocessing(height=8, width=8), head="fc")
    made = quick(plan_for(small, ta.Stage(["aux", "head"], epochs=1, lr=0.1)), few)
    assert not torch.equal(state(made.base)["aux.weight"], state(made.model)["aux.weight"])


# Controls ---------------------------------------------------------------------------------------------------------------------


def test_controls_have_the_epochs_of_all_stages_and_the_rates_of_the_design(net: ta.Model, domain: ta.Domain):
    made = quick(plan_for(net, *TWO, data=HELD), domain, controls=("head", "scratch"))
    records = {control.kind: control for control in made.record.controls}
    assert [records[k].epochs for k in ("head", "scratch")] == [4, 4]
    assert records["head"].lr == 0.05
    assert records["scratch"].lr == 0.05
    assert made.same_as_adapted == ()
    head, base = state(made.controls["head"]), state(made.base)
    assert all(torch.equal(head[n], base[n]) for n in base if not n.startswith("out."))
    scratch = state(made.controls["scratch"])
    assert not torch.equal(scratch["first.0.weight"], base["first.0.weight"])
    assert all(model.classes == made.model.classes for model in made.controls.values())


def test_controls_see_the_same_batches_as_the_adapted_model(net: ta.Model, domain: ta.Domain):
    head_first = plan_for(net, ta.Stage("head", epochs=2, lr=0.05), ta.Stage("*", epochs=1, lr=0.01))
    made = quick(head_first, domain, controls=("head",))
    # in the first stage both do the same thing but for the schedule, which is longer for the control
    constant = quick(head_first.model_copy(update={"training": Training(schedule="constant")}), domain, controls=("head",))
    assert constant.record.controls[0].history[:2] == constant.record.stages[0].history
    assert made.record.controls[0].history[0]["train_loss"] != made.record.controls[0].history[2]["train_loss"]


def test_a_head_only_plan_has_no_head_control_of_its_own(net: ta.Model, domain: ta.Domain):
    made = quick(plan_for(net), domain, controls=("head", "scratch"))
    assert made.same_as_adapted == ("head",)
    assert set(made.controls) == {"scratch"}
    assert [c.same_as for c in made.record.controls if c.kind == "head"] == ["adapted"]


def test_an_unknown_control_is_refused(net: ta.Model, domain: ta.Domain):
    with pytest.raises(ConfigError, match="no control 'full'"):
        quick(plan_for(net), domain, controls=("full",))


def test_a_scratch_control_of_a_network_that_cannot_be_drawn_anew_is_refused(domain: ta.Domain):
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(192))
            self.out = nn.Linear(192, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(x.flatten(1) * self.scale)

    from tl_audit.records.preprocessing import Preprocessing

    model = ta.Model(Own(), preprocessing=Preprocessing(height=8, width=8), head="out")
    with pytest.raises(ConfigError, match=r"Own has no reset_parameters"):
        quick(plan_for(model), domain, controls=("scratch",))


# Data -------------------------------------------------------------------------------------------------------------------------


def test_data_without_labels_or_with_one_class_is_refused(net: ta.Model):
    images, _ = pictures()
    with pytest.raises(DataError, match="no labels"):
        quick(plan_for(net), ta.Domain("bare", images, kind="image"))
    with pytest.raises(DataError, match="at least two"):
        quick(plan_for(net), ta.Domain("one", images, labels=["a"] * 48, kind="image"))


def test_a_plan_without_data_says_what_to_give(net: ta.Model):
    with pytest.raises(ConfigError, match=r"give \[data\] train"):
        ta.adapt(plan_for(net))


def test_the_same_content_on_both_sides_of_the_split_is_said(net: ta.Model):
    images, labels = pictures()
    domain = ta.Domain("doubled", np.concatenate([images, images]), labels=labels * 2, kind="image")
    made = quick(plan_for(net, data=HELD), domain)
    assert any("same content in train and validation" in note for note in made.record.notes)


# Compute and records ------------------------------------------------------------------------------------------------------------


def test_flops_have_their_closed_form_for_linear_layers(points):
    from tl_audit.finetune.choose import choose
    from tl_audit.finetune.flops import forward_flops, training_flops

    module = points[0].module
    x = torch.randn(4, 2)
    assert forward_flops(module, x) == 2 * (2 * 3 + 3 * 2)
    head_only = training_flops(module, choose(module, ["head"], ["out"]), x)
    everything = training_flops(module, choose(module, ["*"], ["out"]), x)
    assert head_only == 24 + 12  # all forward, weight gradient of the head
    assert everything == 24 + 12 + 12 + 12  # and the gradient of the head's input, the weight gradient of the body


def test_the_record_holds_what_the_lineage_check_asks_for(net: ta.Model, domain: ta.Domain, tmp_path: Path):
    from tl_audit.finetune import Provenance

    plan = plan_for(net, *TWO, data=HELD, provenance=Provenance(base_revision="r1", base_licence="MIT"))
    record = quick(plan, domain, out=tmp_path / "run").record
    assert record.plan_sha256 == plan.sha256
    assert (record.base_revision, record.base_licence) == ("r1", "MIT")
    assert record.setting == "inductive"
    assert record.train.n == 36
    assert record.validation.n == 12
    assert record.classes == ("a", "b", "c")
    assert record.seeds == {"plan": 0}
    assert record.versions["torch"] == torch.__version__.split("+")[0]
    assert record.device.startswith("cpu")
    assert record.started <= record.ended
    assert record.seconds > 0
    assert record.peak_memory_bytes > 0
    assert record.flops["adaptation"] > record.flops["forward_per_sample"] > 0
    assert [set(row) for row in record.stages[0].history] == [{"epoch", "train_loss", "val_loss", "val_accuracy", "lr"}] * 2
    assert json.loads((tmp_path / "run" / "adaptation.json").read_text())["adapted_sha256"] == record.adapted_sha256


# Silence ------------------------------------------------------------------------------------------------------------------------


def test_training_says_one_line_per_epoch_and_nothing_else(net, domain, capfd, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ta.adapt(plan_for(net, ta.Stage("head", epochs=3, lr=0.01), data=HELD), domain, progress="lines")
    out, err = capfd.readouterr()
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 3
    assert all("left" in line and "epoch" in line for line in lines)
    assert list(tmp_path.iterdir()) == []
