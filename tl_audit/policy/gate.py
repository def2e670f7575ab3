"""The gate: findings and a stage become an outcome and an exit code. A stage never changes a status."""

from __future__ import annotations

from collections.abc import Sequence

from tl_audit.errors import ConfigError
from tl_audit.policy.limits import FAIL_ON, Policy, Stage, severity_rank
from tl_audit.policy.toml import did_you_mean
from tl_audit.records.findings import STATUSES, WORST_FIRST, Finding, Outcome, Status

DECLARATIONS = "TLA901"
_BLOCKS: dict[str, tuple[Status, ...]] = {
    "never": (),
    "fail": ("fail",),
    "warn": ("fail", "warn"),
    "inconclusive": ("fail", "warn", "inconclusive"),
}


def gate(
    findings: Sequence[Finding],
    policy: Policy,
    *,
    stage: str | None = None,
    fail_on: str | None = None,
    declared_missing: Sequence[str] = (),
    partial: str | None = None,
) -> Outcome:
    """Counts, one sentence, and whether the gate of the stage is open.

    Parameters
    ----------
    stage : None: the stage chosen when the policy was loaded
    fail_on : fail | inconclusive | warn | never; None: the stage's own
    declared_missing : declared facts that the policy wants and nobody gave
    partial : why the run is incomplete, None where it is complete
    """
    name = stage or policy.active_stage
    rule = policy.stage_named(name)
    level = fail_on or rule.fail_on
    if level not in _BLOCKS:
        raise ConfigError(f'--fail-on "{level}" is unknown{did_you_mean(level, FAIL_ON)}')
    blocked = [f.code for f in findings if _blocks(f, policy, rule, level)]
    if level != "never" and rule.missing_declarations == "block" and declared_missing and DECLARATIONS not in blocked:
        blocked.append(DECLARATIONS)
    counts = {status: sum(f.status == status for f in findings) for status in STATUSES}
    judged = [(f.code, limit) for f in findings for limit in f.limits if limit.outcome != "not_judged"]
    families = {(code, limit.metric, limit.level, *sorted(limit.slice)) for code, limit in judged if limit.rule not in ("exact", "point")}
    return Outcome(
        status=_overall(findings, policy),
        counts={str(status): count for status, count in counts.items()},
        sentence=_sentence(findings, counts, blocked, name, level, declared_missing, partial),
        gate="closed" if blocked else "open",
        blocked_by=tuple(blocked),
        limits_judged=len(judged),
        false_alarms_allowed=round(policy.rules.alpha * len(families), 4),
        partial=partial,
        declarations_missing=tuple(declared_missing),
    )


def exit_code(outcome: Outcome) -> int:
    """1 the gate failed · 3 a check errored or the run is incomplete · 0 otherwise; a failed gate goes first."""
    if outcome.gate == "closed":
        return 1
    return 3 if outcome.counts.get("error", 0) or outcome.partial is not None else 0


def _blocks(finding: Finding, policy: Policy, stage: Stage, level: str) -> bool:
    if level == "never":
        return False
    required = policy.requires(finding.code, finding.section)
    status: Status = finding.status
    if required and status in ("not_evaluated", "info"):
        status = "inconclusive"
    elif finding.status in stage.block_on:
        return True
    if status not in _BLOCKS[level]:
        return False
    if status in ("warn", "fail"):
        return finding.waived_until is None
    return required or severity_rank(finding.severity) <= severity_rank(stage.inconclusive_from)


def _overall(findings: Sequence[Finding], policy: Policy) -> Status:
    """The worst status; ``not_evaluated`` counts for required checks only, unless nothing else is there."""
    present: set[Status] = {f.status for f in findings if f.status != "not_evaluated" or policy.requires(f.code, f.section)}
    return next((status for status in WORST_FIRST if status in present), "not_evaluated")


def _sentence(
    findings: Sequence[Finding],
    counts: dict[Status, int],
    blocked: Sequence[str],
    stage: str,
    level: str,
    declared_missing: Sequence[str],
    partial: str | None,
) -> str:
    order: tuple[Status, ...] = ("fail", "warn", "inconclusive", "error", "review", "pass", "info", "not_evaluated")
    parts = [f"{counts[status]} {status.replace('_', ' ')}" for status in order]
    text = f"{len(findings)} checks: {', '.join(parts)}."
    with_limits = [f for f in findings if f.limits]
    if with_limits:
        excluded = [f for f in with_limits if f.status in ("pass", "warn") and not _failure_open(f)]
        open_warning = sum(f.status == "pass" and f.warn_excluded is False for f in excluded)
        text += f" {len(excluded)} exclude failure, {open_warning} of these cannot exclude a warning; {counts['inconclusive']} undecided."
    waived = sum(f.waived_until is not None for f in findings)
    if waived:
        text += f" {waived} waived."
    if declared_missing:
        text += f" {len(declared_missing)} declared facts are missing."
    if partial is not None:
        text += f" The run is incomplete: {partial}."
    if blocked:
        return text + f" Gate {stage} (fail on {level}): closed by {', '.join(blocked)}."
    return text + f" Gate {stage} (fail on {level}): open{'' if partial is None else ' for what was run, which is not everything'}."


def _failure_open(finding: Finding) -> bool:
    return any(limit.level == "fail" and limit.outcome == "undecided" for limit in finding.limits)
