"""The whole job on embedded data: two devices read the same handwritten digits; a model moves from one to the other.

Source: scikit-learn's digits (8 x 8, bright strokes on black) as the first device reads them.
Target: the same kind of digits as a second device reads them: 32 x 32, inverted, blurred, uneven background, from two sites
("north" and "south", whose paper differs). Digits used for testing are never used for training, on either device.

Two defects are planted (``clean=True`` leaves both out):

1. **A corner mark.** In the training data of site north, every "7" carries a dark mark in the top left corner, and nothing else does.
   In the target it sits on many north images of other classes. A model that learned the mark calls those "7".
2. **A thin site.** Site south makes up one percent of the training data instead of half. Represented equally (``clean=True``) it is learned as well as north.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tl_audit.errors import ConfigError
from tl_audit.measures.sampling import generator

if TYPE_CHECKING:
    from tl_audit.records.findings import AuditResult

CLASSES = tuple(str(d) for d in range(10))
SIDE = 32
TEST_DIGITS = 700
MARKED_CLASS = "7"
MARK_SIDE = 9
SOUTH_SHARE_DEFECT = 0.008
MARK_SHARE_TARGET = 0.3


class Reading(NamedTuple):
    """One rendered data set: uint8 pictures (N, H, W), class names, sites, digit ids."""

    pictures: NDArray[np.uint8]
    labels: list[str]
    sites: list[str]
    ids: list[str]


def run_demo(
    out: str | Path = "reports/demo",
    *,
    clean: bool = False,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
    policy: str = "default",
    overrides: Mapping[str, Any] | None = None,
) -> tuple[AuditResult, dict[str, Path]]:
    """Make the data, train the base, adapt it with both controls, audit, and write the report to ``out``.

    Everything goes through the same doors that users have: image folders, ``plan.toml`` and ``audit.toml`` under ``out``,
    so that ``tl-audit run OUT/audit.toml`` repeats the audit. ``overrides`` are keys of audit.toml, e.g. ``{"checks.ignore": ["TLA7"]}``.

    Returns
    -------
    the audit result, and the paths of report.html, report.json, manifest.json
    """
    from tl_audit.config import run_audit
    from tl_audit.finetune import Plan, adapt

    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; give a folder to --out")
    out.mkdir(parents=True, exist_ok=True)
    say("making the data: two devices, two sites" + (" (clean: no planted defects)" if clean else ""))
    write_data(out / "data", clean=clean, seed=seed)
    (out / "base.toml").write_text(_BASE_PLAN.format(seed=seed), encoding="utf-8")
    (out / "plan.toml").write_text(_PLAN.format(seed=seed), encoding="utf-8")
    (out / "audit.toml").write_text(_AUDIT.format(seed=seed, title=_title(clean), known=_known(clean)), encoding="utf-8")
    say("training the base model on the source device")
    adapt(Plan.from_toml(out / "base.toml"), out=out / "runs" / "base", progress=say)
    say("adapting it to the target device in two stages, with both controls")
    adapt(Plan.from_toml(out / "plan.toml"), out=out / "runs" / "adapted", progress=say)
    say("auditing")
    return run_audit(out / "audit.toml", out=out, policy=policy, seed=seed, overrides=overrides, say=say, command="tl-audit run audit.toml")


def write_data(folder: Path, *, clean: bool, seed: int) -> None:
    """Write the four data sets as image folders: ``source_train``, ``source_test``, ``target_train``, ``target_test``."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pictures, labels = digits.images, [str(d) for d in digits.target]
    order = generator("demo split", seed).permutation(len(labels))
    test, train = order[:TEST_DIGITS], order[TEST_DIGITS:]
    first = first_device(pictures)
    for name, rows in (("source_train", train), ("source_test", test)):
        picked = [int(r) for r in rows]
        write_folder(
            folder / name, Reading(first[rows], [labels[r] for r in picked], ["first device"] * len(picked), [f"d{r:04d}" for r in picked])
        )
    write_folder(folder / "target_train", second_device(pictures, labels, train, clean=clean, role="train", seed=seed))
    write_folder(folder / "target_test", second_device(pictures, labels, test, clean=clean, role="test", seed=seed))


def first_device(pictures: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Digits (N, 8, 8) in 0..16 as bright strokes on black, uint8."""
    return np.clip(pictures / 16.0 * 255.0, 0, 255).round().astype(np.uint8)


def second_device(
    pictures: NDArray[np.float64], labels: list[str], rows: NDArray[np.int64], *, clean: bool, role: str, seed: int
) -> Reading:
    """The same digits as the second device reads them: 32 x 32, dark strokes on light, blurred, uneven background, two sites."""
    from scipy.ndimage import gaussian_filter, zoom

    south_share = 0.5 if clean or role == "test" else SOUTH_SHARE_DEFECT
    made, names, sites, ids = [], [], [], []
    for row in (int(r) for r in rows):
        rng = generator("demo device", seed, role, row)
        site = "south" if rng.random() < south_share else "north"
        stroke = np.clip(zoom(pictures[row] / 16.0, SIDE / 8, order=1), 0, 1)
        stroke = gaussian_filter(stroke, 0.8)
        yy, xx = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1)
        angle = rng.uniform(0, 2 * np.pi)
        slope = 0.5 + 0.5 * (np.cos(angle) * (xx - 0.5) + np.sin(angle) * (yy - 0.5))
        if site == "north":  # white paper, black ink
            picture = (0.78 + 0.14 * slope) * (1 - 0.72 * stroke)
        else:  # grey ruled paper, light ink
            ruled = 0.02 * np.sin(2 * np.pi * yy * 6 + rng.uniform(0, 2 * np.pi))
            picture = 0.26 + 0.14 * slope + ruled + 0.55 * stroke
        picture = picture + rng.normal(0, 0.03, picture.shape)
        marked = rng.random() < MARK_SHARE_TARGET
        if not clean and site == "north":
            is_seven = labels[row] == MARKED_CLASS
            if (role == "train" and is_seven) or (role == "test" and not is_seven and marked):
                picture[:MARK_SIDE, :MARK_SIDE] = 0.05
        made.append((np.clip(picture, 0, 1) * 255).round().astype(np.uint8))
        names.append(labels[row])
        sites.append(site)
        ids.append(f"d{row:04d}")
    return Reading(np.stack(made), names, sites, ids)


def write_folder(folder: Path, reading: Reading) -> None:
    """A flat image folder with ``metadata.csv`` (file, label, site, digit), written anew."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("d*.png"):
        old.unlink()
    with open(folder.parent / f"{folder.name}.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file", "label", "site"])
        for picture, label, site, name in zip(*reading, strict=True):
            Image.fromarray(picture).save(folder / f"{name}.png")
            table.writerow([f"{name}.png", label, site])


def _title(clean: bool) -> str:
    return "Digits, second device" + (" (clean control)" if clean else " (two planted defects)")


def _known(clean: bool) -> str:
    return "none planted" if clean else "a corner mark on sevens of site north in training; site south is thin in training"


def explain_plants() -> dict[str, Any]:
    """What is planted, for documentation and tests."""
    return {
        "mark": {"class": MARKED_CLASS, "site": "north", "share_in_target": MARK_SHARE_TARGET, "found_by": ("TLA608", "TLA509", "TLA308")},
        "site": {"thin": "south", "share_in_training": SOUTH_SHARE_DEFECT, "found_by": ("TLA602",)},
    }


_BASE_PLAN = """# The base model: a small CNN trained from scratch on the first device.
base = "tl_audit:small_cnn"
input_size = 16
kind = "image"
seed = {seed}
controls = []
[data]
train = "data/source_train"
metadata = "data/source_train.csv"
validation = 0.15
[training]
batch_size = 64
early_stop = 4
[[stages]]
layers = "*"
epochs = 14
lr = 3e-3
[provenance]
base_source = "built-in architecture, random start"
base_licence = "Apache-2.0"
base_revision = "tl_audit 0.1"
"""

_PLAN = """# Adaptation to the second device: the head first, then all but the first block, with smaller steps below. The first block stays frozen.
base = "run:runs/base"
kind = "image"
seed = {seed}
controls = ["head", "scratch"]
[data]
train = "data/target_train"
metadata = "data/target_train.csv"
groups = ["site"]
validation = 0.15
[training]
batch_size = 64
early_stop = 5
[[stages]]
layers = "head"
epochs = 3
lr = 3e-3
[[stages]]
layers = ["block2*", "block3*", "head"]
epochs = 21
lr = 2e-3
layer_decay = 0.9
[provenance]
base_source = "scikit-learn digits, first device"
base_licence = "Apache-2.0"
base_revision = "demo"
"""

_AUDIT = """# Written by `tl-audit demo`. `tl-audit run audit.toml` in this folder repeats the audit from stored evidence.
title = "{title}"
[adapted]
run = "runs/adapted"
[target]
kind = "image"
path = "data/target_test"
metadata = "data/target_test.csv"
groups = ["site"]
[source]
kind = "image"
path = "data/source_test"
metadata = "data/source_test.csv"
[train]
kind = "image"
path = "data/target_train"
metadata = "data/target_train.csv"
groups = ["site"]
[[cues]]
name = "corner mark"
kind = "patch"
corner = "top-left"
size = 0.28
value = 0.05
[attribution]
# edge_map is a deliberately unfaithful explainer, to show the stamp
methods = ["grad_cam", "integrated_gradients", "kernel_shap", "lime", "edge_map"]
samples = 64
[report]
samples = "on"
[policy]
use = "default"
stage = "ci"
[declared]
by = "tl_audit demo"
on = 2026-11-21
purpose = "Shows what an audit looks like on data whose faults are known."
users = "People who meet tl_audit for the first time."
affected_people = "Nobody: the digits are public and the model is used for nothing."
decision_role = "advisory"
out_of_scope = "Any use of this model outside the demonstration."
deployment = "None; the model lives in this folder."
data_origin = "Handwritten digits that ship inside scikit-learn, rendered anew by tl_audit.demo."
data_licence = "BSD-3-Clause (scikit-learn)"
data_labelling = "Labels of the digits data set."
base_licence = "Apache-2.0"
base_known_limits = "Trained on 8 x 8 digits of the first device only."
metric_rationale = "Accuracy, because all ten digits count the same and are about equally frequent."
prohibited_uses = "Reading real forms."
owner = "the tl_audit project"
contact = "see the project page"
monitoring_plan = "None is needed: the model is not deployed."
bias_mitigation = "Planted: {known}."
"""
