"""One adapter for whatever a network returns (HARDENING.md F12, F18)."""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tl_audit.errors import ModelError
from tl_audit.models import Model, output_notes, outputs

Z = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])
Aux = namedtuple("Aux", ["logits", "aux_logits"])


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        (Z, None),
        (SimpleNamespace(logits=Z), None),
        (Aux(Z, None), None),
        ({"logits": Z, "hidden": torch.zeros(2, 9)}, None),
        ({"only": Z}, None),
        ((Z, torch.zeros(2, 9)), None),
        ([Z], None),
        ({"mine": Z, "hidden": torch.zeros(2, 9)}, "mine"),
        ((torch.zeros(2, 9), Z), 1),
        (SimpleNamespace(mine=Z), "mine"),
        (Z.reshape(2, 3, 1, 1), None),
        (Z.double(), None),
        (Z.bfloat16(), None),
    ],
)
def test_every_form_gives_the_plain_logits(raw, where):
    logits = outputs(raw, where)
    assert logits.dtype in (torch.float32, torch.float64)
    assert torch.equal(logits.float(), Z)


@pytest.mark.parametrize("raw", [torch.tensor([2.0, -1.0]), torch.tensor([[2.0], [-1.0]])])
def test_one_logit_becomes_two_columns_whose_softmax_is_its_sigmoid(raw):
    logits = outputs(raw)
    assert logits.tolist() == [[0.0, 2.0], [0.0, -1.0]]
    assert torch.allclose(logits.softmax(1)[:, 1], raw.reshape(-1).sigmoid())


def test_probabilities_are_not_put_through_a_softmax_twice():
    p = torch.tensor([[0.2, 0.8], [1.0, 0.0]])
    assert torch.allclose(outputs(p).softmax(1), p, atol=1e-6)
    assert bool(torch.isfinite(outputs(p)).all())


def test_gradients_pass_through():
    z = Z.clone().requires_grad_()
    outputs({"logits": z})[0, 1].backward()
    assert z.grad.tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("raw", "where", "sentence"),
    [
        ({"a": Z, "b": Z}, None, r"found mapping with a: tensor \(2, 3\), b: tensor \(2, 3\)"),
        ("text", None, "found str"),
        ((), None, r"found tuple of \(\)"),
        ({"a": Z}, "b", "no 'b'; found mapping with a"),
        ((Z,), 3, "no 3; found tuple"),
        ({"a": "x"}, "a", "is str, expected a tensor"),
        (torch.zeros(2, 3, 4, 4), None, r"shape \(2, 3, 4, 4\), expected \(N, C\)"),
        (torch.tensor([0, 1]), None, "torch.int64"),
        (torch.zeros(2, 0), None, r"shape \(2, 0\)"),
    ],
)
def test_what_holds_no_logits_is_an_error_that_lists_what_was_found(raw, where, sentence):
    with pytest.raises(ModelError, match=sentence):
        outputs(raw, where)


def test_notes_say_what_form_was_read():
    assert output_notes(Model(nn.Linear(3, 2)), torch.randn(4, 3)) == ()
    assert "one output" in output_notes(Model(nn.Linear(3, 1)), torch.randn(4, 3))[0]
    net = nn.Sequential(nn.Linear(3, 2), nn.Softmax(dim=1))
    assert "are probabilities" in output_notes(Model(net), torch.randn(4, 3))[0]
