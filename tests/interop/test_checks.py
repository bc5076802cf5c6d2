"""What formats with checksums promise: whatever byte is damaged, what was saved comes back, or an error that says so."""

import io
import json
import random
import zipfile

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint

import pytreeckpt as ptc
from pytreeckpt.interop.formats import read_file
from pytreeckpt.interop.torch_distributed import read_distributed
from pytreeckpt.interop.torch_shards import read_torch_shards
from tests.exact import assert_same
from tests.interop import pickle_assembler as asm
from tests.interop.sources import MemoryFolder, source
from tests.interop.test_foreign_checkpoint import checkpoint_of


def torch_zip(tree):
    file = io.BytesIO()
    torch.save(tree, file)
    return file.getvalue()


def rewritten(data, change=lambda name, content: content, *, method=zipfile.ZIP_STORED, names=lambda name: name):
    """The archive anew, with the content that `change` gives for each member, and other names."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as given, zipfile.ZipFile(file, "w", method) as archive:
        for name in given.namelist():
            content = change(name, given.read(name))
            if content is not None:
                archive.writestr(names(name), content)
    return file.getvalue()


def big_endian(data, itemsize=4):
    """As torch writes it where numbers are big-endian; all storages with items of this size."""

    def change(name, content):
        if name.endswith("byteorder"):
            return b"big"
        return np.frombuffer(content, f"<u{itemsize}").byteswap().tobytes() if "/data/" in name else content

    return rewritten(data, change)


def state():
    weights = torch.linspace(-1, 1, 24).reshape(4, 6)
    return {
        "lr": 0.1,
        "step": 1000,
        "name": "adam",
        "w": weights,
        "tied": weights,
        "t": weights.T,
        "e": torch.zeros(0, 3),
    }


def npz(save=np.savez):
    file = io.BytesIO()
    objects = np.array([{"lr": 0.1}, "adam", None], dtype=object)
    arrays = {"w": np.arange(12.0).reshape(3, 4), "f": np.asfortranarray(np.arange(6).reshape(2, 3))}
    save(file, **arrays, objects=objects, empty=np.zeros((0, 3), "<f8"), n=np.array(7), v=np.zeros(3, "V0"))
    return file.getvalue()


def turned():
    numbers = torch.tensor([1 + 2j, 3 - 4j, 5j], dtype=torch.complex64)
    return {
        "conj": numbers.conj(),
        "neg": numbers.clone().conj().imag,
        "strided": numbers.repeat(4).reshape(4, 3).conj().T,
    }


TURNED = "torch, conjugated and negated"
FILES = {
    "torch": lambda: torch_zip(state()),
    "torch, big-endian": lambda: big_endian(torch_zip(state())),
    TURNED: lambda: torch_zip(turned()),
    "torch, compressed": lambda: rewritten(torch_zip(state()), method=zipfile.ZIP_DEFLATED),
    "torch, with arrays of numpy": lambda: torch_zip({"a": np.arange(300.0), "lr": 0.1}),
    "npz": npz,
    "npz, compressed": lambda: npz(np.savez_compressed),
}


def shards(*trees):
    """A folder of shards, and its index; each tree in one."""
    names = {f"pytorch_model-{number}.bin": tree for number, tree in enumerate(trees)}
    weight_map = {name: shard for shard, tree in names.items() for name in tree}
    index = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    files = {shard: torch_zip(tree) for shard, tree in names.items()}
    return {"pytorch_model.bin.index.json": index, **files}


def distributed(tmp_path):
    tree = {"w": torch.linspace(0, 1, 10), "c": torch.tensor([1 + 2j]).conj(), "step": 7, "o": {"lr": (0.1, "adam")}}
    torch.distributed.checkpoint.save(tree, checkpoint_id=tmp_path / "x", no_dist=True)
    return {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()}


def restored(tree, **options):
    with checkpoint_of(tree) as checkpoint:
        return checkpoint.restore(to="numpy", **options)


def check_flips(data, read, *, all_bits=False, step=1):
    """With a bit turned in any byte, or every few, there is an error, or what was there before."""
    whole = restored(read(data))
    rng = random.Random(0)
    n_refused = 0
    for place in range(0, len(data), step):
        for bit in range(8) if all_bits else [rng.randrange(8)]:
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            try:
                found = restored(read(bytes(damaged)))
            except ptc.PytreeckptError as error:
                assert str(error)
                n_refused += 1
            else:
                assert_same(found, whole)
    assert n_refused > 0.2 * len(data) / step


@pytest.mark.parametrize("name", FILES)
def test_a_turned_bit_of_any_byte_of_a_file_changes_nothing_or_is_an_error(name):
    check_flips(FILES[name](), lambda data: read_file(source(data)))


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_any_turned_bit_of_a_file_changes_nothing_or_is_an_error(name):
    check_flips(FILES[name](), lambda data: read_file(source(data)), all_bits=True)


def test_a_turned_bit_of_a_distributed_item_changes_nothing_or_is_an_error(tmp_path):
    files = distributed(tmp_path)
    [name] = [name for name in files if name.endswith(".distcp")]
    check_flips(files[name], lambda data: read_distributed(MemoryFolder({**files, name: data})), step=7)


def test_a_turned_bit_of_a_shard_changes_nothing_or_is_an_error():
    files = shards({"a": torch.ones(3)}, {"b": torch.zeros(4), "c": torch.arange(5)})
    name = "pytorch_model-1.bin"
    check_flips(files[name], lambda data: read_torch_shards(MemoryFolder({**files, name: data})))


def flipped(data, needle):
    """With a bit turned in the one place where this stands."""
    assert data.count(needle) == 1
    damaged = bytearray(data)
    damaged[data.index(needle)] ^= 1
    return bytes(damaged)


def test_what_is_read_when_a_file_is_opened_is_checked_then():
    data = torch_zip({"learning rate": 0.1})
    with pytest.raises(ptc.CorruptionError, match=r"archive/data.pkl is damaged: its CRC-32 does not match") as caught:
        read_file(source(flipped(data, b"learning rate")))
    assert caught.value.rule == "CRC-32"
    for name in ("byteorder", "version"):
        changed = bytearray(data)
        changed[data.index({"byteorder": b"little", "version": b"3\n"}[name])] ^= 1
        with pytest.raises(ptc.CorruptionError, match=rf"archive/{name} is damaged: its CRC-32 does not match"):
            read_file(source(bytes(changed)))
    with pytest.raises(ptc.CorruptionError, match=r"objects\.npy is damaged: its CRC-32 does not match"):
        read_file(source(flipped(npz(), b"adam")))
    header = npz().index(b"'<f8', 'fortran_order': False, 'shape': (0, 3)")
    wrong = bytearray(npz())
    wrong[header + 1 : header + 4] = b"<f4"
    with pytest.raises(ptc.CorruptionError, match=r"empty\.npy is damaged: its CRC-32 does not match"):
        read_file(source(bytes(wrong)))


def test_an_item_of_a_distributed_folder_is_checked_when_it_is_opened(tmp_path):
    files = distributed(tmp_path)
    [name] = [name for name in files if name.endswith(".distcp")]
    with pytest.raises(ptc.CorruptionError, match=r"at byte \d+ of .*data.pkl is damaged: its CRC-32 does not match"):
        read_distributed(MemoryFolder({**files, name: flipped(files[name], b"adam")}))


def with_damaged_storages(data):
    """With a bit turned in each storage, and how many there are."""
    damaged = bytearray(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        storages = [info for info in archive.infolist() if "/data/" in info.filename and info.file_size]
        for info in storages:
            damaged[data.index(archive.read(info), info.header_offset) + 5] ^= 1
    return bytes(damaged), len(storages)


@pytest.mark.parametrize(("name", "paths"), [("torch, big-endian", "w tied t"), (TURNED, "conj neg strided")])
def test_the_checksums_of_items_that_are_changed_are_compared(name, paths):
    damaged, n_damaged = with_damaged_storages(FILES[name]())
    with checkpoint_of(read_file(source(damaged))) as checkpoint:
        for path in paths.split():
            with pytest.raises(ptc.CorruptionError, match=r"data/\d is damaged: its CRC-32 does not match"):
                checkpoint.restore(select=path, to="numpy")
            assert checkpoint.restore(select=path, to="numpy", verify=False)[path].size
        assert len(list(checkpoint.damage())) == n_damaged > 0


def without_checksums(tree):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        return torch_zip(tree)
    finally:
        torch.serialization.set_crc32_options(before)


def test_a_shard_without_checksums_beside_others_is_read_and_the_others_are_checked():
    files = shards({"a": torch.ones(3)}, {"b": torch.full((4,), 5.0)})
    files["pytorch_model-1.bin"] = without_checksums({"b": torch.full((4,), 5.0)})
    found = read_torch_shards(MemoryFolder(files))
    assert found.notes == ("pytorch_model-1.bin: all of its checksums are 0, so it was saved without any",)
    assert_same(restored(found), {"a": np.ones(3, "f4"), "b": np.full(4, 5, "f4")})
    assert {check.name.partition(",")[0] for check in found.checks} == {"pytorch_model-0.bin"}
    files["pytorch_model-0.bin"] = flipped(files["pytorch_model-0.bin"], np.ones(3, "f4").tobytes())
    with pytest.raises(ptc.CorruptionError, match="data/0 is damaged"):
        restored(read_torch_shards(MemoryFolder(files)))


def test_views_of_one_storage_stay_shared_in_every_shard():
    first, second = torch.ones(3), torch.zeros(3)
    trees = [{"a": first, "b": first}, {"c": second, "d": second}]
    found = restored(read_torch_shards(MemoryFolder(shards(*trees))))
    assert found["a"] is found["b"]
    assert found["c"] is found["d"]
    assert found["a"].tolist() == [1, 1, 1]
    assert found["c"].tolist() == [0, 0, 0]


def test_members_without_bytes_are_no_damage():
    with checkpoint_of(read_file(source(npz()))) as checkpoint:
        assert list(checkpoint.damage()) == []
        assert checkpoint.restore()["v"].dtype == np.dtype("V0")
        assert checkpoint.restore()["empty"].shape == (0, 3)


# Archives that could mean two things.


def test_an_archive_with_two_roots_or_members_outside_of_one_is_refused():
    data = torch_zip({"a": 1})

    def twice(extra):
        file = io.BytesIO(data)
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr(extra, asm.pickle_of(b"N"))
        return source(file.getvalue())

    for extra in ("other/data.pkl", "data.pkl", "x/y", "archive2/version"):
        with pytest.raises(ptc.CorruptionError, match="archive/"):
            read_file(twice(extra))


def test_a_member_whose_own_header_has_another_name_is_refused():
    data = torch_zip({"a": torch.ones(3)})
    assert data.count(b"archive/byteorder") == data.count(b"archive/data/0") == 2
    for name, other in [(b"archive/byteorder", b"archive/bytearder"), (b"archive/data/0", b"archive/data/1")]:
        for renamed in (data.replace(name, other, 1), other.join(data.rsplit(name, 1))):
            with pytest.raises(ptc.CorruptionError):
                restored(read_file(source(renamed)))


def test_a_storage_is_of_one_dtype():
    def tensor(cls):
        parts = (asm.text("storage"), asm.name("torch", cls), asm.text("0"), asm.text("cpu"), asm.integer(4))
        storage = asm.tuple_of(*parts) + asm.op("BINPERSID")
        hooks = asm.call(asm.name("collections", "OrderedDict"))
        size, stride = asm.tuple_of(asm.integer(4)), asm.tuple_of(asm.integer(1))
        of = (storage, asm.integer(0), size, stride, asm.op("NEWFALSE"), hooks)
        return asm.call(asm.name("torch._utils", "_rebuild_tensor_v2"), *of)

    def archive(*classes):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as made:
            made.writestr("archive/data.pkl", asm.pickle_of(asm.list_of(*map(tensor, classes))))
            made.writestr("archive/data/0", bytes(16))
        return source(file.getvalue())

    assert len(read_file(archive("FloatStorage", "FloatStorage")).tree) == 2
    with pytest.raises(ptc.CorruptionError, match="storage 0 has two dtypes"):
        read_file(archive("FloatStorage", "IntStorage"))
