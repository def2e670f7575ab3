"""Kernel SHAP: Shapley values of input parts by weighted least squares over coalitions."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.attribution.base import Attribution, Inputs, Run, Targets
from tl_audit.attribution.evaluation import Quantity, evaluating
from tl_audit.attribution.game import Game
from tl_audit.attribution.maps import blank_maps, from_players, without_nonfinite
from tl_audit.attribution.reference import drawn_background, reference_of
from tl_audit.errors import ConfigError
from tl_audit.measures.sampling import generator
from tl_audit.models.model import Model

_MOST_BACKGROUND = 128


class Coalitions(NamedTuple):
    """Which coalitions are evaluated, and how much each counts.

    Attributes
    ----------
    masks : (R, d) bool, True: the player is there. Neither empty nor full: those two are the constraint
    weights : (R,) sum to 1
    pairs : (R,) number of the pair; a coalition and its complement share it
    exact : all 2^d - 2 coalitions are there
    """

    masks: NDArray[np.bool_]
    weights: NDArray[np.float64]
    pairs: NDArray[np.int64]
    exact: bool


@dataclass(frozen=True)
class KernelSHAP:
    """Signed values in units of the output (the logit, unless ``output`` says otherwise) that add up to f(x) - f(reference): the efficiency constraint is built in.

    Coalition sizes are enumerated as far as the budget goes, the rest is sampled in pairs of complements; where all 2^d
    coalitions fit, the values are exact. The reference is each sample's baseline on images; on columns a row of the background
    per coalition (the mean over the background is then the value of the empty coalition). The estimator is that of the shap
    package's KernelExplainer without its feature selection; drawn per sample from (seed, method, id) and evaluated in shared
    batches, which the package cannot do. ``standard_error``: sandwich over pairs; 0 where exact.

    Attributes
    ----------
    baseline : the input that stands for "nothing there"; None: the background, or that of the kind of data
    masking : how removed parts are filled in, instead of a baseline; None: as ``baseline``
    output : what is explained: "logit" or "probability"

    References
    ----------
    Lundberg and Lee (2017). A unified approach to interpreting model predictions. arXiv:1705.07874
    Covert and Lee (2021). Improving KernelSHAP: practical Shapley value estimation. arXiv:2012.01536
    """

    baseline: torch.Tensor | None = None
    masking: str | None = None
    output: Quantity = "logit"

    name: ClassVar[str] = "kernel_shap"
    signed: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True
    complete: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = False
    needs_space: ClassVar[bool] = False

    def __call__(self, model: Model, inputs: Inputs, targets: Targets, run: Run) -> Attribution:
        seed, budget = run.seed, run.most()
        if budget < 4:
            raise ConfigError(f"kernel_shap needs a budget of at least 4 model evaluations, not {budget}")
        reference = reference_of(inputs, self.baseline, self.masking)
        counts = inputs.players.count
        n = len(inputs.tensor)
        reference, note = drawn_background(reference, most=_MOST_BACKGROUND, seed=seed, method=self.name)
        caveats = [] if note is None else [note]
        designs, draws = [], []
        for i in range(n):
            rng = generator(seed, self.name, inputs.ids[i])
            design = coalitions(int(counts[i]), budget - 2, rng)
            if reference.shared:
                design, drawn = with_draws(design, len(reference), budget - 2, rng)
                draws.append(drawn)
            designs.append(design)
        with evaluating(model, batch_size=run.batch_size, outputs_only=budget, sample=inputs.tensor[:8]) as evaluator:
            game = Game(evaluator, inputs, targets, reference, memo=run.memo, seed=seed)
            full, empty = game.full(self.output), game.empty(self.output)
            values = game.values([d.masks for d in designs], draws if reference.shared else None, self.output)
            spent = evaluator.evaluations
        solved = [solve(d, v, empty[i], full[i]) for i, (d, v) in enumerate(zip(designs, values, strict=True))]
        errors = tuple(
            np.zeros(len(phi)) if d.exact and (not reference.shared or len(d.masks) == (2 ** d.masks.shape[1] - 2) * len(reference))
            else standard_errors(d, v, empty[i], full[i], phi)
            for i, (d, v, phi) in enumerate(zip(designs, values, solved, strict=True))
        )  # fmt: skip
        elements, players = from_players(solved, inputs.players)
        elements = without_nonfinite(elements)
        if any(len(np.unique(d.pairs)) < d.masks.shape[1] for d in designs if not d.exact):
            caveats.append("fewer pairs of coalitions than input parts: values are coarse, raise the budget")
        return Attribution(
            values=elements, player_values=players, targets=targets.index, against=targets.against, method=self.name, inputs=inputs, signed=True, seed=seed,
            budget=-(-spent // max(n, 1)), completeness=np.array([p.sum() for p in solved]) - (full - empty), standard_error=errors,
            blank=blank_maps(elements),
            params={"reference": reference.name, "output": self.output, "exact": all(d.exact for d in designs)},
            caveats=(*caveats, *sorted(evaluator.notes)),
        )  # fmt: skip


def coalitions(d: int, most: int, rng: np.random.Generator) -> Coalitions:
    """At most ``most`` coalitions of ``d`` players with Shapley kernel weights.

    All of them where 2^d - 2 fit. Else sizes 1 and d - 1, 2 and d - 2, ... are enumerated while a size's share of the
    evaluations covers it; what is left is sampled in pairs, and drawn again counts again.
    """
    if d < 2:
        return Coalitions(np.zeros((0, d), dtype=bool), np.zeros(0), np.zeros(0, dtype=np.int64), True)
    half, paired = -(-(d - 1) // 2), (d - 1) // 2
    size_weight = np.array([(d - 1) / (s * (d - s)) for s in range(1, half + 1)])
    size_weight[:paired] *= 2
    size_weight /= size_weight.sum()
    exact = d <= 30 and 2**d - 2 <= most
    masks: list[NDArray[np.bool_]] = []
    weights: list[float] = []
    pairs: list[int] = []
    left, remaining, full_sizes, pair = most, size_weight.copy(), 0, 0
    for s in range(1, half + 1):
        number = comb(d, s) * (2 if s <= paired else 1)
        if not exact and left * remaining[s - 1] / number < 1 - 1e-8:
            break
        full_sizes, left = full_sizes + 1, left - number
        if remaining[s - 1] < 1:
            remaining /= 1 - remaining[s - 1]
        weight = size_weight[s - 1] / number
        twins: dict[tuple[int, ...], int] = {}
        for members in combinations(range(d), s):
            mask = np.zeros(d, dtype=bool)
            mask[list(members)] = True
            if s <= paired:
                masks += [mask, ~mask]
                weights += [weight, weight]
                pairs += [pair, pair]
                pair += 1
                continue
            # the middle size of an even d holds its own complements
            other = tuple(int(k) for k in np.flatnonzero(~mask))
            number_of_pair = twins.pop(other, pair) if 2 * s == d else pair
            if number_of_pair == pair:
                twins[members] = pair
                pair += 1
            masks.append(mask)
            weights.append(weight)
            pairs.append(number_of_pair)
    if full_sizes < half and left > 0:
        sizes = np.arange(full_sizes + 1, half + 1)
        chance = size_weight[full_sizes:].copy()
        chance[sizes <= paired] /= 2  # each draw brings two coalitions
        drawn = rng.choice(sizes, size=4 * left, p=chance / chance.sum())
        seen: dict[bytes, int] = {}
        counts: list[float] = []
        first = len(masks)
        for s in drawn:
            if left <= 0:
                break
            mask = np.zeros(d, dtype=bool)
            mask[rng.permutation(d)[:s]] = True
            known = seen.get(mask.tobytes())
            if known is None:
                for twin in (mask, ~mask)[: 2 if s <= paired and left > 1 else 1]:
                    seen[twin.tobytes()] = len(masks)
                    masks.append(twin)
                    counts.append(1.0)
                    pairs.append(pair)
                    left -= 1
                pair += 1
            else:
                counts[known - first] += 1.0
                twin_at = seen.get((~mask).tobytes())
                if s <= paired and twin_at is not None:
                    counts[twin_at - first] += 1.0
        weights += list(size_weight[full_sizes:].sum() * np.array(counts) / np.sum(counts))
    return Coalitions(np.array(masks), np.array(weights), np.array(pairs, dtype=np.int64), exact)


def with_draws(design: Coalitions, background: int, most: int, rng: np.random.Generator) -> tuple[Coalitions, NDArray[np.int64]]:
    """A row of the background for each coalition; the same one for both of a pair. Spare evaluations give each coalition several."""
    order = rng.permutation(background)
    if len(design.masks) == 0:
        return design, np.zeros(0, dtype=np.int64)
    repeats = max(1, min(background, most // len(design.masks)))
    pairs = np.concatenate([design.pairs * repeats + r for r in range(repeats)])
    draws = np.concatenate([order[(design.pairs * repeats + r) % background] for r in range(repeats)])
    if repeats == background:
        draws = np.concatenate([np.full(len(design.masks), r) for r in range(repeats)])
    many = Coalitions(np.tile(design.masks, (repeats, 1)), np.tile(design.weights, repeats) / repeats, pairs, design.exact)
    return many, draws.astype(np.int64)


def solve(design: Coalitions, values: NDArray[np.float64], empty: float, full: float) -> NDArray[np.float64]:
    """(d,) Shapley values: weighted least squares under the constraint that they add up to full - empty."""
    d = design.masks.shape[1]
    if d == 0:
        return np.zeros(0)
    if d == 1:
        return np.array([full - empty])
    x, y = _reduced(design, values, empty, full)
    root = np.sqrt(design.weights)
    free = np.linalg.lstsq(x * root[:, None], y * root, rcond=None)[0]
    return np.append(free, (full - empty) - free.sum())


def standard_errors(
    design: Coalitions, values: NDArray[np.float64], empty: float, full: float, phi: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(d,) standard errors of sampled values: sandwich estimate with pairs of coalitions as the units."""
    d = design.masks.shape[1]
    if d < 2:
        return np.zeros(d)
    x, y = _reduced(design, values, empty, full)
    residual = y - x @ phi[:-1]
    units, code = np.unique(design.pairs, return_inverse=True)
    if len(units) <= d:
        return np.full(d, np.nan)
    score = np.zeros((len(units), d - 1))
    np.add.at(score, code, (design.weights * residual)[:, None] * x)
    bread = np.linalg.pinv((x * design.weights[:, None]).T @ x)
    cov = bread @ (score.T @ score) @ bread * len(units) / (len(units) - d + 1)
    last = cov.sum()  # the last player is what the constraint leaves
    return np.asarray(np.sqrt(np.maximum(np.append(np.diag(cov), last), 0.0)))


def _reduced(design: Coalitions, values: NDArray[np.float64], empty: float, full: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The regression with the last player taken out by the constraint."""
    z = design.masks.astype(np.float64)
    return z[:, :-1] - z[:, -1:], values - empty - z[:, -1] * (full - empty)
