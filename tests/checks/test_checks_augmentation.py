"""TLA804: a transform that changes the meaning is found, one that is absorbed is left alone, maps move with what they mark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tl_audit.checks.augmentation import augmentation_invariance
from tl_audit.checks.base import Context
from tl_audit.errors import DataError, NotEvaluated
from tl_audit.evidence.store import Store
from tl_audit.evidence.stored import StoredEvidence
from tl_audit.modality import open_data
from tl_audit.modality.augmentation import Augmentation, augmentations, augmented, moved
from tl_audit.models import Model
from tl_audit.policy import Rules, load_policy
from tl_audit.policy.judge import judge
from tl_audit.records.adaptation import AdaptationRecord
from tl_audit.records.metrics import Measurement
from tl_audit.records.preprocessing import Preprocessing
from tl_audit.runner import corrected
from tl_audit.subject import Domain, Subject

SPEC = Preprocessing(height=16, width=16)
FLIP = {"name": "RandomHorizontalFlip", "args": {}}


class Side(nn.Module):
    """Bright in the right half or in the left; with ``sideways`` in the upper half or in the lower, which mirroring does not change."""

    def __init__(self, *, sideways: bool) -> None:
        super().__init__()
        self.sideways = sideways
        self.head = nn.Linear(1, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-1.0], [1.0]]))
            self.head.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grey = x.mean(dim=1)
        if self.sideways:
            score = (grey[:, 8:] ** 2).mean(dim=(1, 2)) - (grey[:, :8] ** 2).mean(dim=(1, 2))
        else:
            score = grey[:, :, 8:].mean(dim=(1, 2)) - grey[:, :, :8].mean(dim=(1, 2))
        logits: torch.Tensor = self.head(score[:, None])
        return logits


def model(*, sideways: bool = False) -> Model:
    return Model(Side(sideways=sideways), classes=("first", "second"), preprocessing=SPEC)


def halves(n: int = 100, *, sideways: bool = False, **given: Any) -> Domain:
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 2
    values = rng.integers(20, 90, (n, 16, 16, 3))
    bright = np.zeros((n, 16, 16, 1), dtype=bool)
    bright[labels == 1, :, 8:] = True
    bright[labels == 0, :, :8] = True
    if sideways:
        bright = bright.swapaxes(1, 2)
    values = (values + 120 * bright).astype(np.uint8)
    return Domain("t", values, labels=[("first", "second")[i] for i in labels], classes=["first", "second"], kind="image", **given)


def checked(
    tmp_path: Path, steps: list[dict[str, Any]], *, sideways: bool = False, samples: str = "off", methods=(), **given: Any
) -> Measurement:
    record = AdaptationRecord(training={"augment": steps})
    subject = Subject(adapted=model(sideways=sideways), target=halves(sideways=sideways, **given), record=record)
    evidence = StoredEvidence(subject, store=Store(tmp_path / "evidence"), rules=Rules(), seed=0, samples=samples, methods=methods)
    return augmentation_invariance(subject, evidence, Context(rules=Rules(), seed=0, declared={}))


def status(found: Measurement) -> str:
    one = augmentation_invariance
    return judge(one.code, one.title, one.section, one.severity, corrected(found, one), load_policy("default")).status


def test_a_flip_of_direction_dependent_labels_fires_though_training_used_it_by_chance(tmp_path: Path) -> None:
    found = checked(tmp_path, [FLIP])
    assert found.select("invariance_rate", transform="RandomHorizontalFlip").value == 0
    drop = found.select("augmented_accuracy_drop", transform="RandomHorizontalFlip")
    assert (drop.value, drop.null) == (1.0, 0.0)
    assert status(found) == "warn"
    assert any("every time here: RandomHorizontalFlip" in c for c in found.caveats)


def test_a_flip_that_changes_nothing_and_the_identity_keep_every_answer(tmp_path: Path) -> None:
    for steps, sideways in (([FLIP], True), ([{"name": "Identity", "args": {}}], False)):
        found = checked(tmp_path / str(sideways), steps, sideways=sideways)
        assert found.select("invariance_rate", transform=steps[0]["name"]).value == 1.0
        assert found.select("augmented_accuracy_drop", transform=steps[0]["name"]).value == 0.0
        assert status(found) == "pass"


def test_each_transform_is_judged_by_itself_and_corrected_together(tmp_path: Path) -> None:
    found = checked(
        tmp_path, [FLIP, {"name": "RandomRotation", "args": {"degrees": [180, 180]}}, {"name": "ColorJitter", "args": {"hue": 0.2}}]
    )
    drops = {m.slice["transform"]: m for m in found.metrics if m.name == "augmented_accuracy_drop"}
    assert {name: m.value for name, m in drops.items()} == {
        "RandomHorizontalFlip": 1.0, "RandomRotation(degrees=[180, 180])": 1.0, "ColorJitter(hue=0.2)": 0.0
    }  # fmt: skip
    assert len({m.family for m in drops.values()}) == 1


def test_maps_that_move_with_the_picture_are_alike_and_maps_that_stay_are_not(tmp_path: Path) -> None:
    where = {"transform": "RandomHorizontalFlip", "method": "integrated_gradients"}
    found = checked(tmp_path / "moves", [FLIP], sideways=True, methods=("integrated_gradients",))
    assert found.select("attribution_equivariance", **where).value == pytest.approx(1.0, abs=1e-6)
    stays = checked(tmp_path / "stays", [FLIP], methods=("integrated_gradients",))
    assert stays.select("attribution_equivariance", **where).interval[1] < 0.2
    assert not [
        m for m in checked(tmp_path / "colour", [{"name": "ColorJitter", "args": {}}], methods=("saliency",)).metrics if "equi" in m.name
    ]


def test_clusters_are_the_units_and_the_same_seed_gives_the_same_numbers(tmp_path: Path) -> None:
    steps = [{"name": "RandomAffine", "args": {"degrees": 90, "translate": [0.2, 0.2]}}]
    cluster = [f"p{i // 5}" for i in range(100)]
    found = checked(tmp_path, steps, cluster=cluster)
    assert found.metrics[0].clusters == {"target": 20}
    assert found == checked(tmp_path / "again", steps, cluster=cluster)


def test_pictures_appear_only_where_samples_may(tmp_path: Path) -> None:
    assert [e.kind for e in checked(tmp_path, [FLIP]).exhibits] == ["Intervals"]
    shown = checked(tmp_path / "on", [FLIP], samples="on").exhibits
    assert [e.kind for e in shown] == ["Intervals", "ImageGrid"]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotEvaluated, match="No augmentation to look at"):
        checked(tmp_path, [])
    with pytest.raises(NotEvaluated, match="has no transform 'RandomMagic'"):
        checked(tmp_path / "b", [{"name": "RandomMagic", "args": {}}])
    with pytest.raises(NotEvaluated, match="cannot be made again"):
        checked(tmp_path / "c", [{"name": "RandomRotation", "args": {"wrong": 1}}])


# ---------------------------------------------------------------- the transforms


def test_a_chance_below_one_is_taken_away_and_a_chance_of_none_means_never() -> None:
    steps = augmentations(
        {"augment": [FLIP, {"name": "RandomVerticalFlip", "args": {"p": 0.0}}, FLIP, {"name": "CenterCrop", "args": {"size": 8}}]}
    )
    assert [(s.label, s.always) for s in steps] == [("RandomHorizontalFlip", True), ("CenterCrop(size=8)", False)]
    assert augmentations({}) == ()
    assert augmentations({"augment": ["RandomVerticalFlip"]})[0].args == {"p": 1.0}


def test_a_picture_is_transformed_by_its_own_key_alone(rng) -> None:
    batch = open_data(rng.integers(0, 255, (6, 12, 10, 3)).astype(np.uint8)).samples.read(np.arange(6))
    step = Augmentation("RandomRotation", {"degrees": 60}, False)
    keys = [(0, i) for i in range(6)]
    state = torch.random.get_rng_state()
    whole = augmented(batch, step, keys)
    assert torch.equal(state, torch.random.get_rng_state())
    alone = augmented(open_data(batch.items[4][None]).samples.read(np.array([0])), step, keys[4:5])
    assert np.array_equal(whole.items[4], alone.items[0])
    flipped = augmented(batch, Augmentation("RandomHorizontalFlip", {"p": 1.0}, True), keys)
    assert all(np.array_equal(a, b[:, ::-1]) for a, b in zip(flipped.items, batch.items, strict=True))
    vectors = open_data(torch.rand(2, 3)).samples.read(np.arange(2))
    with pytest.raises(DataError, match="is for pictures"):
        augmented(vectors, step, keys[:2])


@pytest.mark.parametrize("name", ["RandomHorizontalFlip", "RandomAffine", "RandomResizedCrop", "RandomPerspective"])
def test_a_map_is_moved_as_its_picture_is(name: str, rng) -> None:
    args: dict[str, Any] = {
        "RandomAffine": {"degrees": 45, "fill": 200},
        "RandomResizedCrop": {"size": 7},
        "RandomPerspective": {"p": 1.0},
    }.get(name, {"p": 1.0})
    inputs = torch.from_numpy(rng.normal(size=(5, 3, 20, 24)).astype(np.float32))
    values = inputs[:, 0].double().numpy()
    pictures, maps, inside = moved(inputs, values, Augmentation(name, args, True), [(0, i) for i in range(5)])
    assert pictures.shape == inputs.shape
    assert maps == pytest.approx(pictures[:, 0].double().numpy(), abs=1e-5)
    assert inside.mean() > 0.3
    assert (maps[~inside] == 0).all() or name in ("RandomPerspective", "RandomResizedCrop")
