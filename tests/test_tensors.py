from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rankwright.errors import ModelError
from rankwright.toolbox.tensors import Form, Weights, Writer, floats, in_order, stored, weight_files

TORCH = {
    **{"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "BOOL": torch.bool},
    **{"U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64},
}


def some(dtype, shape, seed=0):
    values = 4 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.abs().to(TORCH[dtype])


def saved(folder, tensors, name="model.safetensors"):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / name, metadata={"format": "pt"})
    return folder


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


@pytest.mark.parametrize("dtype", TORCH)
def test_any_stretch_of_any_dtype_is_read_as_it_is_stored(tmp_path, dtype):
    tensor = some(dtype, (7, 5))
    with Weights(saved(tmp_path, {"before": some("F32", (3,)), "it": tensor, "scalar": some(dtype, ())})) as weights:
        assert weights.forms["it"] == Form(dtype, (7, 5))
        read = weights["it"]
        assert read.size == 35
        for start, stop in ((0, 35), (0, 1), (11, 30), (34, 35), (5, 5)):
            raw = read.raw(start, stop)
            assert raw.size == stop - start
            assert raw.tobytes() == bits(tensor.reshape(-1)[start:stop]).tobytes()
        assert weights["scalar"].raw(0, 1).size == 1


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
def test_floats_are_read_as_float32_or_float64_without_loss(tmp_path, dtype):
    tensor = some(dtype, (50,))
    with Weights(saved(tmp_path, {"it": tensor})) as weights:
        read = weights["it"].read(10, 50)
    assert read.dtype == (np.float64 if dtype == "F64" else np.float32)
    np.testing.assert_array_equal(read, tensor[10:].double().numpy())


@pytest.mark.parametrize("dtype", ["BOOL", "I64", "U8"])
def test_whole_numbers_are_no_floats(tmp_path, dtype):
    with (
        Weights(saved(tmp_path, {"it": some(dtype, (4,))})) as weights,
        pytest.raises(ValueError, match="whole numbers"),
    ):
        weights["it"].read(0, 4)
    with pytest.raises(ValueError, match="whole numbers"):
        stored(np.zeros(3), dtype)


def test_every_bf16_is_read_as_torch_reads_it():
    every = np.arange(1 << 16, dtype=np.uint16)
    expected = torch.from_numpy(every.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(floats(every, "BF16"), expected)


def awkward():
    """Random float32 bit patterns, ties, carries into the exponent, subnormals, infinities and NaN."""
    random = np.random.default_rng(0).integers(0, 1 << 32, 200_000, dtype=np.uint32)
    edges = np.array([0x00007FFF, 0x00008000, 0x00008001, 0x00018000, 0x7F7F8000, 0x7F7FFFFF, 0x7F800000], np.uint32)
    near = (np.arange(1 << 12, dtype=np.uint32) << 20)[:, None] + np.uint32([0x7FFF, 0x8000, 0x8001, 0x18000])
    both = np.concatenate(
        [random, edges, edges | np.uint32(1 << 31), near.ravel(), np.uint32([0x7FC00000, 0xFF800001])]
    )
    return both.view(np.float32)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("wide", [np.float32, np.float64])
def test_floats_are_rounded_as_torch_rounds_them(dtype, wide):
    with np.errstate(invalid="ignore", over="ignore"):
        values = awkward().astype(wide)
        values = np.concatenate([values, np.nextafter(values, np.inf), 1e30 * values[:100]])
    expected = torch.from_numpy(values).to(TORCH[dtype])
    ours = stored(values, dtype)
    nan = np.isnan(values)
    assert ours[~nan].tobytes() == bits(expected[torch.from_numpy(~nan)]).tobytes()
    assert np.isnan(floats(ours[nan], dtype)).all()


def test_what_is_stored_is_read_back(tmp_path):
    for dtype in ("F16", "BF16", "F32", "F64"):
        raw = bits(some(dtype, (100,))).view(stored(np.zeros(1), dtype).dtype)
        assert stored(floats(raw, dtype), dtype).tobytes() == raw.tobytes()


def test_shards_are_one_model(tmp_path):
    saved(tmp_path, {"a": some("F32", (3,), 1)}, "model-00001-of-00002.safetensors")
    saved(tmp_path, {"b": some("F32", (4,), 2)}, "model-00002-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with Weights(tmp_path) as weights:
        assert weights.forms == {"a": Form("F32", (3,)), "b": Form("F32", (4,))}
        np.testing.assert_array_equal(weights["b"].read(0, 4), some("F32", (4,), 2).numpy())
    assert len(weight_files(tmp_path)) == 2


def test_a_missing_shard_is_told(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    with pytest.raises(ModelError, match="No such file") as caught:
        Weights(tmp_path)
    assert caught.value.where == str(tmp_path / "gone.safetensors")


def entry(**changes):
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


def raw_file(header, data=bytes(8)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "cut off"),
        (b"1234", "cut off"),
        (raw_file({"a": entry()})[:20], "cut off"),
        (b"\xff" * 16, "cut off"),
        (raw_file({"a": entry()}, bytes(7)), "has 7.* bytes|bytes are announced"),
        (raw_file({"a": entry()}, bytes(9)), "bytes are announced"),
        (raw_file(b"{"), "header is broken"),
        (raw_file(b"[]"), "header is broken"),
        (raw_file(b"\xff\xfe"), "header is broken"),
        (raw_file({"a": {"dtype": "F32"}}), "header is broken"),
        (raw_file({"a": entry(dtype="F8_E4M3")}), "dtype F8_E4M3 is not known"),
        (raw_file({"a": entry(shape=[3])}), "8 bytes for F32"),
        (raw_file({"a": entry(shape=[-1, -2])}), "shape"),
        (raw_file({"a": entry(data_offsets=[4, 12])}, bytes(12)), "begins at 4, not at 0"),
        (raw_file({"a": entry(), "b": entry()}), "begins at 0, not at 8"),
    ],
)
def test_a_broken_file_is_one_clear_error_and_is_closed(tmp_path, content, told):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    before = open_files()
    with pytest.raises(ModelError, match=told) as caught:
        Weights(tmp_path)
    assert caught.value.where == str(path)
    assert open_files() == before


def open_files():
    return len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0


def test_a_file_that_is_cut_off_after_it_was_opened_is_told(tmp_path):
    with Weights(saved(tmp_path, {"a": some("F32", (100,))})) as weights:
        os.truncate(tmp_path / "model.safetensors", 200)
        with pytest.raises(ModelError, match="ends in the middle of a tensor") as caught:
            weights["a"].read(0, 100)
    assert caught.value.where == str(tmp_path / "model.safetensors")


def written(path, tensors, piece=None):
    layout = in_order({name: Form(form(tensor), tuple(tensor.shape)) for name, tensor in tensors.items()})
    with Writer(path, layout) as writer:
        for name in layout:
            raw = bits(tensors[name])
            for start in range(0, raw.size, piece or raw.size or 1):
                writer.write(name, raw[start : start + (piece or raw.size)])
    return path.read_bytes()


def form(tensor):
    return next(name for name, dtype in TORCH.items() if dtype == tensor.dtype)


@pytest.mark.parametrize("piece", [None, 8])
def test_the_writer_writes_what_safetensors_would(tmp_path, piece):
    tensors = {"b": torch.randn(3, 2), "é": torch.tensor(2.5), "a": torch.empty(0, 4), 'say "no"\n': torch.ones(1)}
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    assert written(tmp_path / "ours", tensors, piece) == (tmp_path / "theirs").read_bytes()


def test_the_writer_writes_what_safetensors_would_of_all_dtypes(tmp_path):
    tensors = {f"{place}{dtype}": some(dtype, (3, 5)) for dtype in TORCH for place in "ba"}
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    assert written(tmp_path / "ours", tensors) == (tmp_path / "theirs").read_bytes()
    read = load_file(tmp_path / "ours")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("name", "piece", "told"),
    [("a", 3, "a with 12 bytes came where a with 8"), ("b", 1, "b with 4 bytes came where a")],
)
def test_the_writer_refuses_what_was_not_announced(tmp_path, name, piece, told):
    layout = {"a": Form("F32", (2,)), "b": Form("F32", (1,))}
    with pytest.raises(ValueError, match=told), Writer(tmp_path / "file", layout) as writer:
        writer.write(name, np.zeros(piece, np.float32))


def test_the_writer_refuses_to_end_too_early_and_to_go_on_too_long(tmp_path):
    layout = {"a": Form("F32", (2,))}
    with (
        pytest.raises(ValueError, match="4 bytes of a were announced and never came"),
        Writer(tmp_path / "file", layout) as writer,
    ):
        writer.write("a", np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="nothing more"), Writer(tmp_path / "file", layout) as writer:
        writer.write("a", np.zeros(2, np.float32))
        writer.write("a", np.zeros(1, np.float32))
