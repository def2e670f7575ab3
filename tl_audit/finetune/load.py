"""A run directory opened without training: models rebuilt and loaded strictly, files checked against the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tl_audit.errors import DataError, RecordError
from tl_audit.finetune.base import build_form
from tl_audit.finetune.opening import open_domain, part_of
from tl_audit.finetune.plan import Plan
from tl_audit.finetune.run_dir import ADAPTED, BASE, PLAN, Encoding, Manifest, ModelForm, control_file, read_files, read_samples
from tl_audit.models import Model, load_into, load_weights, tensor_hash
from tl_audit.records.adaptation import AdaptationRecord
from tl_audit.records.preprocessing import InputSpec
from tl_audit.subject import Domain


@dataclass(frozen=True)
class LoadedRun:
    """What a run directory holds.

    Attributes
    ----------
    adapted, base, controls : the models, on the CPU, in ``eval()``. ``base.file`` is the run's own copy; the original file's path, hash and format
        are in the record (``base_file``, ``base_sha256``, ``base_format``) and in ``base.facts``
    preprocessing : how raw samples become inputs of all these models
    samples : DataFrame with id, split, label, cluster, content_hash of every sample that was trained or validated on
    same_as_adapted : kinds of controls that are the adapted model by design
    """

    path: Path
    adapted: Model
    base: Model
    controls: Mapping[str, Model]
    record: AdaptationRecord
    encoding: Encoding
    plan: Plan
    samples: Any  # Any: pandas is imported late
    manifest: Manifest
    same_as_adapted: tuple[str, ...] = field(default=())

    @property
    def preprocessing(self) -> InputSpec | None:
        return self.encoding.preprocessing

    @property
    def kind(self) -> str:
        return self.encoding.kind

    @property
    def classes(self) -> tuple[str, ...]:
        return self.adapted.classes or ()

    def domain(self, split: str) -> Domain:
        """The training ("train") or validation ("validation") data, opened again from the plan's paths: the rows that were used, no others.

        Raises
        ------
        DataError : the plan names no data, it has moved, or its samples are not those of the run; the hashes in ``samples`` still serve
        """
        mine = self.samples[self.samples["split"] == split]
        if len(mine) == 0:
            raise DataError(f"{self.path}: the run has no {split} samples")
        if self.encoding.plan_folder is None or self.plan.data.train is None:
            raise DataError(f"{self.path}: the {split} data was given in Python; give it again, or use the hashes in samples.parquet")
        own_path = (
            self.plan.data.validation if split == "validation" and isinstance(self.plan.data.validation, str) else self.plan.data.train
        )
        domain = open_domain(self.plan, split, own_path, classes=self.classes or None)
        place = {sample: row for row, sample in enumerate(domain.ids)}
        absent = [sample for sample in mine["id"] if sample not in place]
        if absent:
            raise DataError(f"{own_path}: {len(absent)} of {len(mine)} {split} samples are no longer there ({absent[0]}, ...)")
        rows: NDArray[np.int64] = np.array([place[sample] for sample in mine["id"]], dtype=np.int64)
        return part_of(domain, split, rows)


def load_run(path: str | Path, *, module: nn.Module | None = None) -> LoadedRun:
    """The models and records of a run directory, without training.

    Parameters
    ----------
    module : the architecture of a base that was given in Python (its weights do not matter); not needed where the plan names the base

    Raises
    ------
    RecordError : not a run, not complete, a file missing or altered (named)
    WeightsError : tensors that do not fit, or are not those of the record
    """
    files = read_files(path)
    folder, encoding, record = files.folder, files.encoding, files.record
    adapted = _load(folder, ADAPTED, encoding.adapted, encoding, module, "adapted")
    base = _load(folder, BASE, encoding.base, encoding, module, "base")
    for model, expected, name in ((adapted, record.adapted_tensors_sha256, ADAPTED), (base, record.base_tensors_sha256, BASE)):
        if expected is not None and tensor_hash(model.module) != expected:
            raise RecordError(f"{folder / name}: its tensors are not those of adaptation.json")
    original = {"original_file": record.base_file, "original_sha256": record.base_sha256, "original_format": record.base_format}
    base = replace(base, facts={**base.facts, **original})
    controls = {kind: _load(folder, control_file(kind), encoding.adapted, encoding, module, f"control:{kind}") for kind in files.controls}
    same = tuple(c.kind for c in record.controls if c.same_as == "adapted")
    plan = Plan.from_toml(folder / PLAN)
    if encoding.plan_folder is not None:
        plan._folder = (folder / encoding.plan_folder).resolve()
    return LoadedRun(folder, adapted, base, controls, record, encoding, plan, read_samples(folder), files.manifest, same)


def _load(folder: Path, name: str, form: ModelForm, encoding: Encoding, module: nn.Module | None, key: str) -> Model:
    model = build_form(form, kind=encoding.kind, preprocessing=encoding.preprocessing, module=module, name=key)
    tensors, file = load_weights(folder / name)
    file = load_into(model.module, tensors, file=file)
    return replace(model, file=file)
