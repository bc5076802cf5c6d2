"""The contract of an adapter, checked from outside: what it says of its objects, and what comes back of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import numpy as np

from pytreeckpt.adapters import Adapter, find_adapter
from pytreeckpt.api import decode, encode
from pytreeckpt.arrays import AnyArray, ArraySource
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.errors import PytreeckptError, UnsupportedTypeError
from pytreeckpt.expand import make_expand
from pytreeckpt.flatten import flatten
from pytreeckpt.limits import current_limits
from pytreeckpt.objects import ClassKind, Expansion, ObjectType, Record, fields_of
from pytreeckpt.testing.comparison import identical, logical_array
from pytreeckpt.testing.strategies import NUMERIC

Compare = Callable[[Any, Any], list[str]]

# What is the core's, and so no adapter's.
_FOREIGN: Final[tuple[object, ...]] = (
    *(None, True, 1, 1.5, "text", b"bytes", np.float32(1), np.zeros(2), object()),
    *([], [1], {}, {"a": 1}, (), (1, 2), {1}),
)
_OTHER_DTYPES: Final[tuple[Any, ...]] = (
    *(">i4", ">f8", ">c16", "S3", "U2", "V4", "M8[s]", "m8[3h]"),
    [("a", "i4"), ("b", "f8", (2,))],
)
_REFUSALS: Final = (PytreeckptError, TypeError, ValueError)


def check_adapter(
    adapter: Adapter,
    examples: Sequence[object],
    *,
    dtypes: Iterable[AnyDType] | None = None,
    compare: Compare = identical,
) -> None:
    """Show that an adapter keeps its contract. Raises `AssertionError` that lists every breach.

    `examples`: objects of the framework, at least one of each kind that the adapter knows, of different dtypes, shapes
    and layouts. The framework must be imported, and the adapter be found: by its entry point, or `register_adapter`.
    `dtypes`: those of the arrays that `from_array` is tried with; by default, one of every kind that a file may hold.
    `compare`: the differences of two objects, as lines. The default sees what `expand` tells, so it cannot see what
    `expand` forgets; give a comparison of the framework's own that does.

    Of each example: its expansion is well formed, the same each time, and of the framework's own name; it comes back
    the same, also twice in one tree, with `to=` the framework, and into itself as a template; with `to="numpy"` it
    is numpy arrays, plain values and records, without a warning. `build` changes nothing that it is given, and refuses
    fields that make no sense. Of the adapter: what is not the framework's is None, an unknown name and a dtype that
    the framework lacks are refused, and nothing raises other errors than the contract names.
    """
    problems: list[str] = []
    if not examples:
        problems.append("there are no examples, so nothing is shown")
    if find_adapter(adapter.framework) is not adapter:
        problems.append(f"it is not the adapter found for {adapter.framework}: register it, or install its entry point")
    problems += _foreign_problems(adapter)
    problems += _unknown_name_problems(adapter)
    for number, example in enumerate(examples):
        what = f"example {number} ({type(example).__module__}.{type(example).__qualname__})"
        problems += (f"{what}: {problem}" for problem in _example_problems(adapter, example, compare))
    for dtype in (*NUMERIC, *map(np.dtype, _OTHER_DTYPES)) if dtypes is None else dtypes:
        problems += _dtype_problems(adapter, dtype)
    if problems:
        raise AssertionError(f"the adapter for {adapter.framework} breaks its contract:\n  " + "\n  ".join(problems))


def _problems(what: str, check: Callable[[], Iterable[str]], *, allowed: tuple[type[Exception], ...] = ()) -> list[str]:
    """What `check` finds; an error or warning is a problem too, unless it is an allowed error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return list(check())
    except allowed:
        return []
    except Exception as error:  # noqa: BLE001 - whatever an adapter raises is for the report
        return [f"{what} raises {type(error).__name__}: {error}"]


def _foreign_problems(adapter: Adapter) -> Iterator[str]:
    functions: dict[str, Callable[[object], object]] = {"expand": adapter.expand, "template": adapter.template}
    for name, function in functions.items():
        for value in _FOREIGN:
            what = f"{name}({value!r})"
            yield from _problems(what, partial(_taken, what, function, value))


def _taken(what: str, function: Callable[[object], object], value: object) -> list[str]:
    return [] if function(value) is None else [f"{what} is not None"]


def _unknown_name_problems(adapter: Adapter) -> list[str]:
    name = f"{adapter.framework}.NoSuchThing"
    what = f"build({name!r})"

    def build(value: object) -> object:
        return adapter.build(name, {"value": value})

    return _problems(what, partial(_taken, what, build, 1), allowed=_REFUSALS)


def _example_problems(adapter: Adapter, example: object, compare: Compare) -> list[str]:
    problems = _problems("expand", partial(_expansion_problems, adapter, example))
    if problems:
        return problems
    expansion = adapter.expand(example)
    ways: list[dict[str, Any]] = [{"like": example}]
    if isinstance(expansion, ArraySource):
        # Without `to` or `like` it is an array of numpy that comes back.
        ways.append({"to": adapter.framework})
    elif expansion is not None and expansion.type.class_kind in {ClassKind.WRAPPER, ClassKind.RECORD}:
        ways += [{}, {"to": adapter.framework}]
        problems += _problems("build", partial(_build_problems, adapter, example, expansion, compare))
        problems += _nonsense_problems(adapter, expansion.type)
    for options in ways:
        what = "restore(like=itself)" if "like" in options else f"restore({options})"
        problems += _problems(what, partial(_return_problems, what, example, options, compare))
    problems += _problems("filling one in place", partial(_in_place_problems, adapter, example, ways[-1], compare))
    problems += _problems("saving it twice in one tree", partial(_sharing_problems, example, ways[-1]))
    return problems + _problems('restore(to="numpy")', partial(_neutral_problems, adapter, example))


def _expansion_problems(adapter: Adapter, example: object) -> Iterator[str]:
    first, second = adapter.expand(example), adapter.expand(example)
    if first is None or second is None:
        yield "expand gives None, so it cannot be stored"
    elif isinstance(first, Expansion) and isinstance(second, Expansion):
        if first.type != second.type:
            yield f"expand gives {first.type}, and then {second.type}"
        yield from _type_problems(adapter, first.type)
        if len(first.children) != len(first.type.fields):
            yield f"there are {len(first.children)} children for the fields {first.type.fields}"
        yield from _changes("expand", list(first.children), list(second.children))
    else:
        yield from _changes("expand", [first], [second])


def _changes(what: str, before: object, after: object) -> Iterator[str]:
    yield from (f"{what} gives other values the second time: {line}" for line in identical(before, after))


def _type_problems(adapter: Adapter, type_: ObjectType) -> Iterator[str]:
    own = type_.class_kind in {ClassKind.WRAPPER, ClassKind.RECORD}
    if own and not type_.name.startswith(adapter.framework + "."):
        yield f"the name {type_.name} does not begin with {adapter.framework} and a dot"
    if len(set(type_.fields)) != len(type_.fields):
        yield f"the fields {type_.fields} are not distinct"
    if type_.class_kind is ClassKind.WRAPPER and not type_.fields:
        yield "a wrapper has no field for the value that it wraps"


def _build_problems(adapter: Adapter, example: object, expansion: Expansion, compare: Compare) -> Iterator[str]:
    # Arrays as the reader gives them: fresh, in their saved memory order.
    children = [logical_array(child) if isinstance(child, ArraySource) else child for child in expansion.children]
    fields = dict(zip(expansion.type.fields, children, strict=True))
    before = {name: value.copy("K") if isinstance(value, np.ndarray) else value for name, value in fields.items()}
    for _ in range(2):
        built = adapter.build(expansion.type.name, fields)
        yield from (f"build gives something else: {line}" for line in compare(example, built))
    yield from (f"build changes the fields that it is given: {line}" for line in identical(before, fields))


def _nonsense_problems(adapter: Adapter, type_: ObjectType) -> Iterator[str]:
    nonsense: tuple[object, ...] = (None, "nonsense", -1, 1j, [], np.zeros((2, 2), "M8[s]"))
    for value in nonsense:
        # Some values make sense by chance; what counts is that nothing else is raised.
        build = partial(adapter.build, type_.name, dict.fromkeys(type_.fields, value))
        what = f"build of a {type_.name} from {value!r}"
        yield from _problems(what, partial(_run, build), allowed=_REFUSALS)


def _run(function: Callable[[], object]) -> list[str]:
    function()
    return []


def _return_problems(what: str, example: object, options: dict[str, Any], compare: Compare) -> Iterator[str]:
    restored = decode(encode(example), **options)
    yield from (f"{what} gives something else: {line}" for line in compare(example, restored))


def _sharing_problems(example: object, options: dict[str, Any]) -> Iterator[str]:
    tree = {"a": example, "b": [example]}
    # What the adapter tells of identities is not asked here.
    once, twice = (
        len(flatten(None, held, expand=make_expand(), limits=current_limits()).arrays) for held in (example, tree)
    )
    if once != twice:
        yield f"twice in one tree, it is stored as {twice} arrays instead of {once}"
    options = {"like": tree} if "like" in options else options
    yield from (f"twice in one tree: {line}" for line in identical(tree, decode(encode(tree), **options)))


def _in_place_problems(adapter: Adapter, example: object, options: dict[str, Any], compare: Compare) -> Iterator[str]:
    file = encode(example)
    target = decode(file, **options)
    template = adapter.template(target)
    if template is None or template.in_place is None:
        return
    memory = template.in_place.memory
    if memory is not None:
        if (memory.shape, memory.dtype) != (template.shape, template.dtype):
            yield f"the memory of its template is {memory.dtype}{list(memory.shape)}"
            return
        there, strides = memory.__array_interface__["data"][0], template.in_place.strides
        same_strides = all(a == b or n == 1 for a, b, n in zip(memory.strides, strides, memory.shape, strict=True))
        if memory.size and (there != template.in_place.address or not same_strides):
            yield "the memory of its template has another address, or other strides, than the template says"
        memory[...] = np.zeros((), memory.dtype)
    filled = decode(file, like=target)
    if filled is not target:
        yield "restore(like=…) fills it in place and gives another object back"
    yield from (f"filled in place: {line}" for line in compare(example, filled))


def _neutral_problems(adapter: Adapter, example: object) -> Iterator[str]:
    neutral = decode(encode(example), to="numpy")
    for value in _values(neutral):
        if adapter.expand(value) is not None:
            yield f'restore(to="numpy") gives a {type(value).__module__}.{type(value).__qualname__}'
    array = _array_of(adapter.expand(example))
    if array is not None:
        yield from (f'restore(to="numpy") gives something else: {line}' for line in identical(array, neutral))


def _array_of(expansion: ArraySource | Expansion | None) -> AnyArray | None:
    """The array that an expansion is, or wraps."""
    wrapped: object = expansion
    if isinstance(expansion, Expansion) and expansion.type.class_kind is ClassKind.WRAPPER:
        wrapped = expansion.children[0]
    return logical_array(wrapped) if isinstance(wrapped, ArraySource) else None


def _values(tree: object) -> Iterator[object]:
    stack = [tree]
    while stack:
        value = stack.pop()
        yield value
        if isinstance(value, dict):
            stack += value.values()
        elif isinstance(value, list | tuple):
            stack += value
        elif isinstance(value, Record):
            stack += fields_of(value).values()


def _dtype_problems(adapter: Adapter, dtype: AnyDType) -> Iterator[str]:
    raw = np.arange(2 * 3 * dtype.itemsize, dtype=np.uint8)
    if dtype.itemsize == 1 and (dtype.kind == "b" or "int" in dtype.name):
        # Bits beyond those of the number are not the framework's to keep.
        raw %= 2
    items: AnyArray = raw.view(dtype).reshape(2, 3)
    layouts = {"C": items, "Fortran": items.copy("F"), "0-d": items[1, 2:].reshape(()), "empty": items[:0]}
    for layout, array in layouts.items():
        what = f"from_array of {dtype} ({layout})"
        check = partial(_from_array_problems, what, adapter, array)
        yield from _problems(what, check, allowed=(UnsupportedTypeError,))


def _from_array_problems(what: str, adapter: Adapter, array: AnyArray) -> Iterator[str]:
    made = _array_of(adapter.expand(adapter.from_array(array.copy("K"))))
    if made is None:
        yield f"{what} gives something that expand knows no array in"
        return
    # Byte order and memory order are the framework's.
    native: AnyArray = array.astype(array.dtype.newbyteorder("="))
    yield from (f"{what}: {line}" for line in identical(native.copy("C"), made.copy("C")))
