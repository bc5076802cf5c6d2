"""Folders of torch.distributed.checkpoint: what torch loads from them, from shards in any order and files."""

import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt.geometry import Box
from pytreeckpt.interop import torch_distributed
from pytreeckpt.interop.foreign import read_region, read_whole
from pytreeckpt.interop.torch_distributed import is_distributed, read_distributed
from pytreeckpt.interop.torch_files import read_torch
from tests.interop import pickle_assembler as asm
from tests.interop.likeness import assert_alike
from tests.interop.sources import MemoryFolder, damaged

torch = pytest.importorskip("torch")
dcp = pytest.importorskip("torch.distributed.checkpoint")

from torch.distributed.checkpoint.filesystem import _StorageInfo  # noqa: E402 - needs torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save  # noqa: E402 - likewise
from torch.distributed.checkpoint.metadata import (  # noqa: E402 - likewise
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)


def folder(path):
    return MemoryFolder({each.name: each.read_bytes() for each in Path(path).iterdir()})


def loaded(path, tmp_path):
    """What torch itself makes of a folder without a template."""
    target = tmp_path / "loaded.pt"
    dcp_to_torch_save(path, target)
    return torch.load(target, weights_only=False)


def saved_item(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def written(tensors, others=None, *, planner=True, split=1, change=None):
    """A folder as several processes would have written it: `tensors` maps a name to the tensor and its boxes."""
    files: dict[str, bytearray] = {}
    storage: dict[Any, Any] = {}
    entries: dict[str, Any] = {}
    count = 0

    def put(index, value):
        nonlocal count
        name = f"__{count % split}_0.distcp"
        count += 1
        data = saved_item(value)
        file = files.setdefault(name, bytearray())
        storage[index] = _StorageInfo(name, len(file), len(data))
        file.extend(data)

    for name, (tensor, boxes) in tensors.items():
        chunks = [ChunkStorageMetadata(torch.Size(offset), torch.Size(shape)) for offset, shape in boxes]
        entries[name] = TensorStorageMetadata(TensorProperties(tensor.dtype), tensor.size(), chunks)
        for number, (offset, shape) in enumerate(boxes):
            part = tensor[tuple(slice(a, a + n) for a, n in zip(offset, shape))]
            put(MetadataIndex(name, offset, number), part.clone())
    for name, value in (others or {}).items():
        entries[name] = BytesStorageMetadata()
        put(MetadataIndex(name), value)
    paths = {name: tuple(name.split(".")) for name in entries} if planner else None
    metadata = Metadata(entries, paths, storage, version="1.0.0")
    if change is not None:
        change(metadata, files)
    return MemoryFolder({".metadata": pickle.dumps(metadata), **{name: bytes(file) for name, file in files.items()}})


def on_disk(written_folder, path):
    path.mkdir(exist_ok=True)
    for name, data in written_folder.files.items():
        (path / name).write_bytes(data)
    return path


def training():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": 3,
        "history": [1.5, torch.ones(2), {"a": torch.arange(3)}],
        "empty": {},
        "a.b": {"c": torch.zeros(1, dtype=torch.bfloat16)},
        "none": None,
        "tuple": (1, "x"),
        "transposed": torch.rand(2, 3).t(),
        "float8": torch.zeros(3, dtype=torch.float8_e5m2),
        "scalar": torch.tensor(2.5),
        "nothing": torch.zeros(0, 3),
    }


def test_a_training_is_what_torch_loads(tmp_path):
    path = tmp_path / "checkpoint"
    tree = training()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(tree, checkpoint_id=path)
        wanted = loaded(path, tmp_path)
    # torch makes it contiguous; it was saved in the order that it had.
    wanted["transposed"] = tree["transposed"]
    files = folder(path)
    assert is_distributed(files.names())
    found = read_distributed(files)
    assert found.format == "torch distributed"
    assert found.metadata == {"version": "1.0.0"}
    assert_alike(found.tree, wanted)
    assert len(found.checks) > 20
    assert len(found.sources) == 1


CUTS = st.lists(st.integers(1, 5), max_size=2, unique=True).map(sorted)


def boxes_of(shape, cuts):
    """The cells of a grid."""
    grid: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((), ())]
    for extent, at in zip(shape, cuts):
        ends = [0, *(cut for cut in at if cut < extent), extent]
        grid = [((*offset, low), (*sizes, high - low)) for offset, sizes in grid for low, high in zip(ends, ends[1:])]
    return grid


@given(
    st.lists(st.integers(1, 6), max_size=3).flatmap(
        lambda shape: st.tuples(st.just(shape), st.tuples(*(CUTS for _ in shape)))
    ),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.complex64]),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_shards_make_the_whole_tensor_in_any_order_and_from_any_files(grid, dtype, split, rng):
    shape, cuts = grid
    tensor = torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(shape).to(dtype)
    boxes = boxes_of(shape, cuts)
    rng.shuffle(boxes)
    found = read_distributed(written({"m.w": (tensor, boxes)}, {"m.step": 3}, split=split)).tree
    assert_alike(found, {"m": {"w": tensor, "step": 3}})


def test_what_torch_loads_from_shards_is_what_is_read(tmp_path):
    tensor = torch.rand(4, 6)
    boxes = [((0, 0), (2, 6)), ((2, 0), (2, 4)), ((2, 4), (2, 2))]
    files = written({"w": (tensor, boxes), "v": (torch.rand(3), [((0,), (3,))])}, {"o": [1, "x"]}, split=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = loaded(on_disk(files, tmp_path / "c"), tmp_path)
    found = read_distributed(files)
    assert_alike(found.tree, wanted)
    part = read_region(found.tree["w"].data, Box((1, 3), (3, 3)))
    np.testing.assert_array_equal(part, tensor[1:4, 3:6].numpy())


def test_without_notes_of_the_planner_the_names_are_the_keys():
    found = read_distributed(written({"m.w": (torch.ones(2), [((0,), (2,))])}, {"m.step": 3}, planner=False)).tree
    assert list(found) == ["m.w", "m.step"]


def test_lists_are_made_of_their_indices():
    def change(metadata, files):
        metadata.planner_data = {"a": ("l", 1), "b": ("l", 0, 0), "c": ("l", 0, 2)}

    found = read_distributed(written({}, {"a": 1, "b": 2, "c": 3}, change=change)).tree
    assert found == {"l": [[2, None, 3], 1]}


WHOLE = {"w": (torch.ones(4, 2), [((0, 0), (2, 2)), ((2, 0), (2, 2))])}


def _first_chunk(metadata):
    return metadata.state_dict_metadata["w"].chunks[0]


def _sizes(*sizes):
    def change(metadata, files):
        _first_chunk(metadata).sizes = torch.Size(sizes)

    return change


def _offsets(*offsets):
    def change(metadata, files):
        _first_chunk(metadata).offsets = torch.Size(offsets)

    return change


def _info(**fields):
    def change(metadata, files):
        index = next(iter(metadata.storage_data))
        for name, value in fields.items():
            setattr(metadata.storage_data[index], name, value)

    return change


def _set(**fields):
    def change(metadata, files):
        for name, value in fields.items():
            setattr(metadata, name, value)

    return change


def _entry(**fields):
    def change(metadata, files):
        for name, value in fields.items():
            setattr(metadata.state_dict_metadata["w"], name, value)

    return change


def _drop_chunk(metadata, files):
    metadata.state_dict_metadata["w"].chunks.pop()


def _drop_item(metadata, files):
    metadata.storage_data.popitem()


def _overlap(metadata, files):
    chunks = metadata.state_dict_metadata["w"].chunks
    chunks.append(chunks[0])


def _damage_item(metadata, files):
    file = files["__0_0.distcp"]
    at = file.index(b"PK\x01\x02")
    file[at : at + 4] = b"abcd"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_set(state_dict_metadata=[1]), "no table of what was saved"),
        (_set(storage_data=None), "no table of where the items are"),
        (_set(storage_data={1: 2}), "the index of an item is a int"),
        (_set(storage_data={MetadataIndex("w", (0, 0)): 5}), "the place of an item is a int"),
        (_set(planner_data=[1]), "not a table of paths"),
        (_set(planner_data={}), "has no path for w"),
        (_set(planner_data={"w": ("a", 1 << 40), "o": ("o",)}), "index 1099511627776, of a list of at most 2"),
        (_set(planner_data={"w": ("a",), "o": ("a",)}), "that of something else as well"),
        (_set(planner_data={"w": ("a",), "o": ("a", "b")}), "leads through something else"),
        (_set(planner_data={"w": ("a", 0), "o": ("a", "b")}), "leads through something else"),
        (_set(planner_data={"w": (1.5,), "o": ("o",)}), "has no path for w"),
        (_info(relative_path=5), "not some bytes of a file"),
        (_info(offset=-1), "not some bytes of a file"),
        (_info(length=1 << 50), r"of __0_0.distcp, which has \d+"),
        (_info(offset=7), "w at .* at byte 7 of __0_0.distcp: "),
        (_sizes(2), "no offsets and sizes of its rank"),
        (_sizes(5, 2), "is not within"),
        (_sizes(1, 2), "is not the tensor of float32"),
        (_offsets(1, 0), "does not say where w at .1, 0. is"),
        (_drop_chunk, "the chunks of w"),
        (_overlap, "the chunks of w"),
        (_drop_item, "does not say where o is"),
        (_entry(properties=TensorProperties(torch.float64)), "is not the tensor of float64"),
        (_entry(properties=None), "no size, dtype or chunks"),
        (_entry(size=3), "no size, dtype or chunks"),
        (_entry(size=torch.Size([4, 3])), "the chunks of w"),
        (_damage_item, "at byte 0 of __0_0.distcp"),
    ],
)
def test_what_does_not_agree_is_refused_with_its_place(change, match):
    with pytest.raises(ptc.CorruptionError, match=match):
        read_distributed(written(WHOLE, {"o": 1}, change=change))


def assembled(index, info):
    """Metadata with the same index twice."""
    module = "torch.distributed.checkpoint."
    key = asm.call(asm.name(module + "metadata", "MetadataIndex")) + asm.dict_of(*index) + asm.op("BUILD")
    place = asm.call(asm.name(module + "filesystem", "_StorageInfo")) + asm.dict_of(*info) + asm.op("BUILD")
    table = asm.dict_of(key, place, key, place)
    state = asm.dict_of(asm.text("state_dict_metadata"), b"}", asm.text("storage_data"), table)
    body = asm.call(asm.name(module + "metadata", "Metadata")) + state + asm.op("BUILD")
    return MemoryFolder({".metadata": asm.pickle_of(body)})


def test_an_index_that_is_none_or_there_twice_is_refused():
    place = [asm.text("relative_path"), asm.text("f"), asm.text("offset"), b"K\x00", asm.text("length"), b"K\x00"]
    with pytest.raises(ptc.CorruptionError, match="two places for w"):
        read_distributed(assembled([asm.text("fqn"), asm.text("w")], place))
    for index in ([asm.text("fqn"), b"N"], [asm.text("fqn"), asm.text("w"), asm.text("offset"), asm.text("x")]):
        with pytest.raises(ptc.CorruptionError, match="no name, or an offset that is none"):
            read_distributed(assembled(index, place))


def _same_place(metadata, files):
    first, *others = metadata.storage_data
    for index in others:
        metadata.storage_data[index] = metadata.storage_data[first]


def test_items_that_share_their_bytes_are_refused_before_they_are_read_again_and_again(monkeypatch):
    given_ = written({}, {f"o{number}": number for number in range(50)}, change=_same_place)
    n_read = 0

    def counting(source):
        nonlocal n_read
        n_read += source.nbytes
        return read_torch(source)

    monkeypatch.setattr(torch_distributed, "read_torch", counting)
    # All of them together have no more bytes than the file.
    assert read_distributed(given_).tree == {f"o{number}": 0 for number in range(50)}
    n_read = 0
    cut = given_.files["__0_0.distcp"][: len(given_.files["__0_0.distcp"]) // 10]
    with pytest.raises(ptc.CorruptionError, match="o5 shares its bytes of __0_0.distcp with other items"):
        read_distributed(MemoryFolder({**given_.files, "__0_0.distcp": cut}))
    assert 0 < n_read <= len(cut)


def test_lists_that_are_long_for_what_they_hold_are_beyond_the_limits():
    names = [f"o{number}" for number in range(30)]
    # Each is in a list of its own, of as many items as there are names.
    paths = {name: (name, len(names) - 1) for name in names}
    given_ = written({}, dict.fromkeys(names, 1), change=_set(planner_data=paths))
    assert read_distributed(given_).tree["o3"] == [None] * 29 + [1]
    with ptc.limits(nodes=899), pytest.raises(ptc.LimitError, match="lists of the tree have 900 items"):
        read_distributed(given_)


def test_a_path_deeper_than_the_limit_is_refused():
    path = ("a",) * 200
    with ptc.limits(depth=100), pytest.raises(ptc.LimitError, match="deeper than the limit of 100"):
        read_distributed(written({}, {"o": 1}, change=_set(planner_data={"o": path})))


def test_items_that_went_through_an_extension_are_refused():
    with pytest.raises(ptc.UnsupportedTypeError, match="through the extensions"):
        read_distributed(written(WHOLE, change=_info(transform_descriptors=["stream.zstd"])))


def test_a_file_that_is_missing_or_outside_is_not_found():
    for name in ("__9_0.distcp", "../secret"):
        with pytest.raises(ptc.CheckpointNotFoundError):
            read_distributed(written(WHOLE, change=_info(relative_path=name)))


def test_metadata_that_names_other_classes_is_refused_and_never_run():
    evil = asm.pickle_of(asm.call(asm.name("os", "system"), asm.text("true")))
    with pytest.raises(ptc.CorruptionError, match="the metadata is a os:system"):
        read_distributed(MemoryFolder({".metadata": evil}))


def test_damaged_metadata_gives_a_tree_or_an_error_of_ours():
    import random

    rng = random.Random(0)
    files = written(WHOLE, {"o": 1})
    for _ in range(300):
        changed = MemoryFolder({**files.files, ".metadata": damaged(files.files[".metadata"], rng)})
        try:
            assert isinstance(read_distributed(changed).tree, dict)
        except ptc.PytreeckptError as error:
            assert str(error)


def test_other_folders_are_not_of_this_format():
    assert not is_distributed(["model.safetensors", "config.json"])
    assert not is_distributed([])
    assert is_distributed([".metadata", "__0_0.distcp"])


def test_a_shard_is_read_alone():
    tensor = torch.rand(1000, 100)
    boxes = [((at, 0), (100, 100)) for at in range(0, 1000, 100)]
    found = read_distributed(written({"w": (tensor, boxes)})).tree["w"].data
    assert len(found.pieces) == 10
    np.testing.assert_array_equal(read_whole(found), tensor.numpy())
