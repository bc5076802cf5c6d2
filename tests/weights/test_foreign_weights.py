"""Real files of torch and safetensors, read as they are: what their own loaders give, bit by bit, without them."""

import pytest

import pytreeckpt as ptc
from tests.weights.test_real_weights import ABSENT, CACHE, FILES, load

pytestmark = pytest.mark.weights


@pytest.mark.parametrize("name", FILES or [pytest.param("no weights", marks=ABSENT)])
def test_a_real_file_is_read_as_its_own_loader_reads_it(name):
    loaded = load(CACHE / name)
    restored = ptc.restore(CACHE / name, to="torch" if name.endswith(".safetensors") else "auto")
    # The same bytes: the same nodes, types, ties, orders of axes, and every bit of every array.
    assert ptc.encode(restored) == ptc.encode(loaded)
    assert ptc.verify(CACHE / name).ok


@pytest.mark.parametrize("name", FILES or [pytest.param("no weights", marks=ABSENT)])
def test_a_real_file_is_listed_without_reading_its_arrays(name):
    with ptc.open(CACHE / name) as checkpoint:
        leaves = dict(checkpoint.leaves())
        arrays = [leaf for leaf in leaves.values() if isinstance(leaf, ptc.ArrayRef)]
        assert sum(leaf.nbytes for leaf in arrays) > 1000
        largest = max(arrays, key=lambda leaf: leaf.nbytes)
        assert largest[0:1].shape == (1, *largest.shape[1:])
