"""patch() on small models of random weights, against a node of this test's own that runs the model's former experts."""

from __future__ import annotations

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
import transformers

import kwaai_client as kwaai
from fake_node import Asked, Refusal, serve

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2, "vocab_size": 32}


def mixtral(**sizes) -> transformers.MixtralForCausalLM:
    torch.manual_seed(1)
    config = transformers.MixtralConfig(
        **{**SIZES, "intermediate_size": 24, "num_local_experts": 4, "num_experts_per_tok": 2, **sizes}, name_or_path="some/where/tiny"
    )
    return transformers.MixtralForCausalLM(config).eval()


class Swarm:
    """What a fake node answers: a copy of the experts of a model, layer by layer."""

    def __init__(self, model) -> None:
        self.layers = [copy.deepcopy(layer.mlp.experts) for layer in model.model.layers]
        self.error = 0.0  # added to every answer

    def __call__(self, asked: Asked):
        model, layer = asked.path.removeprefix("/v2/models/").removesuffix("/infer").split("/")
        assert model == "tiny"
        assert asked.parameters["shared"] is False
        states = torch.from_numpy(asked.inputs["hidden_states"].copy())
        bits = asked.datatypes["hidden_states"] == "BF16"
        if bits:
            states = states.view(torch.int16).view(torch.bfloat16)
        index = torch.from_numpy(asked.inputs["experts"].copy())
        weights = torch.from_numpy(asked.inputs["weights"].copy())
        index[index < 0] = self.layers[0].num_experts  # how transformers itself says "none"
        with torch.no_grad():
            y = self.layers[int(layer)].float()(states.float(), index, weights) + self.error
        array = y.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16) if bits else y.numpy()
        return {"hidden_states": (asked.datatypes["hidden_states"], array)}

    def describe(self, node) -> None:
        for i, layer in enumerate(self.layers):
            outputs = [{"name": "hidden_states", "shape": [-1, 16]}, {"name": "router_logits", "shape": [-1, layer.num_experts]}]
            node.metadata[f"tiny/{i}"] = {"outputs": outputs}


@pytest.fixture
def swarm():
    model = mixtral()
    answers = Swarm(model)
    with serve(answers) as node:
        answers.describe(node)
        node.answers = answers
        yield model, node


IDS = torch.arange(24).reshape(2, 12) % 32


def test_a_patched_model_says_the_same(swarm):
    model, node = swarm
    with torch.no_grad():
        want = model(IDS).logits
        node.reply_parameters = {"answered_by": "peer-a"}
        patched = kwaai.patch(model, node.url)
        assert patched.layers == ["tiny/0", "tiny/1"]
        assert not patched.answered_by  # the comparison beforehand is not counted
        torch.testing.assert_close(model(IDS).logits, want)
        assert patched.answered_by == {"peer-a": 2}
    assert "tiny/0, experts=4" in repr(model)


def test_bfloat16_travels_as_it_is(swarm):
    model, node = swarm
    model.to(torch.bfloat16)
    node.answers.layers = [layer.to(torch.bfloat16) for layer in node.answers.layers]
    with torch.no_grad():
        want = model(IDS).logits
        kwaai.patch(model, node.url)
        got = model(IDS).logits
    assert {asked.datatypes["hidden_states"] for asked in node.asked} == {"BF16"}
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, want, atol=2e-2, rtol=0)


def test_the_models_own_experts_are_freed_or_kept(swarm):
    model, node = swarm
    with torch.no_grad():
        want = model(IDS).logits
        patched = kwaai.patch(model, node.url, keep=True)
        patched.restore()
        asked = len(node.asked)
        torch.testing.assert_close(model(IDS).logits, want, rtol=0, atol=0)
        assert len(node.asked) == asked

    own = weakref.ref(model.model.layers[0].mlp.experts)
    patched = kwaai.patch(model, node.url)
    gc.collect()
    assert own() is None
    assert not any("experts" in name for name, _ in model.named_parameters())
    with pytest.raises(RuntimeError, match="keep=True"):
        patched.restore()


def test_gradients_are_refused_and_forward_passes_are_not(swarm):
    model, node = swarm
    kwaai.patch(model, node.url)
    loss = model(IDS, labels=IDS).loss
    assert loss.item() > 0
    with pytest.raises(kwaai.GradientsUnsupported, match=r"tiny/1.*no_grad"):
        loss.backward()


def test_a_long_prompt_goes_in_several_requests(swarm):
    model, node = swarm
    block = model.model.layers[0].mlp
    x = torch.randn(1, 2500, 16)
    with torch.no_grad():
        want = block(x)
        kwaai.patch(model, node.url)
        before = len(node.asked)
        torch.testing.assert_close(block(x), want)
        assert [len(asked.inputs["hidden_states"]) for asked in node.asked[before:]] == [1024, 1024, 452]
        assert block(x[:, :0]).shape == (1, 0, 16)


def test_no_expert_is_minus_one_on_the_wire(swarm):
    model, node = swarm
    patched_experts = model.model.layers[0].mlp
    kwaai.patch(model, node.url)
    with torch.no_grad():
        index = torch.tensor([[4, 1], [4, 4]])  # four experts: 4 is none
        y = patched_experts.experts(torch.ones(2, 16), top_k_weights=torch.ones(2, 2), top_k_index=index)
    np.testing.assert_array_equal(node.asked[-1].inputs["experts"], [[-1, 1], [-1, -1]])
    np.testing.assert_array_equal(node.asked[-1].inputs["weights"], [[0, 1], [0, 0]])
    assert y[1].abs().max() == 0


def test_another_model_under_the_same_name_is_found_out_before_anything_changes(swarm):
    model, node = swarm
    node.answers.error = 1.0
    own = model.model.layers[0].mlp.experts
    with pytest.raises(kwaai.WeightsDiffer, match="tiny/0"):
        kwaai.patch(model, node.url)
    assert model.model.layers[0].mlp.experts is own
    kwaai.patch(model, node.url, verify=False)

    with pytest.raises(kwaai.WeightsDiffer, match="4 experts in the swarm, 6 in the model"):
        kwaai.patch(mixtral(num_local_experts=6), node.url)


def test_experts_that_were_left_out_are_told_of(swarm):
    model, node = swarm
    patched = kwaai.patch(model, node.url, policy="skip", combine="peer")
    assert node.asked[0].parameters["policy"] == "skip"
    assert node.asked[0].parameters["combine"] == "peer"
    node.reply_parameters = {"missing_experts": "expert-9"}
    with torch.no_grad(), pytest.warns(kwaai.MissingExpertsWarning, match="expert-9"):
        model(IDS)
    assert patched.missing == {"expert-9": 2}


def test_errors_reach_the_caller_of_the_model(swarm):
    model, node = swarm
    kwaai.patch(model, node.url)
    node.answer = lambda _: Refusal(404, b'{"error":"nobody hosts it","code":"NOT_FOUND"}')
    with torch.no_grad(), pytest.raises(kwaai.NotFound):
        model(IDS)


def test_layers_that_the_node_does_not_know_are_told_of(swarm):
    model, node = swarm
    with pytest.raises(kwaai.NotFound):
        kwaai.patch(model, node.url, name="other")
    model.config._name_or_path = ""
    with pytest.raises(ValueError, match="name="):
        kwaai.patch(model, node.url)


def test_a_dense_model_has_nothing_to_patch():
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, intermediate_size=24))
    with pytest.raises(ValueError, match="LlamaForCausalLM has no experts"):
        kwaai.patch(model)
