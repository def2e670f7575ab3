"""audit.toml: what to audit, as a person wrote it. Read strictly, turned into a Subject, run, saved."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args

import numpy as np
from pydantic import BeforeValidator, Field, create_model, field_validator, model_validator

from tl_audit.errors import ConfigError, DataError, NotEvaluated, TLAuditError
from tl_audit.policy import DeclaredKey, Policy, load_policy
from tl_audit.policy.limits import Day
from tl_audit.policy.toml import did_you_mean, read_toml, validated
from tl_audit.records.base import Record
from tl_audit.records.preprocessing import Preprocessing
from tl_audit.records.values import Value

if TYPE_CHECKING:
    from tl_audit.checks.base import Check
    from tl_audit.modality.base import Cue
    from tl_audit.models import Model
    from tl_audit.records.findings import AuditResult
    from tl_audit.subject import Domain, Subject

MOST_DECLARED = 20_000
"characters of one declared text"

Say = Callable[[str], None]


def _one_or_many(value: Any) -> Any:  # Any: a TOML value before it is checked
    return (value,) if isinstance(value, str | Mapping) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_one_or_many)]


# -- the tables of audit.toml -----------------------------------------------------------------------------------------


class ModelTable(Record):
    """[adapted], [base], [previous]: a run directory, or weights with their architecture."""

    run: str | None = None
    weights: str | None = None
    arch: str | None = None
    classes: Names | None = None
    preprocessing: Preprocessing | None = None
    encoding: str | None = None
    "encoding.json of a run: how table rows become inputs"
    head: str | None = None
    output: str | int | None = None
    value: Value | None = None
    "of a regression: the model gives one number z, the value is mean + scale · z; no classes then"
    input_size: int | None = Field(default=None, ge=1)
    settings: Mapping[str, Any] = Field(default_factory=dict)  # Any: constructor settings of the architecture, checked by models.build
    new_tensors: Names = ()
    "tensors that differ from the architecture's on purpose"

    @field_validator("classes")
    @classmethod
    def _classes_are_distinct(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        doubled = sorted({name for name in value or () if (value or ()).count(name) > 1})
        if doubled:
            raise ValueError(f"names {doubled[0]!r} twice: list each class once, in the order of the model's outputs")
        return value

    @model_validator(mode="after")
    def _a_run_or_weights(self) -> ModelTable:
        if self.run is not None and self.weights is not None:
            raise ValueError("give run or weights, not both")
        if self.run is None and self.weights is None:
            raise ValueError('give run = "a run directory", or weights = "a file" with arch')
        if self.value is not None and (self.classes is not None or self.run is not None):
            raise ValueError("value is of weights that give one number: " + ("a run says it itself" if self.run else "leave classes out"))
        if self.weights is not None and self.arch is None:
            raise ValueError('weights need arch = "torchvision:resnet18" (or another architecture)')
        return self


class AdaptedTable(ModelTable):
    """[adapted]: beside a run or weights, the low-rank adapters that made it, where there are any."""

    adapter: str | None = None
    "folder of adapter_config.json and adapter_model.safetensors"
    adapter_merged: bool = True
    "false: the weights do not hold the adapters"

    @model_validator(mode="after")
    def _merged_needs_an_adapter(self) -> AdaptedTable:
        if self.adapter is None and not self.adapter_merged:
            raise ValueError("adapter_merged is given without adapter = a folder")
        return self


class ControlTable(ModelTable):
    """[[controls]]: only where no run directory holds them."""

    kind: Literal["head", "scratch"]


class GroupTable(Record):
    """A group column whose numbers are put into bins: ``{column = "age", bins = [45, 55]}``."""

    column: str
    bins: tuple[float, ...] | None = None
    name: str | None = None


class DomainTable(Record):
    """[target], [source], [train], [validation], [ood]: data and how it is read."""

    name: str | None = None
    kind: Literal["image", "tabular", "text"] | None = None
    path: str | None = None
    metadata: str | None = None
    masks: str | None = None
    "folder of mask pictures, of the samples' names"
    annotations: str | None = None
    "boxes: a COCO file, or a folder of Pascal VOC files"
    label: str | None = None
    task: Literal["classification", "regression"] | None = None
    "regression: labels are numbers; None: as the adapted model's run has it, else classification"
    unit: str | None = None
    "of such numbers"
    classes: Names | None = None
    label_map: Mapping[str, str] | None = None
    positive: str | None = None
    groups: Annotated[tuple[str | GroupTable, ...], BeforeValidator(_one_or_many)] = ()
    cluster: str | None = None
    time: str | None = None
    "column of dates or periods, for shift over time"
    period: Literal["day", "month", "quarter", "year"] | None = None
    site: str | None = None
    id: str | None = None
    numeric: Names | None = None
    categorical: Names | None = None
    drop: Names | None = None
    na_values: Annotated[tuple[str | float, ...], BeforeValidator(_one_or_many)] | Mapping[str, tuple[str | float, ...]] | None = None
    predictions: str | None = None
    prediction: str | None = None
    probabilities: Mapping[str, str] | None = None
    score: str | None = None
    threshold: float | None = None

    @model_validator(mode="after")
    def _data_is_named(self) -> DomainTable:
        later = [k for k in ("predictions", "prediction", "probabilities", "score", "threshold") if getattr(self, k) is not None]
        if later:
            raise ValueError(f"{later[0]}: audits from a predictions file come later; give path = and a model")
        if self.kind == "text":
            raise ValueError('kind = "text" comes later; there are image and tabular')
        if self.path is None:
            raise ValueError("path is missing: an image folder or a table file")
        return self


class CueTable(Record):
    """[[cues]]: what the base may rely on. Further keys are settings of the cue and are checked by the kind of data."""

    name: str = Field(min_length=1)
    kind: str = Field(min_length=1)
    settings: Mapping[str, Any] = Field(default_factory=dict)  # Any: TOML values

    @model_validator(mode="before")
    @classmethod
    def _gather_settings(cls, data: Any) -> Any:  # Any: a TOML table
        if not isinstance(data, Mapping) or "settings" in data:
            return data
        return {
            **{k: v for k, v in data.items() if k in ("name", "kind")},
            "settings": {k: v for k, v in data.items() if k not in ("name", "kind")},
        }


class AttributionTable(Record):
    methods: Names | None = None
    samples: int | None = Field(default=None, ge=1)


class ReportTable(Record):
    samples: Literal["off", "redacted", "on"] = "off"
    previous: str | None = None
    formats: Names = ("html", "json")


class PolicyTable(Record):
    use: str = "default"
    stage: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_no_policy_file(cls, data: Any) -> Any:  # Any: a TOML table
        own = [k for k in ("frameworks", "require", "declare", "add_checks", "extends") if isinstance(data, Mapping) and k in data]
        if own:
            raise ValueError(
                f'{own[0]} stands in a policy file: write one with [policy] id = "ours", extends = "default", {own[0]} = ..., '
                'and name it here: use = "ours.toml"'
            )
        return data


class EvidenceTable(Record):
    dir: str = ".tl_audit"


class CapsTable(Record):
    model_bytes: int | None = Field(default=None, ge=1)
    pixels: int | None = Field(default=None, ge=1)
    rows: int | None = Field(default=None, ge=1)
    bytes: int | None = Field(default=None, ge=1)
    bad_fraction: float | None = Field(default=None, ge=0, le=1)


class TrustTable(Record):
    sha256: Names = ()

    @field_validator("sha256")
    @classmethod
    def _are_hashes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if len(entry) != 64 or set(entry.lower()) - set("0123456789abcdef"):
                raise ValueError(f"{entry[:80]!r} is not a SHA-256: trust names one file by its hash of 64 hex digits")
        return tuple(entry.lower() for entry in value)


class ChecksTable(Record):
    extra: Names = ()
    '"my_pkg.audits:CHECKS": tuples of further checks, imported by `run` only'
    select: Names = ()
    ignore: Names = ()


class Stated(Record):
    """A declared value with who stated it and when."""

    value: str | tuple[str, ...] | float | bool
    by: str | None = None
    on: Day | None = None


class Risk(Record):
    hazard: str
    group: str | None = None
    findings: Names = ()
    likelihood: str | None = None
    severity: str | None = None
    mitigation: str | None = None
    residual: str | None = None
    accepted_by: str | None = None


class Monitoring(Record):
    metric: str
    trigger: str | None = None
    owner: str | None = None


class Change(Record):
    modification: str
    protocol: str | None = None
    impact: str | None = None


class Answer(Record):
    check: str
    answer: str
    by: str
    on: Day
    evidence: str | None = None
    "of the numbers that were looked at, as TLA902 prints it: the answer is outdated once they differ"


class SignOff(Record):
    preparer: str | None = None
    reviewer: str | None = None
    independence: str | None = None
    approver: str | None = None
    decision: str | None = None
    on: Day | None = None


class _DeclaredBase(Record):
    """[declared]: facts that only a person can state. Quoted, never edited, never judged."""

    file: str | None = None
    by: str | None = None
    on: Day | None = None
    risks: tuple[Risk, ...] = ()
    monitoring: tuple[Monitoring, ...] = ()
    changes: tuple[Change, ...] = ()
    answers: tuple[Answer, ...] = ()
    signoff: SignOff | None = None

    @model_validator(mode="after")
    def _short_enough(self) -> _DeclaredBase:
        for name, value in self:
            for text in _texts(value):
                if len(text) > MOST_DECLARED:
                    raise ValueError(f"{name} holds {len(text)} characters; a declared text has at most {MOST_DECLARED}")
        return self


def _texts(value: Any) -> list[str]:  # Any: any declared value
    if isinstance(value, str):
        return [value]
    if isinstance(value, Record):
        return [t for _, v in value for t in _texts(v)]
    if isinstance(value, tuple | list):
        return [t for v in value for t in _texts(v)]
    return []


if TYPE_CHECKING:
    DeclaredTable = _DeclaredBase
else:
    DeclaredTable = create_model(
        "DeclaredTable",
        __base__=_DeclaredBase,
        **dict.fromkeys(get_args(DeclaredKey), (Stated | str | tuple[str, ...] | float | bool | Day | None, None)),
    )


class AuditTable(Record):
    """audit.toml as written. ``adapted`` and ``target`` are required; what needs an absent part is then not evaluated."""

    title: str | None = None
    seed: int = Field(default=0, ge=0)
    device: str = "auto"
    adapted: AdaptedTable | None = None
    base: ModelTable | None = None
    previous: ModelTable | None = None
    controls: tuple[ControlTable, ...] = ()
    target: DomainTable
    source: DomainTable | None = None
    train: DomainTable | None = None
    validation: DomainTable | None = None
    ood: DomainTable | None = None
    cues: tuple[CueTable, ...] = ()
    attribution: AttributionTable = AttributionTable()
    report: ReportTable = ReportTable()
    policy: PolicyTable = PolicyTable()
    checks: ChecksTable = ChecksTable()
    evidence: EvidenceTable = EvidenceTable()
    caps: CapsTable = CapsTable()
    trust: TrustTable = TrustTable()
    declared: DeclaredTable = DeclaredTable()

    @model_validator(mode="after")
    def _something_to_audit(self) -> AuditTable:
        if self.adapted is None:
            raise ValueError("[adapted] is missing: give run = a run directory, or weights, arch and classes")
        kinds = [c.kind for c in self.controls]
        if len(kinds) != len(set(kinds)):
            raise ValueError("[[controls]] names one kind twice")
        return self


@dataclass(frozen=True)
class AuditConfig:
    """An audit.toml that was read: its tables, and the folder to which its paths are relative."""

    table: AuditTable
    folder: Path
    path: Path | None = None
    declared: Mapping[str, Any] = field(default_factory=dict)  # Any: declared values as plain data

    def at(self, path: str) -> Path:
        """A path of the file, seen from the file's folder."""
        return (self.folder / Path(path).expanduser()).resolve() if not Path(path).is_absolute() else Path(path)

    @property
    def title(self) -> str:
        return self.table.title or f"Audit of {self.table.target.name or Path(str(self.table.target.path)).name}"

    def plain(self) -> dict[str, Any]:
        """What was read, as plain data for the record, without the declared facts (they have a place of their own)."""
        return self.table.model_dump(mode="json", exclude={"declared"}, exclude_none=True, exclude_defaults=True)


def load_audit(path: str | Path, overrides: Mapping[str, Any] | None = None) -> AuditConfig:
    """The audit.toml at ``path``, checked; ``overrides`` ("report.samples" -> "on") go before what the file says.

    Raises
    ------
    ConfigError : no such file, not TOML, above 1 MiB, unknown or impossible keys; one sentence that names the place
    """
    path = Path(path)
    if path.is_dir():
        path = path / "audit.toml"
    data = read_toml(path)
    for key, value in (overrides or {}).items():
        _put(data, key, value)
    return audit_config(data, folder=path.resolve().parent, path=path)


def audit_config(data: Mapping[str, Any], *, folder: Path, path: Path | None = None) -> AuditConfig:
    """The configuration of a mapping with the keys of audit.toml."""
    where = "audit.toml" if path is None else str(path)
    table = validated(AuditTable, data, where)
    return AuditConfig(table, folder, path, _declared(table, folder, where))


def _put(data: dict[str, Any], key: str, value: Any) -> None:
    *tables, last = key.split(".")
    for name in tables:
        inner = data.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"[{name}] is not a table")
        data = inner
    data[last] = value


def _declared(table: AuditTable, folder: Path, where: str) -> dict[str, Any]:
    """The declared facts as plain data: those of ``file`` below those written in place."""
    own: dict[str, Any] = table.declared.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    name = own.pop("file", None)
    if name is None:
        return own
    path = folder / str(name)
    read = validated(DeclaredTable, read_toml(path), str(path))
    if read.file is not None:
        raise ConfigError(f"{path}: file may stand in audit.toml only")
    return {**read.model_dump(mode="json", exclude_unset=True, exclude_none=True), **own}


# -- from configuration to subject ------------------------------------------------------------------------------------


def build_subject(config: AuditConfig, say: Say = lambda text: None) -> Subject:
    """The live subject: models from a run directory or from weights, domains opened, cues checked.

    Train and validation data come from ``[train]`` and ``[validation]``, else from the run directory where its data still lies where
    it did; where it does not, the hashes kept in the run serve the leakage checks, and this is said.

    Raises
    ------
    TLAuditError : a file, column, class or weight that cannot be used
    """
    from tl_audit.modality.base import Cue
    from tl_audit.subject import Subject

    table = config.table
    assert table.adapted is not None  # AuditTable refuses a file without it
    parts: dict[str, Any] = {}
    run = _run(config, table.adapted, "adapted", say)
    if run is not None:
        parts.update(
            adapted=run.adapted,
            base=run.base,
            controls=dict(run.controls),
            record=run.record,
            same_as_adapted=run.same_as_adapted,
            run_dir=str(config.at(table.adapted.run or "")),
        )
    else:
        if table.adapted.classes is None and table.adapted.value is None:
            raise ConfigError(
                "[adapted] classes is missing: list the class names in the order of the model's outputs, because an order is never guessed "
                "(of a model that gives one number: value = { mean = 0, scale = 1 })"
            )
        parts["adapted"] = _weights(config, table.adapted, "adapted", say)
    if table.adapted.adapter is not None:
        from tl_audit.models.adapters import read_adapter

        parts["adapter"] = read_adapter(config.at(table.adapted.adapter), merged=table.adapted.adapter_merged)
    if table.base is not None:
        parts["base"] = _model(config, table.base, "base", say)
    if table.previous is not None:
        parts["previous"] = _model(config, table.previous, "previous", say)
    for control in table.controls:
        parts.setdefault("controls", {})[control.kind] = _model(config, control, f"control:{control.kind}", say)
    classes = parts["adapted"].classes
    inherited = {} if run is None else _inherited(run)
    for role in ("target", "source", "train", "validation", "ood"):
        wanted: DomainTable | None = getattr(table, role)
        if wanted is not None:
            say(f"reading the {role} data")
            parts[role] = _domain(config, wanted, role, classes, inherited)
    if run is not None:
        for role in ("train", "validation"):
            if role not in parts:
                try:
                    parts[role] = run.domain(role)
                except (DataError, NotEvaluated) as error:
                    say(f"{role} data of the run is not there ({error}); its hashes serve where they can")
    cues = tuple(Cue(c.name, c.kind, _cue_settings(config, c.settings)) for c in table.cues)
    known = parts["target"].samples.modality.cue_kinds()
    for cue in cues:
        if cue.kind not in known:
            raise ConfigError(
                f'[[cues]] "{cue.name}": kind "{cue.kind}" is unknown for {parts["target"].kind} data{did_you_mean(cue.kind, known)}'
            )
    _try_cues(cues, parts["target"])
    return Subject(**parts, cues=cues, title=config.title)


def _try_cues(cues: Sequence[Cue], target: Domain) -> None:
    """Put each cue into the first rows once: a setting that cannot be used is said before the audit, not by a check that breaks in it."""
    if not cues:
        return
    samples = target.samples
    batch = samples.read(np.arange(min(4, len(target)), dtype=np.int64))
    for cue in cues:
        try:
            samples.modality.apply_cue(batch, cue, placebo=False, key=("first rows",))
        except TLAuditError as error:
            raise ConfigError(f"[[cues]] {error}") from error


def _cue_settings(config: AuditConfig, settings: Mapping[str, Any]) -> dict[str, Any]:  # Any: TOML values
    """Settings of a cue; a picture that it names lies beside audit.toml."""
    picture = settings.get("picture")
    return {**settings, "picture": str(config.at(picture))} if isinstance(picture, str) else dict(settings)


def _run(config: AuditConfig, table: ModelTable, key: str, say: Say) -> Any:  # Any: finetune.LoadedRun or None; finetune is imported late
    if table.run is None:
        return None
    from tl_audit.finetune import load_run

    folder = config.at(table.run)
    if not folder.is_dir():
        raise ConfigError(f"[{key}] run: there is no folder {folder}; give a run directory written by `tl-audit adapt`")
    say(f"loading the run {table.run}")
    return load_run(folder)


def _model(config: AuditConfig, table: ModelTable, key: str, say: Say) -> Model:
    run = _run(config, table, key, say)
    if run is not None:
        adapted: Model = run.adapted
        return adapted
    return _weights(config, table, key, say)


def _weights(config: AuditConfig, table: ModelTable, key: str, say: Say) -> Model:
    from tl_audit.models import load_model

    assert table.weights is not None  # ModelTable refuses a table without run and weights
    assert table.arch is not None
    path = config.at(table.weights)
    if not path.exists():
        raise ConfigError(f"[{key}] weights: there is no file {path}")
    say(f"loading the {key} weights")
    encoding = None if table.encoding is None else _encoding(config.at(table.encoding))
    caps = {} if config.table.caps.model_bytes is None else {"cap": config.table.caps.model_bytes}
    return load_model(
        path,
        arch=table.arch,
        classes=table.classes,
        kind="tabular" if encoding is not None or config.table.target.kind == "tabular" else "image",
        encoding=encoding,
        input_size=table.input_size,
        preprocessing=table.preprocessing or encoding,
        declared=table.new_tensors,
        trust=config.table.trust.sha256,
        name=key,
        head=table.head,
        output=table.output if table.value is None else table.value.model_copy(update={"part": table.output}),
        **caps,  # type: ignore[arg-type]
        **table.settings,
    )


def _encoding(path: Path) -> Any:  # Any: TableEncoding
    """The table encoding of an encoding.json: of a run directory, or the bare record."""
    from tl_audit.records.preprocessing import TableEncoding

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"encoding: {path} cannot be read as JSON ({str(error)[:120]})") from error
    if isinstance(data, dict) and isinstance(data.get("preprocessing"), dict):
        data = data["preprocessing"]
    if not isinstance(data, dict):
        raise ConfigError(f"encoding: {path} holds no table encoding")
    return validated(TableEncoding, data, str(path))


def _inherited(run: Any) -> dict[str, Any]:  # Any: finetune.LoadedRun
    """Reader options that the run's plan gives for its table, used where a domain of audit.toml says nothing else."""
    data = run.plan.data
    names = ("label", "numeric", "categorical", "drop", "id", "label_map", "na_values")
    options = {name: getattr(data, name) for name in names if getattr(data, name, None) is not None}
    positive = getattr(run.plan, "positive", None)
    if run.adapted.task == "regression":
        options |= {"task": "regression", **({} if run.adapted.output.unit is None else {"unit": run.adapted.output.unit})}
    return {**options, **({} if positive is None else {"positive": positive})}


def _domain(config: AuditConfig, table: DomainTable, role: str, classes: Sequence[str] | None, inherited: Mapping[str, Any]) -> Domain:
    from tl_audit.subject import Domain

    assert table.path is not None  # DomainTable refuses a table without it
    path = config.at(table.path)
    if not path.exists():
        raise ConfigError(f"[{role}] path: there is no {path}")
    try:
        # what a label is, is known from the run whatever the kind of data; its columns are those of tables
        options = {k: v for k, v in inherited.items() if k in ("task", "unit")} if path.is_dir() else _fitting(path, inherited)
    except DataError as error:
        raise DataError(f"[{role}] {error}") from error
    names = ("label", "label_map", "positive", "cluster", "time", "period", "site", "id", "numeric", "categorical", "drop", "na_values")
    for name in (*names, "task", "unit"):
        if getattr(table, name) is not None:
            options[name] = getattr(table, name)
    if table.metadata is not None:
        options["metadata"] = config.at(table.metadata)
        if not options["metadata"].exists():
            raise ConfigError(f"[{role}] metadata: there is no file {options['metadata']}")
    for name in ("masks", "annotations"):
        if (given := getattr(table, name)) is not None:
            options[name] = config.at(given)
            if not options[name].exists():
                raise ConfigError(f"[{role}] {name}: there is no {options[name]}")
    if table.groups:
        options["groups"] = [g if isinstance(g, str) else g.model_dump(exclude_none=True) for g in table.groups]
    if table.label is not None and table.drop is None and table.label in options.get("drop", ()):
        raise ConfigError(
            f"[{role}] label: the plan of the run drops column {table.label!r}; the label that it was trained on is "
            f"{inherited.get('label')!r}. Name that one, or give drop = [...] in [{role}] as well"
        )
    # a target may hold samples of one class only: whether the run's positive class is one of the model's is known once these are aligned
    positive = options.pop("positive", None) if table.positive is None else None
    caps = config.table.caps.model_dump(exclude_none=True, exclude={"model_bytes"})
    if caps:
        options["caps"] = caps
    try:
        domain = Domain(table.name or path.name, path, classes=table.classes, kind=table.kind, **options)
    except TLAuditError as error:
        raise type(error)(f"[{role}] {error}") from error
    domain = _aligned(domain, role, classes)
    if positive is not None and positive in (domain.classes or ()):
        domain.positive = positive
    return domain


def _fitting(path: Path, inherited: Mapping[str, Any]) -> dict[str, Any]:
    """The reader options of the run's own table, without the columns that this table lacks (evidence counts those as missing, and says so)."""
    from tl_audit.modality.cells import table_columns

    if not inherited:
        return {}
    columns = table_columns(path)
    options = dict(inherited)
    for name in ("numeric", "categorical"):
        if name in options:
            options[name] = [c for c in options[name] if c in columns]
    if "drop" in options:  # what the run left out is left out here too, or equal rows would differ in content (TLA201)
        options["drop"] = [c for c in options["drop"] if c in columns]
    for name in ("label", "id"):
        if options.get(name) not in (None, *columns):
            del options[name]
    if isinstance(options.get("na_values"), Mapping):
        options["na_values"] = {c: v for c, v in options["na_values"].items() if c in columns}
    if "label" not in options:
        for name in ("label_map", "positive"):
            options.pop(name, None)
    return options


def _aligned(domain: Domain, role: str, classes: Sequence[str] | None) -> Domain:
    """The domain with the model's class list where its own names are among them; names the model lacks are refused where it must answer."""
    if classes is None or domain.classes is None:
        return domain
    strangers = sorted(set(domain.classes) - set(classes))
    if not strangers:
        domain.classes = tuple(classes)
    elif role in ("target", "train", "validation"):
        raise ConfigError(
            f"[{role}] holds classes that the adapted model does not have: {', '.join(strangers[:5])}"
            f"{' and more' if len(strangers) > 5 else ''}; the model's are {', '.join(list(classes)[:10])}"
            f'{did_you_mean(strangers[0], classes) if len(classes) > 10 else ""}. Give label_map = {{ "{strangers[0]}" = "..." }}'
        )
    return domain


def gather_checks(config: AuditConfig) -> tuple[Check, ...]:
    """The built-in checks and those of ``[checks] extra``, each "package.module:NAME" of a check or a tuple of checks."""
    from tl_audit.checks import BUILTIN
    from tl_audit.checks.base import Check

    found = list(BUILTIN)
    for entry in config.table.checks.extra:
        module, _, name = entry.partition(":")
        try:
            value = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(f'[checks] extra "{entry}" cannot be loaded: {error}; expected "package.module:NAME"') from error
        more = (value,) if isinstance(value, Check) else tuple(value)
        for item in more:
            if not isinstance(item, Check):
                raise ConfigError(
                    f'[checks] extra "{entry}" holds {type(item).__name__}, expected checks made with tl_audit.checks.base.check'
                )
        found.extend(more)
    codes = [c.code for c in found]
    doubled = sorted({c for c in codes if codes.count(c) > 1})
    if doubled:
        raise ConfigError(f"two checks share the code {doubled[0]}")
    return tuple(found)


@dataclass(frozen=True)
class Job:
    """An audit that is ready to run: everything read, nothing measured."""

    config: AuditConfig
    subject: Subject
    policy: Policy
    checks: tuple[Check, ...]
    methods: tuple[str, ...]
    samples: str
    evidence_dir: Path


def prepare(config: AuditConfig, say: Say = lambda text: None) -> Job:
    """Read policy, models and data of a configuration. Raises TLAuditError for whatever cannot be used."""
    from tl_audit.auditing import methods_for
    from tl_audit.runner import asked_for

    table = config.table
    policy = policy_of(config)
    checks = tuple(asked_for(gather_checks(config), policy, table.checks.select))
    subject = build_subject(config, say)
    methods = table.attribution.methods if table.attribution.methods is not None else methods_for(subject)
    return Job(config, subject, policy, checks, methods, policy.samples_allowed(table.report.samples), config.at(table.evidence.dir))


def policy_of(config: AuditConfig) -> Policy:
    """The policy that the configuration names: a profile, or a file beside audit.toml."""
    use = config.table.policy.use
    beside = config.folder / use
    return load_policy(beside if beside.is_file() else use, config.table.policy.stage)


def execute(
    job: Job,
    *,
    out: str | Path,
    formats: Sequence[str] | None = None,
    fail_on: str | None = None,
    fresh: bool = False,
    command: str = "",
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[AuditResult, dict[str, Path]]:
    """Run a prepared audit and write its report into ``out``; the result, and the paths by format ("manifest" last)."""
    from tl_audit.report import save
    from tl_audit.runner import run

    table = job.config.table
    result = run(
        job.subject,
        policy=job.policy,
        checks=job.checks,
        select=table.checks.select,
        ignore=table.checks.ignore,
        seed=table.seed,
        device=table.device,
        samples=job.samples,
        methods=job.methods,
        attribution_samples=table.attribution.samples,
        declared=job.config.declared,
        evidence_dir=job.evidence_dir,
        resume=not fresh,
        title=job.config.title,
        progress=progress,
        config={**({"command": command} if command else {}), "audit": job.config.plain()},
        fail_on=fail_on,
    )
    return result, save(result, out, formats=formats or table.report.formats)


class Planned(NamedTuple):
    """One check of a dry run: would it run, and if not, what is missing."""

    code: str
    title: str
    missing: str | None


def planned(job: Job) -> tuple[list[Planned], list[str]]:
    """What ``execute`` would do, without doing it: the checks, and the model evaluations in words.

    Evaluations already in the evidence store are not subtracted, and checks that find a gap in the data only by looking are not foreseen.
    """
    from tl_audit.attribution import DEFAULT_BUDGET
    from tl_audit.checks.base import lacking
    from tl_audit.evidence import Store, StoredEvidence
    from tl_audit.runner import pairs_of

    subject, table = job.subject, job.config.table
    rows: list[Planned] = []
    with Store(None) as store:
        evidence = StoredEvidence(subject, store=store, rules=job.policy.rules, methods=job.methods)
        for check in sorted((c.for_task(subject.task) for c in job.checks), key=lambda c: c.code):
            if not selected(check.code, table.checks.select, table.checks.ignore):
                continue
            gaps = [gap for need in check.needs if (gap := lacking(need, subject, evidence, job.config.declared)) is not None]
            rows.append(Planned(check.code, check.title, "; ".join(dict.fromkeys(gaps)) or None))
    running = {row.code for row in rows if row.missing is None}
    chosen = [check for check in job.checks if check.code in running]
    evaluations = [
        f"{key} on {role}: {len(subject.domains[role])} evaluations" for key, role in pairs_of(chosen, subject) if role in subject.domains
    ]
    if any(check.section == "explanations" for check in chosen):
        samples = min(table.attribution.samples or job.policy.rules.attribution_samples, len(subject.target))
        evaluations.append(
            f"explanations: {len(job.methods)} methods on {samples} samples, at most {DEFAULT_BUDGET} evaluations each, and those of their checks"
        )
    return rows, evaluations


def selected(code: str, select: Sequence[str], ignore: Sequence[str]) -> bool:
    """Whether a check is among those chosen by code prefixes."""
    return (not select or code.startswith(tuple(select))) and not (ignore and code.startswith(tuple(ignore)))


def run_audit(
    path: str | Path,
    *,
    out: str | Path = "reports",
    policy: str | None = None,
    seed: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    say: Say = lambda text: None,
    **rest: Any,  # Any: see execute
) -> tuple[AuditResult, dict[str, Path]]:
    """Read audit.toml, run the audit, write the report: what ``tl-audit run`` does."""
    given: dict[str, Any] = dict(overrides or {})
    if policy is not None:
        given["policy.use"] = policy
    if seed is not None:
        given["seed"] = seed
    return execute(prepare(load_audit(path, given), say), out=out, **rest)
