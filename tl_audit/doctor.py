"""``tl-audit doctor``: versions, devices, extras, disk, licences, and what would not work here and why. Uses no network."""

from __future__ import annotations

import importlib
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

State = Literal["ok", "absent", "note", "broken"]

# distribution -> module, and what it serves
CORE: dict[str, tuple[str, str]] = {
    "torch": ("torch", "models"),
    "torchvision": ("torchvision", "images and their architectures"),
    "pytorch-lightning": ("pytorch_lightning", "adapt"),
    "safetensors": ("safetensors.torch", "weights"),
    "numpy": ("numpy", "everything"),
    "scipy": ("scipy.stats", "intervals"),
    "scikit-learn": ("sklearn", "probes and the demo"),
    "scikit-image": ("skimage.segmentation", "superpixels"),
    "pandas": ("pandas", "tables"),
    "pyarrow": ("pyarrow.parquet", "Parquet"),
    "Pillow": ("PIL.Image", "pictures"),
    "captum": ("captum.attr", "integrated gradients"),
    "shap": ("shap", "kernel_shap"),
    "lime": ("lime", "lime"),
    "fairlearn": ("fairlearn.metrics", "group metrics"),
    "pydantic": ("pydantic", "records"),
    "jinja2": ("jinja2", "reports"),
    "typer": ("typer", "the command line"),
    "rich": ("rich", "the command line"),
}
EXTRAS: dict[str, tuple[str, str]] = {
    "matplotlib": ("matplotlib", ".figure() in notebooks"),
    "transformers": ("transformers", "text models, which come later"),
    "timm": ("timm", "timm: architectures, which come later"),
    "peft": ("peft", "LoRA, which comes later"),
}
PERMISSIVE = re.compile(
    r"\b(MIT|BSD|0BSD|Apache|ISC|PSF|Python Software Foundation|Unlicense|Zlib|zlib|HPND|MIT-CMU|MPL|Mozilla Public)\b", re.IGNORECASE
)
LEAST_FREE = 2 * 2**30
PICKLE_TORCH = (2, 10)


class Fact(NamedTuple):
    """One line of the doctor. ``broken``: needed, and it would not work."""

    state: State
    name: str
    text: str


def examine(folder: Path | None = None) -> list[Fact]:
    """Everything that is worth knowing about this installation, in a fixed order. ``folder``: where evidence and reports would be written."""
    facts = [
        _python(),
        *(_package(name, *entry, needed=True) for name, entry in CORE.items()),
        _pair(),
        _pickle(),
        *_devices(),
        *(_package(name, *entry, needed=False) for name, entry in EXTRAS.items()),
        _disk(folder or Path.cwd()),
        *_templates(),
        *_licences(),
    ]
    return facts


def _python() -> Fact:
    good = sys.version_info >= (3, 11)
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Fact("ok" if good else "broken", "python", text if good else text + "; 3.11 or newer is needed")


def _package(name: str, module: str, serves: str, *, needed: bool) -> Fact:
    """Whether a package is there and imports: some install and then do not."""
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        state: State = "broken" if needed else "absent"
        return Fact(state, name, f'not installed; it serves {serves}; pip install "{name}"')
    problem = _tried(lambda: importlib.import_module(module))
    if problem is not None:
        return Fact("broken", name, f"{version} is installed but does not import ({problem}); {serves} would not work")
    return Fact("ok", name, f"{version} ({serves})")


def _tried(action: Callable[[], object]) -> str | None:
    """None, or the exception in one line. A broken package may raise anything at import."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return None


def _pair() -> Fact:
    """torch and torchvision must come from one index: their compiled parts fit only each other."""

    def meet() -> None:
        import torch
        from torchvision.ops import nms

        nms(torch.zeros(1, 4), torch.zeros(1), 0.5)

    problem = _tried(meet)
    if problem is None:
        return Fact("ok", "torch + torchvision", "fit each other")
    return Fact("broken", "torch + torchvision", f"do not fit each other ({problem}): install both from the same index")


def _pickle() -> Fact:
    try:
        version = tuple(int(part) for part in metadata.version("torch").split("+")[0].split(".")[:2])
    except (metadata.PackageNotFoundError, ValueError):
        return Fact("note", "pickle weights", "the version of torch is not known")
    if version >= PICKLE_TORCH:
        return Fact("ok", "pickle weights", "read with weights_only; safetensors is preferred")
    return Fact("note", "pickle weights", "refused with torch below 2.10 (CVE-2025-32434, CVE-2026-24747); safetensors works")


def _devices() -> Iterator[Fact]:
    try:
        import torch
    except Exception as error:  # reported above as a broken package; here only the devices are unknown
        yield Fact("broken", "devices", f"not known: torch does not import ({type(error).__name__})")
        return
    yield Fact("ok", "cpu", f"{torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            yield Fact("ok", f"cuda:{number}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    else:
        built = (
            "this torch is built without it"
            if torch.version.cuda is None
            else f"torch is built for {torch.version.cuda}, no device answers"
        )
        yield Fact("absent", "cuda", f"--device cuda would be refused: {built}")
    mps = torch.backends.mps.is_available()
    yield Fact("ok" if mps else "absent", "mps", "available" if mps else "--device mps would be refused")


def _disk(folder: Path) -> Fact:
    try:
        free = shutil.disk_usage(folder).free
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Fact("note", "disk", f"nothing can be written into the current folder ({error.strerror}): give --out and [evidence] dir")
    text = f"{free / 2**30:.1f} GiB free in the current folder"
    return Fact("ok" if free >= LEAST_FREE else "note", "disk", text if free >= LEAST_FREE else text + ": little for evidence and weights")


def _templates() -> Iterator[Fact]:
    def render() -> None:
        from tl_audit.report.html import environment

        environment()

    problem = _tried(render)
    yield (
        Fact("ok", "templates", "found")
        if problem is None
        else Fact("broken", "templates", f"not usable ({problem}): reports cannot be written")
    )


def _licences() -> Iterator[Fact]:
    """The licence that each dependency states in its metadata, with those outside the permissive family marked."""
    for name in (*CORE, *EXTRAS):
        try:
            meta = metadata.metadata(name)
        except metadata.PackageNotFoundError:
            continue
        first = {key: (meta.get_all(key) or [""])[0] for key in ("License-Expression", "License")}
        stated = first["License-Expression"] or _classified(meta.get_all("Classifier") or []) or first["License"]
        text = " ".join(stated.split())[:60]
        permissive = bool(PERMISSIVE.search(stated))
        yield Fact(
            "ok" if permissive else "note", f"licence {name}"[:28], text if text else "states no licence in its metadata: look it up"
        )


def _classified(classifiers: list[str]) -> str:
    return ", ".join(c.rsplit("::", 1)[-1].strip() for c in classifiers if c.startswith("License ::") and c.count("::") > 1)
