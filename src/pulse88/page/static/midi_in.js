// MIDI keyboards through Web MIDI: no driver, no install. Every input is listened to, also one that is plugged in later.

const NOTE_OFF = 0x80;
const NOTE_ON = 0x90;
const CONTROL = 0xb0;
const SUSTAIN = 64;

/** {kind: "on" | "off" | "pedal", pitch, velocity, value} of a MIDI message, or null for all others. */
export function understand([status, first, second]) {
  const kind = status & 0xf0;
  if (kind === NOTE_ON && second > 0) return { kind: "on", pitch: first, velocity: second };
  if (kind === NOTE_OFF || kind === NOTE_ON) return { kind: "off", pitch: first };
  if (kind === CONTROL && first === SUSTAIN) return { kind: "pedal", value: second };
  return null;
}

export class MidiIn {
  /** `heard(event, milliseconds)` gets what `understand` gives, with the time on performance.now()'s clock. */
  constructor(heard, changed) {
    this.heard = heard;
    this.changed = changed;
    this.access = null;
    this.refusal = null;
  }

  /** Asks the browser for MIDI, once. Names of the keyboards that are there. */
  async connect() {
    if (this.access) return this.names;
    if (!navigator.requestMIDIAccess && !window.isSecureContext) {
      this.refusal = "Browsers give MIDI only to pages of this machine itself or with https: play on the keys below.";
      return [];
    }
    if (!navigator.requestMIDIAccess) {
      this.refusal = "This browser has no Web MIDI: use Chrome, Edge or Firefox, or play on the keys below.";
      return [];
    }
    try {
      this.access = await navigator.requestMIDIAccess({ sysex: false });
    } catch {
      this.refusal = "The browser doesn't let this page use MIDI: allow it beside the address, or play on the keys below.";
      return [];
    }
    this.refusal = null;
    this.access.onstatechange = () => this.listen();
    this.listen();
    return this.names;
  }

  get names() {
    return [...(this.access?.inputs.values() ?? [])].filter((input) => input.state !== "disconnected").map((i) => i.name);
  }

  listen() {
    for (const input of this.access.inputs.values()) {
      input.onmidimessage = (message) => {
        const event = understand(message.data);
        if (event) this.heard(event, message.timeStamp || performance.now());
      };
    }
    this.changed(this.names);
  }
}
