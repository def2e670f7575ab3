"""What is audited: Domain (data of one distribution) and Subject (models, domains, record). Live objects, never serialised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tl_audit.errors import DataError, ModelError
from tl_audit.modality.base import Cue, RawBatch, Regions, Samples
from tl_audit.modality.periods import Periods
from tl_audit.models.adapters import Adapter, read_adapter
from tl_audit.models.model import Model
from tl_audit.records.adaptation import AdaptationRecord
from tl_audit.records.values import Task, Value

Role = Literal["target", "source", "train", "validation", "ood"]
ROLES: tuple[Role, ...] = ("target", "source", "train", "validation", "ood")
MODEL_KEYS: tuple[str, ...] = ("adapted", "base", "previous", "control:head", "control:scratch")
MISSING = "(missing)"


class SubsetSamples:
    """Some rows of other samples, in the order given."""

    def __init__(self, whole: Samples, rows: NDArray[np.int64]) -> None:
        self.whole = whole
        self.rows = rows
        self.modality = whole.modality
        self.caps = whole.caps
        self.ids = tuple(whole.ids[int(r)] for r in rows)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: NDArray[np.int64]) -> RawBatch:
        batch = self.whole.read(self.rows[np.asarray(rows, dtype=np.int64)])
        return replace(batch, rows=np.asarray(rows, dtype=np.int64))


class Domain:
    """Data of one distribution: samples, labels by name, class names, groups (sensitive features), cluster ids.

    Parameters
    ----------
    name : what reports print
    data : image folder (path), table file (path, .csv or .parquet), DataFrame, arrays or tensors (N, ...), a torch Dataset of (x, y),
        or ready ``Samples``
    labels : (N,) class names (or integers with ``classes``); None: taken from the data where it holds them, else unlabelled
    classes : class names in order; None: the sorted names found
    groups : name -> (N,) values, or a list of columns and ``{"column": "age", "bins": [45, 55]}``; None, NaN and "" become "(missing)", a group of its own
    cluster : (N,) ids of patient, site, document, or the name of a column; rows of one cluster are not independent
    time : (N,) when each sample was taken, or the name of a column: ISO dates, numbers, or names of periods that sort
    period : "day", "month", "quarter", "year": how long the periods are that dates fall in; None: the values of ``time`` are the periods
    site : (N,) where each sample was taken, or the name of a column; missing ones are "(missing)", a site of its own
    kind : "image", "tabular", "tensor"; None: found from the data
    options : further reader options (metadata, label column, column roles, label_map, positive, caps; regions, masks, annotations; ``task="regression"``
        where a label is a number, with its ``unit``): see ``modality.open_data``

    Raises
    ------
    DataError : lengths that differ, unknown columns, nothing readable; says which and what to do
    """

    def __init__(
        self,
        name: str,
        data: Any,  # Any: see the docstring; checked by open_data
        *,
        labels: Sequence[Any] | NDArray[Any] | None = None,
        classes: Sequence[str] | None = None,
        groups: Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None = None,
        cluster: Sequence[Any] | NDArray[Any] | str | None = None,
        time: Sequence[Any] | NDArray[Any] | str | None = None,
        period: str | None = None,
        site: Sequence[Any] | NDArray[Any] | str | None = None,
        kind: str | None = None,
        **options: Any,
    ) -> None:
        from tl_audit.modality import open_data

        try:
            opened = open_data(
                data,
                kind=kind,
                labels=labels,
                classes=classes,
                groups=groups,
                cluster=cluster,
                time=time,
                period=period,
                site=site,
                **options,
            )
        except DataError as error:
            text = str(error)  # a table named after its file says its name already
            raise DataError(text if text.startswith((f"{name} ", f"{name}:")) else f"{name}: {text}") from error
        self.name = name
        self.samples: Samples = opened.samples
        self.labels: NDArray[np.object_] | None = opened.labels
        "(N,) class names as str, None where the domain is unlabelled; single unlabelled rows hold None"
        self.classes: tuple[str, ...] | None = opened.classes
        self.groups: dict[str, NDArray[np.object_]] = dict(opened.groups or {})
        "column -> (N,) str, missing values are '(missing)'"
        self.cluster: NDArray[np.object_] | None = opened.cluster
        self.periods: Periods | None = opened.periods
        "the period of each row, None where no time was given"
        self.site: NDArray[np.object_] | None = opened.site
        "(N,) str, missing values are '(missing)'; None where no site was given"
        self.positive: str | None = opened.positive
        "positive class of binary tasks, None where not declared"
        self.notes: tuple[str, ...] = opened.notes
        "what the reader guessed, left out or joined: goes to the caveats"
        self.skipped: tuple[tuple[str, str], ...] = opened.skipped
        "(file, reason) found unusable while opening (before any decoding)"
        self.regions: Regions | None = opened.regions
        "boxes or masks of the samples, None where none were given"
        self.task: Task = opened.task
        'what a label is: "classification" (labels, classes) or "regression" (values)'
        self.values: NDArray[np.float64] | None = opened.values
        "(N,) numbers of a regression, NaN where a row has none; None where unlabelled, or where labels are class names"
        self.unit: str | None = opened.unit
        "of the values"

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def kind(self) -> str:
        return self.samples.modality.kind

    @property
    def labelled(self) -> bool:
        """Whether rows have a label: a class name or a number."""
        return self.labels is not None or self.values is not None

    @property
    def label_texts(self) -> list[str | None] | None:
        """Labels as text, class names or numbers, None in rows without one; None where the domain is unlabelled."""
        if self.values is not None:
            return [None if v != v else repr(v) for v in self.values.tolist()]
        return None if self.labels is None else [None if v is None else str(v) for v in self.labels]

    @property
    def ids(self) -> tuple[str, ...]:
        return self.samples.ids

    def subset(self, rows: Sequence[int] | NDArray[Any], *, name: str | None = None) -> Domain:
        """The domain of these rows (numbers in the order wanted, or a mask of all rows); classes stay those of the whole."""
        picked = np.asarray(rows)
        if picked.dtype == np.bool_:
            if picked.shape != (len(self),):
                raise DataError(f"{self.name}: a mask of {picked.shape} rows was given, there are {len(self)}")
            picked = np.flatnonzero(picked)
        picked = picked.astype(np.int64)
        if picked.ndim != 1 or len(set(picked.tolist())) != len(picked):
            raise DataError(f"{self.name}: a subset needs row numbers, each at most once")
        if len(picked) and not (picked.min() >= 0 and picked.max() < len(self)):
            raise DataError(
                f"{self.name}: row {picked.min() if picked.min() < 0 else picked.max()} of a subset is not among the {len(self)} rows"
            )
        part = object.__new__(Domain)
        part.name = self.name if name is None else name
        part.samples = SubsetSamples(self.samples, picked)
        part.labels = None if self.labels is None else self.labels[picked]
        part.classes, part.positive = self.classes, self.positive
        part.groups = {column: values[picked] for column, values in self.groups.items()}
        part.cluster = None if self.cluster is None else self.cluster[picked]
        part.periods = None if self.periods is None else self.periods.take(picked)
        part.site = None if self.site is None else self.site[picked]
        part.notes, part.skipped = self.notes, self.skipped
        part.regions = None if self.regions is None else self.regions.select(picked)
        part.task, part.unit = self.task, self.unit
        part.values = None if self.values is None else self.values[picked]
        return part

    def __repr__(self) -> str:
        labelled = "unlabelled" if not self.labelled else f"{len(self.classes or ())} classes" if self.labels is not None else "values"
        return f"Domain({self.name!r}, {self.kind}, n={len(self)}, {labelled}, groups={list(self.groups)})"


@dataclass(frozen=True)
class Subject:
    """What is audited. Every part but ``adapted`` and ``target`` may be absent; what needs it is then ``not_evaluated``.

    ``adapted``, ``base``, ``previous`` and ``controls`` accept bare ``nn.Module``s (then the target's class order is assumed, with a caveat).
    ``adapter`` : the low-rank adapters of the adapted model (``read_adapter``), or their folder.
    ``controls`` : {"head": Model, "scratch": Model}. A control that equals the adapted model by design is listed in ``same_as_adapted``.
    """

    adapted: Model
    target: Domain
    base: Model | None = None
    controls: Mapping[str, Model] = field(default_factory=dict)
    previous: Model | None = None
    source: Domain | None = None
    train: Domain | None = None
    validation: Domain | None = None
    ood: Domain | None = None
    record: AdaptationRecord | None = None
    cues: tuple[Cue, ...] = ()
    adapter: Adapter | None = None
    same_as_adapted: tuple[str, ...] = ()
    run_dir: str | None = None
    title: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.adapter, str | Path):
            object.__setattr__(self, "adapter", read_adapter(self.adapter))
        from tl_audit.models import as_model

        # a base keeps its own outputs; only a bare adapted, previous or control model may assume the target's
        meant: dict[str, Any] = {"assume_classes": self.target.classes}
        if self.target.task == "regression":
            meant = {"assume_value": Value(unit=self.target.unit)}
        for key in ("adapted", "base", "previous"):
            value = getattr(self, key)
            if value is not None:
                object.__setattr__(self, key, as_model(value, name=key, **(meant if key != "base" else {})))
        object.__setattr__(self, "controls", {k: as_model(v, name=f"control:{k}", **meant) for k, v in dict(self.controls).items()})
        if self.adapted.task == "regression" and self.target.task != "regression":
            raise ModelError(
                f'{self.adapted.name} gives a number and {self.target.name} does not hold numbers: open it with task="regression"'
            )
        if self.adapted.task != "regression" and self.target.task == "regression":
            raise ModelError(f"{self.target.name} holds numbers and {self.adapted.name} names classes: give Model(..., output=Value())")
        for role, domain in self.domains.items():
            if domain.task != self.target.task and domain.labelled:
                raise DataError(f"the {role} domain {domain.name} is a {domain.task}, the target a {self.target.task}: they must be alike")

    def model(self, key: str) -> Model | None:
        """The model behind a key of MODEL_KEYS, None where absent."""
        if key.startswith("control:"):
            return self.controls.get(key.removeprefix("control:"))
        value: Model | None = getattr(self, key)
        return value

    def domain(self, role: str) -> Domain | None:
        """The domain behind a role of ROLES, None where absent."""
        value: Domain | None = getattr(self, role)
        return value

    @cached_property
    def models(self) -> dict[str, Model]:
        """All models present, by key."""
        return {key: m for key in MODEL_KEYS if (m := self.model(key)) is not None}

    @cached_property
    def domains(self) -> dict[str, Domain]:
        """All domains present, by role."""
        return {role: d for role in ROLES if (d := self.domain(role)) is not None}

    @property
    def task(self) -> Task:
        """What a label of the target is: a class, or a number."""
        return self.target.task

    @property
    def unit(self) -> str | None:
        """Unit of the target's numbers, None where it has none or none was named."""
        own = self.adapted.output.unit if isinstance(self.adapted.output, Value) else None
        return self.target.unit or own

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the adapted model (in output order), else of the target."""
        return self.adapted.classes or self.target.classes or ()
