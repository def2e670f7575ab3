"""Integrated gradients: the gradient, averaged on the straight way from a baseline to the input, times the difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.attribution.base import Attribution, Inputs, Run, Targets
from tl_audit.attribution.evaluation import Quantity, evaluating
from tl_audit.attribution.gradients import Site, add_by_sample, groups, site_of, wide
from tl_audit.attribution.maps import blank_maps, without_nonfinite
from tl_audit.attribution.quadrature import Rule, fixed_rule, nested_rule
from tl_audit.attribution.reference import baseline_of
from tl_audit.errors import ConfigError
from tl_audit.models.model import Model

# Differences of outputs below this many units of rounding of the outputs are not chased.
_ROUNDING = 4.0


@dataclass(frozen=True)
class IntegratedGradients:
    """Signed values in units of the output (the logit, unless ``output`` says otherwise) that add up to f(x) - f(baseline); what is left over is ``completeness``.

    The nodes on the way are those of Patterson's nested rules: 7, then 15, 31, 63, 127 (as many as the budget allows), every node used again by
    the next rule. A sample is done as soon as its residual is within ``tolerance``; the nodes of all samples share full batches. A node is one
    forward and one backward pass, two model evaluations; both ends cost one each.

    Attributes
    ----------
    steps : exactly so many Gauss-Legendre nodes for every sample; None: nested rules until the residual is small enough
    tolerance : largest residual, as a share of |f(x) - f(baseline)|, at which a sample is done
    baseline : the input that stands for "nothing there" (one, or one per sample); None: that of the kind of data
    output : what is explained: "logit" or "probability"
    layer : module path: the output of this layer is explained instead of the input, on the way from its value at the baseline to its value at
        the input, all else being as at the input. Places are enlarged to the input, units are parts of their own

    References
    ----------
    Sundararajan et al. (2017). Axiomatic attribution for deep networks. arXiv:1703.01365
    """

    steps: int | None = None
    tolerance: float = 0.01
    baseline: torch.Tensor | None = None
    output: Quantity = "logit"
    layer: str | None = None

    name: ClassVar[str] = "integrated_gradients"
    signed: ClassVar[bool] = True
    stochastic: ClassVar[bool] = False
    complete: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = True
    needs_space: ClassVar[bool] = False

    def __call__(self, model: Model, inputs: Inputs, targets: Targets, run: Run) -> Attribution:
        rule = self._rule(run)
        baseline = baseline_of(inputs, self.baseline)
        n = len(inputs)
        with evaluating(model, batch_size=run.batch_size) as evaluator:
            site = site_of(evaluator, inputs, self.layer)
            started = evaluator.evaluations
            parts = []
            numbers = (inputs.tensor[:1].numel() if self.layer is None else site.units) * rule.weights.shape[1]
            for group in groups(n, numbers):
                parts.append(self._group(site, rule, inputs, baseline, group, targets[group]))
            spent, notes = evaluator.evaluations - started, sorted(evaluator.notes)
        left, nodes, met = (np.concatenate([p[k] for p in parts]) for k in (1, 2, 3))
        elements, players, shown = site.shown(
            torch.cat([p[0] for p in parts]), inputs, torch.cat([p[4] for p in parts]) if self.layer else None
        )
        elements = without_nonfinite(elements)
        if self.steps is None and not met.all():
            notes.append(
                f"{int((~met).sum())} of {n} sample(s) keep a residual above {self.tolerance:g} of the change after {rule.ends[-1]} steps: raise the budget"
            )
        return Attribution(
            values=elements, player_values=players, targets=targets.index, against=targets.against, method=self.name, inputs=shown, signed=True, seed=run.seed,
            layer=self.layer, layer_reason=site.reason, budget=round(spent / max(n, 1)), completeness=left, blank=blank_maps(elements),
            params={
                "steps": int(nodes.max(initial=0)), "mean_steps": round(float(nodes.mean()), 1) if n else 0.0, "quadrature": rule.name,
                "baseline": "given" if self.baseline is not None else "kind of data", "output": self.output,
                **({} if self.steps is not None else {"tolerance": self.tolerance}), **({} if self.layer is None else {"layer": self.layer}),
            },
            caveats=tuple(notes),
        )  # fmt: skip

    def _rule(self, run: Run) -> Rule:
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"integrated_gradients needs at least one step, not {self.steps}")
        if not 0 < self.tolerance < 1:
            raise ConfigError(f"tolerance is {self.tolerance}: expected a share of the change of the output, above 0 and below 1")
        if self.steps is not None:
            return fixed_rule(self.steps)
        ends = 2 if self.layer is None else 3
        most = (run.most() - ends) // 2
        if most < 1:
            raise ConfigError(f"integrated_gradients needs a budget of at least {ends + 2} model evaluations, not {run.most()}")
        return nested_rule(most)

    def _group(
        self, site: Site, rule: Rule, inputs: Inputs, baseline: torch.Tensor, group: slice, targets: Targets
    ) -> tuple[torch.Tensor, NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_], torch.Tensor]:
        """Values per place, residuals, nodes used, whether the tolerance was met, and the values at the site, of some samples."""
        evaluator = site.evaluator
        x, start = evaluator.prepare(inputs.tensor[group]), evaluator.prepare(baseline[group])
        n = len(x)
        begin, end, change, rounding = self._ends(site, x, start, targets)
        shape = site.maps(end[:1], inputs).shape[1:]
        sums = torch.zeros((rule.weights.shape[1], n, shape.numel()), device=x.device, dtype=wide(end.dtype))
        last = np.zeros(n, dtype=np.int64)
        left = np.full(n, np.nan)
        met = np.zeros(n, dtype=bool)
        active, done = np.arange(n), 0
        for level, known in enumerate(rule.ends):
            self._nodes(site, rule, inputs, group, targets, x, begin, end, sums, active, slice(done, known))
            done = known
            at = torch.as_tensor(active, device=x.device)
            left[active] = sums[level][at].double().sum(dim=1).cpu().numpy() - change[active]
            last[active] = level
            enough = np.abs(left[active]) <= np.maximum(self.tolerance * np.abs(change[active]), rounding[active])
            met[active] = enough
            active = active[~enough & np.isfinite(left[active])]  # more steps do not mend an output that is not finite
            if not len(active):
                break
        values = sums[torch.as_tensor(last, device=x.device), torch.arange(n, device=x.device)]
        return values.reshape(n, *shape).cpu(), left, np.array(rule.ends)[last], met, end if self.layer is not None else end[:0]

    def _ends(
        self, site: Site, x: torch.Tensor, start: torch.Tensor, targets: Targets
    ) -> tuple[torch.Tensor, torch.Tensor, NDArray[np.float64], NDArray[np.float64]]:
        """Values at the site at both ends of the way, the change of the output between them, and how much of it may be rounding."""
        evaluator, n = site.evaluator, len(x)
        if site.layer is None:
            begin, end, rows = start, x, torch.cat([x, start])
            both = targets[np.tile(np.arange(n), 2)]
            scores = torch.cat(evaluator.each_batch(2 * n, lambda r: site.read(rows[r], both[r], self.output)[1])).cpu().numpy()
        else:
            begin = torch.cat(evaluator.each_batch(n, lambda r: site.read(start[r], targets[r], self.output)[0]))
            ends = evaluator.each_batch(n, lambda r: site.read(x[r], targets[r], self.output))
            lower = evaluator.each_batch(n, lambda r: site.read(x[r], targets[r], self.output, at=begin[r])[1])
            end = torch.cat([values for values, _ in ends])
            scores = torch.cat([*(found for _, found in ends), *lower]).cpu().numpy()
        kind = evaluator.dtype if evaluator.dtype is not None else x.dtype
        size = np.maximum(np.abs(scores[:n]), np.abs(scores[n:]))
        return begin, end, scores[:n] - scores[n:], _ROUNDING * torch.finfo(kind).eps * size

    def _nodes(
        self,
        site: Site,
        rule: Rule,
        inputs: Inputs,
        group: slice,
        targets: Targets,
        x: torch.Tensor,
        begin: torch.Tensor,
        end: torch.Tensor,
        sums: torch.Tensor,
        active: NDArray[np.int64],
        new: slice,
    ) -> None:
        """Adds the new nodes of the active samples to the sums of all levels that use them."""
        device = x.device
        count = new.stop - new.start
        sample, node = np.repeat(active, count), np.tile(np.arange(new.start, new.stop), len(active))
        weights = torch.as_tensor(rule.weights, dtype=torch.float64)
        at = torch.as_tensor(rule.at, device=device, dtype=begin.dtype)

        def batch(rows: slice) -> None:
            who = torch.as_tensor(sample[rows], device=device)
            low, high = begin[who], end[who]
            way = torch.lerp(low, high, at[torch.as_tensor(node[rows], device=device)].reshape(-1, *[1] * (begin.ndim - 1)))
            _, _, slope = site.slopes(way if site.layer is None else x[who], targets[sample[rows]], self.output, at=way)
            found = site.maps(slope.to(sums.dtype) * (high - low).to(sums.dtype), inputs).flatten(1)
            add_by_sample(sums, found, sample[rows], weights[node[rows]])

        site.evaluator.each_batch(len(sample), batch)
