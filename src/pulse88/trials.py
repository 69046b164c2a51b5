"""Continuations of held-out pieces and what is measured of them, beside what the composer wrote.

Of every piece the first PROMPT_NOTES notes are the prompt; the next `notes` are the true continuation. Takes are as
long. The ceiling is real music against real music of the same pieces: the passage after the true continuation, again as
long, in the place of a take. The floor is the true continuation of another piece. A long take is judged in windows that
end at 1, 2, 4 and 8 times the context; the piece itself is judged at the same places as far as it goes.

Shape legend: P pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pulse88 import musicality
from pulse88.batches import TokenCorpus
from pulse88.config import SamplingConfig
from pulse88.continuation import Continuer
from pulse88.distributions import FEATURES, compare
from pulse88.intervals import Interval, mean
from pulse88.notes import Performance
from pulse88.playing import TOGETHER, Continuation, in_groups, play_together
from pulse88.provenance import ContinueConfig
from pulse88.tokenizer import Tokenizer
from pulse88.vocabulary import EVENT_TOKENS, TimeGrid

PROMPT_NOTES = 128
NOTES = 256  # new notes of a take; fewer where the piece has fewer
LEAST_NOTES = 64  # a piece that has no such passage twice after its prompt is left out
DRIFT_AT = (1, 2, 4, 8)  # contexts
DRIFT_NOTES = 256  # of a window
TELL_EVERY = 16  # notes
FIGURES = {
    "cosine": "pitch classes like the prompt's (cosine)",
    "density": "density against the prompt's",
    "range": "range, semitones",
    "entropy": "pitch-class entropy, bits",
    "bars": "bars alike (self-similarity)",
    "again": "8-grams that came before",
    "degenerate": "degenerate, share",
}

Tell = Callable[[float, str], None]


@dataclass(frozen=True, eq=False)
class Prompt:
    """A piece's opening and the two passages after it, each from time 0 on."""

    name: str
    seed: Performance
    truth: Performance
    after: Performance  # the passage after `truth`, as long


@dataclass(frozen=True, eq=False)
class Trial:
    """A prompt and what was made of it."""

    prompt: Prompt
    takes: list[Continuation]


def prompts(corpus: TokenCorpus, grid: TimeGrid, count: int, notes: int = NOTES) -> list[Prompt]:
    """Of `count` pieces, evenly spaced over those that are long enough; ValueError if none is."""
    tokenizer = Tokenizer(grid)
    events = (corpus.lengths - 1) // EVENT_TOKENS
    enough = np.flatnonzero(events >= PROMPT_NOTES + 2 * LEAST_NOTES)
    if not len(enough):
        raise ValueError(f"no piece has {PROMPT_NOTES + 2 * LEAST_NOTES} notes, which a prompt and two passages take")
    chosen = enough[np.unique(np.linspace(0, len(enough) - 1, count).round().astype(int))]

    def passage(piece: int, begin: int, end: int) -> Performance:
        start = int(corpus.starts[piece]) + 1
        return tokenizer.decode(corpus.tokens[start + EVENT_TOKENS * begin : start + EVENT_TOKENS * end])

    found = []
    for piece in chosen.tolist():
        length = min(notes, (int(events[piece]) - PROMPT_NOTES) // 2)
        middle = PROMPT_NOTES + length
        found.append(
            Prompt(
                corpus.names[piece],
                passage(piece, 0, PROMPT_NOTES),
                passage(piece, PROMPT_NOTES, middle),
                passage(piece, middle, middle + length),
            )
        )
    return found


def run(
    continuer: Continuer,
    asked: Sequence[Prompt],
    takes: int,
    *,
    sampling: SamplingConfig | None = None,
    random_seed: int = 0,
    tell: Tell = lambda share, remark: None,
) -> Iterator[Trial]:
    """`takes` takes of each prompt, as long as its true continuation."""
    at_once = max(1, TOGETHER // takes)
    for first in range(0, len(asked), at_once):
        group = asked[first : first + at_once]
        lengths = [len(prompt.truth) for prompt in group]
        made = _played(continuer, group, lengths, takes, sampling, random_seed)
        tell((first + len(group)) / len(asked), f"{first + len(group)} of {len(asked)} prompts")
        yield from map(Trial, group, made)


def _played(
    continuer: Continuer,
    asked: Sequence[Prompt],
    lengths: Sequence[int],
    takes: int,
    sampling: SamplingConfig | None,
    random_seed: int,
    tell: Callable[[float], None] = lambda share: None,
) -> list[list[Continuation]]:
    """`takes` takes of each prompt, of so many notes; all are computed together, and each is what it is alone."""
    playings = [
        continuer.begin(prompt.seed, ContinueConfig(notes=notes, takes=takes, random_seed=random_seed), sampling)
        for prompt, notes in zip(asked, lengths, strict=True)
    ]
    groups = in_groups([playing for of_prompt in playings for playing in of_prompt])
    for done, group in enumerate(groups):
        for playing in play_together(group):
            if playing is group[0] and playing.notes % TELL_EVERY == 0:
                tell((done + playing.share) / len(groups))
    return [[playing.continuation() for playing in of_prompt] for of_prompt in playings]


def figures(seed: Performance, music: Performance) -> dict[str, float]:
    """FIGURES of some music after a prompt."""
    return {
        "cosine": musicality.pitch_class_cosine(seed, music),
        "density": musicality.density(music) / musicality.density(seed),
        "range": float(musicality.pitch_range(music)),
        "entropy": musicality.pitch_class_entropy(music),
        "bars": musicality.bar_self_similarity(music),
        "again": musicality.ngram_repetition(music),
        "degenerate": float(bool(musicality.degenerate(music))),
    }


@dataclass(frozen=True)
class Row:
    """Figures of one kind of music over P pieces, each the mean of its takes."""

    who: str
    areas: dict[str, Interval]  # overlapping area with the true continuation by feature, and "mean"
    divergences: dict[str, Interval]  # bits, by feature, and "mean"
    figures: dict[str, Interval]  # FIGURES
    piece_areas: tuple[float, ...]  # [P] mean overlapping area of each piece


def row(who: str, compared: Sequence[Sequence[tuple[Performance, Performance, Performance]]]) -> Row:
    """Of triples (prompt, true continuation, music) by piece; a piece counts once however many it has."""
    areas: dict[str, list[float]] = {name: [] for name in (*FEATURES, "mean")}
    divergences: dict[str, list[float]] = {name: [] for name in (*FEATURES, "mean")}
    found: dict[str, list[float]] = {name: [] for name in FIGURES}
    for triples in compared:
        alike = [compare(truth, music) for _, truth, music in triples]
        for name in FEATURES:
            areas[name].append(float(np.mean([one[name][0] for one in alike])))
            divergences[name].append(float(np.mean([one[name][1] for one in alike])))
        for table in (areas, divergences):
            table["mean"].append(float(np.mean([table[name][-1] for name in FEATURES])))
        each = [figures(seed, music) for seed, _, music in triples]
        for name in FIGURES:
            found[name].append(float(np.mean([one[name] for one in each])))
    return Row(who, _means(areas), _means(divergences), _means(found), tuple(areas["mean"]))


def _means(values: dict[str, list[float]]) -> dict[str, Interval]:
    return {name: mean(of) for name, of in values.items()}


def rows(trials: Sequence[Trial]) -> list[Row]:
    """The model's takes, the ceiling, the true continuation itself (figures only) and the floor."""
    others = [*trials[1:], *trials[:1]]
    return [
        row("model", [[(t.prompt.seed, t.prompt.truth, take.new) for take in t.takes] for t in trials]),
        row("same piece, later", [[(t.prompt.seed, t.prompt.truth, t.prompt.after)] for t in trials]),
        row("true continuation", [[(t.prompt.seed, t.prompt.truth, t.prompt.truth)] for t in trials]),
        row(
            "another piece",
            [[(t.prompt.seed, t.prompt.truth, o.prompt.truth)] for t, o in zip(trials, others, strict=True)],
        ),
    ]


def shortfall(made: Row, ceiling: Row) -> Interval:
    """How much less the mean overlapping area of the one is than that of the other, piece by piece."""
    return mean(np.array(ceiling.piece_areas) - np.array(made.piece_areas))


def drift(
    continuer: Continuer,
    asked: Sequence[Prompt],
    corpus: TokenCorpus,
    *,
    at: Sequence[int] = DRIFT_AT,
    sampling: SamplingConfig | None = None,
    random_seed: int = 0,
    tell: Tell = lambda share, remark: None,
) -> list[dict[str, Any]]:
    """FIGURES of one long take of each prompt, and of its piece, in windows that end at `at` times the context.

    A list of who, contexts, pieces and the figures.
    """
    context = continuer.engine.config.max_positions // EVENT_TOKENS
    windows = {times: slice(max(0, times * context - DRIFT_NOTES), times * context) for times in at}
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    lengths = [max(at) * context] * len(asked)
    made = _played(
        *(continuer, asked, lengths, 1, sampling, random_seed), lambda share: tell(share, f"{len(asked)} long takes")
    )
    for prompt, (take,) in zip(asked, made, strict=True):
        piece = corpus.names.index(prompt.name)
        start = int(corpus.starts[piece]) + 1 + EVENT_TOKENS * PROMPT_NOTES
        stop = int(corpus.starts[piece] + corpus.lengths[piece]) - 1
        real = continuer.tokenizer.decode(corpus.tokens[start:stop])
        for times, window in windows.items():
            for who, music in (("model", take.new), ("composer", real)):
                if len(music) >= window.stop:
                    found.setdefault((who, times), []).append(figures(prompt.seed, music.take(window)))
    return [
        {
            "who": who,
            "contexts": times,
            "pieces": len(values),
            "figures": {name: mean([one[name] for one in values]) for name in FIGURES},
        }
        for (who, times), values in sorted(found.items())
    ]
