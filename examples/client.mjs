// A client of `pulse88 serve` in JavaScript, for browsers and for node 18 or newer, with nothing to install.
//
//     node examples/client.mjs examples/motif/seed.mid out.mid 20
//     node examples/client.mjs SEED OUT [SECONDS [SERVER [RANDOM_SEED]]]

/** The events of one continuation as they come (docs/api.md). Leaving the loop stops the making. */
export async function* continued(server, midi, settings = {}, randomSeed = null) {
  const leaving = new AbortController();
  const asked = { midi_base64: base64(midi), settings, random_seed: randomSeed };
  const answer = await fetch(`${server}/v1/continuations`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(asked),
    signal: leaving.signal,
  });
  if (!answer.ok) throw new Error((await answer.json()).detail);
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for await (const piece of answer.body) {
      const lines = (rest + decoder.decode(piece, { stream: true })).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line) yield JSON.parse(line);
    }
  } finally {
    leaving.abort();
  }
}

/** A take as mid, wav or png. */
export async function takeAs(server, take, kind) {
  const answer = await fetch(`${server}/v1/takes/${take}.${kind}`);
  if (!answer.ok) throw new Error((await answer.json()).detail);
  return new Uint8Array(await answer.arrayBuffer());
}

function base64(bytes) {
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}

async function main([seed, out, seconds = "20", server = "http://127.0.0.1:8088", randomSeed]) {
  const { readFile, writeFile } = await import("node:fs/promises");
  const settings = { seconds: Number(seconds) };
  const events = continued(server, await readFile(seed), settings, randomSeed ? Number(randomSeed) : null);
  let take = "";
  for await (const event of events) {
    take = event.take;
    if (event.type === "error") throw new Error(event.problem.detail);
    if (event.type === "note") {
      const [onset, duration, pitch, velocity] = event.note;
      console.log(`${onset.toFixed(3)} s  ${pitch} for ${duration.toFixed(3)} s at ${velocity}`);
    }
  }
  await writeFile(out, await takeAs(server, take, out.split(".").pop()));
  console.log(`Wrote ${out}.`);
}

if (typeof process !== "undefined" && process.argv[1]?.endsWith("client.mjs")) {
  await main(process.argv.slice(2)).catch((error) => {
    console.error(error.message);
    process.exitCode = 1;
  });
}
