"""Clause maps on the page: the state of a clause follows from what exists, never from pass or fail."""

from __future__ import annotations

import datetime
import itertools

import pytest

from tests.report.golden_record import golden
from tl_audit.frameworks import Entry, load_framework
from tl_audit.records.findings import AuditResult
from tl_audit.report import AuditReport
from tl_audit.report.clauses import STATES, _row, clause_maps

SIGNED = {"approver": "A. Example", "decision": "approve"}


def entry(*evidence: str, who: str = "tool", person: tuple[str, ...] = ()) -> Entry:
    return Entry("e", "Clause 1", "asks for something", evidence or ("code:TLA301",), who, person)


def record(**declared: object) -> AuditResult:
    return golden().model_copy(update={"declared": declared})


def with_status(result: AuditResult, code: str, status: str) -> AuditResult:
    return result.model_copy(
        update={"findings": tuple(f.model_copy(update={"status": status}) if f.code == code else f for f in result.findings)}
    )


def state(one: Entry, result: AuditResult) -> str:
    return _row(one, result, ()).state


def measured_codes(result: AuditResult) -> list[str]:
    return [f.code for f in result.findings if f.status not in ("not_evaluated", "error")]


def test_no_status_that_speaks_changes_the_state():
    result = record()
    code = measured_codes(result)[0]
    states = {
        state(entry(f"code:{code}"), with_status(result, code, s)) for s in ("pass", "warn", "fail", "inconclusive", "review", "info")
    }
    assert states == {"evidence present"}
    assert {state(entry(f"code:{code}"), with_status(result, code, s)) for s in ("not_evaluated", "error")} == {"not assessed"}


def test_some_evidence_is_partial_and_none_is_not_assessed():
    result = record()
    code = measured_codes(result)[0]
    assert state(entry(f"code:{code}", "code:TLA000"), result) == "partial"
    assert state(entry("code:TLA000"), result) == "not assessed"
    row = _row(entry(f"code:{code}", "code:TLA000"), result, ())
    assert row.findings == (code,)


def test_a_fact_that_a_person_owes_caps_the_state():
    code = measured_codes(record())[0]
    asked = entry(f"code:{code}", person=("oversight",))
    assert state(asked, record()) == "partial"
    assert _row(asked, record(), ()).owed == ("oversight",)
    assert state(asked, record(oversight="A nurse can overrule each answer.")) == "evidence present"
    assert _row(asked, record(oversight="tbd"), ("oversight",)).state == "partial"


def test_what_a_person_states_is_declared_and_drafts_wait_for_a_signature():
    code = measured_codes(record())[0]
    stated = entry("declared:oversight", who="person", person=("oversight",))
    assert state(stated, record()) == "person needed"
    assert state(stated, record(oversight="A nurse can overrule each answer.")) == "declared"
    draft = entry(f"code:{code}", who="tool-drafts")
    assert state(draft, record()) == "partial"
    assert state(draft, record(signoff=SIGNED)) == "evidence present"


@pytest.mark.parametrize("name", ["eu-ai-act", "nist-ai-rmf"])
def test_the_page_shows_each_clause_with_its_date_and_no_tick(name, tmp_path):
    result = record()
    policy = result.policy.model_copy(update={"resolved": {**result.policy.resolved, "frameworks": [name, "iso-9999"]}})
    page = AuditReport(result.model_copy(update={"policy": policy})).html
    found = load_framework(name)
    section = page[page.index('id="sec-l"') : page.index('id="sec-m"')]
    for one in found.entries:
        assert one.clause in section
    assert found.as_of.isoformat() in section
    assert "iso-9999" in section
    assert "holds no clause map" in section
    assert "✓" not in section
    assert "%" not in section


def test_only_the_named_maps_are_made_and_states_are_the_five_words():
    maps, unmapped = clause_maps(record(), ["nist-ai-rmf", "other"], ())
    assert [m.framework.id for m in maps] == ["nist-ai-rmf"]
    assert unmapped == ("other",)
    assert {row.state for row in itertools.chain.from_iterable(m.rows for m in maps)} <= set(STATES)
    assert maps[0].framework.age(maps[0].framework.as_of + datetime.timedelta(days=3)) == 3
