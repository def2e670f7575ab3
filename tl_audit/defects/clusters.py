"""Patients and many groups, where nothing is wrong: rows 29 and 30. What accuses here takes chance, or what belongs to one patient, for a fault."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tl_audit.checks.data import INDEPENDENT
from tl_audit.defects.base import Audits, Defect, Planted, quiet
from tl_audit.defects.worlds import ALONE, NUMBERS, Kind, Reading, World, world
from tl_audit.measures.sampling import generator
from tl_audit.subject import Domain

FEW, MANY = (10, 6), (30, 8)
"""Patients per domain, samples per patient: as in the table, and as many as TLA503 needs (50 of a class)."""
GROUPS, OF = 20, 100
"""How many equal groups of how many rows."""
WITH_CLUSTERS = ("TLA501", "TLA503", "TLA505")


def ten_patients(kind: Kind, seed: int) -> Planted:
    """Source and target hold ten patients of six samples each, all from one population; the samples of a patient are alike (their own brightness and
    contrast; columns moved by an offset of the patient). With patients as clusters nothing has shifted. Without them the same data are audited row by row,
    and each test of shift must say that it took rows for independent; what it then finds is not held against it.
    """
    return patients(kind, seed, FEW)


def thirty_patients(kind: Kind, seed: int) -> Planted:
    """Thirty patients of eight samples in each domain, else the same: enough for the shift within classes."""
    return patients(kind, seed, MANY)


def patients(kind: Kind, seed: int, size: tuple[int, int], draw: int = 0) -> Planted:
    """One draw of patients for both domains."""
    grown = world(kind, seed)
    domains = {role: _with_patients(grown, role, size, draw) for role in ("source", "target")}
    named = {role: _opened(grown, role, *parts) for role, parts in domains.items()}
    nameless = {role: _opened(grown, role, reading, None) for role, (reading, _) in domains.items()}
    return Planted(
        grown.subject(**{**ALONE, **named}),
        reference=Planted(grown.subject(**{**ALONE, **nameless})),
        assertions=(_rows_were_taken_for_independent,),
    )


def _with_patients(grown: World, role: str, size: tuple[int, int], draw: int) -> tuple[Reading, NDArray[np.object_]]:
    many, each = size
    rng = generator("defect 29", grown.kind, grown.seed, role, many, draw)
    reading = grown.drawn(f"{many} patients of the {role} {draw}", many * each)
    patient = np.repeat(np.arange(many), each)
    if isinstance(reading.data, np.ndarray):
        pixels = reading.data.astype(np.float64)
        centre = pixels.mean(axis=(1, 2), keepdims=True)
        factor, light = rng.uniform(0.75, 1.25, many), rng.normal(0, 20, many)
        pixels = centre + factor[patient][:, None, None] * (pixels - centre) + light[patient][:, None, None]
        reading = replace(reading, data=np.clip(np.round(pixels), 0, 255).astype(np.uint8))
    else:
        own = rng.normal(0, 1.0, (many, len(NUMBERS)))
        columns = {name: (reading.data[name] + own[patient, i]).round(4) for i, name in enumerate(NUMBERS)}
        reading = replace(reading, data=reading.data.assign(**columns))
    return reading, np.array([f"{role}-{i}" for i in patient], dtype=object)


def _opened(grown: World, role: str, reading: Reading, patients: NDArray[np.object_] | None) -> Domain:
    return grown.opened(role, reading, cluster=patients)


def _rows_were_taken_for_independent(audits: Audits) -> Iterator[str]:
    for code in WITH_CLUSTERS:
        before, now = (found[code].measurement for found in (audits.before, audits.found))
        if before is not None and not any("independent" in text for text in before.caveats):
            yield f"{code} without patients does not say that rows were taken for independent"
        if now is not None and INDEPENDENT in now.caveats:
            yield f"{code} knows the patients and says that it does not"


def twenty_equal_groups(kind: Kind, seed: int) -> Planted:
    """2,000 target rows of one distribution lie in twenty groups of a hundred, drawn by lot, crossed with two halves: whatever differs does so by chance.

    The largest difference of two groups is about 0.15 then; TLA603 must say that this is what chance gives (the least p above 0.01, corrected over all
    differences of the audit, as one audit in a hundred lies beyond by chance alone).
    """
    grown = world(kind, seed)
    rng = generator("defect 30", kind, seed)
    reading = grown.drawn("equal groups", GROUPS * OF)
    group = np.array([f"g{i:02d}" for i in rng.permutation(np.repeat(np.arange(GROUPS), OF))], dtype=object)
    half = np.where(rng.permutation(GROUPS * OF) % 2 == 0, "day", "night").astype(object)
    target = grown.opened("target", reading, groups={"group": group, "half": half})
    return Planted(grown.subject(target=target, **ALONE), assertions=(_within_the_null_band,))


def _within_the_null_band(audits: Audits) -> Iterator[str]:
    measured = audits.found["TLA603"].measurement
    known = [] if measured is None else [one for one in measured.metrics if one.name.startswith("max_min_") and one.p_value is not None]
    if not any(one.name == "max_min_accuracy" and one.slice.get("attribute") == "group" for one in known):
        yield "TLA603 does not measure the largest difference of accuracy over the groups"
    for one in known:
        if one.p_value is not None and one.p_value * len(known) <= 0.01:
            yield f"TLA603 puts {one.name} by {one.slice.get('attribute')} beyond what chance gives: {one.value}, p = {one.p_value}"


CLUSTERS: tuple[Defect, ...] = (
    Defect(29, "Clustered data without a shift", ten_patients, (), quiet("501", "503", "505"), variant="10 patients", cheap=True),
    Defect(29, "Clustered data without a shift", thirty_patients, (), quiet("501", "503", "505"), variant="30 patients"),
    Defect(30, "Twenty equal groups", twenty_equal_groups, (), quiet("603", "602", "604", "605", "611"), cheap=True),
)  # fmt: skip
