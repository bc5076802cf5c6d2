"""Incremental checkpoints: only chunks whose content is new are written, into a data file beside the checkpoint.

A checkpoint saved with `write_incremental` is a small *manifest*: a file of ours with the whole structure, whose chunks
lie in *data files*, `data/<root>.ptck` beside it. Chunks are known by their content (BLAKE3), wherever they stand: what
has not changed since an earlier step, tied weights that were untied by a copy, an average that equals what it is of,
are stored once. Each manifest restores on its own, from the data files that it names, whatever becomes of the others.

A data file can be removed when no manifest needs it (`files_needed`). So that old ones do not stay for the sake of a
few chunks, those of a data file of which a new checkpoint would need less than half are stored again, as they are:
*cleaning*. It bounds what a checkpoint keeps alive: its data files hold at most twice the chunk bytes that it needs
itself. And it bounds itself: more of such a file is dead by then than is copied, so all these copies of a run together
are less than all that was ever new. Nor does a checkpoint need more than 64 data files: at least half of them, those
that it needs least of, are then taken together, which copies what never changes once in many steps, and in ever more.

The price of a step: one pass over the whole tree for two hashes, of which BLAKE3 counts; what is new is read once more,
to be compressed and written. That second reading costs nothing that could be measured, and bounds memory.
"""

from pytreeckpt.incremental.known import Known, files_needed, read_known
from pytreeckpt.incremental.writing import IncrementalWritten, write_incremental

__all__ = ["IncrementalWritten", "Known", "files_needed", "read_known", "write_incremental"]
