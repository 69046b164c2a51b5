"""Audio: what is heard when, how loud, and what is said when nothing can be."""

from __future__ import annotations

import subprocess
import sys
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pulse88 import audio
from pulse88.audio import SAMPLE_RATE, AudioError
from pulse88.notes import Note, Performance

ONE = Performance.from_notes([Note(0.5, 1.0, 69, 100)])


def heard(performance: Performance, path: Path) -> np.ndarray:
    """Samples, [frames, 2], -1 to 1."""
    audio.render(performance, path)
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (48_000, 2, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2) / 32768


def level(sound: np.ndarray, start: float, stop: float) -> float:
    """RMS from second to second, dBFS."""
    part = sound[int(start * SAMPLE_RATE) : int(stop * SAMPLE_RATE)]
    return float(20 * np.log10(np.sqrt(np.mean(part**2)) + 1e-9))


def with_pedal(performance: Performance, down: float, up: float, part: int = 0) -> Performance:
    return replace(
        performance,
        pedal_time=np.array([down, up]),
        pedal_value=np.array([127, 0], np.uint8),
        pedal_part=np.array([part, part], np.uint8),
    )


def dense(seconds: float, rate: float) -> Performance:
    rng = np.random.default_rng(0)
    count = int(seconds * rate)
    notes = zip(rng.uniform(0, seconds, count), rng.uniform(0.1, 1.0, count), rng.integers(21, 109, count), strict=True)
    pedal = np.arange(0, seconds, 0.5)
    return replace(
        Performance.from_notes(Note(float(on), float(hold), int(pitch), 80) for on, hold, pitch in notes),
        pedal_time=pedal,
        pedal_value=np.arange(len(pedal)).astype(np.uint8) % 2 * 127,
        pedal_part=np.zeros(len(pedal), np.uint8),
    )


@pytest.mark.parametrize("pitch", [45, 69, 81])
def test_the_right_key_sounds(pitch: int, tmp_path: Path) -> None:
    sound = heard(Performance.from_notes([Note(0, 2.0, pitch, 90)]), tmp_path / "a.wav")
    part = sound[SAMPLE_RATE // 2 : SAMPLE_RATE * 3 // 2].mean(axis=1)
    spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part))))
    frequency = 440 * 2 ** ((pitch - 69) / 12)
    # One second long, so a bin is a hertz.
    near = spectrum[int(frequency * 0.97) : int(frequency * 1.03) + 2].max()
    neighbour = spectrum[int(frequency * 1.10) : int(frequency * 1.15) + 2].max()
    assert near > 30 * neighbour


def test_a_note_sounds_when_it_is_played(tmp_path: Path) -> None:
    sound = heard(ONE.shifted(4.5), tmp_path / "a.wav")
    first = np.flatnonzero(np.abs(sound).max(axis=1) > 0.01)[0] / SAMPLE_RATE
    assert first == pytest.approx(5.0, abs=0.02)  # Silence before the first note stays.


def test_the_last_note_dies_away_uncut(tmp_path: Path) -> None:
    sound = heard(ONE, tmp_path / "a.wav")
    assert 2.0 < len(sound) / SAMPLE_RATE < 5.0  # The release is over long before the tail's eight seconds.
    assert level(sound, 1.5, 1.6) > level(sound, 1.8, 1.9) > level(sound, 2.2, 2.3)
    assert np.abs(sound[-1]).max() < 1e-3
    assert np.abs(np.diff(sound[SAMPLE_RATE * 2 :], axis=0)).max() < 0.01  # no click


def test_what_never_ends_fades_out(tmp_path: Path) -> None:
    held = replace(
        Performance.from_notes([Note(0, 0.5, 28, 127), Note(0, 0.5, 40, 127)]),
        pedal_time=np.array([0.0]),
        pedal_value=np.array([127], np.uint8),
        pedal_part=np.array([0], np.uint8),
    )
    sound = heard(held, tmp_path / "a.wav")
    assert len(sound) / SAMPLE_RATE == pytest.approx(0.5 + audio.TAIL_SECONDS, abs=0.01)
    assert level(sound, 6.0, 7.0) > -60
    assert np.abs(sound[-50:]).max() < 1e-3


def test_the_pedal_is_honoured(tmp_path: Path) -> None:
    short = Performance.from_notes([Note(0, 0.2, 50, 100), Note(4.0, 0.2, 74, 30)])
    dry = heard(short, tmp_path / "a.wav")
    held = heard(with_pedal(short, 0.1, 3.0), tmp_path / "b.wav")
    assert level(held, 1.5, 2.5) > level(dry, 1.5, 2.5) + 30
    assert level(held, 3.8, 3.95) < level(held, 2.5, 3.0) - 20  # and raised at 3 s


@pytest.mark.parametrize("part", [1, 2, 9, 15])
def test_every_part_is_a_piano(part: int, tmp_path: Path) -> None:
    alone = heard(ONE, tmp_path / "a.wav")
    other = heard(replace(ONE, part=np.array([part], np.uint8)), tmp_path / "b.wav")
    assert alone.shape == other.shape
    assert np.abs(alone - other).max() < 1e-3


def test_each_part_has_its_own_pedal(tmp_path: Path) -> None:
    notes = Performance.from_notes([Note(0, 0.2, 50, 100, 0), Note(4.0, 0.2, 74, 30, 1)])
    own = heard(with_pedal(notes, 0.1, 3.0, part=0), tmp_path / "a.wav")
    others = heard(with_pedal(notes, 0.1, 3.0, part=1), tmp_path / "b.wav")
    assert level(own, 1.5, 2.5) > level(others, 1.5, 2.5) + 30


def test_nothing_clips_and_the_soft_stays_soft(tmp_path: Path) -> None:
    everything = Performance.from_notes(
        Note(0.25 * i, 2.0, pitch, 127) for i in range(8) for pitch in range(21 + i % 2, 109, 2)
    )
    loud = np.abs(heard(everything, tmp_path / "a.wav")).max()
    assert 20 * np.log10(loud) == pytest.approx(-1.0, abs=0.01)
    mezzo = np.abs(heard(ONE, tmp_path / "b.wav")).max()
    soft = np.abs(heard(replace(ONE, velocity=np.array([25], np.uint8)), tmp_path / "c.wav")).max()
    assert 0.001 < soft < mezzo / 3 < loud / 3


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    piece = dense(5, 10)
    audio.render(piece, tmp_path / "a.wav")
    assert (tmp_path / "a.wav").read_bytes() == audio.to_bytes(piece)
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


def test_a_soundfont_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "own.sf2"
    own.write_bytes(audio.default_soundfont().read_bytes())
    assert audio.to_bytes(ONE, soundfont=own) == audio.to_bytes(ONE)


def test_pretty_midi_is_found_without_being_imported() -> None:
    code = "import sys; from pulse88 import audio; audio.default_soundfont(); sys.exit('pretty_midi' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_errors_name_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out.wav"
    with pytest.raises(AudioError, match="no notes"):
        audio.render(Performance(), target)
    with pytest.raises(AudioError, match=r"7,201 s.*shorten"):
        audio.render(ONE.shifted(7199.5), target)
    with pytest.raises(AudioError, match=r"none\.sf2: the soundfont can't be read \(No such file.*name an \.sf2"):
        audio.render(ONE, target, soundfont=tmp_path / "none.sf2")
    text = tmp_path / "text.sf2"
    text.write_text("this is no soundfont at all")
    with pytest.raises(AudioError, match=r"text\.sf2: is no SoundFont 2 file"):
        audio.render(ONE, target, soundfont=text)
    cut = tmp_path / "cut.sf2"
    cut.write_bytes(audio.default_soundfont().read_bytes()[:500_000])
    with pytest.raises(AudioError, match=r"cut\.sf2: the soundfont can't be used .*name another"):
        audio.render(ONE, target, soundfont=cut)
    with pytest.raises(AudioError, match=r"can't be written .*choose another"):
        audio.render(ONE, tmp_path / "nowhere" / "out.wav")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AudioError, match="pip install pretty_midi"):
        audio.render(ONE, target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.sf2", "text.sf2"]


def test_a_soundfont_without_a_piano_is_refused(tmp_path: Path) -> None:
    data = bytearray(audio.default_soundfont().read_bytes())
    samples = data.index(b"smpl")
    size = int.from_bytes(data[samples + 4 : samples + 8], "little")
    data[samples + 8 : samples + 8 + size] = bytes(size)
    silent = tmp_path / "silent.sf2"
    silent.write_bytes(data)
    with pytest.raises(AudioError, match=r"silent\.sf2: has no sound.*choose another"):
        audio.to_bytes(ONE, soundfont=silent)


def test_a_soundfont_that_points_beyond_its_samples_is_refused(tmp_path: Path) -> None:
    data = bytearray(audio.default_soundfont().read_bytes())
    headers = data.rindex(b"shdr")
    size = int.from_bytes(data[headers + 4 : headers + 8], "little")
    for start in range(headers + 8, headers + 8 + size, 46):
        for i in range(4):  # start and end of the sample and of its loop
            data[start + 20 + 4 * i : start + 24 + 4 * i] = ((1 << 28) + 1000 * i).to_bytes(4, "little")
    broken = tmp_path / "broken.sf2"
    broken.write_bytes(data)
    with pytest.raises(AudioError, match=r"broken\.sf2: the soundfont can't be used"):
        audio.to_bytes(ONE, soundfont=broken)


def test_failed_audio_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(b"old")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(AudioError, match="No space left"):
        audio.render(ONE, path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.wav"]
