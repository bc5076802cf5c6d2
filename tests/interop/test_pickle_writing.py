"""Our pickles, read by Python's own machine."""

import io
import pickle
import pickletools

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt import testing
from pytreeckpt.interop.pickle_writing import (
    Call,
    Found,
    LongBytes,
    Name,
    Once,
    encode_pickle,
    most_nbytes,
    pickle_pieces,
)
from tests.exact import assert_same


def no_others(value):
    raise TypeError(type(value).__name__)


def encoded(value):
    return b"".join(pickle_pieces(encode_pickle(value, no_others)))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | testing.integers()
    | testing.floats()
    | st.text()
    | st.binary()
    | st.builds(complex, testing.floats(), testing.floats()),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner),
)


@given(VALUES)
def test_plain_values_are_what_python_reads(value):
    data = encoded(value)
    assert_same(value, pickle.loads(data))
    assert max(operation.proto for operation, _, _ in pickletools.genops(data)) <= 2
    pickletools.dis(data, io.StringIO())


@pytest.mark.parametrize(
    "value", [0, 255, 256, 65535, 65536, 2**31 - 1, 2**31, -1, -(2**31), -(2**31) - 1, 2**2039, 2**2040, -(2**5000)]
)
def test_ints_at_every_limit(value):
    assert pickle.loads(encoded(value)) == value


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 2000, 2001])
def test_containers_at_the_limits_of_batches(count):
    value = [list(range(count)), dict.fromkeys(range(count)), tuple(range(count))]
    assert pickle.loads(encoded(value)) == value


def test_texts_and_globals_are_written_once():
    data = encoded(
        [["a longer text"] * 3, Call(Name("collections", "OrderedDict"), ()), Name("collections", "OrderedDict")]
    )
    assert data.count(b"a longer text") == data.count(b"OrderedDict") == 1
    found = pickle.loads(data)
    assert found[0] == ["a longer text"] * 3
    assert found[2] is type(found[1])


def test_more_texts_than_one_byte_can_number():
    value = [[str(n) for n in range(1000)]] * 2
    assert pickle.loads(encoded(value)) == value


@pytest.mark.parametrize(
    "text",
    ["", "a b", "os\nsystem", "a\n(S'x'\ntR.", "a\r", "a.", ".a", "a..b", "1a", "é", "a\0", "<locals>", "\udc80"],
)
def test_a_name_is_never_more_than_a_name(text):
    for name in (Name(text, "a"), Name("a", text)):
        with pytest.raises(ptc.UnsupportedTypeError, match="is no name"):
            encoded([Call(name, ())])


def test_once_is_one_object():
    value = Once("key", [1])
    found = pickle.loads(encoded([value, value, Once("key", [1]), Once("other", [1])]))
    assert found[0] is found[1] is found[2]
    assert found[0] is not found[3]


def test_calls_with_items_and_state():
    ordered = Call(Name("collections", "OrderedDict"), (), {"a": 1, 2: "b"})
    namespace = Call(Name("argparse", "Namespace"), (), state={"x": 1}, is_new=True)
    found = pickle.loads(encoded([ordered, namespace]))
    assert list(found[0].items()) == [("a", 1), (2, "b")]
    assert vars(found[1]) == {"x": 1}


def test_persistent_ids():
    class Reader(pickle.Unpickler):
        def persistent_load(self, pid):
            return ["found", pid]

    found = Reader(io.BytesIO(encoded({"a": Found(("storage", 1))}))).load()
    assert found == {"a": ["found", ("storage", 1)]}


@given(st.lists(st.binary(max_size=50), max_size=4))
def test_bytes_that_come_in_pieces(pieces):
    whole = b"".join(pieces)
    text = Call(Name("_codecs", "encode"), (LongBytes(lambda: pieces, len(whole)), "latin1"))
    parts = encode_pickle([text, 1], no_others)
    data = b"".join(pickle_pieces(parts))
    assert pickle.loads(data) == [whole, 1]
    assert len(data) <= most_nbytes(parts)


def test_what_is_not_known_is_asked_about():
    asked = []

    def expand(value):
        asked.append(value)
        return ["expanded"]

    parts = encode_pickle({"a": {1}}, expand)
    assert pickle.loads(b"".join(pickle_pieces(parts))) == {"a": ["expanded"]}
    assert asked == [{1}]
