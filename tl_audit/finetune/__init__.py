"""Fine-tuning: a Plan in stages, controls beside it, a run directory and an adaptation record behind it."""

from tl_audit.finetune.adapting import Adaptation, adapt
from tl_audit.finetune.curve import CurvePoint, LearningCurve, learning_curve
from tl_audit.finetune.load import LoadedRun, load_run
from tl_audit.finetune.plan import (
    Alignment,
    Augment,
    Classification,
    DataPlan,
    GroupColumn,
    Importance,
    Plan,
    Provenance,
    Regression,
    Stage,
    Teacher,
    Training,
)

__all__ = [
    "Adaptation",
    "Alignment",
    "Augment",
    "Classification",
    "CurvePoint",
    "DataPlan",
    "GroupColumn",
    "Importance",
    "LearningCurve",
    "LoadedRun",
    "Plan",
    "Provenance",
    "Regression",
    "Stage",
    "Teacher",
    "Training",
    "adapt",
    "learning_curve",
    "load_run",
]
