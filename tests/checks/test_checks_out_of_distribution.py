"""TLA802: what looks foreign is told apart, what is alike is not, and the numbers are those of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.neighbors import NearestNeighbors
from torch import nn

from tl_audit.checks.base import Context
from tl_audit.checks.out_of_distribution import out_of_distribution
from tl_audit.errors import DataError, NotEvaluated
from tl_audit.evidence.store import Store
from tl_audit.evidence.stored import StoredEvidence
from tl_audit.measures import out_of_distribution as measures
from tl_audit.measures.intervals import auc
from tl_audit.modality import TABULAR, TENSOR, fit_encoding, open_data
from tl_audit.models import Model
from tl_audit.policy import Rules, judge, load_policy
from tl_audit.records.metrics import Measurement
from tl_audit.records.preprocessing import Preprocessing
from tl_audit.subject import Domain, Subject

SCORES = ("max-probability", "energy", "nearness")

# ---------------------------------------------------------------- measures


def test_the_cut_by_hand_keeps_19_of_20_and_what_lies_at_it_passes():
    scores = np.arange(20.0)
    cut = measures.cut_keeping(scores, 0.95)
    assert cut == 1.0
    assert measures.false_acceptance(cut, np.array([0.5, 1.0, 7.0, -3.0])).value == 0.5
    assert measures.cut_keeping([3.0], 0.95) == 3.0
    with pytest.raises(DataError, match="no scores"):
        measures.cut_keeping([])


@pytest.mark.parametrize("n", [20, 37, 100, 400])
def test_the_share_that_passes_is_that_of_the_roc_curve_of_sklearn(rng, n):
    known, strange = rng.normal(1, 1, n), rng.normal(0, 1, 300)
    fpr, tpr, _ = roc_curve(np.r_[np.ones(n), np.zeros(300)], np.r_[known, strange], drop_intermediate=False)
    wanted = fpr[np.argmax(tpr >= 0.95 - 1e-12)]
    assert measures.false_acceptance(measures.cut_keeping(known), strange).value == pytest.approx(wanted, abs=1e-12)


def test_scores_are_those_of_torch_and_sklearn(rng):
    logits = rng.normal(0, 30, (50, 4))
    tensor = torch.from_numpy(logits)
    assert measures.max_probability(logits) == pytest.approx(tensor.softmax(dim=1).amax(dim=1).numpy(), abs=1e-12)
    assert measures.negative_energy(logits) == pytest.approx(tensor.logsumexp(dim=1).numpy(), abs=1e-9)
    known, new = rng.normal(size=(60, 8)), rng.normal(size=(30, 8))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (known, new)]
    distance = NearestNeighbors(n_neighbors=5).fit(unit[0]).kneighbors(unit[1])[0][:, -1]
    assert -measures.nearness(known, new, neighbours=5) == pytest.approx(distance, abs=1e-7)
    with pytest.raises(DataError, match="neighbours is 61"):
        measures.nearness(known, new, neighbours=61)


def test_the_change_of_the_area_is_paired_and_turns_its_sign_with_its_arguments(rng):
    labels = np.arange(300) % 2 == 0
    both = rng.normal(size=300) + labels
    first, second = both + 0.3 * rng.normal(size=300), both + 0.3 * rng.normal(size=300)
    found, turned = measures.auc_change(labels, first, second), measures.auc_change(labels, second, first)
    assert found.value == pytest.approx(roc_auc_score(labels, first) - roc_auc_score(labels, second), abs=1e-12)
    assert turned.value == -found.value
    assert turned.interval(0.95) == pytest.approx(tuple(-x for x in reversed(found.interval(0.95))), abs=1e-12)
    low, high = found.interval(0.95)
    apart = [auc(labels, s).interval(0.95) for s in (first, second)]
    assert high - low < 0.6 * max(b - a for a, b in apart)
    same = measures.auc_change(labels, first, first)
    assert (same.value, same.p_value) == (0.0, 1.0)
    assert same.interval(0.95)[0] < 0 < same.interval(0.95)[1]
    assert measures.auc_change(np.ones(5), np.ones(5), np.ones(5)).value is None


def test_the_interval_of_the_change_covers_and_its_test_holds_its_level():
    rng = np.random.default_rng(1)
    labels = np.arange(200) % 2 == 0
    held, rejected, rounds = 0, 0, 600
    for _ in range(rounds):
        both = rng.normal(size=200) + labels
        found = measures.auc_change(labels, both + rng.normal(size=200), both + rng.normal(size=200))
        held += found.interval(0.95)[0] <= 0 <= found.interval(0.95)[1]
        rejected += found.p_value < 0.05
    assert held / rounds > 0.925
    assert rejected / rounds < 0.075


def test_clusters_widen_the_interval_of_the_change():
    rng = np.random.default_rng(2)
    cluster = np.repeat(np.arange(40), 10)
    labels = cluster % 2 == 0
    shared = rng.normal(size=40)[cluster] + 0.1 * rng.normal(size=400)
    first, second = labels + shared, labels + rng.normal(size=400)
    rows, units = (measures.auc_change(labels, first, second, cluster=c).interval(0.95) for c in (None, cluster))
    assert units[1] - units[0] > 1.5 * (rows[1] - rows[0])


# ---------------------------------------------------------------- noise of each kind of data


def test_noise_of_a_table_stays_in_the_range_of_its_columns_and_in_their_categories(rng):
    frame = pd.DataFrame({"x": rng.uniform(5, 9, 80), "c": rng.choice(["u", "v", "w"], 80), "constant": 3.0})
    spec = fit_encoding(frame, numeric=["x", "constant"], categorical=["c"])
    samples = open_data(frame).samples
    made = TABULAR.noise(samples, np.arange(80), spec, keys=[(0, i) for i in range(200)])
    known = TABULAR.encode(samples.read(np.arange(80)), spec)
    assert made.shape == (200, spec.width)
    assert bool((made.amin(dim=0) >= known.amin(dim=0) - 1e-6).all())
    assert bool((made.amax(dim=0) <= known.amax(dim=0) + 1e-6).all())
    kinds = made[:, slice(*spec.slots()["c"])]
    assert set(kinds.sum(dim=1).tolist()) == {1.0}
    assert kinds.mean(dim=0)[:3].min() > 0.2
    again = TABULAR.noise(samples, np.arange(80), spec, keys=[(0, 7)])
    assert torch.equal(again[0], made[7])


def test_noise_of_pictures_has_every_colour_at_the_size_of_the_model_input(rng):
    from tl_audit.modality import IMAGE

    samples = open_data(rng.integers(0, 50, (4, 40, 30, 3)).astype(np.uint8)).samples
    spec = Preprocessing(height=16, width=12, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    made = IMAGE.noise(samples, np.arange(4), spec, keys=[(1, i) for i in range(30)])
    assert made.shape == (30, 3, 16, 12)
    shown = made * 0.2 + torch.tensor([0.5, 0.4, 0.3]).reshape(1, 3, 1, 1)
    assert (float(shown.min()) >= -1e-6, float(shown.max()) <= 1 + 1e-6) == (True, True)
    assert float(shown.mean()) == pytest.approx(0.5, abs=0.01)
    vectors = open_data(torch.rand(20, 3) * torch.tensor([1.0, 10.0, 0.0])).samples
    drawn = TENSOR.noise(vectors, np.arange(20), None, keys=[(0, i) for i in range(50)])
    assert drawn[:, 2].abs().max() == 0
    assert 5 < float(drawn[:, 1].max()) <= 10


# ---------------------------------------------------------------- the check


class Blobs(nn.Module):
    """Two blobs in the plane; logits are minus squared distances to their centres, so that far away both are low."""

    def __init__(self, *, wary: bool = True) -> None:
        super().__init__()
        self.body = nn.Identity()
        self.wary = wary
        self.head = nn.Linear(4, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[2.0, 0.0, -1.0, 0.0], [-2.0, 0.0, -1.0, 0.0]]))
            self.head.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        far = (x**2).sum(dim=1, keepdim=True)
        inner = torch.cat([x / (1 + far * self.wary), far * self.wary, torch.ones_like(far)], dim=1)
        logits: torch.Tensor = self.head(self.body(inner))
        return logits


def blobs(n: int, seed: int, at: float = 1.0, name: str = "t", **more: Any) -> Domain:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = rng.normal(0, 0.3, (n, 2)) + np.stack([np.where(y == 0, at, -at), np.zeros(n)], axis=1)
    return Domain(name, x.astype(np.float32), labels=[("a", "b")[i] for i in y], classes=["a", "b"], kind="tensor", **more)


def model(**how: Any) -> Model:
    return Model(Blobs(**how), classes=("a", "b"), head="head")


def checked(tmp_path: Path, **parts: Any) -> Measurement:
    subject = Subject(**parts)
    evidence = StoredEvidence(subject, store=Store(tmp_path / "evidence"), rules=Rules(), seed=0)
    return out_of_distribution(subject, evidence, Context(rules=Rules(), seed=0, declared={}))


def test_an_outside_set_like_the_target_cannot_be_told_from_it(tmp_path):
    found = checked(tmp_path, adapted=model(), target=blobs(400, 0), train=blobs(400, 1), ood=blobs(400, 2, name="twin"))
    for score in SCORES:
        one = found.select("ood_auroc", set="twin", score=score)
        assert one.interval[0] < 0.5 < one.interval[1], score
        passed = found.select("ood_fpr95", set="twin", score=score)
        assert passed.interval[0] <= 0.95 <= passed.interval[1] + 0.02
    assert not any("noise" in m.slice.get("set", "") for m in found.metrics)
    assert judge("TLA802", "t", "robustness", "medium", found, load_policy("default")).status == "info"


def test_far_inputs_are_told_apart_and_a_control_that_is_not_wary_shows_what_changed(tmp_path):
    parts = {"target": blobs(300, 0), "train": blobs(300, 1), "ood": blobs(300, 2, at=8.0, name="far")}
    found = checked(tmp_path, adapted=model(), controls={"head": model(wary=False)}, base=model(wary=False), **parts)
    assert found.select("ood_auroc", set="far", score="energy").value > 0.99
    assert found.select("ood_fpr95", set="far", score="energy").value < 0.02
    change = found.select("ood_auroc_change", set="far", score="energy")
    assert change.interval[0] > 0.5
    same = checked(tmp_path / "same", adapted=model(), controls={"head": model()}, base=model(), **parts)
    assert same.select("ood_auroc_change", set="far", score="nearness").value == 0.0
    alone = checked(tmp_path / "alone", adapted=model(), **parts)
    assert "no head-only control" in alone.select("ood_auroc_change", set="far", score="energy").reason


def test_without_a_named_set_noise_is_made_and_a_source_of_other_classes_serves_as_well(tmp_path):
    rng = np.random.default_rng(3)
    stranger = Domain("s", rng.normal(6, 1, (100, 2)).astype(np.float32), labels=["cat", "dog"] * 50, kind="tensor")
    found = checked(tmp_path, adapted=model(), target=blobs(200, 0), train=blobs(200, 1), source=stranger)
    assert {m.slice["set"] for m in found.metrics} == {"uniform noise", "source"}
    assert found.select("ood_auroc", set="source", score="nearness").n == {"target": 200, "outside": 100}
    kin = checked(tmp_path / "kin", adapted=model(), target=blobs(200, 0), source=blobs(200, 4))
    assert {m.slice["set"] for m in kin.metrics} == {"uniform noise"}
    assert kin.params["reference"] == "source"
    assert any("made up here" in c for c in kin.caveats)


def test_without_training_data_distances_go_to_half_of_the_target(tmp_path):
    found = checked(tmp_path, adapted=model(), target=blobs(200, 0), ood=blobs(200, 2, name="twin"))
    one = found.select("ood_auroc", set="twin", score="nearness")
    assert one.n["target"] == 100
    assert one.interval[0] < 0.5 < one.interval[1]
    few = checked(tmp_path / "few", adapted=model(), target=blobs(12, 0), ood=blobs(20, 2, name="twin"))
    assert few.select("ood_auroc", set="twin", score="nearness").value is None


def test_outputs_that_are_probabilities_have_no_energy(tmp_path):
    flat = Model(nn.Sequential(nn.Linear(2, 2), nn.LogSoftmax(dim=1)), classes=("a", "b"), head="0")
    found = checked(tmp_path, adapted=flat, target=blobs(60, 0), ood=blobs(60, 2, name="twin"))
    assert "energy is the same for every input" in found.select("ood_auroc", set="twin", score="energy").reason
    assert found.select("ood_fpr95", set="twin", score="energy").value is None


def test_clusters_are_the_units_and_the_same_seed_gives_the_same_numbers(tmp_path):
    parts = {"adapted": model(), "target": blobs(300, 0, cluster=[f"p{i // 10}" for i in range(300)]), "train": blobs(100, 1)}
    found = checked(tmp_path, **parts)
    assert found.select("ood_auroc", set="uniform noise", score="energy").clusters == {"target": 30}
    assert found == checked(tmp_path / "again", **parts)


def test_an_outside_set_that_cannot_be_read_is_named(tmp_path):
    broken = Domain("odd", np.zeros((5, 7), dtype=np.float32), kind="tensor")
    with pytest.raises(NotEvaluated, match="outputs on the outside set"):
        checked(tmp_path, adapted=model(), target=blobs(60, 0), ood=broken)


def test_inputs_that_look_more_familiar_than_the_target_are_said_to_do_so(tmp_path):
    found = checked(tmp_path, adapted=model(wary=False), target=blobs(300, 0), train=blobs(300, 1), ood=blobs(300, 2, at=8.0, name="far"))
    assert found.select("ood_auroc", set="far", score="max-probability").value < 0.05
    assert "by max-probability and energy it looks more familiar than the target (below 0.5)" in found.summary


def test_rows_of_a_table_are_set_against_rows_whose_cells_know_nothing_of_each_other(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=300)
    frame = pd.DataFrame({"x": x, "twin": x + 0.01 * rng.normal(size=300), "c": rng.choice(["u", "v"], 300)})
    spec = fit_encoding(frame, numeric=["x", "twin"], categorical=["c"])
    network = nn.Sequential(nn.Linear(spec.width, 2))
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(2, spec.width))
        network[0].bias.zero_()
    labels = np.where(x > 0, "b", "a")
    domains = {
        role: Domain(role, frame.iloc[rows].reset_index(drop=True), labels=labels[rows], kind="tabular")
        for role, rows in (("target", slice(0, 150)), ("train", slice(150, 300)))
    }
    found = checked(tmp_path, adapted=Model(network, classes=("a", "b"), preprocessing=spec), **domains)
    # twins lie on a line, noise does not
    assert found.select("ood_auroc", set="uniform noise", score="nearness").interval[0] > 0.7
    assert found.select("ood_auroc", set="uniform noise", score="max-probability").value is not None
