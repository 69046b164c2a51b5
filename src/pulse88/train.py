"""Training: setup, a loop over steps, validation, checkpoints. The only file that touches torch.distributed.

One process a GPU under torchrun, or one process alone; the batch of a step is the same however many share it. Strict:
on CUDA the real kernel of the delta rule must be there, or the run stops before it starts.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from pulse88 import checkpoint, samples, shards
from pulse88.average import WeightAverage
from pulse88.batches import Ahead, Batches, TokenCorpus
from pulse88.checkpoint import CheckpointError, Circumstances, Progress
from pulse88.config import TrainConfig
from pulse88.delta_rule import Kernel
from pulse88.engine import weights as weights_file
from pulse88.evaluate import likelihood
from pulse88.likelihood import SLOTS, Likelihood
from pulse88.model import Pulse88
from pulse88.objective import nats, nats_of_each, slot_table, split_targets
from pulse88.optimizer import make_optimizers, set_learning_rate
from pulse88.sitting import Sitting
from pulse88.training_log import StepFigures, TrainingLog, is_logged
from pulse88.vocabulary import TimeGrid
from pulse88.written import write_whole

_log = logging.getLogger(__name__)

# Of a model's configuration, what says nothing about the function that its weights are.
ONLY_IN_TRAINING = ("dropout", "attention_dropout", "embedding_init_std", "position_init_std")


class NonFinite(RuntimeError):
    """Loss or gradient stopped being a number; the step was not taken and the message says where its batch lies."""


@dataclass(frozen=True)
class Outcome:
    """How far a sitting came, and why it ended: `finished`, `time`, or the name of a signal."""

    progress: Progress
    ended_by: str
    leads: bool  # whether this process is the one that speaks for all


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

    def largest(self, values: Sequence[int]) -> list[int]:
        """Each value's largest over all processes, so that all of them decide the same."""
        if self.world == 1:
            return list(values)
        shared = torch.tensor(values, device=self.device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return [int(value) for value in shared.tolist()]


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
    initial: Path | None = None,
    sitting_minutes: float | None = None,
) -> Outcome:
    """Trains until the recipe's last step, the end of the sitting, or SIGTERM or Ctrl-C, and saves.

    `kernel` None takes `fla` on CUDA and `chunked` elsewhere. With `resume` it goes on from the run's latest
    checkpoint if there is one; without, the folder must not hold any (ValueError). A new run begins with the weights
    file `initial` where one is given, and with random weights otherwise. The weights are in the last checkpoint.
    Errors: ShardError for the data, WeightsError (or ValueError if they don't fit), CheckpointError, MissingKernel,
    NonFinite.
    """
    with ExitStack() as stack:
        ranks = stack.enter_context(processes())
        sitting = stack.enter_context(Sitting(sitting_minutes, config.checkpoint_minutes))
        found = checkpoint.list_checkpoints(run)
        if found and not resume:
            raise ValueError(f"{run} holds checkpoints already: resume it, or choose another folder")
        grid = shards.read_grid(data)
        corpus, held_out = shards.read_split(data, "train"), shards.read_split(data, "validation")
        if corpus.lengths.max() <= config.context_tokens:
            raise ValueError(f"{data}: no piece is longer than the {config.context_tokens} tokens of context")
        circumstances = Circumstances(grid, corpus.fingerprint, ranks.world)
        trainer = Trainer(config, corpus, ranks, kernel)
        stack.callback(trainer.leave)
        progress, remarks = Progress(0, 0), ["nothing to resume, so it begins"] if resume and not found else []
        if found:
            parts = (trainer.model, trainer.optimizers, config, circumstances)
            resumed = checkpoint.load(found[-1], *parts, trainer.average_tensors)
            if resumed.scaler:
                trainer.scaler.load_state_dict(resumed.scaler)
            progress, remarks = resumed.progress, resumed.remarks
        elif initial:
            remarks.append(trainer.begin_with(initial, grid))
        trainer.start(compiled)
        log = stack.enter_context(closing(TrainingLog(run, config, progress))) if ranks.leads else None
        if log:
            checkpoint.clear(run)
            for remark in remarks:
                _log.warning("%s: %s", run, remark)
            log.event("start", step=progress.step, world=ranks.world, remarks=remarks, config=asdict(config))
        saved, ended_by = progress.step if found else -1, "finished"
        while progress.step < config.steps:
            signalled, over, due = ranks.largest((sitting.signal, sitting.over, ranks.leads and sitting.checkpoint_due))
            if signalled or over:
                ended_by = signal.Signals(signalled).name if signalled else "time"
                break
            began = time.monotonic()
            try:
                figures = trainer.step(progress.step)
            except NonFinite as error:
                if log:
                    told = trainer.coordinates(progress.step) | {"problem": str(error)}
                    write_whole(run / "nonfinite.json", (json.dumps(told, indent=1) + "\n").encode())
                raise
            progress = Progress(progress.step + 1, progress.tokens + figures.tokens)
            if log:
                log.step(progress, figures, time.monotonic() - began, trainer.largest_memory())
            if progress.step % config.validate_every == 0 or progress.step == config.steps:
                # Before the checkpoint: what resumes from it would not do it again.
                with trainer.averaged():
                    likelihood_found = trainer.validate(held_out)
                    if log:
                        log.validation(progress, likelihood_found)
                        _play_samples(log, trainer, progress, held_out, grid)
            if due or progress.step % config.checkpoint_every == 0 or progress.step == config.steps:
                _save(run, trainer, progress, circumstances)
                saved = progress.step
                sitting.note_checkpoint()
        if saved != progress.step:
            _save(run, trainer, progress, circumstances)
        if log:
            log.event("end", step=progress.step, tokens=progress.tokens, ended_by=ended_by)
    return Outcome(progress, ended_by, ranks.leads)


class Trainer:
    """A model, its optimizers and its batches, on one of the processes that share a run."""

    def __init__(self, config: TrainConfig, corpus: TokenCorpus, ranks: Ranks, kernel: Kernel | None = None) -> None:
        """ValueError if the processes can't share a batch, or for a precision that the GPU hasn't."""
        self.config, self.ranks = config, ranks
        self.batches = Batches(corpus, config)
        self.batches.numbers(0, ranks.rank, ranks.world)
        self._ahead = Ahead(self.batches, ranks.rank, ranks.world)
        self.precision = precision_on(ranks.device, config)
        torch.manual_seed(config.seed)
        self.model = Pulse88(config.model_config, kernel or ("fla" if ranks.device.type == "cuda" else "chunked"))
        self.model.gradient_checkpointing = config.gradient_checkpointing
        self.model.to(ranks.device)
        self.optimizers: list[Optimizer] = make_optimizers(self.model, config)
        self.average = WeightAverage(self.model, config.average_decay) if config.average_decay else None
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=self.precision == torch.float16)
        self._parallel: nn.Module = self.model
        self._slots = slot_table(ranks.device)

    def begin_with(self, path: Path, grid: TimeGrid) -> str:
        """Takes a file's weights instead of random ones, and says which; ValueError for another model or time grid."""
        weights = weights_file.read(path)
        ours = self.config.model_config
        same = replace(weights.config, **{name: getattr(ours, name) for name in ONLY_IN_TRAINING})
        if same != ours:
            raise ValueError(f"{path}: of another model than {self.config.model}: begin with weights of its shape")
        if weights.grid.fingerprint != grid.fingerprint:
            raise ValueError(f"{path}: of another time grid than the data: prepare the data with the weights' grid")
        checkpoint.put(weights, self.model)
        return f"begins with the weights of {path.name}, sha256 {weights.sha256}"

    def start(self, compiled: bool) -> None:
        """Compiles the layers and joins the other processes, once the weights are those to begin with."""
        if compiled:
            for layer in self.model.layers:
                layer.compile()
        if self.ranks.world > 1:
            device_ids = [self.ranks.device.index] if self.ranks.device.type == "cuda" else None
            self._parallel = DistributedDataParallel(self.model, device_ids=device_ids)

    def leave(self) -> None:
        """Lets go of the other processes, before their group is destroyed: torch waits forever the other way round."""
        self._ahead.close()
        if self._parallel is not self.model:
            self._parallel = self.model
            gc.collect()

    def step(self, step: int) -> StepFigures:
        """One optimizer step over all micro-batches and processes; NonFinite before anything changes.

        The sum of nats is divided once by the number of targets that count in the whole batch.
        """
        config, ranks = self.config, self.ranks
        set_learning_rate(self.optimizers, config.learning_rate_at(step))
        ids = torch.from_numpy(self._ahead.batch(step))
        if ranks.device.type == "cuda":
            ids = ids.pin_memory().to(ranks.device, non_blocking=True)
        inputs, targets, counts = split_targets(ids, config.context_tokens)
        counted = ranks.total(counts.sum())
        divisor = counted.clamp(min=1)  # Pieces shorter than the context can fill a batch of a small corpus.
        total = torch.zeros((), device=ranks.device)
        by_slot = torch.zeros(2, len(SLOTS), device=ranks.device)
        first_number = self.batches.numbers(step, ranks.rank, ranks.world).start
        logged = is_logged(step + 1, config)
        self.model.train()
        for first in range(0, len(ids), config.micro_windows):
            rows = slice(first, first + config.micro_windows)
            self._seed_dropout(first_number + first)
            alone = ranks.world == 1 or first + config.micro_windows >= len(ids)
            with nullcontext() if alone else self._parallel.no_sync():  # type: ignore[operator]
                with torch.autocast(ranks.device.type, dtype=self.precision, enabled=self.precision is not None):
                    logits, _ = self._parallel(inputs[rows], self.model.zero_state(len(inputs[rows])))
                loss = nats(logits, targets[rows], counts[rows], config.label_smoothing)
                # DDP averages gradients over processes; the sum is meant, so the mean is scaled back.
                torch.autograd.backward(self.scaler.scale(loss * ranks.world / divisor))
            total += loss.detach()
            if logged:
                by_slot += self._by_slot(logits.detach(), targets[rows], counts[rows])
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.gradient_clip, foreach=True)
        mean = ranks.total(total) / divisor
        self._ahead.begin(step + 1)
        figures = torch.stack((mean.double(), norm.double(), counted.double())).tolist()
        finite = math.isfinite(figures[1])
        may_rescale = self.scaler.is_enabled() and (finite or self.scaler.get_scale() > 1)
        if not math.isfinite(figures[0]) or not (finite or may_rescale):
            raise NonFinite(
                f"step {step}: loss {figures[0]}, gradient norm {figures[1]}; nothing was changed. The last checkpoint "
                f"is as good as before, but the same batch comes again: begin anew with a lower learning rate"
            )
        for optimizer in self.optimizers:
            if finite:  # All of them or none: the clipped gradients of the others are no numbers either.
                self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        if self.average:  # A step that was skipped counts too, so that its number is all there is to know.
            self.average.update(step)
        self.scaler.update()
        slots = self._mean_by_slot(by_slot) if logged else None
        return StepFigures(figures[0], figures[1], round(figures[2]), finite, slots)

    def validate(self, held_out: TokenCorpus) -> Likelihood:
        """The evaluator's own objective over the held-out pieces, shared by the processes."""
        mine = likelihood(
            self.model,
            held_out,
            window=self.config.window,
            batch=self.config.micro_windows,
            rank=self.ranks.rank,
            world=self.ranks.world,
            precision=self.precision,
            ends=self.config.ends,
        )
        total = self.ranks.total(torch.from_numpy(mine.nats).to(self.ranks.device))
        return replace(mine, nats=total.cpu().numpy())

    @property
    def average_tensors(self) -> dict[str, Tensor] | None:
        """The average of the weights by their names, if the recipe keeps one."""
        return self.average.tensors if self.average else None

    def averaged(self) -> AbstractContextManager[None]:
        """The model computes with the average of its weights meanwhile, if the recipe keeps one."""
        return self.average.in_place() if self.average else nullcontext()

    def coordinates(self, step: int) -> dict[str, Any]:
        """Where the batch of a step comes from: seed, numbers, and piece and first token of each window."""
        numbers = self.batches.numbers(step)
        places = [self.batches.place(number) for number in numbers]
        names = self.batches.corpus.names
        windows = [
            {"number": number, "piece": names[piece], "token": token}
            for number, (piece, token) in zip(numbers, places, strict=True)
        ]
        return {"step": step, "seed": self.config.seed, "windows": windows}

    def largest_memory(self) -> int:
        """Bytes of GPU memory that this process held at most."""
        return torch.cuda.max_memory_allocated() if self.ranks.device.type == "cuda" else 0

    def _seed_dropout(self, number: int) -> None:
        """Dropout as a function of the seed and of a micro-batch's first window, like the data: nothing to save."""
        torch.manual_seed(int(np.random.SeedSequence((self.config.seed, 2, number)).generate_state(1)[0]))

    def _by_slot(self, logits_BTV: Tensor, targets_BT: Tensor, counts_BT: Tensor) -> Tensor:
        """[2, slots] unsmoothed nats and number of the counted targets of each slot."""
        counts = counts_BT.flatten().float()
        each = nats_of_each(logits_BTV, targets_BT).flatten() * counts
        found = torch.zeros(2, len(SLOTS), device=each.device)
        return found.index_add_(1, self._slots[targets_BT.flatten()], torch.stack((each, counts)))

    def _mean_by_slot(self, by_slot: Tensor) -> dict[str, float]:
        sums, numbers = self.ranks.total(by_slot).tolist()
        return {slot: s / n for slot, s, n in zip(SLOTS, sums, numbers, strict=True) if n}


def precision_on(device: torch.device, config: TrainConfig) -> torch.dtype | None:
    """The type that matrix products run in; None leaves them in float32, as always on a CPU.

    ValueError for bf16 on a GPU that hasn't got it.
    """
    if device.type != "cuda" or config.precision == "fp32":
        return None
    if config.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError("this GPU has no bf16: set precision=fp16, which scales the loss")
    return torch.bfloat16 if config.precision == "bf16" else torch.float16


def _play_samples(
    log: TrainingLog, trainer: Trainer, progress: Progress, held_out: TokenCorpus, grid: TimeGrid
) -> None:
    """Writes and logs what the weights play. Where that fails, it is told, and the training goes on."""
    config = trainer.config
    if not config.samples:
        return
    tensors = {name: value.detach().float().cpu().numpy() for name, value in trainer.model.state_dict().items()}
    folder = log.run / "samples" / f"step-{progress.step:08d}"
    model, began = config.model_config, time.monotonic()
    try:
        told = samples.play(tensors, model, grid, held_out, folder, count=config.samples, random_seed=config.seed)
    except (ValueError, OSError) as error:
        _log.warning("no samples at step %d: %s", progress.step, error)
        return
    log.samples(progress, told, time.monotonic() - began)


def _save(run: Path, trainer: Trainer, progress: Progress, circumstances: Circumstances) -> None:
    """The leading process writes; where it can't, all of them leave with CheckpointError."""
    failed = None
    if trainer.ranks.leads:
        try:
            state = trainer.scaler.state_dict()
            parts = (trainer.model, trainer.optimizers, progress, trainer.config, circumstances, state)
            checkpoint.save(run, *parts, trainer.average_tensors)
        except CheckpointError as error:
            failed = error
    (any_failed,) = trainer.ranks.largest([failed is not None])
    if failed:
        raise failed
    if any_failed:
        raise CheckpointError("the leading process could not write its checkpoint")
