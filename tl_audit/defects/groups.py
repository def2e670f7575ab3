"""Defects that concern groups: row 2."""

from __future__ import annotations

from collections.abc import Iterator

from tl_audit.defects.base import Audits, Defect, Planted, fires, quiet
from tl_audit.defects.worlds import Ingredients, Kind, Recipe, world

THIN = Recipe(south=0.02, harder=True)
UNDER_REPRESENTED = Ingredients(source=THIN, train=THIN, target=Recipe(harder=True))
PARTS = ("gap_data", "gap_inherited", "gap_introduced")


def a_thin_and_harder_group(kind: Kind, seed: int) -> Planted:
    """Site south is two in a hundred of source and training data and half of the target, and its task is another one: dark strokes instead of bright,
    a column that acts the other way. All models lack it alike, so 606 must say that the gap came with the data.
    """
    return Planted(world(kind, seed, UNDER_REPRESENTED).subject(), assertions=(_the_gap_came_with_the_data,))


def _the_gap_came_with_the_data(audits: Audits) -> Iterator[str]:
    finding = audits.found["TLA606"]
    if finding.measurement is None:
        yield f"TLA606 was not measured: {finding.reason}"
        return
    parts = {
        name: one.value for name in PARTS for one in finding.measurement.metrics if one.name == name and "south" in one.slice.values() and one.value is not None
    }  # fmt: skip
    if set(parts) != set(PARTS) or min(parts, key=lambda name: parts[name]) != "gap_data":
        yield f"TLA606 does not say that the gap of site south came with the data: {parts}"


GROUPS: tuple[Defect, ...] = (
    Defect(
        2, "Group thin in training, and harder", a_thin_and_harder_group, fires("602", metric="accuracy_gap"),
        (*quiet("502", "107", "611"), *quiet("606", metric="introduced_shortfall")),
    ),
)  # fmt: skip
