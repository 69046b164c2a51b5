"""How fast the rows of a suite train, each alone on the device, and how much memory a step takes.

    python benchmarks/designs.py design --compile                     # on a GPU, a minute a row
    python benchmarks/designs.py design --compile --only published transformer --micro 64
    python benchmarks/designs.py design --decode                      # a token of eager torch on one CPU thread instead

Steps of one micro-batch on made-up tokens, optimizer included; the median of --steps after --warm. Figures of `pulse88
ablate` are of runs that may have shared a GPU; these are not: with --lock FILE several of these processes can start and
compile side by side, and only the one that holds the lock steps. Prints Markdown, ratios to the first row; with --json
FILE also writes the figures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from pulse88 import ablate, suites
from pulse88.batches import TokenCorpus
from pulse88.model import Pulse88
from pulse88.suites import Row
from pulse88.train import Ranks, Trainer
from pulse88.vocabulary import BLOCKS, BOS, EOS

PIECES, EVENTS = 64, 1200  # made up: longer than a window, so that nothing is padded


def made_up() -> TokenCorpus:
    """Pieces of random events."""
    random = np.random.default_rng(0)
    blocks = list(BLOCKS.values())
    columns = [random.integers(block.start, block.stop, PIECES * EVENTS) for block in blocks]
    events = np.stack(columns, axis=1).astype(np.uint8).reshape(PIECES, -1)
    ends = [np.full((PIECES, 1), token, np.uint8) for token in (BOS, EOS)]
    tokens = np.concatenate((ends[0], events, ends[1]), axis=1)
    return TokenCorpus(tokens.ravel(), np.full(PIECES, tokens.shape[1]), tuple(f"made/{i}" for i in range(PIECES)))


@contextmanager
def held(path: Path | None) -> Iterator[None]:
    """Waits until no other process holds the lock."""
    if path is None:
        yield
        return
    import fcntl  # not on Windows

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def timed(row: Row, micro: int, compiled: bool, warm: int, steps: int, lock: Path | None) -> dict[str, Any]:
    """Thousand tokens a second and largest memory in GB of one row."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    config = replace(row.config, batch_windows=micro, micro_windows=micro, context_tokens=0)
    trainer = Trainer(config, made_up(), Ranks(0, 1, device))
    trainer.start(compiled)
    began = time.perf_counter()
    trainer.step(0)
    started = time.perf_counter() - began
    seconds = []
    with held(lock):
        for step in range(1, 1 + warm + steps):
            began = time.perf_counter()
            trainer.step(step)
            seconds.append(time.perf_counter() - began)
    tokens = micro * config.window
    return {
        "row": row.name,
        "micro_windows": micro,
        "thousand_tokens_per_second": tokens / median(seconds[warm:]) / 1e3,
        "memory_gb": trainer.largest_memory() / 1e9,
        "first_step_seconds": started,
        "device": torch.cuda.get_device_name() if cuda else "CPU",
    }


def decoding(rows: list[Row], rounds: int) -> None:
    """Prints the milliseconds of a token of each row: medians of rounds in which all rows take their turn."""
    models = {row.name: Pulse88(row.config.model_config, "chunked") for row in rows}
    taken = [{name: ablate.decode_milliseconds(model) for name, model in models.items()} for _ in range(rounds)]
    first = rows[0].name
    print("| row | ms a token | ratio, within a round |\n|---|---:|---:|")
    for name in models:
        ratio = median(of_round[name] / of_round[first] for of_round in taken)
        print(f"| {name} | {median(of_round[name] for of_round in taken):.2f} | {ratio:.2f} |")
    print(f"\nEager torch, one CPU thread, {ablate.STEPS} tokens after {ablate.PREFILL}; medians of {rounds} rounds.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", help="a suite's name, or a JSON file with one")
    parser.add_argument("--only", nargs="*", help="these rows; all without it")
    parser.add_argument("--micro", type=int, default=32, help="windows a step, 32")
    parser.add_argument("--warm", type=int, default=3, help="steps that don't count, 3")
    parser.add_argument("--steps", type=int, default=10, help="steps that count, 10")
    parser.add_argument("--compile", action="store_true", help="compile the layers")
    parser.add_argument("--decode", action="store_true", help="time a token on one CPU thread, in place of training")
    parser.add_argument("--rounds", type=int, default=5, help="rounds with --decode, 5")
    parser.add_argument("--lock", type=Path, help="step only while this file's lock is held")
    parser.add_argument("--json", type=Path, help="write the figures as well")
    asked = parser.parse_args()
    suite = suites.load(asked.suite)
    rows = [row for row in suite.rows if not asked.only or row.name in asked.only]
    if asked.decode:
        decoding(rows, asked.rounds)
        return
    figures = []
    print("| row | thousand tokens/s | ratio | GB | first step, s |\n|---|---:|---:|---:|---:|", flush=True)
    for row in rows:
        torch._dynamo.reset()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        found = timed(row, asked.micro, asked.compile, asked.warm, asked.steps, asked.lock)
        figures.append(found)
        speed = found["thousand_tokens_per_second"]
        ratio = speed / figures[0]["thousand_tokens_per_second"]
        cells = (f"{speed:.0f}", f"{ratio:.2f}", f"{found['memory_gb']:.1f}", f"{found['first_step_seconds']:.0f}")
        print("| " + " | ".join((row.name, *cells)) + " |", flush=True)
    print(f"\n{figures[0]['device']}, {asked.micro} windows of {suite.rows[0].config.window} tokens a step.")
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
