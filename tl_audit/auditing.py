"""``audit``: the front door in Python. Takes a subject, or a run directory, and gives a report."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_audit.errors import ConfigError, DataError, NotEvaluated

if TYPE_CHECKING:
    from tl_audit.checks.base import Check
    from tl_audit.evidence.base import Evidence
    from tl_audit.policy import Policy
    from tl_audit.report import AuditReport
    from tl_audit.report.rows import Observed
    from tl_audit.subject import Domain, Subject

log = logging.getLogger(__name__)

DEFAULT_METHODS = ("grad_cam", "integrated_gradients", "kernel_shap", "lime")


def audit(
    subject: Subject | str | Path,
    *,
    policy: str | Path | Policy = "default",
    checks: Sequence[Check] | None = None,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    seed: int = 0,
    device: str = "auto",
    samples: str = "off",
    methods: Sequence[str] | None = None,
    attribution_samples: int | None = None,
    budget: int | None = None,
    declared: Mapping[str, Any] | None = None,
    evidence_dir: str | Path | None = None,
    target: Domain | None = None,
    source: Domain | None = None,
    train: Domain | None = None,
    validation: Domain | None = None,
    title: str | None = None,
) -> AuditReport:
    """Audit an adapted model and return the report.

    Parameters
    ----------
    subject : a ``Subject``, or the path of a run directory written by ``adapt`` (then ``target`` is required)
    policy : a profile's name ("default", "strict"), a TOML file, or a ``Policy``
    checks : checks to run, by default the built-in ones; add your own as ``[*BUILTIN, mine]``
    select, ignore : code prefixes, e.g. ``select=["TLA5"]``
    seed : of every random draw; two audits with one seed give the same record but for the volatile keys
    samples : "off" (default), "redacted" or "on": may pictures of samples appear in the report?
    methods : explainers; by default those that suit the kind of data
    attribution_samples : samples explained per domain; None: the policy's number (64)
    budget : model evaluations per explained sample; None: each method's own (mostly 256)
    declared : facts that only a person can state (purpose, owner, ...)
    evidence_dir : where evidence is kept between audits; None: a temporary folder

    Raises
    ------
    TLAuditError : an input that cannot be used, in one sentence
    """
    from tl_audit.checks import BUILTIN
    from tl_audit.policy import Policy, load_policy
    from tl_audit.report import AuditReport
    from tl_audit.report.rows import Observed
    from tl_audit.runner import run
    from tl_audit.subject import Subject

    if isinstance(subject, str | Path):
        subject = subject_of_run(subject, target=target, source=source, train=train, validation=validation)
    elif not isinstance(subject, Subject):
        raise ConfigError(f"audit needs a Subject or the path of a run directory, not {type(subject).__name__}")
    else:
        given: dict[str, Any] = {"target": target, "source": source, "train": train, "validation": validation}
        subject = dataclasses.replace(subject, **{k: v for k, v in given.items() if v is not None})
    resolved = policy if isinstance(policy, Policy) else load_policy(policy)
    observed = Observed()
    result = run(
        subject,
        policy=resolved,
        checks=tuple(BUILTIN if checks is None else checks),
        select=tuple(select),
        ignore=tuple(ignore),
        seed=seed,
        device=device,
        samples=samples,
        methods=tuple(methods) if methods is not None else methods_for(subject),
        attribution_samples=attribution_samples,
        budget=budget,
        declared=dict(declared or {}),
        evidence_dir=evidence_dir,
        title=title,
        observe=lambda evidence, pairs: _keep_rows(observed, subject, evidence, pairs),
    )
    return AuditReport(result, _observed=observed)


def _keep_rows(observed: Observed, subject: Subject, evidence: Evidence, pairs: Sequence[tuple[str, str]]) -> None:
    """Labels, answers and groups of the pairs that an audit looked at, for ``AuditReport.metric_frame``."""
    from tl_audit.checks.selection import judged
    from tl_audit.measures.calibration import nll_rows
    from tl_audit.report.rows import ObservedRows

    for model, domain in pairs:
        try:
            if subject.target.task != "classification":
                raise NotEvaluated("its labels are numbers, not classes")
            rows = judged(evidence, model, domain)
        except NotEvaluated as gap:
            observed.why_not[model, domain] = str(gap)
            continue
        observed.rows[model, domain] = ObservedRows(
            classes=rows.classes,
            truth=rows.truth,
            predicted=rows.predicted,
            losses=nll_rows(rows.probabilities, rows.truth),
            groups={column: values[rows.rows] for column, values in evidence.groups(domain).items()},
            positive=evidence.positive(domain),
        )


def methods_for(subject: Subject) -> tuple[str, ...]:
    """The default explainers that suit the target's kind of data (CAM needs a spatial layer)."""
    if subject.target.kind == "tabular":
        return tuple(m for m in DEFAULT_METHODS if m != "grad_cam")
    return DEFAULT_METHODS


def subject_of_run(
    path: str | Path,
    *,
    target: Domain | None,
    source: Domain | None = None,
    train: Domain | None = None,
    validation: Domain | None = None,
) -> Subject:
    """The subject of a run directory with the domains given; its own training data are found again where they still lie."""
    from tl_audit.finetune import load_run
    from tl_audit.subject import Subject

    if target is None:
        raise ConfigError(f"auditing the run {path} needs target=Domain(...): the data the adapted model will meet")
    run = load_run(path)
    given = {"train": train, "validation": validation}
    for role, domain in given.items():
        if domain is None:
            try:
                given[role] = run.domain(role)
            except (DataError, NotEvaluated) as error:
                log.info("%s data of the run %s is not there (%s); its hashes serve where they can", role, path, error)
    return Subject(
        adapted=run.adapted,
        base=run.base,
        controls=run.controls,
        target=target,
        source=source,
        train=given["train"],
        validation=given["validation"],
        record=run.record,
        same_as_adapted=run.same_as_adapted,
        run_dir=str(path),
    )
