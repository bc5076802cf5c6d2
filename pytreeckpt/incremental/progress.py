"""Progress of a save in two passes."""

from __future__ import annotations

from pytreeckpt.pipeline import Progress, ReportProgress


class Halves:
    """Each of `nbytes` bytes counts half when it is hashed, and half when it is stored or known to be."""

    def __init__(self, progress: ReportProgress | None, nbytes: int) -> None:
        self.progress = progress
        self.nbytes = nbytes
        self.n_halves = 0

    def halves(self, nbytes: int) -> None:
        """Half of so many bytes more."""
        before = self.n_halves
        self.n_halves += nbytes
        done_nbytes = self.n_halves // 2
        if self.progress is not None and before // 2 < done_nbytes < self.nbytes:
            self.progress(Progress(done_nbytes, self.nbytes))

    def finish(self) -> None:
        """All is written."""
        if self.progress is not None:
            self.progress(Progress(self.nbytes, self.nbytes))
