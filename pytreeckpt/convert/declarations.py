"""What rules say of layers of torch: what kinds they are, and where a rule speaks of none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from pytreeckpt.convert.layers import TABLES
from pytreeckpt.convert.lookup import close_names, layers_of, number_of, renamed
from pytreeckpt.convert.names import match_beginning, match_name, steps_of, text_of
from pytreeckpt.convert.records import Inventory, Layer, Leaf, Model, Name
from pytreeckpt.convert.rules import (
    Choose,
    Convert,
    Drop,
    Fill,
    Flattened,
    Kind,
    Rename,
    Rule,
    RuleError,
    Scan,
    Waive,
    kind_name,
    of_type,
)
from pytreeckpt.paths import suggest


def with_kinds(model: Model, rules: Sequence[Rule]) -> Model:
    """A model of torch whose layers are of the kinds that rules declare; the first one that matches a layer decides."""
    kinds = of_type(rules, Kind)
    layers = dict(model.layers)
    for name in _all_layers(model) if kinds else ():
        declared = next((rule for rule in kinds if match_name(rule.layers, name) is not None), None)
        if declared is not None:
            kind = kind_name(declared.kind)
            # What was recorded still tells how it is configured.
            layers[name] = Layer(kind, kind, layers[name].config if name in layers else {})
    return replace(model, layers=layers)


def _all_layers(model: Model) -> list[Name]:
    return list(dict.fromkeys([*model.layers, *layers_of(model)]))


def ill_formed(rules: Sequence[object]) -> list[str]:
    """What of the rules says nothing, as texts. Raises `RuleError` for what is no rule at all."""
    problems: list[str] = []
    for rule in rules:
        match rule:
            case Waive(None, None, None):
                problems.append("the rule Waive() lets nothing pass: say what, unused=…, missing=… or check=…")
            case Scan() if number_of(rule) is None:
                problems.append(
                    f"the rule scan {rule.source!r}: which part numbers the layers is not said; it is the one that the "
                    'target has not, as in Scan("h.{i}", "h/block")'
                )
            case Rename() | Kind() | Choose() | Convert() | Scan() | Drop() | Fill() | Waive() | Flattened():
                continue
            case _:
                raise RuleError(
                    f"{rule!r} is no rule: rules are such as Rename(…), Kind(…), Convert(…) of pytreeckpt.convert, or "
                    "what parse_rules makes of TOML"
                )
    return problems


def idle_waivers(rules: Sequence[Rule], source: Inventory, target: Inventory) -> list[str]:
    """The waivers that match no leaf of the side that they speak of, as texts."""
    problems: list[str] = []
    for waive in of_type(rules, Waive):
        for what, pattern, side in (("unused", waive.unused, source), ("missing", waive.missing, target)):
            if pattern is None:
                continue
            names = [*side.model.leaves, *(steps_of(path) for path in side.rest)]
            if not any(match_name(pattern, name) is not None for name in names):
                problems.append(idle_text(f"waive {what} {pattern!r}", pattern, "leaf", list(side.model.leaves)))
    return problems


def idle_rules(model: Model, rules: Sequence[Rule]) -> list[str]:
    """The rules that match no layer of a model of torch, as texts: they are mistakes, in a name for example."""
    layers = _all_layers(model)
    problems = [
        idle_text(f"{type(rule).__name__.lower()} {rule.layers!r}", rule.layers, "layer", layers)
        for rule in rules
        if isinstance(rule, Kind | Choose | Flattened)
        and not any(match_name(rule.layers, name) is not None for name in layers)
    ]
    problems += [text for kind in of_type(rules, Kind) if (text := _unknown(kind)) is not None]
    problems += [
        idle_text(f"scan {scan.source!r}", scan.source, "layer", layers)
        for scan in of_type(rules, Scan)
        if not any(match_beginning(scan.source, name) is not None for name in layers)
    ]
    # A rename is of leaves too, and of what others have made of them.
    names = [*layers, *model.leaves]
    for rename in of_type(rules, Rename):
        if not any(match_beginning(rename.source, name) is not None for name in names):
            problems.append(idle_text(f"rename {rename.source!r}", rename.source, "layer or leaf", names))
        names = [renamed(name, [rename]) for name in names]
    return [*problems, *_meetings(model, rules)]


def _meetings(model: Model, rules: Sequence[Rule]) -> list[str]:
    """Leaves that renames give one name, as texts: of two layers that change places, one has to step aside."""
    renames = of_type(rules, Rename)
    let_go = [rule.leaves for rule in of_type(rules, Drop)] + [
        each for rule in of_type(rules, Waive) for each in (rule.unused, rule.missing) if each is not None
    ]
    first: dict[Name, Leaf] = {}
    for name, leaf in model.leaves.items() if renames else ():
        if any(match_name(pattern, name) is not None for pattern in let_go):
            continue
        other = first.setdefault(renamed(name, renames), leaf)
        if other is not leaf and (other.identity is None or other.identity != leaf.identity):
            text = (
                f"the renames make {text_of(other.name)} and {text_of(name)} the same, "
                f"{text_of(renamed(name, renames))}: they are applied one after the other, so that layers change "
                'places by a third name, Rename("a", "aside"), Rename("b", "a"), Rename("aside", "b")'
            )
            return [text]
    return []


_CONTAINERS: Final = tuple(f"torch.nn.{name}" for name in ("Sequential", "ModuleList", "ModuleDict", "Module"))


def _unknown(rule: Kind) -> str | None:
    """Why there is no such kind: a class of one's own has a package."""
    name = kind_name(rule.kind)
    known = dict.fromkeys([*_CONTAINERS, *(kind for table in TABLES.values() for kind in table)])
    if name in known or not name.startswith("torch.nn."):
        return None
    close = suggest(name, list(known), count=3, cutoff=0.6)
    hint = f"; there is {', '.join(close)}" if close else ""
    return f"the rule kind {rule.kind!r}: that is no kind of layer{hint}"


def idle_text(rule: str, pattern: str, what: str, names: Sequence[Name]) -> str:
    """That a rule matches nothing, and what there is."""
    literal = tuple(step for step in pattern.replace("/", ".").split(".") if "*" not in step and "{" not in step)
    # The model itself has no name to tell.
    close = close_names(literal, [name for name in names if name]) if literal else []
    hint = f"; there is {', '.join(close)}" if close else ""
    return f"the rule {rule} matches no {what}{hint}"
