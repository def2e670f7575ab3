"""adapt(): a plan and data in, an adapted model with its controls, its record and its run directory out."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from tl_audit.errors import ConfigError, DataError
from tl_audit.finetune.base import Base, copy_with_head, open_base, random_start
from tl_audit.finetune.beside import Lesson, importance_weights, lesson, unlabelled_inputs, unlabelled_record, wants_unlabelled
from tl_audit.finetune.choose import HEAD, Choice, choose, is_head_only
from tl_audit.finetune.flops import METHOD, forward_flops, training_flops
from tl_audit.finetune.inputs import Augmenter, Inputs, Split, aligned, count_batches, fit_value, hold_out, task_classes
from tl_audit.finetune.load import load_run
from tl_audit.finetune.loss import CrossEntropy, NumberLoss, Objective
from tl_audit.finetune.opening import given_domain, open_unlabelled, part_of, unlabelled_options
from tl_audit.finetune.plan import ControlKind, Plan, Regression, Stage
from tl_audit.finetune.progress import Progress, Say, Show
from tl_audit.finetune.rates import balanced_weights
from tl_audit.finetune.run_dir import (
    ADAPTED,
    BASE,
    ENCODING,
    MANIFEST,
    PLAN,
    RECORD,
    SAMPLES,
    Encoding,
    ModelForm,
    Row,
    StageState,
    clear_partial,
    clear_results,
    control_file,
    load_stage,
    open_folder,
    read_files,
    refuse_foreign,
    save_stage,
    stage_key,
    write_json,
    write_manifest,
    write_samples,
    write_tensors,
    write_text,
)
from tl_audit.modality import fit_encoding
from tl_audit.models import Model, WeightsFile, tensor_hash
from tl_audit.records.adaptation import AdaptationRecord, ControlRecord, StageRecord, TensorChange
from tl_audit.records.preprocessing import InputSpec, Preprocessing, TableEncoding, spec_hash
from tl_audit.records.values import Output, Value
from tl_audit.subject import Domain

if TYPE_CHECKING:
    from tl_audit.finetune.engine import Guidance, Job

Tensors = Mapping[str, torch.Tensor]
CONTROLS: tuple[ControlKind, ...] = ("head", "scratch")
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "safetensors", "numpy", "scikit-learn", "pandas", "Pillow", "tl-audit")


@dataclass(frozen=True)
class Adaptation:
    """What ``adapt`` made.

    Attributes
    ----------
    model, base : the adapted and the base model, on the CPU, in ``eval()``
    controls : {"head": Model, "scratch": Model}, those that were trained
    same_as_adapted : kinds of controls that are the adapted model by design
    train, validation : the rows that were trained and validated on, as domains
    reused : the run directory already held exactly this adaptation, nothing was trained
    """

    model: Model
    base: Model
    controls: Mapping[str, Model]
    record: AdaptationRecord
    run_dir: str | None = None
    same_as_adapted: tuple[str, ...] = ()
    train: Domain | None = None
    validation: Domain | None = None
    reused: bool = False


@dataclass
class _Material:
    """All that is known before anything is trained."""

    plan: Plan
    classes: tuple[str, ...]
    kind: str
    base: Base
    spec: InputSpec | None
    train: Inputs
    validation: Inputs | None
    notes: list[str] = field(default_factory=list)
    data_in_plan: bool = False
    unlabelled: Inputs | None = None
    "target data without labels, where the plan draws on it"
    lesson: Lesson | None = None
    "what the teacher says of the training samples"
    weights: torch.Tensor | None = None
    "(n,) importance of the training samples, mean 1"
    importance: Mapping[str, Any] = field(default_factory=dict)  # Any: plain JSON values
    value: Value | None = None
    "how the network's output is read in a regression, None where it scores classes"

    @property
    def example(self) -> torch.Tensor:
        """Inputs of the first two training samples."""
        return self.train.batch(np.arange(min(2, len(self.train)), dtype=np.int64))[0]


@dataclass(frozen=True)
class _Place:
    """Where finished stages lie, and the key that says of which adaptation they are."""

    folder: Path | None
    key: str
    resume: bool


def adapt(
    plan: Plan | str | Path,
    train: Any = None,  # Any: a Domain, or what Domain accepts
    validation: Any = None,
    *,
    unlabelled: Any = None,
    teacher: Any = None,
    out: str | Path | None = None,
    controls: Sequence[str] | None = None,
    device: str = "auto",
    offline: bool = False,
    progress: Show | Say = "auto",
    resume: bool = True,
) -> Adaptation:
    """Fine-tunes the plan's base on the training data, and its controls beside it.

    Parameters
    ----------
    plan : a Plan, or the path of a plan.toml
    train, validation : a ``Domain``, or data that ``Domain`` accepts; None: the plan's paths. A validation set keeps the best epoch and allows early stopping
    unlabelled : target data whose labels, if any, are not looked at: for ``Plan(alignment=...)`` and ``Plan(importance=...)``; None: the plan's path
    teacher : a model to distil from: a ``Model``, an ``nn.Module``, "run:PATH", "base", or a ``Teacher`` with weight and temperature; None: the plan's
    out : run directory to write; None: nothing is written
    controls : "head", "scratch"; None: those of the plan
    device : "auto", "cpu", "cuda", "cuda:N"
    offline : forbid fetching the library's own weights
    progress : "auto" (a bar on a terminal, a line per epoch elsewhere), "bar", "lines", "none", or a function called with each line
    resume : reuse finished stages, or the finished run, in ``out`` where plan, data and base are exactly the same

    Raises
    ------
    ConfigError : the plan does not fit the data or the network
    DataError : the data cannot be trained on
    WeightsError : base weights that are refused, do not fit or are not finite
    ModelError : training diverged, or a frozen tensor moved
    Interrupted : stopped by the user; with ``out``, finished stages are kept

    Examples
    --------
    >>> plan = Plan(base="torchvision:resnet18", task=Classification(["ants", "bees"]), stages=[Stage("head", epochs=3, lr=1e-3)])  # doctest: +SKIP
    >>> adapt(plan, "data/train", out="runs/insects").record.method  # doctest: +SKIP
    'head'
    """
    started, clock = _now(), time.monotonic()
    plan = plan if isinstance(plan, Plan) else Plan.from_toml(plan)
    if teacher is not None:
        plan = plan.taught_by(teacher)
    kinds = _control_kinds(plan.controls if controls is None else controls)
    folder = None if out is None else Path(out)
    if folder is not None:
        refuse_foreign(folder)
    material = _prepare(plan, train, validation, unlabelled, offline=offline)
    base_hash = tensor_hash(material.base.model.module)
    adapted, form = _start(material)
    heads: tuple[str, ...] = tuple(adapted.facts["heads"])
    choices = _choices(plan, adapted.module, heads)
    if folder is not None:
        open_folder(folder)
    if folder is not None and resume and (found := _finished(folder, material, base_hash, kinds)) is not None:
        clear_partial(folder)
        return found
    from tl_audit.finetune.engine import resolve_device, threads_for  # late: the trainer takes seconds to import

    same: tuple[ControlKind, ...] = (HEAD,) if HEAD in kinds and all(is_head_only(stage.layers) for stage in plan.stages) else ()
    own = tuple(kind for kind in kinds if kind not in same)
    costs = [training_flops(adapted.module, choice, material.example, output=adapted.output) for choice in choices]
    one = forward_flops(adapted.module, material.example[:1])
    chosen_device = resolve_device(device)
    per_epoch = count_batches(len(material.train), plan.training.batch_size)
    with Progress(progress, total=per_epoch * plan.epochs * (1 + len(own))) as show:
        threads = threads_for(chosen_device, one * plan.training.batch_size)
        job = _job(material, chosen_device, show, adapted.part, threads)
        place = _Place(folder, _key(material, base_hash, chosen_device, threads), resume)
        led = replace(job, guidance=_guidance(material))
        stages = _stages(adapted.module, plan.stages, choices, led, place, heads=heads, base=_pull(material, heads))
        trained: dict[str, Model] = {}
        control_records = [ControlRecord(kind=kind, same_as="adapted") for kind in same]
        for kind in own:
            trained[kind], stage = _control_start(kind, material, form, adapted)
            network = trained[kind].module
            (state,) = _stages(network, (stage,), (choose(network, stage.layers, heads),), job, place, heads=heads, who=kind)
            control_records.append(_control_record(kind, network, stage, state.record))
        validated = 0 if material.validation is None else len(material.validation) * sum(len(s.record.history) for s in stages)
        spent = sum(state.samples_seen * cost for state, cost in zip(stages, costs, strict=True)) + validated * one
        facts = _Facts(
            base_hash=base_hash,
            heads=heads,
            choices=choices,
            stages=tuple(state.record for state in stages),
            controls=tuple(control_records),
            flops={"forward_per_sample": one, "adaptation": spent},
            device=_device_name(chosen_device, threads),
            started=started,
            seconds=time.monotonic() - clock,
        )
        record = _record(material, adapted, facts)
        if folder is not None:
            record, adapted, trained = _write(folder, material, form, record, adapted, trained)
            show.say(f"wrote {folder}")
    train_part, validation_part = _parts(material)
    run_dir = None if folder is None else str(folder)
    return Adaptation(adapted, _base_model(material), trained, record, run_dir, same, train_part, validation_part)


# Before training ----------------------------------------------------------------------------------------------------------------


def _control_kinds(asked: Sequence[str]) -> tuple[ControlKind, ...]:
    if isinstance(asked, str):
        asked = (asked,)
    unknown = [kind for kind in asked if kind not in CONTROLS]
    if unknown:
        raise ConfigError(f"there is no control {unknown[0]!r}: controls are {', '.join(CONTROLS)}")
    return tuple(kind for kind in CONTROLS if kind in asked)


def _prepare(plan: Plan, train: Any, validation: Any, unlabelled: Any, *, offline: bool) -> _Material:
    in_plan = train is None
    domain = given_domain(plan, "train", train)
    kind = domain.kind
    regression = plan.task if isinstance(plan.task, Regression) else None
    classes = () if regression is not None else task_classes(domain, plan.classes)
    split, notes = aligned("train", domain, classes, regression)
    held: Split | None = None
    more: tuple[str, ...] = ()
    if validation is not None or isinstance(plan.data.validation, str):
        held, more = aligned("validation", given_domain(plan, "validation", validation), classes, regression)
    elif plan.data.validation is not None:
        split, held = hold_out(split, float(plan.data.validation), plan.seed)
    if plan.training.early_stop is not None and held is None:
        raise ConfigError("[training] early_stop needs validation data: give [data] validation, a path or a share of train")
    said = [*domain.notes, *notes, *more]
    said += [f"train: {name} was left out: {reason}" for name, reason in domain.skipped[:20]]
    runs = isinstance(plan.base, str) and plan.base.startswith("run:")
    encoding: TableEncoding | None = None
    if kind == "tabular" and not runs:
        encoding = fit_encoding(domain, rows=split.rows, categorical_as=plan.data.categorical_as)
    base = open_base(plan, kind=kind, classes=1 if regression is not None else len(classes), encoding=encoding, offline=offline)
    if regression is None and plan.task.head == "keep" and base.model.classes is not None and set(base.model.classes) == set(classes):
        # the kept head writes its outputs in the base's order, whatever order the data or the plan has
        split, held = split.reordered(classes, base.model.classes), None if held is None else held.reordered(classes, base.model.classes)
        classes = base.model.classes
    spec, spec_notes = _spec(plan, base, domain, split, kind, encoding)
    said += [*base.notes, *spec_notes, *domain.samples.modality.spec_notes(domain.samples, spec)]
    augment = Augmenter(plan.training.augment, kind) if plan.training.augment else None
    inputs = Inputs(split, spec, augment=augment, cache_bytes=plan.training.cache_bytes)
    val = None if held is None else Inputs(held, spec, cache_bytes=plan.training.cache_bytes)
    for part in (inputs, val):
        said += [] if part is None else [f"{part.split.name}: {name} was left out: {reason}" for name, reason in part.dropped[:20]]
    if val is not None and (both := set(inputs.hashes) & set(val.hashes)):
        said.append(f"{len(both)} samples have the same content in train and validation: the validation loss flatters")
    value: Value | None = None
    if regression is not None:
        kept = base.model.output if regression.head == "keep" else None
        # a kept head goes on in the scale that it was trained in
        value = kept if isinstance(kept, Value) else fit_value(
            inputs.split, standardise=regression.standardise, name=plan.data.label, unit=regression.unit or domain.unit
        )  # fmt: skip
        for one in (inputs, val):
            if one is not None:
                one.standardise(value)
    elif len({int(code) for code in inputs.split.labels}) < 2:
        raise DataError(f"{domain.name}: all {len(inputs)} training samples are of one class")
    return _beside(_Material(plan, classes, kind, base, spec, inputs, val, said, in_plan, value=value), unlabelled, augment)


def _beside(material: _Material, given: Any, augment: Augmenter | None) -> _Material:
    """The material with what the plan names beside the training data: unlabelled target data, weights, a teacher."""
    plan = material.plan
    wanted = wants_unlabelled(plan)
    if given is None and plan.data.unlabelled is not None:
        given = open_unlabelled(plan)
    if wanted and given is None:
        raise ConfigError(f"{wanted} needs unlabelled data of the target: give [data] unlabelled, or unlabelled= in Python")
    if given is not None and not wanted:
        raise ConfigError("unlabelled data is given, and nothing uses it: add [alignment] or [importance], or leave it out")
    if wanted:
        domain = given if isinstance(given, Domain) else Domain("unlabelled", given, kind=plan.kind, **unlabelled_options(plan))
        if domain.kind != material.kind:
            raise ConfigError(f"the unlabelled data is {domain.kind}, the training data {material.kind}")
        material.unlabelled = unlabelled_inputs(domain, plan, material.spec, augment)
        n, name = len(material.unlabelled), domain.name
        material.notes.append(f"{n} samples of {name} were used without their labels: an audit on them is not on data that was never seen")
    if plan.importance is not None:
        found, material.importance, notes = importance_weights(
            plan.importance, material.train, material.unlabelled, _start(material)[0], classes=material.classes, seed=plan.seed
        )
        material.weights = torch.from_numpy(found.values.astype(np.float32))
        material.notes += notes
    if plan.teacher is not None:
        material.lesson = lesson(plan.teacher, plan, material.train, _base_model(material), classes=material.classes)
    return material


def _spec(
    plan: Plan, base: Base, domain: Domain, split: Split, kind: str, encoding: TableEncoding | None
) -> tuple[InputSpec | None, list[str]]:
    """How raw samples become the base's inputs. A run's encoding is never fitted again."""
    own = base.preprocessing
    if kind != "image":
        return (own if own is not None else encoding), []
    if plan.data.preprocessing is not None:
        return plan.data.preprocessing, []
    if own is not None:
        return own, []
    channels: Any = plan.settings.get("channels", 3)
    if plan.input_size is not None:
        return Preprocessing(height=plan.input_size, width=plan.input_size, channels=channels), []
    batch = domain.samples.read(split.rows[:64])
    sizes = {np.asarray(item).shape[:2] for item, error in zip(batch.items, batch.errors, strict=True) if error is None}
    if len(sizes) != 1:
        raise ConfigError(
            f"{base.identity}: its input size is not known and the images differ in size: give input_size, or [data] preprocessing"
        )
    height, width = next(iter(sizes))
    note = f"preprocessing was taken from the data: {height} × {width}, values from 0 to 1"
    return Preprocessing(height=height, width=width, channels=channels), [note]


def _choices(plan: Plan, network: nn.Module, heads: Sequence[str]) -> tuple[Choice, ...]:
    """What every stage moves, checked before the first one begins."""
    choices = []
    for number, stage in enumerate(plan.stages, start=1):
        try:
            choices.append(choose(network, stage.layers, heads))
        except ConfigError as error:
            raise ConfigError(f"stage {number}: {error}") from None
    moving = {name for choice in choices for name in choice.trainable}
    silent = [head for head in heads if not any(name.startswith(head + ".") for name in moving)]
    if silent and plan.task.head == "new":
        raise ConfigError(f'no stage trains the new head ({silent[0]}), which starts at random: add a stage with layers = "head"')
    if plan.training.dropout is not None and not any(_is_dropout(part) for part in network.modules()):
        raise ConfigError("[training] dropout: the network has no dropout module; give it one, or leave the key out")
    return tuple(choices)


def _is_dropout(part: nn.Module) -> bool:
    return isinstance(part, nn.modules.dropout._DropoutNd)


def _set_dropout(network: nn.Module, p: float | None) -> None:
    if p is not None:
        for part in network.modules():
            if _is_dropout(part):
                part.p = p  # type: ignore[assignment]


def _key(material: _Material, base_hash: str, device: str, threads: int | None) -> str:
    """Of everything that the weights depend on."""
    data = [inputs.record(material.classes).sha256 if inputs is not None else None for inputs in (material.train, material.validation)]
    rows = stage_key(*material.train.split.rows.tolist())
    machine = (torch.__version__, device, threads or torch.get_num_threads())
    beside = (
        None if material.unlabelled is None else unlabelled_record(material.unlabelled).sha256,
        None if material.lesson is None else material.lesson.facts["tensors_sha256"],
        sorted(material.importance.items()),
    )
    return stage_key(material.plan.sha256, *data, rows, base_hash, spec_hash(material.spec), material.classes, *beside, *machine)


def _job(material: _Material, device: str, progress: Progress, part: str | int | None, threads: int | None) -> Job:
    from tl_audit.finetune.engine import Job

    # trained on the scale of the network's output, which has mean 0 and scale 1 there
    output: Output = part if material.value is None else Value(part=part)
    objective, sampler = _objective(material)
    return Job(
        train=material.train,
        validation=material.validation,
        classes=len(material.classes),
        objective=objective,
        sampler=sampler,
        training=material.plan.training,
        seed=material.plan.seed,
        device=device,
        progress=progress,
        output=output,
        threads=threads,
        weights=material.weights,
    )


def _guidance(material: _Material) -> Guidance | None:
    """What pulls at the adapted model alone: controls are trained in a simpler way."""
    from tl_audit.finetune.engine import Guidance

    taught, alignment = material.lesson, material.plan.alignment
    if taught is None and alignment is None:
        return None
    return Guidance(
        teacher=None if taught is None else (taught.logits, taught.settings),
        unlabelled=None if alignment is None or material.unlabelled is None else (material.unlabelled, alignment),
    )


def _objective(material: _Material) -> tuple[Objective, str | None]:
    """What the fits make small, and how samples are drawn for it."""
    task = material.plan.task
    if isinstance(task, Regression):
        assert material.value is not None
        return NumberLoss(task.loss, task.delta, material.value.scale), None
    counts = np.bincount(material.train.split.labels, minlength=len(material.classes)).tolist()
    weights: tuple[float, ...] | None = None
    if task.class_weights == "balanced":
        weights = tuple(balanced_weights(counts))
    elif task.class_weights is not None:
        if set(task.class_weights) != set(material.classes):
            raise ConfigError(f"[task] class_weights names {sorted(task.class_weights)}, the classes are {list(material.classes)}")
        weights = tuple(float(task.class_weights[name]) for name in material.classes)
    # balance by drawing must not be undone by a validation loss that the majority rules
    judged = weights if task.sampler is None else tuple(balanced_weights(counts))
    return CrossEntropy(weights, judged, task.label_smoothing), task.sampler


def _pull(material: _Material, heads: Sequence[str]) -> Tensors | None:
    """The base's tensors that L2-SP draws to: all but a new head, which has no start worth keeping."""
    if material.plan.training.l2sp == 0:
        return None
    state = material.base.model.module.state_dict()
    if material.plan.task.head == "keep":
        return dict(state)
    return {name: tensor for name, tensor in state.items() if not any(name.startswith(head + ".") for head in heads)}


def _start(material: _Material) -> tuple[Model, ModelForm]:
    """The copy of the base that is adapted, before any step."""
    plan = material.plan
    return copy_with_head(
        material.base,
        classes=material.classes,
        keep=plan.task.head == "keep",
        example=material.example,
        seed=plan.seed,
        spec=material.spec,
        value=material.value,
    )


def _control_start(kind: ControlKind, material: _Material, form: ModelForm, adapted: Model) -> tuple[Model, Stage]:
    """Where a control begins and its one stage: same epochs in all, same batches, same early stopping."""
    plan = material.plan
    if kind == HEAD:
        rates = [stage.lr for stage in plan.stages if HEAD in stage.layers] or [plan.stages[0].lr]
        return replace(_start(material)[0], name="control:head"), Stage(HEAD, epochs=plan.epochs, lr=rates[0])
    model = random_start(material.base, adapted, form, kind=material.kind, seed=plan.seed, spec=material.spec)
    return model, Stage("*", epochs=plan.epochs, lr=max(stage.lr for stage in plan.stages))


def _control_record(kind: ControlKind, network: nn.Module, stage: Stage, fitted: StageRecord) -> ControlRecord:
    return ControlRecord(
        kind=kind,
        sha256=tensor_hash(network),
        epochs=len(fitted.history),
        lr=stage.lr,
        best_epoch=fitted.best_epoch,
        stopped_early=fitted.stopped_early,
        history=fitted.history,
        seconds=fitted.seconds,
    )


# Training -------------------------------------------------------------------------------------------------------------------------


def _stages(
    network: nn.Module,
    stages: Sequence[Stage],
    choices: Sequence[Choice],
    job: Job,
    place: _Place,
    *,
    heads: Sequence[str],
    who: str = "adapted",
    base: Tensors | None = None,
) -> list[StageState]:
    """Successive fits, each from the last one's weights; finished ones are taken from the folder."""
    from tl_audit.finetune.engine import fit

    _set_dropout(network, job.training.dropout)
    done: list[StageState] = []
    first_epoch = 0
    for number, (stage, choice) in enumerate(zip(stages, choices, strict=True), start=1):
        own_key = stage_key(place.key, who, number)
        label = f"control {who}" if who != "adapted" else f"stage {number}/{len(stages)} ({stage.name})"
        found = load_stage(place.folder, f"{who}-{number}", own_key) if place.folder is not None and place.resume else None
        if found is not None and _fits(network, found[0]):
            network.load_state_dict(found[0], strict=True)
            done.append(found[1])
            job.progress.skip(stage.epochs * count_batches(len(job.train), job.training.batch_size))
            job.progress.say(f"{label}: taken from the unfinished run")
        else:
            fitted = fit(network, stage, choice, job, heads=heads, what=label, first_epoch=first_epoch, base=base)
            record = StageRecord(
                name=stage.name,
                layers=stage.layers,
                epochs=stage.epochs,
                lr=stage.lr,
                layer_decay=stage.layer_decay,
                optimiser=job.training.optimiser,
                schedule=stage.schedule or job.training.schedule,
                trainable=choice.trainable,
                frozen=choice.frozen,
                trainable_parameters=sum(p.numel() for name, p in network.named_parameters() if name in set(choice.trainable)),
                best_epoch=fitted.best_epoch,
                stopped_early=fitted.stopped_early,
                history=tuple(fitted.history),
                seconds=fitted.seconds,
            )
            state = StageState(key=own_key, record=record, samples_seen=fitted.samples_seen)
            if place.folder is not None:
                save_stage(place.folder, f"{who}-{number}", fitted.tensors, state)
            done.append(state)
        first_epoch += stage.epochs
    network.eval()
    return done


def _fits(network: nn.Module, tensors: Tensors) -> bool:
    state = network.state_dict()
    return set(state) == set(tensors) and all(state[name].shape == tensors[name].shape for name in state)


# After training -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Facts:
    base_hash: str
    heads: tuple[str, ...]
    choices: tuple[Choice, ...]
    stages: tuple[StageRecord, ...]
    controls: tuple[ControlRecord, ...]
    flops: Mapping[str, float]
    device: str
    started: str
    seconds: float


def _record(material: _Material, adapted: Model, facts: _Facts) -> AdaptationRecord:
    plan, base = material.plan, material.base
    parameters = {name: p.numel() for name, p in adapted.module.named_parameters()}
    moved = {name for stage in facts.stages for name in stage.trainable}
    frozen = set(facts.choices[0].frozen).intersection(*(choice.frozen for choice in facts.choices[1:]))
    adapted_hash = tensor_hash(adapted.module)
    file = base.file
    spec = material.spec
    return AdaptationRecord(
        base_id=plan.base if isinstance(plan.base, str) else base.identity,
        base_revision=plan.provenance.base_revision,
        base_sha256=facts.base_hash if file is None else file.sha256,
        base_format="built-in" if file is None else file.format,
        base_file=None if file is None else _relative(Path(file.path), plan.folder),
        base_origin=base.origin,  # type: ignore[arg-type]
        base_licence=plan.provenance.base_licence,
        base_source=plan.provenance.base_source,
        base_classes=base.model.classes,
        base_tensors_sha256=facts.base_hash,
        plan_sha256=plan.sha256,
        plan=plan.model_dump(mode="json"),
        kind=material.kind,
        setting="inductive" if material.unlabelled is None else "transductive",
        classes=material.classes or None,
        class_source=None
        if material.value is not None
        else "base"
        if plan.task.head == "keep"
        else "declared"
        if plan.classes is not None
        else "data",
        train=material.train.record(material.classes),
        validation=None if material.validation is None else material.validation.record(material.classes),
        unlabelled=None if material.unlabelled is None else unlabelled_record(material.unlabelled),
        teacher={} if material.lesson is None else dict(material.lesson.facts),
        importance=dict(material.importance),
        preprocessing={} if spec is None else spec.model_dump(mode="json"),
        base_preprocessing={} if base.preprocessing is None else base.preprocessing.model_dump(mode="json"),
        method=_method(plan, base, moved, parameters),
        stages=facts.stages,
        frozen=tuple(name for name in adapted.module.state_dict() if name in frozen),
        trainable_share=sum(parameters[name] for name in parameters if name in moved) / max(1, sum(parameters.values())),
        parameters=sum(parameters.values()),
        architecture_changes=architecture_changes(base.model.module, adapted.module, new=facts.heads if plan.task.head == "new" else ()),
        head=adapted.head,
        task=_task(material),
        training=plan.training.model_dump(mode="json"),
        seeds={"plan": plan.seed},
        flops=facts.flops,
        flops_method=METHOD,
        versions=_versions(),
        device=facts.device,
        adapted_sha256=adapted_hash,
        adapted_tensors_sha256=adapted_hash,
        controls=facts.controls,
        started=facts.started,
        ended=_now(),
        seconds=facts.seconds,
        peak_memory_bytes=_peak_memory(facts.device),
        notes=tuple(dict.fromkeys(material.notes)),
    )


def _task(material: _Material) -> dict[str, Any]:  # Any: plain JSON values
    """The task as it was carried out: with its classes, or with the scale that values were trained on."""
    asked = material.plan.task.model_dump(mode="json")
    if material.value is not None:
        return {**asked, "value": material.value.model_dump(mode="json", exclude={"kind", "part"})}
    return {**asked, "classes": list(material.classes), "positive": material.plan.positive}


def _method(plan: Plan, base: Base, moved: set[str], parameters: Mapping[str, int]) -> Any:
    if all(is_head_only(stage.layers) for stage in plan.stages):
        return "head"
    if moved == set(parameters):
        return "scratch" if base.origin == "random start" else "full"
    return "partial"


def architecture_changes(base: nn.Module, adapted: nn.Module, *, new: Sequence[str] = ()) -> tuple[TensorChange, ...]:
    """Tensors that one network has and the other has not, or that have another shape. A new head of the same shape is listed as reshaped too."""
    before = {name: tuple(t.shape) for name, t in base.state_dict().items()}
    after = {name: tuple(t.shape) for name, t in adapted.state_dict().items()}
    changes = []
    for name in dict.fromkeys([*before, *after]):
        if name not in after:
            changes.append(TensorChange(name=name, change="removed", before=before[name]))
        elif name not in before:
            changes.append(TensorChange(name=name, change="added", after=after[name]))
        elif before[name] != after[name] or any(name.startswith(head + ".") for head in new):
            changes.append(TensorChange(name=name, change="reshaped", before=before[name], after=after[name]))
    return tuple(changes)


def _write(
    folder: Path, material: _Material, form: ModelForm, record: AdaptationRecord, adapted: Model, controls: dict[str, Model]
) -> tuple[AdaptationRecord, Model, dict[str, Model]]:
    """The run directory: results, then the manifest, then the unfinished stages go."""
    plan = material.plan
    clear_results(folder)
    file = write_tensors(folder / ADAPTED, adapted.module.state_dict())
    write_tensors(folder / BASE, material.base.model.module.state_dict())
    names = [ADAPTED, BASE, RECORD, PLAN, ENCODING, SAMPLES]
    files: dict[str, WeightsFile] = {}
    for kind, model in controls.items():
        files[kind] = write_tensors(folder / control_file(kind), model.module.state_dict())
        names.append(control_file(kind))
    record = record.model_copy(
        update={
            "adapted_sha256": file.sha256,
            "adapted_file": ADAPTED,
            "base_file": None if material.base.file is None else _relative(Path(material.base.file.path), folder),
            "controls": tuple(c if c.kind not in files else c.model_copy(update={"sha256": files[c.kind].sha256}) for c in record.controls),
        }
    )
    encoding = Encoding(
        kind=material.kind,
        preprocessing=material.spec,
        adapted=form,
        base=material.base.form.model_copy(update={"classes": material.base.model.classes}),
        plan_folder=_relative(plan.folder, folder) if material.data_in_plan else None,
    )
    write_json(folder / ENCODING, encoding)
    write_text(folder / PLAN, plan.to_toml())
    write_samples(folder / SAMPLES, _rows(material))
    write_json(folder / RECORD, record)
    write_manifest(folder, names)
    clear_partial(folder)
    return record, replace(adapted, file=file), {kind: replace(model, file=files[kind]) for kind, model in controls.items()}


def _rows(material: _Material) -> list[Row]:
    rows = []
    for inputs in (material.train, material.validation):
        if inputs is None:
            continue
        split = inputs.split
        labels = inputs.label_texts(material.classes)
        for at, row in enumerate(split.rows.tolist()):
            cluster = None if split.domain.cluster is None else split.domain.cluster[row]
            rows.append(Row(split.domain.ids[row], split.name, labels[at], None if cluster is None else str(cluster), inputs.hashes[at]))
    return rows


def _finished(folder: Path, material: _Material, base_hash: str, kinds: Sequence[str]) -> Adaptation | None:
    """The adaptation that the folder already holds, where it is exactly this one."""
    if not (folder / MANIFEST).is_file():
        return None
    record = read_files(folder).record
    same = (
        record.plan_sha256 == material.plan.sha256
        and record.train == material.train.record(material.classes)
        and record.validation == (None if material.validation is None else material.validation.record(material.classes))
        and record.base_tensors_sha256 == base_hash
        and record.unlabelled == (None if material.unlabelled is None else unlabelled_record(material.unlabelled))
        and dict(record.teacher) == ({} if material.lesson is None else dict(material.lesson.facts))
        and record.classes == (material.classes or None)
        and {control.kind for control in record.controls} == set(kinds)
        and record.versions.get("torch") == _versions().get("torch")
    )
    if not same:
        return None
    run = load_run(folder, module=material.base.model.module)
    train, validation = _parts(material)
    return Adaptation(
        run.adapted, _base_model(material), run.controls, run.record, str(folder), run.same_as_adapted, train, validation, reused=True
    )


def _base_model(material: _Material) -> Model:
    """The base as it goes into the audit: with the original file, fed as the adapted model is where it does not say otherwise."""
    base = material.base
    return replace(base.model, file=base.file, preprocessing=base.model.preprocessing or material.spec)


def _parts(material: _Material) -> tuple[Domain, Domain | None]:
    """The rows that were trained and validated on, as domains."""
    train, held = material.train.split, None if material.validation is None else material.validation.split
    return part_of(train.domain, "train", train.rows), None if held is None else part_of(held.domain, "validation", held.rows)


def _relative(path: Path, folder: Path) -> str:
    return os.path.relpath(path.resolve(), folder.resolve())


def _versions() -> dict[str, str]:
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # an absent package has no version to record
    return versions


def _device_name(device: str, threads: int | None) -> str:
    if device == "cpu":
        count = threads or torch.get_num_threads()
        return f"cpu ({count} thread{'' if count == 1 else 's'})"
    return f"{device} ({torch.cuda.get_device_name(torch.device(device))})"


def _peak_memory(device: str) -> int:
    """Peak memory in bytes: of the accelerator where one was used, else of the process so far."""
    if not device.startswith("cpu"):
        return int(torch.cuda.max_memory_allocated(torch.device(device.partition(" ")[0])))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
