"""The command that compares designs. torch is imported when it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pulse88.cli_train import KERNELS, log_on_terminal, require_torch
from pulse88.terminal import FILE


@click.command(short_help="Train and compare the rows of a suite of designs.")
@click.argument("suite")
@click.option("--data", type=FILE, help="Folder that `pulse88 prepare` made.")
@click.option("-o", "--out", type=FILE, help="Folder for the runs and the table.")
@click.option("--only", multiple=True, metavar="ROW", help="Only this row; may be given several times.")
@click.option(
    "--seeds", type=click.IntRange(min=1), help="Random seeds of every row, instead of each row's own number."
)
@click.option("--other-data", multiple=True, metavar="GRID=FOLDER", help="Data for rows with another time grid.")
@click.option("--share", default="1/1", show_default=True, metavar="K/N", help="Run the K-th of N parts of the runs.")
@click.option("--kernel", type=click.Choice(KERNELS), help="Of the delta rule; fla on CUDA, chunked elsewhere.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the layers.")
@click.option("--show", is_flag=True, help="Print the suite by value, as JSON, and leave.")
def ablate(
    suite: str,
    data: Path | None,
    out: Path | None,
    only: tuple[str, ...],
    seeds: int | None,
    other_data: tuple[str, ...],
    share: str,
    kernel: Any,
    compiled: bool,
    show: bool,
) -> None:
    """Train every row of SUITE (design, design-40m, recipe, or a JSON file) at equal parameters, data and order.

    A row that is finished isn't run again; one that was cut short goes on. The table is made of all that is there.
    """
    from pulse88 import suites

    try:
        rows = suites.load(suite)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if show:
        click.echo(json.dumps(rows.to_json(), indent=1))
        return
    if data is None or out is None:
        raise click.UsageError("--data and --out are needed, or --show")
    require_torch()
    from pulse88 import ablate as room
    from pulse88.delta_rule import MissingKernel
    from pulse88.train import NonFinite

    try:
        plan = room.Plan(rows, data, out, dict(map(_folder, other_data)), only, seeds, _share(share))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    left_out = [row.name for row in rows.rows if plan.data_of(row) is None]
    if left_out:
        click.echo(f"Left out, for want of --other-data: {', '.join(left_out)}.", err=True)
    with log_on_terminal():
        try:
            room.run(plan, kernel=kernel, compiled=compiled, tell=lambda line: click.echo(line, err=True))
        except (MissingKernel, NonFinite) as error:
            raise click.ClickException(str(error)) from error
    if written := room.write_tables(plan):
        click.echo(written.read_text())
        click.echo(f"Wrote {written}.")


def _folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise click.UsageError(f"--other-data: {text!r} is not GRID=FOLDER")
    return name, Path(folder)


def _share(text: str) -> tuple[int, int]:
    part, slash, count = text.partition("/")
    if not (slash and part.isdigit() and count.isdigit()):
        raise click.UsageError(f"--share: {text!r} is not K/N")
    return int(part), int(count)
