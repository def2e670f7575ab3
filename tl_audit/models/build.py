"""Architectures by name: ``torchvision:resnet18``, ``tl_audit:mlp``, ``my_package.models:factory`` become a ``Model``."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tl_audit.errors import ConfigError, MissingExtra, ModelError, WeightsError
from tl_audit.models.builtin import mlp, small_cnn
from tl_audit.models.heads import find_head
from tl_audit.models.model import Model
from tl_audit.models.weights import MODEL_BYTES, load_into, load_weights
from tl_audit.records.preprocessing import InputSpec, Preprocessing, TableEncoding
from tl_audit.records.values import Output, Value

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Heads of torchvision's classifiers, main one first, by the architecture's class. Others are found by execution order.
_TORCHVISION_HEADS: dict[str, tuple[str, ...]] = {
    "AlexNet": ("classifier.6",),
    "ConvNeXt": ("classifier.2",),
    "DenseNet": ("classifier",),
    "EfficientNet": ("classifier.1",),
    "GoogLeNet": ("fc", "aux1.fc2", "aux2.fc2"),
    "Inception3": ("fc", "AuxLogits.fc"),
    "MNASNet": ("classifier.1",),
    "MaxVit": ("classifier.5",),
    "MobileNetV2": ("classifier.1",),
    "MobileNetV3": ("classifier.3",),
    "RegNet": ("fc",),
    "ResNet": ("fc",),
    "ShuffleNetV2": ("fc",),
    "SqueezeNet": ("classifier.1",),
    "SwinTransformer": ("head",),
    "VGG": ("classifier.6",),
    "VisionTransformer": ("heads.head",),
}
_EXTRAS = {"timm": "timm", "hf": "hf"}


def as_model(
    value: Model | nn.Module, *, name: str, assume_classes: Sequence[str] | None = None, assume_value: Value | None = None
) -> Model:
    """A ``Model`` from a ``Model`` or a bare network.

    A network without class names gets ``assume_classes``, and ``facts["classes_assumed"]`` says so: whether its outputs mean
    these names in this order is then the caller's word. Likewise with ``assume_value``, for a network whose output is one number.

    Raises
    ------
    ModelError : neither a ``Model`` nor an ``nn.Module``
    """
    if isinstance(value, nn.Module):
        value = Model(value, name=name)
    if not isinstance(value, Model):
        raise ModelError(f"{name} is {type(value).__name__}, expected tl_audit.Model or torch.nn.Module")
    if value.name == "model":
        value = dataclasses.replace(value, name=name)
    if value.classes is None and assume_classes and value.task == "classification":
        value = dataclasses.replace(value, classes=tuple(assume_classes), facts={**value.facts, "classes_assumed": True})
    if assume_value is not None and value.classes is None and value.task == "classification":
        output = assume_value.model_copy(update={"part": value.part})
        notes = (*value.facts.get("notes", ()), "it does not say what its output means: it was taken for the target's number itself")
        value = dataclasses.replace(value, output=output, facts={**value.facts, "value_assumed": True, "notes": notes})
    return value


def build(
    arch: str,
    *,
    num_classes: int | None = None,
    kind: str = "image",
    encoding: TableEncoding | None = None,
    pretrained: bool | str = False,
    input_size: int | None = None,
    **settings: Any,  # Any: constructor settings of the architecture; unknown ones are refused
) -> Model:
    """A network by name, with its head, input size and preprocessing.

    Parameters
    ----------
    arch : ``torchvision:NAME``, ``tl_audit:small_cnn``, ``tl_audit:mlp``, or ``package.module:factory`` (imported, and called
        with ``num_classes`` where it takes it)
    num_classes : width of the head; None keeps the architecture's own (torchvision: the 1000 ImageNet classes, named)
    kind : "image" or "tabular"
    encoding : of table rows, needed by ``tl_audit:mlp``
    pretrained : True or the name of torchvision weights fetches the library's own weights (network); False: a random start from
        torch's global generator, which the caller seeds
    input_size : side of the input in pixels; None: the architecture's own

    Raises
    ------
    ConfigError : unknown prefix, name or setting, or a kind that does not fit; MissingExtra : a package is not installed
    """
    prefix, _, rest = arch.partition(":")
    if prefix in _EXTRAS:
        _refuse_extra(prefix, arch)
    if not rest:
        raise ConfigError(
            f'architecture "{arch}" has no prefix: expected "torchvision:NAME", "tl_audit:small_cnn", "tl_audit:mlp" or "package.module:factory"'
        )
    if num_classes is not None and num_classes < 1:
        raise ConfigError(f"num_classes must be at least 1, not {num_classes}")
    if prefix == "torchvision":
        return _torchvision(rest, arch, num_classes, kind, pretrained, input_size, settings)
    if pretrained:
        raise ConfigError(f'"{arch}" has no weights of its own: give a weight file')
    if prefix == "tl_audit":
        return _builtin(rest, arch, num_classes, kind, encoding, input_size, settings)
    return _imported(prefix, rest, arch, num_classes, encoding, input_size, settings)


def load_model(
    path: str | Path,
    *,
    arch: str,
    classes: Sequence[str] | None = None,
    num_classes: int | None = None,
    kind: str = "image",
    encoding: TableEncoding | None = None,
    input_size: int | None = None,
    preprocessing: InputSpec | None = None,
    declared: Sequence[str] = (),
    trust: Sequence[str] = (),
    cap: int = MODEL_BYTES,
    name: str = "model",
    head: str | None = None,
    output: Output = None,
    **settings: Any,  # Any: see build
) -> Model:
    """An architecture with the weights of a file, loaded safely and strictly: ``build``, ``load_weights``, ``load_into``.

    ``num_classes`` None is taken from ``classes``, else from the head's shape in the file where the architecture's head is known.
    Where the head itself was declared missing it is random: the model then has no class names, and ``facts["head_reinitialised"]`` says so.

    Raises
    ------
    WeightsError : see ``load_weights`` and ``load_into``; ConfigError : see ``build``
    """
    tensors, file = load_weights(path, trust=trust, cap=cap)
    if classes is not None and num_classes is not None and len(classes) != num_classes:
        raise ConfigError(f"{name}: {len(classes)} class names and num_classes = {num_classes}")
    if num_classes is None and classes is not None:
        num_classes = len(classes)
    if num_classes is None and isinstance(output, Value):
        num_classes = 1
    if num_classes is None:
        num_classes = _classes_in(tensors, arch, encoding, settings)
    native = native_classes(arch) if classes is None else None
    model = build(arch, num_classes=num_classes, kind=kind, encoding=encoding, input_size=input_size, **settings)
    file = load_into(model.module, tensors, file=file, declared=declared)
    if native is not None and num_classes == len(native):
        classes = native
    facts = {**model.facts, "weights": "file", **({"weights_notes": list(file.notes)} if file.notes else {})}
    at = head if head is not None else model.head
    if at is not None and any(tensor.rpartition(".")[0] == at for tensor in file.reinitialised):
        classes, facts["head_reinitialised"] = None, True
    return dataclasses.replace(
        model,
        classes=None if classes is None else tuple(classes),
        file=file,
        name=name,
        facts=facts,
        preprocessing=preprocessing or model.preprocessing,
        head=at,
        output=output,
    )


def native_classes(arch: str) -> tuple[str, ...] | None:
    """Class names that an architecture's own weights predict, in output order; None where there are none. No download.

    ImageNet names two pairs of classes alike; the second of each carries its index ("crane (517)"), since classes are aligned by name.
    """
    prefix, _, name = arch.partition(":")
    if prefix != "torchvision":
        return None
    weights = _torchvision_weights(name, True)
    categories = None if weights is None else weights.meta.get("categories")
    if categories is None:
        return None
    seen: set[str] = set()
    names = []
    for i, category in enumerate(categories):
        names.append(f"{category} ({i})" if category in seen else str(category))
        seen.add(category)
    return tuple(names)


def swap_head(
    module: nn.Module, arch: str | None, num_classes: int, *, head: str | None = None, example: torch.Tensor | None = None
) -> tuple[str, ...]:
    """Put a new, randomly initialised head of ``num_classes`` outputs in place; returns the paths of the new modules, main head first.

    Auxiliary heads are replaced too. Bias and kernel stay as the old head has them; the values come from torch's global
    generator, which the caller seeds. ``head`` overrides; a network of unknown architecture needs it, or an ``example`` batch.

    Raises
    ------
    ModelError : the head is unknown, or neither linear nor a convolution
    """
    if head is not None:
        paths: tuple[str, ...] = (head,)
    else:
        paths = tuple(p for p in _TORCHVISION_HEADS.get(type(module).__name__, ()) if _has(module, p))
        paths = paths or (("head",) if arch in ("tl_audit:small_cnn", "tl_audit:mlp") else ())
    if not paths:
        if example is None:
            raise ModelError(f"the head of {arch or type(module).__name__} is not known: name it with head=..., or give an example batch")
        paths = (find_head(Model(module, name=arch or "model"), example),)
    for path in paths:
        old = _get(module, path)
        parent, _, name = path.rpartition(".")
        new = _new_head(old, num_classes, path, squeezenet=type(module).__name__ == "SqueezeNet")
        setattr(_get(module, parent), name, new)
    if isinstance(getattr(module, "num_classes", None), int):
        module.num_classes = num_classes  # type: ignore[assignment]  # torch types attributes as tensors or modules
    return paths


def _new_head(old: nn.Module, num_classes: int, path: str, *, squeezenet: bool) -> nn.Module:
    new: nn.Module
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
    elif isinstance(old, nn.Conv2d):
        size: Any = old.kernel_size
        new = nn.Conv2d(old.in_channels, num_classes, size, bias=old.bias is not None)
        if squeezenet:  # a ReLU follows its head: the default start would leave half of the classes silent
            nn.init.normal_(new.weight, mean=0.0, std=0.01)
            if new.bias is not None:
                nn.init.zeros_(new.bias)
    else:
        raise ModelError(f"the head {path!r} is {type(old).__name__}, expected a linear layer or a 2-d convolution: replace it yourself")
    device, dtype = next((p.device, p.dtype) for p in old.parameters())
    return new.to(device=device, dtype=dtype).train(old.training)


# torchvision -----------------------------------------------------------------------------------------------------------------


def _torchvision(
    name: str, arch: str, num_classes: int | None, kind: str, pretrained: bool | str, input_size: int | None, settings: dict[str, Any]
) -> Model:
    import torchvision.models as zoo

    if kind != "image":
        raise ConfigError(f'"{arch}" reads images, the data are {kind}')
    known = zoo.list_models(module=zoo)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise ConfigError(f'torchvision has no classifier "{name}"' + (f', did you mean "{near[0]}"?' if near else ""))
    weights = _torchvision_weights(name, pretrained)
    if name in ("inception_v3", "googlenet"):
        # transform_input: torchvision's own weights of these two expect it, whether they are fetched or come from a file
        settings = {"init_weights": False, "aux_logits": True, "transform_input": True, **settings}
        if pretrained:
            settings = {k: v for k, v in settings.items() if k != "init_weights"}
    try:
        module = zoo.get_model(name, weights=weights if pretrained else None, **_sized(name, input_size), **settings)
    except TypeError as error:
        raise ConfigError(f'"{arch}" does not take these settings: {", ".join(sorted(settings))} ({error})') from error
    classes = native_classes(arch)
    if num_classes is not None:
        heads = swap_head(module, arch, num_classes, example=_example(input_size or _size_of(weights)))
        classes = None
    else:
        heads = tuple(p for p in _TORCHVISION_HEADS.get(type(module).__name__, ()) if _has(module, p))
    facts = {"weights": f"torchvision {weights.name}" if pretrained and weights is not None else "random start", "heads": list(heads)}
    return Model(module, classes, _preprocessing(weights, input_size), heads[0] if heads else None, arch, arch, facts=facts)


def _torchvision_weights(name: str, pretrained: bool | str) -> Any:  # Any: torchvision's WeightsEnum; untyped
    """The weights entry that names an architecture's classes and preprocessing: the one asked for, else the first (V1)."""
    import torchvision.models as zoo

    try:
        entries = zoo.get_model_weights(name)
    except ValueError as error:
        raise ConfigError(f'torchvision has no classifier "{name}"') from error
    if isinstance(pretrained, str) and pretrained.lower() != "default":
        if pretrained not in entries.__members__:
            raise ConfigError(f'torchvision:{name} has no weights "{pretrained}"; it has: {", ".join(entries.__members__)}')
        return entries[pretrained]
    if pretrained and "DEFAULT" in entries.__members__ and isinstance(pretrained, str):
        return entries["DEFAULT"]
    return next(iter(entries), None)


def _preprocessing(weights: Any, input_size: int | None) -> Preprocessing:
    if weights is None:
        side = input_size or 224
        return Preprocessing(height=side, width=side, resize=round(side * 256 / 224), crop="center", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    preset = weights.transforms()
    crop, resize = preset.crop_size[0], preset.resize_size[0]
    side = input_size or crop
    return Preprocessing(
        height=side,
        width=side,
        resize=resize if side == crop else round(side * resize / crop),
        crop="center",
        interpolation=preset.interpolation.value,
        antialias=bool(preset.antialias),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def _size_of(weights: Any) -> int:
    return 224 if weights is None else int(weights.transforms().crop_size[0])


def _sized(name: str, input_size: int | None) -> dict[str, Any]:
    """Transformers fix their input size when they are made."""
    if input_size is None:
        return {}
    if name.startswith("vit_"):
        return {"image_size": input_size}
    return {"input_size": (input_size, input_size)} if name.startswith("maxvit") else {}


# Others ----------------------------------------------------------------------------------------------------------------------


def _builtin(
    name: str,
    arch: str,
    num_classes: int | None,
    kind: str,
    encoding: TableEncoding | None,
    input_size: int | None,
    settings: dict[str, Any],
) -> Model:
    makers: dict[str, tuple[Callable[..., nn.Module], str]] = {"small_cnn": (small_cnn, "image"), "mlp": (mlp, "tabular")}
    if name not in makers:
        raise ConfigError(f'there is no "{arch}"; there are "tl_audit:small_cnn" (images) and "tl_audit:mlp" (tables)')
    maker, wants = makers[name]
    if kind != wants:
        raise ConfigError(f'"{arch}" reads {wants} data, the data are {kind}')
    if num_classes is None:
        raise ConfigError(f'"{arch}" needs the number of classes')
    spec: InputSpec | None = None
    if name == "mlp":
        if encoding is None:
            raise ConfigError('"tl_audit:mlp" needs the encoding of its table (fitted on the base\'s training data)')
        settings, spec = {**settings, "encoding": encoding}, encoding
    elif input_size is not None:
        spec = Preprocessing(height=input_size, width=input_size, channels=settings.get("channels", 3))
    module = _call(maker, arch, {"num_classes": num_classes, **settings})
    return Model(module, None, spec, "head", arch, arch, facts={"weights": "random start", "heads": ["head"]})


def _imported(
    package: str,
    factory: str,
    arch: str,
    num_classes: int | None,
    encoding: TableEncoding | None,
    input_size: int | None,
    settings: dict[str, Any],
) -> Model:
    try:
        maker: Any = importlib.import_module(package)  # Any: whatever the user's module holds
    except ImportError as error:
        raise ConfigError(
            f'"{arch}": module {package!r} cannot be imported ({error}); is it installed, or its folder on PYTHONPATH?'
        ) from error
    for part in factory.split("."):
        if not hasattr(maker, part):
            raise ConfigError(f'"{arch}": {package} has no {factory!r}')
        maker = getattr(maker, part)
    if not callable(maker):
        raise ConfigError(f'"{arch}" is {type(maker).__name__}, expected a function or class that makes a torch.nn.Module')
    takes = _signature(maker, arch).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values())
    given: dict[str, Any] = {"num_classes": num_classes, "encoding": encoding, "input_size": input_size}
    own = {k: v for k, v in given.items() if v is not None and (k in takes or (open_ended and k == "num_classes"))}
    made = _call(maker, arch, {**own, **settings})
    if isinstance(made, Model):
        return dataclasses.replace(made, arch=made.arch or arch)
    if not isinstance(made, nn.Module):
        raise ConfigError(f'"{arch}" returned {type(made).__name__}, expected a torch.nn.Module')
    spec: InputSpec | None = encoding
    if spec is None and input_size is not None:
        spec = Preprocessing(height=input_size, width=input_size, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return Model(made, None, spec, None, arch, arch, facts={"weights": "as its factory made it"})


def _call(maker: Callable[..., Any], arch: str, arguments: dict[str, Any]) -> Any:
    signature = _signature(maker, arch)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        known = ", ".join(signature.parameters)
        raise ConfigError(f'"{arch}" does not take these settings ({error}); it takes: {known}') from error
    return maker(**arguments)


def _signature(maker: Callable[..., Any], arch: str) -> inspect.Signature:
    try:
        return inspect.signature(maker)
    except ValueError as error:  # some built-in types have none
        raise ConfigError(f'"{arch}" has no signature that can be read: write a function that returns the torch.nn.Module') from error


def _refuse_extra(prefix: str, arch: str) -> None:
    package = "transformers" if prefix == "hf" else prefix
    if importlib.util.find_spec(package) is None:
        raise MissingExtra(f'"{arch}" needs "{package}": pip install "tl-audit[{_EXTRAS[prefix]}]"')
    raise ConfigError(
        f'"{arch}": models of {package} are not built by name yet; use "package.module:factory" with a function that makes the network'
    )


def _classes_in(tensors: dict[str, torch.Tensor], arch: str, encoding: TableEncoding | None, settings: dict[str, Any]) -> int:
    """Number of outputs of the head in a file, for architectures whose head is known."""
    prefix = arch.partition(":")[0]
    paths: tuple[str, ...] = ("head",) if prefix == "tl_audit" else ()
    if prefix == "torchvision":
        with torch.device("meta"):
            paths = (build(arch).head or "",)
    for path in paths:
        weight = tensors.get(f"{path}.weight", tensors.get(f"module.{path}.weight"))
        if weight is not None and weight.ndim >= 1:
            return int(weight.shape[0])
    raise WeightsError(f"the number of classes of {arch} cannot be read from the file: give classes or num_classes")


def _example(side: int) -> torch.Tensor:
    return torch.zeros(2, 3, side, side)


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def _get(module: nn.Module, path: str) -> Any:  # Any: a submodule whose attributes vary
    return module.get_submodule(path)
