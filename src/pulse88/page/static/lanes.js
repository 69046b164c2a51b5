// The takes as lanes under one another on one time axis, the branches drawn between them: the tree, to look at and use.

import { palette, SHADES, shadeOf } from "./colours.js";
import { clock, count, endOf, pitchRange } from "./music.js";
import { path } from "./tree.js";

const HEIGHT = 48;
const RIGHT = 6; // pixels that stay free at the end of the axis

export class Lanes {
  /** `on` hears pick(id, time), keep(id), menu(id, button), read(from, to, final). */
  constructor(list, on) {
    this.list = list;
    this.on = on;
    this.rows = new Map(); // id, or "seed" → elements
    this.drawn = new Map(); // what a canvas shows, so that it is drawn only when that changes
    new ResizeObserver(() => this.update()).observe(list);
  }

  /** Shows the piece as it is now. */
  update(piece = this.piece) {
    this.piece = piece;
    if (!piece?.session.seed) return this.list.replaceChildren();
    const { session } = piece;
    const ids = ["seed", ...session.order];
    for (const [id, row] of this.rows) {
      if (ids.includes(id)) continue;
      row.item.remove();
      this.rows.delete(id);
      this.drawn.delete(id);
    }
    ids.forEach((id, at) => {
      if (!this.rows.has(id)) this.rows.set(id, id === "seed" ? this.makeSeed() : this.makeTake(id));
      const { item } = this.rows.get(id);
      if (this.list.children[at] !== item) this.list.insertBefore(item, this.list.children[at] ?? null);
    });
    this.measure(session, piece.notes);
    this.heard = new Set(session.selected === null ? [] : path(session, session.selected));
    ids.forEach((id, at) => {
      if (id === "seed") this.tellSeed(session);
      else this.tellTake(piece, id);
      this.draw(id, at, session, piece.notes);
    });
  }

  /** Time and pitches that all lanes share. */
  measure(session, notes) {
    const all = [session.seed.notes, ...session.order.map((id) => notes[id] ?? [])];
    this.length = Math.max(...all.map(endOf), 1);
    if (session.order.some((id) => this.piece.isGrowing(id))) this.length = Math.max(this.length, this.before ?? 0);
    this.before = this.length;
    [this.low, this.high] = pitchRange(all.flat(), 24);
    this.width = this.rows.get("seed").track.clientWidth;
  }

  x(time) {
    return (time / this.length) * (this.width - RIGHT);
  }

  /** Shows where playback is, in the chosen lane. */
  moveTo(time) {
    const row = this.rows.get(this.piece?.session.selected ?? "seed");
    if (!row) return;
    if (this.head?.parentElement !== row.track) {
      this.head ??= Object.assign(document.createElement("i"), { className: "lane-head" });
      row.track.append(this.head);
    }
    this.head.style.transform = `translateX(${this.x(Math.min(time, this.length))}px)`;
  }

  makeRow(id) {
    const item = element("li", "lane");
    const pick = element("button", "lane-pick");
    pick.type = "button";
    const name = element("strong");
    const facts = element("span");
    pick.append(name, facts);
    pick.addEventListener("click", () => this.on.pick(id === "seed" ? null : id));
    const track = element("div", "lane-track");
    const canvas = element("canvas");
    canvas.setAttribute("aria-hidden", "true");
    track.append(canvas);
    track.addEventListener("click", (event) => {
      if (event.target instanceof HTMLInputElement) return;
      const left = track.getBoundingClientRect().left;
      this.on.pick(id === "seed" ? null : id, ((event.clientX - left) / (this.width - RIGHT)) * this.length);
    });
    const side = element("div", "lane-side");
    item.append(pick, track, side);
    return { item, pick, name, facts, track, canvas, side };
  }

  makeTake(id) {
    const row = this.makeRow(id);
    row.keep = iconButton("i-keep", () => this.on.keep(id));
    row.menu = iconButton("i-save", () => this.on.menu(id, row.menu));
    row.menu.setAttribute("aria-haspopup", "dialog");
    row.side.append(row.keep, row.menu);
    return row;
  }

  makeSeed() {
    const row = this.makeRow("seed");
    row.item.classList.add("seed");
    row.read = element("div", "read");
    row.from = range("What the model reads begins at");
    row.to = range("What the model reads ends at, and it plays on from");
    row.read.append(row.from, row.to);
    row.track.append(row.read);
    for (const [input, final] of [["input", false], ["change", true]]) {
      row.read.addEventListener(input, (event) => {
        let [from, to] = [Number(row.from.value), Number(row.to.value)];
        if (from > to - 0.1) [from, to] = event.target === row.from ? [Math.max(0, to - 0.1), to] : [from, from + 0.1];
        if (from <= Number(row.from.min) + 0.01) from = 0;
        this.on.read(from, to, final);
      });
    }
    return row;
  }

  tellSeed(session) {
    const row = this.rows.get("seed");
    const { notes } = session.seed;
    const end = endOf(notes);
    this.mark(row, session.selected === null, "Seed", [count(notes.length, "note"), clock(end)]);
    row.read.style.width = `${this.x(end)}px`;
    const { from, to } = session.read;
    for (const [input, value] of [[row.from, from], [row.to, to]]) {
      input.max = end;
      input.step = Math.max(0.01, end / 1000);
      if (document.activeElement !== input || Math.abs(Number(input.value) - value) > 0.2) input.value = value;
      input.setAttribute("aria-valuetext", clock(value, true));
    }
    row.read.style.setProperty("--from", `${(100 * from) / end}%`);
    row.read.style.setProperty("--to", `${(100 * Math.min(to, end)) / end}%`);
  }

  tellTake(piece, id) {
    const row = this.rows.get(id);
    const take = piece.take(id);
    const parent = take.parent === null ? "the seed" : (piece.take(take.parent)?.name ?? "a take");
    this.mark(row, piece.session.selected === id, take.name, factsOf(take, piece.notes[id] ?? []));
    row.pick.title = `From ${parent} at ${clock(take.boundary)}`;
    row.keep.setAttribute("aria-pressed", String(take.kept));
    name(row.keep, `${take.kept ? "Don't keep" : "Keep"} ${take.name}`);
    name(row.menu, `Download, rename or delete ${take.name}`);
    row.menu.disabled = !(piece.notes[id] ?? []).length;
    row.item.classList.toggle("making", piece.isGrowing(id));
  }

  mark(row, chosen, title, facts) {
    row.item.classList.toggle("chosen", chosen);
    row.pick.setAttribute("aria-pressed", String(chosen));
    row.name.textContent = title;
    const [first, ...rest] = facts;
    row.facts.replaceChildren(first, Object.assign(element("span", "rest"), { textContent: rest.map((fact) => `, ${fact}`).join("") }));
  }

  draw(id, at, session, notes) {
    const { canvas } = this.rows.get(id);
    const own = id === "seed" ? session.seed.notes : (notes[id] ?? []);
    const branches = this.branches(at, session);
    const alpha = id === "seed" || session.selected === null || this.heard.has(id) ? 1 : 0.5;
    const state = JSON.stringify([alpha, own.length, this.length, this.width, this.low, this.high, branches, palette().ground, devicePixelRatio]);
    if (this.drawn.get(id) === state) return;
    this.drawn.set(id, state);
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(this.width * ratio);
    canvas.height = HEIGHT * ratio;
    const c = canvas.getContext("2d");
    c.scale(ratio, ratio);
    this.drawBranches(c, branches);
    c.globalAlpha = alpha;
    drawNotes(c, own, id === "seed", (time) => this.x(time), this.low, this.high, 6, HEIGHT - 12);
  }

  /** What passes through row `at`, comes in from above or goes out below: [[kind, x, whether it is heard]]. */
  branches(at, session) {
    const rowOf = (id) => (id === null ? 0 : session.order.indexOf(id) + 1);
    const found = [];
    session.order.forEach((id, i) => {
      const { parent, boundary } = session.takes[id];
      const [from, to] = [rowOf(parent), i + 1];
      if (at < from || at > to) return;
      found.push([at === from ? "out" : at === to ? "in" : "through", Math.round(this.x(boundary)), this.heard.has(id)]);
    });
    return found.sort((a, b) => a[2] - b[2]); // what is heard is drawn last, over the others
  }

  drawBranches(c, branches) {
    c.lineWidth = 1.25;
    for (const [kind, x, heard] of branches) {
      c.strokeStyle = heard ? palette().new[3] : palette()["key-edge"];
      c.beginPath();
      if (kind === "in") {
        c.moveTo(x + 0.5, 0);
        c.lineTo(x + 0.5, HEIGHT / 2 - 5);
        c.quadraticCurveTo(x + 0.5, HEIGHT / 2, x + 6, HEIGHT / 2);
      } else {
        c.moveTo(x + 0.5, kind === "out" ? HEIGHT - 14 : 0);
        c.lineTo(x + 0.5, HEIGHT);
      }
      c.stroke();
    }
  }
}

/** Notes as a miniature roll, on any canvas. */
export function drawNotes(c, notes, isSeed, x, low, high, top, height) {
  const colours = palette();
  const step = height / (high - low + 1);
  const tall = Math.max(1.5, Math.min(3, step));
  for (const note of notes) {
    const shades = isSeed && !note.model ? colours.seed : colours.new;
    c.fillStyle = shades[Math.max(2, Math.min(SHADES - 1, shadeOf(note.velocity)))];
    c.fillRect(x(note.onset), top + (high - note.pitch) * step, Math.max(1.2, x(note.onset + note.duration) - x(note.onset)), tall);
  }
}

function factsOf(take, notes) {
  if (take.state === "waiting") return [take.waiting ? `waits for ${count(take.waiting, "other")}` : "about to begin"];
  if (take.state === "making" && !notes.length) return [take.settings?.best_of > 1 ? "choosing the best" : "begins"];
  if (take.state === "failed") return ["broke off"];
  const facts = [count(notes.length, "note"), clock(endOf(notes) - take.boundary)];
  if (take.originality?.longest !== undefined && take.originality?.longest !== null) facts.push(`longest quote ${take.originality.longest}`);
  return facts;
}

function element(tag, className = "") {
  return Object.assign(document.createElement(tag), { className });
}

function range(label) {
  const input = Object.assign(element("input"), { type: "range", min: 0 });
  input.setAttribute("aria-label", label);
  return input;
}

function iconButton(icon, act) {
  const button = Object.assign(element("button", "icon"), { type: "button" });
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#${icon}`);
  svg.append(use);
  button.append(svg);
  button.addEventListener("click", act);
  return button;
}

function name(button, text) {
  button.setAttribute("aria-label", text);
  button.title = text;
}
