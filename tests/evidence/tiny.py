"""A tiny subject of tensors whose outputs can be worked out by hand, and a counter of forward passes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from tl_audit.modality.base import RawBatch
from tl_audit.modality.tensors import TENSOR
from tl_audit.models import Model
from tl_audit.subject import Domain, Subject


class Counted(nn.Module):
    """Two linear layers; counts the rows it was given, and may fail at a given batch."""

    def __init__(self, columns: int, classes: int, seed: int, hidden: int = 4) -> None:
        super().__init__()
        made = torch.Generator().manual_seed(seed)
        self.body = nn.Linear(columns, hidden)
        self.head = nn.Linear(hidden, classes)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=made))
        self._rows: list[int] = []
        self._fail_at: int | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._fail_at is not None and len(self._rows) >= self._fail_at:
            raise KeyboardInterrupt
        self._rows.append(len(x))
        out: torch.Tensor = self.head(torch.relu(self.body(x)))
        return out

    @property
    def calls(self) -> int:
        return len(self._rows)


def counted(seed: int, classes: Sequence[str] = ("ants", "bees"), columns: int = 3, name: str = "adapted", hidden: int = 4) -> Model:
    return Model(Counted(columns, len(classes), seed, hidden), classes=tuple(classes), name=name)


def domain(name: str, n: int = 40, seed: int = 0, classes: Sequence[str] = ("ants", "bees"), columns: int = 3) -> Domain:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, columns)).astype(np.float32)
    labels = [classes[i] for i in (x[:, 0] > 0).astype(int)]
    return Domain(
        name,
        x,
        labels=labels,
        classes=classes,
        groups={"site": np.where(np.arange(n) % 4 == 0, "north", "south")},
        cluster=[f"p{i // 2}" for i in range(n)],
        kind="tensor",
    )


def tiny(**parts: object) -> Subject:
    """An adapted model and a target, and what else is named."""
    return Subject(**{"adapted": counted(0), "target": domain("T"), **parts})  # type: ignore[arg-type]


def full() -> Subject:
    return tiny(base=counted(1, name="base"), source=domain("S", 30, 1), train=domain("R", 50, 2), controls={"head": counted(3)})


class Picky:
    """Samples that cannot be read in some rows; counts the rows that were read."""

    def __init__(self, data: np.ndarray, bad: Sequence[int] = ()) -> None:
        self.data, self.bad = data, set(bad)
        self.ids = tuple(f"row-{i}" for i in range(len(data)))
        self.modality = TENSOR
        self.caps = domain("caps", 2).samples.caps
        self.read_rows: list[int] = []

    def __len__(self) -> int:
        return len(self.data)

    def read(self, rows: np.ndarray) -> RawBatch:
        self.read_rows += [int(r) for r in rows]
        items = [None if int(r) in self.bad else torch.tensor(self.data[int(r)]) for r in rows]
        errors = ["cut short" if int(r) in self.bad else None for r in rows]
        return RawBatch(rows=rows, items=items, errors=errors, facts=[{} for _ in rows])


def calls(subject: Subject) -> int:
    """Forward passes of all models of a subject so far."""
    return sum(m.module.calls for m in subject.models.values())  # type: ignore[union-attr,operator]
