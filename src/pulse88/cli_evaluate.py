"""`pulse88 evaluate`: how well weights predict held-out music, and what they make of it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pulse88 import __version__
from pulse88.config import SamplingConfig
from pulse88.terminal import FILE, adapter_option, field_option, progress
from pulse88.written import make_folder

if TYPE_CHECKING:
    from pulse88.batches import TokenCorpus
    from pulse88.continuation import Continuer
    from pulse88.engine.weights import Weights
    from pulse88.likelihood import Likelihood
    from pulse88.trials import Trial

ENGINES = ("auto", "torch", "native", "numpy")


@click.command(short_help="Measure weights on held-out pieces.")
@click.option("--weights", type=FILE, help="Weights to measure; without it, those that came with pulse88.")
@adapter_option
@click.option("--data", type=FILE, required=True, help="Folder made by `pulse88 prepare`.")
@click.option("--split", default="validation", show_default=True, help="Which pieces of it.")
@click.option("--pieces", type=click.IntRange(min=1), help="Only so many pieces, evenly spaced; all without it.")
@click.option("--batch", default=8, show_default=True, type=click.IntRange(min=1), help="Windows computed at once.")
@click.option(
    "--engine",
    default="auto",
    show_default=True,
    type=click.Choice(ENGINES),
    help="What computes likelihoods: torch where there is a GPU, otherwise native or numpy.",
)
@click.option("-o", "--output", type=FILE, help="Folder for report.json, report.md, pictures and continuations.")
@click.option("--baselines/--no-baselines", default=True, help="With -o: also what simple predictors make of it.")
@click.option("--prompts", default=20, show_default=True, type=click.IntRange(min=0), help="With -o: pieces played on.")
@click.option("--takes", default=2, show_default=True, type=click.IntRange(min=1), help="Continuations of each.")
@click.option(
    "--long",
    "long_takes",
    default=4,
    show_default=True,
    type=click.IntRange(min=0),
    help="Prompts played on to 8 times the context, for the drift curve: about half a minute each.",
)
@click.option("--fmd", is_flag=True, help="Also the Frechet Music Distance, where its package is installed.")
@field_option(SamplingConfig, "temperature", type=float)
@field_option(SamplingConfig, "top_p", type=float)
@click.option("--random-seed", default=0, show_default=True, type=int, help="Fixes the continuations.")
def evaluate(
    weights: Path | None,
    adapter: Path | None,
    data: Path,
    split: str,
    pieces: int | None,
    batch: int,
    engine: str,
    output: Path | None,
    baselines: bool,
    prompts: int,
    takes: int,
    long_takes: int,
    fmd: bool,
    temperature: float,
    top_p: float,
    random_seed: int,
) -> None:
    """Bits a note of held-out pieces: whole, grid-free, by slot and by source; with -o a whole report.

    The report also has intervals, baselines, and continuations of held-out openings beside what the composer wrote.
    Likelihoods take about a second for 300 notes on a core: --pieces 20 is a sample that says how sure it is.
    """
    from pulse88 import report, shards
    from pulse88.continuation import default_weights
    from pulse88.engine.adapter import adapted, read_adapter
    from pulse88.engine.weights import read
    from pulse88.likelihood import grid_bits_per_note

    sampling = SamplingConfig(temperature=temperature, top_p=top_p)
    loaded = base = read(weights or default_weights())
    if adapter:
        loaded = adapted(base, read_adapter(adapter))
    grid = shards.read_grid(data)
    if grid.fingerprint != loaded.grid.fingerprint:
        raise click.ClickException(
            f"{data} was tokenized on the grid {grid.name!r}, these weights read {loaded.grid.name!r}: "
            f"prepare the data again with --grid {loaded.grid.name}"
        )
    whole = shards.read_split(data, split)
    corpus = whole if pieces is None else _some(whole, pieces)
    if output:
        make_folder(output)
    name, found = _likelihood(loaded, corpus, engine, batch)
    free = found.bits_per_note + grid_bits_per_note(corpus, grid)
    click.echo(f"{len(found.notes)} pieces, {found.notes.sum()} notes of {split}, engine {name}")
    click.echo(f"{found.bits_per_note:8.3f} bits a note on the grid {grid.name!r}")
    click.echo(f"{free:8.3f} bits a note, grid-free")
    for of, bits in (*found.by_slot().items(), *found.by_source().items()):
        click.echo(f"{bits:8.3f} {of}")
    if not output:
        return
    about = {
        "weights": (base.path.name if base.path else "in memory") + (f" with {adapter.name}" if adapter else ""),
        "weights_sha256": loaded.sha256,
        "engine": name,
        "version": __version__ + _commit(),
        "command": shlex.join(["pulse88", *sys.argv[1:]]),
        "split": split,
        "pieces": len(found.notes),
        "of_pieces": len(whole.names),
        "notes": int(found.notes.sum()),
    }
    section = report.likelihood_section(found, corpus, grid)
    result: dict[str, Any] = {"about": about, "likelihood": section, "remarks": []}
    if baselines:
        section["baselines"] = _baselines(data, corpus, result["remarks"])
    if prompts or long_takes:
        music = _continuations(loaded, whole, engine, output, prompts, takes, long_takes, fmd, sampling, random_seed)
        result["remarks"] += music.pop("remarks")
        result |= music
    report.write(output, result)
    click.echo(f"Wrote {output / 'report.md'}.")


def _commit() -> str:
    """In a checkout the commit that runs, and whether anything in it was changed since; empty elsewhere."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or not (git := shutil.which("git")):
        return ""

    def answer(*asked: str) -> str:
        return subprocess.run(
            [git, "-C", str(root), *asked], capture_output=True, text=True, check=False
        ).stdout.strip()

    changed = ", changed since" if answer("status", "--porcelain", "--untracked-files=no") else ""
    return f" (commit {answer('rev-parse', '--short=12', 'HEAD')}{changed})"


def _likelihood(loaded: Weights, corpus: TokenCorpus, engine: str, batch: int) -> tuple[str, Likelihood]:
    """The engine's name and what it found."""
    from pulse88 import engine as engines
    from pulse88.engine_score import engine_score
    from pulse88.likelihood import measure

    window = loaded.config.max_positions
    if engine == "torch" or (engine == "auto" and _has_gpu()):
        try:
            import torch
        except ImportError as error:
            raise click.ClickException("torch is missing: pip install 'pulse88[train]', or --engine native") from error
        from pulse88.checkpoint import load_model
        from pulse88.evaluate import likelihood

        model = load_model(loaded)
        cuda = torch.cuda.is_available()
        if cuda:
            model.cuda().use_kernel("fla")
        precision = torch.bfloat16 if cuda else None
        return "torch", likelihood(model, corpus, window=window, batch=batch, precision=precision)
    used = engines.load(loaded, engine)
    with progress("measuring") as tell:
        return used.name, measure(engine_score(used), corpus, window=window, batch=batch, tell=tell)


def _has_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def _baselines(data: Path, corpus: TokenCorpus, remarks: list[str]) -> list[dict[str, Any]]:
    import numpy as np

    from pulse88 import baselines, report, shards

    bits = {"uniform": baselines.uniform(corpus)}
    try:
        train = shards.read_split(data, "train")
    except shards.ShardError:
        remarks.append("Unigram and context models were left out: the data have no split `train` to count in.")
    else:
        bits["unigram"] = baselines.unigram(corpus, train)
        found = baselines.context_models(corpus, train)
        bits |= {f"context model, order {order}": of for order, of in found.items()}
    bits |= {name: np.array([of], np.float64) for name, of in baselines.compressed_bits(corpus).items()}
    return report.baseline_rows(bits, corpus, shards.read_grid(data))


def _continuations(
    loaded: Weights,
    corpus: TokenCorpus,
    engine: str,
    output: Path,
    prompts: int,
    takes: int,
    long_takes: int,
    fmd: bool,
    sampling: SamplingConfig,
    random_seed: int,
) -> dict[str, Any]:
    """The sections on continuations and drift; writes the music."""
    from pulse88 import report, trials
    from pulse88.continuation import Continuer

    continuer = Continuer(loaded, "auto" if engine == "torch" else engine)
    result: dict[str, Any] = {"remarks": []}
    if prompts:
        with progress("playing on") as tell:
            asked = trials.prompts(corpus, loaded.grid, prompts)
            made = list(trials.run(continuer, asked, takes, sampling=sampling, random_seed=random_seed, tell=tell))
        _write_music(made, output / "continuations")
        rows = trials.rows(made)
        densities = [trials.figures(t.prompt.seed, take.new)["density"] for t in made for take in t.takes]
        result["continuations"] = {
            "prompts": len(made),
            "takes": takes,
            "sampling": f"temperature {sampling.temperature:g}, top-p {sampling.top_p:g}, random seed {random_seed}",
            "engine": continuer.engine.name,
            "pieces": [trial.prompt.name for trial in made],
            "rows": [report.row_section(row) for row in rows],
            "shortfall": trials.shortfall(rows[0], rows[1]),
            "density_within": report.share_within(densities),
        }
        if fmd:
            result |= _frechet(output / "continuations", result["remarks"])
    if long_takes:
        result["drift"] = _drift(continuer, corpus, long_takes, sampling, random_seed)
    return result


def _drift(
    continuer: Continuer, corpus: TokenCorpus, prompts: int, sampling: SamplingConfig, random_seed: int
) -> list[dict[str, Any]]:
    from pulse88 import trials

    with progress("playing on and on") as tell:
        asked = trials.prompts(corpus, continuer.weights.grid, prompts)
        return trials.drift(continuer, asked, corpus, sampling=sampling, random_seed=random_seed, tell=tell)


def _write_music(made: list[Trial], folder: Path) -> None:
    """Prompts with the takes, with the true continuation, and with the passage after it, in a folder each."""
    from pulse88 import midi_file
    from pulse88.join import joined

    for kind in ("model", "real", "later"):
        make_folder(folder / kind)
    for number, trial in enumerate(made, 1):
        prompt = trial.prompt
        name = f"{number:03d}-{re.sub(r'[^A-Za-z0-9]+', '-', Path(prompt.name).stem)[:40].strip('-')}"
        for take in trial.takes:
            take.write(folder / "model" / f"{name}-take{take.provenance.take + 1}.mid")
        for kind, music in (("real", prompt.truth), ("later", prompt.after)):
            whole = joined(prompt.seed, music, float(prompt.seed.onset[-1]), 1)
            midi_file.write(
                whole.without_overlaps(), folder / kind / f"{name}.mid", part_names=["Prompt", kind.capitalize()]
            )


def _frechet(folder: Path, remarks: list[str]) -> dict[str, Any]:
    from pulse88 import frechet

    try:
        sets = {kind: frechet.embeddings(folder / kind) for kind in ("model", "real", "later")}
    except frechet.NoFrechet as error:
        remarks.append(f"{str(error)[0].upper()}{str(error)[1:]}.")
        return {}
    found = {kind: frechet.interval(sets["real"], sets[kind]) for kind in ("model", "later")}
    counts = ", ".join(f"{len(of)} {kind}" for kind, of in sets.items())
    remarks.append(
        f"Frechet Music Distance (CLaMP 2) to the true continuations: {found['model'].text(1)}; real against real, the "
        f"passages after them: {found['later'].text(1)}. Files: {counts}; with so few it is biased upwards."
    )
    return {"frechet": found}


def _some(corpus: TokenCorpus, count: int) -> TokenCorpus:
    """`count` pieces, evenly spaced."""
    import numpy as np

    pieces = len(corpus.names)
    chosen = np.unique(np.linspace(0, pieces - 1, min(count, pieces)).round().astype(int)).tolist()
    tokens = [corpus.tokens[corpus.starts[i] : corpus.starts[i] + corpus.lengths[i]] for i in chosen]
    return replace(
        corpus,
        tokens=np.concatenate(tokens),
        lengths=corpus.lengths[chosen],
        names=tuple(corpus.names[i] for i in chosen),
    )
