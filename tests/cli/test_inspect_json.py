"""`inspect --json`: the document that docs/command-line.md describes."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

import pytreeckpt as ptc
from pytreeckpt.objects import build_record
from tests.cli.documented import check
from tests.cli.running import inspected
from tests.cli.trees import TREES, Phase, State, training_run, wrapped


@pytest.fixture
def saved(tmp_path):
    """Saves a tree and gives the document about it."""

    def save(tree, *arguments, **options):
        path = tmp_path / "tree.ptck"
        ptc.save(tree, path, durability="atomic", **options)
        return inspected(path, *arguments)

    return save


def leaves(document):
    return {leaf["path"]: leaf for leaf in document["leaves"]}


@given(TREES)
def test_the_document_is_as_documented_and_lists_exactly_the_leaves(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("trees") / "tree.ptck"
    ptc.save(tree, path, durability="atomic")
    document = inspected(path, "--stats")
    check(document, "pytreeckpt-inspect/1")
    with ptc.open(path) as checkpoint:
        expected = [str(leaf_path) for leaf_path, _ in checkpoint.leaves()]
        assert [leaf["path"] for leaf in document["leaves"]] == expected
        assert document["totals"]["leaves"] == len(expected)
        assert document["file"]["root"] == checkpoint.root


@given(TREES)
def test_a_path_selects_the_leaves_at_and_below_it(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("trees") / "tree.ptck"
    ptc.save(tree, path, durability="atomic")
    everything = inspected(path)
    for at in [*everything["containers"][:3], *everything["leaves"][-3:]]:
        if at["path"]:
            document = inspected(path, "--", at["path"])
            check(document, "pytreeckpt-inspect/1")
            below = [leaf for leaf in everything["leaves"] if leaf["path"].startswith(at["path"])]
            wanted = ptc.Path.parse(at["path"])
            below = [leaf for leaf in below if ptc.Path.parse(leaf["path"])[: len(wanted)] == wanted]
            assert document["leaves"] == below


def test_values_have_one_form_each(saved):
    document = saved(
        {
            "none": None,
            "int": 7,
            "big": 1 << 60,
            "huge": 1 << 20_000,
            "nan": float("nan"),
            "inf": -float("inf"),
            "complex": complex(1, float("inf")),
            "bytes": b"\x00\xff",
            "ellipsis": ...,
            "text": "\x1b[31m",
            "scalar": np.float32(0.5),
            "date": np.datetime64("2020-01-02"),
            "set": {(1, "a")},
            "enum": Phase.WARMUP,
        }
    )
    values = {path: leaf.get("value", leaf.get("items", leaf.get("fields"))) for path, leaf in leaves(document).items()}
    assert values.pop("huge").startswith("0x1000")
    assert values == {
        "none": None,
        "int": 7,
        "big": str(1 << 60),
        '"nan"': "nan",
        '"inf"': "-inf",
        "complex": [1.0, "inf"],
        "bytes": "00ff",
        "ellipsis": "...",
        "text": "\x1b[31m",
        "scalar": 0.5,
        "date": "2020-01-02",
        "set": [{"kind": "tuple", "items": [1, "a"]}],
        "enum": {"name": "WARMUP", "value": 1},
    }


@pytest.mark.parametrize(
    ("scalar", "dtype", "value"),
    [
        (np.bool_(1), "bool", True),
        (np.uint64((1 << 64) - 1), "uint64", str((1 << 64) - 1)),
        (np.float64("nan"), "float64", "nan"),
        (np.longdouble(0.5), "float80_x87", 0.5),
        (np.complex64(1 + 2j), "complex64", [1.0, 2.0]),
        (np.str_("\x1b"), ["str", 1], "\x1b"),
        (np.bytes_(b"a\xff"), ["bytes", 2], "61ff"),
        (np.void(b"\x01"), ["void", 1], "01"),
        (np.timedelta64(5, "s"), ["timedelta64", "s", 1], "5 seconds"),
        (ml_dtypes.bfloat16(2), "bfloat16", 2.0),
        (ml_dtypes.int4(-3), "int4", -3),
        (ml_dtypes.complex32(1 - 1j), "complex32", [1.0, -1.0]),
    ],
    ids=str,
)
def test_numpy_scalars_have_a_dtype_and_a_value(saved, scalar, dtype, value):
    leaf = saved({"x": scalar})["leaves"][0]
    assert leaf == {"path": "x", "kind": "scalar", "dtype": dtype, "value": value}


def test_a_scalar_that_is_no_value_of_its_dtype_is_its_bytes(saved):
    bad = np.full(1, 0xFFFFFFFF, np.uint32).view([("x", "U1")])[0]
    assert saved({"x": bad})["leaves"][0]["value"] == "ffffffff"


def test_fields_hold_whatever_a_file_puts_there(saved):
    kind = ptc.ObjectType(ptc.ClassKind.ENUM, "m:E", ("name", "value"))
    inside = [
        np.ones(2),
        np.int8(3),
        {1: [None]},
        {"s"},
        build_record(ptc.ObjectType(ptc.ClassKind.RECORD, "x.R", ("a",)), [1]),
    ]
    document = saved(build_record(kind, ["A", inside]))
    check(document, "pytreeckpt-inspect/1")
    assert document["leaves"][0]["fields"]["value"]["items"] == [
        {"kind": "array", "array": 0},
        {"kind": "scalar", "value": 3},
        {"kind": "dict", "items": [["1", {"kind": "list", "items": [None]}]]},
        {"kind": "set", "items": ["s"]},
        {"kind": "record", "type": "x.R", "fields": {"a": 1}},
    ]


def test_an_array_has_its_place_in_the_file(saved):
    array = np.asfortranarray(np.random.default_rng(0).standard_normal((600, 500)))
    leaf = leaves(saved({"w": array, "again": array, "tiny": np.zeros(2)}, compression="none"))
    assert leaf["w"] | {"stored_nbytes": 0} == {
        "path": "w",
        "kind": "array",
        "array": 0,
        "dtype": "float64",
        "shape": [600, 500],
        "nbytes": array.nbytes,
        "stored_nbytes": 0,
        "chunks": 2,
        "codecs": {"raw": 2},
        "axes": [1, 0],
        "shared_by": 2,
    }
    assert leaf["again"]["array"] == leaf["w"]["array"]
    assert leaf["tiny"]["codecs"] == {"inline": 1}


def test_the_chunks_of_one_array_are_listed(saved):
    array = np.random.default_rng(0).standard_normal(600_000)
    document = saved({"w": array}, "w", compression="none")
    check(document, "pytreeckpt-inspect/1")
    chunks = document["chunks"]
    assert [chunk["start"] for chunk in chunks] == [0, *(chunk["stop"] for chunk in chunks[:-1])]
    assert sum(chunk["nbytes"] for chunk in chunks) == array.nbytes
    assert chunks[0]["box"] == {"offset": [0], "shape": [600_000]}
    assert chunks[0]["offset"] == 64


def test_wrappers_and_classes_are_named(saved):
    document = saved({"w": wrapped("torch.nn.Parameter", np.ones(3), False), "state": State(1, {})})
    leaf = leaves(document)
    assert leaf["w"]["types"] == ["torch.nn.Parameter"]
    assert leaf["state/.params"] == {"path": "state/.params", "kind": "dict", "length": 0}
    assert document["attributes"] == [{"path": "w/.requires_grad", "kind": "bool", "value": False}]
    containers = {container["path"]: container for container in document["containers"]}
    assert containers["state"]["kind"] == "dataclass"
    assert containers["state"]["type"].endswith(":State")
    assert containers["state"]["fields"] == ["step", "params"]


def test_statistics_are_of_the_finite_numbers(saved):
    found = leaves(saved({"w": np.array([1.0, np.nan, -np.inf, 0.0, 3.0]), "none": np.array([np.nan])}, "--stats"))
    statistics = found["w"]["statistics"]
    assert statistics.pop("std") == pytest.approx(np.std([1, 0, 3]))
    assert statistics.pop("mean") == pytest.approx(4 / 3)
    assert statistics == {"elements": 5, "finite": 3, "nan": 1, "infinite": 1, "zeros": 1, "min": 0.0, "max": 3.0}
    assert found["none"]["statistics"]["min"] is None


def test_a_glob_selects_leaves_and_totals(saved):
    document = saved(training_run(3), "--match", "**/scale")
    assert {leaf["path"] for leaf in document["leaves"]} == {
        f"{model}/h[{i}]/ln/scale" for model in ("params", "opt[1]/.mu", "opt[1]/.nu") for i in range(3)
    }
    assert document["totals"]["arrays"] == 9
    assert document["selection"] == {"path": None, "match": "**/scale"}


def test_metadata_come_with_every_document(saved):
    document = saved({"a": 1}, "a", metadata={"step": 3, "tags": ["x"]})
    assert [(leaf["path"], leaf["value"]) for leaf in document["metadata"]] == [("step", 3), ("tags[0]", "x")]


def test_what_nests_too_deep_for_json_is_cut(saved):
    value: list = []
    for _ in range(3000):
        value = [value]
    enum = build_record(ptc.ObjectType(ptc.ClassKind.ENUM, "m:E", ("name", "value")), ["A", value])
    fields = saved({"enum": enum, "wrapped": wrapped("x.W", 1, value)})["leaves"][0]["fields"]
    depth = 0
    at = fields["value"]
    while "cut" not in at:
        (at,) = at["items"]
        depth += 1
    assert depth == 100
    assert at == {"kind": "list", "cut": True}
