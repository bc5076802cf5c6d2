"""An open checkpoint: its tree with references in place of arrays, and everything that reads from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from types import TracebackType
from typing import Any, Self

from pytreeckpt import nodes as n
from pytreeckpt.arrays import AnyArray
from pytreeckpt.build import Builder
from pytreeckpt.collection import paused_collection
from pytreeckpt.content import Content, Refusal, own_content
from pytreeckpt.errors import CorruptionError, PathError, StructureMismatchError, UnsupportedTypeError
from pytreeckpt.geometry import Box
from pytreeckpt.index import Index
from pytreeckpt.like import match_template
from pytreeckpt.limits import current_limits
from pytreeckpt.navigation import descend
from pytreeckpt.nodes import Visit, array_entries, leaf_value, walk
from pytreeckpt.objects import REGISTERED, ClassKind, ObjectType, build_record
from pytreeckpt.paths import Path, compile_glob, suggest
from pytreeckpt.pipeline import ReportProgress
from pytreeckpt.reader import ArrayReader
from pytreeckpt.reading import RangedSource, as_logical, scalar_value
from pytreeckpt.references import ArrayRef
from pytreeckpt.selection import Selection, bounding_box
from pytreeckpt.unflatten import Build, unflatten
from pytreeckpt.verifying import damage_of_all_files
from pytreeckpt.wire import Footer

Select = str | Sequence[str] | Callable[[Path], bool]


class Checkpoint:
    """An open checkpoint. Nothing of its arrays is read until asked for; close it, or use it in a `with` block."""

    def __init__(self, source: RangedSource | Content, path: str | None) -> None:
        """Over the bytes of a file of ours, or the content of any file."""
        self.path = path
        self._limits = current_limits()
        self.content = source if isinstance(source, Content) else own_content(source, self._limits)
        self.index = self.content.index
        self._reader = self.content.reader
        self._refs: list[ArrayRef | None] = [None] * len(self.index.nodes.arrays)

    @cached_property
    def _lazy(self) -> tuple[Any, Any]:
        return self.lazy_tree(Builder("numpy", ()))

    def check_structure(self) -> None:
        """Check what is checked when the tree is built. Raises `CorruptionError`."""
        _ = self._lazy

    @property
    def metadata(self) -> Any:
        """What was given as `metadata`."""
        return self._lazy[0]

    @property
    def tree(self) -> Any:
        """The tree with a reference in place of each array."""
        return self._lazy[1]

    @property
    def format(self) -> str:
        """The name of the format: "pytreeckpt", or that of the foreign file that was opened."""
        return self.content.format

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing of how a foreign file was read, such as classes that became records."""
        return self.content.notes

    @property
    def footer(self) -> Footer | None:
        """The footer of the file; None for a foreign one."""
        return self.content.footer

    @property
    def root(self) -> str | None:
        """The SHA-256 of the index, in hex: it identifies the checkpoint. Foreign files have none: None."""
        return None if self.footer is None else self.footer.root.hex()

    @property
    def nbytes(self) -> int:
        """The length of the file and of its data files, if it has any; of a folder, that of all its files."""
        return self.content.nbytes

    def close(self) -> None:
        """Close the file. References can no longer be read; arrays that were read or mapped stay."""
        self.content.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        what = self.format if self.root is None else f"root {self.root[:12]}…"
        return f"<Checkpoint {self.path or 'in memory'}: {len(self.index.arrays)} arrays, {what}>"

    # The lazy tree.

    def lazy_tree(self, builder: Builder) -> tuple[Any, Any]:
        """Metadata and tree with an `ArrayRef` in place of each array, and of each wrapper of one."""

        def array(occurrence: int) -> object:
            ref = self._refs[occurrence] = ArrayRef(self, self.index.nodes.arrays[occurrence])
            return ref

        def build(type_: ObjectType, values: Sequence[Any]) -> object:
            if type_.class_kind is ClassKind.WRAPPER and isinstance(values[0], ArrayRef) and values[0].type is None:
                ref: ArrayRef = values[0]
                ref.type, ref.attributes = type_, tuple(values[1:])
                return ref
            # Classes that the caller has registered take arrays, not references, and paths are made of their fields.
            held = any(isinstance(value, ArrayRef) for value in values)
            if type_.class_kind is ClassKind.RECORD and (held or type_.name not in REGISTERED):
                return build_record(type_, values)
            return builder.build_object(type_, values)

        with paused_collection():
            return unflatten(self.index.nodes, Build(array, self._scalar, build), limits=self._limits)

    def _scalar(self, occurrence: int) -> object:
        return scalar_value(self.index, self.index.nodes.arrays[occurrence])

    def leaves(self) -> Iterator[tuple[Path, object]]:
        """The leaves with their paths, in order: `ArrayRef` for arrays, values for all else; an empty container
        counts as a leaf.
        """
        self.check_structure()
        for visit in walk(self.index.nodes):
            if visit.is_leaf and not visit.attribute:
                yield Path(visit.path), self.leaf(visit)

    def leaf(self, visit: Visit) -> object:
        """The leaf of the lazy tree that was visited."""
        if visit.kind == n.ARRAY:
            self.check_structure()
            return self._refs[visit.entry]
        if visit.kind == n.SCALAR:
            return self._scalar(visit.entry)
        if visit.kind < n.LIST:
            return leaf_value(self.index.nodes, visit.kind, visit.entry)
        return self[Path(visit.path)]

    def __getitem__(self, path: str | Path) -> Any:
        """The subtree or leaf at a path (text or `Path`). Raises `PathError`."""
        return descend(self.tree, Path.parse(path) if isinstance(path, str) else path)

    def __contains__(self, path: str | Path) -> bool:
        try:
            self[path]
        except PathError:
            return False
        return True

    # Reading.

    def read_region(self, array: int, selection: Selection) -> AnyArray:
        """A basic selection of an array, as an array of numpy, of rank 0 for one item; reads only the chunks that its
        bounding box touches; of a foreign file only the bytes of that box, with its checksums if that is the whole
        array.
        """
        entry = self.index.arrays[array]
        box, rest = bounding_box(entry.shape, selection)
        axes = entry.axes or tuple(range(len(entry.shape)))
        stored = Box(tuple(box.offset[axis] for axis in axes), tuple(box.shape[axis] for axis in axes))
        values = as_logical(self._reader.region(array, stored), entry)
        part: AnyArray = values[(*rest, ...)]
        return part

    def restore(
        self,
        *,
        like: object = None,
        select: Select | None = None,
        to: str = "auto",
        types: Iterable[type] = (),
        strict: bool = True,
        mmap: bool = False,
        verify: bool = True,
        progress: ReportProgress | None = None,
    ) -> Any:
        """The tree, or what `select` matches of it; the options are those of `pytreeckpt.restore`."""
        builder = Builder(to, types)
        if select is not None or like is not None:
            self.check_structure()
        visits = (
            [visit for visit in walk(self.index.nodes) if visit.is_leaf]
            if select is not None or like is not None
            else []
        )
        unselected = self._unselected(select, visits, strict=strict) if select is not None else b""
        if like is not None:
            chosen = [v for v in visits if not v.attribute and not (unselected and unselected[v.position])]
            for visit, entries in zip(visits, array_entries(self.index.nodes, visits), strict=True):
                left_out = unselected and unselected[visit.position]
                if entries and visit.kind == n.OBJECT and not left_out:
                    raise UnsupportedTypeError(
                        f"{Path(visit.path)}: an object that is one value holds arrays; restore it without like="
                    )
            match = match_template(self, like, builder, chosen, strict=strict, partial=bool(unselected))
            into = {} if mmap else match.destinations()
            try:
                return match.place(
                    self.read_arrays(match.arrays, into=into, mmap=mmap, verify=verify, progress=progress)
                )
            except CorruptionError as error:
                if into:
                    error.args = (f"{error}. The arrays given as like= are partly overwritten", *error.args[1:])
                raise
        nodes = self.index.nodes
        if not unselected:
            wanted: Sequence[int] = range(len(self.index.arrays))
        else:
            selected = [
                entry
                for visit, entries in zip(visits, array_entries(nodes, visits), strict=True)
                if not unselected[visit.position]
                for entry in entries
            ]
            wanted = sorted({nodes.arrays[entry] for entry in selected})
        arrays = self.read_arrays(wanted, mmap=mmap, verify=verify, progress=progress)
        uses = Counter(nodes.arrays)
        leaves: dict[int, object] = {}
        refused: list[str] = []

        def array(occurrence: int) -> object:
            number = nodes.arrays[occurrence]
            if number not in arrays:
                # Left out by `select`, or one of several places of an array that is built already.
                return leaves.get(number)
            try:
                # Not kept here: a framework that copies would hold every array twice.
                values = arrays.pop(number)
                if uses[number] == 1:
                    return builder.leaf(values)
                leaves[number] = builder.leaf_of_many(values)
            except UnsupportedTypeError as error:
                refused.append(f"{self._reader.paths.first(number)}: {error}")
            return leaves.get(number)

        build = Build(array, self._scalar, builder.build_object)
        with paused_collection():
            _, tree = unflatten(nodes, build, limits=self._limits, unselected=unselected)
        if refused:
            raise UnsupportedTypeError(
                f"to={to!r}: {len(refused)} leaves cannot be converted:\n  "
                + "\n  ".join(refused[:20])
                + '\nleave them out with select=, or restore with to="numpy"'
            )
        builder.warn()
        return tree

    def read_arrays(
        self,
        wanted: Sequence[int],
        *,
        into: Mapping[int, AnyArray] | None = None,
        mmap: bool = False,
        verify: bool = True,
        progress: ReportProgress | None = None,
    ) -> dict[int, AnyArray]:
        """The arrays with these numbers, as numpy, those of `into` in the memory given there."""
        if not mmap:
            return self._reader.arrays(wanted, into=into, verify=verify, progress=progress)
        return self._reader.mapped(wanted, verify=verify)

    def _unselected(self, select: Select, visits: list[Visit], *, strict: bool) -> bytearray:
        patterns = [select] if isinstance(select, str) else list(select) if not callable(select) else []
        matchers = [compile_glob(pattern) for pattern in patterns] if not callable(select) else [select]
        used = [False] * len(matchers)
        marks = bytearray(len(self.index.nodes.kinds))
        for visit in visits:
            if visit.attribute:
                continue
            path = Path(visit.path)
            hits = [bool(matcher(path)) for matcher in matchers]
            used = [a or b for a, b in zip(used, hits, strict=True)]
            marks[visit.position] = not any(hits)
        idle = [pattern for pattern, hit in zip(patterns, used, strict=False) if not hit]
        if (strict and idle) or not any(used):
            leaves = [visit.path for visit in visits if not visit.attribute][:1000]
            # Containers too, because a pattern may name one; and without its wildcards.
            beginnings = (path[:depth] for path in leaves for depth in range(1, min(len(path), 20) + 1))
            paths = list(dict.fromkeys(str(Path(path)) for path in beginnings))
            meant = idle[0].replace("**", "").replace("*", "").strip("/") if idle else ""
            close = suggest(meant, paths, count=3, cutoff=0.5) or paths[:3]
            what = f"select {', '.join(map(repr, idle))}" if idle else "select"
            raise StructureMismatchError(f"{what} matches no leaf; there is {', '.join(close)}", missing=idle)
        return marks

    # Verifying.

    def damage(self, *, progress: ReportProgress | None = None) -> Iterator[Refusal]:
        """Check every chunk, or what a foreign file has checksums of; the errors, one per damaged chunk, that reading
        would raise. Data files are checked as wholes, and each of their chunks once.
        """
        self.check_structure()
        if isinstance(self._reader, ArrayReader) and self.index.files:
            return damage_of_all_files(self._reader, self._checked, progress)
        return self._reader.damage(range(len(self.index.arrays)), progress=progress)

    def _checked(self, source: RangedSource) -> Index:
        """The index of a data file, with its structure checked."""
        checkpoint = Checkpoint(own_content(source, self._limits), None)
        checkpoint.lazy_tree(Builder("numpy", ()))
        # They refer to it, and would keep all of it until the next collection.
        checkpoint._refs.clear()
        return checkpoint.index
