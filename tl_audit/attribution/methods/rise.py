"""RISE: what the output is, on average, where a random mask lets an input part through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.attribution.base import Attribution, Inputs, Run, Targets
from tl_audit.attribution.convergence import rounds, settled, unsettled
from tl_audit.attribution.evaluation import Evaluator, Quantity, evaluating
from tl_audit.attribution.game import Game
from tl_audit.attribution.maps import finished, from_elements, from_players
from tl_audit.attribution.reference import Reference, reference_of
from tl_audit.errors import ConfigError
from tl_audit.measures.sampling import generator
from tl_audit.modality.base import Players
from tl_audit.models.model import Model

FloatArray = NDArray[np.float64]
_FIRST = 64  # evaluations before the first look at convergence
_PLACES_AT_ONCE = 4_000_000  # of masks held at once
_MADE_AT_ONCE = 64  # masked inputs filled in together; fixed, so that a fill's noise does not depend on the batch size
_QUANTITIES: tuple[Quantity, ...] = ("logit", "probability")


@dataclass(frozen=True)
class RISE:
    """Signed: the mean output (a probability, unless ``output`` says otherwise) where a place is kept, less the mean output over all masks.

    That is RISE's map without its constant, so that what has no effect gets 0. Masks come in pairs, one the negative of the other,
    which takes the mean output out of every estimate and leaves the same expectation with less spread. On inputs that lie in space a
    mask is a random grid of 0 and 1, enlarged smoothly and shifted at random; a mask's value of 0.3 shows 30 % of the input and 70 %
    of what stands for nothing. The map gives each place its value spread over one cell of the grid: sums over a part are in units
    of the output. On named parts each part is kept or removed with equal chance.

    Attributes
    ----------
    cells : cells of the grid along each side
    baseline : the input that stands for "nothing there"; None: the background of named parts, else that of the kind of data
    masking : what shows where a mask hides, instead of a baseline; fills made from what stays take what is kept by more than half
    output : "probability" (RISE's own) or "logit"
    convergence : stop adding masks when the largest 95 % half-width of a sample's values is at most this share of their range

    References
    ----------
    Petsiuk, Das and Saenko (2018). RISE: randomized input sampling for explanation of black-box models. arXiv:1806.07421
    """

    cells: int = 7
    baseline: torch.Tensor | None = None
    masking: str | None = None
    output: Quantity = "probability"
    convergence: float | None = None

    name: ClassVar[str] = "rise"
    signed: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True
    complete: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    needs_space: ClassVar[bool] = False

    def __call__(self, model: Model, inputs: Inputs, targets: Targets, run: Run) -> Attribution:
        budget = run.most()
        if budget < 4:
            raise ConfigError(f"rise needs a budget of at least 4 model evaluations, not {budget}")
        if self.cells < 1:
            raise ConfigError(f"cells is {self.cells}: expected a number of grid cells, 1 or more")
        pairs = budget // 2
        reference = reference_of(inputs, self.baseline, self.masking)
        n = len(inputs)
        differences = np.full((n, pairs), np.nan)
        used = np.zeros(n, dtype=np.int64)
        active = np.arange(n)
        with evaluating(model, batch_size=run.batch_size, outputs_only=budget, sample=inputs.tensor[:8]) as evaluator:
            masks: _Smooth | _Parts
            if inputs.players.spatial:
                masks = _Smooth(evaluator, inputs, targets, reference, pairs=pairs, cells=self.cells, seed=run.seed, output=self.output)
            else:
                masks = _Parts(evaluator, inputs, targets, reference, run, pairs=pairs, output=self.output)
            done = 0
            for size in rounds(pairs, first=_FIRST // 2, convergence=self.convergence):
                differences[active, done:size] = masks.differences(active, done, size)
                used[active] = done = size
                if self.convergence is not None:
                    active = np.array(
                        [i for i in active if not settled(*masks.pooled(int(i), differences[i, :size]), self.convergence)], dtype=np.int64
                    )
                if not len(active):
                    break
            spent, notes = evaluator.evaluations, evaluator.notes
            pooled = [masks.pooled(i, differences[i, : used[i]]) for i in range(n)]
            maps = masks.maps([differences[i, : used[i]] for i in range(n)], [p[0] for p in pooled])
        caveats = sorted(notes)
        params = {"reference": reference.name, "output": self.output, "masks": int(2 * used.max(initial=0)), **evaluator.facts}
        if inputs.players.spatial:
            params["cells"] = self.cells
        if self.convergence is not None:
            params["convergence"] = self.convergence
            caveats += unsettled(len(active), n)
        return finished(
            self.name, inputs, targets, run, maps, signed=True, spent=spent, params=params, caveats=caveats,
            standard_error=tuple(p[1] for p in pooled),
        )  # fmt: skip


def _mean_and_error(terms: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean over pairs (rows) and its standard error."""
    pairs = len(terms)
    error = terms.std(axis=0, ddof=1) / np.sqrt(pairs) if pairs > 1 else np.full(terms.shape[1], np.nan)
    return terms.mean(axis=0), error


class _Parts:
    """Pairs of masks over named parts: each part kept or removed with equal chance, and the other way round."""

    def __init__(
        self, evaluator: Evaluator, inputs: Inputs, targets: Targets, reference: Reference, run: Run, *, pairs: int, output: Quantity
    ) -> None:
        self.game, self.output, self.players = (
            Game(evaluator, inputs, targets, reference, memo=run.memo, seed=run.seed),
            output,
            inputs.players,
        )
        self.keep, self.draws = [], []
        self.drawn = reference.shared
        for i, sample in enumerate(inputs.ids):
            rng = generator(run.seed, RISE.name, sample)
            self.keep.append(rng.integers(0, 2, size=(pairs, int(inputs.players.count[i]))).astype(bool))
            if self.drawn:
                self.draws.append(rng.integers(0, len(reference), size=pairs))

    def differences(self, samples: NDArray[np.int64], start: int, stop: int) -> FloatArray:
        """(samples, stop - start) output under each mask less the output under its negative."""
        wanted = set(samples.tolist())
        keep, draws = [], []
        for i, mine in enumerate(self.keep):
            now = mine[start:stop] if i in wanted else mine[:0]
            keep.append(np.concatenate([now, ~now]))
            if self.drawn:
                draws.append(np.tile(self.draws[i][start:stop] if i in wanted else self.draws[i][:0], 2))
        found = self.game.values(keep, draws if self.drawn else None, self.output)
        return np.array([found[i][: stop - start] - found[i][stop - start :] for i in samples]).reshape(len(samples), stop - start)

    def pooled(self, sample: int, differences: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Values and standard errors of a sample's parts."""
        return _mean_and_error(differences[:, None] * (self.keep[sample][: len(differences)] - 0.5))

    def maps(self, differences: list[FloatArray], values: list[FloatArray]) -> tuple[FloatArray, tuple[FloatArray, ...]]:
        return from_players(values, self.players)


class _Smooth:
    """Pairs of smooth masks over inputs that lie in space: (seed, method, id) -> grids and shifts, enlarged when they are needed."""

    def __init__(
        self,
        evaluator: Evaluator,
        inputs: Inputs,
        targets: Targets,
        reference: Reference,
        *,
        pairs: int,
        cells: int,
        seed: int,
        output: Quantity,
    ) -> None:
        self.evaluator, self.targets, self.seed = evaluator, targets, seed
        self.inputs, self.reference = evaluator.moved(inputs), reference.moved(evaluator.device)
        self.column = _QUANTITIES.index(output)
        sides = tuple(int(s) for s in inputs.players.assignment.shape[1:])
        if len(sides) != 2:
            raise ConfigError(f"rise takes inputs of two axes in space, these have {len(sides)}")
        self.cell = tuple(ceil(s / cells) for s in sides)
        nodes = tuple((s - 1 + c - 1) // c + 2 for s, c in zip(sides, self.cell, strict=True))
        self.down, self.across = (_enlarging(s, c, k).to(evaluator.device) for s, c, k in zip(sides, self.cell, nodes, strict=True))
        n = len(inputs)
        grids = np.empty((n, pairs, *nodes), dtype=np.float32)
        shifts = np.empty((n, pairs, 2), dtype=np.int64)
        self.draws = np.zeros((n, pairs), dtype=np.int64)
        for i, sample in enumerate(inputs.ids):
            rng = generator(seed, RISE.name, sample)
            grids[i] = rng.integers(0, 2, size=(pairs, *nodes))
            shifts[i] = np.stack([rng.integers(0, c, size=pairs) for c in self.cell], axis=1)
            if reference.shared:
                self.draws[i] = rng.integers(0, len(reference), size=pairs)
        self.grids, self.shifts = torch.from_numpy(grids).to(evaluator.device), torch.from_numpy(shifts).to(evaluator.device)

    def masks(self, samples: NDArray[np.int64], pairs: NDArray[np.int64]) -> torch.Tensor:
        """(R, H, W) in 0..1: the first mask of each pair."""
        sample, pair = (torch.as_tensor(v, device=self.evaluator.device) for v in (samples, pairs))
        shifts = self.shifts[sample, pair]
        return self.down[shifts[:, 0]] @ self.grids[sample, pair] @ self.across[shifts[:, 1]].transpose(1, 2)

    def differences(self, samples: NDArray[np.int64], start: int, stop: int) -> FloatArray:
        """(samples, stop - start) output under each mask less the output under its negative."""
        count = stop - start
        if self.reference.kind == "made":
            return np.array([self._made(int(i), start, stop) for i in samples]).reshape(len(samples), count)
        sample, pair = np.repeat(samples, count), np.tile(np.arange(start, stop), len(samples))

        def one(rows: slice) -> FloatArray:
            # rows 2k and 2k + 1 are pair k; a batch may begin or end inside one
            whole = slice(rows.start // 2, -(-rows.stop // 2))
            mine = np.arange(rows.start, rows.stop) // 2
            shown = self._both(self.masks(sample[whole], pair[whole]))[rows.start - 2 * whole.start :][: len(mine)]
            x = self.inputs.tensor[torch.as_tensor(sample[mine], device=shown.device)].detach()
            return self._scored(self._blended(x, shown, self._fill(x, sample[mine], pair[mine])), sample[mine])

        found = np.concatenate(self.evaluator.each_batch(2 * len(sample), one)) if len(sample) else np.zeros(0)
        by_pair = found.reshape(len(samples), count, 2)
        return np.asarray(by_pair[:, :, 0] - by_pair[:, :, 1])

    @staticmethod
    def _both(masks: torch.Tensor) -> torch.Tensor:
        """(2R, H, W) each mask and then its negative."""
        return torch.stack([masks, 1 - masks], dim=1).flatten(0, 1)

    def _fill(self, x: torch.Tensor, samples: NDArray[np.int64], pairs: NDArray[np.int64]) -> torch.Tensor:
        if self.reference.rows is None:
            raise ConfigError(f"{self.reference.name} holds no rows")
        at = self.draws[samples, pairs] if self.reference.shared else samples
        return self.reference.rows[torch.as_tensor(at, device=self.reference.rows.device)].to(x)

    @staticmethod
    def _blended(x: torch.Tensor, shown: torch.Tensor, fill: torch.Tensor) -> torch.Tensor:
        while shown.ndim < x.ndim:  # channels share the mask
            shown = shown.unsqueeze(1)
        return torch.lerp(fill, x, shown.to(x))

    def _scored(self, x: torch.Tensor, samples: NDArray[np.int64]) -> FloatArray:
        return np.asarray(self.evaluator.both(x, self.targets[samples])[:, self.column])

    def _made(self, i: int, start: int, stop: int) -> FloatArray:
        """One sample with fills that are made from what a mask keeps by more than half; blocks of a fixed size, each with noise of its own."""
        out = []
        method = self.reference.method
        if method is None:
            raise ConfigError(f"{self.reference.name} names no way to fill in removed parts")
        for first in range(start, stop, _MADE_AT_ONCE // 2):
            pairs = np.arange(first, min(first + _MADE_AT_ONCE // 2, stop))
            shown = self._both(self.masks(np.full(len(pairs), i), pairs))
            samples = np.full(len(shown), i)
            x = self.inputs.tensor[torch.as_tensor(samples, device=shown.device)].detach()
            two = Players((shown < 0.5).long(), np.full(len(shown), 2, dtype=np.int64), None, self.inputs.players.shape)
            fill = self.inputs.modality.mask(
                x,
                two,
                np.tile([True, False], (len(shown), 1)),
                index=np.arange(len(shown)),
                spec=self.inputs.spec,
                method=method,
                background=self.inputs.background,
                key=(self.seed, "fill", self.inputs.ids[i], first),
            )
            mixed = self._blended(x, shown, fill)

            def scored(rows: slice, mixed: torch.Tensor = mixed, samples: NDArray[np.int64] = samples) -> FloatArray:
                return self._scored(mixed[rows], samples[rows])

            parts = self.evaluator.each_batch(len(x), scored)
            out.append(np.concatenate(parts))
        found = np.concatenate(out).reshape(-1, 2)
        return np.asarray(found[:, 0] - found[:, 1])

    def _chunks(self, sample: int, differences: FloatArray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Masks less a half (R, places), as density over one cell, and the differences (R,) that go with them."""
        step = max(1, _PLACES_AT_ONCE // self.inputs.players.assignment[0].numel())
        for start in range(0, len(differences), step):
            pairs = np.arange(start, min(start + step, len(differences)))
            shown = (self.masks(np.full(len(pairs), sample), pairs).double().flatten(1) - 0.5) / float(np.prod(self.cell))
            yield shown, torch.from_numpy(differences[pairs]).to(shown)

    def pooled(self, sample: int, differences: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Values and standard errors of a sample's parts: sums of the map over each."""
        parts = self.inputs.players.assignment[sample].reshape(-1)
        count = int(self.inputs.players.count[sample])
        terms = [
            (shown.new_zeros((len(drop), count)).index_add_(1, parts, shown) * drop[:, None]).cpu().numpy()
            for shown, drop in self._chunks(sample, differences)
        ]
        return _mean_and_error(np.concatenate(terms))

    def maps(self, differences: list[FloatArray], values: list[FloatArray]) -> tuple[FloatArray, tuple[FloatArray, ...]]:
        shape = self.inputs.players.assignment.shape[1:]
        rows = [
            torch.stack([drop @ shown for shown, drop in self._chunks(i, mine)]).sum(dim=0).reshape(shape) / len(mine)
            for i, mine in enumerate(differences)
        ]
        return from_elements(torch.stack(rows), self.inputs.players)


def _enlarging(side: int, cell: int, nodes: int) -> torch.Tensor:
    """(cell, side, nodes) weights that enlarge a row of nodes to ``side`` places, linear in between; one matrix for each shift."""
    at = (torch.arange(side)[None] + torch.arange(cell)[:, None]) / cell
    below = at.floor().long()
    share = (at - below).float()
    out = torch.zeros(cell, side, nodes)
    out.scatter_(2, below[..., None], (1 - share)[..., None])
    out.scatter_add_(2, (below + 1)[..., None], share[..., None])
    return out
