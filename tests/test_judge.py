"""The judge: the cases of CHECKS.md 1.2, a dull replica, correction for many groups, minima, words."""

from __future__ import annotations

import datetime
import math
import re

import numpy as np
import pytest
from scipy.stats import norm

from tl_audit.checks.base import exact, metric
from tl_audit.measures import intervals
from tl_audit.measures.estimate import Estimate, build_ladder
from tl_audit.policy import Bound, Limit, Policy, Review, Rules, Waiver, exit_code, gate, judge
from tl_audit.policy.judge import POWER_FACTOR
from tl_audit.records.findings import Finding
from tl_audit.records.metrics import Measurement, Metric

TODAY = datetime.date(2026, 11, 21)
CODE = "TLA999"


def normal(value: float, half: float, *, name: str = "loss", slice: dict[str, str] | None = None, **extra: object) -> Metric:
    """A metric whose intervals are those of a normal estimate with this 95 % half-width."""
    unit = half / norm.isf(0.025)
    ladder = build_ladder(lambda alpha: (value - unit * norm.isf(alpha / 2), value + unit * norm.isf(alpha / 2)))
    made = metric(name, Estimate(value, 400, ladder=ladder), rules=Rules(), slice=slice)
    return made.model_copy(update=extra)


def policy(*limits: Limit, **extra: object) -> Policy:
    return Policy(id="test", limits=limits, **extra)


def limit(warn: float | None = None, fail: float | None = None, *, kind: str = "max", **extra: object) -> Limit:
    bounds = {level: Bound.model_validate({kind: x}) for level, x in (("warn", warn), ("fail", fail)) if x is not None}
    return Limit(check=CODE, metric="loss", rationale="because", origin="ours", **bounds, **extra)


def found(metrics: Metric | list[Metric], *limits: Limit, **extra: object) -> Finding:
    metrics = metrics if isinstance(metrics, list) else [metrics]
    measurement = Measurement(summary="measured", metrics=tuple(metrics))
    return judge(CODE, "Title", "performance", "medium", measurement, policy(*limits, **extra), today=TODAY)


@pytest.mark.parametrize(
    ("value", "half", "status"),
    [
        (0.30, 0.05, "fail"),  # [0.25, 0.35] beyond 0.20
        (0.15, 0.03, "warn"),  # [0.12, 0.18] beyond 0.10, failure excluded
        (0.18, 0.05, "warn"),  # [0.13, 0.23] beyond 0.10, failure open: at least a warning
        (0.15, 0.10, "inconclusive"),  # [0.05, 0.25] neither
        (0.12, 0.04, "inconclusive"),  # [0.08, 0.16] failure excluded, estimate beyond the warning limit
        (0.08, 0.04, "pass"),  # [0.04, 0.12] failure excluded, warning open, estimate within
        (0.05, 0.03, "pass"),  # [0.02, 0.08] both excluded
        (0.08, 0.14, "inconclusive"),  # [-0.06, 0.22] failure open
    ],
)
@pytest.mark.parametrize("mirrored", [False, True])
def test_the_order_of_statuses_is_that_of_the_rules(value: float, half: float, status: str, mirrored: bool) -> None:
    sign = -1 if mirrored else 1
    finding = found(normal(sign * value, half), limit(sign * 0.10, sign * 0.20, kind="min" if mirrored else "max"))
    assert finding.status == status


def test_a_true_gap_twice_the_warning_limit_is_not_hidden_as_inconclusive() -> None:
    assert found(normal(0.20, 0.03), limit(0.10, 0.20)).status == "warn"
    assert "failure is not excluded" in found(normal(0.20, 0.03), limit(0.10, 0.20)).reason


def test_a_signed_gap_is_judged_on_both_sides() -> None:
    for sign in (1, -1):
        assert found(normal(sign * 0.30, 0.05), limit(0.10, 0.20, kind="abs")).status == "fail"
        assert found(normal(sign * 0.05, 0.03), limit(0.10, 0.20, kind="abs")).status == "pass"
    assert found(normal(0.0, 0.25), limit(0.10, 0.20, kind="abs")).status == "inconclusive"


def test_a_pass_with_an_open_warning_says_so() -> None:
    finding = found(normal(0.08, 0.04), limit(0.10, 0.20))
    assert finding.warn_excluded is False
    assert "A warning is not excluded" in finding.reason
    assert "0.12" in finding.reason
    assert found(normal(0.05, 0.03), limit(0.10, 0.20)).warn_excluded is True


def test_a_warning_alone_must_exclude_its_guard_in_order_to_pass() -> None:
    guarded = limit(0.10, guard=Bound(max=0.20))
    assert found(normal(0.08, 0.08), guarded).status == "pass"
    assert found(normal(0.08, 0.14), guarded).status == "inconclusive"
    assert found(normal(0.08, 0.08), limit(0.10)).status == "inconclusive", "without a guard the limit itself must be excluded"
    assert found(normal(0.05, 0.03), limit(0.10)).status == "pass"


def test_without_a_limit_nothing_is_judged() -> None:
    finding = found(normal(0.9, 0.01))
    assert finding.status == "info"
    assert finding.limits == ()
    assert finding.warn_excluded is None


def test_a_dull_replica_gives_the_same_status_for_random_metrics() -> None:
    rng = np.random.default_rng(7)
    for _ in range(300):
        value, half = float(rng.normal(0.12, 0.12)), float(rng.uniform(0.005, 0.2))
        warn, fail = sorted(rng.uniform(0, 0.3, size=2))
        low, high = value - half, value + half
        if low > fail:
            expected = "fail"
        elif low > warn:
            expected = "warn"
        elif high > fail or (high > warn and value > warn):
            expected = "inconclusive"
        else:
            expected = "pass"
        assert found(normal(value, half), limit(float(warn), float(fail))).status == expected, (value, half, warn, fail)


def test_a_smaller_loss_is_never_judged_worse() -> None:
    badness = {"pass": 0, "inconclusive": 1, "warn": 2, "fail": 3}
    seen = [badness[found(normal(float(v), 0.04), limit(0.10, 0.20)).status] for v in np.linspace(0, 0.4, 81)]
    assert seen == sorted(seen)
    assert set(seen) == {0, 1, 2, 3}


# -- many groups ----------------------------------------------------------------------------------------------------------


def gaps(correct: list[np.ndarray]) -> list[Metric]:
    metrics = []
    for i, mine in enumerate(correct):
        rest = np.concatenate([x for j, x in enumerate(correct) if j != i])
        estimate = intervals.rate_difference(mine, rest)
        n = {"group": len(mine), "rest": len(rest)}
        metrics.append(metric("loss", estimate, rules=Rules(), slice={"site": str(i)}, n=n))
    return metrics


def test_eight_equal_groups_of_a_hundred_never_fail() -> None:
    rng = np.random.default_rng(3)
    one = limit(fail=0.10, kind="abs")
    fails = sum(found(gaps([rng.random(100) < 0.8 for _ in range(8)]), one).status == "fail" for _ in range(200))
    assert fails == 0


def test_one_group_that_is_far_away_is_found() -> None:
    rng = np.random.default_rng(4)
    one = limit(fail=0.10, kind="abs")
    rates = [0.8] * 7 + [0.5]
    fails = sum(found(gaps([rng.random(100) < r for r in rates]), one).status == "fail" for _ in range(40))
    assert fails >= 32


def test_breaking_is_corrected_for_many_slices_and_meeting_is_not() -> None:
    near = normal(0.15, 0.045, slice={"site": "a"})  # p about 0.03 alone
    rest = [normal(0.0, 0.045, slice={"site": str(i)}) for i in range(9)]
    assert found([near], limit(fail=0.10)).status == "fail"
    together = found([near, *rest], limit(fail=0.10))
    assert together.status == "inconclusive"
    first = together.limits[0]
    assert first.p_limit is not None
    assert first.p_limit_adjusted == pytest.approx(10 * first.p_limit)
    assert first.interval_used is not None
    assert first.interval_used[0] < 0.10 < first.interval_used[1], "the printed interval must agree with the verdict"
    assert [o.outcome for o in together.limits[1:]] == ["met"] * 9


def test_metrics_of_different_columns_are_different_families() -> None:
    near = normal(0.15, 0.045, slice={"sex": "f"})
    others = [normal(0.0, 0.045, slice={"site": str(i)}) for i in range(9)]
    assert found([near, *others], limit(fail=0.10)).status == "fail"


def test_a_metric_without_a_ladder_is_judged_by_its_interval() -> None:
    bare = Metric(name="loss", value=0.30, interval=(0.25, 0.35), confidence=0.95, n={"target": 400})
    assert found(bare, limit(fail=0.20)).status == "fail"
    assert found(bare, limit(fail=0.28)).status == "inconclusive"


# -- the other rules --------------------------------------------------------------------------------------------------------


def test_the_point_rule_ignores_the_interval_and_says_so() -> None:
    finding = found(normal(0.11, 0.30), limit(fail=0.10, rule="point"))
    assert finding.status == "fail"
    assert "point rule, interval ignored" in finding.reason


def test_effect_and_test_must_both_speak() -> None:
    both = limit(0.10, rule="effect+test")

    def one(value: float, p: float) -> str:
        made = Metric(name="loss", value=value, reason="no sound interval", p_value=p, p_adjusted=p, n={"target": 400})
        return found(made, both).status

    assert one(0.15, 0.01) == "warn"
    assert one(0.15, 0.20) == "inconclusive", "a large estimate alone never breaks"
    assert one(0.05, 0.001) == "pass", "a small p alone never breaks"


def test_effect_and_test_are_met_within_what_chance_reaches() -> None:
    both = limit(0.10, rule="effect+test", null_quantile="loss_null_high", null_ceiling=0.20)
    value = Metric(name="loss", value=0.15, reason="no sound interval", p_value=0.2, n={"target": 400})
    for high, status in ((0.18, "pass"), (0.25, "inconclusive"), (0.12, "inconclusive")):
        assert found([value, exact("loss_null_high", high)], both).status == status


def test_a_second_test_must_agree_where_the_limit_asks_for_it() -> None:
    needs = limit(0.10, rule="interval+test", test="other")
    for p, status in ((0.01, "warn"), (0.30, "inconclusive")):
        other = Metric(name="other", value=0.2, reason="no interval", p_value=p, n={"target": 400})
        assert found([normal(0.3, 0.02), other], needs).status == status
    assert found([normal(0.3, 0.02)], needs).status == "inconclusive"


def test_exact_counts_need_no_interval_and_no_minimum() -> None:
    assert found(exact("loss", 1, n={"target": 2}), limit(fail=0)).status == "fail"
    assert found(exact("loss", 0, n={"target": 2}), limit(fail=0)).status == "pass"


def test_what_has_no_interval_is_shown_without_a_verdict() -> None:
    made = Metric(name="loss", value=0.5, reason="it cannot cover 0", n={"target": 400})
    finding = found(made, limit(fail=0.1))
    assert finding.status == "info"
    assert finding.limits[0].outcome == "not_judged"
    assert "it cannot cover 0" in finding.reason


def test_a_figure_beyond_the_limit_without_an_interval_is_no_part_of_a_pass() -> None:
    near, far, low = (
        Metric(name="loss", value=value, reason="one cluster alone: no interval", n={"target": 400}, slice={"site": site})
        for value, site in ((0.05, "b"), (0.30, "c"), (0.02, "d"))
    )
    met = normal(0.02, 0.01, slice={"site": "a"})
    finding = found([met, far], limit(warn=0.10))
    assert finding.status == "inconclusive"
    assert "one cluster alone" in finding.reason.lower()
    assert found([met, near, low], limit(warn=0.10)).status == "pass"
    assert found([met, far], limit(fail=0.10)).status == "inconclusive"
    assert found([normal(0.5, 0.01, slice={"site": "a"}), far], limit(fail=0.10)).status == "fail"
    assert found([far], limit(fail=0.10)).status == "info"


def test_a_limit_can_count_from_the_value_by_chance() -> None:
    chance = limit(0.0, kind="min", relative_to_null=True)
    assert found(normal(0.15, 0.04, null=0.25), chance).status == "warn"
    assert found(normal(0.35, 0.04, null=0.25), chance).status == "pass"
    assert found(normal(0.35, 0.04, null=0.25), chance).limits[0].value == 0.25


def test_a_broken_limit_may_mean_that_nothing_could_be_measured() -> None:
    assert found(exact("loss", 2), limit(0, breach="inconclusive")).status == "inconclusive"
    assert found(exact("loss", 0), limit(0, breach="inconclusive")).status == "pass"


# -- minima -----------------------------------------------------------------------------------------------------------------


def test_the_smallest_denominator_decides_the_minimum() -> None:
    finding = found(normal(0.5, 0.01, n={"group": 20, "rest": 500}), limit(fail=0.1))
    assert finding.status == "inconclusive"
    assert finding.limits[0].missing_n == 10
    assert "0.5" not in finding.reason, "numbers below the minimum stay out of the reason"


def test_a_small_cell_is_not_given_away_by_the_reason() -> None:
    finding = found(normal(0.5, 0.01, n={"group": 3, "rest": 500}, slice={"sex": "x"}), limit(fail=0.1))
    assert finding.status == "inconclusive"
    assert not re.search(r"\b3\b|\b27\b", finding.reason)
    assert finding.limits[0].missing_n is None


def test_a_limit_can_only_tighten_the_minimum() -> None:
    assert found(normal(0.5, 0.01, n={"target": 80}), limit(fail=0.1, min_n=100)).status == "inconclusive"
    assert found(normal(0.5, 0.01, n={"target": 20}), limit(fail=0.1, min_n=10)).status == "inconclusive"


def test_clusters_and_events_have_minima_too() -> None:
    assert found(normal(0.5, 0.01, clusters={"target": 6}), limit(fail=0.1)).status == "inconclusive"
    assert found(normal(0.5, 0.01, events=4, nonevents=100, min_events=10), limit(fail=0.1)).status == "inconclusive"
    assert found(normal(0.5, 0.01, events=4, nonevents=100), limit(fail=0.1)).status == "fail", "not asked of every rate"


def test_a_block_may_exempt_its_minimum_and_its_undefined_values() -> None:
    small = normal(0.5, 0.01, min_n=1000)
    assert found(small, limit(fail=0.1)).status == "inconclusive"
    assert found(small, limit(fail=0.1, exempt=("minimum",))).status == "info"
    undefined = Metric(name="loss", value=None, reason="no positives")
    assert found(undefined, limit(fail=0.1)).status == "inconclusive"
    assert "no positives" in found(undefined, limit(fail=0.1)).reason
    assert found(undefined, limit(fail=0.1, exempt=("null",))).status == "info"
    both = found([undefined.model_copy(update={"slice": {"a": "b"}}), normal(0.01, 0.01)], limit(fail=0.1, exempt=("null",)))
    assert both.status == "pass"


def test_an_undecided_limit_says_how_many_more_would_settle_it() -> None:
    finding = found(normal(0.15, 0.10, n={"target": 400}), limit(fail=0.20))
    expected = math.ceil(POWER_FACTOR * 400 * (0.10 / 0.05) ** 2 - 400)
    assert finding.limits[0].missing_n == pytest.approx(expected, abs=2)
    assert str(finding.limits[0].missing_n) in finding.reason
    assert "samples" in finding.reason
    clustered = found(normal(0.15, 0.10, clusters={"target": 40}), limit(fail=0.20))
    assert "clusters would settle" in clustered.reason
    assert clustered.limits[0].missing_n == pytest.approx(math.ceil(POWER_FACTOR * 40 * 4 - 40), abs=1)


def test_a_value_at_the_limit_has_no_realistic_number() -> None:
    for value in (0.20, 0.2005):
        finding = found(normal(value, 0.05), limit(fail=0.20))
        assert finding.limits[0].missing_n is None
        assert "no realistic number" in finding.reason.lower()


def test_a_met_limit_says_what_would_have_been_found() -> None:
    finding = found(normal(0.05, 0.10), limit(fail=0.20))
    assert finding.limits[0].detectable == pytest.approx(0.20 + 1.43 * 0.10)
    assert "0.34" in finding.reason
    assert "No violation of a limit was detected" in finding.reason


# -- slices, severity, waivers, reviews -----------------------------------------------------------------------------------


def test_the_most_specific_limit_wins() -> None:
    everywhere, women, nobody = limit(fail=0.1), limit(fail=0.4, slice={"sex": "f"}), limit(fail=0.2, slice={"sex": "*"})
    rules = policy(everywhere, women, nobody)
    for slice, expected in (({"sex": "f"}, 0.4), ({"sex": "m"}, 0.2), ({"site": "a"}, 0.1), ({}, 0.1)):
        chosen = rules.limit_for(CODE, normal(0.3, 0.01, slice=slice))
        assert chosen is not None
        assert chosen.fail is not None
        assert chosen.fail.value == expected


def test_an_empty_pattern_means_that_the_column_is_absent() -> None:
    rules = policy(limit(fail=0.1, slice={"features": ""}))
    assert rules.limit_for(CODE, normal(0.3, 0.01)) is not None
    assert rules.limit_for(CODE, normal(0.3, 0.01, slice={"features": "adapted"})) is None


def test_severity_comes_from_the_limit_that_decides() -> None:
    assert found(normal(0.3, 0.01), limit(fail=0.1, severity="critical")).severity == "critical"
    assert found(normal(0.3, 0.01), limit(fail=0.1)).severity == "medium"


@pytest.mark.parametrize(("day", "waived"), [("2026-11-21", True), ("2026-11-20", False)])
def test_a_waiver_holds_until_its_day_and_keeps_the_status(day: str, waived: bool) -> None:
    waiver = Waiver(check=CODE, reason="known", approved_by="M. Example", expires=day)
    finding = found(normal(0.3, 0.01), limit(fail=0.1), waivers=(waiver,))
    assert finding.status == "fail"
    assert (finding.waived_until == day) is waived
    assert gate([finding], policy()).gate == ("open" if waived else "closed")


def test_a_waiver_of_one_slice_does_not_excuse_another() -> None:
    waiver = Waiver(check=CODE, slice={"sex": "unknown"}, reason="38 records", approved_by="M. Example", expires="2027-01-01")
    one = [normal(0.3, 0.01, slice={"sex": "unknown"})]
    assert found(one, limit(fail=0.1), waivers=(waiver,)).waived_until == "2027-01-01"
    assert found([*one, normal(0.3, 0.01, slice={"sex": "f"})], limit(fail=0.1), waivers=(waiver,)).waived_until is None


def test_a_question_waits_for_a_person_and_never_excuses_a_fail() -> None:
    review = Review(check=CODE, question="Are the regions plausible?")
    measurement = Measurement(summary="s", metrics=(normal(0.01, 0.01),))
    rules = policy(limit(fail=0.1), reviews=(review,))
    waiting = judge(CODE, "T", "performance", "medium", measurement, rules, today=TODAY)
    assert waiting.status == "review"
    assert "Are the regions plausible?" in waiting.reason
    assert judge(CODE, "T", "performance", "medium", measurement, rules, today=TODAY, answered=[CODE]).status == "pass"
    assert found(normal(0.3, 0.01), limit(fail=0.1), reviews=(review,)).status == "fail"


def test_shift_findings_name_the_check_of_harm() -> None:
    measurement = Measurement(summary="s", metrics=(normal(0.3, 0.01),))
    assert "TLA509" in judge(CODE, "T", "shift", "high", measurement, policy(limit(0.1)), today=TODAY).reason


FORBIDDEN = [
    "compliant",
    "complies",
    "certified",
    "certifies",
    "bias-free",
    "unbiased",
    "fair",
    "safe",
    "trustworthy",
    "risk-free",
    "guaranteed",
    "proves",
    "no-bias",
    "no-discrimination",
    "disparate-impact",
    "explains-why",
    "trust-score",
    "acceptable-risk",
]


def test_no_reason_holds_a_forbidden_word() -> None:
    cases = [
        found(normal(v, h, slice=s), limit(0.1, 0.2), limit(0.1, slice={"a": "*"}, guard=Bound(max=0.15)))
        for v in (0.0, 0.08, 0.12, 0.15, 0.2, 0.3)
        for h in (0.01, 0.05, 0.2)
        for s in ({}, {"a": "b"})
    ]
    cases += [found(exact("loss", v), limit(0)) for v in (0, 1)]
    cases += [found(Metric(name="loss", value=None, reason="no positives"), limit(0.1))]
    for finding in cases:
        words = finding.reason.lower()
        assert not [w for w in FORBIDDEN if re.search(rf"\b{w.replace('-', '[ -]')}\b", words)], finding.reason
        assert finding.reason.endswith(".")


# -- gate -------------------------------------------------------------------------------------------------------------------


def finding(status: str, code: str = "TLA301", severity: str = "high", section: str = "performance") -> Finding:
    return Finding(code=code, section=section, title="T", status=status, reason="because.", severity=severity)


@pytest.mark.parametrize(
    ("fail_on", "closed"),
    [("fail", {"fail"}), ("warn", {"fail", "warn"}), ("inconclusive", {"fail", "warn", "inconclusive"}), ("never", set())],
)
def test_the_gate_closes_at_the_level_asked_for(fail_on: str, closed: set[str]) -> None:
    for status in ("pass", "warn", "fail", "inconclusive", "review", "info", "not_evaluated", "error"):
        outcome = gate([finding(status)], policy(), fail_on=fail_on)
        assert (outcome.gate == "closed") is (status in closed), status
        assert sum(outcome.counts.values()) == 1
        assert status.replace("_", " ") in outcome.sentence


def test_required_checks_count_as_inconclusive_when_nothing_was_found() -> None:
    for required in ("TLA301", "TLA3", "family:performance"):
        rules = policy(require=(required,))
        for status in ("not_evaluated", "info"):
            assert gate([finding(status)], rules, fail_on="inconclusive").gate == "closed"
            assert gate([finding(status)], rules, fail_on="fail").gate == "open"
        assert gate([finding("not_evaluated")], rules).status == "not_evaluated"


def test_a_stage_may_let_inconclusive_of_low_severity_through() -> None:
    from tl_audit.policy import Stage

    rules = policy(stages={"ci": Stage(), "release": Stage(fail_on="inconclusive", inconclusive_from="high", block_on=("review",))})
    assert gate([finding("inconclusive", severity="low")], rules, stage="release").gate == "open"
    assert gate([finding("inconclusive", severity="high")], rules, stage="release").gate == "closed"
    assert (
        gate([finding("inconclusive", severity="low")], policy(require=("TLA301",), stages=rules.stages), stage="release").gate == "closed"
    )
    assert gate([finding("review")], rules, stage="release").gate == "closed"
    assert gate([finding("review")], rules, stage="ci").gate == "open"


def test_missing_declarations_block_where_the_stage_says_so() -> None:
    from tl_audit.policy import Stage

    rules = policy(stages={"ci": Stage(missing_declarations="block")})
    assert gate([finding("pass")], rules, declared_missing=["owner"]).blocked_by == ("TLA901",)
    assert gate([finding("pass")], rules, declared_missing=[]).gate == "open"
    assert gate([finding("pass")], policy(), declared_missing=["owner"]).gate == "open"


def test_exit_codes_put_a_failed_gate_before_an_error() -> None:
    assert exit_code(gate([finding("pass")], policy())) == 0
    assert exit_code(gate([finding("error")], policy())) == 3
    assert exit_code(gate([finding("error"), finding("fail", "TLA302")], policy())) == 1
    assert exit_code(gate([finding("pass")], policy(), partial="interrupted")) == 3


def test_not_evaluated_is_never_the_outcome_unless_it_was_required_or_alone() -> None:
    assert gate([finding("pass"), finding("not_evaluated", "TLA302")], policy()).status == "pass"
    assert gate([finding("not_evaluated")], policy()).status == "not_evaluated"
