"""Performance → WAV: 48 kHz, 16 bit, stereo, through midirenderer and a soundfont.

A second of the file is a second of the performance, so leading silence stays, and audio and picture go together. The
renderer stops dead at the last MIDI event and plays softly (peaks around -18 dBFS), hence the tail and the gain here.
"""

from __future__ import annotations

import importlib.util
import io
import wave
from dataclasses import replace
from pathlib import Path

import midirenderer
import numpy as np
from numpy.typing import NDArray

from pulse88 import midi_file
from pulse88.notes import Performance
from pulse88.written import write_whole

SAMPLE_RATE = 48_000  # Hz; the renderer knows no other.
MAX_SECONDS = 3600.0  # An hour takes some 3 GB while it is rendered.
TAIL_SECONDS = 8.0  # What still rings after the last key is heard this long at most,
FADE_SECONDS = 1.0  # and then fades out.
SILENCE = 2  # sample value; a tail no louder is cut off
# A fixed gain keeps the soft soft and makes takes comparable; only what would pass PEAK is turned down to it.
GAIN = 5.0  # 14 dB: the median validation piece then peaks at -4 dBFS, and one in nine is turned down
PEAK = 32767 * 10 ** (-1 / 20)  # -1 dBFS

Samples = NDArray[np.int16]


class AudioError(ValueError):
    """Why no audio came about: the performance, the soundfont or the path, with the remedy."""


def render(performance: Performance, path: str | Path, *, soundfont: str | Path | None = None) -> None:
    """Writes a WAV file whole or not at all; `soundfont` None is the one that pretty_midi carries.

    The pedal is played, not folded into durations; a key struck again ends its former note, as on a piano. Equal input
    gives equal bytes. AudioError if there are no notes, more than an hour of them, no usable soundfont, or if the path
    can't be written.
    """
    path = Path(path)
    data = to_bytes(performance, soundfont=soundfont)
    try:
        write_whole(path, data)
    except OSError as error:
        raise AudioError(f"{path}: {error.strerror}") from error


def to_bytes(performance: Performance, *, soundfont: str | Path | None = None) -> bytes:
    """The WAV file that `render` writes; AudioError as there."""
    if not len(performance):
        raise AudioError("there is nothing to hear: the performance has no notes; give one that has")
    if performance.end > MAX_SECONDS:
        raise AudioError(
            f"the performance lasts {performance.end:,.0f} s, and audio is made of {MAX_SECONDS:,.0f} s at most; "
            "shorten it, or move its notes to an earlier time"
        )
    font = default_soundfont() if soundfont is None else Path(soundfont)
    samples = _rendered(font, _read_soundfont(font), midi_file.to_bytes(_with_tail(performance.without_overlaps())))
    peak = max(int(samples.max(initial=0)), -int(samples.min(initial=0)))
    if peak == 0:
        raise AudioError(f"{font}: has no sound for a piano's notes (bank 0, program 0); choose another soundfont")
    return _wav(_faded(samples), min(GAIN, PEAK / peak))


def default_soundfont() -> Path:
    """TimGM6mb.sf2 where the pretty_midi package lies, which is not imported; AudioError if it isn't installed."""
    found = importlib.util.find_spec("pretty_midi")
    font = Path(found.origin).with_name("TimGM6mb.sf2") if found and found.origin else None
    if font is None or not font.is_file():
        raise AudioError("no soundfont: `pip install pretty_midi` brings one, or name an .sf2 file of yours")
    return font


def _read_soundfont(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise AudioError(f"{path}: the soundfont can't be read ({error.strerror}); name an .sf2 file") from error
    if data[:4] != b"RIFF" or data[8:12] != b"sfbk":
        raise AudioError(f"{path}: is no SoundFont 2 file (its first bytes are {data[:12]!r}); name an .sf2 file")
    return data


def _with_tail(performance: Performance) -> Performance:
    """With a last event, a pedal release that changes nothing, TAIL_SECONDS after the last key is let go."""
    last = performance.end + TAIL_SECONDS
    keep = performance.pedal_time < last
    return replace(
        performance,
        pedal_time=np.r_[performance.pedal_time[keep], last],
        pedal_value=np.r_[performance.pedal_value[keep], 0],
        pedal_part=np.r_[performance.pedal_part[keep], performance.part[-1]],
    )


def _rendered(font: Path, font_data: bytes, midi: bytes) -> Samples:
    """What the renderer makes of a MIDI file, [frames, 2]."""
    try:
        data = midirenderer.render_wave_from(font_data, midi)
    except BaseException as error:
        # A bad index in a soundfont is a panic of the renderer's, which Python sees as a BaseException.
        if not isinstance(error, RuntimeError) and type(error).__name__ != "PanicException":
            raise
        raise AudioError(f"{font}: the soundfont can't be used ({error}); name another .sf2 file") from error
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (SAMPLE_RATE, 2, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)


def _faded(samples: Samples) -> Samples:
    """Without a silent end; what rings to the very end fades out."""
    tail = samples[-int((TAIL_SECONDS - FADE_SECONDS) * SAMPLE_RATE) :]
    heard = np.flatnonzero((np.abs(tail.astype(np.int32)) > SILENCE).any(axis=1))
    cut = len(samples) - len(tail) + (int(heard[-1]) + 1 if len(heard) else 0)
    if cut < len(samples):
        return samples[:cut]
    fade = int(FADE_SECONDS * SAMPLE_RATE)
    end = np.rint(samples[-fade:] * np.linspace(1, 0, fade)[:, None]).astype(np.int16)
    return np.concatenate((samples[:-fade], end))


def _wav(samples: Samples, gain: float) -> bytes:
    loud = np.empty(samples.shape, "<i2")
    for start in range(0, len(samples), 1 << 20):  # An hour at once in float64 would be 2.8 GB.
        part = slice(start, start + (1 << 20))
        loud[part] = np.rint(samples[part] * np.float32(gain))
    result = io.BytesIO()
    with wave.open(result, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(loud.tobytes())
    return result.getvalue()
