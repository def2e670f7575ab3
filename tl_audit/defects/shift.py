"""Defects of the target's distribution: rows 3 to 6. The model is the clean world's; only the target differs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from tl_audit.defects.base import Audits, Defect, Planted, fires, quiet
from tl_audit.defects.worlds import SIDE, Kind, Recipe, world
from tl_audit.errors import ConfigError
from tl_audit.records.preprocessing import TableEncoding

N = 1200


def another_mix_of_classes(kind: Kind, seed: int) -> Planted:
    """The classes are mixed otherwise: four of five samples are "yes" instead of half, three of five are "flat" instead of a third.

    Properties of inputs that tell the class drift with it, so row 3 does not ask 507 to be quiet: it looks at all classes together.
    """
    grown = world(kind, seed)
    mix = (0.6, 0.2, 0.2) if kind == "image" else (0.2, 0.8)
    return Planted(grown.subject(target=grown.opened("target", grown.drawn("target", N, Recipe(mix=mix)))))


def other_inputs_under_the_same_rule(kind: Kind, seed: int) -> Planted:
    """Pictures have 1.5 times the contrast; columns ``c`` and ``d`` spread twice as far. What makes a label stays as it was, and so does the mix."""
    grown = world(kind, seed)
    recipe = Recipe(contrast=1.5 if kind == "image" else 2.0)
    return Planted(grown.subject(target=grown.opened("target", grown.drawn("target", N, recipe))))


def an_unused_column_moved(kind: Kind, seed: int) -> Planted:
    """Column ``spare`` is higher in the target by three standard deviations. The adapted model gives it no weight; the base, whose features are the
    ruler of the input shift, never had a reason to take its first weights away from it.
    """
    grown = world(kind, seed)
    spec = grown.adapted.preprocessing
    if not isinstance(spec, TableEncoding):
        raise ConfigError(f"an unused column needs a table: the {kind} world has none")
    module = copy.deepcopy(grown.adapted.module)
    with torch.no_grad():
        module.get_parameter("hidden1.linear.weight")[:, slice(*spec.slots()["spare"])] = 0.0
    target = grown.readings["target"]
    moved = replace(target, data=target.data.assign(spare=target.data["spare"] + 3.0))
    return Planted(
        grown.subject(adapted=replace(grown.adapted, module=module, file=None), target=grown.opened("target", moved)),
        attribution_samples=200,
        assertions=(_evidence_alike,),
    )


def _evidence_alike(audits: Audits) -> Iterator[str]:
    measured = audits.found["TLA709"].measurement
    for one in () if measured is None else measured.metrics:
        if one.name == "explanation_c2st_auc" and one.value is not None and abs(one.value - 0.5) >= 0.2:
            yield f"evidence of source and target is told apart by {dict(one.slice)} (AUC {one.value:.2f}), though the model does not read the column"


def other_labels_for_the_same_inputs(kind: Kind, seed: int) -> Planted:
    """In one half of the input space (object on the right; ``c`` above 0) every label is the next class. Inputs and mix stay as they were."""
    grown = world(kind, seed)
    target = grown.readings["target"]
    if target.boxes is not None:
        turned = target.boxes[:, [0, 2]].mean(axis=1) > SIDE / 2 + 0.5
    else:
        turned = target.data["c"].to_numpy() > 0
    names = grown.classes
    following = {name: names[(i + 1) % len(names)] for i, name in enumerate(names)}
    labels = np.array([following[name] if now else name for name, now in zip(target.labels, turned, strict=True)], dtype=object)
    return Planted(grown.subject(target=grown.opened("target", replace(target, labels=labels))))


SHIFT: tuple[Defect, ...] = (
    Defect(3, "Label shift only", another_mix_of_classes, fires("502", "505"), quiet("503", "504", "509")),
    Defect(
        4, "Covariate shift only", other_inputs_under_the_same_rule,
        (*fires("501", "503", "507"), *fires("506", kinds=("image",))), quiet("502", "504", "201"),
    ),
    Defect(5, "Shift in an unused column", an_unused_column_moved, fires("501", "507"), quiet("709", "509", "505"), kinds=("tabular",), cheap=True),
    Defect(6, "Concept shift", other_labels_for_the_same_inputs, fires("504", "509"), quiet("501", "502", "507")),
)  # fmt: skip
