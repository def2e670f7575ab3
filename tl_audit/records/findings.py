"""Limits, their outcomes, findings, and the audit result: the single source of truth of every export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from tl_audit.records.base import Displayable, Fraction, Pair, Record
from tl_audit.records.metrics import Measurement, Metric

Status = Literal["pass", "warn", "fail", "inconclusive", "review", "info", "not_evaluated", "error"]
STATUSES: tuple[Status, ...] = ("pass", "warn", "fail", "inconclusive", "review", "info", "not_evaluated", "error")
WORST_FIRST: tuple[Status, ...] = ("fail", "error", "warn", "inconclusive", "review", "not_evaluated", "info", "pass")
Severity = Literal["critical", "high", "medium", "low", "info"]
SEVERITIES: tuple[Severity, ...] = ("critical", "high", "medium", "low", "info")
Section = Literal["provenance", "data", "performance", "transfer", "shift", "fairness", "explanations", "robustness", "governance"]
SECTIONS: tuple[Section, ...] = (
    "provenance", "data", "performance", "transfer", "shift", "fairness", "explanations", "robustness", "governance",
)  # fmt: skip
Rule = Literal["interval", "interval+test", "effect+test", "exact", "point"]
"""interval: rule A · interval+test: rule A and adjusted p < alpha · effect+test: rule B · exact: rule C · point: interval ignored, said"""


class LimitOutcome(Record):
    """A limit of the policy held against one metric (one slice of it)."""

    metric: str
    slice: Mapping[str, str] = Field(default_factory=dict)
    level: Literal["warn", "fail"]
    bound: Literal["max", "min", "abs"]
    value: float
    rule: Rule
    origin: str
    rationale: str | None = None
    clauses: tuple[str, ...] = ()
    confidence_used: Fraction | None = None
    interval_used: Pair | None = None
    p_limit: Fraction | None = None
    p_limit_adjusted: Fraction | None = None
    outcome: Literal["broken", "met", "undecided", "not_judged"]
    "not_judged: the metric is null, or below a minimum that the block exempts; the note says which"
    missing_n: int | None = None
    "how many more units would settle an undecided limit (80 % chance if the truth equals the estimate)"
    detectable: float | None = None
    "for a met limit: the value detectable with power 0.8"
    note: str | None = None


class Finding(Displayable):
    """A measurement with its status under a policy. ``measurement`` is None for not_evaluated and error."""

    code: str = Field(pattern=r"^[A-Z]{2,8}[0-9]{3,4}$")
    section: str
    title: str
    status: Status
    reason: str
    severity: Severity
    measurement: Measurement | None = None
    limits: tuple[LimitOutcome, ...] = ()
    missing: tuple[str, ...] = ()
    "inputs that were missing (not_evaluated)"
    questions: tuple[str, ...] = ()
    "what a person must answer (review)"
    q_check: Fraction | None = None
    "Benjamini-Hochberg over all checks with a p-value (M3); never sets a status"
    warn_excluded: bool | None = None
    waived_until: str | None = None
    waived_by: str | None = None
    params: Mapping[str, Any] = Field(default_factory=dict)
    help: Mapping[str, str] = Field(default_factory=dict)
    "three parts from the docstring of the check: measured, matters, reduce"
    seconds: float | None = None

    @property
    def metrics(self) -> Metrics:
        """``finding.metrics["mmd2"]``: the unsliced or only metric of that name; an error that lists the slices otherwise."""
        return Metrics(() if self.measurement is None else self.measurement.metrics)

    @property
    def exhibits(self) -> dict[str, Any]:
        """Exhibits by slug id."""
        return {} if self.measurement is None else {e.id: e for e in self.measurement.exhibits}

    def select(self, name: str, **slice: str) -> Metric:
        """The metric with this name and exactly this slice."""
        return self.metrics.select(name, **slice)

    def to_rows(self) -> list[dict[str, Any]]:
        return [] if self.measurement is None else [m.model_dump() for m in self.measurement.metrics]


class Metrics(Mapping[str, Metric]):
    """The metrics of a finding by name."""

    def __init__(self, metrics: tuple[Metric, ...]) -> None:
        self._metrics = metrics

    def __getitem__(self, name: str) -> Metric:
        found = [m for m in self._metrics if m.name == name]
        unsliced = [m for m in found if not m.slice]
        if len(unsliced) == 1:
            return unsliced[0]
        if len(found) == 1:
            return found[0]
        if not found:
            raise KeyError(f"no metric {name!r}; there are: {', '.join(sorted({m.name for m in self._metrics})) or 'none'}")
        raise KeyError(f"{name!r} has {len(found)} slices, use .select({name!r}, ...): {[dict(m.slice) for m in found]}")

    def __iter__(self) -> Any:
        return iter(sorted({m.name for m in self._metrics}))

    def __len__(self) -> int:
        return len({m.name for m in self._metrics})

    def select(self, name: str, **slice: str) -> Metric:
        found = [m for m in self._metrics if m.name == name and dict(m.slice) == slice]
        if len(found) != 1:
            raise KeyError(
                f"{name!r} with slice {slice}: {len(found)} found; slices: {[dict(m.slice) for m in self._metrics if m.name == name]}"
            )
        return found[0]


class ModelCard(Record):
    """Facts of one model of the subject."""

    key: str
    "adapted | base | previous | control:head | control:scratch"
    name: str
    arch: str | None = None
    sha256: str | None = None
    "of the file where there is one, else the canonical tensor hash; `hash_of` says which"
    hash_of: Literal["file", "tensors"] | None = None
    file_format: str | None = None
    parameters: int | None = None
    trainable: int | None = None
    classes: tuple[str, ...] | None = None
    same_as: str | None = None
    "a control that was not trained because the plan already is that control"


class ValueCard(Record):
    """Facts of a domain's numbers, in their own unit. Mean and standard deviation (n - 1) are left out below suppress_below rows."""

    n: int
    unit: str | None = None
    mean: float | None = None
    sd: float | None = None


class DomainCard(Record):
    """Facts of one domain of the subject. Group counts below suppress_below are written '< 10'."""

    role: str
    "target | source | train | validation | ood"
    name: str
    kind: str
    n: int
    sha256: str | None = None
    classes: tuple[str, ...] | None = None
    class_counts: Mapping[str, int] = Field(default_factory=dict)
    labelled: bool = True
    values: ValueCard | None = None
    "of a regression, whose labels are numbers"
    clusters: int | None = None
    groups: Mapping[str, Mapping[str, int | str]] = Field(default_factory=dict)
    time_span: tuple[str, str] | None = None
    "first and last period in which samples were taken; None where no times were given"
    periods: int | None = None
    "how many periods hold samples"
    sites: Mapping[str, int | str] = Field(default_factory=dict)
    "samples of each site, counts below suppress_below written '< 10'"
    unreadable: int = 0


class SubjectCard(Record):
    adapted: ModelCard | None = None
    base: ModelCard | None = None
    previous: ModelCard | None = None
    controls: tuple[ModelCard, ...] = ()
    source: DomainCard | None = None
    target: DomainCard | None = None
    train: DomainCard | None = None
    validation: DomainCard | None = None
    ood: DomainCard | None = None
    adaptation: Mapping[str, Any] = Field(default_factory=dict)
    "the adaptation record (records.adaptation.AdaptationRecord) as plain data, {} where unknown"


class PolicyCard(Record):
    """Which policy judged: identity, hash, and the resolved policy in full."""

    id: str
    version: int
    sha256: str
    stage: str
    approved_by: str = ""
    approved_on: str | None = None
    fail_on: str
    resolved: Mapping[str, Any] = Field(default_factory=dict)


class Outcome(Record):
    status: Status
    counts: Mapping[str, int]
    sentence: str
    gate: Literal["open", "closed"]
    "closed: something at or above fail_on; exit code 1"
    blocked_by: tuple[str, ...] = ()
    limits_judged: int = 0
    false_alarms_allowed: float = 0.0
    "expected broken limits by chance at the policy's alpha, after correction inside each check"
    partial: str | None = None
    "why the run is incomplete, None where it is complete"
    declarations_missing: tuple[str, ...] = ()


class AuditResult(Displayable):
    """All findings with subject card, environment and policy: pure data. ``report.json`` is this record."""

    schema_version: Literal[1] = 1
    title: str
    created: str
    tool: Mapping[str, str]
    outcome: Outcome
    subject: SubjectCard
    policy: PolicyCard
    declared: Mapping[str, Any] = Field(default_factory=dict)
    environment: Mapping[str, Any] = Field(default_factory=dict)
    config: Mapping[str, Any] = Field(default_factory=dict)
    "command, audit.toml resolved, seed, device, samples, determinism"
    caveats: tuple[str, ...] = ()
    findings: tuple[Finding, ...]

    def __getitem__(self, code: str) -> Finding:
        for finding in self.findings:
            if finding.code == code:
                return finding
        raise KeyError(f"no finding {code!r}; there are: {', '.join(f.code for f in self.findings)}")

    def to_rows(self) -> list[dict[str, Any]]:
        return [
            {"code": f.code, "section": f.section, "title": f.title, "status": f.status, "severity": f.severity, "reason": f.reason}
            for f in self.findings
        ]
