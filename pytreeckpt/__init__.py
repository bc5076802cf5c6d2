"""One safe, exact, fast checkpoint file for every Python machine-learning framework.

    import pytreeckpt as ptc

    ptc.save(tree, "run/step-1000.ptck")
    tree = ptc.restore("run/step-1000.ptck")

Importing this package imports no framework.
"""

from pytreeckpt.adapters import Adapter, Blend, Described, InPlace, LeafTemplate, register_adapter
from pytreeckpt.api import Problem, SaveReport, VerifyReport, decode, encode, open, restore, save, verify
from pytreeckpt.arrays import ArraySource, PendingSnapshot, source_of
from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    ConcurrentWriterError,
    ConversionError,
    CorruptionError,
    FormatVersionError,
    LimitError,
    NotACheckpointError,
    NotDurableError,
    NotMappableError,
    PathError,
    PytreeckptError,
    StorageError,
    StructureMismatchError,
    UnsupportedTypeError,
)
from pytreeckpt.expand import register_class
from pytreeckpt.geometry import Box, Run, runs
from pytreeckpt.limits import Limits, current_limits, limits
from pytreeckpt.objects import ClassKind, Expansion, NamedTupleRecord, ObjectType, Record
from pytreeckpt.operations.averaging import average
from pytreeckpt.operations.diff_records import Diff
from pytreeckpt.operations.diffing import diff
from pytreeckpt.operations.ema import ema_update
from pytreeckpt.paths import DictKey, Field, Index, Path
from pytreeckpt.pipeline import Progress
from pytreeckpt.references import ArrayRef
from pytreeckpt.run import CheckpointManager, Interrupted
from pytreeckpt.saving import SaveHandle, save_async
from pytreeckpt.unflatten import UNSELECTED

__version__ = "0.1.0"

__all__ = [
    "UNSELECTED",
    "Adapter",
    "ArrayRef",
    "ArraySource",
    "Blend",
    "Box",
    "Checkpoint",
    "CheckpointExistsError",
    "CheckpointManager",
    "CheckpointNotFoundError",
    "ClassKind",
    "ConcurrentWriterError",
    "ConversionError",
    "CorruptionError",
    "Described",
    "DictKey",
    "Diff",
    "Expansion",
    "Field",
    "FormatVersionError",
    "InPlace",
    "Index",
    "Interrupted",
    "LeafTemplate",
    "LimitError",
    "Limits",
    "NamedTupleRecord",
    "NotACheckpointError",
    "NotDurableError",
    "NotMappableError",
    "ObjectType",
    "Path",
    "PathError",
    "PendingSnapshot",
    "Problem",
    "Progress",
    "PytreeckptError",
    "Record",
    "Run",
    "SaveHandle",
    "SaveReport",
    "StorageError",
    "StructureMismatchError",
    "UnsupportedTypeError",
    "VerifyReport",
    "average",
    "current_limits",
    "decode",
    "diff",
    "ema_update",
    "encode",
    "limits",
    "open",
    "register_adapter",
    "register_class",
    "restore",
    "runs",
    "save",
    "save_async",
    "source_of",
    "verify",
]
