"""Group rates and gaps: hand tables, fairlearn where it is right, and the cases where libraries are wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tl_audit.errors import DataError
from tl_audit.measures.estimate import interval_at
from tl_audit.measures.fairness import (
    binary_gaps,
    gap_changes,
    group_gaps,
    group_rates,
    largest_difference,
    minimum_detectable_gap,
    undefined_cells,
)
from tl_audit.measures.intervals import newcombe, paired_rate_difference, wilson


@pytest.fixture
def population(rng):
    groups = rng.choice(["a", "b", "c"], 400, p=[0.5, 0.3, 0.2])
    labels = rng.integers(0, 2, 400)
    return groups, labels, np.where(rng.random(400) < 0.8, labels, 1 - labels)


def test_a_table_by_hand():
    groups = ["x", "x", "x", "x", "y", "y", "y", None]
    labels = [1, 1, 0, 0, 1, 0, 0, 1]
    predicted = [1, 0, 1, 0, 1, 0, 0, 1]
    rates = {g.group: g for g in group_rates(groups, labels, predicted, positive=1)}

    assert list(rates) == ["x", "y", "(missing)"]
    assert {m: e.value for m, e in rates["x"].rates.items()} == {
        "accuracy": 0.5, "selection_rate": 0.5, "tpr": 0.5, "fpr": 0.5, "precision": 0.5, "base_rate": 0.5,
    }  # fmt: skip
    assert rates["y"].rates["tpr"].value == 1
    assert rates["y"].rates["tpr"].n == 1
    assert rates["y"].rates["fpr"].n == 2
    assert rates["(missing)"].n == 1
    assert rates["x"].positives == 2


def test_rates_are_those_of_fairlearn_on_data_without_degenerate_groups(population):
    fairlearn = pytest.importorskip("fairlearn.metrics")
    from sklearn.metrics import accuracy_score, precision_score

    groups, labels, predicted = population
    frame = fairlearn.MetricFrame(
        metrics={
            "accuracy": accuracy_score,
            "precision": precision_score,
            "selection_rate": fairlearn.selection_rate,
            "tpr": fairlearn.true_positive_rate,
            "fpr": fairlearn.false_positive_rate,
        },
        y_true=labels,
        y_pred=predicted,
        sensitive_features=groups,
    )
    for group in group_rates(groups, labels, predicted, positive=1):
        for metric in frame.by_group:
            assert group.rates[metric].value == pytest.approx(frame.by_group.loc[group.group, metric], abs=1e-12)
    difference = largest_difference(groups, predicted == 1)
    assert difference.value == pytest.approx(fairlearn.demographic_parity_difference(labels, predicted, sensitive_features=groups))


def test_a_group_without_positives_has_no_true_positive_rate_where_the_library_says_zero():
    fairlearn = pytest.importorskip("fairlearn.metrics")
    groups, labels, predicted = ["a", "a", "b", "b"], [1, 0, 0, 0], [1, 0, 0, 0]

    with np.errstate(all="ignore"):
        assert fairlearn.equalized_odds_difference(labels, predicted, sensitive_features=groups) == 1.0  # nobody was treated unequally
    rates = group_rates(groups, labels, predicted, positive=1)
    assert rates[1].rates["tpr"].value is None
    assert rates[1].rates["tpr"].reason == "no positive rows"
    gap = group_gaps(groups, labels, predicted, metric="tpr", positive=1)[1]
    assert gap.gap.value is None
    assert gap.gap.reason == "no positive rows in the group"
    assert ("b", "tpr") in [(c.group, c.metric) for c in undefined_cells(rates)]


def test_one_group_only_has_no_rest():
    gaps = group_gaps(["a", "a"], [1, 0], [1, 0])

    assert gaps[0].gap.value is None
    assert gaps[0].gap.reason == "no rows in the rest"


def test_text_labels_give_what_numbers_give(population):
    groups, labels, predicted = population
    words = np.array(["no", "yes"])

    numbers = group_gaps(groups, labels, predicted, metric="tpr", positive=1)
    text = group_gaps(groups, words[labels], words[predicted], metric="tpr", positive="yes")

    assert [g.gap.ladder for g in text] == [g.gap.ladder for g in numbers]


# ---------------------------------------------------------------- gaps


def test_the_gap_is_newcombe_of_the_group_and_all_others(population):
    groups, labels, predicted = population
    right = labels == predicted
    for gap in group_gaps(groups, labels, predicted):
        inside = groups == gap.group
        expected = newcombe(wilson(right[inside].sum(), inside.sum()), wilson(right[~inside].sum(), (~inside).sum()))
        assert gap.gap.interval() == expected.interval()
        assert gap.gap.value == gap.inside.value - gap.outside.value


def test_of_two_groups_one_gap_is_minus_the_other(population):
    groups, labels, predicted = population
    gaps = group_gaps(np.where(groups == "a", "a", "rest"), labels, predicted)

    assert gaps[0].gap.value == -gaps[1].gap.value
    assert gaps[0].gap.interval() == pytest.approx((-gaps[1].gap.interval()[1], -gaps[1].gap.interval()[0]))


def test_missing_values_are_compared_but_belong_to_nobodys_rest():
    groups = np.array(["a"] * 10 + ["b"] * 10 + [None] * 5, dtype=object)
    hits = np.r_[np.ones(8), np.zeros(2), np.ones(5), np.zeros(5), np.zeros(5)]
    gaps = {g.group: g for g in binary_gaps(groups, hits)}

    assert gaps["a"].outside.n == 10
    assert gaps["(missing)"].outside.n == 20
    assert gaps["(missing)"].gap.value == pytest.approx(-13 / 20)


def test_a_reference_group_replaces_the_rest(population):
    groups, labels, predicted = population
    gaps = group_gaps(groups, labels, predicted, reference="a")

    assert [g.group for g in gaps] == ["b", "c"]
    assert gaps[0].outside.n == (groups == "a").sum()
    with pytest.raises(DataError, match="does not occur; groups: a, b, c"):
        group_gaps(groups, labels, predicted, reference="z")


def test_declared_groups_that_never_occur_are_listed_as_undefined(population):
    groups, labels, predicted = population
    gaps = group_gaps(groups, labels, predicted, declared=("z",))

    assert [g.group for g in gaps] == ["a", "b", "c", "z"]
    assert gaps[3].gap.value is None
    assert [g.gap.ladder for g in gaps[:3]] == [g.gap.ladder for g in group_gaps(groups, labels, predicted)]


def test_renaming_groups_permutes_results(population):
    groups, labels, predicted = population
    names = {"a": "z", "b": "x", "c": "y"}
    renamed = {g.group: g.gap.ladder for g in group_gaps([names[g] for g in groups], labels, predicted)}

    for gap in group_gaps(groups, labels, predicted):
        assert renamed[names[gap.group]] == gap.gap.ladder


@given(st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.booleans()), max_size=20))
def test_the_order_of_rows_does_not_matter(rows):
    groups, hits = np.array([r[0] for r in rows], dtype=object), np.array([r[1] for r in rows], dtype=bool)
    one, other = binary_gaps(groups, hits), binary_gaps(groups[::-1], hits[::-1])

    assert [(g.group, g.gap.ladder) for g in one] == [(g.group, g.gap.ladder) for g in other]


def test_metrics_that_need_a_positive_class_say_so(population):
    with pytest.raises(DataError, match="needs a positive class"):
        group_gaps(*population, metric="tpr")
    with pytest.raises(DataError, match="no gap is defined for 'magic'"):
        group_gaps(*population, metric="magic", positive=1)


def test_clusters_inside_groups_and_across_them(population, rng):
    groups, labels, predicted = population
    order = np.argsort(groups, kind="stable")
    groups, labels, predicted = groups[order], labels[order], predicted[order]
    inside = np.array([f"{g}{i // 4}" for i, g in enumerate(groups)])

    gaps = group_gaps(groups, labels, predicted, cluster=inside)
    across = group_gaps(groups, labels, predicted, cluster=rng.integers(0, 60, 400))

    assert gaps[0].gap.details["clusters_crossing"] == 0
    assert across[0].gap.details["clusters_crossing"] > 30
    assert across[0].gap.clusters == 60


def test_a_planted_gap_is_found_and_only_there():
    rng = np.random.default_rng(0)
    groups = np.repeat(["a", "b", "c"], 300)
    gaps = binary_gaps(groups, rng.random(900) < np.repeat([0.9, 0.9, 0.6], 300))

    # the rest of a and b holds c: their gaps are positive, c's is negative beyond 0.1
    assert gaps[2].gap.interval()[1] < -0.1
    assert gaps[0].gap.interval()[0] > -0.1


def test_the_detectable_gap_solves_its_equation_and_has_the_promised_power():
    estimate = minimum_detectable_gap(200, 800, 0.8, limit=0.1)
    g = estimate.value
    p = 0.8 - g
    reach = stats.norm.isf(0.025) + stats.norm.ppf(0.8)

    assert g == pytest.approx(0.1 + reach * np.sqrt(p * (1 - p) / 200 + 0.8 * 0.2 / 800))
    assert minimum_detectable_gap(200, 800, 0.8, limit=0.1, groups=10).value > g
    assert minimum_detectable_gap(200, 800, 0.8, limit=0.1, deff=4).value > g
    found = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        gap = newcombe(wilson(rng.binomial(200, p), 200), wilson(rng.binomial(800, 0.8), 800))
        found += gap.interval()[1] < -0.1
    assert 0.72 <= found / 300 <= 0.88


def test_a_gap_that_cannot_exist_is_not_promised():
    assert "even a rate of 0" in minimum_detectable_gap(3, 100, 0.2, limit=0.1).reason
    assert minimum_detectable_gap(0, 5, 0.5, limit=0.1).value is None


# ---------------------------------------------------------------- spread


def test_twenty_equal_groups_of_a_hundred_show_the_spread_of_the_catalogue():
    rng = np.random.default_rng(4)
    estimate = largest_difference(np.repeat(np.arange(20).astype(str), 100), rng.random(2000) < 0.5)

    assert estimate.null == pytest.approx(0.186, abs=0.012)
    assert estimate.details["null_95"] == pytest.approx(0.25, abs=0.02)
    assert estimate.ladder == ()


def test_the_spread_between_groups_is_found_beyond_sampling_noise():
    rng = np.random.default_rng(1)
    rates = np.repeat([0.6, 0.7, 0.8, 0.9], 2000)
    estimate = largest_difference(np.repeat(list("abcd"), 2000), rng.random(8000) < rates, resamples=99)

    assert estimate.details["between_group_sd"] == pytest.approx(np.std([0.6, 0.7, 0.8, 0.9]), abs=0.01)
    assert estimate.p_value == 0.01


def test_small_groups_are_left_out_of_the_spread_by_name():
    estimate = largest_difference(["a"] * 5 + ["b"] * 5 + ["c"], np.ones(11), minimum=2, resamples=9)

    assert estimate.details["left_out"] == ["c"]
    assert estimate.value == 0


@pytest.mark.parametrize("crossing", [False, True])
def test_labels_of_clusters_are_permuted_whole_or_inside(rng, crossing):
    groups = np.repeat(["a", "b"], 60)
    cluster = np.arange(120) % 12 if crossing else np.arange(120) // 10
    bad = rng.random(12) < 0.5
    estimate = largest_difference(groups, ~bad[cluster], cluster=cluster, resamples=99)

    assert estimate.clusters == 12
    assert estimate.p_value > 0.01


# ---------------------------------------------------------------- change of a gap


def test_the_same_model_twice_changes_no_gap(population):
    groups, labels, predicted = population
    for change in gap_changes(groups, labels == predicted, labels == predicted, resamples=99):
        assert change.change.value == 0
        assert change.change.p_value == 1


def test_parts_of_a_gap_add_up(population, rng):
    groups, labels, predicted = population
    models = [labels == predicted, rng.random(400) < 0.7, rng.random(400) < 0.6]
    first = {c.group: c.change.value for c in gap_changes(groups, models[0], models[1], resamples=9)}
    second = {c.group: c.change.value for c in gap_changes(groups, models[1], models[2], resamples=9)}
    for gap, last in zip(binary_gaps(groups, models[0]), binary_gaps(groups, models[2]), strict=True):
        assert first[gap.group] + second[gap.group] + last.gap.value == pytest.approx(gap.gap.value, abs=1e-12)


def test_the_interval_of_a_change_is_put_together_from_paired_ones(population, rng):
    groups, labels, predicted = population
    first, second = labels == predicted, rng.random(400) < 0.7
    change = gap_changes(groups, first, second, resamples=9)[0].change
    inside = groups == "a"
    expected = newcombe(paired_rate_difference(first[inside], second[inside]), paired_rate_difference(first[~inside], second[~inside]))

    assert change.interval() == expected.interval()


@pytest.mark.parametrize("clusters", ["inside", "across"])
def test_a_planted_change_is_found_with_clusters(clusters):
    rng = np.random.default_rng(0)
    groups = np.repeat(["a", "b"], 400)
    first = rng.random(800) < np.repeat([0.6, 0.9], 400)
    second = rng.random(800) < 0.9
    cluster = np.arange(800) // 8 if clusters == "inside" else np.arange(800) % 50
    change = gap_changes(groups, first, second, cluster=cluster, resamples=199)[0].change

    assert change.p_value == 0.005
    assert change.interval()[1] < -0.1
    assert interval_at(change.ladder, 0.01)[1] < -0.05


# ---------------------------------------------------------------- degenerate inputs


def test_all_groups_missing_leaves_no_rest():
    gaps = binary_gaps(np.array([None, np.nan, ""], dtype=object), [1, 0, 1])

    assert [g.group for g in gaps] == ["(missing)"]
    assert gaps[0].gap.reason == "no rows in the rest"


@pytest.mark.parametrize("n", range(6))
@pytest.mark.parametrize("cluster", [None, "one", "pairs"])
@pytest.mark.parametrize("positives", [0, 1, 9])
@pytest.mark.filterwarnings("error")
def test_tiny_inputs_never_raise_and_undefined_is_never_zero(n, cluster, positives):
    ids = {None: None, "one": np.zeros(n), "pairs": np.arange(n) // 2}[cluster]
    groups = np.array((["a", None, "b", "a", "c"] * 2)[:n], dtype=object)
    labels, predicted = (np.arange(n) < positives).astype(int), np.arange(n) % 2
    rates = group_rates(groups, labels, predicted, positive=1, nll_rows=np.arange(n), cluster=ids, declared=("z",))
    for group in rates:
        for metric, estimate in group.rates.items():
            assert (estimate.value is None) == (estimate.n == 0), metric
            assert estimate.value is not None or estimate.reason
    for metric in ("accuracy", "selection_rate", "tpr", "fpr", "precision", "base_rate"):
        for gap in group_gaps(groups, labels, predicted, metric=metric, positive=1, cluster=ids, declared=("z",)):
            assert (gap.gap.value is None) == (gap.inside.value is None or gap.outside.value is None)
            assert gap.gap.value is not None or gap.gap.reason
    largest_difference(groups, predicted, cluster=ids, resamples=9)
    for change in gap_changes(groups, labels, predicted, cluster=ids, resamples=9):
        assert change.change.value is not None or change.change.reason
