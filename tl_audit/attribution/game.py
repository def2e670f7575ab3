"""The game that SHAP, LIME and ablations play: what the model says when only some parts of an input are there. Asked once, whoever asks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.attribution.base import Inputs, Targets
from tl_audit.attribution.evaluation import Evaluator, Quantity
from tl_audit.attribution.reference import Reference, composed

FloatArray = NDArray[np.float64]
_COLUMN: dict[Quantity, int] = {"logit": 0, "probability": 1}
_MADE_AT_ONCE = 64  # masks of one sample filled in together; fixed, so that a fill's noise does not depend on the batch size


@dataclass
class Memo:
    """Evaluations that were made already. Found again only for the same network in the same state, numbers, parts, reference and target.

    Sample ids play no part: what is compared is content (``Game``). Weights are known by their storage and torch's count of changes to it; writing
    through ``.data`` goes round that count, and needs a new memo.

    Attributes
    ----------
    known : per network, reference, target and content of a sample: coalition (bytes), row drawn -> (logit, probability) of what is explained
    asked, answered : evaluations wanted, and how many of them needed no model
    """

    known: dict[tuple[object, ...], dict[tuple[bytes, int], tuple[float, float]]] = field(default_factory=dict)
    asked: int = 0
    answered: int = 0


class Game:
    """Scores of masked inputs of a batch of samples.

    Parameters
    ----------
    evaluator : a model lent for explaining
    reference : what stands where a part is removed
    memo : shared with other games on the same model, or None
    seed : of fills that are made (noise)
    """

    def __init__(
        self, evaluator: Evaluator, inputs: Inputs, targets: Targets, reference: Reference, *, memo: Memo | None = None, seed: int = 0
    ) -> None:
        self.evaluator, self.targets, self.seed = evaluator, targets, seed
        self.inputs, self.reference = evaluator.moved(inputs), reference.moved(evaluator.device)
        self.memo = None if memo is None or reference.kind == "made" else memo
        self._contents: tuple[bytes, ...] = () if self.memo is None else _contents(inputs, reference)

    def full(self, quantity: Quantity = "logit") -> FloatArray:
        """(N,) score of each input as it is."""
        return self._ends(quantity, present=True)

    def empty(self, quantity: Quantity = "logit") -> FloatArray:
        """(N,) score with nothing there; the mean over the background where rows are drawn from one."""
        if self.reference.shared and self.reference.rows is not None:
            table = self.evaluator.all_scores(self.reference.rows, quantity).mean(axis=0)
            return self.targets.of(np.broadcast_to(table, (len(self.inputs), len(table))))
        return self._ends(quantity, present=False)

    def values(
        self, keep: Sequence[NDArray[np.bool_]], draws: Sequence[NDArray[np.int64]] | None = None, quantity: Quantity = "logit"
    ) -> list[FloatArray]:
        """Scores with some parts removed, for every sample, in shared batches.

        Parameters
        ----------
        keep : per sample (R_i, count[i]); True keeps the part
        draws : per sample (R_i,) row of the background that fills in; needed where the reference is drawn
        """
        sample = np.repeat(np.arange(len(keep)), [len(k) for k in keep])
        drawn = None if draws is None else np.concatenate(list(draws))
        most = int(self.inputs.players.count.max()) if len(keep) else 0
        flags = np.zeros((len(sample), most), dtype=bool)
        at = 0
        for k in keep:
            flags[at : at + len(k), : k.shape[1]] = k
            at += len(k)
        if self.memo is None:
            found = self._made(sample, flags) if self.reference.kind == "made" else self._evaluated(sample, flags, drawn)
        else:
            found = self._remembered(self.memo, sample, flags, drawn)
        ends = np.cumsum([len(k) for k in keep])[:-1]
        return np.split(found[:, _COLUMN[quantity]], ends) if len(keep) else []

    def _ends(self, quantity: Quantity, *, present: bool) -> FloatArray:
        counts = self.inputs.players.count
        ends = [np.full((1, int(c)), present) for c in counts]
        draws = [np.zeros(1, dtype=np.int64)] * len(counts) if self.reference.shared else None
        return np.array([v[0] for v in self.values(ends, draws, quantity)])

    def _evaluated(self, sample: NDArray[np.int64], flags: NDArray[np.bool_], drawn: NDArray[np.int64] | None) -> FloatArray:
        def one(rows: slice) -> FloatArray:
            x = composed(self.inputs, self.reference, sample[rows], flags[rows], None if drawn is None else drawn[rows], ())
            return self.evaluator.both(x, self.targets[sample[rows]])

        parts = self.evaluator.each_batch(len(sample), one)
        return np.concatenate(parts) if parts else np.zeros((0, 2))

    def _made(self, sample: NDArray[np.int64], flags: NDArray[np.bool_]) -> FloatArray:
        """Fills that are made draw noise: each block of a sample's masks from (seed, id, block) alone."""
        out = np.empty((len(sample), 2))
        for i in np.unique(sample):
            mine = np.flatnonzero(sample == i)
            for start in range(0, len(mine), _MADE_AT_ONCE):
                rows = mine[start : start + _MADE_AT_ONCE]
                key = (self.seed, "fill", self.inputs.ids[i], start)
                x = composed(self.inputs, self.reference, sample[rows], flags[rows], None, key)
                out[rows] = self._scored(x, sample[rows])
        return out

    def _scored(self, x: torch.Tensor, sample: NDArray[np.int64]) -> FloatArray:
        return np.concatenate(self.evaluator.each_batch(len(x), lambda part: self.evaluator.both(x[part], self.targets[sample[part]])))

    def _remembered(self, memo: Memo, sample: NDArray[np.int64], flags: NDArray[np.bool_], drawn: NDArray[np.int64] | None) -> FloatArray:
        packed = np.packbits(flags, axis=1)
        against = self.targets.against
        books = [
            memo.known.setdefault(
                (self.evaluator.identity, content, int(self.targets.index[i]), None if against is None else int(against[i])), {}
            )
            for i, content in enumerate(self._contents)
        ]
        # with every part kept the row drawn does not matter
        full = flags.sum(axis=1) >= self.inputs.players.count[sample]
        keys = [
            (mask.tobytes(), -1 if drawn is None or whole else int(drawn[r]))
            for r, (mask, whole) in enumerate(zip(packed, full, strict=True))
        ]
        new: dict[tuple[int, tuple[bytes, int]], int] = {}
        for r, key in enumerate(keys):
            if key not in books[sample[r]]:
                new.setdefault((int(sample[r]), key), r)
        rows = np.fromiter(new.values(), dtype=np.int64, count=len(new))
        memo.asked += len(keys)
        memo.answered += len(keys) - len(rows)
        found = self._evaluated(sample[rows], flags[rows], None if drawn is None else drawn[rows])
        for (i, key), (logit, probability) in zip(new, found.tolist(), strict=True):
            books[i][key] = (logit, probability)
        return np.array([books[sample[r]][key] for r, key in enumerate(keys)]).reshape(-1, 2)


def _contents(inputs: Inputs, reference: Reference) -> tuple[bytes, ...]:
    """What decides a masked sample's numbers, one digest per sample: its own numbers, its parts, and what stands where a part is removed."""
    common = hashlib.blake2b(f"{reference.kind} {inputs.tensor.dtype} {tuple(inputs.tensor.shape[1:])}".encode(), digest_size=16)
    if reference.shared and reference.rows is not None:
        common.update(_bytes(reference.rows).data)
    columns = [_bytes(inputs.tensor), _bytes(inputs.players.assignment), _bytes(torch.as_tensor(inputs.players.count)[:, None])]
    if not reference.shared and reference.rows is not None:
        columns.append(_bytes(reference.rows))
    out = []
    for i in range(len(inputs)):
        own = common.copy()
        for column in columns:
            own.update(column[i].data)
        out.append(own.digest())
    return tuple(out)


def _bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """(N, bytes) of each row, whatever its type."""
    rows = tensor.detach().cpu().flatten(1).contiguous()
    return np.asarray(rows.view(torch.uint8).numpy())
