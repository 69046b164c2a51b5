import json
import struct
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save_file

from pulse88.config import PULSE88_40M, TINY, ModelConfig
from pulse88.engine.layout import config_of, expected_shapes, parameter_count
from pulse88.engine.weights import Weights, WeightsError, metadata_of, quantise, random_tensors, read, save
from pulse88.vocabulary import PUBLISHED, TimeGrid

GRID = replace(PUBLISHED, name="another", carries_error=True)
# What the published checkpoint would say of a model of TINY's size.
PUBLISHED_TINY = {
    "vocab_size": 171,
    "d_model": 32,
    "n_layers": 3,
    "max_sequence_length": 256,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "tie_embeddings": True,
    "embedding_init_std": 0.02,
    "output_logit_scale": None,
    "gdn_inner_dim": 16,
    "gdn_num_heads": 2,
    "gqa_num_heads": 4,
    "gqa_groups": 2,
    "attention_every_n_layers": 2,
}


def tiny_tensors() -> dict[str, np.ndarray]:
    return dict(random_tensors(TINY, 0))


def own_file(folder: Path, tensors: dict[str, np.ndarray], **metadata: str) -> Path:
    path = folder / "weights.safetensors"
    save(path, tensors, metadata_of(TINY, GRID) | metadata)
    return path


def published_file(folder: Path, tensors: dict[str, np.ndarray], **changes: object) -> Path:
    path = folder / "published.safetensors"
    save_file(tensors, path, {"model_config": json.dumps(PUBLISHED_TINY | changes), "epoch": "3", "val_loss": "1.6"})
    return path


def problems_of(path: Path) -> list[str]:
    with pytest.raises(WeightsError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    return caught.value.problems


# ---------------------------------------------------------------- names, shapes, sizes


def test_parameter_count_is_the_published_one():
    assert parameter_count(PULSE88_40M) == 40_784_528


def test_mixers_have_the_published_names():
    names = expected_shapes(PULSE88_40M)
    assert "layers.1.gqa.k_proj.weight" in names
    assert "layers.0.gqa.k_proj.weight" not in names
    assert names["layers.12.gdn2.core.v_conv1d.weight"] == (640, 1, 4)
    several = expected_shapes(replace(TINY, layer_types=(("gqa", "gdn", "gqa"),)))
    assert {"layers.0.gqa1.q_proj.weight", "layers.0.gqa2.q_proj.weight", "layers.0.gdn1.in_proj.weight"} < set(several)


def test_untied_models_have_a_head():
    assert expected_shapes(replace(TINY, tie_embeddings=False))["lm_head.weight"] == (171, 32)


# ---------------------------------------------------------------- reading back what was saved


def test_round_trip_keeps_every_bit_and_the_grid(tmp_path):
    tensors = tiny_tensors()
    weights = read(own_file(tmp_path, tensors, note="free"))
    assert weights.config == TINY
    assert weights.grid == GRID
    assert weights.metadata["note"] == "free"
    assert not weights.quantised
    assert set(weights.tensors) == set(tensors)
    assert all(np.array_equal(weights.tensors[name], tensors[name]) for name in tensors)


def test_int8_file_reads_back_as_saved(tmp_path):
    tensors = quantise(tiny_tensors())
    weights = read(own_file(tmp_path, tensors))
    assert weights.quantised
    assert all(np.array_equal(weights.tensors[name], tensors[name]) for name in tensors)
    name = "layers.0.gdn1.in_proj.weight"
    dense = tensors[name].astype(np.float64) * tensors[name + ".scale"].astype(np.float64)[:, None]
    assert weights.matrix(name).dtype == np.float32
    np.testing.assert_allclose(weights.matrix(name), dense, rtol=1e-6)


def test_int8_and_half_precision_may_be_mixed(tmp_path):
    tensors = tiny_tensors()
    name = "layers.0.gdn1.in_proj.weight"
    tensors |= quantise({name: tensors[name]})
    tensors["layers.0.gdn1.out_proj.weight"] = tensors["layers.0.gdn1.out_proj.weight"].astype(np.float16)
    weights = read(own_file(tmp_path, tensors))
    half = weights.tensors["layers.0.gdn1.out_proj.weight"]
    assert half.dtype == np.float32
    assert np.array_equal(half, tensors["layers.0.gdn1.out_proj.weight"].astype(np.float32))


def test_bfloat16_is_the_upper_half_of_float32(tmp_path):
    tensors = tiny_tensors()
    name, path = "final_norm.weight", own_file(tmp_path, tensors)
    halves = (tensors[name].view(np.uint32) >> 16).astype("<u2")
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    body, entry = data[8 + size :], header[name]
    begin, end = entry["data_offsets"]
    entry |= {"dtype": "BF16", "data_offsets": [begin, begin + halves.nbytes]}
    for other, moved in header.items():
        if other not in ("__metadata__", name) and moved["data_offsets"][0] >= end:
            moved["data_offsets"] = [offset - (end - begin) + halves.nbytes for offset in moved["data_offsets"]]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body[:begin] + halves.tobytes() + body[end:])
    weights = read(path)
    assert np.array_equal(weights.tensors[name], (halves.astype(np.uint32) << 16).view(np.float32))
    np.testing.assert_allclose(weights.tensors[name], tensors[name], rtol=2**-7)
    assert np.array_equal(weights.tensors["final_norm.bias"], tensors["final_norm.bias"])


def test_sha256_is_the_files(tmp_path):
    path = own_file(tmp_path, tiny_tensors())
    first = read(path).sha256
    assert len(first) == 64
    changed = tiny_tensors()
    changed["final_norm.bias"][0] += 1
    own_file(tmp_path, changed)
    assert read(path).sha256 != first
    in_memory = Weights(TINY, tiny_tensors()).sha256
    assert in_memory == Weights(TINY, tiny_tensors()).sha256 != Weights(TINY, changed).sha256


def test_save_leaves_the_old_file_and_nothing_else_when_it_fails(tmp_path, monkeypatch):
    path = own_file(tmp_path, tiny_tensors())
    before = path.read_bytes()

    def fail(self: Path, target: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        own_file(tmp_path, quantise(tiny_tensors()))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_saved_files_have_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    path = own_file(tmp_path, tiny_tensors())
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


# ---------------------------------------------------------------- the published layout


@pytest.mark.parametrize("groups", [2, 1, 4])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_published_groups_are_read_by_the_shape_of_k(tmp_path, groups, kv_heads):
    config = replace(TINY, gqa_kv_heads=kv_heads, layer_types=(("gdn",) * 2, *[("gdn", "gdn", "gqa")] * 2))
    path = published_file(tmp_path, random_tensors(config, 0), gqa_groups=groups)
    if kv_heads in (groups, 4 // groups):
        assert read(path).config.gqa_kv_heads == kv_heads
    else:
        assert "gqa_groups" in problems_of(path)[0]


def test_published_checkpoint_gives_the_same_model(tmp_path):
    tensors = tiny_tensors()
    tensors["lm_head.weight"] = tensors["token_embedding.weight"].copy()
    weights = read(published_file(tmp_path, tensors))
    assert weights.config == replace(TINY, dropout=0.1, attention_dropout=0.1)
    assert weights.grid == PUBLISHED
    assert "lm_head.weight" not in weights.tensors
    assert weights.metadata["epoch"] == "3"


def test_published_head_may_be_absent(tmp_path):
    assert read(published_file(tmp_path, tiny_tensors())).config.tie_embeddings


def test_a_head_that_is_no_copy_is_refused(tmp_path):
    tensors = tiny_tensors()
    tensors["lm_head.weight"] = tensors["token_embedding.weight"] + 1
    assert "differs" in problems_of(published_file(tmp_path, tensors))[0]


def test_published_metadata_must_be_whole(tmp_path):
    path = tmp_path / "part.safetensors"
    settings = {key: value for key, value in PUBLISHED_TINY.items() if key not in ("n_layers", "gqa_groups")}
    save_file(tiny_tensors(), path, {"model_config": json.dumps(settings)})
    assert problems_of(path) == ["model_config lacks n_layers, gqa_groups"]


def test_without_metadata_the_shapes_speak(tmp_path):
    shapes = expected_shapes(PULSE88_40M)
    assert config_of({}, shapes) == PULSE88_40M
    assert config_of({}, expected_shapes(replace(PULSE88_40M, gqa_kv_heads=4, conv_size=3))).gqa_kv_heads == 4
    path = tmp_path / "bare.safetensors"
    save_file(tiny_tensors(), path)
    assert "number of heads" in problems_of(path)[0]  # 4 heads of 8 or 2 of 16: nobody can know.
    with pytest.raises(ValueError, match="d_model must be positive"):
        config_of({}, shapes | {"token_embedding.weight": (171, 0)})


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"n_layers": 10**12}, "n_layers"),
        ({"attention_every_n_layers": 0}, "attention_every_n_layers"),
        ({"d_model": "32"}, "d_model"),
        ({"d_model": 0}, "d_model must be positive"),
        ({"d_model": 0, "output_logit_scale": 1.0}, "d_model must be positive"),
        ({"d_model": -5}, "d_model must be positive"),
        ({"d_model": 10**400}, "d_model must be positive, and below"),
        ({"gqa_num_heads": 0}, "gqa_num_heads"),
        ({"gqa_groups": 0}, "gqa_groups"),
        ({"gdn_num_heads": 0}, "gdn_num_heads"),
        ({"tie_embeddings": 1}, "tie_embeddings"),
        ({"output_logit_scale": float("inf")}, "output_logit_scale"),
    ],
)
def test_impossible_published_settings_are_named(tmp_path, changes, word):
    assert word in problems_of(published_file(tmp_path, tiny_tensors(), **changes))[0]


# ---------------------------------------------------------------- our own metadata


def test_every_field_of_the_configuration_comes_back():
    config = replace(TINY, rope_base=500.0, norm_eps=1e-6, gqa_kv_heads=4, tie_embeddings=False, conv_size=2)
    assert config_of(metadata_of(config, GRID), {}) == config


@pytest.mark.parametrize(
    ("metadata", "word"),
    [
        ({"pulse88_format": "2"}, "update pulse88"),
        ({"model_config": "{"}, "no JSON"),
        ({"model_config": "[]"}, "no JSON object"),
        ({"model_config": '{"d_modle": 32}'}, "d_modle"),
        ({"model_config": '{"d_model": 32.5}'}, "d_model"),
        ({"model_config": '{"d_model": true}'}, "d_model"),
        ({"model_config": '{"layer_types": ["gdn"]}'}, "layer_types"),
        ({"model_config": json.dumps(asdict(TINY) | {"layer_types": [["rnn"]]})}, "rnn"),
        ({"time_grid": "{}"}, "time grid"),
    ],
)
def test_damaged_metadata_is_named(tmp_path, metadata, word):
    assert word in problems_of(own_file(tmp_path, tiny_tensors(), **metadata))[0]


def test_our_own_file_must_say_what_its_times_mean(tmp_path):
    path = tmp_path / "weights.safetensors"
    metadata = metadata_of(TINY, GRID)
    del metadata["time_grid"]
    save(path, tiny_tensors(), metadata)
    assert "time_grid" in problems_of(path)[0]


def test_a_grid_of_our_own_is_not_the_published_one(tmp_path):
    grid = TimeGrid("fine", (0.0, *np.linspace(0.01, 3, 31)), tuple(np.linspace(0.05, 8, 32)), carries_error=True)
    path = tmp_path / "weights.safetensors"
    save(path, tiny_tensors(), metadata_of(TINY, grid))
    assert read(path).grid == grid


# ---------------------------------------------------------------- refusals


def test_every_misfit_is_listed(tmp_path):
    tensors = tiny_tensors()
    del tensors["layers.0.gdn1.core.A_log"], tensors["final_norm.bias"]
    tensors["extra.weight"] = np.zeros((2, 3), np.float32)
    tensors["layers.1.gqa.k_proj.weight"] = np.zeros((16, 31), np.float32)
    tensors["final_norm.weight"] = np.zeros(33, np.float32)
    assert sorted(problems_of(own_file(tmp_path, tensors))) == [
        "extra.weight: unexpected",
        "final_norm.bias: missing, expected [32]",
        "final_norm.weight: expected [32], found [33]",
        "layers.0.gdn1.core.A_log: missing, expected [2]",
        "layers.1.gqa.k_proj.weight: expected [16, 32], found [16, 31]",
    ]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_and_all_named(tmp_path, bad):
    tensors = tiny_tensors()
    tensors["final_norm.weight"][3] = bad
    tensors["layers.0.gdn2.core.q_proj.weight"][:2, 1] = bad
    assert sorted(problems_of(own_file(tmp_path, tensors))) == [
        "final_norm.weight: 1 values are not finite",
        "layers.0.gdn2.core.q_proj.weight: 2 values are not finite",
    ]


def test_int8_needs_its_scale_and_only_matrices_may_be_int8(tmp_path):
    tensors = quantise(tiny_tensors())
    del tensors["layers.0.gdn1.in_proj.weight.scale"]
    tensors["layers.0.gdn2.in_proj.weight.scale"] = np.full(16, -1, np.float32)
    tensors["final_norm.weight"] = np.ones(32, np.int8)
    dense = "layers.1.gdn1.in_proj.weight"
    tensors[dense] = tiny_tensors()[dense]
    tensors["token_embedding.weight.scale"][0] = np.nan
    assert sorted(problems_of(own_file(tmp_path, tensors))) == [
        "final_norm.weight: int8, which only matrices may be",
        "layers.0.gdn1.in_proj.weight.scale: missing, expected [16] beside an int8 matrix",
        "layers.0.gdn2.in_proj.weight.scale: negative",
        "layers.1.gdn1.in_proj.weight.scale: unexpected beside a matrix that isn't int8",
        "token_embedding.weight.scale: 1 values are not finite",
    ]


def test_scales_of_a_wrong_size_are_refused(tmp_path):
    tensors = quantise(tiny_tensors())
    tensors["layers.0.gdn1.in_proj.weight.scale"] = np.ones(15, np.float32)
    assert problems_of(own_file(tmp_path, tensors)) == ["layers.0.gdn1.in_proj.weight.scale: expected [16], found [15]"]


def test_other_dtypes_are_refused(tmp_path):
    tensors = tiny_tensors()
    tensors["final_norm.weight"] = tensors["final_norm.weight"].astype(np.float64)
    assert problems_of(own_file(tmp_path, tensors)) == ["final_norm.weight: dtype F64, readable are F32, F16, BF16, I8"]


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nothing.safetensors")
    assert problems_of(tmp_path)


@settings(max_examples=60, deadline=None)
@given(cut=st.floats(0, 0.999), junk=st.binary(max_size=64))
def test_cut_and_overwritten_files_are_refused_or_read_as_a_whole(tmp_path_factory, cut, junk):
    folder = tmp_path_factory.mktemp("cut")
    path = own_file(folder, tiny_tensors())
    data = path.read_bytes()
    path.write_bytes(data[: int(cut * len(data))])
    assert problems_of(path)
    place = int(cut * 4096)  # Within the header, for the most part.
    path.write_bytes(data[:place] + junk + data[place + len(junk) :])
    try:
        weights = read(path)
    except WeightsError:
        return
    assert set(weights.tensors) == set(expected_shapes(weights.config))


def test_tensors_in_memory_are_checked_like_a_file():
    with pytest.raises(WeightsError, match="this set of tensors"):
        Weights(ModelConfig(), tiny_tensors())


# ---------------------------------------------------------------- quantisation


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=12),
        elements=st.floats(-(2**100), 2**100, width=32),
    )
)
def test_no_value_moves_more_than_half_a_step_of_its_row(w):
    stored = quantise({"w": w})
    q, scale = stored["w"], stored["w.scale"]
    assert q.dtype == np.int8
    assert scale.dtype == np.float32
    assert scale.shape == (len(w),)
    assert q.min() >= -127
    step = np.abs(w).max(axis=1).astype(np.float64) / 127
    error = np.abs(q * scale[:, None].astype(np.float64) - w)
    assert (error <= step[:, None] * 0.5001 + np.finfo(np.float32).tiny * 64).all()


def test_zero_rows_stay_zero_and_what_is_no_matrix_stays_as_it_is():
    tensors = {"w": np.array([[0, 0], [1, -2]], np.float32), "b": np.ones(2, np.float32), "c": np.ones((2, 1, 4), "f")}
    stored = quantise(tensors)
    assert stored["w"].tolist() == [[0, 0], [64, -127]]
    assert stored["w.scale"].tolist() == [0, np.float32(2 / 127)]
    assert stored["b"] is tensors["b"]
    assert stored["c"] is tensors["c"]
    assert quantise(stored)["w"] is stored["w"]


def test_quantised_model_keeps_its_configuration(tmp_path):
    weights = read(own_file(tmp_path, tiny_tensors())).as_int8()
    assert weights.quantised
    assert weights.config == TINY
    matrices = [name for name, shape in expected_shapes(TINY).items() if len(shape) == 2]
    assert all(weights.tensors[name].dtype == np.int8 for name in matrices)
    assert len(weights.tensors) == len(expected_shapes(TINY)) + len(matrices)
