"""The page of a listening test: one HTML file that needs no network and no server, audio beside it."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>@TITLE@</title>
<style>
  :root { color-scheme: light dark; font: 17px/1.5 system-ui, sans-serif; }
  body { max-width: 44rem; margin: 2rem auto; padding: 0 1rem; }
  h1 { font-size: 1.4rem; }
  audio { width: 100%; margin: .4rem 0 1rem; }
  fieldset { border: 1px solid #8886; border-radius: .5rem; margin: 0 0 .8rem; padding: .4rem 1rem .6rem; }
  legend { font-weight: 600; }
  .choices { display: flex; gap: .4rem; flex-wrap: wrap; align-items: center; }
  .choices label { border: 1px solid #8886; border-radius: .4rem; padding: .15rem .8rem; cursor: pointer; }
  .choices label:has(input:checked) { background: #3565a8; color: #fff; }
  .choices label:focus-within { outline: 2px solid #d1701f; }
  .choices input { position: absolute; opacity: 0; pointer-events: none; }
  .hint { opacity: .75; font-size: .9rem; }
  button { font: inherit; padding: .4rem 1.2rem; border-radius: .4rem; border: 1px solid #8888; cursor: pointer; }
  progress { width: 100%; }
  nav { display: flex; gap: .6rem; margin: 1rem 0; }
</style>
<h1>@TITLE@</h1>
<main id="main"></main>
<script type="application/json" id="test">@TEST@</script>
<script>
"use strict";
const test = JSON.parse(document.getElementById("test").textContent);
const place = "pulse88-listening-" + test.id;
const main = document.getElementById("main");
let kept = {};
try { kept = JSON.parse(localStorage.getItem(place)) || {}; } catch (error) { kept = {}; }
if (!kept.listener) {
  const name = Array.from(crypto.getRandomValues(new Uint8Array(4)), byte => byte.toString(16).padStart(2, "0"));
  kept = { listener: name.join(""), at: -1, answers: {} };
}
function keep() {
  try { localStorage.setItem(place, JSON.stringify(kept)); } catch (error) { kept.unkept = true; }
}

// The order is the listener's own, the same whenever the page is opened again.
function shuffled(items, seed) {
  let state = 2166136261;
  for (const letter of seed) state = Math.imul(state ^ letter.charCodeAt(0), 16777619) >>> 0;
  const random = () => {
    state = (state + 0x6D2B79F5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const found = items.slice();
  for (let i = found.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [found[i], found[j]] = [found[j], found[i]];
  }
  for (const item of found) if (item.kind === "pair" && random() < 0.5) item.clips = item.clips.slice().reverse();
  return found;
}
const items = shuffled(test.items.filter(i => i.kind === "pair"), kept.listener)
  .concat(shuffled(test.items.filter(i => i.kind === "rating"), kept.listener + "r"));

const node = (tag, content, attributes = {}) => {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...[].concat(content));
  return made;
};
function choices(item, scale, question, hint, options) {
  const group = node("div", [], { className: "choices" });
  for (const [value, label] of options) {
    const input = node("input", [], { type: "radio", name: scale, value });
    input.checked = (kept.answers[item.id] || {})[scale] === value;
    input.addEventListener("change", () => {
      kept.answers[item.id] = { ...kept.answers[item.id], [scale]: value };
      if (item.kind === "pair") kept.answers[item.id].clips = item.clips.join(" ");
      keep();
      refresh(item);
    });
    group.append(node("label", [input, label]));
  }
  return node("fieldset", [node("legend", question), node("div", hint, { className: "hint" }), group]);
}
const scalesOf = item => item.kind === "pair" ? ["preference"] : test.scales.map(s => s.name);
const done = item => scalesOf(item).every(scale => (kept.answers[item.id] || {})[scale] !== undefined);
function refresh(item) {
  const next = document.getElementById("next");
  if (next) next.disabled = !done(item);
}
function player(clip, label) {
  const audio = node("audio", [], { controls: true, preload: "auto", src: test.audio[clip] });
  audio.setAttribute("aria-label", label);
  audio.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
  });
  return node("div", [node("strong", label), audio]);
}
function show() {
  keep();
  main.replaceChildren();
  if (kept.at < 0) {
    main.append(node("p", test.introduction),
      node("nav", node("button", "Begin", { id: "next", onclick: () => { kept.at = 0; show(); } })));
    return;
  }
  if (kept.at >= items.length) {
    main.append(node("p", "Thank you. That was all; please send the file with your answers to whoever asked you."),
      node("nav", [node("button", "Download answers (CSV)", { id: "download", onclick: download }),
        node("button", "Back", { onclick: () => { kept.at--; show(); } })]));
    return;
  }
  const item = items[kept.at];
  main.append(node("progress", [], { max: items.length, value: kept.at }),
    node("p", `${kept.at + 1} of ${items.length}. ${test.hint}`, { className: "hint" }));
  if (item.kind === "pair") {
    item.clips.forEach((clip, at) => main.append(player(clip, "AB"[at])));
    main.append(choices(item, "preference", "Which goes on better?", "",
      [["first", "A"], ["none", "no preference"], ["second", "B"]]));
  } else {
    main.append(player(item.clips[0], "Listen"));
    for (const scale of test.scales)
      main.append(choices(item, scale.name, scale.question, scale.hint, ["1", "2", "3", "4", "5"].map(n => [n, n])));
  }
  main.append(node("nav", [
    node("button", "Back", { onclick: () => { kept.at--; show(); } }),
    node("button", "Next", { id: "next", onclick: () => { kept.at++; show(); scrollTo(0, 0); } }),
    node("button", "Download what I have so far", { onclick: download })]));
  refresh(item);
}
function rows() {
  const found = [["test", "listener", "kind", "item", "clips", "scale", "value"]];
  for (const item of items) {
    const answers = kept.answers[item.id] || {};
    const clips = answers.clips || item.clips.join(" ");
    for (const scale of scalesOf(item))
      if (answers[scale] !== undefined)
        found.push([test.id, kept.listener, item.kind, item.id, clips, scale, answers[scale]]);
  }
  return found;
}
function download() {
  const text = rows().map(row => row.join(",")).join("\\r\\n") + "\\r\\n";
  const link = node("a", [], { download: `answers-${kept.listener}.csv` });
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  document.body.append(link);
  link.click();
  link.remove();
}
show();
</script>
</html>
"""


def page(title: str, test: Mapping[str, Any]) -> str:
    """The page; what `test` says must not tell which system a clip is of."""
    inside = json.dumps(test, separators=(",", ":")).replace("<", "\\u003c")  # a script ends at the first </
    return TEMPLATE.replace("@TITLE@", html.escape(title)).replace("@TEST@", inside)
