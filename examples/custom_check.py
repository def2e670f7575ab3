"""How do I add a check of my own?

A check is a function of (subject, evidence, context) that measures and never judges; the limit stands in the policy.
Here: the share of target samples on which the model is undecided (largest probability below 0.5).

Run: python examples/custom_check.py
"""

# %% A tiny subject: scikit-learn's wine data and a linear model
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from sklearn.datasets import load_wine

import tl_audit as ta
from tl_audit.checks import BUILTIN
from tl_audit.checks.base import check, metric
from tl_audit.measures import intervals
from tl_audit.records.metrics import Measurement


# %% The check
@check("MINE001", "Undecided answers", section="performance", severity="medium", needs=("adapted", "adapted@target"))
def undecided(subject, evidence, context):
    """On how many target samples is no class given half of the probability?

    How it is measured: share of target samples whose largest probability is below 0.5, with Wilson's interval.

    Why it matters: an undecided answer should go to a person.

    How to reduce the risk: collect samples of that kind; set a rule for who decides them.
    """
    rows = evidence.usable("adapted", "target")
    top = evidence.probabilities("adapted", "target")[rows].max(axis=1)
    share = intervals.rate(top < 0.5)
    return Measurement(
        summary=f"{share.value:.1%} of {share.n} answers are undecided.",
        metrics=(metric("undecided_share", share, rules=context.rules, better="lower"),),
    )


POLICY = """
[policy]
id = "with-my-limit"
version = 1
extends = "default"
[[limits]]
check = "MINE001"
metric = "undecided_share"
fail = { max = 0.20 }
rationale = "More than one in five would swamp the desk that reads them."
origin = "example"
"""


def main(out=None):
    out = Path(out or mkdtemp(prefix="tl_audit-check-"))
    out.mkdir(parents=True, exist_ok=True)
    wine = load_wine()
    x = (wine.data - wine.data.mean(0)) / wine.data.std(0)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(13, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    fit = torch.optim.Adam(model.parameters(), lr=0.05)
    train = np.arange(len(x)) % 2 == 0
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(torch.tensor(x[train], dtype=torch.float32)), torch.tensor(wine.target[train]))
        fit.zero_grad()
        loss.backward()
        fit.step()

    # %% The policy with its limit, and the audit
    (out / "policy.toml").write_text(POLICY, encoding="utf-8")
    names = [str(n) for n in wine.target_names]
    target = ta.Domain("wines", x[~train].astype("float32"), labels=[names[k] for k in wine.target[~train]], classes=names, kind="tensor")
    report = ta.audit(
        ta.Subject(adapted=ta.Model(model, classes=names), target=target),
        policy=out / "policy.toml",
        checks=[*BUILTIN, undecided],
        select=["MINE", "TLA301"],
    )
    finding = report["MINE001"]
    print(f"{finding.code}: {finding.status}: {finding.reason}")
    assert finding.status == "pass", finding.reason
    return report


if __name__ == "__main__":
    main()
