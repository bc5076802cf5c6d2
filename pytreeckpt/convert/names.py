"""Names of leaves and layers, and the patterns that rules write them with.

A name is a sequence of steps. In text, steps are joined by `/`; a pattern may join them by `.` as well, since that is
how torch writes names, and puts a step that has a `/` or `.` of its own in double quotes. In a pattern,

- `{x}` stands for one step or a part of one, and is called x: `encoder.layer.{i}`, `layers_{i}/attn`;
- `*` stands for any text within one step, without a name;
- `{x**}` stands for any number of steps, also none, and `**` for the same without a name.

A template is written alike, and has what the pattern has found in place of `{x}` and `{x**}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from pytreeckpt.convert.records import Name
from pytreeckpt.errors import PathError
from pytreeckpt.paths import DictKey, Field, Index

Captures = Mapping[str, str]
"""What the parts of a pattern stand for; steps are joined by NUL."""

_STEP = re.compile(r'"((?:[^"\\]|\\.)*)"|([^./"][^./]*)')
_PART = re.compile(r"\*\*|\*|\{(\w+)(\*\*)?\}")
_NUMBERED = re.compile(r"(.+)_(0|[1-9][0-9]*)")


def steps_of(path: Sequence[object], *, dotted: bool = False) -> Name:
    """The steps of a path as texts. `dotted`: texts with dots are several steps, as in torch's state dicts."""
    steps: list[str] = []
    for step in path:
        match step:
            case Index(index):
                steps.append(str(index))
            case Field(name):
                steps.append(name)
            case DictKey(str(key)):
                steps += key.split(".") if dotted else [key]
            case DictKey(key) if isinstance(key, tuple):
                steps += map(str, key)
            case _:
                steps.append(str(step))
    return tuple(steps)


def text_of(name: Name) -> str:
    """A name for people, which parses as a pattern."""
    return "/".join(f'"{step}"' if "/" in step or "." in step or not step else step for step in name)


def canonical(name: Name) -> Name:
    """What names have in common that number their parts differently: `layers_0` and `layers/0`."""
    steps: list[str] = []
    for step in name:
        numbered = _NUMBERED.fullmatch(step)
        steps += numbered.groups() if numbered else [step]
    return tuple(steps)


def parse_steps(text: str) -> tuple[str, ...]:
    """The steps that a pattern or template writes. Raises `PathError`."""
    steps: list[str] = []
    at = 0
    while at < len(text):
        if steps:
            if text[at] not in "./":
                raise _unreadable(text, at)
            at += 1
        match = _STEP.match(text, at)
        if match is None:
            raise _unreadable(text, at)
        quoted, bare = match.groups()
        steps.append(re.sub(r"\\(.)", r"\1", quoted) if bare is None else bare)
        at = match.end()
    return tuple(steps)


def _unreadable(text: str, at: int) -> PathError:
    return PathError(
        f"cannot read the pattern {text!r} at position {at}: it is steps such as encoder.layer.{{i}} or params/*/kernel"
    )


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern, compiled: it matches names as steps joined by NUL."""

    text: str
    whole: re.Pattern[str]
    beginning: re.Pattern[str]


@lru_cache(maxsize=4096)
def compile_pattern(text: str) -> Pattern:
    """Raises `PathError` for what is no pattern."""
    seen: set[str] = set()
    source = "".join(_step_source(step, seen, text) for step in parse_steps(text))
    return Pattern(text, re.compile(source, re.DOTALL), re.compile(f"{source}(?P<rest_>(?:\0.*)?)", re.DOTALL))


def _step_source(step: str, seen: set[str], text: str) -> str:
    whole = _PART.fullmatch(step)
    if whole is not None and (step == "**" or whole[2]):
        return _group(whole[1], "(?:\0[^\0]*)*", seen, text)
    source = "\0"
    at = 0
    for part in _PART.finditer(step):
        if part[0] == "**" or part[2]:
            raise PathError(f"in the pattern {text!r}, {part[0]} is only a part of a step, and stands for whole ones")
        source += re.escape(step[at : part.start()]) + _group(
            part[1], "[^\0]*" if part[0] == "*" else "[^\0]+", seen, text
        )
        at = part.end()
    return source + re.escape(step[at:])


def _group(name: str | None, source: str, seen: set[str], text: str) -> str:
    if name is None:
        return source
    if name in seen:
        # The same thing again.
        return f"(?P={name})"
    if not name.isidentifier() or name.endswith("_"):
        raise PathError(f"in the pattern {text!r}, {name!r} is no name for a part")
    seen.add(name)
    return f"(?P<{name}>{source})"


def _joined(name: Name) -> str:
    return "".join(f"\0{step}" for step in name)


def match_name(pattern: str, name: Name) -> Captures | None:
    """What the parts of a pattern stand for in a name, or None if it does not match all of it."""
    found = compile_pattern(pattern).whole.fullmatch(_joined(name))
    return None if found is None else found.groupdict()


def match_beginning(pattern: str, name: Name) -> tuple[Captures, Name] | None:
    """As `match_name`, for the first steps of a name; and the others."""
    found = compile_pattern(pattern).beginning.fullmatch(_joined(name))
    if found is None:
        return None
    captures = found.groupdict()
    rest = captures.pop("rest_")
    return captures, tuple(rest.split("\0")[1:])


def fill_template(template: str, captures: Captures) -> Name:
    """The name that a template makes. Raises `PathError` for a part that the pattern has not."""
    return tuple(step for each in parse_steps(template) for step in _filled(each, captures, template))


def _filled(step: str, captures: Captures, template: str) -> Iterator[str]:
    whole = _PART.fullmatch(step)
    if whole is not None and whole[2]:
        yield from _captured(whole[1], captures, template).split("\0")[1:]
        return

    def value(part: re.Match[str]) -> str:
        if part[1] is None:
            raise PathError(f"the template {template!r} has {part[0]}; give it a name in both: {{x}}, {{x**}}")
        return _captured(part[1], captures, template)

    yield _PART.sub(value, step)


def parts_of(text: str) -> list[str]:
    """The names of the parts that a pattern or template has, each once."""
    return list(dict.fromkeys(part[1] for step in parse_steps(text) for part in _PART.finditer(step) if part[1]))


def _captured(name: str, captures: Captures, template: str) -> str:
    if name not in captures:
        raise PathError(f"the template {template!r} has {{{name}}}, which the pattern has not")
    return captures[name]
