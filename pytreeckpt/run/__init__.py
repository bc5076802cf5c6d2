"""The folder of a training: its steps, their history, and who writes there.

    root/step-00001000.ptck   one file per step, an ordinary checkpoint whose metadata say what is known of the step
    root/data/<root>.ptck     what incremental steps share
    root/history.ptck         what is known of all steps, those that were pruned too; published anew as a whole
    root/.writer.lock         held by the one who writes

`read_run` looks into a folder and needs nothing else; `CheckpointManager` writes there.
"""

from pytreeckpt.run.interrupts import Interrupted
from pytreeckpt.run.manager import CheckpointManager
from pytreeckpt.run.pruning import PruneReport, prune
from pytreeckpt.run.reading import Run, read_run

__all__ = ["CheckpointManager", "Interrupted", "PruneReport", "Run", "prune", "read_run"]
