"""A framework that pytreeckpt has never heard of joins with its own adapter, and the kit finds what is wrong in one."""

import sys
import types
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import pytreeckpt
from pytreeckpt import (
    Adapter,
    ClassKind,
    Expansion,
    LeafTemplate,
    ObjectType,
    UnsupportedTypeError,
    decode,
    encode,
    source_of,
    testing,
)
from pytreeckpt import adapters as adapter_registry


class Grid:
    """An array of the toy framework, on a device, of float32, float64 or int32."""

    def __init__(self, values, device="main"):
        self.values = values
        self.device = device


class Scale:
    """A small object of the toy framework."""

    def __init__(self, factor, unit):
        self.factor = factor
        self.unit = unit


GRID = ObjectType(ClassKind.WRAPPER, "toy.Grid", ("data", "device"))
SCALE = ObjectType(ClassKind.RECORD, "toy.Scale", ("factor", "unit"))
DTYPES: set[Any] = {np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int32)}


def expand(value):
    if isinstance(value, Grid):
        return Expansion(GRID, [source_of(value.values, identity=("toy", id(value.values))), value.device])
    if isinstance(value, Scale):
        return Expansion(SCALE, [value.factor, value.unit], lambda new: Scale(*new))
    return None


def build(name, fields):
    if name == "toy.Grid" and isinstance(fields["device"], str):
        data = fields["data"]
        return Grid(data.values if isinstance(data, Grid) else from_array(data).values, fields["device"])
    if name == "toy.Scale" and isinstance(fields["factor"], float):
        return Scale(fields["factor"], fields["unit"])
    raise TypeError(f"no {name} of these fields")


def from_array(array):
    if not isinstance(array, np.ndarray):
        raise TypeError("no array")
    native = array.dtype.newbyteorder("=")
    if native not in DTYPES:
        raise UnsupportedTypeError(f"toy has no dtype for numpy's {array.dtype}")
    return Grid(array.astype(native, copy=False))


def template(value):
    if not isinstance(value, Grid):
        return None
    return LeafTemplate(value.values.shape, value.values.dtype, lambda array: Grid(array, value.device))


TOY = Adapter("toy", expand, build, from_array, template)


def examples():
    grid = np.arange(6, dtype=np.float32).reshape(2, 3)
    return [Grid(grid), Grid(grid.T, "side"), Grid(np.zeros((0, 2), np.int32)), Scale(2.0, "m")]


def compare(a, b):
    if isinstance(a, Grid) and isinstance(b, Grid):
        devices = [] if a.device == b.device else ["device"]
        return devices + testing.identical(a.values, b.values)
    same = isinstance(b, Scale) and (a.factor, a.unit) == (b.factor, b.unit)
    return [] if same else [f"{a!r} and {b!r}"]


@pytest.fixture(autouse=True)
def _toy_framework(monkeypatch):
    monkeypatch.setitem(sys.modules, "toy", types.ModuleType("toy"))
    monkeypatch.setattr(adapter_registry, "_added", {})
    pytreeckpt.register_adapter(TOY)


def test_a_correct_adapter_keeps_the_contract():
    testing.check_adapter(TOY, examples(), compare=compare)
    testing.check_adapter(TOY, examples())


def test_objects_of_the_framework_come_back_and_read_without_it(monkeypatch):
    tree = {"grid": Grid(np.ones(3)), "scale": Scale(2.0, "m")}
    data = encode(tree)
    restored = decode(data)
    assert compare(tree["grid"], restored["grid"]) == []
    assert compare(tree["scale"], restored["scale"]) == []
    monkeypatch.setattr(adapter_registry, "_added", {})
    with pytest.warns(UserWarning, match="2 objects of toy") as warned:
        neutral = decode(data)
    assert len(warned) == 1
    assert neutral["grid"].tolist() == [1, 1, 1]
    assert neutral["scale"].unit == "m"


def test_an_array_becomes_one_of_the_framework():
    assert isinstance(decode(encode(np.ones(3)), to="toy"), Grid)
    with pytest.raises(UnsupportedTypeError, match="toy has no dtype"):
        decode(encode(np.ones(3, np.float16)), to="toy")


def test_an_array_without_attributes_needs_no_wrapper():
    def expand_plainly(value):
        return source_of(value.values, identity=("toy", id(value.values))) if isinstance(value, Grid) else expand(value)

    plain = replace(TOY, expand=expand_plainly)
    pytreeckpt.register_adapter(plain)
    testing.check_adapter(plain, examples(), compare=compare_values)
    assert testing.identical(Grid(np.ones(2)), Grid(np.ones(2))) == []
    assert testing.identical(Grid(np.ones(2)), Grid(np.zeros(2)))
    assert testing.identical(Grid(np.ones(2)), Grid(np.ones(2, np.float32))) == ["the root: dtypes float64 and float32"]


def compare_values(a, b):
    return testing.identical(a.values, b.values) if isinstance(a, Grid) else compare(a, b)


def _changing_its_mind(value):
    expansion = expand(value)
    if isinstance(value, Scale):
        value.unit = value.unit + "m"
        return replace(expansion, type=replace(SCALE, fields=("factor", value.unit)))
    return expansion


def _repeating_a_field(value):
    expansion = expand(value)
    return expansion and replace(expansion, type=replace(expansion.type, fields=expansion.type.fields[:1] * 2))


def _wrapping_nothing(value):
    expansion = expand(value)
    return expansion and Expansion(ObjectType(ClassKind.WRAPPER, "toy.Nothing", ()), [])


def _taking_records(value):
    return Expansion(SCALE, [1.0, "m"]) if isinstance(value, pytreeckpt.Record) else expand(value)


def _changing_a_plain_array(value):
    if isinstance(value, Grid):
        value.values = value.values + 1
        return source_of(value.values)
    return expand(value)


def _forgetting(value):
    expansion = expand(value)
    if isinstance(value, Grid):
        return Expansion(GRID, [expansion.children[0], "main"])
    return expansion


def _unpure(value):
    if isinstance(value, Grid):
        value.values = value.values.copy() + 1
    return expand(value)


def _sharing_nothing(value):
    expansion = expand(value)
    if isinstance(value, Grid):
        return Expansion(GRID, [replace(expansion.children[0], identity=object()), value.device])
    return expansion


def _misnamed(value):
    expansion = expand(value)
    return expansion and replace(expansion, type=replace(expansion.type, name="other.Thing"))


def _too_few_children(value):
    expansion = expand(value)
    return expansion and replace(expansion, children=expansion.children[:1])


def _greedy(value):
    return Expansion(SCALE, [1.0, "m"]) if value is None else expand(value)


def _failing(value):
    raise KeyError(value)


def _warning(array):
    warnings.warn("a warning", UserWarning, stacklevel=1)
    return from_array(array)


def _casting(array):
    return from_array(array.astype(np.float32) if array.dtype == np.float64 else array)


def _truncating(array):
    return from_array(np.asarray(array).astype(np.int32) if np.asarray(array).dtype.kind == "i" else array)


def _refusing_wrongly(array):
    try:
        return from_array(array)
    except UnsupportedTypeError as error:
        raise RuntimeError(str(error)) from error


def _changing(name, fields):
    if isinstance(fields.get("data"), np.ndarray):
        fields["data"] += 1
        fields["data"] -= 2
    return build(name, fields)


def _trusting(name, fields):
    if name == "toy.Scale":
        return Scale(fields["factor"].real, fields["unit"])
    return build(name, fields)


def _accepting_anything(name, fields):
    return build(name, fields) if name in {"toy.Grid", "toy.Scale"} else "something"


def _always_on_main(value):
    wanted = template(value)
    return wanted and replace(wanted, place=Grid)


BROKEN = {
    "expand forgets the device": ({"expand": _forgetting}, "device"),
    "expand changes the object": ({"expand": _unpure}, "the second time"),
    "expand gives a new identity each time": ({"expand": _sharing_nothing}, "twice in one tree"),
    "expand names things of others": ({"expand": _misnamed}, "does not begin with toy and a dot"),
    "expand gives too few children": ({"expand": _too_few_children}, "1 children for the fields"),
    "expand changes its mind about the type": ({"expand": _changing_its_mind}, "and then"),
    "expand changes a plain array": ({"expand": _changing_a_plain_array}, "the second time"),
    "expand repeats a field": ({"expand": _repeating_a_field}, "are not distinct"),
    "expand wraps nothing": ({"expand": _wrapping_nothing}, "no field for the value"),
    "expand takes records": ({"expand": _taking_records}, r'to="numpy"\) gives a pytreeckpt'),
    "expand takes None": ({"expand": _greedy}, r"expand\(None\) is not None"),
    "expand fails": ({"expand": _failing}, "raises KeyError"),
    "expand gives None": ({"expand": lambda value: None}, "cannot be stored"),
    "from_array warns": ({"from_array": _warning}, "raises UserWarning"),
    "from_array casts": ({"from_array": _casting}, "dtypes float64 and float32"),
    "from_array truncates": ({"from_array": _truncating}, "dtypes int64 and int32"),
    "from_array refuses with another error": ({"from_array": _refusing_wrongly}, "raises RuntimeError"),
    "from_array gives something else": ({"from_array": lambda array: 5}, "expand knows no array in"),
    "build changes its fields": ({"build": _changing}, "build changes the fields"),
    "build fails on nonsense": ({"build": _trusting}, "raises AttributeError"),
    "build makes something of an unknown name": (
        {"build": _accepting_anything},
        r"build\('toy.NoSuchThing'\) is not None",
    ),
    "template forgets the device": ({"template": _always_on_main}, "device"),
    "template fails": ({"template": _failing}, "raises KeyError"),
}


@pytest.mark.parametrize(("changes", "message"), BROKEN.values(), ids=BROKEN)
def test_a_breach_of_the_contract_is_found(changes, message):
    broken = replace(TOY, **changes)
    pytreeckpt.register_adapter(broken)
    with pytest.raises(AssertionError, match=message):
        testing.check_adapter(broken, examples(), compare=compare)


def test_an_adapter_that_is_not_registered_is_found():
    with pytest.raises(AssertionError, match="not the adapter found"):
        testing.check_adapter(replace(TOY), examples(), compare=compare)


def test_a_check_without_examples_is_a_breach():
    with pytest.raises(AssertionError, match="no examples"):
        testing.check_adapter(TOY, [], compare=compare)


def test_only_the_given_dtypes_are_tried():
    narrow = replace(TOY, from_array=_refusing_wrongly)
    pytreeckpt.register_adapter(narrow)
    testing.check_adapter(narrow, examples(), dtypes=DTYPES, compare=compare)
