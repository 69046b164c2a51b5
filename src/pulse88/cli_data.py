"""The commands that make data: prepare, merge and stats. Each imports its room when it runs."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pulse88.rules import QUANTISED, Rules
from pulse88.terminal import FILE, INTERRUPTED, Decorated, field_option, progress, say, verbose_option

if TYPE_CHECKING:
    from pulse88.prepare import Summary


def rule_options(command: Decorated) -> Decorated:
    """An option for every rule."""
    for field in reversed(fields(Rules)):
        kind: Any = click.Choice(QUANTISED) if field.name == "quantised" else type(field.default)
        command = field_option(Rules, field.name, type=kind)(command)
    return command


@click.command(short_help="Make training data from MIDI files.")
@click.argument("inputs", nargs=-1, required=True, type=FILE, metavar="FOLDER_OR_ARCHIVE...")
@click.option("-o", "--output", type=FILE, required=True, help="Folder for the data.")
@click.option(
    "--splits",
    multiple=True,
    metavar="LIST",
    help="Official splits: validation=LIST.txt (a path a line) or a CSV with columns split and path; may be repeated.",
)
@click.option(
    "--licences",
    multiple=True,
    metavar="TABLE",
    help="Licences: a JSON object of sources and licences, or SOURCE=LICENCE; may be repeated.",
)
@rule_options
@click.option("--workers", type=click.IntRange(min=0), help="Processes that parse; as many as there are cores.")
@click.option("--part", default="1/1", show_default=True, help="Part of an array job, such as 3/8; then merge.")
@verbose_option
def prepare(
    inputs: tuple[Path, ...],
    output: Path,
    splits: tuple[str, ...],
    licences: tuple[str, ...],
    workers: int | None,
    part: str,
    verbose: bool,
    **rules: Any,
) -> None:
    """Make training data from the piano pieces in folders, .zip and .tar.* archives, or single MIDI files.

    The same line given again goes on where it was interrupted. Folders called train, validation and test are official
    splits; other pieces are split by their hashes, versions of one composition together.
    """
    number, of = _part(part)
    from pulse88 import crew
    from pulse88.labels import Labels
    from pulse88.prepare import Job, PrepareError, merge, parse

    try:
        job = Job(Rules(**rules), Labels.read(splits, licences))
    except PrepareError:
        raise
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    began, cpu = time.perf_counter(), _cpu_seconds()
    processes = crew.cores() if workers is None else workers
    try:
        with progress("reading") as tell:
            parsed = parse(inputs, output, job, part=(number, of), processes=processes, tell=tell)
    except KeyboardInterrupt:
        say(True, f"\nStopped. What is read is kept in {output / 'work'}; the same line goes on from there.")
        click.get_current_context().exit(INTERRUPTED)
    read = f"{parsed.files:,} files"
    if parsed.were_there:
        read += f", {parsed.were_there:,} of {parsed.chunks:,} chunks of them were read before"
    if of > 1:
        click.echo(f"Part {number} of {of}: {read}. When all parts are done: pulse88 merge {output} -o {output}")
        return
    with progress("writing") as tell:
        summary = merge([output], output, tell=tell)
    took, worked = time.perf_counter() - began, _cpu_seconds() - cpu
    _tell(summary, output, verbose)
    speed = f"{took:.1f} s"
    if not parsed.were_there:  # else it would count files that an earlier run read
        speed += f", {parsed.files / max(worked, 0.01):.0f} files a second and core"  # The clock ticks every 10 ms.
    click.echo(f"Read {read} in {speed}.")


@click.command(short_help="Join the parts of an array job.")
@click.argument("parts", nargs=-1, required=True, type=FILE, metavar="PART...")
@click.option("-o", "--output", type=FILE, required=True, help="Folder for the data.")
@verbose_option
def merge(parts: tuple[Path, ...], output: Path, verbose: bool) -> None:
    """Join what `pulse88 prepare --part N/OF` left in the folders PART, into the same data that one run makes."""
    from pulse88.prepare import merge as join

    with progress("writing") as tell:
        summary = join(parts, output, tell=tell)
    _tell(summary, output, verbose)


@click.command(short_help="Tell and draw what is in prepared data.")
@click.argument("data", type=FILE)
@click.option("--png", type=FILE, help="Picture to draw; stats.png in DATA.")
def stats(data: Path, png: Path | None) -> None:
    """Tell what is in DATA, a folder that `pulse88 prepare` made: pieces, hours, notes and tokens by source.

    Also draw histograms of pitch, velocity, duration, gaps, density and length.
    """
    from pulse88 import data_statistics
    from pulse88.shards import read_grid

    found = data_statistics.measure(data)
    grid, total = read_grid(data), found.total
    path = png or data / "stats.png"
    data_statistics.draw(found, path, f"{data.resolve().name}: {total.pieces:,} pieces, {total.notes:,} notes")
    click.echo("\n".join(table(data_statistics.rows(found), text_columns=(0, 1, 6))))
    lengths = sorted(found.length)
    middle = lengths[len(lengths) // 2]
    click.echo(f"Tokens of a piece: {lengths[0]:,} to {lengths[-1]:,}, half have {middle:,} or more.")
    click.echo(f"Time grid {grid.name} ({grid.fingerprint}).\nWrote {path}.")


def _part(text: str) -> tuple[int, int]:
    number, slash, of = text.partition("/")
    if not (slash and number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise click.UsageError(f"--part {text} is not N/OF with N from 1 to OF, such as 3/8")
    return int(number), int(of)


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    return sum(os.times()[:4])


def _tell(summary: Summary, output: Path, verbose: bool) -> None:
    manifest = summary.manifest
    for row in manifest["refused"]:
        say(verbose, f"{row['path']}: {row['rule']}: {row['reason']}")
    for line in manifest["unused_list_lines"][:10]:
        say(True, f"the lists name {line}, which is not in the input")
    click.echo("\n".join(table([("source", *manifest["counts"]), *_rows(manifest["counts"])])))
    click.echo(f"Refused {sum(manifest['refusals'].values()):,} of {manifest['files']:,} files", nl=False)
    refusals = ", ".join(f"{rule} {count:,}" for rule, count in manifest["refusals"].items())
    click.echo(f": {refusals}." if refusals else ".")
    click.echo(f"Wrote {output / 'manifest.json'}, sha256 {summary.sha256}.")


def _rows(counts: dict[str, dict[str, int]]) -> list[tuple[str, ...]]:
    sources = sorted({source for split in counts.values() for source in split})
    rows = [(source, *(f"{split.get(source, 0):,}" for split in counts.values())) for source in sources]
    return [*rows, ("sum", *(f"{sum(split.values()):,}" for split in counts.values()))]


def table(rows: Sequence[Sequence[str]], text_columns: Sequence[int] = (0,)) -> list[str]:
    """Lines of a table, its `text_columns` to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(row, widths, strict=True)
        aligned = (c.ljust(width) if at in text_columns else c.rjust(width) for at, (c, width) in enumerate(cells))
        lines.append("  ".join(aligned).rstrip())
    return lines
