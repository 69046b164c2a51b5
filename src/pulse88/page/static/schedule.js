// What to sound when: a song clock that can be held, and the notes that fall due in it. Pure: the caller tells the time.

import { firstFrom } from "./music.js";

/** Song time against the audio clock. It stands still while paused, and where the music has not been made yet. */
export class SongClock {
  constructor() {
    this.position = 0; // seconds of the song at `since`
    this.since = 0; // seconds of the audio clock
    this.running = false;
  }

  at(audioTime) {
    return this.running ? this.position + Math.max(0, audioTime - this.since) : this.position;
  }

  /** The audio time at which the song reaches `songTime`. */
  audioTimeOf(songTime) {
    return this.since + (songTime - this.position);
  }

  start(audioTime, position = this.position) {
    this.position = position;
    this.since = audioTime;
    this.running = true;
  }

  stop(audioTime) {
    this.position = this.at(audioTime);
    this.running = false;
  }
}

/**
 * Walks through notes as they fall due. `due(from, to)` gives each note once that begins in [from, to), also those that
 * were put in behind the walker after it went by, unless they are older than `late` seconds.
 */
export class Walker {
  constructor(late = 0.25) {
    this.late = late;
    this.given = new Set();
    this.begun = 0;
  }

  /** Forgets what was given: after a seek, or when other notes are played. */
  seek(time) {
    this.given.clear();
    this.begun = time;
  }

  due(notes, from, to) {
    const found = [];
    const start = Math.max(from - this.late, this.begun);
    for (let i = firstFrom(notes, start - 1e-9); i < notes.length && notes[i].onset < to; i++) {
      if (this.given.has(notes[i])) continue;
      this.given.add(notes[i]);
      found.push(i);
    }
    return found;
  }
}

/**
 * How far the song may run: to its end, or while notes still come to the last one that has come. A held song runs on
 * only when `cushion` seconds of music lie ahead, so that it doesn't stutter.
 */
export function mayRun(position, madeUntil, growing, held, cushion = 0.35) {
  if (!growing) return true;
  return madeUntil - position > (held ? cushion : 0.03);
}

/** Notes that already sound at `time` and still do 80 ms later, so that a seek into a held chord is heard. */
export function soundingAt(notes, ends, time, longest = 30) {
  const found = [];
  for (let i = firstFrom(notes, time - longest); i < notes.length && notes[i].onset < time; i++) {
    if (ends[i] > time + 0.08) found.push(i);
  }
  return found;
}
