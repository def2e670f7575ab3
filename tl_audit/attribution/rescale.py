"""The rescale rule of DeepLIFT on operations instead of modules, and guided gradients: rules are applied as a network runs, never written into it.

A network is run twice under ``Rescaling``, on the baseline and on the input. The first run keeps what goes into each operation that is not
linear; the second gives each of them the slope of its own secant, between what it is given now and what it was given then. Functions, in-place
steps and modules used twice are seen like any other operation. Secants of products and of products of matrices share out the change evenly, which
leaves nothing over; norms and attention are taken apart into such steps. What is left over in the end lies in operations without a rule
(``uncovered``) or that no mode sees.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from tl_audit.errors import ModelError

Function = Callable[..., Any]  # Any: whatever a torch function takes and returns


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Functions of each number for itself; what else they take is fixed.
_ELEMENTWISE = _names(
    "relu relu6 leaky_relu elu selu celu gelu silu mish softplus softsign sigmoid tanh hardtanh hardswish hardsigmoid logsigmoid log_sigmoid "
    "tanhshrink softshrink hardshrink threshold prelu rrelu exp expm1 log log1p log2 log10 sqrt rsqrt square abs sin cos tan atan erf erfc pow __pow__ __rpow__ "
    "clamp clamp_min clamp_max clip reciprocal sign __abs__ sinh cosh"
)
_PRODUCTS = _names("mul multiply __mul__ __rmul__ matmul bmm mm mv dot __matmul__ einsum")
_QUOTIENTS = _names("div divide true_divide __truediv__ __div__ __rdiv__ __rtruediv__")
_LINEAR = _names(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear add sub subtract __add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ rsub "
    "neg __neg__ mean sum nanmean cat concat concatenate stack hstack vstack flatten unflatten reshape view view_as reshape_as permute transpose t mT swapaxes swapdims "
    "movedim squeeze unsqueeze expand expand_as broadcast_to repeat tile repeat_interleave chunk split split_with_sizes tensor_split unbind __getitem__ select narrow "
    "index_select gather take_along_dim roll flip rot90 pad _pad interpolate upsample pixel_shuffle pixel_unshuffle channel_shuffle unfold fold as_strided "
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d dropout dropout1d dropout2d dropout3d alpha_dropout "
    "feature_alpha_dropout feature_dropout native_dropout contiguous clone to type float double half bfloat16 type_as cpu cuda identity cumsum diagonal addmm baddbmm "
    "masked_fill where tril triu __get__ requires_grad_ retain_grad register_hook embedding grid_sample lerp copy_ __iter__ numpy_T detach positive zero_ fill_ __setitem__"
)
_GUIDED = frozenset(("relu", "relu6"))
_SAME = 8.0
"""Differences below so many units of rounding count as none: the slope is then the derivative."""


class _Kept(NamedTuple):
    """What went into an operation in the first run. ``versions``: of its tensors, so that later changes in place are noticed."""

    name: str
    tensors: tuple[torch.Tensor, ...]
    versions: tuple[int, ...]


class _Valued(torch.autograd.Function):
    """The gradient of one tensor with the values of another."""

    @staticmethod
    def forward(ctx: Any, linear: torch.Tensor, value: Function) -> torch.Tensor:  # Any: autograd's context
        made: torch.Tensor = value()
        return made

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]  # as autograd calls it
        return slope, None


class _Positive(torch.autograd.Function):
    """Passes on gradients above 0 only."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor) -> torch.Tensor:  # Any: autograd's context
        return y.clone()

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # as autograd calls it
        return slope.clamp(min=0)


def _valued(linear: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    made: torch.Tensor = _Valued.apply(linear, lambda: value)  # type: ignore[no-untyped-call]
    return made


def _live(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def _name(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, bool]:
    """The plain name of a torch function, and whether this call works in place."""
    name: str = getattr(function, "__name__", str(function))
    if name.startswith("__i") and name.endswith("__") and name not in ("__iter__", "__invert__"):
        return f"__{name[3:]}", True
    if name.endswith("_") and not name.endswith("__"):
        return name[:-1], True
    flags = name in _ELEMENTWISE and (bool(kwargs.get("inplace")) or any(a is True for a in args[1:]))
    return name, flags


class _Mode(TorchFunctionMode):
    """Asks ``rule`` about every torch function that is given a tensor with a gradient."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # Any: torch's own signature
        kwargs = kwargs or {}
        if not torch.is_grad_enabled() or not any(_live(a) for a in _tensors(args, kwargs)):
            return func(*args, **kwargs)
        name, in_place = _name(func, args, kwargs)
        found = self.rule(name, func, args, kwargs, in_place)
        if in_place and found is not None and found is not args[0]:
            with torch.no_grad():
                shape_fits = found.shape == args[0].shape
            if not shape_fits:
                raise ModelError(f"{name} in place changes the shape of what it is given: explain this model with another method")
            return args[0].copy_(found)
        return func(*args, **kwargs) if found is None else found

    def rule(self, name: str, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], in_place: bool) -> Any:  # Any: as ``func``
        """What takes the place of the function's own result; None: nothing does."""
        raise NotImplementedError


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[object]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, tuple | list):
            yield from value
        else:
            yield value


class Guiding(_Mode):
    """Gradients below 0 are not passed back through ReLU. ``seen``: how many there were."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def rule(self, name: str, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], in_place: bool) -> torch.Tensor | None:
        if name not in _GUIDED:
            return None
        self.seen += 1
        z = args[0] if args else kwargs.pop("input")
        y = func(z.clone() if in_place else z, *args[1:], **kwargs)
        made: torch.Tensor = _Positive.apply(y)  # type: ignore[no-untyped-call]
        return made


class Rescaling(_Mode):
    """The rescale rule. Run the baseline inside ``recording()``, then the input inside ``rescaling()``, and take the gradient.

    Attributes
    ----------
    uncovered : operations on the way that are not linear and have no rule: they keep their own gradient
    """

    def __init__(self) -> None:
        super().__init__()
        self.uncovered: set[str] = set()
        self._kept: list[_Kept] = []
        self._next: int | None = None

    @contextmanager
    def recording(self) -> Iterator[None]:
        self._kept, self._next = [], None
        with self:
            yield

    @contextmanager
    def rescaling(self) -> Iterator[None]:
        self._next = 0
        with self:
            yield
        if self._next != len(self._kept):
            raise ModelError(_ANOTHER_WAY)
        self._kept = []

    def rule(self, name: str, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], in_place: bool) -> Any:  # Any: as ``func``
        if not args and "input" in kwargs:
            args, kwargs = (kwargs["input"],), {k: v for k, v in kwargs.items() if k != "input"}
        live = sum(_live(a) for a in _tensors(args, kwargs))
        if name in _ELEMENTWISE and live == 1 and _live(args[0]):
            return self._elementwise(name, func, args, kwargs, in_place)
        if name in _PRODUCTS:
            return self._product(name, func, args, kwargs, in_place)
        if name in _QUOTIENTS:
            return self._quotient(name, args, kwargs)
        composite = None if name == "multi_head_attention_forward" and _unusual(args, kwargs) else _COMPOSITES.get(name)
        if composite is not None:
            given = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs) if composite is _multi_head else None
            with self:  # its steps are seen by this mode
                return composite(*args, **kwargs) if given is None else composite(**given.arguments)
        if name in ("softmax", "log_softmax"):
            return self._softmax(name, func, args, kwargs)
        if name in _POOLS:
            return self._max_pool(name, args, kwargs)
        if name == "batch_norm" and not _training(args, kwargs):
            return None
        if name not in _LINEAR and name not in _QUIET:
            self.uncovered.add(name)
        return None

    def _then(self, name: str, *tensors: torch.Tensor, copy: bool = False) -> tuple[torch.Tensor, ...] | None:
        """First run: keeps the tensors and gives None. Second run: what was kept, or None where it was changed since."""
        if self._next is None:
            kept = tuple(t.detach().clone() if copy else t.detach() for t in tensors)
            self._kept.append(_Kept(name, kept, tuple(t._version for t in kept)))
            return None
        if self._next >= len(self._kept):
            raise ModelError(_ANOTHER_WAY)
        found = self._kept[self._next]
        self._next += 1
        if found.name != name or any(a.shape != b.shape for a, b in zip(found.tensors, tensors, strict=True)):
            raise ModelError(_ANOTHER_WAY)
        if any(t._version != v for t, v in zip(found.tensors, found.versions, strict=True)):
            self.uncovered.add(f"{name} of a tensor that is changed in place later")
            return None
        return found.tensors

    def _elementwise(self, name: str, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], in_place: bool) -> Any:
        z: torch.Tensor = args[0]
        then = self._then(name, z, copy=in_place)
        if then is None:
            return func(z.clone(), *args[1:], **kwargs) if in_place else None

        def of(t: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = func(t.clone() if in_place else t, *args[1:], **kwargs)
            return made

        now = z.detach()
        value = of(now)
        return _valued(z * secant(of, now, then[0], value), value)

    def _product(self, name: str, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], in_place: bool) -> torch.Tensor | None:
        front = args[:1] if name == "einsum" else ()
        operands = args[len(front) :]
        if name == "einsum" and len(operands) == 1 and isinstance(operands[0], tuple | list):
            operands = tuple(operands[0])
        if len(operands) == 1:
            operands = (*operands, kwargs.get("other", kwargs.get("mat2", kwargs.get("tensor2"))))
        live = [_live(o) for o in operands]
        if sum(live) < 2:
            return None  # linear in the one that changes
        if len(operands) > 2:
            self.uncovered.add(name)
            return None
        a, b = operands
        then = self._then(name, a, b, copy=in_place)
        if then is None:
            return func(*front, a.clone(), b) if in_place else None

        def of(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = func(*front, left.clone() if in_place else left, right)
            return made

        a1, b1 = a.detach(), b.detach()
        return _valued(of(a, (b1 + then[1]) / 2) + of((a1 + then[0]) / 2, b), of(a1, b1))

    def _quotient(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("rounding_mode") is not None:
            self.uncovered.add(name)
            return None
        a, b = (args[0], args[1] if len(args) > 1 else kwargs.get("other"))
        if name in ("__rdiv__", "__rtruediv__"):
            a, b = b, a
        if not isinstance(b, torch.Tensor) or not b.requires_grad:
            return None
        top = a if isinstance(a, torch.Tensor) else torch.full_like(b, float(a), requires_grad=False)
        then = self._then(name, top, b)
        if then is None:
            return top / b
        a1, b1 = top.detach(), b.detach()
        value, before = a1 / b1, then[0] / then[1]
        # from y b = a: the change of a less that of b times the middle of y, over the middle of b; 1 / b where b changes its sign
        middle, same = (b1 + then[1]) / 2, b1 * then[1] > 0
        slope = torch.where(same, 1 / torch.where(same, middle, torch.ones_like(middle)), (1 / b1 + 1 / then[1]) / 2)
        shrink = torch.where(same, -(value + before) / 2 * slope, -(a1 + then[0]) / 2 / (b1 * then[1]))
        return _valued(top * slope + b * shrink, value)

    def _softmax(self, name: str, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        z: torch.Tensor = args[0]
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        then = self._then(name, z)
        if then is None or dim is None:
            return None
        value: torch.Tensor = func(z.detach(), *args[1:], **kwargs)
        kind = value.dtype
        now, before = z.detach().to(kind), then[0].to(kind)
        top = torch.maximum(now.amax(dim, keepdim=True), before.amax(dim, keepdim=True))
        e1, e0 = (now - top).exp(), (before - top).exp()
        s1, s0 = e1.sum(dim, keepdim=True), e0.sum(dim, keepdim=True)
        e = z.to(kind) * secant(torch.exp, now - top, before - top, e1)
        s = e.sum(dim, keepdim=True)
        if name == "log_softmax":
            return _valued(z.to(kind) - s * secant(torch.log, s1, s0, s1.log()), value)
        return _valued((e - (e1 / s1 + e0 / s0) / 2 * s) * 2 / (s1 + s0), value)

    def _max_pool(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        pool, axes = _POOLS[name]
        if kwargs.get("return_indices") or (args and args[-1] is True and len(args) > (6 if "adaptive" not in name else 2)):
            self.uncovered.add(name)
            return None
        z: torch.Tensor = args[0]
        rest = {k: v for k, v in kwargs.items() if k != "return_indices"}
        then = self._then(name, z)
        if then is None:
            return None
        options = args[1:6] if "adaptive" not in name else args[1:2]
        value, here = pool(z.detach(), *options, **rest, return_indices=True)
        before, there = pool(then[0], *options, **rest, return_indices=True)
        flat, now, was = (t.flatten(-axes) for t in (z, z.detach(), then[0]))
        here, there = here.flatten(-axes), there.flatten(-axes)
        y1, y0 = value.flatten(-axes), before.flatten(-axes)
        high = torch.maximum(y1, y0)
        # the change goes to the place that is largest now where the maximum rose, to that which was largest where it fell
        linear = flat.gather(-1, here) * _share(high - y0, now.gather(-1, here) - was.gather(-1, here), y1 - y0, high)
        linear = linear + flat.gather(-1, there) * _share(y1 - high, now.gather(-1, there) - was.gather(-1, there), y1 - y0, high)
        return _valued(linear.reshape(value.shape), value)


def secant(of: Callable[[torch.Tensor], torch.Tensor], now: torch.Tensor, then: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """(of(now) - of(then)) / (now - then); the derivative where both are the same but for rounding."""
    change = now - then
    same = change.abs() <= _SAME * torch.finfo(now.dtype).eps * (now.abs() + then.abs())
    slope = (value - of(then)) / torch.where(same, torch.ones_like(change), change)
    if not bool(same.any()):
        return slope
    with torch.enable_grad():
        leaf = now.detach().requires_grad_(True)
        (derivative,) = torch.autograd.grad(of(leaf).sum(), leaf)
    return torch.where(same, derivative.nan_to_num(0.0, 0.0, 0.0), slope)


def _share(part: torch.Tensor, change: torch.Tensor, whole: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """part / change; a half where nothing changed, so that both places together keep the derivative."""
    tiny = _SAME * torch.finfo(change.dtype).eps * size.abs()
    known = part / torch.where(change == 0, torch.ones_like(change), change)
    return torch.where(whole.abs() <= tiny, torch.full_like(known, 0.5), torch.where(change == 0, torch.zeros_like(known), known))


def _training(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return bool(kwargs.get("training", args[5] if len(args) > 5 else False))


def _normed(x: torch.Tensor, dims: tuple[int, ...], eps: float) -> torch.Tensor:
    centred = x - x.mean(dim=dims, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(dim=dims, keepdim=True) + eps)


def _affine(y: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _layer_norm(
    input: torch.Tensor,
    normalized_shape: tuple[int, ...],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> torch.Tensor:
    return _affine(_normed(input, tuple(range(-len(normalized_shape), 0)), eps), weight, bias)


def _rms_norm(
    input: torch.Tensor, normalized_shape: tuple[int, ...], weight: torch.Tensor | None = None, eps: float | None = None
) -> torch.Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    least = torch.finfo(input.dtype).eps if eps is None else eps
    return _affine(input / torch.sqrt((input * input).mean(dim=dims, keepdim=True) + least), weight, None)


def _group_norm(
    input: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> torch.Tensor:
    grouped = input.reshape(input.shape[0], num_groups, -1)
    channels = (1, input.shape[1], *[1] * (input.ndim - 2))
    made = _normed(grouped, (2,), eps).reshape(input.shape)
    return _affine(made, None if weight is None else weight.reshape(channels), None if bias is None else bias.reshape(channels))


def _normalize(input: torch.Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None) -> torch.Tensor:
    if p != 2:
        raise ModelError(f"normalize with p = {p} has no rescale rule: explain this model with integrated_gradients")
    return input / (input * input).sum(dim=dim, keepdim=True).sqrt().clamp_min(eps)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    weights = torch.matmul(query, key.transpose(-2, -1)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(weights.shape[-2:], dtype=torch.bool, device=weights.device).tril()
    if attn_mask is not None:
        weights = weights.masked_fill(~attn_mask, torch.finfo(weights.dtype).min) if attn_mask.dtype == torch.bool else weights + attn_mask
    return torch.matmul(F.softmax(weights, dim=-1), value)


def _multi_head(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: torch.Tensor,
    in_proj_bias: torch.Tensor | None,
    bias_k: None,
    bias_v: None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: torch.Tensor,
    out_proj_bias: torch.Tensor | None,
    need_weights: bool = True,
    attn_mask: torch.Tensor | None = None,
    is_causal: bool = False,
    **others: object,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of several heads, (places, rows, features) as torch has it, in steps that have rules."""
    width = query.shape[-1]
    biases = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)
    heads = []
    for source, weight, bias in zip((query, key, value), in_proj_weight.chunk(3), biases, strict=True):
        made = F.linear(source, weight, bias)
        heads.append(made.reshape(*made.shape[:-1], num_heads, width // num_heads).movedim(0, -2))  # (rows, heads, places, features)
    q, k, v = heads
    weights = torch.matmul(q, k.transpose(-2, -1)) * (width // num_heads) ** -0.5
    if attn_mask is not None:
        weights = weights.masked_fill(attn_mask, torch.finfo(weights.dtype).min) if attn_mask.dtype == torch.bool else weights + attn_mask
    shares = F.softmax(weights, dim=-1)
    out = torch.matmul(shares, v).movedim(-2, 0)
    out = F.linear(out.reshape(*out.shape[:-2], width), out_proj_weight, out_proj_bias)
    return out, shares.mean(dim=-3) if need_weights else None


def _unusual(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Attention that ``_multi_head`` does not write out: padded, with added keys, with weights of several sizes, or with a mask for each head."""
    given = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs).arguments
    asked = ("bias_k", "bias_v", "key_padding_mask", "static_k", "static_v", "use_separate_proj_weight", "add_zero_attn")
    used = [name for name in asked if given.get(name) is not None and given.get(name) is not False]
    mask = given.get("attn_mask")
    return bool(used) or given.get("in_proj_weight") is None or (mask is not None and mask.ndim > 2)


_COMPOSITES: dict[str, Function] = {
    "multi_head_attention_forward": _multi_head,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "normalize": _normalize,
    "scaled_dot_product_attention": _attention,
}
_POOLS: dict[str, tuple[Function, int]] = {
    "max_pool1d": (F.max_pool1d, 1),
    "max_pool2d": (F.max_pool2d, 2),
    "max_pool3d": (F.max_pool3d, 3),
    "adaptive_max_pool1d": (F.adaptive_max_pool1d, 1),
    "adaptive_max_pool2d": (F.adaptive_max_pool2d, 2),
    "adaptive_max_pool3d": (F.adaptive_max_pool3d, 3),
}
# Asked about tensors without changing them, or answers that carry no gradient.
_QUIET = _names(
    "size dim ndimension numel nelement element_size stride storage_offset is_contiguous is_floating_point is_complex data_ptr item tolist numpy __len__ __bool__ "
    "__repr__ __format__ __str__ __hash__ argmax argmin argsort isfinite isnan isinf eq ne lt le gt ge __eq__ __ne__ __lt__ __le__ __gt__ __ge__ equal allclose all any "
    "zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty new_full new_tensor __contains__ is_same_size get_device "
    "has_torch_function is_tensor is_inference is_sparse __reversed__ _is_view"
)
_ANOTHER_WAY = (
    "the model does not take the same steps for an input and for its baseline, so that the rescale rule cannot compare them: "
    "use integrated_gradients or gradient_shap"
)
