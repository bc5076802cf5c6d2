"""Averages of checkpoints, chunk by chunk, whatever their size."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import PurePath
from typing import Any, Final

import numpy as np

from pytreeckpt.api import SaveReport, StrPath, open, save
from pytreeckpt.arrays import AnyArray, ArraySource, run_reader, stored_order
from pytreeckpt.checkpoint import Checkpoint, Select
from pytreeckpt.codecs import Compression
from pytreeckpt.commit import Durability, IfExists
from pytreeckpt.dtypes import AnyDType
from pytreeckpt.errors import StructureMismatchError, UnsupportedTypeError
from pytreeckpt.mismatches import mismatch
from pytreeckpt.operations.arithmetic import real_dtype, weighted_mean
from pytreeckpt.operations.lazy import Array, ArrayLeaf, LazyTree, array_leaves, chosen, lazy
from pytreeckpt.operations.orders import items_in_order
from pytreeckpt.operations.roles import is_weight
from pytreeckpt.operations.sources import Files, as_source
from pytreeckpt.paths import Path
from pytreeckpt.pipeline import ReportProgress

AVERAGED: Final = "averaged"
"""The key of the metadata under which an average tells what it is of."""
_ADVICE: Final = "average what they all have with select=…; all other leaves are then those of the newest"
_SHOWN: Final = 10
# Of arrays that are there and no larger, the mean takes less than to put it off.
_SMALL_NBYTES: Final = 64 << 10


def average(
    paths: Sequence[StrPath],
    out: StrPath,
    *,
    weights: Sequence[float] | None = None,
    select: Select | None = None,
    compression: Compression = "auto",
    if_exists: IfExists = "replace",
    durability: Durability = "durable",
    metadata: Mapping[str, object] | None = None,
    progress: ReportProgress | None = None,
) -> SaveReport:
    """Save the average of checkpoints to one file: Σ wᵢ·xᵢ / Σ wᵢ of each array of floats or complex numbers.

    Computed in float64, from the first path to the last, divided by the sum of the weights (as `math.fsum` gives it),
    and rounded once to the dtype (bfloat16 and float8 too), chunk by chunk: memory is needed for some chunks of each
    file, whatever their size. NaN and infinities propagate. Real and imaginary parts are averaged each by itself,
    extended floats in their own precision.

    `paths`: files of ours or of any other format, the newest last. Integers, bools, texts, arrays of structs, and all
    plain values are those of the newest, and so is what is no weight: the state of optimizers, schedulers and random
    number generators, as `capture` marks it, or what is called `opt_state` or looks like the state dict of an
    optimizer of torch; its moments belong to the gradients of the newest step. Running statistics of normalization
    layers are floats, and averaged: better ones come of passing data through the averaged model
    (`torch.optim.swa_utils.update_bn`).
    `weights`: a finite number for each path, of a sum greater than 0; equal ones by default.
    `select`: a glob on paths (or several, or a predicate on `Path`): only these leaves are averaged, moments too if
    they are meant; all others are those of the newest, and need not agree.
    `metadata`: a dict; `"averaged"` is added to it: the root (of a foreign file, None) and weight of each input. The
    other options are those of `save`.
    Raises `StructureMismatchError` with all leaves whose path, shape or dtype differ, and in which file;
    `UnsupportedTypeError` for quantized floats and sparse tensors, which have no such mean; and what `open` and `save`
    raise. When it raises, nothing was published.
    """
    names = [os.fsdecode(path) for path in _listed(paths)]
    factors = checked_weights(weights, len(names))
    told = dict(metadata or {})
    if AVERAGED in told:
        raise ValueError(f"metadata has {AVERAGED!r} already, under which the inputs of the average are told")
    with ExitStack() as stack:
        opened = [stack.enter_context(open(name)) for name in names]
        files = Files(n_files=len(opened))
        tree = averaged_of([lazy(each, files) for each in opened], factors, _short(names), select=select)
        told[AVERAGED] = [_provenance(each, weight) for each, weight in zip(opened, factors, strict=True)]
        return save(
            tree,
            out,
            metadata=told,
            compression=compression,
            if_exists=if_exists,
            durability=durability,
            progress=progress,
        )


def averaged(trees: Sequence[object], *, weights: Sequence[float] | None = None, select: Select | None = None) -> Any:
    """The average of trees, as `average` has it, as a tree for `save`: nothing is read or computed before it is saved.

    `trees`: what `save` takes, and references to arrays of open checkpoints, the newest last.
    """
    factors = checked_weights(weights, len(trees))
    files = Files(n_files=len(trees))
    names = [f"tree {number}" for number in range(len(trees))]
    return averaged_of([lazy(tree, files) for tree in trees], factors, names, select=select)


def _short(names: Sequence[str]) -> Sequence[str]:
    """The names without their folders, if they can be told apart so."""
    short = [PurePath(name).name for name in names]
    return short if len(set(short)) == len(set(names)) else names


def _listed(paths: Sequence[StrPath]) -> Sequence[StrPath]:
    if isinstance(paths, str | bytes | os.PathLike):
        raise TypeError(f"paths is one path, {os.fsdecode(paths)!r}: give a list of them")
    return paths


def checked_weights(weights: Sequence[float] | None, n: int) -> list[float]:
    """The weights as floats. Raises `ValueError` for what makes no average."""
    if n == 0:
        raise ValueError("there is nothing to average: give at least one checkpoint")
    if weights is None:
        return [1.0] * n
    found = [float(weight) for weight in weights]
    if len(found) != n:
        raise ValueError(f"{len(found)} weights for {n} checkpoints: give one for each")
    if not all(map(math.isfinite, found)) or not 0 < math.fsum(found) < math.inf:
        raise ValueError(f"weights {found}: they are finite numbers of a sum greater than 0")
    return found


def _provenance(checkpoint: Checkpoint, weight: float) -> dict[str, object]:
    return {"root": checkpoint.root, "format": checkpoint.format, "weight": weight}


def averaged_of(
    trees: Sequence[LazyTree], weights: Sequence[float], names: Sequence[str], *, select: Select | None
) -> Any:
    """The average of lazy trees, the newest last; `names`: what they are called in errors."""
    newest = trees[-1]
    leaves = list(array_leaves(newest))
    if not leaves:
        raise StructureMismatchError(f"{names[-1]} holds no arrays, and so there is nothing to average")
    if select is not None:
        marks = chosen(select, [leaf.path for leaf in leaves])
    else:
        tells = is_weight(newest.build()[1])
        marks = [tells(leaf.path) for leaf in leaves]
    wanted = [leaf for leaf, is_chosen in zip(leaves, marks, strict=True) if is_chosen]
    others = [dict(_by_path(tree)) for tree in trees[:-1]]
    _check_alike(newest, wanted, list(zip(names, trees, others, strict=False)), names[-1], all_leaves=select is None)
    means = [leaf for leaf in wanted if real_dtype(_array(newest, leaf).dtype) is not None]
    _check_meaningful(wanted)
    if not means:
        raise StructureMismatchError("none of the leaves is an array of floats: there is nothing to average")
    total = math.fsum(weights)
    made: dict[tuple[int, ...], Array] = {}
    by_entry: dict[int, Array] = {}
    for leaf in means:
        columns = [*((tree, other[leaf.path]) for tree, other in zip(trees, others, strict=False)), (newest, leaf)]
        # What is tied in all of them is one array in the average.
        tied = tuple(tree.nodes.arrays[each.entry] for tree, each in columns)
        if tied not in made:
            made[tied] = _mean([_array(tree, each) for tree, each in columns], weights, total)
        by_entry[leaf.entry] = made[tied]
    numbers = newest.nodes.arrays
    return newest.build(lambda entry: by_entry.get(entry, newest.arrays[numbers[entry]]))[1]


def _array(tree: LazyTree, leaf: ArrayLeaf) -> Array:
    return tree.arrays[tree.nodes.arrays[leaf.entry]]


def _by_path(tree: LazyTree) -> Iterator[tuple[Path, ArrayLeaf]]:
    for leaf in array_leaves(tree):
        yield leaf.path, leaf


def _check_alike(
    newest: LazyTree,
    wanted: Sequence[ArrayLeaf],
    others: Sequence[tuple[str, LazyTree, Mapping[Path, ArrayLeaf]]],
    name: str,
    *,
    all_leaves: bool,
) -> None:
    missing: list[str] = []
    unexpected: list[str] = []
    mismatched: list[str] = []
    paths = {leaf.path for leaf in wanted}
    for other_name, tree, by_path in others:
        for leaf in wanted:
            found = by_path.get(leaf.path)
            if found is None:
                missing.append(f"{leaf.path or 'the root'} in {other_name}; {name} has it")
                continue
            ours, theirs = _array(newest, leaf), _array(tree, found)
            if ours.shape != theirs.shape or not _same_dtype(ours.dtype, theirs.dtype):
                mismatched.append(
                    f"{leaf.path or 'the root'}: {ours.dtype}{list(ours.shape)} in {name}, "
                    f"{theirs.dtype}{list(theirs.shape)} in {other_name}"
                )
        others_alone = [path for path in by_path if path not in paths] if all_leaves else []
        if others_alone:
            tells = is_weight(tree.build()[1])
            unexpected += [f"{path} in {other_name}; {name} has it not" for path in others_alone if tells(path)]
    if missing or unexpected or mismatched:
        raise mismatch("the checkpoints do not have the same arrays:", missing, unexpected, mismatched, advice=_ADVICE)


def _same_dtype(a: AnyDType, b: AnyDType) -> bool:
    """The byte order is a matter of the file."""
    return a.newbyteorder("=") == b.newbyteorder("=")


def _check_meaningful(wanted: Sequence[ArrayLeaf]) -> None:
    refused: list[str] = []
    for leaf in wanted:
        types = [type_.name for type_ in leaf.within]
        if "torch.SparseTensor" in types:
            refused.append(f"{leaf.path}: of a sparse tensor")
        elif types[-1:] == ["torch.PackedTensor"]:
            refused.append(f"{leaf.path}: numbers that numpy does not have, as bits")
    if refused:
        more = [f"and {len(refused) - _SHOWN} more"] if len(refused) > _SHOWN else []
        raise UnsupportedTypeError(
            "these arrays have no mean; leave them to the newest by naming all others with select=:\n  "
            + "\n  ".join([*refused[:_SHOWN], *more])
        )


def _mean(arrays: Sequence[Array], weights: Sequence[float], total: float) -> Array:
    small = [array for array in arrays if isinstance(array, np.ndarray) and array.nbytes <= _SMALL_NBYTES]
    if len(small) == len(arrays) > 1:
        return _small_mean(small, weights, total)
    sources = [as_source(array) for array in arrays]
    last = sources[-1]
    if len(sources) == 1:
        return last
    in_order = tuple(range(len(last.shape)))
    others = [each for each in sources if (each.axes or in_order, each.cuts) != (last.axes or in_order, last.cuts)]
    # Its own: another average of the same arrays may have other weights.
    identity = object()
    if not others:
        boxes = tuple(
            weighted_mean(reads, weights, total, last.dtype) for reads in zip(*(s.boxes for s in sources), strict=True)
        )
        return ArraySource(last.dtype, last.shape, boxes, last.axes, last.cuts, identity=identity, immutable=True)
    reads = [items_in_order(each, last.axes, n_beside=len(others)) for each in sources]
    box = weighted_mean(reads, weights, total, last.dtype)
    return ArraySource(last.dtype, last.shape, (box,), last.axes, identity=identity, immutable=True)


def _small_mean(arrays: Sequence[AnyArray], weights: Sequence[float], total: float) -> AnyArray:
    stored, axes = stored_order(arrays[-1])
    turned = arrays if axes is None else [array.transpose(axes) for array in arrays]
    read = weighted_mean([run_reader(array) for array in turned], weights, total, stored.dtype)
    mean = read(0, stored.size).reshape(stored.shape)
    return mean if axes is None else mean.transpose(np.argsort(axes))
