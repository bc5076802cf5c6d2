"""What rules say of layers of torch: what kinds they are, and where a rule speaks of none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from pytreeckpt.convert.layers import TABLES
from pytreeckpt.convert.lookup import close_names, layers_of, renamed
from pytreeckpt.convert.names import match_beginning, match_name
from pytreeckpt.convert.records import Layer, Model, Name
from pytreeckpt.convert.rules import Choose, Flattened, Kind, Rename, Rule, Scan, kind_name, of_type
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
    return problems


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
    close = close_names(literal, names)
    hint = f"; there is {', '.join(close)}" if close else ""
    return f"the rule {rule} matches no {what}{hint}"
