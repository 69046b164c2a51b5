"""The page's static files: nothing from elsewhere, nothing inline, and its pure modules' own tests in node."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pulse88.page import STATIC

ROOT = Path(__file__).parents[1]
MODULES = sorted(STATIC.glob("*.js"))
PAGE = (STATIC / "index.html").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Every element of a page: tag and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(PAGE)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


ELEMENTS = Elements().found
IDS = [attributes["id"] for _, attributes in ELEMENTS if attributes.get("id")]


def test_the_packages_data_hold_every_file_of_the_page() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^packages = .*"pulse88.page"', project, re.MULTILINE)
    (pattern,) = re.findall(r'^"pulse88.page" = \["(.*)"\]$', project, re.MULTILINE)
    assert set(STATIC.parent.glob(pattern)) == set(STATIC.iterdir())


def test_a_strict_content_security_policy_holds() -> None:
    """No inline script, style or handler: scripts and styles come from files of this server alone."""
    for tag, attributes in ELEMENTS:
        assert tag != "style" and (tag != "script" or attributes.get("src", "").startswith("/static/")), attributes
        assert not [name for name in attributes if name == "style" or name.startswith("on")], (tag, attributes)
    assert not re.search(r"<script[^>]*>\s*\S+[^<]*</script>", PAGE)


@pytest.mark.parametrize("path", sorted(STATIC.iterdir()), ids=lambda path: path.name)
def test_nothing_names_another_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")  # a name, never fetched
    assert not re.findall(r"(?:https?:|wss?:|['\"(])//[\w.]+", text)


def test_pages_on_a_network_address_work_too() -> None:
    """Without https browsers lack randomUUID, subtle cryptography, clipboard and worklets; MIDI is asked for first."""
    for path in MODULES:
        uses = re.findall(
            r"randomUUID\(|crypto\.subtle|navigator\.clipboard|audioWorklet", path.read_text(encoding="utf-8")
        )
        assert not uses, f"{path.name}: {uses}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_what_comes_from_outside_stays_text(path: Path) -> None:
    """Names of files and sentences of servers are never read as HTML or code."""
    text = path.read_text(encoding="utf-8")
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)


def test_what_the_page_names_is_there() -> None:
    assert len(IDS) == len(set(IDS))
    for _, attributes in ELEMENTS:
        for name in ("for", "aria-labelledby", "aria-describedby"):
            assert set((attributes.get(name) or "").split()) <= set(IDS), attributes
        for name in ("src", "href"):
            address = attributes.get(name) or ""
            if address.startswith("/static/"):
                assert (STATIC / address.removeprefix("/static/")).is_file(), address
            elif address.startswith("#"):
                assert address[1:] in IDS, address


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_modules_import_and_find_what_is_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for names, module in re.findall(r'^import (?:\* as \w+|\{([^}]*)\}) from "\./([\w.]+)";', text, re.MULTILINE):
        source = (STATIC / module).read_text(encoding="utf-8")
        for name in filter(None, (name.split(" as ")[0].strip() for name in names.split(","))):
            exported = rf"^export (?:async )?(?:function\*?|const|let|class) {re.escape(name)}\b"
            assert re.search(exported, source, re.MULTILINE), f"{path.name} imports {name} from {module}"
    for name in re.findall(r'(?:byId|onClick)\("([\w-]+)"', text):
        assert name in IDS, f"{path.name} looks for #{name}"


def test_modules_import_what_stands_above_them_or_beside() -> None:
    """As docs/page.md has it."""
    table = (ROOT / "docs" / "page.md").read_text(encoding="utf-8").partition("| modules | |")[2].partition("\n\n")[0]
    row = {name: at for at, line in enumerate(table.splitlines()) for name in re.findall(r"`(\w+)`", line)}
    assert set(row) == {path.stem for path in MODULES}
    for path in MODULES:
        for other in re.findall(r'from "\./(\w+)\.js"', path.read_text(encoding="utf-8")):
            assert row[other] <= row[path.stem], f"{path.stem} imports {other}"


def test_every_colour_is_there_in_both_themes() -> None:
    style = (STATIC / "style.css").read_text(encoding="utf-8")
    dark, by_system, chosen = (re.findall(r"(--[\w-]+): ([^;]+);", block) for block in theme_blocks(style))
    assert by_system == chosen
    assert {name for name, _ in dark} == {name for name, _ in chosen}


def theme_blocks(style: str) -> list[str]:
    starts = (":root {", ':root:not([data-theme="dark"]) {', ':root[data-theme="light"] {')
    return [style[style.index(start) : style.index("}", style.index(start))] for start in starts]


def contrast(one: str, other: str) -> float:
    """The ratio of luminances, WCAG 2.2, of two colours #rrggbb."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 2], ids=["dark", "light"])
def test_text_has_contrast(theme: int) -> None:
    """4.5 for text, as WCAG 2.2 AA asks."""
    style = (STATIC / "style.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"(--[\w-]+): (#\w{6});", theme_blocks(style)[theme]))
    pairs = [(f"--{text}", f"--{ground}") for text in ("ink", "muted") for ground in ("ground", "raised", "raised-2")]
    pairs += [("--seed-ink", "--raised"), ("--new-ink", "--raised"), ("--danger", "--raised"), ("--on-new", "--new")]
    pairs += [("--ground", "--ink"), ("--roll-muted", "--roll-ground")]
    poor = {pair: round(contrast(*(colours[name] for name in pair)), 2) for pair in pairs}
    assert not {pair: ratio for pair, ratio in poor.items() if ratio < 4.5}


def test_pure_modules_pass_their_own_tests() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node: the page's pure modules are tested by its test runner")
    version = subprocess.run([node, "--version"], capture_output=True, text=True).stdout
    if int(version.lstrip("v").split(".")[0]) < 20:
        pytest.skip("this node is older than 20, the first with all that browsers have")
    tests = [str(path) for path in sorted((ROOT / "tests" / "page").glob("*.test.mjs"))]
    ran = subprocess.run([node, "--test", *tests], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout
    assert re.search(r"^(?:#|ℹ) pass [1-9]", ran.stdout, re.MULTILINE), ran.stdout
