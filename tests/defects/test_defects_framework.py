"""The comparison of an audit with what a planted defect must show: it must see a check that does not fire, one that accuses the innocent, one that is missing."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tl_audit import cli
from tl_audit.checks import BUILTIN
from tl_audit.defects import DEFECTS, TOPICS
from tl_audit.defects.base import Defect, Fires, Outcome, Planted, Quiet, Verdict, examine, fires, quiet, with_dependencies
from tl_audit.defects.matrix import chosen, combined, examine_all, labels, lines, markdown
from tl_audit.defects.worlds import CLEAN, Recipe, changed, draw, joined, world
from tl_audit.errors import ConfigError, Interrupted
from tl_audit.records.findings import Finding, LimitOutcome


def limit(outcome: str, metric: str = "gap", level: str = "warn", **slice: str) -> LimitOutcome:
    return LimitOutcome(metric=metric, slice=slice, level=level, bound="max", value=0.1, rule="interval", origin="ours", outcome=outcome)


def finding(status: str, *limits: LimitOutcome, code: str = "TLA602", reason: str = "needs the base") -> Finding:
    return Finding(code=code, section="fairness", title="t", status=status, reason=reason, severity="high", limits=limits)


@pytest.mark.parametrize(
    ("expectation", "found", "mark"),
    [
        (Fires("TLA602"), finding("warn"), "fires"),
        (Fires("TLA602"), finding("inconclusive"), "wrong"),
        (Fires("TLA602", ("fail",)), finding("warn"), "wrong"),
        (Fires("TLA602", metric="gap"), finding("warn", limit("broken")), "fires"),
        (Fires("TLA602", metric="gap"), finding("warn", limit("met"), limit("broken", "other")), "wrong"),
        (Fires("TLA602", metric="gap", slice={"group": "a"}), finding("warn", limit("broken", group="b")), "wrong"),
        (Fires("TLA602", metric="gap", slice={"group": "a"}), finding("warn", limit("broken", group="a", of="x")), "fires"),
        (Fires("TLA602", metric="gap", level="fail"), finding("warn", limit("broken")), "wrong"),
        (Fires("TLA602", metric="gap", outcome="met"), finding("warn", limit("met")), "fires"),
        (Fires("TLA602", ("not_evaluated",), says="the base"), finding("not_evaluated"), "fires"),
        (Fires("TLA602", ("not_evaluated",), says="source"), finding("not_evaluated"), "wrong"),
        (Quiet("TLA602"), finding("pass"), "quiet"),
        (Quiet("TLA602"), finding("review"), "quiet"),
        (Quiet("TLA602"), finding("inconclusive"), "undecided"),
        (Quiet("TLA602"), finding("not_evaluated"), "unseen"),
        (Quiet("TLA602"), finding("warn"), "wrong"),
        (Quiet("TLA602"), finding("fail"), "wrong"),
        (Quiet("TLA602", metric="gap"), finding("fail", limit("broken", "other"), limit("met")), "quiet"),
        (Quiet("TLA602", metric="gap"), finding("pass", limit("undecided")), "undecided"),
        (Quiet("TLA602", metric="gap"), finding("pass", limit("broken")), "wrong"),
        (Quiet("TLA602", metric="gap", spared=("cluster",)), finding("fail", limit("broken", slice="cluster 3")), "quiet"),
        (Quiet("TLA602", metric="gap", spared=("cluster",)), finding("fail", limit("broken", slice="age > 3")), "wrong"),
    ],
)  # fmt: skip
def test_what_became_of_an_expectation(expectation: Fires | Quiet, found: Finding, mark: str) -> None:
    assert expectation.judge(found)[0] == mark


def nothing(kind: Any, seed: int) -> Planted:
    """Nothing."""
    return Planted(world(kind, seed).subject())


def complaining(kind: Any, seed: int) -> Planted:
    """Nothing, with an assertion that never holds and an audit before."""
    clean = nothing(kind, seed)
    return replace(clean, reference=clean, assertions=(lambda audits: [f"before {audits.before['TLA301'].status}"],))


def test_an_expectation_that_does_not_hold_makes_the_outcome_wrong_and_says_why() -> None:
    sound = examine(Defect(90, "nothing", nothing, (), quiet("301")), "tabular", 0)
    assert sound.ok
    assert not sound.wrong
    assert sound.verdicts[0].status == "pass"
    missed = examine(Defect(90, "nothing", nothing, fires("301", statuses=("fail",)), quiet("104")), "tabular", 0)
    assert not missed.ok
    assert missed.wrong[0].startswith("TLA301 must fire: pass instead of fail")
    said = examine(Defect(90, "nothing", complaining, (), quiet("301")), "tabular", 0)
    assert said.wrong == ("before pass",)


def test_a_check_that_does_not_exist_is_awaited_and_named_never_dropped() -> None:
    outcome = examine(Defect(90, "nothing", nothing, fires("399"), quiet("398", "301")), "tabular", 0)
    assert outcome.ok
    assert outcome.awaited == ("TLA399", "TLA398")
    page = markdown([outcome], command="x", date="2026-01-31")
    assert "Awaited, and judged as soon as they exist: TLA398, TLA399." in page
    assert "| TLA399 (awaited) | ? |" in page


def test_a_check_that_runs_only_where_a_policy_asks_for_it_is_not_taken_for_absent() -> None:
    optional = [one.code for one in BUILTIN if one.optional]
    with pytest.raises(ConfigError, match="runs only where the policy asks for it"):
        examine(Defect(90, "nothing", nothing, (), quiet(optional[0].removeprefix("TLA"))), "tabular", 0)


def test_who_asks_to_stop_is_obeyed_and_no_partial_audit_is_judged(monkeypatch: Any) -> None:
    from tl_audit import auditing

    whole = auditing.audit

    def stopped(*given: Any, **more: Any) -> Any:
        report = whole(*given, **more)
        outcome = report.result.outcome.model_copy(update={"partial": "interrupted by SIGTERM after 1 of 2 checks"})
        return replace(report, result=report.result.model_copy(update={"outcome": outcome}))

    monkeypatch.setattr(auditing, "audit", stopped)
    with pytest.raises(Interrupted) as stop:
        examine(Defect(90, "nothing", nothing, (), quiet("104")), "tabular", 0)
    assert stop.value.exit_code == 143


def test_what_a_check_reads_is_run_with_it() -> None:
    assert set(with_dependencies(("TLA711",))) == {"TLA711", "TLA701", "TLA702", "TLA703"}
    assert "TLA501" in with_dependencies(("TLA803",))


def test_a_defect_is_refused_on_data_in_which_it_makes_no_sense() -> None:
    with pytest.raises(ConfigError, match="planted in image data, not in tabular"):
        examine(Defect(90, "nothing", nothing, kinds=("image",)), "tabular", 0)


# -- all rows ---------------------------------------------------------------------------------------------------------------


def test_rows_are_numbered_as_in_the_table_say_what_they_plant_and_can_be_sent_to_another_process() -> None:
    assert [one.number for one in DEFECTS] == sorted(one.number for one in DEFECTS)
    assert {one.number for one in DEFECTS} == set(range(34))
    assert len(labels(DEFECTS)) == len(set(labels(DEFECTS).values())) == len(DEFECTS), "two rows have one name: give them variants"
    assert len(TOPICS) == len(set(TOPICS))
    for one in DEFECTS:
        assert (one.plant.__doc__ or "").strip(), f"{one.name} does not say what it plants"
        assert pickle.loads(pickle.dumps(one)) == one
        for expectation in (*one.fires, *one.quiet):
            assert expectation.code.startswith("TLA")
            assert len(expectation.code) == 6


# -- worlds -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["image", "tabular"])
def test_readings_depend_on_the_key_alone_and_hold_the_mix_asked_for(kind: Any) -> None:
    mix = (0.6, 0.2, 0.2) if kind == "image" else (0.2, 0.8)
    a, b, other = (draw(kind, key, 200, Recipe(mix=mix)) for key in ("a", "a", "b"))
    assert np.array_equal(np.asarray(a.data), np.asarray(b.data))
    assert list(a.labels) == list(b.labels)
    assert not np.array_equal(np.asarray(a.data), np.asarray(other.data))
    first = "flat" if kind == "image" else "no"
    assert (a.labels == first).mean() == pytest.approx(mix[0])
    both = joined(a, other.take(np.arange(50)))
    assert len(both) == 250
    assert both.labels[200] == other.labels[0]


def test_a_world_is_grown_once_and_another_is_another() -> None:
    assert world("tabular", 0) is world("tabular", 0)
    assert changed(CLEAN, epochs=3) != CLEAN
    grown = world("tabular", 0)
    assert grown.record.adapted_sha256 is not None
    assert set(grown.controls) == {"head", "scratch"}
    assert not set(map(tuple, grown.readings["train"].data.to_numpy().tolist())) & set(
        map(tuple, grown.readings["target"].data.to_numpy().tolist())
    )


# -- the table and the page ---------------------------------------------------------------------------------------------------


def outcome(defect: Defect, *marks: str, seed: int = 0) -> Outcome:
    expected = defect.expectations("tabular")
    verdicts = tuple(Verdict(e, m, "warn" if m == "wrong" else "pass", "so") for e, m in zip(expected, marks, strict=True))  # type: ignore[arg-type]
    return Outcome(defect, "tabular", seed, verdicts, (), 1.0)


def test_the_page_shows_the_worst_of_all_seeds_and_what_went_otherwise() -> None:
    one = Defect(90, "nothing", nothing, fires("301"), quiet("104"))
    two = replace(one, number=91, title="something")
    found = [outcome(one, "fires", "quiet"), outcome(one, "fires", "wrong", seed=1), outcome(two, "fires", "undecided")]
    page = markdown(found, command="tl-audit selftest", date="2026-01-31")
    assert "| TLA301 Overall performance | ● | ● |" in page
    assert "| TLA104 Weight drift | ✗ | ◐ |" in page
    assert "- 90 nothing, tabular, seed 1: TLA104 must stay quiet: so" in page
    rows = list(lines(found))
    assert rows[0][0] == "WRONG 1 of 2"
    assert "104 pass 1, warn 1 (wrong 1 of 2)" in rows[0][4]
    assert rows[1][0] == "ok"
    assert combined(["fires", "awaited", "wrong"]) == "wrong"


def test_variants_of_a_number_are_told_apart() -> None:
    one = Defect(90, "nothing", nothing, variant="x")
    assert list(labels((one, replace(one, variant="y"), replace(one, number=91))).values()) == ["90a", "90b", "91"]


def test_a_number_or_kind_that_does_not_exist_is_said() -> None:
    with pytest.raises(ConfigError, match="no planted defect 99"):
        chosen([99])
    with pytest.raises(ConfigError, match="not in 'text'"):
        chosen((), "text")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="none of the defects 8"):
        chosen([8], "tabular")


def test_outcomes_come_in_the_order_of_defects_kinds_and_seeds_and_are_told_as_they_come() -> None:
    told = []
    rows = (Defect(90, "nothing", nothing, (), quiet("104")), Defect(91, "nothing", nothing, (), quiet("112")))
    found = examine_all(rows, ("tabular",), (0,), say=lambda o, done, total: told.append((o.defect.number, done, total)))
    assert [o.defect.number for o in found] == [90, 91]
    assert told == [(90, 1, 2), (91, 2, 2)]


# -- the command ------------------------------------------------------------------------------------------------------------


def test_selftest_prints_a_table_writes_the_matrix_and_exits_zero(capsys: Any, tmp_path: Any) -> None:
    code = cli.main(["selftest", "--only", "7,12", "--kind", "tabular", "--out", str(tmp_path / "new" / "m.md")])
    text = capsys.readouterr()
    assert code == 0
    assert "103 frozen_tensors_changed fail" in text.out
    assert "in all: 2 of 2 audits as expected" in text.out
    assert "1/2 7 Frozen layer" in text.err
    assert "TLA203 Cluster leakage" in (tmp_path / "new" / "m.md").read_text()


def test_selftest_exits_one_where_a_defect_is_missed(capsys: Any, monkeypatch: Any) -> None:
    missed = Defect(7, "nothing", nothing, fires("103", statuses=("fail",)))
    monkeypatch.setattr("tl_audit.defects.DEFECTS", (missed,))
    assert cli.main(["selftest", "--kind", "tabular"]) == 1
    text = capsys.readouterr()
    assert "WRONG 1 of 1" in text.out
    assert "otherwise than it must be: TLA103 must fire" in text.err


@pytest.mark.parametrize("wrong", [["--only", "x"], ["--only", "99"], ["--kind", "text"]])
def test_selftest_says_in_one_sentence_what_it_cannot_do(capsys: Any, wrong: list[str]) -> None:
    assert cli.main(["selftest", *wrong]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
