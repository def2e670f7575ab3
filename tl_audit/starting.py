"""A first audit.toml: what ``tl-audit init`` writes, with a line of explanation for each table and the facts that the policy wants."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tl_audit.config import audit_config
from tl_audit.errors import ConfigError
from tl_audit.policy import load_policy
from tl_audit.policy.toml import did_you_mean, read_toml

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
    samples: str = "off"
    policy: str = "default"
    title: str = "Audit"


def write_audit(path: Path, answers: Answers) -> None:
    """Write a commented audit.toml that reads back without error. An existing file is never touched.

    Raises
    ------
    ConfigError : the file exists, an answer that audit.toml does not allow, a folder that cannot be written
    """
    if answers.kind not in ("image", "tabular"):
        raise ConfigError(f'kind "{answers.kind}" is unknown{did_you_mean(answers.kind, ("image", "tabular"))}')
    if not answers.target:
        raise ConfigError("the target is missing: give --target, the data that the adapted model will meet")
    if answers.run is None and not (answers.weights and answers.arch and answers.classes):
        raise ConfigError("the adapted model is missing: give --run, or --weights with --arch and --classes")
    text = "\n".join(_lines(answers)) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{path} exists already; it is never overwritten. Edit it, or name another folder") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror})") from error
    try:
        audit_config(read_toml(path), folder=path.parent, path=path)
    except ConfigError:
        path.unlink()
        raise


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
        yield f"classes = {_list(answers.classes)}   # in the order of the model's outputs"
    yield ""
    yield "[target]                  # the data that it will meet; never used for training"
    yield f"kind = {_text(answers.kind)}"
    yield f"path = {_text(answers.target)}"
    for key, value in (("metadata", answers.metadata), ("label", answers.label), ("cluster", answers.cluster)):
        yield f"{key} = {_text(value)}" if value else f'# {key} = "..."'
    yield f"groups = {_list(answers.groups)}" if answers.groups else '# groups = ["sex", { column = "age", bins = [45, 55] }]'
    yield ""
    if answers.source:
        yield "[source]                  # data like that the base model comes from"
        yield f"kind = {_text(answers.kind)}"
        yield f"path = {_text(answers.source)}"
        if answers.label:
            yield f"label = {_text(answers.label)}"
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
    yield "# [[cues]]                # something the model must not rely on, tested against a placebo of equal size"
    yield '# name = "corner mark"' if answers.kind == "image" else '# name = "sex"'
    yield '# kind = "patch"' if answers.kind == "image" else '# kind = "set_column"'
    yield '# corner = "top-left"' if answers.kind == "image" else '# column = "sex"'
    yield ""
    yield "[report]"
    yield f"samples = {_text(answers.samples)}           # off | redacted | on: may pictures and rows of samples appear?"
    yield ""
    yield "[policy]"
    yield f"use = {_text(answers.policy)}           # a profile (default, strict) or a file"
    yield 'stage = "ci"              # ci | release: decides what blocks, never a status'
    yield ""
    yield "[declared]                # what only a person can state; empty facts are counted as missing on page 1"
    yield '# by = "name"             # who states this, and when'
    yield "# on = 2026-01-31"
    for key in policy.declare:
        yield f'{key} = ""{" " * max(1, 22 - len(key))}# {QUESTIONS.get(key, key.replace("_", " "))}'


def _text(value: str) -> str:
    """A TOML basic string: JSON's escapes are TOML's, but for the delete character, which JSON leaves as it is."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _list(values: Sequence[str]) -> str:
    return "[" + ", ".join(_text(v) for v in values) + "]"
