"""Exact Shapley values: every coalition of a few input parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from tl_audit.attribution.base import Attribution, Inputs, Run, Targets
from tl_audit.attribution.coalitions import shapley_of_table
from tl_audit.attribution.evaluation import Quantity, evaluating
from tl_audit.attribution.game import Game
from tl_audit.attribution.reference import drawn_background, reference_of
from tl_audit.attribution.shapley import BACKGROUND_OF, MOST_BACKGROUND, assembled, ends
from tl_audit.errors import ConfigError
from tl_audit.models.model import Model

MOST_PARTS = 12
"""Above it there are more than 4,096 coalitions per sample, and kernel_shap gives the same to a few hundredths from far fewer."""
_AFFORDABLE = 2**16  # evaluations per sample that are made without being asked for


@dataclass(frozen=True)
class ExactSHAP:
    """Signed values in units of the output that add up to f(x) - f(reference): the definition, with no error of sampling.

    All 2^d coalitions of d input parts are evaluated, d at most 12. On columns the value of a coalition is the mean over the rows of
    the background; where budget x rows would not fit, over fewer rows, which is said.

    Attributes
    ----------
    baseline : the input that stands for "nothing there"; None: the background, or that of the kind of data
    masking : how removed parts are filled in, instead of a baseline; None: as ``baseline``
    output : what is explained: "logit" or "probability"

    References
    ----------
    Shapley (1953). A value for n-person games. doi:10.1515/9781400881970-018
    """

    baseline: torch.Tensor | None = None
    masking: str | None = None
    output: Quantity = "logit"

    name: ClassVar[str] = "exact_shap"
    signed: ClassVar[bool] = True
    stochastic: ClassVar[bool] = False
    complete: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = False
    needs_space: ClassVar[bool] = False

    def __call__(self, model: Model, inputs: Inputs, targets: Targets, run: Run) -> Attribution:
        counts = inputs.players.count
        parts = int(counts.max(initial=0))
        if parts > MOST_PARTS:
            raise ConfigError(
                f"exact_shap evaluates all 2^d coalitions and takes at most {MOST_PARTS} input parts; sample {inputs.ids[int(counts.argmax())]} has {parts}: "
                "use kernel_shap, or cut the inputs into fewer parts (parts=...)"
            )
        needed, most = 2**parts, run.most(_AFFORDABLE)
        if needed > most:
            raise ConfigError(
                f"exact_shap needs {needed} model evaluations for {parts} input parts, and the budget is {most}: raise it, or use kernel_shap"
            )
        reference, note = drawn_background(
            reference_of(inputs, self.baseline, self.masking),
            most=min(MOST_BACKGROUND, most // needed),
            seed=run.seed,
            method=BACKGROUND_OF,
        )
        rows = len(reference) if reference.shared else 1
        codes = [np.arange(1, 2 ** int(d) - 1) for d in counts]
        keep = [np.tile((c[:, None] >> np.arange(int(d))) & 1 == 1, (rows, 1)) for c, d in zip(codes, counts, strict=True)]
        draws = [np.repeat(np.arange(rows), len(c)) for c in codes] if reference.shared else None
        with evaluating(model, batch_size=run.batch_size, outputs_only=most, sample=inputs.tensor[:8]) as evaluator:
            game = Game(evaluator, inputs, targets, reference, memo=run.memo, seed=run.seed)
            found = ends(game, evaluator, targets, self.output)
            between = game.values(keep, draws, self.output)
            values = [
                shapley_of_table(np.concatenate([[found.empty[i]], v.reshape(rows, -1).mean(axis=0), [found.full[i]]]))
                if counts[i]
                else np.zeros(0)
                for i, v in enumerate(between)
            ]
            params = {"reference": reference.name, "output": self.output, "exact": True}
            return assembled(self.name, inputs, targets, run, evaluator, found, values, None, params, [] if note is None else [note])
