"""The flow of an audit: collect, measure, correct, judge, gate, reconcile. From a subject and a policy to an ``AuditResult``."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import inspect
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tl_audit.attribution import explainer
from tl_audit.attribution.stamps import GATE_CODES, gate_of
from tl_audit.checks.base import Check, Context, PolicyFacts, PolicyUse, lacking
from tl_audit.checks.governance import REVIEWS, missing_declarations
from tl_audit.checks.stamps import GATE, stamped, stamps
from tl_audit.errors import ConfigError, Interrupted, MissingExtra, NotEvaluated
from tl_audit.evidence import Store, StoredEvidence
from tl_audit.evidence.cards import subject_card
from tl_audit.evidence.keys import input_key
from tl_audit.evidence.passes import default_pairs
from tl_audit.evidence.store import key_of
from tl_audit.evidence.surroundings import Stopper, deterministic, environment, on_device, untouched_randomness
from tl_audit.measures.multiplicity import benjamini_hochberg, holm
from tl_audit.policy import Policy, gate, judge, profiles_adding
from tl_audit.policy.judge import family_of
from tl_audit.records.findings import AuditResult, Finding
from tl_audit.records.metrics import Measurement
from tl_audit.records.privacy import redact, redact_all, suppress
from tl_audit.records.reconciliation import breaches
from tl_audit.subject import ROLES, Subject

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
Measured = Measurement | Finding
"""What measuring a check gave: numbers to be judged, or a finding already (not_evaluated, error)."""

DEFAULT_METHODS = ("grad_cam", "integrated_gradients", "kernel_shap", "lime")
INTERRUPTED = "interrupted"
DESELECTED = "deselected"


def run(
    subject: Subject,
    *,
    policy: Policy,
    checks: Sequence[Check] | None = None,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    seed: int = 0,
    device: str = "auto",
    samples: str = "off",
    methods: Sequence[str] = DEFAULT_METHODS,
    attribution_samples: int | None = None,
    declared: Mapping[str, Any] | None = None,
    evidence_dir: str | Path | None = None,
    resume: bool = True,
    title: str | None = None,
    created: str | None = None,
    progress: Progress | None = None,
    config: Mapping[str, Any] | None = None,
    budget: int | None = None,
    fail_on: str | None = None,
    observe: Callable[[StoredEvidence, tuple[tuple[str, str], ...]], None] | None = None,
) -> AuditResult:
    """Audit a subject under a policy.

    Parameters
    ----------
    checks : None: the built-in ones; an optional one runs only where the policy asks for it, and stands in the record only then
    select, ignore : code prefixes; what is left out stands in the result as ``not_evaluated`` ("deselected")
    samples : off | redacted | on, lowered to the policy's ceiling
    methods, attribution_samples, budget : explainers, rows explained per domain (None: the policy's), model evaluations per row (None: 256)
    evidence_dir : where evidence is kept between runs; None: a temporary folder
    resume : False: stored evidence is given up first
    created : ISO time of the record, UTC; None: now
    progress : told (what, done, total)
    config : what the caller was asked to do (command, audit.toml); paths, names and tokens are redacted
    fail_on : instead of the policy stage's own
    observe : given the evidence, and the (model, domain) pairs that the checks looked at, before it is closed; not called after an interruption

    Raises
    ------
    TLAuditError : an input that cannot be used
    Interrupted : asked to stop once more while the partial record was being made; before that a partial result is returned
    RuntimeError : the record does not reconcile, which is our bug
    """
    checks = asked_for(_builtin() if checks is None else checks, policy, select)
    checks = [one.for_task(subject.task) for one in _checked(checks, select, ignore)]
    for method in methods:
        explainer(method)  # a mistyped name is said before anything is run
    facts = _plain(declared or {})
    tell = progress or (lambda what, done, total: None)
    created = created or datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    shown = policy.samples_allowed(samples)
    with Stopper() as stop, deterministic(device) as where, Store(evidence_dir) as store:
        if not resume:
            store.clear()
        subject = on_device(subject, where)
        evidence = StoredEvidence(
            subject,
            store=store,
            rules=policy.rules,
            seed=seed,
            samples=shown,
            methods=methods,
            attribution_samples=attribution_samples,
            budget=budget,
            progress=tell,
            stop=stop,
        )
        audit = _Audit(subject, evidence, policy, facts, seed, _stopping(tell, stop), datetime.date.fromisoformat(created[:10]))
        chosen = [one for one in checks if _selected(one.code, select, ignore)]

        measured = audit.measure([one for one in chosen if one.phase == 1])
        findings = audit.judge(measured)
        for phase in (2, 3):
            findings |= audit.judge(audit.measure([one for one in chosen if one.phase == phase], tuple(findings.values())))
        audit.remember_policy()
        findings |= {one.code: not_evaluated(one, DESELECTED) for one in checks if one.code not in findings}

        if observe is not None and audit.partial is None:
            observe(evidence, pairs_of(chosen, subject))
        ordered = with_q_values([findings[one.code] for one in checks])
        marks = stamps(findings.get(GATE), evidence.methods)
        ordered = [stamped(f, marks) for f in ordered]
        columns = frozenset(name for domain in subject.domains.values() for name in domain.groups)
        ordered = [suppress(f, below=policy.rules.suppress_below, group_columns=columns) for f in ordered]
        outcome = gate(
            ordered,
            policy,
            fail_on=fail_on,
            declared_missing=missing_declarations(policy.rules.declare, facts),
            partial=audit.partial,
        )
        card = policy.card()
        result = AuditResult(
            title=title or subject.title or f"{subject.adapted.name} on {subject.target.name}",
            created=created,
            tool={"name": "tl-audit", "version": _version()},
            outcome=outcome,
            subject=subject_card(subject, evidence, suppress_below=policy.rules.suppress_below),
            policy=card if fail_on is None else card.model_copy(update={"fail_on": fail_on}),
            declared=facts,
            environment=environment(where),
            config=redact_all(
                {
                    **_plain(config or {}),
                    "seed": seed,
                    "samples": shown,
                    "methods": list(evidence.methods),
                    "attribution_samples": evidence.attribution_samples,
                    "budget": budget,
                    "select": list(select),
                    "ignore": list(ignore),
                }
            ),
            caveats=tuple(redact(text) for text in (*_notes_of(subject), *evidence.caveats)),
            findings=tuple(ordered),
        )
    if wrong := breaches(result):
        raise RuntimeError("the record does not reconcile, which is a bug of tl_audit: " + "; ".join(wrong[:10]))
    return result


@dataclass
class _Audit:
    """One audit under way: what every check is given, and whether it was asked to stop."""

    subject: Subject
    evidence: StoredEvidence
    policy: Policy
    declared: Mapping[str, Any]
    seed: int
    progress: Progress
    today: datetime.date
    partial: str | None = None
    inputs: str | None = None

    def measure(self, checks: Sequence[Check], findings: tuple[Finding, ...] = ()) -> dict[str, tuple[Check, Measured, float]]:
        """Every check measured once. After the first request to stop the rest is ``not_evaluated``."""
        out: dict[str, tuple[Check, Measured, float]] = {}
        try:
            if self.partial is None and checks and self.inputs is None:
                self.evidence.prefetch(pairs_of(checks, self.subject))
                self.inputs = input_key(self.evidence, self.declared)
        except Interrupted as request:
            self._stopped(request, 0, len(checks))
        facts = self.policy_facts() if checks and checks[0].phase == 3 else None
        context = Context(self.policy.rules, self.seed, self.declared, findings, self.progress, facts)
        for number, one in enumerate(checks):
            started = time.monotonic()
            found: Measured
            if self.partial is not None:
                found = not_evaluated(one, INTERRUPTED)
            else:
                try:
                    self.progress(f"{one.code} {one.title}", number, len(checks))
                    found = self._measured(one, context)
                except Interrupted as request:
                    self._stopped(request, number, len(checks))
                    found = not_evaluated(one, INTERRUPTED)
            out[one.code] = (one, found, time.monotonic() - started)
        return out

    def policy_facts(self) -> PolicyFacts:
        """What governance checks may know of the policy, with those that judged this model on this target before."""
        policy, name = self.policy, self._history_name()
        before = [] if name is None else self.evidence.store.read_json("history", name) or []
        return PolicyFacts(
            id=policy.id,
            version=policy.version,
            sha256=policy.sha256,
            changed=policy.changed,
            origins=tuple((limit.check, limit.metric, limit.origin, limit.rationale) for limit in policy.limits),
            reviews=policy.reviews,
            waivers=policy.waivers,
            frameworks=policy.frameworks,
            history=tuple(PolicyUse(**use) for use in before),
            today=self.today,
        )

    def remember_policy(self) -> None:
        """Note the policy that judged, unless it is the one that judged last (TLA903). It outlives evidence that is given up."""
        name = self._history_name()
        if name is None:
            return
        known = self.evidence.store.read_json("history", name) or []
        if known and known[-1]["sha256"] == self.policy.sha256:
            return
        # the clock of the machine, not the date that the caller gave the record
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        use = {"id": self.policy.id, "version": self.policy.version, "sha256": self.policy.sha256, "at": now}
        self.evidence.store.write_json([*known, use], "history", name)

    def _history_name(self) -> str | None:
        """Where the policies that judged this model on this target are noted; None where nothing is kept, or nothing was read."""
        if self.evidence.store.temporary or self.inputs is None:
            return None
        collector = self.evidence.collector
        return key_of("policies", collector.fingerprint("adapted"), collector.scan("target").content_key()) + ".json"

    def _stopped(self, request: Interrupted, done: int, total: int) -> None:
        name = "SIGTERM" if request.exit_code == 143 else "SIGINT"
        self.partial = f"{INTERRUPTED} by {name} after {done} of {total} checks"
        log.warning(self.partial)

    def _measured(self, one: Check, context: Context) -> Measured:
        gaps = {need: gap for need in one.needs if (gap := lacking(need, self.subject, self.evidence, self.declared)) is not None}
        if gaps:
            return not_evaluated(one, "; ".join(dict.fromkeys(gaps.values())), missing=tuple(gaps))
        stored = self._stored_name(one, context.findings)
        if stored is not None and (known := self.evidence.store.read_json("measurements", stored)) is not None:
            return Measurement.model_validate_json(known)
        try:
            with untouched_randomness(self.seed, one.code), contextlib.redirect_stdout(sys.stderr):
                measurement = one(self.subject, self.evidence, context)
            if not isinstance(measurement, Measurement):
                raise TypeError(f"{one.code} returned {type(measurement).__name__}, expected a Measurement")
        except (NotEvaluated, MissingExtra) as gap:
            return not_evaluated(one, str(gap))
        except Interrupted:
            raise
        except Exception as error:  # one broken check must not end the audit (F37)
            log.exception("%s failed", one.code)
            text = redact(" ".join(f"{type(error).__name__}: {error}".split()))
            return _unmeasured(one, "error", f"The check failed: {text if len(text) <= 200 else text[:197] + '...'}")
        if stored is not None:
            # as one text: the order of keys shows in sentences
            self.evidence.store.write_json(measurement.model_dump_json(context={"ladder": True}), "measurements", stored)
        return measurement

    def _stored_name(self, one: Check, findings: Sequence[Finding]) -> str | None:
        """Name of the stored measurement; None for what depends on any finding. What reads a few findings is stored under their outcomes."""
        if self.inputs is None or one.phase == 3 or (one.phase == 2 and not one.after):
            return None
        try:
            source = inspect.getsource(one.function)  # type: ignore[arg-type]
        except (OSError, TypeError):  # typed into a notebook or an interpreter: its code cannot be told from another's
            return None
        read = [
            json.dumps([f.code, f.status, [[x.metric, dict(x.slice), x.level, x.value, x.outcome] for x in f.limits]], sort_keys=True)
            for f in findings
            if f.code in one.after and f.code not in GATE_CODES
        ]
        if set(one.after) & set(GATE_CODES):
            # of the gate's findings nothing but its verdicts is read: a limit that changes none of them leaves the measurement as it is
            gates = [f for f in findings if f.code in GATE_CODES]
            read.append(json.dumps([[method, *gate_of(method, gates)] for method in self.evidence.methods]))
        parts = (one.code, str(one.version), self.inputs, source, *read)
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest() + ".json"

    def judge(self, measured: Mapping[str, tuple[Check, Measured, float]]) -> dict[str, Finding]:
        """Findings by code: p-values corrected inside each check, then held against the limits of the policy."""
        # no answer closes the list of open questions itself
        given = [a for a in self.declared.get("answers", ()) if isinstance(a, Mapping) and a.get("answer")]
        answered = tuple(str(a.get("check")) for a in given if a.get("check") != REVIEWS)
        out = {}
        for code, (one, found, seconds) in measured.items():
            if isinstance(found, Measurement):
                found = judge(
                    code,
                    one.title,
                    one.section,
                    one.severity,
                    corrected(found, one),
                    self.policy,
                    help=one.help,
                    seconds=seconds,
                    answered=answered,
                    today=self.today,
                )
            out[code] = found
        return out


def corrected(measurement: Measurement, one: Check) -> Measurement:
    """The measurement with ``p_adjusted``: Holm or Benjamini-Hochberg over each family of p-values ([M1], [M2])."""
    if one.multiplicity == "none":
        return measurement
    families: dict[tuple[str, ...], list[int]] = {}
    for i, metric in enumerate(measurement.metrics):
        if metric.p_value is not None:
            families.setdefault(family_of(metric), []).append(i)
    metrics = list(measurement.metrics)
    for members in families.values():
        adjust = holm if one.multiplicity == "holm" else benjamini_hochberg
        for i, p in zip(members, adjust([metrics[i].p_value for i in members]), strict=True):
            metrics[i] = metrics[i].model_copy(update={"p_adjusted": p})
    return measurement.model_copy(update={"metrics": tuple(metrics)})


def with_q_values(findings: Sequence[Finding]) -> list[Finding]:
    """Findings with ``q_check``: Benjamini-Hochberg over the smallest adjusted p of each check ([M3]). Never sets a status."""
    smallest: list[float | None] = []
    for finding in findings:
        metrics = () if finding.measurement is None else finding.measurement.metrics
        known = [p for m in metrics if (p := m.p_adjusted if m.p_adjusted is not None else m.p_value) is not None]
        smallest.append(min(known) if known else None)
    return [f.model_copy(update={"q_check": q}) for f, q in zip(findings, benjamini_hochberg(smallest), strict=True)]


def not_evaluated(one: Check, reason: str, *, missing: Sequence[str] = ()) -> Finding:
    """The finding of a check that could not be measured; the reason names what is missing."""
    text = " ".join(redact(reason).split()) or "an input is missing"
    names_an_input = text[0].islower() and not text.startswith((DESELECTED, INTERRUPTED, "needs ", "no "))
    return _unmeasured(one, "not_evaluated", f"needs {text}" if names_an_input else text, missing)


def _unmeasured(one: Check, status: Any, reason: str, missing: Sequence[str] = ()) -> Finding:  # Any: one of two statuses
    return Finding(
        code=one.code, section=one.section, title=one.title, status=status, reason=reason, severity=one.severity, missing=tuple(missing), help=one.help
    )  # fmt: skip


def pairs_of(checks: Sequence[Check], subject: Subject) -> tuple[tuple[str, str], ...]:
    """The default pairs that these checks name: what is worth running in one pass. Anything else is run when it is asked for."""
    words = {part for one in checks for need in one.needs for word in need.split("|") for part in (*word.split("@"), word.split(".")[0])}
    roles = words & set(ROLES)
    return tuple((key, role) for key, role in default_pairs(subject) if key in words and role in roles)


def asked_for(checks: Sequence[Check], policy: Policy, select: Sequence[str] = ()) -> list[Check]:
    """The checks without the optional ones that this policy does not ask for. ConfigError if ``select`` names one of those."""
    for one in checks:
        if one.optional and not policy.adds(one.code) and one.code in select:
            known = profiles_adding(one.code)
            where = f"the policy {' or '.join(known)}, or " if known else ""
            raise ConfigError(
                f"{one.code} runs only where the policy asks for it, and {policy.id} does not: use {where}"
                f'a policy of your own with add_checks = ["{one.code}"] in [policy]'
            )
    return [one for one in checks if not one.optional or policy.adds(one.code)]


def _checked(checks: Sequence[Check], select: Sequence[str], ignore: Sequence[str]) -> list[Check]:
    codes = [one.code for one in checks]
    if double := sorted({code for code in codes if codes.count(code) > 1}):
        raise ConfigError(f"two checks have the code {', '.join(double)}: each needs its own")
    for prefix in (*select, *ignore):
        if not any(code.startswith(prefix) for code in codes):
            raise ConfigError(f"no check has a code that begins with {prefix!r}; there are {codes[0]} to {codes[-1]}, see: tl-audit checks")
    return sorted(checks, key=lambda one: one.code)


def _selected(code: str, select: Sequence[str], ignore: Sequence[str]) -> bool:
    return (not select or code.startswith(tuple(select))) and not code.startswith(tuple(ignore) or "\0")


def _stopping(progress: Progress, stop: Callable[[], None]) -> Progress:
    def told(what: str, done: int, total: int) -> None:
        stop()
        progress(what, done, total)

    return told


def _notes_of(subject: Subject) -> Iterator[str]:
    for role, domain in subject.domains.items():
        for note in domain.notes:
            yield f"{role}: {note}"
        if domain.skipped:
            named = ", ".join(f"{name} ({reason})" for name, reason in domain.skipped[:20])
            more = len(domain.skipped) - 20
            yield f"{role}: {len(domain.skipped)} files were left out: {named}" + (f" and {more} more" if more > 0 else "")
    for key, model in subject.models.items():
        for note in model.facts.get("notes", ()):
            yield f"{key}: {note}"


def _plain(data: Any) -> Any:  # Any: TOML values in, JSON values out
    if isinstance(data, Mapping):
        return {str(k): _plain(v) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(v) for v in data]
    if isinstance(data, datetime.date | datetime.datetime | datetime.time):
        return data.isoformat()
    return data if isinstance(data, str | int | float | bool | type(None)) else str(data)


def _builtin() -> Sequence[Check]:
    from tl_audit.checks import BUILTIN

    return BUILTIN


def _version() -> str:
    # by name: the front door stands above the runner, and only its version is wanted
    version: str = import_module("tl_audit").__version__
    return version
