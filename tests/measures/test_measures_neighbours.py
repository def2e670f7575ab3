"""Near pairs and near distances: the searches find what looking at every pair finds."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from tl_audit.errors import DataError
from tl_audit.measures.neighbours import components, cosines, hamming_pairs, knn_distance, spanning, tolerance_pairs

BITS = np.uint64(1) << np.arange(64, dtype=np.uint64)


def flipped(keys: np.ndarray, times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    out = keys.copy()
    for row, count in enumerate(times):
        out[row] ^= BITS[rng.choice(64, count, replace=False)].sum(dtype=np.uint64)
    return out


def listed(pairs) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for i, j in pairs for a, b in zip(i, j, strict=True)]


@pytest.mark.parametrize("most", [0, 1, 4, 7])
def test_keys_within_some_bits_are_those_that_looking_at_all_pairs_finds(most: int) -> None:
    rng = np.random.default_rng(most)
    first = rng.integers(2**63, size=600, dtype=np.uint64)
    second = np.concatenate(
        [flipped(first[:300], rng.integers(0, 10, 300), rng), np.full(20, first[5]), rng.integers(2**63, size=90, dtype=np.uint64)]
    )
    first = np.concatenate([first, np.full(15, first[5])])
    apart = np.bitwise_count(first[:, None] ^ second[None])
    found = listed(hamming_pairs(first, second, most))
    assert len(found) == len(set(found))
    assert set(found) == set(zip(*(part.tolist() for part in np.nonzero(apart <= most)), strict=True))
    inside = listed(hamming_pairs(second, None, most))
    own = np.triu(np.bitwise_count(second[:, None] ^ second[None]) <= most, 1)
    assert len(inside) == len(set(inside))
    assert set(inside) == set(zip(*(part.tolist() for part in np.nonzero(own)), strict=True))


def test_no_keys_have_no_pairs_and_wrong_shapes_are_refused() -> None:
    none = np.zeros(0, dtype=np.uint64)
    assert listed(hamming_pairs(none, none)) == []
    assert listed(hamming_pairs(none)) == []
    with pytest.raises(DataError, match="one 64-bit key"):
        list(hamming_pairs(np.zeros((2, 2), dtype=np.uint64)))
    with pytest.raises(DataError, match="expected a number from 0 to 63"):
        list(hamming_pairs(none, none, 64))


def equal_rows(x: np.ndarray, y: np.ndarray, tolerance: np.ndarray) -> np.ndarray:
    gone = np.isnan(x)[:, None] & np.isnan(y)[None]
    return ((np.abs(x[:, None] - y[None]) <= tolerance) | gone).all(axis=2)


@pytest.mark.parametrize("seed", range(3))
def test_rows_equal_within_a_tolerance_are_those_that_looking_at_all_pairs_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(400, 6))
    x[:, 2], x[:, 3], x[:, 4] = rng.integers(0, 3, 400), 7.0, 1e9 + rng.normal(size=400)
    x[rng.random(x.shape) < 0.1] = np.nan
    tolerance = np.array([1e-6, 1e-6, 0.0, 1e-6, 1e-3, 0.0])
    y = np.concatenate([x[:150], rng.normal(size=(60, 6))])
    y[:, :2] += rng.choice([0, 0.9e-6, 3e-6], size=(210, 2))
    found = listed(tolerance_pairs(x.T, y.T, tolerance))
    assert len(found) == len(set(found)) > 20
    assert set(found) == set(zip(*(part.tolist() for part in np.nonzero(equal_rows(x, y, tolerance))), strict=True))
    z = np.concatenate([x, y])
    inside = listed(tolerance_pairs(z.T, None, tolerance))
    assert len(inside) == len(set(inside))
    assert set(inside) == set(zip(*(part.tolist() for part in np.nonzero(np.triu(equal_rows(z, z, tolerance), 1))), strict=True))


def test_many_rows_with_one_sum_are_walked_through_in_blocks() -> None:
    x = np.tile(np.arange(3.0), 900)[:, None]
    assert sum(i.size for i, _ in tolerance_pairs(x.T, None, np.zeros(1))) == 3 * (900 * 899 // 2)


def test_tolerances_that_fit_no_column_are_refused() -> None:
    with pytest.raises(DataError, match="one of 0 or more per column"):
        list(tolerance_pairs(np.zeros((2, 5)), np.zeros((2, 5)), np.array([1.0, -1.0])))
    with pytest.raises(DataError, match="one of 0 or more per column"):
        list(tolerance_pairs(np.zeros((2, 5)), np.zeros((3, 5)), np.zeros(2)))


def test_the_distance_to_the_kth_neighbour_is_that_of_a_search_tree() -> None:
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(0)
    queries, reference = rng.normal(size=(300, 7)) + 1000, rng.normal(size=(200, 7)) + 1000
    for k in (1, 5, 200):
        wanted = cKDTree(reference).query(queries, k=[k])[0][:, 0]
        np.testing.assert_allclose(knn_distance(queries, reference, k), wanted, rtol=1e-9)
    np.testing.assert_allclose(knn_distance(reference, reference, 1), 0, atol=1e-6)
    with pytest.raises(DataError, match="from 1 to 200"):
        knn_distance(queries, reference, 201)
    with pytest.raises(DataError, match="rows of 7 numbers"):
        knn_distance(queries[:, :3], reference, 1)


def test_distances_of_many_rows_need_the_memory_of_a_block() -> None:
    queries, reference = np.zeros((40_000, 64), dtype=np.float32), np.random.default_rng(0).normal(size=(1000, 64))
    tracemalloc.start()
    knn_distance(queries, reference, 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # all distances at once would be 320 MB
    assert peak < 100e6


def test_cosines_of_pairs() -> None:
    x, y = np.array([[1.0, 0], [2, 2], [0, 0]]), np.array([[3.0, 3], [0, 1]])
    found = cosines(x, y, np.array([0, 1, 1, 2]), np.array([0, 0, 1, 0]))
    np.testing.assert_allclose(found, [2**-0.5, 1, 2**-0.5, np.nan])


def test_pairs_join_rows_into_groups() -> None:
    groups = components(8, (np.array([0, 1, 5]), np.array([1, 7, 6])))
    assert [g.tolist() for g in groups] == [[0, 1, 7], [5, 6]]
    none = np.zeros(0, dtype=np.int64)
    assert components(3, (none, none)) == []
    assert components(0, (none, none)) == []


def test_a_few_pairs_join_the_same_rows_as_all_of_them_however_they_come():
    rng = np.random.default_rng(11)
    i, j = rng.integers(0, 60, (2, 40))
    i, j = i[i != j], j[i != j]
    clique = np.triu_indices(30, 1)
    first, second = np.r_[i, 60 + clique[0]], np.r_[j, 60 + clique[1]]
    expected = [group.tolist() for group in components(100, (first, second))]
    for size, most in ((7, 5), (1000, 10**6), (3, 1)):
        blocks = [(first[at : at + size], second[at : at + size]) for at in range(0, first.size, size)]
        kept = spanning(100, iter(blocks), most)
        assert [group.tolist() for group in components(100, kept)] == expected
        assert kept[0].size == sum(len(group) - 1 for group in expected)
        assert set(np.concatenate(kept).tolist()) == set(first.tolist()) | set(second.tolist())
    assert [part.size for part in spanning(5, iter(()))] == [0, 0]
