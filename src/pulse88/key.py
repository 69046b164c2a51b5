"""The key that music is in, and the notes that belong to it.

Found by correlating how long each pitch class sounds with the profiles of Krumhansl and Kessler (1982), as in
Krumhansl, *Cognitive Foundations of Musical Pitch* (1990), chapter 4.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from pulse88.notes import Performance

NAMES = ("C", "C#", "D", "E flat", "E", "F", "F#", "G", "A flat", "A", "B flat", "B")
MAJOR_PROFILE = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
MINOR_PROFILE = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)
MAJOR_SCALE = (0, 2, 4, 5, 7, 9, 11)
MINOR_SCALE = (0, 2, 3, 5, 7, 8, 10, 11)  # with both sevenths
LONGEST = 2.0  # seconds that a note counts for at most: a pedal point isn't the key


class Key(NamedTuple):
    """A tonic, 0-11 from C, and a mode."""

    tonic: int
    minor: bool

    @property
    def name(self) -> str:
        return f"{NAMES[self.tonic]} {'minor' if self.minor else 'major'}"

    @property
    def pitch_classes(self) -> tuple[int, ...]:
        """Of its scale, ascending, 0-11 from C; of minor keys with both sevenths."""
        return tuple(sorted((self.tonic + step) % 12 for step in (MINOR_SCALE if self.minor else MAJOR_SCALE)))


def of_scale(pitch_classes: Iterable[int]) -> Key | None:
    """The key whose scale that is; None if there is none."""
    wanted = tuple(pitch_classes)
    keys = (Key(tonic, minor) for tonic in range(12) for minor in (False, True))
    return next((key for key in keys if key.pitch_classes == wanted), None)


def find(performance: Performance) -> Key:
    """The key that fits best, of equally good ones the major, then the first from C. ValueError without notes."""
    if not len(performance):
        raise ValueError("no notes, so no key")
    weights = np.bincount(performance.pitch % 12, np.minimum(performance.sounding_durations(), LONGEST), minlength=12)
    weights = weights - weights.mean()
    best, best_fit = Key(0, False), -np.inf
    for minor, profile in ((False, MAJOR_PROFILE), (True, MINOR_PROFILE)):
        centred = np.array(profile) - np.mean(profile)
        centred /= np.linalg.norm(centred)
        for tonic in range(12):
            fit = float(weights @ np.roll(centred, tonic))
            if fit > best_fit + 1e-9:
                best, best_fit = Key(tonic, minor), fit
    return best
