"""Training: setup, a loop over steps, validation, checkpoints. The only file that touches torch.distributed.

One process a GPU under torchrun, or one process alone; the batch of a step is the same however many share it. Strict:
on CUDA the real kernel of the delta rule must be there, or the run stops before it starts.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from pulse88 import checkpoint, shards
from pulse88.batches import Batches, TokenCorpus
from pulse88.checkpoint import Progress
from pulse88.config import TrainConfig
from pulse88.delta_rule import Kernel
from pulse88.evaluate import Likelihood, likelihood
from pulse88.model import Pulse88
from pulse88.objective import nats, split_targets
from pulse88.optimizer import make_optimizers, set_learning_rate

LOG_EVERY = 10  # steps between lines of the log


class NonFinite(RuntimeError):
    """Loss or gradient stopped being a number; the step was not taken and the message says where its batch lies."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run."""

    rank: int
    world: int
    device: torch.device

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(value)
        return value


@contextmanager
def processes() -> Iterator[Ranks]:
    """Joins the processes that torchrun started, if it did."""
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
    try:
        yield Ranks(rank, world, device)
    finally:
        if world > 1:
            dist.destroy_process_group()


def train(
    config: TrainConfig,
    data: Path,
    run: Path,
    *,
    kernel: Kernel | None = None,
    compiled: bool = False,
    resume: bool = False,
    sitting_minutes: float | None = None,
) -> Progress:
    """Trains until the recipe's last step or the end of the sitting, and returns how far it came.

    `kernel` None takes `fla` on CUDA and `chunked` elsewhere. With `resume` it goes on from the run's latest
    checkpoint, else the folder must not hold one (ValueError). The weights are in the last checkpoint.
    """
    with processes() as ranks:
        sitting = Sitting(sitting_minutes)
        grid = shards.read_grid(data)
        corpus, held_out = shards.read_split(data, "train"), shards.read_split(data, "validation")
        torch.manual_seed(config.seed)
        model = Pulse88(config.model_config, kernel or ("fla" if ranks.device.type == "cuda" else "chunked"))
        model.to(ranks.device)
        optimizers = make_optimizers(model, config)
        progress = Progress(0, 0)
        found = checkpoint.list_checkpoints(run)
        if found and not resume:
            raise ValueError(f"{run} holds checkpoints already: resume it, or choose another folder")
        if found:
            progress = checkpoint.load(found[-1], model, optimizers, config, grid)
        if compiled:
            for layer in model.layers:
                layer.compile()
        log = Log(run, ranks)
        log.line(event="start", step=progress.step, world=ranks.world, config=asdict(config))
        batches = Batches(corpus, config)
        parallel: nn.Module = model
        if ranks.world > 1:
            parallel = DistributedDataParallel(
                model, device_ids=[ranks.device.index] if ranks.device.type == "cuda" else None
            )
        scaler = torch.amp.GradScaler(
            ranks.device.type, enabled=config.precision == "fp16" and _amp(config, ranks) is not None
        )
        while progress.step < config.steps and not sitting.over(ranks):
            set_learning_rate(optimizers, config.learning_rate_at(progress.step))
            loss, norm, counted = take_step(parallel, model, optimizers, scaler, batches, config, ranks, progress.step)
            progress = Progress(progress.step + 1, progress.tokens + counted)
            log.step(progress, loss, norm, config)
            if progress.step % config.validate_every == 0 or progress.step == config.steps:
                log.validation(progress, validate(model, held_out, config, ranks))
            if progress.step % config.checkpoint_every == 0 and progress.step < config.steps:
                _save(run, model, optimizers, progress, config, grid, ranks)
        _save(run, model, optimizers, progress, config, grid, ranks)
        log.line(event="end", step=progress.step, tokens=progress.tokens)
    return progress


def take_step(
    parallel: nn.Module,
    model: Pulse88,
    optimizers: list[Optimizer],
    scaler: torch.amp.GradScaler,
    batches: Batches,
    config: TrainConfig,
    ranks: Ranks,
    step: int,
) -> tuple[float, float, int]:
    """One optimizer step over all micro-batches and processes: mean loss in nats, gradient norm, tokens counted.

    The sum of nats is divided once by the number of targets that count in the whole batch.
    """
    ids = torch.from_numpy(batches.batch(step, ranks.rank, ranks.world))
    if ranks.device.type == "cuda":
        ids = ids.pin_memory().to(ranks.device, non_blocking=True)
    inputs, targets, counts = split_targets(ids, config.context_tokens)
    counted = ranks.total(counts.sum())
    total = torch.zeros((), device=ranks.device)
    precision = _amp(config, ranks)
    model.train()
    micro = range(0, len(ids), config.micro_windows)
    for first in micro:
        rows = slice(first, first + config.micro_windows)
        last = first == micro[-1]
        quiet = nullcontext() if last or ranks.world == 1 else parallel.no_sync()  # type: ignore[operator]
        with quiet:
            with torch.autocast(ranks.device.type, dtype=precision, enabled=precision is not None):
                logits, _ = parallel(inputs[rows], model.zero_state(len(inputs[rows])))
            loss = nats(logits, targets[rows], counts[rows], config.label_smoothing)
            # DDP averages gradients over processes; the sum is meant, so the mean is scaled back.
            torch.autograd.backward(scaler.scale(loss * ranks.world / counted))
        total += loss.detach()
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip, foreach=True)
    mean = ranks.total(total) / counted
    figures = torch.stack((mean, norm, counted.to(mean.dtype))).tolist()
    if not np.isfinite(figures[0]) or (not np.isfinite(figures[1]) and not scaler.is_enabled()):
        raise NonFinite(
            f"step {step}: loss {figures[0]}, gradient norm {figures[1]}; nothing was changed. Its batch is "
            f"batch({step}, {ranks.rank}, {ranks.world}) of seed {config.seed}. Lower the learning rate and resume."
        )
    for optimizer in optimizers:
        scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    scaler.update()
    return figures[0], figures[1], round(figures[2])


def validate(model: Pulse88, held_out: TokenCorpus, config: TrainConfig, ranks: Ranks) -> Likelihood:
    """The evaluator's own objective over the held-out pieces, shared by the processes."""
    mine = likelihood(
        model,
        held_out,
        window=config.window,
        batch=config.micro_windows,
        rank=ranks.rank,
        world=ranks.world,
        precision=_amp(config, ranks),
    )
    total = ranks.total(torch.from_numpy(mine.nats).to(ranks.device))
    return replace(mine, nats=total.cpu().numpy())


class Sitting:
    """A stretch of training that ends by time or by a signal, always after a whole step."""

    def __init__(self, minutes: float | None) -> None:
        self.ends = None if minutes is None else time.monotonic() + 60 * minutes
        self.signalled = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.signalled = True

    def over(self, ranks: Ranks) -> bool:
        """Whether any process was told to stop or has run out of time; the same answer in all of them."""
        mine = self.signalled or (self.ends is not None and time.monotonic() > self.ends)
        if ranks.world == 1:
            return mine
        return bool(ranks.total(torch.tensor(int(mine), device=ranks.device)).item())


class Log:
    """RUN/log.jsonl: a JSON object a line, written by the leading process."""

    def __init__(self, run: Path, ranks: Ranks) -> None:
        self.path = run / "log.jsonl" if ranks.leads else None
        self.since, self.since_tokens = time.monotonic(), -1
        if self.path:
            run.mkdir(parents=True, exist_ok=True)

    def line(self, **values: Any) -> None:
        if self.path:
            with self.path.open("a") as file:
                file.write(json.dumps({"time": round(time.time(), 2), **values}) + "\n")

    def step(self, progress: Progress, loss: float, norm: float, config: TrainConfig) -> None:
        if progress.step % LOG_EVERY and progress.step != config.steps:
            return
        now = time.monotonic()
        known = self.since_tokens >= 0
        speed = (progress.tokens - self.since_tokens) / (now - self.since) if known else None
        self.since, self.since_tokens = now, progress.tokens
        memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        self.line(
            step=progress.step,
            tokens=progress.tokens,
            loss=loss,
            norm=norm,
            rate=config.learning_rate_at(progress.step - 1),
            tokens_per_second=speed,
            memory_bytes=memory,
        )

    def validation(self, progress: Progress, found: Likelihood) -> None:
        self.line(
            event="validation",
            step=progress.step,
            tokens=progress.tokens,
            bits_per_note=found.bits_per_note,
            slots=found.by_slot(),
            sources=found.by_source(),
        )
        self.since_tokens = -1


def _amp(config: TrainConfig, ranks: Ranks) -> torch.dtype | None:
    """The type that matrix products run in; None leaves them in float32. Never lower than asked for on a CPU."""
    if ranks.device.type != "cuda" or config.precision == "fp32":
        return None
    return torch.bfloat16 if config.precision == "bf16" else torch.float16


def _save(
    run: Path,
    model: Pulse88,
    optimizers: list[Optimizer],
    progress: Progress,
    config: TrainConfig,
    grid: Any,
    ranks: Ranks,
) -> None:
    if ranks.leads:
        checkpoint.save(run, model, optimizers, progress, config, grid)
    if ranks.world > 1:
        dist.barrier()
