"""Patients of one population, drawn again and again: with their ids no test of shift accuses more often than its level."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

import tl_audit as ta
from tl_audit.defects.clusters import FEW, WITH_CLUSTERS, patients
from tl_audit.defects.worlds import DECLARED

DRAWS = 40


def test_the_samples_of_a_patient_are_alike_and_patients_are_not_shared():
    planted = patients("tabular", 0, FEW)
    source, target = planted.subject.source, planted.subject.target
    assert len(source) == len(target) == 60
    assert not set(source.cluster) & set(target.cluster)
    column = np.array([float(row["a"]) for row in target.samples.read(np.arange(60)).items])
    within = [column[target.cluster == name].std() for name in dict.fromkeys(target.cluster)]
    assert np.mean(within) < 1.3
    assert column.std() > np.mean(within)
    again = patients("tabular", 0, FEW, draw=1).subject.target
    assert any(a != b for a, b in pairwise((target.samples.read(np.arange(1)).items[0], again.samples.read(np.arange(1)).items[0])))


@pytest.mark.slow
def test_forty_draws_of_patients_are_accused_no_more_often_than_one_in_twenty_and_rows_alone_far_too_often():
    accused: Counter[str] = Counter()
    small: dict[str, list[bool]] = {"patients": [], "rows": []}
    for draw in range(DRAWS):
        planted = patients("tabular", 0, FEW, draw=draw)
        for name, one in (("patients", planted), ("rows", planted.reference)):
            result = ta.audit(one.subject, select=WITH_CLUSTERS, declared=DECLARED, seed=draw, device="cpu").result
            if name == "patients":
                accused.update(finding.code for finding in result.findings if finding.status in ("warn", "fail", "error"))
            small[name] += [
                m.p_value < 0.05 for m in result["TLA501"].measurement.metrics if m.name == "c2st_auc" and m.p_value is not None
            ]
    assert all(accused[code] <= 0.05 * DRAWS for code in WITH_CLUSTERS), accused
    assert np.mean(small["patients"]) <= 0.15, "beyond the 99 % band of one in twenty at forty draws"
    assert np.mean(small["rows"]) >= 0.30, "patients differ too little for the row to show anything"
