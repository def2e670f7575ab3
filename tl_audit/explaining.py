"""``tl-audit explain``: maps for files, rows or whole tables, written as a page, pictures and numbers. What the user asked to see is shown, whatever a policy says."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_audit.errors import ConfigError, DataError, ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tl_audit.attribution import Attribution, Inputs, Targets
    from tl_audit.attribution.comparison import Comparison
    from tl_audit.attribution.importance import Importance
    from tl_audit.finetune import LoadedRun
    from tl_audit.models import Model
    from tl_audit.report.attributions import Part
    from tl_audit.subject import Domain

PAGE = "explanations.html"
HANDFUL = 16
"""Samples that are shown one by one; a table with more rows is summed up as well."""

MOST_ROWS = 1000
"""Rows of a table that are explained unless --all or --most says otherwise; drawn by their ids."""

MOST_BACKGROUND = 100
QUIET_SECONDS = 2.0
"""Work that takes longer says how far it is."""


@dataclass(frozen=True)
class Asked:
    """What ``tl-audit explain`` was asked for, as its options name it.

    Attributes
    ----------
    model : a run directory, or a weights file (then ``arch`` and ``classes`` are needed)
    input : a picture, a folder of pictures, or a table
    methods : explainers, in the order shown
    target : class name, "predicted", "true", or None: the predicted class, and the positive class where a table is summed up and the run declares one
    against : class that is subtracted
    layer : module path, for those of the methods that read a layer
    base : show the base model's maps and the difference beside the adapted model's
    quality : check the maps against random maps and permuted weights, and stamp them
    rows : ids or row numbers to explain
    all_rows : every row
    most : most samples; None: 16 pictures, 1000 rows
    dependence : columns of a table whose attribution is shown over their value
    cluster, label, id : columns of a table, or of ``metadata``
    metadata : a table on the pictures, joined on the file name
    """

    model: str
    input: Path
    methods: Sequence[str] = ("grad_cam",)
    out: Path = Path("explanations")
    target: str | None = None
    against: str | None = None
    layer: str | None = None
    arch: str | None = None
    classes: Sequence[str] | None = None
    budget: int | None = None
    base: bool = False
    quality: bool = False
    rows: Sequence[str] = ()
    all_rows: bool = False
    most: int | None = None
    dependence: Sequence[str] = ()
    cluster: str | None = None
    label: str | None = None
    id: str | None = None
    metadata: Path | None = None
    seed: int = 0


@dataclass(frozen=True)
class Written:
    """What was made: the page, how many maps by which methods, and every file."""

    page: Path
    maps: int
    methods: tuple[str, ...]
    files: tuple[Path, ...]


def explain_files(asked: Asked, *, say: Callable[[str], None] = lambda text: None) -> Written:
    """Explain the model's outputs for a picture, a folder of pictures or a table.

    Raises
    ------
    TLAuditError : a model, input, method, class, layer, row or column that cannot be used
    """
    from tl_audit.attribution.quality import assess

    _check(asked)  # a mistyped method or a contradiction is named before anything is loaded
    model, run = _model(asked)
    if run is None:
        say(_assumed(asked, model))
    domain, note = _domain(asked, run)
    if note:
        say(note)
    chosen = _chosen(asked, domain, say)
    summed = domain.kind == "tabular" and not asked.rows and len(chosen) > HANDFUL
    inputs, read = _inputs(asked, model, run, domain, chosen, say)
    _check_dependence(asked, inputs, summed=summed)
    targets = _targets(asked, model, run, domain, read, inputs, summed=summed, say=say)
    other = _other(asked, model, run, say) if asked.base else None
    made = _maps(asked, model, inputs, targets, say)
    theirs: dict[str, Attribution] = {}
    if other is not None:
        name, second = other
        say(f"the same with the {name} model")
        theirs = _maps(asked, second, _same_inputs(inputs, second), _translated(targets, model, second), say)
    if asked.quality:
        cluster = None if domain.cluster is None else domain.cluster[read]
        say("checking the maps against random maps and permuted weights")
        tell = _now_and_then(say)
        made = assess(model, made, seed=asked.seed, cluster=cluster, progress=tell)
        theirs = assess(other[1], theirs, seed=asked.seed, cluster=cluster, progress=tell) if other is not None else theirs
    sides = {} if other is None else {method: made[method].beside(theirs[method], names=(other[0], "adapted")) for method in made}
    sums = _sums(asked, domain, read, made) if summed else {}
    return _write(asked, model, domain, made, sides, sums)


def _now_and_then(say: Callable[[str], None]) -> Callable[[str, int, int], None]:
    """Progress in words, at most one line in ``QUIET_SECONDS``: short work stays silent, long work does not."""
    last = time.monotonic()

    def tell(what: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= QUIET_SECONDS:
            last = time.monotonic()
            say(f"{done} of {total} {what}")

    return tell


def default_method(input: Path) -> str:
    """Grad-CAM for pictures, kernel SHAP for tables: seen by the file's suffix."""
    return "kernel_shap" if input.suffix.lower() in (".csv", ".tsv", ".parquet") else "grad_cam"


# ---- what was asked -------------------------------------------------------------------------------------------------------------------------


def _check(asked: Asked) -> None:
    from tl_audit.attribution import explainer

    if not asked.methods:
        raise ConfigError("--method is empty; `tl-audit explain --help` lists the methods")
    for method in asked.methods:
        explainer(method, layer=asked.layer if _reads_layer(method) or len(asked.methods) == 1 else None)
    if asked.layer is not None and not any(_reads_layer(m) for m in asked.methods):
        raise ConfigError(f"--layer is {asked.layer}, and none of {', '.join(asked.methods)} reads a layer")
    if asked.most is not None and asked.most < 1:
        raise ConfigError(f"--most is {asked.most}: expected at least 1")
    if asked.rows and (asked.all_rows or asked.most is not None):
        raise ConfigError("--row names single samples: leave out --all and --most")
    if asked.all_rows and asked.most is not None:
        raise ConfigError("--all and --most contradict each other: give one of them")
    if not asked.input.exists():
        raise ConfigError(f"--input: there is no {asked.input}")


def _reads_layer(method: str) -> bool:
    from tl_audit.attribution import explainer

    return hasattr(explainer(method), "layer")


def _check_dependence(asked: Asked, inputs: Inputs, *, summed: bool) -> None:
    """A column that cannot be shown is named before anything is explained."""
    from tl_audit.attribution.importance import no_such_column

    if asked.dependence and not summed:
        raise ConfigError(f"--dependence needs a table with more than {HANDFUL} rows that are summed up")
    names = inputs.players.names or ()
    for column in asked.dependence:
        if column not in names:
            raise no_such_column(column, names)


def _model(asked: Asked) -> tuple[Model, LoadedRun | None]:
    path = Path(asked.model)
    if path.is_dir():
        from tl_audit.finetune import load_run

        run = load_run(path)
        return run.adapted, run
    if not path.exists():
        raise ConfigError(f"--model: there is no {path}; give a run directory or a weights file")
    if asked.arch is None or not asked.classes:
        raise ConfigError("--model is a weights file: give --arch and --classes (in the order of the model's outputs) as well")
    if asked.base:
        raise ConfigError("--base needs a run directory as --model: a weights file does not hold the base model")
    from tl_audit.models import load_model

    return load_model(path, arch=asked.arch, classes=list(asked.classes), name="adapted"), None


def _assumed(asked: Asked, model: Model) -> str:
    """How inputs are made, which a weights file does not hold and a run directory does."""
    from tl_audit.records.preprocessing import Preprocessing

    spec = model.preprocessing
    sized = f"pictures of {spec.width} x {spec.height} px" if isinstance(spec, Preprocessing) else ""
    made = sized or "pictures at their own size, from 0 to 1; columns as they are"
    return f"the weights file does not say how inputs are made; as {asked.arch} has it: {made}. A run directory knows what the model was trained on"


def _domain(asked: Asked, run: LoadedRun | None) -> tuple[Domain, str]:
    """The input opened, and what the reader must know about it. The run's own label and id columns are used where the table has them."""
    from tl_audit.subject import Domain

    given: dict[str, Any] = {  # Any: see modality.open_data
        name: value
        for name, value in (("cluster", asked.cluster), ("label", asked.label), ("id", asked.id), ("metadata", asked.metadata))
        if value is not None
    }
    if run is not None and run.adapted.task == "regression":
        given["task"] = "regression"
    if asked.input.is_dir() or run is None or run.kind != "tabular":
        return Domain(asked.input.name, asked.input, **given), ""
    own = {
        name: value
        for name, value in (("label", run.plan.data.label), ("id", run.plan.data.id))
        if isinstance(value, str) and name not in given
    }
    try:
        return Domain(asked.input.name, asked.input, **given, **own), ""
    except DataError as error:
        if not own or asked.target == "true":
            raise
        return Domain(asked.input.name, asked.input, **given), f"the table is read without the run's label and id columns ({error})"


def _chosen(asked: Asked, domain: Domain, say: Callable[[str], None]) -> NDArray[np.int64]:
    """Row numbers that are explained."""
    from tl_audit.measures.sampling import bottom_k

    n = len(domain)
    if asked.rows:
        return np.array([_row(name, domain) for name in dict.fromkeys(asked.rows)], dtype=np.int64)
    table = domain.kind == "tabular"
    most = n if asked.all_rows else asked.most if asked.most is not None else MOST_ROWS if table else HANDFUL
    if n <= most:
        return np.arange(n, dtype=np.int64)
    if not table or most <= HANDFUL:
        say(f"the first {most} of {n} are explained; --all takes every one")
        return np.arange(most, dtype=np.int64)
    say(f"{most} of {n} rows are explained, drawn by their ids; --all takes every one")
    return np.asarray(bottom_k(domain.ids, most, asked.seed), dtype=np.int64)


def _row(name: str, domain: Domain) -> int:
    """The row of an id, or of a number counted from 0."""
    ids = domain.ids
    if name in ids:
        return ids.index(name)
    if re.fullmatch(r"[0-9]+", name):
        if int(name) < len(ids):
            return int(name)
        raise DataError(f"--row {name}: there is no such id, and rows are numbered 0 to {len(ids) - 1}")
    import difflib

    near = difflib.get_close_matches(name, ids, n=1)
    raise DataError(f"--row {name}: there is no such id{f'; did you mean {near[0]!r}?' if near else f'; the first is {ids[0]!r}'}")


def _inputs(
    asked: Asked, model: Model, run: LoadedRun | None, domain: Domain, chosen: NDArray[np.int64], say: Callable[[str], None]
) -> tuple[Inputs, NDArray[np.int64]]:
    """Encoded samples with their parts, and which rows of the domain they are."""
    from tl_audit.attribution import Inputs

    batch = domain.samples.read(chosen)
    for i in np.flatnonzero(~batch.readable):
        say(f"left out {domain.ids[int(chosen[i])]}: {batch.errors[int(i)]}")
    read = chosen[batch.readable]
    if not len(read):
        raise DataError(f"{asked.input} holds no readable sample")
    modality, spec = domain.samples.modality, model.preprocessing
    for text in modality.spec_notes(domain.samples, spec):
        say(text)
    tensor = modality.encode(batch, spec)
    players = modality.players(tensor, spec, seed=asked.seed)
    background = _background(run, say) if not players.spatial and run is not None else None
    return Inputs(tensor, tuple(domain.ids[int(i)] for i in read), modality, spec, players, background), read


def _background(run: LoadedRun, say: Callable[[str], None]) -> Any:  # Any: a tensor, or None
    """Training rows of a run, where its data still lies: they stand for missing columns."""
    try:
        train = run.domain("train")
    except DataError as error:
        say(f"no training rows as background ({error})")
        return None
    batch = train.samples.read(np.arange(min(MOST_BACKGROUND, len(train)), dtype=np.int64))
    return train.samples.modality.encode(batch, run.adapted.preprocessing)


def _targets(
    asked: Asked, model: Model, run: LoadedRun | None, domain: Domain, read: NDArray[np.int64], inputs: Inputs, *, summed: bool,
    say: Callable[[str], None],
) -> Targets:  # fmt: skip
    from tl_audit.attribution import batch_size_for, resolve_targets

    wanted: Any = asked.target  # Any: a name, names, or None
    named = model.classes is not None and asked.target in model.classes  # a class that is called "true" is that class
    if asked.target == "predicted" and not named:
        wanted = None
    elif asked.target == "true" and not named:
        wanted = _true(asked, model, domain, read)
    elif asked.target is None and summed and asked.against is None:
        positive = None if run is None else run.plan.positive
        if positive is not None and model.classes is not None and positive in model.classes:
            say(f"explaining the output of {positive}, the positive class, in every row; --target predicted takes each row's own")
            wanted = positive
    return resolve_targets(model, inputs, wanted, asked.against, batch_size=batch_size_for(inputs.tensor))


def _true(asked: Asked, model: Model, domain: Domain, read: NDArray[np.int64]) -> list[str]:
    if model.task == "regression":
        raise ConfigError("--target true: the model gives one number, and there is no class to choose; leave --target out")
    if domain.labels is None:
        raise DataError(
            f"--target true: {asked.input} holds no labels; name the column with --label (of pictures: with --metadata), or use class folders"
        )
    names = [domain.labels[int(i)] for i in read]
    for row, name in zip(read, names, strict=True):
        if name is None or (model.classes is not None and name not in model.classes):
            known = ", ".join((model.classes or ())[:10])
            raise DataError(f"--target true: the label of {domain.ids[int(row)]} is {name!r}, no class of the model ({known})")
    return [str(name) for name in names]


# ---- maps -----------------------------------------------------------------------------------------------------------------------------------


def _maps(asked: Asked, model: Model, inputs: Inputs, targets: Targets, say: Callable[[str], None]) -> dict[str, Attribution]:
    """Maps by method; evaluations that several methods need are made once."""
    from tl_audit.attribution import Memo, explain_inputs

    memo, out = Memo(), {}
    for method in asked.methods:
        layer = asked.layer if _reads_layer(method) else None  # of several methods, for those that read one
        say(f"explaining {len(inputs)} {'sample' if inputs.players.spatial else 'row'}{'' if len(inputs) == 1 else 's'} with {method}")
        out[method] = explain_inputs(
            model, inputs, method=method, targets=targets, seed=asked.seed, budget=asked.budget, memo=memo, layer=layer
        )  # fmt: skip
    return out


def _other(asked: Asked, model: Model, run: LoadedRun | None, say: Callable[[str], None]) -> tuple[str, Model]:
    """The model to compare with: the base where it has the same classes, else the head control, which stands in for it."""
    assert run is not None  # _model refused --base for a weights file
    wanted = set(model.classes or ())
    if model.task == "regression":
        if run.base.task == "regression":
            return "base", run.base
        if (control := run.controls.get("head")) is not None:
            say("the base model does not give a number; the head control (the base with a new head) stands in for it")
            return "head control", control
        raise ModelError(
            '--base: the base model does not give a number, and the run has no head control that could stand in for it; adapt with controls = ["head"]'
        )
    if wanted and wanted <= set(run.base.classes or ()):
        return "base", run.base
    head = run.controls.get("head")
    if head is not None and wanted <= set(head.classes or ()):
        say("the base model has other classes; the head control (the base with a new head) stands in for it")
        return "head control", head
    raise ModelError(
        '--base: the base model has other classes than the adapted one, and the run has no head control that could stand in for it; adapt with controls = ["head"]'
    )


def _same_inputs(inputs: Inputs, model: Model) -> Inputs:
    if model.preprocessing != inputs.spec:
        raise ModelError("--base: the two models prepare their inputs differently, so that their maps cannot be compared")
    return inputs


def _translated(targets: Targets, model: Model, other: Model) -> Targets:
    """The same classes by name in the other model's outputs."""
    from tl_audit.attribution import Targets

    if model.task == "regression":
        return targets
    place = {name: k for k, name in enumerate(other.classes or ())}
    own = model.classes or ()

    def moved(index: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.array([place[own[int(k)]] for k in index], dtype=np.int64)

    return Targets(moved(targets.index), None if targets.against is None else moved(targets.against))


def _sums(asked: Asked, domain: Domain, read: NDArray[np.int64], made: Mapping[str, Attribution]) -> dict[str, Importance]:
    cluster = None if domain.cluster is None else domain.cluster[read]
    return {method: maps.importance(cluster) for method, maps in made.items()}


# ---- files ----------------------------------------------------------------------------------------------------------------------------------


def _write(
    asked: Asked,
    model: Model,
    domain: Domain,
    made: Mapping[str, Attribution],
    sides: Mapping[str, Comparison],
    sums: Mapping[str, Importance],
) -> Written:
    """Pictures and numbers, then the page: a folder with a page is complete."""
    from tl_audit.attribution.saving import write_whole
    from tl_audit.report.attributions import attribution_page

    out = asked.out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be made ({error.strerror})") from error
    page = out / PAGE
    if page.is_symlink():
        raise ConfigError(f"{page} is a link; nothing is written through links. Remove it or choose another folder")
    page.unlink(missing_ok=True)
    files: list[Path] = []
    for method, maps in made.items():
        files += _pictures(out, maps, sides.get(method))
        end = "" if len(made) == 1 else f"-{_plain(method)}"
        shown = sides.get(method, maps)
        files += [shown.save(out / f"attributions{end}{suffix}") for suffix in (".json", ".npz")]
        if method in sums:
            files.append(sums[method].save(out / f"importance{end}.csv"))
    parts = _parts(asked, made, sides, sums)
    title = f"Explanations by {', '.join(made)}" + (" of the base and the adapted model" if sides else "")
    write_whole(page, attribution_page(parts, title=title, facts=_facts(asked, model, domain, made)).encode())
    return Written(page, sum(len(m) for m in made.values()), tuple(made), (*files, page))


def _pictures(out: Path, maps: Attribution, side: Comparison | None) -> list[Path]:
    """One PNG per map, with those of the other model and the difference where there are any."""
    from tl_audit.attribution.saving import write_whole
    from tl_audit.report.maps import Panel, drawn_values, panels, part_outlines

    inputs, files = maps.inputs, []
    for i, sample in enumerate(inputs.ids):
        shown = [Panel(maps, drawn_values(maps, i), "", None, maps.signed, bool(maps.blank[i]))] if side is None else panels(side, i)
        for panel in shown:
            picture = inputs.modality.map_picture(
                inputs.tensor[i], panel.values, inputs.spec, title=maps.method, signed=panel.signed, side=224, scale=panel.scale,
                outlines=part_outlines(panel.attribution, i),
            )  # fmt: skip
            if picture is None or picture.png is None:
                continue
            name = "difference" if "\u2212" in panel.name else panel.name.replace(" ", "-")
            path = out / f"{slug(sample)}-{_plain(maps.method)}{f'-{name}' if name else ''}.png"
            write_whole(path, base64.b64decode(picture.png))
            files.append(path)
    return files


def _parts(asked: Asked, made: Mapping[str, Attribution], sides: Mapping[str, Comparison], sums: Mapping[str, Importance]) -> list[Part]:
    from tl_audit.attribution.comparison import Comparison
    from tl_audit.attribution.importance import importance_change, part_labels
    from tl_audit.report.attributions import Part

    parts = []
    for method, one in sums.items():
        change = None
        if method in sides:
            (first, second), names = sides[method].maps.values(), sides[method].names
            change = importance_change(first, second, (names[0], names[1]), one.cluster)
        parts.append(Part("importance", one, f"What counted, by {method}", dependence=asked.dependence or None, change=change))
    for method, maps in made.items():
        labels = part_labels(maps)
        if method in sides:
            parts.append(Part("comparison", sides[method], f"{' and '.join(sides[method].names)}, by {method}", labels))
        else:
            parts.append(Part("maps", maps, f"Sample by sample, by {method}", labels))
    if len(made) > 1:
        parts.append(Part("comparison", Comparison.of(made), "The methods beside each other", part_labels(next(iter(made.values())))))
    return parts


def _facts(asked: Asked, model: Model, domain: Domain, made: Mapping[str, Attribution]) -> list[tuple[str, str]]:
    first = next(iter(made.values()))
    names = sorted(set(first.target_names or ()))
    explained = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return [
        ("model", f"{asked.model} ({model.arch or 'given in Python'})"),
        ("input", f"{asked.input}, {len(first)} of {len(domain)} samples"),
        ("explained", explained or "outputs by number"),
        ("seed", str(asked.seed)),
    ]


def _plain(method: str) -> str:
    return method.replace("+", "p")


def slug(name: str) -> str:
    """A file name that no name can escape from: ``slug[:40]-hash[:8]``."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "sample"
    return f"{plain}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
