"""Rates: schedules, decay by layer, weight decay, class weights; each against its closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.finetune.conftest import Net
from tl_audit.finetune.plan import Training
from tl_audit.finetune.rates import balanced_weights, layer_order, layer_rates, optimiser, parameter_groups, rate_factor


def test_the_cosine_schedule_has_its_closed_form_after_warm_up():
    factors = [rate_factor(step, 12, warmup=2, schedule="cosine") for step in range(12)]
    assert factors[:2] == [1 / 3, 2 / 3]
    for step in range(2, 12):
        assert factors[step] == pytest.approx(0.5 * (1 + math.cos(math.pi * (step - 2) / 10)), abs=1e-15)


def test_linear_falls_by_equal_steps_and_constant_stays():
    assert [rate_factor(s, 4, schedule="linear") for s in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert {rate_factor(s, 4, schedule="constant") for s in range(4)} == {1.0}


def test_layers_are_in_order_and_the_head_is_last():
    layers = layer_order(Net(), ["out"])
    assert [layer[0].split(".")[0] for layer in layers] == ["first", "second", "third", "fourth", "out"]


def test_layer_decay_is_a_power_of_the_depth_below_the_topmost_moving_layer():
    layers = layer_order(Net(), ["out"])
    everything = [name for layer in layers for name in layer]
    rates = layer_rates(layers, everything, 0.1, 0.5)
    assert rates["out.weight"] == pytest.approx(0.1)
    assert rates["fourth.bias"] == pytest.approx(0.05)
    assert rates["first.0.weight"] == pytest.approx(0.1 * 0.5**4)
    part = layer_rates(layers, ["first.0.weight", "third.0.weight"], 0.1, 0.5)
    assert part == {"first.0.weight": pytest.approx(0.05), "third.0.weight": pytest.approx(0.1)}


def test_parameters_of_the_network_itself_are_its_lowest_layer():
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.ModuleList([nn.Linear(2, 2) for _ in range(4)])
            self.token = nn.Parameter(torch.zeros(2))
            self.head = nn.Linear(2, 2)

    layers = layer_order(Token(), ["head"])
    assert layers[0] == ("token",)
    assert len(layers) == 6


def test_weight_decay_spares_biases_norms_and_what_l2sp_pulls():
    net = Net()
    rates = {name: 0.1 for name, _ in net.named_parameters()}
    groups = parameter_groups(net, rates, weight_decay=0.01, pulled=["first.0.weight"])
    decayed = {id(p) for group in groups if group["weight_decay"] > 0 for p in group["params"]}
    expected = {name for name, p in net.named_parameters() if p.ndim > 1 and name != "first.0.weight"}
    assert {name for name, p in net.named_parameters() if id(p) in decayed} == expected
    assert sum(len(group["params"]) for group in groups) == len(rates)


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)])
def test_the_plan_names_the_optimiser(name: str, kind: type):
    net = nn.Linear(2, 2)
    made = optimiser(parameter_groups(net, {"weight": 0.1, "bias": 0.2}, weight_decay=0.0), Training(optimiser=name, momentum=0.8))
    assert type(made) is kind
    assert sorted(group["lr"] for group in made.param_groups) == [0.1, 0.2]
    if name == "sgd":
        assert made.param_groups[0]["momentum"] == 0.8


def test_balanced_weights_make_every_class_count_the_same():
    counts = [30, 10, 0, 20]
    weights = balanced_weights(counts)
    shares = [w * c for w, c in zip(weights, counts, strict=True)]
    assert shares[0] == pytest.approx(shares[1]) == pytest.approx(shares[3])
    assert sum(shares) == pytest.approx(60)
    assert weights[2] == 0.0
