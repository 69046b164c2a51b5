"""The public names of `pulse88`: what users may build on. A change here is a change for them."""

from __future__ import annotations

import inspect

import pytest

import pulse88

PUBLIC = {
    *("Continuation", "ContinueConfig", "Continuer", "Playing", "Provenance", "SamplingConfig", "default_weights"),
    *("Meter", "MidiError", "Note", "Performance", "Tempo", "TimeGrid", "Tokenizer"),
    *("draw", "render", "__version__"),
}


def test_the_public_names_are_these() -> None:
    assert pulse88.__all__ == sorted(PUBLIC)
    assert dir(pulse88) == sorted(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC - {"__version__"}))
def test_a_public_name_is_a_class_or_a_function_that_says_what_it_is(name: str) -> None:
    public = getattr(pulse88, name)
    assert public.__name__ == name
    assert public.__module__.startswith("pulse88.")
    assert inspect.getdoc(public)


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Continuator'"):
        _ = pulse88.Continuator
