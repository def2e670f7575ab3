"""The hymenoptera audit, by part, against the bare model evaluations that it needs; and the same audit with another policy on stored evidence.

"Bare" is the time spent inside the networks themselves (forward and backward), measured in the same run, so that a busy machine slows both
sides alike. Parts are exclusive: maps that a check asks for are counted as maps, not as the check. Goals: whole audit at most 1.3 times the
bare evaluations; the second run at most 5 % of the first.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import tl_audit as ta
from tl_audit.evidence.passes import Collector
from tl_audit.evidence.stored import StoredEvidence
from tl_audit.finetune import load_run
from tl_audit.policy import load_policy
from tl_audit.runner import _Audit, run

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SAMPLES = 4
METHODS = ("grad_cam", "kernel_shap")
OWN_LINE = ("TLA608", "TLA702", "TLA703")
EVIDENCE, STATISTICS = "evidence", "other checks"
GOAL = 1.3


class Clock:
    """Wall seconds, seconds inside networks and samples through them, by part; a part within a part stops the outer one."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.model: dict[str, float] = {}
        self.samples: dict[str, int] = {}
        self.parts = ["rest"]
        self.since = time.perf_counter()
        self.depth = 0

    def _turn(self) -> None:
        now = time.perf_counter()
        self.wall[self.parts[-1]] = self.wall.get(self.parts[-1], 0.0) + now - self.since
        self.since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._turn()
        self.parts.append(name)
        try:
            yield
        finally:
            self._turn()
            self.parts.pop()

    @contextmanager
    def inside(self, samples: int = 0) -> Iterator[None]:
        """Within a network; only the outermost call counts."""
        self.depth += 1
        started = time.perf_counter()
        try:
            yield
        finally:
            self.depth -= 1
            if self.depth == 0:
                part = self.parts[-1]
                self.model[part] = self.model.get(part, 0.0) + time.perf_counter() - started
                self.samples[part] = self.samples.get(part, 0) + samples

    def stop(self) -> None:
        self._turn()

    def lines(self) -> list[str]:
        out = []
        for part in sorted(self.wall, key=lambda p: -self.wall[p]):
            wall, model = self.wall[part], self.model.get(part, 0.0)
            ratio = f"ratio {wall / model:.2f}" if model > 0.01 * wall else "no model"
            out.append(f"  {part:<16} {wall:7.1f} s, inside networks {model:7.1f} s ({self.samples.get(part, 0):6d} samples): {ratio}")
        return out


@contextmanager
def measured(clock: Clock, own_line: Sequence[str] = OWN_LINE) -> Iterator[None]:
    """Every part of an audit, every module's call and every backward pass on the clock. ``own_line``: checks that are a part of their own."""
    replaced: list[tuple[Any, str, Any]] = []

    def put(owner: Any, name: str, made: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        before = getattr(owner, name)
        replaced.append((owner, name, before))
        setattr(owner, name, functools.wraps(before)(made(before)))

    def in_part(name: Callable[..., str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def made(before: Callable[..., Any]) -> Callable[..., Any]:
            def timed(*args: Any, **kwargs: Any) -> Any:
                with clock.part(name(*args)):
                    return before(*args, **kwargs)

            return timed

        return made

    def network(before: Callable[..., Any]) -> Callable[..., Any]:
        def timed(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            first = args[0] if args else None
            with clock.inside(int(first.shape[0]) if isinstance(first, torch.Tensor) and first.dim() > 0 else 0):
                return before(self, *args, **kwargs)

        return timed

    def backward(before: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with clock.inside():
                return before(*args, **kwargs)

        return timed

    put(torch.nn.Module, "__call__", network)
    put(torch.autograd, "grad", backward)
    put(torch.Tensor, "backward", backward)
    put(Collector, "table", in_part(lambda *args: EVIDENCE))
    put(Collector, "scan", in_part(lambda *args: EVIDENCE))
    put(StoredEvidence, "prefetch", in_part(lambda *args: EVIDENCE))
    put(StoredEvidence, "attribution_inputs", in_part(lambda *args: "superpixels"))
    put(StoredEvidence, "_explain", in_part(lambda self, model, domain, inputs, method, targets: f"maps {method}"))
    put(_Audit, "_measured", in_part(lambda self, one, context: one.code if one.code in own_line else STATISTICS))
    try:
        yield
    finally:
        for owner, name, before in reversed(replaced):
            setattr(owner, name, before)


def main() -> None:
    if not DATA.is_dir():
        print("audit: skipped, ../shared/data is not on this machine")
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        train = ta.Domain("train", DATA / "hymenoptera" / "train", kind="image")
        plan = ta.Plan(
            base="torchvision:squeezenet1_1",
            weights=str(DATA / "squeezenet1_1" / "squeezenet1_1_tv_fp16.pth"),
            kind="image",
            task=ta.Classification(["ants", "bees"]),
            stages=[ta.Stage("head", epochs=1, lr=1e-3)],
            seed=0,
        )
        ta.adapt(plan, train, out=out / "run", controls=())
        made = load_run(out / "run")
        subject = ta.Subject(
            adapted=made.adapted,
            base=made.base,
            target=ta.Domain("hymenoptera", DATA / "hymenoptera" / "val", kind="image"),
            source=ta.Domain("imagenet mini", DATA / "imagenet_mini", kind="image"),
            train=train,
            cues=(ta.Cue("mark", "patch", {"corner": "top-left", "size": 0.1}),),
        )

        def audit(policy: str) -> tuple[float, Clock]:
            clock = Clock()
            with measured(clock):
                run(
                    subject,
                    policy=load_policy(policy),
                    device="cpu",
                    methods=METHODS,
                    attribution_samples=SAMPLES,
                    evidence_dir=out / "evidence",
                )
                clock.stop()
            return sum(clock.wall.values()), clock

        whole, clock = audit("default")
        model = sum(clock.model.values())
        print(f"audit: {SAMPLES} samples explained by {', '.join(METHODS)}, {len(subject.target)} target, {len(train)} training pictures")
        print(
            f"audit: {whole:.1f} s, of which inside networks {model:.1f} s ({sum(clock.samples.values())} samples): ratio {whole / model:.2f} (goal {GOAL})"
        )
        print("\n".join(clock.lines()))
        again, clock = audit("strict")
        print(
            f"audit: another policy on stored evidence {again:.1f} s = {again / whole:.1%} of the first (goal 5 %), {sum(clock.samples.values())} samples through networks"
        )
        print("\n".join(clock.lines()[:4]))


if __name__ == "__main__":
    main()
