"""torch's files without torch: what comes back is what `torch.load` gives, bit by bit, tie by tie."""

import collections
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt.interop.foreign import ForeignArray, read_whole
from pytreeckpt.interop.pickles import load_pickle, read_pickle
from pytreeckpt.interop.torch_files import read_torch
from pytreeckpt.objects import fields_of
from pytreeckpt.reading import BytesSource
from tests.interop import pickle_assembler as asm
from tests.interop.likeness import assert_alike
from tests.interop.sources import is_torch, source
from tests.sources import RecordingSource

torch = pytest.importorskip("torch")

from tests.adapters import torch_tensors as tensors  # noqa: E402 - needs torch

CACHE = Path(os.environ.get("PYTREECKPT_WEIGHTS", Path(__file__).parents[2] / ".cache/weights"))
MANIFEST = CACHE / "manifest.json"
FILES = sorted(
    path
    for files in (json.loads(MANIFEST.read_text()).values() if MANIFEST.exists() else [])
    for path in files
    if not path.endswith(".safetensors")
)

FORMS = [(True, protocol) for protocol in (2, 3, 4, 5)] + [(False, protocol) for protocol in (2, 3, 4, 5)]


def saved(tree, *, zipped=True, protocol=2):
    file = io.BytesIO()
    torch.save(tree, file, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def loaded(data):
    return torch.load(io.BytesIO(data), weights_only=False)


def check(tree, *, zipped=True, protocol=2):
    """Save and read both ways; gives our reading."""
    data = saved(tree, zipped=zipped, protocol=protocol)
    assert is_torch(data)
    found = read_torch(source(data))
    assert found.format == ("torch zip" if zipped else "torch legacy")
    assert_alike(found.tree, loaded(data))
    return found


# What has a class of storages of its own; others torch cannot load from its old form.
TYPED = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16),
    *(torch.float32, torch.float64, torch.complex64, torch.complex128),
]
_SHOWN_BY_NOBODY = "a list of tensors, some of dtypes that torch cannot print"


class Tensors(list):
    def __repr__(self):
        return _SHOWN_BY_NOBODY


def _some(dtypes):
    return st.lists(tensors.tensors(dtypes), max_size=3).map(Tensors)


# Integers of less than 8 bits, which torch cannot save.
SMALL = [getattr(torch, f"{sign}int{width}") for sign in ("u", "") for width in range(1, 8)]


@pytest.mark.filterwarnings("ignore:ComplexHalf support:UserWarning")
@given(_some([dtype for dtype in (*tensors.PLAIN, *tensors.PACKED) if dtype not in SMALL]), st.integers(2, 5))
def test_tensors_are_those_that_were_saved(drawn, protocol):
    # Not those that torch loads: it fails on float8 with a gradient.
    tree = [*drawn, *drawn[:1]]
    assert_alike(read_torch(source(saved(tree, protocol=protocol))).tree, tree)


@given(_some(TYPED), st.integers(2, 5))
def test_tensors_are_those_that_torch_loads(drawn, protocol):
    check([*drawn, *drawn[:1]], protocol=protocol)


@given(_some(TYPED), st.integers(2, 5))
def test_tensors_of_old_files_are_those_that_torch_loads(drawn, protocol):
    check([*drawn, *drawn[:1]], zipped=False, protocol=protocol)


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.complex_numbers())
KEYS = st.text(max_size=3) | st.integers() | st.tuples(st.integers(), st.text(max_size=2))
VALUES = st.one_of(
    SCALARS,
    tensors.tensors(tensors.WITH_GRADIENT[:4]),
    st.sampled_from(
        [
            *(torch.Size([1, 2]), torch.float32, torch.bfloat16, torch.device("cpu"), torch.device("cuda", 1)),
            *(torch.strided, torch.sparse_csr, np.float32(1.5), np.arange(3), np.dtype("i4"), Path("/a/b")),
        ]
    ),
)


def containers(children):
    mappings = st.dictionaries(KEYS, children, max_size=3)
    lists = st.lists(children, max_size=3)
    return st.one_of(
        lists,
        lists.map(tuple),
        mappings,
        mappings.map(collections.OrderedDict),
        mappings.map(lambda items: collections.defaultdict(list, items)),
        st.sets(KEYS, max_size=3),
        lists.map(collections.deque),
    )


@given(st.recursive(VALUES, containers, max_leaves=8), st.sampled_from(FORMS))
def test_trees_are_those_that_torch_loads(tree, form):
    zipped, protocol = form
    check(tree, zipped=zipped, protocol=protocol)


def training():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.LazyLinear(2)
    )
    model(torch.ones(2, 3, 5, 5)).sum()
    optimizer = torch.optim.AdamW(model.parameters(), amsgrad=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    model(torch.ones(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    scheduler.step()
    return model, optimizer, scheduler


@pytest.mark.parametrize("form", FORMS)
def test_a_training_is_read(form):
    model, optimizer, scheduler = training()
    tree = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "rng": torch.get_rng_state(),
        "numpy": np.random.RandomState(0).get_state(),
        "epoch": 3,
    }
    found = check(tree, zipped=form[0], protocol=form[1])
    [note] = found.notes
    assert note.startswith("the _metadata of a collections:OrderedDict, the versions of torch's modules, was left out")


@pytest.mark.parametrize("zipped", [True, False])
def test_shared_storages_stay_shared(zipped):
    base = torch.arange(12.0)
    views = [base, base.view(3, 4), base.view(3, 4).t(), base[2:5], base[2:5], base.view(3, 4)[:, 1], base[:0]]
    found = check(views, zipped=zipped).tree
    identities = [record.data.identity for record in found]
    assert identities[3] == identities[4]
    assert len(set(identities)) == len(views) - 1
    weight = torch.nn.Parameter(torch.ones(3))
    check({"a": weight, "b": weight, "c": weight.data, "d": [weight]}, zipped=zipped)


@pytest.mark.parametrize("zipped", [True, False])
def test_the_order_of_memory_is_kept(zipped):
    tree = [
        torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.rand(2, 1, 4, 5).to(memory_format=torch.channels_last),
        torch.rand(3, 4).t(),
        torch.rand(4, 6)[::2, ::3],
        torch.rand(3).expand(4, 3),
        torch.rand(1, 3).t(),
    ]
    found = check(tree, zipped=zipped).tree
    assert found[0].data.pieces[0].strides == (240, 4, 60, 12)


@pytest.mark.parametrize("zipped", [True, False])
def test_lazily_conjugated_and_negated_tensors_have_their_values(zipped):
    base = torch.view_as_complex(torch.rand(5, 2, dtype=torch.float64))
    tree = [base.conj(), base.conj()[1:3], base, torch._neg_view(base.conj()), torch._neg_view(torch.arange(4))]
    # torch does not save views of one storage with several dtypes.
    tree += [torch.rand(4, 2, dtype=torch.complex64).t().conj(), torch.rand(4, dtype=torch.complex64).conj().imag]
    found = check(tree, zipped=zipped).tree
    for ours, theirs in zip(found, tree):
        np.testing.assert_array_equal(read_whole(ours.data), theirs.resolve_conj().resolve_neg().numpy())


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("zipped", [True, False])
def test_sparse_tensors_are_their_parts(zipped):
    coo = torch.sparse_coo_tensor([[0, 0, 1], [1, 1, 0]], [1.0, 2, 3], (2, 3))
    dense = torch.tensor([[0.0, 1, 0, 2], [3, 0, 0, 0]])
    tree = [coo, coo.coalesce(), dense.to_sparse_csr(), dense.to_sparse_csc(), dense.to_sparse_bsr((1, 2))]
    check(tree, zipped=zipped)


@pytest.mark.parametrize("zipped", [True, False])
def test_buffers_and_parameters_with_attributes(zipped):
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.note = "x"
    plain = torch.ones(2)
    plain.note = "x"
    tree = [torch.nn.Buffer(torch.ones(2)), torch.nn.Buffer(torch.ones(2), persistent=False), parameter, plain]
    found = check(tree, zipped=zipped)
    assert found.notes == (
        "the attributes of a Parameter were left out (1 time)",
        "the attributes of a Tensor were left out (1 time)",
    )


def test_quantized_tensors_are_records_with_their_integers():
    values = torch.tensor([[-1.0, 0, 1], [2, 3, 4]])
    per_tensor = torch.quantize_per_tensor(values, 0.1, 10, torch.quint8)
    per_channel = torch.quantize_per_channel(values, torch.tensor([0.5, 0.25]), torch.tensor([0, 1]), 0, torch.qint8)
    first, second = read_torch(source(saved([per_tensor, per_channel]))).tree
    assert first._type.name == second._type.name == "torch:QuantizedTensor"
    np.testing.assert_array_equal(read_whole(first.data.data), per_tensor.int_repr().numpy())
    assert (first.dtype, first.scheme, first.scale, first.zero_point) == ("quint8", "per_tensor_affine", 0.1, 10)
    np.testing.assert_array_equal(read_whole(second.data.data), per_channel.int_repr().numpy())
    np.testing.assert_array_equal(read_whole(second.scale.data), [0.5, 0.25])
    assert (second.axis, second.shape) == (0, (2, 3))


def test_nested_meta_and_subclassed_tensors_are_records():
    nested = torch.nested.nested_tensor([torch.ones(2), torch.zeros(3)])

    class Special(torch.Tensor):
        pass

    special = torch.ones(2).as_subclass(Special)
    special.extra = 5
    globals()["Special"] = Special
    Special.__qualname__ = "Special"
    import sys
    import types

    module = types.ModuleType(__name__)
    module.Special = Special
    previous = sys.modules.get(__name__)
    sys.modules[__name__] = module
    try:
        data = saved([nested, torch.ones(2, 3, device="meta", dtype=torch.half), special])
    finally:
        if previous is None:
            del sys.modules[__name__]
        else:
            sys.modules[__name__] = previous
    found = read_torch(source(data)).tree
    assert [record._type.name for record in found] == [
        "torch:NestedTensor",
        "torch:MetaTensor",
        f"{__name__}:Special",
    ]
    np.testing.assert_array_equal(read_whole(found[0].buffer.data), [1, 1, 0, 0, 0])
    assert fields_of(found[1])["shape"] == (2, 3)
    assert fields_of(found[1])["dtype"] == "float16"
    assert found[2].extra == 5
    np.testing.assert_array_equal(read_whole(found[2].args[0].data), [1, 1])


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_module_is_records_of_its_attributes(zipped):
    model, optimizer, _ = training()
    found = read_torch(source(saved({"model": model, "optimizer": optimizer}, zipped=zipped)))
    record = found.tree["model"]
    assert record._type.name == "torch.nn.modules.container:Sequential"
    conv = record["_modules"]["0"]
    assert conv._type.name == "torch.nn.modules.conv:Conv2d"
    np.testing.assert_array_equal(read_whole(conv["_parameters"]["weight"].data), model[0].weight.detach().numpy())
    assert conv["training"] is True
    assert conv["kernel_size"] == (3, 3)
    assert found.tree["optimizer"]._type.name == "torch.optim.adamw:AdamW"
    assert any("torch.nn.modules.conv:Conv2d" in note for note in found.notes)


@pytest.mark.parametrize("zipped", [True, False])
def test_storages_in_the_tree_are_tensors_of_one_axis(zipped):
    tensor, other = torch.arange(4, dtype=torch.int16), torch.arange(3, dtype=torch.uint8)
    found = read_torch(source(saved([other.untyped_storage(), tensor.storage(), tensor], zipped=zipped)))
    assert_alike(found.tree, [other, tensor, tensor])
    assert found.notes == ("a storage became a tensor of one axis (2 times)",)


def test_a_file_of_the_other_byte_order_has_the_same_values():
    tree = [torch.rand(3), torch.arange(4), torch.rand(2, dtype=torch.complex64), torch.ones(3, dtype=torch.bfloat16)]
    tree += [torch.rand(3, 2).t(), torch.rand(2, dtype=torch.complex64).conj(), torch.ones(2, dtype=torch.bool)]
    data = saved(tree)
    swapped = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(swapped, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("byteorder"):
                content = b"big"
            elif "/data/" in name:
                dtype = tree[int(name.rpartition("/")[2])].dtype
                width = dtype.itemsize // (2 if dtype.is_complex else 1)
                content = np.frombuffer(content, f"u{width}").byteswap().tobytes()
            new.writestr(name, content)
    found = read_torch(source(swapped.getvalue()))
    assert found.metadata["byteorder"] == "big"
    assert_alike(found.tree, tree)


def test_a_compressed_archive_is_read_too():
    tree = {"w": torch.zeros(1000), "v": torch.arange(500)}
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(tree))) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert len(packed.getvalue()) < 3000
    assert_alike(read_torch(source(packed.getvalue())).tree, tree)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_torchscript_archive_gives_its_values_and_none_of_its_code(tmp_path):
    module = torch.jit.script(torch.nn.Linear(2, 3))
    file = io.BytesIO()
    torch.jit.save(module, file)
    found = read_torch(source(file.getvalue()))
    assert found.format == "torch script"
    assert found.notes[0] == "this is a TorchScript archive: its code was not read"
    np.testing.assert_array_equal(read_whole(found.tree["weight"].data), module.weight.detach().numpy())


@pytest.mark.skipif(not FILES, reason="no real weights in .cache/weights: run `make weights`")
@pytest.mark.weights
def test_there_are_real_files():
    assert len(FILES) >= 12


@pytest.mark.weights
@pytest.mark.parametrize("name", FILES or [pytest.param("", marks=pytest.mark.skip(reason="run `make weights`"))])
def test_real_files_are_what_torch_loads(name):
    data = (CACHE / name).read_bytes()
    assert is_torch(data)
    assert assert_alike(read_torch(source(data)).tree, torch.load(io.BytesIO(data), "cpu", weights_only=False)) > 4


def test_listing_a_file_reads_none_of_its_tensors():
    data = saved({f"layer{i}": torch.zeros(10_000) for i in range(100)})
    recording = RecordingSource(data)
    found = read_torch(recording)
    assert len(found.tree) == 100
    assert sum(stop - start for start, stop in recording.ranges) < len(data) / 20
    recording.ranges.clear()
    assert read_whole(found.tree["layer7"].data).shape == (10_000,)
    assert sum(stop - start for start, stop in recording.ranges) < 41_000


def test_every_member_has_a_check():
    data = saved({"a": torch.rand(3), "b": 1})
    checks = read_torch(source(data)).checks
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {check.name: check.crc32 for check in checks} == {info.filename: info.CRC for info in archive.infolist()}


def test_what_a_file_says_of_itself_is_its_metadata():
    assert read_torch(source(saved(1))).metadata.keys() >= {"version", "byteorder"}
    legacy = read_torch(source(saved(1, zipped=False))).metadata
    assert legacy["protocol_version"] == 1001
    assert legacy["sys_info"]["little_endian"] is True


@pytest.mark.parametrize("zipped", [True, False])
def test_storages_of_two_files_are_never_the_same(zipped):
    data = saved({"a": torch.arange(3), "b": torch.arange(3)}, zipped=zipped)
    first, second = (read_torch(source(data)).tree for _ in range(2))
    identities = {tree[name]["data"].identity for tree in (first, second) for name in "ab"}
    assert len(identities) == 4
    tied = torch.arange(3)
    again = read_torch(source(saved([tied, tied], zipped=zipped))).tree
    assert again[0]["data"].identity == again[1]["data"].identity


def test_other_files_are_not_torchs():
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("a.npy", b"x")
        archive.writestr("data.pkl", b"x")
    for data in (b"", b"PK", b"PK\x03\x04", zipped.getvalue(), b"\x80\x02K\x01.", b"\x80\x02]q\x00.", os.urandom(600)):
        assert not is_torch(data)


def test_a_tar_of_the_first_versions_is_refused_with_advice():
    import tarfile

    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:") as tar:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            tar.addfile(tarfile.TarInfo(name))
    data = file.getvalue()
    assert is_torch(data)
    with pytest.raises(ptc.UnsupportedTypeError, match="load it with torch and save it anew"):
        read_torch(source(data))


# Files as torch does not write them.


def zip_of(pickle, storages=None, **members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle)
        for key, content in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", content)
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


def storage_id(cls="FloatStorage", key="0", count=4, module="torch"):
    parts = (asm.text("storage"), asm.name(module, cls), asm.text(key), asm.text("cpu"), asm.integer(count))
    return asm.tuple_of(*parts) + asm.op("BINPERSID")


def ints(*values):
    return asm.tuple_of(*map(asm.integer, values))


def tensor(offset=0, size=(4,), stride=(1,), storage=None, rebuild="_rebuild_tensor_v2", more=()):
    return asm.call(
        asm.name("torch._utils", rebuild),
        storage_id() if storage is None else storage,
        asm.integer(offset),
        ints(*size),
        ints(*stride),
        asm.op("NEWFALSE"),
        asm.call(asm.name("collections", "OrderedDict")),
        *more,
    )


def refused(body, match, error=ptc.CorruptionError, storages=None, **members):
    data = zip_of(asm.pickle_of(body), {"0": bytes(16)} if storages is None else storages, **members)
    with pytest.raises(error, match=match) as caught:
        read_torch(source(data))
    return caught.value


def test_the_assembled_file_is_one_that_is_read():
    data = zip_of(asm.pickle_of(tensor()), {"0": struct.pack("<4f", 1, 2, 3, 4)})
    np.testing.assert_array_equal(read_whole(read_torch(source(data)).tree.data), [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (5,), (1,)), (1, (4,), (1,)), (0, (2, 3), (3, 1)), (0, (2,), (4,)), (4, (1,), (1,)), (1 << 61, (1,), (1,))],
)
def test_a_tensor_beyond_its_storage_is_refused(offset, size, stride):
    error = refused(tensor(offset, size, stride), "of a storage of 16 bytes")
    assert error.rule == "torch"
    assert "byte" in str(error)


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (tensor(-1), "offset of a tensor"),
        (tensor(size=(-4,)), "size and the strides"),
        (tensor(stride=(-1,)), "size and the strides"),
        (tensor(size=(2, 2)), "size and the strides"),
        (tensor(size=(1,) * 65, stride=(1,) * 65), "size and the strides"),
        (tensor(size=(1 << 63,)), "size and the strides"),
        (tensor(storage=asm.integer(1)), "over a int instead of a storage"),
        (tensor(storage=asm.name("torch", "FloatStorage")), "over a Global instead of a storage"),
        (tensor(storage=storage_id("Nonsense")), "torch:Nonsense is no class of storages"),
        (tensor(storage=storage_id(module="os")), "os:FloatStorage is no class of storages"),
        (tensor(storage=storage_id(key="7")), "no member archive/data/7"),
        (tensor(storage=storage_id(key="../0")), "no member"),
        (tensor(storage=storage_id(count=5)), "has 16 bytes instead of 20"),
        (tensor(storage=storage_id(count=-1)), "not that of a storage"),
        (tensor(storage=asm.text("x") + asm.op("BINPERSID")), "not that of a storage"),
        (tensor(storage=asm.op("PERSID", b"abc\n")), "not that of a storage"),
        (tensor(storage=storage_id("QInt8Storage", count=16)), "without its scale"),
        (tensor(more=[asm.dict_of(asm.text("conj"), asm.op("NEWTRUE"))]), "of float32 is said to be conjugated"),
        (tensor(more=[asm.dict_of(asm.text("evil"), asm.op("NEWTRUE"))]), "other entries than conj and neg"),
        (tensor(more=[asm.integer(1)] * 3), "9 arguments instead of 6 to 7"),
        (tensor(rebuild="_rebuild_tensor_v3", more=[asm.integer(1)]), "the dtype of a tensor is none of torch's"),
        (asm.call(asm.name("torch._utils", "_rebuild_tensor"), asm.integer(1)), "1 arguments instead of 4 to 4"),
        (
            asm.call(asm.name("torch._utils", "_rebuild_sparse_tensor"), asm.integer(1), asm.tuple_of()),
            "not made of the parts",
        ),
        (
            asm.call(asm.name("torch._utils", "_rebuild_qtensor"), storage_id(), *[asm.integer(0)] * 6),
            "scheme of a quantized tensor",
        ),
        (
            asm.call(asm.name("torch._utils", "_rebuild_nested_tensor"), *[asm.integer(0)] * 4),
            "not made of tensors",
        ),
        (
            asm.call(asm.name("torch._utils", "_rebuild_meta_tensor_no_storage"), *[asm.integer(0)] * 4),
            "no shape or strides",
        ),
    ],
)
def test_parts_that_make_no_tensor_are_refused(body, match):
    refused(body, match)


def test_an_archive_without_its_pickle_or_of_an_odd_byte_order_is_refused():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/other", b"")
    with pytest.raises(ptc.CorruptionError, match="no member called data.pkl"):
        read_torch(source(file.getvalue()))
    refused(asm.integer(1), "middle", byteorder=b"middle")
    refused(asm.integer(1), "has 5000 bytes", byteorder=b"x" * 5000)


LEGACY = [
    asm.pickle_of(asm.op("LONG1", asm.u1(10) + (0x1950A86A20F9469CFC6C).to_bytes(10, "little"))),
    b"M\xe9\x03.",
    b"}.",
]


FOUR = struct.pack("<q4f", 4, 1, 2, 3, 4)


def legacy(body, keys=(b"0",), storages=FOUR, first=LEGACY):
    listed = asm.list_of(*(asm.text(key.decode()) for key in keys))
    return b"".join(first) + asm.pickle_of(body) + asm.pickle_of(listed) + storages


def legacy_id(view=None, key="0", count=4, cls="FloatStorage"):
    parts = (asm.text("storage"), asm.name("torch", cls), asm.text(key), asm.text("cpu"), asm.integer(count))
    return asm.tuple_of(*parts, asm.op("NONE") if view is None else view) + asm.op("BINPERSID")


def view(start, count):
    return asm.tuple_of(asm.text("v"), asm.integer(start), asm.integer(count))


def test_views_of_storages_and_sources_of_modules_in_old_files_are_read():
    module = asm.tuple_of(asm.text("module"), asm.name("my", "Net"), asm.text("net.py"), asm.text("class Net: …"))
    body = asm.list_of(
        tensor(size=(2,), storage=legacy_id(view(1, 2))),
        tensor(storage=legacy_id()),
        asm.call(module + asm.op("BINPERSID")),
    )
    found = read_torch(source(legacy(body)))
    np.testing.assert_array_equal(read_whole(found.tree[0].data), [2, 3])
    np.testing.assert_array_equal(read_whole(found.tree[1].data), [1, 2, 3, 4])
    assert found.tree[2]._type.name == "my:Net"


class OfDevice:
    """What a tensor of a device is pickled as."""

    def __init__(self, tensor, dtype):
        self.tensor, self.dtype = tensor, dtype

    def __reduce__(self):
        return torch._utils._rebuild_device_tensor_from_cpu_tensor, (self.tensor, self.dtype, "cpu", False)


def test_a_tensor_of_a_device_is_cast_in_old_files_too():
    values = torch.linspace(-5, 5, 50).reshape(5, 10).T
    data = saved([OfDevice(values, torch.bfloat16), OfDevice(values, torch.int8), values], zipped=False)
    # torch itself casts what is in the memory of storages that it has not read yet.
    assert_alike(read_torch(source(data)).tree, [values.bfloat16(), values.to(torch.int8), values])


def test_what_comes_after_the_storages_of_an_old_file_is_noted():
    found = read_torch(source(legacy(tensor(storage=legacy_id())) + b"more"))
    assert found.notes == ("4 more bytes come after the storages and were not read",)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (legacy(tensor(storage=legacy_id()), first=[LEGACY[0], b"K\x05.", b"}."]), "protocol 5, not 1001"),
        (legacy(tensor(storage=legacy_id()), first=[b"K\x05.", *LEGACY[1:]]), "magic number"),
        (legacy(tensor(storage=legacy_id()), keys=()), "storage '0' of the tree is not in the file"),
        (legacy(tensor(storage=legacy_id()), keys=(b"0", b"0")), "or twice in the file"),
        (legacy(tensor(storage=legacy_id()), keys=(b"1",)), "not in the tree"),
        (legacy(tensor(storage=legacy_id()), storages=b"\x04"), "ends before its storage"),
        (legacy(tensor(storage=legacy_id()), storages=struct.pack("<q2f", 4, 1, 2)), "ends within its storage"),
        (
            legacy(tensor(storage=legacy_id()), storages=struct.pack("<q4f", 5, 1, 2, 3, 4)),
            "5 items, and the tree says 4",
        ),
        (legacy(tensor(storage=legacy_id()), storages=struct.pack("<q4f", -1, 1, 2, 3, 4)), "the tree says 4"),
        (legacy(tensor(storage=legacy_id(view(3, 2)))), "view of the storage 0 is not within it"),
        (legacy(tensor(storage=legacy_id(asm.integer(1)))), "view of the storage 0 is not within it"),
        (legacy(asm.list_of(tensor(storage=legacy_id()), legacy_id(count=5))), "two dtypes or lengths"),
        (legacy(tensor(storage=legacy_id(count=1 << 61)), storages=struct.pack("<q", 1 << 61)), "ends within"),
        (b"".join(LEGACY) + asm.pickle_of(asm.integer(1)) + asm.pickle_of(asm.integer(1)), "not a list of texts"),
    ],
)
def test_damaged_old_files_are_refused(data, match):
    with pytest.raises(ptc.CorruptionError, match=match):
        read_torch(source(data))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_off_anywhere_is_refused(zipped):
    data = saved({"a": torch.rand(30), "b": [1, 2]}, zipped=zipped)
    for length in range(0, len(data) - 1, 7):
        with pytest.raises(ptc.PytreeckptError):
            read_torch(source(data[:length]))


def test_devices_are_read_as_torch_writes_them_and_by_their_text():
    def device(*args):
        return read_torch(source(zip_of(asm.pickle_of(asm.call(asm.name("torch", "device"), *args))))).tree

    assert fields_of(device(asm.text("cuda"), asm.integer(1))) == {"type": "cuda", "index": 1}
    assert fields_of(device(asm.text("cuda:3"))) == {"type": "cuda", "index": 3}
    assert fields_of(device(asm.text("cpu"))) == {"type": "cpu", "index": None}
    assert device(asm.text("cuda:x"))._type.name == "torch:device"


def test_tensors_of_devices_that_are_pickled_as_arrays_are_tensors():
    array = asm.call(
        asm.name("numpy._core.numeric", "_frombuffer"),
        asm.raw(struct.pack("<2f", 1, 2)),
        asm.call(asm.name("numpy", "dtype"), asm.text("f4"), asm.op("NEWFALSE"), asm.op("NEWTRUE")),
        ints(2),
        asm.text("C"),
    )
    for dtype in ("float32", "bfloat16"):
        body = asm.call(
            asm.name("torch._utils", "_rebuild_device_tensor_from_numpy"),
            *(array, asm.name("torch", dtype), asm.text("xla:0"), asm.op("NEWFALSE")),
        )
        found = read_torch(source(zip_of(asm.pickle_of(body)))).tree
        assert_alike(found, torch.tensor([1, 2], dtype=getattr(torch, dtype)))


def test_tensors_as_torch_had_them_before_0_4_are_read():
    old = asm.call(asm.name("torch", "FloatTensor")) + asm.tuple_of(storage_id(), asm.integer(0), ints(4), ints(1))
    old += asm.op("BUILD")
    state = asm.tuple_of(asm.op("NEWTRUE"), asm.op("NEWFALSE"), asm.call(asm.name("collections", "OrderedDict")))
    parameter = asm.call(asm.name("torch.nn.parameter", "Parameter"), tensor()) + state + asm.op("BUILD")
    variable = asm.call(asm.name("torch.autograd.variable", "Variable"), tensor()) + state + asm.op("BUILD")
    found = read_torch(source(zip_of(asm.pickle_of(asm.list_of(old, parameter, variable)), {"0": bytes(16)}))).tree
    assert [record._type.name for record in found] == ["torch.Tensor", "torch.nn.Parameter", "torch.Tensor"]
    assert [record.requires_grad for record in found] == [False, True, True]


def test_a_source_in_memory_is_not_copied():
    data = saved({"a": torch.rand(1000)})
    found = read_torch(BytesSource(memoryview(data))).tree["a"].data
    assert isinstance(found, ForeignArray)
    assert found.pieces[0].source.nbytes == 4000


@pytest.mark.parametrize("protocol", range(6))
def test_tensors_in_a_plain_pickle_are_those_that_pickle_loads(protocol):
    shared = torch.arange(200_000.0)
    tree = {
        "a": shared,
        "b": shared[2:5],
        "p": torch.nn.Parameter(torch.rand(2, 3).t()),
        "again": [shared, torch.ones(2, dtype=torch.bfloat16), torch.zeros(0)],
        "n": np.arange(3),
    }
    data = pickle.dumps(tree, protocol)
    recording = RecordingSource(data)
    found = read_pickle(recording)
    assert found.notes == ()
    if protocol >= 3:
        assert sum(stop - start for start, stop in recording.ranges) < len(data)
    assert_alike(found.tree, pickle.loads(data))


def test_a_pickled_storage_that_is_none_is_a_record():
    for content in (asm.raw(b""), asm.integer(1), asm.raw(asm.pickle_of(asm.integer(5)))):
        body = asm.call(asm.name("torch.storage", "_load_from_bytes"), content)
        try:
            found = load_pickle(asm.pickle_of(body))
        except ptc.CorruptionError as error:
            assert "byte" in str(error)
        else:
            assert found._type.name == "torch.storage:_load_from_bytes"


def test_a_storage_pickled_within_a_pickled_storage_is_not_followed():
    inner = pickle.dumps(torch.ones(2))
    outer = b"".join(LEGACY) + inner + asm.pickle_of(asm.list_of())
    body = asm.call(asm.name("torch.storage", "_load_from_bytes"), asm.raw(outer))
    with pytest.raises(ptc.CorruptionError, match="over a Record instead of a storage"):
        load_pickle(asm.pickle_of(body))


HOOKS = asm.call(asm.name("collections", "OrderedDict"))
INDICES = tensor(size=(1, 2), stride=(2, 1), storage=storage_id("LongStorage", "1", 2))
COO = asm.call(asm.name("torch.serialization", "_get_layout"), asm.text("torch.sparse_coo"))
STORAGES = {"0": bytes(16), "1": bytes(16)}


def read_body(body):
    return read_torch(source(zip_of(asm.pickle_of(body), STORAGES))).tree


def test_a_sparse_tensor_without_a_word_on_being_coalesced_is_not():
    sparse = asm.call(
        asm.name("torch._utils", "_rebuild_sparse_tensor"), COO, asm.tuple_of(INDICES, tensor(size=(2,)), ints(4))
    )
    found = read_body(sparse)
    assert (found._type.name, found.coalesced, found.shape) == ("torch.SparseTensor", False, (4,))
    # pytreeckpt has no Parameter of one.
    parameter = asm.call(asm.name("torch._utils", "_rebuild_parameter"), sparse, asm.op("NEWTRUE"), HOOKS)
    found = read_body(parameter)
    assert found._type.name == "torch._utils:_rebuild_parameter"
    assert found.args[0]._type.name == "torch.SparseTensor"


def test_several_numbers_per_byte_stay_bytes():
    storage = storage_id("QUInt4x2Storage", count=16)
    scheme = asm.tuple_of(asm.name("torch", "per_tensor_affine"), asm.integer(1), asm.integer(0))
    body = asm.call(
        asm.name("torch._utils", "_rebuild_qtensor"),
        storage,
        asm.integer(0),
        ints(32),
        ints(1),
        scheme,
        asm.op("NEWFALSE"),
        HOOKS,
    )
    found = read_body(body)
    assert (found.dtype, found.shape, found.data.data.shape) == ("quint4x2", (32,), (16,))


def test_variables_with_all_in_their_state_are_read():
    parts = (tensor(), asm.op("NONE"), asm.op("NONE"), asm.op("NEWTRUE"), asm.op("NEWFALSE"))
    for name, wanted in (("Parameter", "torch.nn.Parameter"), ("Variable", "torch.Tensor")):
        module = {"Parameter": "torch.nn.parameter", "Variable": "torch.autograd.variable"}[name]
        found = read_body(asm.call(asm.name(module, name)) + asm.tuple_of(*parts) + asm.op("BUILD"))
        assert (found._type.name, found.requires_grad) == (wanted, True)
    assert read_body(asm.call(asm.name("torch.nn.parameter", "Parameter"), tensor())).requires_grad is True


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (
            tensor(more=[asm.dict_of(asm.text("neg"), asm.op("NEWTRUE"))], storage=storage_id("BoolStorage", count=16)),
            "negated",
        ),
        (
            asm.call(asm.name("torch._utils", "_rebuild_parameter"), tensor(), asm.integer(1), HOOKS),
            "not True or False",
        ),
        (
            asm.call(
                asm.name("torch._utils", "_rebuild_tensor_v2"),
                storage_id(),
                asm.integer(0),
                ints(4),
                ints(1),
                asm.integer(1),
                HOOKS,
            ),
            "not True or False",
        ),
        (
            asm.call(
                asm.name("torch._utils", "_rebuild_qtensor"),
                *(
                    storage_id(),
                    asm.integer(0),
                    ints(4),
                    ints(1),
                    asm.tuple_of(*[asm.integer(0)] * 3),
                    asm.op("NEWFALSE"),
                    HOOKS,
                ),
            ),
            "over a storage of numbers that are not quantized",
        ),
        (
            asm.call(
                asm.name("torch._utils", "_rebuild_sparse_tensor"), COO, asm.tuple_of(asm.integer(1), tensor(), ints(4))
            ),
            "no tensors, or its shape is none",
        ),
    ],
)
def test_other_parts_that_make_no_tensor_are_refused(body, match):
    refused(body, match)


def test_buffers_of_what_is_no_tensor_are_records():
    state = asm.dict_of(asm.text("_is_buffer"), asm.op("NEWTRUE"), asm.text("note"), asm.text("x"))
    size = asm.tuple_of(ints(2))
    body = asm.call(
        asm.name("torch._tensor", "_rebuild_from_type_v2"),
        asm.name("torch", "Size"),
        asm.name("torch", "Tensor"),
        size,
        state,
    )
    found = read_body(body)
    assert found._type.name == "torch._tensor:_rebuild_from_type_v2"
    subclass = asm.call(
        *(asm.name("torch._tensor", "_rebuild_from_type_v2"), asm.name("torch", "Size"), asm.name("my", "Sub"), size),
        asm.dict_of(asm.text("args"), asm.integer(1)),
    )
    assert fields_of(read_body(subclass))["state"] == {"args": 1}
