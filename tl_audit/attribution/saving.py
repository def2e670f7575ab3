"""Attributions as files: numbers as JSON or NPZ arrays, pictures through ``report.figures``; every file whole or not at all, never through a link."""

from __future__ import annotations

import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_audit.errors import ConfigError

if TYPE_CHECKING:
    from tl_audit.attribution.base import Attribution

__all__ = [
    "FORMAT_VERSION",
    "arrays",
    "csv_bytes",
    "document",
    "json_bytes",
    "made",
    "save_attribution",
    "write",
    "write_table",
    "write_whole",
]

Array = np.ndarray[Any, Any]  # Any: shape and type differ by entry

FORMAT_VERSION = 1
"""1: the first layout of attributions.json and attributions.npz."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write(
    path: str | Path,
    *,
    figure: Callable[[], Any],  # Any: a matplotlib figure
    document: Callable[[], Mapping[str, Any]],  # Any: JSON values
    arrays: Callable[[], Mapping[str, Array]],
    table: Callable[[], Any] | None = None,  # Any: a pandas DataFrame
) -> Path:
    """Write one file; its suffix decides which of the forms: .png (needs matplotlib), .npz, .json, and .csv where there is a table.

    Raises
    ------
    ConfigError : another suffix, a link in the way, a folder that cannot be written, matplotlib absent (.png)
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".png":
        data: bytes = import_module("tl_audit.report.figures").png_bytes(figure())
    elif suffix == ".npz":
        file = io.BytesIO()
        np.savez_compressed(file, **arrays())  # type: ignore[arg-type]  # names of ours, never "allow_pickle"
        data = file.getvalue()
    elif suffix == ".json":
        data = json_bytes(document())
    elif suffix == ".csv" and table is not None:
        data = csv_bytes(table())
    else:
        known = ".png, .npz, .json" + (", .csv" if table is not None else "")
        raise ConfigError(f"{path.name}: the suffix decides the format; there are {known}")
    write_whole(path, data)
    return path


def write_table(path: str | Path, *, document: Callable[[], Mapping[str, Any]], table: Callable[[], Any]) -> Path:  # Any: as in ``write``
    """Write .json or .csv, by suffix, whole or not at all. ConfigError as ``write`` raises it."""
    path = Path(path)
    if path.suffix.lower() not in (".json", ".csv"):
        raise ConfigError(f"{path.name}: the suffix decides the format; there are .json and .csv")
    write_whole(path, json_bytes(document()) if path.suffix.lower() == ".json" else csv_bytes(table()))
    return path


def save_attribution(maps: Attribution, path: str | Path) -> Path:
    """The maps as one file; see ``write``."""
    return write(path, figure=maps.figure, document=lambda: document(maps), arrays=lambda: arrays(maps))


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Canonical JSON: sorted keys, finite numbers only; what is not finite is null, what is not text is an escape."""
    text = json.dumps(_finite(content), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # a lone surrogate becomes \udcXX, which JSON reads back


def csv_bytes(frame: Any) -> bytes:  # Any: a pandas DataFrame
    """A table for spreadsheets: text that a spreadsheet would run as a formula gets a leading apostrophe."""
    safe = frame.copy()
    for name in safe.columns:
        if safe[name].dtype == object or str(safe[name].dtype).startswith(("str", "string")):
            safe[name] = [f"'{v}" if isinstance(v, str) and v[:1] in _FORMULA else v for v in safe[name]]
    text: str = safe.to_csv(index=False, lineterminator="\n")
    return text.encode("utf-8", "backslashreplace")


def document(maps: Attribution) -> dict[str, Any]:
    """What the JSON file holds: how the maps were made, and one row per sample and part."""
    return {"format_version": FORMAT_VERSION, **made(maps), "parts": maps.to_rows()}


def arrays(maps: Attribution) -> dict[str, Array]:
    """What the NPZ file holds, readable by ``numpy.load`` without pickles.

    ``values`` (N, *spatial); ``player_values`` and ``standard_error`` of all samples one after the other, cut at ``offsets`` (N + 1,);
    ``parts`` (N, *spatial) the part of each place; ``ids``, ``targets``, ``target_names``, ``blank``, ``made`` (how, as JSON).
    """
    counts = [len(v) for v in maps.player_values]
    out: dict[str, Array] = {
        "format_version": np.array(FORMAT_VERSION),
        "values": maps.values,
        "player_values": np.concatenate([np.zeros(0), *maps.player_values]),
        "offsets": np.cumsum([0, *counts]).astype(np.int64),
        "parts": maps.inputs.players.assignment.cpu().numpy(),
        "ids": np.array(maps.inputs.ids, dtype=np.str_),
        "targets": maps.targets,
        "blank": maps.blank,
        "made": np.array(json_bytes(made(maps)).decode("utf-8")),
    }
    if maps.inputs.players.names is not None:
        out["part_names"] = np.array(maps.inputs.players.names, dtype=np.str_)
    if maps.target_names is not None:
        out["target_names"] = np.array(maps.target_names, dtype=np.str_)
    if maps.against is not None:
        out["against"] = maps.against
    if maps.standard_error is not None:
        out["standard_error"] = np.concatenate([np.zeros(0), *maps.standard_error])
    if maps.completeness is not None:
        out["completeness"] = maps.completeness
    return out


def made(maps: Attribution) -> dict[str, Any]:
    """How the maps were made, as plain JSON values."""
    return {
        "method": maps.method,
        "signed": maps.signed,
        "layer": maps.layer,
        "layer_reason": maps.layer_reason,
        "seed": maps.seed,
        "model_evaluations_per_sample": maps.budget,
        "params": dict(maps.params),
        "quality": None if maps.quality is None else maps.quality.model_dump(),
        "caveats": list(maps.caveats),
    }


def _finite(value: Any) -> Any:  # Any: JSON values and what stands for them
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, np.ndarray):
        return _finite(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value)


def write_whole(path: Path, data: bytes) -> None:
    """The bytes at ``path``: readers see the old file or the new one, and nothing is written through a link."""
    if path.is_symlink():
        raise ConfigError(f"{path} is a link; nothing is written through links. Remove it or choose another place")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file")
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:60]}.", suffix=".tmp")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise ConfigError(f"{path} cannot be written ({error.strerror})") from error
    except BaseException:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise
