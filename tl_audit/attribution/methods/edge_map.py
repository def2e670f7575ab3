"""The edges of the input: a negative control, which looks like an explanation and knows nothing of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tl_audit.attribution.base import Attribution, Inputs, Run, Targets
from tl_audit.attribution.maps import blank_maps, from_elements
from tl_audit.errors import ModelError
from tl_audit.models.model import Model


@dataclass(frozen=True)
class EdgeMap:
    """Edge strength of the input, whatever the model and the class. Asked for by name, to see that the quality checks find it out.

    Values are 0 or more, in units of the input. Parameter randomisation (TLA703) must fail it; costs no model evaluation.

    References
    ----------
    Adebayo et al. (2018). Sanity checks for saliency maps. arXiv:1810.03292
    """

    name: ClassVar[str] = "edge_map"
    signed: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    complete: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    needs_space: ClassVar[bool] = False

    def __call__(self, model: Model, inputs: Inputs, targets: Targets, run: Run) -> Attribution:
        edges = inputs.modality.edges(inputs.tensor)
        if edges is None:
            raise ModelError(f"edge_map needs inputs that have edges, and {inputs.modality.kind} inputs have none: use random_map")
        elements, players = from_elements(torch.as_tensor(edges), inputs.players)
        return Attribution(
            values=elements, player_values=players, targets=targets.index, against=targets.against, method=self.name, inputs=inputs,
            signed=False, seed=run.seed, blank=blank_maps(elements), caveats=("a negative control: it does not ask the model",),
        )  # fmt: skip
