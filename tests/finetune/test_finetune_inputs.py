"""Training data: splits, alignment by name, order, augmentation, memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tl_audit as ta
from tests.finetune.conftest import pictures
from tl_audit.errors import ConfigError, DataError
from tl_audit.finetune.inputs import Augmenter, Batches, Inputs, align, count_batches, cut, epoch_order, hold_out
from tl_audit.finetune.plan import Augment
from tl_audit.records.preprocessing import Preprocessing

SPEC = Preprocessing(height=8, width=8)


def test_labels_are_aligned_by_name_whatever_the_order_of_the_classes(domain: ta.Domain):
    split, notes = align("train", domain, ("c", "a", "b"))
    assert [("c", "a", "b")[code] for code in split.labels] == list(domain.labels)
    assert notes == ()


def test_a_label_that_is_no_class_is_refused_and_an_absent_class_is_said(domain: ta.Domain):
    with pytest.raises(DataError, match=r"labels \['c'\] are not among the classes"):
        align("train", domain, ("a", "b"))
    assert align("train", domain, ("a", "b", "c", "d"))[1] == ("train: no sample of the classes ['d']",)


def test_a_share_is_held_out_by_class_and_never_overlaps(domain: ta.Domain):
    split, _ = align("train", domain, domain.classes)
    train, held = hold_out(split, 0.25, seed=1)
    assert not set(train.rows) & set(held.rows)
    assert len(train) + len(held) == 48
    assert np.bincount(held.labels).tolist() == [4, 4, 4]
    again = hold_out(split, 0.25, seed=1)[1]
    assert (again.rows == held.rows).all()
    assert (hold_out(split, 0.25, seed=2)[1].rows != held.rows).any()


def test_clusters_stay_whole_when_a_share_is_held_out():
    images, labels = pictures()
    patients = [f"p{i // 4}" for i in range(48)]
    domain = ta.Domain("clustered", images, labels=labels, cluster=patients, kind="image")
    split, _ = align("train", domain, domain.classes)
    train, held = hold_out(split, 0.25, seed=0)
    assert not {patients[row] for row in train.rows} & {patients[row] for row in held.rows}


def test_order_depends_on_seed_and_epoch_alone():
    labels = np.arange(10) % 2
    assert (epoch_order(labels, seed=3, epoch=2) == epoch_order(labels, seed=3, epoch=2)).all()
    assert sorted(epoch_order(labels, seed=3, epoch=2)) == list(range(10))
    assert (epoch_order(labels, seed=3, epoch=2) != epoch_order(labels, seed=3, epoch=3)).any()
    assert (epoch_order(labels, seed=3, epoch=2) != epoch_order(labels, seed=4, epoch=2)).any()


def test_the_balanced_sampler_draws_each_class_equally_often():
    labels = np.array([0] * 900 + [1] * 100)
    order = epoch_order(labels, seed=0, epoch=0, sampler="balanced", classes=2)
    assert len(order) == 1000
    assert abs(labels[order].mean() - 0.5) < 0.05  # three standard errors


@pytest.mark.parametrize(("n", "size", "expected"), [(10, 4, [4, 4, 2]), (9, 4, [4, 5]), (4, 8, [4]), (1, 8, [1]), (3, 1, [1, 1, 1])])
def test_a_last_batch_of_one_joins_the_one_before(n: int, size: int, expected: list[int]):
    assert [len(part) for part in cut(np.arange(n), size)] == expected
    assert count_batches(n, size) == len(expected)


@pytest.mark.parametrize("cache", [0, 2**30])
def test_batches_are_the_same_with_and_without_memory(domain: ta.Domain, cache: int):
    split, _ = align("train", domain, domain.classes)
    inputs = Inputs(split, SPEC, cache_bytes=cache)
    assert inputs.in_memory == (cache > 0)
    x, y = inputs.batch(np.array([5, 0, 17]))
    expected = domain.samples.modality.encode(domain.samples.read(np.array([5, 0, 17])), SPEC)
    assert torch.equal(x, expected)
    assert y.tolist() == [split.labels[i] for i in (5, 0, 17)]


def test_augmented_samples_depend_on_seed_epoch_and_row_and_not_on_the_batch(domain: ta.Domain):
    split, _ = align("train", domain, domain.classes)
    augment = Augmenter([Augment("RandomHorizontalFlip"), Augment("ColorJitter", args={"brightness": 0.5})], "image")
    inputs = Inputs(split, SPEC, augment=augment)
    before = torch.random.get_rng_state()
    alone, _ = inputs.batch(np.array([7]), seed=1, epoch=2)
    among, _ = inputs.batch(np.array([3, 7, 9]), seed=1, epoch=2)
    assert torch.equal(alone[0], among[1])
    assert torch.equal(before, torch.random.get_rng_state())
    plain, _ = inputs.batch(np.array([7]))
    assert not torch.equal(plain, alone)
    assert not torch.equal(inputs.batch(np.array([7]), seed=1, epoch=3)[0], alone)


def test_a_flip_with_certainty_is_the_mirrored_input(domain: ta.Domain):
    split, _ = align("train", domain, domain.classes)
    inputs = Inputs(split, SPEC, augment=Augmenter([Augment("RandomHorizontalFlip", args={"p": 1.0})], "image"))
    assert torch.equal(inputs.batch(np.array([4]), seed=0, epoch=0)[0], inputs.batch(np.array([4]))[0].flip(-1))


@pytest.mark.parametrize(
    ("step", "kind", "says"),
    [
        (Augment("RandomHorizontalFlp"), "image", "did you mean RandomHorizontalFlip"),
        (Augment("RandomRotation"), "image", "degrees"),
        (Augment("RandomHorizontalFlip"), "tabular", "works on images"),
    ],
)
def test_wrong_augmentations_are_refused(step: Augment, kind: str, says: str):
    with pytest.raises(ConfigError, match=says):
        Augmenter([step], kind)


def test_an_augmentation_that_leaves_uint8_is_refused(domain: ta.Domain):
    split, _ = align("train", domain, domain.classes)
    inputs = Inputs(split, SPEC, augment=Augmenter([Augment("ToDtype", args={"dtype": torch.float32})], "image"))
    with pytest.raises(ConfigError, match="uint8"):
        inputs.batch(np.array([0]), seed=0, epoch=0)


def test_samples_whose_encoding_is_not_finite_are_left_out_and_listed():
    values = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    values[7, 1] = np.nan
    domain = ta.Domain("t", torch.from_numpy(values), labels=["a", "b"] * 20, kind="tensor")
    split, _ = align("train", domain, domain.classes)
    inputs = Inputs(split, None)
    assert len(inputs) == 39
    assert inputs.dropped[0][0] == domain.ids[7]
    assert "not finite" in inputs.dropped[0][1]


def test_too_many_unusable_samples_are_refused():
    values = np.full((10, 2), np.nan, dtype=np.float32)
    values[:8] = 1.0
    domain = ta.Domain("t", torch.from_numpy(values), labels=["a", "b"] * 5, kind="tensor")
    with pytest.raises(DataError, match="2 of 10"):
        Inputs(align("train", domain, domain.classes)[0], None)


def test_the_fingerprint_follows_content_and_labels_and_not_the_order(domain: ta.Domain):
    split, _ = align("train", domain, domain.classes)
    one = Inputs(split, SPEC).record(domain.classes)
    turned = Inputs(split.take(np.arange(47, -1, -1)), SPEC).record(domain.classes)
    assert one == turned
    assert one.class_counts == {"a": 16, "b": 16, "c": 16}
    images, labels = pictures()
    other = ta.Domain("tiny", images, labels=[labels[1], *labels[1:]], kind="image")
    assert Inputs(align("train", other, other.classes)[0], SPEC).record(other.classes).sha256 != one.sha256


def test_an_epoch_of_batches_holds_every_sample_once(domain: ta.Domain):
    split, _ = align("train", domain, domain.classes)
    batches = Batches(Inputs(split, SPEC), 7, seed=0, epoch=lambda: 4)
    parts = list(batches)
    assert len(parts) == len(batches)
    assert sum(len(y) for _, y in parts) == 48
