"""TLA803: a memorised training set is found, an untrained model gives nothing away, a shifted held-out set is no evidence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.checks.arrays import ArrayEvidence, Parts
from tl_audit.checks.base import Context
from tl_audit.checks.privacy import membership_inference
from tl_audit.errors import NotEvaluated
from tl_audit.policy import Rules, load_policy
from tl_audit.policy.judge import judge
from tl_audit.records.findings import Finding, LimitOutcome
from tl_audit.records.metrics import Measurement
from tl_audit.runner import corrected


class Hashed(ArrayEvidence):
    """Arrays with a content hash for each row; ``same`` rows of two domains share theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.contents: dict[str, np.ndarray] = {}

    def content_hashes(self, domain: str) -> np.ndarray:
        return self.contents.get(domain, np.array([f"{domain} {i}" for i in range(self.n(domain))], dtype=object))


def evidence(
    n: int = 300, m: int = 300, *, memory: float = 0.0, shift: float = 0.0, base: bool = True, role: str = "validation", seed: int = 0
) -> Hashed:
    """Two classes that features tell apart somewhat; ``memory`` is added to the right logit of training rows."""
    rng = np.random.default_rng(seed)
    made = Hashed()
    for name, size, extra, move in (("train", n, memory, 0.0), (role, m, 0.0, shift)):
        y = rng.integers(0, 2, size)
        x = rng.normal(size=(size, 6)) + 0.7 * (2 * y - 1)[:, None] + move
        right = rng.normal(1, 1, size) + extra
        p = 1 / (1 + np.exp(-right))
        made.domain(name, y)
        made.outputs("adapted", name, probabilities=np.stack([np.where(y == 0, p, 1 - p), np.where(y == 1, p, 1 - p)], axis=1))
        if base:
            made.with_features("base", name, x)
    return made


def finding_501(status: Any, bound: float = 0.60) -> Finding:
    limit = LimitOutcome(metric="c2st_auc", level="warn", bound="max", value=bound, rule="interval", origin="ours", outcome="met")
    return Finding(code="TLA501", section="shift", title="t", status=status, reason="r", severity="high", limits=(limit,))


def measured(given: Hashed, *findings: Finding, seed: int = 0) -> Measurement:
    context = Context(Rules(), seed, {}, findings)
    return membership_inference(Parts("adapted"), given, context)  # type: ignore[arg-type]


def status(found: Measurement) -> str:
    return judge("TLA803", "t", "robustness", "high", corrected(found, membership_inference), load_policy("default")).status


def test_a_model_that_memorised_its_training_set_fails_and_one_that_did_not_passes() -> None:
    loud = measured(evidence(memory=6.0))
    for score in ("loss", "loss beyond a probe"):
        area = loud.select("attack_auc", score=score)
        assert area.interval is not None
        assert area.interval[0] > 0.8
    assert status(loud) == "fail"
    quiet = measured(evidence(1500, 1500))
    area = quiet.select("attack_auc", score="loss")
    assert area.interval is not None
    assert area.interval[0] < 0.5 < area.interval[1]
    assert status(quiet) == "pass"


def test_a_planted_advantage_is_found_at_three_hundred_rows_a_side() -> None:
    # an area of 0.70: a warning is due
    assert sum(status(measured(evidence(memory=0.75, seed=s), seed=s)) in ("warn", "fail") for s in range(10)) >= 9


def test_without_an_effect_hardly_any_run_warns() -> None:
    assert sum(status(measured(evidence(120, 120, seed=s), seed=s)) in ("warn", "fail") for s in range(40)) <= 1


@pytest.mark.slow
def test_without_an_effect_no_more_runs_warn_than_the_level_says_and_intervals_cover_chance() -> None:
    loud = missed = beyond = 0
    for s in range(120):
        found = measured(evidence(120, 60, seed=s), seed=s)
        loud += status(found) in ("warn", "fail")
        for score in ("loss", "loss beyond a probe"):
            low, high = found.select("attack_auc", score=score).interval or (0.0, 1.0)
            if score == "loss":
                missed += not low <= 0.5 <= high
            else:
                beyond += not low <= 0.5 <= high
    assert loud <= 3
    # 120 runs at 5 %: 13 is the 99.5 % point of the binomial; benchmarks/calibration has the intervals at length
    assert missed <= 13
    assert beyond <= 13


def test_a_low_loss_that_only_shows_easy_rows_is_taken_away_by_the_probe() -> None:
    rng = np.random.default_rng(0)
    made = Hashed()
    for name, easy_share in (("train", 0.5), ("validation", 0.5)):
        y, easy = rng.integers(0, 2, 400), rng.random(400) < easy_share
        x = rng.normal(size=(400, 4)) + np.where(easy, 3, 0)[:, None] * (2 * y - 1)[:, None]
        right = np.where(easy, 3.0, 0.0) + (0.8 if name == "train" else 0.0)
        p = 1 / (1 + np.exp(-right))
        made.domain(name, y).with_features("base", name, x)
        made.outputs("adapted", name, probabilities=np.stack([np.where(y == 0, p, 1 - p), np.where(y == 1, p, 1 - p)], axis=1))
    found = measured(made)
    plain, beyond = (found.select("attack_auc", score=s).value for s in ("loss", "loss beyond a probe"))
    assert plain is not None
    assert beyond is not None
    assert beyond > 0.55


def test_a_shifted_held_out_set_is_inconclusive_whatever_the_attack_says() -> None:
    found = measured(evidence(memory=6.0, shift=3.0, role="target"))
    assert found.select("attack_auc", score="loss").value is None
    assert "told apart by the base's features" in str(found.select("attack_auc", score="loss").reason)
    assert status(found) == "inconclusive"
    assert "cannot be told" in found.summary


def test_the_policy_s_own_limit_on_the_domain_test_is_used() -> None:
    slight = evidence(memory=6.0, shift=0.5, role="target")
    assert measured(slight, finding_501("warn", 0.55)).select("attack_auc", score="loss").value is None
    assert measured(slight, finding_501("pass", 0.95)).select("attack_auc", score="loss").value is not None


@pytest.mark.parametrize(("findings", "told"), [((), False), (("not_evaluated",), False), (("warn",), False), (("pass",), True)])
def test_without_a_base_a_target_serves_only_where_no_shift_was_shown(findings: tuple[str, ...], told: bool) -> None:
    found = measured(evidence(memory=6.0, base=False, role="target"), *map(finding_501, findings))
    assert (found.select("attack_auc", score="loss").value is not None) is told
    assert "no base model" in str(found.select("attack_auc", score="loss beyond a probe").reason)


def test_without_a_base_the_run_s_own_validation_data_serve_and_this_is_said() -> None:
    found = measured(evidence(memory=6.0, base=False))
    assert found.select("attack_auc", score="loss").value is not None
    assert any("was not tested" in c for c in found.caveats)


def test_rows_that_are_held_out_as_well_are_no_members() -> None:
    made = evidence()
    shared = np.array([f"row {i}" for i in range(300)], dtype=object)
    made.contents = {"train": np.r_[shared[:200], [f"t{i}" for i in range(100)]], "validation": shared}
    found = measured(made)
    assert found.select("attack_auc", score="loss").n == {"train": 100, "validation": 300}
    assert any("200 training rows" in c for c in found.caveats)
    made = evidence(role="target")
    made.contents = {"train": np.r_[shared[:200], [f"t{i}" for i in range(100)]], "target": shared}
    assert measured(made, finding_501("pass")).select("attack_auc", score="loss").n == {"train": 100, "target": 100}
    made.contents = {"train": shared, "target": shared}
    with pytest.raises(NotEvaluated, match="alone"):
        measured(made)


def test_few_validation_rows_give_way_to_the_target() -> None:
    made = evidence(role="target")
    made.domain("validation", [0, 1, 0]).outputs("adapted", "validation", [0, 1, 0])
    assert measured(made, finding_501("pass")).params["held_out"] == "target"
    made.domain("validation", np.arange(300) % 2).outputs("adapted", "validation", np.arange(300) % 2)
    made.with_features("base", "validation", np.random.default_rng(0).normal(size=(300, 6)))
    assert measured(made, finding_501("pass")).params["held_out"] == "validation"


def test_equal_losses_are_null_and_the_rate_at_one_percent_is_not_judged_below_its_minimum() -> None:
    made = Hashed()
    for name in ("train", "validation"):
        made.domain(name, np.arange(60) % 2).outputs("adapted", name, np.arange(60) % 2)
    found = measured(made)
    assert found.select("attack_auc", score="loss").value is None
    assert status(found) == "inconclusive"
    few = measured(evidence())
    assert few.select("tpr_at_fpr_1pct", score="loss").value is None
    assert any("1 % false alarms is not stated" in c for c in few.caveats)
    assert few.select("tpr_at_fpr_1pct", score="loss").null == 0.01


def test_order_of_rows_changes_nothing_and_the_curve_ends_at_one() -> None:
    first = measured(evidence(memory=1.0))
    curve = first.exhibits[0]
    assert curve.kind == "Lines"
    assert curve.lines[0].x[-1] == curve.lines[0].y[-1] == 0
    assert first == measured(evidence(memory=1.0))
