"""What is missing, and rules that came after the results: rows 32 and 33."""

from __future__ import annotations

import datetime
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_audit.checks import BUILTIN
from tl_audit.defects.base import Audits, Defect, Fires, Planted, fires, quiet
from tl_audit.defects.comparison import otherwise
from tl_audit.defects.shortcuts import cue
from tl_audit.defects.worlds import ALONE, DECLARED, Kind, Reading, World, world
from tl_audit.policy import Policy, load_policy

if TYPE_CHECKING:
    from tl_audit.records.findings import AuditResult, Finding
    from tl_audit.subject import Subject

N = 300
"""Rows per domain: what is said of a missing part depends on what is there, not on how much."""


# -- row 32: a part is missing ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A part of the subject that can be taken away.

    Attributes
    ----------
    met : the words of ``Check.needs`` that nothing else meets in these worlds, which have no previous model
    says : words by which a check must name the part where it is missing
    slices : values of slices that speak of the part itself: about it nothing can be measured once it is gone
    families : beginnings of the codes that are looked at beside those that need the part
    """

    met: tuple[str, ...]
    says: str
    slices: tuple[str, ...]
    families: tuple[str, ...]


PARTS = {
    "base": Part(("base", "base.file", "base@target", "base@source", "previous"), "base model", ("base",), ("TLA1", "TLA2", "TLA3", "TLA4", "TLA6")),
    "groups": Part(("target.groups",), "groups of the target domain", ("north", "south"), ("TLA2", "TLA6")),
    "source": Part(("source", "source.labels", "source.groups", "adapted@source", "base@source"), "source domain", ("source",), ("TLA2", "TLA4", "TLA5")),
}  # fmt: skip


def expected(name: str) -> tuple[Fires, ...]:
    """Every check that cannot be measured without this part must say so: one of its needs is met by nothing else."""
    part = PARTS[name]
    codes = [one.code for one in BUILTIN if not one.optional and any(set(need.split("|")) <= set(part.met) for need in one.needs)]
    return tuple(Fires(code, ("not_evaluated",), says=part.says) for code in codes)


def _drawn(kind: Kind, seed: int) -> tuple[World, Reading]:
    grown = world(kind, seed)
    return grown, grown.drawn("missing", N)


def _whole(kind: Kind, seed: int) -> Subject:
    grown, reading = _drawn(kind, seed)
    rows = np.arange(N)
    less = {role: grown.opened(role, grown.readings[role].take(rows)) for role in ("source", "train")}
    return grown.subject(**less, validation=None, target=grown.opened("target", reading), cues=(cue(kind),))


@lru_cache(maxsize=2)
def _full(kind: Kind, seed: int) -> AuditResult:
    """The audit of the whole subject, made once for all parts that are taken from it."""
    from tl_audit.auditing import audit

    families = ("TLA1", "TLA2", "TLA3", "TLA4", "TLA5", "TLA6", "TLA9")
    return audit(_whole(kind, seed), select=families, declared=DECLARED, seed=seed, device="cpu").result


def _without(kind: Kind, seed: int, name: str, **gone: Any) -> Planted:  # Any: fields of Subject
    assertion = partial(_no_pass_that_depended_on_it, name=name, kind=kind, seed=seed)
    return Planted(replace(_whole(kind, seed), **gone), select=PARTS[name].families, assertions=(assertion,))


def no_base(kind: Kind, seed: int) -> Planted:
    """The base model is gone; adapted model, controls, data and record are there. Every check that needs it must say so by name; what still passes must have
    been held against every limit that it was held against before, but for those that speak of the base itself, or must say in a caveat what it
    could not look at.
    """
    return _without(kind, seed, "base", base=None)


def no_groups(kind: Kind, seed: int) -> Planted:
    """The target has no group column; else as above."""
    grown, reading = _drawn(kind, seed)
    return _without(kind, seed, "groups", target=grown.opened("target", reading, groups={}))


def no_source(kind: Kind, seed: int) -> Planted:
    """The source domain is gone; else as above."""
    return _without(kind, seed, "source", source=None)


def _no_pass_that_depended_on_it(audits: Audits, *, name: str, kind: Kind, seed: int) -> Iterator[str]:
    part = PARTS[name]
    before = {finding.code: finding for finding in _full(kind, seed).findings}
    for code, now in audits.found.items():
        if now.status != "pass" or now.measurement is None:
            continue
        if before[code].status == "error":
            yield f"{code} of the whole subject ended in an error: {before[code].reason}"
        gone = [limit for limit in _judged(before[code]) - _judged(now) if not set(dict(limit[1]).values()) & set(part.slices)]
        if gone and not any(name in caveat for caveat in now.measurement.caveats):
            yield f"{code} passes without the {name}, and says nowhere that it did not look at {gone[0][0]} {dict(gone[0][1])}"


def _judged(finding: Finding) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    """Metric and slice of every limit that was held against a number."""
    return {
        (limit.metric, tuple(sorted(limit.slice.items()))) for limit in finding.limits if limit.outcome in ("met", "broken", "undecided")
    }


def no_policy(kind: Kind, seed: int) -> Planted:
    """A policy without limits, waivers, questions and frameworks. Everything is measured as under the default policy and nothing passes, since
    there is nothing to be held against; the checks of what a policy says name what it lacks.
    """
    empty = load_policy("default").model_copy(update={"limits": (), "waivers": (), "reviews": (), "frameworks": ()})
    return Planted(
        _whole(kind, seed), policy=empty, select=("TLA1", "TLA3", "TLA6", "TLA9"), assertions=(partial(_nothing_is_judged, kind=kind, seed=seed),)
    )  # fmt: skip


def _nothing_is_judged(audits: Audits, *, kind: Kind, seed: int) -> Iterator[str]:
    for code, finding in audits.found.items():
        if finding.status not in ("info", "not_evaluated"):
            yield f"{code} is {finding.status} under a policy without limits"
    selected = {code for code, finding in audits.found.items() if finding.measurement is not None}
    whole = _full(kind, seed)
    kept = whole.model_copy(update={"findings": tuple(one for one in whole.findings if one.code in selected)})
    yield from otherwise(Audits(audits.result, kept), spared=("TLA903",))  # it counts the limits of the policy


# -- row 33: the policy moves after the results -------------------------------------------------------------------------------

FIRST = """[policy]
id = "selftest"
extends = "default"

[[limits]]
check = "TLA602"
metric = "accuracy_gap"
warn = {{ abs = {warn} }}
fail = {{ abs = {fail} }}
origin = "ours"
rationale = "Agreed upon before the data were seen."

[[waivers]]
check = "TLA301"
reason = "Accepted for the first release."
approved_by = "the tl_audit project"
expires = {expires}
"""
JUDGED = ("TLA301", "TLA302", "TLA305", "TLA501", "TLA502", "TLA602")


def a_policy_edited_after_the_first_run(kind: Kind, seed: int) -> Planted:
    """The same model is audited twice on the same target with one evidence folder. In between, the limits on gaps between groups were doubled (the file's date
    is a minute after the first run), and a waiver that was in force expired. All that was measured must stay the same, to the last digit.
    """
    grown, reading = _drawn(kind, seed)
    folder = Path(tempfile.mkdtemp(dir=grown.run_dir))  # goes with the world
    today = datetime.datetime.now(datetime.UTC).date()
    year = datetime.timedelta(days=365)
    first = _policy(folder / "first.toml", 0.10, 0.20, today + year, changed=-3600.0)
    edited = _policy(folder / "edited.toml", 0.20, 0.40, today - year, changed=60.0)
    subject = grown.subject(**{**ALONE, "target": grown.opened("target", reading), "source": grown.domains["source"]})
    options = {"evidence_dir": folder / "evidence"}
    return Planted(
        subject, policy=edited, select=JUDGED, options=options, assertions=(_numbers_stay, _the_first_run_was_sound),
        reference=Planted(subject, policy=first, select=JUDGED, options=options),
    )  # fmt: skip


def _policy(path: Path, warn: float, fail: float, expires: datetime.date, *, changed: float) -> Policy:
    path.write_text(FIRST.format(warn=warn, fail=fail, expires=expires.isoformat()), encoding="utf-8")
    at = time.time() + changed
    os.utime(path, (at, at))
    return load_policy(path)


def _numbers_stay(audits: Audits) -> Iterator[str]:
    yield from otherwise(audits, spared=("TLA903", "TLA905"))


def _the_first_run_was_sound(audits: Audits) -> Iterator[str]:
    for code in ("TLA903", "TLA905"):
        if audits.before[code].status != "pass":
            yield f"{code} of the first run: {audits.before[code].reason}"


GOVERNANCE: tuple[Defect, ...] = (
    Defect(32, "A part is missing", no_base, expected("base"), variant="base"),
    Defect(32, "A part is missing", no_groups, expected("groups"), kinds=("tabular",), variant="groups"),
    Defect(32, "A part is missing", no_source, expected("source"), kinds=("tabular",), variant="source"),
    Defect(
        32, "A part is missing", no_policy,
        (
            *fires("904", statuses=("not_evaluated",), says="frameworks"), *fires("905", statuses=("not_evaluated",), says="waiver"),
            *fires("902", statuses=("not_evaluated",), says="question"),
        ),
        quiet("301", "602"), kinds=("tabular",), variant="policy",
    ),
    Defect(
        33, "Policy edited after the first run, waiver expired", a_policy_edited_after_the_first_run,
        (
            *fires("903", statuses=("warn",), metric="policy_changes_after_first_run"), *fires("903", statuses=("warn",), metric="policy_predates_evidence"),
            *fires("905", statuses=("fail",), metric="waivers_expired"),
        ),
        cheap=True,
    ),
)  # fmt: skip
