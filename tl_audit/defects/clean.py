"""Row 0: nothing is planted. Whatever accuses here accuses the innocent."""

from __future__ import annotations

import numpy as np

from tl_audit.defects.base import Defect, Planted, quiet
from tl_audit.defects.shortcuts import cue
from tl_audit.defects.worlds import Kind, world
from tl_audit.measures.sampling import generator

N = 2000
STATISTICAL = (
    "101", "102", "103", "104", "105", "107", "108", "109", "110", "111", "112", "113",
    "201", "202", "203", "204", "205", "206", "207", "208", "209",
    "301", "302", "303", "304", "305", "306", "308", "401", "402", "403", "404", "405", "407",
    "501", "502", "503", "504", "505", "506", "507", "509",
    "601", "602", "603", "604", "605", "606", "607", "608", "610", "611", "803", "804", "901",
)  # fmt: skip
"""Everything but explanations (rows 21 and 22 hold sound methods beside unsound ones), the checks of a policy's history, and what needs data of another
kind (106 adapters, 508 periods, 609 a profile, 802 an outside set)."""


def nothing(kind: Kind, seed: int) -> Planted:
    """Nothing: source, training data and 2,000 target samples come from one distribution, two pairs of equal groups, a sound adaptation, full record and
    declarations. The head control stands for the version before; a cue that the model never met is declared. 801 is asked of tables alone:
    a network as small as that of the pictures does fall under noise, which is no false alarm.
    """
    grown = world(kind, seed)
    target = grown.drawn("target", N)
    rng = generator("defect 0", kind, seed)
    groups = {"site": target.site, "shift": np.where(rng.random(N) < 0.5, "day", "night").astype(object)}
    return Planted(
        grown.subject(
            target=grown.opened("target", target, groups=groups), previous=grown.controls["head"], cues=(cue(kind),)
        )
    )  # fmt: skip


CLEAN: tuple[Defect, ...] = (
    Defect(0, "Clean control", nothing, (), (*quiet(*STATISTICAL), *quiet("801", kinds=("tabular",)), *quiet("307"))),
)  # fmt: skip
