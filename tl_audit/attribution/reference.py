"""What stands where a part is removed: one reference per sample, rows drawn from a background, or a fill made from what stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.attribution.base import Inputs
from tl_audit.errors import ConfigError, DataError, ModelError
from tl_audit.measures.sampling import generator
from tl_audit.modality.base import MaskMethod


@dataclass(frozen=True)
class Reference:
    """How removed parts are filled in.

    Attributes
    ----------
    kind : "fixed": ``rows`` (N, ...) is one fill per sample; "drawn": ``rows`` (M, ...) is a background of which a row is drawn per evaluation;
        "made": the kind of data makes the fill from the parts that stay (``method``)
    name : what reports print
    """

    kind: Literal["fixed", "drawn", "made"]
    rows: torch.Tensor | None
    name: str
    method: MaskMethod | None = None

    @property
    def shared(self) -> bool:
        """Whether an evaluation also draws a row of the background."""
        return self.kind == "drawn"

    def __len__(self) -> int:
        """Rows to draw from."""
        return 0 if self.rows is None else len(self.rows)

    def moved(self, device: torch.device) -> Reference:
        return self if self.rows is None else replace(self, rows=self.rows.to(device))


def reference_of(inputs: Inputs, baseline: torch.Tensor | None, masking: str | None = None) -> Reference:
    """The reference that was asked for; without a wish the background of named parts, else the kind's "nothing there" input.

    Raises
    ------
    ConfigError : both a baseline and a masking, or a masking that this kind of data does not have
    DataError : a masking that draws, without a background
    """
    if baseline is not None and masking is not None:
        raise ConfigError("baseline and masking both say what stands for a removed part: give one of them")
    if baseline is not None:
        return Reference("fixed", broadcast_baseline(inputs, baseline), "given baseline")
    if masking is None:
        if inputs.background is not None and not inputs.players.spatial:
            return Reference("drawn", inputs.background.detach().cpu(), "rows of the background")
        return Reference("fixed", baseline_of(inputs, None), "the baseline of the kind of data")
    known = inputs.modality.masks
    method = next((m for m in known if m == masking), None)
    if method is None:
        raise ConfigError(f"masking is {masking!r}: {inputs.modality.kind} inputs have {', '.join(known)}")
    if method in ("marginal", "conditional") and inputs.background is None:
        raise DataError(f"masking {masking!r} draws from a background: give background=...")
    if method == "marginal" and inputs.background is not None:
        return Reference("drawn", inputs.background.detach().cpu(), "rows of the background")
    filler = inputs.modality.filler(inputs.tensor, inputs.spec, method, inputs.background)
    if filler is not None:
        return Reference("fixed", filler.detach().to(inputs.tensor), f"masking: {method}", method)
    return Reference("made", None, f"masking: {method}", method)


def baseline_of(inputs: Inputs, baseline: torch.Tensor | None) -> torch.Tensor:
    """(N, ...) reference input of each sample: the given one, else the kind's "nothing there" input."""
    if baseline is not None:
        return broadcast_baseline(inputs, baseline)
    return inputs.modality.baseline(inputs.tensor, inputs.spec, inputs.background).detach().to(inputs.tensor)


def broadcast_baseline(inputs: Inputs, baseline: torch.Tensor) -> torch.Tensor:
    """A baseline of one sample's shape, or of (N, ...), as (N, ...)."""
    try:
        return baseline.detach().to(inputs.tensor).expand(inputs.tensor.shape).clone()
    except RuntimeError as error:
        raise ModelError(
            f"the baseline has shape {tuple(baseline.shape)}, the inputs {tuple(inputs.tensor.shape)}: give one input or one per sample"
        ) from error


def drawn_background(reference: Reference, *, most: int, seed: int, method: str) -> tuple[Reference, str | None]:
    """The reference with at most ``most`` rows to draw from, and what must be said about it."""
    if reference.rows is None or not reference.shared or len(reference.rows) <= most:
        return reference, None
    chosen = np.sort(generator(seed, method, "background").permutation(len(reference.rows))[:most])
    return replace(reference, rows=reference.rows[torch.as_tensor(chosen)]), f"{most} rows of the background were drawn to stand for all"


_SHORTEST_RUN = 4  # evaluations of one sample in a row from which on they are filled in together


def compose(inputs: Inputs, rows: NDArray[np.int64], keep: NDArray[np.bool_], fills: torch.Tensor, at: NDArray[np.int64]) -> torch.Tensor:
    """Inputs ``rows`` with the players that are not kept taken from ``fills[at]``, row by row."""
    x, parts = inputs.tensor.detach(), inputs.players.assignment.to(inputs.tensor.device)
    fills, flags = fills.to(x), torch.as_tensor(keep, device=x.device)
    starts = np.flatnonzero(np.diff(rows, prepend=-1) != 0)
    if len(starts) * _SHORTEST_RUN >= len(rows):
        which = torch.as_tensor(rows, device=x.device)
        mine = parts[which]
        kept = _over_channels(flags.gather(1, mine.flatten(1)).reshape(mine.shape), x.ndim)
        return torch.where(kept, x[which], fills[torch.as_tensor(at, device=x.device)])
    # evaluations of one sample share its numbers and its parts: neither is copied for each
    out = torch.empty((len(rows), *x.shape[1:]), dtype=x.dtype, device=x.device)
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(rows)], strict=True):
        i = int(rows[start])
        drawn = at[start:stop]
        fill = fills[int(drawn[0])] if (drawn == drawn[0]).all() else fills[torch.as_tensor(drawn, device=x.device)]
        kept = flags[start:stop].index_select(1, parts[i].reshape(-1)).reshape(stop - start, *parts[i].shape)
        torch.where(_over_channels(kept, x.ndim), x[i], fill, out=out[start:stop])
    return out


def _over_channels(kept: torch.Tensor, ndim: int) -> torch.Tensor:
    while kept.ndim < ndim:  # channels share the assignment
        kept = kept.unsqueeze(1)
    return kept


def composed(
    inputs: Inputs,
    reference: Reference,
    rows: NDArray[np.int64],
    keep: NDArray[np.bool_],
    draws: NDArray[np.int64] | None,
    key: Sequence[object],
) -> torch.Tensor:
    """Inputs ``rows`` with removed parts filled in. ``key`` seeds fills that are made."""
    if reference.kind == "made":
        if reference.method is None:
            raise ConfigError(f"{reference.name} names no way to fill in removed parts")
        return inputs.modality.mask(
            inputs.tensor,
            inputs.players,
            keep,
            index=rows,
            spec=inputs.spec,
            method=reference.method,
            background=inputs.background,
            key=tuple(key),
        )
    if reference.rows is None:
        raise ConfigError(f"{reference.name} holds no rows")
    if reference.shared and draws is None:
        raise ConfigError(f"{reference.name}: no row was drawn for these evaluations")
    at = rows if draws is None or not reference.shared else draws
    return compose(inputs, rows, keep, reference.rows, at)
