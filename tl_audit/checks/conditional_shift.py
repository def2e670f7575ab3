"""Family 5, the parts of a shift: the look of each class (TLA503), the answers (TLA505), the activations against the base's own (TLA506)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tl_audit.checks import mean_error
from tl_audit.checks.base import Check, Context, check, exact, metric
from tl_audit.checks.selection import clusters_of_both, common_names, rows_alone, side_of, units_in
from tl_audit.checks.shift import LEAST_PER_DOMAIN, MOST_PER_DOMAIN
from tl_audit.checks.wording import number, p_value, percent, signed
from tl_audit.errors import NotEvaluated
from tl_audit.evidence.base import Evidence
from tl_audit.measures import activations, intervals, shift
from tl_audit.measures.estimate import Estimate, limit_p
from tl_audit.measures.multiplicity import holm
from tl_audit.measures.sampling import bottom_k
from tl_audit.models.borrow import borrowed
from tl_audit.models.model import Model
from tl_audit.records.exhibits import Column, Dot, Intervals, Line, Lines, Reference, Table
from tl_audit.records.metrics import Measurement, Metric
from tl_audit.subject import Domain, Subject

MOST_PER_CLASS = 500
"""Samples of one class and domain that TLA503 compares, by hash priority."""
LEAST_CLUSTERS = 5
SHIFTED_BEYOND = 0.60
"""AUC above which a class is counted in ``classes_shifted``; the limits are the policy's."""
MOST_OUTPUTS = 20
MOST_SHOWN = 20
CURVE_POINTS = 101
BATCH = 64


# ---------------------------------------------------------------- TLA503


@check(
    "TLA503",
    "Class-conditional shift",
    section="shift",
    severity="high",
    needs=("source.labels", "target.labels", "base@source|adapted@source", "base@target|adapted@target"),
)
def class_conditional_shift(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Do samples of one class look different in the target, beyond the class mix?

    How it is measured: inside each class that has 50 samples in both domains, as TLA501: in penultimate features of the base (the
    adapted model's beside it), the held-out AUC of a linear classifier that tells source from target, and the debiased maximum mean
    discrepancy with a permutation test. Corrected for the number of classes.

    Why it matters: weights for another class mix mend a label shift; they cannot mend a class that looks different.

    How to reduce the risk: adapt on target samples of the classes named; read TLA509, which says whether it costs performance.
    """
    rules = context.rules
    names = common_names(evidence)
    rulers = [
        key for key in ("base", "adapted") if subject.model(key) is not None and evidence.has(key, "source") and evidence.has(key, "target")
    ]
    if not rulers:
        raise NotEvaluated("features of one model on source and target")
    if not names:
        raise NotEvaluated("a class that both source and target hold")
    metrics: list[Metric] = []
    caveats: list[str] = []
    if rulers[0] != "base":
        caveats.append("No base model: features of the adapted model serve as the ruler; adaptation itself moves them.")
    found: dict[str, tuple[Estimate, Estimate]] = {}
    dots: list[Dot] = []
    for key in rulers:
        sides = [
            side_of(evidence, key, role, names, most=MOST_PER_CLASS, seed=context.seed, per_class=True) for role in ("source", "target")
        ]
        unit_a, unit_b = clusters_of_both(sides[0].cluster, sides[1].cluster, (sides[0].rows.size, sides[1].rows.size))
        small: list[str] = []
        for k, name in enumerate(names):
            a, b = sides[0].labels == k, sides[1].labels == k
            units = None if unit_a is None or unit_b is None else (unit_a[a], unit_b[b])
            count = None if units is None else {"source": units_in(units[0]), "target": units_in(units[1])}
            if min(a.sum(), b.sum()) < LEAST_PER_DOMAIN or (count is not None and min(count.values()) < LEAST_CLUSTERS):
                small.append(name)
                continue
            x = np.asarray(evidence.features(key, "source")[sides[0].rows[a]], dtype=np.float64)
            y = np.asarray(evidence.features(key, "target")[sides[1].rows[b]], dtype=np.float64)
            cluster_a, cluster_b = (None, None) if units is None else units
            distance = shift.mmd(x, y, cluster_source=cluster_a, cluster_target=cluster_b, seed=context.seed, alpha=rules.alpha)
            domain = shift.c2st(x, y, cluster_source=cluster_a, cluster_target=cluster_b, seed=context.seed, alpha=rules.alpha)
            n = {"source": int(a.sum()), "target": int(b.sum())}
            # the gate reads the ruler's metrics; the adapted model's rows are for the reader
            where = {"class": name} if key == rulers[0] else {"class": name, "features": key}
            for metric_name, estimate in (("mmd2_class", distance), ("c2st_auc_class", domain)):
                better = "lower" if metric_name == "c2st_auc_class" else None
                metrics.append(
                    metric(
                        metric_name, estimate, rules=rules, slice=where, n=n, clusters=count, better=better,  # type: ignore[arg-type]
                        family=f"{metric_name} in features of {key}", min_n=LEAST_PER_DOMAIN,
                    )
                )  # fmt: skip
            if key == rulers[0]:
                found[name] = (distance, domain)
            dots.append(
                Dot(
                    label=name, value=domain.value, interval=domain.interval(rules.confidence), series=key, n=min(n.values()),
                    hollow=key == "base", note=domain.reason,
                )
            )  # fmt: skip
        if key == rulers[0]:
            if not found:
                raise NotEvaluated(
                    f"a class with {LEAST_PER_DOMAIN} labelled samples in both source and target"
                    + ("" if unit_a is None else f", from {LEAST_CLUSTERS} clusters in each")
                )
            if small:
                caveats.append(f"Not compared, too few samples or clusters in one domain: {_listed(small)}.")
    moved = _shifted(found, rules.alpha)
    largest = {name: pair[1] for name, pair in found.items()}
    metrics.append(exact("classes_shifted", len(moved), better="lower", null=0.0, n={"classes": len(found)}))
    if moved:
        told = ", ".join(f"{name} (AUC {number(largest[name].value)})" for name in moved[:3]) + (" and more" if len(moved) > 3 else "")
        summary = f"{len(moved)} of {len(found)} classes look different in the target: {told}."
    else:
        summary = f"None of the {len(found)} classes that could be compared is shown to look different in the target (AUC above {SHIFTED_BEYOND})."
    order = sorted(found, key=lambda name: (-(largest[name].value or 0.0), name))[:MOST_SHOWN]
    figure = Intervals(
        id="shift-by-class",
        title=summary,
        how_to_read="Held-out AUC of telling source from target inside one class: 0.5 by chance, 1 where no sample could be mistaken.",
        alt=summary,
        caption=f"At most {MOST_PER_CLASS} samples per class and domain by hash priority, seed {context.seed}; {rules.confidence:.0%} intervals, each by itself; the largest come first.",
        value_label="AUC, source against target",
        dots=tuple(dot for name in order for dot in dots if dot.label == name),
        references=(Reference(value=0.5, label="chance", role="null"),),
    )
    caveats.append("Shift is expected in transfer and is no harm by itself: TLA509 says whether it costs performance.")
    if alone := rows_alone(evidence, ("source", "target")):
        caveats.append(alone)
    return Measurement(
        summary=summary, metrics=tuple(metrics), exhibits=(figure,), caveats=tuple(caveats),
        params={
            "ruler": rulers[0], "most_per_class": MOST_PER_CLASS, "classes_compared": len(found), "shifted_beyond": SHIFTED_BEYOND,
            "kernel": "Gaussian, median bandwidth of each class", "seed": context.seed,
        },
    )  # fmt: skip


def _shifted(found: dict[str, tuple[Estimate, Estimate]], alpha: float) -> list[str]:
    """Classes whose discrepancy is significant and whose AUC is shown to exceed SHIFTED_BEYOND, both after Holm; largest AUC first."""
    names = list(found)
    tested = holm([found[name][0].p_value for name in names])
    beyond = holm([limit_p(found[name][1].ladder, maximum=SHIFTED_BEYOND) for name in names])
    moved = [name for name, p, q in zip(names, tested, beyond, strict=True) if p is not None and q is not None and p < alpha and q < alpha]
    return sorted(moved, key=lambda name: (-(found[name][1].value or 0.0), name))


# ---------------------------------------------------------------- TLA505


@check(
    "TLA505",
    "Prediction drift",
    section="shift",
    severity="medium",
    needs=("adapted", "adapted@source", "adapted@target"),
    values=mean_error.prediction_drift,
)
def prediction_drift(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """Does the adapted model answer differently on the target?

    How it is measured: for each class, the largest gap between the distributions of its predicted probability on source and target (KS), tested by
    permutation and corrected for the number of classes; the share of predicted classes that would have to move; mean confidence on the
    target minus on the source. No labels are used.

    Why it matters: it is what monitoring sees first, before any label arrives.

    How to reduce the risk: find out what moved: the class mix (TLA502), the inputs (TLA501, TLA507) or the look of a class (TLA503).
    """
    rules, seed = context.rules, context.seed
    names = _output_names(subject, evidence)
    sides = {role: _outputs(evidence, role, seed) for role in ("source", "target")}
    (p, of_p), (q, of_q) = sides["source"], sides["target"]
    unit_a, unit_b = clusters_of_both(of_p, of_q, (p.shape[0], q.shape[0]))
    n = {"source": int(p.shape[0]), "target": int(q.shape[0])}
    units = None if unit_a is None or unit_b is None else {"source": units_in(unit_a), "target": units_in(unit_b)}
    columns, caveats = _columns(p, q, names)
    gaps: dict[int, Estimate] = {}
    metrics: list[Metric] = []
    for k in columns:
        gaps[k] = shift.ks_shift(
            p[:, k], q[:, k], cluster_source=unit_a, cluster_target=unit_b, tests=len(columns), alpha=rules.alpha, seed=seed
        )
        where = {"class": names[k]}
        metrics.append(
            metric(
                "output_ks",
                gaps[k],
                rules=rules,
                better="lower",
                slice=where,
                n=n,
                clusters=units,
                family="output_ks",
                min_n=LEAST_PER_DOMAIN,
            )
        )
        high = gaps[k].details.get("null_high")
        metrics.append(
            exact(
                "output_ks_null_high", high, n=n, slice=where,
                reason=None if high is not None else "no permutation test: " + str(gaps[k].details.get("p_reason")),
            )
        )  # fmt: skip
    moved = shift.tvd_shift(
        p.argmax(axis=1), q.argmax(axis=1), classes=len(names), cluster_source=unit_a, cluster_target=unit_b, alpha=rules.alpha, seed=seed
    )
    metrics.append(metric("predicted_tvd", moved, rules=rules, better="lower", n=n, clusters=units))
    confidence = intervals.mean_difference(q.max(axis=1), p.max(axis=1), cluster_first=unit_b, cluster_second=unit_a)
    metrics.append(metric("confidence_gap", confidence, rules=rules, n=n, clusters=units))
    order = sorted(columns, key=lambda k: (-(gaps[k].value or 0.0), names[k]))
    summary = (
        f"Largest gap of a predicted probability between source and target: {number(gaps[order[0]].value)} for class {names[order[0]]}"
        f" (p = {p_value(gaps[order[0]].p_value)}); {percent(moved.value)} of the predicted classes would have to move; mean confidence"
        f" {signed(confidence.value)} on the target."
    )
    listing = Table(
        id="outputs",
        title="Predicted probabilities on source and target",
        how_to_read="KS: largest gap of the two distributions, 0 to 1. By chance: what it stays below without any drift, allowing for all classes.",
        alt=summary,
        caption=f"n = {n['source']} source, {n['target']} target; p before correction for {len(columns)} classes; seed {seed}.",
        columns=(
            Column(name="class"),
            *(Column(name=name, format="number") for name in ("KS", "by chance", "p", "mean on the source", "mean on the target")),
        ),
        rows=tuple(
            (names[k], gaps[k].value, gaps[k].details.get("null_high"), gaps[k].p_value, float(p[:, k].mean()), float(q[:, k].mean()))
            for k in order
        ),
    )
    caveats.append(
        "A mere change of class mix moves these numbers too (TLA502). Drift is no harm by itself: TLA509 says whether it costs performance."
    )
    if alone := rows_alone(evidence, ("source", "target")):
        caveats.append(alone)
    return Measurement(
        summary=summary, metrics=tuple(metrics), exhibits=(_curves(p[:, order[0]], q[:, order[0]], names[order[0]], n), listing),
        caveats=tuple(caveats), params={"outputs_tested": len(columns), "most_per_domain": MOST_PER_DOMAIN, "seed": seed},
    )  # fmt: skip


def _output_names(subject: Subject, evidence: Evidence) -> tuple[str, ...]:
    """Names of the adapted model's outputs; numbers where it has none."""
    width = evidence.probabilities("adapted", "target").shape[1]
    known = subject.adapted.classes or ()
    return known if len(known) == width else tuple(str(k) for k in range(width))


def _outputs(evidence: Evidence, role: str, seed: int) -> tuple[NDArray[np.float64], NDArray[Any] | None]:
    """Probabilities (n, C) of usable rows, at most MOST_PER_DOMAIN by hash priority, and their cluster ids."""
    rows = np.flatnonzero(evidence.usable("adapted", role))
    if rows.size == 0:
        raise NotEvaluated(f"samples of the {role} with finite outputs of the adapted model")
    if rows.size > MOST_PER_DOMAIN:
        ids = evidence.ids(role)
        rows = rows[bottom_k([ids[int(r)] for r in rows], MOST_PER_DOMAIN, seed)]
    cluster = evidence.cluster(role)
    return evidence.probabilities("adapted", role)[rows], None if cluster is None else np.asarray(cluster)[rows]


def _columns(p: NDArray[np.float64], q: NDArray[np.float64], names: tuple[str, ...]) -> tuple[list[int], list[str]]:
    """Outputs to test: one of two mirror images, and of many the most probable over both domains, which the domain labels do not decide."""
    if len(names) == 2:
        return [1], [f"With two classes the probability of {names[0]} mirrors that of {names[1]}: one test."]
    if len(names) <= MOST_OUTPUTS:
        return list(range(len(names))), []
    weight = np.concatenate([p, q]).mean(axis=0)
    picked = sorted(int(k) for k in np.argsort(-weight, kind="stable")[:MOST_OUTPUTS])
    return picked, [f"Tested: the {MOST_OUTPUTS} of {len(names)} classes with the largest mean probability over both domains."]


def _curves(p: NDArray[np.float64], q: NDArray[np.float64], name: str, n: dict[str, int]) -> Lines:
    """Distribution functions of one predicted probability on both domains."""
    grid = np.linspace(0.0, 1.0, CURVE_POINTS)
    return Lines(
        id="output-distributions",
        title=f"Predicted probability of class {name} on source and target",
        how_to_read="Share of samples whose probability is at most the value below. The largest vertical gap is the KS distance.",
        alt=f"Distribution functions of the predicted probability of class {name}.",
        caption=f"The class whose probability moved most; n = {n['source']} source, {n['target']} target.",
        x_label=f"predicted probability of {name}",
        y_label="share of samples at or below",
        lines=tuple(
            Line(name=role, x=tuple(grid.tolist()), y=tuple((np.searchsorted(np.sort(values), grid, side="right") / values.size).tolist()))
            for role, values in (("source", p), ("target", q))
        ),
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
    )


# ---------------------------------------------------------------- TLA506


@check(
    "TLA506",
    "Source-free BatchNorm shift",
    section="shift",
    severity="medium",
    needs=("base", "target", "base@target"),
    runs_models=True,
    values="same",
)
def batchnorm_shift(subject: Subject, evidence: Evidence, context: Context) -> Measurement:
    """How far are target activations from the statistics stored in the base?

    How it is measured: the base is run on the target in evaluation mode. At the input of each batch normalisation, the squared distance of each
    channel's mean and deviation from the stored ones, in units of the stored variance, averaged over channels and freed of its bias
    by a jackknife over samples or clusters. The same on the source, where there is one: the difference is the shift.

    Why it matters: the base carries a summary of the data it was trained on; this compares with it where those data are gone.

    How to reduce the risk: re-estimate the statistics on target data (adapt with the normalisation layers in training mode), or mend the
    preprocessing where the first layer is already far off (TLA108).
    """
    rules, seed = context.rules, context.seed
    base = subject.base
    if base is None:
        raise NotEvaluated("the base model")
    found = {"target": _activations(base, subject, evidence, "target", context)}
    if not found["target"]:
        raise NotEvaluated("a base with batch normalisation that stores running statistics: this one has none that its forward uses")
    caveats: list[str] = []
    if subject.source is not None and evidence.has("base", "source"):
        found["source"] = _activations(base, subject, evidence, "source", context)
    else:
        caveats.append(
            "No source to compare with: statistics were collected under training augmentation, so even source data give more than 0."
        )
    metrics: list[Metric] = []
    layers = list(found["target"])
    beyond: list[tuple[float, str]] = []
    for number_of, layer in enumerate(layers):
        here = found["target"][layer]
        where = {"layer": layer}
        metrics.append(metric("bn_shift", here, rules=rules, better="lower", slice=where, unit="stored variances"))
        if number_of == 0:
            metrics.append(metric("bn_shift_first", here, rules=rules, better="lower", unit="stored variances"))
        there = found.get("source", {}).get(layer)
        if there is None:
            continue
        excess = activations.shift_excess(here, there)
        n = {"source": there.n, "target": here.n}
        units = None if here.clusters is None or there.clusters is None else {"source": there.clusters, "target": here.clusters}
        metrics.append(metric("bn_shift_reference", there, rules=rules, role="source", slice=where, unit="stored variances"))
        metrics.append(
            metric(
                "bn_shift_excess", excess, rules=rules, better="lower", slice=where, n=n, clusters=units, family="bn_shift_excess",
                unit="stored variances",
            )
        )  # fmt: skip
        if excess.value is not None:
            beyond.append((excess.value, layer))
    first = found["target"][layers[0]]
    dead = sum(int(one.details.get("dead_channels", 0)) for one in found["target"].values())
    if dead:
        caveats.append(f"{dead} channels with a stored variance of 0 are left out.")
    summary = f"At the first of {len(layers)} batch normalisations the target lies {number(first.value)} stored variances from the base's statistics"
    if "source" in found and beyond:
        value, layer = max(beyond)
        summary += f"; beyond the source's own distance, most at {layer}: {signed(value)}."
    else:
        summary += "."
    figure = Lines(
        id="bn-shift-by-depth",
        title=summary,
        how_to_read="0: the activations have the stored mean and deviation. The source's line is what data like the base's own give.",
        alt=summary,
        caption=f"At most {MOST_PER_DOMAIN} samples per domain by hash priority, seed {seed}; {rules.confidence:.0%} jackknife intervals.",
        x_label="batch normalisation, input to output",
        y_label="distance in stored variances",
        lines=tuple(_depth_line(role, [found[role].get(layer) for layer in layers], rules.confidence) for role in found),
        x_ticks=tuple(layers),
    )
    caveats.append(
        "Shift is expected in transfer and is no harm by itself: TLA509 says whether it costs performance. The class mix moves deep layers too."
    )
    if evidence.cluster("target") is None:
        caveats.append("Rows are treated as independent: no cluster ids were given for the target.")
    return Measurement(
        summary=summary, metrics=tuple(metrics), exhibits=(figure,), caveats=tuple(caveats),
        params={"layers": len(layers), "most_per_domain": MOST_PER_DOMAIN, "reference": "source" in found, "batch_size": BATCH, "seed": seed},
    )  # fmt: skip


def _normalisations(net: nn.Module) -> dict[str, nn.Module]:
    """Modules that normalise each channel with stored statistics, by name (also frozen batch norms of torchvision)."""
    found = {}
    for name, module in net.named_modules():
        stored = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        per_sample = isinstance(module, nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d)
        if not per_sample and all(isinstance(one, torch.Tensor) and one.ndim == 1 for one in stored):
            found[name] = module
    return found


def _activations(model: Model, subject: Subject, evidence: Evidence, role: str, context: Context) -> dict[str, Estimate]:
    """Distance of each normalisation's inputs from its stored statistics, in the order in which the forward comes to them."""
    domain = subject.domain(role)
    if domain is None:
        raise NotEvaluated(f"the {role} domain")
    rows = np.flatnonzero(evidence.usable("base", role))
    if rows.size == 0:
        raise NotEvaluated(f"samples of the {role} with finite outputs of the base model")
    if rows.size > MOST_PER_DOMAIN:
        ids = evidence.ids(role)
        rows = rows[bottom_k([ids[int(r)] for r in rows], MOST_PER_DOMAIN, context.seed)]
    cluster = evidence.cluster(role)
    units = None if cluster is None else np.asarray(cluster)[rows]
    blocks = activations.jackknife_blocks(rows.size, cluster=units, seed=context.seed)
    with borrowed(model) as net, torch.no_grad():
        sums = _collected(net, model, domain, rows, blocks, role, context)
        modules = _normalisations(net)
        variances = {name: modules[name].running_var.detach().double().cpu().numpy() for name in sums}  # type: ignore[union-attr, operator]
    clusters = None if units is None else units_in(units)
    return {name: activations.channel_shift(one, variances[name], n=int(rows.size), clusters=clusters) for name, one in sums.items()}


def _collected(
    net: nn.Module, model: Model, domain: Domain, rows: NDArray[np.int64], blocks: NDArray[np.int64], role: str, context: Context
) -> dict[str, activations.ChannelSums]:
    """Sums of each normalisation's inputs over the rows of a domain. A layer whose batch is not the samples is left out."""
    count = int(blocks.max()) + 1
    sums: dict[str, activations.ChannelSums] = {}
    odd: set[str] = set()
    at: list[NDArray[np.int64]] = []

    def watch(name: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            x, block = inputs[0], at[0]
            if len(x) != block.size:
                odd.add(name)
                return
            centred = x.detach().double().flatten(2) if x.ndim > 2 else x.detach().double()[:, :, None]
            centred = centred - module.running_mean.double()[None, :, None]  # type: ignore[index, union-attr, operator]
            piece = activations.ChannelSums.empty(count, centred.shape[1])
            np.add.at(piece.count, block, float(centred.shape[2]))
            np.add.at(piece.total, block, centred.sum(dim=2).cpu().numpy())
            np.add.at(piece.squares, block, (centred**2).sum(dim=2).cpu().numpy())
            sums[name] = sums[name].merge(piece) if name in sums else piece

        return hook

    for name, module in _normalisations(net).items():
        module.register_forward_pre_hook(watch(name, module))
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    modality = domain.samples.modality
    for start in range(0, rows.size, BATCH):
        raw = domain.samples.read(rows[start : start + BATCH])
        at[:] = [blocks[start : start + BATCH][raw.readable]]
        inputs = modality.encode(raw, model.preprocessing)
        if len(inputs):
            net(inputs.to(device))
        context.progress(f"TLA506 {role}", min(start + BATCH, rows.size), int(rows.size))
    return {name: one for name, one in sums.items() if name not in odd}


def _depth_line(role: str, values: list[Estimate | None], confidence: float) -> Line:
    known = [one.interval(confidence) if one is not None else None for one in values]
    points = [None if one is None else one.value for one in values]
    return Line(
        name=role,
        x=tuple(float(i) for i in range(len(values))),
        y=tuple(points),
        low=tuple(pair[0] if pair else (point or 0.0) for pair, point in zip(known, points, strict=True)),
        high=tuple(pair[1] if pair else (point or 0.0) for pair, point in zip(known, points, strict=True)),
        mark="dot",
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


CONDITIONAL_SHIFT: tuple[Check, ...] = (class_conditional_shift, prediction_drift, batchnorm_shift)
