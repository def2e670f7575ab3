"""What the checks of explanations have in common: the audit's maps, means over samples, pictures, explaining again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tl_audit.attribution import Attribution, Inputs, Targets
from tl_audit.attribution.quality import again
from tl_audit.attribution.quality import mean_of_known as mean_of_known  # what checks average with
from tl_audit.checks.base import exact
from tl_audit.errors import ModelError, NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures.attribution import over_rows
from tl_audit.measures.estimate import Estimate
from tl_audit.models.model import Model
from tl_audit.records.exhibits import Bar, Picture, slug
from tl_audit.records.metrics import Metric
from tl_audit.subject import Subject

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Maps:
    """The attributions of the audit's sample: one per method that could be computed, and why the others could not."""

    found: dict[str, Attribution]
    missing: dict[str, str]

    @property
    def first(self) -> Attribution:
        return next(iter(self.found.values()))


def maps_of(evidence: Evidence, model: str = "adapted", domain: str = "target", methods: Sequence[str] | None = None) -> Maps:
    """The maps of every method of the audit (or of these), NotEvaluated where there is none."""
    found: dict[str, Attribution] = {}
    missing: dict[str, str] = {}
    for method in evidence.methods if methods is None else methods:
        try:
            found[method] = evidence.attributions(model, domain, method)
        except (NotEvaluated, ModelError) as error:
            missing[method] = str(error)
    if not found and not missing:
        raise NotEvaluated("no attribution method was chosen")
    if not found:
        why = "; ".join(f"{m}: {w}" for m, w in missing.items())
        raise NotEvaluated(f"no attributions ({why})")
    return Maps(found, missing)


def cluster_of(evidence: Evidence, ids: Sequence[str], domain: str = "target") -> NDArray[np.object_] | None:
    """Cluster of each sample of the attribution sample, None where the domain has none."""
    cluster = evidence.cluster(domain)
    return None if cluster is None else cluster[rows_of(evidence, ids, domain)]


def rows_of(evidence: Evidence, ids: Sequence[str], domain: str = "target") -> NDArray[np.int64]:
    """Rows of these samples in the domain."""
    place = {sample: row for row, sample in enumerate(evidence.ids(domain))}
    return np.array([place[sample] for sample in ids], dtype=np.int64)


def mean_over(
    values: FloatArray,
    cluster: NDArray[np.object_] | None,
    *,
    bounds: tuple[float, float] | None,
    null: float | None = None,
    seed: int = 0,
    nothing: str = "every map is blank",
) -> Estimate:
    """Mean of the known values with its interval; with a ``null`` the sign-flip p as well."""
    if not np.isfinite(values).any():
        return Estimate(None, 0, nothing, null=null)
    return over_rows(values, cluster=cluster, bounds=bounds, null=null, seed=seed)


def unavailable(names: Sequence[str], missing: Mapping[str, str]) -> list[Metric]:
    """Metrics without value for methods that could not be computed: they stay on the page."""
    return [exact(name, None, slice={"method": method}, reason=why, n={"target": 0}) for method, why in missing.items() for name in names]


def blank_metrics(maps: Maps) -> list[Metric]:
    return [
        exact("blank_maps", int(a.blank.sum()), n={"target": len(a)}, better="lower", slice={"method": m}, null=0.0)
        for m, a in maps.found.items()
    ]


def blank_caveats(maps: Maps) -> list[str]:
    return [f"{m}: {int(a.blank.sum())} of {len(a)} maps show no signal and are left out" for m, a in maps.found.items() if a.blank.any()]


def samples_mode(evidence: Evidence) -> Literal["off", "redacted", "on"]:
    return "on" if evidence.samples == "on" else "redacted" if evidence.samples == "redacted" else "off"


def again_with(
    model: Model,
    a: Attribution,
    inputs: Inputs,
    targets: Targets | NDArray[np.int64],
    *,
    seed: int,
    half: bool = False,
    steps: int | None = None,
) -> Attribution:
    """The same method with the same settings on other inputs, another model or another seed; ``half``: at half the budget; ``steps``: instead of its own."""
    asked = targets if isinstance(targets, Targets) else Targets(np.asarray(targets, dtype=np.int64))
    return again(model, a, inputs, asked, seed=seed, share=0.5 if half else 1.0, steps=steps)


def player_scores(
    score: Callable[[FloatArray, FloatArray], FloatArray], first: Attribution, second: Attribution, *, density: bool = False
) -> FloatArray:
    """(N,) a score of each pair of maps on the values of their input parts; NaN where one is blank. Samples may differ in their number of parts.

    density : values per area of the part, so that large parts do not make maps alike
    """
    out = np.full(len(first), np.nan)
    players = first.inputs.players
    size = [players.areas(i) if density else np.ones(int(players.count[i])) for i in range(len(first))]
    known = ~(first.blank | second.blank)
    for count in np.unique(players.count[known]):
        rows = np.flatnonzero(known & (players.count == count))
        a, b = (np.stack([m.player_values[i] / size[i] for i in rows]) for m in (first, second))
        out[rows] = score(a, b)
    return out


def chance_iou(counts: NDArray[np.int64], *, share: float = 0.1) -> float | None:
    """Mean overlap of the top tenth of two unrelated maps with these numbers of parts: near 0.1/1.9 = 0.053 for many parts, more for few."""
    if not len(counts):
        return None
    numbers, times = np.unique(counts, return_counts=True)
    expected = []
    for parts in numbers:
        k = max(1, round(share * int(parts)))
        shared = np.arange(k + 1)
        expected.append(float((stats.hypergeom.pmf(shared, int(parts), k, k) * shared / (2 * k - shared)).sum()))
    return float(np.average(expected, weights=times))


def comparable(subject: Subject, evidence: Evidence, key: str) -> bool:
    """Whether this model has the adapted model's classes, in any order, so that the same class can be explained; or gives a number as that does."""
    model = subject.models.get(key)
    if model is None or key.removeprefix("control:") in subject.same_as_adapted or key in subject.same_as_adapted:
        return False
    if model.preprocessing != subject.adapted.preprocessing:
        return False  # the same tensor would be another input to it
    if model.task == subject.adapted.task == "regression":
        return evidence.has(key, "target")
    return bool(model.classes and subject.adapted.classes and set(model.classes) == set(subject.adapted.classes)) and evidence.has(
        key, "target"
    )


def method_slug(method: str) -> str:
    """A method's name in the id of an exhibit; "grad_cam" and "grad_cam++" differ."""
    return slug(method.replace("+", " plus "))


def short_id(evidence: Evidence, row: int) -> str:
    """sha256(content ‖ id)[:8]: a sample's name on the page, which tells nothing of its file name."""
    content = evidence.content_hashes("target")[row] or ""
    return hashlib.sha256(f"{content}{evidence.ids('target')[row]}".encode("utf-8", "surrogatepass")).hexdigest()[:8]


def map_picture(a: Attribution, i: int, title: str, redacted: bool) -> Picture | None:
    picture = a.inputs.modality.map_picture(a.inputs.tensor[i], a.values[i], a.inputs.spec, title=title, signed=a.signed, redacted=redacted)
    return None if picture is None else picture.model_copy(update={"method": a.method})


def estimate_bar(method: str, series: str, estimate: Estimate, confidence: float, *, null: float | None = None) -> Bar:
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
