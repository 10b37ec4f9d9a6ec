"""MoE blocks of the families that transformers loads: the same output from the swarm, and the golden one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import kwaai_client as kwaai
from nodes import FIXTURES, Node

DIRECTORIES = sorted(
    path.parent for kind in ("moe", "more") for path in (FIXTURES / kind).glob("*/fixture.json") if "sharded" not in path.parent.name
)


@pytest.fixture(scope="module")
def entry(tmp_path_factory) -> Node:
    """A node that routes all layers and hosts nothing; another one has the experts."""
    data = tmp_path_factory.mktemp("nodes")
    specs = [arg for path in DIRECTORIES for arg in ("--expert", f"checkpoint={path}")]
    host = Node(data / "host", specs)
    router = None
    try:
        config = data / "router.yaml"
        config.write_text(json.dumps({"layers": [{"checkpoint": str(path)} for path in DIRECTORIES]}))
        router = Node(data / "router", ["--config", str(config)], [host.addr])
        host.wait_ready()
        router.wait_ready()
        yield router
    finally:
        host.kill()
        if router:
            router.kill()


def load(path: Path):
    """The model in float32, on the stored weights."""
    config = transformers.AutoConfig.from_pretrained(path)
    kind = getattr(transformers, config.architectures[0])
    extra = {}
    if getattr(config, "quantization_config", None):
        extra["quantization_config"] = {
            "mxfp4": transformers.Mxfp4Config(dequantize=True),
            "fp8": transformers.FineGrainedFP8Config(dequantize=True),
        }[config.quantization_config["quant_method"]]
    return kind.from_pretrained(path, dtype=torch.float32, **extra).eval().float()


@pytest.mark.parametrize("path", DIRECTORIES, ids=lambda path: path.name)
def test_blocks_are_the_same_over_the_swarm(entry, path):
    facts = json.loads((path / "fixture.json").read_text())
    golden = load_file(path / "golden.safetensors")
    model = load(path)
    layers = [name.removesuffix(".experts") for name, module in model.named_modules() if name.endswith(".experts")]
    assert len(layers) == len(facts["moe_layers"])

    def block(name: str, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y = model.get_submodule(name)(x[None])
        return (y[0] if isinstance(y, tuple) else y).reshape(x.shape)

    inputs = [golden[f"{layer['golden_prefix']}.rows17.input"] for layer in facts["moe_layers"]]
    before = [block(name, x) for name, x in zip(layers, inputs, strict=True)]
    patched = kwaai.patch(model, entry.url)
    assert patched.layers == [f"{path.name}/{layer['layer']}" for layer in facts["moe_layers"]]
    for name, layer, x, own in zip(layers, facts["moe_layers"], inputs, before, strict=True):
        y = block(name, x)
        largest = own.abs().max().item()
        torch.testing.assert_close(y, own, atol=1e-5 * largest, rtol=0)
        torch.testing.assert_close(y, golden[f"{layer['golden_prefix']}.rows17.block_output"], atol=1e-5 * largest, rtol=0)
    assert patched.answered_by
