"""What a policy needs and finds, held against simulated audits of the same limits."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tl_audit.errors import ConfigError
from tl_audit.measures.intervals import paired_rate_difference, rate_difference, wilson
from tl_audit.policy import load_policy
from tl_audit.policy.planning import KINDS, Planned, planned


def row(metric: str, level: str, n: int, group: str | None = None, **given: object) -> Planned:
    found, _ = planned(load_policy("default"), n, **given)  # type: ignore[arg-type]
    return next(
        r for r in found if r.limit.metric == metric and r.level == level and r.group == group and not set(r.limit.slice) & {"class"}
    )


def test_the_rate_that_is_said_to_be_found_is_found_in_four_of_five() -> None:
    one = row("group_unknown_share", "fail", 300)
    rng = np.random.default_rng(0)
    broken = [wilson(int(rng.binomial(300, one.found)), 300).interval()[0] > 0.20 for _ in range(400)]
    assert np.mean(broken) == pytest.approx(0.8, abs=0.08)
    assert wilson(0, one.needed).interval()[1] <= 0.20 < wilson(0, one.needed - 1).interval()[1]


def test_the_gap_of_a_group_is_found_and_met_in_four_of_five() -> None:
    given = {"groups": {"north": 150}, "rate": 0.8}
    one = row("accuracy_gap", "warn", 600, "north", **given)
    rng = np.random.default_rng(1)

    def interval(size: int, rest: int, gap: float) -> tuple[float, float]:
        first, second = rng.random(size) < 0.8 - gap, rng.random(rest) < 0.8
        return rate_difference(first, second).interval()

    broken = [interval(150, 450, one.found)[1] < -0.10 for _ in range(300)]
    assert np.mean(broken) == pytest.approx(0.8, abs=0.12)
    # both ends of the interval must lie inside the limit: a little less often than one end does
    met = [(lambda i: i[0] >= -0.10 and i[1] <= 0.10)(interval(one.needed, 3 * one.needed, 0.0)) for _ in range(300)]
    assert 0.55 < np.mean(met) < 0.9


def test_the_change_between_two_models_is_met_in_four_of_five() -> None:
    one = row("accuracy_change", "fail", 500)
    rng = np.random.default_rng(2)
    met = []
    for _ in range(150):
        first = rng.random(one.needed) < 0.8
        # one of ten answers differs, as many better as worse
        second = first ^ (rng.random(one.needed) < np.where(first, 0.05 / 0.8, 0.05 / 0.2))
        met.append(paired_rate_difference(second, first).interval()[0] >= -0.05)
    assert np.mean(met) == pytest.approx(0.8, abs=0.11)


def test_more_samples_find_milder_violations_and_need_no_more() -> None:
    few, many = planned(load_policy("default"), 200)[0], planned(load_policy("default"), 2000)[0]
    assert len(few) == len(many) > 10
    for a, b in zip(few, many, strict=True):
        assert a.needed == pytest.approx(b.needed, rel=0.02, abs=2)
        if a.found is not None and b.found is not None:
            assert abs(b.found - b.bound.value) < abs(a.found - a.bound.value)


def test_every_kind_is_used_and_what_cannot_be_foretold_is_named() -> None:
    found, left = planned(load_policy("default"), 500, groups={"north": 100, "south": 400})
    assert {KINDS[r.limit.metric] for r in found} == {"rate", "paired", "gap", "between", "auc"}
    assert {r.group for r in found if KINDS[r.limit.metric] == "gap"} == {"north", "south"}
    assert any("faithfulness_gain" in name for name in left)


def test_sizes_that_are_none_are_refused_in_one_sentence() -> None:
    policy = load_policy("default")
    for given in ({"n": 0}, {"n": 100, "groups": {"x": 100}}, {"n": 100, "rate": 1.0}, {"n": 100, "discordant": 0.0}):
        with pytest.raises(ConfigError):
            planned(policy, **given)  # type: ignore[arg-type]


def test_the_command_prints_a_line_per_limit_and_refuses_what_is_no_group(capsys: pytest.CaptureFixture[str]) -> None:
    from tl_audit.cli import main

    assert main(["power", "--n", "400", "--groups", "north=100"]) == 0
    printed = capsys.readouterr().out.splitlines()
    gaps = [line for line in printed if "accuracy_gap group=north: warn +- 0.1" in line]
    assert gaps
    assert re.search(r"kept with \d+ samples; found if 0\.\d{3} or above$", gaps[0])
    assert any(line.startswith("left      cannot be foretold without data: ") for line in printed)
    assert not any("features=" in line for line in printed)  # an empty part of a slice is no slice
    for wrong, message in ((["--groups", "north=100,north=50"], "twice"), (["--groups", "north=0"], "group north has 0 of n = 500")):
        assert main(["power", *wrong]) == 2
        assert message in capsys.readouterr().err
    assert main(["power", "--groups", "north"]) == 2
    assert "NAME=N" in capsys.readouterr().err
