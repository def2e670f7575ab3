"""Weight files, read without running what they carry: sniffed by content, checked before memory is asked for, loaded strictly.

The only module that may read pickles, and it does so only through torch's restricted reader (``weights_only=True``). There is no fallback.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pickletools
import re
import secrets
import shutil
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from tl_audit.errors import WeightsError
from tl_audit.models.difference import BATCH_COUNTER, matches
from tl_audit.models.fingerprint import Tensors, file_sha256, tensor_hash
from tl_audit.models.model import WeightsFile

Format = Literal["safetensors", "pickle", "torchscript", "pt2", "aotinductor"]

MODEL_BYTES = 32 * 2**30
"""Default cap on the bytes of a model's tensors (``[caps] model_bytes``)."""
OLDEST_TORCH_FOR_PICKLE = (2, 10)
"""Below it the restricted reader itself was escapable (CVE-2025-32434, CVE-2026-24747)."""

_HEADER_BYTES = 100_000_000  # the format's own bound on a safetensors header
_ZIP_RECORDS = 1_000_000
_PICKLE_BYTES = 256 * 2**20  # of a zip's data.pkl: names and shapes only, never weights
_EXPANDED_BYTES = 16 * 2**20
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # a pickled 0x1950a86a20f9469cfc6c
_WRAPPERS = ("state_dict", "model_state_dict", "model", "weights", "net", "module")
_SAFE_DTYPES: dict[str, int] = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8,
    "BOOL": 8, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
}  # fmt: skip
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "is gzip-compressed: unpack it first (gunzip)"),
    (b"version https://git-lfs", "is a Git-LFS pointer, not the weights: fetch them with 'git lfs pull'"),
    (b"\x89HDF", "is an HDF5 file (Keras?): only PyTorch weights are read, best as safetensors"),
    (b"GGUF", "is a GGUF file: only PyTorch weights are read, best as safetensors"),
    (b"\x93NUMPY", "is a NumPy array: only PyTorch weights are read, best as safetensors"),
    (b"\x89PNG", "is a picture, not weights"),
    (b"\xff\xd8\xff", "is a picture, not weights"),
    (b"%PDF", "is a PDF document, not weights"),
    (b"7z\xbc\xaf", "is a 7z archive: unpack it first"),
    (b"\xfd7zXZ", "is xz-compressed: unpack it first"),
    (b"BZh", "is bzip2-compressed: unpack it first"),
    (b"\x7fELF", "is native code, not weights: it is never loaded"),
)


# What kind of file -----------------------------------------------------------------------------------------------------------


def sniff(path: str | Path) -> Format:
    """The format of a weight file by its content, never by its suffix. Opens it, loads nothing, runs nothing.

    "safetensors" (header checked in full), "pickle" (``torch.save``, zip or legacy), "torchscript", "pt2" (``torch.export``)
    or "aotinductor". The last three hold code and are refused by ``load_weights``.

    Raises
    ------
    WeightsError : anything else, in one sentence: empty, cut off, HTML page, Git-LFS pointer, compressed, another program's file, unknown
    """
    path = Path(path)
    if path.is_dir():
        raise WeightsError(f"{path} is a folder: name the weight file in it (e.g. model.safetensors)")
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(4096)
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    if size == 0:
        raise WeightsError(f"{path} is empty (0 bytes): the download or copy failed, fetch it again")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _HEADER_BYTES:
        # asked first: its leading length can spell the marks of other formats (0x0280 those of a pickle, 0x8b1f those of gzip)
        _check_safetensors(path, size)
        return "safetensors"
    if head.startswith(b"PK\x03\x04") or head.startswith(b"PK\x05\x06"):
        return _sniff_zip(path)
    for magic, sentence in _FOREIGN:
        if head.startswith(magic):
            raise WeightsError(f"{path} {sentence}")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        raise WeightsError(
            f"{path} is an HTML or XML page, probably the error page of a failed download: open it in a browser, then fetch the file again"
        )
    if head.startswith((_LEGACY_TORCH, b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "pickle"
    if size < 10:
        raise WeightsError(f"{path} has {size} bytes, too few for any weights: it is cut off or not a weight file")
    raise WeightsError(
        f"{path} is no weight format that is known here (first bytes {head[:8].hex(' ')}): expected safetensors, or a file of torch.save"
    )


def _sniff_zip(path: Path) -> Format:
    records = _zip_records(path)
    names = [info.filename for info in records]
    inner = {name.partition("/")[2] for name in names} | set(names)
    if any("aotinductor" in name or name.endswith((".so", ".cubin")) for name in inner):
        return "aotinductor"
    if any(name in inner for name in ("serialized_exported_program.json", "archive_format", "models/model.json")):
        return "pt2"
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        return "torchscript"
    if any(name.endswith(".npy") for name in names):
        raise WeightsError(f"{path} is a NumPy .npz archive: only PyTorch weights are read, best as safetensors")
    if sum(name == "data.pkl" or name.endswith("/data.pkl") for name in names) != 1:
        raise WeightsError(
            f"{path} is a zip archive without a data.pkl, so not a file of torch.save: archives are not unpacked, name the weight file itself"
        )
    _require_plain_records(path, records)
    return "pickle"


def _zip_records(path: Path) -> list[zipfile.ZipInfo]:
    """Directory of a zip archive; nothing is unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, UnicodeDecodeError, NotImplementedError) as error:
        raise WeightsError(
            f"{path} begins as a zip archive but its directory is missing or damaged: it is cut off, fetch it again"
        ) from error
    if len(records) > _ZIP_RECORDS:
        raise WeightsError(f"{path} lists {len(records)} records, more than {_ZIP_RECORDS}")
    return records


def _require_plain_records(path: Path, records: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse what torch.save never writes: compressed, encrypted, overlapping or doubled records."""
    size = path.stat().st_size
    for info in records:
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise WeightsError(
                f"{path} holds a compressed record ({info.filename!r}), which torch.save never writes: a small file may unpack to anything, "
                "so it is refused"
            )
        if info.flag_bits & 0x1:
            raise WeightsError(f"{path} holds an encrypted record ({info.filename!r}), which torch.save never writes")
        if info.header_offset + info.file_size > size:
            raise WeightsError(f"{path} is cut off: record {info.filename!r} reaches beyond its end")
    claimed = sum(info.file_size for info in records)
    if claimed > size:
        raise WeightsError(f"{path} has {size} bytes, its records claim {claimed}: they overlap, so it is refused")
    names = [info.filename for info in records]
    if len(names) != len(set(names)):
        raise WeightsError(f"{path} holds two records of one name, so two readers could see two files: it is refused")


def _check_safetensors(path: Path, size: int) -> int:
    """Bytes of all tensors, by a header that was checked against the file's size: no gaps, no overlaps, nothing left over. Allocates nothing."""

    def bad(why: str) -> WeightsError:
        return WeightsError(f"{path} begins like safetensors, but {why}: it is cut off or damaged, fetch or write it again")

    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(_HEADER_BYTES, size - 8):
            raise bad(f"declares a header of {length} bytes in a file of {size}")
        raw = file.read(length)
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_doubles)
    except (ValueError, RecursionError) as error:
        raise bad("its header is not valid JSON") from error
    if not isinstance(header, dict):
        raise bad("its header is no JSON object")
    spans = []
    for name, entry in header.items():
        if name == "__metadata__":
            if not isinstance(entry, dict) or not all(isinstance(v, str) for v in entry.values()):
                raise bad("its metadata are not text")
            continue
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise bad(f"tensor {name!r} lacks dtype, shape or data_offsets")
        shape, offsets = entry["shape"], entry["data_offsets"]
        if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
            raise bad(f"tensor {name!r} has a shape or offsets that are no counts")
        if entry["dtype"] not in _SAFE_DTYPES:
            raise WeightsError(f"{path}: tensor {name!r} has dtype {entry['dtype']!r}, which is not read here")
        elements = 1
        for side in shape:
            elements *= side
        if elements * _SAFE_DTYPES[entry["dtype"]] != (offsets[1] - offsets[0]) * 8:
            raise bad(f"tensor {name!r} declares shape {shape} but {offsets[1] - offsets[0]} bytes")
        spans.append((offsets[0], offsets[1], name))
    at = 0
    for start, stop, name in sorted(spans):
        if start != at:
            raise bad(f"tensor {name!r} starts at byte {start}, expected {at}")
        at = stop
    if at != size - 8 - length:
        raise bad(f"its tensors need {at} bytes and the file holds {size - 8 - length}")
    return at


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("doubled key")
    return dict(pairs)


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**63 for v in value)


# Loading ---------------------------------------------------------------------------------------------------------------------


def load_weights(path: str | Path, *, trust: Sequence[str] = (), cap: int = MODEL_BYTES) -> tuple[dict[str, torch.Tensor], WeightsFile]:
    """The tensors of a weight file by name, on the CPU, with the file's hash and format.

    safetensors is read after its header was checked; files of ``torch.save`` only by the restricted reader, on torch >= 2.10.
    A checkpoint that wraps its weights ("state_dict", ...) is unwrapped, and a note says so. Values that are not finite load (TLA112 judges them).

    Parameters
    ----------
    trust : SHA-256 hex digests of files that may be opened although they can run code: then the names that this file asks for are
        allowed, still under the restricted reader (or TorchScript is opened). Recorded in the result.
    cap : most bytes of all tensors together

    Raises
    ------
    WeightsError : refused, damaged, too large, or changed while being read; says which file, its SHA-256, why, and what to do
    """
    path = Path(path)
    form = sniff(path)
    before = path.stat()
    sha256 = file_sha256(path)
    trusted = sha256 in {t.strip().lower().removeprefix("sha256:") for t in trust}
    wanted: tuple[str, ...] = ()
    used_trust = False
    if form == "safetensors":
        _require_memory(path, _check_safetensors(path, before.st_size), cap)
        content: Any = _read_safetensors(path)
    elif form == "pickle":
        _require_memory(path, before.st_size, cap)
        content, wanted = _read_pickle(path, sha256, trusted=trusted)
        used_trust = bool(wanted)
    elif form == "torchscript" and trusted:
        _require_memory(path, before.st_size, cap)
        content, used_trust = _read_torchscript(path), True
    else:
        raise WeightsError(_refusal(path, sha256, form))
    after = path.stat()
    if (before.st_size, before.st_mtime_ns, before.st_ino) != (after.st_size, after.st_mtime_ns, after.st_ino):
        raise WeightsError(f"{path} changed while it was being read: wait until it is written, then run again")
    tensors, notes = _tensors_in(content, path)
    _check_sizes(path, tensors, cap)
    return tensors, WeightsFile(str(path), sha256, form, trusted_by_hash=used_trust, refused_globals=wanted, notes=notes)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, torch.Tensor] = load_file(path, device="cpu")
    except (SafetensorError, RuntimeError, OSError, MemoryError) as error:
        raise WeightsError(
            f"{path} cannot be read as safetensors ({type(error).__name__}): it is damaged, fetch or write it again"
        ) from error
    return tensors


def _read_pickle(path: Path, sha256: str, *, trusted: bool) -> tuple[Any, tuple[str, ...]]:
    """What a file of torch.save holds, and the names beyond torch's allowlist that were allowed because the file is trusted."""
    if torch_version() < OLDEST_TORCH_FOR_PICKLE:
        raise WeightsError(
            f"{path} (sha256 {sha256}) is a pickle, and below torch 2.10 the restricted reader can be escaped (this is {torch.__version__}): "
            f"upgrade torch, or {_how_to_resave(path)}"
        )
    wanted = _unsafe_globals(path)
    if not _torch_wrote(path):
        asks = f", and asks for {', '.join(wanted)}" if wanted else ""
        raise WeightsError(
            f"{path} (sha256 {sha256}) is a Python pickle that torch.save did not write{asks}; it is not opened: {_how_to_resave(path)}"
        )
    if wanted and not trusted:
        raise WeightsError(_refusal(path, sha256, "pickle", wanted))
    allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [_resolve(name, path) for name in wanted]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True), wanted
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:  # the reader's own texts advise the unsafe switch, so none of them is passed on
        if "nsupported" in str(error) or "not an allowed global" in str(error) or "Unsupported" in str(error):
            raise WeightsError(_refusal(path, sha256, "pickle", wanted)) from None
        raise WeightsError(
            f"{path} (sha256 {sha256}) looks like a file of torch.save but cannot be read by torch's restricted reader ({type(error).__name__}): "
            f"it is cut off, damaged, or holds more than weights; fetch it again, or {_how_to_resave(path)}"
        ) from None


def _read_torchscript(path: Path) -> Any:
    try:
        return torch.jit.load(str(path), map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        raise WeightsError(f"{path} is a TorchScript archive that this torch cannot open ({type(error).__name__})") from error


def _unsafe_globals(path: Path) -> tuple[str, ...]:
    """Names that a pickle asks for and torch's restricted reader does not allow. Lists them without loading anything."""
    try:
        with open(path, "rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
        if is_zip:
            records = [i for i in _zip_records(path) if i.filename.endswith("/data.pkl") or i.filename == "data.pkl"]
            if any(info.file_size > _PICKLE_BYTES for info in records):
                raise WeightsError(f"{path}: its pickle has {records[0].file_size} bytes, more than names and shapes need; it is refused")
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        else:
            names = sorted(_legacy_globals(path) - _allowed_names())
    except WeightsError:
        raise
    except Exception as error:  # a pickle that cannot even be listed is not loaded either
        raise WeightsError(
            f"{path} is a pickle that is cut off or damaged ({type(error).__name__}): fetch it again, or {_how_to_resave(path)}"
        ) from None
    return tuple(sorted(set(names)))


def _torch_wrote(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(_LEGACY_TORCH)).startswith((b"PK\x03\x04", _LEGACY_TORCH))


def _legacy_globals(path: Path) -> set[str]:
    """Names asked for by a pickle outside a zip: the file's pickles (legacy torch files have five) are disassembled, not run."""
    names: set[str] = set()
    with open(path, "rb") as file:
        count = 5 if file.read(len(_LEGACY_TORCH)) == _LEGACY_TORCH else 1
        file.seek(0)
        for _ in range(count):
            strings: list[str] = []
            for opcode, argument, _position in pickletools.genops(file):
                if opcode.name in ("GLOBAL", "INST"):
                    names.add(str(argument).replace(" ", ".", 1))
                elif opcode.name == "STACK_GLOBAL":
                    names.add(".".join(strings[-2:]) if len(strings) >= 2 else "(a name that is computed)")
                elif isinstance(argument, str):
                    strings.append(argument)
    return names


def _allowed_names() -> set[str]:
    """Names that torch's restricted reader accepts by itself in legacy files."""
    from torch._weights_only_unpickler import _get_allowed_globals

    return set(_get_allowed_globals())


def _resolve(name: str, path: Path) -> Callable[..., Any]:
    """The object behind a name of a trusted pickle."""
    module, _, attribute = name.rpartition(".")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise WeightsError(
            f"{path} is trusted but asks for {name}, which is not installed here: install it, or {_how_to_resave(path)}"
        ) from error
    return found


def torch_version() -> tuple[int, int]:
    """Major and minor version of torch."""
    found = re.match(r"(\d+)\.(\d+)", torch.__version__)
    return (int(found.group(1)), int(found.group(2))) if found else (0, 0)


def _refusal(path: Path, sha256: str, form: str, wanted: Sequence[str] = ()) -> str:
    what = {
        "pickle": "is a pickle that asks for names outside torch's allowlist" + (f" ({', '.join(wanted)})" if wanted else ""),
        "torchscript": "is a TorchScript archive, which is executable code",
        "pt2": "is a torch.export archive (.pt2), whose reader may fall back to running code",
        "aotinductor": "is an AOTInductor package, which is native code",
    }[form]
    trust = f" If you trust its origin, name it by its hash: --trust {sha256}." if form in ("pickle", "torchscript") else ""
    return f"{path} (sha256 {sha256}) {what}, so it is not loaded. Ask its author for safetensors, or {_how_to_resave(path)}.{trust}"


def _how_to_resave(path: Path) -> str:
    return f"re-save the weights where they came from: safetensors.torch.save_file(model.state_dict(), {path.stem + '.safetensors'!r})"


def _tensors_in(content: Any, path: Path) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The state dict inside what was loaded."""
    notes: list[str] = []
    if isinstance(content, nn.Module):
        content = content.state_dict()
        notes.append("the file holds a whole module: its state dict was taken")
    if isinstance(content, Mapping) and not _is_state(content):
        key = next((k for k in _WRAPPERS if isinstance(content.get(k), Mapping) and _is_state(content[k])), None)
        if key is not None:
            notes.append(f"the file is a checkpoint: its {key!r} was taken")
            content = content[key]
    if not isinstance(content, Mapping) or not _is_state(content):
        found = ", ".join(map(repr, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
        raise WeightsError(f"{path} holds no tensors by name; found {found or 'nothing'}: save model.state_dict()")
    tensors: dict[str, torch.Tensor] = {}
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise WeightsError(f"{path}: entry {name!r} is {type(value).__name__}, expected a tensor: save model.state_dict() alone")
        if value.layout is not torch.strided or value.is_quantized or value.device.type == "meta":
            raise WeightsError(f"{path}: tensor {name!r} is sparse, quantised or without data, which is not read here")
        tensors[str(name)] = value.detach()
    return tensors, tuple(notes)


def _is_state(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(isinstance(k, str) for k in content) and any(isinstance(v, torch.Tensor) for v in content.values())


def _check_sizes(path: Path, tensors: Tensors, cap: int) -> None:
    """Refuse tensors that claim far more elements than the file stores, before anyone copies them."""
    claimed = sum(t.numel() * t.element_size() for t in tensors.values())
    expanded = sum(max(0, t.numel() * t.element_size() - t.untyped_storage().nbytes()) for t in tensors.values())
    if expanded > _EXPANDED_BYTES:
        raise WeightsError(f"{path} has {path.stat().st_size} bytes but its tensors claim {claimed}: expanded tensors are refused")
    _require_memory(
        path, claimed, cap, already=sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors.values()}.values())
    )


def _require_memory(path: Path, need: int, cap: int, *, already: int = 0) -> None:
    if need > cap:
        raise WeightsError(f"{path} needs {need:,} bytes for its tensors, the cap is {cap:,} ([caps] model_bytes)")
    free = free_memory()
    if free is not None and need - already > free:
        raise WeightsError(f"{path} needs {need - already:,} bytes of memory, {free:,} are free")


def free_memory() -> int | None:
    """Bytes of memory that can be had without swapping; None where the system does not say."""
    with suppress(OSError, ValueError, IndexError), open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


# Into a module ---------------------------------------------------------------------------------------------------------------


def load_into(module: nn.Module, tensors: Tensors, *, file: WeightsFile, declared: Sequence[str] = ()) -> WeightsFile:
    """Copy tensors into a module, all of them and into all of it; returns ``file`` with what differed.

    ``declared``: tensor names, module paths or globs that may differ (a new head): these keep the module's own values and are listed
    in ``reinitialised``. Dtypes are converted to the module's (noted). A "module." prefix left by a parallel wrapper is dropped (noted).

    Raises
    ------
    WeightsError : tensors missing, unexpected or of another shape that were not declared; names each with its shapes
    """
    state = {name: value for name, value in module.state_dict(keep_vars=True).items() if isinstance(value, torch.Tensor)}
    notes = list(file.notes)
    given = dict(tensors)
    if given and all(n.startswith("module.") for n in given) and not any(n.startswith("module.") for n in state):
        given = {n.removeprefix("module."): t for n, t in given.items()}
        notes.append("the names' prefix 'module.' (a parallel wrapper) was dropped")
    missing = [n for n in state if n not in given]
    counters = [n for n in missing if n.rpartition(".")[2] == BATCH_COUNTER]
    if counters:  # files older than torch 0.4.1 have none; the counter plays no part in evaluation
        notes.append(f"{len(counters)} batch counters (num_batches_tracked) are not in the file and stay 0")
    tied = [n for n in missing if any(state[n] is state[o] for o in given if o in state)]
    if tied:
        notes.append(f"tied tensors are in the file once: {', '.join(tied)}")
    missing = [n for n in missing if n not in counters and n not in tied]
    unexpected = [n for n in given if n not in state]
    reshaped = [n for n in state if n in given and not _fits(given[n], state[n])]
    problems = [
        *(f"missing {n} {tuple(state[n].shape)}" for n in missing if not matches(n, declared)),
        *(f"unexpected {n} {tuple(given[n].shape)}" for n in unexpected if not matches(n, declared)),
        *(f"{n} has {_kind(given[n])} in the file, {_kind(state[n])} in the model" for n in reshaped if not matches(n, declared)),
    ]
    if problems:
        more = f"; and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise WeightsError(
            f"{file.path} does not fit the model, {len(problems)} tensors differ: {'; '.join(problems[:12])}{more}. "
            "Check the architecture, or declare what differs on purpose (a new head)"
        )
    converted = set()
    with torch.no_grad():
        for name, target in state.items():
            if name in given and name not in reshaped:
                if given[name].dtype != target.dtype:
                    converted.add(f"{_short(given[name])} to {_short(target)}")
                target.copy_(given[name])
    if converted:
        notes.append(f"values were converted on loading: {', '.join(sorted(converted))}")
    kept = tuple(n for n in state if n in missing or n in reshaped)
    differ = {*missing, *unexpected, *reshaped}
    return dataclasses.replace(
        file,
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        reshaped=tuple(reshaped),
        reinitialised=kept,
        declared=tuple(n for n in (*state, *unexpected) if n in differ),
        notes=tuple(notes),
    )


def _fits(value: torch.Tensor, target: torch.Tensor) -> bool:
    return (
        value.shape == target.shape
        and value.is_floating_point() == target.is_floating_point()
        and value.is_complex() == target.is_complex()
    )


def _kind(tensor: torch.Tensor) -> str:
    return f"shape {tuple(tensor.shape)} {_short(tensor)}"


def _short(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


# Saving ----------------------------------------------------------------------------------------------------------------------


def save_weights(tensors: Tensors | nn.Module, path: str | Path, *, metadata: Mapping[str, str] | None = None) -> WeightsFile:
    """Write tensors (or a module's state dict) as safetensors: the old file or the new one is there, never half of one.

    Shared tensors are written once per name, non-contiguous ones made contiguous. The file is read back and compared before it takes its name.

    Raises
    ------
    WeightsError : nothing to write, not enough space, not writable; says the file, the need and the free space
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(path)
    state = tensors.state_dict() if isinstance(tensors, nn.Module) else tensors
    seen: set[int] = set()
    ready: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise WeightsError(f"{path}: entry {name!r} is {type(value).__name__}, only tensors are saved")
        tensor = value.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        ready[name] = (
            tensor.clone() if place in seen or tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size() else tensor
        )
        seen.add(ready[name].untyped_storage().data_ptr())
    if not ready:
        raise WeightsError(f"{path}: there are no tensors to save")
    need = sum(t.numel() * t.element_size() for t in ready.values()) + 65536
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        free = shutil.disk_usage(path.parent).free
        if free < need:
            raise WeightsError(f"{path} needs {need:,} bytes, {free:,} are free in {path.parent}: make room, or choose another folder")
        save_file(ready, temporary, metadata={"format": "pt", **(metadata or {})})
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        if tensor_hash(_read_safetensors(temporary)) != tensor_hash(ready):
            raise WeightsError(f"{path}: what was written reads back differently: the disk or memory is faulty")
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be written ({getattr(error, 'strerror', None) or error}); it needs {need:,} bytes") from error
    finally:
        temporary.unlink(missing_ok=True)
    return WeightsFile(str(path), file_sha256(path), "safetensors")


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
