"""Builds and runs examples/notebook.ipynb: the cells stand here, what they show is what running them gives.

Run: python examples/make_notebook.py
Needs nbformat, nbclient and ipykernel (in the dev extra).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

PLACE = Path(__file__).with_name("notebook.ipynb")

CELLS = [
    (
        "markdown",
        """
# A digit reader meets a second device

A small network reads handwritten digits from one device. It is adapted to a second one and audited there: what does it look at, and does the new device cost accuracy? Data: scikit-learn's digits, rendered twice (`tl_audit.demo`), without planted defects.
""",
    ),
    (
        "code",
        """
from pathlib import Path
from tempfile import mkdtemp

import tl_audit as ta
from tl_audit.demo import write_data

out = Path(mkdtemp(prefix="tl_audit-notebook-"))
write_data(out / "data", clean=True, seed=2)


def folder(name, data, **more):
    return ta.Domain(name, out / "data" / data, kind="image", metadata=out / "data" / f"{data}.csv", label="label", **more)


task = ta.Classification([str(d) for d in range(10)])
""",
    ),
    ("markdown", "## Adapt\n\nA base model for the first device; then its head, then everything, on the second."),
    (
        "code",
        """
base = ta.adapt(
    ta.Plan(base="tl_audit:small_cnn", input_size=16, task=task, stages=[ta.Stage("*", epochs=10, lr=3e-3)], seed=2),
    folder("first device, training", "source_train"),
    out=out / "base",
)
plan = ta.Plan(
    base=f"run:{out / 'base'}",
    task=task,
    stages=[ta.Stage("head", epochs=2, lr=3e-3), ta.Stage("*", epochs=12, lr=2e-3)],
    seed=2,
)
adaptation = ta.adapt(plan, folder("second device, training", "target_train"), out=out / "adapted", controls=("head",))
""",
    ),
    ("markdown", "## Audit\n\nThree lines. The report shows itself; `report.save(folder)` writes the page to hand on."),
    (
        "code",
        """
target = folder("second device", "target_test", groups=["site"])
source = folder("first device", "source_test")
report = ta.audit(out / "adapted", target=target, source=source, methods=["grad_cam"], title="Digits, second device")
report
""",
    ),
    ("markdown", "Every number carries its n, its interval and what chance gives, and every table is data."),
    ("code", 'report["TLA301"].metrics["accuracy"]'),
    ("code", 'report["TLA303"].exhibits["recall-by-class"].to_frame().head()'),
    (
        "markdown",
        """
## Where does it look?

Maps show what moved an output; they are not its reason. The model is left exactly as it was. Every map has its own scale, and the line above says what the numbers mean.
""",
    ),
    (
        "code",
        """
import numpy as np

images = target.samples.read(np.arange(4)).items
maps = ta.explain(adaptation.model, images, method="grad_cam")
maps
""",
    ),
    (
        "markdown",
        "One picture, three methods. Where they disagree, no single one of them should be believed; an audit's checks TLA701 to 705 say which.",
    ),
    (
        "code",
        """
from tl_audit.attribution.comparison import Comparison

one = images[:1]
Comparison.of({method: ta.explain(adaptation.model, one, method=method) for method in ("grad_cam", "kernel_shap", "integrated_gradients")})
""",
    ),
    (
        "markdown",
        """
## Did the adaptation move it?

Base and adapted model on one scale, for the same class, and the difference between them.
""",
    ),
    (
        "code",
        """
adapted_maps = ta.explain(adaptation.model, images, method="kernel_shap")
base_maps = ta.explain(base.model, images, method="kernel_shap", target=list(adapted_maps.target_names))
adapted_maps.beside(base_maps)
""",
    ),
    (
        "markdown",
        """
## A table: what counts over all rows

scikit-learn's diabetes data: does the disease progress? Each column's mean |value| with its interval, against what a column would get by chance; then every patient as a dot.
""",
    ),
    (
        "code",
        """
from sklearn.datasets import load_diabetes

patients = load_diabetes(as_frame=True, scaled=False).frame
patients["sex"] = np.where(patients["sex"] == 1, "one", "two")
patients["outcome"] = np.where(patients.pop("target") > 140, "progressed", "stable")
rows = ta.Domain("patients", patients, kind="tabular", label="outcome", positive="progressed")
table_task = ta.Classification(["progressed", "stable"], positive="progressed")
model = ta.adapt(
    ta.Plan(base="tl_audit:mlp", kind="tabular", task=table_task, stages=[ta.Stage("*", epochs=30, lr=3e-3)], seed=0),
    rows,
    out=out / "patients",
    controls=(),
).model
columns = patients.drop(columns="outcome")
values = ta.explain(model, columns, method="kernel_shap", target="progressed", background=columns[:100])
values.importance()
""",
    ),
    (
        "markdown",
        "Numbers, figures and files: `.to_frame()` for analysis, `.figure()` for a paper (needs matplotlib), `.save()` as PNG, NPZ or JSON.",
    ),
    ("code", "values.importance().to_frame().head(3)"),
    ("code", 'values.save(out / "values.json").stat().st_size > 0'),
]


def build():
    """The notebook without outputs."""
    import nbformat

    made = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    cells = [made[kind](text.strip()) for kind, text in CELLS]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number:02}"  # random ids would change the file on every run
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def main(place=PLACE):
    """Run every cell, write the notebook with what they show. Training chatter and times are left out: they differ from run to run."""
    import nbclient
    import nbformat

    book = build()
    with TemporaryDirectory() as folder:
        nbclient.NotebookClient(book, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    for cell in book.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.output_type != "stream"]
    book.metadata["language_info"] = {"name": "python"}
    text = re.sub(r"/tmp/tl_audit-notebook-\w+", "/tmp/tl_audit-notebook", nbformat.writes(book))
    Path(place).write_text(text + "\n", encoding="utf-8")
    return book


if __name__ == "__main__":
    main(*sys.argv[1:2])
    print(f"written {sys.argv[1] if len(sys.argv) > 1 else PLACE}")
