// Layout on the screen, and what sounds when.
import assert from "node:assert/strict";
import test from "node:test";

import { lengthWord, mood, sampling, settingsOf } from "../../src/pulse88/page/static/controls.js";
import { mayRun, SongClock, soundingAt, Walker } from "../../src/pulse88/page/static/schedule.js";
import { bounded, fitScale, following, paging, pitchAt, rowHeight, stopOf, ticks, tickStep, timeOf, visible, xOf, yOf, zoomed } from "../../src/pulse88/page/static/view.js";

const view = { start: 10, scale: 50, width: 1000 };
const note = (onset) => ({ onset, duration: 0.5, pitch: 60, velocity: 70 });

test("pixels and seconds are two ways to say the same", () => {
  for (const time of [0, 10, 12.5, 30]) assert.ok(Math.abs(timeOf(view, xOf(view, time)) - time) < 1e-9);
  assert.equal(stopOf(view), 30);
});

test("zooming keeps what is under the pointer, and stays within its bounds", () => {
  for (const factor of [0.5, 0.9, 1.1, 3]) {
    const after = zoomed(view, factor, 400, 300);
    assert.ok(Math.abs(timeOf(after, 400) - timeOf(view, 400)) < 1e-9);
  }
  assert.equal(zoomed(view, 1e6, 0, 300).scale, 600);
  assert.ok(zoomed(view, 1e-6, 0, 3600).scale > 0.1);
  assert.equal(bounded({ ...view, start: -5 }, 100).start, 0);
  assert.equal(bounded({ ...view, start: 500 }, 100).start, 90);
});

test("all of a piece fits", () => {
  for (const length of [1, 20, 90, 400]) assert.ok(fitScale(1000, length) * length <= 1000 + 1e-9);
});

test("the view follows, or turns pages", () => {
  assert.ok(Math.abs(xOf(following(view, 60, 300), 60) - 420) < 1e-9);
  assert.equal(following(view, 2, 300).start, 0);
  assert.equal(paging(view, 20, 300), view);
  const turned = paging(view, 29.9, 300);
  assert.ok(turned.start > 29 && xOf(turned, 29.9) > 0);
});

test("ticks are round, far enough apart and all within the view", () => {
  for (const scale of [0.5, 3, 24, 110, 600]) {
    const times = ticks({ start: 3.3, scale, width: 900 });
    assert.ok(tickStep(scale) * scale >= 84);
    assert.ok(times.every((time) => time >= 3.3 - 1e-6 && time <= 3.3 + 900 / scale + 1e-6));
  }
});

test("what may be seen is all that reaches into the view, and little more", () => {
  const onsets = Float64Array.from({ length: 5000 }, (_, i) => i / 10);
  const [first, last] = visible(onsets, 100, 120, 2);
  assert.deepEqual([onsets[first], onsets[last - 1]], [98, 119.9]);
  assert.deepEqual(visible(new Float64Array(0), 0, 1, 1), [0, 0]);
});

test("rows and pitches", () => {
  const rows = { low: 48, high: 84, height: 370 };
  assert.equal(rowHeight(rows), 10);
  for (let pitch = 48; pitch <= 84; pitch++) assert.equal(pitchAt(rows, yOf(rows, pitch) + 5), pitch);
});

test("the song's clock can be held and goes on where it was", () => {
  const clock = new SongClock();
  clock.start(100, 5);
  assert.equal(clock.at(99), 5); // a moment before it begins
  assert.equal(clock.at(102), 7);
  assert.equal(clock.audioTimeOf(8), 103);
  clock.stop(102);
  assert.equal(clock.at(110), 7);
  clock.start(110);
  assert.equal(clock.at(111), 8);
});

test("every note falls due once, whatever comes late", () => {
  const notes = [note(0), note(0.1), note(1)];
  const walker = new Walker();
  assert.deepEqual(walker.due(notes, 0, 0.2), [0, 1]);
  notes.splice(2, 0, note(0.15));
  assert.deepEqual(walker.due(notes, 0.2, 0.4), [2]);
  assert.deepEqual(walker.due(notes, 0.4, 1.2), [3]);
  assert.deepEqual(walker.due(notes, 0.4, 1.2), []);
  walker.seek(0.05);
  assert.deepEqual(walker.due(notes, 0.05, 0.2), [1, 2]);
});

test("notes in a walk of small steps fall due exactly once each", () => {
  const notes = Array.from({ length: 400 }, (_, i) => note(i * 0.037));
  const walker = new Walker();
  const given = [];
  for (let time = 0; time < 16; time += 0.03) given.push(...walker.due(notes, time, time + 0.16));
  assert.deepEqual(given, notes.map((_, i) => i));
});

test("a song runs as far as it is made, and a held one waits for a cushion", () => {
  assert.ok(mayRun(5, 4, false, false));
  assert.ok(!mayRun(5, 5.01, true, false));
  assert.ok(mayRun(5, 5.2, true, false));
  assert.ok(!mayRun(5, 5.2, true, true));
  assert.ok(mayRun(5, 5.5, true, true));
});

test("a seek hears the chord that is held there", () => {
  assert.deepEqual(soundingAt([note(0), note(1), note(2)], [5, 1.5, 2.5], 2.2), [0, 2]);
});

test("controls say what the server is asked", () => {
  const calm = { length: 3, liveliness: 0.5, custom: false, register: [21, 108], density: [0, 20], inKey: false, ending: null, bestOf: 1 };
  assert.deepEqual(settingsOf(calm), { seconds: 20, liveliness: 0.5 });
  const shaped = { ...calm, custom: true, temperature: 1.2, topP: 0.9, register: [48, 108], density: [3, 20], inKey: true, ending: 10, bestOf: 4 };
  assert.deepEqual(settingsOf(shaped), {
    seconds: 10, end_within: 10, temperature: 1.2, top_p: 0.9, register: [48, 108], density: [3, null], in_key: true, best_of: 4,
  });
  const { temperature, top_p: topP } = sampling(0.5);
  assert.deepEqual([temperature, topP], [1, 0.97]);
  assert.deepEqual([sampling(1).top_p, sampling(0).temperature], [0.995, 0.7]);
  assert.deepEqual([0, 0.3, 0.5, 0.75, 1].map(mood), ["calm", "gentle", "natural", "lively", "daring"]);
  assert.deepEqual([5, 60, 90, 120].map(lengthWord), ["5 seconds", "1 minute", "1 minute 30", "2 minutes"]);
});
