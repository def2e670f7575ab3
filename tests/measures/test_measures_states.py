"""States that merge: the result of merged shards is the result of all rows, whatever the shards and their order; and results against the measures."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_audit.errors import DataError
from tl_audit.measures import fairness
from tl_audit.measures.activations import ChannelSums, channel_shift
from tl_audit.measures.intervals import mean
from tl_audit.measures.representation import cka_of, cka_sums
from tl_audit.measures.shift import principal_scores, property_shift
from tl_audit.measures.states import Counts, GramSums, Histogram, Moments, between_products, merged

EDGES = (-1.0, 0.0, 0.5, 2.0)
ROWS = 96


def table(seed):
    """Rows with an offset large enough for naive sums of squares to lose every digit that counts."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, 3)) * [1.0, 1e-3, 10.0] + [1e4, 5.0, -1e3]
    codes = np.stack([rng.integers(0, k, size=ROWS) for k in (3, 3, 4)], axis=1)
    return x, codes, rng


def channel_sums(x, blocks):
    deviation = x - [1e4, 5.0, -1e3]
    totals = [np.zeros((4, 3)), np.zeros((4, 3))]
    for total, values in zip(totals, (deviation, deviation**2), strict=True):
        np.add.at(total, blocks, values)
    return ChannelSums(np.bincount(blocks, minlength=4).astype(float), *totals)


def values_of(number):
    """Every float in an estimate, a tuple of them, or an array."""
    if isinstance(number, tuple):
        return [value for one in number for value in values_of(one)]
    if hasattr(number, "ladder"):
        levels = [bound for row in number.ladder for bound in row]
        return [np.nan if number.value is None else number.value, number.n, *levels]
    return np.atleast_1d(np.asarray(number, dtype=float)).ravel().tolist()


MAKERS = {
    "counts": (
        lambda x, c: Counts.of(c[:, 0], c[:, 1], c[:, 2], shape=(3, 3, 4)),
        lambda s: s.rates() + s.rates("tpr", 1) + s.rates("fpr", 1) + s.rates("precision", 2),
    ),
    "moments": (lambda x, c: Moments.of(x), lambda s: s.estimates() if s.n > 1 else (s.n,)),
    "histogram": (
        lambda x, c: Histogram.of(np.where(c[:, 0] == 1, np.nan, x[:, 0] - 1e4), EDGES),
        lambda s: (s.counts, s.missing, s.stability_index(s) or 0.0),
    ),
    "gram": (lambda x, c: GramSums.of(x), lambda s: (s.covariance(),) if s.n > 1 else (s.n,)),
    "channels": (lambda x, c: channel_sums(x, c[:, 2]), lambda s: channel_shift(s, [1.0, 1e-6, 100.0], n=ROWS)),
}


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(sorted(MAKERS)), cuts=st.lists(st.integers(0, ROWS), max_size=6), seed=st.integers(0, 2**16))
def test_the_result_of_merged_shards_is_the_result_of_all_rows(kind, cuts, seed):
    make, result = MAKERS[kind]
    x, codes, rng = table(seed)
    bounds = [0, *sorted(cuts), ROWS]  # equal cuts make empty shards
    shards = [make(x[a:b], codes[a:b]) for a, b in pairwise(bounds)]
    order = rng.permutation(len(shards))

    whole, again = values_of(result(make(x, codes))), values_of(result(merged(shards[i] for i in order)))

    assert again == pytest.approx(whole, rel=1e-9, abs=1e-9, nan_ok=True)


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(0, 3), min_size=1, max_size=4), seed=st.integers(0, 2**16))
def test_sums_of_batches_merge_into_one_similarity(sizes, seed):
    rng = np.random.default_rng(seed)
    batches = [(rng.normal(size=(32, 3)), rng.normal(size=(32, 4))) for _ in range(sum(sizes))]
    batches = [(x, np.c_[x, y]) for x, y in batches]
    empty = cka_sums(np.zeros((0, 3)), np.zeros((0, 7)))
    one = [cka_sums(x, y, batch=32) for x, y in batches]
    shards = [merged([empty, *(one[i] for i in part)]) for part in np.split(np.arange(len(one)), np.cumsum(sizes)[:-1])]

    whole = cka_of(merged([empty, *one]))
    again = cka_of(merged(shards[i] for i in rng.permutation(len(shards))))

    assert values_of(again) == pytest.approx(values_of(whole), rel=1e-9, nan_ok=True)


def test_every_state_refuses_what_it_cannot_merge(rng):
    with pytest.raises(DataError, match="same codes"):
        Counts(np.zeros((2, 2, 1), dtype=int)).merge(Counts(np.zeros((2, 2, 2), dtype=int)))
    with pytest.raises(DataError, match="not of one table"):
        Moments.of(np.zeros((1, 2))).merge(Moments.of(np.zeros((1, 3))))
    with pytest.raises(DataError, match="not of one table"):
        GramSums.of(np.zeros((1, 2))).merge(GramSums.of(np.zeros((1, 3))))
    with pytest.raises(DataError, match="different edges"):
        Histogram.of([1.0], [0.0]).merge(Histogram.of([1.0], [0.5]))
    with pytest.raises(DataError, match="at least one"):
        merged([])
    with pytest.raises(DataError, match="codes from 0 to 1"):
        Counts.of([0, 2], [0, 0], shape=(2, 2, 1))
    with pytest.raises(DataError, match="ascending"):
        Histogram.of([1.0], [1.0, 1.0])
    with pytest.raises(DataError, match="two rows"):
        GramSums.of(np.zeros((1, 2))).covariance()


def test_rates_from_counts_are_those_of_the_rows(rng):
    y, p, g = (rng.integers(0, k, size=200) for k in (2, 2, 3))
    counts = Counts.of(y, p, g, shape=(2, 2, 3))

    for group, rates in enumerate(fairness.group_rates(g.astype(str), y, p, positive=1)):
        for metric in ("accuracy", "selection_rate", "tpr", "fpr", "precision", "base_rate"):
            found, expected = counts.rates(metric, 1)[group], rates.rates[metric]
            assert (found.value, found.n, found.ladder) == (expected.value, expected.n, expected.ladder)


def test_means_from_moments_are_those_of_the_rows(rng):
    x = rng.normal(size=(50, 2)) + 100
    for column, estimate in enumerate(Moments.of(x).estimates()):
        assert values_of(estimate) == pytest.approx(values_of(mean(x[:, column])), rel=1e-12)
    assert Moments.of(np.ones((4, 1))).estimates()[0].reason.startswith("all units agree")
    assert Moments.of(np.ones((1, 1))).estimates()[0].reason == "one row: no interval"
    assert Moments.of(np.ones((0, 1))).estimates()[0].reason == "no rows"


def test_the_stability_index_of_histograms_is_that_of_the_property(rng):
    x, y = rng.normal(size=700), rng.normal(size=900) + 0.3
    edges = np.quantile(x, np.arange(1, 10) / 10, method="inverted_cdf")
    found = Histogram.of(x, edges).stability_index(Histogram.of(y, edges))

    assert found == pytest.approx(property_shift(x, y, resamples=9).psi.value, rel=1e-12)
    assert Histogram.of([], edges).stability_index(Histogram.of(y, edges)) is None
    assert Histogram.of(x, edges).total_variation(Histogram.of(x + 100, edges)) == pytest.approx(0.9, abs=0.01)


def test_axes_from_gram_sums_are_those_of_the_rows(rng):
    x = rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4))
    sums = merged([GramSums.of(x[:25]), GramSums.of(x[25:])])
    axes, shares = sums.principal_axes(2)
    scores, _, expected = principal_scores(x, x[:0], 2)

    assert (x - x.mean(axis=0)) @ axes == pytest.approx(scores, abs=1e-9)
    assert shares == pytest.approx(expected, rel=1e-9)
    assert sums.covariance() == pytest.approx(np.cov(x.T), rel=1e-9)


def test_cross_products_of_class_means_are_the_part_that_the_classes_explain(rng):
    x, y = rng.normal(size=(90, 3)), rng.integers(0, 3, size=90)
    parts = [GramSums.of(x[y == c]) for c in range(3)]
    means = np.stack([x[y == c].mean(axis=0) for c in range(3)])[y]

    assert between_products(parts) == pytest.approx((means - x.mean(0)).T @ (means - x.mean(0)), rel=1e-9)
    assert between_products(parts) + sum(p.products for p in parts) == pytest.approx(merged(parts).products, rel=1e-9)


def test_states_are_frozen_and_hold_nothing_but_sums():
    for kind in (Counts, Moments, Histogram, GramSums):
        assert kind.__dataclass_params__.frozen
        assert not {f.name for f in fields(kind)} & {"rows", "values"}
