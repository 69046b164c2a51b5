"""The model in torch: its shape, its law, its initial weights, and its way into a file and back."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pulse88[train]'")

from pulse88.checkpoint import load_model  # noqa: E402
from pulse88.config import PULSE88_40M, TINY, ModelConfig  # noqa: E402
from pulse88.engine import weights as weights_file  # noqa: E402
from pulse88.engine.layout import expected_shapes, parameter_count  # noqa: E402
from pulse88.model import GatedDeltaNet, GDNBlock, GDNState, GQABlock, GQAState, Pulse88, State, rotary_angles  # noqa: E402
from pulse88.vocabulary import FINE  # noqa: E402

# Every part once, as narrow as it goes; numbers of heads that differ from each other.
SMALL = replace(
    TINY,
    d_model=24,
    layer_types=(("gdn", "gqa"), ("gdn", "gdn")),
    gdn_inner_dim=10,
    gdn_num_heads=2,
    gdn_key_dim=4,
    gdn_value_dim=6,
    gqa_num_heads=6,
    gqa_kv_heads=3,
    output_logit_scale=24**-0.5,
)
DTYPES = [(torch.float32, 1e-4), (torch.float64, 1e-10)]
Tamper = Callable[[Any], Any]


def model_of(config: ModelConfig, dtype: Any = torch.float32, seed: int = 0) -> Pulse88:
    """Weights under which every part has a visible effect, and no dropout."""
    model = Pulse88(config).eval()
    tensors = weights_file.random_tensors(config, seed)
    model.load_state_dict({name: torch.tensor(array) for name, array in tensors.items()})
    return model.to(dtype)


def ids_of(batch: int, tokens: int, seed: int = 0) -> Any:
    return torch.tensor(np.random.default_rng(seed).integers(0, TINY.vocab_size, (batch, tokens)))


def tensors_of(state: Any) -> list[Any]:
    if isinstance(state, State):
        return [tensor for layer in state.layers for mixer in layer for tensor in tensors_of(mixer)]
    return list(vars(state).values())


def difference(a: Sequence[Any], b: Sequence[Any]) -> float:
    assert [x.shape for x in a] == [x.shape for x in b]
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x.numel()]
    return max(float((x - y).abs().max() / y.abs().max().clamp(min=1)) for x, y in pairs)


def pieces_of(tokens: int, cuts: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip([0, *cuts], [*cuts, tokens], strict=True))


def model_law(model: Pulse88, ids: Any, cuts: Sequence[int], tamper: Tamper = lambda state: state) -> float:
    """How far the pieces are from the whole, in logits or states, whichever is worse."""
    with torch.no_grad():
        whole, last = model(ids, model.zero_state(len(ids)))
        assert whole.std() > 1  # or a small difference would mean nothing
        outs, state = [], model.zero_state(len(ids))
        for begin, end in pieces_of(ids.shape[1], cuts):
            out, state = model(ids[:, begin:end], tamper(state) if begin else state)
            outs.append(out)
    assert state.position == last.position == ids.shape[1]
    return difference([torch.cat(outs, 1), *tensors_of(state)], [whole, *tensors_of(last)])


def angles_of(x: Any, position: int = 0) -> Any:
    return rotary_angles(position, x.shape[1], SMALL, x)


def block_law(block: Any, x: Any, cuts: Sequence[int], tamper: Tamper = lambda state: state, late: int = 0) -> float:
    """The same for one mixer over its inputs [B, T, D]; `late` is an error in the positions."""
    with torch.no_grad():
        whole, last = block(x, block.zero_state(len(x), x), angles_of(x))
        assert whole.std() > 0.1
        outs, state = [], block.zero_state(len(x), x)
        for begin, end in pieces_of(x.shape[1], cuts):
            piece, at = x[:, begin:end], begin + late if begin else 0
            out, state = block(piece, tamper(state) if begin else state, angles_of(piece, at))
            outs.append(out)
    return difference([torch.cat(outs, 1), *tensors_of(state)], [whole, *tensors_of(last)])


@st.composite
def cuts_of(draw: st.DrawFn) -> tuple[int, list[int]]:
    """A length, and where to cut it: anywhere, with pieces of 1, 2, 63, 64 and 65 tokens among them."""
    sizes = draw(st.lists(st.sampled_from([1, 1, 2, 3, 63, 64, 65]) | st.integers(1, 40), min_size=2, max_size=5))
    return sum(sizes), list(np.cumsum(sizes[:-1]))


# ---------------------------------------------------------------- shape


def test_the_published_model_has_its_parameters() -> None:
    with torch.device("meta"):
        model = Pulse88(PULSE88_40M)
    assert sum(p.numel() for p in model.parameters()) == 40_784_528 == parameter_count(PULSE88_40M)


PARTS = {  # pattern of a name, whose group is the module that owns it: parameters of one module, number of modules
    r"(layers\.\d+\.gdn[12])\.core\..+": (827_048, 26),
    r"(layers\.\d+\.gdn[12])\.(?:in|out)_proj\.weight": (409_600, 26),
    r"(layers\.\d+\.gqa)\..+": (1_024_000, 7),
    r"(layers\.\d+\.norm_(?:gdn1|gdn2|gqa))\..+": (1_280, 33),
    r"(token_embedding)\.weight": (109_440, 1),
    r"(position_embedding)\.weight": (1_310_720, 1),
    r"(final_norm)\..+": (1_280, 1),
}
CORE = {
    "q_proj.weight": 102_400,
    "k_proj.weight": 102_400,
    "v_proj.weight": 204_800,
    "g_proj.weight": 204_800,
    "a_proj.weight": 1_280,
    "b_proj.weight": 1_280,
    "A_log": 4,
    "dt_bias": 4,
    "q_conv1d.weight": 1_280,
    "k_conv1d.weight": 1_280,
    "v_conv1d.weight": 2_560,
    "o_norm.weight": 160,
    "o_proj.weight": 204_800,
}


def test_the_parameters_lie_where_the_table_says() -> None:
    with torch.device("meta"):
        sizes = {name: p.numel() for name, p in Pulse88(PULSE88_40M).named_parameters()}
    for pattern, (each, count) in PARTS.items():
        found: Counter[str] = Counter()
        for name in list(sizes):
            if match := re.fullmatch(pattern, name):
                found[match[1]] += sizes.pop(name)
        assert list(found.values()) == [each] * count, pattern
    assert not sizes
    assert sum(each * count for each, count in PARTS.values()) == 40_784_528


def test_a_gdn_core_has_the_published_parts() -> None:
    core = GatedDeltaNet(PULSE88_40M)
    assert {name: p.numel() for name, p in core.named_parameters()} == CORE
    assert sum(CORE.values()) == 827_048


def test_anchors_stand_in_every_second_layer_and_the_last() -> None:
    anchors = [number for number, kinds in enumerate(PULSE88_40M.layer_types, 1) if "gqa" in kinds]
    assert anchors == [2, 4, 6, 8, 10, 12, 13]
    assert all(kinds[:2] == ("gdn", "gdn") for kinds in PULSE88_40M.layer_types)


@pytest.mark.parametrize("config", [PULSE88_40M, TINY, SMALL, replace(SMALL, tie_embeddings=False)])
def test_names_and_shapes_are_the_published_ones(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = Pulse88(config)
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == expected_shapes(config)
    assert ("lm_head.weight" in model.state_dict()) == (not config.tie_embeddings)


def test_the_tied_head_is_the_table_and_the_untied_is_not() -> None:
    ids = ids_of(1, 9)
    for tied in (True, False):
        model = model_of(replace(SMALL, tie_embeddings=tied))
        before, _ = model(ids, model.zero_state())
        with torch.no_grad():
            model.token_embedding.weight[5] *= 2  # 5 isn't read, so only a tied head can notice
        assert 5 not in ids
        after, _ = model(ids, model.zero_state())
        moved = (after - before).abs().amax((0, 1)) > 1e-3
        assert moved.nonzero().flatten().tolist() == ([5] if tied else [])


# ---------------------------------------------------------------- the law


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("kind", ["gdn", "gqa"])
@settings(max_examples=12, deadline=None)
@given(cuts_of())
def test_the_law_of_every_block(kind: str, dtype: Any, tolerance: float, cut: tuple[int, list[int]]) -> None:
    tokens, cuts = cut
    model = model_of(SMALL, dtype)
    block = model.layers[0].gdn1 if kind == "gdn" else model.layers[0].gqa
    assert isinstance(block, GDNBlock if kind == "gdn" else GQABlock)
    x = torch.randn(2, tokens, SMALL.d_model, generator=torch.Generator().manual_seed(tokens), dtype=dtype)
    assert block_law(block, x, cuts) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@settings(max_examples=12, deadline=None)
@given(cut=cuts_of())
def test_the_law_of_the_model(dtype: Any, tolerance: float, cut: tuple[int, list[int]]) -> None:
    tokens, cuts = cut
    model = model_of(replace(SMALL, max_positions=400), dtype)
    assert model_law(model, ids_of(2, tokens), cuts) < tolerance


@pytest.mark.parametrize("kernel", ["loop", "chunked"])
def test_the_law_token_by_token(kernel: Any) -> None:
    model = model_of(TINY, torch.float64)
    model.use_kernel(kernel)
    assert model_law(model, ids_of(2, 70), range(1, 70)) < 1e-10


def forget_memory(state: Any) -> Any:
    return replace(state, memory_BHKV=torch.zeros_like(state.memory_BHKV))


def forget_tail(state: Any) -> Any:
    return replace(state, tail_BWC=torch.zeros_like(state.tail_BWC))


def forget_a_key(state: Any) -> Any:
    return GQAState(state.keys_BTGE[:, 1:], state.values_BTGE[:, 1:])


def test_the_law_is_broken_by_every_broken_state() -> None:
    """What the law's check would say of a memory, a tail, a row or a position that gets lost: it can fail."""
    model = model_of(SMALL, torch.float64)
    x = torch.randn(1, 40, SMALL.d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gdn, gqa = model.layers[0].gdn1, model.layers[0].gqa
    assert block_law(gdn, x, [20]) < 1e-10
    for tamper in (forget_memory, forget_tail):
        assert block_law(gdn, x, [20], tamper) > 1e-2
    assert block_law(gqa, x, [20], late=1) > 1e-2

    def lose(kind: type, how: Tamper) -> Tamper:
        return lambda state: State(
            state.position, tuple(tuple(how(m) if isinstance(m, kind) else m for m in layer) for layer in state.layers)
        )

    def swapped(mixer: Any) -> Any:
        return type(mixer)(*(tensor.flip(0) for tensor in vars(mixer).values()))

    ids = ids_of(2, 40)
    assert model_law(model, ids, [20]) < 1e-10
    for kind, how in ((GDNState, forget_memory), (GDNState, forget_tail), (GDNState, swapped), (GQAState, swapped)):
        assert model_law(model, ids, [20], lose(kind, how)) > 1e-2, (kind, how)

    with torch.no_grad():  # A lost row changes shapes, so only the logits can be compared.
        whole, _ = model(ids, model.zero_state(2))
        _, state = model(ids[:, :20], model.zero_state(2))
        rest, _ = model(ids[:, 20:], lose(GQAState, forget_a_key)(state))
        late, _ = model(ids[:, 20:], State(21, state.layers))
    for broken in (rest, late):
        assert float((broken - whole[:, 20:]).abs().max()) > 1e-2


def test_a_state_stays_valid_after_it_was_used() -> None:
    model = model_of(SMALL)
    ids = ids_of(2, 30)
    with torch.no_grad():
        _, state = model(ids[:, :20], model.zero_state(2))
        kept = [tensor.clone() for tensor in tensors_of(state)]
        first, _ = model(ids[:, 20:], state)
        model(ids_of(2, 30, seed=1), state)
        again, _ = model(ids[:, 20:], state)
    assert torch.equal(first, again)
    assert all(torch.equal(a, b) for a, b in zip(kept, tensors_of(state), strict=True))


def test_forks_are_independent_and_equal_their_origin() -> None:
    model = model_of(SMALL, torch.float64)
    prefix, futures = ids_of(1, 30), ids_of(3, 25, seed=1)
    with torch.no_grad():
        _, origin = model(prefix, model.zero_state())
        kept = [tensor.clone() for tensor in tensors_of(origin)]
        forks = origin.fork(3)
        together, _ = model(futures, forks)
        for row, future in enumerate(futures):
            alone, _ = model(future[None], origin)
            assert difference([together[row : row + 1]], [alone]) < 1e-10
        for tensor in tensors_of(forks):
            tensor[1:] = math.nan
        assert all(torch.equal(a, b) for a, b in zip(kept, tensors_of(origin), strict=True))
        once_more, _ = model(futures[:1], State(forks.position, origin.layers))
    assert difference([together[:1]], [once_more]) < 1e-10
    with pytest.raises(ValueError, match="single sequence"):
        forks.fork(2)


def test_a_batch_is_its_sequences_one_by_one() -> None:
    model = model_of(SMALL, torch.float64)
    ids = ids_of(4, 70)
    with torch.no_grad():
        together, state = model(ids, model.zero_state(4))
        for row in range(4):
            alone, last = model(ids[row : row + 1], model.zero_state())
            assert difference([together[row : row + 1]], [alone]) < 1e-10
            assert difference([t[row : row + 1] for t in tensors_of(state)], tensors_of(last)) < 1e-10


def test_a_later_token_never_changes_earlier_logits() -> None:
    model = model_of(SMALL, torch.float64)
    ids = ids_of(1, 100)
    with torch.no_grad():
        before, _ = model(ids, model.zero_state())
        for place in (0, 1, 62, 63, 64, 65, 99):
            changed = ids.clone()
            changed[0, place] = (changed[0, place] + 1) % SMALL.vocab_size
            after, _ = model(changed, model.zero_state())
            apart = (after - before).abs().amax((0, 2))
            assert float(apart[:place].sum()) < 1e-12
            assert float(apart[place:].min()) > 1e-6  # what it reads, and all that comes after, does change


def test_positions_end_with_an_error() -> None:
    model = model_of(replace(SMALL, max_positions=16))
    with torch.no_grad():
        _, state = model(ids_of(1, 16), model.zero_state())
        with pytest.raises(ValueError, match=r"16 \+ 1 tokens are more than the 16 positions"):
            model(ids_of(1, 1), state)
        with pytest.raises(ValueError, match=r"0 \+ 17 tokens"):
            model(ids_of(1, 17), model.zero_state())
        with pytest.raises(ValueError, match="no tokens"):
            model(ids_of(1, 0), model.zero_state())


# ---------------------------------------------------------------- weights


def test_the_tables_begin_at_scales_of_their_own() -> None:
    torch.manual_seed(0)
    model = Pulse88(replace(TINY, d_model=64, embedding_init_std=0.5, position_init_std=0.02))
    assert model.token_embedding.weight.std().item() == pytest.approx(0.5, rel=0.03)
    assert model.position_embedding.weight.std().item() == pytest.approx(0.02, rel=0.03)


def test_initial_weights_are_the_table_of_init_weights() -> None:
    torch.manual_seed(0)
    model = Pulse88(replace(TINY, d_model=64, gdn_inner_dim=48, gdn_num_heads=24, embedding_init_std=0.02))
    uniform = {}
    for name, parameter in model.named_parameters():
        values = parameter.detach().double()
        if "embedding" in name:
            assert abs(float(values.std()) / 0.02 - 1) < 0.05, name
            assert abs(float(values.mean())) < 0.002, name
        elif name.endswith("A_log"):
            uniform.setdefault("A", []).append(values.exp() / 16)
        elif name.endswith("dt_bias"):
            step = torch.nn.functional.softplus(values)
            uniform.setdefault("dt", []).append((step.log() - math.log(0.001)) / math.log(0.1 / 0.001))
        elif values.ndim == 1:
            assert torch.equal(values, torch.full_like(values, 0.0 if name.endswith("bias") else 1.0)), name
        else:
            fan_in = values[0].numel()
            assert values[0].numel() == (4 if "conv1d" in name else values.shape[1]), name
            uniform.setdefault("linear", []).append((values.flatten() * fan_in**0.5 + 1) / 2)
    assert uniform.keys() == {"A", "dt", "linear"}
    for kind, parts in uniform.items():
        u = torch.cat(parts).sort().values
        assert u[0] >= 0, kind
        assert u[-1] <= 1 + 1e-6, kind
        gap = (u - (torch.arange(len(u)) + 0.5) / len(u)).abs().max() * len(u) ** 0.5
        assert gap < 1.9, (kind, len(u))  # Kolmogorov and Smirnov: once in a thousand seeds for a uniform one


def test_dropout_only_in_training() -> None:
    torch.manual_seed(0)
    model = Pulse88(replace(SMALL, dropout=0.3, attention_dropout=0.3))
    ids = ids_of(2, 20)
    with torch.no_grad():
        one, other = (model.train()(ids, model.zero_state(2))[0] for _ in range(2))
        still, again = (model.eval()(ids, model.zero_state(2))[0] for _ in range(2))
        assert not torch.equal(one, other)
        assert torch.equal(still, again)
        plain = Pulse88(SMALL).train()
        plain.load_state_dict(model.state_dict())
        assert torch.equal(plain(ids, plain.zero_state(2))[0], still)


def test_every_kind_of_dropout_is_there() -> None:
    """Embedding, after each GDN block, after attention's projection; and attention's weights."""
    model = Pulse88(replace(TINY, dropout=0.5))
    places = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)]
    gdn = [f"layers.{layer}.gdn{n}.dropout" for layer in range(3) for n in (1, 2)]
    assert sorted(places) == sorted(["dropout", *gdn, "layers.1.gqa.dropout", "layers.2.gqa.dropout"])
    block = GQABlock(replace(SMALL, dropout=0.0, attention_dropout=0.5)).train()
    x = torch.randn(1, 12, SMALL.d_model, generator=torch.Generator().manual_seed(0))
    one, other = (block(x, block.zero_state(1, x), angles_of(x))[0] for _ in range(2))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_survive_a_file(tmp_path: Path, tied: bool) -> None:
    config = replace(SMALL, tie_embeddings=tied)
    torch.manual_seed(0)
    model = Pulse88(config).eval()
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    weights_file.save(tmp_path / "w.safetensors", tensors, weights_file.metadata_of(config, FINE))
    back = load_model(weights_file.read(tmp_path / "w.safetensors")).eval()
    assert back.config == config
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.parameters(), strict=True))
    ids = ids_of(1, 20)
    with torch.no_grad():
        assert torch.equal(model(ids, model.zero_state())[0], back(ids, back.zero_state())[0])


def test_int8_is_multiplied_out(tmp_path: Path) -> None:
    model = model_of(SMALL)
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    quantised = weights_file.quantise(tensors)
    weights_file.save(tmp_path / "w.safetensors", quantised, weights_file.metadata_of(SMALL, FINE))
    back = load_model(weights_file.read(tmp_path / "w.safetensors"))
    for name, tensor in back.state_dict().items():
        if tensor.ndim == 2:
            expected = quantised[name].astype(np.float32) * quantised[name + ".scale"][:, None]
            np.testing.assert_array_equal(tensor.numpy(), expected)
            half_a_step = np.abs(tensors[name]).max(1, keepdims=True) / 127 * 0.5001
            assert (np.abs(tensor.numpy() - tensors[name]) <= half_a_step).all()
        else:
            np.testing.assert_array_equal(tensor.numpy(), tensors[name])


# ---------------------------------------------------------------- gradients


def gradients(model: Pulse88, ids: Any) -> list[Any]:
    model.zero_grad()
    logits, state = model(ids[:, :-1], model.zero_state(len(ids)))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    (loss + 1e-2 * sum(tensor.square().sum() for tensor in tensors_of(state))).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_gradients_of_the_chunked_model_are_the_loops() -> None:
    model = model_of(TINY, torch.float64)
    ids = ids_of(2, 101)
    chunked = gradients(model, ids)
    model.use_kernel("loop")
    loop = gradients(model, ids)
    for (name, _), a, b in zip(model.named_parameters(), chunked, loop, strict=True):
        assert float(b.abs().max()) > 0, name
        assert float((a - b).abs().max() / b.abs().max()) < 1e-10, name


def test_gradient_checkpointing_changes_nothing_with_dropout_too() -> None:
    torch.manual_seed(0)
    model = Pulse88(replace(SMALL, dropout=0.2, attention_dropout=0.2)).train()
    ids = ids_of(2, 40)
    found = []
    for checkpointing in (False, True):
        model.gradient_checkpointing = checkpointing
        torch.manual_seed(1)
        found.append(gradients(model, ids))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_gradient_checkpointing_keeps_less() -> None:
    model = model_of(TINY).train()
    ids = ids_of(2, 65)
    kept: list[int] = []
    for checkpointing in (False, True):
        model.gradient_checkpointing = checkpointing
        kept.append(0)

        def keep(tensor: Any) -> Any:
            kept[-1] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(ids, model.zero_state(2))
    assert kept[1] < kept[0] / 5


def layer_results(call: Callable[..., Any], layer_states: Any) -> list[Any]:
    """Output, gradient of the input and states of a layer."""
    x = torch.randn(2, 70, SMALL.d_model, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out, after = call(x, layer_states, angles_of(x))
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    return [out.detach(), gradient, *(tensor.detach() for mixer in after for tensor in tensors_of(mixer))]


@pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")  # what torch says on Python 3.13.0
def test_a_layer_is_one_graph() -> None:
    """No graph break, so that a compiler sees the elementwise work around the kernels; traced, run as it is."""
    model = model_of(SMALL)
    states = model.zero_state(2).layers[0]
    traced = torch.compile(model.layers[0], backend="aot_eager", fullgraph=True)
    assert difference(layer_results(traced, states), layer_results(model.layers[0], states)) < 1e-5


@pytest.mark.skipif("PULSE88_SLOW" not in os.environ, reason="compiles C++, two minutes on a core: set PULSE88_SLOW=1")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # of torch itself
def test_a_compiled_layer_is_the_eager_one() -> None:
    model = model_of(SMALL)
    states = model.zero_state(2).layers[0]
    compiled = torch.compile(model.layers[0], fullgraph=True)
    assert difference(layer_results(compiled, states), layer_results(model.layers[0], states)) < 1e-5
