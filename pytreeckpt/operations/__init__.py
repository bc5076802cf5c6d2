"""Operations on whole checkpoints: what is made of them, out of core, and how two of them differ."""

from pytreeckpt.operations.averaging import average, averaged
from pytreeckpt.operations.casting import CastReport
from pytreeckpt.operations.combining import merge, select
from pytreeckpt.operations.diff_records import Diff
from pytreeckpt.operations.diffing import diff
from pytreeckpt.operations.ema import ema_update, warmed_up
from pytreeckpt.operations.exporting import ExportReport, export
from pytreeckpt.operations.lazy import selected
from pytreeckpt.operations.merging import merged
from pytreeckpt.operations.renaming import renamed

__all__ = [
    "CastReport",
    "Diff",
    "ExportReport",
    "average",
    "averaged",
    "diff",
    "ema_update",
    "export",
    "merge",
    "merged",
    "renamed",
    "select",
    "selected",
    "warmed_up",
]
