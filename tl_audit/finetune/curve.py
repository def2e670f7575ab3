"""``learning_curve``: how good the adapted model gets from how many samples, and from which number on the base no longer pays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from tl_audit.errors import ConfigError, DataError
from tl_audit.finetune.adapting import Adaptation, adapt
from tl_audit.finetune.inputs import Inputs, Split, aligned, hold_out, task_classes
from tl_audit.finetune.opening import given_domain, part_of
from tl_audit.finetune.plan import Plan, Regression
from tl_audit.finetune.progress import Say, Show
from tl_audit.measures import intervals
from tl_audit.measures.estimate import Estimate
from tl_audit.measures.sampling import priority
from tl_audit.models import Model
from tl_audit.models.borrow import borrowed
from tl_audit.models.outputs import outputs
from tl_audit.subject import Domain

if TYPE_CHECKING:
    from tl_audit.records.exhibits import Exhibit

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

FORMAT_VERSION = 1
PARTS = 5
LEAST_PER_CLASS = 2
CONFIDENCE = 0.95
BATCH = 256


@dataclass(frozen=True)
class CurvePoint:
    """One model trained on so many samples.

    Attributes
    ----------
    model : "adapted", "head" or "scratch"
    n : training samples
    score : mean over seeds of the accuracy (0–1, higher is better), or of the mean absolute error (own unit, lower is better); the interval is
        over the judged samples (clusters, where there are), not over seeds
    lowest, highest : of the seeds
    gain : against this model, adapted minus it (for errors: it minus adapted; above 0: the adapted model is better), paired by sample; None for the
        adapted model itself
    """

    model: str
    n: int
    score: Estimate
    lowest: float
    highest: float
    gain: Estimate | None = None


@dataclass(frozen=True, repr=False)
class LearningCurve:
    """Scores by number of training samples. The smaller sets lie inside the larger ones.

    Attributes
    ----------
    points : in order of n, then adapted, head, scratch
    measure : "accuracy" or "mean absolute error"
    judged_on : name of the data that no model was trained on; ``judged`` samples in ``clusters`` (None: samples are independent)
    seeds : of the plan; each trains every model once on its own nested sets
    notes : what must be said of the data
    """

    points: tuple[CurvePoint, ...]
    measure: str
    judged_on: str
    judged: int
    clusters: int | None
    seeds: tuple[int, ...]
    notes: tuple[str, ...] = ()
    unit: str | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(p.n for p in self.points))

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(p.model for p in self.points))

    def at(self, model: str, n: int) -> CurvePoint:
        """One point. ConfigError where there is none; names those there are."""
        for one in self.points:
            if (one.model, one.n) == (model, n):
                return one
        raise ConfigError(f"no point of {model!r} at n = {n}: models {', '.join(self.models)}, sizes {', '.join(map(str, self.sizes))}")

    @cached_property
    def summary(self) -> str:
        """What the curve says in two or three sentences."""
        last, first = self.at("adapted", self.sizes[-1]), self.at("adapted", self.sizes[0])
        text = f"{self.measure[0].upper()}{self.measure[1:]} of the adapted model: {_number(first.score.value)} from {first.n} samples, "
        text += f"{_number(last.score.value)} from {last.n}."
        for model in self.models:
            if model == "adapted":
                continue
            ahead = [n for n in self.sizes if _lower(self.at(model, n).gain) > 0]
            behind = [n for n in self.sizes if _upper(self.at(model, n).gain) < 0]
            where = (
                f"better than the control {model} at n = {', '.join(map(str, ahead))}"
                if ahead
                else f"nowhere shown to be better than the control {model}"
            )
            text += f" It is {where}" + (f", worse at n = {', '.join(map(str, behind))}." if behind else ".")
        return text

    @property
    def caption(self) -> str:
        by = f" in {self.clusters} clusters" if self.clusters is not None else ""
        return (
            f"Judged on {self.judged} samples of {self.judged_on}{by}; {CONFIDENCE:.0%} intervals over them; mean of {len(self.seeds)} "
            f"seed{'s' if len(self.seeds) > 1 else ''}, each with its own nested training sets."
        )

    def to_rows(self) -> list[dict[str, Any]]:
        """One row per point: n, model, score, low, high, lowest_seed, highest_seed, gain, gain_low, gain_high."""
        out = []
        for p in self.points:
            bounds, gain = p.score.interval(CONFIDENCE), None if p.gain is None else p.gain.interval(CONFIDENCE)
            out.append(
                {
                    "n": p.n, "model": p.model, "score": p.score.value, "low": bounds[0] if bounds else None, "high": bounds[1] if bounds else None,
                    "lowest_seed": p.lowest, "highest_seed": p.highest, "gain": None if p.gain is None else p.gain.value,
                    "gain_low": gain[0] if gain else None, "gain_high": gain[1] if gain else None,
                }
            )  # fmt: skip
        return out

    def to_frame(self) -> Any:  # Any: pandas is imported late
        """``to_rows`` as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.to_rows())

    def document(self) -> dict[str, Any]:
        """What ``to_json`` writes, as plain values."""
        return {
            "format_version": FORMAT_VERSION, "kind": "learning_curve", "measure": self.measure, "unit": self.unit, "judged_on": self.judged_on,
            "judged": self.judged, "clusters": self.clusters, "seeds": list(self.seeds), "confidence": CONFIDENCE, "points": self.to_rows(),
            "summary": self.summary, "notes": list(self.notes),
        }  # fmt: skip

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, finite numbers."""
        from tl_audit.attribution.saving import json_bytes

        return json_bytes(self.document()).decode("utf-8")

    def save(self, path: str | Path) -> Path:
        """Write .json or .csv, by suffix, whole or not at all. ConfigError for another suffix."""
        from tl_audit.attribution.saving import write_table

        return write_table(path, document=self.document, table=self.to_frame)

    def exhibits(self) -> tuple[Exhibit, ...]:
        """The curves, and the table of all points."""
        from tl_audit.records.exhibits import Column, Line, Lines, Table

        lines = []
        for model in self.models:
            mine = [self.at(model, n) for n in self.sizes]
            values = [p.score.value for p in mine]
            bounds = [p.score.interval(CONFIDENCE) for p in mine]
            lines.append(
                Line(
                    name=model if model == "adapted" else f"control {model}",
                    x=tuple(float(i) for i in range(len(mine))),
                    y=tuple(values),
                    low=tuple(b[0] if b else v or 0.0 for b, v in zip(bounds, values, strict=True)),
                    high=tuple(b[1] if b else v or 0.0 for b, v in zip(bounds, values, strict=True)),
                    mark="dot",
                    role="data" if model == "adapted" else "reference",
                )
            )
        unit = f", {self.unit}" if self.unit else ""
        figure = Lines(
            id="learning-curve",
            title=self.summary,
            how_to_read="Left few training samples, right all. Where the adapted model's line and a control's part, the base pays.",
            alt=self.summary,
            caption=self.caption,
            x_label="training samples",
            y_label=f"{self.measure}{unit}",
            lines=tuple(lines),
            x_ticks=tuple(str(n) for n in self.sizes),
            y_range=(0.0, 1.0) if self.measure == "accuracy" else None,
        )
        table = Table(
            id="learning-curve-points",
            title="Scores and paired gains at each size",
            how_to_read="Gain: adapted against this control on the same samples; above 0 the adapted model is better.",
            alt=self.summary,
            caption=" ".join((self.caption, *(f"{note[0].upper()}{note[1:]}." for note in self.notes))),
            columns=(
                Column(name="samples", format="count"), Column(name="model"), Column(name=self.measure, format="number"), Column(name="interval"),
                Column(name="lowest seed", format="number"), Column(name="highest seed", format="number"), Column(name="gain", format="number"),
                Column(name="interval of the gain"),
            ),
            rows=tuple(
                (
                    r["n"], r["model"], r["score"], _range(r["low"], r["high"]), r["lowest_seed"], r["highest_seed"], r["gain"],
                    _range(r["gain_low"], r["gain_high"]),
                )
                for r in self.to_rows()
            ),
        )  # fmt: skip
        return figure, table

    def lines(self) -> tuple[str, ...]:
        """The curve as text: a line per point, the summary, the notes."""
        out = [f"{'samples':>8}  {'model':8}  {self.measure}"]
        for r in self.to_rows():
            gain = "" if r["gain"] is None else f"  adapted ahead by {r['gain']:+.3f} ({_range(r['gain_low'], r['gain_high'])})"
            out.append(f"{r['n']:8d}  {r['model']:8}  {_number(r['score'])} ({_range(r['low'], r['high'])}){gain}")
        return (*out, self.summary, self.caption, *(f"note: {note}" for note in self.notes))

    def __repr__(self) -> str:
        return "\n".join((f"LearningCurve({len(self.sizes)} sizes, {', '.join(self.models)})", *self.lines()))

    def _repr_html_(self) -> str:
        fragment: Callable[[Any], str] = import_module("tl_audit.report.notebook").fragment
        return "\n".join(fragment(exhibit) for exhibit in self.exhibits())


def learning_curve(
    plan: Plan | str | Path,
    train: Any = None,  # Any: as adapt takes it
    validation: Any = None,
    *,
    test: Domain | None = None,
    sizes: Sequence[int] | None = None,
    seeds: Sequence[int] | int = 3,
    controls: Sequence[str] | None = None,
    device: str = "auto",
    offline: bool = False,
    progress: Show | Say = "auto",
    said: Say = lambda line: None,
) -> LearningCurve:
    """Adapts on growing parts of the training data, controls beside it, and judges each on the same samples that none was trained on.

    Parts are nested and chosen by hash within each class (whole clusters, where there are), so that the curve grows smoothly. It costs about
    twice one adaptation per seed, and as much again for each control.

    Parameters
    ----------
    plan, train, validation, controls, device, offline, progress : as ``adapt`` takes them; controls by default "head" and "scratch"
    test : judged on it; None: the validation data, which also chose the best epochs, so that the curve flatters a little
    sizes : numbers of training samples; None: five, each twice the one before, up to all
    seeds : numbers, or how many (0, 1, ...)
    said : called with a line per finished size

    Raises
    ------
    ConfigError : no validation or test data, sizes that do not fit
    DataError : the data cannot be trained on
    """
    plan = plan if isinstance(plan, Plan) else Plan.from_toml(plan)
    regression = plan.task if isinstance(plan.task, Regression) else None
    domain = given_domain(plan, "train", train)
    classes = () if regression is not None else task_classes(domain, plan.classes)
    split, _ = aligned("train", domain, classes, regression)
    held: Split | None = None
    if validation is not None or isinstance(plan.data.validation, str):
        held, _ = aligned("validation", given_domain(plan, "validation", validation), classes, regression)
    elif plan.data.validation is not None:
        split, held = hold_out(split, float(plan.data.validation), plan.seed)
    judge = aligned("test", test, classes, regression)[0] if test is not None else held
    if judge is None:
        raise ConfigError("a learning curve is judged on data that nothing was trained on: give [data] validation, validation= or test=")
    numbers = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not numbers:
        raise ConfigError("a learning curve needs at least one seed")
    kinds = tuple(controls) if controls is not None else plan.controls or ("head", "scratch")
    wanted = _sizes(split, sizes, classes)
    rights: dict[tuple[str, int], list[FloatArray]] = {}
    taken: dict[int, list[int]] = {n: [] for n in wanted}
    held_domain = None if held is None else part_of(held.domain, "validation", held.rows)
    where = plan.data.model_copy(update={"validation": None})
    for seed in numbers:
        order = _order(split, classes, seed)
        for n in wanted:
            rows = _first(split, order, n, classes)
            own = plan.model_copy(update={"seed": seed, "data": where})
            own._folder = plan._folder
            small = part_of(split.domain, "train", split.rows[rows])
            made = adapt(own, small, held_domain, controls=kinds, device=device, offline=offline, progress=progress)
            taken[n].append(len(rows))
            for name, model in _models(made, kinds).items():
                rights.setdefault((name, n), []).append(_judged(model, judge, classes, regression))
            said(f"seed {seed}: {len(rows)} samples done")
    cluster = None if judge.domain.cluster is None else judge.domain.cluster[judge.rows]
    points = []
    for n in wanted:
        for name in [k for k in ("adapted", "head", "scratch") if (k, n) in rights]:
            points.append(_point(name, round(float(np.mean(taken[n]))), rights, n, cluster, regression))
    notes = [] if test is not None else ["the same samples chose the best epochs, so that the curve flatters a little"]
    if cluster is None:
        notes.append("rows are treated as independent: no cluster ids were given")
    if len(numbers) == 1:
        notes.append("one seed: how much the curve owes to chance in training is not known")
    return LearningCurve(
        tuple(points),
        "accuracy" if regression is None else "mean absolute error",
        judge.domain.name,
        len(judge),
        None if cluster is None else len({str(c) for c in cluster}),
        numbers,
        tuple(notes),
        None if regression is None else regression.unit or judge.domain.unit,
    )


def _sizes(split: Split, asked: Sequence[int] | None, classes: Sequence[str]) -> tuple[int, ...]:
    least = LEAST_PER_CLASS * max(1, len(classes))
    if asked is None:
        found = sorted({max(least, len(split) >> k) for k in range(PARTS)})
        return tuple(n for n in found if n <= len(split)) or (len(split),)
    wrong = [n for n in asked if not least <= n <= len(split)]
    if wrong or not asked:
        raise ConfigError(f"sizes lie between {least} and the {len(split)} training samples, got {wrong[0] if wrong else 'none'}")
    return tuple(sorted(set(asked)))


def _order(split: Split, classes: Sequence[str], seed: int) -> IntArray:
    """Rows by the hash of their id, or of their cluster: the beginning of this order is a part, and parts are nested."""
    ids = [split.domain.ids[int(r)] for r in split.rows]
    if split.domain.cluster is None:
        return np.argsort(priority(seed, ids), kind="stable").astype(np.int64)
    units = [str(c) for c in split.domain.cluster[split.rows]]
    return np.lexsort((priority(seed, ids), np.asarray(units), priority(seed, units))).astype(np.int64)


def _first(split: Split, order: IntArray, n: int, classes: Sequence[str]) -> IntArray:
    """About n rows: the first of each class in proportion (at least two), or whole clusters until n is reached."""
    if split.domain.cluster is not None:
        units = np.array([str(c) for c in split.domain.cluster[split.rows]], dtype=object)[order]
        ends = np.flatnonzero(np.r_[units[1:] != units[:-1], True]) + 1
        # a part must hold two classes: clusters are added until it does
        for end in ends[np.searchsorted(ends, min(n, int(ends[-1]))) :]:
            part = order[:end]
            if not classes or len(np.unique(split.labels[part])) == len(np.unique(split.labels)):
                return np.sort(part)
        return np.sort(order)
    if not classes:
        return np.sort(order[:n])
    codes = split.labels[order]
    present, counts = np.unique(codes, return_counts=True)
    exact = counts * n / len(order)
    take = np.maximum(np.minimum(LEAST_PER_CLASS, counts), np.floor(exact)).astype(np.int64)
    for k in np.argsort(-(exact - np.floor(exact)), kind="stable"):
        if take.sum() < n and take[k] < counts[k]:
            take[k] += 1
    return np.sort(np.concatenate([order[np.flatnonzero(codes == c)[:t]] for c, t in zip(present, take, strict=True)]))


def _models(made: Adaptation, kinds: Sequence[str]) -> Mapping[str, Model]:
    out = {"adapted": made.model, **made.controls}
    return {name: model for name, model in out.items() if name == "adapted" or name in kinds}


def _judged(model: Model, judge: Split, classes: Sequence[str], regression: Regression | None) -> FloatArray:
    """(n,) 1 where the answer is right, or the absolute error of a number."""
    inputs = Inputs(judge, model.preprocessing)
    if len(inputs) != len(judge):
        raise DataError(
            f"{judge.domain.name}: {len(judge) - len(inputs)} samples cannot be used: take them out before drawing a learning curve"
        )
    found = []
    with borrowed(model) as net, torch.no_grad():
        for start in range(0, len(inputs), BATCH):
            batch = inputs.batch(np.arange(start, min(len(inputs), start + BATCH), dtype=np.int64))[0]
            found.append(outputs(net(batch), model.output).double().cpu())
    given = torch.cat(found)
    if regression is not None:
        assert judge.values is not None
        return np.asarray(np.abs(given[:, 0].numpy() - judge.values), dtype=np.float64)
    order = [list(model.classes or classes).index(name) for name in classes]
    return np.asarray((given[:, order].argmax(dim=1).numpy() == judge.labels), dtype=np.float64)


def _point(
    name: str,
    n: int,
    rights: Mapping[tuple[str, int], list[FloatArray]],
    size: int,
    cluster: NDArray[np.object_] | None,
    regression: Regression | None,
) -> CurvePoint:
    own = np.mean(rights[name, size], axis=0)
    means = [float(one.mean()) for one in rights[name, size]]
    if regression is None and len(rights[name, size]) == 1:
        score = intervals.rate(own > 0.5, cluster=cluster)
    else:
        score = intervals.mean(own, cluster=cluster, bounds=(0.0, 1.0) if regression is None else None)
    gain = None
    if name != "adapted":
        ours = np.mean(rights["adapted", size], axis=0)
        difference = ours - own if regression is None else own - ours
        gain = replace(intervals.mean(difference, cluster=cluster, bounds=(-1.0, 1.0) if regression is None else None), null=0.0)
    return CurvePoint(name, n, score, min(means), max(means), gain)


def _lower(gain: Estimate | None) -> float:
    bounds = None if gain is None or gain.value is None else gain.interval(CONFIDENCE)
    return -np.inf if bounds is None else bounds[0]


def _upper(gain: Estimate | None) -> float:
    bounds = None if gain is None or gain.value is None else gain.interval(CONFIDENCE)
    return np.inf if bounds is None else bounds[1]


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3g}"


def _range(low: float | None, high: float | None) -> str:
    return "no interval" if low is None or high is None else f"{low:.3f} to {high:.3f}"
