"""What a kind of data must be able to do. Everything outside this package asks these questions and never which kind it is.

Flow: ``Samples`` (where the data lies) --read--> ``RawBatch`` --encode--> model input tensor --players/mask--> perturbed inputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.errors import DataError
from tl_audit.records.exhibits import Bar, Picture
from tl_audit.records.preprocessing import InputSpec


@dataclass(frozen=True)
class RawBatch:
    """Samples as they were read, before any preprocessing.

    Attributes
    ----------
    rows : (B,) row numbers in the domain
    items : B raw samples (uint8 HWC RGB arrays; table rows; tensors), None where unreadable
    errors : B reasons, None where the sample was read
    facts : B mappings of what only the reader knows (e.g. {"exif_rotated": True, "file_type": "JPEG", "width": 640})
    """

    rows: NDArray[np.int64]
    items: Sequence[Any]  # Any: the modality's own raw type
    errors: Sequence[str | None]
    facts: Sequence[Mapping[str, Any]] = ()

    @property
    def readable(self) -> NDArray[np.bool_]:
        return np.array([e is None for e in self.errors], dtype=bool)


class Regions(Protocol):
    """Where the thing in question is in the samples of one domain (boxes, masks; later spans), for samples where somebody said so."""

    def __len__(self) -> int: ...

    @property
    def given(self) -> NDArray[np.bool_]:
        """(N,) whether a sample has a region."""
        ...

    @property
    def content_key(self) -> str:
        """Hash of all that the regions say: what is measured with them is stored under it."""
        ...

    def select(self, rows: NDArray[np.int64]) -> Regions:
        """The regions of some samples, in this order."""
        ...

    def read(self, batch: RawBatch, spec: InputSpec | None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(B, *spatial) what lies inside, in the model input that preprocessing makes of each sample, and (B,) whether the sample has a region."""
        ...


class Samples(Protocol):
    """Where the samples of one domain lie: files, a table, arrays. Reads any rows, in any order, without keeping them."""

    @property
    def modality(self) -> Modality: ...

    @property
    def ids(self) -> tuple[str, ...]:
        """Stable sample ids (relative file name, row id), unique."""
        ...

    @property
    def caps(self) -> Caps:
        """The collector calls ``caps.refuse_above`` with the read errors of the whole domain."""
        ...

    def __len__(self) -> int: ...

    def read(self, rows: NDArray[np.int64]) -> RawBatch: ...


_PLACES_AT_ONCE = 2**19  # summed over parts at once: what stays near the processor


@dataclass(frozen=True)
class Players:
    """Input parts that attributions speak of: superpixels, columns, (later) tokens. Made once per sample, shared by all explainers.

    Attributes
    ----------
    assignment : (N, *spatial) or (N, D) int64; entry -> player number in [0, count[i]); channels share the assignment
    count : (N,) players per sample
    names : player names where they are the same for all samples (columns), else None
    shape : how a map of players is drawn: "image" (H, W) or "columns"
    """

    assignment: torch.Tensor
    count: NDArray[np.int64]
    names: tuple[str, ...] | None
    shape: Literal["image", "columns"]

    @property
    def spatial(self) -> bool:
        """Whether a map of these parts is laid out in space (H, W); else it is a list of named parts."""
        return self.shape == "image"

    def areas(self, row: int) -> NDArray[np.float64]:
        """(count[row],) size of each part: pixels of a superpixel; 1 for a named part, however many entries encode it."""
        count = int(self.count[row])
        if not self.spatial:
            return np.ones(count)
        return np.bincount(self.assignment[row].reshape(-1).cpu().numpy(), minlength=count).astype(np.float64)

    def select(self, rows: NDArray[np.int64]) -> Players:
        """The parts of some samples, in this order."""
        return replace(self, assignment=self.assignment[torch.as_tensor(rows, device=self.assignment.device)], count=self.count[rows])

    def pool(self, values: torch.Tensor) -> list[NDArray[np.float64]]:
        """Sums of elementwise attributions ``values`` (N, *spatial) over each player: one (count[i],) array per sample."""
        return self._sums(values.detach().cpu().double().numpy())

    def all_areas(self) -> list[NDArray[np.float64]]:
        """``areas`` of every sample."""
        if not self.spatial:
            return [np.ones(int(count)) for count in self.count]
        return self._sums(None)

    def spread(self, values: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """Values per player laid back on the assignment: (N, *spatial)."""
        parts = self._parts()
        table = np.zeros((len(parts), int(self.count.max(initial=0))))
        for row, mine in zip(table, values, strict=True):
            row[: len(mine)] = mine
        return np.take_along_axis(table, parts, axis=1).reshape(tuple(self.assignment.shape))

    def checked(self, n: int, shape: tuple[int, ...]) -> Players:
        """These parts, if they are parts of ``n`` inputs whose places form ``shape``. A number that no place has is a part of no size.

        Raises
        ------
        DataError : another shape, a place with a number outside [0, count)
        """
        if tuple(self.assignment.shape) != (n, *shape) or self.count.shape != (n,):
            raise DataError(
                f"the players' assignment has shape {tuple(self.assignment.shape)} and their count {self.count.shape}: "
                f"expected {(n, *shape)} and {(n,)}, one number per place of each input"
            )
        parts = self._parts()
        if parts.shape[1]:
            wrong = np.flatnonzero((parts.min(axis=1) < 0) | (parts.max(axis=1) >= self.count))
            if len(wrong):
                i = int(wrong[0])
                raise DataError(
                    f"the players of input {i} have numbers from {parts[i].min()} to {parts[i].max()}, and its count is {int(self.count[i])}: "
                    f"number them from 0 to {int(self.count[i]) - 1}"
                )
        if self.names is not None and any(int(count) != len(self.names) for count in self.count):
            raise DataError(
                f"{len(self.names)} player names for {int(self.count.max(initial=0))} players: give one name per player, or none"
            )
        return replace(self, assignment=self.assignment.long(), count=self.count.astype(np.int64))

    def _parts(self) -> NDArray[np.int64]:
        """(N, places) part of each place."""
        return self.assignment.flatten(1).cpu().numpy()

    def _sums(self, values: NDArray[np.float64] | None) -> list[NDArray[np.float64]]:
        """Sums of ``values`` (None: of ones) over each part, all rows of a block at once: part k of row r is counted as r x width + k."""
        parts, width = self._parts(), int(self.count.max(initial=0))
        n, places = parts.shape
        out = np.zeros((n, width))
        step = max(1, _PLACES_AT_ONCE // max(1, places))
        for start in range(0, n, step):
            block = parts[start : start + step]
            rows = len(block)
            at = (block + width * np.arange(rows)[:, None]).reshape(-1)
            weights = None if values is None else values[start : start + step].reshape(-1)
            out[start : start + step] = np.bincount(at, weights=weights, minlength=rows * width).reshape(rows, width)
        return [row[: int(count)].copy() for row, count in zip(out, self.count, strict=True)]


@dataclass(frozen=True)
class Cue:
    """Something the base may rely on, put into an input to see whether it steers (TLA608).

    ``kind``: image: "patch" (corner patch), "border", "hue", "text", "hat" (brim and crown), "background" (around regions: another colour, or
    ``picture``, a file); table: "set_column". ``settings`` as in ``[[cues]]`` of audit.toml, e.g. {"corner": "top-left", "size": 0.15, "value": 1.0}
    or {"column": "sex", "value": "female"}.
    """

    name: str
    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # Any: TOML values

    @property
    def content_key(self) -> str:
        """Hash of what is put in, files that it names included: what is measured with the cue is stored under it."""
        said = [self.name, self.kind, *(f"{k} = {v!r}" for k, v in sorted(self.settings.items()))]
        digest = hashlib.sha256("\0".join(said).encode())
        named = self.settings.get("picture")
        if isinstance(named, str | Path) and Path(named).is_file():
            digest.update(Path(named).read_bytes())
        return digest.hexdigest()


MaskMethod = Literal["mean", "blur", "noisy_linear", "zero", "marginal", "conditional"]
"""How removed parts are filled in.

mean: the background's mean (colour, column means); blur: a blurred copy of the input; zero: 0 in input space; noisy_linear: from the parts that stay
beside them (Rong 2022); marginal: a row of the background, drawn; conditional: a row of the background near the input in the parts that stay.
"""
MASK_METHODS: tuple[MaskMethod, ...] = ("mean", "blur", "noisy_linear", "zero", "marginal", "conditional")


@dataclass(frozen=True)
class PerInput:
    """Seeds of what is drawn to fill in removed parts, one for each input: a masked row then depends on its input's key and on its mask alone,
    so that rows of many inputs can be filled in together.
    """

    keys: tuple[tuple[Any, ...], ...]  # Any: parts of a generator's key


Key = tuple[Any, ...] | PerInput
"""Seeds of fills: one key for all rows, drawn in their order, or one for each input."""


@dataclass(frozen=True)
class Neighbourhood:
    """What "near" means to a local surrogate model of this kind of data (lime's choices).

    Attributes
    ----------
    distance : of a 0/1 row of parts to the row of ones: "cosine", or "euclidean"
    width : of the exponential kernel; for "euclidean" it is multiplied by the root of the number of parts
    """

    distance: Literal["cosine", "euclidean"]
    width: float


@dataclass(frozen=True)
class Caps:
    """Bounds of what is read. ``pixels`` per image, ``rows`` and ``bytes`` per table (decoded), ``bad_fraction`` of unusable samples per domain."""

    pixels: int = 89_478_485  # where Pillow itself begins to warn of a decompression bomb
    rows: int = 20_000_000
    bytes: int = 4 * 2**30
    bad_fraction: float = 0.10

    def refuse_above(self, bad: Mapping[str, str], n: int, what: str) -> None:
        """Raise DataError if more than ``bad_fraction`` of ``n`` samples are unusable. ``bad``: id -> reason; the first 5 are listed."""
        if n == 0 or len(bad) <= self.bad_fraction * n:
            return
        listed = "; ".join(f"{name}: {reason}" for name, reason in list(bad.items())[:5])
        more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise DataError(f"{len(bad)} of {n} {what}, the cap is {self.bad_fraction:.0%} (caps.bad_fraction): {listed}{more}")


class Modality(Protocol):
    """A kind of data. One frozen instance per kind: ``modality.IMAGE``, ``modality.TABULAR``."""

    @property
    def kind(self) -> str: ...

    @property
    def default_mask(self) -> MaskMethod:
        """How removed parts are filled for faithfulness: noisy linear imputation for images, marginal draw for tables."""
        ...

    def content_hashes(self, batch: RawBatch) -> list[str | None]:
        """SHA-256 of each sample's decoded content (TLA201); None where unreadable."""
        ...

    def sketches(self, batch: RawBatch) -> NDArray[np.uint8] | None:
        """(B, 16, 16) grey sketches, by which near copies of pictures are found (TLA202), 0 where unreadable; None for what is no picture."""
        ...

    def cell_columns(self, properties: Mapping[str, NDArray[Any]]) -> tuple[str, ...] | None:
        """Those of the properties that are the cells of a row, in all of which near copies of rows agree (TLA202); None for what is no row."""
        ...

    def properties(self, batch: RawBatch) -> dict[str, NDArray[Any]]:
        """Plain properties of the inputs (TLA507): name -> (B,) float64 (NaN where unreadable) or object (str/None) array."""
        ...

    def encode(self, batch: RawBatch, spec: InputSpec | None) -> torch.Tensor:
        """Model inputs (B, ...), float32, of the readable samples only, in order. May hold non-finite values (counted by the collector)."""
        ...

    def spec_notes(self, samples: Samples, spec: InputSpec | None) -> tuple[str, ...]:
        """What this preprocessing does to these samples that a reader must know (a column the domain lacks, unseen categories); () if nothing."""
        ...

    @property
    def segmentations(self) -> tuple[str, ...]:
        """Ways to cut an input into parts, the default first: "slic", "quickshift", "grid"; "columns"."""
        ...

    @property
    def masks(self) -> tuple[MaskMethod, ...]:
        """Fills that ``mask`` knows for this kind."""
        ...

    def neighbourhood(self, players: Players) -> Neighbourhood:
        """What lime calls near, for parts of this kind."""
        ...

    def players(
        self, inputs: torch.Tensor, spec: InputSpec | None, *, most: int = 49, seed: int = 0, segmentation: str | None = None
    ) -> Players:
        """Input parts of each sample: superpixels (at most ``most``), columns. DataError for a segmentation the kind does not have."""
        ...

    def filler(
        self, inputs: torch.Tensor, spec: InputSpec | None, method: MaskMethod, background: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """(N, ...) what fills any removed part of each input where that does not depend on which parts stay (mean, blur, zero); None else."""
        ...

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
        """Inputs with some players removed: row r is ``inputs[index[r]]`` with players where ``keep[r]`` is False filled by ``method``.

        keep : (R, most players) bool; ``background`` (M, ...) serves "marginal" (draws seeded by key and row) and "mean".
        """
        ...

    def baseline(self, inputs: torch.Tensor, spec: InputSpec | None, background: torch.Tensor | None) -> torch.Tensor:
        """The 'nothing there' input of each sample (N, ...): black/mean image in input space, column means."""
        ...

    def edges(self, inputs: torch.Tensor) -> NDArray[np.float64] | None:
        """(N, *spatial) edge maps, the floor reference of TLA702/703; None where the kind has none (tables)."""
        ...

    def apply_cue(self, batch: RawBatch, cue: Cue, *, placebo: bool, key: tuple[Any, ...]) -> RawBatch:
        """The batch with the cue in every sample; ``placebo``: a random one of the same area (random patch, permuted column)."""
        ...

    def cue_kinds(self) -> tuple[str, ...]:
        """Cue kinds this modality knows."""
        ...

    def corruption_kinds(self) -> tuple[str, ...]:
        """Everyday disturbances this kind of data knows (TLA801), () where it knows none."""
        ...

    def corruption_scales(self, samples: Samples, rows: NDArray[np.int64]) -> Mapping[str, Any]:
        """What disturbances are measured by, from these rows (spread and categories of columns); {} where a sample needs no other."""
        ...

    def corrupt(self, batch: RawBatch, kind: str, severity: int, *, keys: Sequence[tuple[Any, ...]], scales: Mapping[str, Any]) -> RawBatch:
        """The batch disturbed, severity 0 (not at all) to 3; ``keys``: seeds, one for each sample. DataError for a kind it does not know."""
        ...

    def noise(self, samples: Samples, rows: NDArray[np.int64], spec: InputSpec | None, *, keys: Sequence[tuple[Any, ...]]) -> torch.Tensor:
        """Model inputs (len(keys), ...) of nothing but uniform noise (TLA802): every colour; each column anywhere from its lowest to its highest value
        in these rows, or any of the categories seen there. ``keys``: seeds, one for each."""
        ...

    def picture(
        self, inputs_row: torch.Tensor, spec: InputSpec | None, *, title: str, side: int = 160, redacted: bool = False
    ) -> Picture | None:
        """The sample as a picture, None where the kind has none."""
        ...

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
        """An attribution map over the sample as a picture (cividis, or blue-white-orange centred at 0 where signed); blank maps are drawn as 'no signal'.

        ``scale``: values at both ends of the colours (None: the map's own); ``outlines``: part of each place, whose borders are drawn.
        """
        ...

    def map_bars(self, values: NDArray[np.float64], players: Players, row: int) -> tuple[Bar, ...]:
        """An attribution over named parts as bars (tables), () where maps are pictures."""
        ...
