"""Sampling SHAP: Shapley values of input parts, each from its own random draws, most draws where the spread is largest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.attribution.base import DEFAULT_BUDGET, Attribution, Inputs, Run, Targets
from tl_audit.attribution.convergence import rounds, settled
from tl_audit.attribution.evaluation import Quantity, evaluating
from tl_audit.attribution.game import Game
from tl_audit.attribution.reference import drawn_background, reference_of
from tl_audit.attribution.shapley import BACKGROUND_OF, adding_up, assembled, ends, most_background, not_settled, variance_of_mean
from tl_audit.errors import ConfigError
from tl_audit.measures.sampling import generator
from tl_audit.models.model import Model

FloatArray = NDArray[np.float64]
_FIRST_DRAWS = 4  # of each part, before the first look at convergence


@dataclass
class _Tally:
    """Draws of one sample so far, per part: their sum, the sum of their squares, their number.

    ``cost``: evaluations of one draw, 4 with its mirror image and 2 without.
    """

    rng: np.random.Generator
    cost: int
    total: FloatArray
    squares: FloatArray
    draws: FloatArray
    spent: int = 2
    rows: int = 0
    values: FloatArray = field(default_factory=lambda: np.zeros(0))
    errors: FloatArray = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class SamplingSHAP:
    """Signed values in units of the output that add up to f(x) - f(reference).

    For each part and draw, a random order decides who was there before it; its gain is the score with it minus that without it. Where
    the budget allows two draws for each part, every order is also run backwards. After a first round with equally many draws for all parts, the
    next ones go where the spread is (Neyman's allocation, as Strumbelj and Kononenko adapt it). Sums of sampled values miss
    f(x) - f(reference); what is missing is given to the parts in proportion to their variance, as shap's SamplingExplainer does.
    On columns each draw has a row of the background. ``standard_error``: from the spread of the draws, given the sum; NaN from one draw each.
    Draws that follow the spread, and the sum, bias values by a part of their standard error. Of all Shapley methods here this one
    needs the most evaluations for one error.

    Attributes
    ----------
    baseline : the input that stands for "nothing there"; None: the background, or that of the kind of data
    masking : how removed parts are filled in, instead of a baseline; None: as ``baseline``
    output : what is explained: "logit" or "probability"
    convergence : stop when the largest 95 % half-width of a sample's values is at most this share of their range; None: spend the budget

    References
    ----------
    Strumbelj and Kononenko (2014). Explaining prediction models and individual predictions with feature contributions. doi:10.1007/s10115-013-0679-x
    """

    baseline: torch.Tensor | None = None
    masking: str | None = None
    output: Quantity = "logit"
    convergence: float | None = None

    name: ClassVar[str] = "sampling_shap"
    signed: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True
    complete: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = False
    needs_space: ClassVar[bool] = False

    def __call__(self, model: Model, inputs: Inputs, targets: Targets, run: Run) -> Attribution:
        counts, n = inputs.players.count, len(inputs)
        parts = int(counts.max(initial=1))
        budget = run.most(max(DEFAULT_BUDGET, 16 * parts + 2))
        if budget < 2 * parts + 2:
            raise ConfigError(
                f"sampling_shap needs {2 * parts + 2} model evaluations for one draw of each of {parts} input parts, and the budget is {budget}: raise it"
            )
        reference, note = drawn_background(
            reference_of(inputs, self.baseline, self.masking), most=most_background(budget), seed=run.seed, method=BACKGROUND_OF
        )
        caveats = [] if note is None else [note]
        tallies = [
            _Tally(generator(run.seed, self.name, sample), 4 if budget >= 8 * d + 2 else 2, np.zeros(d), np.zeros(d), np.zeros(d))
            for sample, d in zip(inputs.ids, counts.tolist(), strict=True)
        ]
        order = [t.rng.permutation(len(reference) if reference.shared else 1) for t in tallies]
        active = np.arange(n)
        with evaluating(model, batch_size=run.batch_size, outputs_only=budget, sample=inputs.tensor[:8]) as evaluator:
            game = Game(evaluator, inputs, targets, reference, memo=run.memo, seed=run.seed)
            found = ends(game, evaluator, targets, self.output)
            first = max(budget // 2, 1) if self.convergence is None else _FIRST_DRAWS * 4 * parts + 2
            for size in (first, budget) if self.convergence is None else rounds(budget, first=first, convergence=self.convergence):
                wanted = set(active.tolist())
                keep, drawn, who = [], [], []
                for i, tally in enumerate(tallies):
                    mine = _allotted(tally, size) if i in wanted else np.zeros(0, dtype=np.int64)
                    who.append(mine)
                    keep.append(_masks(mine, len(tally.total), tally.cost, tally.rng))
                    rows = order[i][(tally.rows + np.arange(len(mine))) % len(order[i])]
                    drawn.append(np.tile(rows, tally.cost))
                scores = game.values(keep, drawn if reference.shared else None, self.output)
                for i in active.tolist():
                    _add(tallies[i], who[i], scores[i], float(found.full[i] - found.empty[i]))
                if self.convergence is not None:
                    share = self.convergence
                    active = np.array([i for i in active if not settled(tallies[i].values, tallies[i].errors, share)], dtype=np.int64)
                    if not len(active):
                        break
            if any(np.isnan(t.errors).any() for t in tallies):
                caveats.append("one draw of each part alone: no standard error, raise the budget")
            caveats += not_settled(len(active), n, self.convergence)
            params = {
                "reference": reference.name,
                "output": self.output,
                "draws": int(min((t.draws.min(initial=np.inf) for t in tallies), default=0)),
            }
            return assembled(
                self.name, inputs, targets, run, evaluator, found, [t.values for t in tallies], [t.errors for t in tallies], params, caveats
            )


def _allotted(tally: _Tally, size: int) -> NDArray[np.int64]:
    """(K,) the part of each next draw, until ``size`` evaluations: every part once or more at first, then in proportion to the spread."""
    d = len(tally.total)
    number = max(size - tally.spent, 0) // tally.cost
    if d < 2 or number == 0:
        return np.zeros(0, dtype=np.int64)
    if not tally.draws.any():
        return np.repeat(np.arange(d), max(number // d, 1))
    share = np.full(d, 1 / d)
    spread = np.sqrt(np.maximum(tally.squares / tally.draws - (tally.total / tally.draws) ** 2, 0.0))
    if tally.draws.min() > 1 and np.isfinite(spread).all() and spread.max() > 0:
        # in steps, so that the last bits of a score (another batch size) do not move draws from part to part; no part is given up
        steps = np.exp2(np.round(4 * np.log2(np.maximum(spread / spread.max(), 1 / 16))) / 4)
        share = steps / steps.sum()
    # what each part should have had of all draws so far and these, less what it had
    lacking = np.maximum(share * (tally.draws.sum() + number) - tally.draws, 0.0)
    exact = lacking / lacking.sum() * number if lacking.sum() > 0 else np.full(d, number / d)
    whole = np.floor(exact).astype(np.int64)
    whole[np.argsort(whole - exact, kind="stable")[: number - int(whole.sum())]] += 1
    return np.repeat(np.arange(d), whole)


def _masks(who: NDArray[np.int64], d: int, cost: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(cost x K, d): those who came before the part, the same with it; then, of the reversed order, likewise."""
    place = rng.random((len(who), d))
    own = np.arange(d) == who[:, None]
    at = place[np.arange(len(who)), who][:, None] if len(who) else np.zeros((0, 1))
    before, after = place < at, place > at
    masks = [before, before | own] if cost == 2 else [before, before | own, after, after | own]
    return np.concatenate(masks)


def _add(tally: _Tally, who: NDArray[np.int64], scores: FloatArray, gain: float) -> None:
    d = len(tally.total)
    if d < 2:
        tally.values, tally.errors = np.full(d, gain), np.zeros(d)
        return
    by = scores.reshape(tally.cost, len(who))
    gains = by[1] - by[0] if tally.cost == 2 else (by[1] - by[0] + by[3] - by[2]) / 2
    tally.total += np.bincount(who, weights=gains, minlength=d)
    tally.squares += np.bincount(who, weights=gains**2, minlength=d)
    tally.draws += np.bincount(who, minlength=d)
    tally.spent += tally.cost * len(who)
    tally.rows += len(who)
    mean = tally.total / tally.draws
    variance = variance_of_mean(tally.total, tally.squares, tally.draws)
    tally.values = adding_up(mean, variance, gain)
    whole = variance.sum()
    # the sum is known: of d independent means, what each contributes to its variance is taken off
    tally.errors = np.sqrt(variance * (1 - variance / whole)) if whole > 0 or np.isnan(whole) else np.zeros(d)
