// The tree of takes, as plain immutable values: every operation gives a new session, and undo is the one before.
//
//   session  {seed: {notes, pedal, ...} | null, takes: {id: take}, order: [id], selected: id | null, read: {from, to}}
//   take     {id, parent: id | null, from, name, kept, state, ...}; parent null is the seed itself
//
// `from` is how many notes of the parent's line a take goes on from. The notes that a take adds are kept beside the
// session (`notes`, {id: [note]}), because they grow while the take is being made and undo has nothing to do with that.

import { byOnset, endOf } from "./music.js";

const DEPTH = 200; // steps of undo

export const emptySession = () => ({ seed: null, takes: {}, order: [], selected: null, read: { from: 0, to: 0 } });

export function withSeed(seed) {
  return { ...emptySession(), seed, read: { from: 0, to: endOf(seed.notes) } };
}

/** A take goes in behind those of its parent, so that the order is that of the tree read from top to bottom. */
export function addTake(session, take) {
  if (take.parent !== null && !session.takes[take.parent]) throw new Error(`no take ${take.parent} to go on from`);
  const order = [...session.order];
  const family = new Set([take.parent, ...descendants(session, take.parent)]);
  let at = order.length;
  if (take.parent !== null) at = order.findLastIndex((id) => family.has(id)) + 1;
  order.splice(at, 0, take.id);
  return { ...session, takes: { ...session.takes, [take.id]: take }, order, selected: take.id };
}

export function changeTake(session, id, change) {
  if (!session.takes[id]) return session;
  return { ...session, takes: { ...session.takes, [id]: { ...session.takes[id], ...change } } };
}

/** Without the take and everything that goes on from it; its parent is selected if what was selected went. */
export function removeTake(session, id) {
  const gone = new Set([id, ...descendants(session, id)]);
  const takes = Object.fromEntries(Object.entries(session.takes).filter(([key]) => !gone.has(key)));
  const selected = gone.has(session.selected) ? session.takes[id].parent : session.selected;
  return { ...session, takes, order: session.order.filter((key) => !gone.has(key)), selected };
}

export const select = (session, id) => (session.selected === id ? session : { ...session, selected: id });
export const readRange = (session, from, to) => ({ ...session, read: { from, to } });

export function children(session, id) {
  return session.order.filter((key) => session.takes[key].parent === id);
}

export function descendants(session, id) {
  return children(session, id).flatMap((key) => [key, ...descendants(session, key)]);
}

/** From the seed's child down to the take itself. */
export function path(session, id) {
  const ids = [];
  for (let at = id; at !== null; at = session.takes[at].parent) ids.unshift(at);
  return ids;
}

export const depth = (session, id) => path(session, id).length - 1;

/**
 * What one hears along a take (null: the seed alone).
 * {notes, owners: [id | null of each note], joins: [{time, id}], pedal, cut: seconds of the seed that stay}
 */
export function line(session, notes, id) {
  let heard = session.seed ? session.seed.notes : [];
  let owners = new Array(heard.length).fill(null);
  const joins = [];
  let cut = Infinity;
  for (const step of id === null ? [] : path(session, id)) {
    const { from, boundary } = session.takes[step];
    if (from < heard.length) {
      heard = heard.slice(0, from);
      owners = owners.slice(0, from);
      if (!owners.length || owners.at(-1) === null) cut = boundary;
      while (joins.length && joins.at(-1).time > boundary) joins.pop();
    }
    const own = notes[step] ?? [];
    joins.push({ time: own.length ? own[0].onset : boundary, id: step });
    heard = heard.concat(own);
    owners = owners.concat(new Array(own.length).fill(step));
  }
  return { notes: heard, owners, joins, pedal: pedalUntil(session.seed?.pedal ?? [], cut), cut };
}

/** The pedal up to a cut, where it rises. */
function pedalUntil(pedal, cut) {
  if (cut === Infinity) return pedal;
  const before = pedal.filter((event) => event.time <= cut);
  const parts = new Set(before.map((event) => event.part ?? 0));
  return [...before, ...[...parts].map((part) => ({ time: cut, value: 0, part }))];
}

/**
 * Where a new take would leave the line of `id` after its note `index`: {parent, from, boundary}.
 * The notes of one chord stay together, and the take that owns the note becomes the parent.
 */
export function branchAt(session, notes, id, index) {
  const heard = line(session, notes, id);
  const boundary = heard.notes[index].onset;
  let last = index;
  while (last + 1 < heard.notes.length && heard.notes[last + 1].onset - boundary < 0.03) last++;
  return { parent: heard.owners[last], from: last + 1, boundary: heard.notes[last].onset };
}

/** As branchAt, behind the last note of the line; in the seed, behind the last one that the model is to read. */
export function branchAtEnd(session, notes, id) {
  const heard = line(session, notes, id);
  let last = heard.notes.length - 1;
  if (id === null) while (last > 0 && heard.notes[last].onset > session.read.to) last--;
  return { parent: id, from: last + 1, boundary: last < 0 ? 0 : heard.notes[last].onset };
}

/** "Take 3": the first number that no take has. */
export function nextName(session) {
  const taken = new Set(Object.values(session.takes).map((take) => take.name));
  let number = 1;
  while (taken.has(`Take ${number}`)) number++;
  return `Take ${number}`;
}

export function insertNote(notes, note) {
  if (!notes.length || byOnset(notes.at(-1), note) <= 0) notes.push(note);
  else notes.splice(notes.findLastIndex((other) => byOnset(other, note) <= 0) + 1, 0, note);
}

/** Undo and redo over whole sessions. */
export class History {
  constructor(session) {
    this.past = [];
    this.future = [];
    this.now = session;
  }

  /** A step that can be undone. */
  push(session) {
    if (session === this.now) return;
    this.past.push(this.now);
    if (this.past.length > DEPTH) this.past.shift();
    this.future = [];
    this.now = session;
  }

  /** A change that is none of the user's, in the past and the future too: a take has ended, was named by the server. */
  amend(change) {
    this.past = this.past.map(change);
    this.future = this.future.map(change);
    this.now = change(this.now);
  }

  /** Starts afresh: a new piece. */
  reset(session) {
    this.past = [];
    this.future = [];
    this.now = session;
  }

  get canUndo() {
    return this.past.length > 0;
  }

  get canRedo() {
    return this.future.length > 0;
  }

  undo() {
    if (!this.canUndo) return false;
    this.future.push(this.now);
    this.now = this.past.pop();
    return true;
  }

  redo() {
    if (!this.canRedo) return false;
    this.past.push(this.now);
    this.now = this.future.pop();
    return true;
  }
}
