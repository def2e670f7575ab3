"""Patterns: what moves, what is frozen, what stays in eval()."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.finetune.conftest import Net
from tl_audit.errors import ConfigError
from tl_audit.finetune.choose import choose, freeze, set_modes


def test_the_head_word_selects_the_head_alone_whatever_it_is_called():
    choice = choose(Net(), ["head"], ["out"])
    assert choice.trainable == ("out.weight", "out.bias")
    assert "first.1.running_mean" in choice.frozen
    assert "plain.running_var" in choice.frozen
    assert not any(name.startswith("out") for name in choice.frozen)


def test_a_pattern_that_names_a_module_selects_everything_below_it():
    assert choose(Net(), ["second"], ["out"]).trainable == ("second.0.weight", "second.0.bias", "second.1.weight", "second.1.bias")
    assert choose(Net(), ["second.*"], ["out"]).trainable == choose(Net(), ["second"], ["out"]).trainable
    assert set(choose(Net(), ["[fs]*"], ["out"]).trainable) == {
        name for name, _ in Net().named_parameters() if name.startswith(("first", "second", "fourth"))
    }


def test_everything_moves_under_a_star_and_nothing_is_frozen():
    choice = choose(Net(), ["*"], ["out"])
    assert len(choice.trainable) == len(list(Net().parameters()))
    assert choice.frozen == ()
    assert choice.evaluated == ()


def test_parameters_can_be_named_too():
    assert all(name.endswith(".bias") for name in choose(Net(), ["*.bias"], ["out"]).trainable)


def test_a_pattern_that_matches_nothing_lists_close_names():
    with pytest.raises(ConfigError, match=r"'secnd\.\*' matches no module.*second"):
        choose(Net(), ["secnd.*"], ["out"])


def test_a_pattern_that_holds_no_parameters_is_refused():
    with pytest.raises(ConfigError, match="no parameters"):
        choose(Net(), ["drop"], ["out"])


def test_frozen_batch_norm_and_the_dropout_of_frozen_blocks_are_in_eval_mode_and_the_rest_trains():
    net = Net()
    set_modes(net, choose(net, ["third", "head"], ["out"]))
    modes = {name: module.training for name, module in net.named_modules()}
    assert not modes["first.1"]
    assert not modes["plain"]
    assert not modes["second.3"]
    assert modes["third.1"]
    assert modes["drop"]
    assert modes["out"]
    assert modes[""]


def test_batch_norm_without_parameters_moves_only_where_a_pattern_names_it():
    net = Net()
    assert "plain" in choose(net, ["first"], ["out"]).evaluated
    assert "plain" not in choose(net, ["plain", "first"], ["out"]).evaluated


def test_tensors_shared_under_two_names_move_together():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3)
            self.b = nn.Linear(3, 3)
            self.b.weight = self.a.weight

    tied = Tied()
    choice = choose(tied, ["b"], ["b"])
    assert set(choice.trainable) == {"a.weight", "b.weight", "b.bias"}
    freeze(tied, choice)
    assert tied.a.weight.requires_grad
    assert not tied.a.bias.requires_grad


def test_one_train_mode_forward_of_the_chosen_modes_leaves_frozen_statistics_alone():
    net = Net()
    choice = choose(net, ["head"], ["out"])
    freeze(net, choice)
    set_modes(net, choice)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net(torch.randn(6, 3, 8, 8)).sum().backward()
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
