"""TLA302: every metric of TLA301 as a paired change, whose sign turns with its arguments; [previous] works from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, roc_auc_score

from tests.checks.arrays import ArrayEvidence, measure
from tl_audit import cli
from tl_audit.checks import performance
from tl_audit.errors import NotEvaluated
from tl_audit.measures.change import metric_changes
from tl_audit.models import build, save_weights

NAMES = ("accuracy", "balanced_accuracy", "f1_macro", "auroc", "average_precision")


def outputs(rng: np.random.Generator, y: np.ndarray, classes: int, skill: float) -> np.ndarray:
    logits = rng.normal(size=(len(y), classes)) + skill * np.eye(classes)[y]
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def pair(rng: np.random.Generator, n: int, classes: int = 2, skills: tuple[float, float] = (2.0, 1.0)) -> tuple[np.ndarray, ...]:
    y = rng.integers(0, classes, n)
    return y, *(outputs(rng, y, classes, skill) for skill in skills)


# ---------------------------------------------------------------- the changes


@pytest.mark.parametrize("classes", [2, 4])
def test_changes_are_the_differences_that_sklearn_gives(rng, classes):
    y, a, b = pair(rng, 300, classes)
    found = metric_changes(y, a, b, positive=1 if classes == 2 else None)

    def of(p: np.ndarray) -> dict[str, float]:
        said = p.argmax(axis=1)
        area = roc_auc_score(y, p[:, 1]) if classes == 2 else roc_auc_score(y, p, multi_class="ovr")
        numbers = {"balanced_accuracy": balanced_accuracy_score(y, said), "f1_macro": f1_score(y, said, average="macro"), "auroc": area}
        return numbers | ({"average_precision": average_precision_score(y, p[:, 1])} if classes == 2 else {})

    first, second = of(a), of(b)
    assert {name: found[name].value for name in first} == pytest.approx({name: first[name] - second[name] for name in first}, abs=1e-12)
    assert (found["average_precision"].value is None) == (classes == 4)


def test_swapping_the_models_turns_every_sign_and_the_same_model_gives_0(rng):
    y, a, b = pair(rng, 200)
    forth, back, same = metric_changes(y, a, b, positive=1), metric_changes(y, b, a, positive=1), metric_changes(y, a, a, positive=1)
    for name, one in forth.items():
        assert back[name].value == pytest.approx(-one.value, abs=1e-15)
        assert back[name].interval(0.95) == pytest.approx(tuple(-x for x in reversed(one.interval(0.95))), abs=1e-12)
        assert (same[name].value, same[name].p_value) == (0.0, 1.0)
        assert same[name].interval(0.95)[0] < 0 < same[name].interval(0.95)[1]


def test_derivatives_are_those_of_removing_a_row(rng):
    from tl_audit.measures import change

    y, a, _ = pair(rng, 120, 3)
    y2, two, _ = pair(rng, 120, 2)
    for parts, whole, rest in (
        (lambda k: change._balanced_accuracy(y[k], a[k].argmax(axis=1), 3), y, 120),
        (lambda k: change._f1_macro(y[k], a[k].argmax(axis=1), 3), y, 120),
        (lambda k: change._auroc(y[k], a[k]), y, 120),
        (lambda k: change._average_precision(y2[k] == 1, two[k, 1]), y2, 120),
    ):
        value, influence = parts(np.arange(rest))
        assert influence.sum() == pytest.approx(0, abs=1e-9)
        without = np.array([parts(np.delete(np.arange(rest), i))[0] for i in range(rest)])
        assert np.corrcoef(value - without, influence)[0, 1] > 0.99
        assert (value - without).std() / influence.std() == pytest.approx(1.0, abs=0.1)
        assert len(whole) == rest


def test_intervals_cover_the_truth_and_clusters_widen_them():
    rng = np.random.default_rng(4)
    rounds, held = 200, dict.fromkeys(NAMES[1:], 0)
    big = metric_changes(*pair(rng, 100_000), positive=1)
    truth = {name: one.value for name, one in big.items()}
    for _ in range(rounds):
        found = metric_changes(*pair(rng, 150), positive=1)
        for name in held:
            low, high = found[name].interval(0.95)
            held[name] += low <= truth[name] <= high
    assert min(held.values()) / rounds > 0.90
    y, a, b = pair(rng, 60)
    repeated = [np.repeat(part, 8, axis=0) for part in (y, a, b)]
    cluster = np.repeat(np.arange(60), 8)
    plain, units = metric_changes(*repeated), metric_changes(*repeated, cluster=cluster)
    for name in NAMES[1:4]:
        wide, narrow = (one[name].interval(0.95) for one in (units, plain))
        assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])
        assert units[name].clusters == 60


def test_the_level_of_the_test_is_held():
    rng = np.random.default_rng(5)
    rejected = dict.fromkeys(NAMES[1:], 0)
    for _ in range(400):
        for name, one in metric_changes(*pair(rng, 150, skills=(1.0, 1.0)), positive=1).items():
            rejected[name] += one.p_value < 0.05
    assert max(rejected.values()) / 400 < 0.08


def test_degenerate_rows_are_undefined_with_a_reason(rng):
    y, a, b = pair(rng, 40)
    one_class = metric_changes(np.zeros(40, dtype=int), a, b, positive=1)
    assert one_class["auroc"].reason == "only one class occurs: no area under the curve"
    assert one_class["average_precision"].reason == "no positive rows: no average precision"
    assert one_class["balanced_accuracy"].value is not None
    assert metric_changes(y[:10], a[:10], b[:10])["f1_macro"].ladder == ()
    assert metric_changes([], np.zeros((0, 2)), np.zeros((0, 2)))["auroc"].value is None


# ---------------------------------------------------------------- the check


def evidence_of(y: np.ndarray, a: np.ndarray, b: np.ndarray, model: str, cluster=None) -> ArrayEvidence:
    evidence = ArrayEvidence(("no", "yes")).domain("target", y, cluster=cluster)
    evidence.positive_class = "yes"
    return evidence.outputs("adapted", "target", probabilities=a).outputs(model, "target", probabilities=b)


def test_every_metric_of_301_stands_beside_the_accuracy_and_the_figure_shows_both_sides(rng):
    y, a, b = pair(rng, 300)
    found = measure(performance.against_base_or_previous, evidence_of(y, a, b, "previous"), "adapted", "previous")
    for name in NAMES:
        one = found.select(f"{name}_change", against="previous")
        assert one.interval is not None, name
        assert one.value > 0
    figure = found.exhibits[0]
    assert len(figure.changes) == 5
    assert [dot.series for dot in figure.dots] == ["previous", "adapted"] * 5
    assert any("independent" in c for c in found.caveats)
    assert found.select("accuracy_change", against="previous").value == pytest.approx((a.argmax(1) == y).mean() - (b.argmax(1) == y).mean())


def test_a_model_with_one_class_more_is_compared_by_name(rng):
    class Wider(ArrayEvidence):
        def common_classes(self, model: str, domain: str) -> tuple[str, ...]:
            return ("extra", "no", "yes") if model == "previous" else ("no", "yes")

        def truth(self, model: str, domain: str) -> np.ndarray:
            return self.labels(domain) + (model == "previous")

    y, a, b = pair(rng, 200)
    evidence = Wider(("no", "yes")).domain("target", y).outputs("adapted", "target", probabilities=a)
    evidence.outputs("previous", "target", probabilities=np.concatenate([np.full((200, 1), 0.01), 0.99 * b], axis=1))
    found = measure(performance.against_base_or_previous, evidence, "adapted", "previous")
    plain = measure(performance.against_base_or_previous, evidence_of(y, a, b, "previous"), "adapted", "previous")
    for name in ("accuracy", "balanced_accuracy"):
        assert found.select(f"{name}_change", against="previous").value == plain.select(f"{name}_change", against="previous").value


def test_neither_base_nor_previous_names_what_is_missing(rng):
    y, a, b = pair(rng, 50)
    with pytest.raises(NotEvaluated, match=r"outputs of base on target.*TLA401 compares with the controls"):
        measure(performance.against_base_or_previous, evidence_of(y, a, b, "previous"), "adapted", "base")


# ---------------------------------------------------------------- [previous] in audit.toml


def test_previous_in_audit_toml_is_compared_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    rows = ["file,label"]
    for i in range(40):
        pixels = rng.integers(0, 120, (16, 16, 3)) + 120 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "data" / f"p{i:02d}.png")
        rows.append(f"p{i:02d}.png,{('dark', 'light')[i % 2]}")
    (tmp_path / "data.csv").write_text("\n".join(rows) + "\n")
    for name, seed in (("new", 0), ("old", 1)):
        torch.manual_seed(seed)
        save_weights(build("tl_audit:small_cnn", num_classes=2, input_size=16).module, tmp_path / f"{name}.safetensors")
    lines = ['title = "Tiny"']
    for table, name in (("adapted", "new"), ("previous", "old")):
        lines += [f"[{table}]", f'weights = "{name}.safetensors"', 'arch = "tl_audit:small_cnn"', 'classes = ["dark", "light"]']
    lines += ["[target]", 'kind = "image"', 'path = "data"', 'metadata = "data.csv"', 'positive = "light"']
    (tmp_path / "audit.toml").write_text("\n".join(lines) + "\n")
    argv = ["run", str(tmp_path / "audit.toml"), "--out", str(tmp_path / "out"), "--select", "TLA302,TLA407", "--fail-on", "never"]
    assert cli.main(argv) == 0, capsys.readouterr().err
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    found = {f["code"]: f for f in record["findings"]}
    measured = {(m["name"], m["slice"]["against"]): m for m in found["TLA302"]["measurement"]["metrics"]}
    assert set(measured) == {(f"{name}_change", "previous") for name in NAMES}
    assert all(m["value"] is not None for m in measured.values())
    assert found["TLA302"]["status"] in ("pass", "warn", "fail", "inconclusive")
    assert found["TLA407"]["status"] not in ("error", "not_evaluated")
    assert record["subject"]["previous"]["sha256"] != record["subject"]["adapted"]["sha256"]
