"""TLA107 and TLA108: names that do not belong to the outputs, and inputs prepared otherwise, are found; what is right stays quiet."""

from __future__ import annotations

import itertools
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.checks.arrays import ArrayEvidence
from tl_audit.checks.base import Check, Context
from tl_audit.checks.parity import PARITY, differences, label_order, preprocessing_parity, renaming, repeatable_evidence
from tl_audit.errors import DataError, NotEvaluated
from tl_audit.evidence.store import Store
from tl_audit.evidence.stored import StoredEvidence
from tl_audit.measures.sampling import split_by_cluster
from tl_audit.models import Model
from tl_audit.policy import Rules, load_policy
from tl_audit.policy.judge import judge
from tl_audit.records.adaptation import AdaptationRecord
from tl_audit.records.findings import Finding
from tl_audit.records.metrics import Measurement
from tl_audit.records.preprocessing import CategoricalColumn, NumericColumn, Preprocessing, TableEncoding
from tl_audit.subject import Domain, Subject

DIGITS = tuple(str(i) for i in range(10))
SEEDS = (0, 1, 2)


class Clusters(nn.Module):
    """Answers which of the unit vectors a row lies nearest to; ``order`` permutes the rows of the head."""

    def __init__(self, classes: int, order: list[int] | None = None) -> None:
        super().__init__()
        self.head = nn.Linear(classes, classes, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(classes)[order if order is not None else list(range(classes))])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(x)
        return out


def rows(n: int, seed: int, classes: int = 10, *, noise: float = 0.3) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    y = rng.integers(classes, size=n)
    return (np.eye(classes)[y] + noise * rng.normal(size=(n, classes))).astype(np.float32), [DIGITS[i] for i in y]


def digits(n: int = 600, seed: int = 0, *, order: list[int] | None = None, names: tuple[str, ...] | None = DIGITS, **given: Any) -> Subject:
    x, y = rows(n, seed)
    target = Domain(
        "t", x, labels=given.pop("labels", y), classes=given.pop("classes", DIGITS), kind="tensor", cluster=given.pop("cluster", None)
    )
    return Subject(adapted=Model(Clusters(10, order), classes=names), target=target, **given)


def measured(check: Check, subject: Subject, tmp_path: Path, seed: int = 0) -> Measurement:
    evidence = StoredEvidence(subject, store=Store(tmp_path / "evidence"), rules=Rules(), seed=seed)
    return check(subject, evidence, Context(rules=Rules(), seed=seed, declared={}))


def finding(check: Check, measurement: Measurement) -> Finding:
    return judge(check.code, check.title, check.section, check.severity, measurement, load_policy("default"))


def status(check: Check, measurement: Measurement) -> str:
    return finding(check, measurement).status


def test_every_check_explains_itself_in_three_parts() -> None:
    for check in PARITY:
        assert check.help["asks"].endswith("?")
        assert all(len(check.help[part]) > 40 for part in ("measured", "matters", "reduce"))
        assert check.section == "provenance"


# TLA107 -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_two_permuted_classes_of_ten_are_named_exactly(tmp_path: Path, seed: int) -> None:
    order = [0, 1, 2, 7, 4, 5, 6, 3, 8, 9]
    found = measured(label_order, digits(seed=seed, order=order), tmp_path, seed)
    assert status(label_order, found) == "fail"
    assert "accuracy by renaming" in finding(label_order, found).reason
    table = next(e for e in found.exhibits if e.id == "label-map")
    moved = {row["name"]: row["better name"] for row in table.to_rows() if row["better name"] is not None}
    assert moved == {"3": "7", "7": "3"}
    gain = found.select("permutation_gain")
    assert gain.value == pytest.approx(
        (found.select("accuracy_best_permutation").value or 0) - (found.select("accuracy_identity").value or 0)
    )
    assert gain.value == pytest.approx(0.2, abs=0.06)
    assert [e.id for e in found.exhibits] == ["label-map", "label-confusion"]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_model_with_its_own_names_passes(tmp_path: Path, seed: int) -> None:
    found = measured(label_order, digits(seed=seed), tmp_path, seed)
    assert status(label_order, found) == "pass"
    assert found.select("permutation_gain").value == 0.0
    assert "no renaming" in found.summary


def test_the_fitted_renaming_is_the_best_of_all_renamings() -> None:
    rng = np.random.default_rng(5)
    truth, predicted = rng.integers(4, size=200), rng.integers(4, size=200)
    found = renaming(truth, predicted, classes=4, seed=3)
    fit = split_by_cluster(None, 200, 3)
    hits = {order: int((np.array(order)[predicted[fit]] == truth[fit]).sum()) for order in itertools.permutations(range(4))}
    mine = tuple(found.moved.get(c, c) for c in range(4))
    assert hits[mine] == max(hits.values())
    assert found.best.value == (np.array(mine)[predicted[~fit]] == truth[~fit]).mean()


def test_classes_confused_by_nature_give_no_gain(tmp_path: Path) -> None:
    # two classes that no model can tell apart: the best fit swaps them half of the time, and gains nothing on other rows
    subject = digits(2000, 1, labels=[y if y not in "35" else "35"[i % 2] for i, y in enumerate(rows(2000, 1)[1])])
    found = measured(label_order, subject, tmp_path)
    gain = found.select("permutation_gain")
    assert gain.interval is not None
    assert gain.interval[0] <= 0 <= gain.interval[1]
    assert status(label_order, found) == "pass"


def _false_gains(simulations: int, *, clustered: bool) -> int:
    """Simulations of a model that guesses in which the gain's 95 % interval lies above 0."""
    false = 0
    for i in range(simulations):
        rng = np.random.default_rng((77, i))
        n = 300
        cluster = np.repeat(np.arange(60), 5).astype(object) if clustered else None
        truth = np.repeat(rng.integers(5, size=60), 5) if clustered else rng.integers(5, size=n)
        found = renaming(truth, rng.integers(5, size=n), classes=5, cluster=cluster, seed=i)
        interval = found.gain.interval(0.95)
        assert interval is not None
        false += interval[0] > 0
    return false


@pytest.mark.parametrize("clustered", [False, True])
def test_a_guessing_model_is_not_said_to_gain_by_renaming(clustered: bool) -> None:
    # one-sided 2.5 % of 60 is 1.5; 6 is beyond the 99.9 % point
    assert _false_gains(60, clustered=clustered) <= 6


@pytest.mark.slow
@pytest.mark.parametrize("clustered", [False, True])
def test_the_gain_of_a_guessing_model_keeps_its_level(clustered: bool) -> None:
    # 2.5 % of 300 is 7.5; 15 is the 99.5 % point of that binomial
    assert _false_gains(300, clustered=clustered) <= 15


def test_clusters_are_not_split_and_few_of_them_decide_nothing(tmp_path: Path) -> None:
    subject = digits(400, cluster=[f"p{i // 100}" for i in range(400)])
    found = measured(label_order, subject, tmp_path)
    assert found.select("permutation_gain").clusters == {"target": 2}
    assert status(label_order, found) == "inconclusive"


def test_names_that_the_model_does_not_have_fail_and_are_listed(tmp_path: Path) -> None:
    names = tuple("zero" if c == "0" else c for c in DIGITS)
    found = measured(label_order, digits(names=names), tmp_path)
    assert found.select("class_name_mismatch", against="target").value == 1
    assert "'0'" in found.summary
    assert status(label_order, found) == "fail"


def test_a_target_with_fewer_classes_is_no_mismatch(tmp_path: Path) -> None:
    x, y = rows(800, 0)
    keep = np.array([int(v) < 6 for v in y])
    target = Domain("t", x[keep], labels=[v for v, k in zip(y, keep, strict=True) if k], kind="tensor")
    found = measured(label_order, Subject(adapted=Model(Clusters(10), classes=DIGITS), target=target), tmp_path)
    assert found.select("class_name_mismatch", against="target").value == 0
    assert found.select("class_names_unused").value == 4
    assert status(label_order, found) == "pass"


def test_a_list_in_another_order_than_the_record_fails(tmp_path: Path) -> None:
    sorted_as_folders = tuple(sorted(("1", "2", "10", "3", "4", "5", "6", "7", "8", "9")))
    record = AdaptationRecord(classes=("1", "2", "3", "4", "5", "6", "7", "8", "9", "10"))
    x, y = rows(400, 0)
    target = Domain("t", x, labels=[str(int(v) + 1) for v in y], kind="tensor")
    subject = Subject(adapted=Model(Clusters(10), classes=sorted_as_folders), target=target, record=record)
    found = measured(label_order, subject, tmp_path)
    assert found.select("class_name_mismatch", against="record").value == 9
    assert found.select("class_name_mismatch", against="target").value == 0
    assert status(label_order, found) == "fail"


def test_a_kept_head_must_keep_the_names_of_its_base(tmp_path: Path) -> None:
    swapped = ("1", "0", *DIGITS[2:])
    kept = AdaptationRecord(classes=DIGITS, base_classes=swapped, class_source="base")
    assert measured(label_order, digits(record=kept), tmp_path).select("class_name_mismatch", against="base").value == 2
    other = kept.model_copy(update={"class_source": "data"})
    found = measured(label_order, digits(record=other), tmp_path)
    assert not [m for m in found.metrics if m.slice.get("against") == "base"]


def test_another_order_of_the_targets_list_moves_nothing_and_is_said(tmp_path: Path) -> None:
    found = measured(label_order, digits(classes=DIGITS[::-1]), tmp_path)
    assert status(label_order, found) == "pass"
    assert "another order" in " ".join(found.caveats)


def test_a_network_without_names_is_for_a_person_to_confirm(tmp_path: Path) -> None:
    assert status(label_order, measured(label_order, digits(names=None), tmp_path)) == "review"
    wrong = measured(label_order, digits(names=None, order=[1, 0, *range(2, 10)]), tmp_path)
    assert status(label_order, wrong) == "fail"


def test_names_in_two_unicode_forms_are_one_name(tmp_path: Path) -> None:
    x, y = rows(200, 0, 2)
    accent = unicodedata.normalize("NFD", "é")
    target = Domain("t", x, labels=["a" if v == "0" else accent for v in y], kind="tensor")
    found = measured(label_order, Subject(adapted=Model(Clusters(2), classes=("a", "é")), target=target), tmp_path)
    assert found.select("class_name_mismatch", against="target").value == 0
    assert "Unicode" in " ".join(found.caveats)


@pytest.mark.parametrize("labels", ["none", "one class"])
def test_without_labels_of_two_classes_the_order_stays_open(tmp_path: Path, labels: str) -> None:
    subject = digits(120, labels=None if labels == "none" else ["3"] * 120)
    found = measured(label_order, subject, tmp_path)
    gain = found.select("permutation_gain")
    assert gain.value is None
    assert gain.reason
    assert status(label_order, found) == "inconclusive"


def test_one_row_is_no_error_and_no_pass(tmp_path: Path) -> None:
    assert status(label_order, measured(label_order, digits(1), tmp_path)) == "inconclusive"
    assert status(label_order, measured(label_order, digits(2), tmp_path)) == "inconclusive"


def test_without_any_names_nothing_is_evaluated(tmp_path: Path) -> None:
    subject = Subject(adapted=Model(Clusters(3)), target=Domain("t", np.zeros((5, 3), dtype=np.float32), kind="tensor"))
    with pytest.raises(NotEvaluated, match="class names"):
        measured(label_order, subject, tmp_path)


def test_names_and_outputs_must_be_equally_many() -> None:
    evidence = ArrayEvidence(("a", "b")).domain("target", [0, 1] * 50).outputs("adapted", "target", probabilities=np.full((100, 3), 1 / 3))
    subject = Subject(
        adapted=Model(nn.Linear(2, 3), classes=("a", "b")), target=Domain("t", np.zeros((4, 2), dtype=np.float32), kind="tensor")
    )
    found = label_order(subject, evidence, Context(rules=Rules(), seed=0, declared={}))  # type: ignore[arg-type]
    assert found.select("class_name_mismatch", against="outputs").value == 1
    assert found.select("permutation_gain").value is None


def test_the_order_of_rows_changes_neither_names_nor_verdict() -> None:
    rng = np.random.default_rng(2)
    truth = rng.integers(3, size=300)
    predicted = np.where(rng.random(300) < 0.8, (truth + 1) % 3, truth)
    first = renaming(truth, predicted, classes=3)
    order = rng.permutation(300)
    second = renaming(truth[order], predicted[order], classes=3)
    assert dict(first.moved) == dict(second.moved) == {0: 2, 1: 0, 2: 1}


# TLA108 -----------------------------------------------------------------------------------------------------------------------

SPEC = Preprocessing(height=8, width=8)


class Tint(nn.Module):
    """Answers "red" where the red channel is the stronger one."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[10.0, 0.0, -10.0], [-10.0, 0.0, 10.0]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(x.mean(dim=(2, 3)))
        return out


def tinted(n: int = 200, seed: int = 0, **given: Any) -> Domain:
    rng = np.random.default_rng(seed)
    y = rng.integers(2, size=n)
    x = rng.integers(60, 120, size=(n, 8, 8, 3)).astype(np.uint8)
    x[y == 0, ..., 0] += 60
    x[y == 1, ..., 2] += 60
    return Domain("t", x, labels=[("red", "blue")[i] for i in y], kind="image", **given)


def painted(there: Preprocessing | None, *, here: Preprocessing = SPEC, record: AdaptationRecord | None = None, **given: Any) -> Subject:
    base = None if there is None else Model(Tint(), classes=("red", "blue"), preprocessing=there)
    return Subject(adapted=Model(Tint(), classes=("red", "blue"), preprocessing=here), base=base, target=tinted(**given), record=record)


def test_the_same_preparation_changes_exactly_nothing(tmp_path: Path) -> None:
    record = AdaptationRecord(preprocessing=SPEC.model_dump(mode="json"))
    found = measured(preprocessing_parity, painted(SPEC, record=record), tmp_path)
    for against in ("record", "base"):
        assert found.select("preprocessing_differences", against=against).value == 0
        assert found.select("preprocessing_flip_rate", against=against).value == 0
        assert found.select("preprocessing_max_logit_diff", against=against).value == 0
    assert found.exhibits == ()
    assert status(preprocessing_parity, found) == "pass"
    few = measured(preprocessing_parity, painted(SPEC, n=5), tmp_path)
    assert status(preprocessing_parity, few) == "pass", "what is equal changes no answer, however few rows there are"


@pytest.mark.parametrize("seed", SEEDS)
def test_the_mean_of_another_base_is_named_and_flips_answers(tmp_path: Path, seed: int) -> None:
    other = SPEC.model_copy(update={"mean": (0.2, 0.0, 0.0), "std": (1.5, 1.0, 1.0)})
    found = measured(preprocessing_parity, painted(other, seed=seed), tmp_path)
    assert found.select("preprocessing_differences", against="base").value == 2
    assert {row["setting"] for row in found.exhibits[0].to_rows()} == {"mean", "std"}
    flips = found.select("preprocessing_flip_rate", against="base")
    assert flips.interval is not None
    assert flips.interval[0] > 0.02
    assert status(preprocessing_parity, found) == "fail"


def test_the_rate_is_that_of_the_model_run_by_hand(tmp_path: Path) -> None:
    other = SPEC.model_copy(update={"mean": (0.2, 0.0, 0.0)})
    subject = painted(other, n=150)
    found = measured(preprocessing_parity, subject, tmp_path)
    samples = subject.target.samples
    raw = samples.read(np.arange(150))
    with torch.no_grad():
        first, second = (subject.adapted.module(samples.modality.encode(raw, spec)) for spec in (SPEC, other))
    assert found.select("preprocessing_flip_rate", against="base").value == float((first.argmax(1) != second.argmax(1)).double().mean())
    most = found.select("preprocessing_max_logit_diff", against="base").value
    assert most == pytest.approx(float((first - second).abs().max()), rel=1e-5)


def test_a_difference_without_effect_only_warns(tmp_path: Path) -> None:
    other = SPEC.model_copy(update={"interpolation": "bicubic"})  # nothing is resized: no pixel moves
    found = measured(preprocessing_parity, painted(other), tmp_path)
    assert found.select("preprocessing_flip_rate", against="base").value == 0
    assert status(preprocessing_parity, found) == "warn"


def test_what_the_plan_declares_is_shown_and_not_accused(tmp_path: Path) -> None:
    other = SPEC.model_copy(update={"mean": (0.3, 0.0, 0.0)})
    plan = {"data": {"preprocessing": SPEC.model_dump(mode="json")}}
    record = AdaptationRecord(plan=plan, preprocessing=SPEC.model_dump(mode="json"), base_preprocessing=other.model_dump(mode="json"))
    found = measured(preprocessing_parity, painted(None, record=record), tmp_path)
    assert found.select("preprocessing_differences", against="base").value == 0
    assert found.select("preprocessing_differences_declared", against="base").value == 1
    assert (found.select("preprocessing_flip_rate_declared", against="base").value or 0) > 0.02
    assert status(preprocessing_parity, found) == "pass"
    # the declaration is about the base: an audit that feeds otherwise than the adaptation did is still wrong
    assert status(preprocessing_parity, measured(preprocessing_parity, painted(None, here=other, record=record), tmp_path)) == "fail"


def test_a_size_that_the_model_refuses_gives_a_reason(tmp_path: Path) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    other = SPEC.model_copy(update={"height": 10})
    subject = Subject(
        adapted=Model(flat, classes=("red", "blue"), preprocessing=SPEC),
        base=Model(Tint(), classes=("red", "blue"), preprocessing=other),
        target=tinted(),
    )
    found = measured(preprocessing_parity, subject, tmp_path)
    flips = found.select("preprocessing_flip_rate", against="base")
    assert flips.value is None
    assert "(3, 10, 8)" in str(flips.reason)
    assert status(preprocessing_parity, found) == "warn"


def test_clusters_carry_the_interval(tmp_path: Path) -> None:
    other = SPEC.model_copy(update={"mean": (0.2, 0.0, 0.0)})
    found = measured(preprocessing_parity, painted(other, cluster=[f"p{i // 10}" for i in range(200)]), tmp_path)
    assert found.select("preprocessing_flip_rate", against="base").clusters == {"target": 20}
    assert not [c for c in found.caveats if "independent" in c]


def test_the_models_are_given_back_as_they_were(tmp_path: Path) -> None:
    subject = painted(SPEC.model_copy(update={"mean": (0.2, 0.0, 0.0)}))
    subject.adapted.module.train()
    before = {name: t.clone() for name, t in subject.adapted.module.state_dict().items()}
    state = torch.get_rng_state()
    measured(preprocessing_parity, subject, tmp_path)
    assert subject.adapted.module.training
    assert all(torch.equal(before[name], t) for name, t in subject.adapted.module.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def encoding(**changes: Any) -> TableEncoding:
    age = {"name": "age", "mean": 50.0, "std": 10.0, "fill": 48.0}
    sex = {"name": "sex", "categories": ("female", "male")}
    age.update(changes.pop("age", {}))
    sex.update(changes.pop("sex", {}))
    return TableEncoding(numeric=(NumericColumn(**age), *changes.pop("more", ())), categorical=(CategoricalColumn(**sex),))


def test_settings_of_tables_are_named_by_column() -> None:
    plain = encoding()
    assert differences(plain, encoding()) == ()
    assert [d.name for d in differences(plain, encoding(age={"fill": 0.0}))] == ["age: fill"]
    assert [d.name for d in differences(plain, encoding(sex={"categories": ("male", "female")}))] == ["sex: categories"]
    wider = encoding(more=(NumericColumn(name="dose", mean=0.0, std=1.0, fill=0.0),))
    assert "column order" in {d.name for d in differences(plain, wider)}
    assert {d.there for d in differences(wider, plain) if d.name.startswith("dose")} == {"absent"}
    assert differences(plain, encoding(age={"mean": 50.0 + 1e-6})) == ()


def test_a_table_fed_with_another_scaling_is_found(tmp_path: Path) -> None:
    import pandas as pd

    rng = np.random.default_rng(0)
    age = rng.normal(50, 10, 300)
    frame = pd.DataFrame({"age": age, "sex": np.array(["female", "male"])[rng.integers(2, size=300)]})
    net = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[-1.0, 0, 0, 0], [1.0, 0, 0, 0]]))
    target = Domain("t", frame, labels=np.where(age > 50, "old", "young"), classes=("young", "old"), kind="tabular")
    adapted = Model(net, classes=("young", "old"), preprocessing=encoding())
    base = Model(net, classes=("young", "old"), preprocessing=encoding(age={"mean": 40.0}))
    found = measured(preprocessing_parity, Subject(adapted=adapted, base=base, target=target), tmp_path)
    assert [row["setting"] for row in found.exhibits[0].to_rows()] == ["age: mean"]
    assert found.select("preprocessing_flip_rate", against="base").value == pytest.approx(
        float(((age > 40) != (age > 50)).mean()), abs=0.01
    )
    narrow = Model(net, classes=("young", "old"), preprocessing=encoding(age={"missing_indicator": True}))
    undone = measured(preprocessing_parity, Subject(adapted=adapted, base=narrow, target=target), tmp_path)
    assert undone.select("preprocessing_flip_rate", against="base").value is None


def test_pictures_with_a_rotation_mark_are_counted(tmp_path: Path) -> None:
    found = measured(preprocessing_parity, painted(SPEC), tmp_path)
    assert found.select("exif_rotated_share", domain="target").value == 0


def test_without_anything_to_compare_nothing_is_evaluated(tmp_path: Path) -> None:
    with pytest.raises(NotEvaluated, match="adaptation record"):
        measured(preprocessing_parity, painted(None), tmp_path)


def test_a_record_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    record = AdaptationRecord(preprocessing={"kind": "sound"})
    with pytest.raises(DataError, match="sound"):
        measured(preprocessing_parity, painted(None, record=record), tmp_path)


# TLA113 -----------------------------------------------------------------------------------------------------------------------


class Restless(nn.Module):
    """Drops entries in evaluation mode as well (``dropout``), or adds what lies in the same batch (``batch``)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.head = nn.Linear(10, 10, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(x)
        if self.kind == "dropout":
            return nn.functional.dropout(out, 0.5, training=True)
        return out - 3 * x.mean(dim=0, keepdim=True)


def restless(kind: str, n: int = 300) -> Subject:
    x, y = rows(n, 0, noise=0.5)
    return Subject(adapted=Model(Restless(kind), classes=DIGITS), target=Domain("t", x, labels=y, kind="tensor"))


def test_dropout_left_on_is_found(tmp_path: Path) -> None:
    found = measured(repeatable_evidence, restless("dropout"), tmp_path)
    assert (found.select("rerun_flip_rate", by="run again").value or 0) > 0.1
    assert (found.select("rerun_max_logit_diff").value or 0) > 0.1
    assert found.select("rerun_max_logit_diff").n == {"target": 256}
    assert status(repeatable_evidence, found) == "fail"


def test_an_answer_that_depends_on_the_batch_is_found(tmp_path: Path) -> None:
    found = measured(repeatable_evidence, restless("batch"), tmp_path)
    assert found.select("rerun_flip_rate", by="run again").value == 0
    assert (found.select("rerun_flip_rate", by="batch size").value or 0) > 0.01
    assert status(repeatable_evidence, found) == "fail"


def test_a_network_at_rest_repeats_itself_and_is_given_back(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 10)).train()
    x, y = rows(100, 0)
    subject = Subject(adapted=Model(module, classes=DIGITS), target=Domain("t", x, labels=y, kind="tensor"))
    before = {name: t.clone() for name, t in module.state_dict().items()}
    found = measured(repeatable_evidence, subject, tmp_path)
    assert found.select("rerun_max_logit_diff").value == 0
    assert (found.select("batch_size_max_logit_diff").value or 0) < 1e-5
    assert status(repeatable_evidence, found) == "pass"
    assert module.training
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())


def test_few_rows_do_not_vary_the_batch_and_say_so(tmp_path: Path) -> None:
    found = measured(repeatable_evidence, digits(3), tmp_path)
    assert "not varied" in " ".join(found.caveats)
    assert found.select("rerun_flip_rate", by="run again").value == 0
    assert found.select("rerun_flip_rate", by="batch size").value is None
    assert status(repeatable_evidence, found) == "inconclusive"


def test_outputs_that_are_not_finite_are_left_out_or_named(tmp_path: Path) -> None:
    subject = digits(50)
    with torch.no_grad():
        subject.adapted.module.head.weight.fill_(torch.nan)  # type: ignore[union-attr,operator]
    with pytest.raises(NotEvaluated):
        measured(repeatable_evidence, subject, tmp_path)
