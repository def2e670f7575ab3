"""Training data: split, aligned to the classes by name, read once, encoded, and handed out in an order that depends on the seed alone."""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.errors import ConfigError, DataError
from tl_audit.finetune.plan import Augment, Regression
from tl_audit.measures.sampling import generator, split_by_cluster
from tl_audit.modality.base import RawBatch
from tl_audit.records.adaptation import DataRecord
from tl_audit.records.preprocessing import InputSpec
from tl_audit.records.values import Value
from tl_audit.subject import Domain

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
CHUNK = 256


@dataclass(frozen=True)
class Split:
    """Rows of a domain that are trained or validated on.

    Attributes
    ----------
    rows : (n,) row numbers in the domain, all labelled
    labels : (n,) indices into the task's classes; all 0 in a regression
    values : (n,) numbers of a regression in their own unit, None where labels are classes
    """

    name: str
    domain: Domain
    rows: IntArray
    labels: IntArray
    values: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: IntArray | NDArray[np.bool_]) -> Split:
        values = None if self.values is None else self.values[positions]
        return Split(self.name, self.domain, self.rows[positions], self.labels[positions], values)

    def reordered(self, classes: Sequence[str], order: Sequence[str]) -> Split:
        """The same rows with labels as indices into ``order``, the same names in another order."""
        place = np.array([list(order).index(name) for name in classes], dtype=np.int64)
        return Split(self.name, self.domain, self.rows, place[self.labels])


def task_classes(domain: Domain, declared: Sequence[str] | None) -> tuple[str, ...]:
    """Class names in output order: the declared ones, else those of the data.

    Raises
    ------
    DataError : the data has no labels, or fewer than two classes
    """
    if domain.labels is None:
        if domain.task == "regression":
            raise DataError(f'{domain.name}: holds numbers, the plan names classes: give task=Regression(), or [task] kind = "regression"')
        raise DataError(f"{domain.name}: has no labels, fine-tuning needs them: use class folders, [data] label, or labels=")
    if declared is not None:
        return tuple(declared)
    found = domain.classes or tuple(sorted({str(label) for label in domain.labels if label is not None}))
    if len(found) < 2:
        raise DataError(f"{domain.name}: holds the classes {list(found)}, a classifier needs at least two")
    return tuple(found)


def align(name: str, domain: Domain, classes: Sequence[str]) -> tuple[Split, tuple[str, ...]]:
    """All labelled rows of a domain, labels aligned to ``classes`` by name; and notes on what was left out.

    Raises
    ------
    DataError : no labels, a label that is not a class, no labelled row
    """
    if domain.labels is None:
        raise DataError(f"{domain.name}: has no labels, fine-tuning needs them: use class folders, [data] label, or labels=")
    index = {label: i for i, label in enumerate(classes)}
    labels = list(domain.labels)
    unknown = sorted({str(label) for label in labels if label is not None and str(label) not in index})
    if unknown:
        near = difflib.get_close_matches(unknown[0], list(classes), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"{domain.name}: the labels {unknown[:5]} are not among the classes {list(classes)}{hint}")
    rows = np.array([i for i, label in enumerate(labels) if label is not None], dtype=np.int64)
    if len(rows) == 0:
        raise DataError(f"{domain.name}: no row has a label")
    codes = np.array([index[str(labels[i])] for i in rows], dtype=np.int64)
    notes = []
    if len(rows) < len(labels):
        notes.append(f"{name}: {len(labels) - len(rows)} of {len(labels)} rows have no label and were left out")
    absent = [label for i, label in enumerate(classes) if not (codes == i).any()]
    if absent:
        notes.append(f"{name}: no sample of the classes {absent}")
    return Split(name, domain, rows, codes), tuple(notes)


def align_values(name: str, domain: Domain) -> tuple[Split, tuple[str, ...]]:
    """All rows of a domain that have a value; and notes on what was left out.

    Raises
    ------
    DataError : the domain names classes or holds no values
    """
    if domain.task != "regression":
        raise DataError(f'{domain.name}: its labels are class names, the plan is a regression: open it with task="regression"')
    if domain.values is None:
        raise DataError(f"{domain.name}: has no values, fine-tuning needs them: name their column with [data] label, or give labels=")
    rows = np.flatnonzero(~np.isnan(domain.values)).astype(np.int64)
    missing = len(domain) - len(rows)
    notes = (f"{name}: {missing} of {len(domain)} rows have no value and were left out",) if missing else ()
    return Split(name, domain, rows, np.zeros(len(rows), dtype=np.int64), domain.values[rows]), notes


def aligned(name: str, domain: Domain, classes: Sequence[str], regression: Regression | None) -> tuple[Split, tuple[str, ...]]:
    """``align``, or in a regression ``align_values``."""
    return align(name, domain, classes) if regression is None else align_values(name, domain)


def fit_value(split: Split, *, standardise: bool, name: str | None, unit: str | None) -> Value:
    """How values become what the network is trained on: mean and standard deviation (n - 1) of the training part.

    Raises
    ------
    DataError : fewer than two rows, or all values are equal
    """
    assert split.values is not None
    spread = float(split.values.std(ddof=1)) if len(split) > 1 else 0.0
    if spread <= 1e-12 * max(1.0, float(np.abs(split.values).max())):
        raise DataError(f"{split.domain.name}: all {len(split)} training values are equal: there is nothing to learn")
    mean, scale = (float(split.values.mean()), spread) if standardise else (0.0, 1.0)
    return Value(mean=mean, scale=scale, name=name, unit=unit)


def hold_out(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """(train, validation): about ``share`` of the rows for validation, clusters kept whole; without clusters, by class.

    Raises
    ------
    DataError : one side would be empty
    """
    n = len(split)
    held = np.zeros(n, dtype=np.bool_)
    if split.domain.cluster is not None:
        held = split_by_cluster(split.domain.cluster[split.rows], n, seed, share)
    else:
        for code in np.unique(split.labels):
            mine = np.flatnonzero(split.labels == code)
            take = round(share * len(mine))
            if len(mine) > 1:
                take = min(max(take, 1), len(mine) - 1)
            held[generator(seed, "validation", int(code)).permutation(mine)[:take]] = True
    if not held.any() or held.all():
        raise DataError(
            f"{split.domain.name}: {n} rows cannot be split into training and {share:.0%} validation: give more data or a validation path"
        )
    return replace(split.take(~held), name="train"), replace(split.take(held), name="validation")


class Inputs:
    """Model inputs of one split. Read once; kept encoded (or raw, where they are augmented) up to ``cache_bytes``, else read again batch by batch.

    Unreadable samples and those whose encoding is not finite are dropped and listed in ``dropped``.

    Attributes
    ----------
    split : the rows that are left, in order
    hashes : SHA-256 of each sample's decoded content, in the split's order
    dropped : (id, reason) of the rows left out
    """

    def __init__(self, split: Split, spec: InputSpec | None, *, augment: Augmenter | None = None, cache_bytes: int = 2 * 2**30) -> None:
        self.spec = spec
        self.augment = augment
        modality = split.domain.samples.modality
        keep: list[bool] = []
        hashes: list[str] = []
        self.dropped: list[tuple[str, str]] = []
        encoded: list[torch.Tensor] | None = []
        raw: list[Any] | None = [] if augment is not None else None
        bytes_encoded = bytes_raw = 0
        for start in range(0, len(split), CHUNK):
            rows = split.rows[start : start + CHUNK]
            batch = split.domain.samples.read(rows)
            inputs = modality.encode(batch, spec)
            good = torch.isfinite(inputs.reshape(len(inputs), -1)).all(dim=1)
            chunk_hashes = modality.content_hashes(batch)
            at = 0
            for i, error in enumerate(batch.errors):
                reason = error
                if error is None:
                    reason = None if bool(good[at]) else "its encoding holds values that are not finite"
                    at += 1
                keep.append(reason is None)
                if reason is not None:
                    self.dropped.append((split.domain.ids[int(rows[i])], reason))
                    continue
                hashes.append(chunk_hashes[i] or "")
                if raw is not None:
                    raw.append(batch.items[i])
                    bytes_raw += int(getattr(batch.items[i], "nbytes", 64))
            if encoded is not None:
                encoded.append(inputs[good])
                bytes_encoded += inputs.element_size() * inputs.numel()
                if bytes_encoded > cache_bytes or augment is not None:
                    encoded = None
            if raw is not None and bytes_raw > cache_bytes:
                raw, bytes_raw = None, 0
        split.domain.samples.caps.refuse_above(dict(self.dropped), len(split), f"samples of {split.domain.name} cannot be used")
        self.split = split.take(np.array(keep, dtype=np.bool_))
        if len(self.split) == 0:
            raise DataError(f"{split.domain.name}: no sample can be used")
        self.hashes = hashes
        self._raw = raw
        self._encoded = torch.cat(encoded) if encoded is not None else None
        self.labels = torch.from_numpy(self.split.labels.copy())

    def standardise(self, value: Value) -> None:
        """From here on ``labels`` are the values (float32) as the network shall give them."""
        assert self.split.values is not None
        self.labels = torch.from_numpy(value.standardised(self.split.values).astype(np.float32))

    def __len__(self) -> int:
        return len(self.split)

    @property
    def in_memory(self) -> bool:
        return self._encoded is not None or self._raw is not None

    def batch(self, positions: IntArray, *, seed: int = 0, epoch: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """(inputs, labels) at these positions of the split. With an ``epoch``, augmented: each sample by (seed, epoch, its row)."""
        where = torch.from_numpy(positions)
        labels = self.labels[where]
        if self._encoded is not None:
            return self._encoded[where], labels
        modality = self.split.domain.samples.modality
        rows = self.split.rows[positions]
        if self._raw is not None:
            batch = RawBatch(rows, [self._raw[i] for i in positions], [None] * len(rows), [{}] * len(rows))
        else:
            batch = self.split.domain.samples.read(rows)
            if not bool(batch.readable.all()):
                bad = int(np.flatnonzero(~batch.readable)[0])
                raise DataError(f"{self.split.domain.ids[int(rows[bad])]}: could be read before and now cannot: {batch.errors[bad]}")
        if self.augment is not None and epoch is not None:
            batch = self.augment(batch, seed, epoch)
        return modality.encode(batch, self.spec), labels

    def record(self, classes: Sequence[str]) -> DataRecord:
        """Fingerprint of the split: SHA-256 of the sorted content hashes with labels."""
        values = self.split.values
        pairs = sorted(f"{digest}:{label}" for digest, label in zip(self.hashes, self.label_texts(classes), strict=True))
        counts = Counter(int(code) for code in self.split.labels)
        cluster = self.split.domain.cluster
        return DataRecord(
            name=self.split.name,
            n=len(self),
            sha256=hashlib.sha256("\n".join(pairs).encode()).hexdigest(),
            class_counts={label: counts.get(i, 0) for i, label in enumerate(classes)},
            clusters=None if cluster is None else len({str(c) for c in cluster[self.split.rows]}),
            value_mean=None if values is None else float(values.mean()),
            value_sd=None if values is None or len(values) < 2 else float(values.std(ddof=1)),
        )

    def label_texts(self, classes: Sequence[str]) -> list[str]:
        """Labels as text: class names, or the numbers of a regression."""
        if self.split.values is not None:
            return [repr(v) for v in self.split.values.tolist()]
        return [classes[code] for code in self.split.labels]


class Augmenter:
    """Transforms of ``torchvision.transforms.v2`` on raw uint8 images, before preprocessing. Each sample has its own seed.

    Raises
    ------
    ConfigError : no such transform (with the nearest name), arguments it does not take, or data that are not images
    """

    def __init__(self, steps: Sequence[Augment], kind: str) -> None:
        if kind != "image":
            raise ConfigError(f"[training] augment works on images, this data is {kind}")
        from torchvision.transforms import v2

        known = sorted(n for n in dir(v2) if isinstance(getattr(v2, n), type) and issubclass(getattr(v2, n), v2.Transform))
        transforms = []
        for step in steps:
            if step.name not in known:
                near = difflib.get_close_matches(step.name, known, n=3)
                raise ConfigError(
                    f"[training] augment: torchvision.transforms.v2 has no {step.name!r}; did you mean {', '.join(near) or known[0]}?"
                )
            try:
                transforms.append(getattr(v2, step.name)(**step.args))
            except (TypeError, ValueError) as error:
                raise ConfigError(f"[training] augment {step.name}: {error}") from None
        self._transform: Callable[[Any], Any] = v2.Compose(transforms)

    def __call__(self, batch: RawBatch, seed: int, epoch: int) -> RawBatch:
        from torchvision import tv_tensors

        items = []
        # the caller's generators are left as they were; each sample is keyed, so that batch size and order do not matter
        with torch.random.fork_rng(devices=[]):
            for row, item in zip(batch.rows, batch.items, strict=True):
                torch.manual_seed(key_seed(seed, "augment", epoch, int(row)))
                array = np.ascontiguousarray(item)
                grey = array.ndim == 2
                image = torch.from_numpy(array[None] if grey else np.moveaxis(array, -1, 0).copy())
                out = self._transform(tv_tensors.Image(image))
                if not isinstance(out, torch.Tensor) or out.dtype != torch.uint8 or out.ndim != 3:
                    raise ConfigError(
                        "[training] augment must turn a uint8 image into a uint8 image: leave out normalisation and type changes"
                    )
                plain = out.as_subclass(torch.Tensor).numpy()
                items.append(plain[0] if grey else np.ascontiguousarray(np.moveaxis(plain, 0, -1)))
        return RawBatch(batch.rows, items, batch.errors, batch.facts)


def key_seed(*key: object) -> int:
    """A seed for torch from any key."""
    return int(generator(*key).integers(2**63 - 1))


def epoch_order(labels: IntArray, *, seed: int, epoch: int, sampler: str | None = None, classes: int = 0) -> IntArray:
    """(n,) positions of one epoch: a permutation; with "balanced", n draws with replacement where each class present is equally likely.

    Depends on (seed, epoch) alone: adapted model and controls see the same batches.
    """
    n = len(labels)
    draw = generator(seed, "order", epoch)
    if sampler is None:
        return draw.permutation(n).astype(np.int64)
    counts = np.bincount(labels, minlength=classes)
    weights = 1.0 / counts[labels]
    return draw.choice(n, size=n, replace=True, p=weights / weights.sum()).astype(np.int64)


def cut(order: IntArray, size: int) -> list[IntArray]:
    """Batches of an order. A last batch of one sample joins the one before: batch statistics need two."""
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    if size > 1 and len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [np.concatenate(parts[-2:])]
    return parts


def count_batches(n: int, size: int) -> int:
    """Number of batches that ``cut`` makes of n samples."""
    full = -(-n // size)
    return full - 1 if full > 1 and n % size == 1 and size > 1 else full


class Batches:
    """What the trainer iterates over: (inputs, labels) per batch, in the order of the current epoch; ``numbered``: and their positions."""

    def __init__(
        self,
        inputs: Inputs,
        size: int,
        *,
        seed: int = 0,
        epoch: Callable[[], int] | None = None,
        sampler: str | None = None,
        classes: int = 0,
        numbered: bool = False,
    ) -> None:
        self._numbered = numbered
        self._inputs, self._size, self._seed, self._epoch, self._sampler, self._classes = inputs, size, seed, epoch, sampler, classes

    def __len__(self) -> int:
        return count_batches(len(self._inputs), self._size) if self._epoch is not None else -(-len(self._inputs) // self._size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        n = len(self._inputs)
        if self._epoch is None:
            for start in range(0, n, self._size):
                yield self._inputs.batch(np.arange(start, min(n, start + self._size), dtype=np.int64))
            return
        epoch = self._epoch()
        order = epoch_order(self._inputs.split.labels, seed=self._seed, epoch=epoch, sampler=self._sampler, classes=self._classes)
        for positions in cut(order, self._size):
            batch = self._inputs.batch(positions, seed=self._seed, epoch=epoch)
            yield (*batch, torch.from_numpy(positions)) if self._numbered else batch
