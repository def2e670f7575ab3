"""Planted defect 5: a column that the model does not read differs between the domains. The inputs shift, the evidence and the errors do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tl_audit as ta
from tl_audit.measures.sampling import generator

COLUMNS = 6
UNUSED = 5


def trained(x: np.ndarray, y: np.ndarray, seed: int, *, reads_all: bool = False) -> torch.nn.Module:
    """A small network that has learned a rule; unless it reads all, the unused column has no weight."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(COLUMNS, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    inputs, labels = torch.as_tensor(x), torch.as_tensor(y)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(inputs), labels).backward()
        optimiser.step()
        with torch.no_grad():
            net[0].weight[:, UNUSED] *= float(reads_all)
    return net


def drawn(rng: np.random.Generator, n: int, *, moved: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    x = rng.normal(size=(n, COLUMNS)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] * x[:, 2] + 0.5 * x[:, 3] + 0.4 * rng.normal(size=n) > 0).astype(np.int64)
    x[:, UNUSED] += moved
    return x, y


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_shift_of_an_unused_column_is_a_shift_of_inputs_and_of_nothing_else(seed):
    rng = generator("defect 5", seed)
    train, source, target = drawn(rng, 800), drawn(rng, 800), drawn(rng, 800, moved=2.0)
    names = ["no", "yes"]
    model = ta.Model(trained(*train, seed), classes=tuple(names))
    # the base was trained for something else, which the column does matter to: its features are the ruler of the input shift
    base = ta.Model(
        trained(train[0], (train[0][:, UNUSED] + train[0][:, 0] > 0).astype(np.int64), seed, reads_all=True), classes=("a", "b")
    )
    domains = {
        role: ta.Domain(role, x, labels=[names[k] for k in y], classes=names, kind="tensor")
        for role, (x, y) in {"train": train, "source": source, "target": target}.items()
    }
    report = ta.audit(
        ta.Subject(adapted=model, base=base, **domains), methods=("integrated_gradients", "kernel_shap"), attribution_samples=120, seed=seed,
        select=["TLA501", "TLA507", "TLA509", "TLA70", "TLA711"],
    )  # fmt: skip
    found = {f.code: f for f in report.findings}
    assert not [f.code for f in report.findings if f.status == "error"]
    assert found["TLA501"].status == "warn", found["TLA501"].reason
    assert found["TLA507"].status == "warn", found["TLA507"].reason
    for quiet in ("TLA709", "TLA509"):
        assert found[quiet].status in ("pass", "info", "inconclusive", "not_evaluated"), f"{quiet}: {found[quiet].reason}"
    if found["TLA709"].measurement is not None:
        auc = found["TLA709"].measurement.select("explanation_c2st_auc", method="integrated_gradients")
        assert auc.value is not None
        assert abs(auc.value - 0.5) < 0.2
