"""Does a new scanner matter?

A digit reader was trained on one device; a second device reads the same kind of digits inverted, blurred and on an uneven background.
The model is adapted to the second device and audited there. Data: scikit-learn's digits, rendered by `tl_audit.demo` without planted defects.

Run: python examples/images_digits.py
"""

# %% Two devices, without planted defects
from pathlib import Path
from tempfile import mkdtemp

import tl_audit as ta
from tl_audit.demo import write_data


def folder(name, data, **more):
    return ta.Domain(name, data, kind="image", metadata=f"{data}.csv", label="label", **more)


def main(out=None, epochs=12):
    out = Path(out or mkdtemp(prefix="tl_audit-digits-"))
    write_data(out / "data", clean=True, seed=1)
    source_train = folder("first device, training", out / "data" / "source_train")
    target_train = folder("second device, training", out / "data" / "target_train", groups=["site"])

    # %% A base model for the first device, adapted to the second one: the head first, then everything
    classes = [str(d) for d in range(10)]
    task = ta.Classification(classes)
    ta.adapt(
        ta.Plan(base="tl_audit:small_cnn", input_size=16, task=task, stages=[ta.Stage("*", epochs=epochs, lr=3e-3)], seed=1),
        source_train,
        out=out / "base",
        controls=(),
    )
    plan = ta.Plan(
        base=f"run:{out / 'base'}", task=task, stages=[ta.Stage("head", epochs=2, lr=3e-3), ta.Stage("*", epochs=epochs, lr=2e-3)], seed=1
    )
    ta.adapt(plan, target_train, out=out / "adapted", controls=("head",))

    # %% The audit: three lines
    source, target = (
        folder("first device", out / "data" / "source_test"),
        folder("second device", out / "data" / "target_test", groups=["site"]),
    )
    report = ta.audit(out / "adapted", target=target, source=source, methods=["grad_cam"], title="Digits, second device")
    report.save(out / "report")

    # %% What to conclude: the devices differ, the adaptation coped with it, and no site is left behind
    shift, drop, sites = report["TLA501"], report["TLA509"], report["TLA602"]
    print(f"the devices differ: {shift.reason}")
    print(f"does it cost accuracy: {drop.status}: {drop.reason}")
    print(f"by site: {sites.status}: {sites.reason}")
    print(f"report: {out / 'report' / 'report.html'}")
    assert shift.status == "warn", shift.status
    assert sites.status not in {"warn", "fail"}, sites.reason
    return report


if __name__ == "__main__":
    main()
