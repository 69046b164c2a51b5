// Layout of the roll: seconds ↔ pixels, what is visible, ticks, zoom. Pure; pixels are CSS pixels.

import { clamp } from "./music.js";

export const LEAST_SCALE = 2; // pixels a second
export const MOST_SCALE = 600;
const TICKS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600];

/** A window on time: `start` seconds at its left edge, `scale` pixels a second, `width` pixels. */
export const xOf = (view, time) => (time - view.start) * view.scale;
export const timeOf = (view, x) => view.start + x / view.scale;
export const stopOf = (view) => view.start + view.width / view.scale;

/** The scale at which everything is seen at once; a single note fills no screen. */
export const fitScale = (width, length) => Math.min(width / Math.max(length, 4), MOST_SCALE);

/** The view moved so that it shows no more emptiness than half a screen behind the end. */
export function bounded(view, length) {
  const shown = view.width / view.scale;
  return { ...view, start: clamp(view.start, 0, Math.max(0, length - shown / 2)) };
}

/** The scale times `factor`, what is at pixel `x` staying there. */
export function zoomed(view, factor, x, length) {
  const scale = clamp(view.scale * factor, Math.min(LEAST_SCALE, fitScale(view.width, length)), MOST_SCALE);
  const time = timeOf(view, x);
  return bounded({ ...view, scale, start: time - x / scale }, length);
}

/** The view that keeps `time` at `share` of its width once it has come so far; before, it stands still. */
export function following(view, time, length, share = 0.42) {
  return bounded({ ...view, start: time - (view.width * share) / view.scale }, Math.max(length, time));
}

/** As following, by whole screens: for those who want little motion. */
export function paging(view, time, length) {
  const shown = view.width / view.scale;
  if (time >= view.start && time < view.start + shown * 0.96) return view;
  return bounded({ ...view, start: time - shown * 0.04 }, Math.max(length, time));
}

/** Seconds between ticks that are `least` pixels apart or more. */
export function tickStep(scale, least = 84) {
  return TICKS.find((step) => step * scale >= least) ?? TICKS.at(-1) * Math.ceil(least / (TICKS.at(-1) * scale));
}

/** Times of the ticks in a view. */
export function ticks(view, least) {
  const step = tickStep(view.scale, least);
  const first = Math.max(0, Math.ceil(view.start / step - 1e-9));
  const last = Math.floor(stopOf(view) / step + 1e-9);
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => (first + i) * step);
}

/**
 * Indices [first, last) of the notes that may be seen: sorted by onset, none sounding longer than `longest` seconds.
 */
export function visible(onsets, start, stop, longest) {
  return [lowerBound(onsets, start - longest), lowerBound(onsets, stop)];
}

function lowerBound(values, value) {
  let low = 0;
  let high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Rows of the roll: `low` to `high` are the pitches drawn, `height` their pixels. */
export const rowHeight = (rows) => rows.height / (rows.high - rows.low + 1);
export const yOf = (rows, pitch) => (rows.high - pitch) * rowHeight(rows);
export const pitchAt = (rows, y) => clamp(Math.floor(rows.high + 1 - y / rowHeight(rows)), rows.low, rows.high);
