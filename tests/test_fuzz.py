"""decode(anything): a value or a `PytreeckptError`, and nothing else.

The digests of every file here are right, so that what is behind them is reached. The number of files grows with the
profile: `HYPOTHESIS_PROFILE=deep` tries some hundred thousand.
"""

import argparse
import collections
import pathlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt import adapters, planning
from pytreeckpt.objects import REGISTERED
from tests import strategies as some
from tests.forge import (
    ARRAY,
    BIGINT,
    OBJECT,
    SCALAR,
    ArrayRow,
    Tree,
    file_of,
    forge,
    frame,
    leaf,
    take_frame,
    zstd_frame,
)
from tests.judgement import judge
from tests.mutations import mutate
from tests.sources import in_boxes


@pytest.fixture(scope="module", autouse=True)
def _without_frameworks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapters, "_installed", dict)
        yield


def _bases() -> list[Any]:
    ramp = np.arange(300, dtype=np.float32).reshape(10, 30)
    struct = np.zeros(70, np.dtype([("a", "u1"), ("b", "f4", (2,)), (("title", "c"), "M8[3s]")], align=True))
    random = np.random.default_rng(0).integers(0, 256, (33, 64), np.uint8)
    return [
        [
            ramp,
            ramp.T,
            ramp,
            ramp[::2],
            in_boxes(ramp, [[5], [10]]),
            np.zeros((40, 50), np.int16),
            random,
            struct,
            np.zeros((0, 3)),
        ],
        [
            np.array(5.0),
            np.float32(1),
            np.str_("ab\0"),
            np.datetime64("2020-01-01"),
            np.bool_(True),
            np.void(b"xy"),
            np.bytes_(b""),
        ],
        {
            "a.b": 1,
            "a": {"b": 2},
            1: "x",
            "1": None,
            (1, "a", (2.5,)): [True, ...],
            b"k": 1 + 2j,
            float("nan"): 1 << 100,
        },
        [{1, 2, "x", (1, frozenset([3]))}, frozenset(), {None: {2.5: -0.0}}, {(1, 2): (), (2, 1): {}}],
        {
            "ordered": collections.OrderedDict(a=1),
            "deque": collections.deque([1, 2], 3),
            "counter": collections.Counter("abca"),
            "namespace": argparse.Namespace(x=1, y=[ramp]),
            "path": pathlib.PurePosixPath("a/b"),
            "bytearray": bytearray(b"xyz"),
            "range": range(3),
            "slice": slice(1, None),
        },
        {
            "enum": some.Color.RED,
            "point": some.Point(1, ramp),
            "state": some.State(1, {"w": ramp}),
            "objects": np.array([1, None, "x"], object),
            "strings": np.array(["a", "b"], np.dtypes.StringDType()),
            "dtypes": [np.dtype("f4"), np.dtype([("a", "f4")])],
            "frozen": some.Frozen(1),
        },
        [1.5] * 20 + ["a"] * 10 + list(range(20)),
        np.arange(100),
        7,
    ]


@pytest.fixture(scope="module")
def bases():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "CHUNK_NBYTES", 256)
        return [
            ptc.encode(tree, metadata={"m": [1, (2, b"x")]}, compression=compression)
            for tree in _bases()
            for compression in ("auto", "none", 19)
        ]


def test_the_files_that_are_changed_are_accepted(bases):
    assert all(judge(file) for file in bases)


@given(seed=st.integers(0, 1 << 40))
def test_a_changed_index_with_its_digests_right_gives_a_value_or_an_error(bases, seed):
    for number in range(20 * seed, 20 * seed + 20):
        judge(mutate(bases[number % len(bases)], number))


def test_some_of_the_changes_are_accepted_and_most_are_not(bases):
    verdicts = [judge(mutate(bases[number % len(bases)], number)) for number in range(300)]
    assert 30 < sum(verdicts) < 200


@given(seed=st.integers(0, 1 << 40), data=st.data())
def test_any_change_of_the_bytes_of_the_index_gives_a_value_or_an_error(bases, seed, data):
    import msgpack

    document, body = take_frame(bases[seed % len(bases)])
    raw = bytearray(msgpack.packb(document))
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.integers(0, 2)):
            case 0:
                raw[place] = data.draw(st.integers(0, 255))
            case 1:
                del raw[place : place + data.draw(st.integers(1, 9))]
            case 2:
                raw[place:place] = data.draw(st.binary(min_size=1, max_size=9))
        if not raw:
            raw = bytearray(b"\xc0")
    judge(frame(bytes(raw), body))


@given(data=st.binary(max_size=200))
def test_any_bytes_as_an_index_give_an_error(data):
    for codec in (0, 2):
        assert not judge(frame(data, codec=codec)) or not data
    assert not judge(frame(data, codec=2, stored=data or b"x", raw_nbytes=len(data)))


DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=8)
        | st.dictionaries(st.text() | st.sampled_from(["nodes", "types"]), inner, max_size=8)
    ),
    max_leaves=30,
)


@given(DOCUMENTS)
def test_any_document_as_an_index_gives_an_error(document):
    assert not judge(forge(document))


# Trees of nodes that may or may not make sense.

PAYLOADS = st.one_of(
    st.none().map(leaf),
    st.booleans().map(leaf),
    st.just(leaf(...)),
    st.integers(-(1 << 63), (1 << 63) - 1).map(leaf),
    st.integers(-3, 3).map(leaf),
    some.FLOATS.map(leaf),
    st.complex_numbers().map(leaf),
    (st.text(max_size=3) | st.sampled_from(["posix", "windows", "float32", "struct", "datetime64", "s"])).map(leaf),
    st.binary(max_size=12).map(leaf),
    st.binary(max_size=12).map(lambda blob: Tree(BIGINT, blob)),
    st.sampled_from([ARRAY, SCALAR]).flatmap(lambda kind: st.integers(0, 30).map(lambda number: Tree(kind, number))),
)


@st.composite
def _objects(draw, children):
    if draw(st.booleans()):
        name = draw(st.sampled_from(sorted(REGISTERED)))
        class_kind, fields = REGISTERED[name]
        kind = int(class_kind)
        names = (
            tuple(fields) if fields is not None else tuple(draw(st.lists(st.text(max_size=3), max_size=3, unique=True)))
        )
    else:
        kind = draw(st.integers(0, 5))
        name = draw(st.sampled_from(["a.b", "m:N", "", "python.x", "torch.y", "a"]))
        names = tuple(
            draw(
                st.lists(
                    st.text(max_size=2) | st.sampled_from(["name", "value", "count", "_type"]),
                    max_size=3,
                    unique=draw(st.booleans()),
                )
            )
        )
        if kind == 4 and draw(st.booleans()):
            names = ("name", "value")
    return Tree(OBJECT, (kind, name, names), [draw(children) for _ in names])


def _nodes(children):
    lists = st.lists(children, max_size=4)
    counted = st.builds(lambda kind, items: Tree(kind, None, items), st.sampled_from([16, 17, 19, 20]), lists)
    ordered = st.builds(lambda kind, items: Tree(kind, None, sorted(items, key=repr)), st.sampled_from([19, 20]), lists)
    pairs = st.lists(st.tuples(children, children), max_size=3)
    dicts = pairs.map(lambda items: Tree(18, None, [key for key, _ in items] + [value for _, value in items]))
    wrong = st.builds(
        lambda kind, count, items: Tree(kind, count, items), st.sampled_from([16, 18]), st.integers(0, 5), lists
    )
    return st.one_of(counted, dicts, dicts, ordered, _objects(children), _objects(children), wrong)


NODES = st.recursive(PAYLOADS, _nodes, max_leaves=15)
ROWS = [
    ArrayRow("uint8", (), b"\7"),
    ArrayRow("float32", (2, 3), bytes(24), axes=[1, 0]),
    ArrayRow("bool", (), b"\2"),
    ArrayRow(["str", 2], (), bytes(8)),
    ArrayRow(["struct", 9, False, [["a", "t", ["datetime64", "s", 1], 1, []]]], (), bytes(9)),
    ArrayRow("uint8", (1000,), None, [[(zstd_frame(b"ab" * 250), b"ab" * 250, 2), (b"\0", bytes(500), 1)]]),
    ArrayRow("bfloat16", (0, 4), b""),
    ArrayRow(["bytes", 0], (3,), b""),
    ArrayRow(
        "int64",
        (2, 2),
        None,
        [
            [(bytes(8), bytes(8), 0)],
            [(b"\1" * 8, b"\1" * 8, 0)],
            [(bytes(8), bytes(8), 0)],
            [(b"\2" * 8, b"\2" * 8, 0)],
        ],
        cuts=[[1], [1]],
    ),
]


def numbered(tree: Tree) -> list[ArrayRow]:
    """Number the arrays of a tree in order of first use, and give their rows."""
    rows: list[ArrayRow] = []
    numbers: dict[int, int] = {}
    pending = [tree]
    while pending:
        item = pending.pop()
        if item.kind in {ARRAY, SCALAR}:
            wanted = item.payload
            # A scalar has its own array; some arrays stand at several places.
            if item.kind == SCALAR or wanted not in numbers:
                numbers[wanted] = len(rows)
                rows.append(ROWS[wanted % (5 if item.kind == SCALAR else len(ROWS))])
                item.payload = len(rows) - 1
            else:
                item.payload = numbers[wanted]
        pending.extend(reversed(item.children))
    return rows


@given(NODES)
def test_any_tree_of_nodes_gives_a_value_or_an_error(tree):
    rows = numbered(tree)
    judge(file_of(tree, rows))


@given(NODES)
def test_any_tree_of_nodes_as_metadata_gives_a_value_or_an_error(tree):
    rows = numbered(tree)
    judge(file_of(None, rows, metadata=tree))


@given(st.data())
def test_columns_of_any_content_give_a_value_or_an_error(data):
    document, body = take_frame(file_of(Tree(16, None, [Tree(ARRAY, 0)]), [ROWS[5]]))
    for table, column in data.draw(
        st.lists(
            st.sampled_from([(t, c) for t in ("nodes", "arrays", "chunks") for c in document[t]]),
            min_size=1,
            max_size=3,
        )
    ):
        if isinstance(document[table][column], bytes):
            document[table][column] = data.draw(st.binary(max_size=40))
    judge(forge(document, body))
