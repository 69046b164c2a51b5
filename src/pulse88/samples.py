"""What a model in training plays: a few held-out beginnings, played on from one random seed by the CPU engine.

RUN/samples/step-00001000/1-maestro_name.mid    the beginning, and what the weights of that step make of it

The beginnings and the seed are the same at every validation, so that files of different steps can be compared; the
weights are rounded to int8, as a release has them. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pulse88 import musicality
from pulse88.batches import TokenCorpus
from pulse88.config import ModelConfig
from pulse88.continuation import Continuer
from pulse88.engine.weights import Weights
from pulse88.notes import Performance
from pulse88.tokenizer import Tokenizer
from pulse88.vocabulary import EVENT_TOKENS, TimeGrid
from pulse88.written import make_folder

BEGINNING_NOTES, NEW_NOTES = 64, 96


def play(
    tensors: Mapping[str, NDArray[Any]],
    config: ModelConfig,
    grid: TimeGrid,
    held_out: TokenCorpus,
    folder: Path,
    *,
    count: int,
    random_seed: int,
) -> list[dict[str, Any]]:
    """Writes `count` continuations of pieces that are spread evenly over the corpus, and returns their figures.

    ValueError if the tensors are no usable weights.
    """
    continuer = Continuer(Weights(config, tensors, grid).as_int8())
    make_folder(folder)
    told = []
    for number, index in enumerate(spread(len(held_out.names), count), 1):
        name = held_out.names[index]
        (take,) = continuer.continue_(
            beginning(held_out, index, grid, config),
            notes=NEW_NOTES,
            seed_notes=min(BEGINNING_NOTES, longest(config)),
            random_seed=random_seed,
        )
        path = folder / f"{number}-{re.sub(r'[^A-Za-z0-9.-]+', '_', Path(name).with_suffix('').as_posix())[:60]}.mid"
        take.write(path)
        told.append({"file": path.name, "piece": name, **figures(take.seed, take.new)})
    return told


def spread(pieces: int, count: int) -> list[int]:
    """At most `count` indices of `pieces`, evenly spaced."""
    return np.unique(np.linspace(0, pieces - 1, count).round().astype(int)).tolist() if count else []


def longest(config: ModelConfig) -> int:
    """Notes of a beginning that leave half of the context to what follows."""
    return max(1, config.max_positions // EVENT_TOKENS // 2)


def beginning(corpus: TokenCorpus, index: int, grid: TimeGrid, config: ModelConfig) -> Performance:
    """The first notes of a piece, as the grid has them."""
    start, notes = int(corpus.starts[index]), int(corpus.lengths[index] - 1) // EVENT_TOKENS
    kept = min(notes, BEGINNING_NOTES, longest(config))
    ids = corpus.tokens[start : start + 1 + kept * EVENT_TOKENS]
    return Tokenizer(grid).decode(ids).without_overlaps()


def figures(seed: Performance, new: Performance) -> dict[str, Any]:
    """What the log tells of a continuation, beside its beginning: notes a second, semitones, rounds of a loop."""
    return {
        "seed_density": musicality.density(seed),
        "density": musicality.density(new),
        "seed_range": musicality.pitch_range(seed),
        "range": musicality.pitch_range(new),
        "repetition": musicality.longest_loop(new).repeats,
        "pitch_class_cosine": musicality.pitch_class_cosine(seed, new),
        "degenerate": list(musicality.degenerate(new)),
    }
