"""Hyperparameters that optax keeps in its state (`optax.inject_hyperparams`), from the options of torch."""

from __future__ import annotations

from collections.abc import Sequence

from pytreeckpt.convert.operations import Affine, Cast
from pytreeckpt.convert.optimizers.draft import Member
from pytreeckpt.convert.optimizers.moments import fill_entry
from pytreeckpt.convert.optimizers.table import Setting
from pytreeckpt.convert.records import Entry, Inventory, Leaf
from pytreeckpt.paths import DictKey, Index, Path


def setting_entry(leaf: Leaf, name: str, members: Sequence[Member], source: Inventory) -> Entry | str | None:
    """The entry of the hyperparameter `name`, what is in the way of it, or None if torch has no such option."""
    settings = {member.row.settings(member.parameter.group.options).get(name) for member in members}
    if len(settings) != 1 or None in settings:
        return (
            None if settings == {None} else f"{leaf.path} is of parameters whose options in torch are not the same ones"
        )
    (setting,) = settings
    if setting is None:
        return None
    values = {_value(member, setting) for member in members}
    if len(values) != 1:
        return f"{leaf.path} is of groups whose {name} differ: {', '.join(sorted(map(str, values)))}"
    paths = [_path(member, setting) for member in members]
    found = next((path for path in paths if path is not None and path in source.rest), None)
    reason = f"option of {members[0].optimizer.kind}"
    if found is None:
        (value,) = values
        return fill_entry(leaf, float(value), "option", reason) if isinstance(value, int | float) else None
    dtype = source.rest[found].dtype
    scaled = (Affine(setting.scale),) if setting.scale != 1 else ()
    casts = (Cast(dtype.name, leaf.dtype.name),) if dtype != leaf.dtype else ()
    return Entry((found,), (leaf.path,), (*casts, *scaled), "option", reason)


def _path(member: Member, setting: Setting) -> Path | None:
    if setting.option is None:
        return None
    first, *others = setting.option
    items = [Index(int(each)) for each in others]
    return Path((*member.parameter.group.path, DictKey(first), *items))


def _value(member: Member, setting: Setting) -> object:
    if setting.option is None:
        return setting.value
    first, *others = setting.option
    value = member.parameter.group.options.get(str(first))
    for each in others:
        value = value[int(each)] if isinstance(value, tuple) else None
    return value * setting.scale if isinstance(value, int | float) and setting.scale != 1 else value
