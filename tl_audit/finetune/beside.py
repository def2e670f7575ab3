"""What a plan names beside its training data: a teacher, unlabelled target data, importance weights. Made ready once, before the first fit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from tl_audit.errors import ConfigError
from tl_audit.finetune.inputs import Augmenter, Inputs, Split
from tl_audit.finetune.plan import Importance, Plan, Teacher
from tl_audit.measures.importance import ImportanceWeights, class_weights, domain_weights, label_shift_weights
from tl_audit.models import Model, as_model, tensor_hash
from tl_audit.models.borrow import borrowed
from tl_audit.models.heads import penultimate
from tl_audit.models.outputs import read_outputs
from tl_audit.records.adaptation import DataRecord
from tl_audit.records.preprocessing import InputSpec
from tl_audit.subject import Domain

BATCH = 256
LITTLE = 0.1
"""Below this share of effective rows a note says that weighting has left little to learn from."""


@dataclass(frozen=True)
class Lesson:
    """A teacher's answers to the training samples: (N, C) logits in the plan's class order, and what the record says of it."""

    logits: torch.Tensor
    settings: Teacher
    facts: Mapping[str, Any]  # Any: plain JSON values


def wants_unlabelled(plan: Plan) -> str:
    """The part of the plan that cannot do without unlabelled target data; "" where there is none."""
    if plan.alignment is not None:
        return "[alignment]"
    if plan.importance is not None and plan.importance.class_mix is None:
        return "[importance]"
    return ""


def unlabelled_inputs(domain: Domain, plan: Plan, spec: InputSpec | None, augment: Augmenter | None) -> Inputs:
    """All readable rows of the target as inputs, whatever labels it has: none of them is looked at."""
    rows = np.arange(len(domain), dtype=np.int64)
    split = Split("unlabelled", domain, rows, np.zeros(len(rows), dtype=np.int64))
    return Inputs(split, spec, augment=augment, cache_bytes=plan.training.cache_bytes)


def unlabelled_record(inputs: Inputs) -> DataRecord:
    """Fingerprint of unlabelled data: SHA-256 of its sorted content hashes."""
    return DataRecord(
        name=inputs.split.domain.name, n=len(inputs), sha256=hashlib.sha256("\n".join(sorted(inputs.hashes)).encode()).hexdigest()
    )


def features_of(model: Model, inputs: Inputs) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(N, D) what the head of the model reads, of samples as they are."""
    parts = [
        penultimate(model, inputs.batch(np.arange(start, min(len(inputs), start + BATCH), dtype=np.int64))[0])[1].cpu().double().numpy()
        for start in range(0, len(inputs), BATCH)
    ]
    return np.concatenate(parts)


def importance_weights(
    wanted: Importance, train: Inputs, unlabelled: Inputs | None, start: Model, *, classes: Sequence[str], seed: int
) -> tuple[ImportanceWeights, dict[str, Any], list[str]]:  # Any: plain JSON values
    """Weights of the training rows, what the record says of them, and notes. ``start``: the network before any step, whose features are compared.

    Raises
    ------
    ConfigError : the class mix names other classes · DataError : the data do not allow weights
    """
    split = train.split
    cluster = None if split.domain.cluster is None else split.domain.cluster[split.rows]
    if wanted.class_mix is not None:
        if set(wanted.class_mix) != set(classes):
            raise ConfigError(f"[importance] class_mix names {sorted(wanted.class_mix)}, the classes are {list(classes)}")
        found = class_weights(split.labels, [wanted.class_mix[name] for name in classes], cap=wanted.cap)
    else:
        assert unlabelled is not None  # wants_unlabelled
        mine, theirs = features_of(start, train), features_of(start, unlabelled)
        if wanted.kind == "domain":
            found = domain_weights(mine, theirs, cluster=cluster, seed=seed, cap=wanted.cap)
        else:
            found = label_shift_weights(mine, split.labels, theirs, classes=len(classes), cluster=cluster, seed=seed, cap=wanted.cap)
    named = {f"share_{k}": f"share of {name}" for k, name in enumerate(classes)}
    facts = {
        "kind": wanted.kind, "cap": wanted.cap, "capped": found.capped, "effective_sample_share": found.effective_share,
        **{named.get(key, key): value for key, value in found.detail.items()},
    }  # fmt: skip
    notes = [f"importance weights ({wanted.kind}): {len(train)} rows are worth {found.effective_share * len(train):.0f} unweighted ones"]
    if found.effective_share < LITTLE:
        notes.append("importance weights rest on few rows: the domains hardly overlap, and what is learned rests on chance")
    return found, facts, notes


def lesson(settings: Teacher, plan: Plan, train: Inputs, base: Model, *, classes: Sequence[str]) -> Lesson:
    """Asks the teacher once about each training sample.

    Raises
    ------
    ConfigError : the teacher answers in other classes than the plan's, or its answers are not finite
    """
    teacher = _teacher(settings.model, plan, base, classes)
    own = teacher.classes
    if own is None or set(own) != set(classes) or len(own) != len(classes):
        raise ConfigError(f"[teacher] {teacher.name} answers in {list(own or ())}, the plan's classes are {list(classes)}")
    spec = teacher.preprocessing if teacher.preprocessing is not None else train.spec
    # the teacher sees samples as they are, through its own preprocessing
    plain = train if spec == train.spec and train.augment is None else Inputs(train.split, spec)
    parts = []
    with borrowed(teacher) as net, torch.no_grad():
        place = next(net.parameters(), None)
        for start in range(0, len(plain), BATCH):
            inputs = plain.batch(np.arange(start, min(len(plain), start + BATCH), dtype=np.int64))[0]
            if place is not None:
                inputs = inputs.to(place.device, place.dtype) if inputs.is_floating_point() else inputs.to(place.device)
            parts.append(read_outputs(net(inputs), teacher.output).logits.float().cpu())
    logits = torch.cat(parts)[:, [own.index(name) for name in classes]]
    if len(logits) != len(train) or not bool(torch.isfinite(logits).all()):
        raise ConfigError(f"[teacher] {teacher.name}: its answers to the training samples are not all finite numbers")
    right = float((logits.argmax(dim=1) == train.labels).float().mean())
    facts = {
        "model": settings.model if isinstance(settings.model, str) else teacher.name,
        "tensors_sha256": tensor_hash(teacher.module),
        "weight": settings.weight,
        "temperature": settings.temperature,
        "accuracy_on_train": right,
    }
    return Lesson(logits, settings, facts)


def _teacher(given: Any, plan: Plan, base: Model, classes: Sequence[str]) -> Model:  # Any: str, Model or nn.Module, checked by the plan
    if given == "base":
        if base.classes is None:
            raise ConfigError("[teacher] the base names no classes: it can only teach where it answers in the plan's")
        return replace(base, name="base")
    if isinstance(given, str) and given.startswith("live:"):
        raise ConfigError(f"[teacher] {given} was given in Python: give it again with teacher=")
    if isinstance(given, str):
        from tl_audit.finetune.load import load_run

        return replace(load_run(plan.path(given.removeprefix("run:"))).adapted, name=given)
    if isinstance(given, Model) and given.classes is not None:
        return given
    module: nn.Module = given.module if isinstance(given, Model) else given
    return replace(as_model(module, name="teacher", assume_classes=tuple(classes)), preprocessing=getattr(given, "preprocessing", None))
