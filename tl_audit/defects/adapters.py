"""Low-rank adapters that were merged too often or not at all: row 27."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from tl_audit.defects.base import Audits, Defect, Planted, fires, quiet
from tl_audit.defects.worlds import ALONE, Kind, World, world
from tl_audit.models import save_weights
from tl_audit.models.adapters import Adapter, LoraModule
from tl_audit.subject import Subject

N, RANK = 100, 3
MODULES: dict[Kind, tuple[str, ...]] = {"image": ("block2.conv", "block3.conv"), "tabular": ("hidden2.linear",)}


def _adapter(grown: World) -> Adapter:
    """The nearest adapters of low rank to what the adaptation changed in its upper layers, and the adapted model's head, stored whole."""
    before, after = grown.base.module.state_dict(), grown.adapted.module.state_dict()
    modules = {}
    for name in MODULES[grown.kind]:
        change = (after[f"{name}.weight"] - before[f"{name}.weight"]).double()
        u, s, vt = torch.linalg.svd(change.reshape(change.shape[0], -1), full_matrices=False)
        modules[name] = LoraModule(vt[:RANK].clone(), u[:, :RANK] * s[:RANK], scale=1.0)
    head = {name: tensor.clone() for name, tensor in after.items() if name.startswith("head.")}
    return Adapter("adapter", modules, head, merged=True)


def _subject(grown: World, times: int) -> Subject:
    """The base with its adapters merged so often and the new head; its file holds just that."""
    adapter = _adapter(grown)
    module = copy.deepcopy(grown.adapted.module)
    state, before = module.state_dict(), grown.base.module.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            if name not in adapter.saved:
                tensor.copy_(before[name])
        for name, one in adapter.modules.items():
            weight = state[f"{name}.weight"]
            for _ in range(times):
                weight.add_(one.delta(tuple(weight.shape)).to(weight.dtype))
    file = save_weights(module, Path(grown.run_dir) / f"merged-{times}.safetensors")
    target = grown.opened("target", grown.drawn("adapters", N))
    return grown.subject(adapted=replace(grown.adapted, module=module, file=file), adapter=adapter, target=target, **ALONE)


def _merged(kind: Kind, seed: int, times: int) -> Planted:
    grown = world(kind, seed)
    return Planted(
        _subject(grown, times), reference=Planted(_subject(grown, 1)), assertions=(_merged_once_passes, _FACTORS[times]),
    )  # fmt: skip


def _merged_once_passes(audits: Audits) -> Iterator[str]:
    if audits.before["TLA106"].status != "pass":
        yield f"TLA106 of the same adapters merged once: {audits.before['TLA106'].reason}"


def _factor_of_two(audits: Audits) -> Iterator[str]:
    yield from _factor(audits, 2.0)


def _factor_of_nought(audits: Audits) -> Iterator[str]:
    yield from _factor(audits, 0.0)


_FACTORS = {2: _factor_of_two, 0: _factor_of_nought}


def _factor(audits: Audits, factor: float) -> Iterator[str]:
    measured = audits.found["TLA106"].measurement
    found = [] if measured is None else [one for one in measured.metrics if one.name == "merge_factor"]
    if not found or any(one.value is None or abs(one.value - factor) > 1e-3 for one in found):
        yield f"TLA106 does not give the factor {factor:g}: {[one.value for one in found]}"


def adapters_merged_twice(kind: Kind, seed: int) -> Planted:
    """The weights hold the adapters twice, as after merging a model that was merged already. Without the defect they hold them once."""
    return _merged(kind, seed, 2)


def adapters_never_merged(kind: Kind, seed: int) -> Planted:
    """The adapters are said to be in the weights, which are still the base's; only the head came along."""
    return _merged(kind, seed, 0)


ADAPTERS: tuple[Defect, ...] = (
    Defect(
        27, "Adapters merged otherwise than declared", adapters_merged_twice, fires("106", statuses=("fail",), metric="merge_factor_error"),
        quiet("103", "109"), variant="twice", cheap=True,
    ),
    Defect(
        27, "Adapters merged otherwise than declared", adapters_never_merged, fires("106", statuses=("fail",), metric="merge_factor_error"),
        quiet("103", "109"), variant="never",
    ),
)  # fmt: skip
