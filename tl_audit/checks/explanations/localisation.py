"""TLA707: does the model look at the object, or at a cue that was put beside it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tl_audit.attribution import Attribution, Inputs, batch_size_for, resolve_targets
from tl_audit.checks.base import Context, check, metric
from tl_audit.checks.explanations.gate import GATE_CODES, usable_methods
from tl_audit.checks.explanations.shared import (
    BoolArray,
    FloatArray,
    Maps,
    again_with,
    blank_caveats,
    blank_metrics,
    cluster_of,
    maps_of,
    mean_of_known,
    mean_over,
    rows_of,
    samples_mode,
    short_id,
    unavailable,
)
from tl_audit.checks.wording import counted, percent, signed
from tl_audit.errors import ModelError, NotEvaluated
from tl_audit.evidence.base import Evidence, missing_input
from tl_audit.measures.attribution import centre_map, mask_share, mass_inside, pointing, poisson_binomial_p
from tl_audit.measures.estimate import Estimate
from tl_audit.measures.intervals import rate
from tl_audit.measures.permutation import sign_flip_p
from tl_audit.measures.sampling import priority
from tl_audit.modality.base import Cue, RawBatch
from tl_audit.modality.regions import cue_places
from tl_audit.models.model import Model
from tl_audit.records.exhibits import Dot, Exhibit, GridRow, ImageGrid, Intervals, Picture, Reference
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Subject

CODE = "TLA707"
SHOWN = 4
CUE_SAMPLES = 16
LEAST_CHANGED = 5
"""Predictions that a cue must change for the maps of these alone to be looked at; below, all samples with the cue are."""
MOST_CLASSES = 20
NAMES = ("mass_inside", "mass_excess", "centre_excess", "pointing_accuracy")


@check(
    CODE,
    "Localisation",
    section="explanations",
    severity="high",
    needs=("adapted", "target", "adapted@target", "target.regions|cues"),
    phase=2,
    runs_models=True,
    after=GATE_CODES,
)
def localisation(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Does the model look at the object?

    How it is measured: boxes or masks of the target go through the resize and crop of the model's input. The share of a map's positive mass inside the region is compared, sample by
    sample, with the region's share of the area (what a uniform map would have) and with a centred Gaussian, because objects stand in the middle. Pointing counts the maps whose
    largest value lies inside. Declared cues that have a place are put on up to 16 samples; the prediction made with the cue is explained, and the mass on the cue is compared with its
    area and with the mass on a random patch of the same size, explained in the same way. Intervals: t over samples or clusters; p: sign-flip test, for pointing Poisson-binomial.

    Why it matters: a model that decides by the background, the scanner's mark or the frame is right for reasons that will not hold elsewhere.

    How to reduce the risk: look at the worst rows. Context may be legitimate, and what covers an object may count; if not, crop to the object, vary backgrounds, remove the cue.
    """
    usable, left_out = usable_methods(context.findings, evidence.methods)
    maps = maps_of(evidence, methods=usable)
    if not maps.first.inputs.players.spatial:
        raise NotEvaluated("maps laid out in space: those of tables name columns, which have no region")
    metrics: list[Metric] = []
    exhibits: list[Exhibit] = []
    said: list[str] = []
    notes: list[str] = []
    regions = _regions(evidence, maps, notes)
    cues = _with_cues(subject, evidence, context, maps, notes) if subject.cues else []
    if regions is None and not cues:
        why = "; ".join(notes)
        raise NotEvaluated(
            f"{missing_input('target.regions')}; or cues that have a place (patch, border, text){f' ({why})' if why else ''}"
        )
    if regions is not None:
        found = {m: _localised(a, regions, cluster_of(evidence, a.inputs.ids)) for m, a in maps.found.items()}
        for method, one in found.items():
            metrics += _metrics(method, one, context)
            by_class = _classes(maps.found[method])
            for name in sorted(set(by_class)):
                of_class = np.where(by_class == name, one.excess, np.nan)
                if (by_class == name).all() or not np.isfinite(of_class).any():
                    continue
                estimate = mean_over(of_class, one.cluster, bounds=(-1.0, 1.0), null=0.0, seed=context.seed)
                metrics.append(
                    metric("mass_excess", estimate, rules=context.rules, better="higher", slice={"method": method, "class": name})
                )
        exhibits += _figures(metrics, found, context)
        grid = _grid(evidence, maps, regions, found)
        exhibits += [] if grid is None else [grid]
        values = {m.slice["method"]: m.value for m in metrics if m.name == "mass_excess" and set(m.slice) == {"method"}}
        listed = ", ".join(f"{method} {signed(v)}" for method, v in values.items() if v is not None)
        area = float(regions.area[regions.known].mean())
        said.append(f"Mass inside the regions beyond their share of the area ({percent(area)} on average): {listed or 'undefined'}.")
        if any(v is not None and v < 0 for v in values.values()):
            notes.append(
                "Less mass inside than area: context or an occluder may be a legitimate reason; a person who knows the subject must say."
            )
    for cue in cues:
        metrics += cue.metrics(context)
        said.append(cue.sentence())
    exhibits += _cue_exhibits(evidence, context, cues)
    metrics += blank_metrics(maps)
    metrics += unavailable(("mass_excess",) if regions is not None else ("cue_mass_excess",), maps.missing)
    return Measurement(
        summary=" ".join(said),
        metrics=tuple(metrics),
        exhibits=tuple(exhibits),
        caveats=(
            *blank_caveats(maps),
            *(f"{m} is left out: {why}" for m, why in left_out.items()),
            *(f"{m} was not computed: {why}" for m, why in maps.missing.items()),
            *notes,
        ),
        params={
            "seed": context.seed, "explained": "predicted class", "samples": len(maps.first), "resolution": "of the model's input",
            "centre": "Gaussian, standard deviation a quarter of each side", "cue_samples": CUE_SAMPLES, "cue_budget": "half",
        },
    )  # fmt: skip


# ---------------------------------------------------------------- regions


@dataclass(frozen=True)
class _Regions:
    """Regions of the explained samples at the size of the model's input.

    Attributes
    ----------
    masks : (N, H, W)
    known : (N,) which samples have a region that is neither cut off nor the whole picture
    area : (N,) share of the area inside
    """

    masks: BoolArray
    known: BoolArray
    area: FloatArray


def _regions(evidence: Evidence, maps: Maps, notes: list[str]) -> _Regions | None:
    """Regions of the explained samples; None, with the reason among the notes, where no explained sample has one."""
    lead = maps.first
    try:
        masks, given = evidence.regions("target", rows_of(evidence, lead.inputs.ids), "adapted")
    except NotEvaluated:
        return None
    area = mask_share(masks)
    known = given & (area > 0) & (area < 1)
    n = len(lead)
    for count, words in (
        (int((~given).sum()), "have no region and are left out"),
        (int((given & (area == 0)).sum()), "have a region that the crop of the preprocessing cuts off, and are left out"),
        (int((given & (area == 1)).sum()), "have a region that covers the whole input, and are left out"),
    ):
        if count:
            notes.append(f"{count} of {n} explained samples {words}.")
    return _Regions(masks, known, area) if known.any() else None


@dataclass(frozen=True)
class _Localised:
    """Scores of one method per sample, NaN where the map is blank or the sample has no region."""

    inside: FloatArray
    excess: FloatArray
    centre: FloatArray
    hit: FloatArray
    area: FloatArray
    cluster: NDArray[np.object_] | None


def _localised(a: Attribution, regions: _Regions, cluster: NDArray[np.object_] | None) -> _Localised:
    keep = np.where(regions.known & ~a.blank, 1.0, np.nan)
    values = np.where(np.isfinite(a.values), a.values, 0.0)  # maps with such values are blank
    inside = mass_inside(values, regions.masks) * keep
    centred = (centre_map(*regions.masks.shape[1:]) * regions.masks).sum(axis=(1, 2))
    hit = pointing(values, regions.masks) * keep
    return _Localised(inside, inside - regions.area, inside - centred, hit, regions.area, cluster)


def _metrics(method: str, one: _Localised, context: Context) -> list[Metric]:
    rules, seed, where = context.rules, context.seed, {"method": method}
    nothing = "no map with positive values has a region"
    known = np.isfinite(one.inside)
    area = float(one.area[known].mean()) if known.any() else None
    inside = replace(mean_over(one.inside, one.cluster, bounds=(0.0, 1.0), nothing=nothing), null=area)
    estimates = (
        inside,
        mean_over(one.excess, one.cluster, bounds=(-1.0, 1.0), null=0.0, seed=seed, nothing=nothing),
        mean_over(one.centre, one.cluster, bounds=(-1.0, 1.0), null=0.0, seed=seed, nothing=nothing),
        _pointing(one, seed, nothing),
    )
    return [metric(name, e, rules=rules, better="higher", slice=where) for name, e in zip(NAMES, estimates, strict=True)]


def _pointing(one: _Localised, seed: int, nothing: str) -> Estimate:
    """Share of maps whose largest value lies inside; its test takes each region's own area as the chance of a hit."""
    known = np.isfinite(one.hit)
    if not known.any():
        return Estimate(None, 0, nothing)
    hits, chances = one.hit[known], one.area[known]
    cluster = None if one.cluster is None else one.cluster[known]
    whole = bool(np.isin(hits, (0.0, 1.0)).all())
    estimate = rate(hits > 0.5, cluster=cluster) if whole else mean_over(hits, cluster, bounds=(0.0, 1.0))
    # hits of one cluster are not independent trials: then signs of whole clusters are drawn
    p = poisson_binomial_p(float(hits.sum()), chances) if cluster is None else sign_flip_p(hits - chances, cluster=cluster, seed=seed)
    return replace(estimate, null=float(chances.mean()), p_value=p)


def _classes(a: Attribution) -> NDArray[np.object_]:
    return np.array(a.target_names or [str(int(t)) for t in a.targets], dtype=object)


def _figures(metrics: Sequence[Metric], found: dict[str, _Localised], context: Context) -> list[Exhibit]:
    overall = {(m.name, m.slice["method"]): m for m in metrics if set(m.slice) == {"method"}}
    dots = []
    titles = []
    for method, one in found.items():
        inside, hits = overall["mass_inside", method], overall["pointing_accuracy", method]
        for series, m in (("mass inside", inside), ("largest value inside", hits)):
            dots.append(
                Dot(
                    label=method, series=series, value=m.value, interval=m.interval, n=max(m.n.values(), default=0), null=m.null,
                    hollow=series != "mass inside", note=m.reason if m.value is None else None,
                )
            )  # fmt: skip
        known = np.isfinite(one.inside)
        if inside.value is not None:
            centred = float((one.inside - one.centre)[known].mean())
            titles.append(f"{method} {percent(inside.value)} (area {percent(inside.null)}, centred Gaussian {percent(centred)})")
    out: list[Exhibit] = [
        Intervals(
            id="localisation",
            title=f"Positive mass inside the region: {', '.join(titles) or 'undefined'}",
            how_to_read="The tick is the region's share of the area, which a uniform map would reach. Left of it the map avoids the region.",
            alt="Mass of attribution maps inside the declared regions per method, beside the share of the area.",
            caption=f"n = {max((int(np.isfinite(o.inside).sum()) for o in found.values()), default=0)} target samples with a region; seed {context.seed}.",
            value_label="share of the maps",
            dots=tuple(dots),
            share=True,
        )
    ]
    slices = [m for m in metrics if m.name == "mass_excess" and "class" in m.slice and m.value is not None]
    if slices:
        slices.sort(key=lambda m: (m.value or 0.0, sorted(m.slice.items())))
        shown = slices[:MOST_CLASSES]
        out.append(
            Intervals(
                id="localisation-by-class",
                title=f"Mass inside beyond the area, by explained class: least for {shown[0].slice['class']} with {shown[0].slice['method']} ({signed(shown[0].value)})",
                how_to_read="0: as much mass inside as a uniform map would have. The lowest come first.",
                alt="Mass inside the regions beyond their area, per explained class and method.",
                caption=f"The {len(shown)} lowest of {len(slices)} (class, method) pairs; seed {context.seed}.",
                value_label="mass inside − share of the area",
                dots=tuple(
                    Dot(
                        label=m.slice["class"], series=m.slice["method"], value=m.value, interval=m.interval, n=max(m.n.values(), default=0)
                    )
                    for m in shown
                ),
                references=(Reference(value=0.0, label="uniform map"),),
            )
        )
    return out


def _outlined(a: Attribution, i: int, mask: BoolArray, title: str, redacted: bool) -> Picture | None:
    """A map over its sample with the line around the region."""
    picture = a.inputs.modality.map_picture(
        a.inputs.tensor[i], a.values[i], a.inputs.spec, title=title, signed=a.signed, redacted=redacted, outlines=mask.astype(np.int64)
    )
    return None if picture is None else picture.model_copy(update={"method": a.method})


def _grid(evidence: Evidence, maps: Maps, regions: _Regions, found: dict[str, _Localised]) -> ImageGrid | None:
    """The samples with the least mass inside, over all methods, with the line around the region."""
    if evidence.samples == "off":
        return None
    mean = mean_of_known(np.array([one.excess for one in found.values()]))
    order = np.lexsort((np.arange(len(mean)), mean))
    worst = [int(i) for i in order if np.isfinite(mean[i])][:SHOWN]
    lead, redacted = maps.first, evidence.samples == "redacted"
    rows = rows_of(evidence, lead.inputs.ids)
    grid = []
    for i in worst:
        pictures = [lead.inputs.modality.picture(lead.inputs.tensor[i], lead.inputs.spec, title="input", redacted=redacted)]
        pictures += [_outlined(a, i, regions.masks[i], method, redacted) for method, a in maps.found.items()]
        facts = [("chosen", "least mass inside"), ("explained", str(_classes(lead)[i])), ("area", percent(float(regions.area[i])))]
        facts += [
            (f"inside, {m}", percent(float(one.inside[i])) if np.isfinite(one.inside[i]) else "no signal") for m, one in found.items()
        ]
        grid.append(GridRow(id=short_id(evidence, int(rows[i])), facts=tuple(facts), pictures=tuple(p for p in pictures if p is not None)))
    if not any(row.pictures for row in grid):
        return None
    return ImageGrid(
        id="localisation-grid",
        title="Where the maps lie beside the declared region: the samples with the least mass inside",
        how_to_read="The line is the edge of the region. Mass outside may be context that counts, or a shortcut.",
        alt=f"{counted(len(grid), 'sample')} with attribution maps and the outline of {'its' if len(grid) == 1 else 'their'} region.",
        caption=f"The {len(grid)} lowest of {int(np.isfinite(mean).sum())}, mean over methods; counted like all others.",
        rows=tuple(grid),
        samples=samples_mode(evidence),
    )


# ---------------------------------------------------------------- cues


@dataclass(frozen=True)
class _Side:
    """Samples with the cue (or its placebo), where it lies, and their maps by method."""

    inputs: Inputs
    places: BoolArray
    maps: dict[str, Attribution]

    def excess(self, method: str) -> FloatArray:
        """(N,) mass on the place minus its share of the area, NaN for blank maps and where nothing of the place is left in the input."""
        a, area = self.maps[method], mask_share(self.places)
        keep = np.where(~a.blank & (area > 0), 1.0, np.nan)
        return (mass_inside(np.where(np.isfinite(a.values), a.values, 0.0), self.places) - area) * keep


@dataclass(frozen=True)
class _Marked:
    """What one cue did to predictions, and where the maps of these lie."""

    name: str
    rows: NDArray[np.int64]
    cluster: NDArray[np.object_] | None
    changed: int
    probed: int
    cue: _Side
    placebo: _Side

    @property
    def methods(self) -> list[str]:
        return [m for m in self.cue.maps if m in self.placebo.maps]

    def estimates(self, seed: int) -> dict[str, tuple[Estimate, Estimate]]:
        """Per method: mass on the cue beyond its area, and beyond what is on the placebo's place in the sample with the placebo."""
        out = {}
        for method in self.methods:
            own, other = self.cue.excess(method), self.placebo.excess(method)
            out[method] = (
                mean_over(own, self.cluster, bounds=(-1.0, 1.0), null=0.0, seed=seed),
                mean_over(own - other, self.cluster, bounds=(-2.0, 2.0), null=0.0, seed=seed),
            )
        return out

    def metrics(self, context: Context) -> list[Metric]:
        found = []
        for method, sides in self.estimates(context.seed).items():
            for name, estimate in zip(("cue_mass_excess", "cue_mass_over_placebo"), sides, strict=True):
                found.append(metric(name, estimate, rules=context.rules, better="lower", slice={"method": method, "cue": self.name}))
        return found

    def sentence(self) -> str:
        values = {m: mean_of_known(self.cue.excess(m)[:, None])[0] for m in self.methods}
        listed = ", ".join(f"{m} {signed(float(v))}" for m, v in values.items() if np.isfinite(v))
        which = f"the {self.changed} it changes" if self.changed == len(self.rows) else f"all {len(self.rows)} (it changes {self.changed})"
        return f"Cue {self.name!r} on {self.probed} samples: mass on it beyond its area, over {which}: {listed or 'undefined'}."


def _with_cues(subject: Subject, evidence: Evidence, context: Context, maps: Maps, notes: list[str]) -> list[_Marked]:
    lead = maps.first
    first = np.argsort(priority(context.seed, lead.inputs.ids), kind="stable")[:CUE_SAMPLES]
    rows = rows_of(evidence, lead.inputs.ids)[first]
    raw = subject.target.samples.read(rows)
    if not raw.readable.all():
        notes.append("Cues were not looked for in maps: a sample that was readable before is not now.")
        return []
    before = np.asarray(evidence.predictions("adapted", "target"), dtype=np.int64)[rows]
    out: list[_Marked] = []
    for done, cue in enumerate(subject.cues):
        context.progress("localisation of cues", done, len(subject.cues))
        places = {
            p: cue_places(lead.inputs.modality, raw, cue, lead.inputs.spec, placebo=p, key=(context.seed, CODE)) for p in (False, True)
        }
        if places[False] is None or places[True] is None:
            notes.append(f"Cue {cue.name!r} has no place of its own in the model's input: maps cannot point to it.")
            continue
        try:
            sides = {p: _marked_inputs(raw, cue, lead.inputs.select(first), p, context.seed) for p in (False, True)}
            after = {p: _predicted(subject.adapted, inputs) for p, inputs in sides.items()}
            flipped = after[False] != before
            chosen = np.flatnonzero(flipped) if flipped.sum() >= LEAST_CHANGED else np.arange(len(rows))
            explained: dict[bool, _Side] = {}
            for placebo in (False, True):
                inputs, place = sides[placebo].select(chosen), places[placebo]
                assert place is not None
                made = {
                    m: again_with(subject.adapted, a, inputs, after[placebo][chosen], seed=a.seed, half=True) for m, a in maps.found.items()
                }
                explained[placebo] = _Side(inputs, place[chosen], made)
        except ModelError as error:
            notes.append(f"Cue {cue.name!r} was not looked for in maps: {error}")
            continue
        cluster = evidence.cluster("target")
        out.append(
            _Marked(
                cue.name, rows[chosen], None if cluster is None else cluster[rows[chosen]], int(flipped.sum()), len(rows),
                explained[False], explained[True],
            )
        )  # fmt: skip
    return out


def _marked_inputs(raw: RawBatch, cue: Cue, like: Inputs, placebo: bool, seed: int) -> Inputs:
    tensor = like.modality.encode(like.modality.apply_cue(raw, cue, placebo=placebo, key=(seed, CODE)), like.spec)
    # the ids of the samples: a stochastic method then draws alike for cue and placebo
    return Inputs(tensor, like.ids, like.modality, like.spec, like.modality.players(tensor, like.spec, seed=seed), like.background)


def _predicted(model: Model, inputs: Inputs) -> NDArray[np.int64]:
    return resolve_targets(model, inputs, None, batch_size=batch_size_for(inputs.tensor)).index


def _cue_exhibits(evidence: Evidence, context: Context, cues: Sequence[_Marked]) -> list[Exhibit]:
    dots, grid, said = [], [], []
    redacted = evidence.samples == "redacted"
    for cue in cues:
        for method, (own, _) in cue.estimates(context.seed).items():
            other = mean_over(cue.placebo.excess(method), cue.cluster, bounds=(-1.0, 1.0))
            if own.value is not None:
                said.append((own.value, f"{signed(own.value)} on {cue.name} with {method}"))
            for series, e in (("cue", own), ("placebo", other)):
                interval = None if e.value is None else e.interval(context.rules.confidence)
                dots.append(
                    Dot(
                        label=f"{cue.name}, {method}", series=series, value=e.value, interval=interval, n=e.n, hollow=series == "placebo",
                        note=e.reason if e.value is None else None,
                    )
                )  # fmt: skip
        if evidence.samples != "off":
            pictures = [
                cue.cue.inputs.modality.picture(cue.cue.inputs.tensor[0], cue.cue.inputs.spec, title=f"with {cue.name}", redacted=redacted)
            ]
            pictures += [_outlined(cue.cue.maps[m], 0, cue.cue.places[0], m, redacted) for m in cue.methods]
            shown = tuple(p for p in pictures if p is not None)
            if shown:
                facts = (
                    ("cue", cue.name),
                    ("chosen", "first by hash" + (" whose prediction it changes" if cue.changed == len(cue.rows) else "")),
                )
                grid.append(GridRow(id=short_id(evidence, int(cue.rows[0])), facts=facts, pictures=shown))
    if not dots:
        return []
    out: list[Exhibit] = [
        Intervals(
            id="cue-mass",
            title=f"Mass on a cue beyond its share of the area: at most {max(said)[1]}"
            if said
            else "No map of a prediction with a cue has a signal",
            how_to_read="0: as much mass as a uniform map would have there. Hollow: the same for a random patch of the same size; only what goes beyond it is the cue.",
            alt="Mass of attribution maps on declared cues and on placebos, per cue and method.",
            caption=f"Up to {CUE_SAMPLES} target samples per cue; the prediction made with the cue is explained at half the budget; seed {context.seed}.",
            value_label="mass on the place − share of the area",
            dots=tuple(dots),
            references=(Reference(value=0.0, label="uniform map"),),
        )
    ]
    if grid:
        out.append(
            ImageGrid(
                id="cue-maps",
                title="Maps of predictions made with the cue",
                how_to_read="The line is the edge of the cue. Whether the cue steers the model is judged by TLA608.",
                alt=f"{counted(len(grid), 'sample')} with a cue and {'its' if len(grid) == 1 else 'their'} attribution maps.",
                caption=f"One sample per cue; seed {context.seed}.",
                rows=tuple(grid),
                samples=samples_mode(evidence),
            )
        )
    return out
