"""The document of `pytreeckpt inspect --json`: all leaves of a checkpoint, one per line.

Its schema is described in docs/command-line.md, and changes with its number only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from pytreeckpt import nodes as n
from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.cli.encoding import Encoded, dumps, encode_item, encode_items, encode_object, encode_plain
from pytreeckpt.cli.inspect_training import summary_of
from pytreeckpt.cli.names import KIND_NAMES
from pytreeckpt.cli.navigation import array_number, kind_at, unwrap
from pytreeckpt.cli.outline import METADATA, Outline, n_shown, totals
from pytreeckpt.cli.selected import Selected
from pytreeckpt.cli.statistics import Statistics
from pytreeckpt.cli.values import scalar_of
from pytreeckpt.codecs import CODECS
from pytreeckpt.index import Index, IntArray
from pytreeckpt.nodes import Visit, leaf_value, walk
from pytreeckpt.objects import ClassKind
from pytreeckpt.paths import Path
from pytreeckpt.reading import chunk_reads
from pytreeckpt.wire import VERSION

SCHEMA: Final = "pytreeckpt-inspect/1"

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Records:
    """The records of all nodes below a position, in the order of the tree."""

    leaves: Encoded = field(default_factory=Encoded)
    containers: Encoded = field(default_factory=Encoded)
    attributes: Encoded = field(default_factory=Encoded)


def sections(
    checkpoint: Checkpoint, selected: Selected, statistics: Mapping[int, Statistics] | None
) -> Mapping[str, object]:
    """The document."""
    outline, position = selected.outline, selected.position
    found = _records(outline, position, statistics)
    document: dict[str, object] = {
        "schema": SCHEMA,
        "file": _file(checkpoint),
        "selection": {"path": None if selected.path is None else str(selected.path), "match": selected.pattern},
        "totals": _totals(outline, position),
        "metadata": _records(outline, METADATA, None).leaves,
        "leaves": found.leaves,
        "containers": found.containers,
        "attributes": found.attributes,
    }
    if (training := _training(checkpoint, selected)) is not None:
        document["training"] = training
    value = unwrap(outline, position).position
    if selected.path is not None and kind_at(outline, value) == n.ARRAY:
        document["chunks"] = Encoded([dumps(record) for record in _chunks(outline.index, array_number(outline, value))])
    return document


def _file(checkpoint: Checkpoint) -> Record:
    footer = checkpoint.footer
    return {
        "path": checkpoint.path,
        "nbytes": checkpoint.nbytes,
        "format": checkpoint.format,
        "format_version": None if footer is None else VERSION,
        "root": checkpoint.root,
        "index_nbytes": None if footer is None else footer.index_raw_nbytes,
        "index_stored_nbytes": None if footer is None else footer.index_stored_nbytes,
        "arrays": len(checkpoint.index.arrays),
        "chunks": len(checkpoint.index.chunks),
        "file_nbytes": None if footer is None else footer.file_nbytes,
        "data_files": list(_data_files(checkpoint.index)),
        "notes": list(checkpoint.notes),
    }


def _data_files(index: Index) -> Iterator[Record]:
    for file, used_nbytes in zip(index.files, used_of_data_files(index), strict=True):
        yield {"name": file.name, "nbytes": file.nbytes, "used_nbytes": used_nbytes}


def used_of_data_files(index: Index) -> list[int]:
    """How many stored bytes of chunks lie in each data file, those of several rows once."""
    return [_used_nbytes(index, rows) for rows in index.chunks.by_file(len(index.files))[1:]]


def _used_nbytes(index: Index, rows: IntArray) -> int:
    _, first = np.unique(index.chunks.offset[rows], return_index=True)
    return int(index.chunks.stored[rows][first].sum())


def _training(checkpoint: Checkpoint, selected: Selected) -> Record | None:
    summary = summary_of(checkpoint, selected.outline) if selected.path is None and selected.pattern is None else None
    if summary is None:
        return None
    objects = [{"name": name, "role": role, "text": text} for name, role, text in summary.facts]
    return {"framework": summary.framework, "objects": objects}


def _totals(outline: Outline, position: int) -> Record:
    summed = totals(outline, [position])
    return {
        "leaves": summed.n_leaves,
        "arrays": summed.n_arrays,
        "elements": summed.n_items,
        "nbytes": summed.raw_nbytes,
        "stored_nbytes": summed.stored_nbytes if outline.index.own else None,
    }


def _records(outline: Outline, position: int, statistics: Mapping[int, Statistics] | None) -> _Records:
    end = outline.ends[position]
    found = _Records()
    types: list[str] = []
    for visit in walk(outline.nodes, root=0 if position < outline.tree else 1):
        if visit.position >= end:
            break
        if _is_wrapper(outline, visit):
            types.append(outline.nodes.types[outline.nodes.objects[visit.entry]].name)
            continue
        of, types = types, []
        if visit.position < position or not _is_shown(outline, visit):
            continue
        record: Record = {"path": str(Path(visit.path)), **_content(outline, visit)}
        if of:
            record["types"] = of
        if visit.kind == n.ARRAY and statistics is not None:
            of_array = statistics.get(array_number(outline, visit.position))
            if of_array is not None:
                record["statistics"] = _statistics(of_array)
        within = found.attributes if visit.attribute else found.leaves if visit.is_leaf else found.containers
        within.items.append(dumps(record))
    return found


def _is_wrapper(outline: Outline, visit: Visit) -> bool:
    return (
        visit.kind == n.OBJECT
        and visit.n_children > 0
        and outline.nodes.types[outline.nodes.objects[visit.entry]].class_kind is ClassKind.WRAPPER
    )


def _is_shown(outline: Outline, visit: Visit) -> bool:
    if visit.attribute:
        return visit.is_leaf and bool(outline.shown[visit.position])
    return n_shown(outline, visit.position) > 0


def _content(outline: Outline, visit: Visit) -> Record:
    kind = visit.kind
    if kind == n.ARRAY:
        return {"kind": "array", **_array(outline, array_number(outline, visit.position))}
    if kind == n.SCALAR:
        array = array_number(outline, visit.position)
        return {
            "kind": "scalar",
            "dtype": outline.descriptor(array),
            "value": encode_item(scalar_of(outline, array)),
        }
    if kind < n.ARRAY:
        return {"kind": KIND_NAMES[kind], "value": encode_plain(leaf_value(outline.nodes, kind, visit.entry))}
    if kind in {n.SET, n.FROZENSET}:
        return {"kind": KIND_NAMES[kind], "items": encode_items(outline, visit.position)}
    if kind != n.OBJECT:
        return {"kind": KIND_NAMES[kind], "length": visit.n_children}
    type_ = outline.nodes.types[outline.nodes.objects[visit.entry]]
    if visit.is_leaf:
        return encode_object(outline, visit.position)
    return {"kind": type_.class_kind.name.lower(), "type": type_.name, "fields": list(type_.fields)}


def _array(outline: Outline, array: int) -> Record:
    index = outline.index
    entry = index.arrays[array]
    record: Record = {
        "array": array,
        "dtype": outline.descriptor(array),
        "shape": entry.shape,
        "nbytes": outline.raw_sizes[array],
        "stored_nbytes": outline.stored_sizes[array] if index.own else None,
        "chunks": sum(entry.chunk_counts),
        "codecs": codec_counts(index, array),
    }
    if entry.axes is not None:
        record["axes"] = entry.axes
    if entry.pooled:
        record["pooled"] = True
    if array in outline.shared_paths:
        record["shared_by"] = len(outline.shared_paths[array])
    return record


def _chunks(index: Index, array: int) -> Iterator[Record]:
    if not index.arrays[array].chunk_counts:
        return
    chunks = index.chunks
    for read in chunk_reads(index, array):
        row = read.row
        file = int(chunks.file[row])
        yield {
            "file": index.files[file - 1].name if file else None,
            "offset": int(chunks.offset[row]),
            "stored_nbytes": int(chunks.stored[row]),
            "nbytes": int(chunks.raw[row]),
            "codec": CODECS[int(chunks.codec[row])].name,
            "digest": chunks.digest[16 * row : 16 * row + 16].hex(),
            "box": {"offset": read.box.offset, "shape": read.box.shape},
            "start": read.start,
            "stop": read.stop,
        }


def codec_counts(index: Index, array: int) -> dict[str, int]:
    """How many chunks of an array each codec stores; an array without chunks is `inline` in the index. Those of
    a foreign file have none.
    """
    entry = index.arrays[array]
    if not index.own:
        return {}
    if not entry.chunk_counts:
        return {"inline": 1}
    first = index.first_chunk[array]
    numbers = index.chunks.codec[first : first + sum(entry.chunk_counts)].tolist()
    return {CODECS[number].name: times for number, times in Counter(numbers).most_common()}


def _statistics(statistics: Statistics) -> Record:
    some = statistics.n_finite > 0
    return {
        "elements": statistics.n_items,
        "finite": statistics.n_finite,
        "nan": statistics.n_nan,
        "infinite": statistics.n_infinite,
        "zeros": statistics.n_zeros,
        "min": encode_plain(statistics.minimum),
        "max": encode_plain(statistics.maximum),
        "mean": encode_plain(statistics.mean) if some else None,
        "std": encode_plain(statistics.std) if some else None,
    }
