from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import smf
from made_corpus import piece, write_folder, write_tar, write_zip
from pulse88 import midi_file
from pulse88.archives import Limits
from pulse88.corpus import Piece, examine, figures, find, quantised_share
from pulse88.labels import Labels
from pulse88.notes import Performance, Tempo
from pulse88.rules import Figures, Refusal, Rules, judge
from pulse88.tokenizer import Tokenizer
from pulse88.vocabulary import FINE

TOKENIZER = Tokenizer(FINE)


def looked_at(performance: Performance, **rules: Any) -> Piece | Refusal:
    return examine(midi_file.to_bytes(performance), Rules(**rules), TOKENIZER)


def test_a_piece_is_what_the_tokenizer_wrote_with_its_notes_in_seconds() -> None:
    data = midi_file.to_bytes(piece(1))
    performance = midi_file.read(data).performance
    found = examine(data, Rules(), TOKENIZER)
    assert isinstance(found, Piece)
    encoding = TOKENIZER.encode(performance)
    assert np.array_equal(found.ids, encoding.ids)
    assert len(found.ids) == 4 * len(found.pitch) + 2
    assert np.array_equal(found.onset, performance.onset[encoding.notes])
    assert np.allclose(found.duration, performance.sounding_durations()[encoding.notes], rtol=1e-6)
    assert np.array_equal(found.pitch, TOKENIZER.decode(found.ids).pitch)
    assert np.array_equal(found.velocity, performance.velocity[encoding.notes])
    assert [column.dtype for column in found[:5]] == [np.uint8, np.float64, np.float32, np.uint8, np.uint8]
    assert found.seconds == pytest.approx(performance.end - performance.onset[0])


def test_durations_hold_the_pedal() -> None:
    plain = piece(2)
    pedal = replace(plain, pedal_time=np.array([0.0]), pedal_value=np.array([127]), pedal_part=np.array([0]))
    with_pedal, without = looked_at(pedal), looked_at(plain)
    assert isinstance(with_pedal, Piece)
    assert isinstance(without, Piece)
    assert with_pedal.duration.sum() > 2 * without.duration.sum()


GOOD = Figures(
    notes=500,
    other_share=0.0,
    seconds=60.0,
    outside_share=0.0,
    pitches=30,
    range=40,
    longest_silence=1.0,
    silence_share=0.1,
    velocities=20,
    quantised_share=0.1,
)


@pytest.mark.parametrize(
    ("change", "rules", "refusal"),
    [
        ({"notes": 99}, {}, ("length", "99 notes, asked for is at least 100")),
        ({"notes": 100_001, "seconds": 9000.0}, {}, ("length", "100,001 notes, asked for is at most 100000")),
        ({"seconds": 9.94}, {}, ("length", "9.9 seconds, asked for is at least 10")),
        ({"seconds": 20_000.0, "notes": 50_000}, {}, ("length", "20,000.0 seconds, asked for is at most 14400")),
        ({"other_share": 0.01}, {}, ("other instruments", "1.0% of its notes on other instruments, asked for")),
        ({"outside_share": 0.06}, {}, ("keyboard", "6.0% of its notes outside the 88 keys")),
        ({"pitches": 7}, {}, ("range", "7 different pitches")),
        ({"range": 11}, {}, ("range", "a range of 11 semitones")),
        ({"notes": 4000}, {}, ("density", "66.67 notes a second, asked for is at most 50")),
        ({"seconds": 2000.0}, {}, ("density", "0.25 notes a second, asked for is at least 0.3")),
        ({"longest_silence": 61.0}, {}, ("silence", "a silence of 61.0 seconds")),
        ({"silence_share": 0.61}, {}, ("silence", "61.0% of its time silent")),
        ({"velocities": 1}, {"min_velocities": 2}, ("velocities", "1 different velocities, asked for is at least 2")),
        ({"quantised_share": 0.95}, {"quantised": "never"}, ("quantised", "asked for are played pieces")),
        ({"quantised_share": 0.85}, {"quantised": "only"}, ("quantised", "asked for are quantised pieces")),
    ],
)
def test_every_rule_refuses_what_breaks_it(
    change: dict[str, Any], rules: dict[str, Any], refusal: tuple[str, str]
) -> None:
    found = judge(GOOD._replace(**change), Rules(**rules))
    assert found is not None
    assert found.rule == refusal[0]
    assert refusal[1] in found.reason


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        ({"notes": 99}, {"min_notes": 99}),
        ({"seconds": 9.9, "notes": 200}, {"min_seconds": 9.0}),
        ({"other_share": 0.01}, {"max_other": 0.01}),
        ({"pitches": 7, "range": 3}, {"min_pitches": 7, "min_range": 3}),
        ({"notes": 4000}, {"max_density": 70.0}),
        ({"longest_silence": 61.0, "silence_share": 0.61}, {"max_silence": 90.0, "max_silence_share": 0.7}),
        ({"velocities": 1}, {}),
        ({"quantised_share": 0.95}, {"quantised": "only"}),
        ({"quantised_share": 0.1}, {"quantised": "never"}),
        ({}, {}),
    ],
)
def test_a_rule_that_is_changed_lets_it_pass(change: dict[str, Any], rules: dict[str, Any]) -> None:
    assert judge(GOOD._replace(**change), Rules(**rules)) is None


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"min_notes": -1}, "min_notes must be 0 or more"),
        ({"max_seconds": float("nan")}, "max_seconds must be 0 or more"),
        ({"quantised": "yes"}, "quantised must be one of any, only, never"),
        ({"validation_share": 0.6, "test_share": 0.4}, "leave nothing to train on"),
        ({"near_duplicate": 0.0}, "shares above 0"),
    ],
)
def test_rules_that_mean_nothing_are_refused(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rules(**rules)


def test_figures_of_a_performance_by_hand() -> None:
    tempo, on, off = (0, smf.meta(0x51, (500_000).to_bytes(3, "big"))), smf.on, smf.off
    # A quarter note is half a second: two notes, a silence of two seconds, one note below the piano's lowest.
    music = smf.track(
        tempo, (0, on(60, 64)), (0, on(72, 65)), (480, off(60)), (0, off(72)), (1920, on(20, 64)), (480, off(20))
    )
    flute = smf.track((0, bytes((0xC1, 73))), (0, on(80, 64, 1)), (480, off(80, 1)))
    reading = midi_file.read(smf.smf(music, flute))
    assert figures(reading, Rules()) == Figures(
        notes=3,
        other_share=0.25,
        seconds=3.0,
        outside_share=1 / 3,
        pitches=3,
        range=52,
        longest_silence=2.0,
        silence_share=2 / 3,
        velocities=2,
        quantised_share=0.0,
    )
    assert figures(reading, Rules(quantised="never")).quantised_share == 1.0


def test_quantised_follows_the_tempo_map() -> None:
    tempos = (Tempo(0.0, 100.0), Tempo(6.0, 77.7), Tempo(9.0, 140.0))
    edges = np.array([0.0, 10.0, 10.0 + 3 * 77.7 / 60, 1000.0])  # in quarter notes
    beats = np.arange(0, 30, 1 / 3)
    onset = np.interp(beats, edges, [0.0, 6.0, 9.0, 9.0 + (1000.0 - edges[2]) * 60 / 140])
    columns: dict[str, Any] = {
        "duration": np.full(90, 0.1),
        "pitch": np.full(90, 60),
        "velocity": np.full(90, 64),
        "part": np.zeros(90),
    }
    assert quantised_share(Performance(onset=onset, tempos=tempos, **columns)) == 1.0
    assert quantised_share(Performance(onset=onset, **columns)) < 0.75
    played = np.sort(np.random.default_rng(0).uniform(0, 60, 90))
    assert quantised_share(Performance(onset=played, tempos=tempos, **columns)) < 0.4


def damaged(change: Callable[[bytearray], object]) -> bytes:
    data = bytearray(midi_file.to_bytes(piece(3)))
    change(data)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "an empty file, not a MIDI file"),
        (b"hello, this is text", "text, not a MIDI file"),
        (damaged(lambda d: d.__delitem__(slice(10, None))), "ends within the MIDI header"),
        (smf.smf(smf.track((0, smf.on(36, 64, 9)), (480, smf.off(36, 9)))), "no piano in it, only 1 note of drums"),
        (smf.smf(smf.track()), "no notes in its 1 track"),
    ],
)
def test_what_is_no_piano_music_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    found = examine(data, Rules(), TOKENIZER)
    assert isinstance(found, Refusal)
    assert found.rule == "unreadable"
    assert reason in found.reason


def test_errors_that_the_reader_did_not_foresee_are_refusals_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(data: bytes) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr(midi_file, "read", fail)
    assert examine(b"", Rules(), TOKENIZER) == Refusal("unreadable", "IndexError: list index out of range")


def test_files_are_found_with_their_labels_in_one_order(tmp_path: Path) -> None:
    files = {"train/a/2.mid": b"22", "train/a/1.mid": b"1", "validation/b/3.mid": b"333", "4.mid": b"4"}
    folder = write_folder(tmp_path / "corpus", files)
    inputs = [folder, write_zip(tmp_path / "more.zip", files), write_tar(tmp_path / "tail.tar.gz", files)]
    found = list(find(inputs, Labels(), Limits()))
    assert [f.path for f in found[:4]] == [
        *("corpus/4.mid", "corpus/train/a/1.mid", "corpus/train/a/2.mid", "corpus/validation/b/3.mid"),
    ]
    assert [f.path.split("/", 1)[1] for f in found[4:8]] == [f.path.split("/", 1)[1] for f in found[:4]]
    assert [f.path for f in found[8:]] == [f"tail/{name}" for name in files]
    assert {f.label.source for f in found if f.label.split} == {"a", "b"}
    assert {f.label.source for f in found if not f.label.split} == {"corpus", "more", "tail"}
    passed = [f.passed for f in found]
    assert passed == sorted(passed)
    assert passed[3] == sum(map(len, files.values()))
