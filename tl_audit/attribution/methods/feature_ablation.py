"""Feature ablation: each input part removed alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.attribution.ablation import drops
from tl_audit.attribution.base import Attribution, Inputs, Run, Targets
from tl_audit.attribution.evaluation import Quantity, evaluating
from tl_audit.attribution.game import Game
from tl_audit.attribution.maps import finished, from_players
from tl_audit.attribution.reference import reference_of
from tl_audit.errors import ConfigError
from tl_audit.models.model import Model


@dataclass(frozen=True)
class FeatureAblation:
    """Signed drop of the output when one part alone is removed, in units of the output (the logit, unless ``output`` says otherwise).

    One evaluation per part and one for the whole input, shared with SHAP's largest coalitions where a memo is given. Where removed
    parts are rows of a background, the drop is the mean over as many rows as the budget allows, with its standard error; 0 where all
    of them were tried. With a budget below the number of parts, neighbouring parts are removed together and share their drop.

    Attributes
    ----------
    baseline : the input that stands for "nothing there"; None: the background, or that of the kind of data
    masking : how removed parts are filled in, instead of a baseline; None: as ``baseline``
    output : what is explained: "logit" or "probability"

    References
    ----------
    Zeiler and Fergus (2014). Visualizing and understanding convolutional networks. arXiv:1311.2901
    Covert, Lundberg and Lee (2021). Explaining by removing: a unified framework for model explanation. arXiv:2011.14878
    """

    baseline: torch.Tensor | None = None
    masking: str | None = None
    output: Quantity = "logit"

    name: ClassVar[str] = "feature_ablation"
    signed: ClassVar[bool] = True
    stochastic: ClassVar[bool] = False
    complete: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    needs_space: ClassVar[bool] = False

    def __call__(self, model: Model, inputs: Inputs, targets: Targets, run: Run) -> Attribution:
        return ablate_parts(self.name, model, inputs, targets, run, baseline=self.baseline, masking=self.masking, output=self.output)


def ablate_parts(
    method: str,
    model: Model,
    inputs: Inputs,
    targets: Targets,
    run: Run,
    *,
    baseline: torch.Tensor | None,
    masking: str | None,
    output: Quantity,
) -> Attribution:
    """Parts removed one at a time; what occlusion does too where parts lie nowhere."""
    budget = run.most()
    if budget < 2:
        raise ConfigError(f"{method} needs a budget of at least 2 model evaluations, not {budget}")
    reference = reference_of(inputs, baseline, masking)
    groups = [part_groups(int(c), budget - 1) for c in inputs.players.count]
    keep = [g[None] != np.arange(int(g.max(initial=-1)) + 1)[:, None] for g in groups]
    with evaluating(model, batch_size=run.batch_size, outputs_only=budget, sample=inputs.tensor[:8]) as evaluator:
        found = drops(Game(evaluator, inputs, targets, reference, memo=run.memo, seed=run.seed), reference, keep, budget, output)
        spent, notes = evaluator.evaluations, evaluator.notes
    # parts that go together share what they do together
    shares = [1.0 / np.bincount(g)[g] if len(g) else np.zeros(0) for g in groups]
    values = [v.mean(axis=1)[g] * s for v, g, s in zip(found.values, groups, shares, strict=True)]
    errors = tuple(found.error(v)[g] * s for v, g, s in zip(found.values, groups, shares, strict=True)) if found.drawn else None
    caveats = sorted(notes)
    grouped = sum(len(k) < len(g) for k, g in zip(keep, groups, strict=True))
    if grouped:
        caveats.append(f"{grouped} sample(s) have more parts than the budget allows: neighbouring parts were removed together; raise it")
    return finished(
        method,
        inputs,
        targets,
        run,
        from_players(values, inputs.players),
        signed=True,
        spent=spent,
        standard_error=errors,
        params={
            "reference": reference.name,
            "output": output,
            "fills": int(found.values[0].shape[1]) if found.values else 0,
            **evaluator.facts,
        },
        caveats=caveats,
    )


def part_groups(parts: int, most: int) -> NDArray[np.int64]:
    """(parts,) number of the group each part is removed with: at most ``most`` groups of parts with consecutive numbers."""
    groups = min(parts, most)
    return np.asarray(np.arange(parts) * groups // max(parts, 1), dtype=np.int64)
