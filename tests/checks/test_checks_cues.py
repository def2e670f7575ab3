"""TLA608: a cue that steers is found, one that does not is left alone, and what is inherited is told from what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from tl_audit.checks.base import Context
from tl_audit.checks.cues import bias_transfer_probe
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.store import Store
from tl_audit.evidence.stored import StoredEvidence
from tl_audit.modality import Cue, fit_encoding
from tl_audit.models import Model
from tl_audit.policy import Rules
from tl_audit.records.metrics import Measurement
from tl_audit.records.preprocessing import Preprocessing
from tl_audit.subject import Domain, Subject

SPEC = Preprocessing(height=16, width=16)
MARK = Cue("mark", "patch", {"corner": "top-left", "size": 0.25, "value": 1.0})


class Net(nn.Module):
    """Bright or dark; with ``corner`` a white top left corner decides alone."""

    def __init__(self, *, corner: bool) -> None:
        super().__init__()
        self.corner = corner
        self.head = nn.Linear(1, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-1.0], [1.0]]))
            self.head.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = (x[:, :, 6:, 6:].mean(dim=(1, 2, 3)) - 0.5) * 10
        if self.corner:
            score = torch.where(x[:, :, :4, :4].amin(dim=(1, 2, 3)) > 0.95, torch.tensor(9.0), score)
        logits: torch.Tensor = self.head(score[:, None])
        return logits


def model(*, corner: bool) -> Model:
    return Model(Net(corner=corner), classes=("dark", "bright"), preprocessing=SPEC)


def target(n: int = 120, **given: Any) -> Domain:
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 2
    values = rng.integers(0, 60, size=(n, 16, 16)).astype(np.uint8)
    values[labels == 1] += 180
    return Domain("t", values, labels=[("dark", "bright")[i] for i in labels], classes=["dark", "bright"], **given)


def probe(tmp_path: Path, subject: Subject, samples: str = "off") -> Measurement:
    evidence = StoredEvidence(subject, store=Store(tmp_path / "evidence"), rules=Rules(), seed=0, samples=samples)
    return bias_transfer_probe(subject, evidence, Context(rules=Rules(), seed=0, declared={}))


def test_a_model_that_reads_one_corner_is_found_and_called_inherited(tmp_path: Path) -> None:
    subject = Subject(adapted=model(corner=True), controls={"scratch": model(corner=False)}, target=target(), cues=(MARK,))
    found = probe(tmp_path, subject)
    assert found.select("trigger_flip_rate", cue="mark").value == 0.5
    over = found.select("trigger_over_placebo", cue="mark")
    assert over.interval is not None
    assert over.interval[0] > 0.3
    excess = found.select("trigger_excess", cue="mark")
    assert excess.interval is not None
    assert excess.interval[0] > 0.3
    assert excess.p_value is not None
    assert excess.p_value < 0.01
    share = found.select("trigger_target_share", cue="mark")
    assert (share.value, share.null) == (1.0, 0.5)
    assert "comes with the base" in found.summary
    assert "'bright'" in found.summary


def test_a_cue_that_the_control_follows_as_well_is_not_called_inherited(tmp_path: Path) -> None:
    subject = Subject(adapted=model(corner=True), controls={"scratch": model(corner=True)}, target=target(), cues=(MARK,))
    found = probe(tmp_path, subject)
    assert found.select("trigger_over_placebo", cue="mark").value == pytest.approx(0.5, abs=0.05)
    excess = found.select("trigger_excess", cue="mark")
    assert excess.value == 0
    assert excess.interval is not None
    assert excess.interval[0] < 0 < excess.interval[1]
    assert "not shown to be inherited" in found.summary


def test_a_model_that_does_not_look_there_is_left_alone(tmp_path: Path) -> None:
    subject = Subject(adapted=model(corner=False), controls={"scratch": model(corner=False)}, target=target(), cues=(MARK,))
    found = probe(tmp_path, subject)
    assert found.select("trigger_flip_rate", cue="mark").value == 0
    share = found.select("trigger_target_share", cue="mark")
    assert share.value is None
    assert share.reason == "the cue changes no answer"
    assert found.params["control"] == "control:scratch"


def test_an_identity_cue_changes_nothing(tmp_path: Path) -> None:
    same = Cue("nothing", "hue", {"strength": 0.0})
    found = probe(tmp_path, Subject(adapted=model(corner=True), target=target(), cues=(same,)))
    for name in ("trigger_flip_rate", "trigger_placebo", "trigger_over_placebo"):
        assert found.select(name, cue="nothing").value == 0


def test_without_a_control_inheritance_is_null_with_a_reason(tmp_path: Path) -> None:
    found = probe(tmp_path, Subject(adapted=model(corner=True), target=target(), cues=(MARK,)))
    excess = found.select("trigger_excess", cue="mark")
    assert excess.value is None
    assert "no control trained without the base" in str(excess.reason)
    assert found.select("trigger_over_placebo", cue="mark").value == pytest.approx(0.5, abs=0.05)


def test_a_control_that_is_the_adapted_model_says_nothing(tmp_path: Path) -> None:
    both = model(corner=True)
    found = probe(tmp_path, Subject(adapted=both, controls={"scratch": both}, same_as_adapted=("scratch",), target=target(), cues=(MARK,)))
    assert "adapted model itself" in str(found.select("trigger_excess", cue="mark").reason)


def test_a_head_only_control_has_the_cues_of_the_base_and_is_not_compared_with(tmp_path: Path) -> None:
    found = probe(tmp_path, Subject(adapted=model(corner=True), controls={"head": model(corner=True)}, target=target(), cues=(MARK,)))
    excess = found.select("trigger_excess", cue="mark")
    assert excess.value is None
    assert "has the base's features itself" in str(excess.reason)
    assert "base" not in found.summary


def test_no_cues_no_check(tmp_path: Path) -> None:
    with pytest.raises(NotEvaluated, match="cues"):
        probe(tmp_path, Subject(adapted=model(corner=True), target=target()))


def test_a_cue_outside_the_crop_is_said_to_be_cut_off(tmp_path: Path) -> None:
    cropped = Model(Net(corner=True), classes=("dark", "bright"), preprocessing=Preprocessing(height=8, width=8, resize=16, crop="center"))
    found = probe(tmp_path, Subject(adapted=cropped, target=target(), cues=(MARK,)))
    assert found.select("trigger_flip_rate", cue="mark").value == 0
    assert any("leaves 120 of 120 model inputs as they were" in c for c in found.caveats)
    seen = probe(tmp_path, Subject(adapted=model(corner=True), target=target(), cues=(MARK,)))
    assert not any("as they were" in c for c in seen.caveats)


def test_clusters_are_the_units(tmp_path: Path) -> None:
    held = target(cluster=[f"p{i // 6}" for i in range(120)])
    found = probe(tmp_path, Subject(adapted=model(corner=True), controls={"scratch": model(corner=False)}, target=held, cues=(MARK,)))
    assert found.select("trigger_over_placebo", cue="mark").clusters == {"target": 20}
    assert found.select("trigger_excess", cue="mark").clusters == {"target": 20}
    assert not any("independent" in c for c in found.caveats)


def test_the_same_seed_gives_the_same_numbers_and_leaves_no_trace(tmp_path: Path) -> None:
    network = model(corner=True)
    network.module.train()
    before = {k: v.clone() for k, v in network.module.state_dict().items()}
    subject = Subject(adapted=network, target=target(), cues=(MARK, Cue("edge", "border")))
    assert probe(tmp_path, subject) == probe(tmp_path, subject)
    assert network.module.training
    assert all(torch.equal(v, before[k]) for k, v in network.module.state_dict().items())


def test_pictures_appear_only_where_samples_may(tmp_path: Path) -> None:
    subject = Subject(adapted=model(corner=True), target=target(), cues=(MARK,))
    assert [e.kind for e in probe(tmp_path, subject).exhibits] == ["Bars"]
    shown = probe(tmp_path, subject, samples="redacted").exhibits
    assert [e.kind for e in shown] == ["Bars", "ImageGrid"]
    assert shown[1].rows[0].pictures[1].title == "with mark"  # type: ignore[union-attr]


def test_columns_of_tables_are_probed_the_same_way(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=200), "sex": rng.choice(["f", "m"], 200), "other": rng.choice(["u", "v"], 200)})
    spec = fit_encoding(frame, numeric=["x"], categorical=["sex", "other"])
    head = nn.Linear(spec.width, 2)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        head.weight[1, spec.slots()["sex"][0]] = 9.0
        head.weight[0, spec.slots()["sex"][0] + 1] = 9.0
    cues = (Cue("woman", "set_column", {"column": "sex", "value": "f"}), Cue("other", "set_column", {"column": "other", "value": "u"}))
    found = probe(tmp_path, Subject(adapted=Model(head, classes=("no", "yes"), preprocessing=spec), target=Domain("t", frame), cues=cues))
    men = float((frame["sex"] == "m").mean())
    assert found.select("trigger_flip_rate", cue="woman").value == pytest.approx(men)
    assert found.select("trigger_placebo", cue="woman").value == pytest.approx(2 * men * (1 - men), abs=0.1)
    assert found.select("trigger_flip_rate", cue="other").value == 0


def test_the_placebo_of_the_border_does_not_flip_a_model_that_reads_the_border_only(tmp_path: Path) -> None:
    cue = Cue("frame", "border", {"width": 0.3, "value": 1.0})
    found = probe(tmp_path, Subject(adapted=model(corner=True), target=target(), cues=(cue,)))
    assert found.select("trigger_placebo", cue="frame").value == pytest.approx(0, abs=0.2)
    assert found.select("trigger_over_placebo", cue="frame").value is not None


def pictures(n: int = 80) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Grey discs on noise, light ones of class "bright"; their masks; labels."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:24, :24]
    disc = (y - 13) ** 2 + (x - 12) ** 2 < 49
    light = np.arange(n) % 2 == 1
    held = rng.integers(90, 140, size=(n, 24, 24, 3)).astype(np.uint8)
    held[:, disc] = np.where(light, 220, 40)[:, None, None]
    return held, np.repeat(disc[None], n, axis=0), ["bright" if b else "dark" for b in light]


class Surround(nn.Module):
    """The disc decides; with ``fooled`` what lies in the watched place decides where it is green, or black."""

    def __init__(self, *, fooled: str | None) -> None:
        super().__init__()
        self.fooled = fooled
        self.head = nn.Linear(1, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-1.0], [1.0]]))
            self.head.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = (x[:, :, 10:16, 10:15].mean(dim=(1, 2, 3)) - 0.5) * 10
        if self.fooled == "green":
            corner = x[:, :, 20:, :3].mean(dim=(2, 3))
            score = torch.where((corner[:, 1] > 0.5) & (corner[:, 0] < 0.1) & (corner[:, 2] < 0.1), torch.tensor(9.0), score)
        if self.fooled == "black hat":
            score = torch.where(x[:, :, :2, 11:13].amax(dim=(1, 2, 3)) < 0.02, torch.tensor(9.0), score)
        logits: torch.Tensor = self.head(score[:, None])
        return logits


@pytest.mark.parametrize(
    ("cue", "fooled"),
    [(Cue("lawn", "background", {"value": [0.0, 0.6, 0.0]}), "green"), (Cue("hat", "hat", {"size": 0.5}), "black hat")],
)
def test_a_background_and_a_hat_that_steer_are_found_and_called_inherited(tmp_path: Path, cue: Cue, fooled: str) -> None:
    held, masks, labels = pictures()
    spec = Preprocessing(height=24, width=24)
    models = {who: Model(Surround(fooled=f), classes=("dark", "bright"), preprocessing=spec) for who, f in (("a", fooled), ("s", None))}
    domain = Domain("t", held, labels=labels, classes=["dark", "bright"], regions=masks, cluster=[f"p{i // 4}" for i in range(80)])
    found = probe(tmp_path, Subject(adapted=models["a"], controls={"scratch": models["s"]}, target=domain, cues=(cue,)))
    assert found.select("trigger_flip_rate", cue=cue.name).value == 0.5
    for name in ("trigger_over_placebo", "trigger_excess"):
        one = found.select(name, cue=cue.name)
        assert one.interval is not None
        assert one.interval[0] > 0.05
        assert one.clusters == {"target": 20}
    quiet = probe(tmp_path / "quiet", Subject(adapted=models["s"], target=domain, cues=(cue,)))
    assert quiet.select("trigger_flip_rate", cue=cue.name).value == 0


def test_a_background_without_regions_is_undefined_and_the_other_cues_are_probed(tmp_path: Path) -> None:
    lawn = Cue("lawn", "background")
    found = probe(tmp_path, Subject(adapted=model(corner=True), target=target(), cues=(lawn, MARK)))
    assert found.select("trigger_over_placebo", cue="mark").value == pytest.approx(0.5, abs=0.05)
    for name in ("trigger_over_placebo", "trigger_flip_rate"):
        assert found.select(name, cue="lawn").value is None
        assert "regions of the target" in str(found.select(name, cue="lawn").reason)
    with pytest.raises(NotEvaluated, match="regions of the target"):
        probe(tmp_path / "alone", Subject(adapted=model(corner=True), target=target(), cues=(lawn,)))


def test_an_attribute_of_a_table_that_steers_is_found_inherited_and_by_cluster(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = 240
    frame = pd.DataFrame({"x": rng.normal(size=n), "sex": rng.choice(["f", "m"], n)})
    spec = fit_encoding(frame, numeric=["x"], categorical=["sex"])
    models = {}
    for name, weight in (("planted", 9.0), ("clean", 0.0)):
        head = nn.Linear(spec.width, 2)
        with torch.no_grad():
            head.weight.zero_()
            head.bias.zero_()
            head.weight[1, spec.slots()["x"][0]] = 1.0
            head.weight[1, spec.slots()["sex"][0]] = weight
        models[name] = Model(head, classes=("no", "yes"), preprocessing=spec)
    cue = Cue("woman", "set_column", {"column": "sex", "value": "f"})
    domain = Domain("t", frame, cluster=[f"c{i // 8}" for i in range(n)])
    found = probe(tmp_path, Subject(adapted=models["planted"], controls={"scratch": models["clean"]}, target=domain, cues=(cue,)))
    flips = float(((frame["sex"] == "m") & (frame["x"] <= 0)).mean())
    assert found.select("trigger_flip_rate", cue="woman").value == pytest.approx(flips, abs=0.03)
    for name in ("trigger_over_placebo", "trigger_excess"):
        one = found.select(name, cue="woman")
        assert one.clusters == {"target": 30}
    clean = probe(tmp_path / "clean", Subject(adapted=models["clean"], controls={"scratch": models["clean"]}, target=domain, cues=(cue,)))
    assert clean.select("trigger_flip_rate", cue="woman").value == 0
