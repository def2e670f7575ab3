"""TLA105: how hard the target task pulls at each layer, trained or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.checks.base import Check, Context, check, metric
from tl_audit.checks.provenance import ladder_rows
from tl_audit.checks.selection import judged
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures import intervals
from tl_audit.measures.estimate import Estimate
from tl_audit.measures.sampling import priority
from tl_audit.models.borrow import borrowed
from tl_audit.models.heads import group_of
from tl_audit.models.model import Model
from tl_audit.models.outputs import read_outputs
from tl_audit.records.exhibits import Bar, Bars, Ladder, LadderRow
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject

CODE = "TLA105"
BATCHES = 10
BATCH = 32
FEWEST_BATCHES = 3

Floats = NDArray[np.float64]


@check(CODE, "Gradient activity", section="provenance", severity="info", needs=("adapted", "target.labels", "adapted@target"),
       runs_models=True, multiplicity="none")  # fmt: skip
def gradient_activity(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Which layers does the target task pull on, and were those the ones that were trained?

    How it is measured: ten batches of labelled target samples go through the network, batch norm in evaluation mode. Per layer, the norm of the
    gradient of the cross-entropy over the norm of the layer's weights, its mean over the batches with a t interval. Frozen layers are measured
    too: their pull says that they would move. The head-only control shows the pull before the backbone was adapted.

    Why it matters: a layer that the task pulls on and that was frozen is skill left unused; one without pull that was trained was moved by chance.

    How to reduce the risk: train the layers with the strongest pull under the head-only control first, and freeze those without any.
    """
    rules, seed = context.rules, context.seed
    layers = evidence.layers("adapted")
    target = judged(evidence, "adapted", "target")
    ids = evidence.ids("target")
    size = min(BATCH, target.n // FEWEST_BATCHES)
    if size < 1:
        raise NotEvaluated(f"at least {FEWEST_BATCHES} labelled target samples with finite outputs; there are {target.n}")
    order = np.argsort(priority(seed, [ids[r] for r in target.rows]), kind="stable")  # by hash: batches do not depend on the order of rows
    chosen = np.asarray(order[: size * BATCHES], dtype=np.int64)
    batches = [chosen[start : start + size] for start in range(0, chosen.size - size + 1, size)]
    models: dict[str, Model] = {"adapted": subject.adapted}
    caveats = ["Intervals are over batches and describe these samples; they are not a test."]
    head = subject.controls.get("head")
    if "head" in subject.same_as_adapted:
        caveats.append("The plan was head-only: the adapted model itself shows the pull on the base's layers.")
    elif head is not None and head.classes == subject.adapted.classes:
        models["control:head"] = head
    norms = _norms(subject, models, target.rows, target.truth, batches, layers, context)
    metrics: list[Metric] = []
    found: dict[str, dict[str, Estimate]] = {key: {} for key in models}
    for key, by_layer in norms.items():
        for layer, values in by_layer.items():
            estimate = (
                Estimate(None, len(batches), "the layer holds no weights that gradients reach")
                if values is None
                else intervals.mean(values)
            )
            if values is not None and values.size and not values.any():  # exactly 0 in all batches: nothing varies, and that is the answer
                estimate = Estimate(0.0, len(batches))
            found[key][layer] = estimate
            metrics.append(
                metric("relative_gradient_norm", estimate, rules=rules, slice={"layer": layer, "model": key}, n={"batches": len(batches)})
            )
    shown = "control:head" if "control:head" in models else "adapted"
    rows, without = _ladder_rows(subject, evidence, layers, found[shown])
    if without:
        caveats.append(without)
    summary = _sentence(found[shown], shown, rows)
    exhibits: list[Ladder | Bars] = [_bars(found, rows, len(batches), size, rules.confidence, summary)]
    if not without:
        exhibits.insert(0, _ladder(rows, shown, summary, len(batches), size))
    return Measurement(
        summary=summary,
        metrics=tuple(metrics),
        exhibits=tuple(exhibits),
        caveats=tuple(caveats),
        params={"batches": len(batches), "batch_size": size, "seed": seed, "ladder_model": shown},
    )


def _norms(
    subject: Subject,
    models: Mapping[str, Model],
    rows: NDArray[np.int64],
    truth: NDArray[np.int64],
    batches: Sequence[NDArray[np.int64]],
    layers: Sequence[str],
    context: Context,
) -> dict[str, dict[str, Floats | None]]:
    """Relative gradient norm of each layer in each batch; None for a layer without weights. Samples are read once for all models."""
    modality = subject.target.samples.modality
    out: dict[str, dict[str, list[float]]] = {key: {layer: [] for layer in layers} for key in models}
    empty: dict[str, set[str]] = {key: set(layers) for key in models}
    for done, batch in enumerate(batches):
        raw = subject.target.samples.read(rows[batch])
        labels = torch.as_tensor(truth[batch][raw.readable])
        for key, model in models.items():
            for layer, value in relative_gradients(model, modality.encode(raw, model.preprocessing), labels, layers).items():
                if value is not None:
                    out[key][layer].append(value)
                    empty[key].discard(layer)
        context.progress(CODE, done + 1, len(batches))
    return {
        key: {layer: None if layer in empty[key] else np.asarray(values, dtype=np.float64) for layer, values in by_layer.items()}
        for key, by_layer in out.items()
    }


def relative_gradients(model: Model, inputs: torch.Tensor, labels: torch.Tensor, layers: Sequence[str]) -> dict[str, float | None]:
    """Norm of the gradient of the mean cross-entropy over the norm of the weights, per layer; one forward and one backward pass.

    Parameters
    ----------
    inputs : (B, ...) model inputs
    labels : (B,) class numbers in the model's output order
    layers : layer groups, as ``evidence.layers`` gives them

    Returns
    -------
    layer -> ratio (at least 0); None where the layer holds no floating-point weight, or only zeros. Frozen weights count as if they could move.
    The network is given back bit-equal: modes, ``requires_grad``, ``.grad``, buffers.

    References
    ----------
    Lee et al. (2023). Surgical fine-tuning improves adaptation to distribution shifts. ICLR. arXiv:2210.11466 (relative gradient norm).
    """
    with borrowed(model) as net, torch.enable_grad():
        parameters = {name: p for name, p in net.named_parameters() if p.is_floating_point()}
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        example = next(iter(parameters.values()), None)
        given = inputs.detach().clone()
        if example is not None:
            given = given.to(example.device)
            given = given.to(example.dtype) if given.is_floating_point() else given
        logits = read_outputs(net(given), model.output).logits.float()
        loss = torch.nn.functional.cross_entropy(logits, labels.to(logits.device))
        gradients = torch.autograd.grad(loss, tuple(parameters.values()), allow_unused=True)
        pulls: dict[str, float] = dict.fromkeys(layers, 0.0)
        sizes: dict[str, float] = dict.fromkeys(layers, 0.0)
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            layer = group_of(name, layers)
            if layer not in sizes:
                continue
            sizes[layer] += float(parameter.detach().double().square().sum())
            if gradient is not None:
                pulls[layer] += float(gradient.double().square().sum())
    return {layer: None if sizes[layer] == 0 else (pulls[layer] / sizes[layer]) ** 0.5 for layer in layers}


def _ladder_rows(
    subject: Subject, evidence: Evidence, layers: Sequence[str], found: Mapping[str, Estimate]
) -> tuple[tuple[LadderRow, ...], str]:
    """Rows of the layer ladder with the gradient in them, and a caveat where there is no base to know what was trained."""
    if subject.base is None:
        return tuple(LadderRow(layer=layer, parameters=0, state="unknown", gradient_activity=found[layer].value) for layer in layers), (
            "Without the base model nothing says which layers were trained."
        )
    rows = ladder_rows(subject, evidence)
    return tuple(row.model_copy(update={"gradient_activity": found[row.layer].value if row.layer in found else None}) for row in rows), ""


def _sentence(found: Mapping[str, Estimate], key: str, rows: Sequence[LadderRow]) -> str:
    known = {layer: e.value for layer, e in found.items() if e.value is not None}
    if not known:
        return "No layer holds weights that the gradient reaches."
    strongest = max(known, key=lambda layer: (known[layer], layer))
    states = {row.layer: row.state for row in rows}
    who = "the adapted model" if key == "adapted" else "the head-only control"
    text = f"In {who} the target task pulls most on {strongest} (its gradient has {known[strongest]:.2g} times the norm of its weights)"
    state = states.get(strongest, "unknown")
    text += "." if state == "unknown" else f", which was {state}."
    frozen = {layer: value for layer, value in known.items() if states.get(layer) == "frozen"}
    moved = {layer: value for layer, value in known.items() if states.get(layer) == "trained"}
    if frozen and moved and max(frozen.values()) > max(moved.values()):
        layer = max(frozen, key=lambda one: (frozen[one], one))
        text += f" The frozen layer {layer} is pulled more than any layer that was trained."
    return text


def _ladder(rows: Sequence[LadderRow], key: str, summary: str, batches: int, size: int) -> Ladder:
    who = "the adapted model" if key == "adapted" else "the head-only control, before the backbone moved"
    return Ladder(
        id="gradient-ladder",
        title=summary,
        how_to_read=f"One row per layer, input on top: how strongly the target task pulls at its weights in {who}, and how far they moved.",
        alt=summary,
        caption=f"Gradient activity: mean over {batches} batches of {size} target samples. A pull on a frozen layer would have moved it.",
        rows=tuple(rows),
    )


def _bars(
    found: Mapping[str, Mapping[str, Estimate]], rows: Sequence[LadderRow], batches: int, size: int, confidence: float, summary: str
) -> Bars:
    states = {row.layer: row.state for row in rows}
    bars = []
    for key, by_layer in found.items():
        for layer, estimate in by_layer.items():
            frozen = states.get(layer) == "frozen"
            bars.append(
                Bar(
                    label=f"{layer}, {key}" if len(found) > 1 else layer,
                    value=estimate.value,
                    interval=estimate.interval(confidence) if estimate.value is not None else None,
                    n=batches,
                    state="frozen" if frozen else "unavailable" if estimate.value is None else "plain",
                    note="frozen: it would move" if frozen and estimate.value else estimate.reason,
                )
            )
    return Bars(
        id="gradient-activity",
        title="How strongly the target task pulls at each layer",
        how_to_read="Norm of the gradient over the norm of the weights. Compare layers with each other, not models of different loss.",
        alt=summary,
        caption=f"Mean over {batches} batches of {size} target samples with {confidence:.0%} t intervals over batches.",
        value_label="relative gradient norm",
        bars=tuple(bars),
    )


GRADIENT_ACTIVITY: tuple[Check, ...] = (gradient_activity,)
