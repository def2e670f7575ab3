"""``tl-audit explain``: maps for files, written as a page, PNG pictures and JSON. What the user asked to see is shown, whatever a policy says."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_audit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tl_audit.attribution import Attribution
    from tl_audit.models import Model
    from tl_audit.subject import Domain

PAGE = "explanations.html"
DATA = "attributions.json"


def explain_files(
    model: str,
    input: Path,
    *,
    method: str,
    out: Path,
    target: str | None = None,
    layer: str | None = None,
    arch: str | None = None,
    classes: Sequence[str] | None = None,
    budget: int | None = None,
    most: int = 16,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Path, int]:
    """Explain the model's outputs for a picture, a folder of pictures or a table; the page written, and the number of maps.

    Parameters
    ----------
    model : a run directory, or a weights file (then ``arch`` and ``classes`` are needed)
    most : samples explained, the first in natural order

    Raises
    ------
    TLAuditError : a model, input, method, class or layer that cannot be used
    """
    from tl_audit.attribution import explain_inputs, explainer, resolve_targets
    from tl_audit.attribution.base import Inputs

    explainer(method, layer=layer)  # a mistyped method is named before anything is loaded
    if most < 1:
        raise ConfigError(f"--most is {most}: expected at least 1")
    loaded, background = _model(model, arch, classes, say)
    domain = _domain(input)
    chosen = np.arange(min(most, len(domain)), dtype=np.int64)
    batch = domain.samples.read(chosen)
    readable = [int(i) for i in np.flatnonzero(batch.readable)]
    for i in np.flatnonzero(~batch.readable):
        say(f"left out {domain.ids[int(i)]}: {batch.errors[int(i)]}")
    if not readable:
        raise DataError(f"{input} holds no readable sample")
    modality = domain.samples.modality
    tensor = modality.encode(batch, loaded.preprocessing)
    inputs = Inputs(
        tensor=tensor,
        ids=tuple(domain.ids[i] for i in readable),
        modality=modality,
        spec=loaded.preprocessing,
        players=modality.players(tensor, loaded.preprocessing, seed=seed),
        background=background() if domain.kind == "tabular" and method in ("kernel_shap", "lime") else None,
    )
    say(f"explaining {len(inputs.ids)} samples with {method}")
    targets = resolve_targets(loaded, inputs, target, batch_size=64)
    maps = explain_inputs(loaded, inputs, method=method, targets=targets, seed=seed, budget=budget, layer=layer)
    return _write(maps, out), len(maps)


def _model(
    name: str, arch: str | None, classes: Sequence[str] | None, say: Callable[[str], None]
) -> tuple[Model, Callable[[], Any]]:  # Any: a tensor of background rows, or None
    """The model, and how to get rows that stand for missing columns: training rows of a run where its data still lies."""
    path = Path(name)
    if path.is_dir():
        from tl_audit.finetune import load_run

        run = load_run(path)

        def rows() -> Any:
            try:
                train = run.domain("train")
            except DataError as error:
                say(f"no training rows as background ({error})")
                return None
            batch = train.samples.read(np.arange(min(100, len(train)), dtype=np.int64))
            return train.samples.modality.encode(batch, run.adapted.preprocessing)

        return run.adapted, rows
    if not path.exists():
        raise ConfigError(f"--model: there is no {path}; give a run directory or a weights file")
    if arch is None or not classes:
        raise ConfigError("--model is a weights file: give --arch and --classes (in the order of the model's outputs) as well")
    from tl_audit.models import load_model

    return load_model(path, arch=arch, classes=list(classes), name="adapted"), lambda: None


def _domain(path: Path) -> Domain:
    from tl_audit.subject import Domain

    if not path.exists():
        raise ConfigError(f"--input: there is no {path}")
    return Domain(path.name, path)


def _write(maps: Attribution, out: Path) -> Path:
    """Page, one PNG per map, and the numbers; page last."""
    from tl_audit.report.attributions import attribution_page

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be made ({error.strerror})") from error
    inputs = maps.inputs
    for i, sample in enumerate(inputs.ids):
        picture = inputs.modality.map_picture(inputs.tensor[i], maps.values[i], inputs.spec, title=maps.method, signed=maps.signed)
        if picture is not None and picture.png is not None:
            _write_file(out / f"{slug(sample)}-{maps.method.replace('+', 'p')}.png", base64.b64decode(picture.png))
    numbers = {
        "method": maps.method,
        "layer": maps.layer,
        "layer_reason": maps.layer_reason,
        "seed": maps.seed,
        "model_evaluations_per_sample": maps.budget,
        "signed": maps.signed,
        "caveats": list(maps.caveats),
        "parts": maps.to_rows(),
    }
    text = json.dumps(numbers, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    _write_file(out / DATA, text.encode())
    _write_file(out / PAGE, attribution_page(maps, title=f"Explanations by {maps.method}").encode())
    return out / PAGE


def _write_file(path: Path, data: bytes) -> None:
    """The bytes at ``path``, whole or not at all, never through a link."""
    if path.is_symlink():
        raise ConfigError(f"{path} is a link; nothing is written through links. Remove it or choose another folder")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigError(f"{path} cannot be written ({error.strerror})") from error


def slug(name: str) -> str:
    """A file name that no name can escape from: ``slug[:40]-hash[:8]``."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "sample"
    return f"{plain}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
