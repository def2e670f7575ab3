"""What the Shapley explainers share: the two ends of the game, spread of draws, the efficiency constraint, and the Attribution they give back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tl_audit.attribution.base import Attribution, Inputs, Run, Targets
from tl_audit.attribution.evaluation import Evaluator, Quantity
from tl_audit.attribution.game import Game
from tl_audit.attribution.maps import finished, from_players

FloatArray = NDArray[np.float64]

MOST_BACKGROUND = 128
"""Rows of a background that stand for all of it: the same for every Shapley method, so that they explain the same game."""
BACKGROUND_OF = "shapley"
"""Whose generator draws those rows."""
_ROUNDING = 1e-5
_PRIOR_DRAWS = 4.0  # weight of the other players' variance, in draws


def most_background(budget: int) -> int:
    """Rows of a background for a sampling method. They are evaluated once for all samples, besides the budget of each: never more than half of it."""
    return max(1, min(MOST_BACKGROUND, budget // 2))


class Ends(NamedTuple):
    """Scores with every part and with none.

    Attributes
    ----------
    full, empty : (N,); empty is the mean over the background where rows are drawn from one
    each : (N, M) score of every row of the background, None where nothing is drawn
    """

    full: FloatArray
    empty: FloatArray
    each: FloatArray | None


def ends(game: Game, evaluator: Evaluator, targets: Targets, quantity: Quantity) -> Ends:
    full = game.full(quantity)
    rows = game.reference.rows
    if not game.reference.shared or rows is None:
        return Ends(full, game.empty(quantity), None)
    table = evaluator.all_scores(rows, quantity)
    each = np.stack([targets[np.full(len(rows), i)].of(table) for i in range(len(targets))])
    return Ends(full, each.mean(axis=1), each)


def variance_of_mean(total: FloatArray, squares: FloatArray, draws: FloatArray) -> FloatArray:
    """(d,) variance of each player's mean over its draws; NaN where no player has two.

    A variance from a handful of draws is too often too small, so that each is drawn towards their mean, which counts as four draws more
    (the moderated variance of Smyth 2004, doi:10.2202/1544-6115.1027); given is its expectation, so that intervals of 1.96 standard errors
    stay honest with few draws.

    Parameters
    ----------
    total, squares, draws : (d,) sum of a player's draws, sum of their squares, their number
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        free = np.maximum(draws - 1, 0.0)
        if free.sum() == 0:
            return np.full(len(total), np.nan)
        # scores are float32: below this spread there is nothing but their rounding, which must not decide anything
        around = np.maximum(squares - total**2 / draws, free * _ROUNDING**2 * squares.sum() / draws.sum())
        common = around.sum() / free.sum()
        return np.asarray((around + _PRIOR_DRAWS * common) / (free + _PRIOR_DRAWS - 2) / draws)


def adding_up(values: FloatArray, variance: FloatArray, gain: float) -> FloatArray:
    """The values, given that they add up to ``gain``: what is missing goes to players in proportion to their variance."""
    known = np.where(np.isfinite(variance), variance, 0.0)
    share = known / known.sum() if known.sum() > 0 else np.full(len(values), 1 / max(len(values), 1))
    return np.asarray(values + (gain - values.sum()) * share)


def assembled(
    name: str,
    inputs: Inputs,
    targets: Targets,
    run: Run,
    evaluator: Evaluator,
    found: Ends,
    values: Sequence[FloatArray],
    errors: Sequence[FloatArray] | None,
    params: Mapping[str, Any],  # Any: plain JSON values
    caveats: Sequence[str],
) -> Attribution:
    """The Attribution of values per player."""
    return finished(
        name, inputs, targets, run, from_players(values, inputs.players), signed=True, spent=evaluator.evaluations,
        params={**params, **evaluator.facts}, caveats=(*caveats, *sorted(evaluator.notes)),
        standard_error=None if errors is None else tuple(errors), completeness=np.array([v.sum() for v in values]) - (found.full - found.empty),
    )  # fmt: skip


def not_settled(number: int, n: int, convergence: float | None) -> list[str]:
    """What a reader must know where intervals stayed wider than was asked."""
    if convergence is None or number == 0:
        return []
    return [f"{number} of {n} sample(s): the 95 % intervals are wider than {convergence:g} of the values' range; raise the budget"]
