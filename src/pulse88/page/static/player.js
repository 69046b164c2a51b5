// Playback of a line (see tree.js), also of one that is still being made: notes are handed to Web Audio a moment ahead.

import { endOf, soundingEnds } from "./music.js";
import { mayRun, SongClock, soundingAt, Walker } from "./schedule.js";

const AHEAD = 0.16; // seconds handed over in advance
const AHEAD_HIDDEN = 1.6; // in a tab in the background timers come once a second
const EVERY = 30; // milliseconds

export class Player extends EventTarget {
  constructor(sound) {
    super();
    this.sound = sound;
    this.clock = new SongClock();
    this.walker = new Walker();
    this.playing = false;
    this.held = false; // the music hasn't been made yet
    this.growing = false;
    this.handed = 0; // song time up to which notes were handed over
    this.recording = null; // an audio element that plays the server's WAV where there are no samples
    this.show({ notes: [], pedal: [] });
  }

  /** Seconds of the song. */
  get position() {
    if (this.recording) return this.recording.currentTime;
    return this.clock.at(this.sound.now);
  }

  get end() {
    return this.lineEnd;
  }

  /** Another line, or with `grown` the one before with more notes behind it; `growing` while more will come. */
  show(heard, { grown = false, growing = false } = {}) {
    this.notes = heard.notes;
    this.ends = soundingEnds(heard.notes, heard.pedal);
    this.lineEnd = Math.max(endOf(heard.notes), 0);
    this.madeUntil = heard.notes.length ? heard.notes.at(-1).onset : 0;
    this.growing = growing;
    if (grown) return;
    this.letGo();
    this.sound.cancelFuture();
    const position = Math.min(this.position, this.lineEnd);
    if (this.playing && !growing && position >= this.lineEnd) this.pause();
    if (!this.playing) this.clock.position = position;
    this.walker.seek(position);
    this.handed = position;
  }

  async play(from = this.position) {
    await this.sound.wake();
    const start = from >= this.lineEnd - 0.05 && !this.growing ? 0 : from;
    this.playing = true;
    this.held = false;
    this.begin(start);
    this.timer ??= setInterval(() => this.tick(), EVERY);
    this.tick();
    this.tell("state");
  }

  begin(position) {
    this.sound.silence();
    this.clock.start(this.sound.now + 0.005, position);
    this.walker.seek(position);
    this.handed = position;
    for (const i of soundingAt(this.notes, this.ends, position)) {
      this.sound.strike(this.notes[i].pitch, this.notes[i].velocity * 0.6, this.sound.now, this.clock.audioTimeOf(this.ends[i]));
    }
  }

  pause() {
    this.letGo();
    this.clock.stop(this.sound.now);
    this.playing = this.held = false;
    clearInterval(this.timer);
    this.timer = null;
    this.sound.silence();
    this.tell("state");
  }

  toggle() {
    if (this.playing) this.pause();
    else return this.play();
  }

  seek(time) {
    const to = Math.min(Math.max(0, time), this.growing ? Math.max(this.madeUntil, 0) : this.lineEnd);
    if (this.recording) this.recording.currentTime = to;
    else if (this.playing) this.begin(to);
    else {
      this.clock.position = to;
      this.walker.seek(to);
    }
    this.tell("seek");
  }

  /** Plays a recording of the line, an address of a WAV, from the present position. */
  async playRecording(address) {
    const position = this.clock.position;
    const audio = new Audio(address);
    audio.volume = this.sound.volume;
    audio.addEventListener("ended", () => this.pause());
    await new Promise((resolve, reject) => {
      audio.addEventListener("loadedmetadata", resolve, { once: true });
      audio.addEventListener("error", () => reject(new Error("This browser can't play the recording.")), { once: true });
    });
    audio.currentTime = position;
    this.recording = audio;
    this.playing = true;
    await audio.play();
    this.tell("state");
  }

  letGo() {
    if (!this.recording) return;
    this.clock.position = this.recording.currentTime;
    this.recording.pause();
    this.recording = null;
    this.playing = false;
  }

  tick() {
    if (!this.playing || this.recording) return;
    const now = this.sound.now;
    const position = this.clock.at(now);
    if (!mayRun(position, this.madeUntil, this.growing, this.held)) {
      if (!this.held) {
        this.clock.stop(now);
        this.held = true;
        this.tell("held");
      }
      return;
    }
    if (this.held) {
      this.clock.start(now);
      this.held = false;
      this.tell("held");
    }
    const until = position + (document.hidden ? AHEAD_HIDDEN : AHEAD);
    for (const i of this.walker.due(this.notes, Math.min(this.handed, position), until)) this.hand(i);
    this.handed = until;
    if (!this.growing && position > this.lineEnd + 0.6) {
      this.pause();
      this.clock.position = this.lineEnd;
      this.tell("ended");
    }
  }

  hand(i) {
    const { pitch, velocity, onset } = this.notes[i];
    const when = Math.max(this.clock.audioTimeOf(onset), this.sound.now);
    this.sound.strike(pitch, velocity, when, this.clock.audioTimeOf(this.ends[i]));
    this.onHand?.(this.notes[i], when);
  }

  tell(type) {
    this.dispatchEvent(new Event(type));
  }
}
