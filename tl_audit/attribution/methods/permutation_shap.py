"""Permutation SHAP: Shapley values of input parts as their mean gain over random orders of arrival, each order also run backwards."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from math import factorial
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
_ORDERS = 4  # at least, where the budget is not given
_FIRST_ORDERS = 3  # before the first look at convergence: below, nothing is known of the spread


@dataclass(frozen=True)
class PermutationSHAP:
    """Signed values in units of the output that add up to f(x) - f(reference).

    The algorithm is that of the shap package's PermutationExplainer: parts arrive one by one in a random order, then leave in the same
    order, and a part's value is the mean of its gains; 2 (d - 1) evaluations an order, besides the two ends that all share. It is
    exact for models with interactions of two parts at most, whatever the number of orders, and where all d! orders fit (with every row of a
    background). It is written anew because the
    package draws from the global generator and evaluates one sample at a time; here each sample draws from (seed, method, id), and
    samples share batches. On columns each order has one row of the background, and what these rows miss of the background's mean is
    given to the parts in proportion to their variance. ``standard_error``: from the spread over orders; NaN from one order alone.

    Attributes
    ----------
    baseline : the input that stands for "nothing there"; None: the background, or that of the kind of data
    masking : how removed parts are filled in, instead of a baseline; None: as ``baseline``
    output : what is explained: "logit" or "probability"
    convergence : stop when the largest 95 % half-width of a sample's values is at most this share of their range; None: spend the budget

    References
    ----------
    Castro, Gómez and Tejada (2009). Polynomial calculation of the Shapley value based on sampling. doi:10.1016/j.cor.2008.04.004
    Mitchell et al. (2022). Sampling permutations for Shapley value estimation. arXiv:2104.12199
    """

    baseline: torch.Tensor | None = None
    masking: str | None = None
    output: Quantity = "logit"
    convergence: float | None = None

    name: ClassVar[str] = "permutation_shap"
    signed: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True
    complete: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = False
    needs_space: ClassVar[bool] = False

    def __call__(self, model: Model, inputs: Inputs, targets: Targets, run: Run) -> Attribution:
        counts, n = inputs.players.count, len(inputs)
        parts = int(counts.max(initial=1))
        budget = run.most(max(DEFAULT_BUDGET, _ORDERS * _cost(parts) + 2))
        if budget < _cost(parts) + 2:
            raise ConfigError(
                f"permutation_shap needs {_cost(parts) + 2} model evaluations for one order of {parts} input parts, and the budget is {budget}: raise it"
            )
        reference, note = drawn_background(
            reference_of(inputs, self.baseline, self.masking), most=most_background(budget), seed=run.seed, method=BACKGROUND_OF
        )
        caveats = [] if note is None else [note]
        rows_there = len(reference) if reference.shared else int(reference.kind == "fixed")
        orders, draws, complete = [], [], []
        for i, sample in enumerate(inputs.ids):
            rng, d = generator(run.seed, self.name, sample), int(counts[i])
            own, drawn_rows, whole = _orders(d, rows_there, (budget - 2) // max(_cost(d), 1), rng)
            orders.append(own)
            complete.append(whole)
            draws.append(drawn_rows if reference.shared else None)
        gains: list[FloatArray] = [np.zeros((0, int(d))) for d in counts]
        values: list[FloatArray] = [np.zeros(int(d)) for d in counts]
        errors: list[FloatArray] = [np.zeros(int(d)) for d in counts]
        active = np.arange(n)
        done = np.zeros(n, dtype=np.int64)
        with evaluating(model, batch_size=run.batch_size, outputs_only=budget, sample=inputs.tensor[:8]) as evaluator:
            game = Game(evaluator, inputs, targets, reference, memo=run.memo, seed=run.seed)
            found = ends(game, evaluator, targets, self.output)
            for size in rounds(budget, first=_FIRST_ORDERS * _cost(parts) + 2, convergence=self.convergence):
                until = done.copy()
                for i in active.tolist():
                    until[i] = max(done[i], min((size - 2) // max(_cost(int(counts[i])), 1), len(orders[i])))
                keep, drawn = [], []
                for i, own in enumerate(orders):
                    now = own[done[i] : until[i]]
                    keep.append(_masks(now))
                    rows = draws[i]
                    drawn.append(
                        np.zeros(0, dtype=np.int64) if rows is None else np.repeat(rows[done[i] : until[i]], _cost(int(counts[i])))
                    )
                scores = game.values(keep, drawn if reference.shared else None, self.output)
                for i in active.tolist():
                    fresh = slice(int(done[i]), int(until[i]))
                    rows = draws[i]
                    empty = (
                        np.full(until[i] - done[i], found.empty[i]) if found.each is None or rows is None else found.each[i][rows[fresh]]
                    )
                    gains[i] = np.concatenate([gains[i], _gains(orders[i][fresh], scores[i], empty, float(found.full[i]))])
                    values[i], errors[i] = _summary(
                        gains[i], float(found.full[i] - found.empty[i]), complete[i] and until[i] == len(orders[i])
                    )
                done = until
                if self.convergence is not None:
                    share = self.convergence
                    active = np.array([i for i in active if not settled(values[i], errors[i], share)], dtype=np.int64)
                    if not len(active):
                        break
            if any(np.isnan(e).any() for e in errors):
                caveats.append("one order of the parts alone: no standard error, raise the budget")
            caveats += not_settled(len(active), n, self.convergence)
            params = {"reference": reference.name, "output": self.output, "orders": int(done.min()) if n else 0}
            return assembled(self.name, inputs, targets, run, evaluator, found, values, errors, params, caveats)


def _cost(d: int) -> int:
    """Evaluations of one order, there and back, besides the two ends."""
    return 2 * max(d - 1, 0)


def _orders(d: int, rows: int, most: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
    """Orders (P, d): who arrives first, second, ...; the row of the background that goes with each (P,); and whether that is every order with every row.

    Of each pair of reversed orders one is enough. ``rows``: 1 where the fill is fixed, 0 where each is made anew, so that nothing is ever complete.
    """
    if d < 2:
        return np.zeros((1, d), dtype=np.int64), np.zeros(1, dtype=np.int64), True
    if rows and d <= 8 and rows * (factorial(d) // 2) <= most:
        every = np.array(list(permutations(range(d))), dtype=np.int64)
        every = every[every[:, 0] < every[:, -1]]
        # shuffled: where convergence stops early, those asked are a sample of all
        order, row = np.divmod(rng.permutation(rows * len(every)), rows)
        return every[order], row, True
    drawn = rng.permuted(np.tile(np.arange(d, dtype=np.int64), (most, 1)), axis=1)
    return drawn, rng.permutation(rows)[np.arange(most) % rows] if rows > 1 else np.zeros(most, dtype=np.int64), False


def _masks(orders: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(P x 2 (d - 1), d): the parts there after 1 .. d - 1 arrivals, then after 1 .. d - 1 departures."""
    d = orders.shape[1]
    if d < 2:
        return np.zeros((0, d), dtype=bool)
    place = np.argsort(orders, axis=1)
    there = place[:, None, :] < np.arange(1, d)[:, None]  # (P, d - 1, d)
    return np.concatenate([there, ~there], axis=1).reshape(-1, d)


def _gains(orders: NDArray[np.int64], scores: FloatArray, empty: FloatArray, full: float) -> FloatArray:
    """(P, d) mean of each part's gain on arriving and its loss on leaving, per order."""
    p, d = orders.shape
    steps = scores.reshape(p, 2, max(d - 1, 0))
    first, last = empty[:, None], np.full((p, 1), full)
    arriving = np.diff(np.concatenate([first, steps[:, 0], last], axis=1), axis=1)
    leaving = -np.diff(np.concatenate([last, steps[:, 1], first], axis=1), axis=1)
    out = np.empty((p, d))
    np.put_along_axis(out, orders, ((arriving + leaving) / 2)[:, :d], axis=1)
    return out


def _summary(gains: FloatArray, gain: float, complete: bool) -> tuple[FloatArray, FloatArray]:
    p, d = gains.shape
    if d < 2:
        return np.full(d, gain), np.zeros(d)
    mean = gains.mean(axis=0)
    if complete:
        return mean, np.zeros(d)
    variance = variance_of_mean(gains.sum(axis=0), (gains**2).sum(axis=0), np.full(d, float(p)))
    return adding_up(mean, variance, gain), np.sqrt(variance)
