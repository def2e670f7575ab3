"""TLA901: which facts a person has stated. 902: questions and answers. 903: which came first. 905: what is excused."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evidence.tiny import counted as network
from tests.evidence.tiny import tiny
from tl_audit.checks.base import Check, Context, check, exact
from tl_audit.checks.governance import GOVERNANCE, declaration_state, evidence_hash, missing_declarations
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.policy import Policy, Rules, load_policy
from tl_audit.policy.limits import Bound, Limit, Review, Waiver
from tl_audit.records.findings import AuditResult
from tl_audit.records.metrics import Measurement
from tl_audit.runner import run
from tl_audit.subject import Subject

STATED: dict[str, Any] = {
    "purpose": "Sorts leaf photographs for a second look.",
    "owner": "M. Example",
    "users": ["Agronomists of the station", "their trainees"],
    "data_licence": {"value": "CC-BY-4.0", "by": "K. Example", "on": "2026-09-14"},
    "by": "J. Example",
}


def measured(declared: dict[str, Any], *wanted: str) -> Measurement:
    context = Context(rules=Rules(declare=wanted), seed=0, declared=declared)
    return GOVERNANCE[0](None, None, context)  # type: ignore[arg-type]  # the check reads declared facts only


def test_all_wanted_facts_stated_leaves_none_missing() -> None:
    found = measured(STATED, "purpose", "owner", "users", "data_licence")
    assert found.select("declared_missing").value == 0
    assert found.select("declared_present_share").value == 1.0
    assert found.exhibits[0].rows[3] == ("data_licence", "stated", "K. Example", "2026-09-14")  # type: ignore[union-attr]
    assert found.exhibits[0].rows[0] == ("purpose", "stated", "J. Example", None)  # type: ignore[union-attr]


@pytest.mark.parametrize("gone", ["purpose", "owner", "users", "data_licence"])
def test_each_fact_that_is_taken_away_is_counted_and_named(gone: str) -> None:
    found = measured({k: v for k, v in STATED.items() if k != gone}, "purpose", "owner", "users", "data_licence")
    assert found.select("declared_missing").value == 1
    assert found.select("declared_present_share").value == 0.75
    assert f"Missing: {gone}." in found.summary


@pytest.mark.parametrize(
    "text", ["", "   ", "todo", "TODO: write this", "...", "…", "tbd", "TBD.", "n/a", "N/A.", "none", "-", "?", "<your purpose here>", "[fill in]", "xxx", [], ["tbd", ""], {"value": "todo", "by": "me"}, {"by": "me"}, None]
)  # fmt: skip
def test_placeholders_count_as_missing(text: Any) -> None:
    assert declaration_state("owner", {"owner": text}) != "stated"


@pytest.mark.parametrize("text", ["M. Example", "n/a: no personal data are used", "Nonesuch Ltd", ["one"], {"value": "x y"}, 7])
def test_real_answers_count_as_stated(text: Any) -> None:
    assert declaration_state("owner", {"owner": text}) == "stated"


def test_a_sentence_is_wanted_where_one_word_cannot_say_it() -> None:
    assert declaration_state("purpose", {"purpose": "sorting"}) == "too short"
    assert declaration_state("purpose", {"purpose": "sorts leaf photographs"}) == "stated"
    assert declaration_state("owner", {"owner": "me"}) == "stated"


def test_a_policy_that_wants_nothing_is_not_evaluated() -> None:
    with pytest.raises(NotEvaluated, match="names none"):
        measured(STATED)


def test_every_fact_that_the_default_policy_wants_can_be_missing_and_stated() -> None:
    wanted = load_policy("default").rules.declare
    assert missing_declarations(wanted, {}) == tuple(wanted)
    assert missing_declarations(wanted, dict.fromkeys(wanted, "A whole sentence of text.")) == ()


# -- 902, 903, 905: inside an audit ---------------------------------------------------------------------------------------

WHEN = "2026-06-15T00:00:00Z"
DEFAULT = load_policy("default")
LIMITS = tuple(limit for limit in DEFAULT.limits if limit.check in ("TLA902", "TLA903", "TLA905"))
QUESTION = Review(check="TLA301", question="Is this enough?", role="owner")


def counted(value: float = 3.0, code: str = "TLA301", phase: Any = 1) -> Check:
    @check(code, "Errors", section="performance", severity="high", phase=phase)
    def errors(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
        return Measurement(summary="counted", metrics=(exact("errors", value, n={"target": 40}),))

    return errors


def policy(*, bound: float = 10.0, breach: Any = "status", reviews: tuple[Review, ...] = (), waived: tuple[Waiver, ...] = ()) -> Policy:
    limits = tuple(
        Limit(check=code, metric="errors", warn=Bound(max=bound), breach=breach, origin="ours", rationale="r")
        for code in ("TLA301", "TLA711")
    )
    return Policy(id="p", limits=(*limits, *LIMITS), reviews=reviews, waivers=waived)


def audited(given: Policy, *checks: Check, answers: tuple[dict[str, Any], ...] = (), **settings: Any) -> AuditResult:
    chosen = (*(checks or (counted(),)), *GOVERNANCE[1:])
    return run(tiny(), policy=given, checks=chosen, created=WHEN, methods=(), declared={"answers": list(answers)}, **settings)


def answer(evidence: str | None = None, text: str = "Yes, for the second look.") -> dict[str, Any]:
    return {"check": "TLA301", "answer": text, "by": "me", "on": "2026-06-01"} | ({} if evidence is None else {"evidence": evidence})


def test_an_open_question_gives_review_and_an_answer_closes_it() -> None:
    asked = policy(reviews=(QUESTION,))
    before = audited(asked)["TLA902"]
    assert (before.status, before.metrics["reviews_open"].value) == ("review", 1)
    after = audited(asked, answers=(answer(evidence_hash(audited(asked)["TLA301"])),))
    assert after["TLA902"].status == "pass"
    assert [after["TLA902"].metrics[f"reviews_{state}"].value for state in ("open", "answered", "outdated")] == [0, 1, 0]
    assert audited(asked, answers=(answer(text="  "),))["TLA902"].status == "review", "an empty answer is none"


def test_an_answer_to_other_numbers_is_outdated() -> None:
    asked = policy(reviews=(QUESTION,))
    given = answer(evidence_hash(audited(asked)["TLA301"]))
    changed = audited(asked, counted(4.0), answers=(given,))["TLA902"]
    assert (changed.status, changed.metrics["reviews_outdated"].value, changed.metrics["reviews_open"].value) == ("review", 1, 0)
    undated = audited(asked, counted(4.0), answers=(answer(),))["TLA902"]
    assert (undated.status, undated.metrics["reviews_outdated"].value) == ("pass", 0)
    assert any("name no evidence hash" in c for c in undated.measurement.caveats)  # type: ignore[union-attr]


def test_a_limit_that_asks_for_a_person_is_a_question_before_and_after_the_answer() -> None:
    asked = policy(bound=1.0, breach="review")
    before = audited(asked)
    assert (before["TLA301"].status, before["TLA902"].metrics["reviews_open"].value) == ("review", 1)
    after = audited(asked, answers=(answer(evidence_hash(before["TLA301"])),))
    assert (after["TLA301"].status, after["TLA902"].status) == ("info", "pass")
    assert after["TLA902"].metrics["reviews_answered"].value == 1


def test_a_question_about_phase_two_is_seen() -> None:
    found = audited(policy(reviews=(Review(check="TLA711", question="Well?"),)), counted(code="TLA711", phase=2))
    assert found["TLA902"].metrics["reviews_open"].value == 1


def test_an_answer_never_turns_a_broken_limit_into_pass_and_none_closes_the_list_itself() -> None:
    asked = policy(bound=1.0, reviews=(QUESTION,))
    assert audited(asked, answers=(answer(),))["TLA301"].status == "warn"
    assert audited(asked, answers=({"check": "TLA902", "answer": "all well", "by": "me", "on": "2026-06-01"},))["TLA902"].status == "review"


def test_questions_about_what_was_not_evaluated_are_shown_and_not_counted() -> None:
    found = audited(policy(reviews=(Review(check="TLA707", question="Plausible?"),)))["TLA902"]
    assert found.metrics["reviews_open"].value == 0
    assert any("not evaluated" in c for c in found.measurement.caveats)  # type: ignore[union-attr]


def test_without_questions_and_waivers_nothing_passes() -> None:
    found = audited(policy())
    assert [found[code].status for code in ("TLA902", "TLA905")] == ["not_evaluated", "not_evaluated"]


def waiver(expires: str, metric: str = "errors") -> Waiver:
    return Waiver(check="TLA301", metric=metric, reason="known", approved_by="me", expires=expires)


@pytest.mark.parametrize(
    ("expires", "bound", "metric", "counts", "status"),
    [
        ("2026-06-15", 1.0, "errors", (1, 0, 0), "pass"),
        ("2026-06-14", 1.0, "errors", (0, 1, 0), "fail"),
        ("2026-06-15", 10.0, "errors", (1, 0, 1), "pass"),
        ("2026-06-15", 1.0, "other", (1, 0, 1), "pass"),
    ],
)
def test_waivers_by_date_and_by_what_they_cover(expires: str, bound: float, metric: str, counts: tuple[int, ...], status: str) -> None:
    found = audited(policy(bound=bound, waived=(waiver(expires, metric),)))
    assert tuple(found["TLA905"].metrics[f"waivers_{state}"].value for state in ("active", "expired", "unused")) == counts
    assert found["TLA905"].status == status
    assert found["TLA301"].status == ("warn" if bound == 1.0 else "pass"), "a waiver keeps the status"


def written(folder: Path, text: str = "0.8", at: float | None = None) -> Policy:
    path = folder / "policy.toml"
    path.write_text(
        '[policy]\nid = "mine"\nextends = "default"\n'
        f'[[limits]]\ncheck = "TLA301"\nmetric = "errors"\nfail = {{ max = {text} }}\norigin = "risk committee"\n'
    )  # fmt: skip
    if at is not None:
        os.utime(path, (at, at))
    return load_policy(path)


def of_903(found: AuditResult) -> tuple[str, Any, Any]:
    one = found["TLA903"]
    return one.status, one.metrics["policy_predates_evidence"].value, one.metrics["policy_changes_after_first_run"].value


def test_a_policy_edited_after_the_first_run_is_found_and_nothing_else_moves(tmp_path: Path) -> None:
    store = tmp_path / "evidence"
    first = audited(written(tmp_path, "9"), evidence_dir=store)
    assert of_903(first) == ("pass", 1, 0)
    again = audited(written(tmp_path, "9"), evidence_dir=store)
    assert of_903(again) == ("pass", 1, 0)
    assert again["TLA903"].measurement == first["TLA903"].measurement, "a second run of the same says the same"
    later = datetime.datetime.now(datetime.UTC).timestamp() + 60
    edited = audited(written(tmp_path, "2", at=later), evidence_dir=store)
    assert of_903(edited) == ("warn", 0, 1)
    assert edited["TLA301"].measurement == first["TLA301"].measurement
    assert of_903(audited(written(tmp_path, "2", at=later), evidence_dir=store, resume=False)) == ("warn", 0, 1), (
        "history outlives evidence"
    )
    assert of_903(audited(written(tmp_path, "9"), evidence_dir=store)) == ("warn", 1, 2), "back again: two changes"


def test_a_file_that_is_touched_without_a_change_is_the_same_policy(tmp_path: Path) -> None:
    audited(written(tmp_path), evidence_dir=tmp_path / "evidence")
    later = datetime.datetime.now(datetime.UTC).timestamp() + 60
    assert of_903(audited(written(tmp_path, at=later), evidence_dir=tmp_path / "evidence")) == ("pass", 1, 0)


def test_an_older_policy_taken_up_later_predates_the_results_and_is_a_change(tmp_path: Path) -> None:
    audited(written(tmp_path), evidence_dir=tmp_path / "evidence")
    assert of_903(audited(written(tmp_path, "7", at=1e9), evidence_dir=tmp_path / "evidence")) == ("warn", 1, 1)


def test_another_model_has_a_history_of_its_own(tmp_path: Path) -> None:
    audited(written(tmp_path), evidence_dir=tmp_path / "evidence")
    subject = tiny(adapted=network(7))
    other = run(subject, policy=written(tmp_path, "7"), checks=GOVERNANCE[1:], created=WHEN, methods=(), evidence_dir=tmp_path / "evidence")
    assert of_903(other) == ("pass", 1, 0)


def test_without_an_evidence_folder_every_run_is_the_first_and_this_is_said() -> None:
    found = audited(policy())
    assert of_903(found) == ("pass", 1, 0)
    assert any("temporary" in c for c in found["TLA903"].measurement.caveats)  # type: ignore[union-attr]


def test_a_policy_without_a_file_has_no_age(tmp_path: Path) -> None:
    audited(policy(bound=1.0), evidence_dir=tmp_path)
    status, first, changes = of_903(audited(policy(bound=2.0), evidence_dir=tmp_path))
    assert (status, first, changes) == ("warn", None, 1)


def test_limits_of_convention_and_without_reason_are_counted() -> None:
    found = audited(policy())["TLA903"]
    assert found.metrics["limits_conventional"].value == 2 + len(LIMITS)
    bare = Limit(check="TLA301", metric="errors", warn=Bound(max=1), origin="risk committee, with its conventional doubts")
    mine = audited(Policy(id="q", limits=(bare,)))["TLA903"]
    assert (mine.metrics["limits_without_rationale"].value, mine.metrics["limits_conventional"].value) == (1, 0)


def test_the_policy_s_age_is_no_part_of_what_it_says(tmp_path: Path) -> None:
    first, second = written(tmp_path, at=1e9), written(tmp_path, at=2e9)
    assert first.changed != second.changed
    assert first.sha256 == second.sha256
    assert "changed" not in first.resolved


def test_the_evidence_hash_sees_numbers_and_not_the_last_bit() -> None:
    one, other, near = (audited(policy(), counted(v))["TLA301"] for v in (3.0, 4.0, float(np.nextafter(3.0, 4.0))))
    assert evidence_hash(one) == evidence_hash(near) != evidence_hash(other)
