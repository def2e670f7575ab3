"""Attribution: how much each input part counted for one output.

``door`` is where users come in; ``methods`` holds one file per explainer; ``evaluation`` runs a borrowed model; ``reference`` says what stands
for removed parts and ``game`` asks the model about them, once; ``quality`` and ``randomise`` ask whether maps may be believed.
"""

from tl_audit.attribution.base import DEFAULT_BUDGET, Attribution, Explainer, Inputs, Run, Targets
from tl_audit.attribution.cam import CamPass, LayerMaps, cam_pass, layer_maps
from tl_audit.attribution.door import (
    batch_size_for,
    explain,
    explain_all,
    explain_inputs,
    explainer,
    ready,
    resolve_targets,
    run_explainer,
    run_explainers,
)
from tl_audit.attribution.game import Memo
from tl_audit.attribution.methods import EXPLAINERS, METHODS

__all__ = [
    "DEFAULT_BUDGET",
    "EXPLAINERS",
    "METHODS",
    "Attribution",
    "CamPass",
    "Explainer",
    "Inputs",
    "LayerMaps",
    "Memo",
    "Run",
    "Targets",
    "batch_size_for",
    "cam_pass",
    "explain",
    "explain_all",
    "explain_inputs",
    "explainer",
    "layer_maps",
    "ready",
    "resolve_targets",
    "run_explainer",
    "run_explainers",
]
