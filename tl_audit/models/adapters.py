"""Low-rank adapters (LoRA) as they lie on disk: which modules they change, and by how much. Read without the package that wrote them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tl_audit.errors import DataError, ModelError
from tl_audit.models.weights import load_weights, sniff

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
PREFIX = "base_model.model."
MOST_CONFIG_BYTES = 2**20

_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.[^.]+)?(?:\.weight)?$")
_NOT_READ = ("lora_magnitude_vector", "lora_diag", "vera_", "hada_", "lokr_", "oft_", "ia3_")


@dataclass(frozen=True)
class LoraModule:
    """What one adapter adds to one weight.

    Attributes
    ----------
    a : (r, inputs) float64, ``b`` : (outputs, r) float64; convolutions have their windows flattened into the inputs
    scale : alpha / r, or alpha / sqrt(r) for rank-stabilised adapters
    transposed : the weight is stored as (inputs, outputs): embeddings, and linear layers with ``fan_in_fan_out``
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    transposed: bool = False

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    def delta(self, shape: tuple[int, ...]) -> torch.Tensor:
        """scale · B A in the shape of the weight, float64; ModelError where it does not fit."""
        product = self.scale * (self.b @ self.a)
        product = product.T if self.transposed else product
        if product.numel() != int(torch.Size(shape).numel()) or product.shape[0] != shape[0]:
            raise ModelError(f"an adapter of {tuple(product.shape)} values does not fit a weight of shape {shape}")
        return product.reshape(shape)

    def rank_use(self) -> float | None:
        """exp(entropy of the singular values of BA, normalised to sum 1) / r, in (0, 1]; None where BA is 0. Not larger than what r allows.

        References
        ----------
        Roy & Vetterli (2007). The effective rank: a measure of effective dimensionality. EUSIPCO.
        """
        # singular values of BA are those of R_B R_A' (r x r): no product of full size is decomposed
        left = torch.linalg.qr(self.b, mode="r").R
        right = torch.linalg.qr(self.a.T, mode="r").R
        values = torch.linalg.svdvals(left @ right.T)
        total = float(values.sum())
        if total == 0:
            return None
        share = values[values > 0] / total
        return float(torch.exp(-(share * share.log()).sum())) / self.rank


@dataclass(frozen=True)
class Adapter:
    """The adapters of one model: which weights they change, which modules are stored whole, and whether they are declared as merged.

    Attributes
    ----------
    modules : path of the module -> what is added to its ``weight``
    saved : tensor name -> value, of modules that are stored whole beside the adapters (a new head)
    merged : declared: the adapted model's weights hold the adapters already (once); False: they do not
    sha256 : of the adapters' file
    notes : what of the file is not read
    """

    path: str
    modules: Mapping[str, LoraModule]
    saved: Mapping[str, torch.Tensor] = field(default_factory=dict)
    merged: bool = True
    sha256: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def content_key(self) -> str:
        """Of the cache: the same adapters, declared alike."""
        if self.sha256 is not None:
            return f"{self.sha256}:{self.merged}"
        digest = hashlib.sha256()
        for name in sorted(self.modules):
            one = self.modules[name]
            digest.update(f"{name}\0{one.scale}\0{one.transposed}".encode())
            for tensor in (one.a, one.b):
                digest.update(tensor.contiguous().numpy().tobytes())
        for name in sorted(self.saved):
            digest.update(name.encode() + self.saved[name].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return f"{digest.hexdigest()}:{self.merged}"


def read_adapter(path: str | Path, *, merged: bool = True) -> Adapter:
    """The LoRA adapters of a folder written by Hugging Face's ``save_pretrained``: adapter_config.json and adapter_model.safetensors.

    Parameters
    ----------
    path : the folder
    merged : whether the adapted model's weights are said to hold the adapters already

    Raises
    ------
    DataError : no such folder or file; a pickled file; another kind of adapter than LoRA; a file whose tensors do not belong together
    """
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(f"adapter {folder}: no such folder; expected one with {CONFIG} and {WEIGHTS}")
    config = _config(folder / CONFIG)
    file = folder / WEIGHTS
    if not file.is_file():
        pickled = " (a pickled file is never opened: save it again as safetensors)" if (folder / PICKLED).is_file() else ""
        raise DataError(f"adapter {folder}: {WEIGHTS} is missing{pickled}")
    if sniff(file) != "safetensors":
        raise DataError(f"adapter {folder}: {WEIGHTS} is not a safetensors file whatever its name says: save it again as one")
    tensors, found = load_weights(file)
    factors: dict[str, dict[str, torch.Tensor]] = {}
    embeddings: set[str] = set()
    saved: dict[str, torch.Tensor] = {}
    unread: list[str] = []
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        match = _FACTOR.match(name)
        if match is not None:
            factors.setdefault(match["module"], {})[match["side"]] = tensor
            if match["embedding"]:
                embeddings.add(match["module"])
        elif any(part in name for part in (*_NOT_READ, ".lora_")):
            unread.append(name)
        else:
            saved[name.replace(".modules_to_save.default.", ".").replace(".base_layer.", ".")] = tensor
    if unread:
        raise DataError(f"adapter {folder}: {unread[0]} belongs to a form of adapter that is not read here (plain LoRA is)")
    modules = {}
    for module, pair in sorted(factors.items()):
        if set(pair) != {"A", "B"}:
            raise DataError(f"adapter {folder}: {module} has lora_{next(iter(pair))} but not its other half")
        modules[module] = _module(folder, module, pair, config, embedding=module in embeddings)
    if not modules:
        raise DataError(f"adapter {folder}: {WEIGHTS} holds no lora_A and lora_B")
    return Adapter(str(folder), modules, saved, merged, found.sha256, tuple(found.notes))


def _config(path: Path) -> dict[str, Any]:  # Any: JSON values
    if not path.is_file():
        raise DataError(f"adapter {path.parent}: {CONFIG} is missing")
    if path.stat().st_size > MOST_CONFIG_BYTES:
        raise DataError(f"{path}: larger than {MOST_CONFIG_BYTES} bytes, which no adapter's configuration is")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(config, dict):
        raise DataError(f"{path}: expected a JSON object")
    kind = config.get("peft_type", "LORA")
    if kind != "LORA" or config.get("use_dora"):
        raise DataError(f"{path}: adapters of type {'DoRA' if config.get('use_dora') else kind} are not read; LoRA is")
    return config


def _module(folder: Path, name: str, pair: Mapping[str, torch.Tensor], config: Mapping[str, Any], *, embedding: bool) -> LoraModule:
    a, b = pair["A"].double(), pair["B"].double()
    if embedding:  # (r, entries) and (width, r), for a weight stored as (entries, width)
        a, b = a.reshape(a.shape[0], -1), b.reshape(-1, b.shape[-1])
    else:
        a, b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
    if a.shape[0] != b.shape[1] or a.shape[0] == 0:
        raise DataError(f"adapter {folder}: the halves of {name} have ranks {a.shape[0]} and {b.shape[1]}")
    alpha = _by_pattern(config.get("alpha_pattern"), name, config.get("lora_alpha", a.shape[0]))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise DataError(f"adapter {folder}: lora_alpha of {name} is {alpha!r}, expected a number")
    rank = a.shape[0]
    scale = float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)
    return LoraModule(a, b, scale, transposed=embedding or bool(config.get("fan_in_fan_out")))


def _by_pattern(patterns: Any, name: str, default: Any) -> Any:  # Any: JSON values
    """The entry whose key ends the module's path, else the default. Keys that are patterns are refused: a stranger's pattern can take forever."""
    if isinstance(patterns, Mapping):
        for key, value in patterns.items():
            if not re.fullmatch(r"[\w.]+", str(key)):
                raise DataError(f"{CONFIG}: alpha_pattern {key!r} is a pattern; paths of modules are read")
            if name == key or name.endswith(f".{key}"):
                return value
    return default
