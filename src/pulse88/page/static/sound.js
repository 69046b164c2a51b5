// The piano: samples that the server gives, played by Web Audio. Nothing else is ever fetched.

import { clamp } from "./music.js";

const VOICES = 72; // sounding at once; the oldest make room
const RELEASE = 0.16; // seconds in which a damper ends a string's sound
const TOP_UNDAMPED = 88; // above, strings have no dampers and ring out
const FETCHED_AT_ONCE = 2;
export const MIDDLE = [48, 52, 56, 60, 64, 68, 72, 76];

export class Sound {
  constructor(describe, fetchFile) {
    this.describe = describe; // () → {layers, pitches, url}
    this.fetchFile = fetchFile; // (address) → ArrayBuffer
    this.context = null;
    this.buffers = new Map(); // "layer/pitch" → AudioBuffer
    this.wanted = []; // "layer/pitch", in the order in which they are fetched
    this.begun = new Set();
    this.working = 0;
    this.resting = false;
    this.describing = null;
    this.failed = null; // why there is no sound
    this.voices = new Set();
    this.byPitch = new Map();
    this.volume = 0.8;
  }

  /** Seconds of the audio clock; 0 before anything was played. */
  get now() {
    return this.context?.currentTime ?? 0;
  }

  /** Needs a gesture of the user, as browsers have it. */
  async wake() {
    if (!this.context) {
      this.context = new AudioContext({ latencyHint: "interactive" });
      this.master = new GainNode(this.context, { gain: this.loudness() });
      const limiter = new DynamicsCompressorNode(this.context, {
        threshold: -10, knee: 8, ratio: 8, attack: 0.002, release: 0.18,
      });
      this.master.connect(limiter).connect(this.context.destination);
    }
    if (this.context.state !== "running") await this.context.resume();
  }

  setVolume(share) {
    this.volume = share;
    this.master?.gain.setTargetAtTime(this.loudness(), this.now, 0.02);
  }

  loudness() {
    return 1.5 * this.volume ** 2;
  }

  /** Begins to fetch samples: first what is nearest to `pitches`, then the others if `all` are wanted. */
  async load(pitches = [], all = false) {
    this.describing ??= this.begin();
    await this.describing;
    if (!this.samples) return;
    const { layers, pitches: there } = this.samples;
    // From the middle of the keyboard outwards, the loud layer first.
    const near = [...new Set(pitches.map((pitch) => this.nearestPitch(pitch)))];
    const order = (all ? there : near).toSorted((a, b) => near.includes(b) - near.includes(a) || Math.abs(a - 63) - Math.abs(b - 63));
    const first = layers.toReversed().flatMap((layer) => order.map((pitch) => `${layer}/${pitch}`));
    this.wanted = [...first.filter((key) => !this.begun.has(key)), ...this.wanted.filter((key) => !first.includes(key))];
    this.hire();
  }

  /** Whether fetching pauses: a server that renders samples has less time for music. */
  rest(resting) {
    this.resting = resting;
    if (!resting) this.hire();
  }

  hire() {
    while (this.working < FETCHED_AT_ONCE && this.wanted.length && this.mayFetch) this.work();
  }

  get mayFetch() {
    return !this.resting || !this.isEnough;
  }

  async begin() {
    try {
      this.samples = await this.describe();
    } catch (error) {
      this.failed = error.message;
    }
  }

  async work() {
    this.working++;
    while (this.wanted.length && this.mayFetch) {
      const key = this.wanted.shift();
      const [layer, pitch] = key.split("/");
      this.begun.add(key);
      try {
        const bytes = await this.fetchFile(this.samples.url.replace("{layer}", layer).replace("{pitch}", pitch));
        // An offline context decodes without a gesture.
        const decoder = new OfflineAudioContext(1, 1, 44100);
        this.buffers.set(key, await decoder.decodeAudioData(bytes));
      } catch (error) {
        this.failed = error.message;
        this.wanted = [];
      }
    }
    this.working--;
  }

  get isEnough() {
    return this.buffers.size >= 6;
  }

  get isReady() {
    return this.isEnough || (this.buffers.size > 0 && !this.working);
  }

  /** Resolves as soon as something can be played; false if nothing will ever be. */
  async ready(patience = 12000) {
    if (!this.isReady) await this.load(MIDDLE);
    const since = performance.now();
    while (!this.isReady) {
      if (this.failed || performance.now() - since > patience) return this.buffers.size > 0;
      await new Promise((resolve) => setTimeout(resolve, 30));
    }
    return true;
  }

  nearestPitch(pitch) {
    return this.samples.pitches.reduce((best, each) => (Math.abs(each - pitch) < Math.abs(best - pitch) ? each : best));
  }

  /** {buffer, pitch, layer} nearest to a key, of those that have come. */
  nearest(pitch, velocity) {
    const { layers, pitches } = this.samples;
    const byLayer = layers.toSorted((a, b) => Math.abs(a - velocity) - Math.abs(b - velocity));
    const byPitch = pitches.toSorted((a, b) => Math.abs(a - pitch) - Math.abs(b - pitch));
    for (const near of [byPitch.slice(0, 3), byPitch]) {
      for (const layer of byLayer) {
        for (const each of near) {
          const buffer = this.buffers.get(`${layer}/${each}`);
          if (buffer) return { buffer, pitch: each, layer };
        }
      }
    }
    return null;
  }

  /**
   * A key struck at audio time `when`, damped at `until` (null: until `damp`). Its string is free for a new strike.
   * Gives the voice, or null if there is no sample yet.
   */
  strike(pitch, velocity, when = this.now, until = null) {
    if (!this.context || !this.samples) return null;
    const sample = this.nearest(pitch, velocity);
    if (!sample) return null;
    const start = Math.max(when, this.now);
    const before = this.byPitch.get(pitch);
    if (before && before.start <= start) this.damp(before, start, 0.06);
    const source = new AudioBufferSourceNode(this.context, {
      buffer: sample.buffer,
      playbackRate: 2 ** ((pitch - sample.pitch) / 12),
    });
    // SoundFonts have amplitude go with the square of the velocity.
    const gain = new GainNode(this.context, { gain: clamp((velocity / sample.layer) ** 2, 0.02, 2) });
    source.connect(gain).connect(this.master);
    source.start(start);
    const voice = { pitch, source, gain, start, stop: Infinity };
    source.onended = () => {
      this.voices.delete(voice);
      if (this.byPitch.get(pitch) === voice) this.byPitch.delete(pitch);
      gain.disconnect();
    };
    this.voices.add(voice);
    this.byPitch.set(pitch, voice);
    if (until !== null) this.damp(voice, Math.max(until, start + 0.04));
    if (this.voices.size > VOICES) this.damp(this.voices.values().next().value, this.now, 0.03);
    return voice;
  }

  /** Ends a voice, if there is one, at audio time `when`. */
  damp(voice, when = this.now, release = RELEASE) {
    if (!voice || when >= voice.stop) return;
    if (voice.pitch > TOP_UNDAMPED && release === RELEASE) release = 0.8;
    voice.stop = when;
    const at = Math.max(when, this.now);
    voice.gain.gain.cancelScheduledValues(at);
    voice.gain.gain.setTargetAtTime(0, at, release / 3);
    voice.source.stop(at + release * 2);
  }

  /** Damps everything; what was to begin later never does. */
  silence(release = 0.07) {
    const now = this.now;
    for (const voice of [...this.voices]) {
      if (voice.start > now) this.cancel(voice);
      else this.damp(voice, now, release);
    }
  }

  /** Takes back what was to begin later. */
  cancelFuture() {
    for (const voice of [...this.voices]) if (voice.start > this.now) this.cancel(voice);
  }

  cancel(voice) {
    voice.source.onended = null;
    voice.source.stop();
    voice.gain.disconnect();
    this.voices.delete(voice);
    if (this.byPitch.get(voice.pitch) === voice) this.byPitch.delete(voice.pitch);
  }
}
