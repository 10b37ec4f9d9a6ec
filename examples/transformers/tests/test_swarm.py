"""The text model of testdata, its experts on three real nodes, two of them for each expert."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
import torch
import transformers

import kwaai_client as kwaai
from kwaai_client import Experts
from nodes import FIXTURES, Node

DIRECTORY = FIXTURES / "tiny-mixtral-text"
FACTS = json.loads((DIRECTORY / "fixture.json").read_text())

# Experts of every layer by node: each is on two of the three.
SPREAD = ["0-5", "2-7", "0-1,6-7"]


@pytest.fixture
def nodes(start, tmp_path) -> list[Node]:
    """Three nodes. What one of them hosts stands in a file, since commas separate keys on the command line."""
    started: list[Node] = []
    for i, experts in enumerate(SPREAD):
        config = tmp_path / f"{i}.yaml"
        config.write_text(f"experts: [{{checkpoint: {DIRECTORY}, experts: '{experts}'}}]\n")
        started.append(start("--config", str(config), bootstrap=[node.addr for node in started]))
    for node in started:
        node.wait_ready()
    return started


@pytest.fixture
def model():
    return transformers.AutoModelForCausalLM.from_pretrained(DIRECTORY, dtype=torch.float32).eval()


def windows() -> torch.Tensor:
    text = (DIRECTORY / FACTS["held_out"]["file"]).read_bytes()
    return torch.tensor(list(text)).reshape(32, 256)


def held_out_loss(model, on_window=lambda i: None) -> float:
    """Mean loss in nats per byte, as fixture.json says it is measured."""
    losses = []
    for i, window in enumerate(windows()):
        on_window(i)
        with torch.no_grad():
            losses.append(model(window[None], labels=window[None]).loss.item())
    return sum(losses) / len(losses)


def greedy(model, on_byte=lambda i: None) -> str:
    """The prompt's continuation, 64 bytes, the most likely one each time."""
    ids = torch.tensor([list(FACTS["greedy"]["prompt"].encode())])
    said = bytearray()
    with torch.no_grad():
        state = model(ids, use_cache=True)
        for i in range(64):
            on_byte(i)
            said.append(int(state.logits[0, -1].argmax()))
            state = model(torch.tensor([[said[-1]]]), past_key_values=state.past_key_values, use_cache=True)
    return said.decode()


def test_the_loss_is_the_same_and_stays_so_while_a_node_is_killed(nodes, model):
    patched = kwaai.patch(model, nodes[0].url)
    want = FACTS["held_out"]["loss_nats_per_byte"]
    assert held_out_loss(model) == pytest.approx(want, abs=1e-4)
    assert len(patched.answered_by) >= 2, "nodes that answered"
    assert held_out_loss(model, lambda i: nodes[1].kill() if i == 10 else None) == pytest.approx(want, abs=1e-4)
    assert not patched.missing


def test_the_loss_is_the_same_when_hosts_add_up_their_experts(nodes, model):
    """One row back from a host for all of a row's experts there, weighted: rounded otherwise, and no further off than that."""
    patched = kwaai.patch(model, nodes[0].url, combine="peer")
    want = FACTS["held_out"]["loss_nats_per_byte"]
    assert held_out_loss(model, lambda i: nodes[1].kill() if i == 10 else None) == pytest.approx(want, abs=1e-4)
    assert len(patched.answered_by) >= 2, "nodes that answered"
    assert not patched.missing


def test_the_greedy_continuation_is_the_same_while_a_node_is_killed(nodes, model):
    kwaai.patch(model, nodes[0].url)
    assert greedy(model, lambda i: nodes[2].kill() if i == 20 else None) == FACTS["greedy"]["continuation"]


def test_the_node_that_is_asked_may_go_when_others_are_named(nodes, model):
    kwaai.patch(model, [node.url for node in nodes])
    assert greedy(model, lambda i: nodes[0].kill() if i == 20 else None) == FACTS["greedy"]["continuation"]


def test_generate_works_and_restore_gives_the_same_text(nodes, model):
    prompt = torch.tensor([list(FACTS["greedy"]["prompt"].encode())])
    patched = kwaai.patch(model, nodes[1].url, keep=True)
    over_swarm = model.generate(prompt, max_new_tokens=64, do_sample=False)
    patched.restore()
    assert bytes(over_swarm[0, prompt.shape[1] :].tolist()).decode() == FACTS["greedy"]["continuation"]
    assert torch.equal(over_swarm, model.generate(prompt, max_new_tokens=64, do_sample=False))


def test_threads_share_a_patched_model(nodes, model):
    kwaai.patch(model, nodes[0].url)
    failures = []

    def work() -> None:
        try:
            assert greedy(model) == FACTS["greedy"]["continuation"]
        except BaseException as err:
            failures.append(err)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_single_experts_answer_as_the_models_own(nodes, model):
    own = model.model.layers[1].mlp.experts
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(1))
    with Experts([node.url for node in nodes]) as experts:
        for e in range(8):
            with torch.no_grad():
                want = own(x, torch.full((5, 1), e), torch.ones(5, 1))
            got = experts.call(f"tiny-mixtral-text/1/{e}", x.numpy())
            np.testing.assert_allclose(got, want.numpy(), atol=1e-5 * want.abs().max().item(), rtol=0)


def test_errors_of_real_nodes_have_their_types(nodes):
    with Experts(nodes[0].url) as experts:
        with pytest.raises(kwaai.NotFound):
            experts.call("tiny-mixtral-text/1/99", np.zeros(128))
        with pytest.raises(kwaai.InvalidArgument, match="128"):
            experts.call("tiny-mixtral-text/1/0", np.zeros(100))
        with pytest.raises(kwaai.InvalidArgument):
            experts.call("tiny-mixtral-text/1/0", np.full(128, np.nan))
        with pytest.raises(kwaai.DigestMismatch):
            experts.call("tiny-mixtral-text/1/0", np.zeros(128), digest="ab" * 32)
        with pytest.raises(kwaai.InvalidArgument, match=r"expected \[2, k\]"):
            experts.layer("tiny-mixtral-text/1", np.zeros((2, 128)), np.zeros((1, 2), int), np.zeros((1, 2)))
        assert experts.call("tiny-mixtral-text/1/0", np.zeros(128)).shape == (128,)
