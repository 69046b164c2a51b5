"""The engines without torch against the model in torch: the same weights, the same logits and states."""

from typing import Any

import numpy as np
import pytest

from engine_law import TOLERANCE, distance, random_ids, weights_of
from pulse88.config import PULSE88_40M, TINY, ModelConfig
from pulse88.engine import Engine
from pulse88.engine.layout import expected_shapes, mixers
from pulse88.engine.library import library
from pulse88.engine.native import NativeEngine
from pulse88.engine.reference import NumpyEngine

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pulse88[train]'")


def torch_model(config: ModelConfig, tensors: Any) -> Any:
    from pulse88.model import Pulse88

    model = Pulse88(config).eval()
    model.load_state_dict({name: torch.tensor(array) for name, array in tensors.items()})
    return model


def torch_snapshot(config: ModelConfig, state: Any) -> dict[str, np.ndarray]:
    names = [name for _, name, _ in mixers(config)]
    arrays: dict[str, Any] = {}
    for name, mixer in zip(names, (mixer for layer in state.layers for mixer in layer), strict=True):
        if hasattr(mixer, "tail_BWC"):
            arrays |= {f"{name}.memory": mixer.memory_BHKV, f"{name}.tail": mixer.tail_BWC}
        else:
            keys, values = mixer.keys_BTGE.transpose(1, 2), mixer.values_BTGE.transpose(1, 2)
            arrays |= {f"{name}.keys": keys, f"{name}.values": values}
    return {name: array.numpy() for name, array in arrays.items()}


def test_names_and_shapes_are_the_models():
    for config in (PULSE88_40M, TINY, ModelConfig(layer_types=(("gqa", "gdn", "gqa"),), tie_embeddings=False)):
        with torch.device("meta"):
            from pulse88.model import Pulse88

            model = Pulse88(config)
        assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == expected_shapes(config)


def agrees(engine: Engine, model: Any, batch: int, pieces: list[int]) -> None:
    ids = random_ids(engine.config, batch, sum(pieces))
    state, torch_state, start = engine.zero_state(batch), model.zero_state(batch), 0
    for piece in pieces:
        part = ids[:, start : start + piece]
        logits, state = engine.forward(part, state)
        with torch.no_grad():
            truth, torch_state = model(torch.tensor(part), torch_state)
        assert truth.std() > 1  # or the comparison would mean little
        np.testing.assert_allclose(logits, truth.numpy(), atol=TOLERANCE, rtol=0)
        start += piece
    assert distance(state.snapshot(), torch_snapshot(engine.config, torch_state)) < TOLERANCE


@pytest.mark.parametrize("config", [TINY, ModelConfig(layer_types=(("gqa", "gdn", "gqa"),), tie_embeddings=False)])
def test_numpy_engine_agrees_with_torch(config):
    weights = weights_of(config)
    agrees(NumpyEngine(weights), torch_model(config, weights.tensors), 2, [50, 1, 1, 33])


def test_native_engine_agrees_with_torch():
    try:
        library()
    except ImportError as problem:
        pytest.skip(f"no native engine here: {problem}")
    weights = weights_of(TINY)
    agrees(NativeEngine(weights), torch_model(TINY, weights.tensors), 2, [50, 1, 1, 33])


def test_numpy_engine_agrees_with_torch_in_full_size():
    weights = weights_of(PULSE88_40M)
    agrees(NumpyEngine(weights), torch_model(PULSE88_40M, weights.tensors), 1, [40, 1])
