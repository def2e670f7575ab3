"""TLA201 204 206 208 507 on planted data, through real domains and real evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from tl_audit.checks.base import Check, Context
from tl_audit.checks.data import class_balance, corrupt_inputs, exact_leakage, group_counts, property_drift
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.store import Store
from tl_audit.evidence.stored import StoredEvidence
from tl_audit.measures.fairness import minimum_detectable_gap
from tl_audit.modality import fit_encoding
from tl_audit.models import Model
from tl_audit.policy import Rules
from tl_audit.records.metrics import Measurement
from tl_audit.records.preprocessing import Preprocessing
from tl_audit.subject import Domain, Subject

SPEC = Preprocessing(height=8, width=8)


class Bright(nn.Module):
    """Answers "b" where the picture is bright; NaN where its first pixel is white."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-1.0], [1.0]]))
            self.head.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head((x.flatten(1).mean(dim=1, keepdim=True) - 0.5) * 10)
        return torch.where((x[:, :1, 0, 0] == 1.0), torch.nan, logits)


def pictures(n: int, seed: int) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=n)
    low = rng.integers(0, 100, size=(n, 8, 8)).astype(np.uint8)
    low[labels == 1] += 130
    return low, ["ab"[i] for i in labels]


def domain(n: int = 60, seed: int = 0, **given: Any) -> Domain:
    values, labels = pictures(n, seed)
    return Domain(f"d{seed}", values, **{"labels": labels, "classes": ["a", "b"], **given})


def audit(check: Check, subject: Subject, tmp_path: Path, **context: Any) -> Measurement:
    evidence = StoredEvidence(subject, store=Store(tmp_path / "evidence"), rules=Rules(), seed=0, samples=context.pop("samples", "off"))
    return check(subject, evidence, Context(rules=Rules(), seed=0, declared=context.get("declared", {})))


def subject(**given: Any) -> Subject:
    return Subject(**{"adapted": Model(Bright(), classes=("a", "b"), preprocessing=SPEC), "target": domain(), **given})


# ---------------------------------------------------------------- TLA201


def test_k_planted_copies_are_k_leaks_though_re_encoded(tmp_path: Path) -> None:
    values, labels = pictures(50, 1)
    (tmp_path / "target").mkdir()
    train, train_labels = pictures(40, 2)
    for i in range(50):
        planted = i < 7
        Image.fromarray(train[i] if planted else values[i]).save(tmp_path / "target" / f"{i:02d}.{'bmp' if planted else 'png'}")
    names = [*train_labels[:6], "a" if train_labels[6] == "b" else "b", *labels[7:]]
    target = Domain("t", tmp_path / "target", labels=names, classes=["a", "b"])
    given = subject(target=target, train=Domain("train", train, labels=train_labels, classes=["b", "a"]))
    found = audit(exact_leakage, given, tmp_path, samples="on")
    assert found.select("leaked_exact").value == 7
    assert found.select("leaked_exact_share").value == pytest.approx(0.14)
    assert found.select("leaked_label_conflicts").value == 1
    assert [e.kind for e in found.exhibits] == ["Table", "ImageGrid"]
    assert [e.kind for e in audit(exact_leakage, given, tmp_path).exhibits] == ["Table"]


def test_validation_counts_as_known_data(tmp_path: Path) -> None:
    given = subject(train=domain(seed=3), validation=domain(seed=0).subset(range(10)))
    found = audit(exact_leakage, given, tmp_path)
    assert found.select("leaked_exact").value == 10
    assert "validation" in found.summary


def test_disjoint_data_have_no_leak(tmp_path: Path) -> None:
    found = audit(exact_leakage, subject(train=domain(seed=4)), tmp_path)
    assert found.select("leaked_exact").value == 0
    assert found.exhibits == ()


def test_blank_pictures_are_counted_apart(tmp_path: Path) -> None:
    target, train = pictures(20, 1)[0], pictures(20, 2)[0]
    target[:3], train[:2] = 7, 7
    found = audit(exact_leakage, subject(target=Domain("t", target), train=Domain("r", train)), tmp_path)
    assert found.select("leaked_exact").value == 0
    assert found.select("leaked_blank").value == 3


def test_the_hashes_of_a_run_directory_serve_where_the_data_are_gone(tmp_path: Path) -> None:
    target = domain()
    hashes = target.samples.modality.content_hashes(target.samples.read(np.arange(5)))
    rows = {"id": list("vwxyz"), "split": ["train"] * 5, "label": ["a"] * 5, "cluster": [None] * 5, "content_hash": hashes}
    pd.DataFrame(rows).to_parquet(tmp_path / "samples.parquet")
    found = audit(exact_leakage, subject(target=target, run_dir=str(tmp_path)), tmp_path)
    assert found.select("leaked_exact").value == 5


def test_without_training_data_leakage_is_not_evaluated(tmp_path: Path) -> None:
    with pytest.raises(NotEvaluated, match="train or validation"):
        audit(exact_leakage, subject(), tmp_path)


def test_rows_of_tables_leak_without_their_id_and_label(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train = pd.DataFrame({"id": range(30), "x": rng.normal(size=30), "c": rng.choice(list("uv"), 30), "label": ["a", "b"] * 15})
    target = train.assign(id=range(100, 130), x=[*train["x"][:4], *rng.normal(size=26)], label=["b", "a"] * 15)
    spec = fit_encoding(Domain("r", train))
    model = Model(nn.Linear(spec.width, 2), classes=("a", "b"), preprocessing=spec)
    found = audit(exact_leakage, Subject(adapted=model, target=Domain("t", target), train=Domain("r", train)), tmp_path)
    assert found.select("leaked_exact").value == 4
    assert found.select("leaked_label_conflicts").value == 4


# ---------------------------------------------------------------- TLA204


def test_class_counts_by_hand_with_a_declared_class_never_seen(tmp_path: Path) -> None:
    values = pictures(10, 0)[0]
    target = Domain("t", values, labels=["a"] * 6 + ["b"] * 2 + [None] * 2, classes=["a", "b", "c"])
    found = audit(class_balance, subject(target=target, train=domain(seed=5)), tmp_path)
    share = found.select("class_share", **{"class": "a", "domain": "target"})
    assert share.value == 0.75
    assert share.interval == pytest.approx((0.4093, 0.9285), abs=1e-3)  # Wilson, 6 of 8
    assert found.select("classes_absent", domain="target").value == 1
    ratio = found.select("imbalance_ratio", domain="target")
    assert ratio.value is None
    assert ratio.reason == "a class has no sample"
    assert found.select("classes_absent", domain="train").value == 0
    assert "2 rows of the target have no label." in found.caveats


# ---------------------------------------------------------------- TLA206


def test_a_group_of_three_is_listed_and_a_declared_one_is_missed(tmp_path: Path) -> None:
    groups = ["tiny"] * 3 + ["big"] * 50 + [None] * 7
    target = domain(groups={"site": groups}, cluster=[f"p{i // 2}" for i in range(60)], positive="b")
    found = audit(group_counts, subject(target=target), tmp_path, declared={"groups": {"site": ["big", "tiny", "west"]}})
    assert found.select("group_n", site="tiny").value == 3
    assert found.select("group_clusters", site="tiny").value == 2
    assert found.select("group_positives", site="big").value == sum(label == "b" for label in target.labels[3:53])  # type: ignore[index]
    assert found.select("groups_below_minimum").value == 2
    assert found.select("groups_missing").value == 1
    assert found.select("group_unknown_share", column="site").value == pytest.approx(7 / 60)
    assert any("site = west" in c for c in found.caveats)
    assert any("site = tiny (3 rows, 2 clusters)" in c for c in found.caveats)


def test_the_detectable_gap_is_the_closed_form(tmp_path: Path) -> None:
    found = audit(group_counts, subject(target=domain(400, groups={"sex": ["f"] * 150 + ["m"] * 250})), tmp_path)
    right = 1.0  # the model is right everywhere on these pictures
    expected = minimum_detectable_gap(150, 250, right, limit=0.10, groups=2, alpha=0.05).value
    assert found.select("minimum_detectable_gap", sex="f").value == pytest.approx(expected)


# ---------------------------------------------------------------- TLA208


def test_k_damaged_files_are_k_unreadable_and_nothing_else_changes(tmp_path: Path) -> None:
    values, labels = pictures(30, 0)
    (tmp_path / "t").mkdir()
    for i in range(30):
        Image.fromarray(values[i]).save(tmp_path / "t" / f"{i:02d}.png")
    for i in (4, 9):
        path = tmp_path / "t" / f"{i:02d}.png"
        path.write_bytes(path.read_bytes()[:60])
    target = Domain(
        "t", tmp_path / "t", labels=labels, classes=["a", "b"], groups={"s": ["u"] * 10 + ["v"] * 20}, caps={"bad_fraction": 0.5}
    )
    found = audit(corrupt_inputs, subject(target=target), tmp_path)
    assert found.select("unreadable", domain="target").value == 2
    assert found.select("nonfinite_inputs", domain="target").value == 0
    assert found.select("nonfinite_outputs", domain="target", model="adapted").value == 0
    share = found.select("excluded_share", domain="target")
    assert share.value == pytest.approx(2 / 30)
    assert share.n == {"target": 30}
    assert found.select("group_excluded_share", s="u").value == pytest.approx(0.2)
    assert found.select("excluded_share_gap", s="u").value == pytest.approx(0.2)
    reasons = [row[2] for e in found.exhibits if e.id == "left-out-reasons" for row in e.rows]  # type: ignore[union-attr]
    assert len(reasons) == 2


def test_outputs_that_are_no_numbers_are_counted_by_model(tmp_path: Path) -> None:
    values, labels = pictures(30, 0)
    values[:3, 0, 0] = 255
    target = Domain("t", values, labels=labels, classes=["a", "b"])
    found = audit(corrupt_inputs, subject(target=target), tmp_path)
    assert found.select("nonfinite_outputs", domain="target", model="adapted").value == 3
    assert found.select("excluded_share", domain="target").value == pytest.approx(0.1)


def test_rows_that_hold_infinity_are_inputs_not_outputs(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    values[3, 1] = np.inf
    target = Domain("t", values, labels=["a", "b"] * 10)
    found = audit(corrupt_inputs, Subject(adapted=Model(nn.Linear(2, 2), classes=("a", "b")), target=target), tmp_path)
    assert found.select("nonfinite_inputs", domain="target").value == 1
    assert found.select("nonfinite_outputs", domain="target", model="adapted").value == 0
    assert found.select("excluded_share", domain="target").value == pytest.approx(0.05)


def test_what_the_reader_and_the_encoding_guessed_is_said(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": np.arange(30.0), "c": ["u", "v"] * 15})
    model = Model(
        nn.Linear(5, 2),
        classes=("a", "b"),
        preprocessing=fit_encoding(frame.assign(ca=1.0).assign(c="u"), numeric=["x", "ca"], categorical=["c"]),
    )
    assert model.preprocessing is not None
    model = Model(nn.Linear(model.preprocessing.width, 2), classes=("a", "b"), preprocessing=model.preprocessing)  # type: ignore[union-attr]
    found = audit(corrupt_inputs, Subject(adapted=model, target=Domain("t", frame)), tmp_path)
    said = " ".join(found.caveats)
    assert "column roles were inferred" in said
    assert "'ca' of the encoding is not in the table" in said
    assert "never saw (v) in 15 rows" in said


def test_sound_data_leave_nothing_out(tmp_path: Path) -> None:
    found = audit(corrupt_inputs, subject(source=domain(seed=2)), tmp_path)
    assert all(m.value == 0 for m in found.metrics)
    assert {m.slice["domain"] for m in found.metrics} == {"target", "source"}


# ---------------------------------------------------------------- TLA507


def value(found: Measurement, name: str, of: str) -> float | None:
    return found.select(name, property=of).value


def test_more_light_is_found_as_brightness_and_not_as_shape(tmp_path: Path) -> None:
    brighter = (pictures(200, 2)[0] * 0.9 + 25).astype(np.uint8)
    found = audit(property_drift, subject(target=Domain("t", brighter), source=Domain("s", pictures(200, 1)[0])), tmp_path)
    light = found.select("ks", property="brightness")
    assert light.value is not None
    assert light.value > 0.3
    assert light.p_value is not None
    assert light.p_value < 0.01
    assert value(found, "ks", "aspect_ratio") == 0
    assert "brightness" in found.summary


def test_equal_data_lie_within_their_null(tmp_path: Path) -> None:
    found = audit(property_drift, subject(target=domain(200, 1), source=domain(200, 2)), tmp_path)
    assert found.select("properties_shifted").value == 0
    for name in ("brightness", "contrast", "sharpness"):
        distance, high = value(found, "ks", name), value(found, "ks_null_high", name)
        assert distance is not None
        assert high is not None
        assert distance <= high


def tables(tmp_path: Path, source: pd.DataFrame, target: pd.DataFrame) -> Measurement:
    model = Model(nn.Linear(1, 2), classes=("a", "b"), preprocessing=fit_encoding(source[["x"]]))
    return audit(property_drift, Subject(adapted=model, target=Domain("t", target), source=Domain("s", source)), tmp_path)


def test_a_column_that_goes_missing_is_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    source = pd.DataFrame({"x": rng.normal(size=150), "ca": rng.normal(size=150), "c": rng.choice(list("uv"), 150)})
    target = pd.DataFrame({"x": rng.normal(size=120), "ca": [np.nan] * 119 + [0.1], "c": ["w"] * 120})
    found = tables(tmp_path, source, target)
    assert value(found, "tvd", "ca (missing)") == pytest.approx(119 / 120)
    assert value(found, "tvd", "c") == 1
    assert value(found, "unseen_category_share", "c") == 1
    quiet = value(found, "ks", "x")
    assert quiet is not None
    assert quiet < 0.2


def test_a_column_that_changes_type_is_compared_as_categories(tmp_path: Path) -> None:
    source = pd.DataFrame({"x": np.arange(60.0), "grade": [1.0, 2.0, 3.0] * 20})
    target = pd.DataFrame({"x": np.arange(60.0), "grade": ["1", "2", "c"] * 20})
    found = tables(tmp_path, source, target)
    assert value(found, "tvd", "grade") == pytest.approx(1 / 3)
    assert any("'grade' holds numbers in one domain and text in the other" in c for c in found.caveats)


def test_a_column_of_one_domain_only_is_said(tmp_path: Path) -> None:
    source = pd.DataFrame({"x": np.arange(60.0), "only": np.arange(60.0)})
    found = tables(tmp_path, source, pd.DataFrame({"x": np.arange(60.0)}))
    assert any("'only' is known in the source only" in c for c in found.caveats)


def test_equal_rows_in_clusters_raise_no_alarm(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    sides = {}
    for role in ("source", "target"):
        level = np.repeat(rng.normal(size=10), 6)
        frame = pd.DataFrame({"x": level + 0.05 * rng.normal(size=60), "p": [f"{role}{i // 6}" for i in range(60)]})
        sides[role] = Domain(role, frame, cluster="p")
    model = Model(nn.Linear(1, 2), classes=("a", "b"), preprocessing=fit_encoding(sides["source"]))
    found = audit(property_drift, Subject(adapted=model, **sides), tmp_path)  # type: ignore[arg-type]
    assert found.select("properties_shifted").value == 0
    assert found.select("ks", property="x").n == {"source": 60, "target": 60}


@pytest.mark.real_data
def test_hungarian_columns_that_are_missing_are_found(tmp_path: Path, shared_data: Path) -> None:
    source, target = (Domain(n, shared_data / "heart4" / f"processed.{n}.csv", label="target") for n in ("cleveland", "hungarian"))
    spec = fit_encoding(source)
    model = Model(nn.Linear(spec.width, 5), classes=tuple("01234"), preprocessing=spec)
    found = audit(property_drift, Subject(adapted=model, target=target, source=source), tmp_path)
    for column in ("ca", "thal", "slope"):
        distance = found.select("tvd", property=f"{column} (missing)")
        assert distance.value is not None
        assert distance.value > 0.6
        assert distance.p_value is not None
        assert distance.p_value < 0.01
