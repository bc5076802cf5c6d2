"""HTML as data: elements whose texts and attributes are always escaped, so that nothing from a file can be markup.

`Html` is made by this module only. What a reader would not see, or see reversed (controls, bidi marks), is made visible
as on a terminal; what is longer than anyone reads is shortened, so that each element is of bounded size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from typing import Final, NewType

from pytreeckpt.cli.text import shorten, visible

Html = NewType("Html", str)
"""Markup that is safe to put into the page."""

_MAX_TEXT: Final = 500
_PIECE: Final = re.compile(r"[^./_\[]*[./_\[]|[^./_\[]+")
_VOID: Final = frozenset({"meta", "input", "rect", "line", "path"})


def text(value: str) -> Html:
    """A text, escaped."""
    return Html(escape(_shown(value)))


def _shown(value: str) -> str:
    return shorten(visible(value), _MAX_TEXT)


def name(value: str) -> Html:
    """A path or name, escaped, that may be broken after its separators."""
    return joined((Html(escape(piece)) for piece in _PIECE.findall(_shown(value))), "<wbr>")


def element(tag: str, /, *content: Html | str, **attributes: str | float | bool) -> Html:
    """An element. Contents that are plain texts come through `text`.

    A trailing underscore of an attribute's name is dropped (`class_`), others become hyphens; True stands for an
    attribute without a value, False for none.
    """
    written = "".join(_attribute(attribute, value) for attribute, value in attributes.items())
    if tag in _VOID and not content:
        return Html(f"<{tag}{written}/>")
    return Html(f"<{tag}{written}>{''.join(content)}</{tag}>")


def _attribute(attribute: str, value: str | float | bool) -> str:  # noqa: FBT001 - attributes may be set or not
    if value is False:
        return ""
    attribute = attribute.rstrip("_").replace("_", "-")
    if value is True:
        return f" {attribute}"
    shown = f"{value:.6g}" if isinstance(value, float) else str(value)
    return f' {attribute}="{escape(visible(shown))}"'


def joined(parts: Iterable[Html], separator: str = "") -> Html:
    """Markup after markup."""
    return Html(separator.join(parts))
