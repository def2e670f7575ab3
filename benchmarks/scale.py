"""Statistics of many rows, as ratios against what a user would pick. Each side of each row runs in a process of its own.

    python -m benchmarks scale              # all rows
    python -m benchmarks.scale groups mmd   # rows whose name begins with one of these words, and what they are held against

Seconds are of the processor, so that a busy machine does not count, and leave out imports and making the data. Memory is how much the peak
of the process grew in the course of the work. What would take minutes is timed on a part and multiplied, which the line says.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Work = Callable[[], Callable[[], object]]
"""Makes the data and returns the work on it."""


def _groups(n: int, text: bool = True) -> tuple[Any, Any, dict[str, Any]]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, n)
    predicted = np.where(rng.random(n) < 0.8, labels, 1 - labels)
    sex, site = rng.integers(0, 2, n), rng.integers(0, 5, n)
    if not text:
        return labels, predicted, {"sex": sex, "site": site}
    names = np.array([f"site {i}" for i in range(5)], dtype=object)
    return labels, predicted, {"sex": np.array(["f", "m"], dtype=object)[sex], "site": names[site]}


def ours_groups(n: int, text: bool = True, clusters: int = 0) -> Callable[[], object]:
    from tl_audit.measures.cells import group_metrics

    labels, predicted, groups = _groups(n, text)
    cluster = np.random.default_rng(1).integers(0, clusters, n) if clusters else None
    asked = ("accuracy", "selection_rate", "tpr", "fpr")
    return lambda: group_metrics(labels, predicted, groups, positive=1, metrics=asked, cluster=cluster, resamples=1000)


def fairlearn_groups(n: int, boots: int, mended: bool = False, crossed_alone: bool = False) -> Callable[[], object]:
    from types import SimpleNamespace

    import pandas as pd
    from fairlearn.metrics import MetricFrame, _annotated_metric_function, false_positive_rate, selection_rate, true_positive_rate
    from sklearn.metrics import accuracy_score

    labels, predicted, groups = _groups(n)
    if mended:  # a column of numbers is passed on as it is, in place of being stacked number by number
        _annotated_metric_function.np = SimpleNamespace(stack=lambda column: column)
    frame = pd.DataFrame(groups)
    metrics = {"accuracy": accuracy_score, "selection_rate": selection_rate, "tpr": true_positive_rate, "fpr": false_positive_rate}
    boot = {"n_boot": boots, "ci_quantiles": [0.025, 0.975], "random_state": 0} if boots else {}

    def work() -> None:
        for features in [frame] if crossed_alone else [frame[["sex"]], frame[["site"]], frame]:
            found = MetricFrame(metrics=metrics, y_true=labels, y_pred=predicted, sensitive_features=features, **boot)
            if boots:
                found.difference_ci()
            else:
                found.difference()

    return work


def _samples(n: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 512)), rng.normal(size=(n, 512))


def ours_mmd(n: int) -> Callable[[], object]:
    from tl_audit.measures.shift import mmd

    x, y = _samples(n)
    return lambda: mmd(x, y, resamples=999)


def _kernel(z: Any) -> Any:
    squares = (z * z).sum(1)
    distances = np.maximum(squares[:, None] + squares[None] - 2 * z @ z.T, 0)
    return np.exp(-distances / np.median(distances))


def loop_mmd(n: int, permutations: int, anew: bool) -> Callable[[], object]:
    z = np.concatenate(_samples(n))
    rng = np.random.default_rng(1)

    def statistic(k: Any) -> float:
        a, b, c = k[:n, :n], k[n:, n:], k[:n, n:]
        return float((a.sum() - np.trace(a) + b.sum() - np.trace(b)) / (n * (n - 1)) - 2 * c.mean())

    kernel = None if anew else _kernel(z)

    def work() -> None:
        for _ in range(permutations):
            order = rng.permutation(2 * n)
            statistic(_kernel(z[order]) if kernel is None else kernel[np.ix_(order, order)])

    return work


def _layers() -> tuple[list[Any], list[Any]]:
    rng = np.random.default_rng(0)
    first = [rng.normal(size=(5000, 256)) for _ in range(50)]
    return first, [x + rng.normal(size=x.shape) for x in first]


def ours_cka(whole: bool) -> Callable[[], object]:
    from tl_audit.measures.representation import cka_table, linear_cka

    first, second = _layers()
    return (lambda: cka_table(first, second)) if whole else (lambda: [linear_cka(x, y) for x, y in zip(first, second, strict=True)])


def plain_cka(pairs: int) -> Callable[[], object]:
    """Unbiased CKA from whole kernel matrices of all rows, as formulas are written down."""
    first, second = _layers()

    def hsic(k: Any, l: Any) -> float:
        n = len(k)
        total = (k * l).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ l.sum(0))
        return float(total / (n * (n - 3)))

    def work() -> None:
        for x, y in list(zip(first, second, strict=True))[:pairs]:
            k, l = x @ x.T, y @ y.T
            np.fill_diagonal(k, 0)
            np.fill_diagonal(l, 0)
            hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))

    return work


def _column(number: int, n: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(number)
    return rng.normal(size=n), rng.normal(size=n) + 0.01


def ours_columns(n: int, columns: int) -> Callable[[], object]:
    from tl_audit.measures.shift import property_shifts

    kept = [_column(number, n) for number in range(min(columns, 4))]  # the same arrays again: making new ones is not the work
    return lambda: list(property_shifts(((f"c{i}", *kept[i % 4], False) for i in range(columns)), tests=columns))


def scipy_columns(n: int, columns: int, whole: bool) -> Callable[[], object]:
    """The KS test by SciPy; ``whole``: also the Wasserstein distance, and the stability index by NumPy."""
    from scipy import stats

    kept = [_column(number, n) for number in range(columns)]

    def work() -> None:
        for x, y in kept:
            stats.ks_2samp(x, y)
            if whole:
                stats.wasserstein_distance(x, y)
                edges = np.quantile(x, np.arange(1, 10) / 10)
                p, q = (np.histogram(side, np.r_[-np.inf, edges, np.inf])[0] / side.size for side in (x, y))
                ((q - p) * np.log(q / p)).sum()

    return work


def _scores() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    labels = rng.random(1_000_000) < 0.3
    return labels, rng.normal(size=1_000_000) + labels


def ours_auc() -> Callable[[], object]:
    from tl_audit.measures.intervals import auc

    labels, scores = _scores()
    return lambda: auc(labels, scores)


def resampled_auc(resamples: int) -> Callable[[], object]:
    from sklearn.metrics import roc_auc_score

    labels, scores = _scores()
    rng = np.random.default_rng(1)

    def work() -> None:
        for _ in range(resamples):
            rows = rng.integers(0, labels.size, labels.size)
            roc_auc_score(labels[rows], scores[rows])

    return work


def ours_page() -> Callable[[], object]:
    import torch

    import tl_audit as ta

    rng = np.random.default_rng(0)
    source, target = (rng.normal(size=(100_000, 30)).astype(np.float32) + by for by in (0, 0.05))
    model = ta.Model(torch.nn.Linear(30, 2), classes=("no", "yes"))
    domains = {"source": ta.Domain("a", source, kind="tensor"), "target": ta.Domain("b", target, kind="tensor")}
    ta.audit(ta.Subject(adapted=model, **{k: ta.Domain(k, source[:200], kind="tensor") for k in domains}), select=["TLA507"])

    def work() -> str:
        page = ta.audit(ta.Subject(adapted=model, **domains), select=["TLA507"]).html
        return f"page of {len(page.encode()) / 1000:.0f} kB"

    return work


def ours_table_alone() -> Callable[[], object]:
    from tl_audit.measures.shift import property_shifts

    rng = np.random.default_rng(0)
    source, target = (rng.normal(size=(30, 100_000)) + by for by in (0, 0.05))
    return lambda: list(property_shifts(((f"c{i}", source[i], target[i], False) for i in range(30)), tests=30))


def ours_audit(clustered: bool) -> Callable[[], object]:
    """Families 1 to 6, 8 and 9 on 100,000 rows of 64 features in each of three domains, 20 groups and 2, a perceptron and its base."""
    import torch

    import tl_audit as ta

    torch.manual_seed(0)
    nets = [torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2)) for _ in range(2)]
    domains = {}
    for number, (name, by) in enumerate({"target": 0.1, "source": 0.0, "train": 0.1}.items()):
        rng = np.random.default_rng(number)
        x = (rng.normal(size=(100_000, 64)) + by).astype(np.float32)
        with torch.no_grad():
            logits = nets[1](torch.tensor(x)).numpy()
        labels = np.where(logits[:, 1] - logits[:, 0] + 0.3 * rng.logistic(size=len(x)) > 0, "yes", "no")
        site = np.array([f"site {i:02d}" for i in range(20)])[rng.integers(0, 20, len(x))]
        groups = {"site": site, "sex": np.where(rng.random(len(x)) < 0.5, "f", "m")}
        ids = {"cluster": np.array([f"{name} {i}" for i in rng.integers(0, 5000, len(x))])} if clustered else {}
        domains[name] = ta.Domain(name, x, labels=labels, classes=["no", "yes"], groups=groups, kind="tensor", positive="yes", **ids)
    base, adapted = (ta.Model(net, classes=("no", "yes"), name=name) for net, name in zip(nets, ("base", "adapted"), strict=True))
    subject = ta.Subject(adapted=adapted, base=base, **domains)

    def work() -> str:
        with tempfile.TemporaryDirectory() as folder:
            report = ta.audit(subject, ignore=["TLA7"], methods=(), evidence_dir=folder)
        return f"{sum(f.status not in ('not_evaluated', 'error') for f in report.findings)} checks evaluated"

    return work


SIDES: dict[str, Work] = {
    "groups 100 k, text": lambda: ours_groups(100_000),
    "groups 1 M, text": lambda: ours_groups(1_000_000),
    "groups 1 M, codes": lambda: ours_groups(1_000_000, text=False),
    "groups 1 M, 100 k clusters": lambda: ours_groups(1_000_000, text=False, clusters=100_000),
    "fairlearn 100 k, 2 resamples": lambda: fairlearn_groups(100_000, 2),
    "fairlearn 100 k, mended, 2 resamples": lambda: fairlearn_groups(100_000, 2, mended=True),
    "fairlearn 1 M, crossed groups alone, none": lambda: fairlearn_groups(1_000_000, 0, crossed_alone=True),
    "fairlearn 1 M, mended, none": lambda: fairlearn_groups(1_000_000, 0, mended=True),
    "mmd 2,000": lambda: ours_mmd(2000),
    "mmd 10,000": lambda: ours_mmd(10_000),
    "mmd loop over a stored kernel, 3 permutations": lambda: loop_mmd(2000, 3, anew=False),
    "mmd loop with a kernel each, 1 permutation": lambda: loop_mmd(2000, 1, anew=True),
    "cka 50 pairs of layers": lambda: ours_cka(whole=False),
    "cka table of 50 x 50": lambda: ours_cka(whole=True),
    "cka from whole kernels, 1 pair": lambda: plain_cka(1),
    "columns 10 x 1 M": lambda: ours_columns(1_000_000, 10),
    "columns 200 x 100 k": lambda: ours_columns(100_000, 200),
    "scipy KS alone, 2 x 1 M": lambda: scipy_columns(1_000_000, 2, whole=False),
    "scipy KS, W1 and numpy PSI, 2 x 1 M": lambda: scipy_columns(1_000_000, 2, whole=True),
    "auc 1 M": ours_auc,
    "auc by sklearn, 3 resamples": lambda: resampled_auc(3),
    "page: drift of 100 k x 30, numbers alone": ours_table_alone,
    "page: audit of 100 k x 30 and its page": ours_page,
    "audit 100 k, 20 groups": lambda: ours_audit(clustered=False),
    "audit 100 k, 20 groups, 5,000 clusters": lambda: ours_audit(clustered=True),
}

RATIOS: tuple[tuple[str, str, str, float], ...] = (
    # a frame with 2 resamples makes 3 passes over its rows, one with 1,000 makes 1,001
    ("groups with 1,000 resamples, 100 k", "groups 100 k, text", "fairlearn 100 k, 2 resamples", 1001 / 3),
    ("… fairlearn mended", "groups 100 k, text", "fairlearn 100 k, mended, 2 resamples", 1001 / 3),
    (
        "groups with 1,000 resamples, 1 M (of fairlearn's three frames one)",
        "groups 1 M, text",
        "fairlearn 1 M, crossed groups alone, none",
        1001,
    ),
    ("… fairlearn mended, all three frames", "groups 1 M, text", "fairlearn 1 M, mended, none", 1001),
    ("… fairlearn mended and without resamples, ours with", "groups 1 M, text", "fairlearn 1 M, mended, none", 1),
    ("mmd, B = 999, n = m = 2,000, stored kernel", "mmd 2,000", "mmd loop over a stored kernel, 3 permutations", 333),
    ("mmd, B = 999, a kernel each time", "mmd 2,000", "mmd loop with a kernel each, 1 permutation", 999),
    ("cka of 50 pairs", "cka 50 pairs of layers", "cka from whole kernels, 1 pair", 50),
    ("cka of 2,500 pairs", "cka table of 50 x 50", "cka from whole kernels, 1 pair", 2500),
    ("columns, KS alone", "columns 10 x 1 M", "scipy KS alone, 2 x 1 M", 5),
    ("columns, KS, W1 and PSI", "columns 10 x 1 M", "scipy KS, W1 and numpy PSI, 2 x 1 M", 5),
    ("auc interval, 1,000 resamples", "auc 1 M", "auc by sklearn, 3 resamples", 1000 / 3),
)
"""(what, ours, other, by how much the other's part is multiplied)"""


def measure(name: str) -> None:
    """One side, in this process: prints its seconds and memory as JSON."""
    work = SIDES[name]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds, walls, said = [], [], None
    while not seconds or (len(seconds) < 3 and sum(seconds) < 1.5):
        wall, processor = time.perf_counter(), time.process_time()
        result = work()
        said = result if isinstance(result, str) else None
        seconds.append(time.process_time() - processor)
        walls.append(time.perf_counter() - wall)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"cpu": min(seconds), "wall": min(walls), "grown": after - before, "peak": after, "runs": len(seconds), "said": said}))


def main(words: tuple[str, ...] = ()) -> None:
    found: dict[str, dict[str, Any]] = {}
    wanted = [name for name in SIDES if not words or name.startswith(words)]
    wanted += [
        side
        for _, ours, other, _ in RATIOS
        for side in (ours, other)
        if words and side not in wanted and (ours in wanted or other in wanted)
    ]
    for name in wanted:
        done = subprocess.run([sys.executable, "-m", "benchmarks.scale", "--side", name], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"scale: {name}: not measured ({done.stderr.strip().splitlines()[-1:]})", flush=True)
            continue
        one = found[name] = json.loads(done.stdout.strip().splitlines()[-1])
        note = f"; {one['said']}" if one["said"] else ""
        print(
            f"scale: {name}: {one['cpu']:.3f} s of processor, {one['wall']:.3f} s by the clock, memory +{one['grown']:.0f} MiB "
            f"(peak {one['peak']:.0f}), best of {one['runs']}{note}",
            flush=True,
        )
    for what, ours, other, times in RATIOS:
        if ours in found and other in found:
            scaled = "" if times == 1 else f", {times:.4g} x its part"
            print(f"scale: {what}: other / ours = {times * found[other]['cpu'] / found[ours]['cpu']:.1f}{scaled}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        measure(sys.argv[2])
    else:
        main(tuple(sys.argv[1:]))
