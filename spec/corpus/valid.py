"""Files that keep all rules, and the trees that they hold."""

import math
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, permutations, product
from pathlib import PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import ml_dtypes
import numpy as np

import pytreeckpt
from pytreeckpt import ArraySource, ClassKind, ObjectType, Record, planning
from pytreeckpt.arrays import run_reader
from pytreeckpt.objects import build_record
from spec.corpus.frames import RAW as RAW_BLOCK
from spec.corpus.frames import RLE, block, zstd_frame
from spec.corpus.parts import FILL, PLANES, RAW, ZSTD, Chunk, File, Row, of_arrays, pack_index, take_apart
from spec.corpus.planes import Plane, join, plane_of, planes_chunk

__all__ = ["BY_HAND", "UNKNOWN", "Valid", "of_tree", "valid_vectors"]

UNKNOWN: Any = object()
"""In place of a tree: the library may not be able to hold it on this platform."""


@dataclass(frozen=True)
class Valid:
    """A vector: the bytes of a file, what it holds, and its data files by their names."""

    name: str
    data: bytes
    tree: Any
    metadata: Any = None
    files: Mapping[str, bytes] = field(default_factory=dict)


def of_tree(
    tree: object,
    metadata: object = None,
    *,
    inline_nbytes: int = 256,
    chunk_nbytes: int = 256,
    compression: str = "none",
) -> File:
    """The file that the library writes, taken apart: arrays above `inline_nbytes` in chunks of `chunk_nbytes`."""
    with patch.multiple(planning, INLINE_NBYTES=inline_nbytes, CHUNK_NBYTES=chunk_nbytes):
        return take_apart(pytreeckpt.encode(tree, metadata=metadata, compression=compression))


def valid_vectors() -> Iterator[Valid]:
    """All vectors, in order."""
    for name, (tree, metadata) in TREES.items():
        yield Valid(name, small(of_tree(tree, metadata)), tree, metadata)
    for name, make in (LAYOUTS | DTYPES).items():
        tree, inline_nbytes, compression = make()
        file = of_tree(tree, inline_nbytes=inline_nbytes, compression=compression)
        yield Valid(name, small(file), without_sources(tree))
    for name, (names, raw) in SIMPLE_DTYPES.items():
        yield of_simple_dtypes(name, names, raw)
    for name, (tree, without_frameworks) in OBJECTS.items():
        yield Valid(name, of_tree(tree).encode(), without_frameworks)
    for name, build in BY_HAND.items():
        file, tree = build()
        yield Valid(name, file.encode(), tree)


def small(file: File) -> bytes:
    """The bytes of the file, with a large index compressed."""
    file.codec = ZSTD if len(pack_index(file.index)) > 1 << 14 else RAW
    return file.encode()


# Plain trees, and their metadata.

NAN, OTHER_NAN = float("nan"), float(np.uint64(0x7FF8_0000_0000_0001).view(np.float64))
SUBNORMAL, NEGATIVE_NAN = 5e-324, float(np.uint64(0xFFF8_0000_0000_0000).view(np.float64))


def nested(depth: int, wrap: Callable[[object], object], leaf: object = None) -> object:
    """A tree of `depth` levels."""
    tree = leaf
    for _ in range(depth - 1):
        tree = wrap(tree)
    return tree


TREES: dict[str, tuple[Any, Any]] = {
    "none": (None, None),
    "constants": ([None, False, True, ...], None),
    "empty-containers": ([[], (), {}, set(), frozenset()], {}),
    "ints": ([0, 1, -1, 127, 128, -128, 255, 256, 2**31, -(2**31), 2**53 + 1, 2**63 - 1, -(2**63)], None),
    "bigints": ([2**63, -(2**63) - 1, 2**64, -(2**64), 2**71 - 1, 2**71, -(2**71), -(2**71) - 1, 10**40], None),
    "floats": ([0.0, -0.0, 1.0, 0.1, SUBNORMAL, 1.7976931348623157e308, math.inf, -math.inf, NAN, NEGATIVE_NAN], None),
    "complex": ([1 + 2j, complex(-0.0, 0.0), complex(0.0, -0.0), complex(math.inf, OTHER_NAN)], None),
    "strings": (["", "text", "ünïcödé", "日本語", "🙂", "a\0b", "\ufffd\uffff\U0010ffff", "e\u0301", "\u00e9"], None),
    "strings-long": (["a" * 31, "b" * 32, "c" * 255, "d" * 256, "e" * 65536], None),
    "bytes": ([b"", b"\0", b"text", bytes(255), bytes(range(256))], None),
    "containers": ({"list": [1, [2, (3,)]], "tuple": ((), (1, [2])), "dict": {"b": 1, "a": {"c": []}}}, None),
    "keys": (
        {
            key: number
            for number, key in enumerate(
                [
                    None,
                    False,
                    True,
                    2,
                    -2,
                    2**70,
                    0.5,
                    -math.inf,
                    NAN,
                    "2",
                    b"2",
                    "",
                    b"",
                    (),
                    (1, ("x", None, b"")),
                    ((),),
                ]
            )
        },
        None,
    ),
    "keys-nearly-equal": (
        dict.fromkeys(
            [2**53 + 1, 2.0**53, 2**63, 2.0**62, 1, "1", b"1", (1,), ((1,),), NAN, OTHER_NAN, (NAN,), 0.0], 0
        ),
        None,
    ),
    "keys-nested-100": ({nested(101, lambda inner: (inner,), "x"): "y"}, None),
    "sets": (
        [
            {1},
            {"b", "a", "aa", ""},
            {None, ..., True, 0, 1.5, 1j, "x", b"x", (1, 2), frozenset()},
            frozenset([NAN, OTHER_NAN]),
        ],
        None,
    ),
    "sets-order": ([{256, 1, -1, 2**63, -(2**63), 0.5, -0.5}, {(), (1,), (1, 1), (2,), ((),)}, {"b", "aa", "é"}], None),
    "sets-nested": (
        {frozenset(), frozenset([1, frozenset([2, (3, frozenset("ab"))])]), (frozenset([b"c"]), ...)},
        None,
    ),
    "metadata": (
        [1],
        {"step": 7, "none": None, "flags": [True, False], ("a", 1): (1.5, b"\0", 2**64), "nested": {1: [{}]}},
    ),
    "metadata-leaf": (None, "text"),
    "wide": (
        {"ints": list(range(300)), "names": [f"layer{number}" for number in range(300)], "floats": [0.5] * 300},
        None,
    ),
    "deep-list": (nested(3000, lambda inner: [inner]), None),
    "deep-dict": (nested(3000, lambda inner: {"k": inner}, 1), None),
    "deep-both-sides": (nested(500, lambda inner: (1, [inner, {}], {"k": 2})), None),
}


# Arrays.


def numbers(dtype: Any, *shape: int) -> Any:
    """An array of all different items."""
    return np.arange(1, 1 + math.prod(shape)).astype(dtype).reshape(shape)


def source(stored: Any, cuts: Sequence[Sequence[int]], axes: Sequence[int] | None = None) -> ArraySource:
    """An array cut into boxes, from the array in stored order."""
    edges = [[0, *axis, extent] for axis, extent in zip(cuts, stored.shape, strict=True)]
    places = [[slice(low, high) for low, high in pairwise(axis)] for axis in edges]
    boxes = [
        stored[tuple(places[axis][at] for axis, at in enumerate(cell))].copy() for cell in np.ndindex(*map(len, places))
    ]
    readers = [run_reader(box) for box in boxes]
    shape = stored.shape if axes is None else tuple(stored.shape[at] for at in np.argsort(axes))
    found = ArraySource(
        stored.dtype, shape, readers, axes=None if axes is None else tuple(axes), cuts=cuts, identity=id(stored)
    )
    SOURCES[id(stored)] = (stored if axes is None else stored.transpose(np.argsort(axes)), stored)
    return found


SOURCES: dict[Any, tuple[Any, Any]] = {}


def without_sources(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with each source as the array that comes back."""
    return {
        name: SOURCES[value.identity][0] if isinstance(value, ArraySource) else value for name, value in tree.items()
    }


def shared_tree() -> dict[str, Any]:
    """Arrays in several places; equal arrays that are not shared."""
    small, large, rank_0 = numbers("u1", 3), numbers("<f4", 100), np.array(5, "<i8")
    return {"a": small, "b": [small, (small, large)], "c": large, "equal": large.copy(), "d": rank_0, "e": rank_0}


Layout = tuple[dict[str, Any], int, str]
LAYOUTS: dict[str, Callable[[], Layout]] = {
    "arrays-inline": lambda: (
        {
            "empty": np.zeros((0, 3), "<f4"),
            "rank0": np.array(1.5),
            "rank1": numbers("<i2", 3),
            "rank64": np.ones((1,) * 64, "u1"),
        },
        256,
        "none",
    ),
    "arrays-empty": lambda: (
        {
            "huge": np.zeros((2**40, 0), "<f8"),
            "void": np.ndarray((5,), "V0"),
            "no-str": np.ndarray((2, 2), "<U0"),
            "f": np.zeros((0, 2), order="F"),
        },
        256,
        "none",
    ),
    "arrays-axes": lambda: (
        {
            "fortran": np.asfortranarray(numbers("<i4", 2, 3)),
            "cyclic": numbers("<u2", 4, 2, 3).transpose(1, 2, 0),
            "swapped": numbers("u1", 2, 3, 4, 5).transpose(0, 3, 2, 1),
            "chunked": np.asfortranarray(numbers("<f8", 9, 10)),
        },
        256,
        "none",
    ),
    "arrays-cuts": lambda: (
        {
            "one-axis": source(numbers("<f4", 10), [[3, 7]]),
            "grid": source(numbers("<i2", 6, 8), [[2], [3, 5]]),
            "rows": source(numbers("u1", 5, 4), [[1, 2, 3, 4], []]),
            "axes-too": source(numbers("<u4", 4, 3, 2), [[2], [], [1]], axes=[2, 0, 1]),
        },
        0,
        "none",
    ),
    "chunks-several": lambda: (
        {
            "exact": numbers("<f4", 192),
            "rest": numbers("<f8", 100),
            "wide-items": np.arange(1, 501, dtype="u1").repeat(2)[:900].view("V300"),
        },
        0,
        "none",
    ),
    "chunks-padding": lambda: ({f"{n}-bytes": numbers("u1", n) for n in (1, 63, 64, 65, 127, 128)}, 0, "none"),
    "chunks-fill": lambda: (
        {
            "zeros": np.zeros(100, "<f8"),
            "ones": np.ones((7, 9), "<f4"),
            "bytes": np.full(300, 7, "u1"),
            "items": np.full(40, b"abc", "S3"),
        },
        0,
        "auto",
    ),
    "arrays-inline-64-kib": lambda: ({"zeros": np.zeros(1 << 16, "u1")}, 1 << 16, "none"),
    "sharing": lambda: (shared_tree(), 256, "none"),
}

ALIGNED = np.dtype([("a", "u1"), ("b", "<f8"), ("c", "<i2", (2, 3))], align=True)
TITLED = np.dtype({"names": ["x", "y"], "formats": ["<i4", "u1"], "titles": ["X coordinate", None]})
PADDED = np.dtype({"names": ["late", "early"], "formats": ["<u2", "u1"], "offsets": [5, 1], "itemsize": 9})
OVERLAPPING = np.dtype({"names": ["whole", "half"], "formats": ["<u4", "<u2"], "offsets": [0, 2], "itemsize": 4})
NESTED = np.dtype([("inner", PADDED), ("row", [("t", "<M8[ms]"), ("s", "<U2")], (2,))])
NO_FIELDS = np.dtype({"names": [], "formats": [], "offsets": [], "itemsize": 3})
ODD_NAMES = np.dtype([("", "u1"), (" ", "u1"), ("a\0b", "u1"), ("日本", "u1"), ("a.b/c[0]", "u1")])


def of_bytes(dtype: Any, *shape: int) -> Any:
    """An array of a dtype, its bytes counted upwards; what no field covers is zero."""
    items = np.ndarray(shape, dtype, bytearray(at % 251 for at in range(math.prod(shape) * np.dtype(dtype).itemsize)))
    clean: Any = np.zeros(shape, dtype)
    for name in np.dtype(dtype).names or ():
        clean[name] = items[name]
    return clean if np.dtype(dtype).names is not None else items


def deep_struct(depth: int) -> Any:
    """A struct that nests as deep as it says."""
    dtype: Any = np.dtype("u1")
    for _ in range(depth):
        dtype = np.dtype([("s", dtype)])
    return dtype


TIME_UNITS = ("Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as")
DTYPES: dict[str, Callable[[], Layout]] = {
    "dtypes-strings": lambda: (
        {
            "bytes": np.array([b"", b"ab", b"a\0c"], "S3"),
            "empty": np.ndarray((3,), "S0"),
            "str": np.array(["", "日本", "🙂x"], "<U2"),
            "str_be": np.array(["", "日本", "🙂x"], ">U2"),
            "surrogate": np.array(["\ud800", "x"], "<U1"),
            "void": np.array([b"ab", b"\0c"], "V2"),
        },
        256,
        "none",
    ),
    "dtypes-times": lambda: (
        {
            f"{order}{kind}{unit}": np.array([0, -1, 2**40, -(2**63)], "<i8")
            .astype(f"{order}i8")
            .view(f"{order}{kind}8{unit}")
            for order, kind, unit in [
                ("<", "M", "[3D]"),
                (">", "M", "[ns]"),
                ("<", "m", "[25us]"),
                (">", "m", ""),
                ("<", "M", ""),
                ("<", "m", "[2147483647s]"),
            ]
        }
        | {unit: np.array([1], f"<M8[{unit}]") for unit in TIME_UNITS},
        256,
        "none",
    ),
    "dtypes-structs": lambda: (
        {
            "packed": of_bytes([("a", "u1"), ("b", "<f4"), ("c", ">i2")], 3),
            "aligned": of_bytes(ALIGNED, 2),
            "titled": of_bytes(TITLED, 2),
            "padded": of_bytes(PADDED, 4),
            "overlapping": of_bytes(OVERLAPPING, 2),
            "nested": of_bytes(NESTED, 2),
            "no-fields": np.zeros(2, NO_FIELDS),
            "odd-names": of_bytes(ODD_NAMES, 1),
            "deep": of_bytes(deep_struct(32), 2),
            "shared-name": of_bytes([("a", "u1")], 2, 2),
            "axes-64": of_bytes([("a", "u1", (1,) * 64)]),
            "zero-extent": np.zeros(2, [("a", "u1"), ("b", "<f8", (0, 7))]),
        },
        256,
        "none",
    ),
    "dtypes-structs-chunked": lambda: ({"padded": of_bytes(PADDED, 60), "aligned": of_bytes(ALIGNED, 3, 4)}, 0, "none"),
    "scalars": lambda: (
        {
            "f2": np.float16(1.5),
            "i8": np.int64(-1),
            "be": np.array([258], ">u2")[0],
            "bool": np.bool_(1),
            "c8": np.complex64(1 - 2j),
            "bytes": np.bytes_(b"a\0\0"),
            "str": np.str_("a\0"),
            "surrogate": np.str_("\udfff"),
            "empty": np.bytes_(b""),
            "time": np.datetime64("2026-01-01", "D"),
            "nat": np.timedelta64("NaT", "s"),
            "struct": of_bytes([("a", "u1"), ("b", "<i2")], 1)[0],
            "void": np.void(b"xyz"),
            "again": np.float16(1.5),
        },
        256,
        "none",
    ),
}


# Simple dtypes, by renaming opaque bytes: so each is in, whether or not numpy has it here.

ALL_BYTES = bytes(range(256))
EDGES = b"".join(
    [bytes(16), b"\1" + bytes(15), b"\xff" * 16, bytes(15) + b"\x80", bytes(14) + b"\xf0\x7f", bytes(range(1, 17))]
)
X87 = b"".join(item + bytes(6) for item in (bytes(10), bytes(7) + b"\x80\xff\x3f", b"\1" + bytes(6) + b"\xc0\xff\x7f"))
WIDE = [
    "int16",
    "int32",
    "int64",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
]
EIGHT_BITS = [
    "int8",
    "uint8",
    "float8_e3m4",
    "float8_e4m3",
    "float8_e4m3b11fnuz",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
]
SIMPLE_DTYPES: dict[str, tuple[list[str], bytes]] = {
    "dtypes-little-endian": (WIDE, EDGES),
    "dtypes-big-endian": ([f"{name}_be" for name in WIDE], EDGES),
    "dtypes-8-bits": (EIGHT_BITS, ALL_BYTES),
    "dtypes-bool": (["bool"], ALL_BYTES),
    "dtypes-6-bits": (["float6_e2m3fn", "float6_e3m2fn"], bytes(range(64))),
    "dtypes-4-bits": (["float4_e2m1fn", "int4", "uint4"], bytes(range(16))),
    "dtypes-2-bits": (["int2", "uint2"], bytes(range(4))),
    "dtypes-1-bit": (["int1", "uint1"], bytes(range(2))),
    "dtypes-bfloat16": (["bfloat16", "complex32", "bcomplex32"], EDGES),
    "dtypes-float80": (["float80_x87"], X87),
    "dtypes-complex160": (["complex160_x87"], X87 + X87[16:] + X87[:16]),
    "dtypes-float128": (["float128"], EDGES),
    "dtypes-complex256": (["complex256"], EDGES),
}
ITEMSIZES = {
    **dict.fromkeys(["float80_x87", "float128", "complex128"], 16),
    **dict.fromkeys(["complex160_x87", "complex256"], 32),
    **dict.fromkeys(["int64", "uint64", "float64", "complex64"], 8),
    "complex32": 4,
    "bcomplex32": 4,
    **dict.fromkeys(["int32", "uint32", "float32"], 4),
    **dict.fromkeys(["int16", "uint16", "float16", "bfloat16"], 2),
}


def of_simple_dtypes(name: str, names: list[str], raw: bytes) -> Valid:
    """A list with an array of each dtype, all of the same bytes."""
    sizes = [ITEMSIZES.get(dtype.removesuffix("_be"), 1) for dtype in names]
    file = of_arrays(*(Row(dtype, [len(raw) // size], raw) for dtype, size in zip(names, sizes, strict=True)))
    return Valid(name, file.encode(), UNKNOWN)


# Objects.


def record(type_name: str, class_kind: ClassKind = ClassKind.RECORD, /, **fields: object) -> Any:
    """An object, as the library gives one of a type that it does not know."""
    return build_record(ObjectType(class_kind, type_name, tuple(fields)), list(fields.values()))


def wrapper(name: str, **fields: object) -> Record:
    """A wrapper whose framework is not here: the first field comes back."""
    return Record(ObjectType(ClassKind.WRAPPER, name, tuple(fields)), list(fields.values()))


W = numbers("<f4", 2, 3)
KEYS = np.array([[0, 42], [1, 2]], "<u4")
BITS = numbers("u1", 4)
TENSOR = wrapper("torch.Tensor", data=W, requires_grad=False)
LINKED = ObjectType(ClassKind.NAMEDTUPLE, "collections:Point", ("x", "y"))
PYTHON_OBJECTS: Any = [
    OrderedDict([("b", 1), ("a", OrderedDict())]),
    defaultdict(None, {"x": [1]}),
    Counter({"a": 2, "b": -1, "c": 0}),
    deque([1, [2]], maxlen=3),
    deque(),
    bytearray(b"\0\1"),
    [PurePosixPath("/a/b"), PureWindowsPath("C:/x"), PurePosixPath()],
    [range(3), range(10, 0, -3), slice(None, 5), slice("a", None, (1,))],
    [Namespace(lr=0.1, **{"not a name": 1}), SimpleNamespace(), SimpleNamespace(w=W)],
]
NUMPY_OBJECTS: Any = [
    np.array([[1, "a"], [None, {"k": W}]], object),
    np.array([], object).reshape(0, 2),
    np.array(["", "日本", "x" * 100], np.dtypes.StringDType()),
    np.array([["a", None]], np.dtypes.StringDType(na_object=None)),
    np.array(["a", "?"], np.dtypes.StringDType(na_object="?", coerce=False)),
    [np.dtype("<f4"), np.dtype(">i2"), np.dtype("S3"), np.dtype("<M8[3D]"), ALIGNED, NESTED],
]
SPARSE: dict[str, Any] = {
    "values": wrapper("torch.Tensor", data=numbers("<f4", 2), requires_grad=True),
    "indices": (wrapper("torch.Tensor", data=numbers("<i8", 2, 2), requires_grad=False),),
    "layout": "sparse_coo",
    "shape": (9, 9),
    "coalesced": True,
    "requires_grad": False,
}
OBJECTS: dict[str, tuple[Any, Any]] = {
    "objects-python": (PYTHON_OBJECTS, PYTHON_OBJECTS),
    "objects-numpy": (NUMPY_OBJECTS, NUMPY_OBJECTS),
    "objects-torch": (
        {
            "tensor": TENSOR,
            "tied": [wrapper("torch.nn.Parameter", data=W, requires_grad=True), TENSOR],
            "buffer": wrapper("torch.nn.Buffer", data=BITS, requires_grad=False, persistent=True),
            "packed": wrapper(
                "torch.PackedTensor",
                data=BITS,
                dtype="float4_e2m1fn_x2",
                shape=(8,),
                requires_grad=False,
                parameter=True,
            ),
            "sparse": record("torch.SparseTensor", **SPARSE),
            "size": wrapper("torch.Size", shape=(2, 3)),
            "names": [
                record(f"torch.{kind}", name=name)
                for kind, name in [("dtype", "bfloat16"), ("layout", "strided"), ("memory_format", "channels_last")]
            ],
            "device": [record("torch.device", type="cuda", index=0), record("torch.device", type="cpu", index=None)],
        },
        {
            "tensor": W,
            "tied": [W, W],
            "buffer": BITS,
            "packed": BITS,
            "sparse": record(
                "torch.SparseTensor",
                **SPARSE | {"values": SPARSE["values"]["data"], "indices": (SPARSE["indices"][0]["data"],)},
            ),
            "size": (2, 3),
            "names": [
                record(f"torch.{kind}", name=name)
                for kind, name in [("dtype", "bfloat16"), ("layout", "strided"), ("memory_format", "channels_last")]
            ],
            "device": [record("torch.device", type="cuda", index=0), record("torch.device", type="cpu", index=None)],
        },
    ),
    "objects-jax": (
        {
            "array": wrapper("jax.Array", data=W, weak_type=True),
            "key": wrapper("jax.PRNGKeyArray", key_data=KEYS, impl="threefry2x32"),
        },
        {"array": W, "key": KEYS},
    ),
    "objects-classes": (
        tree := [
            build_record(LINKED, [1, [2]]),
            build_record(LINKED, [W, None]),
            record(
                "my.module:Config", ClassKind.DATACLASS, name="x", inner=record("my.module:Empty", ClassKind.DATACLASS)
            ),
            record("my.module:Color", ClassKind.ENUM, name="RED", value=(255, 0, 0)),
            record("flax:Node", ClassKind.PYTREE, **{"0": W, "1": None}),
            record("third_party.Thing", **{"": 1, "any text/at.all": 2, "日本": 3}),
            record("third_party.Empty"),
        ],
        tree,
    ),
    "objects-third-party-wrapper": (
        {"a": wrapper("third_party.Scaled", value=[W, 2], scale=0.5), "b": wrapper("third_party.Bare", value=None)},
        {"a": [W, 2], "b": None},
    ),
    "objects-in-objects": (
        tree_2 := record(
            "a.A", x=record("a.B", y=record("a.A", x=(), z=1)), z=OrderedDict([((1, "k"), record("a.B", y=W))])
        ),
        tree_2,
    ),
}


# What the library's writer does not write.

BOTTLES = b"".join(b"%d bottles of beer on the wall, %d bottles of beer. " % (n, n) for n in range(99, 89, -1))
# BOTTLES as zstd 1.5.7 compresses it at level 19: with Huffman-coded literals, sequences and a checksum.
BOTTLES_FRAME = bytes.fromhex(
    "28b52ffd64080165020052030c11a0edb08a360e20f3bf815af8ad6cecffd6428c414829c69c83504a4ae9c301f39a5f27fffa70"
    "97bdf5e3b294cdae1a13a810e8b5fe6fd09b0310fe1d2ffe3e022c805d97431880a438707c5e"
)
RUN = bytes(1000) + b"\7" * 1000
RUN_ARRAY = np.frombuffer(RUN, "u1")


def of_zstd(*stored: bytes, raw: bytes = RUN) -> tuple[File, Any]:
    """A list of arrays of the same bytes, each one zstd chunk."""
    file = of_arrays(*(Row("uint8", [len(raw)], None, [[Chunk(frame, raw, ZSTD)]]) for frame in stored))
    return file, [np.frombuffer(raw, "u1").copy() for _ in stored]


def chunks_zstd() -> tuple[File, Any]:
    """Frames with every field of a header that may be there."""
    return of_zstd(
        zstd_frame(RUN),
        zstd_frame(RUN, with_checksum=True),
        zstd_frame(RUN, window=(0, 0)),
        zstd_frame(RUN, window=(13, 0)),
        zstd_frame(RUN, dictionary=b"\0"),
        zstd_frame(RUN, dictionary=bytes(4)),
        zstd_frame(
            RUN, blocks=block(RLE, 1000, b"\0") + block(RLE, 999, b"\7") + block(RAW_BLOCK, 1, b"\7", last=True)
        ),
        zstd_frame(RUN, blocks=block(RAW_BLOCK, 0, b"") + block(RLE, 1000, b"\0") + block(RLE, 1000, b"\7", last=True)),
    )


def chunks_window() -> tuple[File, Any]:
    """A single segment of exactly 8 MiB, the largest window."""
    return of_zstd(zstd_frame(bytes(8 << 20)), raw=bytes(8 << 20))


def chunks_zstd_compressed() -> tuple[File, Any]:
    """A frame as an encoder writes it."""
    return of_zstd(BOTTLES_FRAME, raw=BOTTLES)


def chunks_mixed() -> tuple[File, Any]:
    """One array whose chunks differ in codec and length."""
    raw = numbers("<u2", 50).tobytes()
    chunks = [
        Chunk(raw, raw),
        Chunk(zstd_frame(bytes(200)), bytes(200), ZSTD),
        Chunk(b"\1\2", b"\1\2" * 7, FILL),
        Chunk(raw[:2], raw[:2]),
    ]
    whole = b"".join(chunk.raw for chunk in chunks)
    return of_arrays(Row("uint16", [len(whole) // 2], None, [chunks])), [np.frombuffer(whole, "<u2")]


def chunks_identical_rows() -> tuple[File, Any]:
    """Rows of the same bytes that are stored once: within an array, and between arrays of different shapes."""
    first, second = numbers("<f4", 20).tobytes(), bytes(80)
    chunks = [Chunk(first, first), Chunk(b"\0" * 4, second, FILL)]
    file = of_arrays(
        Row("float32", [60], None, [[chunks[0], chunks[1], chunks[0]]]),
        Row("float32", [4, 10], None, [[chunks[1], chunks[0]]]),
    )
    places = [0, 1, 0, 1, 0]
    columns = {name: column[:2] for name, column in file.index["chunks"].items()}
    file.index["chunks"] = {name: [column[at] for at in places if column] for name, column in columns.items()}
    file.body = file.body[: 128 + 64]
    a = np.frombuffer(first + second + first, "<f4")
    return file, [a, np.frombuffer(second + first, "<f4").reshape(4, 10)]


def pools_of_one() -> tuple[File, Any]:
    """A pool of one array."""
    values = numbers("<f4", 3)
    raw = values.tobytes()
    return of_arrays(Row("float32", [3], None, pooled=True), pools=[[Chunk(raw, raw)]]), [values]


def pools_mixed() -> tuple[File, Any]:
    """Two pools between arrays that are inline and chunked, with every codec, in chunks of one array and of several."""
    floats = [numbers("<f4", 4, 5), numbers("<f4"), np.zeros(50, "<f4"), np.zeros((2, 2), "<f4"), numbers("<f4", 64)]
    shorts = [numbers("<u2", 3, 4), np.full(7, 258, "<u2"), np.full((1, 2), 258, "<u2")]
    first = floats[0].tobytes() + floats[1].tobytes()
    zeros = bytes(200 + 16)
    last = floats[4].tobytes()
    of_floats = [
        Chunk(first, first),
        Chunk(zstd_frame(zeros), zeros, ZSTD),
        planes_chunk(last, 4, 1, (1, ZSTD), (1, RAW), (2, FILL)),
    ]
    # The first is in Fortran order.
    stored = shorts[0].T.tobytes()
    of_shorts = [Chunk(stored, stored), Chunk(b"\2\1", b"\2\1" * 9, FILL)]
    chunked, inline = numbers("<f4", 10), numbers("<f4", 2)
    content = chunked.tobytes()
    file = of_arrays(
        *(Row("float32", list(array.shape), None, pooled=True) for array in floats[:2]),
        Row("uint16", [3, 4], None, axes=[1, 0], pooled=True),
        Row("float32", [10], None, [[Chunk(content, content)]]),
        *(Row("float32", list(array.shape), None, pooled=True) for array in floats[2:]),
        Row("float32", [2], inline.tobytes()),
        *(Row("uint16", list(array.shape), None, pooled=True) for array in shorts[1:]),
        pools=[of_floats, of_shorts],
    )
    in_order = np.asfortranarray(shorts[0])
    return file, [*floats[:2], in_order, chunked, *floats[2:], inline, *shorts[1:]]


def index_zstd() -> tuple[File, Any]:
    """An index that is compressed, beside chunks."""
    tree = {"zeros": [0] * 500, "array": numbers("<f4", 100)}
    file = of_tree(tree)
    file.codec = ZSTD
    return file, tree


def index_multiple_of_64() -> tuple[File, Any]:
    """An index without padding after it."""
    for length in range(64):
        file = of_tree("x" * length)
        if len(pack_index(file.index)) % 64 == 0:
            return file, "x" * length
    raise AssertionError


# Planes. Each case is a dtype, an array, the word, the rotation, and width and codec of each plane.

Case = tuple[Any, Any, int, int, Sequence[tuple[int, int]]]
UNSIGNED = {2: "uint16", 4: "uint32", 8: "uint64"}
ALTERNATING = (ZSTD, RAW, ZSTD, ZSTD, RAW, ZSTD, ZSTD, ZSTD)


def of_planes(*cases: Case) -> tuple[File, Any]:
    """A list of arrays, each one chunk of planes."""
    rows = [
        Row(dtype, array.shape, None, [[planes_chunk(array.tobytes(), word, rotation, *planes)]])
        for dtype, array, word, rotation, planes in cases
    ]
    return of_arrays(*rows), [array for _, array, *_ in cases]


def planes_rotations() -> tuple[File, Any]:
    """Floats of both signs, rotated by the least, the greatest and the useful numbers of bits."""
    values = np.array([1.5] * 48 + [(k - 6) / 7 for k in range(12)])
    widths = {2: (1, 1), 4: (1, 1, 2), 8: (1, 1, 2, 4)}
    return of_planes(
        *(
            (f"float{8 * word}", values.astype(f"<f{word}"), word, rotation, [(width, ZSTD) for width in widths[word]])
            for word, rotation in product(widths, (0, 1, 4, 8, 15))
        )
    )


def planes_widths() -> tuple[File, Any]:
    """Words whose bytes all differ, cut in many ways."""
    cases: list[Case] = []
    for widths in [
        *[(2,), (1, 1), (4,), (2, 2), (1, 1, 2), (2, 1, 1), (1, 1, 1, 1)],
        *[(8,), (4, 4), (2, 2, 4), (4, 2, 2), (1, 1, 2, 4), (2, 1, 1, 4), (4, 2, 1, 1), (2,) * 4, (1,) * 8],
    ]:
        word = sum(widths)
        raw = bytes(56 * word) + bytes(range(1, 1 + 8 * word))
        planes = list(zip(widths, ALTERNATING, strict=False))
        cases.append((UNSIGNED[word], np.frombuffer(raw, f"<u{word}"), word, 3, planes))
    return of_planes(*cases)


def parts_for(codec: int, width: int) -> Any:
    """Parts of 64 words, a row for each, that a codec can store."""
    if codec == FILL:
        return np.full((64, width), [0x3F, 0x80][:width], "u1")
    n_zeros = 0 if codec == RAW else 56
    return np.append(np.zeros(n_zeros * width, "u1"), np.arange((64 - n_zeros) * width, dtype="u1")).reshape(64, width)


def planes_codecs() -> tuple[File, Any]:
    """Planes of all codecs beside and after each other."""
    choices = [[(1, first), (1, second)] for first, second in product((RAW, FILL, ZSTD), repeat=2) if first + second]
    choices += [list(zip((1, 1, 2), order, strict=True)) for order in permutations((RAW, FILL, ZSTD))]
    choices += [[(2, FILL)], [(2, ZSTD)]]
    cases: list[Case] = []
    for planes in choices:
        word = sum(width for width, _ in planes)
        # An array begins with the least significant bytes, and ends with what becomes the first plane.
        raw = np.hstack([parts_for(codec, width) for width, codec in reversed(planes)]).tobytes()
        cases.append((UNSIGNED[word], np.frombuffer(raw, f"<u{word}"), word, 0, planes))
    return of_planes(*cases)


def planes_special_floats() -> tuple[File, Any]:
    """NaNs of every kind, infinities, zeros and subnormals of both signs: every bit is kept."""
    cases: list[Case] = []
    for name, dtype, mantissa, rotation, widths in [
        ("float16", "<f2", 10, 1, (1, 1)),
        ("bfloat16", ml_dtypes.bfloat16, 7, 1, (1, 1)),
        ("float32", "<f4", 23, 1, (1, 1, 2)),
        ("float64", "<f8", 52, 4, (1, 1, 2, 4)),
    ]:
        word = sum(widths)
        sign, one, quiet, payload = 1 << 8 * word - 1, 1 << mantissa, 1 << mantissa - 1, (1 << mantissa) - 1
        infinity = sign - one
        positive = [0, 1, payload, one, infinity - 1, infinity, infinity | 1, infinity | quiet, infinity | payload]
        bits = [0] * 60 + positive + [sign | value for value in positive]
        array = np.array(bits, f"<u{word}").view(dtype)
        cases.append((name, array, word, rotation, [(width, ZSTD) for width in widths]))
    return of_planes(*cases)


def planes_dtypes() -> tuple[File, Any]:
    """Words that are no whole item, or hold several numbers; those of big-endian dtypes are little-endian too."""
    triple = ["struct", 12, False, [[name, None, "float32", at, []] for name, at in [("a", 0), ("b", 4), ("c", 8)]]]
    cases: list[Case] = []
    described: list[tuple[Any, Any, int, Sequence[int]]] = [
        ("complex64", "<c8", 4, (1, 1, 2)),
        ("complex64", "<c8", 8, (4, 4)),
        ("complex64", "<c8", 2, (1, 1)),
        ("complex128", "<c16", 8, (1, 1, 2, 4)),
        ("float32_be", ">f4", 4, (1, 1, 2)),
        ("int64_be", ">i8", 8, (2, 2, 4)),
        ("int64", "<i8", 4, (2, 2)),
        (triple, [("a", "<f4"), ("b", "<f4"), ("c", "<f4")], 4, (1, 1, 2)),
        (triple, [("a", "<f4"), ("b", "<f4"), ("c", "<f4")], 2, (2,)),
        (["void", 24], "V24", 8, (4, 4)),
        (["void", 6], "V6", 2, (1, 1)),
        (["datetime64", "ns", 1], "<M8[ns]", 8, (4, 4)),
        (["str", 2], "<U2", 4, (1, 1, 2)),
    ]
    for name, dtype, word, widths in described:
        end = ("日本🙂x" * 3).encode("utf-32-le") if dtype == "<U2" else bytes(range(48))
        array: Any = np.frombuffer(bytes(192) + end, np.dtype(dtype))
        cases.append((name, array, word, 1, [(width, ZSTD) for width in widths]))
    return of_planes(*cases)


def planes_padding() -> tuple[File, Any]:
    """The shortest chunks, and planes of every length modulo 8, first and last."""
    cases: list[Case] = [
        ("uint16", np.full(13, 0x1234, "<u2"), 2, 5, [(2, FILL)]),
        (["void", 64], np.frombuffer(b"\1\2" * 32, "V64"), 2, 0, [(1, FILL), (1, FILL)]),
    ]
    for n_words in range(41, 49):
        array = numbers("<u2", n_words)
        cases += [("uint16", array, 2, 0, [(1, FILL), (1, RAW)]), ("uint16", array.copy(), 2, 8, [(1, RAW), (1, FILL)])]
    return of_planes(*cases)


def planes_zstd() -> tuple[File, Any]:
    """Planes with every field of a frame's header that may be there, of several blocks, and as an encoder makes it."""
    run = bytes(3000) + b"\7" * 3000
    long = bytes(200 << 10) + bytes(range(256)) + b"\7" * (200 << 10)
    frames = [(zstd_frame(run, window=window), run) for window in ((0, 0), (13, 0))]
    frames += [(zstd_frame(run, with_checksum=True), run), (zstd_frame(run, dictionary=bytes(4)), run)]
    frames += [(zstd_frame(long), long), (BOTTLES_FRAME, BOTTLES)]
    rows, tree = [], []
    for frame, lower in frames:
        stored = join(2, 0, plane_of(b"\x3f" * len(lower), 1, FILL), Plane(1, ZSTD, frame))
        array = np.frombuffer(lower, "u1").astype("<u2") | 0x3F00
        tree.append(array)
        rows.append(Row("uint16", array.shape, None, [[Chunk(stored, array.tobytes(), PLANES)]]))
    return of_arrays(*rows), tree


def planes_window() -> tuple[File, Any]:
    """A plane of exactly 8 MiB, the largest window, of a chunk of twice as much."""
    zeros = plane_of(bytes(8 << 20), 1, ZSTD)
    raw = bytes(16 << 20)
    file = of_arrays(Row("uint16", [8 << 20], None, [[Chunk(join(2, 1, zeros, zeros), raw, PLANES)]]))
    return file, [np.frombuffer(raw, "<u2")]


def planes_mixed() -> tuple[File, Any]:
    """One array in two boxes whose chunks differ in codec, word and length."""
    raw = numbers("<f4", 64).tobytes()
    zeros, start = bytes(200), raw[:40]
    by_4 = planes_chunk(raw, 4, 1, (1, ZSTD), (1, RAW), (2, FILL))
    by_2 = planes_chunk(zeros + start, 2, 15, (2, ZSTD))
    boxes = [
        [by_4, Chunk(zstd_frame(zeros), zeros, ZSTD), by_2],
        [Chunk(start, start), by_2, by_4, Chunk(zeros[:4], zeros[40:], FILL)],
    ]
    whole = b"".join(chunk.raw for box in boxes for chunk in box)
    file = of_arrays(Row("float32", [2, 174], None, boxes, cuts=[[1], []]))
    return file, [np.frombuffer(whole, "<f4").reshape(2, 174)]


BY_HAND: dict[str, Callable[[], tuple[File, Any]]] = {
    "chunks-zstd": chunks_zstd,
    "chunks-zstd-8-mib": chunks_window,
    "chunks-zstd-compressed": chunks_zstd_compressed,
    "chunks-mixed": chunks_mixed,
    "chunks-identical-rows": chunks_identical_rows,
    "pools-of-one": pools_of_one,
    "pools-mixed": pools_mixed,
    "planes-rotations": planes_rotations,
    "planes-widths": planes_widths,
    "planes-codecs": planes_codecs,
    "planes-special-floats": planes_special_floats,
    "planes-dtypes": planes_dtypes,
    "planes-padding": planes_padding,
    "planes-zstd": planes_zstd,
    "planes-zstd-8-mib": planes_window,
    "planes-mixed": planes_mixed,
    "index-zstd": index_zstd,
    "index-multiple-of-64": index_multiple_of_64,
}
