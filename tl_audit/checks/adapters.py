"""TLA106: are low-rank adapters used, merged exactly once, and is the base recoverable from the adapted model?"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tl_audit.checks.base import Check, Context, check, exact
from tl_audit.errors import ModelError, NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures.sampling import bottom_k
from tl_audit.models.adapters import Adapter, LoraModule
from tl_audit.models.heads import penultimate
from tl_audit.models.model import Model
from tl_audit.records.exhibits import Cell, Column, Table
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject

CODE = "TLA106"
ROWS = 32
ROUNDING = 4.0
"""A merged weight within so many units in the last place of base + adapter is the base's when the adapter is taken out again."""


@dataclass(frozen=True)
class Merge:
    """How often one adapter is in a weight: ``factor`` 0 unmerged, 1 merged once, 2 twice; ``residual`` of what else moved, over the adapter's norm."""

    module: str
    rank: int
    precision: str
    factor: float | None
    residual: float | None
    rank_use: float | None
    restored: torch.Tensor | None
    "the weight without its adapters, in its own type: the base's own where only rounding differs; None where the adapter does not fit"
    reason: str | None = None


@check(CODE, "Adapter integrity (LoRA)", section="provenance", severity="high", needs=("adapted", "base", "adapter"), runs_models=True,
       multiplicity="none", values="same")  # fmt: skip
def adapter_integrity(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Are the low-rank adapters in use, merged exactly once, and is the base recoverable?

    How it is measured: per module, the change of the weight from base to adapted is projected on the adapter's product: 0 means not merged, 1 merged
    once, 2 merged twice. What else moved is the residual. Modules stored whole are compared with the file. Then the adapters are taken out of
    a copy, and its outputs on one batch must be those of the base, batch-norm statistics included.

    Why it matters: an adapter that was merged twice, or never, answers plausibly and is another model than the one that was tested.

    How to reduce the risk: merge once, from the base in full precision, keep the adapters' file, and train with the backbone in evaluation mode.
    """
    adapter, base, adapted = subject.adapter, subject.base, subject.adapted
    if adapter is None or base is None:
        raise NotEvaluated("the adapters' file and the base model")
    before, after = base.module.state_dict(), adapted.module.state_dict()
    caveats = list(adapter.notes)
    merges, absent = [], []
    for name, module in adapter.modules.items():
        key = f"{name}.weight"
        if key not in before or key not in after or before[key].shape != after[key].shape:
            absent.append(name)
            continue
        one = merged(name, module, before[key], after[key])
        if one.restored is None:
            absent.append(name)
            caveats.append(f"{name}: {one.reason}.")
        else:
            merges.append(one)
    declared = 1.0 if adapter.merged else 0.0
    mismatch = _saved_mismatch(adapter, after)
    metrics: list[Metric] = []
    for one in merges:
        where = {"module": one.module, "precision": one.precision}
        n = {"values": int(before[f"{one.module}.weight"].numel())}
        metrics += [
            exact("merge_factor", one.factor, n=n, slice=where, null=declared, reason=one.reason),
            exact(
                "merge_factor_error", None if one.factor is None else abs(one.factor - declared), n=n, slice=where, better="lower", null=0.0,
                reason=one.reason,
            ),
            exact("merge_residual", one.residual, n=n, slice=where, better="lower", null=0.0, reason=one.reason),
            exact("adapter_rank_use", one.rank_use, n={"rank": one.rank}, slice=where, reason=one.reason),
        ]  # fmt: skip
    zero = [one.module for one in merges if one.factor is None]
    total = {"modules": len(adapter.modules)}
    metrics.append(exact("adapter_zero_modules", len(zero), n=total, better="lower", null=0.0))
    metrics.append(exact("adapter_modules_missing", len(absent), n=total, better="lower", null=0.0))
    metrics.append(exact("adapter_saved_mismatch", len(mismatch), n={"tensors": len(adapter.saved)}, better="lower", null=0.0))
    difference, reason, rows = _parity(subject, evidence, merges, adapter, context)
    if reason:
        caveats.append(reason)
    metrics.append(
        exact(
            "adapter_off_max_logit_diff", difference, n={"target": rows}, better="lower", null=0.0,
            reason=reason if difference is None else None,
        )
    )  # fmt: skip
    wrong = [m for m in merges if m.factor is not None and abs(m.factor - declared) > (0.01 if m.precision == "32-bit" else 0.1)]
    summary = _sentence(adapter, merges, wrong, absent, mismatch, zero, difference)
    return Measurement(
        summary=summary,
        metrics=tuple(metrics),
        exhibits=(_table(merges, declared, summary, absent),),
        caveats=tuple(caveats),
        params={"declared": "merged" if adapter.merged else "not merged", "adapters": len(adapter.modules), "rows": rows},
    )


def merged(name: str, module: LoraModule, before: torch.Tensor, after: torch.Tensor) -> Merge:
    """The merge factor <W1 - W0, sBA> / |sBA|² of one module, its residual, and the weight without the adapters. In float64.

    References
    ----------
    Hu et al. (2022). LoRA: low-rank adaptation of large language models. ICLR. arXiv:2106.09685
    """
    precision = "32-bit" if after.dtype in (torch.float32, torch.float64) else "16-bit"
    try:
        delta = module.delta(tuple(after.shape))
    except ModelError as error:
        return Merge(name, module.rank, precision, None, None, None, None, str(error))
    old, new = before.detach().cpu().double(), after.detach().cpu().double()
    size = float(delta.square().sum())
    use = module.rank_use()
    if size == 0:
        return Merge(name, module.rank, precision, None, None, use, before, "the adapter is zero: it was never trained, or lost")
    change = new - old
    factor = float((change * delta).sum()) / size
    times = round(factor)
    rest = change - times * delta
    residual = float(rest.square().sum()) ** 0.5 / size**0.5
    # what rounding alone leaves: then the base's own weight is what the copy gets back
    unit = torch.finfo(after.dtype if after.dtype.is_floating_point else torch.float32).eps
    within = rest.abs() <= ROUNDING * unit * torch.maximum(torch.maximum(old.abs(), new.abs()), delta.abs() * max(1, abs(times)))
    restored = before.to(after.dtype) if bool(within.all()) else (new - times * delta).to(after.dtype)
    return Merge(name, module.rank, precision, factor, residual, use, restored)


def _saved_mismatch(adapter: Adapter, after: dict[str, torch.Tensor]) -> list[str]:
    """Modules stored whole whose tensors are not those of the adapted model."""
    out = []
    for name, value in adapter.saved.items():
        mine = after.get(name)
        if mine is None or mine.shape != value.shape or not torch.equal(mine.detach().cpu(), value.to(mine.dtype)):
            out.append(name)
    return out


def _parity(
    subject: Subject, evidence: Evidence, merges: Sequence[Merge], adapter: Adapter, context: Context
) -> tuple[float | None, str | None, int]:
    """Largest difference of base and adapted model without adapters on one batch; why it is none, or what was compared; rows."""
    base, adapted = subject.base, subject.adapted
    assert base is not None  # needs
    rows = np.flatnonzero(evidence.usable(None, "target"))
    if rows.size == 0:
        return None, "no readable target sample to run", 0
    ids = evidence.ids("target")
    rows = rows[bottom_k([ids[r] for r in rows], min(ROWS, rows.size), context.seed)]
    raw = subject.target.samples.read(rows)
    if base.preprocessing != adapted.preprocessing:
        return None, "base and adapted model prepare their inputs differently, so their outputs cannot be compared", int(rows.size)
    inputs = subject.target.samples.modality.encode(raw, adapted.preprocessing)
    twin = copy.deepcopy(adapted.module)
    state = twin.state_dict()
    with torch.no_grad():
        for one in merges:
            if one.restored is not None:
                state[f"{one.module}.weight"].copy_(one.restored)
        original = base.module.state_dict()
        for name in adapter.saved:
            if name in state and name in original and state[name].shape == original[name].shape:
                state[name].copy_(original[name])
    with torch.no_grad():
        theirs, their_features = penultimate(base, inputs)
        ours, our_features = penultimate(_like(adapted, twin), inputs)
    heads = "the head's outputs are compared"
    if theirs.shape != ours.shape or _heads_differ(base, adapted, adapter):
        theirs, ours = their_features, our_features
        heads = "base and adapted model have heads of their own: what enters the head is compared"
    if theirs.shape != ours.shape:
        return None, "base and adapted model have features of different widths", int(rows.size)
    gap = float((theirs.double() - ours.double()).abs().max())
    return (gap if np.isfinite(gap) else None), f"With the adapters taken out, {heads}.", int(rows.size)


def _like(model: Model, module: nn.Module) -> Model:
    return Model(module, classes=model.classes, preprocessing=model.preprocessing, head=model.head, name=model.name, output=model.output)


def _heads_differ(base: Model, adapted: Model, adapter: Adapter) -> bool:
    """Whether parameters that are neither adapted nor stored whole have other shapes or names in the base: a head that was replaced."""
    before, after = dict(base.module.named_parameters()), dict(adapted.module.named_parameters())
    return any(name not in before or before[name].shape != p.shape for name, p in after.items())


def _sentence(
    adapter: Adapter, merges: Sequence[Merge], wrong: Sequence[Merge], absent: Sequence[str], mismatch: Sequence[str], zero: Sequence[str],
    difference: float | None,
) -> str:  # fmt: skip
    said = "merged once" if adapter.merged else "not merged"
    text = (
        f"{len(wrong)} of {len(merges)} adapters are not {said} as declared: {wrong[0].module} has the factor {wrong[0].factor:.3g}."
        if wrong
        else f"All {len(merges) - len(zero)} adapters with an effect are {said} as declared."
    )
    if absent:
        text += f" {len(absent)} adapted modules are not in both models with one shape, such as {absent[0]}."
    if zero:
        text += f" {len(zero)} adapters are zero."
    if mismatch:
        text += f" {len(mismatch)} tensors stored with the adapters differ from the model's, such as {mismatch[0]}."
    if difference is not None:
        text += (
            " Without the adapters the model is the base."
            if difference == 0
            else f" Without the adapters outputs differ from the base's by {difference:.2g}."
        )
    return text


def _table(merges: Sequence[Merge], declared: float, summary: str, absent: Sequence[str]) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (m.module, m.rank, m.precision, m.factor if m.factor is not None else m.reason, m.residual, m.rank_use)
        for m in sorted(merges, key=lambda m: -abs((m.factor if m.factor is not None else declared) - declared))
    ]
    rows += [(name, None, None, "not in both models", None, None) for name in absent]
    return Table(
        id="adapters",
        title="How often each adapter is in its weight",
        how_to_read="Factor: 0 not merged, 1 merged once, 2 merged twice. Residual: what else moved, over the adapter's own size. "
        "Rank use: share of the rank that carries the change.",
        alt=summary,
        caption=f"Declared factor {declared:g}; differences in float64.",
        columns=(
            Column(name="module"), Column(name="rank", format="count"), Column(name="precision"), Column(name="factor"),
            Column(name="residual", format="number"), Column(name="rank use", format="number"),
        ),
        rows=tuple(rows),
    )  # fmt: skip


ADAPTERS: tuple[Check, ...] = (adapter_integrity,)
