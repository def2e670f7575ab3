"""The form of a check: a function of (subject, evidence) with its code, needs and three-part help. Measures, never judges."""

from __future__ import annotations

import datetime
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from tl_audit.evidence.base import Evidence, missing_input, missing_model
from tl_audit.measures.estimate import Estimate
from tl_audit.policy import Rules
from tl_audit.policy.limits import Review, Waiver
from tl_audit.records.findings import Finding, Section, Severity
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.records.values import Task
from tl_audit.subject import MODEL_KEYS, ROLES, Subject

CLASSES = "classes"
"the need of a check that has no meaning where labels are numbers"


@dataclass(frozen=True)
class PolicyUse:
    """A policy that judged these results once, and when (ISO time, UTC, by the clock of that machine)."""

    id: str
    version: int
    sha256: str
    at: str


@dataclass(frozen=True)
class PolicyFacts:
    """What governance checks may know of the policy: who asks and excuses what, and where limits come from. No bound of any limit.

    Attributes
    ----------
    frameworks : ids of the clause maps that the policy names
    changed : ISO time of the last change of the policy's files (UTC, file metadata); None: it came from no file
    origins : (check, metric, origin, rationale) of every limit; the rationale is None where none was given
    history : the policies that judged the same model on the same target before, in order, as far as the evidence folder knows
    today : the date against which waivers are read
    """

    id: str
    version: int
    sha256: str
    changed: str | None
    origins: tuple[tuple[str, str, str, str | None], ...]
    reviews: tuple[Review, ...]
    waivers: tuple[Waiver, ...]
    frameworks: tuple[str, ...]
    history: tuple[PolicyUse, ...]
    today: datetime.date


@dataclass(frozen=True)
class Context:
    """What a check may know beyond subject and evidence.

    ``findings`` holds the judged findings of the phases before, ``declared`` the declared facts, ``progress`` a callback,
    ``policy`` what the checks of governance may know of the policy (phase 3 only).
    """

    rules: Rules
    seed: int
    declared: Mapping[str, Any]
    findings: tuple[Finding, ...] = ()
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    policy: PolicyFacts | None = None


class CheckFunction(Protocol):
    def __call__(self, subject: Subject, evidence: Evidence, context: Context) -> Measurement: ...


@dataclass(frozen=True)
class Check:
    """A check: its identity, what it needs, and its function.

    needs : words compared by the runner with what exists, each one of
        "adapted", "base", "previous", "control:head", "control:scratch" (a model) · "target", "source", "train", "validation", "ood" (a domain) ·
        "ROLE.labels", "ROLE.groups", "ROLE.cluster", "ROLE.time", "ROLE.site", "ROLE.regions" · "record" (adaptation record) · "adapted.file", "base.file" (weights file) · "adapter" (low-rank adapters) · "cues" · "declared" ·
        "classes" (labels are class names, not numbers) · "MODEL@ROLE" (the evidence pair, e.g. "adapted@target": model outputs there are finite and can be had) ·
        "a|b" (either). A check with several alternatives inside asks less here and raises NotEvaluated itself.
    phase : 1 runs on evidence, 2 on findings of phase 1 as well (705 to 711, 803), 3 on all findings and the policy's facts (902 to 905)
    after : codes of the phase-1 findings that a phase-2 check reads, where it runs models: its numbers are stored under their outcomes
    version : raised when the numbers change; part of the cache key
    runs_models : may run a model itself (families 7 and 8, 608, ...)
    multiplicity : how the runner adjusts p_value inside the check: "holm" (per metric name and slice columns), "bh" (exploratory lists), "none"
    optional : runs, and stands in the record, only where the policy asks for it (``add_checks``)
    values : how the check is measured where labels are numbers (regression): "same" as with classes, by a function of its own (whose
        docstring then is the help), or None: not at all
    """

    code: str
    title: str
    section: Section
    severity: Severity
    function: CheckFunction
    needs: tuple[str, ...] = ()
    phase: Literal[1, 2, 3] = 1
    version: int = 1
    runs_models: bool = False
    multiplicity: Literal["holm", "bh", "none"] = "holm"
    after: tuple[str, ...] = ()
    optional: bool = False
    values: CheckFunction | Literal["same"] | None = None

    def for_task(self, task: Task) -> Check:
        """The check as it is measured for this task; where it is not, one that needs classes."""
        if task == "classification" or self.values == "same":
            return self
        if self.values is None:
            return replace(self, needs=(CLASSES,))
        return replace(self, function=self.values, values="same")

    def __call__(self, subject: Subject, evidence: Evidence, context: Context) -> Measurement:
        return self.function(subject, evidence, context)

    @property
    def help(self) -> dict[str, str]:
        """Three parts of the docstring: how it is measured, why it matters, how to reduce the risk; and the first line."""
        text = inspect.getdoc(self.function) or ""
        parts = {"asks": text.split("\n\n")[0].replace("\n", " ").strip()}
        heads = {"How it is measured:": "measured", "Why it matters:": "matters", "How to reduce the risk:": "reduce"}
        current: str | None = None
        for line in text.splitlines():
            for head, key in heads.items():
                if line.strip().startswith(head):
                    current = key
                    line = line.strip()[len(head) :]
            if current is not None:
                if not line.strip():
                    current = None
                    continue
                parts[current] = (parts.get(current, "") + " " + line.strip()).strip()
        return parts


def lacking(need: str, subject: Subject, evidence: Evidence, declared: Mapping[str, Any]) -> str | None:
    """None where a need of ``Check.needs`` is met, else what is missing, in words."""
    words = [_lacking(word, subject, evidence, declared) for word in need.split("|")]
    return None if any(word is None for word in words) else " or ".join(dict.fromkeys(word for word in words if word is not None))


def _lacking(need: str, subject: Subject, evidence: Evidence, declared: Mapping[str, Any]) -> str | None:
    if "@" in need:
        model, _, role = need.partition("@")
        return evidence.why_not(model, role)
    if need == CLASSES:
        return None if subject.task == "classification" else missing_input(CLASSES)
    if need in MODEL_KEYS:
        return None if subject.model(need) is not None else missing_model(subject, need)
    if need in ("adapted.file", "base.file"):
        model_of = subject.model(need.removesuffix(".file"))
        return None if model_of is not None and model_of.file is not None else missing_input(need)
    if need in ("record", "cues", "declared", "adapter"):
        there = {
            "record": subject.record is not None,
            "cues": bool(subject.cues),
            "declared": bool(declared),
            "adapter": subject.adapter is not None,
        }
        return None if there[need] else missing_input(need)
    role, _, part = need.partition(".")
    if role not in ROLES or part not in ("", "labels", "groups", "cluster", "time", "site", "regions"):
        raise ValueError(f"unknown need {need!r}")
    domain = subject.domain(role)
    if domain is None:
        return missing_input(role)
    given = {
        "": True, "labels": domain.labelled, "groups": bool(domain.groups), "cluster": domain.cluster is not None,
        "regions": domain.regions is not None, "time": domain.periods is not None, "site": domain.site is not None,
    }  # fmt: skip
    return None if given[part] else missing_input(need)


def check(
    code: str,
    title: str,
    *,
    section: Section,
    severity: Severity,
    needs: Sequence[str] = (),
    phase: Literal[1, 2, 3] = 1,
    version: int = 1,
    runs_models: bool = False,
    multiplicity: Literal["holm", "bh", "none"] = "holm",
    after: Sequence[str] = (),
    optional: bool = False,
    values: CheckFunction | Literal["same"] | None = None,
) -> Callable[[CheckFunction], Check]:
    """Make a check of a function ``(subject, evidence, context) -> Measurement``.

    The docstring: first line = the auditor's question, then paragraphs that begin "How it is measured:", "Why it matters:", "How to reduce the risk:".
    """

    def wrap(function: CheckFunction) -> Check:
        return Check(
            code,
            title,
            section,
            severity,
            function,
            tuple(needs),
            phase,
            version,
            runs_models,
            multiplicity,
            tuple(after),
            optional,
            values,
        )

    return wrap


def metric(
    name: str,
    estimate: Estimate,
    *,
    rules: Rules,
    role: str = "target",
    better: Literal["lower", "higher"] | None = None,
    slice: Mapping[str, str] | None = None,
    unit: str | None = None,
    n: Mapping[str, int] | None = None,
    clusters: Mapping[str, int] | None = None,
    family: str | None = None,
    min_n: int | None = None,
    min_events: int | None = None,
    reason: str | None = None,
) -> Metric:
    """A Metric from an Estimate: interval at the policy's confidence, ladder kept, n under ``role`` unless ``n`` is given."""
    interval = None if estimate.value is None else estimate.interval(rules.confidence)
    why = reason or estimate.reason
    if estimate.value is not None and interval is None and why is None:
        why = "no sound interval exists for this statistic"
    return Metric(
        name=name,
        value=estimate.value,
        reason=why,
        interval=interval,
        confidence=None if interval is None else rules.confidence,
        null=estimate.null,
        p_value=estimate.p_value,
        n=dict(n) if n is not None else {role: estimate.n},
        clusters=dict(clusters) if clusters is not None else (None if estimate.clusters is None else {role: estimate.clusters}),
        slice=dict(slice or {}),
        unit=unit,
        better=better,
        family=family,
        events=estimate.events,
        nonevents=estimate.nonevents,
        min_n=min_n,
        min_events=min_events,
        ladder=estimate.ladder if estimate.value is not None else (),
    )


def exact(
    name: str,
    value: float | None,
    *,
    n: Mapping[str, int] | None = None,
    better: Literal["lower", "higher"] | None = None,
    slice: Mapping[str, str] | None = None,
    unit: str | None = None,
    null: float | None = None,
    reason: str | None = None,
) -> Metric:
    """A Metric of rule C: a hash comparison, a count or share of the whole set. No interval, no p."""
    return Metric(
        name=name,
        value=None if value is None else float(value),
        exact=True,
        n=dict(n or {}),
        better=better,
        slice=dict(slice or {}),
        unit=unit,
        null=null,
        reason=reason,
    )
