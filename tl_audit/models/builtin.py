"""Two small networks that come with the package: a convolutional one for images, a perceptron for encoded table rows."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from tl_audit.errors import ConfigError
from tl_audit.records.preprocessing import TableEncoding


class ConvBlock(nn.Module):
    """Convolution 3x3, batch norm, ReLU, and where asked a halving of height and width."""

    def __init__(self, inputs: int, outputs: int, *, halve: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.down = nn.MaxPool2d(2) if halve else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down(self.relu(self.bn(self.conv(x))))
        return out


class SmallCNN(nn.Module):
    """Logits (N, num_classes) of images (N, channels, H, W), H and W at least 8.

    Blocks ``block1`` ... of convolution, batch norm and ReLU; all but the last halve height and width while at least one pixel
    remains of an input of 8; then the mean over space, ``dropout``, and the linear ``head``.
    """

    def __init__(self, num_classes: int, *, channels: int = 3, widths: Sequence[int] = (16, 32, 64), dropout: float = 0.0) -> None:
        super().__init__()
        if not 1 <= len(widths) <= 8 or min(widths) < 1:
            raise ConfigError(f"small_cnn widths must be 1 to 8 positive numbers, not {tuple(widths)}")
        sizes = [channels, *widths]
        for i in range(len(widths)):
            self.add_module(f"block{i + 1}", ConvBlock(sizes[i], sizes[i + 1], halve=i < min(3, len(widths) - 1)))
        self.blocks = tuple(f"block{i + 1}" for i in range(len(widths)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.blocks:
            x = getattr(self, name)(x)
        out: torch.Tensor = self.head(self.dropout(self.pool(x).flatten(1)))
        return out


class TableMLP(nn.Module):
    """Logits (N, num_classes) of encoded table rows (N, encoding.width).

    With ``categorical_as="embedding"`` it begins with one bias-free linear map per categorical column over its one-hot slots
    (``embeddings.column0``, ... in the encoding's order); numeric entries pass through. Then ``hidden1`` ... with ReLU and
    dropout, then the linear ``head``.
    """

    def __init__(self, encoding: TableEncoding, num_classes: int, *, hidden: Sequence[int] = (64, 32), dropout: float = 0.0) -> None:
        super().__init__()
        if encoding.width == 0:
            raise ConfigError("the table encoding has no columns: name at least one numeric or categorical column")
        slots = encoding.slots()
        self.width = encoding.width
        self.numeric = sum(stop - start for start, stop in (slots[c.name] for c in encoding.numeric))
        self.spans: tuple[tuple[int, int], ...] = ()
        entry = self.width
        if encoding.categorical_as == "embedding" and encoding.categorical:
            self.spans = tuple(slots[c.name] for c in encoding.categorical)
            sizes = [min(16, math.ceil((stop - start) / 2)) for start, stop in self.spans]
            self.embeddings = nn.ModuleDict(
                OrderedDict(
                    (f"column{i}", nn.Linear(stop - start, size, bias=False))
                    for i, ((start, stop), size) in enumerate(zip(self.spans, sizes, strict=True))
                )
            )
            entry = self.numeric + sum(sizes)
        widths = [entry, *hidden]
        for i in range(len(hidden)):
            block = OrderedDict(linear=nn.Linear(widths[i], widths[i + 1]), relu=nn.ReLU(), dropout=nn.Dropout(dropout))
            self.add_module(f"hidden{i + 1}", nn.Sequential(block))
        self.blocks = tuple(f"hidden{i + 1}" for i in range(len(hidden)))
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim != 2 or x.shape[1] != self.width:
            raise ValueError(f"expected encoded rows (N, {self.width}), got {tuple(x.shape)}")
        if self.spans:
            parts = [self.embeddings[f"column{i}"](x[:, start:stop]) for i, (start, stop) in enumerate(self.spans)]
            x = torch.cat([x[:, : self.numeric], *parts], dim=1)
        for name in self.blocks:
            x = getattr(self, name)(x)
        out: torch.Tensor = self.head(x)
        return out


def small_cnn(num_classes: int, *, channels: int = 3, widths: Sequence[int] = (16, 32, 64), dropout: float = 0.0) -> SmallCNN:
    """A ``SmallCNN``: what ``tl_audit:small_cnn`` names."""
    return SmallCNN(num_classes, channels=channels, widths=widths, dropout=dropout)


def mlp(num_classes: int, *, encoding: TableEncoding, hidden: Sequence[int] = (64, 32), dropout: float = 0.0) -> TableMLP:
    """A ``TableMLP``: what ``tl_audit:mlp`` names."""
    return TableMLP(encoding, num_classes, hidden=hidden, dropout=dropout)
