"""What each opcode of pickle does to the machine, and the loop that does it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pytreeckpt.errors import CorruptionError, LimitError
from pytreeckpt.interop.pickle_machine import Machine, kind_of
from pytreeckpt.interop.pickle_opcodes import OPCODES, Feed
from pytreeckpt.interop.pickle_running import run_ahead
from pytreeckpt.interop.pickle_values import Global, Instance, Ledger, Persistent
from pytreeckpt.limits import current_limits
from pytreeckpt.reading import RangedSource

_SET: Final = Global("builtins", "set")
_FROZENSET: Final = Global("builtins", "frozenset")
_MAX_PROTOCOL: Final = 5


def _tuple_of(count: int) -> Callable[[Machine], None]:
    def act(machine: Machine) -> None:
        machine.need(count)
        start = len(machine.stack) - count
        taken = tuple(machine.stack[start:])
        del machine.stack[start:]
        machine.make(taken)

    return act


def _pop(machine: Machine) -> None:
    if machine.marks and machine.fence == len(machine.stack):
        machine.pop_mark()
    else:
        machine.pop()


def _append(machine: Machine) -> None:
    value = machine.pop()
    machine.append([value])


def _appends(machine: Machine) -> None:
    machine.append(machine.pop_mark())


def _set_item(machine: Machine) -> None:
    value = machine.pop()
    key = machine.pop()
    machine.set_items([key, value])


def _add_items(machine: Machine) -> None:
    values = machine.pop_mark()
    target = machine.top()
    if type(target) is not Instance:
        raise CorruptionError(f"a {kind_of(target)} takes no elements", rule="pickle")
    target.add_elements(values)


def _frozen_set(machine: Machine) -> None:
    # The list alone would be the argument that makes it.
    machine.call(_FROZENSET, (machine.pop_mark(),))


def _stack_global(machine: Machine) -> None:
    name = machine.pop()
    module = machine.pop()
    machine.make(machine.name(module, name))


def _reduce(machine: Machine) -> None:
    args = machine.pop()
    callee = machine.pop()
    machine.call(callee, args)


def _newobj_ex(machine: Machine) -> None:
    keywords = machine.pop()
    args = machine.pop()
    callee = machine.pop()
    machine.call(callee, args, keywords)


def _inst(machine: Machine, names: tuple[str, str]) -> None:
    args = tuple(machine.pop_mark())
    machine.call(machine.name(*names), args)


def _obj(machine: Machine) -> None:
    items = machine.pop_mark()
    if not items:
        raise CorruptionError("there is no class after the mark", rule="pickle")
    machine.call(items[0], tuple(items[1:]))


def _extension(_machine: Machine, code: int) -> None:
    raise CorruptionError(
        f"extension code {code} means a class only to the program that wrote it, which registered it; have it "
        "pickle without copyreg.add_extension",
        rule="pickle",
    )


def _buffer(_machine: Machine) -> None:
    raise CorruptionError(
        "the data is in buffers beside the pickle (out of band), which are not in this file; pickle without a "
        "buffer_callback",
        rule="pickle",
    )


def _protocol(_machine: Machine, version: int) -> None:
    if version > _MAX_PROTOCOL:
        raise CorruptionError(f"there is no protocol {version}; the newest is {_MAX_PROTOCOL}", rule="pickle")


def _frame(machine: Machine, nbytes: int) -> None:
    left = machine.feed.source.nbytes - machine.feed.position
    if nbytes > left:
        raise CorruptionError(f"a frame of {nbytes} bytes begins, and {left} are left", rule="pickle")


def _memoize(machine: Machine) -> None:
    machine.remember(len(machine.memo))


_NO_ARGUMENT: Final[dict[str, Callable[[Machine], None]]] = {
    "NONE": lambda machine: machine.push(None),
    "NEWTRUE": lambda machine: machine.push(True),  # noqa: FBT003 - the value itself
    "NEWFALSE": lambda machine: machine.push(False),  # noqa: FBT003 - the value itself
    "NEXT_BUFFER": _buffer,
    "READONLY_BUFFER": _buffer,
    "EMPTY_LIST": lambda machine: machine.make([]),
    "APPEND": _append,
    "APPENDS": _appends,
    "LIST": lambda machine: machine.make(machine.pop_mark()),
    "EMPTY_TUPLE": lambda machine: machine.push(()),
    "TUPLE": lambda machine: machine.make(tuple(machine.pop_mark())),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "EMPTY_DICT": lambda machine: machine.make({}),
    "DICT": lambda machine: machine.new_dict(machine.pop_mark()),
    "SETITEM": _set_item,
    "SETITEMS": lambda machine: machine.set_items(machine.pop_mark()),
    "EMPTY_SET": lambda machine: machine.call(_SET, ()),
    "ADDITEMS": _add_items,
    "FROZENSET": _frozen_set,
    "POP": _pop,
    "DUP": lambda machine: machine.push(machine.top()),
    "MARK": Machine.mark,
    "POP_MARK": lambda machine: machine.pop_mark().clear(),
    "MEMOIZE": _memoize,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "BUILD": Machine.build,
    "OBJ": _obj,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _newobj_ex,
    "BINPERSID": lambda machine: machine.make(Persistent(machine.pop(), machine.offset)),
}
_VALUES: Final = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
)
_WITH_ARGUMENT: Final[dict[str, Callable[[Machine, Any], None]]] = {
    **dict.fromkeys(_VALUES, Machine.push),
    **dict.fromkeys(["GET", "BINGET", "LONG_BINGET"], Machine.recall),
    **dict.fromkeys(["PUT", "BINPUT", "LONG_BINPUT"], Machine.remember),
    **dict.fromkeys(["EXT1", "EXT2", "EXT4"], _extension),
    "GLOBAL": lambda machine, names: machine.make(machine.name(*names)),
    "INST": _inst,
    "PERSID": lambda machine, text: machine.make(Persistent(text, machine.offset)),
    "PROTO": _protocol,
    "FRAME": _frame,
}
_STOP: Final = ord(".")


_Step = tuple[str, Callable[[Feed], Any] | None, Callable[..., None]]


def _unknown(code: int) -> _Step:
    def act(_machine: Machine) -> None:
        raise CorruptionError("there is no such opcode", rule="pickle")

    return f"0x{code:02x}", None, act


def _steps() -> list[_Step]:
    steps = [_unknown(code) for code in range(256)]
    for code, opcode in OPCODES.items():
        if code == _STOP:
            steps[code] = (opcode.name, None, Machine.last)
        elif opcode.argument is None:
            steps[code] = (opcode.name, None, _NO_ARGUMENT[opcode.name])
        else:
            steps[code] = (opcode.name, opcode.argument, _WITH_ARGUMENT[opcode.name])
    return steps


_STEPS: Final = _steps()


def run(source: RangedSource, start: int, ledger: Ledger | None = None) -> tuple[Any, Ledger, int]:
    """The value that the pickle at `start` leaves, to be settled; its ledger; and where the pickle ends.

    `ledger`: that of a pickle that this one is within.

    Raises `CorruptionError` with the offset of the opcode that cannot be, and `LimitError` for what would take too
    long or too much memory.
    """
    feed = Feed(source, start, current_limits().index_nbytes)
    machine = Machine(feed, ledger)
    name = ""
    try:
        while True:
            name = ""
            run_ahead(machine)
            at = feed.at
            machine.offset = feed.base + at
            if at < len(feed.buffer):
                feed.at = at + 1
                code = feed.buffer[at]
            else:
                name = "the next opcode"
                code = feed.byte()
            name, argument, act = _STEPS[code]
            if code == _STOP:
                return machine.last(), machine.ledger, feed.position
            if argument is None:
                act(machine)
            else:
                act(machine, argument(feed))
    except CorruptionError as error:
        raise CorruptionError(f"byte {machine.offset} of the pickle, {name}: {error}", rule=error.rule) from None
    except LimitError as error:
        # Of what was run ahead, there is no opcode to tell.
        at_opcode = f", {name}" if name else ""
        raise LimitError(f"byte {machine.offset} of the pickle{at_opcode}: {error}") from None
    except MemoryError:
        raise LimitError(f"byte {machine.offset} of the pickle, {name}: there is not enough memory") from None
