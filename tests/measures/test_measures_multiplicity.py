"""Holm and Benjamini-Hochberg."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl_audit.errors import DataError
from tl_audit.measures.multiplicity import benjamini_hochberg, holm

P_VALUES = [0.01, 0.02, 0.03, 0.04, 0.05]


def test_holm_by_hand():
    assert holm(P_VALUES) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])  # R: p.adjust(p, "holm")


def test_benjamini_hochberg_by_hand():
    assert benjamini_hochberg(P_VALUES) == pytest.approx([0.05] * 5)  # R: p.adjust(p, "BH")
    assert benjamini_hochberg([0.001, 0.2, 0.01]) == pytest.approx([0.003, 0.2, 0.015])


@given(st.lists(st.floats(0, 1), max_size=30))
def test_both_agree_with_a_dull_replica(p):
    m = len(p)
    order = sorted(range(m), key=lambda i: p[i])
    expected_holm, expected_bh = [0.0] * m, [0.0] * m
    for rank, i in enumerate(order):
        expected_holm[i] = max(min(1.0, (m - j) * p[order[j]]) for j in range(rank + 1))
        expected_bh[i] = min(min(1.0, m / (j + 1) * p[order[j]]) for j in range(rank, m))

    assert holm(p) == pytest.approx(expected_holm)
    assert benjamini_hochberg(p) == pytest.approx(expected_bh)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_benjamini_hochberg_agrees_with_scipy(p):
    from scipy.stats import false_discovery_control

    assert benjamini_hochberg(p) == pytest.approx(false_discovery_control(p).tolist(), abs=1e-12)


def test_a_missing_p_stays_missing_and_does_not_count():
    assert holm([None, 0.02, None, 0.03]) == [None, 0.04, None, 0.04]
    assert benjamini_hochberg([None]) == [None]
    assert holm([]) == []


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_what_is_no_p_is_refused(bad):
    with pytest.raises(DataError, match="between 0 and 1"):
        holm([0.5, bad])


def test_order_does_not_matter(rng):
    p = rng.random(12)
    order = rng.permutation(12)

    assert np.array(holm(p[order].tolist())) == pytest.approx(np.array(holm(p.tolist()))[order])
