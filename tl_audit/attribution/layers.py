"""Which layer Grad-CAM reads: the last map of places before the head, found by running one sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from tl_audit.attribution.evaluation import Evaluator
from tl_audit.errors import ModelError

_SMALLEST_SIDE = 3  # a 2 x 2 map says little about where
_MOST_PREFIX_TOKENS = 8  # class, distillation and register tokens


class Grid(NamedTuple):
    """How a layer's output is read as a map. ``layout``: "channels_first" (B, C, h, w), "channels_last" (B, h, w, C), "tokens" (B, p + h*w, C)."""

    layout: str
    height: int
    width: int
    prefix: int = 0

    def maps(self, tensor: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w)."""
        if self.layout == "tokens":
            tensor = tensor[:, self.prefix :].reshape(len(tensor), self.height, self.width, -1)
        return tensor if self.layout == "channels_first" else tensor.permute(0, 3, 1, 2)


class Choice(NamedTuple):
    name: str
    grid: Grid
    reason: str


def grid_of(shape: torch.Size, image: tuple[int, int]) -> Grid | None:
    """The map in an output of this shape for an input of (height, width); None where there is none."""
    if len(shape) == 4:
        _, a, b, c = shape
        if not _fits(b, c, image) and _fits(a, b, image) and c > a:
            return Grid("channels_last", a, b)
        return Grid("channels_first", b, c) if b * c > 1 else None
    if len(shape) == 3:
        tokens = shape[1]
        for prefix in range(min(_MOST_PREFIX_TOKENS, tokens - 1) + 1):
            height = round(math.sqrt((tokens - prefix) * image[0] / image[1]))
            if height > 1 and (tokens - prefix) % height == 0 and _fits(height, (tokens - prefix) // height, image):
                return Grid("tokens", height, (tokens - prefix) // height, prefix)
    return None


def _fits(height: int, width: int, image: tuple[int, int]) -> bool:
    """Whether a map's sides are in proportion to the image's, up to rounding by one cell."""
    return abs(height * image[1] - width * image[0]) <= max(image)


def first_tensor(output: Any) -> torch.Tensor | None:  # Any: whatever a module returns
    """The tensor in a module's output that counts as its map: itself, or the first of a tuple."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, torch.Tensor) and output.is_floating_point() else None


def with_first(output: Any, tensor: torch.Tensor) -> Any:  # Any: as above
    """The module's output with that tensor replaced."""
    if isinstance(output, torch.Tensor):
        return tensor
    rest = [tensor, *output[1:]]
    if hasattr(output, "_fields"):
        return type(output)(*rest)
    return type(output)(rest)


def named_layer(net: nn.Module, name: str) -> nn.Module:
    """The module at a dotted path; ModelError with near names otherwise."""
    import difflib

    modules = dict(net.named_modules())
    if name not in modules or not name:
        near = difflib.get_close_matches(name, list(modules), n=3, cutoff=0.4)
        raise ModelError(
            f"there is no layer {name!r}"
            + (f"; did you mean {', '.join(near)}?" if near else f"; there are: {', '.join(list(modules)[1:9])}, ...")
        )
    found: nn.Module = modules[name]
    return found


def choose_layer(evaluator: Evaluator, x: torch.Tensor, head: str | None, find_head: Callable[[], str]) -> Choice:
    """The layer that Grad-CAM reads by default, from one prepared sample (1, C, H, W).

    The last layer before the head whose output is a map of places and whose places all may carry gradient: after the last
    attention of a transformer only the class token does, so its own block's input norm is taken there. Dropout, identity and
    pooling are passed over. Maps with a side below 3 are taken only where there is no larger one.
    """
    if x.ndim != 4:
        raise ModelError("grad_cam needs a spatial layer, and these inputs are not images: use integrated_gradients, kernel_shap or lime")
    head = head or find_head()
    image = (int(x.shape[-2]), int(x.shape[-1]))
    order: list[str] = []
    seen: dict[str, torch.Tensor] = {}
    grids: dict[str, Grid] = {}
    handles = []
    head_started = False

    def watch(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            tensor = first_tensor(output)
            grid = None if tensor is None or head_started else grid_of(tensor.shape, image)
            if tensor is None or grid is None or isinstance(module, _PASSED_OVER):
                return None
            kept = tensor.clone()  # so that a later in-place step finds no watched tensor
            if kept.requires_grad:
                kept.retain_grad()
            if name in order:
                order.remove(name)
            order.append(name)
            seen[name], grids[name] = kept, grid
            return with_first(output, kept.clone())

        return hook

    def start_of_head(module: nn.Module, args: Any) -> None:
        nonlocal head_started
        head_started = True

    try:
        handles.append(named_layer(evaluator.net, head).register_forward_pre_hook(start_of_head))
        for name, module in evaluator.net.named_modules():
            if name and name != head:
                handles.append(module.register_forward_hook(watch(name)))
        with torch.enable_grad():
            scores = evaluator.logits(x.clone().requires_grad_(True))
        if not order:
            raise ModelError(
                "grad_cam needs a spatial layer, and no layer before the head gives a map of places: use integrated_gradients, kernel_shap or lime"
            )
        large = [n for n in order if min(grids[n].height, grids[n].width) >= _SMALLEST_SIDE]
        alive = dict.fromkeys(order, False)
        if scores.requires_grad:
            # every class with a weight of its own: the sample's own class may happen to get no gradient
            target = (scores * torch.arange(1, scores.shape[1] + 1, device=scores.device)).sum()
            # mostly the last large map has gradient, and what lies above it is soon passed back through
            for names in (large[-1:], order):
                asked = [n for n in names if seen[n].requires_grad]
                if not asked or any(alive.values()):
                    continue
                grads = torch.autograd.grad(target, [seen[n] for n in asked], allow_unused=True, retain_graph=names is not order)
                alive |= {n: g is not None and bool(grids[n].maps(g).ne(0).any()) for n, g in zip(asked, grads, strict=True)}
    finally:
        for handle in handles:
            handle.remove()
    why = "last layer before the head with a map of places"
    if candidates := [n for n in large if alive[n]]:
        name = candidates[-1]
    elif candidates := [n for n in order if alive[n]]:
        name, why = candidates[-1], f"{why}; no larger map carries gradient"
    else:
        name, why = (large or order)[-1], f"{why}; none carries gradient for the sample tried"
    grid = grids[name]
    passed = len(order) - 1 - order.index(name)
    detail = f"{grid.height} x {grid.width}" + (f", {grid.prefix} leading token(s) dropped" if grid.prefix else "")
    later = f"; {passed} later layer(s) passed over, whose map is smaller or gets no gradient" if passed else ""
    return Choice(name, grid, f"{why} ({detail}){later}; head: {head}")


_PASSED_OVER = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity,
    nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
