"""TLA111: what the adaptation took, held against one third of the base's compute; no number is invented."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tl_audit.checks.base import Context
from tl_audit.checks.compute import COMPUTE, compute
from tl_audit.errors import DataError, NotEvaluated
from tl_audit.finetune.choose import Choice
from tl_audit.finetune.flops import forward_flops, training_flops
from tl_audit.models import Model
from tl_audit.policy import Rules
from tl_audit.records.adaptation import AdaptationRecord
from tl_audit.records.metrics import Measurement
from tl_audit.subject import Subject


def measured(record: AdaptationRecord | None, **declared: Any) -> Measurement:
    subject = Subject(
        Model(nn.Linear(2, 2), classes=("a", "b")), target=SimpleNamespace(classes=("a", "b"), task="classification"), record=record
    )  # type: ignore[arg-type]
    return compute(subject, None, Context(rules=Rules(), seed=0, declared=declared))  # type: ignore[arg-type]


def record(flops: float = 3e12, **more: Any) -> AdaptationRecord:
    return AdaptationRecord(flops={"adaptation": flops}, seconds=7200.0, device="cuda:0", peak_memory_bytes=10**9, **more)


def test_the_check_explains_itself_in_three_parts() -> None:
    for check in COMPUTE:
        assert check.help["asks"].endswith("?")
        assert all(len(check.help[part]) > 40 for part in ("measured", "matters", "reduce"))


@pytest.mark.parametrize(("base", "said"), [(1e9, "is reached"), (1e15, "is not reached"), (1e13, "cannot be told")])
def test_the_criterion_is_told_with_the_error_of_the_count(base: float, said: str) -> None:
    found = measured(record(), base_training_flop=base)
    assert said in found.summary
    assert found.select("flops_ratio").value == pytest.approx(3e12 / base)


def test_without_a_declared_base_only_the_fallback_is_told() -> None:
    found = measured(record())
    assert found.select("flops_ratio").value is None
    assert "base compute not declared" in found.summary
    assert found.summary.count("not reached") == 2


def test_hours_are_those_of_an_accelerator_and_energy_is_never_guessed() -> None:
    assert measured(record()).select("gpu_hours").value == 2.0
    on_cpu = measured(record().model_copy(update={"device": "cpu (1 thread)"}))
    assert on_cpu.select("gpu_hours").value is None
    assert "cpu" in str(on_cpu.select("gpu_hours").reason)
    assert on_cpu.select("energy_kwh").value is None


def test_what_is_not_recorded_has_a_reason() -> None:
    found = measured(AdaptationRecord())
    assert all(m.value is None and m.reason for m in found.metrics)
    with pytest.raises(NotEvaluated, match="record"):
        measured(None)


@pytest.mark.parametrize("given", ["a lot", -1, "nan"])
def test_a_declaration_that_is_no_number_is_refused(given: Any) -> None:
    with pytest.raises(DataError, match="base_training_flop"):
        measured(record(), base_training_flop=given)


def test_the_counts_are_those_of_the_closed_form() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(4 * 25, 2, bias=False))
    conv, linear = 2 * 3 * 9 * 4 * 25, 2 * 100 * 2
    inputs = torch.from_numpy(np.zeros((2, 3, 5, 5), dtype=np.float32))
    assert forward_flops(net, inputs) == conv + linear
    names = [name for name, _ in net.named_parameters()]
    # the input needs no gradient: the first layer has no activation gradient
    assert training_flops(net, Choice(tuple(names), (), ()), inputs) == 2 * conv + 3 * linear
