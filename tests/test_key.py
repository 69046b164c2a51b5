"""Keys: textbook scales and cadences are recognised, wherever they are transposed to."""

from __future__ import annotations

import pytest

from pulse88.key import NAMES, Key, find
from pulse88.notes import Note, Performance

CADENCES = {  # chords of I IV V I with the root doubled
    False: ((48, 60, 64, 67), (53, 60, 65, 69), (55, 59, 62, 67), (48, 60, 64, 67)),
    True: ((48, 60, 63, 67), (53, 60, 65, 68), (55, 59, 62, 67), (48, 60, 63, 67)),
}


def cadence(tonic: int, minor: bool) -> Performance:
    return Performance.from_notes(
        Note(float(at), 0.9, pitch + tonic, 80) for at, chord in enumerate(CADENCES[minor]) for pitch in chord
    )


@pytest.mark.parametrize("minor", [False, True])
@pytest.mark.parametrize("tonic", range(12))
def test_a_cadence_tells_its_key(tonic: int, minor: bool) -> None:
    key = find(cadence(tonic, minor))
    assert key == Key(tonic, minor)
    assert {int(pitch) % 12 for pitch in cadence(tonic, minor).pitch} <= set(key.pitch_classes)


def test_a_minor_key_has_both_sevenths() -> None:
    assert Key(9, True).pitch_classes == (0, 2, 4, 5, 7, 8, 9, 11)
    assert Key(9, True).name == "A minor"
    assert [Key(tonic, False).name.split()[0] for tonic in (0, 11)] == [NAMES[0], NAMES[11]]


def test_short_notes_count_little() -> None:
    held = list(cadence(0, False))
    grace = [Note(at / 10, 0.01, pitch, 40) for at, pitch in enumerate((61, 66, 61, 66, 61, 66))]
    assert find(Performance.from_notes(held + grace)) == Key(0, False)


def test_silence_has_no_key() -> None:
    with pytest.raises(ValueError, match="no notes"):
        find(Performance())
