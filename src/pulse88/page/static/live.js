// Playing live: a phrase to begin a piece with, or a duet. The roll runs with the present, notes appear as they sound.

import { seedOfNotes } from "./api.js";
import { Duet, histogram, median, now } from "./duet.js";
import { palette } from "./colours.js";
import { Hands } from "./hands.js";
import { byOnset, count, soundingEnds } from "./music.js";
import { alert, onClick, status, tell } from "./notices.js";
import { fromStart, Recording } from "./recording.js";

const PRESENT_AT = 0.62; // of the roll's width
const SCALE = 110; // pixels a second

const byId = (id) => document.getElementById(id);
const TITLES = { record: "Play in", duet: "Duet" };

export class Live {
  /** `done` hears of {notes, pedal, name} to begin a piece with, and of null. */
  constructor(sound, roll, controls, done) {
    Object.assign(this, { sound, roll, controls, done });
    this.mode = null;
    this.hands = new Hands(sound, byId("piano"), (event, time) => this.hear(event, time), (names) => this.showMidi(names));
    onClick("midi-connect", () => this.connectMidi());
    onClick("octave-down", () => this.hands.piano.shift(-1));
    onClick("octave-up", () => this.hands.piano.shift(1));
    onClick("dock-again", () => this.restart());
    onClick("dock-use", () => this.use());
    onClick("dock-close", () => this.close());
    onClick("latency", () => this.showLatency());
    for (const id of ["pause", "answer-seconds", "controls"]) {
      byId(id).addEventListener("change", () => this.mode === "duet" && this.changeDuet().catch(tell));
    }
  }

  open(mode) {
    if (this.mode) this.leave();
    this.mode = mode;
    document.body.dataset.mode = mode;
    byId("dock").hidden = false;
    byId("duet-state").hidden = false;
    byId("duet-options").hidden = mode !== "duet";
    byId("dock-title").textContent = TITLES[mode];
    byId("dock-use").textContent = mode === "duet" ? "Keep it" : "Use it";
    byId("dock-close").textContent = mode === "duet" ? "Close" : "Cancel";
    byId(mode === "duet" ? "duet" : "play-in").setAttribute("aria-pressed", "true");
    this.hands.active = true;
    this.restart();
    this.sound.load([48, 56, 60, 64, 67, 72], true);
    if (this.hands.midi.access) this.showMidi(this.hands.midi.names);
    this.frame();
  }

  restart() {
    this.duet?.end();
    this.duet = null;
    this.sound.silence();
    this.origin = null;
    this.recording = new Recording();
    this.earlier = []; // the model's notes from before settings were changed
    this.delays = []; // milliseconds from a noticed pause to the answer's first sound
    this.voices = [];
    this.shown = -1;
    this.roll.live.clear();
    this.roll.ghosts = [];
    byId("latency").hidden = true;
    byId("dock-use").disabled = true;
    byId("dock-again").disabled = true;
    if (this.mode === "duet") this.beginDuet();
    this.showTurn();
  }

  /** Other settings: nothing that was played is lost, and the model knows of it. */
  async changeDuet() {
    if (this.origin === null) return this.restart();
    const changing = this.duet;
    const { notes } = this.played();
    const { server } = await seedOfNotes(notes, []);
    if (this.mode !== "duet" || this.duet !== changing) return;
    this.earlier.push(...changing.heard(now()));
    this.silenceAnswer();
    changing.end();
    this.beginDuet(server);
    this.duet.latencies.push(...changing.latencies);
    this.showTurn();
  }

  beginDuet(seed = null) {
    const { liveliness, temperature, top_p, register, in_key } = this.controls.settings;
    const settings = Object.fromEntries(Object.entries({ liveliness, temperature, top_p, register, in_key }).filter(([, value]) => value !== undefined));
    const duet = new Duet({ settings, pause: Number(byId("pause").value), answer_seconds: Number(byId("answer-seconds").value), seed });
    this.duet = duet;
    duet.addEventListener("turn", () => this.showTurn());
    duet.addEventListener("note", ({ detail }) => this.answer(detail));
    duet.addEventListener("silence", () => this.silenceAnswer());
    duet.addEventListener("cut", ({ detail }) => this.cut(detail.time));
    duet.addEventListener("latency", () => (byId("latency").hidden = false));
    duet.addEventListener("problem", ({ detail }) => alert(detail));
  }

  // What is played.

  hear(event, time) {
    this.origin ??= time - 0.5;
    const at = time - this.origin;
    if (event.kind === "on") this.recording.down(event.pitch, event.velocity, at);
    else if (event.kind === "off") this.recording.up(event.pitch, at);
    else this.recording.setPedal(event.value, at);
    if (event.kind === "on") this.roll.live.set(event.pitch, "seed");
    if (event.kind === "off") this.roll.live.delete(event.pitch);
    this.duet?.play(event, time);
    byId("dock-use").disabled = byId("dock-again").disabled = false;
    this.showTurn();
  }

  answer({ note, answer, first }) {
    const lead = note.onset - now();
    const when = this.sound.now + Math.max(0, lead);
    const voice = this.sound.strike(note.pitch, note.velocity, when, when + note.duration);
    this.voices.push(voice);
    if (first) {
      const { context } = this.sound;
      const output = (context?.baseLatency ?? 0) + (context?.outputLatency ?? 0);
      // From the noticed pause to the sound leaving the computer, as far as the browser knows.
      this.delays.push(1000 * (Math.max(now(), note.onset) - answer.noticed + output));
    }
  }

  /** It yields: what sounds is damped, what was to come never does. */
  silenceAnswer() {
    for (const voice of this.voices) {
      if (!voice) continue;
      if (voice.start > this.sound.now) this.sound.cancel(voice);
      else this.sound.damp(voice);
    }
    this.voices = [];
  }

  cut(time) {
    for (const answer of this.duet.answers.values()) {
      for (const note of answer.notes) if (note.onset < time) note.duration = Math.min(note.duration, Math.max(0.05, time - note.onset));
    }
    this.shown = -1;
  }

  // What is seen.

  frame() {
    if (!this.mode) return;
    this.draw();
    requestAnimationFrame(() => this.frame());
  }

  draw() {
    const { roll } = this;
    const present = this.origin === null ? 0 : now() - this.origin;
    const mine = this.recording.notes;
    const theirs = this.onRoll([...this.earlier, ...(this.duet?.notes ?? [])]);
    if (mine.length + theirs.length !== this.shown) {
      this.shown = mine.length + theirs.length;
      const notes = [...mine, ...theirs].sort(byOnset);
      roll.growing = true;
      roll.show({ notes, owners: notes.map(() => null), joins: [], pedal: this.recording.pedal });
    }
    roll.unread = [0, Infinity];
    roll.ghosts = [...this.recording.held.values()].map((note) => ({ ...note, duration: present - note.onset }));
    for (const [pitch, kind] of roll.live) if (kind === "new") roll.live.delete(pitch);
    const sounding = new Set(theirs.filter((note) => note.onset <= present && present < note.onset + note.duration).map((note) => note.pitch));
    for (const pitch of this.lit ?? []) if (!sounding.has(pitch) && !roll.live.has(pitch)) this.hands.piano.light(pitch, null);
    for (const pitch of sounding) {
      if (roll.live.has(pitch)) continue;
      roll.live.set(pitch, "new");
      this.hands.piano.light(pitch, "it");
    }
    this.lit = sounding;
    roll.present = present;
    roll.position = present;
    roll.lit = false;
    const shown = roll.view.width / SCALE;
    roll.view = { ...roll.view, scale: SCALE, start: Math.max(0, present - shown * PRESENT_AT) };
    const { low, high } = roll.rows;
    const pitches = [...roll.ghosts, ...theirs].map((note) => note.pitch);
    roll.rows = { ...roll.rows, low: Math.min(low, 43, ...pitches), high: Math.max(high, 91, ...pitches) };
    roll.redraw();
  }

  /** The model's notes on the roll's clock. */
  onRoll(notes) {
    return notes.map((note) => ({ ...note, onset: note.onset - (this.origin ?? 0) }));
  }

  showTurn() {
    const said = this.mode === "duet" ? this.duetWords() : this.recordWords();
    const state = byId("duet-state");
    state.dataset.turn = said.turn;
    if (byId("duet-word").textContent !== said.word) byId("duet-word").textContent = said.word;
    byId("duet-hint").textContent = said.hint;
    byId("dock-text").textContent = said.dock;
    status(said.word);
  }

  recordWords() {
    const notes = this.recording.notes.length + this.recording.held.size;
    const dock = "on a MIDI keyboard, these keys, or the letters of your computer keyboard.";
    if (!notes) return { turn: "you", word: "Play a phrase", hint: "It is taken down from the first note on.", dock };
    return { turn: "you", word: "", hint: "", dock: `${notes} note${notes === 1 ? "" : "s"}. Use it when the phrase is whole.` };
  }

  duetWords() {
    const dock = "Play a phrase and pause: it answers. Play again and it yields.";
    const { turn } = this.duet ?? { turn: "connecting" };
    if (turn === "connecting") return { turn: "", word: "Getting ready", hint: "", dock };
    if (turn === "it") return { turn: "it", word: "Pulse88 answers", hint: "Play, and it yields.", dock };
    if (turn === "over") return { turn: "", word: "The duet is over", hint: "", dock };
    return { turn: "you", word: this.origin === null ? "You begin" : "Your turn", hint: this.duetHint(), dock };
  }

  duetHint() {
    if (this.origin === null) return "Play a phrase, then pause.";
    return this.duet?.silent ? "It had nothing to add: play on." : "";
  }

  async connectMidi() {
    const names = await this.hands.midi.connect();
    if (this.hands.midi.refusal) status(this.hands.midi.refusal);
    this.showMidi(names);
  }

  showMidi(names) {
    const button = byId("midi-connect");
    if (this.hands.midi.refusal) byId("dock-text").textContent = this.hands.midi.refusal;
    else if (names.length) button.textContent = names.length > 1 ? `${names.length} MIDI keyboards` : names[0];
    else button.textContent = this.hands.midi.access ? "No MIDI keyboard yet: plug one in" : "Connect a MIDI keyboard";
  }

  showLatency() {
    const firsts = (this.duet?.latencies ?? []).map((latency) => latency.first);
    const word = (values) => `${Math.round(median(values))} ms`;
    const sounding = this.delays.length ? `, sounding after ${word(this.delays)}` : "";
    byId("latency-text").textContent = firsts.length
      ? `From the noticed pause to the first note of ${count(firsts.length, "answer")}: sent by the server after ${word(firsts)}` +
        `${sounding} (medians). The pause itself, ${byId("pause").value} s, comes before.`
      : "No answer yet.";
    byId("latency-dialog").showModal();
    drawHistogram(byId("latency-chart"), histogram(firsts));
  }

  // Leaving.

  /** {notes, pedal} of all that was heard by now, time 0 a moment before the first. */
  played() {
    const time = now();
    const present = time - (this.origin ?? time);
    const pedal = this.mode === "duet" ? [] : this.recording.pedal;
    // In a duet the pedal is in the durations: it holds the player's notes, not the model's.
    const mine = this.recording.until(present);
    const ends = this.mode === "duet" ? soundingEnds(mine, this.recording.pedal) : [];
    const own = mine.map((note, i) => ({ ...note, duration: ends[i] ? ends[i] - note.onset : note.duration }));
    const theirs = this.onRoll([...this.earlier, ...(this.duet?.heard(time) ?? [])]);
    return fromStart([...own, ...theirs].sort(byOnset), pedal);
  }

  use() {
    const { notes, pedal } = this.played();
    if (!notes.length) return status("Nothing was played yet.");
    return this.finish({ notes, pedal, name: nameNow(this.mode === "duet" ? "Duet" : "Played in") });
  }

  /** Ends only when the piece has been taken over: what was played isn't lost to an error. */
  finish(piece) {
    return Promise.resolve(this.done(piece)).catch(tell);
  }

  close() {
    return this.finish(null);
  }

  leave() {
    if (!this.mode) return;
    this.duet?.end();
    this.duet = null;
    this.hands.letGo();
    this.hands.active = false;
    this.sound.silence();
    this.mode = null;
    byId("dock").hidden = true;
    byId("duet-state").hidden = true;
    for (const id of ["duet", "play-in"]) byId(id).setAttribute("aria-pressed", "false");
    for (const pitch of this.hands.piano.keys.keys()) this.hands.piano.light(pitch, null);
    Object.assign(this.roll, { present: null, ghosts: [], growing: false, fitted: true, follow: true });
    this.roll.live.clear();
    status("");
  }
}

function nameNow(what) {
  return `${what}, ${new Date().toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" })}`;
}

function drawHistogram(canvas, bars) {
  const ratio = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const c = canvas.getContext("2d");
  c.scale(ratio, ratio);
  const style = getComputedStyle(document.documentElement);
  const most = Math.max(1, ...bars.map((bar) => bar.count));
  const step = width / bars.length;
  c.font = "11px ui-sans-serif, system-ui, sans-serif";
  bars.forEach(({ from, count }, i) => {
    const tall = (count / most) * (height - 44);
    c.fillStyle = style.getPropertyValue("--new");
    if (count) c.fillRect(i * step + 2, height - 22 - tall, step - 4, tall);
    c.fillStyle = style.getPropertyValue("--muted");
    if (count) c.fillText(String(count), i * step + step / 2 - 3, height - 28 - tall);
    if (i % 2 === 0) c.fillText(i === bars.length - 1 ? `${from}+` : `${from}`, i * step, height - 6);
  });
  c.fillStyle = palette().line;
  c.fillRect(0, height - 22, width, 1);
  c.fillStyle = style.getPropertyValue("--muted");
  c.fillText("ms", width - 16, height - 6);
}

