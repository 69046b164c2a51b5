"""Single struck keys as WAV files, for players in browsers: rendered by audio.py, halved in rate to be small."""

from __future__ import annotations

import io
import wave

import numpy as np

from pulse88 import audio
from pulse88.notes import Note, Performance

SAMPLE_RATE = audio.SAMPLE_RATE // 2  # Hz
PITCHES = tuple(range(21, 106, 4))
LAYERS = (48, 100)  # velocities
LENGTHS = ((21, 60, 108), (9.0, 6.0, 2.5))  # pitches, and the seconds that a key of theirs is held


def struck_key(pitch: int, velocity: int) -> bytes:
    """One struck key as a WAV file, mono, 16 bit."""
    seconds = float(np.interp(pitch, *LENGTHS))
    return _halved(audio.to_bytes(Performance.from_notes([Note(0.0, seconds, pitch, velocity)])), seconds)


def _halved(wav: bytes, seconds: float) -> bytes:
    """A mono WAV of half the rate, filtered before; what rings on fades out in the last tenth."""
    with wave.open(io.BytesIO(wav)) as file:
        frames = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
    mono = frames[: int(seconds * audio.SAMPLE_RATE)].mean(axis=1)
    taps = np.sinc((np.arange(63) - 31) / 2.2) * np.hanning(65)[1:-1]
    low = np.convolve(mono, taps / taps.sum(), mode="same")[::2]
    fade = max(len(low) // 10, 1)
    low[-fade:] *= np.linspace(1, 0, fade)
    result = io.BytesIO()
    with wave.open(result, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.rint(low).clip(-32768, 32767).astype("<i2").tobytes())
    return result.getvalue()
