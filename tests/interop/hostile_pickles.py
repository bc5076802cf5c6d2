"""Pickles that were made to do harm: what scanners of pickles are tested with, and what would wear a reader out."""

import pickle

from tests.interop import pickle_assembler as asm
from tests.interop.pickle_assembler import op, text, tuple_of

# What such files call: to run commands, code or another pickle, to reach the network, or to write files.
NAMES = [
    *(("os", "system"), ("posix", "system"), ("nt", "system"), ("os", "popen"), ("os", "execv"), ("os", "putenv")),
    *(("subprocess", "Popen"), ("subprocess", "check_output"), ("pty", "spawn"), ("commands", "getoutput")),
    *(("builtins", "eval"), ("builtins", "exec"), ("builtins", "compile"), ("builtins", "__import__")),
    *(("builtins", "getattr"), ("builtins", "setattr"), ("builtins", "open"), ("builtins", "breakpoint")),
    *(("builtins", "type"), ("builtins", "map"), ("builtins", "input"), ("builtins", "globals"), ("builtins", "vars")),
    *(("__builtin__", "eval"), ("__builtin__", "apply"), ("__builtin__", "execfile"), ("__builtin__", "file")),
    *(("runpy", "_run_code"), ("runpy", "run_path"), ("runpy", "run_module"), ("importlib", "import_module")),
    *(("socket", "create_connection"), ("webbrowser", "open"), ("urllib.request", "urlopen"), ("requests.api", "get")),
    *(("http.client", "HTTPSConnection"), ("ssl", "get_server_certificate"), ("smtplib", "SMTP"), ("ftplib", "FTP")),
    *(
        ("shutil", "rmtree"),
        ("tempfile", "mktemp"),
        ("distutils.file_util", "write_file"),
        ("logging.config", "listen"),
    ),
    *(("ctypes", "CDLL"), ("_ctypes", "dlopen"), ("code", "interact"), ("pdb", "run"), ("bdb", "Bdb.run")),
    *(("pickle", "loads"), ("_pickle", "loads"), ("pickle", "Unpickler"), ("marshal", "loads"), ("shelve", "open")),
    *(("dill", "loads"), ("cloudpickle.cloudpickle", "loads"), ("joblib", "load"), ("pandas", "read_pickle")),
    *(("types", "FunctionType"), ("types", "CodeType"), ("functools", "partial"), ("functools", "reduce")),
    *(("operator", "attrgetter"), ("operator", "methodcaller"), ("operator", "itemgetter"), ("itertools", "starmap")),
    *(
        ("timeit", "timeit"),
        ("cProfile", "runctx"),
        ("profile", "run"),
        ("trace", "Trace.run"),
        ("doctest", "debug_script"),
    ),
    *(("pydoc", "pipepager"), ("pip", "main"), ("venv", "create"), ("ensurepip", "bootstrap"), ("site", "main")),
    *(("lib2to3.pgen2.grammar", "Grammar.loads"), ("idlelib.pyshell", "ModifiedInterpreter.runcommand")),
    *(("asyncio.unix_events", "_UnixSubprocessTransport._start"), ("multiprocessing.util", "spawnv_passfds")),
    *(("torch", "load"), ("torch.jit", "load"), ("torch.hub", "load"), ("torch.serialization", "load")),
    *(("torch.jit.unsupported_tensor_ops", "execWrapper"), ("torch._inductor.codecache", "compile_file")),
    *(("torch.fx.experimental.symbolic_shapes", "ShapeEnv.evaluate_guards_expression"), ("torch.package", "x")),
    *(("torch.utils.collect_env", "run"), ("torch.utils._config_module", "ConfigModule.load_config")),
    *(
        ("torch.utils.bottleneck.__main__", "run_cprofile"),
        ("torch.distributed.rpc", "x"),
        ("torch.ops", "load_library"),
    ),
    *(("numpy", "load"), ("numpy.testing._private.utils", "runstring"), ("numpy.f2py.crackfortran", "myeval")),
    *(("numpy", "fromfile"), ("numpy", "memmap"), ("numpy.ctypeslib", "load_library"), ("keras.models", "load_model")),
    *(("sys", "exit"), ("sys", "settrace"), ("sys", "modules"), ("__main__", "__dict__"), ("atexit", "register")),
    *(
        ("threading", "Thread"),
        ("concurrent.futures", "ThreadPoolExecutor"),
        ("signal", "raise_signal"),
        ("gc", "collect"),
    ),
    *(("pytreeckpt", "restore"), ("pytreeckpt.api", "save"), ("pytreeckpt.storage", "LocalStorage"), ("", "")),
    *(
        ("\u043es", "system"),
        ("\uff4f\uff53", "system"),
        ("os", "\u0455ystem"),
        ("os.path", "os.system"),
        ("os", "path.os.system"),
    ),
    *(("builtins", "str.__class__.__base__.__subclasses__"), ("collections", "OrderedDict.__init__.__globals__")),
]


def forms(module: str, name: str) -> dict[str, bytes]:
    """The ways in which a pickle has a function called, each with `touch pwned` as its argument."""
    command = text("touch pwned")
    target, stacked = asm.name(module, name), asm.stack_name(module, name)
    evil = asm.dict_of(text("__setstate__"), target, text("__reduce__"), target, text("__class__"), target)
    plain = asm.call(asm.name("collections", "OrderedDict"))
    return {
        "reduce": asm.call(target, command),
        "stack global": asm.call(stacked, command),
        "inst": op("MARK") + command + op("INST", asm.lines(module, name)),
        "obj": op("MARK") + target + command + op("OBJ"),
        "newobj": target + tuple_of(command) + op("NEWOBJ"),
        "newobj_ex": target + tuple_of(command) + asm.dict_of(text("shell"), op("NEWTRUE")) + op("NEWOBJ_EX"),
        "build": asm.call(asm.name("collections", "OrderedDict")) + evil + op("BUILD"),
        "build of it": target + tuple_of() + op("NEWOBJ") + command + op("BUILD"),
        "state of a module": asm.call(asm.name("torch.nn.modules.module", "Module")) + evil + op("BUILD"),
        "reconstructor": asm.call(
            asm.name("copyreg", "_reconstructor"), target, asm.name("builtins", "object"), op("NONE")
        ),
        "newobj as function": asm.call(asm.name("copyreg", "__newobj__"), target, command),
        "apply": asm.call(asm.name("__builtin__", "apply"), target, asm.list_of(command)),
        "partial": asm.call(asm.call(asm.name("functools", "partial"), target, command)),
        "callee of a call": asm.call(asm.call(asm.name("builtins", "getattr"), target, text("__call__")), command),
        "default factory": asm.call(asm.name("collections", "defaultdict"), target),
        "tensor type": asm.call(
            asm.name("torch._tensor", "_rebuild_from_type_v2"), target, target, tuple_of(command), evil
        ),
        "dtype": asm.call(asm.name("numpy", "dtype"), target, op("NEWFALSE"), op("NEWTRUE")),
        "array type": asm.call(asm.name("numpy.core.multiarray", "_reconstruct"), target, tuple_of(), asm.raw(b"b")),
        "pickled array of jax": asm.call(
            asm.name("jax._src.array", "_reconstruct_array"), target, tuple_of(command), command, evil
        ),
        "key": asm.dict_of(target, command, asm.call(target, command), command),
        "element": op("EMPTY_SET") + op("MARK") + asm.call(target, command) + op("ADDITEMS"),
        "popped": asm.call(target, command) + op("POP") + plain,
        "in the memo": asm.call(target, command) + asm.put(0) + op("POP") + asm.get(0),
        "memo changed": plain
        + asm.put(0)
        + op("POP")
        + target
        + asm.put(0)
        + op("POP")
        + asm.call(asm.get(0), command),
        "persistent": asm.call(target, command) + op("BINPERSID"),
        "nested": asm.call(asm.name("pickle", "loads"), asm.raw(asm.pickle_of(asm.call(target, command)))),
        "nested in torch": asm.call(
            asm.name("torch.storage", "_load_from_bytes"), asm.raw(asm.pickle_of(asm.call(target, command)))
        ),
    }


def attacks() -> dict[str, bytes]:
    """All of them, each a whole pickle."""
    return {
        f"{form}: {module}.{name}": asm.pickle_of(body)
        for module, name in NAMES
        for form, body in forms(module, name).items()
    }


def _doubling(levels: int, begin: bytes, again: bytes) -> bytes:
    body = begin + asm.put(0)
    for _ in range(levels):
        body += op("POP") + again + asm.put(0)
    return body


def wearing() -> dict[str, bytes]:
    """Small pickles that would take a careless reader very long, or very much memory."""
    get = op("BINGET", b"\0")
    big_tuple = op("MARK") + b"K\x01" * 20_000 + op("TUPLE") + asm.put(0) + op("POP")
    pairs = asm.list_of(*(tuple_of(op("BININT2", bytes([i & 255, i >> 8])), b"N") for i in range(20_000)))
    same_hash = [asm.integer(i * ((1 << 61) - 1)) for i in range(1, 1 << 7)]
    same_hash += [op("LONG1", asm.u1(12) + (i * ((1 << 61) - 1)).to_bytes(12, "little")) for i in range(1 << 7, 20_000)]
    state = asm.dict_of(*(part for i in range(5_000) for part in (text(f"a{i}"), b"N"))) + asm.put(0) + op("POP")
    text_of_0 = text("x" * 100_000) + asm.put(0) + op("POP")
    nested_calls = asm.name("copyreg", "__newobj__") * 50_000
    return {
        "marks": b"\x80\x02" + b"(" * 500_000 + b".",
        "deep lists": b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
        "deep tuples": b"\x80\x02)" + b"\x85" * 50_000 + b".",
        "deep dicts": b"\x80\x02" + b"}K\x00" * 30_000 + b"N" + b"s" * 30_000 + b".",
        "deep key": asm.pickle_of(op("EMPTY_DICT"), op("EMPTY_TUPLE"), op("TUPLE1") * 100_000, b"N", op("SETITEM")),
        "deep calls": asm.pickle_of(asm.name("a", "B") * 30_000, b")", (op("REDUCE") + op("TUPLE1")) * 30_000),
        "deep callees": asm.pickle_of(asm.name("a", "B"), (b")" + op("REDUCE")) * 30_000),
        "doubled lists": asm.pickle_of(_doubling(64, b"]", asm.list_of(get, get))),
        "doubled tuples": asm.pickle_of(_doubling(64, b")", get + get + op("TUPLE2"))),
        "doubled key": asm.pickle_of(_doubling(64, b")", get + get + op("TUPLE2")), op("POP"), asm.dict_of(get, b"N")),
        "doubled element": asm.pickle_of(
            _doubling(64, b")", get + get + op("TUPLE2")), op("POP"), b"\x8f(", get, op("ADDITEMS")
        ),
        "doubled frozensets": asm.pickle_of(
            _doubling(40, b"(" + op("FROZENSET"), b"(" + get + b"N" + get + op("FROZENSET"))
        ),
        "doubled objects": asm.pickle_of(
            _doubling(64, asm.call(asm.name("a", "B")), asm.call(asm.name("a", "B"), get, get))
        ),
        "long key again": asm.pickle_of(big_tuple, asm.list_of(*[asm.dict_of(get, b"N")] * 20_000)),
        "pairs again": asm.pickle_of(
            pairs, asm.put(0), op("POP"), asm.list_of(*[asm.call(asm.name("collections", "OrderedDict"), get)] * 2_000)
        ),
        "elements again": asm.pickle_of(big_tuple, asm.list_of(*[asm.call(asm.name("builtins", "set"), get)] * 5_000)),
        "deque again": asm.pickle_of(
            big_tuple, asm.list_of(*[asm.call(asm.name("collections", "deque"), get)] * 5_000)
        ),
        "state again": asm.pickle_of(state, asm.list_of(*[asm.call(asm.name("a", "B")) + get + op("BUILD")] * 5_000)),
        "namespace again": asm.pickle_of(
            state, asm.list_of(*[asm.call(asm.name("argparse", "Namespace")) + get + op("BUILD")] * 5_000)
        ),
        "bytes again": asm.pickle_of(
            text_of_0, asm.list_of(*[asm.call(asm.name("_codecs", "encode"), get, text("latin1"))] * 20_000)
        ),
        "bytearray again": asm.pickle_of(
            asm.raw(bytes(100_000)),
            asm.put(0),
            op("POP"),
            asm.list_of(*[asm.call(asm.name("builtins", "bytearray"), get)] * 20_000),
        ),
        "path again": asm.pickle_of(
            text_of_0, asm.list_of(*[asm.call(asm.name("pathlib", "PosixPath"), get)] * 20_000)
        ),
        "equal hashes": asm.pickle_of(asm.dict_of(*(part for key in same_hash for part in (key, b"N")))),
        "equal hashes one by one": asm.pickle_of(b"}", *(key + b"N" + op("SETITEM") for key in same_hash)),
        "equal hashes in a set": asm.pickle_of(b"\x8f(", *same_hash, op("ADDITEMS")),
        "equal hashes in pairs": asm.pickle_of(
            asm.call(asm.name("collections", "OrderedDict")), b"(", *(key + b"N" for key in same_hash), op("SETITEMS")
        ),
        "rewritten again": asm.pickle_of(
            asm.name("copyreg", "__newobj__"), b"(", nested_calls, op("TUPLE"), op("REDUCE")
        ),
        "storage again": asm.pickle_of(
            asm.raw(bytes(5_000)),
            asm.put(0),
            op("POP"),
            asm.list_of(*[asm.call(asm.name("torch.storage", "_load_from_bytes"), get)] * 5_000),
        ),
        "million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
        "million digits in an int": b"I" + b"9" * 1_000_000 + b"\n.",
        "large range": asm.pickle_of(
            asm.call(asm.name("builtins", "range"), *[op("LONG1", asm.u1(200) + b"\x7f" * 200)] * 3)
        ),
        "large deque": asm.pickle_of(
            asm.call(asm.name("collections", "deque"), b"]", op("LONG1", asm.u1(20) + b"\x7f" * 20))
        ),
        "large bytearray": asm.pickle_of(asm.call(asm.name("builtins", "bytearray"), asm.integer(1 << 60))),
        "large dtype": asm.pickle_of(
            asm.call(asm.name("numpy", "dtype"), text("V" + "9" * 10), op("NEWFALSE"), op("NEWTRUE"))
        ),
        "large array": asm.pickle_of(
            asm.call(
                asm.name("numpy.core.numeric", "_frombuffer"),
                asm.raw(b""),
                asm.call(asm.name("numpy", "dtype"), text("f8"), op("NEWFALSE"), op("NEWTRUE")),
                tuple_of(asm.integer(1 << 60), asm.integer(1 << 60)),
                text("C"),
            )
        ),
        "large object array": asm.pickle_of(
            asm.call(
                asm.name("numpy.core.numeric", "_frombuffer"),
                b"]",
                asm.call(asm.name("numpy", "dtype"), text("O"), op("NEWFALSE"), op("NEWTRUE")),
                tuple_of(asm.integer(1 << 60)),
                text("C"),
            )
        ),
    }


def broken() -> dict[str, tuple[bytes, str]]:
    """Pickles that no pickler writes, and what is said of each."""
    length_8 = asm.u8(1 << 62)
    cases = {
        "nothing": (b"", "needs 1 bytes, and 0 are left"),
        "no stop": (b"\x80\x02K\x01", "needs 1 bytes"),
        "no value": (b"\x80\x02.", "0 values here"),
        "two values": (b"\x80\x02K\x01K\x02.", "1 more values are left"),
        "a mark is left": (b"\x80\x02(K\x01.", "0 more values are left"),
        "unknown opcode": (b"\x80\x02\xff.", "there is no such opcode"),
        "protocol 255": (b"\x80\xff].", "there is no protocol 255"),
        "pop below a mark": (b"K\x01(\x85.", "0 values here, and 1 are needed"),
        "reduce below a mark": (asm.name("os", "system") + b"(R.", "0 values here"),
        "tuple without a mark": (b"K\x01t.", "no mark"),
        "pop_mark without a mark": (b"K\x011.", "no mark"),
        "appends without a mark": (b"]e.", "no mark"),
        "dup of nothing": (b"2.", "0 values here"),
        "get of nothing": (b"h\x07.", "nothing at 7 in the memo"),
        "get by text": (b"g99999999999999999999\n.", "nothing at 99999999999999999999 in the memo"),
        "get by a bad text": (b"gx\n.", "b'x' is no integer"),
        "get below zero": (b"g-1\n.", "its index is -1"),
        "put of nothing": (b"q\x00.", "0 values here"),
        "append to a dict": (b"}K\x01a.", "a dict takes no items"),
        "append to a name": (asm.name("a", "b") + b"K\x01a.", "a name takes no items"),
        "items of a list": (b"]K\x01K\x02s.", "a list takes no keys"),
        "key without a value": (b"}(K\x01u.", "a key is without its value"),
        "elements of a list": (b"](K\x01\x90.", "a list takes no elements"),
        "state of a list": (b"]}b.", "a list takes no state"),
        "state of a name": (asm.name("os", "environ") + b"}b.", "a name takes no state"),
        "arguments in a list": (asm.name("a", "b") + b"]R.", "the arguments are a list, not a tuple"),
        "keywords in a list": (asm.name("a", "b") + b")]\x92.", "the keywords are a list, not a dict"),
        "name of numbers": (b"K\x01K\x02\x93.", "not made of two texts"),
        "name with half a surrogate": (text("\ud800") + text("x") + b"\x93.", "lone surrogate"),
        "class of nothing": (b"(o.", "no class after the mark"),
        "list as key": (b"}]Ns.", "a list is the key of a dict"),
        "list in a key": (b"}]\x85Ns.", "a list is the key of a dict, or in one"),
        "dict as key": (b"}(}Nd.", "a dict is the key of a dict"),
        "bytearray as key": (b"}" + op("BYTEARRAY8", asm.u8(0)) + b"Ns.", "a bytearray is the key of a dict"),
        "extension 1": (b"\x82\x05.", "extension code 5"),
        "extension 2": (b"\x83\x05\x01.", "extension code 261"),
        "extension 4": (b"\x84\xff\xff\xff\xff.", "extension code -1"),
        "next buffer": (b"\x97.", "out of band"),
        "readonly buffer": (b"\x97\x98.", "out of band"),
        "persistent": (b"K\x01Q.", "something beside the pickle"),
        "persistent text": (b"Pabc\n.", "something beside the pickle"),
        "long text": (op("BINUNICODE8", length_8) + b".", f"needs {1 << 62} bytes"),
        "long text of 32 bits": (op("BINUNICODE", b"\xff" * 4) + b".", "needs 4294967295 bytes"),
        "long bytes": (op("BINBYTES8", length_8) + b".", f"needs {1 << 62} bytes"),
        "long bytes of 32 bits": (op("BINBYTES", b"\xff" * 4) + b".", "needs 4294967295 bytes"),
        "long bytearray": (op("BYTEARRAY8", b"\xff" * 8) + b".", f"needs {(1 << 64) - 1} bytes"),
        "long integer": (op("LONG4", b"\xff\xff\xff\x7f") + b".", "needs 2147483647 bytes"),
        "length below zero": (op("LONG4", b"\xff" * 4) + b".", "its length is -1"),
        "string below zero": (op("BINSTRING", b"\xff" * 4) + b".", "its length is -1"),
        "long frame": (op("FRAME", length_8) + b"N.", f"a frame of {1 << 62} bytes"),
        "cut float": (b"G\x00\x00.", "needs 8 bytes"),
        "bad float": (b"Fabc\n.", "b'abc' is no float"),
        "bad integer": (b"I1x\n.", "b'1x' is no integer"),
        "no end of a line": (b"I1", "its line does not end"),
        "bad text": (op("SHORT_BINUNICODE", b"\x01\xff") + b".", "not UTF-8"),
        "bad escape": (b"V\\u12\n.", "bad escape"),
        "no quotes": (b"Sabc\n.", "no string in quotes"),
        "escape at the end": (b"S'\\'\n.", "within an escape"),
        "bad hexadecimal": (b"S'\\xg'\n.", "within an escape"),
        "name that is cut": (b"cos\nsystem", "its line does not end"),
        "name that is not UTF-8": (b"c\xff\nx\n.", "not UTF-8"),
    }
    # As scanners stop at the first: what comes after a pickle.
    cases["a second pickle"] = (
        pickle.dumps(1) + asm.pickle_of(asm.call(asm.name("os", "system"), text("x"))),
        "more bytes come after it",
    )
    return cases


def cycles() -> dict[str, bytes]:
    """Objects that contain themselves."""
    get = op("BINGET", b"\0")
    return {
        "list": asm.pickle_of(b"]", op("MEMOIZE"), get, op("APPEND")),
        "dict": asm.pickle_of(b"}", op("MEMOIZE"), text("a"), get, op("SETITEM")),
        "list in a tuple": asm.pickle_of(b"]", op("MEMOIZE"), get, op("TUPLE1"), op("APPEND")),
        "object": asm.pickle_of(asm.call(asm.name("a", "B")), op("MEMOIZE"), asm.dict_of(text("me"), get), op("BUILD")),
        "OrderedDict": asm.pickle_of(
            asm.call(asm.name("collections", "OrderedDict")), op("MEMOIZE"), text("k"), get, op("SETITEM")
        ),
        "set": asm.pickle_of(op("EMPTY_SET"), op("MEMOIZE"), b"(", get, op("ADDITEMS")),
        "state": asm.pickle_of(asm.call(asm.name("a", "B")), op("MEMOIZE"), get, op("BUILD")),
        "far away": asm.pickle_of(
            b"]", op("MEMOIZE"), asm.dict_of(text("x"), asm.list_of(b"N", asm.list_of(get))), op("APPEND")
        ),
    }
