"""Activations against stored statistics: closed forms, merging, no bias and a kept level where nothing moved."""

from __future__ import annotations

import numpy as np
import pytest

from tl_audit.errors import DataError
from tl_audit.measures.activations import ChannelSums, channel_shift, jackknife_blocks, shift_excess
from tl_audit.measures.estimate import Estimate


def sums_of(x: np.ndarray, mean: np.ndarray, blocks: np.ndarray) -> ChannelSums:
    """(n, C) values, by a loop over blocks."""
    k = int(blocks.max()) + 1
    centred = x - mean
    parts = [centred[blocks == b] for b in range(k)]
    return ChannelSums(
        np.array([float(len(p)) for p in parts]), np.stack([p.sum(axis=0) for p in parts]), np.stack([(p**2).sum(axis=0) for p in parts])
    )


def shift_of(x: np.ndarray, mean: np.ndarray, variance: np.ndarray, cluster: np.ndarray | None = None) -> Estimate:
    blocks = jackknife_blocks(len(x), cluster=cluster)
    units = None if cluster is None else len(set(cluster))
    return channel_shift(sums_of(x, mean, blocks), variance, n=len(x), clusters=units)


def test_the_plug_in_value_is_the_formula_written_out(rng):
    x, mean, variance = rng.normal(1.0, 2.0, (200, 5)), rng.normal(size=5), rng.uniform(0.5, 2.0, 5)
    by_hand = np.mean(((x.mean(0) - mean) ** 2 + (x.std(0) - np.sqrt(variance)) ** 2) / variance)
    assert shift_of(x, mean, variance).details["plug_in"] == pytest.approx(by_hand, rel=1e-12)


def test_scaling_by_one_and_a_half_gives_a_quarter_and_an_offset_its_square_over_the_variance():
    x = np.repeat([[-1.0], [1.0]], 500, axis=0)  # mean 0, deviation 1, and every block of 20 holds both values about equally
    x = x[np.argsort(np.arange(1000) % 500, kind="stable")]
    cluster = np.arange(1000) // 20
    zero, one = np.zeros(1), np.ones(1)
    assert shift_of(1.5 * x, zero, one, cluster).value == pytest.approx(0.25, abs=1e-12)
    assert shift_of(x + 0.3, zero, one, cluster).value == pytest.approx(0.09, abs=1e-12)
    assert shift_of(x, zero, one, cluster).value == pytest.approx(0.0, abs=1e-12)


def test_the_jackknife_is_that_of_a_loop_over_left_out_blocks(rng):
    x, blocks = rng.normal(0.4, 1.3, (90, 3)), np.repeat(np.arange(9), 10)
    found = shift_of(x, np.zeros(3), np.ones(3), blocks)

    def plain(part: np.ndarray) -> float:
        return float(np.mean(part.mean(0) ** 2 + (part.std(0) - 1) ** 2))

    left = np.array([plain(x[blocks != b]) for b in range(9)])
    assert found.value == pytest.approx(9 * plain(x) - 8 * left.mean(), rel=1e-12)
    assert found.details["error"] == pytest.approx(np.sqrt(8 / 9 * ((left - left.mean()) ** 2).sum()), rel=1e-12)


def test_sums_of_shards_are_the_sums_of_all(rng):
    x, mean, blocks = rng.normal(5.0, 1.0, (120, 4)), np.full(4, 5.0), np.arange(120) % 12
    whole = sums_of(x, mean, blocks)
    shards = ChannelSums.empty(12, 4)
    for part in np.array_split(np.arange(120), 5):
        piece = ChannelSums.empty(12, 4)
        np.add.at(piece.count, blocks[part], 1.0)
        np.add.at(piece.total, blocks[part], x[part] - mean)
        np.add.at(piece.squares, blocks[part], (x[part] - mean) ** 2)
        shards = shards.merge(piece)
    first, second = (channel_shift(s, np.ones(4), n=120) for s in (whole, shards))
    assert first.value == pytest.approx(second.value, rel=1e-9)
    with pytest.raises(DataError, match="not of one layer"):
        shards.merge(ChannelSums.empty(12, 3))


def test_at_most_fifty_blocks_and_never_part_of_a_cluster():
    cluster = np.repeat(np.arange(130), 3)
    blocks = jackknife_blocks(390, cluster=cluster, seed=1)
    assert set(blocks) == set(range(50))
    assert all(len(set(blocks[cluster == c])) == 1 for c in range(130))
    assert np.array_equal(jackknife_blocks(7), np.arange(7))
    assert jackknife_blocks(0).size == 0


def test_what_cannot_be_told_says_why(rng):
    x = rng.normal(size=(30, 2))
    assert "variance of 0" in str(shift_of(x, np.zeros(2), np.zeros(2)).reason)
    half = shift_of(x, np.zeros(2), np.array([1.0, 0.0]))
    assert (half.details["channels"], half.details["dead_channels"]) == (1, 1)
    assert "one cluster" in str(shift_of(x, np.zeros(2), np.ones(2), np.zeros(30, dtype=int)).reason)
    nothing = channel_shift(ChannelSums.empty(3, 2), np.ones(2), n=0)
    assert nothing.value is None
    assert "undefined on the target" in str(shift_excess(nothing, half).reason)
    with pytest.raises(DataError, match="3 channels"):
        channel_shift(ChannelSums.empty(3, 2), np.ones(3), n=0)


def draws(runs: int, n: int, clustered: bool, delta: float = 0.0) -> list[tuple[Estimate, Estimate]]:
    """(target, reference), both from the distribution whose statistics are stored; the target moved by ``delta``."""
    found = []
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        pair = []
        for offset in (delta, 0.0):
            if clustered:
                cluster = np.repeat(np.arange(n // 10), 10)
                x = np.sqrt(0.5) * (rng.normal(size=(n // 10, 6))[cluster] + rng.normal(size=(n, 6)))
            else:
                cluster, x = None, rng.normal(size=(n, 6))
            pair.append(shift_of(x + offset, np.zeros(6), np.ones(6), cluster))
        found.append((pair[0], pair[1]))
    return found


@pytest.mark.parametrize("clustered", [False, True])
def test_nothing_moved_gives_no_shift_on_average_where_the_plug_in_does(clustered):
    found = [first for first, _ in draws(150, 100 if not clustered else 400, clustered)]
    values = np.array([e.value for e in found])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values)) + 0.002
    assert np.mean([e.details["plug_in"] for e in found]) > 0.012
