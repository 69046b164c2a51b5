"""What rounding costs: int8 weights, activations summed as bytes, merged outputs, against float32 on held-out music.

    python benchmarks/precision.py FOLDER [--fp32 FILE] [--weights FILE] [--pieces 5] [--notes 100] [--rounds 60]

FOLDER holds SOURCE/*.mid. FILE holds the trained weights before they were rounded; without it the rounded ones are
multiplied out, so that their rounding costs nothing. Three tables: bits a note over each piece's first window, with the
standard error of the difference in the same pieces; CPU time of a token after 512, 32 tokens of each engine in turn
within a round, merged outputs against two matrices; and greedy continuations of the first 128 notes, where two engines
go different ways once two ids are nearly equally likely: notes until then.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from pulse88 import midi_file
from pulse88.config import SamplingConfig
from pulse88.continuation import default_weights
from pulse88.engine.library import kernels
from pulse88.engine.native import NativeEngine
from pulse88.engine.weights import Weights, read
from pulse88.engine_score import bits_of_events
from pulse88.generate import begin, play
from pulse88.tokenizer import Tokenizer
from pulse88.vocabulary import EVENT_TOKENS

SEED_NOTES = 128
CONTEXT, STEPS = 512, 32  # tokens before the timed ones, and these: a multiple of the page
MERGED = ", outputs merged"


def pieces_of(folder: Path, count: int, tokenizer: Tokenizer, positions: int) -> Iterator[list[int]]:
    """Ids of the first window of some pieces of each source, evenly spaced by name."""
    for source in sorted(path for path in folder.iterdir() if path.is_dir()):
        paths = sorted(source.glob("*.mid"))
        for path in paths[:: max(1, len(paths) // count)][:count]:
            ids = tokenizer.encode(midi_file.read(path).performance, ends=False).ids.tolist()
            yield ids[: 1 + (positions - 1) // EVENT_TOKENS * EVENT_TOKENS]


def multiplied_out(weights: Weights) -> Weights:
    """The same numbers as float32."""
    names = (name for name in weights.tensors if not name.endswith(".scale"))
    return Weights(weights.config, {name: weights.matrix(name) for name in names}, weights.grid)


def step_times(engines: dict[str, NativeEngine], ids: list[int], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of a token after `CONTEXT` ids, of every engine in every round."""
    states = {name: engine.forward([ids[:CONTEXT]], engine.zero_state())[1] for name, engine in engines.items()}
    spent: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(rounds + 1):
        for name in list(engines)[:: 1 if turn % 2 else -1]:  # Nobody always comes after the same one.
            state, began = states[name], time.process_time()
            for token in ids[CONTEXT : CONTEXT + STEPS]:
                _, state = engines[name].forward([[token]], state, last_only=True)
            if turn:  # The first belongs to no round.
                spent[name].append((time.process_time() - began) / STEPS)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fp32", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--pieces", type=int, default=5, help="pieces of each source")
    parser.add_argument("--notes", type=int, default=100, help="notes of each greedy continuation; 0 for none")
    parser.add_argument("--rounds", type=int, default=60, help="of timing; 0 for none")
    asked = parser.parse_args()
    rounded = read(asked.weights or default_weights())
    exact = read(asked.fp32) if asked.fp32 else multiplied_out(rounded)
    engines = {"fp32": NativeEngine(exact), "fp32" + MERGED: NativeEngine(exact, merge_outputs=True)}
    engines |= {f"int8, {kernel}": NativeEngine(rounded, kernel) for kernel in kernels()[-2:]}
    engines[f"int8, {kernels()[-1]}{MERGED}"] = NativeEngine(rounded, merge_outputs=True)
    tokenizer = Tokenizer(rounded.grid)
    pieces = list(pieces_of(asked.folder, asked.pieces, tokenizer, rounded.config.max_positions))
    bits = {
        name: np.array([bits_of_events(engine, ids[:1], ids[1:]).sum() for ids in pieces])
        for name, engine in engines.items()
    }
    notes = np.array([len(ids) // EVENT_TOKENS for ids in pieces])
    print(f"{len(pieces)} pieces, {notes.sum()} notes\n\n| engine | bits a note | more than fp32 | standard error |")
    print("|---|---:|---:|---:|")
    for name, spent in bits.items():
        more = (spent - bits["fp32"]) / notes
        error = more.std(ddof=1) / len(pieces) ** 0.5
        total = spent.sum() / notes.sum()
        print(f"| {name} | {total:.4f} | {total - bits['fp32'].sum() / notes.sum():+.5f} | {error:.5f} |")
    if asked.rounds:
        times = {name: np.array(found) for name, found in step_times(engines, pieces[0], asked.rounds).items()}
        print("\n| engine | ms a token | against two matrices, median of ratios | quarters |\n|---|---:|---:|---:|")
        for name, seconds in times.items():
            low, middle, high = np.percentile(seconds / times[name.removesuffix(MERGED)], [25, 50, 75])
            print(f"| {name} | {np.median(seconds) * 1e3:.2f} | {middle:.3f} | {low:.3f}, {high:.3f} |")
    if not asked.notes:
        return
    greedy = SamplingConfig(temperature=0)
    seeds = [ids[: 1 + SEED_NOTES * EVENT_TOKENS] for ids in pieces]
    made = {
        name: [
            [event for event, _ in islice(play(begin(engine, seed, greedy, random_seed=0)), asked.notes)]
            for seed in seeds
        ]
        for name, engine in engines.items()
    }
    print(
        f"\n| greedy against fp32, {len(seeds)} seeds | notes until the first difference, median | quarters | ", end=""
    )
    print(f"all {asked.notes} notes the same |\n|---|---:|---:|---:|")
    for name in list(engines)[1:]:
        alike = [
            next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), asked.notes)
            for one, other in zip(made["fp32"], made[name], strict=True)
        ]
        low, middle, high = np.percentile(alike, [25, 50, 75])
        print(f"| {name} | {middle:.0f} | {low:.0f}, {high:.0f} | {sum(n == asked.notes for n in alike)} |")


if __name__ == "__main__":
    main()
