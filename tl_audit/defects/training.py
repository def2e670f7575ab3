"""Defects of how a model was trained: rows 14 to 16. Each grows a world of its own."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.defects.base import Defect, Fires, Planted, fires, quiet
from tl_audit.defects.weights import altered
from tl_audit.defects.worlds import Ingredients, Kind, Reading, Recipe, World, world

if TYPE_CHECKING:
    from torch import nn

MEMORISED: dict[Kind, Ingredients] = {
    "image": Ingredients(train=Recipe(noise=0.1), n=(900, 240, 0, 1200), epochs=80, layers=("*",), lr=1e-2),
    "tabular": Ingredients(train=Recipe(noise=0.4), n=(900, 150, 0, 1200), epochs=200, layers=("*",), lr=1e-2),
}
INVERTED = Ingredients(source=Recipe(turned=True), layers=("head",), epochs=2, keep_head=True)
MORE_CLASSES = Ingredients(source=Recipe(extra=True))
KEPT = 2
"""Channels of the last block that are left when the forgotten class has been pruned away."""


def a_memorised_training_set(kind: Kind, seed: int) -> Planted:
    """A few hundred training samples, labels of which some are drawn at random (one in ten of pictures, four in ten of rows: half of those stay right), very
    many passes at a high rate, no validation data that could have stopped it."""
    return Planted(world(kind, seed, MEMORISED[kind]).subject())


def a_base_that_learned_the_opposite(kind: Kind, seed: int) -> Planted:
    """The base was trained on the task with every label moved on by one; the adaptation keeps its head and moves nothing else, for two passes.
    A random start of all layers gets further in as many.
    """
    return Planted(world(kind, seed, INVERTED).subject())


def a_forgotten_class(kind: Kind, seed: int) -> Planted:
    """The source has rings as well, the target has none. After the adaptation the last block was pruned: those two channels were kept that tell the
    target's classes well and rings badly, and the others are silent.

    Training alone, even long and at a high rate, did not make these small networks forget: a probe found rings in their features as well as before.
    """
    grown = world(kind, seed, MORE_CLASSES)
    source = grown.readings["source"]
    kept = _blind_to("ring", _channels(grown, source), source.labels)
    silent = torch.as_tensor([i for i in range(16) if i not in kept])

    def edit(module: nn.Module) -> None:
        for name in ("weight", "bias"):
            module.get_parameter(f"block3.bn.{name}")[silent] = 0.0

    return Planted(grown.subject(adapted=altered(grown, edit, name="pruned")))


def _channels(grown: World, reading: Reading) -> NDArray[np.float64]:
    """Means over space of the last block's channels (N, 16) of the adapted model."""
    module = grown.adapted.module
    x = torch.as_tensor(reading.data)[:, None].float() / 255.0
    with torch.no_grad():
        for name in ("block1", "block2", "block3"):
            x = module.get_submodule(name)(x)
    values: NDArray[np.float64] = x.mean(dim=(2, 3)).double().numpy()
    return values


def _blind_to(name: str, features: NDArray[np.float64], labels: NDArray[np.object_]) -> tuple[int, ...]:
    """The ``KEPT`` columns in which a linear rule tells the other classes well and this one badly."""
    classes = sorted(set(labels))
    means = np.stack([features[labels == k].mean(axis=0) for k in classes])
    code = np.array([classes.index(k) for k in labels])
    inside = np.cov((features - means[code]).T) + 1e-9 * np.eye(features.shape[1])
    the_one = code == classes.index(name)

    def score(columns: tuple[int, ...]) -> float:
        weights = np.linalg.solve(inside[np.ix_(columns, columns)], means[:, columns].T)
        told = (features[:, columns] @ weights - 0.5 * (means[:, columns] * weights.T).sum(axis=1)).argmax(axis=1) == code
        return float(told[~the_one].mean() - told[the_one].mean())

    return max(combinations(range(features.shape[1]), KEPT), key=score)


TRAINING: tuple[Defect, ...] = (
    Defect(
        14, "Memorised training set", a_memorised_training_set,
        (*fires("803", metric="attack_auc"), *fires("308"), Fires("TLA205", ("review", "warn", "fail"))), quiet("501", "109"),
    ),
    Defect(
        15, "Negative transfer", a_base_that_learned_the_opposite, fires("401", metric="gain_over_scratch"), quiet("102", "109", "201"), cheap=True,
    ),
    Defect(
        16, "Forgotten class", a_forgotten_class, (Fires("TLA402", metric="backward_transfer_class", slice={"class": "ring"}),), quiet("301", "602"),
        kinds=("image",),
    ),
)  # fmt: skip
