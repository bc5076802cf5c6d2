"""`.npz` as we write them: numpy reads them, without pickles, bit by bit; so do we."""

import io
import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt import testing
from pytreeckpt.interop.foreign import read_whole
from pytreeckpt.interop.npz import read_npy, read_npz
from pytreeckpt.interop.outgoing import OutgoingArray
from pytreeckpt.interop.registered import registered
from pytreeckpt.interop.write_npz import npy_header, write_npz
from tests.exact import assert_same, item_bytes
from tests.interop.sources import source
from tests.interop.test_npz import is_numpys
from tests.strategies import DTYPES, LAYOUTS, fill, laid_out


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("npz") / "x.npz"


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5),
        testing.arrays(DTYPES.filter(is_numpys)),
        max_size=4,
    ),
    st.booleans(),
)
def test_numpy_reads_the_same_bits(path, arrays, compressed):
    write_npz(arrays, path, compressed=compressed, names=lambda at: at[0].key, durability="atomic")
    with np.load(path, allow_pickle=False) as found:
        assert list(found) == list(arrays)
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            assert found[name].shape == array.shape
            assert item_bytes(found[name]) == item_bytes(array)
    for name, array in read_npz(source(path.read_bytes())).tree.items():
        assert read_whole(array).shape == arrays[name].shape


@given(DTYPES.filter(is_numpys), st.lists(st.integers(0, 3), max_size=3).map(tuple), st.sampled_from(LAYOUTS))
def test_headers_are_those_of_numpy(dtype, shape, layout):
    array = laid_out(fill(dtype, shape, 1), layout, 1)
    expected = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.lib.format.write_array(expected, array)
    ours = npy_header(OutgoingArray(array))
    # An array of one axis, or with extents of 1, is in both orders, and either may be said.
    if array.flags.c_contiguous or not array.flags.f_contiguous:
        assert expected.getvalue().startswith(ours) or b"'fortran_order': True" in ours
    assert len(ours) % 64 == 0


def test_dtypes_of_very_many_fields_have_longer_headers_or_are_refused():
    many = np.dtype([(f"field {n:05d}", "f4") for n in range(3000)])
    header = npy_header(OutgoingArray(np.zeros(1, many)))
    assert header.startswith(b"\x93NUMPY\x02\x00")
    found = read_whole(read_npy(source(header + bytes(many.itemsize))).tree)
    assert found.dtype == many
    with pytest.raises(ptc.LimitError, match="fields"):
        npy_header(OutgoingArray(np.zeros(1, np.dtype([(f"field {n:05d}" * 9, "f4") for n in range(10_000)]))))


def test_fortran_order_and_views_are_kept_as_values(tmp_path):
    array = np.arange(24.0).reshape(2, 3, 4)
    tree = {"f": np.asfortranarray(array), "t": array.transpose(1, 0, 2), "s": array[:, ::-1, ::2], "r": array.T}
    write_npz(tree, tmp_path / "x")
    with np.load(tmp_path / "x") as found:
        for name, expected in tree.items():
            assert np.array_equal(found[name], expected)
        assert found["f"].flags.f_contiguous
    for name, found in read_npz(source((tmp_path / "x").read_bytes())).tree.items():
        assert_same(np.ascontiguousarray(tree[name]), read_whole(found))


def test_tensors_and_references_become_arrays(tmp_path):
    tree = {"a": {"w": torch.ones(2, 3), "s": np.int8(3)}, "b": [np.arange(3, dtype=">f4")]}
    write_npz(tree, tmp_path / "x")
    with np.load(tmp_path / "x") as found:
        assert {name: (array.dtype.str, array.tolist()) for name, array in found.items()} == {
            "a.w": ("<f4", [[1, 1, 1]] * 2),
            "a.s": ("|i1", 3),
            "b.0": (">f4", [0, 1, 2]),
        }
    ptc.save(tree, tmp_path / "x.ptck")
    with ptc.open(tmp_path / "x.ptck") as checkpoint:
        write_npz(checkpoint.tree, tmp_path / "y")
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


@pytest.mark.parametrize(
    "dtype",
    [
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e5m2,
        ml_dtypes.int4,
        np.dtype({"names": ["a", "b"], "formats": ["f4", "f4"], "offsets": [0, 2]}),
    ],
)
def test_dtypes_that_numpy_loses_are_refused(tmp_path, dtype):
    with pytest.raises(ptc.UnsupportedTypeError, match="a.b: "):
        write_npz({"a": {"b": np.zeros(2, dtype)}}, tmp_path / "x")
    with pytest.raises(ptc.UnsupportedTypeError, match="float4"):
        write_npz({"a": torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_array_is_listed_or_left_out(tmp_path):
    with pytest.raises(ptc.UnsupportedTypeError, match="b: int"):
        write_npz({"a": np.zeros(1), "b": 3}, tmp_path / "x")
    write_npz({"a": np.zeros(1), "b": 3}, tmp_path / "x", drop_other=True)
    with np.load(tmp_path / "x") as found:
        assert list(found) == ["a"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "a.npy"], "'a' as 'a.npy', which is a name too"),
        (["x.npy.npy", "x.npy"], "'x.npy' as 'x.npy.npy'"),
        (["", ".npy"], "'' as '.npy'"),
        (["a", "a\0b"], "cannot be the name"),
        (["a", "\udc80"], "cannot be the name"),
        (["a" * 70_000], "too long"),
    ],
)
def test_names_that_numpy_would_not_find_again_are_refused_before_anything_is_written(tmp_path, names, message):
    tree = dict(enumerate(np.full(2, n) for n in range(len(names))))
    with pytest.raises(ptc.UnsupportedTypeError, match=message):
        write_npz(tree, tmp_path / "x", names=lambda at: names[at[0].key])
    assert list(tmp_path.iterdir()) == []


def test_names_that_end_as_those_of_members_do_are_found_where_there_is_no_other(tmp_path):
    write_npz({"a.npy": np.ones(2), "b": np.zeros(2)}, tmp_path / "x")
    with np.load(tmp_path / "x") as found:
        assert found["a.npy"].tolist() == [1, 1]
    assert ptc.restore(tmp_path / "x")["a.npy"].tolist() == [1, 1]


def test_records_that_say_they_are_containers_and_are_none_are_no_arrays(tmp_path):
    for name, *values in [("python.OrderedDict", 5), ("python.deque", "text", None), ("torch.Tensor", 5, False)]:
        with pytest.raises(ptc.UnsupportedTypeError, match=f"a/b: {name}"):
            write_npz({"a": {"b": registered(name, *values)}}, tmp_path / "x")
    nested = np.zeros(1)
    for _ in range(3000):
        nested = registered("python.OrderedDict", nested)
    with pytest.raises(ptc.UnsupportedTypeError, match="the root: python.OrderedDict"):
        write_npz(nested, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_arrays_is_a_zip(tmp_path):
    write_npz({}, tmp_path / "x")
    with np.load(tmp_path / "x") as found:
        assert list(found) == []


def test_python_finds_no_fault_with_the_archive_and_the_bytes_are_the_same_each_time(tmp_path):
    tree = {"a": np.arange(100_000), "é": np.zeros(3)}
    for compressed in (False, True):
        for name in ("x", "y"):
            write_npz(tree, tmp_path / name, compressed=compressed)
        assert zipfile.ZipFile(tmp_path / "x").testzip() is None
        assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    assert (tmp_path / "x").stat().st_size < 500_000
