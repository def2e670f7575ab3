"""Confident-joint suspects against a hand-worked table, and their number by chance: quiet where labels are drawn from the model, loud where flipped."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from tl_audit.errors import DataError
from tl_audit.measures.label_noise import calibration, noise_test, suspects
from tl_audit.measures.probe import cross_fitted


def drawn(
    n: int, classes: int, sharp: float, seed: int, *, over: float = 1.0, flips: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(probabilities that a model states, labels drawn from the true ones, which were flipped afterwards)."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, classes)) * sharp
    y = (softmax(z, axis=1).cumsum(axis=1) < rng.random(n)[:, None]).sum(axis=1).clip(max=classes - 1)
    flipped = rng.random(n) < flips
    y = np.where(flipped, (y + rng.integers(1, classes, n)) % classes, y)
    return softmax(z * over, axis=1), y, flipped


def test_the_hand_worked_table() -> None:
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.85, 0.15], [0.3, 0.7], [0.1, 0.9]])
    y = np.array([0, 0, 0, 1, 1, 1])
    # thresholds: (0.9 + 0.6 + 0.2) / 3 and (0.15 + 0.7 + 0.9) / 3
    found = suspects(p, y)
    np.testing.assert_allclose(found.thresholds, [1.7 / 3, 1.75 / 3])
    assert found.flagged.tolist() == [False, False, True, True, False, False]
    assert found.looks_like.tolist() == [0, 0, 1, 0, 1, 1]
    np.testing.assert_allclose(found.margin[[2, 3]], [0.6, 0.7])


def test_a_class_without_samples_is_never_preferred_and_nobody_confident_is_no_suspect() -> None:
    p = np.array([[0.1, 0.2, 0.7], [0.5, 0.4, 0.1], [0.34, 0.33, 0.33]])
    found = suspects(p, np.array([0, 1, 0]))
    assert np.isinf(found.thresholds[2])
    assert 2 not in found.looks_like
    assert not suspects(np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([0, 1])).flagged.any()
    assert suspects(np.zeros((0, 2)), np.zeros(0, dtype=int)).flagged.shape == (0,)
    with pytest.raises(DataError, match="sum to 1"):
        suspects(np.array([[0.5, 0.1]]), np.array([0]))


def test_five_percent_of_flips_in_separable_data_are_found_and_tested() -> None:
    recall, found = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        true = rng.integers(0, 3, 600)
        p = softmax(np.eye(3)[true] * 8 + rng.normal(0, 0.5, (600, 3)), axis=1)
        flipped = rng.random(600) < 0.05
        y = np.where(flipped, (true + 1) % 3, true)
        result = noise_test(p, y, seed=seed, draws=99)
        recall.append(result.suspects.flagged[flipped].mean())
        found.append(result.excess.p_value is not None and result.excess.p_value < 0.05 and (result.excess.value or 0) > 0.01)
        assert result.calibration.floor == pytest.approx(0.05 * 3 / 2, abs=0.04)
    assert np.mean(recall) >= 0.9
    assert all(found)


@pytest.mark.parametrize("over", [0.6, 1.0, 3.0])
def test_labels_drawn_from_the_model_are_seldom_too_many_suspects_however_sure_it_is(over: float) -> None:
    rejected, excess = [], []
    for seed in range(40):
        p, y, _ = drawn(250, 3, 2.0, seed, over=over)
        result = noise_test(p, y, seed=seed, draws=59)
        rejected.append((result.excess.p_value or 1.0) < 0.05)
        excess.append(result.excess.value)
        assert result.share.value == pytest.approx(result.excess.value + result.share.null)
    # 40 trials at 5 %: at most 6 but for one time in a thousand
    assert sum(rejected) <= 6
    assert abs(np.mean(excess)) < 0.02


def test_labels_of_one_cluster_that_are_wrong_together_are_no_sign_of_more() -> None:
    rejected, rowwise = [], []
    for seed in range(25):
        rng = np.random.default_rng(seed)
        unit = np.repeat(np.arange(40), 10)
        z = np.repeat(rng.normal(size=(40, 2)) * 3, 10, axis=0)
        q = softmax(z, axis=1)
        y = (q[:, 0] < rng.random(40)[unit]).astype(int)
        p = softmax(z + rng.normal(0, 0.1, z.shape), axis=1)
        rejected.append((noise_test(p, y, cluster=unit, seed=seed, draws=59).excess.p_value or 1.0) < 0.05)
        rowwise.append((noise_test(p, y, seed=seed, draws=59).excess.p_value or 1.0) < 0.05)
    assert sum(rejected) <= 4
    assert sum(rejected) <= sum(rowwise)


def test_the_calibration_recovers_the_temperature_and_the_floor() -> None:
    p, y, _ = drawn(4000, 4, 2.0, 0, over=3.0)
    assert calibration(p, y).sharpness == pytest.approx(1 / 3, rel=0.15)
    assert calibration(p, y).floor == 0.0
    p, y, _ = drawn(4000, 4, 4.0, 1, over=2.0, flips=0.09)
    fitted = calibration(p, y)
    # flips go to the three other classes: a floor over all four is a third more
    assert fitted.floor == pytest.approx(0.12, abs=0.03)
    assert fitted.p_value < 1e-6
    np.testing.assert_allclose(fitted.applied(p).sum(axis=1), 1)


def test_the_order_of_rows_and_the_names_of_classes_change_no_suspect() -> None:
    p, y, _ = drawn(300, 3, 2.0, 5, flips=0.05)
    order = np.random.default_rng(0).permutation(300)
    np.testing.assert_array_equal(suspects(p[order], y[order]).flagged, suspects(p, y).flagged[order])
    renamed = np.array([2, 0, 1])
    other = np.empty_like(p)
    other[:, renamed] = p
    np.testing.assert_array_equal(suspects(other, renamed[y]).flagged, suspects(p, y).flagged)
    twice = noise_test(p, y, seed=3, draws=19)
    assert twice.excess.p_value == noise_test(p, y, seed=3, draws=19).excess.p_value


def test_of_very_many_rows_some_tell_what_chance_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    p, y, _ = drawn(3000, 3, 2.0, 6, flips=0.05)
    whole = noise_test(p, y, draws=39)
    monkeypatch.setattr("tl_audit.measures.label_noise.MOST_DRAWN", 3000)
    some = noise_test(p, y, draws=39)
    assert some.excess.details["rows_drawn"] == 1000
    assert some.share.value == whole.share.value
    assert some.share.null == pytest.approx(whole.share.null, abs=0.02)
    assert (some.excess.p_value or 1) <= 0.05


def test_without_rows_or_with_one_there_is_a_reason_or_a_number() -> None:
    none = noise_test(np.zeros((0, 2)), np.zeros(0, dtype=int))
    assert none.share.value is None
    assert none.excess.value is None
    assert none.excess.reason
    one = noise_test(np.array([[0.3, 0.7]]), np.array([1]), draws=19)
    assert one.share.value == 0.0


# ---------------------------------------------------------------- probes in folds


def test_cross_fitted_probabilities_never_come_from_the_rows_own_probe() -> None:
    rng = np.random.default_rng(0)
    # labels at random: a probe that had seen them would fit them, one that has not cannot
    x, y = rng.normal(size=(120, 80)), rng.integers(0, 2, 120)
    found = cross_fitted(x, y, classes=2, seed=0)
    assert found.reason is None
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1)
    assert abs((found.probabilities.argmax(axis=1) == y).mean() - 0.5) < 0.15
    x[:, 0] += 6 * y
    assert (cross_fitted(x, y, classes=2, seed=0).probabilities.argmax(axis=1) == y).mean() > 0.8


def test_a_cluster_is_never_on_both_sides_of_a_fold() -> None:
    rng = np.random.default_rng(1)
    unit = np.repeat(np.arange(30), 6)
    # features name the cluster, labels belong to it: only a probe that saw the cluster could answer
    x, y = np.eye(30)[unit] * 5 + rng.normal(0, 0.1, (180, 30)), rng.integers(0, 2, 30)[unit]
    held = cross_fitted(x, y, classes=2, cluster=unit, seed=0).probabilities.argmax(axis=1) == y
    leaky = cross_fitted(x, y, classes=2, seed=0).probabilities.argmax(axis=1) == y
    assert leaky.mean() > 0.95
    assert held.mean() < 0.8


def test_probes_that_cannot_be_say_why() -> None:
    assert "fewer than two" in str(cross_fitted(np.zeros((1, 2)), np.array([0]), classes=2).reason)
    assert "one class" in str(cross_fitted(np.eye(10), np.zeros(10, dtype=int), classes=2).reason)
    assert "constant" in str(cross_fitted(np.ones((10, 3)), np.arange(10) % 2, classes=2).reason)
