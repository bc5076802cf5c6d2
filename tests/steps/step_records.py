"""Records of steps, drawn at random: with ties, NaN, infinities and metrics that are missing."""

import dataclasses
import math

from hypothesis import strategies as st

from pytreeckpt.steps.records import REASONS, StepRecord

VALUES = st.one_of(st.sampled_from([0.0, -0.0, 1.0, 2.0, math.inf, -math.inf, math.nan]), st.floats(width=16))
METRICS = st.dictionaries(st.sampled_from(["val_loss", "accuracy", "läuft"]), VALUES)


@st.composite
def one_record(draw, step, saved_at=None):
    saved = draw(st.booleans())
    return StepRecord(
        step=step,
        root=draw(st.sampled_from(["ab" * 32, "00" * 31 + "01"])) if saved else "",
        nbytes=draw(st.integers(0, 1 << 60)) if saved else 0,
        saved_at=draw(st.floats(0, 1e10)) if saved_at is None else saved_at,
        metrics=draw(METRICS),
        epoch=draw(st.none() | st.floats(allow_nan=False, allow_infinity=False)),
        reason=draw(st.sampled_from(REASONS)),
    )


@st.composite
def records(draw, max_size=20):
    """Ascending by step, and saved one after the other."""
    steps = sorted(draw(st.sets(st.integers(0, 60), max_size=max_size)))
    times = sorted(draw(st.lists(st.integers(0, 100_000), min_size=len(steps), max_size=len(steps))))
    return [draw(one_record(step, float(at))) for step, at in zip(steps, times)]


def shown(record: StepRecord | None) -> str:
    """Equal for records that are the same, NaN being equal to itself. The order of metrics is nobody's concern."""
    return repr(record and dataclasses.replace(record, metrics=dict(sorted(record.metrics.items()))))


def of(step, metrics=None, saved_at=0.0, **more):
    return StepRecord(
        step=step,
        root=more.pop("root", "ab" * 32),
        nbytes=more.pop("nbytes", 1),
        saved_at=saved_at,
        metrics=metrics or {},
        **more,
    )
