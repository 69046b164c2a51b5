// The duet's side of the WebSocket (docs/api.md): sends what is played, hears answers, counts latencies. Times are
// seconds of performance.now()'s clock.

import { duetAddress, noteFrom, sentence } from "./api.js";

export const now = () => performance.now() / 1000;

export class Duet extends EventTarget {
  /** `options` are those of `hello`: {settings, pause, answer_seconds, seed}. */
  constructor(options, connect = () => new WebSocket(duetAddress())) {
    super();
    this.turn = "connecting"; // "you", "it"
    this.silent = false; // whether its last answer had no note
    this.answers = new Map(); // number → {notes, ended}
    this.latencies = []; // {first, waited, read, made, heard}: milliseconds
    this.unsent = [{ type: "hello", ...options }]; // while it connects
    this.socket = connect();
    this.socket.addEventListener("open", () => this.unsent.splice(0).forEach((message) => this.send(message)));
    this.socket.addEventListener("message", (message) => this.hear(JSON.parse(message.data)));
    this.socket.addEventListener("close", () => this.closed());
  }

  send(message) {
    if (this.socket.readyState === WebSocket.CONNECTING) this.unsent.push(message);
    else if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  /** A key or pedal of the user's; playing while it answers makes it yield at once, before the server knows. */
  play({ kind, pitch, velocity, value }, time) {
    if (kind === "on") {
      this.silent = false;
      if (this.turn === "it") this.yieldNow(time);
      this.send({ type: "on", time, pitch, velocity });
    } else if (kind === "off") this.send({ type: "off", time, pitch });
    else this.send({ type: "pedal", time, value });
  }

  yieldNow(time) {
    this.current = null;
    this.setTurn("you");
    this.tell("silence", { time });
  }

  hear(message) {
    const answer = this.answers.get(message.answer);
    if (message.type === "ready") this.setTurn("you");
    else if (message.type === "answering") {
      this.answers.set(message.answer, { notes: [], noticed: message.time });
      this.current = message.answer;
      this.setTurn("it");
    } else if (message.type === "note" && message.answer === this.current) {
      const note = { ...noteFrom(message.note), model: true };
      answer.notes.push(note);
      this.tell("note", { note, answer, first: answer.notes.length === 1 });
    } else if (message.type === "latency") {
      const { first_note_ms: first, waited_ms: waited, read_ms: read, made_ms: made } = message;
      this.latencies.push({ first, waited, read, made });
      this.tell("latency");
    } else if (message.type === "answered" && message.answer === this.current) {
      const last = answer.notes.at(-1);
      this.silent = !last;
      answer.ends = last ? last.onset + last.duration : now();
      this.tell("answered", answer);
      this.whenOver(message.answer, answer.ends);
    } else if (message.type === "yielded") this.yielded(message, answer);
    else if (message.type === "error") this.tell("problem", sentence(message.problem));
  }

  yielded({ time, kept, answer: number }, answer) {
    if (answer) answer.notes.length = Math.min(answer.notes.length, kept);
    if (number === this.current) this.yieldNow(time);
    this.tell("cut", { time });
  }

  whenOver(number, time) {
    setTimeout(() => {
      if (this.current !== number) return;
      this.current = null;
      this.setTurn("you");
    }, Math.max(0, (time - now()) * 1000));
  }

  /** All that the model plays, also what is still to come. */
  get notes() {
    return [...this.answers.values()].flatMap((answer) => answer.notes);
  }

  /** What of it is heard by `time`, cut where it yielded or hasn't ended yet. */
  heard(time) {
    const begun = this.notes.filter((note) => note.onset < time);
    return begun.map((note) => ({ ...note, duration: Math.min(note.duration, Math.max(0.05, time - note.onset)) }));
  }

  setTurn(turn) {
    this.turn = turn;
    this.tell("turn");
  }

  tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  closed() {
    if (this.turn !== "over") this.tell("problem", "The duet's connection broke off. What was played is still here.");
    this.turn = "over";
  }

  end() {
    this.turn = "over";
    this.socket.close();
  }
}

/** Counts of milliseconds in steps: [{from, count}], the last step holding all that lie beyond. */
export function histogram(values, step = 25, steps = 12) {
  const bars = Array.from({ length: steps }, (_, i) => ({ from: i * step, count: 0 }));
  for (const value of values) bars[Math.min(steps - 1, Math.max(0, Math.floor(value / step)))].count++;
  return bars;
}

/** The middle value; of an even number, the mean of the two; null of none. */
export function median(values) {
  if (!values.length) return null;
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
