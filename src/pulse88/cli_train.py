"""The commands of the workshop: train a model, and export what came of it. torch is imported when they run."""

from __future__ import annotations

import importlib.util
import json
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import click

from pulse88 import __version__
from pulse88.config import TRAIN_PRESETS, TrainConfig
from pulse88.terminal import FILE

KERNELS = ("fla", "chunked", "loop")
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
STOPPED = 128  # exit status of a process that a signal ended is this and the signal's number, as shells have it


class TrainCommand(click.Command):
    """Tells every setting of a recipe below its options."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Settings for --set, with the values of the published recipe"):
            formatter.write_dl([(f"{f.name}={shown(f.default)}", str(f.metadata["help"])) for f in fields(TrainConfig)])


@click.command(cls=TrainCommand, short_help="Train a model on prepared data.")
@click.option("--config", "preset", type=click.Choice(list(TRAIN_PRESETS)), required=True, help="Recipe to train by.")
@click.option("--data", type=FILE, required=True, help="Folder that `pulse88 prepare` made.")
@click.option("--out", type=FILE, required=True, help="Folder of the run: checkpoints and logs.")
@click.option("--shape", metavar="SUITE/ROW", help="Train the model of a suite's row, as `pulse88 ablate` has it.")
@click.option("--resume", is_flag=True, help="Go on from the latest checkpoint in --out, if there is one.")
@click.option(
    "--init", "initial", type=FILE, help="Weights file that a new run begins with, instead of random weights."
)
@click.option("--kernel", type=click.Choice(KERNELS), help="Of the delta rule; fla on CUDA, chunked elsewhere.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the layers: a slower start, then faster steps.")
@click.option("--sitting-minutes", type=click.FloatRange(min=0), help="Save and leave after so many minutes.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a setting of the recipe.")
def train(
    preset: str,
    data: Path,
    out: Path,
    shape: str | None,
    resume: bool,
    initial: Path | None,
    kernel: Any,
    compiled: bool,
    sitting_minutes: float | None,
    changes: tuple[str, ...],
) -> None:
    """Train a model on prepared data, on this machine's GPU or CPU.

    On several GPUs: torchrun --nproc-per-node 4 -m pulse88 train ..., and the same batches are shared by all of them.
    SIGTERM and Ctrl-C end the step under way, save, and leave with exit status 143 and 130.
    """
    try:
        config = replace(TRAIN_PRESETS[preset], **dict(map(_change, changes)))
        if shape:
            config = _shaped(config, shape)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    require_torch()
    from pulse88.delta_rule import MissingKernel
    from pulse88.train import NonFinite
    from pulse88.train import train as run_training

    with log_on_terminal():
        try:
            outcome = run_training(
                config,
                data,
                out,
                kernel=kernel,
                compiled=compiled,
                resume=resume,
                initial=initial,
                sitting_minutes=sitting_minutes,
            )
        except (MissingKernel, NonFinite) as error:
            raise click.ClickException(str(error)) from error
    step, signalled = outcome.progress.step, outcome.ended_by not in ("finished", "time")
    if outcome.leads and outcome.ended_by == "finished":
        click.echo(f"Trained to step {step}: `pulse88 export {out} -o FILE` makes a weights file of it.")
    elif outcome.leads:
        why = f"Stopped by {outcome.ended_by}" if signalled else "The sitting is over"
        click.echo(f"{why}: saved at step {step} of {config.steps}; the same command with --resume goes on.", err=True)
    if signalled:
        click.get_current_context().exit(STOPPED + signal.Signals[outcome.ended_by])


@click.command(short_help="Make a weights file of a training run.")
@click.argument("run", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="Weights file to write (safetensors).")
@click.option("--int8/--fp32", default=True, show_default=True, help="Matrices as bytes with a scale a row, or exact.")
@click.option("--note", "notes", multiple=True, metavar="KEY=VALUE", help="Metadata to add, a licence for one.")
def export(run: Path, output: Path, int8: bool, notes: tuple[str, ...]) -> None:
    """Make a weights file, which `pulse88 continue --weights` takes, of the latest checkpoint of RUN."""
    metadata = dict(map(_pair, notes))
    require_torch()
    from pulse88 import checkpoint
    from pulse88.engine import weights as weights_file

    found = checkpoint.list_checkpoints(run)
    if not found:
        raise click.ClickException(f"{run}: no checkpoint in it; `pulse88 train --out {run}` makes some")
    weights = weights_file.read(found[-1] / checkpoint.WEIGHTS_NAME)
    state = checkpoint.read_state(found[-1])
    if taken := metadata.keys() & weights.metadata.keys():
        raise click.UsageError(f"--note: {', '.join(sorted(taken))} is what the file says of its model")
    facts = {
        "pulse88_version": __version__,
        "train_config": json.dumps(state["config"]),
        "trained_steps": str(state["step"]),
        "trained_tokens": str(state["tokens"]),
    }
    tensors = weights_file.quantise(weights.tensors) if int8 else weights.tensors
    weights_file.save(output, tensors, {**weights.metadata, **facts, **metadata})
    click.echo(f"Wrote {output}: step {state['step']}, {state['tokens']:,} tokens.")


def require_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise click.ClickException("this needs torch: pip install 'pulse88[train]'")


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise click.UsageError(f"{text!r} is not KEY=VALUE")
    return key, value


def _shaped(recipe: TrainConfig, place: str) -> TrainConfig:
    """The recipe for the model of SUITE/ROW; ValueError where there is none."""
    from pulse88 import suites

    suite, _, name = place.rpartition("/")
    rows = {row.name: row for row in suites.load(suite).rows}
    if name not in rows:
        raise ValueError(f"--shape: {suite} has no row {name!r}; there are {', '.join(rows)}")
    values = {f.name: getattr(recipe, f.name) for f in fields(recipe) if f.name != "model"}
    return suites.RowConfig(**values, shape=rows[name].config.shape)


def _change(text: str) -> tuple[str, Any]:
    """A setting of TrainConfig and its value; UsageError with the setting's sentence if it can't be one."""
    key, value = _pair(text)
    known = asdict(TrainConfig())
    if key not in known:
        raise click.UsageError(f"--set: no setting {key!r}; there are {', '.join(known)}")
    kind = type(known[key])
    try:
        if kind is bool:
            return key, {"true": True, "false": False}[value.lower()]
        return key, kind(value)
    except (ValueError, KeyError) as error:
        (sentence,) = (f.metadata["help"] for f in fields(TrainConfig) if f.name == key)
        raise click.UsageError(f"--set {key}: {value!r} is not {KINDS[kind]}. {sentence}") from error


def shown(value: Any) -> str:
    """A value as --set takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


class _Echo(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        click.echo(self.format(record), err=True)


@contextmanager
def log_on_terminal() -> Iterator[None]:
    """What the run logs, on the error stream."""
    logger, handler = logging.getLogger("pulse88"), _Echo()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
