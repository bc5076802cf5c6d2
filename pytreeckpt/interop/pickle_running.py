"""The opcodes that make up nearly all of a pickle, taken one after the other without a call for each.

They do what `pickle_steps` has them do, where nothing is wrong and their arguments are in the buffer. At any other
opcode, and at one that cannot be, this stops before it: one place tells what is wrong, and it is not here.
"""

from __future__ import annotations

import struct
from typing import Final

from pytreeckpt.interop.pickle_machine import PER_INSTANCE, Machine
from pytreeckpt.interop.pickle_opcodes import CODES
from pytreeckpt.interop.pickle_values import Instance, Persistent

_u2: Final = struct.Struct("<H").unpack_from
_i4: Final = struct.Struct("<i").unpack_from
_u4: Final = struct.Struct("<I").unpack_from
_f8: Final = struct.Struct(">d").unpack_from
# An opcode and the longest of these arguments that have a length of their own.
_LONGEST: Final = 9

_LONG_BINPUT: Final = CODES["LONG_BINPUT"]
_BINPUT: Final = CODES["BINPUT"]
_MEMOIZE: Final = CODES["MEMOIZE"]
_BINGET: Final = CODES["BINGET"]
_LONG_BINGET: Final = CODES["LONG_BINGET"]
_BININT1: Final = CODES["BININT1"]
_BININT2: Final = CODES["BININT2"]
_BININT: Final = CODES["BININT"]
_BINFLOAT: Final = CODES["BINFLOAT"]
_BINUNICODE: Final = CODES["BINUNICODE"]
_TEXTS: Final = frozenset([_BINUNICODE, CODES["SHORT_BINUNICODE"]])
_NONE: Final = CODES["NONE"]
_NEWTRUE: Final = CODES["NEWTRUE"]
_TRUTHS: Final = frozenset([_NEWTRUE, CODES["NEWFALSE"]])
_MARK: Final = CODES["MARK"]
_EMPTY_TUPLE: Final = CODES["EMPTY_TUPLE"]
_TUPLE: Final = CODES["TUPLE"]
_TUPLE1: Final = CODES["TUPLE1"]
_TUPLE2: Final = CODES["TUPLE2"]
_TUPLE3: Final = CODES["TUPLE3"]
_CALLS: Final = frozenset([CODES["REDUCE"], CODES["NEWOBJ"]])
_BINPERSID: Final = CODES["BINPERSID"]


def run_ahead(machine: Machine) -> None:
    """Take opcodes as long as they are among these. Afterwards the next one is where the feed is."""
    feed = machine.feed
    buffer, base, at = feed.buffer, feed.base, feed.at
    stack, marks, memo, fence = machine.stack, machine.marks, machine.memo, machine.fence
    last = len(buffer) - _LONGEST
    made = 0
    while at <= last:
        # The most frequent ones first.
        code = buffer[at]
        if code == _LONG_BINPUT:
            if len(stack) <= fence:
                break
            memo[_u4(buffer, at + 1)[0]] = stack[-1]
            at += 5
        elif code == _BINGET:
            index = buffer[at + 1]
            if index not in memo:
                break
            stack.append(memo[index])
            at += 2
        elif code == _BININT1:
            stack.append(buffer[at + 1])
            at += 2
        elif code == _MEMOIZE:
            if len(stack) <= fence:
                break
            memo[len(memo)] = stack[-1]
            at += 1
        elif code == _BINPUT:
            if len(stack) <= fence:
                break
            memo[buffer[at + 1]] = stack[-1]
            at += 2
        elif code in _CALLS:
            if len(stack) < fence + 2 or type(stack[-1]) is not tuple:
                break
            args = stack.pop()
            stack[-1] = Instance(stack[-1], args, base + at)
            made += PER_INSTANCE
            at += 1
        elif code == _MARK:
            marks.append(fence)
            fence = len(stack)
            at += 1
        elif code == _TUPLE:
            if not marks:
                break
            taken = tuple(stack[fence:])
            del stack[fence:]
            fence = marks.pop()
            stack.append(taken)
            made += 1
            at += 1
        elif code in _TEXTS:
            if code == _BINUNICODE:
                start = at + 5
                stop = start + _u4(buffer, at + 1)[0]
            else:
                start = at + 2
                stop = start + buffer[at + 1]
            if stop > len(buffer):
                break
            try:
                stack.append(buffer[start:stop].decode())
            except UnicodeDecodeError:
                # It may be half a surrogate pair.
                break
            at = stop
        elif code == _TUPLE2:
            if len(stack) < fence + 2:
                break
            item = stack.pop()
            stack[-1] = (stack[-1], item)
            made += 1
            at += 1
        elif code == _EMPTY_TUPLE:
            stack.append(())
            at += 1
        elif code == _BINPERSID:
            if len(stack) <= fence:
                break
            stack[-1] = Persistent(stack[-1], base + at)
            made += 1
            at += 1
        elif code in _TRUTHS:
            stack.append(code == _NEWTRUE)
            at += 1
        elif code == _BININT2:
            stack.append(_u2(buffer, at + 1)[0])
            at += 3
        elif code == _BININT:
            stack.append(_i4(buffer, at + 1)[0])
            at += 5
        elif code == _BINFLOAT:
            stack.append(_f8(buffer, at + 1)[0])
            at += 9
        elif code == _LONG_BINGET:
            index = _u4(buffer, at + 1)[0]
            if index not in memo:
                break
            stack.append(memo[index])
            at += 5
        elif code == _TUPLE1:
            if len(stack) <= fence:
                break
            stack[-1] = (stack[-1],)
            made += 1
            at += 1
        elif code == _TUPLE3:
            if len(stack) < fence + 3:
                break
            taken = tuple(stack[-3:])
            del stack[-2:]
            stack[-1] = taken
            made += 1
            at += 1
        elif code == _NONE:
            stack.append(None)
            at += 1
        else:
            break
    if at != feed.at:
        feed.at = at
        machine.fence = fence
        machine.offset = base + at
        machine.count(made)
