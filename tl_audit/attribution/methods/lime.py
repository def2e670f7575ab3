"""LIME: a weighted ridge regression in the neighbourhood of one input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.attribution.base import Attribution, Inputs, Run, Targets
from tl_audit.attribution.convergence import rounds, settled, unsettled
from tl_audit.attribution.evaluation import Quantity, evaluating
from tl_audit.attribution.game import Game
from tl_audit.attribution.maps import finished, from_players
from tl_audit.attribution.neighbours import Neighbours, alike, table_neighbours
from tl_audit.attribution.reference import reference_of
from tl_audit.attribution.surrogate import Fit, selected, weighted_ridge
from tl_audit.errors import ConfigError
from tl_audit.measures.sampling import generator
from tl_audit.modality.base import Neighbourhood
from tl_audit.models.model import Model

FloatArray = NDArray[np.float64]
TABLE_NEIGHBOURS = 5000  # lime's own default; they are shared by all rows
_AT_ONCE = 300_000  # numbers of features held at once: what stays near the processor
_FIRST = 64  # evaluations before the first look at convergence


@dataclass(frozen=True)
class LIME:
    """Signed slopes of a local linear model. Sampling, kernel and surrogate (ridge with alpha 1) are lime's, solved in closed form for all samples at once.

    Named parts with a background (columns): the neighbours of lime's table explainer. They depend on the background alone, so that
    they are drawn and evaluated once for all rows; a row's result does not depend on the other rows. ``discretise`` True: a slope is how
    much the class probability is higher where a column lies in the row's own quartile bin or category. False: how much it
    changes per standard deviation of a numeric column.

    Everything else (superpixels; columns with a baseline or a masking): each part on or off with equal chance, drawn per sample from
    (seed, method, id). A slope is how much the class probability changes when a part is there rather than filled in.

    Attributes
    ----------
    baseline : the input that stands for "nothing there"; None: that of the kind of data
    masking : how removed parts are filled in, instead of a baseline; None: as ``baseline``
    output : "probability" (lime's own) or "logit"
    discretise : of columns with a background: cut numeric columns at the quartiles (lime's default) or not; None: True where it applies
    num_features : how many parts get a slope, selected as lime selects them (up to 6 one after another, above by their weights); None: all
    convergence : stop adding neighbours when the largest 95 % half-width of a sample's slopes is at most this share of their range

    References
    ----------
    Ribeiro et al. (2016). "Why should I trust you?": explaining the predictions of any classifier. arXiv:1602.04938
    """

    baseline: torch.Tensor | None = None
    masking: str | None = None
    output: Quantity = "probability"
    discretise: bool | None = None
    num_features: int | None = None
    convergence: float | None = None

    name: ClassVar[str] = "lime"
    signed: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True
    complete: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    needs_space: ClassVar[bool] = False

    def __call__(self, model: Model, inputs: Inputs, targets: Targets, run: Run) -> Attribution:
        from_background = inputs.background is not None and self.baseline is None and self.masking is None and alike(inputs.players)
        if self.discretise is not None and not from_background:
            raise ConfigError(
                "discretise is about columns with a background and neither baseline nor masking: leave it out, or give background=..."
            )
        budget = run.most(TABLE_NEIGHBOURS) if from_background else run.most()
        if budget < 4:
            raise ConfigError(f"lime needs a budget of at least 4 model evaluations, not {budget}")
        if self.num_features is not None and self.num_features < 1:
            raise ConfigError(f"num_features is {self.num_features}: expected a number of parts, 1 or more")
        if from_background and inputs.background is not None:
            return self._around_a_background(model, inputs, inputs.background, targets, run, budget)
        return self._on_and_off(model, inputs, targets, run, budget)

    # ------------------------------------------------------------ parts on and off

    def _on_and_off(self, model: Model, inputs: Inputs, targets: Targets, run: Run, budget: int) -> Attribution:
        reference = reference_of(inputs, self.baseline, self.masking)
        near = inputs.modality.neighbourhood(inputs.players)
        hoods, draws = [], []
        for i, sample in enumerate(inputs.ids):
            rng = generator(run.seed, self.name, sample)
            hood = rng.integers(0, 2, size=(budget, int(inputs.players.count[i]))).astype(bool)
            hood[0] = True
            hoods.append(hood)
            if reference.shared:
                draws.append(rng.integers(0, len(reference), size=budget))
        values = np.empty((len(hoods), budget))
        fits: dict[int, Fit] = {}
        active = np.arange(len(hoods))
        waiting, done = 0, 0
        with evaluating(model, batch_size=run.batch_size, outputs_only=budget, sample=inputs.tensor[:8]) as evaluator:
            game = Game(evaluator, inputs, targets, reference, memo=run.memo, seed=run.seed)
            for size in rounds(budget, first=_FIRST, convergence=self.convergence):
                now = slice(done, size)
                wanted = set(active.tolist())
                keep = [h[now] if i in wanted else h[:0] for i, h in enumerate(hoods)]
                drawn = [d[now] if i in wanted else d[:0] for i, d in enumerate(draws)] if reference.shared else None
                found = game.values(keep, drawn, self.output)
                for row in active:
                    values[row, now] = found[row]
                fitted = self._fit_parts([hoods[i][:size] for i in active], values[active, :size], near)
                fits.update(zip(active.tolist(), fitted, strict=True))
                active = self._unsettled(active, fits)
                done, waiting = size, len(active)
                if not waiting:
                    break
            spent, notes = evaluator.evaluations, evaluator.notes
        params = {"scheme": "parts on and off", "reference": reference.name, **evaluator.facts}
        return self._result(inputs, targets, run, [fits[i] for i in range(len(hoods))], spent, notes, waiting, params)

    def _fit_parts(self, hoods: list[NDArray[np.bool_]], values: FloatArray, near: Neighbourhood) -> list[Fit]:
        out: list[Fit] = []
        most = max((h.shape[1] for h in hoods), default=0)
        step = max(1, _AT_ONCE // max(1, most * values.shape[1]))
        for start in range(0, len(hoods), step):
            mine = hoods[start : start + step]
            # a sample with fewer parts has zero columns behind: their slopes are zero and move nothing
            features = torch.zeros((len(mine), most, values.shape[1]), dtype=torch.float64)
            for row, hood in enumerate(mine):
                features[row, : hood.shape[1]] = torch.from_numpy(hood.T)
            counts = torch.tensor([h.shape[1] for h in mine], dtype=torch.float64)[:, None]
            weights = part_weights(features, counts, near)
            fit = self._solved(
                features, weights, torch.from_numpy(values[start : start + step]), torch.ones((len(mine), most), dtype=torch.float64)
            )
            out += [_of(fit, row, hood.shape[1]) for row, hood in enumerate(mine)]
        return out

    # ------------------------------------------------------------ neighbours from a background

    def _around_a_background(
        self, model: Model, inputs: Inputs, background: torch.Tensor, targets: Targets, run: Run, budget: int
    ) -> Attribution:
        discretise = self.discretise is not False
        near = table_neighbours(inputs.tensor, background, inputs.players, size=budget - 1, seed=run.seed, discretise=discretise)
        n = len(inputs)
        fits: dict[int, Fit] = {}
        active = np.arange(n)
        waiting, done = 0, 1
        with evaluating(model, batch_size=run.batch_size, outputs_only=budget, sample=inputs.tensor[:8]) as evaluator:
            own = targets.of(evaluator.all_scores(inputs.tensor, self.output))
            tables: list[FloatArray] = []
            device = evaluator.device if evaluator.device.type == "cuda" else torch.device("cpu")
            for size in rounds(budget, first=2 * _FIRST, convergence=self.convergence):
                tables.append(evaluator.all_scores(near.rows[done - 1 : size - 1], self.output))
                table = np.concatenate(tables)
                fitted = self._fit_rows(near, own, table, targets, active, device)
                fits.update(zip(active.tolist(), fitted, strict=True))
                active = self._unsettled(active, fits)
                done, waiting = size, len(active)
                if not waiting:
                    break
            spent, notes = evaluator.evaluations, evaluator.notes
        params = {
            "scheme": "neighbours from the background, " + ("discretised" if discretise else "continuous"),
            "neighbours": done,
            "shared_evaluations": done - 1,
            "sharing": "the neighbours are evaluated once for all samples; the evaluations per sample are one and its share of them",
            **evaluator.facts,
        }
        return self._result(inputs, targets, run, [fits[i] for i in range(n)], spent, notes, waiting, params)

    def _fit_rows(
        self, near: Neighbours, own: FloatArray, table: FloatArray, targets: Targets, rows: NDArray[np.int64], device: torch.device
    ) -> list[Fit]:
        size, d = len(table), near.own_states.shape[1]
        states = torch.from_numpy(near.states[:, :size]).to(device=device, dtype=torch.int32)
        scaled = torch.from_numpy(near.scaled[:, :size]).to(device)
        measured = torch.from_numpy(near.measured).to(device)
        outputs = torch.from_numpy(table).to(device)
        width = 0.75 * np.sqrt(d)
        out: list[Fit] = []
        step = max(1, _AT_ONCE // max(1, d * (size + 1)))
        for start in range(0, len(rows), step):
            mine = rows[start : start + step]
            features = torch.empty((len(mine), d, size + 1), dtype=torch.float64, device=device)
            features[:, :, 0] = 1.0
            features[:, :, 1:] = states[None] == torch.from_numpy(near.own_states[mine]).to(device=device, dtype=torch.int32)[:, :, None]
            if bool(measured.any()):
                features[:, measured, 0] = torch.from_numpy(near.own_scaled[mine]).to(device)[:, measured]
                features[:, measured, 1:] = scaled[measured]
                squares = (features - features[:, :, :1]).square_().sum(dim=1)
            else:
                squares = d - features.sum(dim=1)  # of 0 and 1 beside ones
            values = torch.empty((len(mine), size + 1), dtype=torch.float64, device=device)
            values[:, 0] = torch.from_numpy(own[mine]).to(device)
            values[:, 1:] = outputs[:, torch.from_numpy(targets.index[mine]).to(device)].T
            if targets.against is not None:
                values[:, 1:] -= outputs[:, torch.from_numpy(targets.against[mine]).to(device)].T
            fit = self._solved(features, torch.exp(-squares / (2 * width**2)), values, features[:, :, 0])
            out += [_of(fit, row, d) for row in range(len(mine))]
        return out

    # ------------------------------------------------------------ both

    def _solved(self, features: torch.Tensor, weights: torch.Tensor, values: torch.Tensor, own: torch.Tensor) -> Fit:
        used = None if self.num_features is None else selected(features, weights, values, own, self.num_features)
        return Fit(*(t.cpu() for t in weighted_ridge(features, weights, values, used=used)))

    def _unsettled(self, active: NDArray[np.int64], fits: dict[int, Fit]) -> NDArray[np.int64]:
        if self.convergence is None:
            return active[:0]
        return np.array(
            [i for i in active if not settled(fits[i].slopes.numpy(), fits[i].errors.numpy(), self.convergence)], dtype=np.int64
        )

    def _result(
        self,
        inputs: Inputs,
        targets: Targets,
        run: Run,
        fits: list[Fit],
        spent: int,
        notes: set[str],
        waiting: int,
        params: dict[str, Any],
    ) -> Attribution:
        scores = [float(f.r2) for f in fits if bool(torch.isfinite(f.r2))]
        params |= {
            "output": self.output,
            "ridge_alpha": 1.0,
            "mean_r2": round(float(np.mean(scores)), 6) if scores else None,
            "lowest_r2": round(min(scores), 6) if scores else None,
        }
        if self.num_features is not None:
            params["num_features"] = self.num_features
        caveats = sorted(notes)
        if self.convergence is not None:
            params["convergence"] = self.convergence
            caveats += unsettled(waiting, len(fits))
        return finished(
            self.name, inputs, targets, run, from_players([f.slopes.numpy() for f in fits], inputs.players), signed=True, spent=spent,
            params=params, caveats=caveats, standard_error=tuple(f.errors.numpy() for f in fits),
        )  # fmt: skip


def part_weights(features: torch.Tensor, counts: torch.Tensor, near: Neighbourhood) -> torch.Tensor:
    """(n, R) kernel weights of 0/1 rows of parts (n, d, R) by their distance to the row of ones; ``counts`` (n, 1) parts of each sample."""
    on = features.sum(dim=1)
    if near.distance == "cosine":  # of a row of zeros: 1
        return torch.exp(-((1.0 - (on / counts).sqrt()) ** 2) / (2 * near.width**2))
    return torch.exp(-(counts - on) / (2 * near.width**2 * counts))


def _of(fit: Fit, row: int, d: int) -> Fit:
    """The fit of one sample with d parts."""
    return Fit(fit.slopes[row, :d], fit.errors[row, :d], fit.intercept[row], fit.r2[row])
