"""TLA904: how old the clause maps are; and the maps themselves refer to what exists, and claim nothing."""

from __future__ import annotations

import datetime
import re
from typing import Any

import pytest

from tl_audit import frameworks
from tl_audit.checks import BUILTIN
from tl_audit.checks.base import Context, PolicyFacts
from tl_audit.checks.governance import age_of_framework_maps
from tl_audit.errors import ConfigError, NotEvaluated
from tl_audit.policy import Policy, Rules, load_policy
from tl_audit.policy.judge import judge
from tl_audit.records.metrics import Measurement
from tl_audit.report.declared import FACTS

REVISED = frameworks.load_framework("eu-ai-act").as_of
CLAIMS = re.compile(r"\b(compliant|complies|certified|is met|fulfil\w*|conform\w*)\b", re.IGNORECASE)


def measured(names: tuple[str, ...], today: datetime.date) -> Measurement:
    facts = PolicyFacts(
        id="p", version=1, sha256="0" * 64, changed=None, origins=(), reviews=(), waivers=(), frameworks=names, history=(), today=today
    )
    context = Context(rules=Rules(), seed=0, declared={}, policy=facts)
    return age_of_framework_maps(None, None, context)  # type: ignore[arg-type]  # the check reads the policy's facts only


def status(found: Measurement) -> str:
    return judge("TLA904", "t", "governance", "low", found, load_policy("default")).status


@pytest.mark.parametrize(("days", "expected"), [(0, "pass"), (180, "pass"), (181, "warn"), (4000, "warn")])
def test_a_map_older_than_half_a_year_warns(days: int, expected: str) -> None:
    found = measured(("eu-ai-act",), REVISED + datetime.timedelta(days=days))
    assert found.select("mapping_age_days", framework="eu-ai-act").value == days
    assert status(found) == expected
    assert REVISED.isoformat() in found.summary


def test_each_framework_is_listed_and_one_without_a_map_is_never_green() -> None:
    found = measured(("eu-ai-act", "iso-9999"), REVISED)
    assert found.select("mapping_age_days", framework="iso-9999").value is None
    assert "no clause map" in str(found.select("mapping_age_days", framework="iso-9999").reason)
    assert status(found) != "pass"
    assert [row[0] for row in found.exhibits[0].rows] == [frameworks.load_framework("eu-ai-act").title, "iso-9999"]  # type: ignore[union-attr]


def test_a_policy_without_frameworks_is_not_evaluated() -> None:
    with pytest.raises(NotEvaluated, match="a policy file that names frameworks"):
        measured((), REVISED)


def test_a_policy_that_names_a_framework_passes_it_on() -> None:
    assert Policy(id="p", frameworks=("eu-ai-act",)).frameworks == ("eu-ai-act",)


@pytest.mark.parametrize("name", frameworks.names())
def test_every_map_refers_to_what_exists_and_claims_nothing(name: str) -> None:
    found = frameworks.load_framework(name)
    assert set(frameworks.references(found.entries, "code")) <= {c.code for c in BUILTIN} | {"TLA209", "TLA802", "TLA207"}
    assert set(frameworks.references(found.entries, "family")) <= {c.section for c in BUILTIN}
    stated = {key for block in FACTS.values() for key, _ in block}
    assert set(frameworks.references(found.entries, "declared")) | {k for e in found.entries for k in e.person} <= stated
    assert set(frameworks.references(found.entries, "record")) <= {"policy", "subject", "environment"}
    for entry in found.entries:
        assert not CLAIMS.search(entry.summary), entry.summary
        assert entry.who == "tool" or entry.person, f"{entry.id} asks a person for nothing"


def test_an_unknown_map_is_named_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="there are: eu-ai-act, nist-ai-rmf"):
        frameworks.load_framework("nope")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"as_of": "2026"}, "as_of is not a date"),
        ({"id": "other"}, "its id is 'other'"),
        ({"entries": [{"id": "a", "clause": "1", "summary": "s", "evidence": [], "who": "tool", "verified": False}]}, "names no evidence"),
        (
            {"entries": [{"id": "a", "clause": "1", "summary": "s", "evidence": ["x:y"], "who": "tool", "verified": False}]},
            "is no reference",
        ),
        (
            {"entries": [{"id": "a", "clause": "1", "summary": "s", "evidence": ["code:TLA1"], "who": "me", "verified": False}]},
            "who is 'me'",
        ),
        ({"entries": [{"id": "a"}]}, "'clause' is missing"),
    ],
)
def test_a_map_with_a_mistake_is_refused(change: dict[str, Any], sentence: str) -> None:
    table = {
        "id": "m", "title": "t", "as_of": REVISED, "status": "s", "verified_means": "v", "sources": ["x"], "entries": [], **change,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=sentence):
        frameworks._framework("m", table)
