// Computer keyboard → semitones above a C, by where keys lie (event.code), so that every layout plays alike.

const WHITE = ["KeyA", "KeyS", "KeyD", "KeyF", "KeyG", "KeyH", "KeyJ", "KeyK", "KeyL", "Semicolon", "Quote"];
const WHITE_STEPS = [0, 2, 4, 5, 7, 9, 11, 12, 14, 16, 17];
const BLACK = { KeyW: 1, KeyE: 3, KeyT: 6, KeyY: 8, KeyU: 10, KeyO: 13, KeyP: 15 };

export const STEPS = new Map([...WHITE.map((code, i) => [code, WHITE_STEPS[i]]), ...Object.entries(BLACK)]);
export const OCTAVE_DOWN = "KeyZ";
export const OCTAVE_UP = "KeyX";

const LETTERS = new Map([...STEPS.keys()].map((code) => [code, code.replace("Key", "")]));
LETTERS.set("Semicolon", ";").set("Quote", "'");

/** The letter to print on a piano key `step` semitones above the keyboard's C, or "". */
export function letterOf(step) {
  for (const [code, itsStep] of STEPS) if (itsStep === step) return LETTERS.get(code);
  return "";
}

/** Whether a key press is meant for the page and not for a field, a button's own action or the browser. */
export function isForPiano(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return false;
  const target = event.target;
  return !(target?.matches?.("input:not([type=range]):not([type=checkbox]):not([type=radio]), textarea, select") ?? false);
}
