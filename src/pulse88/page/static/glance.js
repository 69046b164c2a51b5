// A glance at a MIDI file: its notes, roughly, for a thumbnail. What counts is what the server reads.

/** [{onset, duration, pitch, velocity}] in beats of the file's own; [] where a file is stranger than a thumbnail needs. */
export function glance(buffer) {
  const data = new DataView(buffer);
  const notes = [];
  try {
    const division = data.getUint16(12);
    for (let at = 14; at + 8 <= data.byteLength; ) {
      const length = data.getUint32(at + 4);
      if (data.getUint32(at) === 0x4d54726b) readTrack(data, at + 8, at + 8 + length, division, notes); // "MTrk"
      at += 8 + length;
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
  }
  return notes.sort((a, b) => a.onset - b.onset);
}

function readTrack(data, start, stop, division, notes) {
  const held = new Map();
  let at = start;
  let tick = 0;
  let status = 0;
  const number = () => {
    let value = 0;
    for (;;) {
      const byte = data.getUint8(at++);
      value = (value << 7) | (byte & 127);
      if (byte < 128) return value;
    }
  };
  while (at < stop) {
    tick += number();
    if (data.getUint8(at) >= 128) status = data.getUint8(at++);
    if (status === 0xff) at++;
    if (status >= 0xf0) {
      const length = number();
      at += length;
      continue;
    }
    const first = data.getUint8(at++);
    const kind = status & 0xf0;
    const second = kind === 0xc0 || kind === 0xd0 ? 0 : data.getUint8(at++);
    if (kind !== 0x90 && kind !== 0x80) continue;
    const note = held.get(first);
    if (note) note.duration = Math.max(0.05, tick / division - note.onset);
    held.delete(first);
    if (kind === 0x90 && second > 0) {
      const struck = { onset: tick / division, duration: 0.05, pitch: first, velocity: second };
      held.set(first, struck);
      notes.push(struck);
    }
  }
}
