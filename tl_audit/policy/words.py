"""Numbers and names in the plain words of reasons: rounding as REPORT.md (c) asks, n and units spelt out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tl_audit.records.base import Pair
from tl_audit.records.metrics import Metric

if TYPE_CHECKING:
    from tl_audit.policy.limits import Bound

MOST_DECIMALS = 4

NAMES: dict[str, str] = {
    "c2st_auc": "AUC of telling source from target",
    "mmd2": "MMD²",
    "ks": "largest gap between distributions (KS)",
    "tvd": "share that would have to move",
    "psi": "population stability index",
    "label_tvd": "share of labels that would have to move",
    "c2st_auc_class": "AUC of telling source from target",
    "mmd2_class": "MMD²",
    "concept_gain": "log-loss saved by reading the inputs otherwise in the target",
    "overlap_share": "share of samples that could come from either domain",
    "c2st_auc_slice": "AUC of telling source from target",
    "mmd2_slice": "MMD²",
    "accuracy_slice": "accuracy",
    "trend_accuracy": "slope of the accuracy",
    "output_ks": "largest gap between distributions of the predicted probability (KS)",
    "bn_shift_excess": "distance of activations from the stored statistics beyond the source's",
    "effective_rank_ratio": "effective rank of the features, adapted over base",
    "backward_transfer": "change of accuracy on the source",
    "backward_transfer_class": "change of accuracy on the source",
    "negative_flip_rate": "share of right answers that became wrong",
    "ece_debiased": "debiased calibration error",
    "nll_skill": "log-loss skill",
    "nll": "log-loss",
    "tpr_gap": "true positive rate gap",
    "fpr_gap": "false positive rate gap",
    "gap_introduced": "accuracy gap introduced by the adaptation",
    "gap_inherited": "accuracy gap inherited from the base",
    "introduced_shortfall": "shortfall of accuracy that the adaptation introduced",
    "inherited_shortfall": "shortfall of accuracy inherited from the base",
    "negative_flip_rate_gap": "gap in right answers lost",
    "impact_ratio": "ratio of selection rates to the most-selected category",
    "merge_factor_error": "distance of the merge factor from 1 (merged once)",
    "adapter_modules_missing": "adapters for modules that the model lacks",
    "adapter_saved_mismatch": "modules that differ from those stored with the adapters",
    "adapter_off_max_logit_diff": "largest difference of outputs from the base once the adapters are out",
    "adapter_zero_modules": "adapters that are all zeros",
    "mapping_age_days": "age of the clause map",
    "overconfidence_gap": "gap in confidence beyond accuracy",
    "slice_error_excess": "error beyond that of the rest",
    "slice_error_difference": "error beyond that of the rest",
    "slice_unannounced_error": "error beyond that of the rest and beyond what the confidence announces",
    "majority_gain": "gain over naming the commonest class",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "r2": "share of the target's spread explained (r²)",
    "gain_over_mean": "gain in mean absolute error over always saying the training mean",
    "gain_over_mean_scaled": "gain in mean absolute error over always saying the training mean, in SD of the training target",
    "mae_change": "change of mean absolute error",
    "mae_change_scaled": "change of mean absolute error, in SD of the training target",
    "mae_gain_over_scratch": "gain in mean absolute error over training from scratch",
    "mae_gain_over_scratch_scaled": "gain in mean absolute error over training from scratch, in SD of the training target",
    "mae_gain_over_head": "gain in mean absolute error over a new head alone",
    "mae_gain_over_head_scaled": "gain in mean absolute error over a new head alone, in SD of the training target",
    "mae_gain_over_base": "gain in mean absolute error over the base",
    "mae_gain_over_base_scaled": "gain in mean absolute error over the base, in SD of the training target",
    "generalisation_error_gap": "mean absolute error on the target beyond that on the training data",
    "generalisation_error_gap_scaled": "mean absolute error on the target beyond that on the training data, in SD of the training target",
    "prediction_gap": "mean predicted number on the target minus that on the source",
    "prediction_gap_scaled": "mean predicted number on the target minus that on the source, in SD of the training target",
    "error_rise": "mean absolute error on the target beyond that on the source",
    "error_rise_scaled": "mean absolute error on the target beyond that on the source, in SD of the training target",
    "error_gap": "gap in mean absolute error",
    "error_gap_scaled": "gap in mean absolute error, in SD of the training target",
    "leaked_exact": "samples that were also trained on",
    "leaked_near": "samples that are almost training samples",
    "suspect_excess": "labels that look wrong beyond those that chance gives",
    "uncovered_share": "share of the target beyond the source",
    "clusters_shared": "clusters on both sides of the split",
    "class_name_mismatch": "class names that disagree",
    "class_names_missing": "sides that name no classes",
    "permutation_gain": "gain in accuracy by renaming the outputs",
    "preprocessing_differences": "settings of the input preparation that differ",
    "rerun_flip_rate": "share of answers that change from run to run",
    "preprocessing_flip_rate": "share of answers that the input preparation changes",
    "base_sha256_match": "match of the base with its recorded hash",
    "adapted_sha256_match": "match of the adapted model with its recorded hash",
    "trigger_over_placebo": "flips by the cue beyond those by a placebo",
    "trigger_excess": "flips by the cue beyond those of the control",
    "completeness_residual": "part of the explained change that a map misses",
    "completeness_bad_share": "share of maps that do not add up",
    "faithfulness_gain": "faithfulness beyond a random map",
    "randomised_similarity": "similarity to the map of a scrambled model",
    "randomisation_effect": "change of the map when the weights are scrambled",
    "seed_rank_correlation": "likeness of maps from two seeds",
    "best_pair_rank_correlation": "likeness of the two methods that agree best",
    "layer_rank_correlation": "likeness to the map of a layer beside",
    "layer_mass_spread": "range over layers of the map's share inside the region",
    "drift_of_two_methods": "drift of maps beyond their noise floor, in two methods",
    "top_drift_of_two_methods": "drift of the strongest tenth of maps beyond its noise floor, in two methods",
    "mass_inside_change": "change of the share of the map inside the region",
    "explanation_c2st_auc": "AUC of telling source from target by their maps",
    "faithfulness_gap": "difference in faithfulness between the group and the rest",
    "mass_inside": "share of the map inside the region",
    "mass_excess": "map inside the region beyond its area",
    "centre_excess": "map inside the region beyond a centred blob",
    "pointing_accuracy": "largest value of the map inside the region",
    "cue_mass_excess": "map on the cue beyond its area",
    "cue_mass_over_placebo": "map on the cue beyond a placebo",
    "gate_passed": "passed its quality checks",
    "methods_usable": "methods that passed their quality checks",
    "unreadable": "unreadable samples",
    "nonfinite_inputs": "samples with undefined inputs",
    "nonfinite_outputs": "samples with undefined outputs",
    "nonfinite_tensors": "tensors with undefined values",
    "declared_missing": "declared facts that are missing",
    "reviews_open": "questions that nobody has answered",
    "reviews_outdated": "answers to numbers that have changed since",
    "policy_predates_evidence": "policy set before the first results",
    "policy_changes_after_first_run": "changes of the policy after the first results",
    "waivers_expired": "waivers that have expired",
    "attack_auc": "AUC of telling training samples from others",
    "tpr_at_fpr_1pct": "training samples named at one false alarm in a hundred",
    "mean_corruption_drop": "accuracy lost to everyday disturbances",
    "augmented_accuracy_drop": "accuracy lost to a transform of the training",
    "single_group": "attributes with one group only",
    "undefined_cells": "rates without a denominator",
}
"""Metrics whose name does not read as words."""


def amount(value: float | None, decimals: int | None = None) -> str:
    """``0.031``, ``12``, ``-0.4``; with ``decimals`` exactly that many."""
    if value is None:
        return "not defined"
    if decimals is not None:
        text = f"{value:.{decimals}f}"
        return text.removeprefix("-") if float(text) == 0 else text
    if float(value).is_integer() and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.4g}"


def decimals_for(value: float, interval: Pair | None, limit: float | None = None) -> int:
    """Decimals up to the first significant digit of the half-width, at most 4; one more if rounding would cross the limit."""
    if interval is None:
        return 0 if float(value).is_integer() else 3
    half = (interval[1] - interval[0]) / 2
    digits = MOST_DECIMALS if half <= 0 else min(MOST_DECIMALS, max(0, -math.floor(math.log10(half))))
    if limit is not None and any(_crosses(x, digits, limit) for x in (value, *interval)):
        digits += 1
    return digits


def _crosses(value: float, digits: int, limit: float) -> bool:
    rounded = round(value, digits)
    return (value > limit) != (rounded > limit) or (value < limit) != (rounded < limit)


def measured(metric: Metric, interval: Pair | None, confidence: float | None, *, limit: Bound | None = None) -> str:
    """``0.72 (95 % CI 0.63 to 0.80; n = 118)``"""
    value = metric.value
    if value is None:
        return f"not defined ({metric.reason})"
    at = None if limit is None else math.copysign(limit.value, value) if limit.kind == "abs" else limit.value
    digits = decimals_for(value, interval, at)
    parts = []
    if interval is not None:
        level = f"{100 * (confidence or 0.95):.4g}"
        parts.append(f"{level} % CI {amount(interval[0], digits)} to {amount(interval[1], digits)}")
    if metric.n:
        parts.append("n = " + " and ".join(str(n) for n in metric.n.values()))
    if metric.clusters:
        parts.append(f"{min(metric.clusters.values())} clusters")
    unit = f" {metric.unit}" if metric.unit else ""
    return f"{amount(value, digits)}{unit}" + (f" ({'; '.join(parts)})" if parts else "")


def metric_words(name: str) -> str:
    """``accuracy_gap`` -> ``accuracy gap``, ``psi`` -> ``population stability index``"""
    return NAMES.get(name, name.replace("_", " "))


def slice_words(slice: Mapping[str, str]) -> str:
    """`` for sex = female, site = north``; empty without a slice."""
    return "" if not slice else " for " + ", ".join(v if k == "of" else f"{k} = {v}" for k, v in sorted(slice.items()))


def units(metric: Metric) -> str:
    return "clusters" if metric.clusters else "samples"


def listed(names: Sequence[str], *, most: int) -> str:
    """``a, b, c and 4 more``"""
    shown = list(names[:most])
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")
