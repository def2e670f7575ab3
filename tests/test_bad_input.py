"""Bad input from the command line: one clear sentence and exit code 2, or a status with its reason. Nothing crashes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tl_audit import cli
from tl_audit.models import build, save_weights
from tl_audit.records.findings import AuditResult
from tl_audit.records.schema import load_json

Run = Callable[..., tuple[int, str, str]]
Audit = Callable[..., AuditResult]

PLAN = """
base = "tl_audit:mlp"
kind = "tabular"
{top}
[data]
train = "patients.csv"
label = "ill"
validation = 0.2
{data}
[training]
batch_size = 16
[[stages]]
layers = "*"
epochs = 1
lr = 1e-2
{end}
"""
TABLE_AUDIT = """
title = "Patients"
[adapted]
run = "{folder}/run"
[target]
kind = "tabular"
path = "{path}"
{target}
[attribution]
methods = ["kernel_shap"]
samples = 4
"""
IMAGE_AUDIT = """
title = "Pictures"
[adapted]
weights = "{weights}"
arch = "{arch}"
classes = {classes}
[target]
kind = "image"
path = "{path}"
{target}
[attribution]
methods = ["grad_cam"]
samples = 4
"""


@pytest.fixture
def tl_audit(capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command line in this process: exit code, stdout, stderr."""

    def run(*argv: object) -> tuple[int, str, str]:
        code = cli.main([str(a) for a in argv])
        text = capsys.readouterr()
        return code, text.out, text.err

    return run


def refused(answer: tuple[int, str, str], message: str) -> None:
    """Exit code 2, nothing on stdout, and a last line that says it, short enough to be read."""
    code, out, err = answer
    last = err.strip().splitlines()[-1]
    assert code == 2, err
    assert out == ""
    assert "Traceback" not in err
    assert last.startswith("tl-audit: ")
    assert message in last
    assert len(last) < 1000, last


# -- tables -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of patients, a network trained on it for a moment, and tables that are wrong in one way each."""
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    n = 80
    frame = pd.DataFrame({"age": rng.integers(30, 80, n), "dose": rng.normal(size=n).round(3), "sex": rng.choice(["m", "f"], n)})
    frame["ill"] = np.where(frame["age"] + 5 * frame["dose"] > 55, "yes", "no")
    frame.to_csv(folder / "patients.csv", index=False)
    (folder / "plan.toml").write_text(PLAN.format(top="", data="", end=""))
    assert cli.main(["adapt", str(folder / "plan.toml"), "--out", str(folder / "run")]) == 0
    target = frame.assign(dose=frame["dose"] + 0.001)
    for name, wrong in {
        "target": target,
        "three": target.head(3),
        "none": target.head(0),
        "unlabelled": target.drop(columns="ill"),
        "one_group": target.assign(sex="m"),
        "one_class": target.assign(ill="yes"),
        "other_class": target.assign(ill=target["ill"].replace("yes", "maybe")),
        "words": target.assign(dose="much"),
        "infinite": target.assign(dose=np.inf),
        "hollow": target.assign(dose=np.nan),
        "without_dose": target.drop(columns="dose"),
    }.items():
        wrong.to_csv(folder / f"{name}.csv", index=False)
    (folder / "bytes.csv").write_bytes(bytes(rng.integers(128, 256, 500, dtype=np.uint8)))
    (folder / "empty.csv").write_text("")
    return folder


@pytest.mark.parametrize(
    ("top", "data", "end", "message"),
    [
        ("", 'numeric = ["age", "dosis"]', "", "has no column 'dosis', named as numeric (did you mean 'dose'?)"),
        ("", 'numeric = ["age", "sex"]', "", "column 'sex' holds no numbers"),
        ("", 'groups = ["sexx"]', "", "has no column 'sexx', named as a group (did you mean 'sex'?)"),
        ("", 'cluster = "hospital"', "", "has no column 'hospital'"),
        ("", 'positive = "Yes"', "", "positive = 'Yes' is not among the classes (did you mean 'yes'?)"),
        ("", 'label_map = { "1" = "yes", "0" = "no" }', "", "label_map has no entry for label 'no'"),
        ("", 'drop = ["age", "dose", "sex"]', "", "has no feature columns left"),
        ("", "", '[task]\nclasses = ["sick", "well"]', "label 'no' is not among the classes: sick, well"),
        ('weights = "none.safetensors"', "", "", "none.safetensors does not exist"),
        ("", "", '[[stages]]\nlayers = "layer4.*"\nepochs = 1\nlr = 1e-3', "'layer4.*' matches no module"),
    ],
)
def test_a_wrong_plan_is_refused_before_anything_is_trained(
    tl_audit: Run, tables: Path, tmp_path: Path, top: str, data: str, end: str, message: str
) -> None:
    (tables / "wrong.toml").write_text(PLAN.format(top=top, data=data, end=end))
    refused(tl_audit("adapt", tables / "wrong.toml", "--out", tmp_path / "run"), message)
    assert not (tmp_path / "run" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("written", "instead", "message"),
    [
        ('label = "ill"', 'label = "il"', "has no column 'il', named as the label (did you mean 'ill'?)"),
        ('"patients.csv"', '"nobody.csv"', "no such file"),
        ("validation = 0.2", 'validation = "nobody.csv"', "validation: no such file"),
        ("tl_audit:mlp", "tl_audit:mlpp", 'there is no "tl_audit:mlpp"'),
        ("tl_audit:mlp", "run:nowhere", "is not a run directory"),
    ],
)
def test_a_plan_that_names_what_is_not_there_is_refused(
    tl_audit: Run, tables: Path, tmp_path: Path, written: str, instead: str, message: str
) -> None:
    (tables / "wrong.toml").write_text(PLAN.format(top="", data="", end="").replace(written, instead))
    refused(tl_audit("adapt", tables / "wrong.toml", "--out", tmp_path / "run"), message)


@pytest.mark.parametrize(
    ("path", "target", "message"),
    [
        ("nobody.csv", "", "[target] path: there is no"),
        ("empty.csv", "", "is empty (0 bytes)"),
        ("none.csv", "", "has a header and no rows"),
        ("bytes.csv", "", "is not UTF-8 text"),
        ("other_class.csv", "", "[target] holds classes that the adapted model does not have: maybe; the model's are no, yes"),
        ("target.csv", 'label = "il"', "has no column 'il', named as the label (did you mean 'ill'?)"),
        ("target.csv", 'groups = ["sexx"]', "has no column 'sexx', named as a group (did you mean 'sex'?)"),
        ("target.csv", 'id = "number"', "has no column 'number', named as the id"),
        ("target.csv", 'numeric = ["dosis"]', "has no column 'dosis', named as numeric (did you mean 'dose'?)"),
        ("target.csv", 'classes = ["sick", "well"]', "label 'no' is not among the classes: sick, well"),
        ("target.csv", 'label_map = { "1" = "yes" }', "label_map has no entry for label 'no'"),
        (
            "target.csv",
            'label_map = { "yes" = "ill", "no" = "well" }',
            "[target] holds classes that the adapted model does not have: ill, well",
        ),
    ],
)
def test_a_wrong_table_is_refused_in_one_sentence(
    tl_audit: Run, tables: Path, tmp_path: Path, path: str, target: str, message: str
) -> None:
    (tmp_path / "audit.toml").write_text(TABLE_AUDIT.format(folder=tables, path=tables / path, target=target))
    refused(tl_audit("run", tmp_path / "audit.toml", "--out", tmp_path / "report"), message)
    assert not (tmp_path / "report").exists()


@pytest.fixture
def audit_table(tl_audit: Run, tables: Path, tmp_path: Path) -> Audit:
    def audit(name: str) -> AuditResult:
        (tmp_path / "audit.toml").write_text(TABLE_AUDIT.format(folder=tables, path=tables / f"{name}.csv", target='groups = ["sex"]'))
        code, out, err = tl_audit("run", tmp_path / "audit.toml", "--out", tmp_path / "report", "--fail-on", "never")
        assert code == 0, out + err
        result = load_json(tmp_path / "report" / "report.json")
        assert result.outcome.counts["error"] == 0
        assert all(f.reason for f in result.findings if f.status not in {"pass", "info"})
        return result

    return audit


def test_three_rows_are_too_few_to_judge_and_are_never_green(audit_table: Audit) -> None:
    result = audit_table("three")
    assert result["TLA301"].status == "inconclusive"
    assert "n = 3 (target) is below the minimum of 30; 27 more" in result["TLA301"].reason
    for code in ("TLA303", "TLA308", "TLA602", "TLA702", "TLA703"):
        assert result[code].status in {"inconclusive", "not_evaluated"}, code


def test_one_group_makes_gaps_impossible_and_is_said(audit_table: Audit) -> None:
    result = audit_table("one_group")
    assert result["TLA602"].status == "not_evaluated"
    assert "One group only" in result["TLA602"].reason
    assert result["TLA611"].status == "warn"


def test_without_labels_what_needs_them_is_not_evaluated(audit_table: Audit) -> None:
    result = audit_table("unlabelled")
    for code in ("TLA204", "TLA301", "TLA303", "TLA305", "TLA401", "TLA602"):
        assert result[code].status == "not_evaluated", code
        assert "needs labels of the target domain" in result[code].reason
    assert result["TLA208"].status == "pass"


def test_an_absent_class_is_a_finding(audit_table: Audit) -> None:
    result = audit_table("one_class")
    assert result["TLA204"].status in {"warn", "fail"}
    assert result["TLA303"].status != "pass", "a class without rows has no recall"


@pytest.mark.parametrize("name", ["words", "infinite"])
def test_rows_that_cannot_be_read_are_counted_and_nothing_is_measured_on_them(audit_table: Audit, name: str) -> None:
    result = audit_table(name)
    assert result["TLA208"].status == "fail"
    assert result["TLA301"].status == "not_evaluated"
    assert "usable samples" in result["TLA702"].reason


@pytest.mark.parametrize("name", ["hollow", "without_dose"])
def test_a_column_that_went_missing_is_said(audit_table: Audit, name: str) -> None:
    result = audit_table(name)
    assert "dose" in " ".join(result["TLA208"].measurement.caveats)  # type: ignore[union-attr]


def test_a_run_whose_weights_were_altered_is_refused(tl_audit: Run, tables: Path, tmp_path: Path) -> None:
    """One bit in the middle of the numbers: no format can see it, the hash in the run can."""
    copy = tmp_path / "run"
    shutil.copytree(tables / "run", copy)
    weights = bytearray((copy / "adapted.safetensors").read_bytes())
    weights[-100] ^= 0x01
    (copy / "adapted.safetensors").write_bytes(weights)
    (tmp_path / "audit.toml").write_text(TABLE_AUDIT.format(folder=tmp_path, path=tables / "target.csv", target=""))
    refused(tl_audit("run", tmp_path / "audit.toml", "--out", tmp_path / "report"), "adapted.safetensors")


# -- pictures and weights -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of tiny pictures, a tiny network, and files of each that are wrong in one way."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)

    def draw(path: Path, count: int) -> None:
        path.mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path / f"p{i:02d}.png")

    for name, counts in {
        "good": {"a": 12, "b": 12},
        "some_bad": {"a": 12, "b": 12},
        "one_bad": {"a": 12, "b": 12},
        "strangers": {"c": 2, "d": 2},
    }.items():
        for label, count in counts.items():
            draw(folder / name / label, count)
    for i in range(4):
        (folder / "some_bad" / "a" / f"x{i}.png").write_bytes(b"not a picture" if i else b"")
    (folder / "one_bad" / "a" / "x.png").write_bytes(b"not a picture")
    (folder / "all_bad" / "a").mkdir(parents=True)
    for i in range(30):
        (folder / "all_bad" / "a" / f"x{i}.png").write_bytes(b"not a picture")
    (folder / "empty").mkdir()
    (folder / "empty_classes" / "a").mkdir(parents=True)
    (folder / "empty_classes" / "b").mkdir()
    torch.manual_seed(0)
    module = build("tl_audit:small_cnn", num_classes=2, input_size=16).module
    save_weights(module, folder / "w.safetensors")
    whole = (folder / "w.safetensors").read_bytes()
    flipped = bytearray(whole)
    flipped[20] ^= 0xFF
    torch.save(module.state_dict(), folder / "w.pt")
    pickled = (folder / "w.pt").read_bytes()
    tensors = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, folder / "nan.safetensors")
    save_file({k: v for k, v in module.state_dict().items() if k != "head.bias"}, folder / "headless.safetensors")
    for name, content in {
        "cut.safetensors": whole[: len(whole) // 2],
        "flipped.safetensors": bytes(flipped),
        "zero.safetensors": b"",
        "words.safetensors": b"hello" * 100,
        "cut.pt": pickled[: len(pickled) // 2],
        "flipped.pt": pickled[:100] + bytes(255 - b for b in pickled[100:140]) + pickled[140:],
    }.items():
        (folder / name).write_bytes(content)
    return folder


def image_audit(folder: Path, **given: str) -> str:
    chosen = {"weights": "w.safetensors", "arch": "tl_audit:small_cnn", "classes": '["a", "b"]', "path": "good", "target": "", **given}
    return IMAGE_AUDIT.format(**{**chosen, "weights": folder / chosen["weights"], "path": folder / chosen["path"]})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"path": "nowhere"}, "[target] path: there is no"),
        ({"path": "empty"}, "holds no images"),
        ({"path": "empty_classes"}, "holds no images"),
        ({"path": "some_bad"}, "4 of 28 samples of some_bad cannot be read, the cap is 10%"),
        ({"path": "all_bad"}, "30 of 30 samples of all_bad cannot be read, the cap is 10%"),
        ({"path": "strangers"}, "[target] holds classes that the adapted model does not have: c, d; the model's are a, b"),
        ({"target": 'metadata = "none.csv"'}, "[target] metadata: there is no file"),
        ({"target": 'groups = ["sex"]'}, "'sex' is named as a group, but there is no metadata"),
        ({"target": 'label_map = { "x" = "a", "y" = "b" }'}, "label_map has no entry for label 'a'"),
        ({"classes": '["a", "b", "c"]'}, "head.weight has shape (2, 64) float32 in the file, shape (3, 64) float32 in the model"),
        ({"classes": '["a", "a"]'}, "names 'a' twice"),
        ({"arch": "tl_audit:mlp"}, '"tl_audit:mlp" reads tabular data, the data are image'),
        ({"arch": "small_cnn"}, 'architecture "small_cnn" has no prefix'),
        ({"weights": "none.safetensors"}, "[adapted] weights: there is no file"),
        ({"weights": "empty"}, "is a folder: name the weight file in it"),
        ({"weights": "cut.safetensors"}, "it is cut off or damaged"),
        ({"weights": "flipped.safetensors"}, "it is cut off or damaged"),
        ({"weights": "zero.safetensors"}, "is empty (0 bytes)"),
        ({"weights": "words.safetensors"}, "is no weight format that is known here"),
        ({"weights": "cut.pt"}, "it is cut off"),
        ({"weights": "flipped.pt"}, "is a pickle that is cut off or damaged"),
        ({"weights": "headless.safetensors"}, "missing head.bias (2,)"),
    ],
)
def test_pictures_and_weights_that_cannot_be_used_are_refused(
    tl_audit: Run, pictures: Path, tmp_path: Path, given: dict[str, str], message: str
) -> None:
    (tmp_path / "audit.toml").write_text(image_audit(pictures, **given))
    refused(tl_audit("run", tmp_path / "audit.toml", "--out", tmp_path / "report"), message)


def test_one_unreadable_picture_is_left_out_and_counted(tl_audit: Run, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "audit.toml").write_text(image_audit(pictures, path="one_bad"))
    code, out, err = tl_audit("run", tmp_path / "audit.toml", "--out", tmp_path / "report", "--fail-on", "never")
    assert code == 0, out + err
    result = load_json(tmp_path / "report" / "report.json")
    assert result["TLA208"].status in {"warn", "fail"}
    assert "1 of 25 in the target" in result["TLA208"].measurement.summary  # type: ignore[union-attr]
    assert result["TLA301"].metrics["accuracy"].n["target"] == 24


def test_weights_that_are_not_finite_fail_and_nothing_is_measured_with_them(tl_audit: Run, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "audit.toml").write_text(image_audit(pictures, weights="nan.safetensors"))
    code, out, err = tl_audit("run", tmp_path / "audit.toml", "--out", tmp_path / "report")
    assert code == 1, out + err
    result = load_json(tmp_path / "report" / "report.json")
    assert result["TLA112"].status == "fail"
    for code_ in ("TLA301", "TLA303", "TLA702"):
        assert result[code_].status == "not_evaluated", code_
        assert "TLA112" in result[code_].reason
    assert result.outcome.counts["error"] == 0
    assert result.outcome.blocked_by == ("TLA112",)
