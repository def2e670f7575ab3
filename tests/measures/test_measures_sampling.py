"""Generators, hash priorities, bottom-k samples and splits by cluster."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl_audit.errors import DataError
from tl_audit.measures.sampling import bottom_k, cluster_codes, generator, group_codes, priority, split_by_cluster, stratified_k


def test_a_generator_depends_on_its_key_alone():
    assert generator(0, "a").random() == generator(0, "a").random()
    assert generator(0, "a").random() != generator(1, "a").random()
    assert generator("a", "bc").random() != generator("ab", "c").random()
    assert generator(np.int64(3)).random() == generator(3).random()


def test_priority_is_the_start_of_the_hash_of_seed_and_id():
    expected = int.from_bytes(hashlib.sha256(b"5|x").digest()[:8], "big")

    assert priority(5, ["x"])[0] == expected


def test_bottom_k_by_hand():
    ids = [f"s{i}" for i in range(20)]
    smallest = sorted(range(20), key=lambda i: hashlib.sha256(f"0|s{i}".encode()).digest())[:4]

    assert bottom_k(ids, 4, 0).tolist() == sorted(smallest)


@given(st.integers(0, 12), st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6), st.integers(0, 2)), max_size=40), st.integers(0, 3))
def test_bottom_k_of_merged_shards_is_bottom_k_of_all(k, rows, seed):
    ids = np.arange(len(rows))
    shard, cluster, stratum = (np.array([row[c] for row in rows], dtype=int) for c in range(3))

    for use_strata in (False, True):
        for use_cluster in (False, True):

            def chosen(part, strata=use_strata, clusters=use_cluster):
                picked = bottom_k(
                    ids[part].tolist(),
                    k,
                    seed,
                    strata=stratum[part] if strata else None,
                    cluster=cluster[part] if clusters else None,
                )
                return part[picked]

            # with strata a cluster must lie in one shard: it may be taken for the sake of a stratum that another shard lacks
            home = cluster % 3 if use_strata and use_cluster else shard
            whole = chosen(np.arange(len(rows)))
            merged = chosen(np.sort(np.concatenate([chosen(np.flatnonzero(home == s)) for s in range(3)])).astype(int))
            assert merged.tolist() == whole.tolist()


@given(st.integers(0, 15), st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=40))
def test_a_stratified_sample_of_merged_shards_is_that_of_all_and_holds_the_total(total, rows):
    ids = np.arange(len(rows))
    shard, stratum = (np.array([row[c] for row in rows], dtype=int) for c in range(2))

    def chosen(part):
        return part[stratified_k(ids[part].tolist(), total, 1, strata=stratum[part])]

    whole = chosen(ids)
    merged = chosen(np.sort(np.concatenate([chosen(np.flatnonzero(shard == s)) for s in range(3)])).astype(int))

    assert merged.tolist() == whole.tolist()
    assert whole.size == min(total, len(rows))


def test_a_stratified_sample_is_as_even_as_sizes_allow():
    strata = np.repeat(["a", "b", "c"], [2, 50, 50])

    rows = stratified_k(list(range(102)), 20, 0, strata=strata)

    assert sorted(np.unique(strata[rows], return_counts=True)[1].tolist()) == [2, 9, 9]


def test_bottom_k_keeps_clusters_whole_and_strata_apart():
    cluster = np.arange(30) // 3
    rows = bottom_k(list(range(30)), 7, 0, cluster=cluster)

    assert rows.size == 9  # the cluster that reaches 7 is kept whole
    assert set(np.bincount(cluster[rows]).tolist()) <= {0, 3}
    assert bottom_k(list(range(30)), 2, 0, strata=cluster).size == 20


def test_bottom_k_does_not_depend_on_the_order_of_rows(rng):
    ids = [f"id{i}" for i in range(50)]
    order = rng.permutation(50)

    first = {ids[i] for i in bottom_k(ids, 9, 3)}
    second = {ids[order[i]] for i in bottom_k([ids[i] for i in order], 9, 3)}

    assert first == second


def test_rows_without_a_cluster_id_are_clusters_of_their_own():
    codes = cluster_codes(np.array(["b", None, "a", float("nan"), "", "b"], dtype=object), 6)

    assert codes.tolist() == [1, 2, 0, 3, 4, 1]
    assert cluster_codes(None, 3).tolist() == [0, 1, 2]
    assert cluster_codes([7, 3, 7], 3).tolist() == [1, 0, 1]
    assert cluster_codes(np.array([1, "1"], dtype=object), 2)[0] != cluster_codes(np.array([1, "1"], dtype=object), 2)[1]


def test_cluster_ids_must_fit_the_rows():
    with pytest.raises(DataError, match="expected one id for each of the 3 rows"):
        cluster_codes(["a"], 3)


@pytest.mark.parametrize("missing", [None, float("nan"), "", "nan", "None", " "])
def test_a_missing_group_is_a_group_of_its_own_and_comes_last(missing):
    codes, names = group_codes(np.array(["x", missing, "a"], dtype=object), 3)

    assert names == ("a", "x", "(missing)")
    assert codes.tolist() == [1, 2, 0]


@given(st.lists(st.integers(0, 8), min_size=2, max_size=60), st.integers(0, 5))
def test_a_split_never_cuts_a_cluster_and_leaves_both_sides_some(cluster, seed):
    ids = np.array(cluster)
    mask = split_by_cluster(ids, ids.size, seed)

    assert not set(ids[mask]) & set(ids[~mask])
    if np.unique(ids).size > 1:
        assert mask.any()
        assert not mask.all()


def test_a_split_without_clusters_has_the_exact_share():
    assert split_by_cluster(None, 11, 0, 0.3).sum() == 3
    assert split_by_cluster(None, 0, 0).size == 0
    with pytest.raises(DataError, match="from 0 to 1"):
        split_by_cluster(None, 5, 0, 1.5)
