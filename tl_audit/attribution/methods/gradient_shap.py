"""Gradient SHAP (expected gradients): integrated gradients, averaged over a background, by drawing rows and places on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from tl_audit.attribution.base import Attribution, Inputs, Run, Targets
from tl_audit.attribution.evaluation import Evaluator, Quantity, evaluating
from tl_audit.attribution.gradients import FloatArray, IntArray, Noise, Site, means_over_draws, ranges, wide
from tl_audit.attribution.maps import blank_maps, from_elements, without_nonfinite
from tl_audit.attribution.reference import Reference, baseline_of, drawn_background
from tl_audit.errors import ConfigError
from tl_audit.measures.sampling import generator
from tl_audit.models.model import Model

_STRATA = 8
_FIRST = 4 * _STRATA
_ROUNDING = 1e-5
"""Differences below this share of what they are taken of are rounding: nothing may be regressed on them."""
_FEWEST_OWN = 8
"""Noisy copies of the baseline that stand for a background where there is none; as many as a ninth of the budget, so that each has about
four draws: with 8 for any budget more of it did not bring the values nearer (256: half the error that there was stood in the standard error, 800: a quarter)."""
_MOST_OWN_TO_CONVERGE = 32
"""Where draws may end early: all of them are paid for at the start."""


@dataclass(frozen=True)
class GradientSHAP:
    """Mean of (x - b) * d output / d input at b + alpha (x - b), over rows b of a background and alpha in [0, 1]: signed, in units of the output.

    Rows of the background come in turn, alpha once in each of 8 equal strata, and spread out again over the turns of one row; both are drawn from
    (seed, method, sample id).
    What a draw's values sum to is known but for chance (f(x) - f(b)), so the mean is corrected by regression on that difference; the correction
    lowers the error and leaves hardly anything to ``completeness``, so that the standard errors say how exact the values are. They come from the means of
    blocks of 8 draws, and are two to three times too large where every row of the background has several turns.
    A draw is one forward and one backward pass, two model evaluations; each sample and each row of the background costs one more.

    Attributes
    ----------
    baseline : the input that stands for "nothing there", instead of a background (one, or one per sample)
    noise : without a background, its rows are copies of the baseline (8, or a ninth of the budget) with Gaussian noise of this share of the range of the sample's numbers
    output : what is explained: "logit" or "probability"
    convergence : stop when the largest 95 % half-width of a sample's values is at most this share of their range; None: spend the budget

    References
    ----------
    Erion et al. (2021). Improving performance of deep learning models with axiomatic attribution priors and expected gradients. arXiv:1906.10670
    Lundberg and Lee (2017). A unified approach to interpreting model predictions. arXiv:1705.07874
    """

    baseline: torch.Tensor | None = None
    noise: float = 0.05
    output: Quantity = "logit"
    convergence: float | None = None

    name: ClassVar[str] = "gradient_shap"
    signed: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True
    complete: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = True
    needs_space: ClassVar[bool] = False

    def __call__(self, model: Model, inputs: Inputs, targets: Targets, run: Run) -> Attribution:
        budget, n = run.most(), len(inputs)
        if budget < 6:
            raise ConfigError(f"gradient_shap needs a budget of at least 6 model evaluations, not {budget}")
        if not self.noise >= 0:
            raise ConfigError(f"noise is {self.noise}: expected a share of the range of the sample's numbers, 0 or more")
        shared, note = self._background(inputs, budget, run)
        rows = self._copies(budget) if shared is None else len(shared)
        draws = (budget - 1 - rows) // 2
        block = max(1, min(_STRATA, draws // 4))
        draws -= draws % block
        alpha, row = self._plan(inputs, run.seed, rows, draws, block)
        kind = wide(inputs.tensor.dtype)
        with evaluating(model, batch_size=run.batch_size) as evaluator:
            site = Site(evaluator)
            x = inputs.tensor.detach().to(evaluator.device, kind)
            background = self._rows(evaluator, inputs, shared, run.seed)
            gaps = evaluator.scores(inputs.tensor, targets, self.output)[:, None] - self._below(
                evaluator, inputs, targets, background, shared, rows
            )

            def contributions(samples: IntArray, which: IntArray) -> tuple[torch.Tensor, FloatArray]:
                high, low = x[torch.as_tensor(samples, device=x.device)], background(samples, row[samples, which])
                at = torch.as_tensor(alpha[samples, which], device=x.device, dtype=kind).reshape(-1, *[1] * (x.ndim - 1))
                _, _, slope = site.slopes(evaluator.prepare(torch.lerp(low, high, at)), targets[samples], self.output)
                found = site.maps(slope.to(kind) * (high - low), inputs).flatten(1)
                total, gap = found.double().sum(dim=1).cpu().numpy(), gaps[samples, row[samples, which]]
                size = found.double().abs().sum(dim=1).cpu().numpy() + np.abs(gap)
                return found, np.where(np.abs(total - gap) > _ROUNDING * size, total - gap, 0.0)

            found = means_over_draws(evaluator, inputs, contributions, draws=draws, block=block, first=_FIRST, convergence=self.convergence)
            spent, notes = evaluator.evaluations, sorted(evaluator.notes)
        elements, players = from_elements(found.maps.reshape(inputs.players.assignment.shape), inputs.players)
        elements = without_nonfinite(elements)
        change = np.array([gaps[i, row[i, : found.used[i]]].mean() for i in range(n)])
        if note is not None:
            notes.append(note)
        return Attribution(
            values=elements, player_values=players, targets=targets.index, against=targets.against, method=self.name, inputs=inputs, signed=True, seed=run.seed,
            budget=round(spent / max(1, n)), completeness=np.array([p.sum() for p in players]) - change, blank=blank_maps(elements),
            standard_error=found.errors,
            params={
                "draws": int(found.used.max(initial=0)), "rows": rows, "output": self.output,
                "reference": f"{rows} noisy copies of the baseline" if shared is None else "rows of the background" if self.baseline is None else "given baseline",
                **({"noise": self.noise} if shared is None else {}), **({} if self.convergence is None else {"convergence": self.convergence}),
            },
            caveats=(*notes, *found.caveats()),
        )  # fmt: skip

    def _copies(self, budget: int) -> int:
        """Noisy copies of the baseline; an even number where it can be, since they come in opposite pairs."""
        most = (budget - 1) // 9 if self.convergence is None else min((budget - 1) // 9, _MOST_OWN_TO_CONVERGE)
        return max(min(_FEWEST_OWN, (budget - 1) // 3), most // 2 * 2)

    def _background(self, inputs: Inputs, budget: int, run: Run) -> tuple[torch.Tensor | None, str | None]:
        """Rows that all samples share, at most a third of the budget, or None."""
        if self.baseline is not None or inputs.background is None:
            return None, None
        found, note = drawn_background(
            Reference("drawn", inputs.background.detach().cpu(), "rows of the background"),
            most=(budget - 1) // 3,
            seed=run.seed,
            method=self.name,
        )
        return found.rows, note

    def _plan(self, inputs: Inputs, seed: int, rows: int, draws: int, block: int) -> tuple[FloatArray, IntArray]:
        """(N, draws) places on the way and rows of the background."""
        alpha, row = np.empty((len(inputs), draws)), np.empty((len(inputs), draws), dtype=np.int64)
        turn, place = np.divmod(np.arange(draws), rows)
        further = _halvings(turn)
        for i, sample in enumerate(inputs.ids):
            rng = generator(seed, self.name, sample)
            strata = rng.permuted(np.tile(np.arange(block), (-(-rows // block), 1)), axis=1).reshape(-1)[:rows]
            first = (strata + rng.uniform(size=rows)) / block
            # at its next turns a row is asked half a way further, then a quarter: its own places are spread out as well
            alpha[i] = (first[place] + further) % 1.0
            row[i] = rng.permutation(rows)[place]
        return alpha, row

    def _rows(
        self, evaluator: Evaluator, inputs: Inputs, shared: torch.Tensor | None, seed: int
    ) -> Callable[[IntArray, IntArray], torch.Tensor]:
        """(samples, row numbers) -> rows of the background: those shared by all, or a sample's own noisy baselines."""
        kind = wide(inputs.tensor.dtype)
        if shared is not None:
            all_rows = shared.to(evaluator.device, kind)
            return lambda samples, rows: all_rows[torch.as_tensor(rows, device=all_rows.device)]
        noise = Noise(seed, self.name, inputs.ids, inputs.tensor.shape[1:], evaluator.device, kind)
        baseline = baseline_of(inputs, self.baseline).to(evaluator.device, kind)
        scale = self.noise * ranges(inputs.tensor.detach().to(evaluator.device, kind))

        def noisy(samples: IntArray, rows: IntArray) -> torch.Tensor:
            own = torch.as_tensor(samples, device=baseline.device)
            return baseline[own] + scale[own] * noise.rows(samples, rows)

        return noisy

    def _below(
        self,
        evaluator: Evaluator,
        inputs: Inputs,
        targets: Targets,
        background: Callable[[IntArray, IntArray], torch.Tensor],
        shared: torch.Tensor | None,
        rows: int,
    ) -> FloatArray:
        """(N, rows) what is explained at each row of each sample's background."""
        n = len(inputs)
        if shared is not None:
            table = evaluator.all_scores(shared, self.output)
            return np.stack([targets[np.full(rows, i)].of(table) for i in range(n)])
        sample, row = np.repeat(np.arange(n), rows), np.tile(np.arange(rows), n)

        def batch(at: slice) -> FloatArray:
            with torch.no_grad():
                scores = evaluator.score(evaluator.prepare(background(sample[at], row[at])), targets[sample[at]], self.output)
            return np.asarray(scores.double().cpu().numpy())

        return np.concatenate(evaluator.each_batch(len(sample), batch)).reshape(n, rows)


def _halvings(turn: IntArray) -> FloatArray:
    """0, 1/2, 1/4, 3/4, 1/8, ...: each number's binary digits behind the point, in reverse."""
    digits = (turn[:, None] >> np.arange(16)) & 1
    return np.asarray(digits @ 0.5 ** np.arange(1, 17), dtype=np.float64)
