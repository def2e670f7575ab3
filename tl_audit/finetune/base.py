"""The model that a plan starts from, its copy with a new head, and the random start of a control. Nothing borrowed is ever changed."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from tl_audit.errors import ConfigError, ModelError, WeightsError
from tl_audit.finetune.inputs import key_seed
from tl_audit.finetune.plan import Plan, live_name
from tl_audit.finetune.run_dir import ModelForm
from tl_audit.models import (
    Model,
    WeightsFile,
    as_model,
    build,
    find_head,
    load_into,
    load_model,
    load_weights,
    nonfinite,
    swap_head,
)
from tl_audit.records.preprocessing import InputSpec, TableEncoding
from tl_audit.records.values import Output, Value


@dataclass(frozen=True)
class Base:
    """The base model as it was opened.

    Attributes
    ----------
    model : own copy of the network, float32, in ``eval()``; its own head, its own class names (None: it has none that mean anything)
    form : how to build the network again
    origin : "run", "file", "library", "live" or "random start"
    """

    model: Model
    form: ModelForm
    origin: str
    identity: str
    file: WeightsFile | None = None
    notes: tuple[str, ...] = ()
    record: dict[str, Any] = field(default_factory=dict)  # Any: fields of the adaptation record that an earlier run knows

    @property
    def preprocessing(self) -> InputSpec | None:
        return self.model.preprocessing


def open_base(plan: Plan, *, kind: str, classes: int, encoding: TableEncoding | None, offline: bool) -> Base:
    """The base of a plan, with its weights.

    Parameters
    ----------
    classes : number of target classes, the width of the head of a base without weights
    encoding : of a table that no run brings

    Raises
    ------
    ConfigError : a base that cannot be built, or weights that would be fetched while ``offline``
    WeightsError : a weights file that is refused or does not fit; weights that are not finite
    """
    if not isinstance(plan.base, str):
        opened = _live(plan.base)
    elif plan.base.startswith("live:"):
        raise ConfigError(f"base {plan.base!r} was a network given in Python: give it again as Plan(base=...)")
    elif plan.base.startswith("run:"):
        opened = _from_run(plan)
    elif plan.weights is None:
        opened = _random(plan, kind, classes, encoding)
    elif plan.weights == "default":
        if offline:
            raise ConfigError(
                f'{plan.base}: weights = "default" would be fetched from the network, which --offline forbids: give a weights file'
            )
        opened = _library(plan, kind)
    else:
        opened = _from_file(plan, kind, classes, encoding)
    if plan.provenance.base_classes is not None and opened.model.classes is None:
        opened = replace(opened, model=replace(opened.model, classes=plan.provenance.base_classes))
        opened = replace(opened, form=opened.form.model_copy(update={"classes": plan.provenance.base_classes}))
    bad = nonfinite(opened.model.module)
    if bad:
        names = ", ".join(f"{name} ({count})" for name, count in list(bad.items())[:5])
        raise WeightsError(
            f"the base {opened.identity} holds values that are not finite in {len(bad)} tensors: {names}; it cannot be adapted"
        )
    return opened


def build_form(
    form: ModelForm, *, kind: str, preprocessing: InputSpec | None, module: nn.Module | None = None, name: str = "model"
) -> Model:
    """A network of this form with random weights, to be loaded into. ``module``: the architecture of a base that was given in Python."""
    encoding = preprocessing if isinstance(preprocessing, TableEncoding) else None
    if form.arch.startswith("live:"):
        if module is None:
            raise ConfigError(
                f"the network {form.arch.removeprefix('live:')} was given in Python and cannot be built by name: give it as module="
            )
        model = Model(copy.deepcopy(module), name=name, arch=form.arch)
    else:
        with _seeded(0, "build"):
            model = build(
                form.arch,
                num_classes=form.num_classes,
                kind=kind,
                encoding=encoding,
                input_size=form.input_size,
                pretrained=False,
                **form.settings,
            )
    heads = form.heads or ((form.head,) if form.head else ())
    if form.new_head is not None:
        for head in heads:
            swap_head(model.module, form.arch, form.new_head, head=head)
    model.module.float().eval()
    return Model(
        model.module,
        classes=form.classes,
        preprocessing=preprocessing,
        head=heads[0] if heads else model.head,
        name=name,
        arch=form.arch,
        output=form.output,
        facts={"heads": list(heads)},
    )


def copy_with_head(
    base: Base,
    *,
    classes: tuple[str, ...],
    keep: bool,
    example: torch.Tensor,
    seed: int,
    spec: InputSpec | None,
    value: Value | None = None,
) -> tuple[Model, ModelForm]:
    """A copy of the base for the target's classes, or for one ``value``: with a new head drawn from the seed, or with its own where ``keep``.

    Raises
    ------
    ConfigError : ``keep`` and the class names differ, or one side gives a number and the other does not
    """
    module = copy.deepcopy(base.model.module)
    if keep and value is not None:
        if base.model.task != "regression":
            raise ConfigError(
                '[task] head = "keep" needs a base that gives one number: its model says output=Value(), or it is a run of a regression'
            )
        heads = base.form.heads or ((base.model.head or find_head(base.model, example)),)
        new_head = base.form.new_head
    elif keep:
        if base.model.classes is None or set(base.model.classes) != set(classes):
            have = "are not known" if base.model.classes is None else f"are {list(base.model.classes)[:10]}"
            raise ConfigError(f"[task] head = \"keep\" needs equal class names: the base's {have}, the task's are {list(classes)[:10]}")
        heads = base.form.heads or ((base.model.head or find_head(base.model, example)),)
        new_head = base.form.new_head
    else:
        arch = base.form.arch
        width = 1 if value is not None else len(classes)
        # where the architecture is known by name, its auxiliary heads are known too
        known = arch.startswith(("torchvision:", "tl_audit:")) or base.model.head is None
        try:
            with _seeded(seed, "head"):
                heads = swap_head(module, arch, width, head=None if known else base.model.head, example=example)
        except ModelError as error:
            raise ConfigError(f"{base.identity}: no new head can be put in ({error})") from error
        new_head = width
    output: Output = base.model.part if value is None else value.model_copy(update={"part": base.model.part})
    form = base.form.model_copy(
        update={"classes": classes or None, "head": heads[0], "heads": tuple(heads), "new_head": new_head, "output": output}
    )
    model = Model(
        module,
        classes=classes or None,
        preprocessing=spec,
        head=heads[0],
        name="adapted",
        arch=base.form.arch,
        output=output,
        facts={"heads": list(heads)},
    )
    return model, form


def random_start(base: Base, adapted: Model, form: ModelForm, *, kind: str, seed: int, spec: InputSpec | None) -> Model:
    """A network of the adapted model's form at a random start, drawn from the seed: where the ``scratch`` control begins.

    Raises
    ------
    ConfigError : the network has parameters that cannot be drawn anew
    """
    arch = form.arch
    if arch.startswith(("torchvision:", "tl_audit:")):
        with _seeded(seed, "scratch"):
            encoding = spec if isinstance(spec, TableEncoding) else None
            fresh = build(
                arch,
                num_classes=1 if adapted.task == "regression" else len(adapted.classes or ()),
                kind=kind,
                encoding=encoding,
                input_size=form.input_size,
                **form.settings,
            )
        if {n: t.shape for n, t in fresh.module.state_dict().items()} != {n: t.shape for n, t in adapted.module.state_dict().items()}:
            raise ConfigError(f"{arch}: its random start has other tensors than the adapted model")
        module = fresh.module
    else:
        module = copy.deepcopy(adapted.module)
        with _seeded(seed, "scratch"):
            _reset(module, base.identity)
    return replace(adapted, module=module.float().eval(), name="control:scratch", file=None)


def _reset(module: nn.Module, name: str) -> None:
    stuck = []
    for path, part in module.named_modules():
        reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
        if callable(reset):
            reset()
        elif any(True for _ in part.parameters(recurse=False)):
            stuck.append(path or type(part).__name__)
    if stuck:
        raise ConfigError(
            f'{name}: the control "scratch" needs a random start, but {", ".join(stuck[:5])} has no reset_parameters(): add it, or leave the control out'
        )


# Where a base comes from ------------------------------------------------------------------------------------------------------


def _live(given: Any) -> Base:
    model = as_model(given, name="base")
    module = copy.deepcopy(model.module).float().eval()
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    form = ModelForm(arch=live_name(given), num_classes=None, classes=model.classes, head=model.head, output=model.output)
    own = replace(model, module=module, name="base" if model.name == "model" else model.name)
    return Base(own, form, "live", model.arch or live_name(given), file=model.file)


def _random(plan: Plan, kind: str, classes: int, encoding: TableEncoding | None) -> Base:
    with _seeded(plan.seed, "base"):
        model = build(plan.base, num_classes=classes, kind=kind, encoding=encoding, input_size=plan.input_size, **plan.settings)
    form = _form(plan, model, classes)
    if plan.base.startswith(("torchvision:", "tl_audit:")):
        note = "the base has no pre-trained weights: it starts at random (plan: no weights)"
        origin = "random start"
    else:
        note = f"the base's weights are those that {plan.base} made; no file vouches for them"
        origin = "factory"
    return Base(_ready(replace(model, classes=model.classes if origin == "factory" else None)), form, origin, plan.base, notes=(note,))


def _library(plan: Plan, kind: str) -> Base:
    if not plan.base.startswith("torchvision:"):
        raise ConfigError(f'{plan.base}: has no weights of its own, so weights = "default" means nothing: give a weights file')
    model = build(plan.base, kind=kind, pretrained="default", input_size=plan.input_size, **plan.settings)
    form = _form(plan, model, None)
    return Base(
        _ready(model),
        form.model_copy(update={"classes": model.classes}),
        "library",
        plan.base,
        notes=(f"base weights: {model.facts.get('weights')}",),
    )


def _from_file(plan: Plan, kind: str, classes: int, encoding: TableEncoding | None) -> Base:
    assert plan.weights is not None
    path = plan.path(plan.weights)
    tensors, file = load_weights(path)
    if plan.base.startswith(("torchvision:", "tl_audit:")):
        heads = _known_heads(plan, kind, classes, encoding)
        held = [f"{head}.weight" in tensors or f"module.{head}.weight" in tensors for head in heads]
        if any(held):
            width = (
                int(next(tensors[n] for n in (f"{heads[0]}.weight", f"module.{heads[0]}.weight") if n in tensors).shape[0])
                if held[0]
                else None
            )
            model = load_model(
                path,
                arch=plan.base,
                num_classes=width,
                kind=kind,
                encoding=encoding,
                input_size=plan.input_size,
                name="base",
                **plan.settings,
            )
            notes = tuple(model.file.notes) if model.file is not None else ()
            form = _form(plan, model, width).model_copy(update={"classes": model.classes})
            return Base(_ready(model), form, "file", plan.base, file=model.file, notes=notes)
        with _seeded(plan.seed, "base"):
            model = build(plan.base, num_classes=classes, kind=kind, encoding=encoding, input_size=plan.input_size, **plan.settings)
        file = load_into(model.module, tensors, file=file, declared=heads)
        model = replace(model, classes=None, file=file, facts={**model.facts, "headless": True})
        note = f"{path.name} holds no classifier: the base gives features only, its head means nothing"
        return Base(_ready(model), _form(plan, model, classes), "file", plan.base, file=file, notes=(*file.notes, note))
    with _seeded(plan.seed, "base"):
        model = build(plan.base, kind=kind, encoding=encoding, input_size=plan.input_size, **plan.settings)
    file = load_into(model.module, tensors, file=file)
    model = replace(model, file=file)
    return Base(_ready(model), _form(plan, model, None), "file", plan.base, file=file, notes=tuple(file.notes))


def _from_run(plan: Plan) -> Base:
    from tl_audit.finetune.load import load_run

    path = plan.path(plan.base.removeprefix("run:"))
    run = load_run(path)
    form = run.encoding.adapted
    known = {"base_licence": run.record.base_licence}
    return Base(replace(run.adapted, name="base"), form, "run", plan.base, file=run.adapted.file, record=known)


def _known_heads(plan: Plan, kind: str, classes: int, encoding: TableEncoding | None) -> tuple[str, ...]:
    with torch.device("meta"):
        model = build(plan.base, num_classes=classes, kind=kind, encoding=encoding, input_size=plan.input_size, **plan.settings)
    return tuple(model.facts.get("heads", ())) or ((model.head,) if model.head else ())


def _form(plan: Plan, model: Model, num_classes: int | None) -> ModelForm:
    heads = tuple(model.facts.get("heads", ())) or ((model.head,) if model.head else ())
    return ModelForm(
        arch=plan.base,
        num_classes=num_classes,
        classes=model.classes,
        head=heads[0] if heads else None,
        heads=heads,
        output=model.output,
        input_size=plan.input_size,
        settings=plan.settings,
    )


def _ready(model: Model) -> Model:
    module = model.module.float().eval()
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    return replace(model, module=module, name="base")


@contextlib.contextmanager
def _seeded(seed: int, purpose: str) -> Iterator[None]:
    """Draws inside depend on (seed, purpose) alone; the caller's random state comes back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key_seed(seed, purpose))
        yield
