"""Safetensors: what the package writes is read, bit by bit; what the format forbids is refused; nothing escapes."""

import collections
import contextlib
import json
import random

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt.interop.foreign import ForeignArray, read_whole
from pytreeckpt.interop.safetensors import (
    BITS,
    DTYPES,
    index_of,
    is_safetensors,
    read_safetensors,
    read_safetensors_folder,
)
from pytreeckpt.reading import BytesSource
from tests.interop.sources import MemoryFolder, damaged, source

TORCH = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
SHAPES = st.lists(st.integers(0, 4), max_size=4)


def tensor(dtype, shape, seed=0):
    n = int(np.prod(shape)) * dtype.itemsize
    octets = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, max(n, 8), np.uint8))
    return octets[: n - n % dtype.itemsize].view(dtype).reshape(shape)


def header(document, data=b"", *, pad=True):
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    text += b" " * (-len(text) % 8 if pad else 0)
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


@given(
    st.dictionaries(
        st.text(max_size=6), st.tuples(st.sampled_from(sorted(TORCH)), SHAPES, st.integers(0, 9)), max_size=5
    ),
    st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)
def test_what_the_package_writes_is_read_bit_by_bit(drawn, metadata):
    drawn.pop("__metadata__", None)
    # Of an empty dict and empty metadata, safetensors 0.8.0 writes what it cannot read.
    metadata = metadata if drawn else metadata or None
    tensors = {name: tensor(TORCH[dtype], shape, seed) for name, (dtype, shape, seed) in drawn.items()}
    found = read_safetensors(source(safetensors.torch.save(tensors, metadata)))
    assert found.metadata == (metadata or None)
    assert set(found.tree) == set(tensors)
    for name, (dtype, shape, _) in drawn.items():
        array = read_whole(found.tree[name])
        assert array.dtype == DTYPES[dtype]
        assert array.shape == tuple(shape)
        assert array.tobytes() == tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes() if array.size else True


def test_every_dtype_of_the_format_is_known():
    assert set(BITS) - set(DTYPES) == {"F4", "F6_E2M3", "F6_E3M2"}
    assert set(TORCH) == set(DTYPES)


def test_arrays_lie_where_they_are_in_the_file():
    found = read_safetensors(source(safetensors.numpy.save({"a": np.arange(4.0)})))
    [piece] = found.tree["a"].pieces
    assert piece.offset == found.tree["a"].pieces[0].source.nbytes - 32
    assert isinstance(found.tree["a"], ForeignArray)


def test_an_f4_tensor_is_the_packed_tensor_that_torch_reads():
    packed = torch.arange(8, dtype=torch.uint8).reshape(2, 4).view(torch.float4_e2m1fn_x2)
    found = read_safetensors(source(safetensors.torch.save({"a": packed})))
    record = found.tree["a"]
    assert record._type.name == "torch.PackedTensor"
    assert (record.dtype, record.shape) == ("float4_e2m1fn_x2", (2, 4))
    assert read_whole(record.data).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_an_f6_tensor_is_its_bytes_and_a_note():
    found = read_safetensors(source(header({"a": entry("F6_E2M3", (4, 2), (0, 6))}, bytes(range(6)))))
    assert read_whole(found.tree["a"]).tolist() == list(range(6))
    assert found.notes == ("a: F6_E2M3[4, 2] comes as its bytes, for which there is no dtype",)


def test_the_order_is_that_of_the_header():
    document = {"b": entry(), "__metadata__": {"k": "v"}, "a": entry(offsets=(8, 16))}
    found = read_safetensors(source(header(document, bytes(16))))
    assert list(found.tree) == ["b", "a"]
    assert found.metadata == {"k": "v"}


def test_a_file_without_tensors_is_an_empty_dict():
    assert read_safetensors(source(safetensors.numpy.save({}))).tree == {}


def test_dropped_names_of_shared_tensors_are_noted(tmp_path):
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    safetensors.torch.save_model(model, str(tmp_path / "x"))
    found = read_safetensors(source((tmp_path / "x").read_bytes()))
    assert found.notes == ("shared when it was saved, by the metadata: b.weight = a.weight",)


GOOD = entry()
REFUSED = {
    "too short for a length": b"\x00" * 7,
    "a header longer than the file": (100).to_bytes(8, "little") + b"{}",
    "a header of 2**63 bytes": (1 << 63).to_bytes(8, "little") + b"{}",
    "no object": header(b"[]"),
    "no JSON": header(b"{"),
    "a space before the object": header(b' {"a": 1}'),
    "not UTF-8": header(b'{"\xff": 1}'),
    "a key twice": header(b'{"a": %b, "a": %b}' % ((json.dumps(GOOD).encode(),) * 2), bytes(8)),
    "a field twice": header(b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', bytes(8)),
    "a lone surrogate": header(b'{"\\ud800": %b}' % json.dumps(GOOD).encode(), bytes(8)),
    "NaN": header(b'{"a": NaN}'),
    "a number of 5000 digits": header(b'{"a": ' + b"1" * 5000 + b"}"),
    "an unknown dtype": header({"a": entry("F128")}, bytes(8)),
    "another dtype than text": header({"a": entry(4)}, bytes(8)),
    "no shape": header({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)),
    "another field": header({"a": entry(more=1)}, bytes(8)),
    "a negative extent": header({"a": entry(shape=(-2,))}, bytes(8)),
    "a negative pair of extents": header({"a": entry(shape=(-2, -1))}, bytes(8)),
    "an extent that is a bool": header({"a": entry(shape=(True, 2))}, bytes(8)),
    "an extent that is a float": header({"a": entry(shape=(2.0,))}, bytes(8)),
    "an extent beyond 64 bits": header({"a": entry(shape=(0, 1 << 64))}),
    "a product that wraps to 64 bits": header({"a": entry(shape=(1 << 32, 1 << 32), offsets=(0, 0))}),
    "65 axes": header({"a": entry(shape=(1,) * 65, offsets=(0, 4))}, bytes(4)),
    "too few bytes for the shape": header({"a": entry(shape=(3,))}, bytes(8)),
    "too many bytes for the shape": header({"a": entry(shape=(1,))}, bytes(8)),
    "one offset": header({"a": entry(offsets=(0,))}, bytes(8)),
    "a negative offset": header({"a": entry(offsets=(-8, 0))}, bytes(8)),
    "an offset that is a float": header({"a": entry(offsets=(0.0, 8))}, bytes(8)),
    "offsets the wrong way round": header({"a": entry(offsets=(8, 0))}, bytes(8)),
    "an end beyond the file": header({"a": entry(offsets=(0, 8))}, bytes(7)),
    "a gap at the start": header({"a": entry(offsets=(8, 16))}, bytes(16)),
    "a gap between": header({"a": entry(), "b": entry(offsets=(16, 24))}, bytes(24)),
    "an overlap": header({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    "the same bytes twice": header({"a": entry(), "b": entry()}, bytes(8)),
    "bytes after the last tensor": header({"a": entry()}, bytes(9)),
    "bytes without a tensor": header({}, bytes(1)),
    "metadata that is no object": header({"__metadata__": []}),
    "metadata with a number": header({"__metadata__": {"a": 1}}),
    "half a byte of F4": header({"a": entry("F4", (3,), (0, 1))}, bytes(1)),
    "an F4 axis that ends within a byte": header({"a": entry("F4", (2, 3), (0, 3))}, bytes(3)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    with pytest.raises(ptc.PytreeckptError):
        read_safetensors(source(REFUSED[name]))


def test_a_header_beyond_the_limit_is_refused_unread():
    class Huge:
        nbytes = 1 << 40

        def read_into(self, offset, buffers):
            assert offset == 0
            assert [len(buffer) for buffer in buffers] == [8]
            buffers[0][:] = (200_000_000).to_bytes(8, "little")

    with pytest.raises(ptc.LimitError):
        read_safetensors(Huge())


def test_a_header_of_very_many_values_is_refused_unparsed():
    with ptc.limits(nodes=1000), pytest.raises(ptc.LimitError, match="values"):
        read_safetensors(source(header(b"{" + b"[" * 2000 + b"}")))


def test_deep_nesting_is_no_recursion_error():
    with pytest.raises(ptc.PytreeckptError):
        read_safetensors(source(header(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}")))


def test_the_package_refuses_what_is_refused_here_apart_from_stricter_rules():
    stricter = {
        *("a space before the object", "a field twice", "another field", "65 axes", "a lone surrogate", "a key twice"),
        *("an F4 axis that ends within a byte", "half a byte of F4", "an extent beyond 64 bits"),
    }
    accepted = set()
    for name in REFUSED.keys() - stricter:
        with contextlib.suppress(safetensors.SafetensorError):
            safetensors.deserialize(REFUSED[name])
            accepted.add(name)
    assert accepted == set()


@given(st.binary(max_size=200))
def test_random_bytes_give_a_tree_or_an_error(data):
    try:
        read_safetensors(source(data))
    except ptc.PytreeckptError as error:
        assert str(error)


def test_mutated_files_give_a_tree_or_an_error():
    rng = random.Random(0)
    base = safetensors.numpy.save({"a": np.arange(4.0), "b": np.zeros((2, 3), ml_dtypes.bfloat16)}, {"k": "v"})
    flipped = [bytearray(base) for _ in range(8 * len(base))]
    for bit, data in enumerate(flipped):
        data[bit // 8] ^= 1 << bit % 8
    outcomes = collections.Counter()
    for data in [*map(bytes, flipped), *(damaged(base, rng) for _ in range(2000))]:
        try:
            tree = read_safetensors(source(data)).tree
        except ptc.PytreeckptError as error:
            outcomes[type(error).__name__] += 1
            continue
        # There is no checksum that tells: but whatever the bytes say, the package reads the same in them.
        expected = safetensors.torch.load(data)
        assert tree.keys() == expected.keys()
        for name, array in tree.items():
            assert isinstance(array, ForeignArray)
            found = read_whole(array)
            assert found.shape == tuple(expected[name].shape)
            assert found.dtype.name == str(expected[name].dtype).removeprefix("torch.")
            assert found.tobytes() == bytes(expected[name].contiguous().flatten().view(torch.uint8).tolist())
        outcomes["tree"] += 1
    assert outcomes["tree"] > 300
    assert outcomes["CorruptionError"] > 300


def test_detection_looks_at_length_and_brace():
    file = safetensors.numpy.save({"a": np.zeros(3)})
    assert is_safetensors(file[:9])
    assert not is_safetensors(file[:8])
    assert not is_safetensors(bytes([0xFF] * 8) + b"{")
    assert not is_safetensors(b"PK\x03\x04" + bytes(12))
    assert not is_safetensors(b"")


# Folders.


def sharded(**changes):
    files = {
        "model-00001-of-00002.safetensors": safetensors.numpy.save({"a": np.arange(3.0)}, {"format": "np"}),
        "model-00002-of-00002.safetensors": safetensors.numpy.save({"c": np.arange(2), "b": np.ones(2, np.int8)}),
        "config.json": b"{}",
    }
    weight_map = {
        "b": "model-00002-of-00002.safetensors",
        "a": "model-00001-of-00002.safetensors",
        "c": "model-00002-of-00002.safetensors",
    }
    weight_map = {name: shard for name, shard in (weight_map | changes).items() if shard is not None}
    files["model.safetensors.index.json"] = json.dumps(
        {"metadata": {"total_size": 42}, "weight_map": weight_map}
    ).encode()
    return MemoryFolder(files)


def test_a_sharded_folder_is_one_dict_in_the_order_of_its_index():
    found = read_safetensors_folder(sharded())
    assert list(found.tree) == ["b", "a", "c"]
    assert read_whole(found.tree["a"]).tolist() == [0, 1, 2]
    assert read_whole(found.tree["b"]).tolist() == [1, 1]
    assert found.metadata == {
        "index": {"total_size": 42},
        "shards": {"model-00001-of-00002.safetensors": {"format": "np"}},
    }
    assert len(found.sources) == 3


def test_an_index_may_be_named():
    assert list(read_safetensors_folder(sharded(), "model.safetensors.index.json").tree) == ["b", "a", "c"]


def test_a_folder_with_one_file_is_that_file():
    folder = MemoryFolder({"model.safetensors": safetensors.numpy.save({"a": np.zeros(2)}), "tokenizer.json": b"{}"})
    assert list(read_safetensors_folder(folder).tree) == ["a"]


def test_which_file_of_a_folder_is_read():
    assert index_of(["a.safetensors"]) == "a.safetensors"
    assert index_of(["a.safetensors.index.json", "a-1.safetensors", "a-2.safetensors"]) == "a.safetensors.index.json"
    assert index_of(["model.safetensors", "model.safetensors.index.json"]) == "model.safetensors"
    assert index_of(["sub/model.safetensors", "x.bin"]) is None
    with pytest.raises(ptc.CorruptionError, match="open one of them"):
        index_of(["a.safetensors", "b.safetensors"])


@pytest.mark.parametrize(
    "changes",
    [
        {"d": "model-00001-of-00002.safetensors"},
        {"c": None},
        {"c": "model-00001-of-00002.safetensors"},
        {"c": 3},
        {"c": "missing.safetensors"},
        {"c": "../outside.safetensors"},
        {"c": "/etc/passwd"},
    ],
)
def test_index_and_shards_that_do_not_agree_are_refused(changes):
    with pytest.raises(ptc.PytreeckptError):
        read_safetensors_folder(sharded(**changes))


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"[]",
        b"{}",
        b'{"weight_map": []}',
        b'{"weight_map": {}, "metadata": 3}',
        b'{"weight_map": {"a": "x", "a": "y"}}',
    ],
)
def test_an_index_that_is_none_is_refused(index):
    with pytest.raises(ptc.PytreeckptError):
        read_safetensors_folder(MemoryFolder({"model.safetensors.index.json": index}))


def test_an_index_beyond_the_limit_is_refused_unread():
    with ptc.limits(index_nbytes=20), pytest.raises(ptc.LimitError, match="index"):
        read_safetensors_folder(sharded())


def test_a_folder_without_any_is_refused():
    with pytest.raises(ptc.CorruptionError, match="neither"):
        read_safetensors_folder(MemoryFolder({"a.txt": b""}))


def test_in_memory_sources_are_those_of_the_library():
    assert isinstance(source(b""), BytesSource)
