"""What a measurement depends on, as one hash: models, data, record, settings, code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_audit.evidence.passes import versions
from tl_audit.evidence.store import key_of
from tl_audit.evidence.stored import StoredEvidence, code_fingerprint
from tl_audit.records.preprocessing import spec_hash


def input_key(evidence: StoredEvidence, declared: Mapping[str, Any]) -> str:
    """Hash of everything that a check can see. Reads domains that were not read yet."""
    subject = evidence.subject
    models = {
        key: [
            evidence.collector.fingerprint(key), spec_hash(model.preprocessing), model.classes, model.name, model.arch,
            None if model.file is None else [model.file.sha256, model.file.format, repr(model.file)], repr(sorted(model.facts.items())),
        ]
        for key, model in subject.models.items()
    }  # fmt: skip
    domains = {
        role: [
            domain.name, domain.kind, evidence.collector.scan(role).content_key(), domain.classes, domain.positive, list(domain.notes),
            [list(entry) for entry in domain.skipped], _texts(domain.ids), _texts(domain.labels), _texts(domain.cluster),
            {name: _texts(values) for name, values in domain.groups.items()}, _texts(domain.site),
            None if domain.periods is None else [domain.periods.codes.tolist(), domain.periods.names, domain.periods.positions],
            domain.task, domain.unit, None if domain.values is None else _texts(tuple(map(repr, domain.values.tolist()))),
            sorted(evidence.collector.scan(role).errors().items()), None if domain.regions is None else domain.regions.content_key,
        ]
        for role, domain in subject.domains.items()
    }  # fmt: skip
    return key_of(
        models, domains, None if subject.record is None else subject.record.model_dump(mode="json"), [cue.content_key for cue in subject.cues],
        list(subject.same_as_adapted), None if subject.adapter is None else subject.adapter.content_key, dict(declared), evidence.rules.model_dump(mode="json"), evidence.seed, evidence.samples,
        list(evidence.methods), evidence.attribution_samples, evidence.budget, versions(), code_fingerprint(), str(subject.run_dir),
    )  # fmt: skip


def _texts(values: NDArray[np.object_] | tuple[str, ...] | None) -> str | None:
    if values is None:
        return None
    digest = hashlib.sha256()
    for value in values:
        text = ("\0" if value is None else str(value)).encode("utf-8", "surrogatepass")
        digest.update(f"{len(text)}:".encode() + text)
    return digest.hexdigest()
