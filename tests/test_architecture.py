"""Who may import whom: a new file has to find its place in HOUSE, and imports go down or along a floor, never up."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCES = Path(__file__).parents[1] / "src" / "pulse88"


class Room(NamedTuple):
    floor: int
    wing: str  # music and model never reach each other, whichever way; the others know of neither, or join them
    modules: str


HOUSE = (
    Room(0, "words", "notes vocabulary config written"),
    Room(1, "music", "midi_events midi_strikes midi_write midi_file tokenizer audio picture musicality join key"),
    Room(0, "words", "sequential"),
    Room(1, "model", "delta_rule kernel_fla kernel_heads model"),
    Room(1, "model", "engine engine.layout engine.weights engine.state engine.reference"),
    Room(1, "model", "engine.library engine.plan engine.native_state engine.native"),
    Room(2, "music", "archives labels rules duplicates corpus journal selection"),
    Room(2, "ids", "crew published_form shards augmentation batches sitting"),
    Room(2, "model", "objective optimizer average checkpoint sampling generate steering snapshot"),
    Room(3, "rooms", "prepare data_statistics evaluate training_log train samples provenance playing continuation"),
    Room(1, "figures", "intervals"),
    Room(1, "music", "distributions"),
    Room(2, "music", "overlap_index"),
    Room(2, "ids", "likelihood baselines"),
    Room(3, "rooms", "engine_score trials report frechet"),
    Room(3, "rooms", "originality guard ranking listening listening_page"),
    Room(3, "rooms", "page"),
    Room(4, "doors", "terminal cli cli_train cli_evaluate cli_data cli_serve __main__"),
    Room(4, "doors", "serve serve.limits serve.problems serve.messages serve.turns serve.metrics serve.examples"),
    Room(4, "doors", "serve.uploads serve.samples serve.heap"),
    Room(4, "doors", "serve.room serve.duet_room serve.worker serve.pool serve.memory serve.takes serve.schemas"),
    Room(4, "doors", "serve.duet_messages serve.phrase serve.history serve.guard serve.streams serve.service"),
    Room(4, "doors", "serve.connections serve.load serve.duet serve.documented serve.page_routes serve.app serve.run"),
    Room(1, "model", "engine.adapter"),
    Room(2, "model", "low_rank initial_state suites"),
    Room(3, "rooms", "finetune ablate"),
    Room(4, "doors", "cli_originality cli_evidence cli_listen cli_finetune cli_ablate"),
)
PLACE = {module: room for room in HOUSE for module in room.modules.split()}
APART = {"music", "model"}
TORCH = {"delta_rule", "kernel_fla", "kernel_heads", "model", "objective", "optimizer", "average", "checkpoint"}
TORCH |= {"ablate", "evaluate", "training_log", "train", "cli_evaluate", "low_rank", "initial_state", "finetune"}
TORCH_PACKAGES = {"torch", "fla", "triton", "tensorboard"}
DISTRIBUTED = {"train"}
UNSAFE_PACKAGES = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def modules() -> dict[str, str]:
    """The source of every module but `pulse88` itself, by its name without the package's."""
    found = {}
    for path in SOURCES.rglob("*.py"):
        name = ".".join(path.relative_to(SOURCES).with_suffix("").parts).removesuffix(".__init__")
        if name != "__init__":
            found[name] = path.read_text(encoding="utf-8")
    return found


def imported(source: str) -> Iterator[str]:
    """Every module that the source imports anywhere, and every name that it takes from one, as `module.name`.

    A relative import keeps its dots.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def own_imports(source: str) -> set[str]:
    """The modules of the house that the source imports; a name that is none stands for itself."""
    found = set()
    for name in imported(source):
        head, _, inner = name.partition(".")
        if head == "pulse88" and inner != "__version__":
            place = inner
            while place not in PLACE and "." in place:
                place = place.rpartition(".")[0]
            found.add(place if place in PLACE else inner or head)
    return found


def faults(module: str, source: str) -> list[str]:
    """What the source of a module may not do."""
    return [*import_faults(module, source), *call_faults(module, source)]


def import_faults(module: str, source: str) -> Iterator[str]:
    here = PLACE[module]
    for name in sorted(own_imports(source)):
        if name not in PLACE:
            yield f"{module} imports {name!r}, which HOUSE doesn't know: import from the module that defines a name"
        elif PLACE[name].floor > here.floor:
            yield f"{module} on floor {here.floor} imports {name} on floor {PLACE[name].floor}"
        elif {PLACE[name].wing, here.wing} == APART:
            yield f"{module} of the {here.wing} wing imports {name} of the {PLACE[name].wing} wing"
    for name in sorted(set(imported(source))):
        head = name.partition(".")[0]
        if not head:
            yield f"{module} imports by dots: write pulse88"
        if (head in TORCH_PACKAGES or name.startswith("safetensors.torch")) and module not in TORCH:
            yield f"{module} imports {name}, but is not one of the modules that may use torch"
        if name.startswith(("torch.distributed", "torch.nn.parallel")) and module not in DISTRIBUTED:
            yield f"{module} imports {name}: only train may know of other processes"
        if head in UNSAFE_PACKAGES:
            yield f"{module} imports {name}, which runs what it reads"


def call_faults(module: str, source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if name == "torch.load" or (name == "torch.distributed" and module not in DISTRIBUTED):
                yield f"{module} uses {name}"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)  # with what it belongs to: model.eval is no eval
            if called in ("eval", "exec"):
                yield f"{module} calls {called}"
            if called.rpartition(".")[2] in ("import_module", "__import__"):
                yield f"{module} hides an import from this test by {called}"
            if called == "print" and PLACE[module].wing != "doors":
                yield f"{module} prints, which is for the doors"
            if any(
                keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False" for keyword in node.keywords
            ):
                yield f"{module} allows pickles"


def reached(module: str, graph: dict[str, set[str]]) -> set[str]:
    """Every module that a module imports, or that one of those imports, and so on."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        fresh = graph.get(waiting.pop(), set()) - seen
        seen |= fresh
        waiting.extend(fresh)
    return seen


GRAPH = {name: own_imports(source) & PLACE.keys() for name, source in modules().items() if name in PLACE}


def test_every_source_file_has_its_place_and_every_place_its_file() -> None:
    assert set(modules()) - set(PLACE) == set()
    assert set(PLACE) - set(modules()) == set()


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_a_module_keeps_to_its_place(module: str) -> None:
    assert faults(module, modules()[module]) == []


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_no_module_reaches_itself(module: str) -> None:
    assert module not in reached(module, GRAPH)


@pytest.mark.parametrize("module", [name for name in sorted(GRAPH) if PLACE[name].wing in APART])
def test_music_and_model_never_reach_each_other(module: str) -> None:
    other = (APART - {PLACE[module].wing}).pop()
    assert [name for name in reached(module, GRAPH) if PLACE[name].wing == other] == []


@pytest.mark.parametrize(
    "module", [name for name in GRAPH if PLACE[name].wing == "music"] + ["prepare", "continuation", "engine"]
)
def test_what_plays_and_continues_never_reaches_torch(module: str) -> None:
    assert reached(module, GRAPH) & TORCH == set()


def test_the_package_itself_imports_nothing_of_the_house_when_it_is_imported() -> None:
    tree = ast.parse((SOURCES / "__init__.py").read_text(encoding="utf-8"))
    run = [node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")]
    assert own_imports(ast.unparse(ast.Module(run, []))) == set()


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("notes", "from pulse88.tokenizer import Tokenizer", "notes on floor 0 imports tokenizer on floor 1"),
        ("notes", "def f():\n    import pulse88.midi_file as m", "notes on floor 0 imports midi_file on floor 1"),
        (
            "generate",
            "if x:\n    from pulse88 import continuation",
            "floor 2 imports continuation on floor 3",
        ),
        (
            "tokenizer",
            "from pulse88.engine import weights",
            "the music wing imports engine.weights of the model",
        ),
        (
            "tokenizer",
            "from pulse88.engine import Engine",
            "the music wing imports engine of the model wing",
        ),
        ("sampling", "from pulse88 import midi_file", "sampling of the model wing imports midi_file of the music wing"),
        ("audio", "from pulse88 import Continuer", "audio imports 'Continuer', which HOUSE doesn't know"),
        ("audio", "import pulse88", "audio imports 'pulse88', which HOUSE doesn't know"),
        ("audio", "from . import notes", "audio imports by dots"),
        (
            "audio",
            "from importlib import import_module as i\nimportlib.import_module('pulse88.cli')",
            "hides an import",
        ),
        ("audio", "import torch", "audio imports torch, but is not one of"),
        ("engine.native", "from torch.nn import Linear", "engine.native imports torch.nn.Linear, but"),
        ("engine.weights", "from safetensors.torch import load", "engine.weights imports safetensors.torch.load, but"),
        ("model", "import torch.distributed as dist", "model imports torch.distributed: only train"),
        ("model", "from torch import distributed", "model imports torch.distributed: only train"),
        ("model", "import torch\ntorch.distributed.barrier()", "model uses torch.distributed"),
        ("train", "import torch\ntorch.load(path)", "train uses torch.load"),
        ("train", "from pickle import loads", "train imports pickle.loads, which runs what it reads"),
        ("shards", "np.load(path, allow_pickle=True)", "shards allows pickles"),
        ("shards", "np.load(path, allow_pickle=flag)", "shards allows pickles"),
        ("config", "eval('1')", "config calls eval"),
        ("config", "def f():\n    exec(code)", "config calls exec"),
        ("train", "print('step')", "train prints"),
    ],
)
def test_faults_are_found(module: str, source: str, fault: str) -> None:
    assert any(fault in found for found in faults(module, source)), faults(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cli", "from pulse88 import __version__, midi_file\nprint(1)"),
        ("tokenizer", "from pulse88.vocabulary import BOS\nfrom pulse88 import notes"),
        ("engine.native", "from pulse88.engine.weights import Weights"),
        ("train", "import torch.distributed as dist\nfrom pulse88.model import Pulse88\nmodel.eval()"),
        ("shards", "np.load(path, allow_pickle=False)"),
    ],
)
def test_what_is_allowed_is_no_fault(module: str, source: str) -> None:
    assert faults(module, source) == []


def test_circles_and_long_ways_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert reached("a", graph) == {"a", "b", "c"}
    assert "d" not in reached("d", graph)
