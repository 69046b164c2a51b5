// Notes as the page holds them: {onset, duration, pitch, velocity, part}, seconds and MIDI numbers, sorted by onset.
// Pedal events: {time, value, part}. Everything here is pure.

export const LOWEST = 21; // A0
export const HIGHEST = 108; // C8
const PEDAL_DOWN = 64;
const NAMES = ["C", "C♯", "D", "E♭", "E", "F", "F♯", "G", "A♭", "A", "B♭", "B"];
const SPOKEN = ["C", "C sharp", "D", "E flat", "E", "F", "F sharp", "G", "A flat", "A", "B flat", "B"];
const BLACK = new Set([1, 3, 6, 8, 10]);

export const isBlack = (pitch) => BLACK.has(pitch % 12);
export const keyName = (pitch) => `${NAMES[pitch % 12]}${Math.floor(pitch / 12) - 1}`;
export const keySpoken = (pitch) => `${SPOKEN[pitch % 12]} ${Math.floor(pitch / 12) - 1}`;

/** 75.42 → "1:15"; with `tenths`, "1:15.4". */
export function clock(seconds, tenths = false) {
  const unit = tenths ? 10 : 1;
  const all = Math.max(0, Math.floor(seconds * unit + 1e-6));
  const minutes = Math.floor(all / (60 * unit));
  const rest = all - minutes * 60 * unit;
  const whole = String(Math.floor(rest / unit)).padStart(2, "0");
  return tenths ? `${minutes}:${whole}.${rest % 10}` : `${minutes}:${whole}`;
}

/** A number and its noun: "1 note", "1,204 notes". */
export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

export const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
export const byOnset = (a, b) => a.onset - b.onset || a.pitch - b.pitch;

/** Seconds at which the last key is let go; 0 without notes. */
export const endOf = (notes) => notes.reduce((end, note) => Math.max(end, note.onset + note.duration), 0);

/** Index of the first note that begins at `time` or later: notes are sorted by onset. */
export function firstFrom(notes, time) {
  let low = 0;
  let high = notes.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (notes[middle].onset < time) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Stretches [start, stop] in which a part's pedal is down; one that never rises stops at `end`. */
export function pedalSpans(pedal, part, end) {
  const spans = [];
  let start = null;
  for (const event of pedal) {
    if ((event.part ?? 0) !== part) continue;
    const down = event.value >= PEDAL_DOWN;
    if (down && start === null) start = event.time;
    if (!down && start !== null) {
      spans.push([start, event.time]);
      start = null;
    }
  }
  if (start !== null) spans.push([start, Math.max(start, end)]);
  return spans;
}

/**
 * When each note falls silent: the key is up and so is its part's pedal, or the key is struck again.
 * A key that is held longer than that keeps its own end.
 */
export function soundingEnds(notes, pedal) {
  const ends = notes.map((note) => note.onset + note.duration);
  if (!pedal.length) return ends;
  const pieceEnd = Math.max(endOf(notes), pedal.at(-1).time);
  const spans = new Map();
  const next = new Map(); // onset of the next strike of each pitch
  for (let i = notes.length - 1; i >= 0; i--) {
    const { onset, pitch, part = 0 } = notes[i];
    if (!spans.has(part)) spans.set(part, pedalSpans(pedal, part, pieceEnd));
    const span = lastSpan(spans.get(part), ends[i]);
    const strike = next.get(pitch) ?? [Infinity, Infinity]; // of this instant, and of the one after it
    const following = strike[0] > onset ? strike[0] : strike[1];
    if (span && ends[i] < span[1]) ends[i] = Math.max(ends[i], Math.min(span[1], following));
    next.set(pitch, strike[0] > onset ? [onset, strike[0]] : strike);
  }
  return ends;
}

function lastSpan(spans, time) {
  let found = null;
  for (const span of spans) {
    if (span[0] > time) break;
    found = span;
  }
  return found;
}

/** Lowest and highest pitch to draw: those of the notes with a margin, `least` semitones apart or more. */
export function pitchRange(notes, least = 36) {
  if (!notes.length) return [48, 84];
  let low = 127;
  let high = 0;
  for (const { pitch } of notes) {
    low = Math.min(low, pitch);
    high = Math.max(high, pitch);
  }
  low -= 2;
  high += 2;
  const more = Math.max(0, least - (high - low));
  low -= Math.floor(more / 2);
  high += Math.ceil(more / 2);
  if (low < 0) [low, high] = [0, Math.min(127, high - low)];
  if (high > 127) [low, high] = [Math.max(0, low - (high - 127)), 127];
  // White keys at both ends: a keyboard that ends in half a key looks cut off.
  return [isBlack(low) ? low - 1 : low, isBlack(high) ? high + 1 : high];
}
