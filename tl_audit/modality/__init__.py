"""Kinds of data: how they are read, encoded, masked for perturbation, and drawn. Nothing outside asks which kind it is."""

from __future__ import annotations

from tl_audit.modality.base import Caps, Cue, MaskMethod, Modality, Players, RawBatch, Samples
from tl_audit.modality.image import IMAGE
from tl_audit.modality.opening import MODALITIES, Opened, modality, open_data
from tl_audit.modality.tabular import TABULAR, TableSamples, encode_rows, fit_encoding
from tl_audit.modality.tensors import TENSOR

__all__ = [
    "IMAGE",
    "MODALITIES",
    "TABULAR",
    "TENSOR",
    "Caps",
    "Cue",
    "MaskMethod",
    "Modality",
    "Opened",
    "Players",
    "RawBatch",
    "Samples",
    "TableSamples",
    "encode_rows",
    "fit_encoding",
    "modality",
    "open_data",
]
