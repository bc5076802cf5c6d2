"""The models of transformers that exist in torch and in Flax: both ways, with random parameters and statistics."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import pytreeckpt as ptc
import pytreeckpt_jax as ptc_jax
import pytreeckpt_torch as ptc_torch
from pytreeckpt import convert
from pytreeckpt.convert.presets import TRANSFORMERS_FLAX
from tests.convert.layers_side_by_side import normal, randomised

transformers = pytest.importorskip("transformers", minversion="4.57", reason="the last versions with Flax models")

TOKENS = np.arange(8).reshape(2, 4) + 3
# Flax's models take images in float32, and compute in float64.
IMAGES = normal(2, 3, 8, 8).astype(np.float32).astype(np.float64)
BERT = {
    "vocab_size": 32,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
GPT2 = {"vocab_size": 32, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}
VIT = {**{key: BERT[key] for key in list(BERT)[1:5]}, "image_size": 8, "patch_size": 4}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2]}


@dataclass(frozen=True)
class Pair:
    """A model in both frameworks: the name of its class, that of its configuration, and the settings of that."""

    cls: str
    config: str
    settings: dict[str, Any]
    inputs: np.ndarray
    rules: tuple[convert.Rule, ...] = ()

    def made(self) -> tuple[torch.nn.Module, Any, Any]:
        """The model of torch, randomised; that of Flax; and the abstract variables of that."""
        config = getattr(transformers, self.config)(**self.settings)
        ours = randomised(getattr(transformers, self.cls)(config))
        shape = {"input_shape": (1, 8, 8, 3)} if self.inputs.ndim == 4 else {}
        theirs = getattr(transformers, f"Flax{self.cls}")(config, dtype=jnp.float64, _do_init=False, **shape)
        target = jax.eval_shape(lambda: theirs.init_weights(jax.random.key(0), theirs.input_shape))
        return ours, theirs, target

    def plan(self, source: Any, target: Any, **options: Any) -> convert.Plan:
        return convert.plan(source, target, rules=self.rules, dtype="float64", **options)


PAIRS = {
    "BERT": Pair("BertModel", "BertConfig", BERT, TOKENS),
    "BERT, tied": Pair("BertForMaskedLM", "BertConfig", BERT, TOKENS),
    "RoBERTa": Pair("RobertaModel", "RobertaConfig", BERT, TOKENS),
    "GPT-2": Pair("GPT2Model", "GPT2Config", GPT2, TOKENS, TRANSFORMERS_FLAX["gpt2"]),
    "GPT-2, tied": Pair("GPT2LMHeadModel", "GPT2Config", GPT2, TOKENS, TRANSFORMERS_FLAX["gpt2"]),
    "ViT": Pair("ViTForImageClassification", "ViTConfig", VIT, IMAGES),
    "ResNet, basic": Pair(
        "ResNetModel",
        "ResNetConfig",
        {**RESNET, "layer_type": "basic"},
        IMAGES,
        TRANSFORMERS_FLAX["resnet-basic"],
    ),
    "ResNet, bottlenecks": Pair("ResNetForImageClassification", "ResNetConfig", RESNET, IMAGES),
}
_made: dict[str, tuple[torch.nn.Module, Any, Any]] = {}


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def made(name):
    """Making models takes longer than all else here; no test changes them."""
    if name not in _made:
        _made[name] = PAIRS[name].made()
    return _made[name]


def first(call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given, **options: call(*given, **options)[0]


@pytest.mark.parametrize("name", PAIRS)
def test_both_compute_the_same_with_the_same_gradients(name):
    ours, theirs, target = made(name)
    tree = ptc_torch.capture(model=ours, rng=False)
    plan = PAIRS[name].plan(tree, target)
    report = plan.verify(
        ptc_torch.computes(lambda module, inputs: module(inputs)[0], model=ours),
        ptc_jax.computes(lambda params, inputs: theirs(inputs, params=params)[0]),
        tree,
        PAIRS[name].inputs,
    )
    assert [level.outcome for level in report.levels[:3]] == ["equal", "close", "close"], str(report)
    assert convert.from_document(json.loads(json.dumps(convert.to_document(plan)))) == plan


@pytest.mark.parametrize("name", PAIRS)
def test_from_flax_to_torch_and_back(name):
    ours, _, target = made(name)
    params = PAIRS[name].plan(ours, target).apply(ours, to="jax").tree
    fresh = getattr(transformers, PAIRS[name].cls)(ours.config).double()
    plan = PAIRS[name].plan(params, fresh)
    state, residuals = plan.apply(params)
    fresh.load_state_dict(state)
    with torch.no_grad():
        inputs = torch.as_tensor(PAIRS[name].inputs)
        assert torch.equal(fresh.eval()(inputs)[0], ours(inputs)[0])
    again = plan.invert().apply(state, residuals=residuals, to="numpy").tree
    before, after = (jax.tree.leaves(tree) for tree in (params, again))
    assert len(before) == len(after) > 20
    assert all(np.asarray(a).tobytes() == b.tobytes() for a, b in zip(before, after))


def test_tied_embeddings_are_one_array_in_flax_and_come_back_as_one_tensor():
    ours, _, target = made("BERT, tied")
    tree = ptc_torch.capture(model=ours, rng=False)
    plan = PAIRS["BERT, tied"].plan(tree, target)
    (tied,) = [entry for entry in plan.entries if len(entry.sources) > 1 and "decoder.weight" in str(entry.sources)]
    assert [str(path) for path in tied.targets] == ["bert/embeddings/word_embeddings/embedding"]
    state = plan.invert().apply(plan.apply(tree).tree).tree["model"]["state"]
    names = [str(path[-1].key) for path in tied.sources]
    assert len({state[name].data_ptr() for name in names}) == 1


def test_without_the_rules_of_a_preset_both_layouts_of_a_square_matrix_are_listed():
    ours, _, target = made("GPT-2")
    with pytest.raises(ptc.ConversionError) as caught:
        convert.plan(ours, target, dtype="float64")
    square = ["h/0/attn/c_proj", "h/1/attn/c_proj"]
    assert [text.partition(" ")[0] for text in caught.value.ambiguous] == square
    assert all("FlaxConv1D" in text and "Choose(" in text for text in caught.value.ambiguous)
    assert caught.value.missing == caught.value.unexpected == ()


def test_a_plain_state_dict_is_not_guessed_at():
    ours, _, target = made("BERT")
    flat = {name: tensor.numpy() for name, tensor in ours.state_dict().items()}
    with pytest.raises(ptc.ConversionError) as caught:
        PAIRS["BERT"].plan(flat, target)
    # All matrices are square here.
    linear = [name for name, module in ours.named_modules() if isinstance(module, torch.nn.Linear)]
    assert sorted(text.partition(" ")[0] for text in caught.value.ambiguous) == sorted(
        name.replace(".", "/") for name in linear
    )
    kinds = [convert.Kind("**.query", "Linear"), convert.Kind("**.key", "Linear"), convert.Kind("**.value", "Linear")]
    kinds.append(convert.Kind("**.dense", "Linear"))
    plan = convert.plan(flat, target, rules=kinds, dtype="float64")
    expected = jax.tree.leaves(PAIRS["BERT"].plan(ours, target).apply(ours, to="numpy").tree)
    found = jax.tree.leaves(plan.apply(flat).tree)
    assert len(found) == len(expected) > 20
    assert all(np.array_equal(a, b) for a, b in zip(found, expected))


def test_arrays_that_were_tied_and_are_not_known_to_be_have_to_be_declared():
    ours, _, target = made("GPT-2, tied")
    tree = ptc_torch.capture(model=ours, rng=False)
    state = {name: tensor.numpy().copy() for name, tensor in tree["model"]["state"].items()}
    flat = {**tree, "model": {**tree["model"], "state": state}}
    with pytest.raises(ptc.ConversionError, match="lm_head.weight") as caught:
        PAIRS["GPT-2, tied"].plan(flat, target)
    assert len(caught.value.unexpected) == 1
    names = ("transformer.wte.weight", "lm_head.weight")
    tie = convert.Convert(names, "transformer/wte/embedding", (convert.Step("tie"),))
    plan = convert.plan(flat, target, rules=[*PAIRS["GPT-2, tied"].rules, tie], dtype="float64")
    assert np.array_equal(plan.apply(flat).tree["transformer"]["wte"]["embedding"], state["lm_head.weight"])
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    with pytest.raises(ptc.ConversionError, match="should be equal"):
        plan.apply(flat)
