"""TLA1xx: can the path from base to adapted model be retraced, and did the weights do what the record says?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch

from tl_audit.checks.base import Check, Context, check, exact
from tl_audit.errors import NotEvaluated, WeightsError
from tl_audit.evidence.base import Evidence
from tl_audit.models import Model, file_sha256, load_weights, nonfinite, tensor_hash, tensors_of, weight_differences
from tl_audit.models.difference import (
    BlockChange,
    FrozenComparison,
    FrozenTensor,
    WeightDifference,
    compare_frozen,
    frozen_buffers,
    matches,
)
from tl_audit.models.heads import group_of, layer_groups_by_name
from tl_audit.records.adaptation import AdaptationRecord, StageRecord
from tl_audit.records.exhibits import Bar, Bars, Cell, Column, Ladder, LadderRow, Table
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject

LISTED = 50
"""Most rows of a table that lists tensors; the summary carries the full count."""

State = Literal["frozen", "trained", "adapter", "new", "unknown"]


# TLA101 ----------------------------------------------------------------------------------------------------------------------


class LineageField(NamedTuple):
    """One field of the lineage record: its name, how it is known, and what the table shows of it (None: missing)."""

    name: str
    known: Literal["measured", "declared"]
    show: Callable[[AdaptationRecord], str | None]


def _short(digest: str | None) -> str | None:
    return digest[:16] if digest else None


def _split(record: AdaptationRecord, name: Literal["train", "validation"]) -> str | None:
    data = getattr(record, name)
    return f"{data.n} samples, {data.sha256[:16]}" if data is not None and data.sha256 else None


def _stages(record: AdaptationRecord) -> str | None:
    return f"{len(record.stages)} ({', '.join(stage.name for stage in record.stages)})" if record.stages else None


def _history(record: AdaptationRecord) -> str | None:
    epochs = [len(stage.history) for stage in record.stages]
    return f"{sum(epochs)} epochs" if epochs and all(epochs) else None


def _classes(record: AdaptationRecord) -> str | None:
    if record.task.get("kind") == "regression":
        value = record.task.get("value") or {}
        return "none: one number" + (f", {value['unit']}" if value.get("unit") else "")
    return ", ".join(record.classes) if record.classes else None


# The fields that CHECKS.md lists. Start and end are shown as "recorded": their values differ between two equal runs.
LINEAGE: tuple[LineageField, ...] = (
    LineageField("base_id", "declared", lambda r: r.base_id or None),
    LineageField("base_revision", "declared", lambda r: r.base_revision or None),
    LineageField("base_sha256", "measured", lambda r: _short(r.base_sha256)),
    LineageField("base_licence", "declared", lambda r: r.base_licence or None),
    LineageField("plan_sha256", "measured", lambda r: _short(r.plan_sha256)),
    LineageField("train", "measured", lambda r: _split(r, "train")),
    LineageField("validation", "measured", lambda r: _split(r, "validation")),
    LineageField("classes", "measured", _classes),
    LineageField("stages", "declared", _stages),
    LineageField("seeds", "declared", lambda r: ", ".join(f"{k}={v}" for k, v in sorted(r.seeds.items())) or None),
    LineageField("versions", "measured", lambda r: ", ".join(f"{k} {v}" for k, v in sorted(r.versions.items())) or None),
    LineageField("adapted_sha256", "measured", lambda r: _short(r.adapted_sha256)),
    LineageField("device", "measured", lambda r: r.device or None),
    LineageField("started", "measured", lambda r: "recorded" if r.started else None),
    LineageField("ended", "measured", lambda r: "recorded" if r.ended else None),
    LineageField("history", "measured", _history),
)
_HASHES = ("base_sha256", "adapted_sha256")


@check("TLA101", "Lineage record", section="provenance", severity="high", needs=("record",), values="same")
def lineage(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Can the path from the base model to the adapted model be retraced?

    How it is measured: the adaptation record is read field by field (base, its revision, hash and licence, plan, data fingerprints, classes,
    stages, seeds, versions, adapted hash, device, times, history). Each is measured, declared, or missing; none is guessed.

    Why it matters: who cannot say from what, on what data and how a model was made cannot repeat it, nor answer for it.

    How to reduce the risk: adapt with tl-audit, which writes the record; state revision and licence of the base under [provenance]; keep the run directory.
    """
    record = _record(subject)
    rows: list[tuple[Cell, ...]] = []
    missing: list[str] = []
    for field in LINEAGE:
        shown = field.show(record)
        known: str = field.known
        if field.name == "classes" and record.class_source == "declared":
            known = "declared"
        if shown is None:
            missing.append(field.name)
        rows.append((field.name, "missing" if shown is None else known, shown))
    hashes = [name for name in missing if name in _HASHES]
    n = {"fields": len(LINEAGE)}
    summary = (
        f"All {len(LINEAGE)} fields of the lineage record are present."
        if not missing
        else f"{len(missing)} of {len(LINEAGE)} fields of the lineage record are missing: {', '.join(missing)}."
    )
    table = Table(
        id="lineage",
        title="What is recorded of the way from base to adapted model" + (f"; {len(missing)} fields are missing" if missing else ""),
        how_to_read="Measured fields were taken by the software, declared ones were stated by a person or a plan. Missing ones are not guessed.",
        alt=summary,
        caption=f"{len(LINEAGE)} fields of the adaptation record. Hashes are shortened to 16 digits.",
        columns=(Column(name="field"), Column(name="how known"), Column(name="value")),
        rows=tuple(rows),
    )
    return Measurement(
        summary=summary,
        metrics=(
            exact("lineage_fields_present", 1 - len(missing) / len(LINEAGE), n=n, better="higher"),
            exact("lineage_fields_missing", len(missing), n=n, better="lower", null=0.0),
            exact("lineage_fields_missing", len(hashes), n={"fields": len(_HASHES)}, better="lower", null=0.0, slice={"kind": "sha256"}),
        ),
        exhibits=(table, *([_timeline(record.stages)] if record.stages else [])),
    )


def _timeline(stages: Sequence[StageRecord]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    numeric = any("val_mae" in epoch for stage in stages for epoch in stage.history)
    for stage in stages:
        scored = [epoch for epoch in stage.history if epoch.get("epoch") == stage.best_epoch] or list(stage.history[-1:])
        best = scored[0] if scored else {}
        rows.append(
            (
                stage.name,
                ", ".join(stage.layers),
                stage.trainable_parameters,
                stage.optimiser,
                stage.lr,
                stage.epochs,
                len(stage.history) or None,
                stage.best_epoch,
                _finite(best.get("val_loss")),
                _finite(best.get("val_mae" if numeric else "val_accuracy")),
            )
        )
    return Table(
        id="stages",
        title=f"The model was adapted in {len(stages)} stage{'s' if len(stages) != 1 else ''}",
        how_to_read="One row per fit, in order; each begins with the weights of the one before. Validation values are those of the kept epoch.",
        alt=f"{len(stages)} stages: " + "; ".join(f"{s.name}, {s.epochs} epochs at rate {s.lr:g}" for s in stages),
        caption="From the adaptation record.",
        columns=(
            Column(name="stage"),
            Column(name="layers"),
            Column(name="trainable parameters", format="count"),
            Column(name="optimiser"),
            Column(name="rate", format="number"),
            Column(name="epochs planned", format="count"),
            Column(name="epochs run", format="count"),
            Column(name="kept epoch", format="count"),
            Column(name="validation loss", format="number"),
            Column(name="validation error, own unit", format="number") if numeric else Column(name="validation accuracy", format="share"),
        ),
        rows=tuple(rows),
    )


# TLA102 ----------------------------------------------------------------------------------------------------------------------


class Identity(NamedTuple):
    match: bool | None
    tensors_differ: bool | None
    how: str


@check("TLA102", "Model identity", section="provenance", severity="critical", needs=("adapted", "record"), values="same")
def identity(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Are the base and the adapted model given here those of the adaptation record?

    How it is measured: the SHA-256 of each weight file is compared with the recorded one. If it differs, or there is no file, a hash of the
    tensors alone (names, types, shapes, values) decides, so that a file saved again with equal tensors passes with a note. The tensor
    mismatch is 0 or 1: the record holds one hash for all tensors of a model.

    Why it matters: one flipped byte in a weight file loads without any error, and a report about another model is worse than none.

    How to reduce the risk: audit the run directory rather than copies, keep its manifest, and run tl-audit verify before use.
    """
    record = _record(subject)
    found = {
        "base": _identity(subject.base, record.base_sha256, record.base_tensors_sha256),
        "adapted": _identity(subject.adapted, record.adapted_sha256, record.adapted_tensors_sha256),
    }
    metrics: list[Metric] = []
    for key, result in found.items():
        reason = None if result.match is not None else result.how
        metrics.append(exact(f"{key}_sha256_match", result.match, n={"models": 1}, better="higher", null=1.0, reason=reason))
        untold = None if result.tensors_differ is not None else reason or "the record holds no hash of its tensors"
        metrics.append(exact(f"{key}_tensor_mismatch", result.tensors_differ, n={"models": 1}, better="lower", null=0.0, reason=untold))
    wrong = [key for key, result in found.items() if result.match is False]
    unknown = [key for key, result in found.items() if result.match is None]
    words = [f"the {' and the '.join(wrong)} model {'is' if len(wrong) == 1 else 'are'} not the recorded one"] if wrong else []
    words += [f"the {' and the '.join(unknown)} model could not be compared"] if unknown else []
    summary = "; ".join(words).capitalize() + "." if words else "Base and adapted model are those of the adaptation record."
    table = Table(
        id="identity",
        title=summary.rstrip("."),
        how_to_read="A model is the recorded one if its file, or else the tensors in it, have the recorded hash.",
        alt=summary,
        caption="SHA-256 of weight files and of sorted tensors.",
        columns=(Column(name="model"), Column(name="is the recorded one"), Column(name="how it was compared")),
        rows=tuple((key, None if r.match is None else ("yes" if r.match else "no"), r.how) for key, r in found.items()),
    )
    notes = tuple(f"{key}: {r.how}" for key, r in found.items() if r.match is None or (r.match and "tensors" in r.how))
    return Measurement(summary=summary, metrics=tuple(metrics), exhibits=(table,), caveats=notes)


def _identity(model: Model | None, file_hash: str | None, tensors_hash: str | None) -> Identity:
    if model is None:
        return Identity(None, None, "the model is not given")
    if not file_hash and not tensors_hash:
        return Identity(None, None, "the record holds no hash of it")
    if model.file is not None and model.file.sha256 == file_hash:
        return Identity(True, False, "the file has the recorded SHA-256")
    recorded = {digest for digest in (tensors_hash, file_hash) if digest}  # a base without a file is recorded by its tensor hash
    hashes = {tensor_hash(model.module)}
    if model.file is not None and not hashes & recorded:
        stored = _stored(model)  # the network may hold the file's values in another precision
        if stored is not None:
            hashes.add(tensor_hash(stored))
    if hashes & recorded:
        where = "there is no file" if model.file is None else "the file differs (it was saved again)"
        return Identity(True, False, f"{where}, its tensors have the recorded hash")
    if not tensors_hash and model.file is None:
        return Identity(None, None, "the record holds only a file's hash, and no file is given")
    if not tensors_hash:
        return Identity(False, None, "the file does not have the recorded SHA-256, and the record holds no hash of its tensors")
    return Identity(False, True, "neither the file nor its tensors have the recorded hash")


# TLA103 ----------------------------------------------------------------------------------------------------------------------


@check("TLA103", "Frozen stayed frozen", section="provenance", severity="high", needs=("base", "adapted", "record"), values="same")
def frozen_stayed_frozen(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Did what the plan declared frozen stay bit-equal, batch-norm statistics included?

    How it is measured: every parameter that was declared frozen in all stages, and every buffer of a module whose own parameters are all frozen
    (or that has none and whose name was declared), is compared bit by bit between base and adapted model. Batch counters are counted apart.

    Why it matters: a "frozen" phase that still moves batch-norm statistics changes every prediction while the record says that nothing moved.

    How to reduce the risk: set requires_grad before the fit, and keep fully frozen modules in evaluation mode during training.
    """
    record = _record(subject)
    base, adapted = _given(subject, "base"), _given(subject, "adapted")
    if not record.frozen:
        raise NotEvaluated("The adaptation record declares nothing frozen")
    if any(not t.is_floating_point() and t.dtype in (torch.qint8, torch.quint8, torch.qint32) for t in tensors_of(adapted.module).values()):
        raise NotEvaluated("The adapted model is quantised: its weights cannot be compared bit by bit with the base")
    caveats: list[str] = []
    declared = [name for name in tensors_of(adapted.module) if matches(name, record.frozen)]
    parameters = {name for name, _ in adapted.module.named_parameters(remove_duplicate=False)}
    names = list(declared)
    if record.method == "lora":
        targets = tuple(str(t) for t in _lora_targets(record))
        merged = [name for name in names if name in parameters and any(name.rpartition(".")[0].endswith(t) for t in targets)]
        names = [name for name in names if name not in merged]
        if merged:
            caveats.append(f"{len(merged)} tensors into which adapters were merged are left out: they move by design")
    names += [name for name in frozen_buffers(adapted.module, record.frozen) if name not in names]
    names += [name for name in record.frozen if "*" not in name and _is_tensor(base, name) and name not in names and name not in declared]
    if not names:
        raise NotEvaluated("Nothing that was declared frozen exists in the adapted model")
    result = compare_frozen(base.module, adapted.module, names)
    if result.cast:
        caveats.append(f"{len(result.cast)} tensors of the base were cast to the adapted model's type before comparing")
    if result.absent:
        caveats.append(f"declared frozen but not in both models with one shape, so not compared: {_list(result.absent)}")
    if result.counters:
        caveats.append(
            f"{len(result.counters)} batch counters (num_batches_tracked) moved: a module ran in training mode, though its statistics may be equal"
        )
    if not result.tensors:
        raise NotEvaluated("Nothing that was declared frozen exists in both models with one shape")
    buffers = [t for t in result.changed if t.is_buffer]
    n = {"tensors": len(result.tensors)}
    gap = result.max_abs_change
    metrics = (
        exact(
            "frozen_max_abs_change", gap if math.isfinite(gap) else None, n=n, better="lower", null=0.0, unit="weight",
            reason=None if math.isfinite(gap) else "a value became or ceased to be non-finite",
        ),
        exact("frozen_tensors_changed", len(result.changed), n=n, better="lower", null=0.0),
        exact("frozen_buffers_changed", len(buffers), n={"buffers": sum(t.is_buffer for t in result.tensors)}, better="lower", null=0.0),
        exact("frozen_batch_counters_changed", len(result.counters), n=n, null=0.0),
    )  # fmt: skip
    summary = (
        f"All {len(result.tensors)} tensors that were declared frozen are bit-equal."
        if not result.changed
        else f"{len(result.changed)} of {len(result.tensors)} tensors that were declared frozen changed, {len(buffers)} of them buffers."
    )
    exhibits = _frozen_exhibits(result, summary) if result.changed else ()
    return Measurement(summary=summary, metrics=metrics, exhibits=exhibits, caveats=tuple(caveats))


def _frozen_exhibits(result: FrozenComparison, summary: str) -> tuple[Table | Bars, ...]:
    changed = sorted(result.changed, key=lambda t: (-t.max_abs_change, t.name))
    layers: dict[str, list[FrozenTensor]] = {}
    groups = layer_groups_by_name(t.name for t in result.tensors)
    for tensor in result.tensors:
        layers.setdefault(group_of(tensor.name, groups), []).append(tensor)
    table = Table(
        id="changed",
        title=f"{len(changed)} tensors changed although they were declared frozen",
        how_to_read="One row per tensor, largest change first. Each should be 0.",
        alt=summary,
        caption=f"{len(result.tensors)} tensors compared bit by bit"
        + (f"; the first {LISTED} are shown." if len(changed) > LISTED else "."),
        columns=(
            Column(name="tensor"),
            Column(name="kind"),
            Column(name="values changed", format="count"),
            Column(name="largest change", format="number"),
        ),
        rows=tuple(
            (t.name, "buffer" if t.is_buffer else "parameter", t.values_changed, _finite(t.max_abs_change)) for t in changed[:LISTED]
        ),
    )
    bars = tuple(
        Bar(
            label=layer or "(root)",
            value=_finite(max(t.max_abs_change for t in tensors)),
            null=0.0,
            n=sum(t.changed for t in tensors),
            state="changed" if any(t.changed for t in tensors) else "frozen",
            note=None if math.isfinite(max(t.max_abs_change for t in tensors)) else "not finite",
        )
        for layer, tensors in layers.items()
    )
    chart = Bars(
        id="changed-by-layer",
        title="Where frozen tensors changed",
        how_to_read="Largest change of any frozen value in each layer; all bars should be empty.",
        alt=summary,
        caption=f"{len(result.tensors)} tensors, from input to output.",
        value_label="largest absolute change",
        bars=bars,
    )
    return table, chart


def _lora_targets(record: AdaptationRecord) -> Sequence[object]:
    settings = record.plan.get("lora")
    targets = settings.get("targets") if isinstance(settings, Mapping) else None
    if isinstance(targets, str):
        return (targets,)
    return tuple(targets) if isinstance(targets, list | tuple) else ()


def _is_tensor(model: Model, name: str) -> bool:
    return name in tensors_of(model.module)


# TLA104 ----------------------------------------------------------------------------------------------------------------------


@check("TLA104", "Weight drift", section="provenance", severity="info", needs=("base", "adapted"), values="same")
def weight_drift(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Where, and how far, did adaptation move the weights?

    How it is measured: per layer, the norm of the difference of adapted and base weights over the norm of the base weights, their cosine, and the
    share of values that differ; pooled over the tensors of a layer, in float64. New, removed and reshaped tensors are listed, not compared.

    Why it matters: it shows which layers adaptation really used. Drift is not harm: a scale in front of a normalisation changes nothing.

    How to reduce the risk: where more moved than intended, freeze more layers, lower their rates, or pull them to the base (L2-SP).
    """
    drift = _drift(subject, evidence)
    result, blocks = drift.result, drift.blocks
    metrics: list[Metric] = []
    for layer, block in [("", result.whole), *blocks.items()]:
        piece = {"layer": layer} if layer else {}
        n = {"parameters": block.parameters}
        why = block.reason
        metrics.append(
            exact("relative_weight_change", block.relative_change, n=n, null=0.0, slice=piece, reason=_why(block.relative_change, why))
        )
        metrics.append(exact("weight_cosine", block.cosine, n=n, null=1.0, slice=piece, reason=_why(block.cosine, why)))
        metrics.append(
            exact("parameters_changed_share", block.changed_share, n=n, null=0.0, slice=piece, reason=_why(block.changed_share, why))
        )
    moved = [block for block in result.blocks if block.relative_change]
    most = max(moved, key=lambda b: (b.relative_change or 0.0, b.layer), default=None)
    if most is None:
        summary = "No compared weight moved" if not any(b.reason for b in result.blocks) else "No layer's change could be computed"
    else:
        summary = (
            f"{len(moved)} of {len(result.blocks)} layers moved, most {most.layer or '(root)'} by {most.relative_change:.1%} of its norm"
        )
    if result.tensors:
        summary += f"; {len(result.tensors)} tensors are new, removed or reshaped"
    exhibits: list[Ladder | Bars | Table] = [_drift_bars(drift.order, blocks, drift.states, summary)]
    if not (evidence.has("base", "target") and evidence.has("adapted", "target")):
        # with features of both models TLA403 draws the ladder, with their drift beside the weights'
        exhibits.insert(0, ladder(drift.rows, summary))
    if result.tensors:
        exhibits.append(
            Table(
                id="architecture",
                title=f"{len(result.tensors)} tensors exist in one model only or have another shape",
                how_to_read="These are not compared. A new head is expected here.",
                alt=f"{len(result.tensors)} tensors are new, removed or reshaped.",
                caption=f"The first {LISTED} are shown." if len(result.tensors) > LISTED else "All are shown.",
                columns=(Column(name="tensor"), Column(name="change"), Column(name="shape in base"), Column(name="shape in adapted")),
                rows=tuple((t.name, t.change, _shape(t.before), _shape(t.after)) for t in result.tensors[:LISTED]),
            )
        )
    return Measurement(summary=summary + ".", metrics=tuple(metrics), exhibits=tuple(exhibits), caveats=drift.caveats)


class Drift(NamedTuple):
    """How far each layer's weights moved, and in which state the record says they were."""

    result: WeightDifference
    order: tuple[str, ...]
    blocks: Mapping[str, BlockChange]
    sizes: Mapping[str, int]
    states: Mapping[str, State]
    caveats: tuple[str, ...]

    @property
    def rows(self) -> tuple[LadderRow, ...]:
        """The rows of the layer ladder, input first, without the drift of features."""
        rows = []
        for layer in self.order:
            block = self.blocks.get(layer)
            change = None if block is None else block.relative_change
            broken = self.states[layer] == "frozen" and block is not None and bool(block.changed_share)
            rows.append(
                LadderRow(
                    layer=layer or "(root)",
                    parameters=self.sizes.get(layer, 0),
                    state=self.states[layer],
                    weight_change=change,
                    frozen_but_changed=broken,
                )
            )
        return tuple(rows)


def _drift(subject: Subject, evidence: Evidence) -> Drift:
    """Weight differences by layer group; NotEvaluated where the models share no parameter."""
    base, adapted = _given(subject, "base"), _given(subject, "adapted")
    groups, caveats = _layers(subject, evidence)
    result = weight_differences(base.module, adapted.module, groups=groups)
    if not result.blocks and not result.tensors:
        raise NotEvaluated("Neither model has floating-point parameters")
    if not result.blocks:
        raise NotEvaluated("Base and adapted model share no parameter of one name and shape")
    record = subject.record
    changed_names = {t.name for t in result.tensors if t.change != "removed"}
    blocks = {block.layer: block for block in result.blocks}
    order = [layer for layer in groups if layer in blocks or any(group_of(n, groups) == layer for n in changed_names)]
    order += [layer for layer in blocks if layer not in order]
    sizes = _sizes(adapted, groups)
    states = {layer: _state(layer, adapted, groups, changed_names, record) for layer in order}
    return Drift(result, tuple(order), blocks, sizes, states, caveats)


def ladder_rows(subject: Subject, evidence: Evidence) -> tuple[LadderRow, ...]:
    """The rows of the layer ladder, input first, without the drift of features; NotEvaluated where the models share no parameter."""
    return _drift(subject, evidence).rows


def _layers(subject: Subject, evidence: Evidence) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Layer groups in execution order where evidence knows them, else by name."""
    try:
        return evidence.layers("adapted"), ()
    except NotEvaluated as error:
        names = [name for name, _ in subject.adapted.module.named_parameters()]
        return layer_groups_by_name(names), (f"layers are grouped by name, since the model was not run ({error})",)


def _sizes(model: Model, groups: Sequence[str]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name, parameter in model.module.named_parameters():
        layer = group_of(name, groups)
        sizes[layer] = sizes.get(layer, 0) + parameter.numel()
    return sizes


def _state(layer: str, model: Model, groups: Sequence[str], new: set[str], record: AdaptationRecord | None) -> State:
    """Frozen, trained, adapter or new by the record; unknown without one."""
    names = [name for name, _ in model.module.named_parameters() if group_of(name, groups) == layer]
    declared = {t.name for t in record.architecture_changes if t.change != "removed"} if record is not None else set()
    if names and all(name in new or name in declared for name in names):
        return "new"
    if record is None or not (record.frozen or record.stages):
        return "unknown"
    if record.frozen and names and all(matches(name, record.frozen) for name in names):
        return "frozen"
    return (
        "adapter"
        if record.method == "lora" and not any(name in stage.trainable for stage in record.stages for name in names)
        else "trained"
    )


def ladder(rows: Sequence[LadderRow], title: str) -> Ladder:
    """The layer ladder of the report."""
    drawn = "how far its weights moved, relative to their norm in the base"
    if any(row.cka_drift is not None for row in rows):
        drawn += ", and how far its features did (1 - CKA)"
    return Ladder(
        id="ladder",
        title=title,
        how_to_read=f"One row per layer, input on top. The lanes show {drawn}.",
        alt=title,
        caption=f"{len(rows)} layers; differences in float64.",
        rows=tuple(rows),
    )


def _drift_bars(order: Sequence[str], blocks: Mapping[str, BlockChange], states: Mapping[str, State], summary: str) -> Bars:
    bars = []
    for layer in order:
        block = blocks.get(layer)
        value = None if block is None else block.relative_change
        state: Literal["plain", "frozen", "changed", "new", "unavailable"] = "plain"
        if states[layer] == "new":
            state = "new"
        elif value is None:
            state = "unavailable"
        elif states[layer] == "frozen":
            state = "changed" if value else "frozen"
        elif value:
            state = "changed"
        note = ("new: there is nothing to compare with" if block is None else block.reason) if value is None else None
        bars.append(
            Bar(label=layer or "(root)", value=value, null=0.0, n=None if block is None else block.parameters, state=state, note=note)
        )
    return Bars(
        id="weight-change",
        title=summary,
        how_to_read="Norm of the change over the norm in the base: 0 means untouched, 0.1 means moved by a tenth of its length.",
        alt=summary,
        caption=f"{len(bars)} layers, from input to output.",
        value_label="relative weight change",
        bars=tuple(bars),
    )


# TLA109 ----------------------------------------------------------------------------------------------------------------------


@check(
    "TLA109",
    "Complete weight load",
    section="provenance",
    severity="critical",
    needs=("adapted.file|base.file",),
    values="same",
)
def complete_load(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Is every tensor of the models taken from their files?

    How it is measured: names and shapes of file and architecture are compared; what differs must have been declared (a new head). Then each
    tensor in memory is compared with the file: one that differs and is not declared counts as re-initialised.

    Why it matters: loading that tolerates differences hides a missing weight, and an adapter may leave the head random; nothing else shows it.

    How to reduce the risk: load strictly, save the head with the adapter, and declare in the plan what is made new.
    """
    counts = {"missing": 0, "unexpected": 0, "reshaped": 0, "reinitialised": 0}
    rows: list[tuple[Cell, ...]] = []
    caveats: list[str] = []
    total = 0
    declared_count = 0
    for key, model in subject.models.items():
        if model.file is None:
            continue
        file = model.file
        allowed = set(file.declared)
        if key == "base" and subject.record is not None:
            allowed |= {t.name for t in subject.record.architecture_changes}
        found = {
            "missing": [n for n in file.missing if n not in allowed],
            "unexpected": [n for n in file.unexpected if n not in allowed],
            "reshaped": [n for n in file.reshaped if n not in allowed],
            "reinitialised": [n for n in file.reinitialised if n not in allowed],
        }
        declared_count += len(allowed & {*file.missing, *file.unexpected, *file.reshaped})
        state = tensors_of(model.module)
        total += len(state)
        different, note = _unlike_file(model, state, allowed)
        if note:
            caveats.append(f"{key}: {note}")
        known = {*found["missing"], *found["reshaped"], *found["reinitialised"]}
        found["reinitialised"] += [name for name in different if name not in known]
        for kind, names in found.items():
            counts[kind] += len(names)
            rows += [(key, name, kind, _shape(tuple(state[name].shape)) if name in state else None) for name in names]
        caveats += [f"{key}: {text}" for text in file.notes]
    if declared_count:
        caveats.append(f"{declared_count} tensors differ from the files and are declared (a new head)")
    broken = sum(counts.values())
    summary = (
        f"All {total} tensors are as their files have them."
        if not broken
        else "Tensors do not come from the files: " + ", ".join(f"{v} {k}" for k, v in counts.items() if v) + f" (of {total})."
    )
    table = Table(
        id="tensors",
        title=summary.rstrip("."),
        how_to_read="One row per tensor that is not as the weight file has it and was not declared to differ.",
        alt=summary,
        caption=f"{total} tensors compared by name, shape and value"
        + (f"; the first {LISTED} differences are shown." if len(rows) > LISTED else "."),
        columns=(Column(name="model"), Column(name="tensor"), Column(name="difference"), Column(name="shape")),
        rows=tuple(rows[:LISTED]),
    )
    return Measurement(
        summary=summary,
        metrics=tuple(exact(f"{kind}_tensors", count, n={"tensors": total}, better="lower", null=0.0) for kind, count in counts.items()),
        exhibits=(table,) if rows else (),
        caveats=tuple(caveats),
    )


def _unlike_file(model: Model, state: Mapping[str, torch.Tensor], allowed: set[str]) -> tuple[list[str], str | None]:
    """Names of tensors in memory that are not what the file holds (in the network's precision), and what could not be compared."""
    stored = _stored(model)
    if stored is None:
        return [], "its file is gone or has changed since it was loaded, so values were not compared with it"
    if not set(stored) & set(state):
        stored = {name.removeprefix("module."): tensor for name, tensor in stored.items()}
    different = []
    for name, value in state.items():
        if name not in stored or name in allowed or stored[name].shape != value.shape:
            continue
        want, have = stored[name].to(value.dtype), value.cpu()
        if not torch.equal(torch.nan_to_num(want), torch.nan_to_num(have)) or (
            have.is_floating_point() and not torch.equal(torch.isnan(want), torch.isnan(have))
        ):
            different.append(name)
    return different, None


def _stored(model: Model) -> dict[str, torch.Tensor] | None:
    """The tensors in a model's file, None where the file is gone or no longer the one that was loaded."""
    if model.file is None:
        return None
    try:
        if file_sha256(model.file.path) != model.file.sha256:
            return None
        return load_weights(model.file.path, trust=(model.file.sha256,) if model.file.trusted_by_hash else ())[0]
    except WeightsError:
        return None  # the caller says so in the caveats


# TLA110 ----------------------------------------------------------------------------------------------------------------------

_FORMAT_WORDS = {
    "safetensors": "holds no code",
    "built-in": "made here, no file",
    "pickle": "can carry code; read with the restricted reader",
    "torchscript": "is executable code",
    "pt2": "its reader may fall back to running code",
    "aotinductor": "is native code",
}


@check("TLA110", "File format", section="provenance", severity="medium", needs=("adapted.file|base.file",), values="same")
def file_format(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Can the model files be opened without running code?

    How it is measured: by content, not suffix. safetensors holds no code; files of torch.save are pickles, read only by the restricted reader;
    TorchScript, .pt2 and whatever was opened because a person trusted its hash count as trusted by hash. Of the base, the original file counts.

    Why it matters: opening a model file of an unknown author can run that author's program with your rights.

    How to reduce the risk: ask for safetensors, or convert once on an isolated machine with safetensors.torch.save_file.
    """
    unsafe = trusted = files = 0
    rows: list[tuple[Cell, ...]] = []
    caveats: list[str] = []
    record = subject.record
    for key, model in subject.models.items():
        file = model.file
        form = None if file is None else file.format
        if key == "base" and record is not None and record.base_format:
            form = record.base_format
        if form is None:
            caveats.append(f"{key}: no file, so no format to judge")
            continue
        files += form != "built-in"
        by_hash = form in ("torchscript", "pt2", "aotinductor") or (file is not None and file.trusted_by_hash)
        unsafe += form not in ("safetensors", "built-in")
        trusted += by_hash
        refused = "" if file is None else ", ".join(file.refused_globals)
        rows.append((key, form, _FORMAT_WORDS.get(form, "is not known here"), "yes" if by_hash else "no", refused or None))
    summary = f"{unsafe} of {files} model files are in a format that can carry code" + (
        f", {trusted} opened by trust in a hash." if trusted else "."
    )
    table = Table(
        id="formats",
        title=summary.rstrip("."),
        how_to_read="One row per model. A format that holds no code can be opened without trusting its author.",
        alt=summary,
        caption=f"{files} files, judged by content.",
        columns=(
            Column(name="model"),
            Column(name="format"),
            Column(name="what it means"),
            Column(name="trusted by hash"),
            Column(name="names it asks for beyond the allowlist"),
        ),
        rows=tuple(rows),
    )
    n = {"files": files}
    return Measurement(
        summary=summary,
        metrics=(
            exact("unsafe_files", unsafe, n=n, better="lower", null=0.0),
            exact("trusted_by_hash", trusted, n=n, null=0.0),
        ),
        exhibits=(table,),
        caveats=tuple(caveats),
    )


# TLA112 ----------------------------------------------------------------------------------------------------------------------


@check("TLA112", "Finite weights", section="provenance", severity="critical", needs=("adapted",), values="same")
def finite_weights(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Are all parameters and buffers finite?

    How it is measured: every value of every parameter and buffer of each model given is tested; tensors with NaN or infinite values are named.

    Why it matters: with NaN in the weights all probabilities are NaN, and the arg max of that is still "class 0", without any error.

    How to reduce the risk: look for a diverged training (rate too high, half precision without scaling) and load the last finite checkpoint.
    """
    rows: list[tuple[Cell, ...]] = []
    total = values = 0
    for key, model in subject.models.items():
        tensors = tensors_of(model.module)
        total += len(tensors)
        for name, count in nonfinite(tensors).items():
            rows.append((key, name, count, tensors[name].numel()))
            values += count
    tensors_hit = len(rows)
    summary = (
        f"All {total} tensors of {len(subject.models)} model{'s' if len(subject.models) != 1 else ''} are finite."
        if not rows
        else f"{tensors_hit} of {total} tensors hold values that are not finite ({values} values): {_list([f'{r[0]}: {r[1]}' for r in rows])}."
    )
    table = Table(
        id="nonfinite",
        title=f"{tensors_hit} tensors hold values that are not finite",
        how_to_read="One row per tensor with NaN or infinite values. There should be none.",
        alt=summary,
        caption=f"{total} tensors scanned" + (f"; the first {LISTED} are shown." if len(rows) > LISTED else "."),
        columns=(
            Column(name="model"),
            Column(name="tensor"),
            Column(name="values not finite", format="count"),
            Column(name="values", format="count"),
        ),
        rows=tuple(rows[:LISTED]),
    )
    n = {"tensors": total}
    return Measurement(
        summary=summary,
        metrics=(
            exact("nonfinite_tensors", tensors_hit, n=n, better="lower", null=0.0),
            exact("nonfinite_values", values, n=n, better="lower", null=0.0),
        ),
        exhibits=(table,) if rows else (),
    )


# Shared ----------------------------------------------------------------------------------------------------------------------


def _record(subject: Subject) -> AdaptationRecord:
    if subject.record is None:
        raise NotEvaluated("needs the adaptation record (a run directory, or record=...)")
    return subject.record


def _given(subject: Subject, key: str) -> Model:
    model = subject.model(key)
    if model is None:
        raise NotEvaluated(f"the {key} model")
    return model


def _list(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _shape(shape: tuple[int, ...] | None) -> str | None:
    return None if shape is None else " x ".join(map(str, shape)) or "scalar"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _why(value: float | None, reason: str | None) -> str | None:
    return None if value is not None else (reason or "undefined")


PROVENANCE: tuple[Check, ...] = (lineage, identity, frozen_stayed_frozen, weight_drift, complete_load, file_format, finite_weights)
