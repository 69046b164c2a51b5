"""`pulse88 listen-test` and `pulse88 listen-results`: what people say of continuations, not knowing whose they are."""

from __future__ import annotations

from pathlib import Path

import click

from pulse88.terminal import FILE


@click.command("listen-test", short_help="Make a blind listening test.")
@click.argument("systems", nargs=-1, required=True, metavar="NAME=FOLDER...")
@click.option("-o", "--output", type=FILE, required=True, help="Folder for the page; the key is written beside it.")
@click.option("--title", default="Which continuation?", show_default=True, help="Title of the page.")
@click.option("--audio", "kind", type=click.Choice(["wav", "ogg"]), default="wav", show_default=True, help="Of clips.")
@click.option("--prompt-seconds", default=10.0, show_default=True, type=click.FloatRange(min=0), help="Of the prompt.")
@click.option("--seconds", default=30.0, show_default=True, type=click.FloatRange(min=1), help="Of the continuation.")
@click.option("--pairs/--no-pairs", default=True, help="Ask which of two is better.")
@click.option("--ratings/--no-ratings", default=True, help="Ask for ratings from 1 to 5.")
@click.option("--soundfont", type=FILE, help="Soundfont (SF2), for a better piano.")
@click.option("--random-seed", default=0, show_default=True, type=int, help="Fixes names and order.")
def listen_test(
    systems: tuple[str, ...],
    output: Path,
    title: str,
    kind: str,
    prompt_seconds: float,
    seconds: float,
    pairs: bool,
    ratings: bool,
    soundfont: Path | None,
    random_seed: int,
) -> None:
    """Make a page that plays continuations by several systems, blind and shuffled, and asks which are good.

    Each FOLDER holds MIDI files named after their prompts, such as `pulse88 evaluate -o` writes into continuations/.
    The page needs no network: open index.html, or put the folder on any web server. Answers stay in the browser until
    the listener downloads them as CSV.
    """
    from pulse88 import listening

    folders = {}
    for system in systems:
        name, equals, folder = system.partition("=")
        if not (name and equals and Path(folder).is_dir()):
            raise click.UsageError(f"{system!r} is not NAME=FOLDER with a folder that is there")
        if name in folders:
            raise click.UsageError(f"two systems are called {name!r}")
        folders[name] = Path(folder)
    if not pairs and not ratings:
        raise click.UsageError("without pairs and without ratings nothing is asked")
    key = listening.make(
        folders,
        output,
        title=title,
        kind=kind,
        prompt_seconds=prompt_seconds,
        seconds=seconds,
        soundfont=soundfont,
        random_seed=random_seed,
        pairs=pairs,
        ratings=ratings,
    )
    clips = sum(1 for _ in (output / "audio").iterdir())
    click.echo(f"Wrote {output / 'index.html'} and {clips} clips. Keep {key} to yourself: it says whose they are.")


@click.command("listen-results", short_help="Make a table of a listening test's answers.")
@click.argument("key", type=FILE)
@click.argument("answers", nargs=-1, required=True, type=FILE, metavar="CSV...")
@click.option("-o", "--output", type=FILE, help="Also write the tables as Markdown.")
def listen_results(key: Path, answers: tuple[Path, ...], output: Path | None) -> None:
    """Make tables, with intervals, of the CSV files that listeners sent; KEY is what `listen-test` wrote."""
    from pulse88 import listening
    from pulse88.written import write_whole

    text = listening.results(key, listening.read_answers(key, answers))
    click.echo(text, nl=False)
    if output:
        write_whole(output, text.encode())
