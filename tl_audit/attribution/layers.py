"""Which layers CAM methods read: the last maps of places before the head, found by running one sample once."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from tl_audit.attribution.evaluation import Evaluator
from tl_audit.errors import ModelError
from tl_audit.models.heads import head_search
from tl_audit.models.model import Model

_SMALLEST_SIDE = 3  # a 2 x 2 map says little about where
_MOST_PREFIX_TOKENS = 8  # class, distillation and register tokens
STAGES = 3

_PASSED_OVER = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity,
    nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip


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

    def __str__(self) -> str:
        return f"{self.height} x {self.width}" + (f", {self.prefix} leading token(s) dropped" if self.prefix else "")


class Choice(NamedTuple):
    """A layer with how it is read. ``reason``: why this one, for people."""

    name: str
    grid: Grid
    reason: str


class Survey(NamedTuple):
    """What one pass of one sample shows of a network.

    Attributes
    ----------
    head : module path; empty where it is not known
    order : layers before the head that give a map of places, in order of their last use; of modules that hand on the very same map
        (a container and its last part) the outermost stands for all
    grids : how each of them is read
    alive : those whose places get a gradient; of the last ones, or of all where all were asked for
    same : every such module -> the one in ``order`` that stands for it
    """

    head: str
    order: tuple[str, ...]
    grids: Mapping[str, Grid]
    alive: frozenset[str]
    same: Mapping[str, str]

    @property
    def large(self) -> list[str]:
        """Layers whose map is at least 3 x 3, in order."""
        return [n for n in self.order if min(self.grids[n].height, self.grids[n].width) >= _SMALLEST_SIDE]


def grid_of(shape: Sequence[int], image: tuple[int, int], rows: int) -> Grid | None:
    """The map in an output of this shape for ``rows`` inputs of (height, width); None where there is none."""
    if len(shape) not in (3, 4) or shape[0] != rows:
        return None
    if len(shape) == 4:
        _, a, b, c = shape
        if not _fits(b, c, image) and _fits(a, b, image) and a * b > 1:
            return Grid("channels_last", a, b)
        return Grid("channels_first", b, c) if b * c > 1 else None
    # in exact proportion first: 4 x 4 places behind 4 other tokens are not 4 x 5 places
    for fits in (_fits_exactly, _fits):
        for prefix in range(min(_MOST_PREFIX_TOKENS, shape[1] - 1) + 1):
            places = shape[1] - prefix
            height = round(math.sqrt(places * image[0] / image[1]))
            if height > 1 and places % height == 0 and places > height and fits(height, places // height, image):
                return Grid("tokens", height, places // height, prefix)
    return None


def _fits(height: int, width: int, image: tuple[int, int]) -> bool:
    """Whether a map's sides are in proportion to the image's, up to rounding by one cell."""
    return abs(height * image[1] - width * image[0]) <= max(image)


def _fits_exactly(height: int, width: int, image: tuple[int, int]) -> bool:
    return height * image[1] == width * image[0]


def first_tensor(output: Any) -> torch.Tensor | None:  # Any: whatever a module returns
    """The tensor in a module's output that counts as its map: itself, or the first of a tuple or mapping."""
    if isinstance(output, Mapping):
        output = output[_first_key(output)] if output else None
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, torch.Tensor) and output.is_floating_point() else None


def _first_key(output: Mapping[Any, Any]) -> Any:
    return next((key for key, value in output.items() if isinstance(value, torch.Tensor)), next(iter(output)))


def with_first(output: Any, tensor: torch.Tensor) -> Any:  # Any: as above
    """The module's output with that tensor replaced."""
    if isinstance(output, torch.Tensor):
        return tensor
    if isinstance(output, Mapping):
        replaced: Any = copy.copy(output)
        key = _first_key(output)
        value = output[key]
        replaced[key] = tensor if isinstance(value, torch.Tensor) else with_first(value, tensor)
        return replaced
    rest = [tensor, *output[1:]]
    if hasattr(output, "_fields"):
        return type(output)(*rest)
    return type(output)(rest)


def named_layer(net: nn.Module, name: str) -> nn.Module:
    """The module at a dotted path; ModelError with near names otherwise."""
    import difflib

    modules = dict(net.named_modules(remove_duplicate=False))
    if name not in modules or not name:
        near = difflib.get_close_matches(name, list(modules), n=3, cutoff=0.4)
        raise ModelError(
            f"there is no layer {name!r}"
            + (f"; did you mean {', '.join(near)}?" if near else f"; there are: {', '.join(list(modules)[1:9])}, ...")
        )
    found: nn.Module = modules[name]
    return found


@contextmanager
def watching(net: nn.Module, layers: Sequence[str], *, gradients: bool = True) -> Iterator[dict[str, torch.Tensor]]:
    """What these layers give in one forward pass: layer -> its output, to which gradients can be taken.

    The first of them is made a leaf that asks for gradients, so that frozen parameters stay frozen and everything below runs without
    a graph; later ones hang in the same graph, so that one backward pass serves all. What goes on is a copy, so that in-place steps do
    no harm. A module that runs several times counts by its last use.
    """
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            tensor = first_tensor(output)
            if tensor is None:
                return None
            kept = tensor if tensor.requires_grad or not gradients else tensor.detach().requires_grad_(True)
            seen[name] = kept
            return with_first(output, kept.clone())

        return hook

    with ExitStack() as hooks:
        for name in layers:
            hooks.callback(named_layer(net, name).register_forward_hook(keep(name)).remove)
        yield seen


def read_grid(name: str, seen: Mapping[str, torch.Tensor], image: tuple[int, int], rows: int, method: str) -> Grid:
    """How the output of a layer that was asked for is read. ModelError where it is no map of places."""
    grid = grid_of(seen[name].shape, image, rows) if name in seen else None
    if grid is None:
        found = f"gives {tuple(seen[name].shape)}" if name in seen else "is not run, or gives no floating-point tensor"
        raise ModelError(
            f"layer {name!r} {found}: {method} needs a layer whose output is a map of places (B, C, h, w) or tokens (B, T, C); choose another with layer=..."
        )
    return grid


def survey(model: Model, evaluator: Evaluator, x: torch.Tensor, *, method: str = "grad_cam", every: bool = False) -> Survey:
    """Head, maps and gradients of a network from one prepared sample (1, C, H, W): one forward pass, and as much of the backward
    pass as it takes to find a layer whose places get a gradient (``every``: all of it).
    """
    if x.ndim != 4:
        raise ModelError(f"{method} needs a spatial layer, and these inputs are not images: use integrated_gradients, kernel_shap or lime")
    image = (int(x.shape[-2]), int(x.shape[-1]))
    names = {module: name for name, module in evaluator.net.named_modules() if name}
    inside = {n for n in names.values() if _in_attention(evaluator.net, n)}
    events: list[tuple[str, torch.Tensor, Grid]] = []
    handed: dict[int, tuple[torch.Tensor, int, int]] = {}  # id of a map handed on -> that map, its version, its place in events
    starts: dict[str, int] = {}
    same: dict[str, str] = {}

    def before(module: nn.Module, args: Any) -> None:
        starts.setdefault(names[module], len(events))

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        name, tensor = names[module], first_tensor(output)
        grid = None if tensor is None else grid_of(tensor.shape, image, len(x))
        if tensor is None or grid is None or isinstance(module, _PASSED_OVER) or name in inside:
            return None
        if id(tensor) in handed and tensor._version == handed[id(tensor)][1]:
            at = handed[id(tensor)][2]
            inner = events[at][0]
            if inner.startswith(f"{name}."):
                events[at] = (name, *events[at][1:])
                same[inner] = name
            else:
                same[name] = inner
            return None
        onward = tensor.clone()  # so that a later in-place step finds no watched tensor
        handed[id(onward)] = (onward, onward._version, len(events))
        events.append((name, tensor, grid))
        return with_first(output, onward)

    with ExitStack() as hooks:
        head_from = hooks.enter_context(head_search(model, evaluator.net, len(x)))
        for module in names:
            hooks.callback(module.register_forward_pre_hook(before).remove)
            hooks.callback(module.register_forward_hook(after).remove)
        with torch.inference_mode(False), torch.enable_grad():
            scores, reading = evaluator.read(x.clone().requires_grad_(True))
        try:
            head = head_from(reading)
        except ModelError:
            if model.classes is not None and len(model.classes) != reading.logits.shape[1]:
                raise
            head = ""  # several heads side by side: maps of places end before them by themselves; ``choose`` says so
    last = {name: (tensor, grid) for name, tensor, grid in events[: starts.get(head, len(events))] if name != head}
    places = {name: at for at, (name, _, _) in enumerate(events[: starts.get(head, len(events))])}
    order = tuple(sorted(last, key=lambda n: places[n]))
    if not order:
        raise ModelError(
            f"{method} needs a spatial layer, and no layer before the head gives a map of places: use integrated_gradients, kernel_shap or lime"
        )
    grids = {name: last[name][1] for name in order}
    found = Survey(head, order, grids, frozenset(), {n: _outermost(n, same) for n in (*order, *same) if _outermost(n, same) in last})
    alive = _with_gradient(scores["logit"], found, {name: last[name][0] for name in order}, every=every)
    return found._replace(alive=alive)


def _in_attention(net: nn.Module, name: str) -> bool:
    """Whether a module is part of an attention layer: queries, keys and values have places, but are no map that a classifier reads."""
    module = net
    for part in name.split(".")[:-1]:
        module = module.get_submodule(part)
        if any(word in said.lower() for said in (part, type(module).__name__) for word in ("attention", "attn")):
            return True
    return False


def _outermost(name: str, same: Mapping[str, str]) -> str:
    while name in same:
        name = same[name]
    return name


def _with_gradient(scores: torch.Tensor, found: Survey, seen: Mapping[str, torch.Tensor], *, every: bool) -> frozenset[str]:
    if not scores.requires_grad:
        return frozenset()
    # every class with a weight of its own: the sample's own class may happen to get no gradient
    with torch.enable_grad():
        target = (scores * torch.arange(1, scores.shape[1] + 1, device=scores.device)).sum()
    large = set(found.large)
    alive: set[str] = set()
    for names in ([n for n in found.order if n in large], [n for n in found.order if n not in large]):
        left = [n for n in names if seen[n].requires_grad]
        size = len(left) if every else 1
        while left and (every or not alive):
            asked, left = left[-size:], left[:-size]
            grads = torch.autograd.grad(target, [seen[n] for n in asked], allow_unused=True, retain_graph=True)
            alive |= {n for n, g in zip(asked, grads, strict=True) if g is not None and bool(found.grids[n].maps(g).ne(0).any())}
            size *= 4  # mostly the last map has gradient, and what lies above it is soon passed back through
    return frozenset(alive)


def choose(found: Survey) -> Choice:
    """The layer that CAM methods read by default.

    The last layer before the head whose output is a map of places and whose places get a gradient: after the last attention of a
    transformer only the class token does, so its own block's input norm is taken there. Dropout, identity and pooling are passed
    over, and so are parts of an attention layer. Maps with a side below 3 are taken only where there is no larger one.
    """
    order, large = found.order, found.large
    why = "last layer before the head with a map of places"
    if candidates := [n for n in large if n in found.alive]:
        name = candidates[-1]
    elif candidates := [n for n in order if n in found.alive]:
        name, why = candidates[-1], f"{why}; no larger map carries gradient"
    else:
        name, why = (large or list(order))[-1], f"{why}; none carries gradient for the sample tried"
    passed = len(order) - 1 - order.index(name)
    later = f"; {passed} later layer(s) passed over, whose map is smaller or gets no gradient" if passed else ""
    head = f"head: {found.head}" if found.head else "the head is not known: name it with head=... should this layer lie behind it"
    return Choice(name, found.grids[name], f"{why} ({found.grids[name]}){later}; {head}")


def neighbours(found: Survey, name: str) -> tuple[str | None, str | None]:
    """The layers before and after a layer whose places get a gradient too, None where there is none."""
    at = found.order.index(found.same[name])
    before = [n for n in found.order[:at] if n in found.alive]
    after = [n for n in found.order[at + 1 :] if n in found.alive]
    return (before[-1] if before else None), (after[0] if after else None)


def stages(found: Survey, net: nn.Module) -> tuple[str, ...]:
    """The last layer of each of the last 3 stages, first to last.

    Stages are runs of layers whose maps have one size; where there are fewer sizes than that (a transformer), they are the blocks: the
    parts of that container which holds most parts of one kind.
    """
    alive = [n for n in found.order if n in found.alive]
    by_size: dict[tuple[int, int], str] = {}
    for name in alive:
        size = (found.grids[name].height, found.grids[name].width)
        # the inside of the next block may start at the old size: the outermost module speaks for its stage
        if size not in by_size or name.count(".") <= by_size[size].count("."):
            by_size[size] = name
    if len(by_size) >= STAGES:
        return tuple(n for n in alive if n in by_size.values())[-STAGES:]
    modules = dict(net.named_modules())
    best: dict[str, str] = {}
    for container in dict.fromkeys(n.rsplit(".", k)[0] for n in alive for k in range(1, n.count(".") + 1)):
        kinds: dict[type[nn.Module], dict[str, str]] = {}
        for name in alive:
            if name.startswith(f"{container}."):
                part = ".".join(name.split(".")[: container.count(".") + 2])
                kinds.setdefault(type(modules[part]), {})[part] = name
        best = max([best, *kinds.values()], key=len)
    chosen = set(best.values()) if len(best) > len(by_size) else set(by_size.values())
    return tuple(n for n in alive if n in chosen)[-STAGES:]
