"""One safe, exact, fast checkpoint file for every Python machine-learning framework.

    import pytreeckpt as ptc

    ptc.save(tree, "run/step-1000.ptck")
    tree = ptc.restore("run/step-1000.ptck")

Importing this package imports no framework.
"""

from pytreeckpt.adapters import Adapter, Described, InPlace, LeafTemplate, register_adapter
from pytreeckpt.api import Problem, SaveReport, VerifyReport, decode, encode, open, restore, save, verify
from pytreeckpt.arrays import ArraySource, source_of
from pytreeckpt.checkpoint import Checkpoint
from pytreeckpt.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
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
from pytreeckpt.paths import DictKey, Field, Index, Path
from pytreeckpt.pipeline import Progress
from pytreeckpt.references import ArrayRef
from pytreeckpt.unflatten import UNSELECTED

__version__ = "0.1.0"

__all__ = [
    "UNSELECTED",
    "Adapter",
    "ArrayRef",
    "ArraySource",
    "Box",
    "Checkpoint",
    "CheckpointExistsError",
    "CheckpointNotFoundError",
    "ClassKind",
    "ConversionError",
    "CorruptionError",
    "Described",
    "DictKey",
    "Expansion",
    "Field",
    "FormatVersionError",
    "InPlace",
    "Index",
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
    "Problem",
    "Progress",
    "PytreeckptError",
    "Record",
    "Run",
    "SaveReport",
    "StorageError",
    "StructureMismatchError",
    "UnsupportedTypeError",
    "VerifyReport",
    "current_limits",
    "decode",
    "encode",
    "limits",
    "open",
    "register_adapter",
    "register_class",
    "restore",
    "runs",
    "save",
    "source_of",
    "verify",
]
