"""May maps be believed? What maps are held against, per sample; ``assess`` stamps them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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
from tl_audit.measures import attribution as measures
from tl_audit.modality.base import Players
from tl_audit.models.model import Model

__all__ = [
    "ROAD_SHARES",
    "STEPS",
    "Curves",
    "MapCurves",
    "Randomised",
    "Ranking",
    "again",
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
RANDOM_MAPS = 5
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
    share : of the budget that is spent, and of the steps of a method that has them
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
    return run_explainer(model, inputs, same, targets, Run(seed, budget, batch_size_for(inputs.tensor, model), memo, share))


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
    """

    similarity: FloatArray
    ceiling: FloatArray
    edges: FloatArray | None
    chance: float | None
    blank: int
    first: Attribution


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
    total, done = (DRAWS + 1) * len(maps), 0
    for draw in range(DRAWS):
        copy, memo = randomised_copy(model, seed=seed, draw=draw), Memo()
        for method, a in maps.items():
            progress(done, total)
            other = again(copy, a, a.inputs, a.explained, seed=a.seed + 1 + draw, share=0.5, memo=memo)
            alike[method].append(_likeness(own[method], other))
            blank[method] += int((other.blank & ~a.blank).sum())
            first.setdefault(method, other)
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
        )
        done += 1
    return out


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
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, MapCurves]:
    """Removal curves of every method (TLA702). Methods that explain the same inputs share one pass and every mask they have in common."""
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
            rankings[f"map {method}"] = Ranking(relevance_orders(a.player_values, players, key=(*key, "ties"), ids=ids), STEPS)
            for draw, random in enumerate(random_maps(a.values, players, draws=RANDOM_MAPS, key=(*key, "random"), ids=ids)):
                values = pooled_to_players(random, players)
                rankings[f"random {draw} {method}"] = Ranking(
                    relevance_orders(values, players, key=(*key, "random ties", draw), ids=ids), ROAD_SHARES
                )
        edges = inputs.modality.edges(inputs.tensor)
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
