"""Generators of Python and numpy: what they draw after they were restored is what they would have drawn."""

import copy
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt import StructureMismatchError
from pytreeckpt.training import capture_globals, capture_objects, generator_roles, plan_globals, restore_objects

ROLES = generator_roles()
BIT_GENERATORS = [np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64]

PYTHON_DRAWS = {
    "random": lambda generator: generator.random(),
    "gauss": lambda generator: generator.gauss(0, 1),
    "bits": lambda generator: generator.getrandbits(70),
    "choice": lambda generator: generator.choices(range(9), k=3),
    "shuffle": lambda generator: generator.shuffle(list(range(9))),
}
NUMPY_DRAWS = {
    "normal": lambda generator: generator.standard_normal(3).tolist(),
    "float32": lambda generator: generator.random(3, np.float32).tolist(),
    # One number of 32 bits leaves the other half of 64 for the next time.
    "uint32": lambda generator: int(generator.integers(0, 2**32, dtype=np.uint32)),
    "small": lambda generator: generator.integers(0, 7, 3, np.int8).tolist(),
    "permutation": lambda generator: generator.permutation(9).tolist(),
    "gamma": lambda generator: generator.gamma(2.0),
    "spawn": lambda generator: generator.spawn(2)[1].random(),
    "jumped": lambda generator: generator.bytes(3),
}
LEGACY_DRAWS = {
    # The second of two is kept for the next time.
    "gauss": lambda generator: generator.standard_normal(),
    "uniform": lambda generator: generator.random_sample(3).tolist(),
    "integers": lambda generator: generator.randint(0, 1 << 40, 2).tolist(),
    "shuffle": lambda generator: generator.permutation(9).tolist(),
}


def drawn(generator, draws, names):
    return [draws[name](generator) for name in names]


def captured(**generators):
    tree = capture_objects(generators, ROLES, framework="none", version="1")
    return ptc.decode(ptc.encode(tree))


def restore(tree, **generators):
    return restore_objects(tree, generators, ROLES, strict=True)


def some(draws):
    return st.lists(st.sampled_from(sorted(draws)), max_size=8)


def goes_on(generator, other, draws, before, after, in_between):
    """Whether `other` draws what `generator` would, wherever each of them was."""
    drawn(generator, draws, before)
    drawn(other, draws, in_between)
    tree = captured(it=generator)
    expected = drawn(generator, draws, after)
    for target in (other, generator):
        assert restore(tree, it=target)["it"] is target
        assert drawn(target, draws, after) == expected
    # What was restored does not change what it came from.
    restore(tree, it=other)
    assert drawn(other, draws, after) == expected


@given(st.integers(), some(PYTHON_DRAWS), some(PYTHON_DRAWS), some(PYTHON_DRAWS))
def test_a_generator_of_python_goes_on(seed, before, after, in_between):
    goes_on(random.Random(seed), random.Random(), PYTHON_DRAWS, before, after, in_between)


@given(
    st.sampled_from(BIT_GENERATORS),
    st.integers(0, 1 << 200) | st.lists(st.integers(0, 1 << 32), min_size=1, max_size=3) | st.none(),
    some(NUMPY_DRAWS),
    some(NUMPY_DRAWS),
    some(NUMPY_DRAWS),
)
def test_a_generator_of_numpy_goes_on_with_its_children(cls, seed, before, after, in_between):
    generators = np.random.Generator(cls(seed)), np.random.Generator(cls(3))
    goes_on(*generators, NUMPY_DRAWS, before, after, in_between)


@given(st.integers(0, 5), st.sampled_from(BIT_GENERATORS), some(NUMPY_DRAWS), some(NUMPY_DRAWS))
def test_a_spawned_generator_goes_on_with_its_own_children(place, cls, before, after):
    parent = np.random.Generator(cls(np.random.SeedSequence(5, pool_size=8)))
    child = parent.spawn(place + 1)[place]
    goes_on(child, np.random.Generator(cls(0)), NUMPY_DRAWS, before, after, [])


@given(st.sampled_from(BIT_GENERATORS), st.integers(0, 99), some(LEGACY_DRAWS), some(LEGACY_DRAWS), some(LEGACY_DRAWS))
def test_a_legacy_generator_goes_on_with_the_second_of_two_normals(cls, seed, before, after, in_between):
    generators = np.random.RandomState(cls(seed)), np.random.RandomState(cls(99))
    goes_on(*generators, LEGACY_DRAWS, before, after, in_between)


@given(some(PYTHON_DRAWS), some(LEGACY_DRAWS), some(PYTHON_DRAWS), some(LEGACY_DRAWS))
def test_the_global_generators_go_on(before, numpys_before, after, numpys_after):
    drawn(random, PYTHON_DRAWS, before)
    drawn(np.random, LEGACY_DRAWS, numpys_before)
    states = ptc.decode(ptc.encode(capture_globals()))
    expected = drawn(random, PYTHON_DRAWS, after), drawn(np.random, LEGACY_DRAWS, numpys_after)
    for _ in range(2):
        for part in plan_globals("rng", states):
            assert not part.differences.mismatched
            part.apply()
        assert (drawn(random, PYTHON_DRAWS, after), drawn(np.random, LEGACY_DRAWS, numpys_after)) == expected


def test_a_seed_that_is_no_seed_sequence_is_left_as_it_is():
    class Seed(np.random.bit_generator.ISpawnableSeedSequence):
        def generate_state(self, n_words, dtype=np.uint32):
            return np.arange(1, n_words + 1, dtype=dtype)

        def spawn(self, n_children):
            return [Seed() for _ in range(n_children)]

    generator = np.random.Generator(np.random.PCG64(Seed()))
    tree = captured(it=generator)
    assert "seed" not in tree["it"]
    expected = generator.random()
    seed = generator.bit_generator.seed_seq
    restore(tree, it=generator)
    assert generator.random() == expected
    assert generator.bit_generator.seed_seq is seed


MAKERS = {
    "numpy.random.PCG64": lambda: np.random.default_rng(1),
    "numpy.random.MT19937": lambda: np.random.Generator(np.random.MT19937(1)),
    "numpy.random.Philox": lambda: np.random.Generator(np.random.Philox(1)),
    "numpy.random.RandomState": lambda: np.random.RandomState(1),
    "random.Random": lambda: random.Random(1),
}


def state_of(generator):
    return repr(captured(it=generator)["it"])


@pytest.mark.parametrize("saved", MAKERS)
@pytest.mark.parametrize("wanted", MAKERS)
def test_the_state_of_another_class_is_an_error(saved, wanted):
    tree, target = captured(it=MAKERS[saved]()), MAKERS[wanted]()
    if saved == wanted:
        restore(tree, it=target)
        return
    before = state_of(target)
    with pytest.raises(StructureMismatchError, match=f"it: this is a {wanted}, the checkpoint has a {saved}"):
        restore(tree, it=target)
    assert state_of(target) == before


def test_a_legacy_generator_on_other_bits_is_an_error():
    tree = captured(it=np.random.RandomState(np.random.PCG64(1)))
    with pytest.raises(StructureMismatchError, match="it: this runs on MT19937, the checkpoint PCG64"):
        restore(tree, it=np.random.RandomState(1))


JUNK = st.sampled_from(
    [None, True, -1, 2**200, 1.5, "text", [], {}, (), ("x",), np.zeros(3), np.array("x"), (3, (1,), 0)]
)


def _damage(draw, state):
    while True:
        key = draw(st.sampled_from(sorted(state)))
        if isinstance(state[key], dict) and draw(st.booleans()):
            state = state[key]
            continue
        if draw(st.booleans()):
            del state[key]
        else:
            state[key] = draw(JUNK)
        return


@given(st.sampled_from(sorted(MAKERS)), st.data())
def test_a_damaged_state_is_restored_or_an_error_and_changes_nothing(name, data):
    tree = captured(it=MAKERS[name](), other=MAKERS["random.Random"]())
    tree = copy.deepcopy(tree)
    _damage(data.draw, tree["it"])
    target, other = MAKERS[name](), random.Random(2)
    before = state_of(target), state_of(other)
    try:
        restore(tree, other=other, it=target)
    except StructureMismatchError:
        assert (state_of(target), state_of(other)) == before
