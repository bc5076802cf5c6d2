"""Arrays of open checkpoints as what a save takes: read run by run when they are asked for, and let go at once.

A tree on its way from one file to another holds no values: in the place of each array stands what is needed to get it.
So an operation needs memory for some chunks, however large the checkpoint or one of its arrays is.
"""

from __future__ import annotations

from typing import Final

from pytreeckpt.arrays import AnyArray, ArraySource, source_of
from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.objects import NamedTupleRecord, Record, build_record
from pytreeckpt.operations.orders import Order, uncut
from pytreeckpt.operations.stored import Kept, Meter, StoredFile, StoredItems
from pytreeckpt.operations.stored_files import stored_file
from pytreeckpt.references import ArrayRef

# What is read of small arrays at once, of all files together.
_SMALL_NBYTES: Final = 16 << 20
# What is kept of chunks of which more may be asked for, of all files together and at least of each.
_KEPT_NBYTES: Final = 64 << 20
_MIN_KEPT_NBYTES: Final = 4 << 20


class Files:
    """The arrays of open checkpoints as sources. `n_files`: how many there are to be, which share what is kept."""

    def __init__(self, *, n_files: int = 1, meter: Meter | None = None) -> None:
        self.meter = meter
        self._small_nbytes = _SMALL_NBYTES // max(n_files, 1)
        self._kept_nbytes = max(_MIN_KEPT_NBYTES, _KEPT_NBYTES // max(n_files, 1))
        self._files: dict[int, StoredFile] = {}
        self._sources: dict[tuple[int, int, Order], ArraySource] = {}

    def array(self, checkpoint: Checkpoint, array: int, *, order: Order = "stored") -> ArraySource:
        """An array of a checkpoint by its number. Arrays of one number are one shared array."""
        key = (id(checkpoint), array, order)
        if key not in self._sources:
            self._sources[key] = self._made(checkpoint, array, order)
        return self._sources[key]

    def arrays(self, checkpoint: Checkpoint, *, order: Order = "stored") -> list[AnyArray | ArraySource]:
        """All arrays of a checkpoint: small ones as they are, as far as they are not too many, because to read each by
        itself takes longer than all else; the others as sources.
        """
        small = self._file(checkpoint).small(self._small_nbytes)
        if self.meter is not None:
            self.meter.count(sum(array.nbytes for array in small.values()))
        numbers = range(len(checkpoint.index.arrays))
        return [small[n] if n in small else self.array(checkpoint, n, order=order) for n in numbers]

    def leaf(self, ref: ArrayRef) -> ArraySource | Record | NamedTupleRecord:
        """What a reference refers to, wrapped as it was."""
        checkpoint = ref.reader
        if not isinstance(checkpoint, Checkpoint):
            raise TypeError(f"a reference to an array of a {type(checkpoint).__name__}, which is no open checkpoint")
        source = self.array(checkpoint, ref.array)
        return source if ref.type is None else build_record(ref.type, [source, *ref.attributes])

    def _made(self, checkpoint: Checkpoint, array: int, order: Order) -> ArraySource:
        file = self._file(checkpoint)
        entry = checkpoint.index.arrays[array]
        n_boxes = max(1, len(entry.chunk_counts)) if not entry.foreign else 1
        boxes = tuple(StoredItems(file, array, box, self.meter) for box in range(n_boxes))
        dtype, identity = checkpoint.index.dtypes[entry.dtype], (id(checkpoint), array)
        stored = ArraySource(
            dtype, entry.shape, boxes, entry.axes, entry.cuts, identity=(Files, *identity), immutable=True
        )
        return stored if order == "stored" else uncut(stored, None if order == "C" else entry.axes)

    def _file(self, checkpoint: Checkpoint) -> StoredFile:
        if id(checkpoint) not in self._files:
            self._files[id(checkpoint)] = stored_file(checkpoint, Kept(self._kept_nbytes))
        return self._files[id(checkpoint)]


def as_source(array: AnyArray | ArraySource) -> ArraySource:
    """An array as a source."""
    return array if isinstance(array, ArraySource) else source_of(array)
