"""TLA609: the ratio table is that of its sources, equal rates need the rows that were promised, and it runs only where it is asked for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tests.checks.arrays import ArrayEvidence, measure
from tl_audit.checks.selection_ratio import selection_rate_ratio
from tl_audit.errors import DataError, NotEvaluated
from tl_audit.measures.selection_ratio import above_median, impact_ratios
from tl_audit.policy import judge, load_policy
from tl_audit.policy.limits import profiles_adding
from tl_audit.records.findings import Finding
from tl_audit.records.metrics import Measurement


def counts(**of: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Categories and outcomes of (selected, rows) by category."""
    names = np.concatenate([[name] * n for name, (_, n) in of.items()])
    return names, np.concatenate([np.arange(n) < k for k, n in of.values()])


def evidence_of(groups: dict[str, np.ndarray], selected: np.ndarray, scores: np.ndarray | None = None, cluster=None) -> ArrayEvidence:
    evidence = ArrayEvidence(("no", "yes")).domain("target", selected.astype(int), groups, cluster)
    evidence.positive_class = "yes"
    if scores is None:
        return evidence.outputs("adapted", "target", selected.astype(int))
    return evidence.outputs("adapted", "target", probabilities=np.stack([1 - scores, scores], axis=1))


def judged(measurement: Measurement, profile: str) -> Finding:
    one = selection_rate_ratio
    return judge(one.code, one.title, one.section, one.severity, measurement, load_policy(profile))


# ---------------------------------------------------------------- the figures of the sources


def test_four_rates_of_a_thousand_give_24_over_27_and_no_significant_difference():
    found = impact_ratios(*counts(a=(250, 1000), b=(270, 1000), c=(240, 1000), d=(260, 1000)))
    assert (found.reference, found.known, found.unknown) == ("b", 4000, 0)
    assert found["c"].ratio.value == pytest.approx(24 / 27, abs=1e-12)
    assert stats.chi2_contingency([[250, 270, 240, 260], [750, 730, 760, 740]])[1] > 0.05
    assert all(one.ratio.p_value > 0.05 for one in found.categories if one.category != "b")


def test_the_scoring_example_of_the_local_law_has_its_rates_its_ratio_and_no_clear_difference():
    names, hit = counts(male=(50, 92), female=(34, 76))
    scores = np.where(hit, 0.9, 0.1) + np.linspace(0, 0.05, len(hit))
    found = impact_ratios(names, above_median(scores))
    male, female = found["male"], found["female"]
    assert [(one.n, round(100 * one.rate.value, 1), round(one.ratio.value, 2)) for one in (male, female)] == [
        (92, 54.3, 1.0),
        (76, 44.7, 0.82),
    ]
    assert [round(bound, 2) for bound in female.ratio.interval(0.95)] == [0.60, 1.12]
    assert round(female.ratio.p_value, 2) == 0.28
    assert female.ratio.p_value == pytest.approx(stats.chi2_contingency([[34, 42], [50, 42]])[1], abs=1e-12)
    assert abs(female.deviations) < 2


@pytest.mark.parametrize(("rate", "n"), [(0.1, 1389), (0.3, 361), (0.5, 155), (0.8, 39)])
def test_equal_rates_clear_four_fifths_with_the_rows_that_are_promised_and_with_a_tenth_less_do_not(rate, n):
    def lower(size: int) -> float:
        # the rate itself, not the nearest count: the figures are those of the formula
        from tl_audit.measures.estimate import normal_quantile

        return float(np.exp(-normal_quantile(0.05) * np.sqrt(2 * (1 - rate) / (rate * size))))

    assert lower(n) >= 0.8 > lower(n - 1)
    k = round(rate * 10 * n)
    found = impact_ratios(*counts(a=(k, 10 * n), b=(k, 10 * n)))["b"].ratio
    assert found.interval(0.95)[0] == pytest.approx(np.exp(np.log(lower(n)) / np.sqrt(10)), abs=2e-3)


def test_ratio_and_interval_are_those_of_scipy_relative_risk():
    found = impact_ratios(*counts(a=(40, 120), b=(70, 150)))["a"].ratio
    other = stats.contingency.relative_risk(40, 120, 70, 150)
    assert found.value == pytest.approx(other.relative_risk, abs=1e-12)
    assert found.interval(0.95) == pytest.approx(tuple(other.confidence_interval(0.95)), abs=1e-9)


def test_below_thirty_rows_the_exact_test_speaks():
    found = impact_ratios(*counts(a=(18, 25), b=(30, 60)))["b"]
    assert found.test == "Fisher's exact"
    assert found.ratio.p_value == pytest.approx(stats.fisher_exact([[18, 7], [30, 30]])[1], abs=1e-9)


def test_ratios_agree_with_fairlearn(rng):
    from fairlearn.metrics import MetricFrame, demographic_parity_ratio, selection_rate

    groups, hit = rng.choice(list("abc"), 900), rng.random(900) < 0.4
    found = impact_ratios(groups, hit)
    frame = MetricFrame(metrics=selection_rate, y_true=hit, y_pred=hit, sensitive_features=groups)
    assert {one.category: one.rate.value for one in found.categories} == pytest.approx(frame.by_group.to_dict(), abs=1e-12)
    lowest = min(one.ratio.value for one in found.categories)
    assert lowest == pytest.approx(demographic_parity_ratio(hit, hit, sensitive_features=groups), abs=1e-12)


# ---------------------------------------------------------------- who is compared


def test_unknowns_are_counted_and_in_no_rate():
    names, hit = counts(a=(50, 100), b=(40, 100))
    whole = impact_ratios(names, hit)
    found = impact_ratios(np.concatenate([names, ["(missing)"] * 30]), np.concatenate([hit, np.ones(30, dtype=bool)]))
    assert (found.unknown, found.known) == (30, 200)
    assert found.categories == whole.categories


def test_a_category_below_two_per_cent_is_listed_with_n_and_rate_and_never_the_reference():
    found = impact_ratios(*counts(a=(50, 500), b=(60, 500), tiny=(10, 10)))
    assert found.reference == "b"
    assert (found["tiny"].left_out, found["tiny"].n, found["tiny"].rate.value, found["tiny"].ratio.value) == (True, 10, 1.0, None)
    assert "below 2%" in found["tiny"].ratio.reason
    exactly = impact_ratios(*counts(a=(50, 490), tiny=(10, 10)))
    assert exactly.reference == "tiny"


def test_nobody_selected_has_a_ratio_of_0_with_an_upper_end_and_breaks_the_limit():
    measurement = measure(selection_rate_ratio, evidence_of(*_one(counts(a=(50, 100), b=(0, 100)))), "adapted")
    ratio = measurement.select("impact_ratio", of="selection", sex="b")
    assert ratio.value == 0.0
    assert 0 < ratio.interval[1] < 0.2
    assert judged(measurement, "us-employment").status == "fail"


def test_nobody_selected_breaks_the_limit_over_clusters_too_and_fewer_clusters_say_less():
    groups, hit = counts(a=(120, 240), b=(0, 240))
    plain = impact_ratios(groups, hit)["b"].ratio.interval()
    several = impact_ratios(groups, hit, cluster=np.arange(480) // 4)["b"].ratio
    few = impact_ratios(groups, hit, cluster=np.arange(480) // 40)["b"].ratio
    assert several.value == few.value == 0.0
    assert 0 < plain[1] < several.interval()[1] < few.interval()[1]
    assert several.p_value < 0.01
    found = measure(selection_rate_ratio, evidence_of({"sex": groups}, hit, cluster=np.arange(480) // 4), "adapted")
    assert judged(found, "us-employment").status == "fail"
    alone = impact_ratios(groups, hit, cluster=np.where(np.arange(480) < 240, np.arange(480) // 4, 999))["b"].ratio
    assert alone.interval() is None
    assert "one cluster" in alone.reason


def _one(of: tuple[np.ndarray, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    return {"sex": of[0]}, of[1]


def test_degenerate_outcomes_are_undefined_and_never_a_ratio(rng):
    everyone, nobody = impact_ratios(["a", "b"] * 40, np.ones(80)), impact_ratios(["a", "b"] * 40, np.zeros(80))
    assert everyone["b"].ratio.value == 1.0
    assert everyone["b"].ratio.reason
    assert nobody["b"].ratio.value is None
    assert nobody["b"].ratio.reason == "a ratio needs an event on both sides"
    assert impact_ratios(["a"] * 5, np.ones(5)).categories[0].ratio.value == 1.0
    assert impact_ratios([], []).categories == ()
    assert not above_median(np.full(9, 0.3)).any()
    with pytest.raises(DataError, match="one finite number"):
        above_median([0.1, np.nan])


def test_row_order_and_names_change_nothing_but_names(rng):
    groups, hit = rng.choice(list("abc"), 400), rng.random(400) < 0.5
    order = rng.permutation(400)
    first, second = impact_ratios(groups, hit), impact_ratios(groups[order], hit[order])
    assert first == second
    renamed = impact_ratios(np.array([f"x{g}" for g in groups]), hit)
    assert [one.ratio.value for one in renamed.categories] == [one.ratio.value for one in first.categories]


# ---------------------------------------------------------------- chance and clusters


def test_over_clusters_intervals_are_wider_and_cover_while_rows_alone_do_not():
    rng = np.random.default_rng(5)
    held = {"rows": 0, "clusters": 0, "many": 0}
    rounds = 200
    for _ in range(rounds):
        for g, name in ((10, "clusters"), (30, "many")):
            cluster = np.repeat(np.arange(2 * g), 10)
            hit = rng.random(20 * g) < rng.beta(3, 3, 2 * g)[cluster]
            groups = np.where(cluster < g, "a", "b")
            found = impact_ratios(groups, hit, cluster=cluster, resamples=300).categories[1].ratio
            held[name] += found.interval(0.95)[0] <= 1.0 <= found.interval(0.95)[1]
            if name == "clusters":
                plain = impact_ratios(groups, hit).categories[1].ratio
                held["rows"] += plain.interval(0.95)[1] >= 1.0
    assert held["rows"] / rounds < 0.85
    assert held["clusters"] / rounds > 0.92
    assert held["many"] / rounds > 0.90


def test_equal_rates_are_seldom_called_different_though_the_reference_is_chosen_on_the_data():
    rng = np.random.default_rng(2)
    names = np.repeat(["a", "b"], 200)
    rejected = np.mean([impact_ratios(names, rng.random(400) < 0.3).categories[1].ratio.p_value < 0.05 for _ in range(1000)])
    assert rejected < 0.063  # two categories: the choice only turns the sign, and the test is two-sided


def test_a_rate_of_half_the_others_breaks_the_limit_and_equal_rates_never_do():
    rng = np.random.default_rng(3)
    found, accused = 0, 0
    for _ in range(60):
        groups = np.repeat(["a", "b", "c"], 200)
        for share, planted in ((0.25, True), (0.5, False)):
            hit = rng.random(600) < np.where(groups == "c", share, 0.5)
            status = judged(measure(selection_rate_ratio, evidence_of({"sex": groups}, hit), "adapted"), "us-employment").status
            found += planted and status == "fail"
            accused += (not planted) and status in ("fail", "warn")
    assert found / 60 >= 0.9
    assert accused / 60 <= 0.05


# ---------------------------------------------------------------- the check


def test_cells_of_an_intersection_add_up_to_the_marginals(rng):
    sex, race = rng.choice(["f", "m", "(missing)"], 600), rng.choice(["x", "y", "z"], 600)
    hit = rng.random(600) < 0.4
    found = measure(selection_rate_ratio, evidence_of({"sex": sex, "race": race}, hit), "adapted")
    table = {e.id: e.to_rows() for e in found.exhibits if e.kind == "Table"}
    cells = [row for row in table["selection-sex-and-race"] if row["category"] != "unknown"]
    marginal = {row["category"].removesuffix(" (reference)"): row for row in table["selection-sex"]}
    for name in ("f", "m"):
        mine = [row for row in cells if row["category"].startswith(f"{name} and")]
        assert sum(row["n"] for row in mine) == marginal[name]["n"]
        assert sum(int(row["selected"]) for row in mine) == int(marginal[name]["selected"])
    unknown = int((sex == "(missing)").sum())
    assert next(row for row in table["selection-sex-and-race"] if row["category"] == "unknown")["n"] == unknown
    assert found.select("unknown_rows", column="sex").value == unknown


def test_scores_are_held_against_the_median_of_the_sample(rng):
    sex = np.repeat(["f", "m"], 100)
    scores = np.clip(np.where(sex == "f", 0.2, 0.3) + 0.05 * rng.standard_normal(200), 0, 1)
    found = measure(selection_rate_ratio, evidence_of({"sex": sex}, np.zeros(200, dtype=bool), scores), "adapted")
    assert found.select("selection_rate", sex="f", of="selection").value == 0.0  # nobody passes one half
    above = scores > np.median(scores)
    assert found.select("scoring_rate", sex="f", of="score").value == pytest.approx(above[:100].mean())
    assert found.select("impact_ratio", sex="f", of="score").value == pytest.approx(above[:100].mean() / above[100:].mean())


def test_no_sentence_claims_what_only_people_may_say(rng):
    groups, hit = rng.choice(["f", "m"], 300), rng.random(300) < 0.4
    finding = judged(measure(selection_rate_ratio, evidence_of({"sex": groups}, hit), "adapted"), "us-employment")
    text = finding.model_dump_json().lower()
    for word in ("compliant", "certified", "unbiased", "bias-free", "adverse impact ratio"):
        assert word not in text
    assert "does not replace an independent audit" in text


def test_the_profile_without_a_pass_mark_judges_nothing(rng):
    measurement = measure(selection_rate_ratio, evidence_of(*_one(counts(a=(90, 100), b=(10, 100)))), "adapted")
    assert judged(measurement, "nyc-ll144").status == "info"
    assert judged(measurement, "us-employment").status == "fail"


def test_without_a_positive_class_the_missing_input_is_named(rng):
    evidence = evidence_of({"sex": rng.choice(["f", "m"], 50)}, np.ones(50, dtype=bool))
    evidence.positive_class = None
    with pytest.raises(NotEvaluated, match="positive"):
        measure(selection_rate_ratio, evidence, "adapted")


# ---------------------------------------------------------------- only where it is asked for


def test_the_profiles_that_ask_for_it_are_the_two():
    assert profiles_adding("TLA609") == ("nyc-ll144", "us-employment")
    assert not load_policy("default").adds("TLA609")
    assert load_policy("default").resolved.keys() == load_policy("strict").resolved.keys()
    assert "add_checks" not in load_policy("default").resolved  # policies without it keep their hash


def test_the_record_holds_it_only_where_the_policy_asks_and_selecting_it_elsewhere_says_where():
    from tl_audit.checks import BUILTIN
    from tl_audit.errors import ConfigError
    from tl_audit.runner import asked_for

    assert "TLA609" in {one.code for one in BUILTIN}
    assert "TLA609" not in {one.code for one in asked_for(BUILTIN, load_policy("strict"))}
    assert [one.code for one in asked_for(BUILTIN, load_policy("nyc-ll144"))] == [one.code for one in BUILTIN]
    with pytest.raises(ConfigError, match=r"use the policy nyc-ll144 or us-employment, or a policy of your own with add_checks"):
        asked_for(BUILTIN, load_policy("default"), ["TLA609"])


def test_a_policy_file_can_ask_for_it_and_a_mistyped_code_is_found(tmp_path):
    import datetime

    from tl_audit.checks import BUILTIN
    from tl_audit.policy import lint

    known = [one.code for one in BUILTIN]
    for code, wrong in (("TLA609", []), ("TLA69", ["add_checks: this installation has no check TLA69"])):
        path = tmp_path / f"{code}.toml"
        path.write_text(f'[policy]\nid = "ours"\nextends = "default"\nadd_checks = ["{code}"]\n', encoding="utf-8")
        policy = load_policy(path)
        assert policy.adds(code)
        errors = [r.text for r in lint(policy, today=datetime.date(2026, 1, 1), known_checks=known) if r.level == "error"]
        assert [text.split(";")[0].split(" -")[0][: len(w)] for text, w in zip(errors, wrong, strict=True)] == wrong


def test_the_list_of_checks_says_where_it_runs(capsys):
    from tl_audit import cli

    assert cli.main(["checks"]) == 0
    assert "Selection-rate ratio (profiles nyc-ll144, us-employment)" in capsys.readouterr().out
    assert cli.main(["checks", "TLA609"]) == 0
    said = capsys.readouterr().out
    assert "only where the policy asks for it" in said
    assert "us-employment: impact_ratio of=selection: fail min 0.8" in said
    assert cli.main(["policy", "show", "nyc-ll144"]) == 0
    assert "adds     TLA609" in capsys.readouterr().out
