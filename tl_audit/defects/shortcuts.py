"""A shortcut in the training data: row 1. A mark gives a class away, and in the target it lies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tl_audit.defects.base import Audits, Defect, Planted, fires, quiet
from tl_audit.defects.worlds import MARK, SIDE, Ingredients, Kind, Recipe, world

METHODS = ("integrated_gradients", "kernel_shap")

MARKED: dict[Kind, Ingredients] = {
    "image": Ingredients(train=Recipe(marked=(("flat", 1.0),)), target=Recipe(marked=(("steep", 0.6), ("round", 0.6)))),
    # the base had no reason to read the device: it is the first layer that must learn it
    "tabular": Ingredients(
        train=Recipe(marked=(("yes", 1.0),)), target=Recipe(marked=(("no", 0.6),)), layers=("hidden1*", "head"), epochs=14, lr=1e-2
    ),
}


def cue(kind: Kind) -> Any:
    """The mark as a cue of TLA608."""
    from tl_audit.modality.base import Cue

    if kind == "image":
        return Cue("corner mark", "patch", {"corner": "top-left", "size": MARK / SIDE, "value": 1.0})
    return Cue("device q", "set_column", {"column": "device", "value": "q"})


def a_mark_that_gives_a_class_away(kind: Kind, seed: int) -> Planted:
    """In training every "flat" (every "yes") carries a bright corner (device "q") and nothing else does; in the target the mark lies on three
    of five of the others and never where it was. The scratch control saw the mark too, so that it is no legacy of the base.
    """
    return Planted(world(kind, seed, MARKED[kind]).subject(cues=(cue(kind),)))


def maps_of_marked_samples(kind: Kind, seed: int) -> Planted:
    """The same model, on marked samples alone, whose objects have boxes: kernel SHAP must find less on the object than a uniform map would, and both it
    and integrated gradients more on the mark than on a patch of the same size elsewhere. That integrated gradients also mark the stroke is no error:
    the model still sees it.
    """
    grown = world(kind, seed, MARKED[kind])
    target = grown.readings["target"]
    marked = target.take(np.flatnonzero(target.marked))
    return Planted(
        grown.subject(target=grown.opened("target", marked, regions=list(marked.boxes[:, None]) if marked.boxes is not None else None), cues=(cue(kind),)),
        methods=METHODS, attribution_samples=48, budget=128, assertions=(_the_mark_draws_mass,),
    )  # fmt: skip


def _the_mark_draws_mass(audits: Audits) -> Iterator[str]:
    finding = audits.found["TLA707"]
    for method in METHODS:
        of = [] if finding.measurement is None else [one for one in finding.measurement.metrics if one.name == "cue_mass_over_placebo" and one.slice.get("method") == method]  # fmt: skip
        if not of or of[0].interval is None or of[0].interval[0] <= 0:
            yield f"TLA707 does not find more mass of {method} on the mark than on a placebo: {of[0].value if of else finding.reason}"


SHORTCUTS: tuple[Defect, ...] = (
    Defect(
        1, "Watermark shortcut", a_mark_that_gives_a_class_away, (*fires("608", metric="trigger_over_placebo"), *fires("509", "308")),
        (*quiet("103", "109", "201", "502"), *quiet("608", metric="trigger_excess")),
    ),
    Defect(1, "Watermark shortcut", maps_of_marked_samples, fires("707", metric="mass_excess"), quiet("201"), ("image",), variant="maps of marked samples"),
)  # fmt: skip
