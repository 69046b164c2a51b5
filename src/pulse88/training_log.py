"""What a training run writes down about itself, by its leading process.

RUN/log.jsonl          a JSON object a line: start, every tenth step, validations, end
    training_log.txt   the exact loss of every step
    loss.png           the curve, drawn at every validation
    samples/           what the weights play at every validation (samples.py)
    tensorboard/       the same figures, where tensorboard is installed
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pulse88.checkpoint import Progress
from pulse88.config import TrainConfig
from pulse88.likelihood import Likelihood
from pulse88.written import append_line, end_whole, make_folder, not_written, written_whole

SAMPLE_FIGURES = ("density", "range", "repetition", "pitch_class_cosine")  # means of them are drawn
LOG_EVERY = 10  # steps between lines of log.jsonl
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepFigures:
    """What one optimizer step came to, over all processes."""

    loss: float  # nats a target, smoothed as the recipe says
    norm: float  # of the gradient, before it was clipped
    tokens: int  # targets that counted
    taken: bool = True  # False where the loss scale was too large, so nothing but the scale changed
    slots: dict[str, float] | None = None  # nats a target of each slot, unsmoothed; on steps that are logged


def is_logged(step: int, config: TrainConfig) -> bool:
    """Whether the step, counted from 1, has a line of its own in log.jsonl."""
    return step % LOG_EVERY == 0 or step == config.steps


def has_tensorboard() -> bool:
    """Whether its figures can be written for tensorboard."""
    return importlib.util.find_spec("tensorboard") is not None


class TrainingLog:
    """The files of a run and, through the logger of this module, what its terminal says."""

    def __init__(self, run: Path, config: TrainConfig, begin: Progress) -> None:
        self.run, self.config = run, config
        make_folder(run)
        for name in ("log.jsonl", "training_log.txt"):
            end_whole(run / name)
        self._seconds, self._tokens, self._steps = 0.0, 0, 0
        self._first = True  # of this sitting: it compiles, so its time tells nothing
        self._board: Any = None
        if has_tensorboard():
            from torch.utils.tensorboard import SummaryWriter

            try:
                self._board = SummaryWriter(str(run / "tensorboard"), purge_step=begin.step + 1)
            except OSError as error:
                raise not_written(error, run / "tensorboard") from error
        else:
            _log.info("tensorboard is not installed, so the run writes its own logs only")

    def event(self, event: str, **values: Any) -> None:
        """A line of log.jsonl; for a start or a resume, a remark in training_log.txt too."""
        self._line(event=event, **values)
        if event == "start":
            self._exact(f"# from step {values['step']}, {values['world']} process(es)")

    def step(self, progress: Progress, figures: StepFigures, seconds: float, memory: int) -> None:
        """One step that took `seconds`, with the largest memory in bytes that the GPU held so far."""
        skipped = "" if figures.taken else " skipped: the loss scale was too large"
        self._exact(
            f"step {progress.step} tokens {progress.tokens} loss {figures.loss!r} norm {figures.norm!r}{skipped}"
        )
        if not self._first:
            self._seconds, self._tokens = self._seconds + seconds, self._tokens + figures.tokens
            self._steps += 1
        self._first = False
        if not is_logged(progress.step, self.config):
            return
        speed = self._tokens / self._seconds if self._steps and self._seconds else None
        left = (self.config.steps - progress.step) * self._seconds / self._steps if self._steps else None
        self._seconds, self._tokens, self._steps = 0.0, 0, 0
        values: dict[str, Any] = {
            "loss": figures.loss,
            "norm": figures.norm,
            "rate": self.config.learning_rate_at(progress.step - 1),
            "tokens_per_second": speed,
            "memory_bytes": memory,
            "seconds_left": left,
        }
        self._line(step=progress.step, tokens=progress.tokens, **values, slots=figures.slots)
        self._scalars(progress.step, {**values, **{f"loss of {s}": v for s, v in (figures.slots or {}).items()}})
        pace = f", {speed / 1000:.1f}k tokens/s, {duration(left)} left" if speed and left is not None else ""
        _log.info("step %d of %d: loss %.4f%s", progress.step, self.config.steps, figures.loss, pace)

    def validation(self, progress: Progress, found: Likelihood) -> None:
        """What the evaluator found on the held-out pieces; draws the curve anew."""
        figures = {"bits_per_note": found.bits_per_note, "slots": found.by_slot(), "sources": found.by_source()}
        self._line(event="validation", step=progress.step, tokens=progress.tokens, **figures)
        groups = {f"bits a note, {name}": value for name, value in (found.by_slot() | found.by_source()).items()}
        self._scalars(progress.step, {"bits a note": found.bits_per_note, **groups})
        _log.info("validation at step %d: %.4f bits a note", progress.step, found.bits_per_note)
        draw_curve(self.run)

    def samples(self, progress: Progress, told: list[dict[str, Any]], seconds: float) -> None:
        """The figures of what was played, by file, and their means over all files for tensorboard."""
        self._line(event="samples", step=progress.step, tokens=progress.tokens, seconds=round(seconds, 2), files=told)
        means = {name: sum(row[name] for row in told) / len(told) for name in SAMPLE_FIGURES} if told else {}
        self._scalars(progress.step, {f"samples, {name.replace('_', ' ')}": value for name, value in means.items()})

    def close(self) -> None:
        """Writes out what TensorBoard holds back."""
        if self._board is not None:
            self._board.close()

    def _line(self, **values: Any) -> None:
        append_line(self.run / "log.jsonl", json.dumps({"time": round(time.time(), 2), **values}))

    def _exact(self, line: str) -> None:
        append_line(self.run / "training_log.txt", line)

    def _scalars(self, step: int, values: dict[str, float | None]) -> None:
        if self._board is not None:
            for name, value in values.items():
                if value is not None:
                    self._board.add_scalar(name, value, step)


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds below an hour."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def draw_curve(run: Path) -> None:
    """RUN/loss.png from RUN/log.jsonl: training loss in bits a note, and the validations."""
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    bits = 4 / math.log(2)  # four tokens a note
    steps = {line["tokens"] / 1e6: line["loss"] * bits for line in lines if "loss" in line}
    held_out = {line["tokens"] / 1e6: line["bits_per_note"] for line in lines if line.get("event") == "validation"}
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(
        list(steps), list(steps.values()), color="tab:blue", linewidth=0.8, label="training, as the recipe has it"
    )
    axes.plot(list(held_out), list(held_out.values()), color="tab:red", marker="o", label="held-out pieces")
    if drawn := [*steps.values(), *held_out.values()]:
        axes.set_ylim(0.95 * min(drawn), min(max(drawn), 2 * min(drawn)))  # The first steps would press the rest flat.
    axes.set_xlabel("million tokens")
    axes.set_ylabel("bits a note")
    axes.grid(alpha=0.3)
    axes.legend()
    with written_whole(run / "loss.png") as partial:
        figure.savefig(partial, format="png", dpi=120)
