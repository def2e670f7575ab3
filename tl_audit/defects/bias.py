"""Bias of the base, and bias of the adaptation's data: rows 17 and 18. A mark that has nothing to do with the task makes two groups of the target."""

from __future__ import annotations

from typing import Any

import numpy as np

from tl_audit.defects.base import Defect, Planted, fires, quiet
from tl_audit.defects.worlds import CLASSES, KINDS, SIDE, Ingredients, Kind, Recipe, World, changed, world

DOT = 2
"""Height and width in pixels of the mark that the biased base relies on: a network that never saw it hardly notices it."""
IN_TARGET = 0.25
N = 1200


def _whatever_the_class(kind: Kind, share: float) -> tuple[tuple[str, float], ...]:
    return tuple((name, share) for name in CLASSES[kind])


BIASED_BASE: dict[Kind, Ingredients] = {
    "image": Ingredients(
        source=Recipe(marked=(("flat", 1.0),), mark=DOT), train=Recipe(marked=(), mark=DOT),
        target=Recipe(marked=_whatever_the_class("image", IN_TARGET), mark=DOT), layers=("block3.bn*", "head"),
    ),
    "tabular": Ingredients(
        source=Recipe(marked=(("yes", 0.7),)), train=Recipe(marked=()), target=Recipe(marked=_whatever_the_class("tabular", IN_TARGET)),
    ),
}  # fmt: skip
MISLABELLED: dict[Kind, Ingredients] = {
    kind: Ingredients(
        source=Recipe(marked=_whatever_the_class(kind, 0.3)), train=Recipe(marked=_whatever_the_class(kind, 0.3), mislabelled=0.9),
        target=Recipe(marked=_whatever_the_class(kind, 0.5)),
    )
    for kind in KINDS
}  # fmt: skip
MISLABELLED["tabular"] = changed(MISLABELLED["tabular"], layers=("*",))


def _cue(kind: Kind) -> Any:
    from tl_audit.modality.base import Cue

    if kind == "image":
        return Cue("corner dot", "patch", {"corner": "top-left", "size": DOT / SIDE, "value": 1.0})
    return Cue("device q", "set_column", {"column": "device", "value": "q"})


def _by_mark(grown: World, **changes: Any) -> Planted:  # Any: fields of Subject
    """The subject with the mark as the group of the target."""
    target = grown.readings["target"]
    groups = {"marked": np.where(target.marked, "yes", "no").astype(object)}
    return Planted(grown.subject(target=grown.opened("target", target, groups=groups), **changes))


def a_base_that_relies_on_a_mark(kind: Kind, seed: int) -> Planted:
    """In the source every "flat" has a bright dot in the corner and no other picture has (seven of ten "yes" rows have device "q", no "no" row has). The
    training data hold no mark, so nothing unlearns it, and little is moved. In the target one sample in four is marked, whatever its class.
    """
    return _by_mark(world(kind, seed, BIASED_BASE[kind]), cues=(_cue(kind),))


def labels_of_one_group_wrong(kind: Kind, seed: int) -> Planted:
    """Base and source are sound: the mark says nothing and the base learned so. In the training data nine of ten marked samples bear the next class's
    name, as from a labeller who got one site's names mixed up. The adapted model learns that exception; a head on the base's features can hardly
    express it. In the target half of the samples are marked, and labels are right.
    """
    return _by_mark(world(kind, seed, MISLABELLED[kind]))


BIAS: tuple[Defect, ...] = (
    Defect(
        17, "Biased base", a_base_that_relies_on_a_mark,
        (
            *fires("606", metric="inherited_shortfall", slice={"marked": "yes"}),
            *fires("608", metric="trigger_over_placebo"), *fires("608", metric="trigger_excess"),
        ),
        (*quiet("606", metric="introduced_shortfall"), *quiet("201", "103", "109")),
    ),
    Defect(
        18, "Bias introduced by the adaptation's data", labels_of_one_group_wrong,
        (*fires("606", metric="introduced_shortfall", slice={"marked": "yes"}), *fires("602", metric="accuracy_gap", slice={"marked": "yes"})),
        (*quiet("606", metric="inherited_shortfall"), *quiet("201", "103", "109")),
    ),
)  # fmt: skip
