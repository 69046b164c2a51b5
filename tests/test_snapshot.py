"""A take that goes through bytes goes on as if it had not; bytes that don't fit are refused before they are used."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as arrays_of
from safetensors.numpy import save as serialise

from engine_law import random_weights
from pulse88.config import TINY, SamplingConfig
from pulse88.engine import Engine, load
from pulse88.engine.library import library
from pulse88.engine.weights import Weights, metadata_of, random_tensors, save
from pulse88.generate import Event, Take, advance, begin, play
from pulse88.snapshot import SnapshotError, _digest
from pulse88.snapshot import dump as dump_take
from pulse88.snapshot import load as load_take
from pulse88.vocabulary import BOS, PUBLISHED

SAMPLING = SamplingConfig(temperature=1.1, top_p=0.9)
SEED = (BOS, 0, 60, 130, 160, *((5, 64, 131, 161) * 9))


def names() -> list[str]:
    try:
        library()
    except ImportError:
        return ["numpy"]
    return ["native", "numpy"]


def engine(name: str) -> Engine:
    return load(random_weights("tiny"), name)


def after(take: Take, events: int) -> tuple[list[Event], Take]:
    made = list(islice(play(take), events))
    return [event for event, _ in made], made[-1][1] if made else take


def start(name: str, **options: Any) -> Take:
    return begin(engine(name), SEED, SAMPLING, **{"random_seed": 2**64 - 1, "number": 3, **options})


@pytest.mark.parametrize("name", names())
@settings(max_examples=12, deadline=None)
@given(made=st.integers(0, 90))  # The context of 256 tokens is full after 54 events.
def test_a_take_goes_on_bit_for_bit(name: str, made: int) -> None:
    _, take = after(start(name, may_end=True, keep=20), made)
    data = dump_take(take)
    restored = load_take(engine(name), data)
    assert dump_take(restored) == data
    for field in ("sampling", "random_seed", "number", "may_end", "keep", "anchor", "window", "grammar", "events"):
        assert getattr(restored, field) == getattr(take, field), field
    events, further = after(restored, 25)
    expected, unstopped = after(take, 25)
    assert events == expected
    theirs, ours = further.state.snapshot(), unstopped.state.snapshot()
    assert all(np.array_equal(theirs[array], ours[array]) for array in ours)
    assert dump_take(take) == data, "going on changes nothing behind"


@pytest.mark.parametrize("name", names())
def test_branches_of_a_restored_take_do_not_disturb_each_other(name: str) -> None:
    _, take = after(start(name), 7)
    restored = load_take(engine(name), dump_take(take))
    made = [after(restored.numbered(number), 12)[0] for number in range(3)]
    assert made == [after(take.numbered(number), 12)[0] for number in range(3)]
    assert len(set(map(tuple, made))) == 3


def test_another_process_goes_on(tmp_path: Any) -> None:
    weights = random_weights("tiny")
    path = tmp_path / "tiny.safetensors"
    save(path, weights.tensors, metadata_of(weights.config, PUBLISHED))
    take = begin(load(path), SEED, SAMPLING, random_seed=5)
    _, take = after(take, 11)
    (tmp_path / "take").write_bytes(dump_take(take))
    program = f"""
from itertools import islice
from pathlib import Path
from pulse88.engine import load
from pulse88.generate import play
from pulse88.snapshot import load as load_take
take = load_take(load({str(path)!r}), Path({str(tmp_path / "take")!r}).read_bytes())
print([tuple(event) for event, _ in islice(play(take), 9)])
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == str([tuple(event) for event in after(take, 9)[0]])


@pytest.mark.parametrize("name", names())
def test_a_batch_is_not_frozen(name: str) -> None:
    ours = engine(name)
    with pytest.raises(ValueError, match="batch of 2"):
        ours.freeze(ours.zero_state(2))


# ---------------------------------------------------------------- refusals


def refuses(data: bytes, words: str, name: str = "numpy") -> None:
    with pytest.raises(SnapshotError, match=words):
        load_take(engine(name), data)


@pytest.mark.parametrize("name", names())
@settings(max_examples=40, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_every_changed_byte_is_noticed(name: str, where: float, change: int) -> None:
    data = bytearray(dump_take(start(name)))
    data[int(where * len(data))] ^= change
    refuses(bytes(data), "can't be used", name)


@pytest.mark.parametrize("length", [0, 7, 100, 5000, -1])
def test_what_is_cut_off_is_refused(length: int) -> None:
    refuses(dump_take(start("numpy"))[:length], "no whole safetensors file")


def test_other_files_are_refused() -> None:
    refuses(b"MThd" + bytes(100), "no whole safetensors file")
    refuses(serialise({"a": np.zeros(3, np.float32)}), "format is None")
    refuses(struct.pack("<Q", 2) + b"{}", "format is None")


def test_other_weights_and_engines_are_refused() -> None:
    data = dump_take(start("numpy"))
    other = Weights(TINY, random_tensors(TINY, 1))
    with pytest.raises(SnapshotError, match="other weights"):
        load_take(load(other, "numpy"), data)
    if "native" in names():
        refuses(data, "of the engine numpy, not native", "native")


def forged(change: dict[str, Any], arrays: dict[str, Any] | None = None, name: str = "numpy") -> bytes:
    """A snapshot with other facts or arrays, and the digest to them."""
    data = dump_take(start(name))
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    del header["digest"]
    facts = json.loads(header["take"]) | change
    header["take"] = json.dumps({key: value for key, value in facts.items() if value is not ...})
    whole = {key: value for key, value in (arrays_of(data) | (arrays or {})).items() if value is not ...}
    return serialise(whole, header | {"digest": _digest(header, whole)})


def test_a_forgery_that_changes_nothing_is_taken() -> None:
    load_take(engine("numpy"), forged({}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"keep": ...}, "facts"),
        ({"more": 1}, "facts"),
        ({"number": "3"}, "number is '3'"),
        ({"number": True}, "number is True"),
        ({"number": -1}, "out of its range"),
        ({"random_seed": 2**64}, "out of its range"),
        ({"events": -1}, "out of its range"),
        ({"events": 2**64}, "out of its range"),
        ({"number": 10**30}, "out of its range"),
        ({"window": "zz"}, "hex"),
        ({"window": ""}, "window of 0 ids"),
        ({"window": "0540"}, "ends inside an event"),
        ({"window": "3c3c3c3c"}, "token 0"),
        ({"window": "053c82a0"}, "expected"),  # shorter than what the state has read
        ({"window": "053c82a0" * 65}, "window of 260 ids"),
        ({"anchor": "0540"}, "anchor of 2 ids"),
        ({"anchor": "053c82a0" * 20}, "anchor of 80 ids"),
        ({"keep": 64}, "64 events"),
        ({"sampling": {}}, "sampling's settings"),
        ({"sampling": {"temperature": -1, "top_p": 1, "top_k": 0, "min_p": 0}}, "temperature"),
        ({"sampling": {"temperature": 1, "top_p": 1, "top_k": 0.5, "min_p": 0}}, "top_k must be a whole number"),
        ({"sampling": {"temperature": "1", "top_p": 1, "top_k": 0, "min_p": 0}}, "not supported"),
    ],
)
def test_facts_that_mean_nothing_are_refused(change: dict[str, Any], words: str) -> None:
    refuses(forged(change), words)


@pytest.mark.parametrize("name", names())
def test_arrays_that_do_not_fit_are_refused(name: str) -> None:
    arrays = arrays_of(dump_take(start(name)))
    for array, values in arrays.items():
        refuses(forged({}, {array: ...}, name), f"not this model's: {array}", name)
        refuses(forged({}, {array: values[:, :-1].copy()}, name), f"the state's {array} is", name)
        refuses(forged({}, {array: values.astype(np.float64)}, name), f"the state's {array} is float64", name)
        if values.size:
            damaged = values.copy()
            damaged.flat[0] = np.nan
            refuses(forged({}, {array: damaged}, name), "not finite", name)
    refuses(forged({}, {"more": np.zeros(1, np.float32)}, name), "not this model's: more", name)


def test_positions_past_the_context_are_refused() -> None:
    for name in names():
        ours = engine(name)
        with pytest.raises(ValueError, match="0 to 256 tokens, not 257"):
            ours.thaw({}, 257)


def test_an_ended_take_stays_ended() -> None:
    for number in range(200):
        take = start("numpy", may_end=True, number=number, keep=4)
        made = list(islice(play(take), 30))
        if len(made) < 30:
            take = made[-1][1] if made else take
            assert advance(take) is None
            assert advance(load_take(engine("numpy"), dump_take(take))) is None
            return
    raise AssertionError("no take ended")
