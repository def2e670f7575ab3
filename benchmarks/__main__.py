"""Run benchmarks by name, all of them without one."""

from __future__ import annotations

import sys
import time
from importlib import import_module

NAMES = ("mmd", "scale", "grad_cam", "attribution", "audit", "evidence", "shapley", "defects")


def main() -> None:
    if sys.argv[1:2] == ["calibration"]:  # not a race: it has options of its own, and takes longer than all others together
        import_module("benchmarks.calibration").main(sys.argv[2:])
        return
    chosen = sys.argv[1:] or NAMES
    unknown = [name for name in chosen if name not in NAMES]
    if unknown:
        raise SystemExit(f"no benchmark {unknown[0]!r}; there are: {', '.join((*NAMES, 'calibration'))}")
    started = time.perf_counter()
    import captum  # noqa: F401
    import lime.lime_base  # noqa: F401
    import shap  # noqa: F401
    import torch
    import torchvision  # noqa: F401

    print(
        f"imports (apart from everything below): {time.perf_counter() - started:.1f} s; torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    for name in chosen:
        import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()
