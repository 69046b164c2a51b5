// The colours that canvases draw with: custom properties of the style sheet, read again when the theme changes.

const NAMES = [
  "ground", "row", "line", "line-strong", "ink", "muted", "key-white", "key-black", "key-edge", "key-gap",
  "playhead",
];
export const SHADES = 6; // steps from the softest to the loudest note

let colours = null;

/** {ground, row, ..., seed: [SHADES colours], new: [SHADES colours], seedTail, newTail} */
export function palette() {
  colours ??= read();
  return colours;
}

export function forgetPalette() {
  colours = null;
}

/** 0 to SHADES - 1 for a MIDI velocity. */
export const shadeOf = (velocity) => Math.min(SHADES - 1, Math.max(0, Math.floor(((velocity - 14) / 100) * SHADES)));

function read() {
  const style = getComputedStyle(document.documentElement);
  const value = (name) => style.getPropertyValue(`--${name}`).trim();
  const found = Object.fromEntries(NAMES.map((name) => [name, value(`roll-${name}`)]));
  for (const kind of ["seed", "new"]) {
    const [soft, loud] = [value(`${kind}-soft`), value(`${kind}-loud`)].map(numbers);
    found[kind] = Array.from({ length: SHADES }, (_, i) => mix(soft, loud, i / (SHADES - 1)));
    found[`${kind}Bright`] = value(`${kind}-bright`);
  }
  return found;
}

function numbers(hex) {
  return [1, 3, 5].map((at) => Number.parseInt(hex.slice(at, at + 2), 16));
}

function mix(from, to, share) {
  return `rgb(${from.map((value, i) => Math.round(value + (to[i] - value) * share)).join(" ")})`;
}
