"""Groups about which little or nothing can be said: rows 24 to 26. The model is the clean world's; only the group column of the target is made up."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tl_audit.defects.base import Assertion, Audits, Defect, Planted, Quiet, fires, quiet
from tl_audit.defects.worlds import ALONE, Kind, Reading, World, world
from tl_audit.measures.sampling import generator
from tl_audit.records.exhibits import Bars, Cell, Intervals, Table

N = 400
TINY = 3
"""Rows of the tiny group."""
COLUMN = "region"
ODD = "islands"
"""The group of which little or nothing can be said."""


def _target(kind: Kind, seed: int) -> tuple[World, Reading]:
    grown = world(kind, seed)
    return grown, grown.drawn("groups", N)


def _audited(grown: World, reading: Reading, groups: dict[str, NDArray[np.object_]], *assertions: Assertion) -> Planted:
    return Planted(grown.subject(target=grown.opened("target", reading, groups=groups), **ALONE), assertions=assertions)


def one_group_only(kind: Kind, seed: int) -> Planted:
    """Both group columns of the target hold one value each: there is nobody to compare with."""
    grown, reading = _target(kind, seed)
    everyone = np.full(N, "north", dtype=object)
    return _audited(grown, reading, {COLUMN: everyone, "device": np.full(N, "p", dtype=object)})


def a_tiny_group_all_wrong(kind: Kind, seed: int) -> Planted:
    """Three rows of the target are a group of their own, and the model is wrong about each: they were chosen so. 400 rows in two groups of equal size lie
    beside them.
    """
    grown, reading = _target(kind, seed)
    wrong = np.flatnonzero(~_right(grown, reading))[:TINY]
    groups = np.where(generator("defect 25", kind, seed).random(N) < 0.5, "north", "south").astype(object)
    groups[wrong] = ODD
    return _audited(grown, reading, {COLUMN: groups}, _the_tiny_group_is_hidden)


def _right(grown: World, reading: Reading) -> NDArray[np.bool_]:
    """Which rows the adapted model answers rightly."""
    import torch

    samples = grown.opened("target", reading).samples
    inputs = samples.modality.encode(samples.read(np.arange(len(reading))), grown.adapted.preprocessing)
    with torch.no_grad():
        answers = grown.adapted.module(inputs).argmax(dim=1).numpy()
    right: NDArray[np.bool_] = np.array(grown.adapted.classes, dtype=object)[answers] == reading.labels
    return right


def _the_tiny_group_is_hidden(audits: Audits) -> Iterator[str]:
    """Nowhere in metrics or exhibits may a number of the tiny group stand."""
    for finding in audits.result.findings:
        if finding.measurement is None:
            continue
        for one in finding.measurement.metrics:
            if ODD in one.slice.values() and (one.value is not None or one.interval is not None or one.n):
                yield f"{finding.code} shows {one.name} of the tiny group: {one.value}"
        for exhibit in finding.measurement.exhibits:
            for label, shown in _cells(exhibit):
                if label == ODD and any(isinstance(value, int | float) and not isinstance(value, bool) for value in shown):
                    yield f"{finding.code} shows numbers of the tiny group in the exhibit {exhibit.id}: {shown}"


def _cells(exhibit: object) -> Iterator[tuple[Cell, tuple[Cell, ...]]]:
    """(label, numbers shown) of each line of an exhibit."""
    if isinstance(exhibit, Table):
        for row in exhibit.rows:
            for cell in row:
                if cell == ODD:
                    yield cell, row
    elif isinstance(exhibit, Bars):
        yield from ((bar.label, (bar.value, bar.n)) for bar in exhibit.bars)
    elif isinstance(exhibit, Intervals):
        yield from ((dot.label, (dot.value, dot.n)) for dot in exhibit.dots)


def a_group_without_positives(kind: Kind, seed: int) -> Planted:
    """No row of one group is positive ("yes"); the other groups hold both classes. The group has 60 rows, enough for every other rate."""
    grown, reading = _target(kind, seed)
    groups = np.where(generator("defect 26", kind, seed).random(N) < 0.5, "north", "south").astype(object)
    groups[np.flatnonzero(reading.labels == "no")[:60]] = ODD
    return _audited(grown, reading, {COLUMN: groups}, _nothing_is_made_up)


def _nothing_is_made_up(audits: Audits) -> Iterator[str]:
    """``tpr`` and ``tpr_gap`` of the group are null and say why."""
    for code, name in (("TLA601", "tpr"), ("TLA602", "tpr_gap")):
        measured = audits.found[code].measurement
        known = [] if measured is None else [one for one in measured.metrics if one.name == name and one.slice.get(COLUMN) == ODD]
        if not known:
            yield f"{code} does not name {name} of the group without positives"
        for one in known:
            if one.value is not None or not one.reason:
                yield f"{code} gives {name} of a group without positives as {one.value}, reason {one.reason!r}"


DEGENERATE: tuple[Defect, ...] = (
    Defect(
        24, "One group only", one_group_only,
        (*fires("611", statuses=("warn",), metric="single_group"), *fires("602", "603", "604", "605", "606", statuses=("not_evaluated",), says="ne group")),
        quiet("206"), cheap=True,
    ),
    Defect(
        25, "Tiny group, all wrong", a_tiny_group_all_wrong,
        (
            *fires("206", statuses=("warn",), metric="groups_below_minimum"),
            *fires("602", statuses=("inconclusive",), metric="accuracy_gap", slice={COLUMN: ODD}, outcome="undecided"),
        ),
        quiet("601", "604", "606", "610"), cheap=True,
    ),
    Defect(
        26, "Group without positives", a_group_without_positives,
        fires("611", statuses=("inconclusive",), metric="undefined_cells", outcome="undecided"), (*quiet("601", "206"), Quiet("TLA602", "tpr_gap")),
        kinds=("tabular",), cheap=True,
    ),
)  # fmt: skip
