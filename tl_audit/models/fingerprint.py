"""Fingerprints of weights: SHA-256 of a file, one hash of the tensors whatever file they lie in, and a scan for values that are not finite."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from tl_audit.errors import WeightsError

Tensors = Mapping[str, torch.Tensor]


def file_sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces of 1 MiB.

    Raises
    ------
    WeightsError : the file cannot be read
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def tensors_of(module: nn.Module | Tensors) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by name, detached and not copied. What a state dict holds beside tensors is left out."""
    state = module.state_dict() if isinstance(module, nn.Module) else module
    return {name: value.detach() for name, value in state.items() if isinstance(value, torch.Tensor)}


def tensor_hash(source: nn.Module | Tensors) -> str:
    """Hex SHA-256 of the tensors alone: the same for the same tensors in any file format and order.

    Names are sorted; of each tensor count its name, dtype, shape and little-endian bytes. A tensor of another dtype is another tensor.

    Examples
    --------
    >>> a, b = torch.zeros(2), torch.ones(3)
    >>> tensor_hash({"a": a, "b": b}) == tensor_hash({"b": b, "a": a})
    True
    >>> tensor_hash({"a": a}) == tensor_hash({"a": a.double()})
    False
    """
    digest = hashlib.sha256()
    tensors = tensors_of(source)
    for name in sorted(tensors):
        tensor = tensors[name]
        shape = ",".join(str(side) for side in tensor.shape)
        header = f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{shape}\0".encode()
        digest.update(len(header).to_bytes(8, "little"))  # lengths first, so that no two lists of tensors give one byte string
        digest.update(header)
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def nonfinite(source: nn.Module | Tensors) -> dict[str, int]:
    """Number of NaN or infinite values of each tensor that has any; empty where all is finite. Ideal: empty."""
    found = {}
    for name, tensor in tensors_of(source).items():
        if tensor.is_floating_point() or tensor.is_complex():
            wide = tensor.float() if tensor.element_size() == 1 else tensor  # the 8-bit types know no isfinite
            count = int(tensor.numel() - torch.isfinite(wide).sum().item())
            if count:
                found[name] = count
    return found


def _bytes(tensor: torch.Tensor) -> bytes | memoryview:
    flat = tensor.to("cpu").contiguous().reshape(-1)
    raw = flat.view(torch.uint8).numpy()
    if sys.byteorder == "big" and flat.element_size() > 1:
        raw = raw.reshape(-1, flat.element_size())[:, ::-1].copy().reshape(-1)
    return raw.tobytes() if not raw.flags.c_contiguous else raw.data
