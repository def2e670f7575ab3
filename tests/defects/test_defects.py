"""Every planted defect is found by the checks that must find it, and no innocent is accused: rows, kinds of data and seeds.

One seed of the cheap rows runs always, all of it with the slow tests. ``tl-audit selftest`` runs the same for a user.
"""

from __future__ import annotations

import pytest

from tl_audit.defects import DEFECTS
from tl_audit.defects.base import Defect, examine
from tl_audit.defects.worlds import Kind

SEEDS = (0, 1, 2)


def cases() -> list[object]:
    """All (defect, kind, seed), ordered so that a world is grown once; slow but for the first seed of cheap rows."""
    out = []
    for seed in SEEDS:
        for kind in ("image", "tabular"):
            for one in DEFECTS:
                if kind in one.kinds:
                    name = f"{one.number}-{one.title}{'-' + one.variant if one.variant else ''}-{kind}-{seed}".replace(" ", "_")
                    out.append(pytest.param(one, kind, seed, id=name, marks=() if one.cheap and seed == 0 else pytest.mark.slow))
    return out


@pytest.mark.parametrize(("defect", "kind", "seed"), cases())
def test_a_planted_defect_is_found_and_nobody_else_is_accused(defect: Defect, kind: Kind, seed: int) -> None:
    outcome = examine(defect, kind, seed)
    assert outcome.ok, "\n".join(outcome.wrong)
