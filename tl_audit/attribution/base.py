"""Attribution and the Explainer protocol: one contract for results, seeds and leaving no trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.modality.base import Modality, Players
from tl_audit.models.model import Model
from tl_audit.records.exhibits import Stamp
from tl_audit.records.preprocessing import InputSpec


@dataclass(frozen=True)
class Inputs:
    """Encoded samples with what explainers need to perturb and to name them.

    Attributes
    ----------
    tensor : (N, ...) model inputs
    ids : N sample ids (each stochastic method draws from a generator of (seed, method, id))
    modality, spec : how to mask and draw them
    players : input parts, made once and shared by all methods
    background : (M, ...) reference inputs for SHAP, marginal masking; None: the modality's baseline
    """

    tensor: torch.Tensor
    ids: tuple[str, ...]
    modality: Modality
    spec: InputSpec | None
    players: Players
    background: torch.Tensor | None = None


@dataclass(frozen=True)
class Attribution:
    """How much each input part counted for one output, per sample.

    Attributes
    ----------
    values : (N, *spatial) (images: H x W, channels summed) or (N, columns) float64; signed where the method is; NaN rows where a map is non-finite
    player_values : per sample (count[i],) values per input part: what methods are compared on
    targets : (N,) output index explained; ``target_names`` their class names
    method, signed, layer, layer_reason, seed, budget : how it was made; ``budget`` counts model evaluations per sample really used
    completeness : (N,) sum of values - (f(x) - f(baseline)), for methods that promise it, else None
    standard_error : per sample (count[i],) standard error per player of stochastic methods, else None
    blank : (N,) bool: zero, constant or non-finite maps
    inputs : what was explained
    """

    values: NDArray[np.float64]
    player_values: tuple[NDArray[np.float64], ...]
    targets: NDArray[np.int64]
    method: str
    inputs: Inputs
    signed: bool
    target_names: tuple[str, ...] | None = None
    layer: str | None = None
    layer_reason: str | None = None
    seed: int = 0
    budget: int = 0
    completeness: NDArray[np.float64] | None = None
    standard_error: tuple[NDArray[np.float64], ...] | None = None
    blank: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))
    quality: Stamp | None = None
    params: Mapping[str, Any] = field(default_factory=dict)  # Any: plain JSON values
    caveats: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.targets)

    def _repr_html_(self) -> str:
        from importlib import import_module

        html: str = import_module("tl_audit.report.notebook").attribution_fragment(self)
        return html


class Explainer(Protocol):
    """A frozen dataclass whose fields are its settings. Touches the model only through ``models.borrowed``."""

    name: str
    signed: bool
    stochastic: bool
    complete: bool
    "promises that values sum to f(x) - f(baseline)"
    needs_gradients: bool

    def __call__(
        self, model: Model, inputs: Inputs, targets: NDArray[np.int64], *, seed: int, budget: int, batch_size: int
    ) -> Attribution: ...
