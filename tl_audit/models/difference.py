"""What adaptation did to the weights: differences per block, and whether what was frozen stayed bit-equal. All in float64."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tl_audit.models.fingerprint import Tensors, tensors_of
from tl_audit.models.heads import group_of, layer_groups_by_name
from tl_audit.records.adaptation import TensorChange

BATCH_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class BlockChange:
    """How far the parameters of one block moved.

    Attributes
    ----------
    relative_change : ||W1 - W0||_F / ||W0||_F over all compared tensors of the block, >= 0, 0 where nothing moved
    cosine : of W1 and W0 as one vector, in [-1, 1], 1 where nothing moved
    changed_share : share of the values that differ, in [0, 1]
    reason : why a number is None
    """

    layer: str
    parameters: int
    relative_change: float | None
    cosine: float | None
    changed_share: float | None
    reason: str | None = None


@dataclass(frozen=True)
class WeightDifference:
    """Blocks in order, tensors that exist on one side only, and the whole as one block named ''."""

    blocks: tuple[BlockChange, ...]
    whole: BlockChange
    tensors: tuple[TensorChange, ...]
    "added, removed, reshaped: listed, not compared"


@dataclass(frozen=True)
class FrozenTensor:
    """One tensor that was declared frozen. ``max_abs_change`` in weight units, infinite where a non-finite value came or went."""

    name: str
    is_buffer: bool
    changed: bool
    values_changed: int
    max_abs_change: float


@dataclass(frozen=True)
class FrozenComparison:
    """Declared-frozen tensors against the base. ``counters`` are num_batches_tracked that moved; ``absent`` exist on one side only or were reshaped."""

    tensors: tuple[FrozenTensor, ...]
    counters: tuple[str, ...]
    absent: tuple[str, ...]
    cast: tuple[str, ...]
    "tensors of the base that were cast to the adapted model's dtype first"

    @property
    def changed(self) -> tuple[FrozenTensor, ...]:
        return tuple(t for t in self.tensors if t.changed)

    @property
    def max_abs_change(self) -> float:
        return max((t.max_abs_change for t in self.tensors), default=0.0)


def weight_differences(base: nn.Module | Tensors, adapted: nn.Module | Tensors, *, groups: Sequence[str] | None = None) -> WeightDifference:
    """Relative change, cosine and changed share per block, pooled over its tensors so that tiny biases do not explode.

    ``groups``: layer paths (``layer_groups``); None: taken from the names. Of modules only parameters are compared, of plain
    tensors every floating-point one except batch counters and running statistics. Added, removed and reshaped tensors are listed.

    Examples
    --------
    >>> change = weight_differences({"head.weight": torch.tensor([3.0, 4.0])}, {"head.weight": torch.tensor([3.0, 5.0])})
    >>> change.blocks[0].layer, change.blocks[0].relative_change, change.blocks[0].changed_share
    ('head', 0.2, 0.5)
    """
    before, after = _parameters(base), _parameters(adapted)
    changes = []
    for name in sorted(set(before) | set(after)):
        shapes = [None if name not in side else tuple(side[name].shape) for side in (before, after)]
        if shapes[0] != shapes[1]:
            kind = "added" if shapes[0] is None else "removed" if shapes[1] is None else "reshaped"
            changes.append(TensorChange(name=name, change=kind, before=shapes[0], after=shapes[1]))  # type: ignore[arg-type]
    shared = [name for name in after if name in before and before[name].shape == after[name].shape]
    groups = layer_groups_by_name(after) if groups is None else groups
    members: dict[str, list[str]] = {group: [] for group in groups}
    for name in shared:
        members.setdefault(group_of(name, groups), []).append(name)
    blocks = tuple(_block(layer, names, before, after) for layer, names in members.items() if names)
    return WeightDifference(blocks, _block("", shared, before, after), tuple(changes))


def compare_frozen(base: nn.Module | Tensors, adapted: nn.Module | Tensors, names: Iterable[str]) -> FrozenComparison:
    """Whether the named tensors are bit-equal in both. Where dtypes differ, the base is cast to the adapted dtype first."""
    before, after = tensors_of(base), tensors_of(adapted)
    buffers = set(_buffer_names(adapted)) | set(_buffer_names(base))
    tensors, counters, absent, cast = [], [], [], []
    for name in sorted(set(names)):
        if name not in before or name not in after or before[name].shape != after[name].shape:
            absent.append(name)
            continue
        old, new = before[name].cpu(), after[name].cpu()
        if old.dtype != new.dtype:
            cast.append(name)
            old = old.to(new.dtype)
        different = _different(old, new)
        count = int(different.sum())
        if name.rpartition(".")[2] == BATCH_COUNTER:
            counters += [name] if count else []
            continue
        gap = 0.0
        if count:
            steps = (new[different].double() - old[different].double()).abs()
            gap = float(steps.max()) if bool(torch.isfinite(steps).all()) else math.inf
        tensors.append(FrozenTensor(name, name in buffers, count > 0, count, gap))
    return FrozenComparison(tuple(tensors), tuple(counters), tuple(absent), tuple(cast))


def frozen_buffers(module: nn.Module, patterns: Iterable[str]) -> tuple[str, ...]:
    """Buffers that frozen parameters bring with them, by name.

    Those of every module that has parameters of its own, all frozen; of a module that has none, those whose name matches.
    """
    patterns = tuple(patterns)
    held = set(tensors_of(module))
    found = []
    for path, part in module.named_modules():
        own = [_join(path, name) for name, _ in part.named_parameters(recurse=False)]
        mine = [name for name in (_join(path, short) for short, _ in part.named_buffers(recurse=False)) if name in held]
        if own and all(matches(name, patterns) for name in own):
            found += mine
        else:
            found += [name for name in mine if not own and (matches(name, patterns) or matches(path, patterns))]
    return tuple(found)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a tensor or module path is one of the patterns, lies under one, or fits one as a glob."""
    return any(name == p or name.startswith(p + ".") or fnmatch.fnmatchcase(name, p) for p in patterns)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _buffer_names(source: nn.Module | Tensors) -> list[str]:
    if isinstance(source, nn.Module):
        return [name for name, _ in source.named_buffers()]
    return [name for name in source if name.rpartition(".")[2] in ("running_mean", "running_var", BATCH_COUNTER)]


def _parameters(source: nn.Module | Tensors) -> dict[str, torch.Tensor]:
    buffers = set(_buffer_names(source))
    return {name: t for name, t in tensors_of(source).items() if name not in buffers and t.is_floating_point()}


def _different(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """(shape) bool: which values differ in their bits. NaN equals the same NaN; -0.0 differs from 0.0."""
    old, new = old.contiguous(), new.contiguous()
    if old.numel() == 0:
        return torch.zeros(old.shape, dtype=torch.bool)
    size = old.element_size()
    raw = [t.reshape(-1).view(torch.uint8).reshape(-1, size) for t in (old, new)]
    return (raw[0] != raw[1]).any(dim=1).reshape(old.shape)


def _block(layer: str, names: Sequence[str], before: Tensors, after: Tensors) -> BlockChange:
    moved = old_sq = new_sq = dot = 0.0
    changed = total = 0
    for name in names:
        old, new = before[name].detach().cpu().double().reshape(-1), after[name].detach().cpu().double().reshape(-1)
        moved += float(((new - old) ** 2).sum())
        old_sq += float((old**2).sum())
        new_sq += float((new**2).sum())
        dot += float((old * new).sum())
        changed += int(((old != new) & ~(old.isnan() & new.isnan())).sum())
        total += old.numel()
    share = changed / total if total else None
    if not all(map(math.isfinite, (moved, old_sq, new_sq, dot))):
        return BlockChange(layer, total, None, None, share, "the block holds values that are not finite")
    if total == 0:
        return BlockChange(layer, 0, None, None, None, "no tensor of the block can be compared")
    if old_sq == 0.0:
        return BlockChange(layer, total, 0.0 if moved == 0 else None, None, share, "the base's weights in this block are all 0")
    cosine = None if new_sq == 0.0 else max(-1.0, min(1.0, dot / math.sqrt(old_sq * new_sq)))
    return BlockChange(
        layer, total, math.sqrt(moved / old_sq), cosine, share, None if cosine is not None else "the adapted weights are all 0"
    )
