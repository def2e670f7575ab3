"""What the gradient explainers share: slopes of a score at an input or at a layer, nested quadrature on [0, 1], noise by sample, sums by sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tl_audit.attribution.base import Inputs, Targets
from tl_audit.attribution.convergence import rounds, settled, unsettled
from tl_audit.attribution.evaluation import Evaluator, Quantity, gradient, lost_where
from tl_audit.attribution.layers import Grid, first_tensor, grid_of, named_layer, with_first
from tl_audit.attribution.maps import PlayerValues, from_elements
from tl_audit.errors import ConfigError, ModelError
from tl_audit.measures.sampling import generator
from tl_audit.modality.base import Players

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Channels = Literal["max", "sum", "mean", "l2"]
CHANNELS: tuple[Channels, ...] = ("max", "sum", "mean", "l2")

_NUMBERS_AT_ONCE = 2**26  # of sums by sample held at once: 256 MB in single precision
_NOISE_AT_ONCE = 2**22


# ---------------------------------------------------------------- where slopes are taken


@dataclass(frozen=True)
class Site:
    """Where a score's slope is taken: at the input, or at the output of one layer.

    Attributes
    ----------
    evaluator : the model
    layer : module path; None: the input
    grid : how the layer's output is read as a map of places; None: it is a list of units
    """

    evaluator: Evaluator
    layer: str | None = None
    grid: Grid | None = None
    units: int = 0

    @property
    def reason(self) -> str | None:
        if self.layer is None:
            return None
        if self.grid is None:
            return f"asked for ({self.units} units)"
        tokens = ", leading tokens shared out evenly or left out" if self.grid.prefix else ""
        return f"asked for ({self.grid.height} x {self.grid.width} places, enlarged to the input{tokens})"

    def read(
        self, x: torch.Tensor, targets: Targets, quantity: Quantity, at: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(R, ...) values at the site and (R,) float64 what is explained, without gradients. ``at``: as in ``slopes``."""
        with torch.no_grad():
            if self.layer is None:
                values = x if at is None else at
                return values, self.evaluator.score(values.clone(), targets, quantity).double()
            seen: list[torch.Tensor] = []
            with self._hooked(seen, at):
                score = self.evaluator.score(x, targets, quantity).double()
            return _only(seen, self.layer), score

    def slopes(
        self, x: torch.Tensor, targets: Targets, quantity: Quantity, at: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(R,) scores, (R, ...) values at the site and (R, ...) d score / d value. One forward and one backward pass per row.

        Parameters
        ----------
        x : (R, ...) prepared rows
        at : (R, ...) values put in place of those at the site; None: the values that ``x`` has there
        """
        with torch.enable_grad():
            score, leaf = self.scored(x, targets, quantity, at)
            slope = lost_where(gradient(score, leaf), score)
        self.evaluator.evaluations += len(x)
        return score.detach(), leaf.detach(), slope

    def scored(
        self, x: torch.Tensor, targets: Targets, quantity: Quantity, at: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(R,) scores, and the values at the site that they are differentiable in."""
        if self.layer is None:
            leaf = (x if at is None else at).detach().requires_grad_(True)
            return self.evaluator.score(leaf.clone(), targets, quantity), leaf  # cloned: a first step may work in place
        seen: list[torch.Tensor] = []
        with self._hooked(seen, at):
            score = self.evaluator.score(x, targets, quantity)
        return score, _only(seen, self.layer)

    @contextmanager
    def _hooked(self, seen: list[torch.Tensor], at: torch.Tensor | None) -> Iterator[None]:
        def make_leaf(module: nn.Module, args: Any, output: Any) -> Any:  # Any: whatever a module takes and returns
            tensor = first_tensor(output)
            if tensor is None:
                return None
            leaf = (tensor if at is None else at).detach().requires_grad_(torch.is_grad_enabled())
            seen.append(leaf)
            return with_first(output, leaf.clone())

        handle = named_layer(self.evaluator.net, str(self.layer)).register_forward_hook(make_leaf)
        try:
            yield
        finally:
            handle.remove()

    def maps(self, values: torch.Tensor, inputs: Inputs, *, channels: Channels = "sum") -> torch.Tensor:
        """(R, *places) values of each place of the site: the channels summed, or reduced otherwise."""
        if self.layer is None:
            return reduced(values, inputs.players.assignment.ndim, channels)
        if self.grid is None:
            return values.flatten(1)
        shown = reduced(self.grid.maps(values), 3, channels)
        if not self.grid.prefix or channels != "sum":
            return shown
        # leading tokens lie nowhere: what they got is shared evenly, so that sums stay whole
        return shown + values[:, : self.grid.prefix].flatten(1).sum(dim=1)[:, None, None] / (self.grid.height * self.grid.width)

    def shown(self, maps: torch.Tensor, inputs: Inputs, activations: torch.Tensor | None = None) -> tuple[FloatArray, PlayerValues, Inputs]:
        """Maps and player values of values per place (N, *places), and the inputs they speak of: those given, or a layer's units."""
        maps = maps.detach().double().cpu()
        if self.layer is None:
            return *from_elements(maps, inputs.players), inputs
        if self.grid is not None:
            return *from_elements(enlarged(maps, inputs.tensor.shape[-2:]), inputs.players), inputs
        units = inputs if activations is None else replace(inputs, tensor=activations.detach().flatten(1).float().cpu(), background=None)
        units = replace(units, players=unit_players(len(maps), self.units))
        return *from_elements(maps, units.players), units


def site_of(evaluator: Evaluator, inputs: Inputs, layer: str | None) -> Site:
    """The site asked for. A layer is run once, on the first sample, to see what it gives.

    Raises
    ------
    ModelError : no such layer, one that is not run or gives no floating-point tensor, one that is run more than once
    """
    if layer is None:
        return Site(evaluator)
    one, _ = Site(evaluator, layer).read(evaluator.prepare(inputs.tensor[:1]), Targets(np.zeros(1, dtype=np.int64)), "logit")
    if one.ndim < 2:
        raise ModelError(f"layer {layer!r} gives {tuple(one.shape)}: expected (B, units) or a map of places (B, C, h, w)")
    grid = grid_of(one.shape, (int(inputs.tensor.shape[-2]), int(inputs.tensor.shape[-1])), 1) if inputs.tensor.ndim == 4 else None
    return Site(evaluator, layer, grid, int(one[0].numel()))


def _only(seen: Sequence[torch.Tensor], layer: str | None) -> torch.Tensor:
    if not seen:
        raise ModelError(f"layer {layer!r} is not run, or gives no floating-point tensor: choose another with layer=...")
    if len(seen) > 1:
        raise ModelError(
            f"layer {layer!r} is run {len(seen)} times in one pass, so that it has no one output: choose another with layer=..."
        )
    return seen[0]


def unit_players(n: int, units: int) -> Players:
    """One part per unit of a layer."""
    names = tuple(f"unit {k}" for k in range(units))
    return Players(torch.arange(units).expand(n, units).clone(), np.full(n, units, dtype=np.int64), names, "columns")


def reduced(values: torch.Tensor, ndim: int, channels: Channels = "sum") -> torch.Tensor:
    """Values whose channels, where there are any beside the ``ndim`` axes of places, became one."""
    if values.ndim <= ndim:
        return values
    if channels == "sum":
        return values.sum(dim=1)
    if channels == "mean":
        return values.mean(dim=1)
    return values.amax(dim=1) if channels == "max" else values.square().sum(dim=1).sqrt()


def wide(kind: torch.dtype) -> torch.dtype:
    """The type in which sums are kept: single precision at least."""
    return torch.float64 if kind == torch.float64 else torch.float32


def checked_channels(channels: str) -> Channels:
    for known in CHANNELS:
        if channels == known:
            return known
    raise ConfigError(f"channels is {channels!r}: expected one of {', '.join(CHANNELS)}")


def enlarged(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Maps (N, h, w) enlarged to (N, *size): bilinear, and each cell's value is shared out whole, so that sums stay what they were."""
    down, across = (_sharing(maps.shape[k + 1], int(size[k])).to(maps) for k in range(2))
    return down @ maps @ across.T


def _sharing(cells: int, side: int) -> torch.Tensor:
    weights = torch.nn.functional.interpolate(torch.eye(cells, dtype=torch.float64)[None], size=side, mode="linear", align_corners=False)[
        0
    ].T
    return weights / weights.sum(dim=0, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)


# ---------------------------------------------------------------- many rows of one sample


def groups(n: int, numbers: int) -> Iterator[slice]:
    """Samples of which sums are held at once, ``numbers`` each."""
    step = max(1, _NUMBERS_AT_ONCE // max(1, numbers))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def add_by_sample(sums: torch.Tensor, values: torch.Tensor, samples: IntArray, weights: torch.Tensor) -> None:
    """``sums[l, s] += sum of weights[r, l] * values[r]`` over the rows r of sample s. A row with values that are not finite makes its sample NaN.

    Parameters
    ----------
    sums : (L, N, P), changed
    values : (R, P); ``samples`` (R,) their sample, sorted; ``weights`` (R, L)
    """
    known, place = np.unique(samples, return_inverse=True)
    rows = torch.arange(len(samples), device=sums.device)
    spread = sums.new_zeros((weights.shape[1], len(known), len(samples)))
    spread[:, torch.as_tensor(place, device=sums.device), rows] = weights.to(sums).T
    values = values.to(sums)
    lost = ~torch.isfinite(values.sum(dim=1))
    if bool(lost.any()):  # in a product of matrices 0 x NaN would reach the other samples
        values = values.masked_fill(lost[:, None], 0.0)
        sums[:, torch.as_tensor(samples, device=sums.device)[lost]] = torch.nan
    added = (spread.flatten(0, 1) @ values).reshape(weights.shape[1], len(known), -1)
    sums.index_add_(1, torch.as_tensor(known, device=sums.device), added)


def pooled_rows(values: torch.Tensor, players: Players, samples: IntArray) -> torch.Tensor:
    """(R, most players) float64 sums over each part, of values per place (R, P) of these samples."""
    at = torch.as_tensor(samples, device=players.assignment.device)
    parts = players.assignment[at].flatten(1).to(values.device)
    out = values.new_zeros((len(values), int(players.count.max(initial=1))), dtype=torch.float64)
    return out.scatter_add_(1, parts, values.double())


@dataclass
class Noise:
    """Standard normal numbers for draw d of sample s, the same whatever else is asked for. Draws 2k and 2k + 1 are opposite.

    Made on the model's device, in blocks of draws: another kind of device gives other numbers.
    """

    seed: int
    method: str
    ids: tuple[str, ...]
    shape: torch.Size
    device: torch.device
    dtype: torch.dtype
    blocks: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)

    @property
    def pairs(self) -> int:
        """In one block."""
        return max(1, min(16, _NOISE_AT_ONCE // max(1, self.shape.numel())))

    def rows(self, samples: IntArray, draws: IntArray) -> torch.Tensor:
        """(R, *shape)."""
        out = torch.empty((len(samples), *self.shape), device=self.device, dtype=self.dtype)
        pair = draws // 2
        keys = np.stack([samples, pair // self.pairs], axis=1)
        wanted, place = np.unique(keys, axis=0, return_inverse=True)
        self.blocks = {k: v for k, v in self.blocks.items() if k in {(int(a), int(b)) for a, b in wanted}}
        for number, (sample, block) in enumerate(wanted):
            rows = np.flatnonzero(place.reshape(-1) == number)
            out[torch.as_tensor(rows, device=self.device)] = self._block(int(sample), int(block))[
                torch.as_tensor(pair[rows] % self.pairs, device=self.device)
            ]
        sign = torch.as_tensor(1.0 - 2.0 * (draws % 2), device=self.device, dtype=self.dtype)
        return out * sign.reshape(-1, *[1] * len(self.shape))

    def _block(self, sample: int, block: int) -> torch.Tensor:
        if (sample, block) not in self.blocks:
            seed = int(generator(self.seed, self.method, self.ids[sample], "noise", block).integers(2**63 - 1))
            source = torch.Generator(device=self.device).manual_seed(seed)
            made = torch.randn((self.pairs, *self.shape), generator=source, device=self.device, dtype=torch.float32)
            self.blocks[sample, block] = made.to(self.dtype)
        return self.blocks[sample, block]


def ranges(x: torch.Tensor) -> torch.Tensor:
    """(N, 1, ...) largest less smallest number of each sample."""
    flat = x.flatten(1)
    return (flat.amax(dim=1) - flat.amin(dim=1)).reshape(-1, *[1] * (x.ndim - 1))


def mean_and_error(terms: FloatArray, size: int) -> tuple[FloatArray, FloatArray]:
    """Mean over draws (rows), and its standard error from the means of blocks of ``size`` draws; NaN with fewer than two blocks."""
    blocks = len(terms) // size
    if blocks < 2:
        return terms.mean(axis=0), np.full(terms.shape[1], np.nan)
    means = terms[: blocks * size].reshape(blocks, size, -1).mean(axis=1)
    return terms.mean(axis=0), np.asarray(means.std(axis=0, ddof=1) / np.sqrt(blocks))


# ---------------------------------------------------------------- means over draws

Contributions = Callable[[IntArray, IntArray], tuple[torch.Tensor, FloatArray | None]]
"""(samples (R,), draws (R,)) -> values per place (R, P), and numbers (R,) whose mean is known to be 0, or None."""


@dataclass(frozen=True)
class Means:
    """Means over draws. ``maps`` (N, P); ``errors`` standard errors per part; ``used`` (N,) draws; ``waiting``: samples that did not converge."""

    maps: torch.Tensor
    errors: tuple[FloatArray, ...]
    used: IntArray
    waiting: int

    def caveats(self) -> list[str]:
        return unsettled(self.waiting, len(self.used))


def means_over_draws(
    evaluator: Evaluator,
    inputs: Inputs,
    contributions: Contributions,
    *,
    draws: int,
    block: int,
    first: int,
    convergence: float | None,
) -> Means:
    """Means of contributions over draws, in rounds until a sample's intervals are narrow enough; draws of all samples share full batches.

    Where a draw comes with a number of known mean 0, its part of the mean's error is taken out by regression on that number.

    Parameters
    ----------
    draws : most draws per sample, a multiple of ``block``: the draws that are not independent of each other
    first : draws before convergence is asked for the first time
    """
    n, places = len(inputs), inputs.players.assignment[0].numel()
    terms = np.full((n, draws, int(inputs.players.count.max(initial=1))), np.nan)
    controls = np.zeros((n, draws))
    used = np.zeros(n, dtype=np.int64)
    waiting, maps = 0, []

    def parts(i: int) -> tuple[FloatArray, FloatArray]:
        mine, known = terms[i, : used[i], : int(inputs.players.count[i])], controls[i, : used[i]]
        slope = _regression(mine.T @ known, mine.sum(axis=0), known)
        return mean_and_error(mine - known[:, None] * slope, block)

    for group in groups(n, 2 * places):
        sums = torch.zeros((2, group.stop - group.start, places), device=evaluator.device, dtype=wide(inputs.tensor.dtype))
        active, done = np.arange(group.start, group.stop), 0
        for size in rounds(draws, first=first, convergence=convergence):
            size -= size % block
            sample, draw = np.repeat(active, size - done), np.tile(np.arange(done, size), len(active))

            def batch(
                rows: slice, sums: torch.Tensor = sums, start: int = group.start, sample: IntArray = sample, draw: IntArray = draw
            ) -> None:
                who, which = sample[rows], draw[rows]
                found, known = contributions(who, which)
                terms[who, which] = pooled_rows(found, inputs.players, who).cpu().numpy()
                if known is not None:
                    controls[who, which] = known
                weights = np.stack([np.ones(len(who)), controls[who, which]], axis=1)
                add_by_sample(sums, found, who - start, torch.as_tensor(weights))

            evaluator.each_batch(len(sample), batch)
            used[active] = done = size
            if convergence is not None:
                share = convergence
                active = np.array([i for i in active if not settled(*parts(int(i)), share)], dtype=np.int64)
            if not len(active):
                break
        waiting += 0 if convergence is None else len(active)
        known = controls[group]
        count = torch.as_tensor(used[group], device=sums.device, dtype=sums.dtype)[:, None]
        total, product = sums[0], sums[1]
        mean = torch.as_tensor(known.sum(axis=1) / used[group], device=sums.device, dtype=sums.dtype)[:, None]
        spread = torch.as_tensor(((known**2).sum(axis=1)) / used[group], device=sums.device, dtype=sums.dtype)[:, None] - mean**2
        slope = torch.where(spread > 0, (product / count - total / count * mean) / spread, torch.zeros_like(product))
        maps.append((total / count - slope * mean).cpu())
    return Means(torch.cat(maps), tuple(parts(i)[1] for i in range(n)), used, waiting)


def _regression(products: FloatArray, sums: FloatArray, known: FloatArray) -> FloatArray:
    """Slopes of terms on the known numbers."""
    count = len(known)
    spread = float((known**2).mean() - known.mean() ** 2)
    return (products / count - sums / count * known.mean()) / spread if spread > 0 else np.zeros_like(sums)
