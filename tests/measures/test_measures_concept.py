"""Concept shift: quiet under shifts of inputs, classes and noise alike; found where labels change their meaning."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from tl_audit.measures import concept
from tl_audit.measures.concept import concept_shift


def chance(score: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-score))


def world(kind: str, seed: int, *, n: int = 400, clustered: bool = False) -> dict:
    """Source and target of five features and two classes, label 1 where the first features are large."""
    rng = np.random.default_rng(seed)
    sides = []
    for target in (False, True):
        x, cluster = rng.normal(size=(n, 5)), None
        if clustered:
            cluster = np.arange(n // 5).repeat(5)
            x = 0.6 * x + 0.8 * rng.normal(size=(n // 5, 5))[cluster]
        if target and kind == "inputs":
            x[:, 1] += 0.8
        if target and kind == "contrast":
            x *= 1.5
        score = 2 * x[:, 0] + x[:, 1]
        if clustered:
            score = score + rng.normal(size=n // 5)[cluster]
        y = (rng.random(n) < chance(score)).astype(int)
        if kind == "classes":
            y = (rng.random(n) < (0.8 if target else 0.5)).astype(int)
            x[:, 0] += 1.5 * y
        if kind == "noise":
            y = np.where(rng.random(n) < 0.2, 1 - y, y)
        if target and kind == "meaning":
            y = np.where(x[:, 3] > 0, 1 - y, y)
        sides.append((x, y, None if cluster is None else np.array([f"{target}{c}" for c in cluster], dtype=object)))
    (a, ya, ca), (b, yb, cb) = sides
    return {"source": a, "source_labels": ya, "target": b, "target_labels": yb, "cluster_source": ca, "cluster_target": cb}


def found(kind: str, seed: int, *, resamples: int = 99, clustered: bool = False, n: int = 400) -> concept.ConceptShift:
    return concept_shift(**world(kind, seed, n=n, clustered=clustered), classes=2, resamples=resamples, seed=seed)


@pytest.mark.parametrize("clustered", [False, True])
def test_labels_flipped_in_half_the_space_are_found(clustered):
    shift = found("meaning", 1, clustered=clustered, n=600)
    assert shift.gain.value > 0.02
    assert shift.gain.p_value == 0.01
    assert shift.gain.details["null_95"] < 0.01
    assert shift.overlap.value > 0.95


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "clustered"), [("inputs", False), ("contrast", False), ("classes", False), ("inputs", True)])
def test_other_shifts_are_no_new_meaning(kind, clustered):
    runs = 20
    shifts = [found(kind, seed, resamples=39, clustered=clustered, n=250) for seed in range(runs)]
    rejected = sum(shift.gain.p_value is not None and shift.gain.p_value <= 0.05 for shift in shifts)
    assert rejected <= 0.05 * runs + 3 * np.sqrt(0.05 * 0.95 * runs)
    assert max(shift.gain.value for shift in shifts if shift.gain.value is not None) < 0.02


@pytest.mark.parametrize("kind", ["inputs", "contrast", "classes", "noise"])
def test_another_shift_gains_nothing_in_one_world(kind):
    shift = found(kind, 3, resamples=39)
    assert shift.gain.value < 0.005
    assert shift.gain.p_value > 0.05


def test_domains_that_hardly_overlap_are_not_judged(rng):
    given = world("none", 2, n=200)
    given["target"] = given["target"] + np.array([6.0, 0, 0, 0, 0])
    shift = concept_shift(**given, classes=2, resamples=19)
    assert shift.gain.value is None
    assert shift.gain.reason.startswith("cannot separate concept from covariate shift: only ")
    assert shift.overlap.value < 0.5


def test_the_chance_of_a_domain_is_calibrated_near_and_far(rng):
    x = rng.normal(size=(2000, 2))
    for slope in (0.5, 3.0):
        second = rng.random(2000) < chance(slope * x[:, 0])
        p = concept._domain_probability(np.concatenate([np.ones((2000, 1)), x], axis=1), second, np.arange(2000) % 5)
        assert np.abs(p - chance(slope * x[:, 0])).mean() < 0.045


def test_classes_too_rare_are_left_out_and_named_by_number(rng):
    given = world("none", 2, n=200)
    given["source_labels"] = np.r_[np.full(5, 2), given["source_labels"][5:]]
    shift = concept_shift(**given, classes=3, resamples=19)
    assert shift.classes == (0, 1)
    assert shift.gain.value is not None
    given["target_labels"] = np.zeros(200, dtype=int)
    assert concept_shift(**given, classes=3, resamples=19).gain.reason == "fewer than two classes have ten rows in both domains"


def test_of_many_classes_the_commonest_take_part(monkeypatch):
    given = world("none", 2, n=300)
    given["source_labels"], given["target_labels"] = np.arange(300) % 7 % 4, np.arange(300) % 7 % 4
    monkeypatch.setattr(concept, "MOST_CLASSES", 2)
    assert concept_shift(**given, classes=4, resamples=9).classes == (0, 1)


def test_constant_features_say_nothing():
    given = world("none", 2, n=100)
    given["source"], given["target"] = np.ones((100, 3)), np.ones((100, 3))
    assert concept_shift(**given, classes=2, resamples=19).gain.reason == "all features are constant"


def test_the_same_seed_gives_the_same_numbers_and_another_scale_changes_nothing():
    given = world("meaning", 5, n=200)
    one, two = (concept_shift(**given, classes=2, resamples=19, seed=4) for _ in range(2))
    assert (one.gain.value, one.gain.p_value) == (two.gain.value, two.gain.p_value)
    scaled = {**given, "source": 7 * given["source"] - 3, "target": 7 * given["target"] - 3}
    assert concept_shift(**scaled, classes=2, resamples=19, seed=4).gain.value == pytest.approx(one.gain.value, abs=1e-6)


def test_the_domain_model_is_a_penalised_logistic_regression(rng):
    z = rng.normal(size=(300, 4))
    second = rng.random(300) < chance(z[:, 0])
    mine = concept._logistic(np.concatenate([np.ones((300, 1)), z], axis=1), second.astype(float), 10.0)
    theirs = LogisticRegression(C=1 / 10, tol=1e-10).fit(z, second)
    assert mine[1:] == pytest.approx(theirs.coef_[0], abs=1e-4)
    assert mine[0] == pytest.approx(theirs.intercept_[0], abs=1e-4)


def test_the_common_model_is_at_the_top_of_its_penalised_likelihood(rng):
    x, y = np.concatenate([np.ones((150, 1)), rng.normal(size=(150, 2))], axis=1), rng.integers(0, 3, 150)
    theirs = LogisticRegression(C=1.0 / 5, fit_intercept=False, tol=1e-10, max_iter=1000).fit(x, y)
    mine = concept._multinomial(x, np.eye(3)[y], np.full(3, 5.0))
    assert np.abs(mine.T - theirs.coef_).max() < 1e-3


def test_effects_of_the_domain_come_close_to_the_best_and_all_draws_are_fitted_alike(rng):
    n, classes = 200, 3
    matrix = np.concatenate([np.ones((n, 1)), rng.normal(size=(n, 2))], axis=1)
    offset, y = rng.normal(size=(classes, n)) * 0.5, rng.integers(0, classes, n)
    moved = np.where(rng.random((4, n)) < 0.5, 0.5, -0.5)
    found = concept._domain_effects(offset, matrix, y, moved)
    assert found == pytest.approx(np.concatenate([concept._domain_effects(offset, matrix, y, moved[b : b + 1]) for b in range(4)], axis=1))

    def height(weights, b):
        w = weights.reshape(classes, 1, 3)
        loss = concept._log_loss(concept._scores(offset, matrix, moved[b : b + 1], w), y).sum()
        return loss + 0.5 * (np.array([1.0, concept.RIDGE, concept.RIDGE]) * w[:, 0] ** 2).sum()

    for b in range(4):
        best = minimize(height, np.zeros(9), args=(b,)).fun
        assert height(found[:, b : b + 1].ravel(), b) < best + 0.02 * (height(np.zeros(9), b) - best) + 1e-6


def test_rows_of_a_cluster_are_drawn_together():
    codes = np.repeat(np.arange(10), 4)
    draws = concept._draws(np.linspace(0.2, 0.8, 40), codes, 500, seed=0)
    assert (draws.reshape(500, 10, 4) == draws.reshape(500, 10, 4)[:, :, :1]).all()
    assert draws[:, ::4].mean(axis=0) == pytest.approx(np.linspace(0.2, 0.8, 40).reshape(10, 4).mean(axis=1), abs=0.08)
