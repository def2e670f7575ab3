"""Where evidence lies between runs: content-addressed entries, whole or absent, never half.

::

    .tl_audit/
      FORMAT  lock  .gitignore
      domains/<key>/        what was read: content hashes, properties, read errors; one shard per block of rows
      outputs/<key>/        what a model gave: logits, features, layers, finite (.npy); table.json, journal, manifest.json (last)
      maps/<key>.npz        attributions
      measurements/<key>.json
      history/<key>.json    policies that judged one model on one target, in order; kept when evidence is given up

Arrays are preallocated and filled block by block. A block counts once its line stands in the journal, which is written after the
bytes are on disk; a line that does not fit its bytes is computed again. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
import socket
import tempfile
import weakref
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_audit.errors import ConfigError, DataError
from tl_audit.records.schema import canonical_json

log = logging.getLogger(__name__)

FORMAT = 1
"""Version of the evidence format: part of every key, so that evidence of another version is never read."""

LEAST_BLOCK, MOST_BLOCK = 256, 4096
"""Rows per block: what a killed run loses at most, and what is held in memory before it is written."""


def key_of(*parts: Any) -> str:  # Any: plain JSON values
    """Hex SHA-256 of plain values as canonical JSON: the name of an entry."""
    return hashlib.sha256(canonical_json([FORMAT, *parts]).encode("utf-8", "surrogatepass")).hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: temporary file in the same folder, fsync, replace, fsync of the folder.

    Raises
    ------
    DataError : the disk is full or read-only; names file, need and free space. The temporary file is removed
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise _no_room(path, len(data), error) from error


class Store:
    """A folder of evidence, locked for one process. With ``folder=None`` a temporary one that goes when it is closed."""

    def __init__(self, folder: str | Path | None = None) -> None:
        self.temporary = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="tl_audit-")) if folder is None else Path(folder)
        self.notes: list[str] = []
        "what was reused, damaged and computed again, taken over: said in the log, not in the record"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the evidence folder {self.folder} cannot be made: {error.strerror}; give another ([evidence] dir in audit.toml, --evidence of `rank`)"
            ) from error
        self._lock = _Lock(self.folder / "lock", self.note)
        self._finalizer = weakref.finalize(self, _end, self._lock, self.folder if self.temporary else None)
        if not (self.folder / ".gitignore").exists():
            write_atomically(self.folder / ".gitignore", b"*\n")
        write_atomically(self.folder / "FORMAT", f"tl_audit evidence {FORMAT}\n".encode())

    def note(self, text: str) -> None:
        """Say something about the store itself: to the log and ``notes``."""
        log.info(text)
        self.notes.append(text)

    def clear(self) -> None:
        """Give up all that is stored. What is known of earlier policies stays: it is no evidence that could be made anew."""
        for name in ("domains", "outputs", "maps", "measurements"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def close(self) -> None:
        """Release the lock; a temporary folder goes. Memory-mapped arrays that are still held stay readable."""
        self._finalizer()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def path(self, *parts: str) -> Path:
        return self.folder.joinpath(*parts)

    def read_json(self, *parts: str) -> Any | None:  # Any: plain JSON values
        """The content of an entry written by ``write_json``; None where it is absent or damaged (said)."""
        path = self.path(*parts)
        try:
            outer = json.loads(path.read_bytes())
            body = outer["body"]
            if outer["sha256"] != _sha(canonical_json(body).encode("utf-8", "surrogatepass")):
                raise ValueError("hash differs")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            self.note(f"{path.name} in the evidence folder is damaged and is made anew ({type(error).__name__})")
            return None
        return body

    def write_json(self, body: Any, *parts: str) -> None:  # Any: plain JSON values
        """Write plain data with its hash."""
        digest = _sha(canonical_json(body).encode("utf-8", "surrogatepass"))
        write_atomically(self.path(*parts), canonical_json({"body": body, "sha256": digest}).encode("utf-8", "surrogatepass"))

    def read_arrays(self, *parts: str) -> dict[str, NDArray[Any]] | None:
        """The arrays of an entry written by ``write_arrays``; None where it is absent or damaged (said)."""
        path = self.path(*parts)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            if data[:64].decode("ascii") != _sha(data[64:]):
                raise ValueError("hash differs")
            with np.load(io.BytesIO(data[64:]), allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            self.note(f"{path.name} in the evidence folder is damaged and is made anew ({type(error).__name__})")
            return None

    def write_arrays(self, arrays: Mapping[str, NDArray[Any]], *parts: str) -> None:
        """Write arrays as one file that begins with its hash. Object arrays are refused: nothing here is ever unpickled."""
        bad = [name for name, array in arrays.items() if array.dtype.hasobject]
        if bad:
            raise TypeError(f"arrays of objects cannot be evidence: {bad}")
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)  # type: ignore[arg-type]
        data = buffer.getvalue()
        write_atomically(self.path(*parts), _sha(data).encode("ascii") + data)


class OutputTable:
    """What one model gave on one domain: columns (N, width) on disk, filled block by block.

    Parameters
    ----------
    store, key : where it lies
    rows : N, the rows of the domain
    """

    def __init__(self, store: Store, key: str, rows: int) -> None:
        self._store = store
        self._folder = store.path("outputs", key)
        self.key = key
        self.rows = rows
        self.facts: dict[str, Any] = {}
        "layers with widths, difference of two runs of one batch, notes: plain JSON values"
        self._widths: dict[str, int] = {}
        self._done: dict[int, tuple[str, dict[str, str]]] = {}
        self._verified: set[int] = set()
        self._open()

    def _open(self) -> None:
        head = self._store.read_json("outputs", self.key, "table.json")
        if head is None or head.get("rows") != self.rows:
            return
        self._widths, self.facts = {k: int(v) for k, v in head["widths"].items()}, dict(head["facts"])
        for name in self._widths:
            path = self._folder / f"{name}.npy"
            try:
                column = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError):
                column = None
            if column is None or column.shape != self._shape(name) or column.dtype != self._dtype(name):
                self._store.note(f"{name}.npy of entry {self.key[:12]} is damaged: the model is run again")
                self._widths, self.facts = {}, {}
                return
        journal = self._folder / "journal"
        for line in journal.read_text(encoding="ascii", errors="replace").splitlines() if journal.exists() else []:
            try:
                entry = json.loads(line)
                self._done[int(entry["block"])] = (str(entry["content"]), {str(k): str(v) for k, v in entry["sha256"].items()})
            except (ValueError, KeyError, TypeError, AttributeError):
                # a line that was cut when the process died: its block is computed again
                self._store.note(f"a line of the journal of entry {self.key[:12]} is damaged: its block is computed again")

    @property
    def started(self) -> bool:
        return bool(self._widths)

    @property
    def widths(self) -> dict[str, int]:
        return dict(self._widths)

    def has(self, block: int) -> bool:
        """Whether the journal knows this block, whatever its content was."""
        return block in self._done

    def holds(self, block: int, content: str) -> bool:
        """Whether this block is complete, undamaged, and was computed from this content."""
        if block not in self._done or self._done[block][0] != content:
            return False
        if block not in self._verified:
            for name, expected in self._done[block][1].items():
                if _sha(np.ascontiguousarray(self._read(name)[self._slice(block)]).tobytes()) != expected:
                    self._store.note(f"block {block} of {name}.npy in entry {self.key[:12]} is damaged: it is computed again")
                    del self._done[block]
                    return False
            self._verified.add(block)
        return True

    def start(self, widths: Mapping[str, int], facts: Mapping[str, Any]) -> None:
        """Make room for all rows. What was there is given up."""
        self._widths, self.facts, self._done, self._verified = dict(widths), dict(facts), {}, set()
        need = sum(self.rows * w * self._dtype(n).itemsize for n, w in widths.items())
        self._folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._folder).free
        if need > free:
            raise DataError(f"the evidence needs {need} bytes in {self._folder}, {free} are free: give another folder with [evidence] dir")
        with suppress(FileNotFoundError):
            (self._folder / "manifest.json").unlink()
        try:
            for name in widths:
                column = np.lib.format.open_memmap(
                    self._folder / f"{name}.npy", mode="w+", dtype=self._dtype(name), shape=self._shape(name)
                )
                del column
        except OSError as error:
            raise _no_room(self._folder, need, error) from error
        write_atomically(self._folder / "journal", b"")
        self._write_head()

    def _write_head(self) -> None:
        self._store.write_json({"rows": self.rows, "widths": self._widths, "facts": self.facts}, "outputs", self.key, "table.json")

    def write(self, block: int, content: str, columns: Mapping[str, NDArray[Any]]) -> None:
        """Write one block and enter it in the journal.

        Raises
        ------
        RuntimeError : rows in are not rows out (our bug, never the user's)
        DataError : no room
        """
        where = self._slice(block)
        hashes = {}
        for name, values in columns.items():
            expected = (where.stop - where.start, *self._shape(name)[1:])
            if values.shape != expected:
                raise RuntimeError(f"evidence of block {block}: {name} has shape {values.shape}, the block needs {expected}")
            data = np.ascontiguousarray(values, dtype=self._dtype(name)).tobytes()
            row_bytes = len(data) // max(1, where.stop - where.start)
            path = self._folder / f"{name}.npy"
            # plain writes and not a map: dirty pages of a map would count as our memory
            offset = path.stat().st_size - self.rows * row_bytes
            try:
                with open(path, "r+b") as file:
                    file.seek(offset + where.start * row_bytes)
                    file.write(data)
                    file.flush()
                    self._sync(file.fileno())
            except OSError as error:
                raise _no_room(path, len(data), error) from error
            hashes[name] = _sha(data)
        line = json.dumps({"block": block, "content": content, "sha256": hashes}, sort_keys=True) + "\n"
        try:
            with open(self._folder / "journal", "ab") as journal:
                journal.write(line.encode("ascii"))
                journal.flush()
                self._sync(journal.fileno())
        except OSError as error:
            raise _no_room(self._folder / "journal", len(line), error) from error
        self._done[block] = (content, hashes)
        self._verified.add(block)

    def _sync(self, handle: int) -> None:
        # a temporary folder has no later run that could rely on it
        if not self._store.temporary:
            os.fsync(handle)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Write the manifest, last. Refuses when rows are missing."""
        blocks = range(block_count(self.rows))
        absent = [b for b in blocks if b not in self._done]
        if absent:
            raise RuntimeError(f"evidence {self.key[:12]} lacks blocks {absent}: rows in are not rows out")
        manifest = {
            "rows": self.rows,
            "facts": dict(facts),
            "blocks": [{"content": self._done[b][0], "sha256": self._done[b][1]} for b in blocks],
        }
        if manifest["facts"] != self.facts:
            self.facts = dict(facts)
            self._write_head()
        if (
            self._store.path("outputs", self.key, "manifest.json").exists()
            and self._store.read_json("outputs", self.key, "manifest.json") == manifest
        ):
            return
        self._store.write_json(manifest, "outputs", self.key, "manifest.json")

    def column(self, name: str) -> NDArray[Any]:
        """A column, memory-mapped and read-only."""
        return self._read(name)

    def _read(self, name: str) -> NDArray[Any]:
        column: NDArray[Any] = np.load(self._folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return column

    def _slice(self, block: int) -> slice:
        size = block_size(self.rows)
        return slice(block * size, min((block + 1) * size, self.rows))

    def _shape(self, name: str) -> tuple[int, ...]:
        return (self.rows,) if name == "finite" else (self.rows, self._widths[name])

    @staticmethod
    def _dtype(name: str) -> np.dtype[Any]:
        return np.dtype(np.uint8) if name == "finite" else np.dtype(np.float32)


def block_size(rows: int) -> int:
    """Rows per block of a domain with this many rows: about 64 blocks, between LEAST_BLOCK and MOST_BLOCK rows each."""
    return min(MOST_BLOCK, max(LEAST_BLOCK, -(-rows // 64)))


def block_count(rows: int) -> int:
    return -(-rows // block_size(rows))


def block_rows(block: int, rows: int) -> NDArray[np.int64]:
    """Row numbers of one block of a domain with this many rows."""
    size = block_size(rows)
    return np.arange(block * size, min((block + 1) * size, rows), dtype=np.int64)


class _Lock:
    """One process per folder. The kernel lets go of a dead owner's lock, which is then taken over and said."""

    def __init__(self, path: Path, note: Any) -> None:  # Any: Store.note
        self.path = path
        try:
            self._file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  held for the life of the store
        except OSError as error:
            raise ConfigError(
                f"the evidence folder {path.parent} cannot be written: {error.strerror}; give another with [evidence] dir"
            ) from error
        try:
            import fcntl
        except ImportError:
            note("this system has no file locks: do not run two audits on one evidence folder")
        else:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                owner = self._owner()
                self._file.close()
                raise ConfigError(
                    f"the evidence folder {path.parent} is in use by {owner or 'another run'}: wait for it, or give another with [evidence] dir"
                ) from error
        owner = self._owner()
        if owner:
            note(f"the evidence folder was left by {owner}, which did not end properly: taken over")
        self._file.truncate(0)
        self._file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        self._file.flush()

    def _owner(self) -> str:
        self._file.seek(0)
        try:
            found = json.loads(self._file.read())
            return f"process {found['pid']} on {found['host']}"
        except (ValueError, KeyError, TypeError):
            return ""

    def release(self) -> None:
        if not self._file.closed:
            with suppress(OSError):
                self._file.truncate(0)
            self._file.close()


def _end(lock: _Lock, folder: Path | None) -> None:
    lock.release()
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sync_folder(folder: Path) -> None:
    # some file systems cannot sync a folder; the file itself is already on disk then
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _no_room(path: Path, need: int, error: OSError) -> DataError:
    try:
        free = str(shutil.disk_usage(path.parent if path.parent.exists() else path.parent.parent).free)
    except OSError:
        free = "an unknown number of"
    return DataError(f"{path} cannot be written ({error.strerror}): it needs {need} bytes, {free} are free")
