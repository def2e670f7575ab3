"""A hand-written audit record: every status, every kind of exhibit, realistic words and numbers. Made without any model."""

from __future__ import annotations

import base64
import math
import struct
import zlib

from tl_audit.records.exhibits import (
    Bar,
    Bars,
    Change,
    Column,
    Dot,
    GridRow,
    Heatmap,
    ImageGrid,
    Intervals,
    Ladder,
    LadderRow,
    Line,
    Lines,
    Picture,
    Reference,
    Stamp,
    Table,
)
from tl_audit.records.findings import AuditResult, DomainCard, Finding, LimitOutcome, ModelCard, Outcome, PolicyCard, SubjectCard
from tl_audit.records.metrics import Measurement, Metric


def png(side: int = 24, *, phase: float = 0.0, hot: bool = False) -> str:
    """A small smooth picture as base64 PNG, the same bytes on every machine with one zlib level."""
    rows = []
    for y in range(side):
        row = bytearray([0])
        for x in range(side):
            d = math.hypot(x - side * (0.4 + 0.2 * math.sin(phase)), y - side * 0.5) / side
            v = max(0.0, 1.0 - 2.2 * d)
            row += bytes(
                (int(255 * v), int(220 * v), int(70 + 30 * v)) if hot else (int(120 + 90 * v), int(150 + 60 * v), int(90 + 40 * v))
            )
        rows.append(bytes(row))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    # Stored, not compressed: the bytes then depend on no zlib version.
    body = zlib.compress(b"".join(rows), 0)
    data = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", body)
        + chunk(b"IEND", b"")
    )
    return base64.b64encode(data).decode()


def measured(name: str, value: float, low: float, high: float, n: int = 418, **more: object) -> Metric:
    role = str(more.pop("role", "target"))
    return Metric(name=name, value=value, interval=(low, high), confidence=0.95, n={role: n}, **more)  # type: ignore[arg-type]


def limit(metric: str, level: str, bound: str, value: float, outcome: str, **more: object) -> LimitOutcome:
    defaults: dict[str, object] = {
        "rule": "interval",
        "origin": "convention of this tool",
        "rationale": "A larger loss costs more than the release gains.",
        "confidence_used": 0.95,
    }
    return LimitOutcome(metric=metric, level=level, bound=bound, value=value, outcome=outcome, **(defaults | more))  # type: ignore[arg-type]


HELP = {
    "measured": "Both models are run once on the same target samples; the difference is taken sample by sample.",
    "matters": "A group that is read less well bears more of the errors than others.",
    "reduce": "Add training samples of the group, or train the last stage with balanced groups, and audit again.",
}
LAYERS = ("features.0", "features.3", "features.6", "layer1.conv", "layer2.conv", "layer3.conv", "pool", "head")


def ladder() -> Ladder:
    rows = []
    for i, name in enumerate(LAYERS):
        state = "frozen" if i < 3 else "new" if name == "head" else "trained"
        moved = 0.0 if state == "frozen" else 0.002 * 3.1 ** (i - 2)
        rows.append(
            LadderRow(
                layer=name, parameters=1024 * (i + 1), state=state, weight_change=moved, gradient_activity=None if state == "frozen" else 0.0007 * 2.4**i,
                cka_drift=min(0.9, 0.004 + 0.02 * i**1.7), cka_interval=(max(0.0, 0.02 * i**1.7 - 0.03), min(0.97, 0.03 + 0.025 * i**1.7)), cka_null=0.01,
            )
        )  # fmt: skip
    return Ladder(
        id="layer-ladder", title="Adaptation changed the upper half of the network; the frozen layers stayed as they were",
        how_to_read="Rows run from input to output. Hollow marks are frozen layers; longer bars mean more change.",
        alt="Three frozen layers show no weight change; change grows from layer1 to the head.", caption="8 layers; 418 target samples; seed 0.", rows=tuple(rows),
    )  # fmt: skip


def group_dots() -> Intervals:
    return Intervals(
        id="accuracy-by-site", title="Site south is read less well than the rest",
        how_to_read="Each dot is a group, the line its interval. The grey band is what chance would spread.",
        alt="North 0.95, south 0.72, east 0.93; the site coast is suppressed.", caption="n = 418, 95 % Wilson intervals, sorted by n.", value_label="accuracy",
        dots=(
            Dot(label="north", value=0.951, interval=(0.912, 0.973), n=204), Dot(label="south", value=0.721, interval=(0.633, 0.796), n=118),
            Dot(label="east, the long name of a site that has more letters than the chart has room", value=0.934, interval=(0.86, 0.971), n=88),
            Dot(label="coast", value=None, suppressed=True, n=None, note="suppressed: fewer than 10 samples"),
        ),
        references=(Reference(value=0.89, label="rest 0.89", role="rest"), Reference(value=0.80, label="limit ≥ 0.80", role="limit")), null_band=(0.85, 0.93),
    )  # fmt: skip


def before_after() -> Intervals:
    dots, changes = [], []
    for name, base, adapted in (("accuracy", 0.412, 0.884), ("balanced accuracy", 0.398, 0.871), ("AUROC", 0.694, 0.961)):
        dots += [
            Dot(label=name, series="base", value=base, interval=(base - 0.04, base + 0.04), n=418, hollow=True),
            Dot(label=name, series="adapted", value=adapted, interval=(adapted - 0.03, adapted + 0.025), n=418),
        ]
        changes.append(Change(label=name, value=adapted - base, interval=(adapted - base - 0.05, adapted - base + 0.05)))
    return Intervals(
        id="before-after", title="The adapted model reads the target far better than the base", how_to_read="Hollow is the base, filled the adapted model; Δ is the paired change.",
        alt="Accuracy rises from 0.41 to 0.88.", caption="Same 418 target samples for both models.", value_label="value", dots=tuple(dots), changes=tuple(changes),
    )  # fmt: skip


def reliability() -> Lines:
    xs = (0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95)
    target = (0.31, 0.38, 0.52, 0.55, 0.66, 0.74, 0.90)
    return Lines(
        id="reliability", title="Above 70 % the model is a little too sure of itself on the target",
        how_to_read="On the thin diagonal, confidence and accuracy agree. Bars below count the samples of each bin.",
        alt="The target curve runs below the diagonal by up to 0.11.", caption="7 equal-mass bins, n = 418; grey band: perfectly calibrated model at this n.",
        x_label="mean confidence", y_label="accuracy",
        lines=(
            Line(name="target", x=xs, y=target, low=tuple(v - 0.08 for v in target), high=tuple(v + 0.07 for v in target), mark="dot"),
            Line(name="source", x=xs, y=tuple(v - 0.01 for v in xs), mark="dot"),
            Line(name="calibrated, by chance", x=xs, y=(None,) * 7, low=tuple(v - 0.05 for v in xs), high=tuple(v + 0.05 for v in xs), role="null"),
            Line(name="perfect", x=(0.3, 1.0), y=(0.3, 1.0), role="reference"),
        ),
        counts=tuple((x, 40 + 11 * i) for i, x in enumerate(xs)), x_range=(0.3, 1.0), y_range=(0.2, 1.0),
    )  # fmt: skip


def cka_lines() -> Lines:
    return Lines(
        id="cka-by-depth", title="Features differ from the base from layer2 on", how_to_read="Higher means less like the base. Grey columns are frozen layers.",
        alt="Drift stays below 0.05 up to layer1, then rises to 0.6.", caption="Debiased CKA, 418 samples, jackknife intervals.", x_label="layer, input to output", y_label="CKA drift",
        lines=(
            Line(name="target", x=tuple(range(8)), y=(0.0, 0.01, 0.02, 0.05, 0.19, 0.33, 0.41, 0.6)),
            Line(name="source", x=tuple(range(8)), y=(0.0, 0.01, 0.01, 0.04, 0.12, 0.22, 0.3, 0.44)),
        ),
        x_ticks=LAYERS, shaded=((-0.5, 2.5),), y_range=(0.0, 1.0),
    )  # fmt: skip


def confusion() -> Heatmap:
    names = ("ant", "bee", "wasp", "hornet")
    counts = ((96, 3, 2, 1), (4, 101, 6, 0), (1, 12, 88, 9), (0, 1, 10, 84))
    shares = tuple(tuple(c / sum(row) for c in row) for row in counts)
    return Heatmap(
        id="confusion", title="Wasps are the class most often taken for another", how_to_read="Rows are the true class, columns the predicted one; a row sums to 1.",
        alt="12 of 110 wasps are read as bees.", caption="n = 418, counts in the cells.", row_label="true class", column_label="predicted class", rows=names, columns=names,
        values=shares, text=tuple(tuple(str(c) for c in row) for row in counts), value_label="share of the true class", value_range=(0.0, 1.0),
    )  # fmt: skip


def agreement() -> Heatmap:
    names = ("grad_cam", "integrated_gradients", "kernel_shap", "lime")
    values: tuple[tuple[float | None, ...], ...] = (
        (1.0, 0.31, 0.44, 0.38),
        (0.31, 1.0, 0.12, None),
        (0.44, 0.12, 1.0, 0.71),
        (0.38, None, 0.71, 1.0),
    )
    return Heatmap(
        id="agreement", title="LIME and kernel SHAP agree; integrated gradients stand apart", how_to_read="Blue is disagreement, orange agreement, white none. A star marks a broken limit.",
        alt="The largest agreement is 0.71.", caption="Mean rank correlation over 64 samples.", row_label="method", column_label="method", rows=names, columns=names, values=values,
        value_label="rank correlation", signed=True, stars=tuple(tuple(i != j and v == 0.12 for j, v in enumerate(row)) for i, row in enumerate(values)),
    )  # fmt: skip


def decomposition() -> Bars:
    return Bars(
        id="decomposition", title="Inputs moved most; the class mix hardly did", how_to_read="Bars are effects, the tick is what chance gives.", alt="Covariate 0.81, label 0.06, prediction 0.22.",
        caption="n = 418 target, 900 source; 999 permutations, seed 0.", value_label="effect, 0 to 1",
        bars=(
            Bar(label="inputs", value=0.81, interval=(0.77, 0.85), null=0.55, n=1318), Bar(label="class mix", value=0.06, interval=(0.02, 0.11), null=0.05, n=1318),
            Bar(label="look of a class", value=0.34, interval=(0.25, 0.43), null=0.21, n=1318), Bar(label="meaning of a class", value=None, state="unavailable", note="needs labels of both domains"),
            Bar(label="predictions", value=0.22, interval=(0.16, 0.28), null=0.05, n=1318),
        ),
    )  # fmt: skip


def cues() -> Bars:
    return Bars(
        id="cues", title="A corner mark pulls the adapted model towards “bee”", how_to_read="Bars right of 0 raise the class, left of 0 lower it.", alt="The mark raises bee by 0.24.",
        caption="200 target samples with and without the mark, seed 0.", value_label="change of mean probability", signed=True,
        bars=tuple(Bar(label=c, series=s, value=v, interval=(v - 0.04, v + 0.04)) for c, s, v in (
            ("ant", "mark", -0.13), ("ant", "random patch", 0.01), ("bee", "mark", 0.24), ("bee", "random patch", -0.02), ("wasp", "mark", -0.11), ("wasp", "random patch", 0.01))),
    )  # fmt: skip


def changes_per_layer() -> Bars:
    return Bars(
        id="weight-change", title="The head moved most", how_to_read="Relative change of weights on a logarithmic axis; hollow bars are frozen layers.", alt="The head changed by 1.1.",
        caption="Exact, from the weights.", value_label="relative weight change", log=True,
        bars=tuple(Bar(label=name, value=1e-3 * 2.7**i, state="frozen" if i < 2 else "changed" if i == 2 else "new" if name == "head" else "plain") for i, name in enumerate(LAYERS)),
    )  # fmt: skip


def gallery() -> ImageGrid:
    bad = Stamp(state="unreliable", text="fails TLA703: the map hardly changes when the weights are made random")
    good = Stamp(state="passed", text="TLA702 and TLA703 passed")
    rows = []
    for i, (true, predicted) in enumerate((("bee", "wasp"), ("ant", "ant"), ("wasp", "bee"))):
        rows.append(
            GridRow(
                id=f"a3f0c1{i:02d}", facts=(("true", true), ("base", "ant"), ("adapted", predicted), ("chosen", "worst error" if true != predicted else "at random")),
                pictures=(
                    Picture(title="input", alt=f"photograph of a {true}", png=png(phase=i), width=24, height=24),
                    Picture(title="grad_cam, base", alt="map over the wing", png=png(phase=i + 1, hot=True), width=24, height=24, method="grad_cam", stamp=good),
                    Picture(title="grad_cam, adapted", alt="map over the body", png=png(phase=i + 2, hot=True), width=24, height=24, method="grad_cam", stamp=good),
                    Picture(title="lime, adapted", alt="map over the background", png=png(phase=i + 3, hot=True), width=24, height=24, method="lime", stamp=bad),
                    Picture(title="integrated_gradients", alt="no map", png=None, note="no signal", method="integrated_gradients"),
                ),
            )
        )  # fmt: skip
    return ImageGrid(
        id="gallery", title="Where the models look, before and after", how_to_read="Bright parts moved the output most. The stamp under a map says whether its method may be believed.",
        alt="The adapted model looks at the body, the base at the wing.", caption="3 of 64 samples: worst errors and a random draw; one colour scale per method; seed 0.", rows=tuple(rows), samples="on",
    )  # fmt: skip


NEVER = (("never seen", 0, None, None, 0.0),)


def worst_table() -> Table:
    return Table(
        id="worst-classes", title="Recall and precision of each class", how_to_read="Every class has its own n; intervals are in the columns beside.", alt="Wasp has the lowest recall, 0.80.",
        caption="n = 418, Wilson intervals.", columns=(Column(name="class"), Column(name="n", format="count"), Column(name="recall", format="number"), Column(name="95 % CI"), Column(name="share", format="share")),
        rows=tuple((f"class {i:02d}" if i > 3 else ("ant", "bee", "wasp", "hornet")[i], 1100 - 40 * i, 0.94 - 0.01 * i, "0.88–0.97", 0.25 / (i + 1)) for i in range(20)) + NEVER,
    )  # fmt: skip


def findings() -> tuple[Finding, ...]:
    gap_limit = limit(
        "accuracy_gap", "fail", "abs", 0.10, "broken", slice={"site": "south"}, interval_used=(-0.27, -0.10 - 0.0123), p_limit=0.0004, p_limit_adjusted=0.0012,
        clauses=("eu-ai-act:art-10-2-f",), rationale="Missed infections spread, whichever site they come from.", origin="risk committee 2026-09",
    )  # fmt: skip
    return (
        Finding(
            code="TLA101", section="provenance", title="Lineage record", status="pass", severity="high", reason="All 14 facts of the lineage are recorded.",
            measurement=Measurement(summary="14 of 14 facts recorded.", metrics=(Metric(name="facts_missing", value=0.0, exact=True, n={"facts": 14}, better="lower"),)),
            limits=(limit("facts_missing", "warn", "max", 0, "met", rule="exact", confidence_used=None),), help=HELP, seconds=0.01,
        ),
        Finding(
            code="TLA103", section="provenance", title="Frozen stayed frozen", status="pass", severity="high", reason="All 6 tensors that were declared frozen are bit-equal.",
            measurement=Measurement(summary="6 of 6 frozen tensors unchanged.", metrics=(Metric(name="frozen_changed", value=0.0, exact=True, n={"tensors": 6}, better="lower"),)),
            limits=(limit("frozen_changed", "fail", "max", 0, "met", rule="exact", confidence_used=None),), help=HELP, seconds=0.02,
        ),
        Finding(
            code="TLA104", section="provenance", title="Weight drift", status="info", severity="info", reason="The policy sets no limit on weight drift.",
            measurement=Measurement(
                summary="Weights moved by 0.31 in the median trained layer.",
                metrics=tuple(Metric(name="relative_change", value=1e-3 * 2.7**i, exact=True, n={"weights": 1024 * (i + 1)}, slice={"layer": name}) for i, name in enumerate(LAYERS)),
                exhibits=(ladder(), changes_per_layer()), params={"norm": "Frobenius"},
            ),
            help=HELP, seconds=0.2,
        ),
        Finding(
            code="TLA201", section="data", title="Exact leakage", status="pass", severity="critical", reason="No target sample is among the training samples.",
            measurement=Measurement(summary="0 of 418 target samples are in training.", metrics=(Metric(name="leaked_share", value=0.0, exact=True, n={"target": 418}, better="lower", null=0.0),)),
            limits=(limit("leaked_share", "fail", "max", 0, "met", rule="exact", confidence_used=None),), help=HELP, seconds=0.1,
        ),
        Finding(
            code="TLA301", section="performance", title="Overall performance", status="pass", severity="critical", reason="Better than the most frequent class by at least 0.55; no violation of the limit detected at n = 418.",
            measurement=Measurement(
                summary="Accuracy 0.884 on the target.",
                metrics=(
                    measured("accuracy", 0.8843, 0.8502, 0.9115, better="higher", null=0.29), measured("balanced_accuracy", 0.871, 0.83, 0.9, better="higher", null=0.25),
                    measured("majority_gain", 0.594, 0.551, 0.635, better="higher", null=0.0, p_value=1e-7, p_adjusted=1e-7),
                    Metric(name="average_precision", value=None, reason="no positives in class hornet", n={"target": 418}),
                ),
                exhibits=(worst_table(),), caveats=("The majority class comes from the training data.",), params={"decision": "argmax", "seed": 0},
            ),
            limits=(limit("majority_gain", "fail", "min", 0.0, "met", interval_used=(0.551, 0.635), detectable=0.06, rationale=None),), help=HELP, seconds=0.4,
        ),
        Finding(
            code="TLA302", section="performance", title="Against base or previous", status="inconclusive", severity="critical",
            reason="accuracy_change against the previous model is −0.012 (95 % CI −0.041 to 0.017, n = 418); 1 204 more samples would settle it.",
            measurement=Measurement(
                summary="Accuracy changed by −0.012 against the previous model.",
                metrics=(
                    measured("accuracy_change", -0.012, -0.041, 0.017, slice={"against": "previous"}, better="higher", null=0.0, p_value=0.41, p_adjusted=0.41),
                    measured("accuracy_change", 0.472, 0.421, 0.521, slice={"against": "base"}, better="higher", null=0.0, p_value=0.0001, p_adjusted=0.0002),
                ),
                exhibits=(before_after(),),
            ),
            limits=(limit("accuracy_change", "fail", "min", -0.02, "undecided", slice={"against": "previous"}, interval_used=(-0.041, 0.017), missing_n=1204),), help=HELP, seconds=0.1,
        ),
        Finding(
            code="TLA304", section="performance", title="Confusion", status="info", severity="info", reason="The policy sets no limit on confusions.",
            measurement=Measurement(summary="Most errors are wasps read as bees.", metrics=(measured("top_confusion_share", 0.109, 0.063, 0.181, n=110, slice={"true": "wasp", "predicted": "bee"}),), exhibits=(confusion(),)),
            help=HELP, seconds=0.1,
        ),
        Finding(
            code="TLA305", section="performance", title="Calibration", status="warn", severity="high", reason="ece_debiased is 0.087 (95 % CI 0.061–0.112, n = 1418): the whole interval is beyond the warning limit 0.05; failure is excluded.",
            measurement=Measurement(
                summary="Confidence is off by 0.087 on average.", metrics=(measured("ece_debiased", 0.087, 0.061, 0.112, n=1418, better="lower", null=0.0), measured("overconfidence", 0.061, 0.03, 0.09, n=1418, null=0.0)),
                exhibits=(reliability(),), caveats=("Class weights in training shift the priors that confidence rests on.",),
            ),
            limits=(limit("ece_debiased", "warn", "max", 0.05, "broken", interval_used=(0.061, 0.112), rationale="Above this, thresholds set on the source mislead."), limit("ece_debiased", "fail", "max", 0.15, "met", interval_used=(0.061, 0.112), detectable=0.18)),
            waived_until="2027-03-31", waived_by="M. Example", help=HELP, seconds=0.7,
        ),
        Finding(code="TLA401", section="transfer", title="Negative-transfer gap", status="not_evaluated", severity="critical", reason="not evaluated: no control was given (control:head, control:scratch)", missing=("control:head", "control:scratch"), help=HELP),
        Finding(
            code="TLA403", section="transfer", title="Representation drift (CKA)", status="info", severity="info", reason="The policy sets no limit on representation drift.",
            measurement=Measurement(summary="Features differ from the base from layer2 on.", metrics=tuple(measured("cka_drift", 0.02 * i**1.7 + 0.004, max(0.0, 0.02 * i**1.7 - 0.02), 0.03 + 0.025 * i**1.7, slice={"layer": name}, null=0.0) for i, name in enumerate(LAYERS)), exhibits=(cka_lines(),)),
            help=HELP, seconds=1.2,
        ),
        Finding(
            code="TLA501", section="shift", title="Covariate shift", status="warn", severity="high", reason="c2st_auc is 0.81 (95 % CI 0.77–0.85): inputs of the target can be told from those of the source. Whether that harms is answered by TLA509.",
            measurement=Measurement(
                summary="A classifier tells target from source inputs with AUC 0.81.",
                metrics=(
                    Metric(name="c2st_auc", value=0.81, interval=(0.77, 0.85), confidence=0.95, n={"source": 450, "target": 209}, clusters={"source": 40, "target": 22}, better="lower", null=0.5, p_value=0.001, p_adjusted=0.002),
                    Metric(name="mmd2", value=0.0312, interval=(0.0203, 0.0431), confidence=0.95, n={"source": 900, "target": 418}, null=0.0, p_value=0.001, p_adjusted=0.002),
                ),
                exhibits=(decomposition(),),
            ),
            limits=(limit("c2st_auc", "warn", "max", 0.6, "broken", interval_used=(0.77, 0.85), p_limit=0.001),), help=HELP, seconds=2.4,
        ),
        Finding(code="TLA504", section="shift", title="Concept shift", status="not_evaluated", severity="high", reason="not evaluated: the source has no labels", missing=("source.labels",), help=HELP),
        Finding(code="TLA506", section="shift", title="Source-free BatchNorm shift", status="error", severity="medium", reason="the check broke: ValueError in running statistics of features.3 (expected 64 channels, got 32)", help=HELP, seconds=0.1),
        Finding(
            code="TLA602", section="fairness", title="Gap of each group to the rest", status="fail", severity="critical",
            reason="accuracy_gap of site = south is −0.19 (95 % CI −0.27 to −0.11, n = 118): the whole interval is beyond the limit |value| ≤ 0.10.",
            measurement=Measurement(
                summary="Site south is read less well than the rest by 0.19.",
                metrics=(
                    measured("accuracy_gap", -0.191, -0.27, -0.1123, n=118, slice={"site": "south"}, null=0.0, p_value=0.0002, p_adjusted=0.0006), measured("accuracy_gap", 0.09, 0.03, 0.14, n=204, slice={"site": "north"}, null=0.0, p_value=0.004, p_adjusted=0.008),
                    measured("accuracy_gap", 0.041, -0.02, 0.09, n=88, slice={"site": "east"}, null=0.0, p_value=0.21, p_adjusted=0.21),
                    Metric(name="accuracy_gap", value=None, reason="suppressed", n={}, slice={"site": "coast"}),
                ),
                exhibits=(group_dots(),), caveats=("8 samples carry no site; they form a group of their own.",), params={"positive": "bee"},
            ),
            limits=(gap_limit, limit("accuracy_gap", "fail", "abs", 0.10, "undecided", slice={"site": "north"}, interval_used=(0.03, 0.14), missing_n=96), limit("accuracy_gap", "fail", "abs", 0.10, "met", slice={"site": "east"}, interval_used=(-0.02, 0.09), detectable=0.13), limit("accuracy_gap", "fail", "abs", 0.10, "not_judged", slice={"site": "coast"}, confidence_used=None, note="suppressed")),
            help=HELP, seconds=0.3,
        ),
        Finding(
            code="TLA608", section="fairness", title="Bias transfer probe", status="fail", severity="high", reason="mark_effect of bee is 0.24 (95 % CI 0.20–0.28, n = 200): the whole interval is beyond the limit 0.10.",
            measurement=Measurement(summary="A corner mark pulls outputs towards bee.", metrics=(measured("mark_effect", 0.24, 0.2, 0.28, n=200, slice={"class": "bee"}, better="lower", null=0.0, p_value=0.0001, p_adjusted=0.0004),), exhibits=(cues(),)),
            limits=(limit("mark_effect", "fail", "max", 0.1, "broken", slice={"class": "bee"}, interval_used=(0.2, 0.28)),), help=HELP, seconds=3.1,
        ),
        Finding(
            code="TLA703", section="explanations", title="Parameter randomisation", status="fail", severity="critical", reason="LIME maps keep a rank correlation of 0.81 (95 % CI 0.76–0.86) with maps of a random model, beyond the limit 0.50.",
            measurement=Measurement(summary="LIME does not notice when the model is made random.", metrics=(measured("similarity", 0.81, 0.76, 0.86, n=64, slice={"method": "lime"}, better="lower", null=0.0), measured("similarity", 0.11, 0.05, 0.18, n=64, slice={"method": "grad_cam"}, better="lower", null=0.0)), exhibits=(agreement(),)),
            limits=(limit("similarity", "fail", "max", 0.5, "broken", slice={"method": "lime"}, interval_used=(0.76, 0.86)), limit("similarity", "fail", "max", 0.5, "met", slice={"method": "grad_cam"}, interval_used=(0.05, 0.18), detectable=0.6)),
            help=HELP, seconds=8.0,
        ),
        Finding(
            code="TLA711", section="explanations", title="Explanation gate", status="review", severity="critical", reason="One of two methods passed; a person must say whether the regions are plausible.",
            measurement=Measurement(summary="grad_cam passed, lime did not.", metrics=(Metric(name="methods_passed", value=1.0, exact=True, n={"methods": 2}),), exhibits=(gallery(),)),
            questions=("Are the bright regions plausible for an agronomist?",), help=HELP, seconds=0.1,
        ),
        Finding(code="TLA801", section="robustness", title="Corruptions", status="not_evaluated", severity="high", reason="not evaluated: deselected", help=HELP),
        Finding(
            code="TLA901", section="governance", title="Declared facts", status="warn", severity="high", reason="2 of 6 declared facts that the policy wants are missing: metric_rationale, oversight.",
            measurement=Measurement(summary="4 of 6 declared facts are there.", metrics=(Metric(name="declarations_missing", value=2.0, exact=True, n={"facts": 6}, better="lower"),)),
            limits=(limit("declarations_missing", "warn", "max", 0, "broken", rule="exact", confidence_used=None),), help=HELP, seconds=0.0,
        ),
    )  # fmt: skip


def golden() -> AuditResult:
    """The golden record."""
    found = findings()
    counts = {
        s: sum(f.status == s for f in found) for s in ("pass", "warn", "fail", "inconclusive", "review", "info", "not_evaluated", "error")
    }
    return AuditResult(
        title="Leaf insects, site B: adapted classifier, release 2", created="2026-11-21T10:00:00Z", tool={"name": "tl-audit", "version": "0.1.0"},
        outcome=Outcome(
            status="fail", counts=counts, sentence=f"{counts['fail']} findings fail, {counts['warn']} warn, {counts['inconclusive']} cannot be decided at this n; {counts['not_evaluated']} were not assessed and {counts['error']} broke.",
            gate="closed", blocked_by=("TLA602", "TLA608", "TLA703"), limits_judged=17, false_alarms_allowed=0.85, declarations_missing=("metric_rationale", "oversight"),
        ),
        subject=SubjectCard(
            adapted=ModelCard(key="adapted", name="insects-b", arch="torchvision:squeezenet1_1", sha256="3f" * 32, hash_of="file", file_format="safetensors", parameters=1_235_496, trainable=513_000, classes=("ant", "bee", "wasp", "hornet")),
            base=ModelCard(key="base", name="squeezenet1_1 (ImageNet)", arch="torchvision:squeezenet1_1", sha256="b8" * 32, hash_of="file", file_format="pickle", parameters=1_235_496, trainable=0),
            source=DomainCard(role="source", name="ImageNet mini", kind="image", n=900, sha256="aa" * 32, labelled=False, clusters=40),
            target=DomainCard(role="target", name="site B, season 2026", kind="image", n=418, sha256="bb" * 32, classes=("ant", "bee", "wasp", "hornet"), class_counts={"ant": 102, "bee": 111, "wasp": 110, "hornet": 95}, clusters=22, groups={"site": {"north": 204, "south": 118, "east": 88, "coast": "< 10"}}, unreadable=2),
            train=DomainCard(role="train", name="site B, season 2025", kind="image", n=1600, sha256="cc" * 32, classes=("ant", "bee", "wasp", "hornet")),
            adaptation={
                "schema_version": 1, "base_id": "torchvision:squeezenet1_1", "base_sha256": "b8" * 32, "base_format": "pickle", "method": "partial", "trainable_share": 0.415, "head": "classifier.1", "classes": ["ant", "bee", "wasp", "hornet"],
                "setting": "inductive", "seeds": {"python": 0, "torch": 0}, "plan_sha256": "dd" * 32, "seconds": 48.2, "device": "cpu", "flops": {"adaptation": 3.1e12, "method": "torch counter"},
                "stages": [
                    {"name": "head", "layers": ["head"], "epochs": 3, "lr": 0.001, "optimiser": "AdamW", "schedule": "cosine", "trainable_parameters": 2052, "best_epoch": 3},
                    {"name": "upper", "layers": ["layer3.*", "layer2.*"], "epochs": 3, "lr": 0.0001, "optimiser": "AdamW", "schedule": "cosine", "trainable_parameters": 510948, "best_epoch": 2, "stopped_early": True},
                ],
            },
        ),
        policy=PolicyCard(
            id="default", version=1, sha256="c0ffee" * 10 + "c0ff", stage="ci", fail_on="fail",
            resolved={"policy": {"id": "default", "version": 1}, "rules": {"confidence": 0.95, "alpha": 0.05, "min_n": 30, "suppress_below": 10, "permutation_unit": "cluster"}, "stages": {"ci": {"fail_on": "fail", "block_on": []}}, "limits": [{"check": "TLA602", "metric": "accuracy_gap", "slice": {"site": "*"}, "fail": {"abs": 0.1}}]},
        ),
        declared={
            "by": "J. Example", "on": "2026-10-01", "purpose": "Sorts leaf photographs for a second look by an agronomist.", "users": ["agronomists of site B"], "decision_role": "advisory", "owner": "M. Example, Plant Health", "version": "2.1",
            "out_of_scope": ["species other than maize", "automatic rejection"], "data_origin": {"value": "Field photographs of two seasons.", "by": "K. Example", "on": "2026-09-14"}, "harm": "An infection that is missed on one site more than on others.",
            "risks": [{"hazard": "Missed infection on shaded leaves", "findings": ["TLA602"], "mitigation": "Second photograph in shade", "accepted_by": "M. Example"}], "monitoring": [{"metric": "accuracy by site", "trigger": "below 0.80", "owner": "M. Example"}],
        },
        environment={"python": "3.11.9", "platform": "Linux x86_64", "packages": {"torch": "2.10.0", "numpy": "2.3.1"}, "device": "cpu"},
        config={"command": "tl-audit run audit.toml --out reports/insects", "samples": "on", "seed": 0, "device": "cpu", "deterministic": True, "target": {"path": "data/site_b", "groups": ["site"]}},
        caveats=("One seed per model: seed noise is not in the intervals.",), findings=found,
    )  # fmt: skip
