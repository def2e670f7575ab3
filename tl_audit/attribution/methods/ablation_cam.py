"""Ablation-CAM: channels weighed by how much the score falls without each of them; no gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tl_audit.attribution.base import Attribution, Inputs, Run, Targets
from tl_audit.attribution.cam import attribution, full_precision, require_space, settings_of
from tl_audit.attribution.evaluation import Evaluator, Quantity, evaluating
from tl_audit.attribution.layers import Choice, Grid, choose, first_tensor, named_layer, read_grid, survey, with_first
from tl_audit.errors import ConfigError
from tl_audit.models.model import Model

_TAIL_FLOATS = 2**23
"""Numbers in one batch of ablated maps: 32 MB of float32."""

_SEVERAL = "what lies above the layer, for several samples at once"
_ONE = "what lies above the layer, one sample at a time"


@dataclass(frozen=True)
class AblationCAM:
    """Weighted sum of a layer's channels, rectified; a channel's weight is by how much the score falls when its map is set to zero.

    The paper divides the fall by the score; that scales the whole map, and turns it round where a score is negative, so it is left
    out. Values are 0 or more, in the score's unit times that of the activations. Cost: two forward passes, and for each channel what
    lies above the layer (``params["tail_evaluations"]``): the maps without one channel take the place of the layer's output inside a
    forward pass of the samples themselves. Whether a network bears that is tried on the first samples, whose outputs must come out as
    they are; a network that does not is run as a whole for each channel, within the budget (``params["rerun"]`` says which).

    Attributes
    ----------
    layer : module path; None: the last layer with a map of places before the head (``layer_reason`` says which and why)
    output : the score: "logit" or "probability"
    channels : at most so many channels of each sample, the largest by mean size; None: all, or as many as the budget allows

    References
    ----------
    Desai and Ramaswamy (2020). Ablation-CAM: visual explanations for deep convolutional network via gradient-free localization. doi:10.1109/WACV45572.2020.9093360
    """

    layer: str | None = None
    output: Quantity = "logit"
    channels: int | None = None

    name: ClassVar[str] = "ablation_cam"
    signed: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    complete: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    needs_space: ClassVar[bool] = True

    def __call__(self, model: Model, inputs: Inputs, targets: Targets, run: Run) -> Attribution:
        require_space(self.name, inputs)
        x, n = inputs.tensor, len(inputs)
        caveats: list[str] = []
        with evaluating(model, batch_size=run.batch_size) as evaluator, torch.no_grad():
            site = self._site(model, evaluator, x)
            rerun, why = _rerun(evaluator, site, x[:2])
            width = site.width
            most = width if self.channels is None else min(self.channels, width)
            if rerun is None:
                if run.most() < 4:
                    raise ConfigError(
                        f"ablation_cam needs at least 4 model evaluations here ({why}), and the budget is {run.most()}: raise it"
                    )
                if most > run.most() - 3:
                    most = run.most() - 3
                    caveats.append(f"{most} of {width} channels were tried, the largest; raise the budget for more")
            coarse = _maps(evaluator, site, x, targets, self.output, most, rerun)
            notes = sorted(evaluator.notes)
            budget = -(-evaluator.evaluations // max(n, 1))
        return attribution(
            self.name, site.choice, coarse, inputs, targets, run, budget=budget, caveats=[*caveats, *notes],
            params={
                **settings_of(self), "channels": most, "of_channels": width, "tail_evaluations": 0 if rerun is None else most,
                "rerun": rerun or f"whole forward passes: {why}",
            },
        )  # fmt: skip

    def _site(self, model: Model, evaluator: Evaluator, x: torch.Tensor) -> _Site:
        """The layer, how often it runs, and the outputs of the first samples."""
        choice = None
        if self.layer is None:
            choice = choose(survey(model, evaluator, evaluator.prepare(x[:1]), method=self.name))
        name = self.layer if choice is None else choice.name
        assert name is not None
        layer = named_layer(evaluator.net, name)
        given: list[torch.Tensor] = []

        def look(module: nn.Module, args: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None:
                given.append(tensor.clone())

        handle = layer.register_forward_hook(look)
        try:
            logits = evaluator.read(evaluator.prepare(x[:2]))[1].logits
        finally:
            handle.remove()
        grid = read_grid(name, {name: given[-1]} if given else {}, (int(x.shape[-2]), int(x.shape[-1])), len(x[:2]), self.name)
        if choice is None:
            choice = Choice(name, grid, f"asked for ({grid})")
        return _Site(choice, layer, choice.grid, len(given), int(grid.maps(given[-1]).shape[1]), given[-1][0].numel(), logits)


class _Site(NamedTuple):
    """Where channels are taken out.

    Attributes
    ----------
    calls : how often the layer runs in one pass; its last use counts
    width, numbers : channels, and numbers in one sample's output
    logits : of the first samples, as they are
    """

    choice: Choice
    layer: nn.Module
    grid: Grid
    calls: int
    width: int
    numbers: int
    logits: torch.Tensor


def _rerun(evaluator: Evaluator, site: _Site, x: torch.Tensor) -> tuple[str | None, str]:
    """How what lies above the layer can be run for more rows than went in, None where it cannot; and why not."""
    why = ""
    size = float(site.logits.abs().max())
    close = (1e-4 if site.logits.dtype == torch.float64 or evaluator.dtype in (None, torch.float32, torch.float64) else 2e-2) * max(
        size, 1e-6
    )
    for number, name in ((2, _SEVERAL), (1, _ONE)):
        if len(x) < number:
            continue
        rows = torch.arange(number, device=evaluator.device).repeat_interleave(3)
        try:
            logits = _run(evaluator, site, x[:number], rows, None, "logit").logits
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # shapes that no longer fit: the network looks past the layer for the number of rows
            why = f"the network does not bear other rows above the layer ({str(error).splitlines()[0][:120]})"
            continue
        if logits.shape == (len(rows), site.logits.shape[1]) and bool(((logits - site.logits[rows]).abs() <= close).all()):
            return name, ""
        why = "repeated rows above the layer do not give the same outputs"
    return None, why


class _Scores(NamedTuple):
    """Of rows of a layer's output: what is explained (R, C), logits (R, C); and that output as maps (B, C, h, w)."""

    scores: torch.Tensor
    logits: torch.Tensor
    maps: torch.Tensor


def _run(
    evaluator: Evaluator, site: _Site, x: torch.Tensor, rows: torch.Tensor | None, without: torch.Tensor | None, quantity: Quantity
) -> _Scores:
    """One forward pass in which the layer gives ``rows`` (R,) of its output (None: as it is), each without one channel (R,) (None: with all)."""
    calls = 0
    kept: list[torch.Tensor] = []

    def replace(module: nn.Module, args: Any, output: Any) -> Any:
        nonlocal calls
        tensor = first_tensor(output)
        if tensor is None:
            return None
        calls += 1
        if calls < site.calls:
            return None
        kept.append(full_precision(site.grid.maps(tensor)).cpu().clone() if without is None else tensor[:0])  # before a step in place
        if rows is None:
            return None
        onward = tensor[rows]
        if without is not None:
            site.grid.maps(onward)[torch.arange(len(rows), device=rows.device), without] = 0  # a view of it
        return with_first(output, onward)

    handle = site.layer.register_forward_hook(replace)
    try:
        scores, reading = evaluator.read(evaluator.prepare(x), ("logit", quantity))
    finally:
        handle.remove()
    return _Scores(scores[quantity], reading.logits, kept[-1])


def _maps(
    evaluator: Evaluator, site: _Site, x: torch.Tensor, targets: Targets, quantity: Quantity, most: int, rerun: str | None
) -> torch.Tensor:
    """(N, h, w) maps of all samples."""
    n = len(x)

    def plain(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        found = _run(evaluator, site, x[rows], None, None, quantity)
        return targets[rows].pick(found.scores).double().cpu(), found.maps

    parts = evaluator.each_batch(n, plain)
    full, activation = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    order = activation.abs().mean(dim=(2, 3)).argsort(dim=1, descending=True, stable=True)[:, :most]

    def ablated(sample: NDArray[np.int64], channel: torch.Tensor) -> torch.Tensor:
        own, rows = np.unique(sample, return_inverse=True)
        if rerun is None:
            own, rows = sample, np.arange(len(sample))
        found = _run(
            evaluator, site, x[torch.as_tensor(own, device=x.device)], torch.as_tensor(rows, device=evaluator.device),
            channel.to(evaluator.device), quantity,
        )  # fmt: skip
        return targets[sample].pick(found.scores).double().cpu()

    samples, channels = np.repeat(np.arange(n), most), order.reshape(-1)
    if rerun is not None:
        rows = max(1, _TAIL_FLOATS // site.numbers)
        evaluator.batch_size = min(rows // most, evaluator.batch_size) * most if rows >= most else rows
    if rerun == _ONE:
        scores = [
            part
            for i in range(n)
            for part in evaluator.each_batch(most, lambda rows, i=i: ablated(np.full(len(order[i, rows]), i), order[i, rows]))  # type: ignore[misc]
        ]
    else:
        scores = evaluator.each_batch(n * most, lambda rows: ablated(samples[rows], channels[rows]))
    fall = full[:, None] - torch.cat(scores).reshape(n, most)
    used = torch.gather(activation, 1, order[:, :, None, None].expand(-1, -1, *activation.shape[2:]))
    return torch.einsum("nk,nkhw->nhw", fall.to(used.dtype), used).relu().float()
