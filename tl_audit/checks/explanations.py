"""TLA7xx: where does the model look, and may its maps be believed?"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tl_audit.attribution import Attribution, Inputs, batch_size_for, explain_inputs, explainer
from tl_audit.attribution.quality import (
    ROAD_SHARES,
    STEPS,
    Curves,
    Ranking,
    coarse,
    pooled_to_players,
    random_maps,
    relevance_orders,
    removal_curves,
)
from tl_audit.attribution.randomise import randomised_copy
from tl_audit.checks.base import Check, Context, check, exact, metric
from tl_audit.checks.wording import signed
from tl_audit.errors import ModelError, NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures.attribution import over_rows, rank_correlation
from tl_audit.measures.estimate import Estimate
from tl_audit.measures.sampling import priority
from tl_audit.models.model import Model
from tl_audit.records.exhibits import (
    Bar,
    Bars,
    Cell,
    Column,
    Exhibit,
    GridRow,
    ImageGrid,
    Line,
    Lines,
    Picture,
    StampState,
    Table,
    slug,
)
from tl_audit.records.findings import Finding, LimitOutcome
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject

RANDOM_MAPS = 5
DRAWS = 3
SHOWN = 3
WORST_SHOWN = 2
GATE_CODES = ("TLA701", "TLA702", "TLA703")

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class _Maps:
    """The attributions of the audit's sample: one per method that could be computed, and why the others could not."""

    found: dict[str, Attribution]
    missing: dict[str, str]

    @property
    def first(self) -> Attribution:
        return next(iter(self.found.values()))


def _maps(evidence: Evidence) -> _Maps:
    found: dict[str, Attribution] = {}
    missing: dict[str, str] = {}
    for method in evidence.methods:
        try:
            found[method] = evidence.attributions("adapted", "target", method)
        except (NotEvaluated, ModelError) as error:
            missing[method] = str(error)
    if not found:
        why = "; ".join(f"{m}: {w}" for m, w in missing.items())
        raise NotEvaluated(f"no attributions{f' ({why})' if why else ': no attribution method was chosen'}")
    return _Maps(found, missing)


def _cluster(evidence: Evidence, ids: Sequence[str]) -> NDArray[np.object_] | None:
    """Cluster of each sample of the attribution sample, None where the target has none."""
    cluster = evidence.cluster("target")
    return None if cluster is None else cluster[_rows(evidence, ids)]


def _rows(evidence: Evidence, ids: Sequence[str]) -> NDArray[np.int64]:
    place = {sample: row for row, sample in enumerate(evidence.ids("target"))}
    return np.array([place[sample] for sample in ids], dtype=np.int64)


def _mean(
    values: FloatArray,
    cluster: NDArray[np.object_] | None,
    *,
    bounds: tuple[float, float],
    null: float | None = None,
    seed: int = 0,
    nothing: str = "every map is blank",
) -> Estimate:
    """Mean of the known values with its interval; with a ``null`` the sign-flip p as well."""
    if not np.isfinite(values).any():
        return Estimate(None, 0, nothing, null=null)
    return over_rows(values, cluster=cluster, bounds=bounds, null=null, seed=seed)


def _unavailable(names: Sequence[str], missing: Mapping[str, str]) -> list[Metric]:
    """Metrics without value for methods that could not be computed: they stay on the page."""
    return [exact(name, None, slice={"method": method}, reason=why, n={"target": 0}) for method, why in missing.items() for name in names]


def _blank_metrics(maps: _Maps) -> list[Metric]:
    return [
        exact("blank_maps", int(a.blank.sum()), n={"target": len(a)}, better="lower", slice={"method": m}, null=0.0)
        for m, a in maps.found.items()
    ]


def _blank_caveats(maps: _Maps) -> list[str]:
    return [f"{m}: {int(a.blank.sum())} of {len(a)} maps show no signal and are left out" for m, a in maps.found.items() if a.blank.any()]


def _with_background(inputs: Inputs) -> Inputs:
    """Inputs whose removed columns can be drawn from the target's marginal: the sample itself where no background came with it."""
    if inputs.background is None and inputs.players.shape == "columns":
        return replace(inputs, background=inputs.tensor)
    return inputs


# ---------------------------------------------------------------- TLA702


@check(
    "TLA702",
    "Faithfulness",
    section="explanations",
    severity="critical",
    needs=("adapted", "target", "adapted@target"),
    runs_models=True,
)
def faithfulness(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Do the parts marked important really drive the output, more than a random map's?

    How it is measured: input parts are removed, the most relevant first and the least relevant first, and the probability of the explained class is followed (10 steps).
    Removed parts are filled in by noisy linear imputation on images and by draws from the target's own values on columns. The difference of the two orders,
    averaged over 20, 40, 60 and 80 % removed, is compared per sample with 5 random maps of the same smoothness (and with an edge map on images).
    All methods use the same parts. Intervals: t over samples or clusters; p: sign-flip test against no gain.

    Why it matters: a map that does no better than a random one says nothing about the model, however plausible it looks.

    How to reduce the risk: raise the budget, choose another method or layer, or do not show the maps of a method that fails here.
    """
    maps = _maps(evidence)
    seed, rules = context.seed, context.rules
    metrics: list[Metric] = []
    exhibits: list[Exhibit] = []
    rows: list[tuple[Cell, ...]] = []
    gains: dict[str, FloatArray] = {}
    said: list[str] = []
    curves = _all_curves(subject.adapted, maps, context)
    for method, a in maps.found.items():
        cluster = _cluster(evidence, a.inputs.ids)
        own, randoms, edges = curves[method]
        ok = ~a.blank
        keep = np.where(ok, 1.0, np.nan)
        random_road = np.mean([r.road_combined for r in randoms], axis=0)
        gain = (own.road_combined - random_road) * keep
        gains[method] = gain
        where = {"method": method}
        estimates = {
            "deletion_auc": (_mean(own.deletion_auc * keep, cluster, bounds=(0, 1)), "lower"),
            "insertion_auc": (_mean(own.insertion_auc * keep, cluster, bounds=(0, 1)), "higher"),
            "road_combined": (_mean(own.road_combined * keep, cluster, bounds=(-0.5, 0.5), null=0.0, seed=seed), "higher"),
            "faithfulness_gain": (_mean(gain, cluster, bounds=(-1, 1), null=0.0, seed=seed), "higher"),
        }
        if edges is not None:
            over_edges = (own.road_combined - edges.road_combined) * keep
            estimates["gain_over_edges"] = (_mean(over_edges, cluster, bounds=(-1, 1), null=0.0, seed=seed), "higher")
        for name, (estimate, better) in estimates.items():
            metrics.append(metric(name, estimate, rules=rules, better="lower" if better == "lower" else "higher", slice=where))
        exhibits.append(_removal_lines(method, own, randoms, ok, seed))
        interval = estimates["faithfulness_gain"][0].interval(rules.confidence)
        value = estimates["faithfulness_gain"][0].value
        rows.append(
            (
                method,
                int(ok.sum()),
                estimates["deletion_auc"][0].value,
                estimates["insertion_auc"][0].value,
                float(random_road[ok].mean()) if ok.any() else None,
                estimates["road_combined"][0].value,
                value,
                "" if interval is None else f"{signed(interval[0])} to {signed(interval[1])}",
            )
        )
        if value is not None:
            said.append(f"{method} {signed(value)}")
    metrics += _blank_metrics(maps)
    metrics += _unavailable(("faithfulness_gain",), maps.missing)
    table = Table(
        id="faithfulness-by-method",
        title=f"Gain over a random map: {', '.join(said) or 'no map has a signal'}",
        how_to_read="Gain is how much more the map's order of removal moves the class probability than a random order does. 0: no better than random.",
        alt="Table of deletion area, insertion area and gain over a random map, per method.",
        caption=f"n = {len(maps.first)} target samples, {RANDOM_MAPS} random maps each, seed {seed}.",
        columns=(
            Column(name="method"), Column(name="maps", format="count"), Column(name="deletion area", format="number"),
            Column(name="insertion area", format="number"), Column(name="random map", format="number"), Column(name="map", format="number"),
            Column(name="gain", format="number"), Column(name="interval"),
        ),
        rows=tuple(rows),
    )  # fmt: skip
    gallery, notes = _gallery(subject, evidence, context, maps, gains)
    return Measurement(
        summary=f"Removing what the maps mark moves the output more than removing at random by: {', '.join(said) or 'undefined'} (null 0).",
        metrics=tuple(metrics),
        exhibits=(table, *exhibits, *gallery),
        caveats=(
            *_blank_caveats(maps),
            *(f"{m} was not computed: {why}" for m, why in maps.missing.items()),
            *(f"{m}: {note}" for m, a in maps.found.items() for note in a.caveats),
            *notes,
        ),
        params={
            "steps": 10,
            "random_maps": RANDOM_MAPS,
            "seed": seed,
            "removal": str(maps.first.inputs.modality.default_mask),
            "explained": "predicted class",
            "samples": len(maps.first),
            **{f"budget:{m}": a.budget for m, a in maps.found.items()},
            **{f"layer:{m}": f"{a.layer} ({a.layer_reason})" for m, a in maps.found.items() if a.layer is not None},
        },
    )


def _all_curves(model: Model, maps: _Maps, context: Context) -> dict[str, tuple[Curves, list[Curves], Curves | None]]:
    """Per method: its curves, those of the random maps, those of the edge map. Methods that explain the same inputs share one pass."""
    out: dict[str, tuple[Curves, list[Curves], Curves | None]] = {}
    groups: dict[tuple[object, ...], list[str]] = {}
    for method, a in maps.found.items():
        groups.setdefault((a.inputs.ids, tuple(a.targets.tolist())), []).append(method)
    for methods in groups.values():
        lead = maps.found[methods[0]]
        inputs = _with_background(lead.inputs)
        players, ids = inputs.players, inputs.ids
        rankings: dict[str, Ranking] = {}
        for method in methods:
            a = maps.found[method]
            key = (context.seed, "TLA702", method)
            rankings[f"map {method}"] = Ranking(relevance_orders(a.player_values, players, key=(*key, "ties"), ids=ids), STEPS)
            for draw, random in enumerate(random_maps(a.values, players, draws=RANDOM_MAPS, key=(*key, "random"), ids=ids)):
                values = pooled_to_players(random, players)
                rankings[f"random {draw} {method}"] = Ranking(
                    relevance_orders(values, players, key=(*key, "random ties", draw), ids=ids), ROAD_SHARES
                )
        edges = inputs.modality.edges(inputs.tensor)
        if edges is not None:
            values = pooled_to_players(list(edges), players)
            rankings["edges"] = Ranking(relevance_orders(values, players, key=(context.seed, "TLA702", "edges"), ids=ids), ROAD_SHARES)
        found = removal_curves(
            model, inputs, lead.targets, rankings, seed=context.seed, batch_size=batch_size_for(inputs.tensor),
            progress=lambda done, total: context.progress("faithfulness", done, total),
        )  # fmt: skip
        for method in methods:
            randoms = [found[f"random {draw} {method}"] for draw in range(RANDOM_MAPS)]
            out[method] = (found[f"map {method}"], randoms, found.get("edges"))
    return out


def _removal_lines(method: str, own: Curves, randoms: list[Curves], ok: BoolArray, seed: int) -> Lines:
    if not ok.any():
        ok = np.zeros_like(ok)
    shares = tuple(float(s) for s in own.shares)
    coarse_shares = tuple(float(s) for s in randoms[0].shares)

    def average(curve: FloatArray) -> tuple[float | None, ...]:
        return tuple(float(v) for v in curve[ok].mean(axis=0)) if ok.any() else tuple(None for _ in range(curve.shape[1]))

    lines = [
        Line(name="most relevant first", x=shares, y=average(own.most_first), mark="dot"),
        Line(name="least relevant first", x=shares, y=average(own.least_first), mark="dot"),
    ]
    if ok.any():
        means = np.array([r.most_first[ok].mean(axis=0) for r in randoms] + [r.least_first[ok].mean(axis=0) for r in randoms])
        lines.append(
            Line(
                name="random map", x=coarse_shares, y=tuple(float(v) for v in means.mean(axis=0)), role="null",
                low=tuple(float(v) for v in means.min(axis=0)), high=tuple(float(v) for v in means.max(axis=0)),
            )
        )  # fmt: skip
        area = float(own.deletion_auc[ok].mean())
        random_area = float(np.mean([r.deletion_auc[ok].mean() for r in randoms]))
        title = f"{method}: area {area:.2f} with the most relevant removed first, {random_area:.2f} with a random map"
    else:
        title = f"{method}: no map has a signal"
    return Lines(
        id=f"removal-{slug(method)}",
        title=title,
        how_to_read="The lower the first line and the higher the second, the better the map knows what matters. The band is what random maps do.",
        alt=f"Class probability as parts are removed in the order of {method} maps, beside random maps.",
        caption=f"Mean over n = {int(ok.sum())} target samples; band: range of {2 * len(randoms)} random orders; seed {seed}.",
        x_label="share removed",
        y_label="probability of the explained class",
        lines=tuple(lines),
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
        method=method,
    )


# ---------------------------------------------------------------- gallery


@dataclass(frozen=True)
class _Shown:
    """Samples of the gallery with their maps, computed on few samples only where they are not in the evidence."""

    inputs: Inputs
    targets: NDArray[np.int64]
    rows: NDArray[np.int64]
    maps: dict[str, Attribution]
    rule: str


def _gallery(
    subject: Subject, evidence: Evidence, context: Context, maps: _Maps, gains: Mapping[str, FloatArray]
) -> tuple[list[Exhibit], list[str]]:
    """Maps of a few samples chosen by rule: the first by hash priority, and the worst errors, which count in no number."""
    lead = maps.first
    same = {m: a for m, a in maps.found.items() if a.inputs.ids == lead.inputs.ids}
    first = np.argsort(priority(context.seed, lead.inputs.ids), kind="stable")[:SHOWN]
    sections = [_picked(lead, same, first, _rows(evidence, lead.inputs.ids), "first by hash")]
    notes: list[str] = []
    if evidence.samples != "off":
        worst = _worst_errors(evidence, exclude={lead.inputs.ids[k] for k in first})
        if worst.size:
            sections.append(_explained(subject, evidence, context, same, worst, "worst error"))
    if lead.inputs.players.shape == "columns":
        return _column_gallery(evidence, context, same, sections), notes
    reference_key = next((k for k in ("control:head", "base") if _comparable(subject, evidence, k)), None)
    grid_rows: list[GridRow] = []
    for section in sections:
        reference: dict[str, Attribution] = {}
        if reference_key is not None and evidence.samples != "off":
            reference = _explain_again(subject.models[reference_key], section, same, context, notes, reference_key, subject.adapted)
        for i in range(len(section.rows)):
            grid_rows.append(_grid_row(subject, evidence, context, section, i, reference, reference_key, gains, lead))
    if evidence.samples != "off":
        grid_rows.append(_random_row(evidence, context, sections[0]))
    what = "adapted" if reference_key is None else f"adapted and {reference_key.replace('control:', 'control ')}"
    return [
        ImageGrid(
            id="gallery",
            title=f"What the maps of {len(same)} method(s) mark, {len(grid_rows)} rows",
            how_to_read="Each map marks what moved this output; it is not the reason for the decision. The last row shows what a map looks like that knows nothing.",
            alt=f"Grid of target samples with attribution maps of the {what} model.",
            caption=f"{SHOWN} samples by hash priority, then up to {WORST_SHOWN} most confident errors, chosen for that and counted in no number; predicted class explained; seed {context.seed}.",
            rows=tuple(grid_rows),
            samples=_samples_mode(evidence),
        )
    ], notes


def _samples_mode(evidence: Evidence) -> Literal["off", "redacted", "on"]:
    return "on" if evidence.samples == "on" else "redacted" if evidence.samples == "redacted" else "off"


def _subset(inputs: Inputs, rows: NDArray[np.int64]) -> Inputs:
    import torch

    index = torch.as_tensor(rows)
    players = replace(inputs.players, assignment=inputs.players.assignment[index], count=inputs.players.count[rows])
    return replace(inputs, tensor=inputs.tensor[index], ids=tuple(inputs.ids[r] for r in rows), players=players)


def _cut(a: Attribution, rows: NDArray[np.int64]) -> Attribution:
    """The attribution of some of its samples."""
    return replace(
        a,
        values=a.values[rows],
        player_values=tuple(a.player_values[r] for r in rows),
        targets=a.targets[rows],
        target_names=None if a.target_names is None else tuple(a.target_names[r] for r in rows),
        inputs=_subset(a.inputs, rows),
        completeness=None if a.completeness is None else a.completeness[rows],
        standard_error=None if a.standard_error is None else tuple(a.standard_error[r] for r in rows),
        blank=a.blank[rows],
    )


def _picked(lead: Attribution, found: dict[str, Attribution], places: NDArray[np.int64], rows: NDArray[np.int64], rule: str) -> _Shown:
    return _Shown(_subset(lead.inputs, places), lead.targets[places], rows[places], {m: _cut(a, places) for m, a in found.items()}, rule)


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
    targets = np.asarray(evidence.predictions("adapted", "target")[rows], dtype=np.int64)
    return _Shown(inputs, targets, rows, {m: _again(subject.adapted, a, inputs, targets, seed=a.seed) for m, a in found.items()}, rule)


def _again(model: Model, a: Attribution, inputs: Inputs, targets: NDArray[np.int64], *, seed: int, half: bool = False) -> Attribution:
    """The same method with the same settings on other inputs, another model or another seed; ``half``: at half the budget."""
    budget = max(8, a.budget // 2) if half else max(8, a.budget)
    steps = a.params.get("steps")
    steps = None if steps is None else max(1, int(steps) // 2 if half else int(steps))
    return explain_inputs(model, inputs, method=a.method, targets=targets, seed=seed, budget=budget, layer=a.layer, steps=steps)


def _comparable(subject: Subject, evidence: Evidence, key: str) -> bool:
    """Whether this model has the adapted model's classes, in any order, so that the same class can be explained."""
    model = subject.models.get(key)
    if model is None or key.removeprefix("control:") in subject.same_as_adapted or key in subject.same_as_adapted:
        return False
    if model.preprocessing != subject.adapted.preprocessing:
        return False  # the same tensor would be another input to it
    return bool(model.classes and subject.adapted.classes and set(model.classes) == set(subject.adapted.classes)) and evidence.has(
        key, "target"
    )


def _explain_again(
    model: Model, section: _Shown, found: dict[str, Attribution], context: Context, notes: list[str], key: str, adapted: Model
) -> dict[str, Attribution]:
    """Maps of another model for the same samples and the same classes, by name."""
    names, others = adapted.classes or (), model.classes or ()  # _comparable has seen that both are there
    targets = np.array([others.index(names[t]) for t in section.targets], dtype=np.int64)
    out: dict[str, Attribution] = {}
    for method, a in found.items():
        try:
            out[method] = _again(model, a, section.inputs, targets, seed=a.seed, half=True)
        except ModelError as error:
            notes.append(f"{method} maps of {key} are not shown: {error}")
    return out


def _short_id(evidence: Evidence, row: int) -> str:
    """sha256(content ‖ id)[:8]: a sample's name on the page, which tells nothing of its file name."""
    content = evidence.content_hashes("target")[row] or ""
    return hashlib.sha256(f"{content}{evidence.ids('target')[row]}".encode("utf-8", "surrogatepass")).hexdigest()[:8]


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
            if _comparable(subject, evidence, key):
                other = subject.models[key].classes or ()
                facts.append((f"predicted by {key.replace('control:', 'control ')}", other[int(evidence.predictions(key, "target")[row])]))
    sample = section.inputs.ids[i]
    if sample in lead.inputs.ids:
        at = lead.inputs.ids.index(sample)
        for method, gain in gains.items():
            if len(gain) == len(lead) and np.isfinite(gain[at]):
                facts.append((f"gain of {method}", f"{gain[at]:+.2f}"))
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
                picture = None if shown is None else _map_picture(shown, i, title, redacted)
                pictures += [] if picture is None else [picture]
    return GridRow(id=_short_id(evidence, int(section.rows[i])), facts=facts, pictures=tuple(pictures))


def _map_picture(a: Attribution, i: int, title: str, redacted: bool) -> Picture | None:
    picture = a.inputs.modality.map_picture(a.inputs.tensor[i], a.values[i], a.inputs.spec, title=title, signed=a.signed, redacted=redacted)
    return None if picture is None else picture.model_copy(update={"method": a.method})


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
    return GridRow(
        id=_short_id(evidence, int(section.rows[0])), facts=(("chosen", "random map, for comparison"),), pictures=tuple(pictures)
    )


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
    for section in sections:
        for i in range(min(1, len(section.rows))):  # a chart per method and row: one row of each kind is enough to read
            for method, a in section.maps.items():
                if a.blank[i]:
                    continue
                row = tuple(b.model_copy(update={"series": method}) for b in a.inputs.modality.map_bars(a.values[i], a.inputs.players, i))
                name = _short_id(evidence, int(section.rows[i]))
                explained = a.target_names[i] if a.target_names else str(int(a.targets[i]))
                out.append(
                    Bars(
                        id=f"gallery-{slug(section.rule, most=5)}-{slug(method, most=30)}",
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


# ---------------------------------------------------------------- TLA703


@check(
    "TLA703",
    "Parameter randomisation",
    section="explanations",
    severity="critical",
    needs=("adapted", "target", "adapted@target"),
    runs_models=True,
)
def parameter_randomisation(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Does the map depend on what the model has learned?

    How it is measured: three copies of the model get every weight tensor, and BatchNorm's statistics, permuted in itself; the same samples are explained again, for the same class,
    at half the budget. Maps are compared by Spearman's rank correlation of absolute values (images pooled to 14 x 14). The ceiling is the same model with another
    seed; the effect is ceiling minus similarity, per sample. An edge map and random maps of the same smoothness are floor references.
    Intervals are over samples or clusters, for these three copies.

    Why it matters: a map that stays when everything learned is gone shows the input, not the model.

    How to reduce the risk: choose another method or target layer; do not show the maps of a method that fails here.
    """
    maps = _maps(evidence)
    seed, rules = context.seed, context.rules
    copies = [randomised_copy(subject.adapted, seed=seed, draw=draw) for draw in range(DRAWS)]
    metrics: list[Metric] = []
    bars: list[Bar] = []
    said: list[str] = []
    caveats: list[str] = _blank_caveats(maps)
    redrawn: dict[str, Attribution] = {}
    for done, (method, a) in enumerate(maps.found.items()):
        context.progress("parameter randomisation", done, len(maps.found))
        measured = _randomisation(subject.adapted, copies, a, context)
        redrawn[method] = measured.redrawn
        cluster = _cluster(evidence, a.inputs.ids)
        where = {"method": method}
        nothing = "every map is blank, or too small to rank"
        similar = replace(_mean(measured.similarity, cluster, bounds=(-1, 1), nothing=nothing), null=measured.chance)
        effect = _mean(measured.ceiling - measured.similarity, cluster, bounds=(-2, 2), null=0.0, seed=seed, nothing=nothing)
        metrics.append(metric("randomised_similarity", similar, rules=rules, better="lower", slice=where))
        if explainer(method).stochastic:
            ceiling = _mean(measured.ceiling, cluster, bounds=(-1, 1), nothing=nothing)
            metrics.append(metric("seed_similarity", ceiling, rules=rules, better="higher", slice=where))
            top = ceiling.value
        else:
            metrics.append(
                exact(
                    "seed_similarity",
                    1.0,
                    n={"target": len(a)},
                    better="higher",
                    slice=where,
                    reason="the method is deterministic: 1 by definition",
                )
            )
            top = 1.0
        metrics.append(metric("randomisation_effect", effect, rules=rules, better="higher", slice=where))
        if measured.edges is not None:
            edges = _mean(measured.edges, cluster, bounds=(-1, 1), nothing=nothing)
            metrics.append(metric("edge_similarity", edges, rules=rules, slice=where))
            bars.append(_bar(method, "edge map", edges, rules.confidence))
        bars.append(_bar(method, "weights permuted", similar, rules.confidence, null=measured.chance))
        bars.append(Bar(label=method, series="same model, other seed", value=top, n=len(a), note=None if top is not None else nothing))
        if measured.blank:
            caveats.append(f"{method}: {measured.blank} of {DRAWS * len(a)} maps of permuted models show no signal and are left out")
        if similar.value is not None:
            said.append(f"{method} {similar.value:.2f}")
    metrics += _blank_metrics(maps)
    metrics += _unavailable(("randomised_similarity", "randomisation_effect"), maps.missing)
    exhibits: list[Exhibit] = [
        Bars(
            id="randomisation",
            title=f"Likeness of maps before and after the weights are permuted: {', '.join(said) or 'undefined'}",
            how_to_read="1: the map does not change; 0: nothing in common. A tick is what a random map of the same smoothness reaches.",
            alt="Bars of rank correlation between maps of the trained and of the permuted model, per method, with seed ceiling and edge map.",
            caption=f"n = {len(maps.first)} target samples, {DRAWS} permuted copies, half the budget, seed {seed}.",
            value_label="rank correlation",
            bars=tuple(bars),
            signed=True,
        )
    ]
    grid = _randomisation_grid(evidence, context, maps, redrawn)
    if grid is not None:
        exhibits.append(grid)
    return Measurement(
        summary=f"Rank correlation of maps with those of a model whose weights were permuted: {', '.join(said) or 'undefined'}.",
        metrics=tuple(metrics),
        exhibits=tuple(exhibits),
        caveats=(*caveats, *(f"{m} was not computed: {why}" for m, why in maps.missing.items())),
        params={"draws": DRAWS, "seed": seed, "samples": len(maps.first), "budget": "half", "compared_on": "14 x 14, or columns"},
    )


@dataclass(frozen=True)
class _Randomisation:
    """Per sample: similarity to permuted models, ceiling of other seeds, edges; NaN where a map is blank. ``chance``: of random maps."""

    similarity: FloatArray
    ceiling: FloatArray
    edges: FloatArray | None
    chance: float | None
    blank: int
    redrawn: Attribution


def _randomisation(model: Model, copies: Sequence[Model], a: Attribution, context: Context) -> _Randomisation:
    players, ids = a.inputs.players, a.inputs.ids
    own = np.where(a.blank[:, None], np.nan, coarse(a.values, players))
    rows, blank = [], 0
    redrawn = a
    for draw, other in enumerate(copies):
        again = _again(other, a, a.inputs, a.targets, seed=a.seed + 1 + draw, half=True)
        redrawn = again if draw == 0 else redrawn
        blank += int((again.blank & ~a.blank).sum())
        rows.append(rank_correlation(own, np.where(again.blank[:, None], np.nan, coarse(again.values, players))))
    similarity = _mean_of_known(np.array(rows))
    if explainer(a.method).stochastic:
        other_seed = _again(model, a, a.inputs, a.targets, seed=a.seed + 1 + len(copies), half=True)
        ceiling = rank_correlation(own, np.where(other_seed.blank[:, None], np.nan, coarse(other_seed.values, players)))
    else:
        ceiling = np.where(a.blank, np.nan, 1.0)
    edge_maps = a.inputs.modality.edges(a.inputs.tensor)
    edges = None if edge_maps is None else rank_correlation(own, coarse(edge_maps, players))
    chances = []
    for random in random_maps(a.values, players, draws=RANDOM_MAPS, key=(context.seed, "TLA703", a.method), ids=ids):
        shown = np.stack(random)
        shown = shown if a.signed else np.maximum(shown, 0.0)
        chances.append(rank_correlation(own, coarse(shown, players)))
    known = np.array(chances)[np.isfinite(np.array(chances))]
    return _Randomisation(similarity, ceiling, edges, float(known.mean()) if known.size else None, blank, redrawn)


def _mean_of_known(rows: FloatArray) -> FloatArray:
    """Column means over finite entries, NaN where there is none."""
    known = np.isfinite(rows)
    count = known.sum(axis=0)
    return np.where(count > 0, np.where(known, rows, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)


def _bar(method: str, series: str, estimate: Estimate, confidence: float, *, null: float | None = None) -> Bar:
    interval = None if estimate.value is None else estimate.interval(confidence)
    return Bar(
        label=method,
        series=series,
        value=estimate.value,
        interval=interval,
        null=null,
        n=estimate.n,
        note=estimate.reason if estimate.value is None else None,
    )


def _randomisation_grid(evidence: Evidence, context: Context, maps: _Maps, redrawn: Mapping[str, Attribution]) -> ImageGrid | None:
    """Two samples: maps of the trained and of a permuted model, side by side."""
    if evidence.samples == "off" or maps.first.inputs.players.shape == "columns":
        return None
    lead = maps.first
    redacted = evidence.samples == "redacted"
    rows = _rows(evidence, lead.inputs.ids)
    grid: list[GridRow] = []
    for at in np.argsort(priority(context.seed, lead.inputs.ids), kind="stable")[:2]:
        pictures = []
        for method, a in maps.found.items():
            if a.inputs.ids != lead.inputs.ids:
                continue
            for title, shown in ((f"{method}, trained", a), (f"{method}, permuted", redrawn[method])):
                picture = _map_picture(shown, int(at), title, redacted)
                pictures += [] if picture is None else [picture]
        grid.append(GridRow(id=_short_id(evidence, int(rows[at])), facts=(("chosen", "first by hash"),), pictures=tuple(pictures)))
    if not any(r.pictures for r in grid):
        return None
    return ImageGrid(
        id="trained-and-permuted",
        title="Maps of the trained model and of one whose weights were permuted",
        how_to_read="If both maps of a pair look alike, the method shows the input and not the model.",
        alt="Pairs of attribution maps: trained model and permuted model.",
        caption=f"Samples by hash priority; first permuted copy; seed {context.seed}.",
        rows=tuple(grid),
        samples=_samples_mode(evidence),
    )


# ---------------------------------------------------------------- TLA711


@check("TLA711", "Explanation gate", section="explanations", severity="critical", needs=("adapted", "target"), phase=2)
def explanation_gate(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """May the maps of a method be shown as explanations?

    How it is measured: for each method, the outcomes of completeness (TLA701), faithfulness (TLA702) and parameter randomisation (TLA703), as far as they apply. A broken fail limit
    stamps every map of the method "not reliable"; an undecided or unmeasured one stamps it "reliability not shown"; else it is stamped "quality checks passed".

    Why it matters: a plausible picture is believed. A method that fails a check of its own may not lend its maps to an argument.

    How to reduce the risk: use the methods that passed, raise samples or budget where nothing was decided, or leave the maps out.
    """
    methods = tuple(evidence.methods)
    if not methods:
        raise NotEvaluated("no attribution method was chosen")
    findings = [f for f in context.findings if f.code in GATE_CODES]
    if not findings:
        raise NotEvaluated("needs the findings of TLA702 or TLA703: they were deselected")
    verdicts = {method: _gate(method, findings) for method in methods}
    metrics: list[Metric] = []
    for method, (state, text) in verdicts.items():
        value = {"passed": 1.0, "unreliable": 0.0}.get(state)
        metrics.append(
            exact(
                "gate_passed",
                value,
                better="higher",
                slice={"method": method},
                n={"target": _n_maps(method, findings)},
                reason=None if value is not None else text,
            )
        )
    usable = sum(state == "passed" for state, _ in verdicts.values())
    undecided = [m for m, (state, _) in verdicts.items() if state == "not_checked"]
    open_question = usable == 0 and bool(undecided)
    metrics.append(
        exact(
            "methods_usable", None if open_question else float(usable), better="higher", n={"methods": len(methods)},
            reason=f"no method passed, and nothing was decided for {', '.join(undecided)}" if open_question else None,
        )
    )  # fmt: skip
    table = Table(
        id="gate",
        title=f"{usable} of {len(methods)} attribution method(s) passed their quality checks",
        how_to_read="The stamp stands under every map of the method in this report.",
        alt="Table of attribution methods with their stamp.",
        caption=f"Rests on {', '.join(sorted({f.code for f in findings}))}.",
        columns=(Column(name="method"), Column(name="state"), Column(name="stamp")),
        rows=tuple((m, state.replace("_", " "), text) for m, (state, text) in verdicts.items()),
    )
    return Measurement(
        summary=f"{usable} of {len(methods)} attribution method(s) may be shown as checked: "
        + "; ".join(f"{m}: {text}" for m, (_, text) in verdicts.items())
        + ".",
        metrics=tuple(metrics),
        exhibits=(table,),
        params={f"stamp:{m}": f"{state}: {text}" for m, (state, text) in verdicts.items()},
    )


def _gate(method: str, findings: Sequence[Finding]) -> tuple[StampState, str]:
    """The stamp of one method: broken beats open, open beats passed."""
    broken: list[str] = []
    open_: list[str] = []
    passed: list[str] = []
    for finding in findings:
        code = finding.code
        if finding.measurement is None:
            open_.append(f"{code} {finding.status.replace('_', ' ')}")
            continue
        mine = [m for m in finding.measurement.metrics if m.slice.get("method") == method]
        if not mine:
            continue  # the check does not apply to this kind of method
        limits = [x for x in finding.limits if x.slice.get("method") == method]
        if not limits:
            open_.append(f"{code} has no limit in the policy")
            continue
        failed = sorted({x.metric for x in limits if x.level == "fail" and x.outcome == "broken"})
        if failed:
            broken.append(f"{code} ({', '.join(failed)})")
        elif any(_undecided(x, mine) for x in limits):
            open_.append(f"{code} inconclusive")
        else:
            passed.append(code)
    if broken:
        return "unreliable", f"not reliable: fails {', '.join(broken)}"
    if open_ or not passed:
        return "not_checked", f"reliability not shown: {', '.join(open_) or 'no check applies'}"
    return "passed", f"quality checks passed ({', '.join(passed)})"


def _undecided(limit: LimitOutcome, metrics: Sequence[Metric]) -> bool:
    """Whether a limit leaves the method open: an undecided fail limit, or an undecided warn limit with the estimate beyond it (CHECKS.md 1.2)."""
    if limit.outcome == "not_judged":
        return True
    if limit.outcome != "undecided":
        return False
    if limit.level == "fail":
        return True
    value = next((m.value for m in metrics if m.name == limit.metric), None)
    if value is None:
        return True
    beyond = {"max": value > limit.value, "min": value < limit.value, "abs": abs(value) > limit.value}
    return beyond[limit.bound]


def _n_maps(method: str, findings: Sequence[Finding]) -> int:
    counts = [
        max(m.n.values(), default=0)
        for f in findings
        if f.measurement is not None
        for m in f.measurement.metrics
        if m.slice.get("method") == method
    ]
    return max(counts, default=0)


EXPLANATIONS: tuple[Check, ...] = (faithfulness, parameter_randomisation, explanation_gate)
