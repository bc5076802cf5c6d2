"""Metrics that were logged and are not written yet. Threads may log while others write."""

from __future__ import annotations

import threading
from collections.abc import Mapping

Logs = Mapping[int, Mapping[str, float]]
"""Metrics by the numbers of their steps."""


class MetricLog:
    """What was logged since it was last written."""

    def __init__(self) -> None:
        # Held for moments.
        self._lock = threading.Lock()
        self._logs: dict[int, dict[str, float]] = {}

    def __bool__(self) -> bool:
        return bool(self._logs)

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics; of the same metric of a step the last counts."""
        with self._lock:
            # Another dict, so that the one that is being written stays as it is.
            self._logs[step] = {**self._logs.get(step, {}), **metrics}

    def now(self) -> Logs:
        """All of it."""
        with self._lock:
            return dict(self._logs)

    def take(self, step: int) -> Mapping[str, float]:
        """What was logged of a step, which is now for who takes it to write."""
        with self._lock:
            return self._logs.pop(step, {})

    def give_back(self, step: int, metrics: Mapping[str, float]) -> None:
        """What was taken was not written after all."""
        with self._lock:
            if metrics:
                self._logs[step] = {**metrics, **self._logs.get(step, {})}

    def forget(self, written: Logs) -> None:
        """These were written. What was logged meanwhile stays."""
        with self._lock:
            for step, metrics in written.items():
                if self._logs.get(step) is metrics:
                    del self._logs[step]
