"""How far an expert's outputs are from those of float64, beside PyTorch's float32 on the same machine, weights and rows.

KWAAID_MEASURE=1 takes the larger sizes too (two of them need 2 GB of memory); `-s` shows the figures.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kwaai_client import Experts

SIZES = [(2048, 768)] + ([(7168, 2048), (4096, 14336)] if os.environ.get("KWAAID_MEASURE") else [])
ROWS = 64


def checkpoint(path: Path, hidden: int, inner: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Writes a Mixtral of one expert and returns its gate, up and down, drawn so that activations keep their size."""
    draw = torch.Generator().manual_seed(hidden)
    shapes = {"w1": (inner, hidden), "w3": (inner, hidden), "w2": (hidden, inner)}
    weights = {name: (torch.randn(shape, generator=draw) / shape[1] ** 0.5).to(dtype) for name, shape in shapes.items()}
    prefix = "model.layers.0.block_sparse_moe."
    tensors = {f"{prefix}experts.0.{name}.weight": weight for name, weight in weights.items()}
    tensors[f"{prefix}gate.weight"] = torch.randn(1, hidden, generator=draw).to(dtype)
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    config = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_act": "silu", "hidden_size": hidden}
    config |= {"intermediate_size": inner, "num_hidden_layers": 1, "num_local_experts": 1, "num_experts_per_tok": 1}
    (path / "config.json").write_text(json.dumps(config))
    return weights["w1"], weights["w3"], weights["w2"]


def forward(x: torch.Tensor, weights: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The expert in x's type."""
    gate, up, down = weights
    h = torch.nn.functional.silu(x @ gate.to(x.dtype).T) * (x @ up.to(x.dtype).T)
    return h @ down.to(x.dtype).T


def errors(y: torch.Tensor, want: torch.Tensor) -> tuple[float, float, float]:
    """Largest and mean error by the largest output of the row, and the rms error by the rms output."""
    off = (y.double() - want).abs()
    by_row = off / want.abs().amax(-1, keepdim=True)
    return by_row.max().item(), by_row.mean().item(), (off.pow(2).mean() / want.pow(2).mean()).sqrt().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize(("hidden", "inner"), SIZES, ids=lambda n: str(n))
def test_exact_is_as_near_to_float64_as_torch_is(start, tmp_path, hidden, inner, dtype):
    weights = checkpoint(tmp_path / "one", hidden, inner, dtype)
    node = start("--expert", f"checkpoint={tmp_path / 'one'}")
    node.wait_ready()
    x = torch.randn(ROWS, hidden, generator=torch.Generator().manual_seed(1))
    want = forward(x.double(), weights)
    with Experts(node.url) as experts:
        exact = errors(torch.from_numpy(experts.call("one/0/0", x.numpy(), numerics="exact")), want)
    batch = errors(forward(x, weights), want)
    single = errors(torch.cat([forward(row[None], weights) for row in x]), want)
    for name, figures in {"exact": exact, f"torch, {ROWS} rows": batch, "torch, row by row": single}.items():
        print(f"\n{hidden}x{inner} {name}: max {figures[0]:.2e}, mean {figures[1]:.2e}, rms {figures[2]:.2e}", end="")
    assert exact[0] < 1e-5
    assert exact[2] <= batch[2]
