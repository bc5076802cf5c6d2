"""What pytreeckpt sets out to reach, judged by the figures of a run. Pure: results in, verdicts out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from benchmarks.figures import COPY, OURS, OURS_MAPPED, OURS_RAW, Results, distinct, find, median, summary, times_faster

MIB = 1 << 20
DTYPES = ("float32", "bfloat16")
MINILM = ("MiniLM float32", "MiniLM bfloat16")
SAFETENSORS = ("safetensors", "safetensors torch")
ZIPNN = "ZipNN"

# What a target is judged on: pairs of a place and what was measured there.
Found = Iterator[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Target:
    """`found(results)` gives all that the target is about; the worst of it is judged."""

    text: str
    better: Literal["≤", "≥", "<"]
    limit: float
    unit: Literal["", "×", "s", "B"]
    found: Callable[[Results], Found]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The worst value, where it was measured, and whether it meets the target; None where nothing was measured."""

    target: Target
    value: float | None
    where: str
    met: bool | None


def judge(results: Results, target: Target) -> Verdict:
    """Hold a target against the figures."""
    found = list(target.found(results))
    if not found:
        return Verdict(target, None, "not measured", met=None)
    worst = min if target.better == "≥" else max
    where, value = worst(found, key=lambda pair: pair[1])
    met = {"≥": value >= target.limit, "≤": value <= target.limit, "<": value < target.limit}[target.better]
    return Verdict(target, value, where, met)


def _size(data: str, results: Results) -> Found:
    if (figure := find(results, "state", data, OURS, "size")) is not None:
        yield data, summary(figure.values).median / figure.nbytes


def _size_against_zipnn(data: str, results: Results) -> Found:
    sizes = [median(results, "codec", data, candidate, "size") for candidate in (OURS, ZIPNN)]
    if sizes[0] and sizes[1]:
        yield data, sizes[0] / sizes[1]


def _faster(
    operation: str,
    peers: Sequence[str],
    results: Results,
    *,
    ours: str = OURS,
    case: str = "state",
    datas: Sequence[str] | None = DTYPES,
) -> Found:
    """How many times faster than the fastest of the peers, for each of the data; for all that there are with None."""
    for data in datas or distinct(figure.data for figure in results.figures if figure.case == case):
        if (times := times_faster(results, case, data, operation, peers, ours=ours)) is not None:
            yield f"{data}, {operation}", times


def _leaves_faster(operations: Sequence[str], results: Results) -> Found:
    for operation in operations:
        yield from _faster(operation, SAFETENSORS, results, case="leaves", datas=None)


def _against_a_copy(results: Results) -> Found:
    for data in distinct(figure.data for figure in results.figures if figure.case == "stall"):
        ours, copy = (median(results, "stall", data, candidate, "call") for candidate in (OURS, COPY))
        if ours and copy and data != "jax":
            yield data, ours / copy


def _call_for_jax(results: Results) -> Found:
    if (value := median(results, "stall", "jax", OURS, "call")) is not None:
        yield "jax", value


def _values(case: str, operations: Sequence[str], results: Results, *, ours: Sequence[str] = (OURS,)) -> Found:
    for figure in results.figures:
        if figure.case == case and figure.operation in operations and figure.candidate in ours:
            yield f"{figure.candidate}, {figure.data}, {figure.operation}", summary(figure.values).median


BOTH = (OURS, OURS_RAW)
SAVES = ("save", "save, durable")

TARGETS: tuple[Target, ...] = (
    Target("size of Gaussian float32", "≤", 0.835, "", partial(_size, "float32")),
    Target("size of Gaussian bfloat16", "≤", 0.665, "", partial(_size, "bfloat16")),
    Target("size of MiniLM float32, against ZipNN", "≤", 1, "", partial(_size_against_zipnn, MINILM[0])),
    Target("size of MiniLM bfloat16, against ZipNN", "≤", 1, "", partial(_size_against_zipnn, MINILM[1])),
    *(
        Target(
            f"{operation} in memory, against ZipNN{suffix}",
            "≥",
            limit,
            "×",
            partial(_faster, operation + suffix, (ZIPNN,), case="codec", datas=None),
        )
        for suffix in ("", ", 1 thread")
        for operation, limit in (("compress", 2.5), ("decompress", 1.3))
    ),
    Target("durable save, against safetensors and fsync", "≥", 1, "×", partial(_faster, "save, durable", SAFETENSORS)),
    Target(
        "durable save, uncompressed, against the same",
        "≥",
        1.1,
        "×",
        partial(_faster, "save, durable", SAFETENSORS, ours=OURS_RAW),
    ),
    Target(
        "restore, uncompressed and every byte verified, against safetensors (numpy, which copies)",
        "≥",
        1.3,
        "×",
        partial(_faster, "restore", ("safetensors",), ours=OURS_RAW),
    ),
    Target(
        "the same, mapped, against safetensors (torch, which maps)",
        "≥",
        1.3,
        "×",
        partial(_faster, "restore", ("safetensors torch",), ours=OURS_MAPPED),
    ),
    Target("restore, against torch.load", "≥", 1.3, "×", partial(_faster, "restore", ("torch.save",))),
    Target("restore, against Orbax", "≥", 5, "×", partial(_faster, "restore", ("Orbax",))),
    *(
        Target(f"{operation}, against {peer}", "≥", limit, "×", partial(_faster, operation, (peer,)))
        for peer, limit in (("Orbax", 5), ("torch DCP", 1.2), ("flax msgpack", 6))
        for operation in SAVES
    ),
    Target("small leaves: save, against safetensors", "≥", 1, "×", partial(_leaves_faster, SAVES)),
    Target("small leaves: restore, against safetensors", "≥", 1, "×", partial(_leaves_faster, ("restore",))),
    Target("small leaves: save", "<", 0.5, "s", partial(_values, "leaves", SAVES)),
    Target("small leaves: restore", "<", 0.5, "s", partial(_values, "leaves", ("restore",))),
    Target("1 MiB of a large file: time", "<", 0.010, "s", partial(_values, "slice", ("slice",), ours=BOTH)),
    Target(
        "1 MiB of a large file: read", "<", 8 * MIB, "B", partial(_values, "slice", ("slice, bytes read",), ours=BOTH)
    ),
    Target("save in the background: the call, against a plain copy", "≤", 1.2, "×", _against_a_copy),
    Target("the same, for JAX arrays on the CPU, which are not copied: time", "<", 0.010, "s", _call_for_jax),
    *(
        Target(f"extra memory: {operation}", "≤", limit * MIB, "B", partial(_values, "memory", (operation,), ours=BOTH))
        for operation, limit in (("save", 64), ("restore", 64), ("restore in place", 32))
    ),
)
