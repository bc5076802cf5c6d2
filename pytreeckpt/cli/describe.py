"""What a branch is, in words: its type, what is in it, and with what it is shared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pytreeckpt import nodes as n
from pytreeckpt.arrays import AnyArray
from pytreeckpt.cli.branches import Branch, is_brief
from pytreeckpt.cli.names import KIND_NAMES, array_text, dtype_text, path_text, step_text, type_text
from pytreeckpt.cli.navigation import Wrapped, array_number, kind_at, n_children, object_type, unwrap
from pytreeckpt.cli.outline import Outline, Totals, totals
from pytreeckpt.cli.runs import WIDTH, is_run, run_text
from pytreeckpt.cli.text import count, cut, visible
from pytreeckpt.cli.values import item_text, item_texts, scalar_of, value_text
from pytreeckpt.errors import PytreeckptError
from pytreeckpt.objects import is_atomic
from pytreeckpt.reading import as_logical, inline_array

Style = Literal["container", "array", "value"]


@dataclass(frozen=True, slots=True)
class Description:
    """`text`: type and content. `note`: what else is worth knowing. `is_leaf`: nothing below it has its own row."""

    text: str
    note: str
    totals: Totals
    style: Style
    is_leaf: bool


_SHORT_WIDTH: Final = 24
_TINY_ITEMS: Final = 4
_MAX_READ: Final = 64
"""So many tiny arrays of a foreign file are read to see whether they are all the same."""
_FEW: Final = 3
_MAX_ATTRIBUTES: Final = 4

# Attributes that go without saying.
_USUAL: Final[Mapping[tuple[str, str], str]] = {
    ("torch.Tensor", "requires_grad"): "False",
    ("torch.nn.Parameter", "requires_grad"): "True",
    ("torch.nn.Buffer", "requires_grad"): "False",
    ("jax.Array", "weak_type"): "False",
    ("python.deque", "maxlen"): "None",
}


def describe(outline: Outline, branch: Branch) -> Description:
    """The description of a branch."""
    wrapped = [unwrap(outline, position) for position in branch.positions]
    positions = [one.position for one in wrapped]
    first = positions[0]
    summed = totals(outline, branch.positions)
    times = f" ×{len(positions)}" if len(positions) > 1 else ""
    notes = [_type_note(outline, wrapped[0]), *_attribute_notes(outline, wrapped[0])]
    if kind_at(outline, first) == n.ARRAY:
        text, tiny = _arrays_text(outline, positions), _tiny_values(outline, positions)
        if text.endswith("[]"):
            text, tiny = f"{text} {tiny}".rstrip(), ""
        notes = [tiny, *notes, _sharing_note(outline, positions)]
        return Description(text + times, _joined(notes), summed, "array", is_leaf=True)
    if is_value(outline, first):
        return Description(_values_text(outline, positions) + times, _joined(notes), summed, "value", is_leaf=True)
    if is_run(outline, first):
        return Description(run_text(outline, positions) + times, _joined(notes), summed, "value", is_leaf=True)
    return Description(_container_text(outline, wrapped[0]) + times, _joined(notes), summed, "container", is_leaf=False)


def _joined(notes: Sequence[str]) -> str:
    return ", ".join(filter(None, notes))


def _type_note(outline: Outline, wrapped: Wrapped) -> str:
    names = [type_.name for type_ in wrapped.types if not type_.name.startswith("python.")]
    if names == [outline.usual_type] and kind_at(outline, wrapped.position) == n.ARRAY:
        return ""
    return " of ".join(map(visible, names[:3])) + (" of …" if len(names) > 3 else "")


def _attribute_notes(outline: Outline, wrapped: Wrapped) -> list[str]:
    """The unusual attributes, which are the same for all that one branch shows."""
    notes: list[str] = []
    for child in wrapped.attributes[:_MAX_ATTRIBUTES]:
        if is_brief(outline, child.position):
            name = step_text(child.step).removeprefix(".")
            value = value_text(outline, child.position, _SHORT_WIDTH)
            if _USUAL.get((wrapped.types[-1].name, name)) != value:
                notes.append(f"{name}={value}")
    return notes


def _arrays_text(outline: Outline, positions: Sequence[int]) -> str:
    entries = [outline.index.arrays[array_number(outline, position)] for position in positions]
    descriptor = outline.index.descriptors[entries[0].dtype]
    shapes = {entry.shape for entry in entries}
    if len(shapes) == 1:
        return cut(array_text(descriptor, entries[0].shape), WIDTH)
    return f"{cut(dtype_text(descriptor), WIDTH // 2)}, {len(shapes)} shapes"


def _tiny_values(outline: Outline, positions: Sequence[int]) -> str:
    """The values of a tiny array, which is in the index, so that nothing has to be read for them; or next to nothing,
    in a foreign file.
    """
    arrays = {array_number(outline, position) for position in positions}
    text = _tiny_text(outline, array_number(outline, positions[0]))
    if len(arrays) > 1 and text:
        if not outline.index.own and len(arrays) > _MAX_READ:
            return ""
        all_values = [_tiny(outline, array) for array in sorted(arrays)]
        if len({values if values is None else values.tobytes() for values in all_values}) > 1:
            return ""
    return text and f"= {text}"


def _tiny_text(outline: Outline, array: int) -> str:
    entry = outline.index.arrays[array]
    if len(entry.shape) > 1 or 0 in entry.shape or sum(entry.shape) > _TINY_ITEMS:
        return ""
    if entry.inline and not entry.shape:
        return cut(item_text(scalar_of(outline, array)), WIDTH)
    values = _tiny(outline, array)
    if values is None:
        return ""
    texts = item_texts(values.reshape(-1))
    return cut(f"[{', '.join(texts)}]" if values.ndim else texts[0], WIDTH)


def _tiny(outline: Outline, array: int) -> AnyArray | None:
    """The values of a tiny array, if they are at hand."""
    entry = outline.index.arrays[array]
    if entry.inline:
        return as_logical(inline_array(outline.index, array), entry)
    if not entry.foreign or outline.read is None:
        return None
    try:
        return outline.read(array)
    except PytreeckptError:
        # `verify` is for those who want to know.
        return None


def _sharing_note(outline: Outline, positions: Sequence[int]) -> str:
    """With what other leaves the arrays at these positions are shared."""
    arrays = {array_number(outline, position) for position in positions}
    shared = arrays & outline.shared_paths.keys()
    if not shared:
        return ""
    if len(positions) > 1:
        which = "shared" if len(shared) == len(arrays) else f"{len(shared)} of them shared"
        return "all the same array" if len(arrays) == 1 else which
    first, second, *others = outline.shared_paths[shared.pop()]
    # The first occurrence says where else the array is; the others say what they are.
    if first.position != positions[0]:
        return f"same as {path_text(first.path)}"
    return f"shared with {path_text(second.path)}" + (f" and {len(others):,} more" if others else "")


def is_value(outline: Outline, position: int) -> bool:
    """Whether it is one value: a plain one, a scalar, a set, an atomic object, or something empty."""
    kind = kind_at(outline, position)
    if kind == n.OBJECT:
        type_ = object_type(outline, position)
        return is_atomic(type_) or not type_.fields
    return kind != n.ARRAY and (kind < n.LIST or kind in {n.SET, n.FROZENSET} or n_children(outline, position) == 0)


def _values_text(outline: Outline, positions: Sequence[int]) -> str:
    first = positions[0]
    if len(positions) == 1:
        kind, text = kind_at(outline, first), value_text(outline, first, WIDTH)
        is_long_set = kind in {n.SET, n.FROZENSET} and text.endswith("…")
        return cut(f"{KIND_NAMES[kind]} of {n_children(outline, first):,}  {text}" if is_long_set else text, WIDTH)
    different: dict[str, None] = {}
    for position in positions:
        different[value_text(outline, position, _SHORT_WIDTH)] = None
        if len(different) > _FEW:
            break
    else:
        return ", ".join(different)
    texts = [value_text(outline, position, _SHORT_WIDTH) for position in [*positions[:_FEW], positions[-1]]]
    return f"{', '.join(texts[:-1])} … {texts[-1]}"


def _container_text(outline: Outline, wrapped: Wrapped) -> str:
    kind = kind_at(outline, wrapped.position)
    if kind == n.OBJECT:
        return type_text(object_type(outline, wrapped.position))
    nouns = [type_.name.removeprefix("python.") for type_ in wrapped.types if type_.name.startswith("python.")]
    return f"{visible(nouns[0]) if nouns else KIND_NAMES[kind]} of {n_children(outline, wrapped.position):,}"


def content_text(summed: Totals) -> str:
    """What a closed container holds: `148 arrays, 12 values`."""
    parts = [count(summed.n_arrays, "array")] if summed.n_arrays else []
    return ", ".join([*parts, count(summed.n_values, "value")] if summed.n_values else parts)
