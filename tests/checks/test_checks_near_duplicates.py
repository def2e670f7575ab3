"""TLA202: re-encoded, cropped and rounded copies are found, exact ones are left to TLA201, and look-alikes are not taken for copies."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from tl_audit.checks.base import Check, Context
from tl_audit.checks.data import exact_leakage
from tl_audit.checks.near_duplicates import NEAR_DUPLICATES, near_duplicates
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.store import Store
from tl_audit.evidence.stored import StoredEvidence
from tl_audit.modality import fit_encoding
from tl_audit.models import Model
from tl_audit.policy import Rules, load_policy
from tl_audit.policy.judge import judge
from tl_audit.records.metrics import Measurement
from tl_audit.records.preprocessing import Preprocessing
from tl_audit.subject import Domain, Subject

SIDE = 48
SPEC = Preprocessing(height=16, width=16)


class Pooled(nn.Module):
    """Features are the averages of a 4 x 4 grid."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.head = nn.Linear(48, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(self.head.weight.shape, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.pool(x))
        return out


def model(seed: int = 0) -> Model:
    return Model(Pooled(seed), classes=("a", "b"), preprocessing=SPEC)


def scenes(n: int, seed: int) -> np.ndarray:
    """(n, SIDE, SIDE, 3) smooth random pictures."""
    rng = np.random.default_rng(seed)
    out = np.empty((n, SIDE, SIDE, 3), dtype=np.uint8)
    for i in range(n):
        low = Image.fromarray(rng.uniform(0, 255, (6, 6, 3)).astype(np.uint8))
        smooth = np.asarray(low.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(float)
        out[i] = np.clip(smooth + rng.normal(0, 3, smooth.shape), 0, 255)
    return out


def recoded(picture: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=75)
    return np.asarray(Image.open(buffer))


def cropped(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture[:-1, :-1]).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def pictures(name: str, values: np.ndarray, **given: Any) -> Domain:
    return Domain(name, values, **{"labels": ["ab"[i % 2] for i in range(len(values))], "classes": ["a", "b"], "kind": "image", **given})


def audit(subject: Subject, tmp_path: Path, check: Check = near_duplicates, samples: str = "off", folder: str = "evidence") -> Measurement:
    evidence = StoredEvidence(subject, store=Store(tmp_path / folder), rules=Rules(), seed=0, samples=samples)
    return check(subject, evidence, Context(rules=Rules(), seed=0, declared={}))


def status(found: Measurement, check: Check = near_duplicates) -> str:
    return judge(check.code, check.title, check.section, check.severity, found, load_policy("default")).status


def test_the_check_explains_itself_in_three_parts() -> None:
    for check in NEAR_DUPLICATES:
        assert check.help["asks"].endswith("?")
        assert all(len(check.help[part]) > 40 for part in ("measured", "matters", "reduce"))


def test_recoded_and_cropped_copies_are_found_and_left_alone_by_the_exact_check(tmp_path: Path) -> None:
    train, target = scenes(80, 1), scenes(70, 2)
    for i in range(10):
        target[i] = recoded(train[2 * i]) if i % 2 else cropped(train[2 * i])
    given = Subject(adapted=model(), base=model(1), target=pictures("t", target), train=pictures("r", train))
    found = audit(given, tmp_path, samples="on")
    # a crop moves more than four bits of the hash in about one of ten pictures
    leaked = found.select("leaked_near").value
    assert leaked in (9, 10)
    assert found.select("leaked_near_share").value == pytest.approx(leaked / 70)
    # training rows 2 i bear "a"; of the target rows the recoded ones bear "b"
    assert found.select("leaked_near_label_conflicts").value == 5
    # of 2,800 pairs of one class about five are the planted ones
    assert found.select("near_random_pair_rate").value < 0.005
    assert status(found) == "warn"
    assert [e.id for e in found.exhibits] == ["near-copies", "near-copies-pictures", "random-pairs"]
    assert all(len(row.pictures) == 2 for row in found.exhibits[1].rows)
    names = {row["sample"] for row in found.exhibits[0].to_rows()}
    assert not names & set(given.target.ids)
    exact = audit(given, tmp_path, exact_leakage)
    assert exact.select("leaked_exact").value == 0
    assert "near-copies-pictures" not in [e.id for e in audit(given, tmp_path).exhibits]


def test_exact_copies_are_the_exact_checks_alone(tmp_path: Path) -> None:
    train, target = scenes(40, 1), scenes(40, 2)
    target[:5] = train[:5]
    # a copy that also resembles another training picture is no second finding
    train[10] = recoded(train[0])
    given = Subject(adapted=model(), base=model(1), target=pictures("t", target), train=pictures("r", train))
    found = audit(given, tmp_path)
    assert found.select("leaked_near").value == 0
    assert status(found) == "pass"
    assert audit(given, tmp_path, exact_leakage).select("leaked_exact").value == 5


def test_other_pictures_however_many_are_no_copies(tmp_path: Path) -> None:
    for seed in range(3):
        given = Subject(
            adapted=model(), base=model(1), target=pictures("t", scenes(60, 10 + seed)), train=pictures("r", scenes(60, 20 + seed))
        )
        found = audit(given, tmp_path, folder=str(seed))
        assert found.select("leaked_near").value == 0
        assert found.select("near_within_target_share").value == 0
        assert status(found) == "pass"


def test_groups_inside_the_target_are_offered_as_clusters(tmp_path: Path) -> None:
    target = scenes(30, 2)
    target[1], target[2], target[6] = recoded(target[0]), target[0], target[5]
    given = Subject(adapted=model(), base=model(1), target=pictures("t", target), train=pictures("r", scenes(30, 1)))
    found = audit(given, tmp_path)
    assert found.select("leaked_near").value == 0
    assert found.select("near_within_target_share").value == pytest.approx(3 / 30)
    assert found.select("duplicate_groups").value == 2
    table = next(e for e in found.exhibits if e.id == "duplicate-groups")
    assert [row["samples"] for row in table.to_rows()] == [3, 2]
    assert "were not applied" in " ".join(found.caveats)


def test_blank_pictures_are_not_compared(tmp_path: Path) -> None:
    train, target = scenes(20, 1), scenes(20, 2)
    train[:4], target[:3] = 7, 9
    found = audit(Subject(adapted=model(), base=model(1), target=pictures("t", target), train=pictures("r", train)), tmp_path)
    assert found.select("leaked_near").value == 0
    assert "3 target samples are blank" in " ".join(found.caveats)


@pytest.mark.parametrize("which", ["target", "train"])
def test_where_nothing_can_be_compared_nothing_is_passed(tmp_path: Path, which: str) -> None:
    train, target = scenes(20, 1), scenes(20, 2)
    (train if which == "train" else target)[:] = 7
    with pytest.raises(NotEvaluated, match=f"samples of the {which} data that can be compared"):
        audit(Subject(adapted=model(), base=model(1), target=pictures("t", target), train=pictures("r", train)), tmp_path)


def test_without_a_base_the_adapted_features_serve_and_it_is_said(tmp_path: Path) -> None:
    train, target = scenes(20, 1), scenes(20, 2)
    target[3] = recoded(train[3])
    found = audit(Subject(adapted=model(), target=pictures("t", target), validation=pictures("v", train)), tmp_path)
    assert found.select("leaked_near").value == 1
    assert "adapted model serve" in " ".join(found.caveats)
    assert found.params["compared_with"] == "validation"


def test_hashes_alone_cannot_find_near_copies(tmp_path: Path) -> None:
    with pytest.raises(NotEvaluated, match="training or validation data themselves"):
        audit(Subject(adapted=model(), target=pictures("t", scenes(5, 1)), run_dir=str(tmp_path)), tmp_path)


def test_the_order_of_rows_changes_nothing(tmp_path: Path) -> None:
    train, target = scenes(20, 1), scenes(20, 2)
    target[:4] = np.stack([recoded(p) for p in train[:4]])
    base = audit(Subject(adapted=model(), base=model(1), target=pictures("t", target), train=pictures("r", train)), tmp_path)
    turned = audit(
        Subject(adapted=model(), base=model(1), target=pictures("t", target[::-1]), train=pictures("r", train[::-1])), tmp_path, folder="2"
    )
    assert base.select("leaked_near").value == turned.select("leaked_near").value == 4


def test_sketches_survive_the_store(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, picture in enumerate(scenes(6, 3)):
        Image.fromarray(picture).save(folder / f"{i}.png")
    (folder / "6.png").write_bytes(b"no picture")
    made = []
    for _ in range(2):
        given = Subject(adapted=model(), target=Domain("t", folder, kind="image", caps=_lenient()))
        with Store(tmp_path / "kept") as store:
            made.append(StoredEvidence(given, store=store, rules=Rules()).sketches("target"))
    assert made[0].shape == (7, 16, 16)
    np.testing.assert_array_equal(made[0], made[1])
    assert made[0][:6].reshape(6, -1).max(axis=1).tolist() == [255] * 6
    assert not made[0][6].any()


def _lenient() -> Any:
    from tl_audit.modality.base import Caps

    return Caps(bad_fraction=0.5)


# ---------------------------------------------------------------- tables


def frame(n: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(rng.normal(50, 10, size=(n, 4)), columns=list("wxyz"))
    table["kind"] = rng.choice(["p", "q"], n)
    table["count"] = rng.integers(0, 4, n).astype(float)
    table.loc[rng.random(n) < 0.1, "x"] = np.nan
    return table


def reader(train: pd.DataFrame) -> Model:
    """A model of rows; nothing runs it."""
    return Model(nn.Linear(9, 2), classes=("a", "b"), preprocessing=fit_encoding(rows("r", train)))


def rows(name: str, table: pd.DataFrame) -> Domain:
    return Domain(name, table, labels=["ab"[i % 2] for i in range(len(table))], classes=["a", "b"], kind="tabular")


def test_rounded_rows_are_near_copies_and_equal_or_other_rows_are_not(tmp_path: Path) -> None:
    train, target = frame(300, 1), frame(250, 2)
    target.iloc[:20] = train.iloc[:20].to_numpy()
    target = target.astype(train.dtypes.to_dict())
    target.iloc[:12, 0] += 1e-7
    target.iloc[12:15, 1] = target.iloc[12:15, 1] + 1e-3
    given = Subject(adapted=reader(train), target=rows("t", target), train=rows("r", train))
    found = audit(given, tmp_path)
    rounded = 12
    assert found.select("leaked_near").value == rounded
    assert status(found) == "warn"
    exact = audit(given, tmp_path, exact_leakage).select("leaked_exact").value
    missing = int(train.iloc[12:15, 1].isna().sum())
    assert exact == 5 + missing
    assert found.exhibits[-1].id == "random-pairs"


def test_a_category_or_a_missing_cell_that_differs_makes_another_row(tmp_path: Path) -> None:
    train = frame(100, 1)
    target = train.copy()
    target["w"] += 1e-7
    target["kind"] = np.where(np.arange(100) < 50, train["kind"], np.where(train["kind"] == "p", "q", "p"))
    target.loc[:9, "x"] = np.where(train.loc[:9, "x"].isna(), 1.0, np.nan)
    found = audit(Subject(adapted=reader(train), target=rows("t", target), train=rows("r", train)), tmp_path)
    assert found.select("leaked_near").value == 40


def test_columns_that_one_side_lacks_are_said_and_not_compared(tmp_path: Path) -> None:
    train = frame(60, 1)
    target = train.drop(columns="kind")
    target["w"] += 1e-7
    target["new"] = np.arange(60.0)
    found = audit(Subject(adapted=reader(train), target=rows("t", target), train=rows("r", train)), tmp_path)
    assert found.select("leaked_near").value == 60
    assert "kind, new" in " ".join(found.caveats)


def test_few_discrete_columns_give_equal_rows_and_no_near_ones(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tables = [pd.DataFrame(rng.integers(0, 2, (2000, 3)).astype(float), columns=list("uvw")) for _ in range(2)]
    found = audit(
        Subject(adapted=Model(nn.Linear(3, 2), classes=("a", "b")), target=rows("t", tables[0]), train=rows("r", tables[1])), tmp_path
    )
    assert found.select("leaked_near").value == 0
    assert found.select("duplicate_groups").value == 0


def test_ready_tensors_are_pictures_or_rows_and_nothing_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 5)).astype(np.float32)
    near = x + np.float32(1e-7)
    linear = Model(nn.Linear(5, 2), classes=("a", "b"))
    found = audit(Subject(adapted=linear, target=Domain("t", near, kind="tensor"), train=Domain("r", x, kind="tensor")), tmp_path)
    equal = (near == x).all(axis=1).sum()
    assert found.select("leaked_near").value == 40 - equal
    series = rng.normal(size=(6, 5, 7)).astype(np.float32)
    flat = Model(nn.Sequential(nn.Flatten(), nn.Linear(35, 2)), classes=("a", "b"))
    with pytest.raises(NotEvaluated, match="pictures, or rows"):
        audit(
            Subject(adapted=flat, target=Domain("t", series, kind="tensor"), train=Domain("r", series, kind="tensor")), tmp_path, folder="3"
        )
