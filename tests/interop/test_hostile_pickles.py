"""No pickle has anything imported, called or opened, takes long, or ends in an error that is not ours."""

import io
import json
import os
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt.interop import pickle_settling, pickle_steps
from pytreeckpt.interop.pickle_loading import load_from
from pytreeckpt.interop.pickle_opcodes import OPCODES
from pytreeckpt.interop.pickles import load_pickle
from pytreeckpt.interop.torch_files import read_torch
from pytreeckpt.interop.torch_legacy import plain_vocabulary
from tests.interop import audited_reading, hostile_pickles
from tests.interop import pickle_assembler as asm
from tests.interop.likeness import assert_alike, flat
from tests.interop.sources import damaged, is_torch, source
from tests.interop.test_pickle_machine import TREES

ROOT = Path(__file__).parents[2]


def zipped(data):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", bytes(16))
    return file.getvalue()


def legacy(data):
    magic = asm.op("LONG1", asm.u1(10) + (0x1950A86A20F9469CFC6C).to_bytes(10, "little"))
    return asm.pickle_of(magic) + b"M\xe9\x03.}." + data + asm.pickle_of(b"]")


def audited(request):
    done = subprocess.run(
        [sys.executable, audited_reading.__file__],
        input=json.dumps({name: data.hex() if isinstance(data, bytes) else data for name, data in request.items()}),
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "adapters")])},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_nothing_is_imported_called_or_opened_whatever_a_pickle_says():
    attacks = hostile_pickles.attacks()
    assert len(attacks) > 2_000
    request = {
        f"{form.__name__} {name}": form(data) for form in (bytes, zipped, legacy) for name, data in attacks.items()
    }
    request |= {f"broken {name}": data for name, (data, _) in hostile_pickles.broken().items()}
    request |= {f"cycle {name}": data for name, data in hostile_pickles.cycles().items()}
    found = audited(request)
    # The one event is that which shows that the hook works.
    assert [event.split()[0] for event in found["events"]] == ["compile"]
    assert found["outcomes"].keys() == request.keys()
    # Those within the reduce, stack global, inst, obj and newobj forms are records of the names themselves.
    for name, outcome in found["outcomes"].items():
        if "persistent" in name or name.startswith(("broken", "cycle")):
            assert "Error: " in outcome, f"{name}: {outcome}"
    assert found["outcomes"]["bytes reduce: os.system"] == "os:system"
    assert found["outcomes"]["zipped inst: builtins.eval"] == "builtins:eval"
    assert found["outcomes"]["legacy newobj_ex: torch.jit.unsupported_tensor_ops.execWrapper"] == (
        "torch.jit.unsupported_tensor_ops:execWrapper"
    )
    assert found["outcomes"]["bytes callee of a call: os.system"] == "pickle:call"


def test_pickles_that_would_wear_a_reader_out_take_little_time_and_memory():
    request = hostile_pickles.wearing()
    found = audited(request)
    assert [event.split()[0] for event in found["events"]] == ["compile"]
    assert found["grown_kib"] < 800 << 10
    limited = {name for name, outcome in found["outcomes"].items() if outcome.startswith("LimitError")}
    assert limited >= {
        *("deep lists", "deep tuples", "deep dicts", "deep key", "deep calls", "deep callees"),
        *("doubled lists", "doubled tuples"),
        *("doubled key", "doubled element", "doubled frozensets", "doubled objects", "long key again", "pairs again"),
        *("elements again", "deque again", "state again", "namespace again", "bytes again", "bytearray again"),
        *("path again", "equal hashes", "equal hashes one by one", "equal hashes in a set", "equal hashes in pairs"),
        *("million digits", "million digits in an int"),
    }


@pytest.mark.parametrize(
    ("one", "weight", "before"),
    [
        (b"]", 1, b"("),
        (b"}", 1, b"("),
        (b"\x8f", 4, b"("),
        (b"(\x91", 4, b"("),
        (b"(l", 1, b"("),
        (b"(d", 1, b"("),
        (b"(t", 1, b"("),
        (b"NQ", 1, b"("),
        (b"\x85", 1, b"N"),
        (b"N\x86", 1, b"N"),
        (b"NN\x87", 1, b"N"),
        (b")R", 4, b"cm\nC\n"),
        (b"\x94", 1, b"N"),
        (b"N(", 1, b""),
        (b"cm\nC\n", 1, b"("),
        (b"\x8c\x01mh\x00\x93", 1, b"\x8c\x01C\x94("),
    ],
)
def test_more_objects_than_a_tree_may_have_nodes_are_refused_before_they_fill_the_memory(one, weight, before):
    for most in (4_000, 40_000):
        # All in one buffer of the reader, and in several.
        with (
            ptc.limits(nodes=most),
            pytest.raises(ptc.LimitError, match="byte [0-9]+ of the pickle.*makes more objects"),
        ):
            load_pickle(b"\x80\x04" + before + one * (2 * most // weight) + b"0.")
        with ptc.limits(nodes=most), pytest.raises(ptc.PytreeckptError) as caught:
            load_pickle(b"\x80\x04" + before + one * (most // weight // 2) + b"\xff.")
        assert "makes more objects" not in str(caught.value)


@pytest.mark.parametrize("name", hostile_pickles.broken())
def test_what_no_pickler_writes_is_refused_with_its_place(name):
    data, match = hostile_pickles.broken()[name]
    with pytest.raises(ptc.CorruptionError) as caught:
        load_pickle(data)
    assert match in str(caught.value)
    assert "byte" in str(caught.value)
    assert caught.value.rule == "pickle"


@pytest.mark.parametrize("name", hostile_pickles.cycles())
def test_what_contains_itself_is_refused(name):
    with pytest.raises(ptc.UnsupportedTypeError, match="an object that contains itself"):
        load_pickle(hostile_pickles.cycles()[name])


def test_the_limit_of_depth_is_the_same_for_all_that_is_in_lists():
    for depth, content in (
        (20, b"N"),
        (20, asm.name("a", "B")),
        (20, b"K\x01K\x02\x86"),
        (20, asm.name("a", "B") + b")R"),
    ):
        inside = depth - 1 - (content[-1:] in b"\x86R")
        for n_lists, fits in ((inside, True), (depth + 1, False)):
            with ptc.limits(depth=depth):
                try:
                    load_pickle(b"]" * n_lists + content + b"a" * n_lists + b".")
                except ptc.LimitError:
                    assert not fits, (content, n_lists)
                else:
                    assert fits, (content, n_lists)


def test_where_something_contains_itself_is_said():
    with pytest.raises(ptc.UnsupportedTypeError, match=r"^\[0\]/x\[1\]: "):
        load_pickle(hostile_pickles.cycles()["far away"])


@pytest.mark.parametrize("code", sorted(OPCODES))
def test_each_opcode_alone_is_a_value_or_refused(code):
    for argument in (b"", b"\0", b"\1\0\0\0\0\0\0\0\0", b"1\n1\n", b"\xff" * 9):
        for before in (b"", b"N", b"(", b"((", b"N(", b"](", b"NNN"):
            judge(before + bytes([code]) + argument + b".")


def judge(data):
    """A value that makes a tree, or an error of ours."""
    try:
        found = load_pickle(data)
        flat(found)
    except ptc.PytreeckptError as error:
        return error
    return found


@given(st.binary(max_size=300))
def test_any_bytes_give_a_value_or_an_error_of_ours(data):
    judge(data)
    judge(b"\x80\x04" + data + b".")


ARGUMENTS = st.one_of(
    st.binary(max_size=9),
    st.sampled_from([b"\0", b"\1", b"\2", b"\0\0\0\0", b"\1\0\0\0", b"0\n", b"1\n", b"'a'\n", b"\0" * 8]),
)
NAMES = [
    *(("collections", "OrderedDict"), ("collections", "deque"), ("collections", "Counter"), ("builtins", "set")),
    *(("builtins", "bytearray"), ("builtins", "slice"), ("builtins", "complex"), ("argparse", "Namespace")),
    *(("numpy", "dtype"), ("numpy", "ndarray"), ("numpy.core.multiarray", "_reconstruct"), ("torch", "FloatStorage")),
    *(("numpy.core.multiarray", "scalar"), ("numpy._core.numeric", "_frombuffer"), ("_codecs", "encode")),
    *(("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter"), ("torch", "device")),
    *(("torch._utils", "_rebuild_sparse_tensor"), ("torch._tensor", "_rebuild_from_type_v2"), ("torch", "float32")),
    *(
        ("torch.storage", "_load_from_bytes"),
        ("torch", "Size"),
        ("copyreg", "_reconstructor"),
        ("pathlib", "PosixPath"),
    ),
    *(("torch._utils", "_rebuild_qtensor"), ("jax._src.array", "_reconstruct_array"), ("a", "B")),
]
STEPS = st.one_of(
    st.builds(lambda code, argument: bytes([code]) + argument, st.sampled_from(sorted(OPCODES)), ARGUMENTS),
    # Those without an argument more often, so that something comes of it.
    st.sampled_from(
        [bytes([code]) for code, opcode in OPCODES.items() if opcode.argument is None and code != ord(".")]
    ),
    st.sampled_from([b"K\x01", b"K\x00", b"N", b"(", b")", b"]", b"}", b"h\x00", b"q\x00", b"\x94"]),
    st.sampled_from([asm.name(*name) for name in NAMES]),
    st.sampled_from(
        [asm.text(value) for value in ("f4", "O", "latin1", "storage", "C", "|", "0", "cuda:1", "_is_buffer")]
    ),
    st.binary(max_size=8).map(asm.raw),
)


@given(st.lists(STEPS, max_size=40))
def test_any_opcodes_give_a_value_or_an_error_of_ours(steps):
    data = b"".join(steps)
    # Ended in every way that may make one value of it.
    for end in (b".", b"t.", b"l.", b"d.", b"\x85R.", b"tR.", b"b.", b"Q.", b"tQ."):
        judge(data + end)


def alike(one, other):
    """Whether what two readings came to is the same: the error, or the tree."""
    if isinstance(one, ptc.PytreeckptError):
        assert (type(one), str(one)) == (type(other), str(other))
        return
    assert not isinstance(other, ptc.PytreeckptError)
    assert_alike(one, other)


@given(
    st.lists(STEPS, max_size=40), st.sampled_from(NAMES), st.booleans(), st.sampled_from([b".", b"t.", b"tR.", b"tQ."])
)
@example([b"(", b"K\x01", b"\x86"], ("a", "B"), False, b"t.")
@example([asm.op("BINUNICODE", b"\3\0\0\0\xed\xa0\x80")], ("a", "B"), True, b"tR.")
def test_the_quick_ways_of_the_machine_and_of_settling_change_nothing(steps, name, called, end):
    data = (asm.name(*name) + b"(" if called else b"") + b"".join(steps) + end + bytes(10)
    outcomes = []
    for quick in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not quick:
                patch.setattr(pickle_steps, "run_ahead", lambda _machine: None)
                patch.setattr(pickle_settling, "_FEW", -1)
                patch.setattr(pickle_settling, "_SHORT", -1)
            try:
                found = load_from(source(data), 0, plain_vocabulary())[0]
                flat(found)
            except ptc.PytreeckptError as error:
                found = error
            outcomes.append(found)
    alike(*outcomes)


@given(st.lists(STEPS, max_size=30), st.sampled_from(NAMES))
def test_any_arguments_of_known_names_give_a_value_or_an_error_of_ours(steps, name):
    body = asm.name(*name) + b"(" + b"".join(steps)
    for end in (b"tR.", b"tR}b.", b"tRNb.", b"tR(K\x01K\x02tb.", b"t\x81)b."):
        judge(body + end)


@given(TREES, st.integers(0, 5), st.integers(0, 1 << 32))
def test_damaged_pickles_give_a_value_or_an_error_of_ours(tree, protocol, seed):
    try:
        data = pickle.dumps(tree, protocol)
    except (ValueError, TypeError):
        data = pickle.dumps(None)
    rng = random.Random(seed)
    for _ in range(5):
        judge(damaged(data, rng))


def _torch_files():
    torch = pytest.importorskip("torch")
    tree = {
        "w": torch.rand(3, 4).t(),
        "p": torch.nn.Parameter(torch.ones(2)),
        "b": torch.nn.Buffer(torch.ones(2)),
        "c": torch.rand(2, dtype=torch.complex64).conj(),
        "s": torch.eye(3).to_sparse(),
        "f": torch.zeros(2, dtype=torch.float8_e5m2),
        "d": [torch.device("cuda", 1), torch.float16, torch.Size([2]), np.arange(3), np.float32(1)],
        "q": torch.ones(3).to(torch.bfloat16),
    }
    for new in (True, False):
        file = io.BytesIO()
        torch.save({**tree, "f": tree["f"] if new else None}, file, _use_new_zipfile_serialization=new)
        yield file.getvalue()


def test_damaged_files_of_torch_give_a_tree_or_an_error_of_ours():
    rng = random.Random(0)
    outcomes = set()
    for data in _torch_files():
        for _ in range(400):
            changed = damaged(data, rng)
            try:
                is_torch(changed)
                read_torch(source(changed))
                outcomes.add("tree")
            except ptc.PytreeckptError as error:
                outcomes.add(type(error).__name__)
    assert outcomes >= {"tree", "CorruptionError"}


def test_damaged_pickles_in_files_of_torch_give_a_tree_or_an_error_of_ours():
    rng = random.Random(1)
    data, _ = _torch_files()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    for _ in range(400):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                archive.writestr(f"a/{name}", damaged(content, rng) if name == "data.pkl" else content)
        try:
            assert read_torch(source(file.getvalue())).format == "torch zip"
        except ptc.PytreeckptError as error:
            assert str(error)
