"""One task done by us, by the bare model evaluations it needs, and by other packages: time, evaluations, memory and agreement in one line."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

_SHORT = 3.0  # seconds

Values = Sequence[np.ndarray]  # one array of values per sample


@dataclass(frozen=True)
class Peer:
    """Another package doing the same, called as its users call it.

    Attributes
    ----------
    work : runs it on the first ``samples`` samples; returns whatever ``values`` reads
    values : what is compared with ours, per sample; None: nothing comparable
    warm : run before, untimed: compiling on first use
    """

    name: str
    samples: int
    work: Callable[[], Any]
    values: Callable[[Any], Values] | None = None
    warm: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Ours:
    """Our side. ``evaluations``: forward passes of one row that it made; ``backwards``: of these rows, how many had a backward pass too."""

    samples: int
    work: Callable[[], Any]
    values: Callable[[Any], Values]
    evaluations: Callable[[Any], int]
    backwards: Callable[[Any], int] = lambda result: 0


@dataclass
class Line:
    """What one contest found; seconds are medians of wall time. ``ratio`` is of processor time where the processor does the work."""

    name: str
    seconds: float
    evaluations: int
    bare: float
    ratio: float
    memory: float | None
    peers: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        memory = "" if self.memory is None else f", memory +{self.memory:.0f} MiB"
        head = f"{self.name}: {self.seconds:.3f} s, {self.evaluations} evaluations, bare {self.bare:.3f} s, ratio {self.ratio:.2f}{memory}"
        return "\n".join([head, *(f"    {p}" for p in self.peers)])


def settled(device: torch.device) -> None:
    """Waits until an accelerator has done what it was given, so that a clock reads what it should."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Spent:
    """``wall`` seconds, and those to compare by: of the processor where it does the work, so that a busy machine does not count, else ``wall``."""

    wall: float
    fair: float


def timed(work: Callable[[], Any], device: torch.device) -> tuple[Spent, Any]:
    settled(device)
    started, processor = time.perf_counter(), time.process_time()
    result = work()
    settled(device)
    wall = time.perf_counter() - started
    return Spent(wall, wall if device.type == "cuda" else time.process_time() - processor), result


def bare(net: nn.Module, rows: torch.Tensor, forwards: int, backwards: int, batch: int) -> None:
    """So many passes of the user's own network over ready rows, in batches, and nothing else. Gradients are those of the input."""
    asked = [p for p in net.parameters() if p.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    for count, gradients in ((forwards - backwards, False), (backwards, True)):
        while count > 0:
            x = rows[: min(batch, count)]
            count -= len(x)
            with torch.set_grad_enabled(gradients):
                if gradients:
                    x = x.detach().requires_grad_(True)
                    torch.autograd.grad(net(x)[:, 0].sum(), x)
                else:
                    net(x)
    for parameter in asked:
        parameter.requires_grad_(True)


@contextmanager
def counted(net: nn.Module) -> Iterator[list[int]]:
    """Rows through a network, call by call."""
    rows: list[int] = []
    handle = net.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    try:
        yield rows
    finally:
        handle.remove()


def grown(work: Callable[[], Any], device: torch.device) -> float | None:
    """MiB by which memory was larger in the course of the work than before it: of the accelerator, else resident, read every 2 ms."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        settled(device)
        return float(torch.cuda.max_memory_allocated(device) - before) / 2**20
    if not os.path.exists("/proc/self/statm"):
        work()
        return None

    def resident() -> float:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    most, done, before = [0.0], threading.Event(), resident()

    def watch() -> None:
        while not done.wait(0.002):
            most[0] = max(most[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(0.0, most[0] - before)


def correlation(ours: Values, theirs: Values) -> float:
    """Mean over samples of Pearson's correlation; samples without spread on either side are left out (NaN where none is left)."""
    found = []
    for a, b in zip(ours, theirs, strict=False):
        a, b = np.asarray(a, dtype=float).ravel(), np.asarray(b, dtype=float).ravel()
        if np.ptp(a) > 0 and np.ptp(b) > 0:
            found.append(float(np.corrcoef(a, b)[0, 1]))
    return statistics.mean(found) if found else float("nan")


def contest(name: str, net: nn.Module, rows: torch.Tensor, ours: Ours, peers: Sequence[Peer], *, batch: int, repeats: int = 3) -> Line:
    """Ours and the bare evaluations in alternation, then each peer once (after a warm-up where ours had one); printed at once.

    Parameters
    ----------
    rows : ready model inputs for the bare evaluations, at least ``batch``
    """
    device = rows.device
    first: list[tuple[Spent, Any]] = []
    memory = grown(lambda: first.append(timed(ours.work, device)), device)
    spent, result = first[0]
    forwards, backwards = ours.evaluations(result), ours.backwards(result)

    def passes() -> None:
        bare(net, rows, forwards, backwards, batch)

    if repeats == 1:  # long enough to need no warm-up
        pairs = [(spent, timed(passes, device)[0])]
    else:
        passes()
        pairs = [(timed(ours.work, device)[0], timed(passes, device)[0]) for _ in range(repeats)]
    line = Line(
        name,
        statistics.median(a.wall for a, _ in pairs),
        forwards,
        statistics.median(b.wall for _, b in pairs),
        statistics.median(a.fair / b.fair for a, b in pairs) if forwards else float("nan"),
        memory,
    )
    mine = statistics.median(a.fair for a, _ in pairs) / ours.samples
    each = statistics.median(b.fair for _, b in pairs) / max(1, forwards)
    for peer in peers:
        try:
            if peer.warm is not None:
                peer.warm()
            with counted(net) as through:
                spent, theirs = timed(peer.work, device)
                if spent.wall < _SHORT:  # the first call may have imported a package
                    through.clear()
                    spent, theirs = timed(peer.work, device)
        except (ImportError, NotImplementedError, AssertionError, RuntimeError, TypeError, ValueError) as error:
            line.peers.append(f"{peer.name}: not measured ({type(error).__name__}: {str(error).splitlines()[0][:120]})")
            continue
        agreement = ""
        if peer.values is not None:
            share = correlation(ours.values(result), peer.values(theirs))
            agreement = ", its values are all alike" if np.isnan(share) else f", agreement {share:.3f}"
        own = f"{spent.fair / (sum(through) * each):.2f} x its {sum(through)} evaluations, " if through and each else ""
        line.peers.append(
            f"{peer.name}: {spent.wall:.3f} s for {peer.samples} of {ours.samples}, {own}ours {spent.fair / peer.samples / mine:.1f} x faster{agreement}"
        )
    print(line, flush=True)
    return line
