"""TLA801: a model that noise unsettles is found, one that disturbances do not touch is left alone, augmented kinds do not count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from tl_audit.checks.base import Context
from tl_audit.checks.robustness import corruptions
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.store import Store
from tl_audit.evidence.stored import StoredEvidence
from tl_audit.modality import fit_encoding
from tl_audit.models import Model
from tl_audit.policy import Rules, load_policy
from tl_audit.policy.judge import judge
from tl_audit.records.adaptation import AdaptationRecord
from tl_audit.records.metrics import Measurement
from tl_audit.records.preprocessing import Preprocessing
from tl_audit.runner import corrected
from tl_audit.subject import Domain, Subject

SPEC = Preprocessing(height=16, width=16)


class Bright(nn.Module):
    """Bright in the right half or in the left: contrast, brightness, blur and noise hardly matter. ``fragile``: reads pixels beside each other."""

    def __init__(self, *, fragile: bool = False) -> None:
        super().__init__()
        self.fragile = fragile
        self.head = nn.Linear(1, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-1.0], [1.0]]))
            self.head.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grey = x.mean(dim=1)
        if self.fragile:
            # how rough a smooth picture is: any noise is read as the second class
            score = (grey[:, 1:] - grey[:, :-1]).abs().mean(dim=(1, 2)) * 200 - 1
        else:
            score = grey[:, :, 8:].mean(dim=(1, 2)) - grey[:, :, :8].mean(dim=(1, 2))
        logits: torch.Tensor = self.head(score[:, None])
        return logits


def model(**settings: Any) -> Model:
    return Model(Bright(**settings), classes=("left", "right"), preprocessing=SPEC)


def halves(n: int = 100, seed: int = 0, **given: Any) -> Domain:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    values = np.full((n, 16, 16, 3), 60.0) + rng.normal(0, 5, (n, 1, 1, 1))
    values[labels == 1, :, 8:] += 100
    values[labels == 0, :, :8] += 100
    return Domain(
        "t", values.astype(np.uint8), labels=[("left", "right")[i] for i in labels], classes=["left", "right"], kind="image", **given
    )


def flat(n: int = 100) -> Domain:
    """All of the first class to the fragile model, as they are."""
    values = np.random.default_rng(0).integers(60, 180, (n, 1, 1, 1)) * np.ones((1, 16, 16, 3))
    return Domain("t", values.astype(np.uint8), labels=["left"] * n, classes=["left", "right"], kind="image")


def measured(tmp_path: Path, subject: Subject, seed: int = 0) -> Measurement:
    evidence = StoredEvidence(subject, store=Store(tmp_path / "evidence"), rules=Rules(), seed=seed)
    return corruptions(subject, evidence, Context(rules=Rules(), seed=seed, declared={}))


def status(found: Measurement) -> str:
    return judge("TLA801", "t", "robustness", "high", corrected(found, corruptions), load_policy("default")).status


def test_a_model_that_disturbances_do_not_touch_is_left_alone(tmp_path: Path) -> None:
    found = measured(tmp_path, Subject(adapted=model(), target=halves()))
    for severity in "123":
        assert found.select("mean_corruption_drop", severity=severity).value == 0
    assert status(found) == "pass"
    drop = found.select("corruption_accuracy_drop", kind="noise", severity="2")
    assert (drop.value, drop.null, drop.p_value) == (0, 0, 1)


def test_a_model_that_noise_unsettles_is_found_and_the_kind_is_named(tmp_path: Path) -> None:
    found = measured(tmp_path, Subject(adapted=model(fragile=True), target=flat()))
    noise = found.select("corruption_accuracy_drop", kind="noise", severity="2")
    assert noise.value == 1
    assert found.select("corruption_accuracy_drop", kind="brightness", severity="2").value == 0
    # a flat picture stays as it is under all but noise, brightness and JPEG: one of three
    assert found.select("mean_corruption_drop", severity="2").value == pytest.approx(1 / 3)
    assert status(found) == "warn"
    assert "most under noise" in found.summary


def test_the_mean_rises_with_severity_and_no_more_than_512_rows_are_asked(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = np.clip(rng.normal(128, 3, (600, 16, 16, 3)) + np.where(np.arange(600) % 2, 4, -4)[:, None, None, None], 0, 255)
    values[..., 8:, :] = 128
    labels = [("left", "right")[1 - i % 2] for i in range(600)]
    target = Domain("t", values.astype(np.uint8), labels=labels, classes=["left", "right"], kind="image")
    found = measured(tmp_path, Subject(adapted=model(), target=target))
    means = [found.select("mean_corruption_drop", severity=s).value for s in "123"]
    assert 0 <= means[0] <= means[1] <= means[2]  # type: ignore[operator]
    assert means[2] > 0  # type: ignore[operator]
    assert found.select("mean_corruption_drop", severity="1").n == {"target": 512}
    assert any("512 of 600" in c for c in found.caveats)


def test_what_the_training_augmented_with_does_not_count(tmp_path: Path) -> None:
    record = AdaptationRecord(training={"augment": [{"name": "GaussianNoise", "args": {}}]})
    found = measured(tmp_path, Subject(adapted=model(fragile=True), target=flat(), record=record))
    assert found.select("mean_corruption_drop", severity="2").value == 0
    assert found.select("corruption_accuracy_drop", kind="noise", severity="2").value == 1
    assert any("augmentation" in c and "noise" in c for c in found.caveats)


def test_the_head_control_gives_the_measure_of_it(tmp_path: Path) -> None:
    fragile, sturdy = model(fragile=True), model()
    same = measured(tmp_path, Subject(adapted=fragile, controls={"head": model(fragile=True)}, target=flat()))
    assert same.select("relative_corruption_error").value == 1
    without = measured(tmp_path, Subject(adapted=fragile, target=flat()))
    assert "no head control" in str(without.select("relative_corruption_error").reason)
    itself = measured(tmp_path, Subject(adapted=fragile, controls={"head": fragile}, same_as_adapted=("head",), target=flat()))
    assert itself.select("relative_corruption_error").value is None
    never = measured(tmp_path, Subject(adapted=fragile, controls={"head": sturdy}, target=halves()))
    assert "makes no error" in str(never.select("relative_corruption_error").reason)


def test_a_control_with_its_classes_in_another_order_is_read_by_name(tmp_path: Path) -> None:
    class Other(Bright):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).flip(1)

    turned = Model(Other(fragile=True), classes=("right", "left"), preprocessing=SPEC)
    found = measured(tmp_path, Subject(adapted=model(fragile=True), controls={"head": turned}, target=flat()))
    assert found.select("relative_corruption_error").value == 1


def test_tables_are_disturbed_in_their_own_ways_and_a_kind_that_changes_nothing_does_not_count(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=300), "y": rng.normal(size=300)})
    spec = fit_encoding(frame, numeric=["x", "y"], categorical=[])
    head = nn.Linear(spec.width, 2)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        head.weight[1, spec.slots()["x"][0]] = 1.0
    truth = ["yes" if v > frame["x"].mean() else "no" for v in frame["x"]]
    target = Domain("t", frame, labels=truth, classes=["no", "yes"])
    found = measured(tmp_path, Subject(adapted=Model(head, classes=("no", "yes"), preprocessing=spec), target=target))
    drop = found.select("corruption_accuracy_drop", kind="missing cells", severity="3").value
    assert drop == pytest.approx(0.1, abs=0.05), "a fifth of x is gone, and half of those answers with it"
    assert any("category swaps" in c for c in found.caveats)
    assert {m.slice["kind"] for m in found.metrics if m.name == "corruption_accuracy_drop"} == {"noise", "missing cells", "category swaps"}


def test_clusters_are_the_units_and_order_changes_nothing(tmp_path: Path) -> None:
    held = halves(cluster=[f"p{i // 5}" for i in range(100)])
    found = measured(tmp_path, Subject(adapted=model(), target=held))
    assert found.select("mean_corruption_drop", severity="2").clusters == {"target": 20}
    target = halves()
    order = np.random.default_rng(1).permutation(100)
    first = measured(tmp_path, Subject(adapted=model(fragile=True), target=target))
    mixed = measured(tmp_path, Subject(adapted=model(fragile=True), target=target.subset(order)))
    for one, other in zip(first.metrics, mixed.metrics, strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-12)


def test_the_model_is_left_as_it_was_and_a_second_run_says_the_same(tmp_path: Path) -> None:
    network = model(fragile=True)
    network.module.train()
    before = {k: v.clone() for k, v in network.module.state_dict().items()}
    subject = Subject(adapted=network, target=flat())
    assert measured(tmp_path, subject) == measured(tmp_path, subject)
    assert network.module.training
    assert all(torch.equal(v, before[k]) for k, v in network.module.state_dict().items())


def test_outputs_that_are_not_finite_leave_their_rows_out(tmp_path: Path) -> None:
    class Breaks(Bright):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = super().forward(x)
            return torch.where((x.amax(dim=(1, 2, 3)) > 0.98)[:, None], torch.nan, logits)

    broken = Model(Breaks(), classes=("left", "right"), preprocessing=SPEC)
    found = measured(tmp_path, Subject(adapted=broken, target=flat()))
    assert found.select("mean_corruption_drop", severity="2").n["target"] < 100
    assert any("not finite" in c for c in found.caveats)


def test_data_without_known_disturbances_are_not_evaluated(tmp_path: Path) -> None:
    target = Domain("t", np.zeros((8, 3), dtype=np.float32), labels=["a", "b"] * 4, kind="tensor")
    with pytest.raises(NotEvaluated, match="tensor data"):
        measured(tmp_path, Subject(adapted=Model(nn.Linear(3, 2), classes=("a", "b")), target=target))


def no_effect(tmp_path: Path, runs: int) -> tuple[int, int]:
    """(runs with a warning, runs whose interval of the mean drop misses 0), for a model whose errors no disturbance changes on the mean."""
    loud = missed = 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        target = halves(60, seed)
        flipped = [("left", "right")[int((label == "right") ^ (rng.random() < 0.2))] for label in target.labels]  # type: ignore[union-attr]
        noisy = Domain("t", target.samples.pictures, labels=flipped, classes=["left", "right"], kind="image")  # type: ignore[attr-defined]
        found = measured(tmp_path, Subject(adapted=model(), target=noisy), seed)
        loud += status(found) in ("warn", "fail")
        low, high = found.select("mean_corruption_drop", severity="2").interval or (1.0, 1.0)
        missed += not low <= 0 <= high
    return loud, missed


def test_without_an_effect_nothing_warns(tmp_path: Path) -> None:
    assert no_effect(tmp_path, 3) == (0, 0)


@pytest.mark.slow
def test_without_an_effect_nothing_warns_in_a_hundred_runs(tmp_path: Path) -> None:
    loud, missed = no_effect(tmp_path, 100)
    assert loud == 0
    assert missed <= 11  # the 99.5 % point of 5 %
