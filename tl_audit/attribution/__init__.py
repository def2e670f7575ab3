"""Attribution: how much each input part counted for one output. One frozen dataclass per explainer, one door: ``explain``."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tl_audit.attribution.base import Attribution, Explainer, Inputs
from tl_audit.attribution.evaluation import Quantity, evaluating
from tl_audit.attribution.grad_cam import GradCAM
from tl_audit.attribution.integrated_gradients import IntegratedGradients
from tl_audit.attribution.kernel_shap import KernelSHAP
from tl_audit.attribution.lime import LIME
from tl_audit.errors import ConfigError, DataError, ModelError
from tl_audit.modality.base import Modality, Players, RawBatch
from tl_audit.models.model import Model
from tl_audit.records.preprocessing import InputSpec, Preprocessing, TableEncoding

__all__ = [
    "DEFAULT_BUDGET",
    "EXPLAINERS",
    "LIME",
    "METHODS",
    "Attribution",
    "Explainer",
    "GradCAM",
    "Inputs",
    "IntegratedGradients",
    "KernelSHAP",
    "explain",
    "explain_inputs",
    "explainer",
]

EXPLAINERS: tuple[Explainer, ...] = (GradCAM(), IntegratedGradients(), KernelSHAP(), LIME())
"""What there is. A new explainer is one file and one entry here."""

METHODS: tuple[str, ...] = tuple(e.name for e in EXPLAINERS)

DEFAULT_BUDGET = 256
"""Model evaluations per sample. A backward pass counts as one more."""

_BATCH_FLOATS = 5_000_000

Targets = str | int | Sequence[str] | Sequence[int] | NDArray[Any] | None


def explain(
    model: nn.Module | Model,
    inputs: Any,  # Any: tensors, arrays, pictures, tables; see below
    *,
    method: str = "grad_cam",
    target: Targets = None,
    of: Quantity | None = None,
    layer: str | None = None,
    seed: int = 0,
    budget: int | None = None,
    baseline: torch.Tensor | None = None,
    background: Any = None,  # Any: as inputs
    steps: int | None = None,
    batch_size: int | None = None,
    players: Players | None = None,
    preprocessing: InputSpec | None = None,
) -> Attribution:
    """How much each part of these inputs counted for one output of the model. The model is given back untouched.

    Parameters
    ----------
    inputs : float tensor (N, ...) or (...) of model inputs; uint8 array (N, H, W, 3) or (H, W, 3), PIL picture or list of pictures; DataFrame.
        All but tensors go through the model's preprocessing
    method : one of METHODS
    target : class name or index, or one per sample; None: the predicted class
    of : what is explained, "logit" or "probability"; None: the method's own (the probability for lime, else the logit)
    layer : module path, for CAM methods; None: found, with the reason in the result
    seed : of stochastic methods; each sample draws from (seed, method, sample id) alone
    budget : model evaluations per sample, 256 by default
    baseline : the model input that stands for "nothing there" (one, or one per sample)
    background : inputs whose rows fill in for missing columns (kernel_shap, lime on tables)
    steps : of integrated_gradients
    players : the input parts; None: superpixels (at most 49), columns
    preprocessing : instead of the model's own

    Raises
    ------
    ConfigError : an unknown method, or a setting that the method does not have
    ModelError : no such class, layer, gradient or map of places
    DataError : inputs that cannot be read
    """
    from tl_audit.models import as_model

    wrapped = as_model(model, name="model")
    spec = preprocessing if preprocessing is not None else wrapped.preprocessing
    tensor, modality, ids = _encoded(inputs, spec)
    if len(tensor) == 0:
        raise DataError("nothing to explain: the inputs hold no sample")
    rows = None if background is None else _encoded(background, spec)[0]
    made = Inputs(
        tensor=tensor,
        ids=ids,
        modality=modality,
        spec=spec,
        players=players if players is not None else modality.players(tensor, spec, seed=seed),
        background=rows,
    )
    size = batch_size if batch_size is not None else batch_size_for(tensor)
    targets = resolve_targets(wrapped, made, target, batch_size=size)
    return explain_inputs(
        wrapped,
        made,
        method=method,
        targets=targets,
        seed=seed,
        budget=budget,
        batch_size=size,
        of=of,
        layer=layer,
        baseline=baseline,
        steps=steps,
    )


def explain_inputs(
    model: Model,
    inputs: Inputs,
    *,
    method: str,
    targets: NDArray[np.int64],
    seed: int = 0,
    budget: int | None = None,
    batch_size: int | None = None,
    of: Quantity | None = None,
    layer: str | None = None,
    baseline: torch.Tensor | None = None,
    steps: int | None = None,
) -> Attribution:
    """Attributions of ready inputs for known output indices; the door that evidence and checks use."""
    if budget is not None and budget < 1:
        raise ConfigError(f"budget is {budget}: expected a number of model evaluations per sample (default {DEFAULT_BUDGET})")
    if len(targets) != len(inputs.tensor):
        raise DataError(f"{len(targets)} targets for {len(inputs.tensor)} inputs")
    if of is not None and of not in get_args(Quantity):
        raise ConfigError(f"of is {of!r}: expected one of {', '.join(get_args(Quantity))}")
    chosen = explainer(method, output=of, layer=layer, baseline=baseline, steps=steps)
    result = chosen(
        model,
        inputs,
        np.asarray(targets, dtype=np.int64),
        seed=seed,
        budget=DEFAULT_BUDGET if budget is None else budget,
        batch_size=batch_size if batch_size is not None else batch_size_for(inputs.tensor),
    )
    names = None if model.classes is None else tuple(model.classes[t] if 0 <= t < len(model.classes) else str(t) for t in result.targets)
    return dataclasses.replace(result, target_names=names)


def explainer(method: str, **settings: Any) -> Explainer:
    """The explainer of this name with these settings; a setting that is None is left as it is.

    Raises
    ------
    ConfigError : an unknown method (with near names), a setting that the method does not have
    """
    found = {e.name: e for e in EXPLAINERS}
    if method not in found:
        near = difflib.get_close_matches(str(method).replace("-", "_").lower(), METHODS, n=1, cutoff=0.5)
        raise ConfigError(
            f"unknown attribution method {method!r}{f' (did you mean {near[0]!r}?)' if near else ''}; there are: {', '.join(METHODS)}"
        )
    given: Mapping[str, Any] = {k: v for k, v in settings.items() if v is not None}
    base: Any = found[method]  # Any: explainers are frozen dataclasses of different fields
    known = {f.name for f in dataclasses.fields(base)}
    for name in given:
        if name not in known:
            takes = ", ".join(sorted(known)) or "no settings of its own"
            raise ConfigError(f"{method} has no setting {name!r}; it takes {takes}")
    chosen: Explainer = dataclasses.replace(base, **given)
    return chosen


def batch_size_for(tensor: torch.Tensor) -> int:
    """Rows per batch that keep an input batch near 20 MB: 512 at most, 8 at least."""
    one = max(1, tensor[:1].numel())
    return int(min(512, max(8, _BATCH_FLOATS // one)))


def resolve_targets(model: Model, inputs: Inputs, target: Targets, *, batch_size: int) -> NDArray[np.int64]:
    """(N,) output indices from class names, checked indices, or None for the predicted class. One forward pass.

    Raises
    ------
    ModelError : a name the model does not have, an index outside [0, C), non-finite outputs where the prediction is asked for
    """
    n = len(inputs.tensor)
    with evaluating(model, batch_size=batch_size) as evaluator:
        if target is None:
            logits = evaluator.all_scores(inputs.tensor)
            if not np.isfinite(logits).all():
                raise ModelError(
                    "the model's outputs are not finite for some inputs: there is no predicted class to explain; name one with target=..."
                )
            return np.asarray(logits.argmax(axis=1), dtype=np.int64)
        width = evaluator.all_scores(inputs.tensor[:1]).shape[1]
    wanted: list[Any] = [target] * n if isinstance(target, str | int | np.integer) else list(target)
    if len(wanted) != n:
        raise DataError(f"{len(wanted)} targets for {n} inputs: give one, or one per input")
    return np.array([_index(model, t, width) for t in wanted], dtype=np.int64)


def _index(model: Model, target: Any, width: int) -> int:
    if isinstance(target, str):
        if model.classes is None:
            raise ModelError(
                f"target {target!r} is a class name, and the model has no class names: give Model(module, classes=[...]) or an index below {width}"
            )
        if target not in model.classes:
            shown = ", ".join(model.classes[:10]) + (", ..." if len(model.classes) > 10 else "")
            raise ModelError(f"the model has no class {target!r}; its classes are: {shown}")
        return model.classes.index(target)
    if isinstance(target, bool) or not isinstance(target, int | np.integer):
        raise ModelError(f"target {target!r} is neither a class name nor an output index")
    if not 0 <= int(target) < width:
        raise ModelError(f"target {int(target)} is out of range: the model has outputs 0 to {width - 1}")
    return int(target)


def _encoded(inputs: Any, spec: InputSpec | None) -> tuple[torch.Tensor, Modality, tuple[str, ...]]:
    """Model inputs, their kind of data, and sample ids (row numbers) of whatever a caller gave."""
    from tl_audit.modality import IMAGE, TABULAR, TENSOR

    if isinstance(inputs, torch.Tensor) and inputs.dtype != torch.uint8:
        tensor = inputs.detach()
        columns = isinstance(spec, TableEncoding) or (not isinstance(spec, Preprocessing) and tensor.ndim <= 2)
        if tensor.ndim == (1 if columns else 3):
            tensor = tensor.unsqueeze(0)
        if tensor.ndim != (2 if columns else 4):
            raise DataError(
                f"inputs have shape {tuple(inputs.shape)}: expected {'(N, columns)' if columns else '(N, channels, height, width)'} of model inputs"
            )
        if not tensor.is_floating_point():
            raise DataError(f"inputs are {tensor.dtype}: expected floating-point model inputs, or uint8 pictures (N, H, W, 3)")
        kind: Modality = TENSOR if spec is None else TABULAR if columns else IMAGE
        return tensor, kind, _ids(len(tensor))
    if hasattr(inputs, "iloc") and hasattr(inputs, "to_dict"):
        return _from_frame(inputs, spec)
    pictures = _pictures(inputs)
    if spec is not None and not isinstance(spec, Preprocessing):
        raise DataError("these inputs are pictures, and the model's preprocessing is that of a table")
    if spec is None:
        raise DataError(
            "pictures need a preprocessing: give explain(..., preprocessing=...), Model(..., preprocessing=...), or a float tensor (N, C, H, W)"
        )
    batch = RawBatch(rows=np.arange(len(pictures)), items=pictures, errors=[None] * len(pictures), facts=[{}] * len(pictures))
    return IMAGE.encode(batch, spec), IMAGE, _ids(len(pictures))


def _from_frame(frame: Any, spec: InputSpec | None) -> tuple[torch.Tensor, Modality, tuple[str, ...]]:  # Any: a pandas DataFrame
    import pandas as pd

    from tl_audit.modality import TABULAR

    if isinstance(spec, TableEncoding):
        missing = [c for c in spec.columns if c not in frame.columns]
        if len(missing) == len(spec.columns):
            raise DataError(f"the table has none of the columns that the model reads: {', '.join(spec.columns[:10])}")
        frame = frame[[c for c in spec.columns if c in frame.columns]]
    records = [{str(k): (None if pd.isna(v) else v) for k, v in row.items()} for row in frame.to_dict("records")]
    batch = RawBatch(rows=np.arange(len(records)), items=records, errors=[None] * len(records), facts=[{}] * len(records))
    return TABULAR.encode(batch, spec), TABULAR, _ids(len(records))


def _pictures(inputs: Any) -> list[NDArray[np.uint8]]:
    """Raw pictures (H, W, 3) uint8 of arrays, uint8 tensors, PIL pictures, or lists of these."""
    if isinstance(inputs, torch.Tensor):
        inputs = inputs.cpu().numpy()
    if isinstance(inputs, np.ndarray) and inputs.dtype != object:
        if inputs.dtype != np.uint8:
            raise DataError(f"the array is {inputs.dtype}: pictures are uint8 (N, H, W, 3); model inputs are torch tensors")
        listed: list[Any] = list(inputs) if inputs.ndim == 4 else [inputs]
    elif isinstance(inputs, list | tuple):
        listed = list(inputs)
    else:
        listed = [inputs]
    out = []
    for one in listed:
        if hasattr(one, "convert"):  # a PIL picture
            one = np.asarray(one.convert("RGB"))
        one = one.cpu().numpy() if isinstance(one, torch.Tensor) else np.asarray(one)
        if one.ndim == 2:
            one = np.repeat(one[:, :, None], 3, axis=2)
        if one.dtype != np.uint8 or one.ndim != 3 or one.shape[2] not in (1, 3):
            raise DataError(
                f"a picture is {one.dtype} of shape {one.shape}: expected uint8 (H, W, 3), a PIL picture, or a float tensor of model inputs"
            )
        out.append(np.repeat(one, 3, axis=2) if one.shape[2] == 1 else one)
    return out


def _ids(n: int) -> tuple[str, ...]:
    return tuple(str(i) for i in range(n))
