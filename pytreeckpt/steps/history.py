"""The history of a training: what is known of each of its steps, in columns.

A hundred thousand steps with several metrics are some arrays, not objects; a record is made of a row when one is asked
for. The tree of a history (`encode_history`) is versioned, and `decode_history` is total: any tree gives a history or a
`PytreeckptError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, overload

import numpy as np

from pytreeckpt.errors import CorruptionError, FormatVersionError
from pytreeckpt.steps.pins import checked_pin
from pytreeckpt.steps.records import MODES, REASONS, Mode, StepRecord, checked_name

LAYOUT: Final = "pytreeckpt.history"
VERSION: Final = 1
RULE: Final = "R-1"
_ROOT_NBYTES: Final = 32
# The columns of the table of steps. Of a step without an epoch that is NaN, of one without a checkpoint the root is 0.
_COLUMNS: Final = {
    "step": np.dtype(np.int64),
    "saved_at": np.dtype(np.float64),
    "nbytes": np.dtype(np.int64),
    "epoch": np.dtype(np.float64),
    "root": np.dtype((np.void, _ROOT_NBYTES)),
    "reason": np.dtype(np.uint8),
}

Column = np.ndarray[Any, np.dtype[Any]]
Columns = Mapping[str, Column]


def _no_steps() -> Columns:
    return {name: np.empty(0, dtype) for name, dtype in _COLUMNS.items()}


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """What is known of the steps of a training, ascending.

    `steps`: the columns of all steps; `metrics`: of each metric the steps that have it, and its values; `pins`: names
    of steps; `metric` and `mode`: which one tells the best step.
    """

    steps: Columns = field(default_factory=_no_steps)
    metrics: Mapping[str, tuple[Column, Column]] = field(default_factory=dict[str, tuple[Column, Column]])
    pins: Mapping[str, int] = field(default_factory=dict[str, int])
    metric: str | None = None
    mode: Mode = "min"

    def __len__(self) -> int:
        return len(self.steps["step"])


def with_records(history: History, records: Iterable[StepRecord]) -> History:
    """With these records, each in place of that of its step; of several of one step the last counts."""
    new = {record.step: record for record in sorted(records, key=lambda record: record.step)}
    if not new:
        return history
    numbers = np.fromiter(new, np.int64, len(new))
    columns = {
        "step": numbers,
        "saved_at": np.array([record.saved_at for record in new.values()], np.float64),
        "nbytes": np.array([record.nbytes for record in new.values()], np.int64),
        "epoch": np.array([np.nan if record.epoch is None else record.epoch for record in new.values()], np.float64),
        "root": np.frombuffer(b"".join(_root_bytes(record.root) for record in new.values()), _COLUMNS["root"]),
        "reason": np.array([REASONS.index(record.reason) for record in new.values()], np.uint8),
    }
    of_metrics: dict[str, tuple[list[int], list[float]]] = {}
    for record in new.values():
        for name, value in record.metrics.items():
            steps, values = of_metrics.setdefault(name, ([], []))
            steps.append(record.step)
            values.append(value)
    metrics: dict[str, tuple[Column, Column]] = {}
    for name in dict.fromkeys([*history.metrics, *of_metrics]):
        known = history.metrics.get(name, (np.empty(0, np.int64), np.empty(0, np.float64)))
        steps, values = of_metrics.get(name, ([], []))
        added = {"step": np.array(steps, np.int64), "value": np.array(values, np.float64)}
        merged = _merged({"step": known[0], "value": known[1]}, added, numbers)
        if len(merged["step"]):
            metrics[name] = merged["step"], merged["value"]
    return replace(history, steps=_merged(history.steps, columns, numbers), metrics=metrics)


def _merged(old: Columns, new: Columns, replaced: Column) -> dict[str, Column]:
    """Two tables, each in the order of its steps, as one; of the old one without the steps that are replaced."""
    if not len(old["step"]) or int(old["step"][-1]) < int(replaced[0]):
        # As a training goes on: the order is there already.
        return {name: np.concatenate([old[name], new[name]]) for name in old}
    kept = ~np.isin(old["step"], replaced)
    if not len(new["step"]):
        return {name: old[name][kept] for name in old}
    together = {name: np.concatenate([old[name][kept], new[name]]) for name in old}
    order = np.argsort(together["step"], kind="stable")
    return {name: values[order] for name, values in together.items()}


def with_metrics(history: History, metrics: Mapping[int, Mapping[str, float]], now_s: float) -> History:
    """With more metrics of these steps; those that a step has already stay, but for new values of the same."""
    records: list[StepRecord] = []
    for step, more in metrics.items():
        known = record_of(history, step) or StepRecord(step=step, root="", nbytes=0, saved_at=now_s)
        records.append(replace(known, metrics={**known.metrics, **more}))
    return with_records(history, records)


def record_of(history: History, step: int) -> StepRecord | None:
    """What is known of a step."""
    return records_of(history, [step]).get(step)


def records_of(history: History, steps: Sequence[int]) -> dict[int, StepRecord]:
    """What is known of each of these steps, ascending, of which something is."""
    numbers = history.steps["step"]
    rows = _rows_of(numbers, np.asarray(steps, np.int64))
    found = numbers[rows]
    metrics: list[dict[str, float]] = [{} for _ in rows]
    for name, (of_metric, values) in history.metrics.items():
        at = _rows_of(of_metric, found)
        places = np.searchsorted(found, of_metric[at])
        for place, value in zip(places.tolist(), values[at].tolist(), strict=True):
            metrics[place][name] = value
    records = _records({name: column[rows] for name, column in history.steps.items()}, metrics)
    return {record.step: record for record in records}


def unknown(history: History, records: Sequence[StepRecord]) -> list[StepRecord]:
    """Those of these records, ascending, that the history does not have with the same root."""
    numbers = history.steps["step"]
    rows = _rows_of(numbers, np.array([record.step for record in records], np.int64))
    known = dict(zip(numbers[rows].tolist(), map(bytes, history.steps["root"][rows]), strict=True))
    return [record for record in records if known.get(record.step) != _root_bytes(record.root)]


def _rows_of(numbers: Column, wanted: Column) -> Column:
    """The rows of those of the wanted numbers, ascending, that are there."""
    rows = np.searchsorted(numbers, wanted)
    there = rows < len(numbers)
    rows, wanted = rows[there], wanted[there]
    found: Column = rows[numbers[rows] == wanted]
    return found


def metrics_before(history: History, step: int) -> Mapping[str, float]:
    """What is known of a step from before it is saved. What is known of it from an earlier save is not of this one."""
    known = record_of(history, step)
    return {} if known is None or known.was_saved else known.metrics


def saved_before(history: History, step: int) -> StepRecord | None:
    """The latest of the steps before this one that were saved."""
    numbers, roots = history.steps["step"], history.steps["root"]
    for row in range(int(np.searchsorted(numbers, step)) - 1, -1, -1):
        if any(bytes(roots[row])):
            return record_of(history, int(numbers[row]))
    return None


class LazyRecords(Sequence[StepRecord]):
    """Records that are made when they are first looked at."""

    __slots__ = ("_made", "_make")

    def __init__(self, make: Callable[[], Sequence[StepRecord]]) -> None:
        self._make = make
        self._made: Sequence[StepRecord] | None = None

    def _records(self) -> Sequence[StepRecord]:
        if self._made is None:
            self._made = self._make()
        return self._made

    def __len__(self) -> int:
        return len(self._records())

    @overload
    def __getitem__(self, at: int) -> StepRecord: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[StepRecord]: ...
    def __getitem__(self, at: int | slice) -> StepRecord | Sequence[StepRecord]:
        return self._records()[at]

    def __iter__(self) -> Iterator[StepRecord]:
        return iter(self._records())


def all_records(history: History) -> list[StepRecord]:
    """What is known of every step, ascending."""
    numbers = history.steps["step"]
    metrics: list[dict[str, float]] = [{} for _ in range(len(history))]
    for name, (steps, values) in history.metrics.items():
        for row, value in zip(np.searchsorted(numbers, steps).tolist(), values.tolist(), strict=True):
            metrics[row][name] = value
    return _records(history.steps, metrics)


def _records(columns: Columns, metrics: list[dict[str, float]]) -> list[StepRecord]:
    return [
        StepRecord(
            step=step,
            root=bytes(root).hex() if any(root) else "",
            nbytes=nbytes,
            saved_at=saved_at,
            metrics=each,
            # NaN is not equal to itself.
            epoch=epoch if epoch == epoch else None,  # noqa: PLR0124 - many times faster than math.isnan here
            reason=REASONS[reason],
        )
        for step, saved_at, nbytes, epoch, root, reason, each in zip(
            *(columns[name].tolist() for name in ("step", "saved_at", "nbytes", "epoch")),
            map(bytes, columns["root"]),
            columns["reason"].tolist(),
            metrics,
            strict=True,
        )
    ]


def _root_bytes(root: str) -> bytes:
    return bytes.fromhex(root) if root else bytes(_ROOT_NBYTES)


# The tree.


def encode_history(history: History) -> dict[str, object]:
    """The tree of a history: plain values and columns."""
    return {
        "layout": LAYOUT,
        "version": VERSION,
        "metric": history.metric,
        "mode": history.mode,
        "pins": dict(history.pins),
        "steps": {
            name: column.view(np.uint8).reshape(-1, _ROOT_NBYTES) if name == "root" else column
            for name, column in history.steps.items()
        },
        "metrics": {name: {"step": steps, "value": values} for name, (steps, values) in history.metrics.items()},
    }


def decode_history(tree: object) -> History:
    """The history that a tree is of. Raises `FormatVersionError` for one of a newer version, and `CorruptionError`."""
    fields = _fields(tree, "the tree")
    # Types first: what is compared may be an array.
    if type(fields.get("layout")) is not str or fields["layout"] != LAYOUT or type(fields.get("version")) is not int:
        raise CorruptionError("this is not the history of a training", rule=RULE)
    if fields["version"] != VERSION:
        raise FormatVersionError(
            f"this history has version {fields['version']}, and this reader knows {VERSION}; a newer pytreeckpt "
            "reads it",
            rule=RULE,
        )
    _expect(fields, {"layout", "version", "metric", "mode", "pins", "steps", "metrics"}, "the tree")
    metric, mode = fields["metric"], fields["mode"]
    if type(mode) is not str or mode not in MODES or not (metric is None or _is_name(metric)):
        raise CorruptionError(f"the metric {metric!r} and the mode {mode!r} tell no best step", rule=RULE)
    steps = _decode_steps(fields["steps"])
    metrics: dict[str, tuple[Column, Column]] = {}
    for name, table in _fields(fields["metrics"], "metrics").items():
        where = f"metrics/{name}"
        if not _is_name(name):
            raise CorruptionError(f"{name!r} is no name of a metric", rule=RULE)
        columns = _fields(table, where)
        _expect(columns, {"step", "value"}, where)
        of_metric = _column(columns["step"], np.dtype(np.int64), f"{where}/step")
        values = _column(columns["value"], np.dtype(np.float64), f"{where}/value")
        if len(of_metric) != len(values) or not _ascends(of_metric) or not np.isin(of_metric, steps["step"]).all():
            raise CorruptionError(f"{where}: its steps do not fit its values, or the other steps", rule=RULE)
        metrics[name] = of_metric, values
    pins = _fields(fields["pins"], "pins")
    for name, step in pins.items():
        if not _is_pin(name) or type(step) is not int or not 0 <= step <= np.iinfo(np.int64).max:
            raise CorruptionError(f"pins: {name!r} cannot be the name of {step!r}", rule=RULE)
    return History(steps, metrics, pins, metric, mode)


def _decode_steps(table: object) -> dict[str, Column]:
    columns = _fields(table, "steps")
    _expect(columns, set(_COLUMNS), "steps")
    steps: dict[str, Column] = {}
    for name, dtype in _COLUMNS.items():
        if name == "root":
            roots = columns[name]
            if type(roots) is not np.ndarray or roots.dtype != np.uint8 or roots.shape[1:] != (_ROOT_NBYTES,):
                raise CorruptionError("steps/root is not a column of roots", rule=RULE)
            steps[name] = np.ascontiguousarray(roots).view(dtype).reshape(-1)
        else:
            steps[name] = _column(columns[name], dtype, f"steps/{name}")
    if len(set(map(len, steps.values()))) != 1:
        raise CorruptionError("the columns of the steps have different lengths", rule=RULE)
    if not _ascends(steps["step"]):
        raise CorruptionError("steps/step is not ascending from 0 or more", rule=RULE)
    whole = np.isfinite(steps["saved_at"]).all() and not np.isinf(steps["epoch"]).any()
    if not whole or (steps["nbytes"] < 0).any() or (steps["reason"] >= len(REASONS)).any():
        raise CorruptionError("the columns of the steps hold values that they cannot have", rule=RULE)
    return steps


def _fields(value: object, where: str) -> dict[str, Any]:
    if type(value) is not dict or not all(type(key) is str for key in value):
        raise CorruptionError(f"{where} of a history is not a dict of names", rule=RULE)
    return value


def _expect(fields: Mapping[str, object], names: set[str], where: str) -> None:
    if set(fields) != names:
        raise CorruptionError(f"{where} of a history has the fields {sorted(fields)}, not {sorted(names)}", rule=RULE)


def _column(value: object, dtype: np.dtype[Any], where: str) -> Column:
    if type(value) is not np.ndarray or value.dtype != dtype or value.ndim != 1:
        raise CorruptionError(f"{where} of a history is not a column of {dtype}", rule=RULE)
    return value


def _ascends(steps: Column) -> bool:
    return bool((steps[:1] >= 0).all() and (steps[1:] > steps[:-1]).all())


def _is_name(name: object) -> bool:
    try:
        checked_name(name)
    except (TypeError, ValueError):
        return False
    return True


def _is_pin(name: object) -> bool:
    try:
        checked_pin(name)
    except (TypeError, ValueError):
        return False
    return True
