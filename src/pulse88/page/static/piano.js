// The on-screen piano: one button a key, played by mouse, pen or several fingers; the lower a key is hit, the louder.

import { letterOf } from "./keymap.js";
import { isBlack, keyName, keySpoken, LOWEST, HIGHEST } from "./music.js";

const LEAST_WHITE = 25; // pixels of a white key

export class Piano {
  /** `play(kind, pitch, velocity)` hears "on" and "off". */
  constructor(element, play) {
    this.element = element;
    this.play = play;
    this.keys = new Map();
    this.pointers = new Map(); // pointer → pitch
    this.home = 60; // the C that the computer's A key plays
    element.addEventListener("pointerdown", (event) => this.touch(event, true));
    element.addEventListener("pointermove", (event) => this.touch(event, false));
    for (const type of ["pointerup", "pointercancel"]) element.addEventListener(type, (event) => this.lift(event));
    element.addEventListener("contextmenu", (event) => event.preventDefault());
    element.addEventListener("click", (event) => {
      // Without a pointer: Enter on a key, or a screen reader.
      const pitch = Number(event.target.closest("button")?.dataset.pitch);
      if (!pitch || event.detail > 0) return;
      this.play("on", pitch, 72);
      setTimeout(() => this.play("off", pitch, 0), 400);
    });
    new ResizeObserver(() => this.build()).observe(element);
  }

  /** Whole octaves around the home C, as many as there is room for. */
  build() {
    const width = this.element.clientWidth;
    if (!width) return;
    const whites = Math.min(52, Math.floor(width / LEAST_WHITE));
    let low = LOWEST;
    let high = HIGHEST;
    if (whites < 52) {
      const octaves = Math.max(1, Math.floor(whites / 7));
      low = this.home - 12 * Math.floor((octaves - 1) / 2);
      high = low + 12 * octaves;
      if (high > HIGHEST) [low, high] = [low - 12 * Math.ceil((high - HIGHEST) / 12), high - 12 * Math.ceil((high - HIGHEST) / 12)];
      low = Math.max(LOWEST, low);
    }
    this.keys.clear();
    const buttons = [];
    for (let pitch = low; pitch <= high; pitch++) {
      const button = document.createElement("button");
      button.type = "button";
      button.tabIndex = -1;
      button.className = isBlack(pitch) ? "black" : "white";
      button.dataset.pitch = pitch;
      button.setAttribute("aria-label", keySpoken(pitch));
      this.keys.set(pitch, button);
      buttons.push(button);
    }
    this.element.replaceChildren(...buttons);
    this.label();
  }

  label() {
    for (const [pitch, button] of this.keys) {
      const letter = letterOf(pitch - this.home);
      const lines = [letter, pitch % 12 === 0 ? keyName(pitch) : ""].filter(Boolean);
      button.replaceChildren(...lines.map((text) => Object.assign(document.createElement("span"), { textContent: text, ariaHidden: "true" })));
    }
  }

  /** Moves the computer's keys, and the piano with them, by octaves. */
  shift(octaves) {
    this.home = Math.min(84, Math.max(24, this.home + 12 * octaves));
    this.build();
  }

  /** Lights a key: "you", "it", or null for none. */
  light(pitch, who) {
    const button = this.keys.get(pitch);
    button?.classList.toggle("you", who === "you");
    button?.classList.toggle("it", who === "it");
  }

  touch(event, begins) {
    if (!begins && !this.pointers.has(event.pointerId)) return;
    const key = document.elementFromPoint(event.clientX, event.clientY)?.closest(".piano button");
    const pitch = key ? Number(key.dataset.pitch) : null;
    const before = this.pointers.get(event.pointerId);
    if (begins) {
      event.preventDefault();
      event.target.releasePointerCapture?.(event.pointerId);
    }
    if (pitch === before) return;
    if (before !== undefined && before !== null) this.play("off", before, 0);
    this.pointers.set(event.pointerId, pitch);
    if (pitch === null) return;
    const box = key.getBoundingClientRect();
    const depth = Math.min(1, Math.max(0, (event.clientY - box.top) / box.height));
    this.play("on", pitch, Math.round(42 + 64 * depth));
  }

  lift(event) {
    const pitch = this.pointers.get(event.pointerId);
    this.pointers.delete(event.pointerId);
    if (pitch !== undefined && pitch !== null) this.play("off", pitch, 0);
  }
}
