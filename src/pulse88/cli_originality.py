"""`pulse88 index` and `pulse88 originality`: what of some music is in the training data already."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pulse88.terminal import FILE, progress

if TYPE_CHECKING:
    from pulse88.notes import Performance


@click.command(short_help="Index training data for `originality`.")
@click.argument("data", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="Index file (NPZ) to write.")
@click.option("--split", default="train", show_default=True, help="Which pieces are indexed.")
@click.option("--held-out", default="validation", show_default=True, help="Pieces that tell what overlap is usual.")
@click.option(
    "--every",
    type=int,
    help="The smallest of so many shingles is kept: a smaller number finds shorter overlaps and makes a larger file.",
)
def index(data: Path, output: Path, split: str, held_out: str, every: int | None) -> None:
    """Make an index of DATA, a folder that `pulse88 prepare` made, by which overlaps with it are found."""
    from pulse88 import originality
    from pulse88.overlap_index import EVERY

    with progress("indexing") as tell:
        made = originality.make_index(
            data, split=split, held_out=held_out, every=EVERY if every is None else every, tell=tell
        )
    made.write(output)
    size = output.stat().st_size / 1e6
    click.echo(f"Wrote {output}: {len(made.names):,} pieces, {len(made.seeds):,} seeds, {size:.1f} MB.")
    click.echo(f"An overlap of {made.resolution} notes always holds two seeds, which is how overlaps are known.")
    if "held_out" in made.about:
        excerpts = made.about["held_out"]["excerpts"]
        shares = [
            f"{originality.as_much_held_out(made, notes):.1%} share {notes} notes or more" for notes in (20, 50, 100)
        ]
        click.echo(f"Of {excerpts:,} excerpts of {held_out}, {', '.join(shares)} with a piece of {split}.")


@click.command(short_help="Tell what of a MIDI file is in the training data.")
@click.argument("sources", nargs=-1, required=True, type=FILE, metavar="MIDI...")
@click.option("--index", "index_path", type=FILE, help="Index made by `pulse88 index`; that of the released weights.")
@click.option("--data", type=FILE, help="The data that the index was made of, to compare note by note.")
@click.option("--whole", is_flag=True, help="Look at the whole file, not only at the part that pulse88 made.")
def originality(sources: tuple[Path, ...], index_path: Path | None, data: Path | None, whole: bool) -> None:
    """Tell the longest overlap of MIDI files with the training data, at any transposition and tempo.

    Of files that `pulse88 continue` wrote only the new part counts. Beside it stands how many excerpts of real pieces,
    which the model has never seen, overlap as much.
    """
    from pulse88.originality import default_index, inspect
    from pulse88.overlap_index import OverlapIndex

    known = OverlapIndex.read(index_path or default_index())
    for source in sources:
        finding = inspect(_heard(source, whole), known, data)
        click.echo(f"{source}: {'; '.join(finding.lines(known))}.")


def _heard(source: Path, whole: bool) -> Performance:
    from pulse88 import midi_file
    from pulse88.continuation import provenance_of

    performance = midi_file.read(source).performance
    made_by = None if whole else provenance_of(source)
    return performance if made_by is None else performance.take(performance.part == made_by.new_part)
