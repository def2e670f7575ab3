"""One fit on pytorch-lightning. Imported by ``adapt`` alone, and late: importing the trainer takes seconds.

The pattern is that of HARDENING.md §4: ``requires_grad`` is set before the fit and never changed inside it; frozen modules are put in ``eval()``
at the start of every epoch; a new trainer for each stage; the best weights are kept as tensors (no pickled checkpoint is ever written); and after
the fit every frozen tensor is compared with its start, bit by bit.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from torch import nn

from tl_audit.errors import ConfigError, Interrupted, ModelError
from tl_audit.finetune.choose import Choice, freeze, set_modes
from tl_audit.finetune.guidance import DISTANCES, FeatureTap, distillation_loss, tapped
from tl_audit.finetune.inputs import Batches, Inputs, count_batches, epoch_order, key_seed
from tl_audit.finetune.loss import Objective
from tl_audit.finetune.plan import Alignment, Stage, Teacher, Training
from tl_audit.finetune.progress import Progress
from tl_audit.finetune.rates import Schedule, layer_order, layer_rates, optimiser, parameter_groups, rate_factor
from tl_audit.models import outputs
from tl_audit.records.values import Output

AUXILIARY = {"aux_logits": 0.4, "aux_logits1": 0.3, "aux_logits2": 0.3}
"weight of auxiliary heads in the loss (Szegedy 2015, arXiv:1409.4842, section 5; Inception v3: torchvision's training reference)"
SMALL_BATCH_FLOPS = 5e8
"forward FLOP of a batch below which one thread does it (a 32-channel network on 64 pictures of 32 × 32 takes 3.6e8)"
PRECISION = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


@dataclass(frozen=True)
class Job:
    """What all fits of one adaptation share."""

    train: Inputs
    validation: Inputs | None
    classes: int
    "0 in a regression"
    objective: Objective
    sampler: str | None
    training: Training
    seed: int
    device: str
    progress: Progress
    output: Output = None
    threads: int | None = None
    "CPU threads of the fits; None: torch's own setting"
    weights: torch.Tensor | None = None
    "(N,) importance of the training samples, mean 1"
    guidance: Guidance | None = None
    "of the adapted model alone"


@dataclass(frozen=True)
class Guidance:
    """What pulls at the adapted model beside the labels.

    Attributes
    ----------
    teacher : (N, C) logits of a teacher for the training samples, with the plan's settings
    unlabelled : target data without labels, to whose features those of the training data are aligned
    """

    teacher: tuple[torch.Tensor, Teacher] | None = None
    unlabelled: tuple[Inputs, Alignment] | None = None


@dataclass
class Fitted:
    """What one fit gave: all tensors of the network on the CPU (the best ones), and its history."""

    tensors: dict[str, torch.Tensor]
    history: list[dict[str, float]]
    best_epoch: int
    stopped_early: bool
    seconds: float
    choice: Choice
    samples_seen: int = 0
    rates: dict[str, float] = field(default_factory=dict)


def fit(
    network: nn.Module,
    stage: Stage,
    choice: Choice,
    job: Job,
    *,
    heads: Sequence[str],
    what: str,
    first_epoch: int = 0,
    base: Mapping[str, torch.Tensor] | None = None,
) -> Fitted:
    """Trains ``network`` in place for one stage, leaves it on the CPU in ``eval()`` with its best weights.

    Parameters
    ----------
    first_epoch : number of planned epochs before this fit; the order of samples is that of (seed, epoch), so that controls see the same batches
    base : the base's tensors, for L2-SP; None: no pull

    Raises
    ------
    ModelError : the loss is not finite, or a frozen tensor moved
    Interrupted : the user asked to stop; earlier stages are on disk
    """
    start = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
    freeze(network, choice)
    module = _Fit(network, stage, choice, job, heads=heads, what=what, first_epoch=first_epoch, base=base or {})
    began = time.monotonic()
    job.progress.fit(what)
    accelerator, devices = _lightning_device(job.device)
    with _quiet(), _deterministic(job.device), _generators_kept(job.device), _threads(job.threads), _stop_on_signal(module):
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=devices,
            precision=PRECISION[job.training.precision],  # type: ignore[arg-type]
            max_epochs=stage.epochs,
            gradient_clip_val=job.training.gradient_clip,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            plugins=[LightningEnvironment()],
        )
        train = Batches(
            job.train,
            job.training.batch_size,
            seed=job.seed,
            epoch=lambda: first_epoch + trainer.current_epoch,
            sampler=job.sampler,
            classes=job.classes,
            numbered=True,
        )
        loaders = None if job.validation is None else Batches(job.validation, max(64, job.training.batch_size))
        try:
            with module.guided(heads):
                trainer.fit(module, train_dataloaders=train, val_dataloaders=loaders)
        except SystemExit as stop:
            # the trainer (2.6) turns KeyboardInterrupt into exit code 1, which means "gate failed" here
            raise Interrupted(130) from stop
    network.cpu().eval()
    if module.best is not None:
        network.load_state_dict({**network.state_dict(), **module.best}, strict=True)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
    moved = [name for name in choice.frozen if not torch.equal(tensors[name], start[name])]
    if moved:
        raise ModelError(
            f"{what}: {len(moved)} frozen tensors moved ({', '.join(moved[:5])}): the network changes its own weights in forward"
        )
    ran = len(module.history)
    job.progress.skip((stage.epochs - ran) * len(train))
    return Fitted(
        tensors=tensors,
        history=module.history,
        best_epoch=module.best_epoch,
        stopped_early=ran < stage.epochs,
        seconds=time.monotonic() - began,
        choice=choice,
        samples_seen=ran * len(job.train),
        rates=module.rates,
    )


class _Fit(pl.LightningModule):
    """The loop of one stage: loss, optimiser, history, best weights."""

    def __init__(
        self,
        network: nn.Module,
        stage: Stage,
        choice: Choice,
        job: Job,
        *,
        heads: Sequence[str],
        what: str,
        first_epoch: int,
        base: Mapping[str, torch.Tensor],
    ) -> None:
        super().__init__()
        self.network = network
        self._stage, self._choice, self._job = stage, choice, job
        self._what, self._first_epoch = what, first_epoch
        self.rates = layer_rates(layer_order(network, heads), choice.trainable, stage.lr, stage.layer_decay)
        self._base = dict(base) if job.training.l2sp > 0 else {}
        self._pulled: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._sums: list[torch.Tensor] = []
        self._val: list[torch.Tensor] = []
        self.history: list[dict[str, float]] = []
        self.best: dict[str, torch.Tensor] | None = None
        self.best_epoch = 0
        self._best_loss = math.inf
        self._epochs_since_best = 0
        self._rate = stage.lr
        self.stop_code: int | None = None
        self._tap: FeatureTap | None = None
        self._others: Any = None  # Any: (n,) int64 positions of the unlabelled data in this epoch's order
        self._guided: dict[str, list[float]] = {}
        moving = set(choice.trainable)
        fixed = set(choice.frozen)
        self._kept = [n for n in network.state_dict() if n in moving or n not in fixed]

    @contextlib.contextmanager
    def guided(self, heads: Sequence[str]) -> Iterator[None]:
        """With a tap on the features, where they are to be aligned and this stage moves what makes them."""
        guidance = self._job.guidance
        moves = any(not any(name.startswith(head + ".") for head in heads) for name in self._choice.trainable)
        if guidance is None or guidance.unlabelled is None or not moves:
            yield
            return
        with tapped(self.network, heads) as tap:
            self._tap = tap
            try:
                yield
            finally:
                self._tap = None

    def configure_optimizers(self) -> Any:  # Any: Lightning's own union
        training = self._job.training
        parameters = dict(self.network.named_parameters())
        shared = [n for n in self._choice.trainable if n in self._base and n in parameters and self._base[n].shape == parameters[n].shape]
        groups = parameter_groups(self.network, self.rates, weight_decay=training.weight_decay, pulled=shared)
        per_epoch = count_batches(len(self._job.train), training.batch_size)
        steps = per_epoch * self._stage.epochs
        warmup = round((training.warmup if self._stage.warmup is None else self._stage.warmup) * per_epoch)
        schedule: Schedule = self._stage.schedule or training.schedule
        chosen = optimiser(groups, training)
        rates = torch.optim.lr_scheduler.LambdaLR(chosen, lambda step: rate_factor(step, steps, warmup=warmup, schedule=schedule))
        self._pulled = [(parameters[n], self._base[n].to(parameters[n].device)) for n in shared]
        return {"optimizer": chosen, "lr_scheduler": {"scheduler": rates, "interval": "step"}}

    def on_fit_start(self) -> None:
        self._pulled = [(parameter, start.to(parameter.device)) for parameter, start in self._pulled]

    def on_train_epoch_start(self) -> None:
        set_modes(self.network, self._choice)
        # dropout and the like are those of (seed, epoch): a resumed run and a control draw the same
        torch.manual_seed(key_seed(self._job.seed, "epoch", self._first_epoch + self.current_epoch))
        self._sums, self._guided = [], {}
        if self._tap is not None and self._job.guidance is not None and self._job.guidance.unlabelled is not None:
            others = self._job.guidance.unlabelled[0]
            self._others = epoch_order(
                others.split.labels, seed=key_seed(self._job.seed, "unlabelled"), epoch=self._first_epoch + self.current_epoch
            )
        self._rate = max(group["lr"] for group in self.trainer.optimizers[0].param_groups)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor], number: int) -> torch.Tensor:
        inputs, labels, positions = batch
        if self._tap is not None:
            self._tap.expect(len(labels))
        raw = self.network(inputs)
        objective, weights = self._job.objective, self._job.weights
        own = None if weights is None else weights[positions.cpu()].to(labels.device)
        given = outputs(raw, self._job.output)
        loss = objective.loss(given, labels, own)
        for name, weight in AUXILIARY.items():
            side = getattr(raw, name, None)
            if isinstance(side, torch.Tensor):
                loss = loss + weight * objective.loss(side, labels, own)
        loss = self._pulled_beside(loss, given, positions, number)
        self._sums.append(torch.stack([loss.detach() * len(labels), torch.tensor(float(len(labels)), device=loss.device)]))
        if self._pulled:
            loss = loss + l2sp_penalty(self._pulled, self._job.training.l2sp)
        return loss

    def _pulled_beside(self, loss: torch.Tensor, given: torch.Tensor, positions: torch.Tensor, number: int) -> torch.Tensor:
        """The loss with the teacher's part and the distance of the features, each remembered for the history."""
        guidance = self._job.guidance
        if guidance is None:
            return loss
        if guidance.teacher is not None:
            answers, settings = guidance.teacher
            term = distillation_loss(given, answers[positions.cpu()].to(given.device), settings.temperature)
            loss = (1 - settings.weight) * loss + settings.weight * term
            self._guided.setdefault("distillation_loss", []).append(float(term.detach()))
        if guidance.unlabelled is not None and self._tap is not None:
            others, alignment = guidance.unlabelled
            mine = self._tap.taken(len(given))
            size = min(len(positions), len(others))
            where = self._others.take(range(number * size, (number + 1) * size), mode="wrap")
            inputs, _ = others.batch(where, seed=self._job.seed, epoch=self._first_epoch + self.current_epoch)
            self._tap.expect(size)
            self.network(inputs.to(given.device))
            distance = DISTANCES[alignment.kind](mine, self._tap.taken(size))
            loss = loss + alignment.weight * distance
            self._guided.setdefault("alignment_distance", []).append(float(distance.detach()))
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        self._job.progress.batch()
        if self.stop_code is not None:
            raise Interrupted(self.stop_code)

    def on_validation_epoch_start(self) -> None:
        self._val = []

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> None:
        inputs, labels = batch
        self._val.append(self._job.objective.sums(outputs(self.network(inputs), self._job.output), labels))

    def on_train_epoch_end(self) -> None:
        total, seen = torch.stack(self._sums).double().sum(dim=0).tolist()
        row = {"epoch": float(self.current_epoch + 1), "train_loss": total / seen, "lr": float(self._rate)}
        row |= {name: sum(values) / len(values) for name, values in self._guided.items()}
        if self._val:
            loss, weight, score, n = torch.stack(self._val).double().sum(dim=0).tolist()
            row |= self._job.objective.read(loss, weight, score, n)
        for key in ("train_loss", "val_loss"):
            if not math.isfinite(row.get(key, 0.0)):
                raise ModelError(
                    f"{self._what}, epoch {self.current_epoch + 1}: {key} is not finite: lower lr, or set gradient_clip in [training]"
                )
        self.history.append(row)
        self._remember(row.get("val_loss"))
        self._job.progress.epoch(self.current_epoch + 1, self._stage.epochs, row)

    def _remember(self, val_loss: float | None) -> None:
        if val_loss is None:
            self.best_epoch = self.current_epoch + 1  # without validation the last weights are the result
            return
        if val_loss < self._best_loss:
            self._best_loss, self.best_epoch, self._epochs_since_best = val_loss, self.current_epoch + 1, 0
            state = self.network.state_dict()
            self.best = {name: state[name].detach().cpu().clone() for name in self._kept}
            return
        self._epochs_since_best += 1
        patience = self._job.training.early_stop
        if patience is not None and self._epochs_since_best >= patience:
            self.trainer.should_stop = True


def l2sp_penalty(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], weight: float) -> torch.Tensor:
    """½ · weight · Σ ‖w − w_base‖² over (moving tensor, its start in the base).

    References
    ----------
    Li, Grandvalet & Davoine (2018). Explicit inductive bias for transfer learning with convolutional networks. arXiv:1802.01483
    """
    total = torch.stack([(parameter - start).square().sum() for parameter, start in pairs]).sum()
    return 0.5 * weight * total


def resolve_device(device: str) -> str:
    """ "auto", "cpu", "cuda" or "cuda:N" as a device that exists.

    Raises
    ------
    ConfigError : no such device here
    """
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return "cpu"
    if device == "cuda" or device.startswith("cuda:"):
        number = device.partition(":")[2] or "0"
        have = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not number.isdigit() or int(number) >= have:
            there = ", ".join(["cpu", *(f"cuda:{i}" for i in range(have))])
            raise ConfigError(f"device {device!r} is not here; there is: {there}")
        return f"cuda:{number}"
    raise ConfigError(f"device {device!r} is not known: auto, cpu, cuda, cuda:N")


def _lightning_device(device: str) -> tuple[str, Any]:
    return ("cpu", 1) if device == "cpu" else ("gpu", [int(device.partition(":")[2])])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The trainer's own notices are about things that are decided here; what matters to the user goes through Progress."""
    names = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric")
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger, logger.level) for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            for package in ("pytorch_lightning", "lightning_fabric", "lightning_utilities"):
                warnings.filterwarnings("ignore", module=rf"{package}(\..*)?")
            # raised with a stack level that lands outside the package
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
            yield
    finally:
        for logger, level in before:
            logger.setLevel(level)


@contextlib.contextmanager
def _deterministic(device: str) -> Iterator[None]:
    """On an accelerator: deterministic kernels where they exist. The caller's flags come back."""
    if device == "cpu":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the library starts; later it has no effect
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = before[2]


def threads_for(device: str, flops_per_batch: float) -> int | None:
    """One thread where a batch is so small that threads cost more than they give; sums are then the same on machines with any number of cores."""
    return 1 if device == "cpu" and flops_per_batch < SMALL_BATCH_FLOPS else None


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)


@contextlib.contextmanager
def _generators_kept(device: str) -> Iterator[None]:
    """The caller's random state is as before, whatever is drawn inside."""
    devices = [] if device == "cpu" else [torch.device(device)]
    with torch.random.fork_rng(devices=devices):
        yield


@contextlib.contextmanager
def _stop_on_signal(module: _Fit) -> Iterator[None]:
    """First Ctrl-C or SIGTERM: the batch is finished, then ``Interrupted``. A second one stops at once.

    Only where the process still has the default handlers and this is its main thread: a caller's own handlers are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    codes = {signal.SIGINT: 130, signal.SIGTERM: 143}
    before = {number: signal.getsignal(number) for number in defaults}

    def stop(number: int, frame: FrameType | None) -> None:
        module.stop_code = codes[signal.Signals(number)]
        signal.signal(number, before[signal.Signals(number)])

    taken = [number for number, default in defaults.items() if before[number] == default]
    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    finally:
        # all of them: the trainer leaves SIGINT ignored after an interrupt
        for number, handler in before.items():
            signal.signal(number, handler)
