"""The hymenoptera audit, by part, against the bare model evaluations that it needs; and the same audit with another policy on stored evidence.

"Bare" is the time spent inside the networks themselves (forward and backward), measured in the same run. Goals: whole audit at most 1.3 times
the bare evaluations; the second run at most 5 % of the first.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import tl_audit as ta

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


class Clock:
    """Seconds and samples inside networks."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.samples = 0
        self.depth = 0

    @contextmanager
    def inside(self, samples: int = 0) -> Iterator[None]:
        self.depth += 1
        started = time.perf_counter()
        try:
            yield
        finally:
            self.depth -= 1
            if self.depth == 0:
                self.seconds += time.perf_counter() - started
                self.samples += samples


@contextmanager
def measured(clock: Clock) -> Iterator[None]:
    """Count what is spent inside any module's call and inside autograd, outermost calls only."""
    call, grad, backward = torch.nn.Module.__call__, torch.autograd.grad, torch.Tensor.backward

    def timed_call(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else None
        with clock.inside(int(first.shape[0]) if isinstance(first, torch.Tensor) and first.dim() > 0 else 0):
            return call(self, *args, **kwargs)

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with clock.inside():
                return function(*args, **kwargs)

        return timed

    torch.nn.Module.__call__ = timed_call  # type: ignore[method-assign]
    torch.autograd.grad = wrap(grad)
    torch.Tensor.backward = wrap(backward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.Module.__call__, torch.autograd.grad, torch.Tensor.backward = call, grad, backward  # type: ignore[method-assign]


def main() -> None:
    if not DATA.is_dir():
        print("audit: skipped, ../shared/data is not on this machine")
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        plan = ta.Plan(
            base="torchvision:squeezenet1_1",
            weights=str(DATA / "squeezenet1_1" / "squeezenet1_1_tv_fp16.pth"),
            kind="image",
            task=ta.Classification(["ants", "bees"]),
            stages=[ta.Stage("head", epochs=2, lr=1e-3)],
            seed=0,
        )
        train = ta.Domain("train", DATA / "hymenoptera" / "train", kind="image")
        ta.adapt(plan, train, out=out / "run", controls=())
        target = ta.Domain("hymenoptera", DATA / "hymenoptera" / "val", kind="image")
        source = ta.Domain("imagenet mini", DATA / "imagenet_mini", kind="image")

        def audit(policy: str, **more: Any) -> tuple[float, Clock, Any]:
            clock = Clock()
            with measured(clock):
                started = time.perf_counter()
                report = ta.audit(
                    out / "run",
                    target=target,
                    source=source,
                    train=train,
                    policy=policy,
                    evidence_dir=out / "evidence",
                    methods=("grad_cam", "kernel_shap"),
                    **more,
                )
                return time.perf_counter() - started, clock, report

        whole, clock, report = audit("default")
        print(
            f"audit: {whole:.1f} s, of which inside networks {clock.seconds:.1f} s ({clock.samples} samples): ratio {whole / clock.seconds:.2f} (goal 1.3)"
        )
        parts = sorted(((f.seconds or 0.0, f.code) for f in report.findings), reverse=True)
        print("audit, slowest checks: " + ", ".join(f"{code} {seconds:.1f} s" for seconds, code in parts[:6]))
        again, clock, _ = audit("strict")
        print(
            f"audit: another policy on stored evidence {again:.1f} s = {again / whole:.1%} of the first (goal 5 %), {clock.samples} samples through networks"
        )


if __name__ == "__main__":
    main()
