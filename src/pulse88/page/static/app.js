// The page: puts piece, player, roll, lanes and controls together. Each of them knows nothing of the others.

import * as api from "./api.js";
import { forgetPalette } from "./colours.js";
import { Controls, fill } from "./controls.js";
import { isForPiano } from "./keymap.js";
import { Lanes } from "./lanes.js";
import { Live } from "./live.js";
import { clock, count, endOf, firstFrom, keyName, keySpoken } from "./music.js";
import { alert, onClick, prepareNotices, quiet, status, tell } from "./notices.js";
import { Piece } from "./piece.js";
import { Player } from "./player.js";
import { Roll, RULER } from "./roll.js";
import { showShelf } from "./shelf.js";
import { MIDDLE, Sound } from "./sound.js";
import * as store from "./store.js";
import { TakeMenu } from "./take_menu.js";
import { branchAt } from "./tree.js";
import { showExamples } from "./welcome.js";

const byId = (id) => document.getElementById(id);
const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
const LARGEST_FILE = 2 ** 21; // until the server has told its own limit

const sound = new Sound(api.samples, async (address) => {
  const response = await fetch(address);
  if (!response.ok) throw new Error("The piano's sounds don't load.");
  return response.arrayBuffer();
});
const player = new Player(sound);
const roll = new Roll(byId("roll"), calm);
const piece = new Piece();
const controls = new Controls();
const menu = new TakeMenu(piece);
const lanes = new Lanes(byId("lanes"), {
  pick: (id, time) => {
    piece.select(id);
    if (time !== undefined) player.seek(time);
  },
  keep: (id) => piece.keep(id),
  menu: (id, button) => menu.open(id, button),
  read: (from, to, final) => piece.setRead(from, to, final),
});
const live = new Live(sound, roll, controls, begin);
const measures = { clickToSound: [], clickToNote: [] }; // milliseconds
let limits = { upload_bytes: LARGEST_FILE };
let shown = null; // what the roll shows: {id, count, session parts}
let asked = null; // the click on Continue whose first note hasn't sounded yet

// Beginning a piece.

/** With what was played live, {notes, pedal, name}; with null back to the piece that was open. */
async function begin(from) {
  if (from) await piece.openNotes(from.notes, from.pedal, from.name);
  live.leave();
  refresh(true);
}

async function openFile(file) {
  const name = file.name.replace(/\.midi?$/i, "");
  if (file.size > limits.upload_bytes) {
    const [size, most] = [file.size, limits.upload_bytes].map((bytes) => (bytes / 2 ** 20).toFixed(1));
    throw new Error(`The file ${file.name} has ${size} MB, and at most ${most} MB are read. Is it a MIDI file?`);
  }
  await openBytes(await file.arrayBuffer(), name);
}

async function openBytes(bytes, name) {
  quiet();
  status("Reading the file.");
  try {
    await piece.openFile(bytes, name);
  } catch (error) {
    status("");
    tell(error);
  }
}

// Making music.

async function goOn(branch = null) {
  if (!piece.session.seed) return;
  const click = performance.now();
  asked = { click };
  hideCard();
  quiet();
  sound.wake().catch(() => {}); // Where there is no sound device, notes are still made and drawn.
  sound.rest(true);
  const { takes, settings, state } = controls;
  try {
    await piece.continue_(settings, { takes, randomSeed: state.randomSeed, branch });
  } finally {
    loadAll();
  }
}

/** The whole keyboard's sounds: new notes may lie anywhere. */
function loadAll() {
  sound.rest(false);
  sound.load([], true);
}

/** Another take from where the chosen one begins. */
function again() {
  const take = piece.take(piece.session.selected);
  if (!take || piece.isMaking) return;
  return goOn({ parent: take.parent, from: take.from, boundary: take.boundary });
}

function stopOrGo() {
  if (piece.isMaking) piece.stop();
  else return goOn();
}

function firstNote({ detail: { id, first } }) {
  grow();
  if (!first || !asked || id !== piece.session.selected) return;
  const note = piece.notes[id][0];
  measures.clickToNote.push(performance.now() - asked.click);
  asked.note = note;
  showLine(false);
  if (controls.state.playAlong && !player.playing && !live.mode && !sound.failed) startPlaying(Math.max(0, note.onset - 0.005)).catch(tell);
}

player.onHand = (note, when) => {
  if (asked?.note !== note) return;
  const { baseLatency = 0, outputLatency = 0 } = sound.context;
  measures.clickToSound.push(performance.now() - asked.click + 1000 * (when - sound.now + baseLatency + outputLatency));
  asked = null;
  loadAll();
};

async function startPlaying(from) {
  if (!sound.isReady && !sound.failed) status("Loading the piano.");
  if (await sound.ready()) {
    roll.follow = true;
    await player.play(from);
  } else await playRecording();
  showState();
}

/** Where the piano's sounds don't load, the server's recording of the take is played. */
async function playRecording() {
  const id = piece.session.selected;
  if (id === null) throw new Error("The piano's sounds don't load, so only takes can be heard, as recordings: continue first.");
  if (piece.isGrowing(id)) throw new Error("The piano's sounds don't load, so a take can be heard as a recording once it is made.");
  status("The server is making a recording.");
  const blob = await piece.file(id, "wav", "whole");
  await player.playRecording(URL.createObjectURL(blob));
}

function togglePlay() {
  if (!piece.session.seed || live.mode) return;
  if (player.playing) return player.pause();
  return startPlaying(player.position);
}

// Showing.

/** Everything as the piece is now; `fresh` for another piece, which is seen whole. */
function refresh(fresh = false) {
  const { session } = piece;
  if (live.mode) return;
  document.body.dataset.mode = session.seed ? "piece" : "empty";
  byId("piece-name").value = piece.name;
  byId("piece-name").hidden = !session.seed;
  document.title = piece.name ? `${piece.name} · Pulse88` : "Pulse88";
  byId("undo").disabled = !piece.history.canUndo;
  byId("redo").disabled = !piece.history.canRedo;
  showLine(fresh);
  showSeedWord();
  showState();
  lanes.update(piece);
  byId("takes-hint").hidden = session.order.length > 1;
}

function showLine(fresh) {
  const { session } = piece;
  const id = session.selected;
  const heard = piece.heard();
  const growing = piece.isGrowing(id);
  const before = shown;
  shown = { id, count: heard.notes.length, seed: session.seed, first: heard.notes[0], last: heard.notes.at(-1), growing };
  const same = !fresh && before && before.id === id && before.seed === session.seed;
  const grown = same && before.count <= shown.count && before.count > 0 && heard.notes[before.count - 1] === before.last;
  roll.growing = growing;
  roll.unread = id === null ? [session.read.from, session.read.to] : [0, Infinity];
  if (fresh) Object.assign(roll, { fitted: true, follow: true, position: 0 });
  if (!grown || shown.count !== before.count || growing !== before.growing) {
    roll.show(heard, Boolean(grown));
    player.show(heard, { grown: Boolean(grown), growing });
  }
  if (fresh) {
    if (player.playing) player.pause();
    player.seek(0);
  }
  roll.redraw();
  byId("total").textContent = clock(endOf(heard.notes));
}

let growQueued = false;

/** New notes have come: drawn with the next frame, however many they are. */
function grow() {
  if (growQueued) return;
  growQueued = true;
  const draw = () => {
    growQueued = false;
    showLine(false);
    lanes.update(piece);
    showState();
  };
  // A tab in the background has no frames, but its music goes on.
  if (document.hidden) setTimeout(draw, 50);
  else requestAnimationFrame(draw);
}

function showSeedWord() {
  const { seed, read } = piece.session;
  byId("seed-word").hidden = !seed;
  if (!seed) return;
  const reads = piece.readCount();
  const all = reads === seed.notes.length;
  const inside = all ? "the model reads all" : `the model reads ${reads.toLocaleString("en")}, ${clock(read.from)} to ${clock(read.to)}`;
  byId("seed-facts").textContent = `${count(seed.notes.length, "note")}; ${inside}`;
  byId("seed-details").hidden = !seed.remarks.length;
  const changes = seed.remarks.length - 1; // behind the line that says what the file is
  byId("seed-summary").textContent = changes > 0 ? `What was read, with ${count(changes, "remark")}` : "What was read";
  const item = (text) => Object.assign(document.createElement("li"), { textContent: api.sentence({ detail: text }) });
  byId("seed-remarks").replaceChildren(...seed.remarks.map(item));
}

function showState() {
  const making = piece.isMaking;
  const button = byId("continue");
  button.disabled = !piece.session.seed;
  button.classList.toggle("busy", making);
  byId("continue-word").textContent = making ? "Stop" : "Continue";
  const chosen = piece.session.selected === null ? null : piece.take(piece.session.selected);
  byId("again").hidden = making || !chosen;
  if (chosen) byId("again").title = `Another take from where ${chosen.name} begins (R)`;
  byId("continue-fill").style.width = making ? `${100 * progress()}%` : "0";
  byId("go-word").textContent = goWord(making);
  const label = player.playing ? "Pause" : "Play";
  byId("play").setAttribute("aria-label", label);
  byId("play").title = `${label} (space)`;
  byId("play-icon").setAttribute("href", player.playing ? "#i-pause" : "#i-play");
  status(stateWord(making));
}

function runTakes() {
  return [...piece.runs].flatMap((run) => run.ids).map((id) => piece.take(id)).filter(Boolean);
}

function progress() {
  const takes = runTakes();
  return takes.reduce((sum, take) => sum + (take.share ?? 0), 0) / Math.max(1, takes.length);
}

function goWord(making) {
  if (!making) {
    const selected = piece.session.selected;
    return piece.session.seed && selected !== null ? `goes on from the end of ${piece.take(selected).name}` : "";
  }
  const takes = runTakes();
  const waiting = takes.find((take) => take.state === "waiting");
  if (waiting && takes.every((take) => take.state === "waiting")) {
    return waiting.waiting ? `${count(waiting.waiting, "take")} of others before yours` : "reads the seed";
  }
  const notes = takes.reduce((sum, take) => sum + (piece.notes[take.id]?.length ?? 0), 0);
  return notes ? count(notes, "new note") : "choosing among the best";
}

function stateWord(making) {
  if (player.held) return "Waiting for the next notes.";
  if (making) return "";
  const take = piece.session.selected === null ? null : piece.take(piece.session.selected);
  if (!take) return "";
  if (take.originality?.sentence) return take.originality.sentence;
  if (take.reason === "end") return "Pulse88 ended the piece.";
  if (take.state === "failed") return "This take broke off; what came is kept.";
  return "";
}

let framing = false;

/** One frame after another while something moves. */
function animate() {
  if (framing) return;
  framing = true;
  const frame = () => {
    framing = player.playing;
    if (live.mode) return;
    roll.lit = player.playing;
    showPosition();
    if (framing) requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}

function showPosition() {
  const time = player.position;
  roll.moveTo(time, player.playing);
  lanes.moveTo(time);
  byId("position").textContent = clock(time);
  const canvas = byId("roll");
  if (player.playing && Math.floor(time) === Number(canvas.getAttribute("aria-valuenow"))) return;
  canvas.setAttribute("aria-valuemax", String(Math.ceil(player.end)));
  canvas.setAttribute("aria-valuenow", String(Math.floor(time)));
  canvas.setAttribute("aria-valuetext", `${clock(time)} of ${clock(player.end)}`);
}

// The roll under the hand.

let marked = -1;

function mark(index, focus) {
  marked = index;
  roll.marked = index;
  roll.redraw();
  if (index < 0) return hideCard();
  const note = roll.heard.notes[index];
  if (index > 0 || roll.heard.notes.length) player.playing || preview(note);
  byId("note-name").textContent = `${keyName(note.pitch)}  ${clock(note.onset, true)}`;
  const canvas = byId("roll");
  canvas.setAttribute("aria-valuetext", `${keySpoken(note.pitch)} at ${clock(note.onset, true)}, Enter continues from here`);
  if (!focus) return;
  const card = byId("note-card");
  card.hidden = false;
  const [x, y] = roll.placeOf(index);
  const frame = byId("roll-frame");
  card.style.left = `${Math.max(6, Math.min(x - 10, frame.clientWidth - card.offsetWidth - 8))}px`;
  card.style.top = `${y - card.offsetHeight - 10 > RULER ? y - card.offsetHeight - 10 : y + 22}px`;
}

async function preview(note) {
  await sound.wake();
  sound.strike(note.pitch, note.velocity, sound.now, sound.now + Math.min(0.5, note.duration));
}

function hideCard() {
  if (byId("note-card").contains(document.activeElement)) byId("roll").focus();
  byId("note-card").hidden = true;
  marked = roll.marked = -1;
  roll.redraw();
}

function continueFromMark() {
  if (marked < 0) return goOn();
  const { session, notes } = piece;
  return goOn(branchAt(session, notes, session.selected, marked));
}

function prepareRoll() {
  const canvas = byId("roll");
  const point = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const pointers = new Map();
  let drag = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (live.mode || !piece.session.seed) return;
    const [x, y] = point(event);
    pointers.set(event.pointerId, x);
    canvas.setPointerCapture(event.pointerId);
    drag = { x, y, last: x, moved: false, ruler: y < RULER, spread: spread() };
    if (drag.ruler) player.seek(roll.timeAt(x));
  });
  const spread = () => {
    const xs = [...pointers.values()];
    return xs.length === 2 ? Math.abs(xs[0] - xs[1]) : 0;
  };
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = point(event);
    if (!drag) {
      if (live.mode) return;
      const over = roll.noteAt(x, y);
      if (over !== roll.hovered) {
        roll.hovered = over;
        roll.redraw();
      }
      canvas.classList.toggle("over", over >= 0);
      return;
    }
    pointers.set(event.pointerId, x);
    if (drag.ruler) return player.seek(roll.timeAt(x));
    if (spread() && drag.spread) {
      roll.zoom(spread() / drag.spread, [...pointers.values()].reduce((a, b) => a + b) / 2 - roll.keyboardWidth);
      drag.spread = spread();
      drag.moved = true;
      return;
    }
    if (Math.abs(x - drag.x) > 5) drag.moved = true;
    if (drag.moved) {
      canvas.classList.add("drag");
      hideCard();
      roll.scrollBy(drag.last - x);
      drag.last = x;
    }
  });
  const lift = (event) => {
    pointers.delete(event.pointerId);
    canvas.classList.remove("drag");
    if (!drag || pointers.size) return;
    const { moved, ruler, x, y } = drag;
    drag = null;
    if (moved || ruler || event.type === "pointercancel") return;
    const index = roll.noteAt(x, y);
    if (index >= 0) return mark(index, true);
    hideCard();
    if (x > roll.keyboardWidth) player.seek(roll.timeAt(x));
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("wheel", (event) => {
    if (live.mode) return;
    const [x] = point(event);
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      roll.zoom(Math.exp(-event.deltaY / 180), x - roll.keyboardWidth);
    } else if (Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey) {
      event.preventDefault();
      roll.scrollBy(event.deltaX || event.deltaY);
    }
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    if (live.mode || !roll.heard.notes.length) return;
    if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      event.preventDefault();
      const step = event.key === "ArrowDown" ? 1 : -1;
      const start = marked >= 0 ? marked + step : firstFrom(roll.heard.notes, player.position - 1e-6);
      const index = Math.min(Math.max(start, 0), roll.heard.notes.length - 1);
      if (!player.playing) player.seek(roll.heard.notes[index].onset);
      mark(index, true);
    } else if (event.key === "Enter") {
      event.preventDefault();
      continueFromMark().catch(tell);
    }
  });
}

// Keys, buttons, files.

/** The take one lane further up or down. */
function pickBeside(step) {
  const { order, selected } = piece.session;
  const at = order.indexOf(selected) + step; // -1 is the seed's lane
  if (at >= -1 && at < order.length) piece.select(at < 0 ? null : order[at]);
}

const SHORTCUTS = {
  " ": togglePlay,
  ArrowLeft: (event) => player.seek(player.position - (event.shiftKey ? 5 : 1)),
  ArrowRight: (event) => player.seek(player.position + (event.shiftKey ? 5 : 1)),
  Home: () => player.seek(0),
  End: () => player.seek(player.end),
  "+": () => roll.zoom(1.4),
  "=": () => roll.zoom(1.4),
  "-": () => roll.zoom(1 / 1.4),
  0: () => roll.fit(),
  c: stopOrGo,
  r: again,
  "[": () => pickBeside(-1),
  "]": () => pickBeside(1),
  "?": () => byId("help-dialog").showModal(),
  Escape: hideCard,
};

function prepareKeys() {
  document.addEventListener("keydown", async (event) => {
    if (document.querySelector("dialog[open]")) return;
    const { target } = event;
    const typing = target.matches?.("input:not([type=range]):not([type=checkbox]):not([type=radio]), textarea, select");
    if ((event.ctrlKey || event.metaKey) && !event.altKey && event.key.toLowerCase() === "z" && !typing) {
      event.preventDefault();
      if (!live.mode) (event.shiftKey ? () => piece.redo() : () => piece.undo())();
      return;
    }
    if (live.mode) {
      if (event.key === "Escape") live.close();
      return;
    }
    if (!isForPiano(event)) return;
    const act = SHORTCUTS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act || (event.key === " " && target.matches?.("button, summary, input, a"))) return;
    if (event.key.startsWith("Arrow") && target.matches?.("input")) return;
    if ((event.key === "Home" || event.key === "End") && target.matches?.("input")) return;
    event.preventDefault();
    try {
      await act(event);
    } catch (error) {
      tell(error);
    }
  });
}

function prepareFiles() {
  const input = byId("file");
  const choose = () => {
    input.value = "";
    input.click();
  };
  onClick("open", choose);
  onClick("welcome-open", choose);
  input.addEventListener("change", () => input.files[0] && openFile(input.files[0]).catch(tell));
  const drop = byId("drop");
  let inside = 0;
  const hasFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  document.addEventListener("dragenter", (event) => {
    if (!hasFile(event)) return;
    inside++;
    drop.hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (hasFile(event) && --inside <= 0) drop.hidden = true;
  });
  document.addEventListener("dragover", (event) => hasFile(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!hasFile(event)) return;
    event.preventDefault();
    inside = 0;
    drop.hidden = true;
    const file = event.dataTransfer.files[0];
    if (live.mode) live.close();
    if (file) openFile(file).catch(tell);
  });
}

function prepareTheme() {
  const dark = () => {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : !matchMedia("(prefers-color-scheme: light)").matches;
  };
  const changed = () => {
    forgetPalette();
    roll.redraw();
    lanes.update(piece);
    document.dispatchEvent(new Event("themechange"));
  };
  onClick("theme", () => {
    const theme = dark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    store.settings.write("theme", theme);
    changed();
  });
  matchMedia("(prefers-color-scheme: light)").addEventListener("change", changed);
}

function prepareButtons() {
  onClick("continue", stopOrGo);
  onClick("again", again);
  onClick("play", togglePlay);
  onClick("rewind", () => player.seek(0));
  onClick("undo", () => piece.undo());
  onClick("redo", () => piece.redo());
  onClick("zoom-in", () => roll.zoom(1.5));
  onClick("zoom-out", () => roll.zoom(1 / 1.5));
  onClick("zoom-fit", () => roll.fit());
  onClick("note-continue", continueFromMark);
  onClick("note-play", () => {
    const time = roll.heard.notes[marked].onset;
    hideCard();
    player.seek(Math.max(0, time - 0.02));
    return player.playing ? undefined : startPlaying(Math.max(0, time - 0.02));
  });
  onClick("help", () => byId("help-dialog").showModal());
  onClick("shelf", () => showShelf(piece, openFromShelf));
  const enter = (mode) => async () => {
    if (live.mode === mode) return live.close();
    if (player.playing) player.pause();
    piece.stop();
    hideCard();
    sound.wake().catch(() => {});
    shown = null;
    live.open(mode);
  };
  onClick("play-in", enter("record"));
  onClick("welcome-play", enter("record"));
  onClick("duet", enter("duet"));
  onClick("welcome-duet", enter("duet"));
  byId("piece-name").addEventListener("change", (event) => {
    piece.name = event.target.value.trim();
    piece.changed("session");
  });
  byId("piece-name").addEventListener("keydown", (event) => event.key === "Enter" && event.target.blur());
  const volume = byId("volume");
  volume.value = store.settings.read("volume", 0.8);
  const setVolume = () => {
    sound.setVolume(Number(volume.value));
    if (player.recording) player.recording.volume = Number(volume.value);
    fill(volume);
  };
  volume.addEventListener("input", () => {
    setVolume();
    store.settings.write("volume", Number(volume.value));
  });
  setVolume();
}

async function openFromShelf(id) {
  if (live.mode) live.close();
  if (!(await piece.load(id))) throw new Error("This piece is no longer on the shelf.");
}

function listen() {
  piece.addEventListener("piece", () => {
    hideCard();
    refresh(true);
    sound.load([...new Set(piece.session.seed.notes.map((note) => note.pitch))]);
  });
  piece.addEventListener("session", () => refresh());
  piece.addEventListener("saved", () => showState());
  piece.addEventListener("progress", () => showState());
  piece.addEventListener("notes", firstNote);
  piece.addEventListener("problem", ({ detail }) => alert(api.sentence({ detail })));
  player.addEventListener("state", () => {
    showState();
    animate();
  });
  player.addEventListener("held", () => status(stateWord(piece.isMaking)));
  player.addEventListener("seek", () => live.mode || showPosition());
  player.addEventListener("ended", () => showPosition());
  document.addEventListener("visibilitychange", () => document.hidden && piece.save());
}

async function start() {
  prepareNotices();
  prepareRoll();
  prepareKeys();
  prepareFiles();
  prepareTheme();
  prepareButtons();
  byId("more").open = matchMedia("(min-width: 821px) and (min-height: 780px)").matches;
  listen();
  // A token in the address has become a cookie: it needn't be seen, or shared with the address.
  if (location.search) history.replaceState(null, "", location.pathname);
  const last = store.settings.read("last", null);
  const restored = last && (await piece.load(last).catch(() => false));
  if (!restored) refresh(true);
  showExamples(byId("examples"), openBytes).catch(tell);
  sound.load(MIDDLE);
  const info = await api.info();
  limits = info.limits;
  piece.limits = info.limits;
  controls.limit(info);
  if (piece.session.seed) showSeedWord();
  await store.tidy().catch(() => {}); // Where nothing is kept, there is nothing to tidy.
}

/** For tests, and for whoever is curious in the console. */
window.pulse88 = { piece, player, roll, sound, live, controls, measures };
start().catch(tell);
