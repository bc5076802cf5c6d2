"""A little assembler of pickles: opcodes by their names, so that any sequence of them can be written."""

import pickletools

_CODES = {opcode.name: opcode.code.encode("latin-1") for opcode in pickletools.opcodes}


def op(name: str, argument: bytes = b"") -> bytes:
    """An opcode and the bytes of its argument, as they are."""
    return _CODES[name] + argument


def u1(value: int) -> bytes:
    return value.to_bytes(1, "little")


def u4(value: int) -> bytes:
    return value.to_bytes(4, "little")


def u8(value: int) -> bytes:
    return value.to_bytes(8, "little")


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return op("BINUNICODE", u4(len(raw)) + raw)


def raw(value: bytes) -> bytes:
    return op("BINBYTES", u4(len(value)) + value)


def integer(value: int) -> bytes:
    return op("LONG1", u1(9) + value.to_bytes(9, "little", signed=True))


def lines(*values: str) -> bytes:
    return b"".join(value.encode() + b"\n" for value in values)


def name(module: str, qualified: str) -> bytes:
    """GLOBAL."""
    return op("GLOBAL", lines(module, qualified))


def stack_name(module: str, qualified: str) -> bytes:
    """STACK_GLOBAL."""
    return text(module) + text(qualified) + op("STACK_GLOBAL")


def tuple_of(*items: bytes) -> bytes:
    return op("MARK") + b"".join(items) + op("TUPLE")


def list_of(*items: bytes) -> bytes:
    return op("EMPTY_LIST") + op("MARK") + b"".join(items) + op("APPENDS")


def dict_of(*items: bytes) -> bytes:
    """Of keys and values by turns."""
    return op("EMPTY_DICT") + op("MARK") + b"".join(items) + op("SETITEMS")


def call(callee: bytes, *args: bytes) -> bytes:
    """REDUCE."""
    return callee + tuple_of(*args) + op("REDUCE")


def put(index: int) -> bytes:
    return op("LONG_BINPUT", u4(index))


def get(index: int) -> bytes:
    return op("LONG_BINGET", u4(index))


def pickle_of(*body: bytes, protocol: int = 4) -> bytes:
    """The body with PROTO before it and STOP after it."""
    return op("PROTO", u1(protocol)) + b"".join(body) + op("STOP")
