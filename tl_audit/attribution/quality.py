"""May maps be believed? What maps are held against, per sample; ``assess`` stamps them."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from tl_audit.attribution.base import Attribution, Explainer, Inputs, Run, Targets
from tl_audit.attribution.game import Memo
from tl_audit.attribution.methods import EXPLAINERS
from tl_audit.attribution.randomise import randomised_copy
from tl_audit.attribution.removal import (
    ROAD_SHARES,
    STEPS,
    Curves,
    Ranking,
    kept_after,
    pooled_to_players,
    random_maps,
    relevance_orders,
    removal_curves,
)
from tl_audit.attribution.stamps import gate_of
from tl_audit.errors import ConfigError
from tl_audit.measures import attribution as measures
from tl_audit.measures.estimate import Estimate
from tl_audit.measures.intervals import rate
from tl_audit.modality.base import Players
from tl_audit.models.model import Model
from tl_audit.policy import Policy, load_policy
from tl_audit.policy.judge import judge
from tl_audit.records.exhibits import Stamp
from tl_audit.records.metrics import Measurement, Metric

__all__ = [
    "ROAD_SHARES",
    "STEPS",
    "Curves",
    "MapCurves",
    "Randomised",
    "Ranking",
    "again",
    "assess",
    "coarse",
    "curves_of_maps",
    "explainer_of",
    "kept_after",
    "mean_of_known",
    "pooled_to_players",
    "random_maps",
    "randomised",
    "relevance_orders",
    "removal_curves",
    "residuals",
    "with_background",
]

FloatArray = NDArray[np.float64]
Progress = Callable[[str, int, int], None]
RANDOM_MAPS = 5
BAD = 0.05
"""A completeness residual above this share of the change that is explained counts as bad (ours)."""
UNCHANGED = "with every weight permuted and the same seed every map is bit-equal: the method does not ask the model"
DRAWS = 3
"""Copies of a model with permuted weights."""


def residuals(a: Attribution) -> FloatArray:
    """(N,) |sum of values - change| as a share of the change that the values explain, f(x) - f(reference). 0 or more, lower is better, 0 where they add up.

    The change counts as at least 1 % of its median over the samples: a sample that is hardly changed has hardly anything to miss.
    NaN where the method promises nothing, where values are not finite, and where nothing changes and the values are not 0 either.

    References
    ----------
    Sundararajan et al. (2017). Axiomatic attribution for deep networks. arXiv:1703.01365 (completeness)
    """
    if a.completeness is None:
        return np.full(len(a), np.nan)
    left = np.asarray(a.completeness, dtype=np.float64)
    change = np.abs(np.array([values.sum() for values in a.player_values]) - left)
    known = change[np.isfinite(change)]
    scale = np.maximum(change, 0.01 * np.median(known)) if known.size else change
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.abs(left) / scale
    return np.where((left == 0) & (scale == 0), 0.0, np.where(scale > 0, found, np.nan))


def again(
    model: Model,
    a: Attribution,
    inputs: Inputs,
    targets: Targets,
    *,
    seed: int,
    share: float = 1.0,
    steps: int | None = None,
    memo: Memo | None = None,
) -> Attribution:
    """The same method with the same settings and budget on other inputs, another model or another seed.

    Parameters
    ----------
    share : of the budget that is spent, and of the steps of a method that has them; all of it where the method cannot do with less
    steps : instead of the method's own
    """
    from tl_audit.attribution.door import batch_size_for, run_explainer

    chosen = explainer_of(a)
    known = {f.name for f in fields(chosen)}  # type: ignore[arg-type]  # explainers are dataclasses
    settings: dict[str, object] = {}
    if "layer" in known and a.layer is not None:
        settings["layer"] = a.layer
    before = a.params.get("steps")
    if "steps" in known and steps is not None:
        settings["steps"] = steps
    elif "steps" in known and isinstance(before, int) and share < 1:
        settings["steps"] = max(1, int(before * share))
    budget = a.params.get("budget")
    same: Explainer = replace(chosen, **settings)  # type: ignore[type-var]
    whole = Run(seed, budget, batch_size_for(inputs.tensor, model), memo)
    if share >= 1:
        return run_explainer(model, inputs, same, targets, whole)
    try:
        return run_explainer(model, inputs, same, targets, replace(whole, share=share))
    except ConfigError:
        # less than the method can work with (one draw of each part, every place once): what made the maps was enough
        return run_explainer(model, inputs, same, targets, whole)


def with_background(inputs: Inputs) -> Inputs:
    """Inputs whose removed columns can be drawn from a marginal distribution: the inputs' own where no background came with them."""
    if inputs.background is None and not inputs.players.spatial:
        return replace(inputs, background=inputs.tensor)
    return inputs


def coarse(values: FloatArray, players: Players, *, side: int = 14) -> FloatArray:
    """(N, F) absolute maps for comparison: pooled to at most ``side`` x ``side`` on images, as they are on columns."""
    size = np.abs(values)
    if not players.spatial:
        return size.reshape(len(size), -1)
    return measures.pooled(size, side=min(side, *size.shape[1:]))


@dataclass(frozen=True)
class Randomised:
    """One method's maps beside those of models whose weights were permuted.

    Attributes
    ----------
    similarity : (N,) mean rank correlation of absolute values with the maps of permuted models; NaN where a map is blank
    ceiling : (N,) the same with the same model and another seed; 1 for deterministic methods
    edges : (N,) the same with the edges of the input; None where the kind of data has none
    chance : of random maps as smooth; None where every map is blank
    blank : maps of permuted models without signal
    first : the maps of the first permuted model
    unchanged : with the same seed every map is bit-equal for every permuted model: the method does not ask the model
    """

    similarity: FloatArray
    ceiling: FloatArray
    edges: FloatArray | None
    chance: float | None
    blank: int
    first: Attribution
    unchanged: bool = False


def randomised(
    model: Model,
    maps: Mapping[str, Attribution],
    *,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Randomised]:
    """Every method's maps beside those of three copies whose weights were permuted (TLA703), at half the budget.

    One copy serves all methods, and what several of them ask of it is evaluated once.

    References
    ----------
    Adebayo et al. (2018). Sanity checks for saliency maps. arXiv:1810.03292
    """
    own = {m: np.where(a.blank[:, None], np.nan, coarse(a.values, a.inputs.players)) for m, a in maps.items()}
    alike: dict[str, list[FloatArray]] = {m: [] for m in maps}
    blank = dict.fromkeys(maps, 0)
    first: dict[str, Attribution] = {}
    unchanged = {m: bool((~a.blank).any()) for m, a in maps.items()}
    total, done = (DRAWS + 1) * len(maps), 0
    for draw in range(DRAWS):
        copy, memo = randomised_copy(model, seed=seed, draw=draw), Memo()
        for method, a in maps.items():
            progress(done, total)
            other = again(copy, a, a.inputs, a.explained, seed=a.seed + 1 + draw, share=0.5, memo=memo)
            alike[method].append(_likeness(own[method], other))
            blank[method] += int((other.blank & ~a.blank).sum())
            first.setdefault(method, other)
            unchanged[method] = unchanged[method] and _same_maps(a, other, copy)
            done += 1
    out, memo = {}, Memo()
    for method, a in maps.items():
        progress(done, total)
        if explainer_of(a).stochastic:
            ceiling = _likeness(own[method], again(model, a, a.inputs, a.explained, seed=a.seed + 1 + DRAWS, share=0.5, memo=memo))
        else:
            ceiling = np.where(a.blank, np.nan, 1.0)
        players = a.inputs.players
        edges = a.inputs.modality.edges(a.inputs.tensor)
        chances = []
        for random in random_maps(a.values, players, draws=RANDOM_MAPS, key=(seed, "TLA703", method), ids=a.inputs.ids):
            shown = np.stack(random)
            chances.append(measures.rank_correlation(own[method], coarse(shown if a.signed else np.maximum(shown, 0.0), players)))
        known = np.array(chances)[np.isfinite(np.array(chances))]
        out[method] = Randomised(
            similarity=mean_of_known(np.array(alike[method])),
            ceiling=ceiling,
            edges=None if edges is None else measures.rank_correlation(own[method], coarse(edges, players)),
            chance=float(known.mean()) if known.size else None,
            blank=blank[method],
            first=first[method],
            unchanged=unchanged[method],
        )
        done += 1
    return out


def _same_maps(a: Attribution, other: Attribution, copy: Model) -> bool:
    """Whether a permuted model gives bit-equal maps. A stochastic method is asked once more, with its own seed, if it spent no evaluation."""
    if explainer_of(a).stochastic:
        if a.budget > 0:
            return False
        other = again(copy, a, a.inputs, a.explained, seed=a.seed)
    return np.array_equal(a.values[~a.blank], other.values[~a.blank])


def _likeness(own: FloatArray, other: Attribution) -> FloatArray:
    return measures.rank_correlation(own, np.where(other.blank[:, None], np.nan, coarse(other.values, other.inputs.players)))


def explainer_of(a: Attribution) -> Explainer:
    """The method that made these maps, with its settings as far as they are known."""
    return a.explainer if a.explainer is not None else next(e for e in EXPLAINERS if e.name == a.method)


def mean_of_known(rows: FloatArray) -> FloatArray:
    """Column means over finite entries, NaN where there is none."""
    known = np.isfinite(rows)
    count = known.sum(axis=0)
    return np.where(count > 0, np.where(known, rows, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)


class MapCurves(NamedTuple):
    """Removal curves of one method's maps, of random maps as smooth as they are, and of the edges of the input (None: the kind has none)."""

    own: Curves
    randoms: list[Curves]
    edges: Curves | None

    @property
    def gain(self) -> FloatArray:
        """(N,) ROAD combined of the maps minus the mean of the random maps. -1 to 1, higher is better, null 0."""
        random: FloatArray = np.mean([r.road_combined for r in self.randoms], axis=0)
        return self.own.road_combined - random


def curves_of_maps(
    model: Model,
    maps: Mapping[str, Attribution],
    *,
    seed: int,
    gain_only: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, MapCurves]:
    """Removal curves of every method (TLA702). Methods that explain the same inputs share one pass and every mask they have in common.

    gain_only : no more than ``MapCurves.gain`` needs, a third fewer evaluations: four shares instead of ten steps, and no edge map
    """
    from tl_audit.attribution.door import batch_size_for

    out: dict[str, MapCurves] = {}
    groups: dict[tuple[object, ...], list[str]] = {}
    for method, a in maps.items():
        against = None if a.against is None else tuple(a.against.tolist())
        groups.setdefault((a.inputs.ids, tuple(a.targets.tolist()), against), []).append(method)
    for methods in groups.values():
        lead = maps[methods[0]]
        inputs = with_background(lead.inputs)
        players, ids = inputs.players, inputs.ids
        rankings: dict[str, Ranking] = {}
        for method in methods:
            a = maps[method]
            key = (seed, "TLA702", method)
            rankings[f"map {method}"] = Ranking(
                relevance_orders(a.player_values, players, key=(*key, "ties"), ids=ids), ROAD_SHARES if gain_only else STEPS
            )
            for draw, random in enumerate(random_maps(a.values, players, draws=RANDOM_MAPS, key=(*key, "random"), ids=ids)):
                values = pooled_to_players(random, players)
                rankings[f"random {draw} {method}"] = Ranking(
                    relevance_orders(values, players, key=(*key, "random ties", draw), ids=ids), ROAD_SHARES
                )
        edges = None if gain_only else inputs.modality.edges(inputs.tensor)
        if edges is not None:
            values = pooled_to_players(list(edges), players)
            rankings["edges"] = Ranking(relevance_orders(values, players, key=(seed, "TLA702", "edges"), ids=ids), ROAD_SHARES)
        found = removal_curves(
            model, inputs, lead.explained, rankings, seed=seed, batch_size=batch_size_for(inputs.tensor, model), progress=progress
        )
        for method in methods:
            randoms = [found[f"random {draw} {method}"] for draw in range(RANDOM_MAPS)]
            out[method] = MapCurves(found[f"map {method}"], randoms, found.get("edges"))
    return out


@overload
def assess(
    model: nn.Module | Model,
    maps: Attribution,
    *,
    seed: int = 0,
    cluster: ArrayLike | None = None,
    policy: Policy | None = None,
    progress: Progress = ...,
) -> Attribution: ...


@overload
def assess(
    model: nn.Module | Model,
    maps: Mapping[str, Attribution],
    *,
    seed: int = 0,
    cluster: ArrayLike | None = None,
    policy: Policy | None = None,
    progress: Progress = ...,
) -> dict[str, Attribution]: ...


def assess(
    model: nn.Module | Model,
    maps: Attribution | Mapping[str, Attribution],
    *,
    seed: int = 0,
    cluster: ArrayLike | None = None,
    policy: Policy | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Attribution | dict[str, Attribution]:
    """The same maps with their quality stamp: what completeness, faithfulness and parameter randomisation say of them, on these very inputs.

    The numbers are those of TLA701, TLA702 and TLA703, judged by the limits of a policy; few maps decide nothing, and the stamp says so.
    Costs about 50 forward passes per map and method, and one and a half times the explanation itself (twice, of stochastic methods).

    Parameters
    ----------
    model : the model that was explained; it is given back untouched
    maps : of one method, or of several: method -> Attribution. Methods on the same inputs share what they have in common
    cluster : (N,) cluster of each sample (patient, ...): then clusters are the units of the intervals
    policy : whose limits and minimum n hold; None: the policy ``default``
    progress : told (what, done, total)

    Raises
    ------
    ConfigError : maps that were read from a file and say nothing of their inputs
    ModelError : the network cannot be copied
    """
    from tl_audit.models import as_model

    wrapped = as_model(model, name="model")
    named = {maps.method: maps} if isinstance(maps, Attribution) else dict(maps)
    rules = policy if policy is not None else load_policy("default")
    curves = curves_of_maps(
        wrapped, named, seed=seed, gain_only=True, progress=lambda done, total: progress("samples held against random maps", done, total)
    )
    random = randomised(
        wrapped, named, seed=seed, progress=lambda done, total: progress("explanations of copies with permuted weights", done, total)
    )
    out = {
        name: replace(a, quality=_stamp(name, a, curves[name], random[name], seed=seed, cluster=cluster, policy=rules))
        for name, a in named.items()
    }
    return out[maps.method] if isinstance(maps, Attribution) else out


def _stamp(
    name: str, a: Attribution, curves: MapCurves, random: Randomised, *, seed: int, cluster: ArrayLike | None, policy: Policy
) -> Stamp:
    ok = ~a.blank
    ids = None if cluster is None else np.asarray(cluster, dtype=object)
    keep = np.where(ok, 1.0, np.nan)

    def over(scores: FloatArray, bounds: tuple[float, float]) -> Estimate:
        return measures.over_rows(scores, cluster=ids, bounds=bounds, seed=seed)

    estimates: dict[str, dict[str, Estimate]] = {
        "TLA702": {"faithfulness_gain": over(curves.gain * keep, (-1.0, 1.0))},
        "TLA703": {
            "randomised_similarity": over(random.similarity, (-1.0, 1.0)),
            "randomisation_effect": (
                Estimate(0.0, int(ok.sum()), UNCHANGED) if random.unchanged else over(random.ceiling - random.similarity, (-2.0, 2.0))
            ),
        },
    }
    if explainer_of(a).complete:
        bad = ~(residuals(a) <= BAD)[ok]
        share = rate(bad, cluster=None if ids is None else ids[ok]) if ok.any() else Estimate(None, 0, "every map is blank")
        estimates["TLA701"] = {"completeness_bad_share": share}
    findings = []
    for code, found in sorted(estimates.items()):
        metrics = tuple(_metric(metric, estimate, name, policy.rules.confidence) for metric, estimate in found.items())
        findings.append(
            judge(code, "", "explanations", "high", Measurement(summary="", metrics=metrics), policy, today=datetime.date(2000, 1, 1))
        )
    state, text = gate_of(name, findings, additive=explainer_of(a).complete)
    n, least = int(ok.sum()), policy.rules.min_n
    if state == "not_checked" and n < least:
        known = {m: e.value for found in estimates.values() for m, e in found.items() if e.value is not None}
        said = [f"{words} {known[m]:+.2f}".replace("-", "−") for m, words in _WORDS.items() if m in known]
        return Stamp(state=state, text="; ".join([f"reliability not shown (n = {n} maps, {least} are needed to decide)", *said]))
    return Stamp(state=state, text=f"{text}; n = {n} maps")


_WORDS = {
    "faithfulness_gain": "gain over a random map",
    "randomised_similarity": "likeness to maps of scrambled weights",
    "completeness_bad_share": "share of maps that do not add up",
}


def _metric(name: str, estimate: Estimate, method: str, confidence: float) -> Metric:
    interval = None if estimate.value is None else estimate.interval(confidence)
    why = estimate.reason
    if estimate.value is not None and interval is None and why is None:
        why = "no sound interval exists for so few maps"
    return Metric(
        name=name,
        value=estimate.value,
        reason=why,
        interval=interval,
        confidence=None if interval is None else confidence,
        exact=estimate.reason is UNCHANGED,
        n={"maps": estimate.n},
        clusters=None if estimate.clusters is None else {"maps": estimate.clusters},
        slice={"method": method},
        ladder=estimate.ladder if estimate.value is not None else (),
    )
