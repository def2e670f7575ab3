"""inference_copy: a copy of a network that gives the same outputs sooner, or the reason why the network itself has to be run."""

from __future__ import annotations

import copy
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tl_audit.models.borrow import borrowed
from tl_audit.models.model import Model
from tl_audit.models.outputs import read_outputs
from tl_audit.records.values import Output

FEWEST_EVALUATIONS = 64
"""Planned forward passes per sample from which on a copy is made. Making one costs about six passes of one row and a copy of the weights."""

TOLERANCE = 1e-4
"""Largest difference of a copy's logits, as a share of the widest row of logits."""

_PROBE_ROWS = 2
# Below this share of all multiplications a channels-last layout of the convolutions gains nothing that can be measured (ViT, Swin, ConvNeXt).
_CONVOLUTION_SHARE = 0.5

# Exact types: a subclass may compute something else.
_LINEAR: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_WHOLE = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Prepared:
    """A copy made for inference, or none.

    Attributes
    ----------
    net : the copy, in evaluation mode, without gradients; None: the model itself has to be run
    reason : what was done, or why there is no copy; one clause, for reports
    folded : batch norms folded into the layer before them
    channels_last : whether the weights of convolutions lie channels last in memory
    difference : largest difference of the logits on the sample, as a share of their widest row; None where none was measured
    dtype : the floating-point type the copy expects, None where it has no parameters
    """

    net: nn.Module | None
    reason: str
    folded: int = 0
    channels_last: bool = False
    difference: float | None = None
    dtype: torch.dtype | None = None


def inference_copy(
    model: Model,
    sample: torch.Tensor,
    *,
    planned: int | None = None,
    tolerance: float = TOLERANCE,
    precision: torch.dtype | None = None,
) -> Prepared:
    """A copy of the network with batch norms folded and convolutions channels last, if its outputs are those of the network.

    The user's network is only run, once, on the sample. All else happens on a deep copy: one run that records which batch norm is
    the only reader of which layer's output, folding in float64, and one run whose logits must agree. Nothing is replaced but weights
    and batch norms, so control flow, outputs and everything else in ``forward`` stay the user's own. When in doubt there is no copy: hooks,
    replaced ``forward`` methods, scripted or compiled parts, half precision, state that changes in a run, branches on values.

    Parameters
    ----------
    sample : (B, ...) model inputs; the first two rows are used
    planned : forward passes planned per sample; below ``FEWEST_EVALUATIONS`` no copy is made; None: one is made. Callers give what one
        sample takes, never the sum over samples, so that a batch is treated as its samples are alone
    tolerance : largest difference of the logits, as a share of the widest row of logits
    precision : a floating-point type for the copy; None: the network's own. A lower one needs a wider ``tolerance``

    References
    ----------
    Jacob et al. (2018). Quantization and training of neural networks for efficient integer-arithmetic-only inference, section 3.2
    (folding). arXiv:1712.05877
    """
    if planned is not None and planned < FEWEST_EVALUATIONS:
        return Prepared(None, f"{planned} evaluations per sample do not pay for a copy (from {FEWEST_EVALUATIONS} on)")
    if doubt := _doubt(model.module, precision):
        return Prepared(None, doubt)
    with borrowed(model) as net, torch.no_grad():
        device, own = _place(net)
        rows = sample[:_PROBE_ROWS].detach().to(device)
        rows = rows.to(own) if rows.is_floating_point() and own is not None else rows
        expected = read_outputs(net(rows.clone()), model.output).logits
        if not bool(torch.isfinite(expected).all()):
            return Prepared(None, "the model's logits on the sample are not finite, so nothing can be compared")
        try:
            twin = copy.deepcopy(net)
            for parameter in twin.parameters():
                parameter.requires_grad_(False)
            record = _record(twin, rows)
        except Exception as error:  # whatever a stranger's network raises when copied: the answer is not to copy it
            return Prepared(None, f"the network cannot be copied ({type(error).__name__}: {error})")
        if record.doubt is not None:
            return Prepared(None, record.doubt)
        # measured: on processors channels last pays wherever convolutions are most of the work; on GPUs only below single precision
        last = rows.ndim == 4 and record.convolution_share >= _CONVOLUTION_SHARE and (device.type == "cpu" or precision is not None)
        if not record.pairs and not last and precision is None:
            return Prepared(
                None, "there is nothing to gain: no batch norm follows a layer alone, and convolutions are not most of the work"
            )
        for layer, norm in record.pairs:
            _fold(layer, norm)
        if precision is not None:
            twin = twin.to(precision)
        for layout in (True, False) if last else (False,):
            # a plain layout is tried where the network needs one (a view of its maps): copying back is exact
            _lay_out(twin, torch.channels_last if layout else torch.contiguous_format)
            outcome = _difference(twin, rows if precision is None else rows.to(precision), expected, model.output)
            if isinstance(outcome, float) and outcome <= tolerance:
                done = [f"{len(record.pairs)} batch norm(s) folded"] if record.pairs else []
                done += ["channels last"] if layout else []
                done += [str(precision).removeprefix("torch.")] if precision is not None else []
                if not done:
                    return Prepared(
                        None, "there is nothing to gain: the network needs its maps in the plain layout, and no batch norm can be folded"
                    )
                return Prepared(twin, f"a copy with {', '.join(done)}", len(record.pairs), layout, outcome, precision or own)
        if isinstance(outcome, str):
            return Prepared(None, f"a prepared copy cannot be used ({outcome})")
        return Prepared(
            None, f"a prepared copy's logits differ by {outcome:.1e} of their spread, more than {tolerance:g}", difference=outcome
        )


@dataclass(frozen=True)
class _Record:
    """What one run of the copy showed. ``pairs``: layer and the batch norm that alone reads its output, each run once."""

    pairs: tuple[tuple[nn.Module, nn.Module], ...]
    convolution_share: float
    doubt: str | None = None


def _doubt(net: nn.Module, precision: torch.dtype | None) -> str | None:
    """Why this network must not be copied, seen without running it."""
    tensors = [*net.parameters(), *net.buffers()]
    if any(isinstance(t, nn.UninitializedParameter | nn.UninitializedBuffer) for t in tensors):
        return "it holds parameters that were never initialised"
    foldable = False
    for path, module in net.named_modules():
        where = repr(path) if path else "the network"
        if any(getattr(module, name, None) for name in _HOOKS):
            return f"{where} has hooks, which may change or read what passes"
        if "forward" in vars(module):
            return f"the forward method of {where} was replaced"
        if isinstance(module, torch.jit.ScriptModule):
            return f"{where} is a scripted module"
        if hasattr(module, "_orig_mod"):
            return f"{where} is a compiled module"
        foldable = foldable or isinstance(module, nn.Conv2d) or type(module) in _NORMS
    if len({t.device for t in tensors}) > 1:
        return "its parameters lie on several devices"
    kinds = {p.dtype for p in net.parameters() if p.is_floating_point()}
    if len(kinds) > 1 or not kinds <= set(_WHOLE):
        return f"its parameters are {', '.join(sorted(str(k).removeprefix('torch.') for k in kinds))}, which folding would round"
    if any(p.is_quantized or not p.is_floating_point() for p in net.parameters()):
        return "it is quantised"
    if not foldable and precision is None:
        return "there is nothing to gain: it has no convolution over images and no batch norm"
    return None


def _place(net: nn.Module) -> tuple[torch.device, torch.dtype | None]:
    first = next(iter(net.parameters()), None)
    return (torch.device("cpu"), None) if first is None else (first.device, first.dtype)


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often each tensor is an argument of an operation, and whether a value was read into Python."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.uses: Counter[int] = Counter()
        self.values_read = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # Any: torch's own signature
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor):
                self.uses[id(leaf)] += 1
        if func.overloadpacket.__name__ in _VALUE_READS:
            self.values_read = True
        return func(*args, **(kwargs or {}))


class _Reads(TorchFunctionMode):
    """Sees reads of values that no operation shows."""

    def __init__(self, uses: _Uses) -> None:
        super().__init__()
        self.uses = uses

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # Any: torch's own signature
        if getattr(func, "__name__", "") in ("numpy", "tolist", "__array__", "data_ptr"):
            self.uses.values_read = True
        return func(*args, **(kwargs or {}))


_VALUE_READS = frozenset({"_local_scalar_dense", "is_nonzero", "equal", "item", "allclose"})


def _record(net: nn.Module, rows: torch.Tensor) -> _Record:
    """One run of the copy: who reads whose output, how much of the work is convolution, and what speaks against a copy."""
    watched = _Uses()
    made: list[tuple[nn.Module, torch.Tensor]] = []  # keeps each output alive, so that no id is given twice
    read: list[tuple[nn.Module, torch.Tensor, int]] = []
    before: dict[int, int] = {}
    runs: Counter[int] = Counter()
    work: Counter[bool] = Counter()

    def after_layer(module: nn.Module, args: Any, out: Any) -> None:
        runs[id(module)] += 1
        if isinstance(out, torch.Tensor):
            made.append((module, out))
            watched.uses[id(out)] = 0  # of an earlier tensor, gone since
            weight = module.weight
            assert isinstance(weight, torch.Tensor)
            work[not isinstance(module, nn.Linear)] += out.numel() * (weight.numel() // max(1, weight.shape[0]))

    def before_norm(module: nn.Module, args: Any) -> None:
        if args and isinstance(args[0], torch.Tensor):
            before[id(module)] = watched.uses[id(args[0])]

    def after_norm(module: nn.Module, args: Any, out: Any) -> None:
        runs[id(module)] += 1
        if args and isinstance(args[0], torch.Tensor) and out is not args[0] and before.get(id(module)) == 0:
            read.append((module, args[0], watched.uses[id(args[0])]))

    state = _state(net)
    with ExitStack() as stack:
        for module in net.modules():
            if type(module) in _LINEAR:
                stack.callback(module.register_forward_hook(after_layer).remove)
            elif type(module) in _NORMS:
                stack.callback(module.register_forward_pre_hook(before_norm).remove)
                stack.callback(module.register_forward_hook(after_norm).remove)
        stack.enter_context(watched)
        stack.enter_context(_Reads(watched))
        net(rows.clone())
    share = work[True] / max(1, work.total())
    if watched.values_read:
        return _Record((), share, "it reads values while it runs, so its way may depend on them")
    if _changed(state, _state(net)):
        return _Record((), share, "it changes its own state when it runs")
    sources = {id(out): layer for layer, out in made}
    pairs = []
    for norm, came, uses in read:
        layer = sources.get(id(came))
        alone = layer is not None and runs[id(layer)] == 1 and runs[id(norm)] == 1 and watched.uses[id(came)] == uses
        if alone and layer is not None and _fits(layer, norm, came):
            pairs.append((layer, norm))
    return _Record(tuple(pairs), share)


def _state(net: nn.Module) -> dict[tuple[str, str], tuple[object, int]]:
    """What a run may change: each name of each module, the object it holds, and the version or length of that object."""
    found: dict[tuple[str, str], tuple[object, int]] = {}
    for path, module in net.named_modules():
        held: dict[str, object] = {k: v for k, v in vars(module).items() if not k.endswith("_hooks")}
        held |= module._parameters | module._buffers | module._modules
        for name, value in held.items():
            size = value._version if isinstance(value, torch.Tensor) else len(value) if isinstance(value, list | dict | set) else 0
            found[path, name] = value, size
    return found


def _changed(before: dict[tuple[str, str], tuple[object, int]], after: dict[tuple[str, str], tuple[object, int]]) -> bool:
    return before.keys() != after.keys() or any(after[k][0] is not value or after[k][1] != size for k, (value, size) in before.items())


def _fits(layer: nn.Module, norm: nn.Module, came: torch.Tensor) -> bool:
    """Whether the batch norm is an affine map of the layer's output channels."""
    mean, variance = norm.running_mean, norm.running_var
    if norm.training or not isinstance(mean, torch.Tensor) or not isinstance(variance, torch.Tensor):
        return False
    if isinstance(layer, nn.Linear):
        return came.ndim == 2 and layer.out_features == len(mean)
    return bool(layer.out_channels == len(mean))


def _fold(layer: nn.Module, norm: nn.Module) -> None:
    """Weights of ``norm(layer(x))`` into the layer; the norm passes on what it is given."""
    weight, mean, variance = layer.weight, norm.running_mean, norm.running_var
    assert isinstance(weight, torch.Tensor)
    assert isinstance(mean, torch.Tensor)
    assert isinstance(variance, torch.Tensor)
    eps: Any = norm.eps
    scale = (variance.double() + eps).rsqrt()
    if isinstance(norm.weight, torch.Tensor):
        scale = scale * norm.weight.double()
    shift = -mean.double() * scale
    if isinstance(layer.bias, torch.Tensor):
        shift = shift + layer.bias.double() * scale
    if isinstance(norm.bias, torch.Tensor):
        shift = shift + norm.bias.double()
    folded = weight.double() * scale.reshape(-1, *[1] * (weight.ndim - 1))
    # new parameters: the old ones may be shared with another layer
    layer.weight = nn.Parameter(folded.to(weight.dtype), requires_grad=False)
    layer.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=False)
    # the object stays, wherever the network holds it; only what it does is changed
    norm.__class__ = nn.Identity


def _lay_out(net: nn.Module, layout: torch.memory_format) -> None:
    """Weights of image convolutions in this memory layout; activations follow them."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=layout)


def _difference(twin: nn.Module, rows: torch.Tensor, expected: torch.Tensor, output: Output) -> float | str:
    """Largest difference of the logits as a share of the widest row; in words where the copy fails or is not finite."""
    try:
        found = read_outputs(twin(rows.clone()), output).logits.to(expected.dtype)
        if found.shape != expected.shape:
            return f"logits of shape {tuple(found.shape)} instead of {tuple(expected.shape)}"
        if not bool(torch.isfinite(found).all()):
            return "its logits are not finite"
        difference = float((found - expected).abs().max())
    except Exception as error:  # a network that cannot run in this form is run in its own
        return f"{type(error).__name__}: {error}"
    # of one value per row there is no spread within a row
    spread = float((expected.amax(dim=1) - expected.amin(dim=1)).max() if expected.shape[1] > 1 else expected.abs().max())
    if difference == 0.0:
        return 0.0
    return difference / spread if spread > 0 else float("inf")
