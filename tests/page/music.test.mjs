// Notes, pedal, pitch names and what a thumbnail reads of a file.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import test from "node:test";

import { histogram, median } from "../../src/pulse88/page/static/duet.js";
import { glance } from "../../src/pulse88/page/static/glance.js";
import { letterOf, STEPS } from "../../src/pulse88/page/static/keymap.js";
import { understand } from "../../src/pulse88/page/static/midi_in.js";
import { clock, count, firstFrom, keyName, keySpoken, pedalSpans, pitchRange, soundingEnds } from "../../src/pulse88/page/static/music.js";
import { fromStart, Recording } from "../../src/pulse88/page/static/recording.js";

const note = (onset, duration, pitch = 60, part = 0) => ({ onset, duration, pitch, velocity: 70, part });

test("names and clocks", () => {
  assert.deepEqual([21, 60, 61, 63, 108].map(keyName), ["A0", "C4", "C♯4", "E♭4", "C8"]);
  assert.equal(keySpoken(61), "C sharp 4");
  assert.deepEqual([0, 59.99, 75.42].map((time) => clock(time)), ["0:00", "0:59", "1:15"]);
  assert.deepEqual([0.96, 59.96, 75.42].map((time) => clock(time, true)), ["0:00.9", "0:59.9", "1:15.4"]);
  assert.deepEqual([count(1, "note"), count(1204, "note")], ["1 note", "1,204 notes"]);
});

test("the pedal holds notes until it rises, or the key is struck again", () => {
  const pedal = [{ time: 0.1, value: 127, part: 0 }, { time: 3, value: 10, part: 0 }];
  const notes = [note(0, 0.5), note(0, 5, 64), note(0.2, 0.3, 62), note(1, 0.5), note(1, 0.5, 67, 1), note(3.5, 0.5)];
  assert.deepEqual(soundingEnds(notes, pedal), [1, 5, 3, 3, 1.5, 4]);
});

test("a pedal that never rises rises with the end of the piece", () => {
  assert.deepEqual(pedalSpans([{ time: 1, value: 64, part: 0 }, { time: 1.5, value: 63, part: 0 }, { time: 2, value: 90, part: 0 }], 0, 4), [[1, 1.5], [2, 4]]);
  assert.deepEqual(soundingEnds([note(0, 0.5), note(3, 1, 62)], [{ time: 0.2, value: 127, part: 0 }]), [4, 4]);
});

test("two strikes of a key at one instant don't cut each other", () => {
  const pedal = [{ time: 0, value: 127, part: 0 }, { time: 2, value: 0, part: 0 }];
  assert.deepEqual(soundingEnds([note(0, 0.5), note(0, 0.7), note(1, 0.2)], pedal), [1, 1, 2]);
});

test("the first note from a time on", () => {
  const notes = [note(0, 1), note(1, 1), note(1, 1, 64), note(2, 1)];
  assert.deepEqual([-1, 0, 0.5, 1, 1.5, 9].map((time) => firstFrom(notes, time)), [0, 0, 1, 1, 3, 4]);
});

test("the rows of a roll end on white keys, hold all notes and are never few", () => {
  for (const pitches of [[60], [21, 108], [0], [127], [61, 63, 70], [36, 100]]) {
    const [low, high] = pitchRange(pitches.map((pitch) => note(0, 1, pitch)));
    assert.ok(low >= 0 && high <= 127 && high - low >= 36, `${low} ${high}`);
    assert.ok(low <= Math.min(...pitches) && high >= Math.max(...pitches));
    assert.ok([0, 2, 4, 5, 7, 9, 11].includes(low % 12) && [0, 2, 4, 5, 7, 9, 11].includes(high % 12));
  }
});

test("MIDI messages, a strike without velocity being an end", () => {
  assert.deepEqual(understand([0x93, 60, 80]), { kind: "on", pitch: 60, velocity: 80 });
  assert.deepEqual(understand([0x90, 60, 0]), { kind: "off", pitch: 60 });
  assert.deepEqual(understand([0x80, 60, 64]), { kind: "off", pitch: 60 });
  assert.deepEqual(understand([0xb0, 64, 127]), { kind: "pedal", value: 127 });
  assert.deepEqual([[0xb0, 1, 3], [0xfe], [0xe0, 0, 64]].map(understand), [null, null, null]);
});

test("the computer's keys are a piano's", () => {
  assert.deepEqual(["KeyA", "KeyW", "KeyS", "KeyF", "KeyK", "Quote"].map((code) => STEPS.get(code)), [0, 1, 2, 5, 12, 17]);
  assert.equal(new Set(STEPS.values()).size, STEPS.size);
  assert.deepEqual([0, 1, 16, 17, 30].map(letterOf), ["A", "W", ";", "'", ""]);
});

test("what is played becomes a seed that begins at once", () => {
  const recording = new Recording();
  recording.down(60, 80, 5);
  recording.down(64, 70, 5.25);
  recording.up(60, 5.5);
  recording.setPedal(127, 5.1);
  recording.down(64, 75, 6); // struck again while it is down
  assert.equal(recording.until(6.5).length, 3);
  const { notes, pedal } = fromStart(recording.until(7), recording.pedal);
  const rows = notes.map(({ onset, duration, pitch }) => [onset, duration, pitch].map((value) => Math.round(value * 1000) / 1000));
  assert.deepEqual(rows, [[0.1, 0.5, 60], [0.35, 0.75, 64], [1.1, 1, 64]]);
  assert.ok(Math.abs(pedal[0].time - 0.2) < 1e-9);
  assert.deepEqual(fromStart(new Recording().until(3), []), { notes: [], pedal: [] });
});

test("latencies are counted, the slowest in the last bar", () => {
  assert.deepEqual(histogram([0, 24, 25, 80, 5000], 25, 4).map((bar) => bar.count), [2, 1, 0, 2]);
  assert.deepEqual([median([]), median([3]), median([4, 1, 2, 3])], [null, 3, 2.5]);
});

test("a glance at a MIDI file sees its notes, and at anything else none", async () => {
  const bytes = await readFile(new URL("../../examples/motif/seed.mid", import.meta.url));
  const notes = glance(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
  assert.equal(notes.length, 4);
  assert.ok(notes.every((each) => each.duration > 0.05 && each.velocity > 0));
  assert.deepEqual(glance(new ArrayBuffer(3)), []);
  assert.deepEqual(glance(new TextEncoder().encode("MThd, but then nothing that was ever a track at all").buffer), []);
});
