"""Metrics of groups from cell counts: against rows, against fairlearn, and the bootstrap of cells against one of rows."""

from __future__ import annotations

import numpy as np
import pytest

from tl_audit.errors import DataError
from tl_audit.measures import cells
from tl_audit.measures.cells import METRICS, group_metrics
from tl_audit.measures.fairness import group_rates


def draw(n=400, seed=0):
    rng = np.random.default_rng(seed)
    site, sex = rng.integers(0, 3, n), np.where(rng.random(n) < 0.5, "f", "m")
    y = rng.integers(0, 2, n)
    p = np.where(rng.random(n) < 0.7 + 0.1 * (site == 1), y, 1 - y)
    return y, p, {"site": np.array(["a", "b", "c"])[site], "sex": sex}


def found_by(result, by, metric):
    return next(one for one in result if one.by == by and one.metric == metric)


def test_four_rows_by_hand():
    result = group_metrics([1, 1, 0, 0], [1, 0, 0, 1], {"g": ["a", "a", "b", "b"]}, positive=1, resamples=50)

    assert [v.value for v in found_by(result, ("g",), "accuracy").values] == [0.5, 0.5]
    assert [v.value for v in found_by(result, ("g",), "tpr").values] == [0.5, None]
    assert "no denominator for tpr in b" in found_by(result, ("g",), "tpr").values[1].reason
    assert found_by(result, ("g",), "tpr").difference.reason == "fewer than two groups with a value"
    assert [v.value for v in found_by(result, ("g",), "f1").values] == [pytest.approx(2 / 3), 0.0]
    assert found_by(result, ("g",), "f1").ratio.value == 0.0
    assert found_by(result, ("g",), "accuracy").ratio.value == 1.0


def test_rates_are_those_of_the_rows_with_wilson_intervals():
    y, p, groups = draw()
    result = group_metrics(y, p, groups, positive=1, resamples=20)

    for name in groups:
        for rates, values in zip(
            group_rates(groups[name], y, p, positive=1),
            zip(*[found_by(result, (name,), m).values for m in METRICS[:6]], strict=True),
            strict=True,
        ):
            for metric, value in zip(METRICS[:6], values, strict=True):
                assert (value.value, value.ladder) == (rates.rates[metric].value, rates.rates[metric].ladder)


def test_all_metrics_and_gaps_are_those_of_fairlearn():
    from fairlearn.metrics import MetricFrame, false_positive_rate, selection_rate, true_positive_rate
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, precision_score

    y, p, groups = draw(900)
    functions = {
        "accuracy": accuracy_score, "selection_rate": selection_rate, "tpr": true_positive_rate, "fpr": false_positive_rate,
        "precision": precision_score, "f1": f1_score, "balanced_accuracy": balanced_accuracy_score,
    }  # fmt: skip
    import pandas as pd

    result = group_metrics(y, p, groups, positive=1, resamples=20)
    for by in (("site",), ("sex",), ("site", "sex")):
        frame = MetricFrame(metrics=functions, y_true=y, y_pred=p, sensitive_features=pd.DataFrame({name: groups[name] for name in by}))
        for metric in functions:
            ours = found_by(result, by, metric)
            theirs = frame.by_group[metric]
            assert [v.value for v in ours.values] == pytest.approx([theirs[g if len(g) > 1 else g[0]] for g in ours.groups])
            assert ours.difference.value == pytest.approx(frame.difference()[metric])
            assert ours.ratio.value == pytest.approx(frame.ratio()[metric])


def test_the_bootstrap_of_cells_is_that_of_rows():
    y, p, groups = draw(300)
    result = group_metrics(y, p, groups, positive=1, metrics=["f1", "tpr"], resamples=4000)
    rng, spreads, scores = np.random.default_rng(1), [], []
    for _ in range(4000):
        rows = rng.integers(0, 300, 300)
        a, b, site = y[rows], p[rows], groups["site"][rows]
        rates = [b[(a == 1) & (site == g)].mean() for g in "abc"]
        spreads.append(max(rates) - min(rates))
        inside = site == "a"
        scores.append(2 * (a & b)[inside].sum() / (a[inside].sum() + b[inside].sum()))

    gap, f1 = found_by(result, ("site",), "tpr").difference, found_by(result, ("site",), "f1").values[0]
    assert gap.interval() == pytest.approx(np.quantile(spreads, [0.025, 0.975]), abs=0.01)
    assert gap.details["bias"] == pytest.approx(np.mean(spreads) - gap.value, abs=0.004)
    assert f1.interval() == pytest.approx(np.quantile(scores, [0.025, 0.975]), abs=0.015)


def test_clusters_are_drawn_whole():
    y, p, groups = draw(400)
    ids = np.arange(400) // 8
    widths = {}
    for kind, cluster in (("rows", None), ("ones", np.arange(400)), ("clusters", ids)):
        # the rows of a cluster are one row eight times
        first = (np.arange(400) // 8) * 8 if kind == "clusters" else np.arange(400)
        own = {name: values[first] for name, values in groups.items()}
        gap = found_by(group_metrics(y[first], p[first], own, cluster=cluster, resamples=2000), ("sex",), "accuracy").difference
        widths[kind] = np.diff(gap.interval())[0]

    assert widths["ones"] == pytest.approx(widths["rows"], rel=0.1)
    assert 2.0 < widths["clusters"] / widths["rows"] < 4.5  # √8 = 2.8 where the gap is far from 0


def test_pools_of_many_clusters_keep_the_width(monkeypatch):
    y, p, groups = draw(3000)
    ids = np.arange(3000) // 2
    whole = group_metrics(y, p, groups, positive=1, cluster=ids, resamples=2000)
    monkeypatch.setattr(cells, "MANY_UNITS", 1000)
    monkeypatch.setattr(cells, "POOLS", 500)
    pooled = group_metrics(y, p, groups, positive=1, cluster=ids, resamples=2000)

    for first, second in zip(whole, pooled, strict=True):
        for a, b in zip(first.values, second.values, strict=True):
            assert np.diff(a.interval()) == pytest.approx(np.diff(b.interval()), rel=0.2)


def test_intervals_of_a_rate_cover_it(rng):
    hits = 0
    for seed in range(200):
        draws = np.random.default_rng(seed)
        y, p = draws.random(300) < 0.5, draws.random(300) < 0.4
        found = group_metrics(y, p, {"g": np.arange(300) % 2}, positive=True, metrics=["balanced_accuracy"], resamples=200, seed=seed)
        low, high = found[0].values[0].interval()
        hits += low <= 0.5 <= high
    assert 0.89 <= hits / 200 <= 0.99


def test_names_and_order_of_rows_change_nothing(rng):
    y, p, groups = draw()
    order = rng.permutation(400)
    one = group_metrics(y, p, groups, positive=1, resamples=100)
    other = group_metrics(
        np.array(["no", "yes"])[y[order]], np.array(["no", "yes"], dtype=object)[p[order]],
        {name: values[order].astype(object) for name, values in groups.items()}, positive="yes", resamples=100,
    )  # fmt: skip

    for first, second in zip(one, other, strict=True):
        assert (first.groups, [v.value for v in first.values]) == (second.groups, [v.value for v in second.values])
        assert first.difference.value == second.difference.value


def test_whole_numbers_and_text_name_the_same_groups():
    y, p, _ = draw(50)
    codes = np.arange(50) % 12
    one, other = (group_metrics(y, p, {"g": values}, resamples=10)[0] for values in (codes, codes.astype(str)))

    assert one.groups == other.groups
    assert [v.value for v in one.values] == [v.value for v in other.values]


def test_degenerate_inputs_are_told():
    assert group_metrics([], [], {"g": []}, resamples=10)[0].difference.reason == "no rows"
    alone = group_metrics([1], [1], {"g": ["a"]}, positive=1, resamples=10)
    assert found_by(alone, ("g",), "accuracy").difference.reason == "fewer than two groups with a value"
    never = group_metrics([0, 1], [0, 0], {"g": ["a", "b"]}, positive=7, resamples=10)
    assert found_by(never, ("g",), "tpr").values[0].value is None
    few = group_metrics([0, 1, 1, 0], [0, 0, 1, 1], {"g": ["a", "b", "a", "b"]}, cluster=[0, 0, 1, 1], resamples=10)
    assert "2 clusters: a bootstrap needs 30" in few[0].values[0].reason
    missing = group_metrics([0, 1], [0, 1], {"g": np.array(["a", None], dtype=object)}, resamples=10)
    assert missing[0].groups == (("a",), ("(missing)",))


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(DataError, match="no attribute"):
        group_metrics([0], [0], {})
    with pytest.raises(DataError, match="no metric 'auc'; known: accuracy"):
        group_metrics([0], [0], {"g": ["a"]}, metrics=["auc"])
    with pytest.raises(DataError, match="tpr needs a positive class"):
        group_metrics([0], [0], {"g": ["a"]}, metrics=["tpr"])
    with pytest.raises(DataError, match="must be the same samples"):
        group_metrics([0, 1], [0, 1], {"g": ["a"]})


def test_more_combinations_than_memory_holds_are_refused_before_it_is_taken(rng):
    y = rng.integers(0, 2, 400)
    groups = {f"attribute {k}": np.arange(400) for k in range(8)}  # 400⁸ does not even fit an integer
    with pytest.raises(DataError, match="name fewer attributes at once"):
        group_metrics(y, y, groups, positive=1)
    assert group_metrics(y, y, {"one": np.arange(400)}, positive=1, metrics=["accuracy"])[0].values
