"""DeepLIFT: the change of the output, passed back through the change of every part of the network."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import nn

from tl_audit.attribution.base import Attribution, Inputs, Run, Targets
from tl_audit.attribution.evaluation import Quantity, as_quantity, evaluating, gradient, lost_where
from tl_audit.attribution.gradients import FloatArray, Site, site_of, wide
from tl_audit.attribution.maps import blank_maps, without_nonfinite
from tl_audit.attribution.reference import baseline_of
from tl_audit.attribution.rescale import Rescaling
from tl_audit.errors import ConfigError, ModelError
from tl_audit.models.model import Model
from tl_audit.models.outputs import read_outputs
from tl_audit.records.values import Output

Engine = Literal["operations", "captum"]
ENGINES: tuple[Engine, ...] = ("operations", "captum")


@dataclass(frozen=True)
class DeepLift:
    """Signed values in units of the output that add up to f(x) - f(baseline) where every operation has a rule; what is left over is ``completeness``.

    The rescale rule: each operation that is not linear passes back the slope of its secant between baseline and input. Rules act on operations
    as they run, in functions and in place as well as in modules; norms, products and attention are covered. Operations without a rule are named
    in a caveat. Costs two forward passes and one backward pass: three model evaluations.

    Attributes
    ----------
    baseline : the input that stands for "nothing there" (one, or one per sample); None: that of the kind of data
    output : what is explained: "logit" or "probability"
    layer : module path: the output of this layer is explained instead of the input. Places are enlarged to the input, units are parts of their own
    engine : "operations", or "captum": the rules of that package, which know modules alone, on a copy whose in-place steps are off. Silently wrong
        where a network uses functions, norms over features, or activations it has no rule for: ``completeness`` shows it

    References
    ----------
    Shrikumar et al. (2017). Learning important features through propagating activation differences. arXiv:1704.02685
    """

    baseline: torch.Tensor | None = None
    output: Quantity = "logit"
    layer: str | None = None
    engine: Engine = "operations"

    name: ClassVar[str] = "deep_lift"
    signed: ClassVar[bool] = True
    stochastic: ClassVar[bool] = False
    complete: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = True
    needs_space: ClassVar[bool] = False

    def __call__(self, model: Model, inputs: Inputs, targets: Targets, run: Run) -> Attribution:
        baseline = baseline_of(inputs, self.baseline)
        n = len(inputs)
        with evaluating(model, batch_size=run.batch_size) as evaluator:
            site = site_of(evaluator, inputs, self.layer)
            started = evaluator.evaluations
            rule = engine_of(self.engine, site, model, self.output)

            def batch(rows: slice) -> tuple[torch.Tensor, FloatArray, torch.Tensor]:
                found, change, values = rule(evaluator.prepare(inputs.tensor[rows]), evaluator.prepare(baseline[rows]), targets[rows])
                return site.maps(found, inputs).cpu(), change, values if site.layer is not None else values[:0]

            done = evaluator.each_batch(n, batch)
            spent, notes = evaluator.evaluations - started, sorted(evaluator.notes)
        maps = torch.cat([m for m, _, _ in done])
        elements, players, shown = site.shown(maps, inputs, torch.cat([v for _, _, v in done]))
        elements = without_nonfinite(elements)
        left = maps.double().flatten(1).sum(dim=1).numpy() - np.concatenate([c for _, c, _ in done])
        return Attribution(
            values=elements, player_values=players, targets=targets.index, against=targets.against, method=self.name, inputs=shown, signed=True, seed=run.seed,
            layer=self.layer, layer_reason=site.reason, budget=round(spent / max(n, 1)), completeness=left, blank=blank_maps(elements),
            params={
                "rule": "rescale", "engine": self.engine, "baseline": "given" if self.baseline is not None else "kind of data", "output": self.output,
                **({} if self.layer is None else {"layer": self.layer}),
            },
            caveats=(*notes, *rule.caveats()),
        )  # fmt: skip


class ByOperations:
    """The rescale rule on operations, for prepared rows beside their references."""

    def __init__(self, site: Site, quantity: Quantity) -> None:
        self.site, self.quantity = site, quantity
        self.rules = Rescaling()

    def __call__(self, x: torch.Tensor, start: torch.Tensor, targets: Targets) -> tuple[torch.Tensor, FloatArray, torch.Tensor]:
        """(R, ...) contributions, (R,) changes of the output, and the values at the site for ``x``."""
        with torch.enable_grad():
            with self.rules.recording():
                below, low = self.site.scored(start, targets, self.quantity)
            with self.rules.rescaling():
                above, high = self.site.scored(x, targets, self.quantity)
            slope = lost_where(gradient(above, high), above - below)
        self.site.evaluator.evaluations += len(x)
        change = above.detach().double() - below.detach().double()
        kind = wide(slope.dtype)
        return slope.to(kind) * (high.detach().to(kind) - low.detach().to(kind)), change.cpu().numpy(), high.detach()

    def caveats(self) -> tuple[str, ...]:
        if not self.rules.uncovered:
            return ()
        listed = ", ".join(sorted(self.rules.uncovered))
        return (f"no rescale rule covers {listed}: the residual is what these leave over",)


class ByModules:
    """captum's rules on a copy of the network whose in-place steps are off."""

    def __init__(self, site: Site, model: Model, quantity: Quantity) -> None:
        if site.layer is not None:
            raise ConfigError('engine "captum" explains inputs: leave layer out, or use engine "operations"')
        from captum.attr import DeepLift as Captum

        self.evaluator, self.quantity = site.evaluator, quantity
        twin = copy.deepcopy(site.evaluator.net)
        for module in twin.modules():
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]  # a plain attribute of activations
        self.rule = Captum(_Score(twin, model.output, quantity))
        self.unknown = sorted({type(m).__name__ for m in twin.modules() if not list(m.children()) and isinstance(m, _WITHOUT_RULE)})

    def __call__(self, x: torch.Tensor, start: torch.Tensor, targets: Targets) -> tuple[torch.Tensor, FloatArray, torch.Tensor]:
        change = self.evaluator.scores(x, targets, self.quantity) - self.evaluator.scores(start, targets, self.quantity)
        index = torch.as_tensor(targets.index, device=x.device)
        against = None if targets.against is None else torch.as_tensor(targets.against, device=x.device)
        self.evaluator.evaluations += 3 * len(x)
        with torch.enable_grad():
            try:
                found = self.rule.attribute(x.clone(), start.clone(), additional_forward_args=(index, against))
            except (RuntimeError, AssertionError) as error:
                if "required for DeepLift" in str(error) or "detected" in str(error):
                    raise ModelError(
                        f'captum cannot apply DeepLIFT to this model, which uses a module twice or in a way it does not know ({error}): use engine "operations"'
                    ) from error
                raise
        return found.detach().to(wide(found.dtype)), change, x

    def caveats(self) -> tuple[str, ...]:
        said = ["captum's rules know modules alone: functions have none, and the residual is what they leave over"]
        if self.unknown:
            said.append(f"captum has no rule for {', '.join(self.unknown)}")
        return tuple(said)


# Modules that are not linear and that captum's rules pass over.
_WITHOUT_RULE = (
    nn.SiLU, nn.GELU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.ReLU6, nn.SELU, nn.CELU, nn.PReLU, nn.Softsign, nn.LayerNorm, nn.GroupNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LocalResponseNorm, nn.MultiheadAttention,
)  # fmt: skip


class _Score(nn.Module):
    """What is explained of each row, as a module that captum can put its hooks on."""

    def __init__(self, net: nn.Module, output: Output, quantity: Quantity) -> None:
        super().__init__()
        self.net, self.output, self.quantity = net, output, quantity

    def forward(self, x: torch.Tensor, index: torch.Tensor, against: torch.Tensor | None) -> torch.Tensor:
        shown = as_quantity(read_outputs(self.net(x), self.output), self.quantity)
        chosen = shown.gather(1, index[:, None])[:, 0]
        return chosen if against is None else chosen - shown.gather(1, against[:, None])[:, 0]


def engine_of(engine: str, site: Site, model: Model, quantity: Quantity) -> ByOperations | ByModules:
    if engine == "operations":
        return ByOperations(site, quantity)
    if engine == "captum":
        return ByModules(site, model, quantity)
    raise ConfigError(f"engine is {engine!r}: expected one of {', '.join(ENGINES)}")
