// The tree of takes and its undo.
import assert from "node:assert/strict";
import test from "node:test";

import {
  addTake, branchAt, branchAtEnd, changeTake, descendants, emptySession, History, insertNote, line, nextName, readRange, removeTake, select, withSeed,
} from "../../src/pulse88/page/static/tree.js";

const at = (onset, pitch = 60) => ({ onset, duration: 0.5, pitch, velocity: 70, part: 0 });
const seed = { notes: [at(0), at(1), at(2), at(2.01, 64), at(3)], pedal: [{ time: 0.5, value: 127, part: 0 }] };
const take = (id, parent, from, boundary) => ({ id, parent, from, boundary, name: id, kept: false, state: "done" });

function family() {
  let session = withSeed(seed);
  session = addTake(session, take("a", null, 5, 3));
  session = addTake(session, take("b", "a", 7, 5));
  session = addTake(session, take("c", null, 4, 2.01));
  session = addTake(session, take("d", "a", 6, 4));
  return { session, notes: { a: [at(4), at(5), at(6)], b: [at(5.5), at(6.5)], c: [at(2.5)], d: [at(4.2)] } };
}

test("a line is the seed and what every take on the way adds, cut where the next one leaves", () => {
  const { session, notes } = family();
  const heard = line(session, notes, "b");
  assert.deepEqual(heard.notes.map((note) => note.onset), [0, 1, 2, 2.01, 3, 4, 5, 5.5, 6.5]);
  assert.deepEqual(heard.owners, [null, null, null, null, null, "a", "a", "b", "b"]);
  assert.deepEqual(heard.joins, [{ time: 4, id: "a" }, { time: 5.5, id: "b" }]);
  assert.deepEqual(heard.pedal, seed.pedal);
});

test("a line that leaves within the seed lets the pedal rise there", () => {
  const { session, notes } = family();
  const heard = line(session, notes, "c");
  assert.deepEqual(heard.notes.map((note) => note.onset), [0, 1, 2, 2.01, 2.5]);
  assert.deepEqual(heard.pedal.at(-1), { time: 2.01, value: 0, part: 0 });
});

test("takes stand behind those of their parent", () => {
  assert.deepEqual(family().session.order, ["a", "b", "d", "c"]);
  assert.deepEqual(descendants(family().session, "a"), ["b", "d"]);
  assert.throws(() => addTake(emptySession(), take("x", "nobody", 0, 0)), /no take nobody/);
});

test("a branch belongs to the take that owns its note, whichever line it was clicked on", () => {
  const { session, notes } = family();
  assert.deepEqual(branchAt(session, notes, "b", 5), { parent: "a", from: 6, boundary: 4 });
  assert.deepEqual(branchAt(session, notes, "b", 8), { parent: "b", from: 9, boundary: 6.5 });
  assert.deepEqual(branchAt(session, notes, "b", 0), { parent: null, from: 1, boundary: 0 });
  const branched = addTake(session, take("e", "a", 6, 4));
  assert.deepEqual(line(branched, { ...notes, e: [] }, "e").notes, line(session, notes, "b").notes.slice(0, 6));
});

test("notes of one chord stay together", () => {
  const { session, notes } = family();
  assert.deepEqual(branchAt(session, notes, null, 2), { parent: null, from: 4, boundary: 2.01 });
});

test("the end of the seed is where reading ends", () => {
  const { session, notes } = family();
  assert.deepEqual(branchAtEnd(session, notes, null), { parent: null, from: 5, boundary: 3 });
  assert.deepEqual(branchAtEnd(readRange(session, 0, 1.5), notes, null), { parent: null, from: 2, boundary: 1 });
  assert.deepEqual(branchAtEnd(session, notes, "b"), { parent: "b", from: 9, boundary: 6.5 });
});

test("a take goes with all that goes on from it, and its parent is selected", () => {
  const { session } = family();
  const left = removeTake(select(session, "b"), "a");
  assert.deepEqual(left.order, ["c"]);
  assert.equal(left.selected, null);
  assert.equal(removeTake(select(session, "c"), "a").selected, "c");
});

test("undo gives back the very session, redo the other; a new step forgets what was undone", () => {
  const first = withSeed(seed);
  const history = new History(first);
  const second = addTake(first, take("a", null, 5, 3));
  history.push(second);
  assert.ok(history.undo() && history.now === first && !history.canUndo);
  assert.ok(history.redo() && history.now === second && !history.canRedo);
  history.undo();
  history.push(addTake(first, take("b", null, 5, 3)));
  assert.equal(history.redo(), false);
});

test("what the server tells of a take holds in every session that has it", () => {
  const first = withSeed(seed);
  const history = new History(first);
  history.push(addTake(first, take("a", null, 5, 3)));
  history.push(changeTake(history.now, "a", { name: "My take" }));
  history.undo();
  history.amend((session) => changeTake(session, "a", { reason: "length" }));
  assert.equal(history.now.takes.a.reason, "length");
  history.redo();
  assert.deepEqual([history.now.takes.a.name, history.now.takes.a.reason], ["My take", "length"]);
  history.undo();
  history.undo();
  assert.equal(history.now, first);
});

test("undo remembers a bounded past", () => {
  const history = new History(withSeed(seed));
  for (let i = 0; i < 500; i++) history.push(readRange(history.now, 0, i / 100));
  assert.equal(history.past.length, 200);
});

test("names count on from the first free number", () => {
  const { session } = family();
  assert.equal(nextName(session), "Take 1");
  assert.equal(nextName(changeTake(changeTake(session, "a", { name: "Take 1" }), "b", { name: "Take 3" })), "Take 2");
});

test("notes go where they belong", () => {
  const notes = [];
  for (const note of [at(1), at(3), at(2), at(2, 50), at(0)]) insertNote(notes, note);
  assert.deepEqual(notes.map((note) => [note.onset, note.pitch]), [[0, 60], [1, 60], [2, 50], [2, 60], [3, 60]]);
});
