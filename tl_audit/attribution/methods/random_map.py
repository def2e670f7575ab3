"""Noise: a negative control, which no quality check may pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tl_audit.attribution.base import Attribution, Inputs, Run, Targets
from tl_audit.attribution.maps import blank_maps, from_players
from tl_audit.measures.sampling import generator
from tl_audit.models.model import Model


@dataclass(frozen=True)
class RandomMap:
    """A normal draw per input part, of (seed, method, id), whatever the model and the class. Asked for by name, to see that the quality checks find it out.

    Values are signed and have no unit. Faithfulness (TLA702) must not pass it, and seed stability (TLA704) must fail it; costs no model evaluation.
    """

    name: ClassVar[str] = "random_map"
    signed: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True
    complete: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    needs_space: ClassVar[bool] = False

    def __call__(self, model: Model, inputs: Inputs, targets: Targets, run: Run) -> Attribution:
        drawn = [
            generator(run.seed, self.name, sample).standard_normal(int(count))
            for sample, count in zip(inputs.ids, inputs.players.count, strict=True)
        ]
        elements, players = from_players(drawn, inputs.players)
        return Attribution(
            values=elements, player_values=players, targets=targets.index, against=targets.against, method=self.name, inputs=inputs,
            signed=True, seed=run.seed, standard_error=tuple(np.ones(len(d)) for d in drawn), blank=blank_maps(elements),
            caveats=("a negative control: it does not ask the model",),
        )  # fmt: skip
