"""Clean subjects: one distribution for source, training and target, equal groups, a sound adaptation with base and controls, everything stated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import tl_audit as ta
from tl_audit.measures.sampling import generator

KINDS = ("tabular", "image")
ROWS = {
    "tabular": {"target": 1200, "source": 700, "train": 800, "validation": 200, "pretraining": 2000},
    "image": {"target": 300, "source": 300, "train": 400, "validation": 100, "pretraining": 800},
}
CLASSES = ("no", "yes")
SIDE = 16
EVERY = 10  # subjects that share one base model
NOISE = 0.03  # wrong labels, the same share everywhere: where classes touched, errors would truly gather in some slice
DECLARED = dict.fromkeys(
    (
        "purpose", "users", "affected_people", "out_of_scope", "decision_role", "deployment", "data_origin", "data_licence", "data_labelling",
        "base_licence", "base_known_limits", "metric_rationale", "prohibited_uses", "owner", "contact", "monitoring_plan",
    ),
    "stated in full by the author of this simulation",
) | {"decision_role": "advisory"}  # fmt: skip


def domain(kind: str, name: str, *key: object) -> ta.Domain:
    """Rows of the one distribution there is; ages, sites and months are drawn apart from everything else.

    Tables have independent rows. Pictures come two per patient, who has one label and one brightness.
    """
    n = ROWS[kind][name]
    rng = generator("clean subject", kind, name, *key)
    months = [f"2026-{month:02d}" for month in range(1, 7)]
    common: dict[str, Any]
    unit = np.arange(n) // 2 if kind == "image" else np.arange(n)
    units = int(unit.max()) + 1
    positive = (rng.random(units) < 0.5)[unit]
    labels = np.where(positive ^ (rng.random(units) < NOISE)[unit], "yes", "no").tolist()
    groups = {"age": rng.choice(["old", "young"], units)[unit].tolist()}
    site, time = rng.choice(["north", "south"], units)[unit].tolist(), rng.choice(months, units)[unit].tolist()
    groups["site"] = site
    common = {"labels": labels, "classes": list(CLASSES), "positive": "yes", "groups": groups, "site": site, "time": time}
    if kind == "image":
        pictures = _pictures(rng, positive, rng.uniform(0.5, 1.0, units)[unit])
        return ta.Domain(name, pictures, kind="image", cluster=[f"{name}-{'-'.join(map(str, key))}-p{u:04d}" for u in unit], **common)
    import pandas as pd

    frame = pd.DataFrame({f"x{k}": rng.normal(size=n) for k in range(6)} | {"colour": rng.choice(["blue", "green", "red"], n)})
    frame["x0"] += 4.0 * positive
    frame["x1"] -= 3.0 * positive
    frame["id"] = [f"{name}-{'-'.join(map(str, key))}-{row:05d}" for row in range(n)]
    return ta.Domain(name, frame, kind="tabular", id="id", **common)


def _pictures(rng: np.random.Generator, positive: np.ndarray, brightness: np.ndarray) -> np.ndarray:
    """Grey 16 × 16 noise with a soft bar somewhere: upright for "yes", level for "no"; (N, H, W, 3), uint8."""
    n = positive.size
    yy, xx = np.mgrid[0:SIDE, 0:SIDE]
    centre = rng.uniform(5, SIDE - 6, size=(n, 2))
    along = np.where(positive[:, None, None], xx - centre[:, 1, None, None], yy - centre[:, 0, None, None])
    across = np.where(positive[:, None, None], yy - centre[:, 0, None, None], xx - centre[:, 1, None, None])
    bar = np.exp(-0.5 * (along / 1.2) ** 2) * np.exp(-0.5 * (across / 4.0) ** 2)
    grey = 0.4 + 0.35 * brightness[:, None, None] * bar + 0.12 * rng.normal(size=(n, SIDE, SIDE))
    return np.repeat((np.clip(grey, 0, 1) * 255).round().astype(np.uint8)[..., None], 3, axis=3)


def subject(kind: str, seed: int, work: Path) -> tuple[Path, dict[str, ta.Domain]]:
    """(run directory of an adapted model with head and scratch controls, its domains). Bases are shared by ten subjects, and trained once."""
    epochs, rate = (6, 3e-3) if kind == "image" else (4, 1e-2)
    architecture = "tl_audit:small_cnn" if kind == "image" else "tl_audit:mlp"
    common: dict[str, Any] = {
        "kind": kind, "task": ta.Classification(list(CLASSES), positive="yes"), "training": {"batch_size": 64},
        "provenance": {"base_source": "trained by this simulation", "base_licence": "Apache-2.0", "base_revision": "1"},
    }  # fmt: skip
    if kind == "image":
        common["input_size"] = SIDE
    base = work / kind / f"base-{seed // EVERY}"
    if not (base / "record.json").exists():
        plan = ta.Plan(base=architecture, seed=seed // EVERY, stages=[ta.Stage("*", epochs=2 * epochs, lr=rate)], **common)
        ta.adapt(plan, domain(kind, "pretraining", seed // EVERY), out=base, controls=(), progress="none")
    common.pop("input_size", None)
    # the first block stays as it was, so that "frozen stayed frozen" has something to look at
    moving = ("block2*", "block3*", "head") if kind == "image" else ("*",)
    plan = ta.Plan(
        base=f"run:{base}", seed=seed, stages=[ta.Stage("head", epochs=1, lr=rate), ta.Stage(moving, epochs=epochs, lr=rate)], **common
    )
    out = work / kind / f"subject-{seed}"
    domains = {name: domain(kind, name, seed) for name in ("target", "source", "train", "validation")}
    ta.adapt(plan, domains["train"], domains["validation"], out=out, controls=("head", "scratch"), progress="none")
    return out, domains
