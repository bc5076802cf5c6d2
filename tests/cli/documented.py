"""The tables of docs/command-line.md as data, and a document held against them."""

import re
from typing import Any, NamedTuple

from tests.cli.running import REPOSITORY

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
    "object": (dict,),
    "list": (list,),
    "null": (type(None),),
    "any": (str, int, float, bool, list, dict, type(None)),
}


class Field(NamedTuple):
    types: tuple[type, ...]
    required: bool


Table = dict[str, Field]


def tables(schema: str) -> dict[str, Table]:
    """The tables of a schema by the names in the line before them; the first one, of the document itself, by ""."""
    text = (REPOSITORY / "docs" / "command-line.md").read_text()
    section = text.split(f"### {schema}\n")[1].split("\n### ")[0].split("\n## ")[0]
    found: dict[str, Table] = {}
    for block in re.split(r"\n(?=[`E][^|\n]*\n\n\|)", section):
        table: Table = {}
        for name, types, meaning in re.findall(r"^\| `(\w+)` \| ([a-z ]+) \| ?(.*?) ?\|$", block, re.MULTILINE):
            allowed = tuple(cls for word in types.split(" or ") for cls in _TYPES[word])
            table[name] = Field(allowed, not meaning.startswith("*if*"))
        names = re.findall(r"`(\w+)`", block.lstrip().split("\n")[0]) if found else [""]
        for name in names:
            found[name] = table
    return found


def check(document: dict[str, Any], schema: str) -> None:
    """Fail unless the document has the fields of the tables, of their types, and no others."""
    found = tables(schema)
    assert len(found) >= 3
    assert document["schema"] == schema
    _check(document, found, "")


def _check(record: dict[str, Any], found: dict[str, Table], name: str) -> None:
    table = found[name]
    assert set(record) <= set(table), f"not documented: {set(record) - set(table)} in {name or 'the document'}"
    missing = {field for field, entry in table.items() if entry.required} - set(record)
    assert not missing, f"missing: {missing} in {name or 'the document'}"
    for field, value in record.items():
        assert type(value) in table[field].types, f"{name}.{field} is {value!r}"
        below = value if isinstance(value, list) else [value]
        if field in found and all(isinstance(item, dict) for item in below):
            for item in below:
                _check(item, found, field)
