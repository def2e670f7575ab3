"""A kind of data of squares, without files: what explainers need of a modality and nothing more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from tl_audit.attribution import METHODS, Inputs
from tl_audit.attribution.methods import NEGATIVE_CONTROLS
from tl_audit.modality.base import Neighbourhood, Players

ASKING = tuple(m for m in METHODS if m not in NEGATIVE_CONTROLS)
"""Methods that ask the model."""


@dataclass(frozen=True)
class Squares:
    """Images cut into equal squares, and columns; removed parts become zero."""

    kind: str = "squares"
    default_mask: str = "zero"
    masks: tuple[str, ...] = ("zero",)
    segmentations: tuple[str, ...] = ("grid",)

    def neighbourhood(self, players: Players) -> Neighbourhood:
        return Neighbourhood("cosine", 0.25) if players.spatial else Neighbourhood("euclidean", 0.75)

    def filler(self, inputs: torch.Tensor, spec: Any, method: str, background: torch.Tensor | None = None) -> torch.Tensor:
        return torch.zeros_like(inputs)

    def mask(
        self,
        inputs: torch.Tensor,
        players: Players,
        keep: Any,
        *,
        index: Any,
        spec: Any,
        method: str,
        background: Any = None,
        key: Any = (),
    ) -> torch.Tensor:
        rows = players.assignment[torch.as_tensor(index)]
        kept = torch.as_tensor(keep).gather(1, rows.reshape(len(rows), -1)).reshape(rows.shape)
        x = inputs[torch.as_tensor(index)]
        return torch.where(kept if kept.ndim == x.ndim else kept.unsqueeze(1), x, torch.zeros_like(x))

    def baseline(self, inputs: torch.Tensor, spec: Any, background: torch.Tensor | None) -> torch.Tensor:
        return torch.zeros_like(inputs)

    def edges(self, inputs: torch.Tensor) -> Any:
        if inputs.ndim != 4:
            return None
        grey = inputs.mean(dim=1).double().numpy()
        return np.abs(np.gradient(grey, axis=1)) + np.abs(np.gradient(grey, axis=2))

    def picture(self, inputs_row: Any, spec: Any, *, title: str, side: int = 160, redacted: bool = False) -> None:
        return None

    def map_picture(
        self, inputs_row: Any, values: Any, spec: Any, *, title: str, signed: bool, side: int = 160, redacted: bool = False
    ) -> None:
        return None

    def map_bars(self, values: Any, players: Players, row: int) -> tuple[Any, ...]:
        from tl_audit.records.exhibits import Bar

        return tuple(Bar(label=str(k), value=float(v)) for k, v in enumerate(np.asarray(values)))


def squares(side: int, cell: int, n: int) -> Players:
    """n samples, each cut into (side / cell)² squares."""
    at = torch.arange(side) // cell
    grid = at[:, None] * (side // cell) + at[None, :]
    return Players(grid.expand(n, side, side).clone(), np.full(n, (side // cell) ** 2, dtype=np.int64), None, "image")


def image_inputs(tensor: torch.Tensor, cell: int = 4, ids: tuple[str, ...] | None = None) -> Inputs:
    n = len(tensor)
    return Inputs(tensor, ids or tuple(f"s{i}" for i in range(n)), Squares(), None, squares(tensor.shape[-1], cell, n))  # type: ignore[arg-type]


def parts_for(method: str) -> int:
    """Side of the squares that a method can work with: 16 parts of a 16 x 16 image, 4 for the method that evaluates every coalition."""
    return 8 if method == "exact_shap" else 4


def column_inputs(tensor: torch.Tensor, background: torch.Tensor | None = None, ids: tuple[str, ...] | None = None) -> Inputs:
    n, d = tensor.shape
    players = Players(torch.arange(d).expand(n, d).clone(), np.full(n, d, dtype=np.int64), tuple(f"c{k}" for k in range(d)), "columns")
    return Inputs(tensor, ids or tuple(f"s{i}" for i in range(n)), Squares(), None, players, background)  # type: ignore[arg-type]


class PatchDetector(nn.Module):
    """Class 1 where a bright 4 x 4 patch is somewhere, class 0 else. Weights by hand: nothing else counts."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv2d(1, 2, 4, stride=4)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(2, 2)
        with torch.no_grad():
            self.look.weight.zero_()
            self.look.weight[0] = 1 / 16
            self.look.bias.copy_(torch.tensor([-0.5, 0.1]))
            self.head.weight.copy_(torch.tensor([[0.0, 0.0], [64.0, 0.0]]))
            self.head.bias.copy_(torch.tensor([1.0, -1.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.look(x)).mean(dim=(2, 3)))
