// The menu of a take: its name, its files, what is known of it, and its end.

import { sentence } from "./api.js";
import { keySpoken } from "./music.js";
import { status, tell } from "./notices.js";

const byId = (id) => document.getElementById(id);

export class TakeMenu {
  constructor(piece) {
    this.piece = piece;
    this.menu = byId("take-menu");
    byId("menu-name").addEventListener("change", (event) => this.piece.rename(this.id, event.target.value));
    byId("menu-name").addEventListener("keydown", (event) => event.key === "Enter" && this.menu.hidePopover());
    byId("menu-delete").addEventListener("click", () => {
      const { name } = this.piece.take(this.id);
      this.menu.hidePopover();
      this.piece.remove(this.id);
      status(`${name} is deleted. Undo brings it back.`);
    });
    for (const button of this.menu.querySelectorAll("[data-kind]")) {
      button.addEventListener("click", () => this.download(button.dataset.kind).catch(tell));
    }
  }

  open(id, button) {
    this.id = id;
    const take = this.piece.take(id);
    byId("menu-name").value = take.name;
    byId("menu-facts").textContent = factLines(take).join("\n");
    this.menu.showPopover();
    const place = button.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = this.menu;
    const top = place.bottom + 6 + height > innerHeight ? place.top - height - 6 : place.bottom + 6;
    this.menu.style.top = `${Math.max(8, top)}px`;
    this.menu.style.left = `${Math.max(8, Math.min(place.right - width, innerWidth - width - 8))}px`;
    this.menu.querySelector("[data-kind]").focus();
  }

  async download(kind) {
    const part = this.menu.querySelector("input[name=part]:checked").value;
    const { name } = this.piece.take(this.id);
    status(kind === "mid" ? "" : "The server is making the file.");
    const blob = await this.piece.file(this.id, kind, part);
    const title = [this.piece.name, name, ...(part === "new" ? ["new part"] : [])].filter(Boolean).join(" - ");
    const link = Object.assign(document.createElement("a"), {
      href: URL.createObjectURL(blob),
      download: `${title.replace(/[\\/:*?"<>|]+/g, "_")}.${kind}`,
    });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    status(`Downloaded ${link.download}.`);
  }
}

/** What is known of a take, a sentence each. */
export function factLines(take) {
  const lines = [];
  if (take.originality?.sentence) lines.push(take.originality.sentence);
  if (take.choice?.why) lines.push(sentence({ detail: take.choice.why }));
  if (take.key) lines.push(`In ${keyWord(take.key)}.`);
  if (take.reason === "end") lines.push("Pulse88 ended the piece itself.");
  if (take.reason === "stopped") lines.push("Stopped before its end.");
  lines.push(...(take.remarks ?? []).map((remark) => sentence({ detail: remark })));
  if (take.randomSeed !== undefined) lines.push(`Random seed ${take.randomSeed}.`);
  return lines;
}

const keyWord = (key) => (typeof key === "number" ? keySpoken(key) : String(key.name ?? key));
