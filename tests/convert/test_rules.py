"""Rules: each does what it says, in Python and in TOML, and one that says nothing is a mistake."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pytreeckpt as ptc
from pytreeckpt import convert
from pytreeckpt.convert import Choose, Convert, Drop, Fill, Kind, Rename, RuleError, Scan, Step, Waive, parse_rules
from pytreeckpt.convert.operations import Permute
from pytreeckpt.convert.presets import TRANSFORMERS_FLAX
from tests.convert.layers_side_by_side import normal, randomised


def net(**layers):
    return randomised(torch.nn.ModuleDict(layers))


def linear(*shape):
    return {"kernel": np.zeros(shape), "bias": np.zeros(shape[-1])}


def made(source, target, *rules, **options):
    return convert.plan(source, target, rules=rules, **options).apply(source).tree


def problems(source, target, *rules):
    with pytest.raises(ptc.ConversionError) as caught:
        convert.plan(source, target, rules=rules)
    return caught.value


# Each rule.


def test_renames_are_applied_one_after_the_other():
    source = net(a=torch.nn.ModuleDict({"b": torch.nn.Linear(2, 3)}))
    for rules in ([Rename("a.b", "x/y")], [Rename("a", "c"), Rename("c/b", "x.y")], [Rename("{p}.b", "x/y")]):
        tree = made(source, {"x": {"y": linear(2, 3)}}, *rules)
        assert np.array_equal(tree["x"]["y"]["kernel"], source["a"]["b"].weight.detach().numpy().T)


def test_parts_of_names_are_captured():
    source = net(encoder=torch.nn.ModuleList([torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)]))
    target = {"enc": {f"block{i}x": {"mlp": linear(2, 3)} for i in range(2)}}
    tree = made(source, target, Rename("encoder.{i}", "enc/block{i}x/mlp"))
    for i in range(2):
        assert np.array_equal(tree["enc"][f"block{i}x"]["mlp"]["bias"], source["encoder"][i].bias.detach().numpy())


def test_names_with_dots_and_slashes_are_quoted():
    state = {"a.weight": normal(3, 2)}
    target = {"x.y": {"z/w": np.zeros((2, 3))}}
    tree = made(state, target, Convert("a.weight", '"x.y"/"z/w"', (Step("transpose"),)))
    assert np.array_equal(tree["x.y"]["z/w"], state["a.weight"].T)


def test_a_kind_decides_and_the_first_one_that_matches():
    state = {"a.weight": normal(3, 3)}
    target = {"a": {"kernel": np.zeros((3, 3))}}
    assert np.array_equal(made(state, target, Kind("a", "Linear"))["a"]["kernel"], state["a.weight"].T)
    conv1d = Kind("a", "transformers.pytorch_utils.Conv1D")
    plain = Choose("a", "kernel (in, out)")
    assert np.array_equal(made(state, target, conv1d, plain, Kind("*", "Linear"))["a"]["kernel"], state["a.weight"])


def test_a_kind_takes_the_place_of_what_was_recorded():
    source = net(a=torch.nn.Linear(3, 3, bias=False))
    target = {"a": {"kernel": np.zeros((3, 3))}}
    rules = [Kind("a", "transformers.pytorch_utils.Conv1D"), Choose("a", "kernel (in, out)")]
    assert np.array_equal(made(source, target, *rules)["a"]["kernel"], source["a"].weight.detach().numpy())


def test_items_of_a_declared_sequential_are_below_layers():
    state = {"a.0.weight": normal(3, 2), "a.0.bias": normal(3)}
    rules = [Kind("a", "Sequential"), Kind("a.0", "Linear")]
    named = made(state, "nnx", *rules)
    assert list(named) == ["a"]
    assert list(named["a"]) == ["layers"]


def test_what_is_dropped_is_kept_as_a_residual():
    source = net(a=torch.nn.Linear(2, 3), b=torch.nn.Linear(2, 2))
    plan = convert.plan(source, {"a": linear(2, 3)}, rules=[Drop("b.**", "of the old head")])
    tree, residuals = plan.apply(source)
    assert set(residuals) == {"b.weight", "b.bias"}
    assert "of the old head" in str(plan.report())
    back = plan.invert().apply(tree, residuals=residuals).tree
    assert all(torch.equal(back[name], tensor) for name, tensor in source.state_dict().items())


def test_what_torch_has_not_is_filled():
    source = net(a=torch.nn.Linear(2, 3))
    plan = convert.plan(source, {"a": linear(2, 3), "gate": np.ones(4)}, rules=[Fill("gate", -2.5)])
    tree, residuals = plan.apply(source)
    assert tree["gate"].tolist() == [-2.5] * 4
    assert list(plan.invert().apply(tree, residuals=residuals).tree) == ["a.weight", "a.bias"]


def test_what_is_waived_is_in_the_report_and_keeps_the_targets_values():
    source = net(a=torch.nn.Linear(2, 3), b=torch.nn.Linear(2, 2))
    target = {"a": linear(2, 3), "new": np.full(2, 9.0)}
    error = problems(source, target)
    assert len(error.unexpected) == 2
    assert len(error.missing) == 1
    plan = convert.plan(source, target, rules=[Waive(unused="b.*"), Waive(missing="new")])
    assert [str(path) for path in plan.unused] == ["b.weight", "b.bias"]
    assert [str(path) for path in plan.missing] == ["new"]
    assert plan.apply(source).tree["new"].tolist() == [9.0, 9.0]
    assert "unused, waived" in str(plan.report())
    # It is no leave to get anything else wrong.
    assert problems(net(a=torch.nn.Linear(2, 4)), {"a": linear(2, 3)}, Waive(unused="**", missing="**")).mismatched


def test_leaves_are_split_joined_and_changed():
    qkv = normal(6, 4)
    state = {"attn.qkv.weight": qkv}
    target = {"attn": {name: np.zeros((4, 2)) for name in "qkv"}}
    rule = Convert(
        "{p**}.qkv.weight",
        ("{p**}/q", "{p**}/k", "{p**}/v"),
        (Step("split", {"axis": 0, "parts": 3}), Step("permute", (1, 0))),
    )
    plan = convert.plan(state, target, rules=[rule])
    tree, residuals = plan.apply(state)
    assert np.array_equal(tree["attn"]["k"], qkv[2:4].T)
    assert np.array_equal(plan.invert().apply(tree, residuals=residuals).tree["attn.qkv.weight"], qkv)
    parts = {f"a.{name}.weight": normal(2, 2, seed=seed) for seed, name in enumerate("qkv")}
    joined = Convert(("a.q.weight", "a.k.weight", "a.v.weight"), "qkv", (Step("concat", 0), Permute((1, 0))))
    assert np.array_equal(made(parts, {"qkv": np.zeros((2, 6))}, joined)["qkv"], np.concatenate(list(parts.values())).T)


STEPS = {
    "reshape": (Step("reshape", (2, -1)), lambda x: x.reshape(2, -1)),
    "flip": (Step("flip", (1,)), lambda x: x[:, ::-1]),
    "pad": (
        Step("pad", {"widths": [(0, 2), (0, 0)], "value": 1.0}),
        lambda x: np.pad(x, [(0, 2), (0, 0)], constant_values=1.0),
    ),
    "crop": (Step("crop", [(0, 1), (1, 0)]), lambda x: x[:-1, 1:]),
    "affine": (Step("affine", {"scale": 4.0, "offset": 1.0}), lambda x: 4 * x + 1),
    "vocabulary": (Step("split", {"axis": 0, "sizes": [4]}), lambda x: x),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_compute_what_they_are_called_and_come_back_to_the_bit(name):
    step, expected = STEPS[name]
    state = {"a.weight": normal(4, 3)}
    plan = convert.plan(state, {"x": expected(state["a.weight"])}, rules=[Convert("a.weight", "x", (step,))])
    tree, residuals = plan.apply(state)
    assert np.array_equal(tree["x"], expected(state["a.weight"]))
    back = plan.invert().apply(tree, residuals=residuals).tree["a.weight"]
    assert back.tobytes() == state["a.weight"].tobytes()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_layers_are_stacked_as_scan_does_it(axis):
    blocks = torch.nn.ModuleList(
        torch.nn.ModuleDict({"fc": torch.nn.Linear(4, 4), "norm": torch.nn.LayerNorm(4)}) for _ in range(11)
    )
    source = net(h=blocks)
    kernels = np.zeros(tuple(np.insert((4, 4), axis, 11)))
    others = np.zeros(tuple(np.insert((4,), min(axis, 1), 11)))
    target = {"blocks": {"fc": {"kernel": kernels, "bias": others}, "norm": {"scale": others, "bias": others}}}
    if axis == 2:
        # The other leaves have no such axis.
        assert problems(source, target, Scan("h.{i}", "blocks", axis=2)).mismatched
        return
    plan = convert.plan(source, target, rules=[Scan("h.{i}", "blocks", axis=axis)])
    tree, residuals = plan.apply(source)
    expected = np.stack([block["fc"].weight.detach().numpy().T for block in source["h"]], axis)
    assert np.array_equal(tree["blocks"]["fc"]["kernel"], expected)
    expected = np.stack([block["norm"].weight.detach().numpy() for block in source["h"]], axis)
    assert np.array_equal(tree["blocks"]["norm"]["scale"], expected)
    back = plan.invert().apply(tree, residuals=residuals).tree
    assert all(torch.equal(back[name], tensor) for name, tensor in source.state_dict().items())
    # The way from JAX is planned from the same rule.
    forth = convert.plan(tree, source, rules=[Scan("h.{i}", "blocks", axis=axis)]).apply(tree).tree
    assert all(torch.equal(forth[name], tensor) for name, tensor in source.state_dict().items())


def test_a_stack_of_another_number_of_layers_is_refused():
    source = net(h=torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3)))
    target = {"blocks": {"kernel": np.zeros((4, 2, 2)), "bias": np.zeros((4, 2))}}
    error = problems(source, target, Scan("h.{i}", "blocks"))
    assert all("3 layers for an axis of 4" in text for text in error.mismatched)
    assert error.missing == error.unexpected == ()


def test_leaves_of_numbered_layers_are_stacked_in_the_order_of_their_numbers():
    state = {f"h.{i}.weight": np.full((2,), float(i)) for i in (10, 2, 0, 1, 9, 3, 4, 5, 6, 7, 8)}
    tree = made(state, {"h": np.zeros((11, 2))}, Convert("h.{i}.weight", "h", (Step("stack", {"axis": 0}),)))
    assert tree["h"][:, 0].tolist() == list(map(float, range(11)))


NUMBERS = [f"h.{i}.{j}.weight" for i in (10, 2, 0) for j in (11, 3)]


def test_leaves_are_stacked_in_the_order_of_all_numbers_whatever_they_are_called():
    state = {name: np.full((2,), float(number)) for number, name in enumerate(NUMBERS)}
    expected = [float(NUMBERS.index(f"h.{i}.{j}.weight")) for i in (0, 2, 10) for j in (3, 11)]
    rule = Convert("h.{n}.{m}.weight", "h", (Step("stack", {"axis": 0}),))
    assert made(state, {"h": np.zeros((6, 2))}, rule)["h"][:, 0].tolist() == expected


@pytest.mark.parametrize("pattern", ["h.*.*.weight", "h.{n}.*.weight", "{p**}.weight", "h.{n**}.weight"])
def test_leaves_whose_order_is_not_said_are_not_stacked(pattern):
    state = {name: np.zeros(2) for name in NUMBERS}
    error = problems(state, {"h": np.zeros((6, 2))}, Convert(pattern, "h", (Step("stack", {"axis": 0}),)))
    assert "their order is not said" in error.mismatched[0]


@pytest.mark.parametrize("axis", [-1, -2])
def test_the_axis_of_a_stack_may_be_counted_from_the_last_one(axis):
    source = net(h=torch.nn.ModuleList(torch.nn.Linear(3, 2) for _ in range(4)))
    expected = np.stack([layer.weight.detach().numpy().T for layer in source["h"]], axis)
    biases = np.stack([layer.bias.detach().numpy() for layer in source["h"]], axis)
    target = {"h": {"kernel": np.zeros(expected.shape), "bias": np.zeros(biases.shape)}}
    plan = convert.plan(source, target, rules=[Scan("h.{n}", "h", axis=axis)])
    tree, residuals = plan.apply(source)
    assert np.array_equal(tree["h"]["kernel"], expected)
    assert np.array_equal(tree["h"]["bias"], biases)
    back = plan.invert().apply(tree, residuals=residuals).tree
    assert all(torch.equal(back[name], tensor) for name, tensor in source.state_dict().items())


def test_stacks_of_stacks_are_numbered_by_what_their_target_has_not():
    source = net(s=torch.nn.ModuleList(torch.nn.ModuleList(torch.nn.Linear(3, 2) for _ in range(4)) for _ in range(2)))
    target = {f"s{i}": {"kernel": np.zeros((4, 3, 2)), "bias": np.zeros((4, 2))} for i in range(2)}
    tree = made(source, target, Scan("s.{i}.{j}", "s{i}"))
    assert np.array_equal(tree["s1"]["bias"], np.stack([layer.bias.detach().numpy() for layer in source["s"][1]]))


def test_layers_change_places_by_a_third_name():
    source = net(a=torch.nn.Linear(2, 3), b=torch.nn.Linear(2, 3))
    target = {"a": linear(2, 3), "b": linear(2, 3)}
    tree = made(source, target, Rename("a", "aside"), Rename("b", "a"), Rename("aside", "b"))
    assert np.array_equal(tree["a"]["bias"], source["b"].bias.detach().numpy())
    assert np.array_equal(tree["b"]["bias"], source["a"].bias.detach().numpy())
    error = problems(source, target, Rename("a", "b"), Rename("b", "a"))
    assert "by a third name" in error.mismatched[0]


# Mistakes.


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Waive(), "lets nothing pass"),
        (Scan("encoder.{i}.{j}", "x"), "which part numbers the layers is not said"),
        (Scan("encoder.layer", "x"), "which part numbers the layers is not said"),
    ],
)
def test_a_rule_that_says_nothing_is_a_mistake(rule, message):
    assert any(message in text for text in problems(SOURCE, TARGET, rule).mismatched)


@pytest.mark.parametrize("rule", [Waive(unused="encoder.layr.*"), Waive(missing="encoder/layr/*")])
def test_a_waiver_that_matches_nothing_is_a_mistake(rule):
    (text,) = problems(SOURCE, TARGET, rule).mismatched
    assert "matches no leaf; there is encoder/layer" in text
    # What may be left over, and is not, is no mistake.
    assert convert.plan(SOURCE, TARGET, rules=[Waive(unused="**.bias", missing="**/bias")]).entries


def test_a_check_that_there_is_not_is_not_waived():
    with pytest.raises(ValueError, match="stepz cannot be waived; there is amsgrad"):
        convert.plan(SOURCE, TARGET, rules=[Waive(check="stepz")])


@pytest.mark.parametrize("rule", ["x", {"rename": 1}, Rename, None])
def test_what_is_no_rule_is_refused(rule):
    with pytest.raises(RuleError, match="is no rule"):
        convert.plan(SOURCE, TARGET, rules=[rule])


SOURCE = {"encoder.layer.weight": np.zeros((2, 3)), "encoder.layer.bias": np.zeros(2)}
TARGET = {"encoder": {"layer": {"kernel": np.zeros((3, 2)), "bias": np.zeros(2)}}}


@pytest.mark.parametrize(
    "rule",
    [
        Rename("encodre", "enc"),
        Kind("encoder.layr", "Linear"),
        Choose("encoder.layr", "kernel (in, out)"),
        Scan("encoder.layr.{i}", "x"),
        Convert("encoder.layr.weight", "x"),
        Drop("encoder.layr.bias"),
        Fill("encoder.layr.bias"),
    ],
)
def test_a_rule_that_matches_nothing_is_a_mistake_and_what_is_close_is_named(rule):
    (text,) = problems(SOURCE, TARGET, rule).mismatched
    assert "matches no" in text
    assert "there is encoder" in text


def test_a_choice_that_no_layer_has_is_a_mistake():
    (text,) = problems(
        SOURCE, TARGET, Kind("encoder.layer", "Linear"), Choose("**.layer", "kernel (on, out)")
    ).mismatched
    assert "'kernel (on, out)'" in text
    assert "kernel (in, out)" in text
    # Of several layers, one is enough.
    assert convert.plan(
        SOURCE, TARGET, rules=[Kind("encoder.layer", "Linear"), Choose("**", "kernel (in, out)")]
    ).entries


def test_a_kind_that_is_none_is_a_mistake():
    (text,) = problems(SOURCE, TARGET, Kind("encoder.layer", "Linaer")).mismatched
    assert "there is torch.nn.Linear" in text


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Convert("encoder.layer.weight", "encoder/layer/kernle"), "there is encoder/layer/kernel"),
        (Convert("encoder.layer.weight", "encoder/layer/kernel"), r"come to \[2, 3\]"),
        (
            Convert("encoder.layer.weight", "encoder/layer/kernel", (Step("split", {"axis": 0, "parts": 3}),)),
            "not 3 equal parts",
        ),
        (Convert("encoder.layer.weight", "encoder/layer/kernel", (Step("permute", (0, 2)),)), "does not go with"),
        (
            Convert("encoder.layer.weight", "encoder/layer/kernel", (Step("affine", {"scale": 0.0}),)),
            "does not go with",
        ),
        (Convert("encoder.layer.weight", "encoder/layer/kernel", (Step("frobnicate"),)), "no operation 'frobnicate'"),
        (Convert("encoder.layer.weight", "encoder/layer/kernel", (Step("split", {}),)), "axis"),
    ],
)
def test_a_rule_that_does_not_fit_says_why(rule, message):
    error = problems(SOURCE, TARGET, rule)
    assert any(np.char.find(text, "rule") >= 0 for text in error.mismatched)
    with pytest.raises(ptc.ConversionError, match=message):
        convert.plan(SOURCE, TARGET, rules=[rule])


@pytest.mark.parametrize("pattern", ["a..b", ".a", "a.{x**}y", '"a', "{1}", "a.{x_}"])
def test_a_pattern_that_cannot_be_read_is_refused(pattern):
    with pytest.raises(ptc.PathError) as caught:
        convert.plan(SOURCE, TARGET, rules=[Drop(pattern)])
    assert pattern in str(caught.value)


# TOML.

EVERY_RULE = """
[[rename]]
from = "bert"
to = "encoder"

[[kind]]
layers = "**.query"
kind = "Linear"

[[choose]]
layers = "up"
variant = "kernel (in, out)"

[[convert]]
from = ["a.{i}.weight", "b.{i}.weight"]
to = "x/{i}"
operations = [{ concat = 0 }, "transpose", { pad = { widths = [[0, 1], [0, 0]], value = 2 } }, { reshape = [2, -1] }]

[[scan]]
source = "h.{i}"
target = "h/block"
axis = 1

[[drop]]
leaves = "**.position_ids"
reason = "it is computed"

[[fill]]
leaves = "gate"
value = 1

[[waive]]
unused = "pooler.**"
"""


def test_every_rule_can_be_written_in_toml():
    assert parse_rules(EVERY_RULE) == (
        Rename("bert", "encoder"),
        Kind("**.query", "Linear"),
        Choose("up", "kernel (in, out)"),
        Convert(
            ("a.{i}.weight", "b.{i}.weight"),
            "x/{i}",
            (
                Step("concat", 0),
                Step("transpose"),
                Step("pad", {"widths": [[0, 1], [0, 0]], "value": 2}),
                Step("reshape", [2, -1]),
            ),
        ),
        Scan("h.{i}", "h/block", 1),
        Drop("**.position_ids", "it is computed"),
        Fill("gate", 1),
        Waive(unused="pooler.**"),
    )
    assert parse_rules("") == ()


def test_rules_in_toml_do_what_those_in_python_do():
    rules = parse_rules(
        '[[convert]]\nfrom = "a.weight"\nto = "x"\noperations = ["transpose", { affine = { scale = 2.0 } }]'
    )
    state = {"a.weight": normal(3, 2)}
    assert np.array_equal(made(state, {"x": np.zeros((2, 3))}, *rules)["x"], 2 * state["a.weight"].T)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = ", "no TOML"),
        ("[[renam]]\nfrom = 'a'", "no .*renam.*there is .*rename"),
        ("[rename]\nfrom = 'a'", "rename"),
        ("[[rename]]\nfrm = 'a'\nto = 'b'", "no field 'frm'"),
        ("[[rename]]\nfrom = 'a'", "target"),
        ("[[rename]]\nfrom = 1\nto = 'b'", "cannot be 1"),
        ("[[scan]]\nfrom = 'a'\nto = 'b'\naxis = true", "cannot be True"),
        ("[[convert]]\nfrom = 'a'\nto = 'b'\noperations = ['nothing']", "no operation 'nothing'"),
        ("[[convert]]\nfrom = 'a'\nto = 'b'\noperations = [{ a = 1, b = 2 }]", "table of one item"),
        ("rename = [1]", "no table"),
    ],
)
def test_rules_in_toml_that_cannot_be_used_are_refused_with_what_is_wrong(text, message):
    with pytest.raises(RuleError, match=message):
        parse_rules(text)


def test_all_that_is_wrong_with_rules_in_toml_is_said_at_once():
    with pytest.raises(RuleError) as caught:
        parse_rules("[[rename]]\nfrm = 'a'\n[[rename]]\nfrom = 1\n[[unknown]]\n")
    assert len(str(caught.value).splitlines()) == 4
    assert "number 2" in str(caught.value)


TOKENS = st.sampled_from(
    ["[[", "]]", "convert", "rename", "scan", "=", "\n", "'a'", "{", "}", "[", "]", "1", "-1", "from", "to", "operations", "axis",
     ",", "pad", "split", "reshape", "true", "1e400", "99999999999999999999", "widths", "kind", "layers", "flattened", "shape"]
)  # fmt: skip


@given(st.lists(TOKENS, max_size=14).map(" ".join) | st.text(max_size=20))
def test_any_text_gives_rules_or_an_error_of_ours(text):
    try:
        rules = parse_rules(text)
    except RuleError as error:
        assert str(error)
    else:
        assert isinstance(rules, tuple)


STEP_NAMES = st.sampled_from(
    ["permute", "transpose", "reshape", "flip", "split", "concat", "stack", "unstack", "pad", "crop", "affine", "sum-pair", "tie", "first", "repeat"]
)  # fmt: skip
ARGUMENTS = st.recursive(
    st.none() | st.integers(-3, 3) | st.floats() | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["axis", "parts", "sizes", "widths", "value", "scale", "offset"]), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@given(st.lists(st.builds(Step, STEP_NAMES, ARGUMENTS), min_size=1, max_size=2))
def test_any_steps_are_applied_or_refused_in_words(steps):
    rule = Convert("encoder.layer.weight", "encoder/layer/kernel", tuple(steps))
    try:
        plan = convert.plan(SOURCE, TARGET, rules=[rule])
        tree, residuals = plan.apply(SOURCE)
        back = plan.invert().apply(tree, residuals=residuals).tree
    except ptc.PytreeckptError as error:
        assert str(error)
    else:
        assert back["encoder.layer.weight"].tobytes() == SOURCE["encoder.layer.weight"].tobytes()


def test_presets_are_rules():
    assert set(TRANSFORMERS_FLAX) == {"gpt2", "resnet-basic"}
    assert all(isinstance(rule, convert.Rule) for rules in TRANSFORMERS_FLAX.values() for rule in rules)
