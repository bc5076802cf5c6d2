"""What `inspect` prints."""

import collections
import re

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt.cli.text import cell_width
from tests.cli.running import run
from tests.cli.trees import TREES, Empty, Phase, training_run, wrapped


@pytest.fixture(autouse=True)
def _no_width(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def show(tmp_path):
    """Saves a tree and gives what `inspect` prints of it."""

    def save_and_show(tree, *arguments, code=0, **options):
        path = tmp_path / "tree.ptck"
        ptc.save(tree, path, durability="atomic", **options)
        ran = run("inspect", path, *arguments)
        assert ran.code == code
        return ran

    return save_and_show


def labels(ran):
    """Of the rows below the root, without what stands in them."""
    return [line.lstrip(" │├└─").split("  ")[0] for line in ran.lines if re.match(" *(│ *)*[├└]─ ", line)]


@given(
    TREES, st.sampled_from([None, 40, 80, 120]), st.sampled_from(["", "--all", "--stats", "--depth=1", "--sort=size"])
)
def test_any_tree_is_shown_in_printable_lines_of_the_width(tmp_path_factory, tree, width, option):
    path = tmp_path_factory.mktemp("trees") / "t.ptck"
    ptc.save(tree, path, durability="atomic")
    with pytest.MonkeyPatch.context() as patch:
        if width is not None:
            patch.setenv("COLUMNS", str(width))
        ran = run("inspect", path, *([option] if option else []))
    assert (ran.code, ran.err) == (0, "")
    for line in ran.lines[1:]:
        assert line.isprintable()
        assert width is None or cell_width(line) <= width


def test_a_training_run_is_shown_on_a_page(show):
    ran = show(training_run(24), metadata={"step": 20_000})
    assert len(ran.lines) < 60
    assert re.search(r"float32\[100, 8\] +800 +3.12 KiB .* shared with params/lm_head", ran.out)
    assert "same as params/wte" in ran.row("lm_head")
    assert "dict of 3 ×24" in ran.row("h[0…23]")
    assert "float32[8, 24] ×24" in ran.row("qkv")
    assert "─ [1]          Adam " in ran.out
    assert "int32[] = 20000" in ran.row(".count")
    assert "like opt[1]/.mu" in ran.row(".nu")
    assert "tuple of 625 ints  2147483648, " in ran.out
    assert "list of 10,000 floats  10, 9.98004, " in ran.row("loss")
    assert "list of 10,000 floats, all 0.0006" in ran.row("lr")
    assert "metadata  dict of 1" in ran.out


def test_the_head_says_what_the_file_is(show):
    ran = show({"a": np.ones(1000, np.float32), "b": np.ones(2, ml_dtypes.bfloat16), "c": 1, "d": 2})
    head = dict(line.split(maxsplit=1) for line in ran.lines[1:5])
    assert re.fullmatch(r"[0-9.]+ B, format version 1, root [0-9a-f]{16}…", head["file"])
    assert head["leaves"] == "2 arrays of 1,002 elements, 2 other values"
    assert head["dtypes"] == "3.91 KiB float32, 4 B bfloat16"
    assert re.fullmatch(r"8 B, 0.2 % of 3.91 KiB in memory; index \d+ B", head["stored"])


def test_layers_of_a_flat_dict_are_one_row_each(show):
    flat = {
        f"h.{i}.{name}": np.zeros(shape)
        for i in range(12)
        for name, shape in {"ln_1.w": 4, "ln_2.w": 4, "mlp.w": (4, 5)}.items()
    }
    ran = show({"wte": np.zeros(3), **flat})
    assert labels(ran) == ["wte", "h.{0…11}.ln_{1,2}.w", "h.{0…11}.mlp.w"]
    assert "float64[4] ×24" in ran.out


def test_layers_of_a_few_shapes_are_one_row_for_each_shape(show):
    ran = show({f"h.{i}.linear{j}": np.zeros((3, 2) if j == 1 else (2, 3)) for i in range(12) for j in (1, 2)})
    assert labels(ran) == ["h.{0…11}.linear1", "h.{0…11}.linear2"]


def test_a_few_layers_of_different_shapes_stay_apart(show):
    ran = show([np.zeros((n, n + 1)) for n in range(1, 6)])
    assert labels(ran) == ["[0]", "[1]", "[2]", "[3]", "[4]"]


def test_the_state_of_an_optimizer_is_one_row_though_shapes_differ(show):
    state = {i: {"step": np.float32(7), "m": np.zeros(5 + (i * i) % 7), "v": np.zeros(2)} for i in range(100)}
    ran = show({"state": state})
    assert "dict of 3 ×100" in ran.row("state/{0…99}")
    assert "float64, 4 shapes ×100" in ran.row("m")
    assert "float32 7 ×100" in ran.row("step")


def test_values_that_differ_are_shown_by_the_first_and_the_last(show):
    ran = show([{"loss": i / 2} for i in range(20)])
    assert "0.0, 0.5, 1.0 … 9.5 ×20" in ran.row("loss")


def test_all_shows_every_leaf(show):
    tree = training_run(5)
    tree.pop("rng"), tree.pop("metrics")
    ran = show(tree, "--all")
    assert "×" not in ran.out
    assert "like" not in ran.out
    assert sum("qkv" in line for line in ran.lines) == 15


def test_containers_beyond_the_depth_are_closed_with_what_is_in_them(show):
    ran = show(training_run(), "--depth", "1")
    assert ran.row("params").endswith("[74 arrays]")
    assert ran.row("schedule").endswith("[4 values]")
    assert ran.row("opt").endswith("[149 arrays, 1 value]")
    assert len(labels(ran)) == 6


def test_a_deep_or_wide_tree_is_opened_as_far_as_there_is_room(show):
    wide = show({f"{name}_{chr(97 + i)}": {"a": i, "b": [1, {}]} for i in range(26) for name in "pqr"})
    assert "… 43 more" in wide.out
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    assert "closed below level 16" in show(deep).out
    assert "… 4999 levels └─ [0]" in show(deep, "--all").out
    # Levels of 5, 25, 125 and 625: the last is too much.
    bushy = {letter: {x: {y: dict.fromkeys("abcde", 1) for y in "abcde"} for x in "abcde"} for letter in "abcde"}
    assert "closed below level 3" in show(bushy).out


def test_siblings_are_sorted(show):
    tree = {"b": np.zeros(100), "w10": np.arange(50), "w2": np.zeros(200), "a": 1}
    assert labels(show(tree)) == ["b", "w10", "w2", "a"]
    assert labels(show(tree, "--sort", "name")) == ["a", "b", "w2", "w10"]
    assert labels(show(tree, "--sort", "size")) == ["w2", "b", "w10", "a"]
    assert labels(show(tree, "--sort", "stored"))[0] == "w10"


def test_a_glob_leaves_out_the_others_and_counts_what_is_left(show):
    ran = show(training_run(4), "--match", "params/h[*]/mlp", metadata=1)
    assert labels(ran)[-4:] == ["h[0…3]", "mlp", "up", "down"]
    assert "  matching  8 arrays of 2,048 elements" in ran.lines
    assert "metadata" not in ran.out
    part = show({"list": [1, 2, 3], "other": 1}, "--match", "list[1]")
    assert labels(part)[-1] == "[1]"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (..., "..."),
        (10**4, "10000"),
        (1 << 20_000, "0x1000000000000000"),
        (float("nan"), "nan"),
        ("a" * 100, f"'{'a' * 30}'… (100 characters)"),
        (b"a" * 100, "b'aaaaaaa'… (100 bytes)"),
        (np.float32(0.1), "float32 0.1"),
        (ml_dtypes.bfloat16(3), "bfloat16 3"),
        (np.str_("x"), "str(1) 'x'"),
        (np.bool_(1), "bool True"),
        (np.void(b"ab"), "void(2) 0x6162"),
        (np.datetime64("2020-01-02T03", "h"), "datetime64(h) 2020-01-02T03"),
        (np.datetime64(5, "25s"), "datetime64(25 s) 1970-01-01T00:02:05"),
        ((0.9, 0.999), "(0.9, 0.999)"),
        ((1,), "(1,)"),
        ([None, "x"], "[None, 'x']"),
        ((), "()"),
        (set(), "set()"),
        ({1, 2}, "{1, 2}"),
        (frozenset([(1, "a")]), "frozenset({(1, 'a')})"),
        (set(range(300)), "set of 300  {0, 256, 1, "),
        (Empty(), "Empty()"),
        (Phase.WARMUP, "Phase.WARMUP = 1"),
        (range(1, 9, 2), "range(1, 9, 2)"),
        (slice(3), "slice(None, 3, None)"),
        (np.dtype("f4"), "numpy.dtype float32"),
        (np.dtype("U3"), "numpy.dtype ['str', 3]"),
        (bytearray(b"x"), "bytearray(b'x')"),
        (wrapped("torch.Size", (2, 3), fields=("shape",)), "torch.Size((2, 3))"),
        (list("abcdefghijkl"), "list of 12 strings  'a', 'b', "),
        ([1, None] * 10, "list of 20 values  1, None, "),
        ({f"token {i}": i for i in range(100)}, "dict of 100 ints  token 0: 0, token 1: 1, "),
        (list(range(9)), "list of 9 ints  0, 1, 2, 3, 4, 5, 6, 7, 8\n"),
        (np.array([1, None, "x"], object), "[1, None, 'x']  numpy.ObjectArray, shape=(3,)\n"),
        (np.full(1, 0xFFFFFFFF, np.uint32).view([("x", "U1")])[0], "struct(x: str(1)) <void>\n"),
        (["x" * 40, "y" * 40], f"list of 2 strings  '{'x' * 22}…, '{'y' * 22}…\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_are_written_as_in_python(show, value, text):
    assert re.search(rf"└─ key  {re.escape(text)}", show({"key": value}).out)


def test_kinds_of_containers_are_named(show):
    ran = show(
        {
            "list": [[1, 2], {"a": 3}],
            "counter": collections.Counter(a=[{}]),
            "ordered": collections.OrderedDict(b=[{}]),
            "deque": collections.deque([{}, {"x": 1}], 7),
        }
    )
    assert ran.row("list").endswith("  list of 2")
    assert ran.row("counter").endswith("  Counter of 1")
    assert ran.row("ordered").endswith("  OrderedDict of 1")
    assert re.search("  deque of 2 +maxlen=7$", ran.row("deque"))


@pytest.mark.parametrize(
    ("type_name", "fields", "values", "text"),
    [
        ("torch.device", ("type", "index"), ("cuda", 1), "torch.device cuda:1"),
        ("torch.device", ("type", "index"), ("cpu", None), "torch.device cpu"),
        ("torch.dtype", ("name",), ("bfloat16",), "torch.bfloat16"),
        ("torch.dtype", ("name",), ({"a": [1]},), "torch.{…}"),
    ],
)
def test_objects_of_frameworks_are_named_without_them(show, type_name, fields, values, text):
    record = ptc.objects.build_record(ptc.ObjectType(ptc.ClassKind.RECORD, type_name, fields), values)
    assert show({"key": record}).lines[-1].endswith(f"└─ key  {text}")


def test_an_object_with_everything_in_it_is_written_within_bounds(show):
    enum = ptc.ObjectType(ptc.ClassKind.ENUM, "module:Everything", ("name", "value"))
    deep: list = []
    for _ in range(3000):
        deep = [deep]
    other = ptc.objects.build_record(ptc.ObjectType(ptc.ClassKind.RECORD, "x.y", ("a", "b c")), [1, np.ones(3)])
    for name, value in {"deep": deep, "dict": {1: 2}, "record": other, "scalar": np.int8(1)}.items():
        line = show({"key": ptc.objects.build_record(enum, [name, value])}).lines[-1]
        assert f"Everything.{name} = " in line
        assert len(line) < 100


def test_types_and_unusual_attributes_of_arrays_stand_beside_them(show):
    def tensor(kind, requires_grad):
        return wrapped(f"torch.{kind}", np.ones(5), requires_grad)

    ran = show(
        {
            "plain": tensor("Tensor", False),
            "other": tensor("Tensor", False),
            "more": tensor("Tensor", True),
            "still more": tensor("Tensor", False),
            "even more": tensor("Tensor", False),
            "w": tensor("nn.Parameter", True),
            "frozen": tensor("nn.Parameter", False),
            "key": wrapped("jax.PRNGKeyArray", np.ones(2, np.uint32), "threefry2x32", fields=("key_data", "impl")),
            "box": wrapped("x.Box", wrapped("x.Inner", {"a": 1}, fields=("v",)), np.ones(9), fields=("v", "extra")),
        }
    )
    assert "types   5 torch.Tensor, 2 torch.nn.Parameter, 1 jax.PRNGKeyArray" in ran.out
    assert ran.row("plain").endswith("100 %")
    assert ran.row("more").endswith("  requires_grad=True")
    assert ran.row("w").endswith("  torch.nn.Parameter")
    assert ran.row("frozen").endswith("  torch.nn.Parameter, requires_grad=False")
    assert ran.row("key").endswith("  = [1, 1], jax.PRNGKeyArray, impl='threefry2x32'")
    assert ran.row("box").endswith("  x.Box of x.Inner")
    assert "float64[9]" in ran.row(".extra")


def test_siblings_with_other_attributes_stay_apart(show):
    ran = show([wrapped("torch.nn.Parameter", np.ones(9), i < 5) for i in range(10)])
    assert ran.row("[0…4]").endswith("100 %")
    assert ran.row("[5…9]").endswith("100 %  requires_grad=False")


def test_sharing_is_told_wherever_it_is(show):
    array, other = np.ones(50), np.zeros(60)
    ran = show({"a": array, "b": array, "c": array, "all": [other] * 9})
    assert ran.row("a").endswith("shared with b and 1 more")
    assert ran.row("b").endswith("same as a")
    assert ran.row("all[0…8]").endswith("all the same array")
    layers = {f"h{i}": np.ones(i + 1) for i in range(30)}
    tied = show({"x": layers, "y": dict(layers), "z": [layers["h0"], np.ones(1), np.ones(1)]})
    assert re.search(r"float64, 30 shapes ×30 .*  shared$", tied.row("x/h{0…29}"))
    assert tied.row("z[0…2]").endswith("1 of them shared")


def test_a_path_shows_what_is_there(show):
    tree = training_run(6)
    assert labels(show(tree, "params/h[2]/ln")) == ["scale", "bias"]
    assert show(tree, "schedule/name").out == "'cosine'\n"
    assert show({"text": "\x1b[31m" * 100}, "text").out == repr("\x1b[31m" * 100) + "\n"
    items = show(tree, "metrics/loss")
    assert items.row("[0]").endswith("10.0")
    assert "… 9,965 more" in items.out
    assert len(show(tree, "metrics/loss", "--all").lines) == 10_001
    assert labels(show(tree, "metrics", "--stats")) == ["loss", "lr"]


def test_a_path_to_an_array_shows_its_chunks_and_first_values(show):
    array = np.asfortranarray(np.random.default_rng(0).standard_normal((1000, 1000)))
    ran = show({"w": wrapped("torch.Tensor", array, True), "v": array}, "w", "--stats")
    said = {line[:15].strip(): line[15:].strip() for line in ran.lines[1:12]}
    assert said["array"] == "float64[1000, 1000]"
    assert said["type"] == "torch.Tensor"
    assert said["requires_grad"] == "True"
    assert said["in memory"] == "7.63 MiB (8,000,000 bytes), in Fortran order"
    assert re.fullmatch(r"6\.\d+ MiB \([0-9,]+ bytes\), \d+ % in 4 planes chunks", said["in the file"])
    assert said["shared with"] == "v"
    assert said["values"].split(", ")[:2] == [f"{value:.6g}" for value in array[0, :2]]
    assert said["statistics"].startswith("min -")
    assert sum("planes" in line for line in ran.lines) == 5
    assert "262,144 to 524,288" in ran.out


def test_arrays_of_every_form_are_shown_by_path(show):
    big = np.zeros(20 << 20, np.float32)
    big[:1000] = 1
    assert "in 40 chunks (39 fill, 1 planes)" in show({"w": big}, "w").out
    assert "… 16 more chunks" in show({"w": big}, "w").out
    assert len(show({"w": big}, "w", "--all").lines) > 45
    assert "values       none" in show({"w": np.zeros((3, 0))}, "w").out
    assert "values       1, 2\n" in show({"w": np.array([[1], [2]])}, "w").out
    assert "axes from slowest to fastest [1, 2, 0]" in show({"w": np.zeros((9, 8, 7)).transpose(2, 0, 1)}, "w").out
    assert "statistics   none: not of numbers" in show({"w": np.array(["a"])}, "w", "--stats").out
    assert "array        float64[3]" in show(np.ones(3), "").out
    struct = np.zeros(2, [("x", "f4"), ("y\x1b", "u1", (2,))])
    assert r"struct(x: float32, y\x1b: uint8[2])[2]" in show({"w": struct}, "w").out
    bad = np.full(1, 0xFFFFFFFF, np.uint32).view("U1")
    assert "values       <bytes ffffffff>" in show({"w": bad}, "w").out
    assert r"str(1)[] = b'\xff\xff\xff\xff'" in show({"w": bad.reshape(())}).out
    assert "statistics   3 NaN, 0 infinite, 0 zeros" in show({"w": np.full(3, np.nan)}, "w", "--stats").out


class Sharded:
    """An array in two boxes, as an adapter would hand it over."""

    def source(self):
        halves = [np.zeros((100, 3)), np.ones((100, 3))]
        readers = [lambda start, stop, half=half: half.reshape(-1)[start:stop] for half in halves]
        return ptc.ArraySource(np.dtype("f8"), (200, 3), readers, cuts=[[100], []])


def test_boxes_of_an_array_are_listed(show, monkeypatch):
    adapter = ptc.Adapter(
        framework="json",
        expand=lambda value: value.source() if isinstance(value, Sharded) else None,
        build=lambda name, fields: None,
        from_array=lambda array: array,
        template=lambda value: None,
    )
    monkeypatch.setitem(ptc.adapters._added, "json", adapter)
    ran = show({"w": Sharded()}, "w")
    assert "  box 0        [100, 3] at [0, 0]" in ran.lines
    assert "  box 1        [100, 3] at [100, 0]" in ran.lines
    assert "in 2 fill chunks" in ran.out


def test_statistics_stand_in_columns_with_alarms(show):
    arrays = [np.ones(4, ml_dtypes.bfloat16), np.zeros(4, ml_dtypes.bfloat16), np.zeros(4, ml_dtypes.bfloat16)]
    arrays[1][2] = np.nan
    ran = show(
        {"w": arrays, "n": np.array([1, 2, 2_000_000]), "x": np.array([np.inf, 1.5]), "t": np.array(["a"])}, "--stats"
    )
    assert ran.row("w[0…2]").split()[-8:] == ["0", "1", "0.3636", "0.481", "58", "%", "1", "NaN"]
    assert "2e+06" in ran.row("n")
    assert ran.row("x").endswith("1 infinite  = [inf, 1.5]")
    assert "1 NaN, 1 infinite in 2 arrays" in ran.out
    assert "all numbers are finite" in show({"a": np.ones(3)}, "--stats").out
    assert "finite" not in show({"a": "text"}, "--stats").out


def test_hostile_names_reach_the_terminal_escaped(show):
    clear, bidi, title = "\x1b[2J", "\u202e", "\x1b]0;pwned\x07"
    evil = ptc.ObjectType(ptc.ClassKind.DATACLASS, f"m:{clear}", (f"f{bidi}",))
    tree = {
        clear: title,
        bidi: np.array([clear]),
        "[bold red]x[/]": "[link=http://x]y[/]",
        "record": ptc.objects.build_record(evil, [clear]),
        "wrapped": wrapped(f"evil.{clear}", np.ones(2), clear, fields=("v", f"a{title}")),
        "enum": ptc.objects.build_record(
            ptc.ObjectType(ptc.ClassKind.ENUM, f"m:{clear}", ("name", "value")), [clear, bidi]
        ),
        "line\nbreak": {"tab\t": 1},
    }
    for arguments in ([], ["--all"], ["--stats"], ["--", '"\\u202e"'], ["wrapped"], ["record"]):
        ran = show(tree, *arguments, metadata={clear: bidi})
        assert all(line.isprintable() for line in ran.lines)
        assert bidi not in ran.out
    assert "\"[bold red]x[/]\"  '[link=http://x]y[/]'" in show(tree).out
    missing = show(tree, f'"{"x"}"/y', code=2)
    assert all(line.isprintable() for line in missing.err.splitlines())


def test_a_narrow_terminal_loses_columns_before_names(show, monkeypatch):
    tree = {"transformer": {"h": {"attention_weights_of_the_first_head": np.ones((10, 10))}}, "tied": None}
    shared = np.ones((10, 10))
    tree["transformer"]["x"], tree["tied"] = shared, shared
    headers = {}
    for width in (60, 80, 120):
        monkeypatch.setenv("COLUMNS", str(width))
        ran = show(tree)
        headers[width] = next(line for line in ran.lines if "size" in line).split()
        assert "same as transformer/x" in ran.out
    assert headers == {60: ["size"], 80: ["size"], 120: ["elements", "size", "stored"]}
