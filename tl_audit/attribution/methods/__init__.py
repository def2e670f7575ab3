"""The explainers: one frozen dataclass in one file each, and one entry here. Its fields are its settings."""

from __future__ import annotations

from tl_audit.attribution.base import Explainer
from tl_audit.attribution.methods.ablation_cam import AblationCAM
from tl_audit.attribution.methods.deep_lift import DeepLift
from tl_audit.attribution.methods.deep_shap import DeepSHAP
from tl_audit.attribution.methods.edge_map import EdgeMap
from tl_audit.attribution.methods.eigen_cam import EigenCAM
from tl_audit.attribution.methods.exact_shap import ExactSHAP
from tl_audit.attribution.methods.feature_ablation import FeatureAblation
from tl_audit.attribution.methods.grad_cam import GradCAM
from tl_audit.attribution.methods.grad_cam_pp import GradCAMPlusPlus
from tl_audit.attribution.methods.gradient_shap import GradientSHAP
from tl_audit.attribution.methods.guided_backprop import GuidedBackprop
from tl_audit.attribution.methods.guided_grad_cam import GuidedGradCAM
from tl_audit.attribution.methods.hires_cam import HiResCAM
from tl_audit.attribution.methods.input_x_gradient import InputXGradient
from tl_audit.attribution.methods.integrated_gradients import IntegratedGradients
from tl_audit.attribution.methods.kernel_shap import KernelSHAP
from tl_audit.attribution.methods.layer_cam import LayerCAM
from tl_audit.attribution.methods.lime import LIME
from tl_audit.attribution.methods.occlusion import Occlusion
from tl_audit.attribution.methods.partition_shap import PartitionSHAP
from tl_audit.attribution.methods.permutation_shap import PermutationSHAP
from tl_audit.attribution.methods.random_map import RandomMap
from tl_audit.attribution.methods.rise import RISE
from tl_audit.attribution.methods.saliency import Saliency
from tl_audit.attribution.methods.sampling_shap import SamplingSHAP
from tl_audit.attribution.methods.score_cam import ScoreCAM
from tl_audit.attribution.methods.smooth_grad import SmoothGrad
from tl_audit.attribution.methods.xgrad_cam import XGradCAM

EXPLAINERS: tuple[Explainer, ...] = (
    GradCAM(),
    GradCAMPlusPlus(),
    HiResCAM(),
    XGradCAM(),
    LayerCAM(),
    EigenCAM(),
    ScoreCAM(),
    AblationCAM(),
    IntegratedGradients(),
    Saliency(),
    InputXGradient(),
    SmoothGrad(),
    GradientSHAP(),
    DeepLift(),
    DeepSHAP(),
    GuidedBackprop(),
    GuidedGradCAM(),
    KernelSHAP(),
    PermutationSHAP(),
    PartitionSHAP(),
    SamplingSHAP(),
    ExactSHAP(),
    LIME(),
    FeatureAblation(),
    Occlusion(),
    RISE(),
    EdgeMap(),
    RandomMap(),
)
"""What there is. A new explainer is one file and one entry here."""

METHODS: tuple[str, ...] = tuple(e.name for e in EXPLAINERS)

NEGATIVE_CONTROLS: tuple[str, ...] = ("edge_map", "random_map")
"""Explainers that do not ask the model: what they show must be found out by the quality checks."""
