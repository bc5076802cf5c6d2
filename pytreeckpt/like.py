"""A checkpoint held against a template: which stored leaf goes where, and what does not fit."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pytreeckpt import nodes as n
from pytreeckpt.adapters import InPlace, LeafTemplate
from pytreeckpt.arrays import AnyArray, array_identity, copy_items
from pytreeckpt.build import Builder
from pytreeckpt.expand import make_expand
from pytreeckpt.geometry import Shape, extent, is_injective
from pytreeckpt.mismatches import mismatch
from pytreeckpt.navigation import descend
from pytreeckpt.nodes import Visit
from pytreeckpt.objects import Expansion, class_name
from pytreeckpt.paths import Path
from pytreeckpt.references import ArrayRef
from pytreeckpt.template import Leaf, Template, is_number, match_path, number_for, take_apart

if TYPE_CHECKING:
    from pytreeckpt.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class Match:
    """For each leaf of a template, the stored array (by number) or the stored value that goes there, or neither."""

    template: Template
    sources: list[int | _Value | None]
    fillable: list[InPlace | None]

    @property
    def arrays(self) -> list[int]:
        """The numbers of the arrays that are needed."""
        return sorted({source for source in self.sources if isinstance(source, int)})

    def destinations(self) -> dict[int, AnyArray]:
        """The memory that arrays may be read into at once: that of the first leaf which each goes to."""
        into: dict[int, AnyArray] = {}
        for source, in_place in zip(self.sources, self.fillable, strict=True):
            if isinstance(source, int) and in_place is not None and in_place.memory is not None:
                into.setdefault(source, in_place.memory)
        return into

    def place(self, arrays: dict[int, AnyArray]) -> Any:
        """The template's structure with the stored leaves; where there is none, the template's own. Those that can be
        are filled, if `arrays` are not already in their memory.
        """
        placed: dict[tuple[int, Hashable], object] = {}
        taken = set(self.destinations())
        values: list[object] = []
        for leaf, source, in_place in zip(self.template.leaves, self.sources, self.fillable, strict=True):
            if source is None:
                values.append(leaf.value)
            elif isinstance(source, _Value):
                values.append(source.value)
            elif leaf.wanted is None:
                values.append(number_for(leaf.value, arrays[source]))
            elif in_place is not None:
                if in_place.memory is not None and in_place.memory is not arrays[source]:
                    copy_items(in_place.memory, arrays[source])
                values.append(in_place.fill(arrays[source]))
            else:
                same = array_identity(leaf.value) if type(leaf.value) is np.ndarray else id(leaf.value)
                key = (source, same)
                if key not in placed:
                    # A leaf may keep its array, so one that goes to several leaves is copied for all but the first.
                    array = arrays[source].copy("K") if source in taken else arrays[source]
                    taken.add(source)
                    placed[key] = leaf.wanted.place(array)
                values.append(placed[key])
        return self.template.rebuild(values)


@dataclass(frozen=True, slots=True)
class _Value:
    value: object


def match_template(
    checkpoint: Checkpoint,
    like: object,
    builder: Builder,
    visits: Sequence[Visit],
    *,
    strict: bool,
    partial: bool,
) -> Match:
    """Match the stored leaves `visits` with those of the template `like`, by path.

    `partial`: the checkpoint was asked for a selection, so leaves of the template may keep their values. Raises one
    `StructureMismatchError` for all that does not fit.
    """
    template = take_apart(like)
    for leaf in template.leaves:
        if isinstance(leaf.value, Enum):
            builder.classes.setdefault(class_name(type(leaf.value)), type(leaf.value))
    _, tree = checkpoint.lazy_tree(builder)
    stored = {match_path(visit.path): visit for visit in visits}
    missing: list[str] = []
    mismatched: list[str] = []
    sources: list[int | _Value | None] = []
    for leaf in template.leaves:
        visit = stored.pop(match_path(leaf.path), None)
        source: int | _Value | None = None
        if visit is None:
            if not partial:
                missing.append(str(leaf.path))
        else:
            value = checkpoint.leaf(visit) if visit.kind in {n.ARRAY, n.SCALAR} else descend(tree, Path(visit.path))
            try:
                source = _source(leaf, value)
            except ValueError as problem:
                mismatched.append(f"{leaf.path or 'the root'}: {problem}")
        sources.append(source)
    unexpected = [str(Path(visit.path)) for visit in stored.values()]
    if mismatched or (strict and (missing or unexpected)):
        raise mismatch(
            "the checkpoint does not have the structure of the template",
            missing,
            unexpected,
            mismatched,
            advice="strict=False keeps the template's values for what is missing and ignores what is unexpected",
        )
    return Match(template, sources, _fillable(template.leaves, sources))


def _fillable(leaves: Sequence[Leaf], sources: Sequence[int | _Value | None]) -> list[InPlace | None]:
    """How each leaf is filled where it is, if it can be: nothing else that is wanted may lie in the same memory."""
    views: list[_View | None] = []
    goes_to: dict[_View, set[int]] = {}
    for leaf, source in zip(leaves, sources, strict=True):
        view = None
        if leaf.wanted is not None and leaf.wanted.in_place is not None and isinstance(source, int):
            view = _view(leaf.wanted, leaf.wanted.in_place)
        views.append(view)
        if view is not None and isinstance(source, int):
            goes_to.setdefault(view, set()).add(source)
    refused = {view for view, all_sources in goes_to.items() if len(all_sources) > 1}
    last: _View | None = None
    for view in sorted(view for view in goes_to if view.start < view.stop):
        if last is not None and view.space == last.space and view.start < last.stop:
            refused |= {view, last}
        if last is None or view.space != last.space or view.stop > last.stop:
            last = view
    return [
        leaf.wanted.in_place if leaf.wanted is not None and view is not None and view not in refused else None
        for leaf, view in zip(leaves, views, strict=True)
    ]


class _View(NamedTuple):
    """Equal for leaves that show exactly the same memory in the same way."""

    space: str
    start: int
    stop: int
    shape: Shape
    strides: Shape
    dtype: str


def _view(wanted: LeafTemplate, in_place: InPlace) -> _View | None:
    itemsize = wanted.dtype.itemsize
    if not is_injective(wanted.shape, in_place.strides, itemsize):
        return None
    low, high = extent(wanted.shape, in_place.strides, itemsize)
    address = in_place.address
    return _View(in_place.space, address + low, address + high, wanted.shape, in_place.strides, str(wanted.dtype))


def _source(leaf: Leaf, value: object) -> int | _Value:
    """What goes to this leaf. Raises `ValueError` that says how it does not fit."""
    wanted = leaf.wanted
    if isinstance(value, ArrayRef):
        return _array_source(leaf, value)
    if wanted is not None:
        if wanted.shape or not is_number(value):
            raise ValueError(
                f"the template has {wanted.dtype}{list(wanted.shape)}, the checkpoint a {type(value).__name__}"
            )
        number = number_for(np.zeros((), wanted.dtype)[()], value)
        return _Value(wanted.place(np.asarray(number, wanted.dtype)))
    if type(value) is type(leaf.value):
        # Of one type, and yet of several dtypes: structs and units of time.
        dtypes = [np.asarray(scalar).dtype for scalar in (leaf.value, value) if isinstance(scalar, np.generic)]
        if len(set(dtypes)) > 1:
            raise ValueError(f"the template has a {dtypes[0]}, the checkpoint a {dtypes[1]}")
        return _Value(value)
    if _is_empty(leaf.value) and _is_empty(value):
        return _Value(leaf.value)
    if is_number(leaf.value) and is_number(value):
        return _Value(number_for(leaf.value, value))
    raise ValueError(f"the template has a {type(leaf.value).__name__}, the checkpoint a {type(value).__name__}")


def _is_empty(value: object) -> bool:
    """Whether a value is an object without fields or a dict without items, which stand for each other."""
    if type(value) is dict:
        return not value
    expansion = make_expand()(value)
    return isinstance(expansion, Expansion) and not expansion.children


def _array_source(leaf: Leaf, ref: ArrayRef) -> int | _Value:
    if leaf.wanted is None:
        if ref.shape or not is_number(leaf.value):
            raise ValueError(
                f"the template has a {type(leaf.value).__name__}, the checkpoint {ref.dtype}{list(ref.shape)}"
            )
        return _Value(number_for(leaf.value, np.asarray(ref)))
    if (ref.shape, ref.dtype) != (leaf.wanted.shape, leaf.wanted.dtype):
        raise ValueError(
            f"the template has {leaf.wanted.dtype}{list(leaf.wanted.shape)}, the checkpoint "
            f"{ref.dtype}{list(ref.shape)}"
        )
    names = ref.type.fields[1:] if ref.type is not None else ()
    problem = leaf.wanted.refuse(ref.type, dict(zip(names, ref.attributes, strict=True)))
    if problem is not None:
        raise ValueError(problem)
    return ref.array
