"""The strategies draw what they promise: all of it, and nothing that cannot be stored."""

import argparse
import math
import pathlib
import types
from collections import Counter, OrderedDict, defaultdict, deque

import ml_dtypes
import numpy as np
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pytreeckpt import decode, encode, testing
from pytreeckpt.dtypes import describe, parse
from pytreeckpt.testing.strategies import NUMERIC, Colour, Level, Point, Settings

SEARCH = settings(max_examples=3_000, database=None, derandomize=True, phases=[Phase.generate])


def parts(tree):
    """All values in a tree, containers among them."""
    stack = [tree]
    while stack:
        value = stack.pop()
        yield value
        if isinstance(value, dict):
            stack += [*value.values(), *value]
        elif isinstance(value, list | tuple | set | frozenset | deque):
            stack += value
        elif isinstance(value, argparse.Namespace | types.SimpleNamespace | Settings):
            stack += vars(value).values()
        elif isinstance(value, np.ndarray) and value.dtype.hasobject:
            stack += value.reshape(-1).tolist()


@given(testing.trees())
def test_a_drawn_tree_can_be_stored_and_comes_back(tree):
    assert testing.identical(tree, decode(encode(tree), types=testing.TYPES)) == []


@given(testing.dtypes())
def test_a_drawn_dtype_can_be_stored(dtype):
    assert parse(describe(dtype)) == dtype


@given(testing.arrays(st.just(np.dtype(np.int8)), max_dims=2, max_side=3))
def test_arrays_are_of_the_wanted_dtype_and_size(array):
    assert array.dtype == np.int8
    # One more axis may be broadcast.
    assert array.ndim <= 3
    assert array.size <= 18


@given(testing.arrays(np.dtype(ml_dtypes.bfloat16)))
def test_a_dtype_may_be_given_as_it_is(array):
    assert array.dtype == ml_dtypes.bfloat16


@given(st.dictionaries(testing.keys(), st.none(), max_size=3))
def test_drawn_keys_can_be_keys(tree):
    decode(encode(list(tree.items())))


class Mine:
    pass


def kinds_of(values, wanted, search=SEARCH):
    """Which of the wanted kinds (name: predicate) are met in the drawn values."""
    met: set[str] = set()

    @search
    @given(values)
    def draw(value):
        met.update(name for name, condition in wanted.items() if name not in met and condition(value))

    draw()
    return met


def test_further_leaves_are_drawn_and_others_are_not():
    wanted = {
        "mine": lambda tree: any(type(value) is Mine for value in parts(tree)),
        "others": lambda tree: any(type(value) is object for value in parts(tree)),
    }
    assert kinds_of(testing.trees(st.builds(Mine)), wanted, settings(SEARCH, max_examples=300)) == {"mine"}


def test_every_numeric_dtype_is_drawn():
    named = {str(dtype) for dtype in NUMERIC}
    assert {"bool", "float32", "complex128", "bfloat16", "float8_e4m3fn", "int4", "uint2", "float4_e2m1fn"} <= named
    assert len(NUMERIC) >= 30


def is_float(array):
    return array.dtype in {np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)} and array.size > 0


def low_bytes(array):
    """The lowest byte of each little-endian item."""
    return array.copy("C").reshape(-1).view(np.uint8)[:: array.itemsize].reshape(array.shape)


def is_dtype(dtype):
    return lambda array: array.dtype == dtype


ARRAYS = {
    "0-d": lambda array: array.ndim == 0,
    "empty": lambda array: array.size == 0,
    "Fortran order": lambda array: array.flags.f_contiguous and not array.flags.c_contiguous,
    "gaps": lambda array: not array.flags.forc and array.size > 1 and min(array.strides) > array.itemsize,
    "negative strides": lambda array: any(stride < 0 for stride in array.strides),
    "unaligned": lambda array: not array.flags.aligned,
    "broadcast": lambda array: array.size > 1 and 0 in array.strides,
    "read-only": lambda array: not array.flags.writeable,
    "big-endian": lambda array: array.dtype.byteorder == ">",
    "structs": lambda array: array.dtype.names is not None and array.size > 0,
    "structs with holes": lambda array: (
        array.dtype.isalignedstruct
        and array.dtype.itemsize > sum(array.dtype[name].itemsize for name in array.dtype.names)
    ),
    "nested structs": lambda array: any(array.dtype[name].names for name in array.dtype.names or ()),
    "sub-arrays": lambda array: any(array.dtype[name].subdtype for name in array.dtype.names or ()),
    "times": lambda array: array.dtype.kind == "M" and array.size > 0,
    "durations": lambda array: array.dtype.kind == "m",
    "texts": lambda array: array.dtype.kind == "U" and array.size > 0 and array.itemsize > 0,
    "byte strings": lambda array: array.dtype.kind == "S",
    "void": lambda array: array.dtype.type is np.void and array.dtype.names is None,
    "a NaN with a payload": lambda array: is_float(array) and bool((np.isnan(array) & (low_bytes(array) != 0)).any()),
    "minus zero": lambda array: is_float(array) and bool((np.signbit(array) & (array == 0)).any()),
    **{str(dtype): is_dtype(dtype) for dtype in NUMERIC},
}


def test_arrays_of_every_kind_are_drawn():
    assert kinds_of(testing.arrays(), ARRAYS) == set(ARRAYS)


def is_a(cls):
    return lambda value: type(value) is cls


VALUES = {
    **{
        cls.__name__: is_a(cls)
        for cls in (
            *(type(None), bool, int, float, complex, str, bytes, type(...), list, tuple, dict, set, frozenset),
            *(OrderedDict, defaultdict, Counter, deque, bytearray, range, slice, Point, Settings, Colour, Level),
            *(argparse.Namespace, types.SimpleNamespace, pathlib.PurePosixPath, pathlib.PureWindowsPath),
            *(type(pathlib.Path()), np.ndarray, np.str_, np.bytes_, np.void),
        )
    },
    "a dtype": lambda value: isinstance(value, np.dtype),
    "a numpy number": lambda value: isinstance(value, np.number),
    "a numpy time": lambda value: isinstance(value, np.datetime64 | np.timedelta64),
    "a large int": lambda value: type(value) is int and abs(value) >= 2**63,
    "a NaN": lambda value: type(value) is float and math.isnan(value),
    "minus zero": lambda value: type(value) is float and value == 0 and math.copysign(1, value) < 0,
    "a bounded deque": lambda value: type(value) is deque and value.maxlen is not None,
    "a long list of floats": lambda value: type(value) is list and len(value) > 7 and type(value[0]) is float,
    "keys of several types": lambda value: type(value) is dict and len(set(map(type, value))) > 1,
    "a tuple as a key": lambda value: type(value) is dict and any(type(key) is tuple and key for key in value),
    "objects in an array": lambda value: type(value) is np.ndarray and value.dtype == object and value.size > 0,
    "StringDType": lambda value: type(value) is np.ndarray and value.dtype.kind == "T" and value.size > 0,
    "a nested frozenset": lambda value: type(value) is set and any(type(element) is frozenset for element in value),
}


def shares_an_array(tree):
    """Whether one array stands in two places."""
    arrays = [id(value) for value in parts(tree) if type(value) is np.ndarray and value.size]
    return len(set(arrays)) < len(arrays)


def has(condition):
    return lambda tree: any(map(condition, parts(tree)))


def test_trees_of_every_kind_are_drawn():
    wanted = {name: has(condition) for name, condition in VALUES.items()} | {"an array in two places": shares_an_array}
    assert kinds_of(testing.trees(), wanted) == set(wanted)
