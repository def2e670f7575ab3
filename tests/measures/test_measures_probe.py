"""The linear probe: what it knows, what it is not told, and that only the features tell two probes apart."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tl_audit.errors import DataError
from tl_audit.measures.probe import STRENGTHS, linear_probe, probe_split


def separable(rng: np.random.Generator, n: int = 240, classes: int = 3, columns: int = 8) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.integers(0, classes, n)
    return rng.normal(size=(n, columns)) + 2.5 * np.eye(columns)[labels], labels


def test_the_probe_answers_as_scikit_learn_does_at_the_strength_it_chose(rng):
    x, y = separable(rng)
    training = probe_split(y, classes=3)
    found = linear_probe(x, y, training, classes=3)
    scaler = StandardScaler().fit(x[training])
    model = LogisticRegression(C=found.strength, max_iter=200).fit(scaler.transform(x[training]), y[training])
    assert found.strength in STRENGTHS
    assert np.array_equal(found.rows, np.flatnonzero(~training))
    assert np.array_equal(found.predicted, model.predict(scaler.transform(x[~training])))
    assert (found.predicted == y[~training]).mean() > 0.85


def test_more_columns_than_rows_give_the_answers_of_the_full_problem(rng):
    x, y = separable(rng, n=60, columns=90)
    training = probe_split(y, classes=3)
    found = linear_probe(x, y, training, classes=3)
    scaler = StandardScaler().fit(x[training])
    model = LogisticRegression(C=found.strength, max_iter=2000, tol=1e-8).fit(scaler.transform(x[training]), y[training])
    assert (found.predicted == model.predict(scaler.transform(x[~training]))).mean() > 0.95


def test_equal_features_give_equal_answers_and_noise_gives_chance(rng):
    x, y = separable(rng, n=600)
    training = probe_split(y, classes=3)
    first, second = (linear_probe(x, y, training, classes=3, seed=4) for _ in range(2))
    assert np.array_equal(first.predicted, second.predicted)
    noise = linear_probe(rng.normal(size=x.shape), y, training, classes=3)
    assert (noise.predicted == y[~training]).mean() < 0.45


def test_half_of_each_class_trains_and_never_part_of_a_cluster(rng):
    y = np.repeat([0, 1, 2], [40, 20, 6])
    training = probe_split(y, classes=3, seed=3)
    assert [int(training[y == k].sum()) for k in range(3)] == [20, 10, 3]
    cluster = np.repeat(np.arange(11), 6)
    training = probe_split(y, classes=3, cluster=cluster)
    assert all(training[cluster == c].all() or not training[cluster == c].any() for c in range(11))
    with pytest.raises(DataError, match="splits a cluster"):
        linear_probe(rng.normal(size=(66, 2)), y, np.arange(66) % 2 == 0, classes=3, cluster=cluster)


def test_what_cannot_be_probed_says_why(rng):
    x, y = separable(rng, n=40)
    training = probe_split(y, classes=3)
    assert "one class" in str(linear_probe(x, np.zeros(40, dtype=int), training, classes=3).reason)
    assert "constant" in str(linear_probe(np.ones((40, 3)), y, training, classes=3).reason)
    assert "no rows" in str(linear_probe(x[:1], y[:1], [True], classes=3).reason)
    assert "no rows" in str(linear_probe(np.zeros((0, 3)), [], np.zeros(0, dtype=bool), classes=3).reason)
