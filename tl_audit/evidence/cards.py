"""Facts of models and domains for the record: subject, model and domain cards."""

from __future__ import annotations

from collections import Counter

import numpy as np

from tl_audit.evidence.stored import StoredEvidence
from tl_audit.models import tensor_hash
from tl_audit.records.findings import DomainCard, ModelCard, SubjectCard, ValueCard
from tl_audit.records.privacy import redact_all, suppressed_counts
from tl_audit.subject import Domain, Subject


def subject_card(subject: Subject, evidence: StoredEvidence, *, suppress_below: int) -> SubjectCard:
    """What was audited, as facts. Domains that were never read in full carry no fingerprint."""
    domains = {role: domain_card(role, subject, evidence, suppress_below=suppress_below) for role in subject.domains}
    return SubjectCard(
        adapted=model_card("adapted", subject),
        base=model_card("base", subject),
        previous=model_card("previous", subject),
        controls=tuple(
            card for kind in ("head", "scratch") if (card := model_card(f"control:{kind}", subject) or _same(kind, subject)) is not None
        ),
        adaptation={} if subject.record is None else redact_all(subject.record.model_dump(mode="json")),
        **domains,  # type: ignore[arg-type]  # keys are the roles, which are the field names
    )


def model_card(key: str, subject: Subject) -> ModelCard | None:
    """Facts of one model, None where it is absent."""
    model = subject.model(key)
    if model is None:
        return None
    trainable = None
    if key == "adapted" and subject.record is not None and subject.record.stages:
        trainable = max(stage.trainable_parameters for stage in subject.record.stages)
    return ModelCard(
        key=key,
        name=model.name,
        arch=model.arch,
        sha256=model.file.sha256 if model.file is not None else tensor_hash(model.module),
        hash_of="file" if model.file is not None else "tensors",
        file_format=None if model.file is None else model.file.format,
        parameters=sum(p.numel() for p in model.module.parameters()),
        trainable=trainable,
        classes=model.classes,
    )


def domain_card(role: str, subject: Subject, evidence: StoredEvidence, *, suppress_below: int) -> DomainCard:
    """Facts of one domain; group counts below the minimum are written "< 10"."""
    domain = subject.domains[role]
    scan = evidence.collector.finished_scan(role)
    labels = [] if domain.labels is None else [str(name) for name in domain.labels if name is not None]
    counted = Counter(labels)
    order = [*(domain.classes or ()), *sorted(set(counted) - set(domain.classes or ()))]
    held = () if domain.periods is None else np.unique(domain.periods.codes[domain.periods.codes >= 0])
    periods = [] if domain.periods is None else [domain.periods.names[int(code)] for code in held]
    return DomainCard(
        role=role,
        name=domain.name,
        kind=domain.kind,
        n=len(domain),
        sha256=None if scan is None else scan.fingerprint(),
        classes=domain.classes,
        class_counts={name: counted.get(name, 0) for name in order} if domain.labels is not None else {},
        labelled=domain.labelled,
        values=_value_card(domain, subject.unit, suppress_below),
        clusters=None if domain.cluster is None else len({str(c) for c in domain.cluster}),
        groups={
            column: suppressed_counts(dict(sorted(Counter(str(v) for v in values).items())), suppress_below)
            for column, values in sorted(domain.groups.items())
        },
        time_span=None if not periods else (periods[0], periods[-1]),
        periods=None if not periods else len(periods),
        sites={} if domain.site is None else suppressed_counts(dict(sorted(Counter(str(v) for v in domain.site).items())), suppress_below),
        unreadable=0 if scan is None else len(scan.errors()),
    )


def _value_card(domain: Domain, unit: str | None, suppress_below: int) -> ValueCard | None:
    if domain.values is None:
        return None
    known = domain.values[np.isfinite(domain.values)]
    told = known.size >= max(2, suppress_below)
    return ValueCard(
        n=int(known.size),
        unit=domain.unit or unit,
        mean=float(known.mean()) if told else None,
        sd=float(known.std(ddof=1)) if told else None,
    )


def _same(kind: str, subject: Subject) -> ModelCard | None:
    if kind not in subject.same_as_adapted:
        return None
    return ModelCard(key=f"control:{kind}", name=f"control {kind}", same_as="adapted", classes=subject.adapted.classes)
