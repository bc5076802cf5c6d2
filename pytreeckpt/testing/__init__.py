"""For the tests of those who use or extend pytreeckpt: drawn trees, exact comparison, and the contract of an adapter.

    from hypothesis import given
    from pytreeckpt import decode, encode, testing

    @given(testing.trees())
    def test_a_tree_comes_back_as_it_was(tree):
        assert testing.identical(tree, decode(encode(tree), types=testing.TYPES)) == []

    def test_the_adapter_keeps_its_contract():
        testing.check_adapter(my_package.ADAPTER, [my_framework.ones(3), ...])

Needs Hypothesis, which nothing else in pytreeckpt imports.
"""

from pytreeckpt.testing.comparison import identical
from pytreeckpt.testing.conformance import check_adapter
from pytreeckpt.testing.strategies import TYPES, arrays, dtypes, floats, integers, keys, scalars, trees

__all__ = [
    "TYPES",
    "arrays",
    "check_adapter",
    "dtypes",
    "floats",
    "identical",
    "integers",
    "keys",
    "scalars",
    "trees",
]
