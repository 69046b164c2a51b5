"""How much strangers may ask for. Every one of these is told by `/v1/info` or in the error that it leads to."""

from __future__ import annotations

from dataclasses import dataclass

MEBI = 2**20


@dataclass(frozen=True)
class Limits:
    """Bounds of one server. Times are seconds."""

    upload_bytes: int = 2 * MEBI  # a MIDI file; JSON may be half as large again, for base64
    tracks: int = 256  # of an upload
    notes: int = 100_000  # of an upload
    played_notes: int = 20_000  # of a seed given as JSON
    piece_seconds: float = 4 * 3600.0  # of an upload
    audio_seconds: float = 900.0  # of a WAV, 173 MB of it
    seconds: float = 600.0  # of a continuation
    new_notes: int = 4000  # of a continuation
    seed_notes: int = 511
    takes: int = 8  # of one request
    best_of: int = 8
    waiting_per_visitor: int = 16  # works queued or done at once
    waiting: int = 256
    seeds_per_visitor: int = 64
    takes_per_visitor: int = 256
    seeds: int = 2000
    seed_bytes: int = 256 * MEBI  # all together, and those that takes were made of once more
    takes_in_all: int = 10_000
    notes_in_all: int = 1_000_000  # of all takes; some 200 MB
    snapshots_per_visitor: int = 24
    snapshot_bytes: int = 768 * MEBI  # all together
    requests: int = 512  # under way at once
    bodies_bytes: int = 64 * MEBI  # that are being sent to the server at once
    answers_bytes: int = 512 * MEBI  # that are being sent by it at once
    duets: int = 8
    duet_hello_seconds: float = 10.0  # until the first message
    duet_silent_seconds: float = 900.0  # without any
    duet_messages_a_second: float = 400.0
    slice_seconds: float = 0.35  # until the next visitor's turn, where any waits
    first_notes: int = 4  # of a take's first turn, so that everybody hears something soon
    longest_slice_seconds: float = 1.0  # where nobody waits; what a lost worker costs at most
    work_seconds: float = 60.0  # a work that takes longer ends with its worker
    worker_bytes: int = 3 * 1024 * MEBI  # address space of a worker, where the system has such a limit

    @property
    def json_bytes(self) -> int:
        return self.upload_bytes * 3 // 2

    def told(self) -> dict[str, int | float]:
        """Those that `/v1/info` names."""
        names = ("upload_bytes", "tracks", "notes", "seconds", "new_notes", "seed_notes", "takes", "best_of")
        return {name: getattr(self, name) for name in (*names, "waiting_per_visitor", "waiting")}


STANDARD = Limits()
