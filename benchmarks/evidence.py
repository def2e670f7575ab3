"""A million table rows through evidence: seconds, rows per second and peak memory, beside 100,000 rows."""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import tl_audit as ta


def main() -> None:
    torch.manual_seed(0)
    model = ta.Model(torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2)), classes=("no", "yes"))
    for n in (100_000, 1_000_000):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(n, 20)).astype(np.float32)
        labels = np.where(rng.random(n) < 0.5, "yes", "no")
        with tempfile.TemporaryDirectory() as folder:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            started = time.perf_counter()
            target = ta.Domain("rows", x, labels=labels, classes=["no", "yes"], kind="tensor")
            ta.audit(ta.Subject(adapted=model, target=target), select=["TLA204", "TLA208", "TLA301"], evidence_dir=Path(folder))
            seconds = time.perf_counter() - started
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(
                f"evidence: {n} rows in {seconds:.1f} s ({n / seconds:,.0f} rows/s); peak memory grew by {(after - before) / 1024:.0f} MiB (data {x.nbytes / 2**20:.0f} MiB)"
            )


if __name__ == "__main__":
    main()
