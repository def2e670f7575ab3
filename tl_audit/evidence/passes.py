"""One pass: every domain is read once, every model runs once on it, and what came out is on disk before anyone computes with it."""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tl_audit.errors import ModelError, NotEvaluated, TLAuditError
from tl_audit.evidence.scan import BlockBuilder, DomainScan
from tl_audit.evidence.store import OutputTable, Store, block_count, block_rows, key_of
from tl_audit.models import forward_with_features, layer_groups, nonfinite, output_notes, tensor_hash
from tl_audit.models.model import Model
from tl_audit.records.preprocessing import InputSpec, spec_hash
from tl_audit.records.values import Value
from tl_audit.subject import Subject

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
Stop = Callable[[], None]

BATCH_VALUES = 2**23
"""Input values per batch: 32 MiB of float32, about fifty pictures of 224 x 224."""

HALVINGS = 4
REPEAT_TOLERANCE = 1e-4


def default_pairs(subject: Subject) -> tuple[tuple[str, str], ...]:
    """(model key, domain role) pairs that an audit looks at: adapted and base everywhere but outside sets, the others on target."""
    everywhere = ("target", "source", "train", "validation")
    roles = {"adapted": everywhere, "base": everywhere}
    return tuple((key, role) for key in subject.models for role in roles.get(key, ("target",)) if subject.domain(role) is not None)


@dataclass
class Collector:
    """Runs models on domains and keeps what they gave.

    ``progress`` is told (what, rows done, rows); ``stop`` is called after each batch and raises ``Interrupted`` where the run should end.
    """

    subject: Subject
    store: Store
    progress: Progress = lambda what, done, total: None
    stop: Stop = lambda: None
    caveats: dict[str, None] = field(default_factory=dict)
    "what must be said in the record, in order, once"
    failed: dict[tuple[str, str], str] = field(default_factory=dict)
    "pairs that cannot be run, with the reason"
    forwards: int = 0
    "batches given to models by this collector; 0 on a second run"

    def __post_init__(self) -> None:
        self._scans: dict[str, DomainScan] = {}
        self._tables: dict[tuple[str, str], OutputTable] = {}
        self._fingerprints: dict[str, str] = {}
        self._nonfinite: dict[str, dict[str, int]] = {}
        self._layers: dict[str, tuple[str, ...]] = {}

    def nonfinite(self, key: str) -> dict[str, int]:
        """Tensors of a model that hold NaN or infinity (TLA112): such a model is never run."""
        if key not in self._nonfinite:
            self._nonfinite[key] = nonfinite(self.subject.models[key].module)
        return self._nonfinite[key]

    def runs(self, key: str, role: str) -> str | None:
        """None where this model can be run on this domain, else the reason."""
        if key not in self.subject.models:
            return f"the {key} model"
        if self.subject.domain(role) is None:
            return f"the {role} domain"
        if self.nonfinite(key):
            return f"outputs of the {key} model: its weights are not finite (TLA112)"
        return self.failed.get((key, role))

    def fingerprint(self, key: str) -> str:
        """Hash of a model: its tensors, its structure, its plain settings, and how its outputs are read."""
        if key not in self._fingerprints:
            self._fingerprints[key] = model_fingerprint(self.subject.models[key])
        return self._fingerprints[key]

    def scan(self, role: str) -> DomainScan:
        """The complete scan of a domain; reads what is not known yet."""
        scan = self._scan(role)
        if not scan.complete:
            self._read(role, scan, ())
        return scan

    def finished_scan(self, role: str) -> DomainScan | None:
        """The scan of a domain if it is complete already; nothing is read."""
        scan = self._scan(role)
        return scan if scan.complete else None

    def table(self, key: str, role: str) -> OutputTable:
        """What a model gave on a domain; runs it where that is not stored.

        Raises
        ------
        NotEvaluated : it cannot be run; names what is missing
        """
        if (key, role) not in self._tables:
            self.collect(role, (key,))
        if (key, role) not in self._tables:
            raise NotEvaluated(self.runs(key, role) or f"outputs of the {key} model on the {role} domain")
        return self._tables[key, role]

    def collect(self, role: str, keys: Iterable[str]) -> None:
        """Run several models on one domain in one pass: one read, one encoding per preprocessing, one forward per model.

        A pair that cannot be run is kept in ``failed`` with its reason; the adapted model on the target raises.
        """
        wanted = [key for key in keys if (key, role) not in self._tables and self.runs(key, role) is None]
        if not wanted:
            return
        scan = self._scan(role)
        if scan.rows == 0:
            raise NotEvaluated(f"samples of the {role} domain: it is empty")
        self._read(role, scan, wanted)

    def _scan(self, role: str) -> DomainScan:
        if role not in self._scans:
            domain = self.subject.domain(role)
            if domain is None:
                raise NotEvaluated(f"the {role} domain")
            self._scans[role] = DomainScan(self.store, role, domain, self.subject.adapted.preprocessing)
        return self._scans[role]

    def _read(self, role: str, scan: DomainScan, keys: Sequence[str]) -> None:
        runs = {key: self._open(key, role, scan) for key in keys}
        size = 0
        label = f"{role}: {', '.join(keys) or 'reading'}"
        for block in range(block_count(scan.rows)):
            rows = block_rows(block, scan.rows)
            if not scan.knows(block) and any(run.table.has(block) for run in runs.values()):
                # evidence of these rows exists, but what they hold now is not known: read them to learn whether it still holds
                self._read_block(role, scan, block, size or self._batch_rows(role, scan), {})
            todo = {k: r for k, r in runs.items() if not (scan.knows(block) and r.table.holds(block, scan.content(block)))}
            if todo or not scan.knows(block):
                size = size or self._batch_rows(role, scan)
                for key in [k for k, r in todo.items() if not r.table.started]:
                    self._start(key, role, scan, todo[key])
                    if (key, role) in self.failed:
                        del todo[key], runs[key]
                self._read_block(role, scan, block, size, todo)
                for key in [k for k in runs if (k, role) in self.failed]:
                    del runs[key]
            self.progress(label, int(rows[-1]) + 1, scan.rows)
        if scan.complete:
            ids = scan.domain.ids
            bad = {ids[row]: reason for row, reason in scan.errors().items()}
            scan.domain.samples.caps.refuse_above(bad, scan.rows, f"samples of {scan.domain.name} cannot be read")
        for key, run in runs.items():
            for note in scan.domain.samples.modality.spec_notes(scan.domain.samples, run.model.preprocessing):
                self.caveats[f"The {key} model on the {role} domain: {note}"] = None
            self._finish(key, role, run)

    def _open(self, key: str, role: str, scan: DomainScan) -> _Run:
        model = self.subject.models[key]
        table = OutputTable(
            self.store,
            key_of("outputs", self.fingerprint(key), spec_hash(model.preprocessing), versions(), scan.signature),
            scan.rows,
        )
        return _Run(model, table)

    def _batch_rows(self, role: str, scan: DomainScan) -> int:
        """Rows per batch, from the size of one encoded sample. Results do not depend on it."""
        example = self._example(scan, self.subject.adapted.preprocessing)
        per_row = 1 if example is None else max(1, example[0].numel())
        return int(max(1, min(1024, BATCH_VALUES // per_row)))

    def _example(self, scan: DomainScan, spec: InputSpec | None) -> torch.Tensor | None:
        """The first readable samples (at most 2), encoded; None where nothing can be read."""
        domain = scan.domain
        for start in range(0, scan.rows, 16):
            raw = domain.samples.read(np.arange(start, min(start + 16, scan.rows), dtype=np.int64))
            if raw.readable.any():
                return domain.samples.modality.encode(raw, spec)[:2]
        return None

    def _start(self, key: str, role: str, scan: DomainScan, run: _Run) -> None:
        """Find layers and widths on a tiny batch, and make room on disk."""
        try:
            example = self._example(scan, run.model.preprocessing)
            if example is None:
                self.failed[key, role] = f"readable samples in the {role} domain"
                return
            if key not in self._layers:
                self._layers[key] = tuple(layer_groups(run.model, example))
            layers = self._layers[key]
            logits, features, by_layer = forward_with_features(run.model, example, layers)
            # where numbers are audited, nobody reads the outputs of a model as scores of classes
            notes = () if self.subject.task == "regression" else output_notes(run.model, example)
            self.forwards += 1
        except TLAuditError as error:
            self._fail(key, role, error)
            return
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
            self._fail(key, role, ModelError(f"{run.model.name}: its forward fails on inputs as {role} samples give them: {_short(error)}"))
            return
        widths = {
            "logits": logits.shape[1],
            "features": features.shape[1],
            "layers": sum(v.shape[1] for v in by_layer.values()),
            "finite": 1,
        }
        facts = {"layers": [[name, by_layer[name].shape[1]] for name in layers], "notes": list(notes), "repeat": None, "halved": 0}
        run.table.start(widths, facts)

    def _fail(self, key: str, role: str, error: TLAuditError) -> None:
        if key == "adapted" and role == "target":
            raise error
        self.failed[key, role] = f"outputs of the {key} model on the {role} domain: {error}"
        self.caveats[f"The {key} model could not be run on the {role} domain: {error}"] = None

    def _read_block(self, role: str, scan: DomainScan, block: int, size: int, runs: Mapping[str, _Run]) -> None:
        rows = block_rows(block, scan.rows)
        builder = None if scan.knows(block) else BlockBuilder(scan.domain)
        columns = {key: run.room(len(rows)) for key, run in runs.items()}
        for start in range(0, len(rows), size):
            raw = scan.domain.samples.read(rows[start : start + size])
            if len(raw.items) != len(rows[start : start + size]):
                raise RuntimeError(f"{scan.domain.name!r}: {len(rows[start : start + size])} rows asked for, {len(raw.items)} read")
            encoded: dict[str, torch.Tensor | TLAuditError] = {}
            if builder is not None:
                own = self._encode(scan, raw, self.subject.adapted.preprocessing, encoded)
                builder.add(raw, own if isinstance(own, torch.Tensor) else None)
            where = start + np.flatnonzero(raw.readable)
            for key, run in runs.items():
                if (key, role) in self.failed:
                    continue
                inputs = self._encode(scan, raw, run.model.preprocessing, encoded)
                try:
                    if isinstance(inputs, TLAuditError):
                        raise inputs
                    if len(inputs) != len(where):
                        raise RuntimeError(f"{scan.domain.name!r}: {len(where)} readable samples, {len(inputs)} encoded")
                    if len(inputs):
                        self._forward(run, inputs, where, columns[key])
                except TLAuditError as error:
                    self._fail(key, role, error)
            self.stop()
        if builder is not None:
            scan.put(block, builder.build())
        for key, run in runs.items():
            if (key, role) not in self.failed:
                run.table.write(block, scan.content(block), columns[key])

    @staticmethod
    def _encode(
        scan: DomainScan, raw: Any, spec: InputSpec | None, done: dict[str, torch.Tensor | TLAuditError]
    ) -> torch.Tensor | TLAuditError:
        """The readable samples of a batch as inputs; made once for all models that share their preprocessing."""
        name = spec_hash(spec)
        if name not in done:
            try:
                done[name] = scan.domain.samples.modality.encode(raw, spec)
            except TLAuditError as error:
                done[name] = error
        return done[name]

    def _forward(self, run: _Run, inputs: torch.Tensor, where: NDArray[np.int64], columns: Mapping[str, NDArray[Any]]) -> None:
        at = 0
        while at < len(inputs):
            size = run.limit or len(inputs)
            piece = inputs[at : at + size]
            try:
                given = self._run(run, piece)
                if run.table.facts.get("repeat") is None:
                    run.table.facts["repeat"] = _largest_difference(given["logits"], self._run(run, piece, draw=1)["logits"])
            except TLAuditError:
                raise
            except (MemoryError, RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
                if not _is_out_of_memory(error):
                    raise ModelError(
                        f"{run.model.name}: its forward fails on inputs of shape {tuple(piece.shape)}: {_short(error)}"
                    ) from error
                if run.table.facts["halved"] >= HALVINGS or len(piece) == 1:
                    raise ModelError(
                        f"{run.model.name}: a batch of {len(piece)} samples ({piece.numel() * 4} bytes of input) does not fit in memory"
                    ) from error
                run.limit = len(piece) // 2
                run.table.facts["halved"] += 1
                if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                    torch.cuda.empty_cache()
                continue
            rows = where[at : at + len(piece)]
            for name, values in given.items():
                if values.shape[1:] != columns[name].shape[1:]:
                    raise ModelError(f"{run.model.name}: {name} of {values.shape[1:]} values, before {columns[name].shape[1:]}")
                columns[name][rows] = values
            columns["finite"][rows] = np.logical_and.reduce([np.isfinite(v).all(axis=1) for v in given.values()])
            at += len(piece)

    def _run(self, run: _Run, inputs: torch.Tensor, *, draw: int = 0) -> dict[str, NDArray[np.float32]]:
        layers = [name for name, _ in run.table.facts["layers"]]
        self.forwards += 1
        with torch.random.fork_rng():
            # a network that draws at random must neither depend on the caller's state nor look repeatable; torch.manual_seed would
            # note a stack trace for an accelerator that nobody uses, with every batch
            torch.default_generator.manual_seed(draw)
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.cuda.manual_seed_all(draw)
            logits, features, by_layer = forward_with_features(run.model, inputs, layers)
        merged = torch.cat([by_layer[name].float() for name in layers], dim=1) if layers else logits.new_zeros((len(logits), 0))
        parts = {"logits": logits, "features": features, "layers": merged}
        return {name: value.detach().float().cpu().numpy() for name, value in parts.items()}

    def _finish(self, key: str, role: str, run: _Run) -> None:
        facts = run.table.facts
        run.table.finish(facts)
        name = f"The {key} model"
        if (facts.get("repeat") or 0.0) > REPEAT_TOLERANCE:
            self.caveats[
                f"{name} gives different outputs for the same input (largest difference of a logit {facts['repeat']:.2g} "
                f"on the {role} domain): every number built on it holds for one run only."
            ] = None
        if facts.get("halved"):
            self.caveats[
                f"{name} did not fit in memory with the first batch size on the {role} domain: it was halved {facts['halved']} times."
            ] = None
        for note in facts.get("notes", ()):
            self.caveats[f"{name}: {note}."] = None
        self._layers.setdefault(key, tuple(n for n, _ in facts["layers"]))
        self._tables[key, role] = run.table

    def layers(self, key: str) -> tuple[str, ...]:
        """Layer groups of a model, from the first domain it was or can be run on."""
        if key not in self._layers:
            role = next((r for r in self.subject.domains if self.runs(key, r) is None), None)
            if role is None:
                raise NotEvaluated(self.runs(key, "target") or f"outputs of the {key} model")
            self.table(key, role)
        return self._layers[key]


@dataclass
class _Run:
    """One model on one domain, as it is being run."""

    model: Model
    table: OutputTable
    limit: int | None = None

    def room(self, rows: int) -> dict[str, NDArray[Any]]:
        """Empty columns of a block: NaN, so that an unreadable row can never look like an answer."""
        widths = {"logits": 0, "features": 0, "layers": 0} | self.table.widths
        columns: dict[str, NDArray[Any]] = {
            name: np.full((rows, widths[name]), np.nan, dtype=np.float32) for name in ("logits", "features", "layers")
        }
        columns["finite"] = np.zeros(rows, dtype=np.uint8)
        return columns


def versions() -> dict[str, str]:
    """Versions that stored outputs depend on."""
    from importlib.metadata import PackageNotFoundError, version

    out = {"torch": str(torch.__version__)}
    try:
        out["torchvision"] = version("torchvision")
    except PackageNotFoundError:
        out["torchvision"] = "absent"
    return out


def model_fingerprint(model: Model) -> str:
    """Hash of all that decides a network's outputs and can be known: tensors, structure, plain settings of its modules, source of its own classes."""
    net = model.module
    settings = {name: _plain_settings(module) for name, module in net.named_modules()}
    classes = sorted({type(module) for module in net.modules()}, key=lambda c: f"{c.__module__}.{c.__qualname__}")
    sources = {f"{c.__module__}.{c.__qualname__}": _source(c) for c in classes if not c.__module__.startswith(("torch.", "torchvision."))}
    output = model.output.model_dump(mode="json") if isinstance(model.output, Value) else model.output
    return key_of("model", tensor_hash(net), str(net), settings, sources, model.head, output, str(next(iter(_devices(net)), "cpu")))


def _plain_settings(module: nn.Module) -> dict[str, str]:
    # a factor kept as a plain attribute changes outputs although no tensor does
    return {
        name: repr(value)
        for name, value in sorted(vars(module).items())
        if not name.startswith("_") and name != "training" and isinstance(value, bool | int | float | str | tuple | type(None))
    }


def _source(kind: type) -> str:
    try:
        return hashlib.sha256(inspect.getsource(kind).encode()).hexdigest()
    except (OSError, TypeError):
        return "no source"  # classes typed into a notebook or an interpreter: tensors, structure and settings must do


def _devices(net: nn.Module) -> Iterable[str]:
    for tensor in net.parameters():
        yield tensor.device.type


def _largest_difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    both = np.isfinite(a) & np.isfinite(b)
    return float(np.abs(a[both].astype(np.float64) - b[both].astype(np.float64)).max()) if both.any() else 0.0


def _short(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 200 else text[:197] + "..."


def _is_out_of_memory(error: BaseException) -> bool:
    # the CPU allocator of torch raises a plain RuntimeError
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or "not enough memory" in str(error)
        or "out of memory" in str(error).lower()
    )
