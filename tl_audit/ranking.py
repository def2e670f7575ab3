"""``rank_bases``: which base model's features suit the data, before anything is adapted. Ranks by three measures, never one score."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tl_audit.errors import ConfigError, DataError, ModelError, NotEvaluated, TLAuditError
from tl_audit.measures.sampling import cluster_codes, generator
from tl_audit.measures.transferability import MEASURES, deletions
from tl_audit.subject import Domain, Subject

if TYPE_CHECKING:
    from tl_audit.finetune.base import Base
    from tl_audit.models.model import Model
    from tl_audit.records.exhibits import Exhibit
    from tl_audit.records.preprocessing import InputSpec, TableEncoding

__all__ = ["Placing", "Ranking", "rank_bases"]

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
RESAMPLES = 2000
CONFIDENCE = 0.95
LEAST_PER_CLASS = 2
FEW_PER_CLASS = 10
FEW_CLUSTERS = 30
_TIE = 1e-9
_ROLE = "train"

NAMES: dict[str, str] = {"logme": "LogME", "h_alpha": "H_alpha", "gbc": "GBC"}
UNITS: dict[str, str] = {
    "logme": "log evidence, nats per sample",
    "h_alpha": "spread between classes, 0 to classes less one",
    "gbc": "overlap of classes, 0 is none",
}

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Placing:
    """Where one base came by one measure.

    Attributes
    ----------
    base : its name
    measure : "logme", "h_alpha" or "gbc"; for each, a larger value is better
    value : on all samples; comparable between the bases of one ranking only
    rank : 1 is best; equal values share the better rank
    rank_low, rank_high : 95 % of resamples put it between these ranks
    first_share : share of resamples in which it came first; bases that tie share
    """

    base: str
    measure: str
    value: float
    rank: int
    rank_low: int
    rank_high: int
    first_share: float


@dataclass(frozen=True, repr=False)
class Ranking:
    """Bases ranked by each measure apart. There is no combined score: the measures answer different questions.

    Attributes
    ----------
    bases : names, in the order given
    placings : one per base and measure
    widths : columns of each base's features
    data : name of the data; n samples of ``classes`` in ``clusters`` (None: samples are independent)
    resamples, seed, confidence : of the bootstrap
    notes : what must be said of the bases and the data
    """

    bases: tuple[str, ...]
    placings: tuple[Placing, ...]
    widths: tuple[int, ...]
    data: str
    n: int
    classes: tuple[str, ...]
    clusters: int | None
    resamples: int
    seed: int
    confidence: float = CONFIDENCE
    notes: tuple[str, ...] = ()

    @property
    def measures(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(p.measure for p in self.placings))

    def placing(self, base: str, measure: str) -> Placing:
        """One base by one measure.

        Raises
        ------
        ConfigError : no such base or measure; names those there are
        """
        for one in self.placings:
            if (one.base, one.measure) == (base, measure):
                return one
        raise ConfigError(
            f"no placing of {base!r} by {measure!r}: the bases are {', '.join(self.bases)}, the measures {', '.join(self.measures)}"
        )

    def by(self, measure: str) -> tuple[Placing, ...]:
        """The placings by one measure, best first; equal ranks in the order given."""
        return tuple(sorted((p for p in self.placings if p.measure == measure), key=lambda p: p.rank))

    @cached_property
    def summary(self) -> str:
        """What the measures say together, in one or two sentences."""
        leaders = {m: [p for p in self.by(m) if p.rank == 1] for m in self.measures}
        names = {m: {p.base for p in found} for m, found in leaders.items()}
        common = set.intersection(*names.values())
        if common and all(len(found) == 1 for found in leaders.values()):
            least = min(found[0].first_share for found in leaders.values())
            often = "in all resamples" if least == 1 else f"each in at least {_percent(least)} of resamples"
            text = f"All {len(leaders)} measures put {next(iter(common))} first, {often}."
        elif common:
            text = f"All {len(leaders)} measures have {_listed([b for b in self.bases if b in common])} first or tied for it."
        else:
            said = [f"{NAMES[m]} puts {_listed([p.base for p in found])} first" for m, found in leaders.items()]
            text = f"The measures disagree: {', '.join(said)}. Try the bases that come first by either."
        if unsure := [NAMES[m] for m, found in leaders.items() if max(p.first_share for p in found) < self.confidence]:
            text += f" By {_listed(unsure)} these samples do not settle which comes first."
        return text

    @property
    def caption(self) -> str:
        by = f" in {self.clusters} clusters" if self.clusters is not None else ""
        unit = "clusters" if self.clusters is not None else "samples"
        return (
            f"n = {self.n} samples{by} of {len(self.classes)} classes; {self.confidence:.0%} intervals of ranks from {self.resamples} resamples of {unit}"
            f" within classes, the same for all bases; seed {self.seed}."
        )

    def to_rows(self) -> list[dict[str, Any]]:
        """One row per measure and base, best first: measure, rank, rank_low, rank_high, first_share, base, value, columns."""
        width = dict(zip(self.bases, self.widths, strict=True))
        return [
            {
                "measure": p.measure,
                "rank": p.rank,
                "rank_low": p.rank_low,
                "rank_high": p.rank_high,
                "first_share": p.first_share,
                "base": p.base,
                "value": p.value,
                "columns": width[p.base],
            }
            for measure in self.measures
            for p in self.by(measure)
        ]

    def to_frame(self) -> Any:  # Any: pandas is imported late
        """``to_rows`` as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.to_rows())

    def document(self) -> dict[str, Any]:
        """What ``to_json`` writes, as plain values."""
        return {
            "format_version": FORMAT_VERSION,
            "kind": "ranking",
            "data": self.data,
            "n": self.n,
            "classes": list(self.classes),
            "clusters": self.clusters,
            "bases": [{"name": name, "columns": width} for name, width in zip(self.bases, self.widths, strict=True)],
            "resamples": self.resamples,
            "seed": self.seed,
            "confidence": self.confidence,
            "placings": self.to_rows(),
            "summary": self.summary,
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, finite numbers."""
        from tl_audit.attribution.saving import json_bytes

        return json_bytes(self.document()).decode("utf-8")

    def save(self, path: str | Path) -> Path:
        """Write .json or .csv, by suffix, whole or not at all.

        Raises
        ------
        ConfigError : another suffix, a link in the way, a folder that cannot be written
        """
        from tl_audit.attribution.saving import write_table

        return write_table(path, document=self.document, table=self.to_frame)

    def exhibits(self) -> tuple[Exhibit, ...]:
        """The table of all placings, and the ranks by each measure with their intervals."""
        from tl_audit.records.exhibits import Column, Dot, Intervals, Table

        table = Table(
            id="ranking",
            title=self.summary,
            how_to_read="Rank 1 is best by that measure. The interval holds 95 % of resamples; 'first' is how often the base came first. Values compare within one measure only.",
            alt=self.summary,
            caption=" ".join((self.caption, *(f"{note[0].upper()}{note[1:]}." for note in self.notes))),
            columns=(
                Column(name="measure"), Column(name="base"), Column(name="rank", format="count"), Column(name="interval of the rank"),
                Column(name="first", format="share"), Column(name="value", format="number"), Column(name="columns", format="count"),
            ),
            rows=tuple(
                (NAMES[r["measure"]], r["base"], r["rank"], _ranks(r["rank_low"], r["rank_high"]), r["first_share"], r["value"], r["columns"])
                for r in self.to_rows()
            ),
        )  # fmt: skip
        figures = tuple(
            Intervals(
                id=f"ranks-by-{measure.replace('_', '-')}",
                title=f"Ranks by {NAMES[measure]} ({UNITS[measure]})",
                how_to_read="Left is better: rank 1 came first. Lines: the ranks of 95 % of resamples. Lines that overlap: these samples do not settle the order.",
                alt="; ".join(f"{p.base} rank {p.rank} ({_ranks(p.rank_low, p.rank_high)})" for p in self.by(measure)),
                caption=self.caption,
                value_label="rank",
                dots=tuple(
                    Dot(
                        label=p.base,
                        value=float(p.rank),
                        interval=(float(p.rank_low), float(p.rank_high)),
                        n=self.n,
                        note=f"first in {_percent(p.first_share)}",
                    )
                    for p in self.by(measure)
                ),
            )
            for measure in self.measures
        )
        return (table, *figures)

    def lines(self) -> tuple[str, ...]:
        """The ranking as text: a block per measure, the summary, the notes."""
        width = max(len(name) for name in self.bases)
        out = []
        for measure in self.measures:
            out.append(f"{NAMES[measure]} ({UNITS[measure]})")
            for p in self.by(measure):
                out.append(
                    f"  {p.rank:2d}  {p.base:{width}}  ranks {_ranks(p.rank_low, p.rank_high):8}  first in {_percent(p.first_share):>6}  {p.value:.4g}"
                )
        out.append(self.summary)
        out.append(self.caption)
        return (*out, *(f"note: {note}" for note in self.notes))

    def __repr__(self) -> str:
        return "\n".join((f"Ranking({len(self.bases)} bases on {self.data})", *self.lines()))

    def _repr_html_(self) -> str:
        fragment: Callable[[Any], str] = import_module("tl_audit.report.notebook").fragment
        return "\n".join(fragment(exhibit) for exhibit in self.exhibits())


def rank_bases(
    bases: Sequence[Any] | Mapping[str, Any],  # Any: see below
    train: Domain | str | Path | Any,  # Any: what Domain accepts
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    device: str = "auto",
    offline: bool = False,
    evidence_dir: str | Path | None = None,
    progress: Progress = lambda what, done, total: None,
    **options: Any,  # Any: reader options of Domain
) -> Ranking:
    """Rank base models by how well their frozen features tell the classes of the data apart, before adapting any of them.

    Each base reads the data once, in its own preprocessing. Its penultimate features are judged by LogME (exact evidence), H_alpha and
    GBC; ranks get intervals from a bootstrap of the samples within classes (of clusters, where there are), the same resamples for all
    bases. A resample needs no decomposition: it weighs what each sample (or cluster) adds to a measure, known from leaving it out.

    Such measures look at features that stay as they are. They do not foretell an accuracy, and published rankings by them vary with the
    data (Agostinelli et al. 2022, arXiv:2204.01403): use them to leave out bases, then adapt those that remain.

    Parameters
    ----------
    bases : at least two, as a list or as name -> base. A base is "torchvision:resnet18=default" (library weights, fetched),
        "torchvision:resnet18=FILE", "tl_audit:small_cnn=FILE", "package.module:factory", "run:PATH" (its adapted model), a ``Model``, an
        ``nn.Module``, a pair (base, weights), or a mapping of plan keys (base, weights, input_size, settings). Without weights: a random
        start, which is a useful floor
    train : labelled data, a ``Domain`` or what ``Domain`` accepts (then with ``options`` such as label=, cluster=, kind=)
    evidence_dir : where features are kept, so that a second call runs no model again; None: a temporary folder
    offline : fetch no weights

    Raises
    ------
    TLAuditError : fewer than two bases, unlabelled data, a class with one sample, a base that cannot be opened or run; names it
    """
    named = _named(bases)
    if resamples < 100:
        raise ConfigError(f"resamples is {resamples}: expected at least 100 for intervals of ranks")
    if isinstance(train, Domain):
        if options:
            raise ConfigError(f"{', '.join(options)}: reader options belong to the Domain that was given")
        domain = train
    else:
        domain = Domain(Path(train).name if isinstance(train, str | Path) else _ROLE, train, **options)
    labels, classes, notes = _labels(domain)
    opened = _open(named, domain, classes=len(classes), seed=seed, offline=offline)
    notes += [f"{name}: {note}" for name, base in opened.items() for note in base.notes]
    features, said = _features(opened, domain, device=device, evidence_dir=evidence_dir, progress=progress)
    notes += said
    usable = np.logical_and.reduce([found[1] for found in features.values()])
    rows = np.flatnonzero(usable & (labels >= 0))
    if lost := int(((labels >= 0) & ~usable).sum()):
        notes.append(f"{lost} samples could not be read, or a base gives no finite features for them: left out for all bases")
    y = labels[rows]
    counts = np.bincount(y, minlength=len(classes))
    for c in np.flatnonzero(counts < LEAST_PER_CLASS):
        raise DataError(
            f"{domain.name}: class {classes[c]!r} has {counts[c]} usable sample{'' if counts[c] == 1 else 's'}: ranking needs at least"
            f" {LEAST_PER_CLASS} of each class; add samples, or leave the class out"
        )
    if (few := int((counts < FEW_PER_CLASS).sum())) > 0:
        notes.append(f"{few} of {len(classes)} classes have fewer than {FEW_PER_CLASS} samples: intervals of ranks are too narrow there")
    cluster = None if domain.cluster is None else np.asarray(domain.cluster)[rows]
    unit = cluster_codes(cluster, rows.size)
    units = int(unit.max()) + 1
    if cluster is None:
        notes.append("samples are treated as independent: name a cluster column where several come from one patient, site or document")
    elif units < FEW_CLUSTERS:
        notes.append(f"{units} clusters are few for a bootstrap: intervals of ranks are too narrow")
    values = np.empty((len(MEASURES), len(opened)))
    left = np.empty((len(MEASURES), units, len(opened)))
    widths = []
    for i, (name, (given, _)) in enumerate(features.items()):
        progress("measures of the bases", i, len(opened))
        widths.append(int(given.shape[1]))
        try:
            found = deletions(np.asarray(given[rows], dtype=np.float64), y, unit, classes=len(classes))
        except DataError as error:
            raise DataError(f"base {name}: {error}") from error
        for m, measure in enumerate(MEASURES):
            values[m, i], left[m, :, i] = found[measure]
    progress("measures of the bases", len(opened), len(opened))
    moved = _resampled(values[:, None, :] - left, y, unit, resamples, seed)
    placings = tuple(p for m, measure in enumerate(MEASURES) for p in _placings(tuple(opened), measure, values[m], moved[m]))
    return Ranking(
        tuple(opened), placings, tuple(widths), domain.name, int(rows.size), classes, None if cluster is None else units, resamples, seed,
        notes=tuple(dict.fromkeys(notes)),
    )  # fmt: skip


# ---- what was asked -------------------------------------------------------------------------------------------------------------------------


def _named(bases: Any) -> dict[str, Any]:  # Any: see rank_bases
    if isinstance(bases, str | Path) or not isinstance(bases, Sequence | Mapping):
        raise ConfigError("ranking needs at least two bases, as a list or as name -> base")
    if isinstance(bases, Mapping):
        named = {str(name): base for name, base in bases.items()}
    else:
        named = {}
        for base in bases:
            name, number = _name(base), 2
            while (unique := name if name not in named else f"{name} ({number})") in named:
                number += 1
            named[unique] = base
    if len(named) < 2:
        raise ConfigError(f"ranking needs at least two bases, got {len(named)}: a rank among one says nothing")
    return named


def _name(base: Any) -> str:  # Any: see rank_bases
    if isinstance(base, str | Path):
        # paths say where a file lies on this machine, which no reader of a ranking needs
        arch, sign, weights = str(base).partition("=")
        if arch.startswith("run:") or ":" not in arch:
            return f"run:{Path(str(base).removeprefix('run:')).name}"
        return f"{arch}={Path(weights).name}" if sign else arch
    if isinstance(base, Mapping):
        base = (base.get("base", "?"), base.get("weights"))
    if isinstance(base, tuple) and len(base) == 2:
        return f"{_name(base[0])}={Path(str(base[1])).name}" if base[1] is not None else _name(base[0])
    name = getattr(base, "name", None)
    if isinstance(name, str) and name != "model":
        return name
    return getattr(base, "arch", None) or type(getattr(base, "module", base)).__name__


def _plan_of(name: str, base: Any, *, kind: str, seed: int) -> Any:  # Any: see rank_bases; gives a Plan
    from tl_audit.finetune import Plan, Stage

    keys: dict[str, Any]
    if isinstance(base, Mapping):
        keys = dict(base)
        if unknown := sorted(set(keys) - {"base", "weights", "input_size", "settings"}):
            raise ConfigError(f"a base has no key {unknown[0]!r}: known keys: base, weights, input_size, settings")
    elif isinstance(base, tuple) and len(base) == 2:
        keys = {"base": base[0], "weights": None if base[1] is None else str(base[1])}
    elif isinstance(base, str | Path):
        text = str(base)
        if ":" not in text and Path(text).is_dir():
            text = f"run:{text}"
        if ":" not in text:
            raise ConfigError(
                f"{text!r} names no architecture: give ARCH=FILE for a weights file (torchvision:resnet18={text}), or the directory of a run"
            )
        arch, sign, weights = (text, "", "") if text.startswith("run:") else text.partition("=")
        if sign and not weights:
            raise ConfigError(f'nothing follows the "=": give ARCH=FILE, ARCH=default, or {arch} alone for a random start')
        keys = {"base": arch, "weights": weights or None}
    else:
        keys = {"base": base}
    return Plan(**{**keys, "stages": [Stage("head")], "kind": kind, "seed": seed})


def _labels(domain: Domain) -> tuple[NDArray[np.int64], tuple[str, ...], list[str]]:
    """(N,) class numbers (-1 without a label), the classes that occur, and notes."""
    if domain.labels is None or domain.classes is None:
        raise DataError(f"{domain.name}: no class labels; ranking needs class folders, or a label column (label=, --label)")
    notes: list[str] = []
    known = [label is not None for label in domain.labels]
    found = tuple(c for c in domain.classes if c in {str(v) for v, there in zip(domain.labels, known, strict=True) if there})
    if len(found) < 2:
        raise DataError(f"{domain.name}: all labelled samples are of one class, there is nothing to tell apart")
    if absent := [c for c in domain.classes if c not in found]:
        notes.append(f"no samples of {', '.join(absent[:5])}{' and others' if len(absent) > 5 else ''}: these classes count nowhere")
    if not all(known):
        notes.append(f"{known.count(False)} samples without a label are left out")
    place = {name: i for i, name in enumerate(found)}
    codes = [place[str(v)] if there else -1 for v, there in zip(domain.labels, known, strict=True)]
    return np.array(codes, dtype=np.int64), found, notes


# ---- the bases ------------------------------------------------------------------------------------------------------------------------------


def _open(named: Mapping[str, Any], domain: Domain, *, classes: int, seed: int, offline: bool) -> dict[str, Base]:
    """Every base with its weights and its preprocessing. An error names the base."""
    from tl_audit.finetune.base import open_base
    from tl_audit.modality import fit_encoding

    encoding: TableEncoding | None = None
    if domain.kind == "tabular":
        encoding = fit_encoding(domain, rows=np.arange(len(domain), dtype=np.int64))
    opened = {}
    for name, given in named.items():
        try:
            plan = _plan_of(name, given, kind=domain.kind, seed=seed)
            base = open_base(plan, kind=domain.kind, classes=classes, encoding=encoding, offline=offline)
            spec = _spec(base, plan.input_size, domain, encoding)
        except TLAuditError as error:
            raise type(error)(f"base {name}: {error}") from error
        opened[name] = dataclasses.replace(base, model=dataclasses.replace(base.model, preprocessing=spec, name=name))
    return opened


def _spec(base: Base, input_size: int | None, domain: Domain, encoding: TableEncoding | None) -> InputSpec | None:
    """How raw samples become this base's inputs: its own way, else that of the data."""
    from tl_audit.records.preprocessing import Preprocessing

    own = base.model.preprocessing
    if own is not None or domain.kind != "image":
        return own if own is not None else encoding
    if input_size is not None:
        return Preprocessing(height=input_size, width=input_size)
    batch = domain.samples.read(np.arange(min(64, len(domain)), dtype=np.int64))
    sizes = {np.asarray(item).shape[:2] for item, error in zip(batch.items, batch.errors, strict=True) if error is None}
    if len(sizes) != 1:
        raise ConfigError(
            "its input size is not known and the pictures differ in size: give it as a mapping with input_size, or as a Model with preprocessing"
        )
    height, width = next(iter(sizes))
    return Preprocessing(height=height, width=width)


@dataclass(frozen=True)
class _Candidates(Subject):
    """A subject whose models are the bases of a ranking, by name: what the evidence pass runs."""

    candidates: Mapping[str, Model] = dataclasses.field(default_factory=dict)

    @cached_property
    def models(self) -> dict[str, Model]:
        return dict(self.candidates)


def _features(
    opened: Mapping[str, Base],
    domain: Domain,
    *,
    device: str,
    evidence_dir: str | Path | None,
    progress: Progress,
) -> tuple[dict[str, tuple[NDArray[Any], NDArray[np.bool_]]], list[str]]:
    """Penultimate features and finite rows of each base, from one reading of the data; and notes."""
    from tl_audit.evidence.passes import Collector
    from tl_audit.evidence.store import Store
    from tl_audit.evidence.surroundings import Stopper, deterministic
    from tl_audit.records.preprocessing import spec_hash

    with Stopper() as stop, deterministic(device) as where, Store(evidence_dir) as store:
        models = {name: dataclasses.replace(base.model, module=base.model.module.to(where)) for name, base in opened.items()}
        first = next(iter(models.values()))
        subject = _Candidates(adapted=first, target=domain, train=domain, candidates=models)
        collector = Collector(subject, store, progress, stop)
        try:
            collector.collect(_ROLE, tuple(models))
        except NotEvaluated as error:
            raise DataError(f"{domain.name}: {error}") from error
        found = {}
        for name in models:
            if (why := collector.runs(name, _ROLE)) is not None:
                raise ModelError(f"base {name}: {why}")
            table = collector.table(name, _ROLE)
            features = np.array(table.column("features"))
            if features.shape[1] == 0:
                raise ModelError(f"base {name}: it has no features before its outputs to judge")
            found[name] = features, np.array(table.column("finite"), dtype=np.bool_) & np.isfinite(features).all(axis=1)
        notes = list(collector.caveats)
    specs = {name: model.preprocessing for name, model in models.items()}
    if len({spec_hash(spec) for spec in specs.values()}) > 1:
        notes.append(f"the bases are fed in different ways ({_ways(specs)}): a rank is of a base with its preprocessing")
    return found, notes


def _ways(specs: Mapping[str, InputSpec | None]) -> str:
    words = []
    for name, spec in specs.items():
        height, width = getattr(spec, "height", None), getattr(spec, "width", None)
        size = f"{height} × {width}" if height is not None else ("its own columns" if spec is not None else "as given")
        words.append(f"{name}: {size}")
    return "; ".join(words[:4]) + ("; ..." if len(words) > 4 else "")


# ---- the bootstrap --------------------------------------------------------------------------------------------------------------------------


def _resampled(added: NDArray[np.float64], y: NDArray[np.int64], unit: NDArray[np.int64], resamples: int, seed: int) -> NDArray[np.float64]:
    """(measures, resamples, bases) how far resamples of units within their classes move each value.

    To first order a measure moves by what each unit adds, as often as it is drawn more than once; scaled so that the variance is not too
    small. A cluster counts for the class most of its rows have; classes with a single unit are drawn from together.

    Parameters
    ----------
    added : (measures, units, bases) what each unit adds to each measure of each base
    """
    units = added.shape[1]
    table = np.zeros((units, int(y.max()) + 1))
    np.add.at(table, (unit, y), 1.0)
    stratum = table.argmax(axis=1)
    stratum = np.where(np.bincount(stratum)[stratum] == 1, -1, stratum)
    rng = generator(seed, "rank_bases")
    out = np.zeros((added.shape[0], resamples, added.shape[2]))
    for value in np.unique(stratum):
        members = np.flatnonzero(stratum == value)
        if members.size > 1:
            drawn = rng.multinomial(members.size, np.full(members.size, 1 / members.size), size=resamples) - 1.0
            out += np.sqrt(members.size / (members.size - 1)) * (drawn @ added[:, members])
    return out


def _placings(names: tuple[str, ...], measure: str, values: NDArray[np.float64], moved: NDArray[np.float64]) -> list[Placing]:
    """Ranks of ``values`` (bases,) and of values + moved (resamples, bases), with what resampling makes of them."""
    drawn = values + moved
    slack = _TIE * np.maximum(1.0, np.abs(values).max())
    best, worst = _rank_range(drawn, slack)
    first = best == 1
    shares = (first / first.sum(axis=1, keepdims=True)).mean(axis=0)
    own = _rank_range(values[None, :], slack)[0][0]
    tail = (1 - CONFIDENCE) / 2
    low = np.quantile(best, tail, axis=0, method="inverted_cdf")
    high = np.quantile(worst, 1 - tail, axis=0, method="inverted_cdf")
    return [
        Placing(name, measure, float(values[i]), int(own[i]), int(min(low[i], own[i])), int(max(high[i], own[i])), float(shares[i]))
        for i, name in enumerate(names)
    ]


def _rank_range(values: NDArray[np.float64], slack: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(..., bases) least and greatest rank of each value in its row: equal values share."""
    above = (values[:, None, :] > values[:, :, None] + slack).sum(axis=2)
    not_below = (values[:, None, :] >= values[:, :, None] - slack).sum(axis=2)
    return above + 1, not_below


def _listed(names: Sequence[str]) -> str:
    """``a, b and c``"""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _ranks(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"
