// The page before there is music: examples to begin with.

import { exampleFile, examples } from "./api.js";
import { palette } from "./colours.js";
import { glance } from "./glance.js";
import { drawNotes } from "./lanes.js";
import { clock, count, endOf, pitchRange } from "./music.js";

/** Fills the list of examples; `open(bytes, title)` begins a piece. */
export async function showExamples(list, open) {
  const cards = (await examples()).map((example) => card(example, open));
  list.replaceChildren(...cards.map(({ item }) => item));
  for (const { example, canvas } of cards) {
    const bytes = await exampleFile(example.id);
    const redraw = () => draw(canvas, glance(bytes));
    new ResizeObserver(redraw).observe(canvas);
    document.addEventListener("themechange", redraw);
  }
}

function card(example, open) {
  const item = document.createElement("li");
  const button = Object.assign(document.createElement("button"), { type: "button" });
  const canvas = document.createElement("canvas");
  const title = Object.assign(document.createElement("strong"), { textContent: example.title });
  const about = Object.assign(document.createElement("span"), { textContent: example.about });
  const facts = `${count(example.notes, "note")}, ${clock(example.seconds)}`;
  const size = Object.assign(document.createElement("span"), { textContent: facts, className: "size" });
  canvas.setAttribute("aria-hidden", "true");
  button.append(canvas, title, about, size);
  button.addEventListener("click", async () => open(await exampleFile(example.id), example.title));
  item.append(button);
  return { item, example, canvas };
}

function draw(canvas, notes) {
  const { clientWidth: width, clientHeight: height } = canvas;
  if (!width || !notes.length) return;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const c = canvas.getContext("2d");
  c.scale(ratio, ratio);
  c.fillStyle = palette().row;
  c.fillRect(0, 0, width, height);
  const length = Math.max(endOf(notes), 8);
  const [low, high] = pitchRange(notes, 18);
  drawNotes(c, notes, true, (time) => 10 + (time / length) * (width - 20), low, high, 8, height - 16);
}
