"""The run directory: what ``adapt`` leaves behind, and how it is opened again without training. Old or new, never half; the manifest comes last."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from pydantic import Field, ValidationError

from tl_audit.errors import ConfigError, RecordError, WeightsError
from tl_audit.models import WeightsFile, file_sha256, load_weights, save_weights
from tl_audit.records.adaptation import AdaptationRecord, StageRecord
from tl_audit.records.base import Record
from tl_audit.records.preprocessing import Preprocessing, TableEncoding, TensorInput
from tl_audit.records.schema import canonical_json
from tl_audit.records.values import Output

ADAPTED, BASE = "adapted.safetensors", "base.safetensors"
RECORD, PLAN, ENCODING, SAMPLES, MANIFEST = "adaptation.json", "plan.toml", "encoding.json", "samples.parquet", "manifest.json"
PARTIAL = ".partial"
"stages that are done while a run is not; gone when the manifest is written"
SAMPLE_COLUMNS = ("id", "split", "label", "cluster", "content_hash")
LOCK = "lock"
MOST_JSON_BYTES = 64 * 2**20
_R = TypeVar("_R", bound=Record)


def control_file(kind: str) -> str:
    return f"controls/{kind}.safetensors"


class ModelForm(Record):
    """What is needed to build a network again, before its weights are loaded."""

    arch: str
    num_classes: int | None
    "of the constructor"
    classes: tuple[str, ...] | None = None
    head: str | None = None
    heads: tuple[str, ...] = ()
    "the head and its auxiliary heads"
    new_head: int | None = None
    "width of the head that replaced the constructor's; None: it was kept"
    input_size: int | None = None
    settings: Mapping[str, Any] = Field(default_factory=dict)
    output: Output = None


class Encoding(Record):
    """encoding.json: how raw samples become inputs, and how the networks are built."""

    schema_version: Literal[1] = 1
    kind: str
    preprocessing: Preprocessing | TableEncoding | TensorInput | None = Field(default=None, discriminator="kind")
    adapted: ModelForm
    base: ModelForm
    plan_folder: str | None = None
    "what the plan's relative paths start from, relative to the run; None: the data was given in Python"


class FileEntry(Record):
    sha256: str
    bytes: int


class Manifest(Record):
    """manifest.json: every file of the run with its hash. Written last: without it a run is not complete."""

    schema_version: Literal[1] = 1
    files: Mapping[str, FileEntry]


class StageState(Record):
    """One finished stage of an unfinished run. ``key`` says of which plan, data and base."""

    key: str
    record: StageRecord
    samples_seen: int = 0


class Row(NamedTuple):
    """One sample of samples.parquet. ``label`` is a class name, or in a regression the number as text."""

    id: str
    split: str
    label: str
    cluster: str | None
    content_hash: str


# Writing ----------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder that replaces ``path`` when the block ends well, and is removed when it does not.

    Raises
    ------
    ConfigError : the disk is full or the folder cannot be written; the old file is as it was
    """
    handle, name = "", ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(descriptor)
        handle = name
        yield Path(handle)
        with open(handle, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(handle, 0o644)
        os.replace(handle, path)
        handle = ""
        _sync_folder(path.parent)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error}); what was there is unchanged") from error
    finally:
        if handle:
            Path(handle).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A text file, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, record: Record) -> None:
    """A record as JSON, atomically: sorted keys, newline at the end."""
    write_text(path, json.dumps(record.model_dump(mode="json"), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> WeightsFile:
    """A safetensors file, atomically, read back and compared before it takes its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return save_weights(tensors, path)


def write_samples(path: Path, rows: Sequence[Row]) -> None:
    """samples.parquet, atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: pa.array([getattr(row, name) for row in rows], type=pa.string()) for name in SAMPLE_COLUMNS}
    with replacing(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def write_manifest(folder: Path, names: Sequence[str]) -> None:
    """manifest.json over the named files. The last step of a run."""
    entries = {name: FileEntry(sha256=file_sha256(folder / name), bytes=(folder / name).stat().st_size) for name in sorted(names)}
    write_json(folder / MANIFEST, Manifest(files=entries))


def refuse_foreign(folder: Path) -> None:
    """ConfigError if the folder holds something that is not a run. Makes nothing."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ConfigError(f"{folder}: is not a folder; give another --out")
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).exists() for name in (MANIFEST, PARTIAL, RECORD)):
        raise ConfigError(f"{folder}: holds files that are not a run of tl-audit; nothing foreign is overwritten, give another --out")


def open_folder(folder: Path) -> None:
    """Makes the folder of a run, or takes an earlier run's.

    Raises
    ------
    ConfigError : it cannot be made, or another process is writing it
    """
    try:
        (folder / PARTIAL).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made ({error.strerror}); give another --out") from None
    _lock(folder)


def _lock(folder: Path) -> None:
    """Marks the folder as this process's; a dead process's mark is taken over. It goes with the unfinished stages."""
    path = folder / PARTIAL / LOCK
    mine = f"{os.getpid()} {socket.gethostname()}"
    if path.is_file():
        owner, _, host = path.read_text(encoding="utf-8", errors="replace").strip().partition(" ")
        elsewhere = host != socket.gethostname()
        if owner.isdigit() and int(owner) != os.getpid() and (elsewhere or _alive(int(owner))):
            where = "on another machine" if elsewhere else "here"
            raise ConfigError(
                f"{folder}: process {owner} {where} is writing this run; wait for it, or give another --out (stale? remove {path})"
            )
    write_text(path, mine + "\n")


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def clear_results(folder: Path) -> None:
    """Takes an earlier run's results away, its manifest first: from here on the folder is not a complete run."""
    for name in (MANIFEST, RECORD, ADAPTED, BASE, control_file("head"), control_file("scratch"), ENCODING, SAMPLES, PLAN):
        (folder / name).unlink(missing_ok=True)


def clear_partial(folder: Path) -> None:
    shutil.rmtree(folder / PARTIAL, ignore_errors=False)


# Stages of an unfinished run -----------------------------------------------------------------------------------------------------


def stage_key(*parts: object) -> str:
    """SHA-256 over everything that a stage's result depends on."""
    return hashlib.sha256(canonical_json([str(part) for part in parts]).encode()).hexdigest()


def save_stage(folder: Path, name: str, tensors: Mapping[str, torch.Tensor], state: StageState) -> None:
    """``stage.safetensors`` first, then its JSON: a stage without JSON is not done."""
    write_tensors(folder / PARTIAL / f"{name}.safetensors", tensors)
    write_json(folder / PARTIAL / f"{name}.json", state)


def load_stage(folder: Path, name: str, key: str) -> tuple[dict[str, torch.Tensor], StageState] | None:
    """A finished stage of exactly this plan, data and base; None where there is none, another one, or a damaged one (it is then trained anew)."""
    path = folder / PARTIAL / f"{name}.json"
    if not path.is_file():
        return None
    try:
        state = StageState.model_validate_json(path.read_text(encoding="utf-8"))
        if state.key != key:
            return None
        tensors, _ = load_weights(folder / PARTIAL / f"{name}.safetensors")
    except (ValidationError, WeightsError, OSError, UnicodeDecodeError):
        return None
    return dict(tensors), state


# Reading ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunFiles:
    """The checked files of a run directory: manifest verified, records parsed, no network built yet."""

    folder: Path
    manifest: Manifest
    record: AdaptationRecord
    encoding: Encoding
    controls: tuple[str, ...] = field(default=())
    "kinds whose weights are there"


def read_files(folder: str | Path) -> RunFiles:
    """The records of a run directory, every file compared with the manifest.

    Raises
    ------
    RecordError : no such folder, no manifest (the run is not complete), a file that is missing, altered or not readable; names it
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RecordError(f"{folder}: is not a run directory; give the folder that `tl-audit adapt --out` made")
    if not (folder / MANIFEST).is_file():
        what = "is not complete (the run was interrupted): run `tl-audit adapt` again, finished stages are reused"
        raise RecordError(f"{folder}: {what if (folder / PARTIAL).is_dir() else f'has no {MANIFEST}: it is not a run directory'}")
    if not (folder / RECORD).is_file() and (folder / "report.json").is_file():
        raise RecordError(f"{folder}: is the folder of a report, not a run directory; give the folder that `tl-audit adapt --out` made")
    manifest = _read(folder / MANIFEST, Manifest)
    for name in (RECORD, ENCODING, PLAN, SAMPLES, ADAPTED, BASE):
        if name not in manifest.files:
            raise RecordError(f"{folder / MANIFEST}: does not list {name}")
    for name, entry in manifest.files.items():
        verify(folder, name, entry)
    controls = tuple(kind for kind in ("head", "scratch") if control_file(kind) in manifest.files)
    return RunFiles(folder, manifest, _read(folder / RECORD, AdaptationRecord), _read(folder / ENCODING, Encoding), controls)


def verify(folder: Path, name: str, entry: FileEntry) -> None:
    """One file against its entry of the manifest; RecordError if it is missing or altered."""
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise RecordError(f"{folder / MANIFEST}: names {name!r}, which lies outside the run")
    if not path.is_file():
        raise RecordError(f"{path}: is missing, though the manifest lists it; copy the whole run directory, or adapt again")
    if path.stat().st_size != entry.bytes:
        raise RecordError(f"{path}: has {path.stat().st_size} bytes, the manifest says {entry.bytes}: it was cut or altered")
    if file_sha256(path) != entry.sha256:
        raise RecordError(f"{path}: was altered since the run was made (its SHA-256 is not that of the manifest)")


def read_samples(folder: Path) -> Any:  # Any: pandas is imported late
    """samples.parquet as a DataFrame with the columns of SAMPLE_COLUMNS."""
    import pandas as pd
    import pyarrow as pa

    try:
        frame = pd.read_parquet(folder / SAMPLES)
    except (OSError, pa.ArrowInvalid) as error:
        raise RecordError(f"{folder / SAMPLES}: cannot be read ({error})") from error
    missing = [name for name in SAMPLE_COLUMNS if name not in frame.columns]
    if missing:
        raise RecordError(f"{folder / SAMPLES}: has no column {missing[0]!r}")
    return frame[list(SAMPLE_COLUMNS)]


def _read(path: Path, kind: type[_R]) -> _R:
    try:
        if path.stat().st_size > MOST_JSON_BYTES:
            raise RecordError(f"{path}: {path.stat().st_size} bytes are more than this record can have")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: cannot be read ({error})") from error
    try:
        version = json.loads(text).get("schema_version")
    except (json.JSONDecodeError, RecursionError, AttributeError) as error:
        raise RecordError(f"{path}: is not a JSON record ({str(error)[:120]})") from error
    if isinstance(version, int) and version > 1:
        raise RecordError(f"{path}: has schema version {version}, this tl-audit reads up to 1: upgrade tl-audit")
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"{path}: is not a valid record at {where or 'the top level'}: {first['msg']}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
