"""TLA203: units on both sides of the split are found by set intersection, and only they."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch import nn

from tl_audit.checks.base import Context, lacking
from tl_audit.checks.leakage import LEAKAGE, cluster_leakage
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.store import Store
from tl_audit.evidence.stored import StoredEvidence
from tl_audit.models import Model
from tl_audit.policy import Rules, load_policy
from tl_audit.policy.judge import judge
from tl_audit.records.metrics import Measurement
from tl_audit.subject import Domain, Subject


def side(name: str, ids: Any) -> Domain:
    n = 12 if ids is None else len(ids)
    x = np.random.default_rng(len(name)).normal(size=(n, 3)).astype(np.float32)
    return Domain(name, x, cluster=ids, kind="tensor")


def subject(target: Any, train: Any = None, **given: Any) -> Subject:
    domains = {"target": side("target", target)}
    if train is not None:
        domains["train"] = train if isinstance(train, Domain) else side("train", train)
    return Subject(adapted=Model(nn.Linear(3, 2), classes=("a", "b")), **domains, **given)


def audit(what: Subject, tmp_path: Path) -> Measurement:
    evidence = StoredEvidence(what, store=Store(tmp_path / "evidence"), rules=Rules(), seed=0)
    return cluster_leakage(what, evidence, Context(rules=Rules(), seed=0, declared={}))


def status(found: Measurement) -> str:
    check = cluster_leakage
    return judge(check.code, check.title, check.section, check.severity, found, load_policy("default")).status


def test_the_check_explains_itself_in_three_parts() -> None:
    for check in LEAKAGE:
        assert check.help["asks"].endswith("?")
        assert all(len(check.help[part]) > 40 for part in ("measured", "matters", "reduce"))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shared_units_are_the_intersection_of_the_sets(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    target, train = ([f"p{i}" for i in rng.integers(0, 60, 200)] for _ in range(2))
    target, train = [t for t in target if int(t[1:]) < 35], [t for t in train if int(t[1:]) >= 30]
    found = audit(subject(target, train), tmp_path)
    shared = set(target) & set(train)
    assert shared
    assert found.select("clusters_shared").value == len(shared)
    assert found.select("rows_in_shared_clusters_share").value == pytest.approx(np.isin(target, list(shared)).mean())
    assert status(found) == "fail"
    table = found.exhibits[0].to_rows()
    assert sum(row["target rows"] for row in table) == sum(t in shared for t in target)
    assert sum(row["rows there"] for row in table) == sum(t in shared for t in train)
    assert not {row["cluster"] for row in table} & shared, "ids are hashed"


def test_no_effect_no_finding_however_often(tmp_path: Path) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        units = rng.permutation(40)
        target, train = ([f"p{u}" for u in rng.choice(half, 100)] for half in (units[:20], units[20:]))
        found = audit(subject(target, train), tmp_path)
        assert found.select("clusters_shared").value == 0
        assert status(found) == "pass"
        assert found.exhibits == ()


def test_one_shared_unit_is_enough(tmp_path: Path) -> None:
    found = audit(subject(["a", "b", "b"], ["c", "b"]), tmp_path)
    assert found.select("clusters_shared").value == 1
    assert found.select("rows_in_shared_clusters_share").value == pytest.approx(2 / 3)
    assert status(found) == "fail"


def test_validation_is_a_side_too(tmp_path: Path) -> None:
    found = audit(subject(["a", "b"], ["c"], validation=side("validation", ["b", "d"])), tmp_path)
    assert found.select("clusters_shared").value == 1
    assert "validation" in found.exhibits[0].to_rows()[0]["also in"]


def test_rows_without_an_id_match_nothing_and_are_said(tmp_path: Path) -> None:
    found = audit(subject(["a", None, ""], ["b", None, ""]), tmp_path)
    assert found.select("clusters_shared").value == 0
    assert "2 target rows have no cluster id" in " ".join(found.caveats)
    assert "2 of 3 rows of the train data" in " ".join(found.caveats)


def test_blanks_and_numbers_do_not_hide_a_unit(tmp_path: Path) -> None:
    found = audit(subject([" p1 ", "p2"], ["p1"]), tmp_path)
    assert found.select("clusters_shared").value == 1
    numbers = audit(subject([1, 2, 3], [3, 4]), tmp_path)
    assert numbers.select("clusters_shared").value == 1
    assert "whole numbers" in " ".join(numbers.caveats)


def test_the_run_directory_serves_where_the_data_have_no_ids(tmp_path: Path) -> None:
    rows = {
        "id": list("uvw"),
        "split": ["train", "train", "validation"],
        "label": ["x"] * 3,
        "cluster": ["a", "b", "c"],
        "content_hash": list("uvw"),
    }
    pd.DataFrame(rows).to_parquet(tmp_path / "samples.parquet")
    for given in ({}, {"train": side("train", None)}):
        found = audit(subject(["a", "c", "z"], run_dir=str(tmp_path), **given), tmp_path)
        assert found.select("clusters_shared").value == 2
        assert found.params["compared_with"] == "train and validation"


def test_a_run_without_ids_is_named_as_missing(tmp_path: Path) -> None:
    rows = {"id": ["u"], "split": ["train"], "label": ["x"], "cluster": [None], "content_hash": ["u"]}
    pd.DataFrame(rows).to_parquet(tmp_path / "samples.parquet")
    with pytest.raises(NotEvaluated, match="training or validation"):
        audit(subject(["a"], run_dir=str(tmp_path)), tmp_path)


def test_missing_inputs_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotEvaluated, match="training or validation"):
        audit(subject(["a", "b"]), tmp_path)
    with pytest.raises(NotEvaluated, match="training or validation"):
        audit(subject(["a", "b"], train=side("train", None)), tmp_path)
    bare = subject(None, ["a"])
    evidence = StoredEvidence(bare, store=Store(tmp_path / "evidence"), rules=Rules(), seed=0)
    assert "cluster ids of the target" in str(lacking("target.cluster", bare, evidence, {}))


def test_the_order_of_rows_and_names_of_units_change_nothing(tmp_path: Path) -> None:
    target, train = ["a", "b", "c", "c"], ["c", "d"]
    first = audit(subject(target, train), tmp_path)
    renamed = audit(subject([f"x{t}" for t in target[::-1]], [f"x{t}" for t in train[::-1]]), tmp_path)
    assert [m.value for m in first.metrics] == [m.value for m in renamed.metrics]
