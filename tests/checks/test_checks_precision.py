"""TLA209: the numbers needed are those that the verdicts themselves give, and those of Wilson intervals inverted by brute force."""

from __future__ import annotations

import numpy as np
import pytest

from tests.checks.arrays import ArrayEvidence, Parts
from tl_audit.checks.base import Context, metric
from tl_audit.checks.precision import PRECISION, precision
from tl_audit.errors import NotEvaluated
from tl_audit.measures.intervals import wilson
from tl_audit.measures.precision import rows_for_rate
from tl_audit.policy import Rules
from tl_audit.policy.judge import judge
from tl_audit.policy.limits import Bound, Limit, Policy
from tl_audit.records.findings import Finding
from tl_audit.records.metrics import Measurement, Metric

POLICY = Policy(
    id="test",
    limits=(
        Limit(check="TLA301", metric="accuracy", fail=Bound(min=0.7), warn=Bound(min=0.75), origin="ours", rationale="test"),
        Limit(check="TLA201", metric="leaked_exact", fail=Bound(max=0), rule="exact", origin="ours", rationale="test"),
    ),
)


def accuracy(k: int, n: int, **slice: str) -> Metric:
    return metric("accuracy", wilson(k, n), rules=Rules(), better="higher", slice=slice)


def judged(*metrics: Metric, code: str = "TLA301") -> Finding:
    return judge(code, "Test", "performance", "high", Measurement(summary="s", metrics=metrics), POLICY)


def audit(*findings: Finding) -> Measurement:
    context = Context(rules=Rules(), seed=0, declared={}, findings=findings)
    return precision(Parts("adapted"), ArrayEvidence(), context)  # type: ignore[arg-type]


def test_the_check_explains_itself_in_three_parts() -> None:
    for check in PRECISION:
        assert check.help["asks"].endswith("?")
        assert all(len(check.help[part]) > 40 for part in ("measured", "matters", "reduce"))


def test_an_undecided_limit_asks_for_as_many_as_its_verdict_does() -> None:
    finding = judged(accuracy(158, 200))
    (open_limit,) = [x for x in finding.limits if x.outcome == "undecided"]
    found = audit(finding)
    where = {"check": "TLA301", "metric": "accuracy", "level": "warn"}
    assert found.select("needed_n", **where).value == 200 + open_limit.missing_n
    low, high = open_limit.interval_used
    assert found.select("half_width", **where).value == pytest.approx((high - low) / 2)
    assert f"{open_limit.missing_n} samples more" in found.summary
    assert "1 of 2 limits" in found.summary


@pytest.mark.parametrize(("k", "limit", "level"), [(180, 0.75, "warn"), (100, 0.7, "fail")])
def test_a_settled_limit_shows_how_many_would_have_done_by_exact_planning(k: int, limit: float, level: str) -> None:
    found = audit(judged(accuracy(k, 200)))
    needed = found.select("needed_n", check="TLA301", metric="accuracy", level=level).value
    assert needed == pytest.approx(max(30, rows_for_rate(k / 200, limit)), rel=0.25)
    assert needed < 200


def test_of_many_slices_the_one_that_needs_most_is_shown() -> None:
    finding = judged(*(accuracy(k, 100, site=name) for k, name in ((95, "north"), (78, "south"), (40, "west"))))
    found = audit(finding)
    slices = {m.slice["site"] for m in found.metrics if m.slice["level"] == "warn"}
    assert slices == {"south"}
    assert "summed up" in " ".join(found.caveats)
    table = found.exhibits[0].to_rows()
    assert table[0]["outcome"] == "undecided"


def test_a_value_at_its_limit_needs_no_realistic_number() -> None:
    found = audit(judged(accuracy(150, 200)))
    one = found.select("needed_n", check="TLA301", metric="accuracy", level="warn")
    assert one.value is None
    assert "lies at the limit" in str(one.reason)
    assert "cannot be settled" in found.summary


def test_below_the_minimum_the_minimum_is_needed() -> None:
    found = audit(judged(accuracy(9, 10)))
    one = found.select("needed_n", check="TLA301", metric="accuracy", level="fail")
    assert one.value == 30
    assert found.select("half_width", check="TLA301", metric="accuracy", level="fail").value is None


def test_counts_of_the_whole_set_need_no_planning() -> None:
    from tl_audit.checks.base import exact

    leak = judged(exact("leaked_exact", 3, n={"target": 50}), code="TLA201")
    with pytest.raises(NotEvaluated, match="judged by an interval"):
        audit(leak)
    with pytest.raises(NotEvaluated, match="judged by an interval"):
        audit()
    assert len(audit(leak, judged(accuracy(90, 100))).exhibits[0].rows) == 2


def test_no_number_is_finer_than_the_interval_it_comes_from() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        n = int(rng.integers(30, 400))
        finding = judged(accuracy(int(rng.integers(0, n + 1)), n))
        for one in audit(finding).metrics:
            assert one.value is None or (one.value >= 0 and np.isfinite(one.value))
