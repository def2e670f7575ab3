"""A planted defect: what is planted, which checks must find it, which must stay quiet; and the comparison with what an audit says.

**Fires**: the finding has one of the statuses wanted and, where a metric is named, a limit on that metric is broken (or as wanted).
**Quiet**: the check accuses nobody: neither ``warn`` nor ``fail``. ``inconclusive`` is no accusation either; it is counted and shown apart.
Where a metric is named, it is this metric's limits alone that must not be broken. An ``error`` of any check goes against the row, whatever it says.
A check that does not exist yet is *awaited*: named, never dropped, and judged as soon as it exists.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tl_audit.defects.worlds import DECLARED, Kind
from tl_audit.errors import ConfigError, Interrupted
from tl_audit.records.findings import Finding, LimitOutcome, Status

if TYPE_CHECKING:
    from tl_audit.policy import Policy
    from tl_audit.records.findings import AuditResult
    from tl_audit.subject import Subject

ACCUSING: tuple[Status, ...] = ("warn", "fail")
"""Statuses that accuse."""
GATE = "TLA711"
GATE_CODES = ("TLA701", "TLA702", "TLA703")
"""What the gate of explanations reads: it names no codes itself, it reads what there is."""

Mark = Literal["fires", "quiet", "undecided", "unseen", "wrong", "awaited"]
"""What became of one expectation: fired as it must · quiet as it must · quiet, but inconclusive · quiet, not evaluated · otherwise than it must · no such check."""


@dataclass(frozen=True)
class Fires:
    """An expectation of a check that must fire.

    Attributes
    ----------
    statuses : what its status may be
    metric, slice, level : a limit on this metric (at this level, of this slice) must have ``outcome``; None: the status is enough
    outcome : "broken"; "met" and "undecided" are for rows that say so
    says : words that the reason must hold, e.g. the name of a missing input
    kinds : kinds of data on which it is expected; empty: all of the row
    """

    code: str
    statuses: tuple[Status, ...] = ACCUSING
    metric: str | None = None
    slice: Mapping[str, str] = field(default_factory=dict, hash=False)
    level: Literal["warn", "fail"] | None = None
    outcome: Literal["broken", "met", "undecided"] = "broken"
    says: str | None = None
    kinds: tuple[Kind, ...] = ()

    def judge(self, finding: Finding) -> tuple[Mark, str]:
        """What became of it, and why."""
        if finding.status not in self.statuses:
            return "wrong", f"{finding.status} instead of {' or '.join(self.statuses)}: {finding.reason}"
        if self.says is not None and self.says not in finding.reason:
            return "wrong", f"the reason does not say {self.says!r}: {finding.reason}"
        if self.metric is not None:
            known = list(matching(finding, self.metric, self.slice, self.level))
            if not any(limit.outcome == self.outcome for limit in known):
                found = ", ".join(sorted({limit.outcome for limit in known})) or "no such limit"
                return "wrong", f"no limit on {_named(self.metric, self.slice)} is {self.outcome} ({found}): {finding.reason}"
        return "fires", finding.reason


@dataclass(frozen=True)
class Quiet:
    """An expectation of a check that must not accuse; with ``metric``, of that metric's limits alone (of this slice).

    Attributes
    ----------
    spared : beginnings of slice values that are not held against the check, where the row says why
    """

    code: str
    metric: str | None = None
    slice: Mapping[str, str] = field(default_factory=dict, hash=False)
    kinds: tuple[Kind, ...] = ()
    spared: tuple[str, ...] = ()

    def judge(self, finding: Finding) -> tuple[Mark, str]:
        """What became of it, and why."""
        if finding.status == "not_evaluated":
            return "unseen", finding.reason
        if self.metric is None:
            if finding.status in ACCUSING:
                return "wrong", f"{finding.status}: {finding.reason}"
            return ("undecided" if finding.status == "inconclusive" else "quiet"), finding.reason
        known = [
            limit
            for limit in matching(finding, self.metric, self.slice, None)
            if not self.spared or not any(value.startswith(self.spared) for value in limit.slice.values())
        ]
        broken = [limit for limit in known if limit.outcome == "broken"]
        if broken:
            return "wrong", f"a limit on {_named(self.metric, self.slice)} is broken ({broken[0].note or finding.reason})"
        return ("undecided" if any(limit.outcome == "undecided" for limit in known) else "quiet"), finding.reason


def matching(finding: Finding, metric: str, slice: Mapping[str, str], level: str | None) -> Iterator[LimitOutcome]:
    """The limits on this metric that were judged, of every slice that holds the given one."""
    for limit in finding.limits:
        same = limit.metric == metric and level in (None, limit.level)
        if same and all(limit.slice.get(key) == value for key, value in slice.items()):
            yield limit


def _named(metric: str, slice: Mapping[str, str]) -> str:
    return metric + (f" ({', '.join(f'{key} = {value}' for key, value in slice.items())})" if slice else "")


Findings = Mapping[str, Finding]
Assertion = Callable[["Audits"], Iterable[str]]
"""Looks at what was found and yields a sentence for everything that is otherwise than it must be."""


@dataclass(frozen=True)
class Audits:
    """Results of one planted defect, for assertions beyond statuses: of the defect, and of the same audit without it where the row asks for one."""

    result: AuditResult
    reference: AuditResult | None = None

    @property
    def found(self) -> Findings:
        return {finding.code: finding for finding in self.result.findings}

    @property
    def before(self) -> Findings:
        """Findings without the defect. ValueError where the row planted no reference."""
        if self.reference is None:
            raise ValueError("this row has no audit without the defect")
        return {finding.code: finding for finding in self.reference.findings}


@dataclass(frozen=True)
class Planted:
    """What is audited.

    Attributes
    ----------
    subject : the subject with the defect in it
    policy : a profile's name or a ``Policy``
    methods, attribution_samples, budget : of the explainers, where the row speaks of them
    select : codes beyond those of the row that are run as well
    options : further arguments of ``audit``
    assertions : beyond statuses
    reference : the same without the defect; audited first, given to the assertions
    around : entered for the time of the audit, where what is faulty is a part of the tool (an explainer)
    """

    subject: Subject | str
    policy: str | Policy = "default"
    declared: Mapping[str, Any] = field(default_factory=lambda: DECLARED)
    methods: tuple[str, ...] = ("integrated_gradients",)
    attribution_samples: int | None = None
    budget: int | None = None
    select: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    assertions: tuple[Assertion, ...] = ()
    reference: Planted | None = None
    around: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True)
class Defect:
    """One row of the table of planted defects.

    Attributes
    ----------
    number, title : as in the table; ``variant`` tells rows of one number apart ("constant map")
    plant : makes the defect for a kind and a seed; its docstring says what is planted and where the row departs from the table
    fires, quiet : what must be found, and what must not be accused
    kinds : kinds of data on which it makes sense
    cheap : belongs to the quick tests
    """

    number: int
    title: str
    plant: Callable[[Kind, int], Planted]
    fires: tuple[Fires, ...] = ()
    quiet: tuple[Quiet, ...] = ()
    kinds: tuple[Kind, ...] = ("image", "tabular")
    variant: str = ""
    cheap: bool = False

    def expectations(self, kind: Kind) -> tuple[Fires | Quiet, ...]:
        """What is expected on this kind of data."""
        both: tuple[Fires | Quiet, ...] = (*self.fires, *self.quiet)
        return tuple(e for e in both if not e.kinds or kind in e.kinds)

    @property
    def name(self) -> str:
        return f"{self.number} {self.title}" + (f" ({self.variant})" if self.variant else "")


@dataclass(frozen=True)
class Verdict:
    """What became of one expectation in one audit."""

    expectation: Fires | Quiet
    mark: Mark
    status: Status | None
    why: str

    @property
    def code(self) -> str:
        return self.expectation.code

    @property
    def must_fire(self) -> bool:
        return isinstance(self.expectation, Fires)


@dataclass(frozen=True)
class Outcome:
    """One defect on one kind of data with one seed.

    Attributes
    ----------
    complaints : what went otherwise beyond single checks: a check that failed with an error, an assertion of the row
    seconds : planting and auditing together
    """

    defect: Defect
    kind: Kind
    seed: int
    verdicts: tuple[Verdict, ...]
    complaints: tuple[str, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        return not self.wrong

    @property
    def wrong(self) -> tuple[str, ...]:
        """Everything that is otherwise than it must be, in sentences."""
        said = [f"{v.code} must {'fire' if v.must_fire else 'stay quiet'}: {v.why}" for v in self.verdicts if v.mark == "wrong"]
        return (*said, *self.complaints)

    @property
    def awaited(self) -> tuple[str, ...]:
        """Codes of checks that do not exist yet."""
        return tuple(dict.fromkeys(v.code for v in self.verdicts if v.mark == "awaited"))


def fires(*codes: str, **wanted: Any) -> tuple[Fires, ...]:  # Any: fields of Fires
    """Checks that must fire, by the digits of their codes: ``fires("501", "507")``."""
    return tuple(Fires(f"TLA{code}", **wanted) for code in codes)


def quiet(*codes: str, **wanted: Any) -> tuple[Quiet, ...]:  # Any: fields of Quiet
    """Checks that must stay quiet, by the digits of their codes."""
    return tuple(Quiet(f"TLA{code}", **wanted) for code in codes)


def examine(defect: Defect, kind: Kind, seed: int) -> Outcome:
    """Plant a defect, audit it, and compare with what the row expects.

    Only the checks of the row are run, with those that they read.

    Raises
    ------
    Interrupted : asked to stop
    ConfigError : a kind of data on which the row makes no sense; a check that runs only under policies that ask for it, and the row's does not
    """
    if kind not in defect.kinds:
        raise ConfigError(f"defect {defect.name} is planted in {' and '.join(defect.kinds)} data, not in {kind}")
    started = time.monotonic()
    planted = defect.plant(kind, seed)
    expected = defect.expectations(kind)
    known = _known()
    codes = tuple(dict.fromkeys(e.code for e in expected if e.code in known))
    reference = None if planted.reference is None else _audited(planted.reference, codes, kind, seed)
    audits = Audits(_audited(planted, codes, kind, seed), reference)
    verdicts = tuple(_verdict(e, audits.found) for e in expected)
    complaints = [f"{f.code} ended in an error: {f.reason}" for f in audits.result.findings if f.status == "error"]
    complaints += [f"without the defect {f.code} ended in an error: {f.reason}" for f in (reference.findings if reference else ()) if f.status == "error"]  # fmt: skip
    for assertion in planted.assertions:
        complaints += assertion(audits)
    return Outcome(defect, kind, seed, verdicts, tuple(complaints), time.monotonic() - started)


def _verdict(expectation: Fires | Quiet, found: Findings) -> Verdict:
    finding = found.get(expectation.code)
    if finding is None:
        return Verdict(expectation, "awaited", None, "there is no such check yet")
    mark, why = expectation.judge(finding)
    return Verdict(expectation, mark, finding.status, why)


def _audited(planted: Planted, codes: Sequence[str], kind: Kind, seed: int) -> AuditResult:
    from tl_audit.auditing import audit

    select = with_dependencies((*codes, *planted.select))
    given: dict[str, Any] = {
        "policy": planted.policy, "declared": planted.declared, "methods": planted.methods, "attribution_samples": planted.attribution_samples,
        "budget": planted.budget, "select": select, "seed": seed, "device": "cpu", **planted.options,
    }  # fmt: skip
    with planted.around():
        result = audit(planted.subject, **given).result
    if (
        result.outcome.partial is not None
    ):  # a partial audit says nothing of the defect, and whoever asked to stop does not want the next row
        raise Interrupted(143 if "SIGTERM" in result.outcome.partial else 130)
    return result


def with_dependencies(codes: Sequence[str]) -> tuple[str, ...]:
    """The codes with those whose findings they read. Prefixes stay as they are."""
    known = _known()
    wanted = dict.fromkeys(codes)
    for code in codes:
        wanted |= dict.fromkeys(known[code].after if code in known else ())
    if GATE in wanted:
        wanted |= dict.fromkeys(GATE_CODES)
    return tuple(wanted)


def _known() -> Mapping[str, Any]:
    from tl_audit.checks import BUILTIN

    return {one.code: one for one in BUILTIN}
