"""Class activation maps: all methods, layers and classes from one forward pass, and backward passes of what lies above the layers alone.

A CAM method says how activations A and gradients G of a layer become a map (``LayerCamMethod.read``); everything else is here: which layer,
one pass for all, enlarging, and what goes into the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from tl_audit.attribution.base import Attribution, Inputs, Run, Targets
from tl_audit.attribution.evaluation import Evaluator, Quantity, evaluating, gradients, lost_where
from tl_audit.attribution.layers import Choice, choose, named_layer, neighbours, read_grid, stages, survey, watching
from tl_audit.attribution.maps import blank_maps, from_elements, without_nonfinite
from tl_audit.errors import ConfigError, DataError, ModelError
from tl_audit.models.heads import head_of, pool
from tl_audit.models.model import Model

Wanted = Targets | NDArray[np.int64] | int | None
"""What one column of maps explains: one output per sample, one output for all, or None for the predicted class."""


@dataclass(frozen=True)
class LayerCamMethod:
    """A map read off one layer's activations, and gradients where it needs them. Subclasses hold the formula and nothing else.

    Attributes
    ----------
    layer : module path; None: the last layer with a map of places before the head (``layer_reason`` says which and why). Finding it takes one or
        two passes of the first sample alone, which the evaluations per sample do not count
    """

    layer: str | None = None

    name: ClassVar[str]
    signed: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    complete: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = True
    needs_space: ClassVar[bool] = True
    assumes_positive: ClassVar[bool] = False
    "the formula takes activations of 0 or more for granted, as after a ReLU"
    says: ClassVar[tuple[str, ...]] = ()
    "what must be said with every map"

    @property
    def gives_signs(self) -> bool:
        """Whether the maps of these settings have values below 0."""
        return self.signed

    @property
    def quantity(self) -> Quantity:
        output: Quantity = getattr(self, "output", "logit")
        return output

    def read(self, activation: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        """(B, h, w) maps of activations and gradients (B, C, h, w), float32 or better."""
        raise NotImplementedError

    def __call__(self, model: Model, inputs: Inputs, targets: Targets, run: Run) -> Attribution:
        return together([self], model, inputs, targets, run)[0]

    @staticmethod
    def together(
        explainers: Sequence[LayerCamMethod], model: Model, inputs: Inputs, targets: Targets | None, run: Run
    ) -> list[Attribution]:
        """All of them in one pass, each as it would be alone. ``targets`` None: the predicted class, from the same pass."""
        return together(explainers, model, inputs, targets, run)


@dataclass(frozen=True)
class GradientCam(LayerCamMethod):
    """A LayerCamMethod that uses gradients.

    Attributes
    ----------
    output : whose gradient is taken: "logit" or "probability"
    """

    output: Quantity = "logit"


class Key(NamedTuple):
    """Which map: the method's name, the layer's path, the number of the target column."""

    method: str
    layer: str
    k: int


@dataclass(frozen=True)
class CamPass:
    """What one pass gave.

    Attributes
    ----------
    layers : path -> how it is read and why it was taken, in the order asked
    coarse : (method, layer, k) -> (N, h, w) float32 maps at the layer's own size
    size : (H, W) of the inputs
    targets : K columns as explained; predicted classes filled in
    probabilities : (N, C)
    features : (N, D) float32 input of the head, averaged over places; None where not asked for
    evaluations : model evaluations per sample: the forward pass, and one more where gradients were taken
    notes : what must be said about all maps
    """

    layers: Mapping[str, Choice]
    coarse: Mapping[Key, torch.Tensor]
    size: tuple[int, int]
    targets: tuple[Targets, ...]
    probabilities: torch.Tensor
    features: torch.Tensor | None
    evaluations: int
    notes: tuple[str, ...] = ()

    @property
    def maps(self) -> Maps:
        """(method, layer, k) -> (N, H, W) float32 maps at the size of the inputs, made when they are asked for."""
        return Maps(self.coarse, self.size)


class Maps(Mapping[Key, torch.Tensor]):
    def __init__(self, coarse: Mapping[Key, torch.Tensor], size: tuple[int, int]) -> None:
        self._coarse, self._size = coarse, size

    def __getitem__(self, key: tuple[str, str, int]) -> torch.Tensor:
        return enlarged(self._coarse[Key(*key)], self._size)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._coarse)

    def __len__(self) -> int:
        return len(self._coarse)


def enlarged(coarse: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B, H, W) of maps (B, h, w), bilinear."""
    return F.interpolate(coarse[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def cam_pass(
    model: Model,
    inputs: torch.Tensor,
    *,
    methods: Sequence[str | LayerCamMethod],
    targets: Sequence[Wanted],
    layers: Sequence[str] | None = None,
    features: bool = True,
    batch_size: int | None = None,
) -> CamPass:
    """Maps of all methods, layers and target columns, with probabilities and penultimate features: one forward pass.

    Each target column costs one backward pass of what lies above the first of the layers; for the last layers of a network that is
    next to nothing. Every map is the one that the method gives alone.

    Parameters
    ----------
    inputs : (N, C, H, W) model inputs
    methods : names ("grad_cam", "hires_cam", ...) or configured methods
    targets : K columns; None: the predicted class
    layers : module paths for all methods; None: each method's own, by default the automatic choice
    features : also return what the head reads
    batch_size : rows per forward pass; None: by the size of the inputs

    Raises
    ------
    ConfigError : a method that is not read off a layer in one pass
    ModelError : no such layer, no map of places, no gradients
    """
    from tl_audit.attribution.door import batch_size_for

    if len(inputs) == 0:
        raise DataError("nothing to explain: the inputs hold no sample")
    chosen = [m if isinstance(m, LayerCamMethod) else _by_name(m) for m in methods]
    if len({e.name for e in chosen}) < len(chosen):
        raise ConfigError("one method is asked for twice: its maps could not be told apart; run one pass for each")
    size = batch_size if batch_size is not None else batch_size_for(inputs, model)
    with evaluating(model, batch_size=size) as evaluator:
        asked = [[e.layer] if layers is None else list(layers) for e in chosen]
        done = _pass(model, evaluator, inputs, chosen, asked, [_column(t, len(inputs)) for t in targets], features=features)
    coarse = {Key(chosen[i].name, layer, k): maps for (i, layer, k), maps in done.coarse.items()}
    return CamPass(
        done.layers, coarse, (int(inputs.shape[-2]), int(inputs.shape[-1])), done.targets, done.probabilities, done.features,
        done.evaluations, tuple(sorted(evaluator.notes)),
    )  # fmt: skip


def together(explainers: Sequence[LayerCamMethod], model: Model, inputs: Inputs, targets: Targets | None, run: Run) -> list[Attribution]:
    """The Attribution of each explainer, all from one pass. ``targets`` None: the predicted class, from the same pass."""
    require_space(explainers[0].name, inputs)
    with evaluating(model, batch_size=run.batch_size) as evaluator:
        done = _pass(model, evaluator, inputs.tensor, explainers, [[e.layer] for e in explainers], [targets], features=False)
    return [_found(explainers[i], done, done.layers[layer], i, inputs, done.targets[0], run, evaluator) for i, layer, _ in done.coarse]


class LayerMaps(NamedTuple):
    """Grad-CAM maps of several layers from one pass.

    Attributes
    ----------
    chosen : the layer that is read by default, or the one asked for; ``reason`` says why
    neighbours : the layers with a map of places just before and after it
    stages : the last layer of each of the last 3 stages, first to last
    maps : layer -> Attribution, of all of these
    """

    chosen: str
    reason: str
    neighbours: tuple[str, ...]
    stages: tuple[str, ...]
    maps: dict[str, Attribution]


def layer_maps(model: Model, inputs: Inputs, targets: Targets, run: Run, *, around: str | None = None) -> LayerMaps:
    """Grad-CAM of one layer, its neighbours and the last layer of each of the last 3 stages: one forward and one backward pass.

    Layers that hand on the very same map (a container and its last part) count once, so that a neighbour is never the layer itself.

    Parameters
    ----------
    around : module path; None: the automatic choice
    """
    from tl_audit.attribution.methods.grad_cam import GradCAM

    explainer = GradCAM()
    require_space(explainer.name, inputs)
    with evaluating(model, batch_size=run.batch_size) as evaluator:
        found = survey(model, evaluator, evaluator.prepare(inputs.tensor[:1]), method=explainer.name, every=True)
        if around is not None and around not in found.same:
            named_layer(evaluator.net, around)
            raise ModelError(f"layer {around!r} gives no map of places before the head: there are {', '.join(found.order[-6:])}")
        choice = (
            choose(found)
            if around is None
            else Choice(around, found.grids[found.same[around]], f"asked for ({found.grids[found.same[around]]})")
        )
        near = tuple(n for n in neighbours(found, choice.name) if n is not None)
        last = stages(found, evaluator.net)
        names = list(dict.fromkeys((choice.name, *near, *last)))
        done = _pass(model, evaluator, inputs.tensor, [explainer], [list(names)], [targets], features=False)
    reasons = {choice.name: choice.reason} | {n: f"next to {choice.name} ({found.grids[n]})" for n in near}
    maps = {}
    for name in names:
        reason = reasons.get(name, f"last layer of its stage ({found.grids[found.same[name]]})")
        chosen = Choice(name, found.grids[found.same[name]], reason)
        maps[name] = _found(explainer, done, chosen, 0, inputs, targets, run, evaluator)
    return LayerMaps(choice.name, choice.reason, near, last, maps)


def require_space(method: str, inputs: Inputs) -> None:
    """ModelError where the inputs are no images."""
    if not inputs.players.spatial or inputs.tensor.ndim != 4:
        raise ModelError(f"{method} needs a spatial layer, and these inputs are columns: use integrated_gradients, kernel_shap or lime")


def _found(
    explainer: LayerCamMethod, done: _Done, choice: Choice, number: int, inputs: Inputs, targets: Targets, run: Run, evaluator: Evaluator
) -> Attribution:
    return attribution(
        explainer.name, choice, done.coarse[number, choice.name, 0], inputs, targets, run, budget=done.evaluations,
        caveats=(*explainer.says, *done.caveats(explainer, choice.name, evaluator.notes)), params=settings_of(explainer),
        signed=explainer.gives_signs,
    )  # fmt: skip


def attribution(
    method: str,
    choice: Choice,
    coarse: torch.Tensor,
    inputs: Inputs,
    targets: Targets,
    run: Run,
    *,
    budget: int,
    caveats: Sequence[str],
    params: Mapping[str, Any],  # Any: plain JSON values
    signed: bool = False,
) -> Attribution:
    """The result of a method from its maps (N, h, w) at the layer's size."""
    values = enlarged(coarse, (int(inputs.tensor.shape[-2]), int(inputs.tensor.shape[-1])))
    elements, players = from_elements(values, inputs.players)
    elements = without_nonfinite(elements)
    facts: dict[str, Any] = {"layer": choice.name, "map": f"{choice.grid.height}x{choice.grid.width}"}
    return Attribution(
        values=elements, player_values=players, targets=targets.index, against=targets.against, method=method, inputs=inputs,
        signed=signed, layer=choice.name, layer_reason=choice.reason, seed=run.seed, budget=budget, blank=blank_maps(elements),
        params={**facts, **params}, caveats=tuple(caveats),
    )  # fmt: skip


def activations(
    model: Model, evaluator: Evaluator, x: torch.Tensor, layer: str | None, targets: Targets, *, method: str
) -> tuple[Choice, torch.Tensor]:
    """A layer, or the automatic one, and what it gives (N, C, h, w), without gradients: one forward pass."""
    done = _pass(model, evaluator, x, [_Activations(layer)], [[layer]], [targets], features=False, method=method)
    ((name, choice),) = done.layers.items()
    return choice, done.coarse[0, name, 0]


@dataclass(frozen=True)
class _Activations(LayerCamMethod):
    """All channels, unread."""

    needs_gradients: ClassVar[bool] = False

    def read(self, activation: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        return activation


def settings_of(explainer: Any) -> dict[str, Any]:  # Any: a frozen dataclass
    """The method's own settings by name, for ``params``."""
    return {f.name: getattr(explainer, f.name) for f in fields(explainer) if f.name != "layer"}


class _Done(NamedTuple):
    """What ``_pass`` gives. ``coarse``: (number of the explainer, layer, number of the column) -> (N, h, w) maps."""

    layers: dict[str, Choice]
    coarse: dict[tuple[int, str, int], torch.Tensor]
    targets: tuple[Targets, ...]
    probabilities: torch.Tensor
    features: torch.Tensor | None
    evaluations: int
    negative: frozenset[str]
    "layers that gave values below 0"

    def caveats(self, explainer: LayerCamMethod, layer: str, notes: set[str]) -> list[str]:
        said = sorted(notes)
        if explainer.assumes_positive and layer in self.negative:
            said.insert(0, f"{explainer.name} is derived for layers without negative values, and {layer} has some")
        return said


class _Part(NamedTuple):
    """What one batch gives."""

    coarse: dict[tuple[int, str, int], torch.Tensor]
    targets: list[Targets]
    probabilities: torch.Tensor
    features: torch.Tensor | None
    negative: set[str]


def _pass(
    model: Model,
    evaluator: Evaluator,
    x: torch.Tensor,
    explainers: Sequence[LayerCamMethod],
    asked: Sequence[Sequence[str | None]],
    columns: Sequence[Targets | None],
    *,
    features: bool,
    method: str | None = None,
) -> _Done:
    """All maps of all rows. ``asked``: layers of each explainer, None for the automatic one; ``method``: who asks, for messages."""
    method = method or explainers[0].name
    image = (int(x.shape[-2]), int(x.shape[-1]))
    layers: dict[str, Choice] = {}
    automatic = ""
    if any(None in wanted for wanted in asked):
        choice = choose(survey(model, evaluator, evaluator.prepare(x[:1]), method=method))
        layers[choice.name] = choice
        automatic = choice.name
    jobs = [(i, automatic if layer is None else layer) for i, wanted in enumerate(asked) for layer in dict.fromkeys(wanted)]
    names = list(dict.fromkeys(layer for _, layer in jobs))
    sloped = list(dict.fromkeys(layer for i, layer in jobs if explainers[i].needs_gradients))
    quantities = list(dict.fromkeys(e.quantity for e in explainers))
    head = head_of(model, evaluator.prepare(x[:1])) if features else None

    @torch.inference_mode(False)
    def batch(rows: slice) -> _Part:
        piece = evaluator.prepare(x[rows])
        with watching(evaluator.net, names, gradients=bool(sloped)) as seen, _fed(evaluator.net, head, len(piece)) as fed:
            with torch.set_grad_enabled(bool(sloped)):
                scores, reading = evaluator.read(piece, quantities)
            for name in names:
                if name not in layers or name not in seen:
                    grid = read_grid(name, seen, image, len(piece), method)
                    layers[name] = Choice(name, grid, f"asked for ({grid})")
            given = {name: full_precision(layers[name].grid.maps(seen[name].detach())) for name in names}
            coarse: dict[tuple[int, str, int], torch.Tensor] = {}
            explained = [_predicted(reading.logits) if column is None else column[rows] for column in columns]
            rounds = [(k, q) for k in range(len(columns)) for q in quantities]
            for k, quantity in rounds:
                slopes: dict[str, torch.Tensor] = {}
                with torch.set_grad_enabled(bool(sloped)):
                    score = explained[k].pick(scores[quantity])
                if sloped:
                    found = gradients(score, [seen[name] for name in sloped], again=(k, quantity) != rounds[-1])
                    slopes = {name: full_precision(layers[name].grid.maps(g)) for name, g in zip(sloped, found, strict=True)}
                for i, name in jobs:
                    explainer = explainers[i]
                    if not explainer.needs_gradients:
                        # one map for all classes
                        coarse[i, name, k] = coarse[i, name, 0] if k else explainer.read(given[name], given[name]).float().cpu()
                    elif explainer.quantity == quantity:
                        coarse[i, name, k] = lost_where(explainer.read(given[name], slopes[name]).float(), score).cpu()
        probabilities = reading.logits.detach().softmax(dim=1).cpu()
        negative = {name for name, activation in given.items() if bool((activation < 0).any())}
        return _Part(coarse, explained, probabilities, fed[0].cpu() if fed else None, negative)

    parts = evaluator.each_batch(len(x), batch)
    joined = {key: torch.cat([part.coarse[key] for part in parts]) for key in ((i, n, k) for i, n in jobs for k in range(len(columns)))}
    return _Done(
        {name: layers[name] for name in names}, joined,
        tuple(_joined([part.targets[k] for part in parts]) for k in range(len(columns))),
        torch.cat([part.probabilities for part in parts]),
        torch.cat([part.features for part in parts if part.features is not None]) if features else None,
        2 if sloped else 1, frozenset().union(*(part.negative for part in parts)),
    )  # fmt: skip


@contextmanager
def _fed(net: nn.Module, head: str | None, rows: int) -> Iterator[list[torch.Tensor]]:
    """What the head reads in one forward pass, one vector per sample."""
    fed: list[torch.Tensor] = []

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for given in (*args, *kwargs.values()):
            if isinstance(given, torch.Tensor) and given.is_floating_point():
                fed[:] = [pool(given.detach(), rows, module).clone()]
                return

    with ExitStack() as hooks:
        if head is not None:
            hooks.callback(named_layer(net, head).register_forward_pre_hook(look, with_kwargs=True).remove)
        yield fed
        if head is not None and not fed:
            raise ModelError(f"the head {head!r} did not run: name the one that makes the outputs with head=...")


def full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """float32 or better: sums over places overflow in half precision."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _predicted(logits: torch.Tensor) -> Targets:
    if not bool(torch.isfinite(logits).all()):
        raise ModelError(
            "the model's outputs are not finite for some inputs: there is no predicted class to explain; name one with target=..."
        )
    return Targets(logits.detach().argmax(dim=1).cpu().numpy())


def _joined(parts: Sequence[Targets]) -> Targets:
    against = [part.against for part in parts if part.against is not None]
    return Targets(np.concatenate([part.index for part in parts]), np.concatenate(against) if against else None)


def _column(wanted: Wanted, n: int) -> Targets | None:
    if wanted is None:
        return None
    if isinstance(wanted, Targets):
        made = wanted
    else:
        index = np.asarray(wanted, dtype=np.int64)
        made = Targets(np.full(n, index) if index.ndim == 0 else index)
    if len(made) != n:
        raise DataError(f"{len(made)} targets for {n} inputs")
    return made


def _by_name(method: str) -> LayerCamMethod:
    from tl_audit.attribution.methods import EXPLAINERS

    found = {e.name: e for e in EXPLAINERS if isinstance(e, LayerCamMethod)}
    if method not in found:
        raise ConfigError(f"{method!r} is not read off a layer in one pass; these are: {', '.join(found)}")
    return found[method]
