"""The promise itself: what comes back is what went in."""

from hypothesis import given

import pytreeckpt as ptc
from tests import strategies as some
from tests.exact import assert_same


@given(some.TREES)
def test_decoding_what_was_encoded_gives_the_same_tree(tree):
    assert_same(tree, ptc.decode(ptc.encode(tree), types=some.TYPES))


@given(some.trees_with_sharing())
def test_arrays_are_shared_exactly_where_they_were(tree):
    assert_same(tree, ptc.decode(ptc.encode(tree), types=some.TYPES))
