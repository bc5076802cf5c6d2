"""Modules of torch that were pickled whole, as the records that a reader makes of them: their state dicts and layers.

Their fields are those of `torch.nn.Module`: `_parameters`, `_buffers`, `_modules`. What a module computes is code, and
not in the file; of torch's own classes, the name says it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pytreeckpt.adapters import Described
from pytreeckpt.objects import Record, fields_of, record_expansion

_PARTS: Final = ("_parameters", "_buffers", "_modules")
_TORCH: Final = "torch.nn.modules."
_MAX_CONFIG_ITEMS: Final = 16


def describe_record(value: object) -> Described | None:
    """What a record of a module has; None for any other value."""
    if not _is_module(value):
        return None
    tree: dict[str, object] = {}
    layers: dict[str, Mapping[str, object]] = {}
    buffers: list[str] = []
    stack: list[tuple[str, Any]] = [("", value)]
    while stack:
        prefix, module = stack.pop()
        # Any: what a file has in them is looked at one by one.
        fields: Mapping[str, Any] = fields_of(module)
        layers[prefix.removesuffix(".")] = _layer(module, fields)
        for key, each in fields["_parameters"].items():
            if each is not None:
                tree[f"{prefix}{key}"] = each
        transient = fields.get("_non_persistent_buffers_set", ())
        for key, each in fields["_buffers"].items():
            if each is not None and not (isinstance(transient, set | frozenset) and key in transient):
                tree[f"{prefix}{key}"] = each
                buffers.append(f"{prefix}{key}")
        inner = [(f"{prefix}{key}.", each) for key, each in fields["_modules"].items() if _is_module(each)]
        stack.extend(reversed(inner))
    return Described("torch", tree, (), layers, frozenset(buffers))


def _is_module(value: object) -> bool:
    if not isinstance(value, Record):
        return False
    fields = fields_of(value)
    return all(isinstance(fields.get(part), Mapping) for part in _PARTS)


def _layer(module: Record, fields: Mapping[str, Any]) -> Mapping[str, object]:
    name = record_expansion(module).type.name
    path, _, cls = name.partition(":")
    is_torch = path.startswith(_TORCH)
    text = f"torch.nn.{cls}" if is_torch else f"{path}.{cls}"
    config = {key: each for key, each in fields.items() if key[:1] != "_" and key != "training" and _is_plain(each)}
    # What it was made without.
    config.update((key, False) for key, each in fields["_parameters"].items() if each is None)
    return {"class": text, "kind": text if is_torch else "torch.nn.Module", "config": config}


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return len(value) <= _MAX_CONFIG_ITEMS and all(map(_is_plain, value))
    return value is None or type(value) in {bool, int, float, str}
