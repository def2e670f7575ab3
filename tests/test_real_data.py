"""Published numbers on real data, to the digit; and the whole job on real data from the command line. Skipped where the data are absent."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tl_audit.measures import intervals
from tl_audit.records.findings import AuditResult
from tl_audit.records.schema import load_json

pytestmark = pytest.mark.real_data

HEART_COLUMNS = {
    "numeric": ["age", "trestbps", "chol", "thalach", "oldpeak", "ca"],
    "categorical": ["sex", "cp", "fbs", "restecg", "exang", "slope", "thal"],
}
HEART_LABELS = '{ "0" = "no disease", "1" = "disease", "2" = "disease", "3" = "disease", "4" = "disease" }'


def tl_audit(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tl_audit", *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False)


def adult(shared: Path) -> pd.DataFrame:
    parts = [pd.read_csv(shared / "adult" / f"adult.{part}.gz", header=None, skipinitialspace=True) for part in ("data", "test")]
    frame = pd.concat(parts, ignore_index=True)
    return pd.DataFrame({"race": frame[8], "sex": frame[9], "over": frame[14].str.rstrip(".") == ">50K"})


@pytest.mark.parametrize(
    ("column", "group", "difference", "ratio"), [("sex", "Female", -0.194516, 0.359655), ("race", "not White", -0.101445, 0.600592)]
)
def test_adult_base_rates_are_the_published_ones(shared_data: Path, column: str, group: str, difference: float, ratio: float) -> None:
    frame = adult(shared_data)
    assert len(frame) == 48842
    member = (frame["race"] != "White") if group == "not White" else (frame[column] == group)
    ours = intervals.rate_difference(frame["over"][member].to_numpy(), frame["over"][~member].to_numpy())
    assert ours.value == pytest.approx(difference, abs=5e-7)
    katz = intervals.katz_ratio(
        int(frame["over"][member].sum()), int(member.sum()), int(frame["over"][~member].sum()), int((~member).sum())
    )
    assert katz.value == pytest.approx(ratio, abs=5e-7)


@pytest.mark.parametrize(("from_age", "difference", "ratio"), [(26, -0.149448, 0.794826), (25, -0.128550, None)])
def test_german_credit_by_age_depends_on_one_character(shared_data: Path, from_age: int, difference: float, ratio: float | None) -> None:
    frame = pd.read_csv(shared_data / "german" / "german.csv")
    good, older = (frame["credit"] == 1).to_numpy(), (frame["age"] >= from_age).to_numpy()
    assert intervals.rate_difference(good[~older], good[older]).value == pytest.approx(difference, abs=5e-7)
    if ratio is not None:
        assert intervals.katz_ratio(
            int(good[~older].sum()), int((~older).sum()), int(good[older].sum()), int(older.sum())
        ).value == pytest.approx(ratio, abs=5e-7)


def test_heart_counts(shared_data: Path) -> None:
    expected = {"cleveland": (303, 139), "hungarian": (294, 106), "switzerland": (123, 115), "va": (200, 149)}
    for name, (n, positives) in expected.items():
        frame = pd.read_csv(shared_data / "heart4" / f"processed.{name}.csv", na_values="?")
        assert (len(frame), int((frame["target"] > 0).sum())) == (n, positives), name


def titanic(shared: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    frame = pd.read_csv(shared / "captum_tabular" / "titanic3.csv")
    frame = pd.concat(
        [
            frame,
            pd.get_dummies(frame["sex"]),
            pd.get_dummies(frame["embarked"], prefix="embark"),
            pd.get_dummies(frame["pclass"], prefix="class"),
        ],
        axis=1,
    )
    for column in ("age", "fare"):
        frame[column] = frame[column].fillna(frame[column].mean())
    labels = frame.pop("survived").to_numpy()
    frame = frame.drop(columns=["name", "ticket", "cabin", "boat", "body", "home.dest", "sex", "embarked", "pclass"])
    return frame.to_numpy().astype(np.float64), labels, list(frame.columns)


def test_integrated_gradients_of_the_titanic_network_are_the_published_ones(shared_data: Path) -> None:
    import torch

    import tl_audit as ta
    from tl_audit.models import load_weights

    x, y, columns = titanic(shared_data)
    train = np.random.RandomState(131254).choice(len(y), int(0.7 * len(y)), replace=False)
    test = np.array(sorted(set(range(len(y))) - set(train.tolist())))
    module = torch.nn.Sequential()
    for i, (a, b) in enumerate(((12, 12), (12, 8), (8, 2)), start=1):
        module.add_module(f"linear{i}", torch.nn.Linear(a, b))
        if i < 3:
            module.add_module(f"sigmoid{i}", torch.nn.Sigmoid())
    tensors, _ = load_weights(shared_data / "captum_tabular" / "titanic_model.pt")
    module.load_state_dict(tensors)
    inputs = torch.tensor(x[test], dtype=torch.float32)
    accuracy = {
        name: float((module(torch.tensor(x[rows], dtype=torch.float32)).argmax(1).numpy() == y[rows]).mean())
        for name, rows in (("train", train), ("test", test))
    }
    assert accuracy["train"] == pytest.approx(0.84934, abs=5e-6)
    assert accuracy["test"] == pytest.approx(0.81679, abs=5e-6)
    maps = ta.explain(
        ta.Model(module, classes=("died", "survived")),
        inputs,
        method="integrated_gradients",
        target="survived",
        baseline=torch.zeros_like(inputs[:1]),
        steps=50,
        of="probability",
    )
    assert maps.completeness is not None
    assert np.abs(maps.completeness).max() <= 0.026
    published = dict(
        zip(
            ["age", "sibsp", "parch", "fare", "female", "male", "embark_C", "embark_Q", "embark_S", "class_1", "class_2", "class_3"],
            [-0.454, -0.119, -0.056, 0.175, 0.154, -0.359, 0.086, -0.001, -0.082, 0.062, 0.021, -0.159],
            strict=True,
        )
    )
    for column, value in zip(columns, maps.values.mean(axis=0), strict=True):
        assert value == pytest.approx(published[column], abs=1.5e-3), column


def hospital(shared: Path, name: str) -> Path:
    return shared / "heart4" / f"processed.{name}.csv"


def table_keys() -> str:
    """How one hospital's file is read, the same in plan.toml and audit.toml."""
    return (
        f'label = "target"\nnumeric = {json.dumps(HEART_COLUMNS["numeric"])}\ncategorical = {json.dumps(HEART_COLUMNS["categorical"])}\n'
        f'na_values = ["?"]\nlabel_map = {HEART_LABELS}\npositive = "disease"\n'
    )


def heart_plan(base: str, train: Path, controls: str, stages: str) -> str:
    return (
        f'base = "{base}"\nkind = "tabular"\nseed = 0\ncontrols = {controls}\n'
        f'[data]\ntrain = "{train}"\nvalidation = 0.2\n{table_keys()}'
        f"[training]\nbatch_size = 16\nearly_stop = 10\n{stages}"
    )


def heart_audit(target: Path, source: Path) -> str:
    def domain(role: str, path: Path, more: str = "") -> str:
        return f'[{role}]\nkind = "tabular"\npath = "{path}"\n{table_keys()}{more}'

    return (
        f'title = "Heart disease, {target.stem}"\n[adapted]\nrun = "runs/hungarian"\n'
        + domain("target", target, 'groups = ["sex", { column = "age", bins = [45, 55] }]\n')
        + domain("source", source)
        + '[attribution]\nmethods = ["integrated_gradients", "kernel_shap"]\nsamples = 32\n'
    )


@pytest.fixture(scope="module")
def hearts(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cleveland's model, adapted to two thirds of the Hungarian patients; the rest is held out."""
    folder = tmp_path_factory.mktemp("hearts")
    patients = pd.read_csv(hospital(shared_data, "hungarian"), dtype=str)
    held_out = np.random.default_rng(0).random(len(patients)) < 1 / 3
    patients[~held_out].to_csv(folder / "hungarian_train.csv", index=False)
    patients[held_out].to_csv(folder / "hungarian_test.csv", index=False)
    (folder / "base.toml").write_text(
        heart_plan("tl_audit:mlp", hospital(shared_data, "cleveland"), "[]", '[[stages]]\nlayers = "*"\nepochs = 40\nlr = 3e-3\n'),
        encoding="utf-8",
    )
    (folder / "plan.toml").write_text(
        heart_plan(
            "run:runs/cleveland",
            folder / "hungarian_train.csv",
            '["head", "scratch"]',
            '[[stages]]\nlayers = "head"\nepochs = 5\nlr = 3e-3\n[[stages]]\nlayers = "*"\nepochs = 20\nlr = 1e-3\n',
        ),
        encoding="utf-8",
    )
    for plan, run in (("base.toml", "runs/cleveland"), ("plan.toml", "runs/hungarian")):
        done = tl_audit("adapt", plan, "--out", run, cwd=folder)
        assert done.returncode == 0, done.stderr[-2000:]
    return folder


def audited(folder: Path, name: str, target: Path, shared: Path, *more: str) -> AuditResult:
    (folder / f"{name}.toml").write_text(heart_audit(target, hospital(shared, "cleveland")), encoding="utf-8")
    done = tl_audit("run", f"{name}.toml", "--out", f"reports/{name}", "--fail-on", "never", *more, cwd=folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return load_json(folder / "reports" / name / "report.json")


def test_a_third_hospital_shows_label_shift_missing_columns_and_the_drop(hearts: Path, shared_data: Path) -> None:
    result = audited(hearts, "va", hospital(shared_data, "va"), shared_data)
    # 46 % of Cleveland and 75 % of the VA patients are ill
    assert result["TLA502"].status == "warn", result["TLA502"].reason
    assert result["TLA502"].metrics["label_tvd"].value == pytest.approx(abs(139 / 303 - 149 / 200), abs=1e-6)
    # ca is missing in nearly all VA rows and in few of Cleveland
    assert result["TLA507"].status == "warn", result["TLA507"].reason
    assert "ca (missing)" in result["TLA507"].measurement.model_dump_json()  # type: ignore[union-attr]
    assert result["TLA509"].status in {"warn", "fail"}, result["TLA509"].reason
    assert {"sex", "age"} <= {k for m in result["TLA601"].measurement.metrics for k in m.slice}  # type: ignore[union-attr]
    assert result["TLA201"].status == "pass", result["TLA201"].reason
    assert result.outcome.counts["error"] == 0


def test_among_held_out_patients_only_a_twin_is_a_leak_and_every_training_row_is(hearts: Path, shared_data: Path) -> None:
    held_out = audited(hearts, "hungarian", hearts / "hungarian_test.csv", shared_data)
    # the published file holds one patient twice, and the split put the twins on both sides
    train, test = (pd.read_csv(hearts / f"hungarian_{part}.csv", dtype=str) for part in ("train", "test"))
    twins = len(test.merge(train.drop_duplicates(), how="inner"))
    assert twins == 1
    assert held_out["TLA201"].metrics["leaked_exact"].value == twins, held_out["TLA201"].reason
    assert held_out["TLA301"].metrics["accuracy"].value >= 0.7  # type: ignore[operator]
    assert held_out.outcome.counts["error"] == 0
    trained_on = audited(hearts, "leak", hearts / "hungarian_train.csv", shared_data, "--select", "TLA201,TLA301")
    assert trained_on["TLA201"].status == "fail", trained_on["TLA201"].reason
    assert trained_on["TLA201"].metrics["leaked_exact"].value == len(train)


@pytest.mark.slow
def test_ants_and_bees_from_the_command_line(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(
        f'''base = "torchvision:squeezenet1_1"
weights = "{shared_data / "squeezenet1_1" / "squeezenet1_1_tv_fp16.pth"}"
kind = "image"
controls = ["head"]
[data]
train = "{shared_data / "hymenoptera" / "train"}"
validation = 0.2
[training]
batch_size = 16
[[stages]]
layers = "head"
epochs = 4
lr = 1e-3
[[stages]]
layers = "features.1[0-2]*"
epochs = 2
lr = 1e-4
''',
        encoding="utf-8",
    )
    (tmp_path / "audit.toml").write_text(
        f'''title = "Ants and bees"
[adapted]
run = "runs/insects"
[target]
kind = "image"
path = "{shared_data / "hymenoptera" / "val"}"
[source]
kind = "image"
path = "{shared_data / "imagenet_mini"}"
[attribution]
methods = ["grad_cam"]
samples = 30
''',
        encoding="utf-8",
    )
    done = tl_audit("adapt", "plan.toml", "--out", "runs/insects", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    done = tl_audit("run", "audit.toml", "--out", "reports/insects", "--fail-on", "never", cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = load_json(tmp_path / "reports" / "insects" / "report.json")
    assert result["TLA301"].metrics["accuracy"].value >= 0.88  # type: ignore[operator]
    assert result["TLA103"].status == "pass", result["TLA103"].reason
    assert result["TLA201"].status == "pass", result["TLA201"].reason
    assert "the base model has no class 'ants'" in result["TLA302"].reason
    for code in ("TLA502", "TLA509"):
        assert result[code].status == "not_evaluated", code
        assert "needs labels of the source domain" in result[code].reason
    assert result.outcome.counts["error"] == 0
    # a second method on the stored evidence; its maps are checked for faithfulness alone, on fewer samples, to save time
    (tmp_path / "second.toml").write_text(
        (tmp_path / "audit.toml")
        .read_text(encoding="utf-8")
        .replace('["grad_cam"]\nsamples = 30', '["grad_cam", "integrated_gradients"]\nsamples = 12'),
        encoding="utf-8",
    )
    done = tl_audit("run", "second.toml", "--out", "reports/second", "--select", "TLA702", "--fail-on", "never", cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    second = load_json(tmp_path / "reports" / "second" / "report.json")
    for method in ("grad_cam", "integrated_gradients"):
        gain = next(m for m in second["TLA702"].measurement.metrics if m.name == "faithfulness_gain" and m.slice == {"method": method})  # type: ignore[union-attr]
        assert gain.n["target"] == 12
        assert gain.interval[0] > 0, "the maps know more than a random map"  # type: ignore[index]
