"""The gallery of maps: samples chosen by rule, never by hand, each map with its stamp and a random map as yardstick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl_audit.attribution import Attribution, Inputs
from tl_audit.attribution.quality import (
    random_maps,
)
from tl_audit.checks.base import Context
from tl_audit.checks.explanations.shared import (
    FloatArray,
    Maps,
    again_with,
    comparable,
    map_picture,
    method_slug,
    rows_of,
    samples_mode,
    short_id,
)
from tl_audit.checks.wording import amount_of, counted
from tl_audit.errors import ModelError, NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures.sampling import priority
from tl_audit.models.model import Model
from tl_audit.records.exhibits import (
    Bar,
    Bars,
    Exhibit,
    GridRow,
    ImageGrid,
    Picture,
)
from tl_audit.subject import Subject

SHOWN = 3
GROUPS_SHOWN = 2
BOTH_MODELS_UP_TO = 2
"""Methods with which a row also holds the reference model's maps; with more of them TLA708 shows both models beside each other."""
WORST_SHOWN = 2


@dataclass(frozen=True)
class _Shown:
    """Samples of the gallery with their maps, computed on few samples only where they are not in the evidence."""

    inputs: Inputs
    targets: NDArray[np.int64]
    rows: NDArray[np.int64]
    maps: dict[str, Attribution]
    rule: str


def gallery(
    subject: Subject, evidence: Evidence, context: Context, maps: Maps, gains: Mapping[str, FloatArray]
) -> tuple[list[Exhibit], list[str]]:
    """Maps of a few samples chosen by rule: the first by hash priority, the first of each group, and the worst errors, which count in no number."""
    lead, number = maps.first, subject.adapted.task == "regression"
    same = {m: a for m, a in maps.found.items() if a.inputs.ids == lead.inputs.ids}
    first = np.argsort(priority(context.seed, lead.inputs.ids), kind="stable")[:SHOWN]
    rows = rows_of(evidence, lead.inputs.ids)
    sections = [_picked(lead, same, first, rows, "first by hash")]
    for name, place in _of_groups(evidence, context, lead, rows, set(first.tolist())):
        sections.append(_picked(lead, same, np.array([place]), rows, f"first of {name}"))
    notes: list[str] = []
    if evidence.samples != "off":
        worst = (_largest_errors if number else _worst_errors)(evidence, {lead.inputs.ids[k] for k in first})
        if worst.size:
            sections.append(_explained(subject, evidence, context, same, worst, "worst error"))
    if not lead.inputs.players.spatial:
        return _column_gallery(evidence, context, same, sections), notes
    reference_key = next((k for k in ("control:head", "base") if comparable(subject, evidence, k)), None)
    grid_rows: list[GridRow] = []
    for place, section in enumerate(sections):
        reference: dict[str, Attribution] = {}
        if reference_key is not None and evidence.samples != "off" and len(same) <= BOTH_MODELS_UP_TO:
            reference = _explain_again(subject.models[reference_key], section, same, context, notes, reference_key, subject.adapted)
        for i in range(len(section.rows)):
            grid_rows.append(_grid_row(subject, evidence, context, section, i, reference, reference_key, gains, lead))
            if place == i == 0 and evidence.samples != "off":
                grid_rows.append(_random_row(evidence, context, section))  # beside the maps of the same sample, where the eye compares
    what = (
        "adapted"
        if reference_key is None or len(same) > BOTH_MODELS_UP_TO
        else f"adapted and {reference_key.replace('control:', 'control ')}"
    )
    return [
        ImageGrid(
            id="gallery",
            title=f"What the maps of {counted(len(same), 'method')} mark, {counted(len(grid_rows), 'row')}",
            how_to_read="Each map marks what moved this output; it is not the reason for the decision."
            + (
                " The second row shows the first sample with random maps: what a map looks like that knows nothing."
                if evidence.samples != "off"
                else ""
            ),
            alt=f"Grid of target samples with attribution maps of the {what} model.",
            caption=f"{SHOWN} samples by hash priority and the first of each group not among them, then up to {WORST_SHOWN} {'largest' if number else 'most confident'} errors, chosen for that and counted in no number; predicted {'number' if number else 'class'} explained; seed {context.seed}.",
            rows=tuple(grid_rows),
            samples=samples_mode(evidence),
        )
    ], notes


def _of_groups(evidence: Evidence, context: Context, lead: Attribution, rows: NDArray[np.int64], shown: set[int]) -> list[tuple[str, int]]:
    """The first explained sample by hash of each group that is not shown yet, for at most ``GROUPS_SHOWN`` groups: (group, place)."""
    order = np.argsort(priority(context.seed, lead.inputs.ids), kind="stable")
    out: list[tuple[str, int]] = []
    for column, values in sorted(evidence.groups("target").items()):
        mine = values[rows]
        for value in sorted(set(mine)):
            if any(mine[k] == value for k in shown):
                continue
            place = next((int(k) for k in order if mine[k] == value), None)
            if place is not None and len(out) < GROUPS_SHOWN:
                out.append((f"{column} = {value}", place))
                shown = shown | {place}
    return out


def _picked(lead: Attribution, found: dict[str, Attribution], places: NDArray[np.int64], rows: NDArray[np.int64], rule: str) -> _Shown:
    return _Shown(lead.inputs.select(places), lead.targets[places], rows[places], {m: a.select(places) for m, a in found.items()}, rule)


def _worst_errors(evidence: Evidence, exclude: set[str]) -> NDArray[np.int64]:
    """Rows of the most confident errors on the target, () where it is unlabelled or the classes do not meet."""
    try:
        truth = evidence.truth("adapted", "target")
    except NotEvaluated:
        return np.zeros(0, dtype=np.int64)
    p = evidence.probabilities("adapted", "target")
    predicted = evidence.predictions("adapted", "target")
    ids = evidence.ids("target")
    wrong = np.flatnonzero(evidence.usable("adapted", "target") & (truth >= 0) & (predicted != truth))
    wrong = np.array([r for r in wrong if ids[r] not in exclude], dtype=np.int64)
    if wrong.size == 0:
        return wrong
    order = np.lexsort((wrong, -p[wrong, predicted[wrong]]))
    return wrong[order[:WORST_SHOWN]]


def _largest_errors(evidence: Evidence, exclude: set[str]) -> NDArray[np.int64]:
    """Rows of the predicted numbers that are furthest off, () where the target is unlabelled."""
    try:
        values = evidence.values("target")
    except NotEvaluated:
        return np.zeros(0, dtype=np.int64)
    off = np.abs(evidence.predictions("adapted", "target") - values)
    ids = evidence.ids("target")
    rows = np.array([r for r in np.flatnonzero(np.isfinite(off)) if ids[r] not in exclude], dtype=np.int64)
    return rows[np.lexsort((rows, -off[rows]))[:WORST_SHOWN]]


def _explained(
    subject: Subject, evidence: Evidence, context: Context, found: dict[str, Attribution], rows: NDArray[np.int64], rule: str
) -> _Shown:
    """Samples that are not in the evidence's attributions, read and explained here."""
    lead = next(iter(found.values()))
    modality, spec = lead.inputs.modality, lead.inputs.spec
    tensor = modality.encode(subject.target.samples.read(rows), spec)
    ids = evidence.ids("target")
    inputs = Inputs(
        tensor=tensor, ids=tuple(ids[r] for r in rows), modality=modality, spec=spec,
        players=modality.players(tensor, spec, seed=context.seed), background=lead.inputs.background,
    )  # fmt: skip
    one = subject.adapted.task == "regression"  # a model that gives one number has one output to explain
    targets = np.zeros(len(rows), dtype=np.int64) if one else np.asarray(evidence.predictions("adapted", "target")[rows], dtype=np.int64)
    return _Shown(inputs, targets, rows, {m: again_with(subject.adapted, a, inputs, targets, seed=a.seed) for m, a in found.items()}, rule)


def _explain_again(
    model: Model, section: _Shown, found: dict[str, Attribution], context: Context, notes: list[str], key: str, adapted: Model
) -> dict[str, Attribution]:
    """Maps of another model for the same samples and the same classes, by name."""
    names, others = adapted.classes or (), model.classes or ()  # _comparable has seen that both are there, or that both give one number
    targets = (
        section.targets if adapted.task == "regression" else np.array([others.index(names[t]) for t in section.targets], dtype=np.int64)
    )
    out: dict[str, Attribution] = {}
    for method, a in found.items():
        try:
            out[method] = again_with(model, a, section.inputs, targets, seed=a.seed, half=True)
        except ModelError as error:
            notes.append(f"{method} maps of {key} are not shown: {error}")
    return out


def _facts(
    subject: Subject, evidence: Evidence, section: _Shown, i: int, gains: Mapping[str, FloatArray], lead: Attribution
) -> tuple[tuple[str, str], ...]:
    row = int(section.rows[i])
    facts: list[tuple[str, str]] = [("chosen", section.rule)]
    names = subject.classes
    if evidence.samples != "off" and names:
        try:
            truth = int(evidence.truth("adapted", "target")[row])
            facts.append(("true", names[truth] if truth >= 0 else "unlabelled"))
        except NotEvaluated:
            facts.append(("true", "unlabelled"))
        facts.append(("predicted", names[int(section.targets[i])]))
        for key in ("base", "control:head"):
            if comparable(subject, evidence, key):
                other = subject.models[key].classes or ()
                facts.append((f"predicted by {key.replace('control:', 'control ')}", other[int(evidence.predictions(key, "target")[row])]))
    if evidence.samples != "off" and subject.adapted.task == "regression":
        true, unit = None if subject.target.values is None else float(subject.target.values[row]), subject.unit
        facts.append(("true", "without a value" if true is None or np.isnan(true) else amount_of(true, unit)))
        facts.append(("predicted", amount_of(float(evidence.predictions("adapted", "target")[row]), unit)))
    sample = section.inputs.ids[i]
    if sample in lead.inputs.ids:
        at = lead.inputs.ids.index(sample)
        for method, gain in gains.items():
            if len(gain) == len(lead) and np.isfinite(gain[at]):
                facts.append((f"gain of {method}", f"{gain[at]:+.2f}".replace("-", "−")))
    return tuple(facts)


def _grid_row(
    subject: Subject, evidence: Evidence, context: Context, section: _Shown, i: int, reference: dict[str, Attribution],
    reference_key: str | None, gains: Mapping[str, FloatArray], lead: Attribution,
) -> GridRow:  # fmt: skip
    facts = _facts(subject, evidence, section, i, gains, lead)
    pictures: list[Picture] = []
    if evidence.samples != "off":
        inputs, redacted = section.inputs, evidence.samples == "redacted"
        sample = inputs.modality.picture(inputs.tensor[i], inputs.spec, title="input", redacted=redacted)
        pictures += [] if sample is None else [sample]
        for method, a in section.maps.items():
            for title, shown in (
                (method, a),
                (f"{method}, {(reference_key or '').replace('control:', 'control ')}", reference.get(method)),
            ):
                picture = None if shown is None else map_picture(shown, i, title, redacted)
                pictures += [] if picture is None else [picture]
    return GridRow(id=short_id(evidence, int(section.rows[i])), facts=facts, pictures=tuple(pictures))


def _random_row(evidence: Evidence, context: Context, section: _Shown) -> GridRow:
    """The first sample with random maps as smooth as each method's own: what knowing nothing looks like."""
    inputs, redacted = section.inputs, evidence.samples == "redacted"
    pictures: list[Picture] = []
    for method, a in section.maps.items():
        random = random_maps(a.values[:1], inputs.players, draws=1, key=(context.seed, "TLA702", method, "gallery"), ids=inputs.ids)[0][0]
        shown = random if a.signed else np.maximum(random, 0.0)
        picture = inputs.modality.map_picture(
            inputs.tensor[0], shown, inputs.spec, title=f"random, like {method}", signed=a.signed, redacted=redacted
        )
        pictures += [] if picture is None else [picture]
    return GridRow(id=short_id(evidence, int(section.rows[0])), facts=(("chosen", "random map, for comparison"),), pictures=tuple(pictures))


def _column_gallery(evidence: Evidence, context: Context, found: dict[str, Attribution], sections: list[_Shown]) -> list[Exhibit]:
    """Tables: mean share of each column per method, and bars of single rows where samples may be shown."""
    bars: list[Bar] = []
    lead = next(iter(found.values()))
    names = lead.inputs.players.names or tuple(f"part {k}" for k in range(int(lead.inputs.players.count.max())))
    shares: dict[str, FloatArray] = {}
    for method, a in found.items():
        size = np.abs(a.values[~a.blank])
        total = size.sum(axis=1, keepdims=True)
        shares[method] = (size / np.where(total > 0, total, 1.0)).mean(axis=0) if len(size) else np.zeros(len(names))
    order = np.argsort(-np.mean(list(shares.values()), axis=0), kind="stable")
    for k in order:
        for method, a in found.items():
            bars.append(Bar(label=names[k], series=method, value=float(shares[method][k]), n=int((~a.blank).sum())))
    top = names[order[0]] if len(names) else "no column"
    out: list[Exhibit] = [
        Bars(
            id="gallery",
            title=f"Columns by their mean share of the attribution: {top} counts most",
            how_to_read="A bar is the column's share of all absolute attribution, averaged over samples. It says what moved the output, not why.",
            alt=f"Bars of mean attribution share per column and method; {top} is the largest.",
            caption=f"n = {len(lead)} target samples; predicted class explained; seed {context.seed}.",
            value_label="mean share of absolute attribution",
            bars=tuple(bars),
        )
    ]
    if evidence.samples != "on":
        return out
    for number, section in enumerate(sections):
        for i in range(min(1, len(section.rows))):  # a chart per method and row: one row of each kind is enough to read
            for method, a in section.maps.items():
                if a.blank[i]:
                    continue
                row = tuple(b.model_copy(update={"series": method}) for b in a.inputs.modality.map_bars(a.values[i], a.inputs.players, i))
                name = short_id(evidence, int(section.rows[i]))
                explained = a.target_names[i] if a.target_names else str(int(a.targets[i]))
                out.append(
                    Bars(
                        id=f"gallery-{number}-{method_slug(method)}",
                        title=f"Sample {name} ({section.rule}): what moved the output for {explained}, by {method}",
                        how_to_read="Bars to the right raise the score of the explained class, bars to the left lower it.",
                        alt=f"Bars of {method} per column for sample {name}.",
                        caption=f"Selection: {section.rule}; seed {a.seed}; {a.budget} model evaluations.",
                        value_label="attribution",
                        bars=row,
                        signed=a.signed,
                        method=method,
                    )
                )
    return out
