"""Partition SHAP: Owen values of input parts over a tree of parts that belong together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.attribution.base import Attribution, Inputs, Run, Targets
from tl_audit.attribution.evaluation import Quantity, evaluating
from tl_audit.attribution.game import Game
from tl_audit.attribution.hierarchy import members, tree_of
from tl_audit.attribution.reference import drawn_background, reference_of
from tl_audit.attribution.shapley import BACKGROUND_OF, assembled, ends
from tl_audit.errors import ConfigError
from tl_audit.models.model import Model

FloatArray = NDArray[np.float64]
_ROWS = 8  # of a background: every split is evaluated against each of them
_AT_A_TIME = 8  # splits of one sample between two looks at what is most worth splitting; fixed, so that batches do not matter


class _Open(NamedTuple):
    """Gains of clusters that may still be shared out among their two halves; one row for each (sample, cluster, those who are there).

    Attributes
    ----------
    sample, cluster : (F,)
    context : (F, most parts) bool, who is there before the cluster arrives
    without, joined : (F,) score of that context, and with the cluster
    weight : (F,) share of the orders of arrival in which it is so
    """

    sample: NDArray[np.int64]
    cluster: NDArray[np.int64]
    context: NDArray[np.bool_]
    without: FloatArray
    joined: FloatArray
    weight: FloatArray

    def at(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> _Open:
        return _Open(self.sample[rows], self.cluster[rows], self.context[rows], self.without[rows], self.joined[rows], self.weight[rows])


@dataclass(frozen=True)
class PartitionSHAP:
    """Signed values in units of the output that add up to f(x) - f(reference). Not random.

    Owen values: the gain of a group is shared between its two halves as between two players, and so on down the tree, so that parts
    that belong together come and go together (``attribution.hierarchy``: superpixels that touch and look alike, columns that correlate).
    The algorithm is that of the shap package's PartitionExplainer: the groups with the largest gains are split first, two evaluations each, until
    the budget is spent; what a group holds then is shared evenly over its parts, and said. It is written anew so that samples share
    batches, which the package cannot do. All splits of a tree cost about d² evaluations where it is balanced. On columns every
    evaluation is the mean over at most 8 rows of the background, each of them counted.

    Attributes
    ----------
    baseline : the input that stands for "nothing there"; None: the background, or that of the kind of data
    masking : how removed parts are filled in, instead of a baseline; None: as ``baseline``
    output : what is explained: "logit" or "probability"
    tree : clusters joined step by step, as in the first two columns of scipy's linkage matrices, for all samples; None: made for each sample

    References
    ----------
    Owen (1977). Values of games with a priori unions. doi:10.1007/978-3-642-45494-3_7
    Lundberg and Lee (2017). A unified approach to interpreting model predictions. arXiv:1705.07874
    """

    baseline: torch.Tensor | None = None
    masking: str | None = None
    output: Quantity = "logit"
    tree: tuple[tuple[int, int], ...] | None = None

    name: ClassVar[str] = "partition_shap"
    signed: ClassVar[bool] = True
    stochastic: ClassVar[bool] = False
    complete: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = False
    needs_space: ClassVar[bool] = False

    def __call__(self, model: Model, inputs: Inputs, targets: Targets, run: Run) -> Attribution:
        counts, n = inputs.players.count, len(inputs)
        budget = run.most()
        if budget < 4:
            raise ConfigError(f"partition_shap needs a budget of at least 4 model evaluations, not {budget}")
        # the same few rows for every evaluation, so that its differences are no differences of rows
        reference, note = drawn_background(
            reference_of(inputs, self.baseline, self.masking), most=min(_ROWS, (budget - 1) // 3), seed=run.seed, method=BACKGROUND_OF
        )
        caveats = [] if note is None else [note]
        rows = len(reference) if reference.shared else 1
        trees = [self._tree(inputs, i) for i in range(n)]
        inside = [members(t) for t in trees]
        most = int(counts.max(initial=1))
        values = [np.zeros(int(d)) for d in counts]
        left = np.full(n, (budget - 1 - rows) // (2 * rows))  # splits
        with evaluating(model, batch_size=run.batch_size, outputs_only=budget, sample=inputs.tensor[:8]) as evaluator:
            game = Game(evaluator, inputs, targets, reference, memo=run.memo, seed=run.seed)
            found = ends(game, evaluator, targets, self.output)
            open_ = _Open(
                np.arange(n), 2 * counts - 2, np.zeros((n, most), dtype=bool), found.empty.copy(), found.full.copy(), np.ones(n)
            ).at(counts > 0)  # fmt: skip
            while True:
                single = open_.cluster < counts[open_.sample]
                for i, part, gain in zip(open_.sample[single], open_.cluster[single], _gain(open_)[single], strict=True):
                    values[i][part] += gain
                open_ = open_.at(~single)
                chosen = _worth_most(open_, np.minimum(left, _AT_A_TIME))
                if not chosen.any():
                    break
                now, open_ = open_.at(chosen), open_.at(~chosen)
                left -= np.bincount(now.sample, minlength=n)
                halves = np.array([trees[i][c - counts[i]] for i, c in zip(now.sample, now.cluster, strict=True)]).reshape(-1, 2)
                added = np.zeros((2, len(halves), most), dtype=bool)
                for k, (i, pair) in enumerate(zip(now.sample, halves, strict=True)):
                    added[:, k, : counts[i]] = inside[i][pair]
                first, second = now.context | added[0], now.context | added[1]
                with_first, with_second = self._scores(game, counts, now.sample, np.stack([first, second]), rows)
                open_ = _Open(
                    *(
                        np.concatenate(column)
                        for column in zip(
                            open_,
                            _Open(now.sample, halves[:, 0], now.context, now.without, with_first, now.weight / 2),
                            _Open(now.sample, halves[:, 1], now.context, now.without, with_second, now.weight / 2),
                            _Open(now.sample, halves[:, 0], second, with_second, now.joined, now.weight / 2),
                            _Open(now.sample, halves[:, 1], first, with_first, now.joined, now.weight / 2),
                            strict=True,
                        )
                    )
                )
            for i, cluster, gain in zip(open_.sample, open_.cluster, _gain(open_), strict=True):
                together = inside[i][cluster]
                values[i][together] += gain / together.sum()
            if len(open_.sample):
                caveats.append(
                    f"{len(np.unique(open_.sample))} of {n} sample(s): the budget was spent before every group was split; what is left of a group is shared evenly over its parts"
                )
            params = {"reference": reference.name, "output": self.output, "every group split": not len(open_.sample)}
            return assembled(self.name, inputs, targets, run, evaluator, found, values, None, params, caveats)

    def _tree(self, inputs: Inputs, row: int) -> NDArray[np.int64]:
        if self.tree is None:
            return tree_of(inputs, row)
        d = int(inputs.players.count[row])
        merges = np.array(self.tree, dtype=np.int64).reshape(-1, 2)
        joined = np.sort(merges.reshape(-1))
        if len(merges) != d - 1 or (joined != np.arange(2 * d - 2)).any() or (merges >= d + np.arange(d - 1)[:, None]).any():
            raise ConfigError(
                f"tree joins {len(merges) + 1} parts, and {inputs.ids[row]} has {d}: give {d - 1} pairs in which every cluster but the last is joined once"
            )
        return merges

    def _scores(
        self, game: Game, counts: NDArray[np.int64], sample: NDArray[np.int64], masks: NDArray[np.bool_], rows: int
    ) -> tuple[FloatArray, FloatArray]:
        """Scores of the two masks of each split, means over the rows of the background."""
        keep, draws = [], []
        mine = [np.flatnonzero(sample == i) for i in range(len(counts))]
        for own, d in zip(mine, counts, strict=True):
            both = masks[:, own, : int(d)].reshape(-1, int(d))
            keep.append(np.tile(both, (rows, 1)))
            draws.append(np.repeat(np.arange(rows), len(both)))
        out = np.empty((2, len(sample)))
        for own, found in zip(mine, game.values(keep, draws if game.reference.shared else None, self.output), strict=True):
            out[:, own] = found.reshape(rows, 2, len(own)).mean(axis=0)
        return out[0], out[1]


def _gain(open_: _Open) -> FloatArray:
    return (open_.joined - open_.without) * open_.weight


def _worth_most(open_: _Open, number: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(F,) the ``number[i]`` open gains of each sample that are largest in size; the older one of equals."""
    size = np.round(np.abs(_gain(open_)), 12)
    size = np.where(np.isfinite(size), size, 0.0)
    order = np.lexsort((-size, open_.sample))
    of = open_.sample[order]
    start = np.searchsorted(of, of, side="left")
    chosen = np.zeros(len(of), dtype=bool)
    chosen[order] = np.arange(len(of)) - start < number[of]
    return chosen
