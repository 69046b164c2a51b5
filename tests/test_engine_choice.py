import logging
import subprocess
import sys

import numpy as np
import pytest

from engine_law import random_weights
from pulse88.engine import WeightsError, load, native
from pulse88.engine.weights import metadata_of, save
from pulse88.vocabulary import PUBLISHED


def test_an_engine_is_loaded_from_a_file_or_from_memory(tmp_path):
    weights = random_weights("tiny")
    path = tmp_path / "tiny.safetensors"
    save(path, weights.tensors, metadata_of(weights.config, PUBLISHED))
    for source in (weights, path, str(path)):
        engine = load(source, engine="numpy")
        assert engine.name == "numpy"
        assert engine.config == weights.config
        assert engine.forward([[1, 2]], engine.zero_state())[0].shape == (1, 2, 171)


def test_auto_takes_the_native_engine_where_there_is_one():
    try:
        native.library()
    except ImportError as problem:
        pytest.skip(f"no native engine here: {problem}")
    assert load(random_weights("tiny")).name == "native"
    assert load(random_weights("tiny"), engine="native").name == "native"


def test_threads_are_given_on_to_the_native_engine():
    try:
        native.library()
    except ImportError as problem:
        pytest.skip(f"no native engine here: {problem}")
    one, two = load(random_weights("tiny")), load(random_weights("tiny"), threads=2)
    ids = np.arange(60)[None]
    assert np.array_equal(*(e.forward(ids, e.zero_state())[0] for e in (one, two)))
    with pytest.raises(ValueError, match="1 to 64 threads"):
        load(random_weights("tiny"), threads=0)


def test_without_the_native_engine_auto_says_so_and_native_fails(monkeypatch, caplog):
    def missing() -> None:
        raise ImportError("never built")

    monkeypatch.setattr(native, "library", missing)
    with caplog.at_level(logging.WARNING):
        assert load(random_weights("tiny")).name == "numpy"
    assert "never built" in caplog.text
    with pytest.raises(ImportError, match="never built"):
        load(random_weights("tiny"), engine="native")


def test_unknown_engines_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown engine 'torch'"):
        load(random_weights("tiny"), engine="torch")
    (tmp_path / "empty.safetensors").touch()
    with pytest.raises(WeightsError):
        load(tmp_path / "empty.safetensors")


def test_engines_load_no_torch(tmp_path):
    weights = random_weights("tiny")
    path = tmp_path / "tiny.safetensors"
    save(path, weights.tensors, metadata_of(weights.config, PUBLISHED))
    program = f"""
import sys
from pulse88.engine import load
engine = load({str(path)!r})
engine.forward([[1]], engine.zero_state())
print(sorted({{name.split(".")[0] for name in sys.modules}} & {{"torch", "matplotlib", "symusic", "mido"}}))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
