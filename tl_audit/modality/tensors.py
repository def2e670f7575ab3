"""Samples that already are model inputs: (C, H, W) behave as pictures, (D,) as columns, anything else can only be run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.errors import DataError
from tl_audit.measures.sampling import generator
from tl_audit.measures.sketches import SKETCH_SIDE
from tl_audit.modality.base import MASK_METHODS, Caps, Cue, Key, MaskMethod, Modality, Neighbourhood, Players, RawBatch, Samples
from tl_audit.modality.image import (
    PICTURE_MASKS,
    PICTURE_NEIGHBOURHOOD,
    SEGMENTATIONS,
    corner_box,
    displayed,
    mask_pictures,
    patch_side,
    picture_filler,
    picture_players,
    random_box,
    sobel,
    stretched,
)
from tl_audit.modality.options import require_column, require_known
from tl_audit.modality.pictures import as_picture, map_over
from tl_audit.modality.tabular import (
    COLUMN_MASKS,
    COLUMN_NEIGHBOURHOOD,
    COLUMN_SEGMENTATIONS,
    column_bars,
    column_filler,
    column_players,
    column_slots,
    mask_columns,
)
from tl_audit.records.exhibits import Bar, Picture
from tl_audit.records.preprocessing import InputSpec

SUMMARIES = frozenset(("mean", "standard_deviation"))
"""Properties of samples that are not one row of numbers."""


@dataclass(frozen=True)
class TensorSamples:
    """Arrays or tensors (N, ...), or a data set that gives tensors one by one."""

    data: Any  # Any: ndarray, tensor, torch Dataset
    ids: tuple[str, ...]
    caps: Caps = field(default_factory=Caps)
    first_of_pair: bool = False
    modality: Modality = field(default_factory=lambda: TENSOR)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, rows: NDArray[np.int64]) -> RawBatch:
        rows = np.asarray(rows, dtype=np.int64)
        if isinstance(self.data, np.ndarray | torch.Tensor) and len(rows):
            # rows of an array at once: one by one, reading a million rows takes longer than running them
            block = torch.as_tensor(self.data[rows]).detach().cpu()
            if not block.is_complex():
                return RawBatch(rows=rows, items=list(block.float().unbind()), errors=[None] * len(rows), facts=[{} for _ in rows])
        items: list[torch.Tensor | None] = []
        errors: list[str | None] = []
        for row in rows:
            item = self.data[int(row)]
            value = torch.as_tensor(item[0] if self.first_of_pair else item).detach().cpu()
            items.append(value.float() if not value.is_complex() else None)
            errors.append("complex numbers are not model inputs" if value.is_complex() else None)
        return RawBatch(rows=rows, items=items, errors=errors, facts=[{} for _ in rows])


def _same_shape(tensors: list[torch.Tensor]) -> None:
    shapes = {tuple(t.shape) for t in tensors}
    if len(shapes) > 1:
        raise DataError(f"the tensors differ in shape ({', '.join(map(str, sorted(shapes)[:3]))}): model inputs must have one shape")


@dataclass(frozen=True)
class Tensors:
    """Ready model inputs. ``names``: of the columns of 1-D samples, None: f0, f1, ..."""

    kind: str = "tensor"
    names: tuple[str, ...] | None = None

    @property
    def default_mask(self) -> MaskMethod:
        """Which fits both forms: the mean. Pictures may ask for "noisy_linear", columns for "marginal"."""
        return "mean"

    def content_hashes(self, batch: RawBatch) -> list[str | None]:
        """Of the numbers as float32 and their shape."""
        return [
            None
            if item is None
            else hashlib.sha256(f"{tuple(item.shape)}:".encode() + item.contiguous().numpy().astype("<f4").tobytes()).hexdigest()
            for item in batch.items
        ]

    def sketches(self, batch: RawBatch) -> NDArray[np.uint8] | None:
        """Of (C, H, W) samples: the mean of their channels over 16 x 16 areas, from the lowest (0) to the highest (255)."""
        held = [(i, item) for i, item in enumerate(batch.items) if item is not None]
        if any(item.ndim != 3 for _, item in held):
            return None
        out = np.zeros((len(batch.items), SKETCH_SIDE, SKETCH_SIDE), dtype=np.uint8)
        for i, item in held:
            grey = torch.nn.functional.adaptive_avg_pool2d(item.double().mean(dim=0)[None, None], SKETCH_SIDE)[0, 0]
            out[i] = stretched(grey.numpy())
        return out

    def cell_columns(self, properties: Mapping[str, NDArray[Any]]) -> tuple[str, ...] | None:
        """The columns of 1-D samples."""
        return None if set(properties) == SUMMARIES else tuple(properties)

    def properties(self, batch: RawBatch) -> dict[str, NDArray[Any]]:
        """Columns by name for 1-D samples, else mean and standard deviation of each sample."""
        read = [item for item in batch.items if item is not None]
        if read and read[0].ndim == 1:
            names = list(column_slots(len(read[0]), None, self.names))
            out: dict[str, NDArray[Any]] = {name: np.full(len(batch.items), np.nan) for name in names}
            _same_shape(read)
            where = [i for i, item in enumerate(batch.items) if item is not None]
            for name, column in zip(names, torch.stack(read).double().T.numpy(), strict=True):
                out[name][where] = column
            return out
        values = np.array(
            [
                [np.nan, np.nan]
                if t is None
                else [t.double().mean().item(), 0.0 if bool((t == t.flatten()[0]).all()) else t.double().std(correction=0).item()]
                for t in batch.items
            ]
        )
        values = values.reshape(len(batch.items), 2)
        return dict(zip(("mean", "standard_deviation"), values.T, strict=True))

    def encode(self, batch: RawBatch, spec: InputSpec | None) -> torch.Tensor:
        read = [item for item in batch.items if item is not None]
        _same_shape(read)
        return torch.stack(read) if read else torch.zeros(0)

    def spec_notes(self, samples: Samples, spec: InputSpec | None) -> tuple[str, ...]:
        return ()

    @property
    def segmentations(self) -> tuple[str, ...]:
        """Those of pictures, then that of columns: the default is the first that fits."""
        return SEGMENTATIONS + COLUMN_SEGMENTATIONS

    @property
    def masks(self) -> tuple[MaskMethod, ...]:
        """Those of either form; one that does not fit is refused when it is used."""
        return tuple(m for m in MASK_METHODS if m in PICTURE_MASKS or m in COLUMN_MASKS)

    def neighbourhood(self, players: Players) -> Neighbourhood:
        return PICTURE_NEIGHBOURHOOD if players.spatial else COLUMN_NEIGHBOURHOOD

    def players(
        self, inputs: torch.Tensor, spec: InputSpec | None, *, most: int = 49, seed: int = 0, segmentation: str | None = None
    ) -> Players:
        if inputs.ndim == 2:
            return column_players(inputs, column_slots(inputs.shape[1], spec, self.names), segmentation)
        _require_pictures(inputs, "cut into parts")
        return picture_players(inputs, None, most, segmentation, seed)

    def filler(
        self, inputs: torch.Tensor, spec: InputSpec | None, method: MaskMethod, background: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        if inputs.ndim == 2:
            return column_filler(inputs, method, self.baseline(inputs, spec, background))
        _require_pictures(inputs, "masked")
        return picture_filler(inputs, None, method, background)

    def mask(
        self,
        inputs: torch.Tensor,
        players: Players,
        keep: NDArray[np.bool_],
        *,
        index: NDArray[np.int64],
        spec: InputSpec | None,
        method: MaskMethod,
        background: torch.Tensor | None = None,
        key: Key = (),
    ) -> torch.Tensor:
        if inputs.ndim == 2:
            return mask_columns(inputs, players, keep, index, method, self.baseline(inputs, spec, background), background, key)
        _require_pictures(inputs, "masked")
        return mask_pictures(inputs, players, keep, index, None, method, background, key)

    def baseline(self, inputs: torch.Tensor, spec: InputSpec | None, background: torch.Tensor | None) -> torch.Tensor:
        """Means of the background (of each channel for pictures), 0 without one."""
        if background is None:
            return torch.zeros_like(inputs)
        over = [0] if inputs.ndim == 2 else [0, *range(2, inputs.ndim)]
        return background.to(inputs).mean(dim=over, keepdim=True).expand_as(inputs).clone()

    def edges(self, inputs: torch.Tensor) -> NDArray[np.float64] | None:
        return sobel(inputs) if inputs.ndim == 4 else None

    def apply_cue(self, batch: RawBatch, cue: Cue, *, placebo: bool, key: tuple[Any, ...]) -> RawBatch:
        """A "patch" on (C, H, W), ``value`` from the sample's own lowest (0) to highest (1) number; "set_column" on (D,), ``value`` as it is."""
        require_known([cue.kind], self.cue_kinds(), "cue of tensors")
        if cue.kind == "set_column":
            return self._set_column(batch, cue, placebo=placebo, key=key)
        require_known(cue.settings, ("corner", "size", "value", "margin"), f"setting of cue {cue.name!r}")
        value = cue.settings.get("value", 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DataError(f"cue {cue.name!r}: value is {value!r}, expected a number")
        items: list[torch.Tensor | None] = []
        for item, row in zip(batch.items, batch.rows, strict=True):
            if item is None:
                items.append(None)
                continue
            _require_pictures(item[None], f"given the patch of cue {cue.name!r}")
            rng = generator(*key, cue.name, int(row), "placebo")
            height, width = item.shape[1:]
            low, high = float(item.min()), float(item.max())
            side = patch_side(cue, height, width)
            top, left, h, w = random_box(height, width, side * side, rng) if placebo else corner_box(cue, height, width, side, side)
            out = item.clone()
            inside = (
                torch.from_numpy(rng.random((item.shape[0], h, w))).float() if placebo else torch.full((item.shape[0], h, w), float(value))
            )
            out[:, top : top + h, left : left + w] = low + (high - low) * inside
            items.append(out)
        return RawBatch(batch.rows, items, batch.errors, batch.facts)

    def _set_column(self, batch: RawBatch, cue: Cue, *, placebo: bool, key: tuple[Any, ...]) -> RawBatch:
        require_known(cue.settings, ("column", "value"), f"setting of cue {cue.name!r}")
        items = {i: item.clone() for i, item in enumerate(batch.items) if item is not None}
        if not items:
            return batch
        first = next(iter(items.values()))
        if first.ndim != 1:
            raise DataError(f'cue {cue.name!r}: "set_column" is for samples of one dimension')
        names = list(column_slots(len(first), None, self.names))
        column = str(cue.settings.get("column", ""))
        require_column(column, names, "the data", f"the column of cue {cue.name!r}")
        at = names.index(column)
        if placebo:
            order = sorted(items, key=lambda i: int(batch.rows[i]))
            values = [float(batch.items[i][at]) for i in order]
            moved = generator(*key, cue.name, "placebo").permutation(len(order))
            for i, source in zip(order, moved, strict=True):
                items[i][at] = values[int(source)]
        else:
            value = cue.settings.get("value")
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise DataError(f"cue {cue.name!r}: value is {value!r}, expected a number")
            for item in items.values():
                item[at] = float(value)
        changed = [items.get(i) for i in range(len(batch.items))]
        return RawBatch(batch.rows, changed, batch.errors, batch.facts)

    def cue_kinds(self) -> tuple[str, ...]:
        return ("patch", "set_column")

    def corruption_kinds(self) -> tuple[str, ...]:
        """None: ready inputs do not say what an everyday disturbance of them is."""
        return ()

    def corruption_scales(self, samples: Samples, rows: NDArray[np.int64]) -> Mapping[str, Any]:
        return {}

    def corrupt(self, batch: RawBatch, kind: str, severity: int, *, keys: Sequence[tuple[Any, ...]], scales: Mapping[str, Any]) -> RawBatch:
        require_known([kind], self.corruption_kinds(), "corruption of tensors")
        return batch

    def noise(self, samples: Samples, rows: NDArray[np.int64], spec: InputSpec | None, *, keys: Sequence[tuple[Any, ...]]) -> torch.Tensor:
        """Between the lowest and highest number of these rows: of each column for (D,), of all entries else."""
        known = self.encode(samples.read(rows), spec)
        low, high = (known.amin(dim=0), known.amax(dim=0)) if known.ndim == 2 else (known.min(), known.max())
        drawn = np.stack([generator(*key, "noise").random(tuple(known.shape[1:]), dtype=np.float32) for key in keys])
        return low + (high - low) * torch.from_numpy(drawn)

    def picture(
        self, inputs_row: torch.Tensor, spec: InputSpec | None, *, title: str, side: int = 160, redacted: bool = False
    ) -> Picture | None:
        if inputs_row.ndim != 3:
            return None
        return as_picture(
            displayed(inputs_row, None), title=title, alt=f"{title}: the picture as the model sees it", side=side, redacted=redacted
        )

    def map_picture(
        self,
        inputs_row: torch.Tensor,
        values: NDArray[np.float64],
        spec: InputSpec | None,
        *,
        title: str,
        signed: bool,
        side: int = 160,
        redacted: bool = False,
        scale: tuple[float, float] | None = None,
        outlines: NDArray[np.int64] | None = None,
    ) -> Picture | None:
        if inputs_row.ndim != 3:
            return None
        return map_over(
            displayed(inputs_row, None), np.asarray(values, dtype=np.float64),
            title=title, signed=signed, side=side, redacted=redacted, scale=scale, outlines=outlines,
        )  # fmt: skip

    def map_bars(self, values: NDArray[np.float64], players: Players, row: int) -> tuple[Bar, ...]:
        return column_bars(values, players, row) if not players.spatial else ()


def _require_pictures(inputs: torch.Tensor, what: str) -> None:
    if inputs.ndim != 4:
        raise DataError(f"samples of shape {tuple(inputs.shape[1:])} cannot be {what}: only (C, H, W) and (D,) can")


TENSOR: Modality = Tensors()
