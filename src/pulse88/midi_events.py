"""Bytes of a Standard MIDI File to arrays of events, tolerant of damage: what can be read is read, what can't is said.

Shape legend: E channel messages, all tracks one after another. Ticks are int64 from the start of the track.

The bytes of a track can only be walked one event after the other. Events of fixed size are taken by sequential.py, or
where that isn't compiled by Strides, and what has no fixed size (meta events, system exclusive) is read by hand.
Source: Standard MIDI Files 1.0, RP-001.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pulse88 import sequential

MAX_BYTES = 64 * 2**20
MAX_EVENTS = 8_000_000
MAX_METAS = 1_000_000  # text, name, tempo and meter events
MAX_TRACKS = 65_535  # The header counts tracks in 16 bits.

TEXT, TRACK_NAME, END_OF_TRACK, TEMPO, METER = 0x01, 0x03, 0x2F, 0x51, 0x58
_KEPT_METAS = frozenset((TEXT, TRACK_NAME, TEMPO, METER))
_KEPT = bytes(kind in _KEPT_METAS for kind in range(256))
_TOO_MANY = "too many events, or tracks within tracks: take a smaller file"
_LONGEST_STEP = 7  # bytes: four of delta time, three of message
_STRIDE = 4  # events that the walk takes at once where it can; a power of two
_BLOCK = 2**20
# Bytes of an event after its last byte of delta time, that one included, by the byte that follows it; 0 where that
# isn't fixed. An event without status byte counts as one of two data bytes.
_EVENT_SIZES = bytes([3] * 0x80 + [4] * 0x40 + [0] * 0x20 + [4] * 0x10 + [0] * 0x10)


Ints = NDArray[np.int64]


class MidiError(ValueError):
    """A file that holds no piano music Pulse88 can read. The message names the file, the place and the remedy."""


class Meta(NamedTuple):
    """A meta event of a kind that means something to us."""

    track: int
    tick: int
    kind: int
    data: bytes


class Events(NamedTuple):
    """All channel messages of a file, running status resolved, and its text, name, tempo and meter events."""

    format: int
    division: int  # as in the header: ticks a quarter note, or SMPTE if bit 15 is set
    track: NDArray[np.int64]  # [E] index of the track
    tick: NDArray[np.int64]  # [E] since the start of the track
    status: NDArray[np.uint8]  # [E] 0x80-0xEF
    data1: NDArray[np.uint8]  # [E] 0-127
    data2: NDArray[np.uint8]  # [E] 0-127; 0 for messages of one data byte
    metas: list[Meta]
    track_end: NDArray[np.int64]  # [tracks] tick of the last event of each track
    damage: list[str]  # what is against the standard, with the byte in the file; empty for a sound file


def parse(data: bytes) -> Events:
    """The events of a file; MidiError (without the file's name) if it is no MIDI file or too large."""
    if len(data) > MAX_BYTES:
        raise MidiError(f"more than {MAX_BYTES / 2**20:g} MiB: take a smaller file")
    damage: list[str] = []
    data = _unwrap(data, damage)
    header_size = int.from_bytes(data[4:8], "big")
    if len(data) < 14:
        raise MidiError("ends within the MIDI header: the file was cut short, fetch or export it again")
    form, declared_tracks, division = (int.from_bytes(data[i : i + 2], "big") for i in (8, 10, 12))
    if division & 0x7FFF == 0 or (division & 0x8000 and division & 0xFF == 0):
        raise MidiError("its header gives 0 ticks a beat, so no time can be told: export it again")
    if form > 2:
        damage.append(f"format {form} does not exist, read as format 1")
        form = 1
    if not 6 <= header_size <= len(data) - 8:
        damage.append(f"byte 4: a header of {header_size} bytes, read as 6")
        header_size = 6
    walks = _walk_tracks(data, 8 + header_size, damage)
    if len(walks) < declared_tracks:
        damage.append(f"the header promises {declared_tracks} tracks, {len(walks)} are there")
    return _decode(data, form, division, walks, damage)


class _Walk(NamedTuple):
    """The events of one track: `starts` are the bytes in the file at which their delta times begin."""

    starts: NDArray[np.int64]
    metas: list[list[int]]  # index of the event, kind, first byte of its data, byte behind them
    stop: int  # byte behind the last whole event
    ended: bool  # by its end-of-track event
    problem: str  # why it stopped before its end; empty if it did not


def _unwrap(data: bytes, damage: list[str]) -> bytes:
    """The bytes from `MThd` on, without what a RIFF wrapper or a careless download put around them."""
    if data.startswith(b"MThd"):
        return data
    at = data.find(b"MThd")
    if at < 0:
        raise MidiError(f"{_looks_like(data)}, not a MIDI file: give a Standard MIDI File (.mid)")
    if data.startswith(b"RIFF") and data[8:12] == b"RMID" and at >= 20:
        size = int.from_bytes(data[at - 4 : at], "little")
        damage.append("a RIFF (RMID) wrapper around the MIDI file")
        return data[at : at + size]
    damage.append(f"{at} bytes before the MIDI header, skipped")
    return data[at:]


_SIGNATURES = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive (compressed MusicXML or a MuseScore file are ZIP too: export MIDI from the score)"),
    (b"\x1f\x8b", "a gzip archive (unpack it first)"),
    (b"ID3", "an MP3 recording (transcribe it first)"),
    (b"\xff\xfb", "an MP3 recording (transcribe it first)"),
    (b"fLaC", "a FLAC recording (transcribe it first)"),
    (b"OggS", "an Ogg recording (transcribe it first)"),
    (b"RIFF", "a RIFF file, such as a WAV recording (transcribe it first)"),
    (b"MTrk", "MIDI tracks without their header"),
    (b"<", "XML or HTML text (a download page, or MusicXML: export MIDI from it)"),
    (b"{", "JSON text"),
    (b"X:", "ABC notation (convert it to MIDI first)"),
)


def _looks_like(data: bytes) -> str:
    if not data:
        return "an empty file"
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return name
    head = data[:512]
    printable = sum(32 <= byte < 127 or byte in b"\t\r\n" or byte >= 0xC2 for byte in head)
    return "text" if printable > 0.95 * len(head) else "unknown binary data"


def _walk_tracks(data: bytes, at: int, damage: list[str]) -> list[_Walk]:
    """Every track, found by chunk lengths where they are right and by looking for `MTrk` where they are not."""
    steps = _steps(data) if sequential.library() is None else None
    walks: list[_Walk] = []
    events = metas = work = 0
    while at + 8 <= len(data):
        start = at + 8
        end = start + int.from_bytes(data[at + 4 : start], "big")
        if not data.startswith(b"MTrk", at):
            if not _is_boundary(data, end) or not data[at : at + 4].isascii():
                found = data.find(b"MTrk", at + 1)
                end = found if found >= 0 else len(data)
                damage.append(f"byte {at}: {end - at} bytes that belong to no track, skipped")
            at = end
            continue
        if len(walks) == MAX_TRACKS:
            raise MidiError(f"more than {MAX_TRACKS} tracks: export it again with fewer")
        bound = end if end <= len(data) else _next_track(data, start)
        walk = _walk(data, steps, start, bound)
        name = f"track {len(walks) + 1}"
        if walk.ended and (walk.stop == end or (_is_boundary(data, end) and not data.startswith(b"MTrk", walk.stop))):
            at = end
            if walk.problem:
                damage.append(f"byte {walk.stop}: {name} {walk.problem}")
        elif walk.ended:
            at = _next_track(data, walk.stop)
            damage.append(f"byte {start - 4}: the length of {name} is wrong, read to its end-of-track event")
        elif bound == end and _is_boundary(data, end):
            at = end
            damage.append(f"byte {walk.stop}: {name} {walk.problem or 'has no end-of-track event'}")
        else:
            at = _next_track(data, bound)
            if bound == end:
                walk = _walk(data, steps, start, at)
            what = "the file ends within" if end > len(data) == at else "wrong length of"
            reading = "read to its end-of-track event" if walk.ended else f"it {walk.problem or 'is read up to here'}"
            damage.append(f"byte {walk.stop}: {what} {name}, {reading}")
        walks.append(walk)
        events += len(walk.starts)
        metas += len(walk.metas)
        work += bound - start
        if events > MAX_EVENTS or metas > MAX_METAS or work > 8 * len(data):
            raise MidiError(_TOO_MANY)
    if at < len(data):
        damage.append(f"byte {at}: {len(data) - at} bytes after the last track, skipped")
    return walks


def _is_boundary(data: bytes, at: int) -> bool:
    return at == len(data) or data.startswith(b"MTrk", at)


def _next_track(data: bytes, at: int) -> int:
    found = data.find(b"MTrk", at)
    return found if found >= 0 else len(data)


class _Steps(NamedTuple):
    """For each byte, how many bytes one event and _STRIDE events take that begin here; 0 where that isn't fixed."""

    one: bytes
    many: bytes


def _steps(data: bytes) -> _Steps:
    """Block by block, for the sake of memory."""
    padded = data + bytes(_STRIDE * _LONGEST_STEP)
    ones, manys = [], []
    for at in range(0, len(data), _BLOCK):
        stop = min(at + _BLOCK, len(data))
        one = _event_steps(padded[at : stop + _STRIDE * _LONGEST_STEP])
        ones.append(one[: stop - at].tobytes())
        many = one
        for _ in range(_STRIDE.bit_length() - 1):
            many = _twice(many)
        manys.append(many[: stop - at].tobytes())
    return _Steps(b"".join(ones), b"".join(manys))


def _event_steps(data: bytes) -> NDArray[np.uint8]:
    """For each byte, the bytes of an event that begins here with its delta time.

    What takes one data byte has 0 too, because from there on an event without status byte is another.
    """
    goes_on = np.frombuffer(data, np.uint8) >> 7
    behind_delta = np.frombuffer(data.translate(_EVENT_SIZES), np.uint8)
    step = np.zeros(len(data), np.uint8)
    step[:-1] = behind_delta[1:] * (1 - goes_on[:-1])
    shorter = step
    for _ in range(3):
        longer = np.zeros(len(data), np.uint8)
        longer[:-1] = (shorter[1:] + (shorter[1:] > 0)) * goes_on[:-1]
        step, shorter = step + longer, longer
    return step


def _twice(step: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The bytes of twice as many events; 0 where one of them isn't fixed, or begins behind the last byte."""
    second = np.append(step, np.uint8(0)).take(np.arange(len(step)) + step, mode="clip")
    return (step + second) * ((step > 0) & (second > 0))


def _walk(data: bytes, steps: _Steps | None, start: int, bound: int) -> _Walk:
    """One track, from its first delta time up to its end-of-track event, `bound` or the first event without sense."""
    compiled = sequential.library()
    if steps is None:
        assert compiled
        if sound := sequential.track(compiled, data, start, bound, _KEPT):
            return _Walk(*sound, bound, True, "")
        walker: sequential.Walker | Strides = sequential.Walker(compiled, data, start, bound)
    else:
        walker = Strides(steps, start, bound)
    running_size = 0  # data bytes of the status in force; 0 before the first
    metas: list[tuple[int, int, int, int]] = []
    at, size, kind, problem = 0, bound - start, -1, ""
    end_of_track: tuple[int, int] | None = None  # places and bytes up to and with the first one
    while True:
        if running_size == 2:
            at = walker.run(at)
        if at >= size:
            if at > size:
                at = walker.drop_last(at)
                problem = "stops within an event"
            break
        here, _ = _variable_length(data, start + at, bound)
        if here < 0 or here >= bound:
            problem = "stops within an event" if bound - start - at <= 4 else "has a delta time of more than 4 bytes"
            break
        status, kind = data[here], -1
        if status >= 0xF0:
            if status not in (0xF0, 0xF7, 0xFF):
                problem = f"has the status byte {status:#x}, which no file may hold"
                break
            if status == 0xFF:
                here += 1
                kind = data[here] if here < bound else -1
            first, length = _variable_length(data, here + 1, bound)
            if first < 0 or first + length > bound:
                problem = "stops within an event" if first < 0 else "has an event longer than what is left of the track"
                break
            stop = first + length
            if kind in _KEPT_METAS:
                metas.append((len(walker), kind, first, stop))
        elif status >= 0x80:
            running_size = 1 if status & 0xE0 == 0xC0 else 2
            stop = here + 1 + running_size
        elif running_size:
            stop = here + running_size
        else:
            problem = "begins with data that no status byte explains"
            break
        if stop > bound:
            problem = "stops within an event"
            break
        if len(walker) > MAX_EVENTS or len(metas) > MAX_METAS:
            raise MidiError(_TOO_MANY)
        walker.add(at, stop - start - at)
        at = stop - start
        if kind == END_OF_TRACK:
            end_of_track = end_of_track or (len(walker), at)
            if at == size:
                break
            running_size = 0  # Some writers go on; if that makes no sense, it is padding.
    if end_of_track and (problem or kind != END_OF_TRACK):
        problem = ""
        walker.cut(end_of_track[0])
        at = end_of_track[1]
    elif end_of_track and end_of_track[1] < at:
        problem = "goes on after an end-of-track event"
    starts, event_of = walker.finish()
    kept = [[int(event_of[m]), what, begin, end] for m, what, begin, end in metas if m < len(event_of)]
    return _Walk(starts, kept, start + at, end_of_track is not None, problem)


class Strides:
    """The events of one track, several at a time where they have a fixed size; `sequential.Walker` is its twin."""

    def __init__(self, steps: _Steps, start: int, bound: int) -> None:
        self._start, self._one = start, steps.one
        self._fixed = steps.one[start:bound] + bytes(_LONGEST_STEP)
        # Events taken at once may not reach beyond the bound: the last ones are taken one by one.
        last = max(bound - _STRIDE * _LONGEST_STEP, start)
        self._fixed_strides = steps.many[start:last].ljust(len(self._fixed), b"\0")
        self._sizes, self._counts = bytearray(), bytearray()  # bytes and events of each stride
        self._large: list[tuple[int, int]] = []  # index and bytes of strides too large for `_sizes`

    def __len__(self) -> int:
        return len(self._sizes)

    def run(self, at: int) -> int:
        """Takes all events of fixed size from byte `at` of the track on; where the next one begins."""
        sizes, counts, append = self._sizes, self._counts, self._sizes.append
        strides, fixed = self._fixed_strides, self._fixed
        while step := strides[at]:
            append(step)
            at += step
        counts.extend(bytes((_STRIDE,)) * (len(sizes) - len(counts)))
        while step := fixed[at]:
            append(step)
            at += step
        counts.extend(b"\1" * (len(sizes) - len(counts)))
        return at

    def add(self, at: int, step: int) -> None:
        """Takes one event, of `step` bytes."""
        if step > 255:
            self._large.append((len(self._sizes), step))
        self._sizes.append(min(step, 255))
        self._counts.append(1)

    def drop_last(self, at: int) -> int:
        """Leaves the last event out, behind which `at` lies; where it begins. It was one of fixed size."""
        self._counts.pop()
        return at - self._sizes.pop()

    def cut(self, count: int) -> None:
        """Leaves all but the first `count` strides out."""
        del self._sizes[count:], self._counts[count:]

    def finish(self) -> tuple[Ints, Ints]:
        """The first byte of every event, and each stride's first event."""
        lengths = np.frombuffer(self._sizes, np.uint8).astype(np.int64)
        for index, step in self._large:
            if index < len(lengths):
                lengths[index] = step
        counts = np.frombuffer(self._counts, np.uint8)
        begin = self._start + np.cumsum(lengths) - lengths
        after = np.cumsum(counts, dtype=np.int64)
        first = after - counts
        starts = np.empty(int(after[-1]) if len(after) else 0, np.int64)
        starts[first] = begin
        is_long = counts == _STRIDE
        byte, event, steps = begin[is_long], first[is_long], np.frombuffer(self._one, np.uint8)
        for _ in range(_STRIDE - 1):
            byte, event = byte + steps[byte], event + 1
            starts[event] = byte
        return starts, first


def _variable_length(data: bytes, at: int, bound: int) -> tuple[int, int]:
    """Byte behind a variable-length number and its value; (-1, 0) if it doesn't end within 4 bytes and `bound`."""
    value = 0
    for i in range(at, min(at + 4, bound)):
        value = value << 7 | data[i] & 0x7F
        if data[i] < 0x80:
            return i + 1, value
    return -1, 0


def _decode(data: bytes, form: int, division: int, walks: list[_Walk], damage: list[str]) -> Events:
    """Ticks, running status and data bytes of all events at once."""
    counts = np.array([len(w.starts) for w in walks], np.int64)
    none = np.zeros(0, np.int64)
    start = np.concatenate([none, *(w.starts for w in walks)])
    padded = data + bytes(8)
    compiled = sequential.library()
    found = sequential.decode(compiled, padded, start, counts) if compiled else _messages(padded, start, counts)
    clock, track, tick, status, data1, data2, last = found
    metas, first = list[Meta](), 0
    for index, walk in enumerate(walks):
        at = clock[[first + row[0] for row in walk.metas]].tolist() if walk.metas else []
        metas += (Meta(index, when, kind, data[a:b]) for when, (_, kind, a, b) in zip(at, walk.metas, strict=True))
        first += len(walk.starts)
    if data2.max(initial=0) > 127:
        clipped = int((data2 > 127).sum())
        damage.append(f"{clipped} velocities or controller values above 127, taken as 127")
        data2 = np.minimum(data2, 127)
    if data1.max(initial=0) > 127:
        wrong = data1 > 127
        damage.append(f"{int(wrong.sum())} messages with a key, controller or program above 127, left out")
        keep = ~wrong
        track, tick = track[keep], tick[keep]
        status, data1, data2 = status[keep], data1[keep], data2[keep]
    return Events(form, division, track, tick, status, data1, data2, metas, last, damage)


def _messages(padded: bytes, start: Ints, counts: Ints) -> sequential.Messages:
    """As `sequential.decode`."""
    byte = np.frombuffer(padded, np.uint8)
    first, here = byte[start], start + 1
    delta = (first & 0x7F).astype(np.int64)
    more = np.flatnonzero(first >= 0x80)
    for _ in range(3):
        if not len(more):
            break
        value = byte[here[more]]
        delta[more] = delta[more] << 7 | value & 0x7F
        here[more] += 1
        more = more[value >= 0x80]
    passed, begin = np.concatenate(([0], np.cumsum(delta))), np.cumsum(counts) - counts
    before = passed[begin]
    clock, last = passed[1:] - np.repeat(before, counts), passed[begin + counts] - before
    status = byte[here]
    message = np.flatnonzero(status < 0xF0)
    explicit = status >= 0x80
    if not explicit.all():
        in_force = np.maximum.accumulate(np.where(explicit & (status < 0xF0), np.arange(len(status)), 0))
        status = status[in_force]
    status, at_data = status[message], (here + explicit)[message]
    data1, data2 = byte[at_data], byte[at_data + 1]
    data2[status & 0xE0 == 0xC0] = 0  # Their second data byte belongs to the next event.
    track = np.repeat(np.arange(len(counts)), counts)
    return sequential.Messages(clock, track[message], clock[message], status, data1, data2, last)
