// Keys as they go down and up → notes. Pure: times are seconds, whoever measured them.

import { byOnset } from "./music.js";

export class Recording {
  constructor() {
    this.notes = [];
    this.pedal = [];
    this.held = new Map(); // pitch → note
  }

  get isEmpty() {
    return this.notes.length === 0 && this.held.size === 0;
  }

  down(pitch, velocity, time) {
    this.up(pitch, time);
    this.held.set(pitch, { onset: time, duration: 0, pitch, velocity, part: 0 });
  }

  /** The note that ends, or null if the key wasn't down. */
  up(pitch, time) {
    const note = this.held.get(pitch);
    if (!note) return null;
    this.held.delete(pitch);
    note.duration = Math.max(0.02, time - note.onset);
    this.notes.push(note);
    return note;
  }

  setPedal(value, time) {
    this.pedal.push({ time, value, part: 0 });
  }

  /** What has been played by `time`, held keys included, as it would be if they were let go now. */
  until(time) {
    const held = [...this.held.values()].map((note) => ({ ...note, duration: Math.max(0.02, time - note.onset) }));
    return [...this.notes, ...held].sort(byOnset);
  }
}

/** {notes, pedal} moved so that time 0 is a moment before the first note. */
export function fromStart(notes, pedal) {
  const origin = notes.length ? Math.max(0, notes[0].onset - 0.1) : 0;
  const shift = (seconds) => Math.max(0, seconds - origin);
  return {
    notes: notes.map((note) => ({ ...note, onset: shift(note.onset) })),
    pedal: pedal.map((event) => ({ ...event, time: shift(event.time) })),
  };
}
