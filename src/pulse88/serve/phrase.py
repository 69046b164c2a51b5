"""What somebody plays in a duet, as notes: keys that go down and come up, the pedal, and what is over of it so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from pulse88.notes import PEDAL_DOWN, Note, Performance

SHORTEST = 0.02  # seconds of a note whose key comes up at once


@dataclass
class Phrase:
    """The notes since the last answer, on the player's clock, in the order of their onsets."""

    notes: list[Note] = field(default_factory=list)  # their durations are those so far
    down: dict[int, int] = field(default_factory=dict)  # pitches of keys held down, to the places of their notes
    ringing: set[int] = field(default_factory=set)  # places of notes that only the pedal holds
    pedal_down: bool = False

    def on(self, time: float, pitch: int, velocity: int) -> None:
        """A key goes down; one that sounds already is struck again. Times that go back count as the latest onset."""
        if self.notes:
            time = max(time, self.notes[-1].onset)
        for place in [self.down.pop(pitch, None), *self.ringing]:
            if place is not None and self.notes[place].pitch == pitch:
                self._end(place, time)
                self.ringing.discard(place)
        self.down[pitch] = len(self.notes)
        self.notes.append(Note(time, SHORTEST, pitch, velocity))

    def off(self, time: float, pitch: int) -> None:
        """A key comes up; the pedal may hold its note."""
        place = self.down.pop(pitch, None)
        if place is None:
            return
        self._end(place, time)
        if self.pedal_down:
            self.ringing.add(place)

    def pedal(self, time: float, value: int) -> None:
        """The sustain pedal moves."""
        self.pedal_down = value >= PEDAL_DOWN
        if not self.pedal_down:
            for place in self.ringing:
                self._end(place, time)
            self.ringing.clear()

    def finish(self, time: float) -> None:
        """Ends whatever sounds; keys that are still held count as held so long."""
        for place in (*self.down.values(), *self.ringing):
            self._end(place, time)
        self.down.clear()
        self.ringing.clear()

    def over(self) -> Performance:
        """The notes up to the first that still sounds, without the last chord of them, to which more may come."""
        sounding = min((*self.down.values(), *self.ringing), default=len(self.notes))
        notes = self.notes[:sounding]
        while notes and notes[-1].onset > self.notes[-1].onset - 0.1:
            notes.pop()
        return Performance.from_notes(notes)

    def take_over(self) -> Performance:
        """Those notes, which the phrase forgets."""
        taken = self.over()
        count = len(taken)
        del self.notes[:count]
        self.down = {pitch: place - count for pitch, place in self.down.items()}
        self.ringing = {place - count for place in self.ringing}
        return taken

    def all(self) -> Performance:
        """All its notes."""
        return Performance.from_notes(self.notes)

    def _end(self, place: int, time: float) -> None:
        note = self.notes[place]
        self.notes[place] = note._replace(duration=max(time - note.onset, SHORTEST))
