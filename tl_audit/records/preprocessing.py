"""How raw samples become model inputs: images and tables. Pure data; ``modality/`` applies it."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import Field

from tl_audit.records.base import Record


class Preprocessing(Record):
    """Of images: uint8 RGB -> float tensor (channels, height, width)."""

    kind: Literal["image"] = "image"
    height: int
    width: int
    resize: int | None = None
    "short side before the crop; None: resize straight to (height, width)"
    crop: Literal["center", "none"] = "none"
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    antialias: bool = True
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    channels: Literal[1, 3] = 3
    "1: luma"
    exif: Literal["transpose", "ignore"] = "transpose"


class NumericColumn(Record):
    name: str
    mean: float
    std: float
    fill: float
    "value put in for a missing cell (the median)"
    missing_indicator: bool = False


class CategoricalColumn(Record):
    name: str
    categories: tuple[str, ...]
    "an unseen or missing value becomes 'unknown', always the last slot"


class TableEncoding(Record):
    """Of table rows: one float vector per row. Numeric columns first (scaled, filled, then its missing indicator where there is one), then one-hot slots."""

    kind: Literal["tabular"] = "tabular"
    numeric: tuple[NumericColumn, ...] = ()
    categorical: tuple[CategoricalColumn, ...] = ()
    categorical_as: Literal["onehot", "embedding"] = "onehot"
    "embedding: the model begins with one bias-free linear map per categorical column over its one-hot slots"

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.numeric) + tuple(c.name for c in self.categorical)

    def slots(self) -> dict[str, tuple[int, int]]:
        """Column name -> [start, stop) in the encoded vector."""
        out: dict[str, tuple[int, int]] = {}
        at = 0
        for column in self.numeric:
            width = 2 if column.missing_indicator else 1
            out[column.name] = (at, at + width)
            at += width
        for cat in self.categorical:
            out[cat.name] = (at, at + len(cat.categories) + 1)
            at += len(cat.categories) + 1
        return out

    @property
    def width(self) -> int:
        return sum(2 if c.missing_indicator else 1 for c in self.numeric) + sum(len(c.categories) + 1 for c in self.categorical)


class TensorInput(Record):
    """Samples that already are model inputs (tensors given by a caller): nothing is applied."""

    kind: Literal["tensor"] = "tensor"
    shape: tuple[int, ...] = Field(default=())


InputSpec = Preprocessing | TableEncoding | TensorInput


def spec_hash(spec: Record | None) -> str:
    """SHA-256 of a record's canonical JSON; of 'null' for None."""
    data = None if spec is None else spec.model_dump(mode="json")
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
