"""TLA901: which facts a person has stated. Each wanted field removed, each kind of placeholder."""

from __future__ import annotations

from typing import Any

import pytest

from tl_audit.checks.base import Context
from tl_audit.checks.governance import GOVERNANCE, declaration_state, missing_declarations
from tl_audit.errors import NotEvaluated
from tl_audit.policy import Rules, load_policy
from tl_audit.records.metrics import Measurement

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
