"""`pulse88 evaluate`: how well weights predict held-out music."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pulse88.terminal import FILE

if TYPE_CHECKING:
    from pulse88.batches import TokenCorpus


@click.command(short_help="Measure weights on held-out pieces.")
@click.option("--weights", type=FILE, help="Weights to measure; without it, those that came with pulse88.")
@click.option("--data", type=FILE, required=True, help="Folder made by `pulse88 prepare`.")
@click.option("--split", default="validation", show_default=True, help="Which pieces of it.")
@click.option("--pieces", type=click.IntRange(min=1), help="Only so many pieces, evenly spaced; all without it.")
@click.option("--batch", default=8, show_default=True, type=click.IntRange(min=1), help="Windows computed at once.")
@click.option("-o", "--output", type=FILE, help="Also write the figures as JSON.")
def evaluate(weights: Path | None, data: Path, split: str, pieces: int | None, batch: int, output: Path | None) -> None:
    """Bits a note of held-out pieces: whole, grid-free, by slot and by source. Needs the extra `train` (torch)."""
    try:
        import torch
    except ImportError as error:
        raise click.ClickException("torch is missing, which evaluation needs: pip install 'pulse88[train]'") from error
    from pulse88 import shards
    from pulse88.checkpoint import load_model
    from pulse88.continuation import default_weights
    from pulse88.engine.weights import read
    from pulse88.evaluate import grid_bits_per_note, likelihood

    loaded = read(weights or default_weights())
    grid = shards.read_grid(data)
    if grid.fingerprint != loaded.grid.fingerprint:
        raise click.ClickException(
            f"{data} was tokenized on the grid {grid.name!r}, these weights read {loaded.grid.name!r}: "
            f"prepare the data again with --grid {loaded.grid.name}"
        )
    corpus = shards.read_split(data, split)
    if pieces is not None:
        corpus = _some(corpus, pieces)
    model = load_model(loaded)
    cuda = torch.cuda.is_available()
    if cuda:
        model.cuda().use_kernel("fla")
    found = likelihood(
        model, corpus, window=loaded.config.max_positions, batch=batch, precision=torch.bfloat16 if cuda else None
    )
    figures = {
        "weights_sha256": loaded.sha256,
        "split": split,
        "pieces": len(found.notes),
        "notes": int(found.notes.sum()),
        "bits_per_note": found.bits_per_note,
        "grid_free_bits_per_note": found.bits_per_note + grid_bits_per_note(corpus, grid),
        "by_slot": found.by_slot(),
        "by_source": found.by_source(),
    }
    click.echo(f"{figures['pieces']} pieces, {figures['notes']} notes of {split}")
    click.echo(f"{found.bits_per_note:8.3f} bits a note on the grid {grid.name!r}")
    click.echo(f"{figures['grid_free_bits_per_note']:8.3f} bits a note, grid-free")
    for name, bits in (*found.by_slot().items(), *found.by_source().items()):
        click.echo(f"{bits:8.3f} {name}")
    if output:
        partial = output.with_name(f".{output.name}.part")
        partial.write_text(json.dumps(figures, indent=1) + "\n")
        partial.replace(output)


def _some(corpus: TokenCorpus, count: int) -> TokenCorpus:
    """`count` pieces, evenly spaced."""
    import numpy as np

    chosen = np.unique(np.linspace(0, len(corpus.names) - 1, count).round().astype(int)).tolist()
    tokens = [corpus.tokens[corpus.starts[i] : corpus.starts[i] + corpus.lengths[i]] for i in chosen]
    return replace(
        corpus,
        tokens=np.concatenate(tokens),
        lengths=corpus.lengths[chosen],
        names=tuple(corpus.names[i] for i in chosen),
    )
