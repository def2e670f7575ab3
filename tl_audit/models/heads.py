"""Where a network's head is, what goes into it, and which layers it has: found by watching one forward pass, through borrowed hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

from tl_audit.errors import ModelError
from tl_audit.models.borrow import borrowed
from tl_audit.models.model import Model
from tl_audit.models.outputs import Reading, read_outputs
from tl_audit.records.values import Value

FEWEST_LAYERS, MOST_LAYERS = 4, 40
# A group that holds more of the parameters than this would hide where things happen (a transformer's "encoder.layers"): it is opened.
_DOMINANT = 0.9

_CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
_CHANNELS_LAST = (nn.Linear, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)

_found_heads: WeakKeyDictionary[nn.Module, tuple[str, int]] = WeakKeyDictionary()
"""network -> (path of the head that was found, id of that module): one search per network, valid until the head is replaced"""


class Split(NamedTuple):
    """A network cut before its head: the head's path and module, the number of features it reads, the number of outputs it writes."""

    path: str
    head: nn.Module
    inputs: int
    outputs: int


class Forward(NamedTuple):
    """One forward pass: logits (B, C) float32, the head's input (B, D), and the mean-pooled output (B, D_l) of each layer asked for."""

    logits: torch.Tensor
    penultimate: torch.Tensor
    layers: dict[str, torch.Tensor]


def pool(value: torch.Tensor, rows: int, module: nn.Module | None = None) -> torch.Tensor:
    """One vector per sample (rows, D), float32: the mean over space (B, C, H, W) or tokens (B, T, D); vectors stay as they are.

    ``module`` is what made (or reads) the value: it tells (B, T, D) from (B, C, L) and (B, H, W, C) from (B, C, H, W).
    Windows that were folded into the batch are averaged with their sample.

    Raises
    ------
    ModelError : the first dimension is no multiple of ``rows``
    """
    value = value if value.is_floating_point() else value.to(torch.float32)
    if value.ndim == 0 or rows == 0:
        raise ModelError(f"a value of shape {tuple(value.shape)} holds no rows")
    if value.shape[0] != rows:
        if value.ndim == 3 and value.shape[1] == rows:
            value = value.transpose(0, 1)
        elif value.ndim >= 2 and value.shape[0] % rows == 0:
            windows = pool(value, value.shape[0], module)
            return windows.reshape(rows, -1, windows.shape[1]).mean(dim=1)
        else:
            raise ModelError(f"a value of shape {tuple(value.shape)} does not belong to {rows} samples")
    elif value.ndim == 3 and value.shape[1] == rows and _is_time_first(module):
        value = value.transpose(0, 1)  # as many tokens as samples: only the module's own setting tells them apart
    if value.ndim == 1:
        return value.unsqueeze(1).float()
    if value.ndim == 2:
        return value.float()
    axes = tuple(range(1, value.ndim - 1)) if _is_last(value, module) else tuple(range(2, value.ndim))
    return value.float().mean(dim=axes)


def find_head(model: Model, example: torch.Tensor) -> str:
    """Path of the head: the last parameter-owning module in execution order whose output width is the number of outputs.

    A 1x1 convolution counts; normalisation after the head does not. ``Model.head`` overrides. One forward pass.

    Raises
    ------
    ModelError : no such module, or several side by side; lists the candidates and asks for ``head="path"``
    """
    if model.head is not None:
        _submodule(model, model.head)
        return model.head
    trace = _trace(model, example)
    return _head_in(model, trace, read_outputs(trace.raw, model.output))


def _head_in(model: Model, trace: _Trace, reading: Reading) -> str:
    width = reading.width
    if model.classes is not None and len(model.classes) != reading.logits.shape[1]:
        raise ModelError(f"{model.name} has {reading.logits.shape[1]} outputs and {len(model.classes)} class names: they must be as many")
    fitting = [call for call in trace.leaves if call.outputs == width]
    candidates = [call for call in fitting if not isinstance(call.module, _NORMS)] or fitting
    if not candidates:
        tail = ", ".join(f"{call.path} ({call.outputs})" for call in trace.leaves[-5:]) or "none"
        raise ModelError(
            f"{model.name}: no module ends in the {width} outputs (last modules and their widths: {tail}): name it with head=..."
        )
    last = candidates[-1]
    siblings = [c for c in candidates[:-1] if c.inputs == last.inputs and isinstance(c.module, type(last.module))]
    if siblings and last.inputs != width and not _is_output(last, _raw(model, reading), width):
        names = ", ".join(c.path for c in [*siblings, last])
        raise ModelError(f"{model.name}: several modules could be the head ({names}): name one with head=...")
    return last.path


def head_of(model: Model, example: torch.Tensor) -> str:
    """Path of the head: ``Model.head``, or found once by ``find_head`` and remembered while that module stays in place."""
    known = _known_head(model)
    return known if known is not None else _remembered(model, find_head(model, example))


@contextmanager
def head_search(model: Model, net: nn.Module, rows: int) -> Iterator[Callable[[Reading], str]]:
    """Watches one forward pass of a borrowed network; the function given then tells the head's path, as ``head_of`` does, from what was read.

    For those who run the network anyway: it costs no pass of its own.

    Parameters
    ----------
    rows : samples in that pass
    """
    known = _known_head(model)
    if known is not None:
        yield lambda reading: known
        return
    with _watched(model, net, rows) as finish:
        yield lambda reading: _remembered(model, _head_in(model, finish(None), reading))


def _known_head(model: Model) -> str | None:
    if model.head is not None:
        _submodule(model, model.head)
        return model.head
    known = _found_heads.get(model.module)
    if known is not None and known[0] in dict(model.module.named_modules()) and id(model.module.get_submodule(known[0])) == known[1]:
        return known[0]
    return None


def _remembered(model: Model, path: str) -> str:
    _found_heads[model.module] = (path, id(model.module.get_submodule(path)))
    return path


def split(model: Model, example: torch.Tensor) -> Split:
    """The head of a network with the number of features that it reads and of outputs that it writes. One or two forward passes."""
    path = head_of(model, example)
    found = [call for call in _trace(model, example, only=path).leaves if call.path == path]
    if not found:
        raise ModelError(f"{model.name}: the head {path!r} did not run: name the one that makes the outputs with head=...")
    return Split(path, found[-1].module, found[-1].inputs, found[-1].outputs)


def penultimate(model: Model, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits (B, C), features (B, D)): the features are the head's input, averaged over space or tokens. No gradients."""
    forward = forward_with_features(model, batch, ())
    return forward.logits, forward.penultimate


def forward_with_features(model: Model, batch: torch.Tensor, layers: Sequence[str]) -> Forward:
    """Logits, penultimate and per-layer features of one batch in one forward pass, in evaluation mode, without gradients.

    Unpacks as ``(logits, penultimate, {layer: (B, D)})``. Values are pooled inside the hook, before a later in-place ReLU can
    touch them. A layer that runs several times gives its last output. The batch is moved to the network's device and dtype.

    Raises
    ------
    ModelError : an unknown layer, one that did not run, or a head that did not run
    """
    path = head_of(model, batch)
    head = _submodule(model, path)
    modules = {name: _submodule(model, name) for name in layers}
    rows = len(batch)
    seen: dict[str, torch.Tensor] = {}
    features: list[torch.Tensor] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, result: Any) -> None:  # Any: whatever a module returns
            tensor = _first_tensor(result)
            if tensor is None:
                raise ModelError(f"{model.name}: layer {name!r} returns {type(result).__name__}, which holds no tensor")
            seen[name] = _own(pool(tensor.detach(), rows, module), tensor)

        return hook

    def watch_head(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensor = _first_tensor((*args, *kwargs.values()))
        if tensor is not None:
            features[:] = [_own(pool(tensor.detach(), rows, module), tensor)]

    with borrowed(model) as net, torch.no_grad(), ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_hook(watch(name)).remove)
        hooks.callback(head.register_forward_pre_hook(watch_head, with_kwargs=True).remove)
        reading = read_outputs(net(_fit(batch, net)), model.output)
    if not features:
        raise ModelError(f"{model.name}: the head {path!r} did not run: name the one that makes the outputs with head=...")
    if absent := [name for name in layers if name not in seen]:
        raise ModelError(f"{model.name}: layers that did not run: {', '.join(absent)}")
    return Forward(reading.logits.float(), features[0], {name: seen[name] for name in layers})


def layer_groups(model: Model, example: torch.Tensor) -> tuple[str, ...]:
    """Layers of a network in execution order: the shortest module paths that give 4 to 40 groups.

    Groups that hold no parameters or do not run are left out. A group with more than 90 % of the parameters is opened where
    that stays within 40 ("encoder.layers" of a transformer becomes its blocks). A network with fewer than 4 layers gives
    fewer groups; one with more than 40 on its first level gives 40 of them, evenly spaced. One forward pass.
    """
    trace = _trace(model, example)
    leaves = {call.path: call.size for call in trace.leaves}
    if not leaves:
        raise ModelError(f"{model.name} has no layers with parameters that run")
    return _group(leaves, trace.ran)


def layer_groups_by_name(names: Iterable[str]) -> tuple[str, ...]:
    """As ``layer_groups``, from tensor names alone, in their order: for weights that cannot be run."""
    sizes: dict[str, int] = {}
    for name in names:
        path = name.rpartition(".")[0]
        sizes[path] = sizes.get(path, 0) + 1
    inner = {path: size for path, size in sizes.items() if not any(_inside(other, path) for other in sizes if other != path)}
    return _group(inner, None) if inner else ()


def group_of(name: str, groups: Sequence[str]) -> str:
    """The group a tensor belongs to: the longest group path that it lies under, else its own module (or the tensor itself at the root)."""
    fitting = [group for group in groups if _inside(name, group)]
    return max(fitting, key=len) if fitting else (name.rpartition(".")[0] or name)


# How it is found --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    path: str
    module: nn.Module
    inputs: int
    outputs: int
    size: int
    pooled: torch.Tensor


@dataclass(frozen=True)
class _Trace:
    leaves: tuple[_Call, ...]
    "modules that own parameters and hold no other that ran, in order of their first call"
    ran: frozenset[str]
    raw: Any


def _trace(model: Model, example: torch.Tensor, *, only: str | None = None) -> _Trace:
    """Run one batch and note which modules with parameters ran, in which order, with what widths."""
    with borrowed(model) as net, torch.no_grad(), _watched(model, net, len(example), only) as finish:
        trace = finish(net(_fit(example, net)))
    return trace


@contextmanager
def _watched(model: Model, net: nn.Module, rows: int, only: str | None = None) -> Iterator[Callable[[Any], _Trace]]:
    """Hooks on a borrowed network; after its pass the function given makes the trace from the raw output."""
    if rows == 0:
        raise ModelError(f"{model.name}: an empty batch shows nothing, at least one sample is needed")
    order: dict[str, None] = {}
    calls: dict[str, _Call] = {}

    def watch(path: str) -> tuple[Callable[..., None], Callable[..., None]]:
        def before(module: nn.Module, args: Any) -> None:
            order.setdefault(path)

        def after(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            came, went = _first_tensor((*args, *kwargs.values())), _first_tensor(result)
            if went is None or went.ndim == 0 or (went.shape[0] % rows and not (went.ndim == 3 and went.shape[1] == rows)):
                return
            pooled = _own(pool(went.detach(), rows, module), went)
            inputs = (
                0
                if came is None or came.ndim == 0
                else int(came.shape[-1] if _is_last(came, module) else came.shape[min(1, came.ndim - 1)])
            )
            calls[path] = _Call(path, module, inputs, pooled.shape[1], sum(p.numel() for p in module.parameters()), pooled)

        return before, after

    def finish(raw: Any) -> _Trace:
        ran = [path for path in order if path in calls]
        inner = [calls[path] for path in ran if not any(other != path and _inside(other, path) for other in ran)]
        return _Trace(tuple(inner), frozenset(ran), raw)

    with ExitStack() as hooks:
        for path, module in net.named_modules():
            if (only is None or path == only) and next(module.parameters(), None) is not None:
                before, after = watch(path)
                hooks.callback(module.register_forward_pre_hook(before).remove)
                hooks.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        yield finish


def _raw(model: Model, reading: Reading) -> torch.Tensor:
    """The outputs as the network gave them, before a value was put into its own unit."""
    return model.output.standardised(reading.logits) if isinstance(model.output, Value) else reading.logits


def _is_output(call: _Call, logits: torch.Tensor, width: int) -> bool:
    """Whether a module's pooled output is the network's output."""
    last = logits[:, -width:]
    return call.pooled.shape == last.shape and bool(torch.allclose(call.pooled, last.float(), rtol=1e-4, atol=1e-5, equal_nan=True))


def _group(leaves: Mapping[str, int], ran: frozenset[str] | None) -> tuple[str, ...]:
    """Shortest prefixes of the leaves' paths (in their order) that give 4 to 40 groups; ``ran``: paths that may be hooked, None: any."""
    groups = list(dict.fromkeys(_prefix(path, 1) for path in leaves))

    def opened(group: str) -> list[str]:
        depth = group.count(".") + 2
        return list(dict.fromkeys(_prefix(path, depth) for path in leaves if _inside(path, group)))

    def replace(now: list[str], names: Iterable[str]) -> list[str]:
        wanted = set(names)
        return [part for group in now for part in (opened(group) if group in wanted else [group])]

    def can_open(group: str) -> bool:
        return any(path != group and _inside(path, group) for path in leaves)

    def size(group: str) -> int:
        return sum(n for path, n in leaves.items() if _inside(path, group))

    while ran is not None and (silent := [g for g in groups if g not in ran and can_open(g)]):
        groups = replace(groups, silent)  # a ModuleList is never called itself
    while len(groups) < FEWEST_LAYERS and any(map(can_open, groups)):
        wider = replace(groups, [g for g in groups if can_open(g)])
        if len(wider) > MOST_LAYERS:
            fits = [w for g in sorted(groups, key=size, reverse=True) if can_open(g) and len(w := replace(groups, [g])) <= MOST_LAYERS]
            if not fits:
                break
            wider = fits[0]
        groups = wider
    total = sum(leaves.values())
    while big := [g for g in groups if can_open(g) and size(g) > _DOMINANT * total and len(replace(groups, [g])) <= MOST_LAYERS]:
        groups = replace(groups, big[:1])
    while ran is not None and (silent := [g for g in groups if g not in ran and can_open(g)]):
        groups = replace(groups, silent)
    if len(groups) > MOST_LAYERS:
        groups = [groups[round(i * (len(groups) - 1) / (MOST_LAYERS - 1))] for i in range(MOST_LAYERS)]
    return tuple(groups)


def _prefix(path: str, depth: int) -> str:
    return ".".join(path.split(".")[:depth])


def _inside(path: str, group: str) -> bool:
    return path == group or group == "" or path.startswith(group + ".")


def _submodule(model: Model, path: str) -> nn.Module:
    try:
        return model.module.get_submodule(path)
    except AttributeError as error:
        top = ", ".join(name for name, _ in model.module.named_children()) or "none"
        raise ModelError(f"{model.name} has no module {path!r}; its first level: {top}") from error


def _first_tensor(value: Any) -> torch.Tensor | None:
    """The first floating-point tensor in a module's result or arguments."""
    if isinstance(value, torch.Tensor):
        return value if value.is_floating_point() else None
    if isinstance(getattr(value, "logits", None), torch.Tensor):
        return value.logits  # type: ignore[no-any-return]
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for part in value:
            if (tensor := _first_tensor(part)) is not None:
                return tensor
    return None


def _is_last(value: torch.Tensor, module: nn.Module | None) -> bool:
    """Whether the features of a value lie in its last dimension: tokens (B, T, D), images (B, H, W, C)."""
    if value.ndim <= 2 or isinstance(module, _CHANNELS_FIRST):
        return False
    if isinstance(module, _CHANNELS_LAST):
        return True
    if value.ndim == 3:
        owner = _last_owner(module)
        return not isinstance(owner, _CHANNELS_FIRST)
    first, second, last = value.shape[1], value.shape[2], value.shape[-1]
    if first == second != last:
        return True
    if second == last != first:
        return False
    return isinstance(_last_owner(module), (*_CHANNELS_LAST, nn.LayerNorm))


def _is_time_first(module: nn.Module | None) -> bool:
    """Whether a module is made of attention or recurrent layers that expect (T, B, D)."""
    parts = [] if module is None else [m for m in module.modules() if isinstance(m, nn.MultiheadAttention | nn.RNNBase)]
    return any(not part.batch_first for part in parts)


def _last_owner(module: nn.Module | None) -> nn.Module | None:
    owners = [] if module is None else [m for m in module.modules() if next(m.parameters(recurse=False), None) is not None]
    return owners[-1] if owners else None


def _own(pooled: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """A vector that shares no memory with the activation, which the network may yet overwrite in place."""
    return pooled.clone() if pooled.untyped_storage().data_ptr() == source.untyped_storage().data_ptr() else pooled


def _fit(batch: torch.Tensor, net: nn.Module) -> torch.Tensor:
    """The batch on the network's device and, where both are floating-point, in its dtype."""
    first = next((t for t in net.parameters() if t.is_floating_point()), None)
    if first is None:
        return batch
    return batch.to(device=first.device, dtype=first.dtype if batch.is_floating_point() else batch.dtype)
