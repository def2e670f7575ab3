"""What explainers are given (``Inputs``, ``Targets``, ``Run``), what they give back (``Attribution``), and their one protocol (``Explainer``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from tl_audit.modality.base import Modality, Players
from tl_audit.models.model import Model
from tl_audit.records.exhibits import Stamp
from tl_audit.records.preprocessing import InputSpec

if TYPE_CHECKING:
    from tl_audit.attribution.comparison import Comparison
    from tl_audit.attribution.game import Memo
    from tl_audit.attribution.importance import Importance

DEFAULT_BUDGET = 256
"""Model evaluations per sample. A backward pass counts as one more."""


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

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: NDArray[np.int64]) -> Inputs:
        """Some of the samples, in this order."""
        at = torch.as_tensor(rows, device=self.tensor.device)
        return replace(self, tensor=self.tensor[at], ids=tuple(self.ids[r] for r in rows), players=self.players.select(rows))


@dataclass(frozen=True)
class Targets:
    """Which output of each sample is explained: one class, or the contrast of two.

    Attributes
    ----------
    index : (N,) output index
    against : (N,) the output that is subtracted, None: the plain output. "Why this and not that?"
    """

    index: NDArray[np.int64]
    against: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> Targets:
        return Targets(self.index[rows], None if self.against is None else self.against[rows])

    def of(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,) what is explained, from outputs (N, C)."""
        rows = np.arange(len(table))
        chosen = table[rows, self.index]
        return np.asarray(chosen if self.against is None else chosen - table[rows, self.against], dtype=np.float64)

    def pick(self, scores: torch.Tensor) -> torch.Tensor:
        """As ``of``, differentiable, from a tensor (B, C)."""
        chosen = scores.gather(1, torch.as_tensor(self.index, device=scores.device)[:, None])[:, 0]
        if self.against is None:
            return chosen
        return chosen - scores.gather(1, torch.as_tensor(self.against, device=scores.device)[:, None])[:, 0]


@dataclass(frozen=True)
class Run:
    """How one explanation is run: what does not belong to the method's own settings.

    Attributes
    ----------
    seed : of stochastic methods; each sample draws from (seed, method, sample id) alone
    budget : most model evaluations per sample; None: the method's own choice (``DEFAULT_BUDGET`` unless it says otherwise). Rows of a background that
        SHAP's sampling methods evaluate once for all samples come besides (``shapley.most_background``)
    batch_size : rows per forward pass; halved where memory runs out
    memo : evaluations of masked inputs that several methods share; None: nothing is shared
    share : of that budget which may be spent, for runs that need not be as exact; 8 evaluations at least
    """

    seed: int = 0
    budget: int | None = None
    batch_size: int = 64
    memo: Memo | None = None
    share: float = 1.0

    def most(self, default: int = DEFAULT_BUDGET) -> int:
        whole = default if self.budget is None else self.budget
        return whole if self.share >= 1 else max(min(8, whole), int(whole * self.share))


@dataclass(frozen=True, repr=False)
class Attribution:
    """How much each input part counted for one output, per sample.

    Attributes
    ----------
    values : (N, *spatial) (images: H x W, channels summed) or (N, columns) float64; signed where the method is; NaN rows where a map is non-finite
    player_values : per sample (count[i],) values per input part: what methods are compared on
    targets : (N,) output index explained; ``target_names`` their class names ("ants against bees" for a contrast)
    against : (N,) output index subtracted, None unless a contrast of two outputs was explained
    method, signed, layer, layer_reason, seed, budget : how it was made; ``budget`` counts model evaluations per sample really used
    completeness : (N,) sum of values - (f(x) - f(baseline)), for methods that promise it, else None
    standard_error : per sample (count[i],) standard error per player of stochastic methods, else None
    blank : (N,) bool: zero, constant or non-finite maps
    inputs : what was explained
    explainer : the method with its settings, as it was run; None where maps were read from a file
    """

    values: NDArray[np.float64]
    player_values: tuple[NDArray[np.float64], ...]
    targets: NDArray[np.int64]
    method: str
    inputs: Inputs
    signed: bool
    target_names: tuple[str, ...] | None = None
    against: NDArray[np.int64] | None = None
    layer: str | None = None
    layer_reason: str | None = None
    seed: int = 0
    budget: int = 0
    completeness: NDArray[np.float64] | None = None
    standard_error: tuple[NDArray[np.float64], ...] | None = None
    blank: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))
    quality: Stamp | None = None
    explainer: Explainer | None = None
    params: Mapping[str, Any] = field(default_factory=dict)  # Any: plain JSON values
    caveats: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def explained(self) -> Targets:
        return Targets(self.targets, self.against)

    def select(self, rows: NDArray[np.int64]) -> Attribution:
        """The maps of some samples, in this order."""
        return replace(
            self,
            values=self.values[rows],
            player_values=tuple(self.player_values[r] for r in rows),
            targets=self.targets[rows],
            target_names=None if self.target_names is None else tuple(self.target_names[r] for r in rows),
            against=None if self.against is None else self.against[rows],
            inputs=self.inputs.select(rows),
            completeness=None if self.completeness is None else self.completeness[rows],
            standard_error=None if self.standard_error is None else tuple(self.standard_error[r] for r in rows),
            blank=self.blank[rows],
        )

    def __repr__(self) -> str:
        shape = " x ".join(str(side) for side in self.values.shape[1:])
        lines = [
            f"Attribution({self.method}, {len(self)} sample(s), maps of {shape}, {self.budget} model evaluations per sample, seed {self.seed})"
        ]
        if self.layer is not None:
            lines.append(f"  layer: {self.layer} ({self.layer_reason})")
        if len(self.blank) and self.blank.any():
            lines.append(f"  no signal in {int(self.blank.sum())} of {len(self)} maps")
        if self.completeness is not None and len(self):
            lines.append(f"  largest completeness residual: {float(np.nanmax(np.abs(self.completeness))):.3g}")
        lines.append(f"  quality: {'not checked' if self.quality is None else self.quality.text}")
        lines += [f"  note: {caveat}" for caveat in self.caveats[:4]]
        for i in range(min(len(self), 8)):
            target = str(self.targets[i]) if self.target_names is None else self.target_names[i]
            mine = self.player_values[i]
            names = self.inputs.players.names or tuple(f"part {k}" for k in range(len(mine)))
            top = sorted(range(len(mine)), key=lambda k: (-abs(mine[k]) if np.isfinite(mine[k]) else 0.0, k))[:3]
            shown = "no signal" if len(self.blank) and self.blank[i] else ", ".join(f"{names[k]} {mine[k]:+.3g}" for k in top)
            lines.append(f"  {self.inputs.ids[i]} -> {target}: {shown}")
        if len(self) > 8:
            lines.append(f"  ... and {len(self) - 8} more")
        return "\n".join(lines)

    def to_rows(self) -> list[dict[str, Any]]:
        """One row per sample and input part: id, target, part, value, standard_error (None where not estimated)."""
        rows: list[dict[str, Any]] = []
        for i, mine in enumerate(self.player_values):
            names = self.inputs.players.names or tuple(f"part {k}" for k in range(len(mine)))
            error = None if self.standard_error is None else self.standard_error[i]
            for k, value in enumerate(mine):
                rows.append(
                    {
                        "id": self.inputs.ids[i],
                        "target": int(self.targets[i]) if self.target_names is None else self.target_names[i],
                        "part": names[k],
                        "value": float(value) if np.isfinite(value) else None,
                        "standard_error": float(error[k]) if error is not None and np.isfinite(error[k]) else None,
                    }
                )
        return rows

    def to_frame(self) -> Any:  # Any: pandas is imported late
        """``to_rows`` as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.to_rows())

    def figure(self) -> Any:  # Any: a matplotlib figure; matplotlib is no dependency
        """The first eight maps, or bars of columns, as a matplotlib figure. ConfigError where matplotlib is not installed."""
        from importlib import import_module

        from tl_audit.attribution.importance import part_labels

        return import_module("tl_audit.report.figures").attribution_figure(self, part_labels(self))

    def save(self, path: str | Path) -> Path:
        """Write .png (needs matplotlib), .npz or .json, by suffix; whole or not at all, never through a link."""
        from tl_audit.attribution.saving import save_attribution

        return save_attribution(self, path)

    def beside(self, other: Attribution, *, names: tuple[str, str] = ("base", "adapted")) -> Comparison:
        """``other`` (the base's maps), these maps and the difference these - other, side by side; ``names`` in that order."""
        from tl_audit.attribution.comparison import beside

        return beside(self, other, names=names)

    def importance(self, cluster: ArrayLike | Sequence[object] | None = None) -> Importance:
        """Mean |value| of every column over the rows, with intervals over rows or clusters, against chance; tables only."""
        from tl_audit.attribution.importance import importance

        return importance(self, cluster)

    def _repr_html_(self) -> str:
        from importlib import import_module

        from tl_audit.attribution.importance import part_labels

        html: str = import_module("tl_audit.report.notebook").attribution_fragment(self, part_labels(self))
        return html

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str | bytes]:  # Any: IPython's filters
        from importlib import import_module

        bundle: dict[str, str | bytes] = {"text/html": self._repr_html_(), "text/plain": repr(self)}
        sheet: bytes | None = import_module("tl_audit.report.maps").sheet_png(self)
        return bundle if sheet is None else bundle | {"image/png": sheet}


class Explainer(Protocol):
    """A frozen dataclass whose fields are its settings. Touches the model only through ``evaluation.evaluating``.

    Settings that several methods have carry one name: ``output`` (Quantity), ``layer``, ``baseline``, ``masking`` (how removed parts are filled in),
    ``convergence`` (stop when the largest 95 % half-width of a sample's values is at most this share of their range).
    Explainers that read the same pass of the model have a ``together`` of their class besides (``LayerCamMethod``): see ``run_explainers``.
    """

    @property
    def name(self) -> str: ...

    @property
    def signed(self) -> bool: ...

    @property
    def stochastic(self) -> bool: ...

    @property
    def complete(self) -> bool:
        """Promises that values sum to f(x) - f(baseline)."""
        ...

    @property
    def needs_gradients(self) -> bool: ...

    @property
    def needs_space(self) -> bool:
        """Reads a layer with a map of places: images only."""
        ...

    def __call__(self, model: Model, inputs: Inputs, targets: Targets, run: Run) -> Attribution: ...
