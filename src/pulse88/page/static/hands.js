// Everything that people play on (computer keyboard, on-screen piano, MIDI), made one stream, and heard at once.

import { isForPiano, OCTAVE_DOWN, OCTAVE_UP, STEPS } from "./keymap.js";
import { MidiIn } from "./midi_in.js";
import { Piano } from "./piano.js";

const COMPUTER_VELOCITY = 78;

export class Hands {
  /** `heard({kind, pitch, velocity, value}, seconds)` on performance.now()'s clock, while `active` is true. */
  constructor(sound, piano, heard, midiChanged) {
    this.sound = sound;
    this.heard = heard;
    this.active = false;
    this.voices = new Map();
    this.pedalled = new Set();
    this.pedal = 0;
    this.pressed = new Map(); // code of a computer key → pitch
    this.piano = new Piano(piano, (kind, pitch, velocity) => this.take({ kind, pitch, velocity }));
    this.midi = new MidiIn((event, milliseconds) => this.take(event, milliseconds), midiChanged);
    document.addEventListener("keydown", (event) => this.keyDown(event));
    document.addEventListener("keyup", (event) => this.keyUp(event));
    window.addEventListener("blur", () => this.letGo());
  }

  take(event, milliseconds = performance.now()) {
    if (!this.active) return;
    if (event.kind === "on") {
      this.strike(event.pitch, event.velocity);
      this.piano.light(event.pitch, "you");
    } else if (event.kind === "off") {
      this.release(event.pitch);
      this.piano.light(event.pitch, null);
    } else this.setPedal(event.value);
    this.heard(event, milliseconds / 1000);
  }

  strike(pitch, velocity) {
    this.sound.wake().catch(() => {}); // Without a gesture yet there is no sound, and nothing else to do.
    this.pedalled.delete(pitch);
    this.voices.set(pitch, this.sound.strike(pitch, velocity));
  }

  release(pitch) {
    if (this.pedal >= 64) this.pedalled.add(pitch);
    else this.sound.damp(this.voices.get(pitch));
  }

  setPedal(value) {
    const rises = this.pedal >= 64 && value < 64;
    this.pedal = value;
    if (!rises) return;
    for (const pitch of this.pedalled) this.sound.damp(this.voices.get(pitch));
    this.pedalled.clear();
  }

  keyDown(event) {
    if (!this.active || event.repeat || !isForPiano(event)) return;
    if (event.key === "Shift") return this.take({ kind: "pedal", value: 127 });
    if (event.code === OCTAVE_DOWN || event.code === OCTAVE_UP) {
      this.letGo();
      return this.piano.shift(event.code === OCTAVE_UP ? 1 : -1);
    }
    const step = STEPS.get(event.code);
    if (step === undefined) return;
    event.preventDefault();
    const pitch = Math.min(108, this.piano.home + step);
    this.pressed.set(event.code, pitch);
    this.take({ kind: "on", pitch, velocity: COMPUTER_VELOCITY }, event.timeStamp);
  }

  keyUp(event) {
    if (event.key === "Shift") this.take({ kind: "pedal", value: 0 });
    const pitch = this.pressed.get(event.code);
    if (pitch === undefined) return;
    this.pressed.delete(event.code);
    this.take({ kind: "off", pitch }, event.timeStamp);
  }

  /** Lets go of the computer's keys: no key up comes any more once the window is left. */
  letGo() {
    for (const pitch of this.pressed.values()) this.take({ kind: "off", pitch });
    this.pressed.clear();
    if (this.pedal >= 64) this.take({ kind: "pedal", value: 0 });
  }
}
