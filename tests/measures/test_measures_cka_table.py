"""All layers against all layers at once: the numbers of each pair alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tl_audit.errors import DataError
from tl_audit.measures.intervals import placement_values
from tl_audit.measures.representation import cka_table, linear_cka


@pytest.mark.parametrize("clustered", [False, True])
def test_a_table_of_layers_holds_the_similarity_of_each_pair(rng, clustered):
    first = [rng.normal(size=(150, d)) + 5 for d in (3, 40)]
    second = [first[0] * 2 + rng.normal(size=(150, 3)), rng.normal(size=(150, 7)), first[1] @ rng.normal(size=(40, 60))]
    ids = {"cluster": np.arange(150) // 5} if clustered else {}
    table = cka_table(first, second, batch=32, **ids)

    for i, x in enumerate(first):
        for j, y in enumerate(second):
            alone = linear_cka(x, y, batch=32, **ids)
            assert table[i][j].value == pytest.approx(alone.value, rel=1e-9, abs=1e-12)
            assert np.array(table[i][j].ladder) == pytest.approx(np.array(alone.ladder), rel=1e-9, abs=1e-9)
            assert table[i][j].details == alone.details


def test_layers_without_a_similarity_say_why(rng):
    table = cka_table([np.ones((40, 2)), rng.normal(size=(40, 2))], [rng.normal(size=(40, 2))])
    assert "constant features" in table[0][0].reason
    assert table[1][0].value is not None
    assert cka_table([np.zeros((3, 2))], [np.zeros((3, 2))])[0][0].reason == "fewer than 4 rows"
    with pytest.raises(DataError, match="no layers"):
        cka_table([], [np.zeros((9, 2))])
    with pytest.raises(DataError, match="another_layer has 8 rows"):
        cka_table([np.zeros((9, 2))], [np.zeros((8, 2))])


@pytest.mark.parametrize("digits", [8, 0])
def test_placement_values_from_one_sort_are_those_of_ranks(rng, digits):
    positive, scores = rng.random(200) < 0.3, np.round(rng.normal(size=200) * 2, digits)
    n1, n0 = positive.sum(), (~positive).sum()
    overall = stats.rankdata(scores)
    expected = np.empty(200)
    expected[positive] = (overall[positive] - stats.rankdata(scores[positive])) / n0
    expected[~positive] = 1.0 - (overall[~positive] - stats.rankdata(scores[~positive])) / n1

    assert placement_values(positive, scores).tolist() == expected.tolist()
