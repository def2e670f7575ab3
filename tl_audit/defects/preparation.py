"""Inputs prepared as for another base: row 28."""

from __future__ import annotations

from dataclasses import replace

from tl_audit.defects.base import Defect, Planted, fires, quiet
from tl_audit.defects.worlds import ALONE, Kind, world
from tl_audit.records.preprocessing import Preprocessing, TableEncoding

N = 400
MEAN, STD = 0.5, 0.25
"""What pictures are scaled by; the base was made without."""


def scaled_as_for_another_base(kind: Kind, seed: int) -> Planted:
    """Pictures are scaled by a mean of 0.5 and a deviation of 0.25 that the base never saw; columns are scaled by means and deviations of another
    table (each mean moved by one deviation, each deviation halved). Record and base say otherwise.

    The other half of the row, channels in another order (BGR), cannot be planted: no preparation that tl_audit knows says in which order colours come,
    so TLA108 has nothing to compare. It reads every picture as RGB; who trained on BGR finds out by TLA301, not here.
    """
    grown = world(kind, seed)
    spec = grown.adapted.preprocessing
    other: Preprocessing | TableEncoding
    if isinstance(spec, TableEncoding):
        columns = tuple(c.model_copy(update={"mean": c.mean + c.std, "std": c.std / 2}) for c in spec.numeric)
        other = spec.model_copy(update={"numeric": columns})
    elif isinstance(spec, Preprocessing):
        other = spec.model_copy(update={"mean": (MEAN,) * spec.channels, "std": (STD,) * spec.channels})
    else:
        raise TypeError(f"the {kind} world prepares its inputs by {type(spec).__name__}")
    target = grown.opened("target", grown.drawn("preparation", N))
    return Planted(grown.subject(adapted=replace(grown.adapted, preprocessing=other), target=target, **ALONE))


PREPARATION: tuple[Defect, ...] = (
    Defect(
        28, "Preprocessing of another base", scaled_as_for_another_base,
        (*fires("108", metric="preprocessing_differences"), *fires("108", metric="preprocessing_flip_rate")), quiet("103", "109"), cheap=True,
    ),
)  # fmt: skip
