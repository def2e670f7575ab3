"""``explain``: from whatever a user has to attributions. Encodes the inputs, finds the targets, runs the method."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tl_audit.attribution.base import DEFAULT_BUDGET, Attribution, Explainer, Inputs, Run, Targets
from tl_audit.attribution.evaluation import Quantity, evaluating
from tl_audit.attribution.game import Memo
from tl_audit.attribution.methods import EXPLAINERS, METHODS
from tl_audit.errors import ConfigError, DataError, ModelError
from tl_audit.modality.base import Modality, Players, RawBatch
from tl_audit.models.model import Model
from tl_audit.records.preprocessing import InputSpec, Preprocessing, TableEncoding
from tl_audit.records.values import Value

# Numbers in one input batch. On processors a batch whose activations leave the cache takes up to five times as long per row
# (MobileNetV2 at 224 px: 17 ms in batches of 8, 85 ms in batches of 32); on accelerators the larger batch is the faster one.
_BATCH_FLOATS = {"cpu": 200_000}
_BATCH_FLOATS_ELSEWHERE = 5_000_000

Wanted = str | int | Sequence[str] | Sequence[int] | NDArray[Any] | None
"""A class name or index, or one per sample; None: the predicted class."""


def explain(
    model: nn.Module | Model,
    inputs: Any,  # Any: tensors, arrays, pictures, tables; see below
    *,
    method: str | None = None,
    target: Wanted = None,
    against: Wanted = None,
    of: Quantity | None = None,
    layer: str | None = None,
    seed: int = 0,
    budget: int | None = None,
    convergence: float | None = None,
    baseline: torch.Tensor | None = None,
    background: Any = None,  # Any: as inputs
    masking: str | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    players: Players | None = None,
    segmentation: str | None = None,
    parts: int | None = None,
    preprocessing: InputSpec | None = None,
    quality: bool = False,
    **settings: Any,  # Any: further settings of the method, checked by name
) -> Attribution:
    """How much each part of these inputs counted for one output of the model. The model is given back untouched.

    Parameters
    ----------
    inputs : float tensor (N, ...) or (...) of model inputs; uint8 array (N, H, W, 3) or (H, W, 3), PIL picture or list of pictures; DataFrame.
        All but tensors go through the model's preprocessing
    method : one of METHODS; None: grad_cam for pictures, kernel_shap for named parts (columns)
    target : class name or index, or one per sample; None: the predicted class
    against : class name or index whose output is subtracted ("why this and not that?"); None: the plain output
    of : what is explained, "logit" or "probability"; None: the method's own (the probability for lime, else the logit)
    layer : module path, for CAM methods and layer versions; None: found, with the reason in the result
    seed : of stochastic methods; each sample draws from (seed, method, sample id) alone
    budget : most model evaluations per sample; None: the method's own, mostly 256. Besides it SHAP's sampling methods evaluate the rows of a
        background once for all samples, at most half as many; methods whose cost is fixed (one pass, its gradient, three for DeepLIFT: 1 to 4) pay it
    convergence : of stochastic methods: stop when the largest 95 % half-width of a sample's values is at most this share of their range
    baseline : the model input that stands for "nothing there" (one, or one per sample)
    background : inputs whose rows fill in for removed parts (SHAP and LIME on tables, masking "marginal")
    masking : how removed parts are filled in, instead of a baseline: one of the kind's ``masks`` ("blur", "mean", "noisy_linear", "marginal", ...)
    steps : of integrated_gradients
    players : the input parts; None: made by ``segmentation`` (superpixels, columns)
    segmentation : "slic" (default on images), "quickshift", "grid"
    parts : most superpixels of a picture (quickshift takes as many as it finds); None: 49
    preprocessing : instead of the model's own
    quality : True: hold the maps against random maps and permuted weights, and stamp them (``quality.assess``); costs several times the explanation
    settings : further settings of the method, by the names of its fields

    Raises
    ------
    ConfigError : an unknown method, or a setting that the method does not have
    ModelError : no such class, layer, gradient or map of places
    DataError : inputs that cannot be read
    """
    given = dict(output=of, layer=layer, baseline=baseline, masking=masking, convergence=convergence, steps=steps, **settings)
    # a mistyped name is said before anything is read
    chosen = None if method is None else explainer(method, **given)
    wrapped, made, size = ready(
        model, inputs, background=background, players=players, segmentation=segmentation, parts=parts, preprocessing=preprocessing, seed=seed,
        batch_size=batch_size,
    )  # fmt: skip
    if chosen is None:
        chosen = explainer("grad_cam" if made.players.spatial else "kernel_shap", **given)
    targets = None if target is None and against is None else resolve_targets(wrapped, made, target, against, batch_size=size)
    found = run_explainers(wrapped, made, [chosen], targets, Run(seed, _checked(budget), size))[0]
    if not quality:
        return found
    from tl_audit.attribution.quality import assess  # late: it explains through this module

    return assess(wrapped, found, seed=seed)


def explain_all(
    model: nn.Module | Model,
    inputs: Any,  # Any: as in explain
    *,
    methods: Sequence[str],
    target: Wanted = None,
    against: Wanted = None,
    seed: int = 0,
    budget: int | None = None,
    background: Any = None,  # Any: as inputs
    batch_size: int | None = None,
    players: Players | None = None,
    segmentation: str | None = None,
    parts: int | None = None,
    preprocessing: InputSpec | None = None,
    of: Quantity | None = None,
    **settings: Any,  # Any: settings of the methods, checked by name
) -> dict[str, Attribution]:
    """Several methods on the same inputs, parts and targets: method -> Attribution. What they have in common is evaluated once.

    Parameters and errors are those of ``explain``. A setting goes to the methods that have it, and at least one of them must.
    """
    given = {name: value for name, value in (settings | {"output": of}).items() if value is not None}
    has = {method: {f.name for f in dataclasses.fields(explainer(method))} for method in methods}  # type: ignore[arg-type]
    for name in given:
        if not any(name in known for known in has.values()):
            raise ConfigError(f"none of {', '.join(methods)} has a setting {name!r}")
    chosen = {method: explainer(method, **{k: v for k, v in given.items() if k in has[method]}) for method in methods}
    wrapped, made, size = ready(
        model, inputs, background=background, players=players, segmentation=segmentation, parts=parts, preprocessing=preprocessing, seed=seed,
        batch_size=batch_size,
    )  # fmt: skip
    targets = None if target is None and against is None else resolve_targets(wrapped, made, target, against, batch_size=size)
    run = Run(seed, _checked(budget), size, Memo())
    return dict(zip(chosen, run_explainers(wrapped, made, list(chosen.values()), targets, run), strict=True))


def explain_inputs(
    model: Model,
    inputs: Inputs,
    *,
    method: str,
    targets: Targets | NDArray[np.int64],
    seed: int = 0,
    budget: int | None = None,
    batch_size: int | None = None,
    memo: Memo | None = None,
    share: float = 1.0,
    of: Quantity | None = None,
    **settings: Any,  # Any: settings of the method; None leaves one as it is
) -> Attribution:
    """Attributions of ready inputs for known output indices; the door that evidence and checks use."""
    chosen = explainer(method, output=of, **settings)
    asked = targets if isinstance(targets, Targets) else Targets(np.asarray(targets, dtype=np.int64))
    size = batch_size if batch_size is not None else batch_size_for(inputs.tensor, model)
    return run_explainer(model, inputs, chosen, asked, Run(seed, _checked(budget), size, memo, share))


def run_explainer(model: Model, inputs: Inputs, chosen: Explainer, targets: Targets, run: Run) -> Attribution:
    """One explainer on ready inputs, its result named."""
    return run_explainers(model, inputs, [chosen], targets, run)[0]


def run_explainers(model: Model, inputs: Inputs, chosen: Sequence[Explainer], targets: Targets | None, run: Run) -> list[Attribution]:
    """Several explainers on ready inputs, in their order, the results named.

    Those whose class has a ``together(explainers, model, inputs, targets, run)`` are run together by it, in one pass of the model.
    ``targets`` None: the predicted class, which such a pass finds along the way.
    """
    if targets is not None and len(targets) != len(inputs):
        raise DataError(f"{len(targets)} targets for {len(inputs)} inputs")
    for one in chosen:
        if one.needs_space and not inputs.players.spatial:
            raise ModelError(
                f"{one.name} needs a spatial layer, and these inputs are {inputs.players.shape}: use integrated_gradients, kernel_shap or lime"
            )
    found: dict[int, Attribution] = {}
    groups: dict[Any, list[int]] = {}
    for at, one in enumerate(chosen):
        if (together := getattr(type(one), "together", None)) is not None:
            groups.setdefault(together, []).append(at)
    for together, members in groups.items():
        results = together([chosen[at] for at in members], model, inputs, targets, run)
        found |= dict(zip(members, results, strict=True))
        targets = results[0].explained
    if targets is None:
        targets = resolve_targets(model, inputs, None, batch_size=run.batch_size)
    for at, one in enumerate(chosen):
        if at not in found:
            found[at] = one(model, inputs, targets, run)
    names = _names(model, targets)
    asked = {} if run.budget is None else {"budget": run.budget}  # where several methods share evaluations, one may have spent fewer
    return [
        dataclasses.replace(found[at], target_names=names, explainer=one, params={**found[at].params, **asked})
        for at, one in enumerate(chosen)
    ]


def ready(
    model: nn.Module | Model,
    inputs: Any,  # Any: as in explain
    *,
    background: Any = None,  # Any: as inputs
    players: Players | None = None,
    segmentation: str | None = None,
    parts: int | None = None,
    preprocessing: InputSpec | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> tuple[Model, Inputs, int]:
    """The model wrapped, the inputs encoded and cut into parts, and the batch size."""
    from tl_audit.models import as_model

    wrapped = as_model(model, name="model")
    spec = preprocessing if preprocessing is not None else wrapped.preprocessing
    tensor, modality, ids = _encoded(inputs, spec)
    if len(tensor) == 0:
        raise DataError("nothing to explain: the inputs hold no sample")
    rows = None if background is None else _encoded(background, spec)[0]
    if players is not None and (segmentation is not None or parts is not None):
        raise ConfigError("players say what the parts are, and so do segmentation and parts: give one of them")
    if parts is not None and parts < 1:
        raise ConfigError(f"parts is {parts}: expected at least 1")
    if players is not None:
        cut = players.checked(len(tensor), tuple(tensor.shape[2:] if players.spatial else tensor.shape[1:]))
    elif parts is not None:
        cut = modality.players(tensor, spec, most=parts, seed=seed, segmentation=segmentation)
    else:
        cut = modality.players(tensor, spec, seed=seed, segmentation=segmentation)
    made = Inputs(tensor=tensor, ids=ids, modality=modality, spec=spec, players=cut, background=rows)
    return wrapped, made, batch_size if batch_size is not None else batch_size_for(tensor, wrapped)


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
    if given.get("output") is not None and given["output"] not in get_args(Quantity):
        raise ConfigError(f"of is {given['output']!r}: expected one of {', '.join(get_args(Quantity))}")
    share = given.get("convergence")
    if share is not None and not 0 < share < 1:
        raise ConfigError(f"convergence is {share}: expected a share of the range of values, above 0 and below 1")
    chosen: Explainer = dataclasses.replace(base, **given)
    return chosen


def batch_size_for(tensor: torch.Tensor, model: Model | None = None) -> int:
    """Rows per batch, 8 to 512: inputs of 0.8 MB at once on a processor, of 20 MB on an accelerator. None: a model on the processor."""
    first = None if model is None else next(iter(model.module.parameters()), None)
    most = _BATCH_FLOATS.get("cpu" if first is None else first.device.type, _BATCH_FLOATS_ELSEWHERE)
    return int(min(512, max(8, most // max(1, tensor[:1].numel()))))


def resolve_targets(model: Model, inputs: Inputs, target: Wanted, against: Wanted = None, *, batch_size: int) -> Targets:
    """What is explained: class names or checked indices, or None for the predicted class. One forward pass.

    Raises
    ------
    ModelError : a name the model does not have, an index outside [0, C), non-finite outputs where the prediction is asked for
    ConfigError : a class against itself
    """
    with evaluating(model, batch_size=batch_size) as evaluator:
        logits = evaluator.all_scores(inputs.tensor if target is None else inputs.tensor[:1])
    if target is not None:
        index = _indices(model, target, len(inputs), logits.shape[1])
    elif np.isfinite(logits).all():
        index = np.asarray(logits.argmax(axis=1), dtype=np.int64)
    else:
        raise ModelError(
            "the model's outputs are not finite for some inputs: there is no predicted class to explain; name one with target=..."
        )
    if against is None:
        return Targets(index)
    other = _indices(model, against, len(inputs), logits.shape[1])
    if (index == other).any():
        first = int(np.flatnonzero(index == other)[0])
        raise ConfigError(f"sample {inputs.ids[first]}: a class is explained against itself; give another class to against=...")
    return Targets(index, other)


def _indices(model: Model, wanted: Wanted, n: int, width: int) -> NDArray[np.int64]:
    listed: list[Any] = [wanted] * n if isinstance(wanted, str | int | np.integer) else list(wanted) if wanted is not None else []
    if len(listed) != n:
        raise DataError(f"{len(listed)} targets for {n} inputs: give one, or one per input")
    return np.array([_index(model, t, width) for t in listed], dtype=np.int64)


def _names(model: Model, targets: Targets) -> tuple[str, ...] | None:
    if isinstance(model.output, Value):
        return (model.output.name or "the value",) * len(targets)
    if model.classes is None:
        return None
    known = model.classes
    names = [known[t] if 0 <= t < len(known) else str(t) for t in targets.index]
    if targets.against is None:
        return tuple(names)
    return tuple(f"{name} against {known[o] if 0 <= o < len(known) else o}" for name, o in zip(names, targets.against, strict=True))


def _checked(budget: int | None) -> int | None:
    if budget is not None and budget < 1:
        raise ConfigError(f"budget is {budget}: expected a number of model evaluations per sample (default {DEFAULT_BUDGET})")
    return budget


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
            "pictures need a preprocessing: give explain(..., preprocessing=tl_audit.Preprocessing(height=224, width=224, ...)), "
            "Model(..., preprocessing=...), or a float tensor (N, C, H, W)"
        )
    batch = RawBatch(rows=np.arange(len(pictures)), items=pictures, errors=[None] * len(pictures), facts=[{}] * len(pictures))
    return IMAGE.encode(batch, spec), IMAGE, _ids(len(pictures))


def _from_frame(frame: Any, spec: InputSpec | None) -> tuple[torch.Tensor, Modality, tuple[str, ...]]:  # Any: a pandas DataFrame
    import pandas as pd

    from tl_audit.modality import TABULAR
    from tl_audit.modality.tensors import Tensors

    if isinstance(spec, TableEncoding):
        missing = [c for c in spec.columns if c not in frame.columns]
        if len(missing) == len(spec.columns):
            raise DataError(f"the table has none of the columns that the model reads: {', '.join(spec.columns[:10])}")
        frame = frame[[c for c in spec.columns if c in frame.columns]]
    records = [{str(k): (None if pd.isna(v) else v) for k, v in row.items()} for row in frame.to_dict("records")]
    batch = RawBatch(rows=np.arange(len(records)), items=records, errors=[None] * len(records), facts=[{}] * len(records))
    tensor = TABULAR.encode(batch, spec)
    # without an encoding the columns are the model's inputs as they are, and keep their names
    kind: Modality = TABULAR if spec is not None else Tensors(names=tuple(str(c) for c in frame.columns))
    return tensor, kind, _ids(len(records))


def _pictures(inputs: Any) -> list[NDArray[np.uint8]]:
    """Raw pictures (H, W, 3) uint8 of arrays, uint8 tensors, PIL pictures, or lists of these."""
    if isinstance(inputs, torch.Tensor):
        inputs = inputs.cpu().numpy()
    if isinstance(inputs, np.ndarray) and inputs.dtype != object:
        if inputs.dtype != np.uint8:
            raise DataError(
                f"the array is {inputs.dtype}: pictures are uint8 (N, H, W, 3); model inputs are torch tensors, torch.from_numpy(array).float()"
            )
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
