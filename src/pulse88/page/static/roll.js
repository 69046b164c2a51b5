// The piano roll: one canvas with ruler, keyboard, notes, pedal and playhead. It draws only what is visible.

import { palette, SHADES, shadeOf } from "./colours.js";
import { clock, firstFrom, isBlack, keyName, pedalSpans, pitchRange, soundingEnds } from "./music.js";
import { bounded, fitScale, following, paging, rowHeight, stopOf, ticks, tickStep } from "./view.js";
import { timeOf, visible, xOf, yOf, zoomed } from "./view.js";

export const RULER = 26;
const PEDAL_LANE = 9;
const FRESH_SECONDS = 0.35; // in which a new note fades in

export class Roll {
  /** `canvas` fills its parent. `calm` tells whether little motion is wanted. */
  constructor(canvas, calm) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.calm = calm;
    this.view = { start: 0, scale: 60, width: 100 };
    this.rows = { low: 48, high: 84, height: 100 };
    this.position = 0;
    this.follow = true;
    this.fitted = true; // nobody has zoomed yet
    this.hovered = -1;
    this.marked = -1;
    this.live = new Map(); // pitch → "seed" | "new": keys that are down just now
    this.ghosts = []; // notes that are held just now, drawn up to the present
    this.unread = [0, Infinity]; // what lies outside is dimmed
    this.present = null; // seconds of a live present, where the roll ends
    this.fresh = new Map(); // note → when it came
    this.queued = false;
    this.growing = false; // notes still come: rows widen only
    this.lit = false; // whether what sounds at the playhead is lit
    this.frames = 0;
    this.show({ notes: [], owners: [], joins: [], pedal: [] });
    new ResizeObserver(() => this.resize()).observe(canvas.parentElement);
    this.resize();
  }

  get keyboardWidth() {
    return this.canvas.clientWidth < 560 ? 34 : 58;
  }

  /** Seconds that there is something to see. */
  get length() {
    return Math.max(this.end, this.present ?? 0, 1);
  }

  /** Draws another line (see tree.js); `grown` if it is the one before with more notes behind it. */
  show(heard, grown = false) {
    const before = grown ? this.heard.notes.length : Infinity;
    this.heard = heard;
    const { notes, owners, pedal } = heard;
    this.onsets = Float64Array.from(notes, (note) => note.onset);
    this.keyEnds = Float64Array.from(notes, (note) => note.onset + note.duration);
    this.ends = Float64Array.from(soundingEnds(notes, pedal));
    this.kinds = Uint8Array.from(notes, (note, i) => (owners[i] === null && !note.model ? 0 : SHADES) + shadeOf(note.velocity));
    this.longest = this.ends.reduce((longest, end, i) => Math.max(longest, end - this.onsets[i]), 0);
    this.end = this.ends.reduce((last, end) => Math.max(last, end), 0);
    const parts = new Set(pedal.map((event) => event.part ?? 0));
    this.spans = [...parts].flatMap((part) => pedalSpans(pedal, part, this.end));
    const now = performance.now() / 1000;
    for (let i = before; i < notes.length; i++) this.fresh.set(notes[i], now);
    this.hovered = this.marked = -1;
    this.fitRows();
    if (this.fitted) this.fit(false);
    this.redraw();
  }

  fitRows() {
    const [low, high] = pitchRange(this.heard.notes);
    const inset = this.heard.notes.length ? this.rows : { low: 127, high: 0 };
    const keep = this.growing && inset.low <= low && inset.high >= high;
    if (!keep) this.rows = { ...this.rows, low, high };
  }

  /** Shows everything, if need be small; of a long piece at first only as much as can be read well. */
  fit(redraw = true, whole = redraw) {
    this.fitted = !whole;
    const least = whole ? 0 : this.canvas.clientWidth < 560 ? 14 : 24;
    const scale = Math.max(fitScale(this.view.width * 0.97, this.length), least);
    const fits = this.length * scale <= this.view.width;
    this.view = bounded({ ...this.view, scale, start: fits ? 0 : this.view.start }, this.length);
    if (redraw) this.redraw();
  }

  zoom(factor, x = this.view.width * 0.42) {
    this.fitted = false;
    this.view = zoomed(this.view, factor, x, this.length);
    this.redraw();
  }

  scrollBy(pixels) {
    this.fitted = false;
    this.follow = false;
    this.view = bounded({ ...this.view, start: this.view.start + pixels / this.view.scale }, this.length);
    this.redraw();
  }

  /** Moves the playhead, and the view with it if it follows. */
  moveTo(time, playing) {
    this.position = time;
    if (this.follow && (playing || xOf(this.view, time) < 0 || time > stopOf(this.view))) {
      const whole = this.length * this.view.scale <= this.view.width && this.view.start === 0;
      if (!whole) this.view = this.calm() ? paging(this.view, time, this.length) : this.glide(time);
    }
    this.redraw();
  }

  /** Following without a leap when playback starts far from where the view holds the playhead. */
  glide(time) {
    const goal = following(this.view, time, this.length);
    const off = goal.start - this.view.start;
    const far = Math.abs(off) * this.view.scale > this.view.width;
    return far ? goal : { ...goal, start: this.view.start + off * 0.14 };
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.canvas.parentElement;
    const ratio = window.devicePixelRatio || 1;
    if (!width || !height) return;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    this.ratio = ratio;
    this.view = { ...this.view, width: width - this.keyboardWidth };
    this.rows = { ...this.rows, height: height - RULER - PEDAL_LANE };
    if (this.fitted) this.fit(false);
    this.draw();
  }

  redraw() {
    if (this.queued) return;
    this.queued = true;
    requestAnimationFrame(() => {
      this.queued = false;
      this.draw();
    });
  }

  /** The time under a pixel of the canvas. */
  timeAt(x) {
    return Math.max(0, timeOf(this.view, x - this.keyboardWidth));
  }

  /** Index of the note under a point of the canvas, with 3 px around short ones; -1 if there is none. */
  noteAt(x, y) {
    if (x < this.keyboardWidth || y < RULER) return -1;
    const slack = 3 / this.view.scale;
    const time = this.timeAt(x);
    const height = rowHeight(this.rows);
    const [first, last] = visible(this.onsets, time, time + slack, this.longest + slack);
    let best = -1;
    for (let i = first; i < last; i++) {
      const top = RULER + yOf(this.rows, this.heard.notes[i].pitch);
      const until = Math.max(this.keyEnds[i], this.onsets[i] + 4 / this.view.scale);
      if (time > until + slack || y < top - 2 || y > top + height + 2) continue;
      best = i;
    }
    return best;
  }

  /** The point above a note's beginning, in pixels of the canvas. */
  placeOf(index) {
    const note = this.heard.notes[index];
    return [this.keyboardWidth + xOf(this.view, note.onset), RULER + yOf(this.rows, note.pitch)];
  }

  draw() {
    const began = performance.now();
    const { context: c, ratio } = this;
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    const colours = palette();
    this.drawGround(c, colours);
    c.save();
    c.beginPath();
    c.rect(this.keyboardWidth, 0, this.view.width, this.canvas.height);
    c.clip();
    c.translate(this.keyboardWidth, 0);
    this.drawNotes(c, colours);
    this.drawPedal(c, colours);
    this.drawUnread(c, colours);
    this.drawRuler(c, colours);
    this.drawPlayhead(c, colours);
    c.restore();
    this.drawKeyboard(c, colours);
    this.frames++;
    this.drawMilliseconds = performance.now() - began;
    if (this.fresh.size) this.redraw();
  }

  drawGround(c, colours) {
    const { rows, view } = this;
    const height = rowHeight(rows);
    c.fillStyle = colours.ground;
    c.fillRect(0, 0, this.canvas.clientWidth, this.canvas.clientHeight);
    c.fillStyle = colours.row;
    for (let pitch = rows.low; pitch <= rows.high; pitch++) {
      if (isBlack(pitch)) c.fillRect(this.keyboardWidth, RULER + yOf(rows, pitch), view.width, height);
    }
    c.fillStyle = colours["line-strong"];
    for (let pitch = rows.low; pitch <= rows.high; pitch++) {
      if (pitch % 12 === 0) c.fillRect(this.keyboardWidth, Math.round(RULER + yOf(rows, pitch) + height), view.width, 1);
    }
    c.fillStyle = colours.line;
    for (const time of ticks(view)) {
      c.fillRect(Math.round(this.keyboardWidth + xOf(view, time)), RULER, 1, rows.height + PEDAL_LANE);
    }
  }

  drawNotes(c, colours) {
    const { view, rows, onsets, keyEnds, ends, kinds, heard } = this;
    const [first, last] = visible(onsets, view.start, stopOf(view), this.longest);
    const height = rowHeight(rows);
    const tall = Math.max(2, height - (height > 5 ? 1 : 0.4));
    const round = Math.min(3, tall / 2.4);
    const now = performance.now() / 1000;
    const buckets = Array.from({ length: 2 * SHADES }, () => []);
    const tails = [[], []];
    const young = [];
    const sounding = [];
    for (let i = first; i < last; i++) {
      const x = xOf(view, onsets[i]);
      if (xOf(view, ends[i]) < 0) continue;
      const width = Math.max(2, (keyEnds[i] - onsets[i]) * view.scale - 1);
      const y = RULER + yOf(rows, heard.notes[i].pitch) + (height - tall) / 2;
      if (ends[i] - keyEnds[i] > 0.02) tails[kinds[i] < SHADES ? 0 : 1].push([x + width, y, (ends[i] - keyEnds[i]) * view.scale]);
      const age = this.fresh.size ? this.age(heard.notes[i], now) : Infinity;
      if (age < FRESH_SECONDS) young.push([x, y, width, kinds[i], age / FRESH_SECONDS]);
      else buckets[kinds[i]].push(x, y, width);
      if (onsets[i] <= this.position && this.position < ends[i] && this.lit) sounding.push([x, y, width, kinds[i]]);
    }
    c.globalAlpha = 0.2;
    tails.forEach((list, kind) => {
      c.fillStyle = (kind ? colours.new : colours.seed)[2];
      for (const [x, y, width] of list) c.fillRect(x, y + tall * 0.3, width, tall * 0.4);
    });
    c.globalAlpha = 1;
    buckets.forEach((list, kind) => {
      if (!list.length) return;
      c.fillStyle = kind < SHADES ? colours.seed[kind] : colours.new[kind - SHADES];
      c.beginPath();
      for (let i = 0; i < list.length; i += 3) {
        if (list[i + 2] > 5 && tall > 3) c.roundRect(list[i], list[i + 1], list[i + 2], tall, round);
        else c.rect(list[i], list[i + 1], list[i + 2], tall);
      }
      c.fill();
    });
    for (const [x, y, width, kind, share] of young) {
      c.globalAlpha = 0.15 + 0.85 * share;
      c.fillStyle = share < 0.6 ? colours.newBright : colours.new[Math.max(0, kind - SHADES)];
      c.beginPath();
      c.roundRect(x, y, Math.max(2, width * Math.min(1, 0.3 + share)), tall, round);
      c.fill();
    }
    c.globalAlpha = 1;
    for (const [x, y, width, kind] of sounding) {
      c.fillStyle = kind < SHADES ? colours.seedBright : colours.newBright;
      c.beginPath();
      c.roundRect(x, y, width, tall, round);
      c.fill();
    }
    this.drawGhosts(c, colours, tall, round);
    this.drawMark(c, colours, tall, round);
  }

  drawGhosts(c, colours, tall, round) {
    for (const note of this.ghosts) {
      const x = xOf(this.view, note.onset);
      const width = Math.max(3, (note.duration ?? 0) * this.view.scale);
      c.fillStyle = note.kind === "new" ? colours.newBright : colours.seedBright;
      c.beginPath();
      c.roundRect(x, RULER + yOf(this.rows, note.pitch), width, tall, round);
      c.fill();
    }
  }

  drawMark(c, colours, tall, round) {
    for (const [index, width] of [[this.hovered, 1], [this.marked, 2]]) {
      if (index < 0 || index >= this.onsets.length) continue;
      const note = this.heard.notes[index];
      const wide = Math.max(2, note.duration * this.view.scale - 1);
      c.strokeStyle = colours.ink;
      c.lineWidth = width;
      c.beginPath();
      c.roundRect(xOf(this.view, note.onset) - 1.5, RULER + yOf(this.rows, note.pitch) - 1, wide + 3, tall + 3, round + 1);
      c.stroke();
    }
    if (this.marked >= 0) {
      const x = Math.round(xOf(this.view, this.onsets[this.marked]));
      c.setLineDash([3, 4]);
      c.lineWidth = 1;
      c.beginPath();
      c.moveTo(x + 0.5, RULER);
      c.lineTo(x + 0.5, RULER + this.rows.height);
      c.stroke();
      c.setLineDash([]);
    }
  }

  age(note, now) {
    const came = this.fresh.get(note);
    if (came === undefined) return Infinity;
    if (now - came < FRESH_SECONDS && !this.calm()) return now - came;
    this.fresh.delete(note);
    return Infinity;
  }

  drawPedal(c, colours) {
    const top = RULER + this.rows.height;
    c.fillStyle = colours.row;
    c.fillRect(0, top, this.view.width, PEDAL_LANE);
    c.fillStyle = colours.muted;
    c.globalAlpha = 0.55;
    for (const [start, stop] of this.spans) {
      const x = xOf(this.view, start);
      const width = (stop - start) * this.view.scale;
      if (x < this.view.width && x + width > 0) c.fillRect(x, top + 3, Math.max(1, width - 1), 3);
    }
    c.globalAlpha = 1;
  }

  /** A veil over what the model doesn't read. */
  drawUnread(c, colours) {
    const [from, to] = this.unread;
    c.fillStyle = colours.ground;
    c.globalAlpha = 0.5;
    const left = xOf(this.view, from);
    if (left > 0) c.fillRect(0, RULER, left, this.rows.height);
    if (to < this.seedEnd) {
      const stop = this.heard.joins.length ? Math.min(this.seedEnd, this.heard.joins[0].time) : this.seedEnd;
      c.fillRect(xOf(this.view, to), RULER, (stop - to) * this.view.scale, this.rows.height);
    }
    c.globalAlpha = 1;
    c.fillStyle = colours.seedBright;
    if (left > 0) c.fillRect(Math.round(left), RULER, 1, this.rows.height);
  }

  get seedEnd() {
    const { owners } = this.heard;
    const first = owners.findIndex((owner) => owner !== null);
    const stop = first < 0 ? owners.length : first;
    let end = 0;
    for (let i = 0; i < stop; i++) end = Math.max(end, this.keyEnds[i]);
    return end;
  }

  drawRuler(c, colours) {
    c.fillStyle = colours.ground;
    c.fillRect(0, 0, this.view.width, RULER);
    c.fillStyle = colours["line-strong"];
    c.fillRect(0, RULER - 1, this.view.width, 1);
    c.font = `11px ${FONT}`;
    c.textBaseline = "middle";
    const tenths = tickStep(this.view.scale) < 1;
    c.fillStyle = colours.muted;
    for (const time of ticks(this.view)) {
      const x = Math.round(xOf(this.view, time));
      c.fillRect(x, RULER - 5, 1, 4);
      c.fillText(clock(time, tenths), x + 5, RULER / 2);
    }
    for (const join of this.heard.joins) {
      const x = Math.round(xOf(this.view, join.time));
      c.fillStyle = colours.new[3];
      c.fillRect(x, RULER - 3, 1, this.rows.height + 3);
      c.beginPath();
      c.moveTo(x - 4, RULER - 8);
      c.lineTo(x + 5, RULER - 8);
      c.lineTo(x + 0.5, RULER - 1);
      c.fill();
    }
  }

  drawPlayhead(c, colours) {
    const x = xOf(this.view, this.position);
    if (x < -8 || x > this.view.width + 8) return;
    c.fillStyle = colours.playhead;
    c.fillRect(x - 0.75, 4, 1.5, RULER + this.rows.height + PEDAL_LANE - 4);
    c.beginPath();
    c.roundRect(x - 5, 2, 10, 10, 5);
    c.fill();
  }

  drawKeyboard(c, colours) {
    const { rows, keyboardWidth: width } = this;
    const height = rowHeight(rows);
    const lit = this.litKeys();
    c.fillStyle = colours.ground;
    c.fillRect(0, 0, width, this.canvas.clientHeight);
    for (let pitch = rows.low; pitch <= rows.high; pitch++) {
      if (isBlack(pitch)) continue;
      // A white key reaches to the middle of the black ones beside it.
      const top = RULER + yOf(rows, pitch) - (isBlack(pitch + 1) && pitch < rows.high ? height / 2 : 0);
      const bottom = RULER + yOf(rows, pitch) + height + (isBlack(pitch - 1) && pitch > rows.low ? height / 2 : 0);
      c.fillStyle = lit.get(pitch) ?? colours["key-white"];
      c.fillRect(0, top, width - 1, bottom - top);
      c.fillStyle = colours["key-gap"];
      c.fillRect(0, bottom - 0.7, width - 1, 0.7);
      if (pitch % 12 === 0 && height > 4) {
        c.fillStyle = colours["key-edge"];
        c.font = `${Math.min(10, Math.max(8, height))}px ${FONT}`;
        c.textAlign = "right";
        c.textBaseline = "middle";
        c.fillText(keyName(pitch), width - 5, RULER + yOf(rows, pitch) + height / 2 + 0.5);
        c.textAlign = "left";
      }
    }
    for (let pitch = rows.low; pitch <= rows.high; pitch++) {
      if (!isBlack(pitch)) continue;
      c.fillStyle = lit.get(pitch) ?? colours["key-black"];
      c.beginPath();
      c.roundRect(-3, RULER + yOf(rows, pitch) + 0.5, width * 0.6 + 3, height - 1, 2);
      c.fill();
    }
    c.fillStyle = colours["line-strong"];
    c.fillRect(width - 1, 0, 1, this.canvas.clientHeight);
  }

  /** pitch → colour of the keys that sound now. */
  litKeys() {
    const colours = palette();
    const found = new Map();
    if (this.lit) {
      const first = firstFrom(this.heard.notes, this.position - this.longest);
      for (let i = first; i < this.onsets.length && this.onsets[i] <= this.position; i++) {
        if (this.position >= Math.max(this.keyEnds[i], this.onsets[i] + 0.08)) continue;
        found.set(this.heard.notes[i].pitch, this.kinds[i] < SHADES ? colours.seedBright : colours.newBright);
      }
    }
    for (const [pitch, kind] of this.live) found.set(pitch, kind === "new" ? colours.newBright : colours.seedBright);
    return found;
  }
}

const FONT = 'ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif';
