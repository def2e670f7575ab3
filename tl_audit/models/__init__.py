"""Models: from a name and a file to a network whose inputs, outputs, head and layers are known, and that is given back untouched."""

from tl_audit.models.borrow import borrowed
from tl_audit.models.build import as_model, build, load_model, native_classes, swap_head
from tl_audit.models.builtin import SmallCNN, TableMLP, mlp, small_cnn
from tl_audit.models.difference import WeightDifference, compare_frozen, frozen_buffers, weight_differences
from tl_audit.models.fingerprint import file_sha256, nonfinite, tensor_hash, tensors_of
from tl_audit.models.heads import (
    Split,
    find_head,
    forward_with_features,
    head_of,
    layer_groups,
    layer_groups_by_name,
    penultimate,
    pool,
    split,
)
from tl_audit.models.model import Model, WeightsFile
from tl_audit.models.outputs import output_notes, outputs
from tl_audit.models.weights import load_into, load_weights, save_weights, sniff

__all__ = [
    "Model",
    "SmallCNN",
    "Split",
    "TableMLP",
    "WeightDifference",
    "WeightsFile",
    "as_model",
    "borrowed",
    "build",
    "compare_frozen",
    "file_sha256",
    "find_head",
    "forward_with_features",
    "frozen_buffers",
    "head_of",
    "layer_groups",
    "layer_groups_by_name",
    "load_into",
    "load_model",
    "load_weights",
    "mlp",
    "native_classes",
    "nonfinite",
    "output_notes",
    "outputs",
    "penultimate",
    "pool",
    "save_weights",
    "small_cnn",
    "sniff",
    "split",
    "swap_head",
    "tensor_hash",
    "tensors_of",
    "weight_differences",
]
