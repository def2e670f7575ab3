"""A first audit.toml: what ``tl-audit init`` writes, with a line of explanation for each table and the facts that the policy wants."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tl_audit.config import audit_config
from tl_audit.errors import ConfigError
from tl_audit.frameworks import names
from tl_audit.policy import load_policy
from tl_audit.policy.limits import profiles
from tl_audit.policy.toml import did_you_mean

POLICY = "policy.toml"
TASKS = ("classification", "regression")

QUESTIONS: dict[str, str] = {
    "purpose": "what the model is for, in one sentence",
    "users": "who works with its answers",
    "affected_people": "whom its answers are about",
    "out_of_scope": "uses that are not intended",
    "decision_role": "advisory or automatic",
    "deployment": "where and how it runs",
    "data_origin": "where the target data come from",
    "data_licence": "under which terms they may be used",
    "data_labelling": "who labelled them, and how",
    "base_licence": "licence of the base model",
    "base_known_limits": "what is known to go wrong with the base model",
    "metric_rationale": "why these metrics are the right ones",
    "owner": "who answers for the model",
    "contact": "how to reach them",
    "monitoring_plan": "what is watched in use, and what triggers a new audit",
}
"""One comment for each declared fact that a profile may want."""


@dataclass(frozen=True)
class Answers:
    """What was asked, or given as flags."""

    target: str
    run: str | None = None
    weights: str | None = None
    arch: str | None = None
    classes: Sequence[str] = ()
    kind: str = "image"
    metadata: str | None = None
    label: str | None = None
    groups: Sequence[str] = ()
    cluster: str | None = None
    source: str | None = None
    task: str | None = None
    time: str | None = None
    period: str | None = None
    site: str | None = None
    previous: str | None = None
    adapter: str | None = None
    ood: str | None = None
    frameworks: Sequence[str] = ()
    samples: str = "off"
    policy: str = "default"
    title: str = "Audit"


def write_audit(path: Path, answers: Answers) -> None:
    """Write a commented audit.toml that reads back without error, and policy.toml beside it where frameworks are named.

    An existing file is never touched.

    Raises
    ------
    ConfigError : the file exists, an answer that audit.toml does not allow, a folder that cannot be written
    """
    if answers.kind not in ("image", "tabular"):
        raise ConfigError(f'kind "{answers.kind}" is unknown{did_you_mean(answers.kind, ("image", "tabular"))}')
    if not answers.target:
        raise ConfigError("the target is missing: give --target, the data that the adapted model will meet")
    if answers.task not in (None, *TASKS):
        raise ConfigError(f'task "{answers.task}" is unknown{did_you_mean(answers.task, TASKS)}')
    if answers.run is None and not (answers.weights and answers.arch and (answers.classes or answers.task == "regression")):
        raise ConfigError("the adapted model is missing: give --run, or --weights with --arch and --classes")
    if answers.period is not None and answers.time is None:
        raise ConfigError("--period says how --time is counted: give --time, a column of dates")
    known = names()
    for name in answers.frameworks:
        if name not in known:
            raise ConfigError(f'framework "{name}" is unknown{did_you_mean(name, known)}')
    texts = {path: "\n".join(_lines(answers)) + "\n"}
    if answers.frameworks:
        texts[path.parent / POLICY] = "\n".join(_policy_lines(answers)) + "\n"
    audit_config(tomllib.loads(texts[path]), folder=path.parent, path=path)  # before anything is written
    written: list[Path] = []
    try:
        for place, text in texts.items():
            _write_new(place, text)
            written.append(place)
    except ConfigError:
        for place in written:
            place.unlink()
        raise


def _write_new(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{path} exists already; it is never overwritten. Edit it, or name another folder") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror})") from error


def _policy_lines(answers: Answers) -> Iterator[str]:
    yield f"# What `{answers.policy}` asks for, with the clauses of frameworks beside it. `tl-audit policy show {POLICY}` prints it whole."
    yield "[policy]"
    yield 'id = "ours"'
    yield "version = 1"
    yield f"extends = {_text(answers.policy)}"
    yield 'approved_by = ""          # the risk owner; until then the report calls it an example'
    yield f"frameworks = {_list(answers.frameworks)}   # section L of the report says where it speaks to their clauses; it never says that one is met"


def _lines(answers: Answers) -> Iterator[str]:
    policy = load_policy(answers.policy)
    yield "# What to audit. Paths are relative to this file. `tl-audit run audit.toml` runs it, `--dry-run` says what would run."
    yield f"title = {_text(answers.title)}"
    yield ""
    yield "[adapted]                 # the model that is audited"
    if answers.run is not None:
        yield f"run = {_text(answers.run)}"
    else:
        yield f"weights = {_text(answers.weights or '')}"
        yield f"arch = {_text(answers.arch or '')}"
        if answers.task == "regression":
            yield "value = { mean = 0, scale = 1 }   # the model gives z, the number is mean + scale * z"
        else:
            yield f"classes = {_list(answers.classes)}   # in the order of the model's outputs"
    if answers.adapter:
        yield f"adapter = {_text(answers.adapter)}"
    else:
        yield '# adapter = "lora"        # folder of the low-rank adapters (LoRA) that made it, if any: adapter_config.json, adapter_model.safetensors'
    yield ""
    if answers.previous:
        yield "[previous]                # the model that it replaces"
        yield f"run = {_text(answers.previous)}"
    else:
        yield "# [previous]              # the model that it replaces: what gets better, what gets lost"
        yield '# run = "runs/before"'
    yield ""
    yield "[target]                  # the data that it will meet; never used for training"
    yield f"kind = {_text(answers.kind)}"
    yield f"path = {_text(answers.target)}"
    for key, value, what in (
        ("metadata", answers.metadata, "table on the pictures, joined on file names" if answers.kind == "image" else ""),
        ("label", answers.label, "column of the truth; class folders and a run's plan say it themselves"),
        ("cluster", answers.cluster, "column of patient, site, document: these are the independent units, not rows"),
    ):
        if value or what:
            yield _given(key, value, what)
    if answers.task == "regression":
        yield 'task = "regression"       # labels are numbers'
        yield '# unit = "mm"             # of these numbers'
    elif answers.run is None:
        yield '# task = "regression"     # labels are numbers; then value = { mean = ..., scale = ... } in [adapted] instead of classes'
    yield f"groups = {_list(answers.groups)}" if answers.groups else '# groups = ["sex", { column = "age", bins = [45, 55] }]'
    yield _given("time", answers.time, "column of dates or periods: shift and accuracy over time")
    yield _given("period", answers.period, "day, month, quarter, year; without it as the dates are written")
    yield _given("site", answers.site, "column of where a sample was taken: each site against the source")
    if answers.kind == "image":
        yield '# masks = "data/masks"    # where the thing in question is, for localisation; or annotations = a COCO file or a folder of VOC files'
    yield ""
    if answers.source:
        yield "[source]                  # data like that the base model comes from"
        yield f"kind = {_text(answers.kind)}"
        yield f"path = {_text(answers.source)}"
        if answers.label:
            yield f"label = {_text(answers.label)}"
        if answers.task == "regression":
            yield 'task = "regression"'
    else:
        yield "# [source]                # data like that the base model comes from: without it no shift is measured"
        yield '# path = "data/source"'
    yield ""
    if answers.run is None:
        yield "# [base]                  # the model before adaptation"
        yield '# weights = "base.safetensors"'
        yield '# arch = "torchvision:resnet18"'
        yield "# [train]                 # what it was adapted on: leakage, train-test gap"
        yield '# path = "data/train"'
        yield ""
    if answers.ood:
        yield "[ood]                     # inputs that are none of the model's business: does it notice?"
        yield f"kind = {_text(answers.kind)}"
        yield f"path = {_text(answers.ood)}"
    else:
        yield "# [ood]                   # inputs that are none of the model's business; without it noise stands in for them"
        yield '# path = "data/other"'
    yield ""
    yield "# [[cues]]                # something the model must not rely on, tested against a placebo of equal size"
    yield '# name = "corner mark"' if answers.kind == "image" else '# name = "sex"'
    yield '# kind = "patch"' if answers.kind == "image" else '# kind = "set_column"'
    yield '# corner = "top-left"' if answers.kind == "image" else '# column = "sex"'
    if answers.kind != "image":
        yield '# value = "female"'
    yield ""
    yield "[report]"
    yield f"samples = {_text(answers.samples)}           # off | redacted | on: may pictures and rows of samples appear?"
    yield ""
    yield "[policy]"
    if answers.frameworks:
        yield f"use = {_text(POLICY)}       # a profile or a file; this one lies beside, and names the frameworks"
    else:
        yield f"use = {_text(answers.policy)}           # a profile ({', '.join(profiles())}) or a file; a file may name frameworks"
    yield 'stage = "ci"              # ci | release: decides what blocks, never a status'
    yield ""
    yield "[declared]                # what only a person can state; empty facts are counted as missing on page 1"
    yield '# by = "name"             # who states this, and when'
    yield "# on = 2026-01-31"
    for key in policy.declare:
        yield f'{key} = ""{" " * max(1, 22 - len(key))}# {QUESTIONS.get(key, key.replace("_", " "))}'


def _given(key: str, value: str | None, what: str) -> str:
    """``key = "value"``, or what one could write there; what it is stands behind."""
    line = f"{key} = {_text(value)}" if value else f'# {key} = "..."'
    return f"{line:25} # {what}" if what else line


def _text(value: str) -> str:
    """A TOML basic string: JSON's escapes are TOML's, but for the delete character, which JSON leaves as it is."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _list(values: Sequence[str]) -> str:
    return "[" + ", ".join(_text(v) for v in values) + "]"
