"""A seed and its continuation as one performance.

The join is the onset of the seed's last note, on the seed's own clock, and time 0 of the new notes. The seed keeps its
exact notes, pedal, tempo map and meters, and what it holds at the join rings on. The new notes are a part (track and
channel) of their own without pedal, so that neither side cuts or blurs the other.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pulse88.notes import PEDAL_DOWN, Performance

LAST_PART = 255


def writable(seed: Performance) -> Performance:
    """The seed as a MIDI file can hold it: parts numbered from 0 without gaps, and no key struck while it is held.

    Of overlapping notes of one key and part the first ends at the second strike; pedals of parts without notes go.
    """
    parts, part = np.unique(seed.part, return_inverse=True)
    heard = np.isin(seed.pedal_part, parts)
    numbered = replace(
        seed,
        part=part.astype(np.uint8),
        pedal_time=seed.pedal_time[heard],
        pedal_value=seed.pedal_value[heard],
        pedal_part=np.searchsorted(parts, seed.pedal_part[heard]).astype(np.uint8),
    )
    return numbered.without_overlaps()


def next_part(seed: Performance) -> int:
    """The part of the new notes, after those of a writable seed. ValueError if the seed has all there are."""
    part = len(set(seed.part.tolist()))  # np.unique would import all of numpy.ma
    if part > LAST_PART:
        raise ValueError(f"the seed has {part} parts, which leaves none for the new notes: merge some of its tracks")
    return part


def joined(seed: Performance, new: Performance, boundary: float, new_part: int) -> Performance:
    """The seed, and from `boundary` (seconds) on the new notes as part `new_part`.

    A pedal of the seed that stays down for good rises where `Performance.sustained` lets its notes end: when the last
    key is let go, or at the last pedal event if that is later.
    """
    pedal_end = max(seed.end, float(seed.pedal_time.max(initial=0.0)))
    down = [
        p for p in sorted(set(seed.pedal_part.tolist())) if seed.pedal_value[seed.pedal_part == p][-1] >= PEDAL_DOWN
    ]
    later = replace(new, onset=new.onset + boundary, part=np.full(len(new), new_part, np.uint8)).without_overlaps()
    return replace(
        seed,
        onset=np.r_[seed.onset, later.onset],
        duration=np.r_[seed.duration, later.duration],
        pitch=np.r_[seed.pitch, later.pitch],
        velocity=np.r_[seed.velocity, later.velocity],
        part=np.r_[seed.part, later.part],
        pedal_time=np.r_[seed.pedal_time, np.full(len(down), pedal_end)],
        pedal_value=np.r_[seed.pedal_value, np.zeros(len(down), np.uint8)],
        pedal_part=np.r_[seed.pedal_part, np.array(down, np.uint8)],
    )


def split_time(whole: Performance, new_part: int) -> float | None:
    """Seconds between the seed's last onset and the first new one, for pictures; None if either side has no notes."""
    is_new = whole.part == new_part
    if is_new.all() or not is_new.any():
        return None
    last, first = float(whole.onset[~is_new][-1]), float(whole.onset[is_new][0])
    return max((last + first) / 2, float(np.nextafter(last, np.inf)))


def alone(new: Performance, seed: Performance, boundary: float) -> Performance:
    """The new notes without the seed, time 0 at the boundary, with the tempos and meters in force from there on."""
    moved = seed.shifted(-boundary)
    return replace(new, tempos=moved.tempos, meters=moved.meters)
