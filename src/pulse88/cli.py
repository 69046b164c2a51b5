"""The command line. Each command imports its room when it runs, so that `pulse88 --help` costs nothing."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pulse88 import (
    __version__,
    cli_ablate,
    cli_data,
    cli_evaluate,
    cli_finetune,
    cli_listen,
    cli_originality,
    cli_serve,
    cli_train,
)
from pulse88.cli_evidence import Evidence, evidence_options
from pulse88.config import SamplingConfig, SteeringConfig
from pulse88.provenance import ContinueConfig
from pulse88.terminal import (
    FILE,
    Doors,
    adapter_option,
    field_option,
    log_if,
    model_options,
    output_options,
    progress,
    say,
    verbose_option,
)

if TYPE_CHECKING:
    from pulse88.continuation import Continuer
    from pulse88.notes import Performance
    from pulse88.playing import Continuation, Playing

KEY_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


@click.group(cls=Doors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="pulse88")
def main() -> None:
    """Give it the opening of a piano piece as MIDI, and it plays on."""


main.add_command(cli_serve.serve)
main.add_command(cli_data.prepare)
main.add_command(cli_data.merge)
main.add_command(cli_data.stats)
main.add_command(cli_train.train)
main.add_command(cli_train.export)
main.add_command(cli_finetune.finetune)
main.add_command(cli_evaluate.evaluate)
main.add_command(cli_ablate.ablate)
main.add_command(cli_originality.index)
main.add_command(cli_originality.originality)
main.add_command(cli_listen.listen_test)
main.add_command(cli_listen.listen_results)


@main.command("continue", short_help="Play on from a MIDI file.")
@click.argument("seed", type=FILE)
@click.option("-o", "--output", type=FILE, help="MIDI file to write; SEED-continued.mid in this folder.")
@output_options
@field_option(ContinueConfig, "seconds", type=float)
@field_option(ContinueConfig, "notes", type=int)
@field_option(ContinueConfig, "seed_notes", type=int)
@field_option(ContinueConfig, "takes", type=int)
@field_option(SamplingConfig, "temperature", type=float)
@field_option(SamplingConfig, "top_p", type=float)
@field_option(SamplingConfig, "min_p", type=float)
@field_option(SamplingConfig, "top_k", type=int)
@field_option(SteeringConfig, "density", type=(float, float), metavar="LOW HIGH")
@field_option(SteeringConfig, "register", type=(int, int), metavar="LOW HIGH")
@field_option(SteeringConfig, "in_key", is_flag=True)
@field_option(SteeringConfig, "end_within", type=float)
@field_option(ContinueConfig, "random_seed", type=int)
@field_option(ContinueConfig, "only_new", is_flag=True)
@field_option(ContinueConfig, "until_end", is_flag=True)
@evidence_options
@model_options
@click.option(
    "--threads",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Threads of the native engine, for the seed and for several takes; the music stays the same.",
)
@verbose_option
def continue_(
    seed: Path,
    output: Path | None,
    wav: Path | None,
    png: Path | None,
    soundfont: Path | None,
    temperature: float,
    top_p: float,
    min_p: float,
    top_k: int,
    density: tuple[float, float] | None,
    register: tuple[int, int] | None,
    in_key: bool,
    end_within: float | None,
    weights: Path | None,
    adapter: Path | None,
    engine: str,
    threads: int,
    verbose: bool,
    **asked: Any,
) -> None:
    """Play on from SEED, a MIDI file, and write seed and continuation as one MIDI file.

    Several takes are numbered: out-take1.mid, out-take2.mid, ... They are computed together where the engine can.
    """
    from pulse88.playing import in_groups

    evidence = Evidence.taken_from(asked)
    try:
        config = ContinueConfig(**asked)
        sampling = SamplingConfig(temperature=temperature, top_p=top_p, min_p=min_p, top_k=top_k)
        steering = SteeringConfig(density=density, register=register, in_key=in_key, end_within=end_within)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    paths = _paths(seed, output, wav, png, "continued")
    count = 1 if evidence.best_of > 1 else config.takes
    outputs = [{kind: _numbered(path, take, count) for kind, path in paths.items()} for take in range(count)]
    _check_outputs(seed, outputs)
    log_if(verbose)
    evidence.warn()
    playings = _continuer(weights, adapter, engine, verbose, threads).begin(seed, config, sampling, steering)
    say(verbose, *playings[0].remarks)
    paths_of = iter(outputs)
    candidates: list[Continuation] = []
    for group in [[playing] for playing in playings] if evidence.watches else in_groups(playings):
        numbers = "-".join(str(playing.take.number + 1) for playing in (group[0], group[-1])[: len(group)])
        label = f"take {numbers} of {config.takes}" if config.takes > 1 else "playing on"
        took = _play(group, label, evidence)
        rate = sum(playing.notes for playing in group) / max(took, 1e-9)
        for playing in group:
            if not playing.notes:
                raise click.ClickException(
                    f"no new note begins within {config.limit_seconds:g} s of the seed's last one, so there is nothing "
                    "to write: ask for more seconds, or try another --random-seed"
                )
            candidates.append(playing.continuation())
            if len(candidates) < evidence.best_of:
                continue
            continuation = candidates[-1]
            if evidence.best_of > 1:
                continuation = evidence.best(candidates, playing.take.engine)
            written = _write(continuation, next(paths_of), soundfont)
            new = continuation.new
            click.echo(f"Wrote {written}: {len(new)} new notes, {new.end:.1f} s, made at {rate:.1f} notes/s.")
            evidence.tell(continuation)
    if config.random_seed is None:
        click.echo(
            f"The random seed was {playings[0].provenance.random_seed}: with --random-seed the same music comes again."
        )


@main.command(short_help="Make a continuation again, byte for byte.")
@click.argument("continued", type=FILE)
@click.option("-o", "--output", type=FILE, help="MIDI file to write; CONTINUED-replayed.mid in this folder.")
@output_options
@click.option("--weights", type=FILE, help="Weights that the file was made with; those that came with pulse88.")
@adapter_option
@click.option("--engine", help="What computes the model; the engine that the file was made with.")
@verbose_option
def replay(
    continued: Path,
    output: Path | None,
    wav: Path | None,
    png: Path | None,
    soundfont: Path | None,
    weights: Path | None,
    adapter: Path | None,
    engine: str | None,
    verbose: bool,
) -> None:
    """Make CONTINUED, a file that `pulse88 continue` wrote, again from the settings in it.

    Exit status 1 if the bytes come out differently.
    """
    from pulse88.continuation import provenance_of

    paths = _paths(continued, output, wav, png, "replayed")
    _check_outputs(continued, [paths])
    log_if(verbose)
    made_by = provenance_of(continued)
    try:
        continuer = _continuer(weights, adapter, engine or (made_by.engine if made_by else "auto"), verbose)
    except ImportError as error:
        raise click.ClickException(f"{error}: --engine numpy may play the same, if more slowly") from error
    playing = continuer.replay(continued)
    _play([playing], "replaying")
    written = _write(playing.continuation(), paths, soundfont)
    if paths["mid"].read_bytes() == continued.read_bytes():
        click.echo(f"Wrote {written}: the same bytes as {continued}.")
        return
    raise click.ClickException(
        f"{written} is not the same as {continued}, which pulse88 {playing.provenance.version} made with engine "
        f"{playing.provenance.engine}: it was edited since, or this version or engine computes differently"
    )


@main.command(short_help="Render a MIDI file to audio (WAV).")
@click.argument("source", type=FILE, metavar="IN.MID")
@click.argument("wav", type=FILE, metavar="OUT.WAV")
@click.option("--soundfont", type=FILE, help="Soundfont (SF2), for a better piano.")
@verbose_option
def render(source: Path, wav: Path, soundfont: Path | None, verbose: bool) -> None:
    """Render a MIDI file to audio (WAV)."""
    from pulse88 import audio

    _check_outputs(source, [{"wav": wav}])
    performance = _read(source, verbose)
    audio.render(performance, wav, soundfont=soundfont)
    click.echo(f"Wrote {wav}: {performance.end:.1f} s of music.")


@main.command(short_help="Draw a MIDI file as a piano roll (PNG).")
@click.argument("source", type=FILE, metavar="IN.MID")
@click.argument("png", type=FILE, metavar="OUT.PNG")
@verbose_option
def show(source: Path, png: Path, verbose: bool) -> None:
    """Draw a MIDI file as a piano roll (PNG).

    A file that `pulse88 continue` wrote shows its continuation in a colour of its own.
    """
    from pulse88 import picture
    from pulse88.continuation import provenance_of
    from pulse88.join import split_time

    _check_outputs(source, [{"png": png}])
    performance = _read(source, verbose)
    boundary = None
    try:
        made_by = provenance_of(source)
        if made_by and not made_by.only_new:
            boundary = split_time(performance, made_by.new_part)
    except ValueError as error:
        say(True, f"{error}; drawn in one colour")
    picture.draw(performance, png, boundary=boundary, title=source.name)
    click.echo(f"Wrote {png}: {len(performance)} notes.")


@main.command(short_help="Print a MIDI file as the model reads it.")
@click.argument("source", type=FILE, metavar="IN.MID")
@click.option("--grid", default="fine", show_default=True, help="Time grid: fine or published.")
@verbose_option
def tokens(source: Path, grid: str, verbose: bool) -> None:
    """Print a MIDI file as the events that the model reads: times on the grid, and the four ids of each note."""
    from pulse88.tokenizer import Tokenizer
    from pulse88.vocabulary import EVENT_TOKENS, GRIDS, Slot

    if grid not in GRIDS:
        raise click.UsageError(f"no time grid {grid!r}, there are {', '.join(GRIDS)}")
    performance = _read(source, verbose)
    tokenizer = Tokenizer(GRIDS[grid])
    encoding = tokenizer.encode(performance)
    say(verbose, *encoding.report.lines())
    events = encoding.ids[1:-1].reshape(-1, EVENT_TOKENS)  # between BOS and EOS
    deltas = tokenizer.grid.seconds(Slot.DELTA, events[:, Slot.DELTA])
    click.echo("  event      time     delta  pitch   duration  velocity   ids")
    for index, (note, delta, ids) in enumerate(zip(tokenizer.decode(encoding.ids), deltas, events, strict=True)):
        times = f"{index:7d} {note.onset:9.3f} {delta:9.3f}"
        sound = f"{_key_name(note.pitch):<5s} {note.duration:10.3f} {note.velocity:9d}"
        click.echo(f"{times}  {sound}   {' '.join(f'{token:3d}' for token in ids)}")


@main.command(short_help="Tell weights, engine and versions.")
@model_options
def info(weights: Path | None, adapter: Path | None, engine: str) -> None:
    """Tell what would play: weights, parameters, layers, time grid, engine, versions."""
    import numpy as np

    from pulse88.engine.layout import parameter_count

    continuer = _continuer(weights, adapter, engine, verbose=False)
    used, model, grid = continuer.weights, continuer.weights.config, continuer.weights.grid
    kinds = [kind for layer in model.layer_types for kind in layer]
    numbers = "int8, one scale a row" if used.quantised else "floating point"
    rows = {
        "weights": f"{used.path or f'with {adapter}'} ({numbers})",
        "sha256": used.sha256,
        "parameters": f"{parameter_count(model):,}",
        "layers": f"{model.n_layers} ({kinds.count('gdn')} Gated DeltaNet, {kinds.count('gqa')} attention)",
        "context": f"{model.max_positions} tokens, {model.max_positions // 4} notes; rolls on past it",
        "time grid": f"{grid.name} ({grid.fingerprint}), gaps up to {grid.delta[-1]:g} s, "
        f"notes from {grid.duration[0]:g} to {grid.duration[-1]:g} s",
        "engine": continuer.engine.name,
        "versions": f"pulse88 {__version__}, Python {platform.python_version()}, numpy {np.__version__}",
    }
    for name, value in rows.items():
        click.echo(f"{name:<11s} {value}")


def _continuer(weights: Path | None, adapter: Path | None, engine: str, verbose: bool, threads: int = 1) -> Continuer:
    from pulse88.continuation import Continuer

    continuer = Continuer(weights, engine, adapter, threads=threads)
    say(verbose, f"weights {continuer.weights.path or f'with {adapter}'}, engine {continuer.engine.name}")
    return continuer


def _read(source: Path, verbose: bool) -> Performance:
    from pulse88 import midi_file

    reading = midi_file.read(source)
    say(verbose, *reading.report.lines())
    return reading.performance


def _paths(source: Path, output: Path | None, wav: Path | None, png: Path | None, how: str) -> dict[str, Path]:
    paths = {"mid": output or Path(f"{source.stem}-{how}.mid"), "wav": wav, "png": png}
    return {kind: path for kind, path in paths.items() if path is not None}


def _numbered(path: Path, take: int, takes: int) -> Path:
    return path if takes == 1 else path.with_name(f"{path.stem}-take{take + 1}{path.suffix}")


def _check_outputs(source: Path, outputs: list[dict[str, Path]]) -> None:
    """Before any work: no output is the source, no two are the same, every folder exists."""
    seen: dict[Path, Path] = {source.resolve(): source}
    for path in (path for paths in outputs for path in paths.values()):
        if path.resolve() in seen:
            what = "the file to read" if path.resolve() == source.resolve() else "named twice as an output"
            raise click.UsageError(f"{path} is {what}: choose another name to write to")
        if not path.parent.is_dir():
            raise click.ClickException(f"{path}: there is no folder {path.parent} to write to")
        seen[path.resolve()] = path


def _play(playings: Sequence[Playing], label: str, evidence: Evidence | None = None) -> float:
    """Plays all to their ends, telling the progress on a terminal; seconds that it took."""
    from pulse88.playing import play_together

    began = time.perf_counter()
    if evidence is not None and evidence.watches:
        for playing in playings:
            evidence.play(playing, label)
        return time.perf_counter() - began
    with progress(label) as tell:
        for playing in play_together(playings):
            share = sum(1.0 if p.finished else p.share for p in playings) / len(playings)
            tell(share, f"{playing.notes} note{'s' * (playing.notes != 1)}, {playing.seconds:.1f} s")
    return time.perf_counter() - began


def _write(continuation: Continuation, paths: dict[str, Path], soundfont: Path | None) -> str:
    """Writes all that was asked for; the names of the files."""
    continuation.write(paths["mid"])
    if "wav" in paths:
        from pulse88 import audio

        audio.render(continuation.performance, paths["wav"], soundfont=soundfont)
    if "png" in paths:
        from pulse88 import picture

        picture.draw(continuation.performance, paths["png"], boundary=continuation.split, title=paths["mid"].stem)
    return ", ".join(map(str, paths.values()))


def _key_name(pitch: int) -> str:
    return f"{KEY_NAMES[pitch % 12]}{pitch // 12 - 1}"
