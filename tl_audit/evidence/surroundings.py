"""The surroundings of a run: device, determinism, randomness, signals, and the environment facts that may be recorded."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
import platform
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch

from tl_audit.errors import ConfigError, Interrupted
from tl_audit.models.model import Model
from tl_audit.subject import Subject

PACKAGES = ("torch", "torchvision", "captum", "shap", "lime", "numpy", "scipy", "scikit-learn")
"""What the record says about the environment, beside Python and platform. An allow-list: no user, host or path."""

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Stopper:
    """A request to stop. The first SIGINT or SIGTERM is remembered, and a call of this object raises ``Interrupted``; the second raises at once.

    Handlers are set in the main thread only, and put back on exit.
    """

    def __init__(self) -> None:
        self.request: int | None = None
        self._before: dict[signal.Signals, Any] = {}  # Any: whatever handlers the caller had

    def __enter__(self) -> Stopper:
        if threading.current_thread() is threading.main_thread():
            for number in EXIT_CODES:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        code = EXIT_CODES[signal.Signals(number)]
        if self.request is not None:
            raise Interrupted(code)
        self.request = code

    def __call__(self) -> None:
        if self.request is not None:
            raise Interrupted(self.request)


@contextmanager
def deterministic(device: str) -> Iterator[torch.device]:
    """The device of a run, with deterministic algorithms while the block runs and the caller's settings after it.

    Raises
    ------
    ConfigError : a device that is not there; says which are
    """
    chosen = _device(device)
    if chosen.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # must stand before CUDA starts
    # not use_deterministic_algorithms, which loads a compiler of 900 modules to say the same
    before = torch.get_deterministic_debug_mode()
    cudnn: Any = torch.backends.cudnn  # Any: torch declares these flags dynamically
    benchmark = cudnn.benchmark
    torch.set_deterministic_debug_mode("warn")
    cudnn.benchmark = False
    try:
        yield chosen
    finally:
        torch.set_deterministic_debug_mode(before)
        cudnn.benchmark = benchmark


def _device(name: str) -> torch.device:
    there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if name == "auto":
        return torch.device("cuda" if len(there) > 1 else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is unknown; there are: auto, {', '.join(there)}") from error
    if device.type != "cpu" and not any(entry == name or entry.startswith(f"{name}:") for entry in there):
        raise ConfigError(f"device {name!r} is not on this machine; there are: auto, {', '.join(there)}")
    return device


def on_device(subject: Subject, device: torch.device) -> Subject:
    """The subject with its models on ``device``. Models elsewhere are copied: the caller's own stay where they are."""
    moved: dict[int, Model] = {}

    def move(model: Model | None) -> Model | None:
        if model is None:
            return None
        types = {tensor.device.type for tensor in (*model.module.parameters(), *model.module.buffers())}
        if types <= {device.type}:
            return model
        if id(model.module) not in moved:
            moved[id(model.module)] = dataclasses.replace(model, module=copy.deepcopy(model.module).to(device))
        return dataclasses.replace(model, module=moved[id(model.module)].module)

    changes: dict[str, Any] = {}  # Any: fields of Subject
    for key in ("adapted", "base", "previous"):
        there = getattr(subject, key)
        if (new := move(there)) is not there:
            changes[key] = new
    controls = {kind: move(model) for kind, model in subject.controls.items()}
    if any(controls[kind] is not model for kind, model in subject.controls.items()):
        changes["controls"] = controls
    return dataclasses.replace(subject, **changes) if changes else subject


@contextmanager
def untouched_randomness(seed: int, code: str) -> Iterator[None]:
    """Global random states set from (seed, code), and given back: a check that draws from them by mistake is still repeatable and leaves no trace."""
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002  the caller's global state
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    start = int.from_bytes(hashlib.sha256(f"{seed}|{code}".encode()).digest()[:4], "big")
    random.seed(start)
    np.random.seed(start)  # noqa: NPY002
    torch.manual_seed(start)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(torch_state)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def environment(device: torch.device) -> dict[str, Any]:
    """Facts of the environment by allow-list: versions, platform, device, threads. No user, host or path."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "deterministic": True,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
