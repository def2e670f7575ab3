"""Progress of training on stderr: a bar with time left on a terminal, one line per epoch elsewhere. Stdout stays for results."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any, Literal, Self

Show = Literal["auto", "bar", "lines", "none"]
Say = Callable[[str], None]
"called with each line of text"


class Progress:
    """Counts batches over all fits of one adaptation, so that the time left speaks of the whole.

    Parameters
    ----------
    show : "auto" (a bar on a terminal, else lines), "bar", "lines", "none", or a function called with each line of text
    total : planned batches; early stopping takes the rest of a stage off
    """

    def __init__(self, show: Show | Say = "auto", total: int = 0, *, stream: IO[str] | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._say = show if callable(show) else None
        if show == "auto":
            show = "bar" if self._stream.isatty() else "lines"
        self._show = "none" if callable(show) else show
        self.total = total
        self.done = 0
        self._what = ""
        self._start = time.monotonic()
        self._bar: Any = None  # Any: rich is imported late
        self._task: Any = None

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        if self._show == "bar":
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=Console(file=self._stream), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("adapt", total=max(1, self.total))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def fit(self, what: str) -> None:
        """A fit begins."""
        self._what = what
        self._update()

    def batch(self) -> None:
        """One batch is done."""
        self.done += 1
        self._update()

    def skip(self, batches: int) -> None:
        """Planned batches that will not run (early stopping, reused stages)."""
        self.total -= batches
        self._update()

    def epoch(self, number: int, epochs: int, row: dict[str, float]) -> None:
        """One epoch is done; ``row`` is its line of the history."""
        parts = [f"{self._what}: epoch {number}/{epochs}", f"loss {row['train_loss']:.4f}"]
        if "val_loss" in row:
            score = f"{row['val_accuracy']:.1%} right" if "val_accuracy" in row else f"mean error {row['val_mae']:.4g}"
            parts.append(f"validation {row['val_loss']:.4f} ({score})")
        parts.append(f"about {duration(self.seconds_left())} left")
        self.say(" · ".join(parts))

    def say(self, text: str) -> None:
        """One line of text."""
        if self._say is not None:
            self._say(text)
        elif self._show == "none":
            return
        elif self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._stream.write(text + "\n")
            self._stream.flush()

    def seconds_left(self) -> float:
        """Estimate from the mean time per batch so far."""
        if self.done == 0:
            return 0.0
        return (time.monotonic() - self._start) / self.done * max(0, self.total - self.done)

    def _update(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, total=max(1, self.total), description=self._what)


def duration(seconds: float) -> str:
    """A length of time in words: "8 s", "3 min 10 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
