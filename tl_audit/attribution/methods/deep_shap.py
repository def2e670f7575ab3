"""DeepLIFT-SHAP: DeepLIFT against every row of a background, averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from tl_audit.attribution.base import Attribution, Inputs, Run, Targets
from tl_audit.attribution.evaluation import Quantity, evaluating
from tl_audit.attribution.gradients import FloatArray, IntArray, Site, means_over_draws
from tl_audit.attribution.maps import blank_maps, from_elements, without_nonfinite
from tl_audit.attribution.methods.deep_lift import Engine, engine_of
from tl_audit.attribution.reference import Reference, baseline_of, drawn_background
from tl_audit.errors import ConfigError
from tl_audit.models.model import Model

_COST = 3


@dataclass(frozen=True)
class DeepSHAP:
    """Mean over background rows b of DeepLIFT's values for x against b: signed, in units of the output; they add up to f(x) - mean f(b).

    All pairs of samples and rows share full batches. A pair costs three model evaluations; the background is drawn down, the same for every seed, to as many
    rows as the budget allows. The standard error is that of a mean over as many rows, drawn from where the background was. Without a background
    the one baseline stands for it: the values are then those of deep_lift.

    Attributes
    ----------
    baseline : the input that stands for "nothing there", instead of a background (one, or one per sample)
    output : what is explained: "logit" or "probability"
    engine : as in deep_lift

    References
    ----------
    Lundberg and Lee (2017). A unified approach to interpreting model predictions. arXiv:1705.07874 (section 4.2)
    Shrikumar et al. (2017). Learning important features through propagating activation differences. arXiv:1704.02685
    """

    baseline: torch.Tensor | None = None
    output: Quantity = "logit"
    engine: Engine = "operations"

    name: ClassVar[str] = "deep_shap"
    signed: ClassVar[bool] = True
    stochastic: ClassVar[bool] = False
    complete: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = True
    needs_space: ClassVar[bool] = False

    def __call__(self, model: Model, inputs: Inputs, targets: Targets, run: Run) -> Attribution:
        most = run.most() // _COST
        if most < 1:
            raise ConfigError(f"deep_shap needs a budget of at least {_COST} model evaluations, not {run.most()}")
        note, n = None, len(inputs)
        shared = self.baseline is None and inputs.background is not None
        reference = Reference(
            "fixed", baseline_of(inputs, self.baseline), "given baseline" if self.baseline is not None else "kind of data"
        )
        if self.baseline is None and inputs.background is not None:
            drawn = Reference("drawn", inputs.background.detach().cpu(), "rows of the background")
            reference, note = drawn_background(drawn, most=most, seed=0, method=self.name)
        rows = reference.rows
        if rows is None or not len(rows):
            raise ConfigError("the background holds no rows")
        count = len(rows) if shared else 1
        changes = np.zeros((n, count))
        with evaluating(model, batch_size=run.batch_size) as evaluator:
            site = Site(evaluator)
            rule = engine_of(self.engine, site, model, self.output)
            x, start = inputs.tensor.detach().to(evaluator.device), rows.to(evaluator.device)

            def contributions(samples: IntArray, which: IntArray) -> tuple[torch.Tensor, FloatArray | None]:
                own = torch.as_tensor(samples, device=x.device)
                against = start[torch.as_tensor(which if shared else samples, device=x.device)]
                values, change, _ = rule(evaluator.prepare(x[own]), evaluator.prepare(against), targets[samples])
                changes[samples, which] = change
                return site.maps(values, inputs).flatten(1), None

            found = means_over_draws(evaluator, inputs, contributions, draws=count, block=1, first=count, convergence=None)
            spent, notes = evaluator.evaluations, sorted(evaluator.notes)
        elements, players = from_elements(found.maps.reshape(inputs.players.assignment.shape), inputs.players)
        elements = without_nonfinite(elements)
        return Attribution(
            values=elements, player_values=players, targets=targets.index, against=targets.against, method=self.name, inputs=inputs, signed=True, seed=run.seed,
            budget=round(spent / max(n, 1)), completeness=np.array([p.sum() for p in players]) - changes.mean(axis=1), blank=blank_maps(elements),
            standard_error=found.errors if shared else None,
            params={"rule": "rescale", "engine": self.engine, "reference": reference.name, "rows": count, "output": self.output},
            caveats=(*notes, *(() if note is None else (note,)), *rule.caveats()),
        )  # fmt: skip
