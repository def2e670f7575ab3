"""Worst slices: rules divide as the tree did, read as words, and find what was planted on rows that they did not see."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.tree import DecisionTreeRegressor

from tl_audit.errors import DataError
from tl_audit.measures import slices
from tl_audit.measures.slices import Columns, Condition

HALF = np.arange(1000) % 2 == 0


def texts(values) -> np.ndarray:
    return np.array(values, dtype=object)


def test_a_planted_rule_is_written_in_words(rng):
    bright, site = rng.random(1000), texts(rng.choice(["north", "south", "west"], 1000))
    bad = (bright < 0.4) & (site == "north")
    wrong = rng.random(1000) < 0.05 + 0.6 * bad
    columns = Columns({"brightness": bright, "contrast": rng.random(1000)}, {"site": site})
    first = slices.rule_parts(wrong, columns, HALF)[0]
    assert "site = north" in first.name
    assert "brightness ≤ 0." in first.name
    assert (first.inside & bad).sum() > 0.8 * bad.sum()
    assert (first.inside & ~bad).sum() < 0.25 * bad.sum()


def test_every_rule_divides_the_rows_of_the_search_as_the_tree_did(rng):
    x = {f"x{k}": np.round(rng.normal(size=600) * 10.0**k, 3) for k in range(-2, 3)}
    wrong = rng.random(600) < 0.2 + 0.5 * (x["x1"] > 3)
    look = np.ones(600, dtype=bool)
    matrix = np.stack(list(x.values()), axis=1)
    _, meanings = slices._encoded(Columns(x), look)
    tree = DecisionTreeRegressor(max_depth=3, min_samples_leaf=30, random_state=0).fit(matrix, wrong)
    membership = tree.decision_path(matrix).toarray().astype(bool)
    paths = slices._paths(tree.tree_)
    # nodes come in the order of the walk, which is sklearn's numbering without the root
    for node, path in enumerate(paths, start=1):
        inside = np.ones(600, dtype=bool)
        for condition in slices._rule(path, matrix, meanings):
            inside &= condition.holds(Columns(x))
        assert (inside == membership[:, node]).all()


def test_cuts_are_the_shortest_numbers_between_two_values():
    assert slices._shortest(np.array([0.2, 0.4]), 0.3) == 0.3
    assert slices._shortest(np.array([0.1234, 0.1236]), 0.1235) == 0.1235
    assert slices._shortest(np.array([70.0, 141.0]), 105.5) == 100.0
    assert slices._shortest(np.array([1e-5, 2e-5]), 1.5e-5) == pytest.approx(1.5e-5, rel=0.34)


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        (Condition("x", "number", high=0.31), "x ≤ 0.31"),
        (Condition("x", "number", low=-2.0), "x > −2"),
        (Condition("x", "number", low=0.2, high=0.31), "0.2 < x ≤ 0.31"),
        (Condition("s", "text", value="north"), "s = north"),
        (Condition("s", "text", excluded=("north",)), "s is not north"),
        (Condition("s", "text", excluded=("north", "west")), "s is none of north, west"),
        (Condition("t", "order", high=0.5), "t = jan"),
        (Condition("t", "order", high=1.5), "t up to feb"),
        (Condition("t", "order", low=0.5), "t from feb"),
        (Condition("t", "order", low=0.5, high=2.5), "t from feb to mar"),
        (Condition("x", "missing"), "x is missing"),
        (Condition("x", "missing", missing=False), "x is known"),
    ],
)
def test_conditions_read_as_words(condition, words):
    columns = Columns({"x": np.zeros(1)}, {"s": texts(["north"])}, {"t": (np.zeros(1, dtype=np.int64), ("jan", "feb", "mar", "apr"))})
    assert condition.words(columns) == words


def test_missing_values_meet_no_condition_on_numbers_and_are_not_any_text():
    columns = Columns({"x": np.array([np.nan, 1.0])}, {"s": texts([None, "a"])}, {"t": (np.array([-1, 0]), ("jan",))})
    assert Condition("x", "number", low=0.0).holds(columns).tolist() == [False, True]
    assert Condition("x", "number", high=2.0).holds(columns).tolist() == [False, True]
    assert Condition("t", "order", high=0.5).holds(columns).tolist() == [False, True]
    assert Condition("s", "text", excluded=("a",)).holds(columns).tolist() == [True, False]
    assert Condition("x", "missing").holds(columns).tolist() == [True, False]


def test_missing_itself_may_be_the_rule(rng):
    x = rng.random(1000)
    x[rng.random(1000) < 0.2] = np.nan
    wrong = rng.random(1000) < 0.05 + 0.6 * np.isnan(x)
    assert slices.rule_parts(wrong, Columns({"x": x}), HALF)[0].name == "x is missing"


def test_a_blob_of_the_features_is_found_though_no_rule_describes_it(rng):
    bad = rng.random(1000) < 0.12
    features = rng.normal(size=(1000, 40)) + 3.0 * bad[:, None]
    wrong = rng.random(1000) < 0.05 + 0.5 * bad
    (first, *_) = slices.feature_parts(wrong, features, HALF)
    assert not first.described
    assert (first.inside == bad).mean() > 0.97


def test_parts_are_apart_and_doubles_are_left_out(rng):
    x = rng.random(1000)
    wrong = rng.random(1000) < np.where(x < 0.15, 0.7, np.where(x > 0.85, 0.5, 0.1))
    found = slices.rule_parts(wrong, Columns({"x": x, "same": x}), HALF)
    assert len(found) >= 2
    for i, one in enumerate(found):
        for other in found[:i]:
            assert slices._overlap(one.inside[HALF], other.inside[HALF]) < slices.ALIKE
    assert slices.without_doubles(found[:1], found[:1]) == ()
    assert slices.without_doubles(found[:1], found[1:2]) == found[:1]


def test_a_part_needs_thirty_rows_and_five_clusters(rng):
    x = rng.random(1000)
    wrong = (x < 0.08) | (rng.random(1000) < 0.05)
    cluster = np.where(x < 0.08, 0, np.arange(1000) // 5)
    assert slices.rule_parts(wrong, Columns({"x": x}), HALF)
    assert not slices.rule_parts(wrong, Columns({"x": x}), HALF, cluster=cluster)


@pytest.mark.parametrize("wrong", [np.zeros(1000, dtype=bool), np.ones(1000, dtype=bool)])
def test_without_errors_or_without_right_answers_there_is_nothing_to_look_for(rng, wrong):
    assert slices.rule_parts(wrong, Columns({"x": rng.random(1000)}), HALF) == ()
    assert slices.feature_parts(wrong, rng.normal(size=(1000, 3)), HALF) == ()


def test_constant_columns_and_features_are_no_slices(rng):
    wrong = rng.random(1000) < 0.2
    columns = Columns(
        {"x": np.ones(1000), "gone": np.full(1000, np.nan)}, {"s": texts(["a"] * 1000)}, {"t": (np.zeros(1000, dtype=int), ("t",))}
    )
    assert slices.rule_parts(wrong, columns, HALF) == ()
    assert slices.feature_parts(wrong, np.ones((1000, 3)), HALF) == ()
    with pytest.raises(DataError, match="column 'x' has shape"):
        slices.rule_parts(wrong, Columns({"x": np.ones(3)}), HALF)


@pytest.mark.filterwarnings("error")
def test_numbers_beyond_single_precision_are_parts_as_well(rng):
    x = np.where(np.arange(1000) < 300, 1e40, rng.normal(size=1000))
    x[:20] = np.inf
    wrong = rng.random(1000) < np.where(np.arange(1000) < 300, 0.7, 0.1)
    found = slices.rule_parts(wrong, Columns({"x": x, "vast": np.where(x > 10, 1e200, 1e199)}), HALF)
    assert (found[0].inside == (x > 10)).all()
    assert slices.rule_parts(wrong, Columns({"vast": np.where(x > 10, 1e200, 1e199)}), HALF) == ()
