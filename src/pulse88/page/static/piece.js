// The piece that is open: its seed, its tree of takes, what is being made, and what the server and the browser know.

import { continuations, noteFrom, Problem, revive, seedOfFile, seedOfNotes, takeFile } from "./api.js";
import * as store from "./store.js";
import { addTake, branchAtEnd, changeTake, emptySession, History, insertNote, line, nextName } from "./tree.js";
import { readRange, removeTake, select, withSeed } from "./tree.js";

const DEFAULT_SEED_NOTES = 128;
const SAVE_AFTER = 400; // milliseconds, in which further changes may come

export class Piece extends EventTarget {
  constructor() {
    super();
    this.limits = { seed_notes: 511 };
    this.runs = new Set();
    this.saving = null;
    this.clear();
  }

  clear() {
    if (this.saving) this.save();
    this.stop();
    this.id = newId();
    this.name = "";
    this.history = new History(emptySession());
    this.beforeDrag = null;
    this.notes = {}; // of each take, its own
    this.servers = { seed: null, takes: {} }; // ids on the server, which may have forgotten them
    this.files = { seed: null, takes: {} }; // MIDI files, by which a server makes them again
  }

  get session() {
    return this.history.now;
  }

  get isMaking() {
    return this.runs.size > 0;
  }

  take(id) {
    return this.session.takes[id];
  }

  isGrowing(id) {
    return id !== null && ["waiting", "making"].includes(this.take(id)?.state);
  }

  heard(id = this.session.selected) {
    return line(this.session, this.notes, id);
  }

  // Where pieces come from.

  async openFile(bytes, name) {
    this.begin(await seedOfFile(bytes), name, bytes);
  }

  /** Notes of the model, as a duet has them, keep their colour: to the server they are a seed's. */
  async openNotes(notes, pedal, name) {
    const seed = await seedOfNotes(notes, pedal);
    const models = notes.filter((note) => note.model);
    // The server rounds times.
    const isModel = ({ onset, pitch }) => models.some((note) => note.pitch === pitch && Math.abs(note.onset - onset) < 0.002);
    this.begin({ ...seed, notes: seed.notes.map((note) => ({ ...note, model: isModel(note) })) }, name);
  }

  begin({ server, ...seed }, name, bytes = null) {
    this.clear();
    this.name = name;
    this.servers.seed = server;
    this.files.seed = bytes;
    const session = withSeed(seed);
    this.history.reset(readRange(session, readsFrom(seed), session.read.to));
    this.changed("piece");
  }

  async load(id) {
    const saved = await store.piece(id);
    if (!saved) return false;
    this.clear();
    const { name, session, notes, servers, files } = saved;
    Object.assign(this, { id, name, notes, servers, files });
    const takes = Object.fromEntries(Object.entries(session.takes).map(([key, take]) => [key, settled(take)]));
    this.history.reset({ ...session, takes });
    this.tell("piece");
    return true;
  }

  // What can be undone.

  push(session) {
    this.history.push(session);
    this.changed("session");
  }

  select(id) {
    if (id === this.session.selected) return;
    // Looking at another take is no step to undo.
    this.history.now = select(this.session, id);
    this.changed("session");
  }

  /** While a handle is dragged every value is shown; the step to undo is the whole drag. */
  setRead(from, to, final) {
    this.beforeDrag ??= this.session;
    this.history.now = readRange(this.session, from, to);
    if (!final) return this.tell("session");
    const after = this.history.now;
    this.history.now = this.beforeDrag;
    this.beforeDrag = null;
    this.push(after);
  }

  keep(id) {
    this.push(changeTake(this.session, id, { kept: !this.take(id).kept }));
  }

  rename(id, name) {
    if (name.trim() && name.trim() !== this.take(id).name) this.push(changeTake(this.session, id, { name: name.trim() }));
  }

  remove(id) {
    this.push(removeTake(this.session, id));
    this.stopOrphans();
  }

  undo() {
    if (!this.history.undo()) return false;
    this.stopOrphans();
    this.changed("session");
    return true;
  }

  redo() {
    if (!this.history.redo()) return false;
    this.changed("session");
    return true;
  }

  // Making.

  /** Notes of the seed that the model is to read. */
  readCount() {
    const { seed, read } = this.session;
    const inside = seed.notes.filter(({ onset }) => onset >= read.from && onset <= read.to).length;
    return Math.min(Math.max(inside, 1), this.limits.seed_notes);
  }

  /** New takes from a branching point ({parent, from, boundary}, see tree.js). Resolves when all are made or stopped. */
  async continue_(settings, { takes = 1, randomSeed = null, branch = null } = {}) {
    if (this.isMaking) this.stop();
    const where = branch ?? branchAtEnd(this.session, this.notes, this.session.selected);
    let session = this.session;
    const ids = [];
    for (let number = 0; number < takes; number++) {
      const id = newId();
      const take = { id, ...where, name: nextName(session), kept: false, state: "waiting", created: Date.now(), settings };
      session = addTake(session, take);
      this.notes[id] = [];
      ids.push(id);
    }
    const run = { abort: new AbortController(), ids, local: new Map(), where, began: performance.now() };
    this.runs.add(run);
    this.push(select(session, ids[0]));
    const request = { settings, takes, ...(randomSeed === null ? {} : { random_seed: randomSeed }) };
    try {
      await this.make(run, request);
    } catch (error) {
      if (error.name !== "AbortError") this.fail(run, error);
    } finally {
      this.runs.delete(run);
      await this.finish(run);
    }
  }

  /** Asks the server, and once more with everything that it needs if it has forgotten what is continued. */
  async make(run, request) {
    try {
      await this.listen(run, { ...request, ...(await this.source(run.where, request.settings)) });
    } catch (error) {
      if (!(error instanceof Problem) || error.status !== 404 || run.local.size) throw error;
      this.servers = { seed: null, takes: {} };
      await this.listen(run, { ...request, ...(await this.source(run.where, request.settings)) });
    }
  }

  /** The part of a request that says what is continued. */
  async source({ parent, from, boundary }, settings) {
    const { read, seed } = this.session;
    if (parent === null) {
      // As the server reads it by itself: it has already, if it had the time.
      if (from === seed.notes.length && read.from === readsFrom(seed)) return { seed: await this.seedId() };
      const seedNotes = boundary > read.from ? this.readCount() : DEFAULT_SEED_NOTES;
      const start = boundary > read.from ? read.from : 0;
      const stop = from < seed.notes.length ? seed.notes[from].onset : boundary + 1;
      return { seed: await this.seedId(), seed_range: [start, stop], settings: { ...settings, seed_notes: seedNotes } };
    }
    const note = from - this.take(parent).from - 1;
    try {
      return { parent: { take: await this.takeId(parent), note } };
    } catch (error) {
      if (!(error instanceof Problem) || error.status === 0) throw error;
      // Neither the server nor its file knows the take any more: its notes do.
      const heard = line(this.session, this.notes, parent);
      const whole = await seedOfNotes(heard.notes.slice(0, from), heard.pedal);
      return { seed: whole.server };
    }
  }

  async seedId() {
    const { seed } = this.session;
    const file = this.files.seed;
    this.servers.seed ??= (await (file ? seedOfFile(file) : seedOfNotes(seed.notes, seed.pedal))).server;
    return this.servers.seed;
  }

  async takeId(id) {
    if (!this.servers.takes[id]) {
      const file = this.files.takes[id];
      if (!file) throw new Problem("The server has forgotten this take.", 404);
      this.servers.takes[id] = await revive(file);
    }
    return this.servers.takes[id];
  }

  async listen(run, request) {
    for await (const event of continuations(request, run.abort.signal)) {
      if (run.abort.signal.aborted) return;
      if (event.type === "error" && !event.take) throw new Problem(event.problem.detail ?? event.problem.title);
      if (event.number !== undefined) run.local.set(event.take, run.ids[event.number]);
      const id = run.local.get(event.take);
      if (id) this.hear(id, event, run);
    }
  }

  hear(id, event, run) {
    this.servers.takes[id] = event.take;
    if (event.type === "queued") this.amend(id, { waiting: event.position });
    else if (event.type === "begun") {
      this.amend(id, { state: "making", waiting: 0, randomSeed: event.random_seed, key: event.key, remarks: this.news(event.remarks ?? []) });
    } else if (event.type === "note") {
      insertNote(this.notes[id], noteFrom(event.note));
      this.saveSoon();
      this.dispatchEvent(new CustomEvent("notes", { detail: { id, run, first: event.index === 0 } }));
    } else if (event.type === "progress") this.amend(id, { share: event.share, candidate: event.candidate }, "progress");
    else if (event.type === "done") {
      const { reason, choice, originality } = event;
      this.amend(id, { state: "done", reason, choice, originality, share: 1 });
    } else if (event.type === "error") {
      this.amend(id, { state: "failed" });
      this.dispatchEvent(new CustomEvent("problem", { detail: event.problem.detail ?? event.problem.title }));
    }
  }

  /** Remarks that the seed hasn't got already. */
  news(remarks) {
    return remarks.filter((remark) => !this.session.seed.remarks.includes(remark));
  }

  amend(id, change, told = "session") {
    this.history.amend((session) => changeTake(session, id, change));
    if (told === "session") this.changed(told);
    else this.tell(told);
  }

  fail(run, error) {
    this.dispatchEvent(new CustomEvent("problem", { detail: error.message }));
    for (const id of run.ids) if (this.take(id)?.state !== "done") this.amend(id, { state: "failed" });
  }

  /** Settles what was under way, lets go of takes without a note, and keeps the files of the others. */
  async finish(run) {
    for (const id of run.ids) {
      const empty = !this.notes[id]?.length;
      this.history.amend((session) => {
        if (!session.takes[id]) return session;
        return empty ? removeTake(session, id) : { ...session, takes: { ...session.takes, [id]: settled(session.takes[id]) } };
      });
    }
    this.changed("session");
    for (const id of run.ids.filter((each) => this.notes[each]?.length && this.servers.takes[each])) {
      try {
        this.files.takes[id] = await (await takeFile(this.servers.takes[id], "mid")).arrayBuffer();
      } catch (error) {
        if (!(error instanceof Problem)) throw error;
        // Its notes are kept all the same, and can be continued.
      }
    }
    this.changed("saved");
  }

  /** Stops all that is being made; what has come stays. */
  stop() {
    for (const run of this.runs) run.abort.abort();
  }

  stopOrphans() {
    for (const run of this.runs) if (!run.ids.some((id) => this.take(id))) run.abort.abort();
  }

  /** A take's file for the user, as a Blob. */
  async file(id, kind, part) {
    const get = async () => takeFile(await this.takeId(id), kind, part);
    try {
      return await get();
    } catch (error) {
      if (error.status !== 404 || !this.files.takes[id]) throw error;
      delete this.servers.takes[id];
      return get();
    }
  }

  // Telling and saving.

  changed(what) {
    this.tell(what);
    this.saveSoon();
  }

  saveSoon() {
    this.saving ??= setTimeout(() => this.save(), SAVE_AFTER);
  }

  tell(what) {
    this.dispatchEvent(new Event(what));
  }

  async save() {
    clearTimeout(this.saving);
    this.saving = null;
    if (!this.session.seed) return;
    const { id, name, session, servers } = this;
    const mine = (all) => Object.fromEntries(Object.entries(all).filter(([key]) => session.takes[key]));
    const kept = session.order.filter((key) => session.takes[key].kept).map((key) => session.takes[key].name);
    const files = { seed: this.files.seed, takes: mine(this.files.takes) };
    const saved = { id, name, session, servers, kept, files, notes: mine(this.notes), updated: Date.now() };
    try {
      await store.save(saved);
      store.settings.write("last", id);
    } catch {
      if (!this.unsaved) this.dispatchEvent(new CustomEvent("problem", { detail: "This browser keeps nothing here (a private window, or full): download what you like before you leave." }));
      this.unsaved = true;
    }
  }
}

/** 32 hex digits. (crypto.randomUUID is only there on this machine's own address or with https.) */
const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

/** Where the model begins to read a seed unless it is told. */
const readsFrom = (seed) => (seed.readFrom > 0 ? seed.notes[seed.readFrom].onset : 0);

/** A take as it is after a reload, when nothing is under way any more. */
function settled(take) {
  return ["waiting", "making"].includes(take.state) ? { ...take, state: "done", reason: "stopped" } : take;
}
