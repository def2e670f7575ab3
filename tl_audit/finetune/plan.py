"""Plan: what ``adapt`` is asked to do. One frozen record, written in Python or in plan.toml, hashed into the adaptation record."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, PrivateAttr, ValidationError, field_serializer, field_validator, model_validator
from torch import nn

from tl_audit.errors import ConfigError
from tl_audit.models.model import Model
from tl_audit.records.base import Record
from tl_audit.records.preprocessing import Preprocessing

MOST_PLAN_BYTES = 2**20
ControlKind = Literal["head", "scratch"]


class PlanPart(Record):
    """A part of a plan. Unknown keys and impossible values are ``ConfigError`` that name the table, the key and the nearest known one."""

    where: ClassVar[str] = "plan.toml"
    elsewhere: ClassVar[Mapping[str, str]] = {}
    "keys that belong in another table"
    refused: ClassVar[Mapping[str, str]] = {}
    "keys of things that do not exist yet, with the sentence that says so"

    def __init__(self, **values: Any) -> None:  # Any: checked by pydantic
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(f"{self.where}: {_first(error)}") from None

    @model_validator(mode="before")
    @classmethod
    def _only_known_keys(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            for key in values:
                if key in cls.refused:
                    raise ConfigError(f"{cls.where}: {cls.refused[key]}")
                if key not in cls.model_fields:
                    raise ConfigError(_unknown(cls.where, str(key), sorted(cls.model_fields), cls.elsewhere.get(str(key))))
        return values


def _unknown(where: str, key: str, known: Sequence[str], elsewhere: str | None) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if elsewhere is not None:
        hint = f"it belongs in {elsewhere}"
    elif near:
        hint = f"did you mean {near[0]!r}?"
    else:
        hint = f"known keys: {', '.join(known)}"
    return f"{where} has no key {key!r}: {hint}"


def _first(error: ValidationError) -> str:
    detail = error.errors()[0]
    place = ".".join(str(part) for part in detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    given = detail.get("input")
    came = f" (got {given!r})" if isinstance(given, str | int | float | bool) else ""
    return f"{place}: {message}{came}" if place else f"{message}{came}"


class Stage(PlanPart):
    """One fit: these layers move, for so many epochs, at this rate.

    Parameters
    ----------
    layers : glob patterns over module (and parameter) names; "head" is the new head, "*" everything
    epochs : passes over the training data, at least 1
    lr : learning rate of the head, or of the topmost trainable layer
    layer_decay : factor in (0, 1] per layer below the topmost trainable one; None: one rate for all
    warmup, schedule : as in ``[training]``, for this stage alone; None: those of ``[training]``

    Examples
    --------
    >>> Stage("head", epochs=3, lr=1e-3).layers
    ('head',)
    """

    where: ClassVar[str] = "[[stages]]"

    layers: tuple[str, ...] = Field(min_length=1)
    epochs: int = Field(ge=1, le=100_000)
    lr: float = Field(gt=0)
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    warmup: float | None = Field(default=None, ge=0)
    schedule: Literal["cosine", "linear", "constant"] | None = None

    def __init__(self, layers: str | Sequence[str], epochs: int = 1, lr: float = 1e-3, **rest: Any) -> None:
        super().__init__(layers=layers, epochs=epochs, lr=lr, **rest)

    @field_validator("layers", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @property
    def name(self) -> str:
        return " + ".join(self.layers)


class Classification(PlanPart):
    """The task: which classes, and how the loss weighs them.

    Parameters
    ----------
    classes : class names in output order; None: the sorted names found in the training data
    class_weights : "balanced" (n / (C · n_c)), weights by class name, or None
    sampler : "balanced": each class is drawn equally often, with replacement; None: each sample once per epoch
    label_smoothing : share of the target put evenly on all classes, in [0, 1)
    head : "new" (always, by default) or "keep" the base's head, only where class names are equal
    positive : positive class of a binary task, where there is one
    """

    where: ClassVar[str] = "[task]"

    classes: tuple[str, ...] | None = None
    class_weights: Literal["balanced"] | Mapping[str, float] | None = None
    sampler: Literal["balanced"] | None = None
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    head: Literal["new", "keep"] = "new"
    positive: str | None = None

    def __init__(self, classes: Sequence[str] | None = None, **rest: Any) -> None:
        super().__init__(classes=classes, **rest)

    @field_validator("classes")
    @classmethod
    def _classes_are_distinct(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (len(value) < 2 or len(set(value)) != len(value)):
            raise ValueError(f"expected at least two different class names, got {list(value)}")
        return value

    @model_validator(mode="after")
    def _names_fit(self) -> Classification:
        if self.classes is not None and self.positive is not None and self.positive not in self.classes:
            raise ValueError(f"positive is {self.positive!r}, which is not one of the classes {list(self.classes)}")
        if isinstance(self.class_weights, Mapping):
            if any(not (math.isfinite(w) and w > 0) for w in self.class_weights.values()):
                raise ValueError(f"class_weights must be positive numbers, got {dict(self.class_weights)}")
            if self.classes is not None and set(self.class_weights) != set(self.classes):
                raise ValueError(f"class_weights names {sorted(self.class_weights)}, the classes are {list(self.classes)}")
        if self.class_weights is not None and self.sampler is not None:
            raise ValueError("class_weights and sampler both balance the classes: choose one")
        return self


class Regression(PlanPart):
    """The task: one number per sample, and how the loss counts errors.

    The column of numbers is the data's ``label``. The network is trained on the standardised target; what it gives is put back into the
    target's own unit wherever it is read.

    Parameters
    ----------
    loss : "mse" squared, "mae" absolute, "huber" squared up to ``delta`` and absolute beyond
    delta : of "huber", in units of the network's output (standard deviations of the target where it is standardised)
    standardise : subtract mean and divide by standard deviation of the target, both of the training part alone
    head : "new" (always, by default) or "keep" the base's head, only where the base gives one number too
    unit : of the target, as reports print it
    """

    where: ClassVar[str] = "[task]"
    refused: ClassVar[Mapping[str, str]] = {
        name: f'{name} is of a task with classes, and kind = "regression" has none: leave it out'
        for name in ("classes", "class_weights", "sampler", "label_smoothing", "positive")
    }
    elsewhere: ClassVar[Mapping[str, str]] = {"label": "[data]", "target": "[data], as label", "column": "[data], as label"}

    kind: Literal["regression"] = "regression"
    loss: Literal["mse", "mae", "huber"] = "mse"
    delta: float = Field(default=1.0, gt=0)
    standardise: bool = True
    head: Literal["new", "keep"] = "new"
    unit: str | None = None

    def __init__(self, loss: str = "mse", **rest: Any) -> None:
        super().__init__(loss=loss, **rest)

    @model_validator(mode="after")
    def _delta_has_a_loss(self) -> Regression:
        if "delta" in self.model_fields_set and self.loss != "huber":
            raise ValueError('delta is of loss = "huber": choose that loss, or leave delta out')
        return self


def _task(value: Any) -> Any:  # Any: a task, or the table [task] of a plan.toml
    """A task from its table: ``kind`` says which, classification where it says nothing."""
    if not isinstance(value, Mapping):
        return value
    rest = {key: entry for key, entry in value.items() if key != "kind"}
    kind = value.get("kind", "classification")
    if kind == "classification":
        return Classification.model_validate(rest)
    if kind == "regression":
        return Regression.model_validate(rest)
    raise ConfigError(f'[task] kind is {kind!r}: expected "classification" or "regression"')


class GroupColumn(PlanPart):
    """A group column whose numbers are put into bins: ``{column = "age", bins = [45, 55]}``."""

    where: ClassVar[str] = "[data] groups"
    column: str
    bins: tuple[float, ...] | None = None
    name: str | None = None


class DataPlan(PlanPart):
    """Where the training data lies and how it is read. Paths are relative to the plan file. See ``modality.open_data`` for the options."""

    where: ClassVar[str] = "[data]"
    elsewhere: ClassVar[Mapping[str, str]] = {"kind": "the top of the plan", "classes": "[task]"}

    train: str | None = None
    validation: float | str | None = None
    "a path, or the share of train held out, split by cluster"
    unlabelled: str | None = None
    "data of the target without labels, for [alignment] and [importance]"
    label: str | None = None
    numeric: tuple[str, ...] | None = None
    categorical: tuple[str, ...] | None = None
    drop: tuple[str, ...] | None = None
    id: str | None = None
    groups: tuple[str | GroupColumn, ...] | None = None
    cluster: str | None = None
    metadata: str | None = None
    positive: str | None = None
    label_map: Mapping[str, str] | None = None
    na_values: tuple[str | float, ...] | Mapping[str, tuple[str | float, ...]] | None = None
    "cell texts that mean 'missing', everywhere or by column"
    categorical_as: Literal["onehot", "embedding"] = "onehot"
    preprocessing: Preprocessing | None = None
    "of images, where the base does not bring its own"

    @field_validator("numeric", "categorical", "drop", "groups", "na_values", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "column" not in value:
            return value
        return (value,) if isinstance(value, str | Mapping) else value

    @field_validator("label", mode="before")
    @classmethod
    def _one_label(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            raise ValueError(f"one column holds the labels; {len(value)} were named (of several targets each needs its own plan)")
        return value

    @field_validator("label_map", mode="before")
    @classmethod
    def _keys_are_text(cls, value: Any) -> Any:
        return {str(k): str(v) for k, v in value.items()} if isinstance(value, Mapping) else value

    @field_validator("validation")
    @classmethod
    def _share(cls, value: float | str | None) -> float | str | None:
        if isinstance(value, float) and not 0 < value < 1:
            raise ValueError("a share lies between 0 and 1, or give a path")
        return value


class Augment(PlanPart):
    """One transform of ``torchvision.transforms.v2`` with its arguments."""

    where: ClassVar[str] = "[training] augment"
    name: str
    args: Mapping[str, Any] = Field(default_factory=dict)  # Any: TOML values

    def __init__(self, name: str, **rest: Any) -> None:
        super().__init__(name=name, **rest)


class Training(PlanPart):
    """How the weights are moved. The same for all stages and for the controls."""

    where: ClassVar[str] = "[training]"
    elsewhere: ClassVar[Mapping[str, str]] = {
        "class_weights": "[task]",
        "sampler": "[task]",
        "label_smoothing": "[task]",
        "lr": "[[stages]]",
        "epochs": "[[stages]]",
        "layer_decay": "[[stages]]",
        "layers": "[[stages]]",
        "seed": "the top of the plan",
    }

    optimiser: Literal["adamw", "sgd", "adam"] = "adamw"
    weight_decay: float = Field(default=1e-4, ge=0)
    "not on biases, norm layers and other vectors; not where l2sp pulls"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    "of sgd"
    batch_size: int = Field(default=32, ge=1, le=65_536)
    early_stop: int | None = Field(default=None, ge=1)
    "epochs without a lower validation loss before a stage ends"
    augment: tuple[Augment, ...] = ()
    l2sp: float = Field(default=0.0, ge=0)
    "weight of ½·‖w − w_base‖² over moving tensors that came from the base"
    dropout: float | None = Field(default=None, ge=0, lt=1)
    "probability put into every dropout module"
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.0, ge=0)
    "epochs (may be a fraction) over which the rate rises linearly"
    gradient_clip: float | None = Field(default=None, gt=0)
    "largest norm of the gradient"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    cache_bytes: int = Field(default=2 * 2**30, ge=0)
    "encoded samples up to this size stay in memory"

    @field_validator("augment", mode="before")
    @classmethod
    def _names_or_tables(cls, value: Any) -> Any:
        if isinstance(value, str | Mapping):
            value = (value,)
        if not isinstance(value, Sequence):
            return value
        return tuple(_augment(entry) for entry in value)


def _augment(entry: Any) -> Any:
    """ "RandomHorizontalFlip", {name = "RandomRotation", degrees = 10} and {name = ..., args = {...}} are all understood."""
    if isinstance(entry, str):
        return Augment(entry)
    if isinstance(entry, Mapping) and "name" in entry:
        rest = {key: value for key, value in entry.items() if key not in ("name", "args")}
        return Augment(str(entry["name"]), args={**dict(entry.get("args", {})), **rest})
    return entry


class Teacher(PlanPart):
    """Knowledge distillation: the adapted model also learns to answer as a teacher does. The controls do not.

    Parameters
    ----------
    model : "run:PATH" (the adapted model of that run), "base" (where the base answers in the plan's classes), or in Python a ``Model`` or ``nn.Module``.
        It is asked once per training sample, as it is, without augmentation
    weight : share of the teacher in the loss, in (0, 1]; the labels have the rest
    temperature : softens both answers; above 0

    References
    ----------
    Hinton, Vinyals & Dean (2015). Distilling the knowledge in a neural network. arXiv:1503.02531
    """

    where: ClassVar[str] = "[teacher]"
    model: Any  # Any: str, Model or nn.Module, checked below
    weight: float = Field(default=0.5, gt=0, le=1)
    temperature: float = Field(default=2.0, gt=0)

    def __init__(self, model: Any = None, **rest: Any) -> None:
        super().__init__(model=model, **rest)

    @field_validator("model")
    @classmethod
    def _model_is_known(cls, value: Any) -> Any:
        if isinstance(value, str) and (value == "base" or value.startswith(("run:", "live:"))):
            return value
        if isinstance(value, Model | nn.Module):
            return value
        raise ValueError("expected 'run:PATH' or 'base' (in Python also a Model or nn.Module)")

    @field_serializer("model")
    def _model_name(self, value: Any) -> str:
        return value if isinstance(value, str) else live_name(value)


class Alignment(PlanPart):
    """Features of unlabelled target data are drawn to those of the training data while the adapted model is trained. The controls are not.

    Parameters
    ----------
    kind : "coral" (equal covariances) or "mmd" (equal means of kernels)
    weight : of the distance beside the loss
    """

    where: ClassVar[str] = "[alignment]"
    kind: Literal["coral", "mmd"] = "coral"
    weight: float = Field(default=1.0, gt=0)


class Importance(PlanPart):
    """Training rows count as often as the target holds their like. Adapted model and controls alike.

    Parameters
    ----------
    kind : "domain" (a classifier of base features, training data against the unlabelled target: TLA501's shift) or "label" (the mix of classes:
        TLA502's shift)
    class_mix : of "label": share of each class in the target; None: estimated from the unlabelled data
    cap : largest weight, as a multiple of the mean
    """

    where: ClassVar[str] = "[importance]"
    kind: Literal["domain", "label"] = "domain"
    class_mix: Mapping[str, float] | None = None
    cap: float = Field(default=10.0, ge=1)

    @model_validator(mode="after")
    def _mix_is_of_labels(self) -> Importance:
        if self.class_mix is not None:
            if self.kind != "label":
                raise ValueError('class_mix belongs to kind = "label"')
            if any(v < 0 for v in self.class_mix.values()) or abs(sum(self.class_mix.values()) - 1) > 1e-6:
                raise ValueError(f"class_mix holds shares that sum to 1, got {dict(self.class_mix)}")
        return self


class Provenance(PlanPart):
    """What only a person can state about the base model."""

    where: ClassVar[str] = "[provenance]"
    base_revision: str | None = None
    base_licence: str | None = None
    base_source: str | None = None
    base_classes: tuple[str, ...] | None = None
    "the base's class names in output order, where its weights do not say"


class Plan(PlanPart):
    """What to adapt, on what, in which stages. Equal plans have equal ``sha256``.

    Parameters
    ----------
    base : "torchvision:NAME", "package.module:factory", "tl_audit:small_cnn", "tl_audit:mlp", "run:PATH"; in Python also a ``Model`` or ``nn.Module``
        (deep-copied, never changed)
    task, stages, training, data, provenance, teacher, alignment, importance : see those records
    weights : file of the base's weights; "default": the source's own, fetched by ``adapt`` only; None: random start, said in the record
    kind : "image", "tabular", "tensor"; None: found from the data
    input_size : side of the network's input in pixels; None: the architecture's own, or that of the data
    settings : constructor settings of the base's architecture (widths, hidden, dropout, ...)
    seed : of everything random
    controls : which controls ``adapt`` trains unless its caller says otherwise

    Raises
    ------
    ConfigError : unknown keys (with the nearest known one), impossible values, no stages

    Examples
    --------
    >>> plan = Plan(base="torchvision:resnet18", task=Classification(["ants", "bees"]), stages=[Stage("head", epochs=3, lr=1e-3)])
    >>> plan.epochs
    3
    """

    where: ClassVar[str] = "plan"
    elsewhere: ClassVar[Mapping[str, str]] = {
        "classes": "[task]",
        "class_weights": "[task]",
        "sampler": "[task]",
        "label_smoothing": "[task]",
        "loss": "[task]",
        "standardise": "[task]",
        "train": "[data]",
        "validation": "[data]",
        "label": "[data]",
        "batch_size": "[training]",
        "optimiser": "[training]",
        "early_stop": "[training]",
        "augment": "[training]",
        "lr": "[[stages]]",
        "epochs": "[[stages]]",
        "base_licence": "[provenance]",
    }
    refused: ClassVar[Mapping[str, str]] = {
        "lora": "[lora] adapters come in a later version of tl-audit: use [[stages]]",
    }

    base: Any  # Any: str, Model or nn.Module, checked below
    task: Classification | Regression = Field(default_factory=Classification)
    stages: tuple[Stage, ...] = Field(min_length=1)
    weights: str | None = None
    kind: Literal["image", "tabular", "text", "tensor"] | None = None
    input_size: int | None = Field(default=None, ge=8, le=4096)
    settings: Mapping[str, Any] = Field(default_factory=dict)  # Any: TOML values
    seed: int = Field(default=0, ge=0, lt=2**63)
    controls: tuple[ControlKind, ...] = ()
    data: DataPlan = Field(default_factory=DataPlan)
    training: Training = Field(default_factory=Training)
    provenance: Provenance = Field(default_factory=Provenance)
    teacher: Teacher | None = None
    alignment: Alignment | None = None
    importance: Importance | None = None

    _folder: Path | None = PrivateAttr(default=None)

    @field_validator("base")
    @classmethod
    def _base_is_known(cls, value: Any) -> Any:
        if isinstance(value, Path):
            value = str(value)
        if not isinstance(value, str | Model | nn.Module):
            raise ValueError(f"expected a name such as 'torchvision:resnet18', a Model or an nn.Module, got {type(value).__name__}")
        if isinstance(value, str) and (":" not in value or value.startswith(("timm:", "hf:"))):
            raise ValueError(
                "expected 'torchvision:NAME', 'package.module:factory', 'tl_audit:small_cnn', 'tl_audit:mlp' or 'run:PATH' "
                "(with weights = FILE for a weights file)"
            )
        return value

    @field_validator("task", mode="before")
    @classmethod
    def _task_of_its_kind(cls, value: Any) -> Any:
        return _task(value)

    @field_validator("teacher", mode="before")
    @classmethod
    def _teacher_alone(cls, value: Any) -> Any:
        return Teacher(value) if isinstance(value, str | Model | nn.Module) else value

    @field_validator("controls")
    @classmethod
    def _controls_once(cls, value: tuple[ControlKind, ...]) -> tuple[ControlKind, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"a control is named twice: {list(value)}")
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> Plan:
        if isinstance(self.base, str):
            if self.weights is not None and self.base.startswith("run:"):
                raise ValueError("weights: a run brings its own weights, leave the key out")
        elif self.weights is not None:
            raise ValueError("weights: a live module brings its own weights, leave the argument out")
        if isinstance(self.task, Regression):
            if self.teacher is not None:
                raise ValueError("[teacher] teaches shares of classes, and a regression has none: leave it out")
            if self.importance is not None and self.importance.kind == "label":
                raise ValueError('[importance] kind = "label" weighs classes, and a regression has none: use kind = "domain"')
            for name in ("positive", "label_map"):
                if getattr(self.data, name) is not None:
                    raise ValueError(f'[data] {name} is of a task with classes, and [task] kind = "regression" has none: leave it out')
        elif self.task.positive is not None and self.data.positive is not None and self.task.positive != self.data.positive:
            raise ValueError(f"[task] positive is {self.task.positive!r}, [data] positive is {self.data.positive!r}")
        return self

    @field_serializer("base")
    def _base_name(self, value: Any) -> str:
        return value if isinstance(value, str) else live_name(value)

    @property
    def sha256(self) -> str:
        """Of the plan's canonical JSON (a live base counts by the name of its class; its weights are hashed elsewhere)."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def taught_by(self, teacher: Any) -> Plan:  # Any: what Teacher accepts, or a Teacher
        """The same plan with this teacher; weight and temperature stay those of the plan's own teacher, where it has one."""
        if not isinstance(teacher, Teacher):
            own = {} if self.teacher is None else {"weight": self.teacher.weight, "temperature": self.teacher.temperature}
            teacher = Teacher(teacher, **own)
        plan = type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, "teacher": teacher})
        plan._folder = self._folder
        return plan

    @property
    def epochs(self) -> int:
        """Sum over stages."""
        return sum(stage.epochs for stage in self.stages)

    @property
    def positive(self) -> str | None:
        return None if isinstance(self.task, Regression) else self.task.positive or self.data.positive

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The classes that the plan declares; None: those of the data, or a regression, which has none."""
        return None if isinstance(self.task, Regression) else self.task.classes

    @property
    def folder(self) -> Path:
        """What relative paths start from: the plan file's folder, else the working directory."""
        return self._folder if self._folder is not None else Path.cwd()

    def path(self, text: str) -> Path:
        """A path of the plan, made absolute."""
        given = Path(text).expanduser()
        return given if given.is_absolute() else self.folder / given

    @classmethod
    def from_toml(cls, path: str | Path) -> Plan:
        """The plan in a TOML file.

        Raises
        ------
        ConfigError : no such file, more than 1 MiB, not TOML, unknown keys, impossible values
        """
        path = Path(path)
        try:
            size = path.stat().st_size
            if size > MOST_PLAN_BYTES:
                raise ConfigError(f"{path}: {size} bytes are more than a plan can have ({MOST_PLAN_BYTES})")
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a plan.toml") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from None
        return cls.from_text(text, name=str(path), folder=path.parent)

    @classmethod
    def from_text(cls, text: str, *, name: str = "plan.toml", folder: Path | None = None) -> Plan:
        """The plan in the text of a TOML file; raises ConfigError as from_toml does."""
        try:
            values = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise ConfigError(f"{name}: is not TOML ({error})") from None
        for key in ("base", "stages"):
            if key not in values and "lora" not in values:
                raise ConfigError(f"{name}: the key {key!r} is missing")
        try:
            plan = cls(**_without_defaults(values))
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None
        plan._folder = folder.resolve() if folder is not None else None
        return plan

    def to_toml(self) -> str:
        """The text of a plan.toml that reads back as an equal plan (a live base: as ``live:CLASS``, which only Python can resolve)."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        data.setdefault("base", live_name(self.base) if not isinstance(self.base, str) else self.base)
        data.setdefault("seed", self.seed)
        if isinstance(self.task, Regression):
            data["task"] = {"kind": "regression", **data.get("task", {})}
        return toml_text(data)


def _without_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Tables of plan.toml as their records, so that an error names its table (and its place in [[stages]])."""
    parts: dict[str, type[PlanPart]] = {
        "data": DataPlan, "training": Training, "provenance": Provenance, "teacher": Teacher, "alignment": Alignment, "importance": Importance,
    }  # fmt: skip
    out = dict(values)
    for key in ("task", *parts):
        if key in out:
            if not isinstance(out[key], dict):
                raise ConfigError(f"{key!r} must be a table: write [{key}]")
            out[key] = _task(out[key]) if key == "task" else parts[key].model_validate(out[key])
    if "stages" in out:
        if not isinstance(out["stages"], list) or not all(isinstance(entry, dict) for entry in out["stages"]):
            raise ConfigError("'stages' must be tables: write [[stages]]")
        stages = []
        for number, entry in enumerate(out["stages"], start=1):
            missing = [key for key in ("layers", "epochs", "lr") if key not in entry]
            try:
                stage = Stage(**{"layers": "*", **entry})
            except ConfigError as error:
                raise ConfigError(f"stage {number}: {error}") from None
            if missing:
                raise ConfigError(f"stage {number}: [[stages]] needs {', '.join(missing)}")
            stages.append(stage)
        out["stages"] = tuple(stages)
    return out


def live_name(base: object) -> str:
    """Name of a live base in records: ``live:package.Class``."""
    module = base.module if isinstance(base, Model) else base
    return f"live:{type(module).__module__}.{type(module).__qualname__}"


def toml_text(data: Mapping[str, Any]) -> str:  # Any: plain JSON values
    """Plain data as TOML: scalars first, then tables, then arrays of tables. Keys with None are left out (TOML has no null)."""
    lines: list[str] = []
    tables = {k: v for k, v in data.items() if isinstance(v, Mapping) and v}
    arrays = {k: v for k, v in data.items() if isinstance(v, list) and v and all(isinstance(e, Mapping) for e in v)}
    for key, value in data.items():
        if value is not None and key not in tables and key not in arrays and not isinstance(value, Mapping):
            lines.append(f"{_key(key)} = {_value(value)}")
    for key, table in tables.items():
        lines += ["", f"[{_key(key)}]", *(f"{_key(k)} = {_value(v)}" for k, v in table.items() if v is not None)]
    for key, entries in arrays.items():
        for entry in entries:
            lines += ["", f"[[{_key(key)}]]", *(f"{_key(k)} = {_value(v)}" for k, v in entry.items() if v is not None)]
    return "\n".join(lines) + "\n"


def _key(key: str) -> str:
    return key if key and all(c.isascii() and (c.isalnum() or c in "_-") for c in key) else _text(key)


def _text(text: str) -> str:
    # JSON escapes are TOML escapes, but for DEL, which TOML wants escaped too
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(str(k))} = {_value(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(entry) for entry in value) + "]"
    if isinstance(value, float):
        text = repr(value)
        return text if "e" not in text or "." in text else text.replace("e", ".0e")
    return repr(value)
