"""What the command line asks for, as a value: checked before any file is opened."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Final

from pytreeckpt.commit import IfExists
from pytreeckpt.convert import Kind, Rule, RuleError, Waive, parse_rules
from pytreeckpt.convert.layers import TABLES
from pytreeckpt.convert.names import compile_pattern
from pytreeckpt.convert.presets import TRANSFORMERS_FLAX
from pytreeckpt.convert.rules import kind_name
from pytreeckpt.convert.values import dtype_named, is_float
from pytreeckpt.errors import CheckpointNotFoundError, PytreeckptError, StorageError
from pytreeckpt.operations.formats import FORMATS, Format, format_of
from pytreeckpt.paths import Path, suggest

SCHEMES: Final = {"linen": "linen", "flax": "linen", "nnx": "nnx", "equinox": "equinox"}
"""What `--to` calls the schemes; flax is what most mean by linen."""
_PRESETS: Final = "transformers-flax:"
"""What the names of rules begin with that are shipped."""
_UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY_UNITS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class OptionError(PytreeckptError, ValueError):
    """The options do not go together, or one of them cannot be read."""


@dataclass(frozen=True, slots=True)
class Place:
    """A file, and what in it."""

    file: str
    path: Path


@dataclass(frozen=True, slots=True)
class Job:
    """A conversion that was asked for. `format`: of the file that is written; `scheme`: of a target that is only named.

    `kinds` and `waives`: the rules of these options, which come before those of files, `rules`.
    """

    source: Place
    destination: str
    format: Format
    scheme: str | None
    target: Place | None
    rules: tuple[Rule, ...]
    dtype: str | None
    cast: bool
    dry_run: bool
    json: bool
    plan: str | None
    residuals: str | None
    invert: bool
    if_exists: IfExists
    max_shard_nbytes: int | None

    @property
    def has_plan(self) -> bool:
        """Whether values or names change, and not the format of the file alone."""
        return self.invert or self.scheme is not None or self.target is not None or self.dtype is not None


def job_of(given: Namespace) -> Job:
    """The job that the arguments ask for. Reads the files of rules. Raises `OptionError`, `RuleError` and `PathError`
    for what makes no sense, and `CheckpointNotFoundError` and `StorageError` for files of rules.
    """
    problems = [*_contradictions(given)]
    if problems:
        raise OptionError(problems[0])
    dtype = None if given.dtype is None else _float_named(given.dtype)
    shard = None if given.max_shard_size is None else nbytes_of(given.max_shard_size)
    job = Job(
        Place(given.source, Path() if given.select is None else Path.parse(given.select)),
        given.destination,
        _format(given),
        SCHEMES.get(given.to),
        None if given.target is None else _place(given.target),
        (*_option_rules(given), *_file_rules(given.rules)),
        dtype,
        given.cast,
        given.dry_run,
        given.json,
        given.plan,
        given.residuals,
        given.invert,
        given.if_exists,
        shard,
    )
    if job.max_shard_nbytes is not None and job.format.name != "safetensors":
        raise OptionError(f"--max-shard-size is for safetensors, and {job.destination} is to be {job.format.name}")
    return job


def _contradictions(given: Namespace) -> Iterator[str]:
    decides = given.to in SCHEMES or given.target is not None
    rules = [name for name in ("rules", "kind", "waive_unused", "waive_missing") if getattr(given, name)]
    if given.invert:
        if given.residuals is None:
            yield "--invert needs --residuals FILE, which the way here has written"
        others = [*rules, *(n for n in ("target", "select", "dtype", "plan") if getattr(given, n) is not None)]
        others += [name for name in ("cast",) if getattr(given, name)] + (["to"] if given.to in SCHEMES else [])
        if others:
            yield f"--invert does what the residuals file says: leave out {_options(others)}"
        return
    if given.to in SCHEMES and given.target is not None:
        yield f"--target says what the result is to be: leave out --to {given.to}"
    if rules and not decides:
        yield (
            f"{_options(rules)}: between formats alone there is nothing to decide; for another framework, give --to "
            f"{', '.join(SCHEMES)} or --target FILE"
        )
    if given.cast and given.target is None:
        yield "--cast rounds to the dtypes of --target FILE; --dtype rounds to one"
    if given.cast and given.dtype is not None:
        yield "--dtype and --cast are two ways to say to what is rounded: leave out one"
    files = [name for name in ("plan", "residuals") if getattr(given, name) is not None]
    if files and not decides and given.dtype is None:
        yield f"{_options(files)}: between formats alone nothing changes; give --to, --target or --dtype"
    if files and given.dry_run:
        yield f"--dry-run writes nothing: leave out {_options(files)}; with --json it prints the plan too"
    outputs = [given.destination, *(getattr(given, name) for name in files)]
    if len(set(outputs)) < len(outputs):
        yield "two of the files that are to be written have the same name"
    if given.residuals is not None and given.residuals == given.source:
        yield "--residuals would replace the source"


def _options(names: Sequence[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def _format(given: Namespace) -> Format:
    of_suffix = format_of(given.destination)
    if given.to in FORMATS:
        asked = FORMATS[given.to]
        if of_suffix is not None and of_suffix is not asked:
            hint = "; for a model of torch, give --target FILE" if asked.name == "torch" else ""
            raise OptionError(
                f"{given.destination} ends as a file of {of_suffix.name} does, and --to asks for {asked.name}{hint}"
            )
        return asked
    if of_suffix is None:
        suffixes = ", ".join(suffix for each in FORMATS.values() for suffix in each.suffixes)
        raise OptionError(
            f"cannot tell which format {given.destination} is to be: end it in one of {suffixes}"
            + ("" if given.to in SCHEMES else f", or give --to {', '.join(FORMATS)}")
        )
    return of_suffix


def _place(text: str) -> Place:
    """`FILE` or `FILE:PATH`: a file of the whole name comes first."""
    if FilePath(text).exists():
        return Place(text, Path())
    for at in (match.start() for match in re.finditer(":", text)):
        if FilePath(text[:at]).exists():
            return Place(text[:at], Path.parse(text[at + 1 :]))
    return Place(text, Path())


def _float_named(name: str) -> str:
    try:
        if is_float(dtype_named(name)):
            return name
    except ValueError:
        pass
    raise OptionError(f"--dtype {name}: it is a floating-point one, such as float32, bfloat16 or float16")


def nbytes_of(text: str) -> int:
    """The bytes of a size such as 5GB, 500MB or 2GiB. Raises `OptionError` for what is none."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if found is not None:
        number, unit, binary = found.groups()
        units = _BINARY_UNITS if binary else _UNITS
        nbytes = int(float(number) * units[unit.upper()]) if unit.upper() in units else 0
        if nbytes >= 1:
            return nbytes
    raise OptionError(f"--max-shard-size {text}: it is a size such as 5GB, 500MB or 2GiB")


def _option_rules(given: Namespace) -> Iterator[Rule]:
    for text in given.kind:
        pattern, found, kind = text.rpartition("=")
        if not found or not pattern or not kind:
            raise OptionError(f"--kind {text}: it is PATTERN=KIND, such as '**.query=Linear'")
        compile_pattern(pattern)
        known = {each for table in TABLES.values() for each in table}
        if kind_name(kind) not in known:
            close = suggest(kind_name(kind), sorted(known), count=3, cutoff=0.6)
            hint = f"; there is {', '.join(each.removeprefix('torch.nn.') for each in close)}" if close else ""
            raise OptionError(f"--kind {text}: no table knows a {kind}{hint}")
        yield Kind(pattern, kind)
    for pattern in given.waive_unused:
        compile_pattern(pattern)
        yield Waive(unused=pattern)
    for pattern in given.waive_missing:
        compile_pattern(pattern)
        yield Waive(missing=pattern)


def _preset(name: str) -> tuple[Rule, ...]:
    if name not in TRANSFORMERS_FLAX:
        raise OptionError(f"--rules {_PRESETS}{name}: there is {', '.join(map(_PRESETS.__add__, TRANSFORMERS_FLAX))}")
    return TRANSFORMERS_FLAX[name]


def _file_rules(files: Sequence[str]) -> Iterator[Rule]:
    for file in files:
        if file.startswith(_PRESETS) and not FilePath(file).exists():
            yield from _preset(file.removeprefix(_PRESETS))
            continue
        try:
            text = FilePath(file).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise CheckpointNotFoundError(f"there is no file of rules at {file}") from None
        except OSError as error:
            raise StorageError(f"cannot read {file}: {error.strerror}") from error
        except UnicodeDecodeError:
            raise RuleError(f"{file}: the rules are no TOML: they are not in UTF-8") from None
        try:
            yield from parse_rules(text)
        except RuleError as error:
            raise RuleError(f"{file}: {error}") from None
