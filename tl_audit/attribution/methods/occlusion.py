"""Occlusion: a window that slides over the input and hides what is under it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.attribution.ablation import drops
from tl_audit.attribution.base import Attribution, Inputs, Run, Targets
from tl_audit.attribution.evaluation import Quantity, evaluating
from tl_audit.attribution.game import Game
from tl_audit.attribution.maps import finished, from_elements
from tl_audit.attribution.methods.feature_ablation import ablate_parts
from tl_audit.attribution.reference import reference_of
from tl_audit.errors import ConfigError
from tl_audit.modality.base import Players
from tl_audit.models.model import Model

_WINDOWS_PER_SIDE = 7


class Windows(NamedTuple):
    """Places of the window on an input of one size.

    Attributes
    ----------
    cells : (*spatial) int64 number of the cell that each place belongs to: the pieces that the windows' borders cut
    hidden : (G, cells) bool, True: the cell is under the window
    area : (G,) places under each window (less than the window's own where it hangs over the rim)
    window, stride : per axis
    """

    cells: NDArray[np.int64]
    hidden: NDArray[np.bool_]
    area: NDArray[np.float64]
    window: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Occlusion:
    """Signed drop of the output when a window hides part of the input: each place gets the mean over the windows that cover it.

    In units of the output (the logit, unless ``output`` says otherwise) per place: a drop is spread evenly over its window, so that the
    map of an additive model sums to f(x) - f(baseline) where windows do not overlap and cover the rim evenly. On parts that
    lie nowhere (columns) each part is removed alone.

    Attributes
    ----------
    window : side of the window in places of the input, one number or one per axis; None: a seventh of each side, larger where the budget
        asks for it
    stride : its steps; None: half a window, a whole one where the budget asks for it
    baseline : the input that stands for "nothing there"; None: that of the kind of data
    masking : how what is hidden is filled in, instead of a baseline; None: as ``baseline``
    output : what is explained: "logit" or "probability"

    References
    ----------
    Zeiler and Fergus (2014). Visualizing and understanding convolutional networks. arXiv:1311.2901
    """

    window: int | tuple[int, ...] | None = None
    stride: int | tuple[int, ...] | None = None
    baseline: torch.Tensor | None = None
    masking: str | None = None
    output: Quantity = "logit"

    name: ClassVar[str] = "occlusion"
    signed: ClassVar[bool] = True
    stochastic: ClassVar[bool] = False
    complete: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    needs_space: ClassVar[bool] = False

    def __call__(self, model: Model, inputs: Inputs, targets: Targets, run: Run) -> Attribution:
        if not inputs.players.spatial:
            if self.window is not None or self.stride is not None:
                raise ConfigError("window and stride are of inputs that lie in space; here each part is removed alone")
            return ablate_parts(self.name, model, inputs, targets, run, baseline=self.baseline, masking=self.masking, output=self.output)
        budget = run.most()
        if budget < 2:
            raise ConfigError(f"occlusion needs a budget of at least 2 model evaluations, not {budget}")
        shape = tuple(inputs.players.assignment.shape[1:])
        places = windows_over(shape, self.window, self.stride, budget)
        if run.budget is not None and len(places.hidden) + 1 > run.budget:
            raise ConfigError(
                f"a window of {places.window} with steps of {places.stride} over {shape} needs {len(places.hidden) + 1} model evaluations and the "
                f"budget is {run.budget}: raise the budget, or take larger steps"
            )
        reference = reference_of(inputs, self.baseline, self.masking)
        n = len(inputs)
        cells = torch.from_numpy(places.cells).to(inputs.players.assignment.device).expand(n, *shape)
        pieces = replace(inputs, players=Players(cells, np.full(n, places.hidden.shape[1], dtype=np.int64), None, inputs.players.shape))
        with evaluating(model, batch_size=run.batch_size, outputs_only=budget, sample=inputs.tensor[:8]) as evaluator:
            # these pieces are not the parts that a memo knows
            game = Game(evaluator, pieces, targets, reference, seed=run.seed)
            found = drops(game, reference, [~places.hidden] * n, budget, self.output)
            spent, notes = evaluator.evaluations, evaluator.notes
        # (cells, G): a cell's mean over the windows that hide it, each drop spread over its window
        spread = places.hidden.T / places.hidden.sum(axis=0)[:, None] / places.area
        maps = np.stack([(spread @ v.mean(axis=1))[places.cells] for v in found.values]) if n else np.zeros((0, *shape))
        errors = None
        if found.drawn:
            errors = tuple(found.error(_pooled((spread @ v)[places.cells], inputs.players, i)) for i, v in enumerate(found.values))
        return finished(
            self.name,
            inputs,
            targets,
            run,
            from_elements(torch.from_numpy(maps), inputs.players),
            signed=True,
            spent=spent,
            standard_error=errors,
            params={
                "reference": reference.name,
                "output": self.output,
                "window": list(places.window),
                "stride": list(places.stride),
                "fills": int(found.values[0].shape[1]) if n else 0,
                **evaluator.facts,
            },
            caveats=tuple(sorted(notes)),
        )


def _pooled(maps: NDArray[np.float64], players: Players, row: int) -> NDArray[np.float64]:
    """(count[row], fills) sums of maps (*spatial, fills) over a sample's parts."""
    flat = players.assignment[row].reshape(-1).cpu().numpy()
    return np.stack([np.bincount(flat, weights=m, minlength=int(players.count[row])) for m in maps.reshape(len(flat), -1).T], axis=1)


def windows_over(shape: Sequence[int], window: int | tuple[int, ...] | None, stride: int | tuple[int, ...] | None, budget: int) -> Windows:
    """Windows at every ``stride`` places from the first on, until the end is covered; what hangs over the rim is cut off.

    Raises
    ------
    ConfigError : a window or steps below 1, of the wrong number of axes, or steps that leave gaps
    """
    sides = tuple(int(s) for s in shape)
    wide = _per_axis(window, sides, "window")
    step = _per_axis(stride, sides, "stride")
    if wide is None:
        wide = tuple(ceil(s / _WINDOWS_PER_SIDE) for s in sides)
        if step is None:
            step = tuple(ceil(w / 2) for w in wide)
            if _number(sides, wide, step) + 1 > budget:
                step = wide
            if _number(sides, wide, step) + 1 > budget:
                each = max(1, int((budget - 1) ** (1 / len(sides)) + 1e-9))
                wide = step = tuple(ceil(s / each) for s in sides)
        else:
            wide = tuple(max(w, s) for w, s in zip(wide, step, strict=True))
    elif step is None:
        step = tuple(ceil(w / 2) for w in wide)
        if _number(sides, wide, step) + 1 > budget:
            step = wide
    wide = tuple(min(w, s) for w, s in zip(wide, sides, strict=True))
    if any(s > w for s, w in zip(step, wide, strict=True)):
        raise ConfigError(f"steps of {step} are larger than the window {wide}: places between windows would get no value")
    starts = [np.arange(_along(side, w, s)) * s for side, w, s in zip(sides, wide, step, strict=True)]
    ends = [np.minimum(a + w, side) for a, w, side in zip(starts, wide, sides, strict=True)]
    # cells between all borders: windows are unions of them, whatever the steps
    borders = [np.unique(np.r_[a, b]) for a, b in zip(starts, ends, strict=True)]
    inside = [(a[:, None] <= c[:-1]) & (c[1:] <= b[:, None]) for a, b, c in zip(starts, ends, borders, strict=True)]
    number = [np.searchsorted(c, np.arange(side), side="right") - 1 for c, side in zip(borders, sides, strict=True)]
    cells = np.ravel_multi_index(np.meshgrid(*number, indexing="ij"), tuple(len(c) - 1 for c in borders)).astype(np.int64)
    hidden, area = inside[0], (ends[0] - starts[0]).astype(np.float64)
    for axis in range(1, len(sides)):
        hidden = (hidden[:, None, :, None] & inside[axis][None, :, None, :]).reshape(len(area) * len(starts[axis]), -1)
        area = np.outer(area, ends[axis] - starts[axis]).reshape(-1)
    return Windows(cells, hidden, area, wide, step)


def _along(side: int, window: int, stride: int) -> int:
    return 1 + ceil(max(0, side - window) / stride)


def _number(sides: Sequence[int], window: Sequence[int], stride: Sequence[int]) -> int:
    return prod(_along(side, w, s) for side, w, s in zip(sides, window, stride, strict=True))


def _per_axis(value: int | tuple[int, ...] | None, sides: tuple[int, ...], what: str) -> tuple[int, ...] | None:
    if value is None:
        return None
    numbers = (value,) * len(sides) if isinstance(value, int) else tuple(value)
    if len(numbers) != len(sides) or any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in numbers):
        raise ConfigError(f"{what} is {value!r}: expected a number of places, 1 or more, or {len(sides)} of them")
    return numbers
