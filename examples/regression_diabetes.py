"""How far off is a model of younger patients, adapted to older ones, and is it further off for one sex?

Data: scikit-learn's diabetes data (442 patients, ten measurements, a measure of progression after one year: a number, not a class).
A small network is trained on the younger half, adapted to part of the older half, and audited on older patients it has never seen.

Run: python examples/regression_diabetes.py
"""

# %% The question's data: younger patients (source), older patients (target); the label is a number
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
from sklearn.datasets import load_diabetes

import tl_audit as ta


def patients():
    """The diabetes table in natural units, with names for the two sexes of the data set's coding."""
    frame = load_diabetes(as_frame=True, scaled=False).frame
    frame["sex"] = np.where(frame["sex"] == 1, "one", "two")
    return frame.rename(columns={"target": "progression"})


def domain(name, frame):
    return ta.Domain(name, frame, label="progression", task="regression", unit="points", groups=["sex"])


def main(out=None, epochs=24):
    out = Path(out or mkdtemp(prefix="tl_audit-regression-"))
    frame = patients()
    older = frame["age"] > 50
    target_test = older & (np.arange(len(frame)) % 2 == 0)
    source_test = ~older & (np.arange(len(frame)) % 4 == 0)
    young, old = frame[~older & ~source_test], frame[older & ~target_test]

    # %% A base model of younger patients, adapted to older ones; the target is standardised on the training data alone
    task = ta.Regression("huber", unit="points")
    base = ta.adapt(
        ta.Plan(base="tl_audit:mlp", kind="tabular", task=task, stages=[ta.Stage("*", epochs=epochs, lr=3e-3)], seed=0),
        domain("younger", young),
        out=out / "base",
        controls=(),
    )
    plan = ta.Plan(
        base=f"run:{out / 'base'}",
        kind="tabular",
        task=task,
        stages=[ta.Stage("head", epochs=5, lr=3e-3), ta.Stage("*", epochs=epochs // 2, lr=1e-3)],
        seed=0,
    )
    ta.adapt(plan, domain("older, training", old), out=out / "adapted", controls=("head", "scratch"))

    # %% The audit: numbers in points, limits in standard deviations of the training target
    report = ta.audit(
        out / "adapted",
        target=domain("older patients", frame[target_test]),
        source=domain("younger patients", frame[source_test]),
        train=domain("older, training", old),
        select=["TLA3", "TLA4", "TLA509", "TLA6"],
        title="Progression of diabetes as a number, older patients",
    )
    report.save(out / "report")

    # %% What to conclude, and what not
    overall, against_base, gap = report["TLA301"], report["TLA302"], report["TLA602"]
    print(overall.measurement.summary)
    print(against_base.measurement.summary)
    print(f"Further off for one sex? {gap.status}: {gap.reason}")
    assert base.record.task["value"]["unit"] == "points"
    assert overall.status == "pass", "the model must be closer than always saying the training mean"
    assert gap.status != "fail", "neither sex is shown to be served worse beyond the limit"
    assert report["TLA303"].missing == ("classes",), "a number has no recall"
    return report


if __name__ == "__main__":
    main()
