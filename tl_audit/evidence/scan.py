"""What reading a domain reveals, whatever the model: content hashes, properties, read errors, facts of the reader."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.evidence.store import Store, block_count, block_rows, key_of
from tl_audit.modality.base import RawBatch
from tl_audit.records.preprocessing import InputSpec, spec_hash
from tl_audit.subject import Domain


@dataclass(frozen=True)
class BlockScan:
    """One block of rows as it was read.

    Attributes
    ----------
    hashes : content hashes, None where unreadable
    errors : row in the domain -> reason
    properties : name -> array of the block's length
    exif_rotated : samples turned by their EXIF tag
    nonfinite : rows whose encoded input is not finite
    sketches : (rows, 16, 16) uint8 of pictures, None for what is no picture
    """

    hashes: tuple[str | None, ...]
    errors: Mapping[int, str]
    properties: Mapping[str, NDArray[Any]]
    exif_rotated: int
    nonfinite: tuple[int, ...]
    sketches: NDArray[np.uint8] | None = None

    @property
    def content(self) -> str:
        """One hash of the block's content, in row order."""
        return hashlib.sha256("\n".join(h or "-" for h in self.hashes).encode()).hexdigest()


class BlockBuilder:
    """Gathers the batches of one block."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._hashes: list[str | None] = []
        self._errors: dict[int, str] = {}
        self._properties: list[dict[str, NDArray[Any]]] = []
        self._exif = 0
        self._nonfinite: list[int] = []
        self._sketches: list[NDArray[np.uint8] | None] = []

    def add(self, raw: RawBatch, encoded: torch.Tensor | None) -> None:
        """One batch as read, with its readable samples encoded for the adapted model where that is possible."""
        modality = self._domain.samples.modality
        self._hashes += modality.content_hashes(raw)
        self._errors.update({int(row): str(e) for row, e in zip(raw.rows, raw.errors, strict=True) if e is not None})
        self._properties.append(modality.properties(raw))
        self._sketches.append(modality.sketches(raw))
        self._exif += sum(bool(f.get("exif_rotated")) for f in raw.facts)
        if encoded is not None and len(encoded):
            finite = torch.isfinite(encoded).reshape(len(encoded), -1).all(dim=1).cpu().numpy()
            self._nonfinite += [int(r) for r in raw.rows[raw.readable][~finite]]

    def build(self) -> BlockScan:
        names = self._properties[0].keys() if self._properties else ()
        properties = {name: np.concatenate([p[name] for p in self._properties]) for name in names}
        drawn = [s for s in self._sketches if s is not None]
        sketches = np.concatenate(drawn) if drawn and len(drawn) == len(self._sketches) else None
        return BlockScan(tuple(self._hashes), self._errors, properties, self._exif, tuple(self._nonfinite), sketches)


class DomainScan:
    """The scan of one domain, block by block. Domains of files are remembered in the store: a file of the same size and time is not read again.

    Parameters
    ----------
    spec : how the adapted model's inputs are made (for counting inputs that are not finite)
    """

    def __init__(self, store: Store, role: str, domain: Domain, spec: InputSpec | None) -> None:
        self.domain = domain
        self.rows = len(domain)
        self._store = store
        root = getattr(domain.samples, "root", None)  # samples that are files lie below one folder, by their ids
        self._files: Sequence[Path] | None = [root / name for name in domain.ids] if isinstance(root, Path) else None
        self._blocks: dict[int, BlockScan] = {}
        self._stats = self._stat() if self._files is not None else None
        # what evidence is found by before the content is known; each block is then held against the hash of its content
        if self._stats is not None:
            self.signature = key_of(
                "files", domain.kind, [[name, size] for name, (_, size, _) in zip(domain.ids, self._stats, strict=True)]
            )
        else:
            labels = domain.label_texts
            self.signature = key_of("arrays", role, domain.name, domain.kind, list(domain.ids), labels)
        self._key = key_of(
            "domain with sketches", role, domain.kind, self.signature, spec_hash(spec), repr(getattr(domain.samples, "caps", None))
        )
        if self._stats is not None:
            for block in range(block_count(self.rows)):
                found = self._load(block)
                if found is not None:
                    self._blocks[block] = found

    @property
    def complete(self) -> bool:
        return len(self._blocks) == block_count(self.rows)

    def knows(self, block: int) -> bool:
        return block in self._blocks

    def content(self, block: int) -> str:
        return self._blocks[block].content

    def put(self, block: int, scan: BlockScan) -> None:
        """Enter a block, refusing one whose rows do not add up."""
        rows = block_rows(block, self.rows)
        lengths = {len(scan.hashes), *(len(p) for p in scan.properties.values())}
        if scan.sketches is not None:
            lengths.add(len(scan.sketches))
        if lengths != {len(rows)}:
            raise RuntimeError(f"block {block} of {self.domain.name!r} has {len(rows)} rows, its scan {sorted(lengths)}")
        self._blocks[block] = scan
        if self._stats is not None:
            self._save(block, scan)

    def readable(self) -> NDArray[np.bool_]:
        """(N,) could be read."""
        mask = np.ones(self.rows, dtype=np.bool_)
        mask[list(self.errors())] = False
        return mask

    def errors(self) -> dict[int, str]:
        return {row: reason for block in sorted(self._blocks) for row, reason in sorted(self._blocks[block].errors.items())}

    def hashes(self) -> NDArray[np.object_]:
        out = np.empty(self.rows, dtype=object)
        out[:] = [h for block in sorted(self._blocks) for h in self._blocks[block].hashes]
        return out

    def properties(self) -> dict[str, NDArray[Any]]:
        blocks = [self._blocks[b].properties for b in sorted(self._blocks)]
        # a block without any readable row may lack a property that others have
        names = dict.fromkeys(name for block in blocks for name in block)
        return {name: np.concatenate([block[name] for block in blocks if name in block]) for name in names}

    def sketches(self) -> NDArray[np.uint8] | None:
        """(N, 16, 16) of pictures, None where the samples are none."""
        blocks = [self._blocks[b].sketches for b in sorted(self._blocks)]
        drawn = [s for s in blocks if s is not None]
        return np.concatenate(drawn) if drawn and len(drawn) == len(blocks) else None

    def facts(self) -> dict[str, Any]:
        blocks = [self._blocks[b] for b in sorted(self._blocks)]
        return {
            "exif_rotated": sum(b.exif_rotated for b in blocks),
            "nonfinite_inputs": [row for b in blocks for row in b.nonfinite],
            "sha256": self.fingerprint(),
        }

    def fingerprint(self) -> str:
        """SHA-256 of the sorted content hashes with labels: the same data in any order and any place has the same one."""
        labels = self.domain.label_texts
        lines = sorted(
            f"{h or ''}:{'' if labels is None or labels[i] is None else labels[i]}"
            for i, h in enumerate(h for block in sorted(self._blocks) for h in self._blocks[block].hashes)
        )
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()

    def content_key(self) -> str:
        """SHA-256 of the content hashes in row order: what outputs depend on."""
        return key_of([self._blocks[b].content for b in sorted(self._blocks)])

    def _stat(self) -> list[tuple[str, int, int]]:
        out = []
        for file in self._files or ():
            try:
                found = file.stat()
                out.append((str(file), found.st_size, found.st_mtime_ns))
            except (OSError, ValueError):
                # a file that is gone is reported by the reader, with its reason
                out.append((str(file), -1, -1))
        return out

    def _stat_key(self, block: int) -> str:
        assert self._stats is not None
        return key_of([self._stats[int(r)] for r in block_rows(block, self.rows)])

    def _save(self, block: int, scan: BlockScan) -> None:
        head = {
            "stat": self._stat_key(block),
            "hashes": list(scan.hashes),
            "errors": {str(row): reason for row, reason in scan.errors.items()},
            "exif_rotated": scan.exif_rotated,
            "nonfinite": list(scan.nonfinite),
            "text": sorted(name for name, values in scan.properties.items() if values.dtype == object),
            "order": list(scan.properties),
        }
        arrays: dict[str, NDArray[Any]] = {"head": np.frombuffer(json.dumps(head, sort_keys=True).encode(), dtype=np.uint8)}
        if scan.sketches is not None:
            arrays["sketches"] = scan.sketches
        for i, values in enumerate(scan.properties.values()):
            if values.dtype == object:
                arrays[f"p{i}"] = np.array(["" if v is None else str(v) for v in values], dtype=np.str_)
                arrays[f"m{i}"] = np.array([v is None for v in values], dtype=np.bool_)
            else:
                arrays[f"p{i}"] = values
        self._store.write_arrays(arrays, "domains", self._key, f"block-{block:06d}.npz")

    def _load(self, block: int) -> BlockScan | None:
        arrays = self._store.read_arrays("domains", self._key, f"block-{block:06d}.npz")
        if arrays is None:
            return None
        head = json.loads(arrays["head"].tobytes())
        if head["stat"] != self._stat_key(block):
            return None
        properties: dict[str, NDArray[Any]] = {}
        for i, name in enumerate(head["order"]):
            values = arrays[f"p{i}"]
            if name in head["text"]:
                text = np.empty(len(values), dtype=object)
                text[:] = [None if gone else str(v) for v, gone in zip(values, arrays[f"m{i}"], strict=True)]
                values = text
            properties[name] = values
        errors = {int(row): str(reason) for row, reason in head["errors"].items()}
        return BlockScan(
            tuple(head["hashes"]), errors, properties, int(head["exif_rotated"]), tuple(head["nonfinite"]), arrays.get("sketches")
        )
