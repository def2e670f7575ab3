"""Fine-tuning: a Plan in stages, controls beside it, a run directory and an adaptation record behind it."""

from tl_audit.finetune.adapting import Adaptation, adapt
from tl_audit.finetune.load import LoadedRun, load_run
from tl_audit.finetune.plan import Augment, Classification, DataPlan, GroupColumn, Plan, Provenance, Regression, Stage, Training

__all__ = [
    "Adaptation",
    "Augment",
    "Classification",
    "DataPlan",
    "GroupColumn",
    "LoadedRun",
    "Plan",
    "Provenance",
    "Regression",
    "Stage",
    "Training",
    "adapt",
    "load_run",
]
