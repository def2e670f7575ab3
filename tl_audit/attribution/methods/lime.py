"""LIME: a weighted ridge regression on switched-off input parts, in the neighbourhood of one input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.attribution.base import Attribution, Inputs, Run, Targets
from tl_audit.attribution.evaluation import Quantity, evaluating
from tl_audit.attribution.game import Game
from tl_audit.attribution.maps import blank_maps, from_players, without_nonfinite
from tl_audit.attribution.reference import reference_of
from tl_audit.errors import ConfigError
from tl_audit.measures.sampling import generator
from tl_audit.modality.base import Neighbourhood
from tl_audit.models.model import Model


@dataclass(frozen=True)
class LIME:
    """Signed slopes of a local linear model: how much the class probability changes when a part is there rather than filled in.

    Sampling (each part on or off with equal chance), kernel and surrogate (``lime.lime_base.LimeBase``, ridge with alpha 1 on all
    parts) are lime's; the neighbourhood is drawn per sample from (seed, method, id) and evaluated in shared batches, which lime
    itself cannot do. Parts that are off show the baseline on images, a row of the background on columns.

    Attributes
    ----------
    baseline : the input that stands for "nothing there"; None: the background, or that of the kind of data
    masking : how removed parts are filled in, instead of a baseline; None: as ``baseline``
    output : "probability" (lime's own) or "logit"

    References
    ----------
    Ribeiro et al. (2016). "Why should I trust you?": explaining the predictions of any classifier. arXiv:1602.04938
    """

    baseline: torch.Tensor | None = None
    masking: str | None = None
    output: Quantity = "probability"

    name: ClassVar[str] = "lime"
    signed: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True
    complete: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    needs_space: ClassVar[bool] = False

    def __call__(self, model: Model, inputs: Inputs, targets: Targets, run: Run) -> Attribution:
        seed, budget = run.seed, run.most()
        if budget < 4:
            raise ConfigError(f"lime needs a budget of at least 4 model evaluations, not {budget}")
        reference = reference_of(inputs, self.baseline, self.masking)
        hoods, draws = [], []
        for i, sample in enumerate(inputs.ids):
            rng = generator(seed, self.name, sample)
            hood = rng.integers(0, 2, size=(budget, int(inputs.players.count[i]))).astype(bool)
            hood[0] = True
            hoods.append(hood)
            if reference.shared:
                draws.append(rng.integers(0, len(reference), size=budget))
        with evaluating(model, batch_size=run.batch_size, outputs_only=budget, sample=inputs.tensor[:8]) as evaluator:
            import lime.lime_base  # noqa: F401  inside the borrowing block: importing it moves NumPy's global random state

            values = Game(evaluator, inputs, targets, reference, memo=run.memo, seed=seed).values(
                hoods, draws if reference.shared else None, self.output
            )
            spent = evaluator.evaluations
        near = inputs.modality.neighbourhood(inputs.players)
        fits = [surrogate(hood, v, near=near) for hood, v in zip(hoods, values, strict=True)]
        elements, players = from_players([f[0] for f in fits], inputs.players)
        elements = without_nonfinite(elements)
        scores = [f[2] for f in fits if f[2] is not None]
        return Attribution(
            values=elements, player_values=players, targets=targets.index, against=targets.against, method=self.name, inputs=inputs, signed=True, seed=seed,
            budget=-(-spent // max(len(hoods), 1)), standard_error=tuple(f[1] for f in fits), blank=blank_maps(elements),
            params={
                "reference": reference.name, "output": self.output, "ridge_alpha": 1.0,
                "mean_r2": round(float(np.mean(scores)), 6) if scores else None,
            },
            caveats=tuple(sorted(evaluator.notes)),
        )  # fmt: skip


def surrogate(
    hood: NDArray[np.bool_], values: NDArray[np.float64], *, near: Neighbourhood
) -> tuple[NDArray[np.float64], NDArray[np.float64], float | None]:
    """Slopes (d,), their standard errors (d,) and R² of lime's weighted ridge; R² is None where all values are equal.

    Parameters
    ----------
    hood : (R, d), row 0 is the input itself (all on)
    values : (R,)
    """
    from lime.lime_base import LimeBase

    d = hood.shape[1]
    if not np.isfinite(values).all():
        return np.full(d, np.nan), np.full(d, np.nan), None
    data = hood.astype(np.float64)
    distances = cosine_to_full(data) if near.distance == "cosine" else np.sqrt((1.0 - data).sum(axis=1))
    width = near.width if near.distance == "cosine" else near.width * np.sqrt(d)

    def kernel(distance: NDArray[np.float64]) -> NDArray[np.float64]:
        weight: NDArray[np.float64] = np.sqrt(np.exp(-(distance**2) / width**2))
        return weight

    constant = float(np.ptp(values)) == 0.0
    if constant:  # R² divides by the variance
        return np.zeros(d), np.zeros(d), None
    fit: Any = LimeBase(kernel, random_state=0).explain_instance_with_data(  # Any: lime is untyped
        data, values[:, None], distances, 0, d, feature_selection="none"
    )
    intercept, pairs, score, _ = fit
    slopes = np.zeros(d)
    for part, slope in pairs:
        slopes[int(part)] = float(slope)
    weights = kernel(distances)
    centred = data - np.average(data, axis=0, weights=weights)
    bread = np.linalg.inv((centred * weights[:, None]).T @ centred + np.eye(d))
    residual = values - float(intercept) - data @ slopes
    meat = (centred * (weights * residual)[:, None]).T @ (centred * (weights * residual)[:, None])
    return slopes, np.sqrt(np.maximum(np.diag(bread @ meat @ bread), 0.0)), float(score)


def cosine_to_full(data: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine distance of each 0/1 row to the row of ones; 1 for a row of zeros."""
    on = data.sum(axis=1)
    return np.asarray(1.0 - np.sqrt(on / data.shape[1]))
