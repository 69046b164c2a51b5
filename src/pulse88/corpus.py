"""From MIDI files to pieces: finding them, reading them, and the figures that the rules judge.

Shape legend: N notes, T ids. `source/file` is the name of a piece wherever one is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pulse88 import archives, midi_file
from pulse88.archives import Limits
from pulse88.duplicates import Fingerprint, fingerprint
from pulse88.labels import Label, Labels, top_name
from pulse88.midi_file import Reading
from pulse88.notes import Performance, Tempo
from pulse88.rules import Figures, Refusal, Rules, judge
from pulse88.tokenizer import Tokenizer
from pulse88.vocabulary import HIGHEST_PITCH, LOWEST_PITCH

QUANTISED_STEPS = 24  # of a quarter note: 32nds and triplets of 16ths
QUANTISED_SLACK = 0.0025  # quarter notes; a tick of 480 more or less


class Found(NamedTuple):
    """A MIDI file, not read yet, or what kept one from being found whole."""

    path: str  # input/folders/file
    label: Label
    data: bytes | Path
    size: int  # bytes
    problem: str  # empty if it can be read
    passed: int  # bytes of all inputs on disk that are behind us


class Piece(NamedTuple):
    """A piece that obeys the rules, in ids and in notes."""

    ids: NDArray[np.uint8]  # [T] with BOS and EOS
    onset: NDArray[np.float64]  # [N] seconds, in the order of the events
    duration: NDArray[np.float32]  # [N] seconds that each note sounds, pedal included
    pitch: NDArray[np.uint8]  # [N]
    velocity: NDArray[np.uint8]  # [N]
    seconds: float  # from the first note to the end of the last sound
    fingerprint: Fingerprint


def find(inputs: Sequence[Path], labels: Labels, limits: Limits) -> Iterator[Found]:
    """Every MIDI file of the inputs (folders, archives, single files), in an order that the inputs alone decide."""
    passed = 0
    for source in inputs:
        top, before = top_name(source), passed
        for member in archives.members(source, limits):
            path = f"{top}/{member.path}".rstrip("/")
            label = labels.of(top, member.path)
            passed = before + member.passed
            yield Found(path, label, member.data, member.size, member.problem, passed)


def examine(data: bytes, rules: Rules, tokenizer: Tokenizer) -> Piece | Refusal:
    """The piece in a MIDI file, or the rule that it breaks. Whatever is in the file, nothing is raised."""
    try:
        return _examine(data, rules, tokenizer)
    except midi_file.MidiError as error:
        return Refusal("unreadable", str(error).split(": ", 1)[-1])  # without "these 123 bytes"
    except (ValueError, ArithmeticError, LookupError, MemoryError) as error:
        return Refusal("unreadable", f"{type(error).__name__}: {error}")


def _examine(data: bytes, rules: Rules, tokenizer: Tokenizer) -> Piece | Refusal:
    reading = midi_file.read(data)
    measured = figures(reading, rules)
    refusal = judge(measured, rules)
    if refusal:
        return refusal
    performance = reading.performance
    encoding = tokenizer.encode(performance)
    order = encoding.notes
    return Piece(
        ids=encoding.ids,
        onset=performance.onset[order],
        duration=performance.sounding_durations()[order].astype(np.float32),
        pitch=performance.pitch[order],
        velocity=performance.velocity[order],
        seconds=measured.seconds,
        fingerprint=fingerprint(performance.onset, performance.pitch),
    )


def figures(reading: Reading, rules: Rules) -> Figures:
    """What the rules need to know, with the pedal folded into durations.

    Whether it is quantised is looked at only if the rules ask.
    """
    performance, report = reading
    left_out = report.drum_notes + sum(notes for _, notes in report.other_programs)
    pitches = np.bincount(performance.pitch, minlength=128)
    keys = np.flatnonzero(pitches)
    sounds_until = np.maximum.accumulate(performance.onset + performance.sounding_durations())
    seconds = float(sounds_until[-1] - performance.onset[0])
    silences = np.maximum(performance.onset[1:] - sounds_until[:-1], 0.0)
    return Figures(
        notes=len(performance),
        other_share=left_out / (left_out + len(performance)),
        seconds=seconds,
        outside_share=float(pitches[:LOWEST_PITCH].sum() + pitches[HIGHEST_PITCH + 1 :].sum()) / len(performance),
        pitches=len(keys),
        range=int(keys[-1] - keys[0]),
        longest_silence=float(silences.max(initial=0.0)),
        silence_share=float(silences.sum()) / seconds,
        velocities=int(np.count_nonzero(np.bincount(performance.velocity))),
        quantised_share=quantised_share(performance) if rules.quantised != "any" else 0.0,
    )


def quantised_share(performance: Performance) -> float:
    """Share of the onsets that lie on a grid of QUANTISED_STEPS a quarter note, by the tempo map; a tenth by chance."""
    changes = performance.tempos
    if not changes or changes[0].time > 0:
        changes = (Tempo(0.0, 120.0), *changes)
    time = np.array([tempo.time for tempo in changes])
    beats_a_second = np.array([tempo.bpm for tempo in changes]) / 60
    beat = np.r_[0.0, np.cumsum(np.diff(time) * beats_a_second[:-1])]
    at = np.searchsorted(time, performance.onset, side="right") - 1
    steps = (beat[at] + (performance.onset - time[at]) * beats_a_second[at]) * QUANTISED_STEPS
    return float((np.abs(steps - np.rint(steps)) < QUANTISED_SLACK * QUANTISED_STEPS).mean())
