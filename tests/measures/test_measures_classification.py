"""Classification measures against scikit-learn, hand tables and slow bootstraps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from tl_audit.errors import DataError
from tl_audit.measures.classification import (
    accuracy,
    auroc,
    average_precision,
    balanced_accuracy,
    class_scores,
    class_shares,
    confusion_matrix,
    f1_macro,
    majority_gain,
    top_confusions,
    worst_class_recall,
)
from tl_audit.measures.intervals import auc, cluster_bootstrap, wilson


@pytest.fixture
def answers(rng):
    """200 rows of 4 classes with probabilities that are right more often than not."""
    labels = rng.choice(4, 200, p=[0.4, 0.3, 0.2, 0.1])
    logits = rng.normal(size=(200, 4)) + 1.5 * np.eye(4)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return labels, probabilities.argmax(axis=1), probabilities


def test_a_table_by_hand():
    labels, predicted = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 2]

    assert confusion_matrix(labels, predicted, classes=3).tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert accuracy(labels, predicted, classes=3).value == pytest.approx(4 / 6)
    assert balanced_accuracy(labels, predicted, classes=3).value == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert f1_macro(labels, predicted, classes=3).value == pytest.approx((4 / 6 + 2 / 4 + 1) / 3)
    assert [s.value for s in class_shares(labels, classes=3)] == pytest.approx([3 / 6, 2 / 6, 1 / 6])


def test_values_are_those_of_scikit_learn(answers):
    y, p, probabilities = answers

    assert accuracy(y, p, classes=4).value == pytest.approx(metrics.accuracy_score(y, p), abs=1e-12)
    assert balanced_accuracy(y, p, classes=4).value == pytest.approx(metrics.balanced_accuracy_score(y, p), abs=1e-12)
    assert f1_macro(y, p, classes=4).value == pytest.approx(metrics.f1_score(y, p, average="macro"), abs=1e-12)
    assert auroc(y, probabilities).value == pytest.approx(metrics.roc_auc_score(y, probabilities, multi_class="ovr"), abs=1e-12)
    assert average_precision(y == 1, probabilities[:, 1]).value == pytest.approx(
        metrics.average_precision_score(y == 1, probabilities[:, 1]), abs=1e-12
    )
    assert (confusion_matrix(y, p, classes=4) == metrics.confusion_matrix(y, p)).all()


def test_scores_of_classes_are_those_of_scikit_learn_with_their_own_denominators(answers):
    y, p, _ = answers
    precision, recall, f1, support = metrics.precision_recall_fscore_support(y, p)

    scores = class_scores(y, p, classes=4)

    assert [s.recall.value for s in scores] == pytest.approx(recall.tolist(), abs=1e-12)
    assert [s.precision.value for s in scores] == pytest.approx(precision.tolist(), abs=1e-12)
    assert [s.f1.value for s in scores] == pytest.approx(f1.tolist(), abs=1e-12)
    assert [s.recall.n for s in scores] == support.tolist()
    assert [s.precision.n for s in scores] == np.bincount(p, minlength=4).tolist()


@pytest.mark.parametrize("clustered", [False, True])
def test_fast_bootstraps_agree_with_the_slow_one(answers, clustered):
    y, p, probabilities = answers
    cluster = np.repeat(np.arange(50), 4) if clustered else None
    pairs = [
        (balanced_accuracy(y, p, classes=4, cluster=cluster), lambda rows: metrics.balanced_accuracy_score(y[rows], p[rows])),
        (f1_macro(y, p, classes=4, cluster=cluster), lambda rows: metrics.f1_score(y[rows], p[rows], average="macro")),
        (
            average_precision(y == 0, probabilities[:, 0], cluster=cluster),
            lambda rows: metrics.average_precision_score(y[rows] == 0, probabilities[rows, 0]),
        ),
    ]
    for number, (fast, statistic) in enumerate(pairs):
        strata = y == 0 if number == 2 else y
        slow = cluster_bootstrap(statistic, 200, cluster=cluster, strata=strata, resamples=400)
        assert fast.interval() == pytest.approx(slow.interval(), abs=0.02)
        assert fast.clusters == (50 if clustered else None)


def test_auroc_of_two_classes_is_that_of_the_second_class(answers):
    y, _, probabilities = answers
    binary = probabilities[:, :2] / probabilities[:, :2].sum(axis=1, keepdims=True)

    assert auroc(y == 1, binary).ladder == auc(y == 1, binary[:, 1]).ladder


def test_the_interval_of_the_macro_auroc_agrees_with_the_bootstrap(answers):
    y, _, probabilities = answers
    slow = cluster_bootstrap(
        lambda rows: metrics.roc_auc_score(y[rows], probabilities[rows], multi_class="ovr"), 200, strata=y, resamples=300
    )

    assert auroc(y, probabilities).interval() == pytest.approx(slow.interval(), abs=0.015)
    assert auroc(y, probabilities, cluster=np.arange(200) // 4).clusters == 50


def test_a_constant_model_gains_nothing_over_the_majority():
    estimate = majority_gain(np.r_[np.zeros(60), np.ones(40)].astype(int), np.zeros(100, dtype=int), classes=2, majority=0)

    assert estimate.value == 0
    assert estimate.p_value == 1
    assert estimate.interval()[0] < 0 < estimate.interval()[1]


def test_the_majority_must_be_a_class():
    with pytest.raises(DataError, match="majority class 5"):
        majority_gain([0, 1], [0, 1], classes=2, majority=5)


def test_absent_classes_have_no_recall_and_unpredicted_ones_no_precision():
    scores = class_scores([0, 0, 1], [0, 0, 0], classes=3)

    assert scores[1].precision.value is None
    assert scores[1].precision.reason == "never predicted"
    assert scores[2].recall.reason == "no rows of this class"
    assert scores[2].f1.value is None
    assert scores[1].f1.value == 0
    assert scores[1].f1.interval()[1] > 0


def test_the_worst_class_has_the_wider_interval_of_a_choice():
    recalls = tuple(wilson(k, 50) for k in (40, 30, 45))

    worst, estimate = worst_class_recall(recalls)

    assert worst == 1
    assert estimate.value == 0.6
    assert estimate.interval() == pytest.approx(recalls[1].interval(1 - 0.05 / 3))
    assert worst_class_recall(())[0] is None


def test_the_largest_confusions_come_first_and_only_those_that_occur():
    confusions = top_confusions([0, 0, 0, 1, 1, 2], [1, 1, 2, 0, 1, 2], classes=3)

    assert [(c.true, c.predicted) for c in confusions] == [(0, 1), (0, 2), (1, 0)]
    assert confusions[0].share.value == pytest.approx(2 / 3)
    assert confusions[0].share.interval() == wilson(2, 3).interval()
    assert top_confusions([0, 1], [0, 1], classes=2) == ()


def test_all_right_keeps_a_width(rng):
    y = rng.integers(0, 3, 60)
    for estimate in (
        balanced_accuracy(y, y, classes=3),
        f1_macro(y, y, classes=3),
        auroc(y, np.eye(3)[y]),
        class_scores(y, y, classes=3)[0].f1,
    ):
        assert estimate.value == 1
        assert estimate.interval()[0] < 0.99
        assert estimate.interval()[1] == 1


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=25), st.permutations([0, 1, 2]))
def test_renaming_classes_renames_results(rows, names):
    y, p = np.array([r[0] for r in rows], dtype=int), np.array([r[1] for r in rows], dtype=int)
    new = np.array(names)

    assert balanced_accuracy(new[y], new[p], classes=3, resamples=10).value == pytest.approx(
        balanced_accuracy(y, p, classes=3, resamples=10).value
    )
    assert f1_macro(new[y], new[p], classes=3, resamples=10).value == pytest.approx(f1_macro(y, p, classes=3, resamples=10).value)
    before, after = class_scores(y, p, classes=3, resamples=10), class_scores(new[y], new[p], classes=3, resamples=10)
    assert [after[new[c]].recall.ladder for c in range(3)] == [before[c].recall.ladder for c in range(3)]


def test_class_numbers_out_of_range_are_refused():
    with pytest.raises(DataError, match="expected 0 to 1"):
        accuracy([0, 2], [0, 1], classes=2)
    with pytest.raises(DataError, match="same samples"):
        accuracy([0, 1], [0], classes=2)
    with pytest.raises(DataError, match="align classes by name"):
        accuracy(["a"], ["b"], classes=2)


@pytest.mark.parametrize("n", range(6))
@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("cluster", [None, "one", "pairs"])
@pytest.mark.filterwarnings("error")
def test_tiny_inputs_never_raise(n, classes, cluster):
    rng = np.random.default_rng(n)
    ids = {None: None, "one": np.zeros(n), "pairs": np.arange(n) // 2}[cluster]
    for y, p in ((np.zeros(n, dtype=int),) * 2, (rng.integers(0, classes, n), rng.integers(0, classes, n))):
        probabilities = np.eye(classes)[p]
        estimates = [
            accuracy(y, p, classes=classes, cluster=ids),
            balanced_accuracy(y, p, classes=classes, cluster=ids, resamples=30),
            f1_macro(y, p, classes=classes, cluster=ids, resamples=30),
            auroc(y, probabilities, cluster=ids, resamples=30),
            average_precision(y == 0, probabilities[:, 0], cluster=ids, resamples=30),
            majority_gain(y, p, classes=classes, majority=0, cluster=ids),
            *class_shares(y, classes=classes, cluster=ids),
        ]
        for scores in class_scores(y, p, classes=classes, cluster=ids, resamples=30):
            estimates += [scores.recall, scores.precision, scores.f1]
        for estimate in estimates:
            assert estimate.reason or (estimate.value is not None and estimate.ladder)
            assert all(high >= low for _, low, high in estimate.ladder)
            assert not estimate.ladder or estimate.ladder[-1][2] > estimate.ladder[-1][1]
