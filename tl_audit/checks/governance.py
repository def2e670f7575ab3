"""Family 9: what only a person can state. No statistics; the tool records who said what and never judges law."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from tl_audit.checks.base import Check, Context, PolicyFacts, check, exact
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.frameworks import load_framework, names
from tl_audit.policy.limits import NO_RATIONALE, Waiver
from tl_audit.records.exhibits import Cell, Column, Table
from tl_audit.records.findings import Finding
from tl_audit.records.metrics import Measurement
from tl_audit.records.schema import canonical_json
from tl_audit.subject import Subject

REVIEWS = "TLA902"
SHORT_HASH = 12

NEEDS_A_SENTENCE = frozenset({"purpose", "users", "affected_people", "out_of_scope", "metric_rationale", "monitoring_plan"})
"""Facts that fewer than three words cannot state."""

_PLACEHOLDER = re.compile(r"^\W*(todo|tbd|tba|fixme|xxx+|lorem ipsum)\b", re.IGNORECASE)
_EMPTY = re.compile(r"^(\W*|\W*(n/?a|none|nil|unknown|to be (done|decided|defined))\W*|<[^>]*>|\[[^\]]*\])$", re.IGNORECASE)


@check("TLA901", "Declared facts", section="governance", severity="high", multiplicity="none", values="same")
def declared_facts(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Has a person stated what only a person can?

    How it is measured: the policy lists the facts it wants; each is looked up in [declared]. Empty text and placeholders ("todo", "...",
    "tbd", "n/a" without a reason) count as missing, and so do fewer than three words where a sentence is needed.

    Why it matters: purpose, users and limits of use cannot be measured, and without them no number of the report says whether it is enough.

    How to reduce the risk: state the missing facts in [declared] of audit.toml, with who said it and when.
    """
    wanted = tuple(dict.fromkeys(context.rules.declare))
    if not wanted:
        raise NotEvaluated("facts wanted by the policy: the [policy] of its file names none under declare")
    states = {key: declaration_state(key, context.declared) for key in wanted}
    missing = [key for key, state in states.items() if state != "stated"]
    rows: list[tuple[Cell, ...]] = [
        (key, state, _part(context.declared, key, "by"), _part(context.declared, key, "on")) for key, state in states.items()
    ]
    return Measurement(
        summary=f"{len(wanted) - len(missing)} of {len(wanted)} facts that the policy wants are stated."
        + (f" Missing: {', '.join(missing)}." if missing else ""),
        metrics=(
            exact("declared_missing", len(missing), n={"wanted": len(wanted)}, better="lower"),
            exact("declared_present_share", 1 - len(missing) / len(wanted), n={"wanted": len(wanted)}, better="higher"),
        ),
        exhibits=(
            Table(
                id="declared",
                title=f"{len(missing)} of {len(wanted)} wanted facts are missing" if missing else "All wanted facts are stated",
                how_to_read="One row per fact that the policy wants. The texts themselves stand in the sections they belong to.",
                alt=f"{len(wanted)} wanted facts, {len(missing)} missing: {', '.join(missing) or 'none'}.",
                caption="Declared by persons, not measured.",
                columns=(Column(name="fact"), Column(name="state"), Column(name="by"), Column(name="on")),
                rows=tuple(rows),
            ),
        ),
    )


def declaration_state(key: str, declared: Mapping[str, Any]) -> str:
    """ "stated", "missing", "placeholder" or "too short", of one declared fact."""
    text = _text(declared.get(key))
    if not text.strip():
        return "missing"
    if _PLACEHOLDER.match(text) or _EMPTY.match(text.strip()):
        return "placeholder"
    return "too short" if key in NEEDS_A_SENTENCE and len(re.findall(r"\w+", text)) < 3 else "stated"


def missing_declarations(wanted: Sequence[str], declared: Mapping[str, Any]) -> tuple[str, ...]:
    """The wanted facts that nobody has stated."""
    return tuple(key for key in dict.fromkeys(wanted) if declaration_state(key, declared) != "stated")


def _text(value: Any) -> str:  # Any: TOML values
    """The words of a declared value: text, a list, or {value, by, on}."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return _text(value.get("value"))
    if isinstance(value, list | tuple):
        parts = [_text(v) for v in value]
        return " ".join(p for p in parts if p.strip() and not _PLACEHOLDER.match(p) and not _EMPTY.match(p.strip()))
    return str(value)


def _part(declared: Mapping[str, Any], key: str, part: str) -> str | None:
    value = declared.get(key)
    if not _text(value).strip():
        return None
    own = value.get(part) if isinstance(value, Mapping) else None
    found = own if own is not None else declared.get(part)
    return None if found is None else str(found)


def evidence_hash(finding: Finding) -> str:
    """Twelve hex digits of the numbers of a finding, to six significant digits: what an answer says it has looked at."""
    metrics = () if finding.measurement is None else finding.measurement.metrics
    rows = [[m.name, dict(m.slice), None if m.value is None else f"{m.value:.6g}", dict(m.n)] for m in metrics]
    return hashlib.sha256(canonical_json([finding.code, *rows]).encode("utf-8", "surrogatepass")).hexdigest()[:SHORT_HASH]


@check(REVIEWS, "Reviews", section="governance", severity="medium", phase=3, multiplicity="none", values="same")
def reviews(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Have the questions that need a person been answered?

    How it is measured: the questions are those of the policy and those of limits above which a person must look. Each is looked up in
    [[declared.answers]]. An answer may name the evidence it speaks of, by the hash printed here; where the numbers have changed since, it is
    outdated. A question about a check that was not evaluated is shown and not counted.

    Why it matters: some numbers are right or wrong only for someone who knows the matter; silence would read as consent.

    How to reduce the risk: have the person answer, with name, date and the evidence hash, and answer again where the numbers have changed.
    """
    facts = _facts(context)
    found = {f.code: f for f in context.findings}
    asked: list[tuple[str, str, str | None]] = [(r.check, r.question, r.role) for r in facts.reviews]
    by_policy = {code for code, _, _ in asked}
    for f in context.findings:
        if f.code not in by_policy and _asks_a_person(f):
            asked.append((f.code, f"{f.title}: a value lies where a person must say whether it is right.", None))
    given: dict[str, Mapping[str, Any]] = {  # Any: TOML values
        str(a.get("check")): a for a in context.declared.get("answers", ()) if isinstance(a, Mapping) and _text(a.get("answer")).strip()
    }
    if not asked:
        raise NotEvaluated("no question needs a person: the policy asks none, and no limit asks for one")
    rows: list[tuple[Cell, ...]] = []
    states: list[str] = []
    for code, question, role in sorted(asked, key=lambda one: (one[0], one[1])):
        finding, answer = found.get(code), given.get(code)
        now = None if finding is None or finding.measurement is None else evidence_hash(finding)
        states.append(_review_state(answer, now))
        by = None if answer is None else _text(answer.get("by")) or None
        rows.append((code, question, role, states[-1], by, None if answer is None else _text(answer.get("on")) or None, now))
    count = {state: states.count(state) for state in ("open", "answered", "undated", "outdated", "not evaluated")}
    answered = count["answered"] + count["undated"] + count["outdated"]
    n = {"questions": len(states)}
    caveats = []
    if count["undated"]:
        caveats.append(f"{count['undated']} answers name no evidence hash: whether they speak of these numbers cannot be told.")
    if count["not evaluated"]:
        caveats.append(f"{count['not evaluated']} questions are about checks that were not evaluated: there is nothing to look at.")
    if unasked := sorted(set(given) - {code for code, _, _ in asked}):
        caveats.append(f"Answers to {', '.join(unasked)} were given, where nothing asks a person.")
    summary = f"{count['open']} of {len(states)} questions that need a person are open; {count['outdated']} answers are outdated."
    return Measurement(
        summary=summary,
        metrics=(
            exact("reviews_open", count["open"], n=n, better="lower"),
            exact("reviews_answered", answered, n=n, better="higher"),
            exact("reviews_outdated", count["outdated"], n=n, better="lower"),
        ),
        exhibits=(
            Table(
                id="reviews",
                title=summary,
                how_to_read="One row per question. An answer that names another evidence hash than the one shown speaks of other numbers.",
                alt=summary,
                caption="Answered by persons, not measured; the tool does not judge the answers.",
                columns=tuple(Column(name=name) for name in ("check", "question", "role", "state", "by", "on", "evidence")),
                rows=tuple(rows),
            ),
        ),
        caveats=tuple(caveats),
    )


def _asks_a_person(finding: Finding) -> bool:
    """Whether a limit of the finding asks for a person: its status is review, or was, before somebody answered."""
    return finding.status == "review" or (finding.status == "info" and any(limit.outcome == "broken" for limit in finding.limits))


def _review_state(answer: Mapping[str, Any] | None, now: str | None) -> str:
    if now is None:
        return "not evaluated"
    if answer is None:
        return "open"
    spoken_of = _text(answer.get("evidence")).strip()
    if not spoken_of:
        return "undated"
    return "answered" if len(spoken_of) >= SHORT_HASH and spoken_of.startswith(now) else "outdated"


@check("TLA903", "Policy before results", section="governance", severity="high", phase=3, multiplicity="none", values="same")
def policy_before_results(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Were limits set before results were seen?

    How it is measured: every run notes in the evidence folder which policy judged this model on this target. The policy came first if it is
    the one that judged first, or if its files were last changed before that (file metadata). Changes of the policy since are counted, and
    limits without a reason or with no other origin than a convention.

    Why it matters: a limit that is set after the result was seen can be set so that the result meets it.

    How to reduce the risk: agree on the policy first, keep it under version control with signed commits, and state why it was changed.
    """
    facts = _facts(context)
    history = facts.history
    caveats = (
        "The clock is that of file metadata and of the machine that ran the audit, which anyone can set: it is no proof.",
        "Earlier runs are those noted in this evidence folder; a folder that is temporary or was deleted knows of none.",
    )
    if not history or history[0].sha256 == facts.sha256:
        first: bool | None = True
    else:
        first = None if facts.changed is None else facts.changed <= history[0].at
    used = [*((u.id, u.version, u.sha256) for u in history), (facts.id, facts.version, facts.sha256)]
    changes = sum(a[2] != b[2] for a, b in pairwise(used))
    bare = sum(not rationale or rationale == NO_RATIONALE for _, _, _, rationale in facts.origins)
    conventional = sum(bool(_CONVENTION.search(origin)) for _, _, origin, _ in facts.origins)
    n = {"limits": len(facts.origins)}
    steps = [u for i, u in enumerate(used) if i == 0 or used[i - 1][2] != u[2]]
    said = "is not known to predate" if first is None else "predates" if first else "was changed after"
    summary = f"The policy {said} the first results known; it was changed {changes} times since."
    return Measurement(
        summary=summary,
        metrics=(
            exact(
                "policy_predates_evidence",
                first,
                better="higher",
                reason="the policy came from no file, so that its age is not known" if first is None else None,
            ),
            exact("policy_changes_after_first_run", changes, better="lower"),
            exact("limits_without_rationale", bare, n=n, better="lower"),
            exact("limits_conventional", conventional, n=n),
        ),
        exhibits=(
            Table(
                id="policies",
                title=f"{len(steps)} policies judged this model on this target"
                if len(steps) > 1
                else "One policy judged this model on this target",
                how_to_read="In the order in which they were used; the last one judged this report.",
                alt=summary,
                caption="From the history in the evidence folder.",
                columns=(Column(name="policy"), Column(name="version"), Column(name="sha256")),
                rows=tuple((name, version, sha[:SHORT_HASH]) for name, version, sha in steps),
            ),
        ),
        caveats=caveats,
    )


_CONVENTION = re.compile(r"\b(ours|conventions?)\b", re.IGNORECASE)


@check("TLA905", "Waivers", section="governance", severity="medium", phase=3, multiplicity="none", values="same")
def waivers(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Which broken limits are excused, by whom, until when?

    How it is measured: the waivers of the policy are held against the date of this report and against the limits that are broken. A waiver
    keeps the status of what it covers; it only lets the gate pass. One that has expired covers nothing; one that covers no broken limit is unused.

    Why it matters: an excuse that nobody ends becomes the rule.

    How to reduce the risk: mend what is waived, or have it approved again with a date; take away waivers that nothing needs.
    """
    facts = _facts(context)
    if not facts.waivers:
        raise NotEvaluated("no waiver: the policy excuses nothing")
    found = {f.code: f for f in context.findings}
    states = [_waiver_state(w, found.get(w.check), facts) for w in facts.waivers]
    n = {"waivers": len(states)}
    expired, unused = states.count("expired"), states.count("unused")
    active = len(states) - expired
    summary = f"{active} waivers are in force, {expired} have expired, {unused} cover nothing."
    rows: list[tuple[Cell, ...]] = [
        (w.check, w.metric, ", ".join(f"{k} = {v}" for k, v in sorted(w.slice.items())) or None, w.reason, w.approved_by, w.expires, state)
        for w, state in zip(facts.waivers, states, strict=True)
    ]
    return Measurement(
        summary=summary,
        metrics=(
            exact("waivers_active", active, n=n),
            exact("waivers_expired", expired, n=n, better="lower"),
            exact("waivers_unused", unused, n=n, better="lower"),
        ),
        exhibits=(
            Table(
                id="waivers",
                title=summary,
                how_to_read="One row per waiver of the policy. What is waived keeps its status.",
                alt=summary,
                caption="Declared in the policy, not measured.",
                columns=tuple(Column(name=name) for name in ("check", "metric", "slice", "reason", "approved by", "expires", "state")),
                rows=tuple(rows),
            ),
        ),
    )


def _waiver_state(waiver: Waiver, finding: Finding | None, facts: PolicyFacts) -> str:
    """ "expired", "used", "unused", or "not evaluated" where the limits it speaks of were not held against anything."""
    if not waiver.active(facts.today):
        return "expired"
    if finding is None or finding.measurement is None:
        return "not evaluated"
    return "used" if any(x.outcome == "broken" and waiver.covers(x.metric, x.slice) for x in finding.limits) else "unused"


@check("TLA904", "Age of framework maps", section="governance", severity="low", phase=3, multiplicity="none", values="same")
def age_of_framework_maps(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Is the clause map of each framework that the policy names current?

    How it is measured: the days between the date on which a map was last revised and today. A map says where a report speaks to a clause; it
    never says that a clause is met. Entries that nobody compared with the document itself are counted.

    Why it matters: laws and standards change, and a report that cites an old clause misleads the person who signs.

    How to reduce the risk: compare the map with the present text, or update tl-audit; until then read the clauses as pointers only.
    """
    facts = _facts(context)
    if not facts.frameworks:
        raise NotEvaluated("a policy file that names frameworks: [policy] frameworks = [...], which `tl-audit init --frameworks` writes")
    metrics, said = [], []
    rows: list[tuple[Cell, ...]] = []
    for name in facts.frameworks:
        where = {"framework": name}
        if name not in names():
            why = f"this installation has no clause map {name!r}; there are: {', '.join(names())}"
            metrics.append(exact("mapping_age_days", None, slice=where, better="lower", unit="days", reason=why))
            rows.append((name, None, None, None, None, why))
            said.append(f"{name}: no map")
            continue
        found = load_framework(name)
        age, checked = found.age(facts.today), sum(e.verified for e in found.entries)
        metrics.append(exact("mapping_age_days", age, slice=where, better="lower", unit="days", n={"entries": len(found.entries)}))
        rows.append((found.title, found.as_of.isoformat(), age, len(found.entries), checked, found.status))
        said.append(f"{name}: map as of {found.as_of.isoformat()}, {age} days old")
    table = Table(
        id="framework-maps",
        title="Clause maps of the frameworks that the policy names",
        how_to_read="One row per framework. A map points from clauses to evidence; it judges nothing. Checked: entries that a person compared with the text.",
        alt="; ".join(said) + ".",
        caption=f"Age on {facts.today.isoformat()}, by the clock of this machine.",
        columns=(
            Column(name="framework"), Column(name="as of"), Column(name="age, days", format="count"), Column(name="entries", format="count"),
            Column(name="checked", format="count"), Column(name="state of the document"),
        ),
        rows=tuple(rows),
    )  # fmt: skip
    return Measurement(
        summary="; ".join(said)[:1].upper() + "; ".join(said)[1:] + ".",
        metrics=tuple(metrics),
        exhibits=(table,),
        caveats=("Mappings that were not checked against the primary text are pointers, not statements about the law.",),
    )


def _facts(context: Context) -> PolicyFacts:
    if context.policy is None:
        raise NotEvaluated("the policy: this check runs inside an audit only")
    return context.policy


GOVERNANCE: tuple[Check, ...] = (declared_facts, reviews, policy_before_results, age_of_framework_maps, waivers)
