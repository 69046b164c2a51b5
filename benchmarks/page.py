"""What a musician waits for on the page: from the click on Continue to the first note, made and heard; drawing; duets.

    python benchmarks/page.py --runs 9

Needs what the browser tests need (playwright and a Chromium); starts a server of its own. The first audible note is
the audio clock's time of the first new note, with the output latency that the browser tells.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "page"))

from browser import DRAW, Visit, chromium, server  # noqa: E402

# Frames in two seconds of playback with 5,000 notes, and the longest time between two.
FRAMES = """async () => {
  const { player, roll } = pulse88;
  await player.play(100);
  const times = [];
  await new Promise((resolve) => {
    const frame = (time) => {
      times.push(time);
      if (time - times[0] < 2000) requestAnimationFrame(frame);
      else resolve();
    };
    requestAnimationFrame(frame);
  });
  player.pause();
  const gaps = times.slice(1).map((time, i) => time - times[i]);
  return [gaps.length / 2, Math.max(...gaps)];
}"""
SHOW = """() => {
  const note = (i) => ({ onset: i * 0.05, duration: 0.3, pitch: 36 + (i * 7) % 60, velocity: 30 + i % 90, part: 0 });
  const notes = Array.from({ length: 5000 }, (_, i) => note(i));
  const heard = { notes, owners: notes.map(() => null), joins: [], pedal: [] };
  pulse88.roll.show(heard);
  pulse88.player.show(heard);
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--seed", type=Path, default=ROOT / "examples" / "carol" / "seed.mid")
    asked = parser.parse_args()
    with chromium() as browser, server() as address:
        visit = Visit(browser, address)
        visit.begin(asked.seed.read_bytes())
        visit.set_range("length", 0)
        for run in range(asked.runs):
            visit.page.locator("#lanes .lane-pick").first.click()
            visit.page.locator("#continue").click()
            visit.until(f"pulse88.measures.clickToSound.length > {run}")
            visit.made()
            visit("pulse88.player.playing && pulse88.player.pause()")
            visit.until("!pulse88.sound.wanted.length && !pulse88.sound.working")
        for name, measured in (("here", "clickToNote"), ("audible", "clickToSound")):
            cold, *times = visit(f"pulse88.measures.{measured}")
            low, high = min(times), max(times)
            print(
                f"click to first note {name}: median {statistics.median(times):.0f} ms ({low:.0f} to {high:.0f}), ",
                end="",
            )
            print(f"{cold:.0f} ms on a server that has just begun and renders the piano's sounds")
        everything, window = visit(DRAW)
        print(f"5,000 notes drawn: all in sight {everything:.1f} ms, a window of them {window:.1f} ms (least of 30)")
        visit(SHOW)
        rate, longest = visit(FRAMES)
        print(f"frames a second in playback of 5,000 notes: {rate:.0f}, longest gap {longest:.0f} ms")
        visit.close()
        duet(Visit(browser, address), asked.runs)


def duet(visit: Visit, runs: int) -> None:
    page = visit.page
    page.locator("#duet").click()
    page.locator("#midi-connect").click()
    visit.until("pulse88.live.duet.turn === 'you'")
    for run in range(runs):
        for pitch in (60, 64, 67, 72):
            visit(f"playMidi(0x90, {pitch}, 80)")
            page.wait_for_timeout(100)
            visit(f"playMidi(0x80, {pitch}, 0)")
        visit.until(f"pulse88.live.duet.latencies.length > {run}")
        visit.until("pulse88.live.duet.notes.length && pulse88.live.duet.turn !== 'connecting'")
        page.wait_for_timeout(400)
    sent = visit("pulse88.live.duet.latencies.map((each) => each.first)")
    heard = visit("pulse88.live.delays")
    for name, times in (("sent", sent), ("sounding", heard)):
        low, high = min(times), max(times)
        print(f"duet, pause to first note {name}: median {statistics.median(times):.0f} ms ({low:.0f} to {high:.0f})")
    visit.close()


if __name__ == "__main__":
    main()
