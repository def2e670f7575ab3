"""Run directories: complete or not there, strict to open, and a base for the next run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import tl_audit as ta
from tests.finetune.conftest import pictures, plan_for, quick
from tl_audit.errors import ConfigError, DataError, RecordError, WeightsError
from tl_audit.finetune import DataPlan, Training, load_run
from tl_audit.finetune.run_dir import replacing
from tl_audit.models import tensor_hash
from tl_audit.records.preprocessing import TableEncoding

SMALL = {"widths": [4, 6]}
STAGES = (ta.Stage("head", epochs=1, lr=0.02), ta.Stage("*", epochs=1, lr=0.01))


@pytest.fixture
def run(domain: ta.Domain, tmp_path: Path):
    plan = plan_for("tl_audit:small_cnn", *STAGES, settings=SMALL, data=DataPlan(validation=0.25))
    return quick(plan, domain, out=tmp_path / "run", controls=("head", "scratch"))


def test_the_run_directory_holds_the_files_of_the_design_and_no_pickle(run, tmp_path: Path):
    files = sorted(str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert files == [
        "adaptation.json",
        "adapted.safetensors",
        "base.safetensors",
        "controls/head.safetensors",
        "controls/scratch.safetensors",
        "encoding.json",
        "manifest.json",
        "plan.toml",
        "samples.parquet",
    ]
    for name in files:
        head = (tmp_path / "run" / name).read_bytes()[:4]
        assert head[:2] != b"PK"
        assert head[:1] != b"\x80"


def test_a_loaded_run_is_the_run_that_was_made(run, tmp_path: Path):
    loaded = load_run(tmp_path / "run")
    assert tensor_hash(loaded.adapted.module) == tensor_hash(run.model.module)
    assert tensor_hash(loaded.base.module) == tensor_hash(run.base.module)
    assert {k: tensor_hash(m.module) for k, m in loaded.controls.items()} == {k: tensor_hash(m.module) for k, m in run.controls.items()}
    assert loaded.record == run.record
    assert loaded.adapted.classes == ("a", "b", "c")
    assert loaded.adapted.preprocessing == run.model.preprocessing
    assert loaded.adapted.head == "head"
    assert loaded.adapted.file.sha256 == run.record.adapted_sha256
    assert not loaded.adapted.module.training
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded.adapted.module(x), run.model.module(x))


def test_the_samples_table_lists_every_row_with_its_split_and_hash(run, tmp_path: Path):
    samples = load_run(tmp_path / "run").samples
    assert list(samples.columns) == ["id", "split", "label", "cluster", "content_hash"]
    assert samples["split"].value_counts().to_dict() == {"train": 36, "validation": 12}
    assert samples["content_hash"].str.len().eq(64).all()
    assert samples["id"].is_unique


@pytest.mark.parametrize(
    "name",
    [
        "adapted.safetensors",
        "base.safetensors",
        "controls/head.safetensors",
        "adaptation.json",
        "encoding.json",
        "plan.toml",
        "samples.parquet",
    ],
)
def test_one_flipped_byte_or_a_missing_file_is_named(run, tmp_path: Path, name: str):
    path = tmp_path / "run" / name
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 1
    path.write_bytes(bytes(flipped))
    with pytest.raises(RecordError, match=rf"{name}: was altered"):
        load_run(tmp_path / "run")
    path.write_bytes(whole[:-1])
    with pytest.raises(RecordError, match=rf"{name}: has {len(whole) - 1} bytes"):
        load_run(tmp_path / "run")
    path.unlink()
    with pytest.raises(RecordError, match=rf"{name}: is missing"):
        load_run(tmp_path / "run")


def test_a_manifest_that_was_rewritten_to_fit_altered_weights_does_not_help(run, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    from tl_audit.finetune.run_dir import write_manifest

    tensors = load_file(tmp_path / "run" / "adapted.safetensors")
    tensors["head.bias"] = tensors["head.bias"] + 1e-6
    save_file(tensors, tmp_path / "run" / "adapted.safetensors")
    listed = json.loads((tmp_path / "run" / "manifest.json").read_text())["files"]
    write_manifest(tmp_path / "run", list(listed))
    with pytest.raises(RecordError, match=r"adapted\.safetensors: its tensors are not those"):
        load_run(tmp_path / "run")
    del tensors["head.bias"]
    save_file(tensors, tmp_path / "run" / "adapted.safetensors")
    write_manifest(tmp_path / "run", list(listed))
    with pytest.raises(WeightsError, match=r"missing head\.bias"):
        load_run(tmp_path / "run")


def test_the_folder_of_a_report_is_told_apart_from_a_run(tmp_path: Path):
    for name in ("manifest.json", "report.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(RecordError, match="is the folder of a report"):
        load_run(tmp_path)


def test_what_is_not_a_complete_run_is_told_apart(run, tmp_path: Path):
    with pytest.raises(RecordError, match="is not a run directory"):
        load_run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match=r"has no manifest\.json"):
        load_run(tmp_path / "empty")
    (tmp_path / "run" / "manifest.json").unlink()
    (tmp_path / "run" / ".partial").mkdir()
    with pytest.raises(RecordError, match="is not complete"):
        load_run(tmp_path / "run")


def test_a_manifest_that_reaches_outside_the_run_is_refused(run, tmp_path: Path):
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../secret"] = {"sha256": "0" * 64, "bytes": 1}
    path.write_text(json.dumps(manifest))
    with pytest.raises(RecordError, match="outside the run"):
        load_run(tmp_path / "run")


def test_a_newer_record_asks_for_an_upgrade(run, tmp_path: Path):
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["schema_version"] = 2
    path.write_text(json.dumps(manifest))
    with pytest.raises(RecordError, match="upgrade tl-audit"):
        load_run(tmp_path / "run")


def test_the_same_adaptation_again_is_not_trained_again(run, domain: ta.Domain, tmp_path: Path):
    plan = plan_for("tl_audit:small_cnn", *STAGES, settings=SMALL, data=DataPlan(validation=0.25))
    again = quick(plan, domain, out=tmp_path / "run", controls=("head", "scratch"))
    assert again.reused
    assert again.record == run.record
    other = quick(plan.model_copy(update={"seed": 3}), domain, out=tmp_path / "run", controls=())
    assert not other.reused
    assert load_run(tmp_path / "run").controls == {}
    assert not (tmp_path / "run" / ".partial").exists()


def test_nothing_foreign_is_overwritten(domain: ta.Domain, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("...")
    with pytest.raises(ConfigError, match="not a run of tl-audit"):
        quick(plan_for("tl_audit:small_cnn", settings=SMALL), domain, out=tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_plan_that_cannot_be_used_leaves_no_folder_behind(domain: ta.Domain, tmp_path: Path):
    with pytest.raises(ConfigError, match="matches no module"):
        quick(plan_for("tl_audit:small_cnn", ta.Stage("blok1", epochs=1, lr=0.1), settings=SMALL), domain, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_processes_do_not_write_one_run_and_a_dead_owners_lock_is_taken_over(domain: ta.Domain, tmp_path: Path):
    import os
    import socket
    import subprocess
    import sys

    folder = tmp_path / "run" / ".partial"
    folder.mkdir(parents=True)
    (folder / "lock").write_text(f"{os.getppid()} {socket.gethostname()}\n")
    with pytest.raises(ConfigError, match=f"process {os.getppid()} here is writing this run"):
        quick(plan_for("tl_audit:small_cnn", settings=SMALL), domain, out=tmp_path / "run")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (folder / "lock").write_text(f"{gone.pid} {socket.gethostname()}\n")
    quick(plan_for("tl_audit:small_cnn", settings=SMALL), domain, out=tmp_path / "run")
    assert not folder.exists()


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path: Path):
    (tmp_path / "a.json").write_text("old")

    def fails() -> None:
        with replacing(tmp_path / "a.json") as temporary:
            temporary.write_text("new, but")
            raise OSError(28, "No space left on device")

    with pytest.raises(ConfigError, match="what was there is unchanged"):
        fails()
    assert (tmp_path / "a.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


# A run as base ----------------------------------------------------------------------------------------------------------------


def test_a_run_as_base_brings_its_weights_classes_and_preprocessing(run, tmp_path: Path):
    images, _ = pictures(24, 2, seed=4)
    second = ta.Domain("second", np.repeat(np.repeat(images, 2, axis=1), 2, axis=2), labels=["x", "y"] * 12, kind="image")
    made = quick(plan_for(f"run:{tmp_path / 'run'}"), second, out=tmp_path / "second")
    assert tensor_hash(made.base.module) == tensor_hash(run.model.module)
    assert made.base.classes == ("a", "b", "c")
    assert made.model.preprocessing == run.model.preprocessing
    assert made.record.base_origin == "run"
    assert made.record.base_sha256 == run.record.adapted_sha256
    third = quick(
        plan_for(f"run:{tmp_path / 'second'}", ta.Stage("*", epochs=1, lr=0.01)), second, out=tmp_path / "third", controls=("scratch",)
    )
    assert tensor_hash(load_run(tmp_path / "third").base.module) == tensor_hash(made.model.module)
    assert tensor_hash(load_run(tmp_path / "third").controls["scratch"].module) == tensor_hash(third.controls["scratch"].module)


def table(n: int, seed: int, kinds: tuple[str, ...]) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    x = draw.normal(50 + 10 * seed, 5, n)
    frame = pd.DataFrame({"x": x, "kind": draw.choice(kinds, n), "y": np.where(x > np.median(x), "high", "low")})
    frame.loc[3, "x"] = np.nan
    return frame


@pytest.mark.parametrize("form", ["onehot", "embedding"])
def test_the_encoding_of_a_table_is_fitted_once_and_never_again(tmp_path: Path, form: str):
    data = DataPlan(label="y", numeric=["x"], categorical=["kind"], validation=0.25, categorical_as=form)
    first = quick(
        plan_for("tl_audit:mlp", ta.Stage("*", epochs=2, lr=0.01), kind="tabular", data=data),
        table(60, 0, ("p", "q")),
        out=tmp_path / "one",
    )
    assert isinstance(first.model.preprocessing, TableEncoding)
    assert first.model.preprocessing.categorical_as == form
    second = quick(
        plan_for(f"run:{tmp_path / 'one'}", kind="tabular", data=data),
        table(60, 1, ("q", "new")),
        out=tmp_path / "two",
        controls=("scratch",),
    )
    assert second.model.preprocessing == first.model.preprocessing
    assert load_run(tmp_path / "two").preprocessing == first.model.preprocessing
    train = first.train
    values = train.samples.read(np.arange(len(train))).items
    xs = np.array([row["x"] for row in values if row["x"] is not None])
    assert first.model.preprocessing.numeric[0].mean == pytest.approx(xs.mean())


# Live networks and plans on disk ------------------------------------------------------------------------------------------------


def test_a_run_of_a_live_network_opens_with_its_architecture_and_refuses_without(net: ta.Model, domain: ta.Domain, tmp_path: Path):
    made = quick(plan_for(net), domain, out=tmp_path / "run")
    with pytest.raises(ConfigError, match="give it as module="):
        load_run(tmp_path / "run")
    loaded = load_run(tmp_path / "run", module=net.module)
    assert tensor_hash(loaded.adapted.module) == tensor_hash(made.model.module)
    assert tensor_hash(loaded.base.module) == tensor_hash(made.base.module)


def test_a_plan_file_adapts_and_its_data_can_be_opened_again(tmp_path: Path):
    from PIL import Image

    images, labels = pictures(30)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (tmp_path / "data" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "data" / label / f"{i:02d}.png")
    (tmp_path / "plan.toml").write_text(
        'base = "tl_audit:small_cnn"\nkind = "image"\n[settings]\nwidths = [4, 6]\n[data]\ntrain = "data"\nvalidation = 0.2\n[[stages]]\nlayers = "*"\nepochs = 1\nlr = 1e-2\n'
    )
    made = ta.adapt(tmp_path / "plan.toml", out=tmp_path / "runs" / "one", progress="none")
    loaded = load_run(tmp_path / "runs" / "one")
    train, validation = loaded.domain("train"), loaded.domain("validation")
    assert (len(train), len(validation)) == (24, 6)
    assert set(train.ids) == set(made.train.ids)
    assert list(validation.labels) == list(made.validation.labels)
    (tmp_path / "data" / train.ids[0]).unlink()
    with pytest.raises(DataError, match="1 of 24 train samples are no longer there"):
        loaded.domain("train")


def test_a_run_made_from_python_data_says_that_it_must_be_given_again(run, tmp_path: Path):
    with pytest.raises(DataError, match="given in Python"):
        load_run(tmp_path / "run").domain("train")


# The whole job ------------------------------------------------------------------------------------------------------------------


def test_digits_end_to_end_from_a_random_start_to_an_adapted_model(tmp_path: Path):
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (np.kron(digits.images, np.ones((1, 2, 2))) / 16 * 255).astype(np.uint8)
    labels = [f"digit {t}" for t in digits.target]
    source = ta.Domain("first device", images[:500], labels=labels[:500], kind="image")
    target = ta.Domain("second device", 255 - images[500:800], labels=labels[500:800], kind="image")
    test = ta.Domain("second device, test", 255 - images[800:1000], labels=labels[800:1000], kind="image")
    base = quick(
        plan_for(
            "tl_audit:small_cnn",
            ta.Stage("*", epochs=6, lr=1e-2),
            settings={"widths": [16, 32, 32]},
            data=DataPlan(validation=0.2),
            training=Training(batch_size=16),
        ),
        source,
        out=tmp_path / "base",
    )
    plan = plan_for(
        f"run:{tmp_path / 'base'}",
        ta.Stage("head", epochs=1, lr=1e-2),
        ta.Stage("*", epochs=10, lr=1e-2, layer_decay=0.9),
        data=DataPlan(validation=0.2),
        training=Training(batch_size=16),
    )
    made = quick(plan, target, out=tmp_path / "adapted")

    def accuracy(model: ta.Model) -> float:
        x = test.samples.modality.encode(test.samples.read(np.arange(len(test))), model.preprocessing)
        with torch.no_grad():
            said = model.module(x).argmax(dim=1)
        return float(np.mean([model.classes[i] == t for i, t in zip(said, test.labels, strict=True)]))

    assert accuracy(made.model) > 0.7
    assert accuracy(made.model) > accuracy(base.model) + 0.3
    assert made.record.method == "full"
