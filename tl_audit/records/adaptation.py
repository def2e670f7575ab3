"""AdaptationRecord: how an adapted model was made. Written by ``finetune``, partial where the adaptation was done elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from tl_audit.records.base import Record


class StageRecord(Record):
    """One fit: which parameters moved, with what optimiser, and what happened per epoch."""

    name: str
    layers: tuple[str, ...]
    epochs: int
    lr: float
    layer_decay: float | None = None
    optimiser: str
    schedule: str | None = None
    trainable: tuple[str, ...] = ()
    "parameter names that could move"
    frozen: tuple[str, ...] = ()
    "parameter and buffer names that were declared frozen in this stage"
    trainable_parameters: int = 0
    best_epoch: int | None = None
    stopped_early: bool = False
    history: tuple[Mapping[str, float], ...] = ()
    "per epoch: epoch, train_loss, val_loss, val_accuracy (of a regression val_mae, in the target's own unit), lr"
    seconds: float | None = None


class DataRecord(Record):
    """Fingerprint of one split."""

    name: str
    n: int
    sha256: str
    "of the sorted content hashes with labels"
    class_counts: Mapping[str, int] = Field(default_factory=dict)
    clusters: int | None = None
    value_mean: float | None = None
    "of a regression's target, in its own unit"
    value_sd: float | None = None
    "standard deviation (n - 1) of a regression's target"


class TensorChange(Record):
    """One difference of architecture between base and adapted."""

    name: str
    change: Literal["added", "removed", "reshaped"]
    before: tuple[int, ...] | None = None
    after: tuple[int, ...] | None = None


class ControlRecord(Record):
    kind: Literal["head", "scratch"]
    same_as: Literal["adapted"] | None = None
    sha256: str | None = None
    epochs: int | None = None
    lr: float | None = None
    best_epoch: int | None = None
    stopped_early: bool = False
    history: tuple[Mapping[str, float], ...] = ()
    seconds: float | None = None


class AdaptationRecord(Record):
    """All fields of TLA101. None means: not recorded (never guessed)."""

    schema_version: Literal[1] = 1
    base_id: str | None = None
    "e.g. torchvision:resnet18, run:runs/cleveland, tl_audit:small_cnn"
    base_revision: str | None = None
    base_sha256: str | None = None
    "of the base's original file; the tensor hash where there was no file"
    base_format: str | None = None
    "safetensors | pickle | built-in; of the original file"
    base_origin: Literal["run", "file", "library", "live", "factory", "random start"] | None = None
    "where the base's weights came from"
    base_file: str | None = None
    base_licence: str | None = None
    base_source: str | None = None
    base_classes: tuple[str, ...] | None = None
    base_tensors_sha256: str | None = None
    plan_sha256: str | None = None
    plan: Mapping[str, Any] = Field(default_factory=dict)
    kind: str | None = None
    setting: Literal["inductive", "transductive", "unsupervised"] | None = None
    classes: tuple[str, ...] | None = None
    class_source: Literal["declared", "data", "base"] | None = None
    train: DataRecord | None = None
    validation: DataRecord | None = None
    unlabelled: DataRecord | None = None
    "target data without labels that the adaptation saw ([alignment], [importance])"
    teacher: Mapping[str, Any] = Field(default_factory=dict)
    "of knowledge distillation: model, tensors_sha256, weight, temperature; empty: no teacher"
    importance: Mapping[str, Any] = Field(default_factory=dict)
    "weights of training rows: kind, effective_sample_share, capped, what they rest on; empty: all rows counted alike"
    preprocessing: Mapping[str, Any] = Field(default_factory=dict)
    base_preprocessing: Mapping[str, Any] = Field(default_factory=dict)
    "how the base itself says that its inputs are made; empty: it does not say"
    method: Literal["head", "partial", "full", "lora", "scratch"] | None = None
    stages: tuple[StageRecord, ...] = ()
    frozen: tuple[str, ...] = ()
    "parameters and buffers frozen in every stage (TLA103 judges these)"
    trainable_share: float | None = None
    parameters: int | None = None
    architecture_changes: tuple[TensorChange, ...] = ()
    head: str | None = None
    task: Mapping[str, Any] = Field(default_factory=dict)
    training: Mapping[str, Any] = Field(default_factory=dict)
    seeds: Mapping[str, int] = Field(default_factory=dict)
    flops: Mapping[str, float] = Field(default_factory=dict)
    "forward_per_sample, adaptation"
    flops_method: str | None = None
    versions: Mapping[str, str] = Field(default_factory=dict)
    device: str | None = None
    adapted_sha256: str | None = None
    adapted_tensors_sha256: str | None = None
    adapted_file: str | None = None
    controls: tuple[ControlRecord, ...] = ()
    started: str | None = None
    ended: str | None = None
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    notes: tuple[str, ...] = ()
    "what was guessed, left out or filled in on the way: goes to the caveats"
