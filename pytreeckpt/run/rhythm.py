"""When it is time to save, as the schedule says that a manager was given."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pytreeckpt.run.metric_log import Logs
from pytreeckpt.steps.history import History, LazyRecords, all_records, saved_before, with_metrics
from pytreeckpt.steps.records import StepRecord
from pytreeckpt.steps.schedule import Moment, When


class Rhythm:
    """What the rhythm of saving goes by: the step that was saved last, or is being saved, else the one that was
    restored, else what the history has.
    """

    def __init__(self, when: When, started_s: float) -> None:
        self._when = when
        self._started_s = started_s
        self.saved: StepRecord | None = None
        self.restored: StepRecord | None = None

    def has_saved(self, step: int) -> bool:
        """Whether this step is the one that it goes by: a step is saved once."""
        last = self.saved or self.restored
        return last is not None and last.step == step

    def is_time(
        self,
        step: int,
        *,
        now_s: float,
        epoch: float | None,
        metrics: Mapping[str, float],
        history: History,
        logs: Callable[[], Logs],
    ) -> bool:
        """What the schedule says. It is asked at every step: records are made only for who looks at them."""
        last = self.saved or self.restored
        moment = Moment(
            step=step,
            now_s=now_s,
            epoch=epoch,
            metrics=metrics,
            records=LazyRecords(lambda: all_records(with_metrics(history, logs(), now_s))),
            # Of an earlier process, one that is later was left behind by going back.
            last_saved=saved_before(history, step) if last is None else last,
            started_s=self._started_s,
        )
        return self._when(moment)
