// The server's HTTP API (docs/api.md), as far as the page needs it. Whatever goes wrong becomes a Problem: a sentence.

export class Problem extends Error {
  constructor(sentence, status = 0) {
    super(sentence);
    this.status = status;
  }
}

const UNREACHABLE = "The server doesn't answer. Is pulse88 serve still running?";

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(UNREACHABLE);
  }
  if (!response.ok) throw new Problem(await sentenceOf(response), response.status);
  return response;
}

async function sentenceOf(response) {
  try {
    const problem = await response.json();
    return sentence(problem);
  } catch {
    return `The server answered with an error (${response.status}).`;
  }
}

/** A problem+json object as a sentence with a capital letter and a full stop. */
export function sentence(problem) {
  const said = String(problem?.detail || problem?.title || "Something went wrong on the server").trim();
  const begun = said[0].toUpperCase() + said.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

const json = async (path, options) => (await ask(path, options)).json();
const post = (body, type) => ({ method: "POST", body, headers: { "Content-Type": type } });

export const info = () => json("/v1/info");
export const examples = async () => (await json("/v1/examples")).examples;
export const exampleFile = async (id) => (await ask(`/v1/examples/${encodeURIComponent(id)}.mid`)).arrayBuffer();
export const samples = () => json("/v1/samples");

/** A seed from the bytes of a MIDI file. */
export const seedOfFile = async (bytes) => seedFrom(await json("/v1/seeds", post(bytes, "audio/midi")));

/** A seed from notes as the page holds them. */
export async function seedOfNotes(notes, pedal) {
  const body = {
    notes: notes.map(({ onset, duration, pitch, velocity }) => ({ onset, duration, pitch, velocity })),
    pedal: pedal.map(({ time, value }) => ({ time, value })),
  };
  return seedFrom(await json("/v1/seeds", post(JSON.stringify(body), "application/json")));
}

/** A take that this server makes again from its MIDI file; its id. */
export const revive = async (bytes) => (await json("/v1/takes", post(bytes, "audio/midi"))).take;

/** A take's file, `kind` mid, wav or png, `part` whole or new, as a Blob. */
export const takeFile = async (id, kind, part = "whole") => (await ask(`/v1/takes/${id}.${kind}?part=${part}`)).blob();

/** Takes as they are made: yields the server's events until all are done. Aborting `signal` stops the making. */
export async function* continuations(request, signal) {
  const headers = { "Content-Type": "application/json", Accept: "application/x-ndjson" };
  const body = JSON.stringify(request);
  const response = await ask("/v1/continuations", { method: "POST", body, headers, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const text of lines) if (text.trim()) yield JSON.parse(text);
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof SyntaxError) throw error;
    throw new Problem("The connection to the server broke off. What had come is kept.");
  }
}

/** The address of the duet's WebSocket. */
export const duetAddress = () => `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/duet`;

/** A note of the server, [onset, duration, pitch, velocity, part]. */
export function noteFrom([onset, duration, pitch, velocity, part = 0]) {
  return { onset, duration, pitch, velocity, part };
}

function seedFrom(answer) {
  const own = new Set((answer.parts ?? []).flatMap((name, part) => (name === "Pulse88" ? [part] : [])));
  return {
    server: answer.seed,
    notes: answer.notes.map((row) => ({ ...noteFrom(row), model: own.has(row[4]) })),
    pedal: answer.pedal.map(([time, value, part]) => ({ time, value, part })),
    readFrom: answer.read_from,
    remarks: answer.remarks,
    parts: answer.parts ?? [],
  };
}
