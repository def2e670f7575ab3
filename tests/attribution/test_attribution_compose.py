"""compose: masked inputs are those made one by one, whichever way they are made together."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tl_audit.attribution.reference import compose


@pytest.mark.parametrize("shape", [(5, 3, 8, 8), (5, 12)], ids=["pictures", "columns"])
@pytest.mark.parametrize(
    "rows",
    [np.repeat(np.arange(5), 9), np.array([3] * 5 + [1] * 6 + [3] * 4), np.array([2, 1, 0, 2]), np.zeros(0, dtype=np.int64)],
    ids=["samples one after another", "a sample that comes back", "samples mixed", "none"],
)
@pytest.mark.parametrize("shared", [True, False], ids=["one fill per sample", "fills drawn"])
def test_masked_inputs_are_those_made_one_by_one(shape, rows, shared):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    parts = torch.randint(0, 6, (shape[0], *shape[2:]) if len(shape) == 4 else shape, generator=generator)
    fills = torch.randn(7, *shape[1:], generator=generator)
    rng = np.random.default_rng(0)
    keep = rng.random((len(rows), 6)) < 0.5
    at = rows if shared else rng.integers(0, 7, len(rows))
    made = compose(SimpleNamespace(tensor=x, players=SimpleNamespace(assignment=parts)), rows, keep, fills, at)
    assert made.shape == (len(rows), *shape[1:])
    for row, i in enumerate(rows):
        kept = torch.as_tensor(keep[row])[parts[i]].expand(shape[1:])
        assert torch.equal(made[row], torch.where(kept, x[i], fills[at[row]]))
