"""Operations: shapes agree with values, inverses give the bits back, moments follow the gradients of what was done."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
import pytreeckpt.convert
from pytreeckpt.convert.applying import convert_arrays
from pytreeckpt.convert.entries import Spec, inverted, with_cast
from pytreeckpt.convert.leaves import FoundLeaf
from pytreeckpt.convert.operations import (
    INEXACT,
    LOSSY,
    OPERATIONS,
    Affine,
    Cast,
    Concat,
    Crop,
    Drop,
    Fill,
    First,
    Flip,
    Pad,
    Permute,
    PermuteEach,
    Recall,
    Repeat,
    Reshape,
    Split,
    SplitSum,
    Stack,
    SumPair,
    Tie,
    Unstack,
    describe_operations,
    inverse,
    inverse_of,
    of_moment,
)
from pytreeckpt.convert.records import Entry
from pytreeckpt.convert.rules import Convert, RuleError, Step, Waive, resolve
from pytreeckpt.convert.rules import Drop as DropRule
from pytreeckpt.convert.rules import Fill as FillRule
from pytreeckpt.convert.running import run
from pytreeckpt.convert.shapes import result_dtypes, result_shapes
from pytreeckpt.convert.values import cast_to, dtype_named, same_bits
from pytreeckpt.paths import DictKey, Path

DTYPES = [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
EXTENTS = st.integers(0, 3)
SHAPES = st.lists(EXTENTS, min_size=1, max_size=4).map(tuple)


@st.composite
def widths_of(draw, shape, *, inside):
    """How much to pad around a shape, or to crop from it."""
    widths = []
    for extent in shape:
        before = draw(st.integers(0, extent if inside else 2))
        widths.append((before, draw(st.integers(0, extent - before if inside else 2))))
    return tuple(widths)


ALL = tuple(OPERATIONS.values())


@st.composite
def cases(draw, kinds=ALL):
    """An operation and the shapes that it is for."""
    shape = draw(SHAPES)
    axis = draw(st.integers(0, len(shape) - 1))
    count = draw(st.integers(1, 3))
    parts = draw(st.lists(EXTENTS, min_size=1, max_size=3).map(tuple))
    size = int(np.prod(shape))
    options = {
        Permute: lambda: (Permute(tuple(draw(st.permutations(range(len(shape)))))), [shape] * count),
        PermuteEach: lambda: (
            PermuteEach(tuple(tuple(draw(st.permutations(range(len(shape))))) for _ in range(count))),
            [shape] * count,
        ),
        Reshape: lambda: (
            Reshape(shape, draw(st.sampled_from([(size,), (1, size), (*shape, 1), shape[::-1]]))),
            [shape],
        ),
        Flip: lambda: (Flip((axis,)), [shape] * count),
        Split: lambda: (Split(axis, parts), [(*shape[:axis], sum(parts), *shape[axis + 1 :])]),
        Concat: lambda: (Concat(axis, parts), [(*shape[:axis], part, *shape[axis + 1 :]) for part in parts]),
        Stack: lambda: (Stack(axis, count), [shape] * count),
        Unstack: lambda: (Unstack(axis, count), [(*shape[:axis], count, *shape[axis + 1 :])]),
        Pad: lambda: (Pad(draw(widths_of(shape, inside=False)), 1.5), [shape]),
        Crop: lambda: (Crop(draw(widths_of(shape, inside=True)), 1.5), [shape]),
        Affine: lambda: (Affine(draw(st.sampled_from([2.0, -0.3, 7.0])), draw(st.sampled_from([0.0, 1.0]))), [shape]),
        SumPair: lambda: (SumPair(), [shape] * 2),
        SplitSum: lambda: (SplitSum(), [shape]),
        First: lambda: (First(count), [shape] * count),
        Tie: lambda: (Tie(count), [shape] * count),
        Repeat: lambda: (Repeat(count), [shape]),
        Cast: lambda: (Cast("float64", draw(st.sampled_from(["float32", "float16", "bfloat16"]))), [shape]),
        Drop: lambda: (Drop(count), [shape] * count),
        Fill: lambda: (Fill(shape, "float32", 2.0), []),
        Recall: lambda: (Recall(count), []),
    }
    return options[draw(st.sampled_from([kind for kind in kinds if kind in options]))]()


@st.composite
def arrays_for(draw, operation, shapes):
    """Any bits, NaNs and negative zeros too; of the dtype that a cast is of, and equal where they are to be tied."""
    dtype = dtype_named(operation.before) if isinstance(operation, Cast) else draw(st.sampled_from(DTYPES))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    made = [
        generator.integers(0, 256, int(np.prod(shape)) * dtype.itemsize, np.uint8).view(dtype).reshape(shape)
        for shape in shapes
    ]
    if isinstance(operation, Cast | Affine):
        # What would become infinite is refused.
        narrow = dtype_named(operation.after) if isinstance(operation, Cast) else dtype
        most = float(ml_dtypes.finfo(narrow).max) / 16
        with np.errstate(all="ignore"):
            made = [np.where(np.isfinite(array) & (np.abs(array) > most), dtype.type(1.5), array) for array in made]
    return made[:1] * len(made) if isinstance(operation, Tie) else made


EXACT = [kind for kind in OPERATIONS.values() if kind not in {*LOSSY, *INEXACT, Recall}]


def test_each_operation_is_drawn_described_and_either_exact_or_not():
    assert len(OPERATIONS) == len(set(OPERATIONS.values())) == 20
    assert {*EXACT, *LOSSY, *INEXACT, Recall} == set(OPERATIONS.values())
    assert len(EXACT) == 12


@given(st.data())
def test_the_inverse_of_what_only_moves_bits_gives_them_back(data):
    operation, shapes = data.draw(cases(EXACT))
    arrays = data.draw(arrays_for(operation, shapes))
    made = run((operation,), arrays)
    assert [array.shape for array in made] == result_shapes((operation,), shapes)
    again = run((inverse_of(operation),), made)
    assert len(again) == len(arrays)
    assert all(map(same_bits, again, arrays))


@given(st.data())
def test_shapes_are_told_without_values_and_inverses_are_told_back(data):
    operation, shapes = data.draw(cases([kind for kind in OPERATIONS.values() if kind is not Recall]))
    made = run((operation,), data.draw(arrays_for(operation, shapes)))
    assert [array.shape for array in made] == result_shapes((operation,), shapes)
    back = inverse_of(operation)
    if not isinstance(back, Recall):
        assert result_shapes((back,), [array.shape for array in made]) == list(shapes)
    assert describe_operations((operation,))


@given(st.data())
def test_an_entry_and_its_inverse_give_the_bits_back_with_residuals(data):
    operation, shapes = data.draw(cases([kind for kind in OPERATIONS.values() if kind not in {Fill, Recall}]))
    arrays = data.draw(arrays_for(operation, shapes))
    made, residuals = converted((operation,), arrays, "s", "t", {})
    before = {path: array.copy() for path, array in residuals.items()}
    back, _ = converted(inverse((operation,)), made, "t", "s", residuals)
    assert len(back) == len(arrays)
    assert all(map(same_bits, back, arrays))
    for array in (*made, *back):
        array[...] = 0
    assert all(same_bits(residuals[path], array) for path, array in before.items())


@given(st.data())
def test_dtypes_are_told_without_values(data):
    operation, shapes = data.draw(cases([kind for kind in OPERATIONS.values() if kind is not Recall]))
    arrays = data.draw(arrays_for(operation, shapes))
    made = run((operation,), arrays)
    assert [array.dtype for array in made] == result_dtypes((operation,), [array.dtype for array in arrays])


@given(st.data())
def test_the_inverse_of_the_inverse_is_the_operation(data):
    # A scale may differ in its last bit.
    operation, _ = data.draw(cases([kind for kind in OPERATIONS.values() if kind is not Affine]))
    assert inverse_of(inverse_of(operation)) == operation


def converted(operations, arrays, source, target, residuals, *, quantity="parameter", specs=None):
    sources = {named(source, number): array for number, array in enumerate(arrays)}
    n_targets = max((int(text[1:]) + 1 for text in residuals), default=0)
    shapes = [array.shape for array in arrays]
    if not any(isinstance(operation, Recall) for operation in operations):
        n_targets = len(result_shapes(operations, shapes))
    targets = tuple(named(target, number) for number in range(n_targets))
    entry = Entry(tuple(sources), targets, operations, quantity, "a test")
    values = {path: FoundLeaf(path, array, array.shape, array.dtype) for path, array in sources.items()}
    given_specs = {path: Spec(array.shape, array.dtype) for path, array in sources.items()}
    found, kept = convert_arrays([entry], values, given_specs, specs or {}, residuals=residuals, own={})
    return [found[path] for path in targets], kept


def named(letter, number):
    return Path([DictKey(f"{letter}{number}")])


def test_what_was_made_and_what_is_kept_is_no_array_of_the_callers():
    given_arrays = [np.arange(3.0), np.ones(3)]
    made, residuals = converted((SumPair(),), given_arrays, "s", "t", {})
    same, _ = converted((), [given_arrays[0]], "s", "t", {})
    for array in (*made, *same, *residuals.values()):
        assert not any(np.shares_memory(array, each) for each in given_arrays)


def test_after_more_training_the_way_back_keeps_what_only_the_residual_knows():
    w, b = np.arange(3.0), np.array([1e9, 1.0, -2.0])
    (total,), residuals = converted((SumPair(),), [w, b], "s", "t", {})
    back, _ = converted(inverse((SumPair(),)), [total + 1], "t", "s", residuals)
    assert same_bits(back[1], b)
    assert np.array_equal(back[0] + back[1], total + 1)
    whole = np.arange(5.0)
    (inner,), residuals = converted((Crop(((1, 2),)),), [whole], "s", "t", {})
    (back,), _ = converted(inverse((Crop(((1, 2),)),)), [inner * 10], "t", "s", residuals)
    assert back.tolist() == [0.0, 10.0, 20.0, 3.0, 4.0]


def test_what_is_made_is_no_residual_either():
    (made,), residuals = converted((First(2),), [np.ones(3), np.zeros(3)], "s", "t", {})
    made[...] = 7
    assert residuals["s0"].tolist() == [1.0, 1.0, 1.0]
    back, _ = converted((Repeat(2, equal=False),), [np.ones(3)], "t", "s", residuals)
    recalled, _ = converted((Recall(2),), [], "t", "s", residuals)
    for array in (*back, *recalled):
        array[...] = 7
    assert [residuals[path].tolist() for path in ("s0", "s1")] == [[1.0] * 3, [0.0] * 3]


@pytest.mark.parametrize("residual", [np.ones((5, 5), np.int64), np.ones(2), np.ones(3, np.float32)])
@pytest.mark.parametrize(("operations", "arrays"), [((Recall(1),), []), ((Cast("float32", "float64"),), [np.float32])])
def test_a_residual_of_another_shape_or_dtype_is_refused(residual, operations, arrays):
    specs = {named("s", 0): Spec((3,), np.dtype(np.float64))}
    given_arrays = [np.ones(3, dtype) for dtype in arrays]
    with pytest.raises(ptc.ConversionError, match="of another plan"):
        converted(operations, given_arrays, "t", "s", {"s0": residual}, specs=specs)
    (back,), _ = converted(operations, given_arrays, "t", "s", {"s0": np.ones(3)}, specs=specs)
    assert back.tolist() == [1.0, 1.0, 1.0]


def test_what_is_made_is_what_the_plan_says():
    for spec in (Spec((2,), np.dtype(np.float64)), Spec((3,), np.dtype(np.float32))):
        with pytest.raises(ptc.ConversionError, match="comes to it, and not"):
            converted((), [np.ones(3)], "s", "t", {}, specs={named("t", 0): spec})


def test_trees_share_no_memory_with_residuals_or_with_what_is_waived_of_the_target():
    ours = {name: torch.full((2,), float(number)) for number, name in enumerate(("a", "b"), 1)}
    target = {"params": {name: np.zeros(2, dtype) for name, dtype in (("a", np.float16), ("own", np.float32))}}
    rules = [Convert("a", "a"), DropRule("b"), Waive(missing="own")]
    plan = ptc.convert.plan(ours, target, rules=rules, cast=True)
    made, residuals = plan.apply(ours)
    assert set(residuals) == {"b"}
    made["params"]["own"][...] = 7
    assert target["params"]["own"].tolist() == [0.0, 0.0]
    kept = {"a": np.ones(2, np.float32), "b": residuals["b"]}
    back = plan.invert().apply(made, residuals=kept).tree
    for tensor in back.values():
        tensor.fill_(77)
    assert [kept[name].tolist() for name in "ab"] == [[1.0, 1.0], [2.0, 2.0]]
    assert [tensor.tolist() for tensor in ours.values()] == [[1.0, 1.0], [2.0, 2.0]]


def applied(entries, values, *, dtype=np.float64, shape=(2,)):
    """The arrays that entries make of leaves, all of the same spec."""
    leaves = {path: FoundLeaf(path, value, np.shape(value), np.asarray(value).dtype) for path, value in values.items()}
    specs = {path: Spec(shape, np.dtype(dtype)) for entry in entries for path in (*entry.sources, *entry.targets)}
    return convert_arrays(entries, leaves, specs, specs, residuals={}, own={})[0]


def test_a_number_stands_for_no_array_and_has_the_dtype_that_was_planned():
    entry = Entry((named("s", 0),), (named("t", 0),), (), "option", "a test")
    with pytest.raises(ptc.ConversionError, match="and not float64"):
        applied([entry], {named("s", 0): 3.0})
    (made,) = applied([entry], {named("s", 0): 3}, shape=()).values()
    assert made.dtype == np.float64
    with pytest.raises(ptc.ConversionError, match="cannot hold"):
        applied([entry], {named("s", 0): 0.5}, dtype=np.int64, shape=())


def test_leaves_that_have_parted_do_not_become_one():
    def entries(quantity):
        return [Entry((named("s", number),), (named("t", 0),), (), quantity, "a test") for number in range(2)]

    same = {named("s", 0): np.ones(2), named("s", 1): np.ones(2)}
    parted = {named("s", 0): np.ones(2), named("s", 1): np.zeros(2)}
    assert applied(entries("first moment"), same)[named("t", 0)].tolist() == [1.0, 1.0]
    with pytest.raises(ptc.ConversionError, match="parted"):
        applied(entries("first moment"), parted)
    # Several may count the steps of one parameter; the last one is that of its moments.
    assert applied(entries("count"), parted)[named("t", 0)].tolist() == [0.0, 0.0]


# What nobody declared is not lost.


@pytest.mark.parametrize("value", [7.0, float("nan")])
def test_what_a_layout_would_fill_is_not_dropped_if_it_is_something_else(value):
    implied = Fill((2,), "float64", 0.0, implied=True)
    with pytest.raises(ptc.ConversionError, match='other values than 0, and .* declare Fill\\("\\*\\*/s0", 0\\)'):
        converted(inverse((implied,)), [np.array([0.0, value])], "s", "t", {})
    assert converted(inverse((implied,)), [np.array([0.0, -0.0])], "s", "t", {})[0] == []
    declared = Fill((2,), "float64", 0.0)
    _, residuals = converted(inverse((declared,)), [np.array([0.0, value])], "s", "t", {})
    assert same_bits(residuals["s0"], np.array([0.0, value]))


@pytest.mark.parametrize(
    ("operation", "value"),
    [
        (Cast("float32", "float16"), 1e6),
        (Cast("float32", "float8_e4m3fn"), -1e6),
        (Cast("float32", "bfloat16"), np.finfo(np.float32).max),
        (Affine(1e10), 1e30),
        (Affine(1.0, 3e38), 3e38),
    ],
)
def test_finite_values_stay_finite(operation, value):
    array = np.array([1.0, value, np.inf, np.nan], np.float32)
    with pytest.raises(ValueError, match="1 finite values are beyond"):
        run((operation,), [array])
    (made,) = run((operation,), [np.array([0.5, np.nan], np.float32)])
    assert np.isfinite(made).tolist() == [True, False]


@pytest.mark.parametrize("operation", [Cast("float32", "float16"), Affine(1e-30)])
def test_second_moments_do_not_become_zero(operation):
    array = np.array([0.0, 1.4e-20, 1.0], np.float32)
    with pytest.raises(ptc.ConversionError, match="1 values are too small"):
        converted((operation,), [array], "s", "t", {}, quantity="second moment")
    for quantity in ("parameter", "first moment"):
        (made,), _ = converted((operation,), [array], "s", "t", {}, quantity=quantity)
        assert np.count_nonzero(made) == 1


@pytest.mark.parametrize(
    "operation",
    [
        Fill((2,), "int32", float("nan")),
        Fill((2,), "int32", float("inf")),
        Fill((2,), "int8", 300.0),
        Fill((2,), "uint8", -1.0),
        Fill((2,), "bool", 0.5),
        Fill((2,), "float16", 1e6),
    ],
)
def test_a_fill_is_of_a_value_that_its_dtype_holds(operation):
    with pytest.raises(ValueError, match="cannot hold|are beyond"):
        run((operation,), [])
    with pytest.raises(ValueError, match="cannot hold|are beyond"):
        run((Pad(((1, 0),), operation.value),), [np.zeros(1, operation.dtype)])


def test_what_is_filled_has_the_dtype_that_it_is_to_have():
    path, bfloat16 = named("t", 0), np.dtype(ml_dtypes.bfloat16)
    entry = Entry((), (path,), (Fill((2,), "float32", 1.0, implied=True),), "parameter", "a test")
    changed, problem = with_cast(entry, {}, {path: Spec((2,), bfloat16)}, cast=True)
    assert problem is None
    assert changed.operations == (Fill((2,), "bfloat16", 1.0, implied=True),)
    back, _ = with_cast(inverted(changed), {path: Spec((2,), np.dtype(np.float64))}, {}, cast=True)
    assert back.operations == (Drop(1, Fill((2,), "float64", 1.0, implied=True)),)


@pytest.mark.parametrize(
    ("name", "argument", "message"),
    [
        ("affine", None, "scale, offset or both"),
        ("affine", 3, "scale, offset or both"),
        ("affine", {}, "scale, offset or both"),
        ("affine", {"scal": 2}, "it has offset, scale, and not scal"),
        ("affine", {"scale": 2, "shift": 1}, "and not scale, shift"),
        ("pad", {"widths": [[0, 1]], "val": 1}, "it has value, widths"),
        ("split", {"axis": 0, "part": 2, "sizes": [1, 1]}, "it has axis, parts, sizes"),
        ("stack", {"axes": 1}, "it has axis"),
        ("permute", {"axes": [0]}, "it has no fields"),
        ("transpose", [1, 0], "it is given nothing"),
        ("tie", 2, "it is given nothing"),
    ],
)
def test_a_step_is_given_what_it_has_and_nothing_else(name, argument, message):
    with pytest.raises(RuleError, match=message):
        resolve([Step(name, argument)], [(2,)])
    assert resolve([Step("affine", {"scale": 2}), Step("transpose")], [(2,)]) == (Affine(2.0), Permute((0,)))


# Moments. For y = f(x), a loss of y has gradients by x; those by y are what the operation on gradients makes of them.


@given(st.data())
def test_gradients_go_as_first_moments_do(data):
    linear = [Permute, Reshape, Flip, Split, Concat, Stack, Unstack, Affine, Pad]
    operation, shapes = data.draw(cases(linear))
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    x = [generator.normal(size=shape) for shape in shapes]
    y = run((operation,), x)
    by_y = [generator.normal(size=array.shape) for array in y]
    # The operation is affine: a difference in x, carried through it, has the same product with the gradients.
    step = [generator.normal(size=shape) for shape in shapes]
    moved = run((operation,), [a + b for a, b in zip(x, step)])
    expected = sum(float(np.sum(g * (after - before))) for g, after, before in zip(by_y, moved, y))
    by_x = run((inverse_of(of_moment(operation, 1)),), by_y)
    found = sum(float(np.sum(g * s)) for g, s in zip(by_x, step))
    assert abs(found - expected) <= 1e-9 * (1 + abs(expected))
    assert len(run((of_moment(operation, 1),), by_x)) == len(by_y)


@pytest.mark.parametrize("scale", [2.0, -0.3, 7.0])
def test_moments_of_what_is_scaled_are_divided_by_powers_of_the_scale(scale):
    m = np.array([1.0, -2.0])
    assert np.allclose(run((of_moment(Affine(scale, 3.0), 1),), [m])[0], m / scale, rtol=1e-15)
    assert np.allclose(run((of_moment(Affine(scale, 3.0), 2),), [m])[0], m / scale**2, rtol=1e-15)


def test_a_sum_has_the_moments_of_either_of_both():
    m = np.array([1.0, -2.0])
    assert of_moment(SumPair(), 1) == of_moment(SumPair(), 2) == First(2)
    assert [same_bits(each, m) for each in run((of_moment(SplitSum(), 2),), [m])] == [True, True]


def test_what_is_padded_has_moments_of_zero():
    (padded,) = run((of_moment(Pad(((0, 2),), 5.0), 1),), [np.ones(1)])
    assert padded.tolist() == [1.0, 0.0, 0.0]


# Refusals.


@given(st.data())
def test_shapes_that_do_not_fit_are_refused_in_words(data):
    operation, shapes = data.draw(cases([Permute, Reshape, Split, Concat, Stack, Unstack, Pad, SumPair, Tie, First]))
    wrong = [*shapes, (99,)]
    if isinstance(operation, Permute | Reshape | Pad):
        wrong = [(*shape, 2) for shape in shapes]
    if isinstance(operation, Split | Unstack):
        wrong = shapes * 2
    with pytest.raises(ValueError, match="does not go with"):
        run((operation,), [np.zeros(shape) for shape in wrong])


@pytest.mark.parametrize(
    ("operations", "arrays", "message"),
    [
        ((Tie(2),), [np.zeros(2), np.ones(2)], "should be equal"),
        ((Tie(2),), [np.zeros(2), -np.zeros(2)], "should be equal"),
        ((Concat(0, (1, 1)),), [np.zeros(1), np.zeros(1, np.float32)], "dtypes differ"),
        ((Cast("int64", "int8"),), [np.array([300])], "cannot hold"),
        ((Recall(1),), [], "dropped"),
        ((Affine(2.0),), [np.array([1])], "is for floats"),
    ],
)
def test_values_that_do_not_fit_are_refused(operations, arrays, message):
    with pytest.raises(ValueError, match=message):
        run(operations, arrays)


@pytest.mark.parametrize(
    "operation",
    [
        Split(-1, (1, 1)),
        Split(0, ()),
        Split(0, (3, -1)),
        Concat(-2, (2,)),
        Concat(0, ()),
        Stack(-1, 1),
        Stack(0, 0),
        Unstack(-1, 2),
        Repeat(0),
        Repeat(-1),
        Repeat(1 << 60),
        Tie(0),
        First(0),
        Pad(((-1, 1),)),
        Crop(((-1, 1),)),
        Flip((-1,)),
        Permute((-1,)),
        Permute((1, 0)),
        Reshape((2,), (3,)),
        Reshape((2,), (-1, -2)),
        Drop(2),
        Fill((2,), "float32"),
        Drop(1, Fill((3,), "float32")),
        # They have no way back.
        Affine(0.0),
        Affine(1e-320),
        Affine(1e-300, 1e300),
        Affine(float("nan")),
        Affine(1.0, float("inf")),
    ],
)
def test_operations_that_make_no_sense_are_refused_in_words(operation):
    with pytest.raises(ValueError, match="does not go with"):
        run((operation,), [np.zeros(2)])


def test_dtypes_are_a_closed_list():
    assert dtype_named("bfloat16") == np.dtype(ml_dtypes.bfloat16)
    for text in ("object", "U8", "f4", "<f4", "V8", "float32, float64", "datetime64[s]", ""):
        with pytest.raises(ValueError, match="no dtype"):
            dtype_named(text)


def test_small_floats_are_scaled_in_their_own_dtype():
    array = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    (made,) = run((Affine(2.0, 1.0),), [array])
    assert made.dtype == array.dtype
    assert made.astype(float).tolist() == [4.0, -3.0]
    assert cast_to(array, np.dtype(np.float32)).tolist() == [1.5, -2.0]


def test_operations_are_values():
    for operation in (Permute((1, 0)), Reshape((4,), (2, 2)), Fill((2,), "float32")):
        assert dataclasses.replace(operation) == operation
        assert len({operation, dataclasses.replace(operation)}) == 1


def test_the_advice_for_what_has_no_place_is_a_rule_that_keeps_it():
    weights = {"params": {"fc": {"kernel": np.ones((3, 2), np.float32), "bias": np.full(2, 7.0, np.float32)}}}
    module = torch.nn.ModuleDict({"fc": torch.nn.Linear(3, 2, bias=False)})
    plan = ptc.convert.plan(weights, module)
    with pytest.raises(ptc.ConversionError) as info:
        plan.apply(weights)
    assert 'Fill("**/fc/bias", 0)' in info.value.mismatched[0]
    plan = ptc.convert.plan(weights, module, rules=[FillRule("**/fc/bias", 0)])
    made, residuals = plan.apply(weights)
    assert residuals["params/fc/bias"].tolist() == [7.0, 7.0]
    back = plan.invert().apply(made, residuals=residuals, to="numpy").tree
    assert back["params"]["fc"]["bias"].tolist() == [7.0, 7.0]
