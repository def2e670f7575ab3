"""TLA105: the pull of the target task at each layer equals its closed form, and measuring it leaves no trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import tl_audit as ta
from tl_audit.checks.base import Context
from tl_audit.checks.gradient_activity import gradient_activity, relative_gradients
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.store import Store
from tl_audit.evidence.stored import StoredEvidence
from tl_audit.measures.sampling import priority
from tl_audit.models.fingerprint import tensor_hash
from tl_audit.policy import Rules
from tl_audit.records.adaptation import AdaptationRecord

CLASSES = ("a", "b", "c")


class Three(nn.Module):
    """Three linear layers; the second can be switched off behind its output, so that no gradient reaches it or what lies before it."""

    def __init__(self, *, cut: bool = False) -> None:
        super().__init__()
        self.cut = cut
        self.first, self.norm, self.second, self.head = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.second(torch.tanh(self.norm(self.first(x)))))
        out: torch.Tensor = self.head(hidden * 0 + 1 if self.cut else hidden)
        return out


def network(seed: int = 0, **given: Any) -> Three:
    torch.manual_seed(seed)
    return Three(**given).eval()


def table(n: int = 400, seed: int = 0, **given: Any) -> ta.Domain:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4)).astype(np.float32)
    labels = [CLASSES[int(k)] for k in np.argmax(x[:, :3], axis=1)]
    return ta.Domain("target", x, labels=labels, classes=CLASSES, kind="tensor", **given)


def measured(tmp_path: Path, subject: ta.Subject, seed: int = 0) -> Any:
    evidence = StoredEvidence(subject, store=Store(tmp_path), rules=Rules(), seed=seed)
    return gradient_activity(subject, evidence, Context(rules=Rules(), seed=seed, declared={}))


def by_layer(measurement: Any, model: str = "adapted") -> dict[str, Any]:
    return {m.slice["layer"]: m for m in measurement.metrics if m.slice["model"] == model}


def test_a_linear_classifier_has_the_closed_form_of_the_cross_entropy():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(5, 3)).double()
    x, y = torch.randn(20, 5, dtype=torch.float64), torch.randint(3, (20,))
    got = relative_gradients(ta.Model(net, classes=CLASSES), x, y, ("0",))["0"]
    weight, bias = net[0].weight.detach().numpy(), net[0].bias.detach().numpy()
    scores = x.numpy() @ weight.T + bias
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    residual = (p - np.eye(3)[y.numpy()]) / len(x)
    pull = np.sqrt(((residual.T @ x.numpy()) ** 2).sum() + (residual.sum(0) ** 2).sum())
    assert got == pytest.approx(pull / np.sqrt((weight**2).sum() + (bias**2).sum()), rel=1e-5)


def test_no_gradient_is_exactly_zero_and_no_weight_is_undefined():
    x, y = torch.randn(16, 4), torch.randint(3, (16,))
    got = relative_gradients(ta.Model(network(cut=True), classes=CLASSES), x, y, ("first", "norm", "second", "head", "none"))
    assert got["first"] == got["norm"] == got["second"] == 0.0
    assert got["head"] is not None
    assert got["head"] > 0
    assert got["none"] is None


def test_the_network_is_given_back_bit_equal_and_frozen_weights_count():
    net = network()
    for parameter in net.first.parameters():
        parameter.requires_grad_(False)
    net.second.weight.grad = torch.ones_like(net.second.weight)
    net.train()
    before = tensor_hash(dict(net.state_dict()))
    got = relative_gradients(ta.Model(net, classes=CLASSES), torch.randn(16, 4), torch.randint(3, (16,)), ("first", "second"))
    assert got["first"] is not None
    assert got["first"] > 0
    assert tensor_hash(dict(net.state_dict())) == before
    assert net.training
    assert not net.first.weight.requires_grad
    assert net.second.weight.requires_grad
    assert torch.equal(net.second.weight.grad, torch.ones_like(net.second.weight))
    assert net.first.weight.grad is None


def test_the_mean_and_its_t_interval_are_those_of_the_batches(tmp_path):
    net, domain = network(), table()
    found = by_layer(measured(tmp_path, ta.Subject(adapted=ta.Model(net, classes=CLASSES), target=domain)))
    assert set(found) == {"first", "norm", "second", "head"}
    assert all(m.n == {"batches": 10} and m.p_value is None for m in found.values())
    rows = np.argsort(priority(0, domain.ids))[:320]
    x = domain.samples.modality.encode(domain.samples.read(rows), None)
    y = torch.as_tensor([CLASSES.index(str(domain.labels[r])) for r in rows])
    model = ta.Model(net, classes=CLASSES)
    values = [relative_gradients(model, x[k : k + 32], y[k : k + 32], ("first",))["first"] for k in range(0, 320, 32)]
    mean, half = np.mean(values), stats.t.ppf(0.975, 9) * np.std(values, ddof=1) / np.sqrt(10)
    assert found["first"].value == pytest.approx(mean, rel=1e-6)
    assert found["first"].interval == pytest.approx((mean - half, mean + half), rel=1e-6)


def test_a_layer_that_the_task_pulls_on_although_frozen_is_named(tmp_path):
    base, adapted = network(0), network(0)
    with torch.no_grad():
        adapted.head.weight.add_(0.01)
        adapted.second.weight.add_(0.001)
        for net in (base, adapted):
            net.first.weight.mul_(0.01)
            net.first.bias.mul_(0.01)
    record = AdaptationRecord(frozen=("first.weight", "first.bias", "norm.weight", "norm.bias"))
    subject = ta.Subject(adapted=ta.Model(adapted, classes=CLASSES), base=ta.Model(base, classes=CLASSES), target=table(), record=record)
    measurement = measured(tmp_path, subject)
    ladder = next(e for e in measurement.exhibits if e.kind == "Ladder")
    rows = {row.layer: row for row in ladder.rows}
    assert rows["first"].state == "frozen"
    assert rows["second"].weight_change
    assert rows["first"].gradient_activity
    assert rows["first"].gradient_activity > rows["head"].gradient_activity
    assert "first" in measurement.summary
    assert "frozen" in measurement.summary


def test_the_head_control_shows_the_pull_before_the_adaptation(tmp_path):
    subject = ta.Subject(
        adapted=ta.Model(network(0), classes=CLASSES), target=table(), controls={"head": ta.Model(network(5), classes=CLASSES)}
    )
    measurement = measured(tmp_path, subject)
    assert by_layer(measurement)["second"].value != by_layer(measurement, "control:head")["second"].value
    assert measurement.params["ladder_model"] == "control:head"
    assert any("Without the base" in c for c in measurement.caveats)


def test_row_order_changes_nothing(tmp_path):
    domain = table(200)
    turned = domain.subset(np.arange(200)[::-1])
    model = ta.Model(network(), classes=CLASSES)
    one = by_layer(measured(tmp_path / "a", ta.Subject(adapted=model, target=domain)))
    other = by_layer(measured(tmp_path / "b", ta.Subject(adapted=model, target=turned)))
    assert {k: m.value for k, m in one.items()} == pytest.approx({k: m.value for k, m in other.items()}, rel=1e-6)


def test_too_few_labelled_samples_are_said(tmp_path):
    with pytest.raises(NotEvaluated, match="at least 3 labelled target samples"):
        measured(tmp_path, ta.Subject(adapted=ta.Model(network(), classes=CLASSES), target=table(2)))
