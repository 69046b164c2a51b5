"""A real Chromium on a real `pulse88 serve`, for the tests of the page.

Every page that is opened here notes what it asks for and what its console says: `Visit.check` fails if anything left
this machine or went wrong.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
HERE = {"127.0.0.1", "localhost", "::1"}
ROLES = {"button", "slider", "checkbox", "switch", "radio", "textbox", "combobox", "spinbutton", "link", "dialog"}
FAULTS = {"error", "warning"}  # lines of the console that a page of ours never writes
SECONDS = 60.0  # that anything may take on a busy machine

# A MIDI keyboard that isn't there: playMidi sends what it would.
MIDI_KEYBOARD = """
const input = { name: "Simulated keyboard", state: "connected", onmidimessage: null };
navigator.requestMIDIAccess = async () => ({ inputs: new Map([["1", input]]), onstatechange: null });
window.playMidi = (...data) => input.onmidimessage({ data: new Uint8Array(data), timeStamp: performance.now() });
"""
# Where the page leaves the random seed to the server, tests can't leave it to chance: 1, 2, 3 and so on.
NO_CHANCE = """
const unseeded = window.fetch;
let drawn = 0;
window.fetch = (resource, options = {}) => {
  if (resource !== "/v1/continuations") return unseeded(resource, options);
  const body = JSON.stringify({ random_seed: ++drawn, ...JSON.parse(options.body) });
  return unseeded(resource, { ...options, body });
};
"""
# What a browser does when a file is let go over the page.
DROP = """({ name, data }) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], name));
  for (const type of ["dragenter", "dragover", "drop"]) {
    document.body.dispatchEvent(new DragEvent(type, { bubbles: true, cancelable: true, dataTransfer }));
  }
}"""

# The loudest sample of what the page plays, watched from now on.
LISTEN = """() => {
  const { context, master } = pulse88.sound;
  const ear = new AnalyserNode(context, { fftSize: 2048 });
  const heard = new Float32Array(2048);
  master.connect(ear);
  window.loudest = 0;
  window.hearing = setInterval(() => {
    ear.getFloatTimeDomainData(heard);
    window.loudest = Math.max(window.loudest, ...heard);
  }, 30);
}"""
# Controls that can be seen, as [name, left, right, height].
CONTROLS = """() => [...document.querySelectorAll("button:not(.piano button), input, select")]
  .filter((element) => element.offsetParent && !element.closest(".away"))
  .map((element) => [element.id || element.textContent, element.getBoundingClientRect(), element.tagName])
  .filter(([, box]) => box.width)
  .map(([name, box, tag]) => [name, box.left, box.right, box.height, tag])"""
# What has the focus, and whether one sees that it has.
FOCUS = """() => {
  const focused = document.activeElement;
  if (!focused || focused === document.body) return null;
  const style = getComputedStyle(focused.matches(".segments input") ? focused.nextElementSibling : focused);
  const shown = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
  const name = focused.id || focused.className || focused.getAttribute("aria-label") || focused.tagName;
  return [name, shown];
}"""
# Least milliseconds to draw 5,000 notes, all of them in sight and then a window on some.
DRAW = """() => {
  const { roll } = pulse88;
  const note = (i) => ({ onset: i * 0.05, duration: 0.3, pitch: 36 + (i * 7) % 60, velocity: 30 + i % 90, part: 0 });
  const notes = Array.from({ length: 5000 }, (_, i) => note(i));
  roll.show({ notes, owners: notes.map((_, i) => (i % 2 ? "a" : null)), joins: [], pedal: [] });
  return [[0, roll.view.width / 250], [100, 60]].map(([start, scale]) => {
    roll.view = { ...roll.view, start, scale };
    return Math.min(...Array.from({ length: 30 }, () => (roll.draw(), roll.drawMilliseconds)));
  });
}"""


@contextmanager
def server() -> Iterator[str]:
    """The address of a fresh `pulse88 serve`, which ends with the block; or the one in PULSE88_SERVER, which stays."""
    if running := os.environ.get("PULSE88_SERVER"):
        yield running
        return
    pytest.importorskip("uvicorn", reason="the server's packages aren't installed: pip install '.[serve]'")
    command = [sys.executable, "-m", "pulse88", "serve", "--port", "0", "--workers", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "http://" in line:
                address = line[line.index("http://") :].split()[0].rstrip("/.")
                break
        else:
            raise AssertionError("pulse88 serve said no address")
        wait_until_ready(address)
        yield address
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def wait_until_ready(address: str) -> None:
    """Returns when the server has a worker."""
    end = time.monotonic() + SECONDS
    while True:
        try:
            urllib.request.urlopen(f"{address}/v1/health", timeout=10).close()
            return
        except urllib.error.HTTPError as error:
            assert error.code == 503 and time.monotonic() < end, f"{address} isn't ready: {error}"
        time.sleep(0.1)


@contextmanager
def chromium() -> Iterator[Any]:
    """Playwright's browser; skips where playwright or a Chromium is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed: pip install '.[check]'")
    path = os.environ.get("PULSE88_CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if path is None:
        pytest.skip("there is no Chromium on the path: install one, or name it in PULSE88_CHROMIUM")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A fresh visitor with a page of their own."""

    def __init__(self, browser: Any, address: str, width: int = 1280, height: int = 860, **context: Any) -> None:
        self.address = address
        self.context = browser.new_context(viewport={"width": width, "height": height}, **context)
        self.context.add_init_script(MIDI_KEYBOARD)
        self.context.add_init_script(NO_CHANCE)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.wrong: list[str] = []
        self.expected: list[str] = []  # parts of console errors that a test provokes
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("websocket", lambda socket: self.asked.append(socket.url))
        self.page.on(
            "console", lambda message: message.type in ("error", "warning") and self.wrong.append(message.text)
        )
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.goto(address)
        self.until("document.querySelectorAll('#examples button').length > 0")

    def __call__(self, script: str, argument: Any = None) -> Any:
        return self.page.evaluate(script, argument)

    def until(self, script: str, seconds: float = SECONDS) -> Any:
        """Waits until the expression is true; its value. (The page's policy forbids playwright's own waiting.)"""
        end = time.monotonic() + seconds
        while not (value := self(script)):
            assert time.monotonic() < end, f"never came true: {script}; the page says {self.wrong}"
            self.page.wait_for_timeout(20)
        return value

    def drop(self, data: bytes, name: str) -> None:
        self(DROP, {"name": name, "data": base64.b64encode(data).decode()})

    def begin(self, data: bytes, name: str = "seed.mid") -> None:
        """Drops a file and waits for its piece."""
        self.drop(data, name)
        self.until("document.body.dataset.mode === 'piece'")

    def set_range(self, field: str, value: float) -> None:
        self(
            """([field, value]) => {
              const input = document.getElementById(field);
              input.value = value;
              input.dispatchEvent(new Event("input", { bubbles: true }));
            }""",
            [field, value],
        )

    def made(self) -> None:
        """Waits until nothing is being made, and files are fetched."""
        self.until("!pulse88.piece.isMaking")
        self.until("Object.keys(pulse88.piece.files.takes).length >= pulse88.piece.session.order.length")

    def note_place(self, index: int) -> list[float]:
        """Where a note of the roll begins, in pixels of the window, once the layout has come to rest."""
        return self(
            """async (index) => {
              for (let i = 0; i < 3; i++) await new Promise(requestAnimationFrame);
              const { roll } = pulse88;
              roll.fitted = false;
              roll.view = { ...roll.view, scale: 60, start: Math.max(0, roll.onsets[index] - 3) };
              roll.draw();
              const [x, y] = roll.placeOf(index);
              const box = document.getElementById("roll").getBoundingClientRect();
              return [box.left + x + 1.5, box.top + y + 3];
            }""",
            index,
        )

    def nameless(self) -> list[str]:
        """Controls without a name, by the browser's own tree of accessibility."""
        tree = self.context.new_cdp_session(self.page).send("Accessibility.getFullAXTree")["nodes"]
        found = [node for node in tree if not node["ignored"] and node["role"]["value"] in ROLES]
        assert found
        return [str(node) for node in found if not node.get("name", {}).get("value", "").strip()]

    def check(self) -> None:
        """Nothing left this machine, and the console is silent but for what was provoked."""
        addresses = [urlsplit(url) for url in self.asked]
        left = {a.geturl() for a in addresses if a.scheme not in ("blob", "data") and a.hostname not in HERE}
        assert not left, left
        unexpected = [text for text in self.wrong if not any(part in text for part in self.expected)]
        assert not unexpected, unexpected

    def close(self) -> None:
        self.context.close()
