"""`tl-audit explain`: pictures and tables, base beside adapted, single rows, whole tables, and what it says when something is wrong."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import tl_audit as ta
from tl_audit.attribution.methods import EXPLAINERS, NEGATIVE_CONTROLS
from tl_audit.cli import main

Run = Callable[..., tuple[int, str, str]]
HOSTILE = '"><img src=x onerror=alert(1)>\u202e'


@pytest.fixture
def explain(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    def run(*argv: object) -> tuple[int, str, str]:
        code = main(["explain", "--out", str(tmp_path / "out"), *[str(a) for a in argv]])
        caught = capsys.readouterr()
        return code, caught.out, caught.err

    return run


def frame(n: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    data = pd.DataFrame({"id": [f"p{k}" for k in range(n)], "dose": rng.normal(10, 3, n), "age": rng.normal(50, 9, n)})
    data["sex"] = np.where(rng.random(n) > 0.5, "one", "two")
    data["clinic"] = [f"c{k % 12}" for k in range(n)]
    data["outcome"] = np.where(data["dose"] + rng.normal(0, 1, n) > 10, "ill", "well")
    return data


@pytest.fixture(scope="module")
def table_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, and a run that adapted a small network to it; the base has the same classes."""
    out = tmp_path_factory.mktemp("table")
    frame().to_csv(out / "patients.csv", index=False)
    domain = ta.Domain("patients", frame(), kind="tabular", label="outcome", numeric=["dose", "age"], categorical=["sex"], positive="ill")
    task = ta.Classification(["ill", "well"], positive="ill")
    ta.adapt(
        ta.Plan(base="tl_audit:mlp", kind="tabular", task=task, stages=[ta.Stage("*", epochs=8, lr=1e-2)], seed=0),
        domain,
        out=out / "base",
        controls=(),
    )
    ta.adapt(
        ta.Plan(base=f"run:{out / 'base'}", kind="tabular", task=task, stages=[ta.Stage("*", epochs=4, lr=1e-2)], seed=0),
        domain,
        out=out / "run",
        controls=(),
    )
    return out


@pytest.fixture(scope="module")
def picture_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(1)
    for name, bright in (("cat", 60), ("dog", 190)):
        (out / "data" / name).mkdir(parents=True)
        for k in range(6):
            Image.fromarray(rng.normal(bright, 30, (16, 16, 3)).clip(0, 255).astype(np.uint8)).save(out / "data" / name / f"{k}.png")
    domain = ta.Domain("animals", out / "data")
    task = ta.Classification(["cat", "dog"])
    plan = ta.Plan(base="tl_audit:small_cnn", input_size=16, task=task, stages=[ta.Stage("*", epochs=3, lr=3e-3)], seed=0)
    ta.adapt(plan, domain, out=out / "base", controls=())
    ta.adapt(
        ta.Plan(base=f"run:{out / 'base'}", task=task, stages=[ta.Stage("head", epochs=1, lr=3e-3)], seed=0),
        domain,
        out=out / "run",
        controls=(),
    )
    return out


def page(out: Path) -> str:
    return (out / "explanations.html").read_text()


def test_base_adapted_and_difference_are_drawn_for_every_picture(explain: Run, picture_run: Path, tmp_path: Path) -> None:
    code, out, err = explain(
        "--model", picture_run / "run", "--input", picture_run / "data", "--base", "--most", 2, "--budget", 40, "--method", "grad_cam,lime"
    )
    assert code == 0, err
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert sum(n.endswith("-difference.png") for n in names) <= 4  # none where a side is blank
    assert sum(n.endswith("-adapted.png") for n in names) == 4
    assert "maps    4 by grad_cam, lime" in out
    for method in ("grad_cam", "lime"):
        data = json.loads((tmp_path / "out" / f"attributions-{method}.json").read_text())
        assert set(data["maps"]) == {"base", "adapted"}
        assert {"base", "adapted", "difference"} <= set(data["parts"][0])
        with np.load(tmp_path / "out" / f"attributions-{method}.npz") as arrays:
            assert np.allclose(arrays["difference"], arrays["1/values"] - arrays["0/values"], equal_nan=True)
    with Image.open(tmp_path / "out" / next(n for n in names if n.endswith("lime-adapted.png"))) as image:
        assert max(image.size) == 224
    assert "The methods beside each other" in page(tmp_path / "out")
    assert "base | adapted | difference, by lime" in page(tmp_path / "out")


def test_the_true_class_and_a_contrast_can_be_explained(explain: Run, picture_run: Path, tmp_path: Path) -> None:
    argv = (
        "--model",
        picture_run / "run",
        "--input",
        picture_run / "data",
        "--row",
        "cat/0.png",
        "--row",
        "dog/3.png",
        "--method",
        "integrated_gradients",
    )
    assert explain(*argv, "--target", "true")[0] == 0
    data = json.loads((tmp_path / "out" / "attributions.json").read_text())
    assert {(r["id"], r["target"]) for r in data["parts"]} == {("cat/0.png", "cat"), ("dog/3.png", "dog")}
    assert explain(*argv, "--target", "cat", "--against", "dog")[0] == 0
    data = json.loads((tmp_path / "out" / "attributions.json").read_text())
    assert {r["target"] for r in data["parts"]} == {"cat against dog"}


def test_labels_of_pictures_come_from_a_table_beside_them(explain: Run, picture_run: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    (tmp_path / "flat").mkdir()
    for k in range(2):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "flat" / f"{k}.png")
    (tmp_path / "animals.csv").write_text("file,animal\n0.png,dog\n1.png,cat\n")
    argv = ("--model", picture_run / "run", "--input", tmp_path / "flat", "--target", "true")
    code, _, err = explain(*argv)
    assert code == 2
    assert "--metadata" in err
    code, _, err = explain(*argv, "--metadata", tmp_path / "animals.csv", "--label", "animal")
    assert code == 0, err
    data = json.loads((tmp_path / "out" / "attributions.json").read_text())
    assert {row["id"]: row["target"] for row in data["parts"]} == {"0.png": "dog", "1.png": "cat"}


def test_a_layer_goes_to_the_methods_that_read_one(explain: Run, picture_run: Path, tmp_path: Path) -> None:
    argv = ("--model", picture_run / "run", "--input", picture_run / "data", "--most", 1, "--budget", 20, "--layer", "block2", "--method")
    code, _, err = explain(*argv, "grad_cam,lime")
    assert code == 0, err
    assert json.loads((tmp_path / "out" / "attributions-grad_cam.json").read_text())["layer"] == "block2"
    code, _, err = explain(*argv, "lime,kernel_shap")
    assert code == 2
    assert "none of lime, kernel_shap reads a layer" in err


def test_a_column_that_is_not_there_is_named_before_anything_is_explained(explain: Run, table_run: Path) -> None:
    _, _, err = explain("--model", table_run / "run", "--input", table_run / "patients.csv", "--dependence", "dosis")
    assert "explaining 60 rows" not in err


def test_a_whole_table_is_summed_up_with_intervals_against_chance(explain: Run, table_run: Path, tmp_path: Path) -> None:
    code, _, err = explain("--model", table_run / "run", "--input", table_run / "patients.csv", "--dependence", "age", "--base")
    assert code == 0, err
    assert "the positive class" in err
    sums = pd.read_csv(tmp_path / "out" / "importance.csv")
    with np.load(tmp_path / "out" / "attributions.npz") as arrays:
        names, values = list(arrays["1/part_names"]), arrays["1/values"]
        assert len(arrays["1/ids"]) == 60
    by_hand = dict(zip(names, np.abs(values).mean(axis=0), strict=True))
    assert sums["column"].iloc[0] == "dose"
    assert sums.set_index("column")["mean_absolute"].to_dict() == pytest.approx(by_hand)
    assert sums["chance"].iloc[0] == pytest.approx(np.abs(values).mean())
    html = page(tmp_path / "out")
    for words in ("by chance", "How the attribution of age goes with its value", " in the adapted model", "Explained: ill"):
        assert words in html
    assert "<script" not in html


def test_clusters_are_the_units_where_a_column_is_named(explain: Run, table_run: Path, tmp_path: Path) -> None:
    code, _, err = explain("--model", table_run / "run", "--input", table_run / "patients.csv", "--cluster", "clinic", "--budget", 30)
    assert code == 0, err
    assert set(pd.read_csv(tmp_path / "out" / "importance.csv")["clusters"]) == {12}


def test_single_rows_are_found_by_id_and_by_number(explain: Run, table_run: Path, tmp_path: Path) -> None:
    argv = ("--model", table_run / "run", "--input", table_run / "patients.csv", "--id", "id")
    code, _, err = explain(*argv, "--row", "p7", "--row", 3)
    assert code == 0, err
    data = json.loads((tmp_path / "out" / "attributions.json").read_text())
    assert {row["id"] for row in data["parts"]} == {"p7", "p3"}
    assert not (tmp_path / "out" / "importance.csv").exists()
    assert "kernel_shap" in page(tmp_path / "out")
    svg = page(tmp_path / "out")
    assert re.search(r"age = \d+", svg)
    assert "sex = " in svg


def test_most_draws_rows_of_a_table_by_their_ids_and_says_so(explain: Run, table_run: Path, tmp_path: Path) -> None:
    code, _, err = explain("--model", table_run / "run", "--input", table_run / "patients.csv", "--most", 20, "--budget", 20)
    assert code == 0
    assert "20 of 60 rows are explained, drawn by their ids" in err
    assert set(pd.read_csv(tmp_path / "out" / "importance.csv")["n"]) == {20}


def test_the_same_call_writes_the_same_bytes(explain: Run, table_run: Path, tmp_path: Path) -> None:
    argv = ("--model", table_run / "run", "--input", table_run / "patients.csv", "--row", 1, "--budget", 30)
    explain(*argv)
    first = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.suffix in (".json", ".html")}
    explain(*argv)
    assert first == {name: (tmp_path / "out" / name).read_bytes() for name in first}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--row", "p99"], "there is no such id"),
        (["--row", "999"], "rows are numbered 0 to 59"),
        (["--dependence", "dosis"], "did you mean 'dose'"),
        (["--dependence", "xxxx"], "there is no column 'xxxx'. The columns are: dose, age"),
        (["--row", "1", "--dependence", "dose"], "summed up"),
        (["--row", "1", "--all"], "leave out --all"),
        (["--all", "--most", "3"], "contradict"),
        (["--target", "nobody"], "its classes are: ill, well"),
        (["--target", "true", "--label", "clinic"], "no class of the model"),
        (["--target", "ill", "--against", "ill"], "against itself"),
        (["--cluster", "ward"], "ward"),
        (["--method", "kernel_sharp"], "kernel_shap"),
        (["--method", ","], "--method is empty"),
        (["--method", "grad_cam"], "spatial"),
    ],
)
def test_a_mistake_is_one_sentence_exit_2_and_no_page(explain: Run, table_run: Path, tmp_path: Path, argv: list[str], words: str) -> None:
    code, out, err = explain("--model", table_run / "run", "--input", table_run / "patients.csv", "--budget", 10, *argv)
    assert code == 2
    assert words in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "explanations.html").exists()
    assert out == ""


def test_maps_are_stamped_when_asked_for(explain: Run, picture_run: Path, tmp_path: Path) -> None:
    argv = ("--model", picture_run / "run", "--input", picture_run / "data", "--most", 3, "--method", "kernel_shap", "--budget", 40)
    assert explain(*argv)[0] == 0
    assert "not checked</b>: no quality check" in page(tmp_path / "out")
    code, _, err = explain(*argv, "--quality", "--base")
    assert code == 0, err
    assert "permuted weights" in err
    data = json.loads((tmp_path / "out" / "attributions.json").read_text())
    assert all(data["maps"][name]["quality"]["text"] for name in ("base", "adapted"))
    assert data["maps"]["adapted"]["quality"]["text"].split(";")[0] in page(tmp_path / "out")


def test_a_weights_file_says_what_it_takes_for_granted(explain: Run, picture_run: Path) -> None:
    picture = picture_run / "data" / "cat" / "0.png"
    code, _, err = explain(
        "--model", picture_run / "run" / "adapted.safetensors", "--arch", "tl_audit:small_cnn", "--classes", "cat,dog", "--input", picture
    )
    assert code == 0, err
    assert "the weights file does not say how inputs are made; as tl_audit:small_cnn has it: pictures at their own size" in err


def test_base_needs_a_run_directory(explain: Run, table_run: Path) -> None:
    code, _, err = explain(
        "--model", table_run / "run" / "adapted.safetensors", "--arch", "tl_audit:mlp", "--classes", "ill,well", "--base",
        "--input", table_run / "patients.csv",
    )  # fmt: skip
    assert code == 2
    assert "--base needs a run directory" in err


def test_nothing_is_written_through_a_link(explain: Run, table_run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").write_text("keep me")
    (tmp_path / "out" / "explanations.html").symlink_to(tmp_path / "elsewhere")
    code, _, err = explain("--model", table_run / "run", "--input", table_run / "patients.csv", "--row", 1, "--budget", 10)
    assert code == 2
    assert "is a link" in err
    assert (tmp_path / "elsewhere").read_text() == "keep me"


def test_hostile_ids_and_columns_stay_text_and_inside_the_folder(explain: Run, table_run: Path, tmp_path: Path) -> None:
    data = frame(3)
    data["id"] = [HOSTILE, "../../escape", "=cmd()"]
    data.to_csv(tmp_path / "h.csv", index=False)
    code, _, err = explain("--model", table_run / "run", "--input", tmp_path / "h.csv", "--id", "id", "--budget", 10)
    assert code == 0, err
    html = page(tmp_path / "out")
    assert "<img src=x" not in html
    assert "\u202e" not in html
    assert sorted(p.name for p in tmp_path.iterdir()) == ["h.csv", "out"]


def test_hostile_file_names_become_plain_ones(explain: Run, picture_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(np.full((16, 16, 3), 99, np.uint8)).save(folder / "<b>x'.png")
    code, _, err = explain("--model", picture_run / "run", "--input", folder, "--target", "dog")
    assert code == 0, err
    assert "<b>x" not in page(tmp_path / "out")
    assert all(re.fullmatch(r"[a-z0-9_.-]+", p.name) for p in (tmp_path / "out").iterdir())
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page(tmp_path / "out"))
    with Image.open(io.BytesIO(base64.b64decode(found[0]))) as image:
        assert image.format == "PNG"


def test_the_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--help"]) == 0
    text = capsys.readouterr().out
    for option in ("--method", "--target", "--against", "--layer", "--budget", "--seed", "--base", "--quality", "--row", "--all", "--most", "--dependence", "--cluster", "--label", "--id", "--metadata", "--out"):  # fmt: skip
        assert option in text
    about, controls = text.split("Negative controls")
    space, both = about.split("Pictures and tables:")
    for method in EXPLAINERS:
        where = controls if method.name in NEGATIVE_CONTROLS else space if method.needs_space else both
        assert re.search(rf"(?<!\w){re.escape(method.name)}(?![\w+])", where), method.name


def test_long_checks_of_maps_say_how_far_they_are_and_short_ones_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from tl_audit import explaining

    clock = [0.0]
    monkeypatch.setattr(explaining.time, "monotonic", lambda: clock[0])
    said: list[str] = []
    tell = explaining._now_and_then(said.append)
    for done in range(8):
        clock[0] = 0.7 * done
        tell("samples held against random maps", done, 8)
    assert said == ["3 of 8 samples held against random maps", "6 of 8 samples held against random maps"]
