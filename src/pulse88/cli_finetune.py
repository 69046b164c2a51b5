"""`pulse88 finetune`: adapt weights to a few pieces. torch is imported when it runs."""

from __future__ import annotations

import importlib.util
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from pulse88.config import ADAPTER_KINDS, FinetuneConfig
from pulse88.terminal import FILE, Decorated, field_option, progress


def finetune_options(command: Decorated) -> Decorated:
    """An option for every setting."""
    for field in reversed(fields(FinetuneConfig)):
        kind: Any = click.Choice(ADAPTER_KINDS) if field.name == "kind" else type(field.default)
        command = field_option(FinetuneConfig, field.name, type=kind)(command)
    return command


@click.command(short_help="Adapt weights to your own pieces.")
@click.option("--data", type=FILE, required=True, help="Folder of MIDI files, or of `pulse88 prepare`.")
@click.option("-o", "--output", type=FILE, required=True, help="Adapter file to write (safetensors).")
@click.option("--weights", type=FILE, help="Weights to adapt; without it, those that came with pulse88.")
@click.option("--adapter", type=FILE, help="Adapter of the same kind to go on from.")
@finetune_options
def finetune(data: Path, output: Path, weights: Path | None, adapter: Path | None, **settings: Any) -> None:
    """Adapt weights to a few pieces of your own, on a GPU if there is one, else on this machine's cores.

    What comes out is a small file for `pulse88 continue --adapter`, which belongs to these weights alone. Some of the
    pieces, or the ends of all where they are few, are held out, and tell when to stop and what it was good for. Ctrl-C
    stops early and keeps the best so far.
    """
    try:
        config = FinetuneConfig(**settings)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if importlib.util.find_spec("torch") is None:
        raise click.ClickException("this needs torch: pip install 'pulse88[train]'")
    if not output.absolute().parent.is_dir():
        raise click.ClickException(f"{output}: there is no folder {output.parent} to write to")
    from pulse88.continuation import default_weights
    from pulse88.finetune import finetune as adapt

    with progress("adapting") as tell:
        done = adapt(weights or default_weights(), data, output, config, tell, start=adapter)
    click.echo(
        f"Trained on {done.train_pieces} pieces, judged by {done.held_out}; "
        f"step {done.best_step} of {done.steps} kept (ended by {done.ended_by}), {done.minutes:.1f} minutes."
    )
    click.echo("bits a note                   before    after")
    for words, name in (("held-out windows", "windows"), ("after a held-out beginning", "prompt")):
        click.echo(f"{words:<28s} {getattr(done.before, name):7.3f}  {getattr(done.after, name):7.3f}")
    click.echo(f"Wrote {output}, {done.bytes / 2**20:.1f} MiB: pulse88 continue SEED --adapter {output}")
