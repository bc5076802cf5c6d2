"""The adapter: which object of JAX is stored as what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import jax

from pytreeckpt import Adapter, Expansion, LeafTemplate, UnsupportedTypeError
from pytreeckpt_jax.arrays import build_array, build_keys, expand_array, template
from pytreeckpt_jax.averaging import BLEND
from pytreeckpt_jax.conversion import describe
from pytreeckpt_jax.nodes import expand_node
from pytreeckpt_jax.placement import from_array

_BUILDERS: Final[Mapping[str, Callable[[Mapping[str, object]], object]]] = {
    "jax.Array": build_array,
    "jax.PRNGKeyArray": build_keys,
}


def _expand(value: object) -> Expansion | None:
    return expand_array(value) if isinstance(value, jax.Array) else expand_node(value)


def _build(name: str, fields: Mapping[str, object]) -> object:
    if name not in _BUILDERS:
        raise UnsupportedTypeError(
            f'this version of pytreeckpt does not know {name}; use a newer one, or restore with to="numpy"'
        )
    return _BUILDERS[name](fields)


def _template(value: object) -> LeafTemplate | None:
    return template(value) if isinstance(value, jax.Array | jax.ShapeDtypeStruct) else None


ADAPTER: Final = Adapter(
    framework="jax",
    expand=_expand,
    build=_build,
    from_array=from_array,
    template=_template,
    describe=describe,
    blend=BLEND,
)
