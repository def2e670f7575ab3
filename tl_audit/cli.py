"""The command line. Results on stdout, progress and messages on stderr, errors in one sentence.

Exit codes: 0 nothing at or above --fail-on · 1 the gate failed · 2 usage, configuration or input error · 3 a check errored or the run is
incomplete · 4 internal error · 130/143 interrupted. Where several apply: 130/143, 4, 2, 1, 3.

Everything heavy is imported inside the commands, so that help answers at once.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tl_audit.errors import ConfigError, Interrupted, TLAuditError
from tl_audit.report.text import visible

if TYPE_CHECKING:
    from tl_audit.config import Job
    from tl_audit.records.findings import AuditResult, Finding

NAME = "tl-audit"
LATER_FORMATS = ("md", "junit", "sarif", "cyclonedx", "bundle")
MOST_FINDINGS = 20

app = typer.Typer(
    name=NAME,
    help="Adapts models, and audits adapted models: what changed, whom it fails, where it looks, and what the evidence supports.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
policy_app = typer.Typer(
    help="Look at a policy: lint finds mistakes, show prints it resolved.", rich_markup_mode=None, no_args_is_help=True
)
app.add_typer(policy_app, name="policy")


# -- printing ---------------------------------------------------------------------------------------------------------


def shown(text: object) -> str:
    """Outside text on one line, with control, bidirectional and other unseen characters as escapes: printed as text, never as markup."""
    return visible(str(text)).replace("\n", "\\n").replace("\t", "\\t")


def out(text: str) -> None:
    """One line of results. Callers begin it with a word of their own, so that no outside string starts a line."""
    print(text, file=sys.stdout, flush=True)


def tell(text: str) -> None:
    """One line of progress or log."""
    print(f"{NAME}: {shown(text)}", file=sys.stderr, flush=True)


class Progress:
    """A bar with time left on a terminal; one line at the start and one at the end of each step elsewhere."""

    def __init__(self) -> None:
        self.tty = sys.stderr.isatty()
        self.what = ""
        self.started = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self.what:
            self.what, self.started = what, time.monotonic()
            if not self.tty:
                tell(what)
        if not self.tty or total <= 0:
            return
        seconds = time.monotonic() - self.started
        left = f"{seconds / done * (total - done):.0f} s left" if done else ""
        filled = int(24 * done / total)
        line = f"\r{shown(what)[:48]:48} [{'#' * filled}{'.' * (24 - filled)}] {done}/{total} {left:12}"
        print(line, end="\n" if done >= total else "", file=sys.stderr, flush=True)


# -- the entry point --------------------------------------------------------------------------------------------------


class _Signals:
    """What arrived from outside: the first signal asks the work to stop, the second ends the process."""

    code: int | None = None


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGINT and SIGTERM become KeyboardInterrupt once; a second one ends the process at once."""
    _Signals.code = None

    def stop(number: int, frame: FrameType | None) -> None:
        if _Signals.code is not None:
            os._exit(_Signals.code)
        _Signals.code = 128 + number
        raise KeyboardInterrupt

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, stop)
    except ValueError:  # not the main thread (a test, a notebook): the caller's handlers stay
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _plain_log() -> Iterator[None]:
    """Warnings of the package as one line of progress each, without the traceback that Python's last resort would print."""
    import logging

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tell(record.getMessage() + ("; TL_AUDIT_DEBUG=1 shows where" if record.exc_info else ""))

    log = logging.getLogger("tl_audit")
    if os.environ.get("TL_AUDIT_DEBUG") == "1" or log.handlers:
        yield
        return
    handler = Lines(level=logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; never shows a traceback unless TL_AUDIT_DEBUG=1."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if callable(reconfigure):
            reconfigure(encoding="utf-8", errors="backslashreplace")  # whatever the locale says
    os.environ.setdefault("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    try:
        with _stoppable(), _plain_log():
            code = app(args=list(sys.argv[1:] if argv is None else argv), prog_name=NAME, standalone_mode=False)
        if _Signals.code is not None:  # some versions of typer turn KeyboardInterrupt into a plain exit code
            return _stopped(_Signals.code)
        return code if isinstance(code, int) else 0
    except Interrupted as stop:
        return _stopped(_Signals.code or stop.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _stopped(_Signals.code or 130)
    except BrokenPipeError:
        _close_stdout()
        return 0
    except TLAuditError as error:
        _debug()
        tell(str(error))
        return 2
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer turns a closed pipe into exit code 1, which would read as a failed gate
            _close_stdout()
            return 0
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 2
    except Exception as error:
        usage = getattr(error, "format_message", None)
        if callable(usage):  # a usage error of typer, whichever version of click it carries
            return _usage(error, str(usage()))
        _debug()
        tell(f"internal error: {type(error).__name__}: {str(error)[:300]}. Please report it; TL_AUDIT_DEBUG=1 shows where it happened")
        return 4


def _usage(error: Exception, message: str) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        print(message, file=sys.stderr)
        return 2
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", NAME)
    tell(f"{message.rstrip('.')}{'' if message.endswith('?') else '.'} `{path} --help` shows what there is")
    return 2


def _stopped(code: int) -> int:
    tell("stopped")
    return code


def _debug() -> None:
    if os.environ.get("TL_AUDIT_DEBUG") == "1":
        traceback.print_exc()


def _close_stdout() -> None:
    """A reader that went away is no error; keep the interpreter from complaining about it at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # lives until the process ends


def _version(value: bool) -> None:
    if value:
        from tl_audit import __version__

        out(f"{NAME} {__version__}")
        raise typer.Exit(0)


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Adapts models, and audits adapted models: what changed, whom it fails, where it looks, and what the evidence supports."""


# -- options that several commands share --------------------------------------------------------------------------------

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write into.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of every random draw.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
Formats = Annotated[str | None, typer.Option("--format", help="html, json (comma-separated).")]


def _split(values: Sequence[str] | None) -> list[str]:
    return [part.strip() for value in values or () for part in value.split(",") if part.strip()]


def _formats(text: str | None) -> list[str] | None:
    if text is None:
        return None
    from tl_audit.policy.toml import did_you_mean

    wanted = _split([text])
    for name in wanted:
        if name in LATER_FORMATS:
            raise ConfigError(f'--format "{name}" comes later; there are html and json')
        if name not in ("html", "json"):
            raise ConfigError(f'--format "{name}" is unknown{did_you_mean(name, ("html", "json"))}')
    if not wanted:
        raise ConfigError("--format is empty; there are html and json")
    return wanted


# -- commands -----------------------------------------------------------------------------------------------------------


@app.command()
def demo(
    out_dir: Annotated[Path, typer.Option("--out", "-o", help="Folder to write into.")] = Path("reports/demo"),
    clean: Annotated[bool, typer.Option("--clean", help="Without the two planted defects.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of every random draw.")] = 0,
    policy: Annotated[str, typer.Option("--policy", help="A profile's name or a file.")] = "default",
) -> int:
    """The whole job on embedded data: adapt, audit, render. No network, no GPU."""
    from tl_audit.demo import run_demo

    result, paths = run_demo(out_dir, clean=clean, seed=seed, say=tell, policy=policy)
    _print_outcome(result, paths, again=f"{NAME} run {out_dir / 'audit.toml'} --out {out_dir}")
    # the demonstration never fails on the defects it planted itself
    return _interrupted(result) or (3 if result.outcome.counts.get("error", 0) or result.outcome.partial else 0)


@app.command()
def selftest(
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many seeds; 0, 1, ...")] = 1,
    kind: Annotated[str | None, typer.Option("--kind", help="image or tabular; both without.")] = None,
    only: Annotated[str | None, typer.Option("--only", metavar="7,13", help="Numbers of the defects; all without.")] = None,
    file: Annotated[Path | None, typer.Option("--out", "-o", help="Write the matrix of defects and checks here, as Markdown.")] = None,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Kinds and seeds are shared out among so many.")] = 1,
) -> int:
    """Plant known defects in small generated worlds, audit them, and say whether each is found and nobody innocent is accused."""
    import datetime

    from tl_audit.defects.matrix import chosen, examine_all, lines, markdown

    numbers = _numbers(only)
    _writable(file)
    picked, kinds = chosen(numbers, kind)  # type: ignore[arg-type]  # checked by chosen

    def say(outcome: Any, done: int, total: int) -> None:  # Any: imported late
        tell(f"{done}/{total} {outcome.defect.name}, {outcome.kind}, seed {outcome.seed}: {outcome.seconds:.1f} s")
        for reason in outcome.wrong:
            tell(f"  otherwise than it must be: {reason}")

    outcomes = examine_all(picked, kinds, range(seeds), processes=processes, say=say)
    out(f"{'result':14} {'defect':48} {'data':8} had to fire | had to stay quiet")
    for verdict, title, data, fired, quiet in lines(outcomes):
        out(f"{verdict:14} {title[:48]:48} {data:8} {fired} | {quiet}")
    good = sum(o.ok for o in outcomes)
    awaited = sorted({code for o in outcomes for code in o.awaited})
    out(f"in all: {good} of {len(outcomes)} audits as expected" + (f"; awaited: {', '.join(awaited)}" if awaited else ""))
    if file is not None:
        words = [NAME, "selftest", "--seeds", str(seeds), *(["--kind", kind] if kind else []), *(["--only", only] if only else [])]
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(markdown(outcomes, command=shlex.join(words), date=today), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{file} cannot be written ({error.strerror})") from error
        tell(f"wrote {file}")
    return 0 if good == len(outcomes) else 1


def _numbers(text: str | None) -> tuple[int, ...]:
    """The numbers of ``--only``."""
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    if text is not None and not parts:
        raise ConfigError("--only is empty; without it all defects are planted")
    if wrong := [part for part in parts if not part.isdecimal()]:
        raise ConfigError(f"--only takes numbers of defects, as in 7,13, not {wrong[0]!r}")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _writable(file: Path | None, suffixes: Sequence[str] = ()) -> None:
    """Refuse a file that cannot be written, before the work whose result it is to hold. Makes nothing."""
    if file is None:
        return
    if suffixes and file.suffix.lower() not in suffixes:
        raise ConfigError(f"--out {file}: the suffix decides the format; there are {' and '.join(suffixes)}")
    if file.is_dir():
        raise ConfigError(f"--out {file} is a folder; name a file")
    _makeable(file.parent)


def _makeable(folder: Path) -> None:
    """Refuse a folder that is none and cannot become one. Makes nothing."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise ConfigError(f"--out: {there} is a file, not a folder")
    if not os.access(there, os.W_OK):
        raise ConfigError(f"--out: nothing can be written into {there} (no permission)")


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where audit.toml is written.")] = Path("."),
    run: Annotated[str | None, typer.Option("--run", help="Run directory of the adapted model.")] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="Weights file of the adapted model.")] = None,
    arch: Annotated[str | None, typer.Option("--arch", help="Its architecture, e.g. torchvision:resnet18.")] = None,
    classes: Annotated[str | None, typer.Option("--classes", help="Its class names in output order, comma-separated.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="image or tabular.")] = None,
    target: Annotated[str | None, typer.Option("--target", help="The data that the adapted model will meet: folder or table.")] = None,
    metadata: Annotated[str | None, typer.Option("--metadata", help="Table joined on the file name: groups, cluster.")] = None,
    label: Annotated[str | None, typer.Option("--label", help="Label column of a table.")] = None,
    groups: Annotated[str | None, typer.Option("--groups", help="Group columns, comma-separated.")] = None,
    cluster: Annotated[str | None, typer.Option("--cluster", help="Column of patient, site, document.")] = None,
    source: Annotated[str | None, typer.Option("--source", help="Data like that the base model comes from.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="classification or regression (labels are numbers); a run knows it.")] = None,
    when: Annotated[str | None, typer.Option("--time", help="Column of dates or periods, for shift over time.")] = None,
    period: Annotated[str | None, typer.Option("--period", help="Of --time: day, month, quarter, year.")] = None,
    site: Annotated[str | None, typer.Option("--site", help="Column of where a sample was taken.")] = None,
    previous: Annotated[str | None, typer.Option("--previous", help="Run directory of the model that it replaces.")] = None,
    adapter: Annotated[str | None, typer.Option("--adapter", help="Folder of the low-rank adapters (LoRA) that made it.")] = None,
    ood: Annotated[str | None, typer.Option("--ood", help="Inputs that are none of the model's business: folder or table.")] = None,
    frameworks: Annotated[
        str | None, typer.Option("--frameworks", help="Clause maps, comma-separated, e.g. eu-ai-act; writes a policy.toml as well.")
    ] = None,
    samples: Annotated[str | None, typer.Option("--samples", help="May samples appear in the report? off, redacted, on.")] = None,
    policy: Annotated[str, typer.Option("--policy", help="A profile's name or a file.")] = "default",
    title: Annotated[str | None, typer.Option("--title", help="Title of the report.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
) -> int:
    """Asks, or takes flags; writes a commented audit.toml. Never overwrites one."""
    from tl_audit.starting import POLICY, Answers, write_audit

    path = folder / "audit.toml"
    if path.exists():
        raise ConfigError(f"{path} exists already; it is never overwritten. Edit it, or name another folder")
    ask = not yes and sys.stdin.isatty()

    def answer(given: str | None, question: str, default: str = "", *, proposal: str = "") -> str:
        """The flag, else the answer typed, else the default. A proposal is offered in the question only."""
        if given is not None or not ask:
            return given if given is not None else default
        default = default or proposal
        return str(typer.prompt(question, default=default, show_default=bool(default), err=True)).strip()

    where = "" if weights is not None else answer(run, "Run directory of the adapted model (empty: a weights file)")
    by_file = not where
    answers = Answers(
        run=where or None,
        weights=answer(weights, "Weights file of the adapted model", proposal="model.safetensors") if by_file else None,
        arch=answer(arch, "Its architecture", proposal="torchvision:resnet18") if by_file else None,
        classes=_split([answer(classes, "Its class names in output order, comma-separated")]) if by_file and task != "regression" else [],
        kind=answer(kind, "Kind of data: image or tabular", "image"),
        target=answer(target, "The data that the adapted model will meet (folder or table)", proposal="data/test"),
        metadata=answer(metadata, "Table with groups or clusters, joined on the file name (empty: none)") or None,
        label=answer(label, "Label column (empty: class folders, or the run knows it)") or None,
        groups=_split([answer(groups, "Group columns, comma-separated (empty: none)")]),
        cluster=answer(cluster, "Column of patient, site or document (empty: rows are independent)") or None,
        source=answer(source, "Data like that the base model comes from (empty: none)") or None,
        task=task,
        time=answer(when, "Column of dates or periods (empty: none)") or None,
        period=period,
        site=answer(site, "Column of where a sample was taken (empty: none)") or None,
        previous=answer(previous, "Run directory of the model that it replaces (empty: none)") or None,
        adapter=adapter,
        ood=ood,
        frameworks=_split([frameworks or ""]),
        samples=answer(samples, "May pictures of samples appear in the report? off, redacted, on", "off"),
        policy=policy,
        title=answer(title, "Title of the report", "Audit"),
    )
    write_audit(path, answers)
    out(f"written {shown(path)}")
    if answers.frameworks:
        out(f"written {shown(path.with_name(POLICY))}")
    out(f"next    {NAME} run {shown(path)}")
    return 0


@app.command()
def adapt(
    plan: Annotated[Path, typer.Argument(metavar="plan.toml", help="What to adapt, on what, in which stages.")],
    out_dir: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run directory to write; default runs/NAME of the plan's folder.")
    ] = None,
    device: Device = None,
    offline: Annotated[bool, typer.Option("--offline", help="Fetch nothing, not even what the plan names.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh/--resume", help="Train finished stages again.")] = False,
    curve: Annotated[
        bool,
        typer.Option("--learning-curve", help="Instead: train on growing parts of the data, and show what each number of samples gives."),
    ] = False,
    sizes: Annotated[str | None, typer.Option("--sizes", help="Of --learning-curve: numbers of training samples, as 50,100,200.")] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="Of --learning-curve: how often each part is drawn and trained on; default 3.")
    ] = None,
) -> int:
    """Fine-tune; writes weights (safetensors) and the adaptation record."""
    from tl_audit.finetune import Plan
    from tl_audit.finetune import adapt as fine_tune

    read = Plan.from_toml(plan)
    for name, given in (("--sizes", sizes), ("--seeds", seeds)):
        if given is not None and not curve:
            raise ConfigError(f"{name} belongs to --learning-curve")
    if curve:
        return _learning_curve(read, plan, out_dir, sizes, 3 if seeds is None else seeds, device or "auto", offline)
    target = out_dir if out_dir is not None else Path("runs") / (plan.stem if plan.stem != "plan" else plan.resolve().parent.name)
    adaptation = fine_tune(read, out=target, device=device or "auto", offline=offline, resume=not fresh)
    record = adaptation.record
    out(f"adapted {shown(record.base_id or 'the base')} -> {shown(target)}")
    if record.trainable_share is not None and record.parameters is not None:
        out(f"moved   {record.trainable_share:.1%} of {record.parameters} parameters, method {shown(record.method)}")
    for stage in record.stages:
        last = stage.history[-1] if stage.history else {}
        named = (("val_accuracy", "accuracy", ".3f"), ("val_mae", "mean absolute error", ".4g"))
        score = "".join(f", validation {words} {last[key]:{form}}" for key, words, form in named if key in last)
        out(f"stage   {shown(stage.name)}: best epoch {stage.best_epoch} of {len(stage.history)}{score}")
    out(f"next    {NAME} init --run {shown(target)}")
    return 0


def _learning_curve(plan: Any, path: Path, out_dir: Path | None, sizes: str | None, seeds: int, device: str, offline: bool) -> int:
    from tl_audit.finetune import learning_curve

    try:
        numbers = None if sizes is None else [int(part) for part in sizes.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(f"--sizes {sizes!r}: expected whole numbers with commas between, as 50,100,200") from None
    folder = out_dir if out_dir is not None else Path("runs") / f"{path.stem if path.stem != 'plan' else path.resolve().parent.name}-curve"
    _makeable(folder)
    found = learning_curve(
        plan, sizes=numbers, seeds=seeds, device=device, offline=offline, progress="none", said=lambda line: print(line, file=sys.stderr)
    )
    for line in found.lines():
        out(shown(line))
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("learning_curve.json", "learning_curve.csv"):
        out(f"written {shown(found.save(folder / name))}")
    return 0


@app.command()
def run(
    audit: Annotated[Path, typer.Argument(metavar="audit.toml", help="What to audit; a folder stands for its audit.toml.")],
    out_dir: Out = None,
    policy: Annotated[str | None, typer.Option("--policy", help="A profile's name or a file.")] = None,
    stage: Annotated[str | None, typer.Option("--stage", help="Stage of the policy: decides what blocks.")] = None,
    select: Annotated[list[str] | None, typer.Option("--select", help="Only these checks (prefixes, e.g. TLA5).")] = None,
    ignore: Annotated[list[str] | None, typer.Option("--ignore", help="Not these checks (prefixes).")] = None,
    fail_on: Annotated[str | None, typer.Option("--fail-on", help="fail, inconclusive, warn or never.")] = None,
    formats: Formats = None,
    fresh: Annotated[bool, typer.Option("--fresh/--resume", help="Compute everything anew instead of reusing stored evidence.")] = False,
    budget: Annotated[str | None, typer.Option("--budget", help="Comes later.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run, and measure nothing.")] = False,
    samples: Annotated[str | None, typer.Option("--samples", help="off, redacted or on.")] = None,
    trust: Annotated[
        list[str] | None, typer.Option("--trust", metavar="SHA256", help="Load this one file although its format can run code.")
    ] = None,
    seed: Seed = None,
    device: Device = None,
) -> int:
    """Audit: collect evidence, measure, judge, write the report. Never uses the network."""
    from tl_audit.config import execute, load_audit, prepare
    from tl_audit.policy import FAIL_ON, exit_code
    from tl_audit.policy.toml import did_you_mean

    if budget is not None:
        raise ConfigError("--budget comes later; [attribution] samples and --select make an audit shorter")
    if fail_on is not None and fail_on not in FAIL_ON:
        raise ConfigError(f'--fail-on "{fail_on}" is unknown{did_you_mean(fail_on, FAIL_ON)}')
    wanted = _formats(formats)
    given: dict[str, Any] = {}
    for key, value in (
        ("policy.use", _policy_path(policy)), ("policy.stage", stage), ("report.samples", samples), ("seed", seed), ("device", device),
        ("checks.select", _split(select) or None), ("checks.ignore", _split(ignore) or None), ("trust.sha256", _split(trust) or None),
    ):  # fmt: skip
        if value is not None:
            given[key] = value
    config = load_audit(audit, given)
    job = prepare(config, tell)
    if dry_run:
        _print_plan(job)
        return 0
    folder = out_dir if out_dir is not None else Path("reports") / (config.path.stem if config.path is not None else "audit")
    command = shlex.join([NAME, "run", str(audit), *_flags(sys.argv[1:], str(audit))])
    result, paths = execute(job, out=folder, formats=wanted, fail_on=fail_on, fresh=fresh, command=command, progress=Progress())
    _print_outcome(result, paths, again=command)
    return _interrupted(result) or exit_code(result.outcome)


def _interrupted(result: AuditResult) -> int | None:
    """130 or 143 where the runner was asked to stop and gave a partial result."""
    partial = result.outcome.partial or ""
    if not partial.startswith("interrupted"):
        return None
    return 143 if "SIGTERM" in partial else 130


def _policy_path(policy: str | None) -> str | None:
    """A file given on the command line is seen from the shell, not from audit.toml."""
    if policy is None or not (Path(policy).suffix or Path(policy).exists()):
        return policy
    if not Path(policy).exists():
        raise ConfigError(f"--policy: there is no file {policy}")
    return str(Path(policy).resolve())


def _flags(argv: Sequence[str], audit: str) -> list[str]:
    """The flags of this call, to be printed as the command that repeats it."""
    return [a for a in argv[1:] if a != audit] if argv[:1] == ["run"] else []


def _print_plan(job: Job) -> None:
    from tl_audit.config import planned

    rows, evaluations = planned(job)
    out(f"audit   {shown(job.config.title)}")
    out(f"policy  {shown(job.policy.id)} v{job.policy.version}, stage {shown(job.policy.active_stage)}, {job.policy.sha256[:12]}")
    for row in rows:
        out(f"check   {row.code} {shown(row.title)}" + (f": not evaluated, needs {shown(row.missing)}" if row.missing else ""))
    for line in evaluations:
        out(f"model   {shown(line)}")
    out(f"total   {sum(row.missing is None for row in rows)} of {len(rows)} checks would run; nothing was measured")


def _print_outcome(result: AuditResult, paths: dict[str, Path], *, again: str) -> None:
    """The last lines of stdout: what broke the gate with its numbers, the outcome, where the report is, how to repeat."""
    rank = {code: number for number, code in enumerate(result.outcome.blocked_by)}
    blocking = sorted((f for f in result.findings if f.code in rank), key=lambda f: rank[f.code])
    worse = [f for f in result.findings if f.status in ("fail", "warn", "error") and f.code not in rank]
    for finding in (*blocking, *worse)[:MOST_FINDINGS]:
        for line in _finding_lines(finding):
            out(line)
    out(f"outcome {shown(result.outcome.sentence)}")
    if "html" in paths:
        out(f"report  {shown(paths['html'])}")
    elif "json" in paths:
        out(f"record  {shown(paths['json'])}")
    out(f"again   {shown(again)}")


def _finding_lines(finding: Finding) -> Iterator[str]:
    """One line per finding, then one per broken or undecided limit: slice, value, interval, n, limit."""
    from tl_audit.policy import Bound
    from tl_audit.policy.words import amount, measured, metric_words, slice_words

    waived = f" (waived until {shown(finding.waived_until)})" if finding.waived_until else ""
    yield f"{finding.status.replace('_', ' '):13} {finding.code} {shown(finding.title)} [{finding.severity}]{waived}"
    if finding.measurement is None:
        yield f"              {shown(finding.reason)}"
        return
    wanted = "broken" if finding.status in ("fail", "warn") else "undecided"
    rows = [limit for limit in finding.limits if limit.outcome == wanted]
    if finding.status == "fail":
        rows = [limit for limit in rows if limit.level == "fail"]
    for limit in rows[:5]:
        metric = finding.select(limit.metric, **limit.slice)
        sign = {"max": "<=", "min": ">=", "abs": "+-"}[limit.bound]
        value = measured(metric, limit.interval_used, limit.confidence_used, limit=Bound.model_validate({limit.bound: limit.value}))
        yield f"              {shown(metric_words(limit.metric) + slice_words(limit.slice))}: {shown(value)}, limit {sign} {amount(limit.value)}"
    if len(rows) > 5:
        yield f"              and {len(rows) - 5} more, see the report"
    if not rows:
        yield f"              {shown(finding.reason)}"


@app.command()
def rank(
    bases: Annotated[
        list[str],
        typer.Argument(
            metavar="BASE...", help="Two or more: ARCH=FILE, ARCH=default (fetched), ARCH (random start), run:PATH. ARCH as in plan.toml."
        ),
    ],
    data: Annotated[str, typer.Option("--data", help="Labelled data of the task: folder or table.")],
    kind: Annotated[str | None, typer.Option("--kind", help="image or tabular; default: seen from the data.")] = None,
    label: Annotated[str | None, typer.Option("--label", help="Label column of a table, or of --metadata.")] = None,
    cluster: Annotated[
        str | None, typer.Option("--cluster", help="Column of patient, site, document: resamples are of these, not of samples.")
    ] = None,
    id_column: Annotated[str | None, typer.Option("--id", help="Id column of a table.")] = None,
    metadata: Annotated[Path | None, typer.Option("--metadata", help="Table on the pictures, joined on file names.")] = None,
    out_file: Annotated[Path | None, typer.Option("--out", "-o", help="File to write, .json or .csv.")] = None,
    resamples: Annotated[int, typer.Option("--resamples", min=100, help="Resamples behind the intervals of ranks.")] = 2000,
    evidence: Annotated[
        Path | None, typer.Option("--evidence", help="Folder that keeps the features, so that a second call runs no model again.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of every random draw.")] = 0,
    device: Device = None,
    offline: Annotated[bool, typer.Option("--offline", help="Fetch nothing: refuse ARCH=default.")] = False,
) -> int:
    """Which base model suits this data? Ranks by three measures of frozen features, never one score.

    LogME, H_alpha and GBC from one pass of each base over the data, with intervals of the ranks and how often each base came first among
    resamples. They help to leave out bases; they do not foretell an accuracy. docs/choosing-a-base.md says what they cannot do.
    """
    from tl_audit.ranking import rank_bases

    _writable(out_file, (".json", ".csv"))
    options = {
        key: value
        for key, value in (("kind", kind), ("label", label), ("cluster", cluster), ("id", id_column), ("metadata", metadata))
        if value is not None
    }
    ranking = rank_bases(
        bases, data, resamples=resamples, seed=seed, device=device or "auto", offline=offline, evidence_dir=evidence, progress=Progress(), **options
    )  # fmt: skip
    for line in ranking.lines():
        out(shown(line))
    if out_file is not None:
        out_file.parent.mkdir(parents=True, exist_ok=True)
        out(f"written {shown(ranking.save(out_file))}")
    return 0


@app.command()
def render(
    record: Annotated[Path, typer.Argument(metavar="report.json", help="A record, or the folder that holds one.")],
    out_dir: Out = None,
    formats: Formats = None,
) -> int:
    """Write the report again from its record. Needs no model, no data, no torch."""
    from tl_audit.records.schema import load_json
    from tl_audit.report import save

    path = record / "report.json" if record.is_dir() else record
    result = load_json(path)
    paths = save(result, out_dir if out_dir is not None else path.parent, formats=_formats(formats) or ["html", "json"])
    for name, written in paths.items():
        out(f"{name:8} {shown(written)}")
    return 0


@app.command()
def checks(code: Annotated[str | None, typer.Argument(metavar="[CODE]", help="Explain one, e.g. TLA602.")] = None) -> int:
    """List the checks, or explain one: how it is measured, why it matters, how to reduce the risk."""
    from tl_audit.checks import BUILTIN
    from tl_audit.policy import load_policy, profiles_adding
    from tl_audit.policy.toml import did_you_mean

    if code is None:
        for check in sorted(BUILTIN, key=lambda c: c.code):
            only = f" (profiles {', '.join(profiles_adding(check.code))})" if check.optional else ""
            out(f"{check.code}  {check.section:12} {check.severity:8} {check.title}{only}")
        return 0
    wanted = next((c for c in BUILTIN if c.code == code.upper()), None)
    if wanted is None:
        near = did_you_mean(code.upper(), [c.code for c in BUILTIN])
        raise ConfigError(f"there is no check {code}{near if 'mean' in near else '; `tl-audit checks` lists them'}")
    out(f"{wanted.code}  {wanted.title}  ({wanted.section}, {wanted.severity})")
    for name, key in (("asks", "asks"), ("measured", "measured"), ("matters", "matters"), ("reduce", "reduce")):
        if wanted.help.get(key):
            _wrapped(name, wanted.help[key])
    _wrapped("needs", "; ".join(_need_words(need) for need in wanted.needs) or "nothing but what is audited")
    asking = profiles_adding(wanted.code) if wanted.optional else ("default",)
    if wanted.optional:
        _wrapped("runs", f"only where the policy asks for it (add_checks): profiles {', '.join(asking)}")
    for profile in asking:
        for limit in load_policy(profile).limits_of(wanted.code):
            bounds = ", ".join(
                f"{level} {b.kind} {b.value:g}" for level, b in (("warn", limit.warn), ("fail", limit.fail)) if b is not None
            )
            of = f"{profile}: " if wanted.optional else ""
            part = "".join(f" {key}={value}" for key, value in sorted(limit.slice.items()) if value)
            _wrapped("limit", f"{of}{limit.metric}{part}: {bounds} ({limit.origin}). {limit.rationale or ''}")
    return 0


def _need_words(need: str) -> str:
    """``adapted@target`` -> ``outputs of the adapted model on the target``; how to give it is said where it is missing."""
    from tl_audit.evidence.base import missing_input

    words = []
    for word in need.split("|"):
        model, sign, role = word.partition("@")
        said = missing_input(model).split(": ")[0]
        words.append(f"outputs of {said} on the {role}" if sign else said)
    return " or ".join(words)


def _wrapped(name: str, text: str) -> None:
    import textwrap

    for number, line in enumerate(textwrap.wrap(shown(text), width=110) or [""]):
        out(f"{name if number == 0 else '':9} {line}")


@app.command()
def power(
    policy: Annotated[str, typer.Option("--policy", help="A profile's name or a file.")] = "default",
    n: Annotated[int, typer.Option("--n", min=1, help="Target samples (independent units) that are planned.")] = 500,
    groups: Annotated[
        str | None,
        typer.Option("--groups", metavar="NAME=N,...", help="Groups with their samples (for recall: of the class), for limits on gaps."),
    ] = None,
    rate: Annotated[float, typer.Option("--rate", help="Expected accuracy.")] = 0.8,
    discordant: Annotated[float, typer.Option("--discordant", help="Expected share of samples that two models answer differently.")] = 0.1,
) -> int:
    """Before any data: what each limit can detect, how many samples it needs."""
    from tl_audit.policy import load_policy
    from tl_audit.policy.planning import planned
    from tl_audit.policy.words import amount

    sizes: dict[str, int] = {}
    for part in _split([groups] if groups is not None else []):
        name, _, size = part.rpartition("=")
        if not name or not size.isdigit():
            raise ConfigError(f"--groups: {part!r} is no NAME=N, e.g. north=120,south=300")
        if name in sizes:
            raise ConfigError(f"--groups names {name!r} twice")
        sizes[name] = int(size)
    resolved = load_policy(policy)
    rows, left = planned(resolved, n, groups=sizes, rate=rate, discordant=discordant)
    out(f"policy {shown(resolved.id)} v{resolved.version}, n = {n}, accuracy {rate:g}, discordant {discordant:g}")
    out("read    each limit: with how many samples a model without fault keeps it, and what is found at this n, in four of five audits")
    for row in rows:
        sign = {"max": "<=", "min": ">=", "abs": "+-"}[row.bound.kind]
        where = "".join(f" {key}={value}" for key, value in sorted(row.limit.slice.items()) if value)
        where += f" group={row.group}" if row.group else ""
        needs = "no number of samples keeps it" if row.needed is None else f"kept with {row.needed} samples"
        beyond = "below" if row.bound.kind == "min" else "above"
        finds = "nothing is found" if row.found is None else f"found if {amount(row.found, 3)} or {beyond}"
        out(f"{row.limit.check} {shown(row.limit.metric + where)}: {row.level} {sign} {amount(row.bound.value)}: {needs}; {finds}")
    if sizes and not any(row.group for row in rows):
        out("groups  the policy sets no limit on gaps between groups")
    if left:
        _wrapped("left", f"cannot be foretold without data: {', '.join(left)}")
    return 0


@policy_app.command("lint")
def policy_lint(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A policy file or a profile's name.")],
    strict: Annotated[bool, typer.Option("--strict", help="Refuse limits without a rationale.")] = False,
) -> int:
    """Find mistakes in a policy: unknown keys, limits never met, expired waivers, minima."""
    import datetime

    from tl_audit.checks import BUILTIN
    from tl_audit.policy import lint, load_policy

    policy = load_policy(file)
    remarks = lint(policy, today=datetime.datetime.now(datetime.UTC).date(), known_checks=[c.code for c in BUILTIN], strict=strict)
    for remark in remarks:
        out(f"{remark.level:6} {shown(remark.text)}")
    errors = sum(r.level == "error" for r in remarks)
    out(f"policy {shown(policy.id)} v{policy.version}: {len(policy.limits)} limits, {errors} errors, {len(remarks) - errors} notes")
    return 2 if errors else 0


@policy_app.command("show")
def policy_show(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A policy file or a profile's name.")] = "default",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for other programs.")] = False,
) -> int:
    """Print the resolved policy and its hash."""
    from tl_audit.policy import load_policy

    policy = load_policy(file)
    if as_json:
        import json

        out(json.dumps({"sha256": policy.sha256, **policy.resolved}, indent=2, sort_keys=True, ensure_ascii=True))
        return 0
    out(f"policy   {shown(policy.id)} v{policy.version}" + (f", extends {shown(', '.join(policy.extends))}" if policy.extends else ""))
    out(f"sha256   {policy.sha256}")
    out(
        f"approved {shown(policy.approved_by)} {shown(policy.approved_on or '')}"
        if policy.approved_by
        else "approved by nobody: an example policy"
    )
    rules = policy.rules
    out(
        f"rules    {rules.rule}, confidence {rules.confidence:g}, alpha {rules.alpha:g}, min_n {rules.min_n}, clusters {rules.min_clusters}"
    )
    for name, stage in sorted(policy.stages.items()):
        out(f"stage    {shown(name)}: fail on {stage.fail_on}, missing declarations {stage.missing_declarations}")
    if policy.require:
        out(f"require  {shown(', '.join(policy.require))}")
    out(f"declare  {', '.join(policy.declare) or 'nothing'}")
    if policy.frameworks:
        out(f"maps     {shown(', '.join(policy.frameworks))}")
    if policy.add_checks:
        out(f"adds     {', '.join(policy.add_checks)}")
    for limit in sorted(policy.limits, key=lambda limit: limit.key):
        bounds = ", ".join(f"{level} {b.kind} {b.value:g}" for level, b in (("warn", limit.warn), ("fail", limit.fail)) if b is not None)
        slice = "".join(f" {k}={v}" for k, v in sorted(limit.slice.items()) if v)
        out(f"limit    {limit.check} {shown(limit.metric + slice)}: {bounds} ({shown(limit.rule or rules.rule)}; {shown(limit.origin)})")
    for waiver in policy.waivers:
        out(f"waiver   {waiver.check} until {waiver.expires} by {shown(waiver.approved_by)}: {shown(waiver.reason)}")
    return 0


@app.command()
def doctor() -> int:
    """Versions, devices, extras, licences, and what would not work here and why."""
    from tl_audit.doctor import examine

    facts = examine()
    for fact in facts:
        out(f"{fact.state:7} {fact.name:20} {shown(fact.text)}")
    broken = [f for f in facts if f.state == "broken"]
    out(f"doctor  {len(broken)} things would not work here" if broken else "doctor  everything needed is here")
    return 2 if broken else 0


@app.command()
def explain(
    model: Annotated[str, typer.Option("--model", help="A run directory, or a weights file with --arch and --classes.")],
    input: Annotated[Path, typer.Option("--input", help="A picture, a folder of pictures, or a table file.")],
    method: Annotated[
        list[str] | None,
        typer.Option("--method", help="An explainer; repeatable, or comma-separated. Default: grad_cam, for tables kernel_shap."),
    ] = None,
    out_dir: Annotated[Path, typer.Option("--out", "-o", help="Folder to write into.")] = Path("explanations"),
    target: Annotated[
        str | None, typer.Option("--target", metavar="NAME|predicted|true", help="Class to explain; default: the predicted one.")
    ] = None,
    against: Annotated[str | None, typer.Option("--against", metavar="NAME", help="Class to subtract: why this and not that?")] = None,
    layer: Annotated[str | None, typer.Option("--layer", help="Module path, for methods that read a layer.")] = None,
    arch: Annotated[str | None, typer.Option("--arch", help="Architecture of a weights file.")] = None,
    classes: Annotated[str | None, typer.Option("--classes", help="Class names of a weights file, comma-separated.")] = None,
    budget: Annotated[int | None, typer.Option("--budget", min=1, help="Model evaluations per sample.")] = None,
    base: Annotated[
        bool, typer.Option("--base", help="Base, adapted and their difference side by side; the base comes from the run directory.")
    ] = False,
    quality: Annotated[
        bool, typer.Option("--quality", help="Check the maps against random maps and permuted weights, and stamp them.")
    ] = False,
    row: Annotated[
        list[str] | None, typer.Option("--row", metavar="ID", help="Explain this sample: its id, or its number from 0; repeatable.")
    ] = None,
    all_rows: Annotated[bool, typer.Option("--all", help="Every sample; without it 16 pictures or 1000 rows of a table.")] = False,
    most: Annotated[int | None, typer.Option("--most", min=1, help="Explain at most this many samples.")] = None,
    dependence: Annotated[
        list[str] | None,
        typer.Option("--dependence", metavar="COLUMN", help="Show this column's attribution over its own value; repeatable."),
    ] = None,
    cluster: Annotated[
        str | None, typer.Option("--cluster", help="Column of patient, site, document: intervals are over these, not over rows.")
    ] = None,
    label: Annotated[str | None, typer.Option("--label", help="Label column, for --target true.")] = None,
    id_column: Annotated[str | None, typer.Option("--id", help="Id column of a table, for --row.")] = None,
    metadata: Annotated[
        Path | None, typer.Option("--metadata", help="Table on the pictures, joined on file names; for --label and --cluster.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of stochastic methods.")] = 0,
) -> int:
    """Maps of what moved the model's outputs: a page, a picture per map, numbers as JSON and NPZ.

    A table of more than 16 rows is summed up as well: mean |value| per column with its interval against chance, every row as a dot,
    and how the first column (or --dependence) goes with its value; importance.csv holds the figures.

    Methods. Pictures: grad_cam, grad_cam++, hires_cam, xgrad_cam, layer_cam, eigen_cam, score_cam, ablation_cam, guided_grad_cam.
    Pictures and tables: integrated_gradients, saliency, input_x_gradient, smooth_grad, gradient_shap, deep_lift, deep_shap, guided_backprop,
    kernel_shap, permutation_shap, partition_shap, sampling_shap, exact_shap, lime, feature_ablation, occlusion, rise.
    Negative controls, which ask no model: edge_map (pictures), random_map.
    """
    from tl_audit.explaining import Asked, default_method, explain_files

    done = explain_files(
        Asked(
            model=model, input=input, methods=tuple(dict.fromkeys(_split(method))) if method is not None else (default_method(input),),
            out=out_dir, target=target, against=against, layer=layer, arch=arch, classes=_split([classes]) if classes else None, budget=budget,
            base=base, quality=quality, rows=tuple(row or ()), all_rows=all_rows, most=most, dependence=tuple(dependence or ()), cluster=cluster,
            label=label, id=id_column, metadata=metadata, seed=seed,
        ),
        say=tell,
    )  # fmt: skip
    out(f"maps    {done.maps} by {shown(', '.join(done.methods))}")
    for path in done.files:
        if path.suffix in (".json", ".npz", ".csv"):
            out(f"numbers {shown(path)}")
    out(f"page    {shown(done.page)}")
    return 0
