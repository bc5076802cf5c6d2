"""The tables of layers by themselves: what all entries have in common, and what each says in its notes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pytreeckpt.convert.fitting import Fit, different
from pytreeckpt.convert.layers import TABLES, flattened_linear
from pytreeckpt.convert.layers.variants import Move, Side, Variant
from pytreeckpt.convert.operations import Flip, Permute, Reshape, SumPair, inverse, of_moment
from pytreeckpt.convert.running import run
from pytreeckpt.convert.shapes import result_shapes
from tests.convert.layers_side_by_side import fitting, torch_side

LINEN, NNX, EQUINOX = Side({}, config={"scheme": "linen"}), Side({}, config={"scheme": "nnx"}), Side({})
OTHERS = [("flax", LINEN), ("flax", NNX), ("equinox", EQUINOX)]
REFUSED = {
    *("Bilinear", "BCELoss", "BCEWithLogitsLoss", "CrossEntropyLoss", "MultiLabelMarginLoss"),
    *("MultiLabelSoftMarginLoss", "MultiMarginLoss", "NLLLoss", "NLLLoss2d"),
}

sizes = st.integers(1, 4)


@st.composite
def linear(draw):
    kind = draw(
        st.sampled_from(
            [
                "torch.nn.Linear",
                "torch.nn.modules.linear.NonDynamicallyQuantizableLinear",
                "transformers.pytorch_utils.Conv1D",
            ]
        )
    )
    weight = (draw(sizes), draw(sizes))
    outs = weight[1] if kind.endswith("Conv1D") else weight[0]
    return Side({"weight": weight, **draw(st.sampled_from([{}, {"bias": (outs,)}]))}, kind)


@st.composite
def embedding(draw):
    kind = draw(st.sampled_from(["torch.nn.Embedding", "torch.nn.EmbeddingBag"]))
    return Side({"weight": (draw(sizes), draw(sizes))}, kind, {"padding_idx": 0} if draw(st.booleans()) else {})


@st.composite
def convolution(draw):
    rank, groups, transposed = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.booleans())
    ins, outs, kernel = (
        groups * draw(sizes),
        groups * draw(sizes),
        tuple(draw(st.lists(sizes, min_size=rank, max_size=rank))),
    )
    weight = (ins, outs // groups, *kernel) if transposed else (outs, ins // groups, *kernel)
    config = {
        "kernel_size": kernel,
        **{name: (draw(sizes),) * rank for name in ("stride", "padding", "dilation")},
        "output_padding": (0,) * rank,
        "groups": groups,
        "padding_mode": "zeros",
    }
    bias = draw(st.sampled_from([{}, {"bias": (outs,)}]))
    return Side({"weight": weight, **bias}, f"torch.nn.Conv{'Transpose' if transposed else ''}{rank}d", config)


@st.composite
def normalization(draw):
    kind = draw(
        st.sampled_from(["LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm2d", "BatchNorm1d", "SyncBatchNorm"])
    )
    shape = tuple(draw(st.lists(sizes, min_size=1, max_size=2 if kind in {"LayerNorm", "RMSNorm"} else 1)))
    shapes = {"weight": shape} if kind == "RMSNorm" else {"weight": shape, "bias": shape}
    if "Batch" in kind:
        shapes |= {"running_mean": shape, "running_var": shape, "num_batches_tracked": ()}
    return Side(shapes, f"torch.nn.{kind}", {"eps": 1e-5, "momentum": 0.1})


@st.composite
def attention(draw):
    heads, depth = draw(sizes), draw(sizes)
    features = heads * depth
    config = {"num_heads": heads, "batch_first": draw(st.booleans())}
    keys = draw(sizes)
    own = {"in_proj_weight": (3 * features, features)}
    apart = {
        "q_proj_weight": (features, features),
        "k_proj_weight": (features, keys),
        "v_proj_weight": (features, keys),
    }
    bias = {"in_proj_bias": (3 * features,), "out_proj/bias": (features,)} if draw(st.booleans()) else {}
    weights = draw(st.sampled_from([own, apart]))
    return Side({**weights, "out_proj/weight": (features, features), **bias}, "torch.nn.MultiheadAttention", config)


@st.composite
def recurrent(draw):
    name, gates = draw(st.sampled_from([("LSTM", 4), ("GRU", 3), ("RNN", 1)]))
    hidden, ins, bias = draw(sizes), draw(sizes), draw(st.booleans())
    layers, both, is_cell = draw(st.integers(1, 3)), draw(st.booleans()), draw(st.booleans())
    ends = [""] if is_cell else [f"_l{i}{end}" for i in range(layers) for end in (("", "_reverse") if both else ("",))]
    shapes = {}
    for end in ends:
        size = ins if end in {"", "_l0", "_l0_reverse"} else hidden * (1 + both)
        shapes |= {f"weight_ih{end}": (gates * hidden, size), f"weight_hh{end}": (gates * hidden, hidden)}
        if bias:
            shapes |= {f"bias_ih{end}": (gates * hidden,), f"bias_hh{end}": (gates * hidden,)}
    return Side(shapes, f"torch.nn.{name}{'Cell' if is_cell else ''}")


@st.composite
def slope(draw):
    return Side({"weight": (draw(sizes),)}, "torch.nn.PReLU")


@st.composite
def parametrized(draw):
    inner = draw(st.one_of(linear(), convolution()))
    weight = inner.shapes["weight"]
    rest = {name: shape for name, shape in inner.shapes.items() if name != "weight"}
    names = draw(
        st.sampled_from(
            [("weight_g", "weight_v"), ("parametrizations/weight/original0", "parametrizations/weight/original1")]
        )
    )
    norm = draw(st.sampled_from([(), (weight[0], *(1,) * (len(weight) - 1))]))
    return Side({names[0]: norm, names[1]: weight, **rest}, inner.kind, inner.config)


LAYERS = st.one_of(
    linear(), embedding(), convolution(), normalization(), attention(), recurrent(), slope(), parametrized()
)


def numbered(shapes, start=1):
    """Arrays of integers, in floats that hold them and their sums exactly."""
    arrays = {}
    for name, shape in shapes.items():
        size = math.prod(shape)
        arrays[name] = np.arange(start, start + size, dtype=np.float64).reshape(shape)
        start += size
    return arrays


def variants_of(table, side, other):
    """The variants, or none for what is refused with a reason."""
    try:
        return TABLES[table][side.kind](side, other)
    except ValueError as error:
        assert len(str(error)) > 20
        return []


@given(LAYERS, st.sampled_from(OTHERS))
def test_every_leaf_goes_to_one_place_or_is_dropped_for_a_reason(side, where):
    table, other = where
    for variant in variants_of(table, side, other):
        sources = [name for move in variant.moves for name in move.sources]
        assert sorted([*sources, *variant.drops]) == sorted(side.shapes)
        targets = [name for move in variant.moves for name in move.targets]
        assert len({*targets, *variant.fills}) == len(targets) + len(variant.fills)
        assert all(variant.drops.values())
        for move in variant.moves:
            assert len(result_shapes(move.operations, [side.shapes[name] for name in move.sources])) == len(
                move.targets
            )


@given(LAYERS, st.sampled_from(OTHERS))
def test_no_value_is_lost_but_what_is_summed(side, where):
    table, other = where
    arrays = numbered(side.shapes)
    for variant in variants_of(table, side, other):
        for move in variant.moves:
            before = [arrays[name] for name in move.sources]
            after = run(move.operations, before)
            back = run(inverse(move.operations), after)
            if len(move.sources) == 1:
                assert all(np.array_equal(x, y) for x, y in zip(before, back, strict=True))
            else:
                # The sum is given to one of two biases: nobody can tell the difference.
                again = run(move.operations, back)
                assert all(np.array_equal(x, y) for x, y in zip(after, again, strict=True))
                assert sum(each.sum() for each in before) == sum(each.sum() for each in back)


@given(LAYERS, st.sampled_from(OTHERS))
def test_moments_go_where_the_values_go(side, where):
    table, other = where
    arrays = numbered(side.shapes)
    for variant in variants_of(table, side, other):
        for move in variant.moves:
            values = run(move.operations, [arrays[name] for name in move.sources])
            # Gradients of two biases that are summed are equal.
            like = [arrays[name] for name in move.sources]
            operations = tuple(of_moment(each, 1) for each in move.operations)
            assert [each.shape for each in run(operations, like)] == [each.shape for each in values]
            if len(move.sources) == 1:
                assert all(np.array_equal(x, y) for x, y in zip(run(operations, like), values, strict=True))


@given(LAYERS, st.sampled_from(OTHERS))
def test_a_target_as_it_was_named_is_found_again(side, where):
    table, other = where
    for variant in variants_of(table, side, other)[:1]:
        shapes = {
            name: shape
            for move in variant.moves
            for name, shape in zip(
                move.targets, result_shapes(move.operations, [side.shapes[name] for name in move.sources]), strict=True
            )
        }
        found = TABLES[table][side.kind](side, Side(shapes, config=other.config))
        assert variant.moves in [each.moves for each in found]


@given(st.sampled_from(sorted(TABLES["flax"])), st.sampled_from(["flax", "equinox"]), st.data())
def test_any_shapes_and_settings_give_variants_or_a_reason(kind, table, data):
    names = st.sampled_from(
        [
            *("weight", "bias", "in_proj_weight", "in_proj_bias", "out_proj/weight", "k_proj_weight", "v_proj_weight"),
            *("q_proj_weight", "bias_k", "running_mean", "running_var", "num_batches_tracked", "weight_g", "weight_v"),
            *(
                "weight_orig",
                "weight_u",
                "weight_ih_l0",
                "weight_hh_l0",
                "weight_ih_l0_reverse",
                "bias_ih_l0",
                "weight_ih",
            ),
            *(
                "weight_hh",
                "bias_hh",
                "weight_hr_l0",
                "parametrizations/weight/original",
                "parametrizations/weight/0/_u",
            ),
            *(
                "kernel",
                "scale",
                "layer_instance/kernel",
                "ii/kernel",
                "0/ii/kernel",
                "if/kernel",
                "a/if/kernel",
                "x1/if/kernel",
            ),
            *(
                "dense_i/kernel",
                "ir/kernel",
                "i/kernel",
                "query/kernel",
                "negative_slope",
                "mean",
                "var",
                "layer/weight",
                "g",
            ),
            *("weight_ih", "x/weight_ih", "batch_state_index/init/0", "uv_index/init/0", "layer_instance/kernel/u"),
        ]
    )
    shapes = st.dictionaries(names, st.lists(st.integers(0, 4), max_size=4).map(tuple), max_size=6)
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
    nested = st.recursive(
        plain, lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple), max_leaves=6
    )
    settings = st.sampled_from(
        [
            *(
                "groups",
                "kernel_size",
                "stride",
                "padding",
                "dilation",
                "output_padding",
                "padding_mode",
                "num_heads",
                "eps",
            ),
            *(
                "momentum",
                "num_groups",
                "num_features",
                "padding_idx",
                "max_norm",
                "mode",
                "transpose_kernel",
                "epsilon",
            ),
            *("feature_group_count", "strides", "kernel_dilation", "batch_first", "dropout", "nonlinearity", "scheme"),
        ]
    )
    configs = st.dictionaries(settings, nested | st.just(np.ones(2)) | st.just({"a": 1}), max_size=8)
    kinds = st.sampled_from([None, "flax.nnx.Conv", "flax.linen.Dense", "equinox.nn.Linear", "flax.nnx.Module", "?"])
    torch = Side(data.draw(shapes), kind, data.draw(configs))
    other = Side(data.draw(shapes), data.draw(kinds), data.draw(configs))
    try:
        variants = TABLES[table][kind](torch, other)
    except ValueError as error:
        assert str(error)
        return
    assert all(note for variant in variants for note in variant.notes)


def test_both_tables_have_the_layers_of_torch_that_have_parameters():
    assert TABLES["flax"].keys() == TABLES["equinox"].keys()
    without = {
        # Made of others, or of whatever is in them.
        *(
            "Transformer",
            "TransformerDecoder",
            "TransformerDecoderLayer",
            "TransformerEncoder",
            "TransformerEncoderLayer",
        ),
        *(
            "AdaptiveLogSoftmaxWithLoss",
            "Module",
            "ModuleDict",
            "ModuleList",
            "ParameterDict",
            "ParameterList",
            "Sequential",
        ),
        "Container",
        # Not yet of a shape; then they are others.
        *(name for name in dir(torch.nn) if name.startswith("Lazy")),
        # They keep samples only if these are given to them.
        *("FractionalMaxPool2d", "FractionalMaxPool3d"),
        # The bases of cells and layers.
        *("RNNBase", "RNNCellBase"),
    }
    known = {name.removeprefix("torch.nn.") for name in TABLES["flax"]}
    with_parameters = {
        name
        for name, cls in vars(torch.nn).items()
        if isinstance(cls, type)
        and issubclass(cls, torch.nn.Module)
        and any(
            word in cls.__init__.__code__.co_names for word in ("Parameter", "register_buffer", "register_parameter")
        )
    }
    assert len(with_parameters) > 10
    assert with_parameters - without <= known, with_parameters - without - known


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_layers_without_a_counterpart_are_refused(table, name):
    with pytest.raises(ValueError, match="of your own|drop them"):
        TABLES[table][f"torch.nn.{name}"](Side({"weight": (2, 2, 2)}), Side({}))


# What is not decided, and what decides it.

SQUARE = Side({"weight": (4, 4, 3, 3), "bias": (4,)}, "torch.nn.ConvTranspose2d")
THERE = {"kernel": (3, 3, 4, 4), "bias": (4,)}


def test_a_transposed_convolution_may_be_either_unless_it_is_known():
    layout = TABLES["flax"]["torch.nn.ConvTranspose2d"]
    either = layout(SQUARE, Side(THERE))
    assert [each.name for each in either] == [
        "kernel (*axes, in, out), axes reversed",
        "kernel (*axes, out, in), transpose_kernel=True",
    ]
    for known in (False, True):
        side = Side(THERE, "flax.nnx.ConvTranspose", {"transpose_kernel": known})
        assert [each.moves for each in layout(SQUARE, side)] == [either[known].moves]


def test_a_conv1d_of_transformers_may_be_either_unless_it_is_known():
    torch = Side({"weight": (4, 4), "bias": (4,)}, "transformers.pytorch_utils.Conv1D")
    layout = TABLES["flax"][torch.kind]
    there = {"kernel": (4, 4), "bias": (4,)}
    assert len(layout(torch, Side(there))) == 2
    assert len(layout(torch, Side(there, "flax.linen.Dense"))) == 1
    assert len(layout(torch, Side(there, "flax.linen.Module"))) == 2


@pytest.mark.parametrize(
    ("kind", "shapes", "other"),
    [
        ("torch.nn.Linear", {"weight": (4, 4)}, "flax.nnx.Conv"),
        ("torch.nn.Linear", {"weight": (4, 4)}, "flax.nnx.WeightNorm"),
        ("torch.nn.Conv2d", {"weight": (4, 4, 3, 3)}, "flax.linen.ConvTranspose"),
        ("torch.nn.LayerNorm", {"weight": (4,)}, "flax.linen.GroupNorm"),
        ("torch.nn.LSTM", {"weight_ih_l0": (4, 1), "weight_hh_l0": (4, 1)}, "flax.nnx.GRUCell"),
    ],
)
def test_a_layer_of_another_sort_is_no_counterpart(kind, shapes, other):
    with pytest.raises(ValueError, match=f"it is a {other} there"):
        TABLES["flax"][kind](Side(shapes, kind), Side({}, other))
    with pytest.raises(ValueError, match="equinox.nn.MLP"):
        TABLES["equinox"][kind](Side(shapes, kind), Side({}, "equinox.nn.MLP"))


def test_a_class_of_ones_own_may_be_anything():
    linear_ = Side({"weight": (3, 4)}, "torch.nn.Linear")
    for kind in ("flax.nnx.Module", "flax.linen.Module", "mine.Layer", None):
        (variant,) = TABLES["flax"]["torch.nn.Linear"](linear_, Side({"kernel": (4, 3)}, kind))
        assert variant.moves[0].targets == ("kernel",)


def cells(*prefixes, hidden=2):
    """Cells of an LSTM of linen below these names."""
    names = [f"{gate}/kernel" for gate in ("ii", "if", "ig", "io", "hi", "hf", "hg", "ho")]
    return Side({f"{prefix}{name}": (hidden, hidden) for prefix in prefixes for name in names})


def lstm(layers, *, both=False):
    ends = [f"_l{i}{end}" for i in range(layers) for end in (("", "_reverse") if both else ("",))]
    return Side(
        {
            f"weight_{which}{end}": (8, 4 if which == "ih" and both and "_l0" not in end else 2)
            for end in ends
            for which in ("ih", "hh")
        }
    )


def targets(variant):
    return [move.targets[0].removesuffix("ii/kernel") for move in variant.moves if "ii/kernel" in move.targets[0]]


@pytest.mark.parametrize(
    ("torch", "names"),
    [
        (lstm(2), ["rnn_0/cell/", "rnn_1/cell/"]),
        (lstm(3), ["stack/2/", "stack/9/", "stack/10/"]),
        (lstm(1, both=True), ["forward_rnn/cell/", "backward_rnn/cell/"]),
        (
            lstm(2, both=True),
            ["a_0/forward_rnn/cell/", "a_0/backward_rnn/cell/", "a_1/forward_rnn/cell/", "a_1/backward_rnn/cell/"],
        ),
        (lstm(2, both=True), ["fwd_1/", "bwd_1/", "fwd_2/", "bwd_2/"]),
    ],
)
def test_names_say_which_cell_is_which_layer(torch, names):
    (variant,) = TABLES["flax"]["torch.nn.LSTM"](torch, cells(*reversed(names)))
    assert targets(variant) == names


@pytest.mark.parametrize(
    ("torch", "names", "count"),
    [
        (lstm(2), ["first/", "second/"], 2),
        (lstm(2), ["a0/b1/", "a1/b0/"], 2),
        (lstm(1, both=True), ["LSTMCell_0/", "LSTMCell_1/"], 2),
        (lstm(3), ["a/", "b/", "c/"], 6),
    ],
)
def test_where_names_do_not_say_there_is_a_variant_for_each_order(torch, names, count):
    variants = TABLES["flax"]["torch.nn.LSTM"](torch, cells(*names))
    assert len({tuple(targets(each)) for each in variants}) == len(variants) == count
    assert len({each.name for each in variants}) == count


def test_cells_that_are_too_many_or_too_few_or_too_much_alike_are_refused():
    layout = TABLES["flax"]["torch.nn.LSTM"]
    with pytest.raises(ValueError, match="it has 1 cells there"):
        layout(lstm(2), cells("a/"))
    with pytest.raises(ValueError, match="do not say which is which: give rules"):
        layout(lstm(5), cells("a/", "b/", "c/", "d/", "e/"))


def test_layers_that_are_not_all_there_are_no_recurrent_layer():
    shapes = dict(lstm(2).shapes)
    del shapes["weight_ih_l0"]
    assert TABLES["flax"]["torch.nn.LSTM"](Side(shapes), LINEN) == ()
    assert TABLES["flax"]["torch.nn.LSTM"](Side({"weight_ih_l0": (8, 2), "weight_hh_l0": (7, 2)}), LINEN) == ()


@pytest.mark.parametrize(
    ("kind", "shapes", "config", "other", "match"),
    [
        ("LSTM", {**lstm(1).shapes, "weight_hr_l0": (1, 2)}, {}, LINEN, "projected"),
        (
            "GRU",
            {"weight_ih_l0": (6, 2), "weight_hh_l0": (6, 2), "bias_ih_l0": (6,), "bias_hh_l0": (6,)},
            {},
            NNX,
            "b_hn",
        ),
        ("ConvTranspose1d", {"weight": (4, 2, 3)}, {"groups": 2}, LINEN, "no groups"),
        ("ConvTranspose1d", {"weight": (4, 2, 3), "bias": (4,)}, {}, LINEN, "no groups"),
        ("ConvTranspose1d", {"weight": (4, 2, 3)}, {}, EQUINOX, "number of groups is not known"),
        ("ConvTranspose1d", {"weight": (4, 2, 3)}, {"groups": 3}, EQUINOX, "do not divide"),
        ("Conv1d", {"weight": (4, 2, 3)}, {"groups": 2}, Side({}, config={"feature_group_count": 1}), "groups=2"),
        ("InstanceNorm1d", {"weight": (4,), "running_mean": (4,)}, {}, LINEN, "running statistics"),
        ("BatchNorm1d", {"weight": (4,), "running_mean": (4,)}, {}, Side({"weight": (4,)}), "equinox.nn.State"),
        ("MultiheadAttention", {"out_proj/weight": (4, 4), "bias_k": (1, 1, 4)}, {}, LINEN, "add_bias_kv"),
        ("MultiheadAttention", {"out_proj/weight": (4, 4)}, {"add_zero_attn": True}, LINEN, "add_zero_attn"),
        ("MultiheadAttention", {"out_proj/weight": (4, 4)}, {}, LINEN, "heads is not known"),
        ("MultiheadAttention", {"out_proj/weight": (4, 4)}, {"num_heads": 3}, LINEN, "do not divide"),
        (
            "MultiheadAttention",
            {"out_proj/weight": (4, 4)},
            {"num_heads": 2},
            Side({"query/kernel": (4, 4, 1)}),
            "4 heads there",
        ),
        (
            "MultiheadAttention",
            {"out_proj/weight": (4, 4)},
            {"num_heads": 2},
            Side({}, config={"normalize_qk": True}),
            "normalize_qk",
        ),
        (
            "MultiheadAttention",
            {"q_proj_weight": (4, 4), "k_proj_weight": (4, 3), "v_proj_weight": (4, 2), "out_proj/weight": (4, 4)},
            {"num_heads": 2},
            NNX,
            "one size for both",
        ),
        ("PReLU", {"weight": (3,)}, {}, LINEN, "one slope"),
        ("Linear", {"weight_g": (3, 1), "weight_v": (3, 4)}, {}, Side({"kernel": (4, 3)}), "no wrapper"),
        ("Linear", {"weight_g": (3, 1), "weight_v": (3, 4)}, {}, Side({}, "flax.linen.Dense"), "without WeightNorm"),
        ("Linear", {"weight_g": (3, 1), "weight_v": (3, 4)}, {}, LINEN, "no names for"),
        (
            "Linear",
            {"weight_g": (3, 1), "weight_v": (3, 4)},
            {},
            Side({"layer_instance/kernel": (4, 3)}),
            "no WeightNorm",
        ),
        (
            "Linear",
            {"weight_g": (1, 4), "weight_v": (3, 4)},
            {},
            Side({"layer/weight": (3, 4)}),
            "no equinox.nn.WeightNorm",
        ),
        ("Linear", {"parametrizations/weight/original": (4, 4)}, {}, LINEN, "remove_parametrizations"),
        ("LSTM", {"parametrizations/weight_hh_l0/original": (8, 2)}, {}, LINEN, "remove_parametrizations"),
        (
            "Linear",
            {"weight_orig": (4, 3), "weight_u": (3,), "weight_v": (4,)},
            {},
            Side({"layer_instance/kernel": (3, 4), "layer_instance/kernel/u": (1, 3)}),
            "along axis 1",
        ),
        (
            "Linear",
            {"weight_orig": (4, 3), "weight_u": (5,), "weight_v": (4,)},
            {},
            Side({"layer_instance/kernel": (3, 4), "layer_instance/kernel/u": (1, 3)}),
            "cannot be told",
        ),
        (
            "Linear",
            {"weight_orig": (4, 3), "weight_u": (4,), "weight_v": (3,)},
            {},
            Side({"layer/weight": (4, 3)}),
            "u and v there",
        ),
    ],
)
def test_what_cannot_be_the_same_is_refused_with_the_reason(kind, shapes, config, other, match):
    is_equinox = "quinox" in match or match in {"number of groups is not known", "u and v there"} or other is EQUINOX
    table = TABLES["equinox" if is_equinox else "flax"]
    with pytest.raises(ValueError, match=match):
        table[f"torch.nn.{kind}"](Side(shapes, f"torch.nn.{kind}", config), other)


# Notes.


def notes(table, kind, config, other, shapes=None):
    shapes = shapes or {"weight": (4,), "bias": (4,)}
    (variant, *_) = TABLES[table][f"torch.nn.{kind}"](Side(shapes, f"torch.nn.{kind}", config), other)
    return list(variant.notes)


def test_epsilon_is_noted_unless_it_is_the_same():
    config = {"eps": 1e-5}
    assert notes("flax", "LayerNorm", config, LINEN) == ["epsilon: give flax.linen.LayerNorm(epsilon=1e-05)"]
    assert notes("flax", "LayerNorm", config, NNX) == ["epsilon: give flax.nnx.LayerNorm(epsilon=1e-05)"]
    there = Side({}, "flax.nnx.LayerNorm", {"epsilon": 1e-6})
    assert notes("flax", "LayerNorm", config, there) == [
        "epsilon: it is 1e-06 there; give flax.nnx.LayerNorm(epsilon=1e-05)"
    ]
    assert notes("flax", "LayerNorm", config, Side({}, "flax.nnx.LayerNorm", {"epsilon": 1e-5})) == []
    assert notes("flax", "LayerNorm", {}, LINEN) == []
    assert notes("equinox", "LayerNorm", config, EQUINOX) == []
    assert notes("equinox", "LayerNorm", {"eps": 1e-3}, EQUINOX) == ["eps: give equinox.nn.LayerNorm(eps=0.001)"]
    (note,) = notes("flax", "RMSNorm", {"eps": None}, LINEN)
    assert "eps of the input's dtype" in note


CONV = {"kernel_size": (3, 3), "stride": (1, 1), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
WEIGHT = {"weight": (4, 4, 3, 3)}


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        # Flax pads to the same size, which is what a padding of 1 does here.
        ({"padding": (1, 1)}, {}, []),
        ({"padding": "same"}, {}, []),
        ({"padding": (0, 0)}, {}, ["padding: give flax.linen.Conv(padding=[(0, 0), (0, 0)])"]),
        ({"padding": "valid"}, {"padding": "VALID"}, []),
        ({"padding": (0, 0)}, {"padding": ((0, 0), (0, 0))}, []),
        ({"padding": (2, 2)}, {"padding": 2}, []),
        ({"padding": (1, 2)}, {"padding": [1, 2]}, []),
        (
            {"padding": (1, 1), "stride": (2, 2)},
            {},
            [
                "padding: give flax.linen.Conv(padding=[(1, 1), (1, 1)])",
                "strides: give flax.linen.Conv(strides=(2, 2))",
            ],
        ),
        ({"padding": (1, 1), "stride": (2, 2)}, {"padding": [(1, 1), (1, 1)], "strides": 2}, []),
        (
            {"padding": (1, 1), "groups": 2},
            {"strides": 1, "kernel_dilation": 1},
            ["feature_group_count: give flax.linen.Conv(feature_group_count=2)"],
        ),
        (
            {"padding": (1, 1)},
            {"kernel_dilation": 2},
            ["kernel_dilation: it is 2 there; give flax.linen.Conv(kernel_dilation=(1, 1))"],
        ),
    ],
)
def test_options_of_convolutions_are_noted_where_they_differ(ours, theirs, expected):
    other = Side({}, "flax.linen.Conv", theirs)
    assert notes("flax", "Conv2d", {**CONV, **ours}, other, WEIGHT) == expected


def test_padding_that_flax_cannot_do_is_noted():
    config = {**CONV, "padding": (1, 1), "padding_mode": "reflect"}
    found = notes("flax", "Conv2d", config, LINEN, WEIGHT)
    assert (
        found[0] == "padding_mode: pad the axes of the input by [(1, 1), (1, 1)] with jnp.pad(…, mode='reflect') first"
    )
    assert found[1] == "padding: give flax.linen.Conv(padding=[(0, 0), (0, 0)])"
    assert notes("equinox", "Conv2d", config, EQUINOX, WEIGHT) == [
        "padding: give equinox.nn.Conv2d(padding=[(1, 1), (1, 1)])",
        "padding_mode: give equinox.nn.Conv2d(padding_mode='REFLECT')",
    ]


def test_options_of_transposed_convolutions_are_noted():
    config = {**CONV, "kernel_size": (3, 2), "padding": (1, 0), "stride": (2, 1), "output_padding": (1, 0)}
    shapes = {"weight": (4, 5, 3, 2)}
    assert notes("flax", "ConvTranspose2d", config, LINEN, shapes) == [
        "padding: give flax.linen.ConvTranspose(padding=[(1, 2), (1, 1)])",
        "strides: give flax.linen.ConvTranspose(strides=(2, 1))",
    ]
    there = {"padding": ((1, 2), (1, 1)), "strides": (2, 1), "kernel_dilation": 1, "transpose_kernel": False}
    assert notes("flax", "ConvTranspose2d", config, Side({}, "flax.nnx.ConvTranspose", there), shapes) == []
    assert notes("equinox", "ConvTranspose2d", config, EQUINOX, shapes) == [
        "padding: give equinox.nn.ConvTranspose2d(padding=[(1, 1), (0, 0)])",
        "stride: give equinox.nn.ConvTranspose2d(stride=(2, 1))",
        "output_padding: give equinox.nn.ConvTranspose2d(output_padding=(1, 0))",
    ]


STATISTICS = {"weight": (4,), "bias": (4,), "running_mean": (4,), "running_var": (4,), "num_batches_tracked": ()}


def test_batch_norm_says_what_differs_in_training():
    found = notes("flax", "BatchNorm2d", {"eps": 1e-5, "momentum": 0.1}, NNX, STATISTICS)
    assert found[0] == "momentum: give flax.nnx.BatchNorm(momentum=0.9)"
    assert "n / (n − 1)" in found[1]
    found = notes("flax", "BatchNorm2d", {"eps": 1e-5, "momentum": None}, NNX, STATISTICS)
    assert "averages over all batches" in found[0]
    found = notes("equinox", "BatchNorm2d", {"eps": 1e-5, "momentum": 0.01}, EQUINOX, STATISTICS)
    assert found[0] == "mode: give equinox.nn.BatchNorm(mode='batch')"
    assert "axis_name" in notes("flax", "SyncBatchNorm", {}, LINEN, STATISTICS)[-1]


def test_the_counts_of_equinox_are_filled_so_that_its_averages_are_torchs():
    for state, count, value in (
        ("batch_state_index", "batch_counter/init", 2**30),
        ("ema_state_index", "ema_first_time_index/init", 0),
    ):
        there = {"weight": (4,), "bias": (4,), f"{state}/init/0": (4,), f"{state}/init/1": (4,), count: ()}
        (variant,) = TABLES["equinox"]["torch.nn.BatchNorm1d"](Side(STATISTICS), Side(there))
        assert variant.fills == {count: value}
        assert list(variant.drops) == ["num_batches_tracked"]


def test_wrappers_of_nnx_write_over_what_they_wrap():
    torch_ = {"weight_g": (4, 1), "weight_v": (4, 3)}
    kernel = {"layer_instance/kernel": (3, 4)}
    in_linen = notes("flax", "Linear", {}, Side({**kernel, "layer_instance/kernel/scale": (4,)}), torch_)
    in_nnx = notes("flax", "Linear", {}, Side({**kernel, "scales/kernel": (4,)}), torch_)
    assert next(each for each in in_nnx if each not in in_linen).startswith("overwritten: nnx.WeightNorm")
    assert any("epsilon=0.0" in each for each in in_linen)
    # torch's norms along what goes in are along another axis of the kernel than Flax takes them unless told otherwise.
    along = notes(
        "flax", "Linear", {}, Side({**kernel, "scales/kernel": (3,)}), {"weight_g": (1, 3), "weight_v": (4, 3)}
    )
    assert "feature_axes: give WeightNorm(feature_axes=0)" in along
    torch_ = {"weight_orig": (4, 3), "weight_u": (4,), "weight_v": (3,)}
    there = {**kernel, "batch_stats/kernel/u": (1, 4), "batch_stats/kernel/sigma": ()}
    (variant,) = TABLES["flax"]["torch.nn.Linear"](Side(torch_), Side(there))
    assert variant.fills == {"batch_stats/kernel/sigma": 1}
    assert any("nnx.SpectralNorm writes" in each for each in variant.notes)


@given(sizes, sizes, st.lists(sizes, min_size=1, max_size=3).map(tuple))
def test_a_flattened_image_changes_its_order(features, channels, spatial):
    weight = np.arange(features * channels * math.prod(spatial)).reshape(features, -1)
    (kernel,) = run(flattened_linear(features, channels, spatial), [weight])
    image = np.random.default_rng(0).integers(0, 9, (channels, *spatial))
    assert np.array_equal(np.moveaxis(image, 0, -1).reshape(-1) @ kernel, weight @ image.reshape(-1))


def test_a_flattened_image_has_sizes():
    with pytest.raises(ValueError, match="at least 1"):
        flattened_linear(4, 0, (2, 2))


@pytest.mark.parametrize("kind", sorted(TABLES["flax"].keys() - {f"torch.nn.{name}" for name in REFUSED}))
def test_a_layer_without_its_leaves_is_none(kind):
    for table, other in OTHERS:
        if (table, kind.removesuffix("Cell")) != ("equinox", "torch.nn.RNN"):
            assert list(TABLES[table][kind](Side({}, kind), other)) == []


def test_a_linear_layer_is_a_matrix():
    for table in TABLES:
        for kind in ("torch.nn.Linear", "transformers.pytorch_utils.Conv1D"):
            assert list(TABLES[table][kind](Side({"weight": (2, 3, 4)}, kind), Side({}))) == []
        assert list(TABLES[table]["torch.nn.Conv2d"](Side({"weight": (2, 3)}), Side({}))) == []
        assert list(TABLES[table]["torch.nn.ConvTranspose2d"](Side({"weight": (2, 3)}), Side({}))) == []


def test_what_embeddings_do_besides_is_noted():
    config = {"padding_idx": 1, "max_norm": 2.0, "scale_grad_by_freq": True, "mode": "sum", "include_last_offset": True}
    for table, other in OTHERS:
        found = notes(table, "EmbeddingBag", config, other, {"weight": (5, 3)})
        for text, note in zip(
            ("row 1", "at most 2", "by_freq", "the sum over each bag", "last_offset"), found, strict=True
        ):
            assert text in note
        assert notes(table, "Embedding", {"padding_idx": None, "max_norm": None}, other, {"weight": (5, 3)}) == []


@pytest.mark.parametrize(
    "config",
    [
        {},
        {**CONV, "padding": 1.5},
        {**CONV, "padding": (True, 1)},
        {**CONV, "padding": (1, "1")},
        {**CONV, "padding": (1, 1), "stride": (1,)},
        {**CONV, "padding": "SOME"},
        {**CONV, "padding": (1, 1, 1)},
    ],
)
def test_options_that_nobody_knows_are_to_be_as_in_torch(config):
    assert notes("flax", "Conv2d", config, LINEN, WEIGHT) == [
        "stride, padding, dilation and groups: give them explicitly, as torch has them"
    ]
    assert notes("equinox", "Conv2d", config, EQUINOX, WEIGHT) == notes("flax", "Conv2d", config, LINEN, WEIGHT)
    assert "d·(k − 1) − p" in notes("flax", "ConvTranspose2d", config, LINEN, {"weight": (4, 5, 3, 3)})[1]


def test_what_runs_cells_over_a_sequence_is_noted():
    config = {"batch_first": False, "dropout": 0.1, "nonlinearity": "relu"}
    shapes = {"weight_ih_l0": (4, 3), "weight_hh_l0": (4, 4)}
    assert [note.partition(":")[0] for note in notes("flax", "RNN", config, LINEN, shapes)] == [
        *("batch_first", "dropout", "nonlinearity"),
    ]
    shapes = {"weight_ih_l0": (4, 3), "weight_hh_l0": (4, 1)}
    assert notes("flax", "LSTM", {}, LINEN, shapes) == ["carry: Flax has (c, h), torch (h, c)"]
    assert notes("equinox", "LSTM", {}, EQUINOX, shapes)[0].startswith("sequences: ")


def test_a_spectral_norm_along_another_axis_is_refused_in_equinox():
    shapes = {"weight_orig": (4, 3), "weight_u": (3,), "weight_v": (4,)}
    there = Side({"layer/weight": (4, 3), "uv_index/init/0": (3,), "uv_index/init/1": (4,)})
    with pytest.raises(ValueError, match="along axis 1"):
        TABLES["equinox"]["torch.nn.Linear"](Side(shapes), there)


def test_a_computed_weight_that_gets_more_axes_is_refused():
    shapes = {"weight_g": (4, 1), "weight_v": (4, 3)}
    there = {"layer_instance/kernel": (3, 2, 2), "layer_instance/kernel/scale": (4,)}
    with pytest.raises(ValueError, match="other axes there"):
        TABLES["flax"]["torch.nn.Linear"](Side(shapes), Side(there))


# What a layer was made without.

WITHOUT = {
    "a linear layer": (torch.nn.Linear(2, 3, bias=False), {"kernel": (2, 3), "bias": (3,)}, {"bias": 0}),
    "a convolution": (torch.nn.Conv1d(2, 3, 4, bias=False), {"kernel": (4, 2, 3), "bias": (3,)}, {"bias": 0}),
    "a normalisation": (
        torch.nn.LayerNorm(3, elementwise_affine=False),
        {"scale": (3,), "bias": (3,)},
        {"scale": 1, "bias": 0},
    ),
    "a normalisation with a weight": (torch.nn.LayerNorm(3, bias=False), {"scale": (3,), "bias": (3,)}, {"bias": 0}),
    "a batch norm": (
        torch.nn.BatchNorm1d(3, affine=False, track_running_stats=False),
        {"scale": (3,), "bias": (3,), "mean": (3,), "var": (3,)},
        {"scale": 1, "bias": 0, "mean": 0, "var": 1},
    ),
    "attention": (
        torch.nn.MultiheadAttention(4, 2, bias=False),
        {
            **{f"{part}/kernel": (4, 2, 2) for part in ("query", "key", "value")},
            **{f"{part}/bias": (2, 2) for part in ("query", "key", "value")},
            "out/kernel": (2, 2, 4),
            "out/bias": (4,),
        },
        {"query/bias": 0, "key/bias": 0, "value/bias": 0, "out/bias": 0},
    ),
    "a recurrent layer": (
        torch.nn.LSTM(2, 3, bias=False),
        {"cell/dense_i/kernel": (2, 12), "cell/dense_h/kernel": (3, 12), "cell/dense_h/bias": (12,)},
        {"cell/dense_h/bias": 0},
    ),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_only_what_a_layer_was_made_without_is_filled(name):
    module, shapes, fills = WITHOUT[name]
    side, _ = torch_side(module)
    layout = TABLES["flax"][side.kind]
    assert [each.fills for each in layout(side, Side(shapes))] == [fills]
    # Where nobody knows, what is not there may be lost.
    unknown = Side(side.shapes, side.kind, {key: value for key, value in side.config.items() if key == "num_heads"})
    assert not any(each.fills for each in layout(unknown, Side(shapes)))


def test_what_is_lost_of_a_layer_that_should_have_it_is_not_filled():
    for module in (torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.MultiheadAttention(4, 2)):
        side, _ = torch_side(module)
        lost = {name: shape for name, shape in side.shapes.items() if "bias" not in name and "running" not in name}
        shapes = dict.fromkeys(("bias", "scale", "mean", "var", "query/bias", "out/bias", "kernel"), (3,))
        variants = TABLES["flax"][side.kind](Side(lost, side.kind, side.config), Side(shapes))
        assert variants
        assert not any(each.fills for each in variants)


def test_counts_of_the_other_side_may_have_any_value_on_the_way_back():
    side, _ = torch_side(torch.nn.BatchNorm1d(3, affine=False))
    states = {f"batch_state_index/init/{place}": (3,) for place in (0, 1)}
    shapes = {**states, "batch_counter/init": (), "weight": (3,), "bias": (3,)}
    (variant,) = TABLES["equinox"][side.kind](side, Side(shapes))
    assert variant.fills == {"batch_counter/init": 2**30, "weight": 1, "bias": 0}
    assert variant.unread == {"batch_counter/init"}


# Normalisations over an image.


@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm"])
@pytest.mark.parametrize(
    ("shape", "there", "expected"),
    [
        ((3, 4, 5), (3, 4, 5), ["as it is"]),
        ((3, 4, 5), (4, 5, 3), ["channels last"]),
        ((3, 4, 5), (5, 4, 3), []),
        ((3, 4, 5), (12, 5), []),
        ((3, 4, 5), (60,), ["as it is", "channels last"]),
        ((3, 3, 3), (3, 3, 3), ["as it is", "channels last"]),
        ((4, 5), (5, 4), ["channels last"]),
        ((4, 5), (20,), ["as it is"]),
        ((4,), (1, 1, 4), ["as it is"]),
    ],
)
def test_a_normalisation_over_several_axes_is_never_scrambled(kind, shape, there, expected):
    leaves = {"weight": "scale", "bias": "bias"} if kind == "LayerNorm" else {"weight": "scale"}
    side = Side(dict.fromkeys(leaves, shape), f"torch.nn.{kind}")
    other = Side(dict.fromkeys(leaves.values(), there))
    fits = fitting(TABLES["flax"][side.kind](side, other), side, other)
    assert ["channels last" if "channels last" in each.name else "as it is" for each in fits] == expected
    array = np.arange(math.prod(shape), dtype=np.float64).reshape(shape)
    for fit, name in zip(fits, expected, strict=True):
        wanted = (np.moveaxis(array, 0, -1) if name == "channels last" else array).reshape(there)
        for move in fit.moves:
            assert np.array_equal(run(move.operations, [array])[0], wanted)


# Whether two layouts come to the same.


@st.composite
def ways(draw):
    """A shape, and operations on it that move its items by its axes."""
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=2, max_size=3)))
    operations, at = [], shape
    for _ in range(draw(st.integers(0, 4))):
        match draw(st.integers(0, 2)):
            case 0:
                operations.append(Permute(tuple(draw(st.permutations(range(len(at)))))))
            case 1:
                operations.append(Flip(tuple(draw(st.sets(st.integers(0, len(at) - 1))))))
            case _:
                operations.append(Reshape(at, draw(st.sampled_from([at[::-1], (math.prod(at),), (1, *at)]))))
        (at,) = result_shapes(operations[-1:], [at])
    return shape, tuple(operations)


@given(ways(), st.data())
def test_layouts_are_told_apart_by_what_they_do_and_not_by_how(way, data):
    shape, operations = way
    array = np.arange(math.prod(shape), dtype=np.float64).reshape(shape)
    result = run(operations, [array])[0]
    other = data.draw(ways().filter(lambda each: each[0] == shape) | st.just((shape, ())))[1]
    fits = [Fit(name, Variant(name, (Move(("w",), ("k",), each),))) for name, each in (("a", operations), ("b", other))]
    is_same = np.array_equal(result.ravel(), run(other, [array])[0].ravel())
    assert len(different(fits, {"w": shape})) == (1 if is_same else 2)


def test_layouts_of_other_leaves_or_sums_are_told_apart():
    def fit(*moves):
        return Fit("it", Variant("it", moves))

    shapes = {"a": (2, 2), "b": (2, 2)}
    plain = fit(Move(("a",), ("x",)), Move(("b",), ("y",)))
    crossed = fit(Move(("b",), ("x",)), Move(("a",), ("y",)))
    assert different([plain, crossed, plain], shapes) == [plain, crossed]
    summed = fit(Move(("a", "b"), ("x",), (SumPair(),)))
    turned = fit(Move(("a", "b"), ("x",), (SumPair(), Permute((1, 0)))))
    twice = fit(Move(("a", "b"), ("x",), (SumPair(), Permute((1, 0)), Permute((1, 0)))))
    assert different([summed, turned, twice], shapes) == [summed, turned]
