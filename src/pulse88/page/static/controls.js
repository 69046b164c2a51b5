// The controls of the panel: what people set, in their words, and what the server is asked for.

import { clamp, keyName } from "./music.js";
import { settings as kept } from "./store.js";

export const LENGTHS = [5, 10, 15, 20, 30, 45, 60, 90, 120, 180];
const DENSEST = 20; // the end of the density band, which means "as many as come"
const MOODS = [[0.15, "calm"], [0.4, "gentle"], [0.6, "natural"], [0.85, "lively"], [1, "daring"]];
const LOWEST = 21;
const HIGHEST = 108;

/** temperature and top-p of a liveliness between 0 and 1, as docs/api.md has them. */
export function sampling(liveliness) {
  return { temperature: round(0.7 + 0.6 * liveliness), top_p: round(Math.min(0.995, 0.92 + 0.1 * liveliness)) };
}

export const mood = (liveliness) => MOODS.find(([most]) => liveliness <= most + 1e-9)[1];

/** "1 minute 30" for 90. */
export function lengthWord(seconds) {
  if (seconds < 60) return `${seconds} seconds`;
  const minutes = Math.floor(seconds / 60);
  const rest = seconds % 60;
  return `${minutes} minute${minutes > 1 ? "s" : ""}${rest ? ` ${rest}` : ""}`;
}

/** The settings of a request from what the controls say; what is as it comes is left out. */
export function settingsOf(state) {
  const asked = { seconds: LENGTHS[state.length] };
  if (state.ending) {
    asked.end_within = state.ending;
    asked.seconds = state.ending;
  }
  if (state.custom) Object.assign(asked, { temperature: state.temperature, top_p: state.topP });
  else asked.liveliness = state.liveliness;
  if (state.register[0] > LOWEST || state.register[1] < HIGHEST) asked.register = state.register;
  const [low, high] = state.density;
  if (low > 0 || high < DENSEST) asked.density = [low > 0 ? low : null, high < DENSEST ? high : null];
  if (state.inKey) asked.in_key = true;
  if (state.bestOf > 1) asked.best_of = state.bestOf;
  return asked;
}

const FRESH = {
  length: 4, liveliness: 0.5, custom: false, temperature: 1, topP: 0.97, takes: 1, register: [LOWEST, HIGHEST],
  density: [0, DENSEST], inKey: false, playAlong: true, ending: null, bestOf: 1, randomSeed: null,
};

const byId = (id) => document.getElementById(id);

export class Controls {
  constructor() {
    this.state = { ...FRESH, ...kept.read("controls", {}), randomSeed: null };
    this.show();
    byId("controls").addEventListener("input", (event) => this.read(event.target));
    byId("controls").addEventListener("submit", (event) => event.preventDefault());
  }

  get takes() {
    return this.state.takes;
  }

  get settings() {
    return settingsOf(this.state);
  }

  /** What the server can't do is hidden. */
  limit({ limits, defaults }) {
    for (const option of byId("best-of").options) option.hidden = option.disabled = Number(option.value) > limits.best_of;
    for (const [field, name] of [["register-band", "register"], ["density-band", "density"], ["in-key", "in_key"], ["ending", "end_within"], ["best-of", "best_of"]]) {
      byId(field).closest(".field, .switch").hidden = !(name in defaults);
    }
  }

  read(field) {
    const number = (id) => Number(byId(id).value);
    const state = this.state;
    if (field.id === "liveliness") state.custom = false;
    if (field.id === "temperature" || field.id === "top-p") state.custom = true;
    state.length = number("length");
    state.liveliness = number("liveliness");
    state.takes = Number(document.querySelector("input[name=takes]:checked").value);
    state.register = band("register", field);
    state.density = band("density", field);
    state.inKey = byId("in-key").checked;
    state.playAlong = byId("play-along").checked;
    state.ending = number("ending") || null;
    state.bestOf = number("best-of");
    if (state.custom) {
      state.temperature = clamp(number("temperature"), 0, 2);
      state.topP = clamp(number("top-p") || 0.97, 0.01, 1);
    }
    const seed = byId("random-seed").value;
    state.randomSeed = seed === "" || !byId("random-seed").validity.valid ? null : Number(seed);
    this.show(field);
    kept.write("controls", state);
  }

  /** Everything as the state has it, but the field that is being typed in. */
  show(typed = null) {
    const { state } = this;
    const set = (id, value) => {
      if (byId(id) !== typed || byId(id).type === "range") byId(id).value = value;
    };
    set("length", state.length);
    set("liveliness", state.liveliness);
    document.querySelector(`input[name=takes][value="${state.takes}"]`).checked = true;
    ["low", "high"].forEach((side, i) => {
      set(`register-${side}`, state.register[i]);
      set(`density-${side}`, state.density[i]);
    });
    byId("in-key").checked = state.inKey;
    byId("play-along").checked = state.playAlong;
    set("ending", state.ending ?? "");
    set("best-of", state.bestOf);
    const { temperature, top_p: topP } = state.custom ? { temperature: state.temperature, top_p: state.topP } : sampling(state.liveliness);
    set("temperature", round(temperature));
    set("top-p", round(topP));
    this.showWords();
  }

  showWords() {
    const { state } = this;
    const length = state.ending ? `${lengthWord(state.ending)} at most` : lengthWord(LENGTHS[state.length]);
    say("length", length, lengthWord(LENGTHS[state.length]));
    byId("length").disabled = state.ending !== null;
    say("liveliness", state.custom ? "by the details" : mood(state.liveliness));
    const [lowest, highest] = state.register;
    byId("register-word").value = lowest === LOWEST && highest === HIGHEST ? "all keys" : `${keyName(lowest)} to ${keyName(highest)}`;
    byId("register-low").setAttribute("aria-valuetext", keyName(lowest));
    byId("register-high").setAttribute("aria-valuetext", keyName(highest));
    byId("density-word").value = densityWord(state.density);
    for (const id of ["length", "liveliness"]) fill(byId(id));
    fillBand("register", LOWEST, HIGHEST, state.register);
    fillBand("density", 0, DENSEST, state.density);
  }
}

function say(id, word, valueText = word) {
  byId(`${id}-word`).value = word;
  byId(id).setAttribute("aria-valuetext", valueText);
}

function densityWord([low, high]) {
  if (low === 0 && high === DENSEST) return "as it comes";
  if (high === DENSEST) return `${low} notes/s or more`;
  return low === 0 ? `up to ${high} notes/s` : `${low} to ${high} notes/s`;
}

/** Both ends of a band; the one that is moved pushes the other along. */
function band(name, field) {
  let low = Number(byId(`${name}-low`).value);
  let high = Number(byId(`${name}-high`).value);
  const least = name === "register" ? 11 : 1;
  if (high - low < least) {
    const [bottom, top] = [Number(byId(`${name}-low`).min), Number(byId(`${name}-high`).max)];
    if (field.id === `${name}-low`) high = Math.min(top, low + least);
    else low = Math.max(bottom, high - least);
    if (high - low < least) [low, high] = field.id === `${name}-low` ? [high - least, high] : [low, low + least];
  }
  return [low, high];
}

/** How much of a range's track is filled, for browsers whose tracks don't tell. */
export function fill(range) {
  const share = (Number(range.value) - Number(range.min)) / (Number(range.max) - Number(range.min));
  range.style.setProperty("--share", `${100 * share}%`);
}

function fillBand(name, bottom, top, [low, high]) {
  const style = byId(`${name}-band`).style;
  style.setProperty("--from", `${(100 * (low - bottom)) / (top - bottom)}%`);
  style.setProperty("--to", `${(100 * (high - bottom)) / (top - bottom)}%`);
}

const round = (value) => Math.round(value * 1000) / 1000;
