"""TLA7xx: where does the model look, and may its maps be believed? One file per check; ``shared`` and ``gallery`` serve them all."""

from __future__ import annotations

from tl_audit.checks.base import Check
from tl_audit.checks.explanations.agreement import agreement
from tl_audit.checks.explanations.completeness import completeness
from tl_audit.checks.explanations.drift import attribution_drift, explanation_shift
from tl_audit.checks.explanations.faithfulness import faithfulness
from tl_audit.checks.explanations.gate import explanation_gate
from tl_audit.checks.explanations.groups import quality_by_group
from tl_audit.checks.explanations.layers import layer_sensitivity
from tl_audit.checks.explanations.localisation import localisation
from tl_audit.checks.explanations.randomisation import parameter_randomisation
from tl_audit.checks.explanations.stability import seed_stability

EXPLANATIONS: tuple[Check, ...] = (
    completeness,
    faithfulness,
    parameter_randomisation,
    seed_stability,
    agreement,
    layer_sensitivity,
    localisation,
    attribution_drift,
    explanation_shift,
    quality_by_group,
    explanation_gate,
)
